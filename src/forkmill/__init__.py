"""forkmill runs Python functions on every core of a machine at pipe speed.

::

    import forkmill as fm

    for thumbnail in fm.map(shrink, paths):          # one line, all cores, lazy
        ...

    with fm.ProcessPool() as pool:                   # a concurrent.futures.Executor
        future = pool.submit(parse, "a.txt")
        results = pool.map(parse, names, ordered=False)

How the data flows::

    user's process                                 zygote (one thread)      workers
    ┌────────────────────────────────────────┐     ┌───────────────┐       ┌─────────┐
    │ submit, map: encode in the caller's    │     │ forks, reaps, │ fork  │ decode  │
    │ thread, write the frame                │◀───▶│ replaces,     ├──────▶│ run     │
    │ result, next: who waits does the       │     │ kills, reports│       │ encode  │
    │ I/O, and decodes                       │     └───────────────┘       └─────────┘
    └────────────────────────────────────────┘◀──── private channel per worker ──▶

Goals, ranked; where two clash, the earlier wins:

1. **correct**: every accepted task gets exactly one outcome, whatever dies;
2. **fast**: close to what the kernel allows;
3. **simple**: a newcomer reads the core in an afternoon.

Words, each with one meaning, in code and messages:

===================  ===========================================================================
task                 one call of one function, accepted by a pool
outcome              result, exception, WorkerDied, TaskTimeout, cancelled: a task gets exactly one
worker               a persistent child process that runs tasks
running              from before the arguments are decoded until the outcome is handed over
frame, record        one length-prefixed message on a channel; one task's part of it
channel              framed, non-blocking descriptor pair to one worker
backlog, in flight   accepted, not yet sent; sent, no outcome yet
credit, recall       how much a worker may still be sent; taking back what it has not started
window               the most a lazy call keeps pulled from its input and not yet consumed
dispatcher           picks the worker for the next frame
reaper               notices deaths, collects exit statuses, never blocks, never steals
zygote               single-threaded process from which workers are forked, and their reaper
leader               the thread that has the right, one at a time, to do the pool's I/O
chunk                several tasks of one `map` in one frame
out-of-band buffer   bytes that pickle protocol 5 hands over beside the pickle
drain, close, kill   refuse new work and finish the old; drain then stop; stop now
===================  ===========================================================================

What can go wrong, and what to do then: ``help(forkmill.errors)``.
"""

from __future__ import annotations

import itertools
import os
import sys

# `python -m forkmill` is on its way to __main__, with the current folder before the standard
# library: a select.py or typing.py in it would be ours. The command line searches that folder too,
# behind the standard library, when the user names a module of his. (Nothing is imported before this
# that an interpreter has not imported by itself.)
if sys.argv[:1] == ["-m"] and ("-m", "forkmill") in itertools.pairwise(sys.orig_argv):
    try:
        if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
            del sys.path[0]
    except OSError:  # the folder was removed, and is not on the path
        pass

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from ._offers import OFFERS
from .errors import (
    BuildError,
    PoolClosed,
    PoolError,
    RemoteError,
    SerializationError,
    SessionBusy,
    SessionConflict,
    SharedGone,
    StepLimit,
    StoreError,
    TaskTimeout,
    UpdateError,
    WorkerDied,
)

if TYPE_CHECKING:
    from . import events, integrations, testing
    from ._said import emit
    from .codec.per_worker import PerWorker, per_worker
    from .codec.share import Shared, share
    from .contexts import (
        ContextPool,
        create_context,
        executor,
        named_pool,
    )
    from .contexts.specs import (
        aio,
        cow_fork,
        inline,
        interpreter,
        ipc_fork,
        on_dask,
        on_ray,
        thread,
    )
    from .errors import InitError, PoolBroken
    from .events import JsonLines, read_events, subscribe
    from .graph import (
        AsyncExecutor,
        DiskCache,
        Engine,
        Graph,
        LocalEngine,
        MapResult,
        MemoryCache,
        node,
    )
    from .pipeline import (
        ExecutionPlan,
        Failure,
        Monitor,
        Orchestrator,
        Pipeline,
        RunResult,
        after_fork,
        after_run,
        after_stage,
        batch,
        before_fork,
        before_run,
        before_stage,
        consumer,
        dead_letter,
        producer,
        retry,
        stage,
        to,
        unbatch,
    )
    from .pool.process_pool import (
        Future,
        PoolStats,
        ProcessPool,
        WorkerInfo,
        map,
        shutdown_shared,
    )
    from .remote.on_daft import DaftEngine
    from .show.progress import Progress
    from .show.spans import OpenTelemetry
    from .show.top.server import serve_top
    from .show.trace import chrome_trace
    from .stategraph import (
        DELETE,
        END,
        START,
        Command,
        Overwrite,
        Send,
        StateGraph,
        StateRun,
        append,
        interrupt,
        task_id,
    )
    from .stategraph.checkpoints import (
        MemoryCheckpoints,
        PostgresCheckpoints,
        SQLiteCheckpoints,
    )
    from .worker.arrays import empty, frombuffer

__version__ = "0.2.0"

__all__ = [
    "DELETE",
    "END",
    "START",
    "AsyncExecutor",
    "BuildError",
    "Command",
    "ContextPool",
    "DaftEngine",
    "DiskCache",
    "Engine",
    "ExecutionPlan",
    "Failure",
    "Future",
    "Graph",
    "InitError",
    "JsonLines",
    "LocalEngine",
    "MapResult",
    "MemoryCache",
    "MemoryCheckpoints",
    "Monitor",
    "OpenTelemetry",
    "Orchestrator",
    "Overwrite",
    "PerWorker",
    "Pipeline",
    "PoolBroken",
    "PoolClosed",
    "PoolError",
    "PoolStats",
    "PostgresCheckpoints",
    "ProcessPool",
    "Progress",
    "RemoteError",
    "RunResult",
    "SQLiteCheckpoints",
    "Send",
    "SerializationError",
    "SessionBusy",
    "SessionConflict",
    "Shared",
    "SharedGone",
    "StateGraph",
    "StateRun",
    "StepLimit",
    "StoreError",
    "TaskTimeout",
    "UpdateError",
    "WorkerDied",
    "WorkerInfo",
    "__version__",
    "after_fork",
    "after_run",
    "after_stage",
    "aio",
    "append",
    "batch",
    "before_fork",
    "before_run",
    "before_stage",
    "chrome_trace",
    "consumer",
    "cow_fork",
    "create_context",
    "dead_letter",
    "emit",
    "empty",
    "errors",
    "events",
    "executor",
    "frombuffer",
    "inline",
    "integrations",
    "interpreter",
    "interrupt",
    "ipc_fork",
    "map",
    "named_pool",
    "node",
    "on_dask",
    "on_ray",
    "per_worker",
    "producer",
    "read_events",
    "retry",
    "serve_top",
    "share",
    "shutdown_shared",
    "stage",
    "subscribe",
    "task_id",
    "testing",
    "thread",
    "to",
    "unbatch",
]

# Where each name is that is loaded when it is first asked for: zygotes, workers and those who only
# catch our errors need not pay for the pool, nor does a subinterpreter, where the extension cannot
# be loaded. (errors makes its two by need.)
_HOMES = {
    name: home
    for home, names in {
        "pool": "Future PoolStats ProcessPool WorkerInfo map shutdown_shared",
        "contexts": "ContextPool create_context executor named_pool",
        "contexts.specs": "aio cow_fork inline interpreter ipc_fork on_dask on_ray thread",
        "worker.arrays": "empty frombuffer",
        "codec.share": "PerWorker Shared per_worker share",
        "pipeline": "ExecutionPlan Failure Monitor Orchestrator Pipeline RunResult after_fork"
        " after_run after_stage batch before_fork before_run before_stage consumer dead_letter"
        " producer retry stage to unbatch",
        "remote.on_daft": "DaftEngine",
        "graph": "AsyncExecutor DiskCache Engine Graph LocalEngine MapResult MemoryCache node",
        "stategraph": "DELETE END START Command Overwrite Send StateGraph StateRun append interrupt"
        " task_id",
        "stategraph.checkpoints": "MemoryCheckpoints PostgresCheckpoints SQLiteCheckpoints",
        "events": "JsonLines read_events subscribe",
        "errors": "InitError PoolBroken",
        "show.progress": "Progress",
        "show.spans": "OpenTelemetry",
        "show.top.server": "serve_top",
        "show.trace": "chrome_trace",
        "_said": "emit",
    }.items()
    for name in names.split()
}
OFFERS.update({
    "context:dask": "forkmill.remote.on_dask:Dask",
    "context:ray": "forkmill.remote.on_ray:Ray",
    "udf_of": "forkmill.remote.on_daft:udf_of",
})  # fmt: skip
OFFERS.update(
    progress="forkmill.show.progress:Progress",
    html_of="forkmill.show.tables:html_of",
    report="forkmill.show.report:Report",
    report_of="forkmill.show.report:report_of",
    top_of="forkmill.show.top.launch:top_of",
)


def _load(name: str) -> Any:
    if name in ("events", "integrations", "testing"):
        value: Any = import_module(f".{name}", __name__)
    elif name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    else:
        said = f"module {__name__!r} has no attribute {name!r}"
        # An import of a module of ours asks too, and reads no text. In an exec'd worker one does so
        # from anywhere: ours were there before this package was.
        if name[:1] not in ("", "_") and sys._getframe(1).f_code.co_name != "_handle_fromlist":
            from ._checks import nearest

            said += nearest(name, __all__)
        raise AttributeError(said)
    globals()[name] = value
    return value


if not TYPE_CHECKING:  # a checker knows all there is: what it does not find is a mistake
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted(__all__)


if "FORKMILL_TOP" in os.environ:
    import_module(".show.top.server", __name__).by_environment()

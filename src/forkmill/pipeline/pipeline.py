"""A pipeline as users have it: declared as in `declare`, and run.

Threads: a pipeline object may be run from several threads at once; do not declare meanwhile.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from .._checks import hinted
from ..runs.failure import KEEP
from .declare import Declaration
from .graph import build
from .orchestrator import Orchestrator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..runs.aio import AsyncStream
    from ..runs.handle import Handle, Stream
    from ..runs.result import RunResult
    from .graph import StageGraph

__all__ = ["Pipeline"]


class Pipeline(Declaration):
    """Stages, linked. Subclass it and decorate methods, or chain verbs.

    ::

        class WordCount(fm.Pipeline, context="inline"):
            @fm.producer
            def lines(self): yield from open(self.path)
            @fm.stage(context=fm.ipc_fork(4))
            def words(self, line): yield from line.split()

        fm.Pipeline().source(rows).map(parse, context="ipc_fork:4").batch(500).sink(load).run()

    Args:
        name: What the pipeline is called; None: its class's name.
        context: The context of stages that name none; None: the class's, else inline.
        **hooks: Functions for before_run, after_run, before_stage, after_stage, before_fork and
            after_fork; called after the methods that are marked so.

    Attributes:
        reroute: Class attribute: stage -> names of its new targets.
        insert: Class attribute: {"after" or "before": {stage: new stage}}.
        skip: Class attribute: names of stages to leave out; what fed them feeds their targets.
    """

    def build(self) -> StageGraph:
        """Check everything; nothing runs.

        Raises:
            BuildError: Names the stage, and the nearest name.
        """
        return build(self)

    @hinted
    def run(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
        progress: Any = False,
        report: Any = None,
    ) -> RunResult:
        """Run to the end.

        Args:
            sinks: Called with each event of the run, in a thread of ours (docs/events.md).
            keep_failures: How many failures the result keeps whole, the first ones; the rest is
                counted, by stage and type of the error. None: all of them, whatever they take.
            progress: True: show how far it is, on a terminal, in a notebook, or as a line now and
                then (docs/seeing.md). An `fm.Progress`: as that says.
            report: A path for an HTML file about the run, which is there when the run is over.

        Returns:
            Status, outputs, failures, statistics.

        Raises:
            BuildError: The pipeline is wrong; nothing has run.
            OSError: The report cannot be written there; nothing has run.
            Exception: That of the first failed item whose stage says "raise"; its
                attribute `run_result` has what there was.
            KeyboardInterrupt: Ctrl-C; what was in flight is finished.
        """
        return Orchestrator(self).execute(
            sinks=sinks, keep_failures=keep_failures, progress=progress, report=report
        )

    @hinted
    def stream(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
        progress: Any = False,
        report: Any = None,
    ) -> Stream:
        """The outputs one by one, as they come; what is not asked for is not computed ahead of the
        queues. Close the iterator to stop the run. Raises as `run`, where it is iterated.
        """
        return Orchestrator(self).stream(
            sinks=sinks, keep_failures=keep_failures, progress=progress, report=report
        )

    @hinted
    def start(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
        progress: Any = False,
        report: Any = None,
    ) -> Handle:
        """Run in a thread of its own.

        Returns:
            A handle with done(), stop(), kill(), result(timeout), stats(). It can be awaited: what
            result() gives, without a wait in the event loop's thread; a task that is cancelled
            there leaves the run alone.
        """
        return Orchestrator(self).start(
            sinks=sinks, keep_failures=keep_failures, progress=progress, report=report
        )

    async def arun(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
        progress: Any = False,
        report: Any = None,
    ) -> RunResult:
        """As `run`, for the running event loop: ``result = await pipeline.arun()``.

        The pipeline is built here; it runs in a thread, whose functions see the context variables
        of the caller. Its async functions have a loop of their own there, not the caller's.

        If the task is cancelled (asyncio.timeout, a task group, Ctrl-C in asyncio.run), the run is
        stopped: sources stop, what is in flight is finished; after 1.5 seconds, or if the task is
        cancelled once more, it is killed, which is over within a second. Only then the cancellation
        goes on, with the result as its attribute `run_result`. For a run that outlives its task:
        ``await pipeline.start()``.

        Args:
            sinks, keep_failures, progress, report: As `run`.

        Returns:
            Status, outputs, failures, statistics.

        Raises:
            BuildError: The pipeline is wrong; nothing has run.
            Exception: As `run`.
            RuntimeError: The run raised StopIteration, StopAsyncIteration or CancelledError (the
                cause), which would look like something else here.
            asyncio.CancelledError: The task was cancelled; the run is over.
        """
        from ..runs.aio import run  # with asyncio, which takes long to import

        start = Orchestrator(self).start
        return await run(
            functools.partial(
                start, sinks=sinks, keep_failures=keep_failures, progress=progress, report=report
            )
        )

    def astream(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
        progress: Any = False,
        report: Any = None,
    ) -> AsyncStream:
        """As `stream`, for ``async for``: computed ahead of the queues is only what is asked for.

        The run is in a thread, from the first output on that is asked for. It ends with the stream:
        if it is closed by aclose() (contextlib.aclosing, ``async with``), if the task that waits
        for an output is cancelled, if it is dropped. Then it is killed, within a second.

        Args:
            sinks, keep_failures, progress, report: As `run`.

        Returns:
            An async iterator with aclose(), and `result` when the run is over.

        Raises:
            BuildError: The pipeline is wrong; nothing has run. Everything else as `arun`, where it
                is iterated.
        """
        return Orchestrator(self).astream(
            sinks=sinks, keep_failures=keep_failures, progress=progress, report=report
        )

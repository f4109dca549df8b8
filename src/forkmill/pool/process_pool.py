"""The pool that users see: `ProcessPool`, its views, its figures, and the one-line `map`.

    user's process                                      zygote              workers
    ┌─────────────────────────────────────────┐   ┌──────────────┐     ┌────────────┐
    │ ProcessPool, options()  ──▶ Core ──▶ C  │◀─▶│ forks, reaps │────▶│ decode     │
    │   submit ──▶ Future        (core.py)    │   │ and replaces │     │ run        │
    │   map    ──▶ MapIterator   (maps.py)    │   └──────────────┘     │ encode     │
    │   run    ──▶ asyncio       (aio.py)     │◀══ channel a worker ══▶└────────────┘
    └─────────────────────────────────────────┘

Guarantees:
    * Wrong options are TypeError or ValueError in the caller's frame, and say what is allowed.
    * Everything here may be called from any thread, and is safe from callbacks and finalizers.
    * This module does no I/O and keeps no state of tasks: that is `Core`'s and C's.

Invariants:
    * POOL-1  A view refers to its pool, the pool to its core, futures and iterators to the core:
      so a pool that its user dropped lives on exactly as long as section 6 of the design says.
"""

from __future__ import annotations

import itertools
import logging
import time
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from .. import _checks, _native, errors
from .._checks import hinted, named
from .._late import finalize
from .._process import cpus, ours
from ..codec import codec
from ..runs.executor import Face
from ..runs.window import LazyCall
from ..worker import main, stacks
from .core import Core
from .figures import (
    PoolStats,
    WorkerInfo,
    WorkerProcess,
    pool_stats,
    worker_info,
)
from .futures import Future
from .here import Here
from .maps import MapIterator, Stream
from .options import (
    MOST_BYTES,
    Options,
    at_least_one,
    check_least,
    check_memory_limit,
    check_restarts,
)

codec.load_all()  # not when the first pool is made, for which somebody waits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from types import TracebackType
    from typing import Unpack

    from ..runs.executor import MapOptions, SharedOptions
    from ..runs.window import Closable

__all__ = ["Future", "PoolStats", "ProcessPool", "WorkerInfo", "map", "shutdown_shared"]

P = ParamSpec("P")
T = TypeVar("T")

_LOGGER = logging.getLogger("forkmill")
_names = itertools.count(1)
_DEFAULTS = Options()
_BIRTHS_S = 5.0  # a fresh interpreter may take long to come up on a busy machine


@named
class _Face(Face["View"]):
    """What a pool and its views have in common: everything but the end."""

    _core: Core | None  # None: no workers, calls run where they are made
    _options: Options
    _accept: Callable[..., Future[Any]] | None  # submit() of a pool with workers

    @property
    def _pool(self) -> ProcessPool:
        raise NotImplementedError

    @property
    def _max_workers(self) -> int:
        # Where libraries look for an executor's width (dask).
        return 1 if self._core is None else self._core.workers

    # ------------------------------------------------------------------ one call

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` called in a worker.

        fn, if it is a function, builtin or class, goes to each worker once, as it is at its first
        use. The arguments are encoded here and now.

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The task's future.

        Raises:
            TypeError: fn cannot be called.
            SerializationError: fn or an argument cannot be sent; says which part of it.
            PoolClosed: The pool was shut down.
            PoolBroken: The pool is broken; says why.
            PoolError: The pool belongs to another process (fork).
        """
        accept = self._accept
        if accept is None:
            return self._pool._call(fn, args, kwargs, self._options)
        return accept(fn, args, kwargs)

    def stream(
        self, fn: Callable[..., Iterable[T]], /, *args: Any, credit: int = 64, **kwargs: Any
    ) -> Closable[T]:
        """Call a generator function in a worker and yield what it yields, as it comes.

        One task with many outputs and one outcome: the exception that ends it is raised here
        after its outputs. Close the iterator, or drop it, to close the generator. A `shutdown`
        closes it too if the thread that waits is the one that should read.

        Args:
            fn: A generator function, or anything that returns an iterable.
            *args: Its arguments.
            credit: How many outputs the worker may be ahead of the reader.
            **kwargs: Its keyword arguments.

        Raises:
            TypeError, ValueError: A wrong credit, or fn cannot be called.
            SerializationError, PoolClosed, PoolBroken, PoolError: As `submit`.
        """
        credit = _checks.integer("credit", credit, least=1)
        core = self._core
        if core is None:
            _checks.a_callable("the first argument", fn)
            return self._pool._here.stream(fn, args, kwargs)
        task = core.submit(fn, args, kwargs, self._options, flags=_native.RUN_STREAM, credit=credit)
        return Stream(core, task)

    def each(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Call fn once on every live worker, and wait for all.

        A worker that is being replaced is waited for, a few seconds at the most. Workers that are
        born later do not get the call: use `initializer` for what all need.

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The results, by the workers' slots.

        Raises:
            Exception: The first failure, after all calls have ended.
            TypeError, SerializationError, PoolClosed, PoolBroken, PoolError: As `submit`.
        """
        core = self._core
        if core is None:
            return [self.submit(fn, *args, **kwargs).result()]
        core.check()
        core.native.wait_workers(_BIRTHS_S)
        workers = self.workers()
        if len(workers) < core.native.stats()["wanted"]:
            # One has died, and the look at it was the first to tell.
            core.native.wait_workers(_BIRTHS_S)
            workers = self.workers()
        core.check()  # a pool that broke meanwhile may have no worker left to refuse the call
        futures = [
            Future.of(core, core.submit(fn, args, kwargs, self._options, slot=worker.slot))
            for worker in workers
            if worker.state != "leaving"
        ]
        try:
            for future in futures:
                future.exception()
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """As `submit`, for the running event loop: ``await pool.run(fn, x)``.

        Call it in the loop's thread. The call is accepted at once, awaited or not. Cancelling the
        awaitable takes the task back if no worker has started it.

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            An `asyncio.Future`.

        Raises:
            RuntimeError: No event loop is running.
            TypeError, SerializationError, PoolClosed, PoolBroken, PoolError: As `submit`.
        """
        from . import aio

        if self._core is None:
            return aio.done(self.submit(fn, *args, **kwargs))
        return aio.run(self._core, fn, args, kwargs, self._options)

    # ------------------------------------------------------------------ many calls

    def _lazy(self, call: LazyCall) -> Closable[Any]:
        core = self._core
        if core is None:
            return self._pool._here.map(call, self._options)
        core.check()
        return MapIterator(core, call, self._options)

    @overload
    def amap(
        self, fn: Callable[..., T], *iterables: Iterable[Any], **options: Unpack[MapOptions]
    ) -> AsyncIterator[T]: ...
    @overload
    def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        return_exceptions: Literal[True],
        **options: Unpack[MapOptions],
    ) -> AsyncIterator[T | Exception]: ...
    @hinted
    def amap(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: Any = False,
        total: int | None = None,
        sinks: Iterable[Any] = (),
        report: Any = None,
    ) -> AsyncIterator[Any]:
        """As `map`, for the running event loop: ``async for result in pool.amap(fn, items)``.

        Call and use it in the loop's thread; the iterables are iterated there.

        Args:
            fn: What to call.
            *iterables: Its arguments.
            timeout, chunksize, buffersize, ordered, return_exceptions: As in `map`.
            progress, total, sinks, report: As in `map`.

        Returns:
            An async iterator, with `aclose()`.

        Raises:
            RuntimeError: No event loop is running.
            TypeError, ValueError, OSError, SerializationError, PoolClosed, PoolBroken, PoolError:
                As `map`.
        """
        call = LazyCall(fn, iterables, timeout, chunksize, buffersize, ordered, return_exceptions)
        from . import aio

        core = self._core
        if core is None:
            return aio.asynchronous(self._shown(call, progress, total, sinks, report))
        core.check()
        make = partial(aio.AsyncMap, core, options=self._options)
        found: Any = self._shown(call, progress, total, sinks, report, make)
        results: AsyncIterator[Any] = found
        return results

    # ------------------------------------------------------------------ views and figures

    def _check_stops(self) -> None:
        if self._core is None:
            raise ValueError(
                "a pool in a worker runs its calls itself, and cannot stop one that takes too "
                "long; for a timeout ask for workers, as by ProcessPool(1)"
            )

    def _view(self, options: Options) -> View:
        return View(self._pool, options)

    def stats(self) -> PoolStats:
        """The pool's counters; shared by all its views. Cheap, also after shutdown.

        It takes in what has been reported so far, without waiting for anything.
        """
        if self._core is None:
            return self._pool._here.stats()
        self._core.look()
        return pool_stats(self._core)

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The workers that are alive now, by slot. Empty for an inline pool and after shutdown.

        Right after the pool was made it waits for the first ones, a few milliseconds.
        """
        core = self._core
        if core is None:
            return ()
        core.look()
        infos = core.native.workers()
        stats = core.native.stats()
        born = sum(info["generation"] > 0 for info in infos)
        if stats["state"] == _native.POOL_OPEN and born < stats["wanted"]:
            # An initializer may take its time: then only the births are waited for.
            core.native.wait_workers(_BIRTHS_S if not core.initializes else _BIRTHS_S / 50)
            infos = core.native.workers()
        now = time.monotonic_ns()
        return tuple(worker_info(info, now) for info in infos if info["pid"])

    def dump(self, timeout: float = 1.0) -> dict[int, str]:
        """What the workers are doing: the stacks of all their threads, while they go on.

        For a task that seems stuck, also in C code that holds the GIL. The text is faulthandler's:
        innermost call first.

        Args:
            timeout: Seconds to wait for each worker that does not answer (stopped, or in an
                uninterruptible call).

        Returns:
            Text by process id, of the workers that answered; idle ones wait in our loop.

        Raises:
            TypeError, ValueError: A wrong timeout.
            PoolError: This system does not let us look (it takes Linux 5.4).
        """
        limit = _checks.seconds("timeout", timeout)
        if self._core is None:
            return {}
        if not stacks.supported():
            raise errors.PoolError("dump() needs Linux; elsewhere point py-spy at the worker's pid")
        zygote, _ = self._core.native.zygote()
        texts = {worker.pid: stacks.read(worker.pid, zygote, limit) for worker in self.workers()}
        return {pid: text for pid, text in texts.items() if text}


class View(_Face):
    """A pool with other options; made by `ProcessPool.options`."""

    def __init__(self, pool: ProcessPool, options: Options) -> None:
        self._whole = pool
        self._core = pool._core
        self._options = options
        self._accept = None if self._core is None else self._core.submitter(Future, options)

    @property
    def _pool(self) -> ProcessPool:
        return self._whole

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Does nothing: the pool is not the view's to end."""

    def __repr__(self) -> str:
        o = self._options
        retry_on = ", ".join(cls.__name__ for cls in o.retry_on)
        return (
            f"<view of {self._pool!r}: timeout={o.timeout}, retries={o.retries}, "
            f"retry_on=({retry_on}), priority={o.priority}>"
        )


class ProcessPool(_Face):
    """Persistent worker processes that run Python functions; a `concurrent.futures.Executor`.

    Use it as a context manager: leaving the block finishes accepted tasks, and stops at once
    after Ctrl-C. All methods may be called from any thread.

    In a worker, a pool without `max_workers` has no workers of its own: it runs its calls there
    and then (they were parallel already), as its one worker would: arguments and results are
    copies, whatever a call raises is its outcome. It cannot stop a call: `options(timeout=...)` is
    refused, the timeout of a `map` is told when the item that took too long is over. What shapes
    worker processes (their recycling, their start) has nothing to shape.

    Args:
        max_workers: How many workers, 1 to 4096. None: the CPUs this process may use (affinity
            and cgroup quota).
        min_workers: How many there are even when there is little to do, from 1 up; more are
            started when tasks wait and nobody is free. None: all of them, always (with
            `idle_time`: 1).
        idle_time: Seconds without work after which a worker above `min_workers` leaves; None: it
            stays.
        mp_context: For drop-in use: of a multiprocessing context only the start method's name is
            read ("forkserver" means "zygote"), and only if `start_method` is "auto".
        initializer: Called in every worker before its first task. If it fails, the pool is
            broken (InitError).
        initargs: Its arguments, a tuple.
        finalizer: Called without arguments in every worker that leaves in good order.
        inherit: Objects that the workers share from their start: as arguments they are then sent
            as references. With "fork" they are never pickled, whatever they are.
        start_method: "fork" (the workers inherit everything), "zygote" (a fresh interpreter forks
            them), "spawn" (each is a fresh interpreter), or "auto": "fork" if this process has no
            other Python thread, no subinterpreter, no OpenMP that has run and no module that a
            fork would break, else "zygote", with one RuntimeWarning if something is lost by that;
            on macOS "spawn". `stats().start_method` and `start_reason` tell.
        max_tasks_per_child: A worker is replaced after so many tasks; None: never.
        max_rss: A worker whose resident memory is above this is replaced after its task; bytes;
            None: never.
        memory_limit: A task is ended while it runs if its worker has more resident memory than so
            many bytes (on Linux without memory that it shares): the outcome is WorkerDied, its
            cause "memory_limit". Looked at ten times a second, as long as there are tasks. As
            with a timeout only that worker is killed, its neighbours in a chunk run elsewhere,
            and it does not count for `restarts`; `retries` try again. Between tasks it is as
            `max_rss`. None: no limit, and no looks.
        restarts: (n, seconds): more than n abnormal deaths of workers within so many seconds
            break the pool. None: (max(3, 2 * workers), 10).
        init_timeout: Seconds the initializer may take, and that the pool may be without any worker
            while none can be started (then it is broken, with the errno); None: as long as it
            takes.
        tag_output: What workers print has ``[name pid 123]`` before each line, and lines of
            several workers do not mix. By sys.stdout and sys.stderr, that is: what C code or
            programs that a task runs write by themselves is as it is.
        forward_logs: What workers log goes to the loggers of the same names here, with levels,
            filters and handlers of this process; `process`, `processName` and `task` of a record
            tell where it is from. Levels are looked at in the worker first: those that this
            process has now. Handlers that the initializer gives to the root logger win: then
            nothing is forwarded. False: a worker's records go where its own handlers send them.
        name: What threads and processes are called; None: "pool-1", "pool-2", ...

    Raises:
        TypeError, ValueError: A wrong option; says what is allowed.
        OSError: No process or descriptor to be had; nothing is left behind.
        SerializationError: The initializer or `inherit` cannot be sent (not with "fork").
        PoolError: "fork" beside a subinterpreter, or "zygote" and "spawn" (also by "auto") where
            sys.executable is no interpreter, as in a frozen program.
    """

    _tells = True  # what its start has to log

    @hinted
    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        finalizer: Callable[[], object] | None = None,
        inherit: Iterable[Any] = (),
        start_method: str = "auto",
        max_tasks_per_child: int | None = None,
        max_rss: int | None = None,
        memory_limit: int | None = None,
        restarts: tuple[int, float] | None = None,
        init_timeout: float | None = 60,
        min_workers: int | None = None,
        idle_time: float | None = None,
        tag_output: bool = False,
        forward_logs: bool = False,
        name: str | None = None,
    ) -> None:
        _start = ours("pool.start")
        inline = max_workers is None and main.IN_WORKER
        workers = _checks.max_workers(max_workers) or cpus()
        _checks.initializer(initializer, initargs)
        _checks.a_callable("finalizer", finalizer, optional=True)
        if init_timeout is not None:
            init_timeout = _checks.seconds("init_timeout", init_timeout)
        _start.asked_method(start_method, mp_context)
        options: dict[str, Any] = {
            "workers": workers,
            "initializer": initializer,
            "initargs": initargs,
            "finalizer": finalizer,
            "inherit": _checks.objects("inherit", inherit),
            "max_tasks": at_least_one("max_tasks_per_child", max_tasks_per_child),
            "max_rss": at_least_one("max_rss", max_rss, MOST_BYTES),
            "memory_limit": check_memory_limit(memory_limit, inline=inline),
            "restarts": check_restarts(restarts, workers),
            "init_timeout": init_timeout,
            "least": check_least(min_workers, idle_time, workers),
            "idle_time": 0.0 if idle_time is None else _checks.seconds("idle_time", idle_time),
            "tag_output": _checks.a_bool("tag_output", tag_output),
            "forward_logs": _checks.a_bool("forward_logs", forward_logs),
            "name": _checks.text("name", name) or f"pool-{next(_names)}",
        }
        self._options = _DEFAULTS
        self._name: str = options["name"]
        self._core = self._accept = None
        self._inline: Here | None = None
        if inline:
            self._inline = Here(initializer, initargs, finalizer, options["init_timeout"])
            finalize(self, self._inline.close)
        else:
            method, no_fork = _start.choose_method(start_method, mp_context)
            self._core, start = _start.make_core(method=method, no_fork=no_fork, **options)
            finalize(self, self._core.life.dropped).atexit = False
            # Before the fork: what is written to afterwards is copied.
            self._accept = self._core.submitter(Future, self._options)
            start()
            if options["forward_logs"]:  # after the fork: it has a thread
                self._core.life.forward_logs()
            if self._tells:
                self._tell()

    def _tell(self) -> None:
        """Log, and warn of, what the start had to say."""
        assert self._core is not None
        try:
            if self._core.warning:
                ours("pool.start").tell_loss(self._core)
        except BaseException:  # warnings are errors here: nobody gets this pool
            self.kill()
            raise
        self._core.log.flush()

    @property
    def _pool(self) -> ProcessPool:
        return self  # not an attribute: that would be a cycle, and drop nothing (POOL-1)

    def __repr__(self) -> str:
        # Not stats(), which logs: a message may show this pool.
        stats = self._here.stats() if self._core is None else pool_stats(self._core)
        return f"<ProcessPool {self._name!r}: {stats.state}, {stats.workers} workers>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a ProcessPool cannot be sent or copied; a task that needs one makes its own"
        )

    # ------------------------------------------------------------------ the end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more, finish what was accepted, end all workers. Idempotent.

        The input of an open `map` is accepted as a whole if it has a length, and no `buffersize`
        was given: its results can be read afterwards, as those of the standard library's executors.
        What a map over other input has not yet pulled is not accepted: its iterator delivers what
        was, and then raises PoolClosed.

        Args:
            wait: Return when everything is over, callbacks included; else at once. (From a
                callback it returns at once in either case.)
            cancel_futures: Cancel accepted tasks that have not started, and accept no more input.

        Raises:
            KeyboardInterrupt: Ctrl-C while it waited: running tasks were ended, all is over.
        """
        core = self._core
        if core is None:
            self._here.shutdown(finish=wait and not cancel_futures)
            return
        if core.life.foreign():
            return
        try:
            if not cancel_futures:
                core.life.take_in()
        except KeyboardInterrupt:
            core.life.finish(ladder=_native.LADDER_TERM)
            raise
        core.life.refuse()
        if cancel_futures:
            core.cancel_pending()
        if wait:
            core.life.finish()
        else:
            core.life.leave()

    def kill(self) -> None:
        """End all workers now, whatever they run. Idempotent.

        Tasks that run get WorkerDied, tasks that have not started PoolClosed.
        """
        if self._core is not None:
            self._core.life.finish(ladder=_native.LADDER_KILL)
        else:
            self._here.kill()

    def kill_workers(self) -> None:
        """As `concurrent.futures` of CPython 3.14: SIGKILL for all workers. Idempotent.

        Tasks that run get WorkerDied, tasks that have not started are cancelled; the pool takes no
        more.
        """
        self._end_workers(_native.LADDER_KILL)

    def terminate_workers(self) -> None:
        """As `concurrent.futures` of CPython 3.14: SIGTERM for all workers. Idempotent.

        As `kill_workers`, but workers may clean up; who has not left after half a second is killed.
        """
        self._end_workers(_native.LADDER_TERM)

    def _end_workers(self, ladder: int) -> None:
        core = self._core
        if core is None:
            self._here.kill()
        elif not core.life.foreign():
            core.life.refuse()
            core.cancel_pending()
            core.life.finish(ladder=ladder)

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt) and self._core:
            self._core.life.finish(ladder=_native.LADDER_TERM)
        else:
            self.shutdown(wait=True)

    # ------------------------------------------------------------------ as the standard library's

    # Private there, and read all the same: who the workers are, and whether all is well.

    @property
    def _processes(self) -> dict[int, WorkerProcess]:
        return {worker.pid: WorkerProcess(self, worker.pid) for worker in self.workers()}

    @property
    def _broken(self) -> str | bool:
        broken = self.stats().state == "broken" and self._core is not None
        return str(self._core.broken()) if broken and self._core else broken

    @property
    def _mp_context(self) -> Any:
        import multiprocessing

        method = "fork" if self._core is None else self._core.method
        return multiprocessing.get_context("forkserver" if method == "zygote" else method)

    # ------------------------------------------------------------------ without workers

    def _is_open(self) -> bool:
        if self._core is None:
            return self._here.state == "inline"
        self._core.turn()
        return self._core.native.state == _native.POOL_OPEN

    @property
    def _here(self) -> Here:
        assert self._inline is not None
        return self._inline

    def _call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
    ) -> Future[Any]:
        """Run one call here and now, with the outcome in a future as always."""
        _checks.a_callable("the first argument", fn)
        here = self._here
        here.check()
        result, error = here.run(here.encoded(fn, args, kwargs), options)
        try:
            return Future.finished(result, error)
        finally:
            del error


# ---------------------------------------------------------------------- the one-liner

# By the process's fork generation: in a forked child the parent's pools, and its lock, are no
# use. (A fork hook would cost each of our children some 10 pages.)
_shared: dict[int, tuple[Lock, dict[tuple[Any, ...], ProcessPool]]] = {}


def shared_pool(workers: int | None, start_method: str = "auto", **options: Any) -> ProcessPool:
    """The pool that everybody gets who asks for the same; it ends at exit.

    Of pools with further options (hashable ones) there is one of a size: who asks for other options
    has the last one dropped, which ends when what was begun on it is over.
    """
    key = workers, start_method, *sorted(options.items())
    lock, pools = _shared.setdefault(_native.fork_generation(), (Lock(), {}))
    with lock:
        pool = pools.get(key)
        if pool is None or not pool._is_open():
            for other in [other for other in pools if options and other[:2] == key[:2]]:
                if len(other) > 2:
                    del pools[other]
            pool = pools[key] = _SharedPool(workers, start_method=start_method, **options)
    if pool._core is not None:
        pool._tell()
    return pool


def shutdown_shared(kill: bool = False) -> None:
    """End the pools that `fm.map` keeps for its next call; that call makes a new one.

    They end by themselves when the program does: this is for a program that goes on, and wants
    their memory back, or has to get rid of what runs there.

    Args:
        kill: End their workers now, whatever they run: what runs gets WorkerDied, what has not
            started PoolClosed. False: what was accepted is finished first, and waited for.

    Raises:
        TypeError: A wrong option.
        KeyboardInterrupt: Ctrl-C while it waited: running tasks were ended, all is over.

    May be called from any thread, any number of times; and in a forked child, where it concerns
    the child's own pools.
    """
    _checks.a_bool("kill", kill)
    lock, pools = _shared.setdefault(_native.fork_generation(), (Lock(), {}))
    with lock:
        ending = tuple(pools.values())
        pools.clear()
    for pool in ending:
        if kill:
            pool.kill()
        else:
            pool.shutdown()


class _SharedPool(ProcessPool):
    """Made under a lock, where nothing may be logged: that comes afterwards."""

    _tells = False


@overload
def map(
    fn: Callable[..., T], *iterables: Iterable[Any], **options: Unpack[SharedOptions]
) -> Closable[T]: ...
@overload
def map(
    fn: Callable[..., T],
    *iterables: Iterable[Any],
    return_exceptions: Literal[True],
    **options: Unpack[SharedOptions],
) -> Closable[T | Exception]: ...
@hinted
def map(
    fn: Callable[..., Any],
    *iterables: Iterable[Any],
    max_workers: int | None = None,
    timeout: float | None = None,
    chunksize: int | None = None,
    buffersize: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
    progress: Any = False,
    total: int | None = None,
    sinks: Iterable[Any] = (),
    report: Any = None,
    workers: int | None = None,
) -> Closable[Any]:
    """`ProcessPool.map` over a shared pool, which is made at the first use and ends at exit.

    Nobody has that pool in hand: so Ctrl-C, or whatever else a signal handler raises while this
    waits for a result, takes all back, and ends the tasks that run. `shutdown_shared` ends the
    pool itself.

    Args:
        fn: What to call.
        *iterables: Its arguments.
        max_workers: How many workers; None: the CPUs this process may use. There is one shared
            pool for each number asked for.
        timeout, chunksize, buffersize, ordered, return_exceptions: As in `ProcessPool.map`.
        progress, total, sinks, report: As in `ProcessPool.map`.
        workers: The old name of max_workers; it goes with the next release.

    Returns:
        An iterator over the results; see `ProcessPool.map`.

    Raises:
        TypeError, ValueError, OSError: As `ProcessPool`.
        SerializationError, PoolBroken: As `ProcessPool.map`.
    """
    if workers is not None:
        if max_workers is not None:
            raise TypeError("max_workers was given twice: workers is its old name")
        max_workers = workers
    _checks.max_workers(max_workers)
    call = LazyCall(
        fn, iterables, timeout, chunksize, buffersize, ordered, return_exceptions, own=True
    )
    return shared_pool(max_workers)._shown(call, progress, total, sinks, report)

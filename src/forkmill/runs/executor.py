"""The face that every executor shows: pools, contexts, and the views of both.

    Face ──┬── pools (`ProcessPool`, its views): each of their tasks goes to a worker
           └── contexts (`contexts.base.Executor`, its views): calls run wherever the type says

Guarantees: a lazy call and an option mean the same in all of them, and a wrong one is refused in
the caller's frame with the same words.

Threads: any.
"""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar, overload

from .. import _checks, errors
from .._checks import hinted, named
from .._process import STREAM
from .unseen import unseen
from .window import Closable, LazyCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Unpack

__all__ = ["Face", "LazyOptions", "MapOptions", "Options", "SharedOptions"]

V = TypeVar("V")  # the kind of views
T = TypeVar("T")


class LazyOptions(TypedDict, total=False):
    """Options of every lazy call, for type checkers and editors; see `Face.map`."""

    timeout: float | None
    chunksize: int | None
    buffersize: int | None
    ordered: bool


class MapOptions(LazyOptions, total=False):
    """Options of `map` and `starmap`; see `Face.map`."""

    progress: Any
    total: int | None
    sinks: Iterable[Any]
    report: Any


class SharedOptions(MapOptions, total=False):
    """Options of `fm.map`."""

    max_workers: int | None
    workers: int | None


_KEEP: Any = type("_Keep", (), {"__repr__": lambda self: "<as it is>"})()


@dataclass(frozen=True, slots=True)
class Options:
    """What `options` sets.

    Attributes:
        timeout: Seconds a call may run; None: as long as it likes.
        retries: Further tries of a call that fails as `retry_on` says.
        retry_on: The exception classes that are worth another try.
        priority: Higher first.
        excused: A death that it is charged with does not count against a pool's `restarts`.
    """

    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (errors.WorkerDied,)
    priority: int = 0
    excused: bool = False

    def __str__(self) -> str:
        retry_on = ", ".join(cls.__name__ for cls in self.retry_on)
        return (
            f"timeout={self.timeout}, retries={self.retries}, retry_on=({retry_on}), "
            f"priority={self.priority}"
        )


@named
class Face(concurrent.futures.Executor, Generic[V]):
    """What executors and their views have in common: everything but the end."""

    _options: Options

    @overload
    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], **options: Unpack[MapOptions]
    ) -> Closable[T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        return_exceptions: Literal[True],
        **options: Unpack[MapOptions],
    ) -> Closable[T | Exception]: ...
    @hinted
    def map(
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
    ) -> Closable[Any]:
        """Call fn on every item, in parallel; yield the results as they are asked for.

        Lazy: the input is pulled as results are taken, never more than the window ahead. With
        several iterables fn gets one item of each, and the shortest ends it. Close the iterator,
        or drop it, to cancel what has not started.

        Args:
            fn: What to call.
            *iterables: Its arguments. They are iterated here, in the thread that asks for results.
            timeout: Seconds from now; a result that is not there by then raises TimeoutError.
            chunksize: Items sent to a worker at once, at most 4096; None finds out what is best.
                Where nothing is sent (threads, coroutines, forks), the window is at least so long.
            buffersize: The window: how many items may be pulled and not yet consumed. None: enough
                to keep everything busy; two chunks a worker. In a pool at most 64 MB, encoded.
            ordered: Results in the order of the input; else as they finish.
            return_exceptions: Yield an item's exception in its place; else raise it, which ends
                the iteration.
            progress: True, or an `fm.Progress`: show how far it is (docs/seeing.md).
            total: How many items there are, for that, if the input has no length.
            sinks: Called with each event of this call, in a thread of ours.
            report: A path for an HTML file about it, which is there when it is over.

        Returns:
            An iterator, with `close()`. Its window is full when this returns, unless the input is
            so slow that there are results sooner (with a `buffersize` it always is). Besides the
            items' exceptions it raises what the input raises, and PoolClosed or PoolBroken if input
            is left when the executor ends: each after the results of the items before it.

        Raises:
            TypeError, ValueError: A wrong option.
            OSError: The report cannot be written there.
            SerializationError: fn cannot be sent. (An item that cannot is that item's exception.)
            PoolClosed, PoolBroken, PoolError: As `submit`.
        """
        call = LazyCall(fn, iterables, timeout, chunksize, buffersize, ordered, return_exceptions)
        return self._shown(call, progress, total, sinks, report)

    @overload
    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        **options: Unpack[MapOptions],
    ) -> Closable[T]: ...
    @overload
    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        *,
        return_exceptions: Literal[True],
        **options: Unpack[MapOptions],
    ) -> Closable[T | Exception]: ...
    @hinted
    def starmap(
        self,
        fn: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        *,
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: Any = False,
        total: int | None = None,
        sinks: Iterable[Any] = (),
        report: Any = None,
    ) -> Closable[Any]:
        """As `map`, calling ``fn(*item)`` on every item.

        Args:
            fn: What to call.
            iterable: Tuples (or other iterables) of arguments.
            timeout, chunksize, buffersize, ordered, return_exceptions: As in `map`.
            progress, total, sinks, report: As in `map`.

        Returns:
            As `map`.

        Raises:
            TypeError, ValueError, SerializationError, PoolClosed, PoolBroken, PoolError: As `map`.
        """
        call = LazyCall(
            fn, (iterable,), timeout, chunksize, buffersize, ordered, return_exceptions, True
        )
        return self._shown(call, progress, total, sinks, report)

    @hinted
    def options(
        self,
        *,
        timeout: float | None = _KEEP,
        retries: int = _KEEP,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = _KEEP,
        priority: int = _KEEP,
    ) -> V:
        """A view whose calls have other options; what is not given stays as it is.

        Args:
            timeout: Seconds a call may run, from its start, for each item of a `map` too. Then it
                is stopped (a worker is killed for it), and the outcome is TaskTimeout. None (the
                default): as long as it likes.
            retries: How many tries more a failing call gets (default 0). An attempt counts once it
                has started.
            retry_on: Which failures are worth another try, an exception class or a tuple of
                them: WorkerDied (the default), TaskTimeout, or what the call itself raises.
            priority: Calls with a higher one go first where there is a backlog (default 0).

        Returns:
            An Executor over the same workers, with the same methods. Its `shutdown` does nothing.

        Raises:
            TypeError, ValueError: A wrong option, or a timeout where a call cannot be stopped.
        """
        changes: dict[str, Any] = {}
        if timeout is not _KEEP:
            limit = None if timeout is None else _checks.seconds("timeout", timeout)
            if limit is not None:
                self._check_stops()
            changes["timeout"] = limit
        if retries is not _KEEP:
            changes["retries"] = _checks.integer("retries", retries, least=0)
        if retry_on is not _KEEP:
            changes["retry_on"] = _checks.exception_classes("retry_on", retry_on)
        if priority is not _KEEP:
            changes["priority"] = _checks.integer("priority", priority)
        return self._view(replace(self._options, **changes))

    def _excused(self) -> V:
        """A view whose calls' deaths do not count against a pool's `restarts`: who asks for it
        has a limit of its own."""
        return self._view(replace(self._options, excused=True))

    def _shown(
        self,
        call: LazyCall,
        progress: Any,
        total: Any,
        sinks: Any,
        report: Any,
        lazy: Callable[[LazyCall], Any] | None = None,
    ) -> Closable[Any]:
        """`lazy`, else `_lazy`, and who wants to see how far it is does."""
        lazy = lazy or self._lazy
        heard = STREAM and STREAM[0].heard()  # by who hears everything
        if not heard and progress is False and total is None and report is None and sinks == ():
            return unseen(lazy(call), call, self._max_workers)
        from .watched import Shown, watched

        shown = Shown(progress, total, sinks, report)
        return watched(lazy, call, shown, self._max_workers)

    @property
    def _max_workers(self) -> int:
        """How many calls run at once, at most."""
        raise NotImplementedError

    def _lazy(self, call: LazyCall) -> Closable[Any]:
        """The iterator of `map` or `starmap`."""
        raise NotImplementedError

    def _check_stops(self) -> None:
        """ValueError if a call that runs cannot be stopped, and so has no timeout."""
        raise NotImplementedError

    def _view(self, options: Any) -> V:
        """The view with these options."""
        raise NotImplementedError

"""The window of a lazy call: what was pulled from its input and is not yet consumed.

    input ──pull──▶ Input ──submit──▶ whatever runs it ──done──▶ Window ──▶ the caller

A piece of work is what is submitted at once: in a pool a chunk, elsewhere one call. Whose work it
is, and how the end of it is waited for, is the subclass's; everything else is here, once.

Guarantees:
    * Whatever is pulled from the input and not yet consumed is at most the window (INV-7).
    * What the input raises, or PoolClosed, comes after the results of the items before it.

Invariants:
    * WINDOW-1  Work counts from before it is pulled until the iterator asks for what comes after
      it: then it is consumed.
    * WINDOW-2  Finished results are handed over before an input of unknown kind is pulled again: it
      may block. Only inputs that cannot block are pulled first.
    * WINDOW-3  One thread at a time pulls: the one that reads, until another one takes in the rest,
      and then that one. ::

          reads on                          take_in, as an executor is shut down
            pulling = thread                  whole = Rest()
            if whole is None: pull            if pulling: wait for its end
            else: wait until all is in        pull the rest

      Each writes its own word before it reads the other's: one of them sees the other.

Threads: an iterator is used by one thread at a time; another one gets ValueError, as with
generators. `close` and `take_in` may be called from any thread, `close` from a finalizer too.
"""

from __future__ import annotations

import sys
import threading
from _thread import get_ident
from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from .. import _checks
from .._late import unbroken
from .._process import Signal, interrupted
from ..errors import PoolClosed, TaskTimeout, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "Closable",
    "Input",
    "LazyCall",
    "Results",
    "Window",
    "WindowIterator",
    "as_failure",
    "late_error",
    "left_error",
]

W = TypeVar("W")  # the kind of work
T_co = TypeVar("T_co", covariant=True)

SLOW_S = 0.010  # an input that takes longer to fill the window is slow
_TAKING = threading.Lock()  # held while a `_Rest` is made

# Iterating over these runs no code of the user's and never blocks.
_QUICK = frozenset({
    list, tuple, range, str, bytes, bytearray, set, frozenset, dict,
    type({}.keys()), type({}.values()), type({}.items()),
})  # fmt: skip


class Closable(Protocol[T_co]):
    """What lazy calls return: an iterator with `close()`."""

    def __iter__(self) -> Iterator[T_co]: ...

    def __next__(self) -> T_co: ...

    def close(self) -> None:
        """Cancel what has not started, and free everything; then it is at its end. Idempotent."""


@dataclass(slots=True)
class LazyCall:
    """What `map`, `starmap` and `amap` were asked for, checked; see `Face.map`.

    Attributes:
        star: An item is a tuple of arguments.
        own: The pool is nobody's: what breaks a wait off ends the tasks that run, too.
        told: The run as which it is told: its id, its name, the detail that is wanted; None: it
            is none.
        settle: Has all that was told that is known of its calls, at its end.
    """

    fn: Callable[..., Any]
    iterables: tuple[Iterable[Any], ...]
    timeout: float | None
    chunksize: int | None
    buffersize: int | None
    ordered: bool
    return_exceptions: bool
    star: bool = False
    own: bool = False
    told: tuple[str, str, str] | None = None
    settle: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        _checks.a_callable("fn", self.fn)
        _checks.window_limits(self.chunksize, self.buffersize, self.timeout)

    def lasting(self) -> bool:
        """Whether a shutdown takes in what is left, as the standard library has taken all in."""
        return self.buffersize is None and all(hasattr(it, "__len__") for it in self.iterables)

    def quick(self) -> bool:
        """Whether pulling from the input cannot block."""
        return all(type(it) in _QUICK for it in self.iterables)

    def deadline(self) -> float | None:
        """When the results have to be there."""
        return None if self.timeout is None else monotonic() + self.timeout

    def arguments(self) -> Iterator[Any]:
        """The arguments of one call after the other."""
        if self.star:
            return iter(self.iterables[0])
        return zip(*self.iterables)  # noqa: B905  # shortest, as the built-in map


class _Rest:
    """What a thread that takes in the rest of an input has (WINDOW-3)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while the rest is taken in
        self.free = Signal()  # the thread that reads has left a pull


class Input(Generic[W]):
    """The input of a lazy call: work is made of what is pulled from it.

    Attributes:
        source: Its iterator; None: nothing is left to pull, now and ever.
        error: What comes after the results.
        quick: Pulling cannot block.
        buffersize: How many items the user wants to be pulled, whatever that takes.
        window: How many may be pulled and not yet consumed.
        pulled: How many items were pulled.
        held: How many of them are not yet consumed.
        whole: All that is left is taken in, whatever the window: an executor is shut down.
        handing: Work is submitted, or about to be, and not yet where the window has it.
    """

    source: Any
    handing = False
    whole: _Rest | None = None
    error: BaseException | None = None
    quick: bool
    buffersize: int | None
    window: int
    pulled: int
    held: int

    def pull(self) -> W | None:
        """Pull and submit; None: the window is full, or nothing is left. There is a source."""
        raise NotImplementedError

    def finished(self, work: W) -> None:
        """Work is done, and about to be handed over."""

    def consumed(self, work: W) -> None:
        """The caller is through with it."""
        raise NotImplementedError

    def abandon(self, works: tuple[W, ...], *, kill: bool) -> None:
        """Nobody wants these; `kill`: and what runs may be ended. Can be done again."""
        raise NotImplementedError

    def taken_back(self, work: W) -> bool:
        """Whether nothing of it had begun; then nothing will, and CancelledError stands for it."""
        raise NotImplementedError

    def spent(self, error: BaseException | None = None) -> None:
        """Pull nothing more; the error comes after the results. Can be done again."""
        self.error, self.source = error, None


class Window(Generic[W]):
    """Work that was pulled and is not yet consumed, from the first pull to the close.

    A subclass has `_there`, and `_let_go` if it has more to free.
    """

    _open = False
    _closed = True  # __del__ may come before the rest
    _pulling = 0  # the thread that pulls (WINDOW-3)
    _stopped = False  # what has not begun is taken back
    _watch: Any = None  # who tells how far it is, if somebody wants to know
    _status = "stopped"  # for that one: how it ends, if nothing else is said

    def _begin(self, feed: Input[W], deadline: float | None, *, ordered: bool) -> None:
        """Fill the window. The last step of the subclass's own beginning."""
        self._feed = feed
        self._deadline = deadline
        self._ordered = ordered
        # Ordered: all work, in its order. Unordered: what is done; the rest is in _flying.
        self._line: deque[W] = deque()
        self._flying: set[W] = set()
        self._current: Any = None  # what the caller may not be through with
        self._busy = True
        self._closed = False
        self._open = True
        try:
            self._fill()
        except BaseException as error:
            self._close(kill=interrupted(error))
            raise
        finally:
            self._busy = False

    @unbroken
    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and self._has_to_close():
            self._close()

    def _has_to_close(self) -> bool:
        """Whether not all of _close() was done yet."""
        watch = self._watch
        return not self._closed or (watch is not None and not watch.over)

    def _close(self, *, kill: bool = False) -> None:
        """Take back what has not started, free everything, wake who waits.

        A signal handler's exception may come at any place: each step can be done again. `_closed`
        comes before the end is told: who sees it not set yet leaves that to who sets it.
        """
        self._open = False
        self._feed.spent()
        self._feed.abandon((*self._line, *self._flying), kill=kill)
        # Not emptied: another thread may be looking at them.
        self._line, self._flying = deque(), set()
        self._current = None
        self._let_go()
        self._closed = True
        if self._watch is not None:
            self._watch.end(self._status)

    def _let_go(self) -> None:
        """Free what the subclass has, and wake who waits. Can be done again."""

    @property
    def closed(self) -> bool:
        """Whether it is at its end."""
        return self._closed

    def watch(self, watch: Any, total: int | None, workers: int) -> None:
        """Tell how far it is from here on. Once, by who has made it, or in another thread."""
        self._watch = watch
        known = {"total": total, "workers": workers}
        feed = self._feed

        def figures() -> dict[str, Any]:
            return {"done": feed.pulled - feed.held, "failed": watch.failures, **known}

        watch.begin(total=total)
        watch.show(figures)
        if self._closed:  # it had nothing to do
            watch.end(self._status)

    def _fill(self) -> None:
        """Fill the window, at the call. A slow input is not waited for once there are results.

        A `buffersize` says how much is wanted, whatever that takes.
        """
        feed = self._feed
        slow_at = 0.0 if feed.quick or feed.buffersize is not None else monotonic() + SLOW_S
        while self._pull():
            if slow_at and monotonic() > slow_at and self._has_some():
                return

    def _has_some(self) -> bool:
        """Whether there is something to yield from, before the first was asked for."""
        return self._there(self._line, False)

    def _pull(self) -> bool:
        """Pull and submit; False: the window is full, or the input has no more."""
        feed = self._feed
        if feed.source is None:
            return False
        try:
            self._pulling = get_ident()
            if feed.whole is None:
                return self._pull_one(feed)
        finally:
            self._pulling = 0
            if feed.whole is not None:
                feed.whole.free.set()
        with feed.whole.lock:  # another thread takes all in
            return False

    def _pull_one(self, feed: Input[W]) -> bool:
        try:
            work = feed.pull()
            if work is None:
                return False
            if self._ordered:
                self._line.append(work)
            else:
                self._flying.add(work)
        finally:
            feed.handing = False
            if self._stopped:
                self._take_back()
        if not self._open:  # closed meanwhile, by the input or by another thread
            feed.abandon((work,), kill=False)
            return False
        return True

    def _take_back(self) -> None:
        """From the end on, all that has not begun."""
        for work in reversed(tuple(self._line)):
            if not self._feed.taken_back(work):
                break

    def __repr__(self) -> str:
        if self._closed:
            return "<results of map: at their end>"
        feed = self._feed
        return f"<results of map: {feed.pulled} items pulled, {feed.pulled - feed.held} read>"

    def take_in(self) -> None:
        """Pull all that is left of the input, whatever the window: a shutdown finishes it.

        Nothing more is pulled for who reads. (From within a pull it does nothing.)
        """
        feed = self._feed
        if self._pulling == get_ident():
            return
        with _TAKING:
            rest = feed.whole = feed.whole or _Rest()
        with rest.lock:
            while self._pulling:
                rest.free.wait()
            while self._open and feed.source is not None and self._pull_one(feed):
                pass

    def _there(self, line: deque[W], wait: bool) -> bool:
        """Whether the first of the line is done; with `wait`, when that may have changed.

        Called while work is under way. `line` is `_line`, from before another thread closed this.
        """
        raise NotImplementedError

    def _patience(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - monotonic(), 0.0)

    def _end(self) -> None:
        """Close, and raise what comes after the results."""
        error = self._feed.error
        self._status = "completed" if error is None else "failed"
        self._close()
        if error is not None:
            try:
                raise error
            finally:
                del error, self  # the exception's traceback has this frame


class WindowIterator(Window[W]):
    """The window of an iterator whose `next` waits."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what has not started, and free everything; then it is at its end. Idempotent.

        From another thread: who waits in `next` gets StopIteration.
        """
        if self._has_to_close():
            self._close()

    def drain(self) -> None:
        """Pull nothing more; what was pulled is still yielded. From any thread. Idempotent."""
        self._feed.spent()

    def stop(self) -> None:
        """As `drain`, but what lies behind all that has begun is taken back: CancelledError stands
        for it. For an ordered one. From any thread, and from a signal handler."""
        self._feed.spent()
        self._stopped = True
        if not self._feed.handing:  # else it is done when that one is in the line: nothing begins
            self._take_back()  # behind what was taken back

    def _broken_off(self) -> None:
        """A signal handler raised in `next`: nobody reads on, though the traceback may be kept."""
        self._close(kill=True)

    def _failed(self) -> None:
        """An item's exception is about to be raised: nothing comes after it."""
        self._status = "failed"
        self.close()

    def _advance(self) -> W | None:
        """The next work that is done, in the order to yield; None at the end."""
        if not self._open:
            return None
        if self._busy:
            raise ValueError("map iterator already executing")
        try:
            self._busy = True
            feed, line = self._feed, self._line
            if self._current is not None:
                feed.consumed(self._current)
                self._current = None
            wait = feed.quick
            while wait and self._pull():
                pass
            while self._open and (line or self._flying or self._pull()):
                if not self._there(line, wait):
                    if wait:
                        self._late()
                    else:
                        wait = not self._pull()  # and look again before the next one (WINDOW-2)
                elif self._open:
                    work = self._current = line.popleft()
                    feed.finished(work)
                    return work
            self._end()
            return None
        finally:
            self._busy = False

    def _late(self) -> None:
        if self._deadline is not None and monotonic() >= self._deadline:
            self._status = "failed"
            self._close()
            raise late_error()


def late_error() -> TimeoutError:
    return TimeoutError("the results were not there within the timeout of the call")


def left_error() -> PoolClosed:
    return PoolClosed(
        "the executor was shut down while input was left: read the results before that (inside its "
        "with block), or hand over all input with a length and no buffersize, as list(...)"
    )


def as_failure(error: BaseException) -> BaseException:
    """What a task raised, as an iterator may raise it: it must not look like the end."""
    if not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    wrapped = RuntimeError(f"the task raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


# ---------------------------------------------------------------------- over anything that submits


class _Calls(Input["Future[Any]"]):
    """Submits one call an item."""

    def __init__(
        self,
        submit: Callable[[Any], Future[Any]],
        call: LazyCall,
        window: int,
        done: Callable[[Future[Any]], None] | None,
    ) -> None:
        self.source = call.arguments()
        self.quick = call.quick()
        self.buffersize = call.buffersize
        self.window = window
        self._submit: Callable[[Any], Future[Any]] | None = submit
        self._done = done
        self.pulled = 0
        self.held = 0  # pulled and not yet consumed

    def pull(self) -> Future[Any] | None:
        submit = self._submit
        if submit is None or (self.held >= self.window and self.whole is None):
            return None
        try:
            item = next(self.source)
            if self.source is None:
                return None  # the input itself closed the iterator
            future = submit(item)
        except BaseException as error:
            if interrupted(error):
                raise  # it is not the input's, and does not wait for its turn
            self.spent(None if isinstance(error, StopIteration) else error)
            return None
        future._forkmill_number = self.pulled  # type: ignore[attr-defined]
        self.pulled += 1
        self.held += 1
        if self._done is not None:
            future.add_done_callback(self._done)
        return future

    def consumed(self, _work: object) -> None:
        self.held -= 1

    def abandon(self, works: tuple[Future[Any], ...], *, kill: bool) -> None:
        for future in works:
            future.cancel()

    def taken_back(self, work: Future[Any]) -> bool:
        return work.cancel()

    def spent(self, error: BaseException | None = None) -> None:
        super().spent(error)
        self._submit = None


class Results(WindowIterator["Future[Any]"]):
    """The results of calls to anything that submits. Close it, or just drop it."""

    def __init__(
        self, submit: Callable[[Any], Future[Any]], call: LazyCall, *, window: int
    ) -> None:
        """Submit the first calls.

        Args:
            submit: Takes a call's arguments, and gives its future.
            call: What was asked for.
            window: How many items may be pulled and not yet consumed.
        """
        import queue  # pools have maps of their own: they fork without it

        self._return_exceptions = call.return_exceptions
        self._empty = queue.Empty
        # Those that are done: of an ordered map only the one that is waited for. None: closed.
        self._ready: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()
        done = None if call.ordered else self._ready.put
        self._begin(_Calls(submit, call, window, done), call.deadline(), ordered=call.ordered)

    def __iter__(self) -> Results:
        return self

    def __next__(self) -> Any:
        try:
            future = self._advance()
            if future is None:
                raise StopIteration
            self._current = True  # one is out; its result is the caller's alone
            try:
                error = future.exception()
            except CancelledError as cancelled:
                error = cancelled
            if isinstance(error, (WorkerDied, TaskTimeout)):
                error.task = getattr(future, "_forkmill_number", 0)  # of its input
            if error is None:
                return future.result()
            error = as_failure(error)
            if self._watch is not None:
                self._watch.failed(error)
            if self._return_exceptions and isinstance(error, Exception):
                return error
            self._failed()
            try:
                raise error
            finally:
                del error, future  # the exception's traceback has this frame
        except BaseException as error:
            if interrupted(error):
                self._broken_off()
            raise

    def _let_go(self) -> None:
        self._ready.put(None)

    def _there(self, line: deque[Future[Any]], wait: bool) -> bool:
        if line and (not self._ordered or line[0].done()):
            return True
        if self._ordered:
            if not wait:
                return False
            line[0].add_done_callback(self._ready.put)
        try:
            future = self._ready.get(wait, self._patience())
        except self._empty:
            return False
        if future is not None and not self._ordered:
            self._flying.discard(future)
            line.append(future)
        return future is not None

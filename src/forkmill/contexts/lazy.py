"""`map` over anything that submits: lazy, bounded, closable.

Guarantees:
    * Whatever is pulled from the input and not yet consumed is at most the window (INV-7).
    * What the input raises, or PoolClosed, comes after the results of the items before it.

Invariants:
    * LAZY-1  Finished results are handed over before an input of unknown kind is pulled again: it
      may block. Only inputs that cannot block are pulled first.

Threads: an iterator is used by one thread at a time; another one gets ValueError, as with
generators. `close` may be called from any thread.
"""

from __future__ import annotations

import queue
import sys
from collections import deque
from concurrent.futures import CancelledError
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._process import interrupted
from ..errors import TaskTimeout, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

__all__ = ["QUICK", "Results"]

SLOW_S = 0.010  # an input that takes longer to fill the window is slow

# Iterating over these runs no code of the user's and never blocks.
QUICK = frozenset({list, tuple, range, str, bytes, dict, set, frozenset})


class Results:
    """What `map` returns: results, as they are asked for. Close it, or just drop it."""

    def __init__(
        self,
        submit: Callable[[Any], Future[Any]],
        source: Iterable[Any],
        *,
        quick: bool,
        sized: bool,
        window: int,
        timeout: float | None,
        ordered: bool,
        return_exceptions: bool,
    ) -> None:
        self._open = False  # __del__ may come before the rest
        self._closed = True
        self._submit: Callable[[Any], Future[Any]] | None = submit
        self._quick = quick
        self._sized = sized  # the user said what the window is: it is filled, whatever that takes
        self._source: Iterator[Any] | None = iter(source)
        self._window = window
        self._deadline = None if timeout is None else monotonic() + timeout
        self._return_exceptions = return_exceptions
        self._error: BaseException | None = None  # of the input: comes after the results
        self._line: deque[Future[Any]] = deque()  # ordered: in their order
        self._flying: set[Future[Any]] = set()  # unordered: those without an outcome yet
        self._ordered = ordered
        # Those that are done: of an ordered map only the one that is waited for. None: closed.
        self._ready: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()
        self._pulled = 0  # items so far
        self._held = 0  # pulled and not yet consumed
        self._lent = False  # the caller has one that it may not be through with
        self._busy = True
        self._closed = False
        self._open = True
        try:
            self._fill()
        except BaseException:
            self.close()
            raise
        finally:
            self._busy = False

    def __iter__(self) -> Results:
        return self

    def __next__(self) -> Any:
        if not self._open:
            raise StopIteration
        if self._busy:
            raise ValueError("map iterator already executing")
        try:
            self._busy = True
            if self._lent:
                self._lent = False
                self._held -= 1
            future = self._next() if self._open else None
            if future is None:
                raise self._ending()
            self._lent = True
            try:
                error = future.exception()
            except CancelledError as cancelled:
                error = cancelled
            if isinstance(error, (WorkerDied, TaskTimeout)):
                error.task = getattr(future, "_forkmill_number", 0)  # of its input
            if error is None:
                return future.result()
            if self._return_exceptions and isinstance(error, Exception):
                return error
            self.close()
            if isinstance(error, StopIteration | StopAsyncIteration):
                # It must not look like the end.
                raise RuntimeError(f"the task raised {type(error).__name__}") from error
            try:
                raise error
            finally:
                del error, future  # the exception's traceback has this frame
        except BaseException as error:
            if interrupted(error):  # a signal handler's: nobody reads on, whoever keeps it
                self.close()
            raise
        finally:
            self._busy = False

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and not getattr(self, "_closed", True):
            self.close()

    def close(self) -> None:
        """Cancel what has not started, and free everything; then it is at its end. Idempotent.

        From another thread: whoever waits in `next` gets StopIteration.
        """
        if self._closed:
            return
        # Each step can be done again: a signal handler's exception may come at any place.
        self._open = False
        self._source = self._submit = self._error = None
        for future in (*self._line, *self._flying):
            future.cancel()
        # Not emptied: another thread may be looking at them.
        self._line, self._flying = deque(), set()
        self._ready.put(None)  # whoever waits
        self._closed = True

    # ------------------------------------------------------------------ one by one

    def _ending(self) -> BaseException:
        error, self._error = self._error, None
        self.close()
        return StopIteration() if error is None else error

    def _fill(self) -> None:
        """Fill the window, at the call. A slow input is not waited for once there are results."""
        slow_at = 0.0 if self._quick or self._sized else monotonic() + SLOW_S
        while self._pull():
            slow = slow_at and monotonic() > slow_at
            if slow and any(future.done() for future in (*self._line, *self._flying)):
                return

    def _pull(self) -> bool:
        """Pull and submit one item; False: the window is full, or the input has no more."""
        source, submit = self._source, self._submit
        if source is None or submit is None or self._held >= self._window:
            return False
        try:
            item = next(source)
        except StopIteration:
            self._source = None
            return False
        except BaseException as error:
            if interrupted(error):
                raise  # it is not the input's, and does not wait for its turn
            self._source, self._error = None, error
            return False
        if not self._open:
            return False  # the input closed us
        try:
            future = submit(item)
        except BaseException as error:
            if interrupted(error):
                raise
            self._source, self._error = None, error
            return False
        future._forkmill_number = self._pulled  # type: ignore[attr-defined]
        self._pulled += 1
        self._held += 1
        if self._ordered:
            self._line.append(future)
        else:
            self._flying.add(future)
            future.add_done_callback(self._ready.put)
        if not self._open:
            future.cancel()
            return False
        return True

    def _next(self) -> Future[Any] | None:
        """The next future that is done, in the order to yield; None at the end."""
        if self._quick:
            while self._pull():
                pass
        if not self._ordered:
            return self._unordered()
        line = self._line
        while line or self._pull():
            head = line[0]
            if not head.done() and self._pull():
                continue  # look again before the next pull, which may block (LAZY-1)
            if not head.done():
                head.add_done_callback(self._ready.put)
                self._await()
            return line.popleft() if self._open else None
        return None

    def _unordered(self) -> Future[Any] | None:
        while self._flying or self._pull():
            try:
                future = self._ready.get_nowait()
            except queue.Empty:
                if self._pull():
                    continue
                future = self._await()
            if future is None or not self._open:
                return None
            self._flying.discard(future)
            return future
        return None

    def _await(self) -> Future[Any] | None:
        """The next one that is done; None: closed, by another thread."""
        try:
            return self._ready.get(timeout=self._patience())
        except queue.Empty:
            raise self._late() from None

    def _patience(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - monotonic(), 0.0)

    def _late(self) -> TimeoutError:
        self.close()
        return TimeoutError("the results were not there within the timeout of the call")

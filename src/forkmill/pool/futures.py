"""Future: the outcome of one task, kept encoded until somebody asks for it.

Guarantees:
    * The first `result()` or `exception()` decodes the outcome, once, in its own thread (INV-4);
      `done`, `wait`, `as_completed` and callbacks decode nothing.
    * Whatever interrupts who asks (Ctrl-C, or any exception of a signal handler), the next one
      who asks gets the outcome.
    * The stock `concurrent.futures.wait` and `as_completed` work on it, mixed with stock futures,
      and so does who reads a stock future's private fields, as asyncio does.
    * No reference cycle: a future and its result are freed when the last user lets go.

Invariants:
    * FUT-1  Waiters are told by the collector alone, under `_condition`, once. Who holds
      `_condition` sees the state that was when he took it. So a waiter is told exactly once, or
      its owner has seen a final state, and then it is not told.
    * FUT-2  A callback is taken off `_callbacks` and called in one step.
    * FUT-3  One thread at a time decodes. The chunk stays the future's until it is decoded.
    * FUT-4  Nothing that a signal handler can interrupt lies between a change of a future and the
      change that belongs to it: all of them are in native/future.pxi, whose head has the argument.

Threads: any, for all of it.

The stock Future makes a Condition and two lists at birth, more than the rest of a submit costs
here. Ours has neither: `_condition` and `_waiters` are made for each look (`_Stock` in
native/future.pxi, with all that is hot). The first waiter, or the first callback, asks the pool's
collector to fetch the outcome (`_arm`).
"""

from __future__ import annotations

import logging
from concurrent.futures import CancelledError, InvalidStateError, _base
from typing import TYPE_CHECKING, Any, TypeVar

from .. import _native
from .._frames import our_locals, stack

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from .core import Core

__all__ = ["Future"]

PENDING = _base.PENDING
RUNNING = _base.RUNNING
CANCELLED = _base.CANCELLED_AND_NOTIFIED
FINISHED = _base.FINISHED

_LOGGER = logging.getLogger("concurrent.futures")


T = TypeVar("T")


class Future(_native.FutureBase, _base.Future[T]):  # type: ignore[override]
    """The outcome of one task; a `concurrent.futures.Future` with `kill()`.

    Made by `ProcessPool.submit`, never by hand. All methods may be called from any thread.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        _condition: Any
        _state: str
        _waiters: Any

        def result(self, timeout: float | None = None) -> T: ...
        def add_done_callback(self, fn: Callable[[Self], object]) -> None: ...

    def __init__(self) -> None:
        raise TypeError("futures are made by submit()")

    @classmethod
    def finished(cls, result: object, exception: BaseException | None) -> Future[Any]:
        """A future that has its outcome already (inline pools)."""
        future = cls.__new__(cls)
        future._finish(result, exception)
        return future

    @classmethod
    def of(cls, core: Core, task: _native.Chunk) -> Future[Any]:
        """The future of a task that was submitted without one."""
        return cls.__new__(cls)._adopt(core, task)

    def __repr__(self) -> str:
        state = self._state
        text = f"<{type(self).__name__} at {id(self):#x} state={_STATES[state]}"
        if state == FINISHED and self._decoded:
            if self._exception is not None:
                return f"{text} raised {type(self._exception).__name__}>"
            return f"{text} returned {type(self._result).__name__}>"
        return f"{text}>"

    # ------------------------------------------------------------------ its outcome

    def _raise_cancelled(self) -> None:
        raise CancelledError

    # ------------------------------------------------------------------ ending it early

    def kill(self) -> bool:
        """End the task even if it runs, by killing its worker; other tasks are not harmed.

        The outcome is WorkerDied with ``cause == "killed"``, and there is no retry. A task that
        has not started is cancelled.

        Returns:
            True if this call ended it; False if it had its outcome already.
        """
        task = self._task
        if task is None or task.done:
            return False
        return self.cancel() or bool(task.kill())

    # ------------------------------------------------------------------ who wants to know

    def _log_callback(self) -> None:
        _LOGGER.exception("exception calling callback for %r", self)

    def _abandoned(self, holder: int) -> bool:
        """Whether the thread that took `_condition` with acquire() has left it held.

        `wait` and `as_completed` take the locks of all their futures one by one, and an exception
        of a signal handler in between gets past the code that gives them back. Who is inside of
        them has this future among the local names of one of their frames.
        """
        for frame in stack(holder):
            if frame.f_code.co_filename == _base.__file__:
                for value in our_locals(frame).values():
                    futures = getattr(value, "futures", value)
                    if isinstance(futures, set | list | tuple) and self in futures:
                        return False
        return True

    # ------------------------------------------------------------------ the executor's side

    def set_running_or_notify_cancel(self) -> bool:
        """False if the task is cancelled; else RuntimeError: its pool does this by itself."""
        if self.cancelled():
            return False
        raise RuntimeError(f"a pool sets the state of its own futures: {self!r}")

    def set_result(self, result: Any) -> None:
        """InvalidStateError: the outcome is the task's."""
        raise InvalidStateError(f"{self._state}: the outcome of {self!r} is its task's")

    def set_exception(self, exception: BaseException | None) -> None:
        """InvalidStateError: the outcome is the task's."""
        raise InvalidStateError(f"{self._state}: the outcome of {self!r} is its task's")


_STATES = {PENDING: "pending", RUNNING: "running", CANCELLED: "cancelled", FINISHED: "finished"}

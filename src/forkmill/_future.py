"""Future: the outcome of one task, kept encoded until somebody asks for it.

Guarantees:
    * The first `result()` or `exception()` decodes the outcome, once, in its own thread (INV-4);
      `done`, `wait`, `as_completed` and callbacks decode nothing.
    * The stock `concurrent.futures.wait` and `as_completed` work on it, mixed with stock futures.
    * No reference cycle: a future and its result are freed when the last user lets go.

Invariants:
    * FUT-1  `_known` goes from None to a final state once, under `_condition`, together with the
      notification of the waiters that are there (`_settle`). So whoever holds `_condition` sees a
      state that does not change, and a waiter is told exactly once, or has seen a final state.
    * FUT-2  A callback is taken off `_done_callbacks` under `_condition` and called without it.
    * FUT-3  Once `_known` is set nobody needs `_task` but the one thread that decodes.

Threads: any, for all of it.

The stock Future makes a Condition and two lists at birth, more than the rest of a submit costs
here. Ours has neither: `_condition` and `_waiters` are made for each look (`_Stock` in
_future.pxi, with all that is hot). The first waiter, or the first callback, asks the pool's
collector to fetch the outcome (`_arm`).
"""

from __future__ import annotations

import logging
from _thread import allocate_lock, get_ident
from concurrent.futures import CancelledError, InvalidStateError, _base
from typing import TYPE_CHECKING, Any

from . import _native
from .errors import PoolError, bare

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._core import Core

__all__ = ["Future"]

PENDING = _base.PENDING
RUNNING = _base.RUNNING
CANCELLED = _base.CANCELLED_AND_NOTIFIED
FINISHED = _base.FINISHED

_LOGGER = logging.getLogger("concurrent.futures")


class Future(_native.FutureBase, _base.Future):  # type: ignore[type-arg,misc,override]
    """The outcome of one task; a `concurrent.futures.Future` with `kill()`.

    Made by `ProcessPool.submit`, never by hand. All methods may be called from any thread.
    """

    __slots__ = ()

    def __init__(self) -> None:
        raise TypeError("futures are made by submit()")

    @classmethod
    def finished(cls, result: object, exception: BaseException | None) -> Future:
        """A future that has its outcome already (inline pools)."""
        future = cls.__new__(cls)
        future._result = result
        future._exception = exception
        future._finish()
        return future

    @classmethod
    def of(cls, core: Core, task: _native.Task) -> Future:
        """The future of a task that was submitted without one."""
        return cls.__new__(cls)._adopt(core, task)

    def cancelled(self) -> bool:
        """Whether the task was cancelled before a worker started it."""
        return self._state == CANCELLED

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

    def _decode_any(self) -> None:
        """Decode the outcome, whatever it is; or wait for the thread that does."""
        while not self._decoded:
            with self._condition:
                task = self._take()
                if task is not None:
                    self._decoder = get_ident()
            if task is not None:
                self._decode(task)
            else:
                self._await_decoder()

    def _decode(self, task: _native.Task) -> None:
        """Decode the outcome, in the one thread that took `_task` (FUT-3)."""
        try:
            if self._known != CANCELLED:
                assert self._core is not None
                self._exception = task.exception(self._core)
                if self._exception is None:
                    try:
                        self._result = task.result(self._core)
                    except Exception as error:
                        # Without its traceback, which has this frame: that were a cycle.
                        self._exception = bare(error)
            self._decoded = True
            self._core = None
        except BaseException:
            self._give_back(task)  # Ctrl-C in the middle: the next one tries again
            raise
        finally:
            # 1. _decoded is set; 2. look for a gate. `_await_decoder` does it the other way round.
            gate, self._gate = self._gate, None
            if gate is not None:
                gate.release()

    def _await_decoder(self) -> None:
        """Another thread decodes: wait until it is through."""
        if self._decoder == get_ident():
            raise PoolError("decoding this future's result asks for the same future's result")
        with self._condition:
            gate = self._gate
            if gate is None:
                gate = allocate_lock()
                gate.acquire()
                self._gate = gate
            if self._decoded or self._task is not None:
                return
        gate.acquire()
        gate.release()

    # ------------------------------------------------------------------ ending it early

    def cancel(self) -> bool:
        """Take the task back if no worker has started it.

        Returns:
            True if it is cancelled (now or before); False if it runs or has another outcome.
        """
        task = self._task
        if self._known is None and task is not None and task.cancel():
            with self._condition:
                self._settle_cancelled()
            self._run_callbacks()
        return self.cancelled()

    def kill(self) -> bool:
        """End the task even if it runs, by killing its worker; other tasks are not harmed.

        The outcome is WorkerDied with ``cause == "killed"``, and there is no retry. A task that
        has not started is cancelled.

        Returns:
            True if this call ended it; False if it had its outcome already.
        """
        task = self._task
        if self._known is not None or task is None or task.done:
            return False
        return self.cancel() or bool(task.kill())

    # ------------------------------------------------------------------ who wants to know

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call ``fn(self)`` when the task has its outcome, at once if it has.

        Callbacks are called in the order in which they were added, by the pool's collector
        thread (or by the thread that cancels). What they raise is logged.

        Args:
            fn: Called with this future.
        """
        with self._condition:
            task = self._task
            done = self._known is not None or task is None or task.done
            if self._callbacks or not done:
                self._callbacks = (*self._callbacks, fn)
                self._arm()
                return
        self._call(fn)

    def _run_callbacks(self) -> None:
        failure = None
        while self._callbacks:
            with self._condition:
                if not self._callbacks:
                    break
                fn, *left = self._callbacks
                self._callbacks = tuple(left)
            try:
                self._call(fn)
            except BaseException as error:  # sys.exit(), Ctrl-C: the others are called all the same
                failure = error
        if failure is not None:
            raise failure

    def _call(self, fn: Callable[[Any], object]) -> None:
        try:
            fn(self)
        except Exception:
            _LOGGER.exception("exception calling callback for %r", self)

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

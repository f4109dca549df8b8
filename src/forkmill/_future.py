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
here. Ours makes them when somebody looks (`_OnDemand`): the first look at `_waiters` with an
append, or the first callback, asks the pool's collector to fetch the outcome (`_arm`).
"""

from __future__ import annotations

import logging
from _thread import RLock, allocate_lock, get_ident
from concurrent.futures import CancelledError, InvalidStateError, _base
from typing import TYPE_CHECKING, Any

from . import _native
from .errors import PoolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._core import Core

__all__ = ["Future"]

PENDING = _base.PENDING
RUNNING = _base.RUNNING
CANCELLED = _base.CANCELLED_AND_NOTIFIED
FINISHED = _base.FINISHED

_NOT_STARTED = (_native.CHUNK_NEW, _native.CHUNK_PENDING)
_LOGGER = logging.getLogger("concurrent.futures")


class _Condition(RLock):  # type: ignore[misc]  # a class in C, a function in typeshed
    """What stock code takes for a Condition: a lock that knows what it saw when it was taken.

    `wait` and `as_completed` read `_state` several times while they hold it, and must read the
    same each time although the task goes on: they are told of the task as it was at `acquire`.
    """

    __slots__ = ("seen", "task")

    task: _native.Task | None
    seen: bool

    if TYPE_CHECKING:

        def _is_owned(self) -> bool: ...

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken: bool = RLock.acquire(self, blocking, timeout)
        if taken and self.task is not None and self.task.done:
            self.seen = True
            self.task = None
        return taken

    def notify_all(self) -> None:
        """Nobody waits here: whoever waits for a task waits in C."""


class _Waiters(list[Any]):
    """The stock functions' waiters; the first one that comes arms the collector."""

    __slots__ = ("future",)

    future: Future | None

    def append(self, waiter: Any) -> None:
        list.append(self, waiter)
        future, self.future = self.future, None  # no cycle from here on
        if future is not None:
            future._arm()


class Armed:
    """The tag of an armed task: leads the collector to the future, once.

    Future and task refer to each other only until the outcome is delivered.
    """

    __slots__ = ("_name", "future")

    def __init__(self, future: Future, name: str) -> None:
        self.future: Future | None = future
        self._name = name

    def deliver(self, task: _native.Task) -> None:
        future, self.future = self.future, None
        if future is not None:
            future._deliver(task)


class _OnDemand:
    """An attribute that is made at the first look and then lies in the instance."""

    def __init__(self, make: Callable[[Future], object]) -> None:
        self.make = make
        self.name = make.__name__

    def __get__(self, future: Future | None, owner: type) -> Any:
        if future is None:
            return self
        # setdefault is one step for all threads: every one gets the same object.
        return future.__dict__.setdefault(self.name, self.make(future))


class Future(_base.Future):  # type: ignore[type-arg]
    """The outcome of one task; a `concurrent.futures.Future` with `kill()`.

    Made by `ProcessPool.submit`, never by hand. All methods may be called from any thread.
    """

    # What every future starts with lies in the class: making one sets two attributes.
    _core: Core | None
    _task: _native.Task | None
    _known: str | None = None
    _decoded = False
    _decoder = 0
    _gate: Any = None
    _armed = False
    _result: Any = None
    _exception: BaseException | None = None
    _done_callbacks: list[Callable[[Any], object]] = []  # noqa: RUF012  # replaced, never changed

    def __init__(self, core: Core | None, task: _native.Task | None) -> None:
        self._core = core
        self._task = task

    @classmethod
    def finished(cls, result: object, exception: BaseException | None) -> Future:
        """A future that has its outcome already (inline pools)."""
        future = cls(None, None)
        future._result = result
        future._exception = exception
        future._decoded = True
        future._known = FINISHED
        return future

    @_OnDemand
    def _condition(self) -> _Condition:
        condition = _Condition()
        condition.task = self._task
        condition.seen = False
        return condition

    @_OnDemand
    def _waiters(self) -> _Waiters:
        waiters = _Waiters()
        waiters.future = self
        return waiters

    # ------------------------------------------------------------------ where it is

    @property
    def _state(self) -> str:  # type: ignore[override]  # an attribute in the stock class
        task = self._task
        if self._known is None and task is not None:
            condition: _Condition | None = self.__dict__.get("_condition")
            if condition is not None and condition._is_owned():
                if condition.seen:
                    self._settle(task)
            elif task.done:
                with self._condition:
                    self._settle(task)
        if self._known is not None:
            return self._known
        return PENDING if task is None or task.state in _NOT_STARTED else RUNNING

    def done(self) -> bool:
        """Whether the task has its outcome. Never blocks; makes one turn of the pool's I/O."""
        if self._known is not None:
            return True
        task, core = self._task, self._core
        if task is None or task.done:
            return True
        if core is not None:
            core.turn()  # else a loop that polls would never end: whoever waits, works
        return task.done

    def running(self) -> bool:
        """Whether a worker has started the task and it has no outcome yet."""
        task = self._task
        return (
            self._known is None
            and task is not None
            and not task.done
            and task.state not in _NOT_STARTED
        )

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

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned.

        Args:
            timeout: Seconds to wait for it; None waits as long as it takes.

        Raises:
            TimeoutError: It is not done in time; it goes on.
            CancelledError: It was cancelled.
            WorkerDied: Its worker died while it ran.
            TaskTimeout: It ran longer than its `options(timeout=...)`.
            SerializationError: Its result could not be sent or rebuilt.
            PoolClosed: The pool was stopped before it started.
            PoolBroken: The pool broke.
            Exception: What the task raised, with the worker's traceback below it.
        """
        try:
            if not self._decoded:
                self._await_outcome(timeout)
            if self._exception is not None:
                raise self._exception
            if self._known == CANCELLED:
                raise CancelledError
            return self._result
        finally:
            # Break a cycle: the exception's traceback has this frame.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None if it returned.

        Args:
            timeout: Seconds to wait for it; None waits as long as it takes.

        Raises:
            TimeoutError: It is not done in time; it goes on.
            CancelledError: It was cancelled.
        """
        if not self._decoded:
            self._await_outcome(timeout)
        if self._known == CANCELLED:
            raise CancelledError
        return self._exception

    def _await_outcome(self, timeout: float | None) -> None:
        task = self._task
        if (
            task is not None
            and not task.done
            and self._known is None
            and not task.wait(None if timeout is None else max(timeout, 0.0))
        ):
            raise TimeoutError
        del task  # decoding frees it
        while not self._decoded:
            with self._condition:
                task, self._task = self._task, None
                if task is not None:
                    self._settle(task)
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
                        self._exception = error.with_traceback(None)
            self._decoded = True
            self._core = None
            condition: _Condition = self._condition
            condition.task = None
        except BaseException:
            self._task = task  # Ctrl-C in the middle: the next one tries again
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
                self._settle(task, CANCELLED)
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
            if self._done_callbacks or not done:
                self._done_callbacks = [*self._done_callbacks, fn]
                self._arm()
                return
        self._call(fn)

    def _arm(self) -> None:
        """Have the collector fetch the outcome (under `_condition`)."""
        task, core = self._task, self._core
        if self._armed or task is None or core is None:
            return
        self._armed = True
        core.collector.arm(task, Armed(self, task.tag))

    def _deliver(self, task: _native.Task) -> None:
        """The collector has the outcome."""
        with self._condition:
            self._settle(task)
        self._run_callbacks()

    def _settle(self, task: _native.Task, known: str | None = None) -> None:
        """The task is done: fix the state and tell the waiters (FUT-1, under `_condition`)."""
        if self._known is not None:
            return
        what = _native.WHAT_CANCELLED if known == CANCELLED else task.what
        self._known = CANCELLED if what == _native.WHAT_CANCELLED else FINISHED
        for waiter in self.__dict__.get("_waiters", ()):
            if what == 0:
                waiter.add_result(self)
            elif what == _native.WHAT_CANCELLED:
                waiter.add_cancelled(self)
            else:
                waiter.add_exception(self)

    def _run_callbacks(self) -> None:
        while self._done_callbacks:
            with self._condition:
                if not self._done_callbacks:
                    return
                fn, *self._done_callbacks = self._done_callbacks
            self._call(fn)

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

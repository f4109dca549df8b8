"""What every type of context has in common: calls, futures, options, and the Executor's face.

    submit, map ──▶ Call ──▶ _accept() ──▶ a backlog ──▶ whatever runs it ──▶ Future

Guarantees:
    * An accepted call gets exactly one outcome (INV-1).
    * Every type has the same methods, with the same meaning, as a `ProcessPool`.
    * An executor that its user dropped finishes what it accepted and is gone.

Invariants:
    * BASE-1  A call's future is completed by `Call.finish` or `Call.fail`, once, or cancelled.
    * BASE-2  What runs the calls never refers to the executor: else nobody could drop it.

Threads: everything here may be called from any thread.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import heapq
import itertools
import os
import queue
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import InvalidStateError, _base
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, overload

from .. import _checks, errors
from .._late import WeakSet
from .._process import SHARES, Change, cpus, interrupted
from ..runs.clocked import clocked
from ..runs.executor import Face, Options
from ..runs.window import Results, left_error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from ..runs.window import Closable, LazyCall
    from .lanes.lane import Lane, Work

__all__ = [
    "INSIDE",
    "Backlog",
    "Call",
    "Executor",
    "Future",
    "Ledger",
    "Metrics",
    "Options",
    "View",
    "called",
    "cpus",
    "inside",
]

P = ParamSpec("P")
T = TypeVar("T")

_numbers = itertools.count(1)


class _Inside(threading.local):
    """What a thread does for contexts.

    Attributes:
        calls: How many calls of contexts it is in.
        serves: It is one of theirs, and goes on for others: what is raised by who is told of an
            outcome does not end it.
    """

    calls = 0
    serves = False


INSIDE = _Inside()


def called(job: Callable[[], object]) -> None:
    """Do a job as a call of a context, in whatever thread this is."""
    INSIDE.calls += 1
    try:
        job()
    finally:
        INSIDE.calls -= 1


def report(error: BaseException) -> None:
    """What was raised in a thread where it can be told to nobody."""
    told = type(error), error, error.__traceback__, threading.current_thread()
    threading.excepthook(threading.ExceptHookArgs(told))


def inside() -> bool:
    """Whether this is a call of a context, or of somebody's pool of processes: who would wait here
    for calls of his own may wait for somebody who waits for him."""
    if INSIDE.calls:
        return True
    worker = sys.modules.get(f"{__package__.partition('.')[0]}.worker.main")
    if worker is not None and worker.IN_WORKER:
        return True
    others = sys.modules.get("multiprocessing.process")
    return others is not None and others.parent_process() is not None


@dataclass(frozen=True, slots=True)
class Metrics:
    """An executor's figures at one moment, as plain data.

    Attributes:
        created: Threads, children, workers, interpreters or loops made so far.
        reused: Calls that ran in one that was there.
        busy: Calls that run now.
        waiting: Calls that were accepted and wait.
        failed: Calls that raised or died; cancelled ones do not count.
    """

    created: int = 0
    reused: int = 0
    busy: int = 0
    waiting: int = 0
    failed: int = 0


class Ledger:
    """What `Metrics` is made from. Its lock is held for an addition only."""

    __slots__ = ("busy", "created", "failed", "lock", "started")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.created = self.started = self.busy = self.failed = 0

    def born(self, number: int = 1) -> None:
        """So many threads, children, loops were made."""
        with self.lock:
            self.created += number

    def begin(self) -> None:
        with self.lock:
            self.started += 1
            self.busy += 1

    def passed(self, number: int, failed: int) -> None:
        """One call has done the work of so many more; so many failed."""
        with self.lock:
            self.started += number
            self.failed += failed

    def end(self, started: bool, failed: bool) -> None:
        with self.lock:
            self.busy -= started
            self.failed += failed

    def metrics(self, waiting: int) -> Metrics:
        with self.lock:
            reused = max(0, self.started - self.created)
            return Metrics(self.created, reused, self.busy, waiting, self.failed)


# States of a stock future that has its outcome.
_OVER = (_base.CANCELLED, _base.CANCELLED_AND_NOTIFIED, _base.FINISHED)


class _Condition(threading.Condition):
    """A Condition whose `with` runs no Python: what a signal handler raised there, with the lock
    held already, would leave it held for ever.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class Future(concurrent.futures.Future[T]):
    """The outcome of one call; a `concurrent.futures.Future` with `kill()`."""

    # Set by the type when the call has started and can be stopped.
    _kill: Callable[[], bool] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._condition = _Condition()

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        # As the stock class, which logs also what a signal handler has raised in there, and so
        # takes it from the program, and from who has to be told.
        with self._condition:
            if self._state not in _OVER:
                self._done_callbacks.append(fn)  # type: ignore[attr-defined]
                return
        self._call(fn)

    def _invoke_callbacks(self) -> None:
        failure: BaseException | None = None
        for fn in self._done_callbacks:  # type: ignore[attr-defined]
            try:
                self._call(fn)
            except BaseException as error:  # the others are called all the same
                failure = error
        if failure is None:
            return
        if not INSIDE.serves:
            raise failure
        report(failure)

    def _call(self, fn: Callable[[Any], object]) -> None:
        try:
            fn(self)
        except Exception as error:
            if interrupted(error):
                raise
            _base.LOGGER.exception("exception calling callback for %r", self)

    def result(self, timeout: float | None = None) -> T:
        error = None
        try:
            error = self.exception(timeout)
            if error is None:
                return super().result()
            raise error  # not by the stock class, for which one that is false is no exception
        finally:
            del error, self  # a cycle: the exception's traceback has this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._await(timeout)
        return super().exception(timeout)

    def _await(self, timeout: float | None) -> None:
        """Wait for the outcome.

        Not as the stock class does: what a signal handler raises in `Condition.wait`, which is
        Python, comes out of it with the lock given away or not. A SimpleQueue is C.
        """
        if self.done():
            return
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        told = ready.put
        seconds = None if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
        try:
            self.add_done_callback(told)
            ready.get(timeout=seconds)
        except queue.Empty:
            if not self.done():
                raise TimeoutError from None
        finally:
            with self._condition:
                waiting: Any = self._done_callbacks  # type: ignore[attr-defined]
                if not self.done() and told in waiting:
                    waiting.remove(told)

    def cancel(self) -> bool:
        """Take the call back if it has not started.

        Returns:
            True if it is cancelled (now or before); False if it runs or has another outcome.
        """
        if not super().cancel():
            return False
        with self._condition:
            if self._state == _base.CANCELLED:
                # The stock class leaves this to who takes the call from the backlog, and
                # until then wait() and as_completed() do not see it.
                self.set_running_or_notify_cancel()
        return True

    def kill(self) -> bool:
        """End the call even if it runs, where the context can stop it.

        Returns:
            True if this ended it; False if it has its outcome, or runs and cannot be stopped.
        """
        if self.done():
            return False
        if self.cancel():
            return True
        kill = self._kill
        return kill is not None and kill()


class Call:
    """One accepted call, on its way to its outcome."""

    __slots__ = ("args", "attempts", "context", "fn", "future", "kwargs", "ledger", "options")

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
        ledger: Ledger,
        future: Future[Any] | None = None,
    ) -> None:
        self.fn: Any = fn
        self.args: Any = args
        self.kwargs: Any = kwargs
        self.options = options
        self.ledger = ledger
        self.context: Any = None  # the caller's context variables, for a type that takes them
        self.future = Future() if future is None else future
        self.attempts = 0

    def start(self) -> bool:
        """Another attempt begins; False: the call was cancelled, do not run it."""
        if not self.attempts:
            future = self.future
            with future._condition:
                if future.cancelled() or not future.set_running_or_notify_cancel():
                    self._free()
                    return False
            self.ledger.begin()
        self.attempts += 1
        return True

    def give_up(self) -> None:
        """It is taken out of the backlog, and does not begin any more."""
        self.future.cancel()

    def again(self, error: BaseException) -> bool:
        """Whether this failure is worth another try, and one is left."""
        options = self.options
        return self.attempts <= options.retries and isinstance(error, options.retry_on)

    def finish(self, value: Any) -> None:
        """It returned."""
        with contextlib.suppress(InvalidStateError):  # cancelled, or killed: it has its outcome
            self._close(failed=False)
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """It raised, died, or cannot run."""
        with contextlib.suppress(InvalidStateError):
            self._close(failed=True)
            self.future.set_exception(error)

    def run(self) -> bool:
        """Run it here and now, with its retries; False if it failed."""
        if not self.start():
            return True
        while True:
            try:
                value = self.fn(*self.args, **self.kwargs)
            except BaseException as error:
                if self.again(error):
                    self.start()
                    continue
                self.fail(error)
                # A cycle: the exception's traceback has this frame, which has the future.
                self = None  # type: ignore[assignment]
                return False
            self.finish(value)
            return True

    def _close(self, *, failed: bool) -> None:
        """Before the outcome is told: who sees it sees the figures that go with it."""
        if self.future.done():
            raise InvalidStateError
        self._free()
        self.future._kill = None
        self.ledger.end(self.attempts > 0, failed)

    def _free(self) -> None:
        # The future may live long after what it was computed from is of no use.
        self.fn = self.args = self.kwargs = self.context = None


class Backlog:
    """Accepted calls that wait, by priority and then in their order. Any thread.

    Some are for one certain place, which who takes there names; these go first, in their order.

    Not with a Condition: see `Change`.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[int, int, Call]] = []
        self._placed: dict[int, deque[Call]] = {}
        self._number = itertools.count()
        self._mutex = threading.Lock()
        self._change = Change(self._mutex)
        self.closed = False

    def __len__(self) -> int:
        return len(self._calls) + sum(map(len, self._placed.values()))

    def waits(self, place: int) -> bool:
        """Whether there is a call that could be taken at that place."""
        return bool(self._calls or self._placed.get(place))

    def put(self, call: Call, place: int | None = None) -> bool:
        """Add a call.

        Args:
            call: The call.
            place: Where it must be taken; None: anywhere.

        Returns:
            Whether more calls wait than threads that could take them; where there is a place, True.

        Raises:
            PoolClosed: It is closed.
        """
        with self._mutex:
            if self.closed:
                raise closed_error()
            if place is not None:
                self._change.tell()  # which of those that wait is there is not known
                self._placed.setdefault(place, deque()).append(call)
                return True
            self._change.tell(1)
            heapq.heappush(self._calls, (-call.options.priority, next(self._number), call))
            return len(self._calls) > self._change.idle

    def take(self, timeout: float | None = None, place: int = 0) -> Call | None:
        """The next call; None if there is none in time, or when closed and empty."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            with self._mutex:
                if self._placed and (line := self._placed.get(place)):
                    return line.popleft()
                if self._calls:
                    return heapq.heappop(self._calls)[2]
                left = None if deadline is None else deadline - monotonic()
                if self.closed or (left is not None and left <= 0):
                    return None
                self._change.expect()
            self._change.wait(left)

    def take_now(self) -> Call | None:
        """The next call, if one waits."""
        with self._mutex:
            return heapq.heappop(self._calls)[2] if self._calls else None

    def close(self) -> None:
        """Accept nothing more; what waits may still be taken."""
        with self._mutex:
            self.closed = True
            self._change.tell()

    def clear(self) -> list[Call]:
        """Take everything that waits."""
        with self._mutex:
            calls, self._calls = self._calls, []
            placed, self._placed = self._placed, {}
        free = [call for _, _, call in sorted(calls, key=lambda entry: entry[:2])]
        return [*chain.from_iterable(placed.values()), *free]

    def places(self) -> list[int]:
        """Where calls wait that must be taken there."""
        with self._mutex:
            return [place for place, line in self._placed.items() if line]

    def withdraw(self, call: Call, place: int) -> None:
        """Take out one that was put for a place, if it is still there."""
        with self._mutex:
            line = self._placed.get(place)
            if line is not None and call in line:
                line.remove(call)

    def cancel_all(self) -> None:
        """Cancel everything that waits, also if somebody who is told of it raises."""
        failure: BaseException | None = None
        for call in self.clear():
            try:
                call.give_up()
            except BaseException as error:
                failure = error
        if failure is not None:
            raise failure

    def put_back(self, call: Call) -> None:
        """One that was taken is not through, and waits again, behind others."""
        with self._mutex:
            heapq.heappush(self._calls, (-call.options.priority, next(self._number), call))


@_checks.named
class _Face(Face["View"]):
    """What an executor and its views have in common: everything but the end."""

    _options: Options

    @property
    def _whole(self) -> Executor:
        raise NotImplementedError

    @property
    def _max_workers(self) -> int:
        return self._whole.width  # where libraries look for an executor's width

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have ``fn(*args, **kwargs)`` called in the context.

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The call's future.

        Raises:
            TypeError: fn cannot be called.
            PoolClosed: The executor was shut down.
            PoolBroken: The initializer failed.
            PoolError: The executor belongs to another process (fork).
        """
        _checks.a_callable("the first argument", fn)
        if SHARES:
            fn, args, kwargs = SHARES[0].hold_call(fn, args, kwargs)
        return self._begin(fn, args, kwargs)

    def _begin(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Future[Any]:
        """A call as it is: handles among its arguments stay handles."""
        whole = self._whole
        whole._check_process()
        call = Call(fn, args, kwargs, self._options, whole.ledger, whole.future_class())
        future = call.future
        whole._accept(call)
        return future

    def _lazy(self, call: LazyCall) -> Closable[Any]:
        self._whole._check_open()
        window = call.buffersize or max(self._whole.window, call.chunksize or 1)
        fn = clocked(call)
        submit = self.submit

        def accept(args: Any) -> Future[Any]:
            try:
                return submit(fn, *args)
            except errors.PoolClosed as error:
                raise left_error() from error

        results = Results(accept, call, window=window)
        if call.lasting():
            self._whole._lasting.add(results)
        return results

    def _check_stops(self) -> None:
        if not self._whole.kills:
            raise ValueError(
                f"{self._whole.type!r} cannot stop a call that runs, so it takes no timeout; "
                "use 'ipc_fork', 'cow_fork', or 'async' with coroutines"
            )

    def _view(self, options: Options) -> View:
        return View(self._whole, options)

    def metrics(self) -> Metrics:
        """The figures of the whole executor at this moment. Cheap, also after shutdown."""
        return self._whole._metrics()


class View(_Face):
    """An executor with other options; made by `options`."""

    def __init__(self, whole: Executor, options: Options) -> None:
        self._executor = whole
        self._options = options

    @property
    def _whole(self) -> Executor:
        return self._executor

    @property
    def type(self) -> str:
        """The context's type."""
        return self._executor.type

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Does nothing: the executor is not the view's to end."""

    def __repr__(self) -> str:
        return f"<view of {self._executor!r}: {self._options}>"


class Executor(_Face, ABC):
    """A context as an Executor; a type of context is a subclass.

    Attributes:
        type: The type's name.
        kills: Whether a running call can be stopped (timeouts, `Future.kill`).
        isolated: Whether calls run in other processes.
        local: Whether they run on this machine, and attach what is shared.
        copies: How many copies of a stage's state there are: one that is "shared", or one for
            each "worker" or "call".
        future_class: What `submit` returns.
        width: How many calls run at once, at most.
        ledger: Counts calls as they start and end; a type adds what it makes (`born`).
        window: How many items `map` pulls ahead of its reader.
        name: What threads and processes are called.
    """

    type: ClassVar[str]
    kills: ClassVar[bool] = False
    isolated: ClassVar[bool] = False
    local: ClassVar[bool] = True
    copies: ClassVar[str] = "shared"
    future_class: ClassVar[Any] = Future

    def __init__(self, max_workers: int | None = None, *, name: str | None = None) -> None:
        self._options = Options()
        self.width = _checks.max_workers(max_workers) or cpus()
        self.window = 2 * self.width
        self.name = _checks.text("name", name) or f"{self.type}-{next(_numbers)}"
        self.ledger = Ledger()
        self._lasting: WeakSet[Results] = WeakSet()
        self._pid = os.getpid()

    @property
    def _whole(self) -> Executor:
        return self  # not an attribute: that would be a cycle, and drop nothing (BASE-2)

    @abstractmethod
    def _accept(self, call: Call) -> None:
        """Take a call, or raise PoolClosed. Does not wait for it."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise what `submit` would raise now; nothing if it would accept."""

    def leave(self, futures: Iterable[Any]) -> None:
        """Wait for these calls no more, at shutdown and at exit neither: they cannot be ended."""

    def leave_births(self) -> int:
        """Once it is shut: wait for no initializer that does not come back; how many there are."""
        return 0

    def _waiting(self) -> int:
        """How many accepted calls have not started."""
        return 0

    def _metrics(self) -> Metrics:
        return self.ledger.metrics(self._waiting())

    @abstractmethod
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more, finish what was accepted, free everything. Idempotent.

        Args:
            wait: Return when everything is over; else at once.
            cancel_futures: Cancel accepted calls that have not started.
        """

    def _take_in(self, cancel_futures: bool) -> None:
        """At a shutdown: open maps over input that has a length are accepted as a whole."""
        if not cancel_futures and self._pid == os.getpid():
            for results in tuple(self._lasting):
                results.take_in()

    def lane(self, work: Work, notify: Callable[[], None] | None = None) -> Lane:
        """A lane that runs one stage's work here (for pipelines)."""
        from .lanes.calls import CallLane, ReplicaLane

        kind = CallLane if self.copies == "shared" else ReplicaLane
        return kind(self, work, notify)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise foreign_error()

    def __enter__(self) -> Executor:
        return self

    def __repr__(self) -> str:
        return f"<{self.type} executor {self.name!r}: {self.width} wide>"

    def __reduce__(self) -> Any:
        raise TypeError("an executor cannot be sent or copied; a task that needs one makes its own")


# ------------------------------------------------------------------------------ errors


def closed_error() -> errors.PoolClosed:
    return errors.PoolClosed(
        "cannot schedule new futures after shutdown: this executor takes no more work"
    )


def foreign_error() -> errors.PoolError:
    return errors.PoolError(
        "this executor belongs to the process that made it; after a fork the child needs one of "
        "its own"
    )

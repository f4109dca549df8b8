"""What comes out of a run: the result, its failures, and the ways to wait for it.

Threads: a `Handle` may be used from any thread; a `Stream` by one at a time.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import pickle
import sys
import threading
import time
import traceback as traceback_module
import weakref
from dataclasses import dataclass, field
from time import time as now
from typing import TYPE_CHECKING, Any

from .._process import (
    KnownThread,
    Latch,
    LoneThread,
    before_exit,
)
from ..contexts.lanes.emit import Raised
from ..errors import add_note, slot

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from types import TracebackType

    from ..runs.stats import RunStats
    from .run.driver import Driver

__all__ = [
    "GRACE",
    "KEEP",
    "PATIENCE",
    "Failure",
    "FailureLog",
    "Handle",
    "Left",
    "RunResult",
    "Stream",
]

PATIENCE = 1.0  # seconds, from `stop` to where a source that blocks is left behind
GRACE = 0.4  # seconds, from `kill` to where any call that cannot be ended is
RELIEF = 0.8  # seconds, from `kill` to where the thread of the run is left behind
AGAIN = 0.03  # and from there to where one that ends it is, if a hook or a teardown holds it too
KEEP = 1000  # failures that a run keeps whole, if nobody says otherwise


class Left(BaseException):
    """The run has gone on without this thread."""


class Failure:
    """One item that failed for good.

    Attributes:
        stage: The stage's qualified name.
        item: The item; None for a producer, and for what on_end or teardown fails with.
        error: What was raised.
        attempts: How many tries there were.
        traceback: As text, with the frames of the process where it happened. Made at the first
            look: formatting takes longer than most items.
        time: When, in seconds since the epoch.
    """

    __slots__ = ("_again", "_frames", "_text", "attempts", "error", "item", "stage", "time")

    def __init__(
        self,
        stage: str,
        item: Any,
        error: BaseException,
        attempts: int = 1,
        traceback: str | None = None,
        time: float | None = None,
        _again: Callable[[Any], list[Any]] | None = None,
    ) -> None:
        self.stage = stage
        self.item = item
        self.error = error
        self.attempts = attempts
        self.time = now() if time is None else time
        self._text = traceback
        # As they are now: whoever raises the error again puts more of them on it.
        self._frames = error.__traceback__
        self._again = _again

    @property
    def traceback(self) -> str:
        """The error's traceback as text."""
        if self._text is None:
            self._text = _formatted(self.error, self._frames)
            self._frames = None
        return self._text

    def reproduce(self) -> list[Any]:
        """Call the stage's function with the item again, here and now.

        Returns:
            What it emits, if it does not fail this time.

        Raises:
            BaseException: What it raises.
        """
        if self._again is None:
            raise RuntimeError(f"stage {self.stage!r} has no function here to call again")
        return self._again(self.item)

    def __reduce__(self) -> Any:
        # The error takes its frames along, as text; the item may never have been meant to travel.
        parts = (self.stage, _portable(self.item), Raised(self.error), self.attempts)
        return _failure, (*parts, self._text, self.time)

    def __repr__(self) -> str:
        return (
            f"Failure(stage={self.stage!r}, item={self.item!r}, error={self.error!r}, "
            f"attempts={self.attempts})"
        )


def _failure(
    stage: str, item: Any, raised: Raised, attempts: int, text: str | None, time: float
) -> Failure:
    return Failure(stage, item, raised.error, attempts, text, time)


def _portable(item: Any) -> Any:
    try:
        pickle.dumps(item)
    except Exception:
        return repr(item)
    return item


_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _formatted(error: BaseException, frames: TracebackType | None) -> str:
    first = frames
    while first is not None and _is_ours(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    frames = first or frames
    try:
        return "".join(traceback_module.format_exception(type(error), error, frames))
    except Exception:  # its str(), or that of what led to it
        return "".join(traceback_module.format_tb(frames)) + f"{type(error).__qualname__}\n"


def _is_ours(file: str) -> bool:
    """Whether a frame's file is of what calls the user's functions."""
    return file == "<fused stages>" or file.startswith(_HERE)


class FailureLog:
    """The failures of a run: the first ones whole, the rest counted, so memory is bounded.

    Attributes:
        kept: The first ones.
        more: How many there were beyond these, by stage and type of the error.
        most: How many are kept.
    """

    __slots__ = ("kept", "more", "most")

    def __init__(self, keep: int | None) -> None:
        self.kept: list[Failure] = []
        self.more: dict[tuple[str, str], int] = {}
        self.most = float("inf") if keep is None else keep

    @property
    def full(self) -> bool:
        """Whether the next one is only counted."""
        return len(self.kept) >= self.most

    def add(self, failure: Failure) -> None:
        """Keep one, or count it."""
        if self.full:
            self.count(failure.stage, failure.error)
        else:
            self.kept.append(failure)

    def count(self, stage: str, error: BaseException) -> None:
        """One more that is not kept."""
        kind = type(error)
        name = kind.__qualname__
        if kind.__module__ != "builtins":
            name = f"{kind.__module__}.{name}"
        self.more[stage, name] = self.more.get((stage, name), 0) + 1


def check_keep(keep_failures: Any) -> int | None:
    """The option `keep_failures`, checked.

    Raises:
        TypeError: It is no int, and not None.
        ValueError: It is negative.
    """
    if keep_failures is None:
        return None
    if isinstance(keep_failures, bool) or not isinstance(keep_failures, int):
        raise TypeError(
            f"keep_failures must be a number of failures or None (all), not {keep_failures!r}"
        )
    if keep_failures < 0:
        raise ValueError(f"keep_failures must not be negative: {keep_failures}")
    return keep_failures


def noted(error: BaseException, others: Iterable[BaseException]) -> BaseException:
    """The error, with a note for each other failure that came with it. Never raises."""
    for other in others:
        if other is error:
            continue
        try:
            text = f"and at the end of the run: {type(other).__name__}: {other}"
        except BaseException:
            text = f"and at the end of the run: {type(other).__name__}"
        add_note(error, text)
    return error


def attach(error: BaseException, result: RunResult, others: Iterable[BaseException]) -> None:
    """What a run raises gets its result, and is told of the other failures. Never raises."""
    noted(error, others)
    slot(error, "__dict__")["run_result"] = result


def disguised(error: BaseException) -> RuntimeError:
    """What a run has raised, as the cause of another exception: where it is raised now, it would
    mean something else. Has the result too."""
    found = RuntimeError(f"the run raised {type(error).__name__}, which means something else here")
    found.__cause__ = error
    found.__dict__["run_result"] = getattr(error, "run_result", None)
    return found


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        status: "completed" (also with recorded failures), "failed" (a producer failed, or an
            item where the policy is "raise"), or "stopped" (stop, Ctrl-C, a closed stream).
        outputs: What terminal stages emitted, in the order of arrival.
        failures: The items that failed; of very many the first ones (`keep_failures`).
        stats: Figures per stage and edge.
        duration: Seconds.
        more_failures: How many failed beyond those, by stage and type of the error:
            ``{("parse", "ValueError"): 12}``.
        left_behind: The stages with calls that could not be ended when the run was stopped or
            killed, one entry a call: threads cannot be stopped from outside. They are daemons, what
            they give is dropped, and nobody waits for them, also not when the interpreter exits.
    """

    status: str
    outputs: list[Any]
    failures: list[Failure]
    stats: RunStats
    duration: float
    more_failures: dict[tuple[str, str], int] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it completed without any failure."""
        return self.status == "completed" and not self.failed

    @property
    def failed(self) -> int:
        """How many failures there were, with those that were only counted."""
        return len(self.failures) + sum(self.more_failures.values())


class Handle:
    """A run in a thread of its own.

    The user's code may hold that thread for ever: after `stop` an inline source that blocks, after
    `kill` any inline function. Then the run is carried on, or ended, by another one (see
    `Driver.gate`), and this thread, a daemon, is left behind.

    Functions that the run calls there see the context variables of who started it.

    ``await handle`` gives the RunResult, and raises what `result` raises, in any event loop, for
    any number of tasks, also when the run is over. A task that is cancelled meanwhile only waits no
    longer: the run may be awaited by others, and has a `stop` and a `kill` of its own. (`arun` is
    the run that ends with its task.)
    """

    def __init__(self, driver: Driver, run: Callable[[], RunResult] | None = None) -> None:
        self._driver = driver
        self._over = Latch()
        self._result: RunResult | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()  # guards the next one
        self._relief: dict[str, LoneThread] = {}
        self._threads: list[KnownThread] = []  # of which the last one has the run
        self._waiters: set[Callable[[], None]] = set()
        self._context = contextvars.copy_context()
        _RUNNING.add(self)
        try:
            self._start(run or driver.run)
        except BaseException:  # Ctrl-C: the thread may have begun, and nobody gets the handle
            driver.kill()
            raise

    def _start(self, run: Callable[[], RunResult]) -> None:
        carry = self._context.copy().run  # a thread that is left behind is in its copy for ever
        thread = KnownThread(functools.partial(carry, self._carry, run), "forkmill-run")
        self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had
            self._threads.remove(thread)
            raise

    def _carry(self, run: Callable[[], RunResult]) -> None:
        try:
            self._result = run()
        except Left:
            return  # somebody else has the run
        except BaseException as error:
            self._error = error
        _RUNNING.discard(self)
        self._over.set()
        self._tell_all()

    def _tell(self, waiter: Callable[[], None]) -> None:
        """Call a waiter when the run is over, once: in the thread that ends it, or here and now."""
        self._waiters.add(waiter)
        if self._over.is_set():  # looked at after that: one of us finds it
            self._tell_all()

    def _forget(self, waiter: Callable[[], None]) -> None:
        """Do not call it any more; nothing if it has been called."""
        self._waiters.discard(waiter)

    def _tell_all(self) -> None:
        while self._waiters:
            try:
                waiter = self._waiters.pop()
            except KeyError:  # somebody else does it
                return
            waiter()

    def _relieve(self, relief: Callable[[], None]) -> None:
        """Have a thread see to it that the run does not stay in the user's code; once."""
        with self._lock:
            if self._over.is_set():
                return
            name = relief.__name__
            thread = self._relief.get(name)
            if thread is None:
                thread = self._relief[name] = LoneThread(relief, "forkmill-end")
            with contextlib.suppress(RuntimeError):  # the interpreter ends: see `_at_exit`
                thread.start()

    def _relieve_stopped(self) -> None:
        if not self._over.wait(PATIENCE) and self._driver.held_by_source():
            self._hand_on()

    def _relieve_killed(self) -> None:
        if self._over.wait(RELIEF) or not self._driver.held_by_anything():
            return
        self._hand_on()
        pause = AGAIN
        while not self._over.wait(pause):
            pause *= 2
            if self._driver.held_at_end():
                self._hand_on()
                pause = AGAIN

    def _hand_on(self) -> None:
        try:
            self._start(self._driver.carry_on)
        except RuntimeError:  # no thread can be had
            self._carry(self._driver.carry_on)

    def done(self) -> bool:
        """Whether it is over."""
        return self._over.is_set()

    def stop(self) -> None:
        """Sources stop; what is in flight is finished. Does not wait. Idempotent.

        A source that blocks is left behind after a second. A stage that blocks is waited for.
        Loops by fm.to and retries come to their end.
        """
        self._driver.stop()
        self._relieve(self._relieve_stopped)

    def kill(self) -> None:
        """Stop everything now; what is in flight is dropped. Does not wait. Idempotent.

        All is over within a second. Calls that block in threads are left behind
        (`RunResult.left_behind`).
        """
        self._driver.kill()
        self._relieve(self._relieve_killed)

    def stats(self) -> RunStats:
        """The figures so far."""
        return self._driver.snapshot()

    def attach(self, sink: Callable[[dict[str, Any]], object]) -> None:
        """Have a sink called with every event from now on."""
        self._driver.attach(sink)

    def detach(self, sink: Callable[[dict[str, Any]], object]) -> None:
        """No longer call a sink."""
        self._driver.events.detach(sink)

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for the end.

        Args:
            timeout: Seconds; None: as long as it takes.

        Raises:
            TimeoutError: It is not over; it goes on.
            Exception: What `run` would have raised.
            KeyboardInterrupt: Ctrl-C: the run was stopped, and is over; a second one killed it.
        """
        interrupt: KeyboardInterrupt | None = None
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._over.is_set():
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self._over.wait(left) and interrupt is None:
                    raise TimeoutError("the run is not over within the timeout; it goes on")
            except KeyboardInterrupt as error:
                (self.stop if interrupt is None else self.kill)()
                interrupt, deadline = error, None
        for thread in tuple(self._relief.values()):
            thread.join()
        self._threads[-1].join()  # read after those that may add one
        if interrupt is not None:
            raise interrupt
        return self._outcome()

    def _outcome(self) -> RunResult:
        """What it came to, when it is over."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self
        assert self._result is not None
        return self._result

    def __await__(self) -> Generator[Any, None, RunResult]:
        from .aio import awaited  # which needs asyncio: it takes long to import

        return awaited(self).__await__()


# Those whose run goes on, for the exit hook.
_RUNNING: weakref.WeakSet[Handle] = weakref.WeakSet()


def _at_exit() -> None:
    """What runs still, in daemons, is killed: else the contexts would wait for its calls, and a
    thread that is blocked may be in one of them."""
    for handle in tuple(_RUNNING):
        handle._driver.kill()
    for handle in tuple(_RUNNING):
        handle._relieve_killed()


before_exit(_at_exit)
os.register_at_fork(after_in_child=_RUNNING.clear)


class Stream:
    """The outputs of a run, one by one; the run goes on while they are asked for.

    Attributes:
        result: The run's RunResult, when it is over.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver: Driver | None = driver
        self._busy = False
        self.result: RunResult | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._busy:
            raise ValueError("stream already executing")
        driver = self._driver
        if driver is None:
            raise StopIteration
        self._busy = True
        try:
            found = driver.next_output()
            if found:
                return found[0]
            self.result = driver.finish()
            self._driver = None
        except BaseException as error:
            driver.give_up(error)
            self._driver = None
            self.result = self.result or getattr(error, "run_result", None)
            if isinstance(error, StopIteration):  # it would look like the end
                raise disguised(error) from error
            raise
        finally:
            self._busy = False
        raise StopIteration

    def close(self) -> None:
        """Stop the run now. Idempotent."""
        driver = self._driver
        if driver is None:
            return
        try:
            self.result = driver.abandon()
        finally:
            if driver.over:  # else it was broken off, and can be done again
                self._driver = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and getattr(self, "_driver", None) is not None:
            self.close()

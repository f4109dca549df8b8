"""The ways to wait for a run: its handle, in a thread of its own, and the stream of its outputs.

Threads: a `Handle` may be used from any thread; a `Stream` by one at a time, but closed from any.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from .._late import WeakSet, unbroken
from .._offers import offered
from .._process import (
    KnownThread,
    Latch,
    LoneThread,
    before_exit,
)
from .ending import Ending
from .result import disguised

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Generator, Iterator

    from .result import RunResult
    from .stats import RunStats

__all__ = [
    "GRACE",
    "PATIENCE",
    "Driven",
    "Handle",
    "Left",
    "Pulled",
    "Stream",
]

PATIENCE = 1.0  # seconds, from `stop` to where a source that blocks is left behind
GRACE = 0.4  # seconds, from `kill` to where any call that cannot be ended is
RELIEF = 0.8  # seconds, from `kill` to where the thread of the run is left behind
AGAIN = 0.03  # and from there to where one that ends it is, if a hook or a teardown holds it too


class Left(BaseException):
    """The run has gone on without this thread."""


class Driven(Protocol):
    """A run, as those know it who wait for it: what drives some shape of work."""

    bell: Any
    events: Any

    @property
    def over(self) -> bool:
        """Whether everything is released, and the result is made."""

    def run(self) -> RunResult:
        """Run to the end."""

    def serve(self, offer: Callable[[deque[Any]], bool]) -> RunResult:
        """Run to the end, for somebody elsewhere who takes the outputs one by one."""

    def abandon(self) -> RunResult:
        """End now, without a word about what was under way."""

    def stop(self) -> None:
        """Sources stop; the rest is finished. Any thread."""

    def kill(self) -> None:
        """Everything stops. Any thread."""

    def snapshot(self) -> RunStats:
        """The figures so far. Any thread."""

    def attach(self, sink: Any) -> None:
        """Somebody listens from now on. Any thread."""

    def held_by_source(self) -> bool:
        """Whether a source's code holds the thread of the run; if so the caller has it now."""

    def held_by_anything(self) -> bool:
        """After `kill`: whether the run is not over; if so the caller has it now."""

    def held_at_end(self) -> bool:
        """Whether a hook or a teardown holds who ends a killed run; if so the caller has it."""

    def carry_on(self) -> RunResult:
        """Run to the end, from where another thread was left."""


class Pulled(Driven, Protocol):
    """A run that somebody's own thread carries on, output by output."""

    thread: int  # which one that is

    def reserve(self) -> None:
        """From now on it is the caller's to begin to work on it, in this thread: Left elsewhere."""

    def next_outputs(self) -> Iterator[Any] | None:
        """Some outputs, each made when it is asked for; maybe none. None when the run is over."""

    def finish(self) -> RunResult:
        """Release everything; the result."""

    def give_up(self, error: BaseException) -> None:
        """End now: `error` goes past everything in its caller's thread."""


class Handle(Ending):
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

    def __init__(self, driver: Driven, run: Callable[[], RunResult] | None = None) -> None:
        super().__init__()
        self._driver = driver
        self._lock = threading.Lock()  # guards the next one
        self._relief: dict[str, LoneThread] = {}
        self._threads: list[KnownThread] = []  # of which the last one has the run
        self._context = contextvars.copy_context()
        driver.events.driven = self
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

    def top(self) -> None:
        """Show a dashboard on this terminal, and wait until it is closed; the run goes on.

        It takes ``pip install 'forkmill[top]'``. Other runs of this process are in it, too; unless
        `fm.serve_top` has said otherwise they can be stopped and killed from there.

        Raises:
            RuntimeError: textual is not installed, or there is no terminal.
            OSError: There is no folder for the socket that it looks through.
        """
        offered("top_of")(self)

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

    def __repr__(self) -> str:
        if not self._over.is_set():
            return "<Handle: the run goes on>"
        end = self._result if self._error is None else f"raised {type(self._error).__name__}"
        return f"<Handle: {end!r:.150}>" if self._error is None else f"<Handle: {end}>"

    def __await__(self) -> Generator[Any, None, RunResult]:
        from .awaiting import awaited  # which needs asyncio: it takes long to import

        return awaited(self).__await__()


# Those whose run goes on, for the exit hook.
_RUNNING: WeakSet[Handle] = WeakSet()


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

    def __init__(self, driver: Pulled) -> None:
        self._driver: Pulled | None = driver
        self._some: Iterator[Any] = iter(())
        self._busy = False
        self._closed = 0  # while somebody may read it: by what thread
        self._gone = Latch()  # then: who reads has come back
        self._closing = threading.RLock()  # one at a time
        self.result: RunResult | None = None

    def __iter__(self) -> Iterator[Any]:
        """The same outputs, for a loop. It may end before them; `next` or another loop goes on."""
        while True:
            try:
                output = next(self)
            except StopIteration:
                return
            yield output
            some = self._some
            try:
                yield from some
            except GeneratorExit:  # the loop's end, and not the stream's
                raise
            except Left:
                return
            except BaseException as error:
                self._end_by(error)
                raise

    def __next__(self) -> Any:
        if self._executing():
            raise ValueError("stream already executing")
        self._busy = True
        try:
            for output in self._some:
                return output
            return self._more()
        except Left:  # who closed it has the run now
            raise StopIteration from None
        except BaseException as error:
            self._end_by(error)
            raise
        finally:
            self._busy = False
            if self._closed:
                self._gone.set()

    def _more(self) -> Any:
        """The first of what comes next.

        Raises:
            StopIteration: The run is over.
        """
        driver = self._driver
        while driver is not None:
            if self._closed == threading.get_ident():
                self.result = driver.abandon()
                self._driver = driver = None
                break
            some = driver.next_outputs()
            if some is None:
                self.result = driver.finish()
                self._driver = driver = None
                break
            self._some = some
            for output in some:
                return output
        raise StopIteration

    def _end_by(self, error: BaseException) -> None:
        driver = self._driver
        if driver is None:
            return
        driver.give_up(error)
        self._driver = None
        self.result = self.result or getattr(error, "run_result", None)
        if isinstance(error, StopIteration):  # it would look like the end
            raise disguised(error) from error

    def close(self) -> None:
        """Stop the run now. Idempotent. Any thread: who waits for an output finds the stream at its
        end. In a call of the run's own, or a signal handler, it ends when that has come back.
        """
        with self._closing:
            self._close()

    def _close(self) -> None:
        driver = self._driver
        if driver is None:
            return
        me = threading.get_ident()
        if driver.thread != me or self._executing():
            self._closed = me  # 1.
            driver.reserve()  # so nobody begins to read any more; who has begun comes back:
            driver.kill()
            if driver.thread == me:
                return
            if self._executing():  # 2., so who reads and has not seen 1. is seen
                self._gone.wait(RELIEF)
            if self._driver is None or not driver.held_by_anything():
                return
        try:
            self.result = driver.abandon()
        finally:
            if driver.over:  # else it was broken off, and can be done again
                self._driver = None

    def _executing(self) -> bool:
        """Whether somebody waits for an output."""
        return self._busy or bool(getattr(self._some, "gi_running", False))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @unbroken
    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and getattr(self, "_driver", None) is not None:
            self.close()

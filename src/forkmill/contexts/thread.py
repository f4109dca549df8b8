"""thread: up to n threads of this process, made as they are needed.

Guarantees:
    * Never more than n calls at once; with `idle_time`, threads that have nothing to do end.
    * A clean interpreter exit finishes accepted calls. After an unhandled exception it does not
      wait for them: a thread cannot be stopped.
    * A thread whose call was left behind is none of ours any more: nobody waits for it, another
      one may be made in its place, and it ends with its call.

Invariants:
    * THREAD-1  `Threads` never refers to its executor: when that is dropped, what was accepted is
      finished, and the threads end by themselves.
    * THREAD-2  1. a call is put into the backlog; 2. whether a thread is missing is decided under
      `lock`. A thread that wants to leave does it the other way round: so one of them sees the
      other.
    * THREAD-3  Who accepts a call may be broken off anywhere by what a signal handler raises. A
      thread is in `alive` before it is started, and who finds one that has not begun starts it.
    * THREAD-4  A call that was taken and has not started belongs to neither the backlog nor `at`. A
      thread 1. writes it into `at`, 2. looks at `cut`; who cancels what has not started 1. writes
      `cut`, 2. looks at both. So it is given up, or seen.
    * THREAD-5  A thread has a place, 0 to `most` - 1, as long as it is in `alive`, and no two have
      the same. What waits for a certain place is seen by a thread there, as in THREAD-2.
"""

from __future__ import annotations

import itertools
import os
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import _checks, errors
from .._late import finalize
from .._process import (
    DAEMON,
    KnownThread,
    Latch,
    end_first,
    exit_failed,
)
from .base import (
    INSIDE,
    Backlog,
    Call,
    Executor,
    Ledger,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .lanes.lane import Lane, Work

__all__ = ["Thread", "Threads"]

_BIRTH_S = 0.05  # for an initializer, where calls that run have had their time
_LOOK_S = 0.05  # between two looks at whether a thread that ends has found one more call

_ALIVE: set[Threads] = set()  # for the exit hook; strong, as the threads themselves are


class Threads:
    """The threads of one executor, and what they work off."""

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        most: int,
        least: int = 0,
        idle_time: float | None = None,
        prepare: Callable[[int], object] | None = None,
        what: str = "a thread",
        after: Callable[[], object] | None = None,
    ) -> None:
        self.name = name
        self.what = what  # where an initializer runs, for messages
        self.after = after  # called in a thread that ends; the interpreter waits for it at its end
        self.pid = os.getpid()
        self.ledger = ledger
        self.most = most
        self.least = least
        self.idle_time = idle_time
        self.prepare = prepare  # called in a new thread with its place
        self.backlog = Backlog()
        self.lock = threading.Lock()  # guards the rest
        self.alive: set[KnownThread] = set()  # when closed, also those that have ended
        self.places: dict[KnownThread, int] = {}  # of those that are alive
        self.at: dict[KnownThread, Any] = {}  # the future of its call
        self.cut = False  # what has not started is cancelled
        self.going: set[KnownThread] = set()  # those of ours that have not ended
        self.left: set[KnownThread] = set()
        self.births: dict[KnownThread, Latch] = {}  # in `prepare`, and its end
        self.numbers = itertools.count()
        self.broken: BaseException | None = None

    def open(self) -> None:
        """Have the threads that are there also when nothing waits."""
        while len(self.alive) < self.least:
            self._grow()

    def check(self) -> None:
        if self.broken is not None:
            raise self.broken_error(self.broken)
        if self.backlog.closed:
            raise errors.PoolClosed(
                "cannot schedule new futures after shutdown: this executor takes no more work"
            )

    def accept(self, call: Call, place: int | None = None) -> None:
        self.check()
        if self.backlog.put(call, place):
            try:
                self._grow(place)
            except RuntimeError:
                if place is not None:
                    self.backlog.withdraw(call, place)
                raise

    def hire(self, count: int) -> None:
        """Have so many threads now, as far as `most` and the system allow; one at least."""
        for _ in range(min(count, self.most) - len(self.alive)):
            self._grow()

    def _grow(self, place: int | None = None) -> None:
        """One more thread, if there may be one; at a certain place, if there is none."""
        with self.lock:
            thread = self._to_start(place)
            if thread is None:
                return
            _ALIVE.add(self)
            try:
                thread.start()
            except RuntimeError:
                self._forget({thread})
                if self.alive:
                    if place is not None:
                        raise
                    return  # the others will do it
                self.backlog.cancel_all()
                raise
        self.ledger.born()

    def _to_start(self, place: int | None) -> KnownThread | None:
        """Under the lock: one that has not begun (THREAD-3), or a new one; None: it is there."""
        for thread, where in self.places.items():
            if place is None or place == where:
                if not thread.begun:
                    return thread
                if place is not None:
                    return None
        if len(self.alive) >= self.most:
            return None
        if place is None:
            taken = self.places.values()
            place = next(where for where in range(self.most) if where not in taken)
        return self._made(place)

    def _made(self, place: int) -> KnownThread:
        """One more thread, which is to be started (THREAD-3)."""
        name = f"{self.name}-{next(self.numbers)}"
        thread = KnownThread(lambda: self._run(thread, place), name, daemon=DAEMON)
        self.going.add(thread)
        self.alive.add(thread)
        self.places[thread] = place
        return thread

    def _forget(self, threads: set[KnownThread]) -> None:
        """Under the lock: these are ours no more."""
        self.alive -= threads
        self.going -= threads
        for thread in threads:
            self.places.pop(thread, None)

    def _run(self, me: KnownThread, place: int) -> None:
        INSIDE.calls, INSIDE.serves = 1, True  # it does nothing else
        try:
            if self.prepare is None or self._prepared(me, place):
                while self._turn(me, place):
                    pass
        finally:
            try:
                if self.after is not None:
                    self.after()
            finally:
                self._ended(me)

    def _ended(self, me: KnownThread) -> None:
        """This thread runs nothing more."""
        with self.lock:
            self.at.pop(me, None)
            self.left.discard(me)
            self.going.discard(me)
            if not self.backlog.closed:
                self.alive.discard(me)
                self.places.pop(me, None)
            over = self._is_over()
        if over:
            self._end()

    def _is_over(self) -> bool:
        """Under the lock: whether it is closed, and no thread of ours is left."""
        return self.backlog.closed and not any(thread.begun for thread in self.going)

    def _turn(self, me: KnownThread, place: int) -> bool:
        """Run one call; False: the thread shall end. Nothing of it is kept while waiting."""
        call = self.backlog.take(self.idle_time, place)
        if call is None:
            return not self._leaves(me, place)
        self.at[me] = call.future
        try:
            if self.cut:  # THREAD-4
                call.give_up()
            else:
                call.run()
        except BaseException as error:  # what was asked whether it is tried again
            call.fail(error)
        self.at[me] = None
        # An exception's traceback has this frame too, as the one that called: a cycle else.
        del call
        return not self.left or me not in self.left

    def _leaves(self, me: KnownThread, place: int) -> bool:
        with self.lock:
            if self.backlog.waits(place):
                return False
            if self.backlog.closed:
                return True
            if len(self.alive) <= self.least:
                return False
            self.alive.discard(me)
            self.places.pop(me, None)
            return True

    def _prepared(self, me: KnownThread, place: int) -> bool:
        assert self.prepare is not None
        try:
            self.births[me] = Latch()
            try:
                self.prepare(place)
            finally:
                self.births.pop(me).set()
        except BaseException as error:
            if me not in self.left:
                self.fail_all(error)
            return False
        return me not in self.left

    def fail_all(self, error: BaseException) -> None:
        """The initializer has failed: so does every call from now on."""
        self.broken = error
        self.backlog.close()
        for call in self.backlog.clear():
            if call.start():
                call.fail(self.broken_error(error))

    def broken_error(self, error: BaseException) -> BaseException:
        failure = errors.InitError(
            f"the initializer failed in {self.what}: {type(error).__name__}: {error}", [error]
        )
        failure.__cause__ = error
        return failure

    # ------------------------------------------------------------------ the end

    def close(self, *, cancel: bool = False) -> None:
        """Accept nothing more; the threads end when nothing waits."""
        if self.pid != os.getpid():
            return  # the threads are the parent's, and its locks may be taken for good
        self.backlog.close()
        if cancel:
            self.cut = True  # THREAD-4
            self.backlog.cancel_all()
        with self.lock:
            over = self._is_over()
        if over:
            self._end()

    def _end(self) -> None:
        """Closed, and no thread is left."""
        _ALIVE.discard(self)  # not before: the exit hook waits for those that it finds there

    def leave(self, futures: Iterable[Any]) -> None:
        """Threads that run these calls are ours no more."""
        late = set(map(id, futures))
        with self.lock:
            gone = {thread for thread in self.alive if id(self.at.get(thread)) in late}
            self.left |= gone
            self._forget(gone)
            over = self._is_over()
        if over:
            self._end()
        else:  # who waits must not wait for them
            for place in self.backlog.places():
                self._grow(place)
            self.hire(len(self.alive) + len(self.backlog))

    def leave_births(self) -> int:
        """Once closed: threads whose initializer does not come back are ours no more."""
        deadline = monotonic() + _BIRTH_S
        for birth in tuple(self.births.values()):
            birth.wait(max(0.0, deadline - monotonic()))
        with self.lock:
            late = self.alive.intersection(self.births)
            self.left |= late
            self._forget(late)
            over = self._is_over()
        if over:
            self._end()
        return len(late)

    def join(self) -> None:
        """Wait for all threads but this one."""
        for thread in tuple(self.alive):
            if not thread.here:
                thread.join()

    def join_idle(self) -> None:
        """Closed: wait for the threads that run no call."""
        for thread in tuple(self.alive):
            while self.at.get(thread) is None and not thread.join(_LOOK_S):
                pass


class Thread(Executor):
    """Runs calls in up to n threads.

    Args:
        max_workers: How many threads, at most; None: the CPUs plus four, at most 32.
        min_workers: How many there are even when nothing waits; they are made at once.
        idle_time: Seconds after which a thread that has nothing to do ends; None: it stays.
        initializer: Called in every thread before its first call. If it fails, the executor is
            broken (InitError).
        initargs: Its arguments, a tuple.
        pin: Keep each thread on one CPU (Linux).
        name: What the threads are called.

    Raises:
        TypeError, ValueError: A wrong option; says what is allowed.
    """

    type = "thread"

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        min_workers: int | None = None,
        idle_time: float | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        pin: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(max_workers, name=name)
        if max_workers is None:
            self.width = min(32, self.width + 4)  # they wait for others more than they compute
            self.window = 2 * self.width
        least = 0 if min_workers is None else _checks.integer("min_workers", min_workers, least=0)
        if least > self.width:
            raise ValueError(f"min_workers must be at most max_workers, not {least}")
        patience = None if idle_time is None else _checks.seconds("idle_time", idle_time)
        _checks.initializer(initializer, initargs)
        if pin:
            check_pin()
        prepare = None
        if initializer is not None or pin:

            def prepare(place: int) -> None:
                if pin:
                    pin_thread(place)
                if initializer is not None:
                    initializer(*initargs)

        self._threads = Threads(self.name, self.ledger, self.width, least, patience, prepare)
        finalize(self, self._threads.close).atexit = False
        self._threads.open()

    def _accept(self, call: Call) -> None:
        self._threads.accept(call)

    def _check_open(self) -> None:
        self._check_process()
        self._threads.check()

    def _waiting(self) -> int:
        return len(self._threads.backlog)

    def lane(self, work: Work, notify: Callable[[], None] | None = None) -> Lane:
        from .lanes.threads import ThreadLane

        return ThreadLane(self, work, notify)

    def leave(self, futures: Iterable[Any]) -> None:
        self._threads.leave(futures)

    def leave_births(self) -> int:
        return self._threads.leave_births()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more, finish what was accepted, end the threads. Idempotent.

        Args:
            wait: Return when everything is over; else at once.
            cancel_futures: Cancel accepted calls that have not started.
        """
        if self._pid != os.getpid():
            return  # the threads are the parent's
        self._take_in(cancel_futures)
        self._threads.close(cancel=cancel_futures)
        if wait:
            self._threads.join()


def check_pin() -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("pin=True: this platform cannot keep a thread on one CPU, Linux can")


def pin_thread(number: int) -> None:
    """Keep the calling thread on one of the CPUs that it may use."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[number % len(allowed)]})


# ---------------------------------------------------------------------- at exit


def _at_exit() -> None:
    end_first()
    alive = tuple(_ALIVE)
    if not alive:  # each worker comes by here
        return
    failed = exit_failed()
    for threads in alive:
        threads.close(cancel=failed)
    if failed:
        for threads in alive:
            if threads.after is not None:
                threads.join_idle()
        return
    try:
        for threads in alive:
            threads.join()
    except KeyboardInterrupt:
        for threads in alive:
            threads.close(cancel=True)


# concurrent.futures uses the same hook, for the same reason: atexit runs after non-daemon threads
# were joined, and they may wait for our calls.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_ALIVE.clear)  # they are the parent's

"""A ContextPool loses no place, whatever exception comes at whatever moment."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import forkmill as fm
import tasks
from conftest import RunScript
from forkmill import testing
from forkmill.contexts import context, context_pool

OURS = {context_pool.__file__, context.__file__}


class Interrupt(BaseException):
    """What a signal handler raises."""


def interrupted_at(moment: int, job: Callable[[], object]) -> bool:
    """Run a job; raise in it where the interpreter would run a signal handler for the n-th time.

    Those are the begin of a Python function and the return from a C function.

    Returns:
        Whether it came so far.
    """
    seen = 0

    def look(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal seen
        if event not in ("call", "c_return") or frame.f_code.co_filename not in OURS:
            return
        seen += 1
        if seen == moment:
            sys.setprofile(None)
            raise Interrupt

    sys.setprofile(look)
    try:
        job()
    except Interrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def moments(job: Callable[[], Callable[[], object]]) -> Iterator[int]:
    """Interrupt fresh jobs at every moment, one after the other; yields after each."""
    for moment in range(1, 1000):
        if not interrupted_at(moment, job()):
            assert moment > 5, "the job was hardly looked at"
            return
        yield moment
    raise AssertionError("the job has no end")


def check(pool: fm.ContextPool, out: int = 0) -> None:
    """All places but those that are out can be had."""
    assert (pool.active, pool.available) == (out, pool.capacity - out)
    contexts = [pool.acquire(timeout=5) for _ in range(pool.capacity - out)]
    with pytest.raises(TimeoutError):
        pool.acquire(timeout=0)
    for one in contexts:
        assert one.execute(testing.square, 3).join(30) == 9
        pool.release(one)
    assert (pool.active, pool.available, pool.metrics().waiting) == (out, pool.capacity - out, 0)


@pytest.mark.parametrize("kind", ["inline", "thread"])
@pytest.mark.parametrize("timeout", [None, 0, 5])
def test_an_interrupt_in_acquire_loses_no_place(kind: str, timeout: float | None) -> None:
    with fm.ContextPool(kind, max_size=2) as pool:
        for _ in moments(lambda: lambda: pool.acquire("a", timeout)):
            check(pool)
        pool.release(pool._out()[0])  # the one that was not interrupted
        check(pool)


@pytest.mark.parametrize("kind", ["inline", "thread"])
def test_an_interrupt_in_release_loses_no_place_and_wakes_who_waits(kind: str) -> None:
    """Or the context is still out, and can be given back."""
    with fm.ContextPool(kind, max_size=1) as pool:

        def job() -> Callable[[], object]:
            lent.append(pool.acquire(timeout=5))
            waiter = threading.Thread(target=borrow)
            waiter.start()
            waiters.append(waiter)
            tasks.eventually(lambda: pool.metrics().waiting == 1)
            return lambda: pool.release(lent[-1])

        def borrow() -> None:
            pool.release(pool.acquire(timeout=20))

        lent: list[fm.Context] = []
        waiters: list[threading.Thread] = []
        for _ in moments(job):
            if lent[-1] in pool._out():
                pool.release(lent[-1])
            waiters[-1].join(20)
            assert not waiters[-1].is_alive()
            check(pool)
        waiters[-1].join(20)
        check(pool)


def test_an_interrupt_in_join_all_leaves_every_outcome_to_be_joined() -> None:
    with fm.ContextPool("inline", max_size=2) as pool:
        lent = [pool.acquire(), pool.acquire()]
        for one in lent:
            one.execute(testing.square, 3)
        for _ in moments(lambda: pool.join_all):
            # What join took from the first was delivered or is there.
            for one in lent:
                if one._future is None:
                    one.execute(testing.square, 3)
                assert one._future.result() == 9
        for one in lent:
            pool.release(one)
        check(pool)


def test_an_interrupted_join_can_be_repeated() -> None:
    with fm.create_context("thread") as one:
        taken = []

        def join() -> None:
            taken.append(one.join(20))

        one.execute(testing.square, 4)
        for moment in range(1, 200):
            if not interrupted_at(moment, join):
                break
            if one._future is None:  # it came in the last moment, out of join itself
                one.execute(testing.square, 4)
        assert taken[-1] == 16


@contextlib.contextmanager
def signalled(after: float, handler: Callable[..., object]) -> Iterator[None]:
    """A signal comes to this thread, a little later. (SIGALRM is the test's own time limit.)"""
    old = signal.signal(signal.SIGUSR2, handler)
    timer = threading.Timer(after, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR2))
    timer.start()
    try:
        yield
    finally:
        timer.join()
        signal.signal(signal.SIGUSR2, old)


def interrupt(*_: object) -> None:
    raise Interrupt


def test_an_interrupt_while_closing_a_context_that_works_loses_no_place() -> None:
    release = threading.Event()
    with fm.ContextPool("thread", max_size=1) as pool:
        held = pool.acquire()
        held.execute(release.wait, 20)
        with signalled(0.1, interrupt), pytest.raises(Interrupt):
            pool.release(held)  # waits for its call
        release.set()
        check(pool)


@pytest.mark.parametrize("kind", ["inline", "thread", "cow_fork"])
@pytest.mark.parametrize("timeout", [None, 20])
def test_a_place_that_is_given_and_interrupted_at_once_is_not_lost(
    kind: str, timeout: float | None
) -> None:
    """The handler gives back what the interrupted waiter waits for, and raises."""
    with fm.ContextPool(kind, max_size=1) as pool:
        held = pool.acquire("a")

        def handler(*_: object) -> None:
            giver = threading.Thread(target=pool.release, args=(held,))
            giver.start()
            giver.join()
            raise Interrupt

        with signalled(0.1, handler), pytest.raises(Interrupt):
            pool.acquire("b", timeout)
        check(pool)


def test_a_handler_may_give_back_in_the_very_thread_that_waits() -> None:
    with fm.ContextPool("inline", max_size=1) as pool:
        held = pool.acquire()
        with signalled(0.1, lambda *_: pool.release(held)):
            pool.release(pool.acquire(timeout=20))
        check(pool)


def test_a_storm_of_interrupts_loses_no_place(run_script: RunScript) -> None:
    run_script(STORM)


STORM = """
    import signal, sys, time
    import forkmill as fm

    class Interrupt(BaseException):
        pass

    def handler(*_):
        if armed:
            raise Interrupt

    armed = False
    came = 0
    signal.signal(signal.SIGALRM, handler)
    pool = fm.ContextPool("inline", max_size=3)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (came % 97 + 1), 60e-6)
            while True:
                pool.release(pool.acquire(timeout=0.01))
        except Interrupt:
            armed = False
            came += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one in pool._out():  # who acquired is who must release
            pool.release(one)
        assert (pool.active, pool.available) == (0, 3), (came, pool.active, pool.available)
    assert came > 100, came
    held = [pool.acquire(timeout=1) for _ in range(3)]
"""


@pytest.mark.parametrize("closed", [False, True])
def test_order_and_timeouts_are_as_before(closed: bool) -> None:
    pool = fm.ContextPool("inline", max_size=1)
    held = pool.acquire()
    for timeout in (0, -1, 0.01):
        with pytest.raises(TimeoutError, match="all 1 are out"):
            pool.acquire(timeout=timeout)
    if closed:
        pool.close()
        with pytest.raises(fm.PoolClosed):
            pool.acquire(timeout=0.01)
    pool.release(held)
    with pytest.raises(ValueError, match="is not out"):
        pool.release(held)
    assert (pool.active, pool.available) == (0, 1)

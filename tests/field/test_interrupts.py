"""What a signal handler raises in the caller's thread leaves nothing locked and nobody lost.

An alarm as a timeout, a supervisor's signal, Ctrl-C: the handler's exception comes out of whatever
the main thread does just then, in our code between any two steps. A run, a stream, a handle, an
executor, a lane or a context can be closed afterwards, nothing waits for ever, and no process,
thread or descriptor is left. `tests/interrupts.py` finds the places and interrupts each.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable

import pytest

import tasks
from conftest import RunScript
from forkmill._process import Change, KnownThread, Latch, LoneThread
from forkmill.contexts import base as contexts_base
from interrupts import SCENARIOS

SWEEP = """
    import sys
    import interrupts

    sys.exit(min(1, sum(interrupts.sweep(name, {step}, {first}) for name in {names!r})))
"""
SHARES_A_SCRIPT = (
    ("run-inline", "run-thread:2", "clock", "subscribed", "stream-thread:2"),
    ("stop-thread:2", "kill-inline", "executor-thread:2", "executor-async:2", "lane-thread:2"),
    ("executor-cow_fork:2", "lane-cow_fork:2-stream", "contexts-cow_fork"),
    ("graph-map-thread:2", "graph-imap-async:2", "graph-run-inline", "graph-map-of-one"),
)


@pytest.mark.parametrize("names", SHARES_A_SCRIPT, ids=lambda names: names[0])
def test_an_interrupt_at_some_places(run_script: RunScript, names: tuple[str, ...]) -> None:
    run_script(SWEEP.format(step=97, first=41, names=names), timeout=50)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupt_at_every_place(run_script: RunScript, name: str) -> None:
    run_script(SWEEP.format(step=1, first=0, names=(name,)), timeout=1700)


def test_scenarios_have_nothing_to_warn_of(run_script: RunScript) -> None:
    """Under `python -X dev -W error`."""
    script = run_script(
        """
        import interrupts

        for scenario in interrupts.SCENARIOS.values():
            box = {}
            scenario.act(box)
            scenario.settle(box)
        """,
        flags=("-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning"),
    )
    assert script.stderr == ""


# ------------------------------------------------------------------ what it is made with


@pytest.mark.parametrize("kind", [LoneThread, KnownThread])
def test_a_thread_runs_its_job_once_however_often_it_is_started(
    kind: Callable[..., LoneThread],
) -> None:
    runs: list[str] = []
    thread = kind(lambda: runs.append(threading.current_thread().name), "once")
    assert thread.join(0) is True  # it was not to begin
    for _ in range(5):
        thread._begun = False  # as one finds it whose start was broken off
        thread.start()
    assert thread.join(10) is True
    assert runs == ["once"]
    assert not thread.alive


def test_a_start_that_was_broken_off_is_made_good_by_who_waits() -> None:
    runs: list[int] = []
    thread = LoneThread(lambda: runs.append(1), "late")
    thread._asked = True  # it was interrupted before there was a thread
    assert thread.join(10) is True
    assert runs == [1]


def test_a_thread_with_users_code_is_one_of_threading() -> None:
    found: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
    thread = KnownThread(lambda: found.put(threading.current_thread()), "known")
    thread.start()
    known = found.get(timeout=10)
    assert type(known) is threading.Thread
    assert known.name == "known"
    assert thread.join(10) is True
    assert not known.is_alive()


def test_a_latch_lets_all_go_whoever_was_broken_off_with_its_lock() -> None:
    latch = Latch()
    assert latch.wait(0) is False
    assert latch.wait(0.001) is False
    waiters = [LoneThread(latch.wait, f"waiter-{i}") for i in range(3)]
    for waiter in waiters:
        waiter.start()
    latch.set()
    latch.set()
    assert latch.wait() is True
    assert all(waiter.join(10) for waiter in waiters)


def test_a_change_wakes_as_many_as_it_is_told_to() -> None:
    lock = threading.Lock()
    change = Change(lock)
    woken: queue.SimpleQueue[None] = queue.SimpleQueue()

    def wait() -> None:
        with lock:
            change.expect()
        change.wait()
        woken.put(None)

    waiters = [LoneThread(wait, f"waiter-{i}") for i in range(3)]
    for waiter in waiters:
        waiter.start()
    tasks.eventually(lambda: change.idle == 3)
    with lock:
        change.tell(1)
    woken.get(timeout=10)
    assert woken.empty()
    with lock:
        change.tell()
    assert all(waiter.join(10) for waiter in waiters)
    assert change.idle == 0
    with lock:
        change.tell()  # nobody waits: no token is left
        change.expect()
    change.wait(0.001)
    assert change.idle == 0


@pytest.mark.parametrize("late", [True, False], ids=["at once", "when it ends"])
def test_what_a_handler_raises_in_a_callback_comes_out_and_the_rest_are_called(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Alarm(Exception):
        pass

    def handler(*_: object) -> None:
        raise Alarm

    def loud(future: object) -> None:
        told.append("loud")
        signal.raise_signal(signal.SIGUSR1)

    told: list[str] = []
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        future = contexts_base.Future()
        if late:
            future.set_result(1)
            with pytest.raises(Alarm):
                future.add_done_callback(loud)
            future.add_done_callback(lambda _: told.append("next"))
        else:
            future.add_done_callback(loud)
            future.add_done_callback(lambda _: told.append("next"))
            with pytest.raises(Alarm):
                future.set_result(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert told == ["loud", "next"]
    future.add_done_callback(lambda _: told.append(1 // 0))  # this is logged, as ever
    assert "ZeroDivisionError" in caplog.text and future.result() == 1

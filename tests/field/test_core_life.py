"""The pool's side of its zygote: one that is stopped, slow or dead loses nothing and blames nobody.

And a dropped executor that pins its workers finishes what it was given, also where one of them has
to be replaced.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import pytest

import forkmill as fm
import tasks

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="pins and /proc are Linux's")


def zygote_of(pool: fm.ProcessPool) -> int:
    """Its process id."""
    core = pool._core
    assert core is not None
    return core.native.zygote()[0]


@pytest.fixture(params=tasks.METHODS)
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    """Two workers that are there."""
    with fm.ProcessPool(2, start_method=request.param) as pool:
        pool.submit(abs, 1).result()
        yield pool


def all_run(futures: list[fm.Future]) -> None:
    """Wait until they do."""
    tasks.eventually(lambda: all(future.running() for future in futures))


SOON = 10.0  # seconds, on a busy machine; who waits for a stopped process waits for ever


class Stopped:
    """A process that does nothing for a while."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __enter__(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *exc: object) -> None:
        os.kill(self.pid, signal.SIGCONT)


# ------------------------------------------------------------------ a zygote that is stopped


def test_a_worker_that_dies_meanwhile_has_died_of_what_killed_it(pool: fm.ProcessPool) -> None:
    futures = [pool.submit(time.sleep, 60) for _ in range(2)]
    all_run(futures)
    victim, other = (worker.pid for worker in pool.workers())
    with Stopped(zygote_of(pool)):
        os.kill(victim, signal.SIGKILL)
        # Longer than a worker whose results have ended is waited for.
        wait(futures, timeout=1.5)
        started = time.monotonic()
        queued = pool.submit(abs, -1)
        assert time.monotonic() - started < SOON
    done, rest = wait(futures, return_when=FIRST_COMPLETED)
    error = done.pop().exception()
    assert isinstance(error, fm.WorkerDied)
    assert (error.pid, error.signal, error.cause) == (victim, signal.SIGKILL, "exit")
    assert "malformed" not in str(error)
    assert pool.stats().deaths_by_cause == {"SIGKILL": 1}
    assert queued.result() == 1
    assert rest.pop().kill()
    assert other in {worker.pid for worker in pool.workers()} or pool.stats().killed == 1


@pytest.mark.parametrize("how", ["exit3", "segv"])
def test_so_has_one_that_ends_by_itself(how: str, tmp_path: Path) -> None:
    with tasks.Gate(tmp_path) as gate, fm.ProcessPool(1, start_method="fork") as pool:
        future = pool.submit(die_after, gate.path, how)
        all_run([future])
        with Stopped(zygote_of(pool)):
            gate.open()
            wait([future], timeout=1.5)
        error = future.exception()
        assert isinstance(error, fm.WorkerDied)
        assert error.cause == "exit"
        assert error.exitcode == 3 if how == "exit3" else error.signal == signal.SIGSEGV


def die_after(path: str, how: str) -> None:
    """Wait at a gate, and die."""
    tasks.pass_gate(path)
    tasks.die(how)


def test_tasks_that_time_out_meanwhile_are_ended_afterwards() -> None:
    """So many that the orders do not fit the socket, which is made small for that. The timeout is
    long: all have to run before the first one is over."""
    number = 30
    with fm.ProcessPool(number, start_method="fork") as pool:
        assert pool._core is not None
        futures = [pool.options(timeout=3.0).submit(time.sleep, 60) for _ in range(number)]
        shrink_control_socket(pool)
        all_run(futures)
        with Stopped(zygote_of(pool)):
            tasks.eventually(lambda: sum(w.state == "doomed" for w in pool.workers()) == number)
            started = time.monotonic()
            late = pool.submit(abs, -1)
            assert time.monotonic() - started < SOON
        assert {type(future.exception(20)) for future in futures} == {fm.TaskTimeout}
        assert late.result(20) == 1
        assert pool.stats().deaths_by_cause == {"timeout": number}


def shrink_control_socket(pool: fm.ProcessPool) -> None:
    """Let the socket to the zygote hold a few orders only."""
    shrunk = 0
    for name in os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                    shrunk += 1
    assert shrunk


def test_kill_and_cancel_do_not_wait_for_it(pool: fm.ProcessPool) -> None:
    running = [pool.submit(time.sleep, 60) for _ in range(2)]
    all_run(running)
    waiting = pool.submit(abs, -1)
    with Stopped(zygote_of(pool)):
        started = time.monotonic()
        assert waiting.cancel()
        assert [future.kill() for future in running] == [True, True]
        assert time.monotonic() - started < SOON
    assert {future.exception(20).cause for future in running} == {"killed"}  # type: ignore[union-attr]


# ------------------------------------------------------------------ a zygote that ends


def end_zygote(pool: fm.ProcessPool, number: int) -> fm.errors.PoolBroken:
    """End it while a task runs; the task's outcome."""
    future = pool.submit(time.sleep, 60)
    all_run([future])
    os.kill(zygote_of(pool), number)
    error = future.exception(20)
    assert isinstance(error, fm.errors.PoolBroken)
    return error


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
def test_its_end_is_told_and_no_old_death(pool: fm.ProcessPool, number: int) -> None:
    for how in ("kill", "exit3"):
        assert isinstance(pool.submit(tasks.die, how).exception(), fm.WorkerDied)
    error = end_zygote(pool, number)
    assert signal.Signals(number).name in str(error)
    assert "zygote" in str(error)
    assert "too many" not in str(error)
    assert list(error.causes) == []
    assert error.__cause__ is None
    with pytest.raises(fm.errors.PoolBroken, match=signal.Signals(number).name):
        pool.submit(abs, 1)


def test_old_deaths_are_no_causes_of_too_many_new_ones() -> None:
    with fm.ProcessPool(1, start_method="fork", restarts=(1, 0.3)) as pool:
        assert isinstance(pool.submit(tasks.die, "exit3").exception(), fm.WorkerDied)
        time.sleep(1.5)  # what counts is that time passes
        futures = [pool.submit(tasks.die, "kill") for _ in range(2)]
        wait(futures)
        tasks.eventually(lambda: pool.stats().state == "broken")
        with pytest.raises(fm.errors.PoolBroken, match="too many workers died") as caught:
            pool.submit(abs, 1)
        assert {cause.signal for cause in caught.value.causes} == {signal.SIGKILL}  # type: ignore[attr-defined]
        assert len(caught.value.causes) == 2


def test_submit_does_not_wait_while_a_zygote_ends(pool: fm.ProcessPool) -> None:
    future = pool.submit(time.sleep, 60)
    all_run([future])
    os.kill(zygote_of(pool), signal.SIGKILL)
    longest = 0.0
    while True:
        started = time.monotonic()
        try:
            pool.submit(abs, 1)
        except fm.errors.PoolBroken:
            break
        finally:
            longest = max(longest, time.monotonic() - started)
    assert longest < 0.4
    assert isinstance(future.exception(20), fm.errors.PoolBroken)


# ------------------------------------------------------------------ pinned and dropped


@LINUX
@pytest.mark.parametrize("start_method", tasks.METHODS)
def test_a_dropped_pinned_executor_finishes_what_it_was_given(start_method: str) -> None:
    executor = fm.executor("ipc_fork", 1, pin=True, start_method=start_method)
    death = executor.submit(tasks.die, "kill")
    futures = [executor.submit(tasks.identity, i) for i in range(3)]
    last = executor.submit(os.sched_getaffinity, 0)
    del executor
    gc.collect()
    assert isinstance(death.exception(20), fm.WorkerDied)
    assert [future.result(20) for future in futures] == [0, 1, 2]  # by another worker
    assert len(last.result(20)) == 1


@LINUX
def test_a_dropped_pinned_map_goes_on() -> None:
    results = fm.executor("ipc_fork", 2, pin=True, max_tasks_per_child=3).map(abs, range(-30, 0))
    gc.collect()
    assert list(results) == list(range(30, 0, -1))


@LINUX
def test_a_pinned_executor_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="max_workers"):
        fm.executor("ipc_fork", 0, pin=True)
    with pytest.raises(ValueError, match="start_method"):
        fm.executor("ipc_fork", 1, pin=True, start_method="none")
    with fm.executor("ipc_fork", 1, pin=True) as executor:
        assert executor.submit(abs, -1).result() == 1
    del executor
    gc.collect()
    tasks.eventually(lambda: set(os.listdir("/proc/self/fd")) <= before)

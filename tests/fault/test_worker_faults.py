"""The table of faults in workers: what happens, what the task's caller sees, what goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import forkmill as fm
import tasks

FAST = ("fork", "zygote")


@pytest.fixture(params=FAST)
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(4, start_method=request.param, restarts=(1000, 10.0)) as made:
        yield made


FAULTS = {
    # what the task does: what its caller gets
    "kill": (partial(tasks.die, "kill"), fm.WorkerDied),
    "exit0": (partial(tasks.die, "exit0"), fm.WorkerDied),
    "exit3": (partial(tasks.die, "exit3"), fm.WorkerDied),
    "segv": (partial(tasks.die, "segv"), fm.WorkerDied),
    "abort": (partial(tasks.die, "abort"), fm.WorkerDied),
    "sys.exit": (partial(sys.exit, 3), SystemExit),
    "raise": (partial(tasks.fail, ValueError("x")), ValueError),
    "KeyboardInterrupt": (partial(tasks.fail, KeyboardInterrupt()), KeyboardInterrupt),
    "bad argument": (partial(tasks.identity, tasks.ExplodesInWorker()), Exception),
    "deadly argument": (partial(tasks.identity, tasks.KillsOnLoad()), fm.WorkerDied),
    "bad result": (partial(tasks.make_unpicklable, "lock"), fm.SerializationError),
    "bad exception": (partial(tasks.raise_kind, "stubborn"), fm.RemoteError),
    "lying exception": (partial(tasks.raise_kind, "liar"), fm.RemoteError),
    "exception with arguments": (partial(tasks.raise_kind, "needs"), fm.RemoteError),
    "stopped": (partial(tasks.nap, 60), fm.TaskTimeout),
    "stuck in C": (tasks.spin, fm.TaskTimeout),
}


@pytest.mark.scenario(1, 4, 5, 10, 11, 13, 24, 27)
@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_among_a_thousand_tasks(pool: fm.ProcessPool, fault: str) -> None:
    """Everybody else is served, and the pool is as good as new."""
    what, expected = FAULTS[fault]
    view = pool.options(timeout=0.3) if expected is fm.TaskTimeout else pool
    futures = [pool.submit(tasks.negative, i) for i in range(500)]
    faulty = [view.submit(what) for _ in range(2)]
    results = pool.map(tasks.negative, range(500), chunksize=10)
    futures += [pool.submit(tasks.negative, i) for i in range(500)]
    for future in faulty:
        assert isinstance(future.exception(20), expected)
    assert [future.result(20) for future in futures] == [-i for i in range(500)] * 2
    assert list(results) == [-i for i in range(500)]
    stats = pool.stats()
    assert stats.accepted == stats.outcomes == 1502
    assert stats.state == "open"
    assert len(set(pool.each(tasks.pid))) == 4


@pytest.mark.scenario(3, 24)
@pytest.mark.parametrize("name", ["SIGKILL", "SIGABRT", "SIGSEGV"])
def test_an_idle_worker_is_killed(pool: fm.ProcessPool, name: str) -> None:
    """FAULTS 3: no task is harmed, a successor is there at once, it is counted."""
    pids = pool.each(tasks.pid)
    os.kill(pids[1], signal.Signals[name])
    tasks.eventually(lambda: not alive(pids[1]))
    now = pool.each(tasks.pid)
    assert len(set(now)) == 4
    assert pids[1] not in now
    assert pool.stats().deaths == 1
    assert pool.stats().died == 0


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.scenario(1)
def test_replacement_is_quick(pool: fm.ProcessPool) -> None:
    """Within 100 ms: the quickest of several, since the machine may be busy."""
    times = []
    pool.each(tasks.pid)
    for _ in range(9):
        start = time.monotonic()
        futures = [pool.submit(tasks.die, "kill") for _ in range(4)]
        for future in futures:
            future.exception(20)
        assert pool.submit(pow, 2, 3).result() == 8
        times.append(time.monotonic() - start)
    assert min(times) < 0.1 * 4, times


@pytest.mark.scenario(7)
@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("how", ["kill", "exit0"])
def test_poison_flood_breaks_the_pool_in_bounded_time(method: str, how: str) -> None:
    """FAULTS 7: all futures resolved, the causes collected, no fork bomb."""
    start = time.monotonic()
    with fm.ProcessPool(2, start_method=method) as pool:
        futures = []
        with contextlib.suppress(fm.PoolBroken):
            for _ in range(200):
                futures.append(pool.submit(tasks.die, how))
        errors = [future.exception(20) for future in futures]
        assert all(isinstance(error, fm.WorkerDied | fm.PoolBroken) for error in errors)
        died = [error for error in errors if isinstance(error, fm.WorkerDied)]
        assert 1 <= len(died) <= 4 + 1 + 2  # max(3, 2n) allowed, one too many, two at once
        with pytest.raises(fm.PoolBroken) as caught:
            pool.submit(pow, 2, 3).result()
        assert caught.value.causes
        assert all(isinstance(cause, fm.WorkerDied) for cause in caught.value.causes)
        with pytest.raises(fm.PoolBroken):
            list(pool.map(abs, [1]))
        stats = pool.stats()
        assert stats.state == "broken"
        assert stats.accepted == stats.outcomes
        assert stats.deaths <= 10
    assert time.monotonic() - start < 10


@pytest.mark.scenario(7)
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("method", tasks.METHODS)
def test_poison_flood_in_map_ends_in_pool_broken(method: str, ordered: bool) -> None:
    with fm.ProcessPool(2, start_method=method, restarts=(2, 10.0)) as pool:
        seen: list[BaseException] = []
        with pytest.raises(fm.PoolBroken):
            for error in pool.map(
                tasks.die, ["kill"] * 100_000, ordered=ordered, return_exceptions=True
            ):
                seen.append(error)
        assert all(isinstance(error, fm.WorkerDied | fm.PoolBroken) for error in seen)


def test_zygote_killed_breaks_the_pool(pool: fm.ProcessPool, tmp_path: Path) -> None:
    """Its death is PoolBroken for everybody, and its workers go with it."""
    pids = pool.each(tasks.pid)
    with tasks.Gate(tmp_path) as gate:
        futures = [pool.submit(tasks.pass_gate, gate.path) for _ in range(20)]
        tasks.eventually(futures[0].running)
        os.kill(parent_of(pids[0]), signal.SIGKILL)
        for future in futures:
            assert isinstance(future.exception(10), fm.PoolBroken | fm.WorkerDied)
        with pytest.raises(fm.PoolBroken, match="zygote"):
            pool.submit(pow, 2, 3).result()
        tasks.eventually(lambda: not any(running(pid) for pid in pids), 2)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def running(pid: int) -> bool:
    """Alive and no zombie: who reaps an orphan's zombie is not ours to say."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.scenario(17, 19)
def test_tasks_that_meddle_with_their_process(pool: fm.ProcessPool) -> None:
    """FAULTS 17, 19: standard descriptors, handlers, working directory, children."""
    assert pool.submit(tasks.run_child, 7).result() == 7
    assert pool.submit(tasks.close_standard_streams).result() == "ok"
    assert pool.each(tasks.install_handlers) == ["ok"] * 4
    assert list(pool.map(tasks.negative, range(2000))) == [-i for i in range(2000)]
    assert pool.stats().deaths == 0
    os.kill(pool.submit(tasks.pid).result(), signal.SIGKILL)
    assert list(pool.map(tasks.negative, range(2000))) == [-i for i in range(2000)]


@pytest.mark.scenario(19)
def test_the_users_children_are_never_stolen(pool: fm.ProcessPool) -> None:
    """P1: exit statuses of subprocess and os.fork stay the user's, whatever dies of ours."""
    import subprocess

    for code in range(1, 6):
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", f"raise SystemExit({code})"])
        pool.submit(tasks.die, "kill").exception()
        assert child.wait(20) == code


def test_sigchld_ignored_by_the_user(run_script) -> None:
    run_script(
        """
        import signal, tasks, forkmill as fm
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for method in tasks.METHODS:
            with fm.ProcessPool(2, start_method=method) as pool:
                assert pool.submit(pow, 2, 3).result() == 8
                error = pool.submit(tasks.die, "exit3").exception()
                assert isinstance(error, fm.WorkerDied) and error.exitcode == 3, error
                assert list(pool.map(abs, range(1000))) == list(range(1000))
        """
    )


@pytest.mark.scenario(17)
@pytest.mark.parametrize("method", tasks.METHODS)
def test_started_without_standard_streams(method: str, run_script) -> None:
    """S7: 0-2 are closed, so our pipes would get their numbers."""
    run_script(
        f"""
        import os, sys
        for fd in (0, 1, 2):
            os.close(fd)
        sys.stdin = sys.stdout = sys.stderr = None
        import tasks, forkmill as fm
        ok = False
        with fm.ProcessPool(2, start_method={method!r}) as pool:
            ok = list(pool.map(tasks.negative, range(3000))) == [-i for i in range(3000)]
            ok = ok and pool.submit(print, "noise").result() is None
            ok = ok and isinstance(pool.submit(tasks.die, "segv").exception(), fm.WorkerDied)
            ok = ok and pool.submit(os.write, 1, b"noise").exception() is not False
            ok = ok and pool.submit(pow, 2, 3).result() == 8
        os._exit(0 if ok else 9)
        """
    )


@pytest.mark.scenario(24)
def test_stopped_worker_and_a_timeout(pool: fm.ProcessPool, tmp_path: Path) -> None:
    """FAULTS 24: SIGSTOP; the timeout ends it."""
    with tasks.Gate(tmp_path) as gate:
        future = pool.options(timeout=0.5).submit(tasks.pass_gate, gate.path)
        # It is over already if this thread stood still so long: then nobody is to be stopped.
        tasks.eventually(lambda: future.running() or future.done())
        for worker in pool.workers():
            if worker.in_flight:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGSTOP)
        assert isinstance(future.exception(10), fm.TaskTimeout)
        assert len(set(pool.each(tasks.pid))) == 4


@pytest.mark.scenario(24)
@pytest.mark.parametrize("method", FAST)
def test_a_worker_that_is_stopped_before_it_has_a_task(method: str) -> None:
    """FAULTS 24: the task's time never begins there, so it runs elsewhere, uncharged."""
    with fm.ProcessPool(1, start_method=method) as pool:
        [pid] = pool.each(tasks.pid)
        os.kill(pid, signal.SIGSTOP)
        view = pool.options(timeout=0.3)
        futures = [view.submit(tasks.negative, i) for i in range(10)]
        assert [future.result(20) for future in futures] == [-i for i in range(10)]
        assert pool.each(tasks.pid) != [pid]
        stats = pool.stats()
        assert (stats.timeouts, stats.retried) == (0, 0)


@pytest.mark.scenario(15)
def test_large_exchange_with_a_slow_consumer(pool: fm.ProcessPool) -> None:
    """FAULTS 15: 16 MB both ways from several threads, nobody reads for a while."""
    size = 16 << 20
    lengths: list[int] = []

    def work() -> None:
        for future in [pool.submit(tasks.exchange, bytearray(size), size) for _ in range(2)]:
            lengths.append(len(future.result()))

    crew = [threading.Thread(target=work) for _ in range(3)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert lengths == [size] * 6


@pytest.mark.scenario(1)
def test_a_worker_dies_in_the_middle_of_a_large_result(pool: fm.ProcessPool) -> None:
    """The frame is cut off: that task died, and no byte of it reaches anybody else."""
    futures = [pool.submit(tasks.payload, 64 << 20) for _ in range(4)]
    time.sleep(0.05)  # somewhere in the writes
    for worker in pool.workers():
        if worker.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
    for future in futures:
        error = future.exception(20)
        assert error is None or isinstance(error, fm.WorkerDied)
        if error is None:
            assert len(future.result()) == 64 << 20
    assert list(pool.map(tasks.negative, range(1000))) == [-i for i in range(1000)]

"""Scenarios of faults that need a stage of their own: the numbers are those of docs/faults.md.

What a worker's end, at any moment, costs is in test_stages.py and test_exact_deaths.py; how
processes end together, in test_life.py. Here is the rest, under each start method.
"""

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
from typing import Any

import pytest

import faults
import forkmill as fm
import tasks

LINUX = sys.platform == "linux"
methods = pytest.mark.parametrize("method", tasks.METHODS)
orders = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])


@pytest.fixture(params=tasks.METHODS)
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    # The initializer loads what workers need: no task's timeout shall count that.
    with fm.ProcessPool(
        2, start_method=request.param, restarts=(1000, 10.0), initializer=faults.as_new
    ) as made:
        made.each(tasks.pid)
        yield made


# ------------------------------------------------------------------ what workers send and get


KINDS = ("needs", "liar", "stubborn", "bad text", "lock inside", "huge", "group", "local")


@pytest.mark.scenario(11)
def test_exceptions_that_do_not_travel_well(pool: fm.ProcessPool) -> None:
    """Each fails its own item; the workers live."""
    items = [*KINDS, "fine"]
    for ordered in (True, False):
        results = list(pool.map(tasks.raise_kind, items, ordered=ordered, return_exceptions=True))
        assert len(results) == len(items)
        assert all(isinstance(result, Exception) for result in results)
        assert sum(type(result) is tasks.Fine for result in results) == 1
        texts = [result.type_name for result in results if isinstance(result, fm.RemoteError)]
        assert sum("Stubborn" in text for text in texts) == 1
        if ordered:
            assert len(str(results[KINDS.index("huge")])) >= 10_000_000
    assert list(pool.map(tasks.negative, range(100))) == [-i for i in range(100)]
    assert pool.stats().deaths == 0


@pytest.mark.scenario(12)
def test_a_result_that_takes_its_time_to_load(pool: fm.ProcessPool, tmp_path: Path) -> None:
    """In the thread that asked for it; everybody else is served meanwhile."""
    loaded: list[object] = []
    with tasks.Gate(tmp_path) as gate:
        slow = pool.submit(faults.Pauses, gate.path)
        reader = threading.Thread(target=lambda: loaded.append(slow.result()))
        reader.start()
        for ordered in (True, False):
            results = pool.map(tasks.negative, range(1000), ordered=ordered)
            assert sorted(results) == sorted(-i for i in range(1000))
        assert pool.submit(tasks.negative, 1).result(20) == -1
        tasks.eventually(slow.done)
        assert not loaded
    reader.join()
    assert type(loaded[0]) is faults.Pauses


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    """A control group with a limit on memory, or skip."""
    place = Path("/sys/fs/cgroup/memory")
    file = "memory.limit_in_bytes"
    if not place.exists():
        place, file = Path("/sys/fs/cgroup"), "memory.max"
    mine = place / f"forkmill-test-{os.getpid()}"
    try:
        mine.mkdir()
    except OSError:
        pytest.skip("no control group of our own is allowed here")
    try:
        try:
            (mine / file).write_text(str(limit))
        except OSError:
            pytest.skip("no limit on memory is allowed here")
        yield mine
    finally:
        tasks.eventually(lambda: not (mine / "cgroup.procs").read_text())
        mine.rmdir()


@pytest.mark.scenario(6)
@pytest.mark.skipif(not LINUX, reason="needs control groups")
@methods
def test_the_kernel_kills_a_worker_for_its_memory(run_script: Any, method: str) -> None:
    with cgroup(200 << 20) as group:
        run_script(
            f"""
            import os, tasks, forkmill as fm
            with open({str(group / "cgroup.procs")!r}, "w") as file:
                file.write(str(os.getpid()))
            with fm.ProcessPool(2, start_method={method!r}) as pool:
                futures = [pool.submit(tasks.nap, 0.001, i) for i in range(200)]
                error = pool.submit(tasks.grow, 400_000).exception(20)
                assert isinstance(error, fm.WorkerDied), error
                assert (error.signal_name, error.oom) == ("SIGKILL", True), error
                assert [future.result(20) for future in futures] == list(range(200))
                for ordered in (True, False):
                    results = pool.map(tasks.negative, range(1000), ordered=ordered)
                    assert sorted(results) == sorted(-i for i in range(1000))
            """
        )


# ------------------------------------------------------------------ signals


@pytest.mark.scenario(24)
@methods
def test_sigterm_for_a_worker(pool_of: Any, method: str, tmp_path: Path) -> None:
    """It finishes its task, leaves and is replaced."""
    with pool_of(start_method=method) as pool, tasks.Gate(tmp_path) as gate:
        running = [pool.submit(tasks.pass_gate, gate.path, i) for i in range(2)]
        waiting = [pool.submit(tasks.negative, i) for i in range(100)]
        tasks.eventually(lambda: all(future.running() for future in running))
        told = pool.workers()[0].pid
        os.kill(told, signal.SIGTERM)
        gate.open()
        assert [future.result(20) for future in running] == [0, 1]
        tasks.eventually(lambda: told not in [worker.pid for worker in pool.workers()])
        assert pool.stats().deaths == 0
        assert [future.result(20) for future in waiting] == [-i for i in range(100)]


@pytest.fixture
def pool_of() -> Any:
    return partial(fm.ProcessPool, 2, restarts=(1000, 10.0), initializer=faults.as_new)


@pytest.mark.scenario(24)
@methods
def test_a_stopped_worker_is_shown_and_goes_on(pool_of: Any, method: str, tmp_path: Path) -> None:
    """With a timeout that is far away: `workers()` shows how long its task has been running."""
    with pool_of(start_method=method) as pool, tasks.Gate(tmp_path) as gate:
        future = pool.options(timeout=60).submit(tasks.pass_gate, gate.path, "done")
        tasks.eventually(lambda: any(worker.running > 0 for worker in pool.workers()))
        [stuck] = [worker for worker in pool.workers() if worker.running]
        os.kill(stuck.pid, signal.SIGSTOP)
        gate.open()
        tasks.eventually(lambda: pool.workers()[stuck.slot].running > stuck.running + 0.1)
        for ordered in (True, False):  # the other one does all the rest
            results = pool.map(tasks.negative, range(1000), ordered=ordered)
            assert sorted(results) == sorted(-i for i in range(1000))
        assert not future.done()
        os.kill(stuck.pid, signal.SIGCONT)
        assert future.result(20) == "done"
        assert pool.stats().deaths == 0


@pytest.mark.scenario(24)
@methods
def test_sigterm_with_a_handler_of_the_users(start_script: Any, method: str) -> None:
    """The handler's SystemExit is an end like any other: what was accepted is finished."""
    script = start_script(
        f"""
        import os, signal, sys, time, tasks, forkmill as fm
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        def task(i):
            time.sleep(0.05)
            os.write(1, b"%d\\n" % i)
        pool = fm.ProcessPool(2, start_method={method!r})
        pool.each(tasks.pid)
        futures = [pool.submit(task, i) for i in range(10)]
        os.write(1, b"ready\\n")
        time.sleep(60)
        """
    )
    script.wait_for("ready")
    script.process.terminate()
    assert script.wait(20) == 5
    assert sorted(script.stdout.split()) == sorted([*map(str, range(10)), "ready"])
    assert script.stderr == ""


@pytest.mark.scenario(23)
@methods
@pytest.mark.parametrize(
    "code", ["while True: pool.submit(abs, 1)", "while True: pool.submit(abs, 1).result()"]
)
def test_ctrl_c_during_submit(start_script: Any, method: str, code: str) -> None:
    script = start_script(
        f"""
        import tasks, forkmill as fm
        caught = 0
        try:
            with fm.ProcessPool(2, start_method={method!r}) as pool:
                pool.each(tasks.pid)
                print("ready", flush=True)
                {code}
        except KeyboardInterrupt:
            caught += 1
        print("caught", caught, flush=True)
        """
    )
    script.wait_for("ready")
    for process in script.processes():  # as a terminal does: the whole foreground group
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
    assert script.wait(20) == 0, script.report()
    assert script.stdout.split() == ["ready", "caught", "1"]
    assert script.stderr == ""


# ------------------------------------------------------------------ stuck in C


@pytest.mark.scenario(27)
def test_stuck_in_c(pool: fm.ProcessPool) -> None:
    """No signal handler runs in such a worker: it is killed, its neighbours' tasks are served."""
    late = pool.options(timeout=0.2).submit(tasks.spin)
    assert isinstance(late.exception(20), fm.TaskTimeout)
    stuck = pool.submit(tasks.spin)
    tasks.eventually(stuck.running)
    assert not stuck.cancel()
    for ordered in (True, False):
        results = pool.map(tasks.negative, range(500), ordered=ordered)
        assert sorted(results) == sorted(-i for i in range(500))
    assert stuck.kill()
    error = stuck.exception(20)
    assert isinstance(error, fm.WorkerDied)
    assert error.cause == "killed"
    for ordered in (True, False):
        view = pool.options(timeout=1)  # the others', too, and they may stand still for a while
        results = list(
            view.map(
                faults.spin_at_five, range(10), ordered=ordered, return_exceptions=True, chunksize=3
            )
        )
        assert sum(isinstance(result, fm.TaskTimeout) for result in results) == 1
        assert sum(result in range(10) for result in results) == 9
    assert len(set(pool.each(tasks.pid))) == 2


@pytest.mark.scenario(27)
@methods
def test_stuck_in_c_at_an_exit_by_exception(run_script: Any, method: str) -> None:
    script = run_script(
        f"""
        import tasks, forkmill as fm
        pool = fm.ProcessPool(2, start_method={method!r})
        futures = [pool.submit(tasks.spin) for _ in range(4)]
        tasks.eventually(lambda: sum(future.running() for future in futures) == 2)
        raise LookupError("of the user")
        """,
        expect=1,
    )
    assert "LookupError: of the user" in script.stderr


# ------------------------------------------------------------------ inputs and consumers


@pytest.mark.scenario(28)
@orders
@methods
def test_inputs_and_consumers_of_every_kind(pool_of: Any, method: str, ordered: bool) -> None:
    with pool_of(start_method=method) as pool:
        pulled: list[int] = []

        def endless() -> Iterator[int]:
            i = 0
            while True:
                pulled.append(i)
                yield i
                i += 1

        # A slow consumer, then one that leaves: never more ahead than the window.
        slow = pool.map(tasks.negative, endless(), ordered=ordered, buffersize=10)
        for seen, _ in enumerate(slow, 1):
            assert len(pulled) <= seen + 10
            if seen < 5:
                time.sleep(0.01)
            if seen == 50:
                break
        del slow
        tasks.eventually(lambda: pool.stats().accepted == pool.stats().outcomes)

        def failing() -> Iterator[int]:
            yield from range(20)
            raise LookupError("of the input")

        results = []
        with pytest.raises(LookupError, match="of the input"):
            for result in pool.map(tasks.negative, failing(), ordered=ordered):
                results.append(result)
        assert sorted(results) == sorted(-i for i in range(20))

        def reentering() -> Iterator[int]:
            for i in range(10):
                inner = pool.map(tasks.negative, range(5), ordered=ordered)
                yield pool.submit(tasks.negative, i).result() + sum(inner)

        results = list(pool.map(tasks.negative, reentering(), ordered=ordered))
        assert sorted(results) == [i + 10 for i in range(10)]

        blocked = threading.Event()

        def blocking() -> Iterator[int]:
            yield from range(20)
            blocked.wait()

        got: list[int] = []

        def consume() -> None:
            for result in pool.map(
                tasks.negative, blocking(), ordered=ordered, buffersize=4, chunksize=1
            ):
                got.append(result)

        consumer = threading.Thread(target=consume)
        consumer.start()
        try:  # all but what is within the window, while the input says nothing
            tasks.eventually(lambda: len(got) >= 16)
        finally:
            blocked.set()
            consumer.join()
        assert sorted(got) == sorted(-i for i in range(20))
        assert pool.stats().deaths == 0


# ------------------------------------------------------------------ recycling, the end


@pytest.mark.scenario(29)
@orders
def test_recycling_under_spawn(ordered: bool, tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(3, start_method="spawn", max_tasks_per_child=1) as pool:
        results = list(pool.map(tasks.Noted(log), range(6), ordered=ordered))
    assert sorted(results) == sorted(-i for i in range(6))
    assert set(log.counts().values()) == {1}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.scenario(29)
@orders
@pytest.mark.parametrize(
    "limit, chunksize, births",
    [({"max_tasks_per_child": 1}, None, 100_000), ({"max_rss": 1 << 20}, 20, 1000)],
    ids=["tasks", "rss"],
)
def test_a_recycling_storm(
    limit: dict[str, int], chunksize: int | None, births: int, ordered: bool, tmp_path: Path
) -> None:
    """A worker a task; or one a chunk, as no worker has less memory than that."""
    log = tasks.Log(tmp_path)
    n = 100_000
    with fm.ProcessPool(4, start_method="fork", restarts=(0, 10.0), **limit) as pool:
        results = list(pool.map(tasks.Noted(log), range(n), ordered=ordered, chunksize=chunksize))
        assert pool.stats().recycled >= births - 4
    assert sorted(results) == list(range(-n + 1, 1))
    assert set(log.counts().values()) == {1}


@pytest.mark.scenario(29)
@orders
@methods
def test_closed_with_results_unread_from_two_threads(
    pool_of: Any, method: str, ordered: bool
) -> None:
    """What was accepted is delivered, and then it is said that there was more."""
    pool = pool_of(start_method=method)
    results = pool.map(tasks.negative, iter(range(10**9)), ordered=ordered, buffersize=50)
    first = next(results)
    closers = [threading.Thread(target=pool.shutdown) for _ in range(2)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    seen = [first]
    with pytest.raises(fm.PoolClosed):
        for result in results:
            seen.append(result)
    stats = pool.stats()
    assert stats.accepted == stats.outcomes == len(seen)
    assert sorted(seen) == sorted(-i for i in range(len(seen)))

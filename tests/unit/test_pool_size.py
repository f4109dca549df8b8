"""Pools whose number of workers follows the work: `min_workers` and `idle_time`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import contexts

METHODS = ["fork", "zygote", "spawn"]


def pids(pool: Any) -> set[int]:
    return {worker.pid for worker in pool.workers()}


def all_have_left(pool: Any) -> bool:
    """Whether it grew, and each that was started for it is gone again."""
    stats = pool.stats()
    return bool(stats.retired == stats.grown > 0)


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_small_and_grows_with_what_waits(method: str, tmp_path: Any) -> None:
    with (
        tasks.Gate(tmp_path) as gate,
        fm.ProcessPool(3, min_workers=1, start_method=method) as pool,
    ):
        assert len(pool.workers()) == 1 and pool.stats().wanted == 1
        assert pool.submit(abs, -3).result() == 3
        assert len(pool.workers()) == 1
        futures = [pool.submit(tasks.pass_gate, gate.path, n) for n in range(6)]
        tasks.eventually(lambda: sum(future.running() for future in futures) == 3)
        assert len(pool.workers()) == 3
        gate.open()
        assert [future.result() for future in futures] == [*range(6)]
        stats = pool.stats()
        assert (stats.alive, stats.wanted, stats.grown, stats.restarts) == (3, 3, 2, 0)


@pytest.mark.parametrize("method", METHODS)
def test_who_has_nothing_to_do_leaves(method: str) -> None:
    with fm.ProcessPool(3, min_workers=1, idle_time=0.1, start_method=method) as pool:
        for _ in range(2):
            list(pool.map(time.sleep, [0.05] * 9, chunksize=1))
            tasks.eventually(lambda: len(pool.workers()) == 1)
        tasks.eventually(lambda: all_have_left(pool))  # also one that was born late
        stats = pool.stats()
        assert (stats.deaths, stats.restarts, stats.recycled) == (0, 0, 0)
        assert pool.submit(abs, -3).result() == 3


def test_the_work_goes_to_few_so_that_the_others_can_leave() -> None:
    with fm.ProcessPool(2, min_workers=1, idle_time=0.2) as pool:
        list(pool.map(time.sleep, [0.05] * 6, chunksize=1))
        assert pool.stats().grown > 0
        end = time.monotonic() + 20
        while not all_have_left(pool) and time.monotonic() < end:
            pool.submit(abs, 1).result()
            time.sleep(0.02)
        assert len(pool.workers()) == 1


def test_the_finalizer_runs_in_a_worker_that_leaves(tmp_path: Any) -> None:
    born, gone = tasks.Log(tmp_path), tasks.Log(tmp_path)
    with fm.ProcessPool(
        2,
        min_workers=1,
        idle_time=0.05,
        start_method="fork",
        initializer=tasks.initialize,
        initargs=(born.path, None),
        finalizer=tasks.Finalize(gone.path),
    ) as pool:
        list(pool.map(time.sleep, [0.05] * 6, chunksize=1))
        tasks.eventually(lambda: all_have_left(pool))
        (stays,) = pids(pool)
        assert sorted(gone.entries()) == sorted(-pid for pid in born.entries() if pid != stays)


def test_a_death_is_replaced_and_a_leaver_is_not() -> None:
    with fm.ProcessPool(2, min_workers=1, idle_time=0.1) as pool:
        list(pool.map(time.sleep, [0.05] * 6, chunksize=1))
        (least, *_) = pool.workers()
        os.kill(least.pid, signal.SIGKILL)
        tasks.eventually(lambda: pool.stats().deaths == 1)
        tasks.eventually(lambda: len(pool.workers()) == 1 and pool.stats().retired >= 1)
        assert least.pid not in pids(pool)
        assert pool.submit(abs, -1).result() == 1


def test_each_means_those_that_are_alive() -> None:
    with fm.ProcessPool(4, min_workers=2) as pool:
        assert len(set(pool.each(os.getpid))) == 2
        list(pool.map(time.sleep, [0.05] * 16, chunksize=1))
        here = pids(pool)
        assert set(pool.each(os.getpid)) == here and len(here) == 4


def test_a_lane_keeps_the_workers_that_have_its_state(tmp_path: Any) -> None:
    seen: list[int] = []
    log = tasks.Log(tmp_path)

    def end() -> Any:
        yield os.getpid(), len(seen)

    def work(item: int) -> None:
        tasks.note(log.path, os.getpid())
        tasks.eventually(lambda: len(log.counts()) == 2)  # the first waits for the second
        seen.append(item)

    with fm.executor("ipc_fork", 2, min_workers=1, idle_time=0.02) as pool:
        lane = pool.lane(contexts.Work(work, on_end=end))
        lane.put_many(range(30))
        while lane.pending:
            lane.take_many(20)
        time.sleep(0.1)  # five times as long as an idle worker stays
        assert len(pool.workers()) == 2
        lane.end()
        ends = [output for piece in iter(lane.take, None) for output in piece.outputs]
        assert sum(number for _, number in ends) == 30 and len(ends) == 2
        lane.close()
        tasks.eventually(lambda: len(pool.workers()) == 1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"min_workers": 0}, ValueError),
        ({"min_workers": 3}, ValueError),
        ({"min_workers": 1.5}, TypeError),
        ({"idle_time": 0}, ValueError),
        ({"idle_time": "1"}, TypeError),
    ],
)
def test_wrong_sizes_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        fm.ProcessPool(2, **options)


def test_idle_time_alone_means_one_at_least() -> None:
    with fm.ProcessPool(2, idle_time=5) as pool:
        assert len(pool.workers()) == 1


def test_nothing_is_lost_while_the_size_changes() -> None:
    """INV-1 and INV-2 with workers that come, leave and die."""
    with fm.ProcessPool(4, min_workers=1, idle_time=0.003, restarts=(1000, 1.0)) as pool:
        for burst in range(15):
            items = range(burst * 200, burst * 200 + 200)
            results = list(pool.map(die_on_50, items, return_exceptions=True, chunksize=7))
            for item, result in zip(items, results, strict=True):
                if item % 200 == 50:
                    assert isinstance(result, fm.WorkerDied)
                else:
                    assert result == item
            time.sleep(0.005 * (burst % 3))
        stats = pool.stats()
        assert stats.accepted == stats.outcomes and stats.died == 15


def die_on_50(item: int) -> int:
    if item % 200 == 50:
        os.kill(os.getpid(), signal.SIGKILL)
    return item

"""stats() and workers(): INV-1 at every moment, from any thread."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

import forkmill as fm
import tasks


def check(stats: fm.PoolStats) -> None:
    assert stats.accepted == stats.outcomes + stats.backlog + stats.in_flight, stats
    ends = stats.succeeded + stats.failed + stats.cancelled + stats.died
    assert ends <= stats.outcomes, stats


def test_inv1_at_all_times_under_load(tmp_path: Path) -> None:
    """Sampled from another thread, while tasks succeed, fail, die, time out and are cancelled."""
    samples: list[fm.PoolStats] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.is_set():
            samples.append(pool.stats())
            for worker in pool.workers():
                assert worker.pid >= 0

    with fm.ProcessPool(3, start_method="fork", restarts=(1000, 10.0)) as pool:
        watcher = threading.Thread(target=sample)
        watcher.start()
        try:
            late = pool.options(timeout=0.02)
            futures = []
            for i in range(600):
                futures.append(pool.submit(tasks.negative, i))
                if i % 7 == 0:
                    futures.append(pool.submit(tasks.fail, ValueError(i)))
                if i % 60 == 0:
                    futures.append(pool.submit(tasks.die, "exit0"))
                    futures.append(late.submit(tasks.nap, 60))
                if i % 5 == 0:
                    futures[-1].cancel()
            list(pool.map(tasks.negative, range(20_000)))
            for future in futures:
                if not future.cancelled():
                    future.exception(20)
            tasks.eventually(lambda: len(samples) > 10)
        finally:
            stop.set()
            watcher.join()
        end = pool.stats()
    for stats in samples:
        check(stats)
    for earlier, later in itertools.pairwise(samples):
        assert later.accepted >= earlier.accepted
        assert later.outcomes >= earlier.outcomes
    check(end)
    assert end.accepted == end.outcomes == len(futures) + 20_000
    assert end.cancelled == sum(future.cancelled() for future in futures)
    assert end.failed + end.died >= 80


def test_counters_of_each_kind(tmp_path: Path) -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        pool.submit(tasks.negative, 1).result()
        pool.submit(tasks.fail, ValueError()).exception()
        pool.submit(tasks.die, "kill").exception()
        pool.options(timeout=0.05).submit(tasks.nap, 60).exception()
        with tasks.Gate(tmp_path) as gate:
            busy = pool.submit(tasks.pass_gate, gate.path)
            queued = pool.submit(tasks.negative, 1)
            tasks.eventually(busy.running)
            assert queued.cancel()
            assert pool.stats().in_flight == 1
        busy.result()
        stats = pool.stats()
        assert (stats.succeeded, stats.failed, stats.cancelled) == (2, 1, 1)
        assert (stats.died, stats.timeouts, stats.deaths) == (2, 1, 2)
        assert (stats.accepted, stats.outcomes) == (6, 6)
        assert stats.state == "open"
    assert pool.stats().state == "closed"


def test_stats_are_plain_frozen_data() -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        stats = pool.stats()
        assert dataclasses.asdict(stats)["accepted"] == 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            stats.accepted = 5
        assert "1 workers" in repr(pool) or "1 worker" in repr(pool)


def test_refused_work_is_not_accepted() -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        with pytest.raises(fm.SerializationError):
            pool.submit(tasks.identity, tasks.Unpicklable())
        with pytest.raises(TypeError):
            pool.submit(5)
        assert pool.stats().accepted == 0


def test_a_round_trip_is_one_frame() -> None:
    with fm.ProcessPool(2, start_method="fork") as pool:
        for i in range(100):
            pool.submit(tasks.negative, i).result()
        # One definition a worker beside the hundred calls.
        assert pool.stats().frames_sent <= 100 + 2


@pytest.mark.parametrize("method", ["fork", "zygote"])
def test_workers_and_stats_are_up_to_date_without_any_task(method: str) -> None:
    """Nobody leads an idle pool: who looks takes in what has been reported."""
    with fm.ProcessPool(2, start_method=method) as pool:
        first = {worker.pid for worker in pool.workers()}
        assert len(first) == 2
        os.kill(min(first), signal.SIGKILL)
        tasks.eventually(lambda: pool.stats().deaths == 1)
        tasks.eventually(lambda: len({worker.pid for worker in pool.workers()} - first) == 1)


def test_what_is_told_of_a_worker() -> None:
    with fm.ProcessPool(2) as pool:
        pool.each(tasks.pid)
        workers = pool.workers()
    for slot, worker in enumerate(workers):
        assert (worker.slot, worker.generation, worker.tasks) == (slot, 0, 1)
        assert worker.state == "ready"
        assert sys.platform != "linux" or 1 << 20 < worker.rss < 1 << 31
        assert 0 < worker.age < 60

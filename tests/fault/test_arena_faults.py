"""The arena when things go wrong: deaths in the middle, no room, none at all.

Whatever happens, values are right, a death costs its own task, and no memory stays behind.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import _native
from forkmill.pool import start as _start

np = pytest.importorskip("numpy")

MB = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs the arena's statistics")


def stats(pool: fm.ProcessPool) -> dict[str, int]:
    arena = pool._core.native.arena
    assert arena is not None
    return arena.stats()


def in_hands(pool: fm.ProcessPool) -> int:
    now = stats(pool)
    return now["used"] - now["free"]


# ---------------------------------------------------------------- deaths


@pytest.mark.parametrize("method", tasks.METHODS)
def test_a_worker_that_dies_with_its_argument(method: str) -> None:
    with fm.ProcessPool(2, start_method=method, restarts=(100, 10)) as pool:
        arrays = [np.full(MB, i, np.uint8) for i in range(10)]
        killed, others = [], []
        for array in arrays:
            killed.append(pool.submit(tasks.die_holding, array))
            others.append(pool.submit(tasks.double, array))
        for i, (dead, alive) in enumerate(zip(killed, others, strict=True)):
            assert isinstance(dead.exception(20), fm.WorkerDied)
            assert (alive.result(20) == 2 * i).all()
        del killed, others, dead, alive
        tasks.eventually(lambda: in_hands(pool) == 0)


def test_a_worker_that_is_killed_while_it_answers() -> None:
    """At any instant: while it fills a segment, before and after it tells of it."""
    noise = random.Random(1)
    outcomes = {"died": 0, "answered": 0}
    with fm.ProcessPool(2, restarts=(1000, 10)) as pool:
        for _ in range(60):
            size = noise.choice([MB, 8 * MB, 64 * MB])
            delay = noise.random() * 0.012
            doomed = pool.submit(tasks.die_while_answering, delay, size)
            other = pool.submit(tasks.array_of, (100_000,), 3)
            try:
                assert doomed.result(20) == bytes(size)
                outcomes["answered"] += 1
            except fm.WorkerDied:
                outcomes["died"] += 1
            # The late kill may hit a neighbour: then it dies for that, alone.
            with contextlib.suppress(fm.WorkerDied):
                assert (other.result(20) == 3).all()
            del doomed, other
        tasks.eventually(lambda: in_hands(pool) == 0)

        def all_live() -> bool:  # the last kill may be late, too
            with contextlib.suppress(fm.WorkerDied):
                return bool(pool.each(tasks.pid))
            return False

        tasks.eventually(all_live)
        assert stats(pool)["used"] <= 8
    assert outcomes["died"] > 0, outcomes


def test_timeouts_and_kills_give_segments_back() -> None:
    with fm.ProcessPool(2) as pool:
        for _ in range(3):
            late = pool.options(timeout=0.05).submit(tasks.nap, 60, np.ones(MB))
            assert isinstance(late.exception(20), fm.TaskTimeout)
            running = pool.submit(tasks.nap, 60, np.ones(MB))
            tasks.eventually(running.running)
            assert running.kill()
            assert isinstance(running.exception(20), fm.WorkerDied)
            del late, running
        tasks.eventually(lambda: in_hands(pool) == 0)


def test_a_pool_that_is_stopped_in_the_middle() -> None:
    pool = fm.ProcessPool(2)
    arena = pool._core.native.arena
    futures = [pool.submit(tasks.nap, 0.001, np.full(MB, i)) for i in range(20)]
    kept = futures[0].result()
    pool.shutdown(cancel_futures=True)
    assert (kept == 0).all()
    del futures
    tasks.eventually(lambda: arena.stats()["pools"] == 1)
    del kept
    with pytest.raises(fm.PoolError):
        arena.stats()  # the last view has closed it


# ---------------------------------------------------------------- no room


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[fm.ProcessPool]:
    """A pool whose arena holds 4 MB as far as this process goes."""

    class Native:
        def __getattr__(self, name: str) -> Any:
            if name == "Arena":
                return lambda fd: _native.Arena(fd, 4 * MB)
            return getattr(_native, name)

    monkeypatch.setattr(_start, "_native", Native())
    with fm.ProcessPool(2) as pool:
        yield pool


@pytest.mark.scenario(26)
def test_a_full_arena_means_the_pipe(small: fm.ProcessPool) -> None:
    arrays = [np.full(3 * MB, i, np.uint8) for i in range(12)]
    results = [f.result() for f in [small.submit(tasks.double, array) for array in arrays]]
    for i, result in enumerate(results):
        assert (result == 2 * i).all()
    kept = list(small.map(tasks.double, arrays, chunksize=5))
    for i, result in enumerate(kept):
        assert (result == 2 * i).all()
    assert small.submit(tasks.length, bytes(5 * MB)).result() == 5 * MB
    del results, result, kept
    tasks.eventually(lambda: in_hands(small) == 0)


def test_more_results_are_kept_than_there_are_segments() -> None:
    n = 1100
    with fm.ProcessPool(2) as pool:
        kept = list(pool.map(tasks.array_of, [(10_000,)] * n, range(n)))
        for i, array in enumerate(kept):
            assert array[0] == array[-1] == i
        assert stats(pool)["free"] == 0  # the rest came by the pipe


@pytest.mark.scenario(26)
@pytest.mark.parametrize("method", tasks.METHODS)
def test_without_an_arena(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    class Native:
        def __getattr__(self, name: str) -> Any:
            return (lambda: -1) if name == "arena_create" else getattr(_native, name)

    monkeypatch.setattr(_start, "_native", Native())
    with fm.ProcessPool(2, start_method=method) as pool:
        assert pool._core.native.arena is None
        arrays = [np.full(MB, i, np.uint8) for i in range(6)]
        for i, result in enumerate(pool.map(tasks.double, arrays)):
            assert (result == 2 * i).all()


@pytest.mark.scenario(26)
def test_under_a_limit_on_file_sizes(run_script: Any) -> None:
    run_script(
        """
        import resource, forkmill as fm, tasks
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.RLIM_INFINITY))
        with fm.ProcessPool(1) as pool:
            assert pool._core.native.arena is None
            assert pool.submit(tasks.identity, bytes(1 << 22)).result() == bytes(1 << 22)
        """
    )


def test_without_address_space(run_script: Any) -> None:
    """Neither side can map what it should: the pipe, or MemoryError, and it goes on."""
    run_script(
        """
        import resource, forkmill as fm, tasks
        with fm.ProcessPool(1) as pool:
            assert pool.submit(tasks.length, bytes(1 << 20)).result() == 1 << 20
            data = bytes(64 << 20)
            old = resource.getrlimit(resource.RLIMIT_AS)
            used = int(open("/proc/self/statm").read().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (used + (80 << 20), old[1]))
            for _ in range(3):
                try:
                    assert pool.submit(tasks.length, data).result() == len(data)
                except MemoryError:
                    pass
            resource.setrlimit(resource.RLIMIT_AS, old)
            assert pool.submit(tasks.identity, data).result() == data
            now = pool._core.native.arena.stats()
            assert now["used"] == now["free"], now
        """
    )

"""Libraries that take an executor, or an executor's map, take ours unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import forkmill as fm
import tasks


@pytest.fixture
def pool() -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(2) as made:
        yield made


def test_dask(pool: fm.ProcessPool) -> None:
    dask = pytest.importorskip("dask")
    layers = [dask.delayed(tasks.multiply)(i, 3) for i in range(20)]
    total = dask.delayed(sum)(layers)
    assert dask.compute(total, scheduler=pool) == (sum(3 * i for i in range(20)),)
    bad = dask.delayed(tasks.fail)(ValueError("in dask"))
    with pytest.raises(ValueError, match="in dask"):
        dask.compute(bad, scheduler=pool)


def test_asyncio_default_style(pool: fm.ProcessPool) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(pool, tasks.negative, i) for i in range(10))
        )

    assert asyncio.run(main()) == [-i for i in range(10)]


def test_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm.contrib.concurrent makes the executor itself, from the class that it is given."""
    concurrent = pytest.importorskip("tqdm.contrib.concurrent")
    # Its monitor is a thread that stays, beside which "auto" would not fork any more.
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    got = concurrent._executor_map(
        fm.ProcessPool, tasks.negative, range(50), max_workers=2, disable=True
    )
    assert list(got) == [-i for i in range(50)]


@pytest.mark.unbalanced("threads")  # OpenBLAS's own
def test_scipy(pool: fm.ProcessPool) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    found = optimize.differential_evolution(
        parabola, [(-5, 5)], workers=pool.map, updating="deferred", rng=1, maxiter=5
    )
    assert abs(found.x[0] - 1) < 1


def parabola(x) -> float:
    return float((x[0] - 1) ** 2)


def test_a_consumer_of_executors_in_the_standard_library(pool: fm.ProcessPool) -> None:
    """compileall-like use: submit in a comprehension, results in order, under with."""
    from concurrent.futures import as_completed

    futures = {pool.submit(tasks.multiply, i): i for i in range(100)}
    assert {futures[f]: f.result() for f in as_completed(futures)} == {i: 2 * i for i in range(100)}

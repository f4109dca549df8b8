"""Libraries that take an executor, or an executor's map, take ours unchanged."""

from __future__ import annotations

import asyncio
import threading
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


def test_dask_by_its_configuration(pool: fm.ProcessPool) -> None:
    dask = pytest.importorskip("dask")
    before = pool.stats().accepted
    with dask.config.set(pool=pool):
        layers = [dask.delayed(tasks.multiply)(i, 3) for i in range(20)]
        assert dask.delayed(sum)(layers).compute() == sum(3 * i for i in range(20))
        assert dask.delayed(tasks.pid)().compute() in {w.pid for w in pool.workers()}
    assert pool.stats().accepted - before >= 20


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
    # Its monitor is a thread that stays, beside which "auto" would not fork any more; its own lock
    # is multiprocessing's, whose tracker stays too.
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    monkeypatch.setattr("tqdm.tqdm._lock", threading.RLock(), raising=False)
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


# ----------------------------------------------------------------------- joblib

JOBLIB = """
    import os, time
    import joblib
    from joblib import Parallel, delayed, parallel_config
    from forkmill._process import cpus
    from forkmill.integrations import register_joblib

    register_joblib()
    register_joblib()

    def multiply(a, b=2):
        return a * b

    def fail_at(n, bad):
        if n == bad:
            raise ValueError(f"no {n}")
        if n > bad:
            time.sleep(600)  # the failure ends it
        return n
"""


def test_joblib_runs_on_our_workers(run_script) -> None:
    pytest.importorskip("joblib")
    run_script(
        JOBLIB
        + """
    with parallel_config(backend="forkmill", n_jobs=2):
        calls = [delayed(multiply)(i, b=3) for i in range(2000)]
        assert Parallel()(calls) == [3 * i for i in range(2000)]
        assert list(Parallel(return_as="generator")(calls)) == [3 * i for i in range(2000)]
        pids = set(Parallel()(delayed(os.getpid)() for _ in range(50)))
        again = set(Parallel()(delayed(os.getpid)() for _ in range(50)))
        assert os.getpid() not in pids | again and len(pids | again) <= 2
        assert joblib.effective_n_jobs(-1) == cpus()
    with parallel_config(backend="forkmill", n_jobs=1):
        assert Parallel()(delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2
    assert Parallel(n_jobs=2, backend="forkmill")(calls[:3]) == [0, 3, 6]
    """
    )


def test_a_failing_joblib_call_ends_what_still_runs_and_the_workers_go_on(run_script) -> None:
    pytest.importorskip("joblib")
    run_script(
        JOBLIB
        + """
    with parallel_config(backend="forkmill", n_jobs=2):
        try:
            Parallel(batch_size=1)(delayed(fail_at)(n, 3) for n in range(100))
        except ValueError as error:
            assert str(error) == "no 3"
        else:
            raise AssertionError
        assert Parallel()(delayed(multiply)(n) for n in range(10)) == list(range(0, 20, 2))
    """
    )


def test_nested_joblib_calls_end(run_script) -> None:
    pytest.importorskip("joblib")
    run_script(
        JOBLIB
        + """
    def outer(n):
        return sum(Parallel(n_jobs=2)(delayed(multiply)(i) for i in range(n)))

    with parallel_config(backend="forkmill", n_jobs=2):
        assert Parallel()(delayed(outer)(n) for n in range(5)) == [0, 0, 2, 6, 12]
    """
    )


@pytest.mark.unbalanced("threads")  # of the native libraries that it brings in
def test_scikit_learn_gets_the_same_scores(run_script) -> None:
    pytest.importorskip("sklearn")
    run_script(
        JOBLIB
        + """
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    X, y = load_iris(return_X_y=True)

    def scores(jobs):
        forest = RandomForestClassifier(10, random_state=0)
        return cross_val_score(forest, X, y, cv=5, n_jobs=jobs).tolist()

    plain = scores(None)
    with parallel_config(backend="forkmill"):
        assert scores(2) == plain
    """,
        timeout=50,
        flags=(),
    )


# ------------------------------------------------------------------------- tqdm


def test_tqdm_process_map(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    pytest.importorskip("tqdm")
    from forkmill.integrations.tqdm import process_imap, process_map

    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    monkeypatch.setattr("tqdm.tqdm._lock", threading.RLock(), raising=False)
    got = process_map(tasks.multiply, range(50), [3] * 60, max_workers=2, desc="times")
    assert got == [3 * i for i in range(50)]
    shown = capsys.readouterr().err
    assert "times" in shown and "50/50" in shown
    lazy = process_imap(tasks.negative, iter(range(10**9)), max_workers=2, disable=True)
    assert [next(lazy) for _ in range(3)] == [0, -1, -2]
    lazy.close()

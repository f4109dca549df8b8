"""stream: one task, many outputs, one outcome."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import forkmill as fm
import tasks


@pytest.fixture(params=["fork", "zygote"])
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(2, start_method=request.param) as made:
        yield made


@pytest.mark.parametrize("credit", [1, 2, 64, 10_000])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_all_outputs_in_order(pool: fm.ProcessPool, n: int, credit: int) -> None:
    assert list(pool.stream(tasks.count_to, n, credit=credit)) == list(range(n))


def test_anything_iterable(pool: fm.ProcessPool) -> None:
    assert list(pool.stream(tasks.identity, "abc")) == ["a", "b", "c"]
    with pytest.raises(TypeError):
        list(pool.stream(tasks.negative, 5))


def test_failure_comes_after_the_outputs(pool: fm.ProcessPool) -> None:
    got = []
    with pytest.raises(LookupError, match="after the outputs"):
        for value in pool.stream(tasks.count_and_fail, 5):
            got.append(value)
    assert got == list(range(5))


def test_death_comes_after_the_outputs(pool: fm.ProcessPool) -> None:
    got = []
    with pytest.raises(fm.WorkerDied):
        for value in pool.stream(tasks.count_and_die, 5):
            got.append(value)
    assert got == list(range(5))
    assert list(pool.stream(tasks.count_to, 3)) == [0, 1, 2]


@pytest.mark.parametrize("credit", [1, 8])
def test_the_worker_is_at_most_the_credit_ahead(
    pool: fm.ProcessPool, credit: int, tmp_path: Path
) -> None:
    log = tasks.Log(tmp_path)
    stream = pool.stream(tasks.count_noting, log.path, 1000, credit=credit)
    for i, value in enumerate(itertools.islice(stream, 100)):
        assert value == i
        # What next() returned is consumed; a credit may be granted in steps of half.
        assert max(log.entries()) <= i + 1 + credit + 1
    stream.close()


@pytest.mark.parametrize("how", ["close", "drop"])
def test_close_closes_the_generator(pool: fm.ProcessPool, how: str, tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    stream = pool.stream(tasks.count_noting, log.path, 10**9)
    assert next(stream) == 0
    if how == "close":
        stream.close()
        with pytest.raises(StopIteration):
            next(stream)
    else:
        del stream
    tasks.eventually(lambda: log.counts()[-1] == 1)
    assert pool.submit(pow, 2, 3).result() == 8
    pool.shutdown()
    stats = pool.stats()
    assert stats.accepted == stats.outcomes == 2


def test_several_streams_and_tasks_at_once(pool: fm.ProcessPool) -> None:
    """More streams than workers may be open, one after the other they are served."""
    first = pool.stream(tasks.count_to, 200)
    second = pool.stream(tasks.count_to, 200)
    assert list(zip(first, second, strict=True)) == [(i, i) for i in range(200)]
    third = pool.stream(tasks.count_to, 100_000, credit=4)
    assert next(third) == 0
    assert pool.submit(pow, 2, 3).result(20) == 8  # on the other worker
    third.close()


def test_large_outputs(pool: fm.ProcessPool) -> None:
    sizes = [10, 300, 70_000, 1_000_000, 0]
    stream = pool.stream(map, tasks.payload, sizes)
    assert [len(value) for value in stream] == sizes


def test_outputs_of_an_unknown_kind_fail_the_task(pool: fm.ProcessPool) -> None:
    with pytest.raises(fm.SerializationError):
        list(pool.stream(map, tasks.make_unpicklable, ["lock"]))
    assert pool.submit(pow, 2, 3).result() == 8


def test_shutdown_does_not_wait_for_a_reader_who_is_not_there() -> None:
    with fm.ProcessPool(2, start_method="fork") as pool:
        stream = pool.stream(tasks.count_to, 10**9)
        assert next(stream) == 0
    with pytest.raises(fm.PoolClosed):
        list(stream)

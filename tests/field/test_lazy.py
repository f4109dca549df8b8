"""Lazy inputs: a chunk is bounded by what tasks take, by what the input takes, and by memory.

A quick input says nothing about tasks, so it moves no bound but its own: results, errors and
progress come as soon from a generator, an iterator, a file or a zip as from a list.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
from forkmill.pool import maps as _map
from forkmill.pool.tuner import GROWTH, Tuner
from tasks import eventually

N = 60
TASK_S = 0.006  # three times what a chunk shall take
LATE = 1500  # where tasks get slow


def slow(item: Any, *more: Any) -> Any:
    """A task that takes three chunks' time."""
    time.sleep(TASK_S)
    return item


def quick(item: Any, *more: Any) -> Any:
    """A task that takes no time."""
    return item


def slow_from(item: int) -> int:
    """Quick tasks at first, then slow ones."""
    if item >= LATE:
        time.sleep(0.002)
    return item


def slow_at_times(item: int) -> int:
    """One slow task in a thousand."""
    if item % 1000 == 999:
        time.sleep(0.02)
    return item


def failing_at(item: int) -> int:
    """A slow task that fails late."""
    time.sleep(TASK_S)
    if item == N // 2:
        raise ValueError(item)
    return item


def slow_fails_at_once(item: int) -> int:
    """The first one fails, the others take their time."""
    if item == 0:
        raise ValueError(item)
    time.sleep(TASK_S)
    return item


def large(item: int) -> bytes:
    """A result of 2 MB in no time."""
    return bytes(2 << 20)


def _file(folder: Path) -> Iterable[str]:
    path = folder / "lines"
    path.write_text("".join(f"{i}\n" for i in range(N)))
    return path.open()  # closed by its test


INPUTS: dict[str, Callable[[Path], Iterable[Any]]] = {
    "generator": lambda folder: (i for i in range(N)),
    "iterator": lambda folder: iter(range(N)),
    "map": lambda folder: map(int, range(N)),
    "zip": lambda folder: zip(range(N), range(N), strict=True),
    "file": _file,
    "count": lambda folder: itertools.islice(itertools.count(), N),
}


@pytest.fixture
def pool() -> Iterator[fm.ProcessPool]:
    """Two workers that are there."""
    with fm.ProcessPool(2, start_method="fork") as pool:
        pool.submit(quick, 1).result()
        yield pool


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each chunk has that is sent meanwhile."""
    seen: list[int] = []
    submit = _map.Feed._submit

    def spy(self: _map.Feed, count: int) -> Any:
        seen.append(count)
        return submit(self, count)

    monkeypatch.setattr(_map.Feed, "_submit", spy)
    return seen


def amap(pool: fm.ProcessPool, fn: Callable[..., Any], *inputs: Any, **options: Any) -> list[Any]:
    """What `amap` yields."""

    async def collect() -> list[Any]:
        return [result async for result in pool.amap(fn, *inputs, **options)]

    return asyncio.run(collect())


# ------------------------------------------------------------------ slow tasks


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", INPUTS)
def test_a_quick_input_makes_no_chunk_of_slow_tasks(
    pool: fm.ProcessPool, sizes: list[int], tmp_path: Path, kind: str, ordered: bool
) -> None:
    given = INPUTS[kind](tmp_path)
    results = list(pool.map(slow, given, ordered=ordered))
    if kind == "file":
        given.close()  # type: ignore[attr-defined]
    assert len(results) == N
    assert max(sizes) == 1


def test_starmap_amap_and_the_shared_pool_are_no_exception(
    pool: fm.ProcessPool, sizes: list[int]
) -> None:
    assert list(pool.starmap(slow, ((i, i) for i in range(N)))) == list(range(N))
    assert list(pool.starmap(slow, zip(range(N), range(N), strict=True))) == list(range(N))
    assert list(pool.map(slow, iter(range(N)), (i for i in range(N)))) == list(range(N))
    for ordered in (True, False):
        assert sorted(amap(pool, slow, (i for i in range(N)), ordered=ordered)) == list(range(N))
    with fm.executor("ipc_fork", 2) as executor:
        assert list(executor.map(slow, (i for i in range(N)))) == list(range(N))
    assert max(sizes) == 1


def test_results_come_while_an_endless_input_goes_on(pool: fm.ProcessPool) -> None:
    results = pool.map(slow, itertools.count())
    assert list(itertools.islice(results, 20)) == list(range(20))
    results.close()  # type: ignore[attr-defined]


def test_an_error_comes_when_it_is_its_turn(pool: fm.ProcessPool) -> None:
    pulled = 0

    def given() -> Iterator[int]:
        nonlocal pulled
        while True:
            yield pulled
            pulled += 1

    got = []
    with pytest.raises(ValueError, match=str(N // 2)):
        for result in pool.map(failing_at, given(), buffersize=16):
            got.append(result)
    assert got == list(range(N // 2))
    assert pulled <= N // 2 + 17
    pulled = 0
    with pytest.raises(ValueError, match="0"):
        next(iter(pool.map(slow_fails_at_once, given())))


def test_the_figures_tell_of_a_frame_that_runs(pool: fm.ProcessPool) -> None:
    before = sum(worker.busy for worker in pool.workers())
    results = pool.map(slow, list(range(N)), chunksize=N)  # one frame, as its user wants it
    eventually(lambda: sum(worker.busy for worker in pool.workers()) > before + 5 * TASK_S)
    assert not all(worker.in_flight == 0 for worker in pool.workers())
    assert list(results) == list(range(N))
    assert sum(worker.busy for worker in pool.workers()) >= before + N * TASK_S


# ------------------------------------------------------------------ tasks whose time changes


@pytest.mark.parametrize("ordered", [True, False])
def test_tasks_that_get_slow_are_in_chunks_as_a_list_has_them(
    pool: fm.ProcessPool, sizes: list[int], ordered: bool
) -> None:
    def largest(given: Iterable[int]) -> int:
        del sizes[:]
        assert len(list(pool.map(slow_from, given, ordered=ordered))) == LATE + 200
        at = 0
        late = 1
        for size in sizes:
            at += size
            if at > LATE:
                late = max(late, size)
        return late

    # How many a chunk has follows measured time, so there is one more factor of two in it.
    as_a_list = max(largest(list(range(LATE + 200))) for _ in range(3))
    assert largest(i for i in range(LATE + 200)) <= max(LATE // 4, 4 * as_a_list)


def test_chunks_of_an_input_without_a_length_grow_with_what_it_gave(
    pool: fm.ProcessPool, sizes: list[int]
) -> None:
    assert len(list(pool.map(quick, (i for i in range(20000))))) == 20000
    assert sizes[0] == 1
    assert max(sizes) > 8  # and grow they do
    for i in range(1, len(sizes)):
        before = sum(sizes[:i])
        assert sizes[i] <= before


def test_one_slow_task_in_a_thousand(pool: fm.ProcessPool) -> None:
    assert list(pool.map(slow_at_times, (i for i in range(3000)))) == list(range(3000))


# ------------------------------------------------------------------ slow inputs


def _dripping(n: int, seconds: float = TASK_S) -> Iterator[int]:
    for i in range(n):
        time.sleep(seconds)
        yield i


@pytest.mark.parametrize("fn", [quick, slow])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_slow_input_is_sent_as_it_comes(
    pool: fm.ProcessPool, sizes: list[int], fn: Callable[..., Any], ordered: bool
) -> None:
    assert len(list(pool.map(fn, _dripping(N), ordered=ordered))) == N
    assert max(sizes) == 1


@pytest.mark.parametrize("ordered", [True, False])
def test_an_input_that_gets_slow_ends_the_chunk_that_is_pulled(
    pool: fm.ProcessPool, sizes: list[int], ordered: bool
) -> None:
    def given() -> Iterator[int]:
        yield from range(10000)
        yield from _dripping(20, 0.05)

    assert len(list(pool.map(quick, given(), ordered=ordered))) == 10020
    assert max(sizes[:-18]) > 64
    assert max(sizes[-18:]) == 1


def test_results_are_handed_over_before_a_slow_input_is_pulled_again(pool: fm.ProcessPool) -> None:
    pulled = 0

    def given() -> Iterator[int]:
        nonlocal pulled
        for _ in range(20):
            time.sleep(0.05)
            pulled += 1
            yield pulled

    for ordered in (True, False):
        pulled = 0
        for i, _ in enumerate(pool.map(quick, given(), ordered=ordered)):
            # The round trip of a task is a thousandth of what an item takes: the window is no
            # reason to wait. (Some slack for a machine that stands still.)
            assert pulled <= i + 4
        assert pulled == 20


@pytest.mark.parametrize("ordered", [True, False])
def test_a_slow_input_of_amap_lets_the_loop_run(pool: fm.ProcessPool, ordered: bool) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> list[int]:
        beside = asyncio.create_task(other())
        got = []
        pulled = 0

        def given() -> Iterator[int]:
            nonlocal pulled
            for _ in range(20):
                time.sleep(0.02)
                pulled += 1
                yield pulled

        async for result in pool.amap(slow, given(), ordered=ordered):
            got.append(result)
            assert pulled <= len(got) + 6
        beside.cancel()
        return got

    assert sorted(asyncio.run(run())) == list(range(1, 21))
    assert turns >= 10


# ------------------------------------------------------------------ memory, and what is asked for


def test_large_results_bound_the_chunk_too(pool: fm.ProcessPool, sizes: list[int]) -> None:
    assert sum(len(result) for result in pool.map(large, (i for i in range(64)))) == 64 * (2 << 20)
    assert max(sizes) <= 8  # of 64 MB under way, a fourth


def test_an_explicit_size_is_honoured_whatever_the_input_takes(
    pool: fm.ProcessPool, sizes: list[int]
) -> None:
    assert list(pool.map(quick, _dripping(12), chunksize=6)) == list(range(12))
    assert sizes == [6, 6]


class _Done:
    def __init__(self, count: int, busy: float, size: int) -> None:
        self.count, self.busy, self.size = count, busy, size


def _learned(*chunks: tuple[int, float, int]) -> Tuner:
    tuner = Tuner(0.002, 0.0001, 1 << 20)
    for chunk in chunks:
        tuner.learn(_Done(*chunk))  # type: ignore[arg-type]
    return tuner


def test_each_bound_of_the_tuner_holds_by_itself() -> None:
    assert _learned().fit == 1
    assert _learned((1, 1e-6, 9)).fit == GROWTH
    assert _learned((1, 1e-6, 9), (8, 8e-6, 72)).fit == GROWTH**2
    assert _learned((500, 500e-6, 4500)).fit == 2000  # time
    assert _learned((500, 500e-6, 500 << 14)).fit == 64  # memory
    assert _learned((2000, 2e-3, 18000), (2000, 4.0, 18000)).fit == 1  # they have become slow
    assert _learned((4000, 4e-6, 36000)).fit == 4096
    assert _learned((500, 500e-6, 4500), (500, 0.0, 4500)).fit == 2000  # nobody knows
    tuner = _learned((500, 500e-6, 4500))
    assert tuner.fair(400, 4) == 100
    assert tuner.fair(40, 4) == 100  # as many as are worth a chunk
    assert tuner.fair(10**6, 4) == 2000

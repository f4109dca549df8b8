"""Scenarios 24 to 28: batches."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flows import (
    CONTEXTS,
    FORK,
    INLINE,
    PARALLEL,
    THREAD,
    WORKERS,
    Into,
    in_contexts,
    multiset,
    of,
    ok,
    outputs,
    same,
)

import forkmill as fm


def test_24_batches_of_a_size() -> None:
    assert outputs(fm.Pipeline().source(range(10)).batch(5)) == [[*range(5)], [*range(5, 10)]]
    batches = outputs(fm.Pipeline().source(range(10)).batch(3))
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_24_batches_are_batched_anew() -> None:
    line = fm.Pipeline().source(range(10)).batch(4).unbatch().batch(2)
    assert outputs(line) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    # Without unbatch the items of the second are lists.
    line = fm.Pipeline().source(range(4)).batch(2).batch(2)
    assert outputs(line) == [[[0, 1], [2, 3]]]


class Grouped(fm.Pipeline):
    def __init__(self) -> None:
        super().__init__()
        self.got: list[Any] = []

    @fm.producer
    def numbers(self) -> Iterator[int]:
        yield from range(7)

    pairs = fm.batch(size=2)

    @fm.batch(size=2)
    def sums(self, pairs: list[list[int]]) -> int:
        return sum(sum(pair) for pair in pairs)

    @fm.consumer
    def collect(self, total: int) -> None:
        self.got.append(total)


def test_24_in_class_form() -> None:
    grouped = Grouped()
    ok(grouped.run())
    assert grouped.got == [6, 15]


@pytest.mark.parametrize(("kind", "width"), [(INLINE, 1), (THREAD, 4), (FORK, 2), (WORKERS, 2)])
def test_25_a_batch_stage_loses_none(kind: str, width: int) -> None:
    class Batched(fm.Pipeline):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(10)

        @fm.batch(size=3, context=of(kind, width))
        def work(self, items: list[int]) -> tuple[int, list[int]]:
            return len(items), items

    batches = outputs(Batched())
    assert multiset(x for _, items in batches for x in items) == multiset(range(10))
    assert all(0 < length <= 3 and length == len(items) for length, items in batches)
    assert len(batches) == 4


@in_contexts(*CONTEXTS)
def test_batches_arrive_whole(kind: str) -> None:
    line = fm.Pipeline().source(range(100)).batch(7).map(same, context=of(kind), ordered=True)
    batches = outputs(line)
    assert [len(batch) for batch in batches] == [7] * 14 + [2]
    assert all(type(batch) is list for batch in batches)
    assert [x for batch in batches for x in batch] == [*range(100)]


def test_26_a_batch_waits_no_longer_than_it_may() -> None:
    arrived = threading.Event()

    def rows() -> Iterator[int]:
        yield 1
        assert arrived.wait(20)  # the batch does not wait for the second item
        yield 2

    line = fm.Pipeline().source(rows).batch(3, max_wait=0.2)
    start = time.monotonic()
    stream = line.stream()
    assert next(stream) == [1]
    assert time.monotonic() - start > 0.19
    arrived.set()
    assert list(stream) == [[2]]


def test_26_items_that_trickle() -> None:
    def rows() -> Iterator[int]:
        for i in range(20):
            time.sleep(0.02)
            yield i

    batches = outputs(fm.Pipeline().source(rows).batch(5, max_wait=0.12))
    assert len(batches) >= 4
    assert [x for batch in batches for x in batch] == [*range(20)]


def test_28_threads_then_a_batch_then_forks() -> None:
    line = (
        fm.Pipeline()
        .source(range(100))
        .map(same, context="thread:10")
        .batch(20)
        .map(lambda items: (os.getpid(), items), context="cow_fork:4")
    )
    calls = outputs(line)
    assert len(calls) == 5 == len({pid for pid, _ in calls})
    assert multiset(x for _, items in calls for x in items) == multiset(range(100))


@in_contexts(*PARALLEL)
def test_keyed_batches_are_of_one_key(kind: str) -> None:
    line = fm.Pipeline().source(range(20)).map(same, context=of(kind)).batch(4, key=lambda x: x % 3)
    batches = outputs(line)
    assert all(len({x % 3 for x in batch}) == 1 and len(batch) <= 4 for batch in batches)
    assert multiset(x for batch in batches for x in batch) == multiset(range(20))
    assert len(batches) == 6  # 7, 7 and 6 items


@pytest.mark.parametrize("kind", [FORK, WORKERS])
def test_leftovers_reach_the_stage_after(kind: str) -> None:
    got = Into()
    line = fm.Pipeline().source(range(5)).batch(2).map(sum, context=of(kind), ordered=True)
    ok(line.sink(got).run())
    assert got == [1, 5, 4]

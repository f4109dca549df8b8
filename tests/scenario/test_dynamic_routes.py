"""Scenarios 15 to 22: items that name their stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flows import (
    CONTEXTS,
    FORK,
    INLINE,
    MASTER,
    THREAD,
    WORKERS,
    Into,
    balanced,
    double,
    in_contexts,
    multiset,
    of,
    ok,
    outputs,
    repeated,
    same,
    triple,
)

import forkmill as fm


def route(x: int) -> Any:
    return fm.to("even" if x % 2 == 0 else "odd", x)


@pytest.mark.parametrize("targets", CONTEXTS)
@in_contexts(*CONTEXTS)
def test_15_a_router_by_name(kind: str, targets: str) -> None:
    line = (
        fm.Pipeline(context=of(targets))
        .source(range(10))
        .map(route, context=of(kind))
        .map(lambda x: ("even", x * 2), name="even", from_=(), to=())
        .map(lambda x: ("odd", x * 3), name="odd", from_=(), to=())
    )
    got = outputs(line)
    evens = [x for name, x in got if name == "even"]
    odds = [x for name, x in got if name == "odd"]
    assert multiset(evens) == multiset([0, 4, 8, 12, 16])
    assert multiset(odds) == multiset([3, 9, 15, 21, 27])
    if kind == targets == INLINE:
        assert evens == sorted(evens) and odds == sorted(odds)


@in_contexts(*CONTEXTS)
def test_16_default_and_named_targets_mixed(kind: str) -> None:
    def some(x: int) -> Iterator[Any]:
        yield x
        if x == 3:
            yield fm.to("special", x)

    line = (
        fm.Pipeline(context=of(kind))
        .source(range(5))
        .flat_map(some)
        .map(lambda x: ("default", x), to=())
        .map(lambda x: ("special", x), name="special", from_=(), to=())
    )
    assert multiset(outputs(line)) == multiset(
        [*(("default", x) for x in range(5)), ("special", 3)]
    )


@in_contexts(*CONTEXTS)
def test_16_one_item_to_three_targets(kind: str) -> None:
    def thrice(x: int) -> Iterator[Any]:
        for name in "abc":
            yield fm.to(name, x)

    line = fm.Pipeline(context=of(kind)).source([5]).flat_map(thrice)
    for name in "abc":
        line = line.map(lambda x, name=name: (name, x), name=name, from_=(), to=())
    assert multiset(outputs(line)) == multiset([("a", 5), ("b", 5), ("c", 5)])


@in_contexts(*CONTEXTS)
def test_16_a_cascade_of_three_levels(kind: str) -> None:
    line = (
        fm.Pipeline(context=of(kind))
        .source([5])
        .map(lambda x: fm.to("a", x))
        .map(lambda x: fm.to("b", x * 2), name="a", from_=())
        .map(lambda x: fm.to("last", x + 3), name="b", from_=())
        .map(same, name="last", from_=())
    )
    assert outputs(line) == [13]


@in_contexts(*CONTEXTS)
def test_17_priorities(kind: str) -> None:
    def by_id(x: int) -> Any:
        return fm.to({0: "high", 1: "low", 2: "high", 3: "error"}[x % 4], x)

    high, low, error = Into(), Into(), Into()
    line = (
        fm.Pipeline(context=of(kind))
        .source(range(20))
        .map(by_id)
        .map(same, name="high", from_=(), to="validate")
        .map(same, name="validate", to="enrich")
        .map(lambda x: (x, "enriched"), name="enrich", to="done")
        .sink(high, name="done", context="inline")
        .sink(low, name="low", from_=(), context="inline")
        .sink(error, name="error", from_=(), context="inline")
    )
    ok(line.run())
    assert (len(high), len(low), len(error)) == (10, 5, 5)
    assert multiset(high) == multiset((x, "enriched") for x in range(0, 20, 2))


@in_contexts(*CONTEXTS)
def test_19_a_target_that_nobody_uses_does_not_keep_the_run(kind: str) -> None:
    line = (
        fm.Pipeline(context=of(kind))
        .source(range(3))
        .map(lambda x: fm.to("used", x))
        .map(same, name="used", from_=(), to=())
        .map(same, name="never", from_=(), to=())
        .batch(5, max_wait=10, name="group", from_=(), to=())
    )
    assert multiset(outputs(line)) == multiset(range(3))


@in_contexts(*CONTEXTS)
def test_19_a_named_batch_loses_and_reorders_nothing(kind: str) -> None:
    line = (
        fm.Pipeline()
        .source(range(23))
        .map(lambda x: fm.to("group", x), context=of(kind), ordered=True)
        .batch(5, max_wait=0.5, name="group", from_=())
    )
    batches = outputs(line)
    assert [x for batch in batches for x in batch] == [*range(23)]
    assert all(len(batch) <= 5 for batch in batches)


@in_contexts(*CONTEXTS)
def test_20_an_unknown_target_is_a_failure_of_the_item(kind: str) -> None:
    def lost(x: int) -> Any:
        return fm.to("nowhere", x) if x == 3 else x

    line = (
        fm.Pipeline()
        .source(range(6))
        .map(lost, name="lost", context=of(kind), on_error="skip")
        .map(same, name="default")
    )
    result = line.run()
    assert sorted(result.outputs) == [0, 1, 2, 4, 5]
    (failure,) = result.failures
    assert (failure.stage, failure.item) == ("lost", 3)
    assert "nowhere" in str(failure.error)
    balanced(result)


@in_contexts(*CONTEXTS)
def test_20_an_unknown_target_stops_a_run_that_shall_raise(kind: str) -> None:
    line = fm.Pipeline().source(range(6)).map(lambda x: fm.to("nowhere", x), context=of(kind))
    with pytest.raises(Exception, match="nowhere") as caught:
        line.map(same).run()
    assert caught.value.run_result.status == "failed"


MIXES = [
    (splitter, targets)
    for splitter in (THREAD, FORK, WORKERS)
    for targets in ((WORKERS,) * 3, (FORK,) * 3, (INLINE, THREAD, WORKERS))
]


def _joined(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(value)


@repeated(100)
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "targets"), MIXES, ids=lambda v: v if isinstance(v, str) else "-".join(v)
)
def test_21_a_splitter_ends_with_its_targets(
    kind: str, targets: tuple[str, ...], times: int
) -> None:
    def split(x: int) -> Any:
        return fm.to("abc"[x % 3], x)

    for _ in range(times):
        line = fm.Pipeline().source(range(1, 13)).map(split, context=of(kind))
        for name, target in zip("abc", targets, strict=True):
            line = line.map(
                lambda x, name=name: (name, x), name=name, context=of(target, 1), from_=(), to=()
            )
        got = outputs(line)
        assert {x for name, x in got if name == "a"} == {3, 6, 9, 12}
        assert {x for name, x in got if name == "b"} == {1, 4, 7, 10}
        assert {x for name, x in got if name == "c"} == {2, 5, 8, 11}
        assert len(got) == 12


def by_return(x: int) -> Any:
    return fm.to("target", x)


def by_yield(x: int) -> Iterator[Any]:
    yield fm.to("target", x)


def method_of(kind: str, how: Callable[[int], Any]) -> fm.Pipeline:
    class Routed(fm.Pipeline):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(4)

        if how is by_return:

            @fm.stage(context=of(kind))
            def send(self, x: int) -> Any:
                return fm.to("target", x)
        else:

            @fm.stage(context=of(kind))
            def send(self, x: int) -> Iterator[Any]:
                yield fm.to("target", x)

        @fm.stage(from_=(), to=())
        def target(self, x: int) -> tuple[int, bool]:
            return x, os.getpid() == MASTER

    return Routed()


@pytest.mark.parametrize("how", [by_return, by_yield])
@in_contexts(*CONTEXTS)
def test_22_every_way_to_say_it_means_the_same(kind: str, how: Callable[[int], Any]) -> None:
    expected = multiset((x, True) for x in range(4))
    chain = (
        fm.Pipeline()
        .source(range(4))
        .stage(how, context=of(kind))
        .map(lambda x: (x, os.getpid() == MASTER), name="target", from_=(), to=())
    )
    assert multiset(outputs(chain)) == expected
    assert multiset(outputs(method_of(kind, how))) == expected


@in_contexts(*CONTEXTS)
def test_22_a_consumer_may_send_too(kind: str) -> None:
    def consume(x: int) -> Iterator[Any]:
        yield "dropped"
        yield fm.to("target", x)

    line = (
        fm.Pipeline()
        .source(range(4))
        .sink(consume, context=of(kind))
        .map(double, name="target", from_=())
    )
    assert multiset(outputs(line)) == multiset([0, 2, 4, 6])


@in_contexts(*CONTEXTS)
def test_a_feedback_loop_ends_by_itself(kind: str) -> None:
    def collatz(item: tuple[int, int]) -> Any:
        number, steps = item
        if number == 1:
            return steps
        number = 3 * number + 1 if number % 2 else number // 2
        return fm.to("collatz", (number, steps + 1))

    line = fm.Pipeline().source([(n, 0) for n in range(1, 8)])
    line = line.map(collatz, name="collatz", context=of(kind), queue_size=2).map(triple)
    assert multiset(outputs(line)) == multiset(3 * n for n in [0, 1, 7, 2, 5, 8, 16])

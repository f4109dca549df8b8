"""Scenarios 1 to 14: links known before the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flows import (
    CONTEXTS,
    FORK,
    INLINE,
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
    plus_ten,
    same,
)

import forkmill as fm
import tasks

# ------------------------------------------------------------------ 1, 2: one line


@in_contexts(*CONTEXTS)
def test_1_a_line_of_stages(kind: str) -> None:
    line = fm.Pipeline(context=of(kind)).source(range(10)).map(double, ordered=True)
    assert outputs(line) == [*range(0, 20, 2)]
    line = fm.Pipeline(context=of(kind)).source([1, 2, 3])
    assert outputs(line.map(double, ordered=True).map(plus_ten, ordered=True)) == [12, 14, 16]


def test_1_a_sink_gets_all_in_order() -> None:
    got = Into()
    result = ok(fm.Pipeline().source(range(10)).map(double).sink(got).run())
    assert got == [*range(0, 20, 2)]
    assert result.outputs == []
    balanced(result)


class Line(fm.Pipeline):
    def __init__(self) -> None:
        super().__init__()
        self.got: list[int] = []

    @fm.producer
    def numbers(self) -> Iterator[int]:
        yield from range(10)

    @fm.stage
    def twice(self, x: int) -> int:
        return x * 2

    @fm.consumer
    def collect(self, x: int) -> None:
        self.got.append(x)


def test_1_in_class_form() -> None:
    line = Line()
    ok(line.run())
    assert line.got == [*range(0, 20, 2)]


@in_contexts(*CONTEXTS)
def test_2_filter(kind: str) -> None:
    line = fm.Pipeline(context=of(kind)).source(range(1, 21))
    line = line.filter(lambda x: x % 7, ordered=True).map(double, ordered=True)
    assert outputs(line) == [2 * x for x in range(1, 21) if x % 7]


@in_contexts(*CONTEXTS)
def test_2_no_items_at_all(kind: str) -> None:
    got = Into()
    line = fm.Pipeline(context=of(kind)).source([]).map(double).batch(3, context="inline")
    result = ok(line.sink(got, context="inline").run())
    assert got == [] and result.outputs == []


# ------------------------------------------------------------------ 3 to 7: several ways


@in_contexts(*CONTEXTS)
def test_3_diamond(kind: str) -> None:
    diamond = (
        fm.Pipeline(context=of(kind))
        .source(range(1, 6), to=["twice", "thrice"])
        .map(lambda x: ("twice", 2 * x), name="twice", to="merge", ordered=True)
        .map(lambda x: ("thrice", 3 * x), name="thrice", to="merge", ordered=True)
        .map(same, name="merge", ordered=True)
    )
    got = outputs(diamond)
    assert multiset(x for _, x in got) == multiset([2, 4, 6, 8, 10, 3, 6, 9, 12, 15])
    for branch, factor in ("twice", 2), ("thrice", 3):
        assert [x for name, x in got if name == branch] == [factor * x for x in range(1, 6)]


@pytest.mark.parametrize("queue_size", [1, 1000])
def test_4_each_consumer_gets_all(queue_size: int) -> None:
    one, two, three = Into(), Into(), Into()
    fan = fm.Pipeline().source(range(8), to=["one", "two", "three"])
    for name, sink in {"one": one, "two": two, "three": three}.items():
        fan = fan.sink(sink, name=name, queue_size=queue_size)
    ok(fan.run())
    assert one == two == three == [*range(8)]


@in_contexts(*CONTEXTS)
def test_4_terminal_stages_of_a_nested_pipeline_drain_to_the_parent(kind: str) -> None:
    def even(x: int) -> bool:
        return x % 2 == 0

    def odd(x: int) -> bool:
        return x % 2 == 1

    inner = (
        fm.Pipeline(context=of(kind))
        .map(same, to=["even", "odd", "all"])
        .filter(even, to=())
        .filter(odd, to=())
        .map(same, name="all", to=())
    )
    got = outputs(fm.Pipeline().source(range(1, 6)).through(inner).map(same))
    assert multiset(got) == multiset([2, 4, 1, 3, 5, 1, 2, 3, 4, 5])


def test_5_a_tree_of_branches() -> None:
    log, archive, store = Into(), Into(), Into()

    def validate(x: int) -> Iterator[int]:
        if x % 2 == 0:
            yield x

    tree = (
        fm.Pipeline()
        .source(range(1, 11), to=["validate", "log"])
        .flat_map(validate, to=["ten", "archive"])
        .map(lambda x: 10 * x, name="ten", to="store")
        .sink(store, name="store")
        .sink(archive, name="archive")
        .sink(log, name="log")
    )
    ok(tree.run())
    assert log == [*range(1, 11)]
    assert archive == [2, 4, 6, 8, 10]
    assert store == [20, 40, 60, 80, 100]


@in_contexts(*CONTEXTS)
def test_6_explicit_and_default_links(kind: str) -> None:
    line = (
        fm.Pipeline(context=of(kind))
        .source(range(3), to=["a", "b"])
        .map(lambda x: x * 10, name="a", to="collect")
        .map(lambda x: x * 100, name="b")
        .map(lambda x: x + 1)
        .map(same, name="collect")
    )
    assert multiset(outputs(line)) == multiset([0, 1, 10, 20, 101, 201])


@in_contexts(*CONTEXTS)
def test_7_from_adds_to_the_default_link(kind: str) -> None:
    line = (
        fm.Pipeline(context=of(kind))
        .source(range(3), name="source")
        .map(double, name="double")
        .map(same, name="collect", from_=["source", "double"])
    )
    assert multiset(outputs(line)) == multiset([0, 0, 1, 2, 2, 4])


@in_contexts(*CONTEXTS)
def test_7_two_lines_meet(kind: str) -> None:
    line = (
        fm.Pipeline(context=of(kind))
        .source([1], name="a", to="b")
        .map(plus_ten, name="b", to="d")
        .source([2], name="c", to="d")
        .map(same, name="d")
    )
    assert multiset(outputs(line)) == multiset([2, 11])


# ------------------------------------------------------------------ 8, 9: one of several


def test_8_round_robin() -> None:
    sinks = [Into(), Into(), Into()]
    line = fm.Pipeline().source(range(10), to=["a", "b", "c"], routing="round_robin")
    for name, sink in zip("abc", sinks, strict=True):
        line = line.sink(sink, name=name)
    ok(line.run())
    assert sinks == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


@in_contexts(THREAD, FORK, WORKERS)
def test_9_balanced_goes_to_the_idlest(kind: str, tmp_path: Path) -> None:
    path = tasks.Log(tmp_path).path

    def slow(x: int) -> tuple[str, int]:
        # As slow as it takes for two thirds of all to go by.
        tasks.eventually(lambda: os.path.getsize(path) >= 60)
        return "slow", x

    def quick(x: int) -> tuple[str, int]:
        with open(path, "ab", buffering=0) as file:
            file.write(b".")
        return "quick", x

    line = (
        fm.Pipeline(context=of(kind, 1))
        .source(range(90), to=["a", "b", "c"], routing="balanced", context="inline")
        .map(slow, name="a", to=(), queue_size=5)
        .map(quick, name="b", to=(), queue_size=5)
        .map(quick, name="c", to=(), queue_size=5)
    )
    got = outputs(line)
    assert sorted(x for _, x in got) == [*range(90)]
    assert sum(name == "slow" for name, _ in got) < 25


# ------------------------------------------------------------------ 10, 11: several producers


class Three(fm.Pipeline):
    @fm.producer
    def a(self) -> Iterator[tuple[str, int]]:
        yield from (("a", i) for i in range(10))

    @fm.producer
    def b(self) -> Iterator[tuple[str, int]]:
        yield from (("b", i) for i in range(5))

    @fm.producer
    def c(self) -> Iterator[tuple[str, int]]:
        yield from (("c", i) for i in range(3))

    @fm.stage(ordered=True)
    def enrich(self, item: tuple[str, int]) -> tuple[str, int, bool]:
        return (*item, True)


@in_contexts(*CONTEXTS)
def test_10_three_producers_feed_the_next_stage(kind: str) -> None:
    class Here(Three, context=of(kind)):
        pass

    result = ok(Here().run())
    got = result.outputs
    assert len(got) == 18
    for name, number in {"a": 10, "b": 5, "c": 3}.items():
        assert [i for source, i, _ in got if source == name] == [*range(number)]
        assert result.stats.stages[name].out == number


def test_11_producers_with_lines_of_their_own() -> None:
    xs, ys = Into(), Into()
    line = (
        fm.Pipeline()
        .source(range(3), to="ten")
        .map(lambda x: x * 10, name="ten", to="xs")
        .sink(xs, name="xs")
        .source(range(100, 103), to="two")
        .map(double, name="two", to="ys")
        .sink(ys, name="ys")
    )
    ok(line.run())
    assert xs == [0, 10, 20]
    assert ys == [200, 202, 204]


# ------------------------------------------------------------------ 12, 13: names


def _two_cycle(line: fm.Pipeline) -> fm.Pipeline:
    return line.map(same, name="alpha", to="beta").map(same, name="beta", to="alpha")


def _three_cycle(line: fm.Pipeline) -> fm.Pipeline:
    line = line.map(same, name="alpha", to="beta").map(same, name="beta", to="gamma")
    return line.map(same, name="gamma", to="alpha")


def _from_cycle(line: fm.Pipeline) -> fm.Pipeline:
    return line.map(same, name="alpha", from_="beta").map(same, name="beta", from_="alpha")


def _pipeline_cycle(line: fm.Pipeline) -> fm.Pipeline:
    alpha, beta = fm.Pipeline("alpha"), fm.Pipeline("beta")
    alpha.through(beta)
    beta.through(alpha)
    return line.through(alpha)


WRONG: dict[str, tuple[Callable[[fm.Pipeline], Any], str]] = {
    "unknown target": (
        lambda p: p.map(same, name="alpha", to="gama").map(same, name="gamma"),
        "(?s)alpha.*gamma|gamma.*alpha",
    ),
    "unknown source": (lambda p: p.map(same, name="alpha", from_="bta"), "alpha"),
    "self-loop": (lambda p: p.map(same, name="alpha", to="alpha"), "alpha"),
    "2-cycle": (_two_cycle, "alpha|beta"),
    "3-cycle": (_three_cycle, "alpha|beta|gamma"),
    "cycle by from_": (_from_cycle, "alpha|beta"),
    "pipeline cycle": (_pipeline_cycle, "alpha|beta"),
    "itself": (lambda p: p.through(p), "itself|cycle"),
    "duplicate": (lambda p: p.map(same, name="alpha").map(double, name="alpha"), "alpha"),
    "unknown context": (
        lambda p: p.map(same, name="alpha", context="thred:2"),
        "(?s)alpha.*thread",
    ),
    "unknown option": (lambda p: p.map(same, name="alpha", queue_sise=3), "(?s)queue_size"),
    "routing": (lambda p: p.map(same, name="alpha", routing="balancd"), "(?s)alpha.*balanced"),
    "queue_size": (lambda p: p.map(same, name="alpha", queue_size=0), "alpha"),
    "timeout": (lambda p: p.map(same, name="alpha", timeout=-1), "alpha"),
    "on_error": (lambda p: p.map(same, name="alpha", on_error="ignore"), "alpha"),
    "dead letter": (
        lambda p: p.map(same, name="alpha", on_error=fm.dead_letter("nobody")),
        "(?s)alpha.*nobody|nobody.*alpha",
    ),
    "key": (lambda p: p.map(same, name="alpha", key=3), "alpha"),
    "batch size": (lambda p: p.batch(0, name="alpha"), "alpha"),
    "batch wait": (lambda p: p.batch(2, max_wait=-1, name="alpha"), "alpha"),
}


@pytest.mark.parametrize("case", WRONG)
def test_12_errors_before_anything_runs(case: str) -> None:
    make, text = WRONG[case]
    ran: list[int] = []

    def rows() -> Iterator[int]:
        ran.append(1)
        yield 1

    with pytest.raises(fm.BuildError, match=text):
        make(fm.Pipeline(before_run=lambda: ran.append(2)).source(rows)).run()
    assert ran == []


def test_12_a_pipeline_without_source_cannot_run() -> None:
    with pytest.raises(fm.BuildError):
        fm.Pipeline().map(same).run()
    with pytest.raises(fm.BuildError):
        fm.Pipeline().run()


def test_12_names_in_class_form() -> None:
    class Wrong(fm.Pipeline):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield 1

        @fm.stage(to="stroe")
        def parse(self, x: int) -> int:
            return x

        @fm.consumer
        def store(self, x: int) -> None: ...

    with pytest.raises(fm.BuildError, match=r"(?s)parse.*stroe.*store"):
        Wrong().run()


def _with_process(factor: int) -> fm.Pipeline:
    return fm.Pipeline().map(lambda x: x * factor, name="process").map(same, name=f"tail{factor}")


def test_13_two_nested_pipelines_may_use_the_same_name() -> None:
    line = fm.Pipeline().source([1, 2]).through(_with_process(2)).through(_with_process(3))
    assert outputs(line) == [6, 12]


def test_13_a_reference_from_outside_is_ambiguous() -> None:
    line = fm.Pipeline().source([1, 2], to="process")
    line = line.through(_with_process(2)).through(_with_process(3))
    with pytest.raises(fm.BuildError, match=r"(?s)process.*ambiguous|ambiguous.*process"):
        line.run()


def test_13_the_nearest_name_wins() -> None:
    # Local before nested.
    line = fm.Pipeline().source([1], to=["process", "sub"])
    line = line.through(_with_process(2), name="sub", to=())
    line = line.map(lambda x: x + 100, name="process", to=())
    assert sorted(outputs(line)) == [2, 101]
    # A child's, where there is none of our own.
    line = fm.Pipeline().source([1], to="process").through(_with_process(2), to=())
    assert outputs(line) == [2]
    # The top pipeline's, seen from a nested one.
    inner = fm.Pipeline().map(same, name="inner", to="last")
    line = fm.Pipeline().source([1]).through(inner, to=())
    line = line.map(lambda x: x + 100, name="last", from_=())
    assert outputs(line) == [101]


# ------------------------------------------------------------------ 14: copies


@pytest.mark.parametrize("second", [INLINE, THREAD, FORK, WORKERS])
@pytest.mark.parametrize("first", [INLINE, THREAD, FORK, WORKERS])
def test_14_each_branch_has_its_own_copy(first: str, second: str) -> None:
    def spoil(item: dict[str, int]) -> None:
        item["v"] = 99

    def read(item: dict[str, int]) -> int:
        time.sleep(0.02)
        return item["v"]

    line = (
        fm.Pipeline()
        .source([{"v": 1}], to=["a", "b"], copy=True)
        .map(spoil, name="a", context=of(first), to=())
        .map(read, name="b", context=of(second), to=())
    )
    assert sorted(outputs(line), key=str) == [1, None]

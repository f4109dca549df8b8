"""Graphs in graphs: written out, mapped, in part, with names of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm

INNER = fm.Graph(
    [fm.node(lambda x: 1 // x, name="invert", output_name="y"), fm.node(lambda y: y + 1, name="w")],
    name="in",
)
OUTER = fm.Graph(
    [INNER.as_node({"xs": "x"}, map_over="xs"), fm.node(lambda y: sum(y), name="total")],
    name="out",
)


def test_a_graph_is_written_out_where_it_stands() -> None:
    g = fm.Graph([INNER, fm.node(lambda w: -w, name="end")])
    assert g.run(x=1) == {"y": 1, "w": 2, "end": -2}
    assert g.run({"x": 1}, "y") == {"y": 1}
    with pytest.raises(ZeroDivisionError) as caught:
        g.run(x=0)
    assert caught.value.failure.stage == "in.invert"  # type: ignore[attr-defined]


def test_a_mapped_graph_gives_lists() -> None:
    assert OUTER.run(xs=[1, 1]) == {"y": [1, 1], "w": [2, 2], "total": 2}
    assert OUTER.run(xs=[]) == {"y": [], "w": [], "total": 0}
    assert OUTER.map({"xs": [[1], [1, 1]]}, "xs")["total"] == [1, 2]
    assert OUTER.inputs == ("xs",) and OUTER.outputs == ("y", "w", "total")


def test_an_inner_failure_is_the_outer_item_s() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        OUTER.run(xs=[1, 0])
    failure: Any = caught.value.failure  # type: ignore[attr-defined]
    assert (failure.stage, failure.item, failure.index) == ("in.invert", {"x": 0}, 1)
    rows = OUTER.map({"xs": [[1], [1, 0], []]}, "xs", on_error="skip")
    (failure,) = rows.failures
    assert (failure.stage, failure.item, failure.index) == ("in.invert", {"x": 0}, 1)
    assert failure.outputs == ("y", "w", "total") and rows[1]["total"] is failure
    with pytest.raises(ZeroDivisionError):
        failure.reproduce()


def test_a_skipping_map_holds_failures_in_its_lists() -> None:
    kinds = fm.node(lambda y: [type(value).__name__ for value in y], name="kinds")
    g = fm.Graph([INNER.as_node({"xs": "x"}, map_over="xs", on_error="skip"), kinds])
    row = g.run(xs=[1, 0, 1])
    assert row["kinds"] == ["int", "Failure", "int"] and row["y"][1] is row["w"][1]
    assert (row["y"][1].stage, row["y"][1].index) == ("in.invert", 1)
    rows = g.map({"xs": [[1], [1, 0]]}, "xs")
    assert rows.failures == [rows[1]["y"][1]] and not rows.ok


def test_what_is_mapped_inside_is_looked_at_when_it_is_there() -> None:
    with pytest.raises(fm.BuildError, match="'xs' is mapped over, and a str") as caught:
        OUTER.run(xs="abc")
    assert caught.value.failure.stage == "in"  # type: ignore[attr-defined]


def test_maps_within_maps() -> None:
    leaf = fm.Graph([fm.node(lambda p, q, k=1: p * q * k, name="z")], name="leaf")
    middle = fm.Graph(
        [
            leaf.as_node(map_over=("p", "q"), map_mode="product"),
            fm.node(lambda z: sum(z), name="s"),
        ],
        name="middle",
    )
    top = fm.Graph([middle.as_node({"ps": "p"}, map_over="ps")])
    assert top.run(ps=[[1, 2], [3]], q=[10, 1]) == {"z": [[10, 1, 20, 2], [30, 3]], "s": [33, 33]}
    assert top.bind(k=2).run(ps=[[1, 2], [3]], q=[10, 1])["s"] == [66, 66]
    assert top.inputs == ("ps", "q", "k")
    with pytest.raises(fm.BuildError, match="'q'"):
        top.run(ps=[[1]])


def test_values_bound_inside_may_be_mapped() -> None:
    inner = fm.Graph([fm.node(lambda x, y: x + y, name="z")], name="in").bind(x=[1, 2])
    g = fm.Graph([inner.as_node(map_over="x")])
    assert g.run(y=10) == {"z": [11, 12]}
    assert g.run(y=10, x=[5]) == {"z": [15]}


def test_only_what_is_wanted_of_a_nested_graph_is_needed() -> None:
    inner = fm.Graph(
        [fm.node(lambda u: u, name="o1"), fm.node(lambda v: v, name="o2")], name="part"
    )
    g = fm.Graph([inner.as_node(map_over="u"), fm.node(lambda o1: len(o1), name="n")])
    assert g.run({"u": [1, 2]}, "n") == {"n": 2}
    assert fm.Graph([inner]).run({"v": 1}, "o2") == {"o2": 1}
    assert fm.Graph([inner.select("o1")]).inputs == ("u",)


def test_constants_are_copied_for_inner_items() -> None:
    def add(x: int, seen: list[int]) -> list[int]:
        seen.append(x)
        return list(seen)

    seen: list[int] = []
    g = fm.Graph([fm.Graph([add], name="in").as_node({"xs": "x"}, map_over="xs")])
    rows = g.map({"xs": [[1, 2], [3]], "seen": seen}, "xs", copy="seen")
    assert rows["add"] == [[[1], [2]], [[3]]] and seen == []


def test_two_nested_graphs_need_two_names() -> None:
    other = INNER.rename(x="x2", y="y2", w="w2")
    with pytest.raises(fm.BuildError, match="'in'"):
        fm.Graph([INNER, other])
    g = fm.Graph([INNER, other.as_node(name="second")])
    assert g.run(x=1, x2=1) == {"y": 1, "w": 2, "y2": 1, "w2": 2}


def nested_of(cell: Any, context: str) -> fm.Graph:
    inner = fm.Graph([fm.node(cell, context=context)], name="inner")
    return fm.Graph([inner.rename(x="xs").as_node(map_over="xs")])


def test_an_inner_map_behind_a_failure_is_not_pulled_any_further() -> None:
    pulled: list[int] = []
    inside = threading.Event()
    last = 50_000

    def taken() -> Iterator[int]:
        for n in range(last):
            pulled.append(n)
            yield n

    def numbers(x: int) -> Any:
        if x == 0:
            assert inside.wait(20)
            raise LookupError("the first")
        return taken()

    def look(n: int) -> int:
        inside.set()
        return n

    inner = fm.Graph([look], name="inner").as_node({"numbers": "n"}, map_over="numbers")
    graph = fm.Graph([fm.node(numbers, context="thread:2"), inner])
    with pytest.raises(LookupError, match="the first"):
        graph.map({"x": [0, 1]}, "x", engine="threaded:2")
    assert 0 < len(pulled) < last


def test_inner_items_are_begun_before_the_next_outer_one_is_pulled() -> None:
    pulled = []
    seen = []

    def lists() -> Iterator[list[int]]:
        for n in range(20):
            pulled.append(n)
            yield [n] * 50

    def cell(x: int) -> int:
        seen.append(len(pulled))
        return x

    rows = nested_of(cell, "thread:1").map({"xs": lists()}, "xs")
    assert [row["cell"] for row in rows] == [[n] * 50 for n in range(20)]
    assert seen[0] == 1

"""A run in the caller's thread with a cache: the generated function asks it, and there is no flow.

It comes to what a run through a flow comes to: the same outputs, failures and calls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
from forkmill.graph import engine as engines


class Calls(list[Any]):
    """What was called; no part of a key."""

    def __cache_key__(self) -> str:
        return "calls"


@pytest.fixture
def no_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a flow was made")

    monkeypatch.setattr(engines, "Flow", refuse)


@pytest.fixture(params=["disk", "memory"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return fm.DiskCache(tmp_path) if request.param == "disk" else fm.MemoryCache(100)


def chain(calls: Calls) -> fm.Graph:
    @fm.node(cache=True)
    def doubled(x: int) -> int:
        calls.append(("doubled", x))
        return x * 2

    @fm.node(output_name=("low", "high"), cache=True)
    def around(doubled: int, width: int = 1) -> tuple[int, int]:
        calls.append(("around", doubled, width))
        return doubled - width, doubled + width

    def total(low: int, high: int) -> int:
        calls.append(("total", low, high))
        return low + high

    return fm.Graph([doubled, around, total])


@pytest.mark.usefixtures("no_flow")
def test_what_is_kept_is_not_called_again(cache: Any) -> None:
    calls = Calls()
    graph, engine = chain(calls), fm.LocalEngine(cache=cache)
    row = {"doubled": 6, "low": 5, "high": 7, "total": 12}
    assert graph.run({"x": 3}, engine=engine) == row
    assert calls == [("doubled", 3), ("around", 6, 1), ("total", 5, 7)]
    calls.clear()
    assert graph.run({"x": 3}, engine=engine) == row
    assert graph.with_engine(engine).run(x=3) == row
    assert calls == [("total", 5, 7)] * 2  # it has no cache
    calls.clear()
    assert graph.bind(width=2).run({"x": 3}, ["low"], engine=engine) == {"low": 4}
    assert graph.run({"doubled": 6}, "high", engine=engine) == {"high": 7}
    assert calls == [("around", 6, 2)]


@pytest.mark.usefixtures("no_flow")
def test_a_bound_value_counts_as_what_it_is_at_each_run(cache: Any) -> None:
    @fm.node(cache=True)
    def size(xs: list[int]) -> int:
        return len(xs)

    values = [1, 2]
    graph, engine = fm.Graph([size]).bind(xs=values), fm.LocalEngine(cache=cache)
    assert graph.run(engine=engine) == {"size": 2}
    values.append(3)
    assert graph.run(engine=engine) == {"size": 3}


@pytest.mark.parametrize("through", ["here", "flow"])
def test_failures_are_those_of_a_flow(cache: Any, through: str) -> None:
    @fm.node(cache=True)
    def first(x: Any) -> Any:
        return x

    def second(first: Any) -> Any:
        raise ValueError(f"not {first}")

    graph = fm.Graph([first, second], name="pair")
    engine = fm.LocalEngine(cache=cache)
    heard: list[Any] = [] if through == "here" else [lambda _: None]  # whom a flow tells
    for _ in range(2):  # the second time it is a hit
        with pytest.raises(ValueError, match="not 7") as failed:
            graph.run({"x": 7}, engine=engine, sinks=heard)
        failure = failed.value.failure  # type: ignore[attr-defined]
        assert (failure.stage, failure.index, failure.item) == ("second", None, {"first": 7})
        assert failure.outputs == ("second",)
    with pytest.raises(TypeError, match=r"node 'first' cannot be cached: argument x") as failed:
        graph.run({"x": object()}, engine=engine, sinks=heard)
    assert failed.value.failure.stage == "first"  # type: ignore[attr-defined]


def test_nested_maps_coroutines_and_listeners_still_have_their_flow(
    cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    flow = engines.Flow
    monkeypatch.setattr(engines, "Flow", lambda *args: made.append(args) or flow(*args))

    @fm.node(cache=True)
    def cell(x: int) -> int:
        return x

    engine, graph = fm.LocalEngine(cache=cache), fm.Graph([cell], name="each")
    nested = fm.Graph([graph.as_node(map_over="x")])
    assert nested.run({"x": [1]}, engine=engine) == {"cell": [1]}
    assert len(made) == 1
    assert graph.run({"x": 1}, engine=engine, sinks=[lambda _: None]) == {"cell": 1}
    assert len(made) == 2

    async def later(cell: int) -> int:
        return cell + 1

    assert fm.Graph([cell, later]).run({"x": 1}, engine=engine) == {"cell": 1, "later": 2}
    assert len(made) == 3
    assert graph.run({"x": 1}, engine=engine) == {"cell": 1}
    assert len(made) == 3

"""What calls of a graph's nodes take, hits of caches and words of nodes are told from any place."""

from __future__ import annotations

import collections
import json
import time
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm

ENGINES = ("sequential", "threaded:2", "async:2", "parallel:2", "cow_fork:2", "loop")
ITEMS = 12


def waits(x: int) -> int:
    time.sleep(0.002)
    if x == 3:
        fm.emit("three")
    return x


async def awaits(x: int) -> int:
    import asyncio

    await asyncio.sleep(0.002)
    return x


def fails(waits: int) -> int:
    if waits == 5:
        raise ValueError(waits)
    return 2 * waits


class Heard:
    """A sink for everything."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


def heard(engine: str, nodes: list[Any], detail: str = "items", **options: Any) -> Heard:
    sink = Heard(detail)
    graph = fm.Graph(nodes)
    how = {"on_error": "skip", "sinks": [sink], **options}
    if engine == "loop":  # an inner map, expanded by the flow
        outer = fm.Graph([graph.as_node(name="inner", map_over="x")])
        outer.run({"x": list(range(ITEMS))}, engine="threaded:2", sinks=[sink])
    else:
        with fm.LocalEngine(engine, engine, cache=options.pop("cache", None)) as opened:
            how.pop("cache", None)
            graph.map({"x": range(ITEMS)}, map_over="x", engine=opened, **how)
    return sink


@pytest.mark.parametrize("engine", ENGINES)
def test_each_call_of_each_node_is_told_with_its_seconds(engine: str) -> None:
    nodes = [waits, awaits] if engine == "loop" else [waits, awaits, fails]
    found: dict[str, list[Any]] = collections.defaultdict(list)
    sink = heard(engine, nodes)
    for event in sink.of("items"):
        assert event["worker"] is not None
        name = event["name"].removeprefix("inner.")
        found[name] += fm.events.expand(event)
    assert {name: len(calls) for name, calls in found.items()} == {
        name.__name__: ITEMS for name in nodes
    }
    for name in ("waits", "awaits"):
        measured = [call["seconds"] for call in found[name]]
        assert None not in measured
        assert min(measured) >= 0.002
    run = sink.of("run_started")[0]["run"]
    words = sink.of("said")
    assert [(word["run"], word["data"]["value"]) for word in words] == [(run, "three")]


@pytest.mark.parametrize("engine", ENGINES[:-1])
def test_hits_of_a_cache_are_told_wherever_it_is_asked(engine: str, tmp_path: Path) -> None:
    node = fm.node(waits, cache=True)
    cache = fm.DiskCache(tmp_path)
    for hits in (0, ITEMS):
        sink = heard(engine, [node], "runs", cache=cache)
        told = [event["data"].get("count", 1) for event in sink.of("cached")]
        assert sum(told) == hits
        assert {event["name"] for event in sink.of("cached")} <= {"waits"}
        assert not sink.of("items")


@pytest.mark.parametrize("engine", ["threaded:2", "parallel:2"])
def test_traces_and_reports_have_a_graphs_timeline(engine: str, tmp_path: Path) -> None:
    trace, report = tmp_path / "trace.json", tmp_path / "report.html"
    sink = fm.chrome_trace(trace)
    graph = fm.Graph([waits])
    graph.map({"x": range(ITEMS)}, "x", engine=engine, sinks=[sink], report=report)
    sink.close()
    slices = [piece for piece in json.loads(trace.read_text()) if piece["ph"] == "X"]
    assert [piece["name"] for piece in slices if piece["name"] == "waits"] == ["waits"] * ITEMS
    assert "waits" in report.read_text()


def test_nothing_is_measured_where_nobody_wants_it() -> None:
    sink = heard("parallel:2", [waits], "runs")
    assert not sink.of("items")
    assert sink.of("run_finished")


def doubled(waits: int) -> int:
    return 2 * waits


def after(fails: int, doubled: int) -> int:
    return fails + doubled


@pytest.mark.parametrize("engine", ENGINES[:-1])
def test_who_never_ran_is_not_counted(engine: str) -> None:
    """Behind a node that failed, in the same group or another, and what is beside it is done."""
    sink = Heard("runs")
    elsewhere = fm.node(after, output_name="elsewhere", context="thread:1")
    graph = fm.Graph([waits, fails, doubled, after, elsewhere])
    rows = graph.map({"x": range(ITEMS)}, "x", engine=engine, on_error="skip", sinks=[sink])
    told = {e["name"]: e["data"] for e in sink.of("node_finished") if "in" in e["data"]}
    counts = {name: (data["in"], data["out"], data["failed"]) for name, data in told.items()}
    whole = (ITEMS, ITEMS, 0)
    assert counts == {
        "waits": whole, "doubled": whole, "fails": (ITEMS, ITEMS - 1, 1),
        "after[after]": (ITEMS - 1, ITEMS - 1, 0), "after[elsewhere]": (ITEMS - 1, ITEMS - 1, 0),
    }  # fmt: skip
    stats = rows.stats.stages
    assert {name: (s.in_, s.out, s.failed) for name, s in stats.items()} == counts

"""A node's own look at the state."""

from __future__ import annotations

import copy
import dataclasses
import json
import operator
import pickle
from typing import Annotated, Any, TypedDict

import pytest

import forkmill as fm
from forkmill.stategraph.schema import UNSET, Schema
from forkmill.stategraph.view import viewer


def state(opened: list[str] | None = None, **late: Any) -> Any:
    def open_wire(wire: Any) -> Any:
        if opened is not None:
            opened.append(wire[0])
        return wire[1]

    wires = {key: (key, value) for key, value in late.items()}
    return viewer(None, ("a", "b", "c", "n"), open_wire)({"n": 1}, wires)


def test_a_value_is_opened_at_the_first_look_and_once() -> None:
    opened: list[str] = []
    view = state(opened, a=[1], b=[2])
    assert "a" in view and "z" not in view
    assert view["n"] == 1
    assert opened == []
    assert view["a"] is view["a"]
    assert opened == ["a"]
    assert view.get("b") == [2] and view.get("z", 5) == 5
    assert opened == ["a", "b"]


def test_two_views_are_equal_as_dicts_are() -> None:
    assert state(a=[1]) == state(a=[1])
    assert state(a=[1]) != state(a=[2]) and state() != state(a=[1])
    assert state(a=[1]) | state(b=[2]) == {"a": [1], "b": [2], "n": 1}
    view = state(a=[1])
    view |= state(b=[2])
    view.update(state(c=[3]))
    assert view == state(a=[1], b=[2], c=[3])


@pytest.mark.parametrize(
    "whole",
    [
        dict,
        lambda view: {**view},
        lambda view: view.copy(),
        copy.copy,
        copy.deepcopy,
        lambda view: view | {},
        lambda view: {} | view,
        lambda view: dict(view.items()),
        lambda view: {key: view[key] for key in view},
        lambda view: dict(zip(view.keys(), view.values(), strict=True)),
        lambda view: pickle.loads(pickle.dumps(view)),
        lambda view: json.loads(json.dumps(view)),
    ],
)
def test_it_is_a_dict_whoever_looks(whole: Any) -> None:
    found = whole(state(b=[2], a=[1]))
    assert found == {"a": [1], "b": [2], "n": 1}
    assert list(found) == ["a", "b", "n"]


def test_it_can_be_changed_as_a_dict() -> None:
    view = state(a=[1], b=[2], c=[3])
    view["a"] = 5
    del view["b"]
    assert view == {"a": 5, "c": [3], "n": 1}
    assert view.pop("c") == [3] and len(view) == 2
    assert view.setdefault("z", 0) == 0
    view.update(y=1)
    assert sorted(view) == ["a", "n", "y", "z"]
    with pytest.raises(KeyError):
        del view["b"]
    view.clear()
    assert not view and "c" not in view


def test_what_is_not_there_is_told_with_the_nearest_name() -> None:
    with pytest.raises(KeyError, match="'aa' is not in the state, did you mean 'a'"):
        state(a=1)["aa"]


@dataclasses.dataclass
class Point:
    x: int
    y: list[int] = dataclasses.field(default_factory=list)
    name: str = "p"


@dataclasses.dataclass(frozen=True, slots=True)
class Hard:
    x: Any = 0


def test_a_dataclass_is_one() -> None:
    opened = []

    def open_wire(wire: Any) -> Any:
        opened.append(wire)
        return wire[1]

    view = viewer(Point, ("x", "y", "name"), open_wire)({"name": "q"}, {"y": (1, [4])})
    assert isinstance(view, Point) and view.__class__ is Point
    assert view.name == "q" and not opened
    assert view.y == [4] and view.y is view.y and len(opened) == 1
    with pytest.raises(AttributeError, match="'x' is not in the state"):
        _ = view.x
    view.x = 3
    assert view == Point(3, [4], "q") and Point(3, [4], "q") == view
    assert repr(view).endswith("Point(x=3, y=[4], name='q')")
    assert view["x"] == 3
    assert type(pickle.loads(pickle.dumps(view))) is Point
    assert type(dataclasses.replace(view, x=4)) is Point
    assert dataclasses.asdict(view) == {"x": 3, "y": [4], "name": "q"}


def test_a_frozen_dataclass_with_slots_too() -> None:
    view = viewer(Hard, ("x",), lambda wire: wire[1])({}, {"x": (1, [2])})
    assert view.x == [2]
    assert isinstance(view, Hard)


# ----------------------------------------------------------------------------- schemas


class Typed(TypedDict, total=False):
    plain: list[int]
    log: Annotated[list[int], operator.add]
    number: Annotated[int, "docs", operator.add]
    most: Annotated[float, max]
    text: Annotated[str, operator.add]
    seen: Annotated[set[int], operator.or_]
    other: Annotated[bytearray, operator.add]
    tail: Annotated[list[int], fm.append]


def test_keys_start_as_their_annotation_says() -> None:
    schema = Schema(Typed)
    starts = {key.name: key.start() for key in schema.keys.values()}
    assert starts == {
        "plain": UNSET,
        "log": [],
        "number": 0,
        "most": 0.0,
        "text": "",
        "seen": set(),
        "other": UNSET,
        "tail": [],
    }
    assert schema.keys["plain"].reducer is None
    assert schema.keys["most"].reducer is max


@dataclasses.dataclass
class Data:
    x: int
    y: int = 5
    log: Annotated[list[int], operator.add] = dataclasses.field(default_factory=lambda: [1])


def test_a_dataclass_gives_its_defaults() -> None:
    starts = {key.name: key.start() for key in Schema(Data).keys.values()}
    assert starts == {"x": UNSET, "y": 5, "log": [1]}
    graph = fm.StateGraph(Data)
    graph.add_node("a", lambda state: {"x": state.x + state.y, "log": [2]})
    graph.add_edge(fm.START, "a")
    run = graph.compile().invoke({"x": 1})
    assert (run.state.x, run["x"], run["log"]) == (6, 6, [1, 2])
    assert graph.compile().invoke(Data(7))["x"] == 12


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (3, "a TypedDict, a dataclass or a dict"),
        (int, "a TypedDict, a dataclass or a dict"),
        ({}, "no keys"),
        ({"a": 3}, "'a': a reducer is a function"),
        ({1: None}, "must be a str"),
        ({"a": lambda x: x}, r"'a': the reducer .* cannot be called with \(old, new\)"),
    ],
)
def test_what_is_no_schema_is_refused(source: Any, words: str) -> None:
    with pytest.raises(fm.BuildError, match=words):
        fm.StateGraph(source)

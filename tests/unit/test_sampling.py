"""One cell of each case runs each time, and every place has some."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sampling

ENGINES = ["inline", "thread", "async", "ipc_fork", "cow_fork"]


class Item(SimpleNamespace):
    """What is asked of a test that was collected."""

    def __init__(self, path: str, name: str, marks: tuple[str, ...] = (), **params: Any) -> None:
        super().__init__(path=Path(path), nodeid=f"{path}::{name}[x]", marks={*marks})
        if params:
            self.callspec = SimpleNamespace(params=params)

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None

    def add_marker(self, mark: Any) -> None:
        self.marks.add(mark.name)


def table(path: str, *marks: str) -> list[Any]:
    cells = itertools.product(range(7), ENGINES, ["memory", "sqlite"])
    return [
        Item(path, "test", marks, case=case, engine=engine, store=store)
        for case, engine, store in cells
    ]


def running(items: list[Any]) -> list[Any]:
    sampling.apply(items)
    return [item.callspec.params for item in items if "slow" not in item.marks]


def test_a_third_runs_and_each_case_and_each_place_is_among_it() -> None:
    taken = running(table("tests/unit/test_a.py"))
    assert len(taken) == 7 * -(-len(ENGINES) * 2 // sampling.SAMPLED)
    assert {params["case"] for params in taken} == {*range(7)}
    places = {(params["engine"], params["store"]) for params in taken}
    assert places == {*itertools.product(ENGINES, ["memory", "sqlite"])}
    assert running(table("tests/unit/test_a.py")) == taken


def test_what_is_tried_in_one_place_or_asks_for_all_is_left_as_it_is() -> None:
    whole = [
        *table("tests/contract/test_a.py"),
        *table("tests/unit/test_b.py", "everywhere"),
        Item("tests/unit/test_c.py", "test"),
        *(Item("tests/unit/test_d.py", "test", engine="inline", case=case) for case in range(5)),
        *(Item("tests/unit/test_e.py", "test", case=case) for case in range(5)),
    ]
    sampling.apply(whole)
    assert not any("slow" in item.marks for item in whole)


def test_tests_with_the_same_places_take_turns() -> None:
    items: list[Any] = [
        Item("tests/unit/test_a.py", f"test_{i}", context=context)
        for i in range(10)
        for context in ENGINES
    ]
    assert {params["context"] for params in running(items)} == {*ENGINES}

"""One copy of a constant an item, whatever carries it out; large values go to a worker once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import forkmill as fm

ENGINES: dict[str, Callable[[], Any]] = {
    "sequential": lambda: None,
    "threaded": lambda: "threaded:2",
    "async": lambda: "async:2",
    "parallel": lambda: "parallel:2",
    "cow_fork": lambda: "cow_fork:2",
    "nodes in threads": lambda: fm.LocalEngine("threaded:2"),
    "some in threads": lambda: fm.LocalEngine(contexts={"again": "thread:2"}),
}


def append(x: int, seen: list[int]) -> int:
    seen.append(x)
    return len(seen)


def again(append: int, seen: list[int]) -> int:
    seen.append(append)
    return len(seen)


def beside(x: int, again: int, seen: list[int]) -> list[int]:
    return list(seen)


@pytest.mark.parametrize("name", ENGINES)
def test_nodes_of_an_item_share_its_copy(name: str) -> None:
    seen = [0]
    graph = fm.Graph([append, again, beside])
    rows = graph.map({"x": [5, 6], "seen": seen}, "x", copy="seen", engine=ENGINES[name]())
    assert rows["again"] == [3, 3]
    assert rows["beside"] == [[0, 5, 2], [0, 6, 2]]
    assert seen == [0]


class Uncopied:
    """What cannot be copied."""

    def __deepcopy__(self, memo: object) -> Any:
        raise ValueError("there is only one")


def takes(x: int, seen: Any) -> int:
    return x


def beyond(takes: int, x: int) -> int:
    return takes


@pytest.mark.parametrize("name", ["sequential", "nodes in threads", "some in threads"])
def test_what_cannot_be_copied_fails_the_node_that_reads_it(name: str) -> None:
    graph = fm.Graph([takes, beyond])
    given = {"x": [5, 6], "seen": Uncopied()}
    engine = fm.LocalEngine("threaded:2") if name != "sequential" else None
    rows = graph.map(given, "x", copy="seen", engine=engine, on_error="skip")
    assert [failure.stage for failure in rows.failures] == ["takes", "takes"]
    assert rows[1]["beyond"] is rows[1]["takes"]
    assert str(rows[0]["takes"].error) == "there is only one"


class Table:
    """Counts how often it is encoded here."""

    encoded = 0

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        Table.encoded += 1
        return Table, (self.data,)


def table(n: int) -> Table:
    return Table(bytes(n))


def pick(x: int, table: Table) -> int:
    return len(table.data) + x


def test_what_an_outer_node_computed_is_encoded_once_for_all_inner_items() -> None:
    Table.encoded = 0
    inner = fm.Graph([pick], name="inner")
    each = inner.rename(x="row", pick="picks").as_node(map_over="row")
    rows_of = fm.Graph([each], name="deeper").rename(row="rows").as_node(map_over="rows")
    graph = fm.Graph([fm.node(table, context="thread:1"), rows_of])
    given = {"n": [100_000, 200_000], "rows": [[list(range(20))] * 2] * 2}
    rows = graph.map(given, ["n", "rows"], engine="parallel:2")
    assert rows["picks"][1] == [[200_000 + x for x in range(20)]] * 2
    assert Table.encoded == 2


def fails_late(x: int, table: Table) -> int:
    if x == 7:
        raise ValueError(x)
    return x


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_inner_failure_has_the_value_itself(on_error: str) -> None:
    inner = fm.Graph([fails_late], name="inner").as_node(map_over="x", on_error=on_error)
    graph = fm.Graph([fm.node(table, context="thread:1"), inner])
    given = {"n": [100_000], "x": [list(range(10))]}
    rows = graph.map(given, ["n", "x"], on_error="skip", engine="parallel:2")
    (failure,) = rows.failures
    assert type(failure.item["table"]) is Table
    with pytest.raises(ValueError, match="7"):
        failure.reproduce()

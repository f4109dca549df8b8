"""Items that come back together go on together: to the same rows as one by one."""

from __future__ import annotations

from typing import Any

import pytest

import forkmill as fm
from forkmill.graph.flow import FRAMES
from forkmill.graph.frames import Frames


def low(x: int) -> int:
    if not x % 10:
        raise ValueError(x)
    return x // 2


def high(x: int) -> tuple[int, Any]:
    if not x % 7:
        raise KeyError(x)
    return x + 1, None if x % 3 else StopIteration(x)


def sums(low: int, up: int) -> int:
    return low + up


def last(sums: int, odd: Any, x: int) -> Any:
    if not x % 11:
        raise RuntimeError(x)
    return sums, repr(odd), x


def graph_of(contexts: tuple[str, ...]) -> fm.Graph:
    names: tuple[Any, ...] = (None, ("up", "odd"), None, None)
    return fm.Graph([
        fm.node(fn, output_name=name, context=context)
        for fn, name, context in zip((low, high, sums, last), names, contexts, strict=True)
    ])  # fmt: skip


def told(row: dict[str, Any]) -> dict[str, Any]:
    """A row, with what is known of its failures."""
    return {
        name: (value.stage, value.index, repr(value.item), value.outputs, repr(value.error))
        if isinstance(value, fm.Failure)
        else repr(value)
        for name, value in row.items()
    }


@pytest.mark.parametrize(
    ("contexts", "lazy"),
    [
        (("thread:2", "thread:1", "thread:1", "thread:2"), False),
        (("thread:2", "thread:1", "thread:1", "thread:2"), True),
        (("ipc_fork:2", "thread:1", "inline", "ipc_fork:2"), False),
        (("inline", "async", "ipc_fork:1", "thread:3"), False),
    ],
    ids=["threads", "threads, from a generator", "processes", "a bit of all"],
)
def test_joins_and_losses_are_those_of_a_sequential_map(
    contexts: tuple[str, ...], lazy: bool
) -> None:
    values = list(range(1, 400))
    plain, mixed = graph_of(("inline",) * 4), graph_of(contexts)
    due = [told(row) for row in plain.map({"x": values}, "x", on_error="skip")]
    given: Any = iter(values) if lazy else values
    found = mixed.map({"x": given}, "x", on_error="skip")
    assert [told(row) for row in found] == due
    with pytest.raises(KeyError, match="7") as failed:
        mixed.map({"x": values}, "x")
    assert failed.value.failure.index == 6  # type: ignore[attr-defined]


def test_what_comes_of_copies_caches_and_nested_maps_is_the_same() -> None:
    def each(x: int, seen: list[int]) -> list[int]:
        seen.append(x)
        return seen

    def count(ones: list[Any]) -> int:
        return sum(map(sum, ones))

    def total(count: int, x: int) -> int:
        return count + x

    cell = fm.Graph([fm.node(each, context="thread:1")], name="cell")
    inner = cell.rename(x="xs", each="ones").as_node(map_over="xs")
    nodes = [fm.node(count, context="thread:2", cache=True), fm.node(total, context="thread:1")]
    graph = fm.Graph([inner, *nodes])
    items = {"xs": [list(range(n % 5)) for n in range(60)], "x": list(range(60)), "seen": [7]}
    for cache in (None, fm.MemoryCache(100)):
        rows = graph.map(
            items, ["xs", "x"], copy=("seen",), engine=fm.LocalEngine(cache=cache)
        )  # fmt: skip
        due = graph.map(items, ["xs", "x"], copy=("seen",), engine=fm.LocalEngine(contexts={
            "ones": "inline", "count": "inline", "total": "inline",
        }))  # fmt: skip
        assert rows["total"] == due["total"] and rows["ones"] == due["ones"]


def test_many_go_on_with_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[Any] = []
    start = Frames._start
    monkeypatch.setattr(Frames, "_start", lambda *args: (alone.append(args), start(*args)))
    graph = graph_of(("thread:1", "thread:2", "thread:1", "inline"))
    values = [x for x in range(4 * FRAMES) if x % 10 and x % 7 and x % 11]
    rows = graph.map({"x": values}, "x", output_name="last")
    assert rows[-1]["last"][2] == values[-1]
    assert not [post for _, _, post in alone if not post.group.after]  # all of the first group's

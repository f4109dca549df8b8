"""Items that come back together go on together: to the same rows as one by one."""

from __future__ import annotations

from typing import Any

import pytest

import forkmill as fm
from forkmill.graph import calls, sweep, ways
from forkmill.graph.flow import FRAMES, SOME, Flow
from forkmill.graph.frames import Frames
from forkmill.graph.ways import Ended


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


def chain_of(*functions: Any) -> fm.Graph:
    contexts = ("thread:1", "thread:2", "thread:3")
    return fm.Graph([
        fm.node(fn, context=context) for fn, context in zip(functions, contexts, strict=False)
    ])  # fmt: skip


@pytest.fixture
def lots(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``lots(group, [...], [...])``: what a group's calls give comes back in such lots of items."""

    def come(group: int, *lots: list[int]) -> None:
        held: dict[int, Any] = {}
        due = list(lots)
        take = ways.Way.take

        def lot(self: Any) -> list[Any]:
            found = take(self)
            if found and found[0][0].group.number != group:
                return found
            held.update((frame.index, (post, frame, out)) for post, frame, out in found)
            self.out += len(found)
            if not due or len(held) < sum(map(len, due)) or not self.out:
                return []
            self.bell.ring()
            now = [held.pop(index) for index in due.pop(0)]
            self.out -= len(now)
            return now

        monkeypatch.setattr(ways.Way, "take", lot)

    return come


DOWN = list(range(19, -1, -1))


@pytest.mark.parametrize("order", [[DOWN], [[5], [n for n in DOWN if n != 5]]], ids=len)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_of_items_that_come_with_a_failure_only_those_before_it_go_on(
    on_error: str, order: list[list[int]], lots: Any
) -> None:
    called = []

    def first(x: int) -> int:
        if x == 5:
            raise KeyError(x)
        return x

    def second(first: int) -> int:
        called.append(first)
        return first

    graph = chain_of(first, second)
    lots(0, *order)
    if on_error == "raise":
        with pytest.raises(KeyError, match="5"):
            graph.map({"x": range(20)}, "x")
        assert sorted(called) == [0, 1, 2, 3, 4]
    else:
        rows = graph.map({"x": range(20)}, "x", on_error="skip")
        assert [rows[n]["second"] for n in range(20) if n != 5] == sorted(called)
        assert rows.failures[0] is rows[5]["second"]


def test_no_row_behind_a_failure_comes_out(lots: Any) -> None:
    def first(x: int) -> int:
        return x

    def second(first: int) -> int:
        if first == 1:
            raise KeyError(first)
        return first

    lots(1, [3, 2, 1, 0])
    graph, got = chain_of(first, second), []
    with pytest.raises(KeyError, match="1"):
        for row in graph.imap({"x": range(4)}, "x", ordered=False, buffersize=4):
            got.append(row["first"])
    assert got == [0]


class Calls(list[int]):
    """What was called; no part of a key."""

    def __cache_key__(self) -> str:
        return "calls"


def test_what_comes_back_at_once_is_kept_in_the_parent_s_cache(lots: Any) -> None:
    called = Calls()

    def first(x: int) -> int:
        called.append(x)
        return x + 1

    def second(first: int) -> int:
        return first * 2

    graph = chain_of(fm.node(first, cache=True), second)
    cache = fm.MemoryCache(100)
    lots(0, DOWN)
    for _ in range(2):
        rows = graph.map({"x": range(20)}, "x", engine=fm.LocalEngine(cache=cache))
        assert rows["second"] == [2 * x + 2 for x in range(20)]
    assert sorted(called) == list(range(20))


def test_a_map_has_so_many_items_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast its executors are: they would want 16,384."""
    monkeypatch.setattr(ways, "LEAD_S", 1000.0)
    most = []
    begin = Flow._begin_all

    def begun(self: Any, level: Any, items: Any) -> None:
        begin(self, level, items)
        most.append(len(level.running))

    monkeypatch.setattr(Flow, "_begin_all", begun)
    graph = chain_of(lambda_named("one", "x"), lambda_named("two", "one"))
    rows = graph.map({"x": range(8 * FRAMES)}, "x")
    assert rows["two"] == list(range(8 * FRAMES))
    assert FRAMES - SOME <= max(most) <= FRAMES + SOME


def lambda_named(name: str, read: str) -> Any:
    scope: dict[str, Any] = {}
    exec(f"def {name}({read}): return {read}", scope)
    return scope[name]


def test_rows_of_one_output_are_made_when_somebody_looks() -> None:
    graph = chain_of(lambda_named("one", "x"), lambda_named("two", "one"))
    rows = graph.map({"x": range(50)}, "x", output_name="two")
    assert rows._gathered._rows is None
    assert rows["two"] == list(range(50))
    assert rows[7] == {"two": 7} and rows[7] is rows[7] and rows._gathered._rows is None
    assert list(rows) == [{"two": x} for x in range(50)]
    assert graph.map({"x": range(50)}, "x")[7] == {"one": 7, "two": 7}
    assert list(graph.imap({"x": range(50)}, "x", output_name="two")) == list(rows)


def test_what_comes_in_any_order_is_one_block_of_rows(
    lots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = []
    put = calls._Line.put
    monkeypatch.setattr(
        calls._Line, "put", lambda self, block: (blocks.append(len(block)), put(self, block))[1]
    )
    lots(1, DOWN)
    rows = chain_of(lambda_named("one", "x"), lambda_named("two", "one")).map({"x": range(20)}, "x")
    assert rows["two"] == list(range(20))
    assert blocks == [20]


def test_what_a_sweep_of_threads_has_lost_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of ours dies; whatever else loses a call, the map is not over without it."""
    lost: list[int] = []
    run = sweep.SweepWay._run

    def losing(self: Any, span: Any) -> None:
        run(self, span)
        for at, item in enumerate(span.given[: len(span.outs)]):
            if item == 7 and not lost:
                lost.append(span.first + at)
                span.outs[at] = Ended(fm.WorkerDied("lost"), item)

    monkeypatch.setattr(sweep.SweepWay, "_run", losing)
    graph = fm.Graph([fm.node(lambda x: 2 * x, output_name="y", retry=fm.retry(2, 0.0), name="y")])
    rows = graph.map({"x": range(20)}, "x", engine="threaded:2")
    assert lost == [7]
    assert rows["y"] == [2 * x for x in range(20)]


def test_groups_of_a_run_that_come_back_together() -> None:
    graph = fm.Graph([lambda_named("one", "x"), lambda_named("two", "x")])
    engine = fm.LocalEngine(contexts={"one": "inline", "two": "inline"})
    assert graph.run({"x": 3}, engine=engine) == {"one": 3, "two": 3}

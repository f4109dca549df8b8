"""The function graph as its contract has it: nodes, wiring, runs, maps, nested graphs.

Every test runs in every executor that it can mean; the numbers are those of the list of scenarios.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import itertools
import operator
import os
import pickle
import random
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import graph_tasks as g
from graph_tasks import ENGINES, FORK, PARALLEL, SEQUENTIAL, THREADED, everywhere, in_engines

np = pytest.importorskip("numpy")

DIAMOND = fm.Graph([g.double, g.increment, g.add])


# --------------------------------------------------------------------------- nodes


@everywhere
def test_1_one_node(engine: str) -> None:
    graph = fm.Graph([g.double])
    assert graph.run({"x": 5}, engine=engine) == {"y": 10}
    assert graph.run(x=5, engine=engine) == {"y": 10}
    assert g.double(5) == g.double(x=5) == 10


@everywhere
def test_2_defaults_bound_values_and_arguments(engine: str) -> None:
    graph = fm.Graph([g.scaled])
    assert graph.run({"x": 2}, engine=engine) == {"scaled": (2, 3)}
    assert graph.run({"x": 2, "k": 5}, engine=engine) == {"scaled": (2, 5)}
    bound = graph.bind(k=4)
    assert bound.run({"x": 2}, engine=engine) == {"scaled": (2, 4)}
    assert bound.run({"x": 2, "k": 5}, engine=engine) == {"scaled": (2, 5)}
    assert bound.unbind("k").run({"x": 2}, engine=engine) == {"scaled": (2, 3)}
    assert graph.run({"x": 2}, engine=engine) == {"scaled": (2, 3)}  # nothing changes a graph
    assert bound.bind(x=None).run(engine=engine) == {"scaled": (None, 4)}


def logged(name: str, *inputs: str) -> Any:
    """A node that writes its name to a log."""
    text = f"def {name}({', '.join([*inputs, 'log'])}):\n    log({name!r})\n    return {name!r}"
    names: dict[str, Any] = {}
    exec(text, names)
    return names[name]


@everywhere
def test_3_each_node_of_a_diamond_runs_once(engine: str, tmp_path: Path) -> None:
    nodes = [logged("top", "x"), logged("left", "top"), logged("right", "top")]
    nodes.append(logged("bottom", "left", "right"))
    orders = list(itertools.permutations(nodes))
    for number, order in enumerate(random.Random(1).sample(orders, 3)):
        log = g.Log(tmp_path, str(number))
        result = fm.Graph(order).run({"x": 1, "log": log}, engine=engine)
        assert result == {name: name for name in ("top", "left", "right", "bottom")}
        assert sorted(log.lines) == ["bottom", "left", "right", "top"]
        assert (log.lines[0], log.lines[-1]) == ("top", "bottom")


def test_3_one_worker_has_one_order(tmp_path: Path) -> None:
    nodes = [logged(name, "x") for name in "abcdef"]
    orders = []
    for number in range(4):
        random.Random(number).shuffle(nodes)
        log = g.Log(tmp_path, str(number))
        fm.Graph(nodes).run({"x": 1, "log": log})
        orders.append(log.lines)
    assert all(order == orders[0] for order in orders)


@everywhere
def test_4_two_outputs(engine: str) -> None:
    graph = fm.Graph([g.divide, fm.node(lambda q, r: (r, q), output_name="swapped")])
    assert graph.run({"x": 17}, engine=engine) == {"q": 5, "r": 2, "swapped": (2, 5)}
    listed = fm.node(lambda x: [x, x + 1], output_name=("a", "b"))
    named = fm.node(lambda x: {"d": x, "c": x + 1}, output_name=("c", "d"))
    result = fm.Graph([listed, named]).run({"x": 1}, engine=engine)
    assert result == {"a": 1, "b": 2, "c": 2, "d": 1}


@everywhere
@pytest.mark.parametrize(
    ("returned", "has"),
    [((1, 2, 3), "3"), ((1,), "1"), ([], "0"), ({"a": 1}, "a"), ({"a": 1, "c": 2}, "c"), (7, "int"),
     ("ab", "str"), (None, "None")],
)  # fmt: skip
def test_4_a_wrong_number_of_outputs_fails_the_node(engine: str, returned: Any, has: str) -> None:
    if engine not in (SEQUENTIAL, PARALLEL) and returned != (1, 2, 3):
        pytest.skip("the same code decides")
    node = fm.node(lambda x: returned, output_name=("a", "b"), name="makes")
    with pytest.raises(Exception) as error:
        fm.Graph([node]).run({"x": 1}, engine=engine)
    text = str(error.value) + "".join(getattr(error.value, "__notes__", ()))
    assert "makes" in text and has in text
    assert "2" in text or "'a', 'b'" in text


# ------------------------------------------------------------------- what does not build


def raises(*names: str) -> Any:
    return pytest.raises(fm.BuildError, match="(?s)" + "".join(f"(?=.*{name})" for name in names))


def unreachable(x: Any) -> Any:
    raise AssertionError("user code ran")


def test_5_two_producers_of_a_name() -> None:
    one = fm.node(unreachable, output_name="out", name="first_one")
    two = fm.node(unreachable, output_name=("other", "out"), name="second_one")
    with raises("out", "first_one", "second_one"):
        fm.Graph([one, two])


def test_5_cycles() -> None:
    with raises("a", "b"):
        fm.Graph([fm.node(lambda b: b, output_name="a"), fm.node(lambda a: a, output_name="b")])
    with raises("selfish"):
        fm.Graph([fm.node(lambda selfish: 1, output_name="selfish")])
    inner = fm.Graph([fm.node(lambda b: b, output_name="a")], name="inner")
    with raises("a", "b", "inner"):
        fm.Graph([inner.as_node(), fm.node(lambda a: a, output_name="b")])


def yields(x: Any) -> Iterator[Any]:
    yield x


async def yields_async(x: Any) -> Any:
    yield x


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: fm.Graph([lambda x: x]), ("name",)),
        (lambda: fm.Graph([fm.node(lambda *args: 1, output_name="a")]), ("args",)),
        (lambda: fm.Graph([fm.node(lambda **kw: 1, output_name="a")]), ("kw",)),
        (lambda: fm.Graph([yields]), ("yields", "generator")),
        (lambda: fm.Graph([yields_async]), ("yields_async", "generator")),
        (lambda: fm.Graph([fm.Graph([g.double])]), ("name",)),
        (lambda: fm.Graph([5]), ("int",)),
        (lambda: fm.Graph([g.double]).bind(xx=1), ("xx", "x")),
        (lambda: fm.Graph([g.double]).bind(y=1), ("y",)),
        (lambda: fm.Graph([g.double]).unbind("q"), ("q",)),
        (lambda: fm.Graph([g.double]).rename(xx="z"), ("xx",)),
        (lambda: fm.Graph([g.double, g.increment]).rename(x="z"), ("z",)),
        (lambda: fm.Graph([g.double]).select("yy"), ("yy", "y")),
        (lambda: fm.Graph([g.double], name="i").as_node(input_mapping={"a": "b"}), ("b",)),
        (lambda: fm.Graph([g.double], name="i").as_node(output_mapping={"b": "c"}), ("b",)),
        (lambda: fm.Graph([g.double], name="i").as_node(map_over="k"), ("k",)),
        (lambda: fm.Graph([g.double], name="i").as_node(map_over="x", map_mode="zap"), ("zap",)),
        (lambda: fm.Graph([g.double], name="i").as_node(map_over="x", on_error="no"), ("no",)),
        (lambda: fm.Graph([g.double], engine="paralel"), ("paralel", "parallel")),
        (lambda: fm.Graph([g.double]).with_engine("sequental"), ("sequental", "sequential")),
        (lambda: fm.node(g.scaled, retry=fm.retry(2, then="abort")), ("then",)),
        (lambda: fm.node(g.scaled, timeout=-1), ("timeout",)),
        (lambda: fm.node(g.scaled, output_name=("a", "a")), ("a",)),
    ],
)
def test_5_what_cannot_be_is_refused_with_its_names(make: Any, names: tuple[str, ...]) -> None:
    with raises(*names):
        make()


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda graph: graph.run({"x": 1, "zzz": 2}), ("zzz",)),
        (lambda graph: graph.run({"X": 1, "w": 1}), ("X", "x")),
        (lambda graph: graph.run(), ("x", "w")),
        (lambda graph: graph.run({"x": 1}), ("w",)),
        (lambda graph: graph.run({"x": 1, "w": 1}, output_name="zed"), ("zed",)),
        (lambda graph: graph.run({"x": 1, "w": 1}, engine="thraeded"), ("thraeded", "threaded")),
        (lambda graph: graph.run({"x": 1, "w": 1}, x=2), ("x",)),
        (lambda graph: graph.map({"x": [1], "w": 1}, map_over="q"), ("q",)),
        (lambda graph: graph.map({"x": [1]}, map_over="x"), ("w",)),
        (lambda graph: graph.map({"x": [1], "w": 1}, map_over="x", map_mode="zup"), ("zup",)),
        (lambda graph: graph.map({"x": [1], "w": 1}, "x", on_error="skp"), ("skp", "skip")),
        (lambda graph: graph.map({"x": "abc", "w": 1}, map_over="x"), ("x", "str")),
        (lambda graph: graph.map({"x": b"abc", "w": 1}, map_over="x"), ("x", "bytes")),
        (lambda graph: graph.map({"x": {"a": 1}, "w": 1}, map_over="x"), ("x", "mapping")),
        (lambda graph: graph.map({"x": {1, 2}, "w": 1}, map_over="x"), ("x", "set")),
        (lambda graph: graph.map({"x": np.array(1), "w": 1}, map_over="x"), ("x",)),
        (lambda graph: graph.map({"x": 5, "w": 1}, map_over="x"), ("x", "int")),
        (lambda graph: graph.map({"x": [1], "w": 1}, map_over=[]), ("map_over",)),
        (lambda graph: graph.map({"x": [1, 2], "w": [1]}, map_over=["x", "w"]), ("2", "1")),
        (lambda graph: graph.map({"x": [1], "w": 1}, map_over="x", copy=("zz",)), ("zz",)),
        (lambda graph: list(graph.imap({"x": 3, "w": 1}, map_over="x")), ("x", "int")),
        (lambda graph: graph.start({"zzz": 1}), ("zzz",)),
        (lambda graph: graph.start_map({"x": "abc", "w": 1}, map_over="x"), ("x", "str")),
    ],
)  # fmt: skip
def test_6_wrong_calls_are_refused_before_any_code_runs(call: Any, names: tuple[str, ...]) -> None:
    first = fm.node(unreachable, output_name="y")
    second = fm.node(lambda y, w: unreachable(y), output_name="z")
    with raises(*names):
        call(fm.Graph([first, second]))


def test_6_data_frames_are_refused_with_a_hint() -> None:
    pandas = pytest.importorskip("pandas")
    with raises("x", "data frame"):
        fm.Graph([g.double]).map({"x": pandas.DataFrame({"a": [1]})}, map_over="x")


@everywhere
def test_7_only_what_is_asked_for_runs(engine: str, tmp_path: Path) -> None:
    graph = fm.Graph([logged("a", "x"), logged("b", "a"), logged("c", "b", "model")])
    log = g.Log(tmp_path)
    assert graph.run({"x": 1, "log": log}, output_name="b", engine=engine) == {"b": "b"}
    assert log.lines == ["a", "b"]
    result = graph.run({"x": 1, "log": log}, output_name=["b", "a"], engine=engine)
    assert result == {"a": "a", "b": "b"}
    assert graph.run({"x": 1, "log": log}, output_name=[], engine=engine) == {}
    assert len(log.lines) == 4


@everywhere
def test_7_a_given_value_replaces_its_producer(engine: str) -> None:
    graph = fm.Graph([g.double, g.increment, g.add])
    assert graph.run({"y": 10}, engine=engine) == {"z": 11, "total": 21}
    with raises("x"):  # it has become unused
        graph.run({"x": 1, "y": 10}, engine=engine)
    assert graph.bind(x=1).run({"y": 10}, engine=engine) == {"z": 11, "total": 21}
    uses = fm.Graph([g.divide, fm.node(lambda q, r: q + r, output_name="sum")])
    assert uses.run({"q": 1, "r": 2}, engine=engine) == {"sum": 3}
    with raises("q", "r"):  # a part of a producer
        uses.run({"x": 7, "q": 1}, engine=engine)


@everywhere
def test_9_a_long_chain(engine: str) -> None:
    length = 5000 if engine == SEQUENTIAL else 300
    names: dict[str, Any] = {}
    exec("\n".join(f"def v{n + 1}(v{n}): return v{n} + 1" for n in range(length)), names)
    nodes = [names[f"v{n + 1}"] for n in range(length)]
    random.Random(0).shuffle(nodes)
    graph = fm.Graph(nodes)
    last = f"v{length}"
    assert graph.run({"v0": 0}, output_name=last, engine=engine) == {last: length}
    rows = graph.map({"v0": range(3)}, map_over="v0", output_name=last, engine=engine)
    assert rows[last] == [length, length + 1, length + 2]


def to_int(text: str) -> int:
    return len(text)


def to_text(to_int: str) -> str:
    return str(to_int)


def untyped(to_int):  # type: ignore[no-untyped-def]
    return to_int


def test_10_types_are_checked_if_that_is_asked_for() -> None:
    with raises("to_int", "int", "str"):
        fm.Graph([to_int, to_text], check_types=True)
    assert fm.Graph([to_int, to_text]).run({"text": "ab"})["to_text"] == "2"
    assert fm.Graph([to_int, untyped], check_types=True).run({"text": "ab"})["untyped"] == 2


# --------------------------------------------------------------------- anything callable


class Scaler:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: int) -> int:
        return self.by * x

    def method(self, x: int) -> int:
        return self.by + x

    @staticmethod
    def static(x: int) -> int:
        return -x


@everywhere
def test_anything_with_a_signature_is_a_node(engine: str) -> None:
    graph = fm.Graph([
        fm.node(Scaler(3), name="called"),
        Scaler(4).method,
        Scaler.static,
        fm.node(functools.partial(g.scaled, k=9), output_name="partial"),
        fm.node(lambda x, /: -x, output_name="negative"),
        fm.node(operator.index, output_name="index"),
        fm.node(Scaler, output_name="made").options(name="maker"),
    ])  # fmt: skip
    result = graph.run({"x": 2, "by": 1}, output_name=["called", "method", "static", "partial",
                       "negative"], engine=engine)  # fmt: skip
    assert result == {
        "called": 6, "method": 6, "static": -2, "partial": (2, 9), "negative": -2,
    }  # fmt: skip


@everywhere
def test_what_a_call_returns_decides(engine: str) -> None:
    lazy = fm.node(lambda x: g.double_async.fn(x), output_name="awaited")
    graph = fm.Graph(
        [g.double_async, lazy, fm.node(lambda y, awaited: y + awaited, output_name="s")]
    )
    assert graph.run({"x": 2}, engine=engine) == {"y": 4, "awaited": 4, "s": 8}
    rows = graph.map({"x": range(4)}, map_over="x", engine=engine)
    assert rows["s"] == [0, 4, 8, 12]


@in_engines(SEQUENTIAL, THREADED, "async")
def test_a_generator_object_is_a_value(engine: str) -> None:
    made = fm.node(lambda x: (n for n in range(x)), output_name="numbers")
    graph = fm.Graph([made, fm.node(lambda numbers: sum(numbers), output_name="sum")])
    result = graph.run({"x": 4}, engine=engine)
    assert result["sum"] == 6
    assert inspect.isgenerator(result["numbers"])
    assert (
        fm.Graph([made]).run({"x": 4}, engine=engine)["numbers"].__class__.__name__ == "generator"
    )


# ---------------------------------------------------------------------------- maps


@everywhere
def test_11_results_come_in_input_order(engine: str) -> None:
    graph = fm.Graph(
        [g.slow_first, fm.node(lambda slow_first, x: (x, slow_first), output_name="p")]
    )
    rows = graph.map({"x": range(20)}, map_over="x", engine=engine)
    assert rows["p"] == [(x, x * x) for x in range(20)]
    assert rows[3] == {"slow_first": 9, "p": (3, 9)}
    assert len(rows) == 20
    assert rows.ok and rows.status == "completed" and list(rows.failures) == []
    assert [row["p"] for row in rows] == rows["p"]
    assert rows[-1] == rows[19]


@everywhere
@pytest.mark.parametrize(
    "values",
    [
        lambda: [1, 2, 3],
        lambda: (1, 2, 3),
        lambda: range(1, 4),
        lambda: np.array([1, 2, 3]),
        lambda: (n for n in (1, 2, 3)),
        lambda: iter([1, 2, 3]),
        lambda: map(int, "123"),
    ],
)
def test_12_what_can_be_mapped(engine: str, values: Any) -> None:
    graph = fm.Graph([g.double, g.increment])
    rows = graph.map({"x": values()}, map_over="x", engine=engine)
    assert rows["z"] == [3, 5, 7]
    assert graph.bind(x=values()).map({}, map_over="x", engine=engine)["y"] == [2, 4, 6]


@everywhere
def test_12_nothing_gives_nothing(engine: str) -> None:
    rows = fm.Graph([g.double]).map({"x": []}, map_over="x", engine=engine)
    assert list(rows) == [] and rows["y"] == [] and rows.ok and len(rows) == 0
    assert list(fm.Graph([g.double]).imap({"x": iter(())}, map_over="x", engine=engine)) == []


@everywhere
def test_12_zip_and_product(engine: str) -> None:
    graph = fm.Graph([fm.node(lambda a, b, c: (a, b, c), output_name="t")])
    rows = graph.map({"a": [1, 2], "b": "c", "c": ["u", "v"]}, map_over=["a", "c"], engine=engine)
    assert rows["t"] == [(1, "c", "u"), (2, "c", "v")]
    rows = graph.map({"a": iter([1, 2]), "b": iter("xy"), "c": 0}, map_over=("b", "a"),
                     map_mode="product", engine=engine)  # fmt: skip
    assert rows["t"] == [(1, "x", 0), (2, "x", 0), (1, "y", 0), (2, "y", 0)]


@everywhere
def test_12_iterators_of_unequal_lengths_tell_after_the_items_before(engine: str) -> None:
    graph = fm.Graph([fm.node(lambda a, b: (a, b), output_name="t")])
    got = []
    with pytest.raises((ValueError, fm.BuildError), match=r"(?s)(?=.*a)(?=.*b)"):
        for row in graph.imap({"a": iter([1, 2, 3]), "b": iter([1, 2])}, map_over=["a", "b"],
                              engine=engine):  # fmt: skip
            got.append(row["t"])
    assert got == [(1, 1), (2, 2)]


@everywhere
def test_14_a_copied_constant_is_each_items_own(engine: str) -> None:
    graph = fm.Graph([g.mutate])
    seen: list[int] = []
    rows = graph.map({"x": range(6), "seen": seen}, map_over="x", copy=("seen",), engine=engine)
    assert rows["mutate"] == [1] * 6
    assert seen == []
    assert rows.ok


@everywhere
@pytest.mark.parametrize("size", [10, 200_000])
def test_14_constants_reach_every_item(engine: str, size: int) -> None:
    table = np.arange(size)
    graph = fm.Graph([fm.node(lambda x, table: int(table[x]) + len(table), output_name="out")])
    rows = graph.map({"x": range(8), "table": table}, map_over="x", engine=engine)
    assert rows["out"] == [x + size for x in range(8)]


@everywhere
def test_15_nested_maps(engine: str) -> None:
    inner = fm.Graph(
        [fm.node(lambda item, factor: item * factor, output_name="scaled")], name="each"
    )
    outer = fm.Graph([
        fm.node(lambda n: list(range(n)), output_name="items"),
        inner.as_node(
            input_mapping={"items": "item", "k": "factor"},
            output_mapping={"scaled": "results"},
            map_over="items",
        ),
        fm.node(lambda results: sum(results), output_name="sum"),
    ])  # fmt: skip
    assert outer.run({"n": 3, "k": 10}, engine=engine) == {
        "items": [0, 1, 2], "results": [0, 10, 20], "sum": 30,
    }  # fmt: skip
    assert outer.run({"n": 0, "k": 10}, engine=engine)["results"] == []
    rows = outer.map({"n": [1, 2, 3], "k": 2}, map_over="n", engine=engine)
    assert rows["results"] == [[0], [0, 2], [0, 2, 4]]
    assert rows["sum"] == [0, 2, 6]


@everywhere
def test_15_nested_graphs_without_a_map_and_renames(engine: str) -> None:
    inner = fm.Graph([g.double, g.increment], name="inner")
    node = inner.rename(x="value", z="result").as_node()
    outer = fm.Graph([node, fm.node(lambda result: -result, output_name="negative")])
    assert outer.run({"value": 4}, engine=engine) == {"y": 8, "result": 9, "negative": -9}
    twice = fm.Graph([
        inner.select("z").rename(z="a").as_node(name="one"),
        inner.select("z").rename(x="a", z="b").as_node(name="two"),
    ])  # fmt: skip
    assert twice.run({"x": 1}, engine=engine) == {"a": 3, "b": 7}


@everywhere
def test_15_three_levels(engine: str) -> None:
    cell = fm.Graph([fm.node(lambda cell: cell + 1, output_name="value")], name="cells")
    row = fm.Graph(
        [cell.rename(cell="row", value="values").as_node(map_over="row"),
         fm.node(lambda values: sum(values), output_name="total")], name="rows",
    )  # fmt: skip
    table = fm.Graph([
        row.rename(row="table", total="totals").as_node(map_over="table"),
        fm.node(lambda totals: max(totals), output_name="best"),
    ])  # fmt: skip
    result = table.run({"table": [[1, 2], [], [5]]}, engine=engine)
    assert result["totals"] == [5, 0, 6]
    assert result["best"] == 6
    assert result["values"] == [[2, 3], [], [6]]


@everywhere
def test_16_a_lazy_map_pulls_no_more_than_its_window(engine: str) -> None:
    pulled = 0

    def numbers() -> Iterator[int]:
        nonlocal pulled
        for n in itertools.count():
            pulled += 1
            yield n

    rows = fm.Graph([g.double, g.increment]).imap(
        {"x": numbers()}, map_over="x", output_name="z", engine=engine, buffersize=16
    )
    for n in range(30 if engine == FORK else 200):
        assert next(rows) == {"z": 2 * n + 1}
        assert pulled <= n + 1 + 16 + 1
    rows.close()
    with pytest.raises(StopIteration):
        next(rows)


@in_engines(SEQUENTIAL, PARALLEL)
def test_16_a_dropped_iterator_ends_its_run(engine: str) -> None:
    class Numbers:
        def __iter__(self) -> Iterator[int]:
            return itertools.count()

    rows = fm.Graph([g.double]).imap({"x": iter(Numbers())}, map_over="x", engine=engine)
    assert next(rows) == {"y": 0}
    reference = weakref.ref(rows)
    del rows
    gc.collect()
    assert reference() is None  # and nothing is left behind: see conftest.py


@pytest.mark.slow
@pytest.mark.timeout(300)
@in_engines(*ENGINES)
def test_16_a_million_items_in_flat_memory(engine: str) -> None:
    import resource

    # A thread's turn, or a fork, for each item takes its time.
    count = {"async": 200_000, "cow_fork:2": 20_000}.get(engine, 1_000_000)
    rows = fm.Graph([g.double]).imap({"x": range(count)}, map_over="x", engine=engine)
    first = sum(next(rows)["y"] for _ in range(count // 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert first + sum(row["y"] for row in rows) == count * (count - 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


# ------------------------------------------------------------------- func, handles, asyncio


def test_func_is_a_plain_function() -> None:
    graph = fm.Graph([g.double, g.scaled]).bind(k=7)
    func = graph.func("scaled")
    assert func(x=2) == func(2) == (2, 7)
    assert str(inspect.signature(func)).startswith("(x")
    assert "k" not in inspect.signature(func).parameters
    assert pickle.loads(pickle.dumps(func))(3) == (3, 7)
    assert graph.func()(x=2) == {"y": 4, "scaled": (2, 7)}
    with pytest.raises(TypeError):
        func(1, 2)


@pytest.mark.parametrize("context", ["inline", "thread:2", "ipc_fork:2", "cow_fork:2"])
def test_a_graph_is_a_stage(context: str) -> None:
    got: list[Any] = []
    ready = fm.Graph([g.double, g.increment]).func("z")
    fm.Pipeline().source(range(5)).map(ready, context=context).sink(got.append).run()
    assert sorted(got) == [1, 3, 5, 7, 9]


@everywhere
def test_handles(engine: str) -> None:
    graph = fm.Graph([g.double, g.increment])
    handle = graph.start({"x": 3}, engine=engine)
    assert handle.result(30) == {"y": 6, "z": 7}
    assert handle.done()
    mapped = graph.start_map({"x": range(5)}, map_over="x", engine=engine)
    assert mapped.result(timeout=30)["z"] == [1, 3, 5, 7, 9]


@everywhere
def test_asyncio_forms(engine: str) -> None:
    graph = fm.Graph([g.double_async, g.increment])

    async def main() -> None:
        assert await graph.arun({"x": 3}, engine=engine) == {"y": 6, "z": 7}
        rows = await graph.amap({"x": range(4)}, map_over="x", engine=engine)
        assert rows["z"] == [1, 3, 5, 7]
        lazy = graph.aimap({"x": range(4)}, map_over="x", engine=engine)
        got = [row["z"] async for row in lazy]
        assert got == [1, 3, 5, 7]
        assert await graph.start({"x": 1}, engine=engine) == {"y": 2, "z": 3}
        # The plain verbs work under a running loop too.
        assert graph.run({"x": 3}, engine=engine) == {"y": 6, "z": 7}

    asyncio.run(main())


# ----------------------------------------------------------------------- looking at graphs


def test_what_a_graph_shows() -> None:
    graph = fm.Graph([g.double, g.scaled, g.divide], name="shown")
    assert set(graph.inputs) == {"x", "k", "by"}
    assert set(graph.outputs) == {"y", "scaled", "q", "r"}
    assert {node.name for node in graph.nodes} == {"double", "scaled", "divide"}
    text = graph.describe()
    assert all(name in text for name in ("double", "scaled", "divide", "x", "q"))
    assert "double" in graph.to_mermaid()
    assert "double" in str(graph.plan("parallel:2"))
    assert len(repr(graph)) < 200 and "shown" in repr(graph)
    assert "<" in graph._repr_html_()
    hostile = fm.Graph([fm.node(lambda x: x, output_name="a", name="<script>")])
    assert "<script>" not in hostile._repr_html_()
    rows = graph.map({"x": [1]}, map_over="x")
    assert len(repr(rows)) < 200


def test_nothing_changes_a_graph() -> None:
    graph = fm.Graph([g.double, g.scaled])
    before = (graph.inputs, graph.outputs, graph.describe())
    graph.bind(k=1), graph.rename(x="q"), graph.select("y"), graph.with_engine("threaded")
    graph.as_node(name="n", map_over="x")
    g.double.options(output_name="other")
    assert (graph.inputs, graph.outputs, graph.describe()) == before


@in_engines(PARALLEL, FORK, THREADED)
def test_a_graph_inside_a_function_runs_there(engine: str) -> None:
    def inside(x: int) -> Any:
        rows = fm.Graph([g.pid_of, g.thread_of]).map(
            {"x": range(4)}, map_over="x", engine="parallel"
        )
        same = {row["pid_of"] for row in rows} == {os.getpid()}
        return same and {row["thread_of"] for row in rows} == {threading.get_ident()}

    rows = fm.Graph([fm.node(inside, output_name="same")]).map(
        {"x": range(3)}, map_over="x", engine=engine
    )
    assert rows["same"] == [True] * 3

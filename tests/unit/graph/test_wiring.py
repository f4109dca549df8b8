"""Names become edges; what is wrong with them is told with the names, before anything runs."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest

import forkmill as fm

WEIRD = [
    "class", "a b", "x'; import os; os.abort(); '", "π", "line\nbreak", "\ud800", "{x}", "%s",
    "None", "v0", "item", "error", "f0", 'a"b', "\\", "#", "\u2028", "'''", "self", "inputs",
]  # fmt: skip


def a(x: int) -> int:
    return x + 1


def b(a: int) -> int:
    return 2 * a


def c(a: int, b: int) -> int:
    return a + b


def graph() -> fm.Graph:
    return fm.Graph([c, b, a], name="g")


def test_the_order_of_the_list_does_not_matter() -> None:
    calls: list[str] = []

    def note(name: str, *reads: str) -> Any:
        fn = f"lambda {', '.join(reads)}: calls.append({name!r})"
        return fm.node(eval(fn, {"calls": calls}), name=name)

    nodes = [note("left", "x"), note("right", "x"), note("both", "left", "right")]
    seen = set()
    for order in itertools.permutations(nodes):
        calls.clear()
        made = fm.Graph(order)
        made.run(x=1)
        seen.add((tuple(calls), made.outputs, made.inputs))
    assert len(seen) == 1 and len(calls) == 3


def test_what_a_graph_is() -> None:
    g = graph()
    assert (g.name, g.inputs, g.outputs) == ("g", ("x",), ("a", "b", "c"))
    assert [node.name for node in g.nodes] == ["a", "b", "c"]
    assert fm.Graph([]).outputs == () and fm.Graph([]).run() == {}


@pytest.mark.parametrize("name", WEIRD)
def test_any_text_is_a_name(name: str) -> None:
    g = fm.Graph([fm.node(lambda x: x + 1, name=name)])
    assert g.run(x=1) == {name: 2}
    assert g.map({"x": [1, 2]}, "x")[name] == [2, 3]
    renamed = graph().rename({"x": f"{name}!", "c": name})
    assert renamed.run({f"{name}!": 1}, name) == {name: 6}
    assert renamed.func(name)(1) == 6
    for text in (repr(g), g.describe(), g.to_mermaid(), g._repr_html_()):
        assert text

    def fails(x: int) -> None:
        raise LookupError("on purpose")

    with pytest.raises(LookupError) as caught:
        fm.Graph([fm.node(fails, name=name)]).run(x=1)
    assert caught.value.failure.stage == name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([a, fm.node(lambda x: x, name="other", output_name="a")], ["'a'", "'other'"]),
        ([fm.node(lambda y: y, name="own", output_name="y")], ["'own'", "'y'", "own output"]),
        (
            [fm.node(lambda q: q, name="p"), fm.node(lambda p: p, name="q")],
            ["'p' -> 'q' -> 'p'"],
        ),
        ([fm.Graph([a])], ["name"]),
        (5, ["list"]),
        ("ab", ["list"]),
    ],
)
def test_what_cannot_be_wired(nodes: Any, words: list[str]) -> None:
    with pytest.raises(fm.BuildError) as caught:
        fm.Graph(nodes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_circle_through_a_nested_graph_is_told_as_the_way_round() -> None:
    inner = fm.Graph(
        [fm.node(lambda i1: i1, name="o1"), fm.node(lambda i2: i2, name="o2")], name="in"
    )
    assert fm.Graph([inner]).run(i1=1, i2=2) == {"o1": 1, "o2": 2}
    with pytest.raises(fm.BuildError, match=r"the graph 'in' \(its 'o1'\) -> 'i2' -> the graph"):
        fm.Graph([inner, fm.node(lambda o1: o1, name="i2")])


def test_graphs_made_of_a_graph_leave_it_as_it_was() -> None:
    g = graph()
    assert g.bind(x=3).run() == {"a": 4, "b": 8, "c": 12}
    assert g.bind(x=3).run(x=1) == {"a": 2, "b": 4, "c": 6}
    assert g.bind(x=3).unbind("x").bind({"x": 1}).run()["a"] == 2
    assert g.rename(a="first", x="start").run(start=1) == {"first": 2, "b": 4, "c": 6}
    assert g.rename(x="b", b="x").run(b=1) == {"a": 2, "x": 4, "c": 6}
    assert g.select("b").run(x=1) == {"b": 4} and g.select(["b"]).outputs == ("b",)
    assert g.with_engine("threaded:2").with_engine(None).run(x=1)["c"] == 6
    assert (g.inputs, g.outputs, g.run(x=1)) == (("x",), ("a", "b", "c"), {"a": 2, "b": 4, "c": 6})
    with pytest.raises(AttributeError, match="never changed"):
        g.name = "other"
    with pytest.raises(AttributeError, match="never changed"):
        del g.name


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda g: g.bind(xx=1), "did you mean 'x'"),
        (lambda g: g.bind(b=1), "output"),
        (lambda g: g.bind({"x": 1}, x=2), "twice"),
        (lambda g: g.unbind("x"), "not bound"),
        (lambda g: g.rename(q="y"), "'q'"),
        (lambda g: g.rename(x="a"), "taken"),
        (lambda g: g.rename(x=5), "str"),
        (lambda g: g.select("cc"), "did you mean 'c'"),
        (lambda g: g.select("x"), "input"),
        (lambda g: g.with_engine("thred:2"), "thread"),
        (lambda g: g.as_node({"y": "z"}), "'z'"),
        (lambda g: g.as_node(None, {"z": "y"}), "'z'"),
        (lambda g: g.as_node(map_over="z"), "'z'"),
        (lambda g: g.as_node(map_mode="zipp"), "did you mean 'zip'"),
        (lambda g: g.as_node(on_error="skipp"), "did you mean 'skip'"),
        (lambda g: g.func("z"), "'z'"),
    ],
)
def test_unknown_names_are_refused(change: Any, word: str) -> None:
    with pytest.raises(fm.BuildError, match=word):
        change(graph())


def test_a_bound_value_lies_between_default_and_argument() -> None:
    g = fm.Graph([fm.node(lambda x, k=3: (x, k), name="y")])
    assert g.run(x=2)["y"] == (2, 3)
    assert g.bind(k=4).run(x=2)["y"] == (2, 4)
    assert g.bind(k=4).run(x=2, k=5)["y"] == (2, 5)


def test_one_function_may_be_several_nodes() -> None:
    def fails(x: int) -> int:
        return 1 // x

    g = fm.Graph([fm.node(fails, output_name=name) for name in "ab"])
    assert g.run(x=1) == {"a": 1, "b": 1}
    with pytest.raises(ZeroDivisionError) as caught:
        g.run(x=0)
    assert caught.value.failure.stage == "fails[a]"  # type: ignore[attr-defined]


def test_graphs_pickle_with_what_is_bound() -> None:
    again = pickle.loads(pickle.dumps(graph().bind(x=1).rename(c="end").select("end")))
    assert again.run() == {"end": 6} and again.name == "g"


@pytest.mark.parametrize("number", [5000])
def test_a_long_chain_needs_no_recursion(number: int) -> None:
    text = "\n".join(f"def f{i}(v{i}): return v{i} + 1" for i in range(number))
    scope: dict[str, Any] = {}
    exec(text, scope)
    g = fm.Graph([fm.node(scope[f"f{i}"], output_name=f"v{i + 1}") for i in range(number)])
    assert g.run(v0=0)[f"v{number}"] == number
    assert g.run({"v0": 0}, f"v{number}") == {f"v{number}": number}
    assert g.select(f"v{number}").map({"v0": [1, 2]}, "v0")[f"v{number}"] == [
        number + 1,
        number + 2,
    ]
    assert len(g.describe()) > number and len(repr(g)) < 200

"""One run in the caller's thread: what is needed, what is given, what comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import forkmill as fm


def a(x: int) -> int:
    return x + 1


def b(a: int) -> int:
    return 2 * a


def c(a: int, b: int, z: int = 0) -> int:
    return a + b + z


GRAPH = fm.Graph([a, b, c])
HALVES = fm.Graph(
    [
        fm.node(divmod, output_name=("q", "r")),
        fm.node(lambda q, r: q + r, name="total"),
    ]
)


def test_only_what_is_wanted_runs() -> None:
    seen: list[str] = []
    last = fm.node(lambda b, model: seen.append("last"), name="last")
    g = fm.Graph([a, b, last])
    assert g.run({"x": 1}, "b") == {"b": 4} and not seen
    assert g.run({"x": 1}, ["b", "a"]) == {"b": 4, "a": 2}
    assert list(g.run({"x": 1}, ["b", "a"])) == ["b", "a"]
    assert g.run({}, []) == {}


@pytest.mark.parametrize(
    ("given", "output", "expected"),
    [
        ({"a": 5}, None, {"b": 10, "c": 15}),
        ({"a": 5, "b": 1}, None, {"c": 6}),
        ({"a": 5, "b": 1, "z": 1}, "c", {"c": 7}),
        ({"a": 1}, "b", {"b": 2}),
        ({"x": 1, "z": 5}, "b", {"b": 4}),  # z is for c, which is not wanted
    ],
)
def test_a_given_value_takes_the_place_of_its_node(given: Any, output: Any, expected: Any) -> None:
    assert GRAPH.run(given, output) == expected


def test_a_producer_is_replaced_as_a_whole() -> None:
    assert HALVES.run(q=1, r=2) == {"total": 3}
    assert HALVES.run({"x": 7, "y": 2}, "q") == {"q": 3}
    assert GRAPH.bind(x=5).run(a=1) == {"b": 2, "c": 3}  # a bound value may be left over


@pytest.mark.parametrize(
    ("graph", "given", "output", "words"),
    [
        (GRAPH, {"xx": 1}, None, ["'xx'", "did you mean 'x'"]),
        (GRAPH, {}, None, ["'x'"]),
        (HALVES, {}, None, ["'x', 'y'"]),
        (GRAPH, {"x": 1, "a": 5}, None, ["'x'", "'a'"]),
        (GRAPH, {"x": 1, "a": 1, "b": 1, "c": 1}, None, ["'x'"]),
        (HALVES, {"q": 1}, None, ["'q'", "'r'"]),
        (HALVES, {"q": 1, "x": 1, "y": 2}, None, ["'r'"]),
        (GRAPH, {"x": 1}, "cc", ["'cc'", "did you mean 'c'"]),
        (GRAPH, {"x": 1}, "x", ["'x'", "an input"]),
        (GRAPH, {"x": 1}, ["a", "a"], ["twice"]),
        (GRAPH, {"x": 1}, 5, ["output_name"]),
        (GRAPH, {5: 1}, None, ["5"]),
        (GRAPH, [("x", 1)], None, ["mapping"]),
        (GRAPH.with_engine("inline"), {"y": 1}, None, ["'y'"]),
    ],
)
def test_what_is_refused_before_anything_runs(
    graph: fm.Graph, given: Any, output: Any, words: list[str]
) -> None:
    with pytest.raises(fm.BuildError) as caught:
        graph.run(given, output)
    assert all(word in str(caught.value) for word in words), caught.value


def test_inputs_may_be_called_anything() -> None:
    g = fm.Graph([fm.node(lambda engine, sinks, inputs, self: (engine, sinks, inputs, self),
                          name="y")])  # fmt: skip
    given = {"engine": 1, "sinks": 2, "inputs": 3, "self": 4}
    assert g.run(given) == {"y": (1, 2, 3, 4)}
    assert g.func("y")(**given) == (1, 2, 3, 4)
    with pytest.raises(fm.BuildError, match="twice"):
        GRAPH.run({"x": 1}, x=2)


@pytest.mark.parametrize("value", [(1, 2), [1, 2], {"r": 2, "q": 1}])
def test_several_outputs_come_as_a_tuple_a_list_or_a_dict(value: Any) -> None:
    g = fm.Graph([fm.node(lambda x: x, name="two", output_name=("q", "r"))])
    assert g.run(x=value) == {"q": 1, "r": 2}
    assert g.map({"x": [value]}, "x")[0] == {"q": 1, "r": 2}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ((1, 2, 3), "3 values"), ((1,), "1 value,"), ((), "0 values"), (5, "'int'"),
        ("ab", "'str'"), (None, "'NoneType'"), ({"q": 1}, "'q'"), ({"q": 1, "z": 2}, "'z'"),
    ],
)  # fmt: skip
def test_another_number_of_outputs_fails_the_node(value: Any, found: str) -> None:
    g = fm.Graph([fm.node(lambda x: x, name="two", output_name=("q", "r"))])
    with pytest.raises(ValueError, match=r"'two' gave .*2 outputs, q, r") as caught:
        g.run(x=value)
    assert found in str(caught.value)
    assert caught.value.failure.stage == "two"  # type: ignore[attr-defined]


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


async def both(x: int) -> tuple[int, int]:
    return x, -x


def test_what_a_call_gives_decides_whether_it_is_awaited() -> None:
    assert fm.node(later).is_async
    assert fm.Graph([later]).run(x=1) == {"later": 2}
    plain = [fm.node(lambda x: later(x), name="y"), fm.node(lambda y: later(y), name="z")]
    assert fm.Graph(plain).run(x=1) == {"y": 2, "z": 3}
    assert fm.Graph(plain).map({"x": range(3)}, "x")["z"] == [2, 3, 4]
    assert fm.Graph([fm.node(both, output_name=("p", "q"))]).run(x=1) == {"p": 1, "q": -1}


def test_a_generator_object_is_a_value() -> None:
    g = fm.Graph([fm.node(lambda x: (i for i in range(x)), name="it")])
    assert list(g.run(x=3)["it"]) == [0, 1, 2]
    assert [list(row["it"]) for row in g.map({"x": [1, 2]}, "x")] == [[0], [0, 1]]


def test_it_runs_under_a_running_loop() -> None:
    async def main() -> Any:
        return fm.Graph([later]).run(x=1), fm.Graph([later]).map({"x": [1, 2]}, "x")["later"]

    assert asyncio.run(main()) == ({"later": 2}, [2, 3])


def test_handles_reach_functions_as_values() -> None:
    made: list[int] = []

    def table() -> dict[str, int]:
        made.append(1)
        return {"one": 1}

    g = fm.Graph([fm.node(lambda x, table: x + table["one"], name="y")])
    own = fm.per_worker(table)
    assert g.run(x=1, table=own) == {"y": 2}
    assert g.map({"x": [1, 2], "table": own}, "x")["y"] == [2, 3]
    assert g.map({"x": [1], "table": [own]}, ["x", "table"])["y"] == [2]
    assert made == [1]
    with fm.share({"one": 5}) as shared:
        assert g.bind(table=shared).run(x=1) == {"y": 6}

    def broken() -> None:
        raise LookupError("no table")

    with pytest.raises(LookupError) as caught:
        g.run(x=1, table=fm.per_worker(broken))
    assert caught.value.failure.stage == "y"  # type: ignore[attr-defined]

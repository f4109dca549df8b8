"""Random graphs give in every executor what thirty lines of plain Python give."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forkmill as fm
import graph_tasks as g

# ----------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class Spec:
    """A node: what it reads (inputs, outputs of earlier nodes), and when it fails."""

    name: str
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    fails: int
    default: int | None
    is_async: bool
    batch: bool
    context: str | None

    def node(self) -> Any:
        parameters = [*self.reads, *(["k=5"] if self.default is not None else [])]
        values = ", ".join(part.partition("=")[0] for part in parameters)
        call = f"work({self.name!r}, {self.fails}, {len(self.outputs)}, ({values},))"
        if self.batch:
            rows = ", ".join(self.reads)
            call = f"[work({self.name!r}, 0, {len(self.outputs)}, row) for row in zip({rows})]"
        head = f"{'async ' if self.is_async else ''}def {self.name}({', '.join(parameters)}):"
        names: dict[str, Any] = {"work": g.work}
        exec(f"{head}\n    return {call}", names)
        output = self.outputs[0] if len(self.outputs) == 1 else self.outputs
        options: dict[str, Any] = {"batch": self.batch, "context": self.context}
        return fm.node(names[self.name], output_name=output, **options)


INPUTS = ("x", "y")


@st.composite
def specs(draw: st.DrawFn) -> list[Spec]:
    found: list[Spec] = []
    known = list(INPUTS)
    for number in range(draw(st.integers(1, 6))):
        reads = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        outputs = tuple(f"o{number}_{n}" for n in range(draw(st.integers(1, 2))))
        # A batch fails as a whole, and who is in it is nobody's business: it does not fail here;
        # its columns are the item's own values.
        batch = draw(st.booleans()) and "y" not in reads
        found.append(
            Spec(
                f"n{number}",
                tuple(reads),
                outputs,
                0 if batch else draw(st.sampled_from([0, 0, 2, 3, 7])),
                5 if not batch and draw(st.booleans()) else None,
                not batch and draw(st.booleans()),
                batch,
                draw(st.sampled_from([None, None, None, "thread:2"])),
            )
        )
        known += outputs
    return found


# ------------------------------------------------------------- the reference interpreter


class Lost:
    """Stands for an output that there is not, because one of these nodes failed."""

    def __init__(self, names: set[str]) -> None:
        self.names = names


def interpret(nodes: list[Spec], item: dict[str, Any]) -> dict[str, Any]:
    values = dict(item)
    for node in nodes:  # drawn in an order that is topological
        read = [values[name] for name in node.reads]
        lost = [value for value in read if type(value) is Lost]
        try:
            if lost:
                out: Any = Lost(set().union(*(one.names for one in lost)))
            else:
                extra = () if node.default is None else (node.default,)
                out = g.work(node.name, node.fails, len(node.outputs), (*read, *extra))
        except ValueError:
            out = Lost({node.name})
        many = type(out) is not Lost and len(node.outputs) > 1
        for n, name in enumerate(node.outputs):
            values[name] = out[n] if many else out
    return {name: value for name, value in values.items() if name not in item}


def same(row: dict[str, Any], wanted: dict[str, Any], index: int) -> None:
    assert set(row) == set(wanted)
    for name, value in wanted.items():
        got = row[name]
        if type(value) is not Lost:
            assert got == value and type(got) is int
            continue
        assert type(got) is fm.Failure
        assert got.index == index
        assert got.stage.rpartition(".")[2] in value.names
        assert str(got.error).split()[0] in value.names


# -------------------------------------------------------------------------- the tests


warm_engines = pytest.mark.parametrize(
    "kind",
    [g.SEQUENTIAL, g.ASYNC, g.THREADED, g.PARALLEL, pytest.param(g.FORK, marks=pytest.mark.slow)],
)


def in_warm(kind: str, check: Callable[..., None], *strategies: Any) -> None:
    """Check all examples in one engine, which keeps its workers."""
    with fm.LocalEngine(kind, kind) as engine:

        @settings(max_examples=30)
        @given(st.tuples(*strategies))
        def examples(drawn: tuple[Any, ...]) -> None:
            check(engine, *drawn)

        examples()


@st.composite
def jobs(draw: st.DrawFn) -> Any:
    nodes = draw(specs())
    order = draw(st.permutations(nodes))
    names = {name for node in nodes for name in node.reads if name in INPUTS}
    over = draw(st.sampled_from([["x"], ["x", "y"], ["y", "x"]]))
    over = [name for name in over if name in names] or sorted(names)[:1]
    if any(node.batch for node in nodes) and "x" not in over:
        over = [*over, "x"] if "x" in names else over
    mode = draw(st.sampled_from(["zip", "product"]))
    size = draw(st.integers(0, 7))
    inputs: dict[str, Any] = {name: draw(st.integers(0, 50)) for name in sorted(names)}
    for name in over:
        many = st.lists(st.integers(0, 50), min_size=size, max_size=size)
        inputs[name] = draw(many)
    join = zip if mode == "zip" else itertools.product
    fixed = {name: inputs[name] for name in names if name not in over}
    columns = [inputs[name] for name in over]
    items = [{**fixed, **dict(zip(over, item, strict=True))} for item in join(*columns)]
    return nodes, order, inputs, over, mode, items


@warm_engines
def test_a_map_that_skips(kind: str) -> None:
    in_warm(kind, check_skips, jobs())


def check_skips(engine: Any, job: Any) -> None:
    nodes, order, inputs, over, mode, items = job
    graph = fm.Graph([node.node() for node in order])
    rows = graph.map(inputs, over, mode, engine=engine, on_error="skip")
    assert len(rows) == len(items)
    lost = 0
    for index, (row, item) in enumerate(zip(rows, items, strict=True)):
        wanted = interpret(nodes, item)
        same(row, wanted, index)
        lost += any(type(value) is Lost for value in wanted.values())
    assert rows.ok == (lost == 0)
    assert len({failure.index for failure in rows.failures}) == lost


@warm_engines
def test_a_map_that_raises_and_wants_some(kind: str) -> None:
    in_warm(kind, check_raises, jobs(), st.data())


def check_raises(engine: Any, job: Any, data: st.DataObject) -> None:
    nodes, order, inputs, over, mode, items = job
    outputs = [name for node in nodes for name in node.outputs]
    wanted = data.draw(st.lists(st.sampled_from(outputs), min_size=1, max_size=3, unique=True))
    graph = fm.Graph([node.node() for node in order])
    needed, reach = set(wanted), []
    for node in reversed(nodes):
        if needed & set(node.outputs):
            needed |= set(node.reads)
            reach.append(node)
    inputs = {name: value for name, value in inputs.items() if name in needed or name in over}
    expected = [interpret(nodes, item) for item in items]
    fails = {node.name for node in reach}
    first = next(
        (n for n, row in enumerate(expected)
         if any(type(row[o]) is Lost for node in reach for o in node.outputs)), None,
    )  # fmt: skip
    if not set(over) <= needed:
        return  # a mapped input that nobody needs: refused or not, another test's matter
    if first is None:
        rows = graph.map(inputs, over, mode, wanted, engine=engine)
        assert list(rows) == [{name: row[name] for name in rows.outputs} for row in expected]
        assert set(rows.outputs) == set(wanted)
        return
    with pytest.raises(ValueError) as error:
        graph.map(inputs, over, mode, wanted, engine=engine)
    assert error.value.failure.index == first  # type: ignore[attr-defined]
    assert str(error.value).split()[0] in fails


@warm_engines
def test_a_nested_map(kind: str) -> None:
    in_warm(kind, check_nested, jobs())


def check_nested(engine: Any, job: Any) -> None:
    nodes, order, inputs, over, mode, items = job
    graph = fm.Graph([node.node() for node in order], name="inner")
    outer = fm.Graph([graph.as_node(map_over=over, map_mode=mode, on_error="skip")])
    columns = outer.run(inputs, engine=engine)
    for index, item in enumerate(items):
        row = {name: column[index] for name, column in columns.items()}
        same(row, interpret(nodes, item), index)
    assert {len(column) for column in columns.values()} <= {len(items)}

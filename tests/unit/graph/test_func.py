"""A graph as a function, and as a picture."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

import forkmill as fm


@fm.node
def clean(text: str) -> str:
    return text.strip().lower()


@fm.node(output_name=("words", "count"))
def split(clean: str) -> tuple[list[str], int]:
    words = clean.split()
    return words, len(words)


@fm.node
def score(words: list[str], model: int, k: int = 3) -> tuple[int, int, int]:
    return len(words), model, k


GRAPH = fm.Graph([score, split, clean], name="texts")


def test_it_gives_the_value_of_one_output_or_a_dict() -> None:
    assert GRAPH.func("count")(" A b ") == 2
    assert GRAPH.func(["count", "clean"])(" A b ") == {"count": 2, "clean": "a b"}
    assert fm.Graph([clean]).func()(" A ") == {"clean": "a"}
    assert GRAPH.func(["count"])("a") == {"count": 1}
    assert GRAPH.bind(model=1).func()("A") == {
        "clean": "a", "words": ["a"], "count": 1, "score": (1, 1, 3),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("graph", "output", "expected"),
    [
        (GRAPH, "count", "(text)"),
        (GRAPH, "score", "(*, text, model, k=3)"),
        (GRAPH.bind(model=1), "score", "(text, *, k=3)"),
        (GRAPH.bind(model=1, k=1), "score", "(text)"),
        (GRAPH.bind(model=1, text="a"), "score", "(k=3)"),
        (GRAPH.rename({"text": "a b"}), "count", "()"),
    ],
)
def test_its_signature_is_what_is_not_bound(graph: fm.Graph, output: str, expected: str) -> None:
    assert str(inspect.signature(graph.func(output))) == expected


def test_a_bound_value_may_be_given_by_name() -> None:
    fn = GRAPH.bind(model=1).func("score")
    assert fn("a") == (1, 1, 3) and fn("a", model=2) == (1, 2, 3) and fn(text="a", k=4) == (1, 1, 4)


@pytest.mark.parametrize(
    ("args", "kwargs", "word"),
    [
        ((1, 2), {}, "by name"),
        (("a",), {"text": "b"}, "twice"),
        (("a",), {"word": 1}, "'word'"),
        (("a",), {"clean": 1}, "'clean'"),
    ],
)
def test_wrong_arguments_are_a_type_error(args: Any, kwargs: Any, word: str) -> None:
    with pytest.raises(TypeError, match=word):
        GRAPH.bind(model=1).func("score")(*args, **kwargs)


def test_it_pickles_and_raises_what_a_node_raises() -> None:
    fn = pickle.loads(pickle.dumps(GRAPH.bind(model=1).func("score")))
    assert fn("a b") == (2, 1, 3)
    with pytest.raises(AttributeError) as caught:
        fn(5)
    assert caught.value.failure.stage == "clean"  # type: ignore[attr-defined]
    assert "score" in repr(fn) and fn.__name__ == "score"


def test_it_runs_in_pools_pipelines_and_graphs() -> None:
    fn = GRAPH.bind(model=1).func("score")
    with fm.ProcessPool(1) as pool:
        assert list(pool.map(fn, ["a b", "c"])) == [(2, 1, 3), (1, 1, 3)]
        assert pool.submit(clean, " A ").result() == "a"
        with pytest.raises(AttributeError) as caught:
            pool.submit(fn, 5).result()
    assert caught.value.failure.item == {"text": 5}  # type: ignore[attr-defined]
    assert fm.Pipeline().source(["a b"]).map(fn).run().outputs == [(2, 1, 3)]
    assert fm.Graph([fm.node(fn, output_name="y")]).run(text="a b") == {"y": (2, 1, 3)}


def test_it_is_told_what_a_graph_is() -> None:
    each = GRAPH.bind(model=[0] * 100).rename(text="texts").as_node(map_over="texts", name="each")
    slow = fm.node(
        lambda count, n=1: n, name="last", context="thread:2", timeout=5, retry=fm.retry(2),
        cache=True, batch=True,
    )  # fmt: skip
    g = fm.Graph([each, slow], name="<all>")
    text = g.describe()
    for part in ("texts", "n (optional)", "each.split(clean) -> words, count", "maps over texts",
                 "context=thread:2", "timeout=5 s", "retry=2", "cache", "batch"):  # fmt: skip
        assert part in text, part
    assert "model = [0, 0" in GRAPH.bind(model=[0] * 100).describe()
    chart = g.to_mermaid()
    assert chart.startswith("flowchart TD\n") and "subgraph n" in chart and "end\n" in chart
    assert "<" not in chart.replace("-->", "")
    assert "&lt;all&gt;" in g._repr_html_() and "<all>" not in g._repr_html_()
    assert len(repr(g)) < 200 and "\n" not in repr(g)

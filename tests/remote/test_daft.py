"""Graphs over Daft's data frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

import forkmill as fm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("daft") is None, reason="daft is not installed"),
    pytest.mark.unbalanced("threads", "descriptors"),  # Daft's own
]


@fm.node
def clean(text: str) -> str:
    return text.strip().lower()


@fm.node(output_name=("words", "count"))
def split(clean: str) -> tuple[list[str], int]:
    words = clean.split()
    return words, len(words)


@fm.node
def score(count: int, k: int = 3) -> int:
    return count * k


GRAPH = fm.Graph([clean, split, score])


def test_a_frame_gets_a_column_for_each_output() -> None:
    import daft

    frame = fm.DaftEngine().frame(GRAPH, daft.from_pydict({"text": [" A b ", "c"]}))
    assert frame.column_names == ["text", "clean", "words", "count", "score"]
    found = frame.to_pydict()
    assert found["clean"] == ["a b", "c"] and found["words"] == [["a", "b"], ["c"]]
    assert found["score"] == [6, 3]
    kinds = {field.name: str(field.dtype) for field in frame.schema()}
    assert kinds["clean"] == "String" and kinds["score"] == "Int64" and kinds["words"] == "Python"


def test_one_output_is_a_function_of_daft_s() -> None:
    import daft

    df = daft.from_pydict({"text": ["a b", "c"], "n": [1, 10]})
    for function in (fm.DaftEngine().as_udf(GRAPH, "score"), GRAPH.as_udf("score")):
        assert df.with_column("s", function(df["text"])).to_pydict()["s"] == [6, 3]
        assert df.with_column("s", function(df["text"], k=df["n"])).to_pydict()["s"] == [2, 10]
    with pytest.raises(fm.BuildError, match="say which one"):
        GRAPH.as_udf()


def test_columns_that_are_missing_or_taken_are_refused() -> None:
    import daft

    with pytest.raises(fm.BuildError, match="needs 'text', and there is no such column"):
        fm.DaftEngine().frame(GRAPH, daft.from_pydict({"x": [1]}))
    with pytest.raises(fm.BuildError, match="has columns 'score' already"):
        fm.DaftEngine().frame(GRAPH, daft.from_pydict({"text": ["a"], "score": [1]}))


def test_as_an_engine() -> None:
    engine = fm.DaftEngine()
    assert GRAPH.run({"text": "q r"}, engine=engine)["score"] == 6
    rows = GRAPH.map({"text": ["x y"] * 2500}, "text", engine=engine)
    assert rows["score"] == [6] * 2500

    def ratio(x: int) -> int:
        return 10 // x

    graph = fm.Graph([ratio])
    rows = graph.map({"x": [1, 0, 2]}, "x", engine=engine, on_error="skip")
    assert rows["ratio"][0] == 10 and rows.failures[0].index == 1 and rows["ratio"][2] == 5
    with pytest.raises(ZeroDivisionError) as caught:
        graph.map({"x": [1, 0, 2]}, "x", engine=engine)
    assert caught.value.failure.index == 1  # type: ignore[attr-defined]


def test_a_map_pulls_as_much_as_its_limits_say_and_no_more() -> None:
    pulled = 0

    def texts() -> Iterator[str]:
        nonlocal pulled
        while pulled < 10_000:
            pulled += 1
            yield "x y z"

    limits: list[tuple[dict[str, int], int]] = [({"buffersize": 7}, 7), ({"chunksize": 5}, 5)]
    for limit, most in [*limits, ({}, 1024)]:
        pulled = 0
        rows = GRAPH.imap({"text": texts()}, "text", engine=fm.DaftEngine(), **limit)
        for number in range(20):
            assert next(rows)["score"] == 9
            assert pulled - number <= most, (limit, pulled, number)
        rows.close()  # type: ignore[attr-defined]


def test_who_would_hear_of_it_meanwhile_is_refused() -> None:
    def hear(event: object) -> None:
        raise AssertionError(event)

    for asked in ({"sinks": (hear,)}, {"progress": True}, {"report": "page.html"}):
        with pytest.raises(fm.BuildError, match="DaftEngine tells nothing"):
            GRAPH.map({"text": ["x"]}, "text", engine=fm.DaftEngine(), **asked)  # type: ignore[arg-type]

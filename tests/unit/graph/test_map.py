"""Many items in the caller's thread: what may be mapped, in which order, and how lazily."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
from forkmill.graph import MapResult


def up(x: int) -> int:
    return int(x) + 1


def side(x: int, y: int) -> int:
    return 10 * x + y


UP = fm.Graph([up])
SIDE = fm.Graph([side])


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1, 2],
        lambda: (1, 2),
        lambda: range(1, 3),
        lambda: iter([1, 2]),
        lambda: (i for i in (1, 2)),
        lambda: map(int, "12"),
        lambda: {1: 0, 2: 0}.keys(),
        lambda: {0: 1, 1: 2}.values(),
        lambda: memoryview(b"\x01\x02"),
        lambda: pytest.importorskip("numpy").array([1, 2]),
        lambda: pytest.importorskip("pandas").Series([1, 2]),
    ],
)
def test_any_series_of_values_is_mapped(make: Any) -> None:
    assert UP.map({"x": make()}, "x")["up"] == [2, 3]
    assert [row["up"] for row in UP.imap({"x": make()}, "x")] == [2, 3]


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: "abc", r"\[value\]"),
        (lambda: b"abc", r"\[value\]"),
        (lambda: bytearray(b"a"), r"\[value\]"),
        (lambda: {"a": 1}, "items"),
        (lambda: {1, 2}, "sorted"),
        (lambda: frozenset(), "sorted"),
        (lambda: 5, r"\[value\]"),
        (lambda: None, r"\[value\]"),
        (lambda: fm.per_worker(list), "handle"),
        (lambda: pytest.importorskip("numpy").array(5), "dimension"),
        (lambda: pytest.importorskip("pandas").DataFrame({"a": [1]}), "to_dict"),
    ],
)
def test_what_is_no_series_is_refused_with_a_hint(make: Any, hint: str) -> None:
    with pytest.raises(fm.BuildError, match=f"'x' is mapped over.*{hint}"):
        UP.map({"x": make()}, "x")
    with pytest.raises(fm.BuildError, match="'x' is mapped over"):
        UP.imap({"x": make()}, "x")


def test_zip_and_product() -> None:
    both = {"x": [1, 2], "y": [3, 4]}
    assert SIDE.map(both, ["x", "y"])["side"] == [13, 24]
    assert SIDE.map(both, ("x", "y"), "product")["side"] == [13, 14, 23, 24]
    assert SIDE.map(both, ("y", "x"), "product")["side"] == [13, 23, 14, 24]
    assert SIDE.bind(y=[5, 6]).map({"x": [1, 2]}, ["x", "y"])["side"] == [15, 26]
    assert SIDE.map({"x": [1, 2], "y": 7}, "x")["side"] == [17, 27]


@pytest.mark.parametrize("mode", ["zip", "product"])
def test_empty_gives_empty(mode: str) -> None:
    rows = SIDE.map({"x": [], "y": [1] * (mode == "product")}, ["x", "y"], mode)
    assert len(rows) == 0 and rows["side"] == [] and rows == [] and rows.ok
    assert list(SIDE.imap({"x": iter([]), "y": iter([])}, ["x", "y"], mode)) == []


def test_unequal_lengths_are_told() -> None:
    with pytest.raises(fm.BuildError, match="'x' has 1, 'y' has 2"):
        SIDE.map({"x": [1], "y": [1, 2]}, ["x", "y"])
    for source in (iter([1]), itertools.count()):
        rows = SIDE.imap({"x": source, "y": [1, 2]}, ["x", "y"])
        assert next(rows)["side"] in (11, 1)
        with pytest.raises(fm.BuildError, match=r"'x' is an iterator, 'y' has 2.* ended after"):
            list(rows)


def test_a_source_s_own_error_comes_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("zip() argument 1 is mine")

    rows = SIDE.imap({"x": source(), "y": [1, 2]}, ["x", "y"])
    assert next(rows) == {"side": 11}
    with pytest.raises(ValueError, match="is mine") as caught:
        next(rows)
    assert type(caught.value) is ValueError
    with pytest.raises(ValueError, match="is mine"):
        UP.map({"x": source()}, "x", on_error="skip")


def test_iterators_are_pulled_as_rows_are_asked_for() -> None:
    pulled: list[Any] = []

    def source() -> Iterator[int]:
        try:
            for number in range(10):
                pulled.append(number)
                yield number
        finally:
            pulled.append("closed")

    rows = UP.imap({"x": source()}, "x")
    assert not pulled
    assert next(rows) == {"up": 1} and pulled == [0]
    rows.close()  # type: ignore[attr-defined]
    del rows
    assert pulled == [0, "closed"]
    endless = SIDE.imap({"x": itertools.count(), "y": [1, 2]}, ["x", "y"], "product")
    assert [row["side"] for row in itertools.islice(endless, 3)] == [1, 2, 11]


@pytest.mark.parametrize(
    ("arguments", "options", "word"),
    [
        (({"x": [1]}, "xx"), {}, "did you mean 'x'"),
        (({}, "x"), {}, "not given"),
        (({"x": [1]}, []), {}, "map_over"),
        (({"x": [1]}, ["x", "x"]), {}, "twice"),
        (({"x": [1]}, 5), {}, "map_over"),
        (({"x": [1]}, "x", "zipp"), {}, "did you mean 'zip'"),
        (({"x": [1]}, "x"), {"on_error": "skipp"}, "did you mean 'skip'"),
        (({"x": [1]}, "x"), {"ordered": 1}, "ordered"),
        (({"x": [1]}, "x"), {"engine": "thred:2"}, "did you mean 'thread'"),
        (({"x": [1]}, "x"), {"engine": 5}, "engine"),
        (({"x": [1]}, "x"), {"copy": "x"}, "mapped"),
        (({"x": [1]}, "x"), {"copy": "y"}, "'y'"),
        (({"x": [1]}, "x"), {"output_name": "z"}, "'z'"),
        (({"x": [1], "z": 1}, "x"), {}, "'z'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_pulled(
    arguments: Any, options: Any, word: str
) -> None:
    with pytest.raises(fm.BuildError, match=word):
        UP.map(*arguments, **options)
    with pytest.raises(fm.BuildError, match=word):
        UP.imap(*arguments, **options)


@pytest.mark.parametrize("limits", [{"buffersize": 0}, {"chunksize": "3"}])
def test_wrong_windows_are_refused(limits: Any) -> None:
    with pytest.raises(fm.BuildError, match=next(iter(limits))):
        UP.imap({"x": [1]}, "x", **limits)


def test_constants_are_copied_where_that_is_asked_for() -> None:
    def add(x: int, seen: list[int]) -> list[int]:
        seen.append(x)
        return list(seen)

    g, seen = fm.Graph([add]), []
    assert g.map({"x": [1, 2], "seen": seen}, "x", copy=("seen",))["add"] == [[1], [2]]
    assert g.bind(seen=seen).map({"x": [1, 2]}, "x", copy="seen")["add"] == [[1], [2]]
    assert seen == []
    assert g.map({"x": [1, 2], "seen": seen}, "x")["add"] == [[1], [1, 2]]


def test_the_rows_are_a_sequence_with_columns() -> None:
    rows = SIDE.map({"x": [1, 2, 3], "y": 0}, "x")
    assert isinstance(rows, MapResult) and rows.ok and rows.status == "completed"
    assert rows[0] == {"side": 10} and rows[-1] == {"side": 30} and rows[1:] == [rows[1], rows[2]]
    assert list(rows) == [rows[i] for i in range(3)] == rows and len(rows) == 3
    assert {"side": 20} in rows and rows.index({"side": 20}) == 1
    assert (rows.stats["side"].in_, rows.stats["side"].out) == (3, 3)
    with pytest.raises(KeyError, match="did you mean 'side'"):
        rows["sides"]
    with pytest.raises(IndexError):
        rows[3]
    assert len(repr(rows)) < 200 and "3 rows of side" in repr(rows)
    again = pickle.loads(pickle.dumps(rows))
    assert again == rows and again["side"] == [10, 20, 30]


def test_a_notebook_shows_the_first_rows() -> None:
    g = fm.Graph([fm.node(lambda x: f"<{x}>" * 100, name="<y>")])
    shown = g.map({"x": range(50)}, "x")._repr_html_()
    assert shown.count("<tr>") == 11 and "&lt;y&gt;" in shown and "<0>" not in shown
    assert len(shown) < 4000


def test_wanted_outputs_alone_come_back() -> None:
    g = fm.Graph([up, fm.node(lambda up, model: up, name="last")])
    assert g.map({"x": [1, 2]}, "x", output_name="up") == [{"up": 2}, {"up": 3}]
    assert g.map({"x": [1, 2]}, "x", output_name=[]) == [{}, {}]
    assert g.map({"up": [1, 2], "model": 0}, "up") == [{"last": 1}, {"last": 2}]

"""What can be a node, what it is called with, and what is refused before anything runs."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import forkmill as fm


@fm.node
def double(x: int) -> int:
    """Twice."""
    return 2 * x


@fm.node(output_name=("low", "high"), version=2)
def ends(values: list[int]) -> tuple[int, int]:
    return min(values), max(values)


class Times:
    def __call__(self, x: int) -> int:
        return 10 * x

    def hundred(self, x: int) -> int:
        return 100 * x

    @fm.node
    def method(self, x: int) -> int:
        return 1000 * x


class Pair:
    def __init__(self, x: int, y: int = 2) -> None:
        self.x, self.y = x, y


def by_position(a: int, b: int = 2, /, c: int = 3, *, d: int = 4) -> tuple[int, ...]:
    return a, b, c, d


def test_a_node_is_called_as_its_function_is() -> None:
    assert double(3) == double(x=3) == 6
    assert double.__name__ == "double" and double.__doc__ == "Twice."
    assert (double.name, double.outputs, double.inputs) == ("double", ("double",), ("x",))
    assert ends.outputs == ("low", "high") and not ends.is_async
    assert "double(x)" in repr(double)


def test_options_make_another_node() -> None:
    other = double.options(output_name="y", cache=True)
    assert other is not double and other.fn is double.fn and other.outputs == ("y",)
    assert not double.cache and double.outputs == ("double",)
    assert fm.node(double, name="again").name == "again"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"a": 1}, (1, 2, 3, 4)),
        ({"a": 1, "c": 9}, (1, 2, 9, 4)),
        ({"a": 1, "d": 0}, (1, 2, 3, 0)),
        ({"a": 1, "b": 7}, (1, 7, 3, 4)),
        ({"d": 5, "b": 6, "a": 7}, (7, 6, 3, 5)),
    ],
)
def test_arguments_go_as_the_signature_says(given: Any, expected: Any) -> None:
    assert fm.Graph([by_position]).run(given) == {"by_position": expected}
    names = list(given)
    rows = fm.Graph([by_position]).map({n: [v] for n, v in given.items()}, names)
    assert rows["by_position"] == [expected]


def test_a_default_before_a_given_positional_one_is_passed() -> None:
    def late(a: int = 1, b: int = 2, /) -> tuple[int, int]:
        return a, b

    assert fm.Graph([late]).run(b=5) == {"late": (1, 5)}
    assert fm.Graph([late]).run() == {"late": (1, 2)}


@pytest.mark.parametrize(
    ("fn", "inputs", "expected"),
    [
        (fm.node(lambda x: x + 1, name="y"), {"x": 1}, 2),
        (fm.node(lambda x: x + 1, output_name="y"), {"x": 1}, 2),
        (fm.node(math.sqrt, output_name="y"), {"x": 9}, 3.0),
        (fm.node(operator.add, output_name="y"), {"a": 1, "b": 2}, 3),
        (fm.node(functools.partial(pow, 2), name="y"), {"exp": 3}, 8),
        (fm.node(Times(), name="y"), {"x": 2}, 20),
        (fm.node(Times().hundred, output_name="y"), {"x": 2}, 200),
        (Times().method.options(output_name="y"), {"x": 2}, 2000),
    ],
)
def test_anything_with_a_signature_is_a_node(fn: Any, inputs: Any, expected: Any) -> None:
    assert fm.Graph([fn]).run(inputs) == {"y": expected}


def test_a_class_is_a_node() -> None:
    made = fm.Graph([Pair]).run(x=3)["Pair"]
    assert (made.x, made.y) == (3, 2)


def generator(x: int) -> Iterator[int]:
    yield x


async def async_generator(x: int) -> AsyncIterator[int]:
    yield x


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: x, ["name="]),
        (functools.partial(pow, 2), ["name="]),
        (Times(), ["name="]),
        (max, ["max"]),
        (os.path.join, ["join", "*p"]),
        (fm.node, ["**options"]),
        (generator, ["generator", "a generator function"]),
        (async_generator, ["async_generator", "a generator function"]),
        (5, ["'int'"]),
    ],
)
def test_what_cannot_be_a_node_is_refused_with_its_name(fn: Any, words: list[str]) -> None:
    with pytest.raises(fm.BuildError) as caught:
        fm.Graph([fn])
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"outputname": "y"}, "did you mean 'output_name'"),
        ({"retry": 3}, "fm.retry"),
        ({"retry": fm.retry(3, then="raise")}, "then"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"cache": 1}, "cache"),
        ({"batch": None}, "batch"),
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ({"output_name": ()}, "output_name"),
        ({"output_name": ("a", "a")}, "'a' twice"),
        ({"output_name": ("a", 5)}, "output_name"),
        ({"output_name": ""}, "empty"),
        ({"version": []}, "version"),
    ],
)
def test_wrong_options_are_refused_where_they_are_written(options: Any, word: str) -> None:
    with pytest.raises(fm.BuildError, match=word):
        fm.node(lambda x: x, **{"name": "f", **options})
    with pytest.raises(fm.BuildError, match=word):
        double.options(**options)


def test_nodes_pickle_by_their_names_or_by_their_functions() -> None:
    assert pickle.loads(pickle.dumps(double)) is double
    other = pickle.loads(pickle.dumps(double.options(output_name="y")))
    assert other.fn is double.fn and other.outputs == ("y",)
    plain = pickle.loads(pickle.dumps(fm.node(operator.neg, name="minus")))
    assert plain.fn is operator.neg and plain.name == "minus"


def test_a_signature_may_be_said() -> None:
    def anything(**values: int) -> dict[str, int]:
        return values

    one = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY)
    anything.__signature__ = inspect.Signature([one])  # type: ignore[attr-defined]
    assert fm.Graph([anything]).run(x=1) == {"anything": {"x": 1}}

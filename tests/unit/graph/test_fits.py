"""Annotations of the two ends of an edge, where a graph is asked to compare them."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from typing import Annotated, Any, Literal, NewType, TypeVar

import pytest

import forkmill as fm
from forkmill.graph.fits import fits

T = TypeVar("T")
UserId = NewType("UserId", int)


@pytest.mark.parametrize(
    ("gives", "need", "fit"),
    [
        (int, int, True),
        (int, str, False),
        (bool, int, True),
        (int, bool, False),
        (int, float, True),
        (float, int, False),
        (int, object, True),
        (int, Any, True),
        (int, T, True),
        (int, int | None, True),
        (int, str | float, True),
        (int | str, int, False),
        (int | bool, int, True),
        (None, int | None, True),
        (None, int, False),
        (list[int], list[int], True),
        (list[int], list[str], False),
        (list[int], list, True),
        (list, list[str], True),
        (list[int], Sequence[int], True),
        (list[int], Iterable, True),
        (dict, list, False),
        (tuple[int, str], tuple[int, str], True),
        (tuple[int, str], tuple[int, int], False),
        (tuple[int, ...], tuple[int, int], True),
        (Annotated[int, "meters"], int, True),
        (UserId, int, True),
        (UserId, str, False),
        (Literal["a"], str, True),
        (Literal["a"], int, False),
        (Awaitable[int], int, True),
        ("not.there", int, True),
    ],
)
def test_what_may_fit_passes(gives: Any, need: Any, fit: bool) -> None:
    assert fits(gives, need) is fit


def number() -> int:
    return 1


def word(number: str) -> str:
    return number


def pair() -> tuple[int, str]:
    return 1, "a"


def test_an_edge_that_cannot_fit_is_refused_if_that_is_asked_for() -> None:
    with pytest.raises(fm.BuildError, match=r"'number' is int .*'word' takes str"):
        fm.Graph([number, word], check_types=True)
    assert fm.Graph([number, word]).run()["word"] == 1
    halves = fm.node(pair, output_name=("number", "other"))
    with pytest.raises(fm.BuildError, match="'pair'"):
        fm.Graph([halves, word], check_types=True)


def test_a_nested_graph_has_the_types_of_its_nodes() -> None:
    inner = fm.Graph([number], name="in")
    with pytest.raises(fm.BuildError, match="'in'"):
        fm.Graph([inner, word], check_types=True)
    outer = fm.Graph([number, fm.Graph([fm.node(word)], name="in")], check_types=False)
    assert outer.run()["word"] == 1
    with pytest.raises(fm.BuildError, match="'in'"):
        fm.Graph([number, fm.Graph([fm.node(word)], name="in")], check_types=True)

"""A result is the value that a plain call would give, whatever lies beside it and whatever comes in
between.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
import tasks

np = pytest.importorskip("numpy")

# Bytes around every threshold: nothing, a little, half a ring, the arena's, the channel's buffer,
# and far beyond.
SIZES = (0, 10, 32_700, 65_500, 65_536, 70_000, 700_000)


@pytest.fixture(params=["fork", "zygote"])
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(1, start_method=request.param) as made:
        yield made


def is_right(value: Any, outside: int, inside: int) -> bool:
    array, text = value
    return bool((array == tasks.numbers(outside)).all()) and text == tasks.text(inside)


# ------------------------------------------------------- memory in band and out of band


def test_sizes_in_band_and_out_of_band_are_independent(pool: fm.ProcessPool) -> None:
    kept = []
    for outside, inside in itertools.product(SIZES, SIZES):
        value = pool.submit(tasks.both, outside, inside).result()
        assert is_right(value, outside, inside), (outside, inside)
        kept.append((value, outside, inside))
    # What came first is still what it was.
    assert all(is_right(*each) for each in kept)


def test_arguments_too(pool: fm.ProcessPool) -> None:
    for outside, inside in itertools.product(SIZES, SIZES):
        sent = tasks.both(outside, inside)
        assert is_right(pool.submit(tasks.identity, sent).result(), outside, inside)
        assert is_right(next(pool.map(tasks.identity, [sent])), outside, inside)


def test_outputs_of_a_stream_too(pool: fm.ProcessPool) -> None:
    pairs = list(itertools.product(SIZES, SIZES))
    for (outside, inside), value in zip(pairs, pool.stream(tasks.each_both, pairs), strict=True):
        assert is_right(value, outside, inside), (outside, inside)


@pytest.mark.parametrize("context", ["cow_fork:1", "thread:1", "inline", "ipc_fork:1"])
def test_in_contexts_too(context: str) -> None:
    with fm.executor(context) as ex:
        for outside, inside in itertools.product(SIZES[::2], SIZES[::2]):
            value = ex.submit(tasks.both, outside, inside).result()
            assert is_right(value, outside, inside), (outside, inside)


# --------------------------------------------------------- different outcomes in a chunk

KINDS = ("number", "text", "long text", "small array", "carried", "both", "failure", "long failure")


def is_outcome(value: Any, kind: str, i: int) -> bool:
    try:
        expected = tasks.outcome_of_kind((kind, i))
    except ValueError as error:
        return type(value) is ValueError and value.args == error.args
    if isinstance(expected, np.ndarray):
        return bool((value == expected).all())
    if isinstance(expected, tuple):
        return bool((value[0] == expected[0]).all()) and value[1] == expected[1]
    return bool(value == expected)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
def test_any_outcomes_share_a_chunk(pool: fm.ProcessPool, ordered: bool, keep: bool) -> None:
    """Each pair of kinds, next to each other in both orders, in chunks of all sizes."""
    pairs = [kind for two in itertools.product(KINDS, KINDS) for kind in two]
    items = [(kind, i) for i, kind in enumerate(pairs)]
    kept = []
    for size in (2, 7, 64):
        found = pool.map(
            tasks.numbered_outcome, items, chunksize=size, ordered=ordered, return_exceptions=True
        )
        left = set(range(len(items)))
        for value in found:
            if isinstance(value, ValueError):
                i = value.args[1]
            else:
                i, value = value
            left.remove(i)
            assert is_outcome(value, *items[i]), items[i]
            if keep:
                kept.append((value, *items[i]))
            del value
        assert not left
    assert all(is_outcome(*each) for each in kept)


def test_a_dropped_map_with_outcomes_of_every_kind(pool: fm.ProcessPool) -> None:
    items = [(kind, i) for i, kind in enumerate(KINDS * 4)]
    for read in range(0, len(items), 3):
        found = pool.map(tasks.numbered_outcome, items, chunksize=16, return_exceptions=True)
        some = list(itertools.islice(found, read))
        found.close()
        for value, (kind, i) in zip(some, items, strict=False):
            got = value if isinstance(value, Exception) else value[1]
            assert is_outcome(got, kind, i)

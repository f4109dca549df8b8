"""The search of differential.py, with the same few numbers each time; and that it can find."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
from forkmill.codec import codec as _codec

differential = pytest.importorskip("differential")


@contextlib.contextmanager
def search(folder: Path, seed: int, *methods: str) -> Iterator[Any]:
    with differential.Search(seed, str(folder), methods=methods) as made:
        yield made


@pytest.mark.shared_pool
@pytest.mark.parametrize("seed", [3, 4])
def test_values_arrive_as_what_they_are(tmp_path: Path, seed: int) -> None:
    with search(tmp_path, seed, "fork", "zygote") as made:
        for number in range(20):
            made.round(number)
    assert made.tally["values"] > 100
    assert made.tally["interrupts"] > 0
    for path in ("graph", "filled"):
        assert any(key.endswith(f" {path}") for key in made.tally)


@pytest.mark.slow
@pytest.mark.shared_pool
@pytest.mark.timeout(300)
def test_values_arrive_as_what_they_are_from_spawned_workers(tmp_path: Path) -> None:
    with search(tmp_path, 3, "spawn") as made:
        for number in range(150):
            made.round(number)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[:-1] + b"?" if type(value) is bytes and value else value,
        lambda value: value + 0.0 if type(value) is int else value,
        lambda value: list(value) if type(value) is tuple else value,
    ],
    ids=["content", "type", "container"],
)
def test_it_sees_a_wrong_value(change: Any) -> None:
    """What a faulty path would do to a value of each kind."""
    seen = 0
    for seed in range(300):
        value = differential.make(seed)
        changed = change(value)
        if changed is not value:
            with pytest.raises(differential.Difference):
                differential.compare(value, changed)
            seen += 1
    assert seen > 3


def test_it_sees_what_is_no_longer_shared() -> None:
    one = [1]
    for value, other in [
        ([one, one], [[1], [1]]),
        ([[1], [1]], [one, one]),
        ({"a": one, "b": (one,)}, {"a": one, "b": ([1],)}),
    ]:
        with pytest.raises(differential.Difference, match="two"):
            differential.compare(value, other)


@pytest.mark.shared_pool
def test_it_finds_a_fault_in_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = _codec.Codec.loads

    def faulty(self: Any, data: Any, buffers: Any = ()) -> Any:
        return loads(self, data, list(buffers)[::-1])  # the buffers in the wrong order

    monkeypatch.setattr(_codec.Codec, "loads", faulty)
    with (
        search(tmp_path, 1, "fork") as made,
        pytest.raises((differential.Difference, fm.SerializationError)),
    ):
        for number in range(200):
            made.round(number)

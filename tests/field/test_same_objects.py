"""One object that is put several times: None, small numbers, words of a list.

What an item emits stays together, and in its place, also where the same object is worked on twice
at a time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import forkmill as fm

pytestmark = [pytest.mark.timeout(60), pytest.mark.everywhere]

PARTS = "abcdefgh"
ITEMS = 6


def pause() -> None:
    time.sleep(0.008)  # so much at least, and the others go on; a worker puts the item aside


@pytest.mark.parametrize("known", [True, False], ids=["generator", "gives one"])
@pytest.mark.parametrize("context", ["thread:2", "async:2", "cow_fork:2", "ipc_fork:2"])
def test_ordered_outputs_of_one_object_stay_apart(context: str, known: bool) -> None:
    barrier = threading.Barrier(2)
    turns: Callable[[], object] = pause if "fork" in context else lambda: barrier.wait(20)

    def stream(item: Any) -> Iterator[str]:
        for part in PARTS:
            yield part
            turns()

    fn = stream if known else lambda item: stream(item)
    pipeline = fm.Pipeline().source([None] * ITEMS).stage(fn, context=context, ordered=True)
    assert "".join(pipeline.run().outputs) == PARTS * ITEMS


def test_ordered_outputs_of_async_generators_stay_apart() -> None:
    barrier: asyncio.Barrier | None = None

    async def stream(item: Any) -> AsyncIterator[str]:
        nonlocal barrier
        barrier = barrier or asyncio.Barrier(2)
        for part in PARTS:
            yield part
            await barrier.wait()

    pipeline = fm.Pipeline().source([1] * ITEMS).stage(stream, context="async:2", ordered=True)
    assert "".join(pipeline.run().outputs) == PARTS * ITEMS


def test_who_fails_among_equals_keeps_its_place() -> None:
    """The second of two calls with one object fails first, before the first one is through."""
    second, numbers = threading.Event(), iter(range(2))

    def stream(item: Any) -> Iterator[str]:
        number = next(numbers)
        yield f"{number} begins"
        if number == 0:
            second.wait(20)
            yield "0 ends"
        else:
            try:
                raise ValueError(number)
            finally:
                second.set()

    pipeline = (
        fm.Pipeline()
        .source([7, 7])
        .stage(stream, context="thread:2", ordered=True, on_error="skip")
    )
    result = pipeline.run()
    assert result.outputs in (
        ["0 begins", "0 ends", "1 begins"],
        ["1 begins", "0 begins", "0 ends"],  # who began first has no name of its own
    )
    assert [str(failure.error) for failure in result.failures] == ["1"]

"""Coroutines and async generators of stages, called where an event loop runs in the very thread.

A notebook's cell is such a place: the loop there is not ours to stop, nor to wait in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import forkmill as fm


async def numbers(x: int) -> AsyncIterator[int]:
    for i in range(x):
        await asyncio.sleep(0)
        yield i


async def doubled(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


async def source() -> AsyncIterator[int]:
    for i in range(4):
        yield i


async def refused(x: int) -> int:
    raise ValueError(x)


def pipeline(context: str) -> fm.Pipeline:
    p = fm.Pipeline().source(source)
    return p.stage(numbers, context=context, ordered=True).map(doubled)


@pytest.mark.parametrize("context", ["inline", "thread:2", "async:2", "ipc_fork:1", "cow_fork:1"])
def test_async_stages_run_under_a_running_loop(context: str) -> None:
    async def run() -> list[Any]:
        return pipeline(context).run().outputs

    expected = [2 * i for x in range(4) for i in range(x)]
    assert asyncio.run(run()) == pipeline(context).run().outputs == expected


def test_what_one_raises_is_the_item_s_failure() -> None:
    async def run() -> None:
        fm.Pipeline().source([1]).map(refused).run()

    with pytest.raises(ValueError, match="1"):
        asyncio.run(run())

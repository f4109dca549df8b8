"""A lane over an event loop: items that never wait, items that do, and who else is in the loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

import forkmill as fm
from forkmill.contexts import Batch, Taken, Work

COUNT = 1000
WIDTH = 10


def through(executor: Any, fn: Callable[..., Any]) -> dict[int, Any]:
    """What becomes of COUNT items: the output or the failure, by item."""
    lane = executor.lane(Work(fn))
    found: dict[int, Any] = {}
    try:
        lane.put_many(range(COUNT))
        lane.end()
        while not lane.ended:
            for piece in lane.take_many(30):
                for one in piece.split() if isinstance(piece, Batch) else (piece,):
                    assert isinstance(one, Taken)
                    assert one.item not in found
                    found[one.item] = one.failure or one.outputs[0]
    finally:
        lane.close()
    assert sorted(found) == list(range(COUNT))
    return found


@pytest.fixture
def executor() -> Any:
    with fm.executor("async", WIDTH) as made:
        yield made


def test_items_that_never_wait_are_done_at_their_first_step(executor: Any) -> None:
    """From CPython 3.12 on: no item is asked for twice, none takes a turn of the loop."""
    loop = executor.submit(running_loop).result(30)
    asked, usual = [0], loop.call_soon

    def counting(*args: Any, **options: Any) -> Any:
        asked[0] += 1
        return usual(*args, **options)

    loop.call_soon = counting
    tasks: set[Any] = set()

    async def negative(item: int) -> int:
        tasks.add(asyncio.current_task())
        return -item

    assert through(executor, negative) == {item: -item for item in range(COUNT)}
    assert len(tasks - {None}) == COUNT
    if sys.version_info >= (3, 12):
        assert asked[0] <= 2 * COUNT / WIDTH
    else:
        assert asked[0] >= COUNT


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_some_wait_and_some_fail(executor: Any) -> None:
    """Never more than n at once; each outcome is its own item's."""
    running, most = [0], [0]

    async def mixed(item: int) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        try:
            if item % 2:
                await asyncio.sleep(0)
            if item % 7 == 0:
                raise ValueError(item)
            if item % 11 == 0:
                raise asyncio.CancelledError
            return -item
        finally:
            running[0] -= 1

    found = through(executor, mixed)
    for item, outcome in found.items():
        if item % 7 == 0:
            assert isinstance(outcome, ValueError)
            assert outcome.args == (item,)
        elif item % 11 == 0:
            assert isinstance(outcome, BaseException)
        else:
            assert outcome == -item
    assert 1 < most[0] <= WIDTH
    assert running == [0]


def test_others_have_their_turn_between_items_that_never_wait(executor: Any) -> None:
    turns, over = [0], []

    async def beside() -> None:
        while not over:
            turns[0] += 1
            await asyncio.sleep(0)

    async def seen(item: int) -> int:
        return turns[0]

    other = executor.submit(beside)
    try:
        found = through(executor, seen)
    finally:
        over.append(True)
        other.result(30)
    assert len(set(found.values())) >= COUNT / WIDTH / 2


def test_a_factory_for_tasks_is_asked(executor: Any) -> None:
    """Who says how tasks are made in this loop is asked for each."""
    made = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    executor.submit(running_loop).result(30).set_task_factory(factory)

    async def same(item: int) -> int:
        return item

    assert through(executor, same) == {item: item for item in range(COUNT)}
    assert [coroutine.__name__ for coroutine in made].count("_do") == COUNT

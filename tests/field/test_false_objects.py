"""What is false: exceptions and functions that have a length of 0, or that refuse to be asked.

Such an exception is one like any other, and such a function as well. Python's own Future takes a
false exception for none, and gives None.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import forkmill as fm
from forkmill.integrations import stdlib

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.everywhere,
    pytest.mark.filterwarnings("ignore:subinterpreters:RuntimeWarning"),
]

CONTEXTS = ["inline", "thread:1", "async:2", "cow_fork:1", "interpreter:1", "ipc_fork:1"]


class Empty(Exception):
    """As an exception that gathers others, and has none."""

    def __len__(self) -> int:
        return 0


class Mute(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("nobody asks me")


class Transforms(list[Any]):
    """Callable and, when it has nothing to do, false."""

    def __call__(self, item: int) -> int:
        for transform in self:
            item = transform(item)
        return item + 1

    def __bool__(self) -> bool:
        raise RuntimeError("nobody asks me")


def empty(item: Any) -> Any:
    raise Empty(item)


def mute(item: Any) -> Any:
    raise Mute(item)


async def late(item: Any) -> Any:
    raise Empty(item)


@pytest.mark.parametrize("fn", [empty, mute], ids=["empty", "mute"])
@pytest.mark.parametrize("context", CONTEXTS[:-1])
def test_a_false_exception_is_raised(context: str, fn: Any) -> None:
    kind = Empty if fn is empty else Mute
    with fm.executor(context) as ex:
        future = ex.submit(fn, 1)
        assert type(future.exception(20)) is kind
        with pytest.raises(kind):
            future.result(20)
        with pytest.raises(kind):
            list(ex.map(fn, [1]))
        (error,) = ex.map(fn, [1], return_exceptions=True)
        assert type(error) is kind
        with pytest.raises(kind):
            asyncio.run(awaited(ex, fn))
    single = fm.create_context(context.partition(":")[0])
    single.execute(fn, 1)
    with pytest.raises(kind):
        single.join(20)
    run = fm.Pipeline().source([1]).map(fn, context=context, on_error="skip").run()
    assert [type(failure.error) for failure in run.failures] == [kind]


async def awaited(ex: Any, fn: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(ex, fn, 1)


def test_a_false_exception_of_a_coroutine_is_raised() -> None:
    with fm.executor("async:2") as ex, pytest.raises(Empty):
        ex.submit(late, 1).result(20)


def test_in_the_place_of_the_standard_library_s_pool() -> None:
    with stdlib.Pool(1) as pool:
        for call in (
            lambda: pool.apply(empty, (1,)),
            lambda: pool.map(empty, [1]),
            lambda: list(pool.imap(empty, [1])),
            lambda: list(pool.imap(abs, broken())),
        ):
            with pytest.raises(Empty):
                call()


def broken() -> Any:
    yield 1
    raise Empty


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_false_function_is_called(context: str) -> None:
    fn, policy = Transforms(), fm.retry(2, backoff=0)
    assert fm.Pipeline().source([1, 2]).map(fn, context=context, on_error=policy).run().outputs == [
        2,
        3,
    ]
    if context != "interpreter:1":
        with fm.executor(context) as ex:
            assert [*ex.map(fn, [1])] == [2] and ex.submit(fn, 2).result(20) == 3


def test_the_failure_of_a_false_function_can_be_had_again() -> None:
    fn = Transforms([empty])
    (failure,) = fm.Pipeline().source([1]).map(fn, on_error="skip").run().failures
    with pytest.raises(Empty):
        failure.reproduce()

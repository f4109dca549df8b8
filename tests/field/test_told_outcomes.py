"""Who is told of an outcome and raises what is no Exception: SystemExit, CancelledError, Ctrl-C.

It harms nobody else: all other calls have their outcome, and the executor ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

import forkmill as fm

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:subinterpreters:RuntimeWarning"),
]

CONTEXTS = ["thread:1", "async:1", "ipc_fork:1", "cow_fork:1", "interpreter:1"]
RAISED = [SystemExit, asyncio.CancelledError]


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    found: list[type] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(args.exc_type))
    return found


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_others_have_their_outcomes(
    context: str, raised: type[BaseException], reported: list[type], capfd: Any
) -> None:
    def tell(future: Any) -> None:
        raise raised("told")

    with fm.executor(context) as ex:
        gate = ex.submit(pow, 2, 200_000, 10**9 + 7)
        futures = [ex.submit(pow, 2, n) for n in range(6)]
        for future in (gate, futures[0], futures[3], futures[5]):
            if not future.done():  # else it is told, and raises, here
                future.add_done_callback(tell)
        assert [future.result(20) for future in futures] == [2**n for n in range(6)]
        assert [*ex.map(abs, [-1, -2])] == [1, 2]
    assert {*reported} <= {raised}


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("context", CONTEXTS)
def test_all_that_wait_are_cancelled(
    context: str, raised: type[BaseException], reported: list[type], capfd: Any
) -> None:
    def tell(future: Any) -> None:
        raise raised("told")

    begun, open_ = threading.Event(), threading.Event()
    ex = fm.executor(context)
    if context.startswith(("thread", "interpreter", "async")):
        ex.submit(lambda: (begun.set(), open_.wait(20)))
        assert begun.wait(20)
    futures = [ex.submit(pow, 2, n) for n in range(6)]
    for future in futures:
        if not future.done():
            future.add_done_callback(tell)
    with contextlib.suppress(raised):  # it comes out where it is cancelled
        ex.shutdown(wait=False, cancel_futures=True)
    open_.set()
    ex.shutdown()
    for n, future in enumerate(futures):
        with contextlib.suppress(CancelledError):
            assert future.result(20) == 2**n


class Unasked(type):
    def __instancecheck__(cls, value: object) -> bool:
        raise LookupError("nobody asks me")


class Odd(Exception, metaclass=Unasked):
    """Cannot be looked for."""


@pytest.mark.parametrize("context", ["inline", "thread:1", "async:1"])
def test_what_decides_of_another_try_raises(context: str) -> None:
    with fm.executor(context) as ex:
        with pytest.raises(LookupError):
            ex.options(retries=1, retry_on=(Odd,)).submit(divmod, 1, 0).result(20)
        assert ex.submit(abs, -1).result(20) == 1


def test_what_decides_of_another_try_after_a_death_raises() -> None:
    """In the thread that forks, which all other calls need."""

    def die(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with fm.executor("cow_fork:1") as ex:
        with pytest.raises(LookupError) as raised:
            ex.options(retries=1, retry_on=(Odd,)).submit(die, 1).result(20)
        assert isinstance(raised.value.__context__, fm.WorkerDied)
        assert ex.submit(abs, -1).result(20) == 1


class Leaves:
    """Ends the thread that rebuilds it."""

    def __reduce__(self) -> Any:
        return leave, ()


class LeavesAsTold:
    """As it, by any exception."""

    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    def __reduce__(self) -> Any:
        return leave, (self._kind,)


def leave(kind: type[BaseException] = SystemExit) -> Any:
    raise kind("rebuilt")


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("context", ["ipc_fork:1", "cow_fork:1"])
def test_a_result_that_ends_who_rebuilds_it_is_a_failure(
    context: str, raised: type[BaseException]
) -> None:
    def give(item: int) -> Any:
        return LeavesAsTold(raised) if item == 1 else item

    pipeline = fm.Pipeline().source(range(3))
    result = pipeline.stage(give, context=context, ordered=True, on_error="skip").run()
    assert result.outputs == [0, 2]
    (failure,) = result.failures
    assert isinstance(failure.error, fm.SerializationError)
    assert isinstance(failure.error.__cause__, raised)


def test_an_output_that_ends_its_reader_is_a_failure() -> None:
    def emits(item: int) -> Any:
        yield item
        yield Leaves() if item == 1 else None

    pipeline = fm.Pipeline().source([1, 2])
    pipeline.stage(emits, context="cow_fork:1", ordered=True, on_error="skip")
    result = pipeline.start().result(30)
    assert result.outputs == [1, 2, None]
    assert [type(failure.error) for failure in result.failures] == [SystemExit]

"""The end of async's loop: what comes late, or goes wrong there, loses nothing of the rest."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import forkmill as fm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.timeout(60)


def shut_down(executor: Any) -> None:
    executor.shutdown(wait=False)


def submit(executor: Any) -> None:
    with pytest.raises(fm.PoolClosed):
        executor.submit(abs, -1)


def pump(executor: Any) -> None:
    """As an accept() that was overtaken by the end of its own call."""
    assert executor._loop.wake(executor._loop._pump)


def stop(executor: Any) -> None:
    asyncio.get_running_loop().stop()


def fail(executor: Any) -> None:
    raise ZeroDivisionError


def leave(executor: Any) -> None:
    raise SystemExit(3)


def interrupt(executor: Any) -> None:
    raise KeyboardInterrupt


LATE = [shut_down, submit, pump, stop, fail, leave, interrupt]


async def a_few_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Left:
    """What calls have left in a loop: tasks, a generator, a thread; and what became of it."""

    def __init__(self, executor: Any, late: Callable[[Any], Any]) -> None:
        self.executor = executor
        self.late = late
        self.kept: list[Any] = []
        self.over: list[str] = []

    def end(self, what: str) -> None:
        self.over.append(what)
        self.late(self.executor)

    async def linger(self, what: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await a_few_turns()
            try:
                self.end(what)
            finally:
                await a_few_turns()
                self.over.append(f"{what}, to its end")

    async def generate(self) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await a_few_turns()
            try:
                self.end("generator")
            finally:
                await a_few_turns()
                self.over.append("generator, to its end")

    async def call(self) -> None:
        values = self.generate()
        self.kept = [
            asyncio.create_task(self.linger("task")),
            asyncio.create_task(self.linger("another")),
            values,
            await anext(values),
            await asyncio.to_thread(abs, -1),
        ]
        await asyncio.sleep(0)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The classes of what was reported as a thread's failure."""
    classes: list[type] = []
    monkeypatch.setattr(sys, "excepthook", lambda cls, *_: classes.append(cls))
    return classes


@pytest.mark.parametrize("late", LATE)
def test_what_comes_late_does_not_end_the_cleaning(late: Any, reported: list[type]) -> None:
    threads = set(threading.enumerate())
    executor = fm.executor("async", 2)
    left = Left(executor, late)
    executor.submit(left.call).result(20)
    assert executor.submit(abs, -3).result(20) == 3  # in a thread of the loop's own
    executor.shutdown()
    names = ["task", "another", "generator"]
    assert sorted(left.over) == sorted([*names, *(f"{name}, to its end" for name in names)])
    assert set(reported) <= {SystemExit, KeyboardInterrupt}
    assert bool(reported) == (late in (leave, interrupt))
    assert set(threading.enumerate()) <= threads
    assert executor._loop.loop.is_closed()
    left.kept.clear()
    gc.collect()


@pytest.mark.parametrize("last", [3, 1000])
def test_a_task_that_is_started_while_others_are_cancelled_is_cancelled_too(last: int) -> None:
    """Where there is an end of them."""
    kept: list[asyncio.Task[None]] = []
    ended: list[int] = []

    async def linger(number: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if number < last:
                kept.append(asyncio.create_task(linger(number + 1)))
                await asyncio.sleep(0)
            ended.append(number)
            raise

    async def call() -> None:
        kept.append(asyncio.create_task(linger(1)))
        await asyncio.sleep(0)

    with fm.executor("async") as executor:
        executor.submit(call).result(20)
    assert ended[:3] == [1, 2, 3]
    left = [task for task in kept if not task.done()]
    assert len(left) == (last > 3)
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant
        task.get_coro().close()  # type: ignore[union-attr]


@pytest.mark.parametrize("threads", ["to_thread", "plain"])
def test_an_end_at_exit_is_whole_and_quiet(run_script: Any, threads: str) -> None:
    """CPython 3.12 starts no thread once the interpreter has begun to end."""
    script = run_script(
        f"""
        import asyncio, atexit
        import forkmill as fm

        async def linger():
            try:
                await asyncio.Event().wait()
            finally:
                print("over")

        async def call():
            global left
            left = asyncio.create_task(linger())
            if {threads == "to_thread"}:
                await asyncio.to_thread(abs, -1)
            await asyncio.sleep(0)

        executor = fm.executor("async", 2)
        executor.submit(call).result(20)
        executor.submit(abs, -1).result(20)
        """
    )
    assert script.stdout == "over\n"
    assert script.stderr == ""
    assert script.returncode == 0


def test_a_call_that_is_accepted_while_the_loop_ends_is_finished_or_refused() -> None:
    for _ in range(30):
        executor = fm.executor("async", 4)
        executor.submit(abs, -1).result(20)
        outcomes: list[Any] = []

        def go_on(executor: Any, outcomes: list[Any]) -> None:
            try:
                while True:
                    outcomes.append(executor.submit(asyncio.sleep, 0, 5))
            except fm.PoolClosed:
                pass

        feeder = threading.Thread(target=go_on, args=(executor, outcomes))
        feeder.start()
        executor.shutdown()
        feeder.join()
        assert {outcome.result(20) for outcome in outcomes} <= {5}

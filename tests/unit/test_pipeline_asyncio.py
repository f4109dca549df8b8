"""arun, astream and awaited handles: runs under event loops, their ends above all."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import itertools
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

import forkmill as fm
from forkmill.pipeline import Handle
from forkmill.runs import aio
from forkmill.runs.aio import AHEAD, AsyncStream

FORKED = fm.ipc_fork(2, start_method="fork")  # quicker to start than what a thread gets by itself
CONTEXTS = ["inline", "thread:2", "async:2", FORKED]
SOON = 20.0  # seconds; what takes longer hangs


def bounded(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """asyncio.run, for a test."""

    async def limited() -> None:
        async with asyncio.timeout(SOON) as limit:
            await main()
        assert not limit.expired()  # a test that expects to be cancelled takes that for it

    asyncio.run(limited(), debug=True)


def twice(x: int) -> int:
    return 2 * x


async def twice_async(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


def doubled(items: Any, context: Any) -> fm.Pipeline:
    fn = twice_async if str(context).startswith("async") else twice
    return fm.Pipeline().source(items).map(fn, context=context, name="map")


def endless(context: Any = "inline") -> tuple[fm.Pipeline, threading.Event]:
    """A pipeline without end, and what is set when it is under way."""
    going = threading.Event()
    return doubled(itertools.count, context).sink(lambda _: going.set()), going


async def until(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.001)


# ------------------------------------------------------------------ as run, stream and result


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_the_three_ways_give_what_run_gives(context: Any) -> None:
    expected = list(range(0, 400, 2))

    async def main() -> None:
        line = doubled(range(200), context)
        result = await line.arun()
        assert result.ok and sorted(result.outputs) == expected
        stream = line.astream()
        assert sorted([x async for x in stream]) == expected
        assert stream.result is not None and stream.result.ok
        assert [x async for x in stream] == []
        handle = line.start()
        results = await asyncio.gather(handle, asyncio.wait_for(handle, SOON), handle)
        assert results[0] is results[1] is await handle and sorted(results[0].outputs) == expected

    bounded(main)


def test_async_functions_have_a_loop_of_their_own() -> None:
    loops = set()

    async def numbers() -> AsyncIterator[int]:
        for i in range(5):
            loops.add(asyncio.get_running_loop())
            await asyncio.sleep(0)
            yield i

    async def main() -> None:
        line = fm.Pipeline().source(numbers).map(twice_async).batch(2, max_wait=5)
        assert (await line.arun()).outputs == [[0, 2], [4, 6], [8]]
        assert [x async for x in line.astream()] == [[0, 2], [4, 6], [8]]
        assert asyncio.get_running_loop() not in loops and len(loops) == 2

    bounded(main)


def test_the_loop_goes_on_while_inline_stages_wait() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for how in ("arun", "astream", "handle"):
            gate = threading.Event()
            line = fm.Pipeline().source([1]).map(lambda _, gate=gate: gate.wait(SOON))
            loop.call_later(0.01, gate.set)
            if how == "arun":
                assert (await line.arun()).outputs == [True]
            elif how == "astream":
                assert [x async for x in line.astream()] == [True]
            else:
                assert (await line.start()).outputs == [True]

    bounded(main)


def test_a_run_sees_the_context_variables_of_its_caller() -> None:
    who = contextvars.ContextVar("who", default="nobody")

    async def request(name: str) -> None:
        who.set(name)
        line = fm.Pipeline().source(range(3)).map(lambda _: who.get())
        assert (await line.arun()).outputs == [name] * 3
        assert [x async for x in line.astream()] == [name] * 3

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(request(name))
        assert who.get() == "nobody"

    bounded(main)


def test_a_wrong_pipeline_raises_before_anything_runs() -> None:
    async def main() -> None:
        line = fm.Pipeline().map(twice)
        with pytest.raises(fm.BuildError):
            await line.arun()
        with pytest.raises(fm.BuildError):
            line.astream()

    bounded(main)
    for name in ("arun", "astream"):
        with pytest.raises(fm.BuildError, match="method of that name"):
            type("Line", (fm.Pipeline,), {name: fm.stage(twice)})


def test_without_a_loop_nothing_is_started() -> None:
    line, going = endless()
    for waiting in (line.arun(), anext(line.astream())):
        with pytest.raises(RuntimeError, match="no running event loop"):
            waiting.send(None)  # type: ignore[attr-defined]
    assert not going.is_set()


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_a_failure_is_raised_with_its_result(context: Any) -> None:
    async def main() -> None:
        line = doubled([1, None, 3], context)
        handle = line.start()
        ways = (line.arun(), handle, handle, collected(line.astream()))
        for error in await asyncio.gather(*ways, return_exceptions=True):
            assert isinstance(error, TypeError)
            assert error.run_result.status == "failed"  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            await handle

    bounded(main)


async def collected(stream: AsyncStream) -> list[Any]:
    return [x async for x in stream]


def test_outputs_come_before_the_failure_behind_them() -> None:
    async def main() -> None:
        stream = fm.Pipeline().source([1, 2, None, 4]).map(twice).astream()
        got = []
        with pytest.raises(TypeError):
            async for x in stream:
                got.append(x)
        assert got == [2, 4] and stream.result is not None and stream.result.status == "failed"
        assert await anext(stream, "end") == "end"
        await stream.aclose()

    bounded(main)


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, asyncio.CancelledError])
def test_what_would_look_like_an_end_is_a_cause(kind: type[BaseException]) -> None:
    def fail(x: int) -> int:
        if x == 2:
            raise kind("mine")
        return x

    line = fm.Pipeline().source(range(4)).map(fail)

    async def main() -> None:
        for way in (line.arun(), line.start(), collected(line.astream())):
            with pytest.raises(RuntimeError, match=kind.__name__) as caught:
                await way
            assert isinstance(caught.value.__cause__, kind)
            assert caught.value.run_result.status == "failed"  # type: ignore[attr-defined]

    bounded(main)
    with pytest.raises(RuntimeError if kind is StopIteration else kind):
        list(line.stream())  # which would have been taken for the end of the list


def test_what_fails_at_the_end_of_a_closed_stream_is_raised_there_once() -> None:
    def broken(_: object) -> None:
        raise LookupError("after_run")

    async def main() -> None:
        stream = fm.Pipeline(after_run=broken).source(itertools.count).astream()
        assert await anext(stream) == 0
        with pytest.raises(LookupError):
            await stream.aclose()
        await stream.aclose()
        assert stream.result is not None and stream.result.status == "stopped"

    bounded(main)


# ------------------------------------------------------------------ cancelled runs


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_a_timeout_stops_the_run(context: Any) -> None:
    closed: list[bool] = []

    def numbers() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    async def main() -> None:
        going = threading.Event()
        line = doubled(numbers, context).sink(lambda _: going.set())
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(None) as limit:
                run = asyncio.ensure_future(until(going))
                run.add_done_callback(lambda _: limit.reschedule(0))
                await line.arun()
        result = caught.value.__cause__.run_result  # type: ignore[union-attr]
        assert result.status == "stopped" and closed == [True] and not result.left_behind
        assert result.stats["numbers"].out == result.stats["map"].in_  # what was in flight is done

    bounded(main)


def test_who_is_cancelled_before_it_begins_has_not_begun() -> None:
    async def main() -> None:
        line, going = endless()
        task = asyncio.create_task(line.arun())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not going.is_set() and "forkmill-run" not in map(str, threading.enumerate())

    bounded(main)


def test_a_task_group_stops_the_runs_of_its_tasks() -> None:
    async def main() -> None:
        line, going = endless()

        async def failing() -> None:
            await until(going)
            raise LookupError

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(line.arun())
                group.create_task(failing())
        assert [type(e) for e in caught.value.exceptions] == [LookupError] and task.cancelled()

    bounded(main)


@pytest.mark.parametrize("where", ["source", "stage", "thread"])
def test_what_blocks_is_left_behind_by_a_cancelled_run(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "CANCEL", 3600)  # no kill by itself
    release, going = threading.Event(), threading.Event()

    def block(_: object = None) -> Iterator[int]:
        going.set()
        release.wait()
        yield 1

    line = fm.Pipeline().source(block if where == "source" else [1], name="first")
    line = line.flat_map(
        block if where != "source" else lambda x: [x],
        context="thread:1" if where == "thread" else "inline",
    )

    async def main() -> None:
        task = asyncio.create_task(line.arun())
        await until(going)
        task.cancel()
        if where != "source":  # `stop` waits for a stage that blocks: to be cancelled twice kills
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    bounded(main)
    release.set()


def test_a_cancelled_run_finishes_what_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "CANCEL", 3600)
    release, going = threading.Event(), threading.Event()
    done: list[int] = []

    def slow(x: int) -> int:
        going.set()
        assert release.wait(SOON)
        return x

    async def main() -> None:
        line = fm.Pipeline().source(itertools.count).map(slow, context="thread:1")
        task = asyncio.create_task(line.sink(done.append).arun())
        await until(going)
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    bounded(main)
    assert done and done == list(range(len(done)))


def test_a_cancelled_run_is_killed_if_stop_is_not_enough() -> None:
    release, going = threading.Event(), threading.Event()

    def block(_: int) -> None:
        going.set()
        release.wait()

    async def main() -> None:
        run = fm.Pipeline().source([1]).map(block, context="thread:1").arun()
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await run
        result = caught.value.__cause__.run_result  # type: ignore[union-attr]
        assert result.status == "stopped" and result.left_behind == ["block"]

    bounded(main)
    release.set()


def test_a_result_that_is_there_when_its_task_is_cancelled_goes_with_the_cancellation() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def ended(_: object) -> None:
            loop.call_soon_threadsafe(over.set_result, None)

        task = asyncio.create_task(fm.Pipeline(after_run=ended).source([1]).arun())
        await over
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert (await task).outputs == [1]  # it was quicker than its task's cancellation

    bounded(main)


def test_a_coroutine_that_is_closed_kills_its_run() -> None:
    line, going = endless()
    run = line.arun()

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(SOON):  # drive it by hand
                await first_step(run)

    async def first_step(run: Any) -> None:
        run.send(None)
        await until(going)
        run.close()
        raise asyncio.CancelledError

    bounded(main)
    assert not [t for t in threading.enumerate() if t.name == "forkmill-run" and lasts(t)]


def lasts(thread: threading.Thread) -> bool:
    thread.join(SOON)
    return thread.is_alive()


# ------------------------------------------------------------------ handles


def test_a_cancelled_wait_leaves_the_run_alone() -> None:
    async def main() -> None:
        line = endless()[0]
        handle = line.start()
        for _ in range(50):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await handle
        assert not handle.done() and not handle._waiters
        handle.stop()
        assert (await handle).status == "stopped"

    bounded(main)


def test_a_handle_is_awaited_in_several_loops_at_once() -> None:
    line = endless()[0]
    handle = line.start()
    found: list[Any] = []
    meet = threading.Barrier(4)

    async def waiting() -> None:
        tasks = [asyncio.ensure_future(handle) for _ in range(3)]
        await asyncio.sleep(0)
        meet.wait(SOON)
        found.extend(await asyncio.gather(*tasks))

    threads = [threading.Thread(target=asyncio.run, args=(waiting(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    meet.wait(SOON)
    handle.stop()
    for thread in threads:
        thread.join(SOON)
    assert found == [handle.result(SOON)] * 9


def test_a_loop_may_be_closed_while_a_run_goes_on() -> None:
    line = endless()[0]
    handle = line.start()

    async def waiting() -> None:
        await handle

    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(waiting())
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()
    assert len(handle._waiters) == 1
    handle.stop()
    assert handle.result(SOON).status == "stopped" and not handle._waiters
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # which it is, and rightly

    async def later() -> None:
        assert (await handle).status == "stopped"

    asyncio.run(later())


def test_every_waiter_is_told_once_however_it_meets_the_end() -> None:
    told: list[int] = []
    for run in range(100):
        handle = fm.Pipeline().source([1]).start()
        for i in range(4):
            handle._tell(functools.partial(told.append, 5 * run + i))
        handle.result(SOON)
        handle._tell(functools.partial(told.append, 5 * run + 4))
    assert sorted(told) == list(range(500))


# ------------------------------------------------------------------ streams


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_a_slow_consumer_bounds_what_waits(context: Any) -> None:
    pulled = [0]

    def numbers() -> Iterator[int]:
        for i in range(100_000):
            pulled[0] = i + 1
            yield i

    async def main() -> None:
        line = fm.Pipeline().source(numbers)
        fn = twice_async if str(context).startswith("async") else twice
        stream = line.map(fn, context=context, queue_size=10, name="map").astream()
        assert not pulled[0]  # nothing has begun
        async with contextlib.aclosing(stream) as outputs:
            taken = 0
            async for _ in outputs:
                taken += 1
                if taken % 10 == 0:
                    await asyncio.sleep(0.01)
                assert pulled[0] <= taken + AHEAD + 2 * 10 + 2
                if taken == 50:
                    break
        assert stream.result is not None and stream.result.status == "stopped"

    bounded(main)


def test_one_output_is_computed_for_one_that_is_asked_for() -> None:
    made: list[int] = []

    async def main() -> None:
        stream = fm.Pipeline().source(itertools.count).map(lambda x: made.append(x) or x).astream()
        for i in range(5):
            assert await anext(stream) == i
            await asyncio.sleep(0.01)
            assert made == list(range(i + 1))
        await stream.aclose()

    bounded(main)


def test_closing_a_stream_ends_the_run() -> None:
    async def main() -> None:
        for begun in (False, True):
            closed: list[bool] = []

            def numbers(closed: list[bool] = closed) -> Iterator[int]:
                try:
                    yield from itertools.count()
                finally:
                    closed.append(True)

            async with fm.Pipeline().source(numbers).astream() as stream:
                if begun:
                    assert await anext(stream) == 0
            assert closed == [True] * begun
            assert stream.result is not None and stream.result.status == "stopped"
            assert await anext(stream, "end") == "end"

    bounded(main)


@pytest.mark.parametrize("where", ["source", "stage", "thread"])
def test_a_stream_whose_run_blocks_is_closed_all_the_same(where: str) -> None:
    release, going = threading.Event(), threading.Event()

    def block(_: object = None) -> Iterator[int]:
        yield 1
        going.set()
        release.wait()

    line = fm.Pipeline().source(block if where == "source" else [1], name="first")
    line = line.flat_map(
        block if where != "source" else lambda x: [x],
        context="thread:1" if where == "thread" else "inline",
    )

    async def main() -> None:
        stream = line.astream()
        assert await anext(stream) == 1
        waiting = asyncio.ensure_future(anext(stream, "end"))
        await until(going)
        await stream.aclose()  # by another task than the one that waits
        assert await waiting == "end"
        assert stream.result is not None and stream.result.status == "stopped"

    bounded(main)
    release.set()


def test_who_is_cancelled_waiting_for_an_output_has_closed_the_stream() -> None:
    release, going = threading.Event(), threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        going.set()
        release.wait()

    async def main() -> None:
        stream = fm.Pipeline().source(numbers).astream()
        got = []

        async def consume() -> None:
            async for x in stream:
                got.append(x)

        task = asyncio.create_task(consume())
        await until(going)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert got == [1]
        assert stream.result is not None and stream.result.status == "stopped"

    bounded(main)
    release.set()


def test_a_stream_that_is_dropped_ends_its_run() -> None:
    ended = threading.Event()

    async def main() -> None:
        line = fm.Pipeline(after_run=lambda _: ended.set()).source(itertools.count)
        async for _ in line.astream():
            break
        gc.collect()
        await until(ended)

    bounded(main)


def test_asyncio_run_closes_the_streams_that_are_open_at_its_end() -> None:
    kept: list[AsyncStream] = []

    async def main() -> None:
        kept.append(fm.Pipeline().source(itertools.count).astream())
        await anext(kept[0])

    bounded(main)
    assert kept[0].result is not None and kept[0].result.status == "stopped"


def test_a_stream_belongs_to_one_task_at_a_time() -> None:
    async def main() -> None:
        stream = endless_stream()
        first, second = await asyncio.gather(anext(stream), anext(stream), return_exceptions=True)
        assert first == 0 and isinstance(second, ValueError)
        assert await anext(stream) == 1  # it does it no harm
        await stream.aclose()

    bounded(main)


def endless_stream() -> AsyncStream:
    return fm.Pipeline().source(itertools.count).astream()


# ------------------------------------------------------------------ Ctrl-C, and any moment

INTERRUPTED = """
    import asyncio, itertools, os, signal, sys, threading
    import forkmill as fm

    def item(x):
        if x == 100:
            os.kill(os.getpid(), signal.SIGINT)
        {block}
        return x

    async def main():
        line = fm.Pipeline().source(itertools.count).map(item, context="{context}")
        try:
            {way}
        except asyncio.CancelledError as error:
            print(error.run_result.status, error.run_result.stats["item"].in_ > 100)
            raise

    try:
        asyncio.run(main(), debug=True)
    except KeyboardInterrupt:
        print("interrupted", *(t.name for t in threading.enumerate() if not t.daemon))
"""


@pytest.mark.parametrize("context", ["inline", "thread:2"])
def test_ctrl_c_in_asyncio_run_stops_the_run(run_script: Any, context: Any) -> None:
    code = INTERRUPTED.format(block="", context=context, way="await line.sink(str).arun()")
    assert run_script(code).stdout == "stopped True\ninterrupted MainThread\n"


def test_ctrl_c_in_asyncio_run_ends_a_stream_and_twice_kills(run_script: Any) -> None:
    way = "[x async for x in line.astream()]"
    ran = run_script(INTERRUPTED.format(block="", context="inline", way=way))
    assert ran.stdout == "stopped True\ninterrupted MainThread\n"
    block = "if x == 100: os.kill(os.getpid(), signal.SIGINT); threading.Event().wait()"
    code = INTERRUPTED.format(block=block, context="thread:1", way="await line.arun()")
    assert run_script(code).stdout == "stopped True\ninterrupted MainThread\n"


async def cut_somewhere(dice: random.Random, way: str, context: Any) -> None:
    """One run that is cancelled anywhere, up to three times."""
    line = doubled(itertools.count if dice.random() < 0.8 else range(50), context)
    handle: Handle | None = None

    async def go() -> None:
        nonlocal handle
        if way == "arun":
            await line.sink(twice).arun()
        elif way == "handle":
            handle = line.sink(twice).start()
            await handle
        else:
            async with line.astream() as outputs:
                async for _ in outputs:
                    if dice.random() < 0.01:
                        break

    task = asyncio.create_task(go())
    for _ in range(dice.randint(1, 3)):
        await asyncio.sleep(dice.choice([0, 0.0001, 0.001, 0.02]) * dice.random())
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    if handle is not None:
        handle.stop() if dice.random() < 0.5 else handle.kill()
        assert (await handle).status in ("completed", "stopped")


def cut_runs(number: int, contexts: list[Any]) -> None:
    dice = random.Random(number)

    async def main() -> None:
        for i in range(number):
            way = dice.choice(["arun", "handle", "astream"])
            async with asyncio.timeout(SOON):
                await cut_somewhere(dice, way, contexts[i % len(contexts)])
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main(), debug=True)


def test_runs_that_are_cancelled_at_any_time_end() -> None:
    cut_runs(60, CONTEXTS[:3])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_many_runs_that_are_cancelled_at_any_time_end() -> None:
    cut_runs(500, CONTEXTS)

"""Ways of running a chain that have a quick path: what they promise on it is what they promise."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill.contexts.aio import Aio
from forkmill.contexts.lanes.lane import Batch, SharedLane, Work

WORD: contextvars.ContextVar[int] = contextvars.ContextVar("word", default=0)


def increment(x: int) -> int:
    return x + 1


def squares(pulled: list[int]) -> fm.Pipeline:
    def numbers() -> Iterator[int]:
        i = 0
        while True:
            pulled.append(i)
            yield i
            i += 1

    return fm.Pipeline().source(numbers).map(increment).map(increment)


# ------------------------------------------------------------------ stream


def test_a_stream_of_inline_stages_pulls_an_item_when_it_is_asked_for_its_output() -> None:
    pulled: list[int] = []
    with squares(pulled).stream() as stream:
        for taken in range(1, 5001):
            assert next(stream) == taken + 1
            assert len(pulled) == taken


def test_a_loop_over_a_stream_may_end_and_another_one_goes_on() -> None:
    pulled: list[int] = []
    stream = squares(pulled).stream()
    got = []
    for size in (1, 3, 100, 900):
        for output in stream:
            got.append(output)
            if len(got) % size == 0:
                break
        got.append(next(stream))
    stream.close()
    assert got == list(range(2, 2 + len(got)))
    assert list(stream) == []
    assert stream.result is not None and stream.result.status == "stopped"


def test_a_source_may_live_on_what_is_done_with_the_outputs() -> None:
    todo = [1000]

    def numbers() -> Iterator[int]:
        while todo:
            yield todo.pop()

    seen = 0
    for x in fm.Pipeline().source(numbers).map(increment).stream():
        seen += 1
        if x > 2:
            todo.append(x - 2)
    assert seen == 1000


def test_a_stage_cannot_take_from_its_own_stream() -> None:
    refused: list[str] = []

    def greedy(x: int) -> int:
        if x == 700:
            for take in (lambda: next(stream), lambda: next(iter(stream))):
                with pytest.raises(ValueError, match="already executing") as caught:
                    take()
                refused.append(str(caught.value))
        return x

    stream = fm.Pipeline().source(range(1500)).map(greedy).stream()
    assert sum(1 for _ in stream) == 1500
    assert len(refused) == 2


def test_threads_may_take_turns_at_a_stream() -> None:
    stream = fm.Pipeline().source(range(3000)).map(increment).stream()
    got: list[int] = []

    def take(number: int) -> None:
        got.extend(next(stream) for _ in range(number))

    for _ in range(5):
        take(300)
        thread = threading.Thread(target=take, args=(300,))
        thread.start()
        thread.join()
    assert list(stream) == []
    assert got == list(range(1, 3001))
    result = stream.result
    assert result is not None and result.stats.stages["increment"].out == 3000


def test_ctrl_c_between_two_outputs_is_that_of_python() -> None:
    stream = fm.Pipeline().source(range(10**6)).map(increment).stream()
    with pytest.raises(KeyboardInterrupt):
        for x in stream:
            if x == 2000:
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait(10)
    assert next(stream) == 2001
    stream.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_stage_of_a_stream_breaks_no_item_off() -> None:
    begun, done = [], []

    def work(x: int) -> int:
        begun.append(x)
        if x == 2000:
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(1000))
        done.append(x)
        return x

    got = []
    stream = fm.Pipeline().source(range(10**6)).map(work).stream()
    with pytest.raises(KeyboardInterrupt) as caught:
        for x in stream:
            got.append(x)
    assert begun == done and got == done and 2000 <= got[-1] <= 2001
    assert caught.value.run_result.status == "stopped"  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_is_set_while_a_stream_goes_on_stays() -> None:
    def mine(number: int, frame: Any) -> None:
        raise KeyboardInterrupt("mine")

    def work(x: int) -> int:
        if x == 2100:
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(1000))
        return x

    old = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt, match="mine"):
            for x in fm.Pipeline().source(range(10**6)).map(work).stream():
                if x == 2000:
                    signal.signal(signal.SIGINT, mine)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, old)


def test_runs_inside_a_loop_over_a_stream_have_ctrl_c_to_themselves() -> None:
    def work(x: int) -> int:
        if x == 5:
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(1000))
        return x

    stream = fm.Pipeline().source(range(10**6)).map(increment).stream()
    for x in stream:
        if x == 2000:
            with pytest.raises(KeyboardInterrupt) as caught:
                fm.Pipeline().source(range(100)).map(work).run()
            assert caught.value.run_result.status == "stopped"  # type: ignore[attr-defined]
        if x == 2100:
            break
    assert next(stream) == 2101
    stream.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_a_burst_comes_after_the_outputs_before_it() -> None:
    def work(x: int) -> int:
        if x == 3000:
            raise LookupError(x)
        return x

    got = []
    stream = fm.Pipeline().source(range(10**6)).map(work).stream()
    with pytest.raises(LookupError) as caught:
        for x in stream:
            got.append(x)
    assert got == list(range(3000))
    assert caught.value.run_result is stream.result  # type: ignore[attr-defined]
    assert list(stream) == []


# ------------------------------------------------------------------ retry


def test_with_retry_an_item_emits_what_one_try_gives_whatever_that_is() -> None:
    tries: dict[int, int] = {}

    def work(x: int) -> Any:
        tries[x] = tries.get(x, 0) + 1
        if x % 4 == 0:
            return x
        if x % 4 == 1:
            return parts(x)
        if x % 4 == 2 and tries[x] < 3:
            raise ValueError(x)
        return fm.to("other", x) if x % 4 == 3 else -x

    def parts(x: int) -> Iterator[int]:
        yield x * 10
        if tries[x] < 2:
            raise ValueError(x)
        yield x * 10 + 1

    other: list[int] = []
    line = fm.Pipeline().source(range(8)).map(work, on_error=fm.retry(3, backoff=0), to="end")
    line = line.map(abs, name="end").sink(other.append, name="other", from_=())
    result = line.run()
    assert result.outputs == [0, 10, 11, 2, 4, 50, 51, 6]
    assert other == [3, 7]
    assert tries == {0: 1, 1: 2, 2: 3, 3: 1, 4: 1, 5: 2, 6: 3, 7: 1}
    assert result.ok


def test_with_retry_a_generator_that_a_function_gives_may_fail_for_good() -> None:
    def work(x: int) -> Any:
        def parts() -> Iterator[int]:
            yield x
            raise ValueError(x)

        return parts() if x else x

    policy = fm.retry(2, backoff=0, then=fm.dead_letter("dead"))
    dead: list[Any] = []
    line = fm.Pipeline().source(range(3)).map(work, on_error=policy, to=())
    result = line.sink(dead.append, name="dead", from_=()).run()
    assert result.outputs == [0]
    assert [(f.item, f.attempts) for f in dead] == [(1, 2), (2, 2)]


# ------------------------------------------------------------------ inline async functions


def test_async_functions_of_a_run_have_one_loop_and_a_task_each() -> None:
    seen: list[tuple[Any, Any, int]] = []

    async def work(x: int) -> int:
        seen.append((asyncio.get_running_loop(), asyncio.current_task(), WORD.get()))
        WORD.set(x + 1)
        if x % 2:
            await asyncio.sleep(0)
        return x

    assert fm.Pipeline().source(range(20)).map(work).run().outputs == list(range(20))
    loops, tasks, words = zip(*seen, strict=True)
    assert len(set(loops)) == 1 and loops[0].is_closed()
    assert len(set(map(id, tasks))) == 20 and set(words) == {0}
    assert WORD.get() == 0


def test_what_an_async_function_leaves_behind_ends_before_the_next_item() -> None:
    said: list[str] = []
    kept = []

    async def left(x: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            said.append(f"task {x} ends")

    async def several(x: int) -> Any:
        try:
            yield x
            yield x
        finally:
            said.append(f"generator {x} ends")

    async def work(x: int) -> int:
        said.append(f"item {x}")
        if x == 1:
            kept.append(asyncio.create_task(left(x)))
            await asyncio.sleep(0)
        if x == 2:
            kept.append(several(x))
            await anext(kept[-1])
        return x

    fm.Pipeline().source(range(4)).map(work).run()
    order = ["item 0", "item 1", "task 1 ends", "item 2", "generator 2 ends", "item 3"]
    assert said == order


def test_an_async_function_may_wait_time_out_fail_and_be_cancelled() -> None:
    async def work(x: int) -> Any:
        if x == 0:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        if x == 1:
            raise LookupError(x)
        if x == 2:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        return await asyncio.to_thread(increment, x)

    result = fm.Pipeline().source(range(5)).map(work, on_error="skip").run()
    assert result.outputs == [4, 5]
    kinds = [type(failure.error) for failure in result.failures]
    assert kinds == [TimeoutError, LookupError, asyncio.CancelledError]


def test_async_functions_where_a_loop_runs_in_this_thread() -> None:
    async def work(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def main() -> list[int]:
        return fm.Pipeline().source(range(3)).map(work).run().outputs

    assert asyncio.run(main()) == [0, 1, 2]


def test_an_async_function_with_retry_a_filter_and_a_consumer() -> None:
    tries: dict[int, int] = {}
    got: list[int] = []

    async def work(x: int) -> int:
        tries[x] = tries.get(x, 0) + 1
        if x == 3 and tries[x] < 2:
            raise ValueError(x)
        return x

    async def odd(x: int) -> int:
        return x % 2

    async def keep(x: int) -> None:
        got.append(x)

    line = fm.Pipeline().source(range(6)).map(work, on_error=fm.retry(2, backoff=0)).filter(odd)
    assert line.sink(keep).run().ok
    assert got == [1, 3, 5] and tries[3] == 2


# ------------------------------------------------------------------ threads


def test_an_endless_stage_leaves_its_threads_to_others_too() -> None:
    pool = fm.named_pool("ways-of-one-thread", fm.thread(1))
    try:
        endless = fm.Pipeline().source(itertools.count).map(increment, context=pool.name).sink(id)
        going = endless.start()
        for _ in range(3):
            line = fm.Pipeline().source(range(500)).map(increment, context=pool.name)
            assert line.run().outputs == list(range(1, 501))
        going.stop()
        assert going.result(30).status == "stopped"
    finally:
        pool.shutdown()


def test_what_a_thread_made_can_be_taken_while_its_next_item_takes_long() -> None:
    taken = threading.Event()

    def work(x: int) -> int:
        if x == 1:
            assert taken.wait(20)
        return x

    with fm.Pipeline().source(range(3)).map(work, context="thread:1").stream() as stream:
        assert next(stream) == 0
        taken.set()
        assert list(stream) == [1, 2]


def test_as_many_items_at_once_as_there_are_threads() -> None:
    together = threading.Barrier(4)

    def work(x: int) -> int:
        together.wait(20)
        return x

    result = fm.Pipeline().source(range(40)).map(work, context="thread:4").run()
    assert sorted(result.outputs) == list(range(40))


def test_one_thread_keeps_the_order_whatever_items_emit() -> None:
    def work(x: int) -> Any:
        if x % 5 == 1:
            return iter_of(x)
        if x % 5 == 2:
            raise ValueError(x)
        return x

    def iter_of(x: int) -> Iterator[int]:
        yield x
        yield x

    result = fm.Pipeline().source(range(500)).map(work, context="thread:1", on_error="skip").run()
    twice = [[x] * (2 if x % 5 == 1 else 1) for x in range(500) if x % 5 != 2]
    assert result.outputs == [x for several in twice for x in several]
    assert [failure.item for failure in result.failures] == list(range(2, 500, 5))
    assert all(sys.getrefcount(failure.error) < 6 for failure in result.failures)


def test_an_executor_counts_items_of_a_stage_as_calls() -> None:
    pool = fm.named_pool("ways-that-count", fm.thread(1))
    try:

        def work(x: int) -> int:
            if x % 10 == 0:
                raise ValueError(x)
            return x

        fm.Pipeline().source(range(100)).map(work, context=pool.name, on_error="skip").run()
        figures = pool.metrics()
        assert (figures.created, figures.busy, figures.failed) == (1, 0, 10)
        assert figures.reused >= 99
    finally:
        pool.shutdown()


def test_an_initializer_that_fails_fails_every_item() -> None:
    def refuse() -> None:
        raise OSError("no")

    context = fm.thread(2, initializer=refuse)
    result = fm.Pipeline().source(range(50)).map(increment, context=context, on_error="skip").run()
    assert {*range(50)} <= {failure.item for failure in result.failures} <= {None, *range(50)}
    assert {type(failure.error) for failure in result.failures} == {fm.InitError}


# ------------------------------------------------------------------ lanes


def uneven(x: int) -> Any:
    if x % 97 == 0:
        time.sleep(0.002)
    if x % 50 == 7:
        raise ValueError(x)
    return (y for y in (x, -x)) if x % 3 == 0 else x


@pytest.mark.parametrize("retry", [False, True])
def test_ordered_outputs_of_processes_with_failures_and_generators(retry: bool) -> None:
    again = fm.retry(2, 0.0) if retry else "skip"
    line = fm.Pipeline().source(range(3000))
    result = line.map(uneven, context="ipc_fork:2", ordered=True, on_error=again).run()
    good = [x for x in range(3000) if x % 50 != 7]
    assert result.outputs == [y for x in good for y in ((x, -x) if x % 3 == 0 else (x,))]
    assert [failure.item for failure in sorted(result.failures, key=lambda f: f.item)] == [
        x for x in range(3000) if x % 50 == 7
    ]
    assert {failure.attempts for failure in result.failures} == {2 if retry else 1}


def held_or_failed(gate: str, x: int) -> int:
    if x == 0:
        tasks.pass_gate(gate)
    if x == 1:
        raise ValueError("nobody waits for the first one")
    return x


@pytest.mark.timeout(60)
def test_a_failure_does_not_wait_for_its_turn(tmp_path: Path) -> None:
    """The gate stays closed till the run is over."""
    with tasks.Gate(tmp_path) as gate, pytest.raises(ValueError, match="nobody waits"):
        fn = functools.partial(held_or_failed, gate.path)
        fm.Pipeline().source(range(100)).map(fn, context="ipc_fork:2", ordered=True).run()


def fails_once(folder: str, x: int) -> int:
    if x % 10 == 3 and tasks._first(f"{folder}/{x}"):
        raise OSError("try again")
    return x


@pytest.mark.parametrize("context", ["ipc_fork:2", "thread:2"])
def test_equal_items_that_are_tried_again(context: str, tmp_path: Path) -> None:
    """What was tried is known of those alone that failed."""
    items = [x % 40 for x in range(1000)]
    fn = functools.partial(fails_once, str(tmp_path))
    line = fm.Pipeline().source(items)
    result = line.map(fn, name="again", context=context, on_error=fm.retry(2, 0.0)).run()
    assert sorted(result.outputs) == sorted(items)
    assert not result.failures
    stage = result.stats.stages["again"]
    assert (stage.in_, stage.out, stage.failed) == (1000, 1000, 0)


def test_items_of_a_loop_have_contexts_of_their_own_and_are_as_many_as_its_width() -> None:
    width, running, most = 5, set(), [0]

    async def seen(x: int) -> int:
        assert WORD.get() == 0
        WORD.set(x + 1)
        running.add(x)
        most[0] = max(most[0], len(running))
        await asyncio.sleep(0.0005)
        running.discard(x)
        assert WORD.get() == x + 1
        return x

    line = fm.Pipeline().source(range(400)).map(seen, context=f"async:{width}", ordered=True)
    assert line.run().outputs == list(range(400))
    assert most == [width]


def test_who_shares_a_loop_with_a_lane_has_a_turn_between_its_items() -> None:
    """Its width is 1, and a thousand items wait."""
    order: list[Any] = []

    async def step(x: Any) -> Any:
        order.append(x)
        await asyncio.sleep(0)
        return x

    with Aio(1) as loop:
        lane = loop.lane(Work(fn=step))
        lane.put_many(list(range(1000)))
        assert loop.submit(step, "other").result(timeout=30) == "other"
        lane.end()
        while not lane.ended:
            lane.take_many(1)
        lane.close()
    assert order.index("other") < 500


def test_a_loop_that_is_shut_down_cancels_the_items_that_have_not_begun() -> None:
    begun = threading.Event()

    async def wait(x: int) -> int:
        begun.set()
        await asyncio.sleep(0.05)
        return x

    loop = Aio(2)
    lane = loop.lane(Work(fn=wait))
    lane.put_many(list(range(50)))
    assert begun.wait(30)
    loop.shutdown(cancel_futures=True)
    pieces = [one for piece in lane.take_many(30) for one in each_of(piece)]
    assert sorted(one.item for one in pieces) == list(range(50))
    late = [one for one in pieces if isinstance(one.failure, CancelledError)]
    assert 46 <= len(late) <= 48
    assert lane.pending == 0
    lane.close()


def each_of(piece: Any) -> Iterator[Any]:
    return piece.split() if isinstance(piece, Batch) else iter((piece,))


def test_a_lane_that_has_enough_to_do_is_handed_a_part_of_its_queue_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    put = SharedLane.put_many

    def counted(lane: Any, items: Any, replica: int | None = None) -> None:
        sizes.append(len(items))
        put(lane, items, replica)

    monkeypatch.setattr(SharedLane, "put_many", counted)
    gate, seen = threading.Semaphore(0), []

    def behind_gate(x: int) -> int:
        gate.acquire()
        return x

    line = fm.Pipeline().source(range(1000)).map(behind_gate, context="thread:1", queue_size=100)
    handle = line.sink(seen.append).start()
    tasks.eventually(lambda: sum(sizes) > 76)  # of 101 places less than a quarter are free
    full, puts = sum(sizes), len(sizes)
    for _ in range(full - 77):
        gate.release()
    tasks.eventually(lambda: len(seen) == full - 77)
    assert len(sizes) == puts and full <= 101
    gate.release()
    tasks.eventually(lambda: sum(sizes) > full)
    gate.release(1000)
    handle.result(30)
    assert seen == list(range(1000)) and sum(sizes) == 1000

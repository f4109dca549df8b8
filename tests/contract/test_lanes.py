"""One contract for the lanes of every type of context: what pipelines rely on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import contexts
from forkmill.contexts import END, Batch, Taken, Work
from forkmill.contexts.lanes.calls import AsyncLane

TYPES = list(contexts.TYPES)
PROCESSES = ("ipc_fork", "cow_fork")
EACH = ("ipc_fork", "interpreter") if tasks.SUBINTERPRETERS else ("ipc_fork",)  # one copy a worker
SHARED = tuple(kind for kind in TYPES if kind not in (*PROCESSES, *EACH))  # one copy of the state

pytestmark = pytest.mark.filterwarnings("ignore:subinterpreters need:RuntimeWarning")


@pytest.fixture(params=TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def drain(lane: Any) -> Iterator[Taken]:
    """Everything that comes out, piece by piece, until nothing more will."""
    while not lane.ended:
        for piece in lane.take_many(20):
            if isinstance(piece, Batch):
                assert len(piece.items) == len(piece.outputs)
                yield from piece.split()
            else:
                yield piece


def run(lane: Any, items: Any) -> list[Taken]:
    """Put, end, and take all; close."""
    try:
        lane.put_many(items)
        lane.end()
        return list(drain(lane))
    finally:
        lane.close()


def outputs(pieces: list[Taken]) -> dict[Any, list[Any]]:
    """What each item emitted in all; none may have failed, each must be done once."""
    found: dict[Any, list[Any]] = {}
    done = []
    for piece in pieces:
        assert piece.failure is None, piece.failure
        if piece.item is END:
            continue
        found.setdefault(piece.item, []).extend(piece.outputs)
        done += [piece.item] * piece.done
    assert sorted(done) == sorted(found)
    return found


def test_many_items_come_out_once(kind: str) -> None:
    number = 100 if kind == "cow_fork" else 3000
    pieces = run(contexts.spec(kind, 2).lane(Work(tasks.negative)), range(number))
    assert outputs(pieces) == {n: [-n] for n in range(number)}


def test_pending_counts_what_was_put_and_not_taken(kind: str) -> None:
    lane = contexts.spec(kind, 2).lane(Work(tasks.negative))
    try:
        assert lane.pending == 0
        lane.put_many([1, 2, 3])
        lane.put(4)
        assert lane.pending == 4
        for left in (3, 2, 1, 0):
            piece = lane.take(20)
            assert piece is not None and piece.outputs == [-piece.item]
            assert lane.pending == left
        assert lane.take(0) is None and not lane.ended
    finally:
        lane.close()


def double(item: int) -> Iterator[int]:
    yield item
    yield item


async def double_async(item: int) -> Any:
    yield item
    yield item


async def wait_and_negate(item: int) -> int:
    return -item


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fn", [double, double_async, lambda item: double(item)])
def test_generators_emit_what_they_yield(kind: str, fn: Any, stream: bool) -> None:
    pieces = run(contexts.spec(kind, 2).lane(Work(fn, stream=stream)), range(20))
    assert outputs(pieces) == {n: [n, n] for n in range(20)}


@pytest.mark.parametrize("stream", [False, True])
def test_other_values_are_one_output(kind: str, stream: bool) -> None:
    for fn, expected in ((list, []), (tasks.negative, None), (wait_and_negate, None)):
        items = [()] if fn is list else [5]
        pieces = run(contexts.spec(kind, 2).lane(Work(fn, stream=stream)), items)
        assert outputs(pieces) == {items[0]: [expected if fn is list else -5]}


def count_to(number: int) -> Iterator[int]:
    yield from range(number)


async def count_to_async(number: int) -> Any:
    for n in range(number):
        yield n


@pytest.mark.parametrize("fn", [count_to, count_to_async, lambda number: count_to(number)])
def test_streams_of_many_outputs_arrive_whole(kind: str, fn: Any) -> None:
    pieces = run(contexts.spec(kind, 2).lane(Work(fn, stream=True)), [5000, 3, 0, 2000])
    found = outputs(pieces)
    assert found == {n: list(range(n)) for n in (5000, 3, 0, 2000)}


def endless(_: int) -> Iterator[bytes]:
    while True:
        yield b"x" * 100


async def endless_async(_: int) -> Any:
    while True:
        yield b"x" * 100


@pytest.mark.parametrize("fn", [endless, endless_async])
def test_an_endless_stream_waits_for_its_reader(kind: str, fn: Any) -> None:
    """Outputs come while it runs; it goes no further than the credit; close() ends it."""
    lane = contexts.spec(kind, 1).lane(Work(fn, stream=True))
    try:
        lane.put(1)
        seen = 0
        while seen < 5000:
            for piece in lane.take_many(20):
                assert isinstance(piece, Taken) and piece.failure is None and not piece.done
                seen += len(piece.outputs)
        assert lane.pending == 1
    finally:
        lane.close()
    assert lane.ended and lane.take(0) is None


def two_and_fail(item: int) -> Iterator[int]:
    yield item
    yield item
    raise ValueError(item)


def test_a_stream_that_fails_keeps_what_came_before(kind: str) -> None:
    pieces = run(contexts.spec(kind, 2).lane(Work(two_and_fail, stream=True)), [7])
    assert type(pieces[-1].failure) is ValueError and pieces[-1].done
    assert [n for piece in pieces for n in piece.outputs] in ([7, 7], [])


def fail_on_odd(item: int) -> int:
    if item % 2:
        raise ValueError(item)
    return item


def test_a_failure_is_its_own_items(kind: str) -> None:
    pieces = run(contexts.spec(kind, 2).lane(Work(fail_on_odd)), range(40))
    assert {p.item: p.outputs for p in pieces if p.failure is None} == {
        n: [n] for n in range(0, 40, 2)
    }
    failed = {p.item: p.failure for p in pieces if p.failure is not None}
    assert sorted(failed) == [*range(1, 40, 2)]
    assert all(type(error) is ValueError and error.args == (n,) for n, error in failed.items())


def test_exceptions_are_outputs_too(kind: str) -> None:
    pieces = run(contexts.spec(kind, 2).lane(Work(ValueError)), ["a"])
    assert pieces[0].failure is None and type(pieces[0].outputs[0]) is ValueError


def die_on_7(item: int) -> int:
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.parametrize("stream", [False, True])
def test_a_death_costs_the_item_that_ran(stream: bool) -> None:
    for kind in PROCESSES:
        number = 500 if kind == "ipc_fork" else 20
        pieces = run(contexts.spec(kind, 2).lane(Work(die_on_7, stream=stream)), range(number))
        failed = [piece for piece in pieces if piece.failure is not None]
        assert [piece.item for piece in failed] == [7]
        assert isinstance(failed[0].failure, fm.WorkerDied)
        good = outputs([piece for piece in pieces if piece.failure is None])
        assert good == {n: [n] for n in range(number) if n != 7}


def hang_on_3(item: int) -> int:
    if item == 3:
        time.sleep(60)
    return item


def test_a_timeout_costs_the_item_that_ran() -> None:
    for kind in PROCESSES:
        # Others may stand still for a while, too.
        pieces = run(contexts.spec(kind, 2).lane(Work(hang_on_3, timeout=1.5)), range(10))
        failed = [piece for piece in pieces if piece.failure is not None]
        assert [piece.item for piece in failed] == [3]
        assert isinstance(failed[0].failure, fm.TaskTimeout)


def test_what_cannot_be_sent_fails_at_its_turn() -> None:
    items = [1, threading.Lock(), 3]
    pieces = run(contexts.spec("ipc_fork", 1).lane(Work(type)), items)
    assert {id(p.item) for p in pieces if p.failure} == {id(items[1])}
    assert len(pieces) == 3


# ---------------------------------------------------------------------- copies of the state


def remembering() -> tuple[Work, list[Any]]:
    seen: list[Any] = []

    def end() -> Iterator[Any]:
        yield os.getpid(), list(seen)

    return Work(seen.append, setup=seen.clear, on_end=end, teardown=seen.clear), seen


def test_on_end_runs_once_a_copy_after_its_last_item(kind: str) -> None:
    work, seen = remembering()
    pieces = run(contexts.spec(kind, 2).lane(work), range(12))
    ends = [output for piece in pieces if piece.item is END for output in piece.outputs]
    assert sorted(item for _, items in ends for item in items) == [*range(12)]
    if kind in SHARED:
        assert len(ends) == 1
    elif kind in EACH:
        assert len(ends) <= 2 and len({pid for pid, _ in ends}) in (1, len(ends))
    else:
        assert len(ends) == 12
    assert seen == []


def test_a_batch_of_a_cow_fork_shares_one_copy() -> None:
    work, _ = remembering()
    pieces = run(contexts.spec("cow_fork", 1, batch=5).lane(work), range(20))
    ends = [output for piece in pieces if piece.item is END for output in piece.outputs]
    assert len(ends) == len({pid for pid, _ in ends})
    assert sorted(item for _, items in ends for item in items) == [*range(20)]
    assert len(ends) < 20


def test_a_lane_without_items_runs_nothing(kind: str) -> None:
    work, _ = remembering()
    assert run(contexts.spec(kind, 2).lane(work), []) == []


def raise_it() -> None:
    raise KeyError("x")


def test_a_failing_setup_fails_every_item(kind: str) -> None:
    pieces = run(contexts.spec(kind, 2).lane(Work(tasks.negative, setup=raise_it)), range(5))
    assert sorted(piece.item for piece in pieces) == [*range(5)]
    assert {type(piece.failure) for piece in pieces} == {KeyError}


def test_a_failing_on_end_is_told(kind: str) -> None:
    pieces = run(contexts.spec(kind, 2).lane(Work(tasks.negative, on_end=raise_it)), [4])
    assert {type(p.failure) for p in pieces if p.item is END} == {KeyError}
    assert [p.outputs for p in pieces if p.item is not END] == [[-4]]


def test_an_end_is_not_missed_where_the_birth_was_not_told_yet() -> None:
    """A worker has done its only item before the pool has read that it was born."""
    for _ in range(60):
        pieces = run(
            contexts.spec("ipc_fork", 2, start_method="fork").lane(
                Work(tasks.negative, on_end=tuple)
            ),
            [4],
        )
        assert [p.outputs for p in pieces if p.item is END] == [[()]]


def test_a_dead_worker_takes_its_copy_with_it() -> None:
    seen: list[int] = []

    def work(item: int) -> None:
        die_on_7(item)
        seen.append(item)

    def end() -> Iterator[Any]:
        yield os.getpid(), len(seen)

    pieces = run(contexts.spec("ipc_fork", 1).lane(Work(work, on_end=end)), range(20))
    ends = [output for piece in pieces if piece.item is END for output in piece.outputs]
    assert len(ends) == 1 and ends[0][1] == 12  # those after the seventh: a new worker's


@pytest.mark.parametrize("kind", EACH)
def test_items_for_a_copy_meet_no_other(kind: str) -> None:
    work, _ = remembering()
    lane = contexts.spec(kind, 2).lane(work)
    assert lane.replicas == 2
    try:
        for n in range(50):
            lane.put(n, replica=n % 2)
        lane.end()
        pieces = list(drain(lane))
    finally:
        lane.close()
    ends = [output for piece in pieces if piece.item is END for output in piece.outputs]
    assert sorted(items for _, items in ends) == [[*range(0, 50, 2)], [*range(1, 50, 2)]]


@pytest.mark.parametrize("option", [{"max_tasks_per_child": 5}, {"max_rss": 1 << 40}])
def test_on_end_is_refused_where_workers_are_replaced(option: dict[str, Any]) -> None:
    work, _ = remembering()
    with fm.executor("ipc_fork", 1, **option) as executor, pytest.raises(ValueError, match="stay"):
        executor.lane(work)


# ---------------------------------------------------------------------- the end


def test_teardown_runs_when_a_lane_is_closed_before_its_end(kind: str, tmp_path: Path) -> None:
    if kind in PROCESSES:
        return
    log = tasks.Log(tmp_path)
    up, down = partial(tasks.note_here, log.path, 1), partial(tasks.note_here, log.path, 2)
    lane = contexts.spec(kind, 2).lane(Work(tasks.negative, setup=up, teardown=down))
    lane.put(1)
    assert lane.take(20) is not None
    lane.close()
    lane.close()
    assert log.entries() == [1, 2]


def test_a_closed_lane_takes_nothing_more(kind: str, tmp_path: Any) -> None:
    lane = contexts.spec(kind, 1).lane(Work(tasks.negative))
    lane.end()
    with pytest.raises(fm.PoolClosed):
        lane.put(1)
    lane.close()
    lane.close()
    with pytest.raises(fm.PoolClosed):
        lane.put_many([1])
    assert lane.ended and lane.take(0) is None and lane.take_many(0) == []


def test_close_does_not_wait_for_what_can_be_stopped() -> None:
    for kind in PROCESSES:
        lane = contexts.spec(kind, 1).lane(Work(time.sleep))
        lane.put_many([60, 60])
        tasks.eventually(lambda lane=lane: lane.pending == 2)
        start = time.monotonic()
        lane.close()
        assert time.monotonic() - start < 20


def test_an_async_lane_that_is_stopped_is_busy_until_its_teardown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also between the last outcome and the teardown's call: who closes it then would cut that."""
    began, free, between, go = (threading.Event() for _ in range(4))
    torn: list[bool] = []
    here, let_go = threading.get_ident(), AsyncLane._let_go

    def block(_item: int) -> None:
        began.set()
        assert free.wait(20)

    def late(lane: AsyncLane) -> None:
        if threading.get_ident() != here:
            between.set()
            assert go.wait(20)
        let_go(lane)

    monkeypatch.setattr(AsyncLane, "_let_go", late)
    lane = contexts.spec("async", 1).lane(Work(block, teardown=lambda: torn.append(True)))
    lane.put(1)
    assert began.wait(20)
    lane.stop()
    free.set()
    assert between.wait(20)
    busy = lane.busy
    go.set()
    tasks.eventually(lambda: not lane.busy)
    assert (busy, lane.close(0), torn) == (1, 0, [True])


def test_notify_tells_when_something_can_be_taken(kind: str) -> None:
    told = threading.Event()
    lane = contexts.spec(kind, 2).lane(Work(tasks.negative), told.set)
    taken: list[Taken] = []
    try:
        lane.put_many(range(50))
        lane.end()
        while not lane.ended:
            assert told.wait(20)
            told.clear()
            while pieces := lane.take_many(0):
                for piece in pieces:
                    taken += piece.split() if isinstance(piece, Batch) else (piece,)
    finally:
        lane.close()
    assert outputs(taken) == {n: [-n] for n in range(50)}


@pytest.mark.parametrize("make", [lambda: fm.named_pool("lanes", "ipc_fork:2")])
def test_lanes_share_a_pool_and_leave_nothing_in_it(make: Callable[[], Any]) -> None:
    with make() as pool:
        first, second = remembering()[0], remembering()[0]
        lanes = [pool.lane(first), pool.lane(second)]
        for lane in lanes:
            lane.put_many(range(100))
        lanes[0].end()
        assert sum(piece.item is not END for piece in drain(lanes[0])) == 100
        for lane in lanes:
            lane.close()
        assert pool.executor.each(states_left) == [0, 0]


def states_left() -> int:
    from forkmill.contexts.lanes import in_worker

    return len(in_worker._states)


def test_a_pool_that_ends_under_a_lane_fails_what_is_left(tmp_path: Any) -> None:
    pool = fm.executor("ipc_fork", 1)
    with tasks.Gate(tmp_path) as gate:
        path = gate.path
        lane = pool.lane(Work(lambda n: tasks.pass_gate(path, n)))
        lane.put_many(range(50))
        pool.shutdown(wait=False)
        gate.open()
        lane.end()
        pieces = list(drain(lane))
        lane.close()
    assert sorted(piece.item for piece in pieces if piece.item is not END) == [*range(50)]
    assert {type(p.failure) for p in pieces if p.failure} == {fm.PoolClosed}
    pool.shutdown()

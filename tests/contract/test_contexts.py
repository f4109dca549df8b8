"""One contract for every type of context and every alias (DESIGN.md, section 7)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import contexts, testing
from forkmill.contexts import END, Work

KINDS = [*contexts.TYPES, *contexts.ALIASES]
TYPES = list(contexts.TYPES)
PROCESSES = ("ipc_fork", "cow_fork")

pytestmark = pytest.mark.filterwarnings("ignore:subinterpreters need:RuntimeWarning")


def names(checks: list[Callable[..., None]]) -> list[str]:
    return [check.__name__.removeprefix("check_") for check in checks]


@pytest.fixture(params=TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("check", testing.EXECUTOR_CHECKS, ids=names(testing.EXECUTOR_CHECKS))
@pytest.mark.parametrize("kind", KINDS)
def test_executors_keep_the_contract(kind: str, check: Callable[..., None]) -> None:
    check(lambda: fm.executor(kind, 2))


@pytest.mark.parametrize("check", testing.CONTEXT_CHECKS, ids=names(testing.CONTEXT_CHECKS))
@pytest.mark.parametrize("kind", KINDS)
def test_contexts_keep_the_contract(kind: str, check: Callable[..., None]) -> None:
    check(lambda: fm.create_context(kind))


def test_check_context_is_public() -> None:
    fm.testing.check_context(lambda: fm.thread(2))
    fm.testing.check_context(lambda: fm.create_context("inline"))

    from forkmill.contexts.inline import Inline

    class Wrong(Inline):
        def _accept(self, call: Any) -> None:
            call.fn = lambda *args, **kwargs: None
            super()._accept(call)

    with pytest.raises(AssertionError) as caught:
        fm.testing.check_context(Wrong)
    assert "check_values" in caught.value.__notes__[0]


def test_a_large_result_arrives(kind: str) -> None:
    with fm.executor(kind, 1) as executor:
        data = executor.submit(bytes, 100_000_000).result()
        assert len(data) == 100_000_000 and not any(data[:: 1 << 20])


def test_what_waits_can_be_cancelled(kind: str, tmp_path: Any) -> None:
    if kind == "inline":
        return  # nothing waits
    with tasks.Gate(tmp_path) as gate, fm.executor(kind, 1) as executor:
        first = executor.submit(tasks.pass_gate, gate.path, 1)
        tasks.eventually(first.running)
        second = executor.submit(tasks.pass_gate, gate.path, 2)
        third = executor.submit(tasks.pass_gate, gate.path, 3)
        assert second.cancel() and second.cancelled()
        assert not first.cancel()
        gate.open()
        assert first.result() == 1 and third.result() == 3


def test_shutdown_can_cancel_what_waits(kind: str, tmp_path: Any) -> None:
    if kind == "inline":
        return
    with tasks.Gate(tmp_path) as gate, fm.executor(kind, 1) as executor:
        first = executor.submit(tasks.pass_gate, gate.path, 1)
        tasks.eventually(first.running)
        second = executor.submit(tasks.pass_gate, gate.path, 2)
        executor.shutdown(wait=False, cancel_futures=True)
        gate.open()
        assert first.result() == 1
        assert second.cancelled()


def append(log: Path, number: int) -> None:
    with log.open("a") as file:
        file.write(f"{number}\n")


def test_priority_decides_among_those_that_wait(kind: str, tmp_path: Any) -> None:
    if kind == "inline":
        return
    log = tmp_path / "log"
    with tasks.Gate(tmp_path) as gate, fm.executor(kind, 1) as executor:
        first = executor.submit(tasks.pass_gate, gate.path)
        tasks.eventually(first.running)
        low = [executor.submit(append, log, n) for n in range(8)]
        high = executor.options(priority=5).submit(append, log, 99)
        gate.open()
        for future in [*low, high]:
            future.result()
    entries = [int(line) for line in log.read_text().split()]
    assert entries[-1] != 99 and sorted(entries) == [*range(8), 99]


def test_terminate_ends_the_call(kind: str, tmp_path: Any) -> None:
    if kind == "inline":
        return
    with tasks.Gate(tmp_path) as gate:
        context = fm.create_context(kind)
        context.execute(tasks.pass_gate, gate.path, 5)
        assert context.alive
        with pytest.raises(TimeoutError):
            context.join(0.2)
        tasks.eventually(lambda: context._executor.metrics().busy == 1)
        if kind in PROCESSES:
            context.terminate()
            with pytest.raises(fm.WorkerDied):
                context.join(20)
            assert not context.alive
        else:
            with pytest.raises(fm.PoolError, match="cannot be stopped"):
                context.terminate()
            gate.open()
            assert context.join(20) == 5
        context.close()


def test_a_dropped_context_is_closed(kind: str) -> None:
    fm.create_context(kind).execute(testing.square, 3)  # the fixture looks for what is left
    executor = fm.executor(kind, 2)
    future = executor.submit(testing.square, 3)
    del executor
    assert future.result(20) == 9


def test_lanes_give_every_item_its_outcome(kind: str) -> None:
    def work(item: int) -> Any:
        if item == 3:
            raise ValueError(item)
        return (n for n in range(item)) if item % 2 else item

    lane = contexts.spec(kind, 2).lane(Work(work))
    try:
        for item in range(6):
            lane.put(item)
        lane.end()
        taken = {}
        while not lane.ended:
            if (piece := lane.take(20)) is not None and piece.item is not END:
                taken[piece.item] = piece
    finally:
        lane.close()
    assert sorted(taken) == [*range(6)]
    assert type(taken.pop(3).failure) is ValueError
    outputs = {item: piece.outputs for item, piece in taken.items()}
    assert outputs == {0: [0], 1: [0], 2: [2], 4: [4], 5: [0, 1, 2, 3, 4]}


def test_on_end_runs_once_a_copy_of_the_state(kind: str) -> None:
    total: list[int] = []

    def end() -> Any:
        yield len(total)

    lane = contexts.spec(kind, 2).lane(
        Work(total.append, setup=total.clear, on_end=end, teardown=total.clear)
    )
    try:
        for item in range(10):
            lane.put(item)
        lane.end()
        ends: list[Any] = []
        items = 0
        while not lane.ended:
            piece = lane.take(20)
            if piece is None:
                continue
            assert piece.failure is None, piece.failure
            if piece.item is END:
                ends += piece.outputs
            else:
                items += 1
                assert piece.outputs == [None]
    finally:
        lane.close()
    assert items == 10 and sum(ends) == 10, ends
    if kind == "interpreter" and tasks.SUBINTERPRETERS:
        assert len(ends) <= 2
    elif kind in ("inline", "thread", "interpreter", "async"):
        assert ends == [10]
    elif kind == "cow_fork":
        assert ends == [1] * 10


def test_processes_time_out_calls(kind: str) -> None:
    with fm.executor(kind, 1) as executor:
        if kind in PROCESSES:
            future = executor.options(timeout=0.1).submit(time.sleep, 30)
            assert isinstance(future.exception(20), fm.TaskTimeout)
        elif kind != "async":
            with pytest.raises(ValueError, match="cannot stop"):
                executor.options(timeout=1)


def test_a_death_costs_its_own_item(kind: str) -> None:
    if kind not in PROCESSES:
        return
    with fm.executor(kind, 2) as executor:
        results = list(executor.map(die_on_3, range(8), return_exceptions=True))
    assert isinstance(results.pop(3), fm.WorkerDied)
    assert results == [0, 1, 2, 4, 5, 6, 7]


def die_on_3(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number


def test_metrics_are_plain_data(kind: str) -> None:
    with fm.executor(kind, 2) as executor:
        list(executor.map(testing.fail_on_odd, range(6), return_exceptions=True))
        metrics = executor.metrics()
    assert metrics.failed == 3 and metrics.waiting == 0, metrics
    assert metrics.busy == 0, metrics


# ---------------------------------------------------------------------- lending contexts


def test_the_pool_lends_at_most_its_size(kind: str) -> None:
    pool = fm.ContextPool(kind, max_size=2)
    first, second = pool.acquire("a"), pool.acquire("b")
    assert (first.name, pool.active, pool.available, pool.capacity) == ("a", 2, 0, 2)
    with pytest.raises(TimeoutError):
        pool.acquire("c", timeout=0.01)
    first.execute(testing.square, 2)
    second.execute(testing.square, 3)
    assert pool.join_all(20) == [4, 9]
    pool.release(first)
    third = pool.acquire("c")
    assert (third is first) == (kind == "inline")
    pool.release(second)
    pool.release(third)
    with pytest.raises(ValueError):
        pool.release(third)
    pool.terminate_all()
    assert (pool.active, pool.available) == (0, 2)
    pool.close()


def test_waiting_acquirers_are_served_in_order() -> None:
    pool = fm.ContextPool("inline", max_size=1)
    held = pool.acquire()
    order: list[int] = []

    def borrow(number: int) -> None:
        context = pool.acquire()
        order.append(number)
        pool.release(context)

    threads = []
    for number in range(5):
        thread = threading.Thread(target=borrow, args=(number,))
        thread.start()
        threads.append(thread)
        tasks.eventually(lambda n=number: pool.metrics().waiting == n + 1)
    pool.release(held)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4] and pool.metrics().reused == 5
    pool.close()


def test_a_terminated_context_is_not_handed_out_again() -> None:
    with fm.ContextPool("ipc_fork", max_size=1) as pool:
        first = pool.acquire()
        first.execute(time.sleep, 30)
        pool.terminate_all()
        pool.release(first)
        second = pool.acquire()
        assert second is not first
        assert second.execute(testing.square, 4).join(20) == 16
        assert pool.metrics().failed == 1
        pool.release(second)

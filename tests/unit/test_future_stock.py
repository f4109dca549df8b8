"""What stock code sees of our futures: the lock, the waiters, and who is told when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor, _base
from pathlib import Path

import pytest

import forkmill as fm
import tasks
from forkmill.pool import Future as FutureOfOurs


@pytest.fixture
def pool() -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(2, start_method="fork") as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tasks.Gate]:
    with tasks.Gate(tmp_path) as made:
        yield made


def test_futures_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="submit"):
        FutureOfOurs()


def test_its_lock_can_be_taken_again_by_its_thread_only(pool: fm.ProcessPool) -> None:
    future = pool.submit(tasks.negative, 1)
    got: list[bool] = []
    with future._condition, future._condition:
        thread = threading.Thread(target=lambda: got.append(future._condition.acquire(False)))
        thread.start()
        thread.join()
        late = threading.Thread(target=lambda: got.append(future._condition.acquire(timeout=0.01)))
        late.start()
        late.join()
    assert got == [False, False]
    with pytest.raises(RuntimeError):
        future._condition.release()


def test_threads_that_wait_for_its_lock_get_it_one_after_the_other(pool: fm.ProcessPool) -> None:
    future = pool.submit(tasks.negative, 1)
    inside: list[int] = []
    most: list[int] = []

    def enter(i: int) -> None:
        for _ in range(200):
            with future._condition:
                inside.append(i)
                most.append(len(inside))
                inside.remove(i)

    crew = [threading.Thread(target=enter, args=(i,)) for i in range(6)]
    with future._condition:
        for thread in crew:
            thread.start()
    for thread in crew:
        thread.join()
    assert max(most) == 1
    assert len(most) == 1200


def test_the_state_does_not_change_while_its_lock_is_held(
    pool: fm.ProcessPool, gate: tasks.Gate
) -> None:
    future = pool.submit(tasks.pass_gate, gate.path, 1)
    tasks.eventually(future.running)
    with future._condition:
        gate.open()
        tasks.eventually(future.done)
        assert future._state == "RUNNING"
        seen: list[str] = []
        other = threading.Thread(target=lambda: seen.append(future._state))
        other.start()
    other.join()
    assert seen == ["FINISHED"]
    assert future._state == "FINISHED"


def test_a_result_taken_under_its_lock_is_there(pool: fm.ProcessPool) -> None:
    future = pool.submit(tasks.negative, 1)
    with future._condition:
        assert future.result() == -1
        assert future.done()


def test_waiters_come_and_go(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    future = pool.submit(tasks.pass_gate, gate.path, 1)
    first, second = _base._AsCompletedWaiter(), _base._FirstCompletedWaiter()
    future._waiters.append(first)
    future._waiters.append(second)
    assert list(future._waiters) == [first, second]
    future._waiters.remove(first)
    assert len(future._waiters) == 1
    with pytest.raises(ValueError):
        future._waiters.remove(first)
    gate.open()
    assert second.event.wait(20)
    assert second.finished_futures == [future]
    assert first.finished_futures == []


def test_as_completed_is_told_of_a_batch_at_once(pool: fm.ProcessPool) -> None:
    """Each future once, whatever was already done and whatever came in a batch."""
    for count in (1, 10, 3000):
        waiting = [pool.submit(tasks.negative, i) for i in range(count)]
        got = [future.result() for future in futures.as_completed(waiting, timeout=60)]
        assert sorted(got) == sorted(-i for i in range(count))


def test_several_threads_wait_for_the_same_futures(pool: fm.ProcessPool) -> None:
    waiting = [pool.submit(tasks.negative, i) for i in range(2000)]
    counts: list[int] = []

    def take() -> None:
        counts.append(sum(1 for _ in futures.as_completed(waiting, timeout=60)))

    crew = [threading.Thread(target=take) for _ in range(4)]
    for thread in crew:
        thread.start()
    done, rest = futures.wait(waiting, timeout=60)
    for thread in crew:
        thread.join()
    assert counts == [2000] * 4
    assert (len(done), len(rest)) == (2000, 0)


def test_ours_and_stock_futures_complete_together(pool: fm.ProcessPool) -> None:
    with ThreadPoolExecutor(2) as threads:
        mixed: list[Future[int]] = []
        for i in range(300):
            mixed.append(pool.submit(tasks.negative, i))
            mixed.append(threads.submit(tasks.negative, i + 300))
        got = sorted(future.result() for future in futures.as_completed(mixed, timeout=60))
    assert got == sorted(-i for i in range(600))


def test_a_waiter_that_raises_keeps_nobody_else_from_being_told(
    pool: fm.ProcessPool, gate: tasks.Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(_base._Waiter):
        def add_result(self, future: Future[int]) -> None:
            raise ZeroDivisionError

    complaints: list[type] = []
    monkeypatch.setattr("sys.excepthook", lambda kind, *_: complaints.append(kind))
    first, second = (pool.submit(tasks.pass_gate, gate.path, i) for i in range(2))
    first._waiters.append(Broken())
    gate_opener = threading.Timer(0.02, gate.open)
    gate_opener.start()
    assert sorted(f.result() for f in futures.as_completed([second], timeout=20)) == [1]
    told = threading.Event()
    first.add_done_callback(lambda _: told.set())
    assert told.wait(20)
    tasks.eventually(lambda: complaints == [ZeroDivisionError])
    gate_opener.join()


def test_tasks_whose_frames_were_gathered_run_without_being_waited_for(
    pool: fm.ProcessPool, tmp_path: Path
) -> None:
    """Who submits short tasks and then does something else need not come back."""
    for i in range(300):  # the pool learns that they are short
        assert pool.submit(tasks.negative, i).result() == -i
    for count in (1, 2, 5, 17, 40):
        log = tasks.Log(tmp_path)
        waiting = [pool.submit(tasks.negative, 1) for _ in range(3)]
        waiting += [pool.submit(tasks.note, log.path, i) for i in range(count)]
        tasks.eventually(lambda log=log, count=count: len(log.entries()) == count)
        assert [future.result() for future in waiting[3:]] == list(range(count))


def test_large_and_small_arguments_keep_their_order_and_values(pool: fm.ProcessPool) -> None:
    """Some travel beside their frames, some in a buffer with others."""
    sizes = [0, 1, 200, 300, 500, 510, 511, 512, 513, 600, 5000, 100_000, 3, 70_000, 2]
    sent = [b"x" * size for size in sizes * 20]
    waiting = [pool.submit(len, data) for data in sent]
    assert [future.result() for future in waiting] == [len(data) for data in sent]
    texts = ["é" * size for size in sizes]
    assert [pool.submit(tasks.identity, text).result() for text in texts] == texts
    pairs = [(size, "y" * (size % 400)) for size in sizes]
    assert [pool.submit(tasks.capture, *pair).result() for pair in pairs] == [
        (pair, {}) for pair in pairs
    ]

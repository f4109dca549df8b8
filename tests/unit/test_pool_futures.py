"""submit and its futures: states, cancel, kill, callbacks, what is freed when."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import pytest

import forkmill as fm
import tasks


@pytest.fixture
def pool() -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(2, start_method="fork") as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tasks.Gate]:
    with tasks.Gate(tmp_path) as made:
        yield made


def occupy(pool: fm.ProcessPool, gate: tasks.Gate) -> list[fm.pool.Future]:
    """Have every worker wait at the gate."""
    waiting = [pool.submit(tasks.pass_gate, gate.path, i) for i in range(pool.stats().workers)]
    for future in waiting:
        tasks.eventually(future.running)
    return waiting


def test_states_in_their_order(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    busy = occupy(pool, gate)
    queued = pool.submit(tasks.negative, 1)
    assert not queued.running() and not queued.done() and not queued.cancelled()
    assert all(future.running() and not future.done() for future in busy)
    gate.open()
    assert queued.result() == -1
    assert queued.done() and not queued.running() and not queued.cancelled()


def test_done_alone_gets_there(pool: fm.ProcessPool) -> None:
    """A loop that only polls makes the pool's I/O go on."""
    future = pool.submit(tasks.negative, 3)
    tasks.eventually(future.done)
    assert future.result(timeout=0) == -3


def test_cancel_is_true_until_a_worker_has_started(
    pool: fm.ProcessPool, gate: tasks.Gate, tmp_path: Path
) -> None:
    log = tasks.Log(tmp_path)
    busy = occupy(pool, gate)
    queued = [pool.submit(tasks.note, log.path, i) for i in range(100)]
    assert [future.cancel() for future in queued] == [True] * 100
    assert [future.cancel() for future in busy] == [False, False]
    gate.open()
    assert [future.result() for future in busy] == [0, 1]
    pool.shutdown()
    assert log.entries() == []


@pytest.mark.parametrize("turn", range(3))
def test_cancel_is_exact_in_a_race(pool: fm.ProcessPool, turn: int, tmp_path: Path) -> None:
    """What cancel() says is what happened: cancelled never ran, the rest ran once."""
    log = tasks.Log(tmp_path)
    queued = [pool.submit(tasks.note, log.path, i) for i in range(500)]
    cancelled = {i for i, future in enumerate(queued) if i % 3 == turn and future.cancel()}
    for i, future in enumerate(queued):
        if i in cancelled:
            with pytest.raises(CancelledError):
                future.result()
        else:
            assert future.result() == i
    pool.shutdown()
    assert sorted(log.entries()) == [i for i in range(500) if i not in cancelled]


def test_cancel_after_the_end_changes_nothing(pool: fm.ProcessPool) -> None:
    future = pool.submit(tasks.negative, 1)
    assert future.result() == -1
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result() == -1


def test_cancel_calls_back(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    occupy(pool, gate)
    queued = pool.submit(tasks.negative, 1)
    seen: list[object] = []
    queued.add_done_callback(seen.append)
    assert queued.cancel()
    assert seen == [queued]
    gate.open()


def test_kill_ends_a_running_task(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    first, second = occupy(pool, gate)
    assert first.kill()
    error = first.exception(timeout=20)
    assert isinstance(error, fm.WorkerDied)
    assert error.cause == "killed"
    assert not second.done()
    gate.open()
    assert second.result() == 1
    assert pool.submit(pow, 2, 3).result() == 8


def test_kill_is_not_retried_and_never_breaks_the_pool(tmp_path: Path) -> None:
    with fm.ProcessPool(1, start_method="fork", restarts=(0, 10.0)) as pool:
        for _ in range(5):
            with tasks.Gate(tmp_path) as gate:
                future = pool.options(retries=3).submit(tasks.pass_gate, gate.path)
                tasks.eventually(future.running)
                assert future.kill()
                error = future.exception(timeout=20)
            assert isinstance(error, fm.WorkerDied)
            assert (error.cause, error.attempts) == ("killed", 1)
        assert pool.submit(pow, 2, 3).result() == 8
        assert pool.stats().state == "open"


def test_kill_of_a_queued_task_cancels_it(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    occupy(pool, gate)
    queued = pool.submit(tasks.negative, 1)
    assert queued.kill()
    assert queued.cancelled()
    gate.open()


def test_kill_of_a_done_task_is_false(pool: fm.ProcessPool) -> None:
    future = pool.submit(tasks.negative, 1)
    future.result()
    assert not future.kill()
    assert future.result() == -1


def test_queued_neighbours_survive_a_kill(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(1, start_method="fork") as pool, tasks.Gate(tmp_path) as gate:
        running = pool.submit(tasks.pass_gate, gate.path)
        queued = [pool.submit(tasks.note, log.path, i) for i in range(50)]
        tasks.eventually(running.running)
        assert running.kill()
        assert [future.result() for future in queued] == list(range(50))
    assert log.entries() == list(range(50))


def test_callbacks_run_in_order_each_once(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    future = pool.submit(tasks.pass_gate, gate.path)
    seen: list[int] = []
    told = threading.Event()
    for i in range(10):
        future.add_done_callback(lambda _, i=i: seen.append(i))
    future.add_done_callback(lambda _: told.set())
    gate.open()
    assert told.wait(20)
    assert seen == list(range(10))


def test_a_callback_may_use_the_pool(pool: fm.ProcessPool) -> None:
    """Submit, wait for the result, and shut down: all from a callback."""
    answers: list[int] = []
    told = threading.Event()

    def more(_: object) -> None:
        answers.append(pool.submit(tasks.negative, 7).result())
        answers.extend(pool.map(tasks.negative, range(3)))
        pool.shutdown()
        told.set()

    pool.submit(tasks.negative, 1).add_done_callback(more)
    assert told.wait(20)
    assert answers == [-7, 0, -1, -2]


@pytest.mark.parametrize("turn", range(20))
def test_callbacks_of_many_all_come(pool: fm.ProcessPool, turn: int) -> None:
    left = threading.Semaphore(0)
    for i in range(100):
        pool.submit(tasks.negative, i).add_done_callback(lambda _: left.release())
    for _ in range(100):
        assert left.acquire(timeout=20)


def test_result_is_decoded_once_and_shared(pool: fm.ProcessPool) -> None:
    future = pool.submit(tasks.identity, {"a": [1, 2]})
    first = future.result()
    assert first == {"a": [1, 2]}
    seen = []
    crew = [threading.Thread(target=lambda: seen.append(future.result())) for _ in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert all(other is first for other in seen)


def test_many_threads_wait_for_one_future(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    future = pool.submit(tasks.pass_gate, gate.path, [5])
    seen: list[object] = []
    crew = [threading.Thread(target=lambda: seen.append(future.result())) for _ in range(8)]
    for thread in crew:
        thread.start()
    gate.open()
    for thread in crew:
        thread.join()
    assert len(seen) == 8
    assert all(value is seen[0] for value in seen)


def test_many_threads_submit_and_wait(pool: fm.ProcessPool) -> None:
    failures: list[object] = []

    def work(base: int) -> None:
        for i in range(300):
            if pool.submit(tasks.negative, base + i).result() != -(base + i):
                failures.append(base + i)

    crew = [threading.Thread(target=work, args=(k * 1000,)) for k in range(6)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert not failures
    assert pool.stats().outcomes == 1800


def test_the_exception_is_the_same_each_time(pool: fm.ProcessPool) -> None:
    future = pool.submit(tasks.fail, ValueError("once"))
    error = future.exception()
    assert type(error) is ValueError
    for _ in range(2):
        with pytest.raises(ValueError, match="once") as caught:
            future.result()
        assert caught.value is error


def test_future_and_result_are_freed_without_the_gc(pool: fm.ProcessPool) -> None:
    gc.collect()
    gc.disable()
    try:
        future = pool.submit(tasks.identity, tasks.Fine(1, 2))
        result = future.result()
        references = [weakref.ref(future), weakref.ref(result)]
        del future, result
        assert [reference() for reference in references] == [None, None]
        failed = pool.submit(tasks.fail, ValueError("x"))
        with pytest.raises(ValueError) as caught:
            failed.result()
        reference = weakref.ref(failed)
        caught.value.__traceback__ = None
        del failed, caught
        tasks.eventually(lambda: reference() is None)
    finally:
        gc.enable()


def test_dropped_futures_let_their_tasks_run(pool: fm.ProcessPool, tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    for i in range(50):
        pool.submit(tasks.note, log.path, i)
    pool.shutdown()
    assert sorted(log.entries()) == list(range(50))


@pytest.mark.parametrize(
    "fn, args, kwargs, expected",
    [
        (len, ("abc",), {}, 3),
        (str.upper, ("abc",), {}, "ABC"),
        ("a-b".split, ("-",), {}, ["a", "b"]),
        (partial(tasks.multiply, y=5), (4,), {}, 20),
        (dict, (), {"a": 1}, {"a": 1}),
        (int, (), {}, 0),
        (tasks.capture, (), {"timeout": 1, "retries": 2}, ((), {"timeout": 1, "retries": 2})),
    ],
    ids=["builtin", "method descriptor", "bound", "partial", "class", "no arguments", "keywords"],
)
def test_callables_of_every_kind(pool, fn, args, kwargs, expected) -> None:
    assert pool.submit(fn, *args, **kwargs).result() == expected


def test_a_function_is_a_snapshot_at_first_use(pool: fm.ProcessPool) -> None:
    """Not found again by id: each of many short-lived lambdas runs itself."""
    for i in range(200):
        assert pool.submit(lambda i=i: i).result() == i
        assert pool.submit(eval(f"lambda: {i}")).result() == i


def test_sys_exit_is_the_tasks_exception(pool: fm.ProcessPool) -> None:
    error = pool.submit(sys.exit, 4).exception()
    assert isinstance(error, SystemExit)
    assert error.code == 4
    assert pool.submit(tasks.fail, KeyboardInterrupt()).exception().__class__ is KeyboardInterrupt
    assert pool.stats().deaths == 0


@pytest.mark.parametrize("method", tasks.METHODS)
def test_each_runs_once_on_every_worker(method: str) -> None:
    with fm.ProcessPool(3, start_method=method) as pool:
        pids = pool.each(tasks.pid)
        assert len(set(pids)) == 3
        assert pids == [worker.pid for worker in pool.workers()]
        assert pool.each(tasks.set_state, colour="red") == [None] * 3
        assert pool.each(tasks.get_state, "colour") == ["red"] * 3
        with pytest.raises(ZeroDivisionError):
            pool.each(divmod, 1, 0)


def test_each_while_workers_are_busy(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    busy = occupy(pool, gate)
    queued = [pool.submit(tasks.negative, i) for i in range(20)]
    threading.Timer(0.05, gate.open).start()
    assert len(set(pool.each(tasks.pid))) == 2
    assert [future.result() for future in busy + queued] == [0, 1, *(-i for i in range(20))]
    tasks.eventually(lambda: threading.active_count() == 1)


def test_use_in_a_worker(pool: fm.ProcessPool) -> None:
    """A pool opened by a task is inline, unless it asks for workers."""
    values, state = pool.submit(tasks.open_inner_pool, None).result()
    assert (values, state) == ([-i for i in range(10)], "inline")
    values, state = pool.submit(tasks.open_inner_pool, 2).result()
    assert (values, state) == ([-i for i in range(10)], "open")


def test_shutdown_is_idempotent_from_everywhere(pool: fm.ProcessPool) -> None:
    futures = [pool.submit(tasks.nap, 0.01, i) for i in range(20)]
    crew = [threading.Thread(target=pool.shutdown) for _ in range(4)]
    for thread in crew:
        thread.start()
    pool.shutdown(wait=False)
    pool.shutdown(cancel_futures=False)
    for thread in crew:
        thread.join()
    assert [future.result() for future in futures] == list(range(20))
    pool.shutdown()
    with pytest.raises(fm.PoolClosed):
        pool.submit(pow, 1, 1)
    with pytest.raises(fm.PoolClosed):
        pool.map(abs, [1])


def test_pool_kill_gives_everyone_an_outcome(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    busy = occupy(pool, gate)
    queued = [pool.submit(tasks.negative, i) for i in range(20)]
    pool.kill()
    for future in busy:
        assert isinstance(future.exception(5), fm.WorkerDied)
    for future in queued:
        assert isinstance(future.exception(5), fm.PoolClosed)

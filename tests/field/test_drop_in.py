"""A program that was written for the standard library's pools runs with the class changed."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.pool
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill.integrations.stdlib import MaybeEncodingError, Pool, ThreadPool
from methods import MATRIX

pytestmark = pytest.mark.timeout(60)

N = 60
DOUBLED = [2 * i for i in range(N)]
CONTEXTS = ["inline", "thread", "cow_fork", "interpreter", "async", "ipc_fork"]


def double(i: int) -> int:
    return 2 * i


class Sized:
    """An input that has a length, and runs code of its own."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> int:
        if i >= N:
            raise IndexError
        return i


# ------------------------------------------------------------------ read after the end

INPUTS = {
    "range": lambda: (range(N),),
    "list": lambda: (list(range(N)),),
    "two": lambda: (range(N), list(range(N + 9))),
    "sequence": lambda: (Sized(),),
}


def twice(i: int, _: int = 0) -> int:
    return 2 * i


@pytest.mark.parametrize("start_method", MATRIX)
def test_a_map_is_read_after_the_block(start_method: str) -> None:
    with fm.ProcessPool(2, start_method=start_method) as pool:
        maps = [
            (given, options, pool.map(twice, *make(), **options))
            for given, make in INPUTS.items()
            for options in ({}, {"chunksize": 7}, {"ordered": False})
        ]
        begun = [next(results) for given, _, results in maps if given == "list"]
    for given, options, results in maps:
        rest = list(results)
        assert sorted(rest if given != "list" else [begun.pop(0), *rest]) == DOUBLED, given
        assert "ordered" in options or rest == sorted(rest), given


@pytest.mark.filterwarnings("ignore:subinterpreters need:RuntimeWarning")
@pytest.mark.parametrize("context", CONTEXTS)
def test_in_every_context(context: str) -> None:
    with fm.executor(context, 2) as executor:
        results = executor.map(abs, range(20))
        assert next(results) == 0
        view = executor.options(retries=1).starmap(abs, [(i,) for i in range(20)])
    assert list(results) == [*range(1, 20)]
    assert list(view) == [*range(20)]
    executor.shutdown()


def test_without_waiting_and_with_cancelling() -> None:
    pool = fm.ProcessPool(2)
    results = pool.map(double, range(N))
    pool.shutdown(wait=False)
    assert list(results) == DOUBLED
    pool = fm.ProcessPool(2)
    results = pool.map(double, range(N), chunksize=1)
    pool.shutdown(cancel_futures=True)
    with pytest.raises((CancelledError, fm.PoolClosed)):
        list(results)


@pytest.mark.parametrize("context", ["thread", "ipc_fork"])
@pytest.mark.parametrize("how", ["iterator", "buffersize"])
def test_what_has_no_length_says_how_to_mend_it(context: str, how: str) -> None:
    """What was pulled is delivered; then a PoolClosed, never a silent end."""
    with fm.executor(context, 2) as executor:
        if how == "iterator":
            results = executor.map(double, iter(range(10**9)))
        else:
            results = executor.map(double, range(10**9), buffersize=9)
    got = []
    with pytest.raises(fm.PoolClosed, match=r"inside its with block.*list\("):
        got.extend(results)
        for result in results:
            got.append(result)
    assert got == DOUBLED[: len(got)]


def test_a_reader_in_another_thread_gets_all(tmp_path: Path) -> None:
    """It waits for a result while the pool is shut down, or pulls at that moment."""
    for turn in range(10):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with tasks.Gate(folder) as gate:
            got: list[Any] = []
            with fm.ProcessPool(2) as pool:
                results = pool.map(tasks.pass_gate, [gate.path] * 40, range(40), chunksize=1)
                reader = threading.Thread(target=lambda r=results, g=got: g.extend(r))
                reader.start()
                gate.open()
                if turn % 2:
                    tasks.eventually(lambda g=got: g)
            reader.join()
            assert got == list(range(40))


def test_a_map_without_iterables_yields_nothing() -> None:
    with fm.ProcessPool(1) as pool, fm.executor("thread:1") as thread:
        assert list(pool.map(double)) == list(thread.map(double)) == list(fm.map(double)) == []

        async def main() -> list[int]:
            return [i async for i in pool.amap(double)]

        assert asyncio.run(main()) == []
    fm.shutdown_shared()


# ------------------------------------------------------------------ what programs look at


@pytest.mark.parametrize("start_method", MATRIX)
def test_private_names_that_programs_read(start_method: str) -> None:
    with fm.ProcessPool(2, start_method=start_method) as pool:
        pids = {worker.pid for worker in pool.workers()}
        assert set(pool._processes) == pids
        assert pool._mp_context.get_start_method() == start_method.replace("zygote", "forkserver")
        assert pool._broken is False
        victim = next(iter(pool._processes.values()))
        victim.join(0)
        assert victim.is_alive() and victim.pid in pids
        victim.kill()
        victim.join(30)
        assert not victim.is_alive()
        victim.kill()  # nobody else's
        assert pool.submit(double, 2).result() == 4


def test_a_broken_pool_says_so() -> None:
    pool = fm.ProcessPool(1, initializer=divmod, initargs=(1, 0))
    with pytest.raises(fm.PoolBroken):
        pool.submit(double, 1).result()
    assert "ZeroDivisionError" in str(pool._broken)
    pool.shutdown()


def test_the_traceback_of_the_cause_has_its_stock_name() -> None:
    with fm.ProcessPool(1) as pool:
        cause: Any = pool.submit(divmod, 1, 0).exception().__cause__
    assert cause.tb == str(cause) and "ZeroDivisionError" in cause.tb


@pytest.mark.parametrize("end", ["kill_workers", "terminate_workers"])
@pytest.mark.parametrize("start_method", MATRIX)
def test_ending_the_workers(end: str, start_method: str, tmp_path: Path) -> None:
    pool = fm.ProcessPool(1, start_method=start_method)
    with tasks.Gate(tmp_path) as gate:
        running = pool.submit(tasks.pass_gate, gate.path)
        tasks.eventually(running.running)
        waiting = [pool.submit(double, i) for i in range(50)]
        pids = list(pool._processes)
        getattr(pool, end)()
        getattr(pool, end)()
        assert isinstance(running.exception(), fm.WorkerDied)
        assert all(isinstance(ended(future), CancelledError | fm.PoolClosed) for future in waiting)
        assert waiting[-1].cancelled()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(double, 1)
    with fm.ProcessPool(1) as outer:  # a pool without workers, in one
        assert outer.submit(end_here, end).result() == "PoolClosed"


def ended(future: Future[Any]) -> BaseException | None:
    with contextlib.suppress(CancelledError):
        return future.exception()
    return CancelledError()


def end_here(end: str) -> str:
    pool = fm.ProcessPool()
    getattr(pool, end)()
    try:
        pool.submit(double, 1)
    except fm.PoolClosed as error:
        return type(error).__name__
    return "accepted"


# ------------------------------------------------------------------ multiprocessing.Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as made:
        yield made
    made.join()


KINDS = {"ours": Pool, "stock": multiprocessing.get_context("fork").Pool}
THREADS = {"ours": ThreadPool, "stock": multiprocessing.pool.ThreadPool}


def both(do: Any, kinds: Any = KINDS) -> None:
    """The same of multiprocessing's pool and ours."""
    outcomes = []
    for make in kinds.values():
        with make(2) as pool:
            outcomes.append(do(pool))
        pool.join()
    assert outcomes[0] == outcomes[1]


def fails_at(bad: int, i: int) -> int:
    if i == bad:
        raise ValueError(i)
    return i


def failing(i: int) -> int:
    return fails_at(3, i)


def mark(path: str) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(b"x")


def broken_input() -> Iterator[int]:
    yield from range(7)
    raise OSError("the input")


def outcome(fn: Any, *args: Any) -> Any:
    try:
        return fn(*args)
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("kinds", [KINDS, THREADS], ids=["processes", "threads"])
@pytest.mark.unbalanced("threads", "descriptors")
def test_it_does_what_multiprocessing_does(kinds: Any) -> None:
    def every(pool: Any) -> list[Any]:
        told: list[Any] = []
        left = pool.imap(failing, range(6))
        of_chunks = pool.imap(failing, range(8), 2)
        results = [
            pool.apply(divmod, (7, 2)),
            outcome(pool.apply, divmod, (1, 0)),
            pool.apply_async(int, ("7",), {"base": 8}, told.append, told.append).get(9),
            outcome(
                pool.apply_async(int, ("x",), {}, told.append, lambda e: told.append(str(e))).get
            ),
            *(pool.map(double, range(n), c) for n in (0, 1, 50) for c in (None, 1, 7)),
            pool.map(double, iter(range(9))),
            pool.starmap(pow, [(2, 3), (3, 2)]),
            outcome(pool.map, failing, range(9)),
            outcome(pool.map, double, broken_input()),
            pool.map_async(double, range(9), None, told.append).get(),
            outcome(
                pool.map_async(failing, range(9), 1, told.append, lambda e: told.append(str(e))).get
            ),
            pool.map_async(double, [], callback=told.append).get(),
            pool.starmap_async(pow, [(2, 3)]).get(),
            list(pool.imap(double, range(99), 10)),
            sorted(pool.imap_unordered(double, range(99), 10)),
            [outcome(next, left) for _ in range(8)],
            [outcome(next, of_chunks) for _ in range(8)],
            outcome(list, pool.imap(double, broken_input(), 2)),
            outcome(pool.imap, double, [1], 0),
            outcome(pool.join),
            type(outcome(pool.apply_async(time.sleep, (0.2,)).successful)),
        ]
        pool.close()
        results += [outcome(getattr(pool, n), double, [1]) for n in ("apply", "map", "imap")]
        pool.join()
        return [results, told]

    both(every, kinds)


@pytest.mark.unbalanced("threads", "descriptors")
def test_all_input_is_worked_off_by_close_and_join(tmp_path: Path) -> None:
    def closed(pool: Any) -> list[Any]:
        path = str(tmp_path / type(pool).__module__)
        unread = pool.imap_unordered(mark, iter([path] * 100))
        pool.imap(mark, iter([path] * 100))  # and nobody keeps it
        results = pool.imap(double, iter(range(N)))
        first = next(results)
        pool.close()
        pool.join()
        return [first, list(results), len(list(unread)), len(Path(path).read_bytes())]

    both(closed)


def test_a_result_that_comes_late(pool: Pool, tmp_path: Path) -> None:
    with tasks.Gate(tmp_path) as gate:
        late = pool.apply_async(tasks.pass_gate, (gate.path, 5))
        results = pool.imap(tasks.pass_gate, [gate.path])
        unordered = pool.imap_unordered(tasks.pass_gate, [gate.path])
        with pytest.raises(multiprocessing.TimeoutError):
            late.get(timeout=0.01)
        for iterator in (results, unordered):
            with pytest.raises(multiprocessing.TimeoutError):
                iterator.next(timeout=0.01)
        assert not late.ready()
        late.wait(0.01)
        with pytest.raises(ValueError, match="not ready"):
            late.successful()
        gate.open()
        assert late.get() == 5 and late.successful() and late.get() == 5
        assert results.next(timeout=9) == unordered.next(timeout=9) is None


def test_what_cannot_be_sent(pool: Pool) -> None:
    told: list[Any] = []
    with pytest.raises(multiprocessing.pool.MaybeEncodingError) as caught:  # type: ignore[attr-defined]
        pool.apply_async(threading.Lock, error_callback=told.append).get()
    assert isinstance(caught.value, fm.SerializationError) and told == [caught.value]
    assert isinstance(caught.value, MaybeEncodingError) and "lock" in caught.value.exc


def test_a_death_is_told_where_multiprocessing_waits_for_ever(pool: Pool) -> None:
    results = pool.map_async(os._exit, [3], chunksize=1)
    with pytest.raises(fm.WorkerDied):
        results.get(timeout=30)
    assert pool.map(double, range(3)) == [0, 2, 4]


def test_terminate_ends_what_runs(tmp_path: Path) -> None:
    with tasks.Gate(tmp_path) as gate, Pool(2) as pool:
        running = pool.map_async(tasks.pass_gate, [gate.path] * 100, chunksize=1)
        results = pool.imap(tasks.pass_gate, [gate.path] * 100)
        pool.terminate()
        pool.join()
        for late in (running.get, results.next):
            with pytest.raises((fm.WorkerDied, fm.PoolClosed, CancelledError)):
                late(timeout=9)
    assert repr(pool).endswith("state=TERMINATE pool_size=2>")


def test_threads_begin_with_the_initializer_and_do_not_hold_up_the_end(tmp_path: Path) -> None:
    begun: list[int] = []
    with tasks.Gate(tmp_path) as gate:
        with ThreadPool(2, begun.append, (1,)) as pool:
            assert repr(pool).endswith("state=RUN pool_size=2>")
            running = pool.apply_async(tasks.pass_gate, (gate.path, 7))
            waiting = [pool.apply_async(tasks.pass_gate, (gate.path,)) for _ in range(9)]
            tasks.eventually(lambda: len(begun) == 2)
            assert len(pool._pool) == 2
        pool.join()  # though the gate is closed
        with pytest.raises(CancelledError):
            waiting[-1].get(timeout=9)
        gate.open()
        assert running.get(timeout=9) == 7
    with pytest.raises(ValueError, match="at least 1"):
        ThreadPool(0)


def test_a_call_that_a_thread_has_taken_and_not_begun_is_cancelled_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken, go, called = threading.Event(), threading.Event(), threading.Event()
    with ThreadPool(1) as pool:
        backlog = pool._executor._threads.backlog
        take = backlog.take

        def slowly(*args: Any) -> Any:
            call = take(*args)
            if call is not None:
                taken.set()
                go.wait(20)
            return call

        monkeypatch.setattr(backlog, "take", slowly)
        go.set()
        assert pool.apply(abs, (-1,)) == 1  # the thread waits in the patched one from here on
        taken.clear()
        go.clear()
        result = pool.apply_async(called.set)
        assert taken.wait(20)
        pool.terminate()
        go.set()
        pool.join()
    with pytest.raises(CancelledError):
        result.get(timeout=9)
    assert not called.is_set()


def test_a_pool_that_nobody_ended_is_warned_of() -> None:
    pool = Pool(1)
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del pool


def test_the_method_of_the_program(run_script: Any) -> None:
    script = run_script(
        """
        import multiprocessing
        from forkmill.integrations.stdlib import Pool
        if __name__ == "__main__":
            for method in ("fork", "spawn", "forkserver"):
                multiprocessing.set_start_method(method, force=True)
                with Pool(1) as pool:
                    print(pool._executor.stats().start_method, pool.apply(abs, (-1,)))
        """
    )
    assert script.stdout.split("\n")[:3] == ["fork 1", "spawn 1", "zygote 1"]
    assert script.stderr == ""

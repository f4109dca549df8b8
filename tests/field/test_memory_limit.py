"""memory_limit: a task whose worker grows beyond it is ended while it runs, and no other."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import forkmill as fm
import tasks
from forkmill import _native

MB = 1 << 20

pytestmark = pytest.mark.skipif(
    not _native.resident(os.getpid()), reason="this system does not tell of memory"
)


@functools.cache
def base() -> int:
    """What a forked worker has that does nothing."""
    with fm.ProcessPool(1, start_method="fork") as pool:
        return pool.submit(os.getpid).result() and pool.workers()[0].rss


def limit(more: int = 60) -> int:
    """So many MB are allowed."""
    return base() + more * MB


def greedy(size: int, seconds: float = 60.0) -> int:
    """Take so much memory, and keep it for a while."""
    data = bytearray(size)
    for i in range(0, size, 4096):
        data[i] = 1
    time.sleep(seconds)
    return len(data)


def greedy_once(log: str, size: int) -> int:
    """Too large at its first run."""
    tasks.note_here(log, 1)
    if len(Path(log).read_bytes()) == 4:
        greedy(size)
    return 1


def greedy_at(log: str, size: int, item: int) -> int:
    """The item 3 takes too much."""
    tasks.note_here(log, item)
    if item == 3:
        greedy(size)
    return item


def growing(size: int) -> Iterator[int]:
    """Two outputs, then too much."""
    yield 1
    yield 2
    greedy(size)


_kept: list[bytearray] = []


def leave_behind() -> int:
    """End above the limit, so quickly that nobody sees it."""
    _kept.append(bytearray(b"x") * (30 * MB))
    return os.getpid()


@pytest.mark.parametrize("start_method", tasks.METHODS)
def test_a_task_that_grows_too_large_is_ended(start_method: str) -> None:
    with fm.ProcessPool(
        2, start_method=start_method, memory_limit=limit(), restarts=(0, 60)
    ) as pool:
        other = pool.submit(time.sleep, 1)
        error = pool.submit(greedy, limit()).exception(30)
        assert isinstance(error, fm.WorkerDied)
        assert error.cause == "memory_limit"
        assert "memory_limit" in str(error)
        assert error.rss_kb * 1024 > limit()
        assert other.result() is None
        # It counts for nothing: with restarts=(0, ...) one abnormal death breaks the pool.
        assert pool.submit(abs, -1).result() == 1
        stats = pool.stats()
        assert stats.deaths_by_cause == {"memory_limit": 1}
        assert (stats.killed, stats.died, stats.timeouts) == (1, 1, 0)


def test_its_neighbours_run_elsewhere(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(2, start_method="fork", memory_limit=limit()) as pool:
        results = pool.starmap(
            greedy_at,
            [(log.path, limit(), i) for i in range(12)],
            chunksize=6,
            return_exceptions=True,
        )
        got = list(results)
    assert isinstance(got[3], fm.WorkerDied)
    assert got[:3] + got[4:] == [0, 1, 2, *range(4, 12)]
    assert log.counts() == dict.fromkeys(range(12), 1)


def test_retries_try_again(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(1, start_method="fork", memory_limit=limit()) as pool:
        assert pool.options(retries=1).submit(greedy_once, log.path, limit()).result(30) == 1
        assert log.counts() == {1: 2}
        assert pool.stats().retried == 1
        again = pool.options(retries=1, retry_on=ValueError).submit(greedy, limit())
        assert isinstance(again.exception(30), fm.WorkerDied)
        assert pool.stats().retried == 1


def test_a_stream_is_ended_after_its_outputs() -> None:
    with fm.ProcessPool(1, start_method="fork", memory_limit=limit()) as pool:
        outputs = pool.stream(growing, limit())
        assert [next(outputs), next(outputs)] == [1, 2]
        with pytest.raises(fm.WorkerDied) as caught:
            next(outputs)
        assert caught.value.cause == "memory_limit"


def test_what_a_task_leaves_behind_is_not_the_next_ones_fault() -> None:
    with fm.ProcessPool(1, start_method="fork", memory_limit=limit(15)) as pool:
        for caught in range(99):  # a look may come meanwhile, on a busy machine often  # noqa: B007
            left = pool.submit(leave_behind)
            if left.exception(30) is None:
                break
        assert pool.submit(tasks.nap, 0.3, 5).result(30) == 5
        assert pool.submit(os.getpid).result() != left.result()
        assert pool.stats().deaths == caught
        assert pool.stats().recycled == 1


def test_values_in_shared_memory_are_not_the_workers() -> None:
    np = pytest.importorskip("numpy")
    with fm.ProcessPool(1, start_method="fork", memory_limit=limit()) as pool:
        data = np.ones(limit() // 8)
        assert pool.submit(hold, data, 0.5).result(30) == data.nbytes


def hold(array: object, seconds: float) -> int:
    """Look at all of it, for a while."""
    total = int(array.sum())  # type: ignore[attr-defined]
    time.sleep(seconds)
    return total * 8


def test_contexts_and_stages_have_it() -> None:
    with fm.executor("ipc_fork", 1, memory_limit=limit()) as executor:
        error = executor.submit(greedy, limit()).exception(30)
        assert isinstance(error, fm.WorkerDied)
        assert error.cause == "memory_limit"
    run = (
        fm.Pipeline()
        .source([0, limit()])
        .map(maybe_greedy, context=fm.ipc_fork(1, memory_limit=limit()), on_error="skip")
        .run()
    )
    assert run.outputs == [0]
    (failure,) = run.failures
    assert isinstance(failure.error, fm.WorkerDied)
    assert failure.error.cause == "memory_limit"


def maybe_greedy(size: int) -> int:
    """Greedy, if it shall take anything."""
    if size:
        greedy(size)
    return size


def test_nobody_looks_without_a_limit_or_without_tasks() -> None:
    with fm.ProcessPool(1, start_method="fork", memory_limit=limit()) as pool:
        pool.submit(abs, 1).result()
        tasks.eventually(lambda: pool.stats().waiting_threads == 0)
        before = pool.stats()
        time.sleep(0.5)  # what counts is that time passes
        after = pool.stats()
        # Each stats() is a turn of its own; what else there was would be the pump's.
        assert after.pump_turns - before.pump_turns <= 1
        pool.submit(time.sleep, 0.5).result()
        assert pool.stats().lead_turns > after.lead_turns + 3


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (0, ValueError, "memory_limit must be >= 1"),
        (-1, ValueError, "memory_limit must be >= 1"),
        (1 << 63, ValueError, r"at most 9223372036854775807"),
        (1.5, TypeError, "memory_limit must be an int, not 'float'"),
        (True, TypeError, "memory_limit must be an int, not 'bool'"),
        ("1G", TypeError, "memory_limit must be an int, not 'str'"),
    ],
)
def test_wrong_limits_are_refused(wrong: object, error: type[Exception], text: str) -> None:
    for make in (fm.ProcessPool, lambda n, **o: fm.executor("ipc_fork", n, **o)):
        with pytest.raises(error, match=text):
            make(1, memory_limit=wrong)


def test_where_it_cannot_be_kept_it_is_refused_by_name() -> None:
    for kind in ("thread", "cow_fork", "async", "inline"):
        with pytest.raises(TypeError, match="memory_limit"):
            fm.executor(kind, memory_limit=limit())
    with fm.ProcessPool(1, start_method="fork") as pool, pytest.raises(ValueError, match="workers"):
        pool.submit(nested).result()


def nested() -> None:
    """A pool without workers of its own."""
    fm.ProcessPool(memory_limit=1 << 40)

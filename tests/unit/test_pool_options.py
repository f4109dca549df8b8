"""options(): timeout, retries, priority; and that a view is a view."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks


@pytest.fixture
def pool() -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(2, start_method="fork") as made:
        yield made


# ------------------------------------------------------------------ timeout


@pytest.mark.parametrize("method", ["zygote", "spawn"])
def test_a_timeout_does_not_count_what_is_imported_for_a_function(
    run_script: Any, tmp_path: Path, method: str
) -> None:
    """As a big library takes its time in each new worker, also in one after a death."""
    (tmp_path / "slow_to_import.py").write_text(
        "import os, time\n"
        "if os.environ['MAIN'] != str(os.getpid()):\n"
        "    time.sleep(1.3)\n"
        "def call(x):\n"
        "    time.sleep(60 if x == 1 else 0)\n"
        "    return x\n"
    )
    script = run_script(
        f"""
        import os, sys
        os.environ["MAIN"] = str(os.getpid())
        sys.path.insert(0, {str(tmp_path)!r})
        import slow_to_import as slow
        import forkmill as fm

        if __name__ == "__main__":
            pools = [fm.ProcessPool(1, start_method={method!r}) for _ in range(3)]
            views = [pool.options(timeout=1) for pool in pools]
            results = views[0].map(slow.call, range(3), return_exceptions=True)
            futures = [view.submit(slow.call, i) for i, view in enumerate(views[1:])]
            print(*(type(r).__name__ for r in results))
            print(*(type(f.exception()).__name__ for f in futures))
        """
    )
    assert script.stderr == ""
    assert script.stdout == "int TaskTimeout int\nNoneType TaskTimeout\n"


@pytest.mark.parametrize("what", [tasks.spin, partial(time.sleep, 60)], ids=["in C", "asleep"])
def test_timeout_kills_at_the_deadline(pool: fm.ProcessPool, what) -> None:
    start = time.monotonic()
    error = pool.options(timeout=0.3).submit(what).exception(timeout=20)
    took = time.monotonic() - start
    assert isinstance(error, fm.TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert error.timeout == pytest.approx(0.3)
    assert error.pid > 0
    assert 0.3 <= took < 10
    assert pool.submit(pow, 2, 3).result() == 8
    assert pool.stats().timeouts == 1


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("method", ["fork", "zygote"])
def test_timeout_within_a_chunk_hits_that_item_only(
    method: str, ordered: bool, tmp_path: Path
) -> None:
    slow = (3, 47, 90)
    # An initializer of their module: else a successor imports it in its first item's time.
    with fm.ProcessPool(2, start_method=method, initializer=tasks.set_state) as pool:
        view = pool.options(timeout=1.0)
        results = list(
            view.map(
                partial(tasks.nap_at, slow, 60),
                range(100),
                chunksize=20,
                ordered=ordered,
                return_exceptions=True,
            )
        )
    failures = [r for r in results if isinstance(r, BaseException)]
    assert [type(f) for f in failures] == [fm.TaskTimeout] * 3
    values = [r for r in results if not isinstance(r, BaseException)]
    assert sorted(values) == [i for i in range(100) if i not in slow]
    if ordered:
        assert [i for i, r in enumerate(results) if isinstance(r, BaseException)] == list(slow)


def test_timeout_is_each_items_own(pool: fm.ProcessPool) -> None:
    """Twenty items of 0.1 s in one chunk: the chunk takes longer than the limit, no item does."""
    view = pool.options(timeout=1.8)
    assert list(view.map(tasks.nap, [0.1] * 20, range(20), chunksize=20)) == list(range(20))


def test_time_in_the_queue_does_not_count(tmp_path: Path) -> None:
    with fm.ProcessPool(1, start_method="fork") as pool, tasks.Gate(tmp_path) as gate:
        busy = pool.submit(tasks.pass_gate, gate.path)
        queued = [pool.options(timeout=1.0).submit(tasks.negative, i) for i in range(10)]
        time.sleep(1.2)  # time is what this is about
        assert not any(future.done() for future in queued)
        gate.open()
        assert [future.result() for future in queued] == [-i for i in range(10)]
        busy.result()


def test_neighbours_of_a_timeout_are_not_charged(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(1, start_method="fork") as pool:
        stuck = pool.options(timeout=0.2).submit(time.sleep, 60)
        queued = [pool.submit(tasks.note, log.path, i) for i in range(50)]
        assert [future.result(20) for future in queued] == list(range(50))
        assert isinstance(stuck.exception(), fm.TaskTimeout)
    assert log.entries() == list(range(50))


def test_timeouts_never_break_the_pool() -> None:
    with fm.ProcessPool(1, start_method="fork", restarts=(0, 10.0)) as pool:
        view = pool.options(timeout=0.02)
        for _ in range(5):
            assert isinstance(view.submit(time.sleep, 60).exception(20), fm.TaskTimeout)
        assert pool.submit(pow, 2, 3).result() == 8


def test_timeout_while_nobody_waits(pool: fm.ProcessPool) -> None:
    """The deadline is the pool's to keep, not the caller's."""
    pool.options(timeout=0.1).submit(time.sleep, 60)
    tasks.eventually(lambda: pool.stats().timeouts == 1)


# ------------------------------------------------------------------ retries


class Flaky:
    """Fails the first times it is called, over all workers."""

    def __init__(self, log: tasks.Log, failures: int, how: str) -> None:
        self.path = log.path
        self.failures = failures
        self.how = how

    def __call__(self, item: object) -> tuple[int, object]:
        tries = os.path.getsize(self.path) // 4
        tasks.note(self.path, tries)
        if tries < self.failures:
            if self.how == "raise":
                raise OSError("flaky")
            if self.how == "sleep":
                time.sleep(60)
            tasks.die(self.how)
        return tries, item


@pytest.mark.parametrize("how", ["kill", "exit0", "raise", "sleep"])
@pytest.mark.parametrize("failures, retries, ok", [(1, 1, True), (3, 3, True), (2, 1, False)])
def test_retries_count_started_attempts(
    how: str, failures: int, retries: int, ok: bool, tmp_path: Path
) -> None:
    expected = {"raise": OSError, "sleep": fm.TaskTimeout}.get(how, fm.WorkerDied)
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(1, start_method="fork", restarts=(100, 10.0)) as pool:
        view = pool.options(
            retries=retries, retry_on=(expected,), timeout=1.0 if how == "sleep" else None
        )
        future = view.submit(Flaky(log, failures, how), "item")
        if ok:
            assert future.result(20) == (failures, "item")
        else:
            error = future.exception(20)
            assert isinstance(error, expected)
            if how != "raise":
                assert error.attempts == retries + 1
        assert len(log.entries()) == min(failures, retries) + 1
        assert pool.stats().retried == min(failures, retries)


def test_default_retry_on_is_a_death(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(1, start_method="fork") as pool:
        error = pool.options(retries=5).submit(Flaky(log, 1, "raise"), 1).exception(20)
        assert isinstance(error, OSError)
        assert len(log.entries()) == 1


def test_the_same_bytes_are_sent_again(tmp_path: Path) -> None:
    """The argument is as it was at submit, whatever became of the object."""
    log = tasks.Log(tmp_path)
    argument = ["as it was"]
    with fm.ProcessPool(1, start_method="fork") as pool:
        future = pool.options(retries=2).submit(Flaky(log, 2, "kill"), argument)
        argument[0] = "changed since"
        assert future.result(20) == (2, ["as it was"])


def test_retry_on_an_exception_class_in_map(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(1, start_method="fork") as pool:
        view = pool.options(retries=1, retry_on=(OSError,))
        results = list(view.map(Flaky(log, 1, "raise"), ["a", "b", "c"], chunksize=3))
        assert sorted(item for _, item in results) == ["a", "b", "c"]
        assert [item for _, item in results] == ["a", "b", "c"]
        assert len(log.entries()) == 4


# ------------------------------------------------------------------ priority


def test_higher_priority_first(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(1, start_method="fork") as pool, tasks.Gate(tmp_path) as gate:
        busy = pool.submit(tasks.pass_gate, gate.path)
        tasks.eventually(busy.running)
        futures = []
        for number, priority in enumerate((0, 5, -3, 5, 0, 9) * 20):
            view = pool.options(priority=priority)
            futures.append(view.submit(tasks.note, log.path, 1000 * priority + number))
        gate.open()
        for future in futures:
            future.result()
    order = [round((entry - entry % 1000) / 1000) for entry in log.entries()]
    # A few were at the worker before the more urgent ones came: the credit. The rest is sorted.
    inversions = sum(a < b for a, b in itertools.pairwise(order))
    assert sorted(order, reverse=True)[20:] == sorted(order)[::-1][20:]
    assert inversions <= 3, order
    # Within one priority: first come, first served.
    for priority in (9, 5, 0, -3):
        mine = [e for e in log.entries() if round((e - e % 1000) / 1000) == priority]
        assert mine == sorted(mine)


# ------------------------------------------------------------------ views


def test_a_view_is_an_executor_that_cannot_shut_down(pool: fm.ProcessPool) -> None:
    from concurrent.futures import Executor

    view = pool.options(timeout=5)
    assert isinstance(view, Executor)
    with view:  # libraries do this with what they are given
        view.shutdown()
    assert pool.submit(pow, 2, 3).result() == 8
    assert view.submit(pow, 2, 3).result() == 8
    assert list(view.map(abs, [-1])) == [1]


def test_views_share_workers_and_stats_and_merge(pool: fm.ProcessPool) -> None:
    view = pool.options(timeout=0.1).options(retries=1, retry_on=(fm.TaskTimeout,))
    assert set(view.options(timeout=None).each(tasks.pid)) == set(pool.each(tasks.pid))
    error = view.submit(time.sleep, 60).exception(20)
    assert isinstance(error, fm.TaskTimeout)
    assert error.attempts == 2
    assert view.options(timeout=None).submit(time.sleep, 0.2).result() is None
    assert pool.stats().killed == 2


def test_a_view_keeps_its_pool() -> None:
    view = fm.ProcessPool(1, start_method="fork").options(priority=1)
    assert [view.submit(tasks.negative, i).result() for i in range(3)] == [0, -1, -2]
    del view

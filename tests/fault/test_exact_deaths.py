"""INV-2: a worker's death costs exactly the task that was running, and nothing runs twice.

The witness is a log that the tasks write themselves (`tasks.Log`): one atomic append before
anything else happens in a task. So "ran twice" and "never ran" are seen from inside, whatever
the pool believes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import pytest

import forkmill as fm
import tasks

ITEMS = 100_000
FAST = ("fork", "zygote")
PLENTY = (10_000, 10.0)  # restarts=: these tests kill more than an honest program does


def check(results: list[object], log: tasks.Log, deadly: dict[int, str], *, ordered: bool) -> None:
    """Every item has its outcome, its place if ordered, and ran exactly once."""
    n = len(results)
    values = [r for r in results if not isinstance(r, BaseException)]
    failures = [r for r in results if isinstance(r, BaseException)]
    assert {type(f) for f in failures} <= {fm.WorkerDied}
    assert len(failures) == len(deadly)
    assert sorted(values) == sorted(-i for i in range(n) if i not in deadly)
    if ordered:
        assert [i for i, r in enumerate(results) if isinstance(r, BaseException)] == sorted(deadly)
        assert values == [-i for i in range(n) if i not in deadly]
    counts = log.counts()
    assert set(counts) == set(range(n)), "an item never ran"
    assert set(counts.values()) == {1}, f"ran twice: {[i for i in counts if counts[i] > 1][:20]}"


def check_failure(failure: fm.WorkerDied, how: str) -> None:
    if how == "exit0":
        assert (failure.exitcode, failure.signal) == (0, None)
    elif how == "exit3":
        assert (failure.exitcode, failure.signal) == (3, None)
    else:
        name = {"kill": "SIGKILL", "segv": "SIGSEGV", "abort": "SIGABRT"}[how]
        assert (failure.signal_name, failure.exitcode) == (name, None)
    if how in ("segv", "abort"):
        assert "Fatal Python error" in failure.crash
        assert "die" in failure.crash  # the frame that did it
    assert failure.pid > 0
    assert failure.cause == "exit"
    assert not failure.oom


@pytest.mark.scenario(1, 4, 5)
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("how", tasks.DEATHS)
@pytest.mark.parametrize("method", FAST)
def test_one_death_in_a_hundred_thousand(
    method: str, how: str, ordered: bool, tmp_path: Path
) -> None:
    """Default chunks, trivial items, one that kills its worker."""
    log = tasks.Log(tmp_path)
    deadly = {random.randrange(ITEMS): how}
    print("deadly:", deadly)
    with fm.ProcessPool(
        2, start_method=method, initializer=tasks.set_plan, initargs=(log.path, deadly)
    ) as pool:
        results = list(
            pool.map(tasks.planned, range(ITEMS), ordered=ordered, return_exceptions=True)
        )
        check(results, log, deadly, ordered=ordered)
        [failure] = [r for r in results if isinstance(r, BaseException)]
        assert isinstance(failure, fm.WorkerDied)
        check_failure(failure, how)
        stats = pool.stats()
        assert (stats.accepted, stats.outcomes, stats.died) == (ITEMS, ITEMS, 1)


@pytest.mark.scenario(1)
@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("turn", range(5))
def test_several_deaths_at_random_places(method: str, turn: int, tmp_path: Path) -> None:
    """First and last items, neighbours, and random ones; several workers dying at once."""
    seed = random.randrange(1 << 30)
    print("seed:", seed)
    dice = random.Random(seed)
    n = 20_000
    places = {0, n - 1, *dice.sample(range(n), 6)}
    places |= {min(n - 1, place + 1) for place in list(places)[:3]}
    deadly = {place: dice.choice(("kill", "exit0", "exit3")) for place in places}
    log = tasks.Log(tmp_path)
    ordered = bool(turn % 2)
    with fm.ProcessPool(4, start_method=method, restarts=PLENTY) as pool:
        results = list(
            pool.map(
                tasks.Noted(log, deadly),
                iter(range(n)),
                ordered=ordered,
                return_exceptions=True,
                chunksize=dice.choice((None, None, 1, 7, 500, 4096)),
            )
        )
    check(results, log, deadly, ordered=ordered)


def test_spawned_workers_die_exactly_too(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    deadly = {777: "kill", 5000: "exit0"}
    with fm.ProcessPool(2, start_method="spawn") as pool:
        results = list(pool.map(tasks.Noted(log, deadly), range(20_000), return_exceptions=True))
    check(results, log, deadly, ordered=True)


@pytest.mark.parametrize("size", [0, 300, 5_000, 100_000, 1_000_000])
def test_deaths_among_results_of_any_size(size: int, tmp_path: Path) -> None:
    """Results around and above the ring's size: some go through it, some straight to the pipe."""
    log = tasks.Log(tmp_path)
    n = 40 if size >= 100_000 else 400
    deadly = {n // 3: "kill", n // 2: "exit0", n - 1: "kill"}
    with fm.ProcessPool(2, start_method="fork", restarts=PLENTY) as pool:
        task = tasks.Sized(log, deadly, size)
        results = list(pool.map(task, range(n), return_exceptions=True, chunksize=13))
    assert [i for i, r in enumerate(results) if isinstance(r, fm.WorkerDied)] == sorted(deadly)
    assert all(r == (i, b"x" * size) for i, r in enumerate(results) if i not in deadly)
    assert set(log.counts().values()) == {1}
    assert len(log.counts()) == n


@pytest.mark.scenario(1, 3)
@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("turn", range(5))
def test_workers_killed_from_outside_at_random_times(
    method: str, turn: int, tmp_path: Path
) -> None:
    """Each item has one outcome, a value or WorkerDied; none ran twice; a value did run."""
    log = tasks.Log(tmp_path)
    n = 30_000
    with (
        fm.ProcessPool(3, start_method=method, restarts=PLENTY) as pool,
        killer(pool) as kills,
    ):
        results = list(pool.map(tasks.Spun(log), iter(range(n)), return_exceptions=True))
    counts = log.counts()
    assert len(results) == n
    assert max(counts.values()) == 1, "an item ran twice"
    for i, result in enumerate(results):
        if isinstance(result, fm.WorkerDied):
            assert result.signal_name == "SIGKILL"
        else:
            assert result == -i
            assert counts[i] == 1
    died = [r for r in results if isinstance(r, fm.WorkerDied)]
    assert len(died) <= len(kills)
    stats = pool.stats()
    assert stats.accepted == stats.outcomes == n
    assert stats.died == len(died)


@contextlib.contextmanager
def killer(pool: fm.ProcessPool):
    """Kill random workers, some 50 a second, until the end of the block."""
    kills: list[int] = []
    stop = threading.Event()

    def run() -> None:
        dice = random.Random()
        while not stop.wait(dice.random() * 0.04):
            workers = [w for w in pool.workers() if w.pid]
            if workers:
                victim = dice.choice(workers)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim.pid, signal.SIGKILL)
                    kills.append(victim.pid)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield kills
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("method", FAST)
def test_submits_while_workers_are_killed(method: str, tmp_path: Path) -> None:
    """The same for single tasks from several threads."""
    log = tasks.Log(tmp_path)
    n, threads = 3000, 4
    outcomes: dict[int, object] = {}
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            mine = {i: pool.submit(tasks.note, log.path, i) for i in range(start, n, threads)}
            for i, future in mine.items():
                outcomes[i] = future.exception() or future.result()
        except BaseException as error:
            errors.append(error)

    with fm.ProcessPool(3, start_method=method, restarts=PLENTY) as pool, killer(pool):
        crew = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
    if errors:
        raise errors[0]
    counts = log.counts()
    assert len(outcomes) == n
    assert max(counts.values()) == 1
    for i, outcome in outcomes.items():
        assert isinstance(outcome, fm.WorkerDied) or (outcome == i and counts[i] == 1)


def test_retries_run_again_and_nothing_else_does(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    n = 5000
    deadly = {17: "kill", 3000: "exit0"}
    with fm.ProcessPool(2, start_method="fork", restarts=PLENTY) as pool:
        view = pool.options(retries=2)
        results = list(view.map(tasks.Noted(log, deadly), range(n), return_exceptions=True))
    counts = log.counts()
    assert {i: counts[i] for i in deadly} == dict.fromkeys(deadly, 3)
    assert all(counts[i] == 1 for i in range(n) if i not in deadly)
    for i, result in enumerate(results):
        if i in deadly:
            assert isinstance(result, fm.WorkerDied)
            assert result.attempts == 3
        else:
            assert result == -i


@pytest.mark.scenario(29)
@pytest.mark.parametrize("method", FAST)
def test_recycling_storm_strands_nothing(method: str, tmp_path: Path) -> None:
    """A worker that leaves after one task, and tasks that were on their way to it."""
    n = 300 if method == "fork" else 100
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(3, start_method=method, max_tasks_per_child=1) as pool:
        assert list(pool.map(tasks.Noted(log), range(n))) == [-i for i in range(n)]
        assert pool.stats().recycled >= n - 3
    with fm.ProcessPool(3, start_method=method, max_tasks_per_child=7) as pool:
        results = [pool.submit(tasks.note, log.path, i) for i in range(n, 2 * n)]
        assert [future.result() for future in results] == list(range(n, 2 * n))
    assert set(log.counts().values()) == {1}


@pytest.mark.scenario(13)
def test_a_poisonous_argument_blames_one_item(tmp_path: Path) -> None:
    """Its decoding kills the worker: that item, and no neighbour, dies."""
    items: list[object] = list(range(2000))
    items[1234] = tasks.KillsOnLoad()
    with fm.ProcessPool(2, start_method="fork") as pool:
        results = list(pool.map(tasks.identity, items, return_exceptions=True))
    assert isinstance(results.pop(1234), fm.WorkerDied)
    items.pop(1234)
    assert results == items


def test_a_task_that_forks_and_returns_twice(tmp_path: Path) -> None:
    """The grandchild comes back into our loop: only the worker may answer."""
    with fm.ProcessPool(2, start_method="fork") as pool:
        pids = {worker.pid for worker in pool.workers()} | set(pool.each(os.getpid))
        results = [pool.submit(tasks.fork_and_return) for _ in range(10)]
        assert {future.result(20) for future in results} <= pids
        assert list(pool.map(tasks.negative, range(1000))) == [-i for i in range(1000)]
        assert pool.stats().deaths == 0

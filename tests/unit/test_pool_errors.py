"""What a failing task's caller gets: types, notes, remote frames, deaths with their causes."""

from __future__ import annotations

import copy
import os
import pickle
import traceback
from collections.abc import Iterator

import pytest

import forkmill as fm
import tasks


@pytest.fixture(params=["fork", "zygote"])
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(1, start_method=request.param) as made:
        yield made


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_except_value_error_works(pool: fm.ProcessPool) -> None:
    try:
        pool.submit(int, "no number").result()
    except ValueError as error:
        assert "no number" in str(error)
    else:
        pytest.fail("no exception")


def test_remote_frames_notes_and_cause_are_shown(pool: fm.ProcessPool) -> None:
    with pytest.raises(ValueError) as caught:
        pool.submit(tasks.fail_chained).result()
    text = printed(caught.value)
    assert "in fail_chained" in text
    assert "tasks.py" in text
    assert "raise failure from error" in text
    assert "KeyError: 'missing key'" in text
    assert "a note of the task's" in text
    assert caught.value.__notes__ == ["a note of the task's"]


def test_map_shows_them_too(pool: fm.ProcessPool) -> None:
    with pytest.raises(ValueError) as caught:
        list(pool.map(tasks.fail_at, [(3,)] * 5, range(5)))
    assert "in fail_at" in printed(caught.value)


def test_our_own_frames_are_not_in_the_remote_traceback(pool: fm.ProcessPool) -> None:
    error = pool.submit(tasks.fail_chained).exception()
    assert "worker/main.py" not in printed(error)


def test_an_exception_that_round_trips_keeps_type_and_attributes(pool: fm.ProcessPool) -> None:
    error = pool.submit(tasks.raise_kind, "fine").exception()
    assert type(error) is tasks.Fine
    assert (error.args, error.extra) == ((1, 2), 3)


@pytest.mark.scenario(11)
@pytest.mark.parametrize("kind", ["needs", "liar", "stubborn", "lock inside"])
def test_others_arrive_as_remote_error(pool: fm.ProcessPool, kind: str) -> None:
    error = pool.submit(tasks.raise_kind, kind).exception()
    assert isinstance(error, fm.RemoteError)
    name = {
        "needs": "NeedsArguments",
        "liar": "Liar",
        "stubborn": "Stubborn",
        "lock inside": "ValueError",
    }[kind]
    assert error.type_name.split(".")[-1] == name
    assert "in raise_kind" in error.traceback
    assert "in raise_kind" in printed(error)
    if kind == "stubborn":
        assert error.text == "stubborn text"
    assert pool.submit(pow, 2, 3).result() == 8


def test_an_exception_without_text(pool: fm.ProcessPool) -> None:
    """Its __str__ raises: it arrives all the same, and so does the next task's outcome."""
    error = pool.submit(tasks.raise_kind, "bad text").exception()
    assert isinstance(error, tasks.BadText | fm.RemoteError)
    assert "in raise_kind" in printed(error)
    assert pool.submit(pow, 2, 3).result() == 8


def test_a_local_class_or_a_remote_error(pool: fm.ProcessPool) -> None:
    error = pool.submit(tasks.raise_kind, "local").exception()
    assert "of a local class" in str(error)
    assert type(error).__name__ in ("Local", "RemoteError")


def test_ten_megabytes_of_text(pool: fm.ProcessPool) -> None:
    error = pool.submit(tasks.raise_kind, "huge").exception()
    assert type(error) is ValueError
    assert len(error.args[0]) == 10_000_000


def test_exception_groups(pool: fm.ProcessPool) -> None:
    error = pool.submit(tasks.raise_kind, "group").exception()
    assert isinstance(error, ExceptionGroup | fm.RemoteError)
    assert "several" in str(error)
    assert "inner" in printed(error)


def test_death_tells_all(pool: fm.ProcessPool) -> None:
    pid = pool.submit(tasks.pid).result()
    error = pool.submit(tasks.die, "segv").exception()
    assert isinstance(error, fm.WorkerDied)
    assert error.pid == pid
    assert error.signal_name == "SIGSEGV"
    assert error.exitcode is None
    assert error.rss_kb > 1000
    assert not error.oom
    assert "Fatal Python error: Segmentation fault" in error.crash
    assert "in die" in error.crash
    assert str(pid) in str(error) and "SIGSEGV" in str(error)
    assert "tasks.die" in printed(error) or "die" in printed(error)
    error = pool.submit(tasks.die, "exit0").exception()
    assert (error.exitcode, error.signal, error.signal_name) == (0, None, "")
    assert error.pid != pid


def test_death_in_map_names_the_task(pool: fm.ProcessPool) -> None:
    with pytest.raises(fm.WorkerDied) as caught:
        list(pool.map(tasks.Noted.__call__, [Killer()] * 10, range(10), chunksize=10))
    assert caught.value.task == 4


class Killer(tasks.Noted):
    def __init__(self) -> None:
        self.path = "/dev/null"
        self.deadly = {4: "kill"}


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_ours_survive_pickle_and_copy(pool: fm.ProcessPool, again) -> None:
    """So a task may wait for another pool's task, and let its failure through."""
    death = pool.submit(tasks.die, "exit3").exception()
    late = pool.options(timeout=0.05).submit(tasks.nap, 60).exception()
    for error in (death, late):
        twin = again(error)
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.pid == error.pid
    with pytest.raises(fm.WorkerDied) as caught:
        pool.submit(tasks.fail, death).result()
    assert caught.value.exitcode == 3


def test_the_tree() -> None:
    from concurrent.futures.process import BrokenProcessPool

    assert issubclass(fm.PoolError, RuntimeError)
    for name in [
        "PoolClosed",
        "PoolBroken",
        "WorkerDied",
        "TaskTimeout",
        "SerializationError",
        "RemoteError",
        "BuildError",
    ]:
        assert issubclass(getattr(fm, name), fm.PoolError)
    assert issubclass(fm.PoolBroken, BrokenProcessPool)
    assert issubclass(fm.InitError, fm.PoolBroken)
    assert issubclass(fm.TaskTimeout, TimeoutError)
    assert issubclass(fm.SerializationError, pickle.PicklingError)
    assert issubclass(fm.BuildError, ValueError)


def test_deaths_that_are_excused_do_not_count_against_restarts() -> None:
    with fm.ProcessPool(2, restarts=(1, 100.0)) as pool:
        excused = pool._excused()
        for _ in range(4):
            with pytest.raises(fm.WorkerDied):
                excused.submit(os._exit, 3).result()
            with pytest.raises(fm.WorkerDied):
                list(excused.options(retries=0).map(os._exit, [3]))
        assert pool.submit(abs, -1).result() == 1
        assert pool.stats().deaths == 8
        for _ in range(2):
            with pytest.raises(fm.WorkerDied):
                pool.submit(os._exit, 3).result()
        with pytest.raises(fm.PoolBroken):
            while True:  # the zygote counts, and says so a moment after it has told of the death
                pool.submit(abs, -1).result()

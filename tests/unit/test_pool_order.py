"""In which order tasks start: as they were submitted, where it can be seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import forkmill as fm
import tasks


@pytest.fixture
def gate(tmp_path: object) -> Iterator[tasks.Gate]:
    gate = tasks.Gate(str(tmp_path))
    yield gate
    gate.open()


@pytest.mark.parametrize("attempt", range(20))
def test_no_task_starts_before_an_earlier_one_that_waits(gate: tasks.Gate, attempt: int) -> None:
    """A task may wait for what an earlier one does, as with any executor of n workers.

    Right after the start one worker may be there before the other: it must not hoard.
    """
    with fm.ProcessPool(2, start_method="fork") as pool:
        pool.submit(tasks.pass_gate, gate.path)
        quick = pool.submit(tasks.pid)
        pool.submit(tasks.pass_gate, gate.path)
        assert quick.result(timeout=20) > 0
        gate.open()


def test_what_is_queued_behind_a_long_task_runs_elsewhere(gate: tasks.Gate) -> None:
    """Short tasks queue deep on a worker; when one turns out to be long, the rest is recalled."""
    with fm.ProcessPool(2) as pool:
        list(pool.map(tasks.negative, range(2000), chunksize=1))  # it learns that tasks are short
        futures = [pool.submit(tasks.negative, i) for i in range(20)]
        pool.submit(tasks.pass_gate, gate.path)
        futures += [pool.submit(tasks.negative, i) for i in range(200)]
        assert all(future.result(timeout=20) <= 0 for future in futures)
        gate.open()

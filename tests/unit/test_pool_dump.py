"""dump(): the stacks of what runs, which runs on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import forkmill as fm
import tasks
from forkmill.worker import main as _worker
from forkmill.worker import stacks as _stacks

pytestmark = pytest.mark.skipif(not _stacks.supported(), reason="needs pidfd")


@pytest.mark.parametrize("method", tasks.METHODS)
def test_the_stack_of_a_waiting_task(method: str, tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(2, start_method=method) as pool, tasks.Gate(tmp_path) as gate:
        future = pool.submit(noted_gate, log.path, gate.path)
        tasks.eventually(log.entries)
        (pid,) = log.entries()
        tasks.eventually(lambda: "in pass_gate" in pool.dump(timeout=10)[pid])
        for _ in range(2):  # as often as one likes
            text = pool.dump(timeout=10)[pid]
            assert "in pass_gate" in text and "in noted_gate" in text
            assert text.count("most recent call first") == 1
        gate.open()
        assert future.result() == 7
        assert pool.stats().deaths == 0


def noted_gate(log: str, gate: str) -> int:
    tasks.note(log, os.getpid())
    tasks.pass_gate(gate)
    return 7


@pytest.mark.parametrize("method", tasks.METHODS)
def test_a_task_that_holds_the_gil_in_c(method: str) -> None:
    with fm.ProcessPool(1, start_method=method) as pool:
        future = pool.submit(tasks.spin)
        tasks.eventually(future.running)
        for _ in range(2):
            tasks.eventually(lambda: any("spin" in text for text in pool.dump(timeout=10).values()))
        assert future.running() and pool.stats().deaths == 0  # it was not disturbed
        assert future.kill()
        assert isinstance(future.exception(), fm.WorkerDied)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that workers are sent, as they are."""
    sent: list[int] = []
    real = _stacks._signal.pidfd_send_signal

    def send(pidfd: int, number: int) -> None:
        sent.append(number)
        real(pidfd, number)

    monkeypatch.setattr(_stacks._signal, "pidfd_send_signal", send)
    return sent


@pytest.mark.parametrize("method", tasks.METHODS)
def test_a_task_that_calls_functions_all_the_time_survives(
    method: str, ways: list[int], tmp_path: Path
) -> None:
    """Frames that are being made are no place to look: one dump in 30 ended such a worker."""
    begun = tasks.Log(tmp_path)
    with fm.ProcessPool(2, start_method=method) as pool, End(tmp_path) as end:
        futures = [pool.submit(calls_until, begun.path, end.path) for _ in range(2)]
        tasks.eventually(lambda: len(begun.entries()) == 2)
        for _ in range(60):
            texts = pool.dump(timeout=10)
            assert all(text.count("most recent call first") == 1 for text in texts.values())
            assert not any("in answer" in text for text in texts.values())
            assert sum("in calls_until" in text for text in texts.values()) == 2
        assert pool.stats().deaths == 0
        assert ways.count(_worker.TELL) < 30
        end.come()
        assert all(future.result(20) > 0 for future in futures)


class End:
    """A file that ends the tasks that look for it, also if their test fails."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "end")

    def come(self) -> None:
        Path(self.path).touch()

    def __enter__(self) -> End:
        return self

    def __exit__(self, *exc: object) -> None:
        self.come()


def calls_until(begun: str, end: str) -> int:
    calls = 0
    tasks.note(begun, os.getpid())
    while not os.path.exists(end):
        calls += sum(sorted(one_more(range(20)), key=abs))
    return calls


def test_a_task_that_waits_for_its_threads_survives(ways: list[int], tmp_path: Path) -> None:
    """Its main thread sleeps and answers nobody, while frames are being made by the others."""
    begun = tasks.Log(tmp_path)
    with fm.ProcessPool(1) as pool, End(tmp_path) as end:
        future = pool.submit(in_threads, begun.path, end.path)
        tasks.eventually(lambda: len(begun.entries()) == 2)
        for _ in range(10):
            texts = pool.dump(timeout=10)
            assert texts
        assert pool.stats().deaths == 0
        assert _worker.URGE in ways
        assert ways.count(_worker.TELL) < 5
        end.come()
        assert future.result(20) == 2


def in_threads(begun: str, end: str) -> int:
    threads = [threading.Thread(target=calls_until, args=(begun, end)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(threads)


def one_more(numbers: Iterable[int]) -> Iterator[int]:
    for number in numbers:
        yield number + 1


def test_who_cannot_answer_is_left_out() -> None:
    with fm.ProcessPool(2, start_method="fork") as pool:
        pids = set(pool.each(os.getpid))
        stopped = min(pids)
        os.kill(stopped, signal.SIGSTOP)

        def the_other_is_there() -> bool:
            told = set(pool.dump(timeout=1))
            assert stopped not in told
            return told == pids - {stopped}

        tasks.eventually(the_other_is_there)  # it may be slow to answer, on a busy machine
        os.kill(stopped, signal.SIGCONT)
        assert set(pool.each(os.getpid)) == pids


def test_a_stranger_is_not_signalled() -> None:
    assert _stacks.read(os.getpid(), os.getppid() + 1, 0.1) == ""
    assert _stacks.read(1, 0, 0.1) == ""  # no handler: the signal would end it


def test_after_shutdown_there_is_nobody() -> None:
    pool = fm.ProcessPool(1)
    pool.shutdown()
    assert pool.dump() == {}

"""No descriptor is used after it was closed: its number may be a stranger's by then."""

from __future__ import annotations

import importlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import contexts
from forkmill.contexts import Work, forker
from forkmill.contexts.lanes import children as cow_lane

pytestmark = [pytest.mark.timeout(60)]


def many(item: Any) -> Iterator[Any]:
    """Emits for ever."""
    yield from itertools.repeat(item)


class Strangers:
    """Opens files as fast as it can: one of them gets any number that is freed meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Any] = []

    def open(self) -> None:
        path = self.folder / str(len(self.files))
        self.files.append(path.open("w+b", buffering=0))

    def written(self) -> dict[str, bytes]:
        """What is in them, which nobody has written to."""
        found = {}
        for file in self.files:
            file.seek(0)
            data = file.read()
            file.close()
            if data:
                found[file.name] = data
        return found


@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_lane_that_is_closed_early_writes_into_no_strangers_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, batch: int
) -> None:
    """The callback of a call's end comes when its waiter has long gone on."""
    ring = cow_lane._Pipe.ring
    strangers = Strangers(tmp_path)
    rung = []

    def late(pipe: Any, future: Any) -> None:
        time.sleep(0.05)  # a switch of threads may take as long
        ring(pipe, future)
        rung.append(pipe)

    monkeypatch.setattr(cow_lane._Pipe, "ring", late)
    lane = fm.cow_fork(2, batch=batch).lane(Work(many, stream=True))
    lane.put_many([1, 2])
    assert lane.take(20) is not None
    closing = threading.Thread(target=lane.close)
    closing.start()
    while closing.is_alive():
        strangers.open()
        time.sleep(0.001)
    closing.join()
    tasks.eventually(lambda: len(rung) >= 1)
    assert strangers.written() == {}
    assert "exception calling callback" not in caplog.text


def test_a_pipe_that_is_closed_is_not_rung(tmp_path: Path) -> None:
    strangers = Strangers(tmp_path)
    with fm.executor("cow_fork", 1) as executor:
        pipe = cow_lane._Pipe(executor)
        pipe.ring(None)
        assert os.read(pipe.inlet, 2) == b"\0"
        pipe.close()
        for _ in range(4):
            strangers.open()
        assert {pipe.inlet, pipe.outlet} <= {file.fileno() for file in strangers.files}
        pipe.ring(None)
    assert strangers.written() == {}


def test_no_child_is_forked_for_a_call_that_is_being_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would inherit the numbers of descriptors that are closed when the call is over."""
    taken, killing, forked = (threading.Event() for _ in range(3))
    fork, death = forker.Forker._fork, forker.Forker._death

    def slow_fork(self: Any, slot: Any, calls: Any) -> None:
        taken.set()
        assert killing.wait(20)
        fork(self, slot, calls)
        forked.set()

    def slow_death(self: Any, *args: Any, **info: Any) -> BaseException:
        killing.set()
        assert forked.wait(20)
        return death(self, *args, **info)

    monkeypatch.setattr(forker.Forker, "_fork", slow_fork)
    monkeypatch.setattr(forker.Forker, "_death", slow_death)
    with fm.executor("cow_fork", 1) as executor:
        future = executor.submit(time.sleep, 60)
        assert taken.wait(20)
        assert future.kill()  # while the forking thread has it in its hand
        with pytest.raises(fm.WorkerDied):
            future.result(20)
        assert executor.metrics().created == 0


def test_a_thread_that_outlives_its_event_loop_does_not_wake_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A plain function of a call that had its time goes on, and ends when the loop has."""
    go = threading.Event()
    executor = fm.executor("async", 2)
    future = executor.options(timeout=0.05).submit(go.wait, 20)
    with pytest.raises(fm.TaskTimeout):
        future.result(20)
    loop = executor._loop  # type: ignore[attr-defined]
    executor.shutdown(wait=False)
    waiter = loop.loop.create_future()
    go.set()
    executor.shutdown()
    assert loop.loop.is_closed()
    executor.wake(waiter)  # type: ignore[attr-defined]
    assert "exception calling callback" not in caplog.text and not caplog.records


def test_every_descriptor_of_every_context_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used when it is closed says EBADF as long as no stranger has its number."""
    bad: list[tuple[str, int]] = []

    def watched(name: str) -> Any:
        real = getattr(os, name)

        def call(fd: int, *args: Any) -> Any:
            try:
                return real(fd, *args)
            except OSError as error:
                if error.errno == 9:
                    bad.append((name, fd))
                raise

        return call

    for name in ("read", "write", "close"):
        monkeypatch.setattr(os, name, watched(name))
    for kind in ("thread", "async", "cow_fork", "ipc_fork"):
        for take in (0, 1):
            lane = contexts.spec(kind, 2).lane(Work(many, stream=True))
            lane.put_many([1, 2, 3])
            if take:
                assert lane.take(20) is not None
            lane.close()
    assert bad == []


@pytest.mark.parametrize("asked", ["fstat", "get_inheritable"])
def test_another_thread_closes_what_a_start_has_listed(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """A pool's start lists the descriptors that are open; others come and go meanwhile."""
    connection = importlib.import_module("multiprocessing.connection")
    ends = connection.Pipe()
    doomed = ends[0].fileno()
    ask = getattr(os, asked)

    def closed_before(fd: int) -> object:
        if fd == doomed and not ends[0].closed:
            ends[0].close()
        return ask(fd)

    monkeypatch.setattr(os, asked, closed_before)
    with fm.ProcessPool(1, start_method="fork") as pool:
        assert pool.submit(abs, -1).result(30) == 1
    assert ends[0].closed
    ends[1].close()

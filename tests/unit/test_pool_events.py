"""What a pool tells the event stream: births, ends with their cause, restarts, breaks."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill.pool.events import Told


class Heard(list[Any]):
    """What was heard of pools."""

    def __call__(self, event: Any) -> None:
        if event["source"] == "pool":
            self.append(event)

    def of(self, *kinds: str) -> list[Any]:
        return [event for event in self if event["kind"] in kinds]


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    end = fm.subscribe(heard)
    yield heard
    end.end()


def stop_worker(code: int) -> None:
    os._exit(code)


def test_births_and_the_end(heard: Heard) -> None:
    with fm.ProcessPool(2, name="mill") as pool:
        pids = {worker.pid for worker in pool.workers()}
        # Nobody uses the pool meanwhile: the stream's thread looks itself.
        tasks.eventually(lambda: len(heard.of("worker_started")) == 2)
        assert {event["worker"] for event in heard.of("worker_started")} == pids
    tasks.eventually(lambda: heard.of("run_finished"))
    assert [event["kind"] for event in heard] == [
        "run_started",
        "worker_started",
        "worker_started",
        "worker_left",
        "worker_left",
        "run_finished",
    ]
    assert {event["name"] for event in heard} == {"mill"}
    assert len({event["run"] for event in heard}) == 1
    assert {event["worker"] for event in heard.of("worker_left")} == pids
    assert sorted(event["data"]["slot"] for event in heard.of("worker_left")) == [0, 1]
    assert heard[-1]["data"] == {"status": "closed"}
    assert json.loads(json.dumps(heard)) == heard


@pytest.mark.parametrize(
    ("how", "cause"), [("SIGKILL", "SIGKILL"), ("exit", "exit 3"), ("kill", "killed")]
)
def test_a_death_with_its_cause_and_the_restart(heard: Heard, how: str, cause: str) -> None:
    with fm.ProcessPool(1) as pool:
        victim = pool.submit(os.getpid).result()
        if how == "kill":
            future = pool.submit(time.sleep, 60)
            tasks.eventually(future.running)
            future.kill()
        elif how == "exit":
            future = pool.submit(stop_worker, 3)
        else:
            future = pool.submit(os.kill, victim, signal.SIGKILL)
        future.exception()
        tasks.eventually(lambda: len(heard.of("worker_started")) == 2)
    (death,) = heard.of("worker_died")
    assert (death["worker"], death["data"]["cause"]) == (victim, cause)
    assert "died" in death["data"]["error"] and death["data"]["slot"] == 0
    first, second = heard.of("worker_started")
    assert (first["worker"], first["data"]["restarted"]) == (victim, False)
    assert second["data"]["restarted"] and first["seq"] < death["seq"] < second["seq"]


def test_a_death_is_told_although_nobody_uses_the_pool(heard: Heard) -> None:
    with fm.ProcessPool(1) as pool:
        victim = pool.submit(os.getpid).result()
        os.kill(victim, signal.SIGKILL)
        tasks.eventually(lambda: heard.of("worker_died"))
        (death,) = heard.of("worker_died")
        assert 0 <= time.monotonic() - death["monotonic"] < 30


def test_recycled_workers_and_a_break(heard: Heard) -> None:
    with fm.ProcessPool(1, max_tasks_per_child=1) as pool:
        assert [pool.submit(abs, -i).result() for i in range(3)] == [0, 1, 2]
        tasks.eventually(lambda: len(heard.of("worker_left")) >= 2)
    tasks.eventually(lambda: heard.of("run_finished"))
    assert heard.of("worker_left")[0]["data"]["cause"] == "recycled"
    heard.clear()
    pool = fm.ProcessPool(1, restarts=(0, 60.0))
    with pytest.raises(fm.PoolError):
        pool.submit(stop_worker, 3).result()
    tasks.eventually(lambda: heard.of("run_finished"))
    pool.shutdown()
    (end,) = heard.of("run_finished")
    assert end["data"]["status"] == "broken" and "more than 0 deaths" in end["data"]["error"]


def test_the_log_says_the_same_whether_somebody_hears_or_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lines() -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "forkmill"), fm.ProcessPool(1, name="mill") as pool:
            pool.submit(stop_worker, 3).exception()
            assert pool.submit(abs, -1).result() == 1
            tasks.eventually(lambda: (pool.stats(), len(caplog.records) >= 2)[1])
        words = [(record.levelname, record.msg) for record in caplog.records]
        return [f"{level} {text}" for level, text in words if "fork" not in text]

    unheard = lines()
    end = fm.subscribe(lambda event: None)
    try:
        assert lines() == unheard
    finally:
        end()


def test_a_pool_of_a_run_has_it_as_its_parent(heard: Heard) -> None:
    runs: list[Any] = []
    line = fm.Pipeline().source(range(3)).map(abs, context="ipc_fork:1")
    assert line.run(sinks=[runs.append]).ok
    tasks.eventually(lambda: heard.of("run_finished"))
    assert {event["parent"] for event in heard} == {runs[0]["run"]}
    assert not [event for event in runs if event["source"] == "pool"]


class Native:
    """Workers as a pool has them; counts who looks at all of them."""

    def __init__(self) -> None:
        self.there = [11, 12]
        self.looks = 0

    def pids(self) -> tuple[int, ...]:
        return tuple(self.there)

    def workers(self) -> list[dict[str, Any]]:
        self.looks += 1
        return [
            {"pid": pid, "slot": slot, "born_ns": time.monotonic_ns()}
            for slot, pid in enumerate(self.there)
        ]


def test_workers_are_looked_at_when_they_change(heard: Heard) -> None:
    told, native = Told("mill"), Native()
    for _ in range(3):
        told.look(native)
    assert native.looks == 1
    native.there = [11, 13]
    for _ in range(3):
        told.look(native)
    assert native.looks == 2
    told._end(time.monotonic(), "worker_left", 13, {"slot": 1})  # and its pid comes again
    told.look(native)
    assert native.looks == 3
    told.end()
    tasks.eventually(lambda: heard.of("run_finished"))
    assert [e["worker"] for e in heard.of("worker_started")] == [11, 12, 13, 13]


def test_a_pool_that_ended_unheard_is_not_told_later() -> None:
    with fm.ProcessPool(1, name="gone") as pool:
        end = fm.subscribe(lambda event: None)
        pool.submit(abs, 1).result()
        tasks.eventually(lambda: pool._core.life.log.told._alive)
        end()
    heard = Heard()
    fm.subscribe(heard)()
    assert [event for event in heard if event["name"] == "gone"] == []


def test_who_hears_later_hears_what_comes_later() -> None:
    heard = Heard()
    with fm.ProcessPool(1) as pool:
        assert pool.submit(abs, -1).result() == 1
        end = fm.subscribe(heard)
        pool.submit(stop_worker, 3).exception()
        tasks.eventually(lambda: heard.of("worker_died"))
        end()
        count = len(heard)
        pool.submit(stop_worker, 3).exception()
    assert len(heard) == count and heard[0]["kind"] == "run_started"

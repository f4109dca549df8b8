"""What tasks say before their outcome: `fm.emit`, in every context, whatever dies."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import speakers
from forkmill import _said, events
from forkmill.events import Emitter
from tasks import eventually

CONTEXTS = ["inline", "thread:2", "cow_fork:2", "ipc_fork:2", "async:2"]
PROCESSES = ["cow_fork:2", "ipc_fork:2"]


class Heard:
    """All events from its making to `end`."""

    def __init__(self, **options: Any) -> None:
        self.events: list[Any] = []
        self.subscription = fm.subscribe(self.events.append, **options)

    def end(self) -> list[Any]:
        """All that was told."""
        self.subscription()
        return self.events

    def said(self) -> list[Any]:
        """The events of the kind, when all was told."""
        return [event for event in self.end() if event["kind"] == "said"]


@pytest.fixture
def heard() -> Iterator[Heard]:
    found = Heard(buffer=50_000)
    yield found
    found.subscription.end()


def values(said: list[Any]) -> list[Any]:
    return [event["data"]["value"] for event in said]


# -------------------------------------------------------------------------- every context


@pytest.mark.parametrize("spec", CONTEXTS)
def test_words_come_in_order_and_with_who_said_them(spec: str, heard: Heard) -> None:
    fn = speakers.say_async if spec.startswith("async") else speakers.say_numbers
    with fm.executor(spec) as executor:
        assert executor.submit(fn, 3000).result() == 3000
        assert [*executor.map(fn, range(20))] == [*range(20)]
    said = heard.said()
    numbers = [event["seq"] for event in said]
    assert numbers == sorted(set(numbers))
    for n in (3000, *range(20)):
        assert [v for v in values(said) if v[0] == n] == [(n, i) for i in range(n)]
    if spec in PROCESSES:
        assert {event["name"] for event in said} == {"say_numbers"}
        assert os.getpid() not in {event["worker"] for event in said}
    assert not [event for event in heard.events if event["kind"] == "gap"]


@pytest.mark.parametrize("method", ["fork", "zygote", "spawn"])
def test_workers_speak_however_they_start(method: str, heard: Heard) -> None:
    with fm.ProcessPool(1, start_method=method) as pool:
        assert pool.submit(speakers.say_numbers, 5).result() == 5
    assert values(heard.said()) == [(5, i) for i in range(5)]


@pytest.mark.parametrize("spec", CONTEXTS)
def test_a_runs_own_sink_hears_its_stages(spec: str) -> None:
    told: list[Any] = []
    fn = speakers.say_then_add_async if spec.startswith("async") else speakers.say_then_add
    line = fm.Pipeline().source(range(5)).map(fn, context=spec, name="add").sink(speakers.say_it)
    assert line.run(sinks=[told.append]).ok
    said = [event for event in told if event["kind"] == "said"]
    assert {event["run"] for event in said} == {told[0]["run"]}
    by_stage = sorted((e["name"], e["item"], e["data"]["value"]) for e in said)
    adds = [("add", str(i), ("before", i)) for i in range(5)]
    assert by_stage == adds + [("say_it", str(i), ("got", i)) for i in range(1, 6)]
    end = next(e["seq"] for e in told if (e["kind"], e["name"]) == ("stage_finished", "add"))
    assert all(event["seq"] < end for event in said if event["name"] == "add")


def test_another_run_hears_nothing_of_it() -> None:
    told: list[Any] = []
    other = (
        fm.Pipeline().source(range(100)).map(speakers.say_then_add, context="ipc_fork:1").start()
    )
    try:
        fm.Pipeline().source(range(5)).map(speakers.say_then_add, context="ipc_fork:1").run(
            sinks=[told.append]
        )
    finally:
        other.result()
    assert len([event for event in told if event["kind"] == "said"]) == 5


@pytest.mark.parametrize("spec", ["thread:1", "cow_fork:1", "ipc_fork:1"])
def test_nested_stages_speak_for_the_run(spec: str) -> None:
    told: list[Any] = []
    inner = fm.Pipeline().map(speakers.say_then_add).map(speakers.say_then_add, context="thread:1")
    line = fm.Pipeline().source([1, 2]).through(inner, name="inner", context=spec)
    assert line.run(sinks=[told.append]).ok
    said = [event for event in told if event["kind"] == "said"]
    assert sorted(values(said)) == [("before", i) for i in (1, 2, 2, 3)]
    assert {event["run"] for event in said} == {told[0]["run"]}
    assert all(event["name"].startswith("inner") for event in said)


@pytest.mark.parametrize("spec", CONTEXTS)
def test_runs_that_begin_in_a_task_are_part_of_its_run(spec: str) -> None:
    told: list[Any] = []
    fn = speakers.run_inside_async if spec.startswith("async") else speakers.run_inside
    line = fm.Pipeline().source([1]).map(fn, context=spec)
    result = line.run(sinks=[told.append])
    assert result.outputs == [told[0]["run"]]  # the parent, as the inner run's own sink heard it


# ------------------------------------------------------------------------------ what dies


def run_here(_item: object = None) -> str | None:
    """The id of the run that the code here works for."""
    emitter = events.emitter.current()
    return None if emitter is None else emitter.id


def test_a_stream_that_is_the_source_of_another_keeps_its_own_run() -> None:
    inner = fm.Pipeline().source(range(2000)).map(run_here).stream()
    [own] = {next(inner) for _ in range(700)}
    outer = fm.Pipeline().source(inner).map(lambda run: (run, run_here())).stream()
    pairs, between = set(), set()
    for pair in outer:
        pairs.add(pair)
        between.add(run_here())
    [(run, other)] = pairs
    assert run == own and other not in (own, None) and between == {None}


def test_a_stream_goes_on_in_another_thread_in_the_middle_of_a_burst() -> None:
    outputs = iter(fm.Pipeline().source(range(3000)).map(run_here).stream())
    runs = [next(outputs) for _ in range(1200)]
    other = threading.Thread(target=lambda: runs.extend(outputs))
    other.start()
    other.join(30)
    assert len(runs) == 3000 and len(set(runs)) == 1 and runs[0] is not None
    assert run_here() is None


@pytest.mark.parametrize("spec", PROCESSES)
def test_what_was_said_survives_the_death_of_who_said_it(spec: str, heard: Heard) -> None:
    with fm.executor(spec) as executor:
        again = executor.options(retries=1)
        with pytest.raises(fm.WorkerDied):
            again.submit(speakers.say_and_die, 50).result()
        assert executor.submit(speakers.say_numbers, 3).result() == 3
    assert values(heard.said()) == [(50, i) for i in range(50)] * 2 + [(3, i) for i in range(3)]


@pytest.mark.parametrize("spec", PROCESSES)
def test_what_a_late_task_said_comes_before_its_timeout(spec: str, heard: Heard) -> None:
    with fm.executor(spec) as executor:
        with pytest.raises(fm.TaskTimeout):
            executor.options(timeout=0.3).submit(speakers.say_and_sleep, 5).result()
    assert values(heard.said()) == [(5, i) for i in range(5)]


@pytest.mark.timeout(60)
def test_words_come_while_the_task_runs(heard: Heard) -> None:
    with fm.ProcessPool(1) as pool:
        future = pool.submit(speakers.say_and_sleep, 5)
        until = time.monotonic() + 20
        while not [e for e in heard.events if e["kind"] == "said"] and time.monotonic() < until:
            time.sleep(0.01)
        assert not future.done()
        future.kill()
    assert values(heard.said()) == [(5, i) for i in range(5)]


def test_who_comes_late_hears_from_then_on() -> None:
    with fm.ProcessPool(1) as pool:
        assert pool.submit(speakers.say_numbers, 5).result() == 5
        first = Heard()
        assert pool.submit(speakers.say_numbers, 3).result() == 3
        assert values(first.said()) == [(3, i) for i in range(3)]
        eventually(lambda: not pool.submit(speakers.listens).result())
        second = Heard()
        assert pool.submit(speakers.listens).result() is True
        assert pool.submit(speakers.say_numbers, 2).result() == 2
        assert values(second.said()) == [(2, i) for i in range(2)]


# ---------------------------------------------------------------------- who must not notice


@pytest.mark.parametrize("spec", CONTEXTS)
def test_where_nobody_listens_nothing_is_made(spec: str) -> None:
    with fm.executor(spec) as executor:
        assert executor.submit(speakers.say_what_cannot_be_sent).result() == "done"
    fm.emit(lambda: None)


@pytest.mark.parametrize("spec", PROCESSES)
def test_what_cannot_be_sent_is_told_as_text(spec: str, heard: Heard) -> None:
    with fm.executor(spec) as executor:
        assert executor.submit(speakers.say_what_cannot_be_sent).result() == "done"
    unsent, large, after = heard.said()
    assert unsent["data"]["value"] == "<Unsendable>"
    assert "cannot be sent: never" in unsent["data"]["error"]
    assert "262144 bytes" in large["data"]["error"]
    assert after["data"] == {"value": "after"}


def test_what_cannot_be_rebuilt_here_is_told_so(heard: Heard) -> None:
    with fm.ProcessPool(1) as pool:
        assert pool.submit(speakers.say_what_cannot_be_rebuilt).result() == "done"
    bad, after = heard.said()
    assert bad["data"]["value"] is None
    assert "ZeroDivisionError" in bad["data"]["error"]
    assert after["data"] == {"value": "after"}


@pytest.mark.parametrize("spec", PROCESSES)
def test_ten_thousand_words_at_once_are_all_heard(spec: str, heard: Heard) -> None:
    with fm.executor(spec) as executor:
        assert executor.submit(speakers.say_numbers, 10_000).result() == 10_000
    assert [event["data"] for event in heard.end() if event["kind"] == "gap"] == []
    assert values(heard.said()) == [(10_000, i) for i in range(10_000)]


@pytest.mark.parametrize("spec", PROCESSES)
def test_what_nobody_fetches_is_lost_and_counted(spec: str, tmp_path: Path) -> None:
    entered, opened = threading.Event(), threading.Event()
    told: list[Any] = []

    def sink(event: Any) -> None:
        entered.set()
        assert opened.wait(30)
        told.append(event)

    end = fm.subscribe(sink, buffer=100_000)
    try:
        fm.emit("the first holds the stream's thread up")
        assert entered.wait(20)
        with fm.executor(spec) as executor:
            future = executor.submit(speakers.say_and_touch, 20_000, tmp_path / "done")
            eventually((tmp_path / "done").exists)  # who waited for the task would fetch them
            assert future.result() == 20_000
        opened.set()
        end()
    finally:
        opened.set()
        end.end()
    said = values([event for event in told if event["kind"] == "said"])[1:]
    gaps = [event["data"]["lost"] for event in told if event["kind"] == "gap"]
    assert said == [(20_000, i) for i in range(len(said))]
    assert 0 < len(said) < 20_000
    assert len(said) + sum(gaps) == 20_000


def test_threads_of_a_task_speak_for_it(heard: Heard) -> None:
    with fm.ProcessPool(1) as pool:
        assert pool.submit(speakers.say_in_threads, 4, 500).result() == 4
    said = heard.said()
    assert {event["name"] for event in said} == {"say_in_threads"}
    for t in range(4):
        assert [v for v in values(said) if v[0] == t] == [(t, i) for i in range(500)]


@pytest.mark.parametrize("spec", PROCESSES)
def test_what_a_task_forks_speaks_to_nobody(spec: str, heard: Heard) -> None:
    with fm.executor(spec) as executor:
        assert executor.submit(speakers.fork_and_say).result() == 0
    assert values(heard.said()) == ["mine"]


def test_a_forked_child_of_the_program_is_not_heard(heard: Heard) -> None:
    pid = os.fork()
    if pid == 0:
        fm.emit("child")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    fm.emit("parent")
    assert values(heard.said()) == ["parent"]


# ------------------------------------------------------------------- for whom, and when


def test_within_says_for_whom_a_task_works() -> None:
    told: list[Any] = []
    run = Emitter("graph")
    run.attach(told.append)
    run.begin(dict)
    try:
        for spec in CONTEXTS:
            with fm.executor(spec) as executor:
                executor.submit(speakers.say_within, run.id, spec).result()
                run.emit("task_finished", spec)
                run.settle(20)
                mine = [event for event in told if event["name"] == spec]
                assert [event["kind"] for event in mine] == ["said", "said", "task_finished"]
                assert mine[1]["data"] == {"value": "inner", "step": 3}
    finally:
        run.finish(5)
    assert {event["run"] for event in told} == {run.id}


@pytest.mark.parametrize("way", ["result", "callback", "map", "asyncio", "as_completed"])
def test_words_are_there_before_what_is_told_of_the_outcome(way: str, heard: Heard) -> None:
    run = Emitter("test")
    with fm.ProcessPool(2) as pool:
        for n in range(1, 30):
            _outcome(pool, way, n, run)
    kinds = [e["kind"] for e in heard.end() if e["kind"] in ("said", "task_finished")]
    assert kinds == [k for n in range(1, 30) for k in ["said"] * n + ["task_finished"]]


def test_words_are_there_before_an_outcome_that_another_thread_has_read(heard: Heard) -> None:
    """Who turns the pool, also the thread of the events, reads outcomes for all."""
    run = Emitter("test")
    with fm.ProcessPool(1) as pool:
        for ordered in (True, False):
            results = pool.map(speakers.say_numbers, [3], ordered=ordered)
            (task,) = (*results._line, *results._flying)
            eventually(lambda: pool._core.turn() or task.done)  # noqa: B023
            assert next(results) == 3
            run.emit("task_finished")
    kinds = [e["kind"] for e in heard.end() if e["kind"] in ("said", "task_finished")]
    assert kinds == [*["said"] * 3, "task_finished"] * 2


def _outcome(pool: Any, way: str, n: int, run: Emitter) -> None:
    """One task, and an event when its outcome is known."""
    if way == "asyncio":

        async def main() -> None:
            await pool.run(speakers.say_numbers, n)
            run.emit("task_finished")

        asyncio.run(main())
        return
    if way == "map":
        for _ in pool.map(speakers.say_numbers, [n]):
            run.emit("task_finished")
        return
    future = pool.submit(speakers.say_numbers, n)
    if way == "callback":
        done = threading.Event()
        future.add_done_callback(lambda _: (run.emit("task_finished"), done.set()))
        assert done.wait(20)
        return
    if way == "as_completed":
        for one in as_completed([future]):
            one.result()
            run.emit("task_finished")
        return
    future.result()
    run.emit("task_finished")


def test_the_place_of_a_run_is_a_variable_of_the_context() -> None:
    assert _said.here() is None
    with _said.within("a", "b", c=1):
        assert _said.here() == ("a", "b", {"c": 1}, None)
        assert events.current() is None  # no run of this process
        with _said.within("d"):
            assert _said.here() == ("d", None, {}, None)
        assert _said.here() == ("a", "b", {"c": 1}, None)
    assert _said.here() is None

"""What goes wrong in a graph, in every executor: scenarios 20 to 25, and sections 6 and 7."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import graph_tasks as g
from graph_tasks import (
    ASYNC,
    ENGINES,
    FORK,
    PARALLEL,
    PROCESSES,
    SEQUENTIAL,
    THREADED,
    everywhere,
    in_engines,
)

KEPT = fm.node(g.fail_on_three, output_name="kept")
AFTER = fm.node(g.after_log, output_name="after")
APART = fm.node(lambda x: -x, output_name="apart")


def failing(tmp_path: Path) -> tuple[fm.Graph, g.Log]:
    return fm.Graph([KEPT, AFTER, APART]), g.Log(tmp_path)


# ------------------------------------------------------------------ 20: one item raises


@everywhere
def test_20_a_failed_item_leaves_one_record(engine: str, tmp_path: Path) -> None:
    graph, log = failing(tmp_path)
    rows = graph.map({"x": range(10), "log": log}, map_over="x", on_error="skip", engine=engine)
    assert len(rows) == 10
    assert [row["apart"] for row in rows] == [-x for x in range(10)]
    good = [x for x in range(10) if x != 3]
    assert [rows["after"][x] for x in good] == [rows["kept"][x] for x in good] == good
    failure = rows[3]["kept"]
    assert rows[3]["after"] is failure
    assert not rows.ok
    assert list(rows.failures) == [failure]
    assert isinstance(failure, fm.Failure)
    assert failure.index == 3
    assert failure.stage == "fail_on_three"
    assert failure.item == {"x": 3}
    assert isinstance(failure.error, ValueError)
    assert str(failure.error) == "three is wrong"
    assert set(failure.outputs) == {"kept", "after"}
    assert failure.attempts == 1
    assert "fail_on_three" in failure.traceback and "three is wrong" in failure.traceback
    with pytest.raises(ValueError, match="three is wrong"):
        failure.reproduce()
    assert sorted(log.lines) == sorted(f"after {x}" for x in good)
    again = pickle.loads(pickle.dumps(failure))
    assert (again.index, again.stage, again.item) == (3, "fail_on_three", {"x": 3})


@everywhere
def test_20_raise_gives_the_first_failing_item_in_item_order(engine: str) -> None:
    def late(x: int) -> int:
        if x == 2:
            time.sleep(0.05)
        if x in (2, 4, 5):
            raise KeyError(x)
        return x

    for _ in range(3):
        with pytest.raises(KeyError) as error:
            fm.Graph([late]).map({"x": range(12)}, map_over="x", engine=engine)
        assert error.value.args == (2,)
        notes = "\n".join(error.value.__notes__)
        assert "late" in notes and "2" in notes
        failure = error.value.failure  # type: ignore[attr-defined]
        assert (failure.index, failure.stage, failure.item) == (2, "late", {"x": 2})


@everywhere
def test_20_a_lazy_map_gives_the_rows_before_the_failure(engine: str) -> None:
    rows = fm.Graph([KEPT]).imap({"x": range(1000)}, map_over="x", engine=engine)
    assert [next(rows)["kept"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three is wrong"):
        next(rows)
    with pytest.raises(StopIteration):
        next(rows)


@everywhere
def test_20_run_raises_the_nodes_own_exception(engine: str) -> None:
    graph = fm.Graph([KEPT, fm.node(lambda kept: kept, output_name="next")])
    with pytest.raises(ValueError, match="three is wrong") as error:
        graph.run({"x": 3}, engine=engine)
    assert any("fail_on_three" in note for note in error.value.__notes__)
    assert error.value.failure.stage == "fail_on_three"  # type: ignore[attr-defined]


@everywhere
def test_20_one_exception_object_raised_for_many_items_tells_of_the_last(engine: str) -> None:
    error = ValueError("always the same")

    def same(x: int) -> int:
        raise error

    graph = fm.Graph([same])
    seen = []
    for x in (1, 2):
        with pytest.raises(ValueError) as caught:
            graph.map({"x": [x, x]}, map_over="x", engine=engine)
        seen.append(len(caught.value.__notes__))
    assert seen[0] == seen[1]


@everywhere
def test_20_nothing_is_sent_after_a_failure(engine: str, tmp_path: Path) -> None:
    def slow(x: int, log: Any) -> int:
        log("called", x)
        time.sleep(0.002)
        if x == 3:
            raise ValueError(x)
        return x

    log = g.Log(tmp_path)
    with pytest.raises(ValueError):
        fm.Graph([slow]).map({"x": range(2000), "log": log}, map_over="x", engine=engine)
    assert {f"called {x}" for x in range(4)} <= set(log.lines)
    assert len(log.lines) < 200


@everywhere
def test_20_all_items_fail(engine: str) -> None:
    bad = fm.node(lambda x: 1 // 0, output_name="bad")
    rows = fm.Graph([bad]).map({"x": range(20)}, map_over="x", on_error="skip", engine=engine)
    assert len(rows.failures) == 20
    assert [failure.index for failure in rows["bad"]] == list(range(20))
    assert all(isinstance(failure.error, ZeroDivisionError) for failure in rows["bad"])


@everywhere
def test_20_nested_failures(engine: str) -> None:
    inner = fm.Graph([fm.node(g.fail_on_three, output_name="kept")], name="each")
    skipping = fm.Graph([
        inner.rename(x="xs", kept="all").as_node(map_over="xs", on_error="skip"),
        fm.node(lambda all: [type(one).__name__ for one in all], output_name="types"),
    ])  # fmt: skip
    result = skipping.run({"xs": [1, 3, 5]}, engine=engine)
    assert result["types"] == ["int", "Failure", "int"]
    failure = result["all"][1]
    assert failure.index == 1
    assert "each" in failure.stage and "fail_on_three" in failure.stage
    raising = fm.Graph([inner.rename(x="xs", kept="all").as_node(map_over="xs")])
    with pytest.raises(ValueError, match="three is wrong") as error:
        raising.run({"xs": [1, 3, 5, 3]}, engine=engine)
    assert "each" in error.value.failure.stage  # type: ignore[attr-defined]
    rows = raising.map(
        {"xs": [[1], [3], [], [4, 3]]}, map_over="xs", on_error="skip", engine=engine
    )
    assert rows[0]["all"] == [1] and rows[2]["all"] == []
    assert [type(rows[n]["all"]).__name__ for n in (1, 3)] == ["Failure"] * 2


# ----------------------------------------------------------- 21: errors that cannot travel


@everywhere
@pytest.mark.parametrize(
    ("task", "name", "text"),
    [(g.raise_unpicklable, "Unpicklable", "has a lock"), (g.raise_unloadable, "Unloadable", "two")],
)
def test_21_an_error_that_cannot_travel(engine: str, task: Any, name: str, text: str) -> None:
    graph = fm.Graph([fm.node(task, output_name="out")])
    rows = graph.map({"x": range(6)}, map_over="x", on_error="skip", engine=engine)
    failure = rows[3]["out"]
    shown = f"{type(failure.error).__name__} {failure.error!r} {failure.error}"
    assert name in shown + getattr(failure.error, "type_name", "")
    assert text in shown
    assert [rows["out"][x] for x in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]


@in_engines(*PROCESSES)
def test_21_values_that_cannot_travel_name_node_and_path(engine: str) -> None:
    makes = fm.node(lambda x: {"a": [x, open(os.devnull)]}, output_name="made", name="opens")  # noqa: SIM115
    with pytest.raises(Exception) as error:
        fm.Graph([makes]).map({"x": [1, 2]}, map_over="x", engine=engine)
    text = str(error.value) + "\n".join(getattr(error.value, "__notes__", ()))
    assert "opens" in text and "['a'][1]" in text


@in_engines(*PROCESSES)
def test_21_an_input_that_cannot_be_sent_is_that_items_failure(engine: str) -> None:
    import threading

    graph = fm.Graph([fm.node(lambda x: 1, output_name="out", name="takes")])
    rows = graph.map(
        {"x": [1, {"l": threading.Lock()}, 3]}, map_over="x", on_error="skip", engine=engine
    )
    if engine == PARALLEL:
        assert rows["out"][::2] == [1, 1]
        failure = rows[1]["out"]
        assert "takes" in failure.stage and "['l']" in str(failure.error)
    else:
        assert rows["out"] == [1, 1, 1]  # a fork has all that was there


# --------------------------------------------------------------------- 23: a worker dies


@in_engines(*PROCESSES)
@pytest.mark.parametrize("way", ["exit", "kill", "segv"])
def test_23_a_death_costs_its_item_alone(engine: str, way: str) -> None:
    graph = fm.Graph([fm.node(g.die_on_three, output_name="out"), APART])
    rows = graph.map({"x": range(12), "way": way}, map_over="x", on_error="skip", engine=engine)
    failure = rows[3]["out"]
    assert isinstance(failure.error, fm.WorkerDied)
    assert failure.index == 3 and failure.item == {"x": 3, "way": way}
    assert [rows["out"][x] for x in range(12) if x != 3] == [x for x in range(12) if x != 3]
    with pytest.raises(fm.WorkerDied):
        graph.map({"x": range(12), "way": way}, map_over="x", engine=engine)


@in_engines(*PROCESSES)
def test_23_a_death_is_retried_if_that_is_asked_for(engine: str, tmp_path: Path) -> None:
    node = fm.node(g.die_once, output_name="out", retry=fm.retry(3, on=fm.WorkerDied))
    log = g.Log(tmp_path)
    rows = fm.Graph([node]).map({"x": range(6), "log": log}, map_over="x", engine=engine)
    assert rows["out"] == list(range(6))
    assert log.count("tried 3") == 2


# --------------------------------------------------------------------- 24: exits, Ctrl-C


@everywhere
def test_24_system_exit_is_that_nodes_failure(engine: str) -> None:
    graph = fm.Graph([fm.node(g.exit_on_three, output_name="out")])
    rows = graph.map({"x": range(6)}, map_over="x", on_error="skip", engine=engine)
    failure = rows[3]["out"]
    assert isinstance(failure.error, SystemExit)
    assert "leaving" in str(failure.error)
    assert len(rows.failures) == 1


CTRL_C = """
import os, signal, sys, threading, time
import forkmill as fm
import graph_tasks as g

log = g.Log(__import__("pathlib").Path({folder!r}))

def slow(x, log):
    log("began", x)
    time.sleep(0.05)
    log("ended", x)
    return x

def interrupt():
    from tasks import eventually
    eventually(lambda: len(log.lines) >= 4)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    fm.Graph([slow]).map({{"x": range(10_000), "log": log}}, map_over="x", engine={engine!r})
except KeyboardInterrupt as error:
    rows = error.result
    done = [row for row in rows if row.get("slow") is not None]
    began = sum(line.startswith("began") for line in log.lines)
    ended = sum(line.startswith("ended") for line in log.lines)
    print("stopped", 0 < len(done) < 1000, began - ended <= 1, flush=True)
"""


@everywhere
def test_24_ctrl_c_once_ends_with_what_there_is(
    engine: str, tmp_path: Path, run_script: Any
) -> None:
    script = run_script(CTRL_C.format(folder=str(tmp_path), engine=engine), 30)
    assert script.stdout.strip() == "stopped True True", script.report()


KILLED = """
import os, signal, time
import forkmill as fm

def slow(x):
    time.sleep(0.02)
    return x

def numbers():
    for n in range(10_000):
        if n == 30:
            {end}
        yield n

for _ in fm.Graph([slow]).imap({{"x": numbers()}}, map_over="x", engine={engine!r}):
    pass
"""


@in_engines(*PROCESSES)
@pytest.mark.parametrize(
    ("end", "code"), [("os._exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -9)]
)
def test_24_no_worker_outlives_its_parent(
    engine: str, end: str, code: int, run_script: Any
) -> None:
    run_script(KILLED.format(end=end, engine=engine), 30, expect=code)


# --------------------------------------------------------------------- 25: retry, timeout


@everywhere
def test_25_a_listed_exception_is_tried_again(engine: str, tmp_path: Path) -> None:
    log = g.Log(tmp_path)
    node = fm.node(g.fail_twice, output_name="out", retry=fm.retry(3, on=ConnectionError))
    rows = fm.Graph([node]).map({"x": range(4), "log": log}, map_over="x", engine=engine)
    assert rows["out"] == list(range(4))
    assert rows.ok
    assert all(log.count(f"tried {x}") == 3 for x in range(4))


@everywhere
def test_25_attempts_are_recorded_and_others_are_not_tried_again(
    engine: str, tmp_path: Path
) -> None:
    for on, attempts in ((ConnectionError, 2), (KeyError, 1)):
        log = g.Log(tmp_path, on.__name__)
        node = fm.node(g.fail_twice, output_name="out", retry=fm.retry(2, on=on))
        rows = fm.Graph([node]).map(
            {"x": [1], "log": log}, map_over="x", on_error="skip", engine=engine
        )
        assert rows[0]["out"].attempts == attempts
        assert log.count("tried 1") == attempts


@in_engines(*PROCESSES)
def test_25_a_timeout_kills_the_item_that_is_stuck(engine: str) -> None:
    node = fm.node(g.hang_on_three, output_name="out", timeout=0.3)
    graph = fm.Graph([node, fm.node(lambda out: out + 1, output_name="next"), APART])
    rows = graph.map({"x": range(6)}, map_over="x", on_error="skip", engine=engine)
    assert isinstance(rows[3]["out"].error, fm.TaskTimeout)
    assert rows[3]["next"] is rows[3]["out"]
    good = [0, 1, 2, 4, 5]
    assert [rows["next"][x] for x in good] == [x + 1 for x in good]
    assert rows["apart"] == [-x for x in range(6)]


@in_engines(SEQUENTIAL, THREADED)
def test_25_a_timeout_where_nothing_can_be_stopped_is_refused(engine: str) -> None:
    node = fm.node(lambda x: pytest.fail("ran"), output_name="out", timeout=1)
    with pytest.raises(fm.BuildError, match="timeout"):
        fm.Graph([node]).run({"x": 1}, engine=engine)
    with pytest.raises(fm.BuildError, match="timeout"):
        fm.Graph([node]).map({"x": [1]}, map_over="x", engine=engine)


def test_25_a_timeout_of_a_coroutine() -> None:
    import asyncio

    async def stuck(x: int) -> int:
        if x == 1:
            await asyncio.sleep(600)
        return x

    node = fm.node(stuck, output_name="out", timeout=0.1)
    rows = fm.Graph([node]).map({"x": range(3)}, map_over="x", on_error="skip", engine=ASYNC)
    assert [rows["out"][x] for x in (0, 2)] == [0, 2]
    assert isinstance(rows[1]["out"].error, TimeoutError)


@everywhere
def test_every_failing_branch_is_told_and_leaves_nothing(engine: str) -> None:
    one = fm.node(lambda x: 1 // (x % 2), output_name="one", name="odd_only")
    two = fm.node(lambda x: 1 // (x % 3), output_name="two", name="no_threes")
    both = fm.node(lambda one, two: one + two, output_name="both")
    for _ in range(2):
        rows = fm.Graph([one, two, both]).map(
            {"x": range(12)}, map_over="x", on_error="skip", engine=engine
        )
        for x, row in enumerate(rows):
            assert isinstance(row["one"], fm.Failure) == (x % 2 == 0)
            assert isinstance(row["two"], fm.Failure) == (x % 3 == 0)
            assert isinstance(row["both"], fm.Failure) == (x % 2 == 0 or x % 3 == 0)
            if x % 6 == 0:
                assert row["both"] in (row["one"], row["two"])


def test_all_engines_are_meant() -> None:
    assert set(ENGINES) == {SEQUENTIAL, ASYNC, THREADED, PARALLEL, FORK}

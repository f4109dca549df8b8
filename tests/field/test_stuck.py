"""A finished run is never called stuck, and loses nothing, however its threads are switched."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
from forkmill.contexts.lanes import lane as lanes
from forkmill.pipeline.run import driver as drivers

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads are switched as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def plus(item: int) -> int:
    return item + 1


def twice(item: int) -> Iterator[int]:
    yield item
    yield item


def shapes(context: str) -> dict[str, tuple[Any, list[int]]]:
    def line(n: int = 2) -> fm.Pipeline:
        return fm.Pipeline().source(range(n))

    return {
        "one": (line().map(plus, context=context), [1, 2]),
        "none": (line(0).map(plus, context=context), []),
        "two": (line().map(plus, context=context).map(plus, context=context), [2, 3]),
        "stream": (line().stage(twice, context=context), [0, 0, 1, 1]),
        "producer": (fm.Pipeline().source(lambda: range(3), context=context).map(plus), [1, 2, 3]),
        "fed": (line(3).batch(2, max_wait=60).unbatch().map(plus, context=context), [1, 2, 3]),
        "ordered": (line(3).map(plus, context=context, ordered=True), [1, 2, 3]),
    }


def sweep(context: str, times: int) -> None:
    for _ in range(times):
        for name in shapes(context):
            line, expected = shapes(context)[name]
            assert sorted(line.run().outputs) == expected, name


@pytest.mark.parametrize("context", ["thread:1", "thread:2", "async:1"])
def test_short_runs_are_never_stuck(restless: None, context: str) -> None:
    sweep(context, 20)


@pytest.mark.parametrize("context", ["ipc_fork:1", "cow_fork:1"])
def test_short_runs_through_processes_are_never_stuck(restless: None, context: str) -> None:
    sweep(context, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("context", "times"),
    [
        ("thread:1", 720),
        ("thread:2", 300),
        ("async:1", 300),
        ("ipc_fork:1", 60),
        ("cow_fork:1", 60),
    ],
)
def test_ten_thousand_short_runs(restless: None, context: str, times: int) -> None:
    sweep(context, times)


@pytest.mark.parametrize("where", ["before the sleep", "after the look"])
def test_a_lane_that_ends_at_the_wrong_moment_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It comes to its end after the driver has looked, and has not rung when it is asked."""
    asked, ended = threading.Event(), threading.Event()
    finished, outside = lanes.SharedLane._finished, drivers.Driver._outside

    def slow_finished(self: Any, pieces: Any = ()) -> None:
        assert asked.wait(20)
        notify, self._notify = self._notify, None
        finished(self, pieces)  # over, and nobody has been told
        ended.set()
        if notify is not None:
            if where == "after the look":
                threading.Event().wait(0.05)
            notify()
        self._notify = notify

    def slow_outside(operator: Any) -> bool:
        if operator.name == "x" and operator.state.value == "ending" and not ended.is_set():
            asked.set()
            assert ended.wait(20)
        return outside(operator)

    monkeypatch.setattr(lanes.SharedLane, "_finished", slow_finished)
    monkeypatch.setattr(drivers.Driver, "_outside", staticmethod(slow_outside))
    line = fm.Pipeline().source(range(3)).map(plus, context="thread:1", name="x")
    assert sorted(line.run().outputs) == [1, 2, 3]
    assert asked.is_set()


def test_a_source_that_ends_at_the_wrong_moment_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One with a thread of its own says that it is over, and rings later."""
    asked, over = threading.Event(), threading.Event()
    outside = drivers.Driver._outside

    def source() -> Iterator[int]:
        yield 1
        yield 2  # the batch is full: no clock runs
        assert asked.wait(20)

    def slow_outside(operator: Any) -> bool:
        feeder = getattr(operator, "feeder", None)
        if feeder is not None and not feeder.items and not over.is_set():
            asked.set()
            while not feeder.over:
                threading.Event().wait(0.001)
            over.set()
        return outside(operator)

    monkeypatch.setattr(drivers.Driver, "_outside", staticmethod(slow_outside))
    assert fm.Pipeline().source(source).batch(2, max_wait=60).run().outputs == [[1, 2]]
    assert over.is_set()

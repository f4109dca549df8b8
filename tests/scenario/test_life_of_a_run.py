"""Scenarios 54 to 60: hooks, runs, changes by subclasses, figures."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flows import (
    CONTEXTS,
    FORK,
    MASTER,
    PROCESSES,
    THREAD,
    WORKERS,
    Into,
    balanced,
    double,
    in_contexts,
    meeting,
    multiset,
    of,
    ok,
    outputs,
    same,
)

import forkmill as fm
import tasks
from forkmill.runs.stats import Reservoir

# ------------------------------------------------------------------ 54, 55: hooks


class Hooked(fm.Pipeline):
    """Notes its hooks in the order of the calls."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.said: list[str] = []
        self.wrong = wrong

    @fm.producer
    def numbers(self) -> Iterator[int]:
        yield from range(3)

    @fm.stage
    def body(self, x: int) -> int:
        self.said.append(f"body {x}")
        if self.wrong:
            raise ValueError(x)
        return x

    @fm.before_run
    def begin(self) -> None:
        self.said.append("before_run")

    @fm.after_run
    def end(self) -> None:
        self.said.append("after_run")

    @fm.before_stage
    def begin_stage(self, name: str) -> None:
        self.said.append(f"before {name}")

    @fm.after_stage
    def end_stage(self, name: str) -> None:
        self.said.append(f"after {name}")


ENTRIES = {
    "run": lambda p: p.run(),
    "stream": lambda p: list(p.stream()),
    "start": lambda p: p.start().result(timeout=20),
    "orchestrator": lambda p: fm.Orchestrator(p).execute(),
    "plan": lambda p: fm.Orchestrator(p).execute(fm.ExecutionPlan(p).plan()),
}


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("entry", ENTRIES)
def test_54_hooks_come_exactly_once_and_around_the_body(entry: str, wrong: bool) -> None:
    hooked = Hooked(wrong)
    with pytest.raises(ValueError) if wrong else contextlib.nullcontext():
        ENTRIES[entry](hooked)
    said = hooked.said
    assert said[0] == "before_run" and said[-1] == "after_run"
    for hook in ("before_run", "after_run", "before body", "after body", "before numbers"):
        assert said.count(hook) == 1, hook
    assert said.count("after numbers") == 1
    bodies = [i for i, word in enumerate(said) if word.startswith("body")]
    assert said.index("before body") < min(bodies) <= max(bodies) < said.index("after body")


def test_54_nested_stages_have_hooks_too() -> None:
    said = Into()
    inner = fm.Pipeline("inner").map(same, name="deep")
    line = fm.Pipeline(before_stage=said, after_stage=said).source([1], name="rows")
    ok(line.through(inner).map(same, name="last").run())
    assert len([name for name in said if name.endswith("deep")]) == 2


def test_54_hooks_of_one_stage() -> None:
    class Small(fm.Pipeline):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield 1

        @fm.stage
        def body(self, x: int) -> int:
            self.said.append("body")
            return x

        @fm.before_stage
        def whole(self) -> None:
            self.said.append("whole")

        @body.before_stage
        def own(self) -> None:
            self.said.append("own")

    small = Small()
    ok(small.run())
    assert small.said == ["whole", "whole", "own", "body"]


@pytest.mark.parametrize(("kind", "forks"), [(FORK, 6), (WORKERS, 2)])
def test_55_fork_hooks(kind: str, forks: int, tmp_path: Path) -> None:
    before, after = tasks.Log(tmp_path), tasks.Log(tmp_path)
    line = fm.Pipeline(
        before_fork=lambda: tasks.note_here(before.path, os.getpid()),
        after_fork=lambda: tasks.note_here(after.path, os.getpid()),
    )

    def work(_: int) -> int:
        if kind == WORKERS:  # both of them are there before anything is done
            tasks.eventually(lambda: len(after.counts()) == forks)
        return os.getpid()

    pids = set(outputs(line.source(range(6)).map(work, context=of(kind))))
    assert set(before.counts()) == {MASTER}
    counts = after.counts()
    assert len(counts) == forks and set(counts.values()) == {1} and pids <= set(counts)
    assert kind != FORK or len(pids) == forks


@in_contexts(*PROCESSES)
def test_55_hooks_of_the_pipeline_come_before_the_stage_s_own(kind: str, tmp_path: Path) -> None:
    before, after = tasks.Log(tmp_path), tasks.Log(tmp_path)

    class Forks(fm.Pipeline):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield 1

        @fm.stage(context=of(kind, 1))
        def work(self, x: int) -> int:
            return x

        @work.before_fork
        def own_before(self) -> None:
            tasks.note_here(before.path, 2)

        @fm.before_fork
        def whole_before(self) -> None:
            tasks.note_here(before.path, 1)

        @work.after_fork
        def own_after(self) -> None:
            tasks.note_here(after.path, 2)

        @fm.after_fork
        def whole_after(self) -> None:
            tasks.note_here(after.path, 1)

    assert outputs(Forks()) == [1]
    for log in before, after:
        assert log.entries() == [1, 2]  # the pipeline's, the stage's


# ------------------------------------------------------------------ setup, state, on_end


@pytest.mark.parametrize(("kind", "copies"), [("inline", 1), (THREAD, 1), (WORKERS, 2)])
def test_setup_and_teardown_once_per_copy_of_the_state(
    kind: str, copies: int, tmp_path: Path
) -> None:
    up, down = tasks.Log(tmp_path), tasks.Log(tmp_path)
    meet = meeting(tmp_path, copies)

    class Stateful(fm.Pipeline):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(6)

        @fm.stage(context=of(kind))
        def work(self, x: int) -> tuple[int, int]:
            meet()
            return self.base + x, os.getpid()

        @work.setup
        def begin(self) -> None:
            tasks.note_here(up.path, os.getpid())
            self.base = 100

        @work.teardown
        def end(self) -> None:
            tasks.note_here(down.path, os.getpid())

    got = outputs(Stateful())
    assert multiset(x for x, _ in got) == multiset(range(100, 106))
    assert sum(up.counts().values()) == copies
    assert up.counts() == down.counts()


@pytest.mark.parametrize(("kind", "copies"), [("inline", 1), (THREAD, 1), (WORKERS, 2)])
def test_on_end_once_per_copy_of_the_state_after_its_last_item(
    kind: str, copies: int, tmp_path: Path
) -> None:
    meet = meeting(tmp_path, copies)

    class Totals(fm.Pipeline):
        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(30)

        @fm.stage(context=of(kind))
        def count(self, x: int) -> Iterator[int]:
            meet()
            self.seen += 1
            yield from ()

        @count.on_end
        def total(self) -> Iterator[int]:
            yield self.seen

        @fm.stage
        def keep(self, n: int) -> int:
            return n

    got = outputs(Totals())
    assert len(got) == copies and sum(got) == 30


@in_contexts(*PROCESSES)
def test_changes_in_a_child_never_come_back(kind: str) -> None:
    class Counts(fm.Pipeline):
        def __init__(self) -> None:
            super().__init__()
            self.n = 7

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(4)

        @fm.stage(context=of(kind))
        def work(self, x: int) -> int:
            self.n += 1
            return self.n

    counts = Counts()
    got = outputs(counts)
    assert counts.n == 7
    if kind == FORK:
        assert got == [8] * 4  # each has the state as of the run's start


@in_contexts(*CONTEXTS)
def test_one_key_meets_one_copy_of_the_state(kind: str) -> None:
    if kind == FORK:
        return  # no state outlives an item there

    class Keyed(fm.Pipeline):
        def __init__(self) -> None:
            super().__init__()
            self.seen: dict[int, list[int]] = {}

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(60)

        @fm.stage(context=of(kind), key=lambda x: x % 7)
        def work(self, x: int) -> Iterator[Any]:
            self.seen.setdefault(x % 7, []).append(x)
            yield from ()

        @work.on_end
        def finish(self) -> Iterator[tuple[int, list[int]]]:
            yield from self.seen.items()

    got = outputs(Keyed())
    # Threads have one state for all, and two of them may take neighbours: no order is promised.
    assert sorted((key, sorted(of)) for key, of in got) == [
        (k, [*range(k, 60, 7)]) for k in range(7)
    ]


# ------------------------------------------------------------------ 56: runs


@in_contexts(*CONTEXTS)
def test_56_the_same_object_runs_twice(kind: str) -> None:
    line = fm.Pipeline().source(range(5)).map(double, context=of(kind)).batch(2).unbatch()
    for _ in range(2):
        assert multiset(outputs(line)) == multiset(range(0, 10, 2))


@in_contexts(*CONTEXTS)
def test_56_two_runs_at_once(kind: str) -> None:
    line = fm.Pipeline().source(range(50)).map(double, context=of(kind))
    handles = [line.start(), line.start()]
    for handle in handles:
        assert multiset(ok(handle.result(timeout=30)).outputs) == multiset(range(0, 100, 2))
        assert handle.done()


@in_contexts(*CONTEXTS)
def test_56_two_instances_at_once_are_independent(kind: str) -> None:
    class Adds(fm.Pipeline):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.n = n
            self.got: list[int] = []

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(30)

        @fm.stage(context=of(kind))
        def add(self, x: int) -> int:
            return x + self.n

        @fm.consumer
        def keep(self, x: int) -> None:
            self.got.append(x)

    both = Adds(100), Adds(1000)
    handles = [one.start() for one in both]
    for one, handle in zip(both, handles, strict=True):
        ok(handle.result(timeout=30))
        assert sorted(one.got) == [*range(one.n, one.n + 30)]


# ------------------------------------------------------------------ 58: subclasses


class Merging(fm.Pipeline):
    def __init__(self) -> None:
        super().__init__()
        self.merged: list[int] = []
        self.side: list[int] = []

    @fm.producer(to="merge")
    def a(self) -> Iterator[int]:
        yield from range(3)

    @fm.producer(to="merge")
    def b(self) -> Iterator[int]:
        yield from range(10, 16)

    @fm.consumer
    def merge(self, x: int) -> None:
        self.merged.append(x)

    @fm.consumer(from_=())
    def other(self, x: int) -> None:
        self.side.append(x)


def test_58_reroute() -> None:
    plain = Merging()
    ok(plain.run())
    assert (len(plain.merged), len(plain.side)) == (9, 0)

    class One(Merging):
        reroute = {"a": ("other",)}

    one = One()
    ok(one.run())
    assert (len(one.merged), len(one.side)) == (6, 3)

    class Both(Merging):
        reroute = {"a": ("other",), "b": ("other",)}

    both = Both()
    ok(both.run())
    assert (len(both.merged), len(both.side)) == (0, 9)


class Base(fm.Pipeline):
    @fm.producer
    def numbers(self) -> Iterator[int]:
        yield from range(3)

    @fm.stage
    def parse(self, x: int) -> int:
        return x + 1

    @fm.stage
    def audit(self, x: int) -> int:
        return x * 10


def test_subclasses_add_override_insert_and_skip() -> None:
    class Adds(Base):
        @fm.stage
        def last(self, x: int) -> str:
            return str(x)

    assert outputs(Adds()) == ["10", "20", "30"]

    class Overrides(Base):
        @fm.stage
        def parse(self, x: int) -> int:
            return super().parse(x) + 100

    assert outputs(Overrides()) == [1010, 1020, 1030]

    class Skips(Base):
        skip = ("audit",)

    assert outputs(Skips()) == [1, 2, 3]

    def check(x: int) -> int:
        return -x

    class Inserts(Base):
        insert = {"after": {"parse": check}}

    assert outputs(Inserts()) == [-10, -20, -30]
    assert outputs(Base()) == [10, 20, 30]

    class Wrong(Base):
        skip = ("audti",)

    with pytest.raises(fm.BuildError, match="audit"):
        Wrong().run()


# ------------------------------------------------------------------ 59, 60: figures


@in_contexts(*CONTEXTS)
def test_59_the_bottleneck_has_the_most_busy_time(kind: str) -> None:
    def slow(x: int) -> int:
        time.sleep(0.04)
        return x

    line = (
        fm.Pipeline(context=of(kind))
        .source(range(6))
        .map(same, name="first")
        .map(slow, name="slow")
        .map(same, name="last")
    )
    result = ok(line.run())
    assert result.stats.bottleneck == "slow"
    stage = result.stats.stages["slow"]
    assert stage.busy >= 0.2
    assert 0 < stage.p50 <= stage.p90 <= stage.p99 < 10
    assert stage.p50 >= 0.03
    assert result.duration > 0
    balanced(result)
    for name in ("first", "slow", "last"):
        assert (result.stats.stages[name].in_, result.stats.stages[name].out) == (6, 6)


def test_60_a_watcher_changes_nothing() -> None:
    def rows() -> Iterator[int]:
        yield from range(200)

    events: list[Any] = []
    line = fm.Pipeline().source(rows).map(double, context="thread:2", ordered=True)
    handle = line.start(sinks=[events.append])

    def broken(event: Any) -> None:
        raise RuntimeError("a sink that raises")

    handle.attach(broken)
    handle.detach(broken)
    handle.attach(broken)
    result = ok(handle.result(timeout=20))
    assert result.outputs == [*range(0, 400, 2)]
    assert events


@in_contexts(*CONTEXTS)
def test_60_a_monitor_comes_and_goes_and_changes_nothing(kind: str) -> None:
    stop = threading.Event()

    def rows() -> Iterator[int]:
        for i in itertools.count():
            if stop.is_set():
                return
            yield i

    line = fm.Pipeline().source(rows, name="rows", queue_size=20)
    line = line.map(double, context=of(kind), ordered=True, queue_size=20)
    line = line.filter(lambda x: True, name="last")
    handle = line.start()
    monitor = fm.Monitor(keep=3)
    try:
        for _ in range(2):
            monitor.attach(handle)
            assert monitor.attached
            wait_until(lambda: monitor.stages)  # it told
            monitor.pause()
            seen, missed = monitor.seen, monitor.missed
            wait_until(lambda missed=missed: monitor.missed > missed)
            assert monitor.seen == seen
            monitor.resume()
            wait_until(lambda seen=seen: monitor.seen > seen)
            monitor.detach()
            assert not monitor.attached
            seen, known = monitor.seen, monitor.stages["last"]["in"]
            wait_until(lambda known=known: handle.stats()["last"].in_ > known)
            assert (monitor.seen, monitor.stages["last"]["in"]) == (seen, known)
    finally:
        stop.set()
    monitor.attach(handle)
    result = ok(handle.result(timeout=30))
    assert result.outputs == [*range(0, 2 * len(result.outputs), 2)]
    assert result.stats["last"].in_ == len(result.outputs) and result.stats.sink_errors == 0
    assert len(monitor.events) == 3 and monitor.events[-1]["kind"] == "run_finished"
    assert monitor.stages["last"]["in"] == len(result.outputs)
    assert sum(monitor.kinds.values()) == monitor.seen
    monitor.detach()
    monitor.attach(handle)  # over: nothing comes, nothing breaks


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_60_a_method_can_be_detached_as_any_other_sink() -> None:
    class Sink:
        def __init__(self) -> None:
            self.kinds: list[str] = []

        def take(self, event: Any) -> None:
            self.kinds.append(event["kind"])

    sink, stays = Sink(), Sink()
    there, gate = threading.Event(), threading.Event()

    def work(x: int) -> int:
        there.set()
        assert gate.wait(20)
        return x

    handle = fm.Pipeline().source(range(3)).map(work).start()
    assert there.wait(20)
    handle.attach(sink.take)
    handle.attach(stays.take)
    handle.detach(sink.take)
    gate.set()
    assert ok(handle.result(timeout=20)).stats.sink_errors == 0
    assert "run_finished" in stays.kinds and "run_finished" not in sink.kinds


def test_60_figures_are_bounded_however_many_items() -> None:
    def run(number: int) -> int:
        tracemalloc.start()
        try:
            handle = fm.Pipeline().source(range(number)).map(double).sink(same).start()
            monitor = fm.Monitor(handle, keep=10)
            result = ok(handle.result(timeout=55))
            monitor.detach()
            assert result.stats.stages["double"].in_ == number
            assert len(monitor.events) <= 10
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    run(100)
    assert run(1_000_000) < run(20_000) + 500_000


@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_60_percentiles_of_a_million_are_unbiased(order: str) -> None:
    number = 1_000_000
    values = [*range(number)]
    if order == "falling":
        values.reverse()
    elif order == "mixed":
        values = [i * 611_953 % number for i in values]
    sums = [0.0, 0.0, 0.0]
    runs = 3
    for seed in range(runs):
        reservoir = Reservoir(seed=seed)
        for value in values:
            reservoir.add(value)
        assert len(reservoir.sample) == reservoir.size == 1024 and reservoir.count == number
        found = reservoir.percentiles(0.5, 0.9, 0.99)
        sums = [a + (b or 0) / number for a, b in zip(sums, found, strict=True)]
    for total, part in zip(sums, (0.5, 0.9, 0.99), strict=True):
        error = (part * (1 - part) / 1024 / runs) ** 0.5  # of a mean of quantiles of samples
        assert abs(total / runs - part) < 4 * error


# ------------------------------------------------------------------ stream, start, stop


@in_contexts(*CONTEXTS)
def test_stream_pulls_no_more_than_its_windows(kind: str) -> None:
    pulled = itertools.count()
    seen = 0

    def rows() -> Iterator[int]:
        nonlocal seen
        for i in pulled:
            seen = i + 1
            yield i

    line = fm.Pipeline().source(rows, queue_size=5).map(double, context=of(kind), queue_size=5)
    stream = line.map(same, queue_size=5).stream()
    assert next(stream) % 2 == 0
    time.sleep(0.1)
    assert seen <= 5 * 3 + 2 * 2 + 1  # three queues, and what runs
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_an_all_inline_stream_makes_no_thread() -> None:
    before = threading.active_count()
    stream = fm.Pipeline().source(range(5)).map(double).batch(2).stream()
    assert next(stream) == [0, 2]
    assert threading.active_count() == before
    stream.close()


@in_contexts(*CONTEXTS)
def test_stop_drains(kind: str) -> None:
    got: list[int] = []
    going = threading.Event()

    def keep(x: int) -> None:
        got.append(x)
        going.set()

    line = fm.Pipeline().source(lambda: itertools.count())
    line = line.map(double, context=of(kind), ordered=True, queue_size=20)
    handle = line.sink(keep).start()
    assert going.wait(20) and not handle.done()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    handle.stop()
    result = handle.result(timeout=20)
    assert result.status == "stopped" and handle.done()
    assert got == [*range(0, 2 * len(got), 2)]
    balanced(result)


def test_a_small_queue_never_deadlocks() -> None:
    line = (
        fm.Pipeline(context="thread:2")
        .source(range(100), to=["a", "b"], queue_size=1)
        .map(same, name="a", to="merge", queue_size=1)
        .map(same, name="b", queue_size=1)
        .map(same, name="c", to="merge", queue_size=1)
        .batch(10, name="merge", queue_size=1)
        .unbatch(queue_size=1)
    )
    assert multiset(outputs(line)) == multiset([*range(100), *range(100)])


# ------------------------------------------------------------------ plan


def test_the_plan_says_who_runs_with_whom() -> None:
    line = (
        fm.Pipeline()
        .source(range(3), name="rows")
        .map(same, name="one")
        .map(same, name="two")
        .map(same, name="away", context="ipc_fork:2")
        .map(same, name="after")
        .batch(2, name="group", max_wait=1.0)
        .map(same, name="end")
    )
    plan = fm.ExecutionPlan(line)
    assert plan.plan() is plan
    assert plan.colocated_stages == {"rows": ["one", "two"]}
    assert plan.affinity_for("one") == "rows" == plan.affinity_for("two")
    assert plan.affinity_for("away") is None
    assert "away" in plan.independent_stages and "group" in plan.independent_stages
    assert "end" in plan.independent_stages  # its upstream is a batch
    assert plan.context_for("away").startswith("ipc_fork")
    assert plan.context_for("one").startswith("inline")
    for name in ("rows", "one", "two", "away", "after", "group", "end"):
        assert name in plan.describe() and name in plan.to_mermaid()


def test_an_orchestrator_is_reusable() -> None:
    line = fm.Pipeline().source(range(4)).map(double, context="ipc_fork:2", ordered=True)
    orchestrator = fm.Orchestrator(line)
    for _ in range(2):
        assert ok(orchestrator.execute()).outputs == [0, 2, 4, 6]


def test_async_stages() -> None:
    import asyncio

    async def fetch(x: int) -> int:
        await asyncio.sleep(0.01)
        return x * 2

    async def spread(x: int) -> Any:
        for i in range(2):
            await asyncio.sleep(0)
            yield x, i

    line = fm.Pipeline().source(range(20)).map(fetch, context="async:10", ordered=True)
    assert outputs(line) == [*range(0, 40, 2)]
    line = fm.Pipeline().source(range(3)).stage(spread, context="async:10", ordered=True)
    assert outputs(line) == [(x, i) for x in range(3) for i in range(2)]

"""What DESIGN.md promises of pipelines beyond the numbered scenarios."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flows import (
    CONTEXTS,
    FORK,
    PARALLEL,
    PROCESSES,
    THREAD,
    WORKERS,
    Into,
    balanced,
    in_contexts,
    multiset,
    of,
    ok,
    outputs,
    same,
)

import forkmill as fm
import tasks
from forkmill.pipeline.run.lanes import LaneOperator

# ------------------------------------------------------------------ options

OPTIONS: dict[str, Any] = {
    "name": "here",
    "context": "inline",
    "to": (),
    "from_": (),
    "routing": "round_robin",
    "copy": True,
    "ordered": True,
    "key": hash,
    "queue_size": 7,
    "on_error": fm.retry(2),
    "timeout": 3.0,
    "setup": print,
    "teardown": print,
}
VERBS: dict[str, Callable[..., Any]] = {
    "source": lambda **o: fm.Pipeline().source([], **o),
    "map": lambda **o: fm.Pipeline().map(same, **o),
    "flat_map": lambda **o: fm.Pipeline().flat_map(same, **o),
    "filter": lambda **o: fm.Pipeline().filter(same, **o),
    "stage": lambda **o: fm.Pipeline().stage(same, **o),
    "batch": lambda **o: fm.Pipeline().batch(2, **o),
    "unbatch": lambda **o: fm.Pipeline().unbatch(**o),
    "through": lambda **o: fm.Pipeline().through(fm.Pipeline().map(same), **o),
    "sink": lambda **o: fm.Pipeline().sink(same, **o),
    "@producer": lambda **o: fm.producer(**o)(same),
    "@stage": lambda **o: fm.stage(**o)(same),
    "@consumer": lambda **o: fm.consumer(**o)(same),
    "@batch": lambda **o: fm.batch(size=2, **o)(same),
    "fm.unbatch": lambda **o: fm.unbatch(**o),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_every_option_and_no_other(verb: str) -> None:
    for option, value in OPTIONS.items():
        assert VERBS[verb](**{option: value}) is not None
    with pytest.raises(fm.BuildError, match="queue_size"):
        VERBS[verb](queue_sise=3)


def test_chains_and_verbs_return_the_pipeline() -> None:
    line = fm.Pipeline()
    assert line.source([1]).map(same).batch(2).unbatch().sink(same) is line


# ------------------------------------------------------------------ the plan


def _second(**options: Any) -> list[str]:
    line = fm.Pipeline().source([1], name="rows").map(same, name="first")
    return fm.ExecutionPlan(line.map(same, name="second", **options)).plan().independent_stages


def test_what_is_independent_and_why() -> None:
    assert _second() == ["rows"]
    assert "second" in _second(context="inline")  # it says so
    assert "second" in _second(context="thread:2")
    several = fm.Pipeline().source([1], name="a").source([2], name="b").map(same, name="both")
    assert "both" in fm.ExecutionPlan(several).plan().independent_stages
    batched = fm.Pipeline().source([1], name="a").batch(2, name="plain").map(same, name="after")
    assert fm.ExecutionPlan(batched).plan().independent_stages == ["a", "after"]
    clocked = fm.Pipeline().source([1], name="a").batch(2, name="clocked", max_wait=1)
    assert "clocked" in fm.ExecutionPlan(clocked).plan().independent_stages
    nested = fm.Pipeline().source([1], name="a").through(fm.Pipeline().map(same, name="in"))
    plan = fm.ExecutionPlan(nested.map(same, name="after")).plan()
    assert "after" in plan.independent_stages


@pytest.mark.parametrize("order", [(THREAD, FORK, WORKERS), (WORKERS, THREAD, FORK)])
def test_forks_come_first_and_threads_after(
    order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_ = LaneOperator.open

    def noted(self: LaneOperator) -> None:
        opened.append(self.stage.spec.type)
        open_(self)

    monkeypatch.setattr(LaneOperator, "open", noted)
    line = fm.Pipeline().source(range(3))
    for kind in order:
        line = line.map(same, context=of(kind))
    assert multiset(outputs(line)) == multiset(range(3))
    assert opened[-1] == THREAD and set(opened) == set(order)


@pytest.mark.parametrize("n", [1, 3])
def test_exactly_n_workers_start(n: int, tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    line = fm.Pipeline(after_fork=lambda: tasks.note_here(log.path, os.getpid()))

    def work(_: int) -> int:
        tasks.eventually(lambda: len(log.counts()) >= n)  # else the run may end before the last
        return os.getpid()

    pids = set(outputs(line.source(range(30)).map(work, context=of(WORKERS, n))))
    assert len(log.entries()) == len(log.counts()) == n and pids <= set(log.counts())


# ------------------------------------------------------------------ the end of a stream


@in_contexts(*CONTEXTS)
def test_a_late_source_loses_nothing(kind: str) -> None:
    quick_over = threading.Event()

    def late() -> Iterator[Any]:
        assert quick_over.wait(20)
        for i in range(5):
            yield fm.to("last", ("late", i))

    line = (
        fm.Pipeline()
        .source(late, name="late", context="thread:1", to=())
        .source([("quick", i) for i in range(5)], name="quick")
        .map(same, name="last", context=of(kind))
    )
    got = []
    for output in line.stream():
        got.append(output)
        if len(got) == 5:
            quick_over.set()
    assert multiset(got) == multiset((name, i) for name in ("late", "quick") for i in range(5))


@in_contexts(*PROCESSES)
def test_a_stream_that_is_closed_ends_within_the_ladder(kind: str) -> None:
    def work(x: int) -> int:
        if x > 2:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        return x

    stream = fm.Pipeline().source(range(10)).map(work, context=of(kind)).stream()
    assert next(stream) in range(3)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 5  # the ladder is 1.5 s; the machine may be busy
    assert stream.result is not None and stream.result.status == "stopped"
    balanced(stream.result)


# ------------------------------------------------------------------ failures


@in_contexts(*CONTEXTS)
def test_a_retry_may_raise_in_the_end(kind: str) -> None:
    def refuse(x: int) -> int:
        raise LookupError(x)

    policy = fm.retry(attempts=2, backoff=0.001, then="raise")
    line = fm.Pipeline().source([1]).map(refuse, context=of(kind), on_error=policy)
    with pytest.raises(LookupError) as caught:
        line.run()
    (failure,) = caught.value.run_result.failures
    assert (failure.item, failure.attempts) == (1, 2)


@in_contexts(*CONTEXTS)
def test_pauses_before_retries_double_and_vary(kind: str) -> None:
    def refuse(x: int) -> int:
        raise LookupError(x)

    events: list[Any] = []
    policy = fm.retry(attempts=4, backoff=0.01, jitter=0.5)
    line = fm.Pipeline().source([1]).map(refuse, context=of(kind), on_error=policy)
    line.run(sinks=[events.append])
    pauses = [event["data"]["pause"] for event in events if event["kind"] == "retry"]
    assert len(pauses) == 3
    for pause, least in zip(pauses, (0.01, 0.02, 0.04), strict=True):
        assert least <= pause <= 1.5 * least


# ------------------------------------------------------------------ state, events, figures


def test_two_runs_share_the_parents_self() -> None:
    class Counts(fm.Pipeline):
        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(5)

        @fm.consumer(context="thread:1")
        def count(self, x: int) -> None:
            self.seen += 1

    counts = Counts()
    for _ in range(2):
        ok(counts.run())
    assert counts.seen == 10


@in_contexts(*CONTEXTS)
def test_events_are_plain_data_in_order(kind: str) -> None:
    def work(x: int) -> int:
        if x == 3:
            raise ValueError(x)
        if x == 5 and kind in PROCESSES:
            tasks.die("kill")
        return x

    events: list[Any] = []
    line = fm.Pipeline().source(range(8)).batch(2).unbatch()
    line = line.map(work, name="work", context=of(kind), on_error="skip")
    before = time.time()
    result = line.run(sinks=[events.append])
    assert json.loads(json.dumps(events)) == events
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    assert len({event["run"] for event in events}) == 1
    times = [event["time"] for event in events]
    assert before <= times[0] and times == sorted(times) and times[-1] <= time.time()
    kinds = multiset(event["kind"] for event in events)
    assert kinds["run_started"] == kinds["run_finished"] == 1
    assert kinds["stage_started"] == kinds["stage_finished"] == 4
    assert kinds["batch"] == 4 and kinds["item_failed"] == len(result.failures)
    assert kinds["worker_died"] == (1 if kind in PROCESSES else 0)


@in_contexts(*PARALLEL)
def test_items_that_wait_are_counted_as_waiting(kind: str) -> None:
    def slow(x: int) -> int:
        time.sleep(0.02)
        return x

    line = fm.Pipeline().source(range(8), name="rows").map(same, name="quick")
    line = line.map(slow, name="slow", context=of(kind, 1), queue_size=2)
    result = ok(line.map(same, name="last").run())
    slow_one = result.stats["slow"]
    assert slow_one.waiting > 0 and slow_one.busy >= 0.15
    assert slow_one.p99 is not None and slow_one.p99 >= 0.02
    assert result.stats.bottleneck == "slow"


INTERRUPTED = """
    import itertools, time
    import forkmill as fm

    def work(x):
        time.sleep(0.01)
        return x

    def keep(x):
        if x == 5:
            print("going", flush=True)

    if __name__ == "__main__":
        line = fm.Pipeline().source(itertools.count)
        line = line.map(work, context="ipc_fork:2", ordered=True, queue_size=4)
        line = line.map(work, context="thread:2", ordered=True, queue_size=4)
        line = line.map(work, context="cow_fork:2", ordered=True, queue_size=4).sink(keep)
        orchestrator = fm.Orchestrator(line)
        try:
            orchestrator.execute()
        except KeyboardInterrupt as stop:
            print(stop.run_result.status)
        line = fm.Pipeline().source(range(3)).map(work, context="ipc_fork:2", ordered=True)
        print(fm.Orchestrator(line).execute().outputs)
"""


def test_an_interrupted_orchestrator_releases_everything(start_script: Any) -> None:
    script = start_script(INTERRUPTED)
    script.wait_for("going")
    os.kill(script.pid, signal.SIGINT)
    assert script.wait(30) == 0, script.report()
    assert script.stdout.split("\n")[1:3] == ["stopped", "[0, 1, 2]"]


# ------------------------------------------------------------------ shapes by contexts


@pytest.mark.parametrize("second", CONTEXTS)
@pytest.mark.parametrize("first", CONTEXTS)
def test_every_context_feeds_every_other(first: str, second: str) -> None:
    def twice(x: int) -> Iterator[int]:
        yield x
        yield x

    got = Into()
    line = fm.Pipeline().source(range(7)).stage(twice, context=of(first)).batch(3)
    line = line.map(len, context=of(second)).sink(got)
    result = ok(line.run())
    assert sum(got) == 14 and all(0 < n <= 3 for n in got)
    balanced(result)

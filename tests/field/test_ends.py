"""Every run ends as it was promised: whatever blocks, loops or emits without end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import forkmill as fm
import tasks

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:subinterpreters need:RuntimeWarning"),
]

SOON = 5.0  # seconds: what is promised within one second, on a busy machine
CONTEXTS = ("inline", "thread:2", "interpreter:1", "async:2", "ipc_fork:1", "cow_fork:1")


def ended(handle: Any, timeout: float = SOON) -> Any:
    """The result of a run that has been told to end."""
    begun = time.monotonic()
    try:
        result = handle.result(timeout)
    except TimeoutError:
        handle.kill()
        pytest.fail(f"not over {time.monotonic() - begun:.1f} s after it was told to end")
    assert result.status == "stopped"
    balanced(result)
    return result


def balanced(result: Any) -> None:
    for ends, edge in result.stats.edges.items():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped, ends


# ---------------------------------------------------------------------- what emits without end


def endless(item: Any) -> Iterator[int]:
    yield from itertools.count()


def endless_slowly(item: Any) -> Iterator[int]:
    for number in itertools.count():
        time.sleep(0.005)
        yield number


def lazily(item: Any) -> Any:
    """Not a generator function, but gives one."""
    return (number for number in itertools.count())


async def endless_async(item: Any) -> Any:
    for number in itertools.count():
        yield number


def drop(item: Any) -> bool:
    return False


def same(item: Any) -> Any:
    return item


def fails(item: Any) -> Any:
    raise OSError(item)


def source() -> Iterator[int]:
    yield from itertools.count()


class Emits(fm.Pipeline):
    """Its on_end has no end."""

    @fm.producer
    def one(self) -> Iterator[int]:
        yield 1

    @fm.stage
    def pass_on(self, item: int) -> int:
        return item

    @pass_on.on_end
    def rest(self) -> Iterator[int]:
        yield from itertools.count()

    @fm.consumer
    def last(self, item: int) -> None: ...


ENDLESS: dict[str, Callable[[], Any]] = {
    "a stage": lambda: fm.Pipeline().source([1]).stage(endless).sink(same),
    "slowly": lambda: fm.Pipeline().source([1]).stage(endless_slowly).sink(same),
    "into a filter": lambda: fm.Pipeline().source([1]).stage(endless).filter(drop),
    "flat_map": lambda: fm.Pipeline().source([1]).flat_map(endless).sink(same),
    "lazily": lambda: fm.Pipeline().source([1]).stage(lazily).map(same).filter(drop),
    "async": lambda: fm.Pipeline().source([1]).stage(endless_async).filter(drop),
    "unbatch": lambda: fm.Pipeline().source([itertools.count()]).unbatch().sink(same),
    "batches": lambda: fm.Pipeline().source([1]).stage(endless).batch(7).unbatch().filter(drop),
    "two deep": lambda: fm.Pipeline().source([1]).stage(endless).stage(endless).filter(drop),
    "a branch": lambda: (
        fm.Pipeline()
        .source([1], name="s", to=["a", "b"])
        .stage(endless, name="a", to=())
        .filter(drop, name="b")
    ),
    "into a batch that waits": lambda: (
        fm.Pipeline().source([1]).stage(endless).batch(10**9, max_wait=0.01).filter(drop)
    ),
    "on_end": Emits,
    "outputs of one try": lambda: (
        fm.Pipeline().source([1]).stage(endless, on_error=fm.retry(3)).sink(same)
    ),
    "retries": lambda: (
        fm.Pipeline().source([1]).map(fails, on_error=fm.retry(10**9, backoff=0)).sink(same)
    ),
    "patient retries": lambda: (
        fm.Pipeline().source([1]).map(fails, on_error=fm.retry(9, backoff=60)).sink(same)
    ),
    "a source": lambda: fm.Pipeline().source(source).sink(same),
    "a source into a filter": lambda: fm.Pipeline().source(source).filter(drop),
    "a source of failures": lambda: (
        fm.Pipeline().source(source).map(fails, on_error="skip").sink(same)
    ),
}


def in_contexts() -> Iterator[Any]:
    for context in CONTEXTS:
        for name, fn in (("endless", endless), ("slowly", endless_slowly), ("lazily", lazily)):
            yield pytest.param(
                lambda c=context, f=fn: (
                    fm.Pipeline().source([1]).stage(f, context=c, name="x").filter(drop)
                ),
                id=f"{context} {name}",
            )


KINDS = [*(pytest.param(make, id=name) for name, make in ENDLESS.items()), *in_contexts()]


@pytest.mark.parametrize("make", KINDS)
def test_kill_ends_a_run_that_emits_without_end(make: Callable[[], Any]) -> None:
    handle = make().start()
    tasks.eventually(lambda: any(s.in_ + s.out for s in handle.stats().stages.values()))
    handle.kill()
    ended(handle)


@pytest.mark.parametrize(
    "name", ["a source", "a source into a filter", "retries", "patient retries"]
)
def test_stop_ends_what_only_goes_on_because_it_is_asked_for_more(name: str) -> None:
    handle = ENDLESS[name]().start()
    tasks.eventually(lambda: any(s.in_ + s.out for s in handle.stats().stages.values()))
    handle.stop()
    ended(handle)


@pytest.mark.parametrize("make", [p for p in KINDS if "retries" not in str(p.id)])
def test_stats_move_while_one_item_emits_without_end(make: Callable[[], Any]) -> None:
    handle = make().start()

    def seen() -> int:
        return sum(stage.in_ + stage.out for stage in handle.stats().stages.values())

    if "outputs of one try" in str(make):
        return
    try:
        tasks.eventually(seen)
    finally:
        handle.kill()
        ended(handle)


@pytest.mark.parametrize("name", ["a stage", "lazily", "on_end", "into a filter", "two deep"])
def test_figures_of_a_run_under_way_are_those_that_it_ends_with(name: str) -> None:
    """A run's counters are read while it counts: none twice, none forgotten."""
    handle = ENDLESS[name]().start()
    last: dict[str, int] = {}
    for _ in range(50):
        now = {name: stage.in_ for name, stage in handle.stats().stages.items()}
        assert all(now[name] >= last.get(name, 0) for name in now), (last, now)
        last = now
    handle.kill()
    stages = ended(handle).stats.stages
    assert all(stages[name].in_ >= last[name] for name in last)


def test_progress_is_told_ten_times_a_second_whatever_runs() -> None:
    told: list[tuple[float, int]] = []
    gate = threading.Event()

    def note(event: dict[str, Any]) -> None:
        if event["kind"] == "progress":
            told.append((time.monotonic(), event["stages"]["wait"]["in"]))
            if len(told) == 8:
                gate.set()

    # Inline: one item takes as long as eight of them.
    line = fm.Pipeline().source([1]).map(lambda item: gate.wait(30), name="wait").sink(same)
    assert fm.Orchestrator(line).execute(sinks=[note]).ok
    assert len(told) >= 8 and told[7][1] == 1
    assert told[7][0] - told[0][0] < SOON


@pytest.mark.parametrize("name", ["a stage", "a source into a filter", "retries", "on_end"])
def test_progress_goes_on_while_one_item_emits_without_end(name: str) -> None:
    told: list[int] = []

    def note(event: dict[str, Any]) -> None:
        if event["kind"] == "progress":
            told.append(sum(s["in"] + s["out"] for s in event["stages"].values()))

    handle = fm.Orchestrator(ENDLESS[name]()).start(sinks=[note])
    tasks.eventually(lambda: len(told) >= 5)
    handle.kill()
    ended(handle)
    assert told[4] > 0


def test_who_listens_later_is_told_too() -> None:
    told = threading.Event()
    handle = ENDLESS["a stage"]().start()
    handle.attach(lambda event: event["kind"] == "progress" and told.set())
    assert told.wait(SOON)
    handle.kill()
    ended(handle)


def test_an_inline_run_that_nobody_listens_to_makes_no_thread() -> None:
    names: list[str] = []

    def look(item: int) -> int:
        names[:] = [thread.name for thread in threading.enumerate()]
        return item

    before = [thread.name for thread in threading.enumerate()]
    assert fm.Pipeline().source([1]).map(look).run().outputs == [1]
    assert names == before
    fm.Orchestrator(fm.Pipeline().source([1]).map(look)).execute(sinks=[lambda event: None])
    assert sorted(names) == sorted([*before, "forkmill-events"])


def test_other_stages_have_their_turn_while_one_item_emits_without_end() -> None:
    """Also where it emits slowly, and nothing fills its queue."""
    seen: list[int] = []
    line = (
        fm.Pipeline()
        .source([1])
        .stage(endless_slowly, name="a")
        .batch(10**9, max_wait=0.05)
        .sink(seen.append)
    )
    handle = line.start()
    tasks.eventually(lambda: len(seen) >= 3, SOON)
    handle.kill()
    ended(handle)


def test_a_source_that_becomes_slow_keeps_nothing_back() -> None:
    """It was pulled in large slices while it was quick."""
    many, seen = 50_000, []

    def src() -> Iterator[int]:
        yield from range(many)
        for number in itertools.count():
            time.sleep(0.02)
            yield -number - 1

    handle = fm.Pipeline().source(src).map(same, context="ipc_fork:1").sink(seen.append).start()
    tasks.eventually(lambda: len(seen) > many, 30)
    begun, n = time.monotonic(), len(seen)
    tasks.eventually(lambda: len(seen) >= n + 20, 20)
    assert time.monotonic() - begun < 10
    handle.kill()
    ended(handle)

"""A lane over workers: a chunk comes out as it went in, but for what has to be seen alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import forkmill as fm
from forkmill import contexts
from forkmill.contexts import Batch, Lane, Taken, Work
from forkmill.contexts.lanes import measured
from forkmill.contexts.lanes.measured import Measured

COUNT = 3000


def same(x: int) -> int:
    return x


def odd_one(x: int) -> int:
    if x == COUNT - 7:
        raise ValueError(x)
    return x


def few_generators(x: int) -> Any:
    return iter_of(x) if x == COUNT - 7 else x


def iter_of(x: int) -> Iterator[int]:
    yield x
    yield -x


@pytest.fixture
def lane_of() -> Iterator[Callable[..., Lane]]:
    lanes: list[Lane] = []

    def make(fn: Any) -> Lane:
        lanes.append(contexts.spec("ipc_fork", 1).lane(Work(fn)))
        return lanes[-1]

    yield make
    for lane in lanes:
        lane.close()


def pieces(lane: Lane) -> list[Taken | Batch]:
    """All pieces of COUNT items."""
    lane.put_many(range(COUNT))
    lane.end()
    found: list[Taken | Batch] = []
    while not lane.ended:
        found += lane.take_many(20)
    return found


def flat(found: list[Taken | Batch]) -> list[Taken]:
    return [one for p in found for one in (p.split() if isinstance(p, Batch) else (p,))]


@pytest.mark.parametrize("fn", [odd_one, few_generators])
def test_one_odd_item_does_not_break_up_its_chunk(
    lane_of: Callable[..., Lane], fn: Callable[[int], Any]
) -> None:
    found = pieces(lane_of(fn))
    # Chunks may overtake each other: the taker and the pool's thread both deliver them.
    assert sorted(taken.item for taken in flat(found)) == list(range(COUNT))
    for piece in found:
        if isinstance(piece, Batch):
            assert piece.items == list(range(piece.items[0], piece.items[-1] + 1))
    alone = [piece for piece in found if isinstance(piece, Taken)]
    assert [taken.item for taken in alone] == [COUNT - 7]
    if fn is odd_one:
        assert type(alone[0].failure) is ValueError
    else:
        assert alone[0].outputs == [COUNT - 7, 7 - COUNT]


def test_reports_come_beside_outputs(lane_of: Callable[..., Lane]) -> None:
    found = pieces(lane_of(Measured(same)))
    batches = [piece for piece in found if isinstance(piece, Batch)]
    assert len(batches) == len(found)
    outputs = [output for batch in batches for output in batch.outputs]
    assert sorted(outputs) == list(range(COUNT))
    assert all(batch.plain for batch in batches)
    reports = [report for batch in batches for report in batch.reports]
    assert reports and all(0 < report.call <= report.seconds for report in reports)


@pytest.mark.parametrize("recorded", [False, True])
def test_what_is_told_is_any_call_and_not_the_long_one(
    monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """A report is due 5 ms after the last one, so that a long call is nearly always behind it."""
    dice = random.Random(1)
    now = 0.0
    monkeypatch.setattr(measured, "perf_counter", lambda: now)

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds + dice.randrange(1000) / 1e9

    clock = measured.Recorded(work, measured.Recorder(False)) if recorded else Measured(work)
    told = []
    for _ in range(300):
        for seconds in [50e-6] * 20 + [0.03]:
            report = clock(seconds)
            if report is not None:
                told.append(report)
    assert len(told) >= 300 and sum(report.seconds for report in told) == pytest.approx(now)
    short = [report.call for report in told if report.call < 1e-3]
    assert len(short) > 0.9 * len(told)


def test_a_batch_of_objects_is_not_plain(lane_of: Callable[..., Lane]) -> None:
    batches = [piece for piece in pieces(lane_of(complex)) if isinstance(piece, Batch)]
    assert not any(batch.plain for batch in batches)


# ------------------------------------------------- a producer right before a stage in a context


def test_what_a_producer_gave_before_it_failed_is_worked_on() -> None:
    def numbers() -> Iterator[int]:
        yield from range(10)
        raise OSError("gone")

    result = fm.Pipeline().source(numbers).map(same, context="thread:1").run()
    assert sorted(result.outputs) == list(range(10))
    assert result.status == "failed"
    assert [failure.stage for failure in result.failures] == ["numbers"]


def test_a_producer_right_before_a_context_sends_items_by_name() -> None:
    def numbers() -> Iterator[Any]:
        for i in range(200):
            yield fm.to("other", i) if i % 50 == 0 else i

    line = fm.Pipeline().source(numbers).map(same, context="thread:1", to=())
    result = line.map(lambda x: -1 - x, name="other", from_=()).run()
    assert sorted(result.outputs) == sorted(
        [-1 - i for i in range(0, 200, 50)] + [i for i in range(200) if i % 50]
    )


def test_a_stopped_producer_right_before_a_context_gives_no_more_than_a_handful() -> None:
    given: list[int] = []
    ready = threading.Event()

    def numbers() -> Iterator[int]:
        ready.wait(20)
        for i in range(10**9):
            given.append(i)
            if i == 5000:
                handle.stop()
            yield i

    line = fm.Pipeline().source(numbers).map(same, context="thread:1", queue_size=10**6)
    handle = line.start()
    ready.set()
    result = handle.result(30)
    assert result.status == "stopped"
    assert 5000 < len(given) <= 5200
    assert sorted(result.outputs) == given


def test_stages_on_one_pool_keep_their_figures() -> None:
    """Most calls are not measured; those that are must stand for them."""
    pool = fm.named_pool("figures", "ipc_fork:1")
    try:
        line = fm.Pipeline(context="figures").source(range(20_000), context="inline")
        line = line.map(same, name="a").map(same, name="b").map(same, name="c")
        runs = [line.run().stats for _ in range(3)]
        for stats in runs:
            for name in "abc":
                assert stats[name].in_ == stats[name].out == 20_000
                assert stats[name].busy > 0
                assert stats[name].p50 is not None
        # A measured call that a busy machine stops stands for many, but not in each run.
        assert any(all(stats[n].busy < stats.duration for n in "abc") for stats in runs)
    finally:
        pool.shutdown()


# ------------------------------------------------------------------------------ what travels flat


class Touchy:
    """Equal to nothing without a complaint."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]


def mixed(x: int) -> Any:
    if x % 2:
        return fm.to("there", (x, None))
    return [(x, "a", "b"), ("a" * 32, x, x), (Touchy(), 1, 2), x][x // 2 % 4]


def same_name(x: int) -> Any:
    return fm.to("there", threading.Lock() if x == 7 else x)


def test_what_looks_like_what_travels_flat_is_not_taken_for_it() -> None:
    here: list[Any] = []
    there: list[Any] = []
    line = fm.Pipeline().source(range(COUNT)).map(mixed, context="ipc_fork:1", name="mixed")
    line.sink(here.append, name="here").sink(there.append, name="there", from_=()).run()
    assert sorted(there) == [(x, None) for x in range(1, COUNT, 2)]
    kinds = [str(type(mixed(x))) for x in range(0, COUNT, 2)]
    assert sorted(str(type(value)) for value in here) == sorted(kinds)
    numbers = [value for value in here if type(value) is int]
    assert sorted(numbers) == list(range(6, COUNT, 8))
    tuples = [value for value in here if type(value) is tuple]
    likely = [value for value in tuples if type(value[0]) is str]
    assert sorted(likely) == [("a" * 32, x, x) for x in range(2, COUNT, 8)]
    others = [value for value in tuples if type(value[0]) is int]
    assert sorted(others) == [(x, "a", "b") for x in range(0, COUNT, 8)]


def test_what_cannot_travel_flat_is_its_items_failure() -> None:
    there: list[Any] = []
    line = fm.Pipeline().source(range(50)).map(same_name, context="ipc_fork:1", on_error="skip")
    result = line.sink(there.append, name="there", from_=()).run()
    assert sorted(there) == [x for x in range(50) if x != 7]
    [failure] = result.failures
    assert failure.item == 7 and isinstance(failure.error, fm.SerializationError)


def test_a_stage_brings_little_into_a_fresh_worker() -> None:
    """Each exec'd worker loads it before its first item: what makes executors stays out, and what
    costs more than all of ours."""
    loaded = "sorted(__import__('sys').modules)"
    with fm.executor("ipc_fork", 1, start_method="zygote") as pool:
        before = set(pool.submit(eval, loaded).result(30))
        lane = pool.lane(Work(eval))
        lane.put(loaded)
        taken = lane.take(30)
        lane.close()
    assert taken is not None
    assert taken.failure is None
    brought = set(taken.outputs[0]) - before
    assert "forkmill.contexts.lanes.in_worker" in brought
    heavy = {"dataclasses", "inspect", *(f"forkmill.contexts.{n}" for n in ("base", "specs"))}
    assert not brought & heavy

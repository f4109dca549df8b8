"""One run: fused groups, queues, backpressure, ends, failures, events, statistics."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
from forkmill.runs.stats import Reservoir

CONTEXTS = ["inline", "thread:2", "ipc_fork:2", "cow_fork:2"]
in_contexts = pytest.mark.parametrize("context", CONTEXTS)


def check_edges(result: fm.RunResult) -> None:
    for edge in result.stats.edges.values():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped


# ------------------------------------------------------------------ fused


def test_a_fused_group_goes_item_by_item_and_makes_no_thread() -> None:
    seen: list[tuple[str, int]] = []

    def note(name: str) -> Any:
        def work(x: int) -> int:
            seen.append((name, x))
            assert threading.active_count() == before
            return x

        return work

    before = threading.active_count()
    fm.Pipeline().source(range(3)).map(note("a")).map(note("b")).sink(note("c")).run()
    assert seen == [(n, x) for x in range(3) for n in "abc"]


def test_every_shape_of_stage_may_be_fused() -> None:
    async def later(x: int) -> int:
        return x + 1

    async def both(x: int) -> Any:
        yield x
        yield -x

    line = (
        fm.Pipeline()
        .source(range(6))
        .filter(lambda x: x % 2)
        .map(lambda x: (y for y in (x, x)))  # a plain function may return a generator
        .map(later)
        .map(both)
        .flat_map(lambda x: [x])
        .batch(5)
        .unbatch()
    )
    expected = [s * (x + 1) for x in (1, 3, 5) for _ in range(2) for s in (1, -1)]
    assert line.run().outputs == expected


def test_none_and_containers_are_items_like_others() -> None:
    values = [None, [1, 2, 3], {}, (1, 2)]
    assert fm.Pipeline().source(values).map(lambda x: x).run().outputs == values


def test_more_loops_than_python_nests_blocks() -> None:
    line = fm.Pipeline().source([0])
    for _ in range(30):
        line = line.flat_map(lambda x: [x])
    result = line.run()
    assert result.outputs == [0]
    assert all(s.out == 1 for s in result.stats.stages.values())


def test_a_branch_that_fails_leaves_the_others_alone() -> None:
    got: list[int] = []
    line = (
        fm.Pipeline()
        .source(range(4), name="s", to=["bad", "good"])
        .map(lambda x: 1 // x, name="bad", on_error="skip", to=())
        .sink(got.append, name="good")
    )
    result = line.run()
    assert got == [0, 1, 2, 3] and result.outputs == [1, 0, 0]
    check_edges(result)


def test_raise_in_a_branch_keeps_the_books() -> None:
    line = (
        fm.Pipeline()
        .source(range(4), name="s", to=["bad", "slow"])
        .map(lambda x: 1 // (2 - x), name="bad", to=())
        .map(str, name="slow", context="thread:1")
    )
    with pytest.raises(ZeroDivisionError) as caught:
        line.run()
    result = caught.value.run_result
    assert result.status == "failed"
    check_edges(result)
    assert result.stats.edges["s", "bad"].emitted == 3
    assert result.stats.edges["s", "slow"].emitted == 2


# ------------------------------------------------------------------ queues


@pytest.mark.parametrize("context", ["thread:1", "ipc_fork:1", "cow_fork:1"])
def test_a_producer_is_pulled_only_as_far_as_queues_have_room(context: str) -> None:
    pulled: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(1000):
            pulled.append(i)
            yield i

    stream = fm.Pipeline().source(numbers).map(str, context=context, queue_size=5).stream()
    assert next(stream) == "0"
    # 5 wait, 1 runs, and one is in the producer's hand.
    assert len(pulled) <= 5 + 1 + 1 + 1
    stream.close()


def test_a_stage_that_emits_without_end_needs_no_memory() -> None:
    made: list[int] = []

    def many(_: int) -> Iterator[int]:
        i = 0
        while True:
            made.append(i)
            yield i
            i += 1

    with fm.Pipeline().source([0]).map(many).map(lambda x: x, context="thread:1").stream() as got:
        assert [next(got) for _ in range(3)] == [0, 1, 2]
        assert len(made) < 1100


def test_a_loop_by_fm_to_that_is_full_all_around_goes_on() -> None:
    def step(x: int) -> Iterator[Any]:
        if x > 0:
            yield fm.to("step", x - 1)
            yield fm.to("step", x - 1)
        else:
            yield x

    line = fm.Pipeline().source([6]).map(step, name="step", queue_size=1)
    result = line.run()
    assert result.outputs == [0] * 64
    check_edges(result)


def test_round_robin_and_balanced() -> None:
    def routed(routing: str) -> list[list[int]]:
        sinks: list[list[int]] = [[], [], []]
        line = fm.Pipeline().source(range(9), to=["a", "b", "c"], routing=routing)
        for name, into in zip("abc", sinks, strict=True):
            line = line.sink(into.append, name=name)
        line.run()
        return sinks

    assert routed("round_robin") == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert sorted(x for into in routed("balanced") for x in into) == list(range(9))


def test_copies_for_each_branch() -> None:
    def spoil(x: dict[str, int]) -> None:
        x["v"] = 99

    line = (
        fm.Pipeline()
        .source([{"v": 1}], to=["a", "b"], copy=True)
        .sink(spoil, name="a")
        .map(lambda x: x["v"], name="b")
    )
    assert line.run().outputs == [1]


# ------------------------------------------------------------------ the end of streams


def test_a_stage_ends_while_an_unrelated_one_goes_on() -> None:
    ended = threading.Event()

    class Two(fm.Pipeline):
        @fm.producer(to="wait")
        def endless(self) -> Iterator[int]:
            while not ended.is_set():
                yield 0

        @fm.producer(to="total")
        def few(self) -> Iterator[int]:
            yield from range(3)

        @fm.consumer
        def wait(self, x: int) -> None: ...

        @fm.consumer
        def total(self, x: int) -> None: ...

        @total.on_end
        def tell(self) -> None:
            ended.set()

    assert Two().run().status == "completed"


@in_contexts
def test_on_end_follows_the_last_item(context: str) -> None:
    class Sum(fm.Pipeline):
        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(10)

        @fm.stage(context=context)
        def add(self, x: int) -> Iterator[int]:
            self.seen += x
            yield from ()

        @add.on_end
        def total(self) -> Iterator[int]:
            yield self.seen

    assert sum(Sum().run().outputs) == 45


@in_contexts
def test_a_batch_is_whole_in_every_context(context: str) -> None:
    class Batches(fm.Pipeline):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(10)

        @fm.batch(size=4, context=context)
        def body(self, items: list[int]) -> list[int]:
            return items

    got = Batches().run().outputs
    assert sorted(map(len, got)) == [2, 4, 4] and sorted(x for items in got for x in items) == list(
        range(10)
    )


def test_batches_by_key() -> None:
    line = fm.Pipeline().source(range(7)).batch(2, key=lambda x: x % 2)
    assert line.run().outputs == [[0, 2], [1, 3], [4, 6], [5]]


@pytest.mark.parametrize("context", ["thread:2", "ipc_fork:2"])
def test_a_key_keeps_to_its_copy_of_the_state(context: str) -> None:
    class Keyed(fm.Pipeline):
        def __init__(self) -> None:
            super().__init__()
            self.counts: dict[int, int] = {}

        @fm.producer
        def numbers(self) -> Iterator[int]:
            for i in range(40):
                yield i % 4

        @fm.stage(context=context, key=lambda x: x)
        def count(self, x: int) -> Iterator[int]:
            self.counts[x] = self.counts.get(x, 0) + 1
            yield from ()

        @count.on_end
        def tell(self) -> Iterator[Any]:
            yield from self.counts.items()

    assert sorted(Keyed().run().outputs) == [(k, 10) for k in range(4)]


def test_an_item_to_a_stage_that_has_ended_opens_it_again() -> None:
    hidden = {"to": fm.to}  # not to be seen in the code
    name = "t" + "o"

    def late(x: int) -> Any:
        return hidden[name]("sum", x)

    line = (
        fm.Pipeline()
        .source([1, 2], name="a")
        .map(lambda x: x, name="sum", to=())
        .source([3], name="b")
        .map(late, name="late", from_="b", to=(), context="thread:1")
    )
    result = line.run()
    assert sorted(result.outputs) == [1, 2, 3]
    check_edges(result)


# ------------------------------------------------------------------ failures


def flaky(times: int) -> Any:
    tries: dict[int, int] = {}

    def work(x: int) -> int:
        tries[x] = tries.get(x, 0) + 1
        if x == 2 and tries[x] <= times:
            raise OSError("not yet")
        return x

    return work


@pytest.mark.parametrize("context", ["inline", "thread:1"])
def test_retry_holds_the_order_and_counts(context: str) -> None:
    line = fm.Pipeline().source(range(5))
    line = line.map(
        flaky(2), name="f", context=context, ordered=True, on_error=fm.retry(3, backoff=0.001)
    )
    events: list[dict[str, Any]] = []
    result = line.run(sinks=[events.append])
    assert result.outputs == [0, 1, 2, 3, 4] and not result.failures
    assert [e["attempt"] for e in events if e["kind"] == "retry"] == [1, 2]


@in_contexts
def test_dead_letters(context: str) -> None:
    def bad(x: int) -> int:
        raise KeyError(x)

    line = (
        fm.Pipeline()
        .source([1, 2])
        .map(bad, name="bad", context=context, on_error=fm.dead_letter("dead"))
        .map(lambda f: (f.stage, f.item, type(f.error)), name="dead", from_=())
    )
    result = line.run()
    assert sorted(result.outputs, key=repr) == [("bad", 1, KeyError), ("bad", 2, KeyError)]
    assert result.status == "completed" and len(result.failures) == 2
    with pytest.raises(KeyError):
        result.failures[0].reproduce()


@in_contexts
def test_what_a_generator_gave_before_it_failed_is_not_lost(context: str) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise OSError("dry")

    def parts(x: int) -> Iterator[int]:
        yield x
        raise OSError("torn")

    result = fm.Pipeline().source(numbers, context=context).source([2], name="whole").run()
    assert sorted(result.outputs) == [1, 2] and result.status == "failed"
    line = fm.Pipeline().source([1, 2]).map(parts, context=context, on_error="skip")
    result = line.run()
    assert sorted(result.outputs) == [1, 2] and len(result.failures) == 2
    check_edges(result)


def test_an_unknown_name_at_run_time_is_a_failure_of_the_item() -> None:
    line = (
        fm.Pipeline()
        .source([1, 2])
        .map(lambda x: fm.to("nowhere", x) if x == 1 else x, on_error="skip")
    )
    result = line.run()
    assert result.outputs == [2]
    assert isinstance(result.failures[0].error, fm.BuildError)


def test_a_setup_that_fails_stops_the_run_or_fails_the_items() -> None:
    def setup() -> None:
        raise OSError("no database")

    line = fm.Pipeline().source([1]).map(str, setup=setup)
    with pytest.raises(OSError, match="no database"):
        line.run()
    line = fm.Pipeline().source([1]).map(str, setup=setup, on_error="skip")
    assert [type(f.error) for f in line.run().failures] == [OSError]


# ------------------------------------------------------------------ handles, events, figures


def test_start_stop_result() -> None:
    def numbers() -> Iterator[int]:
        i = 0
        while True:
            yield i
            i += 1

    going = threading.Event()
    line = fm.Pipeline().source(numbers).map(str, context="thread:2")
    handle = line.sink(lambda _: going.set()).start()
    assert going.wait(20) and not handle.done()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0)
    handle.stop()
    result = handle.result(timeout=20)
    assert result.status == "stopped" and handle.done()
    check_edges(result)


def test_a_stream_that_is_closed_ends_the_run() -> None:
    closed: list[bool] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    stream = fm.Pipeline().source(numbers).map(lambda x: x).stream()
    assert next(stream) == 0
    stream.close()
    assert closed and list(stream) == [] and stream.result.status == "stopped"


def test_events_are_one_ordered_stream_and_a_broken_sink_is_counted() -> None:
    events: list[dict[str, Any]] = []

    def broken(_: Any) -> None:
        raise ValueError

    line = fm.Pipeline().source([1, 0]).map(lambda x: 1 // x, name="f", on_error="skip")
    result = line.run(sinks=[broken, events.append])
    numbers = [e["seq"] for e in events]
    assert numbers == sorted(set(numbers))
    kinds = [e["kind"] for e in events]
    assert kinds[0] == "run_started" and kinds[-1] == "run_finished"
    assert kinds.count("item_failed") == 1
    assert result.stats.sink_errors == len(events)


def test_hooks_run_once_and_also_after_a_failure() -> None:
    seen: list[str] = []

    class Hooked(fm.Pipeline):
        @fm.before_run
        def begin(self) -> None:
            seen.append("begin")

        @fm.after_run
        def end(self, result: fm.RunResult) -> None:
            seen.append(result.status)

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield 0

        @fm.stage
        def work(self, x: int) -> float:
            return 1 / x

        @work.before_stage
        def before(self) -> None:
            seen.append("before work")

    line = Hooked(after_stage=lambda name: seen.append(f"after {name}"))
    with pytest.raises(ZeroDivisionError):
        line.run()
    assert seen == ["begin", "before work", "after numbers", "after work", "failed"]


def test_the_bottleneck_is_the_stage_with_most_work() -> None:
    def heavy(x: int) -> int:
        return sum(range(20_000)) * x

    line = fm.Pipeline().source(range(50)).map(str).map(int).map(heavy, name="heavy")
    runs = [line.run().stats for _ in range(5)]
    # Wherever a busy machine stops us, that stage has worked: but not each time.
    assert "heavy" in [stats.bottleneck for stats in runs]
    assert runs[0]["heavy"].p50 is not None and runs[0]["heavy"].success == 1.0


def test_the_reservoir_is_bounded_and_fair() -> None:
    values = list(range(200_000))
    random.Random(7).shuffle(values)
    reservoir = Reservoir(seed=3)
    for value in values:
        reservoir.add(value)
    assert reservoir.count == 200_000 and len(reservoir.sample) == reservoir.size
    p50, p90 = reservoir.percentiles(0.5, 0.9)
    assert p50 is not None and abs(p50 - 100_000) < 12_000
    assert p90 is not None and abs(p90 - 180_000) < 8_000


def test_runs_of_one_object_do_not_meet() -> None:
    line = fm.Pipeline().source(range(100)).map(lambda x: x, context="thread:2")
    handles = [line.start() for _ in range(3)]
    assert all(sorted(h.result(20).outputs) == list(range(100)) for h in handles)


def test_a_pipeline_in_a_worker() -> None:
    inner = fm.Pipeline().map(lambda x: x + 1).batch(3)
    line = fm.Pipeline().source(range(7)).through(inner, context="ipc_fork:1")
    assert sorted(x for items in line.run().outputs for x in items) == list(range(1, 8))

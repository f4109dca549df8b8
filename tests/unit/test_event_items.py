"""Events of the kind "items": each call of a stage or a map is told once, wherever it runs."""

from __future__ import annotations

import asyncio
import functools
import operator
import pickle
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import _native
from forkmill.runs import clocked


class Sink:
    """Counts the calls that it is told of: by name, in all and those that were measured."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        self.calls: dict[str, int] = defaultdict(int)
        self.measured: dict[str, int] = defaultdict(int)
        self.numbers: dict[Any, list[int]] = defaultdict(list)
        self.finished: list[str] = []

    def __call__(self, event: Any) -> None:
        name = event["name"]
        if event["kind"] == "stage_finished":
            self.finished.append(name)
        for call in fm.events.expand(event):
            assert name not in self.finished
            self.calls[name] += 1
            self.numbers[name, call["worker"]].append(call["number"])
            if call["seconds"] is not None:
                self.measured[name] += 1
                assert 0 <= call["seconds"] < 20
                assert abs(call["begin"] - time.monotonic()) < 60

    def check_numbers(self) -> None:
        """Each worker's calls are counted from 0."""
        for numbers in self.numbers.values():
            assert sorted(numbers) == [*range(len(numbers))]


def plus(x: int) -> int:
    return x + 1


def twice(x: int) -> Any:
    yield x
    yield x


@pytest.mark.parametrize("detail", ["items", "every"])
def test_inline_stages_tell_of_their_calls(detail: str) -> None:
    sink = Sink(detail)
    line = fm.Pipeline().source(range(3000)).map(plus, name="a").flat_map(twice, name="b")
    line.filter(bool, name="c").sink(plus, name="d").run(sinks=[sink])
    assert sink.calls == {"a": 3000, "b": 3000, "c": 6000, "d": 6000}
    assert all(0 < sink.measured[name] <= sink.calls[name] for name in sink.calls)
    if detail == "every":
        assert sink.measured == sink.calls
    sink.check_numbers()


@pytest.mark.parametrize("detail", ["items", "every"])
@pytest.mark.parametrize("spec", ["inline", "thread:2", "ipc_fork:1", "cow_fork:2"])
def test_stages_of_a_nested_pipeline_tell_of_their_calls(spec: str, detail: str) -> None:
    sink = Sink(detail)
    inner = fm.Pipeline().map(plus, name="a").map(plus, name="b", context="thread:2")
    fm.Pipeline().source(range(30)).through(inner, name="in", context=spec).run(sinks=[sink])
    assert (sink.calls["in.a"], sink.calls["in.b"]) == (30, 30)
    if detail == "every":
        assert (sink.measured["in.a"], sink.measured["in.b"]) == (30, 30)


@pytest.mark.parametrize("detail", ["items", "every"])
@pytest.mark.parametrize("spec", ["ipc_fork:2", "thread:2"])
def test_stages_that_share_a_call_tell_of_theirs(spec: str, detail: str) -> None:
    name = f"items {spec} {detail}".replace(":", " ")
    pool = fm.named_pool(name, spec)
    try:
        sink = Sink(detail)
        line = fm.Pipeline().source(range(500))
        for stage in "abc":
            line = line.map(plus, name=stage, context=name)
        result = line.run(sinks=[sink])
    finally:
        pool.shutdown()
    assert sorted(result.outputs) == [*range(3, 503)]
    assert {stage: sink.calls[stage] for stage in "abc"} == {"a": 500, "b": 500, "c": 500}
    if detail == "every":
        assert sink.measured == sink.calls


@pytest.mark.parametrize("method", tasks.METHODS)
@pytest.mark.parametrize("detail", ["items", "every"])
def test_maps_of_pools_tell_of_their_calls(method: str, detail: str) -> None:
    sink = Sink(detail)
    end = fm.subscribe(sink, detail=detail)
    try:
        with fm.ProcessPool(2, start_method=method) as pool:
            assert list(pool.map(abs, range(-3000, 0))) == [*range(3000, 0, -1)]
            assert list(pool.starmap(pow, [(2, 3)] * 50)) == [8] * 50
            got = list(pool.map(divmod, [1, 1, 1], [1, 0, 1], return_exceptions=True))
            assert isinstance(got[1], ZeroDivisionError)
        end()
    finally:
        end.end()
    assert sink.calls == {"abs": 3000, "pow": 50, "divmod": 3}
    if detail == "every":
        assert sink.measured == sink.calls


def test_calls_are_told_whose_neighbours_were_taken_back() -> None:
    """The last call of a chunk in a worker is not the chunk's last where another took that over."""
    sink = Sink("items")
    end = fm.subscribe(sink, detail="items")
    try:
        with fm.ProcessPool(2, start_method="fork") as pool:
            for _ in range(4):
                before = pool.stats().recalled
                assert len(list(pool.map(tasks.nap, [0.001] * 100, chunksize=100))) == 100
                assert pool.stats().recalled > before
        end()
    finally:
        end.end()
    assert sink.calls == {"nap": 400}


@pytest.mark.parametrize("size", [4000, 4001, 9000])
def test_calls_of_one_chunk_that_are_all_measured(size: int) -> None:
    """They are told in several words, each of which counts all that it measures."""
    sink = Sink("every")
    end = fm.subscribe(sink, detail="every")
    try:
        with fm.ProcessPool(1, start_method="fork") as pool:
            assert sum(pool.map(abs, range(size), chunksize=size)) == sum(range(size))
        end()
    finally:
        end.end()
    assert sink.calls == sink.measured == {"abs": size}
    sink.check_numbers()


class Unsaid(str):
    def __format__(self, _: str) -> str:
        raise MemoryError


def test_a_worker_without_memory_for_times_fails_no_call() -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        timed = _native.Timed(abs, Unsaid("run"), "abs", False)
        assert list(pool.map(timed, range(3), chunksize=3)) == [0, 1, 2]
        assert pool.stats().restarts == 0


def test_a_map_is_left_alone_where_nobody_asks_for_items() -> None:
    told: list[Any] = []
    end = fm.subscribe(told.append)
    try:
        with fm.ProcessPool(1) as pool:
            assert list(pool.map(abs, range(-30, 0))) == [*range(30, 0, -1)]
        end()
    finally:
        end.end()
    assert "items" not in {event["kind"] for event in told}


def slow(batch: Any) -> Any:
    time.sleep(0.001)
    return batch


def test_long_calls_of_an_inline_stage_are_all_measured() -> None:
    """Beside a stage of short ones, and seldom called, so that slices are large."""
    sink = Sink("items")
    line = fm.Pipeline().source(range(2000)).map(plus, name="a", context="thread:2").batch(50)
    line.map(slow, name="slow").run(sinks=[sink])
    assert sink.calls["slow"] == sink.measured["slow"] == 40


@pytest.mark.parametrize("context", ["inline", "thread:1"])
def test_each_batch_is_told(context: str) -> None:
    told: list[Any] = []
    line = fm.Pipeline().source(range(201)).batch(2, name="batch", context=context)
    assert len(line.sink(plus_all, name="end").run(sinks=[told.append]).outputs) == 0
    batches = [event["data"] for event in told if event["kind"] == "batch"]
    assert batches == [{"size": 2}] * 100 + [{"size": 1}]
    kinds = [event["kind"] for event in told if event["name"] == "batch"]
    assert kinds[-1] == "stage_finished"


def plus_all(items: list[int]) -> None:
    assert 1 <= len(items) <= 2


def mostly_long(x: int) -> int:
    if x % 9:
        time.sleep(0.0005)
    return x


MIXED = 180


def mixed_map(spec: str, sink: Sink) -> None:
    with fm.executor(spec) as executor:
        assert sum(executor.map(mostly_long, range(MIXED), sinks=[sink])) == sum(range(MIXED))


def mixed_line(spec: str, sink: Sink) -> None:
    line = fm.Pipeline().source(range(MIXED)).map(mostly_long, context=spec)
    assert len(line.run(sinks=[sink]).outputs) == MIXED


@pytest.mark.parametrize("job", [mixed_map, mixed_line])
def test_short_calls_among_long_ones_hide_none_of_them(job: Any) -> None:
    for spec in ("inline", "thread:1", "ipc_fork:1"):
        sink = Sink("items")
        job(spec, sink)
        assert sink.calls == sink.measured == {"mostly_long": MIXED}, spec


class Hears(Sink):
    """And when the run ends, and of which run the calls are."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.kinds: list[str] = []
        self.runs: set[Any] = set()
        self.run_of: list[Any] = []

    def __call__(self, event: Any) -> None:
        super().__call__(event)
        self.kinds.append(event["kind"])
        self.runs.add(event["run"])
        self.run_of.append(event["run"])


@pytest.mark.parametrize("detail", ["items", "every"])
def test_the_sinks_of_a_map_hear_of_its_calls_before_its_end(detail: str) -> None:
    own, other = Hears(detail), Hears("runs")
    with fm.ProcessPool(2, start_method="fork") as pool:
        assert list(pool.map(abs, range(-2000, 0), sinks=[own, other])) == [*range(2000, 0, -1)]
        with fm.executor("inline") as inline:
            assert list(inline.map(abs, range(3))) == [0, 1, 2]
        adding = functools.partial(operator.add, 1)
        assert sum(pool.map(adding, range(10), sinks=[own])) == 55
        failing = pool.map(divmod, [1, 1], [0, 1], return_exceptions=True, sinks=[own])
        assert isinstance(next(failing), ZeroDivisionError) and next(failing) == (1, 0)
        assert list(failing) == []
    assert sum(own.calls.values()) == 2012 and own.calls["abs"] == 2000
    assert own.kinds[-1] == "run_finished" and len(own.runs) == 3
    assert "items" not in other.kinds and not other.calls
    if detail == "every":
        assert own.measured == own.calls


def test_what_many_calls_took_is_one_event() -> None:
    """The process that asks does nothing a chunk: what it looks at ten times a second is joined."""
    told: list[Any] = []
    end = fm.subscribe(told.append, detail="items")
    try:
        with fm.ProcessPool(1, start_method="fork") as pool:
            assert len(list(pool.map(abs, range(20_000), chunksize=100))) == 20_000
        end()
    finally:
        end.end()
    items = [event for event in told if event["kind"] == "items"]
    assert sum(event["data"]["count"] for event in items) == 20_000
    assert len(items) < 20_000 / 100 / 4, "fewer than chunks"
    calls = [call for event in items for call in fm.events.expand(event)]
    assert [call["number"] for call in calls] == [*range(20_000)]
    begins = [call["begin"] for call in calls if call["begin"] is not None]
    assert len(begins) >= 20_000 / 64 and begins == sorted(begins)


@pytest.mark.parametrize("ordered", [True, False])
def test_an_amap_is_a_run_of_its_own(ordered: bool, tmp_path: Path) -> None:
    every, late = Hears("items"), Hears("runs")

    async def main() -> None:
        sink = Hears("every")
        with fm.ProcessPool(2, start_method="fork") as pool:
            options: Any = {"ordered": ordered, "sinks": [sink]}
            got = [x async for x in pool.amap(abs, range(-40, 0), **options, report=report)]
            assert sorted(got) == [*range(1, 41)]
            assert sink.calls == sink.measured == {"abs": 40}
            assert sink.kinds[0] == "run_started" and sink.kinds[-1] == "run_finished"
            with pytest.raises(ZeroDivisionError):
                async for _ in pool.amap(divmod, [1], [0], **options):
                    raise AssertionError("nothing comes")
            assert sink.kinds.count("item_failed") == 1 and sink.kinds[-1] == "run_finished"
            unseen = pool.amap(abs, range(-2000, 0))
            assert await anext(unseen) > 0
            end = fm.subscribe(late)
            await unseen.aclose()  # type: ignore[attr-defined]
            end()

    report, end = tmp_path / "run.html", fm.subscribe(every, detail="items")
    try:
        asyncio.run(main())
        end()
    finally:
        end.end()
    assert report.read_text().startswith("<!doctype html>")
    assert late.kinds[-1] == "run_finished" and not late.calls
    assert every.calls["abs"] >= 40 and every.calls["divmod"] == 1


def test_a_loop_goes_on_while_sinks_hear_of_the_end_of_an_amap() -> None:
    told, went_on = threading.Event(), threading.Event()

    def sink(event: Any) -> None:
        if event["kind"] == "run_finished":
            assert went_on.wait(20)
            told.set()

    async def beat() -> None:
        await asyncio.sleep(0.01)
        went_on.set()

    async def main() -> None:
        with fm.ProcessPool(1) as pool:
            assert [x async for x in pool.amap(abs, [-1])] == [1]
            found = pool.amap(abs, [-1], sinks=[sink])
            assert await anext(found) == 1
            beating = asyncio.ensure_future(beat())
            assert [x async for x in found] == [] and told.is_set()
            await beating

    asyncio.run(main())


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


@pytest.mark.parametrize("detail", ["items", "every"])
@pytest.mark.parametrize("spec", ["inline", "thread:2", "cow_fork:2", "async:4"])
def test_maps_of_executors_tell_of_their_calls(spec: str, detail: str) -> None:
    sink = Hears(detail)
    fn: Any = later if spec == "async:4" else plus
    with fm.executor(spec) as executor:
        assert list(executor.map(fn, range(40), sinks=[sink])) == [*range(1, 41)]
        failing = executor.map(divmod, [1, 1], [0, 1], return_exceptions=True, sinks=[sink])
        assert isinstance(next(failing), ZeroDivisionError) and next(failing) == (1, 0)
        assert list(failing) == []
    assert sink.calls == {fn.__name__: 40, "divmod": 2}
    assert sink.kinds[-1] == "run_finished" and len(sink.runs) == 2
    if detail == "every":
        assert sink.measured == sink.calls


class Shy:
    """A callable that no name may be asked of."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"asked for {name}")

    @property
    def __name__(self) -> str:
        raise RuntimeError("asked for its name")

    def __call__(self, x: int) -> int:
        return x + 1


class Agrees(Shy):
    """One that has whatever it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


@pytest.mark.parametrize("spec", ["inline", "thread:2", "ipc_fork:1"])
@pytest.mark.parametrize("kind", [Shy, Agrees])
def test_a_function_is_asked_nothing(spec: str, kind: Any) -> None:
    sink = Sink("items")
    with fm.executor(spec) as executor:
        assert executor.submit(kind(), 1).result() == 2
        assert list(executor.map(kind(), range(9))) == [*range(1, 10)]
        assert list(executor.map(kind(), range(9), sinks=[sink])) == [*range(1, 10)]
        assert list(executor.map(functools.partial(kind()), range(3), sinks=[sink])) == [1, 2, 3]
    assert sum(sink.calls.values()) == 12 and {*sink.calls} == {kind.__name__}


def of_maps(sink: Hears) -> list[list[str]]:
    """The kinds of each map's events."""
    found: dict[Any, list[str]] = defaultdict(list)
    for run, kind in zip(sink.run_of, sink.kinds, strict=True):
        found[run].append(kind)
    return [kinds for kinds in found.values() if "run_started" in kinds]


def test_calls_are_told_between_the_begin_and_the_end_of_their_map() -> None:
    sink, begun, out = Hears("every"), threading.Event(), threading.Event()
    end = fm.subscribe(sink, detail="every")
    try:
        with fm.executor("inline") as executor:

            def each() -> Iterator[int]:
                yield 0
                tasks.eventually(lambda: bool(sink.kinds))
                yield 1

            assert list(executor.map(plus, each())) == [1, 2]
        with pytest.raises(fm.PoolClosed):
            executor.map(plus, [1])
        with fm.executor("thread:1") as executor:  # a call of a map that is closed goes on
            results = executor.map(lambda _: begun.set() or out.wait(20), [0])
            assert begun.wait(20)
            results.close()
            out.set()
        end()
    finally:
        end.end()
    maps = of_maps(sink)
    assert len(maps) == 3
    for kinds in maps:
        assert kinds[0] == "run_started" and kinds[-1] == "run_finished"


def test_short_calls_in_another_process_are_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """There nobody says at the end what was not told yet."""
    said: list[Any] = []

    class Voice:
        say = said.append

    monkeypatch.setattr(clocked, "STREAM", [])
    monkeypatch.setattr(clocked, "VOICE", [Voice])
    fn = pickle.loads(pickle.dumps(clocked.Clocked(abs, "run", "abs", False)))
    assert [fn(-n) for n in range(100)] == [*range(100)]
    assert sum(word[4]["count"] for word in said) == 100

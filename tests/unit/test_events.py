"""The event stream: what an event is, who hears it, and what nobody may notice of that."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import uuid
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import events
from forkmill.events import Emitter
from forkmill.events import emitter as emitter_module
from forkmill.events.bus import Bus
from forkmill.events.event import event_of
from forkmill.events.subscription import Flush, Subscription
from forkmill.show.report import from_recording
from forkmill.show.top import link

FIELDS = {
    *("schema", "source", "run", "parent", "seq", "time", "monotonic", "kind", "name", "item"),
    *("attempt", "worker", "seconds", "data"),
}


@contextlib.contextmanager
def hearing(sink: Any, **options: Any) -> Iterator[Any]:
    end = fm.subscribe(sink, **options)
    try:
        yield end
    finally:
        end.end()


def no_thread() -> bool:
    return all(thread.name != "forkmill-events" for thread in threading.enumerate())


def rising(numbers: list[int]) -> bool:
    return numbers == sorted(set(numbers))


class Gate:
    """A sink that is held up, until it is opened."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.events: list[Any] = []

    def __call__(self, event: Any) -> None:
        self.entered.set()
        assert self.open.wait(30)
        self.events.append(event)


# ------------------------------------------------------------------ what an event is


def test_a_run_that_begins_when_it_is_over_is_asked_for_nothing() -> None:
    """Another thread has ended it, while a hook of the user's held the one that opens it."""
    heard: list[Any] = []
    with hearing(heard.append) as end:
        tell = Emitter("pipeline")
        tell.finish(0.0)
        tell.begin(dict)
        assert tell not in events._bus.emitters and tell.progress is None
        end()


def test_an_event_is_plain_data_with_these_fields() -> None:
    heard: list[Any] = []
    before = time.time(), time.monotonic()
    with hearing(heard.append) as end:
        tell = Emitter("pipeline")
        told = {"error": "ValueError()"}
        tell.emit("retry", "parse", item="7", attempt=2, worker=11, seconds=0.5, **told)
        end()
    (event,) = heard
    assert set(event) == FIELDS and type(event) is dict
    assert (event["schema"], event["source"], event["kind"]) == (1, "pipeline", "retry")
    assert (event["name"], event["item"], event["attempt"]) == ("parse", "7", 2)
    assert (event["worker"], event["seconds"], event["data"]) == (11, 0.5, told)
    assert before[0] <= event["time"] <= time.time()
    assert before[1] <= event["monotonic"] <= time.monotonic()
    assert (event["run"], event["parent"]) == (tell.id, None)
    assert json.loads(json.dumps(event)) == event


def test_ids_of_runs_are_uuids_of_version_7_that_rise() -> None:
    ids = []
    for _ in range(3):
        ids.append(events.new_id())
        time.sleep(0.002)  # they have milliseconds
    assert rising(ids)  # type: ignore[arg-type]
    for text in ids:
        one = uuid.UUID(text)
        assert (str(one), one.version, one.variant) == (text, 7, uuid.RFC_4122)
        assert abs((one.int >> 80) / 1000 - time.time()) < 60


def test_without_a_subscriber_nothing_is_made_and_there_is_no_thread() -> None:
    tell = Emitter("pipeline")
    tell.emit("batch", size=3)
    assert not tell.heard and not events._bus.queue
    assert no_thread()


# ------------------------------------------------------------------ who hears what


def test_a_subscriber_hears_all_runs_until_it_ends() -> None:
    heard: list[Any] = []
    line = fm.Pipeline("line").source([1]).map(abs)
    with hearing(heard.append) as end:
        assert line.run().ok
        assert line.run().ok
        end()
        count = len(heard)
        assert line.run().ok
    runs = [event["run"] for event in heard if event["kind"] == "run_started"]
    assert len(set(runs)) == 2 and {event["name"] for event in heard} >= {"line", "abs"}
    assert rising([event["seq"] for event in heard])
    assert len(heard) == count
    tasks.eventually(no_thread)
    end()  # idempotent


def test_a_sink_of_a_run_hears_that_run_alone() -> None:
    heard: list[Any] = []
    with hearing(lambda event: None):
        assert fm.Pipeline().source([1]).run().ok
        assert fm.Pipeline("mine").source([1]).run(sinks=[heard.append]).ok
        assert fm.Pipeline().source([1]).run().ok
    assert len({event["run"] for event in heard}) == 1
    kinds = [event["kind"] for event in heard]
    assert (kinds[0], kinds[-1], kinds.count("run_finished")) == ("run_started", "run_finished", 1)


@pytest.mark.parametrize("context", [None, "inline", "thread:1", "ipc_fork:1"])
def test_a_nested_run_tells_with_its_parent(context: str | None) -> None:
    heard: list[Any] = []
    inner = fm.Pipeline("inner").batch(1).unbatch()
    where = {} if context is None else {"context": context}
    line = fm.Pipeline("outer").source([1, 2]).through(inner, name="in", **where)
    assert line.run(sinks=[heard.append]).ok
    (outer,) = {event["run"] for event in heard if event["name"] == "outer"}
    if context is None:  # its stages are the outer one's
        assert {event["run"] for event in heard} == {outer}
        return
    (run,) = {event["run"] for event in heard} - {outer}
    own = [event for event in heard if event["run"] == run]
    assert {event["parent"] for event in own} == {outer}
    kinds = [event["kind"] for event in own]
    assert (kinds[0], kinds[-1]) == ("run_started", "run_finished")
    assert kinds.count("batch") == 2 and own[-1]["data"]["status"] == "completed"
    assert heard[-1]["run"] == outer


def test_a_run_that_a_stage_begins_tells_with_its_parent() -> None:
    heard: list[Any] = []

    def begin(item: int) -> int:
        return fm.Pipeline("in").source([item]).map(abs).run().outputs[0]

    assert fm.Pipeline("out").source([1]).map(begin).run(sinks=[heard.append]).outputs == [1]
    by_name = {event["name"]: event for event in heard if event["kind"] == "run_finished"}
    assert by_name["in"]["parent"] == by_name["out"]["run"] and by_name["out"]["parent"] is None
    assert heard[-1] is by_name["out"]


def test_each_sink_has_its_own_event() -> None:
    heard: list[Any] = []

    def spoil(event: Any) -> None:
        event["data"].clear()
        event.clear()

    assert fm.Pipeline().source([1]).run(sinks=[spoil, heard.append, spoil]).ok
    assert all(set(event) == FIELDS for event in heard) and heard[0]["data"]["pipeline"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"detail": "item"}, "detail must be .*did you mean 'items'"),
        ({"policy": "wait"}, "policy must be one of drop, block"),
        ({"buffer": 0}, "buffer must be >= 1"),
    ],
)
def test_what_is_wrong_with_a_subscription_is_said_at_once(options: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        fm.subscribe(print, **options)

    class Sink:
        def __call__(self, event: Any) -> None:
            """Never called."""

    sink = Sink()
    vars(sink).update(options)
    with pytest.raises(ValueError, match=error):
        fm.Pipeline().source([1]).run(sinks=[sink])
    with pytest.raises(TypeError, match="a sink must be a callable"):
        fm.subscribe(7)
    with pytest.raises(TypeError, match="a sink must be a callable"):
        fm.Pipeline().source([1]).run(sinks=[7])
    with pytest.raises(TypeError, match="sinks must be an iterable"):
        fm.Pipeline().source([1]).run(sinks=print)
    assert no_thread()


# ------------------------------------------------------------------ items


def short_call(item: int) -> int:
    if item == 70:
        raise ValueError(item)
    return item


def long_call(item: int) -> int:
    end = time.perf_counter() + 0.0002
    while time.perf_counter() < end:
        pass
    return item


def several(item: int) -> Iterator[int]:
    yield item
    yield item


async def awaited(item: int) -> int:
    return item


@pytest.mark.parametrize("context", ["thread:2", "async:2", "ipc_fork:2", "cow_fork:1"])
@pytest.mark.parametrize("detail", ["items", "every"])
@pytest.mark.parametrize("fn", [short_call, long_call, several, awaited])
def test_items_are_told_chunk_by_chunk(fn: Any, detail: str, context: str) -> None:
    if context == "async:2" and fn in (short_call, long_call):
        fn = awaited
    number = 40 if context == "cow_fork:1" else 200
    plain: list[Any] = []
    heard: list[Any] = []
    line = fm.Pipeline().source(range(number)).map(fn, context=context, name="work")
    if fn is several:
        line = fm.Pipeline().source(range(number)).flat_map(fn, context=context, name="work")
    if fn is short_call:
        line = fm.Pipeline().source(range(number))
        line = line.map(fn, context=context, name="work", on_error="skip")
    before = time.monotonic()
    with hearing(heard.append, detail=detail):
        result = line.run(sinks=[plain.append])
    assert {event["kind"] for event in plain}.isdisjoint({"items"})
    told = [event for event in heard if event["kind"] == "items"]
    assert {event["name"] for event in told} == {"work"}
    calls = [call for event in told for call in events.expand(event)]
    assert len(calls) == number == result.stats["work"].in_
    for worker in {call["worker"] for call in calls}:
        # Threads tell theirs one after the other.
        own = sorted(call["number"] for call in calls if call["worker"] == worker)
        assert own == [*range(len(own))]
    measured = [call for call in calls if call["begin"] is not None]
    if detail == "every" or fn is not short_call or context == "thread:2":
        assert len(measured) == number
    assert all(before <= call["begin"] <= time.monotonic() for call in measured)
    if fn is long_call:
        assert all(0.0002 <= call["seconds"] < 20 for call in measured)
    if context != "cow_fork:1" and fn in (short_call, long_call):
        assert len(told) < number / 2


def test_short_calls_are_sampled() -> None:
    heard: list[Any] = []
    with hearing(heard.append, detail="items"):
        fm.Pipeline().source(range(5000)).map(abs, context="ipc_fork:1").run()
    told = [event for event in heard if event["kind"] == "items"]
    calls = [call for event in told for call in events.expand(event)]
    assert len(calls) == 5000
    assert 5000 / 64 <= sum(call["begin"] is not None for call in calls) < 2500


# ------------------------------------------------------------------ bounds


@pytest.mark.parametrize("number", [5, 50, 500])
def test_a_slow_sink_loses_events_and_is_told_which(number: int) -> None:
    sink, others = Gate(), []
    with hearing(sink, buffer=10) as end, hearing(others.append):
        tell = Emitter("pipeline")
        tell.emit("first")
        assert sink.entered.wait(20)
        for _ in range(number):
            tell.emit("more")
        sink.open.set()
        end()
        tell.emit("for the others")
    gaps = [event for event in sink.events if event["kind"] == "gap"]
    got = [event for event in sink.events if event["kind"] != "gap"]
    assert len(got) + end.lost == number + 1
    assert sum(gap["data"]["lost"] for gap in gaps) == end.lost
    assert bool(end.lost) == (number > 10)
    assert rising([event["seq"] for event in sink.events])
    missing = set(range(got[0]["seq"], got[0]["seq"] + number + 1)) - {e["seq"] for e in got}
    for gap in gaps:
        first, last = gap["data"]["first"], gap["data"]["last"]
        assert set(range(first, last + 1)) <= missing and gap["data"]["lost"] == last - first + 1


@pytest.mark.parametrize("full", ["queue", "deque"])
def test_what_is_lost_is_told_before_anybody_is_let_go(full: str) -> None:
    bus, got = Bus(), []
    home = Emitter("pipeline")
    slow = Subscription(bus, got.append, ("runs", "drop", 2), home)
    bus.subscribers[slow] = None  # without its thread: what that does is done here, step by step
    for number in range(1, 3 if full == "deque" else 6):
        slow.take(event_of("pipeline", home.id, None, number, "more", {}))
    if full == "deque":
        bus._seq = 2
        for _ in range(3):
            next(bus._dropped)
    bus.queue.append((None, Flush([slow], home)))  # its run is over: it ends when this is reached
    bus._take()
    assert not slow.work() and slow.lost == 3 and not bus.subscribers
    assert [(event["kind"], event["seq"]) for event in got] == [
        ("more", 1),
        ("more", 2),
        ("gap", 5),
    ]
    assert got[-1]["data"] == {"lost": 3, "first": 3, "last": 5}


def test_one_that_blocks_loses_nothing_and_holds_up() -> None:
    sink = Gate()
    told: list[int] = []
    tell = Emitter("pipeline")

    def emit() -> None:
        for i in range(100):
            tell.emit("more")
            told.append(i)

    with hearing(sink, policy="block", buffer=10) as end:
        events._bus.bound, before = 10, events._bus.bound
        thread = threading.Thread(target=emit)
        thread.start()
        assert sink.entered.wait(20)
        tasks.eventually(lambda: len(told) >= 10)
        assert thread.is_alive() and len(told) <= 22  # one it has, ten twice, and one at the door
        sink.open.set()
        thread.join(30)
        end()
        events._bus.bound = before
    assert len(sink.events) == 100 and end.lost == 0


def test_one_that_blocks_for_too_long_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (events.bus, events.subscription):
        monkeypatch.setattr(module, "BLOCK_S", 0.2)
    sink = Gate()
    tell = Emitter("pipeline")
    with hearing(sink, policy="block", buffer=10) as end:
        monkeypatch.setattr(events._bus, "bound", 10)
        began = time.monotonic()
        for _ in range(100):
            tell.emit("more")
        assert 0.15 < time.monotonic() - began < 10
        sink.open.set()
        end()
    assert len(sink.events) - 1 + end.lost == 100
    assert [event["kind"] for event in sink.events].count("gap") == 1
    assert rising([event["seq"] for event in sink.events])


def test_a_sink_that_raises_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []

    def broken(event: Any) -> None:
        raise SystemExit(event["kind"])

    with caplog.at_level(logging.WARNING, "forkmill"), hearing(broken) as end:
        result = fm.Pipeline().source([1]).run(sinks=[heard.append, broken])
        end()
    assert result.ok and result.stats.sink_errors == len(heard) == end.errors
    assert [record.name for record in caplog.records] == ["forkmill.events"] * 2
    assert "a sink of events raised" in caplog.text


def test_a_sink_may_run_a_pipeline_that_has_sinks() -> None:
    heard: list[Any] = []

    def sink(event: Any) -> None:
        if event["kind"] == "run_started":
            assert fm.Pipeline().source([1]).run(sinks=[heard.append]).ok

    result = fm.Pipeline().source([1]).run(sinks=[sink])
    assert result.stats.sink_errors == 0
    tasks.eventually(lambda: heard and heard[-1]["kind"] == "run_finished")
    tasks.eventually(no_thread)


# ------------------------------------------------------------------ ends


def test_a_run_waits_for_its_sinks_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[Any] = []

    def sink(event: Any) -> None:
        time.sleep(0.02)
        slow.append(event["kind"])

    fm.Pipeline().source([1]).map(abs).run(sinks=[sink])
    assert slow[-1] == "run_finished"

    monkeypatch.setattr(events, "DRAIN_S", 0.2)
    gate = Gate()
    began = time.monotonic()
    assert fm.Pipeline().source([1]).run(sinks=[gate]).ok
    assert 0.15 < time.monotonic() - began < 10
    gate.open.set()
    tasks.eventually(no_thread)
    assert len(gate.events) == 1  # what it had; the rest is not for it any more


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_kill_and_stop_do_not_wait_for_sinks(end: str) -> None:
    gate = Gate()
    handle = fm.Pipeline().source([1]).start(sinks=[gate])
    assert gate.entered.wait(20)
    began = time.monotonic()
    getattr(handle, end)()
    if end == "stop":  # once the run is over: before it, it says nothing of its sinks
        tasks.eventually(lambda: handle._driver.events._flush)
        handle.stop()
    handle.result(20)
    assert time.monotonic() - began < 4
    gate.open.set()
    tasks.eventually(no_thread)


def test_ctrl_c_ends_the_wait_for_sinks(start_script: Any) -> None:
    script = start_script(
        """
        import threading, time
        import forkmill as fm

        def sink(event):
            if event["kind"] == "run_finished":
                print("held", flush=True)
                threading.Event().wait()

        began = time.monotonic()
        try:
            fm.Pipeline().source([1]).run(sinks=[sink])
        except KeyboardInterrupt as error:
            assert time.monotonic() - began < 4.5
            print(error.run_result.status, error.run_result.outputs, flush=True)
        import os
        os._exit(0)  # the sink never comes back
        """
    )
    script.wait_for("held")
    os.kill(script.pid, signal.SIGINT)
    assert script.wait(10) == 0, script.report()
    assert script.stdout.endswith("completed [1]\n"), script.report()


def test_the_interpreter_s_end_pools_then_the_stream_then_close(run_script: Any) -> None:
    script = run_script(
        """
        import os, time
        import forkmill as fm

        class Sink:
            def __call__(self, event):
                time.sleep(0.01)
                if event["kind"] in ("run_finished", "told last"):
                    print(event["kind"], flush=True)

            def close(self):
                print("close", flush=True)

        def slow(item):
            time.sleep(0.3)
            print("task", flush=True)

        sink = Sink()
        end = fm.subscribe(sink)
        fm.Pipeline().source([1]).run()
        pool = fm.ProcessPool(1)
        future = pool.submit(slow, 1)
        future.add_done_callback(lambda f: fm.events.Emitter("test").emit("told last"))
        """
    )
    lines = script.stdout.split("\n")
    assert lines[0] == "run_finished" and lines[-2] == "close"
    assert lines.index("task") < lines.index("told last") < lines.index("close")


def test_a_forked_child_has_no_subscribers(run_script: Any) -> None:
    run_script(
        """
        import os, threading
        import forkmill as fm

        heard = []
        end = fm.subscribe(heard.append)
        line = fm.Pipeline().source([1]).map(abs)
        assert line.run().ok
        count = len(heard)
        assert count
        pid = os.fork()
        if not pid:
            assert not fm.events.heard() and line.run().ok and len(heard) == count
            mine = []
            fm.subscribe(mine.append)
            assert line.run(sinks=[mine.append]).ok
            assert len(mine) > 10 and len(heard) == count
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert line.run().ok and len(heard) > count
        end()
        """,
        flags=("-W", "error", "-W", "ignore:This process:DeprecationWarning"),
    )


def test_a_pool_is_forked_although_somebody_listens(run_script: Any) -> None:
    run_script(
        """
        import forkmill as fm

        heard = []
        fm.subscribe(heard.append)
        with fm.ProcessPool(1, start_method="auto") as pool:
            assert pool.submit(abs, -1).result() == 1
            assert pool.stats().start_method == "fork", pool.stats()
        """
    )


# ------------------------------------------------------------------ files


def test_lines_of_events_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    heard: list[Any] = []
    line = fm.Pipeline().source([1, 0]).map(lambda x: 1 // x, on_error="skip", context="thread:1")
    for _ in range(2):  # it is appended to
        line.run(sinks=[fm.JsonLines(path, detail="items"), heard.append])
    found = fm.read_events(path)
    assert [event for event in found if event["kind"] != "items"] == heard
    assert heard[0]["kind"] == "run_started"
    calls = [call for event in found for call in events.expand(event)]
    assert [call["number"] for call in calls] == [0, 1, 0, 1]


def test_a_torn_line_is_left_out_and_told_where_others_follow(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"kind":"one"}\n{"ki')
    assert [event["kind"] for event in fm.read_events(path)] == ["one"]
    sink = fm.JsonLines(str(path))
    sink({"kind": "two"})
    sink({"kind": "three", "data": {1, 2}})
    sink.close()
    sink.close()
    found = fm.read_events(path)
    assert [event["kind"] for event in found] == ["one", "gap", "two", "three"]
    assert found[1]["data"] == {"lost": 1, "first": None, "last": None}
    assert found[3]["data"] == "{1, 2}"
    with pytest.raises(ValueError, match="was closed"):
        sink({"kind": "four"})
    with pytest.raises(OSError, match="No such file"):
        fm.JsonLines(tmp_path / "no" / "folder")
    with pytest.raises(ValueError, match="detail must be one of"):
        fm.JsonLines(path, detail="all")


def test_several_processes_write_whole_lines_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"

    def write(number: int) -> None:
        sink = fm.JsonLines(path)
        for i in range(50):
            sink.batch([{"who": number, "i": i, "text": "x" * 500}] * 3)

    with fm.ProcessPool(2) as pool:
        list(pool.map(write, range(4), chunksize=1))
    found = fm.read_events(path)
    for number in range(4):
        own = [event["i"] for event in found if event["who"] == number]
        assert own == [i for i in range(50) for _ in range(3)]


def test_a_chunk_is_opened_item_by_item(tmp_path: Path) -> None:
    values = array("d", [0, 10.0, 0.5, 2, 11.0, 0.25])
    event = {
        "kind": "items",
        "worker": 7,
        "data": {"first": 3, "count": 4, "packed": values.tobytes()},
    }
    expected = [
        {"number": 3, "begin": 10.0, "seconds": 0.5, "worker": 7},
        {"number": 4, "begin": None, "seconds": None, "worker": 7},
        {"number": 5, "begin": 11.0, "seconds": 0.25, "worker": 7},
        {"number": 6, "begin": None, "seconds": None, "worker": 7},
    ]
    assert events.expand(event) == expected
    fm.JsonLines(tmp_path / "x")(event)
    (read,) = fm.read_events(tmp_path / "x")
    assert events.expand(read) == expected
    assert events.expand({"kind": "batch"}) == []


# ----------------------------------------------------------------------- who comes late


def begins(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(e["source"], e["name"]) for e in events if e["kind"] == "run_started"]


def test_who_comes_late_is_told_what_is_under_way(tmp_path: Path) -> None:
    go, at = threading.Event(), threading.Event()

    def wait(value: Any) -> Any:
        at.set()
        assert go.wait(30)
        return {"n": 1}

    states = fm.StateGraph({"n": None})
    states.add_node("held", wait)
    states.add_edge(fm.START, "held")
    line = fm.Pipeline("line").source([1, 2]).map(wait, context="thread:1")
    recorded = tmp_path / "late.jsonl"
    first: list[Any] = []
    ends_first = fm.subscribe(first.append)
    before = time.monotonic()
    try:
        with fm.ProcessPool(1, name="mill") as pool, fm.executor("thread:1") as executor:
            pool.submit(abs, 1).result()
            tasks.eventually(lambda: any(e["kind"] == "worker_started" for e in first))
            ends_first()
            runs = [line.start(), states.compile().start({"n": 1})]
            mapped = executor.map(wait, [1, 2])
            assert at.wait(30)
            everything = fm.JsonLines(recorded)
            ends = fm.subscribe(everything)
            own: list[Any] = []
            for run in runs:
                run.attach(own.append)
            begun = time.monotonic()
            go.set()
            assert [run.result() is not None for run in runs] == [True, True]
            assert len(list(mapped)) == 2
        ends()
    finally:
        go.set()
    told = list(fm.read_events(recorded))
    assert sorted(begins(told)) == [
        ("map", "wait"), ("pipeline", "line"), ("pool", "mill"), ("stategraph", "state graph"),
    ]  # fmt: skip
    assert [e["seq"] for e in told] == sorted({e["seq"] for e in told})
    for run in {e["run"] for e in told}:
        mine = [e for e in told if e["run"] == run]
        assert mine[0]["kind"] == "run_started" and before <= mine[0]["monotonic"] <= begun
        assert mine[-1]["kind"] == "run_finished", "and its end comes last"
        assert len([e for e in mine if e["kind"] == "run_started"]) == 1
    assert sorted(begins(own)) == [("pipeline", "line"), ("stategraph", "state graph")]
    assert all(e["data"]["late"] for e in own if e["kind"] == "run_started")
    (born,) = (e for e in told if e["kind"] == "worker_started")
    (left,) = (e for e in told if e["kind"] == "worker_left")
    assert born["worker"] == left["worker"] and born["monotonic"] < begun
    page = tmp_path / "late.html"
    from_recording(recorded, page, next(e["run"] for e in told if e["name"] == "line"))
    assert "line" in page.read_text() and "begins after the run does" in page.read_text()
    with contextlib.closing(link.opened(str(recorded))) as source:
        assert source.scene is not None
        runs_shown = {run["title"]: run for run in source.scene["runs"]}
    assert {"line", "state graph", "wait"} == set(runs_shown)
    assert [stage["name"] for stage in runs_shown["state graph"]["stages"]] == ["held"]
    assert {run["status"] for run in runs_shown.values()} == {"completed"}


def test_a_batch_is_told_as_every_event_is_and_made_by_who_tells_it() -> None:
    bus = Bus()
    bus.bound = 10
    home = Emitter("pipeline")
    got: list[Any] = []
    late: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emitter_module, "_bus", bus)
        home.batch("packs", 2)
        assert not bus.queue, "nobody listens"
        for sink in got.append, late.append:
            hears = Subscription(bus, sink, ("runs", "drop", 10), home)
            bus.subscribers[hears] = home.own[hears] = None
        home.emit("retry", "packs")
        home.batch("packs", 2)
        assert type(bus.queue[-1][0]) is tuple, "all that the run's own thread makes"
        home.emit("retry", "packs")
        bus._take()
        for subscriber in tuple(bus.subscribers):
            subscriber.work()
    assert [event["kind"] for event in got] == ["retry", "batch", "retry"]
    assert [event["seq"] for event in got] == [1, 2, 3] and got == late
    assert list(got[1]) == list(got[0]) and set(got[1]) == FIELDS
    assert got[1]["data"] == {"size": 2} and got[1]["data"] is not late[1]["data"]
    assert got[0]["monotonic"] <= got[1]["monotonic"] <= got[2]["monotonic"]

"""A graph in the background, for asyncio, and under Ctrl-C; what it tells."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import forkmill as fm
import graph_nodes as nodes

ENGINES = ["sequential", "threaded:2", "parallel:2", "async"]
CHAIN = fm.Graph([nodes.double, nodes.plus])


def slowly(x: int) -> int:
    time.sleep(0.01)
    return x


SLOW = fm.Graph([slowly])


# ------------------------------------------------------------------------------ handles


@pytest.mark.parametrize("engine", ENGINES)
def test_a_handle_gives_what_a_call_gives(engine: str) -> None:
    handle = CHAIN.start({"x": 3}, engine=engine)
    assert handle.result(30) == {"double": 6, "plus": 7}
    assert handle.done()
    rows = CHAIN.start_map({"x": range(9)}, "x", output_name="plus", engine=engine).result(30)
    assert rows.ok
    assert rows == [{"plus": 2 * x + 1} for x in range(9)]
    with pytest.raises(fm.BuildError, match="'y'"):
        CHAIN.start({"y": 3}, engine=engine)
    broken = fm.Graph([nodes.three_fails]).start_map({"x": range(9)}, "x", engine=engine)
    with pytest.raises(ValueError, match="it is three"):
        broken.result(30)


def test_stop_drops_no_part_of_an_item_that_has_begun() -> None:
    called: set[int] = set()
    running, go = threading.Event(), threading.Event()

    def left(x: int) -> int:
        called.add(x)
        running.set()
        go.wait(20)
        return x

    def right(x: int) -> int:
        called.add(x)
        return x

    there = [fm.node(fn, context="thread:1") for fn in (left, right)]
    both = fm.Graph([*there, fm.node(lambda left, right: 0, output_name="y")])
    inner = both.as_node(map_over="x", name="inner")
    outer = fm.Graph([inner])
    pairs = [[2 * n, 2 * n + 1] for n in range(300)]
    for graph, items, size in (both, [*range(300)], 1), (outer, pairs, 2):
        for event in running, go:
            event.clear()
        called.clear()
        handle = graph.start_map({"x": items}, "x", engine="sequential")
        assert running.wait(20)
        handle.stop()
        time.sleep(0.05)  # it has looked at that, or does as soon as it can
        go.set()
        rows = handle.result(20)
        assert rows.status == "stopped"
        assert 0 < len(rows) < 300
        assert {x // size for x in called} == {*range(len(rows))}


def test_stop_begins_no_more_of_a_nested_map_that_it_drops() -> None:
    called: list[int] = []
    running, go = threading.Event(), threading.Event()

    def call(x: int) -> int:
        called.append(x)
        running.set()
        go.wait(20)
        return x

    inner = fm.Graph([fm.node(call, context="thread:1")], name="inner")
    graph = fm.Graph([inner.as_node(map_over="x")])
    lists = [[0], [1] * 9, [2] * 9]
    handle = graph.start_map({"x": lists}, "x", engine="sequential")
    assert running.wait(20)  # of the second one something waits, and something was not looked at
    handle.stop()
    time.sleep(0.05)
    go.set()
    rows = handle.result(20)
    assert rows.status == "stopped"
    assert rows["call"] == lists[: len(rows)]
    assert called == [x for row in rows["call"] for x in row]


@pytest.mark.parametrize("engine", ENGINES)
def test_stop_begins_nothing_new_and_finishes_what_runs(engine: str) -> None:
    begun = itertools.count()
    handle = SLOW.start_map({"x": begun}, "x", engine=engine)
    while next(begun) < 8:
        time.sleep(0.01)
    handle.stop()
    rows = handle.result(30)
    assert rows.status == "stopped"
    assert rows["slowly"] == [row["slowly"] for row in rows]
    assert handle.done()


@pytest.mark.parametrize("engine", ["sequential", "threaded:2", "parallel:2"])
def test_kill_ends_a_run_that_is_held_by_its_function(
    engine: str, run_script: Callable[..., Any]
) -> None:
    run_script(
        f"""
        import time, concurrent.futures
        import forkmill as fm

        def held(x):
            if x == 1:
                time.sleep(600)
            return x

        if __name__ == "__main__":
            graph = fm.Graph([held])
            handle = graph.start_map({{"x": range(9)}}, "x", engine={engine!r})
            time.sleep(0.5)
            start = time.monotonic()
            handle.kill()
            rows = handle.result(10)
            assert rows.status == "stopped", rows
            assert time.monotonic() - start < 5
            single = graph.start({{"x": 1}}, engine={engine!r})
            time.sleep(0.3)
            single.kill()
            try:
                single.result(10)
            except concurrent.futures.CancelledError:
                print("over")
        """
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_asyncio_forms(engine: str) -> None:
    async def main() -> None:
        assert await CHAIN.arun({"x": 3}, "plus", engine=engine) == {"plus": 7}
        rows = await CHAIN.amap({"x": range(5)}, "x", engine=engine)
        assert rows["plus"] == [1, 3, 5, 7, 9]
        stream: Any = CHAIN.aimap({"x": itertools.count()}, "x", "zip", "plus", engine=engine)
        async with contextlib.aclosing(stream) as lazy:
            seen = []
            async for row in lazy:
                seen.append(row["plus"])
                if len(seen) == 20:
                    break
        assert seen == list(range(1, 41, 2))
        assert await CHAIN.start({"x": 1}, "plus", engine=engine) == {"plus": 3}
        assert CHAIN.run({"x": 3}, "plus", engine=engine) == {"plus": 7}  # a loop runs here

    asyncio.run(main())


def test_a_task_that_is_cancelled_ends_its_run() -> None:
    async def main() -> None:
        begun = itertools.count()
        task = asyncio.create_task(SLOW.amap({"x": begun}, "x", engine="threaded:2"))
        while next(begun) < 8:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_what_a_node_raises_comes_out_of_a_handle() -> None:
    handle = fm.Graph([nodes.three_fails]).start({"x": 3})
    with pytest.raises(ValueError, match="it is three") as caught:
        handle.result(30)
    assert caught.value.failure.stage == "three_fails"  # type: ignore[attr-defined]
    with pytest.raises(concurrent.futures.TimeoutError):
        SLOW.start_map({"x": itertools.repeat(1, 50)}, "x").result(0.01)


# ------------------------------------------------------------------------------ Ctrl-C


@pytest.mark.parametrize("how", ["threaded:2", "parallel:2", "nodes", "sequential"])
def test_ctrl_c_once_finishes_what_runs_and_twice_ends_it(
    how: str, run_script: Callable[..., Any]
) -> None:
    run_script(
        f"""
        import os, signal, threading, time
        import forkmill as fm

        def slowly(x):
            time.sleep(0.05)
            return x

        @fm.node(context="thread:2")
        def on(slowly):
            return slowly + 1

        def for_ever(x):
            while True:
                time.sleep(0.01)

        def interrupt(rows, after=4, times=1):
            for row in rows:
                after -= 1
                if not after:
                    os.kill(os.getpid(), signal.SIGINT)
                yield row

        if __name__ == "__main__":
            how = {how!r}
            engine = fm.LocalEngine("parallel:2") if how == "nodes" else how
            for graph in (fm.Graph([slowly]), fm.Graph([slowly, on])):
                try:
                    graph.map({{"x": interrupt(range(10**6))}}, "x", engine=engine)
                except KeyboardInterrupt as error:
                    assert error.result.status == "stopped"
                    assert len(error.result) < 100
                else:
                    raise AssertionError("it was not interrupted")
            if how != "sequential":
                main = threading.main_thread().ident
                def twice():
                    for _ in range(2):
                        time.sleep(0.7)
                        signal.pthread_kill(main, signal.SIGINT)
                threading.Thread(target=twice, daemon=True).start()
                start = time.monotonic()
                try:
                    fm.Graph([for_ever]).map({{"x": range(50)}}, "x", engine=engine)
                except KeyboardInterrupt:
                    assert time.monotonic() - start < 20
                    print("over")
        """
    )


# ------------------------------------------------------------------------------ events


class Sink:
    def __init__(self, detail: str) -> None:
        self.detail = detail
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def kinds(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


@pytest.mark.parametrize("detail", ["runs", "items"])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_begin_has_its_end(engine: str, detail: str) -> None:
    graph = fm.Graph([nodes.three_fails, nodes.behind, nodes.double], name="told")
    for on_error in ("skip", "raise"):
        sink = Sink(detail)
        with contextlib.suppress(ValueError):
            graph.map({"x": range(6)}, "x", on_error=on_error, engine=engine, sinks=[sink])
        first, last = sink.events[0], sink.events[-1]
        assert (first["kind"], last["kind"]) == ("run_started", "run_finished")
        assert first["data"]["total"] == 6
        names = {node["name"] for node in first["data"]["plan"]["nodes"]}
        assert names == {"three_fails", "behind", "double"}
        begins = [(e["name"], e["data"].get("index")) for e in sink.kinds("node_started")]
        ends = [(e["name"], e["data"].get("index")) for e in sink.kinds("node_finished")]
        assert sorted(begins, key=str) == sorted(ends, key=str)
        assert last["data"]["status"] == ("completed" if on_error == "skip" else "failed")
        (failed,) = sink.kinds("item_failed")
        assert (failed["name"], failed["data"]["index"]) == ("three_fails", 3)
        if on_error == "skip":
            progress = sink.kinds("progress")[-1]["data"]
            assert (progress["done"], progress["failed"], progress["total"]) == (6, 1, 6)
    assert len({event["run"] for event in sink.events}) == 1


def test_a_sink_that_raises_changes_nothing() -> None:
    def sink(event: dict[str, Any]) -> None:
        raise RuntimeError("sink")

    assert CHAIN.map({"x": [1]}, "x", engine="threaded:2", sinks=[sink])["plus"] == [3]


def test_no_events_no_thread() -> None:
    CHAIN.map({"x": range(3)}, "x", engine="threaded:2")
    assert not [thread for thread in threading.enumerate() if "events" in thread.name]


@pytest.mark.parametrize("engine", ["sequential", "threaded:2", "async:2", "parallel:2"])
def test_stop_waits_for_no_input(engine: str) -> None:
    """What waits in the user's generator is left behind; what was begun is the result."""
    gate, waits = threading.Event(), threading.Event()

    def numbers() -> Iterator[int]:
        yield from range(3)
        waits.set()
        gate.wait(60)
        yield 3

    handle = fm.Graph([nodes.double]).start_map({"x": numbers()}, "x", engine=engine)
    try:
        assert waits.wait(20)
        handle.stop()
        rows = handle.result(20)
        assert rows["double"] == [0, 2, 4][: len(rows)]
        assert rows.status == "stopped"
    finally:
        gate.set()


@pytest.mark.parametrize("engine", ["sequential", "threaded:2", "parallel:2"])
def test_an_input_in_the_background_is_pulled_as_far_as_there_is_room(engine: str) -> None:
    pulled: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(50):
            pulled.append(number)
            yield number
        raise LookupError("no more")

    handle = fm.Graph([nodes.double]).start_map({"x": numbers()}, "x", engine=engine)
    with pytest.raises(LookupError, match="no more"):
        handle.result(20)
    assert pulled == list(range(50))

"""A stream that is closed while somebody waits for an output: by another thread, by a call of the
run itself, by a signal handler. It is at its end, nobody waits, and nothing of it is left.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from typing import Any, TypedDict

import pytest

import forkmill as fm

pytestmark = pytest.mark.timeout(60)

CONTEXTS = ["inline", "thread:2", "async:2", "ipc_fork:1", "cow_fork:1"]


def same(item: Any) -> Any:
    return item


@pytest.mark.parametrize("context", CONTEXTS)
def test_another_thread_closes_it(context: str) -> None:
    stream = fm.Pipeline().source(itertools.count()).map(same, context=context).stream()
    got, some = [], threading.Event()

    def read() -> None:
        for output in stream:
            got.append(output)
            if len(got) == 3:
                some.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert some.wait(20)
    stream.close()
    reader.join(20)
    assert not reader.is_alive()
    assert stream.result is not None and stream.result.status == "stopped"
    assert not stream.result.failures
    assert next(stream, "end") == "end"


def test_another_thread_closes_it_while_a_stage_blocks() -> None:
    begun, go = threading.Event(), threading.Event()

    def block(item: int) -> int:
        begun.set()
        go.wait(20)
        return item

    stream = fm.Pipeline().source([1, 2]).map(block).stream()
    ends: list[Any] = []

    def read() -> None:
        ends.extend([*stream, "end"])

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    stream.close()
    assert stream.result is not None and stream.result.left_behind == ["block"]
    go.set()
    reader.join(20)
    assert ends == ["end"]


@pytest.mark.parametrize("context", ["inline", "thread:1", "async:1"])
def test_a_stage_closes_its_own(context: str) -> None:
    def closes(item: int) -> int:
        if item == 5:
            stream.close()
        return item

    stream = fm.Pipeline().source(itertools.count()).map(closes, context=context).stream()
    got = [*stream]
    assert got == [*range(len(got))] and len(got) <= 6
    assert stream.result is not None and stream.result.status == "stopped"


@pytest.mark.parametrize("context", ["inline", "thread:1"])
def test_a_signal_handler_closes_it(context: str) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: stream.close())
    try:
        stream = fm.Pipeline().source(itertools.count()).map(same, context=context).stream()
        for output in stream:
            if output == 1000:
                os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stream.result is not None and stream.result.status == "stopped"


def test_two_threads_close_it_at_any_moment() -> None:
    for turn in range(20):
        stream = fm.Pipeline().source(itertools.count()).batch(2).unbatch().stream()
        got: list[int] = []
        reader = threading.Thread(target=lambda: got.extend(stream))  # noqa: B023
        closers = [threading.Thread(target=stream.close) for _ in range(2)]
        for thread in (reader, *closers):
            thread.start()
            sum(range(turn * 1000))
        for thread in (*closers, reader):
            thread.join(20)
            assert not thread.is_alive()
        assert stream.result is not None and stream.result.status == "stopped"
        assert next(stream, "end") == "end" and got == [*range(len(got))]


def test_kill_while_one_group_blocks_and_another_waits_for_its_turn() -> None:
    """What it waits with is closed by who takes the run over, and does not end that."""
    begun, go = threading.Event(), threading.Event()

    def many(item: int) -> Any:
        yield from range(5000)

    def block(items: list[int]) -> Any:
        begun.set()
        go.wait(20)

    pipeline = fm.Pipeline().source([1]).flat_map(many, queue_size=2)
    handle = pipeline.batch(3, max_wait=5.0, queue_size=2).map(block).start()
    assert begun.wait(20)
    handle.kill()
    try:
        result = handle.result(10)
    finally:
        go.set()
    assert result.status == "stopped" and result.left_behind == ["block"]


class State(TypedDict):
    n: int


@pytest.mark.parametrize("own", [False, True], ids=["another thread", "a node"])
def test_a_state_graph_s_stream_ends_after_its_step(own: bool) -> None:
    some = threading.Event()

    def count(state: State) -> State:
        if state["n"] == 3:
            if own:
                stream.close()
            some.set()
        return {"n": state["n"] + 1}

    graph = fm.StateGraph(State)
    graph.add_node("count", count)
    graph.add_edge(fm.START, "count")
    graph.add_conditional_edges("count", lambda state: "count")
    stream = graph.compile().stream({"n": 0}, max_steps=10**9)
    reader = threading.Thread(target=lambda: [*stream])
    reader.start()
    assert some.wait(20)
    stream.close()
    reader.join(20)
    assert not reader.is_alive()
    stream.close()  # else it was between two items just then: it is closed by now
    assert stream.result is not None
    if own:
        assert stream.result.status == "drained"

"""The ways to run a state graph: streams, handles, event loops, Ctrl-C; nodes that are graphs."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
import stategraph_nodes as nodes
from stategraph_nodes import Log, calls

import forkmill as fm
import forkmill.codec.program

pytestmark = pytest.mark.timeout(60)

START, END = fm.START, fm.END
FORKED = fm.ipc_fork(2, start_method="fork")


SLOW = [pytest.mark.slow]


@pytest.fixture(
    params=["inline", "thread:2", "processes", pytest.param("cow_fork:2", marks=SLOW)],
)
def where(request: pytest.FixtureRequest) -> Any:
    return FORKED if request.param == "processes" else request.param


def line_of(where: Any, schema: Any = Log, /, **named: Any) -> fm.StateGraph:
    """Nodes one after another."""
    graph = fm.StateGraph(schema, context=where)
    before = START
    for name, fn in named.items():
        graph.add_node(name, fn)
        graph.add_edge(before, name)
        before = name
    return graph


def side_by_side(where: Any, schema: Any = Log, /, **named: Any) -> fm.StateGraph:
    graph = fm.StateGraph(schema, context=where)
    for name, fn in named.items():
        graph.add_node(name, fn)
        graph.add_edge(START, name)
    return graph


# --------------------------------------------------------------------------- streams


def test_updates_come_as_their_steps_are_committed(where: Any) -> None:
    app = line_of(where, a=nodes.a, b=nodes.nothing, c=nodes.over).compile()
    stream = app.stream({})
    assert list(stream) == [{"a": {"log": ["a"]}}, {"b": None}, {"c": {"k": fm.Overwrite("over")}}]
    assert stream.result.status == "completed"


def test_values_begin_with_the_input(where: Any) -> None:
    app = line_of(where, a=nodes.count, b=nodes.count).compile()
    assert [state["n"] for state in app.stream({"n": 1}, mode="values")] == [1, 2, 3]
    modes = [mode for mode, _ in app.stream({"n": 1}, mode=["values", "updates"])]
    assert modes == ["values", "updates", "values", "updates", "values"]


def test_tasks_tell_their_begin_and_end(where: Any) -> None:
    app = line_of(where, a=nodes.a).compile()
    told = [(item["event"], item["node"]) for item in app.stream({}, mode="tasks")]
    assert told == [("started", "a"), ("finished", "a")]


def talk(state: Any) -> Any:
    fm.emit("one")
    fm.emit({"two": fm.task_id().node})
    return {"log": ["talked"]}


def talk_and_fail(state: Any) -> Any:
    fm.emit("last word")
    raise ValueError("failed")


def test_what_a_task_says_comes_before_its_update(where: Any) -> None:
    app = line_of(where, talk=talk).compile()
    assert list(app.stream({}, mode=["updates", "custom"])) == [
        ("custom", "one"),
        ("custom", {"two": "talk"}),
        ("updates", {"talk": {"log": ["talked"]}}),
    ]
    assert app.invoke({})["log"] == ["talked"]


def test_what_a_failing_task_said_comes_before_its_failure(where: Any) -> None:
    stream = line_of(where, talk=talk_and_fail).compile().stream({}, mode="custom")
    assert next(stream) == "last word"
    with pytest.raises(ValueError, match="failed"):
        next(stream)
    assert stream.result.status == "failed"


@pytest.mark.parametrize("end", ["close", "drop", "before"])
def test_a_stream_that_is_left_leaves_a_session_to_resume(where: Any, end: str) -> None:
    app = line_of(where, a=nodes.a, b=nodes.b).compile(checkpoints=fm.MemoryCheckpoints())
    stream = app.stream({}, session="s")
    if end == "before":
        stream.close()
    else:
        assert next(stream) == {"a": {"log": ["a"]}}
        if end == "close":
            stream.close()
            assert stream.result.status == "drained"
        else:
            del stream
    assert app.resume(session="s")["log"] == ["a", "b"]


def test_an_unknown_mode_is_refused_before_anything_runs() -> None:
    with pytest.raises(fm.BuildError, match="did you mean 'values'"):
        line_of("inline", a=nodes.a).compile().stream({}, mode="valeus")


# --------------------------------------------------------------------------- handles


def slow(state: Any) -> Any:
    nodes.mark(state, "slow")
    until = time.monotonic() + state["n"]
    while time.monotonic() < until:
        time.sleep(0.005)
    return {"log": ["slow"]}


def test_stop_ends_after_the_step(where: Any, tmp_path: Path) -> None:
    graph = line_of(where, slow=slow).add_edge("slow", "slow")
    app = graph.compile(checkpoints=fm.MemoryCheckpoints())
    state = {"folder": str(tmp_path), "n": 0.1}
    handle = app.start(state, session="s")
    nodes.wait_for(state, "slow")
    assert not handle.done()
    with pytest.raises(fm.errors.SessionBusy):
        app.resume(session="s")
    handle.stop()
    run = handle.result(30)
    assert (run.status, run["log"], run.frontier) == ("drained", ["slow"] * run.step, ["slow"])
    assert handle.done()


def test_kill_ends_now_and_frees_the_session(where: Any, tmp_path: Path) -> None:
    app = side_by_side(where, a=nodes.counted_a, slow=slow).compile(
        checkpoints=fm.MemoryCheckpoints()
    )
    state = {"folder": str(tmp_path), "n": 2.5}
    handle = app.start(state, session="s")
    nodes.wait_for(state, "slow")
    nodes.wait_for(state, "a")
    handle.kill()
    run = handle.result(30)
    assert (run.status, run.step, run.frontier) == ("killed", 0, ["a", "slow"])
    with app.open("s") as session:
        assert session.status == "killed"
        session.update({"n": 0})
        assert session.run_until_complete()["log"] == ["a", "slow"]


# ----------------------------------------------------------------------- event loops


def test_the_loop_goes_on_while_a_graph_runs(where: Any) -> None:
    async def main() -> Any:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.001)
                beats += 1

        heart = asyncio.create_task(beat())
        run = await line_of(where, a=nodes.a, b=nodes.b, c=nodes.alone).compile().ainvoke({})
        heart.cancel()
        return run, beats

    run, beats = asyncio.run(main())
    assert run["log"] == ["a", "b", "alone"]
    assert beats


def test_coroutines_without_a_context_run_in_the_callers_loop() -> None:
    found: list[Any] = []

    async def node(state: Any) -> Any:
        found.append(asyncio.get_running_loop())
        await meet.wait()
        return {"log": [fm.task_id().node]}

    async def main() -> Any:
        nonlocal meet
        meet = asyncio.Barrier(2)  # both are there at once
        run = await side_by_side("inline", b=node, a=node).compile().ainvoke({})
        return run, asyncio.get_running_loop()

    meet: Any = None
    run, loop = asyncio.run(main())
    assert run["log"] == ["b", "a"]
    assert found == [loop, loop]


def test_coroutines_run_at_once_without_a_loop_too() -> None:
    meet = threading.Barrier(2)

    async def node(state: Any) -> Any:
        await asyncio.to_thread(meet.wait, 20)
        return {"log": ["met"]}

    assert side_by_side("inline", a=node, b=node).compile().invoke({})["log"] == ["met", "met"]


def test_a_task_that_is_cancelled_kills_its_run(where: Any, tmp_path: Path) -> None:
    app = line_of(where, slow=slow).compile(checkpoints=fm.MemoryCheckpoints())
    state = {"folder": str(tmp_path), "n": 2.5}

    async def main() -> None:
        task = asyncio.create_task(app.ainvoke(state, session="s"))
        await asyncio.to_thread(nodes.wait_for, state, "slow")
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    with app.open("s") as session:
        assert session.status == "killed"


def test_an_async_stream_gives_the_same_items(
    where: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    app = line_of(where, a=nodes.a, b=nodes.b).compile(checkpoints=fm.MemoryCheckpoints())

    async def main() -> Any:
        whole = [item async for item in app.astream({})]
        part = app.astream({}, session="s")
        async for _ in part:
            break
        await part.aclose()
        return whole, await app.aresume(session="s")

    whole, run = asyncio.run(main())
    assert whole == list(app.stream({}))
    assert run["log"] == ["a", "b"]
    assert capfd.readouterr().err == ""  # no worker is a child of the reading thread


# ---------------------------------------------------------------------------- Ctrl-C

SCRIPT = """
import os, sys, time
sys.path.insert(0, {here!r})
import forkmill as fm, stategraph_nodes as nodes
from forkmill.stategraph.drive import Interrupts

handle = Interrupts._handle

def told(*args):
    handle(*args)
    os.write(1, b"heard\\n")

Interrupts._handle = told

def slow(state):
    print("begun", flush=True)
    until = time.monotonic() + {seconds}
    while time.monotonic() < until:
        time.sleep(0.005)
    return {{"n": state["n"] + 1}}

graph = fm.StateGraph({{"n": None}}, context={where!r})
graph.add_node("slow", slow)
graph.add_edge(fm.START, "slow")
graph.add_edge("slow", "slow")
app = graph.compile(checkpoints=fm.MemoryCheckpoints())
try:
    app.invoke({{"n": 0}}, session="s")
except KeyboardInterrupt as error:
    print(error.state_run.status, error.state_run.step, app.open("s").status, flush=True)
"""


@pytest.mark.parametrize(
    "kind",
    [
        *("inline", "parallel:1"),
        *(pytest.param(kind, marks=SLOW) for kind in ("thread:1", "cow_fork:1")),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_drains_and_twice_kills(kind: str, times: int, start_script: Any) -> None:
    seconds = 1.0 if times == 1 else 20
    here = os.path.dirname(__file__)
    script = start_script(SCRIPT.format(here=here, where=kind, seconds=seconds))
    script.wait_for("begun")
    os.kill(script.pid, signal.SIGINT)
    if times == 2:
        script.wait_for("heard")  # two at once are one
        os.kill(script.pid, signal.SIGINT)
    assert script.wait(15) == 0, script.report()
    said = "drained 1 drained" if times == 1 else "killed 0 killed"
    assert said in script.stdout, script.report()


def test_a_handler_that_a_node_sets_stays() -> None:
    def mine(*args: Any) -> None:
        pass

    def sets(state: Any) -> None:
        signal.signal(signal.SIGINT, mine)

    old = signal.getsignal(signal.SIGINT)
    try:
        line_of("inline", {"n": None}, a=sets).compile().invoke({"n": 0})
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, old)


# --------------------------------------------------------------------- other shapes


@fm.node
def words(text: str) -> list[str]:
    return text.split()


@fm.node(output_name="count")
def counted(words: list[str]) -> int:
    return len(words)


def up(state: Any) -> Any:
    return {"n": state["n"] + 1}


def test_a_function_graph_is_a_node(where: Any) -> None:
    keys = {"text": None, "count": None, "n": None}
    app = line_of(where, keys, g=fm.Graph([words, counted], name="g")).compile()
    assert app.invoke({"text": "a b c"}).state == {"text": "a b c", "count": 3}
    with pytest.raises(fm.BuildError, match="none of the graph's outputs"):
        line_of(where, {"text": None}, g=fm.Graph([words, counted], name="g")).compile()
    with pytest.raises(fm.BuildError, match="needs 'text', which is no key"):
        line_of(where, {"texts": None, "count": None}, g=fm.Graph([words, counted])).compile()


def test_a_pipeline_is_a_node(where: Any) -> None:
    assert line_of(where, p=fm.Pipeline().map(up)).compile().invoke({"n": 1})["n"] == 2
    own = fm.Pipeline().source([{"log": ["x"]}, {"log": ["y"]}])
    assert line_of(where, p=own).compile().invoke({})["log"] == ["x", "y"]


def asks(state: Any) -> Any:
    return {"log": [f"asks {fm.interrupt('ok?')}"]}


@pytest.mark.parametrize("stored", [True, False])
def test_a_state_graph_is_a_session_of_its_own(stored: bool, tmp_path: Path) -> None:
    inner = line_of("inline", a=nodes.counted_a, asks=asks, again=asks).compile()
    outer = line_of("inline", b=nodes.b, sub=inner, c=nodes.c)
    store = fm.MemoryCheckpoints() if stored else None
    with outer.compile(checkpoints=store).open("s", input={"folder": str(tmp_path)}) as session:
        for answer in (fm.stategraph.begin.NOTHING, "yes"):
            run = session.run_until_complete(answer)
            assert (run.status, run.frontier) == ("interrupted", ["sub"])
            assert [question.value for question in run.interrupts] == ["ok?"]
        run = session.run_until_complete("no")
    assert run["log"] == ["b", "a", "asks yes", "asks no", "c"]
    if store is not None:
        assert calls(tmp_path, "a") == 1
        assert [info.id for info in store.sessions()] == ["s/sub", "s"]
        assert [c.kind for c in store.history("s/sub")].count("step") == 3


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_state_graph_in_it_is_stored_by_the_codec_of_its_store(codec: str) -> None:
    inner = line_of("inline", asks=asks, k=nodes.nothing).compile()
    app = line_of("inline", sub=inner).compile(checkpoints=fm.MemoryCheckpoints(codec=codec))
    app.invoke({"k": {"deep": [[1], {"a": [2]}]}, "log": ["first"]}, session="s")
    run = app.resume({"deep": [3]}, session="s")
    assert run["k"] == {"deep": [[1], {"a": [2]}]}
    assert run["log"] == ["first", "asks {'deep': [3]}"]


class Folded(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    grows: Annotated[list[str], fm.append]
    total: Annotated[int, operator.add]
    text: Annotated[str, operator.add]
    best: Annotated[str, max]
    some: Annotated[set[str], operator.or_]
    odd: Annotated[list[str], lambda old, new: [*new, *old]]


class Adds:
    """A node that writes to all keys but one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, state: Any) -> Any:
        name = self.name
        lists = {"log": [name], "grows": [name]}
        return {**lists, "total": len(name), "text": name, "best": name, "some": {name}}


@pytest.mark.parametrize("stored", [True, False])
def test_others_write_beside_a_state_graph(stored: bool) -> None:
    inner = line_of("inline", Folded, a=Adds("aa"), b=Adds("b")).compile()
    app = side_by_side("inline", Folded, c=Adds("c"), sub=inner, d=Adds("d"))
    before = {"log": ["i"], "grows": ["i"], "total": 5, "text": "i", "best": "a", "some": {"i"}}
    run = app.compile(checkpoints=fm.MemoryCheckpoints() if stored else None).invoke(before)
    assert run["log"] == run["grows"] == ["i", "c", "aa", "b", "d"]
    assert (run["total"], run["text"], run["best"]) == (10, "icaabd", "d")
    assert run["some"] == {"i", "c", "aa", "b", "d"}


def test_what_a_state_graph_folded_by_a_function_of_ones_own_is_an_overwrite() -> None:
    def first(state: Any) -> Any:
        return {"odd": ["first"]}

    inner = line_of("inline", Folded, a=first).compile()
    assert line_of("inline", Folded, sub=inner).compile().invoke({"odd": ["i"]})["odd"] == [
        "first",
        "i",
    ]
    with pytest.raises(fm.errors.UpdateError, match="two writers for odd: sub, b in step 1"):
        side_by_side("inline", Folded, sub=inner, b=first).compile().invoke({"odd": ["i"]})


def test_a_state_graph_begins_anew_when_it_is_met_again() -> None:
    inner = line_of("inline", a=nodes.a, x=nodes.x).compile()
    outer = line_of("inline", sub=inner, n=nodes.count)
    outer.add_conditional_edges("n", lambda s: "sub" if s["n"] < 3 else END, ["sub", END])
    run = outer.compile(checkpoints=fm.MemoryCheckpoints()).invoke({"n": 0}, session="s")
    assert run["log"] == ["a", "x"] * 3


def test_a_state_graph_fails_as_a_node_and_goes_on_where_it_was(tmp_path: Path) -> None:
    inner = line_of("inline", a=nodes.counted_a, x=nodes.once).compile()
    app = line_of("inline", sub=inner).compile(checkpoints=fm.MemoryCheckpoints())
    with pytest.raises(ValueError, match="first try") as caught:
        app.invoke({"folder": str(tmp_path)}, session="s")
    assert caught.value.state_run.failures[0].stage == "sub"
    assert {"'x'", "'sub'"} <= {note.split()[2].strip(":") for note in caught.value.__notes__}
    assert app.resume(session="s")["log"] == ["a", "x"]
    assert calls(tmp_path, "a") == 1


def test_a_state_graph_runs_inline_only(where: Any) -> None:
    inner = line_of("inline", a=nodes.a).compile()
    if where == "inline":
        assert line_of(where, sub=inner).compile().invoke({})["log"] == ["a"]
    else:
        with pytest.raises(fm.BuildError, match="'sub' is a state graph, which runs inline only"):
            line_of(where, sub=inner).compile()


def test_a_kill_ends_the_run_of_a_node_that_is_a_state_graph(where: Any, tmp_path: Path) -> None:
    inner = line_of(where, a=nodes.counted_a, slow=slow)
    middle = line_of("inline", inner=inner.compile())
    store = fm.MemoryCheckpoints()
    app = line_of("inline", sub=middle.compile()).compile(checkpoints=store)
    state = {"folder": str(tmp_path), "n": 2.5}
    handle = app.start(state, session="s")
    nodes.wait_for(state, "slow")
    handle.kill()
    run = handle.result(30)
    assert (run.status, run.step, run.frontier) == ("killed", 0, ["sub"])
    found = {info.id: (info.status, info.owner) for info in store.sessions()}
    assert found == dict.fromkeys(["s", "s/sub", "s/sub/inner"], ("killed", None))
    with app.open("s") as session:  # what was committed inside is not repeated
        assert store.load("s/sub/inner").checkpoint.step == 1
        with fm.StateGraph.compile(inner, checkpoints=store).open("s/sub/inner") as deep:
            deep.update({"n": 0})
        assert session.run_until_complete()["log"] == ["a", "slow"]
    assert nodes.calls(tmp_path, "a") == 1


def stepping(state: Any) -> Any:
    nodes.mark(state, "x")
    time.sleep(0.01)
    return {"n": state["n"] + 1}


def on(state: Any) -> Any:
    """Until the file that lets it end is there."""
    return END if Path(state["folder"], "enough").exists() else "x"


@pytest.mark.parametrize("stored", [True, False])
def test_a_stop_drains_the_run_of_a_node_that_is_a_state_graph(
    where: Any, stored: bool, tmp_path: Path
) -> None:
    inner = line_of(where, x=stepping).add_conditional_edges("x", on, ["x", END])
    middle = line_of("inline", inner=inner.compile(max_steps=10**6))
    outer = fm.StateGraph(Log).add_node("sub", middle.compile()).add_node("a", nodes.counted_a)
    outer.add_edge(START, "sub").add_edge(START, "a").add_node("b", nodes.b)
    outer.add_edge(["sub", "a"], "b")
    store = fm.MemoryCheckpoints() if stored else None
    app = outer.compile(checkpoints=store)
    state = {"folder": str(tmp_path), "n": 0}
    handle = app.start(state, session="s")
    nodes.wait_for(state, "x")
    handle.stop()
    run = handle.result(10)
    assert (run.status, run.step, run.frontier) == ("drained", 0, ["sub", "a"])
    assert nodes.calls(tmp_path, "a") == 1  # what is beside it was let finish
    if store is None:
        return
    found = {info.id: (info.status, info.owner) for info in store.sessions()}
    assert found == dict.fromkeys(["s", "s/sub", "s/sub/inner"], ("drained", None))
    done = store.load("s/sub/inner").checkpoint.step
    assert done == nodes.calls(tmp_path, "x") > 0
    Path(tmp_path, "enough").touch()
    run = app.resume(session="s")
    assert (run.status, run["log"], run["n"]) == ("completed", ["a", "b"], done + 1)
    assert (nodes.calls(tmp_path, "a"), nodes.calls(tmp_path, "x")) == (1, done + 1)


# -------------------------------------------------------------------------- the rest


def test_without_checkpoints_a_session_has_its_last_point(where: Any, tmp_path: Path) -> None:
    app = line_of(where, a=nodes.a, x=nodes.b, k=nodes.nothing).compile()
    with app.open("s", input={"folder": str(tmp_path)}) as session:
        seen = [session.history()]
        session.step()
        seen.append(session.history())
        session.update({"k": [1]})
        seen.append(session.history())
        with session.fork(session="t") as fork:
            assert (fork.id, fork.state, fork.frontier) == ("t", session.state, ["x"])
            assert fork.run_until_complete()["log"] == ["a", "b"]
            assert fork.history()[0].author == "k"
        assert session.state_at(3) == {"folder": str(tmp_path), "log": ["a"], "k": [1]}
        for old in (1, 2, 99):
            with pytest.raises(fm.errors.SessionConflict, match="MemoryCheckpoints"):
                session.state_at(old)
            with pytest.raises(fm.errors.SessionConflict, match="MemoryCheckpoints"):
                session.fork(old)
    told = [(at.seq, at.step, at.parent, at.kind, at.author) for [at] in seen]
    assert told == [
        (1, 0, None, "input", "input"),
        (2, 1, 1, "step", "a"),
        (3, 1, 2, "edit", "update"),
    ]
    assert [[task.node for task in at.frontier] for [at] in seen] == [["a"], ["x"], ["x"]]


def test_who_comes_while_a_run_is_under_way_hears_the_rest(where: Any, tmp_path: Path) -> None:
    app = line_of(where, slow=slow, slow2=slow, a=nodes.a, b=nodes.b).compile()
    state = {"folder": str(tmp_path), "n": 0.1}
    told: list[Any] = []
    handle = app.start(state)
    nodes.wait_for(state, "slow")
    hears = fm.events.subscribe(lambda event: told.append(event))
    handle.result(30)
    hears()
    kinds = [(event["kind"], event["name"]) for event in told]
    assert ("task_finished", "b") in kinds
    assert kinds[-1] == ("run_finished", app.name)
    # What is under way is told to who comes late, as such.
    begins = [event["data"]["late"] for event in told if event["kind"] == "run_started"]
    assert begins == [True]
    one: list[Any] = []
    handle = app.start({**state, "n": 0.3})
    handle.attach(lambda event: one.append((event["kind"], event["seconds"])))
    handle.result(30)
    assert one[-1][0] == "run_finished"
    assert all(seconds is None or seconds < 30 for _, seconds in one)


def test_a_node_sees_the_keys_that_it_reads(where: Any) -> None:
    graph = fm.StateGraph({"k": None, "n": None, "log": None}, context=where)
    graph.add_node("a", keys_of, reads=["n"])
    graph.add_edge(START, "a")
    assert graph.compile().invoke({"k": 1, "n": 2})["log"] == ["n"]
    with pytest.raises(fm.BuildError, match="no key 'nn' in state, did you mean 'n'"):
        graph.add_node("b", keys_of, reads=["nn"])


def keys_of(state: Any) -> Any:
    return {"log": list(state)}


def test_a_task_has_the_same_id_for_each_attempt(where: Any, tmp_path: Path) -> None:
    graph = fm.StateGraph(Log, context=where)
    graph.add_node("x", told_id, on_error=fm.retry(2, 0.0))
    graph.add_edge(START, "x")
    app = graph.compile(checkpoints=fm.MemoryCheckpoints())
    app.invoke({"folder": str(tmp_path)}, session="s")
    first, second = sorted(p.read_text() for p in tmp_path.glob("id.*"))
    assert first == second == "('s', 1, 0, 'x')"


def told_id(state: Any) -> None:
    number = nodes.mark(state, "x")
    Path(state["folder"], f"id.{number}").write_text(repr(tuple(fm.task_id())))
    if number == 1:
        raise ValueError


def test_outside_of_a_node_the_words_are_refused() -> None:
    for call in (fm.interrupt, fm.task_id):
        with pytest.raises(RuntimeError, match="for nodes of a state graph"):
            call()
    fm.emit("to nobody")


@pytest.fixture(params=["thread:2", FORKED])
def shared(request: pytest.FixtureRequest) -> Iterator[str]:
    with fm.named_pool("shared-by-two", request.param):
        yield "shared-by-two"


def wait_long(state: Any) -> None:
    nodes.mark(state, "long")
    time.sleep(0.05)


def sends(state: Any) -> Any:
    return [fm.Send("long", {"folder": state["folder"]}) for _ in range(60)]


def test_a_short_run_does_not_wait_for_a_long_one(shared: str, tmp_path: Path) -> None:
    long = fm.StateGraph(Log, context=shared)
    long.add_node("long", wait_long)
    long.add_conditional_edges(START, sends, ["long"])
    state = {"folder": str(tmp_path), "n": 0}
    handle = long.compile().start(state)
    nodes.wait_for(state, "long")
    run = line_of(shared, a=up, b=up, c=up).compile().invoke(state)
    assert run["n"] == 3
    assert calls(tmp_path, "long") < 40
    assert handle.result(30).ok


def killed(state: Any) -> Any:
    if nodes.mark(state, "x") < 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"log": ["x"]}


def test_deaths_of_tasks_break_no_shared_pool(tmp_path: Path) -> None:
    with fm.named_pool("of-many-deaths", fm.ipc_fork(1, restarts=(2, 60))) as pool:
        graph = fm.StateGraph(Log, context="of-many-deaths")
        graph.add_node("x", killed, on_error=fm.retry(20, 0.0, fm.WorkerDied))
        graph.add_edge(START, "x")
        run = graph.compile().invoke({"folder": str(tmp_path)})
        assert (run.stats.deaths, run["log"]) == (11, ["x"])
        assert pool.submit(len, "abc").result() == 3


def test_large_values_are_mapped_and_read_only(where: Any) -> None:
    numpy = pytest.importorskip("numpy")
    graph = line_of(where, {"big": None, "found": None}, a=look, b=look, c=look)
    run = graph.compile().invoke({"big": numpy.arange(200_000)})
    assert run["found"] == [199_999, False]
    assert run["big"][5] == 5


def look(state: Any) -> Any:
    big = state["big"]
    return {"found": [int(big[-1]), big.flags.writeable]}


def test_what_is_said_of_a_graph() -> None:
    graph = line_of("inline", a=nodes.a, b=nodes.b)
    graph.add_node("c", nodes.c, context="thread:2", destinations=["a"])
    graph.add_conditional_edges("b", lambda state: "x", {"x": "c", "y": END})
    graph.add_edge(["a", "b"], "c")
    app = graph.compile(checkpoints=fm.MemoryCheckpoints())
    text = app.describe()
    assert "log folded by add" in text
    assert "c [thread:2] -> goto(a)" in text
    drawing = app.to_mermaid()
    assert drawing.startswith("flowchart TD")
    assert '-.->|"x"|' in drawing
    for thing in (graph, app, app.invoke({}), app.open(input={})):
        assert len(repr(thing)) <= 200
        assert "\n" not in repr(thing)


def test_two_threads_do_not_both_run_a_session(tmp_path: Path) -> None:
    app = line_of("inline", slow=slow).compile()
    session = app.open(input={"folder": str(tmp_path), "n": 0.3})
    come: list[Any] = []

    def go() -> None:
        try:
            come.append(session.step())
        except fm.errors.SessionBusy as error:
            come.append(error)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.close()
    assert sum(isinstance(found, fm.errors.SessionBusy) for found in come) == 3
    assert calls(tmp_path, "slow") == 1


def test_a_session_in_the_hand_sees_what_others_did(tmp_path: Path) -> None:
    store = fm.SQLiteCheckpoints(str(tmp_path / "x.db"))
    graph = line_of("inline", {"n": None, "k": None}, a=up).add_edge("a", "a")
    app = graph.compile(checkpoints=store)
    with app.open("s", input={"n": 0, "k": [1]}) as mine, app.open("s") as theirs:
        for session in (mine, mine, theirs, mine, theirs):
            session.step()
        assert (mine.state["n"], theirs.state["n"], mine.seq) == (5, 5, 6)
        theirs.update({"k": [2]})
        mine.step()
        assert mine.state == {"n": 6, "k": [2]}
        assert mine.step().step == 7
        store.delete("s")
        with app.open("s", input={"n": 100}) as new:
            while new.seq < mine.seq - 1:
                new.step()
            new.step()
        assert mine.state["n"] == new.state["n"]
        mine.step()
        assert mine.state == new.state
        assert "k" not in mine.state
    store.close()


def one(state: Any) -> str:
    return "one"


def two(state: Any) -> str:
    return "two"


def holder() -> tuple[Any, Any]:
    """A node that calls what it holds, and what makes it hold something else."""
    held: Any = one
    name = "x" * 5000

    def node(state: Any) -> Any:
        return {"log": [held(state) + name[:1]]}

    def hold(other: Any, text: str) -> None:
        nonlocal held, name
        held, name = other, text

    return node, hold


PROGRAM = """
import forkmill as fm

K = 1

def sees(state):
    return {"n": K}

def changes(state):
    global K
    K += 1

graph = fm.StateGraph({"n": None})
forked = fm.ipc_fork(1, start_method="fork")
graph.add_node("sees", sees, context=forked).add_node("changes", changes)
graph.add_edge(fm.START, "sees").add_edge("sees", "changes").add_edge("changes", "sees")
with graph.compile().open("s", input={"n": 0}) as session:
    for n in (1, 2, 3):
        session.step()
        assert session.state["n"] == n, (n, session.state)
        session.step()
"""


def test_a_node_in_forked_workers_sees_the_program_as_it_is(run_script: Any) -> None:
    """What can be sent is not inherited: else it would be what it was at the fork."""
    run_script(PROGRAM)


@pytest.mark.parametrize("start_method", ["fork", "zygote", "spawn"])
def test_what_a_node_holds_is_as_it_is_at_each_step(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    item = forkmill.codec.program._Item
    look = item.same
    monkeypatch.setattr(
        item,
        "same",
        lambda self, *args, **named: looked.append(self.what) or look(self, *args, **named),
    )
    node, hold = holder()
    pool = fm.ipc_fork(1, start_method=start_method)
    app = line_of(pool, a=node).add_edge("a", "a").compile()
    with app.open("s", input={}) as session:
        session.step(), session.step()
        assert not looked  # functions and texts cannot change in place
        hold(two, "x" * 4999 + "y")
        session.step()
        hold(two, "y" * 5000)
        session.step()
        hold(one, "y" * 5000)
        session.step()
        assert session.state["log"] == ["onex", "onex", "twox", "twoy", "oney"]
        assert not looked

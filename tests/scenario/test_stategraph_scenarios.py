"""What a state graph does, scenario by scenario: in every context, with and without checkpoints.

graph -> input -> what is expected. The nodes are in `stategraph_nodes`.
"""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import pytest
import stategraph_nodes as nodes
from stategraph_nodes import Log, calls

import forkmill as fm

pytestmark = pytest.mark.timeout(60)

START, END = fm.START, fm.END
WHERE = {
    "inline": "inline",
    "thread1": "thread:1",
    "thread8": "thread:8",
    "processes1": fm.ipc_fork(1, start_method="fork"),
    "processes2": fm.ipc_fork(2, start_method="fork"),
    "processes8": fm.ipc_fork(8, start_method="fork"),
    "forks2": "cow_fork:2",
}
SLOW = {"thread1", "processes1", "processes8", "forks2"}


@pytest.fixture(
    params=[pytest.param(w, marks=[pytest.mark.slow] if w in SLOW else []) for w in WHERE]
)
def where(request: pytest.FixtureRequest) -> Any:
    return WHERE[request.param]


@pytest.fixture(params=["memory", "nothing"])
def store(request: pytest.FixtureRequest) -> Any:
    return fm.MemoryCheckpoints() if request.param == "memory" else None


def graph_of(where: Any, schema: Any = Log, /, **named: Any) -> fm.StateGraph:
    """A graph of these nodes, without edges."""
    graph = fm.StateGraph(schema, context=where)
    for name, fn in named.items():
        graph.add_node(name, fn)
    return graph


def wired(graph: fm.StateGraph, *edges: tuple[Any, str]) -> fm.StateGraph:
    ends = {"S": START, "E": END}
    for source, target in edges:
        where = source if isinstance(source, list) else ends.get(source, source)
        graph.add_edge(where, ends.get(target, target))
    return graph


# ------------------------------------------------------------------- A. order and merge


def test_two_nodes_in_a_row(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, a=nodes.a, b=nodes.b), ("S", "a"), ("a", "b"), ("b", "E"))
    with graph.compile(checkpoints=store).open("s", input={}) as session:
        first, second = session.step(), session.step()
        assert (first.ran, second.ran) == (["a"], ["b"])
        assert (first.step, second.step) == (1, 2)
        assert (first.completed, second.completed) == (False, True)
        assert first.frontier == ["b"] and first.updated == ["log"]
        assert session.state["log"] == ["a", "b"]
        assert session.status == "completed"


@pytest.mark.parametrize("slow", ["a", "b"])
def test_the_order_is_that_of_the_declaration(where: Any, store: Any, slow: str) -> None:
    graph = wired(
        graph_of(where, a=nodes.a, b=nodes.b), ("S", "b"), ("S", "a"), ("a", "E"), ("b", "E")
    )
    run = graph.compile(checkpoints=store).invoke({"slow": slow})
    assert run["log"] == ["b", "a"]
    assert (run.status, run.step) == ("completed", 1)


def test_two_writers_of_a_plain_key(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, a=nodes.k_a, b=nodes.k_b), ("S", "b"), ("S", "a"))
    with graph.compile(checkpoints=store).open("s", input={"k": 0}) as session:
        with pytest.raises(fm.UpdateError, match="two writers for k: b, a in step 1") as caught:
            session.step()
        assert (caught.value.key, caught.value.nodes, caught.value.step) == ("k", ("b", "a"), 1)
        assert session.state["k"] == 0
        assert session.frontier == ["b", "a"]
        assert caught.value.state_run.frontier == ["b", "a"]
        assert caught.value.state_run.step == 0


def test_a_reducer_folds_both(where: Any, store: Any) -> None:
    graph = graph_of(where, {"k": operator.add}, a=nodes.two, b=nodes.one)
    run = wired(graph, ("S", "b"), ("S", "a")).compile(checkpoints=store).invoke({"k": 10})
    assert run["k"] == 13


def test_a_reader_beside_a_writer_does_not_see_it(where: Any, store: Any) -> None:
    graph = graph_of(where, reader=nodes.sees, writer=nodes.k_a)
    run = wired(graph, ("S", "writer"), ("S", "reader")).compile(checkpoints=store).invoke({})
    assert run["log"] == ["False"]
    assert run["k"] == "a"


def test_an_unknown_key_is_named(where: Any, store: Any) -> None:
    app = wired(graph_of(where, bad=nodes.unknown), ("S", "bad")).compile(checkpoints=store)
    with pytest.raises(fm.UpdateError, match=r"'bad'.*'kk'.*did you mean 'k'"):
        app.invoke({})


def test_a_deleted_key_is_absent(where: Any, store: Any) -> None:
    graph = graph_of(where, drop=nodes.drop, also=nodes.drop, see=nodes.sees)
    wired(graph, ("S", "drop"), ("S", "also"), ("drop", "see"))
    run = graph.compile(checkpoints=store).invoke({"k": 1})
    assert "k" not in run.state
    assert run["log"] == ["False"]


@pytest.mark.parametrize("other", [nodes.k_a, nodes.over])
def test_a_delete_beside_a_write(where: Any, store: Any, other: Any) -> None:
    graph = wired(graph_of(where, a=nodes.drop, b=other), ("S", "a"), ("S", "b"))
    with pytest.raises(fm.UpdateError, match="two writers for k: a, b in step 1"):
        graph.compile(checkpoints=store).invoke({"k": 1})


def test_an_overwrite_goes_past_the_reducer(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, {"k": operator.add}, a=nodes.over), ("S", "a"))
    assert graph.compile(checkpoints=store).invoke({"k": "b"})["k"] == "over"


# ----------------------------------------------------------------------- B. routing


@pytest.mark.parametrize("pick", ["a", "b"])
def test_a_condition_of_the_input(where: Any, store: Any, pick: str) -> None:
    graph = graph_of(where, a=nodes.a, b=nodes.b)
    graph.add_conditional_edges(START, lambda state: state["go"], ["a", "b"])
    assert graph.compile(checkpoints=store).invoke({"go": pick})["log"] == [pick]


def test_a_condition_may_name_the_end_and_a_node(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, a=nodes.a, b=nodes.b), ("S", "a"))
    graph.add_conditional_edges("a", lambda state: [END, "b"], ["b", END])
    run = graph.compile(checkpoints=store).invoke({})
    assert run["log"] == ["a", "b"]
    assert run.status == "completed"


def test_a_name_that_comes_twice_is_one_task(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, a=nodes.a, b=nodes.b), ("S", "a"))
    graph.add_conditional_edges("a", lambda state: ["b", "b"], ["b"])
    assert graph.compile(checkpoints=store).invoke({})["log"] == ["a", "b"]


def test_a_condition_that_names_nobody(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, a=nodes.a, b=nodes.b), ("S", "a"))
    graph.add_conditional_edges("a", lambda state: "bb", ["b"])
    with pytest.raises(fm.UpdateError, match=r"'a'.*'bb'") as caught:
        graph.compile(checkpoints=store).invoke({})
    assert caught.value.state_run.step == 0
    assert caught.value.state_run.frontier == ["a"]


def test_an_empty_condition_ends_the_branch(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, a=nodes.a, b=nodes.b), ("S", "a"))
    graph.add_conditional_edges("a", lambda state: [], ["b"])
    run = graph.compile(checkpoints=store).invoke({})
    assert (run["log"], run.status) == (["a"], "completed")


@pytest.mark.parametrize(
    ("fn", "log"),
    [(nodes.only_c, "ac"), (nodes.goto_x, "abxd"), (nodes.only, "a"), (nodes.a, "abd")],
)
def test_a_goto_comes_beside_the_edges_or_instead(
    where: Any, store: Any, fn: Any, log: str
) -> None:
    graph = graph_of(where, a=fn, b=nodes.b, c=nodes.c, d=nodes.d, x=nodes.x)
    wired(graph, ("S", "a"), ("a", "b"))
    graph.add_conditional_edges("a", lambda state: "d", ["d", "c", "x"])
    assert "".join(graph.compile(checkpoints=store).invoke({})["log"]) == log


def test_only_ends_its_branch_and_not_its_siblings(where: Any, store: Any) -> None:
    graph = graph_of(where, a=nodes.only, b=nodes.b, c=nodes.c, d=nodes.d)
    wired(graph, ("S", "a"), ("S", "b"), ("a", "c"), ("b", "d"))
    assert graph.compile(checkpoints=store).invoke({})["log"] == ["a", "b", "d"]


def test_a_loop_to_itself(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, a=nodes.count), ("S", "a"))
    graph.add_conditional_edges("a", lambda state: END if state["n"] == 3 else "a", ["a", END])
    run = graph.compile(checkpoints=store).invoke({"n": 0})
    assert (run["n"], run.step) == (3, 3)


def test_a_loop_that_changes_nothing(where: Any, store: Any, tmp_path: Path) -> None:
    graph = wired(graph_of(where, a=nodes.visit), ("S", "a"))
    graph.add_conditional_edges(
        "a", lambda state: END if calls(tmp_path, "visit") == 4 else "a", ["a", END]
    )
    run = graph.compile(checkpoints=store).invoke({"folder": str(tmp_path)})
    assert calls(tmp_path, "visit") == 4
    assert (run.step, run.status) == (4, "completed")


def test_an_endless_loop_meets_its_limit(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, a=nodes.count), ("S", "a"), ("a", "a"))
    with graph.compile(checkpoints=store).open("s", input={"n": 0}) as session:
        with pytest.raises(fm.StepLimit) as caught:
            session.run_until_complete(max_steps=5)
        assert (caught.value.max_steps, caught.value.step) == (5, 5)
        assert (session.step_number, session.state["n"]) == (5, 5)
        with pytest.raises(fm.StepLimit):
            session.run_until_complete(max_steps=2)
        assert session.state["n"] == 7


def test_sends_are_tasks_of_their_own(where: Any, store: Any) -> None:
    graph = graph_of(where, a=nodes.a, square=nodes.square)
    wired(graph, ("S", "a"))
    graph.add_conditional_edges("a", nodes.fan, ["square"])
    run = graph.compile(checkpoints=store).invoke({"go": [3, 1, 3, 2]})
    assert run["log"] == ["a", "9", "1", "9", "4"]
    assert run.step == 2


def test_an_empty_fan_out_ends_its_branch(where: Any, store: Any) -> None:
    graph = wired(graph_of(where, a=nodes.a, square=nodes.square), ("S", "a"))
    graph.add_conditional_edges("a", nodes.fan, ["square"])
    run = graph.compile(checkpoints=store).invoke({"go": []})
    assert (run["log"], run.step, run.status) == (["a"], 1, "completed")


def test_a_join_waits_for_all_its_sources(where: Any, store: Any) -> None:
    graph = graph_of(where, a=nodes.a, b=nodes.b, c=nodes.c, d=nodes.d)
    wired(graph, ("S", "a"), ("S", "b"), ("b", "c"), (["a", "c"], "d"))
    run = graph.compile(checkpoints=store).invoke({})
    assert run["log"] == ["a", "b", "c", "d"]
    assert (run.step, run.waiting) == (3, [])


def test_a_join_that_is_half_filled_is_named(where: Any, store: Any) -> None:
    graph = graph_of(where, a=nodes.a, b=nodes.only, d=nodes.d)
    wired(graph, ("S", "a"), ("S", "b"), (["a", "b"], "d"))
    run = graph.compile(checkpoints=store).invoke({})
    assert (run.status, run.waiting, run["log"]) == ("completed", ["d"], ["a", "a"])


def test_unequal_paths_run_a_node_twice(where: Any, store: Any) -> None:
    graph = graph_of(where, a=nodes.a, b=nodes.b, d=nodes.d)
    wired(graph, ("S", "a"), ("a", "b"), ("a", "d"), ("b", "d"))
    assert graph.compile(checkpoints=store).invoke({})["log"] == ["a", "b", "d", "d"]


# ---------------------------------------------------------------------- C. compile


def broken(name: str) -> Any:
    graph = graph_of("inline", a=nodes.a, b=nodes.b)
    graph.add_conditional_edges("a", lambda state: END, ["a", END])
    if name == "start":
        graph.add_edge("a", "b")
    elif name == "unknown":
        wired(graph, ("S", "a"), ("a", "bb"))
    elif name == "end":
        wired(graph, ("S", "a"), ("a", "b"), ("E", "b"))
    elif name == "edge":
        wired(graph, ("S", "a"), ("a", "b"), ("a", "b"))
    elif name == "node":
        wired(graph, ("S", "a"), ("a", "b")).add_node("a", nodes.c)
    elif name == "unreachable":
        wired(graph, ("S", "a"))
    elif name == "join":
        wired(graph, ("S", "a"), (["a", "b"], "a"), (["b", "a"], "a"))
    return graph.compile()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("start", "no edge from START"),
        ("unknown", "'a' to 'bb'.*no such node, did you mean 'b'"),
        ("end", "out of END"),
        ("edge", "'a' to 'b' already"),
        ("node", "node 'a' already"),
        ("unreachable", "nothing leads to 'b'"),
        ("join", "join of b, a to 'a' already"),
    ],
)
def test_what_is_wrong_is_said_at_once(name: str, words: str) -> None:
    with pytest.raises(fm.BuildError, match=words):
        broken(name)


def test_what_cannot_be_sent_is_refused_at_compile() -> None:
    import threading

    lock = threading.Lock()

    def locks(state: Any) -> None:
        with lock:
            return None

    for method in ("spawn", "zygote", "auto"):
        where = fm.ipc_fork(1, start_method=method)
        with pytest.raises(fm.BuildError, match=r"'locks'.*cannot be sent.*lock"):
            wired(graph_of(where, locks=locks), ("S", "locks")).compile()
    for fine in ("inline", "thread:2", "cow_fork:1", fm.ipc_fork(1, start_method="fork")):
        assert wired(graph_of(fine, locks=locks), ("S", "locks")).compile().invoke({}).ok


# ------------------------------------------------------------- D. failure inside a step


def test_a_failure_keeps_what_its_sibling_gave(where: Any, store: Any, tmp_path: Path) -> None:
    graph = graph_of(where, a=nodes.counted_a, x=nodes.once)
    wired(graph, ("S", "a"), ("S", "x"))
    with graph.compile(checkpoints=store).open("s", input={"folder": str(tmp_path)}) as session:
        with pytest.raises(ValueError, match="first try") as caught:
            session.step()
        assert any("'x'" in n and "step 1" in n and "attempt 1" in n for n in notes(caught))
        run = caught.value.state_run
        assert (run.status, run.frontier, run.step) == ("failed", ["a", "x"], 0)
        assert [failure.stage for failure in run.failures] == ["x"]
        assert session.frontier == ["a", "x"]
        report = session.step()
        assert (report.ran, report.step, report.completed) == (["a", "x"], 1, True)
        assert session.state["log"] == ["a", "x"]
        assert (calls(tmp_path, "a"), calls(tmp_path, "x")) == (1, 2)


def notes(caught: Any) -> list[str]:
    return list(getattr(caught.value, "__notes__", []))


def test_all_failures_are_listed_and_the_first_is_raised(where: Any, store: Any) -> None:
    graph = graph_of(where, b=nodes.unknown, a=nodes.a_number, c=nodes.c)
    wired(graph, ("S", "a"), ("S", "b"), ("S", "c"))
    with pytest.raises(fm.UpdateError, match="'a' returned 7") as caught:
        graph.compile(checkpoints=store).invoke({})
    assert [failure.stage for failure in caught.value.state_run.failures] == ["a", "b"]


def test_a_retry_gives_one_write(where: Any, store: Any, tmp_path: Path) -> None:
    graph = fm.StateGraph(Log, context=where)
    graph.add_node("x", nodes.twice, on_error=fm.retry(3, 0.001, ValueError))
    graph.add_edge(START, "x")
    told: list[Any] = []
    app = graph.compile(checkpoints=store)
    run = app.invoke({"folder": str(tmp_path)}, sinks=[told.append])
    assert run["log"] == ["x"]
    assert [e["attempt"] for e in told if e["kind"] == "task_started"] == [1, 2, 3]
    assert (run.stats.tasks, run.stats.retries) == (3, 2)


def test_another_type_is_not_tried_again(where: Any, store: Any, tmp_path: Path) -> None:
    graph = fm.StateGraph(Log, context=where)
    graph.add_node("x", nodes.never, on_error=fm.retry(3, 0.001, ValueError))
    graph.add_edge(START, "x")
    with pytest.raises(KeyError):
        graph.compile(checkpoints=store).invoke({"folder": str(tmp_path)})
    assert calls(tmp_path, "x") == 1


@pytest.mark.parametrize("kind", ["processes1", "processes2", "forks2"])
def test_a_node_that_spins_is_killed(kind: str, store: Any, tmp_path: Path) -> None:
    graph = fm.StateGraph(Log, context=WHERE[kind])
    graph.add_node("x", nodes.spin, timeout=0.5)
    graph.add_edge(START, "x")
    with graph.compile(checkpoints=store).open("s", input={"folder": str(tmp_path)}) as session:
        with pytest.raises(fm.TaskTimeout) as caught:
            session.step()
        assert any("'x'" in note for note in notes(caught))
        assert session.step().completed
        assert session.state["log"] == ["x"]


@pytest.mark.parametrize("kind", ["processes1", "processes2", "forks2"])
def test_a_death_costs_one_attempt(kind: str, store: Any, tmp_path: Path) -> None:
    graph = wired(graph_of(WHERE[kind], x=nodes.dies, a=nodes.counted_a), ("S", "x"), ("S", "a"))
    run = graph.compile(checkpoints=store).invoke({"folder": str(tmp_path)})
    assert run["log"] == ["x", "a"]
    assert (run.stats.deaths, calls(tmp_path, "x"), calls(tmp_path, "a")) == (1, 2, 1)


def test_a_reducer_that_raises_commits_nothing(where: Any, store: Any, tmp_path: Path) -> None:
    fixed: list[bool] = []

    def add(old: Any, new: Any) -> Any:
        if not fixed:
            raise ZeroDivisionError("not yet")
        return old + new

    graph = graph_of(where, {"log": add, "folder": None}, a=nodes.counted_a)
    app = wired(graph, ("S", "a")).compile(checkpoints=store)
    with app.open("s", input={"folder": str(tmp_path), "log": ["0"]}) as session:
        with pytest.raises(ZeroDivisionError) as caught:
            session.step()
        assert any("'log'" in note and "add" in note for note in notes(caught))
        assert (session.state["log"], session.frontier) == (["0"], ["a"])
        fixed.append(True)
        assert session.step().ran == ["a"]
        assert session.state["log"] == ["0", "a"]
        assert calls(tmp_path, "a") == 1


def test_a_predicate_that_raises_commits_nothing(where: Any, store: Any, tmp_path: Path) -> None:
    fixed: list[bool] = []

    def pick(state: Any) -> str:
        if not fixed:
            raise ZeroDivisionError(state["log"])
        return END

    graph = wired(graph_of(where, a=nodes.counted_a), ("S", "a"))
    graph.add_conditional_edges("a", pick, [END])
    with graph.compile(checkpoints=store).open("s", input={"folder": str(tmp_path)}) as session:
        with pytest.raises(ZeroDivisionError, match="a") as caught:
            session.step()
        assert any("'a'" in note and "pick" in note for note in notes(caught))
        assert session.state["log"] == []
        fixed.append(True)
        assert session.step().completed
        assert calls(tmp_path, "a") == 1


def test_an_exit_is_its_nodes_failure(where: Any, store: Any, tmp_path: Path) -> None:
    graph = wired(graph_of(where, a=nodes.counted_a, x=nodes.exits), ("S", "x"), ("S", "a"))
    with pytest.raises(SystemExit) as caught:
        graph.compile(checkpoints=store).invoke({"folder": str(tmp_path)})
    assert caught.value.state_run.failures[0].stage == "x"
    assert calls(tmp_path, "a") == 1


@pytest.mark.parametrize("fn", [nodes.the_state, nodes.a_number])
def test_a_result_that_is_none_is_refused(where: Any, store: Any, fn: Any) -> None:
    app = wired(graph_of(where, bad=fn), ("S", "bad")).compile(checkpoints=store)
    with pytest.raises(fm.UpdateError, match=r"'bad' returned .* step 1.*None, a dict|a dict"):
        app.invoke({})


def test_what_is_changed_in_place_is_lost(where: Any, store: Any) -> None:
    graph = graph_of(where, a=nodes.in_place, b=nodes.kept, c=nodes.in_place)
    wired(graph, ("S", "a"), ("S", "c"), ("a", "b"))
    run = graph.compile(checkpoints=store).invoke({"k": [0], "n": 1})
    assert run["log"] == ["([0], 1)"]


# ----------------------------------------------------------- F. events and fairness


def test_every_begin_has_its_end(where: Any, store: Any, tmp_path: Path) -> None:
    graph = graph_of(where, a=nodes.a, b=nodes.b, x=nodes.never)
    wired(graph, ("S", "a"), ("S", "b"), ("a", "x"))
    told: list[Any] = []
    with pytest.raises(KeyError):
        graph.compile(checkpoints=store).invoke({"folder": str(tmp_path)}, sinks=[told.append])
    kinds = [event["kind"] for event in told]
    assert (kinds[0], kinds[-1]) == ("run_started", "run_finished")
    assert kinds.count("task_started") == 3
    assert kinds.count("task_finished") + kinds.count("task_failed") == 3
    assert kinds.count("barrier") == kinds.count("frontier") == kinds.count("step_finished") == 1
    assert kinds.count("checkpoint") == (store is not None)
    assert kinds.count("run_finished") == 1
    assert told[-1]["data"]["status"] == "failed"


def test_a_sink_that_raises_changes_nothing(where: Any) -> None:
    def bad(event: Any) -> None:
        raise ValueError

    app = wired(graph_of(where, a=nodes.a), ("S", "a")).compile()
    assert app.invoke({}, sinks=[bad])["log"] == ["a"]

"""Random state graphs in every context, against a plain loop; also killed and resumed at random.

State, steps and reports depend on the graph and its input alone: not on delays, workers, failures
that were gone on from, or processes that died.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from stategraph_reference import LIMIT, Choice, Node, Run, Spec, State, lines, made, reference

import forkmill as fm

NAMES = ("a", "b", "c", "d", "w")
TWO = fm.ipc_fork(2, start_method="fork")
THREE = fm.ipc_fork(3, start_method="fork")


@st.composite
def specs(draw: Any) -> Spec:
    names = NAMES[: draw(st.integers(1, 4))] + ("w",)
    some = st.lists(st.sampled_from(names), unique=True, max_size=2).map(tuple)
    nodes = tuple(
        Node(
            name,
            adds=draw(st.integers(1, 3)),
            delay=draw(st.sampled_from([0, 0, 0, 1, 3])),
            fails=draw(st.sampled_from([False, False, True])),
            last=draw(st.sampled_from([False, False, False, True])),
            gotos=draw(some),
            sends=draw(st.sampled_from([0, 0, 1, 3])),
            only=draw(st.sampled_from([False, False, True])),
            until=draw(st.integers(1, 12)),
        )
        for name in names
    )
    pairs = st.tuples(st.sampled_from(names), st.sampled_from((*names, fm.END)))
    edges = tuple(draw(st.lists(pairs, unique=True, max_size=5)))
    several = st.lists(st.sampled_from(names), unique=True, min_size=2, max_size=3).map(tuple)
    joins = st.lists(
        st.tuples(several, st.sampled_from(names)),
        unique_by=lambda join: (frozenset(join[0]), join[1]),
        max_size=2,
    )
    chosen = st.builds(
        Choice,
        st.sampled_from(names),
        st.lists(st.sampled_from((*names, fm.END)), unique=True, min_size=1).map(tuple),
        st.integers(1, 20),
    )
    choices = st.lists(chosen, unique_by=lambda choice: choice.source, max_size=2)
    spec = Spec(nodes, (), edges, tuple(draw(joins)), tuple(draw(choices)))
    return Spec(spec.nodes, starts_of(spec, names), spec.edges, spec.joins, spec.choices)


def starts_of(spec: Spec, names: tuple[str, ...]) -> tuple[str, ...]:
    """The first node, and whatever nobody leads to from there."""
    ways = {name: set[str]() for name in names}
    for node in spec.nodes:
        ways[node.name] |= {*node.gotos, *(("w",) if node.sends else ())}
    for a, b in spec.edges:
        ways[a].add(b)
    for choice in spec.choices:
        ways[choice.source] |= set(choice.targets)
    for sources, target in spec.joins:
        for source in sources:
            ways[source].add(target)
    starts: list[str] = []
    reached: set[str] = set()
    for name in names:
        if name not in reached:
            starts.append(name)
            line = [name]
            while line:
                at = line.pop()
                if at not in reached and at != fm.END:
                    reached.add(at)
                    line += ways[at]
    return tuple(starts)


def agrees(spec: Spec, context: Any, store: Any, given: dict[str, Any]) -> None:
    """Step by step the same as the reference, whatever fails in between."""
    expected = reference(spec, given)
    with made(spec, context, checkpoints=store).open("s", input=given) as session:
        for ran, updated, frontier in expected.steps:
            report = stepped(session)
            assert (report.ran, report.frontier) == (ran, frontier)
            assert sorted(report.updated) == updated
        assert session.step_number == len(expected.steps)
        assert dict(session.state) == expected.state
        if expected.conflict:
            with pytest.raises(fm.UpdateError, match="last"):
                stepped(session)
            assert dict(session.state) == expected.state
        elif expected.complete:
            assert session.status == "completed"


def stepped(session: Any) -> Any:
    """A step, again and again while tasks fail that fail once."""
    for _ in range(40):
        try:
            return session.step()
        except ValueError as error:
            if isinstance(error, fm.UpdateError) or "the first attempt" not in str(error):
                raise
    raise AssertionError("it never succeeds")


@hypothesis.given(specs(), st.sampled_from(["inline", "thread:1", "thread:4"]), st.booleans())
@hypothesis.settings(max_examples=90)
def test_a_graph_comes_to_what_a_plain_loop_says(spec: Spec, context: Any, stored: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        given = {"file": os.path.join(folder, "lines")}
        agrees(spec, context, fm.MemoryCheckpoints() if stored else None, given)


@hypothesis.given(specs(), st.sampled_from([TWO, THREE]))
@hypothesis.settings(max_examples=10)
def test_processes_come_to_the_same(spec: Spec, context: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        given = {"file": os.path.join(folder, "lines")}
        with fm.SQLiteCheckpoints(Path(folder) / "runs.db", sync="off") as store:
            agrees(spec, context, store, given)


# ---------------------------------------------------------------------------- kills


def carried_on(spec: Spec, context: Any, path: Path, given: dict[str, Any]) -> int:
    """Begin or resume in a forked child, up to the limit of steps; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(40)
        store = fm.SQLiteCheckpoints(path, sync="off")
        app = made(spec, context, checkpoints=store)
        while True:
            saved = store.load("s")
            done = saved.checkpoint.step if saved else 0
            if done >= LIMIT or (saved and saved.info.status == "completed"):
                break
            try:
                if saved is None:
                    app.invoke(given, session="s", max_steps=LIMIT)
                else:
                    app.resume(session="s", max_steps=LIMIT - done)
            except (fm.UpdateError, fm.StepLimit):
                break
            except ValueError:
                continue  # the first attempt
        code = 0
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
    finally:
        os._exit(code)


def saved_tasks(store: Any) -> set[str]:
    """The tasks whose updates are stored, as their lines are."""
    line = store.history("s")
    found = {
        f"s|{at.seq}|{index}|{task.node}"
        for at in line[:-1]
        for index, task in enumerate(at.frontier)
    }
    saved = store.load("s")
    if saved is not None:
        found |= {
            f"s|{saved.info.seq}|{row.task}|{saved.checkpoint.frontier[row.task].node}"
            for row in saved.pending
            if row.kind == "update"
        }
    return found


def survives(spec: Spec, context: Any, seed: int, most: float) -> None:
    """Killed at random until it is through: the same end, and nothing that was stored ran again."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path, file = Path(folder) / "runs.db", os.path.join(folder, "lines")
        given = {"file": file}
        expected = reference(spec, given)
        known: set[str] = set()
        ran = 0
        for number in range(1000):
            pid = carried_on(spec, context, path, given)
            time.sleep(chance.uniform(0, most * (1 + number / 5)))
            if number < 12:
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            everything = lines(file)
            assert not known & set(everything[ran:])
            with fm.SQLiteCheckpoints(path, sync="off") as store:
                known, ran = saved_tasks(store), len(everything)
                if status == 0:
                    break
                assert os.WIFSIGNALED(status)
        with fm.SQLiteCheckpoints(path, sync="off") as store:
            saved = store.load("s")
            assert saved.checkpoint.step == len(expected.steps)
            with made(spec, "inline", checkpoints=store).open("s") as session:
                assert dict(session.state) == expected.state
                assert (session.status == "completed") == expected.complete
            reports = [
                ([task.node for task in before.frontier], [task.node for task in after.frontier])
                for before, after in zip(store.history("s"), store.history("s")[1:], strict=False)
            ]
            assert reports == [(names, coming) for names, _, coming in expected.steps]


@hypothesis.given(specs(), st.integers(0, 1 << 20))
@hypothesis.settings(max_examples=6)
def test_a_killed_graph_comes_to_the_same(spec: Spec, seed: int) -> None:
    survives(spec, "inline", seed, 0.02)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@hypothesis.given(specs(), st.integers(0, 1 << 20), st.sampled_from(["inline", "thread:3", TWO]))
@hypothesis.settings(max_examples=60)
def test_graphs_that_are_killed_in_processes_come_to_the_same(
    spec: Spec, seed: int, context: Any
) -> None:
    survives(spec, context, seed, 0.05)


def test_the_reference_is_what_it_says() -> None:
    """One graph by hand."""
    spec = Spec(
        (Node("a", sends=2, until=1), Node("b"), Node("c", adds=2), Node("w")),
        ("a", "b"),
        (("w", "c"),),
        ((("a", "b"), "c"),),
    )
    expected = reference(spec, {})
    assert [step[0] for step in expected.steps] == [["a", "b"], ["w", "w", "c"], ["c"]]
    assert expected.state["log"] == ["a:0", "b:0", "w 0", "w 1", "c:2", "c:6"]
    assert expected.complete and expected.state["total"] == 8
    assert State and Run

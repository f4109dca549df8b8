"""A state graph whose tasks leave a line each time they run: what is killed, and goes on.

::

    START ─▶ plan ─Send─▶ work, work, work ─▶ count ─▶ plan ... (three rounds), then END
                └──────▶ note ───────────────┘   (a join of neither: count runs twice a round)
"""

from __future__ import annotations

import operator
import os
import time
from typing import Annotated, Any, TypedDict

import forkmill as fm

ROUNDS = 3


class State(TypedDict, total=False):
    round: int
    total: int
    log: Annotated[list[str], operator.add]
    seen: Annotated[list[int], fm.append]
    file: str
    pause: float


def leave(file: str, pause: float = 0.0) -> None:
    """A line that says which task runs: whole, no matter who is killed when."""
    line = "|".join(map(str, fm.task_id())) + "\n"
    with open(file, "ab", buffering=0) as lines:
        lines.write(line.encode())
    time.sleep(pause)


def plan(state: Any) -> Any:
    leave(state["file"])
    number = state.get("round", 0) + 1
    if number > ROUNDS:
        return fm.Command(goto=fm.END)
    sends = [fm.Send("work", [state["file"], number, n, state.get("pause", 0.0)]) for n in range(3)]
    return fm.Command(update={"round": number, "seen": [number]}, goto=[*sends, "note"])


def work(given: Any) -> Any:
    file, number, n, pause = given
    leave(file, pause)
    return {"log": [f"{number}.{n}"]}


def note(state: Any) -> Any:
    leave(state["file"])
    return {"seen": [10 * state["round"]]}


def count(state: Any) -> Any:
    leave(state["file"])
    return {"total": len(state["log"])}


def made(context: Any = "inline", checkpoints: Any = None, **options: Any) -> Any:
    """The graph, compiled."""
    graph = fm.StateGraph(State)
    graph.add_node("plan", plan, destinations=["work", "note", fm.END])
    graph.add_node("work", work, context=context)
    graph.add_node("note", note)
    graph.add_node("count", count)
    graph.add_edge(fm.START, "plan")
    graph.add_edge("work", "count")
    graph.add_edge("note", "count")
    graph.add_edge("count", "plan")
    return graph.compile(checkpoints=checkpoints, **options)


EXPECTED = {
    "round": ROUNDS,
    "total": 3 * ROUNDS,
    "log": [f"{number}.{n}" for number in range(1, ROUNDS + 1) for n in range(3)],
    "seen": [x for number in range(1, ROUNDS + 1) for x in (number, 10 * number)],
}
STEPS = 3 * ROUNDS + 1


def lines(file: Any) -> list[tuple[str, int, int, str]]:
    """Which tasks have run, in their order: (session, seq, index, node)."""
    if not os.path.exists(file):
        return []
    with open(file) as text:
        rows = [line.rstrip("\n").split("|") for line in text]
    return [(session, int(seq), int(index), node) for session, seq, index, node in rows]


def saved(store: Any, session: str) -> set[tuple[str, int, int, str]]:
    """The tasks whose updates the store has."""
    line = store.history(session)
    found = {
        (session, at.seq, index, task.node)
        for at in line[:-1]
        for index, task in enumerate(at.frontier)
    }
    last = store.load(session)
    if last is not None:
        found |= {
            (session, last.info.seq, row.task, last.checkpoint.frontier[row.task].node)
            for row in last.pending
            if row.kind == "update"
        }
    return found


class Asking(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    file: str
    k: int


def ask(state: Any) -> Any:
    leave(state["file"])
    first = fm.interrupt({"ask": "first"})
    second = fm.interrupt(["second", first])
    return {"log": [f"{first} {second}"]}


def beside(state: Any) -> Any:
    leave(state["file"])
    return {"log": ["beside"]}


def after(state: Any) -> Any:
    leave(state["file"])
    return {"log": [f"after {state.get('k')}"]}


def asking(checkpoints: Any, context: Any = "inline", **options: Any) -> Any:
    """ask and beside in one step, after behind both."""
    graph = fm.StateGraph(Asking, context=context)
    graph.add_node("ask", ask)
    graph.add_node("beside", beside)
    graph.add_node("after", after)
    graph.add_edge(fm.START, "ask")
    graph.add_edge(fm.START, "beside")
    graph.add_edge(["ask", "beside"], "after")
    return graph.compile(checkpoints=checkpoints, **options)


class Plain(TypedDict, total=False):
    k: Any
    n: int


def give(state: Any) -> Any:
    return {"k": GIVEN[state["n"]]}


GIVEN: list[Any] = [(1, 2), {1: 2}, {"a": [{"b": {3}}]}, lambda: 1, b"x", {"a": [1, None, "x"]}]


def giving(**options: Any) -> Any:
    graph = fm.StateGraph(Plain)
    graph.add_node("give", give)
    graph.add_edge(fm.START, "give")
    return graph.compile(**options)

"""Values that are larger than a store holds: named before anything is changed.

The stores here hold 4,000 bytes, so that what is tested need not have a gigabyte.
"""

from __future__ import annotations

import contextlib
import operator
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

import forkmill as fm

pytestmark = pytest.mark.timeout(60)

LARGEST = 4000
FORKED = fm.ipc_fork(2, start_method="fork")


class Small(fm.SQLiteCheckpoints):
    """As SQLite would be with a smaller limit."""

    largest = LARGEST

    def _connected(self) -> Any:
        connection = super()._connected()
        connection.setlimit(0, LARGEST + 600)  # of a row, SQLITE_LIMIT_LENGTH
        return connection


class Keys(TypedDict, total=False):
    a: Any
    b: Any
    size: int
    kind: str
    log: Annotated[list[Any], operator.add]
    grows: Annotated[list[Any], fm.append]


MADE: dict[str, Callable[[int], Any]] = {
    "bytes": os.urandom,
    "text": lambda n: "x" * n,
    "wide text": lambda n: "\u20ac" * (n // 3),
    "list": lambda n: list(os.urandom(n)),
    "tuple": lambda n: ("y" * n,),
}


def write(state: Any) -> Any:
    return {"a": MADE[state["kind"]](state["size"])}


def write_both(state: Any) -> Any:
    return {"a": os.urandom(state["size"]), "b": os.urandom(state["size"]), "log": ["both"]}


def note(state: Any) -> Any:
    return {"log": ["note"]}


def fail(state: Any) -> Any:
    if state["kind"] == "fail":
        raise OSError("not yet")
    return {"log": ["failed once"]}


def app_of(path: Path, where: Any, *fns: Any, inline: Any = ()) -> Any:
    graph = fm.StateGraph(Keys)
    for fn in (*fns, *inline):
        graph.add_node(fn.__name__, fn, context="inline" if fn in inline else where)
        graph.add_edge(fm.START, fn.__name__)
    return graph.compile(checkpoints=Small(path / "runs.db"))


@pytest.mark.parametrize("where", ["inline", "thread:2", FORKED], ids=str)
@pytest.mark.parametrize("kind", MADE)
def test_a_value_that_is_too_large_is_its_nodes_failure(
    where: Any, kind: str, tmp_path: Path
) -> None:
    app = app_of(tmp_path, where, note, write)
    with pytest.raises(fm.errors.SerializationError, match=r"key 'a' of node 'write'.*4,000") as at:
        app.invoke({"size": 4100, "kind": kind}, session="s")
    run = at.value.state_run
    assert (run.step, run.failures[0].stage, run.frontier) == (0, "write", ["note", "write"])
    assert [row.task for row in app.checkpoints.load("s").pending] == [0]
    with app.open("s") as session:
        session.update({"size": 900})
        run = session.run_until_complete()
    assert (run.status, run["log"]) == ("completed", ["note"])
    assert len(run["a"]) in (900, 300, 1)


@pytest.mark.parametrize("where", ["inline", FORKED], ids=str)
def test_what_fits_by_itself_is_kept_as_rows_that_fit(where: Any, tmp_path: Path) -> None:
    app = app_of(tmp_path, where, write_both, inline=[fail])
    with pytest.raises(OSError, match="not yet"):
        app.invoke({"size": 3000, "kind": "fail"}, session="s")
    rows = app.checkpoints.load("s").pending
    assert [(row.task, row.n) for row in rows] == [(0, 0), (0, 1)]
    with app.open("s") as session:
        session.update({"kind": "", "size": 1})
        with session.fork(session="t") as fork:
            assert len(fork.run_until_complete()["b"]) == 3000  # it had run, and does not again
        run = session.run_until_complete()
    assert (len(run["a"]), len(run["b"]), run["log"]) == (3000, 3000, ["both", "failed once"])


def test_what_a_call_gives_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    app = app_of(tmp_path, "inline", ask)
    with pytest.raises(fm.errors.SerializationError, match="key 'a' cannot be stored: it takes"):
        app.invoke({"a": "x" * 5000}, session="s")
    assert app.checkpoints.sessions() == []
    assert app.invoke({}, session="s").status == "interrupted"
    before = app.checkpoints.load("s")
    with pytest.raises(fm.errors.SerializationError, match="the answer"):
        app.resume("x" * 5000, session="s")
    with app.open("s") as session, pytest.raises(fm.errors.SerializationError, match="key 'b'"):
        session.update({"b": ["x" * 5000]})
    assert app.checkpoints.load("s") == before
    assert app.resume("short", session="s")["log"] == ["short"]


def ask(state: Any) -> Any:
    return {"log": [fm.interrupt("what?")]}


def ask_much(state: Any) -> Any:
    fm.interrupt("x" * 5000)


def test_a_question_that_is_too_large_is_its_nodes_failure(tmp_path: Path) -> None:
    app = app_of(tmp_path, "inline", note, ask_much)
    with pytest.raises(fm.errors.SerializationError, match="what 'ask_much' asks"):
        app.invoke({}, session="s")
    assert [row.kind for row in app.checkpoints.load("s").pending] == ["update"]


def grow(state: Any) -> Any:
    return {state["kind"]: [os.urandom(1500)]}


@pytest.mark.parametrize("key", ["log", "grows"])
def test_what_reducers_make_too_large_is_not_committed(key: str, tmp_path: Path) -> None:
    graph = fm.StateGraph(Keys)
    for name in "xyz":
        graph.add_node(name, grow)
        graph.add_edge(fm.START, name)
    app = graph.compile(checkpoints=Small(tmp_path / "runs.db"))
    with pytest.raises(fm.errors.SerializationError, match=f"key '{key}'"):
        app.invoke({"kind": key}, session="s")
    saved = app.checkpoints.load("s")
    assert (saved.checkpoint.step, [row.task for row in saved.pending]) == (0, [0, 1, 2])
    assert saved.info.status == "failed"


def deal(state: Any) -> Any:
    return [fm.Send("take", os.urandom(1500)) for _ in range(3)]


def take(arg: bytes) -> Any:
    return {"log": [len(arg)]}


def test_the_arguments_of_all_sends_have_to_fit(tmp_path: Path) -> None:
    graph = fm.StateGraph(Keys)
    graph.add_node("deal", deal, destinations=["take"])
    graph.add_node("take", take)
    graph.add_edge(fm.START, "deal")
    app = graph.compile(checkpoints=Small(tmp_path / "runs.db"))
    with pytest.raises(fm.errors.SerializationError, match="arguments of the 3 tasks"):
        app.invoke({}, session="s")
    assert app.checkpoints.load("s").checkpoint.step == 0


def test_sqlite_holds_what_is_said_and_little_more() -> None:
    """A row of that size is a gigabyte on the disk; here SQLite is asked."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        row = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    largest = fm.SQLiteCheckpoints("runs.db").largest
    assert largest is not None and row - 10_000_000 < largest < row - 100_000

"""Checkpoints in Postgres behind a pooler: each transaction has another server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
from fix_pooler import Pooler
from fix_stores import a_server, an_url  # noqa: F401

import forkmill as fm
from forkmill.stategraph.checkpoints.store import Change, Checkpoints

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[Pooler]:
    made = Pooler(postgres_url)
    try:
        yield made
    finally:
        made.close()


class Talk(TypedDict):
    todo: list[int]
    done: Annotated[list[Any], fm.append]


def deal(state: Any) -> Any:
    return [fm.Send("work", n) for n in state["todo"]]


def work(n: int) -> Any:
    return {"done": [n * n]}


def ask(state: Any) -> Any:
    return {"done": [fm.interrupt(len(state["done"]))]}


def app_of(url: str, where: Any) -> Any:
    graph = fm.StateGraph(Talk)
    graph.add_node("deal", deal, destinations=["work"])
    graph.add_node("work", work, context=where)
    graph.add_node("ask", ask)
    graph.add_edge(fm.START, "deal")
    graph.add_edge("work", "ask")
    return graph.compile(checkpoints=fm.PostgresCheckpoints(url))


@pytest.mark.parametrize("where", ["inline", fm.ipc_fork(2, start_method="fork")], ids=str)
def test_a_graph_runs_asks_and_is_forked_through_a_pooler(where: Any, pooler: Pooler) -> None:
    app, other = app_of(pooler.url, where), app_of(pooler.url, where)
    with app.checkpoints, other.checkpoints:
        run = app.invoke({"todo": [3, 1, 2]}, session="s")
        assert (run.status, run.interrupts[0].value) == ("interrupted", 3)
        with other.open("s") as session:
            assert [at.kind for at in session.history()] == ["input", "step", "step"]
            session.fork(session="t").close()
        assert other.resume("yes", session="s")["done"] == [9, 1, 4, "yes"]
        assert app.resume("no", session="t")["done"] == [9, 1, 4, "no"]
        app.checkpoints.prune(keep=1)
        app.checkpoints.delete("t")
        assert [info.id for info in other.checkpoints.sessions()] == ["s"]
    assert set(pooler.used) == {0, 1}
    swaps = sum(a != b for a, b in zip(pooler.used, pooler.used[1:], strict=False))
    assert swaps > len(pooler.used) // 2


def test_a_claim_holds_through_a_pooler(pooler: Pooler) -> None:
    first, second = fm.PostgresCheckpoints(pooler.url), fm.PostgresCheckpoints(pooler.url)
    with first, second:
        claim = first.begin("s", expect=0, hash="h", change=Change(1, 0, "input", "i", {"k": b"1"}))
        with pytest.raises(fm.SessionBusy):
            second.begin("s", expect=1, hash="h")
        taken = second.begin("s", expect=1, hash="h", take_over=True)
        with pytest.raises(fm.SessionConflict):
            first.write(claim, change=Change(2, 1, "step", "a", {"k": b"2"}))
        second.write(taken, change=Change(2, 1, "step", "b", {"k": b"3"}), release=True)
        assert first.load("s").values["k"] == (b"3",)


def count_up(make: Callable[[], Checkpoints], turns: int) -> int:
    """Add 1 so many times in a forked child, while others do so too; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with make() as store:
            done = 0
            while done < turns:
                saved = store.load("s")
                number = int(bytes(saved.values["n"][0])) + 1
                try:
                    claim = store.begin("s", expect=saved.info.seq, hash="h")
                except (fm.SessionBusy, fm.SessionConflict):
                    continue
                change = Change(claim.seq + 1, number, "step", "", {"n": b"%d" % number})
                store.write(claim, change=change, release=True)
                done += 1
        os._exit(0)
    finally:
        os._exit(1)


def test_three_processes_through_two_connections_lose_nothing(pooler: Pooler) -> None:
    def make() -> Checkpoints:
        return fm.PostgresCheckpoints(pooler.url)

    with make() as store:
        change = Change(1, 0, "input", "", {"n": b"0"})
        store.begin("s", expect=0, hash="h", change=change, release=True)
    children = [count_up(make, 10) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    with make() as store:
        saved = store.load("s")
    assert (saved.values["n"], saved.info.seq) == ((b"30",), 31)

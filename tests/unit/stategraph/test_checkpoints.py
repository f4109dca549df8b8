"""The protocol of stores: every store does the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, TypedDict

import pytest
from fix_stores import a_maker, a_server, a_store, an_url  # noqa: F401

import forkmill as fm
from forkmill.stategraph.checkpoints import opened
from forkmill.stategraph.checkpoints.owner import Owner
from forkmill.stategraph.checkpoints.store import (
    ANSWER,
    QUESTION,
    UPDATE,
    Change,
    Checkpoints,
    Delta,
    Pending,
    Planned,
    merged,
)

ROWS = [Pending(0, QUESTION, 0, b"q"), Pending(0, QUESTION, 1, b"r"), Pending(1, UPDATE, 0, b"u")]


def first(**values: bytes) -> Change:
    frontier = [Planned("a"), Planned("b", b"arg"), Planned("b", b"")]
    return Change(1, 0, "input", "input", values, frontier, [["x"], []])


def after(change: Change, **values) -> Change:
    return Change(change.seq + 1, change.step + 1, "step", "a, b", values, [Planned("c")])


def test_what_was_written_is_loaded(make_store: Callable[..., Checkpoints]) -> None:
    store = make_store()
    assert store.load("s") is None
    claim = store.begin("s", expect=0, hash="h", change=first(k=b"1", l=b"2"))
    saved = make_store().load("s")
    assert saved is not None and store.info("s") == saved.info and store.info("t") is None
    assert saved.values == {"k": (b"1",), "l": (b"2",)}
    at = saved.checkpoint
    assert (at.session, at.seq, at.step, at.parent, at.kind) == ("s", 1, 0, None, "input")
    assert at.frontier == (Planned("a"), Planned("b", b"arg"), Planned("b", b""))
    assert at.joins == (("x",), ())
    assert saved.info.status == "running" and saved.info.hash == "h" and saved.info.seq == 1
    assert saved.info.owner == Owner.here() and saved.info.alive

    assert claim.at == saved.checkpoint.at > 0
    store.write(claim, rows=ROWS)
    assert make_store().load("s").pending == tuple(ROWS)
    assert store.load("s", known=1) == replace(store.load("s"), values={})
    assert store.load("s", known=2) == store.load("s")
    store.write(claim, change=after(first(), k=None, n=b"3"), status="completed", release=True)
    saved = make_store().load("s")
    assert (claim.seq, claim.at) == (2, saved.checkpoint.at)
    assert saved.values == {"l": (b"2",), "n": (b"3",)} and saved.pending == ()
    assert saved.checkpoint.parent == 1 and saved.checkpoint.joins == ()
    assert saved.info.status == "completed" and saved.info.owner is None and saved.info.step == 1
    old = make_store().load("s", 1)
    assert old.values == {"k": (b"1",), "l": (b"2",)} and old.pending == ()
    assert [at.seq for at in store.history("s")] == [1, 2] and store.history("t") == []


def test_a_claimed_session_is_busy_and_changes_nothing(store: Checkpoints) -> None:
    store.begin("s", expect=0, hash="h", change=first(k=b"1"))
    before = store.load("s")
    with pytest.raises(fm.SessionBusy, match="'s' is claimed by pid") as caught:
        store.begin("s", expect=1, hash="g", change=after(first(), k=b"2"), rows=ROWS)
    assert caught.value.session == "s" and str(os.getpid()) in caught.value.owner
    with pytest.raises(fm.SessionBusy):
        store.delete("s")
    assert store.load("s") == before


def test_a_session_that_was_taken_over_is_lost_to_its_former_owner(store: Checkpoints) -> None:
    mine = store.begin("s", expect=0, hash="h", change=first(k=b"1"))
    theirs = store.begin(
        "s", expect=1, hash="h", rows=[Pending(0, ANSWER, 0, b"a")], take_over=True
    )
    before = store.load("s")
    for write in (
        {"rows": ROWS},
        {"change": after(first(), k=b"2")},
        {"status": "failed"},
        {"release": True},
    ):
        with pytest.raises(fm.SessionConflict, match="took it over"):
            store.write(mine, **write)
    assert store.load("s") == before
    store.write(theirs, change=after(first(), k=b"3"), release=True)
    with pytest.raises(fm.SessionConflict, match="released"):
        store.write(theirs, rows=ROWS)
    assert store.load("s").values == {"k": (b"3",)}


def test_what_a_run_has_read_is_true_when_it_begins(store: Checkpoints) -> None:
    claim = store.begin("s", expect=0, hash="h", change=first(k=b"1"))
    store.write(claim, change=after(first(), k=b"2"), release=True)
    for expect in (0, 1, 3):
        with pytest.raises(fm.SessionConflict, match="at checkpoint 2"):
            store.begin("s", expect=expect, hash="h", change=Change(9, 0, "edit", "", {}))
    with pytest.raises(fm.SessionConflict, match="no session 't'"):
        store.begin("t", expect=0, hash="h")
    with pytest.raises(fm.SessionConflict, match="go back"):
        store.begin("s", expect=2, hash="h", change=after(first()))
    assert store.load("s").info.owner is None and store.load("t") is None


def test_of_many_that_begin_at_once_one_does(make_store: Callable[..., Checkpoints]) -> None:
    stores = [make_store() for _ in range(6)]
    said: list[str] = []
    barrier = threading.Barrier(len(stores))

    def begin(store: Checkpoints) -> None:
        barrier.wait()
        try:
            store.begin("s", expect=0, hash="h", change=first(k=b"1"))
            said.append("mine")
        except fm.SessionBusy:
            said.append("busy")
        except fm.SessionConflict:
            said.append("moved")

    threads = [threading.Thread(target=begin, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said.count("mine") == 1 and len(said) == len(stores), said


def test_the_session_of_a_dead_process_is_free(make_store: Callable[..., Checkpoints]) -> None:
    store = make_store()
    if hasattr(store, "_sessions"):
        return  # nobody else can write to this process's memory
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    try:
        here = Owner.here()
        alive = replace(here, pid=child.pid, start="")
        store.begin("s", expect=0, hash="h", change=first(k=b"1"))
        disown(store, "s", alive)
        with pytest.raises(fm.SessionBusy):
            store.begin("s", expect=1, hash="h")
    finally:
        child.communicate()
    store.begin("s", expect=1, hash="h")
    for owner, dead in [
        (replace(here, boot="another"), True),
        (replace(here, start="1"), True),
        (replace(here, host="another"), False),
        (replace(here, host="another", boot="another"), False),
        (None, False),
    ]:
        disown(store, "s", owner)
        if dead:
            store.begin("s", expect=1, hash="h")
        else:
            with pytest.raises(fm.SessionBusy):
                store.begin("s", expect=1, hash="h")


def disown(store: Checkpoints, session: str, owner: Owner | None) -> None:
    """Write another owner beside the claim; None: one that cannot be read."""
    with store._transaction(writes=True) as run:
        run("UPDATE session SET owner = ?", owner.dumps() if owner else "?")


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout.read() == b""
    # Its output is closed before it ends: until it is a zombie it may still be alive.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert replace(Owner.here(), pid=child.pid, start="").is_dead()
    child.communicate()


def test_an_owner_survives_its_text() -> None:
    here = Owner.here()
    assert Owner.loads(here.dumps()) == here and not here.is_dead()
    assert Owner.loads(None) is None
    assert not Owner.loads("nonsense").is_dead()


@pytest.mark.parametrize("keep", [False, True])
def test_an_edit_keeps_rows_or_drops_them(store: Checkpoints, keep: bool) -> None:
    claim = store.begin("s", expect=0, hash="h", change=first(k=b"1"))
    store.write(claim, rows=ROWS, status="interrupted", release=True)
    edit = Change(2, 0, "edit", "me", {"k": b"2"}, [Planned("a")])
    done = store.begin(
        "s", expect=1, hash="h", change=edit, keep_rows=keep, status="interrupted", release=True
    )
    assert done.released
    saved = store.load("s")
    assert saved.pending == (tuple(ROWS) if keep else ())
    assert saved.info.owner is None and saved.checkpoint.kind == "edit"
    assert saved.checkpoint.author == "me" and saved.values == {"k": (b"2",)}
    claim = store.begin("s", expect=2, hash="h", rows=[Pending(0, ANSWER, 0, b"yes")])
    assert claim.at == 0.0
    assert len(store.load("s").pending) == 1 + (len(ROWS) if keep else 0)
    store.write(claim, change=Change(3, 1, "step", "a", {}))
    assert store.load("s").pending == ()


def test_a_row_that_comes_again_replaces_the_first(store: Checkpoints) -> None:
    claim = store.begin("s", expect=0, hash="h", change=first())
    store.write(claim, rows=[Pending(0, "failure", 0, b"1"), Pending(0, UPDATE, 0, b"1")])
    store.write(claim, rows=[Pending(0, "failure", 0, b"2")])
    assert [row.data for row in store.load("s").pending] == [b"2", b"1"]


def test_deltas_lie_behind_their_value(store: Checkpoints) -> None:
    claim = store.begin("s", expect=0, hash="h", change=first(k=b"1"))
    expected = [b"1"]
    for seq in range(2, 12):
        value = Delta((b"%d" % seq,)) if seq % 5 else b"%d" % seq
        store.write(claim, change=Change(seq, seq, "step", "", {"k": value}))
        expected = [*expected, b"%d" % seq] if seq % 5 else [b"%d" % seq]
        assert store.load("s").values == {"k": tuple(expected)}
    several = Change(12, 12, "step", "", {"k": Delta((b"a", b"b")), "l": (b"x", b"y")})
    store.write(claim, change=several, release=True)
    assert store.load("s").values == {"k": (b"10", b"11", b"a", b"b"), "l": (b"x", b"y")}
    assert store.load("s", 4).values == {"k": (b"1", b"2", b"3", b"4")}
    store.fork("s", 12, "t")
    assert store.load("t").values == store.load("s").values
    assert store.prune("s", keep=2) == 10
    assert store.load("s").values == store.load("t").values
    assert store.load("s", 11).values == {"k": (b"10", b"11")}


def test_two_changes_make_one() -> None:
    one = Change(2, 1, "step", "a", {"v": b"1", "d": Delta((b"1",)), "w": b"1", "g": b"1"})
    two = Change(
        3, 2, "step", "b", {"d": Delta((b"2",)), "w": Delta((b"2",)), "g": None, "n": b"2"}
    )
    both = merged(one, two)
    assert both.values == {
        "v": b"1",
        "d": Delta((b"1", b"2")),
        "w": (b"1", b"2"),
        "g": None,
        "n": b"2",
    }
    assert (both.seq, both.step, both.author) == (3, 2, "b")
    with pytest.raises(ValueError, match="'g'"):
        merged(both, Change(4, 3, "step", "", {"g": Delta((b"",))}))


def test_a_fork_is_a_session_of_its_own(store: Checkpoints) -> None:
    claim = store.begin("s", expect=0, hash="h", change=first(k=b"1"))
    store.write(claim, rows=ROWS, status="interrupted", release=True)
    info = store.fork("s", 1, "t")
    assert (info.id, info.seq, info.step, info.status, info.owner) == (
        "t",
        1,
        0,
        "interrupted",
        None,
    )
    twin, saved = store.load("t"), store.load("s")
    assert twin.values == saved.values and twin.pending == saved.pending
    assert twin.checkpoint.frontier == saved.checkpoint.frontier
    assert twin.checkpoint.joins == saved.checkpoint.joins
    assert twin.checkpoint.kind == "fork" and twin.checkpoint.author == "fork of s at 1"
    claim = store.begin("t", expect=1, hash="h", change=after(first(), k=b"9"))
    assert store.load("s") == saved
    store.write(claim, release=True)
    for session, seq, target, said in [
        ("s", 1, "t", "already"),
        ("s", 7, "u", "no checkpoint 7"),
        ("x", 1, "u", "no session 'x'"),
    ]:
        with pytest.raises(fm.SessionConflict, match=said):
            store.fork(session, seq, target)
    store.fork("t", 1, "u")
    assert store.load("u").pending == ()  # they are beside the last checkpoint only


def test_sessions_are_listed_pruned_and_deleted(store: Checkpoints) -> None:
    for name in "ab":
        claim = store.begin(name, expect=0, hash="h", change=first(k=b"0", l=b"0"))
        change = first()
        for step in range(5):
            change = after(change, k=b"%d" % step)
            store.write(claim, change=change)
        store.write(claim, rows=ROWS, status="failed", release=True)
    assert [info.id for info in store.sessions()] == ["a", "b"]
    assert {(info.status, info.seq, info.step) for info in store.sessions()} == {("failed", 6, 5)}
    assert store.prune("a", keep=2) == 4 and store.prune("a", keep=2) == 0
    assert [at.seq for at in store.history("a")] == [5, 6]
    assert store.load("a").values == {"k": (b"4",), "l": (b"0",)}
    assert store.load("a", 5).values == {"k": (b"3",), "l": (b"0",)}
    assert store.load("a").pending == tuple(ROWS)
    with pytest.raises(fm.SessionConflict, match="no checkpoint 4"):
        store.load("a", 4)
    assert store.prune(keep=1) == 6
    assert [len(store.history(name)) for name in "ab"] == [1, 1]
    with pytest.raises(fm.SessionConflict):
        store.prune("c", keep=1)
    for keep, kind in [(0, ValueError), ("1", TypeError), (True, TypeError)]:
        with pytest.raises(kind):
            store.prune(keep=keep)
    store.delete("a")
    with pytest.raises(fm.SessionConflict, match="no session 'a'"):
        store.delete("a")
    assert [info.id for info in store.sessions()] == ["b"] and store.load("a") is None
    store.begin("a", expect=0, hash="h", change=first())
    assert store.load("a").pending == () and store.load("a").values == {}


def test_any_text_is_a_name_and_any_bytes_are_data(store: Checkpoints) -> None:
    name, data = "a 'b\" %s ? ü\n", bytes(range(256)) * 300
    change = Change(1, 0, "input", "%", {name: memoryview(data)}, [Planned(name, data)], [[name]])
    store.begin(name, expect=0, hash="%s", change=change, rows=[Pending(0, UPDATE, 0, data)])
    saved = store.load(name)
    assert bytes(saved.values[name][0]) == data
    assert saved.checkpoint.frontier == (Planned(name, data),)
    assert saved.checkpoint.joins == ((name,),) and saved.pending[0].data == data


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("runs.db", ValueError, "sqlite:runs.db"),
        ("sqlit:runs.db", ValueError, "'sqlite'"),
        ("sqlite:", ValueError, "name a file"),
        ("sqlite:///runs.db", ValueError, "name a file"),
        ("sqlite::memory:", ValueError, "MemoryCheckpoints"),
        ("memory:x", ValueError, "nothing behind"),
        (7, TypeError, "its URL"),
    ],
)
def test_a_store_that_cannot_be_is_refused(spec: object, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        opened(spec)


def test_options_of_stores_are_checked(tmp_path) -> None:
    with pytest.raises(ValueError, match="'pickle'"):
        opened("memory:", codec="pickl")
    with pytest.raises(ValueError, match="sync"):
        opened(f"sqlite:{tmp_path}/x", sync="hard")
    with pytest.raises(TypeError, match="key must be bytes"):
        opened(f"sqlite:{tmp_path}/x", key=7)
    with pytest.raises(ValueError, match="some bytes"):
        opened(f"sqlite:{tmp_path}/x", key=b"")
    assert not list(tmp_path.iterdir())
    store = opened("memory:")
    assert opened(store) is store


class State(TypedDict, total=False):
    n: int
    log: Annotated[list[str], fm.append]


def ask(state):
    return {"log": [str(fm.interrupt("how many?"))]}


def count(state):
    return {"n": state.get("n", 0) + 1, "log": ["count"]}


def test_a_graph_runs_on_every_store(make_store: Callable[..., Checkpoints]) -> None:
    last = 10 if "Postgres" in type(make_store()).__name__ else 80
    graph = fm.StateGraph(State)
    graph.add_node("count", count)
    graph.add_node("ask", ask)
    graph.add_edge(fm.START, "count")
    graph.add_edge("count", "ask")
    graph.add_conditional_edges(
        "ask", lambda s: "count" if s["n"] < last else fm.END, ["count", fm.END]
    )
    run = graph.compile(checkpoints=make_store()).invoke({}, session="s")
    while run.status == "interrupted":
        run = graph.compile(checkpoints=make_store()).resume(run["n"], session="s")
    assert run.status == "completed" and run["n"] == last and run.step == 2 * last
    # More than a value may have deltas: it was stored whole in between.
    assert run["log"] == [text for n in range(1, last + 1) for text in ("count", str(n))]
    assert len(make_store().history("s")) == 2 * last + 1
    assert make_store().prune(keep=3) == 2 * last - 2
    twin = graph.compile(checkpoints=make_store()).open("s")
    assert twin.state["log"] == run["log"]
    twin.close()

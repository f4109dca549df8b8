"""`forkmill run MODULE:APP --session ID` and `forkmill sessions STORE [ID]`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import forkmill.cli as forkmill_cli

APP = """
import operator, os, time
from typing import Annotated, TypedDict
import forkmill as fm

class Thing:
    pass

class State(TypedDict):
    topics: list[str]
    notes: Annotated[list[str], operator.add]
    thing: object

def plan(state):
    if "fail" in state["topics"]:
        raise ValueError("no such topic")
    if "slow" in state["topics"]:
        print("begun", flush=True)
        time.sleep(30)
    return {"notes": [t.upper() for t in state["topics"]]}

def review(state):
    return {"notes": [f"said {fm.interrupt({'notes': state['notes']})}"], "thing": Thing()}

def start(state):
    many = state["topics"] == ["many"]
    return [fm.Send("many", n) for n in range(30)] if many else "plan"

def many(n):
    return None

def other(state):
    return {"notes": [fm.interrupt("other?")]} if "two" in state["topics"] else None

graph = fm.StateGraph(State)
graph.add_node("plan", plan)
graph.add_node("review", review)
graph.add_node("other", other)
graph.add_node("many", many)
graph.add_conditional_edges(fm.START, start, ["plan", "many"])
graph.add_edge("many", "plan")
graph.add_edge("plan", "review")
graph.add_edge("plan", "other")
app = graph.compile(checkpoints="sqlite:runs.db")
bare = graph.compile()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notes.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "notes", raising=False)
    return tmp_path


def forkmill(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process, as if in a new one; status, stdout, stderr."""
    sys.modules.pop("notes", None)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = forkmill_cli.main([*map(str, arguments)])
    # As the end of its process would.
    app = getattr(sys.modules.pop("notes", None), "app", None)
    if app is not None:
        app.checkpoints.close()
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return code, out.getvalue(), err.getvalue()


def test_a_session_is_begun_asked_and_answered(here: Path) -> None:
    run = ("run", "notes:app", "--session", "one")
    code, out, err = forkmill(*run, "--set", 'topics=["a","b"]')
    assert code == 3
    assert json.loads(out) == {"topics": ["a", "b"], "notes": ["A", "B"]}
    assert 'review asks (review-2-0-0): {"notes": ["A", "B"]}' in err
    assert "interrupted after step 1; next: review, other; session one" in err
    code, out, err = forkmill(*run)  # it still waits
    assert (code, "review asks" in err) == (3, True)
    code, out, err = forkmill(*run, "--resume", "fine", "--json")
    said = json.loads(out)
    assert (code, said["status"], said["step"]) == (0, "completed", 2)
    assert said["state"]["notes"] == ["A", "B", "said fine"]
    assert said["state"]["thing"].startswith("<notes.Thing")
    assert forkmill(*run)[0] == 0
    code, _, err = forkmill(*run, "--set", "topics=[]")  # a new turn
    assert (code, "asks" in err) == (3, True)
    assert forkmill(*run, "--resume", "7")[0] == 0


def test_several_questions_are_answered_by_their_names(here: Path) -> None:
    run = ("run", "notes:app", "--session", "two")
    code, _, err = forkmill(*run, "--set", 'topics=["two"]')
    assert code == 3 and "review-2-0-0" in err and "other-2-1-0" in err
    code, _, err = forkmill(*run, "--resume", "x")
    assert code == 1 and "review-2-0-0" in err
    code, _, err = forkmill(*run, "--answer", "other-2-1-0", "x")
    assert code == 3 and "other-2-1-0" not in err
    code, out, _ = forkmill(*run, "--answer", "review-2-0-0", '{"a": 1}')
    assert code == 0 and json.loads(out)["notes"] == ["TWO", "said {'a': 1}", "x"]


def test_a_failure_is_told_and_gone_on_with(here: Path) -> None:
    code, out, err = forkmill("run", "notes:app", "--session", "f", "--set", 'topics=["fail"]')
    assert (code, out) == (1, "")
    assert "node plan: ValueError: no such topic" in err and "--session f" in err
    code, _, err = forkmill("run", "notes:app", "--session", "f", "--set", "topics=[]")
    assert code == 1 and "abandon" in err
    code, _, err = forkmill("run", "notes:app", "--session", "f", "--set", "topics=[]", "--abandon")
    assert code == 3


def test_what_is_asked_for_wrongly_is_told(here: Path) -> None:
    for arguments, status, said in [
        (("run", "notes:graph"), 2, "compile(checkpoints=...)"),
        (("run", "notes:app", "--resume", "x"), 2, "need --session"),
        (("run", "notes:app", "--session", "no", "--resume", "x"), 1, "no session 'no'"),
        (("run", "notes:bare", "--session", "x"), 1, "sqlite:runs.db"),
        (("run", "notes:app", "--session", "x", "--set", "topic=1"), 1, "did you mean 'topics'"),
        (("run", "operator:add", "--session", "x"), 2, "state graphs"),
        (("sessions", "none.db"), 2, "no file 'none.db'"),
        (("sessions", "runs.db", "--history"), 2, "need the ID"),
        (("sessions", "runs.db", "nobody"), 1, "no session 'nobody'"),
        (("sessions", "notes.py"), 1, "not a database"),
    ]:
        code, out, err = forkmill(*arguments)
        assert (code, out) == (status, "") and said in err, (arguments, code, out, err)
    assert "plan" in forkmill("run", "notes:bare", "--plan")[1]


def test_ctrl_c_ends_a_run_that_can_be_gone_on_with(here: Path, start_script: Any) -> None:
    script = start_script(
        f"""
        import os, sys
        os.chdir({str(here)!r})
        sys.path.insert(0, {str(here)!r})
        from forkmill.cli import main
        sys.argv = ["forkmill", "run", "notes:app", "--session", "c", "--set", 'topics=["slow"]']
        sys.exit(main())
        """
    )
    script.wait_for("begun")
    # The first one lets the step finish, which takes too long; two at once are one.
    for _ in range(10):
        os.kill(script.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            script.process.wait(2)
        if script.returncode is not None or "stopped" in script.stderr:
            break
    assert script.wait(20) == 130, script.report()
    assert "Traceback" not in script.stderr
    code, out, _ = forkmill("sessions", "runs.db", "c", "--json")
    assert code == 0 and json.loads(out)["owner"] is None


def test_sessions_are_listed_shown_pruned_and_deleted(here: Path) -> None:
    forkmill("run", "notes:app", "--session", "one", "--set", 'topics=["a"]')
    forkmill("run", "notes:app", "--session", "two", "--set", "topics=[]")
    forkmill("run", "notes:app", "--session", "two", "--resume", "ok")
    code, out, _ = forkmill("sessions", "runs.db", "--json")
    assert code == 0
    assert [(s["id"], s["status"], s["seq"]) for s in json.loads(out)] == [
        ("one", "interrupted", 2), ("two", "completed", 3)
    ]  # fmt: skip
    assert "2 sessions" in forkmill("sessions", "sqlite:runs.db")[1]
    one = json.loads(forkmill("sessions", "runs.db", "one", "--json")[1])
    assert one["values"] == {"topics": ["a"], "notes": ["A"]}
    assert [row["kind"] for row in one["pending"]] == ["question", "update"]
    assert one["pending"][0]["value"] == {"notes": ["A"]} and one["next"] == ["review", "other"]
    assert "review" in forkmill("sessions", "runs.db", "one")[1]
    two = json.loads(forkmill("sessions", "runs.db", "two", "--json")[1])
    assert two["values"]["thing"].endswith("bytes of notes.Thing>")
    line = json.loads(forkmill("sessions", "runs.db", "two", "--history", "--json")[1])
    assert [(at["seq"], at["kind"]) for at in line] == [(1, "input"), (2, "step"), (3, "step")]
    old = json.loads(forkmill("sessions", "runs.db", "two", "--seq", 1, "--json")[1])
    assert old["values"]["topics"] == [] and old["seq"] == 1
    assert "3 checkpoints" in forkmill("sessions", "runs.db", "two", "--history")[1]
    many = "topics=" + json.dumps(["many"])
    forkmill("run", "notes:app", "--session", "two", "--set", many)
    told = forkmill("sessions", "runs.db", "two", "--history")[1].splitlines()
    assert told[1].split()[:2] == ["seq", "step"]  # however many tasks are next
    assert told[-1].split()[-2:] == ["review,", "other"] and "many x30" in told[-3]
    forkmill("sessions", "runs.db", "two", "--prune", 3)
    assert forkmill("sessions", "runs.db", "two", "--prune", 1)[1] == "2 deleted\n"
    assert forkmill("sessions", "runs.db", "one", "--delete")[0] == 0
    assert [s["id"] for s in json.loads(forkmill("sessions", "runs.db", "--json")[1])] == ["two"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_looking_at_a_store_runs_no_code_of_its_values(here: Path) -> None:
    with fm.SQLiteCheckpoints("runs.db") as store:
        from forkmill.stategraph.checkpoints.store import Change

        store.begin("s", expect=0, hash="h", change=Change(1, 0, "input", "", {"k": b"1"}))
    connection = sqlite3.connect("runs.db")
    with connection:
        connection.execute("UPDATE value SET data = ?", (pickle.dumps(Evil(), 5),))
    connection.close()
    code, out, _ = forkmill("sessions", "runs.db", "s", "--json")
    assert code == 0 and "system" in json.loads(out)["values"]["k"]
    assert not (here / "pwned").exists()


def test_a_key_is_read_from_a_file(here: Path) -> None:
    (here / "key").write_bytes(b"secret")
    with fm.SQLiteCheckpoints("runs.db", key=b"secret") as store:
        from forkmill.stategraph.checkpoints.store import Change

        change = Change(1, 0, "input", "", {"k": store.codec.encode([1])})
        store.begin("s", expect=0, hash="h", change=change)
    code, out, _ = forkmill("sessions", "runs.db", "s", "--json", "--key-file", "key")
    assert code == 0 and json.loads(out)["values"] == {"k": [1]}
    code, _, err = forkmill("sessions", "runs.db", "s")
    assert code == 1 and "written with a key" in err

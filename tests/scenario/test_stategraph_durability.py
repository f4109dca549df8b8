"""State graphs that pause, are killed, and go on: from this process and from others.

What is stored is never done again, and what is done is never stored twice: the tasks leave a line
each time they run, and the store says which of them it has.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stategraph_durable as durable
from stategraph_durable import EXPECTED, STEPS, asking, lines, made, saved

import forkmill as fm

pytestmark = pytest.mark.timeout(60)

SCENARIOS = Path(__file__).resolve().parent
PROCESSES = fm.ipc_fork(2, start_method="fork")


@pytest.fixture(params=["memory", "sqlite", "json"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        return fm.MemoryCheckpoints()
    codec = "json" if request.param == "json" else "pickle"
    made = fm.SQLiteCheckpoints(tmp_path / "runs.db", sync="off", codec=codec)
    request.addfinalizer(made.close)
    return made


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "lines")


def state_of(run: Any) -> dict[str, Any]:
    return {key: run[key] for key in EXPECTED}


# ------------------------------------------------------------------- pause and resume


@pytest.mark.parametrize(
    "context", ["inline", "thread:2", PROCESSES], ids=["inline", "thread", "2"]
)
def test_questions_are_answered_in_their_order(store: Any, file: str, context: Any) -> None:
    app = asking(store, context)
    run = app.invoke({"file": file}, session="s")
    assert run.status == "interrupted" and [q.value for q in run.interrupts] == [{"ask": "first"}]
    assert run["log"] == [] and sorted(line[3] for line in lines(file)) == ["ask", "beside"]
    run = app.resume({"a": None}, session="s")
    assert [q.value for q in run.interrupts] == [["second", {"a": None}]]
    run = app.resume(None, session="s")
    assert run.status == "completed" and run["log"] == ["{'a': None} None", "beside", "after None"]
    nodes = [line[3] for line in lines(file)]
    assert (nodes.count("ask"), nodes.count("beside"), nodes.count("after")) == (3, 1, 1)
    again = app.resume(session="s")
    assert again.status == "completed" and again["log"] == run["log"] and len(lines(file)) == 5


def test_an_answer_is_stored_before_any_task_starts(tmp_path: Path, file: str) -> None:
    """A process that is killed in the node that was answered has not lost the answer."""
    with fm.SQLiteCheckpoints(tmp_path / "runs.db", sync="off") as store:
        asking(store).invoke({"file": file}, session="s")

    def resume(writer: int) -> None:
        asking(f"sqlite:{tmp_path}/runs.db").resume("yes", session="s")

    def killing(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed(writer: int) -> None:
        durable.leave = killing
        resume(writer)

    _, status = in_child(killed)()
    assert os.WTERMSIG(status) == signal.SIGKILL
    with fm.SQLiteCheckpoints(tmp_path / "runs.db", sync="off") as store:
        assert [row.kind for row in store.load("s").pending if row.task == 0] == [
            "answer",
            "question",
        ]
        run = asking(store).resume(session="s")
        assert [q.value for q in run.interrupts] == [["second", "yes"]]


def test_another_process_resumes(tmp_path: Path, file: str) -> None:
    path = f"sqlite:{tmp_path}/runs.db"
    app = asking(path)
    run = app.invoke({"file": file}, session="s", interrupt_before=["after"])
    app.checkpoints.close()
    code = (
        f"import sys; sys.path.insert(0, {str(SCENARIOS)!r})\n"
        "from stategraph_durable import asking\n"
        f"run = asking({path!r}).resume('one', session='s', interrupt_before=['after'])\n"
        "print(run.status, run.interrupts[0].value)\n"
        f"run = asking({path!r}).resume('two', session='s', interrupt_before=['after'])\n"
        "print(run.status, run['log'], run.frontier)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ran.stdout.splitlines() == [
        "interrupted ['second', 'one']",
        "interrupted ['one two', 'beside'] ['after']",
    ], ran.stderr
    run = app.resume(session="s", interrupt_before=["after"])
    assert run.status == "completed" and run["log"] == ["one two", "beside", "after None"]
    app.checkpoints.close()


def test_pauses_after_each_step_and_edits(store: Any, file: str) -> None:
    app = made(checkpoints=store)
    run = app.invoke({"file": file}, session="s", interrupt_after="*")
    steps = 1
    while run.status == "interrupted":
        before = store.load("s")
        assert before.info.status == "interrupted" and before.info.owner is None
        assert [task.node for task in before.checkpoint.frontier] == run.frontier
        run = app.resume(session="s", interrupt_after="*")
        steps += 1
    assert run.status == "completed" and state_of(run) == EXPECTED
    assert run.step == STEPS and steps in (STEPS, STEPS + 1)


def test_an_edit_is_seen_by_the_next_node_and_told_by_history(store: Any, file: str) -> None:
    app = asking(store)
    app.invoke({"file": file}, session="s")
    with app.open("s") as session:
        session.update({"k": 7, "log": ["edited"]})
        assert session.state["log"] == ["edited"] and session.frontier == ["ask", "beside"]
        assert [at.kind for at in session.history()] == ["input", "edit"]
        assert len(session.interrupts) == 1
        twin = session.fork(session.seq, session="t")
        twin.close()
    app.resume("x", session="s")
    run = app.resume("y", session="s")
    assert run["log"] == ["edited", "x y", "beside", "after 7"]
    assert [line[3] for line in lines(file)].count("beside") == 1
    history = app.open("s").history()
    assert [(at.kind, at.step) for at in history] == [
        ("input", 0), ("edit", 0), ("step", 1), ("step", 2)
    ]  # fmt: skip
    assert [at.seq for at in history] == [1, 2, 3, 4]
    app.resume("p", session="t")
    other = app.resume("q", session="t")
    assert other["log"] == ["edited", "p q", "beside", "after 7"]
    with app.open("s") as session, pytest.raises(fm.SessionConflict, match="no such node"):
        session.update({}, as_node="nobody")


def test_an_edit_as_a_node_drops_what_was_going_on(store: Any, file: str) -> None:
    app = asking(store)
    app.invoke({"file": file}, session="s")
    with app.open("s") as session:
        session.update({"log": ["instead"]}, as_node="after")
        assert session.frontier == [] and session.status == "completed"
        assert store.load("s").pending == ()
        assert session.state["log"] == ["instead"]
    assert app.resume(session="s")["log"] == ["instead"]


def test_a_fork_from_the_middle_goes_on_from_there(store: Any, file: str) -> None:
    app = made(checkpoints=store)
    app.invoke({"file": file}, session="s")
    with app.open("s") as session:
        middle = next(at for at in session.history() if at.step == 4)
        fork = session.fork(middle.seq, session="t")
        with pytest.raises(fm.SessionConflict):
            session.fork(middle.seq, session="t")
        with pytest.raises(fm.SessionConflict):
            session.fork(99, session="u")
    with fork:
        run = fork.run_until_complete()
    assert run.status == "completed" and state_of(run) == EXPECTED and run.step == STEPS
    ids = [line for line in lines(file) if line[0] == "t"]
    assert len(ids) == len(set(ids)) and not {line[0] for line in lines(file)} - {"s", "t"}


# ------------------------------------------------------------- what is refused, and named


def test_another_graph_is_refused_with_both_hashes(store: Any, file: str) -> None:
    app = asking(store)
    app.invoke({"file": file}, session="s")
    other = made(checkpoints=store)
    before = store.load("s")
    for use in (
        lambda: other.resume("x", session="s"),
        lambda: other.open("s"),
        lambda: other.invoke({}, session="s", abandon=True),
    ):
        with pytest.raises(fm.SessionConflict, match=f"{app.hash}.*{other.hash}"):
            use()
    assert store.load("s") == before
    changed = asking(store, version="2")
    with pytest.raises(fm.SessionConflict):
        changed.resume("x", session="s")
    run = changed.resume("x", session="s", allow_changed=True)
    assert run.status == "interrupted"
    assert store.load("s").info.hash == changed.hash


def test_an_unfinished_session_is_not_begun_anew_by_accident(store: Any, file: str) -> None:
    app = made(checkpoints=store)
    with pytest.raises(fm.StepLimit):
        app.invoke({"file": file}, session="s", max_steps=2)
    before = store.load("s")
    with pytest.raises(fm.SessionConflict, match="abandon"):
        app.invoke({"file": file}, session="s")
    assert store.load("s") == before
    run = app.invoke({"file": file, "round": 2}, session="s", abandon=True)
    assert run.status == "completed" and run["round"] == durable.ROUNDS
    with pytest.raises(fm.SessionConflict, match="no session 'nobody'"):
        app.resume(session="nobody")


def test_a_new_turn_is_stored_before_its_first_task(store: Any, file: str) -> None:
    app = made(checkpoints=store)
    first = app.invoke({"file": file}, session="s")
    run = app.invoke({"round": 2, "file": file}, session="s")
    assert run.step == first.step + 4
    assert run["log"] == [*EXPECTED["log"], "3.0", "3.1", "3.2"]
    kinds = [at.kind for at in app.open("s").history()]
    assert kinds.count("input") == 2


def test_a_session_that_runs_is_busy_and_nothing_runs(tmp_path: Path, file: str) -> None:
    with fm.SQLiteCheckpoints(tmp_path / "runs.db", sync="off") as store:
        app = made("thread:2", store)
        handle = app.start({"file": file, "pause": 0.2}, session="s")
        try:
            until = time.monotonic() + 20
            while len(lines(file)) < 2 and time.monotonic() < until:
                time.sleep(0.005)
            with pytest.raises(fm.SessionBusy):
                app.resume(session="s")
            with pytest.raises(fm.SessionBusy):
                made(checkpoints=fm.SQLiteCheckpoints(tmp_path / "runs.db")).invoke({}, session="s")
            # Another one that takes it over: the former owner's next write changes nothing.
            run = app.resume(session="s", take_over=True)
            assert run.status == "completed" and state_of(run) == EXPECTED
            after = store.load("s")
            with pytest.raises(fm.SessionConflict):
                handle.result(timeout=20)
            assert store.load("s") == after
        finally:
            handle.kill()


@pytest.mark.parametrize(
    ("codec", "number", "path"),
    [
        ("json", 0, ""),
        ("json", 1, ""),
        ("json", 2, "['a'][0]['b']"),
        ("json", 4, ""),
        ("pickle", 3, ""),
    ],
)
def test_what_cannot_be_stored_is_the_nodes_failure(codec: str, number: int, path: str) -> None:
    app = durable.giving(checkpoints=fm.MemoryCheckpoints(codec=codec))
    with pytest.raises(fm.SerializationError) as caught:
        app.invoke({"n": number}, session="s")
    assert (
        caught.value.path == path and "'k'" in str(caught.value) and "'give'" in str(caught.value)
    )
    assert [failure.stage for failure in caught.value.state_run.failures] == ["give"]
    assert app.open("s").status != "completed"
    good = durable.giving(checkpoints=fm.MemoryCheckpoints(codec=codec)).invoke({"n": 5})
    assert good["k"] == durable.GIVEN[5] and type(good["k"]) is dict


def test_a_store_that_does_not_open_fails_at_compile(tmp_path: Path) -> None:
    with pytest.raises(fm.StoreError, match=r"no/runs\.db"):
        made(checkpoints=f"sqlite:{tmp_path}/no/runs.db")


def test_a_store_that_fails_ends_the_run_and_the_last_checkpoint_loads(
    tmp_path: Path, file: str
) -> None:
    with fm.SQLiteCheckpoints(tmp_path / "runs.db", sync="off") as store:
        app = made(checkpoints=store)
        write, writes = store.write, []

        def failing(claim: Any, **options: Any) -> None:
            writes.append(claim)
            if len(writes) == 4:
                store._open.sqlite.execute("PRAGMA query_only = 1")
            write(claim, **options)

        store.write = failing
        with pytest.raises(fm.StoreError, match=r"runs\.db.*readonly"):
            app.invoke({"file": file}, session="s")
        done = saved(store, "s")
        ran = len(lines(file))
        store.close()
        store.write = write
        run = app.resume(session="s", take_over=True)
        assert run.status == "completed" and state_of(run) == EXPECTED
        assert not done & set(lines(file)[ran:])


# ---------------------------------------------------------------------------- exit


def test_exit_stores_the_claim_and_the_end(tmp_path: Path, file: str) -> None:
    with fm.SQLiteCheckpoints(tmp_path / "runs.db", sync="off") as store:
        app = made(checkpoints=store, durability="exit")
        run = app.invoke({"file": file}, session="s")
        assert state_of(run) == EXPECTED
        assert [at.kind for at in store.history("s")] == ["input", "step"]
        assert store.load("s").checkpoint.step == STEPS
        ids = lines(file)
        assert len(ids) == len(set(ids))  # a task's id is its own, stored or not
        with pytest.raises(fm.StepLimit):
            app.invoke({"file": file}, session="t", max_steps=4)
        assert store.load("t").checkpoint.step == 4
        assert state_of(app.resume(session="t")) == EXPECTED


# ---------------------------------------------------------------------------- kills


class Killed(sqlite3.Connection):
    """Kills its process before a statement."""

    left = 0

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        Killed.left -= 1
        if Killed.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*arguments)


def in_child(work: Callable[[int], None]) -> Callable[[], tuple[int, int]]:
    """Run `work` in a forked child; what gives (its pid, its status) at its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(50)
            work(0)
            code = 0
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(code)

    def ended() -> tuple[int, int]:
        return pid, os.waitpid(pid, 0)[1]

    ended.pid = pid  # type: ignore[attr-defined]
    return ended


def go_on(path: Path, file: str, context: Any, before: int = 0, pause: float = 0.0) -> Any:
    """Begin the session, or resume it, in a child that is perhaps killed before a statement."""

    def work(_: int) -> None:
        if before:
            Killed.left = before
            connect = sqlite3.connect
            sqlite3.connect = lambda *args, **options: connect(*args, factory=Killed, **options)
        store = fm.SQLiteCheckpoints(path, sync="off")
        app = made(context, store)
        if store.load("s") is None:
            app.invoke({"file": file, "pause": pause}, session="s")
        else:
            app.resume(session="s")
        store.close()

    return in_child(work)


def look(path: Path, file: str, known: set[Any], ran: int) -> tuple[set[Any], int]:
    """What the store has now; nothing that it had before has run again since."""
    everything = lines(file)
    again = known & set(everything[ran:])
    assert not again, f"they were stored, and ran again: {again}"
    with fm.SQLiteCheckpoints(path, sync="off") as store:
        return saved(store, "s"), len(everything)


def finished(path: Path, file: str) -> None:
    with fm.SQLiteCheckpoints(path, sync="off") as store:
        run = made(checkpoints=store).resume(session="s")
        assert run.status == "completed" and state_of(run) == EXPECTED and run.step == STEPS
        assert [at.step for at in store.history("s")] == list(range(STEPS + 1))
        assert store.load("s").pending == ()


def killed_before(tmp_path: Path, numbers: Any) -> int:
    """Kill a run before its k-th statement, for these k, and let it go on."""
    for number in numbers:
        path, file = tmp_path / f"{number}.db", str(tmp_path / f"{number}.lines")
        _, status = go_on(path, file, "inline", number)()
        known, ran = look(path, file, set(), 0)
        if status == 0:
            finished(path, file)
            return number
        assert os.WTERMSIG(status) == signal.SIGKILL
        _, status = go_on(path, file, "inline")()
        assert status == 0
        look(path, file, known, ran)
        finished(path, file)
    return 0


def test_a_run_that_is_killed_before_a_statement_goes_on(tmp_path: Path) -> None:
    assert killed_before(tmp_path, range(1, 2000, 11)) > 60  # there are that many


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_is_killed_before_any_statement_goes_on(tmp_path: Path) -> None:
    assert killed_before(tmp_path, range(1, 2000)) > 60


def killed_at_random(tmp_path: Path, kills: int, seed: int, context: Any, most: float) -> None:
    """Kill a run at random instants until it is complete, again and again, so many times in all."""
    chance, killed, number = random.Random(seed), 0, 0
    while killed < kills:
        number += 1
        path, file = tmp_path / f"{number}.db", str(tmp_path / f"{number}.lines")
        known: set[Any] = set()
        ran, longest = 0, most
        while True:
            ended = go_on(path, file, context, pause=0.001)
            time.sleep(chance.uniform(0, longest))
            os.kill(ended.pid, signal.SIGKILL)
            _, status = ended()
            known, ran = look(path, file, known, ran)
            if status == 0:
                break
            killed += 1
            longest *= 1.1  # that it comes to an end on a slow machine too
        finished(path, file)
        path.unlink()


def test_a_run_that_is_killed_at_any_instant_goes_on(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 10, 1, "inline", 0.03)
    killed_at_random(tmp_path, 3, 2, PROCESSES, 0.12)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 700, 3, "inline", 0.03)
    killed_at_random(tmp_path, 300, 4, PROCESSES, 0.12)


def test_two_processes_do_not_both_run_a_session(tmp_path: Path, file: str) -> None:
    """Each tries until it is complete: one of them runs it, the others are told so."""
    path = tmp_path / "runs.db"
    with fm.SQLiteCheckpoints(path, sync="off") as store:
        with pytest.raises(fm.StepLimit):
            made(checkpoints=store).invoke({"file": file}, session="s", max_steps=1)

    def race(_: int) -> None:
        store = fm.SQLiteCheckpoints(path, sync="off")
        app = made(checkpoints=store)
        while True:
            try:
                app.resume(session="s", max_steps=2)
            except (fm.SessionBusy, fm.SessionConflict, fm.StepLimit):
                continue
            return

    children = [in_child(race) for _ in range(3)]
    assert [ended()[1] for ended in children] == [0, 0, 0]
    ids = lines(file)
    assert len(ids) == len(set(ids))  # no task ran twice
    finished(path, file)


def test_many_threads_and_sessions_share_a_store(tmp_path: Path) -> None:
    with fm.SQLiteCheckpoints(tmp_path / "runs.db", sync="off") as store:
        app = made(checkpoints=store)
        results: dict[int, Any] = {}

        def run(number: int) -> None:
            file = str(tmp_path / f"lines{number}")
            results[number] = state_of(app.invoke({"file": file}, session=f"s{number}"))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == dict.fromkeys(range(6), EXPECTED)
        assert len(store.sessions()) == 6

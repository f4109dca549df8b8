"""A store whose process is killed has every transaction as a whole, or not at all.

The same operations run in memory, for what is there after each, and on a file in a child that is
killed before its k-th statement, for every k: what the file has then is what was there after the
last operation that had returned, or after the next one. From there the rest is done, by a process
that finds the claim of a dead one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fix_stores import a_maker, a_server, a_store, an_url  # noqa: F401

import forkmill as fm
from forkmill.stategraph.checkpoints import MemoryCheckpoints
from forkmill.stategraph.checkpoints.sqlite import SQLiteCheckpoints
from forkmill.stategraph.checkpoints.store import (
    ANSWER,
    QUESTION,
    UPDATE,
    Change,
    Checkpoints,
    Claim,
    Delta,
    Pending,
    Planned,
)

Operation = Callable[[Checkpoints, dict[str, Claim]], object]


def step(seq: int, **values: Any) -> Change:
    return Change(seq, seq - 1, "step", "a", values, [Planned("a", b"%d" % seq)], [["a"]])


def begin(session: str, expect: int, **options: Any) -> Operation:
    def operation(store: Checkpoints, claims: dict[str, Claim]) -> None:
        claims[session] = store.begin(session, expect=expect, hash="h", **options)

    return operation


def write(session: str, **options: Any) -> Operation:
    def operation(store: Checkpoints, claims: dict[str, Claim]) -> None:
        if session not in claims:  # a new process goes on: the claim is a dead one's
            expect = store.load(session).info.seq
            claims[session] = store.begin(session, expect=expect, hash="h")
        store.write(claims[session], **options)
        if options.get("release"):
            del claims[session]

    return operation


OPERATIONS: list[Operation] = [
    begin("s", 0, change=step(1, k=b"0" * 3000, l=b"l", d=b"0")),
    write("s", rows=[Pending(0, UPDATE, 0, b"u" * 2000), Pending(1, QUESTION, 0, b"q")]),
    write("s", rows=[Pending(2, UPDATE, 0, b"v")]),
    write("s", change=step(2, k=b"1" * 3000, l=None, d=Delta((b"1",)))),
    write("s", rows=[Pending(0, QUESTION, 0, b"q")], status="interrupted", release=True),
    begin("s", 2, rows=[Pending(0, ANSWER, 0, b"a")]),
    write("s", change=step(3, m=b"2")),
    write("s", rows=[Pending(0, UPDATE, 0, b"x"), Pending(0, QUESTION, 1, b"y")]),
    write("s", status="interrupted", release=True),
    begin("s", 3, change=step(4, k=b"3"), keep_rows=True, status="edited", release=True),
    lambda store, claims: store.fork("s", 4, "t"),
    begin("s", 4),
    write("s", change=step(5, d=Delta((b"4",)), k=b"4" * 5000), status="completed", release=True),
    lambda store, claims: store.prune("s", keep=2),
    lambda store, claims: store.delete("t"),
]


def picture(store: Checkpoints) -> Any:
    """All that a store has, but times and owners; a claim without any more than that is none."""
    found = {}
    for info in store.sessions():
        saved = store.load(info.id)
        line = [
            (at.seq, at.step, at.parent, at.kind, at.author, at.frontier, at.joins)
            for at in store.history(info.id)
        ]
        values = {key: tuple(map(bytes, parts)) for key, parts in saved.values.items()}
        # What was pruned is not asked for; who claims it after a death has made no difference.
        status = saved.info.status.replace("edited", "interrupted")
        found[info.id] = (line, values, saved.pending, status, info.seq, info.step, info.hash)
    return found


def pictures() -> list[Any]:
    """What is there before the first operation, and after each."""
    store, claims = MemoryCheckpoints(), {}
    found = [picture(store)]
    for operation in OPERATIONS:
        operation(store, claims)
        found.append(picture(store))
    return found


class Killed(sqlite3.Connection):
    """Kills its process before a statement."""

    left = 0

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        Killed.left -= 1
        if Killed.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*arguments)


def in_child(work: Callable[[int], None]) -> tuple[int, Callable[[], tuple[int, int]]]:
    """Run `work` in a forked child; its pid, and what gives (bytes it wrote, status) at its end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(40)  # who waits for a parent that has failed
            os.close(reader)
            work(writer)
            code = 0
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(code)
    os.close(writer)

    def ended() -> tuple[int, int]:
        with open(reader, "rb") as pipe:
            said = len(pipe.read())
        return said, os.waitpid(pid, 0)[1]

    return pid, ended


def operate(
    make: Callable[[], Checkpoints], start: int, first: Callable[[], None] | None = None
) -> Callable[[int], None]:
    def work(writer: int) -> None:
        if first is not None:
            first()
        store, claims = make(), {}
        for operation in OPERATIONS[start:]:
            operation(store, claims)
            os.write(writer, b".")
        store.close()

    return work


def of_file(path: Path) -> Callable[[], Checkpoints]:
    return lambda: SQLiteCheckpoints(path, sync="off")


def look(make: Callable[[], Checkpoints]) -> Any:
    with make() as store:
        return picture(store)


def check(make: Callable[[], Checkpoints], done: int, expected: list[Any]) -> int:
    """That the store has what it had after so many operations, or one more; how many."""
    found = look(make)
    near = [
        number for number in (done, done + 1) if found == expected[min(number, len(expected) - 1)]
    ]
    assert near, f"after {done} operations:\n{found}"
    return min(near[-1], len(expected) - 1)


def kill_before_statements(tmp_path: Path, stride: int) -> None:
    def first(before: int) -> None:
        Killed.left = before
        connect = sqlite3.connect
        sqlite3.connect = lambda *args, **options: connect(*args, factory=Killed, **options)

    expected = pictures()
    for before in range(1, 1000, stride):
        make = of_file(tmp_path / f"{before}.db")
        done, status = in_child(operate(make, 0, functools.partial(first, before)))[1]()
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        at = check(make, done, expected)
        done, status = in_child(operate(make, at))[1]()
        assert status == 0 and look(make) == expected[-1]
        for file in tmp_path.iterdir():
            file.unlink()
    else:
        pytest.fail("it has more statements than anybody counted")
    assert before > 100  # openings, transactions, commits: there are that many
    assert look(make) == expected[-1]


def test_a_kill_before_a_statement_tears_nothing(tmp_path: Path) -> None:
    kill_before_statements(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_before_any_statement_tears_nothing(tmp_path: Path) -> None:
    kill_before_statements(tmp_path, 1)


def kill_at_random(tmp_path: Path, kills: int, seed: int) -> None:
    """Who does the operations is killed at random instants, until all are done; and anew."""
    expected, chance, killed = pictures(), random.Random(seed), 0
    while killed < kills:
        make, at = of_file(tmp_path / "runs.db"), 0
        while at < len(OPERATIONS):
            began = time.monotonic()
            pid, ended = in_child(operate(make, at))
            # What takes as long as it takes to open a file and write some rows, more or less.
            time.sleep(chance.uniform(0, 0.012))
            os.kill(pid, signal.SIGKILL)
            done, status = ended()
            assert time.monotonic() - began < 20
            killed += status != 0
            at = check(make, at + done, expected)
        assert look(make) == expected[-1]
        for file in tmp_path.iterdir():
            file.unlink()


def test_a_kill_at_any_instant_tears_nothing(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 40, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_kills_tear_nothing(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 1000, seed=2)


# ------------------------------------------------------------------------ Postgres


class Deadly:
    """Kills its process at a statement of psycopg's: before it is sent, or before its answer."""

    def __init__(self, left: int, sent: bool) -> None:
        self._left, self._sent = left, sent

    def __call__(self) -> None:
        import psycopg

        wait = psycopg.Connection.wait

        def waited(connection: Any, generator: Any, *args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                if self._sent:
                    next(generator)
                os.kill(os.getpid(), signal.SIGKILL)
            return wait(connection, generator, *args, **options)

        psycopg.Connection.wait = waited


def rest(url: str) -> None:
    """Wait until the server has seen that its clients are gone, and done what they had sent."""
    import psycopg

    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    until = time.monotonic() + 20
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(query).fetchone()[0]:
            assert time.monotonic() < until
            time.sleep(0.002)


def empty(url: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for name in ("session", "checkpoint", "value", "pending"):
            connection.execute(f"DROP TABLE IF EXISTS forkmill_{name}")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sent", [False, True], ids=["before", "within"])
def test_a_kill_at_any_statement_tears_nothing_in_postgres(sent: bool, postgres_url: str) -> None:
    from forkmill.stategraph.checkpoints.postgres import PostgresCheckpoints

    def make() -> Checkpoints:
        return PostgresCheckpoints(postgres_url)

    expected = pictures()
    for number in range(1, 1000):
        empty(postgres_url)
        done, status = in_child(operate(make, 0, Deadly(number, sent)))[1]()
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        rest(postgres_url)
        at = check(make, done, expected)
        done, status = in_child(operate(make, at))[1]()
        assert status == 0 and look(make) == expected[-1]
    else:
        pytest.fail("it has more statements than anybody counted")
    assert number > 100
    assert look(make) == expected[-1]


# ---------------------------------------------------------------- several processes


def count_up(make: Callable[[], Checkpoints], turns: int) -> Callable[[int], None]:
    """Add 1 to a session's value so many times, while others do so too."""

    def work(writer: int) -> None:
        store = make()
        done = 0
        while done < turns:
            saved = store.load("s")
            value = int(bytes(saved.values["n"][0]))
            try:
                claim = store.begin("s", expect=saved.info.seq, hash="h")
            except (fm.SessionBusy, fm.SessionConflict):
                continue
            seq = claim.seq + 1
            change = Change(seq, seq, "step", "", {"n": b"%d" % (value + 1)})
            store.write(claim, rows=[Pending(0, UPDATE, 0, struct.pack("<Q", value + 1))])
            store.write(claim, change=change, release=True)
            os.write(writer, b".")
            done += 1
        store.close()

    return work


def test_two_processes_on_one_session_lose_nothing(
    make_store: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    store = make_store()
    if isinstance(store, MemoryCheckpoints):
        return  # each process has its own
    store.begin("s", expect=0, hash="h", change=step(1, n=b"0"), release=True)
    store.close()
    children = [in_child(count_up(make_store, 25)) for _ in range(3)]
    for _, ended in children:
        assert ended() == (25, 0)
    saved = store.load("s")
    assert saved.values["n"] == (b"75",) and saved.info.seq == 76 and saved.pending == ()
    assert [at.parent for at in store.history("s")] == [None, *range(1, 76)]


def test_what_a_killed_process_held_goes_to_the_others(tmp_path: Path) -> None:
    def make() -> SQLiteCheckpoints:
        return SQLiteCheckpoints(tmp_path / "runs.db", sync="off")

    with make() as store:
        store.begin("s", expect=0, hash="h", change=step(1, n=b"0"), release=True)
    said, chance = 0, random.Random(3)
    for _ in range(12):
        children = [in_child(count_up(make, 200)) for _ in range(2)]
        time.sleep(chance.uniform(0.01, 0.03))
        for pid, _ in children:
            os.kill(pid, signal.SIGKILL)
        said += sum(ended()[0] for _, ended in children)
    with make() as store:
        value = int(store.load("s").values["n"][0])
        # Each of the 24 may have been killed between its commit and its word.
        assert said <= value <= said + 24
        assert store.load("s").info.seq == value + 1


# --------------------------------------------------------------------------- forks


def test_a_child_has_a_connection_of_its_own(make_store: Callable[..., Checkpoints]) -> None:
    """A child of a process that has the store open, and both write."""
    store = make_store()
    store.begin("s", expect=0, hash="h", change=step(1, n=b"0"), release=True)
    if isinstance(store, MemoryCheckpoints):
        claim = store.begin("s", expect=1, hash="h")

        def alone(writer: int) -> None:  # its sessions are its own, and claimed by nobody
            store.begin("s", expect=1, hash="h", change=step(2, n=b"1"))
            assert store.load("s").values["n"] == (b"1",)

        assert in_child(alone)[1]()[1] == 0
        store.write(claim, change=step(2, n=b"2"))
        return
    children = [in_child(count_up(lambda: store, 20)) for _ in range(2)]
    mine = count_up(lambda: contextless(store), 20)
    reader, writer = os.pipe()
    mine(writer)
    os.close(reader), os.close(writer)
    assert [ended() for _, ended in children] == [(20, 0), (20, 0)]
    assert store.load("s").values["n"] == (b"60",)


def contextless(store: Checkpoints) -> Any:
    """A store that somebody else closes."""

    class Open:
        load, begin, write = store.load, store.begin, store.write

        def close(self) -> None:
            pass

    return Open()


def test_the_log_stays_for_a_child_whose_parent_closes_the_file(tmp_path: Path) -> None:
    """SQLite in the child believes it has the parent's locks: nobody else would know of it."""
    path = tmp_path / "runs.db"
    store = SQLiteCheckpoints(path, sync="off")
    store.begin("s", expect=0, hash="h", change=step(1, n=b"0"), release=True)
    go_on, told = os.pipe()

    def work(writer: int) -> None:
        claim = store.begin("s", expect=1, hash="h", change=step(2, n=b"1"))
        os.write(writer, b".")
        assert os.read(go_on, 1)
        store.write(claim, change=step(3, n=b"2"))
        os.write(writer, b".")
        assert os.read(go_on, 1)
        store.write(claim, change=step(4, n=b"3"), release=True)

    _, ended = in_child(work)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, go_on)
        stack.callback(os.close, told)
        # The child has begun: its transaction is seen.
        deadline = time.monotonic() + 20
        while store.load("s").info.seq < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        store.close()  # the last connection, as far as this process's SQLite knows
        assert path.with_name("runs.db-wal").exists()
        os.write(told, b".")
        # Each look opens and closes it.
        while look(of_file(path))["s"][4] < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        os.write(told, b".")
        said, status = ended()
    assert (said, status) == (2, 0)
    with SQLiteCheckpoints(path) as store:
        assert store.load("s").values["n"] == (b"3",) and store.load("s").info.seq == 4


def test_a_child_refuses_a_file_that_was_closed_meanwhile(tmp_path: Path) -> None:
    store = SQLiteCheckpoints(tmp_path / "runs.db", sync="off")
    store.begin("s", expect=0, hash="h", change=step(1, n=b"0"), release=True)
    go_on, told = os.pipe()

    def work(writer: int) -> None:
        assert os.read(go_on, 1)
        with pytest.raises(fm.StoreError, match=r"runs\.db.*forked"):
            store.load("s")
        os.write(writer, b".")

    _, ended = in_child(work)
    store.close()
    os.write(told, b".")
    assert ended() == (1, 0)
    os.close(go_on), os.close(told)


def test_a_child_that_ends_leaves_the_parents_file_alone(tmp_path: Path, run_script) -> None:
    """Its interpreter ends in peace, and drops all that it has: but not that connection."""
    run_script(
        f"""
        import os, sys
        from forkmill.stategraph.checkpoints.sqlite import SQLiteCheckpoints
        from forkmill.stategraph.checkpoints.store import Change

        store = SQLiteCheckpoints({str(tmp_path / "runs.db")!r})
        store.begin("s", expect=0, hash="h", change=Change(1, 0, "input", "", {{}}), release=True)
        if os.fork() == 0:
            sys.exit()
        os.wait()
        assert os.path.exists({str(tmp_path / "runs.db-wal")!r})
        claim = store.begin("s", expect=1, hash="h", change=Change(2, 1, "step", "", {{}}))
        assert store.load("s").info.seq == 2
        """
    )
    assert not (tmp_path / "runs.db-wal").exists()  # the parent's end has closed it
    assert look(of_file(tmp_path / "runs.db"))["s"][4] == 2


def test_no_fork_comes_into_a_transaction(tmp_path: Path) -> None:
    import threading

    store = SQLiteCheckpoints(tmp_path / "runs.db", sync="off")
    store.begin("s", expect=0, hash="h", change=step(1, n=b"0"), release=True)
    stop = threading.Event()

    def write_on() -> None:
        while not stop.is_set():
            seq = store.load("s").info.seq
            with contextlib.suppress(fm.SessionConflict):
                store.begin("s", expect=seq, hash="h", change=step(seq + 1, n=b"1"), release=True)

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        for _ in range(10):

            def work(writer: int) -> None:
                for _ in range(3):
                    assert store.load("s").info.seq >= 1
                    with contextlib.suppress(fm.SessionConflict):
                        seq = store.load("s").info.seq
                        store.begin("s", expect=seq, hash="h", change=step(seq + 1), release=True)

            assert in_child(work)[1]()[1] == 0
    finally:
        stop.set()
        thread.join()
    assert [at.parent for at in store.history("s")][1:] == [at.seq for at in store.history("s")][
        :-1
    ]
    store.close()

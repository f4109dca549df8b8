"""What is wrong with a database is said by its name, and what was stored last still loads."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_stores import a_maker, a_server, a_store, an_url  # noqa: F401

import forkmill as fm
from forkmill.stategraph.checkpoints.sqlite import SQLiteCheckpoints
from forkmill.stategraph.checkpoints.store import (
    QUESTION,
    UPDATE,
    Change,
    Checkpoints,
    Delta,
    Pending,
    Planned,
)

FIRST = Change(1, 0, "input", "input", {"k": b"1", "l": b"l"}, [Planned("a"), Planned("b", b"x")])
SECOND = Change(2, 1, "step", "a, b", {"k": b"2", "d": (b"a", b"b")}, [Planned("c", b"arg")])


def filled(store: Checkpoints) -> None:
    claim = store.begin("s", expect=0, hash="h", change=FIRST)
    rows = [Pending(0, UPDATE, 0, b"u"), Pending(1, QUESTION, 0, b"q")]
    store.write(claim, change=SECOND, rows=rows, status="interrupted", release=True)
    store.fork("s", 2, "other")


def path_of(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An SQLite store with two sessions, closed."""
    with SQLiteCheckpoints(path_of(tmp_path)) as store:
        filled(store)
    return path_of(tmp_path)


# ------------------------------------------------------------------------- the file


def test_checking_a_store_makes_its_file_and_leaves_nothing_open(tmp_path: Path) -> None:
    store = SQLiteCheckpoints(path_of(tmp_path))
    assert not list(tmp_path.iterdir())
    before = os.listdir("/dev/fd")
    store.check()
    assert [file.name for file in tmp_path.iterdir()] == ["runs.db"]
    assert os.listdir("/dev/fd") == before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    store = SQLiteCheckpoints(tmp_path / "no" / "runs.db")
    for _ in range(2):
        with pytest.raises(fm.StoreError, match=r"no/runs\.db.*is its folder there"):
            store.check()


def test_a_path_is_that_of_the_moment_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLiteCheckpoints("runs.db")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    store.check()
    assert path_of(tmp_path).exists()


@pytest.mark.parametrize("junk", [b"no database at all, but long enough for a header" * 40, b"x"])
def test_another_kind_of_file(tmp_path: Path, junk: bytes) -> None:
    path_of(tmp_path).write_bytes(junk)
    with pytest.raises(fm.StoreError, match=r"runs\.db.*not a database"):
        SQLiteCheckpoints(path_of(tmp_path)).check()
    assert path_of(tmp_path).read_bytes() == junk


def test_somebody_elses_database(tmp_path: Path) -> None:
    with sqlite3.connect(path_of(tmp_path)) as theirs:
        theirs.execute("CREATE TABLE session(x)")
    theirs.close()
    with pytest.raises(fm.StoreError, match="somebody else's"):
        SQLiteCheckpoints(path_of(tmp_path)).check()


def test_another_version(path: Path) -> None:
    change(path, "PRAGMA user_version = 7")
    store = SQLiteCheckpoints(path)
    for use in (store.check, store.sessions, lambda: store.load("s")):
        with pytest.raises(fm.StoreError, match="format version 7, this forkmill reads 1"):
            use()
    change(path, "PRAGMA user_version = 1")
    with SQLiteCheckpoints(path) as store:
        assert store.load("s") is not None
        change(path, "UPDATE session SET version = 9 WHERE id = 's'")
        with pytest.raises(fm.StoreError, match="'s' is of format version 9"):
            store.load("s")
        with pytest.raises(fm.StoreError, match="'s' is of format version 9"):
            store.begin("s", expect=2, hash="h")


def change(path: Path, *statements: str) -> int:
    """Do something to a database behind its store's back; how many rows it changed."""
    connection = sqlite3.connect(path)
    with connection:
        changed = sum(connection.execute(sql).rowcount for sql in statements)
    connection.close()
    return changed


def test_another_writer_is_waited_for_and_then_named(path: Path) -> None:
    with SQLiteCheckpoints(path, busy_timeout=0.05) as store:
        held = sqlite3.connect(path, isolation_level=None)
        held.execute("BEGIN IMMEDIATE")
        with pytest.raises(fm.StoreError, match=r"runs\.db.*locked.*busy_timeout"):
            store.begin("s", expect=2, hash="h")
        assert store.load("s").values["k"] == (b"2",)  # readers do not wait
        held.execute("COMMIT")
        held.close()
        store.begin("s", expect=2, hash="h", release=True)


def test_a_full_disk_leaves_the_last_checkpoint(path: Path) -> None:
    with SQLiteCheckpoints(path) as store:
        claim = store.begin("s", expect=2, hash="h")
        connection = store._open.sqlite
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        big = Change(3, 2, "step", "c", {"k": bytes(1 << 20)})
        with pytest.raises(fm.StoreError, match=r"runs\.db.*full"):
            store.write(claim, change=big)
        assert claim.seq == 2 and store.load("s").values["k"] == (b"2",)
        connection.execute("PRAGMA max_page_count = 1000000")
        store.write(claim, change=big, release=True)
        assert store.load("s").checkpoint.seq == 3


def test_a_database_that_may_not_be_written(path: Path) -> None:
    with SQLiteCheckpoints(path) as store:
        claim = store.begin("s", expect=2, hash="h")
        store._open.sqlite.execute("PRAGMA query_only = 1")  # root may write to any file
        with pytest.raises(fm.StoreError, match=r"runs\.db.*readonly.*read-only"):
            store.write(claim, change=Change(3, 2, "step", "c", {}))
        assert store.load("s").values["k"] == (b"2",)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to any file")
def test_a_file_that_may_not_be_written(path: Path) -> None:
    path.chmod(0o400)
    with pytest.raises(fm.StoreError, match="read-only"):
        SQLiteCheckpoints(path).check()


def test_a_corrupt_database(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(1024, len(data)):  # all but the first page
        data[at] ^= 0x5A
    path.write_bytes(data)
    with SQLiteCheckpoints(path) as store:
        for use in (store.sessions, lambda: store.load("s"), lambda: store.history("s")):
            with pytest.raises(fm.StoreError, match=r"runs\.db.*malformed.*corrupt"):
                use()


def test_rows_that_are_nonsense(path: Path) -> None:
    with SQLiteCheckpoints(path) as store:
        for statement, said in [
            (
                "UPDATE checkpoint SET frontier = x'00' WHERE session = 's'",
                "checkpoint 2: no frame",
            ),
            ("UPDATE value SET data = x'00' WHERE kind = 'wholes'", "key 'd': no frame"),
            ("DELETE FROM checkpoint WHERE session = 's'", "has no checkpoint"),
        ]:
            store.close()
            broken = path.read_bytes()
            assert change(path, statement) > 0
            with pytest.raises(fm.StoreError, match=f"corrupt: .*{said}"):
                store.load("s")
            store.close()
            path.write_bytes(broken)
        assert store.load("s") is not None


def test_no_row_is_left_behind(path: Path) -> None:
    """Pending rows that a new turn or an edit brought along go with the next checkpoint."""
    with SQLiteCheckpoints(path) as store:
        rows = [Pending(0, UPDATE, 0, b"u")]
        turn = Change(3, 1, "input", "input", {})
        claim = store.begin("s", expect=2, hash="h", change=turn, rows=rows)
        store.write(claim, change=Change(4, 2, "step", "a", {}), rows=rows, release=True)
        edit = Change(5, 2, "edit", "me", {})
        claim = store.begin("s", expect=4, hash="h", change=edit, keep_rows=True)
        store.write(claim, change=Change(6, 3, "step", "a", {}), release=True)
        with store._transaction(writes=False) as run:
            assert run("SELECT * FROM pending WHERE session = 's'") == []


# ------------------------------------------------------------------------ the codec


def test_another_codec_is_refused_before_anything_is_decoded(
    make_store: Callable[..., Checkpoints],
) -> None:
    filled(make_store())
    store = make_store(codec="json")
    if store.codec.name != "json":
        return  # memory: it is the same store
    with pytest.raises(fm.StoreError, match="codec 'pickle', this store's is 'json'"):
        store.load("s")


# ------------------------------------------------------------------------- the HMAC

KEY = b"secret"


def test_a_key_is_needed_for_what_was_written_with_it(
    make_store: Callable[..., Checkpoints],
) -> None:
    store = make_store(key=KEY)
    filled(store)
    assert store.load("s") == make_store(key=KEY.decode()).load("s")
    assert store.load("other").pending == store.load("s").pending
    for key, said in [(None, "written with a key"), (b"other", "HMAC")]:
        for use in (lambda s: s.load("s"), lambda s: s.history("s"), lambda s: s.fork("s", 2, "t")):
            with pytest.raises(fm.StoreError, match=said):
                use(make_store(key=key))
    assert [info.id for info in store.sessions()] == ["s", "other"]


def test_what_was_written_without_a_key_is_refused_by_a_store_with_one(
    make_store: Callable[..., Checkpoints],
) -> None:
    filled(make_store())
    with pytest.raises(fm.StoreError, match="HMAC"):
        make_store(key=KEY).load("s")


TAMPERING = [
    "UPDATE value SET data = x'80054B092E' WHERE session = 's' AND key = 'k' AND seq = 2",
    "UPDATE value SET key = 'm' WHERE session = 's' AND key = 'l'",
    "UPDATE value SET seq = 3 - seq WHERE session = 's' AND key = 'l'",
    "UPDATE value SET kind = 'gone' WHERE session = 's' AND key = 'l'",
    "UPDATE value SET codec = 'json' WHERE session = 's' AND key = 'l'",
    "UPDATE value SET mac = NULL WHERE session = 's' AND key = 'l'",
    "UPDATE value SET data = (SELECT data FROM value o WHERE o.session = 's' AND o.key = 'l' "
    "AND o.seq = 1), mac = (SELECT mac FROM value o WHERE o.session = 's' AND o.key = 'l' AND "
    "o.seq = 1) WHERE session = 's' AND key = 'k' AND seq = 2",
    "UPDATE value SET mac = (SELECT mac FROM value o WHERE o.session = 'other' AND o.key = 'k') "
    "WHERE session = 's' AND key = 'k' AND seq = 2",
    "UPDATE checkpoint SET frontier = (SELECT frontier FROM checkpoint o WHERE o.session = 's' "
    "AND o.seq = 1) WHERE session = 's' AND seq = 2",
    "UPDATE checkpoint SET joins = '[[\"a\"]]' WHERE session = 's' AND seq = 2",
    "UPDATE checkpoint SET step = 5 WHERE session = 's' AND seq = 2",
    "UPDATE checkpoint SET author = 'nobody' WHERE session = 's' AND seq = 2",
    "UPDATE checkpoint SET kind = 'edit' WHERE session = 's' AND seq = 2",
    "UPDATE checkpoint SET at = 0.0 WHERE session = 's' AND seq = 2",
    "UPDATE pending SET data = x'00' WHERE session = 's' AND task = 0",
    "UPDATE pending SET kind = 'answer' WHERE session = 's' AND task = 0",
    "UPDATE pending SET task = 7 WHERE session = 's' AND task = 0",
    "UPDATE pending SET n = 3 WHERE session = 's' AND task = 0",
]


@pytest.mark.parametrize("statement", TAMPERING)
def test_no_row_can_be_changed_or_moved_without_the_key(tmp_path: Path, statement: str) -> None:
    with SQLiteCheckpoints(path_of(tmp_path), key=KEY) as store:
        filled(store)
        assert store.load("s") is not None
        assert change(path_of(tmp_path), statement) == 1
        with pytest.raises(fm.StoreError, match=r"runs\.db.*'s'"):
            store.load("s")
        assert store.load("other") is not None


def test_deltas_are_covered_too(tmp_path: Path) -> None:
    with SQLiteCheckpoints(path_of(tmp_path), key=KEY) as store:
        claim = store.begin("s", expect=0, hash="h", change=FIRST)
        store.write(claim, change=Change(2, 1, "step", "", {"k": Delta((b"more",))}))
        assert store.load("s").values["k"] == (b"1", b"more")
        assert change(path_of(tmp_path), "UPDATE value SET kind = 'whole' WHERE seq = 2") == 1
        with pytest.raises(fm.StoreError, match="HMAC"):
            store.load("s")


# ------------------------------------------------------------------------ Postgres


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("psycopg")
    store = opened_postgres("postgresql://nobody@127.0.0.1:9/none")
    with pytest.raises(fm.StoreError, match=r"postgresql://127\.0\.0\.1/none"):
        store.check()


def test_a_password_is_never_told() -> None:
    pytest.importorskip("psycopg")
    store = opened_postgres("postgresql://me:hushhush@127.0.0.1:9/none")
    with pytest.raises(fm.StoreError) as caught:
        store.check()
    assert "hushhush" not in str(caught.value) + repr(store)


def opened_postgres(url: str) -> Checkpoints:
    from forkmill.stategraph.checkpoints import opened

    return opened(url)


def lose_connections(url: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )


def test_a_connection_that_was_lost_is_made_anew(postgres_url: str) -> None:
    with opened_postgres(postgres_url) as store:
        claim = store.begin("s", expect=0, hash="h", change=FIRST)
        lose_connections(postgres_url)
        store.write(claim, change=SECOND)
        with pytest.raises(fm.StoreError, match=r"terminat|closed"):
            with store._transaction(writes=True) as run:
                run("UPDATE session SET step = 7")
                lose_connections(postgres_url)
                run("UPDATE session SET step = 8")
        lose_connections(postgres_url)
        store.write(claim, status="completed", release=True)
        assert store.load("s").checkpoint.seq == 2


def test_postgres_leaves_nothing_to_a_pooler(postgres_url: str) -> None:
    """In transaction mode the next transaction is another server's."""
    with opened_postgres(postgres_url) as store:
        filled(store)
        connection = store._connected()
        for query in (
            "SELECT name FROM pg_prepared_statements",
            "SELECT 1 FROM pg_locks l JOIN "
            "pg_class c ON l.relation = c.oid WHERE relname LIKE 'forkmill%'",
        ):
            assert connection.execute(query).fetchall() == []
        changed = connection.execute(
            "SELECT name FROM pg_settings WHERE source = 'session' AND name NOT IN "
            "('client_encoding', 'application_name')"
        ).fetchall()
        assert changed == []


def test_another_version_of_the_tables_in_postgres(postgres_url: str) -> None:
    import psycopg

    with opened_postgres(postgres_url) as store:
        store.check()
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("COMMENT ON TABLE forkmill_session IS 'forkmill 7'")
        with pytest.raises(fm.StoreError, match="format version 7"):
            store.load("s")


def test_what_is_not_installed_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['psycopg'] = sys.modules['msgpack'] = None\n"
        "from forkmill.stategraph.checkpoints import opened\n"
        "for url, codec in ('postgresql://x', 'json'), ('memory:', 'msgpack'):\n"
        "    try:\n"
        "        opened(url, codec=codec)\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "forkmill[postgres]" in ran.stdout and "forkmill[msgpack]" in ran.stdout, ran.stderr

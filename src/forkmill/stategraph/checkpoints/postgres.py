"""Checkpoints in Postgres, for runs on several machines.

One connection a store object and process, by psycopg 3 (extra `postgres`), opened by need and again
when it was lost between two transactions (the server was started anew, a pooler has its own idea of
idle): a BEGIN that fails with its connection has done nothing. Each write locks its session's row:
other sessions do not wait. Nothing outlives a transaction, so a pooler in transaction mode may
stand in between: no prepared statements, no session settings, no pipeline mode, no advisory locks
of sessions; the tables are those of the connection's search_path.

**Forks.** libpq would tell the server that the parent leaves, were its connection dropped in a
child: there it stays referenced for good, and the child has its own.

Threads: any; one transaction at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any

from ... import errors
from ..._late import finalize
from . import store
from .forks import Kept
from .sql import TABLES, Rows, SQLCheckpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sql import Run

__all__ = ["PostgresCheckpoints"]

_TABLES = ("session", "checkpoint", "value", "pending")
_NAMES = re.compile(rf"\b(FROM|INTO|UPDATE|JOIN|EXISTS) ({'|'.join(_TABLES)})\b")


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise ModuleNotFoundError(
            "PostgresCheckpoints needs the package psycopg: pip install 'forkmill[postgres]'",
            name="psycopg",
        ) from error
    return psycopg


class PostgresCheckpoints(SQLCheckpoints):
    """Checkpoints in a Postgres database, for any number of processes and machines.

    The tables forkmill_session, _checkpoint, _value and _pending are made by need. A
    claim of a process on another machine cannot be known to be dead: `take_over=True` then.

    Args:
        dsn: A connection string: "postgresql://user@host/database", or libpq's "host=... ...".
        codec: How values are stored: "pickle", "json" or "msgpack".
        key: Bytes, or text, for an HMAC over all that is stored, or None.
        connect_timeout: Seconds to wait for the server.

    Raises:
        ModuleNotFoundError: psycopg is not installed (extra `postgres`).
        ValueError: No such codec.
    """

    _for_update = " FOR UPDATE OF s"

    def __init__(
        self,
        dsn: str,
        *,
        codec: str = "pickle",
        key: bytes | str | None = None,
        connect_timeout: float = 10.0,
    ) -> None:
        super().__init__(codec=codec, key=key)
        if not isinstance(dsn, str):
            raise TypeError(f"dsn must be a str, not {type(dsn).__name__!r}")
        self._psycopg = _psycopg()
        try:
            self._parts = self._psycopg.conninfo.conninfo_to_dict(dsn)
        except self._psycopg.Error as error:
            raise ValueError(f"dsn is no connection string: {str(error).strip()}") from None
        self._parts.setdefault("connect_timeout", max(2, int(connect_timeout)))
        self._open: Any = None
        self._finalizer: Any = None
        self._statements: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"PostgresCheckpoints({self._place()!r})"

    @property
    def where(self) -> str:
        return f"the database {self._place()}"

    def _place(self) -> str:
        """Where it is, without a password."""
        parts = self._parts
        name = parts.get("dbname") or parts.get("user") or ""
        return f"postgresql://{parts.get('host', '')}/{name}"

    # ------------------------------------------------------------------ open and close

    def close(self) -> None:
        with self._lock:
            finalizer, self._open, self._finalizer = self._finalizer, None, None
            if finalizer is not None:
                finalizer()

    def _forked(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
        self._open = self._finalizer = None

    def _connected(self) -> Any:
        if self._open is not None and self._open.closed:
            self.close()
        if self._open is None:
            connection = self._psycopg.connect(
                **self._parts, autocommit=True, prepare_threshold=None
            )
            try:
                self._make(connection)
            except BaseException:
                connection.close()
                raise
            self._open = connection
            self._finalizer = finalize(self, _close, connection, Kept(connection), os.getpid())
        return self._open

    def _make(self, connection: Any) -> None:
        """The tables, unless they are there; and whether they are of this version."""
        there = connection.execute("SELECT to_regclass('forkmill_session')").fetchone()[0]
        if there is None:
            types = {"int": "BIGINT", "blob": "BYTEA", "real": "DOUBLE PRECISION", "end": ""}
            with connection.transaction():
                # Two that make them at once: IF NOT EXISTS looks before it writes (a unique
                # violation in pg_type). This lock ends with the transaction.
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (0x666D7367,))
                for table in TABLES:
                    connection.execute(self._own(table.format(**types)))
                connection.execute(
                    f"COMMENT ON TABLE forkmill_session IS 'forkmill {store.VERSION}'"
                )
        said = connection.execute(
            "SELECT obj_description('forkmill_session'::regclass, 'pg_class')"
        ).fetchone()[0]
        version = (said or "").removeprefix("forkmill ")
        if version != str(store.VERSION):
            raise self._other_version("its tables are", version or "unknown")

    # -------------------------------------------------------------------- transactions

    def _own(self, sql: str) -> str:
        """A statement as Postgres has it: its own marks, and our names before the tables."""
        if sql not in self._statements:
            own = sql.replace("%", "%%").replace("?", "%s")
            own = own.replace("begun(key, seq) AS (", "begun(key, seq) AS MATERIALIZED (")
            self._statements[sql] = _NAMES.sub(r"\1 forkmill_\2", own)
        return self._statements[sql]

    @contextlib.contextmanager
    def _begun(self) -> Iterator[Any]:
        """A connection in a transaction."""
        with contextlib.ExitStack() as stack:
            connection = self._connected()
            try:
                stack.enter_context(connection.transaction())
            except self._psycopg.OperationalError:
                if not connection.closed:
                    raise
                connection = self._connected()
                stack.enter_context(connection.transaction())
            yield connection

    @contextlib.contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Run]:
        with self._lock:
            try:
                with self._begun() as connection:

                    def run(sql: str, *arguments: Any) -> Rows:
                        cursor = connection.execute(self._own(sql), arguments, binary=True)
                        rows = Rows(cursor.fetchall() if cursor.description else ())
                        rows.changed = cursor.rowcount
                        return rows

                    if not writes:
                        # One moment for all that is read; and small queries that are not compiled.
                        connection.execute(
                            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; "
                            "SET LOCAL jit = off"
                        )
                    yield run
            except (self._psycopg.Error, UnicodeError) as error:
                raise errors.StoreError(f"{self.where}: {str(error).strip()}") from error


def _close(connection: Any, kept: Kept, pid: int) -> None:
    if pid != os.getpid():
        return
    kept.drop()
    connection.close()

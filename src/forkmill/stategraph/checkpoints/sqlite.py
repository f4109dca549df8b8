"""Checkpoints in an SQLite file.

One connection a store object and process, opened by need: WAL (readers do not wait, and a
transaction is one append), each write a BEGIN IMMEDIATE, a busy timeout for other processes' short
transactions. Pages are small: a step changes some hundred bytes, and the WAL takes whole pages. Of
64 keys of 1 MB, one that gets a new value of 1 KB writes 4.7 KB with pages of 512 bytes, 8.2 with
1024, 12 with 4096; reading all of them takes 0.96 s, 0.70 s and 0.28 s.

**Forks.** A child opens its own connection, and SQLite in the child remembers the parent's: it
takes the parent's locks for its own process's, and asks the system for none. Then nobody would know
of the child, and who closes the file last would delete the WAL under it. So a child that has
inherited a connection to the same file first takes what SQLite would have taken, with descriptors
of its own that stay open to its end (os_unix.c, "Posix Advisory Locking" and "unixShmNode"):

=========================  =====================================================================
file, SHARED range         held while a connection in WAL mode is open
file-shm, byte 128         held while the index of the WAL is mapped ("dead man switch")
=========================  =====================================================================

If the parent has closed the file meanwhile, and the index that was inherited with it is gone, the
child refuses: what it would read is not the file's any more.

Threads: any; one transaction at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Any

from ... import errors
from ..._checks import seconds
from ..._late import finalize
from . import store
from .forks import Kept
from .sql import TABLES, Rows, SQLCheckpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sql import Run

__all__ = ["SQLiteCheckpoints"]

_PAGE = 512
_LEAST = 512  # bytes of a page, and so of a database
_AUTOCHECKPOINT = 8192  # pages of WAL
_APPLICATION = 0x666D7367  # "fmsg": file(1) and we know whose it is
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510  # os_unix.c, sqlite3.h
_SHM_DMS = 128
_SYNC = {"normal": "NORMAL", "full": "FULL", "off": "OFF"}

# Files (device, inode) whose connections this process has inherited, with the inode of their -shm.
_INHERITED: dict[tuple[int, int], int] = {}
_OWN_LOCKS: dict[tuple[int, int], tuple[int, int]] = {}  # of those, what holds our locks


class SQLiteCheckpoints(SQLCheckpoints):
    """Checkpoints in an SQLite file, for any number of processes of one machine.

    Nothing is opened before it is needed; the file and its folder's `-wal` and `-shm` are made by
    need. Not for network file systems: WAL needs memory that all its users share.

    Args:
        path: The file. Relative paths are taken from the current folder, now.
        sync: "normal": what was stored survives the death of every process; after a loss of power
            the last steps may be gone, never a part of one. "full": it survives that too, for an
            fsync a step. "off": for tests.
        codec: How values are stored: "pickle", "json" or "msgpack".
        key: Bytes, or text, for an HMAC over all that is stored, or None.
        busy_timeout: Seconds to wait while another process writes.

    Raises:
        ValueError: No such `sync` or `codec`; ":memory:" (that is `MemoryCheckpoints`).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sync: str = "normal",
        codec: str = "pickle",
        key: bytes | str | None = None,
        busy_timeout: float = 10.0,
    ) -> None:
        super().__init__(codec=codec, key=key)
        name = os.fspath(path)
        if not isinstance(name, str):
            raise TypeError(f"path must be a str or a Path, not {type(name).__name__!r}")
        if not name or name == ":memory:" or name.startswith("//"):
            raise ValueError(
                f"path must name a file, as in 'sqlite:runs.db' or 'sqlite:/var/runs.db', not "
                f"{name!r}; for checkpoints in memory there is MemoryCheckpoints()"
            )
        if sync not in _SYNC:
            raise ValueError(f"sync must be one of {', '.join(map(repr, _SYNC))}, not {sync!r}")
        self._path = os.path.abspath(name)
        self._sync = sync
        self._timeout = seconds("busy_timeout", busy_timeout)
        self._open: _Connection | None = None

    def __repr__(self) -> str:
        return f"SQLiteCheckpoints({self._path!r})"

    @property
    def where(self) -> str:
        return f"the database {self._path}"

    # ------------------------------------------------------------------ open and close

    def close(self) -> None:
        with self._lock:
            connection, self._open = self._open, None
            if connection is not None:
                connection.close()

    def _forked(self) -> None:
        if self._open is not None:
            _INHERITED.update([self._open.inherited()])
            self._open = None  # kept: see Kept

    def _connected(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = _Connection(self, self._connect())
        return self._open.sqlite

    def _connect(self) -> sqlite3.Connection:
        with contextlib.suppress(OSError):
            if 0 < os.stat(self._path).st_size < _LEAST:  # SQLite would take it for an empty one
                raise errors.StoreError(f"{self.where}: file is not a database")
        _lock_as_sqlite(self._path, self.where)
        connection = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        execute = connection.execute
        execute(f"PRAGMA page_size = {_PAGE}")  # of a new file
        mode = self._to_wal(connection)
        if mode != "wal":
            raise errors.StoreError(
                f"{self.where} cannot be used with a write-ahead log (it stays {mode!r}): is it "
                f"on a network file system, or read-only?"
            )
        execute(f"PRAGMA synchronous = {_SYNC[self._sync]}")
        execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT}")
        if execute("PRAGMA user_version").fetchone()[0] != store.VERSION:
            self._make(connection)

    def _to_wal(self, connection: sqlite3.Connection) -> str:
        """SQLite does not wait for others while it changes the mode: so we do."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                return mode
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def _make(self, connection: sqlite3.Connection) -> None:
        """The tables of a new file; who is first makes them."""
        execute = connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            version = execute("PRAGMA user_version").fetchone()[0]
            whose = execute("PRAGMA application_id").fetchone()[0]
            tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if (tables or version) and whose != _APPLICATION:
                raise errors.StoreError(
                    f"{self.where} is somebody else's: it has tables, and none of forkmill's marks"
                )
            if version not in (0, store.VERSION):
                raise self._other_version("it is", version)
            if version == 0:
                types = {"int": "INTEGER", "blob": "BLOB", "real": "REAL"}
                for table in TABLES:
                    execute(table.format(end=" WITHOUT ROWID", **types))
                execute(f"PRAGMA application_id = {_APPLICATION}")
                execute(f"PRAGMA user_version = {store.VERSION}")
            execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise

    # -------------------------------------------------------------------- transactions

    @contextlib.contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Run]:
        with self._lock:
            try:
                connection = self._connected()
                execute = connection.execute

                def run(sql: str, *arguments: Any) -> Rows:
                    cursor = execute(sql, arguments)
                    rows = Rows(cursor.fetchall())
                    rows.changed = cursor.rowcount
                    return rows

                execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                try:
                    yield run
                    execute("COMMIT")
                except BaseException:
                    _roll_back(connection)
                    raise
            except (sqlite3.Error, sqlite3.Warning, UnicodeError, OverflowError) as error:
                raise self._said(error) from error

    def _said(self, error: Exception) -> errors.StoreError:
        text = str(error)
        advice = next((more for word, more in _ADVICE.items() if word in text), "")
        return errors.StoreError(f"{self.where}: {text}{advice}")


_ADVICE = {
    "locked": ": another process has held it for longer than busy_timeout",
    "readonly": ": it, or its folder, is read-only",
    "unable to open": ": is its folder there, and may this user write to it?",
    "full": ": there is no room left on the disk",
    "malformed": ": it is corrupt",
    "not a database": ": it is another kind of file, or corrupt",
}


class _Connection:
    """A connection, as long as this process may use it. `close`, or the process's end, ends it."""

    def __init__(self, owner: SQLiteCheckpoints, connection: sqlite3.Connection) -> None:
        self.sqlite = connection
        self._files = _identity(owner._path)
        # Also at the interpreter's end, but not in a forked child.
        self._finalizer = finalize(owner, _close, connection, Kept(connection), os.getpid())

    def close(self) -> None:
        self._finalizer()

    def inherited(self) -> tuple[tuple[int, int], int]:
        """In a forked child: the file, and the index of the WAL that was inherited with it."""
        self._finalizer.detach()
        return self._files


def _close(connection: sqlite3.Connection, kept: Kept, pid: int) -> None:
    if pid != os.getpid():
        return
    kept.drop()
    with contextlib.suppress(sqlite3.Error):
        connection.close()


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


# --------------------------------------------------------------------------- forks


def _identity(path: str) -> tuple[tuple[int, int], int]:
    """Device and inode of a file, and the inode of its -shm (0: none)."""
    file = os.stat(path)
    try:
        index = os.stat(path + "-shm").st_ino
    except OSError:
        index = 0
    return (file.st_dev, file.st_ino), index


def _lock_as_sqlite(path: str, where: str) -> None:
    """Where SQLite believes that this process has its locks already, take them."""
    if not _INHERITED:
        return
    try:
        file, index = _identity(path)
    except OSError:
        return
    if file not in _INHERITED or file in _OWN_LOCKS:
        return
    held = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    # Never closed again: that would drop every lock of this process on the file (fcntl(2)).
    fcntl.lockf(held, fcntl.LOCK_SH, _SHARED_SIZE, _SHARED_FIRST)
    index_file = -1
    if _INHERITED[file] == _identity(path)[1] == index != 0:
        index_file = os.open(path + "-shm", os.O_RDWR | os.O_CLOEXEC)
        fcntl.lockf(index_file, fcntl.LOCK_SH, 1, _SHM_DMS)
    if index_file < 0 or _identity(path)[1] != index:
        raise errors.StoreError(
            f"{where} was open in the process that this one was forked from, and was closed there "
            f"since: what SQLite has inherited of it is out of date. Use it before, or in a "
            f"process that was not forked while it was open."
        )
    _OWN_LOCKS[file] = (held, index_file)

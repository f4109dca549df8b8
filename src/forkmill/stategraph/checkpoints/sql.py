"""Checkpoints in four tables: what SQLite's and Postgres's stores have in common.

::

    session     id | claim owner version seq step hash status
    checkpoint  session seq | step parent kind author frontier joins at mac
    value       session key seq | kind codec data mac
    pending     session seq task kind n | codec data mac           (before the |: the key)

A key's value at a checkpoint: its last row up to there that is not a delta, and the deltas behind
that. Rows stay for history; `prune` drops those that no checkpoint needs any more.

A row's `mac`, if the store has a key, is an HMAC over all that the row says, its place included:
none can be changed, or moved to another session, checkpoint, key or task. What it cannot show is
that a row is missing, or that the whole database is an older copy.

Threads: any; `_transaction` lets one in at a time.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

from ... import errors
from . import frames, store
from .forks import Forkable
from .owner import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Row = tuple[Any, ...]
    Run = Callable[..., "Rows"]

__all__ = ["TABLES", "Rows", "SQLCheckpoints"]

# {blob}, {int}, {real}: the dialect's types. {end}: behind the bracket of tables of small rows.
TABLES = (
    """CREATE TABLE IF NOT EXISTS session(
        id TEXT NOT NULL PRIMARY KEY, claim TEXT, owner TEXT, version {int} NOT NULL,
        seq {int} NOT NULL, step {int} NOT NULL, hash TEXT NOT NULL, status TEXT NOT NULL){end}""",
    """CREATE TABLE IF NOT EXISTS checkpoint(
        session TEXT NOT NULL, seq {int} NOT NULL, step {int} NOT NULL, parent {int},
        kind TEXT NOT NULL, author TEXT NOT NULL, frontier {blob} NOT NULL, joins TEXT NOT NULL,
        at {real} NOT NULL, mac {blob}, PRIMARY KEY(session, seq)){end}""",
    """CREATE TABLE IF NOT EXISTS value(
        session TEXT NOT NULL, key TEXT NOT NULL, seq {int} NOT NULL, kind TEXT NOT NULL,
        codec TEXT NOT NULL, data {blob}, mac {blob}, PRIMARY KEY(session, key, seq))""",
    """CREATE TABLE IF NOT EXISTS pending(
        session TEXT NOT NULL, seq {int} NOT NULL, task {int} NOT NULL, kind TEXT NOT NULL,
        n {int} NOT NULL, codec TEXT NOT NULL, data {blob} NOT NULL, mac {blob},
        PRIMARY KEY(session, seq, task, kind, n)){end}""",
)

_to_json = json.JSONEncoder(separators=(",", ":")).encode

# Kinds of a value's row. The packed ones hold several blobs as one: a value and its deltas.
WHOLE, DELTA, GONE, WHOLES, DELTAS = "whole", "delta", "gone", "wholes", "deltas"

# A session, with its last checkpoint: the session's own seq and step are those of its last turn's
# begin or end. A step that leaves this row as it is writes one page less.
_SESSION = """
SELECT s.id, s.status, c.seq, c.step, s.hash, s.version, s.owner, c.at
FROM session s LEFT JOIN checkpoint c ON c.session = s.id
  AND c.seq = (SELECT MAX(d.seq) FROM checkpoint d WHERE d.session = s.id)
"""
_CHECKPOINT = "seq, step, parent, kind, author, frontier, joins, at, mac"
# The keys one after the other, each by a look into the index; for each where its value begins.
_VALUES = """
WITH RECURSIVE
  names(key) AS (
    SELECT MIN(key) FROM value WHERE session = ?
    UNION ALL
    SELECT (SELECT MIN(v.key) FROM value v WHERE v.session = ? AND v.key > names.key)
    FROM names WHERE names.key IS NOT NULL),
  begun(key, seq) AS (
    SELECT key, (
      SELECT v.seq FROM value v WHERE v.session = ? AND v.key = names.key AND v.seq <= ?
        AND v.kind NOT IN ('delta', 'deltas') ORDER BY v.seq DESC LIMIT 1)
    FROM names WHERE key IS NOT NULL)
SELECT v.key, v.seq, v.kind, v.codec, v.data, v.mac
FROM begun JOIN value v
  ON v.session = ? AND v.key = begun.key AND v.seq >= begun.seq AND v.seq <= ?
ORDER BY v.key, v.seq"""


class Rows(list["Row"]):
    """What a statement gave.

    Attributes:
        changed: How many rows it changed.
    """

    changed = 0


class SQLCheckpoints(Forkable, store.Checkpoints):
    """A store of SQL tables; a dialect adds how to open, and what a transaction is."""

    _open: Any  # the connection; None: there is none yet, or it was closed
    # SQLite's rows have 10^9 bytes (limits.html), Postgres's messages 2^30; some are not its own.
    largest: int | None = 999_000_000
    _for_update = ""  # behind a SELECT of `session s` whose row shall stay as it is

    def __init__(self, *, codec: str, key: bytes | str | None) -> None:
        store.Checkpoints.__init__(self, codec=codec, key=key)
        Forkable.__init__(self)

    @property
    @abc.abstractmethod
    def where(self) -> str:
        """What messages call the store."""

    @abc.abstractmethod
    @contextlib.contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Run]:
        """A transaction: `run(sql, *arguments)` in it; committed at the block's end.

        Raises:
            StoreError: Whatever the database says.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ open

    def check(self) -> None:
        with self._lock:
            was_open = self._open is not None
            try:
                with self._transaction(writes=True):
                    pass
            finally:
                if not was_open:
                    self.close()

    # --------------------------------------------------------------------------- reading

    def load(
        self, session: str, seq: int | None = None, *, known: int | None = None
    ) -> store.Saved | None:
        with self._transaction(writes=False) as run:
            return self._load(run, session, seq, known)

    def info(self, session: str) -> store.SessionInfo | None:
        with self._transaction(writes=False) as run:
            return self._session(run, session)

    def _load(
        self, run: Run, session: str, seq: int | None, known: int | None = None
    ) -> store.Saved | None:
        found = self._session(run, session)
        if found is None:
            return None
        at = found.seq if seq is None else seq
        rows = run(
            f"SELECT {_CHECKPOINT} FROM checkpoint WHERE session = ? AND seq = ?", session, at
        )
        if not rows:
            raise store.no_checkpoint(session, seq)
        checkpoint = self._checkpoint(session, rows[0])
        values = {} if at == known else self._values(run, session, at)
        pending = self._pending(run, session, at) if at == found.seq else ()
        return store.Saved(checkpoint, values, pending, found)

    def _session(self, run: Run, session: str) -> store.SessionInfo | None:
        rows = run(f"{_SESSION} WHERE s.id = ?", session)
        return self._info(rows[0]) if rows else None

    def _locked_session(self, run: Run, session: str) -> store.SessionInfo | None:
        """The same, and it stays so until the commit."""
        if self._for_update:  # a statement of its own: what was written while it waited is seen
            run(f"SELECT s.seq FROM session s WHERE s.id = ?{self._for_update}", session)
        return self._session(run, session)

    def _info(self, row: Row) -> store.SessionInfo:
        name, status, seq, step, hash, version, owner, at = row
        if version != store.VERSION:
            raise self._other_version(f"the session {name!r} is", version)
        if seq is None:
            raise self._corrupt(f"the session {name!r} has no checkpoint")
        return store.SessionInfo(name, status, seq, step, hash, version, Owner.loads(owner), at)

    def _values(self, run: Run, session: str, seq: int) -> dict[str, tuple[store.Blob, ...]]:
        values: dict[str, tuple[store.Blob, ...]] = {}
        rows = run(_VALUES, session, session, session, seq, session, seq)
        for key, at, kind, codec, data, mac in rows:
            what = f"session {session!r}, key {key!r}"
            self._verify(mac, what, session, at, "value", key, kind, codec, data)
            self._same_codec(codec, what)
            if kind == GONE:
                values.pop(key, None)
            elif kind in (WHOLE, WHOLES):
                values[key] = (data,) if kind == WHOLE else self._unpacked(data, what)
            else:
                more = (data,) if kind == DELTA else self._unpacked(data, what)
                values[key] = values.get(key, ()) + more
        return values

    def _unpacked(self, data: bytes, what: str) -> tuple[store.Blob, ...]:
        try:
            return tuple(frames.unpack(data)[1])
        except ValueError as error:
            raise self._corrupt(f"{what}: {error}") from error

    def _pending(self, run: Run, session: str, seq: int) -> tuple[store.Pending, ...]:
        rows = run(
            "SELECT task, kind, n, codec, data, mac FROM pending "
            "WHERE session = ? AND seq = ? ORDER BY task, kind, n",
            session,
            seq,
        )
        found = []
        for task, kind, n, codec, data, mac in rows:
            what = f"session {session!r}, {kind} of task {task}"
            self._verify(mac, what, session, seq, "pending", task, kind, n, codec, data)
            self._same_codec(codec, what)
            found.append(store.Pending(task, kind, n, data))
        return tuple(found)

    def _checkpoint(self, session: str, row: Row) -> store.Checkpoint:
        seq, step, parent, kind, author, frontier, joins, at, mac = row
        what = f"session {session!r}, checkpoint {seq}"
        fields = (step, parent, kind, author, frontier, joins, at)
        self._verify(mac, what, session, seq, "checkpoint", *fields)
        try:
            head, blobs = frames.unpack(frontier)
            args = iter(blobs)
            planned = tuple(
                store.Planned(node, next(args) if has_arg else None) for node, has_arg in head
            )
            come = tuple(tuple(join) for join in json.loads(joins))
        except (ValueError, TypeError, StopIteration) as error:
            raise self._corrupt(f"{what}: {error}") from error
        return store.Checkpoint(session, seq, step, parent, kind, author, planned, come, at)

    def history(self, session: str) -> list[store.Checkpoint]:
        with self._transaction(writes=False) as run:
            rows = run(
                f"SELECT {_CHECKPOINT} FROM checkpoint WHERE session = ? ORDER BY seq", session
            )
            return [self._checkpoint(session, row) for row in rows]

    def sessions(self) -> list[store.SessionInfo]:
        with self._transaction(writes=False) as run:
            return [self._info(row) for row in run(f"{_SESSION} ORDER BY c.at, s.id")]

    # --------------------------------------------------------------------------- writing

    def begin(
        self,
        session: str,
        *,
        expect: int,
        hash: str,
        change: store.Change | None = None,
        rows: Iterable[store.Pending] = (),
        keep_rows: bool = False,
        status: str = "running",
        release: bool = False,
        take_over: bool = False,
    ) -> store.Claim:
        rows, token = list(rows), store.new_token()
        claimed = (None, None) if release else (token, Owner.here().dumps())
        with self._transaction(writes=True) as run:
            info = self._locked_session(run, session)
            if info is not None and info.alive and not take_over:
                raise store.busy(session, info.owner)
            seq = info.seq if info else 0
            if seq != expect:
                raise store.moved(session, expect, seq)
            store.check_change(session, change, seq)
            at, step = (change.seq, change.step) if change else (seq, info.step if info else 0)
            if info is None:
                made = run(
                    "INSERT INTO session(id, claim, owner, version, seq, step, hash, status) "
                    "VALUES(?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    *(session, *claimed, store.VERSION, at, step, hash, status),
                )
                if made.changed == 0:  # another run made it meanwhile
                    raise store.moved(session, expect, -1)
            else:
                run(
                    "UPDATE session SET claim = ?, owner = ?, seq = ?, step = ?, hash = ?, "
                    "status = ? WHERE id = ?",
                    *(*claimed, at, step, hash, status, session),
                )
            stored = self._write(run, session, seq, change, rows, keep_rows, clean=info is None)
        clean = change is not None and not rows and not keep_rows
        return store.Claim(session, token, at, stored, release, clean)

    def write(
        self,
        claim: store.Claim,
        *,
        change: store.Change | None = None,
        rows: Iterable[store.Pending] = (),
        keep_rows: bool = False,
        status: str | None = None,
        release: bool = False,
    ) -> None:
        rows = list(rows)
        store.check_change(claim.session, change, claim.seq)
        if claim.released:
            raise store.lost(claim, None)
        with self._transaction(writes=True) as run:
            mine = run(
                f"SELECT s.seq FROM session s WHERE s.id = ? AND s.claim = ?{self._for_update}",
                *(claim.session, claim.token),
            )
            if not mine:
                info = self._session(run, claim.session)
                raise store.lost(claim, info.owner if info else None)
            if status is not None or release:
                self._turn(run, claim, change, status, release)
            clean = claim.clean and not keep_rows
            at = self._write(run, claim.session, claim.seq, change, rows, keep_rows, clean=clean)
        if change is not None:
            claim.seq, claim.at = change.seq, at
            claim.clean = not keep_rows
        if rows:
            claim.clean = False
        claim.released = release

    def _turn(
        self,
        run: Run,
        claim: store.Claim,
        change: store.Change | None,
        status: str | None,
        release: bool,
    ) -> None:
        """The session's row, at the end of a turn, or where its status changes."""
        sets: dict[str, Any] = {}
        if change is not None:
            sets |= {"seq": change.seq, "step": change.step}
        if status is not None:
            sets["status"] = status
        if release:
            sets |= {"claim": None, "owner": None}
        columns = ", ".join(f"{name} = ?" for name in sets)
        run(f"UPDATE session SET {columns} WHERE id = ?", *sets.values(), claim.session)

    def _write(
        self,
        run: Run,
        session: str,
        seq: int,
        change: store.Change | None,
        rows: list[store.Pending],
        keep_rows: bool,
        *,
        clean: bool,
    ) -> float:
        """A change behind checkpoint `seq`, and rows; `clean`: there are no pending rows there.

        When the change was stored; 0.0 without one.
        """
        at = 0.0 if change is None else time.time()
        if change is not None:
            kept = self._pending(run, session, seq) if keep_rows and not clean else ()
            if not clean:
                run("DELETE FROM pending WHERE session = ? AND seq = ?", session, seq)
            self._write_checkpoint(run, session, change, seq or None, at)
            rows = [*kept, *rows]
            seq = change.seq
        for row in rows:
            fields = (row.task, row.kind, row.n, self.codec.name, row.data)
            mac = self._mac(session, seq, "pending", *fields)
            run(
                "INSERT INTO pending(session, seq, task, kind, n, codec, data, mac) "
                "VALUES(?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(session, seq, task, kind, n) "
                "DO UPDATE SET codec = excluded.codec, data = excluded.data, mac = excluded.mac",
                *(session, seq, *fields, mac),
            )
        return at

    def _write_checkpoint(
        self, run: Run, session: str, change: store.Change, parent: int | None, at: float
    ) -> None:
        head = [(task.node, task.arg is not None) for task in change.frontier]
        frontier = frames.pack(head, [task.arg for task in change.frontier if task.arg is not None])
        joins = _to_json([list(join) for join in change.joins]) if change.joins else "[]"
        fields = (change.step, parent, change.kind, change.author, frontier, joins, at)
        run(
            "INSERT INTO checkpoint(session, seq, step, parent, kind, author, frontier, joins, at, "
            "mac) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(session, change.seq, *fields),
            self._mac(session, change.seq, "checkpoint", *fields),
        )
        for key, new in change.values.items():
            kind, data = _row_of(new)
            value = (key, kind, self.codec.name, data)
            run(
                "INSERT INTO value(session, seq, key, kind, codec, data, mac) "
                "VALUES(?, ?, ?, ?, ?, ?, ?)",
                *(session, change.seq, *value),
                self._mac(session, change.seq, "value", *value),
            )

    def fork(self, session: str, seq: int, target: str) -> store.SessionInfo:
        with self._transaction(writes=True) as run:
            saved = self._load(run, session, seq)
            if saved is None:
                raise store.unknown(session)
            change = store.forked(saved)
            made = run(
                "INSERT INTO session(id, claim, owner, version, seq, step, hash, status) "
                "VALUES(?, NULL, NULL, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                *(target, store.VERSION, change.seq, change.step),
                *(saved.info.hash, saved.info.status),
            )
            if made.changed == 0:
                raise store.exists(target)
            self._write(run, target, 0, change, list(saved.pending), False, clean=True)
            info = self._session(run, target)
            assert info is not None
            return info

    def delete(self, session: str) -> None:
        with self._transaction(writes=True) as run:
            info = self._locked_session(run, session)
            if info is None:
                raise store.unknown(session)
            if info.alive:
                raise store.busy(session, info.owner)
            run("DELETE FROM session WHERE id = ?", session)
            for table in ("checkpoint", "value", "pending"):
                run(f"DELETE FROM {table} WHERE session = ?", session)

    def prune(self, session: str | None = None, *, keep: int) -> int:
        keep = store.a_keep(keep)
        names = [info.id for info in self.sessions()] if session is None else [session]
        gone = 0
        for name in names:  # one transaction each: runs of the others go on in between
            with self._transaction(writes=True) as run:
                if self._locked_session(run, name) is None:
                    if session is not None:
                        raise store.unknown(name)
                    continue
                gone += self._prune(run, name, keep)
        return gone

    def _prune(self, run: Run, session: str, keep: int) -> int:
        rows = run(
            "SELECT seq FROM checkpoint WHERE session = ? ORDER BY seq DESC LIMIT 1 OFFSET ?",
            *(session, keep - 1),
        )
        if not rows:
            return 0
        first = rows[0][0]
        gone = run("DELETE FROM checkpoint WHERE session = ? AND seq < ?", session, first).changed
        # Of each key: what lies before the row that the first checkpoint's value begins with.
        run(
            "DELETE FROM value AS old WHERE session = ? AND seq < (SELECT MAX(v.seq) FROM value v "
            "WHERE v.session = old.session AND v.key = old.key AND v.seq <= ? "
            "AND v.kind NOT IN ('delta', 'deltas'))",
            *(session, first),
        )
        return gone

    # ---------------------------------------------------------------- what is not our own

    def _mac(self, *fields: Any) -> bytes | None:
        if self._key is None:
            return None
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for field in fields:
            kind, data = _bytes_of(field)
            mac.update(kind + len(data).to_bytes(8, "little"))
            mac.update(data)
        return mac.digest()

    def _verify(self, mac: bytes | None, what: str, *fields: Any) -> None:
        mine = self._mac(*fields)
        if mine is None and mac is None:
            return
        if mine is None:
            raise errors.StoreError(
                f"{self.where}: {what}: written with a key; this store was made without one (key=)"
            )
        if mac is None or not hmac.compare_digest(bytes(mac), mine):
            raise errors.StoreError(
                f"{self.where}: {what}: its HMAC is not that of this store's key: written with "
                f"another key or without one, or changed by somebody who does not have it"
            )

    def _same_codec(self, codec: str, what: str) -> None:
        if codec != self.codec.name:
            raise errors.StoreError(
                f"{self.where}: {what}: written with the codec {codec!r}, this store's is "
                f"{self.codec.name!r}"
            )

    def _corrupt(self, what: str) -> errors.StoreError:
        return errors.StoreError(f"{self.where}: corrupt: {what}")

    def _other_version(self, what: str, version: Any) -> errors.StoreError:
        return errors.StoreError(
            f"{self.where}: {what} of format version {version}, this forkmill reads "
            f"{store.VERSION}: use the one that wrote it, or another store"
        )


def _row_of(new: store.Value) -> tuple[str, Any]:
    """Kind and data of a value's row."""
    if new is None:
        return GONE, None
    blobs = new.parts if isinstance(new, store.Delta) else store.parts(new)
    kinds = (DELTA, DELTAS) if isinstance(new, store.Delta) else (WHOLE, WHOLES)
    if len(blobs) == 1:
        return kinds[0], blobs[0]
    return kinds[1], frames.pack(None, list(blobs))


def _bytes_of(field: Any) -> tuple[bytes, bytes | memoryview]:
    """A field as the HMAC has it: texts, numbers, bytes and None are told apart."""
    if isinstance(field, str):
        return b"s", field.encode("utf-8", "surrogatepass")
    if isinstance(field, (int, float)):
        return b"n", repr(field).encode()
    return (b"0", b"") if field is None else (b"b", memoryview(field).cast("B"))

"""Checkpoints in this process's memory: the whole protocol, for what needs no disk.

A session is a list of changes and the values as of the last one; an older checkpoint's values are
found by going over the changes again. In a forked child the sessions are a copy of the child's own:
the parent's claims do not count there.

Threads: any; one lock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import store
from .forks import Forkable
from .owner import Owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MemoryCheckpoints"]

Values = dict[str, tuple["store.Blob", ...]]


@dataclass(slots=True)
class _Session:
    """One session: its changes, each with the time it came, and what they have come to."""

    hash: str
    status: str = "running"
    line: list[tuple[store.Change, float, int | None]] = field(default_factory=list)
    values: Values = field(default_factory=dict)
    rows: dict[tuple[int, str, int], store.Pending] = field(default_factory=dict)
    token: str | None = None
    owner: Owner | None = None

    @property
    def seq(self) -> int:
        return self.line[-1][0].seq


class MemoryCheckpoints(Forkable, store.Checkpoints):
    """Checkpoints in memory: the same as in a file, until the process ends.

    Args:
        codec: How values are kept: "pickle", "json" or "msgpack".
        key: Taken, as by the other stores; nobody but this process can write here.

    Raises:
        ValueError: There is no such codec, or the key is empty.
    """

    def __init__(self, *, codec: str = "pickle", key: bytes | str | None = None) -> None:
        store.Checkpoints.__init__(self, codec=codec, key=key)
        self._sessions: dict[str, _Session] = {}
        Forkable.__init__(self)

    def __repr__(self) -> str:
        return f"<MemoryCheckpoints, {len(self._sessions)} sessions>"

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def close(self) -> None:
        """Nothing is open; the sessions stay."""

    def _forked(self) -> None:
        for at in self._sessions.values():
            at.token = at.owner = None  # of the parent's runs, on the parent's sessions

    # --------------------------------------------------------------------------- reading

    def load(
        self, session: str, seq: int | None = None, *, known: int | None = None
    ) -> store.Saved | None:
        with self._lock:
            sessions = self._sessions
            at = sessions.get(session)
            if at is None:
                return None
            if seq is None or seq == at.seq:
                rows = tuple(sorted(at.rows.values(), key=store.pending_order))
                last = _checkpoint(session, *at.line[-1])
                values = {} if known == at.seq else dict(at.values)
                return store.Saved(last, values, rows, _info(session, at))
            values = {}
            for entry in at.line:
                _apply(values, entry[0].values)
                if entry[0].seq == seq:
                    return store.Saved(_checkpoint(session, *entry), values, (), _info(session, at))
        raise store.no_checkpoint(session, seq)

    def info(self, session: str) -> store.SessionInfo | None:
        with self._lock:
            at = self._sessions.get(session)
            return None if at is None else _info(session, at)

    def history(self, session: str) -> list[store.Checkpoint]:
        with self._lock:
            sessions = self._sessions
            at = sessions.get(session)
            return [] if at is None else [_checkpoint(session, *entry) for entry in at.line]

    def sessions(self) -> list[store.SessionInfo]:
        with self._lock:
            sessions = self._sessions
            found = [_info(name, at) for name, at in sessions.items()]
        return sorted(found, key=lambda info: info.at)

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
        with self._lock:
            sessions = self._sessions
            at = sessions.get(session)
            if at is not None and at.token is not None and not take_over:
                raise store.busy(session, at.owner)
            if expect != (at.seq if at else 0):
                raise store.moved(session, expect, at.seq if at else 0)
            store.check_change(session, change, expect)
            if at is None:
                at = sessions[session] = _Session(hash)
            at.hash, at.status = hash, status
            _write(at, change, rows, keep_rows)
            at.token, at.owner = (None, None) if release else (token, Owner.here())
            stored = 0.0 if change is None else at.line[-1][1]
            return store.Claim(session, token, at.seq, stored, release)

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
        with self._lock:
            sessions = self._sessions
            at = sessions.get(claim.session)
            if at is None or claim.released or at.token != claim.token:
                raise store.lost(claim, at.owner if at else None)
            store.check_change(claim.session, change, at.seq)
            _write(at, change, rows, keep_rows)
            claim.seq = at.seq
            if change is not None:
                claim.at = at.line[-1][1]
            if status is not None:
                at.status = status
            if release:
                at.token = at.owner = None
                claim.released = True

    def fork(self, session: str, seq: int, target: str) -> store.SessionInfo:
        saved = self.load(session, seq)
        if saved is None:
            raise store.unknown(session)
        with self._lock:
            sessions = self._sessions
            if target in sessions:
                raise store.exists(target)
            change = store.forked(saved)
            at = _Session(saved.info.hash, saved.info.status, [(change, time.time(), None)])
            at.values = dict(saved.values)
            at.rows = {(row.task, row.kind, row.n): row for row in saved.pending}
            sessions[target] = at
            return _info(target, at)

    def delete(self, session: str) -> None:
        with self._lock:
            sessions = self._sessions
            at = sessions.get(session)
            if at is None:
                raise store.unknown(session)
            if at.token is not None:
                raise store.busy(session, at.owner)
            del sessions[session]

    def prune(self, session: str | None = None, *, keep: int) -> int:
        keep = store.a_keep(keep)
        with self._lock:
            sessions = self._sessions
            if session is not None and session not in sessions:
                raise store.unknown(session)
            chosen = sessions.values() if session is None else [sessions[session]]
            return sum(_prune(at, keep) for at in chosen)


# ---------------------------------------------------------------------- one session


def _write(
    at: _Session, change: store.Change | None, rows: Iterable[store.Pending], keep_rows: bool
) -> None:
    if change is not None:
        parent = at.line[-1][0].seq if at.line else None
        _apply(at.values, change.values)
        at.line.append((change, time.time(), parent))
        if not keep_rows:
            at.rows.clear()
    for row in rows:
        at.rows[row.task, row.kind, row.n] = row


def _apply(values: Values, changed: Mapping[str, store.Value]) -> None:
    for key, new in changed.items():
        if new is None:
            values.pop(key, None)
        elif isinstance(new, store.Delta):
            values[key] += new.parts
        else:
            values[key] = store.parts(new)


def _prune(at: _Session, keep: int) -> int:
    gone = len(at.line) - keep
    if gone <= 0:
        return 0
    values: Values = {}
    for change, _, _ in at.line[: gone + 1]:
        _apply(values, change.values)
    first, when, parent = at.line[gone]
    at.line[: gone + 1] = [(store.whole(first, values), when, parent)]
    return gone


def _checkpoint(
    session: str, change: store.Change, at: float, parent: int | None
) -> store.Checkpoint:
    return store.Checkpoint(
        session,
        change.seq,
        change.step,
        parent,
        change.kind,
        change.author,
        tuple(change.frontier),
        tuple(tuple(join) for join in change.joins),
        at,
    )


def _info(session: str, at: _Session) -> store.SessionInfo:
    change, when, _ = at.line[-1]
    return store.SessionInfo(
        session, at.status, change.seq, change.step, at.hash, store.VERSION, at.owner, when
    )

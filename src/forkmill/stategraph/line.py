"""A session as a run knows it: the last committed point, and what the tasks after it have given.

    store ──loaded──▶ Line ──(fold, follow)──▶ Point ──change_of──▶ store
                        ▲                        │
                        └── swapped in when it is stored ──┘

A key of the state is in `plain` (an immutable value, handed out as it is) or in `late` (a wire: see
`task`), never in both. A Point is built beside the old one and never changes afterwards, so who
has one has a consistent state.

What of a task lies in the store before its step is committed (a pending row; several, in their
order, if the store holds no so large one) is framed::

    "FMT1" | length of the head u32 | head (JSON) | blob | blob | ...
    head: {"only": bool, "writes": [[key, op, kind, length], ..],
           "routes": [name | [name, kind, length], ..]}

Threads: a Line belongs to one run at a time.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._late import WeakKeyDictionary
from ..errors import StoreError
from . import fits
from .checkpoints import store as _store
from .rules import GONE, Task
from .task import (
    CHAIN,
    CODED,
    DONE,
    FLAT,
    OPAQUE,
    PLAIN,
    immutable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .plan import Plan

__all__ = [
    "EMPTY",
    "LOST",
    "Line",
    "Point",
    "blob_of",
    "change_of",
    "loaded",
    "packed",
    "seen",
    "unpacked",
    "view",
]

_SMALL = 512  # bytes: up to that a value is looked at when it is loaded
_MAGIC = b"FMT1"
_LENGTH = struct.Struct("<4sI")


@dataclass(slots=True)
class Point:
    """One committed point of a session. Nobody changes it.

    Attributes:
        seq: Its number among all that was stored.
        step: How many supersteps are committed.
        plain: Keys whose values are immutable.
        late: Keys whose values are wires.
        tasks: Those of the next step.
        joins: How far the joins have come.
    """

    seq: int
    step: int
    plain: dict[str, Any]
    late: dict[str, Any]
    tasks: tuple[Task, ...]
    joins: tuple[frozenset[str], ...]

    def wire(self, key: str) -> Any:
        """The wire of a key's value; None if it is not set."""
        if key in self.plain:
            return PLAIN, self.plain[key]
        return self.late.get(key)

    def changed(self, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(plain, late) after changes of keys: wires, or GONE."""
        plain, late = self.plain.copy(), self.late.copy()
        for key, wire in changes.items():
            if wire is GONE:
                plain.pop(key, None)
                late.pop(key, None)
            elif wire[0] == PLAIN:
                plain[key] = wire[1]
                if late:
                    late.pop(key, None)
            else:
                late[key] = wire
                plain.pop(key, None)
        return plain, late


# Sessions, by their store, that a run of this process has claimed and could not free, because the
# store failed: they are ours still, and nobody runs them.
LOST: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()

EMPTY = Point(0, 0, {}, {}, (), ())


@dataclass(slots=True)
class Line:
    """A session: its last point, and what lies beside it.

    Attributes:
        session: Its id.
        point: The last point.
        status: What its last run came to.
        outcomes: Of tasks of the next step that are done, by index.
        questions: Of tasks that ask: (number, wire), by index.
        answers: By index, by number: wires.
        claim: The right to write, while a run has it.
        at: When its point was stored, if it was loaded and is the last one still.
    """

    session: str
    point: Point
    status: str = "new"
    outcomes: dict[int, Any] = field(default_factory=dict)
    questions: dict[int, tuple[int, Any]] = field(default_factory=dict)
    answers: dict[int, dict[int, Any]] = field(default_factory=dict)
    claim: _store.Claim | None = None
    at: float = 0.0

    def asked(self) -> dict[int, tuple[int, Any]]:
        """The questions that nobody has answered yet."""
        return {
            index: question
            for index, question in self.questions.items()
            if index not in self.outcomes and question[0] not in self.answers.get(index, ())
        }

    def move(self, point: Point, *, keep: bool = False, at: float = 0.0) -> None:
        """The next point is committed; what lay beside the old one is of no use any more."""
        self.point = point
        self.at = at
        if not keep and (self.outcomes or self.questions or self.answers):
            self.outcomes, self.questions, self.answers = {}, {}, {}


def view(plan: Plan, point: Point, reads: tuple[str, ...] | None = None) -> Any:
    """A fresh look at a point's state."""
    return plan.look(*seen(point, reads))


def seen(point: Point, reads: tuple[str, ...] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(plain, late) of the keys that a node reads."""
    if reads is None:
        return point.plain, point.late
    plain = {key: point.plain[key] for key in reads if key in point.plain}
    return plain, {key: point.late[key] for key in reads if key in point.late}


# ---------------------------------------------------------------------- to the store


def change_of(
    plan: Plan, point: Point, before: Point, changes: Iterable[str], kind: str, author: str
) -> _store.Change:
    """A point as the store takes it.

    Args:
        plan: The graph.
        point: The new point.
        before: The one before.
        changes: The keys that changed.
        kind: "input", "step", "edit" or "fork".
        author: Who wrote it.

    Raises:
        SerializationError: A value, or all arguments of Sends, is larger than the store holds.
    """
    values = {key: _value(plan, key, point.wire(key), before.late.get(key)) for key in changes}
    frontier = [
        _store.Planned(node, None if arg is None else blob_of(plan, arg))
        for node, arg in point.tasks
    ]
    sent = sum(len(task.arg) for task in frontier if task.arg is not None)
    fits.check(plan, f"the arguments of the {len(frontier)} tasks that are next", sent)
    joins = [sorted(come) for come in point.joins]
    return _store.Change(point.seq, point.step, kind, author, values, frontier, joins)


def _value(plan: Plan, key: str, wire: Any, before: Any) -> Any:
    if wire is None:
        return None
    kind, data = wire
    if kind != CHAIN:
        blob = blob_of(plan, wire)
        fits.check(plan, f"key {key!r}", len(blob))
        return blob
    old: tuple[Any, ...] = ()
    if before is not None and before[0] in (CODED, CHAIN):
        old = before[1] if before[0] == CHAIN else (before[1],)
    if old and len(old) < len(data) and all(a is b for a, b in zip(old, data, strict=False)):
        data = data[len(old) :]
        fits.check(plan, f"what comes behind key {key!r}", sum(map(len, data)))
        return _store.Delta(data)
    fits.check(plan, f"key {key!r}", sum(map(len, data)))
    return data


def blob_of(plan: Plan, wire: Any) -> bytes:
    """The bytes of a wire's value."""
    kind, data = wire
    if kind == CODED:
        found: bytes = data
        return found
    assert kind != OPAQUE
    value = data if kind in (PLAIN, FLAT) else plan.coder.value(wire)
    return plan.codec.encode(value)


def packed(plan: Plan, outcome: Any) -> bytes:
    """A finished task's outcome as the data of a pending row."""
    _, writes, routes, only = outcome
    blobs: list[bytes] = []

    def laid(wire: Any) -> list[int]:
        if wire is None:
            return [0, 0]
        blob = blob_of(plan, wire)
        blobs.append(blob)
        return [PLAIN if wire[0] == PLAIN else CODED, len(blob)]

    head = {
        "only": only,
        "writes": [[key, op, *laid(wire)] for key, op, wire in writes],
        "routes": [r if type(r) is str else [r[0], *laid(r[1])] for r in routes],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([_LENGTH.pack(_MAGIC, len(text)), text, *blobs])


def unpacked(plan: Plan, data: bytes) -> Any:
    """The outcome of a pending row.

    Raises:
        StoreError: It is not one.
    """
    try:
        magic, length = _LENGTH.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("it begins otherwise")
        at = _LENGTH.size + length
        head = json.loads(data[_LENGTH.size : at])
        writes: list[Any] = []
        routes: list[Any] = []
        for key, op, kind, size in head["writes"]:
            writes.append((key, op, _read(plan, data, at, kind, size) if size else None))
            at += size
        for route in head["routes"]:
            if isinstance(route, str):
                routes.append(route)
                continue
            name, kind, size = route
            routes.append((name, _read(plan, data, at, kind, size)))
            at += size
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise StoreError(f"a pending row cannot be read: {error}") from error
    return DONE, tuple(writes), tuple(routes), head["only"]


def _read(plan: Plan, data: bytes, at: int, kind: int, size: int) -> Any:
    blob = data[at : at + size]
    if len(blob) != size:
        raise ValueError("it is cut off")
    return (PLAIN, plan.codec.decode(blob)) if kind == PLAIN else (CODED, blob)


# -------------------------------------------------------------------- from the store


def loaded(plan: Plan, saved: _store.Saved, known: Point | None = None) -> Line:
    """A session as it was stored. Keys that the schema does not have (any more) are left out.

    Args:
        plan: The graph.
        saved: What was loaded.
        known: The point, if its values were not.
    """
    point = _point(plan, saved) if known is None else known
    line = Line(saved.checkpoint.session, point, at=saved.checkpoint.at)
    line.status = saved.info.status
    if point.tasks and line.status == "completed":  # of a fork from the middle
        line.status = "interrupted"
    _lay_beside(plan, line, saved.pending)
    return line


def _point(plan: Plan, saved: _store.Saved) -> Point:
    at = saved.checkpoint
    plain: dict[str, Any] = {}
    late: dict[str, Any] = {}
    for key in plan.schema.keys:
        parts = saved.values.get(key)
        if parts is None:
            continue
        if len(parts) > 1:
            late[key] = (CHAIN, tuple(map(bytes, parts)))
            continue
        blob = bytes(parts[0])
        if len(blob) <= _SMALL:
            value = plan.codec.decode(blob)
            if immutable(value):
                plain[key] = value
                continue
        late[key] = (CODED, blob)
    tasks = tuple(
        Task(task.node, None if task.arg is None else (CODED, bytes(task.arg)))
        for task in at.frontier
    )
    joins = tuple(map(frozenset, at.joins)) or plan.paths.no_joins
    return Point(at.seq, at.step, plain, late, tasks, joins)


def _lay_beside(plan: Plan, line: Line, rows: Iterable[_store.Pending]) -> None:
    done: dict[int, list[Any]] = {}
    for row in sorted(rows, key=lambda row: row.n):
        if row.kind == _store.UPDATE:
            done.setdefault(row.task, []).append(row.data)
        elif row.kind == _store.QUESTION:
            number = line.questions.get(row.task, (-1, None))[0]
            if row.n >= number:
                line.questions[row.task] = (row.n, (CODED, bytes(row.data)))
        elif row.kind == _store.ANSWER:
            line.answers.setdefault(row.task, {})[row.n] = (CODED, bytes(row.data))
    for task, pieces in done.items():
        line.outcomes[task] = unpacked(plan, b"".join(pieces))

"""What every store of checkpoints can do: the protocol between a state graph's run and its store.

A store keeps **sessions**. A session is a line of **checkpoints**, numbered by `seq`; beside the
last one lie **pending rows**: what its tasks have given before their step is committed. ::

    session ──▶ checkpoint 1 ──▶ checkpoint 2 ──▶ checkpoint 3 ◀── pending rows (task, kind, n)
      claim      kind input       kind step        kind step         update    a finished task's
      status                                                         question  fm.interrupt's value
      hash       each: frontier, joins, and the values               answer    what resume gave
                 of the keys that changed                            failure   told, not done

Four transactions, and nothing else, change a session::

    begin   free or its owner dead, and still at seq `expect`  ──▶ claimed [+ change] [+ rows]
    write   claimed by this claim                     ──▶ [+ change] [+ rows] [status] [freed]
    fork    the target is unknown                     ──▶ a new session of one checkpoint
    delete, prune                                     ──▶ less

====================  =========================================================================
a run                 load; begin(input as a change); write(rows), write(change), ...;
                      write(status="completed", release=True), with the last change if it can be
resume with answers   load; begin(rows=answers): stored before any task starts
abandon, new turn     load; begin(change): a change drops the pending rows of the one before
edit                  load; begin(change, keep_rows=True or False, release=True)
durability "exit"     changes are kept by the run (`merged`), and written with the end
====================  =========================================================================

Guarantees:

- A transaction is there as a whole or not at all, whatever is killed when. With `sync="normal"`
  what was stored survives the death of every process; with `sync="full"` the machine's too.
- `begin` never waits for another run: it says SessionBusy at once. A claim whose owner is known to
  be dead is taken over; `take_over=True` takes any. From then on each write of the former owner
  raises SessionConflict and changes nothing.
- A session's last seq never goes back, and rises with each change.
- All data is plain: encoded values (`codec`), texts and numbers. A store never runs a node's or
  reducer's code, and decodes nothing but by its own codec.
- What was not written by the same codec, key or version is refused, by StoreError that names it.

Threads: any; a store lets one transaction in at a time. Processes: a store object that a fork has
copied begins anew in the child: what the parent had open stays referenced there, and is never used
or closed. Nothing here is for worker processes, but `codecs`.
"""

from __future__ import annotations

import abc
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ... import errors
from ..._checks import integer
from .codecs import Codec, codec_named
from .owner import Owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "ANSWER",
    "FAILURE",
    "KINDS",
    "QUESTION",
    "UPDATE",
    "Blob",
    "Change",
    "Checkpoint",
    "Checkpoints",
    "Claim",
    "Delta",
    "Pending",
    "Planned",
    "Saved",
    "SessionInfo",
    "Value",
    "merged",
]

# What one value is: the bytes that `codec.encode` made. A store may hand out `bytes` where it was
# given a memoryview.
Blob: TypeAlias = "bytes | memoryview"

UPDATE, QUESTION, ANSWER, FAILURE = "update", "question", "answer", "failure"
KINDS = (UPDATE, QUESTION, ANSWER, FAILURE)


@dataclass(frozen=True, slots=True)
class Delta:
    """Updates of an `fm.append` key: each the encoded list of what comes behind the stored value.

    Who writes it sees to it that the key has a value, and that there is a whole one now and then.
    """

    parts: tuple[Blob, ...]


# What becomes of a key: a new value, one with deltas behind it, deltas behind the old one, or none.
Value: TypeAlias = "Blob | tuple[Blob, ...] | Delta | None"


def parts(value: Blob | tuple[Blob, ...]) -> tuple[Blob, ...]:
    """A whole value as a tuple: itself, and the deltas behind it."""
    return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True, slots=True)
class Planned:
    """A task of the frontier: a node, and the encoded argument of its Send (None: the state)."""

    node: str
    arg: Blob | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """One row of what a task has given before its step is committed.

    Attributes:
        task: Its index in the frontier.
        kind: "update": it is done; "question", "answer": of its n-th `fm.interrupt`;
            "failure": told, and to be run again.
        n: Which one of its kind, from 0.
        data: Encoded by the run; the store does not look into it.
    """

    task: int
    kind: str
    n: int
    data: Blob


@dataclass(frozen=True, slots=True)
class Change:
    """A new checkpoint, as far as it differs from the last one.

    Attributes:
        seq: Its number: greater than the session's last one.
        step: How many supersteps are committed with it.
        kind: "input", "step", "edit" or "fork".
        author: Who wrote it, for history: "input", the tasks' nodes, an edit's as_node, ...
        values: The keys that changed: an encoded value (or a tuple of it and deltas behind it), a
            Delta behind the old one, or None for a key that is no more. All others stay.
        frontier: The tasks of the next step, in their order.
        joins: How far the joins have come: for each, the sources that have run.
    """

    seq: int
    step: int
    kind: str
    author: str
    values: Mapping[str, Value]
    frontier: Sequence[Planned] = ()
    joins: Sequence[Sequence[str]] = ()


def merged(first: Change, second: Change) -> Change:
    """Two changes, one after the other, as one that ends where the second does."""
    values = dict(first.values)
    for key, new in second.values.items():
        old = values.get(key)
        if not isinstance(new, Delta) or key not in values:
            values[key] = new
        elif isinstance(old, Delta):
            values[key] = Delta(old.parts + new.parts)
        elif old is None:
            raise ValueError(f"a Delta for the key {key!r}, which is no more")
        else:
            values[key] = parts(old) + new.parts
    return replace(second, values=values)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One stored point of a session, without its values.

    Attributes:
        session: Of which session.
        seq: Which of all that was stored: input, steps, edits.
        step: How many supersteps are committed.
        parent: The seq that it came from; None for the first, and for a fork's.
        kind: "input", "step", "edit" or "fork".
        author: Who wrote it.
        frontier: The tasks of the next step, in their order.
        joins: How far the joins have come.
        at: When, in seconds of the epoch.
    """

    session: str
    seq: int
    step: int
    parent: int | None
    kind: str
    author: str
    frontier: tuple[Planned, ...]
    joins: tuple[tuple[str, ...], ...]
    at: float


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What is known of a session without its checkpoints.

    Attributes:
        id: Its name.
        status: What its last run wrote: "running", "completed", "interrupted", "failed", ...
        seq: Of its last checkpoint.
        step: How many supersteps are committed.
        hash: The definition hash of the graph that it belongs to.
        version: Of the store's format.
        owner: Who has claimed it, or None.
        at: When its last checkpoint was stored, in seconds of the epoch.
    """

    id: str
    status: str
    seq: int
    step: int
    hash: str
    version: int
    owner: Owner | None
    at: float

    @property
    def session(self) -> str:
        """Its name, as checkpoints and errors call it."""
        return self.id

    @property
    def alive(self) -> bool:
        """Whether it is claimed by a run that is not known to be dead."""
        return self.owner is not None and not self.owner.is_dead()


@dataclass(frozen=True, slots=True)
class Saved:
    """A session at one of its checkpoints.

    Attributes:
        checkpoint: The checkpoint.
        values: For each key its encoded value; for an `fm.append` key the whole value, and behind
            it the deltas: decoded one by one and put together they are the value.
        pending: The rows beside it, by task, kind and n; none but beside the session's last one.
        info: The session, as it is now.
    """

    checkpoint: Checkpoint
    values: dict[str, tuple[Blob, ...]]
    pending: tuple[Pending, ...]
    info: SessionInfo


@dataclass(slots=True)
class Claim:
    """The right to write to a session, until it is released or taken over.

    Attributes:
        session: To which.
        token: What tells it from every other claim.
        seq: The session's last seq, as of this claim's last write.
        at: When the last checkpoint that it wrote was stored; 0.0: it has written none. With `seq`
            that tells this checkpoint from one of a session that was deleted and begun anew.
        released: Whether it was released.
        clean: Whether there are no pending rows beside the last checkpoint, for the store.
    """

    session: str
    token: str
    seq: int
    at: float = 0.0
    released: bool = False
    clean: bool = False


class Checkpoints(abc.ABC):
    """A store of checkpoints: `MemoryCheckpoints`, `SQLiteCheckpoints`, `PostgresCheckpoints`.

    Making one opens nothing. `check`, or the first call that needs it, does.

    Every method may raise StoreError: the store cannot be opened, read or written, or holds what is
    not its own. Whatever raises has changed nothing. Thread-safe.

    Args:
        codec: How values are stored: "pickle" (protocol 5, never cloudpickle), "json" or "msgpack"
            (extra `msgpack`). Anybody who can write to a store without `key` whose codec is
            "pickle" can run code in the process that reads it.
        key: Bytes, or text, for an HMAC over all that is stored; who does not have them cannot
            forge a row.

    Raises:
        ValueError: An unknown codec, an empty key.
        TypeError: Neither a name, nor bytes or text.
        ModuleNotFoundError: The codec's package is not installed; the message names the extra.

    Attributes:
        largest: Bytes of the largest value that it holds; None: there is no such limit.
    """

    largest: int | None = None

    def __init__(self, *, codec: str = "pickle", key: bytes | str | None = None) -> None:
        self._codec = codec_named(codec)
        if isinstance(key, str):
            key = key.encode()
        if key is not None and not isinstance(key, bytes):
            raise TypeError(f"key must be bytes, str or None, not {type(key).__name__!r}")
        if key == b"":
            raise ValueError("key must have some bytes, or be None for a store without an HMAC")
        self._key = key

    @property
    def codec(self) -> Codec:
        """How the store's values are encoded; nodes encode with the same one, where they run."""
        return self._codec

    # ------------------------------------------------------------------ open and close

    @abc.abstractmethod
    def check(self) -> None:
        """See that the store opens, can be written, and is of this version.

        Leaves nothing open that was not: what is forked between here and the first run has nothing
        of it.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close what is open; the next call opens it again. Claims stay. Idempotent."""

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --------------------------------------------------------------------------- reading

    @abc.abstractmethod
    def load(
        self, session: str, seq: int | None = None, *, known: int | None = None
    ) -> Saved | None:
        """A session at its last checkpoint, or at another one.

        Args:
            session: Its name.
            seq: Which checkpoint; None: the last one.
            known: The seq whose values the caller has: those of a checkpoint never change. If it is
                this one, they are not read, and `values` is empty.

        Returns:
            None for an unknown session.

        Raises:
            SessionConflict: It has no checkpoint of that number (any more).
        """

    @abc.abstractmethod
    def info(self, session: str) -> SessionInfo | None:
        """What is known of a session without its values: one short look. None: it is unknown."""

    @abc.abstractmethod
    def history(self, session: str) -> list[Checkpoint]:
        """The checkpoints of a session, the first one first; none for an unknown session."""

    @abc.abstractmethod
    def sessions(self) -> list[SessionInfo]:
        """All sessions, by the time of their last checkpoint, the newest last."""

    # --------------------------------------------------------------------------- writing

    @abc.abstractmethod
    def begin(
        self,
        session: str,
        *,
        expect: int,
        hash: str,
        change: Change | None = None,
        rows: Iterable[Pending] = (),
        keep_rows: bool = False,
        status: str = "running",
        release: bool = False,
        take_over: bool = False,
    ) -> Claim:
        """Claim a session, and write what a turn begins with, in one transaction.

        Args:
            session: Its name; an unknown one is made, and needs a `change`.
            expect: The seq that the caller has read (0: unknown). What was read is still true then.
            hash: The definition hash of the caller's graph, kept with the session.
            change: The checkpoint of a new turn's input, or of an edit.
            rows: Pending rows (answers) beside the last checkpoint: `change`, if there is one.
            keep_rows: With a `change`: the pending rows of the one before move to it, and are not
                dropped.
            status: What the session's is from now on.
            release: Claim nothing: the transaction is all there is to do.
            take_over: Claim it although another run, which may be alive, has.

        Raises:
            SessionBusy: Another run has claimed it, and is not known to be dead.
            SessionConflict: It is not at `expect` any more: load it again.
        """

    @abc.abstractmethod
    def write(
        self,
        claim: Claim,
        *,
        change: Change | None = None,
        rows: Iterable[Pending] = (),
        keep_rows: bool = False,
        status: str | None = None,
        release: bool = False,
    ) -> None:
        """Write to a claimed session, all in one transaction.

        Args:
            claim: From `begin`; its `seq` moves with `change`.
            change: A new checkpoint. The pending rows of the one before are dropped.
            rows: Pending rows beside the last checkpoint: `change`, if there is one. One that is
                there already is replaced.
            keep_rows: As for `begin`.
            status: What the session's is from now on; None: as it is.
            release: Free the session.

        Raises:
            SessionConflict: The claim was released, or taken over by another run.
        """

    @abc.abstractmethod
    def fork(self, session: str, seq: int, target: str) -> SessionInfo:
        """Make a new session of one checkpoint: the values, frontier and joins of another one's.

        From the session's last checkpoint its pending rows come along. The new one is free, its seq
        is 1, its step and status are the old one's.

        Raises:
            SessionConflict: There is no such session, no such checkpoint, or already the target.
        """

    @abc.abstractmethod
    def delete(self, session: str) -> None:
        """Delete a session with all that it has.

        Raises:
            SessionConflict: There is no such session.
            SessionBusy: A run has claimed it, and is not known to be dead.
        """

    @abc.abstractmethod
    def prune(self, session: str | None = None, *, keep: int) -> int:
        """Delete all but the last `keep` checkpoints of a session, or of each; the last ones stay
        as they are. How many were deleted.

        Raises:
            TypeError, ValueError: `keep` is not a whole number >= 1.
            SessionConflict: There is no such session.
        """


# --------------------------------------------------------------------- for all stores

VERSION = 1  # of what stores keep, and how


def new_token() -> str:
    """What tells a claim from every other."""
    return os.urandom(16).hex()


def pending_order(row: Pending) -> tuple[Any, ...]:
    return row.task, row.kind, row.n


def whole(change: Change, values: Mapping[str, tuple[Blob, ...]]) -> Change:
    """A change as if nothing had been before it: with all values."""
    return replace(change, values=dict(values))


def forked(saved: Saved) -> Change:
    """The one checkpoint of a fork."""
    at = saved.checkpoint
    return Change(
        seq=1,
        step=at.step,
        kind="fork",
        author=f"fork of {at.session} at {at.seq}",
        values=dict(saved.values),
        frontier=at.frontier,
        joins=at.joins,
    )


def check_change(session: str, change: Change | None, seq: int) -> None:
    """Refuse a change that does not go on from `seq`, and none for an unknown session."""
    if change is None:
        if seq == 0:
            raise unknown(session)
    elif change.seq <= seq:
        raise errors.SessionConflict(
            f"checkpoint {change.seq} of the session {session!r} would go back: it is at {seq}",
            session=session,
        )


def a_keep(value: Any) -> int:
    return integer("keep", value, least=1)


def busy(session: str, owner: Owner | None) -> errors.SessionBusy:
    who = f" by {owner}" if owner else ""
    return errors.SessionBusy(
        f"the session {session!r} is claimed{who}: another run works on it. Wait for its end; if "
        f"it is gone for good, take_over=True takes the session from it.",
        session=session,
        owner=str(owner) if owner else "",
    )


def moved(session: str, expect: int, seq: int) -> errors.SessionConflict:
    return errors.SessionConflict(
        f"the session {session!r} is at checkpoint {seq}, not at {expect} any more: another run "
        f"wrote to it in between. Begin again from what it is now.",
        session=session,
    )


def lost(claim: Claim, owner: Owner | None) -> errors.SessionConflict:
    if claim.released:
        why = "the claim was released"
    else:
        why = f"{owner} took it over" if owner else "another run took it over, or it was deleted"
    return errors.SessionConflict(
        f"the session {claim.session!r} is not this run's any more: {why}. Nothing was written.",
        session=claim.session,
    )


def unknown(session: str) -> errors.SessionConflict:
    return errors.SessionConflict(f"there is no session {session!r} in this store", session=session)


def exists(session: str) -> errors.SessionConflict:
    return errors.SessionConflict(
        f"there is a session {session!r} already: fork to another name, or delete it first",
        session=session,
    )


def no_checkpoint(session: str, seq: int | None) -> errors.SessionConflict:
    return errors.SessionConflict(
        f"the session {session!r} has no checkpoint {seq}: it was pruned, or never was; "
        f"history() lists those that are there",
        session=session,
    )

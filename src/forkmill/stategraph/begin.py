"""How a call gets its session: looked at, checked, claimed, and begun, in one transaction.

=============  =======================================  ========================================
the session    invoke(input)                            resume(value)
=============  =======================================  ========================================
unknown        is made: input folded over the start     SessionConflict
completed      a new turn: input folded over its state  its result; nothing runs
unfinished     SessionConflict; `abandon`: a new turn   goes on; answers are stored first
claimed        SessionBusy; of one known to be dead, or with `take_over`, as above
another hash   SessionConflict with both hashes; `allow_changed`: as above
=============  =======================================  ========================================

Guarantees: what is refused has changed nothing. What was read is true when it is claimed: the store
sees to that (`expect`).

Threads: any.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .._checks import nearest
from ..errors import SessionBusy, SessionConflict, UpdateError
from ..events import new_id
from . import fits
from .checkpoints import store as _store
from .checkpoints.owner import Owner
from .line import (
    EMPTY,
    LOST,
    Line,
    Point,
    blob_of,
    change_of,
    loaded,
    view,
)
from .rules import Task, fold, follow
from .schema import UNSET
from .task import (
    DONE,
    PLAIN,
    Work,
    writes_of,
)
from .words import START, Command, Send, question_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import Plan

__all__ = [
    "NOTHING",
    "answers_of",
    "edited",
    "first",
    "known",
    "lay_answers",
    "opened",
    "resumed",
    "started",
]


class _Nothing:
    def __repr__(self) -> str:
        return "<nothing>"


NOTHING: Any = _Nothing()  # no answer was given; None would be one


def known(
    plan: Plan, session: Any, seq: int | None = None, before: Line | None = None
) -> tuple[_store.Saved, Line]:
    """A session that is there.

    Args:
        plan: The graph.
        session: Its id.
        seq: Which point; None: the last one.
        before: The session as it was: values that it still has are not loaded again.

    Raises:
        SessionConflict: It is not.
    """
    store = plan.settings.store
    if not isinstance(session, str) or not session:
        raise SessionConflict(f"a session has a text as its id, not {session!r}")
    if store is None:
        raise SessionConflict(
            f"there is no session {session!r}: {plan.name} stores none; "
            "compile(checkpoints='sqlite:...') does",
            session=session,
        )
    had = None if before is None or not before.at else before.point.seq
    saved = store.load(session, seq, known=had)
    if saved is not None and saved.checkpoint.seq == had:
        assert before is not None
        if saved.checkpoint.at == before.at:
            return saved, loaded(plan, saved, before.point)
        saved = store.load(session)  # it was deleted, and there is another one of that name
    if saved is None:
        raise SessionConflict(
            f"there is no session {session!r} in {store!r}; invoke(..., session={session!r}) "
            "begins one",
            session=session,
        )
    return saved, loaded(plan, saved)


def _check_hash(plan: Plan, saved: _store.Saved, allow_changed: bool) -> None:
    if saved.info.hash != plan.hash and not allow_changed:
        raise SessionConflict(
            f"session {saved.info.id!r} belongs to another graph: it was stored with the "
            f"definition {saved.info.hash}, and this one is {plan.hash}; allow_changed=True goes "
            "on all the same",
            session=saved.info.id,
        )


def _check_free(plan: Plan, saved: _store.Saved, take_over: bool) -> bool:
    """Whether it is to be taken over: wanted, or lost by a run of ours whose store failed.

    Raises:
        SessionBusy: It is claimed, and not by one that is known to be dead.
    """
    lost = LOST.get(plan.settings.store, set())
    if saved.info.id in lost:
        lost.discard(saved.info.id)
        take_over = take_over or saved.info.owner == Owner.here()
    if saved.info.alive and not take_over:
        raise SessionBusy(
            f"session {saved.info.id!r} belongs to a run that is alive, or not known to be dead: "
            f"{saved.info.owner}; take_over=True takes it",
            session=saved.info.id,
            owner=str(saved.info.owner),
        )
    return take_over


def check_nodes(plan: Plan, line: Line) -> None:
    """That what a session of another definition runs next is there.

    Raises:
        SessionConflict: It names nodes that are gone.
    """
    lost = sorted({task.node for task in line.point.tasks if task.node not in plan.nodes})
    if lost:
        raise SessionConflict(
            f"session {line.session!r} goes on with {', '.join(lost)}, which {plan.name} does not "
            "have (any more)",
            session=line.session,
        )
    if len(line.point.joins) != len(plan.paths.joins):
        line.point.joins = plan.paths.no_joins


# ----------------------------------------------------------------------------- input


def started(
    plan: Plan,
    input: Any,
    session: Any = None,
    *,
    abandon: bool = False,
    take_over: bool = False,
    allow_changed: bool = False,
    status: str = "running",
    release: bool = False,
) -> Line:
    """A session with a turn of its own: the input folded in, the frontier from START.

    Raises:
        UpdateError, SerializationError: The input is none.
        SessionConflict: The session is unfinished, or of another graph.
        SessionBusy: It is claimed.
        StoreError: The store failed.
    """
    if session is not None and (not isinstance(session, str) or not session):
        raise SessionConflict(f"a session has a text as its id, not {session!r}")
    store = plan.settings.store
    if store is None:
        return Line(session or "", first(plan, input))
    name = session or new_id()
    saved = None if session is None else store.load(name)
    if saved is None:
        before = _start(plan)
    else:
        take_over = _check_free(plan, saved, take_over)
        _check_hash(plan, saved, allow_changed)
        line = loaded(plan, saved)
        if line.status != "completed" and not abandon:
            raise SessionConflict(
                f"session {name!r} is not complete ({line.status}): resume(session={name!r}) "
                "goes on with it; abandon=True begins a new turn over its state",
                session=name,
            )
        before = line.point
    point, changes = _first(plan, before, input)
    if saved is None:
        changes = {key for key in plan.schema.keys if point.wire(key) is not None}
        before = EMPTY
    change = change_of(plan, point, before, changes, "input", "input")
    claim = store.begin(
        name,
        expect=0 if saved is None else saved.checkpoint.seq,
        hash=plan.hash,
        change=change,
        status=status,
        release=release,
        take_over=take_over,
    )
    return Line(name, point, status, claim=claim)


def first(plan: Plan, input: Any) -> Point:
    """The point that a session begins with which nobody has run yet.

    Raises:
        UpdateError, SerializationError: The input is none.
    """
    return _first(plan, _start(plan), input)[0]


def _start(plan: Plan) -> Point:
    """The state before any input."""
    coder = plan.coder
    plain: dict[str, Any] = {}
    late: dict[str, Any] = {}
    for key in plan.schema.keys.values():
        value = key.start()
        if value is UNSET:
            continue
        wire = coder.wire(value, f"the start of key {key.name!r}")
        if wire[0] == PLAIN:
            plain[key.name] = value
        else:
            late[key.name] = wire
    return Point(0, 0, plain, late, (), plan.paths.no_joins)


def _first(plan: Plan, before: Point, input: Any) -> tuple[Point, set[str]]:
    """The point that a turn begins with, and the keys that the input changed."""
    coder = plan.coder
    writes = input_writes(plan, input, "input", before.step, coder.wire)
    changes = (
        fold(plan.schema.keys, before.wire, [("input", writes)], before.step, coder)
        if writes
        else {}
    )
    plain, late = before.changed(changes)
    point = Point(before.seq + 1, before.step, plain, late, (), plan.paths.no_joins)
    point.tasks, point.joins = follow(
        plan.paths,
        (Task(START),),
        ((DONE, (), (), False),),
        point.joins,
        lambda: view(plan, point),
        before.step,
        coder,
    )
    return point, set(changes)


def input_writes(
    plan: Plan, values: Any, who: str, step: int, wire_of: Callable[[Any, str], Any]
) -> tuple[Any, ...]:
    """The writes of an input or an edit.

    Raises:
        UpdateError: It is none.
    """
    if values is None:
        return ()
    what = f"the {who}" if who in ("input", "update") else f"the update as {who!r}"
    if isinstance(values, (Command, Send)):
        raise UpdateError(
            f"{what} is a dict of the state's keys, not a {type(values).__name__}; an answer "
            "is given by resume(value, session=...)"
        )
    cls = plan.schema.cls
    if cls is not None and isinstance(values, cls):
        fields: Any = dataclasses.fields(values)  # type: ignore[arg-type]
        names = [field.name for field in fields if hasattr(values, field.name)]
        values = {name: getattr(values, name) for name in names}
    if not isinstance(values, dict):
        raise UpdateError(
            f"{what} is a dict of the state's keys, or None, not a {type(values).__name__!r}"
        )
    schema = plan.schema
    for key in values:
        if key not in schema.keys:
            raise UpdateError(
                f"{what} has an unknown key: {schema.unknown(key)}", key=str(key), step=step
            )
    work = Work(
        name=who,
        fn=_no_function,
        keys=tuple(schema.keys),
        appends=frozenset(key.name for key in schema.keys.values() if key.appends),
        cls=None,
        nodes=frozenset(),
        targets=None,
        codec=plan.codec,
        lenient=plan.settings.store is None,
    )
    return writes_of(work, values, step, wire_of)


def _no_function(_: Any) -> None:
    """The input is nobody's result."""


# ---------------------------------------------------------------------------- resume


def resumed(
    plan: Plan,
    session: Any,
    value: Any = NOTHING,
    answers: Any = None,
    *,
    take_over: bool = False,
    allow_changed: bool = False,
    before: Line | None = None,
) -> Line:
    """A session that goes on; one that is completed is given as it is, and not claimed.

    Raises:
        SessionConflict: There is none, it is of another graph, or the answers do not fit.
        SessionBusy: It is claimed.
        StoreError: The store failed.
    """
    saved, line = known(plan, session, before=before)
    take_over = _check_free(plan, saved, take_over)
    _check_hash(plan, saved, allow_changed)
    if line.status == "completed" and not line.point.tasks:
        answers_of(plan, line, value, answers)
        return line
    check_nodes(plan, line)
    given = answers_of(plan, line, value, answers)
    rows = lay_answers(plan, line, given)
    store = plan.settings.store
    assert store is not None
    line.claim = store.begin(
        line.session,
        expect=saved.checkpoint.seq,
        hash=plan.hash,
        rows=rows,
        status="running",
        take_over=take_over,
    )
    return line


def opened(plan: Plan, session: Any, allow_changed: bool, before: Line | None = None) -> Line:
    """A session that is only looked at: not claimed.

    Raises:
        SessionConflict: There is none, or it is of another graph.
    """
    saved, line = known(plan, session, before=before)
    _check_hash(plan, saved, allow_changed)
    return line


def lay_answers(plan: Plan, line: Line, given: dict[int, tuple[int, Any]]) -> list[_store.Pending]:
    """Answers beside the line's point; as rows for the store.

    Raises:
        SerializationError: One is larger than the store holds.
    """
    rows = []
    for index, (number, wire) in given.items():
        line.answers.setdefault(index, {})[number] = wire
        if plan.settings.store is not None:
            data = blob_of(plan, wire)
            fits.check(plan, "the answer", len(data))
            rows.append(_store.Pending(index, _store.ANSWER, number, data))
    return rows


def answers_of(plan: Plan, line: Line, value: Any, answers: Any) -> dict[int, tuple[int, Any]]:
    """Answers, by the index of their task: (number of the question, wire).

    Raises:
        SessionConflict: They do not fit the questions.
    """
    asked = line.asked() if line.questions else {}
    step = line.point.step + 1
    names = {
        question_id(step, index, line.point.tasks[index].node, number): (index, number)
        for index, (number, _) in asked.items()
    }
    listed = ", ".join(map(repr, names)) or "none"
    if value is not NOTHING and answers is not None:
        raise _unfit(line, "a value and answers= are two answers; give one of them", listed)
    if value is NOTHING and answers is None:
        idle = asked and len(line.outcomes) + len(asked) >= len(line.point.tasks)
        if idle:
            raise _unfit(line, "it waits for answers, and there was none", listed)
        return {}
    if answers is None:
        if len(names) != 1:
            why = "one answer fits one question" if names else "there is no question to be answered"
            raise _unfit(line, why, listed)
        answers = dict.fromkeys(names, value)
    if not isinstance(answers, dict):
        raise _unfit(line, f"answers= is {{id: value}}, not {answers!r:.60}", listed)
    coder = plan.coder
    found = {}
    for name, answer in answers.items():
        if name not in names:
            raise _unfit(line, f"there is no question {name!r}", listed)
        index, number = names[name]
        found[index] = (number, coder.wire(answer, f"the answer to {name!r}"))
    if not answers and asked:
        raise _unfit(line, "it waits for answers, and there was none", listed)
    return found


def _unfit(line: Line, why: str, listed: str) -> SessionConflict:
    return SessionConflict(
        f"session {line.session!r}: {why}; its questions: {listed}", session=line.session
    )


# ------------------------------------------------------------------------------ edit


def edited(plan: Plan, line: Line, values: Any, as_node: str | None, take_over: bool) -> None:
    """Change the state of a session between its steps; stored as a point of its own.

    Raises:
        UpdateError: The values do not fit.
        SessionConflict: There is no such node; the session has moved. SessionBusy: it is claimed.
    """
    if as_node is not None and as_node not in plan.nodes:
        near = nearest(as_node, plan.nodes)
        raise SessionConflict(f"as_node={as_node!r}: there is no such node{near}")
    coder = plan.coder
    before = line.point
    who = as_node or "update"
    writes = input_writes(plan, values, who, before.step, coder.wire)
    changes = (
        fold(plan.schema.keys, before.wire, [(who, writes)], before.step, coder) if writes else {}
    )
    plain, late = before.changed(changes)
    point = Point(before.seq + 1, before.step, plain, late, before.tasks, before.joins)
    if as_node is not None:
        point.tasks, point.joins = follow(
            plan.paths,
            (Task(as_node),),
            ((DONE, (), (), False),),
            before.joins,
            lambda: view(plan, point),
            before.step,
            coder,
        )
    keep = as_node is None
    status = line.status
    if not keep:
        status = "interrupted" if point.tasks else "completed"
    store = plan.settings.store
    if store is not None:
        store.begin(
            line.session,
            expect=before.seq,
            hash=plan.hash,
            change=change_of(plan, point, before, changes, "edit", who),
            keep_rows=keep,
            status=status,
            release=True,
            take_over=take_over,
        )
    line.move(point, keep=keep)
    line.status = status

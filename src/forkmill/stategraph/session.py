"""A session in the hand: looked at, run step by step, edited, forked.

    app.open(id) ──▶ Session ──▶ step, run_until_complete ──▶ Run (claimed for that long)
                            ├──▶ update: a point of its own, between steps
                            └──▶ history, fork

Guarantees:
    * Between calls the session is free: others may run it, and the next call sees what they did.
    * Without checkpoints the session lives in this object, and has one point, the last one: as a
      stored one that is pruned after each step.

Threads: any; one call at a time: another one meanwhile is SessionBusy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Any, Generic

from .. import _checks
from ..errors import SessionBusy, SessionConflict
from ..events import new_id
from ..runs.policies import told
from . import begin
from .begin import NOTHING
from .checkpoints import store as _store
from .drive import carried_out
from .limits import Limits
from .line import Line, Point, blob_of, view
from .places import Places
from .plan import stops
from .result import S, StepReport, result_of
from .run import Run
from .task import OPAQUE
from .tell import Teller

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .plan import Plan
    from .result import StateRun

__all__ = ["Session"]


class Session(Generic[S]):
    """A session of a state graph; made by ``app.open``. As a context manager it is closed."""

    def __init__(
        self, plan: Plan, line: Line, *, take_over: bool = False, allow_changed: bool = False
    ) -> None:
        self._plan = plan
        self._line = line
        self._take_over = take_over
        self._allow_changed = allow_changed
        self._places: Places | None = Places(plan)
        self._lock = threading.Lock()
        self._wrote = ("input", "input", time.time())  # kind and author of the point, and when

    # ------------------------------------------------------------------- what it is

    @property
    def id(self) -> str:
        """Its id."""
        return self._line.session

    @property
    def state(self) -> S:
        """The state as of its last point, as a node would see it."""
        state: S = view(self._plan, self._point())
        return state

    @property
    def status(self) -> str:
        """What its last run came to."""
        return self._seen().status

    @property
    def step_number(self) -> int:
        """How many supersteps are committed."""
        return self._point().step

    @property
    def seq(self) -> int:
        """The number of its last point."""
        return self._point().seq

    @property
    def frontier(self) -> list[str]:
        """The nodes of the next step's tasks, in order."""
        return [task.node for task in self._point().tasks]

    @property
    def interrupts(self) -> list[Any]:
        """The questions that wait for an answer."""
        return self.result().interrupts

    def result(self) -> StateRun[S]:
        """The session as the result of a call."""
        line = self._seen()
        return result_of(self._plan, line, line.status)

    def _point(self) -> Point:
        """Its last point, which is loaded only if it is another one than it was."""
        store, point = self._plan.settings.store, self._line.point
        if store is not None:
            info = store.info(self.id)
            if info is None or info.seq != point.seq:
                return self._seen().point
        return point

    def _seen(self) -> Line:
        """It as it is now; while a run of ours goes on, as it was."""
        if self._plan.settings.store is not None and self._lock.acquire(blocking=False):
            try:
                self._line = begin.opened(self._plan, self.id, True, self._line)
            finally:
                self._lock.release()
        return self._line

    # ------------------------------------------------------------------- running

    def step(self, value: Any = NOTHING, *, answers: dict[str, Any] | None = None) -> StepReport:
        """Run one step, if there is one.

        Args:
            value: The answer to the one question that waits.
            answers: {id: answer} where several wait.

        Raises:
            BaseException: As ``app.invoke``; the session is where it was.
        """
        with self._run(value, answers, Limits(1, *self._static()), single=True) as run:
            if run is None:
                point = self._line.point
                return StepReport(point.step, [], [], [], True, False)
            carried_out(run, None)
            ran, updated = run.last
            return StepReport(
                run.line.point.step,
                ran,
                updated,
                run.frontier(),
                run.status == "completed",
                run.status == "interrupted",
            )

    def run_until_complete(
        self,
        value: Any = NOTHING,
        *,
        answers: dict[str, Any] | None = None,
        max_steps: int | None = None,
        interrupt_before: Any = (),
        interrupt_after: Any = (),
    ) -> StateRun[S]:
        """Run on until it is complete or waits: ``app.resume`` with warm contexts.

        Args:
            value: As for `step`.
            answers: As for `step`.
            max_steps: Steps of this call; None: as compiled.
            interrupt_before: As for ``app.invoke``.
            interrupt_after: As for ``app.invoke``.

        Raises:
            BaseException: As ``app.invoke``.
        """
        settings = self._plan.settings
        with told(self._plan.name):
            steps = settings.max_steps
            if max_steps is not None:
                steps = _checks.integer("max_steps", max_steps, least=1)
            before = settings.before | stops("interrupt_before", interrupt_before)
            after = settings.after | stops("interrupt_after", interrupt_after)
        self._plan.check_stops(before, after)
        with self._run(value, answers, Limits(steps, before, after)) as run:
            if run is None:
                return result_of(self._plan, self._line, "completed")
            return carried_out(run, None)

    def _static(self) -> tuple[frozenset[str], frozenset[str]]:
        return self._plan.settings.before, self._plan.settings.after

    @contextlib.contextmanager
    def _run(
        self, value: Any, answers: Any, limits: Limits, *, single: bool = False
    ) -> Iterator[Run | None]:
        """A run of it, claimed; None if it is complete."""
        with self._alone():
            if self._plan.settings.store is None:
                line = self._line
                given = begin.answers_of(self._plan, line, value, answers)
                begin.lay_answers(self._plan, line, given)
            else:
                line = self._line = begin.resumed(
                    self._plan,
                    self.id,
                    value,
                    answers,
                    take_over=self._take_over,
                    allow_changed=self._allow_changed,
                    before=self._line,
                )
                self._take_over = False  # once: now it is ours
            if not line.point.tasks:
                yield None
                return
            assert self._places is not None
            tell = Teller(self._plan)
            run = Run(self._plan, line, self._places, limits, tell, resumed=True, single=single)
            try:
                yield run
            finally:
                if run.stats.steps:
                    self._wrote = "step", ", ".join(dict.fromkeys(run.last[0])), time.time()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._places is None:
            raise SessionConflict(f"this view of session {self.id!r} was closed", session=self.id)
        if not self._lock.acquire(blocking=False):
            raise SessionBusy(
                f"session {self.id!r} runs in another thread already", session=self.id
            )
        try:
            yield
        finally:
            self._lock.release()

    # ------------------------------------------------------------------- changing

    def update(self, values: Any, as_node: str | None = None) -> None:
        """Change the state between two steps: a point of its own in the history.

        Args:
            values: {key: value}, folded as a node's update would be.
            as_node: As if this node had written it: its successors are next, and what the tasks of
                the next step had given so far is dropped. None: what is next stays, with it.

        Raises:
            UpdateError: The values do not fit.
            SessionConflict: There is no such node. SessionBusy: a run has the session.
            StoreError: The store failed.
        """
        with self._alone():
            if self._plan.settings.store is not None:
                before = self._line
                self._line = begin.opened(self._plan, self.id, self._allow_changed, before)
            begin.edited(self._plan, self._line, values, as_node, self._take_over)
            self._wrote = "edit", as_node or "update", time.time()

    def history(self) -> list[_store.Checkpoint]:
        """Its points, the first one first: seq, step, kind, author, frontier, joins, at.

        Without checkpoints there is the last one only.
        """
        store = self._plan.settings.store
        return [self._last()] if store is None else store.history(self.id)

    def _last(self) -> _store.Checkpoint:
        """The point of a session that no store has."""
        point = self._line.point
        kind, author, at = self._wrote
        frontier = []
        for node, arg in point.tasks:
            lasting = arg is not None and arg[0] != OPAQUE
            frontier.append(_store.Planned(node, blob_of(self._plan, arg) if lasting else None))
        joins = tuple(tuple(sorted(come)) for come in point.joins)
        parent = point.seq - 1 or None
        return _store.Checkpoint(
            *(self.id, point.seq, point.step, parent, kind, author, tuple(frontier), joins, at)
        )

    def state_at(self, seq: int) -> S:
        """The state as of another point.

        Raises:
            SessionConflict: There is no such point (any more).
        """
        if self._plan.settings.store is None:
            self._check_last(seq)
            return self.state
        state: S = view(self._plan, begin.known(self._plan, self.id, seq)[1].point)
        return state

    def _check_last(self, seq: int) -> None:
        """That it is the one point of a session that no store has."""
        if seq != self._line.point.seq:
            raise SessionConflict(
                f"the session has no point {seq!r} (any more): without checkpoints it keeps the "
                f"last one, {self._line.point.seq}; compile(checkpoints=fm.MemoryCheckpoints()) "
                "keeps all",
                session=self.id,
            )

    def fork(self, seq: int | None = None, session: str | None = None) -> Session[S]:
        """A new session that begins where this one was at a point.

        Args:
            seq: Which point; None: the last one.
            session: The new id; None: any.

        Raises:
            SessionConflict: There is no such point, or already a session of that id.
            StoreError: The store failed.
        """
        store = self._plan.settings.store
        target = session or new_id()
        if store is None:
            return self._fork_here(seq, target)
        store.fork(self.id, self.seq if seq is None else seq, target)
        line = begin.opened(self._plan, target, self._allow_changed)
        return Session(self._plan, line, allow_changed=self._allow_changed)

    def _fork_here(self, seq: int | None, target: str) -> Session[S]:
        """A fork that no store has."""
        with self._alone():
            line = self._line
            self._check_last(line.point.seq if seq is None else seq)
            point = dataclasses.replace(line.point, seq=1)
            beside = (dict(line.outcomes), dict(line.questions))
            answers = {index: dict(given) for index, given in line.answers.items()}
            fork = Session(self._plan, Line(target, point, line.status, *beside, answers))
            author = f"fork of {self.id} at {line.point.seq}"
            fork._wrote = "fork", author, time.time()
            return fork

    def close(self) -> None:
        """Close the contexts that it opened. Idempotent."""
        places, self._places = self._places, None
        if places is not None:
            places.close()

    def __enter__(self) -> Session[S]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        line = self._line
        return (
            f"<session {self.id!r} of {self._plan.name!r}: {line.status}, step {line.point.step}>"
        )

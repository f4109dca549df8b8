"""What a run stores: points as they are committed, and beside the last one what finished of a step.

    durability   a committed step           a task that ends while others run    the end
    "sync"       written before the next    a pending row                        with the last step
    "exit"       kept                       kept                                 written, all as one
    no store     nothing is written

Guarantees: what is kept and what is written come to the same point; rows lie beside that one.

Threads: the run's own.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import SessionConflict, StoreError
from . import fits
from .checkpoints import store as _store
from .line import (
    LOST,
    Line,
    Point,
    blob_of,
    change_of,
    packed,
)

if TYPE_CHECKING:
    from .plan import Plan
    from .rules import Task
    from .tell import Teller

__all__ = ["Keeper"]


class Keeper:
    """The store's side of a run.

    Args:
        plan: The graph.
        line: The session, claimed if there is a store.
        tell: Hears of checkpoints.

    Attributes:
        unsaved: The tasks whose outcome or question no row has.
        there: Whether there is a store.
    """

    def __init__(self, plan: Plan, line: Line, tell: Teller) -> None:
        self._plan = plan
        self._line = line
        self._tell = tell
        self._store = plan.settings.store
        self._sync = plan.settings.sync
        self.there = self._store is not None
        self.unsaved: set[int] = set()
        self._stored = line.point  # the last point that the store has
        self._dirty: set[str] = set()  # keys that changed since
        self._ran: tuple[Task, ...] = ()

    def committed(
        self, new: Point, ran: tuple[Task, ...], changes: dict[str, Any], status: str | None
    ) -> None:
        """A step has come to a new point, with which the run may end: it is stored, if it is to be,
        and then is the line's.

        Raises:
            StoreError, SessionConflict: It could not be stored; nothing has changed.
        """
        line = self._line
        at = 0.0
        if self.there:
            self._dirty.update(changes)
            self._ran = ran
            if self._sync or status:
                at = self._write(new, status)
        line.move(new, at=at)
        self.unsaved.clear()

    def _write(self, new: Point, status: str | None) -> float:
        """Store a point; when that was."""
        claim = self._line.claim
        assert self._store is not None and claim is not None
        began = perf_counter()
        change = self._change(new)
        self._store.write(claim, change=change, status=status, release=status is not None)
        self._stored, self._dirty = new, set()
        if self._tell.heard:
            self._tell.checkpoint(new, change, began)
        return claim.at

    def _change(self, new: Point) -> _store.Change:
        author = ", ".join(dict.fromkeys(task.node for task in self._ran))
        return change_of(self._plan, new, self._stored, self._dirty, "step", author)

    def finished(self) -> None:
        """Others still run: what has finished is stored beside the point.

        Raises:
            StoreError, SessionConflict: It could not be.
        """
        if self._store is None or not self._sync or not self.unsaved:
            return
        assert self._line.claim is not None
        self._store.write(self._line.claim, rows=self._rows())
        self.unsaved.clear()

    def _rows(self) -> list[_store.Pending]:
        """The pending rows of what finished and is not stored yet."""
        line, rows = self._line, []
        for index in sorted(self.unsaved):
            if index in line.outcomes:
                data = packed(self._plan, line.outcomes[index])
                rows += [
                    _store.Pending(index, _store.UPDATE, n, piece)
                    for n, piece in enumerate(fits.pieces(data, self._plan.largest))
                ]
            else:
                number, wire = line.questions[index]
                data = blob_of(self._plan, wire)
                rows.append(_store.Pending(index, _store.QUESTION, number, data))
        return rows

    def free(self, status: str) -> None:
        """The run ends without another point: what is kept is stored, and the session is free.

        Raises:
            StoreError, SessionConflict: It could not be.
        """
        line = self._line
        if self._store is not None and line.claim is not None and not line.claim.released:
            change = None if self._stored is line.point else self._change(line.point)
            rows = self._rows()
            self._store.write(line.claim, change=change, rows=rows, status=status, release=True)
            self._stored = line.point
        self.unsaved.clear()
        line.status = status

    def let_go(self) -> None:
        """The store has failed: nothing more is said to it but, if it can be, that we are gone."""
        claim, self._line.claim = self._line.claim, None
        if self._store is None or claim is None or claim.released:
            return
        try:
            self._store.write(claim, status="failed", release=True)
        except StoreError:
            LOST.setdefault(self._store, set()).add(claim.session)
        except SessionConflict:  # somebody has taken it over
            pass

"""What a task is given: the state as it reads it, or its Send's argument, for where it runs.

    where            values that nobody can change    all others
    this process     as they are                      wires: decoded at the first access
    another          as they are; large ones laid     wires; large ones laid into shared memory

Guarantees: what is laid is laid once, for all tasks of a step and for the steps behind it, as long
as the value is the same.

Threads: the run's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import errors
from .line import blob_of, seen
from .places import INLINE, SHARE_FROM
from .task import CHAIN, CODED, FLAT, OPAQUE, PLAIN

if TYPE_CHECKING:
    from .line import Line, Point
    from .node import Node
    from .places import Places
    from .plan import Plan
    from .tell import Teller

__all__ = ["Given"]


class Given:
    """What the tasks of a run are given.

    Args:
        plan: The graph.
        line: The session.
        places: Where tasks run.
        tell: Knows whether anybody hears what tasks say.
    """

    def __init__(self, plan: Plan, line: Line, places: Places, tell: Teller) -> None:
        self._plan = plan
        self._line = line
        self._places = places
        self._tell = tell
        self._sent_for: Point | None = None
        self._sent: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    def forget(self) -> None:
        """The run is over: what was made ready for processes is of no use."""
        self._sent_for = None
        self._sent = ({}, {})

    def to(self, index: int, place: Any) -> tuple[Any, ...]:
        """What the callable of a task's node gets in a place: see `task.callable_of`.

        Raises:
            SerializationError: Another process cannot have it.
        """
        line = self._line
        point = line.point
        task = point.tasks[index]
        node = self._plan.nodes[task.node]
        ident = (line.session, point.seq, index, task.node)
        answers = line.answers.get(index)
        isolated = place is not INLINE and place.isolated
        arg = task.arg
        if arg is not None:
            state = None
            if isolated:
                arg = self._portable(f"the argument of {task.node!r}", arg, index)
        elif isolated:
            state = self._for_process(node)
        else:
            state = self.seen(node.reads)
        return self._tell.run, ident, point.step + 1, state, arg, answers

    def seen(self, reads: tuple[str, ...] | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a task in this process gets of the state; the second is its own."""
        plain, late = seen(self._line.point, reads)
        return plain, late.copy() if late else late

    def _for_process(self, node: Node) -> Any:
        """(plain, late) of what a node reads, as another process gets it."""
        point = self._line.point
        if self._sent_for is not point:
            plain: dict[str, Any] = {}
            late: dict[str, Any] = {}
            for key, value in point.plain.items():
                if type(value) in (str, bytes) and len(value) >= SHARE_FROM:
                    late[key] = self._portable(key, (PLAIN, value), key)
                else:
                    plain[key] = value
            for key, wire in point.late.items():
                late[key] = wire if wire[0] in (OPAQUE, FLAT) else self._portable(key, wire, key)
            self._sent, self._sent_for = (plain, late), point
        plain, late = self._sent
        if node.reads is not None:
            plain = {key: plain[key] for key in node.reads if key in plain}
            late = {key: late[key] for key in node.reads if key in late}
        for key, wire in late.items():
            if wire[0] == OPAQUE:
                raise errors.SerializationError(
                    f"key {key!r} holds what cannot be pickled, so node {node.name!r} cannot have "
                    "it in another process; leave it out with reads=[...]"
                )
        return plain, late

    def _portable(self, what: str, wire: Any, slot: Any) -> Any:
        """A wire for another process: large ones are laid into shared memory, once."""
        kind, data = wire
        if kind == PLAIN:
            if type(data) not in (str, bytes) or len(data) < SHARE_FROM:
                return wire
            data, kind = blob_of(self._plan, wire), CODED
        if kind == FLAT:
            return wire
        if kind == CODED:
            return CODED, self._places.shared(data, (slot, 0))
        if kind == CHAIN:
            if sum(map(len, data)) < SHARE_FROM:
                return wire
            laid = [self._places.shared(part, (slot, n)) for n, part in enumerate(data)]
            return CHAIN, tuple(laid)
        raise errors.SerializationError(f"{what} holds what cannot be pickled")

"""What flows in a run, and what holds it back: queues, the marks among what they hold, the bell.

    Edge ──▶ stage ──▶ Edge ──▶ ... ──▶ Outlet: who fills one looks whether it has room

Threads: everything belongs to the thread of the driver, but `Bell.ring`.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from itertools import repeat, starmap
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...runs.failure import Failure

__all__ = [
    "BEAT",
    "GONE",
    "NEVER",
    "QUICK",
    "SIGNS",
    "SLOW",
    "Abort",
    "Bell",
    "Choice",
    "Edge",
    "Killed",
    "Outlet",
    "Outs",
    "Pace",
]

QUICK, SLOW = 0.5e-3, 2e-3  # seconds: a slice that takes less grows, one that takes more shrinks
_FEW = 128  # items between two looks at the clock, at most
NEVER = float("inf")
GONE: Any = type("Gone", (), {"__repr__": lambda self: "GONE"})()  # a failed item's output
BEAT: Any = type("Beat", (), {"__repr__": lambda self: "BEAT"})()  # instead of a full queue


class Outs(list):  # type: ignore[type-arg]
    """All outputs of an item together."""


class Abort(BaseException):
    """An item failed for good where the policy is "raise": ends the run."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.stage)
        self.failure = failure


class Killed(BaseException):
    """kill() was called."""


class Bell:
    """Wakes the driver. `ring` may be called anywhere, also in a signal handler."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = self._asleep = False

    def ring(self) -> None:
        """There is something to look at."""
        self._rung = True
        if self._asleep:
            self._queue.put(None)

    def clear(self) -> None:
        """Before looking."""
        self._rung = False

    def wait(self, timeout: float | None) -> None:
        """Sleep until it rings; not at all if it has since `clear`."""
        self._asleep = True
        try:
            if not self._rung:
                self._queue.get(timeout=timeout)
        except queue.Empty:
            pass
        finally:
            self._asleep = False
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()


class Edge(deque):  # type: ignore[type-arg]
    """What waits between two stages, and what went that way."""

    __slots__ = (
        "closing",
        "delivered",
        "dropped",
        "failed",
        "peak",
        "room",
        "source",
        "straight",
        "taken",
        "target",
    )

    def __init__(self, source: str, target: Any, room: int) -> None:
        super().__init__()
        self.source = source
        self.target = target
        self.room: float = room  # it is full with so many
        self.straight = 0  # what went over without waiting here: the stages are in one call
        self.taken = 0  # what has waited here
        self.delivered = self.failed = self.dropped = 0
        self.closing = False  # a loop (OP-3)
        self.peak = 0  # the most that waited at once, where it closes a loop

    @property
    def emitted(self) -> int:
        """What went this way. Nobody has to count it: who appends tells by that."""
        return self.straight + self.taken + len(self)

    def drop(self) -> None:
        """What waits has come to nothing."""
        self.dropped += len(self)
        self.take(len(self))

    def take(self, n: int) -> list[Any]:
        """The first n items, or as many as there are."""
        if n >= len(self):
            items = list(self)
            self.clear()
            self.taken += len(items)
            return items
        self.taken += n
        return list(starmap(self.popleft, repeat((), n)))

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class Outlet(deque):  # type: ignore[type-arg]
    """The run's outputs; bounded where somebody takes them one by one."""

    __slots__ = ("bounded", "room")

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        self.room = 1 if bounded else NEVER


class Choice:
    """The queues behind a balanced stage, as one: it is full when all of them are.

    Which target has the least to do is asked once a turn of a run, and reckoned from there:
    meanwhile nobody else has a turn, and what goes to a target comes from here.
    """

    __slots__ = ("_at", "_loads", "_turn", "edges")

    room = 1

    def __init__(self, edges: Iterable[Edge]) -> None:
        self.edges = tuple(edges)
        self._loads: list[float] = []
        self._at = -1  # the turn in which they were asked for
        self._turn = 0

    def __len__(self) -> int:
        return int(all(len(edge) >= edge.room for edge in self.edges))

    def pick(self, now: int) -> Edge:
        """The queue of the target that has the least to do, of those with room; equals by turns.

        Args:
            now: The number of the turn.
        """
        edges = self.edges
        if now != self._at:
            self._at, self._loads = now, [edge.target.load() for edge in edges]
        loads = self._loads
        n = len(edges)
        best, least, self._turn = -1, NEVER, (self._turn + 1) % n
        for at in range(self._turn - 1, self._turn - 1 + n):
            if loads[at % n] < least and len(edges[at % n]) < edges[at % n].room:
                best, least = at % n, loads[at % n]
        if best < 0:
            best = min(range(n), key=loads.__getitem__)
        edge = edges[best]
        loads[best] += edge.target.share_of_one
        return edge


# What a run yields that is no output, by type: it waits for room, or is to be looked at.
SIGNS: frozenset[type] = frozenset({type(BEAT), Edge, Outlet, Choice})


class Pace:
    """Ends the turn of a run when it has lasted for long: others wait for theirs.

    Called by a run when it has worked on as many items as the last call said.
    """

    __slots__ = ("_beat", "_due", "_last", "_operator")

    def __init__(self, beat: list[None]) -> None:
        self._beat = beat
        self._operator: Any = None
        self._last = self._due = 0.0

    def begin(self, operator: Any, now: float) -> None:
        """An operator's turn begins."""
        self._operator, self._last, self._due = operator, now, now + SLOW

    def __call__(self) -> int:
        """How many more items, before the clock is looked at again."""
        operator, now = self._operator, perf_counter()
        spent, self._last = now - self._last, now
        if spent > QUICK:
            operator.few = 1
        elif operator.few < _FEW and spent < QUICK / 4:
            operator.few *= 2
        if now >= self._due:
            self._beat.append(None)
        few: int = operator.few
        return few

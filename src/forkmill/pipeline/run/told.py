"""What a run tells of itself: its plan when it begins, calls of inline stages, failures.

All of it is plain data, for who draws it or counts.

Threads: any.
"""

from __future__ import annotations

from array import array
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ...errors import WorkerDied
from ...events import short
from ...runs.failure import KEEP, formatted
from ..declare import Source
from .forms import width_of

if TYPE_CHECKING:
    from ..graph import Stage, StageGraph

__all__ = ["Calls", "plan_of", "tell_death", "tell_failure", "total_of"]

_SIZED = (list, tuple, range, dict, set, frozenset, str, bytes, bytearray)


def plan_of(graph: StageGraph) -> dict[str, Any]:
    """Its stages, and which feeds which, by name."""
    nodes = [
        {
            "name": stage.name,
            "kind": stage.kind,
            "context": str(stage.spec),
            "workers": 0 if stage.inline else width_of(stage),
            "queue": stage.queue_size,
        }
        for stage in graph.stages
    ]
    edges = [[stage.name, to.name] for stage in graph.stages for to in stage.targets]
    return {"nodes": nodes, "edges": edges}


def total_of(graph: StageGraph) -> int | None:
    """How many items its sources have; None: one of them does not say."""
    found = [_size(stage) for stage in graph.stages if stage.kind == "producer"]
    sizes = [size for size in found if size is not None]
    return sum(sizes) if sizes and len(sizes) == len(found) else None


def _size(stage: Stage) -> int | None:
    """No code of the user's is called for it."""
    fn: Any = stage.fn
    if isinstance(fn, partial):  # shared values are given to it
        fn = fn.func
    if not isinstance(fn, Source) or type(fn.items) not in _SIZED:
        return None
    return len(fn.items)


def tell_failure(
    events: Any, name: str, item: Any, error: BaseException, attempts: int, policy: Any
) -> None:
    """An item has failed for good."""
    more = {}
    if events.traces and events.traced < KEEP:  # formatting takes longer than most items
        events.traced += 1
        more["traceback"] = formatted(error, error.__traceback__)
    events.emit(
        "item_failed",
        name,
        item=short(item),
        attempt=attempts,
        error=short(error),
        attempts=attempts,
        policy=policy if isinstance(policy, str) else "dead_letter",
        **more,
    )
    tell_death(events, name, error)


def tell_death(events: Any, name: str, error: BaseException) -> None:
    """A worker has died, if it is that what an item failed with."""
    if isinstance(error, WorkerDied):
        events.emit("worker_died", name, worker=error.pid, error=str(error))


class Calls:
    """When the measured calls of an inline stage began, and how long they took.

    Those of one run are its first ones: what came is counted at its end.
    """

    def __init__(self) -> None:
        self._times: list[float] = []  # number since `_first`, begin, seconds; and so on
        self._first = 0  # the calls before it were told
        self._came = self._here = 0  # when the run began, and calls in it
        self._told = 0.0

    def note(self, came: int, seconds: float) -> None:
        """One was measured, in a run before which so many came."""
        if came != self._came:
            self._came, self._here = came, 0
        self._times += (came + self._here - self._first, perf_counter() - seconds, seconds)
        self._here += 1

    def take(self, came: int, pause: float) -> dict[str, Any] | None:
        """What is to be told of the calls so far; None: nothing, or not yet."""
        now = perf_counter()
        if came == self._first or now - self._told < pause:
            return None
        first, self._first, self._told = self._first, came, now
        times, self._times = self._times, []
        count = came - first
        whole = [times[i : i + 3] for i in range(0, len(times), 3) if times[i] < count]
        packed = array("d", [value for call in whole for value in call]).tobytes()
        return {"first": first, "count": count, "packed": packed}

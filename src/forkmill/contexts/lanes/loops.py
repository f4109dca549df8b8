"""LoopLane: a lane over an event loop, of a coroutine function without a timeout.

    put_many ──▶ Portion (a call: one future, one wake of the loop) ──▶ n tasks at once
                    each: await fn(item) ──done──▶ out-list ──▶ take_many

A call, a future and a wake of the loop an item would take some ten times as long as what is left:
an item is a task of the loop. From CPython 3.12 on its first step is taken where it is made, so one
that never waits takes no turn of the loop, and nobody has to be called back when it is over.

Guarantees: those of a Lane, and never more than the executor's n tasks at once; who else has
calls in the same loop has a turn between the items of two portions.

Invariants:
    * PORT-1  Each item of a portion is handed over once: by its task's end, or, if it has none, by
      the end of the portion that was cancelled.

Threads: the loop's for all that is done with items; else as a Lane's.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Protocol

from ..._process import interrupted
from ..._said import HERE, ITEMS
from .calls import AsyncLane, Host
from .direct import DirectLane
from .emit import Outputs, Raised, is_cancelled, is_own
from .lane import Taken

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from .lane import Work

__all__ = ["LoopLane"]


class Loops(Host, Protocol):
    """An executor with an event loop, as its lanes know it."""

    def _begin_all(
        self, fn: Callable[[Any], Any], items: deque[Any], told: Callable[[Any, Any], bool]
    ) -> Future[Any]: ...


class LoopLane(DirectLane, AsyncLane):
    """A lane over an executor that awaits what a coroutine function gives."""

    def __init__(
        self, executor: Loops, work: Work, notify: Callable[[], None] | None = None
    ) -> None:
        super().__init__(executor, work, notify)
        self._loops = executor

    # ------------------------------------------------------------------ in

    def _work_on_all(self, items: Iterable[Any]) -> None:
        line = deque(items)
        if not line:
            return
        try:
            future = self._loops._begin_all(self._do, line, self._done)
        except Exception as error:
            if interrupted(error):
                raise
            for item in line:
                self._deliver(Taken(item, [], error))
            return
        future._items = line  # type: ignore[attr-defined]
        self._watch(future, self._portion_over)

    def _portion_over(self, future: Future[Any]) -> None:
        with self._lock:
            if future not in self._under_way:
                return  # it was told, or left behind
            self._under_way.discard(future)
            over = self._over
        if over:
            self._deliver(None)  # nobody takes it, but somebody may wait for us
            return
        for item in future._items:  # type: ignore[attr-defined]  # of one that was cancelled
            self._deliver(Taken(item, [], CancelledError()))

    # ------------------------------------------------------------------ in the loop

    async def _do(self, item: Any) -> Any:
        """An item; what it raises is an outcome, but for the end of its task from outside."""
        HERE.set(self.work.origin)  # each task has a context of its own
        try:
            return await self.work.fn(item)
        except BaseException as error:
            if is_cancelled(error) and not is_own(error):
                raise
            return Outputs([Raised(error)])

    def _done(self, item: Any, task: Task[Any] | None) -> bool:
        """An item's task has ended, or there will be none; whether it failed."""
        if task is None or task.cancelled():
            value: Any = Outputs([Raised(CancelledError())])
        else:
            value = task.result()
        self._hand(item, value)
        return type(value) is Outputs


ITEMS.add(LoopLane._do.__code__)  # where fm.emit finds the item

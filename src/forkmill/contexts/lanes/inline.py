"""InlineLane: a lane without threads.

Threads: as a Lane's; the work is done in the one that takes.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from ... import errors
from .lane import Lane, Taken
from .replica import Replica, ended, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .lane import Batch, Work

__all__ = ["InlineLane"]

_HANDFUL = 256  # pieces that InlineLane.take_many makes at most before it hands them over


class InlineLane(Lane):
    """A lane without threads: `take` does the work, in the thread that takes."""

    def __init__(self, work: Work, notify: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._replica = Replica(work)
        self._notify = notify
        self._items: deque[Any] = deque()
        self._stream: tuple[Any, Iterator[Any]] | None = None  # an item and its outputs
        self._ends: deque[Taken] = deque()  # what the replica's end has told
        self._open, self._over = True, False
        self._halted = False

    def put_many(self, items: Iterable[Any], replica: int | None = None) -> None:
        if not self._open:
            raise errors.PoolClosed("this lane takes no more items")
        self._items.extend(items)
        if self._notify is not None:
            self._notify()

    def _take_many(self, timeout: float | None, most: int | None = None) -> list[Taken | Batch]:
        """One after the other, until the time is over, but for one piece at least."""
        deadline = None if timeout is None else monotonic() + timeout
        pieces: list[Taken | Batch] = []
        while (piece := self._next()) is not None:
            pieces.append(piece)
            late = deadline is not None and monotonic() >= deadline
            if late or len(pieces) == most or len(pieces) == _HANDFUL:
                break
        return pieces

    def _next(self) -> Taken | None:
        if self._stream is not None:
            return self._next_output(*self._stream)
        if self._items:
            item = self._items.popleft()
            try:
                if self._replica.work.stream:
                    self._stream = (item, self._replica.pieces(item))
                    return self._next_output(*self._stream)
                return told(item, self._replica.item(item))
            except BaseException as error:
                return Taken(item, [], error)
        if not self._open and not self._over:
            self._over = True
            self._ends.extend(ended(self._replica.finish(self._replica.work.always)))
        return self._ends.popleft() if self._ends else None

    def _next_output(self, item: Any, outputs: Iterator[Any]) -> Taken:
        try:
            if not self._halted:
                return Taken(item, [next(outputs)], None, False)
            if isinstance(outputs, GeneratorType):
                outputs.close()
            failure = None
        except StopIteration:
            failure = None
        except BaseException as error:
            failure = error
        self._stream = None
        return Taken(item, [], failure)

    @property
    def pending(self) -> int:
        return len(self._items) + (self._stream is not None) + len(self._split)

    def end(self) -> None:
        self._open = False
        if self._notify is not None:
            self._notify()

    def halt(self) -> None:
        self._halted = True

    def close(self, patience: float | None = None) -> int:
        self._open, self._over = False, True
        self._items.clear()
        self._split.clear()
        self._ends.clear()
        stream, self._stream = self._stream, None
        try:
            if stream is not None and isinstance(stream[1], GeneratorType):
                stream[1].close()
        finally:
            self._replica.tear_down()
        return 0

    @property
    def ended(self) -> bool:
        left = self._items or self._stream or self._ends or self._split
        return self._over and not left

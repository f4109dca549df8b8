"""The input of a call in the background, pulled in a thread of its own: it may wait for ever.

    flow ──want(number)──▶ thread: next(items), ... ──▶ line ──next──▶ flow; NotYet: it rings

So `stop`, and whatever else ends a call, need not wait for code of the user's that gives items: the
thread is left behind with it, finds nobody to tell, and pulls nothing more.

Guarantees: never more is pulled than was wanted; what was raised comes after the items before.

Threads: the flow's own, but for `_pull`.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from .._process import LoneThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Feeder", "NotYet"]


class NotYet(Exception):
    """There will be an item later, or the end."""


class Feeder:
    """Items of an input, as far as they are there.

    Args:
        items: What is pulled from.
        ring: Called when there is something new. Any thread.
    """

    def __init__(self, items: Iterator[Any], ring: Callable[[], None]) -> None:
        self._items = items
        self._ring = ring
        self._line: deque[Any] = deque()
        self._end: BaseException | None = None  # what comes behind the line
        self._wanted = threading.Semaphore(0)
        self._asked = 0  # items that were wanted and not taken
        self._left = False
        self._thread: LoneThread | None = None

    def want(self, number: int) -> None:
        """So many items have a place."""
        more = number - self._asked
        if more <= 0 or self._end is not None:
            return
        self._asked += more
        if self._thread is None:
            self._thread = LoneThread(self._pull, "forkmill-input")
            self._thread.start()
        self._wanted.release(more)

    def __iter__(self) -> Feeder:
        return self

    def __next__(self) -> Any:
        """The next item; what was raised instead of it.

        Raises:
            StopIteration: There are no more.
            NotYet: It was not there.
        """
        if self._line:
            self._asked -= 1
            return self._line.popleft()
        if self._end is None:
            raise NotYet
        if self._line:  # it came between
            return self.__next__()
        raise self._end

    def leave(self) -> None:
        """Nobody wants more. Idempotent; never waits."""
        self._left = True
        self._wanted.release()

    def _pull(self) -> None:
        """In the thread."""
        while True:
            self._wanted.acquire()
            if self._left:
                break
            try:
                item = next(self._items)
            except BaseException as error:
                self._end = error
                self._ring()
                break
            if self._left:
                break
            self._line.append(item)
            del item
            self._ring()

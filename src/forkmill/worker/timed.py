"""A map's function, whose calls are told to who hears items: `fm.subscribe(..., detail="items")`.

A word a chunk, or every 5 ms where a chunk takes longer: how many calls, and when those that were
measured began and how long they took. Calls under 20 us are not all measured, unless every one is
asked for. The last of a chunk may be taken back by the pool: then the port asks for the word,
before it tells of the outcomes.

Threads: the worker's first one.
"""

from __future__ import annotations

from array import array
from time import perf_counter
from typing import Any

from .. import _native

__all__ = ["Timed"]

_SHORT = 20e-6  # seconds
_EVERY = 64  # one in so many short calls is measured
_TELL = 5e-3
_MOST = 4000  # measured calls in a word, which has to have room (FM_SAID)


class Timed:
    """A function as a map calls it, and the times of its calls in this worker.

    Args:
        fn: The function.
        name: What it is called in events.
        every: Every call is measured, however short.
    """

    def __init__(self, fn: Any, name: str, every: bool) -> None:
        self.fn = fn
        self.name = name
        self.every = every
        self._left = 1  # calls to the next that is measured
        self._calls = self._first = 0  # in all; those before were told
        self._times: list[float] = []  # number since `_first`, begin, seconds; and so on
        self._told = 0.0

    def __reduce__(self) -> Any:
        return Timed, (self.fn, self.name, self.every)

    @property
    def _forkmill_label(self) -> str:
        return self.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        last = _native.last_of_frame(self)
        if self._left > 0 and not last:
            self._calls += 1
            return self.fn(*args, **kwargs)
        begin = perf_counter()
        try:
            return self.fn(*args, **kwargs)
        finally:
            self._note(begin, perf_counter(), last)

    def _note(self, begin: float, end: float, last: bool) -> None:
        seconds = end - begin
        self._times += (self._calls - self._first, begin, seconds)
        self._calls += 1
        self._left = 1 if self.every or seconds >= _SHORT else _EVERY
        if last or end - self._told >= _TELL or len(self._times) >= 3 * _MOST:
            self._told = end
            self.tell()

    def tell(self) -> None:
        """Say what was not said yet."""
        count = self._calls - self._first
        if not count:
            return
        packed = array("d", self._times).tobytes()
        data = {"first": self._first, "count": count, "packed": packed}
        self._first, self._times = self._calls, []
        _native.say(("items", None, self.name, None, data, None))

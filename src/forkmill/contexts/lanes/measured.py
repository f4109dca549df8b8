"""What calls of a stage took: measured where they are made, told with their outputs.

    Measured(fn) ──an output, or a Report of it──▶ the lane ──▶ who counts
    Recorded(fn, Recorder): also when each measured call began, for who hears of items

Threads: a Recorder any; the others one at a time, or what they count is off by a call.
"""

from __future__ import annotations

import _thread
import os
from array import array
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .emit import UNUSUAL

if TYPE_CHECKING:
    Times = tuple[int, int, int, bytes]  # see Recorder.take

__all__ = ["TELL_S", "Measured", "Recorded", "Recorder", "Report"]

_SHORT = 20e-6  # seconds: shorter calls are not all measured
_EVERY = 64  # one in so many short calls is measured
TELL_S = 5e-3  # seconds between two reports of one replica


class Report:
    """An output with the time that calls took, on its way to who counts.

    Attributes:
        value: The output; Report itself: there is none.
        call: Seconds of one call, by chance, of those since the last report.
        seconds: Of all calls since the last report; 0: there was none.
        times: What a Recorder has taken down since, or None.
    """

    __slots__ = ("call", "seconds", "times", "value")

    def __init__(self, value: Any, call: float, seconds: float, times: Times | None = None) -> None:
        self.value = value
        self.call = call
        self.seconds = seconds
        self.times = times

    def __reduce__(self) -> Any:
        if self.times is None:
            return Report, (self.value, self.call, self.seconds)
        return Report, (self.value, self.call, self.seconds, self.times)


class Measured:
    """A function that measures its calls; where they are short, one in many.

    What was measured goes back with an output now and then, as a Report: telling costs more than a
    short call. A lane may make the calls that are not measured itself (see `in_worker`).
    """

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        self.left = 1  # calls to the next that is measured
        self.every = 1  # how many a measured one stands for
        self.seconds = 0.0  # not told yet
        self.calls = 0  # nor these, as far as it is known
        self.call = 0.0  # one of them
        self.told = 0.0

    def __call__(self, item: Any) -> Any:
        self.left -= 1
        if self.left > 0:
            return self.fn(item)
        start = perf_counter()
        value = self.fn(item)
        end = perf_counter()
        if type(value) in UNUSUAL:
            self.left = 1
            return value
        self._pick(end - start, end, self.every)
        self.left = self.every = _EVERY if end - start < _SHORT else 1
        if end - self.told < TELL_S:
            return value
        seconds, self.seconds, self.calls, self.told = self.seconds, 0.0, 0, end
        return Report(value, self.call, seconds)

    def _pick(self, call: float, end: float, stands_for: int) -> None:
        """A call was measured. Each has the same chance to be told: the one that it is due at is
        nearly always a long one. The clock's last digits are the dice."""
        self.seconds += call * stands_for
        calls = self.calls = self.calls + stands_for  # another thread may set it to 0
        if int(end * 1e9) % calls < stands_for:
            self.call = call


class Recorder:
    """Takes down when each measured call of a replica began, and how long it took.

    Args:
        every: Every call is to be measured, however short.
    """

    def __init__(self, every: bool) -> None:
        self.every = every
        self._lock = _thread.allocate_lock()  # threads may share a replica
        self._times: list[float] = []  # number since `_first`, begin, seconds; and so on
        self._number = -1  # of the last call that was measured
        self._ahead = 1  # so many calls behind it the next one will be
        self._first = 0

    def __reduce__(self) -> Any:
        return Recorder, (self.every,)

    def note(self, begin: float, seconds: float, ahead: int = 1) -> None:
        """A call was measured, and so many calls behind it the next one will be."""
        with self._lock:
            self._number = number = self._number + self._ahead
            self._ahead = ahead
            self._times += (number - self._first, begin, seconds)

    def behind(self, calls: int) -> None:
        """The next one that is measured is so many calls later than was said."""
        with self._lock:
            self._ahead += calls

    def passed(self, calls: int) -> None:
        """So many calls behind the last one that was measured were made, too."""
        with self._lock:
            self._number += calls
            self._ahead -= calls

    def take(self) -> Times | None:
        """What is there, once: the pid, the number of the first call, how many, and their times."""
        with self._lock:
            times, self._times = self._times, []
            first, self._first = self._first, self._number + 1
        count = self._first - first
        return (os.getpid(), first, count, array("d", times).tobytes()) if count else None


class Recorded(Measured):
    """A Measured of which a Recorder hears."""

    def __init__(self, fn: Any, recorder: Recorder) -> None:
        super().__init__(fn)
        self.recorder = recorder
        self.step = 1  # what `left` is after a short call: a few that come alone are measured

    def __call__(self, item: Any) -> Any:
        self.left -= 1
        if self.left > 0:
            return self.fn(item)
        recorder = self.recorder
        if self.left < 0:  # a chain has counted one call too few
            recorder.behind(-self.left)
        stood_for, self.left, self.every = self.every, 1, 1  # so it is, if it raises
        start = perf_counter()
        try:
            value = self.fn(item)
        except BaseException:
            recorder.note(start, perf_counter() - start)
            raise
        end = perf_counter()
        call = end - start
        if type(value) in UNUSUAL:
            recorder.note(start, call)
            return value
        if call >= _SHORT:
            self.step = 1
        elif not recorder.every:
            self.left = self.every = self.step
            self.step = min(2 * self.step, _EVERY)
        recorder.note(start, call, self.left)
        self._pick(call, end, stood_for)
        if end - self.told < TELL_S:
            return value
        seconds, self.seconds, self.calls, self.told = self.seconds, 0.0, 0, end
        return Report(value, self.call, seconds, recorder.take())

    def rest(self) -> Times | None:
        """What was not told yet, at the end."""
        self.recorder.passed(self.every - self.left)
        return self.recorder.take()

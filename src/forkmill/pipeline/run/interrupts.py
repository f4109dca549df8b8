"""Ctrl-C while a run works in the main thread: the first one stops the sources, the second raises.

    run:     [ ours ............................................ ]
    stream:  [ ours ] user [ ours ] user [ ours, idle where the user is, ours, idle, ours ] user

A stream's handler is put in place and taken away around each output, as the user's code between
two of them is none of ours. Where that would cost more than all else (who takes the outputs is
quick, and so are the stages) it stays for a burst of outputs; while the user's code has the thread
it is idle, and does what Python's own does.

Threads: everything in the main thread, else nothing is done; `replaced` in any.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` without its enums
import sys
from typing import TYPE_CHECKING, Any

from ..._frames import our_locals
from ...runs.interrupts import Handler
from .sources import INTERRUPTED

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from .state import Run

__all__ = ["BURSTS", "Interrupts"]


BURSTS: set[CodeType] = set()  # of functions that go on with a run, while the handler stays


class Interrupts(Handler):
    """The handler of one run."""

    def __init__(self, driver: Run[Any]) -> None:
        self.driver = driver
        self._working = False  # until `__exit__` the run has the thread

    def __enter__(self) -> None:
        self._working = True
        self.stay()

    def stay(self) -> None:
        """Be in place, for a burst."""
        before = self.come()
        if before is not None:
            self.driver.may_interrupt = not self._in_place and callable(before)

    def __exit__(self, *exc: object) -> None:
        """Idempotent: who was broken off in here, or in `__enter__`, does it again. In another
        thread nothing can be taken away: it stays, idle, until the next run is over."""
        self._working = False
        self.go()

    def rests(self) -> bool:
        """Whether the stream is idle in this thread, or over."""
        return not self.has(sys._getframe())

    def has(self, frame: FrameType | None) -> bool:
        """Whether the run has the main thread, which is at this frame."""
        while frame is not None and not self._working:
            if frame.f_code in BURSTS and our_locals(frame).get("interrupts") is self:
                return True
            frame = frame.f_back
        return self._working

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.has(frame):
            _signal.default_int_handler(number, frame)
        if self.driver.interrupted:
            self.driver.kill()
            raise KeyboardInterrupt
        self.driver.interrupted = True
        self.driver.stop()
        while frame is not None:
            if frame.f_code in INTERRUPTED:
                raise KeyboardInterrupt  # inside a source: it ends here (see tap)
            frame = frame.f_back

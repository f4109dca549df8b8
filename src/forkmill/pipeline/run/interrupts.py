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

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from ..._frames import our_locals
from .sources import INTERRUPTED

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from .state import Run

__all__ = ["BURSTS", "Interrupts"]


BURSTS: set[CodeType] = set()  # of functions that go on with a run, while the handler stays


class Interrupts:
    """Python's own handler would raise anywhere in the driver. Another handler than Python's is the
    user's, and stays."""

    def __init__(self, driver: Run[Any]) -> None:
        self.driver = driver
        self._in_place = False
        self._working = False  # until `__exit__` the run has the thread

    def __enter__(self) -> None:
        self._working = True
        self.stay()

    def stay(self) -> None:
        """Be in place, for a burst."""
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGINT)
        if handler == self._handle:
            return
        ours = handler is signal.default_int_handler or _rests(handler)
        self.driver.may_interrupt = not ours and callable(handler)
        self._in_place = ours  # first: the next call may be the last one
        if ours:
            signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *exc: object) -> None:
        """Idempotent: who was broken off in here, or in `__enter__`, does it again. In another
        thread nothing can be taken away: it stays, idle, until the next run is over."""
        self._working = False
        if self._in_place and threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) == self._handle:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self._in_place = False

    def replaced(self) -> bool:
        """Whether somebody else has taken its place, in the middle of a burst."""
        return self._in_place and signal.getsignal(signal.SIGINT) != self._handle

    def has(self, frame: FrameType | None) -> bool:
        """Whether the run has the main thread, which is at this frame."""
        while frame is not None and not self._working:
            if frame.f_code in BURSTS and our_locals(frame).get("interrupts") is self:
                return True
            frame = frame.f_back
        return self._working

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.has(frame):
            signal.default_int_handler(number, frame)
        if self.driver.interrupted:
            self.driver.kill()
            raise KeyboardInterrupt
        self.driver.interrupted = True
        self.driver.stop()
        while frame is not None:
            if frame.f_code in INTERRUPTED:
                raise KeyboardInterrupt  # inside a source: it ends here (see tap)
            frame = frame.f_back


def _rests(handler: Any) -> bool:
    """Whether a handler is that of a stream which is idle in this thread, or over."""
    interrupts = getattr(handler, "__self__", None)
    return isinstance(interrupts, Interrupts) and not interrupts.has(sys._getframe())

"""Ctrl-C while a run works in the main thread: noted by a handler of ours, not raised in our code.

    run:       [ ours ............................... ]  raised at its end, if it was noted
    iterator:  [ ours ] user's [ ours ] user's [ ours ]

    Ctrl-C     what follows
    first      the run is stopped: nothing is begun any more, what runs is finished. Raised only in
               code of the user's that gives items (`pulls`): that may wait for ever.
    second     the run is killed, and KeyboardInterrupt is raised where it comes

Guarantees:
    * Nothing of a run is broken off halfway by the first one: no outcome is lost by it.
    * Who has noted one raises it once: by `check`, or by `Late` where an exception would be lost.
    * Another handler than Python's own is the user's, and stays.

Threads: everything in the main thread; elsewhere nothing is done, as no signal comes there.
"""

from __future__ import annotations

import _thread
import signal
import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Interrupts", "Late"]


class Stoppable(Protocol):
    """What Ctrl-C ends."""

    def stop(self) -> None: ...
    def kill(self) -> None: ...


class Interrupts:
    """The handler of one run; in place between `__enter__` and `__exit__`, which may be nested.

    Attributes:
        noted: Ctrl-C came.
        pulls: The main thread is in the user's code that gives items.
    """

    def __init__(self) -> None:
        self.noted = False
        self.pulls = False
        self._told = False  # it was raised
        self._run: Stoppable | None = None
        self._depth = 0
        self._in_place = False

    def guards(self, run: Stoppable) -> None:
        """That is the run. It may have been interrupted already."""
        self._run = run
        if self.noted:
            run.stop()

    def __enter__(self) -> None:
        self._depth += 1
        try:
            if self._depth == 1:
                self._come()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth > 0 or not self._in_place:
            return
        try:
            self._go()
        except BaseException:  # of another signal's handler
            self._go()
            raise

    def _come(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGINT)
        if handler is signal.default_int_handler or _rests(handler):
            self._in_place = True  # first: the next call may be the last one
            signal.signal(signal.SIGINT, self._handle)

    def _go(self) -> None:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) == self._handle:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self._in_place = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._depth:  # it could not be taken away
            signal.default_int_handler(number, frame)
        first, self.noted = not self.noted, True
        if self._run is not None:
            if first:
                self._run.stop()
            else:
                self._run.kill()
        if not first or self.pulls:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise what was noted and not raised yet."""
        if self.owed():
            raise KeyboardInterrupt

    def owed(self) -> bool:
        """Whether one is to be raised by who asks, or is raised just now: once."""
        owed = self.noted and not self._told
        self._told = self._told or owed
        return owed


def _rests(handler: Any) -> bool:
    """Whether a handler is one of ours that is of no use any more."""
    interrupts = getattr(handler, "__self__", None)
    return isinstance(interrupts, Interrupts) and not interrupts._depth


class _Flag(int):
    """A signal's number; its attribute flags that signal, without a call that would handle it."""

    set = property(_thread.interrupt_main)


_SIGINT = _Flag(signal.SIGINT)


class Late:
    """Lives in the frame of a generator that may be dropped, and ends after all else of it.

    What is raised while a generator is finalized is printed and lost. So what was noted then is
    Ctrl-C anew, for the code that has dropped it: no other is run between here and there.
    """

    __slots__ = ("_interrupts",)

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __del__(self) -> Any:
        return self._interrupts.owed() and _SIGINT.set

"""Ctrl-C while a run works in the main thread: noted by a handler of ours, not raised in our code.

    Handler             takes the place of Python's own, and gives it back: for all shapes of runs
    ├─ Interrupts       what follows of it for maps and graphs (below)
    ├─ pipeline/run/interrupts.py    pipelines: sources end first; stays for a burst of outputs
    └─ stategraph/drive.py           state graphs: between two steps, or inside of a node

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

import _signal  # type: ignore[import-not-found]  # `signal` makes enums: 35 us a time
import _thread
import threading
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Handler", "Interrupts", "Late"]

_OWN = _signal.default_int_handler


class Stoppable(Protocol):
    """What Ctrl-C ends."""

    def stop(self) -> None: ...
    def kill(self) -> None: ...


class Handler:
    """What is called for SIGINT while it is in place: `_handle`, a subclass's.

    Python's own would raise anywhere in our code. Another handler than that is the user's, and
    stays.
    """

    _in_place = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError

    def rests(self) -> bool:
        """Whether it is of no use here, so that another of ours may take its place."""
        return not self._in_place

    def come(self) -> Any:
        """Be in place, in the main thread; what was there, or None."""
        if threading.current_thread() is not threading.main_thread():
            return None
        before = _signal.getsignal(_signal.SIGINT)
        owner = _owner(before)
        if owner is self:
            return None
        ours = before is _OWN or (owner is not None and owner.rests())
        self._in_place = ours  # first: the next call may be the last one
        if ours:
            _signal.signal(_signal.SIGINT, self._handle)
        return before

    def go(self) -> None:
        """Give the place back. In another thread it cannot: it stays, and rests."""
        try:
            self._give_back()
        except BaseException:  # of another signal's handler
            self._give_back()
            raise

    def _give_back(self) -> None:
        if self._in_place and threading.current_thread() is threading.main_thread():
            if not self.replaced():
                _signal.signal(_signal.SIGINT, _OWN)
            self._in_place = False

    def replaced(self) -> bool:
        """Whether somebody else has taken its place."""
        return self._in_place and _owner(_signal.getsignal(_signal.SIGINT)) is not self


def _owner(handler: Any) -> Handler | None:
    """Whose a handler is, if it is one of ours."""
    owner: Any = handler.__self__ if type(handler) is MethodType else None
    return owner if issubclass(type(owner), Handler) else None


class Interrupts(Handler):
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

    def guards(self, run: Stoppable) -> None:
        """That is the run. It may have been interrupted already."""
        self._run = run
        if self.noted:
            run.stop()

    def leave(self) -> None:
        """The run is over: it goes without a garbage collection, and its large values with it."""
        self._run = None

    def __enter__(self) -> None:
        self._depth += 1
        try:
            if self._depth == 1:
                self.come()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.go()

    def rests(self) -> bool:
        return not self._depth

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._depth:  # it could not be taken away
            _OWN(number, frame)
        first, self.noted = not self.noted, True
        run = self._run
        if run is not None:
            if first:
                run.stop()
            else:
                run.kill()
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


class _Flag(int):
    """A signal's number; its attribute flags that signal, without a call that would handle it."""

    set = property(_thread.interrupt_main)


_SIGINT = _Flag(_signal.SIGINT)


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

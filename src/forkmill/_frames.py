"""Frames of threads that go on meanwhile: who runs, where, and with which variables.

CPython makes the object of a running frame when somebody asks for it, and copies its variables
(`f_locals`) for each look. What does that must not be broken off: if the other thread runs in the
middle of it the frame may end, its memory is the next one's, and the process dies of SIGSEGV some
time later. Three things do it:

    * CPython 3.11 collects garbage wherever it allocates, and a finalizer gives the GIL away. Plain
      `sys._current_frames()` is enough for that. From 3.12 on it collects between two bytecodes.
    * What a generator waits in can be asked of one that waits alone, and it may go on at any time.
    * Before 3.13 a copy of the variables is kept in the frame: what the next one replaces may have
      a finalizer.

So each function here is one call of C, in which nothing is collected: `gc.disable`, the look and
`gc.enable` are elements of one iterator of C functions, and no thread and no signal handler gets in
between. Of frames of ours no copy is left behind, which would keep a task's values alive as well.

Guarantees: a frame that was given out may be looked at for as long as one likes, its thread may go
    on or end; its variables are those of one moment.
Invariants: nobody else in this package asks for frames of others, or for `f_locals`.

Threads: any.
"""

from __future__ import annotations

import gc
import sys
from itertools import chain, compress, filterfalse, tee
from operator import attrgetter, call, methodcaller
from types import GeneratorType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

__all__ = [
    "back",
    "delegate",
    "frame_of",
    "frame_of_own",
    "locals_of",
    "our_locals",
    "running_threads",
    "stack",
    "waiting",
]

_OPTIMIZED = 0x01  # of a code object: its variables are not those of a module or class
_ALL = (sys._current_frames,)
_back = attrgetter("f_back")
_locals = attrgetter("f_locals")
_waiting = attrgetter("gi_frame")
_delegate = attrgetter("gi_yieldfrom")
_runs = attrgetter("gi_running")


def _undisturbed(steps: Iterator[Any]) -> list[Any]:
    """The elements of an iterator that runs no Python; nothing is collected meanwhile."""
    was, then, failed = tee(map(call, (gc.isenabled,)), 3)
    off, on = map(call, (gc.disable,)), map(call, compress((gc.enable,), then))
    try:
        was_on, _, *found = chain(was, off, steps, on)
    except BaseException:
        if next(failed):
            gc.enable()
        raise
    return found[:-1] if was_on else found


_look: Callable[[Iterator[Any]], list[Any]] = _undisturbed if sys.version_info < (3, 12) else list


def running_threads() -> set[int]:
    """The identifiers of all threads that run Python, the caller's among them."""
    found: set[int] = _look(map(set, map(call, _ALL)))[0]
    return found


def frame_of(thread: int) -> FrameType | None:
    """Where a thread is; None: it does not run Python, or there is none."""
    frame: FrameType | None = _look(map(methodcaller("get", thread), map(call, _ALL)))[0]
    return frame


def back(frame: FrameType) -> FrameType | None:
    """Who has called this one; None: nobody."""
    caller: FrameType | None = _look(map(_back, (frame,)))[0]
    return caller


def stack(thread: int) -> Iterator[FrameType]:
    """The frames of a thread, the innermost first. It may go on meanwhile: then the outer ones are
    those of when the last inner one was returned to."""
    frame = frame_of(thread)
    while frame is not None:
        yield frame
        frame = back(frame)


def waiting(run: Any, codes: Any) -> FrameType | None:
    """The frame of a generator with one of these codes, if it has begun to wait and is not over."""
    if getattr(run, "gi_code", None) not in codes:
        return None
    found = _look(map(_waiting, filterfalse(_runs, (run,))))
    return found[0] if found else None


def frame_of_own(run: Any) -> FrameType | None:
    """The frame of a generator that no other thread runs meanwhile; None: it is over."""
    frame: FrameType | None = _look(map(_waiting, (run,)))[0]
    return frame


def delegate(run: Any) -> Any:
    """What a generator waits in (`yield from`); None: nothing, or it is no generator that waits.

    Of one that runs CPython 3.11 cannot tell: it takes what lies behind the current instruction,
    which may be a counter, for the next one, and the stack of who runs for that of who waits.
    """
    if type(run) is not GeneratorType:
        return None
    found = _look(map(_delegate, filterfalse(_runs, (run,))))
    return found[0] if found else None


def locals_of(frame: FrameType) -> dict[str, Any]:
    """A copy of the variables of any frame."""
    scope: dict[str, Any] = _look(map(dict, map(_locals, (frame,))))[0]
    return scope


def our_locals(frame: FrameType) -> dict[str, Any]:
    """A copy of the variables of a function that never asks for `locals()`; none is left there."""
    code: CodeType = frame.f_code
    if sys.version_info >= (3, 13) or not code.co_flags & _OPTIMIZED:
        return locals_of(frame)
    kept, left = tee(map(_locals, (frame,)))
    scope: dict[str, Any] = _look(chain(map(dict, kept), map(dict.clear, left)))[0]
    return scope

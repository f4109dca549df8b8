"""What a running task says before its outcome: `emit`, and whom it speaks for.

    a task ──emit──▶ HERE: the run, the name ──▶ the stream of this process (events/)
                                             └─▶ a word to the process that the task is for
                                                 (native/child.pxi, csrc/src/said.c)

Guarantees:
    * Where nobody listens nothing is made: a look at a list, and in a worker at one byte of memory
      that its pool writes.
    * Who listens changes nothing of the task: what cannot be sent is told as text, what finds
      no room for a second is lost and counted, and nothing is raised.
    * What a task said is on the stream before anything that is told of its outcome.

A worker imports this, if at all: it must stay small.

Threads: any.
"""

from __future__ import annotations

import os
import sys
from _contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ._frames import our_locals
from ._process import STREAM, VOICE, interrupted
from .errors import kept_in, mark_of

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Protocol

    Origin = tuple[str | None, str | None, dict[str, Any], Any]

    class Lent(Protocol):
        """A run whose code works in a thread by turns with the code that takes its outputs.

        Attributes:
            outer: What HERE says for both.
            origin: For whom the former works.
        """

        outer: Origin | None
        origin: Origin

        def frame_here(self) -> FrameType | None:
            """The frame of the run, if it has this thread now."""


__all__ = [
    "HERE",
    "ITEMS",
    "LENT",
    "emit",
    "here",
    "item_here",
    "known_here",
    "short",
    "told",
    "within",
]

# For whom the code that runs here works: the id of the run, the name of its stage or node, what
# else its words tell, and, for a run that began here, whom that works for; None: for nobody we
# know. Coroutines and their tasks inherit it.
HERE: ContextVar[Origin | None] = ContextVar("forkmill.here", default=None)

# Those that do not set HERE for their turns, which would cost too much.
LENT: list[Lent] = []

# Functions of ours that call a stage's function with their local `item`.
ITEMS: set[CodeType] = set()
_FAR = 100  # frames that are looked at for one of them


def emit(value: object) -> None:
    """Tell who listens something, from inside a task, before it is done. ::

        def train(epochs):
            for epoch in range(epochs):
                ...
                fm.emit({"epoch": epoch, "loss": loss})

    Subscribers (`sinks=`, `fm.subscribe`) get an event of the kind "said", whose data has the
    value; its `run`, `name` (the stage, the node, or the function) and `item` tell who said it, as
    far as that is known. It works in every context. Where nobody listens it does nothing, and costs
    next to nothing.

    Words come in the order in which a task says them, and before what is told of its outcome, also
    if its worker dies; a task that is tried again says them again. In a worker process 256 KiB of
    them may wait to be fetched, which happens ten times a second and more often while there are
    many. One that finds no room for a second is lost, and a "gap" tells so.

    Args:
        value: What could be a task's result. From another process a copy arrives; of what cannot be
            sent the data has the repr, and the `error`. Do not change it afterwards.

    May be called from any thread; the threads that a task starts speak for it in worker processes.
    Raises nothing.
    """
    if VOICE and VOICE[0].listens():
        _send(value)
    if STREAM:
        STREAM[0].say(value)


class within:
    """In here code works for this run: what it says, and runs that it begins, are told so.

    Args:
        run: The id of the run's Emitter.
        name: Of the stage or node.
        data: What else its words tell; plain and small.
    """

    __slots__ = ("_origin", "_token")

    def __init__(self, run: str | None, name: str | None = None, /, **data: Any) -> None:
        self._origin: Origin = (run, name, data, None)

    def __enter__(self) -> None:
        self._token = HERE.set(self._origin)

    def __exit__(self, *exc: object) -> None:
        HERE.reset(self._token)


def told(kind: str, run: str, name: str, data: dict[str, Any]) -> None:
    """An event of a run, told where its code runs: in its own process, or in a worker."""
    if STREAM and STREAM[0].known(run):
        STREAM[0].told(kind, run, name, data)
    elif VOICE:
        VOICE[0].say((kind, run, name, None, data, None))


def known_here() -> Origin | None:
    """For whom the code that runs here works, as far as that is known in this process."""
    origin = HERE.get()
    lent = {one.frame_here(): one for one in tuple(LENT) if one.outer is origin} if LENT else {}
    lent.pop(None, None)
    frame = sys._getframe() if lent else None
    while frame is not None and frame not in lent:  # the innermost
        frame = frame.f_back
    return origin if frame is None else lent[frame].origin


def here() -> Origin | None:
    """For whom the code that runs here works."""
    origin = known_here()
    if origin is None and VOICE:
        origin = mark_of(VOICE[0].speaker(), "_forkmill_origin")
    return origin


def _outside() -> Origin:
    """For whom in the process that this one works for: runs that began here are unknown there."""
    origin = known_here()
    while origin is not None and STREAM and STREAM[0].known(origin[0]):
        origin = origin[3]
    if origin is None:
        speaker = VOICE[0].speaker()
        origin = mark_of(speaker, "_forkmill_origin")
        if origin is None:
            return None, kept_in(speaker, "__qualname__"), {}, None
    return origin


def item_here() -> str | None:
    """The item that a stage's function was called with, as short text, if that is how we came."""
    frame = sys._getframe(1)
    for _ in range(_FAR):
        if frame.f_code in ITEMS:
            item = our_locals(frame).get("item")
            return None if item is None else short(item)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def short(value: Any) -> str:
    """An item as text for an event."""
    try:
        text = repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
    return text if len(text) <= 200 else text[:197] + "..."


def _send(value: Any) -> None:
    """To the process that this one works for."""
    voice = VOICE[0]
    run, name, data, _ = _outside()
    item = item_here()
    try:
        voice.say(("said", run, name, item, data, value))
    except Exception as error:
        if interrupted(error):
            raise
        told = {**data, "error": f"{type(error).__name__}: {short(str(error))}"}
        voice.say(("said", run, name, item, told, short(value)))


def _after_fork_in_child() -> None:
    LENT.clear()
    if HERE.get() is not None:
        HERE.set(None)  # the child works for who gives it work


os.register_at_fork(after_in_child=_after_fork_in_child)

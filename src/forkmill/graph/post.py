"""A group of a plan in one run: what is called, where, and with what.

Threads: all belongs to the thread of the flow, but for `call`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..contexts import Work

__all__ = ["Post"]


class Post:
    """A group of a plan in one run.

    Attributes:
        group: The group.
        home: Where it runs.
        way: The way there, once that is open.
        call: Called with an item; what it gives is the outcome.
        getter: Makes an item of slots (straight: of what the call's items are).
        first: The lowest number of its steps.
        batch: How many items a call gets, in a list; 0: one, as it is.
        timeout: Seconds a call may take.
        usual: It is called with what is in the slots, and nothing else is to be done before.
        aio: `call` is a coroutine function.
        steady: Nothing that `call` holds can change but functions: the next run may use it.
        label: What messages call it.
        copies: The slots of constants that an item brings a copy of.
        heard: Who hears of its calls; or None.
        paths: What its steps are called, with the path that leads to their level.
    """

    __slots__ = (
        "aio", "asked", "batch", "call", "copies", "first", "getter", "group", "heard", "hoard",
        "home", "label", "nest", "parts", "paths", "row", "steady", "straight", "timeout",
        "usual", "way", "work", "writes",
    )  # fmt: skip

    way: Any
    call: Any
    getter: Callable[[Any], Any]

    def __init__(self, group: Any, home: Any, label: str) -> None:
        self.group = group
        self.home = home
        self.first: int = group.steps[0].number
        self.batch = 0
        self.timeout: float | None = None
        self.aio = False
        self.steady = False
        self.usual = False
        self.label = label
        self.copies: tuple[int, ...] = ()
        self.heard: Any = None
        self.paths: tuple[str, ...] = ()
        self.work: Work | None = None  # made before its executor, which may inherit it
        self.hoard: list[tuple[Any, Any]] = []  # batch: (frame, item) that wait for more
        self.row = False  # `call` gives the row, a dict of all that is wanted
        self.straight = False  # it is all of its plan: frames are numbers
        self.writes: tuple[int, ...] = group.writes
        self.nest: Any = None  # a nested map: it is expanded, not called
        self.asked: Any = None  # the cache that is asked here before anything is sent
        self.parts: dict[frozenset[int], tuple[bool, dict[int, int]]] = {}

    def make_work(self) -> Work:
        """What its lane does."""
        if self.work is None:
            origin = None if self.heard is None else self.heard.origin
            self.work = self.call.work(timeout=self.timeout, origin=origin)
        return self.work

    def losing(self, lost: frozenset[int]) -> tuple[bool, dict[int, int]]:
        """What comes of it if slots that it reads are lost.

        Returns:
            Whether there is a step that needs none of them; and by which lost slot each slot is
            lost that it would have written: by the one that was lost first.
        """
        found = self.parts.get(lost)
        if found is None:
            found = self.parts[lost] = _losing(self.group, lost)
        return found


def _losing(group: Any, lost: frozenset[int]) -> tuple[bool, dict[int, int]]:
    by = {slot: slot for slot in lost}
    left = False
    for step in group.steps:
        causes = [by[arg.slot] for arg in step.args if arg.slot in by]
        if causes:
            by.update(dict.fromkeys(step.writes, causes[0]))
        else:
            left = True
    return left, {slot: by[slot] for slot in group.writes if slot in by}

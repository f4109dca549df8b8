"""What a flow goes through, and what goes through it: layouts, levels, frames.

    Layout   a plan, with a post for each of its groups
    Level    where items come from, and where their rows go: the call's own, or a nested map's
    Frame    one item on its way: its values, and what each group still waits for

Threads: all belongs to the thread of the flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .handing import handle_of
from .rows import Maker, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .loss import Loss
    from .plan import Plan
    from .post import Post

__all__ = ["Frame", "Inner", "Layout", "Level", "Rows", "Values"]


@dataclass
class Layout:
    """A plan with its posts: what a level needs to know.

    Attributes:
        plan: The plan.
        posts: One a group, in topological order.
        counts: How many groups each of them waits for.
        roots: Those that wait for none.
        base: The slots of a new frame: constants where they are, None elsewhere.
        mapped: The slots that an item fills, in its order.
        outputs: (name, slot) of what is wanted.
        straight: It is one group, and no nested map: items need no frame.
        isolated: A nested map's: some of its groups, at any depth, run in other processes.
    """

    plan: Plan
    posts: list[Post]
    counts: list[int]
    roots: list[Post]
    base: list[Any]
    mapped: tuple[int, ...]
    outputs: tuple[tuple[str, int], ...]
    straight: bool = False
    isolated: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Those of what is wanted."""
        return tuple(name for name, _ in self.outputs)

    @cached_property
    def flat(self) -> bool:
        """There are groups, and none of them is a nested map."""
        return bool(self.posts) and all(post.nest is None for post in self.posts)

    @cached_property
    def joins(self) -> bool:
        """Some group waits for more than one."""
        return max(self.counts, default=0) > 1

    @cached_property
    def rows(self) -> Callable[[list[Frame], int], Rows]:
        """Makes the rows of frames that are through, and of the first of them the index."""
        if len(self.outputs) != 1:
            made = rows_of(self.outputs)
            return lambda frames, first: Rows(made(frames), first)
        ((_, slot),) = self.outputs
        maker = Maker(self.outputs, (slot,))
        return lambda frames, first: Values([one.slots[slot] for one in frames], first, maker)


@dataclass
class Inner:
    """A nested map, as its group knows it.

    Attributes:
        layout: What is done with one inner item.
        over: Slots outside that are mapped, in map_over's order.
        passed: (slot outside, slot inside) of what is the same for all inner items of one outer
            item, and not for the whole run.
        mode: "zip" or "product".
        on_error: "raise" or "skip".
    """

    layout: Layout
    over: tuple[int, ...]
    passed: tuple[tuple[int, int], ...]
    mode: str
    on_error: str


class Rows(list[Any]):
    """A block of rows that follow each other, without their indices.

    Attributes:
        first: The index of the first.
    """

    __slots__ = ("first",)

    def __init__(self, rows: list[Any], first: int) -> None:
        super().__init__(rows)
        self.first = first

    def rows(self) -> list[dict[str, Any]]:
        """The rows."""
        return self


class Values(Rows):
    """As Rows, and it holds what calls gave, of which rows can be made.

    Attributes:
        maker: Makes rows of such values, and columns.
    """

    __slots__ = ("maker",)

    def __init__(self, values: list[Any], first: int, maker: Maker) -> None:
        super().__init__(values, first)
        self.maker = maker

    def rows(self) -> list[dict[str, Any]]:
        return self.maker.rows(self)


class Level:
    """Where items come from, and where their rows go."""

    __slots__ = (
        "begun", "depth", "done", "handles", "items", "layout", "limit", "loss", "on_error",
        "outer", "over", "own", "passed", "path", "raised", "rows", "running", "spent",
    )  # fmt: skip

    def __init__(
        self, layout: Layout, items: Iterator[Any], on_error: str, path: str, depth: int = 0
    ) -> None:
        self.layout = layout
        self.items: Iterator[Any] = items
        self.on_error = on_error
        self.path = path
        self.depth = depth
        self.begun = 0  # items
        self.running: dict[int, Any] = {}  # index -> frame
        self.done = bytearray()  # where spans are swept: 1 for an index that is through
        self.spent = False  # there are no more items
        self.raised: BaseException | None = None  # by the items, after those before it
        self.limit: int | None = None  # "raise": the first item that failed
        self.loss: Loss | None = None  # what of it
        self.over = False
        self.outer: tuple[Frame, Post] | None = None
        self.passed: tuple[tuple[int, Any], ...] = ()
        self.rows: dict[int, list[Any]] = {}  # of an inner level
        self.handles: dict[int, Any] = {}  # slot -> what of `passed` goes to other processes
        self.own: list[Any] = []  # those of them that end with this level

    def sent(self, slots: list[Any]) -> list[Any]:
        """An item's slots as they go to another process."""
        if self.handles:
            slots = slots.copy()
            for slot, handle in self.handles.items():
                slots[slot] = handle
        return slots

    def hand(self, handles: dict[int, Any]) -> None:
        """Have values of `passed` sent by handles: those that are there, by slot, and new ones."""
        self.handles = handles
        for slot, value in self.passed:
            if slot not in handles and (handle := handle_of(value)) is not None:
                self.own.append(handle)
                handles[slot] = handle

    def let_go(self) -> None:
        """Nothing of it is sent any more. Idempotent."""
        while self.own:
            self.own.pop().close()

    def is_over(self) -> bool:
        """FLOW-2."""
        if self.done and self.done.find(0, 0, self.limit) >= 0:
            return False
        if self.limit is None:
            return self.spent and not self.running
        return not self.running or min(self.running) > self.limit


class Frame:
    """One item on its way."""

    # What most items never have is that of the class.
    copied: tuple[int, ...] = ()  # slots of constants that are its own copies
    bad: dict[int, int] | None = None  # lost slot -> the step that it is lost by
    losses: dict[int, Any] | None = None  # step -> its failure
    limit: int | None = None  # "raise": steps behind this one are not called
    left: list[int]  # of each group, how many it waits for still; where one waits for several

    def __init__(self, level: Level, index: int, item: tuple[Any, ...]) -> None:
        layout = level.layout
        self.level = level
        self.index = index
        self.slots = slots = layout.base.copy()
        for slot, value in zip(layout.mapped, item, strict=False):
            slots[slot] = value
        if level.passed:
            for slot, value in level.passed:
                slots[slot] = value
        self.open = len(layout.posts)
        if layout.joins:
            self.left = layout.counts.copy()

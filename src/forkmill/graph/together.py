"""Frames that go from group to group together: what came back at once is handed over at once.

    outcomes of a way ──by group──▶ slots ──▶ the groups that wait: one `put_all` each
                                          └─▶ the frames that are through: blocks of rows

An item's own steps (see `frames`) take several times as long as what is left of them here. They
are for what is not usual: losses, caches, nested maps, copies.

Guarantees: each frame comes to what it would come to alone.

Threads: all belongs to the thread of the flow.
"""

from __future__ import annotations

from collections import deque
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .frames import UNUSUAL, Frames
from .levels import Frame, Rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .levels import Level
    from .post import Post
    from .ways import Outcome

__all__ = ["Together"]

_index_of = attrgetter("index")


class Together(Frames):
    """Many items on their way through groups."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._blocks: deque[Rows] = deque()

    def _begin_all(self, level: Level, items: list[Any]) -> None:
        """Begin items of a level none of whose groups is a nested map."""
        first, posts = level.begun, level.layout.roots
        frames = [Frame(level, index, item) for index, item in enumerate(items, first)]
        level.running.update(enumerate(frames, first))
        level.begun += len(frames)
        for post in posts:
            self._start_all(post, frames)
        self._run_ready()

    def _start_all(self, post: Post, frames: list[Frame]) -> None:
        """All that a group waited for is there, in frames that count and have lost nothing."""
        if not post.usual:
            self._ready.extend(zip(frames, repeat(post)))
            return
        get = post.getter
        if post.home.isolated and self._nested:
            items = [get(frame.level.sent(frame.slots)) for frame in frames]
        else:
            items = [get(frame.slots) for frame in frames]
        post.way.put_all(post, frames, items)
        self._units += len(frames)
        if self._tell is not None:
            for frame in frames:
                self._tell.sent(post, frame.index)

    def _settle_all(self, found: list[Outcome]) -> None:
        """The outcomes of calls."""
        if len(found) == 1:
            self._settle(*found[0])
            return
        for post, frames, outs in _by_post(found):
            if post.asked is not None or self._limited:
                usual = False
            else:
                usual = UNUSUAL.isdisjoint(map(type, outs))
                usual = usual and not (
                    self._lossy and any(frame.bad is not None for frame in frames)
                )
            if not usual:
                frames, outs = self._singled(post, frames, outs)
            if frames:
                self._fill(post, frames, outs)
                self._finish_all(post, frames)

    def _singled(
        self, post: Post, frames: Iterable[Frame], outs: Iterable[Any]
    ) -> tuple[list[Frame], list[Any]]:
        """Settle outcomes that are not usual; the others."""
        alone = post.asked is not None
        left: list[tuple[Frame, Any]] = []
        for frame, out in zip(frames, outs, strict=True):
            if alone or self._limited or frame.bad is not None or type(out) in UNUSUAL:
                self._settle(post, frame, out)
            else:
                left.append((frame, out))
        return [frame for frame, _ in left], [out for _, out in left]

    def _fill(self, post: Post, frames: Iterable[Frame], outs: Iterable[Any]) -> None:
        """What calls gave goes to its slots."""
        writes = post.writes
        if len(writes) == 1:
            (at,) = writes
            for frame, out in zip(frames, outs, strict=True):
                frame.slots[at] = out
        elif writes:
            for frame, out in zip(frames, outs, strict=True):
                slots = frame.slots
                for slot, value in zip(writes, out, strict=True):
                    slots[slot] = value
        if self._tell is not None:
            for frame in frames:
                self._tell.came(post, frame.index)

    def _finish_all(self, post: Post, frames: Iterable[Frame]) -> None:
        """A group is through: those that wait for it wait for one less."""
        frames = list(frames)
        layout = frames[0].level.layout
        for number in post.group.before:
            if layout.counts[number] == 1:
                ready = frames
            else:
                ready = []
                for frame in frames:
                    frame.left[number] -= 1
                    if not frame.left[number]:
                        ready.append(frame)
            if ready:
                self._start_all(layout.posts[number], ready)
        through: list[Frame] = []
        for frame in frames:
            frame.open -= 1
            if not frame.open:
                through.append(frame)
        if through and self._numbered and layout is self.top.layout and not self._limited:
            self._through_all(through)
        else:
            for frame in through:
                self._through(frame)

    def _through_all(self, frames: list[Frame]) -> None:
        """All groups are through, of items of the call's own: blocks of rows that follow each
        other."""
        top = self.top
        frames.sort(key=_index_of)
        for frame in frames:
            del top.running[frame.index]
        rows = top.layout.rows
        last = frames[0].index - 1
        begin = 0
        for at, frame in enumerate(frames):
            if frame.index != last + 1:
                self._blocks.append(rows(frames[begin:at], frames[begin].index))
                begin = at
            last = frame.index
        self._blocks.append(rows(frames[begin:], frames[begin].index))


def _by_post(found: list[Outcome]) -> Iterable[tuple[Post, Any, Any]]:
    """Outcomes by their group."""
    posts, frames, outs = zip(*found, strict=True)
    if posts.count(posts[0]) == len(posts):
        return [(posts[0], frames, outs)]
    sorts: dict[Post, tuple[list[Frame], list[Any]]] = {}
    for post, frame, out in found:
        one = sorts.get(post)
        if one is None:
            one = sorts[post] = [], []
        one[0].append(frame)
        one[1].append(out)
    return [(post, *one) for post, one in sorts.items()]

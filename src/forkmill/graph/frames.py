"""What becomes of one item's groups: called when all is there, lost, dropped, tried again.

    an item of a level        by                                    its frame
    under way                 an outcome                            gets its values; groups whose
                                                                    counter is 0 are ready
    with a loss ("skip")      a failure                             groups that depend on it are not
                                                                    called, they lose their outputs
    with a loss ("raise")     a failure                             only steps before it still run
    behind a loss ("raise")   an earlier item's failure             nothing of it is sent any more
    over                      the last counter                      its row goes to the level

Guarantees:
    * Joins are counted in the frame, so what failed leaves nothing behind.
    * "raise": the failure that counts is that of the first item, and in it of the first step, as in
      a sequential run. So items and steps before a failure are finished, those behind it are not.
    * Work is done from lists, never by recursion.

Invariants:
    * FLOW-2  A level is over when nothing of it is under way that counts: it has no more items, or
      has failed and all items before that are through.

Threads: all belongs to the thread of the flow.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from copy import deepcopy
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._process import interrupted
from ..errors import TaskTimeout, WorkerDied
from .failed import failure_of, lost_with, resolved, row_of
from .given import items_of
from .levels import Frame, Inner, Layout, Level
from .loss import HANDLES, Broken, Given, Loss, Torn
from .piece import Value
from .sweep import SweepWay
from .ways import Ended

if TYPE_CHECKING:
    from .plan import Step
    from .post import Post
    from .telling import Telling
    from .ways import Way

__all__ = ["UNUSUAL", "Frames", "has_begun", "outermost", "writes_of"]

UNUSUAL = frozenset({Broken, Value, Ended})


class Frames:
    """Items on their way through groups; a `Flow` gives it items and outcomes."""

    def __init__(self, ctx: Any, top: Level, ways: list[Way], tell: Telling | None) -> None:
        self.ctx = ctx
        self.top = top
        self._numbered = True  # items have indices
        self._ways = ways
        self._tell = tell
        self._levels: list[Level] = []  # inner ones that have items left, the deepest last
        self._ready: deque[tuple[Frame, Post]] = deque()
        self._rows: list[tuple[int, Any]] = []
        self._units = 0
        self._tries: dict[tuple[Any, Post], int] = {}  # that died or were late
        self._again: list[tuple[float, int, Post, Any, Any]] = []
        self._numbers = itertools.count()
        self._lossy = self._limited = False  # some frame has lost something; some level has failed
        self._nested = any(post.nest is not None for post in top.layout.posts)
        self._stopping = False
        self._handed: dict[Level, None] = {}  # that have handles of their own

    # ------------------------------------------------------------------ a frame's groups

    def _run_ready(self) -> None:
        ready = self._ready
        while ready:
            self._start(*ready.popleft())

    def _start(self, frame: Frame, post: Post) -> None:
        """All that a group waited for is there."""
        if self._is_dropped(frame, post):
            self._finish(frame, post)
            return
        if post.nest is not None:
            if not frame.bad or not self._is_lost(frame, post):
                self._expand(frame, post)
            return
        if frame.bad and self._is_lost(frame, post):
            return
        if post.asked is not None and self._asked(frame, post):
            return
        if post.copies and not self._copied(frame, post):
            return
        slots = frame.level.sent(frame.slots) if post.home.isolated else frame.slots
        item = post.getter(slots) if not frame.bad else self._torn(frame, post, slots)
        post.way.put(post, frame, item)
        self._units += 1
        if self._tell is not None:
            self._tell.sent(post, frame.index)

    def _is_dropped(self, frame: Frame, post: Post) -> bool:
        """Whether nobody wants the group's outcome any more."""
        return (frame.limit is not None and post.first > frame.limit) or not self._wanted(frame)

    def _wanted(self, frame: Any) -> bool:
        """Whether an item still counts. (Frames of a straight layout are numbers.)"""
        top = self.top
        if type(frame) is int:
            return top.limit is None or frame <= top.limit
        while True:
            level = frame.level
            if level.over or (level.limit is not None and frame.index > level.limit):
                return False
            if level.outer is None:
                return True
            frame = level.outer[0]

    def _is_lost(self, frame: Frame, post: Post) -> bool:
        """Whether no step of a group can be called, because of what it reads: it is through."""
        bad = frame.bad
        assert bad is not None
        lost = frozenset(slot for slot in post.group.reads if slot in bad)
        if not lost:
            return False
        left, losing = post.losing(lost)
        bad.update((slot, bad[cause]) for slot, cause in losing.items())
        if not left:
            self._finish(frame, post)
        return not left

    def _copied(self, frame: Frame, post: Post) -> bool:
        """Give an item its own copies; else the group is through."""
        for slot in post.copies:
            if slot in frame.copied:
                continue
            try:
                value = frame.slots[slot]
                frame.slots[slot] = deepcopy(value.value if type(value) in HANDLES else value)
            except Exception as error:
                if interrupted(error):
                    raise
                step = next(s for s in post.group.steps if any(a.slot == slot for a in s.args))
                loss = Loss(step.number, step.path, error, 1, {})
                broken = Broken((loss,) * len(post.writes), (loss,))
                self._tell_lost(post, frame.index, broken)
                self._lose(frame, post, broken)
                self._finish(frame, post)
                return False
            frame.copied = (*frame.copied, slot)
        return True

    def _torn(self, frame: Frame, post: Post, slots: list[Any]) -> Any:
        """The item of a group that reads something lost: the steps that do not are still done."""
        bad, reads = frame.bad, post.group.reads
        assert bad is not None
        if bad.keys().isdisjoint(reads):
            return post.getter(slots)
        return Torn(
            tuple(
                Loss(bad[slot], "", _GONE, 0, {}) if slot in bad else slots[slot] for slot in reads
            )
        )

    def _asked(self, frame: Frame, post: Post) -> bool:
        """Whether the parent's cache has an answer; then the group is through."""
        found = post.asked.look(frame)
        if found is None:
            return False
        if type(found) is Broken:
            self._lose(frame, post, found)
        else:
            for slot, value in zip(post.writes, found, strict=True):
                frame.slots[slot] = value
            if self._tell is not None:
                self._tell.cached(post, frame.index)
        self._finish(frame, post)
        return True

    def _settle(self, post: Post, frame: Frame, out: Any) -> None:
        """The outcome of a group's call."""
        if frame.level.over:
            return
        writes = post.writes
        kind = type(out)
        if kind in UNUSUAL:
            if kind is Value:
                out = out.value
            elif kind is Ended:
                if self._is_tried_again(post, frame, out):
                    return
                out = self._ended(post, frame, out)
                kind = Broken
            if kind is Broken:
                self._tell_lost(post, frame.index, out)
                if post.asked is not None:
                    post.asked.forget(frame)
                self._lose(frame, post, out)
                self._finish(frame, post)
                return
        if len(writes) == 1:
            frame.slots[writes[0]] = out
        elif writes:
            slots = frame.slots
            for slot, value in zip(writes, out, strict=True):
                slots[slot] = value
        if self._tell is not None:
            self._tell.came(post, frame.index)
        if post.asked is not None and (broken := post.asked.keep(frame)) is not None:
            self._lose(frame, post, broken)
        self._finish(frame, post)

    def _finish(self, frame: Frame, post: Post) -> None:
        """A group is through: those that wait for it wait for one less."""
        layout = frame.level.layout
        for number in post.group.before:
            if layout.counts[number] > 1:
                frame.left[number] -= 1
                if frame.left[number]:
                    continue
            self._ready.append((frame, layout.posts[number]))
        frame.open -= 1
        if not frame.open:
            self._through(frame)

    def _through(self, frame: Frame) -> None:
        """All groups of a frame are through: its row."""
        level = frame.level
        level.running.pop(frame.index, None)
        if level.over:
            return
        if frame.losses and level.on_error == "raise":
            self._fail(level, frame.index, frame.losses[min(frame.losses)])
        elif self._wanted(frame):
            slots, bad, losses = frame.slots, frame.bad, frame.losses
            values = [
                losses[bad[slot]] if bad and losses and slot in bad else slots[slot]
                for _, slot in level.layout.outputs
            ]
            if level is not self.top:
                level.rows[frame.index] = self._inner_row(level, frame.index, values, bad)
            elif bad:
                self._emit_losses(frame.index, tuple(values))
            else:
                names = level.layout.names
                self._rows.append((frame.index, dict(zip(names, values, strict=True))))
        self._look_at(level)

    def _inner_row(
        self, level: Level, index: int, values: list[Any], bad: dict[int, int] | None
    ) -> list[Any]:
        """What an inner item adds to the lists, in the order of the plan's outputs."""
        if not bad:
            return values
        row, failures = row_of(level.layout.plan, tuple(values), index, level.path)
        self.ctx.noted += failures
        for failure in failures:
            self._hear(failure)
        return list(row.values())

    def _emit_losses(self, index: int, values: tuple[Any, ...]) -> None:
        """A row of the call's own some of which is lost ("skip")."""
        top = self.top
        number = index if self._numbered else None
        row, failures = row_of(top.layout.plan, values, number, top.path)
        for failure in failures:
            self._hear(failure)
        self._rows.append((index, row))

    def _tell_lost(self, post: Post, index: int, broken: Broken) -> None:
        """Of the steps of a call some have failed."""
        if self._tell is None:
            return
        failed = {loss.step for loss in broken.losses}
        lost: list[str] = []
        skipped: list[str] = []
        values = zip(post.writes, broken.values, strict=True)
        gone = {slot for slot, value in values if type(value) is Loss}
        for path, step in zip(post.paths, post.group.steps, strict=True):
            if step.number in failed:
                lost.append(path)
            elif gone.isdisjoint([*step.writes, *(arg.slot for arg in step.args)]):
                continue
            else:
                skipped.append(path)  # what it reads was lost before
            gone.update(step.writes)
        self._tell.came(post, index, 1, lost, skipped)

    def _hear(self, failure: Any) -> None:
        if self._tell is not None:
            self._tell.failed(failure)

    # ------------------------------------------------------------------ failures

    def _lose(self, frame: Frame, post: Post, broken: Broken) -> None:
        """Outputs of a group are lost."""
        self._lossy = True
        losses = frame.losses = {} if frame.losses is None else frame.losses
        bad = frame.bad = {} if frame.bad is None else frame.bad
        slots = frame.slots
        for slot, value in zip(post.writes, broken.values, strict=True):
            if type(value) is Loss:
                bad[slot] = value.step
            else:
                slots[slot] = value
        for loss in broken.losses:
            losses[loss.step] = resolved(loss, slots.__getitem__)
            if frame.level.on_error == "raise" and (frame.limit is None or loss.step < frame.limit):
                frame.limit = loss.step

    def _fail(self, level: Level, index: int, loss: Loss) -> None:
        """ "raise": an item of a level has failed for good."""
        if level.limit is not None and level.limit < index:
            return
        level.limit, level.loss = index, loss
        self._limited = True
        for way in self._ways:
            if isinstance(way, SweepWay):
                self._units -= way.drop_behind(index)
                continue
            dropped = way.drop(self._wanted)
            self._units -= len(dropped)
            for post, frame, _ in dropped:
                if type(frame) is int:
                    level.running.pop(frame, None)
                else:
                    self._finish(frame, post)
        self._look_at(level)

    def _look_at(self, level: Level) -> None:
        """Whether a level is over now, and what follows."""
        if level is self.top or level.over or not level.is_over():
            return
        level.over = True
        self._let_go(level)
        assert level.outer is not None
        frame, post = level.outer
        if not self._wanted(frame):
            pass
        elif level.loss is not None or level.raised is not None:
            self._lose(frame, post, self._inner_failed(level, post))
        else:
            rows = [level.rows[i] for i in range(level.begun)]
            columns = zip(*rows, strict=True) if rows else ((),) * len(post.group.steps[0].writes)
            writes = post.group.steps[0].writes
            for slot, column in zip(writes, columns, strict=True):
                frame.slots[slot] = list(column)
        self._finish(frame, post)

    def _let_go(self, level: Level) -> None:
        """Nothing of a level is sent any more."""
        if level.own:
            self._handed.pop(level, None)
            level.let_go()

    def _top_over(self) -> None:
        """The call's own items are over; the failure that counts comes last."""
        top = self.top
        loss, top.loss = top.loss, None
        if loss is None or top.limit is None:
            return
        plan = top.layout.plan
        number = top.limit if self._numbered else None
        failure = failure_of(plan, loss, number, lost_with(plan, loss.step), top.path)
        self._hear(failure)
        self._rows.append((top.limit, failure))

    def _inner_failed(self, level: Level, post: Post) -> Broken:
        """What a nested map comes to of which an item has failed, or whose lists are none."""
        step, loss = post.group.steps[0], level.loss
        if loss is None:
            assert level.raised is not None
            own = Loss(step.number, step.path, level.raised, 1, _given(step))
        else:
            inner = (level.limit or 0, loss)
            own = Loss(step.number, step.path, loss.error, loss.attempts, {}, inner)
        return Broken((own,) * len(post.writes), (own,))

    # ------------------------------------------------------------------ deaths, timeouts

    def _is_tried_again(self, post: Post, frame: Any, ended: Ended) -> bool:
        """Whether a call that died, or was late, has another try."""
        error = ended.error
        if not isinstance(error, (WorkerDied, TaskTimeout)) or self._stopping:
            return False
        key = frame, post
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        retry = _step_of(post, error).node.retry
        if retry is None or tries >= retry.attempts or not isinstance(error, retry.on):
            return False
        if not self._wanted(frame):
            return False
        due = monotonic() + retry.pause(tries)
        heapq.heappush(self._again, (due, next(self._numbers), post, frame, ended.item))
        if self._tell is not None:
            self._tell.retry(post, _index_of(frame), error, tries)
        return True

    def _try_again(self) -> bool:
        progress = False
        while self._again and (self._again[0][0] <= monotonic() or self._stopping):
            _, _, post, frame, item = heapq.heappop(self._again)
            if self._wanted(frame):
                post.way.put(post, frame, item)
                self._units += 1
                progress = True
            elif type(frame) is not int:
                self._finish(frame, post)
        return progress

    def _ended(self, post: Post, frame: Any, ended: Ended) -> Broken:
        """What a call comes to that did not come to its end."""
        step = _step_of(post, ended.error)
        tries = self._tries.pop((frame, post), 1)
        known = set(post.group.reads) | set(post.group.fixed)
        item = {name: value for name, value in _given(step).items() if value.slot in known}
        loss = Loss(step.number, step.path, ended.error, tries, item)
        return Broken((loss,) * len(writes_of(post, self.top.layout)), (loss,))

    # ------------------------------------------------------------------ nested maps

    def _expand(self, frame: Frame, post: Post) -> None:
        """A nested map begins: its items are units of their own."""
        nest: Inner = post.nest
        names = tuple(nest.layout.plan.names[slot] for slot in nest.layout.mapped)
        values = {name: frame.slots[slot] for name, slot in zip(names, nest.over, strict=True)}
        failed: Exception | None = None
        try:
            items: Any = items_of(values, names, nest.mode)
        except Exception as error:
            if interrupted(error):
                raise
            items, failed = iter(()), error
        depth = frame.level.depth + 1
        path = f"{frame.level.path}{post.group.steps[0].path}."
        level = Level(nest.layout, items, nest.on_error, path, depth)
        level.outer = frame, post
        level.passed = tuple((inside, frame.slots[outside]) for outside, inside in nest.passed)
        if nest.layout.isolated:  # once to each worker, not with each inner item
            there = frame.level.handles
            level.hand({inner: there[outer] for outer, inner in nest.passed if outer in there})
            if level.own:
                self._handed[level] = None
        if failed is not None:
            level.spent, level.raised = True, failed
            self._look_at(level)
            return
        at = len(self._levels)
        while at and self._levels[at - 1].depth >= depth:
            at -= 1
        self._levels.insert(at, level)


_GONE = RuntimeError("it is lost")


def _index_of(frame: Any) -> int:
    return frame if type(frame) is int else frame.index


def has_begun(frame: Any) -> bool:
    """Whether some call of an item's was made."""
    while type(frame) is not int:
        if frame.open < len(frame.level.layout.posts):
            return True
        if frame.level.outer is None:
            break
        frame = frame.level.outer[0]
    return False


def outermost(frame: Frame) -> Frame:
    """The item of the call's own that an inner one is of."""
    while frame.level.outer is not None:
        frame = frame.level.outer[0]
    return frame


def _given(step: Step) -> dict[str, Any]:
    return {arg.name: Given(arg.slot) for arg in step.args}


def writes_of(post: Post, layout: Layout) -> tuple[int, ...]:
    """The slots of what a group's call gives."""
    return tuple(slot for _, slot in layout.outputs) if post.row else post.writes


def _step_of(post: Post, error: BaseException) -> Any:
    """The step that a call was at when it died."""
    steps = post.group.steps
    mark = getattr(error, "mark", None) or 0
    return steps[mark - 1] if 0 < mark <= len(steps) else steps[0]

"""The loop that carries a plan out over several executors, item by item.

    items ──admit──▶ frame: slots, counters ──ready──▶ Way of the group ──▶ outcome ──settle──▶
                        ▲                                                                   │
                        └── the groups that waited for it, and now for nothing more ◀───────┘
                            all groups are through: a row

A **frame** is one item on its way: the values in its slots, and for each group how many others it
still waits for. A **level** is what items come from: the call's own, or a nested map of one frame,
whose rows make the lists that its group writes. So nobody waits in a worker: a nested map is
expanded here, its items are units like all others.

    an item of a level        by                                    its frame
    not begun                 room: fewer units are under way than  is made, its first groups are
                              the executors want                    ready
    under way                 an outcome                            gets its values; groups whose
                                                                    counter is 0 are ready
    with a loss ("skip")      a failure                             groups that depend on it are not
                                                                    called, they lose their outputs
    with a loss ("raise")     a failure                             only steps before it still run
    behind a loss ("raise")   an earlier item's failure             nothing of it is sent any more
    over                      the last counter                      its row goes to the level

Guarantees:
    * Items go through groups without a barrier. Joins are counted in the frame, so what failed
      leaves nothing behind.
    * "raise": the failure that counts is that of the first item, and in it of the first step, as in
      a sequential run. So items and steps before a failure are finished, those behind it are not.
    * The budget is that of the executors, at every depth. Inner levels are admitted first.
    * Ctrl-C once: no new items, what runs is finished; twice: all is ended.
    * Work is done from lists, never by recursion.

Invariants:
    * FLOW-1  `_units` is the number of units in all ways: what was put and did not come out.
    * FLOW-2  A level is over when nothing of it is under way that counts: it has no more items, or
      has failed and all items before that are through.

Threads: one at a time; `stop` and `kill` from any.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import TaskTimeout, WorkerDied
from ..runs.stats import RunStats
from .code import Value
from .failed import failure_of, resolved, row_of
from .given import items_of
from .levels import Frame, Inner, Layout, Level, Rows
from .loss import Broken, Given, Loss, Torn
from .sweep import SweepWay
from .ways import MOST, Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .plan import Plan, Step
    from .ways import Bell, Post, Way

__all__ = ["UNUSUAL", "Flow"]

TURN_S = 0.001  # of pulling from the input, before others have their turn
GRACE = 0.4  # seconds that a call which cannot be ended has after `kill`
UNUSUAL = frozenset({Broken, Value, Ended})


class Flow:
    """One call of a graph, on its way through several executors.

    Args:
        layout: What is done with an item.
        items: Tuples in map_over's order; None: it is a run, of the item `one`.
        ways: All that posts of the layout lead to.
        bell: What they ring.
        ctx: What the call is (see `engine.Ctx`).
        tell: What hears of it, or None: see `telling`.
    """

    def __init__(
        self,
        layout: Layout,
        items: Iterator[Any] | None,
        ways: list[Way],
        bell: Bell,
        ctx: Any,
        tell: Any = None,
        one: tuple[Any, ...] = (),
    ) -> None:
        self.ctx = ctx
        self.top = Level(layout, iter((one,)) if items is None else items, ctx.on_error, ctx.path)
        self._numbered = items is not None
        # Where an item is one value, as it is, there need be no tuple around it.
        self._bare = layout.straight and layout.posts[0].group.bare and hasattr(items, "bare")
        self._bare = self._bare and len(layout.mapped) == 1
        self._source = iter(items.bare) if self._bare else self.top.items  # type: ignore[union-attr]
        self._quick = bool(getattr(items, "quick", items is None))
        self._ways = ways
        self._here = [way for way in ways if way.inline]
        self._bell = bell
        self._tell = tell
        self._levels: list[Level] = []  # inner ones that have items left, the deepest last
        self._ready: deque[tuple[Frame, Post]] = deque()
        self._rows: list[tuple[int, Any]] = []
        self._blocks: deque[Rows] = deque()
        self._units = 0
        self._given = 0  # rows that were handed over
        self._tries: dict[tuple[Any, Post], int] = {}  # that died or were late
        self._again: list[tuple[float, int, Post, Any, Any]] = []
        self._numbers = itertools.count()
        self._stopping = self._killed = self._closed = self._dropped = False
        self.interrupted = False
        self.left_behind = 0
        self.release: Callable[[], None] = self.close  # everything; made more by who opened more

    # ------------------------------------------------------------------ from outside

    def blocks(self) -> Iterator[list[tuple[int, Any]]]:
        """Rows as they are made: (index, dict), (index, Failure). Closed, it ends everything.

        Raises:
            KeyboardInterrupt: Ctrl-C; after all rows that came of what ran.
            BaseException: What the items raised, after the rows of those before.
        """
        done = False
        try:
            while True:
                try:
                    rows = self._some_rows()
                except KeyboardInterrupt:
                    if self.interrupted:
                        self.kill()
                        raise
                    self.interrupted = True
                    self.stop()
                    continue
                if not rows:
                    break
                self._given += len(rows)
                yield rows
            done = True
            if self.interrupted:
                raise KeyboardInterrupt
            if self.top.raised is not None:
                raise self.top.raised
        finally:
            self.close(well=done)

    def figures(self) -> RunStats:
        """The figures so far. Any thread."""
        return RunStats() if self._tell is None else self._tell.stats()

    @property
    def killed(self) -> bool:
        """Whether `kill` has ended it, or will."""
        return self._killed

    @property
    def cut(self) -> bool:
        """Whether it was stopped before all items were begun."""
        return self._dropped or (self._stopping and not self.top.spent)

    def stop(self) -> None:
        """No new items; what has begun is finished. Any thread."""
        self._stopping = True
        self._bell.ring()

    def kill(self) -> None:
        """Nothing more. Any thread."""
        self._killed = self._stopping = True
        self._bell.ring()

    def close(self, *, well: bool = False) -> None:
        """End what there is of it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for way in self._ways:
            way.stop()
        patience = GRACE if self._killed else None
        for way in self._ways:
            self.left_behind += way.close(patience)
        self._ready.clear()

    # ------------------------------------------------------------------ the loop

    def _some_rows(self) -> list[tuple[int, Any]]:
        """The next rows; none when it is over."""
        while True:
            progress = self._turn()
            if self._killed:
                return []
            if not self._rows and not self._blocks and self._is_over():
                self._top_over()
                if not self._rows:
                    return []
            if self._blocks:
                return self._blocks.popleft()
            if self._rows:
                rows, self._rows = self._rows, []
                return rows
            if not progress and not self._flush():
                self._bell.wait(self._patience())

    def _is_over(self) -> bool:
        if self._stopping:  # what Ctrl-C has broken off may be nowhere any more
            return not self._ready and not self._again and all(way.idle for way in self._ways)
        return self.top.is_over()

    def _turn(self) -> bool:
        """Admit, send, take, once; whether there was anything to do."""
        if self._stopping and not self._dropped:
            self._drop_unbegun()
        progress = self._admit()
        if self._again:
            progress = self._try_again() or progress
        if self._ready:
            self._run_ready()
            progress = True
        for way in self._ways:
            if way.out:
                way.pump()
        for way in self._ways:
            if way.out and not way.inline:
                progress = self._take(way) or progress
        if not progress:
            for way in self._here:
                progress = (not way.idle and self._take(way)) or progress
        return progress

    def _drop_unbegun(self) -> None:
        """It was stopped: items nothing of which was called are no items."""
        self._dropped = True
        for way in self._ways:
            if isinstance(way, SweepWay):
                self._units -= way.drop_behind(-1)
            else:
                self._units -= len(way.drop(_has_begun))

    def _take(self, way: Way) -> bool:
        if isinstance(way, SweepWay):
            return self._sweep(way)
        found = way.take()
        self._units -= len(found)
        rows = self._rows
        if not self.top.layout.straight:
            for post, frame, out in found:
                self._settle(post, frame, out)
            return bool(found)
        through = self.top.running.pop
        for post, index, out in found:
            if type(out) is dict and post.row:
                rows.append((index, out))
                through(index, None)
                if self._tell is not None:
                    self._tell.came(post, index)
            else:
                self._settle_straight(post, index, out)
        return bool(found)

    def _sweep(self, way: SweepWay) -> bool:
        """As `_take`, where outcomes come in spans."""
        top, post = self.top, self.top.layout.posts[0]
        found = way.take_spans()
        for span in found:
            outs, first = span.outs, span.first
            self._units -= len(outs)
            top.done[first : first + len(outs)] = b"\1" * len(outs)
            if span.plain and self._wanted(first + len(outs) - 1):
                self._blocks.append(Rows(outs, first))
                if self._tell is not None:
                    self._tell.came(post, first, len(outs))
                continue
            for index, item, out in zip(itertools.count(first), span.given, outs):
                if not self._settle_straight(post, index, out, (item,)):
                    top.done[index] = 0  # it is on its way again
        return bool(found)

    def _flush(self) -> bool:
        """Before it sleeps: batches that are not full go now, if their executor has nothing."""
        flushed = [way.flush() for way in self._ways]
        return any(flushed)

    def _patience(self) -> float | None:
        return max(0.0, self._again[0][0] - monotonic()) if self._again else None

    # ------------------------------------------------------------------ admission

    def _room(self, level: Level) -> int:
        """How many more items may be begun."""
        if level is self.top and self._quick and self.ctx.mode == "map":
            return MOST - self._units  # they are there, and what is not sent can be dropped
        room = sum(way.pace.cap for way in self._ways) - self._units
        if level is self.top and self.ctx.mode == "imap":
            held = level.begun - self._given + self.ctx.held
            most = self.ctx.buffersize
            room = min(room, (most or max(room + held, 1)) - held)
            if most is None:
                room = min(room, sum(way.pace.cap for way in self._ways) - held)
        return room

    def _admit(self) -> bool:
        """Begin items, inner ones first, as long as there is room."""
        progress = False
        while self._levels:
            level = self._levels[-1]
            assert level.outer is not None
            if not level.over and not self._wanted(level.outer[0]):
                level.over = True
                self._finish(*level.outer)
            if level.over or level.spent or level.limit is not None:
                self._levels.pop()
                continue
            if not self._begin(level, self._room(level)):
                if not level.spent:
                    break
                self._levels.pop()
            progress = True
        top = self.top
        if not self._levels and not top.spent and top.limit is None and not self._stopping:
            room = self._room(top)
            if top.layout.straight:
                return self._begin_straight(top, room) or progress
            return self._begin(top, room) or progress
        return progress

    def _begin(self, level: Level, room: int) -> bool:
        """Begin items of a level, till the room is used or a millisecond is over."""
        begun, until = level.begun, perf_counter() + TURN_S
        while room > 0 and level.limit is None:
            try:
                item = next(level.items)
            except StopIteration:
                level.spent = True
            except Exception as error:
                level.spent, level.raised = True, error
            if level.spent:
                self._look_at(level)
                break
            before = self._units
            frame = Frame(level, level.begun, item)
            level.running[level.begun] = frame
            level.begun += 1
            if frame.open:
                self._ready.extend((frame, post) for post in level.layout.roots)
                self._run_ready()
            else:
                self._through(frame)
            if self._levels and self._levels[-1].depth > level.depth:
                break  # inner items first
            room -= max(1, self._units - before)
            if perf_counter() >= until:
                break
        return level.begun > begun

    def _begin_straight(self, level: Level, room: int) -> bool:
        """As `_begin`, where an item is one unit."""
        if room <= 0:
            return False
        post = level.layout.posts[0]
        first, running, source = level.begun, level.running, self._source
        until = perf_counter() + TURN_S
        while room > 0:
            some: list[Any] = []
            most = min(room, 256 if self._quick else 1)
            try:
                some.extend(itertools.islice(source, most))  # keeps those before an exception
            except Exception as error:
                level.raised = error
            if isinstance(post.way, SweepWay):
                level.done.extend(bytes(len(some)))
            else:
                running.update(enumerate(some, level.begun))
            get = None if self._bare else post.getter
            post.way.put_straight(post, level.begun, some, get)
            if self._tell is not None and some:
                self._tell.sent(post, level.begun, len(some))
            level.begun += len(some)
            self._units += len(some)
            room -= len(some)
            if len(some) < most:
                level.spent = True
                break
            if perf_counter() >= until:
                break
        return level.begun > first

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
        item = post.getter(frame.slots) if not frame.bad else self._torn(frame, post)
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

    def _torn(self, frame: Frame, post: Post) -> Any:
        """The item of a group that reads something lost: the steps that do not are still done."""
        bad, slots, reads = frame.bad, frame.slots, post.group.reads
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
        left, posts = frame.left, frame.level.layout.posts
        for number in post.group.before:
            left[number] -= 1
            if not left[number]:
                self._ready.append((frame, posts[number]))
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
        if self._tell is not None:
            lost = {loss.step for loss in broken.losses}
            steps = zip(post.paths, post.group.steps, strict=True)
            self._tell.came(post, index, 1, tuple(p for p, step in steps if step.number in lost))

    def _hear(self, failure: Any) -> None:
        if self._tell is not None:
            self._tell.failed(failure)

    # ------------------------------------------------------------------ failures

    def _settle_straight(
        self, post: Post, index: int, out: Any, read: tuple[Any] | None = None
    ) -> bool:
        """An item of a straight layout whose outcome may not be its row; whether it is through.

        Args:
            post: Its group.
            index: The item's.
            out: The outcome.
            read: What the call got, where the item itself is not known any more.
        """
        top = self.top
        if type(out) is Ended:
            if self._is_tried_again(post, index, out):
                return False
            out = self._ended(post, index, out)
        item = top.running.pop(index, ())
        if type(out) is Broken:
            self._tell_lost(post, index, out)
        elif self._tell is not None:
            self._tell.came(post, index)
        if not self._wanted(index):
            return True
        if type(out) is not Broken:
            self._rows.append((index, out if post.row else self.row_maker(post, out)))
            return True
        slots = top.layout.base.copy()
        if self._bare:
            item = (item,)
        slot_values = zip(top.layout.mapped, item, strict=False)
        if read is not None:
            values = read if post.group.bare else read[0]
            slot_values = zip(post.group.reads, values, strict=False)
        for slot, value in slot_values:
            slots[slot] = value
        losses = {loss.step: resolved(loss, slots.__getitem__) for loss in out.losses}
        if top.on_error == "raise":
            self._fail(top, index, losses[min(losses)])
            return True
        by_slot = dict(zip(_writes_of(post, top.layout), out.values, strict=True))
        self._emit_losses(index, tuple(by_slot[slot] for _, slot in top.layout.outputs))
        return True

    def row_maker(self, post: Post, out: Any) -> dict[str, Any]:
        """The row of an item whose call gave what the group writes."""
        writes = post.writes
        if type(out) is Value:
            out = out.value
        by_slot = {writes[0]: out} if len(writes) == 1 else dict(zip(writes, out, strict=True))
        return {name: by_slot[slot] for name, slot in self.top.layout.outputs}

    def _lose(self, frame: Frame, post: Post, broken: Broken) -> None:
        """Outputs of a group are lost."""
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

    def settled(self, index: int, item: Any, out: Any) -> list[tuple[int, Any]]:
        """The row of an item whose call somebody else has made, if it counts."""
        top = self.top
        top.running[index] = item
        self._settle_straight(top.layout.posts[0], index, out)
        self._top_over()
        rows, self._rows = self._rows, []
        return rows

    def _fail(self, level: Level, index: int, loss: Loss) -> None:
        """ "raise": an item of a level has failed for good."""
        if level.limit is not None and level.limit < index:
            return
        level.limit, level.loss = index, loss
        for way in self._ways:
            if isinstance(way, SweepWay):
                self._units -= way.drop_behind(index)
                continue
            dropped = way.drop(self._wanted)
            self._units -= len(dropped)
            for post, frame in dropped:
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

    def _top_over(self) -> None:
        """The call's own items are over; the failure that counts comes last."""
        top = self.top
        loss, top.loss = top.loss, None
        if loss is None or top.limit is None:
            return
        plan = top.layout.plan
        number = top.limit if self._numbered else None
        failure = failure_of(plan, loss, number, _outputs_of(plan, loss.step), top.path)
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
        return Broken((loss,) * len(_writes_of(post, self.top.layout)), (loss,))

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
            items, failed = iter(()), error
        depth = frame.level.depth + 1
        path = f"{frame.level.path}{post.group.steps[0].path}."
        level = Level(nest.layout, items, nest.on_error, path, depth)
        level.outer = frame, post
        level.passed = tuple((inside, frame.slots[outside]) for outside, inside in nest.passed)
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


def _has_begun(frame: Any) -> bool:
    """Whether some call of an item's was made."""
    while type(frame) is not int:
        if frame.open < len(frame.level.layout.posts):
            return True
        if frame.level.outer is None:
            break
        frame = frame.level.outer[0]
    return False


def _given(step: Step) -> dict[str, Any]:
    return {arg.name: Given(arg.slot) for arg in step.args}


def _writes_of(post: Post, layout: Layout) -> tuple[int, ...]:
    """The slots of what a group's call gives."""
    return tuple(slot for _, slot in layout.outputs) if post.row else post.writes


def _outputs_of(plan: Plan, number: int) -> tuple[str, ...]:
    """The outputs that depend on a step."""
    lost = set(plan.steps[number].writes)
    for step in plan.steps[number + 1 :]:
        if any(arg.slot in lost for arg in step.args):
            lost.update(step.writes)
    return tuple(name for name, slot in plan.outputs.items() if slot in lost)


def _step_of(post: Post, error: BaseException) -> Any:
    """The step that a call was at when it died."""
    steps = post.group.steps
    mark = getattr(error, "mark", None) or 0
    return steps[mark - 1] if 0 < mark <= len(steps) else steps[0]

"""The loop that carries a plan out over several executors, item by item.

    items ──admit──▶ frame: slots, counters ──ready──▶ Way of the group ──▶ outcome ──settle──▶
                        ▲                                                                   │
                        └── the groups that waited for it, and now for nothing more ◀───────┘
                            all groups are through: a row

A **frame** is one item on its way: the values in its slots, and for each group how many others it
still waits for. A **level** is what items come from: the call's own, or a nested map of one frame,
whose rows make the lists that its group writes. So nobody waits in a worker: a nested map is
expanded here, its items are units like all others.

    an item                   by
    not begun                 room: fewer units are under way than the executors want
    under way                 see `frames`
    its row is made           the last of its groups is through

Guarantees:
    * Items go through groups without a barrier.
    * The budget is that of the executors, at every depth. Inner levels are admitted first.
    * Ctrl-C once: no new items, what runs is finished; twice: all is ended (see `runs.interrupts`).
      What anything else raises in the middle of it ends the call: nobody goes on with a flow that
      was broken off.

Invariants:
    * FLOW-1  `_units` is the number of units in all ways: what was put and did not come out.

Threads: one at a time; `stop` and `kill` from any.
"""

from __future__ import annotations

import itertools
from collections import Counter
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from .._process import interrupted
from ..runs.stats import RunStats
from .failed import resolved
from .feeder import Feeder, NotYet
from .frames import UNUSUAL, has_begun, outermost, writes_of
from .levels import Frame, Layout, Level, Rows, Values
from .loss import Broken
from .piece import Value
from .rows import Maker
from .sweep import SweepWay
from .together import Together
from .ways import MOST, Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .post import Post
    from .ways import Bell, Unit, Way

__all__ = ["Flow"]

TURN_S = 0.001  # of pulling from the input, before others have their turn
SOME = 256  # items that are begun together
FRAMES = 1024  # that a map has: of more so many grow old that all memory is looked through
SHORTEST = 8  # rows, that a block is worth
GRACE = 0.4  # seconds that a call which cannot be ended has after `kill`


class Flow(Together):
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
        source = iter((one,)) if items is None else items
        super().__init__(ctx, Level(layout, source, ctx.on_error, ctx.path), ways, tell)
        self._numbered = items is not None
        # Where an item is one value, as it is, there need be no tuple around it.
        self._bare = layout.straight and layout.posts[0].group.bare and hasattr(items, "bare")
        self._bare = self._bare and len(layout.mapped) == 1
        self._source = iter(items.bare) if self._bare else self.top.items  # type: ignore[union-attr]
        self._quick = bool(getattr(items, "quick", items is None))
        self._feeder: Feeder | None = None
        if ctx.began is not None and not self._quick:  # in the background: `stop` waits for nobody
            self._feeder = self._source = self.top.items = Feeder(self._source, bell.ring)
        self._here = [way for way in ways if way.inline]
        self._bell = bell
        self._given = 0  # rows that were handed over
        self._maker: Maker | None = None  # of rows, where calls give plain values
        self._killed = self._closed = self._dropped = False
        self._interrupts = ctx.interrupts
        self.left_behind = 0
        self.release: Callable[[], None] | None = None  # ends it and all else; until it is closed

    # ------------------------------------------------------------------ from outside

    def blocks(self) -> Iterator[list[tuple[int, Any]]]:
        """Rows as they are made: (index, dict), (index, Failure). Closed, it ends everything.

        Raises:
            KeyboardInterrupt: Ctrl-C; after all rows that came of what ran.
            BaseException: What the items raised, after the rows of those before.
        """
        try:
            while rows := self._some_rows():
                self._given += len(rows)
                yield rows
            self._interrupts.check()
            if self.top.raised is not None:
                raise self.top.raised
        finally:
            self.close()

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
        if not self._stopping:
            for way in self._ways:
                way.paused = True  # first: `_drop_unbegun`, which ends that, comes behind
        self._stopping = True
        self._bell.ring()

    def kill(self) -> None:
        """Nothing more. Any thread."""
        self._killed = self._stopping = True
        self._bell.ring()

    def close(self) -> None:
        """End what there is of it. Idempotent: who was broken off in here does it again."""
        if self._closed:
            return
        if self._feeder is not None:
            self._feeder.leave()
        for way in self._ways:
            way.stop()
        left = 0
        for way in self._ways:
            left += way.close(GRACE if self._killed else None)
        self.left_behind = left
        for level in tuple(self._handed):
            self._let_go(level)
        self._ready.clear()
        self._closed = True

    def leave(self) -> None:
        """It is closed, and nobody is in here: cycles are cut that would keep what it had."""
        self.release = None
        for way in self._ways:
            way.leave()

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
        if self._stopping:  # items of which nothing was begun stay behind
            return not (self._ready or self._again or self._units or self._levels)
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
                progress = (way.out > 0 and self._take(way)) or progress
        return progress

    def _drop_unbegun(self) -> None:
        """It was stopped: items nothing of which was called are no items."""
        self._dropped = True
        taken: list[tuple[Way, Unit]] = []
        for way in self._ways:
            if isinstance(way, SweepWay):
                self._units -= way.drop_unbegun()
            else:
                taken += [(way, unit) for unit in way.drop(has_begun)]
        begun = set() if self.top.layout.straight else self._begun(Counter(u[1] for _, u in taken))
        for way, unit in taken:
            if type(unit[1]) is int or outermost(unit[1]) not in begun:
                self._units -= 1
            else:
                way.put(*unit)
        for level in self._levels:
            if level.outer is not None and outermost(level.outer[0]) not in begun:
                level.over = True
                self._let_go(level)
        for way in self._ways:
            way.paused = False

    def _begun(self, waiting: Counter[Frame]) -> set[Frame]:
        """The items of the call's own of which something was called: what waits is not all that a
        frame began with.

        Args:
            waiting: Of each frame, how many units of it nobody has begun.
        """
        levels = {self.top, *self._levels, *(frame.level for frame in waiting)}
        nests = Counter(level.outer[0] for level in levels if level.outer is not None)
        begun: set[Frame] = set()
        for level in levels:
            layout = level.layout
            inner = sum(post.nest is not None for post in layout.roots)
            own = len(layout.roots) - inner
            for frame in level.running.values():
                whole = waiting[frame] >= own and nests[frame] >= inner
                if not whole or frame.open < len(layout.posts):
                    begun.add(outermost(frame))
        return begun

    def _take(self, way: Way) -> bool:
        if isinstance(way, SweepWay):
            return self._sweep(way)
        found = way.take()
        self._units -= len(found)
        rows = self._rows
        if not self.top.layout.straight:
            if found:
                self._settle_all(found)
            return bool(found)
        through = self.top.running.pop
        if found and self._are_values(found):
            self._pass_on(found)
            return True
        for post, index, out in found:
            if type(out) is dict and post.row:
                rows.append((index, out))
                through(index, None)
                if self._tell is not None:
                    self._tell.came(post, index)
            else:
                self._settle_straight(post, index, out)
        return bool(found)

    def _pass_on(self, found: list[Any]) -> None:
        """What plain calls gave: as blocks, where it is of items that follow each other."""
        numbers = [index for _, index, _ in found]
        values = [out for _, _, out in found]
        if self._maker is None:
            self._maker = Maker(self.top.layout.outputs, found[0][0].writes)
        cuts: list[int] = []
        if numbers != [*range(numbers[0], numbers[0] + len(numbers))]:
            pairs = itertools.pairwise(numbers)
            cuts += (at for at, (one, next_one) in enumerate(pairs, 1) if next_one != one + 1)
        if self._numbered and len(cuts) < len(found) // SHORTEST:
            for begin, end in zip((0, *cuts), (*cuts, len(found)), strict=True):
                self._blocks.append(Values(values[begin:end], numbers[begin], self._maker))
        else:
            self._rows += zip(numbers, self._maker.rows(values), strict=True)
        through = self.top.running.pop
        for index in numbers:
            through(index, None)

    def _are_values(self, found: list[Any]) -> bool:
        """Whether these are what calls of a straight layout's group gave, and all count."""
        if found[0][0].row or self._tell is not None or self.top.limit is not None:
            return False
        return UNUSUAL.isdisjoint([type(out) for _, _, out in found])

    def _sweep(self, way: SweepWay) -> bool:
        """As `_take`, where outcomes come in spans."""
        top, post = self.top, self.top.layout.posts[0]
        found = way.take_spans()
        for span in found:
            outs, first = span.outs, span.first
            self._units -= len(outs)
            top.done[first : first + len(outs)] = b"\1" * len(outs)
            if span.plain:
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
            # They are there, and what is not sent can be dropped.
            if level.layout.straight:
                return MOST - self._units
            return max(FRAMES, sum(way.pace.floor for way in self._ways)) - self._units
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
                self._let_go(level)
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
        quick = getattr(level.items, "quick", False)
        if level is self.top:
            quick = self._quick
            if self._feeder is not None:
                self._feeder.want(room)
        if quick and level.layout.flat:
            self._begin_quick(level, room, until)
            return level.begun > begun
        while room > 0 and level.limit is None:
            item: Any = None
            try:
                item = next(level.items) if quick else self._pulled(next, level.items)
            except StopIteration:
                level.spent = True
            except NotYet:
                break
            except Exception as error:
                self._end_of(level, error)
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

    def _begin_quick(self, level: Level, room: int, until: float) -> None:
        """As `_begin`, where items are there, and go on together."""
        while room > 0 and level.limit is None and not level.spent:
            some: list[Any] = []
            most = min(room, SOME)
            try:  # `some` keeps those before an exception
                some.extend(itertools.islice(level.items, most))
                level.spent = len(some) < most
            except Exception as error:
                self._end_of(level, error)
            before = self._units
            if some:
                self._begin_all(level, some)
            room -= max(len(some), self._units - before)
            if perf_counter() >= until:
                break
        if level.spent:
            self._look_at(level)

    def _end_of(self, level: Level, error: Exception) -> None:
        """Its input raised: there are no more items, and it comes after the rows of these."""
        if level is not self.top and interrupted(error):
            raise error  # it is the program's, and no failure of an outer item's
        level.spent, level.raised = True, error

    def _pulled(self, pull: Callable[..., Any], *args: Any) -> Any:
        """What code of the user's gives. Ctrl-C ends that, where it may wait for ever."""
        interrupts = self._interrupts
        interrupts.pulls = True
        try:
            return pull(*args)
        except KeyboardInterrupt:
            if self._killed or not interrupts.noted:
                raise
            raise StopIteration from None  # so there are no more items
        finally:
            interrupts.pulls = False

    def _begin_straight(self, level: Level, room: int) -> bool:
        """As `_begin`, where an item is one unit."""
        if room <= 0:
            return False
        post = level.layout.posts[0]
        first, running, source = level.begun, level.running, self._source
        until = perf_counter() + TURN_S
        late = False
        if self._feeder is not None:
            self._feeder.want(room)
        while room > 0 and not late:
            some: list[Any] = []
            most = min(room, SOME if self._quick else 1)
            try:  # `some` keeps those before an exception
                if self._quick:
                    some.extend(itertools.islice(source, most))
                else:
                    self._pulled(some.extend, itertools.islice(source, most))
            except StopIteration:
                pass
            except NotYet:
                late = True
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
            if len(some) < most and not late:
                level.spent = True
                break
            if perf_counter() >= until:
                break
        return level.begun > first

    # ------------------------------------------------------------------ straight layouts

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
        by_slot = dict(zip(writes_of(post, top.layout), out.values, strict=True))
        self._emit_losses(index, tuple(by_slot[slot] for _, slot in top.layout.outputs))
        return True

    def row_maker(self, post: Post, out: Any) -> dict[str, Any]:
        """The row of an item whose call gave what the group writes."""
        writes = post.writes
        if type(out) is Value:
            out = out.value
        by_slot = {writes[0]: out} if len(writes) == 1 else dict(zip(writes, out, strict=True))
        return {name: by_slot[slot] for name, slot in self.top.layout.outputs}

    def settled(self, index: int, item: Any, out: Any) -> list[tuple[int, Any]]:
        """The row of an item whose call somebody else has made, if it counts."""
        top = self.top
        top.running[index] = item
        self._settle_straight(top.layout.posts[0], index, out)
        self._top_over()
        rows, self._rows = self._rows, []
        return rows

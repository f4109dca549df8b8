"""How units of work get to where they run, and back: one Way for each executor of a run.

    flow ──put──▶ line ──pump, so many at once──▶ executor ──▶ take ──▶ flow: (post, frame, outcome)

A **post** is a group of the plan in this run: what is called, and where. A **unit** is one call of
it: (post, frame, item); the frame is the flow's, and comes back with the outcome as it is.

    InlineWay   this very thread, when the flow has nothing else to do
    ThreadWay   threads that take units from the line themselves: no call of the executor for each,
                none waits behind a slow one
    LaneWay     a Lane for each post: processes, forks, interpreters, event loops
    SubmitWay   any other executor (see `submits`)
    SweepWay    threads, where nobody looks before the end (see `sweep`)

Guarantees:
    * Each unit that was put comes out of `take` once, or out of `drop` if it was not sent.
    * What is sent and not taken is work of about `LEAD_S` a worker, or two units for each.
    * The calls at once are at most the executor's width, however many posts there are.
    * An executor that is not ours is never shut down.

Invariants:
    * WAY-1  ThreadWay: 1. units are put into the line; 2. under the lock it is decided how many
      more threads are to come. A thread that finds the line empty is 1. counted out under the lock;
      2. looks at the line again. So one of them sees the other.

Threads: all belongs to the thread of the flow, but for what executors run.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from functools import partial
from itertools import count, repeat
from time import monotonic, perf_counter
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

from .._said import HERE
from ..contexts import Batch
from ..contexts.lanes.emit import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .post import Post

    Unit = tuple[Post, Any, Any]  # post, frame, item
    Outcome = tuple[Post, Any, Any]  # post, frame, what came of it

__all__ = ["MOST", "Bell", "Ended", "InlineWay", "LaneWay", "ThreadWay", "Way"]

LEAD_S = 0.005  # of work that a worker has been sent and not yet done
QUANTUM_S = 0.005  # that a thread works off the line before others have their turn
QUIET_S = 0.001  # between two rings of a thread that goes on
SHORT_S = 20e-6  # a unit that takes less is short
EVERY = 16  # of short units there is one look at the clock
REMOTE = 512  # units for each worker of an engine, whose chunks take long on their way
MOST = 1 << 14  # units that a way has under way, at most
BATCH = 64  # items in one call of a batch node, if nobody says otherwise


class Ended(NamedTuple):
    """The outcome of a unit whose call did not come to its end.

    Attributes:
        error: WorkerDied, TaskTimeout, what could not be sent, ...
        item: The unit's item.
    """

    error: BaseException
    item: Any


class Bell:
    """What wakes the flow's thread, from anywhere. As `_process.Signal`, with a timeout."""

    def __init__(self) -> None:
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = False

    def ring(self) -> None:
        """Wake it, or let it not sleep next time."""
        if not self._rung:
            self._rung = True
            self._tokens.put(None)

    def wait(self, timeout: float | None = None) -> None:
        """Until it rings, or for so many seconds. Then it may ring again."""
        try:
            self._tokens.get(timeout=None if timeout is None else max(timeout, 0.0))
        except queue.Empty:
            pass
        finally:
            self._rung = False


class Pace:
    """How many units shall be under way: those of `LEAD_S`, at least two for each worker.

    Attributes:
        cap: So many.
        floor: Never fewer than these.
    """

    __slots__ = ("_count", "_since", "cap", "floor")

    def __init__(self, width: int) -> None:
        self.floor = 2 * width
        self.cap = self.floor
        self._count = 0
        self._since = perf_counter()

    def least(self, number: int) -> None:
        """Not less than so many."""
        self.floor = max(self.floor, number)
        self.cap = max(self.cap, self.floor)

    def done(self, number: int) -> None:
        """So many have come back."""
        self._count += number
        if self._count < self.cap:
            return
        now = perf_counter()
        seconds = now - self._since
        if seconds < LEAD_S:
            self.cap = min(2 * self.cap, MOST)
        elif seconds > 2 * LEAD_S:
            self.cap = max(self.floor, min(self.cap, int(self._count * LEAD_S / seconds)))
        self._count, self._since = 0, now


class Way(ABC):
    """How units get to one executor and back.

    Attributes:
        width: How many calls there are at once, at most.
        pace: How many units there shall be under way.
        out: How many were put and did not come out.
        batched: Some of its posts take many items at once.
        shares: How many calls a batch that is not full becomes.
        paused: Nothing more is sent just now. Set in any thread.
    """

    inline = False
    batched = False
    paused = False

    def __init__(self, width: int, bell: Bell) -> None:
        self.width = self.shares = width
        self.bell = bell
        self.pace = Pace(width)
        self.line: deque[Unit] = deque()
        self.out = 0
        self._batches: list[Post] = []  # with something in their hoard

    def put(self, post: Post, frame: Any, item: Any) -> None:
        """One more unit. Nothing runs before `pump`."""
        self.out += 1
        if not post.batch:
            self.line.append((post, frame, item))
            return
        if not post.hoard:
            self._batches.append(post)
        post.hoard.append((frame, item))
        if len(post.hoard) >= post.batch:
            self._bundle(post)

    def put_all(self, post: Post, frames: list[Any], items: list[Any]) -> None:
        """As `put`, many units."""
        if post.batch:
            for frame, item in zip(frames, items, strict=True):
                self.put(post, frame, item)
            return
        self.out += len(items)
        self.line.extend(zip(repeat(post), frames, items))

    def put_straight(self, post: Post, first: int, items: list[Any], get: Any) -> None:
        """Units of a straight layout, whose frames are numbers from `first` on.

        Args:
            post: Its post.
            first: The first number.
            items: What the units' items are made of.
            get: Makes them; None: they are the items.
        """
        line = items if get is None else [*map(get, items)]
        if post.batch:
            for index, item in enumerate(line, first):
                self.put(post, index, item)
            return
        self.out += len(items)
        self.line.extend(zip(repeat(post), count(first), line))

    def _bundle(self, post: Post, calls: int = 1) -> None:
        """What is in the hoard goes into the line, in so many calls."""
        some, post.hoard = post.hoard, []
        self._batches.remove(post)
        size = -(-len(some) // calls)
        for at in range(0, len(some), size):
            part = some[at : at + size]
            self.line.append((post, [frame for frame, _ in part], [item for _, item in part]))

    def flush(self) -> bool:
        """Nothing more comes just now: let batches go that are not full, if there is somebody who
        has nothing to do; whether there were any."""
        hoarded = sum(len(post.hoard) for post in self._batches)
        if not hoarded or self.out > hoarded:
            return False
        for post in tuple(self._batches):
            self._bundle(post, self.shares)
        return True

    @abstractmethod
    def pump(self) -> None:
        """Send what there is place for.

        Raises:
            RuntimeError: The executor takes no more.
        """

    def take(self) -> list[Outcome]:
        """All that has come back. Outcomes of a batch come one by one."""
        found = self._take()
        if found:
            if self.batched:
                found = [one for outcome in found for one in _unrolled(*outcome)]
            self.out -= len(found)
            self.pace.done(len(found))
        return found

    @abstractmethod
    def _take(self) -> list[Outcome]:
        """As `take`, batches as they are."""

    def drop(self, wanted: Callable[[Any], bool]) -> list[Unit]:
        """Take back what was not sent and is not wanted, batches one by one."""
        dropped: list[Unit] = []
        left: list[Unit] = []
        # From its end: threads take from its begin meanwhile, and what they take comes first.
        for _ in range(len(self.line)):
            try:
                unit = self.line.pop()
            except IndexError:
                break
            post, frame, items = unit
            if not post.batch:
                (left if wanted(frame) else dropped).append(unit)
                continue
            pairs = list(zip(frame, items, strict=True))
            kept = [pair for pair in pairs if wanted(pair[0])]
            dropped += [(post, *pair) for pair in pairs if not wanted(pair[0])]
            if kept:
                left.append((post, [f for f, _ in kept], [i for _, i in kept]))
        self.line.extend(reversed(left))
        for post in tuple(self._batches):
            dropped += [(post, *pair) for pair in post.hoard if not wanted(pair[0])]
            post.hoard = [pair for pair in post.hoard if wanted(pair[0])]
            if not post.hoard:
                self._batches.remove(post)
        self.out -= len(dropped)
        return dropped

    def stop(self) -> None:
        """Cancel what has not started, end what can be ended. Never waits."""
        self.line.clear()

    def close(self, patience: float | None = None) -> int:
        """Stop, and free everything that is of this run.

        Args:
            patience: Seconds to wait for calls that cannot be ended; None: as long as they take.

        Returns:
            How many calls were left behind.
        """
        self.stop()
        return 0

    def leave(self) -> None:
        """It is closed, and nobody is in here: let go of all that leads here."""
        self._batches = []


def _unrolled(post: Post, frame: Any, outcome: Any) -> Iterable[Outcome]:
    if not post.batch:
        return ((post, frame, outcome),)
    if type(outcome) is Ended:
        pairs = zip(frame, outcome.item, strict=True)
        return [(post, one, Ended(outcome.error, item)) for one, item in pairs]
    return [(post, one, out) for one, out in zip(frame, outcome, strict=True)]


# ---------------------------------------------------------------------- this thread


class InlineWay(Way):
    """The flow's own thread: what is taken is done then."""

    inline = True

    def __init__(self, bell: Bell) -> None:
        super().__init__(1, bell)

    def pump(self) -> None:
        """There is nobody to send it to."""

    def _take(self) -> list[Outcome]:
        """Some units, of a millisecond or one: others may have come to their end meanwhile."""
        found: list[Outcome] = []
        until = perf_counter() + QUIET_S
        while self.line:
            post, frame, item = self.line.popleft()
            token = HERE.set(HERE.get() if post.heard is None else post.heard.origin)
            try:
                out = post.call.fn(item)
            finally:
                HERE.reset(token)
            found.append((post, frame, settle(out) if type(out) is CoroutineType else out))
            if perf_counter() >= until:
                break
        return found


# ---------------------------------------------------------------------- threads


class ThreadWay(Way):
    """The threads of an executor in this process, which work off the line."""

    def __init__(
        self, executor: Any, width: int, bell: Bell, around: Callable[[Callable[[], None]], None]
    ) -> None:
        super().__init__(width, bell)
        self._executor = executor
        self._around = around  # calls a thread's work where graphs run in sequence
        self._lock = threading.Lock()  # guards the next two
        self._active: set[object] = set()  # one for each call that is under way
        self._futures: set[Any] = set()
        self._back: deque[Outcome] = deque()
        self._over = False

    def pump(self) -> None:
        if self.line:
            self._hire()

    def _hire(self) -> None:
        hired: list[object] = []
        try:
            with self._lock:
                active = len(self._active)
                more = min(self.width, active + self._waiting()) - active
                hired += [object() for _ in range(more)]
                self._active.update(hired)
            while hired:
                mark = hired[-1]
                future = self._executor.submit(self._around, partial(self._work_off, mark))
                hired.pop()
                with self._lock:
                    self._futures.add(future)
                future.add_done_callback(partial(self._gone, mark))
        except BaseException:  # Ctrl-C: the last may have been hired; then its mark goes twice
            with self._lock:
                self._active.difference_update(hired)
            raise

    def _waiting(self) -> int:
        """How many more threads would find something to do."""
        return len(self.line)

    def _gone(self, mark: object, future: Any) -> None:
        with self._lock:
            self._futures.discard(future)
            self._active.discard(mark)
        self.bell.ring()

    def _work_off(self, mark: object) -> None:
        """In a thread of the executor: one unit after the other, for a while."""
        line, take, back, ring = self.line, self.line.popleft, self._back.append, self.bell.ring
        now = rung = perf_counter()
        until = now + QUANTUM_S
        every = left = 1  # units to the next look at the clock: short ones are not all looked at
        known: Any = None
        call: Any = None
        token = HERE.set(HERE.get())  # so that all of it ends with this
        try:
            while now < until and not self._over:
                try:
                    post, frame, item = take()
                except IndexError:
                    break
                if post is not known:
                    known, call = post, post.call.fn
                    if post.heard is not None:
                        HERE.set(post.heard.origin)
                try:
                    out = call(item)
                    if type(out) is CoroutineType:
                        out = settle(out)
                except BaseException as error:
                    out = Ended(error, item)
                back((post, frame, out))
                left -= 1
                if left:
                    continue
                before, now = now, perf_counter()
                every = left = EVERY if now - before < every * SHORT_S else 1
                if now - rung > QUIET_S:
                    rung = now
                    ring()
        finally:
            HERE.reset(token)
            with self._lock:
                self._active.discard(mark)
        if line and not self._over:
            self._go_on()
        ring()

    def _go_on(self) -> None:
        try:
            self._hire()
        except BaseException as error:  # it was shut down meanwhile
            while self.line:
                post, frame, item = self.line.popleft()
                self._back.append((post, frame, Ended(error, item)))

    def _take(self) -> list[Outcome]:
        back = self._back
        return [back.popleft() for _ in range(len(back))]

    def stop(self) -> None:
        self._over = True
        super().stop()
        with self._lock:
            futures = tuple(self._futures)
        for future in futures:
            future.cancel()

    def close(self, patience: float | None = None) -> int:
        self.stop()
        deadline = None if patience is None else monotonic() + patience
        while True:
            with self._lock:
                futures = [future for future in self._futures if not future.done()]
            if not futures:
                return 0
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
            self.bell.wait(left)
        leave = getattr(self._executor, "leave", None)
        if leave is not None:
            leave(futures)
        return len(futures)


# ---------------------------------------------------------------------- lanes


class _Posted:
    """A post's lane, and whose the items in it are."""

    __slots__ = ("also", "lane", "whose")

    def __init__(self, lane: Any) -> None:
        self.lane = lane
        self.whose: dict[int, Any] = {}  # id of an item in the lane -> its frame
        self.also: dict[int, deque[Any]] = {}  # the same object may be in there twice

    def put(self, units: list[Unit]) -> None:
        whose = self.whose
        items = [item for _, _, item in units]
        keys = list(map(id, items))
        new = dict(zip(keys, [frame for _, frame, _ in units], strict=True))
        if len(new) == len(keys) and not whose:
            self.whose = new
        elif len(new) == len(keys) and whose.keys().isdisjoint(new):
            whose.update(new)
        else:
            for key, (_, frame, _) in zip(keys, units, strict=True):
                if key in whose:
                    self.also.setdefault(key, deque()).append(frame)
                else:
                    whose[key] = frame
        self.lane.put_many(items)

    def frames_of(self, items: list[Any]) -> list[Any]:
        """Whose items these are, in their order."""
        if self.also:
            return list(map(self.frame_of, items))
        return list(map(self.whose.pop, map(id, items)))

    def frame_of(self, item: Any) -> Any:
        key = id(item)
        frame = self.whose.pop(key)
        if self.also and key in self.also:
            more = self.also[key]
            self.whose[key] = more.popleft()
            if not more:
                del self.also[key]
        return frame


class LaneWay(Way):
    """A Lane for each post, all over one executor."""

    def __init__(self, executor: Any, width: int, bell: Bell) -> None:
        super().__init__(width, bell)
        self._executor = executor
        self._posted: dict[Post, _Posted] = {}
        self._sent = 0
        self._in_chunks = executor.type == "ipc_fork" or not executor.local
        if not executor.local:
            self.pace.least(REMOTE * width)
        if executor.type == "async":
            self.shares = 1  # its width says nothing of how many work

    def _lane_of(self, post: Post) -> _Posted:
        posted = self._posted.get(post)
        if posted is None:
            lane = self._executor.lane(post.make_work(), self.bell.ring)
            posted = self._posted[post] = _Posted(lane)
        return posted

    def pump(self) -> None:
        line = self.line
        while line and not self.paused and self._sent < self.pace.cap:
            post = line[0][0]
            units: list[Unit] = []
            room = self.pace.cap - self._sent if self._in_chunks else 1
            if len(line) <= room and len({id(unit[0]) for unit in line}) == 1:
                units += line
                line.clear()
            while line and len(units) < room and line[0][0] is post:
                units.append(line.popleft())
            self._sent += len(units)
            self._lane_of(post).put(units)

    def _take(self) -> list[Outcome]:
        found: list[Outcome] = []
        for post, posted in self._posted.items():
            if not posted.whose:
                continue
            for piece in posted.lane.take_many(0):
                if type(piece) is Batch:
                    frames = posted.frames_of(piece.items)
                    found += zip(repeat(post), frames, piece.outputs)
                elif piece.done:
                    item, failure = piece.item, piece.failure
                    out = piece.outputs[0] if failure is None else Ended(failure, item)
                    found.append((post, posted.frame_of(item), out))
        self._sent -= len(found)
        return found

    def stop(self) -> None:
        super().stop()
        for posted in self._posted.values():
            posted.lane.stop()

    def close(self, patience: float | None = None) -> int:
        self.stop()
        return sum(posted.lane.close(patience) for posted in tuple(self._posted.values()))

    def leave(self) -> None:
        super().leave()
        self._posted = {}

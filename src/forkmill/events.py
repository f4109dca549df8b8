"""The one stream of what happens: events, who hears them, and the thread that tells them.

    any thread:       Emitter.emit ──▶ event ──▶ a deque
                                                   │ seq
    forkmill-events:  runs' progress, pools ──▶────┤
                      ten times a second           └──▶ a queue a subscriber ──▶ its sink

An event is a dict of plain data:

    schema      1
    source      "pipeline", "pool", "map": who tells it
    run         an id (uuid7) of the run, or of the pool, that it is about
    parent      the id of the run that this one is part of, or None
    seq         a number of this process, unique and rising for each subscriber
    time        seconds since the epoch
    monotonic   seconds by the monotonic clock, which processes share
    kind        run_started, stage_finished, retry, worker_died, progress, ...
    name        the stage, the pool, ..., or None
    item        an item as short text, or None
    attempt     which try, or None
    worker      the pid of a worker, or None
    seconds     how long it took, or None
    data        what belongs to the kind

Guarantees:
    * Without a subscriber nothing is made, and there is no thread.
    * Sinks are called in that one thread, one at a time. What they raise is counted, told to
      `logging` once, and changes nothing.
    * Whoever emits takes no lock, so nothing can be left locked by what a signal handler raises,
      and a finalizer may emit. With the policy "block" it waits, 30 s at the most.
    * Each queue is bounded. Who loses events gets a "gap" in their place: {lost, first, last}.
    * A forked child has no subscribers.
    * At the interpreter's end the stream ends after the pools, then `close` of sinks is called.

A subscriber:

    state    by                         an event                               until
    open     subscribe, sinks=, attach  is queued                              its queue is full
    full     an event without room      "drop": is counted; "block": stays in  there is room: then
                                        the deque, and holds the emitters up   the gap, first
    patient  full for 30 s ("block")    as "drop"                              its queue is empty
    ended    end, its run's end, exit   is not for it                          -

The stream:

    idle     nobody subscribes          is not made                            a subscriber
    waiting  a run with sinks opens     is in the deque (forks come before     its contexts are open
                                        threads)
    live     the thread has begun       see above                              the last one ends

Invariants:
    * EV-1  Only the thread takes from the deque, gives numbers and touches queues.
    * EV-2  The thread that ends takes its name off first, and looks for subscribers after that;
      who subscribes is there first, and looks for the thread after that. So one of them begins
      another thread.

Threads: any, unless it says otherwise.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import fcntl
import itertools
import os
import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from . import _checks
from ._process import EARS, STREAM, TELLERS, Latch, LoneThread
from ._said import HERE, here, item_here, short, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Event = dict[str, Any]

__all__ = [
    "SCHEMA",
    "Ear",
    "Emitter",
    "JsonLines",
    "PartOf",
    "Subscription",
    "bare",
    "begin",
    "check_sinks",
    "current",
    "detail",
    "each_event",
    "expand",
    "heard",
    "known",
    "listened",
    "new_id",
    "read_events",
    "say",
    "short",
    "subscribe",
    "wake",
    "words",
]

SCHEMA = 1
DRAIN_S = 5.0  # for subscribers, at the end of a run
_BLOCK_S = 30.0  # that one with the policy "block" may hold a run up
_TICK_S = 0.1  # between two looks at how far runs are, and at pools
_GATHER_S = 0.005  # between two looks at the deque while events come
_SLICE_S = 0.05  # for one subscriber, before the next one has its turn
_BATCH = 1000  # events in one call of a sink's `batch`
_BUFFER = 10_000
_NEVER = float("inf")

DETAILS = ("runs", "items", "every")
POLICIES = ("drop", "block")


class Subscription:
    """A sink that is called with events. Calling this ends it: then no event comes any more.

    Attributes:
        sink: Called with an event; if it has a method `batch`, that is called with a list of them.
        errors: How often it raised.
        lost: How many events it did not get because it was too slow.
    """

    __slots__ = (
        "__weakref__",
        "_batch",
        "_buffer",
        "_calls",
        "_detail",
        "_ended",
        "_full_since",
        "_gap",
        "_gave_way",
        "_home",
        "_policy",
        "_queue",
        "_since",
        "errors",
        "lost",
        "quiet",
        "sink",
    )

    def __init__(
        self, sink: Any, detail: str, policy: str, buffer: int, home: Emitter | None
    ) -> None:
        self.sink = sink
        self.quiet: bool = getattr(sink, "quiet", False)  # for its sake tasks need say nothing
        self.errors = self.lost = 0
        self._batch = getattr(sink, "batch", None)
        self._detail = detail
        self._policy = policy
        self._buffer = buffer
        self._home = home  # the run whose events it gets; None: all
        self._queue: deque[Any] = deque()  # events, and `_Flush`es
        self._gap: list[int] = []  # how many are lost since it was full, the first, the last
        self._since = time.monotonic()
        self._full_since = 0.0
        self._gave_way = self._ended = False

    def __call__(self) -> None:
        """End it. What was told before it still gets, if it takes less than 5 s. Idempotent."""
        if not self._ended and not _bus.here:
            _bus.drain([self], DRAIN_S)
        self.end()

    def end(self) -> None:
        """End it now."""
        self._ended = True
        (_bus.everyone if self._home is None else self._home.own).pop(self, None)
        _bus.wake()

    # Everything below: in the thread of the stream.

    def full(self) -> bool:
        """Whether it holds the emitters up."""
        if self._policy == "drop" or self._ended:
            return False
        if len(self._queue) < self._buffer:
            self._full_since = 0.0
            self._gave_way = self._gave_way and bool(self._queue)
            return False
        now = time.monotonic()
        self._full_since = self._full_since or now
        self._gave_way = self._gave_way or now - self._full_since > _BLOCK_S
        return not self._gave_way

    def take(self, event: Event) -> None:
        """Queue it, if it is for this one and there is room."""
        if self._ended or event["monotonic"] < self._since:
            return
        if event["kind"] == "items" and self._detail == "runs":
            return
        if len(self._queue) >= self._buffer:
            self.lose(1, event["seq"])
            return
        self.tell_gap()
        self._queue.append(event)

    def lose(self, number: int, last: int) -> None:
        """It does not get so many events, up to this number."""
        self.lost += number
        if self._gap:
            self._gap[0] += number
            self._gap[2] = last
        else:
            self._gap = [number, last - number + 1, last]

    def tell_gap(self) -> None:
        """Queue what it has lost: with the last number of those, which is free."""
        if self._gap:
            (lost, first, last), self._gap = self._gap, []
            run, parent = (self._home.id, self._home.parent) if self._home else (None, None)
            data = {"lost": lost, "first": first, "last": last}
            self._queue.append(_event("stream", run, parent, last, "gap", data))

    def work(self) -> bool:
        """Call the sink with some of what is queued; whether there is more."""
        queue = self._queue
        until = time.monotonic() + _SLICE_S
        while queue and not self._ended:
            if self._batch is not None:
                self._call(self._batch, self._some())
            elif type(event := queue.popleft()) is _Flush:
                event.reached(self)
            else:
                self._call(self.sink, event)
            if not queue:
                self.tell_gap()
            if time.monotonic() >= until:
                break
        if self._ended:
            self._drop()
        return bool(queue)

    def _some(self) -> list[Event]:
        events: list[Event] = []
        while self._queue and len(events) < _BATCH:
            event = self._queue.popleft()
            if type(event) is not _Flush:
                events.append(event)
            elif events:
                self._queue.appendleft(event)  # it is reached when these are taken
                break
            else:
                event.reached(self)
        return events

    def _call(self, call: Callable[[Any], object], what: Any) -> None:
        if not what:
            return
        try:
            call(what)
        except BaseException as error:
            self.errors += 1
            if self._home is not None:
                self._home.errors += 1
            if self.errors == 1:
                _complain("a sink of events raised; it is only counted from here on", error)

    def _drop(self) -> None:
        """It has ended: nobody waits for it any more."""
        queue = self._queue
        while queue:
            event = queue.popleft()
            if type(event) is _Flush:
                event.reached(self)
        _bus.subscribers.pop(self, None)
        if not listened():
            _bus.listen()


class _Flush:
    """Goes the way of an event: everything before it has been told, or nobody waits any more."""

    __slots__ = ("_ends", "_left", "latch")

    def __init__(self, subscribers: Iterable[Subscription], ends: Emitter | None) -> None:
        self._left = dict.fromkeys(subscribers)
        self._ends = ends  # the run that is over
        self.latch = Latch()

    def go(self, alive: dict[Subscription, None]) -> None:
        """Into the queues."""
        for subscriber in tuple(self._left):
            if subscriber in alive:
                subscriber._queue.append(self)
            else:
                self.reached(subscriber)

    def reached(self, subscriber: Subscription) -> None:
        """One of them is so far."""
        self._left.pop(subscriber, None)
        if not self._left:
            self.latch.set()
        if self._ends is not None and subscriber._home is self._ends:
            subscriber.end()


class Emitter:
    """What a run, or a pool, tells its events with.

    Args:
        source: "pipeline", "pool", ...
        above: The run that it is part of, and whose sinks hear it too.
        parent: The id of the run that it is part of, if no sink of that one hears it.

    Attributes:
        id: What its events have as `run`.
        own: Who hears only this one.
        errors: How often one of these raised.
        over: Whether it has ended: nobody is attached any more.
        progress: How far it is, as the data of an event; while its contexts are open.
        calling: The stage whose function the run's own thread is in, and the item; while it runs.
        traced: How many tracebacks were told.
    """

    __slots__ = (
        "__weakref__",
        "_flush",
        "above",
        "calling",
        "errors",
        "id",
        "over",
        "own",
        "parent",
        "progress",
        "source",
        "traced",
    )

    def __init__(
        self, source: str, above: Emitter | None = None, parent: str | None = None
    ) -> None:
        self.source = source
        self.id = new_id()
        self.above = above
        self.parent = above.id if above is not None else parent
        self.own: dict[Subscription, None] = {}
        self.errors = self.traced = 0
        self.over = False
        self.progress: Callable[[], dict[str, Any]] | None = None
        self.calling: Callable[[], tuple[str, Any]] | None = None
        self._flush: _Flush | None = None
        _emitters[self.id] = self

    @classmethod
    def beginning(cls, source: str) -> Emitter:
        """That of a run that begins here: part of the one that the code here works for, if any."""
        origin = here()
        run = None if origin is None else origin[0]
        above = None if run is None else _emitters.get(run)
        return cls(source, above, run)

    @property
    def heard(self) -> bool:
        """Whether anybody listens: else there is nothing to be made."""
        if _bus.everyone or self.own:
            return True
        return self.above is not None and self.above.heard

    @property
    def detail(self) -> str:
        """The most that anybody who listens wants to know."""
        details = [subscriber._detail for subscriber in self.listeners()]
        return max(details, key=DETAILS.index, default="runs")

    def emit(
        self,
        kind: str,
        name: str | None = None,
        *,
        item: str | None = None,
        attempt: int | None = None,
        worker: int | None = None,
        seconds: float | None = None,
        **data: Any,
    ) -> None:
        """Tell everybody that listens. May be called under locks, and in finalizers."""
        if not self.own and not _bus.everyone:
            above = self.above
            if above is None or not above.heard:
                return
        _bus.put(
            {
                "schema": SCHEMA,
                "source": self.source,
                "run": self.id,
                "parent": self.parent,
                "seq": 0,
                "time": _time(),
                "monotonic": _monotonic(),
                "kind": kind,
                "name": name,
                "item": item,
                "attempt": attempt,
                "worker": worker,
                "seconds": seconds,
                "data": data,
            },
            self,
        )

    def emit_late(
        self, at: float, kind: str, name: str, worker: int | None, data: dict[str, Any]
    ) -> None:
        """Tell what has happened before, `at` by the monotonic clock."""
        if self.heard:
            event = _event(self.source, self.id, self.parent, 0, kind, data)
            event["time"] += at - event["monotonic"]
            event.update(monotonic=at, name=name, worker=worker)
            _bus.put(event, self)

    def listeners(self) -> list[Subscription]:
        """Who hears it."""
        found = [*_bus.everyone, *self.own]
        return found if self.above is None else [*found, *self.above._beside()]

    def _beside(self) -> list[Subscription]:
        return [*self.own, *(self.above._beside() if self.above is not None else ())]

    def attach(self, sink: Any) -> None:
        """Have a sink called from the next event on. See `check_sink`."""
        subscriber = Subscription(sink, *_wishes(sink), self)
        _bus.add(subscriber, self.own)
        if self.over:
            subscriber.end()
        if self.progress is not None or self.over:
            _bus.begin()

    def detach(self, sink: Any) -> None:
        """No longer call it; nothing if it is not attached."""
        for subscriber in tuple(self.own):  # a bound method is another object each time, but equal
            if subscriber.sink == sink:
                subscriber.end()

    def begin(self, progress: Callable[[], dict[str, Any]]) -> None:
        """From here on a thread may be there, and is asked for progress ten times a second."""
        self.progress = progress
        _bus.emitters[self] = None
        if self.over:  # another thread has ended the run, which this one was held by user code in
            self.progress = None
            _bus.emitters.pop(self, None)
        elif self.heard:
            _bus.begin()

    def finish(self, seconds: float) -> None:
        """It is over: who hears it gets what was told, if that takes less than so many seconds.

        `hurry` cuts that short, from anywhere. Who hears it as part of another run has its time at
        the end of that.
        """
        self.over = True  # first: nobody may come behind that, and `begin` looks at it afterwards
        _bus.emitters.pop(self, None)
        listeners = [*self.own, *(_bus.everyone if self.above is None else ())]
        if listeners and not _bus.here:
            _bus.drain(listeners, seconds, self)
            for subscriber in tuple(self.own):
                subscriber.end()
            _bus.wake()  # who was broken off in here comes again, and may have ended them all
        elif listeners:  # this is a sink's run: the thread goes on when it is over
            _bus.queue.append((None, _Flush(listeners, self)))
        self.progress = self.calling = None

    def settle(self, seconds: float) -> None:
        """Wait until its own sinks have got what was told so far, at most so many seconds. Not in a
        sink."""
        if self.own and not _bus.here:
            _bus.drain([*self.own], seconds)

    def hurry(self) -> None:
        """Whoever waits for its sinks does so no longer. In a signal handler, too."""
        flush = self._flush
        if flush is not None:
            flush.latch.set()


class _Bus:
    """What is between emitters and subscribers: one a process. See the head of this file."""

    def __init__(self) -> None:
        # Dicts, because adding and taking away are one step each.
        self.subscribers: dict[Subscription, None] = {}  # all of them, also while they end
        self.everyone: dict[Subscription, None] = {}  # those who hear every run
        self.emitters: dict[Emitter, None] = {}  # runs that are asked how far they are
        self.queue: deque[Any] = deque()  # (event, emitter), (None, flush)
        self.bound = 1  # of the deque: the largest buffer
        self.asleep = False
        self._threads: dict[str, LoneThread] = {}  # one or none
        self._live = Latch()
        self._bell = _thread.allocate_lock()  # open: there is something to look at
        self._bell.acquire()
        # Guards that nobody is told to be silent for whom there is a subscriber by now.
        self._listening = threading.RLock()
        self._seq = 0
        self._dropped = itertools.count()  # its next(), unlike +=, is one step
        self._seen_dropped = 0
        self._held_up: deque[Latch] = deque()  # of emitters that wait for room
        self._patience_over = False
        self._tick_at = 0.0
        self._lot: deque[Any] = deque()  # what was said together, and is not told yet
        self._hear_at = 0.0
        self._hear_every = _TICK_S  # less while there is much to hear

    # ------------------------------------------------------------------ any thread

    @property
    def here(self) -> bool:
        """Whether this is the thread."""
        thread = self._threads.get("one")
        return thread is not None and thread.here

    def add(self, subscriber: Subscription, group: dict[Subscription, None]) -> None:
        """There is one more."""
        self.bound = max(self.bound, subscriber._buffer)
        group[subscriber] = None  # first: who is broken off in here finds it there
        self.subscribers[subscriber] = None
        _remember(subscriber.sink)
        self.listen()

    def listen(self) -> None:
        """Have tasks of other processes say what they have to say, if there is a subscriber."""
        with self._listening:
            heard = None
            while heard is not listened():  # there may be one more meanwhile
                heard = listened()
                for ear in tuple(EARS):
                    ear.listen(heard)

    def hear(self) -> None:
        """Fetch what was said."""
        for ear in tuple(EARS):
            ear.hear()

    def words(self, take: Callable[[Callable[[Any], object]], object]) -> None:
        """Have take() put words into the deque; each with what opens it (see `Ear`)."""
        if len(self.queue) < self.bound or self._room():
            take(self.queue.append)
        else:
            take(self._drop_lot)
        self._ring()

    def _drop_lot(self, entry: list[Any]) -> None:
        lot, ear, _ = entry
        for _ in range(lot if isinstance(lot, int) else ear.count(lot)):
            next(self._dropped)

    def _ring(self) -> None:
        if self.asleep:
            self.asleep = False
            self.wake()

    def begin(self) -> bool:
        """Have the thread; whether it is there."""
        thread = self._threads.get("one")
        if thread is None:
            thread = self._threads.setdefault("one", LoneThread(self._serve, "forkmill-events"))
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had: what happens is not told
            return False
        self.wake()
        if not thread.here:
            self._live.wait(1.0)  # so that it has its name
        return True

    def wake(self) -> None:
        """There is something to look at."""
        if self._bell.locked():
            try:  # noqa: SIM105
                self._bell.release()
            except RuntimeError:  # another thread has done it meanwhile
                pass

    def put(self, event: Event, emitter: Emitter) -> None:
        """Hand an event over."""
        if len(self.queue) >= self.bound and not self._room():
            next(self._dropped)
            return
        self.queue.append((event, emitter))
        self._ring()

    def _room(self) -> bool:
        """The deque is full: wait for room, if somebody shall not lose anything."""
        if self.here or not any(s._policy == "block" for s in tuple(self.subscribers)):
            return False
        until = time.monotonic() + _BLOCK_S
        while not self._patience_over and (left := until - time.monotonic()) > 0:
            latch = Latch()
            self._held_up.append(latch)
            if len(self.queue) < self.bound:
                return True
            if not self.begin():
                return False
            latch.wait(left)
        self._patience_over = True  # until the thread has made room
        return len(self.queue) < self.bound

    def drain(
        self, subscribers: list[Subscription], seconds: float, over: Emitter | None = None
    ) -> None:
        """Wait until these have got what was told, for so many seconds at the most.

        Args:
            subscribers: Who.
            seconds: How long.
            over: The run that is over: those that hear only this one end then.
        """
        self.hear()
        flush = _Flush(subscribers, over)
        if over is not None:
            over._flush = flush
        self.queue.append((None, flush))
        if self.begin():
            flush.latch.wait(seconds)

    # ------------------------------------------------------------------ the thread

    def _serve(self) -> None:
        self._live.set()
        while True:
            took = self._take()
            busy = False
            for subscriber in tuple(self.subscribers):
                busy = subscriber.work() or busy
            now = time.monotonic()
            ticks = bool(self.emitters or (self.everyone and TELLERS))
            if ticks and now >= self._tick_at:
                self._tick_at = now + _TICK_S
                self._tick()
            elif EARS and now >= self._hear_at and self.subscribers:
                self._hear_often(now)
            elif busy:
                continue
            elif not self.subscribers:
                self._retire()
                return
            elif took:
                self._bell.acquire(timeout=_GATHER_S)
            else:
                self._rest(self._next_look(ticks) - now)

    def _hear_often(self, now: float) -> None:
        before = len(self.queue)
        self.hear()
        said = len(self.queue) > before
        self._hear_every = _GATHER_S if said else min(2 * self._hear_every, _TICK_S)
        self._hear_at = now + self._hear_every

    def _next_look(self, ticks: bool) -> float:
        """When to look again if nothing is told."""
        at = self._tick_at if ticks else _NEVER
        return min(at, self._hear_at) if EARS else at

    def _take(self) -> bool:
        """From the deque into the queues; whether there was anything."""
        queue = self.queue
        count, left = 0, len(queue)
        blocking = [s for s in tuple(self.subscribers) if s._policy == "block"]
        while left or self._lot:
            if blocking and any(subscriber.full() for subscriber in blocking):
                break
            if not self._lot:
                left -= 1
                entry = queue.popleft()
                if type(entry) is list:
                    self._lot.extend(_opened_lot(*entry))
                    continue
            else:
                entry = self._lot.popleft()
            event, emitter = entry
            count += 1
            if event is None:
                emitter.go(self.subscribers)
                continue
            self._seq += 1
            event["seq"] = self._seq
            first, *others = emitter.listeners() or (None,)
            for subscriber in others:  # each its own: a sink may change it
                subscriber.take({**event, "data": dict(event["data"])})
            if first is not None:
                first.take(event)
        self._tell_dropped()
        if count:
            self._patience_over = False
            while self._held_up:
                self._held_up.popleft().set()
        return count > 0

    def _tell_dropped(self) -> None:
        """What found the deque full came behind all that was in it."""
        dropped = int(repr(self._dropped)[6:-1])  # count(7)
        number, self._seen_dropped = dropped - self._seen_dropped, dropped
        if number:
            self._seq += number
            for subscriber in tuple(self.subscribers):
                subscriber.lose(number, self._seq)
                if not subscriber._queue:
                    subscriber.tell_gap()

    def _tick(self) -> None:
        for emitter in tuple(self.emitters):
            if emitter.progress is not None and emitter.heard:
                try:
                    emitter.emit("progress", **emitter.progress())
                except Exception as error:
                    _complain("a run could not tell how far it is", error)
        if self.everyone:
            for teller in tuple(TELLERS):
                teller()

    def _rest(self, seconds: float) -> None:
        self.asleep = True
        if self.queue:
            self.asleep = False
            return
        for_ever = seconds > threading.TIMEOUT_MAX
        self._bell.acquire(timeout=-1 if for_ever else max(seconds, 0.0))
        self.asleep = False
        if for_ever:
            self._tick_at = time.monotonic() + _TICK_S

    def _retire(self) -> None:
        """End the thread (EV-2)."""
        self._live = Latch()
        self._threads.pop("one", None)
        if self.subscribers:
            self.begin()

    # ------------------------------------------------------------------ the end

    def end(self) -> None:
        """The interpreter ends. Ctrl-C cuts the wait."""
        until = time.monotonic() + DRAIN_S
        thread = self._threads.get("one")
        if self.subscribers:
            self.drain([*self.subscribers], DRAIN_S)
        for subscriber in tuple(self.subscribers):
            subscriber.end()
        if thread is not None and thread.alive:
            thread.join(max(0.0, until - time.monotonic()))


# Of runs and pools, by id: whom a word is for that comes from another process.
_emitters: weakref.WeakValueDictionary[str, Emitter] = weakref.WeakValueDictionary()

_bus = _Bus()
STREAM[:] = [sys.modules[__name__]]
_time, _monotonic = time.time, time.monotonic


def current() -> Emitter | None:
    """The run that the code here works for, if it is one of this process."""
    origin = here()
    return None if origin is None or origin[0] is None else _emitters.get(origin[0])


class PartOf(within):
    """Within it runs that begin here are part of this one, and what is said is its."""

    __slots__ = ()

    def __init__(self, emitter: Emitter) -> None:
        self._origin = (emitter.id, None, {}, HERE.get())


# ---------------------------------------------------------------------------- what tasks say


def say(value: object) -> None:
    """A task of this process says something."""
    if not _bus.subscribers:
        return
    origin = HERE.get()
    run, name, data, _ = (None, None, {}, None) if origin is None else origin
    emitter = bare() if run is None else _emitters.get(run)
    if emitter is not None and emitter.heard:
        event = _event(emitter.source, emitter.id, emitter.parent, 0, "said", {})
        item = item_here()
        if name is None and emitter.calling is not None:
            name, found = emitter.calling()
            item = item if found is None else short(found)
        event["data"] = {"value": value, **data}
        event.update(name=name or None, item=item)
        _bus.put(event, emitter)


def known(run: str | None) -> bool:
    """Whether it is a run of this process."""
    return run in _emitters


def listened() -> bool:
    """Whether anybody wants to know what tasks say."""
    return any(not subscriber.quiet for subscriber in tuple(_bus.subscribers))


def detail() -> str:
    """The most that anybody wants to know who hears everything."""
    wishes = [subscriber._detail for subscriber in tuple(_bus.everyone)]
    return max(wishes, key=DETAILS.index, default="runs")


def begin() -> None:
    """Have the thread, for who was attached to what is no run."""
    _bus.begin()


def words(take: Callable[[Callable[[Any], object]], object]) -> None:
    """Words were said elsewhere: take() puts them where it is told to, with the `Ear` for each."""
    _bus.words(take)


class Ear:
    """What opens the words of an executor's tasks, in the thread of the stream.

    Args:
        words: The words of a lot: (when in ns, (kind, run, name, item, data, value)), or an
            exception in the place of the word.
        home: The emitter of those that no run is known of; None: nobody hears it.
        logs: The emitter of what was logged, if anybody wants that.
    """

    __slots__ = ("_home", "_logs", "_words")

    def __init__(
        self,
        words: Callable[[bytes], list[Any]],
        home: Callable[[], Emitter | None],
        logs: Callable[[], Emitter | None] = lambda: None,
    ) -> None:
        self._words = words
        self._home = home
        self._logs = logs

    def open(self, lot: bytes, worker: int) -> Iterator[tuple[Event, Emitter]]:
        """The event of each word, and whose it is; of those that nobody hears none."""
        for at_ns, word in self._words(lot):
            if isinstance(word, BaseException):
                error = f"it cannot be rebuilt here: {type(word).__name__}: {word}"
                word = ("said", None, None, None, {"error": short(error)}, None)
            kind, run, name, item, data, value = word
            emitter = self._logs() if kind == "log" else _emitters.get(run or "")
            emitter = emitter or self._home()
            if emitter is None or not emitter.heard:
                continue
            parent = emitter.parent if run in (None, emitter.id) else None
            event = _event(emitter.source, run or emitter.id, parent, 0, kind, {})
            event["data"] = {"value": value, **data} if kind == "said" else data
            at = at_ns / 1e9
            event["time"] += at - event["monotonic"]
            event.update(name=name, item=item, worker=worker, monotonic=at)
            yield event, emitter

    def count(self, lot: bytes) -> int:
        """How many words a lot has."""
        return len(self._words(lot))

    def lost(self, number: int, worker: int) -> tuple[Event, Any]:
        """So many words of a worker found no room."""
        home = self._home() or bare()
        data = {"lost": number, "first": None, "last": None}
        event = _event(home.source, home.id, home.parent, 0, "gap", data)
        event["worker"] = worker
        return event, _Everybody


class _Everybody:
    """Whom it may concern."""

    @staticmethod
    def listeners() -> list[Subscription]:
        return [*_bus.subscribers]


def _opened_lot(lot: bytes | int, ear: Ear, worker: int) -> list[tuple[Event, Any]]:
    """What take_said() has put into the deque."""
    try:
        return [ear.lost(lot, worker)] if isinstance(lot, int) else [*ear.open(lot, worker)]
    except BaseException as error:
        _complain("what a task said could not be told", error)
        return []


_bare_ones: dict[str, Emitter] = {}


def bare() -> Emitter:
    """The emitter of tasks that belong to no run and to no pool."""
    emitter = _bare_ones.get("one")
    return emitter or _bare_ones.setdefault("one", Emitter("task"))


def heard() -> bool:
    """Whether somebody hears everything."""
    return bool(_bus.everyone)


def wake() -> None:
    """There is one more in TELLERS."""
    _bus.wake()


def new_id() -> str:
    """A uuid7 (RFC 9562): ids that were made later sort behind. Only Python 3.14 has it."""
    stamp = time.time_ns()
    value = (stamp // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # the version
    value = value & ~(0x3 << 62) | 0x2 << 62  # the variant
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _event(
    source: str, run: str | None, parent: str | None, seq: int, kind: str, data: dict[str, Any]
) -> Event:
    head = {"schema": SCHEMA, "source": source, "run": run, "parent": parent, "seq": seq}
    clocks = {"time": time.time(), "monotonic": time.monotonic()}
    rest = {"item": None, "attempt": None, "worker": None, "seconds": None, "data": data}
    return {**head, **clocks, "kind": kind, "name": None, **rest}


def _complain(text: str, error: BaseException) -> None:
    import logging

    logger = logging.getLogger("forkmill.events")
    if not logging.getLogger("forkmill").handlers:  # else it would end up on standard error
        logging.getLogger("forkmill").addHandler(logging.NullHandler())
    with contextlib.suppress(Exception):  # a filter's
        logger.warning("%s: %s", text, short(error), exc_info=error)


# ------------------------------------------------------------------------ subscribing


def subscribe(
    sink: Any, *, detail: str = "runs", policy: str = "drop", buffer: int = _BUFFER
) -> Subscription:
    """Have a sink called with all events of this process from now on, in one thread of ours.

    Args:
        sink: Called with each event, a dict. If it has a method ``batch``, that is called with
            lists of them instead; if it has ``close``, that is called when the interpreter ends.
        detail: "runs"; or "items": also one event for each chunk of items, where calls under 20 us
            are sampled; or "every": all calls are measured.
        policy: What a sink that is too slow brings about: it loses events ("drop"), or what
            happens is slowed down ("block", for 30 s at the most).
        buffer: How many events may wait for it.

    Returns:
        What ends it, when it is called: afterwards no event comes any more. Its attributes
        `errors` and `lost` tell how often the sink raised, and how many events it has lost.

    Raises:
        TypeError, ValueError: One of the arguments.
        RuntimeError: There is no thread to be had.
    """
    subscriber = Subscription(sink, *_checked(sink, detail, policy, buffer), None)
    try:
        _bus.add(subscriber, _bus.everyone)
        if not _bus.begin():
            raise RuntimeError("no thread can be started that would tell the events")
    except BaseException:
        subscriber.end()
        _bus.subscribers.pop(subscriber, None)
        raise
    return subscriber


def check_sinks(sinks: Any) -> tuple[Any, ...]:
    """The sinks of a run, as a tuple.

    Raises:
        TypeError, ValueError: One is no sink, or wishes for what there is not.
    """
    found = _checks.objects("sinks", sinks)
    for sink in found:
        _wishes(sink)
    return found


def _wishes(sink: Any) -> tuple[str, str, int]:
    """Detail, policy and buffer of a sink that was given to a run: what its attributes say."""
    detail = getattr(sink, "detail", "runs")
    policy = getattr(sink, "policy", "drop")
    return _checked(sink, detail, policy, getattr(sink, "buffer", _BUFFER))


def _checked(sink: Any, detail: Any, policy: Any, buffer: Any) -> tuple[str, str, int]:
    if not callable(getattr(sink, "batch", None)):
        _checks.a_callable("a sink", sink)
    for name, value, allowed in (("detail", detail, DETAILS), ("policy", policy, POLICIES)):
        if value not in allowed:
            near = _checks.nearest(value, allowed)
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}{near}")
    return detail, policy, _checks.integer("buffer", buffer, least=1)


# Sinks that have a `close`, for the interpreter's end. Weak, where they can be: what nobody has any
# more closes itself.
_closing: list[Any] = []


def _remember(sink: Any) -> None:
    if not callable(getattr(sink, "close", None)) or any(ref() is sink for ref in _closing):
        return
    try:
        _closing.append(weakref.ref(sink, _closing.remove))
    except TypeError:
        _closing.append(lambda: sink)


def _at_exit() -> None:
    try:
        _bus.end()
    finally:
        for ref in tuple(_closing):
            sink = ref()
            try:
                if sink is not None:
                    sink.close()
            except Exception as error:
                _complain("a sink of events could not be closed", error)


def _in_child() -> None:
    for subscriber in tuple(_bus.subscribers):
        if subscriber._home is not None:
            subscriber._home.own.clear()
    _bus.__init__()  # type: ignore[misc]
    _closing.clear()
    _bare_ones.clear()
    _emitters.clear()
    EARS.clear()


atexit.register(_at_exit)  # pools end before it, by threading's own hook
os.register_at_fork(after_in_child=_in_child)


# ---------------------------------------------------------------------------- files


class JsonLines:
    """A sink that appends events to a file, a JSON object a line. ::

        line.run(sinks=[fm.JsonLines("run.jsonl", detail="items")])

    Several processes may write to one file: each batch of whole lines is one write. `read_events`
    reads it, also while it is written.

    Args:
        path: The file; it is made if it is not there.
        detail: As for `subscribe`.
        policy: As for `subscribe`.

    Raises:
        OSError: It cannot be opened.
        ValueError: detail or policy.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, detail: str = "runs", policy: str = "drop"
    ) -> None:
        self.path = os.fspath(path)
        self.detail, self.policy, _ = _checked(self, detail, policy, _BUFFER)
        self._fd = _opened(self.path)
        self._torn = _ends_torn(self.path)

    def __call__(self, event: Event) -> None:
        """Write one."""
        self.batch([event])

    def batch(self, events: list[Event]) -> None:
        """Write some.

        Raises:
            OSError: The disk is full, or so.
            ValueError: It was closed.
        """
        if self._fd < 0:
            raise ValueError(f"{self.path!r} was closed")
        import json

        encode = json.JSONEncoder(default=_plain, separators=(",", ":")).encode
        lines = "".join([f"{encode(event)}\n" for event in events])
        data = memoryview(f"\n{lines}".encode() if self._torn else lines.encode())
        self._torn = True  # unless all of it is written
        while data:
            data = data[os.write(self._fd, data) :]
        self._torn = False

    def close(self) -> None:
        """Write nothing more. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def _opened(path: str) -> int:
    """A descriptor above 2, to append with."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _ends_torn(path: str) -> bool:
    """Whether a file has a last line without its end."""
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # it is empty, or no file to be read
        return False


def _plain(value: Any) -> Any:
    """What JSON does not know, as text."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        import base64

        return base64.b64encode(value).decode("ascii")
    return short(value)


def read_events(path: str | os.PathLike[str]) -> list[Event]:
    """The events in a file that a `JsonLines` writes, or has written.

    A last line that is not whole is left out: it is being written, or its writer has died. One in
    the middle, which somebody else wrote on behind, is told by an event of the kind "gap".

    Raises:
        OSError: It cannot be read.
    """
    return list(each_event(path))


def each_event(path: str | os.PathLike[str]) -> Iterator[Event]:
    """As `read_events`, one after the other: for files of any size."""
    import json

    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict):
                yield event
            elif line.strip():
                data = {"lost": 1, "first": None, "last": None}
                yield _event("stream", None, None, 0, "gap", data)


def expand(event: Event) -> list[dict[str, Any]]:
    """The calls of an event of the kind "items": for each {number, begin, seconds, worker}.

    number counts the calls that this worker makes for this stage, from 0; begin is by the monotonic
    clock, in seconds. Of calls that were not measured begin and seconds are None. An event of
    another kind has none.
    """
    if event["kind"] != "items":
        return []
    from array import array

    data = event["data"]
    packed = data["packed"]
    if isinstance(packed, str):  # from a file
        import base64

        packed = base64.b64decode(packed)
    values = array("d", packed)
    first, worker = data["first"], event["worker"]
    rest = {"begin": None, "seconds": None, "worker": worker}
    calls: list[dict[str, Any]] = [{"number": first + i, **rest} for i in range(data["count"])]
    for number, begin, seconds in zip(values[::3], values[1::3], values[2::3], strict=True):
        calls[int(number)].update(begin=begin, seconds=seconds)
    return calls

"""Who hears events, and what goes their way: the table of a subscriber is in this package's head.

Threads: the thread of the stream, but where it says otherwise.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from .._process import Latch
from .event import complain, event_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .event import Event

DRAIN_S = 5.0  # for subscribers, at the end of a run
BLOCK_S = 30.0  # that one with the policy "block" may hold a run up
_SLICE_S = 0.05  # for one subscriber, before the next one has its turn
_BATCH = 1000  # events in one call of a sink's `batch`


class Home(Protocol):
    """The run, or the pool, whose events somebody hears: an `Emitter`."""

    id: str
    parent: str | None
    own: dict[Subscription, None]
    errors: int


class Bus(Protocol):
    """What a subscriber knows of the stream."""

    subscribers: dict[Subscription, None]
    everyone: dict[Subscription, None]

    @property
    def here(self) -> bool: ...
    def drain(self, subscribers: list[Subscription], seconds: float) -> None: ...
    def listen(self) -> None: ...
    def listened(self) -> bool: ...
    def wake(self) -> None: ...


class Subscription:
    """A sink that is called with events. Calling this ends it: then no event comes any more.

    Attributes:
        sink: Called with an event; if it has a method `batch`, that is called with a list of them.
        errors: How often it raised.
        lost: How many events it did not get because it was too slow.
        greeted: Whether it has been told of what is under way: what was told before is not for it.
    """

    __slots__ = (
        "__weakref__",
        "_batch",
        "_buffer",
        "_bus",
        "_calls",
        "_detail",
        "_ended",
        "_full_since",
        "_gap",
        "_gave_way",
        "_home",
        "_met",
        "_policy",
        "_queue",
        "_since",
        "errors",
        "greeted",
        "lost",
        "quiet",
        "sink",
        "traces",
    )

    def __init__(
        self, bus: Bus, sink: Any, wishes: tuple[str, str, int], home: Home | None
    ) -> None:
        self.sink = sink
        self.quiet: bool = getattr(sink, "quiet", False)  # for its sake tasks need say nothing
        # Whether it wants tracebacks of what fails.
        self.traces: bool = wishes[0] != "runs" or getattr(sink, "traces", False)
        self.errors = self.lost = 0
        self._batch = getattr(sink, "batch", None)
        self._bus = bus
        self._detail, self._policy, self._buffer = wishes
        self._home = home  # the run whose events it gets; None: all
        self._queue: deque[Any] = deque()  # events, and `Flush`es
        self._gap: list[int] = []  # how many are lost since it was full, the first, the last
        self._since = time.monotonic()
        self._met: set[tuple[str | None, int | None]] = set()  # runs and workers that have begun
        self.greeted = True
        self._full_since = 0.0
        self._gave_way = self._ended = False

    def __call__(self) -> None:
        """End it. What was told before it still gets, if it takes less than 5 s. Idempotent."""
        if not self._ended and not self._bus.here:
            self._bus.drain([self], DRAIN_S)
        self.end()

    def end(self) -> None:
        """End it now."""
        self._ended = True
        (self._bus.everyone if self._home is None else self._home.own).pop(self, None)
        self._bus.wake()

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
        self._gave_way = self._gave_way or now - self._full_since > BLOCK_S
        return not self._gave_way

    def take(self, event: Event) -> None:
        """Queue it, if it is for this one and there is room."""
        if self._ended or not self.greeted:
            return
        kind = event["kind"]
        if kind in _LIVES:
            if not self._counts(event, _LIVES[kind]):
                return
        elif event["monotonic"] < self._since or (kind == "items" and self._detail == "runs"):
            return
        queue = self._queue
        if len(queue) >= self._buffer:
            self.lose(1, event["seq"])
            return
        if self._gap:
            self.tell_gap()
        queue.append(event)

    def _counts(self, event: Event, ends: bool) -> bool:
        """Whether it is the first word of a life, or the last of one that was told, or is new."""
        key = event["run"], event["worker"]
        if ends:
            told = key in self._met
            self._met.discard(key)
            return told or event["monotonic"] >= self._since
        new = key not in self._met
        self._met.add(key)
        return new

    def greet(self, events: Iterable[Event]) -> None:
        """From here on it hears what happens; first what is under way."""
        self.greeted = True
        for event in events:
            self.take(event)

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
            self._queue.append(event_of("stream", run, parent, last, "gap", data))

    def work(self) -> bool:
        """Call the sink with some of what is queued; whether there is more."""
        queue, sink, batch, now = self._queue, self.sink, self._batch, time.monotonic
        until = now() + _SLICE_S
        while queue and not self._ended:
            if batch is not None:
                self._call(batch, self._some())
            elif type(event := queue.popleft()) is Flush:
                event.reached(self)
            else:
                self._call(sink, event)
            if self._gap and not queue:
                self.tell_gap()
            if now() >= until:
                break
        if self._ended:
            self._drop()
        return bool(queue)

    def _some(self) -> list[Event]:
        events: list[Event] = []
        while self._queue and len(events) < _BATCH:
            event = self._queue.popleft()
            if type(event) is not Flush:
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
                complain("a sink of events raised; it is only counted from here on", error)

    def _drop(self) -> None:
        """It has ended: nobody waits for it any more."""
        queue = self._queue
        while queue:
            event = queue.popleft()
            if type(event) is Flush:
                event.reached(self)
        self._bus.subscribers.pop(self, None)
        if not self._bus.listened():
            self._bus.listen()


# Kinds that tell of a begin (False) or of its end (True), which a `worker` may have, too.
_LIVES = {
    "run_started": False,
    "worker_started": False,
    "run_finished": True,
    "worker_died": True,
    "worker_left": True,
}


class Flush:
    """Goes the way of an event: everything before it has been told, or nobody waits any more."""

    __slots__ = ("_ends", "_left", "latch")

    def __init__(
        self, subscribers: Iterable[Subscription], ends: Home | None, latch: Latch | None = None
    ) -> None:
        self._left = dict.fromkeys(subscribers)
        self._ends = ends  # the run that is over
        self.latch = latch or Latch()

    def go(self, alive: dict[Subscription, None]) -> None:
        """Into the queues."""
        if not self._left:
            self.latch.set()
        for subscriber in tuple(self._left):
            if subscriber in alive:
                subscriber.tell_gap()  # before: when this is reached nobody may be there any more
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

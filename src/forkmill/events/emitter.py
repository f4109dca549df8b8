"""What runs and pools tell their events with.

Threads: any. `emit` takes no lock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .._late import WeakValueDictionary
from .._said import here, known_here, within
from .bus import bus as _bus
from .event import DETAILS, SCHEMA, complain, event_of, new_id, wishes
from .subscription import Flush, Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .._process import Latch
    from .event import Event

    _Begin = tuple[float, str, str, int | None, dict[str, Any]]

_time, _monotonic = time.time, time.monotonic


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
        told_end: Whether `run_finished` was handed on. The thread's.
        over: Whether it has ended: nobody is attached any more.
        progress: How far it is, as the data of an event; while its contexts are open.
        calling: The stage whose function the run's own thread is in, and the item; while it runs.
        traced: How many tracebacks were told.
        about: What `run_started` tells, its name and data, for who comes later (`known_by`); None:
            nobody knows.
        standing: What else began in it and goes on: (when, kind, name, worker, data) of each.
        driven: What can `stop` and `kill` the run from any thread; None: nothing can.
    """

    __slots__ = (
        "__weakref__",
        "_began",
        "_flush",
        "_last",
        "about",
        "above",
        "calling",
        "driven",
        "errors",
        "id",
        "over",
        "own",
        "parent",
        "progress",
        "source",
        "standing",
        "told_end",
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
        self.over = self.told_end = False
        self.progress: Callable[[], dict[str, Any]] | None = None
        self.calling: Callable[[], tuple[str, Any]] | None = None
        self.about: Callable[[], tuple[str, dict[str, Any]]] | None = None
        self.standing: Callable[[], Iterable[_Begin]] = tuple
        self.driven: Any = None
        self._began = 0.0
        self._flush: Flush | None = None
        self._last: list[tuple[Event, Emitter]] | None = None
        emitters[self.id] = self

    @classmethod
    def beginning(cls, source: str) -> Emitter:
        """That of a run that begins here: part of the one that the code here works for, if any."""
        origin = here()
        run = None if origin is None else origin[0]
        above = None if run is None else emitters.get(run)
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

    def batch(self, name: str, size: int) -> None:
        """Tell of a batch: as `emit`, for what comes often. Its event is made in the stream's
        thread, by `built`."""
        if self.own or _bus.everyone or self.heard:
            _bus.put((_time(), _monotonic(), name, size), self)

    def built(self, brief: tuple[Any, ...]) -> Event:
        """The event of what `batch` has handed over."""
        at, monotonic, name, size = brief
        return {
            "schema": SCHEMA,
            "source": self.source,
            "run": self.id,
            "parent": self.parent,
            "seq": 0,
            "time": at,
            "monotonic": monotonic,
            "kind": "batch",
            "name": name,
            "item": None,
            "attempt": None,
            "worker": None,
            "seconds": None,
            "data": {"size": size},
        }

    def emit_end(self, kind: str, name: str, **data: Any) -> None:
        """Tell its last event: once, however often a signal handler breaks this off."""
        if self._last is None and self.heard:
            event = event_of(self.source, self.id, self.parent, 0, kind, data)
            event["name"] = name
            self._last = [(event, self)]
        if self._last:
            _bus.put_last(self._last)

    @property
    def ended(self) -> bool:
        """Whether `emit_end` has told it."""
        return self._last == []

    def emit_late(
        self, at: float, kind: str, name: str, worker: int | None, data: dict[str, Any]
    ) -> None:
        """Tell what has happened before, `at` by the monotonic clock."""
        if self.heard:
            event = event_of(self.source, self.id, self.parent, 0, kind, data)
            event["time"] += at - event["monotonic"]
            event.update(monotonic=at, name=name, worker=worker)
            _bus.put(event, self)

    @property
    def traces(self) -> bool:
        """Whether anybody who listens wants tracebacks."""
        return any(subscriber.traces for subscriber in self.listeners())

    def listeners(self) -> list[Subscription]:
        """Who hears it."""
        found = [*_bus.everyone, *self.own] if _bus.everyone else [*self.own]
        return found if self.above is None else [*found, *self.above._beside()]

    def _beside(self) -> list[Subscription]:
        return [*self.own, *(self.above._beside() if self.above is not None else ())]

    def known_by(self, about: Callable[[], tuple[str, dict[str, Any]]]) -> None:
        """It begins, as about() tells. Before anybody is asked whether he listens: who comes later
        is told of it then."""
        self._began = _monotonic()
        self.about = about

    def attach(self, sink: Any) -> None:
        """Have a sink called from the next event on; if it is under way, that is the first. See
        `check_sinks`."""
        subscriber = Subscription(_bus, sink, wishes(sink), self)
        subscriber.greeted = self.about is None
        _bus.add(subscriber, self.own)
        if self.about is not None:
            greet(subscriber)
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

    def finish(self, seconds: float, latch: Latch | None = None) -> None:
        """It is over: who hears it gets what was told, if that takes less than so many seconds.

        `hurry` cuts that short, from anywhere. With a latch nobody waits here: it is set then. Who
        hears it as part of another run has its time at the end of that.
        """
        self.over = True  # first: nobody may come behind that, and `begin` looks at it afterwards
        _bus.emitters.pop(self, None)
        listeners = [*self.own, *(_bus.everyone if self.above is None else ())]
        if latch is not None:
            _bus.queue.append((None, Flush(listeners, self, latch)))
            _bus.begin()
        elif listeners and not _bus.here:
            _bus.drain(listeners, seconds, self)
            for subscriber in tuple(self.own):
                subscriber.end()
            _bus.wake()  # who was broken off in here comes again, and may have ended them all
        elif listeners:  # this is a sink's run: the thread goes on when it is over
            _bus.queue.append((None, Flush(listeners, self)))
        self.progress = self.calling = self.about = self.driven = None

    def under_way(self) -> Iterator[Event]:
        """What has begun in it, and goes on, for who comes now."""
        about = self.about
        if about is None or self.told_end:
            return
        name, data = about()
        yield self._begun(self._began, "run_started", name, None, {**data, "late": True})
        for at, kind, name, worker, data in self.standing():
            yield self._begun(at, kind, name, worker, {**data, "late": True})

    def _begun(
        self, at: float, kind: str, name: str, worker: int | None, data: dict[str, Any]
    ) -> Event:
        event = event_of(self.source, self.id, self.parent, _bus.next_seq(), kind, data)
        event["time"] += at - event["monotonic"]
        event.update(monotonic=at, name=name, worker=worker)
        return event

    def within(self, home: Emitter | None) -> bool:
        """Whether it is that one, or part of it."""
        return home in (None, self) or (self.above is not None and self.above.within(home))

    def settle(self, seconds: float) -> None:
        """Wait until its own sinks have got what was told so far, at most so many seconds. Not in a
        sink."""
        if self.own and not _bus.here:
            _bus.drain([*self.own], seconds)

    def hurry(self) -> None:
        """Who waits for its sinks does so no longer. In a signal handler, too."""
        flush = self._flush
        if flush is not None:
            flush.latch.set()


class _Greeting:
    """Goes the way of an event: who comes late hears from here on, first of what is under way.

    A run has its `about` before it asks whether anybody listens, so that it is told by one of the
    two at least, and `Subscription` takes only the first.
    """

    __slots__ = ("_subscriber",)

    def __init__(self, subscriber: Subscription) -> None:
        self._subscriber = subscriber

    def go(self, _alive: object) -> None:
        """It is its turn."""
        home: Any = self._subscriber._home
        found = [emitter for ref in emitters.valuerefs() if (emitter := ref()) is not None]
        found = [emitter for emitter in found if emitter.within(home)]
        events: list[Event] = []
        for emitter in sorted(found, key=_begin_of):
            try:
                events += emitter.under_way()
            except Exception as error:
                complain("a run that is under way could not be told", error)
        self._subscriber.greet(events)


def _begin_of(emitter: Emitter) -> float:
    return emitter._began


def greet(subscriber: Subscription) -> None:
    """Have it told of what is under way, and then of what comes. It is added already."""
    _bus.queue.append((None, _Greeting(subscriber)))


# Of runs and pools, by id: whom a word is for that comes from another process.
emitters: WeakValueDictionary[str, Emitter] = WeakValueDictionary()


def current() -> Emitter | None:
    """The run that the code here works for, if it is one of this process."""
    origin = here()
    return None if origin is None or origin[0] is None else emitters.get(origin[0])


class PartOf(within):
    """Within it runs that begin here are part of this one, and what is said is its."""

    __slots__ = ()

    def __init__(self, emitter: Emitter) -> None:
        self._origin = (emitter.id, None, {}, known_here())


bare_ones: dict[str, Emitter] = {}


def bare() -> Emitter:
    """The emitter of tasks that belong to no run and to no pool."""
    emitter = bare_ones.get("one")
    return emitter or bare_ones.setdefault("one", Emitter("task"))

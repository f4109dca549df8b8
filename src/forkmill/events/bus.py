"""The stream itself: a deque, and the thread that takes events from it to the subscribers.

Its table and invariants are in this package's head.

Threads: each part says which.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from .._process import EARS, TELLERS, Latch, LoneThread
from .event import complain
from .subscription import BLOCK_S, DRAIN_S, Flush, Home, Subscription

if TYPE_CHECKING:
    from collections.abc import Callable

    from .event import Event

_TICK_S = 0.1  # between two looks at how far runs are, and at pools
_GATHER_S = 0.005  # between two looks at the deque while events come
_MUCH = 128 * 1024  # bytes that one worker has said since the last look: half of what has room
_NEVER = float("inf")


class Teller(Home, Protocol):
    """What the stream knows of an `Emitter`."""

    progress: Callable[[], dict[str, Any]] | None
    told_end: bool
    _flush: Flush | None

    @property
    def heard(self) -> bool: ...
    def emit(self, kind: str, **data: Any) -> None: ...
    def built(self, brief: tuple[Any, ...]) -> Event: ...
    def listeners(self) -> list[Subscription]: ...


class Bus:
    """What is between emitters and subscribers: one a process. See the head of this package."""

    def __init__(self) -> None:
        # Dicts, because adding and taking away are one step each.
        self.subscribers: dict[Subscription, None] = {}  # all of them, also while they end
        self.everyone: dict[Subscription, None] = {}  # those who hear every run
        self.emitters: dict[Teller, None] = {}  # runs that are asked how far they are
        self.queue: deque[Any] = deque()  # (event, emitter), (None, what has a go())
        self.bound = 1  # of the deque: the largest buffer
        self.asleep = False
        self._rung = False  # the thread was woken, and did not wake by itself
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
        # Sinks that have a `close`, for the interpreter's end. Weak, where they can be: what nobody
        # has any more closes itself.
        self._closing: list[Any] = []

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
        self._remember(subscriber.sink)
        self.listen()

    def listen(self) -> None:
        """Have tasks of other processes say what they have to say, if there is a subscriber."""
        with self._listening:
            heard = None
            while heard is not self.listened():  # there may be one more meanwhile
                heard = self.listened()
                for ear in tuple(EARS):
                    ear.listen(heard)

    def listened(self) -> bool:
        """Whether anybody wants to know what tasks say."""
        return any(not subscriber.quiet for subscriber in tuple(self.subscribers))

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

    def put(self, event: Event | tuple[Any, ...], emitter: Teller) -> None:
        """Hand an event over, or what its emitter makes one of."""
        if len(self.queue) >= self.bound and not self._room():
            next(self._dropped)
            return
        self.queue.append((event, emitter))
        self._ring()

    def next_seq(self) -> int:
        """The number of an event that only one subscriber gets. The thread's."""
        self._seq += 1
        return self._seq

    def put_last(self, entry: list[Any]) -> None:
        """Hand over the one event in a list, and take it out of there, in one step."""
        if len(self.queue) >= self.bound and not self._room():
            entry.clear()
            next(self._dropped)
            return
        with contextlib.suppress(IndexError):  # another thread was first
            self.queue.extend(map(entry.pop, (-1,)))
        self._ring()

    def _room(self) -> bool:
        """The deque is full: wait for room, if somebody shall not lose anything."""
        if self.here or not any(s._policy == "block" for s in tuple(self.subscribers)):
            return False
        until = time.monotonic() + BLOCK_S
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
        self, subscribers: list[Subscription], seconds: float, over: Teller | None = None
    ) -> None:
        """Wait until these have got what was told, for so many seconds at the most.

        Args:
            subscribers: Who.
            seconds: How long.
            over: The run that is over: those that hear only this one end then.
        """
        self.hear()
        flush = Flush(subscribers, over)
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
                if self._hear_at < now + _TICK_S / 2:  # at the same time: it is woken once
                    self._hear_at = now
                self._tick()
            elif EARS and now >= self._hear_at and self.subscribers:
                self._hear_often(now)
            elif busy:
                continue
            elif not self.subscribers:
                self._retire()
                return
            elif took and self._rung:  # others emit: they need not wake it for each
                self._bell.acquire(timeout=_GATHER_S)
            else:
                self._rest(self._next_look(ticks) - now)

    def _hear_often(self, now: float) -> None:
        before = len(self.queue)
        self.hear()
        lots = [entry[0] for entry in [*self.queue][before:] if type(entry) is list]
        most = max((len(lot) for lot in lots if type(lot) is bytes), default=0)
        if most > _MUCH:
            self._hear_every = _GATHER_S
        elif most < _MUCH // 4:
            self._hear_every = min(2 * self._hear_every, _TICK_S)
        self._hear_at = now + self._hear_every

    def _next_look(self, ticks: bool) -> float:
        """When to look again if nothing is told."""
        at = self._tick_at if ticks else _NEVER
        return min(at, self._hear_at) if EARS else at

    def _take(self) -> bool:
        """From the deque into the queues; whether there was anything."""
        queue = self.queue
        count, left = 0, len(queue)
        # What is in the deque now was told before: who is attached meanwhile hears what follows.
        whose: Teller | None = None
        first: Subscription | None = None
        others: list[Subscription] = []
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
                self._tell_dropped()
                emitter.go(self.subscribers)
                continue
            if type(event) is tuple:
                event = emitter.built(event)
            elif emitter.told_end and event["kind"] == "items":
                continue  # a call that has outlived its run
            self._seq += 1
            event["seq"] = self._seq
            if event["kind"] == "run_finished":
                emitter.told_end = True
            if emitter is not whose:
                whose = emitter
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
                if not subscriber.greeted:
                    continue
                subscriber.lose(number, self._seq)
                if not subscriber._queue:
                    subscriber.tell_gap()

    def _tick(self) -> None:
        for emitter in tuple(self.emitters):
            progress = emitter.progress  # None, as soon as the run is over
            if progress is not None and emitter.heard:
                try:
                    emitter.emit("progress", **progress())
                except Exception as error:
                    complain("a run could not tell how far it is", error)
        if self.everyone:
            for teller in tuple(TELLERS):
                teller()

    def _rest(self, seconds: float) -> None:
        self.asleep = True
        if self.queue:
            self.asleep, self._rung = False, True
            return
        for_ever = seconds > threading.TIMEOUT_MAX
        self._rung = self._bell.acquire(timeout=-1 if for_ever else max(seconds, 0.0))
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

    def _remember(self, sink: Any) -> None:
        closing = self._closing
        if not callable(getattr(sink, "close", None)) or any(ref() is sink for ref in closing):
            return
        try:
            closing.append(weakref.ref(sink, closing.remove))
        except TypeError:
            closing.append(lambda: sink)

    def end(self) -> None:
        """The interpreter ends. Ctrl-C cuts the wait."""
        until = time.monotonic() + DRAIN_S
        thread = self._threads.get("one")
        try:
            if self.subscribers:
                self.drain([*self.subscribers], DRAIN_S)
            for subscriber in tuple(self.subscribers):
                subscriber.end()
            if thread is not None and thread.alive:
                thread.join(max(0.0, until - time.monotonic()))
        finally:
            for ref in tuple(self._closing):
                sink = ref()
                try:
                    if sink is not None:
                        sink.close()
                except Exception as error:
                    complain("a sink of events could not be closed", error)


def _opened_lot(lot: bytes | int, ear: Any, worker: int) -> list[tuple[Event, Any]]:
    """What take_said() has put into the deque."""
    try:
        return [ear.lost(lot, worker)] if isinstance(lot, int) else [*ear.open(lot, worker)]
    except BaseException as error:
        complain("what a task said could not be told", error)
        return []


bus = Bus()

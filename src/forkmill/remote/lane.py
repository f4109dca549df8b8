"""RemoteLane: a stage's work on an engine. Items go in chunks, sized by measured time.

    put_many ──▶ Stages ──▶ Courier ──chunk──▶ there.Stage ──Came──▶ take_many: decoded ──▶ Batch

Guarantees: those of a Lane, but for these:

    * A chunk has a replica of the state to itself: setup, on_end and teardown run for each. Where
      there is neither on_end nor teardown, a worker keeps what setup made.
    * A generator's outputs come out together with those of its chunk.

Threads: as a Lane's.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import pickle
import queue
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..contexts.lanes.emit import Outputs
from ..contexts.lanes.lane import Batch, SharedLane, Taken
from ..contexts.lanes.replica import ended, told
from .backend import Blob
from .courier import LADDER_S, MOST_BYTES, Job, Pace
from .there import Stage, results
from .wire import loaded, packed_plain, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..contexts.lanes.lane import Work
    from .courier import Flight
    from .there import Came
    from .wire import Packed

__all__ = ["RemoteLane"]

_PACES = 256  # functions whose last size of chunks is known still


class _Stages(Job):
    """The items of a lane."""

    def __init__(self, executor: Any, work: Work, many: bool, deliver: Any) -> None:
        courier = executor.courier
        # Whose run it is makes no difference to how long it takes, but its state is its own.
        run, work = work.origin, _for_nobody(work)
        code, needs = executor.codec.function(Stage(work, many))
        self._kind = hashlib.sha256(code).digest()
        name = self._kind if run is None else hashlib.sha256(code + str(run[0]).encode()).digest()
        self.code = Blob(name, code, needs)
        self.needs = tuple(needs)
        self.timeout = work.timeout if courier.backend.kills else None
        self.single = courier.single or self.timeout is not None
        self._paces = executor.paces  # the last lane of this function has found it out
        known = self._paces.get(self._kind, 1)
        self.pace = Pace(single=self.single, known=known)
        self.flights: set[Flight] = set()
        self.back: queue.SimpleQueue[None] = queue.SimpleQueue()  # once over: of each that ends
        self.over = False
        self._codec = executor.codec
        self._courier = courier
        self._deliver = deliver
        self._line: deque[Any] = deque()

    def put(self, items: Iterable[Any]) -> None:
        self._line.extend(items)
        self._courier.wake(self, at_once=len(self._line) >= self.pace.size)

    def limit(self, most: int) -> None:
        """Who fills the lane holds back so many items: so much smaller are chunks."""
        self.pace.limit(most, self._courier.backend.width)

    @property
    def waiting(self) -> int:
        return len(self._line)

    def take(self, most: int, nbytes: int) -> list[Any]:
        next_one = self._line.popleft
        items: list[Any] = []
        with contextlib.suppress(IndexError):  # the lane is closed meanwhile
            items.extend(next_one() for _ in range(min(most, len(self._line))))
        return items

    def began(self, items: list[Any], flight: Flight) -> list[Any]:
        if self.over:
            self._deliver(None)
            return []
        self.flights.add(flight)
        return items

    def packed(self, items: list[Any]) -> tuple[list[Any], Packed, dict[bytes, Any]]:
        if plain(items):
            return items, packed_plain(items), {}
        needs: dict[bytes, Any] = {}
        good: list[Any] = []
        datas: list[bytes] = []
        counts: list[int] = []
        buffers: list[Any] = []
        size = 0
        for number, item in enumerate(items):
            if size > MOST_BYTES:
                self._line.extendleft(reversed(items[number:]))
                self._courier.wake(self)
                break
            try:
                data, views, found = self._codec.packed_one(item)
            except BaseException as error:
                self._deliver((item, error))
                continue
            size += len(data) + sum(memoryview(view).nbytes for view in views)
            needs.update(found)
            good.append(item)
            datas.append(data)
            counts.append(len(views))
            buffers += views
        return good, (datas, counts, buffers), needs

    def landed(self, flight: Flight) -> None:
        self.flights.discard(flight)
        if self.over:
            self.back.put(None)

    def came(self, items: list[Any], came: Came) -> None:
        self._paces[self._kind] = self.pace.known
        while len(self._paces) > _PACES:
            del self._paces[next(iter(self._paces))]
        self._deliver((items, came))

    def failed(self, items: list[Any], error: BaseException) -> None:
        for item in items:
            self._deliver((item, error))

    def cancel(self) -> None:
        """Forget what waits, call back what is under way."""
        self.over = True
        self._line.clear()
        for flight in tuple(self.flights):
            self._courier.recall(flight)


def _for_nobody(work: Work) -> Work:
    """The same work, of no run. (`replace` would lose what a kind of it adds.)"""
    bare: Work = object.__new__(type(work))
    vars(bare).update(vars(work), origin=None)
    return bare


class RemoteLane(SharedLane):
    """A lane over a remote executor."""

    replicas = 0

    def __init__(self, executor: Any, work: Work, notify: Callable[[], None] | None) -> None:
        super().__init__(work, notify)
        self._executor = executor
        fn = work.fn
        self._many = inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)
        self._peak = 0  # the most items that were in here at once
        self._job = _Stages(executor, work, self._many, self._arrived)

    def _start(self, items: Any, replica: int | None) -> None:
        with self._lock:
            peak, self._peak = self._peak, max(self._peak, self._untaken)
        if peak < self._peak and not self._job.single:
            self._job.limit(self._peak)
        self._job.put(items)

    # ------------------------------------------------------------------ out

    def _arrived(self, raw: Any) -> None:
        """In the courier's thread: a chunk is done, or an item has failed."""
        if raw is not None and isinstance(raw[1], BaseException):
            number = 1
        else:
            number = 0 if raw is None else len(raw[0])
        self._deliver(raw, number)

    def _opened(self, raw: Any) -> Iterable[Taken | Batch]:
        if type(raw) is not tuple:
            return super()._opened(raw)
        items, came = raw
        if isinstance(came, BaseException):
            return (Taken(items, [], came),)
        return self._pieces(items, came)

    def _pieces(self, items: list[Any], came: Came) -> list[Taken | Batch]:
        codec = self._executor.codec
        pieces: list[Taken | Batch] = []
        if came.packed[1] is None:
            pieces.append(Batch(items, pickle.loads(came.packed[0]), self._many, True))
        else:
            self._one_by_one(items, came, pieces)
        if came.rest is not None:
            outputs, reports = loaded(codec, came.rest)
            pieces += ended(outputs)
            if reports:
                pieces.append(Batch([], [], False, True, reports))
        return pieces

    def _one_by_one(self, items: list[Any], came: Came, pieces: list[Any]) -> None:
        """Runs of items that returned, and between them those that did not."""
        some: list[Any] = []
        values: list[Any] = []
        found = results(self._executor.codec, came)
        for item, (good, value) in zip(items, found, strict=True):
            if good and type(value) is not Outputs:
                some.append(item)
                values.append(value)
                continue
            if some:
                pieces.append(Batch(some, values, self._many))
                some, values = [], []
            pieces.append(told(item, value) if good else Taken(item, [], value))
        if some:
            pieces.append(Batch(some, values, self._many))

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        self._finished()  # every replica has had its end

    def _stop(self) -> None:
        self._job.cancel()

    @property
    def busy(self) -> int:
        return len(self._job.flights)

    def _wait(self, deadline: float | None) -> int:
        until = monotonic() + LADDER_S if deadline is None else deadline
        if self._executor.courier.backend.kills:
            until = max(until, monotonic() + LADDER_S)
        with contextlib.suppress(queue.Empty):
            while self._job.flights:
                self._job.back.get(timeout=max(0.0, until - monotonic()))
        left = sum(len(flight.items) for flight in tuple(self._job.flights))
        if self._job.flights:
            self._executor.courier.leave(self._job)
        self._job.flights = set()
        return left

"""Inline producers while they run: pulled in slices, or fed by a thread of their own.

    user's iterator ──▶ tap ──islice──▶ the run that hangs on the producer
    user's iterator ──▶ filled ──▶ the queue of the one stage behind it, if that is not inline
    user's iterator ──▶ Feeder (thread) ──▶ a queue ──▶ the same, beside a clock

Guarantees: a producer that raises ends itself and nothing else; what it gave before is worked on.

Threads: everything belongs to the thread of the driver, but `Feeder._run`.
"""

from __future__ import annotations

from collections import deque
from itertools import compress, islice, repeat
from time import perf_counter
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from ..._frames import back, our_locals
from ..._process import KnownThread, Signal
from ...contexts.lanes.emit import each
from ...runs.handle import GRACE
from ..declare import to
from .operators import Operator, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    from ..graph import Stage
    from .flow import Edge
    from .state import Run

__all__ = ["INTERRUPTED", "Source", "tap"]

_LONG = 1e-3  # seconds of pulling: what is behind has its turn
_HANDFUL = 128  # items that a producer gives between two looks at whether it is to stop


class Source(Operator):
    """An inline producer: pulled in slices, while there is room behind it."""

    def __init__(self, driver: Run[Operator], stage: Stage) -> None:
        super().__init__(driver, stage)
        self.live_source = True
        self.feeder: Feeder | None = None
        self.values: Iterator[Any] | None = None  # the user's, where they go straight to a queue
        self.open_gate = [True] * _HANDFUL  # empty: what a pull still brings is dropped
        self._tap: Iterator[Any] | None = None
        self._straight: Edge | None = None
        self.closing = False  # the tap is closed: GeneratorExit is ours

    def open(self) -> None:
        self.state = Phase.LIVE
        try:
            self._begin()
        except BaseException as error:
            if self.driver.passes(error):
                raise
            self.failed(error)
            self.live_source = False
            return
        self._tap = tap(self)
        if len(self.targets) == 1 and not self.targets[0].fused:
            self._straight = self.edges_out[self.targets[0]]

    def thread(self) -> None:
        """Give it a thread: the clock must go on while it blocks."""
        if self.live_source and self.feeder is None:
            self.feeder = Feeder(self)
            self.feeder.start()  # now who ends the run knows it

    def in_flight(self) -> bool:
        return self.run is not None or bool(self.feeder and self.feeder.items)

    def turn(self) -> bool:
        if self.run is not None:
            return self.resume()
        if not self.live_source and not (self.feeder and self.feeder.items):
            return False
        if self.driver.stopping and self.feeder is None:
            self.stop()
            return True
        if not self._has_room():
            return False
        few = self._few_timed()
        if not few:
            return self._pulled(self._slice, self._all_timed())
        if not self._pulled(few, True):
            return False
        if self.run is None and self.live_source and not self.driver.beat and self._has_room():
            self._pulled(self._slice, False)
        return True

    def _pulled(self, n: int, timed: bool) -> bool:
        """Have so many items worked on, or put into the queue; whether there was one."""
        if self._straight is not None and self.feeder is None:
            self._fill(self._straight, n, timed)
            return True
        source: Any
        if self.feeder is not None:
            source = self.feeder.take(n)
            if not source:
                return False
        else:
            source = islice(self._tap, n)  # type: ignore[arg-type]
        if timed:
            source = self._clocked(source)
        self.begin(self.run_of(False, timed)(source))
        return True

    def _fill(self, edge: Edge, n: int, timed: bool) -> None:
        """Have so many items in the queue of the stage behind this one, or as many as it holds."""
        before = len(edge)
        n = int(min(n, edge.room - before))
        start = perf_counter()
        # Measured from out here: Ctrl-C raises in `filled`, and finds no item in our hands there.
        for few in repeat(1, n) if timed else _handfuls(n):
            was, began = len(edge), perf_counter()
            self._pull(edge, few)
            if timed:
                self.note(perf_counter() - began)
            late = perf_counter() - start > _LONG
            if len(edge) - was < few or late or self.driver.beat:
                break
        seconds = perf_counter() - start
        self.wall += seconds
        self._tune(seconds)
        self._filled(edge, len(edge) - before)

    def _filled(self, edge: Edge, got: int) -> None:
        """So many items have come to the queue, straight from the user's iterator."""
        if to._made:
            items = [edge.pop() for _ in range(got)]
            items.reverse()
            if to in map(type, items):
                self.begin(self.run_of(False, False)(items))
                return
            edge.extend(items)
        self.out += got

    def _pull(self, edge: Edge, n: int) -> None:
        try:
            if self.values is None:
                begun(self)
                if self.driver.stopping:
                    self.driver.gate()
            was = len(edge)
            filled(self, edge, n)
            if self.driver.stopping:
                self.driver.gate()
            if len(edge) - was == n:
                return
        except BaseException as error:
            self.ended_by(error)
        self.live_source = False

    def _clocked(self, source: Iterable[Any]) -> Iterator[Any]:
        start = perf_counter()
        for item in source:
            self.note(perf_counter() - start)
            yield item
            start = perf_counter()

    def stop(self) -> None:
        """Pull no more."""
        self.live_source = False
        if self.feeder is not None:
            self.feeder.stopped = True
            self.feeder.free.set()
        elif self._tap is not None:  # it waits, as all that a run is made of between two turns
            values, self.values = self.values, None
            self.closing = True
            try:
                self._tap.close()  # type: ignore[attr-defined]
                if type(values) is GeneratorType:
                    values.close()
            except BaseException as error:  # the user's generator, in its `finally`
                if self.driver.passes(error):
                    raise
                self.failed(error)

    def ended_by(self, error: BaseException) -> None:
        """The producer raised, or Ctrl-C did in it."""
        driver = self.driver
        if driver.stopping:
            driver.gate()
        if isinstance(error, KeyboardInterrupt) and (driver.interrupted or driver.may_interrupt):
            driver.interrupted = True
            driver.stop()
        elif driver.passes(error):
            raise error
        else:
            self.failed(error)

    def left_behind(self, frame: FrameType) -> None:
        """The thread that pulls does not come back. What it has brought is worked on.

        Args:
            frame: Where it is.
        """
        self.open_gate.clear()
        self.live_source = False
        self._tap = self.values = None
        self.run = None
        self._over()
        caller: FrameType | None = frame
        while caller is not None and caller.f_code is not Source._fill.__code__:
            caller = back(caller)
        if caller is not None and self._straight is not None:
            self._filled(self._straight, len(self._straight) - our_locals(caller)["before"])

    def failed(self, error: BaseException) -> None:
        """The producer raised: it ends, and only it."""
        self.driver.producer_failed = True
        self.record(None, error, 1, "skip")

    def fail_once(self, item: Any, error: BaseException) -> None:
        self.driver.producer_failed = True
        self.record(item, error, 1, "skip")

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.stop()
            if self.feeder is not None:
                self.driver.leave(self.name, self.feeder.join())

    def disarm(self) -> None:
        self.open_gate.clear()
        if any(getattr(held, "gi_running", False) for held in (self._tap, self.values)):
            self._tap = self.values = None  # it cannot be closed from here
        super().disarm()

    def load(self) -> float:
        return 0.0


def _handfuls(n: int) -> Iterator[int]:
    """n in parts: between them it is seen that the run is to stop. The first are small, for items
    that have become slow."""
    few = 1
    while n > 0:
        yield min(few, n)
        n -= few
        few = min(2 * few, _HANDFUL)


def begun(operator: Source) -> None:
    """Call a producer. KeyboardInterrupt as in `tap`."""
    operator.values = each(operator.fn())


def filled(operator: Source, edge: Edge, n: int) -> None:
    """Items go to a queue; what came before an error stays there. KeyboardInterrupt as in `tap`."""
    edge.extend(islice(compress(operator.values, operator.open_gate), n))  # type: ignore[arg-type]


def tap(operator: Source) -> Iterator[Any]:
    """A producer's items, as long as it may be pulled.

    Ctrl-C raises KeyboardInterrupt inside the user's code if this frame is on the stack (see
    driver.Interrupts). Between two items it never does: there is nothing here that could be lost.
    """
    driver = operator.driver
    try:
        for item in each(operator.fn()):
            if driver.stopping:
                driver.gate()
            yield item
            if driver.stopping:
                break
    except BaseException as error:
        if isinstance(error, GeneratorExit) and operator.closing:
            raise
        operator.ended_by(error)
    operator.live_source = False


# In these Ctrl-C raises, inside the user's code.
INTERRUPTED = frozenset({tap.__code__, begun.__code__, filled.__code__})


class Feeder:
    """The thread of a producer that shares a run with a clock (a batch with max_wait)."""

    def __init__(self, operator: Source) -> None:
        self.operator = operator
        self.items: deque[Any] = deque()
        self.error: BaseException | None = None
        self.stopped = self.over = False
        self.free = Signal()
        self._limit = operator.stage.queue_size
        self._thread = KnownThread(self._run, f"forkmill-{operator.name}")

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: There is no thread to be had.
        """
        self._thread.start()

    def _run(self) -> None:
        items, ring = self.items, self.operator.driver.bell.ring
        try:
            for item in each(self.operator.fn()):
                while len(items) >= self._limit and not self.stopped:
                    self.free.wait()
                if self.stopped:
                    break
                items.append(item)
                ring()
        except BaseException as error:
            self.error = error
        finally:
            self.over = True
            ring()

    def take(self, number: int) -> list[Any]:
        """Some of what has come; the producer's end is noticed here."""
        over = self.over
        found = [self.items.popleft() for _ in range(min(number, len(self.items)))]
        self.free.set()
        if over and not self.items:
            self.operator.live_source = False
            error, self.error = self.error, None
            if error is not None:
                self.operator.failed(error)
        return found

    def join(self) -> int:
        """Wait for the thread; if it is stuck in the user's code, leave it behind: 1."""
        self.stopped = True
        self.free.set()
        return int(not self._thread.join(GRACE))

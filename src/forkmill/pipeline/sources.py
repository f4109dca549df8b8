"""Inline producers while they run: pulled in slices, or fed by a thread of their own.

    user's iterator ──▶ tap ──islice──▶ the run that hangs on the producer
    user's iterator ──▶ Feeder (thread) ──▶ a queue ──▶ the same, beside a clock

Guarantees: a producer that raises ends itself and nothing else; what it gave before is worked on.

Threads: everything belongs to the thread of the engine, but `Feeder._run`.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .cells import TIMED, Cell
from .fuse import ERRORS
from .work import iterated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .engine import Engine
    from .graph import Stage

__all__ = ["Source", "tap"]


class Source(Cell):
    """An inline producer: pulled in slices, while there is room behind it."""

    def __init__(self, engine: Engine, stage: Stage) -> None:
        super().__init__(engine, stage)
        self.live_source = True
        self.feeder: Feeder | None = None
        self._tap: Iterator[Any] | None = None
        self._waiting_for_thread = False

    def open(self) -> None:
        super().open()
        if not self._ready:
            self.live_source = False
            return
        self._tap = tap(self)

    def thread(self) -> None:
        """Give it a thread: the clock must go on while it blocks."""
        if self.live_source and self.feeder is None:
            self.feeder = Feeder(self)

    def in_flight(self) -> bool:
        return self.run is not None or bool(self.feeder and self.feeder.items)

    def turn(self) -> bool:
        if self.run is not None:
            return self.resume()
        if not self.live_source and not (self.feeder and self.feeder.items):
            return False
        if self.engine.stopping and self.feeder is None:
            self.stop()
            return True
        if not self._has_room():
            return False
        timed = self._timed()
        n = TIMED if timed and self._slice > 4 * TIMED else self._slice
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
        elif self._tap is not None and self.run is None:
            self._tap.close()  # type: ignore[attr-defined]

    def failed(self, error: BaseException) -> None:
        """The producer raised: it ends, and only it."""
        self.engine.producer_failed = True
        self.record(None, error, 1, "skip")

    def fail_once(self, item: Any, error: BaseException) -> None:
        self.engine.producer_failed = True
        self.record(item, error, 1, "skip")

    def close(self) -> None:
        super().close()
        self.stop()
        if self.feeder is not None:
            self.feeder.join()

    def load(self) -> float:
        return 0.0


def tap(cell: Source) -> Iterator[Any]:
    """A producer's items, as long as it may be pulled.

    Ctrl-C raises KeyboardInterrupt inside the user's code if this frame is on the stack (see
    engine.Interrupts). Between two items it never does: there is nothing here that could be lost.
    """
    engine = cell.engine
    try:
        for item in iterated(cell.fn()):
            yield item
            if engine.stopping:
                break
    except ERRORS as error:
        cell.failed(error)
    except KeyboardInterrupt:
        engine.interrupted = True
        engine.stop()
    cell.live_source = False


class Feeder:
    """The thread of a producer that shares a run with a clock (a batch with max_wait)."""

    def __init__(self, cell: Source) -> None:
        self.cell = cell
        self.items: deque[Any] = deque()
        self.error: BaseException | None = None
        self.stopped = self.over = False
        self.free = threading.Event()
        self._limit = cell.stage.queue_size
        self._thread = threading.Thread(target=self._run, name=f"forkmill-{cell.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        items, ring = self.items, self.cell.engine.bell.ring
        try:
            for item in iterated(self.cell.fn()):
                while len(items) >= self._limit and not self.stopped:
                    self.free.clear()
                    if len(items) >= self._limit and not self.stopped:
                        self.free.wait()
                if self.stopped:
                    break
                items.append(item)
                ring()
        except ERRORS as error:
            self.error = error
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
            self.cell.live_source = False
            error, self.error = self.error, None
            if error is not None:
                self.cell.failed(error)
        return found

    def join(self) -> None:
        """Wait for the thread, if it is not stuck in the user's code."""
        self.stopped = True
        self.free.set()
        self._thread.join(0.5)

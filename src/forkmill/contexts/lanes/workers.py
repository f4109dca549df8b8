"""WorkerLane: a lane over worker processes. Items go in chunks, sized by time.

    put ──▶ Batches ──chunks──▶ run(item) in the workers ──▶ Chunk ──take_many: decoded──▶ Batch

Guarantees: those of a Lane. A worker's death costs the item that it ran; the others of its chunk
run elsewhere, in another replica of the state.

Where the state lies, and how the outputs of a stream come: see `in_worker`.
"""

from __future__ import annotations

import inspect
import itertools
import os
import queue
from typing import TYPE_CHECKING, Any

from ... import errors
from .emit import Outputs
from .in_worker import (
    Drop,
    Function,
    Parked,
    Resume,
)
from .lane import END, MANY, Batch, SharedLane, Taken
from .measured import Report
from .replica import ended, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .lane import Work

__all__ = ["WorkerLane"]

_STREAM_CHUNK = 64  # items: each may be parked, with its first outputs

_SPECIAL = frozenset({Outputs, Parked})
_SCALARS = frozenset({int, float, str, bytes, bool, type(None)})
_numbers = itertools.count(1)


def _places(values: list[Any]) -> set[int]:
    """Where there are outputs of generators that nobody took for one."""
    kinds = list(map(type, values))
    found: set[int] = set()
    for kind in _SPECIAL.intersection(kinds):
        at = -1
        for _ in range(kinds.count(kind)):
            at = kinds.index(kind, at + 1)
            found.add(at)
    return found


def _done(piece: Taken | Batch) -> int:
    return len(piece.items) if isinstance(piece, Batch) else piece.done


def _has_failed(piece: Taken | Batch) -> bool:
    """Whether it is an item's failure, before which it emitted nothing."""
    return isinstance(piece, Taken) and piece.failure is not None and not piece.outputs


class _Reader:
    """Decodes a chunk's outputs. Only what is not plain comes by `loads`, so nobody has to go
    through all outputs to find the few that mean something else."""

    def __init__(self, core: Any) -> None:
        self.failure = core.failure
        self.plain = True
        self.reports: list[Report] = []
        self._loads = core.loads

    def loads(self, data: Any, buffers: Any = ()) -> Any:
        """A value that was pickled; a Report is put aside."""
        value = self._loads(data, buffers)
        if type(value) is Report and value.value is not Report:
            self.reports.append(value)
            value = value.value
        if type(value) not in _SCALARS:
            self.plain = False
        return value


class WorkerLane(SharedLane):
    """A lane over the workers of a pool, each with a replica of the state."""

    def __init__(self, pool: Any, work: Work, notify: Callable[[], None] | None = None) -> None:
        super().__init__(work, notify)
        self._token = f"{os.getpid()}-{next(_numbers)}"
        self._many = inspect.isgeneratorfunction(work.fn) or inspect.isasyncgenfunction(work.fn)
        self._batches = pool._batches(
            Function(self._token, work, self._many),
            work.timeout,
            most=_STREAM_CHUNK if work.stream else None,
            refused=self._refused,
        )
        core = self._batches.core
        self.replicas = core.workers
        self.start_method, self.start_reason = core.method, core.no_fork
        self._used = False
        self._ended_well = False
        self._ends = 0  # replicas whose end has not come back
        self._parked: queue.SimpleQueue[tuple[Any, Parked] | None] = queue.SimpleQueue()
        self._readers = 0
        self._resume = Resume(self._token)
        # The rest of a stream comes when it comes.
        self.in_order = work.ordered and not work.stream
        self._early: dict[int, tuple[int, list[Taken | Batch]]] = {}  # by number of its first item
        self._next = 0  # the number of the item whose turn it is

    # ------------------------------------------------------------------ in

    def _start(self, items: list[Any] | tuple[Any, ...], replica: int | None) -> None:
        with self._lock:
            first, self._used = not self._used, True
        if first:  # not before: a thread would be in the way of forks
            self._batches.watch(self._came)
        self._batches.put(items, -1 if replica is None else replica % self.replicas)

    def replica_of(self, place: int) -> int | None:
        slot: int | None = self._batches.slot_of(place)
        return slot

    def _came(self, task: Any) -> None:
        """A chunk is done (in the watching thread, or in the taker's)."""
        items = task.tag.items
        self._deliver(task, 0 if self.work.stream else len(items))
        if not items:
            self._replica_ended()

    def _refused(self, portion: Any) -> None:
        self._deliver(portion, len(portion.items))
        if not portion.items:
            self._replica_ended()

    # ------------------------------------------------------------------ out

    def _take_many(self, timeout: float | None, most: int | None = None) -> list[Taken | Batch]:
        if self._used and not self._over:
            try:
                for task in self._batches.take(0):
                    self._came(task)
            except BaseException:
                self._torn = True
                raise
        return super()._take_many(timeout)

    def _all_opened(self, out: list[Any]) -> list[Taken | Batch]:
        return super()._all_opened(out) if not self.in_order else self._sorted(out)

    def _sorted(self, out: list[Any]) -> list[Taken | Batch]:
        """What was delivered, as far as it is its turn; and what has failed."""
        ready: list[Taken | Batch] = []
        for raw in out:
            portion = getattr(raw, "tag", raw)
            pieces = list(self._opened(raw))
            if portion.first is None:  # an end
                ready += pieces
                continue
            failed = [piece for piece in pieces if _has_failed(piece)]
            if failed:
                pieces = [piece for piece in pieces if not _has_failed(piece)]
                ready += failed
            self._early[portion.first] = len(portion.items), pieces
            while self._next in self._early:
                number, pieces = self._early.pop(self._next)
                self._next += number
                ready += pieces
        return ready

    def _opened(self, raw: Any) -> Iterable[Taken | Batch]:
        portion = getattr(raw, "tag", None)
        if portion is None:
            error = getattr(raw, "error", None)
            if error is None:
                return super()._opened(raw)
            return [Taken(item, [], error) for item in raw.items or (END,)]
        reader = _Reader(self._batches.core)
        values, failures = raw.read(reader)
        if not portion.items:
            return self._last(values[0], failures.get(0))
        if self.work.flat is not None and self.work.flat.restore(values):
            reader.plain = False
        places = set(failures)
        if not reader.plain:
            places |= _places(values)
        pieces = self._in_runs(portion.items, values, failures, places, reader)
        if self.work.stream:
            self._settled(sum(_done(piece) for piece in pieces))
        return pieces

    def _in_runs(
        self,
        items: list[Any],
        values: list[Any],
        failures: dict[int, BaseException],
        places: set[int],
        reader: _Reader,
    ) -> list[Taken | Batch]:
        """Items in the order of the chunk: those at `places` alone, and those between together."""
        pieces: list[Taken | Batch] = []
        at = 0
        for i in (*sorted(places), len(items)):
            if i > at:
                run = (items, values) if i - at == len(items) else (items[at:i], values[at:i])
                pieces.append(Batch(*run, self._many, reader.plain))
            if i < len(items):
                pieces.append(self._alone(items[i], values[i], failures.get(i)))
            at = i + 1
        if reader.reports:  # beside the items: a report tells of those before it, too
            pieces.append(Batch([], [], False, True, reader.reports))
        return pieces

    def _alone(self, item: Any, value: Any, failure: BaseException | None) -> Taken:
        if failure is not None:
            return Taken(item, [], failure)
        if type(value) is Parked:
            self._read_on(item, value)
            return Taken(item, value.outputs, None, False, value)
        return told(item, value)

    # The rest of an item that was parked.

    def _read_on(self, item: Any, parked: Parked) -> None:
        self._parked.put((item, parked))
        with self._lock:
            if self._readers >= self.replicas or self._over:
                return
            self._readers += 1
        self._batches.thread(self._read)

    def _read(self) -> None:
        while (entry := self._parked.get()) is not None:
            item, parked = entry
            failure = None
            try:
                with self._batches.rest(self._resume, parked.number, parked.pid) as outputs:
                    self._emit_all(item, outputs, parked)
            except BaseException as error:
                failure = errors.bare(error)
            self._deliver(Taken(item, [], failure, True, parked))
            del entry, failure, parked
        self._parked.put(None)  # for the next reader

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        slots = self._batches.slots() if self._used else []
        with self._lock:
            self._ends = len(slots)
        if not slots:
            self._through()
        for slot in slots:
            self._batches.call(slot)

    def _replica_ended(self) -> None:
        with self._lock:
            self._ends -= 1
            last = self._ends == 0
        if last:
            self._through()

    def _through(self) -> None:
        self._ended_well = True
        self._finished()
        self._parked.put(None)
        self._batches.close()

    def _last(self, value: Any, failure: BaseException | None) -> Iterator[Taken]:
        if failure is not None:
            yield Taken(END, [], failure)
        else:
            yield from ended(value)

    def _stop(self) -> None:
        self._earned(MANY)  # readers go on, and see that it is over
        self._parked.put(None)
        self._batches.close()
        if not self._ended_well:
            if self._own is not None:
                self._own.kill()  # it runs nothing but our items
            elif self._used:
                # The workers live on, with other lanes' state in them: what runs is finished, and
                # then they forget what was ours.
                self._batches.everywhere(Drop(self._token))
            self._ended_well = True

    def _wait(self, deadline: float | None) -> int:
        # Who reads on in a worker that lives may wait for what an item emits.
        left: int = self._batches.join(deadline)
        return left

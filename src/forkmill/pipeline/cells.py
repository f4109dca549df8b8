"""A stage while it runs: its queues, its counters, its policy. One class a way of running.

    Edge ──▶ Cell (inline) ──▶ Edge         items wait in the target's edges, one queue each
    tap  ──▶ Source        ──▶ Edge         pulled while there is room
    Edge ──▶ LaneCell ──put_many──▶ Lane ──take_many──▶ Edge

Guarantees:
    * Each item that reaches a cell is counted once on its edge: delivered, failed or dropped.
    * Nothing is handed to an edge without room, but for the outputs of one call that come
      together, and in a loop by fm.to that is full all around.

Invariants:
    * CELL-1  A cell has at most one run under way; it is resumed before anything new is begun.
    * CELL-2  `pending` of a LaneCell counts from put until the outputs are handed on: what waits
      in pipes, chunks and reorder buffers is bounded by queue_size with it.

Threads: everything belongs to the thread of the engine, but `Feeder`.
"""

from __future__ import annotations

import contextlib
import copy as copy_module
import functools
import heapq
import os
import threading
from collections import deque
from itertools import islice
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from .. import contexts
from ..errors import BuildError, WorkerDied
from .declare import to
from .events import short
from .fuse import ERRORS, GONE, Outs, fuse
from .graph import find, stage_hooks
from .options import DeadLetter, Retry
from .result import Failure, traceback_of
from .stats import Reservoir
from .work import (
    Report,
    adapted,
    emitted,
    initialize,
    is_async,
    is_generator,
    iterated,
    make_work,
    run_hooks,
    run_inline,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from .engine import Engine
    from .graph import Stage

__all__ = ["Abort", "Cell", "Edge", "LaneCell", "Outlet", "Source"]

_MOST = 4096  # items a slice
_QUICK, _SLOW = 0.5e-3, 2e-3  # seconds: a slice that takes less grows, one that takes more shrinks
_TIMED = 4  # items of a slice whose calls are all measured
_NEVER = float("inf")


class Abort(BaseException):
    """An item failed for good where the policy is "raise": ends the run."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.stage)
        self.failure = failure


class Edge(deque):  # type: ignore[type-arg]
    """What waits between two stages, and what went that way."""

    __slots__ = ("delivered", "dropped", "emitted", "failed", "room", "source", "target")

    def __init__(self, source: str, target: Cell, room: int) -> None:
        super().__init__()
        self.source = source
        self.target = target
        self.room = room  # it is full with so many
        self.emitted = self.delivered = self.failed = self.dropped = 0

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class Outlet(deque):  # type: ignore[type-arg]
    """The run's outputs; bounded where somebody takes them one by one."""

    __slots__ = ("bounded", "room")

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        self.room = 1 if bounded else _NEVER


class Cell:
    """An inline stage, and what all cells have in common."""

    live_source = False  # items may come out of it although none went in

    def __init__(self, engine: Engine, stage: Stage) -> None:
        self.engine = engine
        self.stage = stage
        self.name = stage.name
        self.index = stage.index
        self.kind = stage.kind
        self.outlet: Outlet = engine.outputs
        self.targets: list[Cell] = []
        self.sources: list[Cell] = []
        self.before: set[Cell] = set()  # every stage that static links lead from to here
        self.edges_in: list[Edge] = []
        self.edges_out: dict[Cell, Edge] = {}
        self.fused = False  # runs inside the group of the one stage before it
        self.routed = False  # outputs go through `route`
        self.state = "new"  # live, ending, ended
        self.form, self.fn = _form(stage)
        self.came = self.out = self.failures = 0
        self.sampled = 0.0  # seconds of measured calls
        self.wall = 0.0  # seconds of the runs that hang on this cell
        self.waited = 0.0
        self.reservoir = Reservoir()
        self.run: Iterator[Edge] | None = None  # CELL-1
        self.blocked: Any = None  # the full queue that the run waits for
        self.forced = False
        self._runs: dict[tuple[bool, bool], Any] = {}
        self._edge: Edge | None = None  # whose items the run works on
        self._chunk = 0  # how many of them it was given
        self._came_before = 0  # `came` when it began
        self._slice = 1
        self._measure = True
        self._turn = 0
        self._rotation = 0
        self._hooked = False
        self._ready = False  # setup has run
        self.held: dict[Any, list[Any]] = {}  # batches that are not full
        self._deadlines: dict[Any, float] = {}

    # ------------------------------------------------------------------ wiring

    def connect(self, target: Cell) -> None:
        """Make the edge to a target."""
        edge = Edge(self.name, target, target.stage.queue_size)
        self.targets.append(target)
        target.sources.append(self)
        self.edges_out[target] = edge
        target.edges_in.append(edge)

    def edge_to(self, target: Cell) -> Edge:
        """The edge to a target; made now if fm.to goes where no link is."""
        edge = self.edges_out.get(target)
        if edge is None:
            edge = self.edges_out[target] = Edge(self.name, target, target.stage.queue_size)
            target.edges_in.append(edge)
            target.rooms()
        return edge

    def wire(self) -> None:
        """Decide, when all edges are there, what is fused and what is routed."""
        stage = self.stage
        self.routed = len(self.targets) > 1 and (stage.copy or stage.routing != "broadcast")
        self.rooms()

    def can_fuse(self) -> bool:
        """Whether it can run inside the group of the one stage before it."""
        if len(self.sources) != 1 or not self.stage.inline or self.stage.max_wait is not None:
            return False
        source = self.sources[0]
        return source.stage.inline and not (
            len(source.targets) > 1 and (source.stage.copy or source.stage.routing != "broadcast")
        )

    def outlets(self) -> list[Any]:
        """The queues that a run hanging on this cell may fill."""
        if self.kind == "consumer":
            return []
        if not self.targets:
            return [self.outlet] if self.outlet.bounded else []
        found: list[Any] = []
        for target in self.targets:
            found += target.outlets() if target.fused else [self.edges_out[target]]
        return found

    def rooms(self) -> None:
        """Share the queue_size out among the edges."""
        if len(self.edges_in) == 1:
            self.edges_in[0].room = self.stage.queue_size
            return
        waiting = sum(map(len, self.edges_in))
        free = max(0, self.stage.queue_size - waiting)
        share = free // max(1, len(self.edges_in)) + (1 if free else 0)
        for edge in self.edges_in:
            edge.room = len(edge) + share

    # ------------------------------------------------------------------ life

    def before_hooks(self) -> None:
        """What comes before the first item."""
        self._hooked = True
        self.engine.events.emit("stage_started", self.name, context=str(self.stage.spec))
        run_hooks(stage_hooks(self.stage, "before_stage"), self.name)

    def after_hooks(self) -> None:
        """What comes after the last; once, also after a failure."""
        if not self._hooked:
            return
        self._hooked = False
        try:
            run_hooks(stage_hooks(self.stage, "after_stage"), self.name)
        finally:
            self.engine.events.emit(
                "stage_finished",
                self.name,
                **{"in": self.came, "out": self.out},
                failed=self.failures,
            )

    def open(self) -> None:
        """Get ready for items."""
        self.state = "live"
        setup = self.stage.parts.get("setup")
        if setup is not None:
            try:
                settle(setup())
            except ERRORS as error:
                if self.stage.on_error == "raise":
                    self.record(None, error, 1, "raise")
                self.fn = functools.partial(_raise, error)
                self.form = "one" if self.form == "many" else self.form
                return
        self._ready = True

    def tear_down(self) -> None:
        """Undo `open`; once."""
        if self._ready:
            self._ready = False
            teardown = self.stage.parts.get("teardown")
            if teardown is not None:
                settle(teardown())

    def close(self) -> None:
        """End now: what is under way or waits is dropped. Idempotent."""
        run, self.run = self.run, None
        if run is not None:
            run.close()  # type: ignore[attr-defined]
            if self._edge is not None:
                self._edge.dropped += self._chunk - (self.came - self._came_before)
        for edge in self.edges_in:
            edge.dropped += len(edge)
            edge.clear()
        self.state = "ended"

    # ------------------------------------------------------------------ turns

    def in_flight(self) -> bool:
        """Whether anything is on its way to, or inside of, the stage."""
        return self.run is not None or any(self.edges_in)

    def due(self) -> float:
        """When a batch has waited long enough."""
        return min(self._deadlines.values(), default=_NEVER)

    def turn(self) -> bool:
        """Do some of what there is to do; whether there was anything."""
        if self.run is not None:
            return self.resume()
        if self._deadlines and self.due() <= monotonic():
            self._release_late()
            return True
        edges = self.edges_in
        for i in range(len(edges)):
            edge = edges[(self._rotation + i) % len(edges)]
            if edge and self._has_room():
                self._rotation = (self._rotation + i + 1) % len(edges)
                self._start(edge)
                return True
        return False

    def _has_room(self) -> bool:
        if self.forced:
            return True
        for queue in self.engine.outlets_of(self):
            if len(queue) >= queue.room:
                self.blocked = queue
                return False
        return True

    def _start(self, edge: Edge) -> None:
        if self.state == "ended":
            self._reopen()
        timed = self._timed()
        n = _TIMED if timed and self._slice > 4 * _TIMED else self._slice
        if n >= len(edge):
            items = list(edge)
            edge.clear()
        else:
            items = [edge.popleft() for _ in range(n)]
        self._edge, self._chunk, self._came_before = edge, len(items), self.came
        if len(self.edges_in) == 1:
            edge.room = max(1, self.stage.queue_size - len(items))
        else:
            self.rooms()
        self.begin(self.run_of(True, timed)(items))

    def _reopen(self) -> None:
        """An item came by fm.to after the end: nothing is lost."""
        self.before_hooks()
        self.open()

    def _timed(self) -> bool:
        self._measure = not self._measure
        return self._measure or self._slice <= 4 * _TIMED

    def run_of(self, entry: bool, timed: bool) -> Callable[[Iterable[Any]], Iterator[Any]]:
        """The compiled run that hangs on this cell."""
        run = self._runs.get((entry, timed))
        if run is None:
            run = self._runs[entry, timed] = fuse(self, entry, timed)
        found: Callable[[Iterable[Any]], Iterator[Any]] = run
        return found

    def begin(self, run: Iterator[Any]) -> None:
        """Take up a run."""
        self.run, self.blocked = run, None
        self.resume()

    def resume(self) -> bool:
        """Go on with the run, as far as there is room."""
        blocked = self.blocked
        if blocked is not None:
            if len(blocked) >= blocked.room and not self.forced:
                return False
            self.blocked = None
        run = self.run
        assert run is not None
        start = perf_counter()
        try:
            self.blocked = next(run)
        except StopIteration:
            self.run = None
        finally:
            seconds = perf_counter() - start
            self.wall += seconds
            self.forced = False
        if self.run is None:
            self._tune(seconds, blocked is not None)
            self._over()
        return True

    def _over(self) -> None:
        self._edge = None
        self.rooms()

    def _tune(self, seconds: float, again: bool) -> None:
        if seconds > _SLOW:
            self._slice = max(1, self._slice // 2)
        elif seconds < _QUICK and not again:
            self._slice = min(_MOST, self._slice * 2)

    # ------------------------------------------------------------------ what runs call

    def flush(self, came: int, failed: int, out: int) -> None:
        """Counters of a run in which the stage is fused."""
        self.came += came
        if self.fused:
            edge = self.edges_in[0]
            edge.emitted += came
            edge.delivered += came - failed
            edge.failed += failed
        self._count_out(out)

    def flush_entry(self, came: int, failed: int, out: int) -> None:
        """Counters of a run whose items come from an edge of the stage."""
        self.came += came
        edge = self._edge
        if edge is not None:
            edge.delivered += came - failed
            edge.failed += failed
        self._count_out(out)

    def _count_out(self, out: int) -> None:
        self.out += out
        # Where there are several targets, runs and routes count for each.
        if len(self.targets) == 1 and not self.targets[0].fused:
            self.edges_out[self.targets[0]].emitted += out

    def note(self, seconds: float) -> None:
        """A call was measured."""
        self.sampled += seconds
        self.reservoir.add(seconds)

    def special(self, value: Any, item: Any) -> Generator[Any, None, bool]:
        """A value that is not one output: fm.to, a generator, a coroutine. Whether it failed."""
        if value.__class__ is to:
            full = self.send(value)
            if full is not None:
                yield full
            return False
        failed: list[bool] = []
        values = self._guarded(value, item, failed)
        if self.kind == "consumer":
            for output in values:
                if output.__class__ is to:
                    full = self.send(output)
                    if full is not None:
                        yield full
        else:
            yield from self.pour(values)
        return bool(failed)

    def _guarded(self, value: Any, item: Any, failed: list[bool]) -> Iterator[Any]:
        try:
            yield from (value if value.__class__ is Outs else emitted(value))
        except ERRORS as error:
            failed.append(True)
            self.fail(item, error)

    def pour(self, values: Iterable[Any]) -> Iterator[Any]:
        """Outputs go where outputs go."""
        return self.run_of(False, False)(values)

    def send(self, message: to) -> Any:
        """An item by fm.to; the queue if it is full now."""
        try:
            targets = self.engine.resolve(self, message.name)
        except BuildError as error:
            self.fail_once(message.item, error)
            return None
        full = None
        for target in targets:
            edge = self.edge_to(target)
            edge.append(message.item)
            edge.emitted += 1
            self.out += 1
            if len(edge) >= edge.room:
                full = edge
        return full

    def route(self, value: Any, item: Any) -> Any:
        """An output for one of several targets, or a copy for each; a queue if one is full now."""
        edges = [self.edges_out[target] for target in self.targets]
        routing = self.stage.routing
        if routing == "broadcast":
            try:
                values = [copy_module.deepcopy(value) for _ in edges[1:]]
            except ERRORS as error:
                self.fail_once(item, error)
                return None
            values.append(value)
        else:
            if routing == "balanced":
                start = self._turn % len(edges)
                order = edges[start:] + edges[:start]
                edges = [min(order, key=lambda edge: edge.target.load())]
            else:
                edges = [edges[self._turn % len(edges)]]
            self._turn += 1
            values = [value]
        full = None
        for edge, one in zip(edges, values, strict=True):
            edge.append(one)
            edge.emitted += 1
            if len(edge) >= edge.room:
                full = edge
        if full is not None and routing == "balanced":
            # Full only if all are: another one is idle.
            return full if all(len(e) >= e.room for e in self.edges_out.values()) else None
        return full

    def load(self) -> float:
        """How much there is to do here, for balanced routing."""
        return sum(map(len, self.edges_in)) + (self.run is not None)

    # Batches.

    def hold(self, item: Any) -> list[Any] | None:
        """An item goes into its batch; the batch, if it is full now."""
        stage = self.stage
        key = None
        if stage.key is not None:
            try:
                key = stage.key(item)
                hash(key)
            except ERRORS as error:
                self.fail_once(item, error)
                return None
        held = self.held.get(key)
        if held is None:
            held = self.held[key] = []
            if stage.max_wait is not None:
                self._deadlines[key] = monotonic() + stage.max_wait
        held.append(item)
        if stage.size is None or len(held) < stage.size:
            return None
        return self._released(key)

    def _released(self, key: Any) -> list[Any]:
        self._deadlines.pop(key, None)
        items = self.held.pop(key)
        self.engine.events.emit("batch", self.name, size=len(items))
        return items

    def _release_late(self) -> None:
        now = monotonic()
        late = [key for key, due in self._deadlines.items() if due <= now]
        self.begin(self._emit_batches([self._released(key) for key in late]))

    def _emit_batches(self, batches: list[list[Any]]) -> Iterator[Any]:
        """Batches that nothing pushed out: through the body, if there is one, and on."""
        if self.fn is None:
            yield from self.pour(batches)
            return
        for items in batches:
            try:
                value = self.fn(items)
            except ERRORS as error:
                value = self.fail(items, error)
                if value is GONE:
                    continue
            yield from self.special(Outs(emitted_now(value)), items)

    # ------------------------------------------------------------------ failures

    def fail(self, item: Any, error: BaseException) -> Any:
        """An item failed: the stage's policy. GONE, or what another try emits."""
        policy = self.stage.on_error
        if not isinstance(policy, Retry):
            self.record(item, error, 1, policy)
            return GONE
        attempts = 1
        while attempts < policy.attempts and isinstance(error, policy.on):
            pause = policy.pause(attempts)
            self.engine.events.emit(
                "retry",
                self.name,
                item=short(item),
                error=short(error),
                attempts=attempts,
                pause=pause,
            )
            if not self.engine.pause(pause):
                break
            attempts += 1
            try:
                return self.fn(item)
            except ERRORS as again:
                error = again
        self.record(item, error, attempts, policy.then)
        return GONE

    def fail_once(self, item: Any, error: BaseException) -> None:
        """An item failed in a way that another try does not heal."""
        policy = self.stage.on_error
        self.record(item, error, 1, policy.then if isinstance(policy, Retry) else policy)

    def record(self, item: Any, error: BaseException, attempts: int, policy: Any) -> None:
        """An item failed for good.

        Raises:
            Abort: The policy is "raise".
        """
        self.failures += 1
        failure = Failure(
            self.name,
            item,
            error,
            attempts,
            traceback_of(error),
            _again=functools.partial(run_inline, self.stage) if self.stage.fn else None,
        )
        self.engine.failures.append(failure)
        events = self.engine.events
        events.emit(
            "item_failed",
            self.name,
            item=short(item),
            error=short(error),
            attempts=attempts,
            policy=policy if isinstance(policy, str) else "dead_letter",
        )
        if isinstance(error, WorkerDied):
            events.emit("worker_died", self.name, error=str(error))
        if policy == "raise":
            raise Abort(failure)
        if isinstance(policy, DeadLetter):
            for target in self.engine.resolve(self, policy.stage):
                edge = self.edge_to(target)
                edge.append(failure)
                edge.emitted += 1

    # ------------------------------------------------------------------ the end

    def finish(self) -> None:
        """Nothing will come any more: leftovers, on_end. When its run is over, it has ended."""
        self.state = "ending"
        self.begin(self._last())

    def _last(self) -> Iterator[Any]:
        held = [self._released(key) for key in list(self.held)]
        if held:
            yield from self._emit_batches(held)
        on_end = self.stage.parts.get("on_end")
        if on_end is None or not self._ready:
            return
        try:
            values = emitted(on_end())
        except ERRORS as error:
            self.fail_once(None, error)
            return
        yield from self.special(self._end_values(values), None)

    def _end_values(self, values: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from values
        except ERRORS as error:
            self.fail_once(None, error)

    def ended(self) -> bool:
        """Whether `finish` has come to its end."""
        return self.run is None and not any(self.edges_in)

    def conclude(self) -> None:
        """After the last output."""
        self.state = "ended"
        try:
            self.tear_down()
        finally:
            self.after_hooks()


def emitted_now(value: Any) -> Iterable[Any]:
    """What a value emits, where it may be all outputs of another try."""
    return value if value.__class__ is Outs else emitted(value)


def _raise(error: BaseException, item: Any) -> Any:
    raise error


def _form(stage: Stage) -> tuple[str, Any]:
    """How an inline stage is called: one value, many, a filter; and the function for it."""
    fn = stage.fn
    if stage.kind == "batch":
        return "batch", fn if fn is None or not is_async(fn) else functools.partial(_settled, fn)
    if stage.kind == "unbatch":
        fn = _elements
    elif stage.kind == "filter" and is_async(fn):
        fn = functools.partial(_settled, fn)
    elif stage.kind == "flat" and is_async(fn):
        fn = adapted(stage)
        return ("one", functools.partial(_all, fn)) if _whole(stage) else ("one", fn)
    many = stage.kind in ("flat", "unbatch") or (is_generator(fn) and not is_async(fn))
    if stage.kind == "filter":
        return "filter", fn
    if _whole(stage) and stage.kind != "producer":
        return (stage.kind if stage.kind == "consumer" else "one"), functools.partial(
            _all_of if stage.kind in ("flat", "unbatch") else _all, fn
        )
    if many:
        return "many", fn
    return ("consumer" if stage.kind == "consumer" else "one"), fn


def _whole(stage: Stage) -> bool:
    """Whether an item's outputs must come from one try."""
    return isinstance(stage.on_error, Retry)


def _elements(item: Any) -> Any:
    return item


def _settled(fn: Any, item: Any) -> Any:
    return settle(fn(item))


def _all(fn: Any, item: Any) -> Any:
    return Outs(emitted(fn(item)))


def _all_of(fn: Any, item: Any) -> Any:
    return Outs(iterated(fn(item)))


# ---------------------------------------------------------------------- producers


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
        n = _TIMED if timed and self._slice > 4 * _TIMED else self._slice
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


# ---------------------------------------------------------------------- other contexts


class _Record:
    """What is to be remembered of an item in a lane."""

    __slots__ = ("attempts", "edge", "item", "outputs", "seq")

    def __init__(self, item: Any, edge: Edge | None, seq: int) -> None:
        self.item = item
        self.edge = edge
        self.seq = seq
        self.attempts = 1
        self.outputs: list[Any] = []


class LaneCell(Cell):
    """A stage that runs in a context, behind its Lane."""

    def __init__(self, engine: Engine, stage: Stage) -> None:
        super().__init__(engine, stage)
        self.lane: Any = None
        self.width = width_of(stage)
        self.pending = 0  # CELL-2
        self.producing = stage.kind == "producer"
        self.live_source = self.producing
        self._most = stage.queue_size + self.width
        self._ready_pieces: deque[Any] = deque()
        self._retries: list[tuple[float, int, _Record]] = []
        self._records: dict[int, deque[_Record]] = {}
        self._remember = stage.ordered or isinstance(stage.on_error, Retry)
        self._seq = self._next = 0
        self._waiting: dict[int, _Record] = {}  # ordered: done before their turn
        self._ending = 0  # 1: leftovers are on their way, 2: the lane ends
        self._forks = stage_hooks(stage, "before_fork")
        self.call_hooks = bool(self._forks) and stage.spec.type == "cow_fork"

    def wire(self) -> None:
        super().wire()
        self._remember = self._remember or len(self.edges_in) > 1
        self.rooms()

    def rooms(self) -> None:
        """queue_size counts what waits here and in the lane."""
        free = self._most - self.pending - len(self._waiting)
        if len(self.edges_in) > 1:
            self._remember = True
            free -= sum(map(len, self.edges_in))
            share = max(0, free) // len(self.edges_in) + (1 if free > 0 else 0)
            for edge in self.edges_in:
                edge.room = len(edge) + share
        elif self.edges_in:
            self.edges_in[0].room = min(max(0, free), self.stage.queue_size)

    # Opening.

    def open(self) -> None:
        """Make the lane, with the hooks of forks where there are some."""
        self.state = "live"
        stage, spec = self.stage, self.stage.spec
        hooks = stage_hooks(stage, "after_fork")
        isolated = spec.type in ("ipc_fork", "cow_fork")
        shared = type(spec) is not contexts.Spec  # a named pool: its workers are there already
        born = spec.type == "ipc_fork" and not shared
        if born and (hooks or self._forks):
            for _ in range(self.width):
                run_hooks(self._forks, self.name)
            spec = _with_hooks(spec, hooks, self.name)
        work = make_work(stage, hooks if isolated and not born else [])
        self.lane = spec.lane(work, self.engine.bell.ring)
        if self.producing:
            self.pending = 1
            if self.call_hooks:
                run_hooks(self._forks, self.name)
            self.lane.put_many([None])

    def _reopen(self) -> None:
        self._ending = 0
        self.before_hooks()
        self.open()

    # Turns.

    def in_flight(self) -> bool:
        return bool(self.pending or self._ready_pieces or self._waiting or any(self.edges_in))

    def due(self) -> float:
        again = self._retries[0][0] if self._retries else _NEVER
        return min(again, super().due())

    def load(self) -> float:
        return (sum(map(len, self.edges_in)) + self.pending) / self.width

    def turn(self) -> bool:
        progress = False
        if self.lane is not None:
            progress = self._take()
        if any(self.edges_in):
            if self.lane is None or self.state == "ended":
                self._reopen()
            progress = self._feed() or progress
        if self._retries and self._retries[0][0] <= monotonic():
            progress = self._try_again() or progress
        if self._deadlines and self.due() <= monotonic():
            now = monotonic()
            late = [key for key, due in self._deadlines.items() if due <= now]
            self._put([(self._released(key), None) for key in late])
            progress = True
        return progress

    @property
    def has_pieces(self) -> bool:
        """Whether something came out that has not been handed on."""
        return bool(self._ready_pieces)

    @property
    def works_outside(self) -> bool:
        """Whether the lane will ring: it works, or comes to its end."""
        if self.lane is None or self.state == "ended":
            return False
        if self._ready_pieces:  # a stream waits for us; anything else is done
            return False
        return bool(self.lane.pending) or (self._ending == 2 and not self.lane.ended)

    def _feed(self) -> bool:
        free = self._most - self.pending - len(self._waiting)
        if self._ending or free <= 0:
            return False
        taken = False
        for edge in self.edges_in:
            n = min(free, len(edge))
            if not n:
                continue
            if n == len(edge):
                items = list(edge)
                edge.clear()
            else:
                items = [edge.popleft() for _ in range(n)]
            free -= n
            taken = True
            self.came += n
            if self.kind == "batch":
                edge.delivered += n
                full = [(b, None) for b in map(self.hold, items) if b is not None]
                if full:
                    self._put(full)
            else:
                self._put_items(items, edge)
        self.rooms()
        return taken

    def _put_items(self, items: list[Any], edge: Edge) -> None:
        if self._remember or self.stage.key is not None or self.call_hooks:
            self._put([(item, edge) for item in items])
            return
        self.pending += len(items)
        self.lane.put_many(items)

    def _put(self, pairs: Iterable[tuple[Any, Edge | None]]) -> None:
        """Items one by one: with records, keys, hooks."""
        plain: list[Any] = []
        keyed: dict[int, list[Any]] = {}
        for item, edge in pairs:
            self.pending += 1
            if self._remember:
                record = _Record(item, edge, self._seq)
                self._seq += 1
                self._records.setdefault(id(item), deque()).append(record)
            if self.call_hooks:
                run_hooks(self._forks, self.name)
            key = self.stage.key if self.kind != "batch" else None
            if key is None:
                plain.append(item)
                continue
            try:
                keyed.setdefault(hash(key(item)) % max(1, self.lane.copies), []).append(item)
            except ERRORS as error:
                self._finished(self._recall(item), item, error, final=True)
        if plain:
            self.lane.put_many(plain)
        for copy, items in keyed.items():
            self.lane.put_many(items, copy)

    def _recall(self, item: Any) -> _Record | None:
        """The record of an item that came back; equal objects are as good as each other."""
        records = self._records.get(id(item))
        if not records:
            return None
        record = records.popleft()
        if not records:
            del self._records[id(item)]
        return record

    def _try_again(self) -> bool:
        progress = False
        while self._retries and self._retries[0][0] <= monotonic():
            record = heapq.heappop(self._retries)[2]
            self._records.setdefault(id(record.item), deque()).append(record)
            if self.call_hooks:
                run_hooks(self._forks, self.name)
            self.lane.put_many([record.item])
            progress = True
        return progress

    # What comes out.

    def _take(self) -> bool:
        pieces = self._ready_pieces
        if not pieces:
            pieces.extend(self.lane.take_many(0))
        progress = False
        while pieces and self._has_room():
            piece = pieces.popleft()
            progress = True
            if piece.__class__ is contexts.Batch:
                self._batch(piece)
            else:
                self._taken(piece)
        self.forced = False
        if progress:
            self.rooms()
        return progress

    def _batch(self, piece: Any) -> None:
        """Items that came out together: the fast way, if nothing has to be known of each."""
        if self._remember:
            for one in piece.split():
                self._taken(one)
            return
        n = len(piece.items)
        outputs = piece.outputs
        if piece.many:
            outputs = [output for several in outputs for output in several]
        self.deliver(outputs)
        self.pending -= n
        if self.kind != "batch" and self.edges_in:
            self.edges_in[0].delivered += n

    def _taken(self, taken: Any) -> None:
        item, outputs, failure, done = taken
        if item is contexts.END:
            self.deliver(outputs)
            if failure is not None:
                self.fail_once(None, failure)
            return
        if not self._remember:
            self.deliver(outputs)
            if done:
                self._finished(None, item, failure)
            return
        known = self._records.get(id(item))
        record = known[0] if known else None  # None: put before there was a second edge
        if done:
            self._recall(item)
        if record is not None and self.stage.ordered and record.seq != self._next:
            record.outputs += outputs
        else:
            if record is not None and record.outputs:  # they came before its turn
                self.deliver(record.outputs)
                record.outputs = []
            self.deliver(outputs)
        if done:
            self._finished(record, item, failure)

    def _finished(
        self, record: _Record | None, item: Any, failure: BaseException | None, final: bool = False
    ) -> None:
        """An item is through, or is to be tried again."""
        edge = record.edge if record is not None else self.edges_in[0] if self.edges_in else None
        policy = self.stage.on_error
        attempts = record.attempts if record is not None else 1
        if failure is not None and not final and record is not None and isinstance(policy, Retry):
            again = attempts < policy.attempts and isinstance(failure, policy.on)
            if again and not self.engine.killed:
                self._schedule(record, failure, policy)
                return
        self.pending -= 1
        if self.producing:
            self.live_source = False
        counted = self.kind not in ("batch", "producer") and edge is not None
        if counted:
            assert edge is not None
            edge.delivered += failure is None
            edge.failed += failure is not None
        if failure is not None:
            if self.producing:
                self.engine.producer_failed = True
                self.record(None, failure, 1, "skip")
            else:
                then = policy.then if isinstance(policy, Retry) else policy
                self.record(item, failure, attempts, then)
        if record is not None and self.stage.ordered:
            self._waiting[record.seq] = record
            while (ready := self._waiting.pop(self._next, None)) is not None:
                self._next += 1
                self.deliver(ready.outputs)

    def _schedule(self, record: _Record, failure: BaseException, policy: Retry) -> None:
        pause = policy.pause(record.attempts)
        self.engine.events.emit(
            "retry",
            self.name,
            item=short(record.item),
            error=short(failure),
            attempts=record.attempts,
            pause=pause,
        )
        record.attempts += 1
        heapq.heappush(self._retries, (monotonic() + pause, record.seq, record))

    def deliver(self, outputs: list[Any]) -> None:
        """Outputs go on: to queues, to the run's outputs."""
        if not outputs:
            return
        if not _MARKED.isdisjoint(map(type, outputs)):
            outputs = self._plain(outputs)
        if self.kind == "consumer" or not outputs:
            return
        self.out += len(outputs)
        if not self.targets:
            self.outlet.extend(outputs)
        elif self.routed:
            for output in outputs:
                self.route(output, None)
        else:
            for target in self.targets:
                edge = self.edges_out[target]
                edge.extend(outputs)
                edge.emitted += len(outputs)

    def _plain(self, outputs: list[Any]) -> list[Any]:
        """Without what is for us: times, and items by fm.to."""
        kinds = list(map(type, outputs))
        plain = outputs[:]
        gone: list[int] = []
        for i in _places(kinds, Report):
            report = outputs[i]
            self.sampled += report.seconds
            self.reservoir.add(report.call)
            plain[i] = report.value
            kinds[i] = type(report.value)
            if report.value is Report:
                gone.append(i)
        for i in _places(kinds, to):
            self.send(plain[i])
            gone.append(i)
        if gone:
            out = set(gone)
            plain = [output for i, output in enumerate(plain) if i not in out]
        return plain

    # The end.

    def finish(self) -> None:
        self.state = "ending"
        held = [(self._released(key), None) for key in list(self.held)]
        if held and self.lane is not None:
            self._ending = 1
            self._put(held)
        else:
            self._end_lane()

    def _end_lane(self) -> None:
        self._ending = 2
        if self.lane is not None:
            self.lane.end()

    def ended(self) -> bool:
        if self._ending == 1 and not self.pending:
            self._end_lane()
        if self._ending != 2 or self.pending or self._ready_pieces:
            return False
        return self.lane is None or bool(self.lane.ended)

    def conclude(self) -> None:
        if self.lane is not None:
            self.lane.close()
            self.lane = None
        self.state = "ended"
        self.after_hooks()

    def stop(self) -> None:
        """A producer in a context stops with it."""
        if self.producing and self.lane is not None and self.pending:
            for piece in self.lane.take_many(0):
                self._ready_pieces.append(piece)
            self.lane.close()
            self.pending = 0
            self._ending = 2
        self.live_source = False

    def close(self) -> None:
        lane, self.lane = self.lane, None
        if lane is not None:
            lane.close()
        if self.kind not in ("batch", "producer"):
            again = [record for _, _, record in self._retries]
            for record in [r for several in self._records.values() for r in several] + again:
                self.pending -= 1
                if record.edge is not None:
                    record.edge.dropped += 1
            if self.edges_in:
                self.edges_in[0].dropped += self.pending
        self._records.clear()
        self._ready_pieces.clear()
        self.pending = 0
        super().close()


_MARKED = frozenset({Report, to})


def _places(kinds: list[type], kind: type) -> Iterator[int]:
    """Where a type is in a list of types."""
    place = -1
    with contextlib.suppress(ValueError):
        while True:
            place = kinds.index(kind, place + 1)
            yield place


def width_of(stage: Stage) -> int:
    """How many calls of a stage run at once, at most."""
    spec = stage.spec
    if spec.type == "inline":
        return 1
    if spec.max_workers is not None:
        return spec.max_workers
    if spec.type == "async":
        return 100
    can_ask = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if can_ask else os.cpu_count() or 1
    return min(32, cpus + 4) if spec.type == "thread" else cpus


def _with_hooks(spec: contexts.Spec, hooks: list[Any], name: str) -> contexts.Spec:
    options = dict(spec.options)
    options["initargs"] = (
        hooks,
        name,
        options.get("initializer"),
        options.get("initargs", ()),
    )
    options["initializer"] = initialize
    return contexts.Spec(spec.type, spec.max_workers, options)


def resolve(cell: Cell, name: str) -> list[Stage]:
    """The stages that fm.to means, said in a stage.

    Raises:
        BuildError: There is no such stage, or it is ambiguous, or a producer.
    """
    stage = cell.stage
    targets = find(stage.level, name, cell.engine.graph.top, f"stage {cell.name!r}: fm.to")
    for target in targets:
        if target.kind == "producer":
            raise BuildError(f"stage {cell.name!r}: fm.to: {target.name!r} is a producer")
    return targets

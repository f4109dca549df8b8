"""A stage while it runs: its queues, its counters, its policy. One class a way of running.

    Edge ──▶ Operator (inline) ──▶ Edge     items wait in the target's edges, one queue each
    tap  ──▶ Source            ──▶ Edge     pulled while there is room: sources.py
    Edge ──▶ LaneOperator      ──▶ Edge     through a context's Lane: lanes.py

Guarantees:
    * Each item that reaches an operator is counted once on its edge: delivered, failed or dropped.
    * Nothing is handed to an edge without room, but by what closes a loop (OP-3).

Invariants:
    * OP-1  An operator has at most one run under way; it is resumed before anything new is begun.
    * OP-2  `pending` of a LaneOperator counts from put until the outputs are handed on: what waits
      in pipes, chunks and reorder buffers is bounded by queue_size with it.
    * OP-3  Waiting for room never goes in a circle. Links go from a stage to one of a higher
      index; an item by fm.to or a dead letter that goes to a lower one, or the same, closes a loop
      if the stage can be reached from there. Such an edge is never full. So of all that wait
      for room, who has the highest index waits for one that does not.

Threads: everything belongs to the thread of the driver.
"""

from __future__ import annotations

import copy as copy_module
import enum
import functools
import itertools
import os
from threading import get_ident
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from ...contexts.lanes.emit import UNUSUAL, pieces, settle
from ...errors import BuildError
from ...events import short
from ...runs.failure import Failure
from ...runs.handle import Left
from ...runs.policies import DeadLetter, Retry, final
from ...runs.stats import Reservoir
from ..declare import to
from ..graph import stage_hooks
from .flow import (
    BEAT,
    GONE,
    NEVER,
    QUICK,
    SIGNS,
    SLOW,
    Abort,
    Choice,
    Edge,
    Killed,
    Outs,
)
from .forms import emitted_now, form_of, is_whole
from .told import Calls, tell_death, tell_failure
from .work import run_hooks, run_inline

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ..graph import Stage
    from .flow import Outlet
    from .state import Run

__all__ = ["Operator", "Phase"]

_MOST = 16384  # items a slice: what the chunks of a few workers bring at once
TIMED = 4  # items of a slice whose calls are all measured


class Phase(enum.Enum):
    """Where an operator is in its life. What comes after the end begins it anew."""

    NEW = "new"
    LIVE = "live"
    ENDING = "ending"  # nothing will come: leftovers, on_end
    ENDED = "ended"


_TELL_S = 5e-3  # between two events about the calls of a stage
_SHORT_S = 20e-6  # calls that take longer are all measured, for who hears of each
_KNOWN = 16  # measured calls that tell what a stage's take
_SURELY = 1000  # items behind which a stage that none has come to is not waited for


class Operator:
    """An inline stage, and what all operators have in common."""

    live_source = False  # items may come out of it although none went in
    jumps = False  # it may send items where no link is: by fm.to, as dead letters
    share_of_one = 1.0  # how much `load` is more with an item more

    def __init__(self, driver: Run[Operator], stage: Stage) -> None:
        self.driver = driver
        self.stage = stage
        self.name = stage.name
        self.index = stage.index
        self.kind = stage.kind
        self.outlet: Outlet = driver.outputs
        self.targets: list[Operator] = []
        self.sources: list[Operator] = []
        self.before: set[Operator] = set()  # every stage that static links lead from to here
        self.edges_in: list[Edge] = []
        self.edges_out: dict[Operator, Edge] = {}
        self.loop: object | None = None  # what loop it is part of, of those that are known
        self.fused = False  # runs inside the group of the one stage before it
        self.routed = False  # outputs go through `route`
        self.state = Phase.NEW
        self.started = ("", "")  # how its processes were, and why not by a fork
        self.jumps = stage.dynamic or isinstance(final(stage.on_error), DeadLetter)
        self.form, self.fn = form_of(stage, self._watched, driver.awaited.settle)
        self.whole = is_whole(stage) and stage.kind not in ("batch", "producer")
        self.came = self.out = self.failures = 0
        self.sampled = 0.0  # seconds of measured calls
        self.wall = 0.0  # seconds of the runs that hang on this operator
        self.waited = 0.0
        self.reservoir = Reservoir()
        self.calls: Calls | None = None  # somebody wants to know of each
        self.run: Iterator[Edge] | None = None  # OP-1
        self.blocked: Any = None  # the full queue that the run waits for
        self.choice: Choice | None = None  # balanced: its targets' queues
        self._runs: dict[tuple[bool, bool], Any] = {}
        self._edge: Edge | None = None  # whose items the run works on
        self._chunk = 0  # how many of them it was given
        self._came_before = 0  # `came` when it began
        self._slice = 1
        self._spent = 0.0  # seconds of the run that is under way
        self.few = 1  # items between two looks at the clock (see Pace)
        self._measure = True
        self._rotation = 0
        self.rotate: Callable[[], Edge] | None = None  # round robin: whose turn it is
        self._thrown: dict[str, Edge] = {}  # by what name an item by fm.to goes to one stage
        self._hooked = False
        self._ready = False  # setup has run
        self._tried = False  # it has been called
        self._bare: Any = None  # the stage's function, while setup stands before it
        self.held: dict[Any, list[Any]] = {}  # batches that are not full
        self._deadlines: dict[Any, float] = {}

    # ------------------------------------------------------------------ wiring

    def connect(self, target: Operator) -> None:
        """Make the edge to a target."""
        edge = Edge(self.name, target, target.stage.queue_size)
        self.targets.append(target)
        target.sources.append(self)
        self.edges_out[target] = edge
        target.edges_in.append(edge)

    def edge_to(self, target: Operator) -> Edge:
        """The edge to a target; made now if fm.to goes where no link is."""
        edge = self.edges_out.get(target)
        if edge is None:
            edge = self.edges_out[target] = Edge(self.name, target, target.stage.queue_size)
            target.edges_in.append(edge)
            self.driver.linked()
        return edge

    def throw(self, target: Operator, item: Any) -> Edge | None:
        """Send an item where no link need be; the edge, if it is full now."""
        edge = self.edge_to(target)
        if self.driver.stopping and self.loop is not None and self.loop is target.loop:
            edge.straight += 1  # it would go round for ever
            edge.dropped += 1
            return None
        edge.append(item)
        if edge.closing:
            edge.peak = max(edge.peak, len(edge))
            return None
        return edge if len(edge) >= edge.room else None

    def wire(self) -> None:
        """Decide, when all edges are there, what is fused and what is routed."""
        stage = self.stage
        self.routed = len(self.targets) > 1 and (stage.copy or stage.routing != "broadcast")
        if self.routed and stage.routing == "balanced":
            self.choice = Choice(self.edges_out.values())
        elif self.routed and stage.routing == "round_robin":
            self.rotate = itertools.cycle(self.edges_out.values()).__next__
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
        """The queues that a run hanging on this operator may fill."""
        thrown = set(self.edges_out).difference(self.targets)
        found: list[Any] = [e for t, e in self.edges_out.items() if t in thrown and not e.closing]
        if not self.targets:
            bounded = self.kind != "consumer" and self.outlet.bounded
            return [*found, self.outlet] if bounded else found
        if self.choice is not None:
            return [*found, self.choice]
        for target in self.targets:
            found += target.outlets() if target.fused else [self.edges_out[target]]
        return found

    def rooms(self) -> None:
        """Share the queue_size out among the edges."""
        edges = self.edges_in
        if len(edges) == 1:
            edges[0].room = NEVER if edges[0].closing else self.stage.queue_size
            return
        taken = 0 if self._edge is None else self._chunk
        self.share(self.stage.queue_size - taken - sum(map(len, edges)))

    def share(self, free: int) -> None:
        """So many more items may wait, on all edges together."""
        edges = self.edges_in
        share = max(0, free) // max(1, len(edges)) + (1 if free > 0 else 0)
        for edge in edges:
            edge.room = NEVER if edge.closing else len(edge) + share

    def under_way(self) -> int:
        """How many items it has taken on, and is not through with. Any thread."""
        return 0

    # ------------------------------------------------------------------ life

    def before_hooks(self) -> None:
        """What comes before the first item."""
        if self.driver.inside:
            return  # the outer run does that, once for all replicas
        self._hooked = True
        self.driver.events.emit("stage_started", self.name, context=str(self.stage.spec))
        run_hooks(stage_hooks(self.stage, "before_stage"), self.name)

    def after_hooks(self) -> None:
        """What comes after the last; once, also after a failure."""
        if not self._hooked:
            return
        self._hooked = False
        self.tell_calls()
        raised = self.driver.hooks(stage_hooks(self.stage, "after_stage"), self.name)
        self.driver.events.emit(
            "stage_finished",
            self.name,
            **{"in": self.came, "out": self.out},
            failed=self.failures,
        )
        for error in raised:
            self.driver.fail_late(error)

    def open(self) -> None:
        """Get ready for items. setup runs before the first of them."""
        self.state = Phase.LIVE
        if self.driver.events.detail != "runs" and self.kind != "producer":
            self.calls = self.calls or Calls()
        self._tried = False
        if self.stage.parts.get("setup") is None:
            self._ready = True
        elif self.fn is None:  # a batch without a body: there is no call that could wait for it
            try:
                self._begin()
            except BaseException as error:
                if self.driver.passes(error):
                    raise
                self.fail_once(None, error)
        elif self._bare is None:
            self._bare, self.fn = self.fn, self._first
            self.driver.rewrite()

    def _first(self, item: Any) -> Any:
        """Stands for the stage's function until setup has run: one that fails is tried again by
        the next item, or the next try of this one."""
        if not self._ready:
            self._begin()
        return self.fn(item)

    def _begin(self) -> None:
        """Run setup.

        Raises:
            BaseException: What it raised.
        """
        self._tried = True
        setup = self.stage.parts.get("setup")
        if setup is not None:
            settle(setup())
        self._ready = True
        if self._bare is not None:
            self.fn, self._bare = self._bare, None
            self.driver.rewrite()

    def tear_down(self) -> None:
        """Undo `open`; once."""
        if self._ready:
            self._ready = False
            teardown = self.stage.parts.get("teardown")
            if teardown is not None:
                try:
                    settle(teardown())
                except BaseException as error:
                    if self.driver.killed:
                        self.driver.gate()
                    if self.driver.passes(error):
                        raise
                    self.fail_at_end(error)

    def close(self) -> None:
        """End now: what is under way or waits is dropped. Idempotent.

        Raises:
            BaseException: What a generator of the user's raised when it was closed. All is done.
        """
        self.state = Phase.ENDED
        self.drop()

    def drop(self) -> None:
        """What is under way or waits comes to nothing. Raises as `close`."""
        run, self.run = self.run, None
        try:
            if run is not None and not run.gi_running:  # type: ignore[attr-defined]
                run.close()  # type: ignore[attr-defined]
        except Left:
            if self.driver.thread != get_ident():
                raise  # else it was disarmed while it waited for its turn
        finally:
            if run is not None and self._edge is not None:
                self._edge.dropped += self._chunk - (self.came - self._came_before)
                self._edge = None
            for edge in self.edges_in:
                edge.drop()

    def disarm(self) -> None:
        """The run is killed, and its thread does not come back: whatever that calls in a run raises
        Left."""
        for function in self._runs.values():
            self.driver.disarm(function)

    # ------------------------------------------------------------------ turns

    def in_flight(self) -> bool:
        """Whether anything is on its way to, or inside of, the stage."""
        return self.run is not None or any(self.edges_in)

    def due(self) -> float:
        """When a batch has waited long enough."""
        return min(self._deadlines.values(), default=NEVER)

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
        for queue in self.driver.outlets_of(self):
            if len(queue) >= queue.room:
                self.blocked = queue
                return False
        return True

    def _start(self, edge: Edge) -> None:
        if self.state is Phase.ENDED:
            self._reopen()
        few = self._few_timed()
        if few:
            self._work_on(edge, few, True)
            if self.run is not None or not edge or not self._has_room():
                return
        self._work_on(edge, self._slice, self._all_timed())

    def _work_on(self, edge: Edge, most: int, timed: bool) -> None:
        items = edge.take(most)
        self._edge, self._chunk, self._came_before = edge, len(items), self.came
        if len(self.edges_in) == 1 and not edge.closing:
            edge.room = max(1, self.stage.queue_size - len(items))
        else:
            self.rooms()
        self.begin(self.run_of(True, timed)(items))

    def _reopen(self) -> None:
        """An item came by fm.to after the end: nothing is lost."""
        self.before_hooks()
        self.open()

    def _few_timed(self) -> int:
        """How many items come before a slice, with their calls all measured; 0: it is so small that
        they are measured in it, or it is the slice's turn."""
        self._measure = not self._measure
        few = self._measure and not self._all_timed()
        return TIMED if few else 0

    def _all_timed(self) -> bool:
        """Whether the calls of a whole slice are measured."""
        if self._slice <= 4 * TIMED or self.driver.every:
            return True
        return self.driver.detailed and self._may_take_long(max(self.came, self.out))

    def _may_take_long(self, came: int) -> bool:
        """Whether a call of the group is not known to be short, of so many items that have come."""
        if self.fn is not None and self.kind != "producer":
            measured = self.reservoir.count
            if measured >= _KNOWN:
                if self.sampled >= _SHORT_S * measured:
                    return True
            elif self.came or came < _SURELY:
                return True
        return any(target._may_take_long(came) for target in self.targets if target.fused)

    def run_of(self, entry: bool, timed: bool) -> Callable[[Iterable[Any]], Iterator[Any]]:
        """The compiled run that hangs on this operator."""
        if self.driver.stopping:
            self.driver.gate()
        run = self._runs.get((entry, timed))
        if run is None:
            run = self._runs[entry, timed] = self.driver.compiled(self, entry, timed)
        found: Callable[[Iterable[Any]], Iterator[Any]] = run
        return found

    def rewrite(self) -> None:
        """Forget the compiled runs: a stage's function is another one."""
        self._runs.clear()

    def begin(self, run: Iterator[Any]) -> None:
        """Take up a run."""
        self.run, self.blocked, self._spent = run, None, 0.0
        self.resume()

    def resume(self) -> bool:
        """Go on with the run, as far as there is room, or until the driver is to have a look."""
        blocked = self.blocked
        if blocked is not None:
            if len(blocked) >= blocked.room:
                return False
            self.blocked = None
        run, pace = self.run, self.driver.pace
        assert run is not None
        self.driver.turns += 1
        start, seconds = perf_counter(), 0.0
        if pace is not None:
            pace.begin(self, start)
        try:
            full: Any = next(run)
            if type(full) not in SIGNS:  # an output
                self.outlet.append(full)
                full = self.outlet
        except StopIteration:
            full = None
        finally:
            seconds = perf_counter() - start
            self.worked(seconds)
        self.came_back(full, seconds)
        return True

    def worked(self, seconds: float) -> None:
        """The run has taken so long."""
        self.wall += seconds
        self._spent += seconds

    def came_back(self, full: Any, seconds: float) -> None:
        """The run has given the turn back.

        Args:
            full: The queue that it waits for; BEAT: the driver is to have a look; None: it is over.
            seconds: How long its turn took.
        """
        if full is None:
            self.run = self.blocked = None
            self._tune(self._spent)
            self._over()
        elif full is BEAT:
            self.blocked = None
            if seconds > SLOW:
                self._slice = max(1, self._slice // 2)
        else:
            self.blocked = full

    def _over(self) -> None:
        self._edge = None
        self.rooms()

    def _tune(self, seconds: float) -> None:
        """A slice has taken so long."""
        if seconds > SLOW:
            self._slice = max(1, self._slice // 2)
        elif seconds < QUICK:
            self._slice = min(_MOST, self._slice * 2)

    # ------------------------------------------------------------------ what runs call

    def flush(self, came: int, failed: int, out: int) -> None:
        """Counters of a run in which the stage is fused."""
        if self.driver.thread != get_ident():
            return  # they were read when the run was taken over
        self.came += came
        if self.fused:
            edge = self.edges_in[0]
            edge.straight += came
            edge.delivered += came - failed
            edge.failed += failed
        self.out += out
        self.driver.flushed += 1
        if self.calls is not None:
            self.tell_calls(_TELL_S)

    def flush_entry(self, came: int, failed: int, out: int) -> None:
        """Counters of a run whose items come from an edge of the stage."""
        if self.driver.thread != get_ident():
            return
        self.came += came
        edge = self._edge
        if edge is not None:
            edge.delivered += came - failed
            edge.failed += failed
        self.out += out
        self.driver.flushed += 1
        if self.calls is not None:
            self.tell_calls(_TELL_S)

    def note(self, seconds: float) -> None:
        """A call was measured."""
        self.sampled += seconds
        self.reservoir.add(seconds)
        if self.calls is not None:
            self.calls.note(self.came, seconds)

    def tell_calls(self, pause: float = 0.0) -> None:
        """Tell of the calls since the last time, if that is so long ago."""
        if self.calls is not None:
            told = self.calls.take(self.came, pause)
            if told is not None:
                self.driver.events.emit("items", self.name, worker=os.getpid(), **told)

    def _watched(self, values: Iterable[Any]) -> Iterator[Any]:
        """Outputs that are collected before any goes on: there may be no end of them."""
        driver = self.driver
        for value in values:
            if driver.killed:
                raise Killed
            yield value

    def special(self, value: Any, item: Any) -> Generator[Any, None, bool]:
        """A value that is not one output: fm.to, a generator, a coroutine. Whether it failed."""
        full: Any
        if self.whole and value.__class__ in UNUSUAL:
            value = self._gathered(value, item)
            if value is GONE:
                full = self.letters()
                if full is not None:
                    yield full
                return True
        if value.__class__ is to:
            full = self.send(value)
            if full is not None:
                yield full
            return False
        failed: list[bool] = []
        values = self._guarded(value, item, failed)
        if self.kind == "consumer":
            for output in values:
                if self.driver.beat:
                    yield BEAT
                if output.__class__ is to:
                    full = self.send(output)
                    if full is not None:
                        yield full
        else:
            yield from self.pour(values)
        if failed:
            full = self.letters()
            if full is not None:
                yield full
        return bool(failed)

    def _gathered(self, value: Any, item: Any) -> Any:
        """All that an item's call emits, from one try that does not fail; GONE if none did."""
        try:
            return self._together(value)
        except BaseException as error:
            if self.driver.passes(error):
                raise
            value = self.fail(item, error)
        return value if value is GONE or value.__class__ in (to, Outs) else Outs((value,))

    def _together(self, value: Any) -> Any:
        """What a call has given, where it must be all there before any of it goes on."""
        return Outs(self._watched(pieces(value))) if value.__class__ in UNUSUAL else value

    def _guarded(self, value: Any, item: Any, failed: list[bool]) -> Iterator[Any]:
        def fail(error: BaseException) -> None:
            failed.append(True)
            self.fail(item, error)

        return self._until(value, fail)

    def _until(self, value: Any, fail: Callable[[BaseException], object]) -> Iterator[Any]:
        """What a value emits, until it raises. Not `yield from`: what is raised in here by who
        takes the outputs (GeneratorExit) is not the user's."""
        try:
            values = iter(emitted_now(value))
        except BaseException as error:
            if self.driver.passes(error):
                raise
            fail(error)
            return
        while True:
            try:
                output = next(values)
            except StopIteration:
                return
            except BaseException as error:
                if self.driver.passes(error):
                    raise
                fail(error)
                return
            yield output

    def pour(self, values: Iterable[Any]) -> Iterator[Any]:
        """Outputs go where outputs go."""
        return self.run_of(False, False)(values)

    def known_way(self, name: str) -> Edge | None:
        """The only queue of a stage that something went to by fm.to; None: `send` finds out."""
        return self._thrown.get(name) if self.loop is None else None  # else it may go round (OP-3)

    def send(self, message: to) -> Any:
        """An item by fm.to; the queue if it is full now."""
        edge = self.known_way(message.name)
        if edge is not None:
            self.out += 1
            edge.append(message.item)
            return edge if len(edge) >= edge.room else None
        try:
            targets = self.driver.resolve(self, message.name)
        except BuildError as error:
            if self.driver.outward(message.name, message.item):
                self.out += 1
                return None
            self.fail_once(message.item, error)
            return self.letters()
        full = None
        for target in targets:
            full = self.throw(target, message.item) or full
            self.out += 1
        if len(targets) == 1:
            self._thrown[message.name] = self.edges_out[targets[0]]
        return full

    def letters(self) -> Edge | None:
        """The queue of the stage's dead letters, if it is full now."""
        policy = final(self.stage.on_error)
        if isinstance(policy, DeadLetter) and self.stage.letters_stay:
            for target in self.driver.resolve(self, policy.stage):
                edge = self.edges_out.get(target)
                if edge is not None and len(edge) >= edge.room:
                    return edge
        return None

    def route(self, value: Any, item: Any) -> Any:
        """An output for one of several targets, or a copy for each; a queue if one is full now."""
        if self.stage.routing != "broadcast":
            choice = self.choice
            edge = self.whose()
            edge.append(value)
            if len(edge) < edge.room:
                return None
            return edge if choice is None else choice if len(choice) else None
        edges = [self.edges_out[target] for target in self.targets]
        try:
            values = [copy_module.deepcopy(value) for _ in edges[1:]]
        except BaseException as error:
            if self.driver.passes(error):
                raise
            self.fail_once(item, error)
            return self.letters()
        values.append(value)
        full: Any = None
        for edge, one in zip(edges, values, strict=True):
            edge.append(one)
            if len(edge) >= edge.room:
                full = edge
        return full

    def whose(self) -> Edge:
        """The queue that the next output goes to, where it goes to one of several targets."""
        if self.choice is not None:
            return self.choice.pick(self.driver.turns)
        assert self.rotate is not None
        return self.rotate()

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
            except BaseException as error:
                if self.driver.passes(error):
                    raise
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
        self.driver.events.batch(self.name, len(items))
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
            except BaseException as error:
                if self.driver.passes(error):
                    raise
                value = self.fail(items, error)
                if value is GONE:
                    full = self.letters()
                    if full is not None:
                        yield full
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
            self.tell_retry(item, error, attempts, pause)
            if not self.driver.pause(pause):
                self.give_up(item, error, attempts)
                return GONE
            attempts += 1
            try:
                value = self.fn(item)
                return self._together(value) if self.whole else value
            except BaseException as again:
                if self.driver.passes(again):
                    raise
                error = again
        self.record(item, error, attempts, policy.then)
        return GONE

    def tell_retry(self, item: Any, error: BaseException, attempts: int, pause: float) -> None:
        """Another try will be made, after so many seconds."""
        events = self.driver.events
        if not (events.heard or self.driver.inside):
            return
        tell_death(events, self.name, error)
        told = {"error": short(error), "attempts": attempts, "pause": pause}
        events.emit("retry", self.name, item=short(item), attempt=attempts, **told)

    def give_up(self, item: Any, error: BaseException, attempts: int) -> None:
        """There will be no other try, because the run is ended: that is not a failure of it."""
        policy = final(self.stage.on_error)
        self.record(item, error, attempts, "skip" if policy == "raise" else policy)

    def fail_once(self, item: Any, error: BaseException) -> None:
        """An item failed in a way that another try does not heal."""
        policy = self.stage.on_error
        self.record(item, error, 1, final(policy))

    def fail_at_end(self, error: BaseException) -> None:
        """on_end or teardown failed: there is no item, and nothing to be dropped for it."""
        try:
            self.fail_once(None, error)
        except Abort:
            self.driver.fail_late(error)

    def record(
        self,
        item: Any,
        error: BaseException,
        attempts: int,
        policy: Any,
        again: Callable[[Any], list[Any]] | None = None,
        name: str | None = None,
    ) -> None:
        """An item failed for good.

        Args:
            item: The item.
            error: What it failed with.
            attempts: How many tries there were.
            policy: "raise", "skip" or a DeadLetter.
            again: Does with the item what failed; None: as the stage's function does.
            name: The stage's, if it is one inside of this one.

        Raises:
            Abort: The policy is "raise".
        """
        self.failures += 1
        driver = self.driver
        name = self.name if name is None else name
        if driver.events.heard:
            tell_failure(driver.events, name, item, error, attempts, policy)
        if driver.failures.full and policy == "skip":
            driver.failures.count(name, error)
            return
        if again is None and self.stage.fn is not None:
            again = functools.partial(run_inline, self.stage)
        failure = Failure(driver.prefix + name, item, error, attempts, _again=again)
        driver.failures.add(failure, ends=policy == "raise")
        if policy == "raise":
            raise Abort(failure)
        if isinstance(policy, DeadLetter):
            if self.stage.letters_stay:
                for target in driver.resolve(self, policy.stage):
                    self.throw(target, failure)
            else:
                driver.outward(policy.stage, failure)

    # ------------------------------------------------------------------ the end

    def stop(self) -> None:
        """Take nothing new up; what has come is finished."""

    def finish(self) -> None:
        """Nothing will come any more: leftovers, on_end. When its run is over, it has ended."""
        self.state = Phase.ENDING
        self.begin(self._last())

    def _last(self) -> Iterator[Any]:
        held = [self._released(key) for key in list(self.held)]
        if held:
            yield from self._emit_batches(held)
        if not self._ready and not self._tried:  # no item has come
            try:
                self._begin()
            except BaseException as error:
                if self.driver.passes(error):
                    raise
                self.fail_at_end(error)
        on_end = self.stage.parts.get("on_end")
        if on_end is None or not self._ready:
            return
        try:
            value = on_end()
        except BaseException as error:
            if self.driver.passes(error):
                raise
            self.fail_at_end(error)
            return
        yield from self.special(self._until(value, self.fail_at_end), None)

    def ended(self) -> bool:
        """Whether `finish` has come to its end."""
        return self.run is None and not any(self.edges_in)

    def conclude(self) -> None:
        """After the last output."""
        self.state = Phase.ENDED
        try:
            self.tear_down()
        finally:
            self.after_hooks()

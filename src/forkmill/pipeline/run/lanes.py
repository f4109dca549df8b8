"""A stage that runs in a context, behind its Lane.

    edges ──put_many──▶ Lane: pipes, chunks, workers ──take_many──▶ pieces ──▶ edges

Guarantees:
    * queue_size bounds what waits before the stage wherever it waits: in the edges, in the lane, in
      a reorder buffer. So `pending` counts from put until the outputs are handed on (OP-2).
    * Where order, retries or several edges do not ask for it, nothing is remembered of an item:
      chunks go through as they are.
    * Where no order is promised there may be none: in tests, `shuffle` sees to it.

Threads: everything belongs to the thread of the driver; the lane rings the driver's bell.
"""

from __future__ import annotations

import contextlib
import enum
import heapq
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from ... import contexts
from ..._said import within
from ...contexts.lanes.measured import Report
from ...runs.handle import PATIENCE
from ...runs.policies import Retry, final
from ..declare import to
from ..graph import stage_hooks
from .flow import NEVER
from .forms import width_of
from .operators import Operator, Phase
from .shuffle import mixer
from .work import (
    initialize,
    make_work,
    run_hooks,
    uncarried,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..graph import Stage
    from .flow import Edge
    from .state import Run

__all__ = ["LaneOperator"]


_SHARE = 4  # of a queue: so large a part of it is given out at a time
_HANDFUL = 16  # outputs of which some go by fm.to, that are handed on together


class _Record:
    """What is to be remembered of an item in a lane."""

    __slots__ = ("attempts", "call", "edge", "failure", "item", "outputs", "seq")

    def __init__(self, item: Any, edge: Edge | None, seq: int) -> None:
        self.item = item
        self.edge = edge
        self.seq = seq
        self.attempts = 1
        self.failure: BaseException | None = None  # of the last try, while it waits for the next
        self.outputs: list[Any] = []
        self.call: Any = None  # of the stream that is its own; see contexts.Taken


class LaneEnd(enum.Enum):
    """How far the end of a lane is."""

    NOT_YET = "not yet"
    LEFTOVERS = "leftovers"  # batches that were not full are on their way
    BEGUN = "begun"  # the lane was told


class LaneOperator(Operator):
    """A stage that runs in a context, behind its Lane."""

    def __init__(self, driver: Run[Operator], stage: Stage) -> None:
        super().__init__(driver, stage)
        self.lane: Any = None
        self.width = width_of(stage)
        self.pending = 0  # OP-2
        self.producing = stage.kind == "producer"
        self.live_source = self.producing
        self.share_of_one = 1 / self.width
        self._most = stage.queue_size + self.width
        self._ready_pieces: deque[Any] = deque()
        self._retries: list[tuple[float, int, _Record]] = []
        self._records: dict[int, deque[_Record]] = {}
        self._whole = isinstance(stage.on_error, Retry) and not self.producing
        self._remember = stage.ordered
        self._seq = self._next = 0
        self._waiting: dict[int, _Record] = {}  # ordered: done before their turn
        self._leave_at = NEVER  # when a source that blocks is left behind
        self._end = LaneEnd.NOT_YET
        self._forks = stage_hooks(stage, "before_fork")
        self._mixer = None if stage.ordered or stage.inline or self.producing else mixer()
        self.call_hooks = bool(self._forks) and stage.spec.type == "cow_fork"

    def under_way(self) -> int:
        return self.pending

    def wire(self) -> None:
        super().wire()
        self._remember = self._remember or len(self.edges_in) > 1
        self.rooms()

    def rooms(self) -> None:
        """queue_size counts what waits here and in the lane."""
        free = self._free()
        if len(self.edges_in) > 1:
            self._remember = True
            self.share(free - sum(map(len, self.edges_in)))
        elif self.edges_in:
            edge = self.edges_in[0]
            edge.room = NEVER if edge.closing else min(max(0, free), self.stage.queue_size)

    def _free(self) -> int:
        """How many more items there is place for. A few are none, while the lane has enough to do:
        they would be a chunk of their own, and a round for it."""
        free = self._most - self.pending - len(self._waiting)
        if 0 < free < self._most // _SHARE and self.lane is not None:
            return 0 if self.lane.pending > 2 * self.width else free
        return free

    # Opening.

    def open(self) -> None:
        """Make the lane, with the hooks of forks where there are some."""
        self.state = Phase.LIVE
        stage, spec = self.stage, self.stage.spec
        hooks = stage_hooks(stage, "after_fork")
        isolated = spec.type in ("ipc_fork", "cow_fork")
        shared = type(spec) is not contexts.Spec  # a named pool: its workers are there already
        born = spec.type == "ipc_fork" and not shared
        if born and (hooks or self._forks):
            for _ in range(self.width):
                run_hooks(self._forks, self.name)
            spec = _with_hooks(spec, hooks, self.name)
        work = self.make_work(hooks if isolated and not born else [])
        run, name, *_ = self.driver.origin(self.name) or (None, None)
        with within(run, name):  # whose the workers are
            self.lane = spec.lane(work, self.driver.bell.ring)
        self.started = self.lane.start_method, self.lane.start_reason
        if self.lane.in_order and len(self.edges_in) < 2:
            self._remember = False
        if self.producing:
            self.pending = 1
            if self.call_hooks:
                run_hooks(self._forks, self.name)
            self.lane.put_many([None])

    def make_work(self, after_fork: list[Callable[..., Any]]) -> contexts.Work:
        """What the lane does; the hooks are called where a replica of the state is set up."""
        return make_work(
            self.stage, after_fork, self.driver.events.detail, self.driver.origin(self.name)
        )

    def _reopen(self) -> None:
        self._end = LaneEnd.NOT_YET
        self.before_hooks()
        self.open()

    # Turns.

    def in_flight(self) -> bool:
        return bool(self.pending or self._ready_pieces or self._waiting or any(self.edges_in))

    def due(self) -> float:
        again = self._retries[0][0] if self._retries else NEVER
        if self._mixer is not None and not self._ready_pieces:
            again = min(again, self._mixer.due)
        return min(again, self._leave_at, super().due())

    def load(self) -> float:
        return (sum(map(len, self.edges_in)) + self.pending) / self.width

    def turn(self) -> bool:
        progress = False
        if self.lane is not None:
            progress = self._take()
        if self._leave_at <= monotonic():
            self._leave_source()
            progress = True
        if any(self.edges_in):
            if self.lane is None or self.state is Phase.ENDED:
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

    def hand_in(self) -> bool:
        """What sources have just brought goes in: the lane works while sinks have their turn."""
        return self.lane is not None and self.state is not Phase.ENDED and self._feed()

    @property
    def works_outside(self) -> bool:
        """Whether the lane will ring: it works, or comes to its end."""
        if self.lane is None or self.state is Phase.ENDED:
            return False
        if self._ready_pieces:  # a stream waits for us; anything else is done
            return False
        return bool(self.lane.pending) or (self._end is LaneEnd.BEGUN and not self.lane.ended)

    def _feed(self) -> bool:
        free = self._free()
        if self._end is not LaneEnd.NOT_YET or free <= 0:
            return False
        if self.stage.key is not None and not self._has_room():
            return False  # a key that fails is a dead letter at once
        taken = False
        for edge in self.edges_in:
            n = min(free, len(edge))
            if not n:
                continue
            items = edge.take(n)
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
        pairs = list(pairs)
        # All of them first: the user's code below may raise, and each has to be accounted for.
        self.pending += len(pairs)
        if self._remember:
            for item, edge in pairs:
                record = _Record(item, edge, self._seq)
                self._seq += 1
                self._records.setdefault(id(item), deque()).append(record)
        for item, _ in pairs:
            if self.call_hooks:
                run_hooks(self._forks, self.name)
            key = self.stage.key if self.kind != "batch" else None
            if key is None:
                plain.append(item)
                continue
            try:
                keyed.setdefault(hash(key(item)) % max(1, self.lane.replicas), []).append(item)
            except BaseException as error:
                if self.driver.passes(error):
                    raise
                self._finished(self._recall(item), item, error, final=True)
        if plain:
            self.lane.put_many(plain)
        for replica, items in keyed.items():
            self.lane.put_many(items, replica)

    def _recall(self, item: Any, call: Any = None) -> _Record | None:
        """The record of an item that came back, if it has one; it is forgotten."""
        record = self._record_of(item, call)
        if record is not None:
            record.call = None
            records = self._records[id(item)]
            records.remove(record)
            if not records:
                del self._records[id(item)]
        return record

    def _record_of(self, item: Any, call: Any) -> _Record | None:
        """The record of an item, if it has one. Where one object was put several times, each stream
        keeps to one record; which one that is, and whose a lone piece is, makes no difference."""
        records = self._records.get(id(item), ())
        if call is not None:
            for record in records:
                if record.call is call:
                    return record
        for record in records:
            if record.call is None:
                record.call = call
                return record
        return None

    def _try_again(self) -> bool:
        progress = False
        while self._retries and self._retries[0][0] <= monotonic():
            record = heapq.heappop(self._retries)[2]
            record.attempts += 1
            record.failure = None
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
            pieces.extend(self._come_out())
        progress = False
        while pieces and self._has_room():
            piece = self._fitting(pieces)
            progress = True
            if piece.__class__ is contexts.Batch:
                self._batch(piece)
            else:
                self._taken(piece)
        if progress:
            self.rooms()
        return progress

    def _fitting(self, pieces: deque[Any]) -> Any:
        """The next piece; of one that has too many outputs a part, the rest stays."""
        piece = pieces.popleft()
        batch = piece.__class__ is contexts.Batch
        size = sum(map(len, piece.outputs)) if batch and piece.many else len(piece.outputs)
        if size < 2:
            return piece
        queues = self.driver.outlets_of(self)
        room = min((queue.room - len(queue) for queue in queues), default=NEVER)
        if not (batch and piece.plain) and to in map(type, piece.outputs):
            room = min(room, self._room_of_thrown(piece.outputs))
        if size <= room:
            return piece
        pieces.extendleft(reversed(self._parts(piece, max(1, int(room)))))
        return pieces.popleft()

    def _room_of_thrown(self, outputs: list[Any]) -> float:
        """How many outputs, some of which go by fm.to, are handed on together."""
        names = {output.name for output in outputs if type(output) is to}
        edges = [self.known_way(name) for name in names]
        known = [edge for edge in edges if edge is not None]
        if len(known) < len(edges):
            return _HANDFUL  # they go where nobody knows of yet
        return max(1, min(edge.room - len(edge) for edge in known))

    def _parts(self, piece: Any, room: int) -> list[Any]:
        """A piece in several, with so many outputs each at most."""
        if piece.__class__ is not contexts.Batch:
            item, outputs, failure, done, call = piece
            if call is None and len(outputs) > room:
                call = object()
            cuts = range(room, len(outputs), room)
            spans = [slice(at - room, at) for at in cuts]
            parts = [contexts.Taken(item, outputs[span], None, False, call) for span in spans]
            rest = outputs[len(parts) * room :]
            return [*parts, contexts.Taken(item, rest, failure, done, call)]
        told = contexts.Batch([], [], reports=piece.reports)
        if piece.many:
            items = [part for one in piece.split() for part in self._parts(one, room)]
            return [told, *items]
        cuts = range(0, len(piece.items), room)
        spans = [slice(at, at + room) for at in cuts]
        return [
            told,
            *(
                contexts.Batch(piece.items[span], piece.outputs[span], False, piece.plain)
                for span in spans
            ),
        ]

    def _come_out(self) -> list[Any]:
        """What has come out of the lane, in the order in which it goes on."""
        pieces: list[Any] = self.lane.take_many(0)
        if self._mixer is None:
            return pieces
        for piece in pieces:
            if piece.__class__ is contexts.Batch:
                self._measured(piece.reports)  # which it loses when it is split
        return self._mixer.mix(pieces, bool(self.lane.pending))

    def _batch(self, piece: Any) -> None:
        """Items that came out together: the fast way, if nothing has to be known of each."""
        self._measured(piece.reports)
        if self._remember or self._records or self.producing:
            for one in piece.split():
                self._taken(one)
            return
        n = len(piece.items)
        outputs = piece.outputs
        if piece.many:
            outputs = [output for several in outputs for output in several]
        self.deliver(outputs, piece.plain)
        self.pending -= n
        if self.kind != "batch" and self.edges_in:
            self.edges_in[0].delivered += n

    def _measured(self, reports: Iterable[Report]) -> None:
        for report in reports:
            self.count(report)

    def count(self, report: Report) -> None:
        """The time that calls took."""
        if report.seconds:
            self.sampled += report.seconds
            self.reservoir.add(report.call)
        if report.times is not None:
            pid, first, count, packed = report.times
            told = {"first": first, "count": count, "packed": packed}
            self.driver.events.emit("items", self.name, worker=pid, **told)

    def _taken(self, taken: Any) -> None:
        item, outputs, failure, done, call = taken
        if item is contexts.END:
            self.deliver(outputs)
            if failure is not None:
                self.fail_at_end(failure)
            return
        if not self._remember:
            self.deliver(outputs)
            if done:
                self._finished(self._recall(item, call), item, failure)
            return
        # None: put before there was a second edge.
        record = (self._recall if done else self._record_of)(item, call)
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
        cut = False  # there would be another try, were the run not being ended
        if failure is not None:
            failure = uncarried(failure)
        final = final or self.producing  # it fails once: what it gave has gone on
        if failure is not None and not final and isinstance(policy, Retry):
            if record is None:  # there was nothing to be known of it till now
                record = _Record(item, edge, self._seq)
                self._seq += 1
            again = attempts < policy.attempts and isinstance(failure, policy.on)
            if again and not self.driver.stopping:
                self._schedule(record, failure, policy)
                return
            cut = again
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
                self.driver.producer_failed = True
                self.record(None, failure, 1, "skip")
            else:
                (self.give_up if cut else self._record)(item, failure, attempts)
        if record is not None and self.stage.ordered:
            self._waiting[record.seq] = record
            while (ready := self._waiting.pop(self._next, None)) is not None:
                self._next += 1
                self.deliver(ready.outputs)

    def _record(self, item: Any, failure: BaseException, attempts: int) -> None:
        self.record(item, failure, attempts, final(self.stage.on_error))

    def _schedule(self, record: _Record, failure: BaseException, policy: Retry) -> None:
        pause = policy.pause(record.attempts)
        self.tell_retry(record.item, failure, record.attempts, pause)
        record.failure = failure
        heapq.heappush(self._retries, (monotonic() + pause, record.seq, record))

    def deliver(self, outputs: list[Any], plain: bool = False) -> None:
        """Outputs go on: to queues, to the run's outputs. `plain`: none of them is for us."""
        if not outputs:
            return
        if not plain and not _MARKED.isdisjoint(map(type, outputs)):
            outputs = self._plain(outputs)
        if self.kind == "consumer" or not outputs:
            return
        self.out += len(outputs)
        if not self.targets:
            self.outlet.extend(outputs)
        elif self.routed:
            self.driver.turns += 1
            for output in outputs:
                self.route(output, None)
        else:
            for target in self.targets:
                self.edges_out[target].extend(outputs)

    def _plain(self, outputs: list[Any]) -> list[Any]:
        """Without what is for us: times, and items by fm.to."""
        kinds = list(map(type, outputs))
        plain = outputs[:]
        gone: list[int] = []
        for i in _places(kinds, Report):
            report = outputs[i]
            self.count(report)
            plain[i] = report.value
            kinds[i] = type(report.value)
            if report.value is Report:
                gone.append(i)
        for i in _places(kinds, to):
            message = plain[i]
            edge = self.known_way(message.name)
            if edge is None:
                self.send(message)
            else:
                self.out += 1
                edge.append(message.item)
            gone.append(i)
        if len(gone) == len(plain):
            return []
        if gone:
            out = set(gone)
            plain = [output for i, output in enumerate(plain) if i not in out]
        return plain

    # The end.

    def finish(self) -> None:
        self.state = Phase.ENDING
        held = [(self._released(key), None) for key in list(self.held)]
        if held and self.lane is not None:
            self._end = LaneEnd.LEFTOVERS
            self._put(held)
        else:
            self._end_lane()

    def _end_lane(self) -> None:
        self._end = LaneEnd.BEGUN
        if self.lane is not None:
            self.lane.end()

    def ended(self) -> bool:
        if self._end is LaneEnd.LEFTOVERS and not self.pending:
            self._end_lane()
        if self._end is not LaneEnd.BEGUN or self.pending or self._ready_pieces:
            return False
        return self.lane is None or bool(self.lane.ended)

    def conclude(self) -> None:
        lane, self.lane = self.lane, None
        self.state = Phase.ENDED
        try:
            if lane is not None:
                lane.close()
        finally:
            self.after_hooks()

    def stop(self) -> None:
        """A producer in a context stops with it; what waits for another try gets none."""
        while self._retries:
            record = heapq.heappop(self._retries)[2]
            self._finished(record, record.item, record.failure)
        if self.producing and self.lane is not None and self.pending:
            self.lane.halt()  # what it has given is worked on
            self._leave_at = monotonic() + PATIENCE
        elif self.producing:
            self.live_source = False

    def _leave_source(self) -> None:
        """A source did not come back from the user's code in time."""
        self._leave_at = NEVER
        if not self.pending:
            return
        self.live_source = False
        self.pending = 0
        self._end = LaneEnd.BEGUN
        self._shut(self.lane)

    def halt(self) -> None:
        """The run is being ended: so that all lanes end at a time, and nobody waits for each."""
        if self.lane is not None:
            self.lane.stop()

    @property
    def busy(self) -> bool:
        """After `halt`: whether calls still run that cannot be ended."""
        return self.lane is not None and bool(self.lane.busy)

    def close(self) -> None:
        lane, self.lane = self.lane, None
        ends = [p for p in self._ready_pieces if p[0] is contexts.END and p[2] is not None]
        try:
            if lane is not None:
                self._shut(lane)
            for _, _, failure, _ in ends:  # of replicas that are through: it came with the item's
                self.fail_at_end(failure)
        finally:
            self._drop_all()

    def _shut(self, lane: Any) -> None:
        """Close a lane before its end; what its replicas' teardown raised is the stage's own
        failure."""
        driver, failure, left = self.driver, None, 0
        try:
            left = lane.close(0)
        except BaseException as error:
            if driver.passes(error):
                raise
            failure = error
        if driver.killed:
            driver.gate()
        driver.leave(self.name, left)
        if failure is not None:
            self.fail_at_end(failure)

    def fail_once(self, item: Any, error: BaseException) -> None:
        if self.producing:
            self.driver.producer_failed = True
            self.record(item, error, 1, "skip")
        else:
            super().fail_once(item, error)

    def _drop_all(self) -> None:
        """What was under way or waits has come to nothing."""
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
        if self._mixer is not None:
            self._mixer.clear()
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

"""The driver: carries a graph out, once. One thread has everything: that of who runs it.

    round:  every operator has a turn, sinks first, producers last
            what can end ends
            nothing happened: sleep until the bell rings or a timer is due

Guarantees:
    * End of stream is by quiescence. A stage ends when nothing is in flight to it, everything that
      static links lead from to it has ended, and everything that could still send to it by fm.to
      has ended or, where it is part of a loop, is quiet. What comes later all the same opens
      the stage again.
    * Whatever happens, `finish` releases every lane, thread and generator, runs the hooks that
      are due, and the edges add up.

Invariants:
    * DRIVE-1  Only the bell is touched by other threads. It is rung after what it tells of.
    * DRIVE-2  Before it sleeps, the driver has looked at everything since it last cleared the bell
      (where nobody asks for an output: at whether somebody does).
    * DRIVE-3  On every edge emitted = delivered + failed + dropped, when the run is over.
    * DRIVE-4  That nothing is left to wait for is believed only when a look at everything, begun
      after it was first seen, has found nothing.

Why nothing is slept through, and no run is called stuck that is not. What goes on elsewhere (a
lane, a feeder) is its own witness: it 1. makes its change (a piece in its out-list, its end), and
2. rings. The driver a. clears the bell; b. looks at everything: turns, ends; c. asks each whether
it goes on; d. sleeps if one does, and not at all if the bell has rung since a.
    * A change before b is seen in b. One after b rings after b: d does not sleep, or is woken.
    * Asked in c, a lane may say "no" because it came to its end after b: it has made its change
      (1) and may not have rung yet (2). So "no" of all of them proves only that every change is
      made by now, and the driver goes back to a, once (DRIVE-4). If b then finds nothing and c is
      "no" again, nothing can come any more: nobody is left who could make a change.

Threads: `run`, `serve`, `next_outputs`, `feed` in one thread; `stop`, `kill`, `snapshot` from any.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any

from ... import events
from ..._place import OnePlace
from ..._process import interrupted
from ...errors import PoolError
from ...runs.failure import KEEP
from ...runs.handle import GRACE, Left
from ...runs.policies import DeadLetter, final
from ...runs.result import RunResult
from ..declare import hooks_of
from .bursts import Bursts
from .chains import ChainHead, ChainMember, joins_chain
from .ending import Ending
from .flow import NEVER, Abort, Edge, Killed, Pace
from .fuse import disarm, fuse
from .interrupts import Interrupts
from .lanes import LaneOperator
from .nested import NestedOperator
from .operators import Operator, Phase
from .sign import LOOK_S
from .sources import Source
from .told import plan_of, total_of
from .work import run_hooks

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Iterator

    from ...runs.failure import Failure
    from ..graph import StageGraph

__all__ = ["Driver"]


class Driver(Ending):
    """One run of a graph.

    Args:
        graph: What to run.
        sinks: Who gets the events, from its opening on.
        stream: Outputs are taken one by one: no more is computed than the queues hold.
        feed: Items come by `feed`; the graph is nested in a context.
        keep_failures: How many failures are kept whole; the rest is counted. None: all.
        prefix: What the names of stages begin with, in their failures.
    """

    def __init__(
        self,
        graph: StageGraph,
        sinks: Iterable[Any] = (),
        *,
        stream: bool = False,
        feed: bool = False,
        keep_failures: int | None = KEEP,
        prefix: str = "",
    ) -> None:
        super().__init__(
            graph, stream=stream, inside=feed, keep_failures=keep_failures, prefix=prefix
        )
        self._sinks = events.check_sinks(sinks)
        self.interrupts = Interrupts(self)
        self._bursts: Bursts | None = None
        self._only = 0  # the thread that it was reserved for
        self._sources_stopped = False
        self._quiet = False  # DRIVE-4: nobody goes on elsewhere, and nothing has happened since
        self._members = {stage for stage in graph.stages if joins_chain(stage, graph)}
        self.order = [self._operator(stage) for stage in graph.stages]
        self.operators = {operator.stage: operator for operator in self.order}
        self._rounds: set[Operator] = set()  # whose dead letters go back
        self._wire()
        sources = [operator for operator in self.order if operator.kind == "producer"]
        self._turns = [c for c in reversed(self.order) if c.kind != "producer"] + sources
        self._behind_sources = [
            c for c in self.order if isinstance(c, LaneOperator) and set(sources) & set(c.sources)
        ]
        self._dynamic = [c for c in self.order if c.stage.dynamic or c in self._rounds]
        self._feeds: list[Edge] = []

    def _operator(self, stage: Any) -> Operator:
        if stage in self._members:
            return ChainMember(self, stage)
        if not self._members.isdisjoint(stage.targets):
            return ChainHead(self, stage)
        if stage.nested is not None:
            return NestedOperator(self, stage)
        if not stage.inline:
            return LaneOperator(self, stage)
        return Source(self, stage) if stage.kind == "producer" else Operator(self, stage)

    def _wire(self) -> None:
        for operator in self.order:
            for target in operator.stage.targets:
                operator.connect(self.operators[target])
        for operator in self.order:
            operator.fused = type(operator) is Operator and operator.can_fuse()
            operator.before = {b for s in operator.sources for b in (s, *s.before)}
        self._post()
        for operator in self.order:
            operator.wire()
        self.linked()
        jumps = any(operator.jumps for operator in self.order)
        turns = [operator for operator in self.order if not operator.fused]
        if jumps or len(turns) > 1:
            self.pace = Pace(self.beat)
        elif self.outputs.bounded and OnePlace is not None:
            self._bursts = Bursts(self, turns[0], self.interrupts)

    def _post(self) -> None:
        """Dead letters keep their stage from its end as links do. Where they would go round, as
        what may go anywhere does."""
        for operator in self.order:
            policy = final(operator.stage.on_error)
            if not isinstance(policy, DeadLetter) or not operator.stage.letters_stay:
                continue
            for target in self.resolve(operator, policy.stage):
                if target in operator.before:
                    self._rounds.add(operator)
                    continue
                for after in self.order:
                    if after is target or target in after.before:
                        after.before |= {operator, *operator.before}

    def linked(self) -> None:
        """There are new edges: which stages are in a loop, and what closes it (OP-3)."""
        reached = {operator: _reached(operator) for operator in self.order}
        for operator in self.order:
            ring = (c for c in self.order if c in reached[operator] and operator in reached[c])
            operator.loop = next(ring, None)  # the first of it stands for all
        for operator in self.order:
            for target, edge in operator.edges_out.items():
                back = target.index <= operator.index
                edge.closing = back and operator.loop is not None and operator.loop is target.loop
        self._outlets.clear()
        for operator in self.order:
            operator.rooms()

    # ------------------------------------------------------------------ any thread

    @property
    def over(self) -> bool:
        """Whether everything is released, and the result is made."""
        return self._over

    def stop(self) -> None:
        """Sources stop, loops and retries too; the rest is finished."""
        self.stopping = True
        for operator in self.order:
            if isinstance(operator, NestedOperator):
                operator.tell_stop()
        self._cut.set()
        self.events.hurry()
        self._call()

    def kill(self) -> None:
        """Everything stops."""
        if not self.killed:
            self._kill_by = monotonic() + GRACE
        self.killed = self.stopping = True
        for operator in self.order:
            if isinstance(operator, NestedOperator) and operator.here is not None:
                operator.here.kill()
        self._cut.set()
        self.events.hurry()
        self._call()

    def _call(self) -> None:
        """Have the driver look up, from its sleep or from a run."""
        self.beat.append(None)
        self.bell.ring()

    def attach(self, sink: Any) -> None:
        """Somebody listens from now on."""
        self.events.attach(sink)

    # ------------------------------------------------------------------ what operators ask for

    def compiled(
        self, operator: Operator, entry: bool, timed: bool
    ) -> Callable[[Iterable[Any]], Iterator[Any]]:
        return fuse(operator, entry, timed)

    def disarm(self, run: Any) -> None:
        disarm(run)

    def carry_on(self) -> RunResult:
        """Run to the end, from where another thread was left.

        Raises:
            BaseException: See `finish`.
        """
        self.thread = threading.get_ident()
        self._drive(self.step)
        return self.finish()

    # ------------------------------------------------------------------ opening

    def open(self) -> None:
        """Hooks, then contexts: forks first, threads after; then inline stages.

        Raises:
            BaseException: What a hook or a setup raised; everything is released.
        """
        self._began = self._looked = self._measure_at = monotonic()
        self._opened = True
        for sink in self._sinks:
            self.events.attach(sink)
        self.events.calling = self._calls
        self.events.known_by(self._about)
        self.events.driven = self.events.driven or self
        self.every = self.events.detail == "every"
        self.detailed = self.events.detail != "runs"
        if self.events.heard:
            title, facts = self._about()
            self.events.emit("run_started", title, **facts)
        if not self.inside:
            run_hooks(hooks_of(self.graph.pipeline, "before_run"))
        for operator in self.order:
            operator.before_hooks()
        lanes = [operator for operator in self.order if isinstance(operator, LaneOperator)]
        forks = [c for c in lanes if c.stage.spec.type in ("ipc_fork", "cow_fork")]
        for operator in (*forks, *(c for c in lanes if c not in forks)):
            operator.open()
        for operator in self.order:
            if not isinstance(operator, LaneOperator):
                operator.open()
        clocked = [operator for operator in self.order if _has_clock(operator.stage)]
        for operator in self.order:
            if isinstance(operator, Source) and any(operator in c.before for c in clocked):
                operator.thread()
        if self.inside:
            for stage in self.graph.entries:
                entry = self.operators[stage]
                edge = Edge("", entry, NEVER)  # type: ignore[arg-type]
                entry.edges_in.append(edge)
                entry.live_source = True
                self._feeds.append(edge)
        self.events.begin(self._progress)  # after the forks

    def _about(self) -> tuple[str, dict[str, Any]]:
        """What is told of it when it begins."""
        title = self.graph.pipeline._title()
        facts = {"total": total_of(self.graph), "plan": plan_of(self.graph)}
        return title, {"pipeline": title, **facts}

    # ------------------------------------------------------------------ running

    def run(self) -> RunResult:
        """Run to the end.

        Raises:
            BaseException: See `finish`.
        """
        try:
            with self.interrupts:
                self._enter()
                self._drive(self.step)
                return self.finish()
        except BaseException as error:
            self.give_up(error)
            raise

    def next_outputs(self) -> Iterator[Any] | None:
        """Some outputs, each made when it is asked for; none where there is more to be done first.
        None when the run is over.

        Raises:
            Left: Somebody else has reserved it.
        """
        self._enter()
        if not self.outputs:
            bursts = self._bursts
            if bursts is not None and bursts.ready and bursts.size() > 1:
                return bursts.outputs(self._end_by)
            with self.interrupts:
                self._drive(lambda: not self.outputs and self.step())
        return iter((self.outputs.popleft(),)) if self.outputs else None

    def reserve(self) -> None:
        with self._lead:
            self._only = threading.get_ident()

    def _enter(self) -> None:
        """The caller works on it now."""
        with self._lead:
            me = threading.get_ident()
            if self._only and self._only != me:
                raise Left
            self.thread = me

    def serve(self, offer: Callable[[deque[Any]], bool]) -> RunResult:
        """Run to the end, for somebody elsewhere who takes the outputs one by one.

        Args:
            offer: Takes the outputs that are there; whether more is asked for. Who asks later
                rings the bell.

        Raises:
            BaseException: See `finish`.
        """

        def more() -> bool:
            while not offer(self.outputs):
                self.bell.wait(None)
                self._attend()
            return self.step()

        self._enter()
        self._drive(more)
        offer(self.outputs)
        return self.finish()

    def _drive(self, more: Any) -> None:
        """Work until `more` says no. What ends the run is kept for `finish`."""
        if self._error is not None:
            return
        try:
            with nullcontext() if self.inside else events.PartOf(self.events):
                self._work(more)
        except BaseException as error:
            self._end_by(error)

    def _end_by(self, error: BaseException) -> None:
        """What has been raised ends the run."""
        if isinstance(error, Left):
            raise error
        if not isinstance(error, Killed):
            self._torn = self._torn or interrupted(error)
            self._error = error
            self.killed = True

    def _work(self, more: Any) -> None:
        if not self._opened:
            self.open()
        while more():
            pass

    def step(self) -> bool:
        """One round. False: the run is over."""
        self._attend()
        progress = self._round()
        if self._end_some() or progress:
            self._quiet = False
            return True
        if all(operator.state is Phase.ENDED for operator in self.order):
            return False
        return self._sleep()

    def _attend(self) -> None:
        """What was asked of the driver. It is called anew if more is asked meanwhile."""
        if self.sign is not None and self.sign[0] and not self.stopping:
            self.stop()
        self.bell.clear()
        self.beat.clear()
        if self.stopping:
            self.gate()
        if self.killed:
            raise Killed
        if self.stopping and not self._sources_stopped:
            self._stop_sources()

    def _round(self) -> bool:
        progress = False
        for operator in self._turns:
            if operator.turn():
                progress = True
        for lane in self._behind_sources:
            if lane.hand_in():
                progress = True
        now = monotonic()
        for operator in self.order:
            for edge in operator.edges_in:
                if edge:
                    operator.waited += (now - self._looked) * len(edge)
        self._looked = now
        return progress

    def _stop_sources(self) -> None:
        self._sources_stopped = True
        for operator in self.order:
            operator.stop()

    def _sleep(self) -> bool:
        """Nothing can be done now: wait."""
        due = self.due()
        if due == NEVER and not any(self._outside(operator) for operator in self.order):
            if not self._quiet:
                self._quiet = True  # DRIVE-4
                return True
            raise PoolError(f"the run is stuck, a bug of ours: {self._state()}")
        self._quiet = False
        self._rest(due)
        return True

    def _rest(self, due: float) -> None:
        """Wait for the bell, or until then."""
        left = None if due == NEVER else max(0.0, due - monotonic())
        if self.sign is not None and not self.stopping:
            left = LOOK_S if left is None else min(left, LOOK_S)
        self.bell.wait(left)

    def due(self) -> float:
        """When something is to be done although nothing comes."""
        return min((operator.due() for operator in self.order), default=NEVER)

    @staticmethod
    def _outside(operator: Operator) -> bool:
        """Whether something goes on elsewhere that will ring the bell."""
        if isinstance(operator, LaneOperator):
            return operator.works_outside
        feeder = getattr(operator, "feeder", None)
        # With items of its own there it waits for us, not we for it.
        return feeder is not None and not (feeder.over or feeder.items) and operator.live_source

    def _state(self) -> str:
        return ", ".join(
            f"{c.name}: {c.state.value}, {sum(map(len, c.edges_in))} waiting" for c in self.order
        )

    # ------------------------------------------------------------------ ends

    def _end_some(self) -> bool:
        """End what can end; whether anything did."""
        changed = False
        for operator in self.order:
            if operator.state is Phase.LIVE and self._may_end(operator):
                operator.finish()
                changed = True
            if operator.state is Phase.ENDING and operator.ended():
                operator.conclude()
                changed = True
                if self._dynamic:
                    return True  # its last outputs may go anywhere
        return changed

    def _may_end(self, operator: Operator) -> bool:
        if operator.live_source or operator.in_flight():
            return False
        if any(before.state is not Phase.ENDED for before in operator.before):
            return False
        if not self._dynamic:
            return True
        live = [c for c in self._dynamic if c.state is not Phase.ENDED]
        reaching = {c for s in live for c in (s, *s.before) if c.state is not Phase.ENDED}
        reaching.discard(operator)
        loops = any(operator is s or operator in s.before for s in live)  # it reaches all of them
        for other in reaching:
            quiet = other.state is Phase.LIVE and not other.live_source and not other.in_flight()
            if not quiet or not (loops or operator in other.before):
                return False
        return True

    # ------------------------------------------------------------------ nested in a context

    def feed(self, items: Iterable[Any]) -> None:
        """Work items off, and what is due, as far as it does not wait for others.

        Raises:
            Abort: An item's failure whose stage says "raise"; see `recover`.
        """
        self.thread = threading.get_ident()
        for item in items:
            for edge in self._feeds:
                edge.append(item)
        while True:
            self._attend()
            if self._round():
                continue
            if not any(self._outside(operator) for operator in self.order):
                return
            self._rest(self.due())

    def recover(self, abort: Abort) -> Failure:
        """Go on after a failure that is another's to deal with: what was made of the item goes."""
        self.closing = True
        try:
            for operator in self.order:
                operator.drop()
        finally:
            self.closing = False
        self.failures.kept.remove(abort.failure)
        return abort.failure

    def recorded(self, error: BaseException) -> Failure | None:
        """The failure with which an error was recorded; it is so no longer."""
        for failure in self.failures.kept:
            if failure.error is error:
                self.failures.kept.remove(failure)
                return failure
        return None

    def finish_feed(self) -> Failure | None:
        """No more items: run to the end. What failed there, if a stage says "raise".

        Raises:
            Abort: As `feed`.
        """
        self.thread = threading.get_ident()
        for stage in self.graph.entries:
            self.operators[stage].live_source = False
        while self.step():
            pass
        late, self._late = self._late, []
        found = [failure for failure in map(self.recorded, late) if failure is not None]
        self.failures.kept += found[1:]
        return found[0] if found else None

    # ------------------------------------------------------------------ the end

    def abandon(self) -> RunResult:
        """End now, without a word about what was under way.

        Raises:
            Left: Somebody else has reserved it.
        """
        self._enter()
        self.interrupts.__exit__()
        self.kill()
        self._error = None
        try:
            result, error = self._released(None, False)
        except BaseException as other:
            self.give_up(other)
            raise
        if error is not None:
            raise error
        return result


def _has_clock(stage: Any) -> bool:
    """Whether a batch with max_wait is in a stage."""
    if stage.nested is not None:
        return any(map(_has_clock, stage.nested.stages))
    return stage.max_wait is not None


def _reached(operator: Operator) -> set[Operator]:
    """All operators that items of an operator can come to; itself, if there is a loop."""
    found: set[Operator] = set()
    line = [operator]
    while line:
        new = set(line.pop().edges_out).difference(found)
        found |= new
        line += new
    return found

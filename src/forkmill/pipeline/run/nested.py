"""A pipeline that runs as a whole in a context, and what is told of it outside.

    items, TICKs ──▶ NestedOperator ──lane──▶ Nested: a driver of its own
    outputs, fm.to ◀────────────────────  ├─▶ outputs
    failures, events, figures, dues ◀───  └─▶ Told, among the outputs

Guarantees:
    * The outer result has the inner failures, events, edges and figures of each inner stage, under
      the names that inline nesting gives them ("pipeline.parse"). They are told with the outputs
      of the item that brought them about, or within TELL_S of work, and at the replica's end.
    * An inner item that fails where the policy is "raise" is the failure of the outer item, by the
      outer stage's policy; it is recorded once, as that of the inner stage and item.
    * What waits in an inner batch for its max_wait, or for another try, does not need another item:
      the replica says when it is due, and is sent a TICK then.
    * A name that fm.to or a dead letter uses and that is not inside is looked for outside.
    * The stage hooks of inner stages run once, outside.

A replica that dies takes with it what it had not told yet; its edges are closed by counting the
rest as dropped.

Threads: Nested belongs to the calls of a lane, which share it in threads; the operator to its
driver.
"""

from __future__ import annotations

import functools
import itertools
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from ... import contexts
from ...events import Emitter
from ...runs.failure import Failure, Failures
from ...runs.policies import final
from ...runs.stats import (
    EdgeStats,
    Reservoir,
    RunStats,
    StageStats,
)
from ..declare import hooks_of
from .flow import NEVER, Abort, Killed
from .forms import width_of
from .lanes import LaneEnd, LaneOperator
from .sign import Sign, seen
from .told import tell_failure
from .work import (
    clocked,
    run_hooks,
    run_inline,
    set_up,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..graph import Stage, StageGraph
    from .operators import Operator
    from .state import Run

__all__ = ["NestedOperator"]

TELL_S = 0.05  # between two times that a replica tells its figures
_SAMPLES = 64  # measured calls of a stage that a replica tells at its end
_KINDS = frozenset(
    {"retry", "batch", "worker_died", "items"}
)  # events that are told; the rest is made here
_numbers = itertools.count(1)


class Tick:
    """Sent to a replica instead of an item when something in it is due."""

    def __reduce__(self) -> str:
        return "TICK"


TICK = Tick()


class Told:
    """What a replica tells beside its outputs.

    Attributes:
        replica: Which one.
        place: Where it lives, as its lane knows it.
        due: When it wants a TICK, by the monotonic clock, which processes share; NEVER.
        failures: Those since it told last.
        events: (kind, stage, data) of those since.
        figures: All of its figures so far, or None.
        samples: At its end: measured calls, by stage.
        last: Whether it is its end.
        failed: Whether a producer in it has failed.
    """

    __slots__ = (
        "due",
        "events",
        "failed",
        "failures",
        "figures",
        "last",
        "place",
        "replica",
        "samples",
    )

    def __init__(self, replica: str, due: float) -> None:
        self.replica = replica
        self.place = contexts.place()
        self.due = due
        self.failures: list[Failure] = []
        self.events: list[tuple[str, str | None, dict[str, Any]]] = []
        self.figures: RunStats | None = None
        self.samples: dict[str, list[float]] = {}
        self.last = self.failed = False


class Inside(Exception):
    """What an item of a nested pipeline fails with: the failure of an inner item."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure

    def __reduce__(self) -> Any:
        return Inside, (self.failure,)


class InnerEvents:
    """Stands for the events of a driver whose events are told by another."""

    heard = False
    traces = False
    errors = 0
    calling = driven = None

    def __init__(self, detail: str) -> None:
        self.detail = detail
        self.kept: list[tuple[str, str | None, dict[str, Any]]] = []

    def emit(self, kind: str, stage: str | None = None, **data: Any) -> None:
        """Keep it, until it is told."""
        if kind in _KINDS:
            self.kept.append((kind, stage, data))

    def batch(self, stage: str, size: int) -> None:
        """As `emit`."""
        self.emit("batch", stage, size=size)

    def known_by(self, about: object) -> None:
        """The outer run is told of."""

    def begin(self, progress: Callable[[], dict[str, Any]]) -> None:
        """The outer run tells how far it is."""

    def finish(self, seconds: float) -> None:
        """Nobody is to be waited for."""

    def hurry(self) -> None:
        """Nobody waits."""


# ---------------------------------------------------------------------- in the context


class Nested:
    """A replica of a pipeline inside a context: items in, outputs and Tolds out, one at a time."""

    def __init__(
        self,
        make: Callable[..., Any],
        graph: StageGraph,
        prefix: str,
        sign: str = "",
        detail: str = "runs",
    ) -> None:
        self.make = make  # a driver, which lies above this module
        self.graph = graph
        self.prefix = prefix
        self.sign = sign  # the path of what tells that the run is being stopped
        self.detail = detail  # of the events that are wanted
        self._driver: Any = None
        self._lock = threading.RLock()  # threads share one replica
        self._replica = ""
        self._stopping = False
        self._looked = 0.0  # when the figures were told last
        self._due = NEVER  # what was told last

    def __reduce__(self) -> Any:
        return Nested, (self.make, self.graph, self.prefix, self.sign, self.detail)

    def item(self, item: Any) -> Iterator[Any]:
        """What comes out for an item, as far as it does not wait for more."""
        failure: Failure | None = None
        with self._lock:
            if item is TICK and self._driver is None:
                return  # of a replica that is gone
            driver = self._running()
            try:
                driver.feed(() if item is TICK else (item,))
            except Abort as abort:
                failure = driver.recover(abort)
            outputs = [*driver.outputs]
            driver.outputs.clear()
            told = self._told()
            if failure is not None:  # what goes with a failed call may not arrive
                self._looked, self._due = 0.0, NEVER
        yield from outputs
        if told is not None:
            yield told
        if failure is not None:
            raise Inside(failure)

    def finish(self) -> Iterator[Any]:
        """What still comes out at the end."""
        failure: Failure | None = None
        with self._lock:
            driver = self._running()
            try:
                failure = driver.finish_feed()
            except Abort as abort:
                failure = driver.recover(abort)
            outputs = [*driver.outputs]
            driver.outputs.clear()
            self._driver = None
            for operator in driver.order:
                operator.tell_calls()
            try:
                driver.abandon()
            except BaseException as error:  # a teardown's
                recorded = driver.recorded(error)
                failure = recorded if failure is None else failure
                if failure is None:
                    raise
            told = self._told(driver)
        yield from outputs
        yield told
        if failure is not None:
            raise Inside(failure)

    def close(self) -> None:
        """Free what the pipeline holds, where its end did not come."""
        self.kill()  # an item that is in it comes back, and with it the lock
        with self._lock:
            driver, self._driver = self._driver, None
            if driver is not None:
                driver.abandon()

    def stop(self) -> None:
        """Loops by fm.to end, as in the run that it is part of. Any thread."""
        self._stopping = True
        driver = self._driver
        if driver is not None:
            driver.stop()

    def kill(self) -> None:
        """An item that is in it comes back at once, without its outputs. Any thread."""
        driver = self._driver
        if driver is not None:
            driver.kill()

    def _running(self) -> Any:
        if self._driver is None:
            driver = self.make(self.graph, feed=True, keep_failures=None, prefix=self.prefix)
            driver.events = InnerEvents(self.detail)
            driver.sign, driver.sign_path = seen(self.sign), self.sign
            try:
                driver.open()
            except BaseException:
                driver.abandon()
                raise
            self._driver = driver
            if self._stopping:
                driver.stop()
            self._replica = f"{contexts.place()}-{next(_numbers)}"
            self._looked, self._due = monotonic(), NEVER
        return self._driver

    def _told(self, ended: Any = None) -> Told | None:
        """What there is to tell; with a driver that has ended, everything."""
        driver = ended or self._driver
        due = NEVER if ended else driver.due()
        now = monotonic()
        figures = ended is not None or now - self._looked > TELL_S
        if not (figures or driver.failures.kept or driver.events.kept or due != self._due):
            return None
        told = Told(self._replica, due)
        told.failures, driver.failures.kept = driver.failures.kept, Failures()
        told.events, driver.events.kept = driver.events.kept, []
        told.failed = driver.producer_failed
        self._due = due
        if figures:
            self._looked = now
            told.figures = driver.snapshot()
        if ended:
            told.last = True
            told.samples = {
                name: reservoir.sample[:_SAMPLES]
                for name, reservoir in driver.reservoirs().items()
                if reservoir.sample
            }
        return told


def reproduce(make: Callable[..., Any], graph: StageGraph, item: Any) -> list[Any]:
    """What a nested pipeline emits for an item, called here (for `Failure.reproduce`)."""
    nested = Nested(make, graph, "")
    try:
        outputs = [*nested.item(item), *nested.finish()]
    except Inside as inside:
        raise inside.failure.error from None
    return [output for output in outputs if type(output) is not Told]


# ---------------------------------------------------------------------- in the run


class Inner:
    """An inner stage, as the outer run knows it."""

    def __init__(self, name: str, stage: Stage, outer: tuple[Any, ...], width: int) -> None:
        self.name = name
        self.stage = stage
        self.pipelines = (*outer, *stage.level.pipelines)
        isolated = stage.spec.type in ("ipc_fork", "cow_fork", "interpreter")
        self.width = width * width_of(stage)
        self.below = self.width if isolated else 1
        self.reservoir = Reservoir()

    def hooks(self, which: str) -> list[Callable[..., Any]]:
        """Its hooks of one kind, the outermost pipeline's first."""
        found = [hook for pipeline in self.pipelines for hook in hooks_of(pipeline, which)]
        own = self.stage.parts.get(which)
        return found if own is None else [*found, own]


def _inner(name: str, graph: StageGraph, outer: tuple[Any, ...], width: int) -> Iterator[Inner]:
    """All stages of a nested graph, and of those nested in it."""
    for stage in graph.stages:
        inner = Inner(f"{name}.{stage.name}", stage, outer, width)
        yield inner
        if stage.nested is not None:
            yield from _inner(inner.name, stage.nested, inner.pipelines, inner.below)


class NestedOperator(LaneOperator):
    """A pipeline that runs as a whole in a context."""

    def __init__(self, driver: Run[Operator], stage: Stage) -> None:
        super().__init__(driver, stage)
        isolated = stage.spec.type in ("ipc_fork", "cow_fork", "interpreter")
        width = self.width if isolated else 1  # threads share one replica
        found = _inner(self.name, self._graph, stage.level.pipelines, width)
        self.inner = {inner.name: inner for inner in found}
        self._figures: dict[str, RunStats] = {}  # of replicas that live, or have died
        self._sum = _Sum()  # of replicas that have ended
        self._dues: dict[str, tuple[float, int]] = {}  # when, and where
        self._replicas: dict[str, Emitter] = {}  # of replicas that have told something
        self._ticks = 0  # under way
        self._failure: Failure | None = None  # the inner one that is being recorded
        self.here: Nested | None = None  # the replica, if it is in this very process
        self.sign: Sign | None = None  # by which other processes know that the run is being stopped

    @property
    def _graph(self) -> StageGraph:
        graph = self.stage.nested
        assert graph is not None
        return graph

    def make_work(self, after_fork: list[Callable[..., Any]]) -> contexts.Work:
        apart = self.stage.spec.type in ("ipc_fork", "cow_fork", "interpreter")
        if apart and self.sign is None:
            self.sign = Sign()
        # Else the replica holds this driver's thread while it works, and looks itself.
        path = self.sign.path if self.sign is not None else self.driver.sign_path
        prefix, detail = f"{self.driver.prefix}{self.name}.", self.driver.events.detail
        nested = Nested(type(self.driver), self._graph, prefix, path, detail)
        if self.stage.spec.type not in ("ipc_fork", "cow_fork"):
            self.here = nested
        if self.driver.stopping:
            self.tell_stop()  # or else it comes later
        setup = functools.partial(set_up, after_fork, self.name, None) if after_fork else None
        return contexts.Work(
            fn=clocked(nested.item),
            setup=setup,
            teardown=nested.close,
            on_end=nested.finish,
            stream=not self._whole,
            whole=self._whole,
            atomic=self._whole,
            always=True,
            timeout=self.stage.timeout,
            label=f"the nested pipeline {self.name!r}",
            origin=self.driver.origin(self.name),
        )

    def tell_stop(self) -> None:
        """Have the replicas do what this run does. Any thread."""
        if self.here is not None:
            self.here.stop()
        if self.sign is not None:
            self.sign.give()

    # Hooks and events of the inner stages.

    def before_hooks(self) -> None:
        super().before_hooks()
        if self.driver.inside:
            return
        for inner in self.inner.values():
            self.driver.events.emit("stage_started", inner.name, context=str(inner.stage.spec))
            run_hooks(inner.hooks("before_stage"), inner.name)

    def after_hooks(self) -> None:
        hooked = self._hooked
        super().after_hooks()
        if not hooked or self.driver.inside:
            return
        figures = self.inner_figures().stages
        for inner in self.inner.values():
            for error in self.driver.hooks(inner.hooks("after_stage"), inner.name):
                self.driver.fail_late(error)
            one = figures[inner.name]
            self.driver.events.emit(
                "stage_finished", inner.name, **{"in": one.in_, "out": one.out}, failed=one.failed
            )

    # What is due in the replicas.

    def due(self) -> float:
        return min(super().due(), min((due for due, _ in self._dues.values()), default=NEVER))

    def turn(self) -> bool:
        progress = super().turn()
        if not self._dues or self.lane is None or self._end is not LaneEnd.NOT_YET:
            return progress
        now = monotonic()
        for replica, (due, place) in [*self._dues.items()]:
            if due <= now:
                del self._dues[replica]
                progress = self._tick(place) or progress
        return progress

    def _tick(self, place: int) -> bool:
        replica = self.lane.replica_of(place)
        if replica is None:
            return False  # it has died, or had its end
        self.pending += 1
        self._ticks += 1
        self.lane.put_many([TICK], replica)
        return True

    # What comes out.

    def _batch(self, piece: Any) -> None:
        self._measured(piece.reports)
        for one in piece.split():
            self._taken(one)

    def _taken(self, taken: Any) -> None:
        item, outputs, failure, done, _ = taken
        if type(failure) is Killed:
            raise failure  # a replica in this very thread came back: the item goes with the rest
        if item is not TICK:
            super()._taken(taken)
            return
        self.deliver(outputs)
        if done:
            self.pending -= 1
            self._ticks -= 1
        if failure is not None:  # there is no outer item that it could be charged to
            with _Recording(self, failure) as error:
                self.fail_once(None, error)

    def _finished(
        self, record: Any, item: Any, failure: BaseException | None, final: bool = False
    ) -> None:
        if failure is None:
            super()._finished(record, item, None, final)
            return
        with _Recording(self, failure) as error:
            super()._finished(record, item, error, final)

    def fail_at_end(self, error: BaseException) -> None:
        with _Recording(self, error) as own:
            super().fail_at_end(own)

    def record(
        self,
        item: Any,
        error: BaseException,
        attempts: int,
        policy: Any,
        again: Callable[[Any], list[Any]] | None = None,
        name: str | None = None,
    ) -> None:
        inner = self._failure
        if inner is None or inner.error is not error:
            again = again or functools.partial(reproduce, type(self.driver), self._graph)
            super().record(item, error, attempts, policy, again)
            return
        attempts = max(attempts, inner.attempts)
        name = inner.stage.removeprefix(self.driver.prefix)
        super().record(inner.item, error, attempts, policy, self._again(name), name)

    def _again(self, name: str) -> Callable[[Any], list[Any]] | None:
        """Calls the function of an inner stage."""
        inner = self.inner.get(name)
        if inner is None:
            return None
        if inner.stage.nested is not None:
            return functools.partial(reproduce, type(self.driver), inner.stage.nested)
        return functools.partial(run_inline, inner.stage) if inner.stage.fn is not None else None

    def deliver(self, outputs: list[Any], plain: bool = False) -> None:
        if not plain and Told in map(type, outputs):
            for told in outputs:
                if type(told) is Told:
                    self._hear(told)
            outputs = [output for output in outputs if type(output) is not Told]
        super().deliver(outputs, plain)

    def _hear(self, told: Told) -> None:
        driver, events = self.driver, self._events_of(told.replica)
        driver.producer_failed = driver.producer_failed or told.failed
        for failure in told.failures:
            name = failure.stage.removeprefix(driver.prefix)
            failure._again = self._again(name)
            policy = final(self.inner[name].stage.on_error) if name in self.inner else "skip"
            if events.heard:
                item, error = failure.item, failure.error
                tell_failure(events, name, item, error, failure.attempts, policy)
            driver.failures.add(failure)
        for kind, stage, data in told.events:
            events.emit(kind, f"{self.name}.{stage}", **data)
        for stage, values in told.samples.items():
            for value in values:
                self.inner[f"{self.name}.{stage}"].reservoir.add(value)
        if told.due < NEVER and self.lane is not None and self.lane.replicas:
            self._dues[told.replica] = told.due, told.place
        else:
            self._dues.pop(told.replica, None)
        if told.last:
            self._figures.pop(told.replica, None)
            self._sum.add(told.figures)
            self._tell_end(told.replica, "failed" if told.failed else "completed")
        elif told.figures is not None:
            self._figures[told.replica] = told.figures

    def _events_of(self, replica: str) -> Any:
        """What a replica's events are told with: as those of a run that is part of this one."""
        outer = self.driver.events
        if self.driver.inside or not outer.heard:
            return outer
        run = self._replicas.get(replica)
        if run is None:
            run = self._replicas[replica] = Emitter("pipeline", outer)
            run.emit("run_started", self.name, pipeline=self._graph.pipeline._title())
        return run

    def _tell_end(self, replica: str, status: str) -> None:
        run = self._replicas.pop(replica, None)
        if run is not None:
            run.emit("run_finished", self.name, status=status)

    # Figures.

    def reservoirs(self) -> dict[str, Reservoir]:
        """Of the inner stages."""
        return {name: inner.reservoir for name, inner in self.inner.items()}

    def inner_figures(self) -> RunStats:
        """Of all replicas together, under the names of the outer run."""
        total = _Sum()
        total.take(self._sum)
        for figures in tuple(self._figures.values()):
            total.add(figures, closed=self.lane is None)
        stages = {}
        for name, inner in self.inner.items():
            p50, p90, p99 = inner.reservoir.percentiles(0.5, 0.9, 0.99)
            sums = total.stages.get(name.removeprefix(f"{self.name}."), (0, 0, 0, 0.0, 0.0))
            spec = str(inner.stage.spec)
            stages[name] = StageStats(name, spec, inner.width, *sums, p50, p90, p99)
        edges = {
            (f"{self.name}.{a}" if a else self.name, f"{self.name}.{b}"): EdgeStats(*sums)
            for (a, b), sums in total.edges.items()
        }
        return RunStats(stages, edges)

    def close(self) -> None:
        self.pending -= self._ticks  # they are nobody's items
        self._ticks = 0
        self._dues.clear()
        for replica in tuple(self._replicas):  # without a word: it has died, or was ended
            self._tell_end(replica, "stopped" if self.driver.stopping else "failed")
        try:
            super().close()
        finally:
            if self.sign is not None:
                self.sign.close()


class _Recording:
    """While it lasts an operator records an inner failure, if this is one. Gives the error."""

    def __init__(self, operator: NestedOperator, error: BaseException) -> None:
        self.operator = operator
        self.error = error

    def __enter__(self) -> BaseException:
        if type(self.error) is not Inside:
            return self.error
        self.operator._failure = self.error.failure
        return self.error.failure.error

    def __exit__(self, *exc: object) -> None:
        self.operator._failure = None


class _Sum:
    """Figures added up."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, int, int, float, float]] = {}
        self.edges: dict[tuple[str, str], tuple[int, int, int, int, int]] = {}

    def take(self, other: _Sum) -> None:
        """Begin with another one."""
        self.stages.update(other.stages)
        self.edges.update(other.edges)

    def add(self, figures: RunStats | None, closed: bool = False) -> None:
        """Add a replica's. `closed`: it is gone without its end, and what it had with it."""
        if figures is None:
            return
        for name, s in figures.stages.items():
            was = self.stages.get(name, (0, 0, 0, 0.0, 0.0))
            new = s.in_, s.out, s.failed, s.busy, s.waiting
            self.stages[name] = tuple(map(sum, zip(was, new, strict=True)))  # type: ignore[assignment]
        for ends, e in figures.edges.items():
            before = self.edges.get(ends, (0, 0, 0, 0, 0))
            dropped = e.emitted - e.delivered - e.failed if closed else e.dropped
            now = e.emitted, e.delivered, e.failed, dropped
            *counts, beyond = before
            total = map(sum, zip(counts, now, strict=True))
            self.edges[ends] = (*total, max(beyond, e.beyond))  # type: ignore[assignment]

"""What a run says of itself while it goes on, and at its end: counters, times, percentiles.

    operators, runs under way ──▶ Figures ──▶ RunStats, events of progress

Guarantees: an item that a run has counted, and not handed over yet, counts; once.

Threads: any, unless it is said otherwise.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from ..._frames import delegate, our_locals, stack, waiting
from ...runs.stats import EdgeStats, RunStats, StageStats
from .forms import width_of
from .fuse import Tally, tallied
from .lanes import LaneOperator
from .nested import NestedOperator
from .operators import Operator
from .state import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType
    from typing import Unpack

    from ...runs.stats import Reservoir
    from ..graph import StageGraph
    from .state import RunOptions

__all__ = ["Figures"]

_MEASURE_S = 1.0  # between two looks at busy times and percentiles, for who hears of progress


class Figures(Run[Operator]):
    """One run of a graph, as far as it counts itself. Arguments: those of `Run`."""

    def __init__(self, graph: StageGraph, **options: Unpack[RunOptions]) -> None:
        super().__init__(graph, **options)
        self._over = False
        self._began = self._looked = self._measure_at = monotonic()
        self._duration = 0.0

    def snapshot(self) -> RunStats:
        """The figures so far."""
        duration = self._duration if self._over else monotonic() - self._began
        busy = self._busy()
        counts = self._counts()
        stages = {}
        for operator in self.order:
            p50, p90, p99 = operator.reservoir.percentiles(0.5, 0.9, 0.99)
            came, out = counts[operator]
            method, reason = operator.started
            stages[operator.name] = StageStats(
                name=operator.name,
                context=str(operator.stage.spec),
                workers=width_of(operator.stage),
                in_=came,
                out=out,
                failed=operator.failures,
                busy=busy[operator],
                waiting=operator.waited,
                p50=p50,
                p90=p90,
                p99=p99,
                start_method=method,
                start_reason=reason,
            )
        edges = {
            (e.source, operator.name): EdgeStats(
                e.emitted,
                e.delivered,
                e.failed,
                e.dropped,
                max(0, e.peak - operator.stage.queue_size),
            )
            for operator in self.order
            for e in tuple(operator.edges_in)
        }
        for operator in self.order:
            if isinstance(operator, NestedOperator):
                inner = operator.inner_figures()
                stages.update(inner.stages)
                edges.update(inner.edges)
        return RunStats(stages, edges, duration, self.events.errors)

    def reservoirs(self) -> dict[str, Reservoir]:
        """The measured calls of all stages, those of nested pipelines too."""
        found = {operator.name: operator.reservoir for operator in self.order}
        for operator in self.order:
            if isinstance(operator, NestedOperator):
                found.update(operator.reservoirs())
        return found

    def _counts(self) -> dict[Operator, tuple[int, int]]:
        """How many items came to each operator and went out of it, runs under way included."""
        counts: dict[Operator, tuple[int, int]] = {}
        for _ in range(3):  # a run that ends meanwhile would count twice, or not at all
            before = self.flushed
            counts = {operator: (operator.came, operator.out) for operator in self.order}
            for scope, tallies in () if self._over else self._runs():
                for tally, (came, _, out) in tallied(scope, tallies):
                    was = counts[tally.operator]
                    counts[tally.operator] = was[0] + came, was[1] + out
            if self.flushed == before:
                break
        return counts

    def _runs(self) -> Iterator[tuple[dict[str, Any], list[Tally]]]:
        """The variables of all runs under way, on the stack of the driver's thread or waiting, and
        how their stages count."""
        for frame in stack(self.thread):
            scope = self._run_of(frame)
            if scope is not None:
                yield scope, self.codes[frame.f_code].tallies
        for operator in self.order:
            run: Any = operator.run
            while run is not None:
                idle = waiting(run, self.codes)
                if idle is not None:
                    yield our_locals(idle), self.codes[idle.f_code].tallies
                run = delegate(run)

    def _run_of(self, frame: FrameType) -> dict[str, Any] | None:
        """The variables of a frame that is a run of this driver's; None: it is none."""
        scope = our_locals(frame) if frame.f_code in self.codes else {}
        return scope if scope.get("beat") is self.beat else None

    def _busy(self) -> dict[Operator, float]:
        """Seconds by operator: a group's time is shared out as its measured calls were."""
        busy = {operator: operator.sampled for operator in self.order}
        for root in self.order:
            if root.fused or isinstance(root, LaneOperator):
                continue
            group = list(_group(root))
            measured = sum(operator.sampled for operator in group)
            if measured > 0:
                factor = sum(operator.wall for operator in group) / measured
                busy.update((operator, operator.sampled * factor) for operator in group)
        return busy

    def _progress(self) -> dict[str, Any]:
        """How far it is. Any thread."""
        stages: dict[str, dict[str, Any]] = {
            operator.name: {
                "in": came,
                "out": out,
                "failed": operator.failures,
                "waiting": sum(map(len, tuple(operator.edges_in))),
                "under_way": operator.under_way(),
            }
            for operator, (came, out) in self._counts().items()
        }
        for operator in self.order:
            if isinstance(operator, NestedOperator):
                for name, one in operator.inner_figures().stages.items():
                    figures = {"in": one.in_, "out": one.out, "failed": one.failed}
                    stages[name] = {**figures, "waiting": 0, "under_way": 0}
        if (now := monotonic()) >= self._measure_at:
            self._measure_at = now + _MEASURE_S
            for name, one in self.snapshot().stages.items():
                if name in stages:
                    stages[name] |= {"busy": one.busy, "p50": one.p50, "p99": one.p99}
        return {"stages": stages}


def _group(operator: Operator) -> Iterable[Operator]:
    """An operator and all that is fused behind it."""
    yield operator
    for target in operator.targets:
        if target.fused:
            yield from _group(target)

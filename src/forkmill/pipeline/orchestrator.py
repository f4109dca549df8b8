"""The orchestrator: takes a plan, acquires what it needs, runs it, releases everything.

Guarantees: whatever the outcome (end, failure, Ctrl-C), no context that a run has opened is left.
Forks come before threads. Reusable: each `execute` is a run of its own.

Threads: any; runs do not know of each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..runs.failure import KEEP
from ..runs.handle import Handle, Stream
from ..runs.result import RunResult
from .graph import StageGraph, check_runnable
from .plan import ExecutionPlan
from .run.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..runs.aio import AsyncStream
    from .declare import Declaration

    Sinks = Iterable[Callable[[dict[str, Any]], object]]

__all__ = ["Orchestrator"]


class Orchestrator:
    """Carries a pipeline's plan out.

    Args:
        pipeline: The pipeline.
    """

    def __init__(self, pipeline: Declaration) -> None:
        self.pipeline = pipeline

    def plan(self) -> ExecutionPlan:
        """What would be run, and where.

        Raises:
            BuildError: The pipeline is wrong.
        """
        return ExecutionPlan(self.pipeline).plan()

    def execute(
        self,
        plan: ExecutionPlan | None = None,
        *,
        sinks: Sinks = (),
        keep_failures: int | None = KEEP,
    ) -> RunResult:
        """Run to the end. As `Pipeline.run`.

        Args:
            plan: One that was made before; None: a new one.
            sinks: Called with each event.
            keep_failures: How many failures are kept whole; the rest is counted. None: all.
        """
        return Driver(self._graph(plan), sinks, keep_failures=keep_failures).run()

    def stream(
        self,
        plan: ExecutionPlan | None = None,
        *,
        sinks: Sinks = (),
        keep_failures: int | None = KEEP,
    ) -> Stream:
        """The outputs one by one. As `Pipeline.stream`."""
        return Stream(Driver(self._graph(plan), sinks, stream=True, keep_failures=keep_failures))

    def start(
        self,
        plan: ExecutionPlan | None = None,
        *,
        sinks: Sinks = (),
        keep_failures: int | None = KEEP,
    ) -> Handle:
        """Run in a thread. As `Pipeline.start`; ``await orchestrator.start(plan)`` is a run for
        asyncio, which a cancelled task leaves alone."""
        return Handle(Driver(self._graph(plan), sinks, keep_failures=keep_failures))

    def astream(
        self,
        plan: ExecutionPlan | None = None,
        *,
        sinks: Sinks = (),
        keep_failures: int | None = KEEP,
    ) -> AsyncStream:
        """The outputs one by one, for ``async for``. As `Pipeline.astream`."""
        from ..runs.aio import AsyncStream  # with asyncio, which takes long to import

        driver = Driver(self._graph(plan), sinks, stream=True, keep_failures=keep_failures)
        return AsyncStream(driver)

    def _graph(self, plan: ExecutionPlan | None) -> StageGraph:
        graph = (plan or self.plan()).plan().graph
        check_runnable(graph)
        return graph

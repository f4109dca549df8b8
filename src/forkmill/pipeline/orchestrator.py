"""The orchestrator: takes a plan, acquires what it needs, runs it, releases everything.

Guarantees: whatever the outcome (end, failure, Ctrl-C), no context that a run has opened is left.
Forks come before threads. Reusable: each `execute` is a run of its own.

Threads: any; runs do not know of each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._watch import sinks_of
from ..runs.failure import KEEP
from ..runs.handle import Handle, Stream
from ..runs.result import RunResult
from .graph import check_runnable
from .plan import ExecutionPlan
from .run.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypedDict, Unpack

    from ..runs.aio import AsyncStream
    from .declare import Declaration

    Sinks = Iterable[Callable[[dict[str, Any]], object]]

    class RunOptions(TypedDict, total=False):
        """What `Pipeline.run` takes."""

        sinks: Sinks
        keep_failures: int | None
        progress: Any
        report: Any


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
        self, plan: ExecutionPlan | None = None, **options: Unpack[RunOptions]
    ) -> RunResult:
        """Run to the end. As `Pipeline.run`.

        Args:
            plan: One that was made before; None: a new one.
            **options: sinks, keep_failures, progress, report, as `Pipeline.run` has them.
        """
        return self._driver(plan, **options).run()

    def stream(self, plan: ExecutionPlan | None = None, **options: Unpack[RunOptions]) -> Stream:
        """The outputs one by one. As `Pipeline.stream`."""
        return Stream(self._driver(plan, stream=True, **options))

    def start(self, plan: ExecutionPlan | None = None, **options: Unpack[RunOptions]) -> Handle:
        """Run in a thread. As `Pipeline.start`; ``await orchestrator.start(plan)`` is a run for
        asyncio, which a cancelled task leaves alone."""
        return Handle(self._driver(plan, **options))

    def astream(
        self, plan: ExecutionPlan | None = None, **options: Unpack[RunOptions]
    ) -> AsyncStream:
        """The outputs one by one, for ``async for``. As `Pipeline.astream`."""
        from ..runs.aio import AsyncStream  # with asyncio, which takes long to import

        return AsyncStream(self._driver(plan, stream=True, **options))

    def _driver(
        self,
        plan: ExecutionPlan | None,
        *,
        stream: bool = False,
        sinks: Sinks = (),
        keep_failures: int | None = KEEP,
        progress: Any = False,
        report: Any = None,
    ) -> Driver:
        graph = (plan or self.plan()).plan().graph
        check_runnable(graph)
        heard_by = sinks_of(sinks, progress, report)
        return Driver(graph, heard_by, stream=stream, keep_failures=keep_failures)

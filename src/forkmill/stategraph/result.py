"""What a run of a state graph came to, as plain data.

Threads: any; nothing here changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from .._offers import offered
from ..runs.failure import Failures
from .line import view
from .rules import half_filled
from .words import Interrupt, question_id

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # checkers know it, also where it is not installed

    from ..runs.failure import Failure
    from .line import Line
    from .plan import Plan

    # The schema: a dataclass, a TypedDict, or a dict. Who does not say it has Any.
    S = TypeVar("S", default=Any)
else:
    from typing import TypeVar

    S = TypeVar("S")

__all__ = ["StateRun", "StateStats", "StepReport", "result_of"]


@dataclass(slots=True)
class StateStats:
    """The figures of one call.

    Attributes:
        steps: Supersteps that it committed.
        tasks: Attempts that it started.
        retries: Of these, those that were not the first.
        deaths: Attempts whose process died.
        seconds: How long it took.
    """

    steps: int = 0
    tasks: int = 0
    retries: int = 0
    deaths: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """It as plain data."""
        return {name: getattr(self, name) for name in self.__slots__}

    def table(self) -> str:
        """It as text, in two columns."""
        rows = self.as_dict().items()
        return "\n".join(
            f"{name:8} {value:.3f}" if isinstance(value, float) else f"{name:8} {value}"
            for name, value in rows
        )


@dataclass(frozen=True, slots=True)
class StateRun(Generic[S]):
    """What a call came to. ``run["key"]`` is ``run.state["key"]``.

    Attributes:
        status: "completed"; "interrupted": it waits for an answer or to be resumed; "drained": it
            was told to stop; "killed"; on an exception's `state_run` also "failed".
        state: The state, as a node would see it: a dict, or the schema's dataclass.
        session: The session's id; "" without one.
        step: How many supersteps are committed.
        seq: The number of the last point of the session: input, steps and edits count.
        frontier: The nodes of the next step's tasks, in order.
        interrupts: The questions that wait for an answer: `id`, `value`, `node`.
        waiting: The targets of joins for which some sources have run, and not all.
        failures: The tasks that failed for good, in task order.
        stats: The figures of this call.
    """

    status: str
    state: S
    session: str
    step: int
    seq: int
    frontier: list[str] = field(default_factory=list)
    interrupts: list[Interrupt] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)
    stats: StateStats = field(default_factory=StateStats)

    def __getitem__(self, key: str) -> Any:
        state: Any = self.state
        return state[key]

    def __contains__(self, key: object) -> bool:
        state: Any = self.state
        try:
            state[key]
        except KeyError:
            return False
        return True

    @property
    def ok(self) -> bool:
        """Whether it is completed."""
        return self.status == "completed"

    def report(self, path: Any) -> None:
        """Write a report of it, one file of HTML: figures and failures.
        ``invoke(report="run.html")`` has a timeline too.

        Args:
            path: The file.

        Raises:
            TypeError: It is no path. OSError: it cannot be written there.
        """
        offered("report_of")(self, path)

    def __repr__(self) -> str:
        session = f" session={self.session!r}" if self.session else ""
        rest = "".join(
            f" {name}={value!r}"
            for name in ("frontier", "interrupts", "waiting")
            if (value := getattr(self, name))
        )
        return f"<StateRun {self.status}{session} step={self.step}{rest}>"[:200]

    def _repr_html_(self) -> str:
        from html import escape

        rows = [
            (name, getattr(self, name))
            for name in ("status", "session", "step", "seq", "frontier", "interrupts", "waiting")
        ]
        cells = "".join(
            f"<tr><th>{name}</th><td>{escape(str(value)[:500])}</td></tr>"
            for name, value in rows
            if value not in ("", [])
        )
        return f"<table>{cells}</table>"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did.

    Attributes:
        step: Its number, if it was committed; else that of the last one that was.
        ran: The nodes of its tasks, in order; those too that had finished before.
        updated: The keys that changed.
        frontier: The nodes of the next step's tasks, in order.
        completed: Whether nothing is left to run.
        paused: Whether it waits for an answer, or stopped where it was told to.
    """

    step: int
    ran: list[str]
    updated: list[str]
    frontier: list[str]
    completed: bool
    paused: bool


def result_of(
    plan: Plan,
    line: Line,
    status: str,
    failures: dict[int, Failure] | None = None,
    stats: StateStats | None = None,
) -> StateRun:
    """A session as the result of a call."""
    point = line.point
    open_wire = plan.coder.value
    asked = line.asked() if line.questions else {}
    interrupts = []
    for index in sorted(asked):
        number, wire = asked[index]
        node = point.tasks[index].node
        name = question_id(point.step + 1, index, node, number)
        interrupts.append(Interrupt(name, open_wire(wire), node))
    return StateRun(
        status,
        view(plan, point),
        line.session,
        point.step,
        point.seq,
        [task.node for task in point.tasks],
        interrupts,
        half_filled(plan.paths, point.joins) if status == "completed" and point.joins else [],
        Failures(failures[index] for index in sorted(failures)) if failures else Failures(),
        stats or StateStats(),
    )

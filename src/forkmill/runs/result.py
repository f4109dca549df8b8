"""What comes out of a run: the result, also with what the run raises.

Threads: any; a result is not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._offers import offered
from ..errors import slot
from .failure import noted
from .stats import COLUMNS

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from .failure import Failures
    from .stats import RunStats

__all__ = ["RunResult", "attach", "disguised"]


def attach(error: BaseException, result: RunResult, others: Iterable[BaseException]) -> None:
    """What a run raises gets its result, and is told of the other failures. Never raises."""
    noted(error, others)
    slot(error, "__dict__")["run_result"] = result


def disguised(error: BaseException) -> RuntimeError:
    """What a run has raised, as the cause of another exception: where it is raised now, it would
    mean something else. Has the result too."""
    found = RuntimeError(f"the run raised {type(error).__name__}, which means something else here")
    found.__cause__ = error
    found.__dict__["run_result"] = getattr(error, "run_result", None)
    return found


@dataclass(frozen=True, repr=False)
class RunResult:
    """What a run came to.

    Attributes:
        status: "completed" (also with recorded failures), "failed" (a producer failed, or an
            item where the policy is "raise"), or "stopped" (stop, Ctrl-C, a closed stream).
        outputs: What terminal stages emitted, in the order of arrival.
        failures: The items that failed; of very many the first ones (`keep_failures`).
        stats: Figures per stage and edge.
        duration: Seconds.
        more_failures: How many failed beyond those, by stage and type of the error:
            ``{("parse", "ValueError"): 12}``.
        left_behind: The stages with calls that could not be ended when the run was stopped or
            killed, one entry a call: threads cannot be stopped from outside. They are daemons, what
            they give is dropped, and nobody waits for them, also not when the interpreter exits.
    """

    status: str
    outputs: list[Any]
    failures: Failures
    stats: RunStats
    duration: float
    more_failures: dict[tuple[str, str], int] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it completed without any failure."""
        return self.status == "completed" and not self.failed

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write an HTML file about the run: the figures of its stages, and its failures. For the
        timeline and the slowest calls too, ``run(report="run.html")``.

        Raises:
            TypeError: It is no path.
            OSError: It cannot be written there.
        """
        offered("report_of")(self, path)

    @property
    def failed(self) -> int:
        """How many failures there were, with those that were only counted."""
        return len(self.failures) + sum(self.more_failures.values())

    def __repr__(self) -> str:
        told = f"{len(self.outputs):,} outputs, {self.failed:,} failed, {self.duration:.2f} s"
        return f"<RunResult {self.status}: {told}>"

    def _repr_html_(self) -> str:
        html: str = offered("html_of")(repr(self)[1:-1], COLUMNS, self.stats.rows())
        return html

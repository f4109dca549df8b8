"""What a map gives: its rows, and how it went.

Threads: any; a result is not changed.
"""

from __future__ import annotations

import html
import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from .._checks import nearest
from .._offers import offered
from ..runs.failure import Failures
from ..runs.stats import RunStats, StageStats

if TYPE_CHECKING:
    import os

    from ..runs.failure import Failure
    from .plan import Plan

__all__ = ["MapResult", "counted"]


_SHOWN = 10  # rows, and columns
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class MapResult(Sequence[dict[str, Any]]):
    """The rows of a map, one for each item, in the order of the items.

    ``result[0]`` is a row, a dict of outputs; ``result["score"]`` is a column, a list;
    ``result[2:5]`` is a list of rows. It equals a list of the same rows.

    Attributes:
        outputs: The names of the columns.
        status: "completed" (also with recorded failures) or "stopped" (Ctrl-C, `stop`).
        failures: What failed, in the order of the items; each stands in its row, too.
        stats: Figures by node.
        duration: Seconds.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        outputs: tuple[str, ...],
        failures: list[Failure],
        stats: RunStats,
        duration: float,
        status: str = "completed",
    ) -> None:
        self._rows = rows
        self.outputs = outputs
        self.failures = Failures(failures)
        self.stats = stats
        self.duration = duration
        self.status = status

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write an HTML file about the map, as `RunResult.report` does."""
        offered("report_of")(self, path)

    @property
    def ok(self) -> bool:
        """Whether it completed without any failure."""
        return self.status == "completed" and not self.failures

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice | str) -> list[Any]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, str):
            if at not in self.outputs:
                near = nearest(at, self.outputs)
                raise KeyError(f"there is no column {at!r}{near}; there are {self.outputs}")
            return [row[at] for row in self._rows]
        return self._rows[at]

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, MapResult):
            return self._rows == other._rows
        return self._rows == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        names = ", ".join(self.outputs)
        names = names if len(names) < 80 else f"{names[:77]}..."
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return (
            f"<{len(self)} rows of {names or 'nothing'}{failed}, {self.status} "
            f"in {self.duration:.3g} s>"
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *self.outputs[:_SHOWN]))
        body = "".join(
            f"<tr><th>{at}</th>{''.join(_cell(row[name]) for name in self.outputs[:_SHOWN])}</tr>"
            for at, row in enumerate(self._rows[:_SHOWN])
        )
        return (
            f"<div><code>{html.escape(repr(self))}</code><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )


def _cell(value: Any) -> str:
    return f"<td>{html.escape(_SHORT.repr(value))}</td>"


def counted(
    plan: Plan, items: int, failures: list[Failure], duration: float, path: str = ""
) -> RunStats:
    """The figures of a map that ran in the caller's thread."""
    failed: dict[str, int] = {}
    for failure in failures:
        failed[failure.stage] = failed.get(failure.stage, 0) + 1
    stages = {
        path + step.path: StageStats(
            path + step.path, "inline", 1, items, items - failed.get(path + step.path, 0),
            failed.get(path + step.path, 0), 0.0, 0.0, None, None, None,
        )
        for step in plan.steps
    }  # fmt: skip
    return RunStats(stages, {}, duration)

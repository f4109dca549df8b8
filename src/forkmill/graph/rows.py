"""What a map gives: its rows, and how it went.

    blocks of an engine ──▶ Gathered: what calls gave ──at the first look──▶ rows

Guarantees:
    * A row is one dict, however often it is asked for.
    * Where calls gave the values alone (see `levels.Values`), rows are made when somebody looks at
      them, and columns without them.

Threads: any; a result is not changed.
"""

from __future__ import annotations

import functools
import html
import reprlib
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, overload

from .._checks import nearest
from .._offers import offered
from ..runs.failure import Failures
from ..runs.stats import RunStats, StageStats

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from ..runs.failure import Failure
    from .plan import Plan

__all__ = ["Gathered", "Maker", "MapResult", "counted"]


_SHOWN = 10  # rows, and columns
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class Maker:
    """Makes rows of what calls give: bare values, or tuples.

    Args:
        outputs: (name, slot) of what a row has.
        writes: The slots of what a call gives.
    """

    def __init__(self, outputs: tuple[tuple[str, int], ...], writes: tuple[int, ...]) -> None:
        self.rows: Callable[[Iterable[Any]], list[dict[str, Any]]] = _rows_of(outputs, writes)
        self._places = {name: writes.index(slot) for name, slot in outputs}
        self._bare = len(writes) == 1

    def column(self, name: str, values: list[Any]) -> list[Any]:
        """The values of one output."""
        return values[:] if self._bare else list(map(itemgetter(self._places[name]), values))


@functools.lru_cache(maxsize=256)
def _rows_of(
    outputs: tuple[tuple[str, int], ...], writes: tuple[int, ...]
) -> Callable[[Iterable[Any]], list[dict[str, Any]]]:
    if len(writes) == 1:
        pattern = f"v{writes[0]}"
    else:
        pattern = f"({', '.join(f'v{slot}' for slot in writes)},)"
    pairs = ", ".join(f"{name!r}: v{slot}" for name, slot in outputs)
    return _made(f"lambda values: [{{{pairs}}} for {pattern} in values]")


@functools.lru_cache(maxsize=256)
def _made(text: str) -> Callable[[Iterable[Any]], list[dict[str, Any]]]:
    return eval(text)  # type: ignore[no-any-return]  # of names as literals, and numbers


def rows_of(
    outputs: tuple[tuple[str, int], ...],
) -> Callable[[Iterable[Any]], list[dict[str, Any]]]:
    """What makes rows of things with `slots`.

    Args:
        outputs: (name, slot) of what a row has.
    """
    pairs = ", ".join(f"{str.__str__(name)!r}: slots[{slot}]" for name, slot in outputs)
    return _made(f"lambda some: [{{{pairs}}} for one in some for slots in (one.slots,)]")


class Gathered:
    """Rows as they come, and when all are there: made, or what they can be made of."""

    def __init__(self, rows: list[dict[str, Any]] | None = None) -> None:
        self._rows = rows
        self._values: list[Any] = []
        self._maker: Maker | None = None
        self._seen: dict[int, dict[str, Any]] = {}  # made one by one
        self._made: dict[None, list[dict[str, Any]]] = {}  # by the first of several threads

    def keep(self, block: Any) -> bool:
        """Whether a block can stay as it is."""
        maker = getattr(block, "maker", None)
        if maker is None or self._rows is not None or self._maker not in (None, maker):
            return False
        self._maker = maker
        self._values += block
        return True

    def add(self, rows: list[dict[str, Any]]) -> None:
        """What has come next."""
        if self._rows is None:
            self._rows = self.rows()
        self._rows += rows

    def __reduce__(self) -> Any:
        return Gathered, (self.rows(),)

    def __len__(self) -> int:
        return len(self._values if self._rows is None else self._rows)

    def rows(self) -> list[dict[str, Any]]:
        """All of them, made."""
        if self._rows is None:
            made = [] if self._maker is None else self._maker.rows(self._values)
            for at, row in self._seen.copy().items():  # other threads look, too
                made[at] = row
            self._rows = self._made.setdefault(None, made)
        return self._rows

    def row(self, at: int) -> dict[str, Any]:
        """One of them."""
        if self._rows is not None or self._maker is None:
            return self.rows()[at]
        (row,) = self._maker.rows((self._values[at],))
        return self._seen.setdefault(range(len(self._values))[at], row)

    def column(self, name: str) -> list[Any]:
        """The values of one output."""
        if self._rows is not None or self._seen or self._maker is None:
            return [row[name] for row in self.rows()]
        return self._maker.column(name, self._values)


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
        rows: list[dict[str, Any]] | Gathered,
        outputs: tuple[str, ...],
        failures: list[Failure],
        stats: RunStats,
        duration: float,
        status: str = "completed",
    ) -> None:
        self._gathered = rows if isinstance(rows, Gathered) else Gathered(rows)
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
            return self._gathered.column(at)
        return self._gathered.rows()[at] if isinstance(at, slice) else self._gathered.row(at)

    def __len__(self) -> int:
        return len(self._gathered)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._gathered.rows())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, MapResult):
            other = other._gathered.rows()
        return self._gathered.rows() == other if isinstance(other, list) else NotImplemented

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
            for at, row in enumerate(self[:_SHOWN])
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

"""What a run counts: per stage, per edge, in bounded memory.

Guarantees: percentiles come from a uniform sample of all observations (a reservoir), whatever
their number. Snapshots are plain frozen data.

Threads: counters belong to the thread of the run; a snapshot may be taken by another, and is then
true to within what happens meanwhile.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

from .._checks import printable
from .._offers import offered

__all__ = ["COLUMNS", "EdgeStats", "Reservoir", "RunStats", "StageStats"]

_SIZE = 1024
# Of a table of stages; ">": numbers.
COLUMNS = ("stage", "context", ">in", ">out", ">failed", ">busy s", ">p50 ms", ">p99 ms")


class Reservoir:
    """A uniform sample of a stream of numbers (Li's algorithm L)."""

    __slots__ = ("_next", "_random", "_w", "count", "sample", "size")

    def __init__(self, size: int = _SIZE, seed: int | None = None) -> None:
        self.size = size
        self.count = 0
        self.sample: list[float] = []
        self._random = random.Random(seed)
        self._w = 1.0
        self._next = size
        self._skip()

    def _skip(self) -> None:
        # 1 - random() is never 0, and log(1 - w) needs w < 1.
        self._w *= math.exp(math.log(1.0 - self._random.random()) / self.size)
        gap = math.log(1.0 - self._random.random()) / math.log1p(-min(self._w, 1 - 1e-12))
        self._next += int(gap) + 1

    def add(self, value: float) -> None:
        """Take one observation in."""
        self.count += 1
        if len(self.sample) < self.size:
            self.sample.append(value)
        elif self.count >= self._next:
            self.sample[self._random.randrange(self.size)] = value
            self._skip()

    def percentiles(self, *parts: float) -> tuple[float | None, ...]:
        """Those of the sample, each None if there is none."""
        values = sorted(self.sample)
        if not values:
            return (None,) * len(parts)
        last = len(values) - 1
        return tuple(values[min(last, int(part * len(values)))] for part in parts)


@dataclass(frozen=True)
class StageStats:
    """One stage's figures.

    Attributes:
        name: Its qualified name.
        context: Where it ran.
        workers: How many of it run at once, at most.
        in_: Items that arrived.
        out: Items that it emitted.
        failed: Items that failed for good.
        busy: Seconds spent in its function, over all workers (sampled where calls are short).
        waiting: Seconds that items waited before it, added up.
        p50, p90, p99: Seconds a call; None where none was measured.
        start_method: How its processes started: "fork", "zygote" or "spawn"; "" without any.
        start_reason: Why "auto" did not fork: which threads, module or library; else "".
    """

    name: str
    context: str
    workers: int
    in_: int
    out: int
    failed: int
    busy: float
    waiting: float
    p50: float | None
    p90: float | None
    p99: float | None
    start_method: str = ""
    start_reason: str = ""

    @property
    def success(self) -> float:
        """The part of the items that did not fail, 0 to 1."""
        return 1.0 if not self.in_ else 1.0 - self.failed / self.in_


@dataclass(frozen=True)
class EdgeStats:
    """What went from one stage to another; emitted = delivered + failed + dropped.

    Attributes:
        emitted: Items that the first handed over.
        delivered: Items that the second has worked on.
        failed: Items that failed in it.
        dropped: Items that nobody worked on, because the run was ended.
        beyond: How many items waited there beyond `queue_size` at once, at most. Only what closes a
            loop may do that: it cannot wait for its own stage.
    """

    emitted: int
    delivered: int
    failed: int
    dropped: int
    beyond: int = 0


@dataclass(frozen=True, repr=False)
class RunStats:
    """A run's figures.

    Attributes:
        stages: By qualified name.
        edges: By the names of both ends; what came from on a `feed` or by fm.to has edges too.
        duration: Seconds since the run began.
        sink_errors: How often a sink of events raised.
    """

    stages: dict[str, StageStats] = field(default_factory=dict)
    edges: dict[tuple[str, str], EdgeStats] = field(default_factory=dict)
    duration: float = 0.0
    sink_errors: int = 0

    def __getitem__(self, name: str) -> StageStats:
        return self.stages[name]

    @property
    def bottleneck(self) -> str | None:
        """The stage with the most busy time per worker; None if there was none."""
        busy = {name: s.busy / max(1, s.workers) for name, s in self.stages.items()}
        name = max(busy, key=lambda n: busy[n], default=None)
        return name if name is not None and busy[name] > 0 else None

    def rows(self) -> list[tuple[object, ...]]:
        """A row a stage, in the columns of `table`."""
        return [
            (
                *(stage.name, stage.context, stage.in_, stage.out, stage.failed),
                f"{stage.busy:.2f}",
                *("" if time is None else f"{time * 1e3:.3g}" for time in (stage.p50, stage.p99)),
            )
            for stage in self.stages.values()
        ]

    def table(self) -> str:
        """The figures as text, a line a stage, as ``forkmill run`` shows them."""
        head = tuple(column.lstrip(">") for column in COLUMNS)
        rows = [
            tuple(f"{cell:,}" if type(cell) is int else printable(str(cell)) for cell in row)
            for row in (head, *self.rows())
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column[0] == ">" else cell.ljust(width)
                for cell, width, column in zip(row, widths, COLUMNS, strict=True)
            ).rstrip()
            for row in rows
        )

    def __repr__(self) -> str:
        slow = "" if self.bottleneck is None else f", bottleneck {self.bottleneck[:40]!r}"
        return f"<RunStats: {len(self.stages):,} stages, {self.duration:.2f} s{slow}>"

    def _repr_html_(self) -> str:
        title = f"{self.duration:.2f} s; bottleneck: {self.bottleneck}"
        html: str = offered("html_of")(title, COLUMNS, self.rows())
        return html

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as for JSON."""
        return {
            "duration": self.duration,
            "bottleneck": self.bottleneck,
            "sink_errors": self.sink_errors,
            "stages": {n: {**vars(s), "success": s.success} for n, s in self.stages.items()},
            "edges": [{"from": a, "to": b, **vars(edge)} for (a, b), edge in self.edges.items()],
        }

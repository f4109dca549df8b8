"""What is known of one run that goes on, taken from its events.

    run_started ──▶ title, total, plan ┐
    progress    ──▶ done, failed, rows ├──▶ Board ──▶ a bar, a line, rows
    run_finished ─▶ status             ┘

Guarantees: memory does not depend on how long the run is.

Threads: one.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from .text import amount, clock, plain

__all__ = ["Board", "Row"]

_OVER_S = 10.0  # the rate is that of the last seconds
_MOST_ROWS = 200


class Row(NamedTuple):
    """A stage, or a node, of a run."""

    name: str
    where: str
    came: int
    out: int
    failed: int
    waiting: int


class Board:
    """One run, as those see it who watch.

    Args:
        total: What makes it full, if somebody knows; None: what its events say.
        title: What it is called; "": what its events say.

    Attributes:
        status: How it has ended; "" while it goes on.
        done: How many items are finished.
        total: Of how many; None: nobody knows.
        failed: How many have failed.
        workers: How many may work at once; 0: nobody says.
        deaths: How many workers have died.
        unit: What is counted.
        rows: Its stages.
    """

    def __init__(self, total: float | None = None, title: str = "") -> None:
        self.title = title
        self.status = ""
        self.done = 0.0
        self.total = total
        self.failed = self.workers = self.deaths = 0
        self.unit = "items"
        self.note = ""
        self.rows: list[Row] = []
        self._given = total is not None
        self._named = bool(title)
        self._began: float | None = None
        self._now = 0.0
        self._samples: deque[tuple[float, float]] = deque(maxlen=128)
        self._where: dict[str, str] = {}
        self._sources: dict[str, list[str]] = {}  # producer -> whom it feeds

    def take(self, event: dict[str, Any]) -> None:
        """Something has happened."""
        self._now = event["monotonic"]
        if self._began is None:
            self._began = self._now
        kind, data = event["kind"], event["data"]
        if not self._named:  # of a recording whose begin is missing the end tells the name
            self._named = kind in ("run_started", "run_finished")
            name = event["name"] if self._named else None
            self.title = plain(name or event["source"], 60)
        if kind == "progress":
            self._progress(data)
        elif kind == "run_started":
            self._started(data)
        elif kind == "run_finished":
            self.status = plain(data.get("status") or "over", 40)
        elif kind == "worker_died":
            self.deaths += 1

    def _started(self, data: dict[str, Any]) -> None:
        if not self._given:
            self.total = _number(data.get("total"))
        plan = data.get("plan")
        if not isinstance(plan, dict):
            return
        edges = [tuple(edge) for edge in plan.get("edges", ())]
        for node in plan.get("nodes", ()):
            name = node["name"]
            self._where[name] = plain(node.get("context") or "", 40)
            self.workers += node.get("workers") or 0
            if node.get("kind") == "producer":
                self._sources[name] = [to for start, to in edges if start == name]

    def _progress(self, data: dict[str, Any]) -> None:
        stages = data.get("stages")
        if isinstance(stages, dict):
            self._stages(stages)
        for name in ("done", "step"):
            if name in data:
                self.done = _number(data[name]) or 0
                self.unit = str(data.get("unit") or ("steps" if name == "step" else "items"))
                break
        if "failed" in data:
            self.failed = data["failed"] or 0
        if "workers" in data:
            self.workers = data["workers"] or 0
        if not self._given and data.get("total") is not None:
            self.total = _number(data["total"])
        if "records" in data:
            self.note = f"{data['records']:,} records"
        self._samples.append((self._now, self.done))
        while len(self._samples) > 2 and self._now - self._samples[0][0] > _OVER_S:
            self._samples.popleft()

    def _stages(self, stages: dict[str, Any]) -> None:
        self.rows = [
            Row(
                plain(name, 60),
                self._where.get(name, ""),
                *(counts.get(key, 0) for key in ("in", "out", "failed", "waiting")),
            )
            for name, counts in list(stages.items())[:_MOST_ROWS]
        ]
        self.failed = sum(counts.get("failed", 0) for counts in stages.values())
        fed = [self._sources[name] for name in self._sources if name in stages]
        if fed:  # what sources have given, but for what waits still in front of the next stages
            out = sum(stages[name]["out"] for name in self._sources if name in stages)
            first = [stages[to] for each in fed for to in each if to in stages]
            waits = max((one["waiting"] + one.get("under_way", 0) for one in first), default=0)
            self.done = max(self.done, out - waits)

    # ------------------------------------------------------------------ what is shown

    @property
    def seconds(self) -> float:
        """How long it has gone on."""
        return 0.0 if self._began is None else self._now - self._began

    @property
    def rate(self) -> float:
        """Items a second: of late, and of all when it is over."""
        if self.status:
            return self.done / self.seconds if self.seconds > 0 else 0.0
        if len(self._samples) < 2:
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return max(0.0, after - before) / (end - start) if end > start else 0.0

    @property
    def part(self) -> float | None:
        """How much is done, 0 to 1; None: nobody knows."""
        if not self.total or self.total <= 0:
            return None
        return min(1.0, self.done / self.total)

    @property
    def left(self) -> float | None:
        """Seconds to the end as it goes; None: nobody knows."""
        if self.status or self.part is None or self.rate <= 0 or self.total is None:
            return None
        return max(0.0, self.total - self.done) / self.rate

    def figures(self) -> list[str]:
        """What there is to say of it beside its title, the most important first."""
        done = amount(self.done, self.unit)
        of = f"/{amount(self.total, self.unit)}" if self.total is not None else ""
        one = self.done == 1 and self.total in (None, 1)
        unit = (
            "" if self.unit == "bytes" else f" {self.unit.removesuffix('s') if one else self.unit}"
        )
        found = [f"{done}{of}{unit}"]
        if self.status:
            found.insert(0, self.status)
        elif self.part is not None:
            found.append(f"{self.part:.0%}")
        if self.note:
            found.append(self.note)
        if self.failed:
            found.append(f"{self.failed:,} failed")
        if self.rate:
            found.append(f"{self._speed()}/s")
        found.append(clock(self.seconds) if not self.status else f"{self.seconds:.1f} s")
        if self.left is not None:
            found.append(f"{clock(self.left)} left")
        if self.workers and not self.status:
            found.append(f"{self.workers:,} worker{'s' if self.workers > 1 else ''}")
        if self.deaths:
            found.append(f"{self.deaths:,} died")
        return found

    def _speed(self) -> str:
        if self.unit == "bytes" or self.rate >= 10:
            return amount(self.rate, self.unit)
        return f"{self.rate:.2g}"

    def line(self) -> str:
        """All of it in a line."""
        return f"{self.title}: {', '.join(self.figures())}"


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

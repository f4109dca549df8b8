"""What a report needs to know of one run, taken from its events, in bounded memory.

    events ──▶ Record ──▶ stages, edges, bars of the timeline, histograms, failures, notes

Guarantees:
    * At most MOST_BARS calls are kept: the slowest ones, and a uniform sample of the rest; the
      histograms count all of those that were measured.
    * What is missing is counted: events that were lost, bars, failures and notes beyond the bounds.

Threads: one.
"""

from __future__ import annotations

import heapq
import itertools
import random
from array import array
from base64 import b64decode
from collections import Counter
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any

from .text import lines, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["BASE_S", "MOST_BARS", "Bar", "Group", "Record"]

MOST_BARS = 100_000
_MOST_SLOW = 20_000  # of these the slowest; the rest is a sample
_MOST_GROUPS = 100  # of failures
_MOST_SAMPLES = 3  # of one group
_MOST_NOTES = 300
_MOST_NAMES = 1000
BASE_S = 1e-6  # the first bucket of a histogram ends there; each next one is twice as wide

Bar = tuple[float, float, int, int, int]  # seconds, begin, stage, row, number of the call


@dataclass
class Group:
    """Failures that have the stage and the kind of error in common.

    Attributes:
        stage: Where.
        cause: The error's type.
        count: How many.
        samples: Some of them: {item, error, traceback, attempts}.
    """

    stage: str
    cause: str
    count: int = 0
    samples: list[dict[str, str]] = field(default_factory=list)


class Record:
    """One run, and those within it.

    Attributes:
        facts: What was told of the run itself: id, source, title, status, began, seconds.
        plan: {"nodes", "edges"}, or None.
        stats: As `RunStats.as_dict()`, or None.
        stages: By name, as it was told last; where there are no stats.
        cached: By stage, how many results a cache had.
        names: Those of stages, of which bars have the number.
        rows: The timeline's, from the top: who worked.
        seen: How many calls were measured.
        lost: How many events are missing.
        late: It had begun before anybody listened, or its begin was cut off.
        groups: Failures.
        ungrouped: How many failures are in no group.
        notes: What else happened: (monotonic, kind, name, text).
        unnoted: How many notes are not kept.
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.plan: dict[str, Any] | None = None
        self.stats: dict[str, Any] | None = None
        self.stages: dict[str, dict[str, Any]] = {}
        self.cached: Counter[str] = Counter()
        self.names: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.began = 0.0
        self.late = False
        self.seen = self.lost = self.ungrouped = self.unnoted = 0
        self.groups: dict[tuple[str, str], Group] = {}
        self.notes: list[tuple[float, str, str, str]] = []
        self._buckets: dict[int, Counter[int]] = {}
        # All of them, until they are too many; then a heap of the slowest, the least slow first.
        self._slow: list[Bar] = []
        self._sample: list[Bar] | None = None  # and one of the rest
        self._others = 0  # how many came by for the sample
        self._random = random.Random(0)
        self._runs: set[str] = set()

    def take(self, event: dict[str, Any]) -> bool:
        """Something has happened; whether it is of this run."""
        run = event["run"]
        if event["kind"] == "gap":
            self.lost += event["data"].get("lost") or 0
            return False
        if not self._runs:
            self._first(event)
        elif run not in self._runs:
            if event["parent"] not in self._runs:
                return False
            self._runs.add(run)
        handler = _HANDLERS.get(event["kind"])
        if handler is not None:
            handler(self, event)
        elif event["kind"].endswith(("_finished", "_failed")) and event["seconds"] is not None:
            self._span(event)
        return True

    def _first(self, event: dict[str, Any]) -> None:
        self._runs.add(event["run"])
        self.began = event["monotonic"]
        self.late = event["kind"] != "run_started" or bool(event["data"].get("late"))
        self.facts = {
            "run": event["run"],
            "source": plain(event["source"]),
            "title": plain(event["source"]),
            "began": event["time"],
            "status": "",
            "seconds": 0.0,
        }

    def _own(self, event: dict[str, Any]) -> bool:
        return bool(event["run"] == self.facts["run"])

    # ------------------------------------------------------------------ kinds of events

    def _started(self, event: dict[str, Any]) -> None:
        plan = event["data"].get("plan")
        if self._own(event):
            self._called(event)
            if isinstance(plan, dict):
                self.plan = plan

    def _called(self, event: dict[str, Any]) -> None:
        if event["name"]:
            self.facts["title"] = plain(event["name"])

    def _finished(self, event: dict[str, Any]) -> None:
        if not self._own(event):
            return
        self._called(event)  # its begin may be missing in a recording
        data = event["data"]
        self.facts["status"] = plain(data.get("status") or "over")
        self.facts["seconds"] = event["seconds"] or event["monotonic"] - self.began
        stats = data.get("stats")
        self.stats = stats if isinstance(stats, dict) else None

    def _progress(self, event: dict[str, Any]) -> None:
        if not self._own(event):
            return
        data = event["data"]
        stages = data.get("stages")
        if isinstance(stages, dict):
            self.stages.update(itertools.islice(stages.items(), _MOST_NAMES))
        for name in ("done", "total", "failed", "step", "workers"):
            if data.get(name) is not None:
                self.facts[name] = data[name]
        self.facts["seconds"] = event["monotonic"] - self.began

    def _items(self, event: dict[str, Any]) -> None:
        packed = event["data"]["packed"]
        if isinstance(packed, str):  # from a file
            packed = b64decode(packed)
        values = array("d", packed)
        stage, row = self._stage(event["name"]), self._row(event["worker"], event["name"])
        first = event["data"]["first"]
        numbers = [first + int(number) for number in values[::3]]
        self._bars(values[2::3], values[1::3], stage, row, numbers)

    def _cached(self, event: dict[str, Any]) -> None:
        name = plain(event["name"] or "")
        if name in self.cached or len(self.cached) < _MOST_NAMES:
            self.cached[name] += event["data"].get("count", 1)

    def _span(self, event: dict[str, Any]) -> None:
        seconds = event["seconds"]
        if event["kind"] not in ("stage_finished", "step_finished", "checkpoint"):
            stage, row = self._stage(event["name"]), self._row(event["worker"], event["name"])
            begin = event["monotonic"] - seconds
            self._bars((seconds,), (begin,), stage, row, (self.seen,))
        if event["kind"] == "task_failed":
            self._failed(event)

    def _failed(self, event: dict[str, Any]) -> None:
        data = event["data"]
        error = str(data.get("error") or "")
        self.fail(
            event["name"] or "", error, event["item"], data.get("traceback") or "",
            data.get("attempts") or event["attempt"] or 1,
        )  # fmt: skip

    def fail(self, stage: str, error: str, item: Any, traceback: str, attempts: int) -> None:
        """An item has failed."""
        key = plain(stage), _cause(error)
        group = self.groups.get(key)
        if group is None:
            if len(self.groups) >= _MOST_GROUPS:
                self.ungrouped += 1
                return
            group = self.groups[key] = Group(*key)
        group.count += 1
        if len(group.samples) < _MOST_SAMPLES:
            shown = {"error": plain(error, 1000), "attempts": str(attempts)}
            shown["item"] = "" if item is None else plain(item)
            group.samples.append({**shown, "traceback": lines(str(traceback))})

    def _node(self, event: dict[str, Any]) -> None:
        """A node of a graph has begun, or ended."""
        if event["seconds"] is not None:
            self._span(event)
        name = event["name"] or ""
        counts = self.stages.get(name)
        if counts is None:
            if len(self.stages) >= _MOST_NAMES:
                return
            counts = self.stages[name] = {"in": 0, "out": 0, "failed": 0}
        if event["kind"] == "node_started":
            counts["in"] += "index" in event["data"]
        else:
            failed = event["kind"] == "node_failed" or event["data"].get("status") == "failed"
            counts["failed" if failed else "out"] += "index" in event["data"]

    def _note(self, event: dict[str, Any]) -> None:
        if len(self.notes) >= _MOST_NOTES:
            self.unnoted += 1
            return
        data = event["data"]
        told = data.get("error") or data.get("cause") or data.get("questions") or ""
        text = plain(told) if event["worker"] is None else f"pid {event['worker']} {plain(told)}"
        name = plain(event["name"] or "")
        self.notes.append((event["monotonic"], event["kind"], name, text))

    # ------------------------------------------------------------------ calls

    def _stage(self, name: str | None) -> int:
        return self.names.setdefault(plain(name or ""), len(self.names))

    def _row(self, worker: Any, name: str | None) -> int:
        label = plain(name or "") if worker is None else f"pid {plain(worker)}"
        if label not in self.rows and len(self.rows) >= _MOST_NAMES:
            label = "others"
        return self.rows.setdefault(label, len(self.rows))

    def _bars(
        self,
        seconds: Sequence[float],
        begins: Sequence[float],
        stage: int,
        row: int,
        numbers: Sequence[int],
    ) -> None:
        """Calls: what is done for each is done in C, as long as all are kept."""
        self.seen += len(numbers)
        found = [int(each / BASE_S).bit_length() for each in seconds]
        self._buckets.setdefault(stage, Counter()).update(found)
        bars: Iterator[Bar] = zip(seconds, begins, repeat(stage), repeat(row), numbers)
        if self._sample is None:
            self._slow.extend(bars)
            if len(self._slow) <= MOST_BARS:
                return
            bars, self._slow = iter(self._slow), []
            self._sample = []
        for bar in bars:
            self._choose(bar, self._sample)

    def _choose(self, bar: Bar, sample: list[Bar]) -> None:
        """One of more calls than are kept."""
        if len(self._slow) < _MOST_SLOW:
            heapq.heappush(self._slow, bar)
            return
        if bar > self._slow[0]:
            bar = heapq.heapreplace(self._slow, bar)
        self._others += 1
        room = MOST_BARS - _MOST_SLOW
        if len(sample) < room:
            sample.append(bar)
        elif (at := self._random.randrange(self._others)) < room:
            sample[at] = bar

    def bars(self) -> list[Bar]:
        """The calls that are kept, by their begin."""
        return sorted([*self._slow, *(self._sample or ())], key=lambda bar: bar[1])

    def slowest(self, number: int) -> list[Bar]:
        """So many of the slowest calls."""
        return heapq.nlargest(number, self._slow)

    def histograms(self) -> dict[str, list[int]]:
        """By stage: how many calls took up to BASE_S, 2, 4, ... times that."""
        names = list(self.names)
        return {
            names[stage]: [counts[i] for i in range(max(counts) + 1)]
            for stage, counts in self._buckets.items()
            if counts  # whose call raised has none
        }


_HANDLERS = {
    "run_started": Record._started,
    "run_finished": Record._finished,
    "progress": Record._progress,
    "items": Record._items,
    "cached": Record._cached,
    "item_failed": Record._failed,
    **dict.fromkeys(("node_started", "node_finished", "node_failed"), Record._node),
    **dict.fromkeys(
        ("retry", "worker_died", "interrupt", "resumed", "barrier", "log"), Record._note
    ),
}


def _cause(error: str) -> str:
    """The type in an error's text: of "ValueError: no" and of "ValueError('no')"."""
    head = error.replace("(", ":", 1).partition(":")[0].strip()
    return plain(head if head.replace(".", "").isidentifier() else "error")

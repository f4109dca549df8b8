"""What is known of all runs of a process, from their events: what a dashboard shows.

    events ──▶ Scene ──▶ facts(): plain data, as for JSON

Guarantees:
    * Memory is bounded: so many runs, stages, workers, failures and lines, the latest ones; what
      is left out is counted.
    * All text in it is text that can be shown anywhere (`text.plain`).

Threads: any; a lock, which is held for microseconds.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from ..board import Board
from ..text import lines, plain

__all__ = ["Scene"]

_MOST_RUNS = 50
_MOST_STAGES = 200
_MOST_WORKERS = 500
_MOST_FAILURES = 200
_MOST_LINES = 200
_MOST_TRACE = 4000  # characters of a traceback
_SAMPLES = 24  # of how much a stage has done, half a second between two
_SAMPLE_S = 0.5
_LOST = ("worker_died", "retry", "interrupt", "resumed")


class _Run:
    """One run."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.id: str = event["run"]
        self.parent: str | None = event["parent"]
        self.source = plain(event["source"], 20)
        self.board = Board()
        self.nodes: dict[str, dict[str, Any]] = {}
        self.edges: list[tuple[str, str]] = []
        self.stages: dict[str, dict[str, Any]] = {}
        self.bottleneck: str | None = None
        self._samples: deque[tuple[float, dict[str, float]]] = deque(maxlen=_SAMPLES)

    def take(self, event: dict[str, Any]) -> None:
        """Something has happened in it."""
        kind, data = event["kind"], event["data"]
        self.board.take(event)
        if kind == "run_started":
            self._plan(data.get("plan"))
        elif kind == "progress":
            self._progress(event["monotonic"], data.get("stages"))
        elif kind == "run_finished":
            self._figures(data.get("stats"))
        elif kind in ("stage_finished", "node_finished") and "in" in data:
            self._stage(event["name"], data)
        elif kind in ("task_started", "task_finished", "task_failed"):
            self._task(kind, event["name"])

    def _plan(self, plan: Any) -> None:
        if not isinstance(plan, dict):
            return
        for node in list(plan.get("nodes", ()))[:_MOST_STAGES]:
            self.nodes[node["name"]] = node
            self.stages.setdefault(node["name"], {})
        self.edges = [(start, end) for start, end in plan.get("edges", ())][: 4 * _MOST_STAGES]

    def _progress(self, now: float, stages: Any) -> None:
        if not isinstance(stages, dict):
            return
        for name, counts in list(stages.items())[:_MOST_STAGES]:
            self._stage(name, counts)
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, {name: self._done(name) for name in self.stages}))

    def _done(self, name: str) -> int:
        """What has come out of a stage; of one that nothing ever comes out of, what it took."""
        counts = self.stages[name]
        done: int = counts.get("out", 0)
        ends = not done and self.nodes and all(start != name for start, _ in self.edges)
        return counts.get("in", 0) if ends else done

    def _stage(self, name: str | None, counts: dict[str, Any]) -> None:
        if name is not None and (name in self.stages or len(self.stages) < _MOST_STAGES):
            self.stages.setdefault(name, {}).update(counts)

    def _task(self, kind: str, name: str | None) -> None:
        """Of a state graph, which tells how far it is by its steps alone."""
        key = {"task_started": "in", "task_finished": "out", "task_failed": "failed"}[kind]
        self._stage(name, {key: self.stages.get(name or "", {}).get(key, 0) + 1})

    def _figures(self, stats: Any) -> None:
        if not isinstance(stats, dict):
            return
        self.bottleneck = stats.get("bottleneck")
        for name, stage in stats.get("stages", {}).items():
            self._stage(name, {**stage, "in": stage.get("in_", 0), "waiting": 0, "under_way": 0})

    def rate(self, name: str) -> float | None:
        """What a stage does in a second: of late; and on the whole when the run is over."""
        if self.board.status:
            seconds = self.board.seconds
            return self._done(name) / seconds if seconds > 0 else None
        if len(self._samples) < 2:
            return None
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        done = after.get(name, 0) - before.get(name, 0)
        return max(0.0, done / (end - start)) if end > start else None

    def slowest(self) -> str | None:
        """The stage that the others wait for: the one with the most busy time a worker."""
        if self.bottleneck is not None:
            return self.bottleneck
        busy = {
            name: (figures.get("busy") or 0.0) / max(1, self._workers(name))
            for name, figures in self.stages.items()
        }
        name = max(busy, key=lambda each: busy[each], default=None)
        return name if name is not None and busy[name] > 0 else None

    def _workers(self, name: str) -> int:
        return self.stages[name].get("workers") or self.nodes.get(name, {}).get("workers") or 0

    def facts(self) -> dict[str, Any]:
        """All of it."""
        slow = self.slowest()
        number = {name: i for i, name in enumerate(self.stages)}
        board = self.board
        return {
            "id": self.id,
            "parent": self.parent,
            "source": self.source,
            "title": board.title,
            "status": board.status,
            "seconds": board.seconds,
            "part": board.part,
            "failed": board.failed,
            "figures": board.figures(),
            "stages": [self._row(name, name == slow) for name in self.stages],
            "edges": [[number[a], number[b]] for a, b in self.edges if {a, b} <= number.keys()],
        }

    def _row(self, name: str, slow: bool) -> dict[str, Any]:
        node, figures = self.nodes.get(name, {}), self.stages[name]
        return {
            "name": plain(name, 80),
            "context": plain(figures.get("context") or node.get("context") or "", 60),
            "in": figures.get("in", 0),
            "out": figures.get("out", 0),
            "failed": figures.get("failed", 0),
            "queue": figures.get("waiting", 0) + figures.get("under_way", 0),
            "room": node.get("queue"),
            "workers": self._workers(name),
            "busy": figures.get("busy"),
            "p50": figures.get("p50"),
            "p99": figures.get("p99"),
            "rate": self.rate(name),
            "slow": slow,
        }


class Scene:
    """All runs that are told of.

    Attributes:
        events: How many events there were.
        lost: How many are missing.
    """

    def __init__(self) -> None:
        self.events = self.lost = 0
        self._runs: dict[str, _Run] = {}
        self._begun = 0  # runs, those that are not kept too
        self._workers: dict[int, dict[str, Any]] = {}
        self._failures: deque[dict[str, Any]] = deque(maxlen=_MOST_FAILURES)
        self._lines: deque[dict[str, Any]] = deque(maxlen=_MOST_LINES)
        self._failed = 0
        self._lock = threading.Lock()

    def take(self, event: dict[str, Any]) -> None:
        """Something has happened."""
        with self._lock:
            self.events += 1
            kind = event["kind"]
            if kind == "gap":
                self.lost += event["data"].get("lost") or 0
            elif kind.startswith("worker_") or kind == "items":
                self._worker(event)
            elif kind in ("item_failed", "task_failed"):
                self._fail(event)
            if kind in ("log", "said", *_LOST):
                self._line(event)
            if event["source"] not in ("pool", "stream", "task") and event["run"] is not None:
                run = self._run(event)
                if run is not None:
                    run.take(event)

    def _run(self, event: dict[str, Any]) -> _Run | None:
        found = self._runs.get(event["run"])
        self._begun += event["kind"] == "run_started"
        if found is not None or event["kind"] not in ("run_started", "progress"):
            return found
        if len(self._runs) >= _MOST_RUNS:
            over = next((run for run in self._runs.values() if run.board.status), None)
            if over is None:
                return None
            del self._runs[over.id]
        made = self._runs[event["run"]] = _Run(event)
        return made

    def _worker(self, event: dict[str, Any]) -> None:
        pid, kind = event["worker"], event["kind"]
        if not isinstance(pid, int):
            return
        if kind in ("worker_died", "worker_left"):
            self._workers.pop(pid, None)
        elif pid not in self._workers and len(self._workers) < _MOST_WORKERS:
            self._workers[pid] = {
                "pid": pid,
                "state": "",
                "what": plain(event["name"] or "", 60),
                "since": event["monotonic"],
                "tasks": 0,
            }
        if kind == "items" and pid in self._workers:
            self._workers[pid]["tasks"] += event["data"].get("count", 0)

    def _fail(self, event: dict[str, Any]) -> None:
        data = event["data"]
        self._failed += 1
        traceback = data.get("traceback")
        self._failures.append(
            {
                "number": self._failed,
                "time": event["time"],
                "run": event["run"],
                "stage": plain(event["name"] or "", 80),
                "item": "" if event["item"] is None else plain(event["item"]),
                "error": plain(data.get("error") or ""),
                "attempts": data.get("attempts") or event["attempt"] or 1,
                "traceback": lines(str(traceback), _MOST_TRACE) if traceback else "",
            }
        )

    def _line(self, event: dict[str, Any]) -> None:
        data = event["data"]
        if event["kind"] == "log":
            level, text = data.get("level_name") or "", data.get("message") or ""
        elif event["kind"] == "said":
            level, text = "said", data.get("value")
        else:
            level = event["kind"].removeprefix("worker_")
            text = data.get("error") or data.get("cause") or data.get("questions") or ""
        self._lines.append(
            {
                "time": event["time"],
                "level": plain(level, 20),
                "name": plain(event["name"] or "", 60),
                "text": plain(text),
                "worker": event["worker"],
                "item": "" if event["item"] is None else plain(event["item"], 80),
            }
        )

    def failure(self, number: int) -> dict[str, Any] | None:
        """One failure, with its traceback; None: it is not kept any more."""
        with self._lock:
            found = [each for each in self._failures if each["number"] == number]
        return found[0] if found else None

    def facts(self, most: int = 50) -> dict[str, Any]:
        """All of it as plain data; so many failures and lines, the last ones first."""
        with self._lock:
            return {
                "runs": [run.facts() for run in self._runs.values()],
                "more_runs": max(0, self._begun - len(self._runs)),
                "workers": [dict(worker) for worker in self._workers.values()],
                "failures": [
                    {key: value for key, value in each.items() if key != "traceback"}
                    for each in list(self._failures)[: -most - 1 : -1]
                ],
                "failed": self._failed,
                "lines": list(self._lines)[: -most - 1 : -1],
                "events": self.events,
                "lost": self.lost,
            }

"""A recording of a run for Perfetto (ui.perfetto.dev) and chrome://tracing.

    items, *_finished ──▶ "X" slices, a row a worker
    progress          ──▶ "C" counters, a stage each
    everything else   ──▶ "i" instants

Guarantees: each event is written as it comes, so memory does not depend on their number; both
viewers read a file that ends anywhere, so a program that is killed leaves what there was.

Threads: that of events; `close` any, when no event comes any more.
"""

from __future__ import annotations

import json
import os
from array import array
from base64 import b64decode
from typing import Any

from .._late import unbroken
from .report import check_path
from .text import plain

__all__ = ["chrome_trace"]

_QUIET = frozenset({"stage_started", "node_started", "step_started", "task_started", "said"})


class chrome_trace:
    """A sink that writes a file for Perfetto or chrome://tracing: who worked on what, and when. ::

        pipeline.run(sinks=[fm.chrome_trace("run.trace.json")])

    Args:
        path: The file; what is in it is replaced. Empty until the first event.

    Raises:
        TypeError: It is no path.
        OSError: It cannot be written there.
    """

    detail = "items"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_path(path)
        self._file: Any = open(self.path, "w", encoding="utf-8")  # noqa: SIM115
        self._begun = False
        self._tracks: dict[tuple[int, str], int] = {}
        self._pid = os.getpid()

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one."""
        self.batch([event])

    def batch(self, events: list[dict[str, Any]]) -> None:
        """Write some.

        Raises:
            OSError: The disk is full, or so.
            ValueError: It was closed.
        """
        slices = [piece for event in events for piece in self._pieces(event)]
        if not slices:
            return
        text = ",\n".join(json.dumps(piece, separators=(",", ":")) for piece in slices)
        self._file.write(f"{',' if self._begun else '['}\n{text}")
        self._begun = True
        self._file.flush()

    def close(self) -> None:
        """Write nothing more. Idempotent."""
        if not self._file.closed:
            self._file.write("\n]\n" if self._begun else "[]\n")
            self._file.close()

    @unbroken
    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def _pieces(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        kind, name, data = event["kind"], plain(event["name"] or event["source"]), event["data"]
        if kind == "items":
            packed = data["packed"]
            values = array("d", b64decode(packed) if isinstance(packed, str) else packed)
            made: list[dict[str, Any]] = []
            where = self._track(event["worker"], name, made)
            for at in range(0, len(values) - 2, 3):
                number = {"call": data["first"] + int(values[at])}
                made.append(_slice(name, where, values[at + 1], values[at + 2], number))
            return made
        if kind == "progress":
            return self._counters(event)
        if kind.endswith(("_finished", "_failed")) and event["seconds"] is not None:
            made = []
            where = self._track(event["worker"], name, made)
            begin = event["monotonic"] - event["seconds"]
            made.append(_slice(name, where, begin, event["seconds"], _arguments(event)))
            return made
        if kind in _QUIET:
            return []
        head = {"name": f"{kind} {name}", "ph": "i", "s": "p", "pid": self._pid, "tid": self._pid}
        return [{**head, "ts": event["monotonic"] * 1e6, "args": _arguments(event)}]

    def _counters(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        head = {"ph": "C", "pid": self._pid, "ts": event["monotonic"] * 1e6}
        stages = event["data"].get("stages") or {}
        return [
            {**head, "name": plain(name), "args": {key: counts[key] for key in ("out", "waiting")}}
            for name, counts in stages.items()
            if "out" in counts and "waiting" in counts
        ]

    def _track(self, worker: Any, name: str, made: list[dict[str, Any]]) -> tuple[int, int]:
        """The row of a worker, or of what has none."""
        pid = worker if isinstance(worker, int) and worker > 0 else self._pid
        key = pid, "" if pid != self._pid else name
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = pid if pid != self._pid else len(self._tracks) + 1
            label = f"worker {pid}" if pid != self._pid else name
            head = {"ph": "M", "pid": pid, "tid": track}
            made.append({**head, "name": "thread_name", "args": {"name": label}})
        return pid, track


def _slice(
    name: str, where: tuple[int, int], begin: float, seconds: float, arguments: dict[str, Any]
) -> dict[str, Any]:
    pid, track = where
    head = {"name": name, "ph": "X", "pid": pid, "tid": track}
    return {**head, "ts": begin * 1e6, "dur": seconds * 1e6, "args": arguments}


def _arguments(event: dict[str, Any]) -> dict[str, Any]:
    found = {"item": event["item"], "attempt": event["attempt"], "run": event["run"]}
    for key in ("error", "status", "step", "cause"):
        found[key] = event["data"].get(key)
    return {key: plain(value) for key, value in found.items() if value is not None}

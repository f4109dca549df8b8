"""What the system knows of processes: memory, and how much of a CPU they take.

Read by the dashboard, so that it costs the program nothing.

Threads: one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Figures", "Procs"]

_EVERY_S = 1.0  # between two looks


class Figures(NamedTuple):
    """A process's.

    Attributes:
        rss: Resident memory, bytes.
        cpu: The part of one CPU that it took of late; None: nobody knows yet.
    """

    rss: int
    cpu: float | None


class Procs:
    """Looks at processes once a second, however often it is asked."""

    def __init__(self) -> None:
        self._at = 0.0
        self._before: dict[int, float] = {}  # seconds of CPU, at the last look
        self._found: dict[int, Figures] = {}

    @property
    def known(self) -> dict[int, Figures]:
        """What was found last."""
        return self._found

    def look(self, pids: Iterable[int]) -> dict[int, Figures]:
        """Their figures; those that are gone have none."""
        now = time.monotonic()
        passed = now - self._at
        if self._at and passed < _EVERY_S:
            return self._found
        read = _of_proc(pids) if sys.platform == "linux" else _of_ps(pids)
        self._found = {}
        for pid, (rss, used) in read.items():
            before = self._before.get(pid)
            cpu = max(0.0, used - before) / passed if before is not None else None
            self._found[pid] = Figures(rss, cpu)
        self._before = {pid: used for pid, (_, used) in read.items()}
        self._at = now
        return self._found


def _of_proc(pids: Iterable[int]) -> dict[int, tuple[int, float]]:
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    found = {}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        # proc(5): after the command the state is field 3; utime 14, stime 15, rss 24
        found[pid] = int(fields[21]) * page, (int(fields[11]) + int(fields[12])) / tick
    return found


def _of_ps(pids: Iterable[int]) -> dict[int, tuple[int, float]]:
    wanted = ",".join(map(str, pids))
    if not wanted:
        return {}
    command = ["ps", "-o", "pid=,rss=,time=", "-p", wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2.0)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = {}
    for line in done.stdout.splitlines():
        pid, rss, used = line.split(None, 2)
        found[int(pid)] = int(rss) << 10, _seconds(used.strip())
    return found


def _seconds(text: str) -> float:
    """Of "1:02.33", "1:02:03" or "2-01:02:03"."""
    days, _, clock = text.rpartition("-")
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total + 86400 * int(days or 0)

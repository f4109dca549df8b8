"""How often does a lone round trip sleep and wake, and how many system calls does it take?

Two wakeups are the least: the worker's for the call and the caller's for the result. Voluntary
context switches come from /proc/*/status of this process and all below it; system calls, futex
calls apart, from `strace -c -f`, as the difference between a long and a short run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import work
from .harness import LESS, Bench, Case, Sample, Skip, Target, WrongResult, check
from .peers import BY_NAME, Peer

TARGETS = (
    Target("a lone round trip's cost", "switches", 2.1, at_most=True, label="context switches"),
    Target("a lone round trip's cost", "futex", 0.01, at_most=True, label="futex calls"),
)


def run(bench: Bench) -> None:
    """Ask."""
    if not os.path.exists("/proc/self/task"):
        raise Skip("this platform has no /proc")
    count = bench.size(2000, 20)
    why = _no_strace()
    bench.plan(3 if why is None else 1)

    def take(pool: Peer) -> float:
        trips = max(1, count // pool.per_call)
        before = _switches()
        _trips(pool, trips)
        return (_switches() - before) / trips

    title = "voluntary context switches a round trip, all processes and threads"
    bench.measure(Case("switches", title, "switches", LESS, bench.pools(take), most_rounds=5))
    if why is not None:
        bench.note(f"system calls were not counted: {why}")
        return
    traced = bench.size(2000, 20)  # a tracer makes each some 20 times slower, and counts exactly
    counts = {
        peer.name: _Strace(peer.name, bench.workers, max(1, traced // peer.per_call))
        for peer in bench.peers
    }
    for key, calls in (("syscalls", "all"), ("futex", "futex")):
        samples: dict[str, Sample] = {
            name: partial(trace.per_trip, calls) for name, trace in counts.items()
        }
        title = f"system calls a round trip, {calls}"
        bench.measure(Case(key, title, "calls", LESS, samples, most_rounds=1))


def _trips(pool: Peer, count: int) -> None:
    for i in range(count):
        check(pool.call(work.increment, i), i + 1)


# ---------------------------------------------------------------------- context switches


def _switches() -> int:
    """Voluntary context switches so far of all threads of this process and of all below it."""
    total = 0
    for pid in _family():
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                for line in status.read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches"):
                        total += int(line.split()[1])
    return total


def _family() -> set[int]:
    parents = dict(_parents())
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", name, "stat").read_text(errors="replace")
                yield int(name), int(stat.rpartition(")")[2].split()[1])


# ---------------------------------------------------------------------- system calls


class _Strace:
    """Counts of a peer's system calls, taken when first asked for."""

    def __init__(self, name: str, workers: int, count: int) -> None:
        self._name = name
        self._workers = workers
        self._count = count
        self._counts: dict[str, float] | None = None

    def per_trip(self, call: str) -> float:
        """Calls of one kind, or "all", a round trip."""
        if self._counts is None:
            short = _trace(self._name, self._workers, 0)
            long = _trace(self._name, self._workers, self._count)
            # What polls makes both runs vary: less than nothing is nothing.
            self._counts = {
                name: max(0.0, (long[name] - short.get(name, 0)) / self._count) for name in long
            }
        return self._counts.get(call, 0.0)


def _no_strace() -> str | None:
    """Why strace cannot be used here; None if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-f", "-c", "-o", os.devnull, sys.executable, "-S", "-c", ""],
        capture_output=True,
        text=True,
    )
    return None if tried.returncode == 0 else f"strace failed: {tried.stderr.strip()[:200]}"


def _trace(name: str, workers: int, count: int) -> dict[str, int]:
    """System calls, by name and "all", of an interpreter that makes so many round trips."""
    with tempfile.NamedTemporaryFile("r", prefix="forkmill-strace-") as table:
        command = ["strace", "-f", "-c", "-o", table.name, sys.executable, "-m", __name__]
        traced = subprocess.run(
            [*command, name, str(workers), str(count)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        if traced.returncode:
            raise WrongResult(f"the traced run failed: {traced.stderr.strip()[-500:]}")
        return _parse(table.read())


def _parse(table: str) -> dict[str, int]:
    """strace -c's table: columns % time, seconds, usecs/call, calls, [errors,] syscall."""
    counts: dict[str, int] = {}
    for line in table.splitlines():
        columns = line.split()
        if len(columns) >= 5 and columns[3].isdigit() and columns[-1] != "total":
            counts[columns[-1]] = int(columns[3])
    counts["all"] = sum(counts.values())
    return counts


def _main(name: str, workers: str, count: str) -> None:
    with BY_NAME[name](int(workers)) as pool:
        check(pool.calls(work.increment, range(16)), list(range(1, 17)))
        _trips(pool, int(count))


if __name__ == "__main__":
    _main(*sys.argv[1:])

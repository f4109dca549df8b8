"""What a pool says of itself: `PoolStats` and `WorkerInfo`, plain frozen data."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from . import _native

__all__ = ["PoolStats", "WorkerInfo", "pool_stats", "worker_info"]

_STATES = {
    _native.POOL_OPEN: "open",
    _native.POOL_DRAINING: "draining",
    _native.POOL_STOPPING: "stopping",
    _native.POOL_CLOSED: "closed",
    _native.POOL_BROKEN: "broken",
}


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counters of a pool since it was made; ``accepted == outcomes + backlog + in_flight``.

    Attributes:
        state: "open", "draining", "stopping", "closed", "broken", or "inline".
        workers: Places for workers.
        alive: Workers alive now.
        wanted: Workers that there shall be now: between `min_workers` and `max_workers`.
        waiting_threads: Threads that wait for outcomes now.
        accepted: Tasks accepted.
        outcomes: Tasks that have their outcome.
        backlog: Tasks accepted and not yet sent to a worker.
        in_flight: Tasks sent, without outcome yet.
        succeeded: Outcomes that are values.
        failed: Outcomes that are the task's own exception.
        cancelled: Outcomes that are cancellations.
        died: Outcomes that are deaths of workers, timeouts included.
        timeouts: Deaths because of a task's timeout.
        retried: Further tries.
        requeued: Tasks sent again because their worker was gone before it started them.
        recalled: Tasks taken back from a busy worker's queue.
        deaths: Workers that died, of anything.
        restarts: Workers that took a dead one's place.
        recycled: Workers that left as `max_tasks_per_child` or `max_rss` says.
        killed: Workers killed for a timeout or `Future.kill()`.
        grown: Workers that were started because tasks waited.
        retired: Workers that left because they had nothing to do.
        trouble: Times the zygote could not start a worker and tried again.
        frames_sent: Messages to workers.
        bytes_sent: Bytes to workers.
        bytes_received: Bytes from workers.
        lead_turns: Rounds of I/O by waiting threads.
        pump_turns: Rounds of I/O by the pool's own C thread.
        kicks: Times one thread had to wake another for the I/O.
        parks: Times a thread waited while another did the I/O.
    """

    state: str
    workers: int
    alive: int = 0
    wanted: int = 0
    waiting_threads: int = 0
    accepted: int = 0
    outcomes: int = 0
    backlog: int = 0
    in_flight: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    died: int = 0
    timeouts: int = 0
    retried: int = 0
    requeued: int = 0
    recalled: int = 0
    deaths: int = 0
    restarts: int = 0
    recycled: int = 0
    killed: int = 0
    grown: int = 0
    retired: int = 0
    trouble: int = 0
    frames_sent: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    lead_turns: int = 0
    pump_turns: int = 0
    kicks: int = 0
    parks: int = 0


_PAGE = os.sysconf("SC_PAGE_SIZE")
_COUNTERS = tuple(field.name for field in fields(PoolStats) if field.name != "state")


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker, as it was when `workers()` looked.

    Attributes:
        pid: Its process id.
        state: "starting", "ready", "doomed" (to be killed), "leaving" (it had nothing to do).
        tasks: Tasks it has done.
        rss: Resident memory, bytes; where the system does not tell (macOS), what the worker itself
            said last, which it does with `max_rss` only.
        age: Seconds since its birth.
        slot: Its place in the pool, 0 and up.
        generation: How many workers had this place before it.
        in_flight: Tasks it was sent and has not done.
        busy: Seconds it spent on tasks.
        running: Seconds its task has been running, where tasks have a timeout; else 0.
    """

    pid: int
    state: str
    tasks: int
    rss: int
    age: float
    slot: int
    generation: int
    in_flight: int
    busy: float
    running: float


def pool_stats(stats: dict[str, int]) -> PoolStats:
    """The native pool's counters, `state` as a word."""
    counters = {name: stats[name] for name in _COUNTERS}
    return PoolStats(state=_STATES.get(stats["state"], "unknown"), **counters)


def _resident(pid: int) -> int:
    """Resident memory of a process, bytes; 0 where it is not to be known (proc_pid_statm(5))."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def worker_info(info: dict[str, Any], now: int) -> WorkerInfo:
    """One of the native pool's workers; now is in nanoseconds of the monotonic clock."""
    return WorkerInfo(
        pid=info["pid"],
        state=info["state"],
        tasks=info["tasks"],
        rss=_resident(info["pid"]) or info["rss_kb"] << 10,
        age=max(0, now - info["born_ns"]) / 1e9,
        slot=info["slot"],
        generation=max(info["generation"] - 1, 0),
        in_flight=info["in_flight"],
        busy=info["busy_ns"] / 1e9,
        running=info["running_ns"] / 1e9,
    )

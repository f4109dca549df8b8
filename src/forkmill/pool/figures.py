"""What a pool says of itself: `PoolStats` and `WorkerInfo`, plain frozen data."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .. import _native, errors

if TYPE_CHECKING:
    from .core import Core

__all__ = ["PoolStats", "WorkerInfo", "WorkerProcess", "pool_stats", "worker_info"]

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
        start_method: How they start: "fork", "zygote" or "spawn"; "" in an inline pool.
        start_reason: Why "auto" did not fork: which threads, module or library; else "".
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
        killed: Workers killed for a timeout, `memory_limit` or `Future.kill()`.
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
        deaths_by_cause: How workers ended, by cause: "SIGSEGV" or another signal's name, "exit 3",
            "oom_kill" (by the kernel, for lack of memory), "timeout", "memory_limit", "killed"
            (`Future.kill()`),
            "protocol" (it sent malformed bytes), "unknown" (somebody else took its status), and
            beside the deaths "recycled" and "retired". Only what there was; the sum is `deaths`
            + `recycled` + `retired`. After 31 different causes the rest is "other".
        fallbacks: How often a better way was not to be had, by what was missing: "arena" (no
            shared memory: large values go through pipes), "room" (the arena was full: so many
            values went through a pipe), "pickle" (plain pickle could not send it: so many values
            and functions went by value, with cloudpickle), "fork" ("auto" took another start
            method, because of threads or modules), "pidfd" (a system without). Empty: all is well.
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
    deaths_by_cause: dict[str, int] = field(default_factory=dict, hash=False)
    fallbacks: dict[str, int] = field(default_factory=dict, hash=False)
    start_method: str = ""
    start_reason: str = ""


_COUNTERS = tuple(field.name for field in fields(PoolStats) if field.type == "int")


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker, as it was when `workers()` looked.

    Attributes:
        pid: Its process id.
        state: "starting", "ready", "doomed" (to be killed), "leaving" (it had nothing to do).
        tasks: Tasks it has done.
        rss: Resident memory, bytes; where the system does not tell, what the worker itself said
            last.
        age: Seconds since its birth.
        slot: Its place in the pool, 0 and up.
        generation: How many workers had this place before it.
        in_flight: Tasks it was sent and has not done.
        busy: Seconds it spent on tasks, up to now.
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


class WorkerProcess:
    """A worker, as far as programs look at the `multiprocessing.Process` of a standard pool."""

    def __init__(self, pool: Any, pid: int) -> None:
        self._pool = pool
        self.pid = self.ident = pid

    def is_alive(self) -> bool:
        """Whether it is still a worker of the pool."""
        return any(worker.pid == self.pid for worker in self._pool.workers())

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is none any more, or for so many seconds."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)  # it is no child of this process: there is nothing to wait on

    def terminate(self) -> None:
        """SIGTERM: it finishes its task, leaves and is replaced."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: its task gets WorkerDied, and another worker takes its place."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.is_alive():  # else the number may be somebody else's
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def __repr__(self) -> str:
        return f"<worker {self.pid}{'' if self.is_alive() else ', gone'}>"


def pool_stats(core: Core) -> PoolStats:
    """The native pool's counters, `state` as a word."""
    stats = core.native.stats()
    counters = {name: stats[name] for name in _COUNTERS}
    return PoolStats(
        state=_STATES.get(stats["state"], "unknown"),
        deaths_by_cause=_by_cause(core, stats),
        fallbacks=_fallbacks(core),
        start_method=core.method,
        start_reason=core.no_fork,
        **counters,
    )


def _by_cause(core: Core, stats: dict[str, int]) -> dict[str, int]:
    causes: dict[str, int] = {}
    if stats["deaths"]:
        for kind in core.native.death_counts():
            name = errors.cause_name(kind["cause"], kind["status"], kind["oom"])
            causes[name] = causes.get(name, 0) + kind["deaths"]
    for name in ("recycled", "retired"):
        if stats[name]:
            causes[name] = stats[name]
    return causes


def _fallbacks(core: Core) -> dict[str, int]:
    found = dict(core.log.fallbacks)
    arena = core.native.arena
    refused = 0 if arena is None else arena.refused
    for name, times in (("room", refused), ("pickle", core.codec.by_value)):
        if times:
            found[name] = times
    return found


def worker_info(info: dict[str, Any], now: int) -> WorkerInfo:
    """One of the native pool's workers; now is in nanoseconds of the monotonic clock."""
    return WorkerInfo(
        pid=info["pid"],
        state=info["state"],
        tasks=info["tasks"],
        rss=_native.resident(info["pid"]) or info["rss_kb"] << 10,
        age=max(0, now - info["born_ns"]) / 1e9,
        slot=info["slot"],
        generation=max(info["generation"] - 1, 0),
        in_flight=info["in_flight"],
        busy=info["busy_ns"] / 1e9,
        running=info["running_ns"] / 1e9,
    )

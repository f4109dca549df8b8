"""What happens to a pool, told to `logging`, one message an event, and to the stream of events.

::

    zygote, pump, leader ──events──▶ a ring in C ──▶ EventLog ──▶ "forkmill.pool"
                                                      ▲   └────▶ Told ──▶ forkmill.events
               the next thread that waits for the pool, looks at it or ends it;
               the stream's own, ten times a second, while somebody hears everything

Where nobody hears the stream no thread of ours waits for events, so that they cost nothing: a
message comes when somebody uses the pool, and says how old it is if that was late.

Guarantees:
    * Called under no lock of ours; a handler may use the pool.
    * What a handler or filter raises never costs a task its result.
    * Of each worker the stream tells the birth once, before its end, and the end once.

Threads: any. Two at once may tell neighbouring events in either order.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections import deque
from functools import cached_property, partial
from typing import Any

from .. import _native, errors
from .._process import STREAM
from .._said import here
from .forwarded import Forwarded
from .log import POOL

__all__ = ["EventLog"]

_LATE_S = 1.0  # a message says its age from here on


class EventLog:
    """What a pool logs, and what it had to do without.

    Attributes:
        name: The pool's, which every message begins with.
        restarts: (n, seconds): the limit that a message names.
        fallbacks: How often a better way was not to be had, by what was missing; see
            `PoolStats.fallbacks`.
        told: What the stream of events is told.
    """

    def __init__(self, name: str, restarts: tuple[int, float]) -> None:
        self.name = name
        self.restarts = restarts
        self.fallbacks: dict[str, int] = {}
        self.told = Told(name)
        self.forwards = False  # what workers log, to the loggers here
        self._notes: deque[tuple[Any, ...]] = deque()

    def fell_back(self, missing: str, level: int, text: str, *args: Any) -> None:
        """Count a fallback, and log it with the next flush()."""
        self.fallbacks[missing] = self.fallbacks.get(missing, 0) + 1
        self.note(level, text, *args)

    def note(self, level: int, text: str, *args: Any) -> None:
        """Log this with the next flush(). Safe under any lock."""
        self._notes.append((level, text, *args))

    def flush(self) -> None:
        """Log what was noted. Not under a lock of ours."""
        while self._notes:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._log(*self._notes.popleft())

    def __call__(self, native: _native.Pool) -> None:
        """Log what was noted, and what has happened to the native pool."""
        self.flush()
        try:
            events, lost = native.take_events()
        except errors.PoolError:  # a copy in a forked child
            return
        if lost:
            self._log(logging.WARNING, "%d older events were forgotten", lost)
            self.told.gap(lost)
        for event in events:
            level, text, *args = self._words(event)
            self.told(event, text, args)
            late = (time.monotonic_ns() - event["at_ns"]) / 1e9
            if late >= _LATE_S:
                text, args = f"{text} (%.1f s ago)", [*args, late]
            self._log(level, text, *args)

    def begin_logs(self) -> None:
        """The workers' log records come from now on."""
        from .. import events

        self.forwards = True
        self.told.logs = events.Emitter("pool", None, self.told.parent)
        self.told.logs.attach(Forwarded(self.name, self.fallbacks))
        events.begin()

    def end_logs(self) -> None:
        """All of them have come: wait until they are told, for 5 s at the most."""
        logs = self.told.logs
        for subscriber in () if logs is None else tuple(logs.own):
            subscriber()

    def hear(self, native: _native.Pool) -> None:
        """Hand over what tasks have said."""
        if STREAM:
            with contextlib.suppress(errors.PoolError):  # a copy in a forked child
                STREAM[0].words(partial(native.take_said, whose=self.told.ear))

    def _log(self, level: int, text: str, *args: Any) -> None:
        with contextlib.suppress(Exception):  # a filter's
            POOL.log(level, f"%s: {text}", self.name, *args)

    def _words(self, event: dict[str, int]) -> tuple[Any, ...]:
        """Level, text and arguments of one event's message."""
        kind, slot, pid = event["kind"], event["slot"], event["pid"]
        if kind == _native.EVENT_DIED:
            return self._death(event)
        if kind == _native.EVENT_REPLACED:
            return logging.INFO, "worker %d restarted as pid %d", slot, pid
        if kind == _native.EVENT_RECYCLED:
            return logging.INFO, "worker %d (pid %d) recycled", slot, pid
        if kind == _native.EVENT_RETIRED:
            return logging.INFO, "worker %d (pid %d) retired: it had nothing to do", slot, pid
        if kind == _native.EVENT_TROUBLE:
            why = _errno(event["status"])
            return logging.WARNING, "worker %d could not be started: %s; trying again", slot, why
        if kind == _native.EVENT_LIMIT:
            return logging.ERROR, "broken: more than %d deaths within %g s", *self.restarts
        if kind == _native.EVENT_BIRTHS:
            return logging.ERROR, "broken: no worker can be started: %s", _errno(event["status"])
        if kind == _native.EVENT_INIT:
            return logging.ERROR, "broken: a worker did not get through its initializer"
        cause = errors.cause_name(_native.CAUSE_EXIT, event["status"])
        return logging.ERROR, "broken: its zygote (pid %d) is gone: %s", pid, cause

    def _death(self, event: dict[str, int]) -> tuple[Any, ...]:
        cause = errors.cause_name(event["cause"], event["status"], event["oom"])
        # What the user's own call asked for is no trouble.
        level = logging.INFO if cause == "killed" else logging.WARNING
        words = (level, "worker %d (pid %d) died: %s", event["slot"], event["pid"], cause)
        requeued = event["requeued"]
        if not requeued:
            return words
        return level, f"{words[1]}; %d tasks requeued", *words[2:], requeued


def _errno(code: int) -> str:
    return f"{errno.errorcode.get(code, code)} ({os.strerror(code)})"


_LEFT = {_native.EVENT_RECYCLED: "recycled", _native.EVENT_RETIRED: "retired"}


class _Slot(int):
    """A worker's place; each is another object, and knows when the worker was born."""

    at: float


class Told:
    """A pool, as the stream of events tells of it: a run of its own, as long as it is heard."""

    def __init__(self, name: str) -> None:
        self._name = name
        above = here()
        self.parent = None if above is None else above[0]
        self.stage = None if above is None else above[1]  # which it was made for
        self._emitter: Any = None
        self.loads: Any = None  # what decodes the words of its tasks
        self.logs: Any = None  # the emitter of what its workers log, if that is forwarded
        self._alive: dict[int, _Slot] = {}  # by pid: those of which the birth was told
        self._looked: Any = None  # the slots' pids at the last look; None: look again
        self._over = False

    def _heard(self) -> bool:
        """Whether anybody hears it; then its beginning was told."""
        if self._over or not STREAM or not STREAM[0].heard():
            return False
        if self._emitter is None:
            self._emitter = STREAM[0].Emitter("pool", None, self.parent)
            self._emitter.known_by(lambda: (self._name, {}))
            self._emitter.standing = self._standing
            self._emitter.emit("run_started", self._name)
        return True

    @cached_property
    def ear(self) -> Any:
        """What opens the words of its tasks."""
        return STREAM[0].Ear(self._words_of, self._home, lambda: self.logs)

    def _words_of(self, lot: bytes) -> list[Any]:
        return _native.words(lot, self.loads)

    def _home(self) -> Any:
        """Who tells what no run is known of; also when the pool is over: it was said before."""
        self._heard()
        return self._emitter

    def __call__(self, event: dict[str, int], text: str, args: list[Any]) -> None:
        """What has happened, and how the log says it."""
        if not self._heard():
            return
        words = text % tuple(args)
        kind, pid, at = event["kind"], event["pid"], event["at_ns"] / 1e9
        data: dict[str, Any] = {"slot": event["slot"]}
        if kind == _native.EVENT_DIED:
            cause = errors.cause_name(event["cause"], event["status"], event["oom"])
            data |= {"cause": cause, "requeued": event["requeued"], "error": words}
            self._end(at, "worker_died", pid, data)
        elif kind in _LEFT:
            self._end(at, "worker_left", pid, data | {"cause": _LEFT[kind]})
        elif kind == _native.EVENT_REPLACED:
            self._born(at, pid, data | {"restarted": True})
        elif kind == _native.EVENT_TROUBLE:
            self._emitter.emit_late(at, "retry", self._name, None, data | {"error": words})
        else:
            self._finish(at, "broken", {"error": words})

    def _born(self, at: float, pid: int, data: dict[str, Any]) -> None:
        slot = _Slot(data["slot"])
        slot.at = at
        if self._alive.setdefault(pid, slot) is slot:  # of two threads one tells it
            self._emitter.emit_late(at, "worker_started", self._name, pid, data)

    def _standing(self) -> list[Any]:
        """The workers whose birth was told, for who comes later."""
        return [
            (slot.at, "worker_started", self._name, pid, {"slot": int(slot), "restarted": False})
            for pid, slot in [*self._alive.items()]
        ]

    def _end(self, at: float, kind: str, pid: int, data: dict[str, Any]) -> None:
        self._born(at, pid, {"slot": data["slot"], "restarted": False})
        self._alive.pop(pid, None)
        self._looked = None  # after that: the pid may come again
        self._emitter.emit_late(at, kind, self._name, pid, data)

    def gap(self, lost: int) -> None:
        """So many events were forgotten."""
        if self._heard():
            self._emitter.emit("gap", self._name, lost=lost, first=None, last=None)

    def look(self, native: _native.Pool) -> None:
        """Tell of the workers that are there, and were not replaced yet."""
        if not self._heard():
            return
        with contextlib.suppress(errors.PoolError):
            pids = native.pids()
            if pids == self._looked:
                return
            self._looked = pids  # first: another thread may tell an end meanwhile
            for worker in native.workers():
                if worker["pid"] and worker["pid"] not in self._alive:
                    data = {"slot": worker["slot"], "restarted": False}
                    self._born(worker["born_ns"] / 1e9, worker["pid"], data)

    def end(self) -> None:
        """All its workers have ended, at its shutdown. Idempotent."""
        if self._heard():
            self._finish(time.monotonic(), "closed", {})
        elif not self._over and self._emitter is not None:
            self._over, self._emitter.about = True, None  # who comes now is not told of it

    def _finish(self, at: float, status: str, data: dict[str, Any]) -> None:
        self._over = True
        for pid, slot in self._alive.copy().items():
            left = {"slot": int(slot), "cause": status}
            self._emitter.emit_late(at, "worker_left", self._name, pid, left)
        self._alive.clear()
        told = {"status": status, **data}
        self._emitter.emit_late(at, "run_finished", self._name, None, told)

"""What happens to a pool, told to the standard `logging` module: one message an event.

::

    zygote, pump, whoever leads ──events──▶ a ring in C ──▶ EventLog ──▶ "forkmill.pool"
                                                              ▲
               the next thread that waits for the pool, looks at it or ends it

No thread of ours waits for events, so that they cost nothing: a message comes when somebody uses
the pool, and says how old it is if that was late.

Guarantees:
    * Called under no lock of ours; a handler may use the pool.
    * What a handler or filter raises never costs a task its result.

Threads: any. Two at once may tell neighbouring events in either order.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections import deque
from typing import Any

from .. import _native, errors
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
    """

    def __init__(self, name: str, restarts: tuple[int, float]) -> None:
        self.name = name
        self.restarts = restarts
        self.fallbacks: dict[str, int] = {}
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
        for event in events:
            level, text, *args = self._words(event)
            late = (time.monotonic_ns() - event["at_ns"]) / 1e9
            if late >= _LATE_S:
                text, args = f"{text} (%.1f s ago)", [*args, late]
            self._log(level, text, *args)

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

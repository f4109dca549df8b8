"""One ordered stream of what happens in a run, as plain data.

An event is a dict: number (1, 2, ...), time (seconds since the epoch), run (an id), kind, stage (a
name or None), and what belongs to the kind:

    run_started     pipeline            stage_started   context
    run_finished    status, duration    stage_finished  in, out, failed
    item_failed     item, error, attempts, policy
    retry           item, error, attempts, pause
    worker_died     error
    batch           size
    progress        stages {name: {in, out, failed, waiting}}

Guarantees: numbers are without gaps, in the order of the calls. A sink that raises is counted, and
changes nothing.

Threads: any. Sinks are called one at a time, in the order of the numbers: in the thread of the run,
and for progress in one of its own, which says ten times a second how far the run is, whatever that
does. It is there while somebody listens.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from .._process import Latch, LoneThread, interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Events", "Ticker"]

_PROGRESS_S = 0.1  # between two events of that kind

_runs = itertools.count(1)


class Events:
    """The events of one run, and who listens."""

    def __init__(self, sinks: Iterable[Callable[[dict[str, Any]], object]] = ()) -> None:
        self.sinks = tuple(sinks)
        self.run = f"{os.getpid()}-{next(_runs)}"
        self.errors = 0
        self._number = 0
        self._lock = threading.Lock()  # for changes of `sinks`
        self._emitting = threading.RLock()  # a sink may do what emits
        self.patience = -1.0  # seconds to wait for a sink that works elsewhere; -1: for ever

    def emit(self, kind: str, stage: str | None = None, **data: Any) -> None:
        """Tell everybody."""
        if not self.sinks:
            return
        try:
            if not self._emitting.acquire(timeout=self.patience):
                self.errors += 1  # the run was killed, and a sink does not come back
                return
            self._number += 1
            event = {
                "number": self._number,
                "time": time.time(),
                "run": self.run,
                "kind": kind,
                "stage": stage,
                **data,
            }
            for sink in self.sinks:
                try:
                    sink(dict(event))
                except Exception as error:
                    if interrupted(error):
                        raise  # a signal handler's, and not the sink's
                    self.errors += 1
        finally:
            # The first call here: a signal handler may have raised as soon as the lock was taken,
            # and nothing but this is sure to be done then.
            try:  # noqa: SIM105
                self._emitting.release()
            except RuntimeError:  # it was not taken
                pass

    def attach(self, sink: Callable[[dict[str, Any]], object]) -> None:
        """Have a sink called from the next event on."""
        with self._lock:
            self.sinks = (*self.sinks, sink)

    def detach(self, sink: Callable[[dict[str, Any]], object]) -> None:
        """No longer call it; nothing if it is not attached."""
        with self._lock:  # a bound method is another object each time, but equal
            self.sinks = tuple(s for s in self.sinks if s != sink)


class Ticker:
    """The thread that says how far a run is. It does nothing else, and is not there unasked."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()  # one start
        self._end = Latch()
        self._thread: LoneThread | None = None

    def start(self) -> None:
        """Begin; nothing if it has begun, or is over."""
        with self._lock:
            if self._end.is_set():
                return
            if self._thread is None:
                self._thread = LoneThread(self._run, "forkmill-events")
            self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(_PROGRESS_S):
            self._tell()

    def stop(self, patience: float) -> None:
        """Tell no more. Idempotent.

        Args:
            patience: Seconds to wait for what is being told.
        """
        with self._lock:
            self._end.set()
            thread = self._thread
        if thread is not None and not thread.here:
            thread.join(patience)


def short(value: Any) -> str:
    """An item as text for an event."""
    try:
        text = repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
    return text if len(text) <= 200 else text[:197] + "..."

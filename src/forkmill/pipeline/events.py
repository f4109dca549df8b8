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

Threads: `emit` is called in the thread of the run alone; sinks may be added from any.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Events"]

_runs = itertools.count(1)


class Events:
    """The events of one run, and who listens."""

    def __init__(self, sinks: Iterable[Callable[[dict[str, Any]], object]] = ()) -> None:
        self.sinks = tuple(sinks)
        self.run = f"{os.getpid()}-{next(_runs)}"
        self.errors = 0
        self._number = 0
        self._lock = threading.Lock()  # for changes of `sinks`

    def emit(self, kind: str, stage: str | None = None, **data: Any) -> None:
        """Tell everybody."""
        if not self.sinks:
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
            except Exception:
                self.errors += 1

    def attach(self, sink: Callable[[dict[str, Any]], object]) -> None:
        """Have a sink called from the next event on."""
        with self._lock:
            self.sinks = (*self.sinks, sink)

    def detach(self, sink: Callable[[dict[str, Any]], object]) -> None:
        """No longer call it; nothing if it is not attached."""
        with self._lock:  # a bound method is another object each time, but equal
            self.sinks = tuple(s for s in self.sinks if s != sink)


def short(value: Any) -> str:
    """An item as text for an event."""
    try:
        text = repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
    return text if len(text) <= 200 else text[:197] + "..."

"""Monitor: watches a run from outside, in bounded memory, and changes nothing of it.

    run ──events──▶ Monitor ──▶ the last events, counts by kind, the stages as they were last

Threads: events come in that of the stream; everything else from any.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runs.handle import Handle

__all__ = ["Monitor"]


class Monitor:
    """Watches a run that was begun with `start`; may come and go as it likes. ::

        monitor = fm.Monitor(handle)
        print(monitor.stages)
        monitor.detach()

    Args:
        handle: The run; None: `attach` says which.
        keep: How many events it remembers, the latest ones.

    Attributes:
        seen: How many events it took in.
        missed: How many it did not, while it was paused.
    """

    def __init__(self, handle: Handle | None = None, *, keep: int = 1000) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
            raise ValueError(f"keep must be a number of events, 0 or more, not {keep!r}")
        self._lock = threading.Lock()  # guards the rest
        self._handle: Handle | None = None
        self._paused = False
        self._events: deque[dict[str, Any]] = deque(maxlen=keep)
        self._kinds: Counter[str] = Counter()
        self._stages: dict[str, dict[str, int]] = {}
        self.seen = self.missed = 0
        if handle is not None:
            self.attach(handle)

    def attach(self, handle: Handle) -> None:
        """Watch a run from now on, instead of the one before. What is known already is kept."""
        self.detach()
        with self._lock:
            self._handle, self._paused = handle, False
        handle.attach(self._take)

    def detach(self) -> None:
        """Watch nothing: after this no event comes any more. Idempotent."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            handle.detach(self._take)

    def pause(self) -> None:
        """Only count the events, as missed. Idempotent. The run goes on."""
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        """Take events in again. Idempotent."""
        with self._lock:
            self._paused = False

    @property
    def attached(self) -> bool:
        """Whether it watches a run, paused or not."""
        return self._handle is not None

    @property
    def events(self) -> list[dict[str, Any]]:
        """The last events, the oldest first."""
        with self._lock:
            return list(self._events)

    @property
    def kinds(self) -> dict[str, int]:
        """How many events of each kind it took in."""
        with self._lock:
            return dict(self._kinds)

    @property
    def stages(self) -> dict[str, dict[str, int]]:
        """By stage: "in", "out", "failed", "waiting", as they were when the run last told."""
        with self._lock:
            return {name: dict(counts) for name, counts in self._stages.items()}

    def _take(self, event: dict[str, Any]) -> None:
        with self._lock:
            if self._handle is None:
                return  # it was on its way when we left
            if self._paused:
                self.missed += 1
                return
            self.seen += 1
            self._events.append(event)
            self._kinds[event["kind"]] += 1
            if event["kind"] == "progress":
                self._stages = event["data"]["stages"]

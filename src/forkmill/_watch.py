"""The seam between what runs and what shows it: `progress=`, `report=`, and runs without a driver.

    run(progress=True, report="run.html") ──▶ sinks_of ──_offers──▶ show.progress, show.report
                                                 └──▶ a tuple of sinks, which the run attaches

Guarantees: nothing is loaded, and nothing made, for a run that nobody wants to see.

Threads: any.
"""

from __future__ import annotations

from contextlib import nullcontext
from time import monotonic
from typing import Any

from . import events
from ._offers import offered
from ._said import within

__all__ = ["Watch", "sinks_of"]

_LOOK_S = 0.002  # between two looks of a loop whether sinks are so far


def sinks_of(sinks: Any = (), progress: Any = False, report: Any = None) -> tuple[Any, ...]:
    """The sinks of a run: those that were given, and those that `progress` and `report` stand for.

    Args:
        sinks: As they were given.
        progress: True, or a sink that shows it, as an `fm.Progress`; False or None: nothing.
        report: A path; None: no report.

    Raises:
        TypeError, ValueError: One of them is wrong.
        OSError: The report cannot be written where it shall be.
    """
    found = events.check_sinks(sinks)
    if progress is not False and progress is not None:
        if progress is True:
            progress = offered("progress")()
        elif not callable(progress):
            raise TypeError(f"progress must be True, False or an fm.Progress, not {progress!r}")
        found = (*found, *events.check_sinks([progress]))
    if report is not None:
        found = (*found, offered("report")(report))
    return found


class Watch:
    """A run that has no driver, such as a `map`: from its begin to its end, once each.

    Args:
        source: As for `Emitter`.
        name: What is called.
        sinks: From `sinks_of`.
        origin: For whom the code works that has begun it, from `_said.here`.

    Attributes:
        failures: How many items have failed.
        over: Its end was told.
        latch: For who may not wait there: set when its sinks have heard of the end. None: `end`
            waits for that.
        settle: Called before the end is told, if anybody hears of items: tells what is left.
    """

    __slots__ = ("_begun", "_emitter", "_figures", "_name", "failures", "latch", "over", "settle")

    def __init__(self, source: str, name: str, sinks: tuple[Any, ...], origin: Any = None) -> None:
        with within(*origin[:2]) if origin is not None else nullcontext():
            self._emitter = events.Emitter.beginning(source)
        self._name = name
        self._figures: Any = None
        self.over = self._begun = False
        self.failures = 0
        self.latch: Any = None
        self.settle: Any = None
        for sink in sinks:
            self._emitter.attach(sink)

    @property
    def run(self) -> tuple[str, str, str]:
        """The id of the run, what it is called, and the detail that is wanted of it."""
        return self._emitter.id, self._name, self._emitter.detail

    def begin(self, **data: Any) -> None:
        """It begins: before its first call, which may be told at once. Idempotent."""
        if not self._begun:
            self._begun = True
            self._emitter.known_by(lambda: (self._name, data))
            self._emitter.emit("run_started", self._name, **data)

    def show(self, figures: Any) -> None:
        """From here on figures() tells how far it is, from any thread."""
        self._figures = figures
        self._emitter.begin(figures)

    def failed(self, error: BaseException) -> None:
        """An item has failed."""
        self.failures += 1
        self._emitter.emit("item_failed", self._name, error=events.short(error))

    def end(self, status: str) -> None:
        """It is over, however. Idempotent; to be done again where a signal handler broke it off."""
        if self.over:
            return
        if not self._emitter.ended:
            self._tell_end(status)
        self._emitter.finish(events.DRAIN_S, self.latch)
        self.over = True

    async def heard(self) -> None:
        """Once `latch` is set, or it takes too long."""
        import asyncio  # for who has a loop

        until = monotonic() + events.DRAIN_S
        while not self.latch.is_set() and monotonic() < until:
            await asyncio.sleep(_LOOK_S)

    def _tell_end(self, status: str) -> None:
        if self._figures is not None:
            self._emitter.emit("progress", **self._figures())
        if self._emitter.detail != "runs":
            events.hear()  # what calls took comes before the end
            if self.settle is not None:
                self.settle()
        self._emitter.emit_end("run_finished", self._name, status=status)

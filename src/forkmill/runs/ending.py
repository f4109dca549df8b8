"""That a run ends: who waits is told, once, and gets what it came to.

Threads: any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._process import Latch

if TYPE_CHECKING:
    from collections.abc import Callable

    from .result import RunResult

__all__ = ["Ending"]


class Ending:
    """The end of a run, to come or come."""

    def __init__(self) -> None:
        self._over = Latch()
        self._result: RunResult | None = None
        self._error: BaseException | None = None
        self._waiters: set[Callable[[], None]] = set()

    def done(self) -> bool:
        """Whether it is over."""
        return self._over.is_set()

    def _tell(self, waiter: Callable[[], None]) -> None:
        """Call a waiter when the run is over, once: in the thread that ends it, or here and now."""
        self._waiters.add(waiter)
        if self._over.is_set():  # looked at after that: one of us finds it
            self._tell_all()

    def _forget(self, waiter: Callable[[], None]) -> None:
        """Do not call it any more; nothing if it has been called."""
        self._waiters.discard(waiter)

    def _tell_all(self) -> None:
        while self._waiters:
            try:
                waiter = self._waiters.pop()
            except KeyError:  # somebody else does it
                return
            waiter()

    def _outcome(self) -> RunResult:
        """What it came to, when it is over."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self
        assert self._result is not None
        return self._result

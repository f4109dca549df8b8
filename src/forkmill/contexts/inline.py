"""inline: the caller's thread, at once.

Guarantees: when `submit` returns, the call is over. Nothing is created, so nothing is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Call, Executor, closed_error
from .lanes.inline import InlineLane

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lanes.lane import Lane, Work

__all__ = ["Inline"]


class Inline(Executor):
    """Runs every call where it is made.

    Args:
        max_workers: Accepted, so that a spec of another type can be replaced by this one; calls
            run one at a time all the same.
        name: What it is called.
    """

    type = "inline"

    def __init__(self, max_workers: int | None = None, *, name: str | None = None) -> None:
        super().__init__(1 if max_workers is None else max_workers, name=name)
        self.width = self.window = 1
        self._closed = False

    def _accept(self, call: Call) -> None:
        self._check_open()
        future = call.future
        if not call.run() and isinstance(future.exception(), KeyboardInterrupt):
            raise KeyboardInterrupt  # it was meant for the thread that we run in

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()

    def _check_process(self) -> None:
        """A fork does it no harm."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more."""
        self._take_in(cancel_futures)
        self._closed = True

    def lane(self, work: Work, notify: Callable[[], None] | None = None) -> Lane:
        """A lane that does the work where it is taken."""
        return InlineLane(work, notify)

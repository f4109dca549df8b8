"""DirectLane: a lane whose items are handed over by who did them, without a future each.

    put_many ──▶ a call for many items ──(item, value)──▶ out-list ──▶ take_many: Batch, Taken

Guarantees: those of a Lane.

Invariants:
    * DIRECT-1  The out-list is never replaced. Who has done an item appends it without the lock
      (and looks whether anybody waits); who takes, pops.

Threads: `_hand` in any; else as a Lane's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .calls import CallLane
from .emit import Outputs
from .lane import Batch, Taken
from .replica import told

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DirectLane"]


class DirectLane(CallLane):
    """A lane over `submit` where one call does many items."""

    def _hand(self, item: Any, value: Any) -> None:
        """An item is finished; its output, or all of them as Outputs."""
        if self._over:
            return
        self._out.append((item, value))
        if self._change.idle:
            with self._lock:
                self._change.tell()
        if self._notify is not None:
            self._notify()

    def _unlocked(self, out: list[Any]) -> int:
        return list(map(type, out)).count(tuple)

    def _all_opened(self, out: list[Any]) -> list[Taken | Batch]:
        pieces: list[Taken | Batch] = []
        items: list[Any] = []
        outputs: list[Any] = []
        for raw in out:
            if type(raw) is tuple:
                item, value = raw
                if type(value) is not Outputs:
                    items.append(item)
                    outputs.append(value)
                    continue
                opened: Iterable[Taken | Batch] = (told(item, value),)
            else:
                opened = self._opened(raw)
            if items:
                pieces.append(Batch(items, outputs))
                items, outputs = [], []
            pieces.extend(opened)
        if items:
            pieces.append(Batch(items, outputs))
        return pieces

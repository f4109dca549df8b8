"""How many items go into one chunk: as many as a worker is busy with for a moment.

Guarantees:
    * A chunk is bounded by what tasks have taken, by memory, and by how many items there are to
      share: each bound holds by itself, and a quick input moves none of them.
    * Nothing is known at first, so the first chunks have one item, or few where a call like this
      one was measured before: these items may be others. From there on a chunk has at most GROWTH
      times the items of the one that it was measured by.

Threads: one at a time; the owner sees to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .. import _native

__all__ = ["MAX_CHUNK", "MAX_WINDOW", "Tuner"]

MAX_CHUNK = 4096  # items
MAX_WINDOW = 64 << 20  # encoded bytes under way
GROWTH = 8  # a chunk is at most so many times the one it was measured by


class Tuner:
    """The size of the next chunk.

    Attributes:
        fit: Items that take a worker about the target time, and whose results fit: the next
            chunk has no more.
        cost: Seconds an item took in a worker; 0: not known yet.
        weight: Bytes of a result, the large ones remembered.
    """

    __slots__ = (
        "_least", "_least_s", "_most", "_share", "_target_s", "_unit", "cost", "fit", "weight",
    )  # fmt: skip

    def __init__(
        self, target_s: float, least_s: float, share: int, *, unit: int = 1, most: int = MAX_CHUNK
    ) -> None:
        """Know nothing.

        Args:
            target_s: Seconds of work in a chunk.
            least_s: Seconds of work that are worth a chunk, however few items there are to share.
            share: Bytes that the results of a chunk may have.
            unit: A chunk has a multiple of so many items.
            most: Items a chunk may have, whatever they take.
        """
        self._target_s = target_s
        self._least_s = least_s
        self._share = share
        self._unit = unit
        self._most = max(unit, most)
        self.cost = 0.0
        self.weight = 1.0
        self.fit = self._least = unit

    def begin(self, fit: int) -> None:
        """What the first chunks may have, where a call like this one was measured before."""
        if fit > self.fit:
            self.fit = fit

    def learn(self, task: _native.Chunk) -> None:
        """A chunk is done: size the next ones by what it took, as far as that is known."""
        count, seconds = task.count, task.busy
        if seconds <= 0:
            return
        unit = self._unit
        self.cost = cost = max(seconds / count, 1e-9)
        self.weight = weight = max(task.size / count, 0.9 * self.weight)
        fit = int(min(self._target_s / cost, self._share / weight, count * GROWTH, self._most))
        self.fit = fit - fit % unit if fit > unit else unit
        least = int(self._least_s / cost)
        self._least = least if least > unit else unit

    def fair(self, items: int, chunks: int) -> int:
        """The size of the next chunk if so many items are to be shared by so many chunks."""
        size = -(-items // chunks)
        if size < self._least:
            size = self._least
        return size if size < self.fit else self.fit

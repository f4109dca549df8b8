"""A cache in this process, for as long as the object lives.

Guarantees: at most `max_items` entries stay; the one that was not used for longest goes first.

Threads: any.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from ..._checks import integer

__all__ = ["MemoryCache"]


class MemoryCache:
    """Keeps results of nodes in this process.

    It is asked in the process that made it, also for nodes that run in workers. Values are kept as
    pickles: a hit is a new object each time.

    Args:
        max_items: How many results stay; the one that was not used for longest goes first.

    Raises:
        TypeError: max_items is no int.
        ValueError: It is less than 1.

    Attributes:
        hits: How often something was there.
        misses: How often nothing was.

    All methods may be called from any thread.
    """

    shared = False

    def __init__(self, max_items: int) -> None:
        self._most = integer("max_items", max_items, least=1)
        self._lock = threading.Lock()  # guards the rest
        self._items: OrderedDict[bytes, bytes] = OrderedDict()
        self.hits = self.misses = 0

    def get(self, key: bytes, /) -> bytes | None:
        """What was set under a key; None if there is nothing."""
        with self._lock:
            value = self._items.get(key)
            if value is None:
                self.misses += 1
            else:
                self.hits += 1
                self._items.move_to_end(key)
            return value

    def set(self, key: bytes, value: bytes, /) -> None:
        """Keep a value."""
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            while len(self._items) > self._most:
                self._items.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._items.clear()

    def __len__(self) -> int:
        return len(self._items)

    def __reduce__(self) -> str:
        raise TypeError(
            "a MemoryCache stays in its process; for several processes there is DiskCache"
        )

    def __repr__(self) -> str:
        return f"<MemoryCache: {len(self)} of {self._most} items, {self.hits} hits>"

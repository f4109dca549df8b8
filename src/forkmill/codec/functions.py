"""What was made of functions, such as what a pool has sent of them: kept as long as they live.

Threads: any; entries of plain dicts, and what is made twice at once is made twice.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .._late import unbroken

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Functions"]


class _Entries(dict[int, tuple[weakref.ref[Any], Any]]):
    """A dict that can be referred to weakly."""

    __slots__ = ("__weakref__",)


class Functions:
    """What was made of each plain function, kept as long as the function lives.

    By identity, and never by a bare id: an id is reused as soon as its object is gone, an entry
    goes with its function. The least recently made go first beyond `limit`.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._entries = _Entries()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> dict[int, tuple[weakref.ref[Any], Any]]:
        """id -> (weak reference to the function, what was made of it); only to be looked at."""
        return self._entries

    def get(self, function: Any, make: Callable[[Any], Any]) -> Any:
        """What make(function) gave when it was first asked."""
        key = id(function)
        entry = self._entries.get(key)
        if entry is not None and entry[0]() is function:
            return entry[1]
        return self.renew(function, make)

    def renew(self, function: Any, make: Callable[[Any], Any]) -> Any:
        """What make(function) gives now, for the next ones who ask."""
        key = id(function)
        value = make(function)
        entries = self._entries
        # Weakly: an entry that led to its own table would keep a dropped pool's memory until the
        # next collection of cycles.
        table = weakref.ref(entries)

        def forget(dead: weakref.ref[Any]) -> None:
            entries = table()
            found = None if entries is None else entries.get(key)
            if entries is not None and found is not None and found[0] is dead:
                entries.pop(key, None)

        try:
            reference = weakref.ref(function, unbroken(forget))
        except TypeError:
            return value
        while len(entries) >= self._limit:
            with suppress(RuntimeError, StopIteration):  # another thread was here
                entries.pop(next(iter(entries)), None)
        entries[key] = (reference, value)
        return value

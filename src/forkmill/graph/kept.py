"""Large constants of a warm engine's last call: encoded already, and in its workers.

    a call ──give──▶ Kept: value, handle ──take──▶ the next call with the same value, as it was

Guarantees:
    * No call gets what another value would be now. It has to be the same object; bytes and texts
      cannot change, nor can an array's memory that is a bytes object's; of any other array every
      byte is compared with what was sent, also if it is read-only, as who owns it can have it
      writable, change it and turn it back; whatever else there is, is encoded anew by each call.
    * What comes back in a worker is what it decoded before, so only values are kept that a task
      cannot change there: an array is read-only in it.
    * Those of the last call that had any are kept, until the engine is closed: no more memory than
      that call took. A vast one that is new takes the place of what its call has no use for.

Threads: any; a handle belongs to one call at a time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..codec.share import holds

if TYPE_CHECKING:
    from collections.abc import Container

    from ..codec.share import Shared

__all__ = ["Kept", "can_stay"]


class Kept:
    """What was shared, by the identity of its value."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next one
        self._handles: dict[int, tuple[Any, Shared[Any]]] = {}

    def take(self, value: Any) -> Shared[Any] | None:
        """The handle of a value that is what it was, for the caller alone; or None."""
        with self._lock:
            _, handle = self._handles.pop(id(value), (None, None))
        if handle is None or type(value) in (bytes, str) or holds(handle, value):
            return handle
        handle.close()
        return None

    def give(self, shared: list[tuple[Any, Shared[Any]]]) -> None:
        """A call is over that shared these values: they stay, those before go."""
        kept = {id(value): (value, handle) for value, handle in shared if can_stay(value)}
        with self._lock:
            before, self._handles = self._handles, kept
        for value, handle in (*before.values(), *shared):
            if id(value) not in kept or kept[id(value)][1] is not handle:
                handle.close()

    def leave(self, used: Container[int]) -> int:
        """Let go of all but the values with these ids; how many bytes they had."""
        with self._lock:
            gone = [key for key in self._handles if key not in used]
            handles = [self._handles.pop(key)[1] for key in gone]
        freed = sum(handle.nbytes for handle in handles)
        for handle in handles:
            handle.close()
        return freed

    def close(self) -> None:
        """Let go of all. Idempotent."""
        self.give([])


def can_stay(value: Any) -> bool:
    """Whether it can be told that a value is what it was, and no task can change it elsewhere."""
    kind = type(value)
    if kind in (bytes, str):
        return True
    is_array = kind.__name__ == "ndarray" and kind.__module__ == "numpy"
    return is_array and not value.dtype.hasobject

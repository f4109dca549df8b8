"""Clusters on this machine, for those who name none: started by the first user, ended by the last.

Threads: any.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Local"]


class Local:
    """One kind of cluster.

    Args:
        start: Starts one of so many workers; what it gives is what users use.
        grow: Has one of them be of so many workers.
        end: Ends it.
    """

    def __init__(
        self,
        start: Callable[[int], Any],
        grow: Callable[[Any, int], object],
        end: Callable[[Any], object],
    ) -> None:
        self._start = start
        self._grow = grow
        self._end = end
        self._lock = threading.Lock()  # guards the rest; held while one starts or ends
        self._cluster: Any = None
        self._width = 0
        self._users = 0

    def take(self, width: int) -> Any:
        """The cluster, of so many workers at least; who takes it gives it back once."""
        with self._lock:
            if not self._users:
                self._cluster, self._width = self._start(width), width
            elif width > self._width:
                self._grow(self._cluster, width)
                self._width = width
            self._users += 1
            return self._cluster

    def give_back(self) -> None:
        """One user less."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            cluster, self._cluster = self._cluster, None
            self._end(cluster)

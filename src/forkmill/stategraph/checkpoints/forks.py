"""Stores and forks: no fork in the middle of a transaction, and a new beginning in the child.

What a store has open belongs to the process that opened it. SQLite and libpq both forbid that a
child uses it, or so much as closes it: the parent's locks would be dropped, or its server told to
end. So the child's copy stays referenced, beyond the interpreter's end (`Kept`), and the child's
store opens anew by need.

A fork waits for the transaction that another thread is in: the child would have it for ever.
Several threads may fork at once; each gives back what it has taken itself.

Threads: any.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from ..._late import WeakSet

__all__ = ["Forkable", "Kept"]

_LONGEST = 60.0  # seconds that a fork waits for other threads' transactions, at most


class Forkable:
    """What has a lock around its transactions, and begins anew in a forked child."""

    def __init__(self) -> None:
        # Of the thread that has it: a fork inside of a transaction's own code must not wait.
        self._lock = threading.RLock()
        _known.add(self)

    def _forked(self) -> None:
        """In the child: forget what the parent has open."""


_known: WeakSet[Forkable] = WeakSet()


class _Taken(threading.local):
    """What the fork that this thread is in has taken."""

    def __init__(self) -> None:
        self.locks: list[Any] = []


_taken = _Taken()


def _before() -> None:
    for one in list(_known):
        if one._lock.acquire(timeout=_LONGEST):
            _taken.locks.append(one._lock)


def _in_parent() -> None:
    locks = _taken.locks
    while locks:
        locks.pop().release()


def _in_child() -> None:
    _taken.locks.clear()
    for one in list(_known):
        one._lock = threading.RLock()
        one._forked()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


class Kept:
    """A reference that nothing but `drop` drops, the interpreter's end included.

    A list that holds the code object whose constants hold the list: the garbage collector does not
    look into code objects, so it takes them for used.
    """

    def __init__(self, thing: Any) -> None:
        self._held = [thing]
        code = (lambda: None).__code__
        self._held.append(code.replace(co_consts=(None, self._held)))

    def drop(self) -> None:
        self._held.clear()

"""Last functions of objects: what a signal handler raises in them is not lost.

Python prints and forgets what is raised in a `__del__` and in a weak reference's callback, and
what it runs there is Python code: a Ctrl-C, or a program's own timeout by SIGALRM, that comes in
one is never seen, and what the function was to give back is not given back. So everything of ours
that runs when an object dies goes by here (a test looks):

    @unbroken
    def __del__(self): ...              also for callbacks: weakref.ref(value, unbroken(forget))
    finalize(owner, function, *args)    as weakref's; the function may be called again
    if fds: close_last(fds)             may be called again, too
    WeakSet, WeakValueDictionary, WeakKeyDictionary

Guarantees: native/late.pxi. In a sub-interpreter, where no handler runs, these are Python's own.

Threads: any; a WeakSet may be walked while others change it.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from ._process import interrupted, ours

__all__ = [
    "WeakKeyDictionary",
    "WeakSet",
    "WeakValueDictionary",
    "close_last",
    "finalize",
    "unbroken",
]


def unbroken(function: Any) -> Any:
    """The function, to be called to its end by who swallows exceptions. It must bear being called
    again where it was broken off."""
    try:
        return ours("_native").Unbroken(function)
    except ImportError:  # a sub-interpreter that takes no extension
        return function


def close_last(fds: list[int]) -> None:
    """Close a descriptor and take it out of the list, in one step: one that was closed before a
    signal handler raised is not there any more, as its number may be another's by then."""
    deque(map(os.close, map(fds.pop, [-1])), maxlen=0)


if TYPE_CHECKING:
    from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary, finalize
else:

    class finalize(weakref.finalize):
        """weakref.finalize, whose function stays until it was called to its end."""

        __slots__ = ()

        @unbroken
        def __call__(self, _=None):
            info = self._registry.get(self)
            if info is None or self._shutdown:
                return None
            try:
                value = info.func(*info.args, **(info.kwargs or {}))
            except BaseException as error:
                if not interrupted(error):  # it was called to its end, which is an error of its own
                    self._registry.pop(self, None)
                raise
            self._registry.pop(self, None)
            return value

    class WeakSet(weakref.WeakSet):
        """weakref.WeakSet."""

        def __init__(self):
            super().__init__()
            self._remove = unbroken(self._remove)

        def __iter__(self):
            # Python's own (to 3.13) walks the set itself, which another thread may change.
            for reference in list(self.data):
                value = reference()
                if value is not None:
                    yield value

    class WeakValueDictionary(weakref.WeakValueDictionary):
        """weakref.WeakValueDictionary."""

        def __init__(self):
            super().__init__()
            self._remove = unbroken(self._remove)

    class WeakKeyDictionary(weakref.WeakKeyDictionary):
        """weakref.WeakKeyDictionary."""

        def __init__(self, known=None):
            super().__init__()
            self._remove = unbroken(self._remove)
            self.update(known or {})

"""To look at frames of a thread that goes on meanwhile.

`frame.f_locals` of a running frame is copied by C, which must not be broken off: where the other
thread runs in the middle of it, the frame may end, and its memory is another's by then.

    * CPython 3.11 collects garbage where it allocates, also in there, and a finalizer lets other
      threads run: nothing is collected meanwhile (`Still`). From 3.12 on it collects elsewhere.
    * What the copy replaces of an earlier one may have a finalizer: no copy is left behind
      (`forget`). From 3.13 on there is no copy.

Threads: any.
"""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext
from typing import Any

__all__ = ["Still", "forget"]


class _Still:
    """Nothing is collected in here."""

    __slots__ = ("_was",)

    def __enter__(self) -> None:
        self._was = gc.isenabled()
        gc.disable()

    def __exit__(self, *exc: object) -> None:
        if self._was:
            gc.enable()


Still: Any = _Still if sys.version_info < (3, 12) else nullcontext


def forget(scope: Any) -> None:
    """Leave nothing in the copy of a running function's variables."""
    if type(scope) is dict:
        scope.clear()

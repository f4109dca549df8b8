"""Large values on their way to other processes: by `share`, encoded once, once to each worker.

Threads: any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..codec.share import PerWorker, Shared, share
from ..errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LARGE", "handle_of"]

LARGE = 1 << 16  # bytes of a value that is shared
VAST = 8 << 20  # bytes of one that takes so long that others can be let go of meanwhile

_SMALL = (int, float, complex, bool, type(None))
_ROWS = (list, tuple, set, frozenset, dict)
_FEW = 64  # elements, which are looked at one by one


def handle_of(value: Any, before: Callable[[], None] | None = None) -> Any:
    """A handle for a large value, to be closed by the caller; None: it goes as it is.

    Args:
        value: Any constant.
        before: Is called before one is encoded that is surely `VAST`.
    """
    if not _may_be_large(value):
        return None
    if before is not None and _is_vast(value):
        before()
    try:
        handle = share(value)
    except SerializationError:  # a forked worker may have it all the same
        return None
    if handle.nbytes < LARGE:
        handle.close()
        return None
    return handle


def _may_be_large(value: Any) -> bool:
    if isinstance(value, (Shared, PerWorker)) or type(value) in _SMALL or callable(value):
        return False
    if isinstance(value, (str, bytes, bytearray)):
        return len(value) >= LARGE
    if type(value) in _ROWS and len(value) <= _FEW and all(map(_is_slight, value)):
        return type(value) is dict and not all(map(_is_slight, value.values()))
    nbytes = getattr(value, "nbytes", None)
    return nbytes >= LARGE if isinstance(nbytes, int) else True


def _is_vast(value: Any) -> bool:
    nbytes = len(value) if type(value) in (str, bytes) else getattr(value, "nbytes", None)
    return isinstance(nbytes, int) and nbytes >= VAST


def _is_slight(value: Any) -> bool:
    if type(value) in (str, bytes):
        return len(value) * _FEW < LARGE
    return type(value) in _SMALL

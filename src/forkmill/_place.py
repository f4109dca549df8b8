"""What a generator yields as long as it is asked for in one place: native/place.pxi, for shapes of
work, which do not know the binding.

Threads: any.
"""

from __future__ import annotations

from typing import Any

from ._process import ours

__all__ = ["OnePlace"]

try:
    OnePlace: Any = ours("_native").OnePlace
except ImportError:  # a sub-interpreter that takes no extension
    OnePlace = None

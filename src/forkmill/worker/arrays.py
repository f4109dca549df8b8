"""Arrays that are born where results travel: in a worker, in its pool's arena.

    out = fm.empty(shape, dtype)        in a worker: a segment of the arena; else plain memory
    a library fills it (`out=`, readinto, decoders)
    return out                          the segment changes hands, nothing is copied

Guarantees:
    * What is returned is a numpy array like any other, wherever it was made: where there is no
      arena, or no room in it, it lies in plain memory, and costs the copy that any array costs.
    * Only memory that nobody holds any more changes hands; what a worker keeps of it is copied
      (native/arena.pxi: `part`). Who sends an array keeps it, and may write to it: so what is made
      in the caller lies in plain memory, and is copied once when it is sent.

Threads: any.
"""

from __future__ import annotations

import sys
from math import prod
from operator import index
from typing import TYPE_CHECKING, Any

from .. import _native

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["empty", "frombuffer"]


def empty(shape: int | Sequence[int], dtype: Any = float) -> Any:
    """An array without values yet, as `numpy.empty`, that a task returns without a copy.

    In a worker process it lies in memory that the pool's own process sees too. A task lets a
    library write into it and returns it, alone or with other things that are no arrays; the
    caller gets the same memory, writable, and nothing is copied. If something in the worker still
    holds it, or it comes with a second array, it is copied as any array is. From 64 KiB on;
    smaller ones, those of Python objects, and arrays that are made in no worker process of ours
    lie in plain memory.

    Args:
        shape: Its length, or its lengths.
        dtype: What numpy takes for one.

    Returns:
        A numpy.ndarray in C order.

    Raises:
        ImportError: There is no numpy.
        TypeError: numpy does not know the dtype, or the shape is none.
        ValueError: A negative length.
        MemoryError: There is no memory.

    May be called from any thread.
    """
    import numpy

    kind = numpy.dtype(dtype)
    lengths = (index(shape),) if hasattr(shape, "__index__") else tuple(map(index, shape))
    size = kind.itemsize * prod(max(0, length) for length in lengths)  # numpy refuses negative ones
    room: Any = None if kind.hasobject or size > sys.maxsize else _native.room(size)
    if room is None:
        return numpy.empty(lengths, kind)
    return numpy.ndarray(lengths, kind, room)


def frombuffer(buffer: Any, dtype: Any = float, count: int = -1, offset: int = 0) -> Any:
    """An array of what is in a buffer, as `numpy.frombuffer`, that a task returns without a copy.

    It is a copy of the buffer, made once and where results travel (see `empty`), and may be
    written to. For what libraries give as bytes of their own, of which an array is to be made and
    worked on before it is returned.

    Args:
        buffer: bytes, memoryview, anything that exports its memory.
        dtype: What numpy takes for one.
        count: How many items; -1: all there are.
        offset: Where they begin, in bytes.

    Returns:
        A numpy.ndarray with one dimension.

    Raises:
        ImportError: There is no numpy.
        ValueError: The buffer is too small, or no multiple of an item.
        TypeError: It is no buffer.
        MemoryError: There is no memory.

    May be called from any thread.
    """
    import numpy

    there = numpy.frombuffer(buffer, dtype, count, offset)
    made = empty(there.shape, there.dtype)
    made[...] = there
    return made

"""Texts and blobs as one blob: frontiers, and values with their deltas, in a row of a store.

::

    head's bytes u32 | count u32 | count x length u64 | head (JSON, UTF-8) | blob | blob | ...

Threads: any.
"""

from __future__ import annotations

import json
import struct
from typing import Any

__all__ = ["pack", "unpack"]

_START = struct.Struct("<II")
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def pack(head: Any, blobs: list[bytes | memoryview]) -> bytes:
    """JSON's plain data, and blobs behind it, as one."""
    text = _to_json(head).encode("utf-8", "surrogatepass")
    lengths = [len(blob) if isinstance(blob, bytes) else blob.nbytes for blob in blobs]
    start = _START.pack(len(text), len(blobs)) + struct.pack(f"<{len(blobs)}Q", *lengths)
    return b"".join([start, text, *blobs])


def unpack(data: bytes | memoryview) -> tuple[Any, list[bytes]]:
    """What `pack` took.

    Raises:
        ValueError: That is not what it made.
    """
    view = memoryview(data).cast("B")
    try:
        size, count = _START.unpack_from(view)
        lengths = struct.unpack_from(f"<{count}Q", view, _START.size)
    except struct.error as error:
        raise ValueError(f"no frame: {error}") from None
    at = _START.size + 8 * count
    if at + size + sum(lengths) != len(view):
        raise ValueError("no frame: its lengths are not those of its bytes")
    head = json.loads(str(view[at : at + size], "utf-8", "surrogatepass"))
    at += size
    blobs = []
    for length in lengths:
        blobs.append(bytes(view[at : at + length]))
        at += length
    return head, blobs

"""What plain values count as in a cache key: tokens, and digests of what is long.

Guarantees:
    * Values that differ in type or in what they are have different tokens: 1, 1.0, True, "1".

Invariants:
    FORM-1  A token ends by itself: no token is the beginning of another one, so a row of them can
            be read in one way only.

Threads: any.
"""

from __future__ import annotations

import marshal
from hashlib import blake2b
from struct import pack
from typing import TYPE_CHECKING, Any

from .code import ABSENT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FLAT", "LEAVES", "SIZE", "Unstable", "digest", "named", "of_flat"]

SIZE = 32  # bytes of a digest


class Unstable(Exception):
    """A value, or a part of it, has no stable form.

    Attributes:
        path: Steps from the value to the part, as one would write them: ".model[0]".
        what: What is there.
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path = path
        self.what = what


def digest(tag: bytes, data: Any) -> bytes:
    return tag + blake2b(data, digest_size=SIZE).digest()


def _of_text(tag: bytes, long: bytes, data: bytes) -> bytes:
    if len(data) > 64:
        return digest(long, data)
    return tag + bytes((len(data),)) + data


def _str(value: str) -> bytes:
    return _of_text(b"s", b"S", value.encode("utf-8", "surrogatepass"))


def _bytes(value: bytes) -> bytes:
    return _of_text(b"b", b"B", value)


LEAVES: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: lambda value: b"i%x;" % value if -1 << 63 <= value < 1 << 63 else _large(value),
    float: lambda value: b"f" + pack("<d", value),
    complex: lambda value: b"c" + pack("<dd", value.real, value.imag),
    str: _str,
    bytes: _bytes,
    bytearray: lambda value: digest(b"a", value),
    type(...): lambda _: b".",
    type(NotImplemented): lambda _: b"~",
    range: lambda value: digest(b"r", marshal.dumps((value.start, value.stop, value.step), 2)),
    type(ABSENT): lambda _: b"-",
}
FLAT = frozenset({type(None), bool, int, float, complex, str, bytes})  # marshal tells them apart


def _large(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return digest(b"I", value.to_bytes(size, "little", signed=True))


def named(tag: bytes, name: str) -> bytes:
    return tag + _str(name)


def of_flat(tag: bytes, value: Any) -> bytes | None:
    """A container of plain things only, at the speed of C; without references (version 2)."""
    try:
        return digest(tag, marshal.dumps(value, 2))
    except ValueError:  # something in it is longer than marshal can say
        return None

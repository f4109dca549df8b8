"""Packed files: gzip, bzip2, xz and zstd, unpacked up to the very byte at which they are damaged.

    file ──chunk──▶ lead ──▶ output
                      └ raises: spare ──byte by byte──▶ what the lead lost in that call

An unpacker that meets damage raises, and what it had unpacked in the same call is lost with it:
how much depends on how the input was cut. So there is a second one that stands before the chunk. It
gets the chunk again, a byte at a time, and gives all there is. Of a file it is made only then, by
reading from the begin; of a pipe, which cannot be read again, it follows all the time.

Guarantees:
    * Every byte that comes before the damage is given, the same ones each time; then Damaged is
      raised, with the place.
    * Memory: a chunk, and what one call unpacks.

Threads: one.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

__all__ = ["FORMATS", "Damaged", "Format", "Unpacked", "by_magic", "by_name"]

_CHUNK = 1 << 16


class Damaged(Exception):
    """The file is not what it says; the message has the offset in it."""


class _Unpacker(Protocol):
    """As `bz2.BZ2Decompressor`."""

    needs_input: bool

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflate:
    """zlib's, with the face of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)
        self._left = b""
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        output = self._zlib.decompress(self._left + data, max_length)
        self._left = self._zlib.unconsumed_tail
        self.needs_input = not self._left and len(output) < max_length
        return output


class Format:
    """One of them.

    Attributes:
        name: What it is called.
        suffixes: Of file names, in lower case.
        magic: What its files begin with, any of these.
        padded: Whether zeros may stand between its members and after them.
    """

    def __init__(
        self, name: str, suffixes: tuple[str, ...], magic: tuple[bytes, ...], padded: bool
    ) -> None:
        self.name = name
        self.suffixes = suffixes
        self.magic = magic
        self.padded = padded

    def library(self, zstd: str) -> tuple[Callable[[], _Unpacker], tuple[type[Exception], ...]]:
        """What makes an unpacker, and what it raises.

        Args:
            zstd: The module for zstd.

        Raises:
            ImportError: It is not installed.
        """
        if self.name == "gzip":
            return _Inflate, (zlib.error,)
        if self.name == "bzip2":
            return import_module("bz2").BZ2Decompressor, (OSError, ValueError)
        if self.name == "xz":
            lzma: Any = import_module("lzma")
            return lzma.LZMADecompressor, (lzma.LZMAError,)
        module: Any = import_module(zstd)
        return module.ZstdDecompressor, (module.ZstdError,)


_BZIP2_BODY = (b"1AY&SY", b"\x17rE8P\x90")  # "BZh9" alone may well be text
FORMATS = (
    Format("gzip", (".gz", ".gzip", ".tgz"), (b"\x1f\x8b\x08",), True),
    Format(
        "bzip2",
        (".bz2",),
        tuple(b"BZh%d" % size + body for size in range(1, 10) for body in _BZIP2_BODY),
        False,
    ),
    Format("xz", (".xz", ".lzma"), (b"\xfd7zXZ\0",), True),
    Format("zstd", (".zst", ".zstd"), (b"\x28\xb5\x2f\xfd",), False),
)


def by_name(path: str) -> Format | None:
    """The format that a file's name tells."""
    lower = path.lower()
    return next((one for one in FORMATS if lower.endswith(one.suffixes)), None)


def by_magic(begin: bytes) -> Format | bool:
    """The format of what begins so; True: more bytes could tell; False: none of them."""
    for one in FORMATS:
        if begin.startswith(one.magic):
            return one
    return any(magic.startswith(begin) for one in FORMATS for magic in one.magic)


class _Members:
    """What is packed in one or several pieces, one after the other."""

    def __init__(self, make: Callable[[], _Unpacker], padded: bool) -> None:
        self._make = make
        self._padded = padded
        self._member: _Unpacker | None = None
        self._input = b""
        self._done = 0

    @property
    def whole(self) -> bool:
        """Whether the input may end here."""
        return self._member is None and self._done > 0

    def feed(self, data: bytes) -> None:
        """More input: only when `read` gave nothing."""
        self._input += data

    def read(self, size: int) -> bytes:
        """At most so many bytes; none: `feed` first."""
        while True:
            if self._member is None:
                if self._done and self._padded:
                    self._input = self._input.lstrip(b"\0")
                if not self._input:
                    return b""
                self._member = self._make()
            member = self._member
            data, self._input = self._input, b""
            output = member.decompress(data, size)
            if member.eof:
                self._input, self._member = member.unused_data, None
                self._done += 1
            if output:
                return output
            if not member.eof and member.needs_input:
                return b""


class Unpacked:
    """Reads a packed file's content.

    Args:
        raw: The file.
        form: How it is packed.
        begin: What was read of it already.
        zstd: The module for zstd.

    Raises:
        ImportError: No library for it is installed.
    """

    def __init__(self, raw: io.FileIO, form: Format, begin: bytes, zstd: str) -> None:
        make, self._errors = form.library(zstd)
        self._raw = raw
        self._form = form
        self._new: Callable[[], _Members] = lambda: _Members(make, form.padded)
        self._seekable = raw.seekable()
        self._start = raw.tell() - len(begin) if self._seekable else 0
        self._at = self._start  # where the chunk begins
        self._chunk = begin
        self._given = 0  # bytes that came of the chunk
        self._lead = self._new()
        self._lead.feed(begin)
        self._spare = None if self._seekable else self._new()  # stands before the chunk
        self._damage: Damaged | None = None

    def read1(self, size: int) -> bytes:
        """Some more; nothing at the end.

        Raises:
            Damaged: All that came before the damage was given.
            OSError: The file cannot be read.
        """
        while self._damage is None:
            try:
                output = self._lead.read(size)
            except self._errors as error:
                output = self._salvage(size, error)
                if not output:
                    break
                return output
            if output:
                self._given += len(output)
                return output
            if not self._next_chunk(size):
                if self._lead.whole:
                    return b""
                self._damage = self._damaged(
                    self._at,
                    "the file ended before the end-of-stream marker was reached"
                    if self._at > self._start
                    else "the file is empty",
                )
        assert self._damage is not None
        raise self._damage

    def _next_chunk(self, size: int) -> bool:
        if self._spare is not None:
            self._spare.feed(self._chunk)
            while self._spare.read(size):
                pass
        self._at += len(self._chunk)
        self._chunk = self._raw.read(_CHUNK)
        self._given = 0
        self._lead.feed(self._chunk)
        return bool(self._chunk)

    def _salvage(self, size: int, error: Exception) -> bytes:
        """What the lead unpacked and lost. From now on `read1` raises."""
        self._damage = self._damaged(self._at + len(self._chunk), str(error))
        spare = self._spare or self._replayed(size)
        skip, found = self._given, bytearray()
        for number in range(len(self._chunk)):
            spare.feed(self._chunk[number : number + 1])
            try:
                while output := spare.read(min(size, skip) or 1):
                    if skip:
                        skip -= len(output)
                    else:
                        found += output
            except self._errors as same:
                self._damage = self._damaged(self._at + number, str(same))
                break
        return bytes(found)

    def _replayed(self, size: int) -> _Members:
        """An unpacker that stands before the chunk."""
        spare = self._new()
        here = self._raw.tell()
        self._raw.seek(self._start)
        left = self._at - self._start
        while left and (data := self._raw.read(min(_CHUNK, left))):
            left -= len(data)
            spare.feed(data)
            while spare.read(size):
                pass
        self._raw.seek(here)
        return spare

    def _damaged(self, at: int, why: str) -> Damaged:
        return Damaged(f"this {self._form.name} file is damaged at byte {at:,}: {why}")

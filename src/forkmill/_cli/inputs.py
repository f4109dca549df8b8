"""Files and standard input, as blocks of whole records.

    file, .gz, .zst, pipe ──read──▶ buffer ──cut after a record's end──▶ Block ──▶ a worker

Guarantees:
    * Each byte of the input is in exactly one block, in order; no block has parts of two files.
    * Memory: the buffer holds a block and one read more, whatever the size of the input. A single
      record may have MAX_RECORD bytes.
    * `take` never blocks; `fill` blocks only if `ready` is false.

Invariants:
    * IN-1  A block ends where a record ends, or where its file does.
    * IN-2  `first` of a block is one more than the number of line ends before it in its file (of
      records, for records of a fixed size), so that a failure's place is exact.

Threads: one.
"""

from __future__ import annotations

import gzip
import io
import os
import select
import stat
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any, Protocol

from .records import MAX_RECORD, Kind, csv_row

__all__ = ["Block", "Blocks", "InputError"]

_READ = 1 << 20
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


class InputError(Exception):
    """The input cannot be read on; the message names the file and the line."""


@dataclass(slots=True)
class Block:
    """Whole records of one file.

    Attributes:
        name: The file's, as the user gave it.
        first: Number of the first line (of the first record, if their size is fixed), from 1.
        data: The bytes.
        header: Names of a CSV file's columns.
    """

    name: str
    first: int
    data: bytes
    header: tuple[str, ...] = ()


class _Unpacking(Protocol):
    def read1(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class _Source:
    """One open file."""

    def __init__(self, path: str) -> None:
        self.name = "<stdin>" if path == "-" else path
        self.raw: io.FileIO
        if path == "-":
            self.raw = io.FileIO(0, closefd=False)
        else:
            self.raw = io.FileIO(path)
        self.file: _Unpacking | None = None
        self.regular = stat.S_ISREG(os.fstat(self.raw.fileno()).st_mode)
        if path.endswith(".gz"):
            self.file = gzip.GzipFile(fileobj=self.raw)
        elif path.endswith(".zst"):
            self.file = open_zstd()(self.raw)
        # Packed input is unpacked ahead of what a look at the descriptor can tell.
        self.waits = not self.regular and self.file is None

    def ready(self) -> bool:
        """Whether a read returns at once."""
        return not self.waits or bool(select.select([self.raw], [], [], 0)[0])

    def read(self) -> bytes:
        """Some more; nothing at the end. Of damaged input it gives what can be had before it."""
        return self.raw.read(_READ) if self.file is None else self.file.read1(_READ)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.raw.close()


def open_zstd() -> Callable[[IO[bytes]], _Unpacking]:
    """What makes an unpacking file of a packed one: the standard library's, or its backport.

    Raises:
        InputError: No library for it is installed.
    """
    try:
        zstd: Any = import_module(_ZSTD)
    except ImportError:
        raise InputError(
            "zstd input needs the 'zstd' extra before Python 3.14: pip install 'forkmill[zstd]'"
        ) from None
    opener: Callable[[IO[bytes]], _Unpacking] = zstd.ZstdFile
    return opener


class Blocks:
    """Cuts a list of files into blocks.

    Args:
        paths: The files, "-" for standard input; they are opened one after the other.
        kind: What a record is.

    Attributes:
        ended: Whether there is no more to come.
    """

    def __init__(self, paths: list[str], kind: Kind) -> None:
        self._kind = kind
        self._paths = list(reversed(paths))
        self._source: _Source | None = None
        self._buffer = bytearray()
        self._eof = False  # of the source
        self._line = 1
        self._header: tuple[str, ...] = ()
        self._look_at = 0  # no record's end is in the buffer before it has so many bytes
        self._read_before = 0  # bytes of the files that are through
        self.ended = not paths

    @property
    def position(self) -> int:
        """How many bytes of the files, as they are on the disk, have been read."""
        source = self._source
        now = source.raw.tell() if source is not None and source.regular else 0
        return self._read_before + now

    @property
    def place(self) -> str:
        """file:line of the next record to be taken; "" if there is none."""
        return "" if self._source is None else f"{self._source.name}:{self._line}"

    def ready(self) -> bool:
        """Whether `fill` returns at once."""
        return self._source is None or self._source.ready()

    def fill(self) -> None:
        """Read on: once.

        Raises:
            InputError: The file cannot be opened or read; a record is too long.
        """
        if self._source is None and not self._open():
            return
        source = self._source
        assert source is not None
        try:
            data = source.read()
        except Exception as error:
            if not isinstance(error, _broken()):
                raise
            raise InputError(f"{source.name}:{self._line}: {reason(error)}") from error
        self._buffer += data
        self._eof = not data
        if self._eof and not self._buffer:
            self._close()
        elif len(self._buffer) > MAX_RECORD + _READ and self._end(1) == 0:
            what = 'is a quote (") open?' if self._kind.name == "csv" else "try --in bytes:N"
            raise InputError(
                f"{source.name}:{self._line}: a record of more than {MAX_RECORD >> 20} MB; {what}"
            )

    def take(self, want: int) -> Block | None:
        """A block of at least `want` bytes; of fewer if no more can be had without waiting.

        Returns:
            None: `fill` first; or there is nothing more.
        """
        source = self._source
        if source is None or not self._buffer:
            return None
        size = len(self._buffer)
        if not self._eof and size < max(want, self._look_at) and source.ready():
            return None
        end = self._end(want)
        if end == 0:
            self._look_at = 2 * size  # else each read would search all of a long record again
            return None
        self._look_at = 0
        if self._kind.name == "csv" and self._line == 1:
            end = self._take_header(end)
            if end == 0:
                return self.take(want)
        with memoryview(self._buffer) as view:
            block = Block(source.name, self._line, bytes(view[:end]), self._header)
        self._drop(end)
        return block

    def close(self) -> None:
        """Close the open file. Idempotent."""
        if self._source is not None:
            self._source.close()
            self._source = None
        self.ended = True

    # ------------------------------------------------------------------ inside

    def _open(self) -> bool:
        if not self._paths:
            self.ended = True
            return False
        path = self._paths.pop()
        try:
            self._source = _Source(path)
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from error
        self._eof, self._line, self._look_at = False, 1, 0
        self._header = ()
        return True

    def _close(self) -> None:
        """This file is through: on to the next."""
        source = self._source
        assert source is not None
        self._read_before = self.position
        source.close()
        self._source = None
        self.ended = not self._paths

    def _end(self, want: int) -> int:
        """Where a block of about `want` bytes ends in the buffer; 0: no record is whole."""
        size = len(self._buffer)
        if self._eof and want >= size:
            return size
        end = self._kind.cut(self._buffer, want)
        return size if end == 0 and self._eof else end

    def _take_header(self, end: int) -> int:
        """Take the first record off the buffer; where the block ends then."""
        first = self._kind.cut(self._buffer, 1) or len(self._buffer)
        with memoryview(self._buffer) as view:
            self._header = csv_row(bytes(view[:first]))
        self._drop(first)
        return max(0, end - first)

    def _drop(self, end: int) -> None:
        self._line += self._kind.lines(self._buffer, end)
        del self._buffer[:end]
        if self._eof and not self._buffer:
            self._close()


def _broken() -> tuple[type[BaseException], ...]:
    """What readers of damaged input raise."""
    zstd: Any = sys.modules.get(_ZSTD)
    return (OSError, EOFError, zlib.error, *((zstd.ZstdError,) if zstd else ()))


def reason(error: BaseException) -> str:
    """An error of the system or of an unpacker, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__

"""Files and standard input, as blocks of whole records.

    file, packed or not, pipe ──read──▶ buffer ──cut after a record's end──▶ Block ──▶ a worker

Guarantees:
    * Each byte of the input is in exactly one block, in order; no block has parts of two files.
    * Of input that is damaged, every whole record before the damage is taken first.
    * Memory: the buffer holds a block and one read more, whatever the size of the input. A single
      record may have MAX_RECORD bytes; one that has more is named, and left out.
    * `take` never blocks; `fill` blocks only if `ready` is false.

Invariants:
    * IN-1  A block ends where a record ends, or where its file does.
    * IN-2  `first` of a block is one more than the number of line ends before it in its file (of
      records, for records of a fixed size), so that a failure's place is exact.
    * IN-3  `_problem` is told by the next `fill` that has nothing whole to wait for it: after the
      records before it were taken.

Threads: one.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from .packed import (
    Damaged,
    Format,
    Unpacked,
    by_magic,
    by_name,
)
from .records import MAX_RECORD, Kind, csv_row
from .rows import Ends

__all__ = ["Block", "Blocks", "InputError", "TooLong"]

_READ = 1 << 20
_BEGIN = 1 << 16  # of the first read: enough to see what the file is
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_BOM = b"\xef\xbb\xbf"


class InputError(Exception):
    """The input cannot be read on; the message names the file and the line."""


class TooLong(InputError):
    """A record has more than MAX_RECORD bytes. It is left out; the input can be read on.

    Attributes:
        name: The file.
        line: Where the record begins.
        reason: Without file and line.
    """

    def __init__(self, name: str, line: int, reason: str) -> None:
        super().__init__(f"{name}:{line}: {reason}")
        self.name = name
        self.line = line
        self.reason = reason


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


class _Source:
    """One open file.

    Args:
        path: Of the file; "-" is standard input.
        text: Whether it is text: then what it begins with tells whether it is packed, too.
    """

    def __init__(self, path: str, text: bool) -> None:
        self.name = "<stdin>" if path == "-" else path
        self.raw = io.FileIO(0, closefd=False) if path == "-" else io.FileIO(path)
        self.regular = stat.S_ISREG(os.fstat(self.raw.fileno()).st_mode)
        self._text = text
        self._format = by_name(path)
        self._file: Unpacked | None = None
        self._begun = False

    def ready(self) -> bool:
        """Whether a read returns at once."""
        # Packed input is unpacked ahead of what a look at the descriptor can tell.
        if self.regular or self._file is not None:
            return True
        return bool(select.select([self.raw], [], [], 0)[0])

    def read(self) -> bytes:
        """Some more; nothing at the end.

        Raises:
            Damaged: It is packed, and not as it should be. All before that was given.
            OSError: It cannot be read.
            InputError: It cannot be unpacked here, or is text of another encoding.
        """
        if not self._begun:
            return self._begin()
        return self.raw.read(_READ) if self._file is None else self._file.read1(_READ)

    def _begin(self) -> bytes:
        self._begun = True
        begin = self.raw.read(_BEGIN)
        form: Format | None = self._format
        if self._text:
            while begin and (found := by_magic(begin)) is True:
                more = self.raw.read(_READ)
                begin += more
                if not more:
                    break
            form = found if begin and isinstance(found, Format) else form
        if form is not None:
            try:
                self._file = Unpacked(self.raw, form, begin, _ZSTD)
            except ImportError:
                raise InputError(_no_library(form)) from None
            begin = self._file.read1(_READ)
        return self._decoded(begin) if self._text else begin

    def _decoded(self, begin: bytes) -> bytes:
        """Without the mark of UTF-8, which is no part of the text."""
        while 0 < len(begin) < 4 and (
            _BOM.startswith(begin[:3]) or begin.startswith((b"\xff\xfe", b"\xfe\xff"))
        ):
            more = self.read()
            if not more:
                break
            begin += more
        # The mark, and then a letter of ASCII.
        if begin[:2] in (b"\xff\xfe", b"\xfe\xff") and b"\0" in begin[2:4]:
            raise InputError(
                "this text is UTF-16; make it UTF-8 first: iconv -f UTF-16 -t UTF-8 FILE"
            )
        return begin.removeprefix(_BOM)

    def close(self) -> None:
        self.raw.close()


def check_zstd() -> None:
    """See whether there is a library for zstd.

    Raises:
        InputError: None is installed.
    """
    try:
        import_module(_ZSTD)
    except ImportError:
        raise InputError(
            "zstd input needs the 'zstd' extra before Python 3.14: pip install 'forkmill[zstd]'"
        ) from None


def _no_library(form: Format) -> str:
    if form.name == "zstd":
        return "it is packed by zstd, which takes the 'zstd' extra: pip install 'forkmill[zstd]'"
    return f"it is packed by {form.name}, for which this Python has no library"


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
        self._ends = Ends()  # of CSV records
        self._eof = False  # of the source
        self._broken = False  # the source cannot be read on
        self._skipping = False  # the rest of a record that is too long
        self._problem: InputError | None = None
        self._line = 1
        self._header: tuple[str, ...] | None = None
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
        return self._source is None or self._problem is not None or self._source.ready()

    def fill(self) -> None:
        """Read on: once. Only when `take` has nothing.

        Raises:
            TooLong: A record is too long, and is left out; go on.
            InputError: The file cannot be opened or read.
        """
        if self._problem is not None:
            self._tell_problem()
        if self._source is None and not self._open():
            return
        source = self._source
        assert source is not None
        try:
            data = source.read()
        except (Damaged, InputError, OSError) as error:
            self._broken = True
            self._problem = InputError(reason(error))
            return
        self._buffer += data
        self._eof = not data
        if self._skipping:
            self._skip()
        elif self._eof and not self._buffer:
            self._close()
        elif len(self._buffer) > MAX_RECORD + _READ and self._end(1) == 0:
            self._refuse(0)

    def take(self, want: int) -> Block | None:
        """A block of at least `want` bytes; of fewer if no more can be had without waiting.

        Returns:
            None: `fill` first; or there is nothing more.
        """
        source = self._source
        if source is None or not self._buffer or self._skipping:
            return None
        if self._problem is not None and not self._broken:
            return None
        size = len(self._buffer)
        whole = self._eof or self._broken
        if not whole and size < max(want, self._look_at) and source.ready():
            return None
        end = self._end(want)
        if end == 0:
            self._look_at = 2 * size  # else each read would search all of a long record again
            return None
        self._look_at = 0
        if end > MAX_RECORD:  # then it is one record, or two of which one may be too long
            end = self._end(1)
            if end > MAX_RECORD:
                self._refuse(end)
                return None
        if self._kind.name == "csv" and self._header is None:
            self._take_header()
            return self.take(want)
        with memoryview(self._buffer) as view:
            block = Block(source.name, self._line, bytes(view[:end]), self._header or ())
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
            self._source = _Source(path, self._kind.name != "bytes")
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from error
        self._eof = self._broken = self._skipping = False
        self._line, self._look_at = 1, 0
        self._ends = Ends()
        self._header = None
        return True

    def _close(self) -> None:
        """This file is through: on to the next."""
        source = self._source
        assert source is not None
        self._read_before = self.position
        source.close()
        self._source = None
        self.ended = not self._paths and self._problem is None

    def _tell_problem(self) -> NoReturn:
        """What came before it was taken (IN-3)."""
        problem, self._problem = self._problem, None
        assert problem is not None
        if not self._broken:
            raise problem
        place = self.place
        left = "; the record that was begun there is left out" if self._buffer else ""
        self._buffer.clear()
        self._close()
        raise InputError(f"{place}: {problem}{left}") from problem

    def _end(self, want: int) -> int:
        """Where a block of about `want` bytes ends in the buffer; 0: no record is whole."""
        size = len(self._buffer)
        if self._eof and want >= size:
            return size
        if self._kind.name == "csv":
            end = self._ends.cut(self._buffer, want)
        else:
            end = self._kind.cut(self._buffer, want)
        return size if end == 0 and self._eof else end

    def _take_header(self) -> None:
        """Take the first record off the buffer."""
        first = self._end(1)
        with memoryview(self._buffer) as view:
            self._header = csv_row(bytes(view[:first]))
        self._drop(first)

    def _refuse(self, end: int) -> None:
        """The first record is too long; it goes to `end`, if that is known yet."""
        assert self._source is not None
        what = 'is a quote (") open?' if self._kind.name == "csv" else "try --in bytes:N"
        text = f"a record of more than {MAX_RECORD >> 20} MB; {what}"
        if self._kind.name == "csv" and self._header is None:
            self._broken = True  # nobody can tell what the columns of the others are
            self._problem = InputError(f"the file begins with {text}")
            self._buffer.clear()
            return
        self._problem = TooLong(self._source.name, self._line, text)
        if end:
            self._drop(end)
        else:
            self._skipping = True
            self._skip()

    def _skip(self) -> None:
        """Drop what there is of a record that is too long."""
        end = self._end(1)
        self._skipping = end == 0
        if end == 0:
            csv = self._kind.name == "csv"
            end = self._ends.spare() if csv else len(self._buffer)
        self._drop(end)

    def _drop(self, end: int) -> None:
        self._line += self._kind.lines(self._buffer, end)
        del self._buffer[:end]
        self._ends.drop(end)
        if self._eof and not self._buffer:
            self._close()


def reason(error: BaseException) -> str:
    """An error of the system or of an unpacker, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__

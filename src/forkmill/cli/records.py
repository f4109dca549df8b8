"""Records, and what a worker does with a block of them.

    block of bytes ──split──▶ record ──fn──▶ result ──text──▶ one line each ──join──▶ bytes
                                  └─ raises ──▶ Failure, with its line

A whole block crosses to the worker, and its results come back as one piece of text: what a record
costs beyond the user's function is paid in the workers.

Guarantees:
    * One line of output for each record that did not fail, in the order of the records.
    * Text that is not UTF-8 comes out as it went in (surrogateescape both ways), whatever else is
      in its block; within JSON it is escaped, as Python's json module does.
    * What is printed as JSON is JSON. A result that is no value (a coroutine, a generator, an
      object that has no text of its own) is its record's failure.
    * A Failure is whole: nothing in it is cut.

Threads: a worker runs one block at a time. `setup` comes first, in each worker.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from .rows import Ends, count_lines

__all__ = [
    "MAX_RECORD", "Failure", "Kind", "Result", "kind", "records_of", "run_block", "setup",
    "to_line",
]  # fmt: skip

MAX_RECORD = 64 << 20  # bytes; a longer one is taken for a mistake

Buffer = bytes | bytearray


class Failure(NamedTuple):
    """A record that failed.

    Attributes:
        offset: Its line, counted from the block's first; of fixed-size records their number.
        type: The exception's class name.
        message: The exception's text.
        traceback: The frames of the user's code.
        record: The record itself, as text; None: it was too long to be kept.
    """

    offset: int
    type: str
    message: str
    traceback: str
    record: str | None


class Result(NamedTuple):
    """What became of a block.

    Attributes:
        output: The results, a line each.
        records: How many records were run.
        failures: Those that failed.
        seconds: How long it took.
    """

    output: bytes
    records: int
    failures: list[Failure]
    seconds: float


# ------------------------------------------------------------------- kinds of records


@dataclass(frozen=True, slots=True)
class Kind:
    """What a record is.

    Attributes:
        name: "lines", "json", "csv" or "bytes".
        size: Of a record, for "bytes".
    """

    name: str
    size: int = 0

    def cut(self, data: Buffer, want: int) -> int:
        """Where the first records end that have `want` bytes together.

        Nearer, if that end is not in `data`, but some record's is; 0 if none is.
        """
        if self.name == "bytes":
            whole = len(data) // self.size
            return min(whole, -(-want // self.size)) * self.size
        if self.name == "csv":
            return Ends().cut(data, want)
        end = data.find(b"\n", want - 1) + 1
        return end or data.rfind(b"\n") + 1

    def lines(self, data: Buffer, end: int) -> int:
        """How far the first `end` bytes of `data` take the line (or record) number."""
        if self.name == "bytes":
            return -(-end // self.size)
        return count_lines(data, end) if self.name == "csv" else data.count(b"\n", 0, end)

    def text(self, record: bytes) -> str:
        """A record as a Failure shows it."""
        if self.name == "bytes":
            return repr(record)
        if self.name == "csv":
            return repr(list(csv_row(record)))
        return record.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


def kind(text: str) -> Kind:
    """Of the option's text.

    Raises:
        ValueError: There is no such kind.
    """
    if text in ("lines", "json", "csv"):
        return Kind(text)
    name, _, number = text.partition(":")
    if name == "bytes" and number.isdecimal() and 0 < int(number) <= MAX_RECORD:
        return Kind(name, int(number))
    raise ValueError(f"{text!r} is none of lines, json, csv, bytes:N (N from 1 to {MAX_RECORD})")


@contextlib.contextmanager
def long_fields() -> Iterator[None]:
    """csv's own limit is less than ours; it is the process's, and perhaps the user's too."""
    before = csv.field_size_limit(2 * MAX_RECORD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def csv_row(data: bytes) -> tuple[str, ...]:
    """The fields of one CSV record."""
    with long_fields():
        return tuple(next(_csv_reader(data.decode("utf-8", "surrogateescape")), []))


def _csv_reader(text: str) -> Any:
    return csv.reader(io.StringIO(text, newline="" if "\r" in text else "\n"))


# ------------------------------------------------------------------ in the worker


class _Job:
    """What `setup` leaves for `run_block`."""

    fn: Callable[[Any], Any]
    kind: Kind
    stop: bool  # at the first failure


_job = _Job()


def setup(fn: Callable[[Any], Any], what: Kind, stop: bool) -> None:
    """The worker's initializer."""
    _job.fn, _job.kind, _job.stop = fn, what, stop


def run_block(data: bytes, header: tuple[str, ...]) -> Result:
    """Run the function on each record of a block."""
    started = perf_counter()
    fn, stop = _job.fn, _job.stop
    lines: list[str] = []
    failures: list[Failure] = []
    count = 0
    add, show = lines.append, _show
    for offset, record, load in records_of(_job.kind, data, header):
        count += 1
        try:
            value = fn(record if load is None else load(record))
            # The two commonest kinds need no call.
            add(value if type(value) is str else show(value))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() and CancelledError too
            failures.append(_failure(offset, record, error))
            if stop:
                break
    return Result(_output(lines), count, failures, perf_counter() - started)


def run_one(data: bytes, header: tuple[str, ...]) -> Result:
    """Run the function on the one record of a block. What it raises is the task's outcome: the pool
    tries again, or ends it when its time is over."""
    started = perf_counter()
    lines: list[str] = []
    for _, record, load in records_of(_job.kind, data, header):
        lines.append(_show(_job.fn(record if load is None else load(record))))
    return Result(_output(lines), len(lines), [], perf_counter() - started)


_Loader = Callable[[Any], Any] | None


def records_of(
    what: Kind, data: bytes, header: tuple[str, ...]
) -> Iterator[tuple[int, Any, _Loader]]:
    """(offset, record, what makes the function's argument of it) of each record of a block."""
    name, size = what.name, what.size
    if name == "bytes":
        for number, at in enumerate(range(0, len(data), size)):
            yield number, data[at : at + size], None
        return
    text = data.decode("utf-8", "surrogateescape")
    if name == "csv":
        yield from _csv_records(text, header)
        return
    load = json.loads if name == "json" else None
    parts = text.split("\n")
    if parts[-1] == "":  # a file's last line may lack its end
        parts.pop()
    crlf = "\r" in text
    for number, line in enumerate(parts):
        if crlf and line.endswith("\r"):
            line = line[:-1]
        if load is None or line.strip():  # JSON lines often end in an empty one: no record
            yield number, line, load


def _csv_records(text: str, header: tuple[str, ...]) -> Iterator[tuple[int, Any, _Loader]]:
    reader = _csv_reader(text)
    with long_fields():  # for the whole block, as the user's function is run in between
        offsets = itertools.chain((0,), iter(lambda: reader.line_num, None))
        rows = list(zip(offsets, reader, strict=False))

    def load(row: list[str]) -> dict[str, str]:
        return _named(header, row)

    for offset, row in rows:
        if row:  # an empty line is no record
            yield offset, row, load


def _named(header: tuple[str, ...], row: list[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise ValueError(f"{len(row)} fields, but the header has {len(header)}")
    return dict(zip(header, row, strict=True))


# --------------------------------------------------------------------- to text

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_encode_ascii = json.JSONEncoder(allow_nan=False).encode
_encode_any = json.JSONEncoder().encode


def _show(value: Any) -> str:
    """A result as it is if it is a string, else as JSON, else as repr.

    Raises:
        ValueError: It is JSON but for a NaN or an Infinity.
        TypeError: It is nothing that could be printed.
    """
    if isinstance(value, str):
        return str(value)
    if type(value) is int:
        return repr(value)
    try:
        text = _encode(value)
    except (TypeError, RecursionError):
        return _repr(value)
    except ValueError:
        _refuse_nan(value)
        return _repr(value)
    return text if text.isascii() or _is_unicode(text) else _encode_ascii(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_nan(value: Any) -> None:
    try:
        _encode_any(value)
    except (ValueError, TypeError, RecursionError):
        return  # there is another reason, such as a list that contains itself
    raise ValueError(
        "the result has a NaN or an Infinity in it, which JSON does not know: "
        "let the function return None or a string for it"
    )


_UNFINISHED = (
    ("__await__", "something to be awaited"),
    ("__anext__", "an asynchronous generator"),
    ("__next__", "an iterator"),
)


def _repr(value: Any) -> str:
    """The repr of what has one that says what it is."""
    kind = type(value)
    for method, what in _UNFINISHED:
        if hasattr(kind, method):
            with contextlib.suppress(Exception):
                value.close()  # a coroutine warns if nobody runs it
            raise TypeError(
                f"the result is {what} ({kind.__name__}): let the function return what it stands "
                "for, as a value or a list"
            )
    if kind.__repr__ in _BARE:
        raise TypeError(
            f"the result is a {kind.__name__}, which has no text but its address: let the function "
            "return a string, a number, a list or a dict"
        )
    return repr(value)


_BARE: tuple[Any, ...] = (object.__repr__, FunctionType.__repr__, MethodType.__repr__)


def _output(lines: list[str]) -> bytes:
    if not lines:
        return b""
    text = "\n".join(lines)
    if text.count("\n") != len(lines) - 1 or "\r" in text:  # rare: one search for all
        text = "\n".join(line.replace("\n", "\\n").replace("\r", "\\r") for line in lines)
    return (text + "\n").encode("utf-8", _LOSSLESS)


_LOSSLESS = "forkmill.lossless"


def _lossless(error: UnicodeError) -> tuple[bytes, int]:
    """Surrogates that stand for bytes become these; others, which no decoding made, are escaped."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    found = bytearray()
    for character in part:
        code = ord(character)
        found += bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else b"\\u%04x" % code
    return bytes(found), error.end


codecs.register_error(_LOSSLESS, _lossless)


def to_line(value: Any) -> bytes:
    """A single result as a line of output."""
    return _output([_show(value)])


def text_of(value: Any) -> str:
    """What a message shows of any object."""
    for show in (_show, repr):
        with contextlib.suppress(Exception):
            return show(value)
    return f"a {type(value).__name__} whose repr fails"


def _failure(offset: int, record: Any, error: BaseException) -> Failure:
    message = "its text cannot be had"
    with contextlib.suppress(Exception):
        message = str(error)
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without our own
    trace = "".join(traceback.format_tb(frames))
    shown = record if isinstance(record, str) else repr(record)
    return Failure(offset, type(error).__name__, message, trace, shown)

"""Records, and what a worker does with a block of them.

    block of bytes ──split──▶ record ──fn──▶ result ──text──▶ one line each ──join──▶ bytes
                                  └─ raises ──▶ Failure, with its line

A whole block crosses to the worker, and its results come back as one piece of text: what a record
costs beyond the user's function is paid in the workers.

Guarantees:
    * One line of output for each record that did not fail, in the order of the records.
    * Text that is not UTF-8 comes out as it went in (surrogateescape both ways).

Threads: a worker runs one block at a time. `setup` comes first, in each worker.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

__all__ = ["MAX_RECORD", "Failure", "Kind", "Result", "kind", "run_block", "setup", "to_line"]

MAX_RECORD = 64 << 20  # bytes; a longer one is taken for a mistake
_MOST_TEXT = 10_000  # characters of a failure's record, message and traceback

Buffer = bytes | bytearray


class Failure(NamedTuple):
    """A record that failed.

    Attributes:
        offset: Its line, counted from the block's first; of fixed-size records their number.
        type: The exception's class name.
        message: The exception's text.
        traceback: The frames of the user's code.
        record: The record itself, as text.
    """

    offset: int
    type: str
    message: str
    traceback: str
    record: str


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
            return _cut_csv(data, want)
        end = data.find(b"\n", want - 1) + 1
        return end or data.rfind(b"\n") + 1

    def lines(self, data: Buffer, end: int) -> int:
        """How far the first `end` bytes of `data` take the line (or record) number."""
        return -(-end // self.size) if self.name == "bytes" else data.count(b"\n", 0, end)


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


def _cut_csv(data: Buffer, want: int) -> int:
    """As `Kind.cut`: a line's end is a record's end if the quotes before it are even."""
    end = data.find(b"\n", want - 1) + 1
    quotes = data.count(b'"', 0, end)
    while end and quotes % 2:
        quote = data.find(b'"', end)
        after = data.find(b"\n", quote) + 1 if quote >= 0 else 0
        quotes += data.count(b'"', end, after) if after else 0
        end = after
    if end:
        return end
    end = data.rfind(b"\n") + 1
    quotes = data.count(b'"', 0, end)
    while end and quotes % 2:
        before = data.rfind(b"\n", 0, end - 1) + 1
        quotes -= data.count(b'"', before, end)
        end = before
    return end


def csv_row(data: bytes) -> tuple[str, ...]:
    """The fields of one CSV record."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return tuple(next(csv.reader(io.StringIO(text, newline="\n")), []))


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
    csv.field_size_limit(MAX_RECORD)


def run_block(data: bytes, header: tuple[str, ...]) -> Result:
    """Run the function on each record of a block."""
    started = perf_counter()
    fn, stop = _job.fn, _job.stop
    lines: list[str] = []
    failures: list[Failure] = []
    count = 0
    add, show = lines.append, _show
    for offset, record, load in _records(data, header):
        count += 1
        try:
            value = fn(record if load is None else load(record))
            # The two commonest kinds need no call.
            add(value if type(value) is str else show(value))
        except (Exception, SystemExit) as error:
            failures.append(_failure(offset, record, error))
            if stop:
                break
    return Result(_output(lines), count, failures, perf_counter() - started)


_Loader = Callable[[Any], Any] | None


def _records(data: bytes, header: tuple[str, ...]) -> Iterator[tuple[int, Any, _Loader]]:
    """(offset, record, what makes the function's argument of it) of each record."""
    name, size = _job.kind.name, _job.kind.size
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
    rows = csv.reader(io.StringIO(text, newline="\n"))
    offset = 0
    for row in rows:
        if row:  # an empty line is no record
            yield offset, row, lambda row: _named(header, row)
        offset = rows.line_num


def _named(header: tuple[str, ...], row: list[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise ValueError(f"{len(row)} fields, but the header has {len(header)}")
    return dict(zip(header, row, strict=True))


# --------------------------------------------------------------------- to text

_encode = json.JSONEncoder(ensure_ascii=False).encode


def _show(value: Any) -> str:
    """A result as it is if it is a string, else as JSON, else as repr."""
    if isinstance(value, str):
        return str(value)
    if type(value) is int:
        return repr(value)
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _output(lines: list[str]) -> bytes:
    if not lines:
        return b""
    text = "\n".join(lines)
    if text.count("\n") != len(lines) - 1 or "\r" in text:  # rare: one search for all
        text = "\n".join(line.replace("\n", "\\n").replace("\r", "\\r") for line in lines)
    text += "\n"
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that no decoding made
        return text.encode("utf-8", "backslashreplace")


def to_line(value: Any) -> bytes:
    """A single result as a line of output."""
    return _output([_show(value)])


def _failure(offset: int, record: Any, error: BaseException) -> Failure:
    message = "its text cannot be had"
    with contextlib.suppress(Exception):
        message = str(error)
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without our own
    trace = "".join(traceback.format_tb(frames))
    shown = record if isinstance(record, str) else repr(record)
    return Failure(
        offset,
        type(error).__name__,
        message[:_MOST_TEXT],
        trace[-_MOST_TEXT:],
        shown[:_MOST_TEXT],
    )

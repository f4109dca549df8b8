"""Where the records of a CSV file end: as Python's csv module has it, byte by byte.

The module's "excel" dialect: a quote opens a quoted field only where a field begins; in one, two
quotes are one, and one ends it; everywhere else a quote is a character like others. A record ends
with a line (LF, CRLF or CR) that is in no quoted field.

    ... 5" disk,"several\\nlines",x\\n ...
        ╰─ no ─╯╰──── a span ───╯

Only the quoted fields that have a line end in them matter here (*spans*): a line end is a record's,
if it is in none. One pattern runs over all the rest, each byte once.

Invariants:
    * ROW-1  What was looked at lies before `_pos`. If `_open` is not -1, a quoted field that begins
      there goes on at `_pos`; then nothing after `_open` is known to be a record's end.
    * ROW-2  Spans, `_pos` and `_open` count from the begin of the buffer that `cut` is given:
      who takes bytes off it says so by `drop`.

Threads: one.
"""

from __future__ import annotations

import re
from bisect import bisect_right

__all__ = ["Ends", "count_lines"]

Buffer = bytes | bytearray

# Up to a quoted field that has a line end in it, or whose end is not here yet. In the second
# alternative a quote within an unquoted field; in the third a whole quoted one: what follows its
# last quote must be known, as two of them are none.
_PLAIN = re.compile(rb'(?:[^"]++|(?<=[^,\r\n])"|"[^"\r\n]*+(?:""[^"\r\n]*+)*+"(?=[^"]))*+')
# Up to the first single quote.
_QUOTED = re.compile(rb'[^"]*+(?:""[^"]*+)*+')


class Ends:
    """Finds the ends of records in a buffer that grows at its end and is taken off at its begin."""

    def __init__(self) -> None:
        self._pos = 0
        self._open = -1
        self._starts: list[int] = []  # of the spans
        self._stops: list[int] = []

    def cut(self, data: Buffer, want: int) -> int:
        """Where the first records end that have `want` bytes together.

        Nearer, if that end is not in `data`, but some record's is; 0 if none is.
        """
        self._look(data)
        limit = self._pos if self._open < 0 else self._open
        return self._next(data, want - 1, limit) or self._last(data, limit)

    def drop(self, size: int) -> None:
        """So many bytes were taken off the begin."""
        gone = bisect_right(self._stops, size)
        self._starts = [at - size for at in self._starts[gone:]]
        self._stops = [at - size for at in self._stops[gone:]]
        self._pos = max(0, self._pos - size)
        if self._open >= 0:
            self._open = max(0, self._open - size)

    def spare(self) -> int:
        """How many bytes are not needed to go on, though no record ends in them."""
        return max(0, self._pos - 1)  # the one before may tell what a quote is

    # ------------------------------------------------------------------ inside

    def _look(self, data: Buffer) -> None:
        """Look at what is new."""
        size = len(data)
        while self._pos < size:
            if self._open < 0:
                self._pos = _end(_PLAIN, data, self._pos)
                if self._pos == size:
                    return
                self._open = self._pos
                self._pos += 1
            self._pos = _end(_QUOTED, data, self._pos)
            if self._pos + 1 >= size:
                return  # a quote that is the last byte may be the first of two
            self._pos += 1
            if _has_line_end(data, self._open, self._pos):
                self._starts.append(self._open)
                self._stops.append(self._pos)
            self._open = -1

    def _next(self, data: Buffer, start: int, limit: int) -> int:
        while True:
            line_feed = data.find(b"\n", start, limit)
            at = data.find(b"\r", start, limit if line_feed < 0 else line_feed)
            if at < 0 or at + 1 == line_feed:
                at = line_feed
            elif at + 1 == len(data):
                return 0  # it may be the first half of one
            if at < 0:
                return 0
            after = self._after_span(at)
            if after == 0:
                return at + 1
            start = after

    def _last(self, data: Buffer, limit: int) -> int:
        while True:
            at = data.rfind(b"\n", 0, limit)
            lone = data.rfind(b"\r", at + 1, limit)
            if lone >= 0 and lone + 1 == len(data):
                lone = data.rfind(b"\r", at + 1, lone)
            at = max(at, lone)
            if at < 0:
                return 0
            number = bisect_right(self._starts, at) - 1
            if number < 0 or at >= self._stops[number]:
                return at + 1
            limit = self._starts[number]

    def _after_span(self, at: int) -> int:
        """The end of the span that `at` is in; 0: it is in none."""
        number = bisect_right(self._starts, at) - 1
        return self._stops[number] if number >= 0 and at < self._stops[number] else 0


def _end(pattern: re.Pattern[bytes], data: Buffer, start: int) -> int:
    match = pattern.match(data, start)
    assert match is not None  # it may be empty
    return match.end()


def _has_line_end(data: Buffer, start: int, stop: int) -> bool:
    return data.find(b"\n", start, stop) >= 0 or data.find(b"\r", start, stop) >= 0


def count_lines(data: Buffer, end: int) -> int:
    """How many lines end in the first `end` bytes, as the csv module counts."""
    returns = data.count(b"\r", 0, end)
    pairs = data.count(b"\r\n", 0, end + 1) if returns else 0
    return data.count(b"\n", 0, end) + returns - pairs

"""What workers print, with a tag on each line: `ProcessPool(tag_output=True)`.

    print ──▶ Tagged: whole lines ──▶ "[pool-1 pid 123] ..." ──one write() each──▶ descriptor 1 or 2

Guarantees:
    * A line that is no longer than a pipe takes at once (PIPE_BUF, 4096 bytes) never mixes with
      another worker's; in a file none does.
    * Whole lines leave at once, also before a death. One that is not finished leaves, and ends,
      when its stream is flushed, which a worker does before it waits.

What does not go through sys.stdout and sys.stderr has no tag: os.write(1), C code, programs that
a task runs, sys.stdout.buffer.

Threads: any, in a worker. Each has a line of its own, so there is no lock for a fork to copy.
"""

from __future__ import annotations

import io
import os
import select
import sys
from threading import get_ident
from typing import Any

__all__ = ["Tagged", "tag"]

_LONGEST = 1 << 16  # characters that wait for the end of their line


class Tagged(io.TextIOBase):
    """A text stream that writes whole lines, with a tag before each.

    Args:
        stream: Where they go; by its descriptor if it has one.
        prefix: The tag, and the space after it.
    """

    def __init__(self, stream: Any, prefix: str) -> None:
        self.stream = stream
        self._prefix = prefix
        self._lines: dict[int, str] = {}  # unfinished, by thread
        try:
            self._fd = stream.fileno()
        except (AttributeError, OSError, ValueError):
            self._fd = -1

    # What others ask a standard stream for.

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "errors", None) or "backslashreplace"

    @property
    def buffer(self) -> Any:
        return self.stream.buffer

    @property
    def name(self) -> Any:
        return self.stream.name

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def isatty(self) -> bool:
        return bool(self.stream.isatty())

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Write the lines that are whole now; the rest waits for its end or for flush()."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        me = get_ident()
        *whole, rest = (self._lines.pop(me, "") + text).split("\n")
        if len(rest) >= _LONGEST:
            whole.append(rest)
            rest = ""
        if rest:
            self._lines[me] = rest
        for line in whole:
            self._put(line)
        return len(text)

    def flush(self) -> None:
        """Write the lines of all threads, finished or not."""
        while self._lines:
            try:
                _, line = self._lines.popitem()
            except KeyError:  # its thread has just finished it
                break
            self._put(line)

    def _put(self, line: str) -> None:
        text = f"{self._prefix}{line}\n"
        if self._fd < 0:
            self.stream.write(text)
            self.stream.flush()
            return
        data = text.encode(self.encoding, self.errors)
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # who shares it does not want to wait; we do
                select.select([], [self._fd], [])


def tag(name: str) -> None:
    """Have this process tag what it prints, also by the logging handlers that there are."""
    prefix = f"[{name} pid {os.getpid()}] "
    tagged: dict[int, tuple[Any, Tagged]] = {}
    for attribute in ("stdout", "stderr"):
        old = stream = getattr(sys, attribute)
        if stream is None:
            continue
        while isinstance(stream, Tagged):  # in a worker of a worker
            stream = stream.stream
        new = Tagged(stream, prefix)
        tagged[id(old)] = old, new
        setattr(sys, attribute, new)
    logging = sys.modules.get("logging")
    for reference in getattr(logging, "_handlerList", ()):
        handler = reference()
        _, to = tagged.get(id(getattr(handler, "stream", None)), (None, None))
        if handler is not None and to is not None:
            handler.stream = to

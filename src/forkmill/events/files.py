"""Events in files: a JSON object a line.

Threads: any; a sink is called in the thread of the stream.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any

from .._late import unbroken
from .._said import short
from .event import BUFFER, checked, event_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .event import Event


class JsonLines:
    """A sink that appends events to a file, a JSON object a line. ::

        line.run(sinks=[fm.JsonLines("run.jsonl", detail="items")])

    Several processes may write to one file: each batch of whole lines is one write. `read_events`
    reads it, also while it is written.

    Args:
        path: The file; it is made if it is not there.
        detail: As for `subscribe`.
        policy: As for `subscribe`.

    Raises:
        OSError: It cannot be opened.
        ValueError: detail or policy.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, detail: str = "runs", policy: str = "drop"
    ) -> None:
        self.path = os.fspath(path)
        self.detail, self.policy, _ = checked(self, detail, policy, BUFFER)
        self._fd = _opened(self.path)
        self._torn = _ends_torn(self.path)

    def __call__(self, event: Event) -> None:
        """Write one."""
        self.batch([event])

    def batch(self, events: list[Event]) -> None:
        """Write some.

        Raises:
            OSError: The disk is full, or so.
            ValueError: It was closed.
        """
        if self._fd < 0:
            raise ValueError(f"{self.path!r} was closed")
        import json

        encode = json.JSONEncoder(default=_plain, separators=(",", ":")).encode
        lines = "".join([f"{encode(event)}\n" for event in events])
        data = memoryview(f"\n{lines}".encode() if self._torn else lines.encode())
        self._torn = True  # unless all of it is written
        while data:
            data = data[os.write(self._fd, data) :]
        self._torn = False

    def close(self) -> None:
        """Write nothing more. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @unbroken
    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def _opened(path: str) -> int:
    """A descriptor above 2, to append with."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _ends_torn(path: str) -> bool:
    """Whether a file has a last line without its end."""
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # it is empty, or no file to be read
        return False


def _plain(value: Any) -> Any:
    """What JSON does not know, as text."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        import base64

        return base64.b64encode(value).decode("ascii")
    return short(value)


def read_events(path: str | os.PathLike[str]) -> list[Event]:
    """The events in a file that a `JsonLines` writes, or has written.

    A last line that is not whole is left out: it is being written, or its writer has died. One in
    the middle, which somebody else wrote on behind, is told by an event of the kind "gap".

    Raises:
        OSError: It cannot be read.
    """
    return list(each_event(path))


def each_event(path: str | os.PathLike[str]) -> Iterator[Event]:
    """As `read_events`, one after the other: for files of any size."""
    import json

    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict):
                yield event
            elif line.strip():
                data = {"lost": 1, "first": None, "last": None}
                yield event_of("stream", None, None, 0, "gap", data)

"""The dashboard's side: where its scenes come from.

    Link       ◀── a program's socket
    Recording  ◀── a file that fm.JsonLines writes, or has written

Both have `look`, which waits for nothing, and `scene`, the latest; `note` says what there is to
know of the source itself.

Guarantees:
    * A recording is read in slices, whatever its size: memory is that of a scene and a line. It is
      followed while it grows.
    * What is no event is counted and passed over; events of another schema end it with a message.

Threads: one.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Protocol

from ...events import SCHEMA as EVENTS
from ..text import amount, plain
from . import place
from .scene import Scene
from .server import SCHEMA

__all__ = ["Link", "LinkError", "Recording", "Source", "opened"]

_MOST_LINE = 16 << 20  # bytes of one event, or of a scene
_SLICE = 1 << 18  # bytes of a recording between two looks at the clock
_HEAD = 8 << 20  # bytes that are read of one in any case
_TAIL = 32 << 20  # bytes that are read of its end, if there is more between
_HELLO_S = 5.0
_FIELDS = ("schema", "source", "run", "parent", "time", "monotonic", "kind", "data")


class LinkError(Exception):
    """There is nothing to look at; the message says why."""


class Source(Protocol):
    """Where scenes come from.

    Attributes:
        title: What it is.
        scene: The latest.
        note: What there is to know of the source itself.
        over: Whether nothing comes any more.
        control: Whether runs can be stopped.
        live: Whether the processes in it can be looked at.
    """

    title: str
    scene: dict[str, Any] | None
    note: str
    over: bool
    control: bool
    live: bool

    def look(self, seconds: float) -> bool:
        """Take what is there, for so many seconds at the most; whether the scene is new."""

    def ask(self, do: str, which: Any) -> int:
        """Ask for something; the number of the answer."""

    def answers(self) -> dict[int, str]:
        """What was answered since the last call, by number."""

    def close(self) -> None:
        """Look no more. Idempotent."""


def opened(what: str) -> Source:
    """A program by its pid, or a recording by its path.

    Raises:
        LinkError: There is none.
    """
    if what.isdecimal() and what.isascii() and not os.path.exists(what):
        return Link(int(what))
    return Recording(what)


class Link:
    """A program that serves.

    Args:
        pid: Its process id.

    Raises:
        LinkError: It does not serve, or is none of ours.
    """

    live = True

    def __init__(self, pid: int) -> None:
        self.scene: dict[str, Any] | None = None
        self.note = ""
        self.over = False
        self._data = bytearray()
        self._number = 0
        self._answers: dict[int, str] = {}
        try:
            self._socket = place.connected(pid)
        except OSError as error:
            raise LinkError(str(error)) from None
        hello = self._hello(pid)
        self.control = hello.get("control") is True
        self.title = f"{plain(hello.get('program'), 60)} (pid {pid})"
        self._socket.setblocking(False)

    def _hello(self, pid: int) -> dict[str, Any]:
        until = time.monotonic() + _HELLO_S
        self._socket.settimeout(0.1)
        while time.monotonic() < until:
            self._receive()
            for line in self._lines():
                if line.get("kind") != "hello":
                    break
                if line.get("schema") != SCHEMA:
                    raise LinkError(
                        f"the process {pid} speaks as another version of forkmill does (schema "
                        f"{plain(line.get('schema'))}, here {SCHEMA}): use that one's forkmill top"
                    )
                return line
            if self.over:
                break
        self.close()
        raise LinkError(f"the process {pid} does not answer; it may be stopped, or be ending")

    def look(self, seconds: float) -> bool:
        """As `Source.look`."""
        new = False
        if not self.over:
            self._receive()
        for line in self._lines():
            if line.get("kind") == "scene" and isinstance(line.get("runs"), list):
                self.scene, new = line, True
            elif line.get("kind") == "answer":
                self._answers[line.get("number", 0)] = str(line.get("text"))
        if self.over and not self.note:
            self.note = "the program has ended" if self._ended() else "the program is gone"
            new = True
        return new

    def _ended(self) -> bool:
        return self.scene is not None and bool(self.scene.get("over"))

    def _receive(self) -> None:
        try:
            while True:
                data = self._socket.recv(1 << 16)
                if not data:
                    self.over = True
                    return
                self._data += data
                if len(self._data) > _MOST_LINE:
                    self.over, self.note = True, "what it sends is no scene"
                    return
        except (BlockingIOError, TimeoutError):
            pass
        except OSError:
            self.over = True

    def _lines(self) -> list[dict[str, Any]]:
        if b"\n" not in self._data:
            return []
        *whole, rest = bytes(self._data).split(b"\n")
        self._data = bytearray(rest)
        found = []
        for line in whole:
            try:
                facts = json.loads(line)
            except ValueError:
                facts = None
            if isinstance(facts, dict):
                found.append(facts)
        return found

    def ask(self, do: str, which: Any) -> int:
        """As `Source.ask`."""
        self._number += 1
        line = json.dumps({"do": do, "which": which, "number": self._number}).encode() + b"\n"
        try:
            self._socket.send(line)
        except OSError:
            self._answers[self._number] = "the program does not answer"
        return self._number

    def answers(self) -> dict[int, str]:
        """As `Source.answers`."""
        found, self._answers = self._answers, {}
        return found

    def close(self) -> None:
        """As `Source.close`."""
        self._socket.close()


class Recording:
    """A file of events.

    Args:
        path: The file.

    Raises:
        LinkError: It cannot be read, or what it begins with is no event of this version.
    """

    control = live = False

    def __init__(self, path: str) -> None:
        self.title = plain(os.path.basename(path), 60)
        self.scene: dict[str, Any] | None = None
        self.note = ""
        self.over = False
        self._told = Scene()
        self._rest = bytearray()  # of a line that is not whole yet
        self._done = self._bad = 0
        self._skips = False  # in a line that is too long
        self._cut = False  # in one whose begin was passed over
        self._passed = 0  # bytes
        self._last = 0.0
        self._answers: dict[int, str] = {}
        self._number = 0
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise LinkError(f"{path}: {error.strerror}") from None
        try:
            self._begin(path)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, path: str) -> None:
        try:
            self.look(0.05)
        except OSError as error:
            raise LinkError(f"{path}: {error.strerror}") from None
        if self.over:
            raise LinkError(f"{path}: {self.note}")
        if self._bad and not self._told.events:
            raise LinkError(f"{path}: it has no events of forkmill's")

    def look(self, seconds: float) -> bool:
        """As `Source.look`."""
        until = time.monotonic() + seconds
        new = False
        while not self.over and (data := self._file.read(_SLICE)):
            new = True
            self._done += len(data)
            self._rest += data
            if b"\n" in data:
                *whole, rest = bytes(self._rest).split(b"\n")
                self._rest = bytearray(rest)
                for line in whole:
                    self._take(line)
            if len(self._rest) > (0 if self._skips else _MOST_LINE):
                self._rest, self._skips = bytearray(), True
            self._pass_over()
            if time.monotonic() >= until:
                break
        if new or self.scene is None:
            self._draw()
        return new

    def _pass_over(self) -> None:
        """If there is too much between the head and the end, go on near the end, behind a line that
        is not read from its begin."""
        left = os.fstat(self._file.fileno()).st_size - self._file.tell()
        if self._done >= _HEAD and left > 2 * _TAIL:
            self._file.seek(left - _TAIL, os.SEEK_CUR)
            self._done += left - _TAIL
            self._passed += left - _TAIL
            self._rest, self._skips, self._cut = bytearray(), True, True

    def _take(self, line: bytes) -> None:
        if self._skips or not line.strip():
            self._bad += self._skips and not self._cut
            self._skips = self._cut = False
            return
        try:
            event = json.loads(line)
            if not all(field in event for field in _FIELDS):
                raise ValueError(line)
            if event["schema"] != EVENTS:
                self.over = True
                self.note = (
                    f"its events have the schema {plain(event['schema'])}, and this version of "
                    f"forkmill reads {EVENTS}"
                )
                return
            empty = {"name": None, "item": None, "attempt": None, "worker": None, "seconds": None}
            self._told.take({**empty, **event})
            self._last = event["monotonic"]
        except (ValueError, TypeError, KeyError, AttributeError):
            self._bad += 1

    def _draw(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        notes = []
        if self._done < size and not self.over:
            notes.append(f"reading: {self._done / size:.0%}")
        if self._passed:
            notes.append(f"{amount(self._passed, 'bytes')} in its middle not read")
        if self._bad:
            kind = "line is no event" if self._bad == 1 else "lines are no events"
            notes.append(f"{self._bad:,} {kind}")
        try:
            facts = self._told.facts()
        except (TypeError, ValueError, KeyError, AttributeError):
            self.over, self.note = True, "its events are none that forkmill writes"
            self.scene = self.scene or {**Scene().facts(), "now": 0.0}
            return
        if self._done >= size and any(not run["status"] for run in facts["runs"]):
            notes.append("goes on, or was cut off" if not self._rest else "its last line is cut")
        if not self.over:
            self.note = "; ".join(notes)
        self.scene = {**facts, "now": self._last}

    def ask(self, do: str, which: Any) -> int:
        """As `Source.ask`."""
        self._number += 1
        found = self._told.failure(which) if do == "failure" else None
        if found is None:
            text = "a recording has only the last failures" if do == "failure" else "a recording"
        else:
            rows = (("stage", "stage"), ("item", "item"), ("error", "error"))
            head = [f"{name:<8}{found[key]}" for name, key in rows]
            text = "\n".join([*head, "", found["traceback"] or "(no traceback was told)"])
        self._answers[self._number] = text
        return self._number

    def answers(self) -> dict[int, str]:
        """As `Source.answers`."""
        found, self._answers = self._answers, {}
        return found

    def close(self) -> None:
        """As `Source.close`."""
        self._file.close()

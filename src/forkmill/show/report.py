"""Reports: one HTML file about a run, while it runs, from a recording, or from its result.

    run(report="run.html") ──▶ Report ──events──▶ Record ──▶ page ──▶ run.html
    forkmill report run.jsonl ────────events──▶ Record ──▶ page
    result.report("run.html") ──stats, failures──▶ Record ──▶ page

Guarantees:
    * A path that cannot be written is refused before the run starts.
    * The file is there as a whole or not at all: it is written beside, and then renamed.
    * A recording is read event by event, whatever its size.

Threads: a Report is called in the thread of events; everything else in any.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

from .. import events
from ..runs.stats import RunStats
from .page import page
from .record import Record
from .text import plain, program

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Report", "check_path", "from_recording", "report_of"]


class Report:
    """A sink that writes a report when its run is over; what ``report="run.html"`` stands for.

    Args:
        path: The file.

    Raises:
        TypeError: It is no path.
        OSError: It cannot be written there.
    """

    detail = "items"

    def __init__(self, path: Any) -> None:
        self.path = check_path(path)
        self._record = Record()
        self._run: str | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in what has happened; write the report if it is the end."""
        record = self._record
        if record.take(event) and event["kind"] == "run_finished":
            if event["run"] != record.facts["run"]:
                return
            self._record = Record()  # for the next run that it is given to
            write(self.path, page(record, environment()))

    def __repr__(self) -> str:
        return f"<Report {self.path!r}>"[:200]


def report_of(result: Any, path: Any) -> None:
    """A report of what a run came to: figures of stages, and failures.

    Args:
        result: A RunResult, or what has its attributes.
        path: The file.

    Raises:
        TypeError: It is no path.
        OSError: It cannot be written there.
    """
    where = check_path(path)
    record = Record()
    stats: Any = getattr(result, "stats", None)
    seconds = getattr(result, "duration", None) or getattr(stats, "seconds", 0.0)
    record.facts = {"title": "a run", "status": plain(result.status), "seconds": seconds}
    record.stats = stats.as_dict() if isinstance(stats, RunStats) else None
    for failure in result.failures:
        error = events.short(failure.error)
        item = None if failure.item is None else events.short(failure.item)
        record.fail(failure.stage, error, item, failure.traceback, failure.attempts)
    record.ungrouped = sum(getattr(result, "more_failures", {}).values())
    note = 'Made after the run: run(report="...") also has its timeline and its slowest calls.'
    write(where, page(record, environment(), [note]))


def from_recording(recording: Any, path: Any, run: str | None = None) -> str:
    """A report of a run that `fm.JsonLines` has recorded.

    Args:
        recording: The file with the events.
        path: The file to write.
        run: The run's id, or how it begins; None: the last one that is no part of another.

    Returns:
        The run's id.

    Raises:
        OSError: One of the files.
        ValueError: There is no such run in it, or it is of another schema.
    """
    where = check_path(path)
    last, others = _chosen(recording, run)
    record = Record()
    for event in _read(recording):
        if event["run"] == last or record.facts:
            record.take(event)
    notes = [f"From the recording {plain(os.fspath(recording))}."]
    if others:
        notes.append(f"{others:,} other runs are in it; forkmill report --run ID shows them.")
    if record.late:
        notes.append("The recording begins after the run does: calls before that are not in it.")
    if not record.facts.get("status"):
        notes.append("The recording ends before the run does.")
    write(where, page(record, {}, notes))
    return last


def _chosen(recording: Any, run: str | None) -> tuple[str, int]:
    """The run that is meant, and how many others there are."""
    known: set[str] = set()
    found: dict[str, str | None] = {}
    for event in _read(recording):
        each = event["run"]
        if event["schema"] != events.SCHEMA:
            raise ValueError(
                f"{os.fspath(recording)}: its events have the schema {event['schema']!r}, and this "
                f"version of forkmill reads {events.SCHEMA}"
            )
        if each is None or each in known or event["source"] in ("pool", "stream"):
            continue
        known.add(each)
        if run is None or each.startswith(run):
            found[each] = event["parent"]
    if run is None:  # a part may be told before its whole, where the begin is cut off
        found = {each: above for each, above in found.items() if above not in known}
    if not found:
        asked = "" if run is None else f" {run!r}"
        raise ValueError(f"{os.fspath(recording)}: there is no run{asked} in it")
    return list(found)[-1], len(found) - 1


_FIELDS = ("schema", "source", "run", "parent", "time", "monotonic", "kind", "name", "item")


def _read(recording: Any) -> Iterable[dict[str, Any]]:
    for event in events.each_event(recording):
        missing = [name for name in _FIELDS if name not in event]
        if missing or not isinstance(event.get("data"), dict):
            raise ValueError(f"{os.fspath(recording)}: a line in it is no event of forkmill's")
        yield {"attempt": None, "worker": None, "seconds": None, **event}


# ---------------------------------------------------------------------------- files


def check_path(path: Any) -> str:
    """The absolute path of a file that can be written.

    Raises:
        TypeError: It is no path.
        OSError: It cannot be written: there is no such folder, it is one, or it is not allowed.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"report must be a path, not {path!r}")
    name = os.fspath(path)
    whole = os.path.realpath(name)
    if not name or os.path.isdir(whole):
        code = errno.EISDIR if name else errno.ENOENT
        raise OSError(code, f"a report cannot be written there: {os.strerror(code)}", name)
    try:
        with contextlib.suppress(FileNotFoundError):
            kind = os.stat(whole).st_mode
            if not os.access(whole, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not stat.S_ISREG(kind):
                return whole
        other = _beside(whole)
        os.close(os.open(other, _FLAGS, 0o600))
        os.unlink(other)
    except OSError as error:
        raise OSError(
            error.errno, f"a report cannot be written there: {error.strerror}", name
        ) from None
    return whole


_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def _beside(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".forkmill-{os.getpid()}-{os.urandom(6).hex()}")


def write(path: str, text: str) -> None:
    """Write a file as a whole.

    Raises:
        OSError: It cannot be; what was there before is still there.
    """
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return
    other = _beside(path)
    try:
        fd = os.open(other, _FLAGS, 0o666)
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(other, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(other)
        raise


def environment() -> dict[str, Any]:
    """Where this process runs."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "Python": sys.version.split("\n")[0],
        "system": platform.platform(),
        "CPUs": cpus,
        "program": program(500),
        "pid": os.getpid(),
        "written": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }

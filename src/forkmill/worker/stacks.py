"""What workers are doing now: their stacks, written while they go on.

::

    user's process                          worker
    a signal, by pidfd    ───────────────▶  Python's handler, between two bytecodes
      sleeps, works in C: another one ───▶  faulthandler's handler, in C: needs no GIL
    /proc/PID/fd/N        ◀───────────────  an unlinked file of the worker's own

Frames may only be read while they do not change. faulthandler's handler walks them wherever it
comes in: in a worker that calls Python functions all the time one such dump in 30 (CPython 3.13)
met a frame that was half made, and ended the worker. So the worker is asked to do it by itself,
first by a signal that interrupts no system call; if that does not help by one that does, as its
main thread, which runs Python's handlers, may be waiting for other threads of the task. Code that
does not come back to the interpreter leaves its frames as they are: that one is not asked, but
told.

Guarantees:
    * Nobody else is ever signalled: the pidfd is opened first, and then the process is seen to be
      a child of our zygote, with handlers for the signals.
    * The task goes on. A call of its C code that does not restart after signals may return EINTR.

The worker's side is in main.py.

Threads: any.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` without its enums
import os
import time
from contextlib import suppress
from typing import NamedTuple

from . import main
from .main import (
    ASK,
    BEGIN,
    END,
    SHOWS_STACKS,
    STACKS,
    TELL,
    URGE,
)

__all__ = ["read", "supported"]

_PAUSE = 0.004  # seconds between two looks
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # a second, of /proc's times
_STUCK_S = 0.05  # of work without an answer


def supported() -> bool:
    """Whether this system lets us look: Linux."""
    return SHOWS_STACKS


def read(pid: int, parent: int, timeout: float) -> str:
    """The stacks of all threads of a worker; empty if it is gone or does not answer in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return ""
    try:
        if not _is_ours(pid, parent):
            return ""
        return _converse(pid, pidfd, time.monotonic() + timeout)
    except OSError:  # it went away meanwhile
        return ""
    finally:
        os.close(pidfd)


def _converse(pid: int, pidfd: int, deadline: float) -> str:
    path = _file_of(pid)
    size = os.stat(path).st_size
    since = last = _State.of(pid)
    ways = [ASK, URGE, TELL]
    deaf: set[str] | None = None  # who had not answered when it was told
    while time.monotonic() < deadline:
        time.sleep(_PAUSE)
        text = _written(path, size, deaf is not None and _blocking(pid) <= deaf)
        if text:
            return text
        now = _State.of(pid)
        asleep = now.asleep and last.asleep and now.switches == last.switches
        if deaf is None and (asleep or ways[0] == ASK or now.cpu - since.cpu >= _STUCK_S):
            way = TELL if asleep else ways.pop(0)
            if way == TELL:
                deaf = _blocking(pid)
            _signal.pidfd_send_signal(pidfd, way)
            since = now
        last = now
    return ""


def _written(path: str, start: int, told: bool) -> str:
    """What the worker wrote from there on, if it is whole; `told`: who had to is done writing."""
    with open(path, "rb") as file:
        file.seek(start)
        before, begin, rest = file.read().partition(BEGIN)
    answer, end, _ = rest.partition(END)
    if end:
        lines = answer.decode(errors="replace").splitlines(keepends=True)
        return "".join(line for line in lines if not _is_answering(line))
    return "" if begin or not told else before.decode(errors="replace")


def _is_answering(line: str) -> bool:
    return main.__file__ in line and line.endswith(f" in {main.answer.__name__}\n")


class _State(NamedTuple):
    """A process at a moment."""

    asleep: bool  # all of its threads
    switches: int  # how often they went to sleep
    cpu: float  # seconds of work

    @classmethod
    def of(cls, pid: int) -> _State:
        asleep, switches = True, 0
        folder = f"/proc/{pid}/task"
        for name in os.listdir(folder):
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end at any time
                status = _status(f"{folder}/{name}")
                asleep = asleep and status["State"].strip()[0] in "SD"
                switches += int(status.get("voluntary_ctxt_switches", 0))
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return cls(asleep, switches, (int(fields[11]) + int(fields[12])) / _TICKS)


def _is_ours(pid: int, parent: int) -> bool:
    """A child of our zygote that has its handlers: a signal's default would end it."""
    status = _status(f"/proc/{pid}")
    caught = all(_has(status, "SigCgt", number) for number in (ASK, URGE, TELL))
    return int(status["PPid"]) == parent and caught


def _blocking(pid: int) -> set[str]:
    """Its threads that have not answered a signal: it waits for them, or they are at it. The kernel
    blocks a signal while its handler runs, sigaction(2)."""
    folder = f"/proc/{pid}/task"
    threads: set[str] = set()
    for name in os.listdir(folder):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end at any time
            status = _status(f"{folder}/{name}")
            if any(_has(status, mask, TELL) for mask in ("ShdPnd", "SigPnd", "SigBlk")):
                threads.add(name)
    return threads


def _status(folder: str) -> dict[str, str]:
    with open(f"{folder}/status", encoding="ascii", errors="replace") as lines:
        return dict(line.split(":", 1) for line in lines if ":" in line)


def _has(status: dict[str, str], mask: str, number: int) -> bool:
    return bool(int(status[mask], 16) >> (number - 1) & 1)


def _file_of(pid: int) -> str:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with suppress(OSError):
            if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{STACKS}"):
                return f"{folder}/{name}"
    raise FileNotFoundError(folder)

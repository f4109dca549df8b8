"""What workers are doing now: their stacks, written while they go on.

::

    user's process                          worker
    signal, by pidfd      ───────────────▶  faulthandler's handler, in C: needs no GIL
    /proc/PID/fd/N        ◀───────────────  an unlinked file of the worker's own

Guarantees:
    * Nobody else is ever signalled: the pidfd is opened first, and then the process is seen to be
      a child of our zygote, with a handler for the signal.
    * The task goes on. A call of its C code that does not restart after signals may return EINTR.

Threads: offer() once in a worker; read() from any thread.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` without its enums
import faulthandler
import os
import time
from contextlib import suppress

__all__ = ["offer", "read", "supported"]

_NAME = "forkmill-stacks"
# A signal that nobody else uses: no program means anything by it, no shell sends it.
_NUMBER: int = getattr(_signal, "SIGRTMAX", 64) - 7
_PAUSE = 0.004  # seconds between two looks


_SUPPORTED = hasattr(os, "memfd_create") and hasattr(_signal, "pidfd_send_signal")


def supported() -> bool:
    """Whether this system lets us look: Linux."""
    return _SUPPORTED


def offer() -> None:
    """In a worker: from now on it can be asked."""
    if not supported():
        return
    try:  # not suppress(): its calls would cost a new worker a dozen pages
        fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)  # for life
        faulthandler.register(_NUMBER, fd, all_threads=True)
    except (OSError, RuntimeError):
        pass  # no descriptor left: then nobody can look


def read(pid: int, parent: int, timeout: float) -> str:
    """The stacks of all threads of a worker; empty if it is gone or does not answer in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return ""
    try:
        if not _is_ours(pid, parent):
            return ""
        path = _file_of(pid)
        before, deaf = os.stat(path).st_size, _blocking(pid)
        _signal.pidfd_send_signal(pidfd, _NUMBER)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            time.sleep(_PAUSE)
            if _blocking(pid) <= deaf and os.stat(path).st_size > before:
                break
        with open(path, "rb") as file:
            file.seek(before)
            return file.read().decode(errors="replace")
    except OSError:  # it went away meanwhile
        return ""
    finally:
        os.close(pidfd)


def _is_ours(pid: int, parent: int) -> bool:
    """A child of our zygote that has its handler: the signal's default would end it."""
    status = _status(f"/proc/{pid}")
    return int(status["PPid"]) == parent and _has(status, "SigCgt")


def _blocking(pid: int) -> set[str]:
    """Its threads that have not answered a signal: it waits for them, or they are at it. The kernel
    blocks a signal while its handler runs, sigaction(2)."""
    folder = f"/proc/{pid}/task"
    threads: set[str] = set()
    for name in os.listdir(folder):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end at any time
            status = _status(f"{folder}/{name}")
            if any(_has(status, mask) for mask in ("ShdPnd", "SigPnd", "SigBlk")):
                threads.add(name)
    return threads


def _status(folder: str) -> dict[str, str]:
    with open(f"{folder}/status", encoding="ascii", errors="replace") as lines:
        return dict(line.split(":", 1) for line in lines if ":" in line)


def _has(status: dict[str, str], mask: str) -> bool:
    return bool(int(status[mask], 16) >> (_NUMBER - 1) & 1)


def _file_of(pid: int) -> str:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with suppress(OSError):
            if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{_NAME}"):
                return f"{folder}/{name}"
    raise FileNotFoundError(folder)

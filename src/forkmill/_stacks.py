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
_LOOKS = 3  # the handler says no end: so often nothing new came
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
        before = os.stat(path).st_size
        _signal.pidfd_send_signal(pidfd, _NUMBER)
        return _grown(path, before, time.monotonic() + timeout)
    except OSError:  # it went away meanwhile
        return ""
    finally:
        os.close(pidfd)


def _is_ours(pid: int, parent: int) -> bool:
    """A child of our zygote that has its handler: the signal's default would end it."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
        status = dict(line.split(":", 1) for line in lines if ":" in line)
    caught = int(status["SigCgt"], 16)
    return int(status["PPid"]) == parent and bool(caught >> (_NUMBER - 1) & 1)


def _file_of(pid: int) -> str:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with suppress(OSError):
            if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{_NAME}"):
                return f"{folder}/{name}"
    raise FileNotFoundError(folder)


def _grown(path: str, before: int, deadline: float) -> str:
    """What was written after `before`, once nothing more comes."""
    size, quiet = before, 0
    while (quiet < _LOOKS or size == before) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        now = os.stat(path).st_size
        size, quiet = now, quiet + 1 if now == size else 0
    with open(path, "rb") as file:
        file.seek(before)
        return file.read().decode(errors="replace")

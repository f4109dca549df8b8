"""Who has claimed a session, and whether that process is known to be dead.

A process is known by host, boot, process id and start time: a process id alone comes again. Dead is
only who is *known* to be: another host's process is not, nor is one in another container, nor one
whose start time cannot be read.

====================================  ======================================================
another host or pid namespace         not known
same host, another boot               dead
no process of that id, or a zombie    dead
a process of that id, started later   dead
====================================  ======================================================

Threads: any.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass

__all__ = ["Owner"]

_LINUX = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that has claimed a session.

    Attributes:
        host: Its machine's name, and on Linux the pid namespace.
        boot: Which start of the machine; "" if the system does not tell.
        pid: Its process id.
        start: When it started, as the system counts that; "" if it does not tell.
    """

    host: str
    boot: str
    pid: int
    start: str

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return _owner(os.getpid())

    def is_dead(self) -> bool:
        """Whether it is known to be dead. False also means that nobody knows."""
        here = Owner.here()
        if self.host != here.host:
            return False
        if self.boot != here.boot:
            return bool(self.boot and here.boot)
        if self == here:
            return False
        start = started(self.pid)
        if start is None:
            return True
        return bool(start and self.start and start != self.start)

    def dumps(self) -> str:
        """As a store keeps it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def loads(cls, text: str | None) -> Owner | None:
        """Of what `dumps` gave; what cannot be read is an owner of whom nobody knows anything."""
        if not text:
            return None
        with contextlib.suppress(ValueError, TypeError, KeyError):
            read = json.loads(text)
            return cls(str(read["host"]), str(read["boot"]), int(read["pid"]), str(read["start"]))
        return cls(f"? ({text[:80]})", "", 0, "")

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host.partition(' ')[0]}"


@functools.lru_cache(maxsize=1)  # a forked child is another
def _owner(pid: int) -> Owner:
    return Owner(_host(), _boot(), pid, started(pid) or "")


def _host() -> str:
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        return f"{name} {os.readlink('/proc/self/ns/pid')}"
    return name


def _boot() -> str:
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return "" if _LINUX else _asked("sysctl", "-n", "kern.boottime").partition(",")[0]


def started(pid: int) -> str | None:
    """When a process started; "" if the system does not tell, None if there is no such process.

    A zombie is none: it runs nothing any more.
    """
    if not _LINUX:
        return _asked_of(pid)
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name in the second field may hold anything, spaces and brackets too (proc(5)).
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if os.path.exists("/proc/self/stat") else _exists(pid)
    except OSError:
        return ""
    return None if fields[0] in "ZXx" else fields[19]


def _exists(pid: int) -> str | None:
    """What is known without /proc: "" if there is such a process, else None."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


def _asked_of(pid: int) -> str | None:
    state, _, start = _asked("ps", "-o", "state=,lstart=", "-p", str(pid)).partition(" ")
    if not state:
        return _exists(pid)
    return None if state.startswith("Z") else " ".join(start.split())


def _asked(*command: str) -> str:
    """What a command of the system says, "" if it does not."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""

"""A byte that the processes of one run share: whether it is being stopped.

    Driver.stop ──▶ Sign.give ──▶ byte ◀── seen: a driver in a replica of a nested pipeline

A replica works in a call, and nothing can be sent to a call that runs. So it looks, between two
turns, and while it waits. It gets at the byte by a path, whatever its process was made from; where
it does not (another user's, another file system) it is not told, and a run that needs that has
`kill`.

Threads: `give` from any. `close` in the thread of the driver, when no replica is left.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

__all__ = ["LOOK_S", "Sign", "seen"]

LOOK_S = 0.05  # between two looks of who waits


class Sign:
    """The byte, and its owner.

    Attributes:
        path: By which replicas get at it; "" if there is none.
    """

    __slots__ = ("_byte", "_file", "path")

    def __init__(self) -> None:
        self.path = ""
        self._byte: mmap.mmap | None = None
        self._file: Any = None
        try:
            self._file, self.path = _file()
            self._file.write(b"\0")
            self._file.flush()
            self._byte = mmap.mmap(self._file.fileno(), 1)
        except OSError:
            self.close()

    def give(self) -> None:
        """The run is being stopped."""
        byte = self._byte
        if byte is not None:  # not unmapped as long as we have it
            byte[0] = 1

    def close(self) -> None:
        """Nobody looks any more. Idempotent."""
        file, self._file, self._byte, self.path = self._file, None, None, ""
        if file is not None:
            file.close()


def _file() -> tuple[Any, str]:
    """An open file that goes with its last descriptor, or with the owner; its path."""
    if hasattr(os, "memfd_create"):
        file = open(os.memfd_create("forkmill-sign", os.MFD_CLOEXEC), "r+b", buffering=0)  # noqa: SIM115
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        if os.path.exists(path):
            return file, path
        file.close()
    import tempfile

    named: Any = tempfile.NamedTemporaryFile(prefix="forkmill-sign-")  # noqa: SIM115
    return named, named.name


def seen(path: str) -> Any:
    """In a replica: the byte, to be read at [0]; None if it cannot be had."""
    if not path:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return mmap.mmap(fd, 1, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)

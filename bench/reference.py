"""The C reference: reference.c, built with the machine's compiler into a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("reference.c")


class NoReference(Exception):
    """There is no compiler, or it failed; says which."""


class Reference:
    """The built program. Its processes inherit this one's CPU affinity.

    Use as a context manager: leaving it removes the program.
    """

    def __init__(self) -> None:
        compiler = os.environ.get("CC") or shutil.which("cc")
        if not compiler:
            raise NoReference("no C compiler (cc) found: the C reference was left out")
        self._folder = tempfile.TemporaryDirectory(prefix="forkmill-bench-")
        self._program = os.path.join(self._folder.name, "reference")
        command = [*compiler.split(), "-std=gnu11", "-O2", "-o", self._program, str(SOURCE)]
        try:
            built = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            built = subprocess.CompletedProcess(command, 1, "", str(error))
        if built.returncode:
            self._folder.cleanup()
            raise NoReference(f"reference.c was not built, so it was left out: {built.stderr}")

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *exc: object) -> None:
        self._folder.cleanup()

    def pingpong(self, count: int) -> float:
        """Seconds of one byte's way there and back through two pipes."""
        return self._seconds("pingpong", count)

    def memcpy(self, size: int, count: int) -> float:
        """Seconds to copy `size` bytes between two warm buffers."""
        return self._seconds("memcpy", size, count)

    def spawn(self, megabytes: int, count: int) -> float:
        """Seconds of fork, a byte through a pipe, exit and wait, with so much memory resident."""
        return self._seconds("spawn", megabytes, count)

    def _seconds(self, *arguments: object) -> float:
        command = [self._program, *map(str, arguments)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

"""What is written to: files by name, and the process's own streams.

Guarantees:
    * What is read, or written by another option, is refused before anything is opened, by whatever
      name (symbolic or hard link, /dev/stdout): nothing of it is lost.
    * Files are opened all together, and emptied only then.

Threads: one.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator

__all__ = ["OpenError", "descriptor", "mixes", "opened", "overwrites", "own_streams", "terminal"]

_OWN = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_FD = re.compile(r"/(?:dev|proc/(?:self|thread-self|\d+))/fd/(\d+)")
_MOST_LINKS = 40  # as the kernel


class OpenError(Exception):
    """A file cannot be opened.

    Attributes:
        path: Which.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


def descriptor(path: str, dash: int) -> int | None:
    """The descriptor of ours that a name stands for; None: it is a file's.

    Args:
        path: The name.
        dash: What "-" is.
    """
    if path == "-":
        return dash
    for _ in range(_MOST_LINKS):
        if path in _OWN:
            return _OWN[path]
        found = _FD.fullmatch(path)
        if found:
            return int(found[1])
        try:
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        except OSError:
            return None
    return None


def overwrites(output: str, source: str) -> bool:
    """Whether writing to `output` changes what is read from `source`."""
    one = _identity(output, 1, stat.S_ISREG)
    return one is not None and one == _identity(source, 0, stat.S_ISREG)


def mixes(one: str, other: str) -> bool:
    """Whether two outputs go to one place. (A device, as /dev/null, may be shared.)"""
    first = _identity(one, 1, _keeps)
    return first is not None and first == _identity(other, 1, _keeps)


def _keeps(mode: int) -> bool:
    return not stat.S_ISCHR(mode)


def _identity(path: str, dash: int, counts: Callable[[int], bool]) -> object:
    """Of a file that is there, or of the one that would be made; None: it does not count."""
    fd = descriptor(path, dash)
    try:
        status = os.stat(path) if fd is None else os.fstat(fd)
    except OSError:
        # In the folder of that name, whatever the name: `.` may be gone.
        folder, name = os.path.split(path)
        with contextlib.suppress(OSError):
            return os.path.join(os.path.realpath(folder), name) if fd is None else None
        return path
    return (status.st_dev, status.st_ino) if counts(status.st_mode) else None


@contextlib.contextmanager
def opened(*paths: str) -> Iterator[list[int]]:
    """Descriptors to write to, of files that are made, or emptied if they are there.

    Raises:
        OpenError: One of them cannot be opened; the others are as they were.
    """
    with contextlib.ExitStack() as stack:
        fds = [_open(path, stack) for path in paths]
        for path, fd in zip(paths, fds, strict=True):
            if descriptor(path, 1) is None and stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
        yield fds


def _open(path: str, stack: contextlib.ExitStack) -> int:
    own = descriptor(path, 1)
    try:
        # A stream of ours that is opened by its name gets another position, and is written over.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666) if own is None else os.dup(own)
    except OSError as error:
        raise OpenError(path, error.strerror or str(error)) from None
    stack.callback(os.close, fd)
    return fd


def terminal(stream: object) -> bool:
    """Whether it is one; a stream that is closed is none."""
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]
    except (AttributeError, ValueError, OSError):
        return False


def own_streams() -> None:
    """See that the descriptors 0 to 2 are nobody else's, and that there is a sys.stdout.

    A program may be started with some of them closed: the first file that it opens has that number,
    and is then read or written in its place. What was closed gives an error, as before.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            with contextlib.suppress(OSError):
                # The other way round, so that its use is an error still: "Bad file descriptor".
                null = os.open(os.devnull, os.O_WRONLY if fd == 0 else os.O_RDONLY)
                if null != fd:
                    os.dup2(null, fd)
                    os.close(null)
    with contextlib.suppress(OSError):
        if sys.stdout is None:
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        if sys.stderr is None:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115

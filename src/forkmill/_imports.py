"""What a worker had to import, its successors find imported: the exec'd zygote does it once.

::

    worker: Reporter, while it loads a function ──names, one a record──▶ pipe ──▶ zygote: take()

A worker of an exec'd zygote begins with next to nothing imported. Its function's module pulls in
what it needs, and most of that is often the standard library: 50 ms for asyncio. A worker that
replaces a dead one would pay that again before it can do anything.

Guarantees:
    * Only modules of the standard library and of this package are imported ahead, where the worker
      found them to be such: they start no thread and hold nothing that processes must not share.
      The user's modules and those of other packages are imported by each worker itself: what they
      set up then (generators, connections, pools of threads; in an environment that an initializer
      has changed) is its own.
    * Best effort: nothing waits for it and nothing fails by it. A report that finds the pipe full
      is lost, an import that raises is passed over.
    * One import a turn of the zygote's loop: deaths and orders wait for one at the most.

Threads: one, the worker's or the zygote's first.
"""

from __future__ import annotations

import os
import sys

_SIZE = 64  # of a record: a name and zeros
_ATOMIC = 512  # bytes that no pipe splits (PIPE_BUF); several workers write to it
_HOME = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_OURS = __name__.partition(".")[0]


def open_pipe() -> tuple[int, int]:
    """For a zygote: the end it reads, and the one that its workers inherit; neither blocks."""
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    return ends


class Reporter:
    """In a worker, around what may import: tells the zygote of each module once it is there.

    It stands before the finders and finds nothing: each import that begins is the moment to report
    those that have ended. So even a worker that is killed on its way has spared its successor some
    of it; were all told at the end, workers that live for less than that would get nowhere.

    Args:
        fd: What open_pipe() made for it; -1: nobody listens.
    """

    __slots__ = ("_fd", "_known", "_pending")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._known = 0
        self._pending: list[str] = []

    def __enter__(self) -> None:
        if self._fd >= 0:
            self._known = len(sys.modules)
            sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            self._report()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        self._report()

    def _report(self) -> None:
        self._pending += list(sys.modules)[self._known :]
        self._known = len(sys.modules)
        # An import hook may have started a thread; it would do so in the zygote.
        if len(sys._current_frames()) > 1:
            self._pending.clear()
            return
        # From the end: what a module needs is entered after it, so the zygote goes in small steps.
        names = [name for name in reversed(self._pending) if _is_harmless(name)]
        self._pending = [name for name in self._pending if _is_under_way(name)]
        records = b"".join(name.encode().ljust(_SIZE, b"\0") for name in names)
        try:
            for at in range(0, len(records), _ATOMIC):
                os.write(self._fd, records[at : at + _ATOMIC])
        except OSError:  # full, or a task has closed it
            pass


def take(fd: int) -> None:
    """In a zygote: import the next module that was reported and is not there yet."""
    while True:
        try:
            name = os.read(fd, _SIZE).rstrip(b"\0").decode()
        except OSError:  # no more
            return
        except UnicodeDecodeError:  # no worker of ours wrote it
            continue
        if name in sys.modules or not _is_known(name):
            continue
        try:
            __import__(name)
        except BaseException:  # whatever it says: each worker will see for itself
            continue
        return


def _is_known(name: str) -> bool:
    top = name.partition(".")[0]
    return top in sys.stdlib_module_names or top == _OURS


def _is_under_way(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return getattr(spec, "_initializing", False) is True


def _is_harmless(name: str) -> bool:
    """Whether a module is there whole, and the standard library's own or ours."""
    if not name.isascii() or len(name) > _SIZE or not _is_known(name) or _is_under_way(name):
        return False
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None:  # made by hand, or __main__
        return False
    origin = spec.origin
    if name.partition(".")[0] == _OURS or origin in ("built-in", "frozen"):
        return True
    # Not one of the user's that goes by the same name.
    return isinstance(origin, str) and origin.startswith(_HOME) and "site-packages" not in origin

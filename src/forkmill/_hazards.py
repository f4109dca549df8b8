"""What a fork of this process would break, and how the user is told.

A forked child has one thread, and a copy of whatever the others held: a lock that nobody will
release, a queue that nobody serves. What does not survive that, as measured:

    other Python threads     any lock, of a logger or an importer
    OpenMP, once it has run  libgomp waits for its team for ever; a library that is only loaded is
                             fine. Looked for are its threads, not its name
    modules of `MODULES`     their threads or devices are there as soon as they are loaded
    a subinterpreter         the interpreter itself hangs (3.11, 3.12) or ends (from 3.13 on) in the
                             child, while it clears what it has of the other one

and what does, used or not: the threads of OpenBLAS and of Arrow, TBB, numba's own and numexpr's
pools, which notice a fork and begin anew.

Guarantees: nothing is imported, nothing is started, and a look costs some microseconds.

Threads: any.
"""

from __future__ import annotations

import sys
import threading
from _thread import get_ident

from . import _native, errors
from ._frames import running_threads
from ._process import OUR_THREADS, warn_user

__all__ = [
    "LIBRARIES",
    "MODULES",
    "THREADS",
    "against_fork",
    "check_fork",
    "in_libraries",
    "loaded",
    "refuse_subinterpreters",
    "subinterpreter",
    "tell_user",
]

# Polars says so of itself: it starts threads when it is imported, and a used one hangs.
MODULES = (
    "grpc", "pyarrow.flight", "polars", "tensorflow", "jaxlib", "cupy", "pycuda", "numba.cuda",
    "cudf", "rmm", "pyopencl", "objc",
)  # fmt: skip
_OPENMP = (b"libgomp", b"libomp", b"libiomp")
# Name, files and whether a fork breaks it once it has run.
LIBRARIES = (
    ("OpenMP", _OPENMP, True),
    ("OpenBLAS", (b"libscipy_openblas", b"libopenblas"), False),
    ("Arrow", (b"libarrow.so",), False),
    ("TBB", (b"libtbb.so",), False),
)
THREADS = "other thread"  # what a reason has after their number
_MANY = 3  # threads that are named

_told: set[str] = set()


def against_fork() -> str:
    """Why a fork is no good now: other Python threads, or what `in_libraries` says; or ""."""
    return " and ".join(filter(None, (in_libraries(), _threads())))


def _threads() -> str:
    """The Python threads that are neither the caller nor ours; or ""."""
    strangers = running_threads() - OUR_THREADS - {get_ident()}
    if not strangers:
        return ""
    # Not enumerate(), which takes a lock.
    known = threading._active  # type: ignore[attr-defined]
    found = [thread for ident in strangers if (thread := known.get(ident)) is not None]
    names = sorted(repr(thread.name) for thread in found)[:_MANY]
    more = len(strangers) - len(names)
    words = [", ".join(names)] if names else []
    if more:
        words.append(f"{more} more" if names else f"{more} that Python's threading does not know")
    many = len(strangers)
    return f"{many} {THREADS}{'s' if many > 1 else ''}: {' and '.join(words)}"


def in_libraries() -> str:
    """What is loaded, and in use, that a forked child cannot use; or ""."""
    if subinterpreter():
        return "a living subinterpreter"
    for name in loaded():
        return f"module {name}"
    threads, library = _native.threads_of(_OPENMP)
    return f"OpenMP, which has run here ({library})" if threads else ""


def loaded() -> list[str]:
    """Those of `MODULES` that are here. One that an import was refused of is not."""
    found = [name for name in MODULES if sys.modules.get(name) is not None]
    cuda = sys.modules.get("torch.cuda")  # there as soon as torch is, used or not
    if getattr(cuda, "_initialized", False):
        found.append("torch.cuda")
    return found


def subinterpreter() -> bool:
    """Whether there is an interpreter beside this one, which no forked child survives."""
    return _native.subinterpreters()


def refuse_subinterpreters(what: str) -> None:
    """Raise PoolError if a forked child would be lost for a subinterpreter's sake."""
    if subinterpreter():
        raise errors.PoolError(
            f"{what}: a subinterpreter lives in this process, and CPython ends or hangs every "
            "child that is forked beside one. Close it first (or shut down the executor that has "
            "it), or use a pool with start_method='zygote' or 'spawn'"
        )


def check_fork(what: str) -> None:
    """Refuse a fork that no child would survive, and warn once of one that may hang.

    Args:
        what: What forks, for the text.

    Raises:
        PoolError: There is a subinterpreter.
    """
    refuse_subinterpreters(what)
    why = in_libraries()
    if why:
        tell_user(
            f"fork {why}",
            f"{what} forks this process beside {why}: what a task calls of that may wait for ever. "
            "Use a pool with start_method='auto', 'zygote' or 'spawn', or fork before it is used.",
        )


def tell_user(key: str, text: str) -> None:
    """Warn, once in the life of the program, in the frame that called us."""
    if key in _told:
        return
    _told.add(key)
    warn_user(text)

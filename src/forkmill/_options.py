"""The options of pools and their calls, and what is wrong with a wrong one.

Every check is made in the frame of the user's call, and says what was given and what is allowed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from . import _native, errors

__all__ = [
    "Options",
    "at_least_one",
    "check_least",
    "check_limits",
    "check_restarts",
    "check_workers",
    "exception_classes",
    "integer",
    "make_options",
    "memory_limit",
    "must_be_callable",
    "seconds",
]

MAX_WORKERS = 4096  # FM_MAX_WORKERS
_BYTES = frozenset({"max_rss", "memory_limit"})


@dataclass(frozen=True, slots=True)
class Options:
    """What `ProcessPool.options` sets, in the form the native pool takes.

    Attributes:
        timeout: Seconds a task may run; 0: as long as it likes.
        retries: Further tries of a task that fails as `retry_on` says.
        retry_on: The exception classes that are worth another try.
        priority: Higher first.
        flags: RETRY_*: which failures the native pool answers with another try.
        wrap: Those of `retry_on` that a task can raise by itself; the worker looks for them.
    """

    timeout: float = 0.0
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (errors.WorkerDied,)
    priority: int = 0
    flags: int = 0
    wrap: tuple[type[BaseException], ...] = ()


def integer(name: str, value: Any, *, least: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__!r}")
    number = int(value.__index__())
    if least is not None and number < least:
        raise ValueError(f"{name} must be >= {least}, not {number}")
    if not -(1 << 31) <= number < 1 << 31 and name not in _BYTES:
        raise ValueError(f"{name} must fit in 32 bits, not {number}")
    return number


def at_least_one(name: str, value: Any) -> int:
    return 0 if value is None else integer(name, value, least=1)


def memory_limit(value: Any, *, inline: bool) -> int:
    """Bytes; 0 for None.

    Raises:
        TypeError, ValueError: Wrong, or this pool or this system could not keep it.
    """
    limit = at_least_one("memory_limit", value)
    if limit >= 1 << 63:
        raise ValueError(f"memory_limit must be less than 2**63 bytes, not {limit}")
    if limit and inline:
        raise ValueError(
            "memory_limit needs workers, and this pool runs its calls in the worker that makes it: "
            "say how many, with max_workers"
        )
    if limit and not _native.resident(os.getpid()):
        raise ValueError("memory_limit needs a system that tells of memory: is /proc mounted?")
    return limit


def seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
        raise TypeError(f"{name} must be seconds or None, not {type(value).__name__!r}")
    number = float(value)
    if not 0 < number <= 1e9:  # a nan fails too
        raise ValueError(f"{name} must be > 0 seconds and <= 1e9, not {value!r}")
    return number


def objects(name: str, value: Any) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an iterable of objects, not {type(value).__name__!r}; "
            f"for a single one write {name}=(it,)"
        ) from None


def must_be_callable(name: str, value: Any, *, optional: bool = False) -> None:
    if not callable(value) and not (optional and value is None):
        raise TypeError(f"{name} must be a callable, not {type(value).__name__!r}")


def check_workers(value: Any) -> int:
    """The number of workers; 0 for None."""
    if value is None:
        return 0
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"max_workers must be an int or None, not {type(value).__name__!r}")
    number = int(value.__index__())
    if number < 1:
        raise ValueError(f"max_workers must be greater than 0, not {number}")
    if number > MAX_WORKERS:
        raise ValueError(f"max_workers must be at most {MAX_WORKERS}, not {number}")
    return number


def check_least(value: Any, idle_time: Any, workers: int) -> int:
    """How many workers a pool has at least: all, unless it may have fewer."""
    if value is None:
        return workers if idle_time is None else 1
    least = integer("min_workers", value, least=1)
    if least > workers:
        raise ValueError(f"min_workers must be at most max_workers ({workers}), not {least}")
    return least


def check_restarts(value: Any, workers: int) -> tuple[int, float]:
    if value is None:
        return max(3, 2 * workers), 10.0
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"restarts must be (n, seconds) or None, not {value!r}")
    return integer("restarts[0]", value[0], least=0), seconds("restarts[1]", value[1])


def exception_classes(value: Any) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple) else (value,)
    for cls in classes:
        if not isinstance(cls, type) or not issubclass(cls, BaseException):
            raise TypeError(f"retry_on must be exception classes, not {cls!r}")
    return classes


def make_options(
    timeout: float, retries: int, retry_on: tuple[type[BaseException], ...], priority: int
) -> Options:
    flags = 0
    if issubclass(errors.WorkerDied, retry_on):
        flags |= _native.RETRY_DEATH
    if issubclass(errors.TaskTimeout, retry_on):
        flags |= _native.RETRY_TIMEOUT
    # What a task can raise by itself, its worker must recognize.
    ours = (errors.WorkerDied, errors.TaskTimeout)
    wrap = tuple(cls for cls in retry_on if not issubclass(cls, ours)) if retries else ()
    return Options(timeout, retries, retry_on, priority, flags, wrap)


def check_limits(chunksize: int | None, buffersize: int | None, timeout: float | None) -> None:
    """Refuse wrong options of a lazy call, in the caller's frame."""
    for name, value in (("chunksize", chunksize), ("buffersize", buffersize)):
        if value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be an int or None, not {type(value).__name__!r}")
        if value < 1:
            raise ValueError(f"{name} must be >= 1, not {value}")
    if timeout is not None and (isinstance(timeout, bool) or not hasattr(timeout, "__float__")):
        raise TypeError(f"timeout must be seconds or None, not {type(timeout).__name__!r}")
    if timeout is not None and timeout != timeout:
        raise ValueError("timeout must be seconds or None, not nan")

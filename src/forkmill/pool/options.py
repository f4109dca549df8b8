"""The options of pools and their calls, in the form that the native pool takes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from .. import _checks, _native, errors
from ..runs import executor

__all__ = [
    "MOST_BYTES",
    "Options",
    "at_least_one",
    "check_least",
    "check_memory_limit",
    "check_restarts",
]

MOST_BYTES = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Options(executor.Options):
    """What `ProcessPool.options` sets.

    Attributes:
        limit: The timeout, in seconds; 0: none.
        flags: RETRY_*: which failures the native pool answers with another try.
        run: RUN_*, for every call.
        wrap: Those of `retry_on` that a task can raise by itself; the worker looks for them.
    """

    limit: float = field(init=False, repr=False)
    flags: int = field(init=False, repr=False)
    run: int = field(init=False, repr=False)
    wrap: tuple[type[BaseException], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flags = 0
        if issubclass(errors.WorkerDied, self.retry_on):
            flags |= _native.RETRY_DEATH
        if issubclass(errors.TaskTimeout, self.retry_on):
            flags |= _native.RETRY_TIMEOUT
        # What a task can raise by itself, its worker must recognize.
        ours = (errors.WorkerDied, errors.TaskTimeout)
        wrap = tuple(cls for cls in self.retry_on if not issubclass(cls, ours))
        for name, value in (
            ("limit", self.timeout or 0.0),
            ("flags", flags),
            ("run", _native.RUN_EXCUSED if self.excused else 0),
            ("wrap", wrap if self.retries else ()),
        ):
            object.__setattr__(self, name, value)


def at_least_one(name: str, value: Any, most: int = _checks.LARGEST_INT) -> int:
    """A number from 1 up; 0 for None."""
    return 0 if value is None else _checks.integer(name, value, least=1, most=most)


def check_memory_limit(value: Any, *, inline: bool) -> int:
    """Bytes; 0 for None.

    Raises:
        TypeError, ValueError: Wrong, or this pool or this system could not keep it.
    """
    limit = at_least_one("memory_limit", value, MOST_BYTES)
    if limit and inline:
        raise ValueError(
            "memory_limit needs workers, and this pool runs its calls in the worker that makes it: "
            "say how many, with max_workers"
        )
    if limit and not _native.resident(os.getpid()):
        raise ValueError("memory_limit needs a system that tells of memory: is /proc mounted?")
    return limit


def check_least(value: Any, idle_time: Any, workers: int) -> int:
    """How many workers a pool has at least: all, unless it may have fewer."""
    if value is None:
        return workers if idle_time is None else 1
    least = _checks.integer("min_workers", value, least=1)
    if least > workers:
        raise ValueError(f"min_workers must be at most max_workers ({workers}), not {least}")
    return least


def check_restarts(value: Any, workers: int) -> tuple[int, float]:
    """How many abnormal deaths within how many seconds are too many."""
    if value is None:
        return max(3, 2 * workers), 10.0
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"restarts must be (n, seconds) or None, not {value!r}")
    n = _checks.integer("restarts[0]", value[0], least=0)
    return n, _checks.seconds("restarts[1]", value[1])

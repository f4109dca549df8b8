"""What is wrong with a wrong option: the checks of pools, contexts and pipelines.

Every check is made in the frame of the user's call. It returns the value in the form that is used,
or says what was given and what is allowed: a TypeError for a wrong kind, a ValueError for a wrong
value.

Threads: any; everything here is plain data.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "LARGEST_INT",
    "MAX_WORKERS",
    "a_bool",
    "a_callable",
    "exception_classes",
    "hinted",
    "initializer",
    "integer",
    "max_workers",
    "named",
    "nearest",
    "objects",
    "printable",
    "seconds",
    "text",
    "window_limits",
]

MAX_WORKERS = 4096  # FM_MAX_WORKERS
LARGEST_INT = (1 << 31) - 1  # of C

F = TypeVar("F", bound="Callable[..., Any]")
C = TypeVar("C", bound=type)

# What other libraries call an option that we have.
_MEANT = {
    name: ours
    for ours, names in {
        "max_workers": "worker workers n_jobs processes nodes num_workers n_workers size",
        "max_tasks_per_child": "maxtasksperchild worker_lifespan max_tasks",
        "initializer": "init worker_init",
        "finalizer": "worker_exit",
        "start_method": "method",
        "timeout": "task_timeout",
        "retries": "retry attempts",
        "chunksize": "chunk_size batch_size n_splits",
        "buffersize": "buffer_size window pre_dispatch max_tasks_active",
    }.items()
    for name in names.split()
}


def integer(name: str, value: Any, *, least: int | None = None, most: int = LARGEST_INT) -> int:
    """An int from `least` up to `most`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__!r}")
    number = int(value.__index__())
    if least is not None and number < least:
        raise ValueError(f"{name} must be >= {least}, not {number}")
    if number < -LARGEST_INT:
        raise ValueError(f"{name} must be at least {-LARGEST_INT}, not {number}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, not {number}")
    return number


def seconds(name: str, value: Any) -> float:
    """More than 0 seconds, and at most 1e9."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be seconds or None, not {type(value).__name__!r}")
    number = float(value)
    if not 0 < number <= 1e9:  # a nan fails too
        raise ValueError(f"{name} must be > 0 seconds and <= 1e9, not {value!r}")
    return number


def objects(name: str, value: Any) -> tuple[Any, ...]:
    """An iterable of anything, as a tuple."""
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an iterable of objects, not {type(value).__name__!r}; "
            f"for a single one write {name}=(it,)"
        ) from None


def a_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__!r}")
    return value


def text(name: str, value: Any) -> str | None:
    """A str, or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a str or None, not {type(value).__name__!r}")
    return value


def a_callable(name: str, value: Any, *, optional: bool = False) -> None:
    if not callable(value) and not (optional and value is None):
        raise TypeError(f"{name} must be a callable, not {type(value).__name__!r}")


def initializer(value: Any, initargs: Any) -> None:
    """An initializer, or None, and the tuple of its arguments."""
    a_callable("initializer", value, optional=True)
    if not isinstance(initargs, tuple):
        raise TypeError(f"initargs must be a tuple, not {type(initargs).__name__!r}")
    if value is None and initargs:
        raise ValueError("initargs were given, but no initializer")


def max_workers(value: Any) -> int:
    """How many workers; 0 for None."""
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


def exception_classes(name: str, value: Any) -> tuple[type[BaseException], ...]:
    """A class of exceptions, or a tuple of them, as a tuple."""
    classes = value if isinstance(value, tuple) else (value,)
    for cls in classes:
        if not isinstance(cls, type) or not issubclass(cls, BaseException):
            raise TypeError(f"{name} must be exception classes, not {cls!r}")
    return classes


def window_limits(chunksize: Any, buffersize: Any, timeout: Any) -> None:
    """The limits of a lazy call: two numbers of items, and seconds (of any sign), or None."""
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


def hinted(fn: F) -> F:
    """Of a function with options: who calls it with one that it has not is told the nearest.

    Whatever else does not fit its parameters is told by the name that users have for it.
    """

    @functools.wraps(fn)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return fn(*args, **options)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise  # from within
            name = fn.__name__
            public = type(args[0]).__name__ if name == "__init__" else name
            said = _unfit(fn, public, options) or str(error).replace(fn.__qualname__, public)
        raise TypeError(said)

    return call  # type: ignore[return-value]


def named(cls: C) -> C:
    """Of a class that users know by another name: messages call its methods by theirs alone."""
    for name, method in vars(cls).items():
        if not name.startswith("_") and hasattr(method, "__code__"):
            method.__qualname__ = name
    return cls


def _unfit(fn: Any, public: str, options: dict[str, Any]) -> str:
    """What to say of the first option that a function has not."""
    import inspect  # not before there is such a one

    kinds = inspect.Parameter
    known = [
        name
        for name, parameter in inspect.signature(fn).parameters.items()
        if name != "self" and parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    ]
    for name in options:
        if name not in known:
            hint = _MEANT.get(name)
            near = nearest(name, known, hint if hint in known else None)
            return f"{public}() has no option {name!r}{near}; it has {', '.join(known)}"
    return ""


def nearest(name: Any, names: Iterable[Any], hint: str | None = None) -> str:
    """ ", did you mean ...?", or nothing.

    Args:
        name: What was given.
        names: What there is.
        hint: What was meant, if that is known.
    """
    import difflib  # for mistakes alone

    near = hint or next(
        iter(difflib.get_close_matches(str(name), [str(n) for n in names], 1, 0.4)), None
    )
    return f", did you mean {near!r}?" if near else ""


def printable(text: str) -> str:
    """A text of somebody's in one line, without what a terminal obeys, or what hides or turns text:
    such characters are written as Python would, ``\\x1b``, ``\\u202e``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)

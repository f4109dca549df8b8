"""What is wrong with a wrong option: the checks of pools, contexts and pipelines.

Every check is made in the frame of the user's call. It returns the value in the form that is used,
or says what was given and what is allowed: a TypeError for a wrong kind, a ValueError for a wrong
value.

Threads: any; everything here is plain data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "LARGEST_INT",
    "MAX_WORKERS",
    "a_bool",
    "a_callable",
    "exception_classes",
    "initializer",
    "integer",
    "max_workers",
    "nearest",
    "objects",
    "printable",
    "seconds",
    "text",
    "window_limits",
]

MAX_WORKERS = 4096  # FM_MAX_WORKERS
LARGEST_INT = (1 << 31) - 1  # of C


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

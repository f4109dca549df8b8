"""Exceptions that carry something out: of a generator another one, of a node that its run ended.

Threads: any.
"""

from __future__ import annotations

__all__ = ["Carried", "Ended", "carried"]


class Carried(BaseException):
    """Brings out of a generator what would be taken for its end."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Ended(BaseException):
    """The run of a node that is a state graph was told to end, and has: it is no failure of the
    node. What it has committed is in its session."""


def carried(error: BaseException) -> BaseException:
    """The error, or what brings it out of a generator."""
    return Carried(error) if isinstance(error, (StopIteration, GeneratorExit)) else error

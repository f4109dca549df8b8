"""Exceptions on their way out of a generator, which would take some of them for its end.

Threads: any.
"""

from __future__ import annotations

__all__ = ["Carried", "carried"]


class Carried(BaseException):
    """Brings out of a generator what would be taken for its end."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def carried(error: BaseException) -> BaseException:
    """The error, or what brings it out of a generator."""
    return Carried(error) if isinstance(error, (StopIteration, GeneratorExit)) else error

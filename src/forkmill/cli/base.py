"""What the commands share: statuses, options, and what is said to who typed them.

Guarantees: nothing here raises because a stream is closed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click
from click.shell_completion import CompletionItem

from .._target import TargetError, check_function, load
from ..show.text import lines

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]  # not generic before click 8.3, nor there when it runs
else:
    ParamType = click.ParamType

__all__ = [
    "FAILED", "INTERRUPTED", "MISUSE", "MOST_TOLD", "Target", "fail", "nobody_reads",
    "offering", "progress_option", "tell", "to_nowhere", "workers_option",
]  # fmt: skip

FAILED, MISUSE, INTERRUPTED = 1, 2, 130
MOST_TOLD = 10  # failures told one by one under --on-error skip


def tell(message: str) -> None:
    """A line on stderr, if there is one; nothing in it is a command to a terminal."""
    with contextlib.suppress(OSError):
        click.echo(f"forkmill: {lines(message)}", err=True)


def fail(message: str) -> NoReturn:
    """End with a message and status 1."""
    raise click.ClickException(message)


def nobody_reads() -> None:
    """The reader of our output is gone: let the flush at exit go nowhere."""
    to_nowhere(sys.stdout)


def to_nowhere(stream: TextIO) -> None:
    """Whatever is written to it from now on is lost."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def offering(*words: str) -> Any:
    """What a shell is told of an option that takes one of these words, or something else."""

    def offered(ctx: click.Context, param: click.Parameter, so_far: str) -> list[CompletionItem]:
        found = [CompletionItem(word) for word in words if word.startswith(so_far)]
        return found or [CompletionItem(so_far, type="file")]

    return offered


class Target(ParamType):
    """MODULE:NAME; the value is the object."""

    def __init__(self, name: str, example: str, *, called: bool = True) -> None:
        self.name = name
        self._example = example
        self._called = called

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = load(value, example=self._example, search_here=True)
            if self._called:
                check_function(found, value)
        except TargetError as error:
            self.fail(str(error), param, ctx)
        return found


workers_option = click.option(
    "-j",
    "--max-workers",
    "--workers",
    "workers",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Worker processes (default: the CPUs this process may use).",
)
progress_option = click.option(
    "--progress/--no-progress",
    default=True,
    help="Show on stderr how far it is, if that is a terminal (the default).",
)

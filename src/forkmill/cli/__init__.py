"""The command line.

=========  ======================================================================
commands   the commands, their options and their messages
target     MODULE:NAME on a command line -> the object
inputs     files and standard input -> blocks of whole records
packed     gzip, bzip2, xz, zstd -> bytes, up to the very one where they are damaged
rows       where the records of a CSV file end
outputs    what is written to; what must not be
records    what runs in the workers: a block of records -> its results as text
filter     `forkmill map`: blocks to workers, results to the output, in constant memory
pipelines  `forkmill run`: a pipeline by its name
doctor     what this machine allows
demo       a job that every machine has the data for
report     `forkmill report`: a recording as an HTML file
top        `forkmill top`: the dashboard
screen     progress bars and tables on a terminal
=========  ======================================================================

Workers import `records`, `rows`, `demo` and what they need of the standard library: neither click
nor rich.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line; as `forkmill.cli.commands.main`."""
    from . import commands  # click and rich are for who types commands

    return commands.main(args)


def __getattr__(name: str) -> Any:
    if name == "app":  # click's command, for who makes it part of another one
        from . import commands

        return commands.app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

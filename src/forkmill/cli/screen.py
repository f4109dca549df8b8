"""What commands show on a terminal: how far they are, and tables.

Guarantees:
    * Progress goes to stderr, and only if that is a terminal; it is gone when the command is over.
    * Results may go to the same terminal: they are printed above it (`Progress.away`).
    * A terminal that goes away is no failure; one that obeys no commands gets plain text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console

from ..show.draw import table_of
from ..show.progress import Progress, draws, terminal

__all__ = ["Progress", "shown", "table"]


def shown(title: str = "", total: float | None = None, *, wanted: bool = True) -> Progress:
    """A sink that shows on stderr how far a run is; nothing if that is not a terminal.

    Args:
        title: Before the bar; "": the run's name.
        total: What makes the bar full; None: what the events say, which may be nothing.
        wanted: False: show nothing, terminal or not.
    """
    return Progress(title=title, total=total, keep=False, wanted=wanted and terminal(sys.stderr))


def table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
    *,
    on_stderr: bool = False,
) -> None:
    """Print a table; columns whose name starts with ">" are numbers."""
    stream = sys.stderr if on_stderr else sys.stdout
    # None: rich decides, who knows what else than a terminal wants colours.
    styled = False if terminal(stream) and not draws(stream) else None
    screen = Console(file=stream, force_terminal=styled, markup=False)
    screen.print(table_of(title, columns, rows))

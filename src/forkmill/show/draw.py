"""Boards and tables as rich draws them. The only module of this floor that imports rich.

Guarantees: strings are text, never markup; no box characters, so any locale will do.

Threads: any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .text import encoding_of, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .board import Board

__all__ = ["board_of", "console", "group", "live", "table_of"]

_LEAST_BAR, _MOST_BAR = 8, 40
_COLUMNS = ("stage", "context", ">in", ">out", ">failed", ">waiting")
_NARROW = 64  # columns of a terminal that has no room for contexts


class _Screen(Console):
    @property
    def encoding(self) -> str:
        """What bars are drawn in."""
        return encoding_of(self.file)


def console(drawn: bool) -> Console:
    """Standard error, as it is now.

    Args:
        drawn: Whether it is a terminal that can be drawn on; rich is not asked.
    """
    return _Screen(
        stderr=True,
        force_terminal=drawn,
        force_interactive=drawn,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
    )


def live(screen: Console) -> Live:
    """What draws in the same place again and again."""
    return Live(
        console=screen,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def group(parts: Iterable[RenderableType]) -> Group:
    """One below the other."""
    return Group(*parts)


def board_of(board: Board, screen: Console, height: int) -> RenderableType:
    """A run: a line with a bar, and its stages, if there is room for so many lines."""
    width = screen.size.width
    parts: list[RenderableType] = [_line(board, width)]
    room = height - 1  # the head of the table
    if len(board.rows) > 1 and room > 0 and width >= 40:
        cut = 1 if len(board.rows) <= room else 0
        shown = board.rows if cut else board.rows[: room - 1]
        columns: tuple[str, ...] = _COLUMNS
        rows: list[tuple[Any, ...]] = [tuple(row) for row in shown]
        if width < _NARROW or not any(row.where for row in board.rows):
            columns = (_COLUMNS[0], *_COLUMNS[2:])
            rows = [(row[0], *row[2:]) for row in rows]
        if rows:
            parts.append(table_of("", columns, rows))
        if not cut:
            parts.append(Text(f"and {len(board.rows) - len(shown):,} stages more", style="dim"))
    return Group(*parts)


def _line(board: Board, width: int) -> RenderableType:
    """The title, a bar, and as many figures as there is room for."""
    title = Text(board.title, style="bold", no_wrap=True, overflow="crop")
    room = width - 1
    title.truncate(max(4, room // 3), overflow="crop")
    room -= cell_len(title.plain) + 2
    figures = board.figures()
    bar = board.part is not None and not board.status
    least = _LEAST_BAR + 2 if bar and room > 30 else 0
    while len(figures) > 1 and cell_len("  ".join(figures)) > room - least:
        figures.pop()
    words = "  ".join(figures)
    room -= cell_len(words) + 2
    line = Table.grid(padding=(0, 2, 0, 0))
    cells: list[RenderableType] = [title]
    if bar and least:
        bar_width = max(_LEAST_BAR, min(_MOST_BAR, room))
        cells.append(ProgressBar(total=1.0, completed=board.part or 0.0, width=bar_width))
    cells.append(Text(words, no_wrap=True, overflow="crop"))
    line.add_row(*cells)
    return line


def table_of(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table; columns whose name starts with ">" are numbers."""
    shown = Table(
        title=Text(plain(title)) if title else None,
        title_justify="left",
        header_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for column in columns:
        number = column[0] == ">"
        shown.add_column(
            column.lstrip(">"),
            justify="right" if number else "left",
            no_wrap=True,
            overflow="crop",
            min_width=4 if number else 8,
        )
    for row in rows:
        shown.add_row(
            *(Text(f"{cell:,}" if isinstance(cell, int) else plain(cell)) for cell in row)
        )
    return shown

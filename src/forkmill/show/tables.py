"""Tables for notebooks.

Guarantees: whatever is in a cell is shown as text.

Threads: any.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from .text import plain

__all__ = ["html_of"]

_MOST_ROWS = 100


def html_of(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table as HTML, with its title above; columns whose name starts with ">" are numbers."""
    names = list(columns)
    kept = [tuple(row) for row in rows]
    marks = [' style="text-align:right"' if name.startswith(">") else "" for name in names]
    head = "".join(f"<th>{_text(name.lstrip('>'))}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(f"<td{mark}>{_text(cell)}</td>" for mark, cell in zip(marks, row, strict=True))
        + "</tr>"
        for row in kept[:_MOST_ROWS]
    )
    more = len(kept) - _MOST_ROWS
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    table = f"<table><tr>{head}</tr>{body}</table>" if kept else ""
    return f"<div><p>{_text(title)}</p>{table}{rest}</div>"


def _text(cell: object) -> str:
    return escape(f"{cell:,}" if type(cell) is int else plain(cell))

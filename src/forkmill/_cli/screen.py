"""What is shown on a terminal: progress bars, tables. The only module that imports rich.

Guarantees:
    * Progress goes to stderr, and only if that is a terminal.
    * No thread is started: a bar is drawn when there is something new, ten times a second at most.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

__all__ = ["Bar", "Board", "table"]

_PAUSE_S = 0.1


class Bar:
    """A progress bar on stderr; does nothing if that is not a terminal.

    Args:
        title: Before the bar.
        total: What makes it full; None: not known.
        in_bytes: Whether it counts bytes.
        wanted: False: show nothing, terminal or not.
    """

    def __init__(
        self, title: str, total: float | None, *, in_bytes: bool = False, wanted: bool = True
    ) -> None:
        self.on = wanted and sys.stderr.isatty()
        self._next = 0.0
        if not self.on:
            return
        self._progress = _progress(in_bytes=in_bytes, console=Console(stderr=True))
        self._task = self._progress.add_task(title, total=total, note="")

    def __enter__(self) -> Bar:
        if self.on:
            self._progress.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if self.on:
            self._progress.stop()

    def show(self, done: float, note: str = "") -> None:
        """Draw it, if it is time to."""
        now = time.monotonic()
        if self.on and now >= self._next:
            self._next = now + _PAUSE_S
            self._progress.update(self._task, completed=done, note=note, refresh=True)


class Board:
    """A table on stderr that is drawn again and again; does nothing if that is not a terminal.

    Args:
        columns: As for `table`.
        total: There is a bar above it, which so much makes full; None: no bar.
        wanted: False: show nothing, terminal or not.
    """

    def __init__(
        self, columns: Sequence[str], total: float | None = None, *, wanted: bool = True
    ) -> None:
        self.on = wanted and sys.stderr.isatty()
        self._columns = columns
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._bar = None if total is None else _progress()
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total, note="")

    def __enter__(self) -> Board:
        if self.on:
            self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if self.on:
            self._live.stop()

    def show(self, rows: Iterable[Iterable[object]], done: float = 0, note: str = "") -> None:
        """Draw it; `done` and `note` are the bar's."""
        if not self.on:
            return
        shown = _table("", self._columns, rows)
        if self._bar is None:
            self._live.update(shown, refresh=True)
        else:
            self._bar.update(self._task, completed=done, note=note)
            self._live.update(Group(self._bar.get_renderable(), shown), refresh=True)


def _progress(*, in_bytes: bool = False, console: Console | None = None) -> Progress:
    columns: list[ProgressColumn] = [
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
        DownloadColumn() if in_bytes else TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        *([TransferSpeedColumn()] if in_bytes else []),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    ]  # fmt: skip
    return Progress(*columns, console=console, auto_refresh=False, transient=True)


def table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
    *,
    on_stderr: bool = False,
) -> None:
    """Print a table; columns whose name starts with ">" are numbers."""
    Console(stderr=on_stderr).print(_table(title, columns, rows))


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    shown = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        shown.add_column(column.lstrip(">"), justify="right" if column[0] == ">" else "left")
    for row in rows:
        shown.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return shown

"""What is shown on a terminal: progress bars, tables. The only module that imports rich.

Guarantees:
    * Progress goes to stderr, and only if that is a terminal.
    * No thread is started: a bar is drawn when there is something new, ten times a second at most.
    * Results may go to the same terminal: what is drawn is taken away while they are written
      (`away`), and comes again with the next news. What the program prints goes where it would.
    * Who brings the news and who writes results may be two threads: one after the other.
    * A terminal that goes away is no failure.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
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

from .outputs import terminal

__all__ = ["Bar", "Board", "table"]

_PAUSE_S = 0.1


class _Drawn:
    """What is drawn on stderr, again and again; nothing if that is not a terminal.

    Args:
        wanted: False: show nothing, terminal or not.
    """

    def __init__(self, wanted: bool) -> None:
        self.on = wanted and terminal(sys.stderr)
        self._live: Live | None = None
        self._lock = threading.Lock()  # held while something is drawn, or results are written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        with self.away():
            pass

    def _draw(self, shown: RenderableType) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._live is None:
                # A new one each time: it remembers where it was, and results are there now.
                self._live = Live(
                    console=Console(stderr=True),
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                )
                self._live.start()
            self._live.update(shown, refresh=True)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Within it nothing is drawn; it comes again with the next news."""
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                with contextlib.suppress(OSError):
                    live.stop()
            yield


class Bar(_Drawn):
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
        super().__init__(wanted)
        self._next = 0.0
        self._progress = _progress(in_bytes=in_bytes)
        self._task = self._progress.add_task(title, total=total, note="")

    def show(self, done: float, note: str = "") -> None:
        """Draw it, if it is time to."""
        now = time.monotonic()
        if self.on and now >= self._next:
            self._next = now + _PAUSE_S
            self._progress.update(self._task, completed=done, note=note)
            self._draw(self._progress.get_renderable())


class Board(_Drawn):
    """A table on stderr that is drawn again and again; does nothing if that is not a terminal.

    Args:
        columns: As for `table`.
        total: There is a bar above it, which so much makes full; None: no bar.
        wanted: False: show nothing, terminal or not.
    """

    def __init__(
        self, columns: Sequence[str], total: float | None = None, *, wanted: bool = True
    ) -> None:
        super().__init__(wanted)
        self._columns = columns
        self._bar = None if total is None else _progress()
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total, note="")

    def show(self, rows: Iterable[Iterable[object]], done: float = 0, note: str = "") -> None:
        """Draw it; `done` and `note` are the bar's."""
        if not self.on:
            return
        shown: RenderableType = _table("", self._columns, rows)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            shown = Group(self._bar.get_renderable(), shown)
        self._draw(shown)


def _progress(*, in_bytes: bool = False) -> Progress:
    columns: list[ProgressColumn] = [
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
        DownloadColumn() if in_bytes else TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        *([TransferSpeedColumn()] if in_bytes else []),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    ]  # fmt: skip
    return Progress(*columns, auto_refresh=False)


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

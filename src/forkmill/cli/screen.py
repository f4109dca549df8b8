"""What is shown on a terminal: progress bars, tables. The only module that imports rich.

Guarantees:
    * Progress goes to stderr, and only if that is a terminal.
    * It is drawn when the event stream tells of it, in the thread of that: ten times a second.
    * Results may go to the same terminal: what is drawn is taken away while they are written
      (`away`), and comes again with the next news. What the program prints goes where it would.
    * The thread with the news and the one that writes results come one after the other.
    * A terminal that goes away is no failure.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from rich import progress
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from .outputs import terminal

__all__ = ["Progress", "table"]

STAGE_COLUMNS = ("stage", ">in", ">out", ">failed")


class Progress:
    """A sink of events that shows on stderr how far a run is; nothing if that is not a terminal.

    Of a pipeline a table of its stages; of `forkmill map`, or where there is a total, a bar.

    Args:
        title: Before the bar.
        total: What makes it full; None: what the events say, which may be nothing.
        stage: The stage whose outputs are counted for the bar; "": the events say how far it is.
        in_bytes: Whether the bar counts bytes.
        note: Says what is behind the bar, of the data of an event.
        wanted: False: show nothing, terminal or not.

    Attributes:
        on: Whether it shows anything.
    """

    def __init__(
        self,
        title: str = "",
        total: float | None = None,
        *,
        stage: str = "",
        in_bytes: bool = False,
        note: Callable[[dict[str, Any]], str] | None = None,
        wanted: bool = True,
    ) -> None:
        self.on = wanted and terminal(sys.stderr)
        self._stage = stage
        self._note = note
        self._bar: progress.Progress | None = None
        if stage or in_bytes:
            self._bar = _progress(in_bytes=in_bytes)
            self._task = self._bar.add_task(title, total=total, note="")
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

    def __call__(self, event: dict[str, Any]) -> None:
        """Draw it, if the event says how far the run is."""
        if not self.on or event["kind"] != "progress":
            return
        data = event["data"]
        shown: list[RenderableType] = []
        if self._bar is not None:
            done = data["stages"][self._stage]["out"] if self._stage else data["done"]
            note = "" if self._note is None else self._note(data)
            self._bar.update(self._task, completed=done, note=note)
            shown.append(self._bar.get_renderable())
        if "stages" in data:
            rows = [(name, s["in"], s["out"], s["failed"]) for name, s in data["stages"].items()]
            shown.append(_table("", STAGE_COLUMNS, rows))
        self._draw(Group(*shown))

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


def _progress(*, in_bytes: bool) -> progress.Progress:
    columns: list[progress.ProgressColumn] = [
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn()
        if in_bytes
        else progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        *([progress.TransferSpeedColumn()] if in_bytes else []),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    ]
    return progress.Progress(*columns, auto_refresh=False)


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

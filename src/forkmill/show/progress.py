"""How far runs are, for people: on a terminal, in a notebook, as lines of text.

    events ──▶ Progress ──▶ a Board a run ──▶ Terminal   one a process; rich draws it
                                          ├──▶ Notebook  a display handle
                                          └──▶ Lines     one every few seconds

Guarantees:
    * All goes to standard error (or to the notebook); standard output is the program's.
    * What is drawn on a terminal is taken away while something else is written there (`away`), and
      comes again with the next news. Several runs at once are drawn one below the other.
    * A terminal that is too small shows less; one that cannot move its cursor gets lines; one that
      goes away is no failure. Which it is is decided once, by `draws`: rich has no say in it.
    * Names and notes are shown as text: nothing in them is a command to a terminal, or markup.

Threads: a Progress is called in the thread of events. `away` may be entered in any other; both take
the lock of the screen, which a forked child gets anew.
"""

from __future__ import annotations

import contextlib
import html
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol, Self

from .. import _checks
from .board import Board
from .text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["Progress", "draws", "dumb", "terminal"]

_LINES_S = 5.0  # between two lines
_NOTEBOOK_S = 0.3  # between two looks of a notebook


class Screen(Protocol):
    """Where boards are shown."""

    def draw(self, board: Board) -> None:
        """There is news."""

    def end(self, board: Board) -> None:
        """It is over; also if it was never drawn."""


class Progress:
    """A sink of events that shows how far runs are; what ``progress=True`` stands for. ::

        pipeline.run(progress=True)
        pipeline.run(progress=fm.Progress(total=10_000, title="words"))

    On a terminal it draws on standard error; in a notebook it has a place below the cell where it
    was made; elsewhere it writes a line to standard error now and then, and one at the end. A run
    within a run is not shown beside it.

    Args:
        total: How many items there will be, if the run cannot know.
        title: What to call the run; "": its own name.
        every: Seconds between two lines where there is no terminal.
        keep: Leave the last look of it on the terminal.
        wanted: False: show nothing.

    Raises:
        TypeError, ValueError: One of them is wrong.

    Attributes:
        on: Whether it draws on a terminal.
        wanted: Whether it shows anything, there or elsewhere: else no run needs it.
    """

    detail = "runs"

    def __init__(
        self,
        *,
        total: float | None = None,
        title: str = "",
        every: float = _LINES_S,
        keep: bool = True,
        wanted: bool = True,
    ) -> None:
        if total is not None and (
            isinstance(total, bool) or not isinstance(total, (int, float)) or not total >= 0
        ):
            raise ValueError(f"total must be a number of items, 0 or more, not {total!r}")
        self._total = total
        self._title = plain(title, 60)
        self.wanted = wanted
        self._seen: set[str] = set()  # the runs that are shown, and those within them
        self._boards: dict[str, Board] = {}
        self.on = wanted and draws(sys.stderr)
        self._screen: Screen = (
            _TERMINALS[keep]
            if self.on
            else Notebook()
            if wanted and in_notebook()
            else Lines(_checks.seconds("every", every))
        )

    def __call__(self, event: dict[str, Any]) -> None:
        """Show what is new in it."""
        run = event["run"]
        if not self.wanted or run is None or event["source"] in ("pool", "stream"):
            return
        if event["parent"] in self._seen:
            self._seen.add(run)
            return
        board = self._boards.get(run)
        kind = event["kind"]
        if board is None:
            if kind not in ("run_started", "progress"):
                return
            board = self._boards[run] = Board(self._total, self._title)
            self._seen.add(run)
        board.take(event)
        if kind == "progress":
            self._screen.draw(board)
        elif kind == "run_finished":
            del self._boards[run]
            if not self._boards:
                self._seen.clear()
            self._screen.end(board)

    def away(self) -> contextlib.AbstractContextManager[None]:
        """Within it nothing is drawn; it comes again with the next news."""
        return _away() if self.on else contextlib.nullcontext()

    def close(self) -> None:
        """Draw nothing more. Idempotent."""
        self.wanted = False
        for board in tuple(self._boards.values()):
            self._screen.end(board)
        self._boards.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        boards = tuple(self._boards.values())
        return f"<Progress: {', '.join(board.line() for board in boards) or 'no run'}>"[:200]


# ---------------------------------------------------------------------------- terminals


class _Shared:
    """The boards of the process's terminal, and what draws them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while something is drawn, or others write
        self.boards: dict[Board, None] = {}
        self.live: Any = None

    def take_away(self) -> None:
        """With the lock."""
        live, self.live = self.live, None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):
                live.stop()


_SHARED = _Shared()


class Terminal:
    """Standard error, if it is a terminal.

    Args:
        keep: Leave the last look of a run there.
    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep

    def draw(self, board: Board) -> None:
        """Draw all boards, in the place of the last time."""
        from .draw import board_of, console, group, live

        with _SHARED.lock, contextlib.suppress(OSError, ValueError):
            _SHARED.boards[board] = None
            screen = console(draws(sys.stderr))
            if _SHARED.live is None:
                # A new one each time: it remembers where it was, and others have written there.
                _SHARED.live = live(screen)
                _SHARED.live.start()
            room = max(0, screen.size.height - 1 - 2 * len(_SHARED.boards))
            parts = [board_of(each, screen, room // len(_SHARED.boards)) for each in _SHARED.boards]
            _SHARED.live.update(group(parts), refresh=True)

    def end(self, board: Board) -> None:
        """Take it away, or leave it as it is now."""
        with _SHARED.lock:
            shown = _SHARED.boards.pop(board, False) is None
            if shown:
                _SHARED.take_away()
            if self._keep:
                from .draw import board_of, console

                with contextlib.suppress(OSError, ValueError):
                    screen = console(draws(sys.stderr))
                    screen.print(board_of(board, screen, screen.size.height - 2))


_TERMINALS = {keep: Terminal(keep) for keep in (False, True)}


@contextlib.contextmanager
def _away() -> Iterator[None]:
    with _SHARED.lock:
        _SHARED.take_away()
        yield


os.register_at_fork(after_in_child=_SHARED.__init__)  # type: ignore[misc]


def terminal(stream: Any) -> bool:
    """Whether it is one; a stream that is closed is none."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def dumb() -> bool:
    """Whether the terminal cannot move its cursor."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown", "")


def draws(stream: Any) -> bool:
    """Whether it is a terminal that can be drawn on: it moves its cursor, and nobody forbids it."""
    if not terminal(stream) or dumb() or "idlelib.run" in sys.modules:  # IDLE's says it is one
        return False
    return "0" not in map(os.environ.get, ("TTY_COMPATIBLE", "TTY_INTERACTIVE"))


# ---------------------------------------------------------------------------- elsewhere


class Lines:
    """A line on standard error now and then."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._next: dict[Board, float] = {}

    def draw(self, board: Board) -> None:
        """A line, if it is time."""
        now = time.monotonic()
        if now >= self._next.setdefault(board, now + self._every):
            self._next[board] = now + self._every
            _write(board)

    def end(self, board: Board) -> None:
        """The last line."""
        self._next.pop(board, None)
        _write(board)


def _write(board: Board) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{board.line()}\n")
        sys.stderr.flush()


def in_notebook() -> bool:
    """Whether what is displayed goes to a notebook."""
    # Not imported: without it there is none.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return shell is not None and hasattr(shell(), "kernel")


class Notebook:
    """A place below the cell."""

    def __init__(self) -> None:
        display = sys.modules["IPython"].display.display
        self._handle = display(_bundle(None), raw=True, display_id=True)
        self._boards: dict[Board, None] = {}
        self._next = 0.0

    def draw(self, board: Board) -> None:
        """Show it, if it is time."""
        self._boards[board] = None
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _NOTEBOOK_S
            self._handle.update(_bundle(board), raw=True)

    def end(self, board: Board) -> None:
        """The last look."""
        self._boards.pop(board, None)
        self._handle.update(_bundle(board), raw=True)


def _bundle(board: Board | None) -> dict[str, str]:
    if board is None:
        return {"text/plain": "", "text/html": ""}
    text = board.line()
    bar = "" if board.part is None else f'<progress value="{board.part:.4f}" max="1"></progress> '
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in board.rows
    )
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    table = f"<table><tr>{head}</tr>{rows}</table>" if len(board.rows) > 1 else ""
    return {"text/plain": text, "text/html": f"<div>{bar}{html.escape(text)}</div>{table}"}


_COLUMNS = ("stage", "context", "in", "out", "failed", "waiting")

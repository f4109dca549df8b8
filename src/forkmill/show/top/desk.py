"""What keys do: the dashboard without a terminal.

    key ──▶ Desk ──▶ View ──┐
    Source ──────────────▶ frame ──▶ lines

Guarantees: nothing ends a run but "x" or "k", answered by "y".

Threads: one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..text import plain
from .look import SECTIONS, View, chosen, details, frame, rows_of
from .procs import Procs

if TYPE_CHECKING:
    from .link import Source
    from .look import Glyphs, Line

__all__ = ["Desk"]

_HELP = """\
q, ctrl+c    close this; what runs goes on
tab          the next part: stages, workers, failures and log
up, down     choose a row (page up, page down: ten of them)
enter        details of it: a failure's traceback, a stage's figures
s            sort by the next column (then as it comes)
/            show only rows with some text (enter: done, esc: all again)
n            look at the next run
x            stop the run: sources stop, the rest is finished
k            kill the run
t            stacks of the chosen worker
esc          back

The stage with the mark is the one that the others wait for: it has the
most busy time for each of its workers. A queue is shown as what waits,
and for how much there is room."""
_MOST_TYPED = 60


class Desk:
    """A dashboard.

    Args:
        source: What to look at.
        glyphs: What there is to draw with.
        run: The run to begin with; "": the newest.
        until_end: Close when the source is over.

    Attributes:
        view: What is chosen.
        closed: Whether it is done.
    """

    def __init__(
        self, source: Source, glyphs: Glyphs, run: str = "", *, until_end: bool = False
    ) -> None:
        self.source = source
        self.view = View(run=run)
        self.closed = False
        self._glyphs = glyphs
        self._until_end = until_end
        self._procs = Procs()
        self._typing = False
        self._sure: tuple[str, str] | None = None  # what to do if it is answered by "y"
        self._awaited: dict[int, bool] = {}  # numbers of requests: whether the answer is a page

    def tick(self, seconds: float = 0.05) -> bool:
        """Take in what is new; whether there was anything."""
        new = self.source.look(seconds)
        for number, text in self.source.answers().items():
            page = self._awaited.pop(number, None)
            if page:
                self.view.text, self.view.top, self.view.note = text, 0, ""
            elif page is not None:
                self.view.note = plain(text)
            new = True
        self.closed = self.closed or (self._until_end and self.source.over)
        return new or self.source.live

    def frame(self, size: tuple[int, int]) -> list[Line]:
        """All of it as lines."""
        scene = self.source.scene or {}
        figures = {}
        if self.source.live:
            figures = self._procs.look([worker["pid"] for worker in scene.get("workers", [])])
        return frame(self.source, self.view, size, self._glyphs, figures)

    # ------------------------------------------------------------------ keys

    def press(self, key: str, character: str | None = None) -> None:
        """A key, as textual names it."""
        view = self.view
        if key == "ctrl+c":
            self.closed = True
        elif self._sure is not None:
            (what, run), self._sure, view.question = self._sure, None, ""
            view.note = ""
            if key == "y":
                self._ask(what, run, page=False)
        elif self._typing:
            self._type(key, character)
        elif view.text is not None:
            self._read(key)
        else:
            view.note = ""
            handler = _KEYS.get(key)
            if handler is not None:
                handler(self)

    def _type(self, key: str, character: str | None) -> None:
        view = self.view
        if key in ("enter", "escape"):
            self._typing = False
            if key == "escape":
                view.wanted = ""
        elif key == "backspace":
            view.wanted = view.wanted[:-1]
        elif character is not None and character.isprintable():
            view.wanted = (view.wanted + character)[:_MOST_TYPED]
        view.row = 0
        view.question = f"only with: {plain(view.wanted)}_" if self._typing else ""
        if view.wanted and not self._typing:
            view.note = f"only rows with {plain(view.wanted)!r}; / and esc: all"

    def _read(self, key: str) -> None:
        steps = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10, "space": 10}
        if key in steps:
            self.view.top = max(0, self.view.top + steps[key])
        elif key in ("escape", "enter", "q", "backspace", "question_mark"):
            self.view.text = None

    def _close(self) -> None:
        self.closed = True

    def _help(self) -> None:
        self.view.text, self.view.top = _HELP, 0

    def _next_part(self, step: int = 1) -> None:
        self.view.section = (self.view.section + step) % len(SECTIONS)
        self.view.row = 0

    def _move(self, step: int) -> None:
        last = len(self._rows()) - 1
        self.view.row = max(0, min(last, min(self.view.row, last) + step))

    def _rows(self) -> list[dict[str, Any]]:
        scene = self.source.scene or {}
        known = self._procs.known if self.source.live else {}
        return rows_of(scene, self.view, self.view.section, known)

    def _chosen(self) -> dict[str, Any] | None:
        rows = self._rows()
        return rows[min(self.view.row, len(rows) - 1)] if rows else None

    def _sort(self) -> None:
        self.view.sorts[self.view.section] += 1
        self.view.row = 0

    def _filter(self) -> None:
        self._typing = True
        self.view.wanted = ""
        self.view.question = "only with: _"

    def _next_run(self) -> None:
        runs = (self.source.scene or {}).get("runs", [])
        now = chosen(self.source.scene or {}, self.view)
        if now is not None:
            ids = [run["id"] for run in runs]
            self.view.run = ids[(ids.index(now["id"]) + 1) % len(ids)]
            self.view.row = 0

    def _stop(self) -> None:
        self._question("stop", "finish what is under way, and stop")

    def _kill(self) -> None:
        self._question("kill", "drop what is under way, and end")

    def _question(self, what: str, words: str) -> None:
        run = chosen(self.source.scene or {}, self.view)
        if run is None or run["status"]:
            self.view.note = "there is no run that goes on"
        elif not self.source.control:
            self.view.note = "read only: the program has to call fm.serve_top(control=True)"
        else:
            self._sure = what, run["id"]
            self.view.question = f"{words} {plain(run['title'], 40)}? y/n"

    def _stacks(self) -> None:
        row = self._chosen()
        if self.view.section != 1 or row is None:
            self.view.note = "choose a worker first (tab, up, down)"
        elif not self.source.live:
            self.view.note = "a recording has no stacks"
        else:
            self._ask("stacks", row["pid"], page=True)
            self.view.note = f"asking {row['pid']} ..."

    def _details(self) -> None:
        row = self._chosen()
        if row is None:
            return
        if "number" in row:
            self._ask("failure", row["number"], page=True)
            return
        self.view.text, self.view.top = details(self.view.section, row), 0

    def _ask(self, do: str, which: Any, *, page: bool) -> None:
        self._awaited[self.source.ask(do, which)] = page


_KEYS = {
    "q": Desk._close,
    "question_mark": Desk._help,
    "h": Desk._help,
    "tab": Desk._next_part,
    "shift+tab": lambda desk: desk._next_part(-1),
    "up": lambda desk: desk._move(-1),
    "down": lambda desk: desk._move(1),
    "pageup": lambda desk: desk._move(-10),
    "pagedown": lambda desk: desk._move(10),
    "home": lambda desk: desk._move(-1_000_000),
    "end": lambda desk: desk._move(1_000_000),
    "enter": Desk._details,
    "s": Desk._sort,
    "slash": Desk._filter,
    "n": Desk._next_run,
    "x": Desk._stop,
    "k": Desk._kill,
    "t": Desk._stacks,
}

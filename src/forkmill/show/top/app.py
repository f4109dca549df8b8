"""The dashboard on a terminal. The only module that imports textual, which the extra `top` brings.

Guarantees: strings are text, never markup; what is drawn is what `look.frame` says.

Threads: one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import App, ComposeResult
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

if TYPE_CHECKING:
    from .desk import Desk

__all__ = ["Top"]

_EVERY_S = 0.1  # between two looks at the source
_DRAW_S = 0.5  # between two drawings, if nothing is new: clocks go on


class Whole(Widget):
    """All of the terminal."""

    DEFAULT_CSS = "Whole { width: 100%; height: 100%; }"

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self._lines: list[Strip] = []

    def draw(self) -> None:
        """Look, and show it."""
        size = self.size or Size(80, 24)
        styles: dict[str, Style] = {}
        lines = self._desk.frame((size.width, size.height))
        self._lines = [
            Strip(
                [
                    Segment(text, styles.setdefault(style, Style.parse(style)))
                    for text, style in line
                ]
            )
            for line in lines
        ]
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line."""
        # Each with a style: without colours (NO_COLOR) textual asks every one.
        line = self._lines[y] if y < len(self._lines) else Strip([])
        return line.adjust_cell_length(self.size.width, Style())

    def on_resize(self) -> None:
        """The terminal has another size."""
        self.draw()


class Top(App[None]):
    """The dashboard.

    Args:
        desk: What it shows.
    """

    CSS = "Screen { overflow: hidden; }"
    ENABLE_COMMAND_PALETTE = False
    TITLE = "forkmill top"

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self._ticks = 0

    def compose(self) -> ComposeResult:
        """One widget."""
        yield Whole(self._desk)

    def on_mount(self) -> None:
        """Begin."""
        self.set_interval(_EVERY_S, self._tick)

    def _tick(self) -> None:
        self._ticks += 1
        new = self._desk.tick()
        if self._desk.closed:
            self.exit()
        elif new or self._ticks % round(_DRAW_S / _EVERY_S) == 0:
            self._draw()

    def _draw(self) -> None:
        for whole in self.query(Whole):
            whole.draw()

    async def on_event(self, event: events.Event) -> None:
        """Keys are ours, whatever textual would do with them."""
        if isinstance(event, events.Key):
            self._desk.press(event.key, event.character)
            if self._desk.closed:
                self.exit()
            else:
                self._draw()
            return
        await super().on_event(event)

"""A plan as lines of text: chains of stages, with the queues between them.

    paths ─▶ parse ─[██··]▶ batch ─▶ load
             parse ─▶ errors

Guarantees: every edge is drawn once; a graph with loops too.

Threads: any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from ..text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["chains"]

_CELLS = 4  # of a queue
_MOST_NAME = 24


def chains(
    stages: Sequence[dict[str, Any]], edges: Sequence[Sequence[int]], glyphs: Any, width: int
) -> list[str]:
    """The lines.

    Args:
        stages: Of a scene's run.
        edges: Pairs of their numbers.
        glyphs: What to draw with.
        width: Columns; a chain that is longer goes on in the next line.
    """
    found: list[str] = []
    for chain in _paths(len(stages), edges):
        line = _name(stages[chain[0]], glyphs)
        for number in chain[1:]:
            more = f" {_edge(stages[number], glyphs)} {_name(stages[number], glyphs)}"
            if cell_len(line) + cell_len(more) > width:
                found.append(line)
                line = " "
            line += more
        found.append(line)
    return found


def _name(stage: dict[str, Any], glyphs: Any) -> str:
    name = plain(stage["name"], _MOST_NAME)
    return f"{glyphs.slow}{name}" if stage.get("slow") else name


def _edge(to: dict[str, Any], glyphs: Any) -> str:
    room, waits = to.get("room"), to.get("queue")
    known = isinstance(room, int) and isinstance(waits, int) and room > 0
    if not known or to.get("context") == "inline":
        return f"{glyphs.edge}{glyphs.to}"
    full = min(_CELLS, -(-waits * _CELLS // room)) if waits else 0
    return f"{glyphs.edge}[{glyphs.full * full}{glyphs.free * (_CELLS - full)}]{glyphs.to}"


def _paths(number: int, edges: Sequence[Sequence[int]]) -> list[list[int]]:
    """Chains that have every edge once: each begins where nothing comes in, or at a branch."""
    after: dict[int, list[int]] = {i: [] for i in range(number)}
    fed = set()
    for start, end in edges:
        after[start].append(end)
        fed.add(end)
    found: list[list[int]] = []
    for start in [*(i for i in range(number) if i not in fed), *range(number)]:
        while after[start]:
            chain = [start]
            while after[chain[-1]]:
                chain.append(after[chain[-1]].pop(0))
            found.append(chain)
    return found

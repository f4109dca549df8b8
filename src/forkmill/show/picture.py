"""A plan as a picture: SVG, each node in the column behind those that lead to it.

Guarantees: names are escaped; links that lead back are drawn, and do not change the columns.

Threads: any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from .text import plain

__all__ = ["MOST_NODES", "picture"]

MOST_NODES = 60
_WIDE, _HIGH, _GAP_X, _GAP_Y = 176, 62, 72, 22


def picture(
    names: Sequence[str],
    edges: Iterable[tuple[str, str, str]],
    texts: Mapping[str, Sequence[str]],
    marked: str | None = None,
) -> str:
    """The SVG.

    Args:
        names: The nodes, those that lead to others first, as far as that goes.
        edges: From, to, and what is written there.
        texts: Two lines below the name of a node.
        marked: The node that is marked.
    """
    known = set(names)
    links = [edge for edge in edges if edge[0] in known and edge[1] in known]
    places = _places(names, links)
    width = max(x for x, _ in places.values()) + _WIDE + 2
    height = max(y for _, y in places.values()) + _HIGH + 20
    parts = [
        f'<svg class="plan" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    parts += [_link(places[start], places[to], text) for start, to, text in links]
    parts += [_box(name, places[name], texts.get(name, ()), name == marked) for name in names]
    return "".join([*parts, "</svg>"])


def _places(
    names: Sequence[str], links: Sequence[tuple[str, str, str]]
) -> dict[str, tuple[int, int]]:
    order = {name: at for at, name in enumerate(names)}
    column = dict.fromkeys(names, 0)
    for name in names:  # each comes behind those that lead to it, but for links that lead back
        for start, to, _ in links:
            if start == name and order[to] > order[start]:
                column[to] = max(column[to], column[start] + 1)
    filled: dict[int, int] = {}
    places = {}
    for name in names:
        row = filled.get(column[name], 0)
        filled[column[name]] = row + 1
        places[name] = (1 + column[name] * (_WIDE + _GAP_X), 1 + row * (_HIGH + _GAP_Y))
    return places


def _link(start: tuple[int, int], to: tuple[int, int], text: str) -> str:
    y1, y2 = start[1] + _HIGH // 2, to[1] + _HIGH // 2
    x1, x2 = start[0] + _WIDE, to[0] - 2
    if x2 > x1:
        middle = (x1 + x2) // 2
        path = f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"
        at = f'x="{middle}" y="{(y1 + y2) // 2 - 4}"'
    else:  # back: below the boxes
        low = max(y1, y2) + _HIGH // 2 + 10
        middle = (x1 + x2) // 2
        curve = f"Q{x1 - 20} {low} {middle} {low}T{x2 + 20} {to[1] + _HIGH}"
        path = f"M{x1 - 20} {start[1] + _HIGH}{curve}"
        at = f'x="{middle}" y="{low + 12}"'
    return (
        f'<path class="link" d="{path}" marker-end="url(#tip)"/>'
        f'<text class="count" {at} text-anchor="middle">{escape(plain(text, 20))}</text>'
    )


def _box(name: str, place: tuple[int, int], texts: Sequence[str], marked: bool) -> str:
    x, y = place
    mark = " marked" if marked else ""
    shown = plain(name)
    label = shown if len(shown) <= 22 else f"{shown[:21]}…"
    rows = "".join(
        f'<text class="small" x="{x + 10}" y="{y + 37 + 16 * i}">{escape(plain(text, 28))}</text>'
        for i, text in enumerate(texts[:2])
    )
    return (
        f'<g><title>{escape(shown)}</title><rect class="box{mark}" x="{x}" y="{y}" rx="6"'
        f' width="{_WIDE}" height="{_HIGH}"/>'
        f'<text class="name" x="{x + 10}" y="{y + 20}">{escape(label)}</text>{rows}</g>'
    )

"""A graph for the eyes of people: one line, a description, a Mermaid flowchart, a notebook's cell.

Threads: any; nothing of the user's runs, but the reprs of bound values.
"""

from __future__ import annotations

import html as html_module
import reprlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["describe", "html", "line", "mermaid"]

_ESCAPED = str.maketrans({
    '"': "#quot;", "<": "#lt;", ">": "#gt;", "#": "#35;", "&": "#amp;", "\n": " ", "\r": " ",
    "`": "#96;", "[": "#91;", "]": "#93;", "{": "#123;", "}": "#125;", "|": "#124;",
})  # fmt: skip


def line(graph: Any) -> str:
    """One line of less than 200 characters."""
    name = f" {_short(graph.name, 40)}" if graph.name else ""
    inputs, outputs = _names(graph.inputs, 60), _names(graph.outputs, 60)
    number = len(graph.nodes)
    return f"<graph{name}({inputs}) -> {outputs}, {number} node{'s' * (number != 1)}>"


def describe(graph: Any) -> str:
    """Inputs, nodes in their order and outputs, line by line."""
    lines = [f"{graph._called}:", "  inputs:"]
    for name, needed in graph._needs(graph.outputs).items():
        if name in graph._bound:
            how = f" = {reprlib.repr(graph._bound[name])} (bound)"
        else:
            how = "" if needed else " (optional)"
        lines.append(f"    {name}{how}")
    lines.append("  nodes, in order:")
    lines += [f"    {text}" for text in _nodes(graph, "")]
    lines.append(f"  outputs: {', '.join(graph.outputs) or 'none'}")
    return "\n".join(lines)


def _nodes(graph: Any, prefix: str) -> Iterator[str]:
    for placed, path in zip(graph._wiring.placed, graph._wiring.paths, strict=True):
        node = placed.node
        reads = ", ".join(placed.reads)
        yield f"{prefix}{path}({reads}) -> {', '.join(placed.writes)}{_options(node)}"
        if node.graph is not None:
            yield from _nodes(node.graph, f"{prefix}{path}.")


def _options(node: Any) -> str:
    told = []
    if node.graph is not None:
        if node.map_over:
            told.append(f"maps over {', '.join(node.map_over)} ({node.map_mode})")
        if node.on_error != "raise":
            told.append(f"on_error={node.on_error}")
    if node.is_async:
        told.append("async")
    if node.context is not None:
        told.append(f"context={node.context}")
    if node.timeout is not None:
        told.append(f"timeout={node.timeout:g} s")
    if node.retry is not None:
        told.append(f"retry={node.retry.attempts}")
    told += [word for word in ("cache", "batch") if getattr(node, word)]
    return f"  [{', '.join(told)}]" if told else ""


def mermaid(graph: Any) -> str:
    """A Mermaid flowchart: inputs round, nodes as boxes, outputs on the edges between them."""
    lines = ["flowchart TD"]
    counter = iter(range(1 << 30))
    _draw(graph, lines, counter, {}, "    ", graph.inputs)
    return "\n".join(lines)


def _draw(
    graph: Any,
    lines: list[str],
    counter: Iterator[int],
    sources: dict[str, str],
    indent: str,
    inputs: Iterable[str],
) -> dict[str, str]:
    """Draw a graph; name -> id of what it comes from. `sources` has what comes from outside."""
    edges = []
    sources = dict(sources)
    needed = graph._needs(graph.outputs)
    for name in inputs:
        if name not in sources:
            sources[name] = f"i{next(counter)}"
            text = _text(name) + (" (bound)" if name in graph._bound else "")
            text += "" if needed.get(name, True) or name in graph._bound else " (optional)"
            lines.append(f'{indent}{sources[name]}(["{text}"])')
    for placed in graph._wiring.placed:
        node = placed.node
        own = f"n{next(counter)}"
        if node.graph is not None:
            over = f" over {', '.join(map(_text, node.map_over))}" if node.map_over else ""
            lines.append(f'{indent}subgraph {own}["{_text(node.name)}{over}"]')
            outside = {
                inner: sources[outer]
                for inner, outer in zip(node.inputs, placed.reads, strict=True)
                if outer in sources
            }
            found = _draw(node.graph, lines, counter, outside, indent + "    ", ())
            lines.append(f"{indent}end")
            for inner, outer in zip(node.outputs, placed.writes, strict=True):
                sources[outer] = found[inner]
            continue
        lines.append(f'{indent}{own}["{_text(node.name)}"]')
        for name in dict.fromkeys(placed.reads):
            if name in sources:
                edges.append(f'{indent}{sources[name]} -->|"{_text(name)}"| {own}')
        sources.update(dict.fromkeys(placed.writes, own))
    lines += edges
    return sources


def html(graph: Any) -> str:
    """For a notebook: a table of the nodes. Everything is escaped."""
    escape = html_module.escape
    rows = "".join(
        f"<tr><td>{escape(path)}</td><td>{escape(', '.join(placed.reads))}</td>"
        f"<td>{escape(', '.join(placed.writes))}</td>"
        f"<td>{escape(_options(placed.node).strip())}</td></tr>"
        for placed, path in zip(graph._wiring.placed, graph._wiring.paths, strict=True)
    )
    return (
        f"<div><code>{escape(line(graph))}</code><table><thead><tr><th>node</th><th>reads</th>"
        f"<th>writes</th><th>options</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _text(name: str) -> str:
    return name.translate(_ESCAPED)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _names(names: tuple[str, ...], most: int) -> str:
    return _short(", ".join(names) or "nothing", most)

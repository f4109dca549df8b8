"""A report as one HTML page that needs nothing else.

    Record ──▶ sections of HTML, made here ──┐
           └─▶ data of the timeline, JSON ───┴──▶ the page; its script draws the timeline

Guarantees:
    * Whatever comes from the run is escaped: as text in HTML, and in JSON so that no `<` is left.
    * The page loads nothing, and runs only the script that is made here: its policy says so.
    * Without scripts all but the timeline is there.

Threads: any.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from time import localtime, strftime
from typing import Any

from .picture import MOST_NODES, picture
from .record import BASE_S, MOST_BARS, Record
from .text import plain, span

__all__ = ["page"]

_SLOWEST = 25
_MOST_ROWS = 500  # of a table


def page(record: Record, environment: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        record: The run.
        environment: Where it ran: name -> text.
        notes: What else is to be said at the top.
    """
    style, script = _part("report.css"), _part("report.js")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = record.facts.get("title", "a run")
    sections = [
        _summary(record, notes),
        _plan(record),
        _timeline(record),
        _stages(record),
        _histograms(record),
        _slowest(record),
        _failures(record),
        _others(record),
        _table("Environment", ("", ""), environment.items()),
    ]
    return "".join([
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)} - forkmill</title><style>{style}</style></head><body><main>",
        *sections,
        f'</main><script type="application/json" id="data">{_data(record)}</script>',
        f"<script>{script}</script></body></html>\n",
    ])  # fmt: skip


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _text(value: object, most: int = 200) -> str:
    return escape(plain(value, most))


def _json(value: object) -> str:
    """For a script element: nothing in it can end it, or begin a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(record: Record) -> str:
    bars = record.bars()
    start = min((bar[1] for bar in bars), default=record.began)
    flat = [
        number
        for seconds, begin, stage, row, _ in bars
        for number in (row, stage, round((begin - start) * 1e6), round(seconds * 1e6))
    ]
    return _json({"rows": list(record.rows), "stages": list(record.names), "bars": flat})


# ---------------------------------------------------------------------------- sections


def _summary(record: Record, notes: Sequence[str]) -> str:
    facts, stats = record.facts, record.stats or {}
    stages = _figures(record)
    failed = sum(stage["failed"] for stage in stages.values()) if stages else facts.get("failed")
    status = facts.get("status") or "not over when this was made"
    began = facts.get("began")
    when = strftime("%Y-%m-%d %H:%M:%S %z", localtime(began)) if began else ""
    rows = [
        ("status", status),
        ("began", when),
        ("took", span(facts.get("seconds") or 0.0)),
        ("items", _done(facts)),
        ("steps", facts.get("step")),
        ("failures", failed or 0),
        ("from caches", f"{record.cached.total():,}" if record.cached else ""),
        ("bottleneck", stats.get("bottleneck") or ""),
        ("run", facts.get("run", "")),
    ]
    told = [*notes]
    if record.lost:
        told.append(f"{record.lost:,} events are missing; figures of items are lower bounds.")
    kind = "good" if status == "completed" and not failed else "bad"
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>"
        for name, value in rows
        if value not in ("", None)
    )
    remarks = "".join(f'<p class="remark">{_text(note, 500)}</p>' for note in told)
    return f'<h1>{_text(facts.get("title", ""))}</h1><dl class="{kind}">{shown}</dl>{remarks}'


def _done(facts: Mapping[str, Any]) -> str:
    if facts.get("done") is None:
        return ""
    of = "" if facts.get("total") is None else f" of {_count(facts['total'])}"
    return f"{_count(facts['done'])}{of}"


def _figures(record: Record) -> dict[str, dict[str, Any]]:
    """By stage: in, out, failed, and what else is known."""
    if record.stats is not None:
        found = record.stats.get("stages") or {}
        return {name: {**one, "in": one.get("in_", 0)} for name, one in found.items()}
    empty = {"in": 0, "out": 0, "failed": 0}
    return {name: {**empty, **one} for name, one in record.stages.items()}


def _plan(record: Record) -> str:
    figures, stats = _figures(record), record.stats or {}
    counts = {(edge["from"], edge["to"]): edge for edge in stats.get("edges") or ()}
    plan = record.plan or {}
    names = [str(node["name"]) for node in plan.get("nodes", ())] or list(figures)
    where = {str(node["name"]): node.get("context") or "" for node in plan.get("nodes", ())}
    links = list(dict.fromkeys([*map(tuple, plan.get("edges", ())), *counts]))
    if not names:
        return ""
    if len(names) > MOST_NODES:
        return f"<h2>Plan</h2><p>{len(names):,} nodes are too many for a picture.</p>"
    texts = {name: _box_texts(figures.get(name), where.get(name, "")) for name in names}
    edges = []
    for start, to in links:
        edge = counts.get((start, to))
        edges.append((start, to, "" if edge is None else f"{edge.get('emitted', 0):,}"))
    drawn = picture(names, edges, texts, stats.get("bottleneck"))
    return f'<h2>Plan</h2><div class="wide">{drawn}</div>'


def _box_texts(one: Mapping[str, Any] | None, where: str) -> tuple[str, str]:
    if one is None:
        return where, ""
    failed = f", {_count(one['failed'])} failed" if one.get("failed") else ""
    return where or one.get("context", ""), f"{_count(one['in'])} → {_count(one['out'])}{failed}"


def _timeline(record: Record) -> str:
    if not record.seen:
        return (
            "<h2>Timeline</h2><p>No calls were measured: what runs in the program's own thread is "
            "not, nor what is told without detail.</p>"
        )
    shown = min(record.seen, MOST_BARS)
    cut = "" if shown == record.seen else f": the slowest ones, and a sample of {shown:,} in all"
    return (
        f"<h2>Timeline</h2><p>{record.seen:,} measured calls{cut}. Wheel: zoom; drag: move; double "
        'click: all of it.</p><div id="legend"></div><canvas id="timeline"></canvas>'
        '<p id="tip"></p><noscript>The timeline needs scripts.</noscript>'
    )


def _stages(record: Record) -> str:
    cached = record.cached
    columns = ("stage", "context", ">workers", ">in", ">out", ">failed",
               *((">cached",) if cached else ()), ">busy", ">p50", ">p90", ">p99")  # fmt: skip
    where = {node["name"]: node for node in (record.plan or {}).get("nodes", ())}
    rows = []
    for name, one in _figures(record).items():
        node = where.get(name, {})
        busy = f"{one['busy']:.2f} s" if one.get("busy") is not None else ""
        rows.append((
            name, one.get("context") or node.get("context") or "",
            one.get("workers") or node.get("workers") or "",
            *(_count(one[key]) for key in ("in", "out", "failed")),
            *((_count(cached[plain(name)]),) if cached else ()), busy,
            *(span(one.get(key)) for key in ("p50", "p90", "p99")),
        ))  # fmt: skip
    return _table("Stages", columns, rows)


def _histograms(record: Record) -> str:
    parts = []
    for name, counts in record.histograms().items():
        first = next(i for i, count in enumerate(counts) if count)
        most = max(counts)
        bars = "".join(
            f"<tr><td>{_text(span(BASE_S * 2**at))}</td><td>{count:,}</td>"
            f'<td><meter min="0" max="{most}" value="{count}"></meter></td></tr>'
            for at, count in enumerate(counts[first:], first)
        )
        parts.append(
            f"<figure><figcaption>{_text(name)}</figcaption><table><tr><th>up to</th><th>calls"
            f"</th><th></th></tr>{bars}</table></figure>"
        )
    if not parts:
        return ""
    return f'<h2>How long calls take</h2><div class="figures">{"".join(parts[:100])}</div>'


def _slowest(record: Record) -> str:
    names, rows = list(record.names), list(record.rows)
    shown = [
        (names[stage], span(seconds), f"{begin - record.began:.3f} s", rows[row], f"{number:,}")
        for seconds, begin, stage, row, number in record.slowest(_SLOWEST)
    ]
    columns = ("stage", ">took", ">began after", "worker", ">its call number")
    return _table("Slowest calls", columns, shown)


def _failures(record: Record) -> str:
    if not record.groups and not record.ungrouped:
        return ""
    parts = []
    for group in sorted(record.groups.values(), key=lambda each: -each.count):
        samples = "".join(
            f"<dt>{_text(one['item'], 500) or 'no item'}</dt><dd>{_text(one['error'], 1000)}"
            f"{_trace(one['traceback'])}</dd>"
            for one in group.samples
        )
        parts.append(
            f"<details><summary><b>{group.count:,}</b> {_text(group.cause)} in "
            f"{_text(group.stage)}</summary><dl>{samples}</dl></details>"
        )
    if record.ungrouped:
        parts.append(f"<p>And {record.ungrouped:,} failures of other kinds.</p>")
    return f"<h2>Failures</h2>{''.join(parts)}"


def _trace(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text else ""


def _others(record: Record) -> str:
    rows = [
        (f"{at - record.began:.3f} s", kind, name, text) for at, kind, name, text in record.notes
    ]
    if record.unnoted:
        rows.append(("", f"and {record.unnoted:,} more", "", ""))
    return _table("What else happened", (">after", "what", "where", ""), rows)


def _table(title: str, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    kept = [tuple(row) for row in rows]
    if not kept:
        return ""
    marks = ['<td class="n">' if column.startswith(">") else "<td>" for column in columns]
    head = "".join(f"<th>{_text(column.lstrip('>'))}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"{mark}{_text(cell)}</td>" for mark, cell in zip(marks, row, strict=True))
        + "</tr>"
        for row in kept[:_MOST_ROWS]
    )  # fmt: skip
    more = len(kept) - _MOST_ROWS
    rest = f"<p>And {more:,} more.</p>" if more > 0 else ""
    return (
        f'<h2>{_text(title)}</h2><div class="wide"><table><tr>{head}</tr>{body}</table></div>{rest}'
    )


def _count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else plain(value, 40)

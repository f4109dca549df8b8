"""A scene as lines of text, for any width and height.

    scene, view, size ──▶ frame ──▶ lines of (text, style) ──▶ the app, or `forkmill top --once`

    ┌───────────────────────────────────────┐
    │ whose runs, and what there is to know │
    │ the run: a bar, figures               │
    │ plan: a ─[██··]▶ b ─▶ c               │
    │ stages                                │
    │ workers                               │
    │ failures and log                      │
    │ keys, or a question                   │
    └───────────────────────────────────────┘

Guarantees:
    * No line is wider than the terminal, in cells, and there are never more lines than it has.
    * Nothing in a scene is a command to a terminal, or markup; nothing is told by colour alone.
    * With `ascii` glyphs there is nothing but ASCII.

Threads: any; nothing is kept.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.cells import cell_len, set_cell_size

from ..text import amount, clock, plain, span
from .plan import chains

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .procs import Figures

    Span = tuple[str, str]
    Line = list[Span]

__all__ = [
    "LEAST",
    "SECTIONS",
    "Glyphs",
    "View",
    "chosen",
    "details",
    "frame",
    "glyphs_for",
    "rows_of",
]

LEAST = (40, 10)  # columns and lines
SECTIONS = ("stages", "workers", "failures and log")
_BAR = 24  # columns at most
_WIDE = 140  # columns


class Glyphs(NamedTuple):
    """What pictures are drawn with."""

    done: str
    left: str
    full: str
    free: str
    edge: str
    to: str
    slow: str
    cut: str
    ascii: bool


_BOXES = Glyphs("━", "─", "█", "·", "─", "▶", "◆", "…", False)
_ASCII = Glyphs("=", "-", "#", ".", "-", ">", "*", "~", True)


def glyphs_for(encoding: str | None) -> Glyphs:
    """Those that an encoding has."""
    try:
        "".join(_BOXES[:-1]).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _ASCII
    return _BOXES


@dataclass
class View:
    """What who looks has chosen.

    Attributes:
        run: The id of the run; "": the newest one that goes on.
        section: Which part the keys are for.
        row: Which row of it is chosen.
        sorts: By which column each part is sorted; 0: as it comes.
        wanted: Only rows with this text.
        text: What is shown in the place of the parts: details, help; None: nothing.
        top: Its first line that is shown.
        question: What is asked in the last line.
        note: What is told there once.
    """

    run: str = ""
    section: int = 0
    row: int = 0
    sorts: list[int] = field(default_factory=lambda: [0] * len(SECTIONS))
    wanted: str = ""
    text: str | None = None
    top: int = 0
    question: str = ""
    note: str = ""


class Column(NamedTuple):
    """One of a table."""

    head: str
    width: int  # negative: numbers, to the right; 0: what is left
    text: Callable[[dict[str, Any]], str]
    key: Callable[[dict[str, Any]], Any]
    least: int = 0  # columns that a terminal must have for it
    wide: int = 0  # how many more there are for it where there are _WIDE


# ------------------------------------------------------------------ the parts


def _said(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: plain(row.get(name) or "")


def _count(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: _number(row.get(name))


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"


def _time(name: str) -> Callable[[dict[str, Any]], str]:
    def text(row: dict[str, Any]) -> str:
        value = row.get(name)
        return span(value) if isinstance(value, (int, float)) and value else ""

    return text


def _by(name: str) -> Callable[[dict[str, Any]], Any]:
    """The largest first."""

    def key(row: dict[str, Any]) -> float:
        value = row.get(name)
        return -value if isinstance(value, (int, float)) else 0.0

    return key


def _queue(row: dict[str, Any]) -> str:
    room = row.get("room")
    text = _number(row.get("queue"))
    return f"{text}/{_number(room)}" if room and row.get("context") != "inline" else text


def _rate(row: dict[str, Any]) -> str:
    rate = row.get("rate")
    if not isinstance(rate, (int, float)):
        return ""
    return f"{rate:,.0f}/s" if rate >= 10 or not rate else f"{rate:.2g}/s"


_STAGES = (
    Column("stage", 0, _said("name"), _said("name")),
    Column("context", 20, _said("context"), _by("workers"), 112),
    Column("in", -9, _count("in"), _by("in")),
    Column("out", -9, _count("out"), _by("out")),
    Column("failed", -7, _count("failed"), _by("failed")),
    Column("queue", -12, _queue, _by("queue")),
    Column("busy", -8, _time("busy"), _by("busy"), 72),
    Column("p50", -8, _time("p50"), _by("p50"), 100),
    Column("p99", -8, _time("p99"), _by("p99"), 100),
    Column("rate", -9, _rate, _by("rate")),
)


def _cpu(row: dict[str, Any]) -> str:
    cpu = row.get("cpu")
    return f"{cpu:.0%}" if isinstance(cpu, (int, float)) else ""


def _bytes(row: dict[str, Any]) -> str:
    rss = row.get("rss")
    return amount(rss, "bytes") if isinstance(rss, (int, float)) else ""


def _since(row: dict[str, Any]) -> str:
    age = row.get("age")
    return clock(age) if isinstance(age, (int, float)) else ""


_WORKERS = (
    Column("pid", 10, lambda row: str(row.get("pid")), lambda row: row.get("pid", 0)),
    Column("state", 10, _said("state"), _said("state")),
    Column("since", -9, _since, _by("age")),
    Column("tasks", -10, _count("tasks"), _by("tasks"), 64),
    Column("memory", -10, _bytes, _by("rss")),
    Column("CPU", -6, _cpu, _by("cpu")),
    Column("  what", 0, lambda row: f"  {plain(row.get('what', ''))}", _said("what")),
)


def _moment(row: dict[str, Any]) -> str:
    at = row.get("time")
    return time.strftime("%H:%M:%S", time.localtime(at)) if isinstance(at, (int, float)) else ""


_NEWS = (
    Column("time", 9, _moment, _by("time")),
    Column("what", 9, _said("level"), _said("level")),
    Column("where", 13, _said("name"), _said("name"), wide=12),
    Column("item", 13, _said("item"), _said("item"), 64, wide=32),
    Column("pid", 9, lambda row: str(row.get("worker") or ""), _by("worker"), 110),
    Column("text", 0, _said("text"), _said("text")),
)
_TABLES = (_STAGES, _WORKERS, _NEWS)


def details(section: int, row: dict[str, Any]) -> str:
    """All that is known of a row of a part, a line each, whatever the terminal's width."""
    shown = {column.head.strip(): column.text(row).strip() for column in _TABLES[section]}
    for name in ("workers", "text"):
        if row.get(name) is not None:
            shown[name] = plain(row[name], 1000)
    width = max(map(len, shown))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in shown.items())


def chosen(scene: dict[str, Any], view: View) -> dict[str, Any] | None:
    """The run that is looked at: the chosen one; else the last that goes on and is no part of
    another, else the last."""
    runs = scene.get("runs", [])
    for run in runs:
        if run["id"] == view.run:
            return dict(run)
    ids = {run["id"] for run in runs}
    whole = [run for run in runs if run["parent"] not in ids]
    going = [run for run in whole if not run["status"]]
    return dict((going or whole)[-1]) if whole else None


def rows_of(
    scene: dict[str, Any], view: View, section: int, figures: dict[int, Figures] | None = None
) -> list[dict[str, Any]]:
    """The rows of a part, as they are shown: filtered and sorted."""
    if section == 0:
        run = chosen(scene, view)
        rows = [] if run is None else list(run["stages"])
    elif section == 1:
        now = scene.get("now", 0.0)
        rows = [_worker(worker, now, figures or {}) for worker in scene.get("workers", [])]
    else:
        rows = _news(scene)
    table = _TABLES[section]
    if view.wanted:
        wanted = view.wanted.casefold()
        rows = [row for row in rows if any(wanted in c.text(row).casefold() for c in table)]
    by = view.sorts[section] % (len(table) + 1)
    return sorted(rows, key=table[by - 1].key) if by else rows


def _worker(worker: dict[str, Any], now: float, figures: dict[int, Figures]) -> dict[str, Any]:
    known = figures.get(worker["pid"])
    since = worker.get("since")
    age = max(0.0, now - since) if isinstance(since, (int, float)) else None
    more = {} if known is None else {"rss": known.rss, "cpu": known.cpu}
    return {**worker, "age": age, **more}


def _news(scene: dict[str, Any]) -> list[dict[str, Any]]:
    """Failures and lines, the last one first."""
    failures = [
        {
            "time": each["time"], "level": "FAILED", "name": each["stage"], "item": each["item"],
            "text": each["error"], "number": each["number"], "worker": None,
        }
        for each in scene.get("failures", [])
    ]  # fmt: skip
    found = [*failures, *scene.get("lines", [])]
    return sorted(found, key=lambda row: -row["time"])


# ------------------------------------------------------------------ lines


def _drawn(text: str, glyphs: Glyphs) -> str:
    if glyphs.ascii and not text.isascii():
        return text.encode("ascii", "backslashreplace").decode()
    return text


def _fit(text: str, width: int, glyphs: Glyphs) -> str:
    """So many cells of a text, and no others."""
    text = _drawn(text, glyphs)
    if cell_len(text) > width:
        text = set_cell_size(text, max(0, width - 1)) + glyphs.cut if width > 0 else ""
    return set_cell_size(text, max(0, width))


def _cell(text: str, width: int, glyphs: Glyphs) -> str:
    if width >= 0:
        return _fit(text, width - 1, glyphs) + " "  # a gap behind it
    shown = _fit(text, min(-width - 1, max(cell_len(text), 1)), glyphs)  # a gap before it
    return " " * max(0, -width - cell_len(shown)) + shown


def _table(
    section: int,
    rows: Sequence[dict[str, Any]],
    view: View,
    size: tuple[int, int],
    glyphs: Glyphs,
) -> list[Line]:
    """A part in so many columns and lines: its head, and rows around the chosen one."""
    width, height = size
    columns = [column for column in _TABLES[section] if width >= column.least]
    if width >= _WIDE:
        columns = [c._replace(width=c.width + c.wide) for c in columns]
    fixed = sum(abs(column.width) for column in columns) + 2
    widths = [column.width or max(8, width - fixed) for column in columns]
    here = view.section == section and view.text is None
    by = view.sorts[section] % (len(_TABLES[section]) + 1)
    sorted_by = _TABLES[section][by - 1].head if by else None
    heads = [
        _cell(f"{column.head}{'v' if column.head == sorted_by else ''}", each, glyphs)
        for column, each in zip(columns, widths, strict=True)
    ]
    mark = glyphs.to if here else " "
    head = _fit(f"{mark} {''.join(heads)}", width, glyphs)
    found: list[Line] = [[(head, "bold" if here else "dim bold")]]
    room = height - 1
    row = min(view.row, len(rows) - 1) if here else 0
    first = max(0, min(row - room // 2, len(rows) - room))
    for number, each in enumerate(rows[first : first + room], first):
        cells = "".join(
            _cell(column.text(each), size, glyphs)
            for column, size in zip(columns, widths, strict=True)
        )
        lead = glyphs.slow if each.get("slow") else " "
        style = "reverse" if here and number == row else _style(each)
        found.append([(_fit(f"{lead} {cells}", width, glyphs), style)])
    if len(rows) > room > 1:
        more = f"  and {len(rows) - room + 1:,} more"
        found[-1 if row < first + room - 1 else 1] = [(_fit(more, width, glyphs), "dim")]
    return found


def _style(row: dict[str, Any]) -> str:
    if row.get("level") in ("FAILED", "ERROR", "CRITICAL", "died") or row.get("failed"):
        return "red"
    return "bold" if row.get("slow") else ""


def _heights(wants: list[int], room: int, first: int) -> list[int]:
    """How many lines each part gets: two at least, and more where it wants more."""
    found = [min(want, 2) for want in wants]
    shares = [(0, 5), (1, 4), (2, 3)]  # of twelve
    for number, share in shares:
        found[number] = min(wants[number], max(found[number], room * share // 12))
    for number in (first, 0, 1, 2):
        left = room - sum(found)
        if left > 0:
            found[number] += min(left, wants[number] - found[number])
    while sum(found) > room:
        largest = max(range(len(found)), key=lambda i: found[i])
        found[largest] -= 1
    return found


def _head(run: dict[str, Any] | None, scene: dict[str, Any], width: int, glyphs: Glyphs) -> Line:
    """The run in a line."""
    if run is None:
        return [(_fit(" no run yet", width, glyphs), "dim")]
    runs = scene.get("runs", [])
    title = plain(run["title"], 40)
    if len(runs) > 1:
        place = next(i for i, each in enumerate(runs) if each["id"] == run["id"])
        title += f" (run {place + 1} of {len(runs)})"
    line: Line = [(f" {title}  ", "bold")]
    if run["part"] is not None and not run["status"] and width >= 60:
        bar = min(_BAR, width // 5)
        done = round(run["part"] * bar)
        line += [(glyphs.done * done, "green"), (glyphs.left * (bar - done), "dim"), ("  ", "")]
    words = [plain(each, 40) for each in run["figures"]]
    room = width - sum(cell_len(text) for text, _ in line)
    while len(words) > 1 and cell_len("  ".join(words)) > room:
        words.pop()
    line.append(("  ".join(words), "red" if run["failed"] else ""))
    return _line(line, width, glyphs)


def _line(spans: Line, width: int, glyphs: Glyphs) -> Line:
    """Spans that fill a line."""
    found: Line = []
    for raw, style in spans:
        text = _drawn(raw, glyphs)
        shown = _fit(text, min(width, cell_len(text)), glyphs)
        found.append((shown, style))
        width -= cell_len(shown)
    return [*found, (" " * max(0, width), "")]


_KEYS = (
    ("q", "close"), ("?", "keys"), ("tab", "part"), ("enter", "details"), ("s", "sort"),
    ("/", "filter"), ("n", "next run"), ("x", "stop"), ("k", "kill"), ("t", "stacks"),
)  # fmt: skip


def _foot(view: View, control: bool, width: int, glyphs: Glyphs) -> Line:
    if view.question or view.note:
        text = view.question or view.note
        return [(_fit(f" {text}", width, glyphs), "reverse")]
    if view.text is not None:
        keys = [("esc", "back"), ("up/down", "scroll")]
    else:
        keys = [key for key in _KEYS if control or key[0] not in "xk"]
    line: Line = []
    for key, what in keys:
        more: Line = [(f" {key}", "bold"), (f" {what} ", "dim")]
        if sum(cell_len(text) for text, _ in line + more) <= width:
            line += more
    return _line(line, width, glyphs)


# ------------------------------------------------------------------ all of it


def frame(
    source: Any,
    view: View,
    size: tuple[int, int],
    glyphs: Glyphs,
    figures: dict[int, Figures] | None = None,
) -> list[Line]:
    """Everything, as exactly so many lines.

    Args:
        source: A `link.Source`.
        view: What is chosen.
        size: Columns and lines.
        glyphs: What there is to draw with.
        figures: What the system knows of processes.
    """
    width, height = size
    if width < LEAST[0] or height < LEAST[1]:
        small = (f"{width}x{height} is too small:", f"it takes {LEAST[0]}x{LEAST[1]}")
        lines: list[Line] = [[(_fit(line, width, glyphs), "")] for line in small]
        return [*lines, *_blank(width, height - len(lines))][:height]
    scene = source.scene or {}
    run = chosen(scene, view)
    notes = [note for note in (source.note, _missing(scene)) if note]
    told = "  ".join(notes)
    left = max(0, width - cell_len(told) - 3)
    top: Line = [(_fit(f" {source.title}", left, glyphs), "dim"), (f"  {told} ", "bold")]
    found = [_line(top, width, glyphs), _head(run, scene, width, glyphs)]
    room = height - 3
    if view.text is not None:
        found += _text(view, (width, room), glyphs)
    else:
        found += _parts(scene, run, view, (width, room), glyphs, figures)
    found += _blank(width, height - 1 - len(found))
    return [*found, _foot(view, source.control, width, glyphs)]


def _missing(scene: dict[str, Any]) -> str:
    lost = scene.get("lost", 0)
    return f"{lost:,} events lost" if lost else ""


def _parts(
    scene: dict[str, Any],
    run: dict[str, Any] | None,
    view: View,
    size: tuple[int, int],
    glyphs: Glyphs,
    figures: dict[int, Figures] | None,
) -> list[Line]:
    width, room = size
    most = max(1, room // 7)
    found: list[Line] = [] if run is None else _plan(run, width, most, glyphs)
    rows = [rows_of(scene, view, section, figures) for section in range(len(SECTIONS))]
    # A line between two parts, where there are enough.
    airy = room >= 30
    left = room - len(found) - 3 * airy
    heights = _heights([len(each) + 1 for each in rows], left, view.section)
    for section, height in enumerate(heights):
        if airy:
            found.append([(" " * width, "")])
        if height > 0:
            found += _table(section, rows[section], view, (width, height), glyphs)
    return found


def _plan(run: dict[str, Any], width: int, most: int, glyphs: Glyphs) -> list[Line]:
    """Which stage feeds which, and how full the queue between them is."""
    if len(run["stages"]) < 2 or not run["edges"]:
        return []
    lines = chains(run["stages"], run["edges"], glyphs, width - 2)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} and {len(lines) - most:,} lines more"]
    return [[(_fit(f" {line}", width, glyphs), "cyan")] for line in lines]


def _text(view: View, size: tuple[int, int], glyphs: Glyphs) -> list[Line]:
    width, room = size
    rows = (view.text or "").split("\n")
    view.top = max(0, min(view.top, len(rows) - room))
    return [
        [(_fit(f" {plain(row, 2000)}", width, glyphs), "")]
        for row in rows[view.top : view.top + room]
    ]


def _blank(width: int, number: int) -> list[Line]:
    return [[(" " * max(0, width), "")]] * max(0, number)

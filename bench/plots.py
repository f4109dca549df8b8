"""Plots of what was measured, to be judged at a look: SVG and PNG, with matplotlib.

    targets     one bar a row of the table of targets, on one scale: how many times better than what
                is to be reached (1), median with p25 - p75; in one colour if reached, in another if
                missed
    FAMILY      the questions of a family, a panel a case: us and the peers side by side, each
                always in its own colour; cases of a series are one panel with a line each

The same run gives the same files: there is no time and no random name in them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

from . import report
from .harness import LESS, Measured, Target, spread
from .peers import ALL, OURS
from .runner import FAMILIES, Answer

REACHED, MISSED, OTHERS = "tab:blue", "tab:orange", "tab:gray"
_COLOURS = {
    OURS: "tab:red",
    **dict(
        zip(
            (peer.name for peer in ALL if peer.name != OURS),
            [f"tab:{c}" for c in ("blue", "cyan", "green", "olive", "purple", "brown", "pink")],
            strict=True,
        )
    ),
}  # fmt: skip
_COLUMNS = 3
_QUICK = "  (a quick run: the figures mean nothing)"
_FARTHEST = 30.0  # the chart of targets goes no farther, either way


def write(folder: Path, answers: list[Answer], *, quick: bool) -> list[Path]:
    """The chart of targets and one of each family that has figures; the paths."""
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "forkmill"
    paths = _targets(folder / "targets", answers, quick)
    for family, questions in FAMILIES.items():
        panels = _panels(answer for answer in answers if answer.question in questions)
        if panels:
            paths += _family(folder / family, family, panels, quick)
    return paths


def _save(figure: Any, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(".svg"), stem.with_suffix(".png")]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], dpi=100)
    return paths


# ---------------------------------------------------------------------- targets


def _targets(stem: Path, answers: list[Answer], quick: bool) -> list[Path]:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [row[:3] for row in report.rows(answers) if row[2]]
    if not rows:
        return []
    figure = Figure(figsize=(11, 1.6 + 0.36 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, (_, target, figures) in enumerate(rows):
        low, middle, high = sorted(_times_better(target, value) for value in spread(figures))
        colour = REACHED if report.reached(target, figures) else MISSED
        # From 1 on a scale of logarithms: to the right reached, to the left missed.
        axis.barh(place, middle - 1, left=1, color=colour, height=0.7)
        axis.plot([low, high], [place, place], color="black", linewidth=1)
        text = f" {report.measured(target, figures)}  (reach {report.bound(target)}) "
        axis.annotate(text, (max(high, 1), place), va="center", fontsize=8)
    axis.set_xscale("log")
    axis.axvline(1, color="black")
    axis.set_yticks(range(len(rows)), [what.replace("`", "") for what, _, _ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.margins(y=0.02)
    left, right = axis.get_xlim()
    axis.set_xlim(left, right * (right / left) ** 0.6)  # room for the text
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("times better than what is to be reached (1)")
    missed = sum(1 for _, target, figures in rows if not report.reached(target, figures))
    patches = [
        Patch(color=REACHED, label=f"reached: {len(rows) - missed}"),
        Patch(color=MISSED, label=f"missed: {missed}"),
    ]
    axis.legend(handles=patches, loc="lower right", fontsize=9)
    figure.suptitle("forkmill against its targets" + (_QUICK if quick else ""))
    return _save(figure, stem)


def _times_better(target: Target, value: float) -> float:
    if target.at_most:
        times = target.bound / value if value > 0 else math.inf
    else:
        times = value / target.bound
    return min(max(times, 1 / _FARTHEST), _FARTHEST)


# ---------------------------------------------------------------------- families


def _panels(answers: Iterable[Answer]) -> list[list[Measured]]:
    """Cases with figures, those of a series together."""
    panels: dict[tuple[str, str], list[Measured]] = {}
    for answer in answers:
        for result in answer.results:
            if any(result.figures(name) for name in result.values):
                key = (answer.question, result.series or f"case {result.case}")
                panels.setdefault(key, []).append(result)
    return list(panels.values())


def _family(stem: Path, family: str, panels: list[list[Measured]], quick: bool) -> list[Path]:
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.2 * columns, 0.6 + 2.9 * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, cases in zip(axes, panels, strict=False):
        if len(cases) > 1:
            _lines(axis, cases)
        else:
            _bars(axis, cases[0])
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(family + (_QUICK if quick else ""))
    return _save(figure, stem)


def _bars(axis: Any, result: Measured) -> None:
    names = [name for name in result.values if result.figures(name)]
    spreads = [spread(result.figures(name)) for name in names]
    middles = [middle for _, middle, _ in spreads]
    errors = [[m - low for low, m, _ in spreads], [high - m for _, m, high in spreads]]
    colours = [_COLOURS.get(name, OTHERS) for name in names]
    bars = axis.barh(names, middles, xerr=errors, color=colours, ecolor="black", capsize=2)
    axis.bar_label(bars, [report.number(middle) for middle in middles], padding=6, fontsize=7)
    if min(middles) > 0 and max(middles) > 20 * min(middles):
        axis.set_xscale("log")
    axis.invert_yaxis()
    axis.margins(x=0.25)
    axis.tick_params(labelsize=7)
    _title(axis, result.title, result)


def _lines(axis: Any, cases: list[Measured]) -> None:
    for name in dict.fromkeys(name for case in cases for name in case.values):
        points = [(case.at, *spread(figures)) for case in cases if (figures := case.figures(name))]
        if not points:
            continue
        at, low, middle, high = zip(*points, strict=True)
        colour = _COLOURS.get(name, "black")
        axis.plot(at, middle, marker="o", markersize=3, label=name, color=colour)
        axis.fill_between(at, low, high, color=colour, alpha=0.2)
    axis.set_xscale("log")
    axis.set_xticks([case.at for case in cases], [f"{case.at:g}" for case in cases], minor=False)
    axis.minorticks_off()
    middles = [spread(figures)[1] for case in cases for figures in _all_figures(case)]
    if min(middles) > 0 and max(middles) > 5 * min(middles):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _: report.number(value))
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6)
    _title(axis, cases[0].series, cases[0])


def _all_figures(case: Measured) -> list[list[float]]:
    return [figures for name in case.values if (figures := case.figures(name))]


def _title(axis: Any, text: str, result: Measured) -> None:
    better = "less" if result.better == LESS else "more"
    wrapped = textwrap.fill(f"{text} [{result.unit}, {better} is better]", 60)
    axis.set_title(wrapped, fontsize=8, loc="left")

"""Tables, raw data and plots of what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .harness import LESS, Measured, Target, spread
from .peers import OURS
from .runner import QUESTIONS, Answer, first_line, load, to_json

README = Path(__file__).with_name("README.md")
_TABLE = re.compile(r"(?<=<!-- targets -->\n).*?(?=<!-- /targets -->)", re.DOTALL)


def number(value: float) -> str:
    """A figure with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


# ---------------------------------------------------------------------- Markdown


def markdown(answers: Iterable[Answer], facts: dict[str, str], command: str, quick: bool) -> str:
    """The whole report."""
    answers = list(answers)
    lines = ["# forkmill, measured", ""]
    if quick:
        lines += ["**A quick run: it shows that everything works. The figures mean nothing.**", ""]
    lines += [f"Made by `{command}`. What the numbers cannot tell: bench/README.md.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "## Targets", "", *targets_table(() if quick else answers), ""]
    for answer in answers:
        lines += _section(answer)
    return "\n".join(lines)


def _section(answer: Answer) -> Iterator[str]:
    yield from (f"## {answer.question}", "", first_line(answer.question), "")
    if answer.failure:
        yield from (f"**Failed**: {answer.failure}", "")
    for result in answer.results:
        yield from _case(result)
    if answer.notes:
        yield from (*(f"- {note}" for note in answer.notes), "")


def _case(result: Measured) -> Iterator[str]:
    better = "less is better" if result.better == LESS else "more is better"
    yield f"### {result.title}"
    yield ""
    yield f"| | median, {result.unit} ({better}) | p25 - p75 | {OURS} is | p25 - p75 | rounds |"
    yield "|---|--:|---|--:|---|--:|"
    for name in result.values:
        yield _row(result, name)
    yield ""


def _row(result: Measured, name: str) -> str:
    figures = result.figures(name)
    if not figures:
        return f"| {name} | failed: {_cell(result.failures.get(name, 'no figure'))} | | | | 0 |"
    low, middle, high = spread(figures)
    cells = [name, number(middle), f"{number(low)} - {number(high)}"]
    speedups = result.speedups(over=name) if name != OURS else []
    if speedups:
        slow, half, fast = spread(speedups)
        cells += [f"{number(half)}x as good", f"{number(slow)} - {number(fast)}"]
    else:
        cells += ["", ""]
    if failure := result.failures.get(name):
        cells[0] += f" (then failed: {_cell(failure)})"
    return f"| {' | '.join([*cells, str(len(figures))])} |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:200]


# ---------------------------------------------------------------------- targets


def targets_table(answers: Iterable[Answer] = ()) -> list[str]:
    """The rows to reach, with what was measured; a dash where nothing was."""
    measured = {
        (result.question, result.case): result for answer in answers for result in answer.results
    }
    lines = ["| what | reach | measured | |", "|---|---|---|---|"]
    for question in QUESTIONS:
        for target in load(question).TARGETS:
            result = measured.get((question, target.case))
            what = f"{target.what}: {target.label}" if target.label else target.what
            figures = result.reached(target) if result is not None else []
            lines.append(f"| {what} | {_bound(target)} | {_verdict(target, figures)} |")
    return lines


def _bound(target: Target) -> str:
    sign = "<=" if target.at_most else ">="
    if target.against is None:
        return f"{sign} {target.bound:g}"
    return f"{sign} {target.bound:g}x {target.against}"


def _verdict(target: Target, figures: list[float]) -> str:
    if not figures:
        return "— | "
    low, middle, high = spread(figures)
    reached = middle <= target.bound if target.at_most else middle >= target.bound
    times = "" if target.against is None else "x"
    text = f"{number(middle)}{times} ({number(low)} - {number(high)})"
    return f"{text} | {'reached' if reached else 'not yet'}"


def update_readme(answers: Iterable[Answer], path: Path = README) -> None:
    """Put the run's targets table between README.md's markers."""
    table = "\n".join(targets_table(answers)) + "\n"
    path.write_text(_TABLE.sub(lambda _: table, path.read_text()))


# ---------------------------------------------------------------------- files


def write(folder: Path, answers: list[Answer], facts: dict[str, str], text: str) -> list[Path]:
    """results.md, results.json and, with matplotlib, a plot of each question; the paths."""
    paths = [folder / "results.md", folder / "results.json"]
    paths[0].write_text(text)
    raw = {"machine": facts, "answers": [to_json(answer) for answer in answers]}
    paths[1].write_text(json.dumps(raw, indent=1) + "\n")
    return paths + _plots(folder, answers)


def _plots(folder: Path, answers: list[Answer]) -> list[Path]:
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("agg")
    # The same run gives the same file: no time, no random names.
    matplotlib.rcParams["svg.hashsalt"] = "forkmill"
    paths = []
    for answer in answers:
        if results := [r for r in answer.results if any(map(r.figures, r.values))]:
            paths += _plot(folder / answer.question, results, first_line(answer.question))
    return paths


def _plot(stem: Path, results: list[Measured], question: str) -> list[Path]:
    from matplotlib.figure import Figure

    height = sum(1.0 + 0.28 * len(result.values) for result in results)
    figure = Figure(figsize=(9, 0.6 + height), layout="constrained")
    ratios = [1.0 + 0.28 * len(result.values) for result in results]
    axes = figure.subplots(len(results), 1, squeeze=False, height_ratios=ratios)
    for axis, result in zip(axes[:, 0], results, strict=True):
        _bars(axis, result)
    figure.suptitle(question)
    paths = [stem.with_suffix(".svg"), stem.with_suffix(".png")]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], dpi=110)
    return paths


def _bars(axis: Any, result: Measured) -> None:
    names = [name for name in result.values if result.figures(name)]
    spreads = [spread(result.figures(name)) for name in names]
    middles = [middle for _, middle, _ in spreads]
    errors = [[m - low for low, m, _ in spreads], [high - m for _, m, high in spreads]]
    colours = ["tab:red" if name == OURS else "tab:gray" for name in names]
    bars = axis.barh(names, middles, xerr=errors, color=colours, ecolor="black", capsize=2)
    axis.bar_label(bars, [number(middle) for middle in middles], padding=6, fontsize=8)
    if min(middles) > 0 and max(middles) > 20 * min(middles):
        axis.set_xscale("log")
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.tick_params(labelsize=8)
    better = "less" if result.better == LESS else "more"
    axis.set_title(f"{result.title} [{result.unit}, {better} is better]", fontsize=9, loc="left")

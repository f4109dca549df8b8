"""Tables and raw data of what was measured; the plots are `plots`' part."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from .harness import LESS, Measured, Target, spread
from .peers import OURS
from .runner import QUESTIONS, Answer, first_line, load, to_json

README = Path(__file__).with_name("README.md")
_TABLE = re.compile(r"(?<=<!-- targets -->\n).*?(?=<!-- /targets -->)", re.DOTALL)
NO_PLOTS = "matplotlib is not installed; pip install '.[bench]' brings it."


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


def rows(
    answers: Iterable[Answer] = (),
) -> Iterator[tuple[str, Target, list[float], list[float]]]:
    """Each row to reach: its text, its target, the figures that tell, if it was measured, and those
    of what its bound depends on."""
    results = {
        (result.question, result.case): result for answer in answers for result in answer.results
    }
    for question in QUESTIONS:
        for target in load(question).TARGETS:
            result = results.get((question, target.case))
            what = f"{target.what}: {target.label}" if target.label else target.what
            if result is None:
                yield what, target, [], []
            else:
                yield what, target, result.reached(target), result.beside(target)


def targets_table(answers: Iterable[Answer] = ()) -> list[str]:
    """The rows to reach, with what was measured; a dash where nothing was."""
    lines = ["| what | reach | measured | |", "|---|---|---|---|"]
    for what, target, figures, beside in rows(answers):
        verdict = "— | "
        if figures:
            low, _, high = spread(figures)
            text = f"{measured(target, figures)} ({number(low)} - {number(high)})"
            if beside and target.where is not None:
                text += f"; {target.where[0]}: {number(spread(beside)[1])}x"
            verdict = f"{text} | {judged(target, figures, beside)}"
        lines.append(f"| {what} | {bound(target)} | {verdict} |")
    return lines


def bound(target: Target) -> str:
    """What is to be reached."""
    sign = "<=" if target.at_most else ">="
    if target.against is None:
        return f"{sign} {target.bound:g}" if target.bound < 1e6 else f"{sign} {target.bound:,.0f}"
    return f"{sign} {target.bound:g}x {target.against}"


def measured(target: Target, figures: list[float]) -> str:
    """What was."""
    return number(spread(figures)[1]) + ("" if target.against is None else "x")


def reached(target: Target, figures: list[float]) -> bool:
    """Whether the median is on the right side of the bound."""
    middle = spread(figures)[1]
    return middle <= target.bound if target.at_most else middle >= target.bound


def judged(target: Target, figures: list[float], beside: list[float]) -> str:
    """What is said of a row that was measured."""
    if reached(target, figures):
        return "reached"
    if target.where is not None and beside and spread(beside)[1] < target.where[1]:
        return f"not here: it is for machines where {target.where[0]} reach {target.where[1]:g}x"
    return "not yet"


def update_readme(
    answers: Iterable[Answer], facts: dict[str, str], command: str, path: Path = README
) -> None:
    """Put the run's targets table, and what made it, between README.md's markers."""
    made = f"Made by `{command}`: {facts['CPU']}; Python {facts['Python'].split()[-1]}."
    table = "\n".join([*targets_table(answers), "", made]) + "\n"
    path.write_text(_TABLE.sub(lambda _: table, path.read_text()))


# ---------------------------------------------------------------------- files


def write(
    folder: Path, answers: list[Answer], facts: dict[str, str], text: str, *, quick: bool = False
) -> list[Path]:
    """results.md, results.json and, with matplotlib, the plots; the paths."""
    raw = {"machine": facts, "answers": [to_json(answer) for answer in answers]}
    paths = [folder / "results.md", folder / "results.json"]
    paths[1].write_text(json.dumps(raw, indent=1) + "\n")  # first: it cannot be made again
    plots: list[Path] = []
    if importlib.util.find_spec("matplotlib") is not None:
        from . import plots as charts

        plots = charts.write(folder, answers, quick=quick)
        text += "".join(f"![{p.stem}]({p.name})\n" for p in plots if p.suffix == ".svg")
    else:
        text += f"No plots: {NO_PLOTS}\n"
    paths[0].write_text(text)
    return paths + plots

"""Writes faults.md from the tests: ``python docs/faults.py`` (--check: is it current?).

The table of stages and failures is `tests/faults.py`, over which `tests/fault/test_stages.py` is
parametrized. Which tests hold a scenario is what their ``@pytest.mark.scenario(n)`` says; they are
read, not imported.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).with_name("faults.md")
TESTS = ROOT / "tests"

sys.path.insert(0, str(TESTS))
import faults  # noqa: E402

HEAD = """\
# Faults: what happens, and what is promised

Made from the tests by `docs/faults.py`; do not edit.

The rows say what happens, the columns at which stage of a task's life (the last two: of a pool's);
what the words in the {cells} cells promise is below. Each cell is tried in
`tests/fault/test_stages.py` with the start methods fork, zygote and spawn, ordered and unordered
where there is a `map`, at a random item and after a random delay (`pytest -m slow`: 20 times,
or as often as `FM_REPEATS` says; each night 200 times). Whatever it costs: all other tasks have
their right outcome, none runs twice, `accepted = outcomes + backlog + in flight` holds, and no
process, thread or descriptor is left.
"""
PROMISES = """\
## What the words promise
"""
SCENARIOS = """\
## Scenarios

Whole stories, each with the tests that hold it.
"""
NOT_TRIED = """\
## What is not in the table

Cells without a meaning, and why they have none.
"""


def page() -> str:
    """The whole text."""
    head = HEAD.format(cells=len(faults.CELLS))
    parts = (grid(), [PROMISES], promises(), [SCENARIOS], scenarios(), [NOT_TRIED], left_out())
    return "\n".join([head, *itertools.chain(*parts)])


def grid() -> Iterator[str]:
    """Failures by stages."""
    cells = {(cell.stage, cell.failure): cell.promise for cell in faults.CELLS}
    yield "| | " + " | ".join(faults.STAGES) + " |"
    yield "|---" * (len(faults.STAGES) + 1) + "|"
    for failure in faults.FAILURES:
        row = [cells.get((stage, failure), "") for stage in faults.STAGES]
        yield f"| {failure} | " + " | ".join(row) + " |"
    yield ""
    for stage, title in faults.STAGES.items():
        yield f"- *{stage}*: {title}"
    yield ""


def promises() -> Iterator[str]:
    """What each word of the grid means, and who holds it."""
    yield "| word | what it costs | tests |\n|---|---|---|"
    for word, (text, tests) in faults.PROMISES.items():
        named = ", ".join(f"`{name}`" for name in tests.split())
        yield f"| {word} | {text} | {named} |"
    yield ""


def scenarios() -> Iterator[str]:
    """What each scenario is, and its tests by file.

    Raises:
        ValueError: A scenario has no test, or a test names one that nobody knows.
    """
    found = marked_tests()
    if wrong := found.keys() ^ faults.SCENARIOS.keys():
        raise ValueError(f"scenarios without a test, or unknown: {sorted(wrong)}")
    yield "| # | what happens | tests |\n|---|---|---|"
    for number, text in faults.SCENARIOS.items():
        tests = "; ".join(
            f"`{file}`: {', '.join(f'`{name}`' for name in names)}"
            for file, names in found[number].items()
        )
        yield f"| {number} | {text} | {tests} |"
    yield ""


def marked_tests() -> dict[int, dict[str, list[str]]]:
    """Scenario -> file -> the tests that say that they hold it."""
    found: dict[int, dict[str, list[str]]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for decorator in getattr(node, "decorator_list", ()):
                if ast.unparse(decorator).startswith("pytest.mark.scenario("):
                    for number in ast.literal_eval(ast.Tuple(decorator.args, ast.Load())):
                        file = path.relative_to(TESTS).as_posix()
                        found.setdefault(number, {}).setdefault(file, []).append(node.name)
    return found


def left_out() -> Iterator[str]:
    """Reasons, each with its cells."""
    known = {(cell.stage, cell.failure) for cell in faults.CELLS}
    reasons: dict[str, dict[str, list[str]]] = {}
    for stage in faults.STAGES:
        for failure in faults.FAILURES:
            if (stage, failure) not in known:
                why = reasons.setdefault(faults.reason(stage, failure), {})
                why.setdefault(failure, []).append(stage)
    yield "| what happens | when | why it is not tried |\n|---|---|---|"
    for reason, failures in reasons.items():
        by_stages: dict[str, list[str]] = {}
        for failure, names in failures.items():
            by_stages.setdefault(", ".join(names), []).append(failure)
        for names, what in by_stages.items():
            yield f"| {', '.join(what)} | {names} | {reason} |"
    yield ""


def main(arguments: list[str], say: Callable[[str], object] = print) -> int:
    """Write the page, or tell whether it is current."""
    text = page()
    if arguments == ["--check"]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        if not current:
            say("docs/faults.md is not current: run python docs/faults.py")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

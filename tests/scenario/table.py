"""Which tests show which pipeline scenario: ``python tests/scenario/table.py`` prints the table.

A test shows the scenario whose number is in its name: ``test_29_threads_sleep_side_by_side``. The
contexts that it runs in are those of its parameters, and those that its source names; a racy one
is repeated as often as its parameter `times` says. `gaps` compares that with what each demands.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

KINDS = {"I": "inline", "T": "thread", "F": "cow_fork", "W": "ipc_fork"}
FOLDER = Path(__file__).parent

# Number: what it is about, the contexts that it names, how often it is to be repeated.
SCENARIOS: dict[int, tuple[str, str, int]] = {
    1: ("a line of stages", "I", 1),
    2: ("filters; no items at all", "I", 1),
    3: ("a diamond", "I", 1),
    4: ("broadcast; terminal stages of a nested pipeline", "I", 1),
    5: ("a tree of branches", "I", 1),
    6: ("explicit and default links", "I", 1),
    7: ("from_, and two lines that meet", "I", 1),
    8: ("round robin", "I", 1),
    9: ("balanced: the idlest", "TFW", 1),
    10: ("several producers", "I", 1),
    11: ("producers with lines of their own", "I", 1),
    12: ("errors before anything runs", "", 1),
    13: ("names in nested pipelines", "I", 1),
    14: ("copies of a broadcast", "ITFW", 1),
    15: ("a router by name", "I", 1),
    16: ("default and named targets", "I", 1),
    17: ("routes by priority", "I", 1),
    19: ("targets that nobody uses; that wait for a first item", "I", 1),
    20: ("an unknown target at run time", "I", 1),
    21: ("a splitter ends with its targets", "TFW", 100),
    22: ("every way to send to a name", "ITFW", 1),
    24: ("batches, and batches of batches", "I", 1),
    25: ("a batch stage in parallel contexts", "TFW", 1),
    26: ("max_wait", "I", 1),
    28: ("threads, a batch, forks", "TF", 1),
    29: ("threads side by side, never more than n", "T", 1),
    30: ("persistent workers", "W", 1),
    31: ("a fork an item", "F", 1),
    32: ("processes after processes", "FW", 200),
    34: ("producers into, and in, processes", "FW", 1),
    35: ("pipelines inside a stage's body", "FW", 1),
    36: ("nested three deep; placed in a worker", "W", 1),
    37: ("a named pool", "TFW", 1),
    38: ("blocks of contexts; sizes from the instance", "I", 1),
    39: ("values are the same everywhere", "ITFW", 1),
    40: ("results of any size", "FW", 1),
    43: ("order, and a test mode without", "TFW", 1),
    45: ("an item raises", "ITFW", 1),
    46: ("retries, dead letters", "ITFW", 1),
    47: ("a producer raises", "I", 1),
    48: ("a worker is killed", "FW", 10),
    49: ("what cannot travel; hooks and children that fail", "FW", 1),
    51: ("an item over its time", "FW", 1),
    52: ("signals", "FW", 1),
    54: ("hooks exactly once", "I", 1),
    55: ("hooks of forks", "FW", 1),
    56: ("runs are independent", "ITFW", 1),
    58: ("reroute", "I", 1),
    59: ("bottleneck, percentiles, edges", "FW", 1),
    60: ("figures in bounded memory; a monitor", "I", 1),
}


@dataclass
class Shown:
    """What the tests of a scenario show.

    Attributes:
        tests: Their names.
        contexts: Letters of KINDS.
        repeats: The most that one of them repeats.
    """

    tests: set[str] = field(default_factory=set)
    contexts: set[str] = field(default_factory=set)
    repeats: int = 1


# Files with the scenarios of other shapes, which have numbers of their own.
OTHERS = ("test_graph_", "test_stategraph_")


def collected(folder: Path = FOLDER) -> list[Any]:
    """All tests of a folder, the slow ones too."""

    class Keeper:
        items: list[Any] = []

        def pytest_collection_finish(self, session: Any) -> None:
            self.items = list(session.items)

    keeper = Keeper()
    quiet = ["--collect-only", "-p", "no:terminal", "-p", "no:cacheprovider", "-o", "addopts="]
    code = pytest.main([*quiet, str(folder)], plugins=[keeper])
    if code != 0 or not keeper.items:
        raise RuntimeError(f"the tests of {folder} cannot be collected: {code!r}")
    return keeper.items


def shown(items: Iterable[Any]) -> dict[int, Shown]:
    """By number, what the tests show."""
    found: dict[int, Shown] = {}
    for item in items:
        number = re.match(r"test_(\d+)_", item.originalname)
        if number is None or item.path.name.startswith(OTHERS):
            continue
        one = found.setdefault(int(number[1]), Shown())
        one.tests.add(item.originalname)
        params = item.callspec.params if hasattr(item, "callspec") else {}
        named = {letter for letter, kind in KINDS.items() if kind in _words(params.values())}
        source = inspect.getsource(item.function)
        named |= {letter for letter, kind in KINDS.items() if re.search(rf"\b{kind}\b", source)}
        one.contexts |= named or {"I"}
        one.repeats = max(one.repeats, _repeats(source, params.get("times", 1)))
    return found


def _words(values: Iterable[Any]) -> set[str]:
    """The types among parameters: "thread", "thread:2", and what is in tuples."""
    words: set[str] = set()
    for value in values:
        if isinstance(value, str):
            words.add(value.partition(":")[0])
        elif isinstance(value, tuple):
            words |= _words(value)
    return words


def _repeats(source: str, times: int) -> int:
    part = re.search(r"range\(times // (\d+)\)", source)
    return times // int(part[1]) if part else times


def gaps(found: dict[int, Shown]) -> Iterator[str]:
    """What is demanded and not shown."""
    for number, (about, contexts, repeats) in SCENARIOS.items():
        one = found.get(number)
        if one is None:
            yield f"{number} ({about}) has no test"
            continue
        if missing := set(contexts) - one.contexts:
            yield f"{number} ({about}) is not shown in {', '.join(sorted(missing))}"
        if one.repeats < repeats:
            yield f"{number} ({about}) is repeated {one.repeats} times, not {repeats}"
    for number in found.keys() - SCENARIOS.keys():
        yield f"{', '.join(found[number].tests)}: there is no scenario {number}"


def main() -> int:
    """Print the table; 1 if there are gaps."""
    found = shown(collected())
    print("| # | scenario | contexts | repeats | tests |\n|---|---|---|---|---|")
    for number, (about, _, _) in SCENARIOS.items():
        one = found.get(number, Shown())
        contexts = "".join(letter for letter in KINDS if letter in one.contexts)
        tests = ", ".join(sorted(one.tests))
        print(f"| {number} | {about} | {contexts} | {one.repeats} | {tests} |")
    missing = list(gaps(found))
    for line in missing:
        print(line, file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

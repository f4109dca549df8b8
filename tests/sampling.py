"""Which cells of a table of tests run each time, and which on demand (`pytest -m slow`).

Many tests are the same thing tried in many places: contexts, start methods, engines, stores. What
is wrong in one place is nearly always wrong in its neighbours, so of the cells that differ in the
place alone one in `SAMPLED` runs each time, and one at least; the others are marked slow. What is
tried is never left out: inputs, errors, policies, sizes all run each time, somewhere. The choice
is the same each time, and moves from test to test, so that no place is without tests.

Contract tests say what each place has to keep, so they run in all of them. So does a test, or a
file (`pytestmark`), with `@pytest.mark.everywhere`: what a place may well get wrong alone.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import count

import pytest

SAMPLED = 3
# What parameters that say where are called.
PLACES = {"context", "engine", "ex", "method", "pool", "spec", "store", "where"}
GOLDEN = 0.6180339887498949  # its multiples have no period that a table could share


def apply(items: list[pytest.Item]) -> None:
    """Mark the cells slow that are left out."""
    numbers: defaultdict[str, count[int]] = defaultdict(count)  # of each file's groups
    for (path, *_), cells in groups(items).items():
        most = -(-len(cells) // SAMPLED)
        first = next(numbers[path]) * GOLDEN % 1 * len(cells)
        taken = {int(first + i * len(cells) / most) % len(cells) for i in range(most)}
        for i, cell in enumerate(cells):
            if i not in taken:
                cell.add_marker(pytest.mark.slow)


def groups(items: list[pytest.Item]) -> dict[tuple[object, ...], list[pytest.Item]]:
    """Cells that differ in their places alone; the first of a key is the file."""
    found: defaultdict[tuple[object, ...], list[pytest.Item]] = defaultdict(list)
    for item in items:
        call = getattr(item, "callspec", None)
        if call is None or "contract" in item.path.parts:
            continue
        if item.get_closest_marker("everywhere") or item.get_closest_marker("slow"):
            continue
        if call.params.keys() & PLACES:
            rest = [repr(value) for name, value in call.params.items() if name not in PLACES]
            found[item.path.name, item.nodeid.partition("[")[0], *rest].append(item)
    return found

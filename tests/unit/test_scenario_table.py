"""Every pipeline scenario has its tests, in each context that it names, repeated as it asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scenario.table import SCENARIOS, Shown, gaps

TESTS = Path(__file__).resolve().parents[1]


def test_each_scenario_is_shown() -> None:
    table = TESTS / "scenario" / "table.py"
    ran = subprocess.run([sys.executable, str(table)], capture_output=True, text=True, timeout=50)
    assert ran.returncode == 0, ran.stderr + ran.stdout[-2000:]
    assert len(ran.stdout.splitlines()) == 2 + len(SCENARIOS)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda found: found.pop(29), "29 .* has no test"),
        (lambda found: found[14].contexts.discard("W"), "14 .* is not shown in W"),
        (lambda found: setattr(found[32], "repeats", 6), "32 .* is repeated 6 times, not 200"),
        (lambda found: found.update({99: Shown({"test_99_x"})}), "test_99_x: there is no scenario"),
    ],
)
def test_a_gap_is_found(spoil: object, text: str) -> None:
    found = {
        number: Shown({"test"}, set(contexts), repeats)
        for number, (_, contexts, repeats) in SCENARIOS.items()
    }
    assert not list(gaps(found))
    spoil(found)  # type: ignore[operator]
    (gap,) = gaps(found)
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(gap)

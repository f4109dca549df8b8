"""What type checkers find in programs that use forkmill: all that is wrong, and nothing else.

`programs/passes.py` has no error, and its `assert_type` lines hold what is inferred; in
`programs/fails.py` each line that ends in `# wrong` has an error, and no other line has one. The
gate runs these where it checks types; elsewhere they are skipped without the checkers.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed"),
]

PROGRAMS = Path(__file__).parent / "programs"
# What stubtest cannot know, where a module is its own stub.
KNOWN = (
    r"stub does not have parameter|\*\*kwargs parameter \"options\"|return_exceptions",  # Unpack
    r"is not present at runtime",  # names for checkers alone, and classes that are made by need
    r"\*args parameter|\*\*kwargs parameter \"kwargs\"",  # functools.cache, and refusals by a loop
    r"per_worker\.Handle|base\._Condition|errors\.__all__|walk\._ODD|Options\.__slots__",
    r"ForkmillBackend|SQLCheckpoints\._transaction|checkpoints\.store\.(Blob|Value)|rules\.Way",
    r"errors\._IN_C|on_dask\.__all__|interrupts\._Flag\.set",  # it reads a base, a property anew
)


def checked(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=PROGRAMS, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def mypy() -> str:
    return checked("mypy", "--strict", "--config-file=", "--cache-dir=/dev/null", *FILES)


def pyright() -> str:
    if not importlib.util.find_spec("pyright"):
        pytest.skip("pyright is not installed")
    said = checked("pyright", "--pythonpath", sys.executable, *FILES)
    if "informations" not in said:  # it brings its other half, in JavaScript, at its first use
        pytest.skip(f"pyright cannot run here: {said.strip().splitlines()[-1:]}")
    return said


FILES = ("passes.py", "fails.py")


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_what_is_wrong_is_found_and_nothing_else(checker) -> None:
    said = checker()
    found = set(re.findall(r"(passes|fails)\.py:(\d+):(?:\d+)?(?: -)? ?error", said))
    lines = (PROGRAMS / "fails.py").read_text().splitlines()
    wrong = {("fails", str(n)) for n, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert found == wrong, said
    assert len(wrong) > 30


@pytest.mark.slow
def test_what_is_declared_is_there() -> None:
    said = checked(
        "mypy.stubtest",
        "forkmill",
        "--concise",
        "--ignore-disjoint-bases",
        "--mypy-config-file",
        str(Path(__file__).parents[2] / "pyproject.toml"),
    )
    lines = [line for line in said.splitlines() if line.startswith("forkmill.")]
    assert lines, said
    assert [line for line in lines if not re.search("|".join(KNOWN), line)] == []

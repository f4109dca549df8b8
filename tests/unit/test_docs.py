"""Every Python block of the README and the docs runs as it stands, each as a script of its own.

A block whose fence says `python no-run` is shown only; say beside it why it cannot run. One that
says `python needs-NAME` is passed over where that package is not installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python *([^\n]*)\n(.*?)^```", re.M | re.S)


def blocks() -> list[object]:
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            if "no-run" not in match[1]:
                needs = match[1].removeprefix("needs-")
                found.append(pytest.param(match[2], needs, id=f"{path.name}:{line}"))
    return found


@pytest.mark.parametrize(("code", "needs"), blocks())
def test_the_documented_code_runs(code: str, needs: str, run_script) -> None:
    if needs and find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    run_script(code, timeout=30)


def test_the_reference_is_what_the_docstrings_say() -> None:
    script = ROOT / "docs" / "reference.py"
    if not script.exists():
        pytest.skip("the docs are not here")
    pytest.importorskip("tqdm")  # whose adapter is in it
    ran = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=50
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_table_of_faults_is_what_the_tests_say() -> None:
    script = ROOT / "docs" / "faults.py"
    if not script.exists():
        pytest.skip("the docs are not here")
    ran = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=50
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(("mark", "last"), [("demo", "forkmill demo"), ("test", "pytest")])
def test_the_readme_has_the_commands_that_ci_runs(mark: str, last: str) -> None:
    readme, script = ROOT / "README.md", ROOT / ".ci" / "run"
    if not readme.exists() or not script.exists():
        pytest.skip("the sources are not here")
    command = re.search(rf"<!-- {mark} -->\n```sh\n(.+?)\n```", readme.read_text(), re.S)
    assert command, ".ci/run takes the commands from between these marks"
    assert command[1].endswith(last)

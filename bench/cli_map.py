"""Does `forkmill map` keep its workers busy on a large file of short lines?

JSON lines of some 50 bytes, of which a function picks a field, and lines whose length is told: the
more a line costs, the less the way to the workers matters. Beside a plain Python loop over the
file, and GNU parallel with such loops behind `--pipe`, if it is installed. Every output is compared
with the plain loop's. What interpreters take to start is in the figures.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from .harness import MORE, Bench, Case, Sample, WrongResult, elapsed
from .peers import OURS

PLAIN_LOOP = "plain loop"
GNU_PARALLEL = "GNU parallel"
TARGETS = ()
# title, MODULE:FUNCTION, and the same as an expression for the loops
FUNCTIONS = {
    "json": ("a field of a JSON line", "bench.work:pick_user", 'loads(line)["user"]'),
    "length": ("the length of a line", "builtins:len", "len(line)"),
}
_LOOP = """
import sys
from json import loads
write = sys.stdout.write
for line in sys.stdin:
    line = line.rstrip("\\n")
    write(f"{%s}\\n")
"""
_ROOT = Path(__file__).parents[1]


def run(bench: Bench) -> None:
    """Ask."""
    count = bench.size(1_000_000, 2000)
    bench.plan(len(FUNCTIONS))
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "lines")
        _write(lines, count)
        bench.note(f"{count:,} lines, {lines.stat().st_size / 1e6:,.0f} MB")
        for key, (title, target, expression) in FUNCTIONS.items():
            program = _LOOP % expression
            expected = Path(folder, "expected")
            _rate([sys.executable, "-c", program], lines, count, expected, None)
            commands = {
                OURS: [sys.executable, "-m", "forkmill", "map", target, "-j", str(bench.workers)],
                PLAIN_LOOP: [sys.executable, "-c", program],
            }
            if _has_gnu_parallel():
                commands[GNU_PARALLEL] = [
                    "parallel", "--pipe", "--keep-order", "--block", "10M",
                    "-j", str(bench.workers), "-q", sys.executable, "-c", program,
                ]  # fmt: skip
            samples: dict[str, Sample] = {
                name: partial(_rate, command, lines, count, Path(folder, "out"), expected)
                for name, command in commands.items()
            }
            case = Case(key, f"{title}, {count:,} lines", "lines/s", MORE, samples, most_rounds=3)
            bench.measure(case)


def _write(path: Path, count: int) -> None:
    with path.open("w") as file:
        for start in range(0, count, 10_000):
            file.writelines(
                f'{{"id": {i}, "user": {i * 7919 % 1000}, "at": {i / 8}}}\n'
                for i in range(start, min(start + 10_000, count))
            )


def _has_gnu_parallel() -> bool:
    if shutil.which("parallel") is None:
        return False
    told = subprocess.run(["parallel", "--version"], capture_output=True, text=True)
    return "GNU parallel" in told.stdout


def _rate(command: list[str], lines: Path, count: int, out: Path, expected: Path | None) -> float:
    """Lines per second of one run of the command."""
    env = {**os.environ, "PYTHONUNBUFFERED": ""}  # it would make the loops write line by line
    with lines.open("rb") as given, out.open("wb") as taken:
        seconds, ran = elapsed(
            lambda: subprocess.run(
                command, stdin=given, stdout=taken, stderr=subprocess.PIPE, cwd=_ROOT, env=env
            )
        )
    if ran.returncode:
        raise WrongResult(ran.stderr.decode(errors="replace").strip()[-500:])
    if expected is not None and not filecmp.cmp(out, expected, shallow=False):
        raise WrongResult("the output is not that of the plain loop")
    return count / seconds

"""A gate that noise cannot shake: what a task costs, counted and not timed.

Three counts, of the main paths (tests/costs.py): what kernel and pool count themselves, which runs
everywhere on Linux; system calls by strace; instructions by callgrind. What a bound says is in its
row; to move one is a decision, and needs its reason in the commit.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import costs
from forkmill.contexts.aio import Loop
from forkmill.contexts.base import Call
from forkmill.pipeline.run.driver import Driver
from forkmill.pipeline.run.operators import Operator

SCRIPT = Path(costs.__file__)

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/io"), reason="the kernel counts no reads and writes here"
)

# The most a task may cost in the user's process. Bounds are what the path needs, with room for
# what a busy machine does to batches: it makes them smaller.
#   path       reads  writes  sleeps  turns of a leader  kicks and parks
MOST = {
    "lone": (1.1, 1.1, 1.2, 1.1, 0.05),
    "futures": (0.3, 0.4, 0.4, 0.3, 0.3),
    "bulk": (0.01, 0.01, 0.01, 0.1, 0.01),  # a look at the rings is a turn, and no system call
    "single": (1.2, 1.3, 1.2, 1.2, 0.4),
}

# System calls a task, all processes together: a lone call takes the least that pipes can do, three
# here (write, wait, read) and two there (read, write).
MOST_CALLS = {"lone": 5.5, "futures": 3.0, "bulk": 0.1, "single": 5.5}

# The same of pipelines, an item: few a thousand.
MOST_CALLS_OF_WAYS = {"processes": 0.06, "processes, fm.to": 0.15, "threads": 0.1, "stream": 0.005}

# Instructions a task in the user's process, in units of what it takes to make, finish and read one
# stock Future: so it hardly matters how the interpreter was built.
INSTRUCTIONS = {"lone": 0.27, "futures": 0.70, "bulk": 0.14, "single": 1.45}
TOLERANCE = 1.35


def run_costs(*arguments: object, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [*under, sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
    return ran


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = json.loads(run_costs("counters").stdout)
    return result


@pytest.mark.parametrize("path", MOST)
def test_reads_writes_and_sleeps_a_task(counted: dict[str, dict[str, float]], path: str) -> None:
    cost, (reads, writes, sleeps, turns, kicks) = counted[path], MOST[path]
    assert cost["reads"] <= reads
    assert cost["writes"] <= writes
    assert cost["sleeps"] <= sleeps
    assert cost["lead_turns"] <= turns
    assert cost["kicks"] + cost["parks"] <= kicks


def test_submits_to_busy_workers_are_written_together(
    counted: dict[str, dict[str, float]],
) -> None:
    cost = counted["futures"]
    assert cost["frames_sent"] >= 1
    assert cost["writes"] < cost["frames_sent"] / 2


# ---------------------------------------------------------------------- system calls


def strace_calls(table: Path, *arguments: object) -> int:
    run_costs(*arguments, under=("strace", "-f", "-c", "-o", str(table)))
    calls = 0
    for line in table.read_text().splitlines():
        columns = line.split()
        if len(columns) >= 5 and columns[3].isdigit() and columns[-1] != "total":
            calls += int(columns[3])
    return calls


@pytest.fixture(scope="module")
def strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run(["strace", "-f", "-c", "-o", os.devnull, "true"], capture_output=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode().strip()[:100]}")


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("path", MOST_CALLS)
def test_system_calls_a_task(path: str, tmp_path: Path) -> None:
    # Of the bulk call so many that its chunks have grown: a tracer slows their tuning down.
    few, many = (2100, 42_100) if path == "bulk" else (100, 2100)
    more = strace_calls(tmp_path / "many", path, many, "fork")
    more -= strace_calls(tmp_path / "few", path, few, "fork")
    assert more / (many - few) <= MOST_CALLS[path]


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(
    "way",
    [way if way == "processes" else pytest.param(way, marks=pytest.mark.slow)
     for way in MOST_CALLS_OF_WAYS],
)  # fmt: skip
def test_system_calls_an_item_of_a_pipeline(way: str, tmp_path: Path) -> None:
    few, many = 2000, 42_000
    more = strace_calls(tmp_path / "many", way, many) - strace_calls(tmp_path / "few", way, few)
    assert more / (many - few) <= MOST_CALLS_OF_WAYS[way]


# ---------------------------------------------------------------------- instructions


def instructions(folder: Path, *arguments: object) -> int:
    """Of the user's process; zygote and workers are exec'd, and run as always."""
    out = f"--callgrind-out-file={folder}/out.%p"
    ran = run_costs(*arguments, under=("valgrind", "--tool=callgrind", out))
    found = re.search(r"Collected : (\d+)", ran.stderr)
    assert found, ran.stderr
    return int(found[1])


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Instructions of a stock future."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    folder = tmp_path_factory.mktemp("callgrind")
    few, many = 100, 2100
    more = instructions(folder, "stock", many) - instructions(folder, "stock", few)
    return more / (many - few)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", INSTRUCTIONS)
def test_instructions_a_task(unit: float, path: str, tmp_path: Path) -> None:
    few, many = 100, 2100
    more = instructions(tmp_path, path, many, "zygote") - instructions(
        tmp_path, path, few, "zygote"
    )
    assert more / (many - few) / unit <= INSTRUCTIONS[path] * TOLERANCE


# ---------------------------------------------------------------------- pipelines
#
# What the ways of running a chain take beside the calls of its functions: turns of the driver,
# loops that are made, handlers that are set. Each costs some microseconds: few a thousand items.


ITEMS = 20_000


@pytest.mark.parametrize("way", costs.WAYS)
def test_a_chain_takes_few_turns_of_the_driver(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(Driver, "_round")
    count(Operator, "special")
    count(asyncio, "new_event_loop")
    count(signal, "signal")
    count(Call, "start")
    count(Operator, "route")
    count(Operator, "load")
    count(Loop, "wake")
    costs.WAYS[way](ITEMS)
    # What two loops hand over at a time depends on how the machine switches between them.
    assert 0 < counted["_round"] <= ITEMS / (10 if way == "loops" else 50)
    assert counted["special"] == 0
    assert counted["route"] == 0
    assert counted["load"] <= ITEMS / 20
    assert counted["wake"] <= ITEMS / 20
    assert counted["new_event_loop"] <= (2 if way == "loops" else 1)
    assert counted["signal"] <= ITEMS / 50
    assert counted["start"] <= ITEMS / 20

"""Does the parent's memory stay flat while a pipeline runs over a generator without end in sight?

From what is resident after the first items to the most that is seen until the last, in a fresh
interpreter each: all inline, and through workers. FM_BENCH_ITEMS says how many items (10**7).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import forkmill as fm

from . import work
from .harness import LESS, Bench, Case, Sample, Skip, Target, WrongResult, check
from .memory import _LEAST_RATE, _rss
from .peers import OURS

TARGETS = (Target("parent memory over generated items, pipeline", "growth", 10.0, at_most=True),)
_LOOKS = 100


def run(bench: Bench) -> None:
    """Ask."""
    if not os.path.exists("/proc/self/statm"):
        raise Skip("this platform has no /proc")
    count = bench.size(int(os.environ.get("FM_BENCH_ITEMS", 10**7)), 20_000)
    samples: dict[str, Sample] = {
        OURS: partial(_growth, f"ipc_fork:{bench.workers}", count),
        "forkmill, all inline": partial(_growth, "inline", count),
    }
    title = f"growth over a generator of {count:,} items"
    limit = max(60.0, count / _LEAST_RATE)
    bench.measure(Case("growth", title, "MB", LESS, samples, most_rounds=2, limit=limit))


def _growth(context: str, count: int) -> float:
    command = [sys.executable, "-m", __name__, context, str(count)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if ran.returncode:
        raise WrongResult(f"the run over {count} items failed: {ran.stderr.strip()[-500:]}")
    return float(ran.stdout)


def _main(context: str, number: str) -> None:
    count = int(number)
    every = max(1, count // _LOOKS)
    seen: list[int] = []
    got = [0, 0]

    def numbers() -> Iterator[int]:
        yield from range(count)

    def add(item: int) -> None:
        got[0] += 1
        got[1] += item
        if got[0] % every == 0:
            seen.append(_rss())

    line = fm.Pipeline().source(numbers).map(work.increment, context=context)
    line.map(work.increment).sink(add).run()
    check(got, [count, count * (count + 3) // 2])
    print((max(seen) - seen[0]) / 1e6)


if __name__ == "__main__":
    _main(*sys.argv[1:])

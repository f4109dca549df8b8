"""Does the parent's memory stay flat while a pipeline runs over a generator without end in sight?

From what is resident after the first items to the most that is seen until the last, in a fresh
interpreter each: all inline, and through workers. FM_BENCH_ITEMS says how many items (10**7). Then
a million items that all fail, of which a thousand failures are kept.
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

TARGETS = (
    Target("parent memory over generated items, pipeline", "growth", 10.0, at_most=True),
    Target("parent memory over 1,000,000 failures", "failures", 10.0, at_most=True),
)
_LOOKS = 100
_KEPT = 1000


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
    bench.plan(2)
    bench.measure(Case("growth", title, "MB", LESS, samples, most_rounds=2, limit=limit))
    count = bench.size(10**6, 5000)
    fails: dict[str, Sample] = {OURS: partial(_growth, "failing", count)}
    title = f"growth over {count:,} failures, 1,000 kept"
    bench.measure(Case("failures", title, "MB", LESS, fails, most_rounds=2, limit=limit))


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

    def fail(item: int) -> None:
        add(item)
        raise ValueError(item)

    if context == "failing":
        result = fm.Pipeline().source(numbers).map(fail, on_error="skip").run(keep_failures=_KEPT)
        failed = sum(stage.failed for stage in result.stats.stages.values())
        check([len(result.failures), failed, got[0]], [min(_KEPT, count), count, count])
    else:
        line = fm.Pipeline().source(numbers).map(work.increment, context=context)
        line.map(work.increment).sink(add).run()
        check(got, [count, count * (count + 3) // 2])
    print((max(seen) - seen[0]) / 1e6)


if __name__ == "__main__":
    _main(*sys.argv[1:])

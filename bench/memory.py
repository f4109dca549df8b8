"""Does the parent's memory stay flat while `map` runs over a generator without end in sight?

From what is resident before the call to the most that is seen during it, in a fresh interpreter
each. Those who pull the whole input first, or keep the results, grow with it: they get fewer items.
FM_BENCH_ITEMS says how many ours gets (10**7).
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from . import work
from .harness import LESS, Bench, Case, Sample, Skip, Target, WrongResult, check
from .peers import BY_NAME, OURS, StdlibExecutor, StdlibPool

TARGETS = (Target("parent memory over generated items", "growth", 10.0, at_most=True),)
_LOOKS = 100
_LEAST_RATE = 100_000  # items/s: slower than that is hung


def run(bench: Bench) -> None:
    """Ask."""
    if not os.path.exists("/proc/self/statm"):
        raise Skip("this platform has no /proc")
    many = bench.size(int(os.environ.get("FM_BENCH_ITEMS", 10**7)), 20_000)
    some = bench.size(10**5, 2000)
    bench.note(f"memory: {OURS} got {many:,} items, the others {some:,}")
    samples: dict[str, Sample] = {}
    for peer in bench.peers:
        if peer.name in _LAZY:
            count = many if peer.name == OURS else some
            samples[peer.name] = partial(_growth, peer.name, bench.workers, count)
    title = f"growth over a generator of {many:,} items ({some:,} for the others)"
    limit = max(60.0, many / _LEAST_RATE)
    bench.measure(Case("growth", title, "MB", LESS, samples, most_rounds=2, limit=limit))


# ------------------------------------------------------- the other side: a fresh interpreter


def _ours(pool: Any, items: Iterator[int]) -> Iterator[int]:
    return pool.pool.map(work.increment, items)


def _imap(pool: Any, items: Iterator[int]) -> Iterator[int]:
    return pool.pool.imap(work.increment, items)


# The others have no call that takes an input without end, or fail in it.
_LAZY = {
    OURS: _ours,
    StdlibPool.name: _imap,
    StdlibExecutor.name: _ours,
}


def _growth(name: str, workers: int, count: int) -> float:
    command = [sys.executable, "-m", __name__, name, str(workers), str(count)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if ran.returncode:
        raise WrongResult(f"the run over {count} items failed: {ran.stderr.strip()[-500:]}")
    return float(ran.stdout)


def _rss() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * mmap.PAGESIZE


def _main(name: str, workers: str, count: str) -> None:
    total = int(count)
    every = max(1, total // _LOOKS)
    with BY_NAME[name](int(workers)) as pool:
        check(pool.calls(work.increment, range(16)), list(range(1, 17)))
        seen = [_rss()]
        for expected, result in enumerate(_LAZY[name](pool, iter(range(total))), start=1):
            if result != expected:
                raise WrongResult(f"expected {expected}, got {result}")
            if expected % every == 0:
                seen.append(_rss())
        check(expected, total)
    print((max(seen) - seen[0]) / 1e6)


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""What does a value cost that many tasks read: fm.share, 80 MB, 800 tasks?

A map over 800 items whose function is bound to the shared value, the first time (each worker maps
it) and again, beside a map of the same function with nothing to share, and with the two copies that
a caller and a worker would make at least.
"""

from __future__ import annotations

from functools import partial

import forkmill as fm

from .harness import LESS, Bench, Case, Sample, Target, check, elapsed
from .peers import OURS

BARE = "a bare map"
COPIES = "a bare map and two copies"
_WHAT = "80 MB by fm.share, 800 tasks"
TARGETS = (
    Target(_WHAT, "again", 1.3, BARE, at_most=True, label="second map"),
    Target(_WHAT, "first", 1.0, COPIES, at_most=True, label="first map, fm.share included"),
)


def look(x: int, table: bytes) -> int:
    """One byte of it."""
    return table[x]


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(len(TARGETS))
    table = bytes(bench.size(80_000_000, 100_000))
    little, items = bytes(1000), range(bench.size(800, 8))

    with fm.ProcessPool(bench.workers) as pool:

        def through(value: object) -> None:
            check(sum(pool.map(partial(look, table=value), items)), 0)

        def first() -> float:
            seconds, shared = elapsed(lambda: fm.share(table))
            with shared:
                return seconds + elapsed(lambda: through(shared))[0]

        def copies() -> float:
            return elapsed(lambda: (bytearray(table), bytearray(table), through(little)))[0]

        with fm.share(table) as kept:
            through(kept)
            again: dict[str, Sample] = {
                OURS: lambda: elapsed(lambda: through(kept))[0],
                BARE: lambda: elapsed(lambda: through(little))[0],
            }
            bench.measure(Case("again", f"{_WHAT}, again", "s", LESS, again))
        new: dict[str, Sample] = {OURS: first, COPIES: copies}
        bench.measure(Case("first", f"{_WHAT}, a new value", "s", LESS, new))

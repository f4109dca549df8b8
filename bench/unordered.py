"""How many results a second come one by one, in whatever order?

`map(f, items, chunksize=1, ordered=False)` beside `imap_unordered` and what others call it: each
item is a message of its own, as it must be where each result is wanted at once. Who takes long gets
a tenth of the items; the unit is items a second.
"""

from __future__ import annotations

from . import work
from .harness import MORE, Bench, Case, Target, check, elapsed
from .peers import Peer, StdlibPool

TARGETS = (Target("same, `chunksize=1, ordered=False`", "single", 20.0, StdlibPool.name),)


def run(bench: Bench) -> None:
    """Ask."""
    full = bench.size(20_000, 100)

    def take(pool: Peer) -> float:
        count = full // (10 if pool.per_item > 1 else 1)
        seconds, results = elapsed(lambda: list(pool.unordered(work.increment, range(count))))
        check(sorted(results), list(range(1, count + 1)))
        return count / seconds

    title = f"{full:,} integers, one message each, unordered"
    bench.measure(Case("single", title, "items/s", MORE, bench.pools(take, bulk=True)))

"""How many results a second come one by one, in whatever order, and in the items' order?

`map(f, items, chunksize=1)`, with `ordered=False` and without, beside `imap_unordered`, `imap` and
what others call them: each item is a message of its own, as it must be where each result is wanted
at once. Who takes long gets a tenth of the items; the unit is items a second.
"""

from __future__ import annotations

from functools import partial

from . import work
from .harness import MORE, Bench, Case, Target, check, elapsed
from .peers import Peer, StdlibPool

TARGETS = (Target("same, `chunksize=1, ordered=False`", "single", 80.0, StdlibPool.name),)


def run(bench: Bench) -> None:
    """Ask."""
    full = bench.size(20_000, 100)
    bench.plan(2)

    def take(pool: Peer, way: str) -> float:
        count = full // (10 if pool.per_item > 1 else 1)
        seconds, results = elapsed(lambda: list(getattr(pool, way)(work.increment, range(count))))
        check(results if way == "ordered" else sorted(results), list(range(1, count + 1)))
        return count / seconds

    for key, way in (("single", "unordered"), ("single-ordered", "ordered")):
        title = f"{full:,} integers, one message each, {way}"
        samples = bench.pools(partial(take, way=way), way=way)
        bench.measure(Case(key, title, "items/s", MORE, samples))

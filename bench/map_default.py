"""How many trivial items a second does `map` carry, with all defaults?

`map(f, range(10**6))` and nothing else said. Who sends items one by one unless told otherwise gets
fewer of them; the unit is items a second.
"""

from __future__ import annotations

from . import work
from .harness import MORE, Bench, Case, Target, check, elapsed
from .peers import Peer, StdlibPool

TARGETS = (
    Target("`map(f, range(10**6))`, all defaults, trivial f", "million", 2.3, StdlibPool.name),
)


def run(bench: Bench) -> None:
    """Ask."""
    full = bench.size(10**6, 2000)

    def take(pool: Peer) -> float:
        count = full // pool.per_item
        seconds, results = elapsed(lambda: pool.map(work.increment, range(count)))
        check(results, list(range(1, count + 1)))
        return count / seconds

    title = f"map over {full:,} integers, defaults"
    bench.measure(Case("million", title, "items/s", MORE, bench.pools(take, way="map")))

"""Do short tasks wait behind long ones?

Twenty tasks that take 0 and 100 ms by turns, on a warm pool whose tasks were all trivial until
then: who hands out work ahead, or in fixed chunks, has some of it in the wrong place. The ideal
on two workers is 0.5 s.
"""

from __future__ import annotations

from functools import partial

from . import work
from .harness import LESS, Bench, Case, Target, check, elapsed
from .peers import Peer

_WHAT = "20 tasks of 0 and 100 ms by turns, seconds"
TARGETS = (
    Target(_WHAT, "map", 0.6, at_most=True, label="map"),
    Target(_WHAT, "submit", 0.6, at_most=True, label="submit"),
)


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(2)
    naps = [0.0, bench.size(100, 10) / 1000] * 10

    def take(pool: Peer, bulk: bool) -> float:
        way = pool.map if bulk else pool.calls
        way(work.nap, [0.0] * bench.size(500, 10))
        seconds, results = elapsed(lambda: way(work.nap, naps))
        check(results, naps)
        return seconds

    for key, bulk in (("map", True), ("submit", False)):
        samples = bench.pools(partial(take, bulk=bulk), way=key if bulk else "calls")
        title = f"20 tasks of 0 and {naps[1] * 1000:g} ms by turns, {key}"
        bench.measure(Case(key, title, "s", LESS, samples, most_rounds=5))

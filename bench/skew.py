"""Do short tasks wait behind long ones?

Twenty tasks that take 0 and 100 ms by turns, on a warm pool whose tasks were all trivial until
then: whoever hands out work ahead, or in fixed chunks, has some of it in the wrong place. The ideal
on two workers is 0.5 s.
"""

from __future__ import annotations

from collections.abc import Callable

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
    naps = [0.0, bench.size(100, 10) / 1000] * 10

    def with_map(pool: Peer) -> list[float]:
        return pool.map(work.nap, naps)

    def with_submit(pool: Peer) -> list[float]:
        return pool.calls(work.nap, naps)

    ways: tuple[tuple[str, Callable[[Peer], list[float]]], ...] = (
        ("map", with_map),
        ("submit", with_submit),
    )
    for key, way in ways:

        def take(pool: Peer, way: Callable[[Peer], list[float]] = way) -> float:
            pool.calls(work.nap, [0.0] * bench.size(500, 10))
            seconds, results = elapsed(lambda: way(pool))
            check(results, naps)
            return seconds

        title = f"20 tasks of 0 and {naps[1] * 1000:g} ms by turns, {key}"
        bench.measure(Case(key, title, "s", LESS, bench.pools(take), most_rounds=5))

"""How many small dicts a second does `map` carry, there and back, with all defaults?

Once dicts that hold other containers, which everybody has to pickle; once flat ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import work
from .harness import MORE, Bench, Case, Target, check, elapsed
from .peers import Peer, StdlibPool

TARGETS = (Target("same, items that need pickle (small dicts)", "nested", 1.5, StdlibPool.name),)


def run(bench: Bench) -> None:
    """Ask."""
    full = bench.size(100_000, 1000)
    bench.plan(2)
    kinds: tuple[tuple[str, Callable[[int], dict[str, Any]]], ...] = (
        ("nested", work.nested_item),
        ("flat", work.flat_item),
    )
    for key, make in kinds:
        items = [make(i) for i in range(full)]
        expected = [work.mark_item(make(i)) for i in range(full)]

        def take(pool: Peer, items: list[Any] = items, expected: list[Any] = expected) -> float:
            count = full // pool.per_item
            some = items[:count]
            seconds, results = elapsed(lambda: pool.map(work.mark_item, some))
            check(results, expected[:count])
            return count / seconds

        title = f"map over {full:,} small {key} dicts, defaults"
        bench.measure(Case(key, title, "items/s", MORE, bench.pools(take, way="map")))

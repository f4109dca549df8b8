"""How much of its own CPU time does the user's process spend on a task?

All its threads together: what the pool takes from the program that uses it, and what bounds how
many workers it can feed. One call at a time, many at once taken as they complete, the bulk call,
and one message an item.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

from . import work
from .harness import LESS, Bench, Case, check
from .peers import Peer

TARGETS = ()


def run(bench: Bench) -> None:
    """Ask."""
    ways: tuple[tuple[str, str, int, Callable[[Peer, Any], Any]], ...] = (
        ("lone", "one call at a time", bench.size(2000, 10), _one_by_one),
        ("futures", "all at once, as they complete", bench.size(10_000, 20), _completed),
        ("map", "map with defaults", bench.size(200_000, 20), _map),
        ("unordered", "one message an item, unordered", bench.size(20_000, 20), _unordered),
    )
    bench.plan(len(ways))
    for key, what, full, way in ways:

        def take(
            pool: Peer,
            key: str = key,
            full: int = full,
            way: Callable[[Peer, Any], Any] = way,
        ) -> float:
            count = max(1, full // (pool.per_call if key == "lone" else pool.per_item))
            before = _cpu_s()
            results = way(pool, range(count))
            spent = _cpu_s() - before
            check(sorted(results), list(range(1, count + 1)))
            return spent / count * 1e6

        title = f"{what}: the parent's CPU time a task"
        samples = bench.pools(take, way=key if key in ("map", "unordered") else "calls")
        bench.measure(Case(key, title, "us", LESS, samples, most_rounds=5))


def _one_by_one(pool: Peer, items: range) -> list[int]:
    return [pool.call(work.increment, i) for i in items]


def _completed(pool: Peer, items: range) -> list[int]:
    return pool.completed(work.increment, items)


def _map(pool: Peer, items: range) -> list[int]:
    return pool.map(work.increment, items)


def _unordered(pool: Peer, items: range) -> list[int]:
    return list(pool.unordered(work.increment, items))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

"""What do more workers bring, from 1 to 32 of them?

`map` with all defaults over trivial items, where the parent is what limits, and over tasks of
100 us of CPU time, where the CPUs are. With more workers than CPUs nothing can get faster: the
question is then whether it gets slower.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import work
from .harness import MORE, Bench, Case, Target, check, elapsed
from .peers import Forkmill, Function, Peer, StdlibExecutor, StdlibPool

TARGETS = tuple(
    Target(
        "trivial map with more workers than CPUs",
        f"trivial-{n}",
        1.0,
        StdlibPool.name,
        label=str(n),
    )
    for n in (16, 32)
)
WORKERS = (1, 2, 4, 8, 16, 32)
QUICK_WORKERS = (1, 4)
TASK_S = 100e-6


def run(bench: Bench) -> None:
    """Ask."""
    peers = [p for p in bench.peers if p in (Forkmill, StdlibPool, StdlibExecutor)]
    full = bench.size(300_000, 500)
    kinds: tuple[tuple[str, str, Function, list[Any], list[Any]], ...] = (
        ("trivial", "trivial items", work.increment, list(range(full)), list(range(1, full + 1))),
        ("100us", "tasks of 100 us", work.spin, *[[TASK_S] * bench.size(4000, 20)] * 2),
    )
    widths = QUICK_WORKERS if bench.quick else WORKERS
    bench.plan(len(kinds) * len(widths))
    for key, what, fn, items, expected in kinds:
        for workers in widths:
            take = partial(_rate, fn, items, expected)
            samples = {
                peer.name: bench.with_pool(peer, take, way="map", workers=workers) for peer in peers
            }
            title = f"{len(items):,} {what}, map with defaults, {workers} workers"
            series = f"{what}, by workers"
            bench.measure(
                Case(
                    f"{key}-{workers}",
                    title,
                    "items/s",
                    MORE,
                    samples,
                    most_rounds=3,
                    series=series,
                    at=workers,
                )
            )


def _rate(fn: Function, items: list[Any], expected: list[Any], pool: Peer) -> float:
    count = len(items) // (pool.per_item if fn is work.increment else 1)
    some = items[:count]
    seconds, results = elapsed(lambda: pool.map(fn, some))
    check(results, expected[:count])
    return count / seconds

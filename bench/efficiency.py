"""How much of the workers' time goes into the tasks, at task lengths from 1 us to 100 ms?

Tasks that use the CPU for a given time, in `map` with all defaults; 1 is when all workers together
take no longer than the tasks' CPU time divided among them. With as many workers as CPUs nobody can
reach 1: the parent needs a CPU too.
"""

from __future__ import annotations

import os

from . import work
from .harness import MORE, Bench, Case, Target, check, elapsed
from .peers import Peer

TARGETS = (Target("100 us tasks, efficiency against ideal", "100us", 0.96),)
LENGTHS_US = (1, 10, 100, 1000, 10_000, 100_000)
_SAMPLE_S = 0.4  # CPU seconds of tasks a worker and sample


def run(bench: Bench) -> None:
    """Ask."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    able = min(bench.workers, cpus or 1)
    if able < bench.workers:
        bench.note(f"{bench.workers} workers on {able} CPUs: the ideal counts {able}")
    bench.plan(len(LENGTHS_US))
    for length_us in LENGTHS_US:
        seconds = length_us * 1e-6
        count = bench.size(int(_SAMPLE_S * able / seconds), 8)

        def take(
            pool: Peer, seconds: float = seconds, count: int = count, us: int = length_us
        ) -> float:
            # Who sends short tasks one by one would take minutes.
            some = count // pool.per_item if us < 100 and not bench.quick else count
            tasks = [seconds] * some
            took, results = elapsed(lambda: pool.map(work.spin, tasks))
            check(results, tasks)
            return seconds * some / able / took

        title = f"{count:,} tasks of {length_us:,} us, map with defaults"
        case = Case(
            f"{length_us}us", title, "of ideal", MORE, bench.pools(take, way="map"),
            most_rounds=5, series="efficiency, by task length in us", at=length_us,
        )  # fmt: skip
        bench.measure(case)

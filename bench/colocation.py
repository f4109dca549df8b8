"""What does it save that neighbours run in one place, against a queue before each?

The same three trivial stages and a sink: on one pool, where an item does its way through all of
them in one call; on two pools by turns, so that it comes back to the parent after each; and inline
in the parent, colocated with the source or behind a thread's queue. Two workers in all.
"""

from __future__ import annotations

import itertools

import forkmill as fm

from . import work
from .harness import MORE, Bench, Case, Sample, check, elapsed
from .peers import OURS

TARGETS = ()
STAGES = 3
_WIDE = 20_000  # items that may wait before a stage
_numbers = itertools.count(1)


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(2)
    count, few = bench.size(1_000_000, 2000), bench.size(30_000, 500)
    half = max(1, bench.workers // 2)
    workers = {OURS: _pools(count, bench.workers), "queued, two pools": _pools(count, half, half)}
    inline = {OURS: _line(count, ["inline"]), "queued, threads": _line(few, ["thread:1"])}
    title = f"{STAGES} trivial stages in {bench.workers} workers, {count:,} integers"
    bench.measure(Case("workers", title, "items/s", MORE, workers))
    title = f"{STAGES} trivial stages in the parent, {count:,} integers ({few:,} queued)"
    bench.measure(Case("inline", title, "items/s", MORE, inline))


def _pools(count: int, *sizes: int) -> Sample:
    """The stages on pools of these sizes, by turns."""

    def sample() -> float:
        names = [f"colocation-{next(_numbers)}" for _ in sizes]
        pools = [fm.named_pool(name, fm.ipc_fork(n)) for name, n in zip(names, sizes, strict=True)]
        try:
            return _line(count, names)()
        finally:
            for pool in pools:
                pool.shutdown()

    return sample


def _line(count: int, contexts: list[str]) -> Sample:
    """The stages in contexts, by turns."""

    def sample() -> float:
        total = 0

        def add(item: int) -> None:
            nonlocal total
            total += item

        line = fm.Pipeline().source(range(count))
        for _, context in zip(range(STAGES), itertools.cycle(contexts), strict=False):
            line = line.map(work.increment, context=context, queue_size=_WIDE)
        seconds, _ = elapsed(line.sink(add, queue_size=_WIDE).run)
        check(total, count * (count - 1) // 2 + STAGES * count)
        return count / seconds

    return sample

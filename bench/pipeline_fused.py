"""What does a stage cost that runs where the one before it runs?

A source and n trivial inline stages with statistics on, beside the same stages with a queue before
each (a thread's context, as colocation would not have it), pyper's pipeline and the plain loop.
"""

from __future__ import annotations

from collections.abc import Callable

import forkmill as fm

from . import work
from .harness import LESS, Bench, Case, Sample, Target, check, elapsed
from .peers import OURS

PLAIN_LOOP = "plain loop"
QUEUED = "a queue before each"
STAGES = 6
TARGETS = (Target("fused inline stages, statistics on", "stage", 0.10, at_most=True),)


class Last:
    """A sink that keeps the last item and how many there were."""

    def __init__(self) -> None:
        self.value, self.count = None, 0

    def __call__(self, item: int) -> None:
        self.value = item
        self.count += 1


def run(bench: Bench) -> None:
    """Ask."""
    count, few = bench.size(300_000, 2000), bench.size(20_000, 500)

    def line(number: int, **options: str) -> Callable[[], None]:
        last = Last()
        stages = fm.Pipeline().source(range(number))
        for _ in range(STAGES - 1):
            stages = stages.map(work.increment, **options)
        stages = stages.sink(last)

        def go() -> None:
            stages.run()
            check((last.value, last.count), (number + STAGES - 2, number))
            last.count = 0

        return go

    def loop() -> None:
        last = Last()
        f = work.increment
        for item in range(count):
            last(f(f(f(f(f(item))))))
        check((last.value, last.count), (count + STAGES - 2, count))

    def per_stage(function: Callable[[], None], number: int) -> Sample:
        return lambda: elapsed(function)[0] * 1e6 / number / STAGES

    samples = {
        OURS: per_stage(line(count), count),
        QUEUED: per_stage(line(few, context="thread:1"), few),
        PLAIN_LOOP: per_stage(loop, count),
    }
    peer = _pyper(count)
    if peer is not None:
        samples["pyper"] = per_stage(peer, count)
    title = f"{count:,} integers through {STAGES} stages, time an item a stage"
    bench.measure(Case("stage", title, "us", LESS, samples))


def _pyper(count: int) -> Callable[[], None] | None:
    try:
        from pyper import task
    except ImportError:
        return None
    step = task(work.increment)
    stages = task(range, branch=True)
    for _ in range(STAGES - 1):
        stages = stages | step

    def go() -> None:
        last = Last()
        for item in stages(count):
            last(item)
        check((last.value, last.count), (count + STAGES - 2, count))

    return go

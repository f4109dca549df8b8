"""How many items a second go through workers and come back: producer -> ipc_fork -> sink?

The whole pipeline, its workers' birth and end included; beside pypeln, where it is installed, and
chains of generators over the standard library's pool.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator

import forkmill as fm

from . import work
from .harness import MORE, Bench, Case, Sample, Target, check, elapsed
from .peers import OURS

IMAP = "multiprocessing.Pool.imap"
TARGETS = (Target("pipeline producer -> ipc_fork -> sink, trivial", "items", 3e6),)
_WIDE = 50_000  # items that may wait: what a pipeline for throughput would ask for


def run(bench: Bench) -> None:
    """Ask."""
    count, few = bench.size(2_000_000, 2000), bench.size(5000, 500)
    context = f"ipc_fork:{bench.workers}"

    def total(stages: Callable[[Callable[[int], None]], fm.Pipeline], number: int) -> Sample:
        def sample() -> float:
            seen = [0, 0]

            def add(item: int) -> None:
                seen[0] += 1
                seen[1] += item

            seconds, _ = elapsed(stages(add).run)
            check(seen, [number, number * (number + 1) // 2])
            return number / seconds

        return sample

    def source() -> Iterator[int]:
        yield from range(count)

    def ours(add: Callable[[int], None]) -> fm.Pipeline:
        line = fm.Pipeline().source(source)
        return line.map(work.increment, context=context).sink(add)

    def wide(add: Callable[[int], None]) -> fm.Pipeline:
        line = fm.Pipeline().source(source)
        line = line.map(work.increment, context=context, queue_size=_WIDE)
        return line.sink(add, queue_size=_WIDE)

    def imap() -> float:
        with multiprocessing.get_context("fork").Pool(bench.workers) as pool:
            seconds, result = elapsed(lambda: sum(pool.imap(work.increment, range(few))))
        check(result, few * (few + 1) // 2)
        return few / seconds

    samples: dict[str, Sample] = {
        OURS: total(wide, count),
        "forkmill, default queues": total(ours, count),
        IMAP: imap,
    }
    peer = _pypeln(few, bench.workers)
    if peer is not None:
        samples["pypeln"] = peer
    title = f"{count:,} integers ({few:,} for the others) through {bench.workers} workers"
    bench.measure(Case("items", title, "items/s", MORE, samples, most_rounds=5))


def _pypeln(count: int, workers: int) -> Sample | None:
    try:
        import pypeln
    except ImportError:
        return None

    def sample() -> float:
        stage = pypeln.process.map(work.increment, range(count), workers=workers, maxsize=1000)
        seconds, result = elapsed(lambda: sum(stage))
        check(result, count * (count + 1) // 2)
        return count / seconds

    return sample

"""How many items a second go through workers and come back: producer -> ipc_fork -> sink?

The whole pipeline, its workers' birth and end included; beside pypeln and pyper, where they are
installed, the standard library's pool, and the loop that does the same without workers.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable

import forkmill as fm

from . import work
from .harness import MORE, Bench, Case, Sample, Target, check, elapsed
from .peers import OURS

IMAP = "multiprocessing.Pool.imap"
TARGETS = (Target("pipeline producer -> ipc_fork -> sink, trivial, default queue", "items", 3e6),)
_WIDE = 50_000  # items that may wait: what a pipeline for throughput would ask for
_CHUNK = 1000  # items of a chunk for the pool that is told to make chunks


def run(bench: Bench) -> None:
    """Ask."""
    count, few = bench.size(4_000_000, 2000), bench.size(5000, 500)
    some = bench.size(500_000, 1000)
    context = f"ipc_fork:{bench.workers}"

    def ours(queue_size: int | None) -> Sample:
        wide = {} if queue_size is None else {"queue_size": queue_size}

        def sample() -> float:
            number = total = 0

            def add(item: int) -> None:
                nonlocal number, total
                number += 1
                total += item

            line = fm.Pipeline().source(range(count))
            line = line.map(work.increment, context=context, **wide).sink(add, **wide)
            seconds, _ = elapsed(line.run)
            check((number, total), (count, count * (count + 1) // 2))
            return count / seconds

        return sample

    def imap(number: int, chunksize: int) -> Sample:
        def chain() -> int:
            with multiprocessing.get_context("fork").Pool(bench.workers) as pool:
                return sum(pool.imap(work.increment, range(number), chunksize))

        return _summed(chain, number)

    samples: dict[str, Sample] = {
        OURS: ours(None),
        f"forkmill, queues of {_WIDE:,}": ours(_WIDE),
        IMAP: imap(few, 1),
        f"{IMAP}, chunksize={_CHUNK}": imap(some, _CHUNK),
        "plain loop, no workers": _summed(lambda: sum(map(work.increment, range(count))), count),
    }
    for name, peer in {"pypeln": _pypeln, "pyper": _pyper}.items():
        sample = peer(few, bench.workers)
        if sample is not None:
            samples[name] = sample
    title = f"{count:,} integers through {bench.workers} workers"
    title += f" ({few:,} for pools and pipelines that send each alone, {some:,} for chunks)"
    bench.measure(Case("items", title, "items/s", MORE, samples, most_rounds=5))


def _summed(chain: Callable[[], int], number: int) -> Sample:
    """A chain whose last step adds everything up."""

    def sample() -> float:
        seconds, result = elapsed(chain)
        check(result, number * (number + 1) // 2)
        return number / seconds

    return sample


def _pypeln(count: int, workers: int) -> Sample | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it is built on still uses pkg_resources
            import pypeln
    except ImportError:
        return None
    stage = pypeln.process.map
    return _summed(
        lambda: sum(stage(work.increment, range(count), workers=workers, maxsize=1000)), count
    )


def _pyper(count: int, workers: int) -> Sample | None:
    try:
        from pyper import task
    except ImportError:
        return None
    line = task(range, branch=True) | task(work.increment, workers=workers, multiprocess=True)
    return _summed(lambda: sum(line(count)), count)

"""What do tasks cost when workers are replaced after a few of them?

Workers that live for ten tasks, as `max_tasks_per_child` and its namesakes say, beside who has
such a limit (loky and joblib have none). That workers were replaced is checked by their pids. The
standard library's executor cannot do it by fork, so it gets its fork server; ours without the limit
tells what a replacement adds.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable
from concurrent import futures
from typing import Any

from . import work
from .harness import MORE, Bench, Case, Sample, WrongResult, check, elapsed
from .peers import (
    START_METHOD,
    Billiard,
    Forkmill,
    Function,
    Mpire,
    Pebble,
    Peer,
    StdlibExecutor,
    StdlibPool,
)

TARGETS = ()
LIFE = 10  # tasks of a worker


class RecyclingForkmill(Forkmill):
    def __init__(self, workers: int) -> None:
        import forkmill

        self.pool = forkmill.ProcessPool(workers, max_tasks_per_child=LIFE)


class RecyclingPool(StdlibPool):
    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context(START_METHOD)
        self.pool = context.Pool(workers, maxtasksperchild=LIFE)


class RecyclingExecutor(StdlibExecutor):
    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        self.pool = futures.ProcessPoolExecutor(
            workers, mp_context=context, max_tasks_per_child=LIFE
        )


class RecyclingBilliard(Billiard):
    def __init__(self, workers: int) -> None:
        import billiard

        self.pool = billiard.get_context(START_METHOD).Pool(workers, maxtasksperchild=LIFE)


class RecyclingMpire(Mpire):
    def calls(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        return self.pool.map(fn, self._single(items), chunk_size=1, worker_lifespan=LIFE)


class RecyclingPebble(Pebble):
    def __init__(self, workers: int) -> None:
        import pebble

        context = multiprocessing.get_context(START_METHOD)
        self.pool = pebble.ProcessPool(workers, max_tasks=LIFE, context=context)


RECYCLING: dict[type[Peer], type[Peer]] = {
    Forkmill: RecyclingForkmill,
    StdlibPool: RecyclingPool,
    StdlibExecutor: RecyclingExecutor,
    Billiard: RecyclingBilliard,
    Mpire: RecyclingMpire,
    Pebble: RecyclingPebble,
}


def run(bench: Bench) -> None:
    """Ask."""
    count = bench.size(200, 30)

    def take(pool: Peer, replaced: bool = True) -> float:
        seconds, results = elapsed(lambda: pool.calls(work.increment_where, range(count)))
        check([result for result, _ in results], list(range(1, count + 1)))
        workers = len({pid for _, pid in results})
        if replaced and workers < count // LIFE:
            raise WrongResult(f"{count} tasks on {workers} workers: they were not replaced")
        return count / seconds

    samples: dict[str, Sample] = {
        peer.name: bench.with_pool(RECYCLING[peer], take)
        for peer in bench.peers
        if peer in RECYCLING
    }
    samples["forkmill, no limit"] = bench.with_pool(Forkmill, lambda pool: take(pool, False))
    title = f"{count:,} trivial tasks, a new worker after each {LIFE}"
    # At times the executor waits for a worker that it has not replaced: not for a minute, please.
    bench.measure(Case("recycled", title, "tasks/s", MORE, samples, most_rounds=5, limit=10))

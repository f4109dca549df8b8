"""How long from submit to done while tasks come at a steady pace: p50, p99, p99.9?

Tasks of half a millisecond of CPU time, one each two milliseconds, whatever became of those before:
two workers are busy an eighth of the time. A task that comes late because the one before it did
counts from when it should have come. The ideal is 0.5 ms; what is above it is the pool's, and the
machine's: the last percentile is where the neighbours are seen.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, wait

from . import work
from .harness import LESS, Bench, Case, Sample, check
from .peers import ExecutorPeer, Peer

TARGETS = ()
TASK_S = 0.0005
EACH_S = 0.002
SHARES = (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))


def run(bench: Bench) -> None:
    """Ask."""
    count = bench.size(1000, 20)
    bench.plan(len(SHARES))
    peers = [peer for peer in bench.peers if issubclass(peer, ExecutorPeer)]
    # One run tells all percentiles: the first case makes the runs, the others look at them.
    runs: dict[str, list[list[float]]] = {peer.name: [] for peer in peers}

    def fresh(pool: Peer) -> float:
        latencies = sorted(_latencies(pool, count))
        runs[pool.name].append(latencies)
        return _share(latencies, SHARES[0][1])

    samples: dict[str, Sample] = {peer.name: bench.with_pool(peer, fresh) for peer in peers}
    made = bench.measure(_case(SHARES[0][0], samples, 5))
    for key, share in SHARES[1:]:
        again = {
            name: _again(made.values[name], [_share(run, share) for run in kept])
            for name, kept in runs.items()
        }
        bench.measure(_case(key, again, max(map(len, made.values.values()))))


def _case(key: str, samples: dict[str, Sample], rounds: int) -> Case:
    title = f"{key}: from submit to done, 0.5 ms tasks, one each 2 ms"
    return Case(key, title, "ms", LESS, samples, most_rounds=rounds)


def _again(rounds: list[float | None], figures: list[float]) -> Sample:
    """The figures of the runs, each in the round that made it."""
    told = iter(figures)
    looked = iter([None if value is None else next(told) for value in rounds])
    return lambda: next(looked, None)


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] * 1e3


def _latencies(pool: Peer, count: int) -> list[float]:
    assert isinstance(pool, ExecutorPeer)
    ends = [0.0] * count
    futures: list[Future[float]] = []
    start = time.perf_counter() + 0.01

    def note(i: int) -> None:
        ends[i] = time.perf_counter()

    for i in range(count):
        time.sleep(max(0.0, start + i * EACH_S - time.perf_counter()))
        future = pool.pool.submit(work.spin, TASK_S)
        future.add_done_callback(lambda _, i=i: note(i))
        futures.append(future)
    wait(futures)
    check([future.result() for future in futures], [TASK_S] * count)
    while not all(ends):  # a future is done a moment before its callbacks have run
        time.sleep(0.001)
    return [end - (start + i * EACH_S) for i, end in enumerate(ends)]

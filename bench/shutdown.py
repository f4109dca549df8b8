"""How long does it take to close a pool that was used?

Everything that was asked for is done; what is left is to have the workers end, and to wait for
them. With the workers asked for and with sixteen. joblib is not here: it keeps its workers.
"""

from __future__ import annotations

import time

from . import work
from .harness import LESS, Bench, Case, Sample, Target, check, elapsed, spread
from .peers import Joblib, Peer, StdlibExecutor, StdlibPool

TARGETS = tuple(
    Target("close a pool of 16", "close-16", 1.0, peer.name, at_most=True, label=peer.name)
    for peer in (StdlibPool, StdlibExecutor)
)
_REPEATS = 5  # a sample is the median of so many, or of as many as half a second has room for


def run(bench: Bench) -> None:
    """Ask."""
    peers = [peer for peer in bench.peers if peer is not Joblib]
    sizes = tuple(dict.fromkeys((bench.workers, bench.size(16, 3))))
    bench.plan(len(sizes))
    for workers in sizes:
        samples = {peer.name: _median(bench, peer, workers) for peer in peers}
        title = f"close a used pool of {workers} workers"
        bench.measure(Case(f"close-{workers}", title, "ms", LESS, samples, most_rounds=7))


def _median(bench: Bench, peer: type[Peer], workers: int) -> Sample:
    def sample() -> float:
        end = time.monotonic() + bench.size(1, 0) / 2
        figures = [_close(peer, workers)]
        while len(figures) < _REPEATS and time.monotonic() < end:
            figures.append(_close(peer, workers))
        return spread(figures)[1]

    return sample


def _close(peer: type[Peer], workers: int) -> float:
    pool = peer(workers)
    check(pool.calls(work.increment, range(4 * workers)), list(range(1, 4 * workers + 1)))
    return elapsed(pool.close)[0] * 1e3

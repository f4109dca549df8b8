"""How fast do arrays travel, beside a copy in memory?

Several arrays at once, each a task of its own: sent (a few numbers come back), sent and given back
unchanged, and freshly made in the worker. Bytes are counted once, also where they go both ways; the
C reference copies as many between two warm buffers. All peers at 8 MB, the standard library's at
other sizes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from . import work
from .harness import MORE, Bench, Case, Sample, Skip, Target, WrongResult, check, elapsed
from .peers import Forkmill, Peer, StdlibExecutor, StdlibPool

MEMCPY = "C memcpy, warm"
_BACK = "8 MB arrays back"
TARGETS = (
    Target("send 8 MB arrays", "send-8192K", 0.70, MEMCPY),
    Target(_BACK, "return-8192K", 0.60, MEMCPY, label="unchanged"),
    Target(_BACK, "make-8192K", 0.30, MEMCPY, label="freshly made"),
)
SIZES = (64 << 10, 1 << 20, 8 << 20, 64 << 20)
QUICK_SIZES = (64 << 10, 8 << 20)
_FOR_ALL = 8 << 20
_SAMPLE = 64 << 20  # bytes a sample, if that is some arrays


def run(bench: Bench) -> None:
    """Ask."""
    if importlib.util.find_spec("numpy") is None:
        raise Skip("numpy is not installed")
    for size in QUICK_SIZES if bench.quick else SIZES:
        count = bench.size(min(200, max(2, _SAMPLE // size)), 2)
        for key, title, take in (
            ("send", "sent", _send),
            ("return", "sent and given back", _give_back),
            ("make", "made in the worker", _make),
        ):
            bound = _with(take, size, count)
            samples: dict[str, Sample] = {
                peer.name: bench.with_pool(peer, bound)
                for peer in bench.peers
                if size == _FOR_ALL or peer in (Forkmill, StdlibPool, StdlibExecutor)
            }
            if reference := bench.reference:
                samples[MEMCPY] = _memcpy(reference, size, bench)
            text = f"{count} arrays of {size >> 10:,} KiB, {title}"
            bench.measure(Case(f"{key}-{size >> 10}K", text, "GB/s", MORE, samples, most_rounds=5))


def _with(take: Any, size: int, count: int) -> Callable[[Peer], float]:
    def bound(pool: Peer) -> float:
        take(pool, size, 2)  # its first use of memory of this size is not the question
        return float(take(pool, size, count))

    return bound


def _memcpy(reference: Any, size: int, bench: Bench) -> Sample:
    times = bench.size(max(5, (1 << 30) // size), 2)
    return lambda: size / reference.memcpy(size, times) / 1e9


def _arrays(size: int, count: int) -> list[Any]:
    import numpy as np

    return [np.full(size, i % 251, np.uint8) for i in range(count)]


def _send(pool: Peer, size: int, count: int) -> float:
    arrays = _arrays(size, count)
    seconds, results = elapsed(lambda: pool.calls(work.look_at, arrays))
    check([tuple(r) for r in results], [(size, i % 251, i % 251) for i in range(count)])
    return size * count / seconds / 1e9


def _give_back(pool: Peer, size: int, count: int) -> float:
    arrays = _arrays(size, count)
    seconds, results = elapsed(lambda: pool.calls(work.give_back, arrays))
    _check_arrays(results, size, count)
    return size * count / seconds / 1e9


def _make(pool: Peer, size: int, count: int) -> float:
    jobs = [(size, i % 251) for i in range(count)]
    seconds, results = elapsed(lambda: pool.calls(work.make_array, jobs))
    _check_arrays(results, size, count)
    return size * count / seconds / 1e9


def _check_arrays(arrays: list[Any], size: int, count: int) -> None:
    check(len(arrays), count)
    for i, array in enumerate(arrays):
        check(array.nbytes, size)
        if not (array == i % 251).all():
            raise WrongResult(f"array {i} is not all {i % 251}")

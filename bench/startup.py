"""How long until a new pool has its first result?

By fork, once from a small process and once from one with a lot of memory, whose page tables fork
has to copy. The C reference does one fork, a byte through a pipe, exit and wait. Two floors are
this process's own: an os.fork and a byte; and the same from a process that was forked in C, which
is the least that a pool with a zygote can do. Who forks nothing (loky) is shown beside; joblib is
not, because it keeps its workers for the next call.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from . import work
from .harness import LESS, Bench, Case, Sample, Target, check, elapsed, spread
from .peers import START_METHOD, Forkmill, Joblib, Peer, StdlibExecutor

C_FORK = "C fork+pipe+exit+wait"
ONE_FORK = "os.fork+byte"
TWO_FORKS = "C fork, os.fork+byte"
_WHAT = "create pool, first result, fork"
TARGETS = (
    Target(_WHAT, "small", 0.6, StdlibExecutor.name, at_most=True, label="RSS < 100 MB"),
    Target(_WHAT, "large", 1.0, StdlibExecutor.name, at_most=True, label="RSS 1 GB"),
)

_REPEATS = 5  # a sample is the median of so many, or of as many as half a second has room for


class ForkedForkmill(Forkmill):
    """Ours, by fork whatever else this process has loaded."""

    def __init__(self, workers: int) -> None:
        import forkmill

        self.pool = forkmill.ProcessPool(workers, start_method=START_METHOD)


def run(bench: Bench) -> None:
    """Ask."""
    peers = [ForkedForkmill if p is Forkmill else p for p in bench.peers if p is not Joblib]
    for peer in peers:
        importlib.import_module(peer.module)  # that is not the question
    megabytes = bench.size(1024, 32)
    bench.plan(2)
    for key, ballast in (("small", 0), ("large", megabytes)):
        with _resident(ballast):
            samples = {p.name: _median(bench, partial(_open, p, bench.workers)) for p in peers}
            if hasattr(os, "fork"):
                samples[ONE_FORK] = _median(bench, _fork)
                samples[TWO_FORKS] = _median(bench, partial(_fork, between=True))
            if bench.reference:
                samples[C_FORK] = _reference(bench, ballast)
            text = f"a new pool's first result, {_rss_megabytes():.0f} MB resident"
            bench.measure(Case(key, text, "ms", LESS, samples, most_rounds=7))


def _median(bench: Bench, once: Callable[[], float]) -> Sample:
    def sample() -> float:
        end = time.monotonic() + bench.size(1, 0) / 2
        figures = [once() * 1e3]
        while len(figures) < _REPEATS and time.monotonic() < end:
            figures.append(once() * 1e3)
        return spread(figures)[1]

    return sample


def _reference(bench: Bench, megabytes: int) -> Sample:
    reference = bench.reference
    assert reference is not None
    return lambda: reference.spawn(megabytes, bench.size(20, 1)) * 1e3


def _open(peer: type[Peer], workers: int) -> float:
    def first() -> Peer:
        pool = peer(workers)
        check(pool.call(work.increment, 1), 2)
        return pool

    seconds, pool = elapsed(first)
    pool.close()
    return seconds


def _fork(between: bool = False) -> float:
    """Seconds to the first byte of a forked interpreter; with a process in C in between."""
    reading, writing = os.pipe()
    start = time.monotonic()
    pid = ctypes.PyDLL(None).fork() if between else os.fork()
    if pid == 0:
        if not between or (pid := os.fork()) == 0:
            os.write(writing, b"x")
        else:
            os.waitpid(pid, 0)
        os._exit(0)
    check(os.read(reading, 1), b"x")
    seconds = time.monotonic() - start
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    return seconds


@contextlib.contextmanager
def _resident(megabytes: int) -> Iterator[None]:
    """In here this process has so much more memory resident, in small pages."""
    if not megabytes:
        yield
        return
    size = megabytes << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
        yield


def _rss_megabytes() -> float:
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * mmap.PAGESIZE / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # no /proc: the peak has to do
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

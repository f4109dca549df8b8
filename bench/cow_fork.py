"""What does one item of cow_fork cost, beside fork, a byte through a pipe, exit and wait in C?

Both from a process with the same resident memory, in small pages: what fork and exit do to its page
tables is most of the cost. "forkmill" is `submit(f, x).result()`, one after the other, with two
children allowed, so that one may still be on its way out while the next one starts; beside it a
`map`, the same with one child allowed (each fork then waits for the last child's exit), and
os.fork with pickle by hand. The C reference runs in a process of its own without a second thread
and touches next to none of its memory; an interpreter touches some 300 pages between fork and exit,
most of them in its own fork hooks.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
from collections.abc import Callable, Iterator

from . import work
from .harness import LESS, Bench, Case, Sample, Skip, Target, check, elapsed
from .peers import OURS

C_FORK = "C fork+pipe+exit+wait"
BY_HAND = "os.fork and pickle"
MAP = "forkmill, map"
ALONE = "forkmill, one child"
_WHAT = "cow_fork, one item"
TARGETS = (
    Target(_WHAT, "small", 1.3, C_FORK, at_most=True, label="RSS 64 MB"),
    Target(_WHAT, "large", 1.15, C_FORK, at_most=True, label="RSS 1 GB"),
)


def run(bench: Bench) -> None:
    """Ask."""
    if not hasattr(os, "fork"):
        raise Skip("this platform has no fork")
    bench.plan(2)
    for key, megabytes in (("small", 64), ("large", bench.size(1024, 80))):
        with _resident(megabytes):
            items = bench.size(max(10, 6400 // megabytes), 2)
            samples: dict[str, Sample] = {
                OURS: _executor(bench.workers, items, _calls),
                MAP: _executor(bench.workers, items, _map),
                ALONE: _executor(1, items, _calls),
                BY_HAND: lambda items=items: _by_hand(items),  # type: ignore[misc]
            }
            if bench.reference:
                samples[C_FORK] = _reference(bench, items)
            text = f"one item by fork, {_rss_megabytes():.0f} MB resident"
            bench.measure(Case(key, text, "ms", LESS, samples))


Take = Callable[..., list[int]]


def _executor(width: int, items: int, take: Take) -> Sample:
    def sample() -> float:
        from forkmill.contexts.cow_fork import CowFork

        with CowFork(width) as executor:
            check(take(executor, 3), [1, 2, 3])
            seconds, results = elapsed(lambda: take(executor, items))
        check(results, list(range(1, items + 1)))
        return seconds / items * 1e3

    return sample


def _calls(executor: object, items: int) -> list[int]:
    return [executor.submit(work.increment, i).result() for i in range(items)]  # type: ignore[attr-defined]


def _map(executor: object, items: int) -> list[int]:
    return list(executor.map(work.increment, range(items)))  # type: ignore[attr-defined]


def _by_hand(items: int) -> float:
    def take() -> list[int]:
        return [_fork_once(i) for i in range(items)]

    seconds, results = elapsed(take)
    check(results, list(range(1, items + 1)))
    return seconds / items * 1e3


def _fork_once(item: int) -> int:
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(theirs, pickle.dumps(work.increment(item)))
        os._exit(0)
    os.close(theirs)
    result: int = pickle.loads(os.read(ours, 4096))
    os.close(ours)
    os.waitpid(pid, 0)
    return result


def _reference(bench: Bench, items: int) -> Sample:
    reference = bench.reference
    assert reference is not None
    megabytes = round(_rss_megabytes())
    return lambda: reference.spawn(megabytes, items) * 1e3


@contextlib.contextmanager
def _resident(megabytes: int) -> Iterator[None]:
    """In here this process has so much memory resident, or what it has anyway; in small pages."""
    size = int(megabytes - _rss_megabytes()) << 20
    if size <= 0:
        yield
        return
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
        yield


def _rss_megabytes() -> float:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE / 2**20
    except OSError:
        raise Skip("this platform does not tell resident memory") from None

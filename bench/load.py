"""Does a task cost more when many are pending, or with many workers?

The user's process' own CPU time a task, `submit` and `result()`, with 1, 1,000 and a million tasks
pending on two workers, then with 2 and 64 workers. A cost that grows with what is pending makes a
queue slower the more it is needed. What does grow is the memory that is looked at: a million
futures do not fit a cache. And on few CPUs 64 workers are more often asleep when a task comes for
them: each wakes up for less, which is the kernel's part of the time.
"""

from __future__ import annotations

import resource
from functools import partial

from . import work
from .harness import LESS, Bench, Case, Sample, Target, check
from .peers import OURS, Forkmill, Peer, StdlibExecutor

FEW = "1,000 pending"
_WHAT = "a task's CPU time in the parent"
TARGETS = (
    Target(_WHAT, "pending", 2.5, FEW, at_most=True, label="a million pending against 1,000"),
    Target(_WHAT, "lone64", 1.5, "2 workers", at_most=True, label="64 workers against 2, alone"),
)
TOTAL = 50_000  # tasks of a sample, if not more are pending at once


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(3)
    million = bench.size(1_000_000, 100)
    bench.measure(
        Case(
            "pending",
            f"{OURS}: {million:,} pending. Parent's CPU time a task, 2 workers",
            "us",
            LESS,
            {
                OURS: _sample(bench, Forkmill, 2, million),
                FEW: _sample(bench, Forkmill, 2, bench.size(1000, 10)),
                "1 pending": _sample(bench, Forkmill, 2, 1),
                f"{StdlibExecutor.name}, {FEW}": _sample(
                    bench, StdlibExecutor, 2, bench.size(1000, 10)
                ),
            },
            most_rounds=3,
        )
    )
    for key, pending in (("lone64", 1), ("queue64", bench.size(1000, 10))):
        title = f"{OURS}: 64 workers, {pending:,} pending. Parent's CPU time a task"
        samples: dict[str, Sample] = {
            OURS: _sample(bench, Forkmill, 64, pending),
            "2 workers": _sample(bench, Forkmill, 2, pending),
        }
        bench.measure(Case(key, title, "us", LESS, samples, most_rounds=5))


def _sample(bench: Bench, peer: type[Peer], workers: int, pending: int) -> Sample:
    return partial(_take, peer, workers, pending, bench.size(TOTAL // peer.per_item, 10))


def _take(peer: type[Peer], workers: int, pending: int, total: int) -> float:
    rounds = max(1, total // pending)
    with peer(workers) as pool:
        check(pool.calls(work.increment, range(8 * workers)), list(range(1, 8 * workers + 1)))
        before = _cpu_s()
        for _ in range(rounds):
            got = pool.calls(work.increment, range(pending))
        spent = _cpu_s() - before
    check(got, list(range(1, pending + 1)))
    return spent / (rounds * pending) * 1e6


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

"""What does one lone call cost, there and back, beside the kernel's own ping-pong?

`submit(f, x).result()`, again and again, nothing else going on: first with everything on one CPU,
where only the work counts, then free to move, where waking another CPU counts too.
"""

from __future__ import annotations

from . import work
from .harness import LESS, Bench, Case, Sample, Skip, Target, check, elapsed, one_cpu
from .peers import Peer

C_PIPE = "C pipe ping-pong"
_WHAT = "`submit(f, x).result()`"
TARGETS = (
    Target(_WHAT, "pinned", 2.2, C_PIPE, at_most=True, label="all on one CPU"),
    Target(_WHAT, "free", 1.0, C_PIPE, at_most=True, label="free to move"),
)


def run(bench: Bench) -> None:
    """Ask."""
    full = bench.size(3000, 100)
    bench.plan(2)

    def take(pool: Peer) -> float:
        count = full // pool.per_call

        def trips() -> list[int]:
            return [pool.call(work.increment, i) for i in range(count)]

        seconds, results = elapsed(trips)
        check(results, list(range(1, count + 1)))
        return seconds / count * 1e6

    samples: dict[str, Sample] = bench.pools(take)
    if reference := bench.reference:
        samples[C_PIPE] = lambda: reference.pingpong(bench.size(20_000, 100)) * 1e6
    try:
        with one_cpu():
            bench.measure(Case("pinned", "A round trip, all on one CPU", "us", LESS, samples))
    except Skip as why:
        bench.note(str(why))
    bench.measure(Case("free", "A round trip, free to move", "us", LESS, samples))

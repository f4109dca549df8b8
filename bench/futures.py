"""How many futures a second, submitted all at once and taken as they complete?

`submit` for each item, then `as_completed` over all of them (who has no as_completed gets them in
order). With few and with many pending: the cost of one must not depend on the others.
"""

from __future__ import annotations

from . import work
from .harness import MORE, Bench, Case, Target, check, elapsed
from .peers import Peer, StdlibExecutor

TARGETS = (Target("submit all + as_completed, trivial", "many", 32.0, StdlibExecutor.name),)


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(2)
    for key, count in (("few", bench.size(500, 10)), ("many", bench.size(10_000, 50))):
        expected = list(range(1, count + 1))

        def take(pool: Peer, count: int = count, expected: list[int] = expected) -> float:
            seconds, results = elapsed(lambda: pool.completed(work.increment, range(count)))
            check(sorted(results), expected)
            return count / seconds

        title = f"{count:,} futures at once"
        bench.measure(Case(key, title, "tasks/s", MORE, bench.pools(take)))

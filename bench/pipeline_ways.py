"""What do the other ways of running a chain cost, against run() with a sink?

Three trivial inline stages each: the outputs by stream(), a retry where nothing fails, async
functions, two sources that meet, a broadcast whose branches meet again; and two stages in threads.
"""

from __future__ import annotations

from collections.abc import Callable

import forkmill as fm

from . import work
from .harness import LESS, Bench, Case, Sample, Target, check, elapsed
from .peers import OURS

PLAIN = "run() with a sink"
BOUNDS = {"stream": 1.5, "retry": 1.5, "async": 20.0, "sources": 1.5, "broadcast": 4.0}
TITLES = {
    "stream": "outputs by stream()",
    "retry": "retry, nothing fails",
    "async": "inline async functions",
    "sources": "two sources that meet",
    "broadcast": "a broadcast that meets again",
}
TARGETS = (
    *(
        Target(f"the same chain: {TITLES[key]}, against run() with a sink", key, bound, PLAIN, True)
        for key, bound in BOUNDS.items()
    ),
    Target("two trivial stages in threads, time an item", "threads", 4.7, at_most=True),
)
STAGES = 3


async def increment(item: int) -> int:
    """The trivial task, for a loop."""
    return item + 1


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(len(BOUNDS) + 1)
    counts = dict.fromkeys(BOUNDS, bench.size(200_000, 1000))
    counts["async"] = bench.size(20_000, 500)
    for key, count in counts.items():
        samples = {OURS: _sample(WAYS[key], count), PLAIN: _sample(_plain, counts["stream"])}
        title = f"{TITLES[key]}: {count:,} integers through {STAGES} stages, time an item"
        bench.measure(Case(key, title, "us", LESS, samples))
    few = bench.size(30_000, 500)
    title = f"{few:,} integers through two trivial stages in threads, time an item"
    bench.measure(Case("threads", title, "us", LESS, {OURS: _sample(_threads, few)}))


def _sample(way: Callable[[int], tuple[int, int]], count: int) -> Sample:
    def sample() -> float:
        seconds, (number, last) = elapsed(lambda: way(count))
        check(number, count)
        check(last in (count + STAGES - 1, count + 1, count // 2 + STAGES - 1), True)
        return seconds * 1e6 / count

    return sample


class _Last:
    def __init__(self) -> None:
        self.count = self.most = 0

    def __call__(self, item: int) -> None:
        self.count += 1
        self.most = max(self.most, item)


def _through(line: fm.Pipeline, **options: object) -> tuple[int, int]:
    last = _Last()
    for _ in range(STAGES):
        line = line.map(work.increment, **options)
    line.sink(last).run()
    return last.count, last.most


def _plain(count: int) -> tuple[int, int]:
    return _through(fm.Pipeline().source(range(count)))


def _stream(count: int) -> tuple[int, int]:
    last, line = _Last(), fm.Pipeline().source(range(count))
    for _ in range(STAGES):
        line = line.map(work.increment)
    for item in line.stream():
        last(item)
    return last.count, last.most


def _retry(count: int) -> tuple[int, int]:
    return _through(fm.Pipeline().source(range(count)), on_error=fm.retry(3))


def _async(count: int) -> tuple[int, int]:
    last, line = _Last(), fm.Pipeline().source(range(count))
    for _ in range(STAGES):
        line = line.map(increment)
    line.sink(last).run()
    return last.count, last.most


def _sources(count: int) -> tuple[int, int]:
    half = range(count // 2)
    return _through(fm.Pipeline().source(half).source(half, name="other"))


def _broadcast(count: int) -> tuple[int, int]:
    """Half as many items, so that as many meet."""
    last = _Last()
    line = fm.Pipeline().source(range(count // 2))
    line = line.map(work.increment, name="a", from_="source", to="c")
    line = line.map(work.increment, name="b", from_="source", to="c")
    line.map(work.increment, name="c", from_=["a", "b"]).sink(last).run()
    return last.count, last.most + 1


def _threads(count: int) -> tuple[int, int]:
    last, line = _Last(), fm.Pipeline().source(range(count))
    for _ in range(2):
        line = line.map(work.increment, context="thread:2")
    line.sink(last).run()
    return last.count, last.most


WAYS = {
    "stream": _stream,
    "retry": _retry,
    "async": _async,
    "sources": _sources,
    "broadcast": _broadcast,
}

"""What do the other ways of running a chain cost, against run() with a sink?

Three trivial inline stages each: the outputs by stream(), a retry where nothing fails, async
functions, two sources that meet, branches that meet again (by broadcast, round robin, balanced),
fm.to, one item in ten that is skipped or a dead letter; one stage in processes, the same ways; and
two stages in threads, in event loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import forkmill as fm

from . import work
from .harness import LESS, Bench, Case, Sample, Target, check, elapsed
from .peers import OURS

PLAIN = "run() with a sink"
BOUNDS = {
    "stream": 1.5,
    "retry": 1.5,
    "async": 20.0,
    "sources": 1.5,
    "broadcast": 4.0,
    "round_robin": 4.0,
    "balanced": 4.0,
    "to": 4.0,
    "skip": 5.0,
    "letter": 5.0,
}
TITLES = {
    "stream": "outputs by stream()",
    "retry": "retry, nothing fails",
    "async": "inline async functions",
    "sources": "two sources that meet",
    "broadcast": "a broadcast that meets again",
    "round_robin": "round robin, and it meets again",
    "balanced": "balanced, and it meets again",
    "to": "an item goes on by fm.to",
    "skip": "one in ten fails and is skipped",
    "letter": "one in ten fails and is a dead letter",
}
APART = "a plain stage in processes"
APARTS = {
    "ipc_ordered": ("ordered", 1.5),
    "ipc_retry": ("a retry, nothing fails", 1.5),
    "ipc_to": ("an item goes on by fm.to", 3.0),
    "ipc_generator": ("a generator", 5.0),
}
LANES = {"threads": ("threads", 4.7), "loops": ("an event loop", 8.5)}
TARGETS = (
    *(
        Target(f"the same chain: {TITLES[key]}, against run() with a sink", key, bound, PLAIN, True)
        for key, bound in BOUNDS.items()
    ),
    *(
        Target(f"a stage in processes: {title}, against a plain one", key, bound, APART, True)
        for key, (title, bound) in APARTS.items()
    ),
    *(
        Target(f"two trivial stages in {where}, time an item", key, bound, at_most=True)
        for key, (where, bound) in LANES.items()
    ),
)
STAGES = 3


async def increment(item: int) -> int:
    """The trivial task, for a loop."""
    return item + 1


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(len(BOUNDS) + len(APARTS) + len(LANES))
    counts = dict.fromkeys(BOUNDS, bench.size(200_000, 1000))
    counts["async"] = bench.size(20_000, 500)
    for key, count in counts.items():
        samples = {OURS: _sample(WAYS[key], count), PLAIN: _sample(_plain, counts["stream"])}
        title = f"{TITLES[key]}: {count:,} integers through {STAGES} stages, time an item"
        bench.measure(Case(key, title, "us", LESS, samples))
    many = bench.size(200_000, 1000)
    for key, (title, _) in APARTS.items():
        samples = {OURS: _sample(WAYS[key], many), APART: _sample(_apart, many)}
        title = f"a stage in processes, {title}: {many:,} integers, time an item"
        bench.measure(Case(key, title, "us", LESS, samples))
    few = bench.size(30_000, 500)
    for key, way in (("threads", _threads), ("loops", _loops)):
        title = f"{few:,} integers through two trivial stages in {LANES[key][0]}, time an item"
        bench.measure(Case(key, title, "us", LESS, {OURS: _sample(way, few)}))


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


def _routed(count: int, routing: str) -> tuple[int, int]:
    last = _Last()
    line = fm.Pipeline().source(range(count), to=["a", "b"], routing=routing)
    line = line.map(work.increment, name="a", from_="source", to="c")
    line = line.map(work.increment, name="b", from_="source", to="c")
    line.map(work.increment, name="c", from_=["a", "b"]).sink(last).run()
    return last.count, last.most + 1


def _send_on(item: int) -> object:
    return fm.to("b", item + 1)


def _to(count: int) -> tuple[int, int]:
    last = _Last()
    line = fm.Pipeline().source(range(count)).map(_send_on)
    line = line.map(work.increment, name="b", from_=()).map(work.increment)
    line.sink(last).run()
    return last.count, last.most


def _fail_at_times(item: int) -> int:
    if item % 10 == 9:
        raise ValueError(item)
    return item


def _skip(count: int) -> tuple[int, int]:
    return _failing(count, "skip")


def _letter(count: int) -> tuple[int, int]:
    return _failing(count, fm.dead_letter("dead"))


def _failing(count: int, policy: object) -> tuple[int, int]:
    """All are counted: those that failed, and those that did not."""
    last = _Last()
    line = fm.Pipeline().source(range(count)).map(work.increment)
    line = line.map(_fail_at_times, on_error=policy).map(work.increment).sink(last)
    if policy != "skip":
        line = line.sink(id, name="dead", from_=())
    result = line.run(keep_failures=1000)
    failed = sum(stage.failed for stage in result.stats.stages.values())
    return last.count + failed, count + STAGES - 1


def _apart(
    count: int, fn: Callable[[int], object] = work.increment, **options: object
) -> tuple[int, int]:
    last = _Last()
    line = fm.Pipeline().source(range(count))
    line = line.map(fn, name="a", context="ipc_fork:2", **options)
    line.sink(last, name="b", from_=() if fn is _send_on else "a").run()
    return last.count, last.most + STAGES - 1


def _one(item: int) -> Iterator[int]:
    yield item + 1


def _loops(count: int) -> tuple[int, int]:
    last, line = _Last(), fm.Pipeline().source(range(count))
    for _ in range(2):
        line = line.map(increment, context="async:100")
    line.sink(last).run()
    return last.count, last.most


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
    "round_robin": lambda count: _routed(count, "round_robin"),
    "balanced": lambda count: _routed(count, "balanced"),
    "to": _to,
    "skip": _skip,
    "letter": _letter,
    "ipc_ordered": lambda count: _apart(count, ordered=True),
    "ipc_retry": lambda count: _apart(count, on_error=fm.retry(3)),
    "ipc_to": lambda count: _apart(count, _send_on),
    "ipc_generator": lambda count: _apart(count, _one),
}

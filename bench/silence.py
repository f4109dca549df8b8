"""How long does a map's caller wait for a next result, where the items come from a generator?

The longest silence between two results, the first and the end included: slow tasks, trivial tasks,
and a slow input, whose list is what a loop over the same input waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import forkmill as fm

from . import work
from .harness import LESS, Bench, Case, Sample, Target, check
from .peers import OURS

LIST = "a list"
_WHAT = "longest silence of a map over a generator"
CASES = {
    "slow_tasks": "tasks of 5 ms",
    "fast_tasks": "trivial tasks",
    "slow_input": "trivial tasks, an item each 3 ms",
}
TARGETS = tuple(
    Target(_WHAT, key, 2.0, LIST, at_most=True, label=label) for key, label in CASES.items()
)
_TASK_S, _INPUT_S = 5e-3, 3e-3


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(len(CASES))
    slow, many = [_TASK_S] * bench.size(200, 8), range(bench.size(300_000, 1000))
    few = range(bench.size(200, 8))
    ways: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "slow_tasks": (
            lambda: _longest(bench, work.spin, iter(slow), slow),
            lambda: _longest(bench, work.spin, slow, slow),
        ),
        "fast_tasks": (
            lambda: _longest(bench, work.increment, iter(many), [i + 1 for i in many]),
            lambda: _longest(bench, work.increment, list(many), [i + 1 for i in many]),
        ),
        "slow_input": (
            lambda: _longest(bench, work.increment, _slowly(few), [i + 1 for i in few]),
            lambda: _gaps(map(work.increment, _slowly(few)), [i + 1 for i in few]),
        ),
    }
    for key, (ours, listed) in ways.items():
        samples: dict[str, Sample] = {OURS: ours, LIST: listed}
        title = f"longest silence, {CASES[key]}"
        bench.measure(Case(key, title, "ms", LESS, samples, most_rounds=9))


def _slowly(items: Iterable[int]) -> Iterator[int]:
    for item in items:
        time.sleep(_INPUT_S)
        yield item


def _longest(bench: Bench, fn: Callable[[Any], Any], items: Any, expected: list[Any]) -> float:
    with fm.ProcessPool(bench.workers) as pool:
        check(list(pool.map(work.increment, range(8))), list(range(1, 9)))
        return _gaps(pool.map(fn, items), expected)


def _gaps(results: Iterable[Any], expected: list[Any]) -> float:
    last, longest, got = time.perf_counter(), 0.0, []
    for result in results:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        got.append(result)
    longest = max(longest, time.perf_counter() - last)
    check(got, expected)
    return longest * 1e3

"""What does it cost a run that somebody listens to it?

Nobody, somebody who hears of runs, somebody who hears of each item: of a map of trivial calls, of a
map of calls of 20 us, and of a pipeline of such calls in workers. The parent's own CPU time an item
is the difference that the listener makes, of runs that take turns: noise is in both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import forkmill as fm

from .harness import LESS, Bench, Case, Target
from .peers import OURS

NOBODY, RUNS = "nobody listens", "detail runs"
_CALL_S = 20e-6

TARGETS = (
    Target("a run that is listened to", "map_20us", 1.05, NOBODY, at_most=True,
           label="map of 20 us, detail items"),
    Target("a run that is listened to", "pipeline", 1.05, NOBODY, at_most=True,
           label="pipeline of 20 us, detail items"),
    Target("a run that is listened to", "parent_map", 0.02, at_most=True,
           label="the parent's us an item more: map of 20 us, detail items"),
    Target("a run that is listened to", "parent_runs", 0.02, at_most=True,
           label="the parent's us an item more: trivial map, detail runs"),
)  # fmt: skip


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(5)
    items = bench.size(20_000, 500)
    many = bench.size(400_000, 500)
    with fm.ProcessPool(bench.workers) as pool:
        list(pool.map(_spin, range(100)))
        for key, what, take in (
            ("map_trivial", "a map of trivial calls", lambda: _map(pool, abs, many)),
            ("map_20us", "a map of calls of 20 us", lambda: _map(pool, _spin, items)),
            ("pipeline", "a pipeline of calls of 20 us", lambda: _pipeline(bench, items)),
        ):
            samples: dict[str, Callable[[], float | None]] = {
                OURS: _heard(take, "items"),
                RUNS: _heard(take, "runs"),
                NOBODY: take,
            }
            bench.measure(Case(key, f"{what}, by item: with detail items", "us", LESS, samples))
        for key, what, fn, detail, number in (
            ("parent_map", "map of 20 us, detail items", _spin, "items", 5 * items),
            ("parent_runs", "trivial map, detail runs", abs, "runs", many),
        ):
            more = _more(pool, fn, detail, number)
            title = f"the parent's CPU time an item more: {what}"
            bench.measure(Case(key, title, "us", LESS, {OURS: more}))


def _spin(_item: int) -> None:
    end = time.perf_counter() + _CALL_S
    while time.perf_counter() < end:
        pass


def _nothing(event: Any) -> None:
    """A sink."""


def _heard(take: Callable[[], float], detail: str) -> Callable[[], float]:
    """The same while somebody listens."""

    def heard() -> float:
        end = fm.subscribe(_nothing, detail=detail)
        try:
            return take()
        finally:
            end()

    return heard


def _map(pool: fm.ProcessPool, fn: Callable[[int], Any], items: int) -> float:
    began = time.perf_counter()
    for _ in pool.map(fn, range(items)):
        pass
    return (time.perf_counter() - began) / items * 1e6


def _pipeline(bench: Bench, items: int) -> float:
    line = fm.Pipeline().source(range(items)).map(_spin, context=fm.ipc_fork(bench.workers))
    line = line.sink(_nothing)
    began = time.perf_counter()
    line.run()
    return (time.perf_counter() - began) / items * 1e6


def _more(
    pool: fm.ProcessPool, fn: Callable[[int], Any], detail: str, items: int
) -> Callable[[], float]:
    """CPU time of this process an item, with a listener, less what it is without."""

    def spent() -> float:
        began = time.process_time()
        _map(pool, fn, items)
        return (time.process_time() - began) / items * 1e6

    heard = _heard(spent, detail)

    def more() -> float:
        return max(0.001, heard() - spent())

    return more

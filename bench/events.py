"""What does it cost to tell an event: to make one, and to hand it over to the stream?

In bursts that are shorter than the time after which Python gives another thread a turn, so that
the thread that tells them takes none of it; it works the burst off in the pause behind. Against
that: an event that nobody listens to, and a run of a pipeline with a sink and without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import forkmill as fm
from forkmill.contexts.lanes.measured import Measured, Recorded, Recorder
from forkmill.events import Emitter

from .harness import LESS, Bench, Case, Target
from .peers import OURS

_BURST = 500

TARGETS = (
    Target("an event, microseconds", "make", 1.3, at_most=True, label="made and handed over"),
    Target("an event, microseconds", "hand", 0.3, at_most=True, label="handed over"),
    Target("calls of 20 us with detail=items", "items", 1.05, "detail runs", at_most=True),
)


def run(bench: Bench) -> None:
    """Ask."""
    bursts = bench.size(20, 2)
    bench.plan(5)
    for key, what, take in (
        ("make", "make an event and hand it over", lambda: _best(bursts, _make)),
        ("hand", "hand an event over", lambda: _best(bursts, _hand)),
        ("deaf", "an event that nobody listens to", lambda: _unheard(bursts)),
    ):
        bench.measure(Case(key, what, "us", LESS, {OURS: take}))
    samples: dict[str, Callable[[], float | None]] = {
        OURS: lambda: _runs(bench.size(200, 2), [_nothing]),
        "no sink": lambda: _runs(bench.size(200, 2), []),
    }
    calls: dict[str, Callable[[], float | None]] = {
        OURS: lambda: _calls(Recorded(_spin, Recorder(every=False))),
        "detail runs": lambda: _calls(Measured(_spin)),
    }
    bench.measure(Case("items", "a call of 20 us, of which each is told", "us", LESS, calls))
    bench.measure(Case("run", "a run of three items, with a sink", "us", LESS, samples))


def _spin(item: int) -> None:
    end = time.perf_counter() + 20e-6
    while time.perf_counter() < end:
        pass


def _calls(function: Callable[[int], Any]) -> float:
    found = []
    for _ in range(10):
        began = time.perf_counter()
        for i in range(200):
            function(i)
        found.append((time.perf_counter() - began) / 200 * 1e6)
    return min(found)


def _nothing(event: Any) -> None:
    """A sink."""


def _best(bursts: int, burst: Callable[[], float]) -> float:
    end = fm.subscribe(_nothing)
    try:
        found = []
        for _ in range(bursts):
            time.sleep(0.02)  # the last one is worked off
            found.append(burst())
    finally:
        end()
    return min(found)


def _make() -> float:
    emit = Emitter("bench").emit
    began = time.perf_counter()
    for _ in range(_BURST):
        emit("batch", "name", size=3)
    return (time.perf_counter() - began) / _BURST * 1e6


def _hand() -> float:
    tell = Emitter("bench")
    put, made = fm.events._bus.put, []
    for _ in range(_BURST):
        made.append({"monotonic": time.monotonic(), "kind": "batch", "data": {}})
    began = time.perf_counter()
    for event in made:
        put(event, tell)
    return (time.perf_counter() - began) / _BURST * 1e6


def _unheard(bursts: int) -> float:
    return min(_make() for _ in range(bursts))


def _runs(count: int, sinks: list[Any]) -> float:
    line = fm.Pipeline().source(range(3)).map(abs)
    began = time.perf_counter()
    for _ in range(count):
        line.run(sinks=sinks)
    return (time.perf_counter() - began) / count * 1e6

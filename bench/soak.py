"""Does anything get lost, or grow, in hours of work while workers are killed?

``python -m bench soak --minutes 20``: no peers, no figures to compare. Pools are opened and closed;
several threads submit, map, cancel and leave loops early; workers are killed at random, time out
and are recycled. What must hold:

* every call of ours gets exactly one outcome, the right one, or one that a kill or a time limit
  explains; no more deaths than there were kills;
* ``accepted = outcomes`` of every pool at its end, and of what this program counted itself;
* memory, descriptors, threads and processes at the end are those of the first minute.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

import forkmill as fm

from . import work

_ERA_S = 5.0  # a pool's life
_MORE_KB = 8 * 1024  # more resident memory than this is growth
_PLENTY = (10**9, 10.0)


class Tally:
    """What was asked for and what came, counted by this program. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.findings: list[str] = []

    def add(self, **numbers: int) -> None:
        with self._lock:
            self.counts.update(numbers)

    def found(self, text: str) -> None:
        with self._lock:
            self.findings.append(text)
        print(f"FOUND: {text}", file=sys.stderr, flush=True)


class Crew:
    """Threads that use one pool until a moment, and one that kills its workers."""

    def __init__(
        self, pool: fm.ProcessPool, tally: Tally, until: float, threads: int, kills: float
    ) -> None:
        self.pool, self.tally, self.until = pool, tally, until
        self.killed = 0
        self.died = 0
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._guard, args=(self._use, number))
            for number in range(threads)
        ]
        if kills:
            killer = threading.Thread(target=self._guard, args=(self._kill, kills))
            self._threads.append(killer)

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()

    def _guard(self, part: Callable[[Any], None], argument: Any) -> None:
        try:
            part(argument)
        except BaseException as error:
            self.tally.found(f"{part.__name__}: {error!r}")

    def _kill(self, per_second: float) -> None:
        dice = random.Random()
        while time.monotonic() < self.until:
            time.sleep(dice.random() * 2 / per_second)
            workers = [worker.pid for worker in self.pool.workers() if worker.pid]
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(workers), signal.SIGKILL)
                    self.killed += 1

    def _use(self, seed: int) -> None:
        dice = random.Random(f"{seed} {self.until}")
        ways = [self._map, self._map, self._submit, self._cancel, self._time_out, self._leave]
        while time.monotonic() < self.until:
            dice.choice(ways)(dice)

    def _check(self, got: Any, expected: Any) -> None:
        if isinstance(got, fm.WorkerDied):
            with self._lock:
                self.died += 1
        elif got != expected:
            self.tally.found(f"{expected!r} was expected, {got!r} came")

    def _map(self, dice: random.Random) -> None:
        n = dice.choice((1, 100, 5_000, 50_000))
        ordered = dice.random() < 0.7
        chunk = dice.choice((None, None, 1 if n <= 100 else 64, 1000))
        results = list(
            self.pool.map(
                work.give_back, range(n), chunksize=chunk, ordered=ordered, return_exceptions=True
            )
        )
        self.tally.add(calls=n, outcomes=len(results))
        if ordered:
            for expected, got in enumerate(results):
                self._check(got, expected)
            return
        numbers = [got for got in results if type(got) is int]
        for got in results:
            if type(got) is not int:
                self._check(got, "a number")
        if len(set(numbers)) != len(numbers) or not set(numbers) <= set(range(n)):
            self.tally.found("an unordered map gave an item twice, or one that it was not asked")

    def _submit(self, dice: random.Random) -> None:
        size = dice.choice((10, 10, 1000, 300_000))
        values = [bytes(size) for _ in range(dice.choice((1, 200 if size < 10_000 else 5)))]
        futures = [self.pool.submit(work.give_back, value) for value in values]
        self.tally.add(calls=len(values))
        for value, future in zip(values, futures, strict=True):
            error = future.exception()
            self._check(error or future.result(), value)
            self.tally.add(outcomes=1)

    def _cancel(self, dice: random.Random) -> None:
        futures = [self.pool.submit(work.give_back, number) for number in range(100)]
        for future in futures[:: dice.choice((1, 2, 3))]:
            future.cancel()
        self.tally.add(calls=len(futures))
        for number, future in enumerate(futures):
            try:
                error = future.exception()
                self._check(error or future.result(), number)
            except CancelledError:
                self.tally.add(cancelled=1)
            self.tally.add(outcomes=1)

    def _time_out(self, dice: random.Random) -> None:
        error = self.pool.options(timeout=0.02).submit(work.nap, 60).exception()
        self.tally.add(calls=1, outcomes=1)
        if isinstance(error, fm.TaskTimeout):
            self.tally.add(timeouts=1)
        else:
            self._check(error, "a TaskTimeout")

    def _leave(self, dice: random.Random) -> None:
        with contextlib.suppress(fm.WorkerDied):
            for _ in self.pool.map(work.give_back, iter(range(10**9)), ordered=False):
                if dice.random() < 0.01:
                    break


def balance() -> dict[str, int]:
    """What this process has now."""
    gc.collect()
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        processes = len(file.read().split())
    return {
        "rss_kb": rss,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "processes": processes,
    }


def era(tally: Tally, until: float, workers: int, threads: int, kills: float) -> None:
    """The life of one pool."""
    dice = random.Random()
    with fm.ProcessPool(
        workers,
        start_method=dice.choice(("fork", "fork", "zygote")),
        max_tasks_per_child=dice.choice((None, None, 1000)),
        restarts=_PLENTY,
    ) as pool:
        crew = Crew(pool, tally, until, threads, kills)
        crew.run()
    stats = pool.stats()
    if (
        not stats.accepted
        == stats.outcomes
        == (stats.succeeded + stats.failed + stats.cancelled + stats.died)
    ):
        tally.found(f"the pool's counters do not agree: {stats}")
    if crew.died > crew.killed:
        tally.found(f"{crew.died} tasks died of {crew.killed} kills")
    tally.add(
        pools=1,
        accepted=stats.accepted,
        kills=crew.killed,
        died=crew.died,
        requeued=stats.requeued,
        restarts=stats.restarts,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak; 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N")
    parser.add_argument("--workers", type=int, default=3, metavar="N")
    parser.add_argument("--threads", type=int, default=8, metavar="N")
    parser.add_argument("--kills", type=float, default=5.0, metavar="N", help="a second; 0: none")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    end = start + options.minutes * 60
    tally = Tally()
    settled: dict[str, int] = {}
    resident: list[int] = []
    while time.monotonic() < end:
        until = min(end, time.monotonic() + _ERA_S)
        era(tally, until, options.workers, options.threads, options.kills)
        now = balance()
        resident.append(now["rss_kb"])
        # Once every way has been gone, arenas and tables have their size.
        if not settled and time.monotonic() - start > min(60.0, options.minutes * 20):
            settled = now
        if settled:
            for what, number in now.items():
                if what != "rss_kb" and number > settled[what]:
                    tally.found(f"{what} grew from {settled[what]} to {number}")
        minutes = (time.monotonic() - start) / 60
        print(f"{minutes:.1f} min {dict(tally.counts)} {now}", file=sys.stderr, flush=True)
    # The C library gives memory back when it likes, so one figure says nothing: a leak shows in
    # the least of the last ones.
    third = max(1, len(resident) // 3)
    first, last = max(resident[:third]), min(resident[-third:])
    if last > first + _MORE_KB:
        tally.found(f"resident memory grew from {first} to {last} KiB")
    counts = tally.counts
    if counts["calls"] != counts["outcomes"]:
        tally.found(f"{counts['calls']} calls, {counts['outcomes']} outcomes")
    report = {"minutes": options.minutes, **counts, "findings": tally.findings}
    print(json.dumps({**report, "at first": settled, "at last": balance()}, indent=1))
    return 1 if tally.findings else 0

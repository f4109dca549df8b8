"""How long does an everyday job take through a pipeline, beside the pool's own map?

Blocks of JSON lines are parsed and added up, 0.3 s of work in all: tasks of 0.1, 1 and 5 ms, from a
list or a generator, in two workers that are made and ended in the job. Cold: the first job of a
fresh process; warm: a later one. Sums must equal a plain loop's.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from .harness import LESS, Bench, Case, Sample, Target, check, fresh
from .peers import OURS

MAP = "ProcessPool.map"
POOL = "multiprocessing.Pool.map"
WAYS = {OURS: "pipeline", MAP: "map", POOL: "pool"}
LINES = {"0.1": 40, "1": 400, "5": 2000}  # of a task of so many ms
TASKS = {"0.1": 3000, "1": 300, "5": 60}
# key -> ms of a task, what the tasks come from, whether it is cold, whether a thread is there
CASES = {
    "cold": ("1", "list", True, False),
    "cold_generator": ("1", "generator", True, False),
    "cold_thread": ("1", "list", True, True),
    "warm": ("1", "list", False, False),
    "warm_generator": ("1", "generator", False, False),
    "warm_short": ("0.1", "list", False, False),
    "warm_long": ("5", "list", False, False),
}
BOUNDS = {"cold_thread": 0.85, "cold": 0.9, "cold_generator": 0.9}
TARGETS = tuple(
    Target(
        "everyday jobs through a pipeline, against the map",
        key,
        BOUNDS.get(key, 0.95),
        MAP,
        label=key.replace("_", ", "),
    )
    for key in CASES
)
_WARM = 3  # jobs after the first one; the best of them counts


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(len(CASES))
    for key, (cost, kind, cold, thread) in CASES.items():
        count = bench.size(TASKS[cost], 6)
        samples: dict[str, Sample] = {
            name: partial(fresh, "job_ways", way, cost, kind, count, int(cold), int(thread))
            for name, way in WAYS.items()
        }
        title = f"{count:,} tasks of {cost} ms from a {kind}, {'cold' if cold else 'warm'}"
        title += ", beside another thread" if thread else ""
        bench.measure(Case(key, title, "s", LESS, samples, most_rounds=9))


# ---------------------------------------------------------------------- in that process


def add_up(block: str) -> int:
    """The sum of the amounts of JSON lines."""
    return sum(json.loads(line)["amount"] for line in block.splitlines())


def _blocks(cost: str, count: int) -> Iterator[str]:
    lines = [json.dumps({"user": f"u{n % 97}", "amount": n * n % 1009}) for n in range(2000)]
    whole = lines * 2
    for at in range(count):
        first = at * 7 % len(lines)
        yield "\n".join(whole[first : first + LINES[cost]])


def _pipeline(blocks: Iterable[str]) -> list[int]:
    import forkmill as fm

    sums: list[int] = []
    fm.Pipeline().source(blocks).map(add_up, context="ipc_fork:2").sink(sums.append).run()
    return sums


def _map(blocks: Iterable[str]) -> list[int]:
    import forkmill as fm

    with fm.ProcessPool(2) as pool:
        return list(pool.map(add_up, blocks))


def _pool(blocks: Iterable[str]) -> list[int]:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(add_up, blocks)


def _main(way: str, cost: str, kind: str, count: str, cold: str, thread: str) -> None:
    ways: dict[str, Callable[[Iterable[str]], list[int]]] = {
        "pipeline": _pipeline, "map": _map, "pool": _pool,
    }  # fmt: skip
    blocks = list(_blocks(cost, int(count)))
    expected = sum(map(add_up, blocks))
    if thread == "1":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    __import__("multiprocessing.pool" if way == "pool" else "forkmill")  # that is not the question
    seconds = []
    for _ in range(1 if cold == "1" else 1 + _WARM):
        given: Any = blocks if kind == "list" else (block for block in blocks)
        begin = time.perf_counter()
        sums = ways[way](given)
        seconds.append(time.perf_counter() - begin)
        check(sum(sums), expected)
    print(seconds[0] if cold == "1" else min(seconds[1:]))


if __name__ == "__main__":
    _main(*sys.argv[1:])

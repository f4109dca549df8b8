"""What a task costs on the main paths, in figures that a busy machine does not change.

    python costs.py PATH COUNT METHOD    run a path with so many tasks, for a tracer to count
    python costs.py WAY COUNT            run a pipeline so, over so many items
    python costs.py stock COUNT          the work that instructions are compared with
    python costs.py counters             print what kernel and pool count themselves, as JSON

Used by unit/test_costs.py. Each path is a way that users take: a lone call, futures all at once,
the bulk call, and one message an item.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

import forkmill as fm

WORKERS = 2


def increment(x: int) -> int:
    return x + 1


def lone(pool: fm.ProcessPool, count: int) -> list[int]:
    return [pool.submit(increment, i).result() for i in range(count)]


def futures(pool: fm.ProcessPool, count: int) -> list[int]:
    waiting = [pool.submit(increment, i) for i in range(count)]
    return sorted(future.result() for future in as_completed(waiting))


def bulk(pool: fm.ProcessPool, count: int) -> list[int]:
    return list(pool.map(increment, range(count)))


def single(pool: fm.ProcessPool, count: int) -> list[int]:
    return list(pool.map(increment, range(count), chunksize=1))


PATHS: dict[str, Callable[[fm.ProcessPool, int], list[int]]] = {
    "lone": lone,
    "futures": futures,
    "bulk": bulk,
    "single": single,
}
COUNTS = {"lone": 500, "futures": 5000, "bulk": 100_000, "single": 10_000}


def run(pool: fm.ProcessPool, path: str, count: int) -> None:
    if PATHS[path](pool, count) != list(range(1, count + 1)):
        raise AssertionError(f"{path} gave wrong results")


# ---------------------------------------------------------------------- pipelines


async def increment_async(x: int) -> int:
    return x + 1


def fail_at_times(x: int) -> int:
    if x % 10 == 9:
        raise ValueError(x)
    return x


def _source(count: int) -> fm.Pipeline:
    return fm.Pipeline().source(range(count))


def send_on(x: int) -> Any:
    return fm.to("b", x)


def _routed(count: int, routing: str) -> fm.Pipeline:
    line = _source(count).map(increment, name="a", to=["b", "c"], routing=routing)
    line = line.map(increment, name="b", from_="a", to="id")
    return line.map(increment, name="c", from_="a", to="id").sink(id, from_=["b", "c"])


WAYS: dict[str, Callable[[int], object]] = {
    "run": lambda count: _source(count).map(increment).sink(id).run(),
    "stream": lambda count: list(_source(count).map(increment).stream()),
    "retry": lambda count: _source(count).map(increment, on_error=fm.retry(3)).sink(id).run(),
    "two sources": lambda count: (
        _source(count)
        .source(range(count), name="more")
        .map(increment, from_=["source", "more"])
        .sink(id)
        .run()
    ),
    "diamond": lambda count: (
        _source(count)
        .map(increment, name="a", from_="source", to="c")
        .map(increment, name="b", from_="source", to="c")
        .map(increment, name="c", from_=["a", "b"])
        .sink(id)
        .run()
    ),
    "async": lambda count: _source(count).map(increment_async).sink(id).run(),
    "fm.to": lambda count: _source(count).map(send_on).sink(id, name="b", from_=()).run(),
    "round robin": lambda count: _routed(count, "round_robin").run(),
    "balanced": lambda count: _routed(count, "balanced").run(),
    "skip": lambda count: _source(count).map(fail_at_times, on_error="skip").sink(id).run(),
    "loops": lambda count: (
        _source(count)
        .map(increment_async, context="async:100")
        .map(increment_async, context="async:100")
        .sink(id)
        .run()
    ),
    "threads": lambda count: (
        _source(count)
        .map(increment, context="thread:2")
        .map(increment, context="thread:2")
        .sink(id)
        .run()
    ),
    "processes": lambda count: _apart(count, increment).sink(id).run(),
    "processes, fm.to": lambda count: _apart(count, send_on).sink(id, name="b", from_=()).run(),
}


def _apart(count: int, fn: Callable[[int], object]) -> fm.Pipeline:
    return _source(count).map(fn, context="ipc_fork:2")


# ---------------------------------------------------------------------- measures


def stock(count: int) -> None:
    """As much work as to make, finish and read stock futures: what figures are compared with."""
    for i in range(count):
        future: Future[int] = Future()
        future.set_result(i)
        future.result()


def _kernel() -> dict[str, int]:
    """Reads and writes of this process, and how often its threads went to sleep."""
    io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    sleeps = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    return {"reads": int(io["syscr"]), "writes": int(io["syscw"]), "sleeps": sleeps}


def counters() -> dict[str, dict[str, float]]:
    """A task's reads, writes, sleeps, frames, turns, kicks and parks in this process, by path."""
    result: dict[str, dict[str, float]] = {}
    with fm.ProcessPool(WORKERS, start_method="fork") as pool:
        for path, count in COUNTS.items():
            run(pool, path, count // 10)
            costs: dict[str, float] = {}
            stats, kernel = pool.stats(), _kernel()
            run(pool, path, count)
            after, kernel_after = pool.stats(), _kernel()
            for name in ("frames_sent", "lead_turns", "kicks", "parks"):
                costs[name] = (getattr(after, name) - getattr(stats, name)) / count
            for name, value in kernel_after.items():
                costs[name] = (value - kernel[name]) / count
            result[path] = costs
    return result


def main(arguments: list[str]) -> None:
    if arguments == ["counters"]:
        print(json.dumps(counters()))
    elif arguments[0] in WAYS:
        WAYS[arguments[0]](int(arguments[1]))
    elif arguments[0] == "stock":
        stock(int(arguments[1]))
    else:
        path, count, method = arguments[0], int(arguments[1]), arguments[2]
        with fm.ProcessPool(WORKERS, start_method=method) as pool:
            run(pool, path, 64)
            run(pool, path, count)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    main(sys.argv[1:])

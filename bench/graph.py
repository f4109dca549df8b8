"""What does a function graph cost beside the loop that it stands for, and beside its peers?

Chains and maps of functions that do next to nothing, against a loop with a dict; what overlaps;
what goes to workers; what a cached result costs against a node of a millisecond.
"""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import forkmill as fm

from .graph_peers import chain_of, chains, side_by_side
from .harness import LESS, MORE, Bench, Case, Sample, Target, check, elapsed
from .peers import OURS

LOOP = "loop with a dict"
DICTS = "list of dicts"
BARE = "ProcessPool.map"
PIPELINE = "fm.Pipeline"
COPIES = "ProcessPool.map and two copies"
SEQUENTIAL = "one after another"
FORKS = "two bare forks"  # what the machine itself gives at that moment

TARGETS = (
    Target("graph: run of a 10-node chain", "run", 2, LOOP, at_most=True),
    Target("graph: map of 10,000 trivial items", "map", 2.5, DICTS, at_most=True, label="alone"),
    Target(
        "graph: map of 10,000 trivial items", "map2", 1.5, BARE, at_most=True, label="2 workers"
    ),
    Target(
        "graph: map of 10,000 trivial items", "threads", 8, DICTS, at_most=True, label="threads"
    ),
    Target("graph: what waits overlaps", "async_map", 8, SEQUENTIAL, label="10 items, async"),
    Target("graph: what waits overlaps", "async_run", 2.7, SEQUENTIAL, label="3 nodes, async"),
    Target("graph: what waits overlaps", "blocking", 3.5, SEQUENTIAL, label="8 items, 4 threads"),
    Target("graph: nested 10 x 10 on 4 threads", "nested", 0.9, label="share of ideal"),
    Target("graph: CPU-bound items, 2 workers", "cpu", 1.8, SEQUENTIAL),
    Target("graph: CPU-bound nodes, 2 workers", "cpu_nodes", 1.7, SEQUENTIAL),
    Target("graph: 80 MB constant", "constant", 1.3, BARE, at_most=True, label="second map"),
    Target("graph: 80 MB constant", "first", 1, COPIES, at_most=True, label="first map"),
    Target("graph: 80 MB constant", "sent", 1, at_most=True, label="first map, MB by pipe"),
    Target("graph: caching off, 80 MB input", "off", 1.2, "8 bytes", at_most=True),
    Target("graph: a hit against a node of 1 ms", "hit", 0.2, "the node", at_most=True),
    Target("graph: parent memory over 1,000,000 items", "memory", 10, at_most=True),
    Target("graph: chain of mixed contexts", "mixed", 1, PIPELINE, at_most=True),
)


def run(bench: Bench) -> None:
    """Ask."""
    bench.plan(18)
    _run(bench)
    _maps(bench)
    _overlap(bench)
    _processes(bench)
    _cache(bench)
    _memory(bench)
    _mixed(bench)


def _case(bench: Bench, key: str, title: str, unit: str, samples: dict[str, Sample]) -> None:
    better = MORE if unit == "share" else LESS
    bench.measure(Case(key, title, unit, better, samples, most_rounds=15))


def _each(job: Callable[[], Any], times: int, expected: Any = None) -> Sample:
    """Microseconds of one of so many."""

    def sample() -> float:
        got = job()  # what is made at the first call has been made
        began = time.perf_counter()
        for _ in range(times):
            got = job()
        seconds = time.perf_counter() - began
        if expected is not None:
            check(got, expected)
        return seconds / times * 1e6

    return sample


def _part(
    job: Callable[[list[int]], list[int]], values: list[int], added: int, part: int
) -> Sample:
    """Microseconds of all values, told by so many times fewer of them."""
    some = values[: max(1, len(values) // part)]
    one = _each(lambda: job(some)[-1], 1, some[-1] + added)
    return lambda: one() * len(values) / len(some)


# ------------------------------------------------------------------------ small things


def _run(bench: Bench) -> None:
    functions = chain_of(10)
    graph = fm.Graph(functions)
    names = [fn.__name__ for fn in functions]
    steps = list(zip(functions, ["v0", *names], names, strict=False))

    def loop() -> dict[str, int]:
        values = {"v0": 1}
        for fn, read, written in steps:
            values[written] = fn(values[read])
        return values

    inputs = {"v0": 1}
    times = bench.size(2000, 20)
    samples = {
        OURS: _each(lambda: graph.run(inputs)["v10"], times, 11),
        LOOP: _each(lambda: loop()["v10"], times, 11),
    }
    for name, peer in chains(10).items():
        samples[name] = _each(lambda peer=peer: peer.run(1), bench.size(50, 2), 11)
    _case(bench, "run", "run, 10-node chain", "us", samples)


def _dicts(functions: list[Any], values: Any) -> list[dict[str, int]]:
    one, two = functions
    rows = []
    for value in values:
        first = one(value)
        rows.append({"v1": first, "v2": two(first)})
    return rows


def _first(x: int) -> int:
    return x + 1


def _maps(bench: Bench) -> None:
    functions = chain_of(2)
    graph = fm.Graph(functions)
    values = list(range(bench.size(10_000, 50)))
    last = values[-1] + 2
    loop = _each(lambda: _dicts(functions, values)[-1]["v2"], 1, last)

    def ours(engine: Any = None) -> Sample:
        return _each(
            lambda: graph.map({"v0": values}, map_over="v0", engine=engine)[-1]["v2"], 1, last
        )

    title = f"map of {len(values):,} trivial items, 2 nodes"
    samples = {OURS: ours(), DICTS: loop}
    for name, peer in chains(2).items():
        samples[name] = _part(peer.map, values, 2, 50 if peer.singly else 1)
    _case(bench, "map", title, "us", samples)
    trivial = fm.Graph([_first])
    with (
        fm.LocalEngine("parallel:2", "parallel:2") as workers,
        fm.LocalEngine("threaded:2", "threaded:2") as threads,
        fm.ProcessPool(2) as pool,
    ):
        mapped = lambda: trivial.map({"x": values}, "x", engine=workers)[-1]["_first"]  # noqa: E731
        samples = {
            OURS: _each(mapped, 1, last - 1),
            BARE: _each(lambda: list(pool.map(_first, values))[-1], 1, last - 1),
        }
        both = {"processes": samples, "threads": {OURS: ours(threads), DICTS: loop}}
        for kind, number in (("processes", 1), ("threads", 2)):
            for name, peer in side_by_side(kind, number).items():
                part = 50 if name == "LangGraph" else 1
                both[kind][name] = _part(peer, values, number, part)
        _case(bench, "map2", f"{title.replace('2 nodes', '1 node')}, 2 workers", "us", samples)
        _case(bench, "threads", f"{title}, 2 threads", "us", both["threads"])


# ------------------------------------------------------------------------ what overlaps


def _overlap(bench: Bench) -> None:
    unit = 0.1 if not bench.quick else 0.002

    async def first(x: int) -> int:
        await asyncio.sleep(unit)
        return x

    async def second(first: int) -> int:
        await asyncio.sleep(unit / 2)
        return first

    def seconds(job: Callable[[], Any]) -> Sample:
        return lambda: elapsed(job)[0]

    items = {"x": list(range(10))}
    graph = fm.Graph([first, second])
    _case(bench, "async_map", "10 items, async nodes of 0.1 and 0.05 s", "s", {
        OURS: seconds(lambda: graph.map(items, map_over="x", engine="async")),
        SEQUENTIAL: seconds(lambda: graph.map(items, map_over="x")),
    })  # fmt: skip
    three = fm.Graph([fm.node(first, output_name=name, name=name) for name in "abc"])
    _case(bench, "async_run", "3 independent async nodes of 0.1 s", "s", {
        OURS: seconds(lambda: three.run({"x": 1}, engine="async")),
        SEQUENTIAL: seconds(lambda: three.run({"x": 1})),
    })  # fmt: skip

    def wait(x: int) -> int:
        time.sleep(unit)
        return x

    blocking = fm.Graph([wait])
    eight = {"x": list(range(8))}
    with fm.LocalEngine("threaded:4", "threaded:4") as threads:
        _case(bench, "blocking", "8 items that block for 0.1 s, 4 threads", "s", {
            OURS: seconds(lambda: blocking.map(eight, map_over="x", engine=threads)),
            SEQUENTIAL: seconds(lambda: blocking.map(eight, map_over="x")),
        })  # fmt: skip
        nested = fm.Graph(
            [fm.Graph([wait], name="cell").rename(x="xs", wait="all").as_node(map_over="xs")]
        )
        rows = {"xs": [list(range(10))] * 10}

        def share() -> float:
            took, _ = elapsed(lambda: nested.map(rows, map_over="xs", engine=threads))
            return 100 * unit / 4 / took

        _case(bench, "nested", "nested 10 x 10 on 4 threads", "share", {OURS: share})


# ---------------------------------------------------------------------- what is sent


def _burn(x: int) -> int:
    total = 0
    for n in range(x):
        total = (total * 31 + n) % 1_000_003
    return total


def _other(x: int) -> int:
    return _burn(x)


def _forked(parts: list[list[int]]) -> Sample:
    """Seconds of the same loop in so many children, with nothing between them and it."""

    def burn(part: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for x in part:
                    _burn(x)
                status = 0
            finally:
                os._exit(status)
        return pid

    def all_of_them() -> list[int]:
        children = [burn(part) for part in parts]
        return [os.waitpid(pid, 0)[1] for pid in children]

    def sample() -> float:
        seconds, statuses = elapsed(all_of_them)
        check(sum(statuses), 0)
        return seconds

    return sample


def _written() -> int | None:
    """Bytes that this process has written by system calls; None where that is not told."""
    try:
        with open("/proc/self/io") as file:
            return int(file.read().split("wchar:")[1].split()[0])
    except OSError:
        return None


def _look(x: int, table: bytes) -> int:
    return table[x]


def _processes(bench: Bench) -> None:
    work = [bench.size(400_000, 100)] * bench.size(64, 4)
    burn, look = fm.Graph([_burn]), fm.Graph([_look])
    table = bytes(bench.size(80_000_000, 100_000))
    items = list(range(bench.size(800, 8)))
    with fm.LocalEngine("parallel:2", "parallel:2") as warm, fm.ProcessPool(2) as pool:
        _case(bench, "cpu", "CPU-bound items, 2 workers", "s", {
            OURS: lambda: elapsed(lambda: burn.map({"x": work}, "x", engine=warm))[0],
            SEQUENTIAL: lambda: elapsed(lambda: burn.map({"x": work}, "x"))[0],
            FORKS: _forked([work[::2], work[1::2]]),
        })  # fmt: skip
        nodes = fm.Graph([_burn, _other])
        half = {"x": sum(work) // 2}
        _case(bench, "cpu_nodes", "2 CPU-bound nodes, 2 workers", "s", {
            OURS: lambda: elapsed(lambda: nodes.run(half, engine=warm))[0],
            SEQUENTIAL: lambda: elapsed(lambda: nodes.run(half))[0],
            FORKS: _forked([[half["x"]], [half["x"]]]),
        })  # fmt: skip
        with fm.share(table) as shared:
            bare = [(x, shared) for x in items]

            def again() -> Any:
                return look.map({"x": items, "table": table}, "x", engine=warm)

            def first() -> float:
                fresh = bytes(bytearray(table))
                return elapsed(lambda: look.map({"x": items, "table": fresh}, "x", engine=warm))[0]

            def copies() -> float:
                return elapsed(
                    lambda: (bytearray(table), bytearray(table), list(pool.starmap(_look, bare)))
                )[0]

            again()
            _case(bench, "constant", "800 items with an 80 MB constant, again", "s", {
                OURS: lambda: elapsed(again)[0],
                BARE: lambda: elapsed(lambda: list(pool.starmap(_look, bare)))[0],
            })  # fmt: skip
            for take in (first, copies) * 2:  # a machine's memory is slow at first
                take()
            samples = {OURS: first, COPIES: copies}
            _case(bench, "first", "800 items with a new 80 MB constant", "s", samples)

            def sent() -> float | None:
                before = _written()
                if before is None:
                    return None
                first()
                written = (_written() or 0) - before
                return (written - len(table) if written >= len(table) else written) / 1e6

            title = "the same: what this process writes but the constant's one copy"
            _case(bench, "sent", title, "MB", {OURS: sent})


# ------------------------------------------------------------------------ what is kept


def _milli(x: int) -> int:
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    return x


def _size(x: bytes) -> int:
    return len(x)


def _cache(bench: Bench) -> None:
    times = bench.size(200, 3)
    off = fm.Graph([_size])
    large, small = {"x": bytes(bench.size(80_000_000, 1000))}, {"x": b"12345678"}
    _case(bench, "off", "caching off: run with an input of 80 MB", "us", {
        OURS: _each(lambda: off.run(large), 10 * times),
        "8 bytes": _each(lambda: off.run(small), 10 * times),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        engine = fm.LocalEngine(cache=fm.DiskCache(folder))
        kept, plain = fm.Graph([fm.node(_milli, cache=True)]), fm.Graph([_milli])
        kept.run({"x": 1}, engine=engine)
        _case(bench, "hit", "a hit in a folder, against a node of 1 ms", "us", {
            OURS: _each(lambda: kept.run({"x": 1}, engine=engine), times),
            "the node": _each(lambda: plain.run({"x": 1}), times),
        })  # fmt: skip


# ------------------------------------------------------------------------ long, mixed


def _memory(bench: Bench) -> None:
    count = bench.size(1_000_000, 200)
    graph = fm.Graph([_first])

    def grown() -> float:
        rows = graph.imap({"x": range(count)}, map_over="x")
        for _ in range(count // 10):
            next(rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for row in rows:
            last = row
        check(last["_first"], count)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    case = Case("memory", f"imap of {count:,} items: growth", "MB", LESS, {OURS: grown})
    case.most_rounds = 2
    bench.measure(case)


def _one(x: int) -> int:
    return x + 1


def _two(_one: int) -> int:
    return _one * 2


def _three(_two: int) -> int:
    return _two - 1


def _mixed(bench: Bench) -> None:
    values = range(bench.size(20_000, 50))
    graph = fm.Graph([
        fm.node(_one, context="thread:1"), fm.node(_two, context="ipc_fork:2"),
        fm.node(_three, context="thread:1"),
    ])  # fmt: skip

    def ours() -> float:
        seconds, rows = elapsed(lambda: graph.map({"x": values}, "x", output_name="_three"))
        check(rows[-1]["_three"], values[-1] * 2 + 1)
        return seconds

    def pipeline() -> float:
        got: list[int] = []
        line = fm.Pipeline().source(values)
        line.map(_one, context="thread:1").map(_two, context="ipc_fork:2")
        line.map(_three, context="thread:1").sink(got.append)
        seconds, _ = elapsed(line.run)
        check(len(got), len(values))
        return seconds

    title = f"{len(values):,} items through a thread, 2 workers and a thread"
    _case(bench, "mixed", title, "s", {OURS: ours, PIPELINE: pipeline})

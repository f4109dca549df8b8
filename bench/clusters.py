"""What does a graph, and a pipeline, cost on Dask and on Ray, beside the same written by hand?

A cluster of two workers on this machine. A diamond of four functions over 1,000 numbers: as a graph
whose items go there whole; by hand as one function over as many lists as there are workers (of
bytes on Dask, which is slow with lists), and over twice as many; and as the same graph in two
processes of ours. Then trivial items through a warm stage there and in ours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import forkmill as fm

from . import work
from .harness import LESS, Bench, Case, Sample, Skip, Target, check, elapsed
from .peers import OURS

LOCAL = "forkmill on this machine"
ENGINES = {"dask": ("Dask", "distributed"), "ray": ("Ray", "ray")}  # case -> title, module
_LIMITS = {"dask": (25.0, 30.0), "ray": (25.0, 6.0)}  # of the graph, of the pipeline, against ours


def _by_hand(engine: str) -> str:
    return f"{ENGINES[engine][0]}, by hand"


TARGETS = tuple(
    target
    for engine, (graph, line) in _LIMITS.items()
    for target in (
        Target("a graph on a cluster", engine, 1.3, _by_hand(engine), at_most=True, label=engine),
        Target("a graph on a cluster", engine, graph, LOCAL, at_most=True, label=engine),
        Target("items through a stage on a cluster", f"{engine}_pipeline", line, LOCAL,
               at_most=True, label=engine),
    )
)  # fmt: skip
_CALLS = 1  # by hand, for each worker: that is the fastest where all items take as long
_WIDE = 50_000  # items that may wait: what a pipeline for throughput would ask for


def run(bench: Bench) -> None:
    """Ask."""
    engines = [name for name, (_, module) in ENGINES.items() if importlib.util.find_spec(module)]
    if not engines:
        raise Skip("neither distributed nor ray is installed")
    bench.plan(2 * len(engines))
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home  # Ray keeps a token there
        for engine in engines:
            with _STARTED[engine](bench.workers) as (client, spec):
                ways = [_MADE[engine](client, more * bench.workers) for more in (_CALLS, 2)]
                _graphs(bench, engine, spec, *ways)
                _lines(bench, engine, spec)


def _graphs(
    bench: Bench, engine: str, spec: fm.Spec, by_hand: Callable[..., Any], twice: Callable[..., Any]
) -> None:
    count = bench.size(1000, 40)
    graph, expected = fm.Graph([add_one, halves, thirds, joined]), chain(range(count))
    here = f"ipc_fork:{bench.workers}"
    with fm.LocalEngine(spec, spec) as there, fm.LocalEngine(here, here) as local:

        def ours(where: Any) -> list[int]:
            rows = graph.map({"x": range(count)}, "x", output_name="joined", engine=where)
            return list(rows["joined"])

        def sample(way: Callable[[Any], list[int]], given: Any) -> Sample:
            def take() -> float:
                seconds, found = elapsed(lambda: way(given))
                check(found, expected)
                return seconds * 1e3

            for _ in range(3):
                take()  # warm: code is there, and how large chunks shall be is known
            return take

        samples = {
            OURS: sample(ours, there),
            _by_hand(engine): sample(by_hand, count),
            LOCAL: sample(ours, local),
            f"{_by_hand(engine)}, two calls a worker": sample(twice, count),
        }
        title = f"a diamond of four functions over {count:,} numbers, {ENGINES[engine][0]}"
        bench.measure(Case(engine, title, "ms", LESS, samples, most_rounds=25))


def _lines(bench: Bench, engine: str, spec: fm.Spec) -> None:
    count, here = bench.size(500_000, 200), fm.ipc_fork(bench.workers)
    pools = {OURS: fm.named_pool("there", spec), LOCAL: fm.named_pool("here", here)}

    def sample(pool: str, **wide: int) -> Sample:
        def take() -> float:
            number = total = 0

            def add(item: int) -> None:
                nonlocal number, total
                number, total = number + 1, total + item

            line = fm.Pipeline().source(range(count)).map(work.increment, context=pool, **wide)
            line = line.sink(add, **wide)
            seconds, _ = elapsed(line.run)
            check((number, total), (count, count * (count + 1) // 2))
            return seconds / count * 1e6

        take()
        return take

    with contextlib.ExitStack() as stack:
        for pool in pools.values():
            stack.enter_context(pool)
        samples = {
            OURS: sample("there", queue_size=_WIDE),
            LOCAL: sample("here", queue_size=_WIDE),
            f"{OURS}, default queues": sample("there"),
            f"{LOCAL}, default queues": sample("here"),
        }
        title = f"{count:,} integers through a warm stage, {ENGINES[engine][0]}"
        bench.measure(Case(f"{engine}_pipeline", title, "us", LESS, samples, most_rounds=9))


# ---------------------------------------------------------------------- what is asked


def add_one(x: int) -> int:
    return x + 1


def halves(add_one: int) -> int:
    return add_one // 2


def thirds(add_one: int) -> int:
    return add_one // 3


def joined(halves: int, thirds: int) -> int:
    return halves + thirds


def chain(xs: Any) -> list[int]:
    """All four, as one would write them for an engine."""
    found = []
    for x in xs:
        one = add_one(x)
        found.append(joined(halves(one), thirds(one)))
    return found


def chain_of_bytes(data: bytes) -> bytes:
    """The same: Dask looks into lists and takes ten times as long with them as with bytes."""
    return pickle.dumps(chain(pickle.loads(data)))


def _parts(count: int, calls: int) -> list[list[int]]:
    size = -(-count // calls)
    return [list(range(at, min(at + size, count))) for at in range(0, count, size)]


# ---------------------------------------------------------------------- the engines


@contextlib.contextmanager
def _dask(workers: int) -> Iterator[tuple[Any, fm.Spec]]:
    from distributed import Client, LocalCluster

    options: Any = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with (
        LocalCluster(n_workers=workers, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client, fm.on_dask(cluster.scheduler_address, workers)


def _by_hand_on_dask(client: Any, calls: int) -> Callable[[int], list[int]]:
    def by_hand(count: int) -> list[int]:
        parts = [pickle.dumps(part) for part in _parts(count, calls)]
        futures = client.map(chain_of_bytes, parts, pure=False)
        return [x for part in client.gather(futures) for x in pickle.loads(part)]

    return by_hand


@contextlib.contextmanager
def _ray(workers: int) -> Iterator[tuple[Any, fm.Spec]]:
    import ray

    ray.init(
        address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False,
        logging_level="error",
    )  # fmt: skip
    try:
        yield ray, fm.on_ray(workers)
    finally:
        ray.shutdown()


def _by_hand_on_ray(ray: Any, calls: int) -> Callable[[int], list[int]]:
    remote = ray.remote(chain)

    def by_hand(count: int) -> list[int]:
        parts = ray.get([remote.remote(part) for part in _parts(count, calls)])
        return [x for part in parts for x in part]

    return by_hand


_STARTED: Any = {"dask": _dask, "ray": _ray}
_MADE: Any = {"dask": _by_hand_on_dask, "ray": _by_hand_on_ray}

"""What of a graph runs at the same time, where, and for how long: scenarios 26 to 34."""

from __future__ import annotations

import concurrent.futures as cf
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import graph_tasks as g
from graph_tasks import (
    ASYNC,
    FORK,
    OVERLAPPING,
    PARALLEL,
    PROCESSES,
    SEQUENTIAL,
    THREADED,
    everywhere,
    in_engines,
)
from tasks import eventually

np = pytest.importorskip("numpy")


def meeting(number: int) -> fm.Graph:
    """Nodes that are ready when so many of them run at the same time."""
    return fm.Graph(
        [
            fm.node(
                lambda x, log, number, i=i: g.meet(i, log, number), output_name=f"n{i}"
            ).options(name=f"n{i}")
            for i in range(number)
        ]
    )


# ------------------------------------------------------------------ 26: at the same time


@in_engines("threaded:3", "parallel:3", "cow_fork:3")
def test_26_independent_nodes_of_a_run_overlap(engine: str, tmp_path: Path) -> None:
    graph = meeting(3)
    result = graph.run({"x": 0, "log": g.Log(tmp_path), "number": 3}, engine=engine)
    assert {name: result[name] for name in ("n0", "n1", "n2")} == {"n0": 0, "n1": 1, "n2": 2}


@in_engines("threaded:3", "parallel:3", "cow_fork:3")
def test_26_items_of_a_map_overlap(engine: str, tmp_path: Path) -> None:
    graph = fm.Graph([g.meet])
    rows = graph.map(
        {"x": range(3), "log": g.Log(tmp_path), "number": 3}, map_over="x", engine=engine
    )
    assert rows["meet"] == [0, 1, 2]


def test_26_coroutines_of_a_run_and_of_a_map_overlap() -> None:
    import asyncio

    here = 0

    async def wait_for_all(x: int, number: int) -> int:
        nonlocal here
        here += 1
        while here < number:
            await asyncio.sleep(0.001)
        return x

    rows = fm.Graph([wait_for_all]).map(
        {"x": range(10), "number": 10}, map_over="x", engine="async"
    )
    assert rows["wait_for_all"] == list(range(10))
    here = 0
    nodes = [
        fm.node(lambda x, number: wait_for_all(x, number), output_name=f"n{i}") for i in range(3)
    ]
    assert len(fm.Graph(nodes).run({"x": 1, "number": 3}, engine="async")) == 3


@in_engines("threaded:2", "parallel:2", "cow_fork:2")
@pytest.mark.parametrize("shape", ["map", "run", "nested"])
def test_26_no_more_than_the_budget_at_once(engine: str, shape: str, tmp_path: Path) -> None:
    log = g.Log(tmp_path)
    if shape == "map":
        graph = fm.Graph([g.peak, fm.node(lambda x, log: g.peak(x, log), output_name="other")])
        graph.map({"x": range(12), "log": log}, map_over="x", engine=engine)
    elif shape == "run":
        nodes = [fm.node(lambda x, log: g.peak(x, log), output_name=f"n{i}") for i in range(8)]
        fm.Graph(nodes).run({"x": 1, "log": log}, engine=engine)
    else:
        cell = fm.Graph([g.peak], name="cell")
        row = fm.Graph([cell.rename(x="xs", peak="row").as_node(map_over="xs")], name="row")
        table = fm.Graph([row.rename(xs="xss", row="rows").as_node(map_over="xss")])
        result = table.run({"xss": [list(range(5))] * 5, "log": log}, engine=engine)
        assert result["rows"] == [list(range(5))] * 5
    assert g.highest(log) == 2


@in_engines("threaded:4", "parallel:4")
def test_26_ten_times_ten_on_four(engine: str, tmp_path: Path) -> None:
    log = g.Log(tmp_path)
    cell = fm.Graph([g.peak], name="cell")
    rows = fm.Graph([cell.rename(x="xs", peak="row").as_node(map_over="xs")]).map(
        {"xs": [list(range(10))] * 10, "log": log}, map_over="xs", engine=engine
    )
    assert rows["row"] == [list(range(10))] * 10
    assert g.highest(log) == 4


# ------------------------------------------------------------------------- overlap (11)


@in_engines(*OVERLAPPING)
def test_11_no_finished_item_waits_for_a_slow_one(engine: str, tmp_path: Path) -> None:
    def first(x: int, log: Any) -> int:
        if x == 0:  # it waits until all others are through both nodes
            eventually(lambda: len(log.lines) >= 30)
        return x

    def second(first: int, log: Any) -> int:
        log("second", first)
        return first

    engines = fm.LocalEngine(engine, "sequential", contexts={"second": "thread:2"})
    graph = fm.Graph([first, second])
    log = g.Log(tmp_path)
    rows = graph.map({"x": range(31), "log": log}, map_over="x", engine=engines)
    assert rows["second"] == list(range(31))


# ------------------------------------------------------------------ 30: whose executor


class Counting(cf.ThreadPoolExecutor):
    submitted = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
        self.submitted += 1
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize("where", ["node", "map"])
def test_30_a_callers_executor_is_used_and_never_shut_down(where: str) -> None:
    with Counting(2) as executor:
        engine = (
            fm.LocalEngine(map_executor=executor)
            if where == "map"
            else fm.LocalEngine(node_executor=executor)
        )
        graph = fm.Graph([g.double, g.thread_of])
        for _ in range(2):
            rows = graph.map({"x": range(5)}, map_over="x", engine=engine)
            assert rows["y"] == [0, 2, 4, 6, 8]
            assert threading.get_ident() not in rows["thread_of"]
        with engine:
            graph.run({"x": 1}, engine=engine)
        with pytest.raises(ValueError):
            fm.Graph([g.fail_on_three]).map({"x": range(5)}, map_over="x", engine=engine)
        rows = graph.imap({"x": range(100)}, map_over="x", engine=engine)
        next(rows)
        rows.close()
        assert executor.submitted > 0
        assert executor.submit(int, "5").result() == 5


@in_engines(PARALLEL)
def test_30_workers_stay_warm_within_an_engine(engine: str) -> None:
    graph = fm.Graph([g.pid_of])
    with fm.LocalEngine(engine, engine) as warm:
        pids = [
            set(graph.map({"x": range(20)}, map_over="x", engine=warm)["pid_of"]) for _ in range(3)
        ]
    assert len(set.union(*pids)) <= 2
    assert os.getpid() not in pids[0]


def test_30_a_named_pool_stays_warm_and_open() -> None:
    graph = fm.Graph([g.pid_of])
    with fm.named_pool("graphs", "ipc_fork:2") as pool:
        seen: set[int] = set()
        for _ in range(3):
            seen |= set(graph.map({"x": range(20)}, map_over="x", engine=pool)["pid_of"])
        assert len(seen) <= 2 and os.getpid() not in seen


@in_engines(THREADED, *PROCESSES)
@pytest.mark.parametrize("end", ["error", "close", "drop", "done"])
def test_30_what_an_engine_opened_is_closed(engine: str, end: str) -> None:
    graph = fm.Graph([fm.node(g.fail_on_three, output_name="out")])
    values: Any = range(3) if end != "error" else range(5)
    rows = graph.imap({"x": values}, map_over="x", engine=engine)
    if end in ("error", "done"):
        got = []
        try:
            got += rows
        except ValueError:
            assert end == "error"
    else:
        next(rows)
        if end == "close":
            rows.close()
    del rows  # conftest.py looks for processes, threads and descriptors that are left


# --------------------------------------------------------------- 31: AsyncExecutor


def test_31_the_async_executor_is_an_executor() -> None:
    async def add(x: int, y: int = 1) -> int:
        return x + y

    called = []
    with fm.AsyncExecutor(max_workers=2) as executor:
        assert isinstance(executor, cf.Executor)
        future = executor.submit(add, 1, y=2)
        assert future.result(10) == 3
        future.add_done_callback(called.append)
        assert called == [future]
        assert list(executor.map(add, range(3))) == [1, 2, 3]
        assert executor.submit(len, "abc").result(10) == 3
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 // 0).result(10)
    with pytest.raises(RuntimeError):
        executor.submit(add, 1)


def test_31_queued_work_can_be_cancelled() -> None:
    import asyncio

    began, end = threading.Event(), threading.Event()

    async def wait() -> str:
        began.set()
        while not end.is_set():
            await asyncio.sleep(0.001)
        return "done"

    executor = fm.AsyncExecutor(max_workers=1)
    first = executor.submit(wait)
    assert began.wait(10)
    queued, other = executor.submit(wait), executor.submit(wait)
    assert queued.cancel()
    executor.shutdown(wait=False, cancel_futures=True)
    end.set()
    executor.shutdown(wait=True)
    assert queued.cancelled() and other.cancelled()
    assert first.result() == "done"


@pytest.mark.parametrize("where", ["node", "map"])
def test_31_any_executor_can_carry_a_graph(where: str) -> None:
    with fm.AsyncExecutor(max_workers=4) as executor:
        options: Any = {f"{where}_executor": executor}
        rows = fm.Graph([g.double_async, g.increment]).map(
            {"x": range(6)}, map_over="x", engine=fm.LocalEngine(**options)
        )
        assert rows["z"] == [1, 3, 5, 7, 9, 11]


# ----------------------------------------------------------- 32: a context for each node


class Client:
    """What cannot be sent anywhere."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def fetch(self, x: int) -> tuple[int, int]:
        with self.lock:
            return x, os.getpid()


def test_32_each_node_where_it_belongs() -> None:
    def fetch(x: int, client: Any) -> Any:
        return client.fetch(x)

    def crunch(fetch: Any) -> Any:
        return fetch[0] * 2, os.getpid()

    def finish(crunch: Any, fetch: Any) -> Any:
        return crunch[0] + fetch[0], os.getpid()

    graph = fm.Graph([
        fm.node(fetch, context="thread:2"), fm.node(crunch, context="parallel:2"), finish,
    ])  # fmt: skip
    inputs = {"x": range(20), "client": Client()}
    for engine in (None, "sequential", "threaded:2"):
        rows = graph.map(inputs, map_over="x", engine=engine)
        assert [row["finish"][0] for row in rows] == [3 * x for x in range(20)]
        assert {row["fetch"][1] for row in rows} == {os.getpid()}
        assert os.getpid() not in {row["crunch"][1] for row in rows}
    assert graph.run({"x": 2, "client": Client()})["finish"][0] == 6


def test_32_contexts_of_the_engine_win() -> None:
    graph = fm.Graph([fm.node(g.pid_of, context="parallel:2"), g.thread_of])
    engine = fm.LocalEngine(contexts={"pid_of": "thread:1", "thread_of": "parallel:1"})
    row = graph.run({"x": 1}, engine=engine)
    assert row["pid_of"] == os.getpid()
    with pytest.raises(fm.BuildError, match="nowhere"):
        graph.run({"x": 1}, engine=fm.LocalEngine(contexts={"nowhere": "thread"}))


@in_engines("parallel:2", "threaded:2")
def test_32_a_chain_is_one_call(engine: str) -> None:
    graph = fm.Graph([
        fm.node(lambda x: (os.getpid(), threading.get_ident(), x), output_name="a"),
        fm.node(lambda a: (os.getpid(), threading.get_ident(), a), output_name="b"),
    ])  # fmt: skip
    for row in graph.map({"x": range(20)}, map_over="x", engine=engine):
        assert row["b"][:2] == row["a"][:2]


# ------------------------------------------------------------------- 33: once a worker


@everywhere
def test_33_a_resource_is_made_once_a_worker(engine: str, tmp_path: Path) -> None:
    log = g.Log(tmp_path)
    handle = fm.per_worker(g.Resource, log, close=g.close_resource)
    graph = fm.Graph([g.use, fm.node(lambda use, resource: use, output_name="again")])
    rows = graph.map({"x": range(20), "resource": handle}, map_over="x", engine=engine)
    assert rows["again"] == list(range(1, 21))
    made = [line for line in log.lines if line.startswith("made")]
    assert 1 <= len(made) == len(set(made)) <= (20 if engine == FORK else 2)
    if engine in PROCESSES:
        assert f"made {os.getpid()}" not in made
    if engine == PARALLEL:  # a fork has no end of its own
        assert len([line for line in log.lines if line.startswith("closed")]) == len(made)
    bound = graph.bind(resource=fm.per_worker(g.Resource, log))
    assert bound.run({"x": 1}, engine=engine)["again"] == 2


@everywhere
def test_33_a_resource_that_cannot_be_made_is_told_as_such(engine: str, tmp_path: Path) -> None:
    handle = fm.per_worker(g.failing_resource, g.Log(tmp_path))
    graph = fm.Graph([g.use])
    rows = graph.map(
        {"x": range(3), "resource": handle}, map_over="x", on_error="skip", engine=engine
    )
    for failure in rows["use"]:
        assert "no such model" in str(failure.error)
        assert failure.stage == "use"


# --------------------------------------------------------------------------- 34: batch


def batched(x: list[int], k: int, log: Any = None) -> list[int]:
    if log is not None:
        log(len(x), type(x).__name__, type(k).__name__)
    return [n * k for n in x]


@everywhere
def test_34_a_batch_gives_what_the_single_form_gives(engine: str, tmp_path: Path) -> None:
    log = g.Log(tmp_path)
    graph = fm.Graph([g.double, fm.node(batched, batch=True, output_name="b")])
    rows = graph.map({"x": range(30), "k": 3, "log": log}, map_over="x", engine=engine)
    assert rows["b"] == [n * 3 for n in range(30)]
    sizes = [int(line.split()[0]) for line in log.lines]
    assert sum(sizes) == 30
    assert max(sizes) > 1
    assert {tuple(line.split()[1:]) for line in log.lines} == {("list", "int")}
    assert graph.bind(k=3).run({"x": 2}, engine=engine)["b"] == 6


@everywhere
def test_34_what_is_wrong_with_a_batch(engine: str) -> None:
    short = fm.node(lambda x: x[1:], batch=True, output_name="out", name="short")
    with pytest.raises(Exception) as error:
        fm.Graph([short]).map({"x": range(4)}, map_over="x", engine=engine)
    assert "short" in str(error.value) + "".join(getattr(error.value, "__notes__", ()))
    bad = fm.node(lambda x: 1 // 0, batch=True, output_name="out", name="bad")
    rows = fm.Graph([bad]).map({"x": range(4)}, map_over="x", on_error="skip", engine=engine)
    assert [type(one.error) for one in rows["out"]] == [ZeroDivisionError] * 4
    assert [one.index for one in rows["out"]] == [0, 1, 2, 3]


@everywhere
def test_34_two_outputs_of_a_batch(engine: str) -> None:
    node = fm.node(lambda x: [(n, -n) for n in x], batch=True, output_name=("a", "b"), name="two")
    rows = fm.Graph([node]).map({"x": range(5)}, map_over="x", engine=engine)
    assert rows["a"] == [0, 1, 2, 3, 4] and rows["b"] == [0, -1, -2, -3, -4]


# ------------------------------------------------------------------------ constants (10)


class Counted:
    """Counts how often it is encoded here, and decoded elsewhere."""

    encoded = 0

    def __init__(self, log: g.Log, size: int) -> None:
        self.log = log
        self.data = b"x" * size

    def __getstate__(self) -> Any:
        type(self).encoded += 1
        return self.__dict__

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        self.log("decoded", os.getpid())


def test_10_a_constant_is_encoded_once_and_sent_once_to_a_worker(tmp_path: Path) -> None:
    log = g.Log(tmp_path)
    constant = Counted(log, 100_000)
    Counted.encoded = 0
    graph = fm.Graph([fm.node(lambda x, c: len(c.data) + x, output_name="out")])
    rows = graph.map({"x": range(200), "c": constant}, map_over="x", engine="parallel:2")
    assert rows["out"] == [100_000 + x for x in range(200)]
    assert Counted.encoded <= 2  # whether it can be sent, and once in earnest
    decoded = [line for line in log.lines if line != f"decoded {os.getpid()}"]
    assert len(decoded) == len(set(decoded)) <= 2


@in_engines(*PROCESSES)
def test_10_only_what_a_group_reads_is_sent(engine: str) -> None:
    lock = threading.Lock()  # it would fail to travel
    graph = fm.Graph([
        fm.node(lambda x, unsendable: x, output_name="here", context="thread:1"),
        fm.node(lambda x: os.getpid(), output_name="there", context=engine),
    ])  # fmt: skip
    rows = graph.map({"x": range(4), "unsendable": lock}, map_over="x")
    assert rows["here"] == [0, 1, 2, 3]
    assert os.getpid() not in rows["there"]


# ------------------------------------------------------------------------- handles


def slowly(x: int) -> int:
    time.sleep(0.01)
    return x


@in_engines(SEQUENTIAL, ASYNC, THREADED, PARALLEL, FORK)
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_handles_end_a_run_early(engine: str, how: str) -> None:
    def numbers() -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    handle = fm.Graph([slowly]).start_map({"x": numbers()}, map_over="x", engine=engine)
    assert not handle.done()
    with pytest.raises(TimeoutError):
        handle.result(0.05)
    getattr(handle, how)()
    eventually(handle.done)

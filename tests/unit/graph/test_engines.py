"""Engines: the same results wherever calls run, whatever finishes first, whatever fails."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import graph_nodes as nodes
from graph_nodes import Lone, Peak

ENGINES: dict[str, Any] = {
    "here": lambda: fm.LocalEngine(),
    "threads": lambda: "threaded:2",
    "processes": lambda: "parallel:2",
    "async": lambda: "async",
    "forks": lambda: "cow_fork:2",
    "node threads": lambda: fm.LocalEngine("threaded:2"),
    "node processes": lambda: fm.LocalEngine("parallel:2"),
    "node async": lambda: fm.LocalEngine("async"),
    "item threads": lambda: fm.LocalEngine(map_executor="thread:2"),
    "any executor": Lone,
}
PROCESSES = ("processes", "forks", "node processes")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    return ENGINES[request.param]()


CHAIN = fm.Graph([nodes.double, nodes.plus, nodes.both])
MIXED = fm.Graph([
    nodes.double,
    fm.node(nodes.plus, context="thread:2"),
    fm.node(nodes.both, context="cow_fork:2"),
])  # fmt: skip


def both(x: int) -> int:
    return 2000 * x + 2 * x + 1


# ------------------------------------------------------------------------------ results


def test_a_run_is_the_same_everywhere(engine: Any) -> None:
    assert CHAIN.run({"x": 3}, engine=engine) == {"double": 6, "plus": 7, "both": 6007}
    assert CHAIN.run({"x": 3}, "plus", engine=engine) == {"plus": 7}


@pytest.mark.parametrize("graph", [CHAIN, MIXED], ids=["one context", "several"])
def test_rows_come_in_the_order_of_the_items(engine: Any, graph: fm.Graph) -> None:
    number = 40 if graph is CHAIN else 8  # forks of this process take their time
    expected = [{"both": both(x)} for x in range(number)]
    assert graph.map({"x": range(number)}, "x", output_name="both", engine=engine) == expected
    source = (x for x in range(number))
    assert list(graph.imap({"x": source}, "x", output_name="both", engine=engine)) == expected
    assert graph.map({"x": []}, "x", engine=engine) == []


def test_several_outputs_and_constants(engine: Any) -> None:
    graph = fm.Graph([nodes.divided])
    rows = graph.map({"x": [10, 11], "by": 4}, "x", engine=engine)
    assert rows == [{"quotient": 2, "rest": 2}, {"quotient": 2, "rest": 3}]
    rows = graph.map({"x": [7, 9], "by": [2, 4]}, ["x", "by"], "product", engine=engine)
    assert rows["rest"] == [1, 3, 1, 1]


def test_nested_maps(engine: Any) -> None:
    inner = fm.Graph([nodes.tenfold, nodes.shifted], name="each")
    graph = fm.Graph([
        fm.node(nodes.numbers, output_name="v"), nodes.base, inner.as_node(map_over="v"),
        nodes.total,
    ])  # fmt: skip
    assert graph.run({"n": 3}, "total", engine=engine) == {"total": 930}
    rows = graph.map({"n": [0, 1, 2, 3]}, "n", output_name="total", engine=engine)
    assert rows["total"] == [0, 100, 410, 930]


def test_a_context_of_its_own_wins_and_contexts_over_that() -> None:
    graph = fm.Graph([fm.node(nodes.pid, context="parallel:1")])
    assert graph.run({"x": 1})["pid"] != os.getpid()
    engine = fm.LocalEngine("parallel:1", contexts={"pid": "sequential"})
    assert graph.run({"x": 1}, engine=engine)["pid"] == os.getpid()


def test_generators_and_exceptions_are_values(engine: Any) -> None:
    if isinstance(engine, str) and engine != "threaded:2" and engine != "async":
        pytest.skip("a generator cannot be sent")
    if isinstance(engine, fm.LocalEngine) and "ipc_fork" in repr(engine):
        pytest.skip("a generator cannot be sent")

    def made(x: int) -> Iterator[int]:
        return (each for each in range(x))

    row = fm.Graph([made]).run({"x": 3}, engine=engine)
    assert list(row["made"]) == [0, 1, 2]


def test_an_exception_that_is_returned_is_a_value(engine: Any) -> None:
    kept = fm.Graph([fm.node(lambda x: ValueError(x), output_name="error")])
    found = kept.map({"x": ["a", "b"]}, "x", engine=engine)
    assert [(type(e), e.args) for e in found["error"]] == [
        (ValueError, ("a",)),
        (ValueError, ("b",)),
    ]


# ------------------------------------------------------------------------------ failures


BROKEN = fm.Graph([nodes.three_fails, nodes.behind, nodes.double, nodes.mixed])


def test_a_failed_item_is_recorded_and_what_depends_on_it_is_not_called(engine: Any) -> None:
    rows = BROKEN.map({"x": range(6)}, "x", on_error="skip", engine=engine)
    assert [row["double"] for row in rows] == [0, 2, 4, 6, 8, 10]
    failure = rows[3]["three_fails"]
    assert isinstance(failure, fm.Failure)
    assert rows[3]["behind"] is failure and rows[3]["mixed"] is failure
    assert (failure.stage, failure.index, failure.item) == ("three_fails", 3, {"x": 3})
    assert set(failure.outputs) == {"three_fails", "behind", "mixed"}
    assert rows[4]["mixed"] == 13
    assert rows.failures == [failure]
    with pytest.raises(ValueError, match="it is three"):
        failure.reproduce()


def test_the_first_failure_in_item_order_is_raised(engine: Any) -> None:
    def late(x: int) -> int:
        if x in (5, 30):
            time.sleep(0.02 if x == 5 else 0)
            raise ValueError(x)
        return x

    for _ in range(3):
        with pytest.raises(ValueError, match="5") as caught:
            fm.Graph([late]).map({"x": range(200)}, "x", engine=engine)
        assert caught.value.failure.index == 5  # type: ignore[attr-defined]
        assert "item 5" in "".join(caught.value.__notes__)


def test_in_a_run_the_first_step_that_fails_is_raised(engine: Any) -> None:
    def a_slow(x: int) -> int:
        time.sleep(0.05)
        raise ValueError("the first")

    def b_quick(x: int) -> int:
        raise KeyError("the second")

    with pytest.raises(ValueError, match="the first"):
        fm.Graph([b_quick, a_slow]).run({"x": 1}, engine=engine)


def test_what_does_not_depend_on_a_failure_still_runs_in_a_torn_group() -> None:
    def left(x: int) -> int:
        raise ValueError("left")

    def end_of_left(left: int) -> int:
        return left

    def end_of_right(right: int) -> int:
        return right + 1

    graph = fm.Graph([
        fm.node(left, context="thread:1"), fm.node(lambda x: x, output_name="right", name="right",
                                                   context="thread:1"),
        end_of_left, end_of_right,
    ])  # fmt: skip
    rows = graph.map({"x": [1, 2]}, "x", on_error="skip", engine="threaded:2")
    assert rows["end_of_right"] == [2, 3]
    assert all(isinstance(each, fm.Failure) for each in rows["end_of_left"])


def test_failures_of_inner_items(engine: Any) -> None:
    inner = fm.Graph([nodes.two_fails], name="each")
    source = fm.node(nodes.numbers, output_name="v")
    skipping = fm.Graph([source, inner.as_node(map_over="v", on_error="skip"), nodes.kinds])
    rows = skipping.map({"n": [2, 4]}, "n", output_name="kinds", engine=engine)
    assert rows["kinds"] == [["int", "int"], ["int", "int", "Failure", "int"]]
    raising = fm.Graph([source, inner.as_node(map_over="v"), nodes.kinds])
    rows = raising.map({"n": [2, 4, 1]}, "n", output_name="kinds", on_error="skip", engine=engine)
    failure = rows[1]["kinds"]
    assert (failure.stage, failure.index, failure.item) == ("each.two_fails", 1, {"v": 2})
    assert rows[2]["kinds"] == ["int"]
    with pytest.raises(ValueError, match="inner two"):
        raising.map({"n": [2, 4, 1]}, "n", engine=engine)


def test_what_an_input_raises_comes_after_the_rows_before_it(engine: Any) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise KeyError("input")

    seen = []
    with pytest.raises(KeyError, match="input"):
        for row in CHAIN.imap({"x": source()}, "x", output_name="plus", engine=engine):
            seen.append(row["plus"])
    assert seen == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_death_costs_its_item(name: str) -> None:
    graph = fm.Graph([nodes.three_dies, nodes.after_death, nodes.double])
    rows = graph.map({"x": range(8)}, "x", on_error="skip", engine=ENGINES[name]())
    failure = rows[3]["after_death"]
    assert isinstance(failure.error, fm.WorkerDied)
    assert (failure.stage, failure.index, failure.item) == ("three_dies", 3, {"x": 3})
    assert [row["after_death"] for row in rows if row is not rows[3]] == [0, 1, 2, 4, 5, 6, 7]
    with pytest.raises(fm.WorkerDied):
        graph.map({"x": range(8)}, "x", engine=ENGINES[name]())


def test_many_deaths_do_not_break_the_engine() -> None:
    def dies(x: int) -> int:
        if x % 5 == 3:
            os._exit(3)
        return x

    with fm.LocalEngine("parallel:2", "parallel:2") as engine:
        for _ in range(2):
            rows = fm.Graph([dies]).map({"x": range(50)}, "x", on_error="skip", engine=engine)
            assert [x for x in range(50) if rows[x]["dies"] != x] == list(range(3, 50, 5))


# ------------------------------------------------------------------------------ retry, timeout


@pytest.mark.parametrize("name", ["threads", "processes", "node processes", "forks", "async"])
def test_exceptions_are_tried_again_where_the_call_runs(name: str, tmp_path: Path) -> None:
    node = fm.node(nodes.fails_twice, retry=fm.retry(3, 0.001))
    graph = fm.Graph([node]).bind(folder=str(tmp_path))
    assert graph.map({"x": [0, 1, 2]}, "x", engine=ENGINES[name]())["fails_twice"] == [0, 1, 2]
    assert (tmp_path / "tries-1").stat().st_size == 3


@pytest.mark.parametrize("name", PROCESSES)
def test_deaths_are_tried_again_by_the_flow(name: str, tmp_path: Path) -> None:
    node = fm.node(nodes.dies_twice, retry=fm.retry(3, 0.001))
    graph = fm.Graph([node]).bind(folder=str(tmp_path))
    assert graph.map({"x": [0, 1, 2]}, "x", engine=ENGINES[name]())["dies_twice"] == [0, 1, 2]
    (tmp_path / "deaths-1").unlink()
    fewer = fm.Graph([node.options(retry=fm.retry(2, 0.001))]).bind(folder=str(tmp_path))
    rows = fewer.map({"x": [0, 1, 2]}, "x", on_error="skip", engine=ENGINES[name]())
    assert rows[1]["dies_twice"].attempts == 2


@pytest.mark.parametrize(
    ("name", "fn"),
    [(name, nodes.three_hangs) for name in PROCESSES] + [("async", nodes.three_waits)],
)
def test_a_timeout_costs_its_item(name: str, fn: Any) -> None:
    graph = fm.Graph([fm.node(fn, output_name="y", timeout=0.3), nodes.double])
    rows = graph.map({"x": range(6)}, "x", on_error="skip", engine=ENGINES[name]())
    assert isinstance(rows[3]["y"].error, fm.TaskTimeout)
    assert [row["y"] for row in rows if row is not rows[3]] == [0, 1, 2, 4, 5]
    assert rows[3]["double"] == 6


@pytest.mark.parametrize("name", ["here", "threads", "async", "any executor"])
def test_a_timeout_where_calls_cannot_be_stopped_is_refused(name: str) -> None:
    graph = fm.Graph([fm.node(nodes.double, timeout=1)])
    with pytest.raises(fm.BuildError, match="'double' has a timeout"):
        graph.run({"x": 1}, engine=ENGINES[name]())


# ------------------------------------------------------------------------------ batch


def test_a_batch_node_gets_lists(engine: Any) -> None:
    graph = fm.Graph([fm.node(nodes.listed, batch=True, output_name=("same", "size"))])
    rows = graph.map({"x": range(100)}, "x", engine=engine)
    assert rows["same"] == list(range(100))
    assert max(rows["size"]) > 1
    assert graph.run({"x": 5}, engine=engine) == {"same": 5, "size": 1}
    wrong = fm.Graph([fm.node(nodes.short, batch=True)])
    with pytest.raises(ValueError, match="results for a batch of"):
        wrong.map({"x": range(4)}, "x", engine=engine)
    chunks = graph.imap({"x": range(10)}, "x", output_name="size", chunksize=4, engine=engine)
    assert max(row["size"] for row in chunks) <= 4


# ------------------------------------------------------------------------------ budgets, overlap


def test_a_nested_map_uses_the_whole_budget_and_never_more() -> None:
    peak = Peak()

    def work(v: int) -> int:
        with peak:
            time.sleep(0.01)
        return v

    inner = fm.Graph([work], name="each")
    graph = fm.Graph([fm.node(nodes.numbers, output_name="v"), inner.as_node(map_over="v")])
    with fm.LocalEngine("threaded:4", "threaded:4") as engine:
        start = time.monotonic()
        graph.map({"n": [10] * 10}, "n", output_name="work", engine=engine)
        seconds = time.monotonic() - start
    assert peak.calls == 100
    assert peak.most == 4
    assert seconds < 4 * 0.25  # ideal: 0.25


def test_engines_spec_is_one_budget_for_nodes_and_items() -> None:
    peak = Peak()

    def one(x: int) -> int:
        with peak:
            time.sleep(0.002)
        return x

    def two(one: int) -> int:
        with peak:
            time.sleep(0.002)
        return one

    fm.Graph([one, fm.node(two, context="thread:3")]).map({"x": range(30)}, "x", engine="thread:3")
    assert peak.most == 3


def test_items_do_not_wait_for_each_other_between_groups() -> None:
    gate = threading.Event()
    done: list[int] = []

    def first(x: int) -> int:
        if x == 0:
            assert gate.wait(30)
        return x

    @fm.node(context="thread:1")
    def second(first: int) -> int:
        done.append(first)
        if len(done) == 299:
            gate.set()
        return first

    rows = fm.Graph([first, second]).map({"x": range(300)}, "x", engine=fm.LocalEngine("thread:2"))
    assert rows["second"] == list(range(300))
    assert done[-1] == 0


def test_independent_nodes_of_a_run_are_side_by_side() -> None:
    barrier = threading.Barrier(3, timeout=20)
    made = [
        fm.node(functools.partial(lambda name, x: barrier.wait() and name, name), output_name=name,
                name=name)
        for name in "abc"
    ]  # fmt: skip
    fm.Graph(made).run({"x": 1}, engine="threaded:3")


# ------------------------------------------------------------------------------ whose executors


def test_what_was_given_is_never_shut_down(engine: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert CHAIN.map({"x": [1]}, "x", engine=pool)["plus"] == [3]
        with pytest.raises(ValueError, match="it is three"):
            BROKEN.map({"x": range(9)}, "x", engine=pool)
        assert pool.submit(int, "3").result() == 3
    lone = Lone()
    assert CHAIN.map({"x": range(5)}, "x", engine=lone)["plus"] == [1, 3, 5, 7, 9]
    assert lone.submitted and not lone.shut
    with pytest.raises(RuntimeError, match="shutdown"):
        CHAIN.map({"x": [1]}, "x", engine=pool)


def test_process_pools_of_others_and_ours() -> None:
    with concurrent.futures.ProcessPoolExecutor(1) as theirs:
        rows = BROKEN.map({"x": range(6)}, "x", on_error="skip", engine=theirs)
        assert [row["double"] for row in rows] == [0, 2, 4, 6, 8, 10]
    with fm.ProcessPool(2) as ours, fm.executor("ipc_fork", 1) as context:
        for pool in (ours, context, ours.options(priority=1)):
            graph = fm.Graph([nodes.three_dies])
            rows = graph.map({"x": range(6)}, "x", on_error="skip", engine=pool)
            assert isinstance(rows[3]["three_dies"].error, fm.WorkerDied)
            assert MIXED.map({"x": [2]}, "x", engine=pool)["both"] == [both(2)]


def test_an_entered_engine_keeps_its_workers_and_ends_them() -> None:
    graph = fm.Graph([nodes.pid])
    with fm.LocalEngine("parallel:1", "parallel:1") as engine:
        first = graph.map({"x": [1, 2]}, "x", engine=engine)["pid"]
        with pytest.raises(ValueError, match="it is three"):
            BROKEN.map({"x": range(9)}, "x", engine=engine)
        assert graph.map({"x": [1, 2]}, "x", engine=engine)["pid"] == first
        assert graph.run({"x": 1}, engine=engine)["pid"] == first[0]
    with pytest.raises(ProcessLookupError):
        os.kill(first[0], 0)


def test_a_named_pool_stays() -> None:
    pool = fm.named_pool("graph-tests", "parallel:1")
    try:
        graph = fm.Graph([fm.node(nodes.pid, context="graph-tests")])
        assert graph.run({"x": 1}) == graph.run({"x": 1})
        assert graph.run({"x": 1}, engine="graph-tests") == graph.run({"x": 1}, engine=pool)
    finally:
        pool.shutdown()


def test_unknown_engines_are_refused() -> None:
    for wrong, near in [("paralel", "parallel"), ("thread:0", "a number"), (3, "not 'int'")]:
        with pytest.raises(fm.BuildError, match=near):
            CHAIN.run({"x": 1}, engine=wrong)
        with pytest.raises(fm.BuildError, match=near):
            fm.LocalEngine(wrong)
    with pytest.raises(fm.BuildError, match="cache"):
        fm.LocalEngine(cache=3)


# ------------------------------------------------------------------------------ laziness


def test_the_window_bounds_what_is_pulled(engine: Any) -> None:
    pulled = itertools.count()
    rows = CHAIN.imap({"x": pulled}, "x", output_name="plus", engine=engine, buffersize=5)
    for at in range(40):
        assert next(rows) == {"plus": 2 * at + 1}
    rows.close()  # type: ignore[attr-defined]
    assert next(pulled) <= 40 + 5


def test_an_endless_input_ends_with_its_iterator(engine: Any) -> None:
    rows = CHAIN.imap({"x": itertools.count()}, "x", output_name="plus", engine=engine)
    assert [row["plus"] for row in itertools.islice(rows, 100)] == list(range(1, 201, 2))
    del rows  # the balance check sees what is left


# ------------------------------------------------------------------------------ constants


def test_large_constants_are_shared_and_small_ones_are_not(engine: Any) -> None:
    big = b"x" * 200_000
    graph = fm.Graph([nodes.length])
    assert graph.map({"big": big, "x": [1, 2]}, "x", engine=engine)["length"] == [200_001, 200_002]
    assert graph.bind(big=big).run({"x": 1}, engine=engine) == {"length": 200_001}


@pytest.mark.parametrize("name", ["processes", "node processes"])
def test_a_constant_goes_to_a_worker_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from forkmill.graph import handing

    made: list[int] = []
    share = handing.share

    def counted(value: Any) -> Any:
        made.append(len(value))
        return share(value)

    monkeypatch.setattr(handing, "share", counted)
    big = list(range(100_000))
    rows = fm.Graph([nodes.length]).map({"big": big, "x": range(100)}, "x", engine=ENGINES[name]())
    assert rows["length"] == [100_000 + x for x in range(100)]
    assert made == [100_000]


# ------------------------------------------------------------------------------ inside


@pytest.mark.parametrize("name", ["threads", "processes", "node async", "forks"])
def test_a_graph_that_a_function_runs_itself_runs_in_sequence_there(name: str) -> None:
    graph = fm.Graph([nodes.count_inside])
    rows = graph.map({"x": [3, 4, 5]}, "x", engine=ENGINES[name]())
    assert rows["count_inside"] == [9, 16, 25]


def test_contexts_name_outputs_and_nodes_that_there_are() -> None:
    with pytest.raises(fm.BuildError, match="did you mean 'plus'"):
        CHAIN.run({"x": 1}, engine=fm.LocalEngine(contexts={"plsu": "thread:1"}))
    engine = fm.LocalEngine(contexts={"plus": "thread:1", "nested.each": "thread:1"})
    inner = fm.Graph([fm.node(nodes.tenfold, name="each", output_name="each")], name="nested")
    graph = fm.Graph([nodes.double, nodes.plus, inner])
    assert graph.run({"x": 1, "v": 2}, engine=engine)["each"] == 20


def test_ctrl_c_while_a_thread_is_hired_ends_the_run() -> None:
    class Interrupted(concurrent.futures.ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            super().submit(*args, **kwargs).result(10)
            raise KeyboardInterrupt  # it came when the call was there already

    with Interrupted(2) as pool, pytest.raises(KeyboardInterrupt):
        fm.Graph([fm.node(nodes.double, output_name="y")]).run(x=1, engine=pool)


def test_a_worker_loads_a_fraction_of_the_package(run_script: Any) -> None:
    script = run_script(
        """
        import sys
        import forkmill.graph.code, forkmill.graph.bundle

        loaded = {name.rpartition(".")[2] for name in sys.modules if "forkmill.graph." in name}
        print(sorted(loaded))
        """
    )
    assert script.stdout.strip() == str(
        ["bundle", "calling", "code", "given", "loss", "nodes", "piece", "text", "walk"]
    )


# ------------------------------------------------------------------------ rows, made late


@pytest.mark.parametrize("wanted", [None, "double", ["both", "double"]])
def test_rows_of_a_pools_map_are_made_when_somebody_looks(wanted: Any) -> None:
    expected = CHAIN.map({"x": range(50)}, "x", output_name=wanted)
    with fm.LocalEngine("parallel:2", "parallel:2") as engine:

        def rows() -> Any:
            return CHAIN.map({"x": list(range(50))}, "x", output_name=wanted, engine=engine)

        assert rows() == expected == list(expected)
        assert list(rows()) == list(expected)
        assert rows()[7:9] == expected[7:9]
        assert repr(rows()).split(" in ")[0] == repr(expected).split(" in ")[0]
        assert pickle.loads(pickle.dumps(rows())) == expected
        for name in expected.outputs:
            assert rows()[name] == expected[name]
        found = rows()
        one, last = found[7], found[-1]
        assert one is found[7]
        assert last is found[49]
        one["double"] = "changed"
        assert found["double"][7] == "changed"
        assert [*found][7] is one
        assert found[7] is one
        assert found[49] is last
        with pytest.raises(IndexError):
            rows()[50]


def test_rows_with_failures_among_them_are_the_same_rows() -> None:
    graph = fm.Graph([nodes.three_fails])
    expected = graph.map({"x": range(40)}, "x", on_error="skip")
    found = graph.map({"x": list(range(40))}, "x", on_error="skip", engine="parallel:2")
    assert [failure.index for failure in found.failures] == [3]
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == list(theirs)
        assert all(isinstance(v, fm.Failure) or v == theirs[k] for k, v in mine.items())
    assert isinstance(found[3]["three_fails"], fm.Failure)
    assert found["three_fails"][4] == expected["three_fails"][4]


def test_retries_arguments_by_name_and_several_outputs_travel_in_a_call(tmp_path: Path) -> None:
    graph = fm.Graph([
        fm.node(nodes.divided, output_name=("quotient", "rest")),
        fm.node(nodes.fails_twice, retry=fm.retry(3)),
    ])  # fmt: skip
    found = graph.map({"x": [1, 5], "folder": str(tmp_path), "by": 2}, "x", engine="parallel:2")
    assert found["quotient"] == [0, 2]
    assert found["rest"] == [1, 1]
    assert not found.failures


def test_an_unknown_option_of_an_engine_or_a_cache_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"no option 'max_worker', did you mean 'max_workers'"):
        fm.LocalEngine("parallel:2", max_worker=3)
    with pytest.raises(TypeError, match=r"no option 'max_byte', did you mean 'max_bytes'"):
        fm.DiskCache(tmp_path, max_byte=3)


def test_what_another_engine_raises_as_its_rows_are_closed_is_their_closer_s() -> None:
    class Other(fm.Engine):
        def run(self, graph: Any, inputs: Any, output_name: Any = None, *, _ctx: Any = None) -> Any:
            raise NotImplementedError

        def map(self, *_: Any, _ctx: Any = None) -> Any:
            try:
                for index in range(9):
                    yield index, {"y": index}
            finally:
                raise OSError("not closed")

    rows: Any = fm.Graph([fm.node(nodes.double, output_name="y", name="y")]).imap(
        {"x": range(9)}, "x", engine=Other()
    )
    assert next(rows) == {"y": 0}
    with pytest.raises(OSError, match="not closed"):
        rows.close()

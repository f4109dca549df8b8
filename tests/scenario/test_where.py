"""Scenarios 29 to 43: where stages run."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flows import (
    CONTEXTS,
    FORK,
    MASTER,
    PARALLEL,
    PROCESSES,
    THREAD,
    WORKERS,
    balanced,
    double,
    in_contexts,
    meeting,
    most_at_once,
    multiset,
    of,
    ok,
    outputs,
    repeated,
    same,
    timed,
)

import forkmill as fm
import tasks
from forkmill.testing import shuffled


def at_once(got: list[Any]) -> int:
    return most_at_once([(start, end) for *_, start, end in got])


def test_29_threads_sleep_side_by_side(tmp_path: Path) -> None:
    work = timed(0.01, meeting(tmp_path, 5))
    got = outputs(fm.Pipeline().source(range(10)).map(work, context="thread:5"))
    assert sorted(item for item, *_ in got) == [*range(10)]
    assert len({thread for _, _, thread, _, _ in got}) == 5
    assert {pid for _, pid, *_ in got} == {MASTER}
    assert at_once(got) <= 5


@in_contexts(*PARALLEL)
def test_29_never_more_than_n_at_once(kind: str) -> None:
    got = outputs(fm.Pipeline().source(range(12)).map(timed(0.01), context=of(kind, 3)))
    assert at_once(got) <= 3


def test_30_two_workers_share_the_items(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)

    def begin() -> None:
        tasks.note_here(log.path, os.getpid())

    work = timed(0.01, meeting(tmp_path, 2))
    got = outputs(fm.Pipeline().source(range(8)).map(work, context="ipc_fork:2", setup=begin))
    assert multiset(item for item, *_ in got) == multiset(range(8))
    pids = {pid for _, pid, *_ in got}
    assert len(pids) == 2 and MASTER not in pids
    assert log.counts() == dict.fromkeys(pids, 1)


@pytest.mark.timeout(120)
def test_30_more_workers_than_items() -> None:
    line = fm.Pipeline().source(range(10)).map(double, context="ipc_fork:100")
    assert multiset(outputs(line)) == multiset(range(0, 20, 2))


def test_31_a_fork_an_item() -> None:
    got = outputs(fm.Pipeline().source(range(8)).map(timed(0.03), context="cow_fork:2"))
    assert multiset(item for item, *_ in got) == multiset(range(8))
    pids = {pid for _, pid, *_ in got}
    assert len(pids) == 8 and MASTER not in pids
    assert at_once(got) <= 2


def private_mb() -> float:
    """Memory that is this process's alone and was written."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"Private_Dirty:\s+(\d+) kB", text)
    assert found
    return int(found[1]) / 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs smaps")
def test_31_what_the_parent_has_is_neither_pickled_nor_copied(tmp_path: Path) -> None:
    class Index(fm.Pipeline):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()  # no pickle takes it
            self.file = (tmp_path / "file").open("w+")  # nor this
            self.data = bytearray(b"x") * 256_000_000

        @fm.producer
        def numbers(self) -> Iterator[Any]:
            for i in range(4):
                yield i, lambda: self.lock

        @fm.stage(context="cow_fork:2")
        def look(self, item: Any) -> tuple[int, int, float]:
            i, get = item
            with get():
                return i, self.data[i * 1_000_000] + self.file.tell(), private_mb()

    index = Index()
    got = outputs(index)
    index.file.close()
    assert multiset(i for i, *_ in got) == multiset(range(4))
    assert all(value == ord("x") and mb < 100 for _, value, mb in got)


@repeated(200)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("second", PROCESSES)
@pytest.mark.parametrize("first", PROCESSES)
def test_32_processes_after_processes(first: str, second: str, times: int) -> None:
    for _ in range(times):
        line = (
            fm.Pipeline()
            .source(range(8))
            .map(lambda x: (x, os.getpid()), context=of(first))
            .map(lambda pair: (*pair, os.getpid()), context=of(second))
        )
        got = outputs(line)
        assert multiset(x for x, *_ in got) == multiset(range(8))
        ones, twos = {one for _, one, _ in got}, {two for *_, two in got}
        assert not ones & twos and MASTER not in ones | twos


@in_contexts(*PARALLEL)
def test_34_three_producers_into_one_stage(kind: str) -> None:
    line = fm.Pipeline()
    for name in "abc":
        line = line.source([(name, i) for i in range(4)], name=name)
    got = outputs(line.map(same, context=of(kind)))
    assert multiset(got) == multiset((name, i) for name in "abc" for i in range(4))


@in_contexts(*PARALLEL)
def test_34_a_producer_runs_once_and_in_its_context(kind: str) -> None:
    class Elsewhere(fm.Pipeline):
        @fm.producer(context=of(kind))
        def numbers(self) -> Iterator[tuple[int, int, int]]:
            for i in range(12):
                yield i, os.getpid(), threading.get_ident()

        @fm.stage
        def keep(self, item: tuple[int, int, int]) -> tuple[int, int, int]:
            return item

    got = outputs(Elsewhere())
    assert [i for i, *_ in got] == [*range(12)]
    pids = {pid for _, pid, _ in got}
    assert len(pids) == 1
    assert (pids == {MASTER}) == (kind == THREAD)
    if kind == THREAD:
        assert {thread for *_, thread in got} != {threading.get_ident()}


@in_contexts(*PARALLEL)
def test_34_an_endless_producer_elsewhere_is_stopped(kind: str) -> None:
    def endless() -> Iterator[int]:
        i = 0
        while True:
            yield i
            i += 1

    with_close = fm.Pipeline().source(endless, context=of(kind), queue_size=10).map(same).stream()
    assert [next(with_close) for _ in range(5)] == [*range(5)]
    with_close.close()


@pytest.mark.parametrize(("outer", "inner"), [(WORKERS, FORK), (FORK, WORKERS), (THREAD, WORKERS)])
def test_35_a_body_runs_a_pipeline_of_its_own(outer: str, inner: str) -> None:
    def body(items: list[int]) -> list[int]:
        line = fm.Pipeline().source(items).map(double, context=of(inner), ordered=True)
        return line.run().outputs

    line = fm.Pipeline().source(range(12)).batch(3).map(body, context=of(outer)).unbatch()
    assert multiset(outputs(line)) == multiset(range(0, 24, 2))


TREE = """
    import os, time
    import forkmill as fm

    def leaf(x):
        print("leaf", flush=True)
        time.sleep(60)

    def middle(x):
        return fm.Pipeline().source([x]).map(leaf, context="cow_fork:2").run().outputs

    def top(x):
        return fm.Pipeline().source([x]).map(middle, context="ipc_fork:2").run().outputs

    if __name__ == "__main__":
        fm.Pipeline().source([1]).map(top, context="cow_fork:2").run()
"""


def test_35_killing_the_root_of_a_tree_leaves_nothing(start_script: Any) -> None:
    script = start_script(TREE)
    script.wait_for("leaf")
    os.kill(script.pid, 9)
    assert script.wait() == -9


def test_36_nested_three_deep() -> None:
    deep = fm.Pipeline().map(lambda x: x + 1, name="deep")
    middle = fm.Pipeline().map(double, name="before").through(deep).map(double, name="after")
    line = fm.Pipeline().source(range(4)).through(middle).map(lambda x: x + 100)
    assert outputs(line) == [4 * x + 102 for x in range(4)]


@in_contexts(*PARALLEL)
def test_36_stages_of_a_nested_pipeline_keep_their_contexts(kind: str) -> None:
    deep = fm.Pipeline().map(lambda x: (x, os.getpid(), threading.get_ident()), context=of(kind))
    got = outputs(fm.Pipeline().source(range(4)).through(fm.Pipeline().through(deep)))
    assert multiset(x for x, *_ in got) == multiset(range(4))
    assert {pid == MASTER for _, pid, _ in got} == {kind == THREAD}
    assert threading.get_ident() not in {thread for _, pid, thread in got if pid == MASTER}


def test_36_a_pipeline_in_a_worker_runs_there() -> None:
    inner = fm.Pipeline().map(double).map(lambda x: (x, os.getpid()))
    line = fm.Pipeline().source(range(8)).through(inner, context="ipc_fork:2")
    got = outputs(line)
    assert multiset(x for x, _ in got) == multiset(range(0, 16, 2))
    assert MASTER not in {pid for _, pid in got}


class Inner(fm.Pipeline):
    @fm.stage
    def parse(self, x: int) -> int:
        return x * 2


class Outer(fm.Pipeline):
    @fm.producer
    def numbers(self) -> Iterator[int]:
        yield from range(4)

    clean = Inner()

    @fm.stage
    def last(self, x: int) -> int:
        return x + 1


def test_36_nested_in_class_form() -> None:
    result = ok(Outer().run())
    assert result.outputs == [1, 3, 5, 7]
    assert result.stats.stages["clean.parse"].out == 4


@in_contexts(*PARALLEL)
def test_37_a_named_pool_is_shared_by_its_stages(kind: str, tmp_path: Path) -> None:
    work = timed(0.03, meeting(tmp_path, 2))
    pool = fm.named_pool("scenario-37", of(kind, 3))
    line = (
        fm.Pipeline()
        .source(range(9), to=["a", "b"])
        .map(work, name="a", context="scenario-37", to=())
        .map(work, name="b", context="scenario-37", to=())
    )
    try:
        got = outputs(line)
    finally:
        pool.shutdown()
    assert len(got) == 18
    assert 1 < at_once(got) <= 3
    if kind == WORKERS:
        assert len({pid for _, pid, *_ in got} - {MASTER}) <= 3


@in_contexts(*PARALLEL)
def test_37_neighbours_on_a_named_pool_share_it_too(kind: str) -> None:
    pool = fm.named_pool("scenario-37", of(kind, 3))
    line = (
        fm.Pipeline(context="scenario-37")
        .source(range(9), context="inline")
        .map(timed(0.02), name="a")
        .map(lambda one: [one, timed(0.02)(one[0])], name="b")
    )
    try:
        got = outputs(line)
    finally:
        pool.shutdown()
    assert multiset(one[0] for one, _ in got) == multiset(range(9))
    assert at_once([call for pair in got for call in pair]) <= 3


def test_38_the_inner_default_wins_and_the_stage_s_own_over_both() -> None:
    def where(x: Any) -> tuple[bool, bool]:
        return os.getpid() == MASTER, threading.current_thread() is threading.main_thread()

    inner = (
        fm.Pipeline(context="cow_fork:1")
        .map(lambda _: [where(0)], name="default")
        .map(lambda got: [*got, where(0)], name="own", context="inline")
    )
    line = (
        fm.Pipeline(context="thread:1")
        .source([0])
        .through(inner)
        .map(lambda got: [*got, where(0)], name="after")
    )
    ((first, second, third),) = outputs(line)
    assert first == (False, True)
    assert second == (True, True)
    assert third == (True, False)


def test_38_blocks_nest_and_the_outer_one_comes_back() -> None:
    def where(got: list[Any]) -> list[Any]:
        here = "main" if threading.current_thread() is threading.main_thread() else "thread"
        return [*got, here if os.getpid() == MASTER else "child"]

    line = fm.Pipeline(context="thread:1").source([[]])
    with line.context("cow_fork:1"):
        line.map(where, name="outer")
        with line.context("inline"):
            line.map(where, name="inner")
            line.map(where, name="own", context="thread:1")
        line.map(where, name="restored")
    line.map(where, name="after")
    assert outputs(line) == [["child", "main", "thread", "child", "thread"]]


class Sized(fm.Pipeline):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    @fm.producer
    def numbers(self) -> Iterator[int]:
        yield from range(12)

    @fm.stage(context="thread:n")
    def work(self, x: int) -> tuple[int, int, int, float, float]:
        return timed(0.02)(x)

    group = fm.batch(size="n")

    def twice(self) -> int:
        return 2 * self.n

    pairs = fm.batch(size="twice")


def test_38_sizes_from_the_instance() -> None:
    for n, pairs in (1, [2] * 6), (3, [4]):
        doubles = outputs(Sized(n))
        assert [len(double) for double in doubles] == pairs
        batches = [batch for double in doubles for batch in double]
        assert [len(batch) for batch in batches] == [n] * (12 // n)
        assert at_once([item for batch in batches for item in batch]) <= n


@in_contexts(*CONTEXTS)
def test_39_values_are_the_same_everywhere(kind: str) -> None:
    values: list[Any] = [[1, 2, 3], None, {}, (1, 2), (), [], False, 0, "", ("a", None)]

    def through(x: int) -> Any:
        return values[x]

    def emitted(x: int) -> Iterator[Any]:
        yield values[x]

    for stage in through, emitted:
        line = fm.Pipeline().source(range(len(values))).stage(stage, context=of(kind), ordered=True)
        got = outputs(line)
        assert got == values
        assert [type(x) for x in got] == [type(x) for x in values]


@in_contexts(*PROCESSES)
@pytest.mark.parametrize("size", [70_000, 1_000_000, 100_000_000])
def test_40_results_of_any_size(kind: str, size: int) -> None:
    (got,) = outputs(fm.Pipeline().source([size]).map(bytes, context=of(kind)))
    assert len(got) == size and not any(got[:: 1 << 16])


@in_contexts(*PROCESSES)
def test_40_large_items_in_and_out(kind: str) -> None:
    items = [bytes([i]) * 1_000_000 for i in range(6)]
    got = outputs(fm.Pipeline().source(items).map(same, context=of(kind), ordered=True))
    assert got == items


def wobble(x: int) -> int:
    time.sleep(random.Random(x).random() * 0.004)
    return x


@in_contexts(*CONTEXTS)
def test_43_order_is_kept_if_asked(kind: str) -> None:
    line = fm.Pipeline().source(range(60)).map(wobble, context=of(kind, 4), ordered=True)
    assert outputs(line) == [*range(60)]
    line = fm.Pipeline().source(range(60)).map(wobble, context=of(kind, 4))
    assert multiset(outputs(line)) == multiset(range(60))


@in_contexts(*PARALLEL)
@pytest.mark.parametrize("width", [1, 4])
def test_43_a_test_mode_shuffles_what_has_no_order(kind: str, width: int) -> None:
    line = fm.Pipeline().source(range(60)).map(same, context=of(kind, width), queue_size=20)
    with shuffled():
        got = outputs(line)
        assert multiset(got) == multiset(range(60))
        assert got != [*range(60)]
        ordered = fm.Pipeline().source(range(60)).map(same, context=of(kind, width), ordered=True)
        assert outputs(ordered) == [*range(60)]


@in_contexts(*PARALLEL)
def test_43_the_test_mode_keeps_what_is_promised(kind: str) -> None:
    class Line(fm.Pipeline):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(40)

        @fm.stage(context=of(kind), on_error="skip")
        def spread(self, x: int) -> Iterator[Any]:
            for i in range(x % 4):
                yield x, i
            if x == 7:
                raise ValueError(x)

        @spread.on_end
        def finish(self) -> Iterator[Any]:
            yield "end", 0

    with shuffled(7) as seed:
        assert seed == 7
        result = Line().run()
    balanced(result)
    got = result.outputs
    pairs = [pair for pair in got if pair[0] != "end"]
    ends = len(got) - len(pairs)
    assert ends in {THREAD: (1,), WORKERS: (1, 2), FORK: (40,)}[kind]
    for x in {*range(40)} - {7}:
        assert [i for y, i in pairs if y == x] == [*range(x % 4)]
    if kind == THREAD:
        assert got[-1] == ("end", 0)
    assert [failure.item for failure in result.failures] == [7]


@in_contexts(*PARALLEL)
def test_43_the_test_mode_waits_for_nobody(kind: str, tmp_path: Path) -> None:
    with tasks.Gate(tmp_path) as gate, shuffled():

        def work(x: int) -> int:
            return tasks.pass_gate(gate.path, x) if x == 0 else x

        line = fm.Pipeline().source(range(10)).map(work, context=of(kind, 2), queue_size=1)
        stream = line.stream()
        assert 0 not in [next(stream) for _ in range(3)]
        gate.open()
        assert sum(1 for _ in stream) == 7


@in_contexts(*PARALLEL)
def test_43_without_order_a_slow_item_holds_nobody_up(kind: str, tmp_path: Path) -> None:
    with tasks.Gate(tmp_path) as gate:

        def work(x: int) -> int:
            return tasks.pass_gate(gate.path, x) if x == 0 else x

        line = fm.Pipeline().source(range(10)).map(work, context=of(kind, 2), queue_size=1)
        stream = line.stream()
        assert 0 not in [next(stream) for _ in range(3)]
        gate.open()
        assert sum(1 for _ in stream) == 7


@in_contexts(*PARALLEL)
def test_43_many_outputs_an_item_stay_in_order(kind: str) -> None:
    def spread(x: int) -> Iterator[tuple[int, int]]:
        for i in range(x % 4):
            yield x, i

    line = fm.Pipeline().source(range(40)).flat_map(spread, context=of(kind, 3), ordered=True)
    assert outputs(line) == [(x, i) for x in range(40) for i in range(x % 4)]

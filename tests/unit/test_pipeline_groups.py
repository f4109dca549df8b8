"""Neighbours on one named pool: one call in the worker, and the books of each stage."""

from __future__ import annotations

import functools
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
from forkmill.contexts.lanes.lane import SharedLane

KINDS = ["thread:2", "ipc_fork:2", "cow_fork:2"]
in_pools = pytest.mark.parametrize("pool", KINDS, indirect=True)


@pytest.fixture
def pool(request: pytest.FixtureRequest) -> Iterator[str]:
    made = fm.named_pool("groups", getattr(request, "param", "ipc_fork:2"))
    yield "groups"
    made.shutdown()


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All items that were put into lanes."""
    items: list[Any] = []
    put_many = SharedLane.put_many

    def counted(self: Any, line: Any, copy: int | None = None) -> None:
        line = list(line)
        items.extend(line)
        put_many(self, line, copy)

    monkeypatch.setattr(SharedLane, "put_many", counted)
    return items


def books(result: fm.RunResult) -> dict[str, tuple[int, int, int]]:
    for edge in result.stats.edges.values():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped
    return {name: (s.in_, s.out, s.failed) for name, s in result.stats.stages.items()}


def double(x: int) -> int:
    return x * 2


def repeat(x: int) -> Iterator[int]:
    for _ in range(x % 3):
        yield x


def with_pid(x: Any) -> Any:
    return x, os.getpid()


@in_pools
def test_an_item_travels_once_through_all_neighbours(pool: str, puts: list[Any]) -> None:
    line = fm.Pipeline(context=pool).source(range(50), context="inline")
    line = line.map(double).map(with_pid).map(with_pid)
    result = line.run()
    assert sorted(puts) == list(range(50))
    assert sorted(x for (x, _), _ in result.outputs) == [2 * x for x in range(50)]
    assert all(first == second for (_, first), second in result.outputs)
    assert set(books(result).values()) == {(0, 50, 0), (50, 50, 0)}
    assert result.stats.edges["double", "with_pid"].delivered == 50
    assert all(result.stats[name].p50 is not None for name in ("double", "with_pid"))


@in_pools
def test_any_number_of_outputs(pool: str, puts: list[Any]) -> None:
    got: list[int] = []
    line = fm.Pipeline(context=pool).source(range(9), context="inline")
    line = line.filter(lambda x: x != 8).map(repeat).flat_map(lambda x: [x, -x])
    result = line.map(double).sink(got.append, context="inline").run()
    expected = [s * 2 * x for x in range(8) for _ in range(x % 3) for s in (1, -1)]
    assert sorted(got) == sorted(expected) and len(puts) == 9
    count = len(expected)
    assert list(books(result).values()) == [
        (0, 9, 0),
        (9, 8, 0),
        (8, count // 2, 0),
        (count // 2, count, 0),
        (count, count, 0),
        (count, 0, 0),
    ]


def later(x: int) -> Any:
    return repeat(x)  # a plain function may give a generator


@in_pools
def test_a_generator_that_nobody_could_foresee(pool: str) -> None:
    line = fm.Pipeline(context=pool).source(range(6), context="inline")
    result = line.map(double).map(later).map(double).run()
    assert sorted(result.outputs) == sorted(4 * x for x in range(6) for _ in range(2 * x % 3))
    count = len(result.outputs)
    assert list(books(result).values()) == [(0, 6, 0), (6, 6, 0), (6, count, 0), (count, count, 0)]


def fragile(x: int) -> int:
    if x == 4:
        raise KeyError(x)
    return x


@in_pools
@pytest.mark.parametrize(
    ("first", "expected"), [(double, [0, 4, 12, 16]), (later, [2, 4, 4]), (repeat, [2, 4, 4])]
)
def test_a_failure_is_that_of_its_stage_and_item(
    pool: str, first: Any, expected: list[int]
) -> None:
    line = fm.Pipeline(context=pool).source(range(5), context="inline")
    line = line.map(first, name="first", on_error="skip")
    line = line.map(fragile, on_error="skip").map(double, on_error="skip")
    result = line.run()
    assert sorted(result.outputs) == expected
    (failure,) = result.failures
    assert (failure.stage, failure.item, failure.attempts) == ("fragile", 4, 1)
    assert isinstance(failure.error, KeyError) and "fragile" in failure.traceback
    assert books(result)["fragile"] == (len(expected) + 1, len(expected), 1)
    assert result.stats.edges["first", "fragile"].failed == 1
    with pytest.raises(KeyError):
        failure.reproduce()


def refuse(x: Any) -> Any:
    raise ValueError("no")


@in_pools
def test_a_failed_item_may_be_one_that_cannot_travel(pool: str) -> None:
    def unique(x: int) -> Any:
        return (y for y in (x,))

    line = fm.Pipeline(context=pool).source(range(3), context="inline")
    line = line.map(lambda x: [unique(x)], name="a", on_error="skip")
    result = line.map(refuse, on_error="skip").run()
    assert [f.stage for f in result.failures] == ["refuse"] * 3
    assert books(result)["refuse"] == (3, 0, 3)


@in_pools
def test_raise_ends_the_run_with_the_items_own_error(pool: str) -> None:
    line = fm.Pipeline(context=pool).source(range(9), context="inline").map(repeat).map(fragile)
    with pytest.raises(KeyError) as caught:
        line.run()
    result = caught.value.run_result
    assert (result.failures[-1].stage, result.failures[-1].item) == ("fragile", 4)
    books(result)


def deadly(x: int) -> int:
    if x == 4:
        os._exit(3)
    return x


@pytest.mark.parametrize("pool", KINDS[1:], indirect=True)
def test_a_death_costs_the_one_item(pool: str) -> None:
    line = fm.Pipeline(context=pool).source(range(9), context="inline")
    result = line.map(int, on_error="skip").map(deadly, on_error="skip").run()
    assert sorted(result.outputs) == [0, 1, 2, 3, 5, 6, 7, 8]
    (failure,) = result.failures
    assert isinstance(failure.error, fm.WorkerDied) and failure.item == 4
    books(result)


def spread(x: int) -> Iterator[int]:
    yield from (x, x + 100)


def deadly_later(x: int) -> Iterator[int]:
    yield x
    deadly(x)


PLACES = {
    "first": ([deadly, double, double], 0),
    "second": ([int, deadly, double], 1),
    "third": ([int, int, deadly], 2),
    "behind a generator": ([spread, deadly, double], 1),
    "in a generator": ([int, deadly_later, double], 1),
    "first, resumed": ([deadly_later, double, double], 0),
}


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize("pool", KINDS[1:], indirect=True)
def test_a_death_is_that_of_the_stage_that_ran(pool: str, case: str) -> None:
    fns, place = PLACES[case]
    line = fm.Pipeline(context=pool).source(range(9), context="inline")
    names = ["a", "b", "c"]
    for name, fn in zip(names, fns, strict=True):
        line = line.map(fn, name=name, on_error="skip")
    result = line.run()
    (failure,) = result.failures
    assert (failure.stage, failure.item) == (names[place], 4)
    assert isinstance(failure.error, fm.WorkerDied) and failure.error.mark == place
    got = books(result)
    assert [got[name][2] for name in names] == [int(name == failure.stage) for name in names]
    others = fm.Pipeline().source(x for x in range(9) if x != 4)
    for fn in fns:
        others = others.map(fn)
    assert not Counter(others.run().outputs) - Counter(result.outputs)


@pytest.mark.parametrize("pool", KINDS[1:], indirect=True)
def test_a_death_at_the_end_is_that_of_the_stage_that_ended(pool: str) -> None:
    class Line(fm.Pipeline, context=pool):
        @fm.producer(context="inline")
        def numbers(self) -> Iterator[int]:
            yield 1

        @fm.stage(on_error="skip")
        def a(self, x: int) -> int:
            return x

        @fm.stage(on_error="skip")
        def b(self, x: int) -> int:
            return x

        @b.on_end
        def last(self) -> Iterator[int]:
            os._exit(3)
            yield 1

    result = Line().run()
    (failure,) = result.failures
    assert failure.stage == "b" and isinstance(failure.error, fm.WorkerDied)
    books(result)


def test_a_death_can_be_called_again() -> None:
    with fm.named_pool("groups", "ipc_fork:1"):
        line = fm.Pipeline(context="groups").source([4], context="inline")
        refuse = functools.partial(refuse_elsewhere, os.getpid())
        line = line.map(double, name="a", on_error="skip").map(refuse, name="b", on_error="skip")
        (failure,) = line.run().failures
    assert (failure.stage, failure.item) == ("b", 4)
    assert failure.reproduce() == [8]


def refuse_elsewhere(home: int, x: int) -> int:
    if os.getpid() != home:
        os._exit(3)
    return x


@in_pools
def test_dead_letters_of_any_stage(pool: str) -> None:
    bad: list[Any] = []
    letters = fm.dead_letter("bad")
    line = fm.Pipeline(context=pool).source(range(5), context="inline")
    line = line.map(int, on_error=letters).map(fragile, on_error=letters, to=())
    line = line.sink(bad.append, name="bad", from_=(), context="inline")
    result = line.run()
    assert sorted(result.outputs) == [0, 1, 2, 3]
    assert [(f.stage, f.item) for f in bad] == [("fragile", 4)]
    books(result)


@pytest.mark.parametrize("pool", ["thread:2"], indirect=True)
def test_the_first_stage_may_retry(pool: str, puts: list[Any]) -> None:
    tries: list[int] = []

    def flaky(x: int) -> Iterator[int]:
        tries.append(x)
        yield x
        if tries.count(x) < 3:
            raise OSError(x)

    line = fm.Pipeline(context=pool).source([1, 2], context="inline")
    line = line.map(flaky, on_error=fm.retry(3, backoff=0.001)).map(double)
    result = line.run()
    assert sorted(result.outputs) == [2, 4] and sorted(tries) == [1, 1, 1, 2, 2, 2]
    assert books(result) == {"source": (0, 2, 0), "flaky": (2, 2, 0), "double": (2, 2, 0)}
    assert len(puts) == 6


def sort(x: int) -> Any:
    return fm.to("odd", x) if x % 2 else x


def back(x: int) -> Any:
    return fm.to("sort", x + 1) if x == 2 else x


@in_pools
def test_fm_to_from_inside_and_from_outside(pool: str) -> None:
    line = fm.Pipeline(context=pool).source(range(6), context="inline")
    line = line.map(sort).map(back).map(double, to=()).map(with_pid, name="odd", from_=(), to=())
    result = line.run()
    assert sorted(x for x in result.outputs if isinstance(x, int)) == [0, 8]
    assert sorted(x[0] for x in result.outputs if isinstance(x, tuple)) == [1, 3, 3, 5]
    assert books(result)["sort"] == (7, 7, 0)
    assert books(result)["back"] == (3, 3, 0)


@in_pools
def test_an_item_sent_straight_to_a_rider(pool: str) -> None:
    line = fm.Pipeline(context=pool).source(range(4), context="inline", name="s")
    line = line.map(lambda x: fm.to("double", x) if x % 2 else x, name="jump", context="inline")
    result = line.map(int).map(double).run()
    assert sorted(result.outputs) == [0, 2, 4, 6]
    assert result.stats.edges["jump", "double"].delivered == 2
    assert result.stats.edges["int", "double"].delivered == 2


class Life(fm.Pipeline):
    def __init__(self, context: str) -> None:
        super().__init__(context=context)
        self.log: list[str] = []

    @fm.producer(context="inline")
    def numbers(self) -> Iterator[int]:
        yield from range(4)

    @fm.stage
    def first(self, x: int) -> int:
        self.log.append("first")
        return x

    @fm.stage
    def second(self, x: int) -> Iterator[Any]:
        self.log.append("second")
        yield from ()

    @first.setup
    def first_setup(self) -> None:
        self.log.append("setup 1")

    @second.setup
    def second_setup(self) -> None:
        self.log.append("setup 2")

    @first.on_end
    def first_end(self) -> Iterator[int]:
        self.log.append("end 1")
        yield 99

    @second.on_end
    def second_end(self) -> Iterator[Any]:
        self.log.append("end 2")
        yield list(self.log)

    @second.teardown
    def second_teardown(self) -> None:
        self.log.append("teardown 2")


@in_pools
def test_setup_and_end_in_the_order_of_the_stages(pool: str) -> None:
    line = Life(pool)
    result = line.run()
    assert result.outputs
    for log in result.outputs:
        assert log[:2] == ["setup 1", "setup 2"]
        assert log[-3:] == ["end 1", "second", "end 2"]
    assert sum(log.count("first") for log in result.outputs) == 4
    ends = len(result.outputs)
    assert books(result)["second"] == (4 + ends, ends, 0)


class Unready(fm.Pipeline):
    @fm.producer(context="inline")
    def numbers(self) -> Iterator[int]:
        yield from range(3)

    @fm.stage(on_error="skip", context="groups")
    def first(self, x: int) -> int:
        return x

    @fm.stage(on_error="skip", context="groups")
    def second(self, x: int) -> int:
        return x

    @second.setup
    def fails(self) -> None:
        raise OSError("no setup")


@in_pools
def test_a_setup_that_fails_is_its_own_stage_s(pool: str) -> None:
    result = Unready().run()
    assert sorted((f.stage, f.item) for f in result.failures) == [("second", x) for x in range(3)]
    assert books(result)["first"] == (3, 3, 0)


def options(**second: Any) -> Any:
    return pytest.param({}, second, id=next(iter(second)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        options(ordered=True),
        options(key=lambda x: x),
        options(timeout=5.0),
        options(on_error=fm.retry(2)),
        options(on_error="skip"),
        options(context="inline"),
        pytest.param({"before_fork": 1}, {}, id="hooks"),
        pytest.param({"to": ["double", "more"]}, {}, id="branch"),
    ],
)
def test_what_does_not_join_stays_alone(pool: str, first: Any, second: Any) -> None:
    hooks: Any = {"before_fork": lambda: None} if first.pop("before_fork", None) else {}
    line = fm.Pipeline(context=pool, **hooks).source(range(3), context="inline")
    line = line.map(int, **first).map(double, to=(), **second).map(int, name="more", from_=["int"])
    assert "double" in fm.ExecutionPlan(line).plan().independent_stages
    assert 4 in line.run().outputs


def test_the_plan_says_who_runs_together(pool: str) -> None:
    line = fm.Pipeline(context=pool).source(range(3), context="inline").map(int).map(double)
    plan = fm.ExecutionPlan(line.sink(print)).plan()
    assert plan.colocated_stages == {"int": ["double", "print"]}
    assert plan.affinity_for("print") == "int" and plan.affinity_for("int") is None


def endless(x: int) -> Iterator[int]:
    while True:
        yield x


@in_pools
def test_a_stage_that_emits_without_end_is_not_collected(pool: str) -> None:
    line = fm.Pipeline(context=pool).source([1], context="inline").map(int).map(endless).map(double)
    with line.stream() as got:
        assert [next(got) for _ in range(3000)] == [2] * 3000


def body(kind: int, seed: int) -> Any:
    def some(x: int) -> Iterator[int]:
        for i in range((x * seed) % 3):
            yield x + i

    def fails(x: int) -> int:
        if x % 5 == seed % 5:
            raise ValueError(x)
        return x

    def sends(x: int) -> Any:
        return fm.to("side", x) if x % 7 == seed % 7 else x

    def fails_late(x: int) -> Iterator[int]:
        yield x
        if x % 4 == 1:
            raise ValueError(x)

    def either(x: int) -> Any:
        return (y for y in (x, x)) if x % 2 else x

    return (double, some, fails, sends, fails_late, either)[kind]


def any_line(seed: int, context: str) -> fm.Pipeline:
    chance = random.Random(seed)
    line = fm.Pipeline(context=context).source(range(40), name="s", context="inline")
    if chance.random() < 0.3:
        line = line.source(range(20), name="s2", context="inline")
    last = chance.randint(1, 3)
    for i in range(last + 1):
        fn, size = body(chance.randint(0, 5), seed + i), chance.choice([1, 5, 1000])
        to: Any = () if i == last else None
        line = line.map(fn, name=f"m{i}", on_error="skip", queue_size=size, to=to)
    return line.map(lambda x: ("side", x), name="side", from_=(), to=())


def facts(result: fm.RunResult) -> Any:
    failures = sorted((f.stage, f.item) for f in result.failures)
    edges = {pair: edge for pair, edge in result.stats.edges.items() if edge.emitted}
    return sorted(map(str, result.outputs)), failures, books(result), edges


@pytest.mark.parametrize("pool", KINDS[:2], indirect=True)
def test_whatever_stages_do_it_is_as_if_they_were_inline(pool: str) -> None:
    for seed in range(25):
        expected = facts(any_line(seed, "inline").run())
        assert facts(any_line(seed, pool).run()) == expected, seed
        if seed % 5 == 0:
            handle = any_line(seed, pool).start()
            (handle.kill if seed % 2 else handle.stop)()
            books(handle.result(20))

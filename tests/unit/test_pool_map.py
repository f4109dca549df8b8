"""map and starmap: lazy, bounded, in order or not, and what each end of it looks like."""

from __future__ import annotations

import itertools
import os
import random
import resource
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import forkmill as fm
import tasks
from conftest import children


@pytest.fixture
def pool() -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(2, start_method="fork") as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tasks.Gate]:
    with tasks.Gate(tmp_path) as made:
        yield made


class Counted:
    """An input that counts what is pulled from it."""

    def __init__(self, items) -> None:
        self.pulled = 0
        self.items = iter(items)

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> object:
        item = next(self.items)
        self.pulled += 1
        return item


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [None, 1, 3, 4096, 10_000])
@pytest.mark.parametrize("make", [range, lambda n: list(range(n)), lambda n: iter(range(n))])
def test_same_as_the_builtin(pool, make, chunksize, ordered) -> None:
    results = list(pool.map(tasks.negative, make(5000), chunksize=chunksize, ordered=ordered))
    expected = [-i for i in range(5000)]
    assert (results if ordered else sorted(results, reverse=True)) == expected


def test_an_argument_that_is_kept_does_not_change(pool: fm.ProcessPool) -> None:
    """A worker uses the int of an argument again, but only if the task has let go of it."""
    numbers = [*range(-300, 3000), *range(2**30 - 9, 2**30 + 9), *range(2**62, 2**62 + 9)]
    list(pool.map(tasks.keep_every_other, numbers))
    for kept in pool.each(tasks.kept):
        assert all(index == number for index, number in kept.items())
        assert set(kept) <= set(numbers)


def _mixed(item: object) -> object:
    if item in (7, 11.5):
        raise ValueError(item)
    return (item,) if isinstance(item, int) and item % 5 == 0 else item


def test_numbers_among_others_come_back_in_their_order(pool: fm.ProcessPool) -> None:
    """Tasks with numbers run in a loop of their own; others and failures end and resume it."""
    kinds = (*range(400, 420), 2**80, 0.5, -1, None, "text", True, 7, 1000, 11.5, -(2**63), b"x")
    items = list(itertools.islice(itertools.cycle(kinds), 5000))
    results = pool.map(_mixed, items, return_exceptions=True)
    for item, result in zip(items, results, strict=True):
        if item in (7, 11.5):
            assert isinstance(result, ValueError)
            assert result.args == (item,)
        else:
            assert (type(result), result) == (type(_mixed(item)), _mixed(item))


def test_builtins_and_classes_get_numbers(pool: fm.ProcessPool) -> None:
    numbers = [-5, 0, 5, 1000, 0.25] * 100
    assert list(pool.map(abs, numbers)) == list(map(abs, numbers))
    assert list(pool.map(complex, numbers)) == list(map(complex, numbers))
    assert list(pool.map(partial(pow, 2), [3, 4] * 100)) == [8, 16] * 100
    assert list(pool.map(tasks.Adder(1), numbers)) == [number + 1 for number in numbers]


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_short_inputs(pool: fm.ProcessPool, n: int) -> None:
    for kwargs in ({}, {"ordered": False}, {"chunksize": 100}, {"buffersize": 1}):
        assert sorted(pool.map(tasks.negative, range(n), **kwargs)) == sorted(-i for i in range(n))


def test_several_iterables_end_with_the_shortest(pool: fm.ProcessPool) -> None:
    assert list(pool.map(pow, range(10), itertools.count())) == [i**i for i in range(10)]
    assert list(pool.map(pow, range(10), [2, 2], [3, 3, 3])) == [0, 1]


def test_starmap(pool: fm.ProcessPool) -> None:
    assert list(pool.starmap(pow, [(2, 3), [3, 2], (i for i in (10, 2))])) == [8, 9, 100]
    assert list(pool.starmap(tasks.capture, [(), (1,), (1, 2)], chunksize=2)) == [
        ((), {}),
        ((1,), {}),
        ((1, 2), {}),
    ]


def test_values_of_every_kind(pool: fm.ProcessPool) -> None:
    values = [
        None, True, False, 0, -1, 2**31, 2**63 - 1, -(2**63), 2**63, 10**50, 1.5, -0.0,
        float("inf"), "", "a", "ä" * 200, "x" * 255, "x" * 256, "x" * 100_000, "\ud800", b"",
        b"\0" * 255, b"y" * 100_000, bytearray(b"z"), (), [], {}, (1, 2.0, None), [1, "a"],
        {"a": 1}, {1: [2, {3: (4,)}]}, {1, 2}, frozenset({3}), range(5), complex(1, 2),
        list(range(1000)), Ellipsis, int, len,
    ]  # fmt: skip
    for chunksize in (None, 1, 7):
        results = list(pool.map(tasks.identity, values, chunksize=chunksize))
        assert results == values
        assert list(map(type, results)) == list(map(type, values))
    assert [pool.submit(tasks.identity, value).result() for value in values] == values


def test_identity_within_an_item_is_kept(pool: fm.ProcessPool) -> None:
    shared: list[int] = [1]
    [(first, second)] = pool.map(tasks.identity, [(shared, shared)])
    assert first is second


# ------------------------------------------------------------------ laziness


def test_window_is_filled_at_the_call(pool: fm.ProcessPool) -> None:
    items = Counted(range(1000))
    results = pool.map(tasks.negative, items, buffersize=50, chunksize=1)
    assert items.pulled == 50
    results.close()


@pytest.mark.scenario(28)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [1, 5, None])
def test_never_pulls_more_than_the_buffersize_ahead(pool, chunksize, ordered) -> None:
    """INV-7, at every single step."""
    items = Counted(itertools.count())
    results = pool.map(tasks.negative, items, buffersize=50, chunksize=chunksize, ordered=ordered)
    for consumed in range(1000):
        # What is being handed to us is not consumed yet: 50 beyond those that are.
        next(results)
        assert items.pulled <= consumed + 1 + 50
    results.close()


@pytest.mark.parametrize("buffersize", [1, 2, 3])
def test_tiny_buffers(pool: fm.ProcessPool, buffersize: int) -> None:
    items = Counted(range(200))
    for i, result in enumerate(pool.map(tasks.negative, items, buffersize=buffersize)):
        assert result == -i
        assert items.pulled <= i + 1 + buffersize


def test_default_window_is_bounded(pool: fm.ProcessPool) -> None:
    items = Counted(itertools.count())
    results = pool.map(tasks.negative, items)
    worst = max(items.pulled - i for i, _ in zip(range(100_000), results, strict=False))
    assert worst <= 2 * 2 * 4096 + 4096
    results.close()


@pytest.mark.parametrize("ordered", [True, False])
def test_an_explicit_chunksize_is_a_promise_about_inputs_that_see_it(pool, ordered) -> None:
    """Two chunks a worker, also when their tasks turn out to be short."""
    items = Counted(range(3000))
    results = pool.map(tasks.negative, items, chunksize=3, ordered=ordered)
    for consumed, _ in enumerate(results):
        assert items.pulled <= consumed + 1 + 2 * 2 * 3


def test_results_behind_a_long_task_do_not_stop_the_workers(pool, gate: tasks.Gate) -> None:
    """MAP-3: while the first of two workers is held up, the other one goes on far beyond."""
    calls = [(os.devnull, i) for i in range(1000)]
    calls[20] = (gate.path, 20)
    results = pool.starmap(tasks.pass_gate, calls, chunksize=1)
    assert [next(results) for _ in range(20)] == list(range(20))
    while pool.stats().succeeded < 500:
        time.sleep(0.001)
    gate.open()
    assert list(results) == list(range(20, 1000))


def test_large_results_keep_the_window_small(pool, gate: tasks.Gate) -> None:
    """They wait for the head of the line in our memory: no more than 64 MB, as with arguments."""
    calls = [(os.devnull, bytes(1 << 20))] * 200
    calls[20] = (gate.path, b"")
    results = pool.starmap(tasks.pass_gate, calls, chunksize=1)
    assert all(len(next(results)) == 1 << 20 for _ in range(20))
    assert pool.stats().accepted <= 20 + 1 + 64
    gate.open()
    assert sum(map(len, results)) == 179 << 20


def test_unordered_results_come_while_one_task_of_their_message_runs(
    pool, gate: tasks.Gate
) -> None:
    calls = [(os.devnull, i) for i in range(2000)]
    calls[1000] = (gate.path, 1000)
    results = pool.starmap(tasks.pass_gate, calls, chunksize=1, ordered=False)
    got = [next(results) for _ in range(1999)]
    assert sorted([*got, 1000]) == list(range(2000))
    gate.open()
    assert list(results) == [1000]


@pytest.mark.parametrize("chunksize", [1, 7])
def test_unordered_blame_inside_shared_messages(pool, chunksize: int) -> None:
    """INV-2 and INV-3: what fails or dies costs itself, also among 256 in one message."""
    results = list(
        pool.map(
            tasks.fail_or_die_at,
            range(5000),
            chunksize=chunksize,
            ordered=False,
            return_exceptions=True,
        )
    )
    assert len(results) == 5000
    failures = [result for result in results if isinstance(result, Exception)]
    assert sorted(type(failure).__name__ for failure in failures) == ["ValueError", "WorkerDied"]
    assert sorted(r for r in results if isinstance(r, int)) == [
        i for i in range(5000) if i not in (3000, 4000)
    ]


def test_bytes_bound_the_window(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    """64 MB encoded at most, whatever the number of items."""
    items = Counted(bytes(4 << 20) for _ in range(100))
    results = pool.map(tasks.length, items, chunksize=1, buffersize=1000)
    assert items.pulled <= 17
    assert list(results) == [4 << 20] * 100


@pytest.mark.scenario(28)
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_ten_million_items_keep_memory_flat(pool: fm.ProcessPool) -> None:
    def rss() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    n, seen, total = 10_000_000, 0, 0
    items = Counted(range(n))
    base = peak = 0
    for result in pool.map(abs, (i for i in items)):
        total += result
        seen += 1
        if seen % 500_000 == 0:
            base = base or rss()
            peak = max(peak, rss())
            assert items.pulled - seen <= 5 * 4096
    assert (seen, total) == (n, n * (n - 1) // 2)
    assert peak - base < 10 << 20


def test_a_slow_consumer_lets_nothing_pile_up(pool: fm.ProcessPool) -> None:
    results = pool.map(tasks.negative, itertools.count(), buffersize=20, chunksize=2)
    next(results)
    pool.submit(tasks.negative, 1).result()
    assert pool.stats().accepted <= 23
    results.close()


# ------------------------------------------------------------------ leaving early


def test_close_frees_and_ends(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    items = Counted(itertools.repeat(gate.path))
    results = pool.map(tasks.pass_gate, items, buffersize=100, chunksize=1)
    tasks.eventually(lambda: pool.stats().in_flight > 0)
    results.close()
    results.close()
    with pytest.raises(StopIteration):
        next(results)
    gate.open()
    pool.shutdown()
    assert pool.stats().cancelled >= 90


@pytest.mark.scenario(28)
def test_leaving_the_loop_cancels(pool: fm.ProcessPool, tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    for result in pool.map(partial(tasks.note, log.path), itertools.count(), buffersize=100):
        if result == 10:
            break
    pool.shutdown()
    assert len(log.entries()) <= 11 + 100 + 4


def test_with_statement_closes(pool: fm.ProcessPool) -> None:
    with pool.map(tasks.negative, itertools.count()) as results:
        assert next(results) == 0
    with pytest.raises(StopIteration):
        next(results)


def test_shutdown_delivers_what_was_accepted_then_says_so(pool: fm.ProcessPool) -> None:
    """Never a silent end."""
    results = pool.map(tasks.negative, iter(range(1000)), buffersize=10, chunksize=1)
    pool.shutdown()
    got = []
    with pytest.raises(fm.PoolClosed):
        for result in results:
            got.append(result)
    assert got == [-i for i in range(10)]


def test_shutdown_with_the_input_spent_ends_well(pool: fm.ProcessPool) -> None:
    results = pool.map(tasks.negative, iter(range(8)), buffersize=10, chunksize=1)
    pool.shutdown()
    assert list(results) == [-i for i in range(8)]


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("chunksize", [1, 4, None])
def test_a_failing_item_ends_the_loop_at_its_turn(pool, chunksize) -> None:
    results = pool.map(partial(tasks.fail_at, (5,)), range(100), chunksize=chunksize)
    got = [next(results) for _ in range(5)]
    assert got == list(range(5))
    with pytest.raises(ValueError, match="5"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("ordered", [True, False])
def test_return_exceptions(pool: fm.ProcessPool, ordered: bool) -> None:
    bad = (0, 5, 99)
    results = list(
        pool.map(partial(tasks.fail_at, bad), range(100), return_exceptions=True, ordered=ordered)
    )
    assert len(results) == 100
    failures = [r for r in results if isinstance(r, BaseException)]
    assert [type(f) for f in failures] == [ValueError] * 3
    assert sorted(f.args[0] for f in failures) == list(bad)
    if ordered:
        assert [i for i, r in enumerate(results) if isinstance(r, BaseException)] == list(bad)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [1, 3, None])
def test_an_input_that_raises_comes_after_its_results(pool, chunksize, ordered) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise LookupError("the input's own")

    got = []
    with pytest.raises(LookupError, match="the input's own"):
        for result in pool.map(tasks.negative, items(), chunksize=chunksize, ordered=ordered):
            got.append(result)
    assert sorted(got, reverse=True) == [-i for i in range(10)]


def test_an_input_that_raises_at_once(pool: fm.ProcessPool) -> None:
    def items() -> Iterator[int]:
        raise LookupError("at once")
        yield

    results = pool.map(tasks.negative, items())
    with pytest.raises(LookupError, match="at once"):
        next(results)


@pytest.mark.scenario(9)
def test_an_argument_that_does_not_travel_is_its_own_item(pool: fm.ProcessPool) -> None:
    items = [0, 1, tasks.Unpicklable(), 3, threading.Lock(), 5]
    results = list(pool.map(tasks.identity, items, return_exceptions=True))
    assert [results[i] for i in (0, 1, 3, 5)] == [0, 1, 3, 5]
    assert isinstance(results[2], fm.SerializationError)
    assert isinstance(results[4], fm.SerializationError)
    results = pool.map(tasks.identity, items)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(fm.SerializationError):
        next(results)


def test_a_task_that_raises_stop_iteration_is_no_end(pool: fm.ProcessPool) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(pool.map(tasks.fail, [StopIteration(1)]))


# ------------------------------------------------------------------ inputs with a will of their own


@pytest.mark.parametrize("ordered", [True, False])
def test_a_blocking_input_does_not_hold_back_results(pool, ordered, tmp_path) -> None:
    """The input blocks until the results before it have been seen, which are there."""
    log = tasks.Log(tmp_path)
    seen = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        yield 2
        assert seen.wait(20)
        yield 3

    def consume() -> None:
        for result in results:
            got.append(result)
            if len(got) == 2:
                seen.set()

    got: list[int] = []
    # buffersize=2: the call returns with its window full, the input not yet asked again.
    results = pool.map(
        partial(tasks.note, log.path), items(), chunksize=1, buffersize=2, ordered=ordered
    )
    tasks.eventually(lambda: len(log.entries()) == 2)
    # Noted is not yet answered, and nobody tells when it is: then the workers sleep.
    tasks.eventually(lambda: all(process.state in "SI" for process in children()))
    thread = threading.Thread(target=consume)
    thread.start()
    thread.join()
    assert sorted(got) == [1, 2, 3]


def test_an_input_that_uses_the_pool(pool: fm.ProcessPool) -> None:
    def items() -> Iterator[int]:
        for i in range(20):
            yield pool.submit(tasks.negative, -i).result()
            yield sum(pool.map(tasks.negative, [-i, 1]))

    expected = [-x for i in range(20) for x in (i, i - 1)]
    assert list(pool.map(tasks.negative, items())) == expected


def test_an_input_that_is_a_map(pool: fm.ProcessPool) -> None:
    inner = pool.map(tasks.negative, iter(range(3000)))
    outer = pool.map(tasks.negative, inner)
    assert list(outer) == list(range(3000))


def test_an_input_that_asks_its_own_map(pool: fm.ProcessPool) -> None:
    """As a generator that resumes itself: ValueError, and no deadlock."""

    def items() -> Iterator[int]:
        yield from range(10)
        next(results)

    results = pool.map(tasks.negative, items(), chunksize=1, buffersize=4)
    got = []
    with pytest.raises(ValueError, match="already executing"):
        for result in results:
            got.append(result)
    assert got == [-i for i in range(10)]


def test_an_input_that_closes_its_own_map(pool: fm.ProcessPool) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        results.close()
        yield 11

    results = pool.map(tasks.negative, items(), chunksize=1, buffersize=4)
    got = list(results)
    assert got == [-i for i in range(len(got))]
    assert pool.submit(pow, 2, 3).result() == 8


def test_two_threads_on_one_iterator(pool: fm.ProcessPool) -> None:
    """Nothing twice, nothing lost; a collision is a ValueError, as with generators."""
    got: list[int] = []
    errors: list[BaseException] = []

    def consume() -> None:
        while True:
            try:
                got.append(next(results))
            except StopIteration:
                return
            except ValueError:
                time.sleep(0)  # the other thread is at it
            except BaseException as error:
                errors.append(error)
                return

    results = pool.map(tasks.negative, range(20_000))
    crew = [threading.Thread(target=consume) for _ in range(2)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert not errors
    assert sorted(got) == sorted(-i for i in range(20_000))


def test_several_maps_at_once(pool: fm.ProcessPool) -> None:
    maps = [pool.map(partial(tasks.multiply, k), range(3000)) for k in range(5)]
    for i, row in enumerate(zip(*maps, strict=True)):
        assert row == tuple(k * i for k in range(5))


# ------------------------------------------------------------------ time


def test_timeout_counts_from_the_call(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    start = time.monotonic()
    results = pool.map(tasks.pass_gate, [gate.path], timeout=0.3)
    with pytest.raises(TimeoutError):
        next(results)
    assert 0.29 <= time.monotonic() - start < 20  # the gate is closed: else for ever
    gate.open()


def test_timeout_lets_ready_results_through(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    results = pool.map(tasks.nap, [0, 0, 0], timeout=20)
    assert list(results) == [None] * 3


@pytest.mark.parametrize("ordered", [True, False])
def test_timeout_of_a_stuck_task(pool: fm.ProcessPool, gate: tasks.Gate, ordered: bool) -> None:
    paths = ["/dev/null", gate.path]
    for timeout in (0.5, 8):  # the first result may be late as well, on a busy machine
        try:
            results = pool.map(
                tasks.pass_gate, paths, timeout=timeout, chunksize=1, ordered=ordered
            )
            assert next(results) is None
            break
        except TimeoutError:
            assert timeout < 8
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


def test_skewed_items_are_shared_out(pool: fm.ProcessPool) -> None:
    """20 tasks of 0 and 50 ms in turn, on two workers: near the 0.25 s of a perfect schedule."""

    def seconds() -> float:
        start = time.monotonic()
        list(pool.map(tasks.nap, [0, 0.05] * 10, chunksize=1))
        return time.monotonic() - start

    # A busy machine takes more time, but not each time.
    assert any(seconds() < 0.45 for _ in range(5))


def test_unordered_yields_the_quick_first(pool: fm.ProcessPool, gate: tasks.Gate) -> None:
    results = pool.map(
        tasks.pass_gate, [gate.path, "/dev/null"], ["slow", "quick"], chunksize=1, ordered=False
    )
    assert next(results) == "quick"
    gate.open()
    assert next(results) == "slow"


def test_random_shapes(pool: fm.ProcessPool) -> None:
    dice = random.Random(4)
    for _ in range(40):
        n = dice.choice((0, 1, 10, 1000))
        options = {
            "chunksize": dice.choice((None, 1, 3, 100)),
            "buffersize": dice.choice((None, 1, 5, 64, 1000)),
            "ordered": dice.random() < 0.5,
        }
        source = range(n) if dice.random() < 0.5 else iter(range(n))
        results = list(pool.map(tasks.negative, source, **options))
        assert sorted(results, reverse=True) == [-i for i in range(n)], options
        if options["ordered"]:
            assert results == [-i for i in range(n)], options


@pytest.mark.shared_pool
def test_one_liner() -> None:
    assert list(fm.map(tasks.negative, range(100), workers=2)) == [-i for i in range(100)]
    pids = {pid for _ in range(5) for pid in fm.map(tasks.pid, range(50), workers=2)}
    assert len(pids) <= 2  # the same workers each time; one alone may have been quick enough
    with pytest.raises(ValueError):
        fm.map(tasks.negative, [], workers=0)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("chunksize", "ready"), [(None, 2), (1, 1)])
def test_behind_a_long_task_of_a_map_the_next_one_lies_ready(
    gate: tasks.Gate, chunksize: int | None, ready: int
) -> None:
    """No round trip between two items, however long they take; where a chunk's size was given, an
    item does not wait behind another one."""
    with fm.ProcessPool(1, start_method="fork") as pool:
        assert list(pool.map(tasks.nap, [0.01] * 6, chunksize=chunksize)) == [None] * 6  # it learns
        held = pool.map(partial(tasks.pass_gate, gate.path), range(4), chunksize=chunksize)
        assert pool.stats().in_flight == ready
        gate.open()
        assert list(held) == list(range(4))


# ------------------------------------------------------------------------ several at once


def test_items_are_taken_several_at_once_up_to_an_odd_one(pool: fm.ProcessPool) -> None:
    """Plain, long and pickled values, failures: what is odd ends a lot, and nothing is lost."""
    results = pool.map(tasks.kind_of_seven, range(500), return_exceptions=True)
    lots: list[list[object]] = []
    more = True
    while more:
        lot: list[object] = []
        more = results.take(lot, 1 << 20, frozenset({complex}), True)
        lots.append(lot)
    flat = [value for lot in lots for value in lot]
    assert [repr(value) for value in flat] == [repr(_outcome_of_seven(n)) for n in range(500)]
    for lot in lots:
        assert not any(type(value) is complex or isinstance(value, Exception) for value in lot[:-1])
    assert all(len(lot) > 1 for lot in lots[:-1] if lot and type(lot[-1]) is complex)


def _outcome_of_seven(n: int) -> object:
    try:
        return tasks.kind_of_seven(n)
    except ValueError as error:
        return error


def test_what_comes_after_the_items_that_were_taken_loses_none(pool: fm.ProcessPool) -> None:
    def numbers() -> Iterator[int]:
        yield from range(100)
        raise OSError("the input broke")

    results = pool.map(tasks.plus_one, numbers())
    found: list[int] = []
    with pytest.raises(OSError, match="the input broke"):
        while results.take(found, 1 << 20, frozenset(), True):
            pass
    assert found == [n + 1 for n in range(100)]
    assert not results.take(found, 1, frozenset())


def test_so_many_are_taken_as_are_wanted(pool: fm.ProcessPool) -> None:
    results = pool.map(tasks.plus_one, range(100))
    found: list[int] = []
    assert results.take(found, 7, frozenset(), True)
    assert found == [n + 1 for n in range(7)]
    assert next(results) == 8
    assert results.take(found, 1000, frozenset(), True)
    assert found[7:] == [n + 1 for n in range(8, 100)]

"""Large values through shared memory: right, writable, private, and given back."""

from __future__ import annotations

import gc
import os
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill.codec import codec as _codec

np = pytest.importorskip("numpy")

MB = 1 << 20
FROM = _codec._APART

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="what goes through the arena is told apart by its statistics"
)


@pytest.fixture(params=tasks.METHODS)
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(2, start_method=request.param) as made:
        yield made


@pytest.fixture
def one() -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(1) as made:
        yield made


def stats(pool: fm.ProcessPool) -> dict[str, int]:
    arena = pool._core.native.arena
    assert arena is not None
    return arena.stats()


def in_hands(pool: fm.ProcessPool) -> int:
    """Segments that somebody holds."""
    now = stats(pool)
    return now["used"] - now["free"]


def numbers(n: int, value: int = 3) -> Any:
    return np.full(n, value, np.uint8)


VALUES: dict[str, Any] = {
    "array": lambda n: numbers(n),
    "bytes": lambda n: bytes([7]) * n,
    "ascii": lambda n: "x" * n,
    "wide text": lambda n: "\u20ac" * (n // 3 + 1),
    "surrogates": lambda n: "\udc80" * (n // 3 + 1),
    "buffers among other things": lambda n: {
        "a": numbers(n, 1), "b": [numbers(5, 2), numbers(0), numbers(n // 2, 4)], "c": "text",
    },
    "a pickle without buffers": lambda n: list(range(n // 2)),
    "read-only": lambda n: np.frombuffer(bytes(n), np.uint8),
}  # fmt: skip


def same(a: Any, b: Any) -> bool:
    return pickle.dumps(a) == pickle.dumps(b)


@pytest.mark.parametrize("kind", list(VALUES))
def test_both_ways(pool: fm.ProcessPool, kind: str) -> None:
    value = VALUES[kind](3 * MB + 5)
    for back in (
        pool.submit(tasks.identity, value).result(),
        *pool.map(tasks.identity, [value] * 5, chunksize=2),
    ):
        assert same(back, value)
    assert stats(pool)["used"] > 0  # that is the way they went
    del back
    gc.collect()
    tasks.eventually(lambda: in_hands(pool) == 0)


@pytest.mark.parametrize("n", [FROM - 1, FROM, FROM + 1])
def test_only_what_is_large_goes_that_way(one: fm.ProcessPool, n: int) -> None:
    assert one.submit(tasks.length, bytes(n)).result() == n
    assert (stats(one)["used"] > 0) is (n >= FROM)


def test_what_arrives_is_writable_and_private(pool: fm.ProcessPool) -> None:
    sent = np.ones(MB)
    first, second = pool.submit(tasks.double, sent), pool.submit(tasks.double, sent)
    a, b = first.result(), second.result()
    a[:] = 5
    assert (sent == 1).all() and (b == 2).all() and a.flags.writeable


def test_the_same_warm_memory_is_used_again(one: fm.ProcessPool) -> None:
    for i in range(20):
        assert one.submit(tasks.array_facts, numbers(MB, i)).result()
        assert int(one.submit(tasks.array_of, (MB,), i).result()[-1]) == i
    assert stats(one)["used"] <= 2


# ---------------------------------------------------------------- back as it was


def test_an_argument_comes_back_without_a_copy(one: fm.ProcessPool) -> None:
    back = one.submit(tasks.identity, numbers(8 * MB)).result()
    assert (back == 3).all()
    back += 1
    assert (back == 4).all()
    assert stats(one)["used"] == 1


def test_an_argument_changed_in_place_comes_back_without_a_copy(one: fm.ProcessPool) -> None:
    assert (one.submit(tasks.double, numbers(8 * MB)).result() == 6).all()


def test_what_the_worker_keeps_is_not_given_away(one: fm.ProcessPool) -> None:
    for _ in range(2):
        back = one.submit(tasks.keep, numbers(MB, 2)).result()
        back[:] = 100
    assert one.submit(tasks.kept_sum).result() == 2 * 2 * MB
    half = one.submit(tasks.keep_the_end, numbers(2 * MB, 1)).result()
    half[:] = 100
    assert one.submit(tasks.kept_sum).result() == 2 * 2 * MB + MB


def test_parts_come_back_each_its_own(one: fm.ProcessPool) -> None:
    array = np.arange(2 * MB, dtype=np.uint32)
    places = [(0, MB), (MB, 2 * MB)]
    for overlap in ([], [(5, MB + 5)]):
        parts = one.submit(tasks.some_of, array, *places, *overlap).result()
        for (start, end), part in zip([*places, *overlap], parts, strict=True):
            assert (part == np.arange(start, end, dtype=np.uint32)).all()
            part[:] = 0


def test_a_small_part_does_not_hold_the_whole(one: fm.ProcessPool) -> None:
    (part,) = one.submit(tasks.some_of, numbers(8 * MB), (0, 100)).result()
    assert (part == 3).all()
    tasks.eventually(lambda: in_hands(one) == 0)


# ---------------------------------------------------------------- given back


def test_a_segment_returns_with_its_last_view(one: fm.ProcessPool) -> None:
    kept = one.submit(tasks.array_of, (MB,), 1.0).result()
    view = kept[5:10]
    del kept
    assert in_hands(one) == 1
    del view
    assert in_hands(one) == 0


def test_nobody_reads_the_result(one: fm.ProcessPool) -> None:
    futures = [one.submit(tasks.array_of, (MB,), float(i)) for i in range(5)]
    wait(futures)
    del futures
    tasks.eventually(lambda: in_hands(one) == 0)


def test_a_cancelled_task_returns_its_argument(one: fm.ProcessPool, tmp_path: Any) -> None:
    with tasks.Gate(tmp_path) as gate:
        running = one.submit(tasks.pass_gate, str(gate.path))
        waiting = [one.submit(tasks.length, bytes(MB)) for _ in range(8)]
        assert [future.cancel() for future in waiting[1:]] == [True] * 7
        gate.open()
        running.result()
        assert waiting[0].result() == MB
    del waiting
    tasks.eventually(lambda: in_hands(one) == 0)


def test_what_is_refused_returns_its_argument() -> None:
    pool = fm.ProcessPool(1)
    arena = pool._core.native.arena
    pool.shutdown()
    with pytest.raises(fm.PoolClosed):
        pool.submit(tasks.length, bytes(MB))
    with pytest.raises(fm.PoolError):
        arena.stats()  # nothing is in use, so all is closed


def test_an_argument_that_cannot_be_sent_holds_nothing(one: fm.ProcessPool) -> None:
    with pytest.raises(fm.SerializationError):
        one.submit(tasks.length, [numbers(MB), sys._getframe()])
    assert one.submit(tasks.length, b"").result() == 0
    assert in_hands(one) == 0


def test_a_stream_left_early(one: fm.ProcessPool) -> None:
    outputs = one.stream(tasks.arrays_forever, MB)
    for i, array in zip(range(10), outputs, strict=False):
        assert (array == i).all()
    outputs.close()  # type: ignore[attr-defined]
    del outputs, array
    gc.collect()
    # What was still on its way is read by who waits next.
    assert one.submit(tasks.length, b"").result() == 0
    tasks.eventually(lambda: in_hands(one) == 0)


def test_a_map_left_early(pool: fm.ProcessPool) -> None:
    results = pool.map(tasks.identity, (numbers(MB, i % 251) for i in range(1000)))
    for i, array in zip(range(5), results, strict=False):
        assert (array == i).all()
    results.close()  # type: ignore[attr-defined]
    del results, array

    def all_back() -> bool:
        # What was still on its way is read by who waits next.
        return pool.submit(tasks.length, b"").result() == 0 and in_hands(pool) == 0

    tasks.eventually(all_back)


def test_a_lazy_map_holds_no_more_than_its_window(one: fm.ProcessPool) -> None:
    pulled = 0

    def items() -> Iterator[Any]:
        nonlocal pulled
        for _ in range(100):
            pulled += 1
            yield bytes(8 * MB)

    results = one.map(tasks.length, items())
    next(results)
    assert pulled <= 20  # 64 MB in all, what lies in the arena included
    results.close()  # type: ignore[attr-defined]


# ---------------------------------------------------------------- other lives


def test_results_outlive_the_pool(pool: fm.ProcessPool) -> None:
    kept = [pool.submit(tasks.array_of, (MB,), i).result() for i in range(4)]
    future = pool.submit(tasks.array_of, (MB,), 4)
    pool.shutdown()
    kept.append(future.result())  # decoded only now
    for i, array in enumerate(kept):
        assert (array == i).all()
        array += 1
        assert (array == i + 1).all()


@pytest.mark.parametrize("how", ["die", "fail"])
def test_another_try_gets_the_same_bytes(one: fm.ProcessPool, tmp_path: Any, how: str) -> None:
    task = tasks.add_one_then_die if how == "die" else tasks.add_one_then_fail
    view = one.options(retries=2, retry_on=(fm.WorkerDied, OSError))
    back = view.submit(task, str(tmp_path / "tries"), numbers(MB, 1)).result()
    assert (back == 2).all()


def test_a_forked_child_has_its_own_copy(one: fm.ProcessPool) -> None:
    array = one.submit(tasks.array_of, (MB,), 1).result()
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ready, 1)
        same = bool((array == 1).all())
        array[:] = 9
        os._exit(0 if same and one.submit else 1)
    array[:] = 2
    os.write(go, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    assert (array == 2).all()
    os.close(ready)
    os.close(go)
    del array
    tasks.eventually(lambda: in_hands(one) == 0)


def test_memory_that_a_child_may_read_is_left_alone(one: fm.ProcessPool) -> None:
    array = one.submit(tasks.array_of, (MB,), 1).result()
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ready, 1)
        os._exit(0 if (array == 1).all() else 1)
    del array
    for i in range(10):
        assert (one.submit(tasks.array_of, (MB,), 50 + i).result() == 50 + i).all()
    os.write(go, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(ready)
    os.close(go)
    assert one.submit(tasks.length, bytes(MB)).result() == MB
    tasks.eventually(lambda: in_hands(one) == 0)


def test_a_task_that_forks_has_its_argument_for_itself(pool: fm.ProcessPool) -> None:
    for _ in range(3):
        ok, array = pool.submit(tasks.fork_and_write, numbers(MB, 1)).result()
        assert ok
        assert array[0] == 1 and (array[1:] == 55).all()


def test_cow_fork_children_write_to_their_own(one: fm.ProcessPool) -> None:
    array = one.submit(tasks.array_of, (MB,), 1).result()
    with fm.executor("cow_fork", 2) as cow:
        results = list(cow.map(lambda i: float((array.__iadd__(i)).sum()), range(4)))
    assert results == [float(MB * (1 + i)) for i in range(4)]
    assert (array == 1).all()


def test_a_second_pool_inherits_results_of_the_first(one: fm.ProcessPool) -> None:
    array = one.submit(tasks.array_of, (MB,), 1).result()
    with fm.ProcessPool(1, start_method="fork", inherit=[array]) as other:
        array[:] = 2
        assert (other.submit(tasks.identity, array[:]).result() == 2).all()
        assert other.submit(tasks.length, array).result() == MB
    assert (array == 2).all()


def test_max_rss_does_not_count_the_arena() -> None:
    # Exec'd: a forked worker's memory has all of this process's in it.
    with fm.ProcessPool(1, start_method="zygote", max_rss=300 * MB) as pool:
        pids = {pool.submit(tasks.pid, bytes(200 * MB)).result() for _ in range(4)}
        assert len(pids) == 1


def made_of(kind: str, n: int) -> Any:
    """An array that was born in a worker, as a task returns it."""
    array = (
        fm.empty((n // 100, 100), "u1") if kind != "frombuffer" else fm.frombuffer(b"7" * n, "u1")
    )
    array[...] = 7
    if kind == "kept":
        tasks.keep(array)
    if kind == "two":
        return [array, fm.empty(n, "u1")]
    return {"inside": array, "number": 1} if kind == "inside" else array


@pytest.mark.parametrize(
    ("kind", "segments"),
    [("alone", 1), ("inside", 1), ("frombuffer", 1), ("kept", 2), ("two", 3)],
)
def test_an_array_that_is_born_in_a_worker(one: fm.ProcessPool, kind: str, segments: int) -> None:
    """Its memory changes hands, where it is alone and nobody holds it; else it is copied."""
    for _ in range(3):
        got = one.submit(made_of, kind, 100_000).result()
        array = got["inside"] if kind == "inside" else got[0] if kind == "two" else got
        assert array.size == 100_000
        assert (array == 7).all()
        assert array.flags.writeable
        assert array.flags.c_contiguous
        array[...] = 9  # nobody else's
        del got, array
        if kind == "kept":
            assert one.submit(tasks.kept_sum).result() % 700_000 == 0
            break
    assert stats(one)["used"] == segments


def test_an_array_that_is_born_and_dropped_gives_its_memory_back(one: fm.ProcessPool) -> None:
    assert one.submit(len, one.submit(made_of, "alone", 100_000).result()).result() == 1000
    assert list(one.map(tasks.born_sum, [200_000] * 20)) == [1_400_000] * 20
    used = stats(one)["used"]
    assert list(one.map(tasks.born_sum, [200_000] * 20)) == [1_400_000] * 20
    assert stats(one)["used"] == used <= 4
    assert in_hands(one) == 0


def test_empty_is_a_plain_array_where_there_is_no_arena(one: fm.ProcessPool) -> None:
    for shape, dtype in (
        (100_000, "u1"),
        ((3, 0), float),
        ((), "i4"),
        (10, object),
        ([2, 5], "f4"),
    ):
        here, there = fm.empty(shape, dtype), one.submit(fm.empty, shape, dtype).result()
        assert here.shape == there.shape == np.empty(shape).shape
        assert here.dtype == there.dtype == np.dtype(dtype)
    assert fm.frombuffer(b"\1\0\2\0\3\0", "u2", 2, 2).tolist() == [2, 3]
    with pytest.raises(ValueError, match="negative"):
        one.submit(fm.empty, (-1, 1 << 20)).result()
    with pytest.raises(TypeError):
        one.submit(fm.empty, "12").result()
    with pytest.raises(ValueError, match="buffer"):
        fm.frombuffer(b"123", "u2")


def test_a_forked_child_of_a_task_has_its_own_of_what_was_born(one: fm.ProcessPool) -> None:
    assert one.submit(tasks.born_and_forked, 100_000).result() == (700_000, 200_000)
    assert in_hands(one) == 0

"""Large buffers: out of band, right, writable, private."""

from __future__ import annotations

import array
from collections.abc import Iterator

import pytest

import forkmill as fm
import tasks

np = pytest.importorskip("numpy")


@pytest.fixture(params=["fork", "zygote"])
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(2, start_method=request.param) as made:
        yield made


def arrays() -> dict[str, object]:
    grid = np.arange(10_000, dtype=np.float64).reshape(100, 100)
    return {
        "small": np.arange(3),
        "page": np.arange(512),
        "ring": np.arange(8192),
        "ten MB": np.arange(1_250_000),
        "empty": np.empty((0, 5)),
        "zero dimensions": np.array(7.5),
        "transposed": grid.T,
        "every other": grid[::2, ::3],
        "fortran": np.asfortranarray(grid),
        "bool": np.zeros(70_000, dtype=bool),
        "structured": np.zeros(1000, dtype=[("a", "i4"), ("b", "f8")]),
        "text": np.array(["a", "bcd"] * 100),
        "objects": np.array([{"a": 1}, None, [2]], dtype=object),
    }


@pytest.mark.parametrize("name", list(arrays()))
def test_arrays_both_ways(pool: fm.ProcessPool, name: str) -> None:
    sent = arrays()[name]
    for back in (
        pool.submit(tasks.identity, sent).result(),
        *pool.map(tasks.identity, [sent] * 3, chunksize=2),
    ):
        assert back.shape == sent.shape
        assert back.dtype == sent.dtype
        assert (back == sent).all()
        assert back.flags.writeable
        assert not np.shares_memory(back, sent)


@pytest.mark.parametrize("size", [10, 1000, 100_000, 1_250_000])
def test_writable_and_private_on_arrival(pool: fm.ProcessPool, size: int) -> None:
    sent = np.ones(size)
    first = pool.submit(tasks.double, sent)
    second = pool.submit(tasks.double, sent)
    one, two = first.result(), second.result()
    assert (sent == 1).all()
    assert (one == 2).all() and (two == 2).all()
    one[:] = 5
    assert (two == 2).all()


def test_a_batch_of_large_results(pool: fm.ProcessPool) -> None:
    results = pool.map(tasks.array_of, [(200_000,)] * 30, range(30), chunksize=7)
    for i, result in enumerate(results):
        assert (result == i).all()
        result += 1


def test_results_stay_right_after_the_pool(pool: fm.ProcessPool) -> None:
    kept = [pool.submit(tasks.array_of, (300_000,), i).result() for i in range(5)]
    pool.shutdown()
    assert [float(a[0]) for a in kept] == [float(a[-1]) for a in kept] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, 1, 255, 256, 4096, 65_535, 65_536, 65_537, 10_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_of_any_size(pool: fm.ProcessPool, kind: type, size: int) -> None:
    sent = kind(i & 255 for i in range(min(size, 1000))) * (size // 1000 or 1)
    back = pool.submit(tasks.identity, sent).result()
    assert type(back) is kind
    assert back == sent


def test_many_buffers_in_one_argument(pool: fm.ProcessPool) -> None:
    sent = {i: np.full(i * 500, i) for i in range(50)}
    back = pool.submit(tasks.identity, sent).result()
    assert all((back[i] == sent[i]).all() and back[i].shape == sent[i].shape for i in sent)
    assert all(a.flags.writeable for a in back.values())


def test_pickle_buffers_of_other_kinds(pool: fm.ProcessPool) -> None:
    numbers = array.array("d", range(50_000))
    assert pool.submit(tasks.identity, numbers).result() == numbers
    frozen = np.arange(100_000)
    frozen.flags.writeable = False
    back = pool.submit(tasks.identity, frozen).result()
    assert (back == frozen).all()


@pytest.mark.parametrize("mb", [8, 64])
def test_large_both_ways_at_once_never_deadlock(pool: fm.ProcessPool, mb: int) -> None:
    """FAULTS 15: everybody writes, so everybody must read meanwhile (INV-6)."""
    size = mb << 20
    futures = [pool.submit(tasks.exchange, bytearray(size), size) for _ in range(4)]
    assert [len(future.result(40)) for future in futures] == [size] * 4

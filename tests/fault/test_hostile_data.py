"""Bytes that nobody should send: huge ones, ones that change on the way, a worker's scribbles.

What a worker writes into shared memory may cost its tasks, never the pool's process. What the C
core makes of any bytes is fuzzed in csrc/test/test_fuzz.c.
"""

from __future__ import annotations

import os
import pickle
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import forkmill as fm
import tasks

GIB = 1 << 30
HUGE = [2 * GIB - 1, 2 * GIB, 2 * GIB + 1, 3 * GIB + 1]
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.scenario(14)
@pytest.mark.skipif(MEMORY < 14 * GIB, reason="needs 14 GiB")
@pytest.mark.parametrize("way", ["arena", "pipe"])
@pytest.mark.parametrize("size", HUGE)
def test_values_around_two_gib_and_above_three(size: int, way: str, run_script) -> None:
    """Once a direction, in 12 GiB of addresses, twice the value's memory; others keep flowing."""
    run_script(
        f"""
        import pickle, resource
        import forkmill as fm, tasks
        from forkmill.pool import start as _start
        size, pipe = {size}, {way == "pipe"}
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, resource.RLIM_INFINITY))
        if pipe:
            class Native:
                def __getattr__(self, name):
                    real = _start.__dict__["_real"]
                    return (lambda: -1) if name == "arena_create" else getattr(real, name)
            _start._real, _start._native = _start._native, Native()
        with fm.ProcessPool(2) as pool:
            assert (pool._core.native.arena is None) == pipe
            numbers = [-i for i in range(1000)]
            data = tasks.marked(size, 7)
            expected = tasks.marks(data)
            future = pool.submit(tasks.marks, pickle.PickleBuffer(data))
            assert list(pool.map(tasks.negative, range(1000))) == numbers
            assert future.result() == expected
            assert pool.submit(tasks.marks, data).result() == expected
            del data
            future = pool.submit(tasks.marked, size, 7)
            assert list(pool.map(tasks.negative, range(1000))) == numbers
            result = future.result()
            assert tasks.marks(result) == expected
            del result, future
            assert pool.stats().died == 0
            peaks = [tasks.peak(), *pool.each(tasks.peak)]
            assert max(peaks) < 2 * size + (128 << 20), peaks
        """,
        timeout=280,
    )


@contextmanager
def scribbled(data: bytearray) -> Iterator[None]:
    """Another thread writes to a buffer as long as the block runs."""
    stop = threading.Event()

    def run() -> None:
        mark = 0
        while not stop.is_set():
            mark = (mark + 1) % 256
            data[:] = bytes([mark]) * len(data)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("size", [600, 20_000, 1 << 20], ids=["copied", "pipe", "arena"])
def test_a_buffer_that_changes_while_it_is_sent(size: int) -> None:
    """What arrives is some mixture, as long as what was sent; and it changes no more."""
    data = bytearray(size)
    with fm.ProcessPool(1, start_method="zygote") as pool, scribbled(data):
        for _ in range(30):
            back = pool.submit(tasks.identity, pickle.PickleBuffer(data)).result()
            assert len(back) == size
            first = bytes(back)
            assert bytes(back) == first
        assert pool.submit(tasks.identity, [bytearray(data)] * 3).result()[2] is not data


def test_a_container_that_changes_while_it_is_sent() -> None:
    """It arrives as it was at some time, or is refused; the pool goes on."""
    shared: dict[int, list[int]] = {}
    stop = threading.Event()

    def run() -> None:
        dice = random.Random(1)
        while not stop.is_set():
            shared[dice.randrange(1000)] = list(range(dice.randrange(10)))
            shared.pop(dice.randrange(1000), None)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with fm.ProcessPool(1, start_method="zygote") as pool:
            for _ in range(200):
                try:
                    back = pool.submit(tasks.identity, shared).result()
                except fm.SerializationError:
                    continue
                assert all(value == list(range(len(value))) for value in back.values())
            assert pool.submit(tasks.negative, 1).result() == -1
            assert pool.stats().deaths == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the memory in /proc")
@pytest.mark.parametrize("method", ["fork", "zygote"])
def test_a_worker_that_scribbles_over_its_shared_page(method: str) -> None:
    """Each task has an outcome, the pool's process is well, and a new pool knows nothing of it."""
    seed = random.randrange(1 << 30)
    print("seed:", seed)
    with fm.ProcessPool(2, start_method=method, restarts=(10_000, 10)) as pool:
        hostile = pool.options(timeout=2)
        for turn in range(15):
            futures = [hostile.submit(tasks.scribble, seed + 10 * turn + i) for i in range(2)]
            futures += [hostile.submit(tasks.negative, i) for i in range(5)]
            for future in futures:
                error = future.exception(30)
                assert error is None or isinstance(error, fm.PoolError)
            for worker in pool.workers():  # the next ones are honest
                if worker.pid:
                    os.kill(worker.pid, 9)
        stats = pool.stats()
        assert stats.accepted == stats.outcomes
    with fm.ProcessPool(2, start_method=method) as pool:
        assert list(pool.map(tasks.negative, range(100))) == [-i for i in range(100)]

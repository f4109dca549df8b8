"""`ContextPool` under many threads: its size, its order, and what its waiters are told."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import testing


def in_threads(number: int, job: Callable[[int], None]) -> None:
    """Run a job in threads at once; what it raises is raised here."""
    errors: list[BaseException] = []

    def run(n: int) -> None:
        try:
            job(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("kind", ["inline", "thread", "async", "cow_fork", "ipc_fork"])
def test_no_more_than_its_size_are_out_under_stress(kind: str) -> None:
    rounds = {"ipc_fork": 2, "cow_fork": 4}.get(kind, 30)
    out, most = set(), 0
    lock, full = threading.Lock(), threading.Event()
    with fm.ContextPool(kind, max_size=3) as pool:

        def borrow(number: int) -> None:
            nonlocal most
            dice = random.Random(number)
            for n in range(rounds):
                context = pool.acquire(f"{number}-{n}")
                with lock:
                    assert id(context) not in out
                    out.add(id(context))
                    most = max(most, len(out))
                    assert len(out) <= 3
                    if len(out) == 3:
                        full.set()
                assert full.wait(20)  # the first three wait for each other
                assert context.name == f"{number}-{n}"
                try:
                    assert context.execute(testing.square, number).join(30) == number**2
                finally:
                    with lock:
                        out.discard(id(context))
                    if dice.random() < 0.2:
                        context.close()
                    pool.release(context)

        in_threads(8, borrow)
        assert most == 3
        assert (pool.active, pool.available) == (0, 3)


def test_terminate_while_others_borrow(tmp_path: Any) -> None:
    """Who is ended gets WorkerDied, nobody else; no place is lost."""
    ended, served = [], []
    with fm.ContextPool("cow_fork", max_size=2) as pool:

        def borrow(number: int) -> None:
            for _ in range(3):
                context = pool.acquire()
                try:
                    context.execute(time.sleep, 60 if number % 2 else 0)
                    if number % 2:
                        context.terminate()
                    context.join(30)
                    served.append(number)
                except fm.WorkerDied:
                    ended.append(number)
                finally:
                    pool.release(context)

        in_threads(6, borrow)
        assert sorted(ended) == sorted([1, 3, 5] * 3) and sorted(served) == sorted([0, 2, 4] * 3)
        assert (pool.active, pool.available) == (0, 2)
        assert pool.metrics().failed == 9


def test_who_gives_up_leaves_the_line_to_the_others() -> None:
    with fm.ContextPool("inline", max_size=1) as pool:
        held = pool.acquire()
        order: list[str] = []

        def wait(name: str, timeout: float | None) -> None:
            try:
                context = pool.acquire(name, timeout)
            except TimeoutError:
                order.append(f"{name} gave up")
                return
            order.append(name)
            pool.release(context)

        threads = []
        for n, (name, timeout) in enumerate([("a", None), ("b", 0.05), ("c", None)]):
            threads.append(threading.Thread(target=wait, args=(name, timeout)))
            threads[-1].start()
            tasks.eventually(lambda n=n: pool.metrics().waiting + len(order) == n + 1)
        tasks.eventually(lambda: order == ["b gave up"])
        pool.release(held)
        for thread in threads:
            thread.join(20)
        assert order == ["b gave up", "a", "c"]
        assert (pool.active, pool.available, pool.metrics().waiting) == (0, 1, 0)


def test_the_place_of_one_who_gives_up_is_not_lost() -> None:
    """A place may be given at the moment in which its waiter gives up."""
    with fm.ContextPool("inline", max_size=2) as pool:

        def borrow(number: int) -> None:
            for _ in range(200):
                with contextlib.suppress(TimeoutError):
                    pool.release(pool.acquire(timeout=0.0001 * (number % 3)))

        in_threads(8, borrow)
        assert (pool.active, pool.available, pool.metrics().waiting) == (0, 2, 0)


def test_close_tells_who_waits() -> None:
    pool = fm.ContextPool("inline", max_size=1)
    held = pool.acquire()
    told: list[type] = []

    def wait(_: int) -> None:
        try:
            pool.acquire()
        except fm.PoolClosed as error:
            told.append(type(error))

    closer = threading.Thread(
        target=lambda: (tasks.eventually(lambda: pool.metrics().waiting == 3), pool.close())
    )
    closer.start()
    in_threads(3, wait)
    closer.join(20)
    assert told == [fm.PoolClosed] * 3
    pool.release(held)
    assert (pool.active, pool.available) == (0, 1)

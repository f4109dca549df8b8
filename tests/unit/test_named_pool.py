"""Shared pools by name: `named_pool`, and what a pool's name means where a context is asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
from forkmill import contexts, testing
from forkmill.contexts import specs


@pytest.fixture(autouse=True)
def _no_names_left() -> Iterator[None]:
    yield
    for pool in list(specs.POOLS.values()):
        pool.shutdown()
    assert not specs.POOLS


def test_nothing_starts_before_the_first_use() -> None:
    before = threading.active_count()
    pool = fm.named_pool("io", "thread:3")
    assert threading.active_count() == before and pool._executor is None
    assert pool.name == "io" and pool.type == "thread" and pool.spec.max_workers == 3
    assert pool.submit(testing.square, 4).result(20) == 16
    assert pool.width == 3 and list(pool.map(testing.square, [1, 2])) == [1, 4]


def test_all_who_name_it_share_it() -> None:
    pool = fm.named_pool("io", "thread", 2)
    assert fm.named_pool("io") is pool and fm.named_pool("io", "thread:2") is pool
    with fm.executor("io") as executor:
        assert executor.submit(threading.current_thread).result(20).name.startswith("thread-")
        assert executor.metrics().created == pool.metrics().created
    with fm.create_context("io") as context:
        assert context.execute(testing.square, 3).join(20) == 9
    assert pool.submit(testing.square, 5).result(20) == 25  # neither of them has ended it


def test_a_spec_by_name_is_the_pool() -> None:
    pool = fm.named_pool("io", fm.thread(2))
    spec = contexts.spec("io")
    assert spec.type == "thread" and str(spec) == "io" and spec == contexts.spec("io")
    lane = spec.lane(contexts.Work(testing.square))
    lane.put(3)
    taken = lane.take(20)
    assert taken is not None and taken.outputs == [9]
    lane.close()
    assert pool.submit(testing.square, 3).result(20) == 9
    with pytest.raises(TypeError, match="shared"):
        contexts.spec("io", 4)
    with pytest.raises(TypeError, match="shared"):
        fm.executor("io", initializer=print)


def test_unknown_names_name_the_nearest() -> None:
    fm.named_pool("downloads", "thread:2")
    with pytest.raises(ValueError, match="did you mean 'downloads'"):
        fm.named_pool("download")
    with pytest.raises(ValueError, match="did you mean 'downloads'"):
        fm.executor("dowloads")


def test_a_name_stands_for_one_pool() -> None:
    fm.named_pool("io", "thread:2")
    with pytest.raises(ValueError, match="another one"):
        fm.named_pool("io", "thread:3")
    with pytest.raises(ValueError, match="named pool itself"):
        fm.named_pool("other", "io")
    with pytest.raises(ValueError, match="already"):
        contexts.register("io", contexts.Executor)


@pytest.mark.parametrize("name", ["thread", "fork", "", " io", "io:3"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        fm.named_pool(name, "thread:2")


def test_wrong_arguments() -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match="str"):
        fm.named_pool(wrong, "thread:2")
    with pytest.raises(TypeError, match="together with a type"):
        fm.named_pool("io", max_workers=3)
    with pytest.raises(TypeError, match="no option"):
        fm.named_pool("io", "thread:3", colour=1)
    with pytest.raises(ValueError, match="unknown context type"):
        fm.named_pool("io", "thraed:3")


def test_shutdown_ends_it_for_all_and_frees_the_name() -> None:
    pool = fm.named_pool("io", "thread:2")
    lent = fm.executor("io")
    assert pool.submit(testing.square, 3).result(20) == 9
    with pool:
        pass
    pool.shutdown()
    for one in (pool, lent):
        with pytest.raises(fm.PoolClosed):
            one.submit(testing.square, 3)
    with pytest.raises(ValueError, match="no pool named"):
        fm.named_pool("io")
    again = fm.named_pool("io", "thread:1")
    assert again is not pool and again.submit(testing.square, 3).result(20) == 9


def test_the_first_use_happens_once() -> None:
    pool = fm.named_pool("io", "thread:2")
    gate, seen = threading.Barrier(8), []

    def use() -> None:
        gate.wait(20)
        seen.append(fm.named_pool("io", "thread:2").executor)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(seen) == 8 and set(map(id, seen)) == {id(pool.executor)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    pool = fm.named_pool("io", "thread:2")
    assert pool.submit(testing.square, 3).result(20) == 9
    parent = pool.executor
    pid = os.fork()
    if pid == 0:
        good = False
        try:
            good = fm.named_pool("io").submit(testing.square, 4).result(20) == 16
            good = good and pool.executor is not parent
        finally:
            os._exit(not good)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert pool.executor is parent


def test_workers_make_their_own() -> None:
    fm.named_pool("io", "thread:2")
    with fm.executor("ipc_fork", 1, start_method="fork") as executor:
        assert executor.submit(square_over_io, 5).result(20) == 25


def square_over_io(number: int) -> Any:
    return fm.named_pool("io", "thread:2").submit(testing.square, number).result(20)


def test_it_cannot_be_sent() -> None:
    import pickle

    with pytest.raises(TypeError, match="by its name"):
        pickle.dumps(fm.named_pool("io", "thread:2"))

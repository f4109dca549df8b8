"""Bad options: TypeError or ValueError in the caller's frame, and nothing is started."""

from __future__ import annotations

import asyncio

import pytest

import forkmill as fm
import tasks

NAN = float("nan")


@pytest.mark.parametrize(
    "options, error",
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": -1}, ValueError),
        ({"max_workers": 10**6}, ValueError),
        ({"max_workers": 2.0}, TypeError),
        ({"max_workers": "2"}, TypeError),
        ({"max_workers": True}, TypeError),
        ({"mp_context": "fork"}, TypeError),
        ({"initializer": 5}, TypeError),
        ({"finalizer": "f"}, TypeError),
        ({"initargs": 5}, TypeError),
        ({"inherit": 5}, TypeError),
        ({"start_method": "forkserver"}, ValueError),
        ({"start_method": "thread"}, ValueError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": -1}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"max_rss": 0}, ValueError),
        ({"max_rss": "1G"}, TypeError),
        ({"restarts": 3}, TypeError),
        ({"restarts": (3,)}, TypeError),
        ({"restarts": (-1, 10)}, ValueError),
        ({"restarts": (1, 0)}, ValueError),
        ({"restarts": ("a", 1)}, TypeError),
        ({"init_timeout": 0}, ValueError),
        ({"init_timeout": -1}, ValueError),
        ({"init_timeout": NAN}, ValueError),
        ({"init_timeout": "60"}, TypeError),
        ({"name": 5}, TypeError),
        ({"no_such_option": 1}, TypeError),
    ],
    ids=str,
)
def test_of_the_pool(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        fm.ProcessPool(**{"max_workers": 1, **options})
    [name] = options
    assert name in str(caught.value)  # it says which


@pytest.fixture(scope="module")
def pool():
    with fm.ProcessPool(1, start_method="fork") as made:
        made.submit(pow, 1, 1).result()  # the worker is there: its descriptors are not a test's
        yield made


@pytest.mark.parametrize(
    "options, error",
    [
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": NAN}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"retries": -1}, ValueError),
        ({"retries": 1.5}, TypeError),
        ({"retry_on": "OSError"}, TypeError),
        ({"retry_on": (5,)}, TypeError),
        ({"priority": 1.5}, TypeError),
        ({"priority": "high"}, TypeError),
        ({"nice": 5}, TypeError),
    ],
    ids=str,
)
def test_of_options(pool: fm.ProcessPool, options, error) -> None:
    with pytest.raises(error) as caught:
        pool.options(**options)
    [name] = options
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"chunksize": 0}, ValueError),
        ({"chunksize": -5}, ValueError),
        ({"chunksize": 1.5}, TypeError),
        ({"chunksize": "1"}, TypeError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": -1}, ValueError),
        ({"buffersize": 1.5}, TypeError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": NAN}, ValueError),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["map", "starmap", "amap"])
def test_of_map(pool: fm.ProcessPool, verb: str, options, error) -> None:
    async def call() -> None:
        getattr(pool, verb)(abs, [1], **options)

    with pytest.raises(error) as caught:
        asyncio.run(call())
    [name] = options
    assert name in str(caught.value)


def test_what_is_called(pool: fm.ProcessPool) -> None:
    for bad in (5, None, "len"):
        for call in (pool.submit, pool.each):
            with pytest.raises(TypeError, match="call"):
                call(bad)
        for call in (pool.map, pool.starmap):
            with pytest.raises(TypeError, match="call"):
                call(bad, [1])
    with pytest.raises(TypeError):
        pool.map(abs, 5)
    with pytest.raises(TypeError):
        pool.submit()
    for credit in (0, -1):
        with pytest.raises(ValueError, match="credit"):
            pool.stream(tasks.count_to, 5, credit=credit)
    with pytest.raises(TypeError, match="credit"):
        pool.stream(tasks.count_to, 5, credit="a")
    assert pool.submit(pow, 2, 3).result() == 8


def test_a_pool_is_not_sent_or_copied(pool: fm.ProcessPool) -> None:
    import copy

    with pytest.raises(TypeError):
        copy.copy(pool)
    with pytest.raises(fm.SerializationError):
        pool.submit(tasks.identity, pool)


def test_a_timeout_of_zero_of_map_is_at_once(pool: fm.ProcessPool, tmp_path) -> None:
    with tasks.Gate(tmp_path) as gate:
        results = pool.map(tasks.pass_gate, [gate.path], timeout=0)
        with pytest.raises(TimeoutError):
            next(results)


def test_a_foreign_fork_gets_an_error_and_harms_nobody(run_script) -> None:
    """INV-9."""
    script = run_script(
        """
        import os, forkmill as fm, tasks
        pool = fm.ProcessPool(2)
        gate = tasks.Gate(".")
        # What has come may be read anywhere; what is still to come is the parent's alone.
        results = pool.map(tasks.pass_gate, [os.devnull] + [gate.path] * 999, range(1000))
        assert next(results) == 0
        future = pool.submit(tasks.pass_gate, gate.path)
        child = os.fork()
        if not child:
            errors = 0
            for call in (
                lambda: pool.submit(pow, 2, 3),
                lambda: pool.map(abs, [1]),
                lambda: list(results),
                lambda: pool.each(os.getpid),
                lambda: future.result(timeout=5),
            ):
                try:
                    print("?", call(), flush=True)
                except fm.PoolError as error:
                    errors += 1
                except BaseException as error:
                    print("!", repr(error), flush=True)
            pool.shutdown()
            del pool, results, future
            print("errors", errors, flush=True)
            with fm.ProcessPool(1) as mine:
                print("own", mine.submit(pow, 2, 5).result(), flush=True)
            raise SystemExit(0)
        assert os.waitpid(child, 0)[1] == 0
        gate.open()
        assert future.result() is None
        assert list(results) == list(range(1, 1000))
        assert list(pool.map(abs, range(10000))) == list(range(10000))
        pool.shutdown()
        print("parent fine")
        """
    )
    assert "?" not in script.stdout and "!" not in script.stdout, script.stdout
    assert "errors 5" in script.stdout
    assert "own 32" in script.stdout
    assert "parent fine" in script.stdout

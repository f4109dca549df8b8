"""run, amap and run_in_executor: the pool under event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import forkmill as fm
import tasks


@pytest.fixture
def pool() -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(2, start_method="fork") as made:
        yield made


def test_run(pool: fm.ProcessPool) -> None:
    async def main() -> None:
        assert await pool.run(pow, 2, 3) == 8
        assert await pool.run(tasks.multiply, 2, y=5) == 10
        with pytest.raises(ZeroDivisionError):
            await pool.run(divmod, 1, 0)

    asyncio.run(main())


def test_many_at_once(pool: fm.ProcessPool) -> None:
    async def main() -> None:
        calls = [pool.run(tasks.negative, i) for i in range(2000)]
        assert await asyncio.gather(*calls) == [-i for i in range(2000)]

    asyncio.run(main())


def test_one_after_the_other(pool: fm.ProcessPool) -> None:
    async def main() -> None:
        for i in range(500):
            assert await pool.run(tasks.negative, i) == -i

    asyncio.run(main())


def test_the_loop_goes_on_meanwhile(pool: fm.ProcessPool, tmp_path: Path) -> None:
    async def main() -> None:
        with tasks.Gate(tmp_path) as gate:
            call = asyncio.ensure_future(pool.run(tasks.pass_gate, gate.path, 5))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not call.done()
            gate.open()
            assert await call == 5

    asyncio.run(main())


def test_run_in_executor(pool: fm.ProcessPool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(pool, tasks.negative, i) for i in range(300)]
        assert await asyncio.gather(*calls) == [-i for i in range(300)]
        with pytest.raises(ValueError, match="5"):
            await loop.run_in_executor(pool, tasks.fail, ValueError(5))

    asyncio.run(main())


def test_wrap_future(pool: fm.ProcessPool) -> None:
    async def main() -> None:
        assert await asyncio.wrap_future(pool.submit(tasks.negative, 1)) == -1

    asyncio.run(main())


def test_wait_for_cancels(pool: fm.ProcessPool, tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)

    async def main() -> None:
        with tasks.Gate(tmp_path) as gate:
            busy = [pool.submit(tasks.pass_gate, gate.path) for _ in range(2)]
            while not all(future.running() for future in busy):
                await asyncio.sleep(0.001)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(pool.run(tasks.note, log.path, 1), 0.05)
            gate.open()
            await asyncio.gather(*map(asyncio.wrap_future, busy))

    asyncio.run(main())
    pool.shutdown()
    assert log.entries() == []
    assert pool.stats().cancelled == 1


def test_two_loops_in_two_threads(pool: fm.ProcessPool) -> None:
    failures: list[object] = []

    async def main(sign: int) -> None:
        for i in range(200):
            calls = [pool.run(tasks.negative, sign * k) for k in range(5)]
            if await asyncio.gather(*calls) != [-sign * k for k in range(5)]:
                failures.append(i)

    crew = [threading.Thread(target=lambda s=s: asyncio.run(main(s))) for s in (1, -1)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert not failures


def test_loops_one_after_the_other(pool: fm.ProcessPool) -> None:
    async def main() -> None:
        assert await pool.run(tasks.negative, 1) == -1

    for _ in range(20):
        asyncio.run(main())


@pytest.mark.parametrize("ordered", [True, False])
def test_amap(pool: fm.ProcessPool, ordered: bool) -> None:
    async def main() -> None:
        results = [r async for r in pool.amap(tasks.negative, iter(range(3000)), ordered=ordered)]
        assert sorted(results, reverse=True) == [-i for i in range(3000)]
        if ordered:
            assert results == [-i for i in range(3000)]

    asyncio.run(main())


def test_amap_is_lazy_and_closable(pool: fm.ProcessPool) -> None:
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    async def main() -> None:
        results = pool.amap(tasks.negative, items(), buffersize=10, chunksize=1)
        i = 0
        async for result in results:
            i += 1
            assert result == -i
            assert pulled <= i + 10
            if i == 100:
                break
        await results.aclose()

    asyncio.run(main())


def test_amap_failures(pool: fm.ProcessPool) -> None:
    async def main() -> None:
        got = []
        with pytest.raises(ValueError, match="3"):
            async for result in pool.amap(tasks.fail_at, [(3,)] * 6, range(6), chunksize=1):
                got.append(result)
        assert got == [0, 1, 2]
        results = [
            r async for r in pool.amap(tasks.fail_at, [(3,)] * 6, range(6), return_exceptions=True)
        ]
        assert [type(r) for r in results] == [int, int, int, ValueError, int, int]

    asyncio.run(main())


def test_outside_a_loop(pool: fm.ProcessPool) -> None:
    with pytest.raises(RuntimeError):
        pool.run(pow, 2, 3)


def test_a_worker_dies(pool: fm.ProcessPool) -> None:
    async def main() -> None:
        with pytest.raises(fm.WorkerDied):
            await pool.run(tasks.die, "kill")
        assert await pool.run(pow, 2, 3) == 8

    asyncio.run(main())


def test_shutdown_with_calls_under_way(pool: fm.ProcessPool) -> None:
    async def main() -> None:
        calls = [pool.run(tasks.nap, 0.01, i) for i in range(10)]
        await asyncio.to_thread(pool.shutdown)
        assert await asyncio.wait_for(asyncio.gather(*calls), 10) == list(range(10))
        with pytest.raises(fm.PoolClosed):
            await pool.run(pow, 1, 1)

    asyncio.run(main())

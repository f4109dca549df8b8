"""A pool that a task opens has no workers of its own, and behaves as one that has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm

METHODS = ["fork", "zygote", "spawn"] if sys.platform == "linux" else ["spawn"]


class Odd(BaseException):
    """Nobody's."""


def leave() -> None:
    sys.exit(3)


def cancelled() -> None:
    raise asyncio.CancelledError("not me")


def odd() -> None:
    raise Odd("odd")


def unsent() -> Any:
    return (n for n in range(3))


def outputs(number: int) -> Iterator[Any]:
    yield from range(number)
    sys.exit(2)


def not_iterable() -> int:
    return 1


def fails_first(path: str) -> int:
    """Fails as often as the file's name says."""
    with open(path, "a+") as file:
        file.write("x")
        file.seek(0)
        tries = len(file.read())
    if tries < 3:
        raise ValueError(f"try {tries}")
    return tries


def note(path: str, text: str = "x") -> None:
    with open(path, "a") as file:
        file.write(text)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or what it raises, as plain data."""
    try:
        return call()
    except BaseException as error:
        return type(error).__name__, str(error).partition(":")[0][:25]


# What a program does with a pool; each gets what makes one, and a folder.


def submitted(make: Any, folder: Path) -> Any:
    with make() as pool:
        return [
            outcome(lambda f=f: type(pool.submit(f).exception()).__name__)
            for f in (leave, cancelled, odd, unsent, len)
        ]


def results_raise(make: Any, folder: Path) -> Any:
    with make() as pool:
        return [outcome(pool.submit(f).result) for f in (leave, cancelled, odd, unsent)]


def copies(make: Any, folder: Path) -> Any:
    given, table = [1], {"a": [1]}
    with make() as pool:
        pool.submit(given.append, 2).result()
        back = pool.submit(list, [table]).result()
        back[0]["a"].append(2)
        pool.submit(lambda: given.append(3)).result()
        list(pool.map(given.append, [4, 5]))
        list(pool.map(list.append, [given], [6]))
        buffer = bytearray(200_000)
        pool.submit(buffer.__setitem__, 0, 1).result()
    return given, table, buffer[0]


def unsendable(make: Any, folder: Path) -> Any:
    with make() as pool, open(os.devnull, "rb") as file:
        return [
            outcome(lambda: pool.submit(len, unsent()))[0],
            outcome(lambda: pool.submit(file.read))[0],
            outcome(lambda: list(pool.map(len, [[1], unsent()])))[0],
            [type(r).__name__ for r in pool.map(len, [[1], unsent()], return_exceptions=True)],
            outcome(lambda: pool.stream(outputs, unsent()))[0],
        ]


def maps(make: Any, folder: Path) -> Any:
    def run(*args: Any, **options: Any) -> Any:
        with make() as pool:
            return outcome(lambda: list(pool.map(*args, **options)))

    return [
        run(abs, [-1, 2]),
        run(int, ["1", "x", "3"])[0],
        [getattr(r, "args", r) for r in run(int, ["1", "x", "3"], return_exceptions=True)],
        run(sys.exit, [3], return_exceptions=True),
        run(pow, [2, 3], [3, 2, 1]),
        run(abs, []),
    ]


def starmaps(make: Any, folder: Path) -> Any:
    with make() as pool:
        return list(pool.starmap(pow, [(2, 3), (3, 2)]))


def maps_time_out(make: Any, folder: Path) -> Any:
    with make() as pool:
        return (
            outcome(lambda: list(pool.map(time.sleep, [0.4], timeout=0.1)))[0],
            list(pool.map(abs, [-1], timeout=20)),
            outcome(lambda: list(pool.map(time.sleep, [0.3, 0.3], timeout=0.2)))[0],
        )


def retries(make: Any, folder: Path) -> Any:
    with make() as pool:
        again = pool.options(retries=5, retry_on=ValueError)
        found = [
            again.submit(fails_first, str(folder / "a")).result(),
            list(again.map(fails_first, [str(folder / "b")])),
            outcome(pool.submit(fails_first, str(folder / "c")).result),
        ]
        return found, pool.stats().retried


def streams(make: Any, folder: Path) -> Any:
    with make() as pool:
        found = []
        with contextlib.suppress(SystemExit):
            for output in pool.stream(outputs, 3):
                found.append(output)
        early = pool.stream(outputs, 10)
        found.append(next(early))
        early.close()
        return found, outcome(lambda: list(pool.stream(not_iterable)))[0]


def everywhere(make: Any, folder: Path) -> Any:
    with make() as pool:
        return pool.each(abs, -3), outcome(lambda: pool.each(leave))


def on_a_loop(make: Any, folder: Path) -> Any:
    async def main(pool: fm.ProcessPool) -> Any:
        found = [await pool.run(abs, -1)]
        found += [result async for result in pool.amap(abs, [-2, -3])]
        try:
            await pool.run(cancelled)
        except BaseException as error:
            found.append(type(error).__name__)
        return found

    with make() as pool:
        return asyncio.run(main(pool))


def beginnings_and_ends(make: Any, folder: Path) -> Any:
    path, seen = str(folder / "notes"), []

    def begin(text: str) -> None:
        note(path, text)
        seen.append(text)

    with make(initializer=begin, initargs=("begin ",), finalizer=lambda: note(path, "end")) as pool:
        pool.submit(abs, 1).result()
    pool.shutdown()
    return seen, (folder / "notes").read_text()


def a_bad_beginning(make: Any, folder: Path) -> Any:
    pool = make(initializer=odd)

    def first() -> Any:
        return pool.submit(abs, 1).result()

    try:
        return outcome(first)[0], outcome(lambda: list(pool.map(abs, [1])))[0]
    finally:
        pool.shutdown()


def after_the_end(make: Any, folder: Path) -> Any:
    with make() as pool:
        future = pool.submit(abs, -1)
        future.result()
        told = future.cancel(), future.kill(), future.done()
    return told, outcome(lambda: pool.submit(abs, 1))[0], pool.stats().state


def counts(make: Any, folder: Path) -> Any:
    with make() as pool:
        pool.submit(leave).exception()
        list(pool.map(abs, range(3)))
        list(pool.stream(range, 2))
        stats = pool.stats()
    return stats.accepted, stats.outcomes, stats.succeeded, stats.failed


SCENES = [
    submitted, results_raise, copies, unsendable, maps, starmaps, maps_time_out, retries, streams,
    everywhere, on_a_loop, beginnings_and_ends, a_bad_beginning, after_the_end, counts,
]  # fmt: skip


def with_workers(**options: Any) -> fm.ProcessPool:
    return fm.ProcessPool(1, **options)


def play(scene: Any, folder: Path) -> tuple[Any, Any, str]:
    """A scene with a pool that has a worker, and with one that has none."""
    real, nested = folder / "real", folder / "nested"
    real.mkdir()
    nested.mkdir()
    with fm.ProcessPool() as pool:
        state = pool.stats().state
    return scene(with_workers, real), scene(fm.ProcessPool, nested), state


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_in_a_worker_does_what_one_with_workers_does(method: str, tmp_path: Path) -> None:
    with fm.ProcessPool(1, start_method=method) as pool:
        for scene in SCENES:
            folder = tmp_path / scene.__name__
            folder.mkdir()
            real, nested, state = pool.submit(play, scene, folder).result(timeout=50)
            assert (state, nested) == ("inline", real), scene.__name__


def refused(_: int) -> str:
    with fm.ProcessPool() as pool:
        try:
            pool.options(timeout=0.2)
        except ValueError as error:
            return str(error)
    return "taken"


def nested_twice(depth: int) -> Any:
    with fm.ProcessPool() as pool:
        return pool.submit(nested_twice, depth - 1).result() if depth else list(fm.map(abs, [-1]))


def killed(path: str) -> Any:
    pool = fm.ProcessPool(finalizer=lambda: note(path))
    results = pool.map(abs, [-1, -2])
    next(results)
    stream = pool.stream(iter, [1, 2])
    next(stream)
    pool.kill()
    told = [outcome(lambda: next(results)), outcome(lambda: next(stream))]
    return os.path.exists(path), told, [*results, *stream]


def dropped(path: str) -> bool:
    fm.ProcessPool(finalizer=lambda: note(path))
    return os.path.exists(path)


def slow_beginning(_: int) -> Any:
    pool = fm.ProcessPool(initializer=time.sleep, initargs=(0.3,), init_timeout=0.1)
    return outcome(lambda: pool.submit(abs, 1))


def read_late(_: int) -> list[int]:
    with fm.ProcessPool() as pool:
        results = pool.map(abs, [-1, -2, -3])
    return list(results)


def never_read(path: str) -> str:
    with fm.ProcessPool() as pool:
        results = pool.map(note, [path] * 5)
    del results
    return Path(path).read_text()


def read_late_without_a_length(_: int) -> Any:
    with fm.ProcessPool() as pool:
        results = pool.map(abs, iter([-1, -2, -3]))
        first = next(results)
    return first, outcome(lambda: list(results))[0]


class Breaks:
    """An input with a length that raises in the middle."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[int]:
        yield from (-1, -2)
        raise KeyError("the input")


def of_a_broken_input(read_late: bool) -> Any:
    got = []
    with fm.ProcessPool() as pool:
        results = pool.map(abs, Breaks())
        if not read_late:
            got.append(next(results))
    return outcome(lambda: got.extend(results))[0], got


def stopping(x: int) -> int:
    if x:
        raise StopIteration
    return x


def stopped(keep: bool) -> Any:
    results = fm.ProcessPool().map(stopping, [0, 1, 0], return_exceptions=keep)
    return next(results), outcome(lambda: [type(result).__name__ for result in results])


def test_a_map_ends_as_one_of_workers_ends() -> None:
    with fm.ProcessPool(1) as pool:
        for read_late in (False, True):
            assert pool.submit(of_a_broken_input, read_late).result() == ("KeyError", [1, 2])
        wrapped = ("RuntimeError", "the task raised StopItera")
        assert pool.submit(stopped, False).result() == (0, wrapped)
        assert pool.submit(stopped, True).result() == (0, ["RuntimeError", "int"])


def test_maps_are_finished_at_the_end_if_their_input_has_a_length(tmp_path: Path) -> None:
    with fm.ProcessPool(1) as pool:
        assert pool.submit(read_late, 0).result() == [1, 2, 3]
        assert pool.submit(never_read, str(tmp_path / "notes")).result() == "xxxxx"
        assert pool.submit(read_late_without_a_length, 0).result() == (1, "PoolClosed")


def test_what_only_workers_can_do_is_refused_by_name(tmp_path: Path) -> None:
    with fm.ProcessPool(1) as pool:
        assert "ask for workers, as by ProcessPool(1)" in pool.submit(refused, 0).result()
        assert pool.submit(nested_twice, 3).result() == [1]
        closed = ("PoolClosed", "the pool was stopped befo")
        told = pool.submit(killed, str(tmp_path / "killed")).result()
        assert told == (False, [closed, closed], [])
        assert pool.submit(dropped, str(tmp_path / "dropped")).result()
        kind, text = pool.submit(slow_beginning, 0).result()
        assert (kind, text.startswith("the initializer took long")) == ("InitError", True)

"""Nodes that tests of graphs send to workers."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import Executor, Future
from typing import Any

import forkmill as fm


def double(x: int) -> int:
    return 2 * x


def plus(double: int) -> int:
    return double + 1


def both(double: int, plus: int) -> int:
    return 1000 * double + plus


@fm.node(output_name=("quotient", "rest"))
def divided(x: int, by: int = 3) -> tuple[int, int]:
    return divmod(x, by)


def three_fails(x: int) -> int:
    if x == 3:
        raise ValueError("it is three")
    return x


def behind(three_fails: int) -> int:
    return three_fails + 1


def mixed(behind: int, double: int) -> int:
    return behind + double


def three_dies(x: int) -> int:
    if x == 3:
        os._exit(7)
    return x


def after_death(three_dies: int) -> int:
    return three_dies


def three_hangs(x: int) -> int:
    if x == 3:
        time.sleep(600)
    return x


async def three_waits(x: int) -> int:
    if x == 3:
        await asyncio.sleep(600)
    return x


def numbers(n: int) -> list[int]:
    return list(range(n))


def tenfold(v: int) -> int:
    return 10 * v


def shifted(tenfold: int, base: int) -> int:
    return tenfold + base


def base(n: int) -> int:
    return 100 * n


def total(shifted: list[Any]) -> int:
    return sum(each if isinstance(each, int) else 7 for each in shifted)


def two_fails(v: int) -> int:
    if v == 2:
        raise ValueError("inner two")
    return v


def kinds(two_fails: list[Any]) -> list[str]:
    return [type(each).__name__ for each in two_fails]


class Peak:
    """How many calls there are at once, at most, in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.calls = 0

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *exc: object) -> None:
        with self.lock:
            self.now -= 1


class Lone(Executor):
    """Runs a call when it is submitted; who shuts it down is noted."""

    def __init__(self) -> None:
        self.submitted = 0
        self.shut = False

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.shut = True


def fails_twice(x: int, folder: str) -> int:
    path = os.path.join(folder, f"tries-{x}")
    with open(path, "ab") as file:
        file.write(b"x")
    if x == 1 and os.path.getsize(path) < 3:
        raise ValueError("not yet")
    return x


def dies_twice(x: int, folder: str) -> int:
    path = os.path.join(folder, f"deaths-{x}")
    with open(path, "ab") as file:
        file.write(b"x")
    if x == 1 and os.path.getsize(path) < 3:
        os._exit(9)
    return x


def length(big: Any, x: int) -> int:
    return len(big) + x


def pid(x: int) -> int:
    return os.getpid()


def listed(x: list[int]) -> list[tuple[int, int]]:
    return [(each, len(x)) for each in x]


def short(x: list[int]) -> list[int]:
    return x[:-1]


def count_inside(x: int) -> int:
    """A graph that a function runs itself."""
    graph = fm.Graph([double, plus])
    rows = graph.map({"x": range(x)}, "x", engine="parallel:2")
    return sum(rows["plus"])


def looked_up(x: int, table: Any) -> Any:
    return table[x]


def after_look(looked_up: int) -> int:
    return looked_up + 1


@fm.node(context="parallel")
def two_tables(at: int, left: bytes, right: bytes) -> tuple[int, int]:
    return left[at], right[at]


class Table(dict[int, int]):
    """A large constant, of which it can be told whether it is still there."""

    def __init__(self) -> None:
        super().__init__(enumerate(range(12_000)))


def leave_pid(folder: str) -> None:
    """Leave a file that is named as this process."""
    open(os.path.join(folder, str(os.getpid())), "w").close()


async def _later(x: int) -> int:
    if x % 2:
        raise LookupError(x)
    return x


KINDS = 12


def any_kind(x: Any) -> Any:
    """Of each kind that a call's end may be, one."""
    if type(x) is not int:
        return x
    if x == 0:
        raise SystemExit(3)
    if x == 1:
        raise KeyError(x)
    if x == 2:
        raise StopIteration(x)
    if x == 3:
        return int("no number")
    kinds = (
        ValueError("it is a value"), complex(1, 2), _later(4), _later(5), [x, {"a": (x,)}],
        1 << 80, "a" * 3000, None,
    )  # fmt: skip
    value = kinds[x - 4]
    for other in kinds[2:4]:
        if other is not value:
            other.close()  # type: ignore[union-attr]
    return value

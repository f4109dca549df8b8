"""What tests of graphs share: engines to run in, and nodes that workers find by their names.

Who ran what, and how often, is written to a file: one line an event, which any process may append.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
from tasks import eventually

# What an `engine=` can mean: one executor for nodes and for items of a map.
SEQUENTIAL, ASYNC, THREADED, PARALLEL, FORK = (
    "sequential", "async", "threaded:3", "parallel:2", "cow_fork:2",
)  # fmt: skip
ENGINES = (SEQUENTIAL, ASYNC, THREADED, PARALLEL, FORK)
PROCESSES = (PARALLEL, FORK)
OVERLAPPING = (THREADED, PARALLEL, FORK)

# A fork a call: where processes mean no more than that, it is for the long runs.
everywhere = pytest.mark.parametrize(
    "engine", [*ENGINES[:-1], pytest.param(FORK, marks=pytest.mark.slow)]
)


def in_engines(*engines: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("engine", engines)


class Log:
    """Lines that any process appends; picklable."""

    def __init__(self, folder: Path, name: str = "log") -> None:
        self.path = str(folder / name)
        Path(self.path).touch()

    def __call__(self, *words: object) -> None:
        line = " ".join(map(str, words)) + "\n"
        with open(self.path, "a") as file:
            file.write(line)

    @property
    def lines(self) -> list[str]:
        return Path(self.path).read_text().splitlines()

    def count(self, line: str) -> int:
        return self.lines.count(line)


# ------------------------------------------------------------------------ plain nodes


@fm.node(output_name="y")
def double(x: Any) -> Any:
    return 2 * x


@fm.node(output_name="z")
def increment(y: Any) -> Any:
    return y + 1


@fm.node(output_name="total")
def add(y: Any, z: Any) -> Any:
    return y + z


@fm.node(output_name=("q", "r"))
def divide(x: int, by: int = 3) -> Any:
    return divmod(x, by)


@fm.node(output_name="y")
async def double_async(x: Any) -> Any:
    await asyncio.sleep(0)
    return 2 * x


def scaled(x: Any, k: Any = 3) -> Any:
    return x, k


def fail_on_three(x: int) -> int:
    if x == 3:
        raise ValueError("three is wrong")
    return x


def with_log(x: Any, log: Log) -> Any:
    log("called", x)
    return x


def after_log(kept: Any, log: Log) -> Any:
    log("after", kept)
    return kept


def pid_of(x: Any) -> int:
    return os.getpid()


def thread_of(x: Any) -> int:
    return threading.get_ident()


def slow_first(x: int) -> int:
    """The earlier an item, the later it is ready."""
    time.sleep((4 - x % 5) * 0.002)
    return x * x


def mutate(x: int, seen: list[int]) -> int:
    seen.append(x)
    return len(seen)


# ------------------------------------------------------------------------ what goes wrong


class Unpicklable(Exception):
    def __init__(self, text: str, lock: Any) -> None:
        super().__init__(text)
        self.lock = lock


class Unloadable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def raise_unpicklable(x: int) -> int:
    if x == 3:
        raise Unpicklable("has a lock", threading.Lock())
    return x


def raise_unloadable(x: int) -> int:
    if x == 3:
        raise Unloadable("two", "parts")
    return x


def exit_on_three(x: int) -> int:
    if x == 3:
        sys.exit("leaving")
    return x


def die_on_three(x: int, way: str) -> int:
    if x == 3:
        if way == "exit":
            os._exit(7)
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "segv": signal.SIGSEGV}[way])
    return x


def die_once(x: int, log: Log) -> int:
    log("tried", x)
    if x == 3 and log.count("tried 3") < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def fail_twice(x: int, log: Log) -> int:
    log("tried", x)
    if log.count(f"tried {x}") < 3:
        raise ConnectionError(f"try {x} again")
    return x


def hang_on_three(x: int) -> int:
    if x == 3:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(60)
    return x


# ------------------------------------------------------------------------ at the same time


def meet(x: int, log: Log, number: int) -> int:
    """Ready when so many of these run at the same time."""
    log("here", x)
    eventually(lambda: len(log.lines) >= number)
    return x


def peak(x: int, log: Log) -> int:
    """Tells when it begins and ends."""
    log("+", time.monotonic(), x)
    time.sleep(0.03)  # longer than a fork takes on a busy machine
    log("-", time.monotonic(), x)
    return x


def highest(log: Log) -> int:
    """How many of `peak` ran at once, at most."""
    steps = sorted(
        (float(when), {"+": 1, "-": -1}[what]) for what, when, _ in map(str.split, log.lines)
    )
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


# ------------------------------------------------------------------------ values


class Resource:
    """Says when it is made and closed; locks make it unpicklable."""

    def __init__(self, log: Log) -> None:
        self.lock = threading.Lock()
        self.log = log
        log("made", os.getpid())

    def close(self) -> None:
        self.log("closed", os.getpid())


def close_resource(resource: Resource) -> None:
    resource.close()


def failing_resource(log: Log) -> Resource:
    log("failing")
    raise RuntimeError("no such model")


def use(x: int, resource: Resource) -> int:
    with resource.lock:
        return x + 1


# ------------------------------------------------------------------------ random graphs


def work(name: str, fails: int, outputs: int, values: tuple[int, ...]) -> Any:
    """What a node of a random graph does: fails for some values, or mixes them."""
    mixed = sum((n + 3) * value for n, value in enumerate(values)) % 101
    if fails and mixed % fails == 0:
        raise ValueError(f"{name} {mixed}")
    return mixed if outputs == 1 else tuple(mixed + n for n in range(outputs))

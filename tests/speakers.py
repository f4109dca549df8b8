"""Tasks that say something, for tests/unit/test_said.py. Importable in every worker."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import forkmill as fm


def say_numbers(n: int) -> int:
    for i in range(n):
        fm.emit((n, i))
    return n


async def say_async(n: int) -> int:
    async def say(i: int) -> None:
        fm.emit((n, i))

    for i in range(n):
        if i % 100:
            fm.emit((n, i))
        else:
            await asyncio.create_task(say(i))
    return n


def say_then_add(x: int) -> int:
    fm.emit(("before", x))
    return x + 1


async def say_then_add_async(x: int) -> int:
    fm.emit(("before", x))
    await asyncio.sleep(0)
    return x + 1


def say_it(x: int) -> None:
    fm.emit(("got", x))


def run_inside(x: int) -> str | None:
    """The parent of a run that begins here."""
    told: list[Any] = []
    fm.Pipeline().source([x]).map(say_then_add).run(sinks=[told.append])
    parent: str | None = told[0]["parent"]
    return parent


async def run_inside_async(x: int) -> str | None:
    return run_inside(x)


def say_and_die(n: int) -> None:
    say_numbers(n)
    os.kill(os.getpid(), signal.SIGKILL)


def say_and_sleep(n: int) -> None:
    say_numbers(n)
    time.sleep(60)


def say_and_touch(n: int, path: Path) -> int:
    say_numbers(n)
    path.touch()
    return n


def listens() -> bool:
    from forkmill import _native

    return _native.listens()


class Unsendable:
    def __reduce__(self) -> Any:
        raise NotImplementedError("never")

    def __repr__(self) -> str:
        return "<Unsendable>"


class Unmakeable:
    def __reduce__(self) -> Any:
        return divmod, (1, 0)


def say_what_cannot_be_sent() -> str:
    fm.emit(Unsendable())
    fm.emit(bytes(300_000))
    fm.emit("after")
    return "done"


def say_what_cannot_be_rebuilt() -> str:
    fm.emit(Unmakeable())
    fm.emit("after")
    return "done"


def say_in_threads(threads: int, n: int) -> int:
    def say(t: int) -> None:
        for i in range(n):
            fm.emit((t, i))

    line = [threading.Thread(target=say, args=(t,)) for t in range(threads)]
    for thread in line:
        thread.start()
    for thread in line:
        thread.join()
    return threads


def fork_and_say() -> int:
    pid = os.fork()
    if pid == 0:
        fm.emit("the child's")
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    fm.emit("mine")
    return status


def say_within(run: str, name: str) -> None:
    from forkmill import _said

    with _said.within(run, name, step=2):
        fm.emit("outer")
        with _said.within(run, name, step=3):
            fm.emit("inner")


def log_some(x: int) -> int:
    logger = logging.getLogger("speakers.sub")
    logger.debug("not asked for")
    logger.info("some %d", x)
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.exception("bad")
    return x


def log_and_die() -> None:
    logging.getLogger("speakers").error("the last words")
    os.kill(os.getpid(), signal.SIGKILL)


def log_many(n: int) -> None:
    logger = logging.getLogger("speakers")
    for i in range(n):
        logger.info("%d", i)


def log_to(path: Path) -> None:
    logging.root.addHandler(logging.FileHandler(path))
    logging.getLogger("speakers").setLevel(logging.INFO)


def fork_and_log() -> int:
    pid = os.fork()
    if pid == 0:
        logging.getLogger("speakers").info("the child's")
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    logging.getLogger("speakers").info("mine")
    return status

"""What test_signals.py sends to workers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import forkmill as fm
import tasks

_seen: list[int] = []


def count_sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda number, _frame: _seen.append(number))


def counted_sigterm() -> int:
    return len(_seen)


def count_up(n: int) -> Iterator[int]:
    yield from range(n)


def end_oneself() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    tasks.eventually(lambda: False, 20)


def note_and_tell(path: str, i: int) -> int:
    """Note it; at 10, somebody else tells this worker to end."""
    tasks.note(path, i)
    if i == 10:
        subprocess.run(["kill", str(os.getpid())], check=True)
    return os.getpid()


def interrupted() -> int:
    """How a program ends that gets Ctrl-C."""
    process = subprocess.Popen(["sleep", "30"])
    process.send_signal(signal.SIGINT)
    return process.wait()


def in_a_pool_of_its_own(method: str) -> Any:
    with fm.ProcessPool(1, start_method=method) as pool:
        return pool.submit(interrupted).result()

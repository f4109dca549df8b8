"""The functions that benchmarks send to workers, and the items that they send.

Peers find functions by module and name, some of them in a fresh interpreter: so they live here.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any


def increment(x: int) -> int:
    """The trivial task: so little that only the way there and back counts."""
    return x + 1


def increment_where(x: int) -> tuple[int, int]:
    """The trivial task, and the worker that did it."""
    return x + 1, os.getpid()


def nested_item(i: int) -> dict[str, Any]:
    """A small dict that needs pickle: it holds other containers."""
    return {"id": i, "name": f"item {i}", "tags": ["new", "blue"], "at": (i, 0.5)}


def flat_item(i: int) -> dict[str, Any]:
    """A small dict of plain values."""
    return {"id": i, "name": f"item {i}", "price": i * 0.5, "sold": False}


def mark_item(item: dict[str, Any]) -> dict[str, Any]:
    """Change a dict and send it back."""
    item["id"] += 1
    return item


def spin(seconds: float) -> float:
    """Use the CPU for so long: CPU time, so that a preempted task does not look done."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds


def nap(seconds: float) -> float:
    """Take so long without using the CPU."""
    if seconds:
        time.sleep(seconds)
    return seconds


def look_at(array: Any) -> tuple[int, int, int]:
    """What came of an array: its size and its ends."""
    return array.nbytes, int(array[0]), int(array[-1])


def give_back(array: Any) -> Any:
    """The same array."""
    return array


def nested_arrays(size: int) -> dict[str, Any]:
    """What a batch of samples looks like: arrays among plain values, `size` bytes in all."""
    import numpy as np

    return {
        "name": "batch",
        "frames": [np.full(size // 8, i, np.uint8) for i in range(8)],
        "labels": [{"id": i, "at": (i, 0.5)} for i in range(8)],
    }


def make_array(job: tuple[int, int]) -> Any:
    """A fresh array of `size` bytes, filled with `value`; job is (size, value)."""
    import numpy as np

    size, value = job
    return np.full(size, value, np.uint8)


def born_array(job: tuple[int, int]) -> Any:
    """An array of `size` bytes made with fm.empty, with its first and last one set."""
    import forkmill as fm

    size, value = job
    array = fm.empty(size, "u1")
    array[0] = array[-1] = value
    return array


def pick_user(line: str) -> Any:
    """A field of a JSON line."""
    return json.loads(line)["user"]

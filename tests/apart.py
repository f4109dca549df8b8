"""What tests send to subinterpreters: nothing that is imported here needs an extension."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import tasks

_seen: dict[int, list[int]] = {}


def thread_here(_: Any = None) -> int:
    return threading.get_ident()


def fresh() -> None:
    _seen.clear()


def seen(item: int) -> tuple[int, list[int]]:
    """An item, and all of its kind that came to this copy of the state."""
    mine = _seen.setdefault(item % 5, [])
    mine.append(item)
    return item, list(mine)


def copies_left() -> tuple[int, int]:
    from forkmill.contexts.lanes import interpreters as interpreter_lane

    return len(interpreter_lane._replicas), len(interpreter_lane._stream)


def endless(log: str, item: int) -> Iterator[int]:
    try:
        while True:
            yield item
    finally:
        tasks.note_here(log, item)

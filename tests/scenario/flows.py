"""What the scenarios share: the contexts' short names, and looking at what ran where.

Stages count on nothing but what DESIGN.md promises: values go in, values come out. Where a test
wants to know who ran an item, the stage says so in its output.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks

INLINE, THREAD, FORK, WORKERS = "inline", "thread", "cow_fork", "ipc_fork"
CONTEXTS = (INLINE, THREAD, FORK, WORKERS)
PARALLEL = (THREAD, FORK, WORKERS)
PROCESSES = (FORK, WORKERS)
MASTER = os.getpid()

# Races are tried this often in every run, and as often as SCENARIOS.md asks where time allows.
FEW = 6


def of(kind: str, width: int = 2) -> str:
    """The spec of a context of this width."""
    return kind if kind == INLINE else f"{kind}:{width}"


def in_contexts(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds)


def repeated(often: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("times", [FEW, pytest.param(often, marks=pytest.mark.slow)])


def multiset(items: Iterable[Hashable]) -> collections.Counter[Hashable]:
    return collections.Counter(items)


class Into(list[Any]):
    """A list that is a sink: call it with an item."""

    __call__ = list.append


def ok(result: fm.RunResult) -> fm.RunResult:
    """The result, if nothing failed."""
    assert result.status == "completed" and not result.failures, (result.status, result.failures)
    return result


def outputs(pipeline: fm.Pipeline) -> list[Any]:
    return ok(pipeline.run()).outputs


def balanced(result: fm.RunResult) -> None:
    """Per edge: emitted = delivered + failed + dropped."""
    for name, edge in result.stats.edges.items():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped, (name, edge)


def timed(
    seconds: float, meet: Callable[[], None] = lambda: None
) -> Callable[[Any], tuple[Any, int, int, float, float]]:
    """A stage: (item, pid, thread, start, end), after a meeting and so many seconds."""

    def work(item: Any) -> tuple[Any, int, int, float, float]:
        start = time.monotonic()
        meet()
        time.sleep(seconds)
        return item, os.getpid(), threading.get_ident(), start, time.monotonic()

    return work


def meeting(folder: Path, number: int) -> Callable[[], None]:
    """Call it in so many places, processes or threads: nobody goes on before all are there.

    What it is for: on a busy machine one worker can have done all before the other one is born.
    """
    log = tasks.Log(folder)

    def meet() -> None:
        tasks.note_here(log.path, threading.get_native_id())
        tasks.eventually(lambda: len(log.counts()) >= number)

    return meet


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many of the spans overlap at most. The clock is the machine's, also between processes."""
    moments = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def double(x: Any) -> Any:
    return x * 2


def triple(x: Any) -> Any:
    return x * 3


def plus_ten(x: int) -> int:
    return x + 10


def same(x: Any) -> Any:
    return x

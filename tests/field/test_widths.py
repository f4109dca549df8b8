"""How wide a stage is: what its context starts; and specs as keys of sets and dicts."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import forkmill as fm
import tasks
from forkmill import _process


@pytest.mark.parametrize("quota", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("context", ["ipc_fork", "cow_fork", "thread"])
def test_a_quota_counts_in_a_pipeline(
    context: str, quota: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with so many CPUs: figures and hooks tell of the workers there are."""
    monkeypatch.setattr(_process, "_quotas", lambda: iter([quota]))
    monkeypatch.setattr(_process, "_affinity", lambda: 4)
    cpus = int(quota + 0.5)
    forks = []

    class Line(fm.Pipeline):
        @fm.producer
        def source(self) -> Iterator[int]:
            yield from range(3)

        @fm.stage(context=context)
        def work(self, item: int) -> int:
            return item

        @fm.before_fork
        def forking(self, *_: object) -> None:
            forks.append(1)

    result = Line().run()
    assert sorted(result.outputs) == [0, 1, 2]
    assert result.stats["work"].workers == (cpus + 4 if context == "thread" else cpus)
    if context == "ipc_fork":
        assert len(forks) == cpus
    with fm.executor(context) as executor:
        assert executor.width == result.stats["work"].workers


SPECS = [
    lambda: fm.inline(),
    lambda: fm.thread(8),
    lambda: fm.thread(8, name="x"),
    lambda: fm.ipc_fork(2, initargs=([],), initializer=len),
    lambda: fm.cow_fork(4, batch=3),
    lambda: fm.aio(),
    lambda: fm.interpreter(2),
]


@pytest.mark.parametrize("make", SPECS)
def test_equal_specs_have_equal_hashes(make: object) -> None:
    first, second = make(), make()  # type: ignore[operator]
    assert first == second and hash(first) == hash(second)
    assert len({first, second}) == 1 and {first: "found"}[second] == "found"


def test_other_specs_are_other_keys() -> None:
    assert len({make() for make in SPECS}) == len(SPECS)
    assert len({fm.cow_fork(1, batch=1), fm.cow_fork(1, batch=2), fm.cow_fork(1)}) == 3


def test_specs_of_named_pools_are_equal_by_pool() -> None:
    with fm.named_pool("widths-1", "thread:1"), fm.named_pool("widths-2", "thread:1"):
        from forkmill.contexts.specs import spec

        assert len({spec("widths-1"), spec("widths-1"), spec("widths-2")}) == 2
        assert spec("widths-1") != fm.thread(1)


def test_width_is_that_of_the_affinity_without_a_quota() -> None:
    with fm.executor("ipc_fork") as executor:
        assert executor.width == _process.cpus() <= (os.cpu_count() or 1)
        assert list(executor.map(tasks.negative, [1])) == [-1]

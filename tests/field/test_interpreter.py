"""Subinterpreters: where they import from, their copies of a stage's state, and their ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import apart
import forkmill as fm
import tasks
from conftest import RunScript
from forkmill.contexts import Taken, Work

pytestmark = [
    pytest.mark.skipif(not tasks.SUBINTERPRETERS, reason="no subinterpreters to be had"),
    pytest.mark.timeout(60),
]


def test_the_callers_path_is_carried(run_script: RunScript) -> None:
    """As of the start for the initializer, as of the call for a call."""
    run_script(
        """
        import os, sys
        for name in ("early", "late"):
            os.mkdir(name)
            with open(f"{name}/{name}_module.py", "w") as file:
                file.write("import sys\\ndef path(*_): return list(sys.path)\\n")
        sys.path.insert(0, os.path.abspath("early"))
        import early_module
        import forkmill as fm
        with fm.executor("interpreter:2", initializer=early_module.path) as executor:
            assert executor.submit(early_module.path).result(30) == sys.path
            sys.path.insert(0, os.path.abspath("late"))
            import late_module
            for _ in range(4):
                assert executor.submit(late_module.path).result(30) == sys.path
            line = fm.Pipeline().source([1]).map(late_module.path, context="interpreter:1")
            assert line.run().outputs
            with fm.ProcessPool(1) as pool:  # beside them nothing is forked
                assert pool.submit(abs, -1).result(20) == 1
                assert "subinterpreter" in pool.stats().start_reason
        """,
        timeout=60,
    )


def test_an_initializer_that_fails_says_so(run_script: RunScript) -> None:
    """With its own error, to calls that were accepted and to those that come later."""
    run_script(
        """
        import forkmill as fm
        def fail(): raise ValueError("no luck")
        with fm.executor("interpreter:2", initializer=fail) as executor:
            futures = [executor.submit(abs, 1)]
            for _ in range(2):
                try: futures[0].result(30)
                except fm.InitError as error:
                    assert "in a subinterpreter: ValueError: no luck" in str(error)
                    assert type(error.__cause__) is ValueError
                else: raise AssertionError("it works")
            try: executor.submit(abs, 1)
            except fm.InitError: pass
            else: raise AssertionError("it takes more")
        """,
        timeout=60,
    )


def test_a_program_that_ends_nothing_ends(run_script: RunScript) -> None:
    """No subinterpreter is left for CPython to find at its end, used or dropped."""
    script = run_script(
        """
        import forkmill as fm
        executor = fm.executor("interpreter:2")
        print(list(executor.map(abs, range(-4, 0))))
        fm.executor("interpreter:2").submit(abs, -7).result(30)
        """,
        timeout=60,
    )
    assert script.stderr == ""


def test_a_subinterpreter_stays_in_its_thread() -> None:
    with fm.executor("interpreter:1") as executor:
        homes = {executor.submit(apart.thread_here).result(30) for _ in range(5)}
    assert len(homes) == 1


# ------------------------------------------------------------------ copies of the state


def test_a_key_has_one_copy_and_its_items_their_order() -> None:
    line = fm.Pipeline().source(range(60))
    line.map(apart.seen, setup=apart.fresh, key=lambda n: n % 5, context="interpreter:2")
    outputs = line.run().outputs
    assert sorted(outputs) == [(n, [*range(n % 5, n + 1, 5)]) for n in range(60)]


def test_setup_runs_once_in_each(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    line = fm.Pipeline().source(range(40))
    line.map(abs, setup=partial(tasks.note_here, log.path, 1), context="interpreter:2")
    assert sorted(line.run().outputs) == [*range(40)]
    assert 1 <= len(log.entries()) <= 2


def test_the_clock_of_a_nested_pipeline_is_that_of_its_copy() -> None:
    """Both copies hold a batch that is not full; each is told when its time has come."""
    came: list[list[int]] = []
    everything = threading.Event()

    def source() -> Iterator[int]:
        yield from range(4)
        assert everything.wait(40)  # no end of items, so no other reason to emit

    def sink(batch: list[int]) -> None:
        came.append(batch)
        if sum(map(len, came)) == 4:
            everything.set()

    inner = fm.Pipeline().batch(size=3, max_wait=0.05)
    line = fm.Pipeline().source(source)
    line.through(inner, key=lambda n: n % 2, context="interpreter:2").sink(sink)
    assert line.run().ok
    assert sorted(item for batch in came for item in batch) == [*range(4)]


# --------------------------------------------------------------------------- the end


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_an_endless_item_ends_with_its_lane(tmp_path: Path, whole: bool, stream: bool) -> None:
    """And leaves nothing in a subinterpreter that lives on."""
    log = tasks.Log(tmp_path)
    with fm.named_pool("homes", "interpreter:1") as pool:
        lane = pool.lane(Work(partial(apart.endless, log.path), stream=stream, whole=whole))
        lane.put_many([1, 2])
        if stream or not whole:
            taken: Any = lane.take(30)
            assert taken.item == 1 and set(taken.outputs) == {1} and not taken.done
        else:
            tasks.eventually(lambda: pool.executor.metrics().busy)
        lane.close()
        assert log.entries() in ([1], []) if whole and not stream else log.entries() == [1]
        assert pool.executor.submit(apart.copies_left).result(30) == (0, 0)


def test_a_generator_goes_no_further_than_it_is_read(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)

    def noted(_: int) -> Iterator[int]:
        for n in range(100_000):
            tasks.note_here(log.path, n)
            yield n

    lane = fm.contexts.spec("interpreter", 1).lane(Work(noted, stream=True))
    try:
        lane.put(1)
        first: Any = lane.take(30)
        assert isinstance(first, Taken)
        tasks.eventually(lambda: len(log.entries()) > 100)
    finally:
        lane.close()
    assert len(log.entries()) < 2000


def test_what_is_left_behind_holds_no_place() -> None:
    """Its subinterpreter ends with it; another takes its place at once."""
    reading, writing = os.pipe()
    try:
        with fm.named_pool("left", "interpreter:1") as pool:
            lane = pool.lane(Work(partial(os.read, reading)))
            lane.put(1)
            tasks.eventually(lambda: pool.executor.metrics().busy)
            lane.stop()
            assert lane.close(0) == 1
            assert pool.executor.submit(abs, -3).result(30) == 3
            before = threading.active_count()
            os.write(writing, b"x")
            tasks.eventually(lambda: threading.active_count() < before)
    finally:
        os.close(reading)
        os.close(writing)

"""Scenarios 45 to 52: what goes wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flows import (
    CONTEXTS,
    FORK,
    PROCESSES,
    WORKERS,
    Into,
    balanced,
    in_contexts,
    multiset,
    of,
    repeated,
    same,
)

import forkmill as fm
import tasks


def fail_on_three(x: int) -> int:
    if x == 3:
        raise ValueError("three is wrong")
    return x


# ------------------------------------------------------------------ 45: an item raises


@in_contexts(*CONTEXTS)
def test_45_a_failed_item_is_recorded_and_the_rest_goes_on(kind: str) -> None:
    got = Into()
    line = (
        fm.Pipeline()
        .source(range(10))
        .map(fail_on_three, name="parse", context=of(kind), on_error="skip")
        .sink(got)
    )
    result = line.run()
    assert result.status == "completed"
    assert sorted(got) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    (failure,) = result.failures
    assert (failure.stage, failure.item, failure.attempts) == ("parse", 3, 1)
    assert isinstance(failure.error, ValueError)
    assert "fail_on_three" in failure.traceback and "three is wrong" in failure.traceback
    with pytest.raises(ValueError, match="three is wrong"):
        failure.reproduce()
    stage = result.stats.stages["parse"]
    assert (stage.in_, stage.out, stage.failed) == (10, 9, 1)
    assert stage.success == pytest.approx(0.9) or stage.success == pytest.approx(90)
    balanced(result)


@in_contexts(*CONTEXTS)
def test_45_a_run_that_shall_raise_raises_the_item_s_own_exception(kind: str) -> None:
    line = fm.Pipeline().source(range(10)).map(fail_on_three, name="parse", context=of(kind))
    with pytest.raises(ValueError, match="three is wrong") as caught:
        line.sink(same).run()
    result = caught.value.run_result
    assert result.status == "failed"
    assert [(failure.stage, failure.item) for failure in result.failures] == [("parse", 3)]
    balanced(result)


@in_contexts(*CONTEXTS)
def test_45_stream_and_start_raise_it_too(kind: str) -> None:
    line = fm.Pipeline().source(range(10)).map(fail_on_three, context=of(kind), ordered=True)
    stream = line.stream()
    got = []
    with pytest.raises(ValueError, match="three is wrong") as caught:
        for x in stream:
            got.append(x)
    assert got == sorted({*got} - {3})
    assert caught.value.run_result.status == "failed"
    with pytest.raises(ValueError, match="three is wrong"):
        line.start().result(timeout=20)


@in_contexts(*CONTEXTS)
def test_45_a_failed_item_closes_its_gap_in_an_ordered_stage(kind: str) -> None:
    line = fm.Pipeline().source(range(20))
    line = line.map(fail_on_three, context=of(kind, 3), ordered=True, on_error="skip")
    result = line.run()
    assert result.outputs == [x for x in range(20) if x != 3]


@in_contexts(*CONTEXTS)
def test_45_what_a_generator_emitted_before_it_failed_is_accounted(kind: str) -> None:
    def some(x: int) -> Iterator[int]:
        yield x
        fail_on_three(x)

    line = fm.Pipeline().source(range(6)).flat_map(some, context=of(kind), on_error="skip")
    result = line.map(same).run()
    assert [failure.item for failure in result.failures] == [3]
    assert {0, 1, 2, 4, 5} <= set(result.outputs) <= {0, 1, 2, 3, 4, 5}
    balanced(result)


# ------------------------------------------------------------------ 46: retries, dead letters


class Flaky:
    """Fails the first times that it sees an item, also across processes."""

    def __init__(self, folder: Path, times: int) -> None:
        self.log, self.times = tasks.Log(folder), times

    def __call__(self, x: int) -> int:
        tasks.note_here(self.log.path, x)
        if x == 3 and self.log.counts()[x] <= self.times:
            raise OSError("not yet")
        return x


@in_contexts(*CONTEXTS)
def test_46_a_retry_delivers_once(kind: str, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 2)
    line = (
        fm.Pipeline()
        .source(range(6))
        .map(flaky, name="flaky", context=of(kind), on_error=fm.retry(attempts=3, backoff=0.01))
    )
    result = line.run()
    assert result.status == "completed" and not result.failures
    assert multiset(result.outputs) == multiset(range(6))
    assert flaky.log.counts() == {**dict.fromkeys(range(6), 1), 3: 3}
    balanced(result)


@in_contexts(*CONTEXTS)
def test_46_a_retry_holds_the_order(kind: str, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 2)
    policy = fm.retry(attempts=3, backoff=0.02)
    line = fm.Pipeline().source(range(12))
    line = line.map(flaky, context=of(kind), on_error=policy, ordered=True)
    assert line.run().outputs == [*range(12)]


@in_contexts(*CONTEXTS)
def test_46_what_always_fails_is_recorded_with_its_attempts(kind: str, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 100)
    line = (
        fm.Pipeline()
        .source(range(6))
        .map(flaky, name="flaky", context=of(kind), on_error=fm.retry(attempts=3, backoff=0.01))
    )
    result = line.run()
    (failure,) = result.failures
    assert (failure.stage, failure.item, failure.attempts) == ("flaky", 3, 3)
    assert multiset(result.outputs) == multiset([0, 1, 2, 4, 5])


@in_contexts(*CONTEXTS)
def test_46_only_the_named_exceptions_are_tried_again(kind: str, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 2)
    policy = fm.retry(attempts=3, backoff=0.01, on=KeyError)
    result = fm.Pipeline().source(range(6)).map(flaky, context=of(kind), on_error=policy).run()
    assert flaky.log.counts()[3] == 1
    assert len(result.failures) == 1


@in_contexts(*CONTEXTS)
def test_46_dead_letters_reach_their_stage(kind: str, tmp_path: Path) -> None:
    flaky, dead = Flaky(tmp_path, 100), Into()
    policy = fm.retry(attempts=2, backoff=0.01, then=fm.dead_letter("dead"))
    line = (
        fm.Pipeline()
        .source(range(6))
        .map(flaky, name="flaky", context=of(kind), on_error=policy, to=())
        .sink(dead, name="dead", from_=())
    )
    result = line.run()
    assert multiset(result.outputs) == multiset([0, 1, 2, 4, 5])
    (letter,) = dead
    assert (letter.stage, letter.item, letter.attempts) == ("flaky", 3, 2)
    assert isinstance(letter.error, OSError)
    balanced(result)


# ------------------------------------------------------------------ 47: a producer raises


@in_contexts(*CONTEXTS)
def test_47_a_failing_producer_ends_only_itself(kind: str) -> None:
    def broken() -> Iterator[tuple[str, int]]:
        yield "broken", 0
        raise RuntimeError("the source is dry")

    got = Into()
    line = (
        fm.Pipeline()
        .source(broken, name="broken", context=of(kind))
        .source([("whole", i) for i in range(20)], name="whole")
        .sink(got)
    )
    try:
        result = line.run()
    except RuntimeError as error:
        assert str(error) == "the source is dry"
        result = error.run_result  # type: ignore[attr-defined]
    assert result.status == "failed"
    assert multiset(got) == multiset([("broken", 0), *(("whole", i) for i in range(20))])
    assert [failure.stage for failure in result.failures] == ["broken"]
    balanced(result)


# ------------------------------------------------------------------ 48: a worker dies


@repeated(50)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["kill", "exit0", "exit3"])
@pytest.mark.parametrize(("kind", "width"), [(WORKERS, 1), (WORKERS, 2), (FORK, 2)])
def test_48_a_death_costs_its_own_item(kind: str, width: int, how: str, times: int) -> None:
    def work(x: int) -> int:
        if x == 5:
            tasks.die(how)
        return x

    for _ in range(times // 3):
        line = fm.Pipeline().source(range(40))
        line = line.map(work, name="work", context=of(kind, width), on_error="skip")
        result = line.run()
        assert multiset(result.outputs) == multiset(x for x in range(40) if x != 5)
        (failure,) = result.failures
        assert (failure.stage, failure.item) == ("work", 5)
        assert isinstance(failure.error, fm.WorkerDied)
        balanced(result)


@in_contexts(*PROCESSES)
def test_48_a_death_can_be_tried_again(kind: str, tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)

    def work(x: int) -> int:
        tasks.note_here(log.path, x)
        if x == 5 and log.counts()[5] == 1:
            tasks.die("kill")
        return x

    policy = fm.retry(attempts=2, backoff=0.01, on=fm.WorkerDied)
    result = fm.Pipeline().source(range(40)).map(work, context=of(kind), on_error=policy).run()
    assert multiset(result.outputs) == multiset(range(40)) and not result.failures
    assert log.counts() == {**dict.fromkeys(range(40), 1), 5: 2}


# ------------------------------------------------------------------ 49: what cannot travel


@in_contexts(*PROCESSES)
def test_49_a_result_that_cannot_travel_is_a_failure(kind: str) -> None:
    def work(x: int) -> Any:
        return threading.Lock() if x == 3 else x

    result = fm.Pipeline().source(range(6)).map(work, context=of(kind), on_error="skip").run()
    assert multiset(result.outputs) == multiset([0, 1, 2, 4, 5])
    (failure,) = result.failures
    assert failure.item == 3 and isinstance(failure.error, fm.SerializationError)


def test_49_an_item_that_cannot_travel_is_a_failure() -> None:
    items = [0, threading.Lock(), 2]
    result = fm.Pipeline().source(items).map(str, context="ipc_fork:2", on_error="skip").run()
    assert multiset(result.outputs) == multiset(["0", "2"])
    (failure,) = result.failures
    assert failure.item is items[1] and isinstance(failure.error, fm.SerializationError)


@in_contexts(*CONTEXTS)
def test_49_a_failing_setup_is_never_silent(kind: str) -> None:
    def begin() -> None:
        raise LookupError("no database")

    line = fm.Pipeline().source(range(4)).map(same, name="store", context=of(kind), setup=begin)
    with pytest.raises((LookupError, fm.InitError)) as caught:
        line.run()
    assert caught.value.run_result.status == "failed"
    text = f"{caught.value!r} {caught.value.__cause__!r} {getattr(caught.value, 'causes', ())!r}"
    assert "no database" in text


@in_contexts(*PROCESSES)
def test_49_a_failing_after_fork_hook_is_never_silent(kind: str) -> None:
    def after() -> None:
        raise LookupError("no fork today")

    line = fm.Pipeline(after_fork=after).source(range(4)).map(same, context=of(kind))
    with pytest.raises(Exception) as caught:
        line.run()
    assert caught.value.run_result.status == "failed"


@in_contexts(*PROCESSES)
def test_49_exit_in_a_child(kind: str) -> None:
    def work(x: int) -> int:
        if x == 3:
            os._exit(7)
        return x

    result = fm.Pipeline().source(range(10)).map(work, context=of(kind), on_error="skip").run()
    (failure,) = result.failures
    assert failure.item == 3 and failure.error.exitcode == 7
    assert len(result.outputs) == 9


@in_contexts(*CONTEXTS)
def test_49_sys_exit_is_the_item_s_exception(kind: str) -> None:
    def work(x: int) -> int:
        if x == 3:
            raise SystemExit(7)
        return x

    result = fm.Pipeline().source(range(10)).map(work, context=of(kind), on_error="skip").run()
    (failure,) = result.failures
    assert failure.item == 3 and isinstance(failure.error, SystemExit)
    assert len(result.outputs) == 9


@in_contexts(*CONTEXTS)
def test_a_failing_on_end_is_never_silent(kind: str) -> None:
    class Ends(fm.Pipeline):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(3)

        @fm.stage(context=of(kind))
        def count(self, x: int) -> int:
            return x

        @count.on_end
        def finish(self) -> int:
            raise LookupError("no total")

    with pytest.raises(LookupError, match="no total") as caught:
        Ends().run()
    assert caught.value.run_result.status == "failed"


# ------------------------------------------------------------------ 51: time limits


@in_contexts(*PROCESSES)
def test_51_an_item_over_its_time_is_killed_and_recorded(kind: str) -> None:
    def work(x: int) -> int:
        if x == 3:
            time.sleep(60)
        return x

    line = fm.Pipeline().source(range(10))
    start = time.monotonic()
    # The others have the same time, and may stand still for a while.
    result = line.map(work, context=of(kind), timeout=1.5, on_error="skip").run()
    assert time.monotonic() - start < 10
    assert multiset(result.outputs) == multiset(x for x in range(10) if x != 3)
    (failure,) = result.failures
    assert failure.item == 3 and isinstance(failure.error, fm.TaskTimeout)


# ------------------------------------------------------------------ 52: signals

INTERRUPTED = """
    import itertools, sys, time
    import forkmill as fm

    KIND = {kind!r}
    pulled = 0

    def rows():
        global pulled
        try:
            for i in itertools.count():
                pulled += 1
                yield i
        finally:
            print("closed", flush=True)

    def work(x):
        time.sleep({nap})
        return x

    delivered = []

    def keep(x):
        delivered.append(x)
        if len(delivered) == 5:
            print("going", flush=True)

    if __name__ == "__main__":
        line = fm.Pipeline().source(rows)
        line = line.map(work, name="work", context=KIND, queue_size=4).sink(keep)
        try:
            result = line.run()
        except KeyboardInterrupt as error:
            result = error.run_result
        stage = result.stats.stages["work"]
        print("status", result.status, flush=True)
        print("lost", stage.in_ - len(delivered) - stage.failed, flush=True)
"""


@in_contexts(*CONTEXTS)
def test_52_ctrl_c_once_drains(kind: str, start_script: Any) -> None:
    script = start_script(INTERRUPTED.format(kind=of(kind), nap=0.02))
    script.wait_for("going")
    os.kill(script.pid, signal.SIGINT)
    assert script.wait(20) == 0, script.report()
    assert "status stopped" in script.stdout, script.report()
    assert "lost 0" in script.stdout, script.report()
    assert "Traceback" not in script.stderr


HUNG = INTERRUPTED.replace("time.sleep({nap})", "time.sleep(60 if x == 9 else 0.001)")


@in_contexts(*PROCESSES)
def test_52_ctrl_c_twice_kills(kind: str, start_script: Any) -> None:
    def attempt() -> float:
        script = start_script(HUNG.format(kind=of(kind)))
        script.wait_for("going")
        os.kill(script.pid, signal.SIGINT)
        script.wait_for("closed")  # two at once would be one
        start = time.monotonic()
        os.kill(script.pid, signal.SIGINT)
        script.wait(10)
        return time.monotonic() - start

    tasks.within(2.5, attempt)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@in_contexts(*PROCESSES)
def test_52_a_killed_run_leaves_nothing(kind: str, number: int, start_script: Any) -> None:
    script = start_script(INTERRUPTED.format(kind=of(kind), nap=0.02))
    script.wait_for("going")
    os.kill(script.pid, number)
    assert script.wait(10) == -number

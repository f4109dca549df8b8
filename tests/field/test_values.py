"""A result is the value that a plain call would give, whatever lies beside it and whatever comes in
between.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import gc
import itertools
import queue
import random
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import forkmill as fm
import tasks

np = pytest.importorskip("numpy")

# Bytes around every threshold: nothing, a little, half a ring, the arena's, the channel's buffer,
# and far beyond.
SIZES = (0, 10, 32_700, 65_500, 65_536, 70_000, 700_000)


@pytest.fixture(params=["fork", "zygote"])
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(1, start_method=request.param) as made:
        yield made


def is_right(value: Any, outside: int, inside: int) -> bool:
    array, text = value
    return bool((array == tasks.numbers(outside)).all()) and text == tasks.text(inside)


# ------------------------------------------------------- memory in band and out of band


def test_sizes_in_band_and_out_of_band_are_independent(pool: fm.ProcessPool) -> None:
    kept = []
    for outside, inside in itertools.product(SIZES, SIZES):
        value = pool.submit(tasks.both, outside, inside).result()
        assert is_right(value, outside, inside), (outside, inside)
        kept.append((value, outside, inside))
    # What came first is still what it was.
    assert all(is_right(*each) for each in kept)


def test_arguments_too(pool: fm.ProcessPool) -> None:
    for outside, inside in itertools.product(SIZES, SIZES):
        sent = tasks.both(outside, inside)
        assert is_right(pool.submit(tasks.identity, sent).result(), outside, inside)
        assert is_right(next(pool.map(tasks.identity, [sent])), outside, inside)


def test_outputs_of_a_stream_too(pool: fm.ProcessPool) -> None:
    pairs = list(itertools.product(SIZES, SIZES))
    for (outside, inside), value in zip(pairs, pool.stream(tasks.each_both, pairs), strict=True):
        assert is_right(value, outside, inside), (outside, inside)


@pytest.mark.parametrize("context", ["cow_fork:1", "thread:1", "inline", "ipc_fork:1"])
def test_in_contexts_too(context: str) -> None:
    with fm.executor(context) as ex:
        for outside, inside in itertools.product(SIZES[::2], SIZES[::2]):
            value = ex.submit(tasks.both, outside, inside).result()
            assert is_right(value, outside, inside), (outside, inside)


# --------------------------------------------------------- different outcomes in a chunk

KINDS = ("number", "text", "long text", "small array", "carried", "both", "failure", "long failure")


def is_outcome(value: Any, kind: str, i: int) -> bool:
    try:
        expected = tasks.outcome_of_kind((kind, i))
    except ValueError as error:
        return type(value) is ValueError and value.args == error.args
    if isinstance(expected, np.ndarray):
        return bool((value == expected).all())
    if isinstance(expected, tuple):
        return bool((value[0] == expected[0]).all()) and value[1] == expected[1]
    return bool(value == expected)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
def test_any_outcomes_share_a_chunk(pool: fm.ProcessPool, ordered: bool, keep: bool) -> None:
    """Each pair of kinds, next to each other in both orders, in chunks of all sizes."""
    pairs = [kind for two in itertools.product(KINDS, KINDS) for kind in two]
    items = [(kind, i) for i, kind in enumerate(pairs)]
    kept = []
    for size in (2, 7, 64):
        found = pool.map(
            tasks.numbered_outcome, items, chunksize=size, ordered=ordered, return_exceptions=True
        )
        left = set(range(len(items)))
        for value in found:
            if isinstance(value, ValueError):
                i = value.args[1]
            else:
                i, value = value
            left.remove(i)
            assert is_outcome(value, *items[i]), items[i]
            if keep:
                kept.append((value, *items[i]))
            del value
        assert not left
    assert all(is_outcome(*each) for each in kept)


def test_a_dropped_map_with_outcomes_of_every_kind(pool: fm.ProcessPool) -> None:
    items = [(kind, i) for i, kind in enumerate(KINDS * 4)]
    for read in range(0, len(items), 3):
        found = pool.map(tasks.numbered_outcome, items, chunksize=16, return_exceptions=True)
        some = list(itertools.islice(found, read))
        found.close()
        for value, (kind, i) in zip(some, items, strict=False):
            got = value if isinstance(value, Exception) else value[1]
            assert is_outcome(got, kind, i)


# ------------------------------------------------------------------------- interrupts


class Alarm(Exception):
    """As timeouts by SIGALRM are made: an ordinary exception."""


class HardAlarm(BaseException):
    """As KeyboardInterrupt, but not the one that everybody thinks of."""


@contextlib.contextmanager
def alarms(error: type[BaseException]) -> Iterator[Callable[[float], None]]:
    """In here a call of what is given sets an alarm, whose handler raises."""

    def handler(*_: Any) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def storm(seconds: float, futures: list[Any], ask: Callable[[Any], Any], error: Any) -> list[Any]:
    """Ask each future until it answers, with an alarm at a random time in each question."""
    dice = random.Random(5)
    answers, interrupts = [], 0
    until = time.monotonic() + seconds
    with alarms(error) as alarm:
        for future in futures:
            while True:
                try:
                    if time.monotonic() < until:
                        alarm(dice.uniform(1e-5, 6e-4))
                    answer = ask(future)
                    alarm(0)
                    break
                except error:
                    interrupts += 1
            answers.append(answer)
    assert interrupts
    return answers


POOLS = ["fork", "zygote", "cow_fork:2", "thread:2"]


@contextlib.contextmanager
def executor(name: str) -> Iterator[Any]:
    made = fm.ProcessPool(2, start_method=name) if name in POOLS[:2] else fm.executor(name)
    with made:
        yield made


BROKEN_OFF = """
    import sys, weakref

    class Thing:
        pass

    class Alarm(Exception):
        pass

    def handler(frame, *_):
        if "remove" in frame.f_code.co_name:
            raise Alarm

    for container in (weakref.WeakSet, weakref.WeakValueDictionary, weakref.WeakKeyDictionary):
        held = container()
        for key, thing in enumerate((Thing(), Thing())):
            if hasattr(held, "add"):
                held.add(thing)
            else:
                held.setdefault(*((thing, key) if "Key" in container.__name__ else (key, thing)))
        sys.setprofile(handler)
        del thing  # an alarm comes in the container's own callback
        sys.setprofile(None)
"""


def test_an_alarm_in_a_weak_container_s_callback_is_python_s_to_tell(run_script) -> None:
    """Whatever comes at random times may come there: neither a test nor a script fails of it."""
    exec(textwrap.dedent(BROKEN_OFF), {})
    gc.collect()
    script = run_script(BROKEN_OFF)
    assert script.stderr.count("Exception ignored") == 3
    assert script.complaints == ""
    assert "no weak" in run_script("import sys; sys.stderr.write('no weak container')").complaints


@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm, HardAlarm])
@pytest.mark.parametrize("name", POOLS)
def test_an_interrupted_result_is_there_the_next_time(name: str, error: Any) -> None:
    with executor(name) as ex:
        futures = [ex.submit(tasks.stateful, i) for i in range(60)]
        answers = storm(0.3, futures, lambda future: future.result(20), error)
        for i, (future, answer) in enumerate(zip(futures, answers, strict=True)):
            assert tasks.is_stateful(answer, i)
            assert future.result() is answer


@pytest.mark.parametrize("error", [Alarm, HardAlarm])
@pytest.mark.parametrize("name", POOLS[:3])
def test_an_interrupted_failure_is_there_the_next_time(name: str, error: Any) -> None:
    with executor(name) as ex:
        futures = [ex.submit(tasks.fail_stateful, i) for i in range(60)]
        answers = storm(0.3, futures, lambda future: future.exception(20), error)
        for i, answer in enumerate(answers):
            assert type(answer) is ValueError
            assert tasks.is_stateful(answer.args[0], i)


@pytest.mark.parametrize("function", ["wait", "as_completed", "callbacks"])
def test_interrupted_waiting_lets_nobody_wait_for_ever(function: str) -> None:
    def ask(futures: list[Any]) -> Any:
        if function == "wait":
            return not cf.wait(futures, 20).not_done
        if function == "as_completed":
            return len(list(cf.as_completed(futures, 20))) == len(futures)
        # In C: what waits and wakes in Python is not safe from interrupts itself.
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for future in futures:
            future.add_done_callback(done.put)
        return all(done.get(timeout=20) for _ in futures)

    with fm.ProcessPool(2, start_method="fork") as pool:
        groups = [[pool.submit(tasks.stateful, i) for i in range(10)] for _ in range(100)]
        assert all(storm(0.8, groups, ask, Alarm))
        # Nobody else was forgotten either.
        assert not cf.wait([future for group in groups for future in group], 20).not_done


def test_a_timeout_holds_while_another_thread_decodes() -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        future = pool.submit(tasks.Slow, 0.0)
        cf.wait([future])
        tasks.Slow.gate.clear()
        tasks.Slow.begun.clear()
        other = threading.Thread(target=future.result)
        other.start()
        try:
            assert tasks.Slow.begun.wait(20)
            with pytest.raises(TimeoutError):
                future.result(0.1)
        finally:
            tasks.Slow.gate.set()
            other.join()
        assert type(future.result()) is tasks.Slow


def test_an_alarm_is_not_an_arguments_failure() -> None:
    with fm.ProcessPool(1, start_method="fork") as pool, alarms(Alarm) as alarm:
        for _ in range(20):
            with contextlib.suppress(Alarm):
                alarm(0.002)
                pool.submit(tasks.identity, [tasks.Laborious() for _ in range(3000)])
                alarm(0)
        assert pool.submit(abs, -1).result() == 1


# ----------------------------------------------------------------------- who looks inside


@pytest.mark.parametrize("name", [*POOLS, "inline", "async:2"])
def test_private_fields_are_decoded_when_they_are_read(name: str) -> None:
    """As asyncio reads them: _get_snapshot() from CPython 3.15 on, the fields themselves before."""
    with executor(name) as ex:
        for read in ("fields", "snapshot", "fields of the stock class"):
            good, bad = ex.submit(tasks.stateful, 7), ex.submit(tasks.fail_stateful, 8)
            cf.wait([good, bad])
            if read == "fields":
                assert tasks.is_stateful(good._result, 7)
                assert good._exception is None
                assert tasks.is_stateful(bad._exception.args[0], 8)
            elif hasattr(good, "_get_snapshot"):
                done, cancelled, value, error = good._get_snapshot()
                assert (done, cancelled, error) == (True, False, None)
                assert tasks.is_stateful(value, 7)
                done, cancelled, value, error = bad._get_snapshot()
                assert (done, cancelled, value) == (True, False, None)
                assert tasks.is_stateful(error.args[0], 8)
            assert "finished" in repr(good)


@pytest.mark.parametrize("name", POOLS)
def test_asyncio_gets_results_exceptions_and_cancellations(name: str) -> None:
    async def main(ex: Any) -> None:
        loop = asyncio.get_running_loop()
        assert tasks.is_stateful(await loop.run_in_executor(ex, tasks.stateful, 3), 3)
        assert tasks.is_stateful(await asyncio.wrap_future(ex.submit(tasks.stateful, 4)), 4)
        with pytest.raises(ValueError):
            await loop.run_in_executor(ex, tasks.fail_stateful, 5)

    with executor(name) as ex:
        asyncio.run(main(ex))


def test_an_interrupted_wait_leaves_nobody_waiting(run_script) -> None:
    """The stock functions' waiters have an Event, whose lock an exception may leave held."""
    script = run_script(
        """
        import concurrent.futures as cf, faulthandler, random, signal
        import forkmill as fm, tasks

        class Alarm(BaseException): pass

        def ring(number, frame):
            raise Alarm

        signal.signal(signal.SIGALRM, ring)
        rng, alarms = random.Random(1), 0
        with fm.ProcessPool(2) as pool:
            while alarms < 2000:
                faulthandler.dump_traceback_later(20, exit=True)
                futures = [pool.submit(tasks.negative, i) for i in range(rng.choice((1, 5, 40)))]
                for _ in range(50):
                    wait = rng.choice((cf.wait, lambda fs, s: list(cf.as_completed(fs, s))))
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
                        wait(futures, 60)
                        signal.setitimer(signal.ITIMER_REAL, 0)
                        break
                    except (Alarm, RuntimeError):  # the stock Condition's, once it was broken into
                        alarms += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert not cf.wait(futures, 60).not_done
                assert [f.result() for f in futures] == [-i for i in range(len(futures))]
            faulthandler.cancel_dump_traceback_later()
        """,
        timeout=50,
    )
    assert script.complaints == ""


def test_an_interrupted_submit_takes_no_later_call_s_notice(run_script) -> None:
    """Threads that wait for calls are all told, whatever a handler has broken off before."""
    script = run_script(
        """
        import faulthandler, os, random, signal
        import forkmill as fm, tasks

        class Alarm(BaseException): pass

        on, rng, alarms = [False], random.Random(1), 0

        def ring(number, frame):
            if on[0]:
                on[0] = False
                raise Alarm

        def insist(call):
            global alarms
            for _ in range(30):
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
                    on[0] = True
                    value = call()
                    on[0] = False
                    return value
                except Alarm:
                    alarms += 1
            on[0] = False
            return call()

        signal.signal(signal.SIGALRM, ring)
        faulthandler.dump_traceback_later(45, exit=True)
        executor = fm.executor("thread", 2)
        while alarms < 1500:
            results = executor.map(tasks.negative, range(20), ordered=rng.random() < 0.5)
            while insist(lambda: next(results, None)) is not None:
                pass
            assert list(executor.map(tasks.negative, iter(range(5)), buffersize=1, timeout=20))
        os._exit(0)  # threads whose start was interrupted are nobody's
        """,
        timeout=50,
    )
    assert script.complaints == ""

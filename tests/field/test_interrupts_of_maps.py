"""What a signal handler raises out of `next` ends the map; so does a close by another thread.

A traceback keeps the iterator alive (a REPL and a notebook keep the last one), so nothing may hang
on its being dropped: what has not started is taken back at once. On `fm.map`'s own pool, which
nobody has in hand, what runs is ended too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill.pool import process_pool as pool_module

ITEMS = 40
CONTEXTS = ("thread", "cow_fork", "async", "interpreter", "ipc_fork")


class Alarm(Exception):
    """What a program's own handler raises."""


@contextlib.contextmanager
def handler(raised: type[BaseException]) -> Iterator[Callable[[], None]]:
    """A signal whose handler raises; what sends it is given."""

    def handle(number: int, frame: object) -> None:
        raise raised

    old = signal.signal(signal.SIGUSR1, handle)
    try:
        yield partial(os.kill, os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, old)


def asleep() -> bool:
    """Whether the main thread waits in the kernel."""
    if sys.platform != "linux":
        time.sleep(0.1)
        return True
    stat = Path(f"/proc/self/task/{threading.main_thread().native_id}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


def interrupted(
    body: Callable[[], object],
    when: Callable[[], object],
    raised: type[BaseException] = KeyboardInterrupt,
) -> None:
    """Call body, which waits for something, and interrupt it there; it must let that through."""
    begun = threading.Event()
    with handler(raised) as send:

        def watch() -> None:
            begun.wait()
            tasks.eventually(when)
            tasks.eventually(asleep)
            send()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            with pytest.raises(raised):
                begun.set()
                body()
        finally:
            thread.join()


def noted_generator(log: str, gate: str) -> Iterator[int]:
    """One output, then nothing for a while; notes how it ends."""
    try:
        yield 1
        tasks.note_here(log, 1)
        tasks.pass_gate(gate)
        yield 2
    except GeneratorExit:
        tasks.note_here(log, 2)
        raise


@pytest.fixture
def log(tmp_path: Path) -> tasks.Log:
    """What tasks note."""
    return tasks.Log(tmp_path)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tasks.Gate]:
    """A gate that is open in the end."""
    with tasks.Gate(tmp_path) as gate:
        yield gate


# ------------------------------------------------------------------ interrupts


@pytest.mark.parametrize("raised", [KeyboardInterrupt, Alarm])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", ["map", "generator", "starmap", "chunks"])
def test_an_interrupt_in_next_takes_the_rest_back(
    log: tasks.Log, gate: tasks.Gate, kind: str, ordered: bool, raised: type[BaseException]
) -> None:
    fn = partial(tasks.noted_and_held, log.path, gate.path)
    with fm.ProcessPool(2, start_method="fork") as pool:
        if kind == "starmap":
            results = pool.starmap(fn, ((i,) for i in range(ITEMS)), ordered=ordered)
        elif kind == "chunks":
            results = pool.map(fn, range(ITEMS), chunksize=5, ordered=ordered)
        else:
            given = range(ITEMS) if kind == "map" else iter(range(ITEMS))
            results = pool.map(fn, given, ordered=ordered)
        interrupted(lambda: list(results), lambda: len(log.entries()) == 2, raised)
        # The iterator is still here. What runs may finish, and nothing else ever starts.
        gate.open()
        tasks.eventually(lambda: pool.stats().accepted == pool.stats().outcomes)
        assert len(log.entries()) == 2
        assert list(results) == []
        assert pool.submit(abs, -1).result() == 1


@pytest.mark.parametrize("start_method", ["zygote", "spawn"])
def test_so_it_is_with_every_start_method(
    log: tasks.Log, gate: tasks.Gate, start_method: str
) -> None:
    with fm.ProcessPool(2, start_method=start_method) as pool:
        results = pool.map(partial(tasks.noted_and_held, log.path, gate.path), range(ITEMS))
        interrupted(lambda: list(results), lambda: len(log.entries()) == 2)
        gate.open()
        tasks.eventually(lambda: pool.stats().accepted == pool.stats().outcomes)
        assert len(log.entries()) == 2


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", ["thread", "cow_fork", "async", "ipc_fork"])
def test_an_interrupt_in_a_contexts_map_takes_the_rest_back(
    log: tasks.Log, gate: tasks.Gate, kind: str, ordered: bool
) -> None:
    with fm.executor(kind, 2) as executor:
        results = executor.map(
            partial(tasks.noted_and_held, log.path, gate.path), range(ITEMS), ordered=ordered
        )
        interrupted(lambda: list(results), lambda: len(log.entries()) == 2)
        gate.open()
        tasks.eventually(lambda: executor.metrics().busy == executor.metrics().waiting == 0)
        assert len(log.entries()) == 2
        assert list(results) == []
        assert executor.submit(abs, -1).result() == 1


@pytest.mark.parametrize("kind", ["ipc_fork", "thread"])
def test_an_interrupt_in_the_input_does_not_wait_for_its_turn(
    log: tasks.Log, gate: tasks.Gate, kind: str
) -> None:
    """The input's own exceptions come after the results before them; this is none of them."""
    waiting = threading.Event()
    never = threading.Event()

    def given() -> Iterator[int]:
        yield 1
        waiting.set()
        # In pieces: CPython may look for signals just before it goes to sleep, and not again.
        for _ in range(600):
            never.wait(0.05)

    with fm.executor(kind, 2) as executor:
        interrupted(
            lambda: list(executor.map(partial(tasks.noted_and_held, log.path, gate.path), given())),
            waiting.is_set,
        )
        gate.open()


class Signals:
    """Rebuilding it calls a signal's handler, in the process that made the first one."""

    maker = os.getpid()

    def __reduce__(self) -> Any:
        return Signals._rebuilt, (Signals.maker,)

    @staticmethod
    def _rebuilt(maker: int) -> Signals:
        if os.getpid() == maker:
            signal.raise_signal(signal.SIGUSR1)
        return Signals()


def one_that_signals(n: int) -> Any:
    return Signals() if n == 2 else n


@pytest.mark.parametrize("raised", [KeyboardInterrupt, Alarm])
@pytest.mark.parametrize("way", ["map", "stage", "graph"])
def test_what_a_handler_raises_while_a_result_is_rebuilt_is_no_items_failure(
    way: str, raised: type[BaseException]
) -> None:
    with handler(raised), pytest.raises(raised):
        if way == "map":
            with fm.ProcessPool(1, start_method="fork") as pool:
                list(pool.map(one_that_signals, range(5), return_exceptions=True))
        elif way == "graph":
            # What may be tried again is submitted by itself, and its failure looked at.
            node = fm.node(output_name="made", retry=fm.retry(2))(one_that_signals)
            graph = fm.Graph([node])
            with fm.ProcessPool(1, start_method="fork") as pool:
                graph.map({"n": range(5)}, "n", engine=fm.LocalEngine(pool), on_error="skip")
        else:
            line = fm.Pipeline().source(range(5))
            forked = fm.ipc_fork(1, start_method="fork")  # the signal is for who made the class
            line.map(one_that_signals, context=forked, on_error="skip").run()


class Sends:
    """Items, with a signal before the last."""

    def __iter__(self) -> Iterator[int]:
        yield 1
        signal.raise_signal(signal.SIGUSR1)
        yield 2


class Looked:
    """What signals when it is asked whether it can be iterated over."""

    def __getattr__(self, name: str) -> Any:
        if name == "__iter__":
            signal.raise_signal(signal.SIGUSR1)
        raise AttributeError(name)


@pytest.mark.parametrize("of", [Sends, Looked])
def test_what_a_handler_raises_in_a_graph_is_no_outer_items_failure(of: Any) -> None:
    inner = fm.Graph([fm.node(lambda x: x, output_name="y")])
    graph = fm.Graph(
        [fm.node(lambda n: of(), output_name="x"), inner.as_node(map_over="x", name="i")]
    )
    with handler(Alarm), pytest.raises(Alarm):
        graph.map({"n": range(3)}, "n", on_error="skip", engine="threaded:1")


def test_an_interrupt_in_stream_closes_the_generator(log: tasks.Log, gate: tasks.Gate) -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        outputs = pool.stream(noted_generator, log.path, gate.path)
        assert next(outputs) == 1
        interrupted(lambda: next(outputs), lambda: log.entries() == [1])
        assert list(outputs) == []
        gate.open()
        tasks.eventually(lambda: pool.stats().accepted == pool.stats().outcomes)
        assert log.entries() == [1, 2]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_cancelled_reader_of_amap_takes_the_rest_back(
    log: tasks.Log, gate: tasks.Gate, ordered: bool
) -> None:
    async def run(pool: fm.ProcessPool) -> None:
        results = pool.amap(
            partial(tasks.noted_and_held, log.path, gate.path), range(ITEMS), ordered=ordered
        )

        async def read() -> None:
            async for _ in results:
                pass

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)  # it reads, also where workers are quicker than this loop
        while len(log.entries()) < 2:
            await asyncio.sleep(0.001)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        gate.open()
        assert [result async for result in results] == []
        assert await pool.run(abs, -1) == 1

    with fm.ProcessPool(2, start_method="fork") as pool:
        asyncio.run(run(pool))
        tasks.eventually(lambda: pool.stats().accepted == pool.stats().outcomes)
        assert len(log.entries()) == 2


def test_interrupts_at_any_place_leave_a_pool_that_works() -> None:
    """Whatever bytecode they come at: next() never hangs, and what it gave was right."""
    chance = random.Random(13)
    with fm.ProcessPool(2, start_method="fork") as pool, handler(Alarm) as send:
        for turn in range(150):
            over = threading.Event()
            got: list[int] = []
            results = None
            wait = chance.uniform(0, 0.003)

            def disturb(wait: float = wait, over: threading.Event = over) -> None:
                if not over.wait(wait):
                    send()

            thread = threading.Thread(target=disturb)
            with contextlib.suppress(Alarm):
                try:
                    thread.start()
                    results = pool.map(tasks.identity, iter(range(300)), ordered=turn % 2 == 0)
                    for result in results:
                        got.append(result)
                finally:
                    over.set()
                    thread.join()
            assert turn % 2 or got == list(range(len(got)))
            assert len(set(got)) == len(got) <= 300
            if results is not None:
                rest = list(results)
                assert rest == [] or len(got) + len(rest) == 300
        assert list(pool.map(abs, range(100))) == list(range(100))
        tasks.eventually(lambda: pool.stats().accepted == pool.stats().outcomes)


# ------------------------------------------------------------------ fm.map's own pool


@pytest.mark.shared_pool
@pytest.mark.parametrize("ordered", [True, False])
def test_an_interrupt_of_the_one_liner_ends_what_runs(
    log: tasks.Log, gate: tasks.Gate, ordered: bool
) -> None:
    fn = partial(tasks.noted_and_held, log.path, gate.path)  # nobody opens that gate
    interrupted(
        lambda: list(fm.map(fn, range(ITEMS), workers=2, ordered=ordered)),
        lambda: len(log.entries()) == 2,
    )
    assert list(fm.map(abs, [-1, -2], workers=2)) == [1, 2]
    pool = pool_module.shared_pool(2)
    tasks.eventually(lambda: pool.stats().accepted == pool.stats().outcomes)
    assert len(log.entries()) == 2
    assert pool.stats().deaths_by_cause == {"killed": 2}


@pytest.mark.shared_pool
def test_other_calls_of_the_shared_pool_are_not_harmed(log: tasks.Log, gate: tasks.Gate) -> None:
    other = fm.map(tasks.pass_gate, [gate.path], [5], workers=2)
    interrupted(
        lambda: list(
            fm.map(partial(tasks.noted_and_held, log.path, gate.path), range(ITEMS), workers=2)
        ),
        lambda: len(log.entries()) == 1,
    )
    gate.open()
    assert list(other) == [5]


@pytest.mark.shared_pool
def test_shutdown_shared_finishes_what_was_accepted(gate: tasks.Gate) -> None:
    results = fm.map(tasks.pass_gate, [gate.path], [5], workers=1)
    pool = pool_module.shared_pool(1)
    thread = threading.Thread(target=fm.shutdown_shared)
    thread.start()
    tasks.eventually(lambda: pool.stats().state == "draining")
    gate.open()
    thread.join()
    assert list(results) == [5]
    assert pool.stats().state == "closed"
    assert list(fm.map(abs, [-3], workers=1)) == [3]  # by a new one
    assert pool_module.shared_pool(1) is not pool


@pytest.mark.shared_pool
def test_shutdown_shared_kills_if_it_shall(gate: tasks.Gate, log: tasks.Log) -> None:
    results = fm.map(partial(tasks.noted_and_held, log.path, gate.path), range(ITEMS), workers=1)
    tasks.eventually(lambda: log.entries() == [0])
    fm.shutdown_shared(kill=True)
    with pytest.raises(fm.WorkerDied):
        next(results)
    fm.shutdown_shared(True)
    fm.shutdown_shared()
    assert list(fm.map(abs, [-3], workers=1)) == [3]
    with pytest.raises(TypeError, match="kill must be a bool, not 'int'"):
        fm.shutdown_shared(1)  # type: ignore[arg-type]


# ------------------------------------------------------------------ closed by another thread


def read_in_a_thread(results: Any) -> tuple[threading.Thread, list[Any]]:
    """Somebody reads on; how that ends."""
    got: list[Any] = []

    def read() -> None:
        try:
            got.extend(results)
            got.append("end")
        except BaseException as error:
            got.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, got


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", CONTEXTS)
def test_a_close_lets_the_reader_go(
    log: tasks.Log, gate: tasks.Gate, kind: str, ordered: bool
) -> None:
    if kind == "interpreter" and not tasks.SUBINTERPRETERS:
        pytest.skip("no subinterpreters to be had: threads take their place")
    with fm.executor(kind, 2) as executor:
        fn = partial(tasks.noted_and_held, log.path, gate.path)
        results = executor.map(fn, range(ITEMS), ordered=ordered)
        thread, got = read_in_a_thread(results)
        tasks.eventually(lambda: len(log.entries()) == 2)
        results.close()  # type: ignore[attr-defined]
        thread.join(20)
        assert got == ["end"]  # although both tasks still run
        assert len(log.entries()) == 2
        gate.open()


def test_a_close_lets_the_reader_of_a_stream_go(log: tasks.Log, gate: tasks.Gate) -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        outputs = pool.stream(noted_generator, log.path, gate.path)
        thread, got = read_in_a_thread(outputs)
        tasks.eventually(lambda: log.entries() == [1])
        outputs.close()  # type: ignore[attr-defined]
        thread.join(20)
        assert got in ([1, "end"], ["end"])
        gate.open()
        tasks.eventually(lambda: log.entries() == [1, 2])


@pytest.mark.parametrize("ordered", [True, False])
def test_aclose_lets_the_reader_go(log: tasks.Log, gate: tasks.Gate, ordered: bool) -> None:
    async def run(pool: fm.ProcessPool) -> None:
        results = pool.amap(
            partial(tasks.noted_and_held, log.path, gate.path), range(ITEMS), ordered=ordered
        )

        async def read() -> list[int]:
            return [result async for result in results]

        reader = asyncio.create_task(read())
        while len(log.entries()) < 2:
            await asyncio.sleep(0.001)
        await results.aclose()  # type: ignore[attr-defined]
        assert await asyncio.wait_for(reader, 20) == []
        gate.open()

    with fm.ProcessPool(2, start_method="fork") as pool:
        asyncio.run(run(pool))


def test_a_close_at_any_moment_ends_the_reader() -> None:
    chance = random.Random(14)
    with fm.ProcessPool(2, start_method="fork") as pool:
        for turn in range(60):
            results = pool.map(tasks.identity, iter(range(3000)), ordered=turn % 2 == 0)
            thread, got = read_in_a_thread(results)
            time.sleep(chance.uniform(0, 0.002))
            results.close()  # type: ignore[attr-defined]
            thread.join(20)
            assert got[-1] == "end"
            assert turn % 2 or got[:-1] == list(range(len(got) - 1))
        tasks.eventually(lambda: pool.stats().accepted == pool.stats().outcomes)

"""What each type of context does beyond the contract."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import sys
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import contexts, testing


@pytest.mark.parametrize(
    ("name", "near"), [("thraed", "thread"), ("ipcfork", "ipc_fork"), ("aio", "async")]
)
def test_unknown_types_name_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        fm.executor(name)
    with pytest.raises(ValueError, match="unknown context type"):
        fm.create_context(name)


def test_unknown_options_name_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'initializer'"):
        fm.thread(2, initialiser=print)
    with pytest.raises(TypeError, match="no option"):
        fm.executor("inline", colour=3)


@pytest.mark.parametrize("text", ["thread:", "thread:x", "thread:0", "thread:-1", "thread:1.5"])
def test_wrong_numbers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="colon"):
        fm.executor(text)


def test_text_and_objects_say_the_same() -> None:
    with fm.executor("thread:3") as one, fm.executor(fm.thread(3)) as two:
        assert one.width == two.width == 3 and one.type == two.type == "thread"
    with pytest.raises(ValueError):
        fm.thread(0)


# ---------------------------------------------------------------------- thread


def test_five_threads_run_ten_calls_in_two_rounds() -> None:
    meeting = threading.Barrier(5)
    with fm.executor("thread", 5) as executor:
        # Nobody leaves it before five are there, and it numbers them.
        numbers = list(executor.map(lambda _: meeting.wait(20), range(10)))
        assert sorted(numbers) == sorted([*range(5)] * 2)
        assert executor.metrics().created <= 5


def test_idle_threads_end_and_the_least_stay() -> None:
    with fm.executor("thread", 4, min_workers=1, idle_time=0.05) as executor:
        assert len(executor._threads.alive) == 1
        list(executor.map(time.sleep, [0.02] * 8))
        tasks.eventually(lambda: len(executor._threads.alive) == 1)
        assert executor.submit(testing.square, 3).result() == 9


def test_a_failing_initializer_breaks_the_executor() -> None:
    with fm.executor("thread", 1, initializer=testing.fail, initargs=("x",)) as executor:
        future = executor.submit(testing.square, 3)
        assert isinstance(future.exception(20), fm.InitError)
        with pytest.raises(fm.InitError):
            executor.submit(testing.square, 3)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
@pytest.mark.parametrize("kind", ["thread", "ipc_fork"])
def test_pinned_workers_stay_on_one_cpu(kind: str) -> None:
    before = os.sched_getaffinity(0)
    with fm.executor(kind, 2, pin=True) as executor:
        assert all(n == 1 for n in executor.map(cpus_here, range(8)))
    assert os.sched_getaffinity(0) == before


def cpus_here(_: int) -> int:
    return len(os.sched_getaffinity(0))


# ---------------------------------------------------------------------- async


async def double(number: int, pause: float = 0.0) -> int:
    await asyncio.sleep(pause)
    return 2 * number


class Doubler:
    async def __call__(self, number: int) -> int:
        return 2 * number


@pytest.mark.parametrize(
    "fn",
    [
        double,
        functools.partial(double, pause=0.001),
        Doubler(),
        lambda n: double(n),
        lambda n: 2 * n,
        Doubler().__call__,
    ],
)
def test_async_awaits_whatever_can_be_awaited(fn: Any) -> None:
    with fm.executor(fm.aio(3)) as executor:
        assert executor.submit(fn, 4).result(20) == 8


def test_async_runs_fifty_coroutines_ten_at_once() -> None:
    inside: set[int] = set()
    sizes: list[int] = []
    full = asyncio.Event()

    async def meet(number: int, factor: int) -> int:
        inside.add(number)
        sizes.append(len(inside))
        if len(inside) == 10:
            full.set()
        await asyncio.wait_for(full.wait(), 20)
        await asyncio.sleep(0)  # an eleventh comes in here, if it may
        inside.remove(number)
        return factor * number

    with fm.executor("async", 10) as executor:
        results = list(executor.starmap(meet, [(n, 2) for n in range(50)]))
    assert results == [2 * n for n in range(50)]
    assert max(sizes) == 10


def test_async_works_under_a_running_loop() -> None:
    async def main() -> int:
        with fm.executor("async", 2) as executor:
            assert executor.submit(double, 1).result(20) == 2  # as in a notebook's cell
            return await asyncio.wrap_future(executor.submit(double, 3))

    assert asyncio.run(main()) == 6


def test_async_calls_can_be_stopped() -> None:
    context = fm.create_context("async")
    context.execute(double, 1, 60.0)
    tasks.eventually(lambda: context._future.running() and context._future._kill)
    context.terminate()
    with pytest.raises(CancelledError):
        context.join(20)
    assert not context.alive
    context.close()
    with fm.executor("async") as executor:
        late = executor.options(timeout=0.05).submit(double, 1, 60.0)
        assert isinstance(late.exception(20), fm.TaskTimeout)


def test_async_calls_see_the_context_variables_of_their_submit() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def look() -> int:
        return variable.get()

    with fm.executor("async") as executor:
        variable.set(5)
        assert executor.submit(look).result(20) == 5
        assert executor.submit(variable.get).result(20) == 5


def test_async_shutdown_cancels_what_calls_left_behind() -> None:
    ended = threading.Event()

    async def linger() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def leave() -> None:
        global _left
        _left = asyncio.ensure_future(linger())
        await asyncio.sleep(0)

    with fm.executor("async") as executor:
        executor.submit(leave).result(20)
    assert ended.is_set()


def test_async_has_a_new_loop_after_a_fork(start_script: Any) -> None:
    script = start_script(
        """
        import asyncio, os
        import forkmill as fm
        async def one(): return 1
        ex = fm.executor("async", 2)
        assert ex.submit(one).result(20) == 1
        import warnings; warnings.simplefilter("ignore")
        pid = os.fork()
        if not pid:
            code = 1
            try:
                assert ex.submit(one).result(20) == 1
                ex.shutdown()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert ex.submit(one).result(20) == 1
        """
    )
    assert script.wait() == 0, script.report()


# ---------------------------------------------------------------------- at exit


@pytest.mark.parametrize("kind", ["thread", "async", "cow_fork", "ipc_fork"])
def test_a_clean_exit_finishes_accepted_calls(kind: str, start_script: Any) -> None:
    script = start_script(
        f"""
        import time, os
        import forkmill as fm
        def late():
            time.sleep(0.2)
            os.write(1, b"done")
        ex = fm.executor({kind!r}, 1)
        ex.submit(late)
        """
    )
    assert script.wait() == 0, script.report()
    assert script.stdout == "done"


def test_types_of_ones_own_can_be_registered() -> None:
    from forkmill.contexts.inline import Inline

    class Mine(Inline):
        type = "mine"

    contexts.register("mine", Mine)
    try:
        with fm.executor("mine") as executor:
            assert executor.submit(testing.square, 3).result() == 9
        with pytest.raises(ValueError, match="already"):
            contexts.register("thread", Mine)
    finally:
        del contexts.TYPES["mine"]


@pytest.mark.parametrize("kind", ["thread", "ipc_fork", "cow_fork", "async"])
@pytest.mark.parametrize("how", ["close", "end", "end at once"])
def test_a_lane_lets_everybody_go_who_waits_in_take(kind: str, how: str) -> None:
    """Two threads wait for outcomes: neither is left behind when no more will come."""
    lane = contexts.spec(kind, 2).lane(contexts.Work(tasks.negative))
    taken: list[Any] = []

    def take() -> None:
        while (piece := lane.take()) is not None:
            taken.append(piece.outputs)

    lane.put(1)
    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    tasks.eventually(lambda: taken == [[-1]] or how == "end at once")
    getattr(lane, how.split()[0])()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert [piece for piece in taken if piece] == [[-1]]
    lane.close()


def test_a_cow_fork_is_no_reason_to_start_a_fresh_process() -> None:
    """Its thread is ours: a pool that is made beside it may still fork."""
    from forkmill.pool import start as _start

    before = _start.choose_method("auto", None)
    with fm.executor("cow_fork", 1) as executor:
        assert executor.submit(testing.square, 3).result(20) == 9
        assert _start.choose_method("auto", None) == before


def test_a_type_may_have_futures_of_its_own() -> None:
    from forkmill.contexts import base
    from forkmill.contexts.inline import Inline

    class Mine(base.Future):
        pass

    class Own(Inline):
        future_class = Mine

    with Own() as executor:
        assert type(executor.submit(testing.square, 2)) is Mine


@pytest.mark.skipif(sys.version_info < (3, 13), reason="no subinterpreters to be had")
def test_forkmill_works_inside_a_subinterpreter(run_script: Any) -> None:
    """Without the extension: contexts in this process, and what `interpreter` runs there."""
    run_script(
        '''
        import _interpreters

        inside = """if True:
            import sys
            import forkmill as fm
            from forkmill.codec import codec as _codec
            from forkmill.contexts import homes

            good, data = homes._run(homes.encode((divmod, (7, 2), {})))
            assert good and _codec.loads(data) == (3, 1)
            assert homes._run(homes.encode((abs, (-7,), {}))) == (None, 7)
            good, data = homes._run(homes.encode((divmod, (7, 0), {})))
            assert good is False
            assert type(_codec.load_failure(memoryview(data))) is ZeroDivisionError
            for kind in ("inline", "thread", "async"):
                with fm.executor(kind, 2) as executor:
                    assert list(executor.map(abs, [-1, -2])) == [1, 2]
            assert "forkmill._native" not in sys.modules
        """
        interpreter = _interpreters.create()
        failure = _interpreters.exec(interpreter, inside)
        _interpreters.destroy(interpreter)
        assert failure is None, failure.errdisplay
        '''
    )

"""CPython's expectations of an executor, held against ProcessPool.

Two halves. The first has the behaviours of CPython's own tests for executors, `wait`,
`as_completed`, shutdown and futures, in our own words: it runs everywhere, under each start
method. The second runs CPython's own test classes where the interpreter has them
(`test.test_concurrent_futures`, 3.12 and newer; many distributions leave it out), joined with one
mixin.

Where we promise more than CPython, ours counts: a killed worker costs its task and not the pool.
"""

from __future__ import annotations

import gc
import io
import itertools
import os
import re
import signal
import sys
import threading
import unittest
import weakref
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import _base
from pathlib import Path

import pytest

import forkmill as fm
import tasks
from methods import MATRIX


def made(state: str, result: object = None, exception: BaseException | None = None) -> _base.Future:
    """A stock future in a given state, to be mixed with ours."""
    future: _base.Future = _base.Future()
    future._state = state
    future._result = result
    future._exception = exception
    return future


CANCELLED = made(_base.CANCELLED)
NOTIFIED = made(_base.CANCELLED_AND_NOTIFIED)
FAILED = made(_base.FINISHED, exception=OSError())
DONE = made(_base.FINISHED, result=42)


class Referable:
    """Something to hold a weak reference to."""

    def method(self) -> None: ...


def make_referable(_: int) -> Referable:
    return Referable()


@pytest.fixture(params=MATRIX)
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(3, start_method=request.param) as made_pool:
        yield made_pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tasks.Gate]:
    with tasks.Gate(tmp_path) as made_gate:
        yield made_gate


class TestExecutor:
    def test_is_an_executor(self, pool: fm.ProcessPool) -> None:
        assert isinstance(pool, futures.Executor)
        assert isinstance(pool.submit(pow, 2, 8), futures.Future)

    def test_submit_gives_the_result(self, pool: fm.ProcessPool) -> None:
        assert pool.submit(pow, 2, 8).result() == 256

    def test_keyword_arguments_of_any_name(self, pool: fm.ProcessPool) -> None:
        assert pool.submit(tasks.multiply, 2, y=8).result() == 16
        assert pool.submit(tasks.capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})

    def test_fn_is_positional_only(self, pool: fm.ProcessPool) -> None:
        with pytest.raises(TypeError):
            pool.submit(fn=tasks.capture, arg=1)
        with pytest.raises(TypeError):
            pool.submit(arg=1)

    @pytest.mark.parametrize("chunksize", [None, 1, 3, 40, 50])
    def test_map_is_the_builtin_map(self, pool: fm.ProcessPool, chunksize: int | None) -> None:
        expected = list(map(pow, range(40), range(40)))
        assert list(pool.map(pow, range(40), range(40), chunksize=chunksize)) == expected

    @pytest.mark.parametrize("chunksize", [-1, 0])
    def test_map_refuses_a_chunksize_below_one(self, pool: fm.ProcessPool, chunksize: int) -> None:
        with pytest.raises(ValueError):
            list(pool.map(pow, range(4), range(4), chunksize=chunksize))

    def test_map_raises_at_the_items_turn(self, pool: fm.ProcessPool) -> None:
        results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
        assert [next(results), next(results)] == [(0, 1), (0, 1)]
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_map_timeout_counts_from_the_call(self, pool: fm.ProcessPool, gate: tasks.Gate) -> None:
        pool.each(tasks.pid)  # the time is for tasks, not for births
        results = pool.map(tasks.pass_gate, [os.devnull, os.devnull, gate.path], timeout=2.5)
        assert [next(results), next(results)] == [None, None]
        with pytest.raises(futures.TimeoutError):
            next(results)
        gate.open()

    def test_shutdown_after_an_unread_map(self, pool: fm.ProcessPool) -> None:
        pool.map(str, [2] * 6)
        pool.shutdown()

    def test_arguments_are_let_go(self, pool: fm.ProcessPool) -> None:
        thing = Referable()
        gone = threading.Event()
        reference = weakref.ref(thing, lambda _: gone.set())
        pool.submit(thing.method)  # the future is dropped, too
        del thing
        assert gone.wait(20)
        assert reference() is None

    @pytest.mark.parametrize("number", [0, -1])
    def test_max_workers_below_one(self, number: int) -> None:
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            fm.ProcessPool(number)

    def test_map_keeps_no_result(self, pool: fm.ProcessPool) -> None:
        for thing in pool.map(make_referable, range(10)):
            reference = weakref.ref(thing)
            del thing
            gc.collect()
            assert reference() is None

    def test_traceback_of_the_worker_is_printed(self, pool: fm.ProcessPool) -> None:
        error = pool.submit(tasks.fail_chained).exception()
        assert type(error) is ValueError
        assert error.args == ("outer text",)
        text = io.StringIO()
        stderr, sys.stderr = sys.stderr, text
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stderr = stderr
        assert "raise failure from error" in text.getvalue()
        assert "missing key" in text.getvalue()

    def test_arguments_are_freed_in_the_worker(self, tmp_path: Path) -> None:
        with fm.ProcessPool(1) as pool:
            log = tasks.Log(tmp_path)
            pool.submit(tasks.length, Tombstone(log.path)).result()
            tasks.eventually(lambda: log.counts()[1] == 1)

    def test_more_tasks_than_workers(self, pool: fm.ProcessPool, gate: tasks.Gate) -> None:
        waiting = [pool.submit(tasks.pass_gate, gate.path, i) for i in range(45)]
        gate.open()
        assert [future.result() for future in waiting] == list(range(45))
        assert pool.stats().workers == 3


class Tombstone:
    """Notes its death, in the worker only."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.home = os.getpid()

    def __len__(self) -> int:
        return 1

    def __del__(self) -> None:
        if os.getpid() != self.home:
            tasks.note(self.path, 1)


class TestWait:
    def test_duplicates_count_once(self, pool: fm.ProcessPool) -> None:
        future = pool.submit(tasks.nap, 0.1)
        done, pending = futures.wait([future, future], return_when=futures.ALL_COMPLETED)
        assert (done, pending) == ({future}, set())

    def test_first_completed(self, pool: fm.ProcessPool, gate: tasks.Gate) -> None:
        quick = pool.submit(tasks.multiply, 21)
        slow = pool.submit(tasks.pass_gate, gate.path)
        done, pending = futures.wait(
            [CANCELLED, quick, slow], timeout=20, return_when=futures.FIRST_COMPLETED
        )
        assert (done, pending) == ({quick}, {CANCELLED, slow})
        gate.open()

    def test_first_completed_with_some_done_before(
        self, pool: fm.ProcessPool, gate: tasks.Gate
    ) -> None:
        slow = pool.submit(tasks.pass_gate, gate.path)
        done, pending = futures.wait([NOTIFIED, DONE, slow], return_when=futures.FIRST_COMPLETED)
        assert (done, pending) == ({NOTIFIED, DONE}, {slow})
        gate.open()

    def test_first_exception(self, pool: fm.ProcessPool, gate: tasks.Gate) -> None:
        good = pool.submit(tasks.multiply, 2, 21)
        futures.wait([good])
        bad = pool.submit(tasks.sleep_and_raise, 0.1)
        slow = pool.submit(tasks.pass_gate, gate.path)
        done, pending = futures.wait(
            [good, bad, slow], timeout=20, return_when=futures.FIRST_EXCEPTION
        )
        assert (done, pending) == ({good, bad}, {slow})
        gate.open()

    def test_first_exception_when_others_are_complete(
        self, pool: fm.ProcessPool, gate: tasks.Gate
    ) -> None:
        bad = pool.submit(divmod, 21, 0)
        slow = pool.submit(tasks.pass_gate, gate.path)
        done, pending = futures.wait(
            [DONE, CANCELLED, NOTIFIED, bad, slow],
            timeout=20,
            return_when=futures.FIRST_EXCEPTION,
        )
        assert (done, pending) == ({DONE, NOTIFIED, bad}, {CANCELLED, slow})
        gate.open()

    def test_first_exception_one_failed_before(
        self, pool: fm.ProcessPool, gate: tasks.Gate
    ) -> None:
        slow = pool.submit(tasks.pass_gate, gate.path)
        done, pending = futures.wait([FAILED, slow], return_when=futures.FIRST_EXCEPTION)
        assert (done, pending) == ({FAILED}, {slow})
        gate.open()

    def test_all_completed(self, pool: fm.ProcessPool) -> None:
        ours = [pool.submit(divmod, 2, 0), pool.submit(tasks.multiply, 2, 21)]
        done, pending = futures.wait([DONE, NOTIFIED, FAILED, *ours])
        assert (done, pending) == ({DONE, NOTIFIED, FAILED, *ours}, set())

    def test_timeout(self, pool: fm.ProcessPool, gate: tasks.Gate) -> None:
        slow = pool.submit(tasks.pass_gate, gate.path)
        done, pending = futures.wait([NOTIFIED, FAILED, DONE, slow], timeout=0.05)
        assert (done, pending) == ({NOTIFIED, FAILED, DONE}, {slow})
        gate.open()

    @pytest.mark.parametrize("turn", range(5))
    def test_many_that_end_while_the_wait_begins(self, turn: int, tmp_path: Path) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with fm.ProcessPool(2) as pool, tasks.Gate(tmp_path) as gate:
                all_ = {pool.submit(tasks.pass_gate, gate.path) for _ in range(100)}
                gate.open()
                done, pending = futures.wait(all_, timeout=20)
                assert (done, pending) == (all_, set())
        finally:
            sys.setswitchinterval(interval)


class TestAsCompleted:
    def test_all_come(self, pool: fm.ProcessPool) -> None:
        all_ = [NOTIFIED, FAILED, DONE, pool.submit(pow, 2, 2), pool.submit(divmod, 1, 0)]
        assert set(futures.as_completed(all_, timeout=20)) == set(all_)

    @pytest.mark.parametrize("timeout", [0, 0.1])
    def test_timeout(self, pool: fm.ProcessPool, gate: tasks.Gate, timeout: float) -> None:
        slow = pool.submit(tasks.pass_gate, gate.path)
        seen = set()
        with pytest.raises(futures.TimeoutError):
            for future in futures.as_completed({NOTIFIED, FAILED, DONE, slow}, timeout):
                seen.add(future)
        assert seen == {NOTIFIED, FAILED, DONE}
        gate.open()

    def test_duplicates_come_once_from_any_iterable(self, pool: fm.ProcessPool) -> None:
        future = pool.submit(tasks.nap, 0.1)
        assert list(futures.as_completed(itertools.repeat(future, 3))) == [future]

    def test_yielded_futures_are_let_go(self, pool: fm.ProcessPool) -> None:
        all_ = [pool.submit(tasks.negative, i) for i in range(8)]
        for future in futures.as_completed(all_, timeout=20):
            all_.remove(future)
            reference = weakref.ref(future)
            del future
            gc.collect()
            # The collector may be about to let it go.
            tasks.eventually(lambda ref=reference: ref() is None, 5)

    def test_message_of_the_timeout(self, pool: fm.ProcessPool, gate: tasks.Gate) -> None:
        slow = [pool.submit(tasks.pass_gate, gate.path) for _ in range(2)]
        with pytest.raises(futures.TimeoutError, match=re.escape("2 (of 4) futures unfinished")):
            list(futures.as_completed([NOTIFIED, DONE, *slow], timeout=0))
        gate.open()

    def test_order_is_that_of_completion(self, pool: fm.ProcessPool, gate: tasks.Gate) -> None:
        slow = pool.submit(tasks.pass_gate, gate.path)
        quick = pool.submit(tasks.negative, 1)
        order = futures.as_completed([slow, quick], timeout=20)
        assert next(order) is quick
        gate.open()
        assert next(order) is slow


class TestFuture:
    def test_callbacks_get_the_future(self, pool: fm.ProcessPool, gate: tasks.Gate) -> None:
        future = pool.submit(tasks.pass_gate, gate.path, 7)
        seen, told = [], threading.Event()
        future.add_done_callback(lambda f: seen.append(f.result()))
        future.add_done_callback(lambda f: told.set())
        assert not seen
        gate.open()
        assert told.wait(20)
        assert seen == [7]

    def test_callback_on_a_done_future_runs_at_once(self, pool: fm.ProcessPool) -> None:
        future = pool.submit(tasks.negative, 1)
        future.result()
        seen: list[object] = []
        future.add_done_callback(seen.append)
        assert seen == [future]

    def test_a_callback_that_raises_does_not_stop_the_next(
        self, pool: fm.ProcessPool, gate: tasks.Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        future = pool.submit(tasks.pass_gate, gate.path)
        told = threading.Event()

        def bad(_: object) -> None:
            raise RuntimeError("the callback's own")

        future.add_done_callback(bad)
        future.add_done_callback(lambda _: told.set())
        gate.open()
        assert told.wait(20)
        assert "the callback's own" in caplog.text

    def test_result_and_exception_with_timeout(
        self, pool: fm.ProcessPool, gate: tasks.Gate
    ) -> None:
        future = pool.submit(tasks.pass_gate, gate.path, 5)
        for timeout in (0, 0.01, -1):
            with pytest.raises(futures.TimeoutError):
                future.result(timeout=timeout)
            with pytest.raises(futures.TimeoutError):
                future.exception(timeout=timeout)
        assert not future.done()
        gate.open()
        assert future.result(timeout=20) == 5
        assert future.exception(timeout=0) is None

    def test_repr_names_the_state(self, pool: fm.ProcessPool, gate: tasks.Gate) -> None:
        with_gate = [pool.submit(tasks.pass_gate, gate.path) for _ in range(3)]
        for future in with_gate:
            tasks.eventually(future.running)
        queued = pool.submit(tasks.pass_gate, gate.path)
        assert "state=running" in repr(with_gate[0])
        assert "state=pending" in repr(queued)
        assert queued.cancel()
        assert "state=cancelled" in repr(queued)
        gate.open()
        with_gate[0].result()
        assert re.search(r"state=finished returned NoneType", repr(with_gate[0]))
        bad = pool.submit(divmod, 1, 0)
        bad.exception()
        assert re.search(r"state=finished raised ZeroDivisionError", repr(bad))

    def test_cancelled_raises_in_every_way(self, tmp_path: Path) -> None:
        with fm.ProcessPool(1) as pool, tasks.Gate(tmp_path) as gate:
            running = pool.submit(tasks.pass_gate, gate.path)
            tasks.eventually(running.running)
            queued = pool.submit(tasks.negative, 1)
            called: list[object] = []
            queued.add_done_callback(called.append)
            assert not running.cancel()
            assert queued.cancel()
            assert queued.cancel()  # again: still true
            assert queued.cancelled() and queued.done() and not queued.running()
            assert called == [queued]
            for ask in (queued.result, queued.exception):
                with pytest.raises(futures.CancelledError):
                    ask()
            gate.open()


class TestShutdown:
    def test_submit_after_shutdown(self, pool: fm.ProcessPool) -> None:
        pool.shutdown()
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            pool.submit(pow, 2, 5)

    def test_accepted_tasks_are_finished(self, pool: fm.ProcessPool) -> None:
        pending = [pool.submit(tasks.nap, 0.02, i) for i in range(30)]
        pool.shutdown()
        assert all(future.done() for future in pending)
        assert [future.result() for future in pending] == list(range(30))

    def test_cancel_futures(self, pool: fm.ProcessPool, tmp_path: Path) -> None:
        with tasks.Gate(tmp_path) as gate:
            pending = [pool.submit(tasks.pass_gate, gate.path) for _ in range(50)]
            tasks.eventually(pending[0].running)
            pool.shutdown(wait=False, cancel_futures=True)
            cancelled = [future for future in pending if future.cancelled()]
            assert 50 - 3 <= len(cancelled) < 50
            gate.open()
            pool.shutdown()
        for future in pending:
            assert future.done()
            assert future.cancelled() or future.exception() is None

    @pytest.mark.parametrize("method", tasks.METHODS)
    def test_no_wait_still_finishes(self, method: str) -> None:
        pool = fm.ProcessPool(5, start_method=method)  # ten chunks fill the window of five
        results = pool.map(abs, range(-5, 5))
        future = pool.submit(tasks.nap, 0.05, 3)
        pool.shutdown(wait=False)
        assert list(results) == [abs(i) for i in range(-5, 5)]
        assert future.result() == 3

    def test_dropped_executor_still_delivers(self) -> None:
        pool = fm.ProcessPool(2)
        results = pool.map(abs, range(-5, 5))
        future = pool.submit(tasks.nap, 0.05, 3)
        del pool
        gc.collect()
        assert list(results) == [abs(i) for i in range(-5, 5)]
        assert future.result() == 3

    def test_context_manager_waits(self) -> None:
        with fm.ProcessPool(2) as pool:
            pids = [worker.pid for worker in pool.workers()]
            assert list(pool.map(abs, range(-5, 5))) == [abs(i) for i in range(-5, 5)]
        for pid in filter(None, pids):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    def test_cancel_right_before_shutdown(self) -> None:
        for _ in range(20):
            pool = fm.ProcessPool(1)
            pool.submit(int).result()
            pool.submit(int).cancel()
            pool.shutdown(wait=True)

    @pytest.mark.parametrize("method", tasks.METHODS)
    def test_interpreter_exit_finishes_tasks(self, run_script, method: str) -> None:
        script = run_script(
            f"""
            import time, forkmill
            def task():
                time.sleep(0.3)
                print("apple", flush=True)
            future = forkmill.ProcessPool(2, start_method={method!r}).submit(task)
            pool = forkmill.ProcessPool(2, start_method={method!r})
            pool.submit(task)
            """
        )
        # Not by lines: where output is unbuffered a line's end is a write of its own.
        assert script.stdout.split() in (["apple", "apple"], ["appleapple"])
        assert script.stderr == ""

    def test_submit_during_interpreter_exit(self, run_script) -> None:
        script = run_script(
            """
            import atexit, forkmill
            @atexit.register
            def last():
                try:
                    pool.submit(id, None)
                except RuntimeError as error:
                    print("runtime-error", error)
            pool = forkmill.ProcessPool(2)
            print(pool.submit(pow, 2, 3).result())
            """
        )
        assert "runtime-error cannot schedule new futures" in script.stdout
        assert script.stderr == ""

    def test_no_wait_then_exit(self, run_script) -> None:
        script = run_script(
            """
            import time, forkmill
            def task():
                time.sleep(0.3)
                print("apple", flush=True)
            pool = forkmill.ProcessPool(3)
            pool.submit(task)
            pool.shutdown(wait=False)
            """
        )
        assert script.stdout.split() == ["apple"]
        assert script.stderr == ""


class TestWorkers:
    def test_a_killed_child_costs_its_task_only(self, tmp_path: Path) -> None:
        """Stock: the pool is broken. Ours: one WorkerDied."""
        with fm.ProcessPool(2) as pool, tasks.Gate(tmp_path) as gate:
            future = pool.submit(tasks.pass_gate, gate.path)
            victim = pool.submit(tasks.pid_after, gate.path)
            for waiting in (future, victim):
                tasks.eventually(waiting.running)
            busy = next(w for w in pool.workers() if w.in_flight)
            os.kill(busy.pid, signal.SIGKILL)
            died = futures.wait([future, victim], 20, "FIRST_EXCEPTION").done
            assert [type(f.exception()) for f in died] == [fm.WorkerDied]
            assert pool.submit(pow, 2, 8).result() == 256
            gate.open()

    def test_max_tasks_per_child(self) -> None:
        with fm.ProcessPool(1, max_tasks_per_child=3) as pool:
            pids = [pool.submit(os.getpid).result() for _ in range(9)]
        groups = [set(pids[i : i + 3]) for i in (0, 3, 6)]
        assert [len(group) for group in groups] == [1, 1, 1]
        assert len(set.union(*groups)) == 3

    def test_max_tasks_early_shutdown(self) -> None:
        pool = fm.ProcessPool(3, max_tasks_per_child=1)
        pending = [pool.submit(tasks.multiply, i, i) for i in range(6)]
        pool.shutdown()
        assert [future.result() for future in pending] == [i * i for i in range(6)]

    @pytest.mark.parametrize("method", tasks.METHODS)
    def test_initializer_that_fails_breaks_the_pool(self, method: str) -> None:
        with (
            fm.ProcessPool(2, start_method=method, initializer=tasks.initializer_raises) as pool,
            pytest.raises(futures.BrokenExecutor),
        ):
            for _ in range(1000):
                pool.submit(tasks.nap, 0.01).result()


# ------------------------------------------------------ CPython's own classes, where there are


try:
    from test import support
    from test.test_concurrent_futures import (
        executor,
        test_as_completed,
        test_init,
        test_process_pool,
        test_shutdown,
        test_wait,
        util,
    )
except ImportError:
    support = None  # this interpreter came without its tests; the half above is the one that counts

if support is not None:
    import multiprocessing

    # The one mixin: everything else is CPython's. The parametrization is by their `ctx`.
    class OnProcessPool(util.ExecutorMixin):
        executor_type = fm.ProcessPool
        worker_count = 5

        def get_context(self):
            return multiprocessing.get_context(self.ctx)

        def create_event(self):  # 3.14 asks for it
            return self.manager.Event()

    # What stock pools and ours promise differently, or what looks into stock pools' insides.
    OTHERWISE = {
        "test_map_timeout": "sleeps five seconds; see test_map_timeout_counts_from_the_call",
        "test_killed_child": "a death costs one task here, not the pool (INV-2)",
        "test_traceback": "its cause is our own class; see test_traceback_of_the_worker_is_printed",
        "test_ressources_gced_in_workers": "see test_arguments_are_freed_in_the_worker",
        "test_saturation": "looks at _processes; see test_more_tasks_than_workers",
        "test_idle_process_reuse_one": "looks at _processes; ours start at once",
        "test_idle_process_reuse_multiple": "looks at _processes; ours start at once",
        "test_max_tasks_per_child": "ours works under fork too; see test_max_tasks_per_child",
        "test_max_tasks_per_child_defaults_to_spawn_context": "ours does not change the method",
        "test_python_finalization_error": "mocks the stock pool's threads",
        "test_processes_terminate": "looks at _processes",
        "test_cancel_futures": "counts on one that started; see test_cancel_futures",
        "test_context_manager_shutdown": "makes a stock pool by name",
        "test_del_shutdown": "makes a stock pool by name",
        "test_shutdown_no_wait": "makes a stock pool by name",
        "test_interpreter_shutdown": "imports the type by name from concurrent.futures",
        "test_submit_after_interpreter_shutdown": "imports the type by name",
        "test_hang_gh83386": "imports the type by name",
        "test_max_workers_too_large": "Windows only",
        "test_broken_process_pool_traceback": "a death costs one task here, not the pool",
        "test_traceback_when_child_process_terminates_abruptly": "WorkerDied says what happened",
        "test_force_shutdown_workers": "mocks what its _processes are; see test_drop_in.py",
        "test_force_shutdown_workers_dead_workers": "a death costs one task here, not the pool",
        "test_force_shutdown_workers_invalid_op": "calls _force_shutdown()",
        "test_kill_workers": "mocks _force_shutdown()",
        "test_terminate_workers": "mocks _force_shutdown()",
        "test_map_buffersize_type_validation": "its words; ours say what was given, too",
        "test_map_buffersize_value_validation": "its words; ours say what was given, too",
    }
    # In the gate the versions before these are enough: theirs sleep a lot.
    NEWER = [pytest.mark.slow] if sys.version_info >= (3, 14) else []

    def adopt(tests: type, context: str) -> type:
        """CPython's test class on ProcessPool, with the start method of one context."""
        name = f"Test{tests.__name__.removesuffix('Tests').removesuffix('Test')}_{context}"
        members = {
            method: unittest.skip(why)(lambda self: None)
            for method, why in OTHERWISE.items()
            if hasattr(tests, method)
        }
        return type(
            name,
            (tests, OnProcessPool, unittest.TestCase),
            {"ctx": context, "__module__": __name__, **members},
        )

    support.verbose = False
    for stock in (
        executor.ExecutorTest,
        test_wait.WaitTests,
        test_as_completed.AsCompletedTests,
        test_shutdown.ProcessPoolShutdownTest,
        test_process_pool.ProcessPoolExecutorTest,
        test_init.InitializerMixin,
    ):
        # One start method each, for they sleep a lot. (The fifth has all of the first's.)
        quick = stock is executor.ExecutorTest
        for context in ("forkserver",) if quick else ("fork",):
            adopted = adopt(stock, context)
            left = pytest.mark.unbalanced("processes", "threads", "descriptors")  # managers
            for mark in (pytest.mark.timeout(120), left, *NEWER):
                adopted = mark(adopted)
            globals()[adopted.__name__] = adopted
    del stock, adopted

"""cow_fork: what is inherited, what comes back, who is charged for a death, what is left behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, CancelledError, as_completed, wait
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from conftest import children
from forkmill.contexts.cow_fork import CowFork

RunScript = Callable[..., Any]
StartScript = Callable[..., Any]

LINUX = sys.platform == "linux"

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="fork is opt-in on macOS")


@pytest.fixture
def ex() -> Iterator[CowFork]:
    with CowFork(2) as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tasks.Gate]:
    with tasks.Gate(tmp_path) as made:
        yield made


@pytest.fixture
def log(tmp_path: Path) -> tasks.Log:
    return tasks.Log(tmp_path)


class Stubborn:
    """Cannot be pickled at all."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        raise AssertionError("nobody may pickle an input")


# ------------------------------------------------------------------ inputs


def test_inputs_are_inherited_and_never_pickled(ex: CowFork, tmp_path: Path) -> None:
    stubborn = Stubborn(41)
    path = tmp_path / "text"
    path.write_text("hello")
    with path.open() as file:
        lock = threading.Lock()
        assert ex.submit(lambda a, *, b: a.value + b.value, stubborn, b=Stubborn(1)).result() == 42
        assert ex.submit(lambda: stubborn.value).result() == 41
        assert ex.submit(file.read).result() == "hello"
        assert ex.submit(lock.acquire).result() is True
        assert not lock.locked()  # that was the child's copy


def test_what_a_call_changes_stays_in_its_child(ex: CowFork) -> None:
    numbers = [1]
    assert ex.submit(lambda: numbers.append(2) or list(numbers)).result() == [1, 2]
    assert ex.submit(lambda: list(numbers)).result() == [1]


def test_a_child_sees_the_parent_as_it_is_at_its_fork(ex: CowFork) -> None:
    state = {"x": 1}
    assert ex.submit(lambda: state["x"]).result() == 1
    state["x"] = 2
    assert ex.submit(lambda: state["x"]).result() == 2


@pytest.mark.skipif(not LINUX, reason="smaps")
@pytest.mark.parametrize("items", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_large_input_costs_a_child_next_to_no_memory(run_script, items: int) -> None:
    """A lambda over a structure of 100 MB, or 1 GB: less than 20 MB of its own."""
    run_script(
        f"""
        from pathlib import Path
        import forkmill as fm

        large = [bytes(1000) for _ in range({items})]

        def private_kib():
            assert len(large[-1]) == 1000
            text = Path("/proc/self/smaps_rollup").read_text()
            return int(text.partition("Private_Dirty:")[2].split()[0])

        with fm.executor("cow_fork", 2) as ex:
            kib = ex.submit(lambda: private_kib()).result()
        assert kib < 20 * 1024, kib
        """
    )


# ------------------------------------------------------------------ results


@pytest.mark.parametrize("size", [0, 10, 255, 256, 4096, 65_535, 70_000, 1_000_000, 100_000_000])
def test_results_of_any_size_arrive(ex: CowFork, size: int) -> None:
    result = ex.submit(lambda: b"ab" * (size // 2)).result()
    assert type(result) is bytes and result == b"ab" * (size // 2)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 2**70, 1.5, "", "text", "\ud800", "x" * 70_000, b"x", (), (1, (2, [3])),
        [None] * 300, {"a": 1}, {1, 2}, ValueError("a value"), range(5), "é" * 100_000,
    ],
    ids=lambda value: f"{type(value).__name__}",
)  # fmt: skip
def test_values_come_back_unchanged(ex: CowFork, value: Any) -> None:
    result = ex.submit(lambda: value).result()
    assert type(result) is type(value)
    assert repr(result) == repr(value)


def test_buffers_come_out_of_band_writable_and_private(ex: CowFork) -> None:
    np = pytest.importorskip("numpy")
    arrays = [np.arange(n, dtype="u1") % 251 for n in (3, 70_000, 1_000_003)]
    results = ex.submit(lambda: {"all": arrays, "again": arrays[1]}).result()
    for mine, theirs in zip(arrays, results["all"], strict=True):
        assert (mine == theirs).all()
        theirs[:] = 0
    assert arrays[1][1] == 1


def test_an_array_received_earlier_stays_as_it_is_when_a_child_writes_to_it(ex: CowFork) -> None:
    np = pytest.importorskip("numpy")
    array = ex.submit(lambda: np.ones(3_000_000)).result()

    def write() -> float:
        array[:] = 7
        return float(array.sum())

    assert ex.submit(write).result() == 21_000_000
    assert array.sum() == 3_000_000


def test_results_are_read_while_the_child_still_runs(gate: tasks.Gate) -> None:
    with CowFork(1, batch=2) as ex:
        large, late = _together(ex, [lambda: b"x" * 5_000_000, lambda: tasks.pass_gate(gate.path)])
        assert len(large.result(timeout=20)) == 5_000_000
        assert not late.done()
        gate.open()
        assert late.result(timeout=20) is None


def test_failures_keep_what_they_are(ex: CowFork) -> None:
    def fail() -> None:
        try:
            {}["x"]
        except KeyError as cause:
            error = ValueError("no", 3)
            error.add_note("a note")
            raise error from cause

    with pytest.raises(ValueError, match="no") as caught:
        ex.submit(fail).result()
    assert caught.value.args == ("no", 3)
    assert caught.value.__notes__ == ["a note"]
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(SystemExit) as ended:
        ex.submit(sys.exit, 3).result()
    assert ended.value.code == 3


def test_what_cannot_travel_fails_its_own_call_only(ex: CowFork) -> None:
    with pytest.raises(fm.SerializationError) as caught:
        ex.submit(lambda: {"a": [threading.Lock()]}).result()
    assert caught.value.path == "['a'][0]"

    class Local(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(a)

    def fail() -> None:
        raise Local(1, 2)

    with pytest.raises(fm.RemoteError) as remote:
        ex.submit(fail).result()
    assert "Local" in remote.value.type_name
    with pytest.raises(fm.SerializationError):
        ex.submit(lambda: (n for n in range(3))).result()
    assert ex.submit(abs, -1).result() == 1


def test_a_result_that_cannot_be_decoded_fails_its_own_call_only(ex: CowFork) -> None:
    bad = ex.submit(tasks.make_exploding)
    assert isinstance(bad.exception(timeout=20), fm.SerializationError)
    assert ex.submit(abs, -1).result() == 1


class _Tells:
    """Remembers which thread decoded it."""

    decoded_by = 0

    def __reduce__(self) -> Any:
        return _tell, ()


def _tell() -> _Tells:
    it = _Tells()
    it.decoded_by = threading.get_ident()
    return it


def test_the_thread_that_asks_decodes(ex: CowFork) -> None:
    future = ex.submit(_Tells)
    tasks.eventually(future.done)
    result = future.result()
    assert result.decoded_by == threading.get_ident()
    assert future.result() is result


def test_stock_waits_know_failures_from_results(ex: CowFork, gate: tasks.Gate) -> None:
    waiting = ex.submit(tasks.pass_gate, gate.path)
    failing = ex.submit(lambda: 1 // 0)
    done, _ = wait([waiting, failing], timeout=20, return_when=FIRST_EXCEPTION)
    assert done == {failing} and isinstance(failing.exception(), ZeroDivisionError)
    gate.open()


def test_classes_of_main_keep_their_identity(run_script: RunScript) -> None:
    """By name if the parent had it at the fork, by value if the child made it."""
    run_script("""
        from forkmill.contexts.cow_fork import CowFork
        ex = CowFork(2)
        assert ex.submit(int).result() == 0
        class Late:  # after the executor, and after its first fork
            pass
        assert type(ex.submit(Late).result()) is Late
        def remake():
            global Late, Fresh
            class Late: x = 1
            class Fresh: y = 2
            return Late(), Fresh()
        late, fresh = ex.submit(remake).result()
        assert type(late) is not Late and late.x == 1 and fresh.y == 2
        assert type(ex.submit(Late).result()) is Late
        ex.shutdown()
    """)


# ------------------------------------------------------------------ deaths


def _together(ex: CowFork, calls: list[Callable[[], Any]]) -> list[Any]:
    """Submit calls so that one child gets them all, the executor being one wide."""
    with tempfile.TemporaryDirectory() as folder:
        with tasks.Gate(folder) as busy:
            first = ex.submit(tasks.pass_gate, busy.path)
            tasks.eventually(first.running)
            futures = [ex.submit(call) for call in calls]
        first.result(timeout=20)
    return futures


@pytest.mark.parametrize(("how", "signum", "code"), [
    ("exit0", None, 0), ("exit3", None, 3), ("kill", signal.SIGKILL, None),
    ("term", signal.SIGTERM, None), ("segv", signal.SIGSEGV, None),
])  # fmt: skip
def test_a_death_says_how(ex: CowFork, how: str, signum: int | None, code: int | None) -> None:
    def die() -> None:
        if code is not None:
            os._exit(code)
        import ctypes

        if signum == signal.SIGSEGV:
            ctypes.string_at(0)
        os.kill(os.getpid(), signum or 0)

    with pytest.raises(fm.WorkerDied) as caught:
        ex.submit(die).result(timeout=20)
    error = caught.value
    assert (error.signal, error.exitcode, error.cause) == (signum, code, "exit")
    assert error.pid > 0 and error.rss_kb > 1000 and error.attempts == 1
    assert ("Segmentation" in error.crash) == (how == "segv")
    assert ex.submit(abs, -1).result() == 1


def test_a_crash_text_is_of_this_death(ex: CowFork) -> None:
    for _ in range(2):
        with pytest.raises(fm.WorkerDied) as caught:
            ex.submit(lambda: __import__("ctypes").string_at(0)).result(timeout=20)
        assert caught.value.crash.count("Fatal Python error") == 1
    with pytest.raises(fm.WorkerDied) as caught:
        ex.submit(os._exit, 1).result(timeout=20)
    assert caught.value.crash == ""


def test_a_batch_is_one_child_and_a_death_costs_its_own_item(log: tasks.Log) -> None:
    def item(i: int) -> tuple[int, int]:
        tasks.note(log.path, i)
        if i == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return i, os.getpid()

    with CowFork(1, batch=5) as ex:
        futures = _together(ex, [lambda i=i: item(i) for i in range(5)])  # type: ignore[misc]
        with pytest.raises(fm.WorkerDied):
            futures[2].result(timeout=20)
        results = [futures[i].result(timeout=20) for i in (0, 1, 3, 4)]
    assert [i for i, _ in results] == [0, 1, 3, 4]
    metrics = ex.metrics()
    assert (metrics.created, metrics.reused, metrics.failed) == (3, 3, 1)
    assert results[0][1] == results[1][1] != results[2][1] == results[3][1]
    assert set(log.counts().values()) == {1}


def test_a_large_result_that_was_not_written_is_lost_with_its_child(gate: tasks.Gate) -> None:
    """A death in the middle of a record charges that record's call."""

    def spoil() -> bytes:
        threading.Timer(0.0, lambda: None).start()

        class Late:
            def __reduce__(self) -> Any:
                os._exit(9)

        return Late()  # type: ignore[return-value]

    with CowFork(1) as ex, pytest.raises(fm.WorkerDied) as caught:
        ex.submit(spoil).result(timeout=20)
    assert caught.value.exitcode == 9


def test_timeouts_count_for_each_item_of_a_batch(log: tasks.Log, tmp_path: Path) -> None:
    def item(i: int) -> int:
        tasks.note(log.path, i)
        time.sleep((0.7, 30, 0, 0)[i])
        return i

    with CowFork(1, batch=4) as ex:
        # Before the one that is late comes another that takes longer than it may.
        limits = (30, 0.5, 30, 30)
        begin = time.monotonic()
        with tasks.Gate(tmp_path) as busy:
            first = ex.submit(tasks.pass_gate, busy.path)
            tasks.eventually(first.running)
            futures = [ex.options(timeout=limits[i]).submit(item, i) for i in range(4)]
        with pytest.raises(fm.TaskTimeout) as caught:
            futures[1].result(timeout=20)
        assert [futures[i].result(timeout=20) for i in (0, 2, 3)] == [0, 2, 3]
    assert caught.value.timeout == 0.5 and isinstance(caught.value, TimeoutError)
    assert time.monotonic() - begin < 10
    assert set(log.counts().values()) == {1}


def test_kill_ends_a_running_call_only(ex: CowFork, gate: tasks.Gate) -> None:
    doomed, other = (ex.submit(tasks.pass_gate, gate.path, i) for i in range(2))
    tasks.eventually(lambda: doomed.running() and other.running())
    tasks.eventually(doomed.kill)
    with pytest.raises(fm.WorkerDied) as caught:
        doomed.result(timeout=20)
    assert caught.value.cause == "killed"
    gate.open()
    assert other.result(timeout=20) == 1
    assert not other.kill()


def test_kill_inside_a_batch_harms_no_neighbour(gate: tasks.Gate, log: tasks.Log) -> None:
    def item(i: int) -> int:
        tasks.note(log.path, i)
        if i == 0:
            tasks.pass_gate(gate.path)
        return i

    with CowFork(1, batch=3) as ex:
        futures = _together(ex, [lambda i=i: item(i) for i in range(3)])  # type: ignore[misc]
        tasks.eventually(lambda: log.counts()[0])
        assert futures[1].kill()  # given to the child, but not started
        gate.open()
        assert [futures[i].result(timeout=20) for i in (0, 2)] == [0, 2]
        with pytest.raises(fm.WorkerDied) as caught:
            futures[1].result(timeout=20)
    assert caught.value.cause == "killed"
    assert log.counts() == {0: 1, 2: 1}


def test_cancel_takes_back_what_waits(gate: tasks.Gate, log: tasks.Log) -> None:
    with CowFork(1) as ex:
        busy = ex.submit(tasks.pass_gate, gate.path)
        waiting = ex.submit(tasks.note, log.path, 1)
        tasks.eventually(busy.running)
        assert not busy.cancel()
        assert waiting.cancel() and waiting.cancelled()
        gate.open()
    with pytest.raises(CancelledError):
        waiting.result()
    assert not log.counts()


def test_retries_are_fresh_children_and_end(ex: CowFork, log: tasks.Log) -> None:
    def dies_twice() -> str:
        tasks.note(log.path, 1)
        if log.counts()[1] < 3:
            os._exit(1)
        return "third"

    assert ex.options(retries=2).submit(dies_twice).result(timeout=20) == "third"

    def raises() -> None:
        tasks.note(log.path, 2)
        raise KeyError("x")

    with pytest.raises(KeyError):
        ex.options(retries=2, retry_on=KeyError).submit(raises).result(timeout=20)
    with pytest.raises(KeyError):
        ex.options(retries=2).submit(raises).result(timeout=20)
    assert log.counts() == {1: 3, 2: 4}


def test_a_process_that_a_task_forked_ends_where_it_comes_back(ex: CowFork) -> None:
    def fork_and_return() -> int:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return pid

    assert ex.submit(fork_and_return).result(timeout=20) > 0
    assert ex.submit(abs, -2).result() == 2


def test_a_grandchild_that_holds_the_pipe_delays_nothing(ex: CowFork) -> None:
    def leave_one_behind() -> int:
        pid = os.fork()
        if not pid:
            time.sleep(30)
            os._exit(0)
        return pid

    pid = ex.submit(leave_one_behind).result(timeout=20)
    try:
        with CowFork(1) as other:
            other.submit(abs, 1).result(timeout=20)
        begin = time.monotonic()
        ex.shutdown()
        assert time.monotonic() - begin < 5
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not LINUX, reason="counts descriptors")
def test_a_fork_that_fails_is_tried_again_and_then_reported(run_script: RunScript) -> None:
    run_script("""
        import os, resource
        from forkmill.contexts.cow_fork import CowFork
        counts = [0, 0]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        def after_in_parent():
            counts[1] += 1
            if counts[1] == 3:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.register_at_fork(before=lambda: counts.__setitem__(0, counts[0] + 1),
                            after_in_parent=after_in_parent)
        ex = CowFork(1)
        assert ex.submit(abs, -1).result() == 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        assert ex.submit(abs, -2).result(20) == 2  # retried
        assert counts == [4, 4], counts  # one, two that failed, and the one that got through
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        futures = [ex.submit(abs, -3) for _ in range(3)]
        for future in futures:
            assert isinstance(future.exception(30), OSError)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert ex.submit(abs, -4).result(20) == 4
        assert counts[0] == counts[1], counts
        ex.shutdown()
    """)


def test_a_child_that_freezes_in_its_set_up_is_replaced_uncharged(run_script: RunScript) -> None:
    """As with a lock of some library that another thread held at the fork."""
    run_script("""
        import os, time
        from forkmill.contexts.cow_fork import CowFork
        freeze = True
        def thaw():
            global freeze
            freeze = False
        os.register_at_fork(after_in_child=lambda: freeze and time.sleep(60), after_in_parent=thaw)
        ex = CowFork(1)
        future = ex.submit(abs, -1)
        assert future.result(20) == 1
        assert ex.metrics().failed == 0 and ex.metrics().created == 2
        ex.shutdown()
    """)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_child_that_is_slow_to_begin_costs_nobody_a_call(
    run_script: RunScript, log: tasks.Log, batch: int
) -> None:
    """It may begin just when it is given up: then it is not, and nothing runs twice."""
    run_script(f"""
        import os, random, time, tasks
        from forkmill.contexts import cow_fork, forker
        forker._SET_UP = 0.05
        forker._STILLBORN = 8  # for this machine four in a row may be an accident
        end = forker.Forker._end_child
        def end_late(*args):  # what a scheduler may do there
            time.sleep(0.03)
            end(*args)
        forker.Forker._end_child = end_late
        def lag():
            random.seed()
            time.sleep(random.uniform(0.03, 0.07))
        os.register_at_fork(after_in_child=lag)
        ex = cow_fork.CowFork(2, batch={batch})
        def work(i):
            tasks.note({log.path!r}, i)
            time.sleep(0.04)
        futures = [ex.submit(work, i) for i in range(30)]
        errors = [future.exception(30) for future in futures]
        assert errors == [None] * 30, errors
        metrics = ex.metrics()
        assert metrics.failed == 0 and metrics.created > 30 / {batch}, metrics
        ex.shutdown()
    """)
    assert log.counts() == dict.fromkeys(range(30), 1)


def test_children_that_freeze_for_ever_end_as_a_death_that_says_so(run_script: RunScript) -> None:
    run_script("""
        import os, time
        from forkmill import WorkerDied
        from forkmill.contexts import cow_fork, forker
        forker._SET_UP = 0.05
        os.register_at_fork(after_in_child=lambda: time.sleep(60))
        ex = cow_fork.CowFork(1, batch=2)
        first, second = ex.submit(abs, -1), ex.options(retries=1).submit(abs, -2)
        for attempts, future in enumerate((first, second), 1):
            error = future.exception(20)
            assert type(error) is WorkerDied and error.attempts == attempts, error
            assert "had not begun" in error.__notes__[-1], error.__notes__
        ex.shutdown()
    """)


def test_children_that_never_start_end_as_a_death(run_script: RunScript) -> None:
    run_script("""
        import os
        from forkmill import WorkerDied
        from forkmill.contexts.cow_fork import CowFork
        os.register_at_fork(after_in_child=lambda: os._exit(5))
        ex = CowFork(1)
        error = ex.submit(abs, -1).exception(20)
        assert type(error) is WorkerDied and error.exitcode == 5, error
        ex.shutdown()
    """)


# ------------------------------------------------------------------ the child's surroundings


def test_the_collector_is_frozen_in_the_child_and_left_alone_here(ex: CowFork) -> None:
    before = gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()
    enabled, frozen = ex.submit(lambda: (gc.isenabled(), gc.get_freeze_count())).result()
    assert enabled == before[0] and frozen > 1000
    assert (gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()) == before


def test_signals_are_as_in_workers(run_script: RunScript) -> None:
    run_script("""
        import os, signal, socket
        from forkmill.contexts.cow_fork import CowFork
        a, b = socket.socketpair()
        b.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: print("never"))
        signal.signal(signal.SIGUSR1, lambda *_: print("never"))
        signal.signal(signal.SIGRTMIN, lambda *_: print("never"))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.set_wakeup_fd(b.fileno(), warn_on_full_buffer=False)
        signal.setitimer(signal.ITIMER_REAL, 1000)
        ex = CowFork(2)
        def look():
            return ([int(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGPIPE,
                     signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGRTMIN)],
                    signal.set_wakeup_fd(-1), signal.getitimer(signal.ITIMER_REAL)[0],
                    sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        assert ex.submit(look).result(20) == ([1, 1, 0, 0, 0, 0], -1, 0.0, [])
        try:
            ex.submit(os._exit, 3).result(20)
        except Exception as error:  # the status is lost, the death is not
            assert type(error).__name__ == "WorkerDied", error
        assert ex.submit(abs, -1).result(20) == 1
        ex.shutdown()
    """)


def test_a_child_has_no_thread_pool_or_loop_of_the_parent(ex: CowFork) -> None:
    import asyncio

    async def inside() -> Any:
        def look() -> tuple[int, bool, str, str]:
            try:
                asyncio.get_running_loop()
                loop = True
            except RuntimeError:
                loop = False
            return threading.active_count(), loop, refused(ex), refused(pool)

        return await asyncio.wrap_future(ex.submit(look))

    def refused(executor: Any) -> str:
        try:
            executor.submit(abs, 1)
        except fm.PoolError as error:
            return str(error)
        return ""

    with fm.ProcessPool(1) as pool:
        threads, loop, own, other = asyncio.run(inside())
        assert pool.submit(abs, -1).result() == 1
    assert (threads, loop) == (1, False)
    assert "belongs to" in own and "belongs to" in other


def test_a_child_holds_none_of_our_descriptors(ex: CowFork, gate: tasks.Gate) -> None:
    def links() -> set[str]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                found.add(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue
        return found

    busy = ex.submit(tasks.pass_gate, gate.path)
    tasks.eventually(busy.running)
    before = links()
    theirs = ex.submit(links).result(20)
    # Those of the other child, of the forking thread: a pipe that this process has is none of its.
    ours = {link for link in before & theirs if link.startswith("pipe:")}
    first = {os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)}
    inherited = {link for link in ours if link not in first}
    assert not any("pidfd" in link for link in theirs)
    assert len([link for link in theirs if "forkmill-crash" in link]) == 1
    assert not inherited & _pipes_of(ex)
    gate.open()


def _pipes_of(ex: CowFork) -> set[str]:
    forker = ex._forker
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in (forker._wake, forker._wake_end)}


def test_a_task_may_use_an_executor_of_its_own(ex: CowFork) -> None:
    def nested() -> list[int]:
        with CowFork(2) as own:
            return list(own.map(lambda x: x * 2, range(5)))

    assert ex.submit(nested).result(timeout=30) == [0, 2, 4, 6, 8]


def test_random_numbers_differ_between_children(ex: CowFork) -> None:
    np = pytest.importorskip("numpy")
    import random

    draws = list(ex.map(lambda _: (random.random(), float(np.random.rand())), range(4)))
    assert len({a for a, _ in draws}) == 4 and len({b for _, b in draws}) == 4


def test_output_is_printed_once_and_before_the_result(run_script: RunScript) -> None:
    code = """
        import sys
        from pathlib import Path
        from forkmill.contexts.cow_fork import CowFork
        sys.stdout.write("parent ")  # stays in the buffer over all forks
        ex = CowFork(1)
        for i in range(3):
            ex.submit(print, f"child{i}", end=" ").result()
            assert f"child{i}" in Path("../script0/stdout").read_text()
        ex.submit(lambda: sys.stderr.write("error")).result()
        ex.shutdown()
    """
    script = run_script(code)
    assert script.stdout == "child0 child1 child2 parent "
    assert script.stderr == "error"


def test_a_thread_that_prints_does_not_freeze_children(run_script: RunScript) -> None:
    """It holds the stream's lock at nearly each fork, and nobody releases that in the child."""
    script = run_script(
        """
        import tasks
        from forkmill.contexts.cow_fork import CowFork
        with tasks.chatter("x" * 200), CowFork(2) as ex:
            list(ex.map(lambda i: print("child", i, flush=True), range(150)))
            metrics = ex.metrics()
        assert metrics.created + metrics.reused == 150, metrics  # none was given up as frozen
        """
    )
    lines = script.stdout.splitlines()
    assert set(lines) == {"x" * 200, *(f"child {i}" for i in range(150))}
    assert sum(line.startswith("child") for line in lines) == 150


# ------------------------------------------------------------------ many, and the end


def test_at_most_width_children_run_at_once(ex: CowFork, log: tasks.Log) -> None:
    def span(item: int) -> tuple[float, float]:
        begin = time.monotonic()
        tasks.note(log.path, item)
        tasks.eventually(lambda: len(log.counts()) >= 2)  # the first waits for the second
        time.sleep(0.02)
        return begin, time.monotonic()

    spans = list(ex.map(span, range(12), ordered=False))
    most = max(sum(b <= begin < e for b, e in spans) for begin, _ in spans)
    assert most == 2


def test_map_is_lazy_bounded_and_ordered(ex: CowFork) -> None:
    pulled = []

    def numbers() -> Iterator[int]:
        for i in range(1000):
            pulled.append(i)
            yield i

    results = ex.map(lambda x: x * x, numbers())
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(pulled) <= 5 + ex.window
    results.close()  # type: ignore[attr-defined]
    assert sorted(ex.map(lambda x: x, range(30), ordered=False)) == list(range(30))
    outcomes = list(ex.map(lambda x: 1 // x, [1, 0], return_exceptions=True))
    assert outcomes[0] == 1 and isinstance(outcomes[1], ZeroDivisionError)


@pytest.mark.parametrize(
    ("items", "batch"),
    [
        (100, 1),
        (2_000, 50),
        pytest.param(500, 1, marks=pytest.mark.slow),
        pytest.param(10_000, 50, marks=pytest.mark.slow),
    ],
)
def test_many_items_leave_no_zombie_and_no_descriptor(items: int, batch: int) -> None:
    with CowFork(2, batch=batch) as ex:
        ex.submit(abs, 1).result()
        fds = len(os.listdir("/proc/self/fd")) if LINUX else 0
        assert sum(ex.map(lambda x: x, range(items))) == sum(range(items))
        if LINUX:
            assert len(os.listdir("/proc/self/fd")) <= fds + 4
    assert not children()  # no zombie either
    assert ex.metrics().created + ex.metrics().reused == items + 1


def test_priorities_order_the_backlog(gate: tasks.Gate) -> None:
    done: list[int] = []
    with CowFork(1) as ex:
        busy = ex.submit(tasks.pass_gate, gate.path)
        tasks.eventually(busy.running)
        futures = {ex.options(priority=p).submit(abs, p): p for p in (1, 5, 3)}
        for future, priority in futures.items():
            future.add_done_callback(lambda _, p=priority: done.append(p))  # type: ignore[misc]
        gate.open()
        list(as_completed(futures))
    assert done == [5, 3, 1]


def test_what_a_finished_call_held_is_freed(ex: CowFork) -> None:
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    future = ex.submit(lambda x: None, thing)
    future.result()
    del thing
    tasks.eventually(lambda: gone() is None)


def test_shutdown_finishes_and_refuses(ex: CowFork, gate: tasks.Gate) -> None:
    running = [ex.submit(tasks.pass_gate, gate.path, i) for i in range(2)]
    tasks.eventually(lambda: all(future.running() for future in running))
    waiting = ex.submit(abs, -1)
    doomed = ex.submit(abs, -2)
    assert doomed.cancel()
    ex.shutdown(wait=False)
    with pytest.raises(fm.PoolClosed):
        ex.submit(abs, 1)
    gate.open()
    ex.shutdown()
    assert [future.result() for future in running] == [0, 1] and waiting.result() == 1


def test_shutdown_may_cancel_what_waits(ex: CowFork, gate: tasks.Gate) -> None:
    running = [ex.submit(tasks.pass_gate, gate.path, i) for i in range(2)]
    tasks.eventually(lambda: all(future.running() for future in running))
    waiting = ex.submit(abs, -1)
    ex.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    gate.open()
    ex.shutdown()
    assert [future.result() for future in running] == [0, 1]


def test_terminate_ends_all_at_once(gate: tasks.Gate) -> None:
    ex = CowFork(1)
    running = ex.submit(tasks.pass_gate, gate.path)
    waiting = ex.submit(abs, 1)
    tasks.eventually(running.running)
    ex.terminate()
    assert isinstance(running.exception(), fm.WorkerDied)
    assert running.exception().cause == "stopped"  # type: ignore[union-attr]
    assert isinstance(waiting.exception(), fm.PoolClosed)


def test_a_shutdown_from_a_callback_does_not_wait_for_itself(ex: CowFork) -> None:
    called = threading.Event()

    def end(_: Any) -> None:
        ex.shutdown()
        called.set()

    ex.submit(abs, 1).add_done_callback(end)
    assert called.wait(20)


def test_a_dropped_executor_finishes_and_is_gone() -> None:
    ex = CowFork(1)
    futures = [ex.submit(abs, -i) for i in range(5)]
    gone = weakref.ref(ex)
    del ex
    gc.collect()
    assert gone() is None
    assert [future.result(20) for future in futures] == list(range(5))


def test_a_foreign_child_has_a_dead_copy(run_script: RunScript) -> None:
    run_script(
        """
        import os
        import forkmill as fm
        from forkmill.contexts.cow_fork import CowFork
        ex = CowFork(1)
        waiting = ex.submit(lambda: __import__("time").sleep(0.3))
        pid = os.fork()
        if not pid:
            try:
                ex.submit(abs, 1)
            except fm.PoolError:
                ex.shutdown()
                del ex
                raise SystemExit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert waiting.result(20) is None and ex.submit(abs, -1).result(20) == 1
    """,
        flags=(),
    )


def test_a_clean_exit_finishes_what_was_accepted(run_script: RunScript) -> None:
    script = run_script("""
        import time
        from forkmill.contexts.cow_fork import CowFork
        ex = CowFork(1)
        for i in range(3):
            ex.submit(lambda i=i: (time.sleep(0.1), print(i, flush=True)))
    """)
    assert script.stdout.split() == ["0", "1", "2"]


def test_an_unhandled_exception_starts_the_ladder(run_script: RunScript) -> None:
    begin = time.monotonic()
    run_script(
        """
        import time
        from forkmill.contexts.cow_fork import CowFork
        ex = CowFork(1)
        future = ex.submit(time.sleep, 60)
        while not future.running():
            time.sleep(0.01)
        raise ValueError("unhandled")
    """,
        expect=1,
    )
    assert time.monotonic() - begin < 15


BUSY = """
    import os, signal, time
    from forkmill.contexts.cow_fork import CowFork
    def spin():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, b"spinning")
        while True:
            pass
    ex = CowFork(2)
    futures = [ex.submit(spin) for _ in range(2)]
    futures[0].result()
"""


@pytest.mark.skipif(not LINUX, reason="children of a killed parent end with their task elsewhere")
def test_nothing_outlives_a_killed_parent(start_script: StartScript) -> None:
    script = start_script(BUSY)
    script.wait_for("spinningspinning")
    os.kill(script.pid, signal.SIGKILL)
    assert script.wait(left_after=2.0) == -signal.SIGKILL


def test_ctrl_c_ends_all(start_script: StartScript) -> None:
    script = start_script(BUSY)
    script.wait_for("spinningspinning")
    os.killpg(script.pid, signal.SIGINT)
    script.wait(timeout=10)
    assert script.stderr.count("KeyboardInterrupt") == 1


def test_wrong_options_are_refused() -> None:
    for wrong in ({"batch": 0}, {"batch": 5000}, {"max_workers": 0}):
        with pytest.raises(ValueError, match="must be"):
            CowFork(**wrong)
    with pytest.raises(TypeError):
        CowFork(batch="2")  # type: ignore[arg-type]

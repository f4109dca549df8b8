"""A worker's orderly end: what a process does at its end, and a worker of the standard library.

atexit's functions, multiprocessing's finalizers, threads that are no daemons, pools that were made
in it; whatever makes it end. What the user's program has registered for its own end is left alone.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from exit_tasks import grow_and_register, register, register_hanging, started_nested

import forkmill as fm
import tasks

methods = pytest.mark.parametrize("method", tasks.METHODS)
ALL = ["atexit", "finalize", "mp", "thread"]


def ran(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@methods
def test_when_the_pool_is_closed(method: str, tmp_path: Path) -> None:
    with fm.ProcessPool(2, start_method=method) as pool:
        pool.each(register, str(tmp_path))
        assert set(ran(tmp_path)) <= {"thread"}
    assert ran(tmp_path) == ALL


@methods
@pytest.mark.parametrize("how", ["tasks", "rss", "SIGTERM", "SIGHUP"])
def test_when_a_worker_leaves_by_itself(method: str, how: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "tasks": {"max_tasks_per_child": 1},
        "rss": {"max_rss": 150 << 20},
    }.get(how, {})
    with fm.ProcessPool(1, start_method=method, restarts=(0, 10.0), **options) as pool:
        if how == "rss":
            pid = pool.submit(grow_and_register, str(tmp_path), 200 << 20).result(20)
        else:
            pid = pool.submit(register, str(tmp_path)).result(20)
        if how.startswith("SIG"):
            os.kill(pid, getattr(signal, how))
        tasks.eventually(lambda: ran(tmp_path) == ALL)
        assert pool.submit(tasks.pid).result(20) != pid  # and has a successor
        assert pool.stats().deaths == 0


@methods
def test_when_the_initializer_registers(method: str, tmp_path: Path) -> None:
    with fm.ProcessPool(
        2, start_method=method, initializer=register, initargs=(str(tmp_path),)
    ) as pool:
        pool.each(tasks.pid)
    assert ran(tmp_path) == ALL


@pytest.mark.parametrize("executor", ["fork", "zygote", "spawn", "cow"])
def test_what_the_program_has_registered_is_not_run_there(executor: str, run_script: Any) -> None:
    script = run_script(
        f"""
        import atexit, multiprocessing.util as util, os, sys, tempfile, threading, weakref
        import forkmill as fm
        class Thing: pass
        def say(what):
            print(what, os.getpid() == main, flush=True)
        if __name__ == "__main__":
            main = os.getpid()
            thing = Thing()
            folder = tempfile.TemporaryDirectory()
            atexit.register(say, "atexit")
            weakref.finalize(thing, say, "finalize")
            keep = util.Finalize(thing, say, ("mp",), exitpriority=1)
            method = {executor!r}
            make = fm.executor if method == "cow" else fm.ProcessPool
            args = ("cow_fork", 2) if method == "cow" else (2,)
            options = {{}} if method == "cow" else {{"start_method": method}}
            with make(*args, **options) as pool:
                assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
            assert os.path.isdir(folder.name)
            print("closed", flush=True)
        """,
        flags=("-W", "ignore"),
    )
    assert sorted(script.stdout.splitlines()) == sorted(
        ["closed", "atexit True", "finalize True", "mp True"]
    )


@methods
def test_what_raises_is_told_and_hides_nothing(method: str, run_script: Any) -> None:
    script = run_script(
        f"""
        import atexit, multiprocessing.util as util, os, sys
        import forkmill as fm
        def fail(what):
            raise ValueError(what)
        def task():
            atexit.register(print, "after", flush=True)
            atexit.register(fail, "from atexit")
            util.Finalize(None, fail, ("from a finalizer",), exitpriority=1)
            util.Finalize(None, print, ("the next",), {{"flush": True}}, exitpriority=0)
        if __name__ == "__main__":
            with fm.ProcessPool(1, start_method={method!r}) as pool:
                pool.submit(task).result()
        """,
        flags=("-W", "ignore"),
    )
    assert sorted(script.stdout.splitlines()) == ["after", "the next"]
    assert "ValueError: from atexit" in script.stderr
    assert "ValueError: from a finalizer" in script.stderr
    assert "forkmill" not in script.stderr.replace(str(Path(fm.__file__).parent), "")


@methods
@pytest.mark.parametrize("what", ["atexit", "thread", "mp"])
def test_what_hangs_is_ended_by_the_ladder(method: str, what: str) -> None:
    pool = fm.ProcessPool(2, start_method=method)
    pool.each(register_hanging, what)
    start = time.monotonic()
    pool.shutdown()
    assert time.monotonic() - start < 6


def test_what_hangs_when_it_leaves_by_itself_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    from forkmill.worker import main as _worker

    monkeypatch.setattr(_worker, "_LEAVE_S", 0.3)
    with fm.ProcessPool(1, start_method="fork", max_tasks_per_child=1, restarts=(0, 10.0)) as pool:
        pids = {pool.submit(register_hanging, "atexit").result(20) for _ in range(3)}
        assert len(pids) == 3
        tasks.eventually(lambda: pool.stats().recycled == 3)
        assert pool.stats().deaths == 0


@methods
def test_a_pool_made_in_a_task_ends_with_its_worker(method: str) -> None:
    with fm.ProcessPool(1, start_method=method, max_tasks_per_child=1) as pool:
        pids = pool.submit(started_nested).result(30)
        assert len(pids) == 2
        pool.submit(tasks.pid).result(30)  # its successor: it is gone
        tasks.eventually(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize("executor", ["cow_fork:1", "thread:1"])
def test_a_pool_made_in_a_child_ends_without_a_word(executor: str, run_script: Any) -> None:
    """Its workers come from a thread that threading has not made."""
    script = run_script(
        f"""
        import _thread, threading
        import forkmill as fm

        def nested(n):
            with fm.ProcessPool(1, start_method="fork") as pool:
                return pool.submit(abs, n).result()

        def raw():
            found.append(nested(-2))
            over.set()

        found, over = [], threading.Event()
        with fm.executor({executor!r}) as ex:
            assert ex.submit(nested, -1).result() == 1
        _thread.start_new_thread(raw, ())
        assert over.wait(20) and found == [2]
        """
    )
    assert script.stderr == "", script.report()


def test_a_pool_made_in_a_thread_of_an_executor_ends_without_a_word(run_script: Any) -> None:
    """In a worker that thread is the only one: the standard library's end must not join it. Of
    those that a task makes it still waits."""
    script = run_script(
        """
        import asyncio, time
        import concurrent.futures as cf
        import forkmill as fm

        def late(text):
            time.sleep(0.2)
            print(text, flush=True)

        def task(n):
            cf.ThreadPoolExecutor(1).submit(late, "late")
            return n

        def nested(*_):
            with fm.ProcessPool(1, start_method="fork") as pool:
                return pool.submit(task, 1).result()

        if __name__ == "__main__":
            with cf.ThreadPoolExecutor(1) as threads:
                assert threads.submit(nested).result() == 1
            assert asyncio.run(asyncio.to_thread(nested)) == 1
            with cf.ProcessPoolExecutor(1) as processes:
                called = cf.Future()
                future = processes.submit(abs, 1)
                future.add_done_callback(lambda _: called.set_result(nested()))
                assert called.result(20) == 1
        """
    )
    assert script.stderr == "", script.report()
    assert script.stdout.split() == ["late"] * 3


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_was_put_into_a_queue_by_a_copy_arrives(run_script: Any) -> None:
    run_script(
        """
        import multiprocessing as mp
        import forkmill as fm
        queue = mp.Queue()
        def put(i):
            for k in range(50):
                queue.put((i, k, "x" * 200))
        with fm.executor("cow_fork", 2) as pool:
            futures = [pool.submit(put, i) for i in range(10)]
            found = [queue.get(timeout=10) for _ in range(500)]
            for future in futures:
                future.result(10)
        assert sorted(found) == [(i, k, "x" * 200) for i in range(10) for k in range(50)]
        """,
        flags=("-W", "ignore"),
    )


@pytest.mark.parametrize("method", ["fork", "zygote", "spawn"])
def test_coverage_of_tasks_is_measured(method: str, run_script: Any, tmp_path: Path) -> None:
    coverage = pytest.importorskip("coverage")
    (tmp_path / "measured.py").write_text(
        "def work(i):\n    if i < 0:\n        return 'never'\n    return -i\n"
    )
    settings = tmp_path / "settings"
    settings.write_text(
        f"[run]\nparallel = true\nconcurrency = multiprocessing,thread\n"
        f"source = {tmp_path}\ndata_file = {tmp_path}/data\n"
    )
    (tmp_path / "sitecustomize.py").write_text("import coverage\ncoverage.process_startup()\n")
    run_script(
        f"""
        import multiprocessing
        import forkmill as fm, measured
        if __name__ == "__main__":
            with fm.ProcessPool(2, start_method={method!r}) as pool:
                assert list(pool.map(measured.work, range(100))) == [-i for i in range(100)]
        """,
        env={
            "COVERAGE_PROCESS_START": str(settings),
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(tasks.__file__).parent}",
        },
        flags=("-W", "ignore"),
        timeout=60,
    )
    merged = coverage.Coverage(data_file=str(tmp_path / "data"), config_file=False)
    merged.combine([str(tmp_path)])
    assert merged.get_data().lines(str(tmp_path / "measured.py")) == [1, 2, 4]

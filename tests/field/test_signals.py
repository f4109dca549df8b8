"""Signals from outside, and what programs that a task starts inherit.

A supervisor's SIGTERM, a closed terminal's SIGHUP and Ctrl-C reach the whole process group; the
user's program decides what becomes of them. What a task starts has the program's dispositions.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from signal_tasks import (
    count_sigterm,
    count_up,
    counted_sigterm,
    end_oneself,
    in_a_pool_of_its_own,
    interrupted,
    note_and_tell,
)

import forkmill as fm
import tasks

LINUX = sys.platform == "linux"
methods = pytest.mark.parametrize("method", tasks.METHODS)
EXECUTORS = [
    *(f"fm.ProcessPool(2, start_method={method!r})" for method in tasks.METHODS),
    'fm.executor("cow_fork", 2)',
    'fm.executor("cow_fork", 2, batch=3)',
]


# ------------------------------------------------------------ the whole process group


@pytest.mark.parametrize("make", EXECUTORS)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_what_the_program_handles_ends_nothing_of_ours(
    make: str, name: str, run_script: Any
) -> None:
    run_script(
        f"""
        import os, signal, tempfile, threading
        import forkmill as fm, tasks
        seen = []
        signal.signal(signal.{name}, lambda *_: seen.append(1))
        with {make} as pool, tempfile.TemporaryDirectory() as folder:
            pool.submit(abs, 1).result()  # those that start now have started
            for _ in range(3):
                with tasks.Gate(folder) as gate:
                    slow = [pool.submit(tasks.pass_gate, gate.path, i) for i in range(2)]
                    quick = [pool.submit(tasks.negative, i) for i in range(20)]
                    results = pool.map(tasks.negative, range(60), chunksize=20)
                    tasks.eventually(lambda: all(future.running() for future in slow))
                    os.killpg(0, signal.{name})
                    gate.open()
                    assert [future.result(20) for future in slow] == [0, 1]
                    assert [future.result(20) for future in quick] == [-i for i in range(20)]
                    assert list(results) == [-i for i in range(60)]
            assert len(seen) == 3
            if isinstance(pool, fm.ProcessPool):
                stats = pool.stats()
                assert stats.deaths == 0 and stats.died == 0, stats
                assert stats.accepted == stats.outcomes == 3 * 82 + 1, stats
        """
    )


@methods
def test_a_pool_may_be_told_while_it_starts(method: str, run_script: Any) -> None:
    run_script(
        f"""
        import os, signal
        import forkmill as fm
        signal.signal(signal.SIGTERM, lambda *_: None)
        for _ in range(3):
            with fm.ProcessPool(2, start_method={method!r}, initializer=abs, initargs=(1,)) as pool:
                for _ in range(5):
                    os.killpg(0, signal.SIGTERM)
                assert list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1))
                assert pool.stats().deaths == 0, pool.stats()
        """
    )


@pytest.mark.parametrize(("kind", "count"), [("ipc_fork:2", 4000), ("cow_fork:2", 400)])
def test_the_state_of_a_stage_is_not_left_behind(kind: str, count: int, run_script: Any) -> None:
    """A worker that leaves would take its copy of the state with it."""
    run_script(
        f"""
        import os, signal, sys
        import forkmill as fm
        signal.signal(signal.SIGTERM, lambda *_: None)
        class Sum(fm.Pipeline):
            def __init__(self):
                super().__init__()
                self.total = 0
            @fm.producer
            def numbers(self):
                for i in range({count}):
                    if i % 100 == 99:
                        os.killpg(0, signal.SIGTERM)
                    yield i
            @fm.stage(context={kind!r})
            def add(self, number):
                self.total += number
                yield number
            @add.on_end
            def end(self):
                yield ("total", self.total)
        result = Sum().run()
        assert result.ok, result
        totals = [output[1] for output in result.outputs if isinstance(output, tuple)]
        numbers = sorted(output for output in result.outputs if not isinstance(output, tuple))
        assert numbers == list(range({count}))
        if {kind!r}.startswith("ipc"):
            assert sum(totals) == sum(range({count})), totals
        """
    )


@pytest.mark.skipif(not LINUX, reason="elsewhere workers end with their task")
@pytest.mark.parametrize("make", EXECUTORS)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_if_the_program_dies_of_it_so_do_they(make: str, name: str, start_script: Any) -> None:
    script = start_script(
        f"""
        import os, time
        import forkmill as fm
        def spin():
            os.write(1, b"spinning ")
            while True:
                pass
        pool = {make}
        futures = [pool.submit(spin) for _ in range(2)]
        futures[0].result()
        """
    )
    number = getattr(signal, name)
    script.wait_for("spinning")
    os.killpg(script.pid, number)
    assert script.wait(10, left_after=2.0) == -number


# --------------------------------------------------------------------- one worker


def gone(pool: fm.ProcessPool, pid: int) -> bool:
    return pid not in [worker.pid for worker in pool.workers()]


@methods
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_worker_that_is_told_finishes_its_task_and_leaves(
    method: str, name: str, tmp_path: Path
) -> None:
    with (
        fm.ProcessPool(2, start_method=method, restarts=(0, 10.0)) as pool,
        tasks.Gate(tmp_path) as gate,
    ):
        running = [pool.submit(tasks.pid_after, gate.path) for _ in range(2)]
        waiting = [pool.submit(tasks.negative, i) for i in range(100)]
        tasks.eventually(lambda: all(future.running() for future in running))
        victim = pool.workers()[0].pid
        os.kill(victim, getattr(signal, name))
        gate.open()
        assert victim in [future.result(20) for future in running]
        assert [future.result(20) for future in waiting] == [-i for i in range(100)]
        tasks.eventually(partial(gone, pool, victim))
        pool.each(tasks.pid)
        stats = pool.stats()
        assert (stats.deaths, stats.died, stats.state) == (0, 0, "open")
        assert stats.recycled == 1


@methods
def test_an_idle_worker_that_is_told_leaves(method: str) -> None:
    with fm.ProcessPool(2, start_method=method, restarts=(0, 10.0)) as pool:
        for _ in range(3):
            victim = pool.each(tasks.pid)[0]
            os.kill(victim, signal.SIGTERM)
            tasks.eventually(partial(gone, pool, victim))
        assert pool.submit(tasks.negative, 1).result(20) == -1
        assert pool.stats().deaths == 0


def test_inside_a_chunk_it_leaves_after_the_item(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(1, start_method="fork") as pool:
        pids = list(pool.map(partial(note_and_tell, log.path), range(40), chunksize=40))
    assert len(set(pids[:11])) == len(set(pids[11:])) == 1
    assert pids[10] != pids[11]
    assert sorted(log.entries()) == list(range(40))  # each of them once


@pytest.mark.timeout(60)
def test_nothing_is_lost_or_done_twice_however_often_workers_are_told(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(2, start_method="fork", restarts=(0, 10.0)) as pool:
        stop = threading.Event()

        def pester() -> None:
            while not stop.wait(0.01):
                for worker in pool.workers():
                    if worker.pid:
                        with suppress(ProcessLookupError):
                            os.kill(worker.pid, signal.SIGTERM)

        thread = threading.Thread(target=pester)
        thread.start()
        try:
            futures = [pool.submit(tasks.note, log.path, i) for i in range(300)]
            results = list(pool.map(partial(tasks.note, log.path), range(300, 3000)))
            for future in futures:
                future.result(30)
        finally:
            stop.set()
            thread.join()
        assert len(results) == 2700
        assert pool.stats().died == 0
    assert sorted(log.entries()) == list(range(3000))


@methods
def test_a_stream_goes_on_to_its_end(method: str) -> None:
    with fm.ProcessPool(1, start_method=method) as pool:
        outputs = pool.stream(count_up, 300, credit=4)
        first = [next(outputs) for _ in range(3)]
        os.kill(pool.workers()[0].pid, signal.SIGTERM)
        assert first + list(outputs) == list(range(300))


def has_counted(pool: fm.ProcessPool, expected: int) -> bool:
    return bool(pool.submit(counted_sigterm).result() == expected)


@methods
def test_a_handler_of_the_users_own_stays_his(method: str) -> None:
    with fm.ProcessPool(1, start_method=method, initializer=count_sigterm) as pool:
        pid = pool.submit(tasks.pid).result()
        for expected in (1, 2):
            os.kill(pid, signal.SIGTERM)
            tasks.eventually(partial(has_counted, pool, expected))
        assert pool.submit(tasks.pid).result() == pid


@methods
def test_a_signal_to_oneself_is_an_end_as_in_any_process(method: str) -> None:
    with fm.ProcessPool(1, start_method=method) as pool:
        error = pool.submit(end_oneself).exception(20)
        assert isinstance(error, fm.WorkerDied)
        assert error.signal_name == "SIGTERM"


@methods
def test_kill_ends_a_worker_that_computes(method: str) -> None:
    """The ladder's SIGTERM is another one: it means at once."""
    pool = fm.ProcessPool(2, start_method=method)
    futures = [pool.submit(tasks.spin) for _ in range(2)]
    tasks.eventually(lambda: all(future.running() for future in futures))
    start = time.monotonic()
    pool.kill()
    assert time.monotonic() - start < 5
    assert all(isinstance(future.exception(), fm.PoolError) for future in futures)


# ------------------------------------------------------- programs that a task starts

DISPOSITIONS = """
    import os, signal, subprocess, sys
    import forkmill as fm
    {setting}
    SHOW = "grep SigIgn /proc/self/status"
    def dispositions():
        run = subprocess.run(SHOW.split(), restore_signals=False, stdout=subprocess.PIPE)
        read, write = os.pipe()
        os.set_inheritable(write, True)
        os.system(SHOW + f" >&{{write}}")
        spawned = os.posix_spawn("/bin/sh", ["sh", "-c", SHOW + f" >&{{write}}"], os.environ)
        os.waitpid(spawned, 0)
        os.close(write)
        with open(read) as file:
            lines = [run.stdout.decode(), *file.read().splitlines(True)]
        # Those of the C library's own are ignored in whatever posix_spawn() starts.
        return [int(line.split()[1], 16) & 0x7FFFFFFF for line in lines]
    if __name__ == "__main__":
        mine = dispositions()
        assert len(mine) == 3, mine
        pools = [lambda: fm.executor("cow_fork", 1)]
        for method in ("fork", "zygote", "spawn"):
            pools.append(lambda method=method: fm.ProcessPool(1, start_method=method))
        for make in pools:
            with make() as pool:
                theirs = pool.submit(dispositions).result(20)
                assert theirs == mine, (theirs, mine)
"""


@pytest.mark.skipif(not LINUX, reason="/proc")
@pytest.mark.parametrize(
    "setting",
    [
        "",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "signal.signal(signal.SIGINT, signal.SIG_DFL)",
        "signal.signal(signal.SIGINT, lambda *_: None)",
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
        "for n in signal.SIGTERM, signal.SIGHUP: signal.signal(n, signal.SIG_IGN)",
        "for n in signal.SIGQUIT, signal.SIGUSR2: signal.signal(n, signal.SIG_IGN)",
        "for n in signal.SIGQUIT, signal.SIGUSR1: signal.signal(n, print)",
    ],
)
def test_programs_have_the_dispositions_of_the_users_program(setting: str, run_script: Any) -> None:
    run_script(DISPOSITIONS.format(setting=setting))


@pytest.mark.parametrize("make", EXECUTORS[:4])
def test_ctrl_c_ends_what_a_task_has_started_and_no_worker(make: str, run_script: Any) -> None:
    run_script(
        f"""
        import multiprocessing, os, signal, subprocess, sys, time
        import forkmill as fm
        def wait_for_interrupt(ready):
            try:
                ready.send(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
                for _ in range(3000):  # CPython looks for signals before a sleep, not at its begin
                    time.sleep(0.01)
            except KeyboardInterrupt:
                os._exit(5)
        def forked():
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(
                target=wait_for_interrupt, args=(theirs,))
            process.start()
            assert ours.recv() is True
            os.kill(process.pid, signal.SIGINT)
            process.join()
            return process.exitcode
        def ended():
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
            process.start()
            process.terminate()
            process.join()
            return process.exitcode
        def executed():
            code = "import time\\ntry:\\n print(flush=True)\\n for _ in range(3000):"
            code += " time.sleep(0.01)\\nexcept "
            code += "KeyboardInterrupt: exit(5)"
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            process.communicate()
            return process.returncode
        def itself():
            os.kill(os.getpid(), signal.SIGINT)
            return os.getpid()
        with {make} as pool:
            assert pool.submit(executed).result(20) == 5
            assert pool.submit(forked).result(20) == 5
            assert pool.submit(ended).result(20) == -signal.SIGTERM
            assert pool.submit(itself).result(20) > 0
        """
    )


@pytest.mark.parametrize("inner", ["fork", "zygote"])
@methods
def test_a_pool_inside_a_task_is_no_exception(method: str, inner: str) -> None:
    with fm.ProcessPool(1, start_method=method) as pool:
        assert pool.submit(interrupted).result(30) == -signal.SIGINT
        assert pool.submit(in_a_pool_of_its_own, inner).result(30) == -signal.SIGINT

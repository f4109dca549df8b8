"""Section 6 of the design: birth, death, Ctrl-C, kill -9, drops. Nothing of ours is left behind.

Each in a process of its own; `run_script` and `Script.wait` fail if anything of its session
outlives it by two seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

import tasks

LOADS = {
    "idle": "",
    "asleep": "futures = [pool.submit(time.sleep, 60) for _ in range(8)]",
    "busy in C": "futures = [pool.submit(tasks.spin) for _ in range(8)]",
    "map": "results = pool.map(tasks.spin_for, iter([0.001] * 10**6))\n"
    "threading.Thread(target=lambda: list(results), daemon=True).start()",
}

VICTIM = """
import os, sys, threading, time
import tasks
import forkmill as fm

def main():
    global pool, futures, results
    pool = fm.ProcessPool(2, start_method="METHOD")
    pool.each(tasks.pid)
    LOAD
    time.sleep(0.1)
    print("ready", flush=True)

WHERE
time.sleep(60)
"""

WHERE = {
    "main thread": "main()",
    "other thread": "t = threading.Thread(target=main); t.start(); t.join()",
}


@pytest.mark.scenario(21)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("method", tasks.METHODS)
def test_kill_9_of_the_user_leaves_nothing(start_script, method, load, where) -> None:
    code = VICTIM.replace("METHOD", method).replace("WHERE", WHERE[where])
    script = start_script(code.replace("LOAD", LOADS[load].replace("\n", "\n    ")))
    script.wait_for("ready")
    assert len(script.processes()) >= 4
    script.process.kill()
    assert script.wait(10, left_after=2.0) == -signal.SIGKILL


@pytest.mark.scenario(21)
@pytest.mark.parametrize("method", tasks.METHODS)
@pytest.mark.parametrize("delay", [0, 0.002, 0.005, 0.01, 0.02, 0.05])
def test_kill_9_during_the_start(start_script, method: str, delay: float) -> None:
    script = start_script(
        f"""
        import time, tasks, forkmill as fm
        print("ready", flush=True)
        pools = [fm.ProcessPool(3, start_method={method!r}) for _ in range(30)]
        time.sleep(60)
        """
    )
    script.wait_for("ready")
    time.sleep(delay)
    script.process.kill()
    script.wait(10, left_after=2.0)


@pytest.mark.scenario(21)
@pytest.mark.parametrize("method", ["fork", "zygote"])
def test_a_foreign_childs_copies_do_not_keep_workers_alive(start_script, method: str) -> None:
    """L2: somebody else's child holds copies of our descriptors when the user is killed."""
    script = start_script(
        f"""
        import os, time, tasks, forkmill as fm
        pool = fm.ProcessPool(2, start_method={method!r})
        pids = pool.each(tasks.pid)
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        print("ready", child, flush=True)
        time.sleep(60)
        """
    )
    script.wait_for("\n")  # all of the line
    child = int(script.stdout.split()[1])
    script.process.kill()
    script.process.wait()
    tasks.eventually(lambda: {p.pid for p in script.processes()} == {child}, 2.5)
    os.kill(child, signal.SIGKILL)


# ------------------------------------------------------------------ Ctrl-C

INTERRUPTED = {
    "result": "pool.submit(time.sleep, 60).result()",
    "busy in C": "pool.submit(tasks.spin).result()",
    "map": "list(pool.map(time.sleep, [60] * 10))",
    "unordered": "list(pool.map(time.sleep, [60] * 10, ordered=False))",
    "wait": "futures.wait([pool.submit(time.sleep, 60)])",
    "shutdown": "pool.submit(time.sleep, 60); pool.shutdown()",
    "leaving the block": "pool.submit(time.sleep, 60)",
    "stream": "next(pool.stream(time.sleep, 60))",
    "each": "pool.each(time.sleep, 60)",
}


@pytest.mark.scenario(23)
@pytest.mark.parametrize("method", ["fork", "zygote"])
@pytest.mark.parametrize("at", INTERRUPTED)
def test_ctrl_c(start_script, method: str, at: str) -> None:
    """KeyboardInterrupt once, within a second; no worker's traceback; nothing left."""

    def attempt() -> float:
        script = start_script(
            f"""
            import time, tasks, forkmill as fm
            from concurrent import futures
            caught = 0
            try:
                with fm.ProcessPool(2, start_method={method!r}) as pool:
                    pool.each(tasks.pid)
                    print("ready", flush=True)
                    {INTERRUPTED[at]}
            except KeyboardInterrupt:
                caught += 1
            print("caught", caught, flush=True)
            """
        )
        script.wait_for("ready")
        time.sleep(0.15)
        group = script.processes()
        start = time.monotonic()
        for process in group:  # as a terminal does: the whole foreground group
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
        assert script.wait(10) == 0, script.report()
        took = time.monotonic() - start
        assert script.stdout.split() == ["ready", "caught", "1"]
        assert script.stderr == ""
        return took

    tasks.within(2.5, attempt)


@pytest.mark.scenario(23)
def test_ctrl_c_unhandled(start_script) -> None:
    def attempt() -> float:
        script = start_script(
            """
            import time, forkmill as fm
            pool = fm.ProcessPool(2)
            futures = [pool.submit(time.sleep, 60) for _ in range(10)]
            print("ready", flush=True)
            futures[0].result()
            """
        )
        script.wait_for("ready")
        time.sleep(0.1)
        start = time.monotonic()
        os.killpg(script.pid, signal.SIGINT)
        assert script.wait(10) == -signal.SIGINT
        took = time.monotonic() - start
        assert script.stderr.count("Traceback") == 1
        assert "KeyboardInterrupt" in script.stderr
        return took

    tasks.within(2.5, attempt)


@pytest.mark.scenario(23)
@pytest.mark.parametrize("wait", ["future.result()", "next(results)", "pool.shutdown()"])
def test_ctrl_c_that_interrupts_no_wait(run_script, wait: str) -> None:
    """Another thread takes the signal, as one would that comes while C code is at work."""
    script = run_script(
        f"""
        import os, signal, threading, time
        import forkmill as fm

        def press():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

        pool = fm.ProcessPool(2)
        future = pool.submit(time.sleep, 60)
        results = pool.map(time.sleep, [60])
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        presser = threading.Thread(target=press)
        presser.start()
        start = time.monotonic()
        try:
            {wait}
        except KeyboardInterrupt:
            assert time.monotonic() - start < 10
            print("caught")
        presser.join()
        pool.kill()
        """
    )
    assert script.stdout == "caught\n"


@pytest.mark.scenario(23)
def test_ctrl_c_during_the_wait_at_exit(start_script) -> None:
    def attempt() -> float:
        script = start_script(
            """
            import time, forkmill as fm
            pool = fm.ProcessPool(2)
            future = pool.submit(time.sleep, 60)
            print("ready", flush=True)
            """
        )
        script.wait_for("ready")
        time.sleep(0.3)
        start = time.monotonic()
        os.killpg(script.pid, signal.SIGINT)
        script.wait(10)
        return time.monotonic() - start

    tasks.within(2.5, attempt)


@pytest.mark.scenario(23)
def test_second_ctrl_c_skips_the_grace(start_script) -> None:
    """Workers that ignore SIGTERM have half a second; the second Ctrl-C takes it from them."""

    def attempt() -> float:
        script = start_script(
            """
            import signal, time, tasks, forkmill as fm
            def stubborn():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                tasks.spin()
            pool = fm.ProcessPool(2)
            futures = [pool.submit(stubborn) for _ in range(2)]
            while not all(f.running() for f in futures):
                time.sleep(0.01)
            time.sleep(0.1)
            print("ready", flush=True)
            try:
                pool.shutdown()
            except KeyboardInterrupt:
                print("caught", flush=True)
            """
        )
        script.wait_for("ready")
        time.sleep(0.2)
        os.kill(script.pid, signal.SIGINT)
        time.sleep(0.1)
        start = time.monotonic()
        os.kill(script.pid, signal.SIGINT)
        script.wait(10)
        return time.monotonic() - start

    tasks.within(1.5, attempt)


# ------------------------------------------------------------------ other ends


@pytest.mark.scenario(24)
def test_sigterm_of_the_user(start_script) -> None:
    """FAULTS 24: by default it dies, and all goes with it."""
    script = start_script(
        """
        import time, tasks, forkmill as fm
        pool = fm.ProcessPool(2)
        pool.each(tasks.pid)
        futures = [pool.submit(tasks.spin) for _ in range(2)]
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    script.wait_for("ready")
    script.process.terminate()
    assert script.wait(10, left_after=2.0) == -signal.SIGTERM


@pytest.mark.parametrize("method", tasks.METHODS)
def test_unhandled_exception_starts_the_ladder(run_script, method: str) -> None:
    def attempt() -> float:
        script = run_script(
            f"""
            import time, forkmill as fm
            pool = fm.ProcessPool(2, start_method={method!r})
            futures = [pool.submit(time.sleep, 60) for _ in range(10)]
            time.sleep(0.1)
            print(time.monotonic(), flush=True)
            raise LookupError("of the user")
            """,
            expect=1,
        )
        assert "LookupError: of the user" in script.stderr
        return time.monotonic() - float(script.stdout)

    tasks.within(2.5, attempt)


def test_clean_exit_finishes_long_tasks(run_script) -> None:
    script = run_script(
        """
        import os, time, forkmill as fm
        def task(i):
            time.sleep(1.0)
            os.write(1, b"%d\\n" % i)  # one write: print() may make two
        pool = fm.ProcessPool(2)
        futures = [pool.submit(task, i) for i in range(4)]
        """
    )
    assert sorted(script.stdout.split()) == list("0123")


def test_os_exit_of_the_user(run_script) -> None:
    run_script(
        """
        import os, tasks, forkmill as fm
        pool = fm.ProcessPool(2)
        pool.each(tasks.pid)
        futures = [pool.submit(tasks.spin) for _ in range(2)]
        os._exit(5)
        """,
        expect=5,
    )


DROPS = {
    "unused": "fm.ProcessPool(2)",
    "used": "fm.ProcessPool(2).submit(pow, 2, 3).result()",
    "result dropped": "fm.ProcessPool(2).submit(time.sleep, 60)",
    "future kept": "f = fm.ProcessPool(2).submit(pow, 2, 3); assert f.result() == 8; del f",
    "map half read": "r = fm.ProcessPool(2).map(abs, itertools.count()); next(r); del r",
    "map read": "assert list(fm.ProcessPool(2).map(abs, range(10))) == list(range(10))",
    "cycle": "p = fm.ProcessPool(2); p.me = p; del p",
    "callback": "fm.ProcessPool(2).submit(pow, 2, 3).add_done_callback(lambda f: seen.append(f))",
    "stream": "s = fm.ProcessPool(2).stream(range, 10**6); next(s); del s",
    "from __del__": "Holder()",
    "view": "v = fm.ProcessPool(2).options(priority=1); v.submit(pow, 1, 1).result(); del v",
}


@pytest.mark.scenario(29)
@pytest.mark.parametrize("how", DROPS)
def test_dropped_pools_end_by_themselves(run_script, how: str) -> None:
    """Without close, in a living process: workers, threads and descriptors go."""
    run_script(
        f"""
        import gc, itertools, os, threading, time
        from pathlib import Path
        import tasks, forkmill as fm
        seen = []  # of callbacks
        class Holder:
            def __init__(self):
                self.pool = fm.ProcessPool(2)
            def __del__(self):
                self.pool.shutdown()
        def children():
            return Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split()
        with fm.ProcessPool(1) as warm:
            warm.submit(pow, 1, 1).result()
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        {DROPS[how]}
        gc.collect()
        def gone():
            seen.clear()
            now = len(os.listdir("/proc/self/fd")), threading.active_count()
            return not children() and now == before
        tasks.eventually(gone)
        """
    )


@pytest.mark.scenario(29)
def test_shutdown_from_a_callback_and_twice(run_script) -> None:
    run_script(
        """
        import threading, forkmill as fm
        for _ in range(50):
            pool = fm.ProcessPool(1)
            told = threading.Event()
            def end(future):
                pool.shutdown()
                told.set()
            pool.submit(pow, 2, 3).add_done_callback(end)
            assert told.wait(10)
            pool.shutdown()
        """
    )


def test_a_pool_that_ends_by_itself_leaves_no_thread_entry(run_script) -> None:
    """The thread that ends it waits for the collector's: `threading` then knows it by a dummy."""
    run_script(
        """
        import threading, time, tasks, forkmill as fm
        before = threading.enumerate()
        pool = fm.ProcessPool(1)
        told = threading.Event()
        def callback(future):
            told.set()
            time.sleep(1)  # the collector's thread is still there when all else has ended
        pool.submit(pow, 2, 3).add_done_callback(callback)
        assert told.wait(10)
        pool.shutdown(wait=False)
        time.sleep(0.5)
        tasks.eventually(lambda: threading.enumerate() == before, 10)
        """
    )


@pytest.mark.scenario(27)
@pytest.mark.parametrize("method", tasks.METHODS)
def test_ladder_is_bounded(run_script, method: str) -> None:
    """A worker in a C loop that ignores SIGTERM: kill() ends it all the same."""

    def attempt() -> float:
        script = run_script(
            f"""
            import signal, time, tasks, forkmill as fm
            def stubborn():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                tasks.spin()
            pool = fm.ProcessPool(2, start_method={method!r})
            futures = [pool.submit(stubborn) for _ in range(2)]
            while not all(f.running() for f in futures):
                time.sleep(0.01)
            start = time.monotonic()
            pool.kill()
            print(time.monotonic() - start)
            assert all(isinstance(f.exception(20), fm.WorkerDied) for f in futures)
            """
        )
        return float(script.stdout)

    tasks.within(1.6, attempt)

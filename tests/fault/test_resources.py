"""What the pool costs: descriptors, memory, system calls. Each in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.scenario(30)
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method, cycles", [("fork", 10_000), ("zygote", 300), ("spawn", 150)])
def test_open_work_close_leaks_nothing(run_script, method: str, cycles: int) -> None:
    """Ten thousand times: descriptors, threads, children and memory are as after the first few."""
    run_script(
        f"""
        import gc, os, threading
        from pathlib import Path
        import tasks, forkmill as fm

        def look():
            gc.collect()
            children = Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split()
            rss = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), \\
                len(children), rss

        def cycle(i):
            with fm.ProcessPool(1 + i % 2, start_method={method!r}) as pool:
                assert pool.submit(tasks.negative, i).result() == -i
                assert list(pool.map(tasks.negative, range(100))) == [-k for k in range(100)]
                if i % 4 == 0:
                    pool.submit(tasks.negative, i).add_done_callback(lambda f: f.result())
                if i % 8 == 0:
                    next(pool.map(tasks.negative, iter(range(100000))))
                if i % 16 == 0:
                    pool.submit(tasks.die, "exit0").exception()

        for i in range({cycles} // 100 + 10):
            cycle(i)
        first = look()
        for i in range({cycles}):
            cycle(i)
        # A thread that was joined is in its table a moment longer.
        tasks.eventually(lambda: all(now <= was for now, was in zip(look()[:3], first)))
        last = look()
        assert last[3] - first[3] < 1_500_000, (last[3] - first[3])
        """,
        timeout=1100,
    )


def test_forty_pools_at_once(run_script) -> None:
    run_script(
        """
        import tasks, forkmill as fm
        pools = [fm.ProcessPool(1) for _ in range(40)]
        futures = [pool.submit(tasks.negative, i) for i, pool in enumerate(pools)]
        assert [future.result() for future in futures] == [-i for i in range(40)]
        for pool in pools[::2] + pools[1::2]:
            pool.shutdown()
        """
    )


def test_many_tasks_keep_memory_flat(run_script) -> None:
    """Futures that were read and dropped, and results of all sizes, leave nothing."""
    run_script(
        """
        import gc, tasks, forkmill as fm
        from pathlib import Path
        def rss():
            gc.collect()
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        with fm.ProcessPool(2) as pool:
            def work(n):
                for i in range(n):
                    assert pool.submit(tasks.negative, i).result() == -i
                    if i % 100 == 0:
                        pool.submit(tasks.payload, 100_000).result()
                        pool.submit(lambda: i).result()
                        pool.submit(tasks.fail, ValueError(i)).exception()
            work(2000)
            first = rss()
            work(20000)
            grown = rss() - first
            assert grown < 1_500_000, grown
        """
    )


def test_workers_hold_nothing_of_others(run_script) -> None:
    """L1: a worker has its own channel only: no sibling's, no other pool's, no user's pipe."""
    run_script(
        """
        import os, forkmill as fm
        user = os.pipe()
        def mine():
            found = set()
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 2 and os.path.lexists(f"/proc/self/fd/{fd}"):  # the listing's is gone
                    found.add(os.readlink(f"/proc/self/fd/{fd}"))
            return found
        users = {os.readlink(f"/proc/self/fd/{fd}") for fd in user}
        with fm.ProcessPool(2, start_method="fork") as first:
            first.each(os.getpid)
            with fm.ProcessPool(3, start_method="fork") as second:
                sets = first.each(mine) + second.each(mine)
                pipes = [{x for x in s if x.startswith(("pipe", "socket"))} for s in sets]
                for i, one in enumerate(pipes):
                    assert not one & users, (one, users)
                    assert len(one) <= 2, one
                    for other in pipes[i + 1:]:
                        assert not one & other, (one, other)
        """
    )


ROUND_TRIPS = """
import os, sys, tasks, forkmill as fm
from pathlib import Path
N = 10_000
with fm.ProcessPool(1, start_method="fork") as pool:
    for _ in range(200):
        pool.submit(tasks.negative, 1).result()
    def switches(pid):
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.split("voluntary_ctxt_switches:")[1].split()[0])
    me, worker = os.getpid(), pool.submit(tasks.pid).result()
    mine, its = switches(me), switches(worker)
    before = pool.stats()
    os.write(2, b"BEGIN\\n")
    for i in range(N):
        pool.submit(tasks.negative, i).result()
    os.write(2, b"END\\n")
    after = pool.stats()
    print(switches(me) - mine, switches(worker) - its, after.kicks - before.kicks,
          after.parks - before.parks, flush=True)
"""


def test_a_lone_round_trip_is_two_wakeups(run_script) -> None:
    """One of the worker, one of the caller; nobody else is woken, nobody parks."""
    mine, its, kicks, parks = map(int, run_script(ROUND_TRIPS).stdout.split())
    assert mine <= 10_000 * 1.05
    assert its <= 10_000 * 1.05
    assert (kicks, parks) == (0, 0)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("strace"), reason="needs strace")
def test_a_lone_round_trip_makes_no_futex_call(tmp_path: Path) -> None:
    """Between the two marks, over 10^4 of them, in all processes and threads."""
    script, trace = tmp_path / "script.py", tmp_path / "trace"
    script.write_text(ROUND_TRIPS)
    done = subprocess.run(
        [
            "strace", "-f", "-qq", "-o", str(trace), "--trace=futex,write,writev", "-s", "8",
            sys.executable, str(script),
        ],
        capture_output=True,
        text=True,
        timeout=55,
        env={**os.environ, "PYTHONPATH": search_path()},
    )  # fmt: skip
    if "not permitted" in done.stderr:
        pytest.skip("ptrace is not permitted here")
    assert done.returncode == 0, done.stderr
    text = trace.read_text()
    between = text[text.index('"BEGIN') : text.index('"END')]
    futexes = re.findall(r"futex\(", between)
    assert len(futexes) <= 10, f"{len(futexes)} futex calls in 10^4 round trips"
    # At most one write a direction: of the result, only if we slept by then. And a proof that the
    # trace saw what it should.
    assert 10_000 <= len(re.findall(r"writev?\(", between)) <= 20_000 * 1.02


def search_path() -> str:
    return os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))


@pytest.mark.scenario(30)
@pytest.mark.slow
def test_a_second_of_everything(run_script) -> None:
    """A short soak: eight threads submit while workers die, time out and are recycled."""
    run_script(
        """
        import contextlib, os, random, signal, threading, time
        import tasks, forkmill as fm
        end = time.monotonic() + 3
        errors = []
        def work(seed):
            dice = random.Random(seed)
            try:
                while time.monotonic() < end:
                    kind = dice.randrange(6)
                    if kind == 0:
                        results = pool.map(tasks.negative, range(2000), return_exceptions=True)
                        results = list(results)
                        assert len(results) == 2000
                        assert all(r == -i or isinstance(r, fm.WorkerDied)
                                   for i, r in enumerate(results)), results
                    elif kind == 1:
                        future = pool.options(timeout=0.01).submit(tasks.nap, 60)
                        assert isinstance(future.exception(), (fm.TaskTimeout, fm.WorkerDied))
                    elif kind == 2:
                        error = pool.submit(tasks.die, "exit0").exception()
                        assert isinstance(error, fm.WorkerDied), error
                    elif kind == 3:
                        futures = [pool.submit(tasks.negative, i) for i in range(50)]
                        for future in futures[::2]:
                            future.cancel()
                        for i, future in enumerate(futures):
                            if not future.cancelled():
                                error = future.exception()
                                assert error is None or isinstance(error, fm.WorkerDied), error
                    elif kind == 4:
                        with contextlib.suppress(fm.WorkerDied):  # the first item can be the one
                            items = iter(range(10**6))
                            for value in pool.map(tasks.negative, items, ordered=False):
                                break
                    else:
                        error = pool.submit(tasks.payload, 300_000).exception()
                        assert error is None or isinstance(error, fm.WorkerDied), error
            except BaseException as error:
                errors.append(error)
                raise
        with fm.ProcessPool(3, restarts=(10**6, 10.0), max_tasks_per_child=500) as pool:
            crew = [threading.Thread(target=work, args=(k,)) for k in range(8)]
            for thread in crew:
                thread.start()
            while time.monotonic() < end:
                time.sleep(0.02)
                s = pool.stats()
                assert s.accepted == s.outcomes + s.backlog + s.in_flight
                for worker in pool.workers()[:1]:
                    if worker.pid:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(worker.pid, signal.SIGKILL)
            for thread in crew:
                thread.join()
        s = pool.stats()
        assert s.accepted == s.outcomes, s
        assert not errors, errors
        """,
        timeout=40,
    )

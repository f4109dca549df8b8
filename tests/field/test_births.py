"""A pool that can have no worker says so, with the errno, after init_timeout; with some it goes on.

The limits are set for the zygote alone, or for the whole program: nothing else is made to fail.
"""

from __future__ import annotations

import contextlib
import sys
import time

import pytest

import forkmill as fm
import tasks
from conftest import RunScript

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prlimit()")
method = pytest.mark.parametrize("method", tasks.METHODS)

HEAD = """
import asyncio, errno, os, resource, signal, sys, threading, time
import forkmill as fm
import forkmill.worker.zygote, forkmill.pool.start, tasks

LIMIT = resource.RLIMIT_NOFILE
def limit(pid, n): resource.prlimit(pid, LIMIT, (n, resource.getrlimit(LIMIT)[1]))
def broken(call):
    try: value = call()
    except fm.PoolBroken as error:
        cause, = error.causes
        assert isinstance(cause, OSError) and cause.errno == errno.EMFILE, error.causes
        assert "EMFILE" in str(error), error
    else: raise AssertionError(value)
def zygote(pool): return pool._core.native.zygote()[0]
"""


@pytest.mark.parametrize("method", ["zygote", "spawn"])
def test_at_the_start(method: str, run_script: RunScript) -> None:
    """Everybody who waits is told: for a result, in a map, by asyncio, in a callback."""
    run_script(
        HEAD
        + f"""
resource.setrlimit(LIMIT, (12, resource.getrlimit(LIMIT)[1]))
pool = fm.ProcessPool(2, start_method={method!r}, init_timeout=0.5)
future = pool.submit(pow, 2, 3)
told = threading.Event()
pool.submit(abs, 1).add_done_callback(lambda future: told.set())
assert told.wait(20)
broken(lambda: future.result(20))
broken(lambda: pool.submit(abs, 1))
broken(lambda: list(pool.map(abs, [1])))
stats = pool.stats()
assert stats.state == "broken" and stats.alive == 0 and stats.trouble > 0, stats
assert stats.accepted == stats.outcomes == 2
pool.shutdown()
"""
    )


@method
def test_at_a_refill_when_none_is_left(method: str, run_script: RunScript) -> None:
    run_script(
        HEAD
        + f"""
with fm.ProcessPool(1, start_method={method!r}, init_timeout=0.5) as pool:
    pid = pool.submit(os.getpid).result(20)
    limit(zygote(pool), 3)
    os.kill(pid, signal.SIGKILL)
    broken(lambda: [f.result(20) for f in [pool.submit(pow, 2, 3) for _ in range(9)]])
"""
    )


@method
def test_with_fewer_it_goes_on(method: str, run_script: RunScript) -> None:
    """One of two is lost and cannot be replaced: that is no end, for however long."""
    run_script(
        HEAD
        + f"""
with fm.ProcessPool(2, start_method={method!r}, init_timeout=0.3) as pool:
    for _ in range(200):
        workers = pool.workers()
        if len(workers) == 2: break
        time.sleep(0.05)
    assert pool.submit(pow, 2, 3).result(20) == 8
    before = zygote(pool)
    limit(before, 3)
    os.kill(workers[1].pid, signal.SIGKILL)
    tasks.eventually(lambda: pool.stats().trouble > 2)
    time.sleep(0.4)  # longer than init_timeout
    assert [f.result(20) for f in [pool.submit(pow, 2, 3) for _ in range(50)]] == [8] * 50
    assert pool.stats().alive == 1 and pool.stats().state == "open"
    limit(before, 256)
    tasks.eventually(lambda: pool.stats().alive == 2)
"""
    )


@method
def test_a_limit_that_is_lifted_in_time(method: str, run_script: RunScript) -> None:
    """Nobody is left, but not for long: what waits is done."""
    run_script(
        HEAD
        + f"""
with fm.ProcessPool(1, start_method={method!r}, init_timeout=30) as pool:
    pid = pool.submit(os.getpid).result(20)
    limit(zygote(pool), 3)
    os.kill(pid, signal.SIGKILL)
    tasks.eventually(lambda: pool.stats().trouble > 1)
    future = pool.submit(pow, 2, 3)
    limit(zygote(pool), 256)
    assert future.result(20) == 8
"""
    )


def test_an_interpreter_that_is_gone(run_script: RunScript) -> None:
    """Under spawn each worker is an exec: of a program that was there at the start."""
    run_script(
        HEAD.replace("EMFILE", "ENOENT")
        + """
name = os.path.abspath("python")
os.symlink(sys.executable, name)
sys.executable = name
with fm.ProcessPool(1, start_method="spawn", init_timeout=0.5) as pool:
    pid = pool.submit(os.getpid).result(20)
    os.remove(name)
    os.kill(pid, signal.SIGKILL)
    broken(lambda: pool.submit(pow, 2, 3).result(20))
try: fm.ProcessPool(1, start_method="spawn")
except FileNotFoundError: pass
else: raise AssertionError("it was started")
"""
    )


@pytest.mark.parametrize("method", ["zygote", "spawn"])
def test_a_site_that_ends_the_interpreter(method: str, run_script: RunScript) -> None:
    run_script(
        f"""
        import os, sys
        import forkmill as fm
        with open("sitecustomize.py", "w") as file: file.write("import os; os._exit(9)")
        os.environ["PYTHONPATH"] = os.getcwd() + os.pathsep + os.environ["PYTHONPATH"]
        pool = fm.ProcessPool(1, start_method={method!r})
        try: pool.submit(abs, 1).result(20)
        except fm.PoolBroken as error: assert "code 9" in str(error), error
        else: raise AssertionError("it works")
        """
    )


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_site_that_never_ends(run_script: RunScript) -> None:
    """Nothing is heard at all: half a minute is the least that a fresh interpreter is given."""
    run_script(
        """
        import errno, os, sys
        import forkmill as fm
        with open("sitecustomize.py", "w") as file: file.write("import time; time.sleep(600)")
        os.environ["PYTHONPATH"] = os.getcwd() + os.pathsep + os.environ["PYTHONPATH"]
        pool = fm.ProcessPool(1, start_method="zygote", init_timeout=1)
        try: pool.submit(abs, 1).result(50)
        except fm.PoolBroken as error: assert error.causes[0].errno == errno.ETIMEDOUT, error
        else: raise AssertionError("it works")
        """,
        timeout=80,
    )


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_pool_that_is_not_used_at_once_is_as_good() -> None:
    """Nobody listens to its zygote meanwhile: what that told lies there, and is heard first."""
    with contextlib.ExitStack() as stack:
        pools = [
            stack.enter_context(fm.ProcessPool(1, start_method=method, init_timeout=1, **options))
            for method in tasks.METHODS
            for options in ({}, {"initializer": tasks.identity, "initargs": (1,)})
        ]
        time.sleep(32)
        assert [pool.submit(abs, -1).result(20) for pool in pools] == [1] * len(pools)

"""How a pool starts: a fork only where a forked child can work, and told where something is lost.

What is unsafe is measured, not guessed: an OpenMP library that is only loaded is fine, one that has
run is not; and so on. The library is made here, with the C compiler's own OpenMP.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import forkmill as fm
import tasks
from conftest import RunScript
from forkmill import _hazards
from forkmill.pool import start as _start

linux = pytest.mark.skipif(sys.platform != "linux", reason="where a fork is the default")
pytestmark = linux

OPENMP = """
#include <omp.h>
double work(int n) {
    double sum = 0;
    #pragma omp parallel for reduction(+:sum) num_threads(3)
    for (int i = 0; i < n; i++) sum += i;
    return sum;
}
int most(void) { return omp_get_max_threads(); }
"""


@pytest.fixture(scope="session")
def openmp(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library with a parallel loop; three threads, whatever the environment says."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    folder = tmp_path_factory.mktemp("openmp")
    (folder / "loop.c").write_text(OPENMP)
    library = folder / "libloop.so"
    command = [compiler or "cc", "-fopenmp", "-shared", "-fPIC", "-o", library, folder / "loop.c"]
    if compiler is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no C compiler with OpenMP")
    return str(library)


HEAD = """
import ctypes, sys, warnings
import forkmill as fm
lib = ctypes.CDLL({library!r})
lib.work.restype = ctypes.c_double
def work(n): return lib.work(n)
right = float(sum(range(1000)))
"""


def test_openmp_that_is_only_loaded_is_no_reason(openmp: str, run_script: RunScript) -> None:
    run_script(
        HEAD.format(library=openmp)
        + """
with fm.ProcessPool(2) as pool:
    assert pool.stats().start_method == "fork" and pool.stats().start_reason == ""
    assert list(pool.map(work, [1000] * 8)) == [right] * 8
"""
    )


def test_threads_that_begin_on_a_busy_machine_are_not_openmps(
    openmp: str, run_script: RunScript
) -> None:
    """They have no descriptor yet, and no CPU to make one on; nor when they end."""
    run_script(
        HEAD.format(library=openmp)
        + """
import _thread, subprocess
from forkmill import _hazards

busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(6)]
try:
    for _ in range(600):
        for _ in range(8):
            _thread.start_new_thread(int, ())
        assert _hazards.in_libraries() == ""
finally:
    for process in busy:
        process.kill()
        process.wait()
"""
    )


def test_openmp_that_has_run_is(openmp: str, run_script: RunScript) -> None:
    """Its threads are there as soon as a loop has run: first they spin, later they sleep."""
    run_script(
        HEAD.format(library=openmp)
        + """
import time
def parallel(n, lib_path=lib._name):  # loads the library itself: a worker has not inherited it
    import ctypes
    lib = ctypes.CDLL(lib_path)
    lib.work.restype = ctypes.c_double
    return lib.work(n)
for pause in (0, 0.05):
    work(1000)
    time.sleep(pause)
    with fm.ProcessPool(2) as pool:
        stats = pool.stats()
        assert stats.start_method == "zygote", stats
        assert "OpenMP" in stats.start_reason and "libgomp" in stats.start_reason, stats
        assert stats.fallbacks == {"fork": 1}
        assert list(pool.map(parallel, [1000] * 8)) == [right] * 8
stats = fm.Pipeline().source([1]).map(abs, context="ipc_fork:1").run().stats["abs"]
assert stats.start_method == "zygote" and "OpenMP" in stats.start_reason
"""
    )


@pytest.mark.parametrize(
    "make", ["fm.ProcessPool(1, start_method='fork')", "fm.cow_fork(1).open()"]
)
def test_a_fork_after_openmp_warns_once(make: str, openmp: str, run_script: RunScript) -> None:
    run_script(
        HEAD.format(library=openmp)
        + f"""
warnings.simplefilter("always")
def told():
    with warnings.catch_warnings(record=True) as caught:
        with {make} as pool:
            assert pool.submit(abs, -1).result(20) == 1
    return caught
assert not told()
work(1000)
first, = told()
assert first.category is RuntimeWarning and first.filename == __file__, first
assert "OpenMP" in str(first.message) and "start_method" in str(first.message)
assert not told()
""",
        flags=(),
    )


def test_a_forked_worker_does_what_its_environment_says(openmp: str, run_script: RunScript) -> None:
    """Libraries that were loaded before the fork, and had read another environment."""
    run_script(
        """
        import os, sys
        os.environ.pop("OMP_NUM_THREADS", None)
        os.sched_getaffinity = lambda pid: set(range(8))  # four CPUs for each of two workers
        """
        + HEAD.format(library=openmp).replace("\n", "\n        ")
        + """
        def look():
            return lib.most(), os.environ["OMP_NUM_THREADS"]
        with fm.ProcessPool(2, start_method="fork") as pool:
            assert pool.each(look) == [(4, "4")] * 2 if hasattr(pool, "each") else True
            assert pool.submit(look).result() == (4, "4")
        with fm.ProcessPool(9, start_method="fork") as pool:
            assert pool.submit(look).result() == (1, "1")
        os.environ["OMP_NUM_THREADS"] = "3,2"
        with fm.ProcessPool(2, start_method="fork") as pool:
            assert pool.submit(look).result() == (3, "3,2")
        assert lib.most() not in (3, 4) or os.cpu_count() in (3, 4)  # here nothing was changed
        """
    )


@pytest.mark.parametrize("method", tasks.METHODS)
def test_blas_uses_as_many_threads_as_the_environment_says(
    method: str, run_script: RunScript
) -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("threadpoolctl")
    script = f"""
    import numpy, os
    import forkmill as fm
    def look():
        import numpy, threadpoolctl
        numpy.ones((300, 300)) @ numpy.ones((300, 300))
        return [i["num_threads"] for i in threadpoolctl.threadpool_info()]
    def before(): # what the initializer asks for stays
        import threadpoolctl
        threadpoolctl.threadpool_limits(2)
    import threadpoolctl
    own = [i["num_threads"] for i in threadpoolctl.threadpool_info()]
    for cpus in (2, 4):
        os.sched_getaffinity = lambda pid: set(range(cpus))
        with fm.ProcessPool(2, start_method={method!r}) as pool:
            counts = pool.submit(look).result()
            assert counts and set(counts) <= {{cpus // 2}}, counts
        assert [i["num_threads"] for i in threadpoolctl.threadpool_info()] == own
    if {method!r} == "fork":
        with fm.ProcessPool(1, start_method="fork", initializer=before) as pool:
            assert set(pool.submit(look).result()) == {{2}}
    """
    run_script(script)


@pytest.mark.parametrize("used", [False, True])
def test_arrow_is_no_reason(used: bool, run_script: RunScript) -> None:
    """Its threads notice a fork and begin anew: 30 forked pools, before and after they have run."""
    if importlib.util.find_spec("pyarrow") is None:  # not imported here: it starts threads
        pytest.skip("no pyarrow")
    run_script(
        f"""
        import pyarrow, pyarrow.compute as pc
        import forkmill as fm
        table = pyarrow.table({{"a": list(range(50_000)), "b": [i % 7 for i in range(50_000)]}})
        def count():
            return table.group_by("b", use_threads=True).aggregate([("a", "count")]).num_rows
        for _ in range(10):
            if {used}: assert count() == 7
            with fm.ProcessPool(2) as pool:
                assert pool.stats().start_method == "fork"
                assert [f.result(20) for f in [pool.submit(count) for _ in range(4)]] == [7] * 4
        """,
        timeout=60,
    )


def test_a_blocked_import_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _hazards.MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    assert _hazards.loaded() == []
    monkeypatch.setitem(sys.modules, "grpc", sys)
    assert _hazards.loaded() == ["grpc"] and _hazards.in_libraries() == "module grpc"


def test_a_look_costs_next_to_nothing() -> None:
    """Every new pool looks: native threads are told apart by what they run."""
    numpy = pytest.importorskip("numpy")
    numpy.ones((10, 10)) @ numpy.ones((10, 10))
    from time import perf_counter

    best = 1.0
    for _ in range(50):
        start = perf_counter()
        _hazards.in_libraries()
        best = min(best, perf_counter() - start)
    assert best < 2e-4


# ---------------------------------------------------------------- what "auto" takes away

BESIDE_A_THREAD = """
import logging, threading, warnings, sys
import forkmill as fm
stop = threading.Event()
thread = threading.Thread(target=stop.wait, name="ticker")
thread.start()
warnings.simplefilter("always")
def caught(make):
    with warnings.catch_warnings(record=True) as found:
        make()
    return [str(w.message) for w in found]
def pool(**options):
    with fm.ProcessPool(1, **options) as pool:
        assert pool.submit(abs, -1).result() == 1
        assert pool.stats().start_method == options.get("start_method", "zygote")
try:
{body}
finally:
    stop.set()
"""


def beside_a_thread(run_script: RunScript, body: str) -> None:
    body = "\n".join("    " + line for line in body.strip().splitlines())
    run_script(BESIDE_A_THREAD.format(body=body), flags=())


def test_nothing_is_said_where_nothing_is_lost(run_script: RunScript) -> None:
    beside_a_thread(
        run_script,
        """
assert caught(pool) == []
assert caught(lambda: pool(initializer=print)) == []
assert caught(lambda: fm.Pipeline().source([1]).map(abs, context="ipc_fork:1").run()) == []
logging.getLogger().addHandler(logging.NullHandler())
assert caught(pool) == []
""",
    )


@pytest.mark.parametrize(
    ("lose", "word"),
    [
        ("pool(inherit=([1, 2],))", "inherit="),
        ("logging.basicConfig(); pool()", "logging"),
        ("pool(initializer=len, initargs=(bytes(3_000_000),))", "3 MB"),
        ("Large().run()", "3 MB"),
    ],
)
def test_what_is_lost_is_said_once(lose: str, word: str, run_script: RunScript) -> None:
    """One warning: the thread, what is lost, the ways out; and none where a method was named."""
    beside_a_thread(
        run_script,
        f"""
class Large(fm.Pipeline):
    def __init__(self):
        super().__init__()
        self.table = bytes(3_000_000)
    @fm.producer
    def source(self): yield 1
    @fm.stage(context="ipc_fork:1")
    def work(self, item): return len(self.table)
def lose(): {lose}
said, = caught(lose)
for part in ("'ticker'", {word!r}, "zygote", "start_method"): assert part in said, (part, said)
assert caught(lose) == []
assert caught(lambda: pool(inherit=([1],), start_method="zygote")) == []
""",
    )


def test_a_warning_that_is_an_error_leaves_nothing(run_script: RunScript) -> None:
    beside_a_thread(
        run_script,
        """
warnings.simplefilter("error")
try: pool(inherit=([1],))
except RuntimeWarning as error: assert "inherit" in str(error)
else: raise AssertionError("no warning")
""",
    )


def test_what_cannot_be_sent_says_why_it_has_to_be(run_script: RunScript) -> None:
    beside_a_thread(
        run_script,
        """
try: pool(initializer=len, initargs=(thread,))
except fm.SerializationError as error:
    note, = [n for n in error.__notes__ if "'auto'" in n]
    assert "'ticker'" in note and "zygote" in note
else: raise AssertionError("it was sent")
""",
    )


@contextlib.contextmanager
def other_thread(name: str) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name=name)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_thread_is_named_in_the_stats() -> None:
    with other_thread("my-ticker"), fm.ProcessPool(1) as pool:
        assert pool.stats().start_method == "zygote"
        assert "my-ticker" in pool.stats().start_reason
        stats = fm.Pipeline().source([1]).map(abs, context="ipc_fork:1").run().stats["abs"]
        assert stats.start_method == "zygote" and "my-ticker" in stats.start_reason


# ------------------------------------------------------------------ programs that are no Python

FROZEN = """
import os, sys, threading
import forkmill as fm
mark = os.path.abspath("started-again")
app = os.path.abspath({name!r})
with open(app, "w") as file:
    file.write("#!/bin/sh\\ntouch " + mark + "\\nexit 3\\n")
os.chmod(app, 0o755)
{how}
"""
AS_FROZEN = {
    "frozen": "sys.frozen = True; sys.executable = app",
    "nuitka": "__compiled__ = True; sys.executable = app",
    "embedded": "sys.executable = app",
    "empty": "sys.executable = ''",
    "none": "sys.executable = None",
}


@pytest.mark.parametrize("how", AS_FROZEN)
def test_a_frozen_program_is_not_started_again(how: str, run_script: RunScript) -> None:
    run_script(
        FROZEN.format(name="app", how=AS_FROZEN[how])
        + """
with fm.ProcessPool(1) as pool:  # it can be forked
    assert pool.submit(abs, -1).result(20) == 1
def refused(**options):
    try: fm.ProcessPool(1, **options)
    except fm.PoolError as error: return str(error)
    raise AssertionError("not refused")
for method in ("zygote", "spawn"):
    assert "sys.executable" in refused(start_method=method)
stop = threading.Event()
threading.Thread(target=stop.wait, name="ticker").start()
try:
    said = refused()
    assert "'ticker'" in said and "fork" in said and "sys.executable" in said, said
    for use in (lambda: list(fm.map(abs, [1])), lambda: fm.executor("ipc_fork:1"),
                lambda: fm.Pipeline().source([1]).map(abs, context="ipc_fork:1").run()):
        try: use()
        except fm.PoolError: pass
        else: raise AssertionError("not refused")
    with fm.ProcessPool(1, start_method="fork") as pool:
        assert pool.submit(abs, -1).result(20) == 1
finally:
    stop.set()
assert not os.path.exists(mark)
"""
    )


@pytest.mark.parametrize("name", ["python3.13t", "pypy3.11", "vpython", "hython"])
def test_interpreters_by_other_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", f"/somewhere/{name}")
    assert _start.choose_method("zygote", None) == ("zygote", "")


# ------------------------------------------------------------------------ subinterpreters

SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import forkmill as fm
"""


def test_beside_a_subinterpreter_nothing_is_forked(run_script: RunScript) -> None:
    """CPython ends or hangs whatever is forked there."""
    pytest.importorskip("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    run_script(
        SUBINTERPRETER
        + """
other = interpreters.create()
with fm.ProcessPool(1) as pool:
    assert pool.submit(abs, -1).result(20) == 1
    assert pool.stats().start_method == "zygote" and "subinterpreter" in pool.stats().start_reason
with fm.executor("cow_fork:1") as cow:
    for fork in (lambda: fm.ProcessPool(1, start_method="fork"), lambda: cow.submit(abs, -1),
                 lambda: fm.Pipeline().source([1]).map(abs, context="cow_fork:1").run()):
        try: fork()
        except fm.PoolError as error: assert "subinterpreter" in str(error), error
        else: raise AssertionError("it was forked")
    interpreters.destroy(other)
    assert cow.submit(abs, -1).result(20) == 1
with fm.ProcessPool(1) as pool:
    assert pool.submit(abs, -1).result(20) == 1 and pool.stats().start_method == "fork"
"""
    )


def test_doctor_tells_of_what_has_run(openmp: str, tmp_path: Path) -> None:
    (tmp_path / "has_run.py").write_text(f"import ctypes; ctypes.CDLL({openmp!r}).work(1000)\n")
    command = [sys.executable, "-m", "forkmill", "doctor", "--import", "has_run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert "'zygote'" in done.stdout and "OpenMP (libgomp" in done.stdout, done.stdout + done.stderr


def test_auto_warns_of_nothing_by_itself() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fm.ProcessPool(1) as pool:
            assert pool.submit(tasks.negative, 1).result() == -1

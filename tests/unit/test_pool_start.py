"""How workers start: methods, initializer and finalizer, inherit, environment, recycling."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from textwrap import dedent

import pytest

import forkmill as fm
import tasks

method = pytest.mark.parametrize("method", tasks.METHODS)


@method
def test_start_methods(method: str) -> None:
    with fm.ProcessPool(2, start_method=method) as pool:
        assert list(pool.map(tasks.negative, range(1000))) == [-i for i in range(1000)]
        assert pool.stats().workers == 2


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_mp_context_is_read_for_its_name(context: str) -> None:
    with fm.ProcessPool(1, multiprocessing.get_context(context)) as pool:
        assert pool.submit(pow, 2, 3).result() == 8


def test_auto_does_not_fork_beside_other_threads() -> None:
    """Seen from what only a fork can hand down: an object that nothing can pickle."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        with pytest.raises(fm.SerializationError):
            fm.ProcessPool(1, inherit=(tasks.Unpicklable(),)).shutdown()
    finally:
        go.set()
        thread.join()
    with fm.ProcessPool(1, inherit=(tasks.Unpicklable(),)) as pool:
        assert pool.submit(pow, 2, 3).result() == 8


def test_a_second_pool_may_still_fork() -> None:
    """Our own threads do not count."""
    thing = tasks.Unpicklable()
    with fm.ProcessPool(1) as first:
        first.submit(tasks.negative, 1).add_done_callback(lambda _: None)
        with fm.ProcessPool(1, inherit=(thing,)) as second:
            assert second.submit(pow, 2, 3).result() == 8


@method
def test_initializer_and_finalizer_run_once_in_each_worker(method: str, tmp_path: Path) -> None:
    began, ended = tasks.Log(tmp_path), tasks.Log(tmp_path)
    with fm.ProcessPool(
        3,
        start_method=method,
        initializer=tasks.initialize,
        initargs=(began.path, {"a": 1}),
        finalizer=tasks.Finalize(ended.path),
    ) as pool:
        pids = pool.each(tasks.pid)
        assert pool.each(tasks.get_state, "value") == [{"a": 1}] * 3
        assert sorted(began.entries()) == sorted(pids)
    assert sorted(ended.entries()) == sorted(-pid for pid in pids)


def test_initializer_runs_in_replacements(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(
        1, start_method="fork", initializer=tasks.initialize, initargs=(log.path, 5)
    ) as pool:
        pool.submit(tasks.die, "kill").exception()
        assert pool.submit(tasks.get_state, "value").result() == 5
    assert len(log.entries()) == 2


def test_finalizer_runs_on_recycling(tmp_path: Path) -> None:
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(
        1, start_method="fork", max_tasks_per_child=2, finalizer=tasks.Finalize(log.path)
    ) as pool:
        pids = [pool.submit(tasks.pid).result() for _ in range(6)]
    assert set(log.entries()) >= {-pid for pid in pids}


def test_fork_inherits_initializer_and_objects_unpickled() -> None:
    lock = threading.Lock()
    thing = tasks.Unpicklable()
    seen: list[object] = []
    with fm.ProcessPool(
        1,
        start_method="fork",
        initializer=lambda *a: seen.extend(a),
        initargs=(thing, lock),
        inherit=(thing, lock),
    ) as pool:
        assert pool.submit(lambda x, y: type(x).__name__, thing, lock).result() == "Unpicklable"
    assert seen == []  # it ran in the worker


def test_inherited_objects_travel_by_reference() -> None:
    big = {"index": list(range(1000)), "lock": threading.Lock()}
    with fm.ProcessPool(2, start_method="fork", inherit=(big,)) as pool:
        assert pool.submit(lambda b: len(b["index"]), big).result() == 1000
        assert list(pool.map(lambda b: b["index"][5], [big] * 5)) == [5] * 5


@pytest.mark.parametrize("method", ["zygote", "spawn"])
def test_inherit_is_pickled_once_for_execd_workers(method: str) -> None:
    data = list(range(1000))
    with fm.ProcessPool(1, start_method=method, inherit=(data,)) as pool:
        assert pool.submit(tasks.length, data).result() == 1000


@method
def test_thread_caps_unless_the_user_set_them(method: str, run_script) -> None:
    code = f"""
        import os, tasks, forkmill as fm
        before = dict(os.environ)
        with fm.ProcessPool(2, start_method={method!r}) as pool:
            print(pool.submit(tasks.environment, "OMP_NUM_THREADS").result())
            print(pool.submit(tasks.environment, "OPENBLAS_NUM_THREADS").result())
        assert dict(os.environ) == before
    """
    script = run_script(code, env={"OMP_NUM_THREADS": "77"})
    assert script.stdout.split()[0] == "77"
    script = run_script("import os\nos.environ.pop('OMP_NUM_THREADS', 0)\n" + dedent(code))
    assert int(script.stdout.split()[0]) >= 1


@pytest.mark.scenario(8)
@pytest.mark.parametrize(
    "initializer, words",
    [
        (tasks.initializer_raises, "the initializer's own words"),
        (tasks.initializer_exits, "7"),
        (tasks.initializer_hangs, "init_timeout"),
    ],
    ids=["raises", "exits", "hangs"],
)
@method
def test_a_failing_initializer_breaks_the_pool_with_its_cause(
    method: str, initializer, words: str
) -> None:
    """FAULTS 8: no hang, no respawn loop."""
    limit = 0.5 if words == "init_timeout" else 30
    with fm.ProcessPool(
        2, start_method=method, initializer=initializer, init_timeout=limit
    ) as pool:
        try:
            future = pool.submit(pow, 2, 3)
        except fm.InitError as early:
            error: BaseException | None = early
        else:
            error = future.exception(20)
        assert isinstance(error, fm.InitError)
        text = str(error) + "".join(map(str, error.causes))
        assert words in text
        with pytest.raises(fm.InitError):
            pool.submit(pow, 2, 3)
        with pytest.raises(fm.PoolBroken):
            pool.map(abs, [1])
        stats = pool.stats()
        assert stats.state == "broken"
        assert stats.restarts <= 6
        assert stats.accepted == stats.outcomes


def test_the_initializers_traceback_is_in_the_error() -> None:
    import traceback

    with fm.ProcessPool(1, start_method="fork", initializer=tasks.initializer_raises) as pool:
        with pytest.raises(fm.InitError) as caught:
            for _ in range(10_000):
                pool.submit(pow, 2, 3).result()
        assert "in initializer_raises" in "".join(traceback.format_exception(caught.value))


@method
def test_an_idle_pool_learns_of_a_failing_initializer(method: str) -> None:
    with fm.ProcessPool(1, start_method=method, initializer=tasks.initializer_raises) as pool:
        with pytest.raises(fm.InitError):
            pool.each(tasks.pid)


@pytest.mark.parametrize("how", ["max_tasks_per_child", "max_rss"])
def test_recycling(how: str) -> None:
    with fm.ProcessPool(
        1,
        start_method="fork",
        restarts=(0, 10.0),
        max_tasks_per_child=5 if how == "max_tasks_per_child" else None,
        max_rss=100 << 20 if how == "max_rss" else None,
    ) as pool:
        if how == "max_rss":
            pids = [pool.submit(tasks.grow, 60 << 10).result() for _ in range(4)]
        else:
            pids = [pool.submit(tasks.pid).result() for _ in range(20)]
        assert 2 <= len(set(pids)) <= 4
        assert pool.stats().state == "open"
        assert pool.stats().recycled >= len(set(pids)) - 1


def test_workers_start_at_once_and_are_listed() -> None:
    with fm.ProcessPool(3, start_method="fork") as pool:
        pool.each(tasks.pid)
        workers = pool.workers()
        assert len(workers) == 3
        assert len({worker.pid for worker in workers}) == 3
        for worker in workers:
            assert isinstance(worker, fm.WorkerInfo)
            os.kill(worker.pid, 0)
            assert worker.age >= 0
            assert worker.tasks >= 1
        pool.submit(tasks.die, "exit3").exception()
        tasks.eventually(lambda: pool.stats().alive == 3 or pool.submit(pow, 1, 1).result() is None)
        assert len({worker.pid for worker in pool.workers()}) == 3


def test_default_number_of_workers_is_what_the_process_may_use(run_script) -> None:
    script = run_script(
        """
        import os, forkmill as fm
        first = sorted(os.sched_getaffinity(0))[:1]
        os.sched_setaffinity(0, first)
        with fm.ProcessPool() as pool:
            print(pool.stats().workers)
        """
    )
    assert script.stdout.split() == ["1"]


def test_workers_ignore_ctrl_c_and_flush_their_streams(run_script) -> None:
    script = run_script(
        """
        import signal, sys, forkmill as fm
        def noisy():
            sys.stdout.write("from a worker")
            return signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        sys.stdout.write("before")
        with fm.ProcessPool(1, start_method="fork") as pool:
            assert pool.submit(noisy).result()
        print()
        """
    )
    assert script.stdout.count("before") == 1
    assert script.stdout.count("from a worker") == 1


@pytest.mark.parametrize("method", tasks.METHODS)
def test_workers_print_though_a_thread_printed_at_the_fork(method: str, run_script) -> None:
    """It holds the stream's lock at nearly each fork, and nobody releases that in the worker."""
    script = run_script(
        f"""
        import forkmill as fm, tasks
        with tasks.chatter("x" * 200):
            for i in range(4):
                with fm.ProcessPool(2, start_method={method!r}) as pool:
                    pool.submit(print, f"first {{i}}", flush=True).result(20)
                    pool.submit(print, f"second {{i}}").result(20)
        """
    )
    lines = script.stdout.splitlines()
    said = [line for line in lines if not line.startswith("x")]
    assert sorted(said) == sorted(f"{word} {i}" for word in ("first", "second") for i in range(4))
    assert set(lines) - set(said) == {"x" * 200}


def test_what_a_stream_of_ones_own_holds_at_the_fork_is_printed_once(run_script) -> None:
    script = run_script(
        """
        import os, sys
        from forkmill.worker import main as _worker
        class Own:
            text = ""
            def fileno(self): return 1
            def write(self, text): self.text += text
            def flush(self):
                os.write(1, self.text.encode())
                self.text = ""
        sys.stdout = Own()
        print("once")
        if not (pid := os.fork()):
            _worker.drop_buffered()
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        sys.stdout.flush()
        """
    )
    assert script.stdout == "once\n"


def test_fork_hooks_run_once_in_each_worker_and_once_in_this_process(run_script) -> None:
    """A worker is born as if it had been forked from here, its successors too."""
    run_script("""
        import os
        import forkmill as fm

        seen = []
        os.register_at_fork(
            before=lambda: seen.append("before"),
            after_in_parent=lambda: seen.append("parent"),
            after_in_child=lambda: seen.append("child"),
        )
        def look(*_):
            return os.getpid(), seen
        with fm.ProcessPool(2, start_method="fork", max_tasks_per_child=1) as pool:
            assert seen == ["before", "parent"]
            for pid, there in [pool.submit(look).result() for _ in range(5)]:
                assert pid != os.getpid() and there == ["before", "child"], there
        assert seen == ["before", "parent"]
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_first_call_needs_no_thread_and_no_worker_to_be_sent(run_script) -> None:
    run_script("""
        import os
        import forkmill as fm

        pool = fm.ProcessPool(2, start_method="fork")
        future = pool.submit(abs, -1)
        stats = pool.stats()
        assert stats.backlog == 0 and stats.accepted == 1, stats
        assert os.listdir("/proc/self/task") == [str(os.getpid())]
        assert future.result() == 1
        pool.shutdown()
    """)


def test_workers_see_the_caps_in_os_environ_and_in_the_environment(run_script) -> None:
    run_script("""
        import ctypes, os
        os.environ.pop("OMP_NUM_THREADS", None)
        import forkmill as fm

        def look():
            getenv = ctypes.CDLL(None).getenv
            getenv.restype = ctypes.c_char_p
            return os.environ.get("OMP_NUM_THREADS"), getenv(b"OMP_NUM_THREADS").decode()
        with fm.ProcessPool(1, start_method="fork") as pool:
            known, there = pool.submit(look).result()
            assert known == there and int(known) >= 1
        assert "OMP_NUM_THREADS" not in os.environ
        assert ctypes.CDLL(None).getenv(b"OMP_NUM_THREADS") == 0
    """)


@pytest.mark.parametrize(
    ("usable", "quota", "workers", "expected"),
    [(2, 2, 2, 1), (2, 2, 1, 2), (16, 16, 4, 4), (16, 4, 4, 1), (16, 8, 3, 2), (1, 1, 8, 1)],
)
def test_each_worker_has_its_share_of_the_cpus(
    monkeypatch: pytest.MonkeyPatch, usable: int, quota: int, workers: int, expected: int
) -> None:
    from forkmill import _process

    monkeypatch.setattr(_process, "_affinity", lambda: usable)
    monkeypatch.setattr(_process, "_quotas", lambda: iter([float(quota)]))
    assert _process.cpus_each(workers) == expected == max(1, _process.cpus() // workers)


def test_the_quota_is_not_read_if_it_cannot_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from forkmill import _process

    monkeypatch.setattr(_process, "_affinity", lambda: 4)
    monkeypatch.setattr(_process, "_quotas", lambda: pytest.fail("the quota was read"))
    assert _process.cpus_each(3) == 1


def loaded(pool: fm.ProcessPool, *names: str) -> set[str]:
    """Which of these modules a worker has; asked by builtins, which import none."""
    code = f"[n for n in {names!r} if n in __import__('sys').modules]"
    return set(pool.submit(eval, code).result())


def replace(pool: fm.ProcessPool) -> None:
    """The only worker is another one from here on."""
    old = pool.submit(os.getpid).result()
    os.kill(old, signal.SIGKILL)
    tasks.eventually(lambda: {worker.pid for worker in pool.workers()} - {0, old})


def test_a_zygote_imports_what_its_workers_had_to() -> None:
    """A replaced worker would import it all again; but what is the user's, it does."""
    with fm.ProcessPool(1, start_method="zygote", restarts=(10_000, 10)) as pool:
        assert loaded(pool, "ctypes", "tasks") == set()
        pool.submit(tasks.pid).result()
        assert loaded(pool, "ctypes", "tasks") == {"ctypes", "tasks"}

        def known() -> set[str]:
            replace(pool)
            return loaded(pool, "ctypes", "tasks")

        tasks.eventually(lambda: known() == {"ctypes"})
        assert pool.submit(tasks.negative, 1).result() == -1


def test_an_import_ahead_that_goes_wrong_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that raises, exits or is not there; in the worker it was fine."""
    monkeypatch.syspath_prepend(tmp_path)
    hook = """
        import sys
        class Hook:
            def find_spec(self, name, path=None, target=None):
                if name in ("wave", "colorsys") and "hooked" not in sys.modules:
                    raise SystemExit(name) if name == "wave" else RuntimeError(name)
        sys.meta_path.insert(0, Hook())
    """
    (tmp_path / "sitecustomize.py").write_text(dedent(hook))
    (tmp_path / "hooked.py").write_text("import wave, colorsys, plistlib\nclass C: pass\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import hooked

    with fm.ProcessPool(1, start_method="zygote", restarts=(10_000, 10)) as pool:
        names = "hooked", "wave", "colorsys", "plistlib"
        assert type(pool.submit(hooked.C).result()).__name__ == "C"
        assert loaded(pool, *names) == set(names)

        def known() -> set[str]:
            replace(pool)
            return loaded(pool, *names)

        tasks.eventually(lambda: known() == {"plistlib"})
        assert type(pool.submit(hooked.C).result()).__name__ == "C"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["zygote", "spawn"])
def test_a_fresh_worker_of_the_programs_function_loads_little(method: str, run_script) -> None:
    """Its function brings this package, and cloudpickle: what is for mistakes alone stays away."""
    run_script(f"""
import forkmill as fm

def loaded():
    import sys
    return fm.__name__, [name for name in ("difflib", "queue") if name in sys.modules]

if __name__ == "__main__":
    with fm.ProcessPool(1, start_method={method!r}) as pool:
        assert pool.submit(loaded).result(30) == ("forkmill", [])
""")

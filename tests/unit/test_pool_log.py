"""What a pool logs: one message an event, under "forkmill", and nothing unless asked."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import forkmill as fm
import tasks
from forkmill import _native

LOGGER = logging.getLogger("forkmill")


class Kept(logging.Handler):
    """Keeps what was logged, as "LEVEL logger: message"."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")

    def matching(self, pattern: str) -> list[str]:
        return [line for line in self.lines if re.search(pattern, line)]


@pytest.fixture
def log() -> Iterator[Kept]:
    kept = Kept()
    level = LOGGER.level
    LOGGER.addHandler(kept)
    LOGGER.setLevel(logging.DEBUG)
    yield kept
    LOGGER.removeHandler(kept)
    LOGGER.setLevel(level)


def exit_with(code: int) -> None:
    os._exit(code)


def die_at_three(item: int) -> int:
    return exit_with(3) if item == 3 else item  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("kill", "SIGKILL"),
        ("exit0", "exit 0"),
        ("exit3", "exit 3"),
        ("segv", "SIGSEGV"),
        ("abort", "SIGABRT"),
    ],
)
def test_a_death_with_its_cause_and_the_restart(log: Kept, how: str, cause: str) -> None:
    with fm.ProcessPool(1, start_method="fork", name="mill") as pool:
        pid = pool.submit(tasks.pid).result()
        assert isinstance(pool.submit(tasks.die, how).exception(), fm.WorkerDied)
        after = pool.submit(tasks.pid).result()
        assert pool.stats().deaths_by_cause == {cause: 1}
        assert log.lines == [
            f"WARNING forkmill.pool: mill: worker 0 (pid {pid}) died: {cause}",
            f"INFO forkmill.pool: mill: worker 0 restarted as pid {after}",
        ]


def test_timeouts_and_kills(log: Kept) -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        assert isinstance(
            pool.options(timeout=0.05).submit(tasks.nap, 60).exception(), fm.TaskTimeout
        )
        future = pool.submit(tasks.nap, 60)
        tasks.eventually(future.running)
        assert future.kill()
        assert isinstance(future.exception(), fm.WorkerDied)
        stats = pool.stats()
    assert stats.deaths_by_cause == {"timeout": 1, "killed": 1}
    assert sum(stats.deaths_by_cause.values()) == stats.deaths
    assert len(log.matching(r"^WARNING .* died: timeout$")) == 1
    assert len(log.matching(r"^INFO .* died: killed$")) == 1  # the user's own wish


def test_requeues_are_told_with_the_death(log: Kept) -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        results = pool.map(die_at_three, range(8), chunksize=8, return_exceptions=True)
        assert [isinstance(result, fm.WorkerDied) for result in results].index(True) == 3
        assert pool.stats().requeued == 4
    assert len(log.matching(r"died: exit 3; 4 tasks requeued$")) == 1


def test_recycled_workers(log: Kept) -> None:
    with fm.ProcessPool(1, start_method="fork", max_tasks_per_child=2) as pool:
        for _ in range(5):
            pool.submit(tasks.pid).result()
        stats = pool.stats()
    assert stats.deaths_by_cause == {"recycled": 2}
    assert (stats.deaths, stats.recycled) == (0, 2)
    assert len(log.matching(r"^INFO .* recycled$")) == 2
    assert not log.matching("died")


def test_retired_workers(log: Kept) -> None:
    with fm.ProcessPool(2, start_method="fork", min_workers=1, idle_time=0.05) as pool:
        for future in [pool.submit(tasks.nap, 0.05) for _ in range(8)]:
            future.result()
        tasks.eventually(lambda: pool.stats().retired >= 1)
        assert pool.stats().deaths_by_cause["retired"] >= 1
    assert log.matching(r"^INFO .* retired")


def test_the_restart_limit(log: Kept) -> None:
    with fm.ProcessPool(1, start_method="fork", restarts=(1, 60)) as pool:
        for _ in range(2):
            pool.submit(tasks.die, "exit3").exception()
        tasks.eventually(lambda: pool.stats().state == "broken")
    assert len(log.matching(r"^ERROR .*: broken: more than 1 deaths within 60 s$")) == 1


def test_an_initializer_that_fails(log: Kept) -> None:
    with fm.ProcessPool(1, start_method="fork", initializer=tasks.initializer_raises) as pool:
        with pytest.raises(fm.InitError):
            pool.submit(tasks.pid).result()
    assert len(log.matching(r"^ERROR .*: broken: .* initializer$")) == 1


def test_a_zygote_that_is_killed(log: Kept) -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        pool.submit(tasks.pid).result()
        assert pool._core is not None
        os.kill(pool._core.native.zygote()[0], signal.SIGKILL)
        tasks.eventually(lambda: pool.stats().state == "broken")
    assert len(log.matching(r"^ERROR .*: broken: its zygote \(pid \d+\) is gone")) == 1


def test_a_birth_that_fails_is_told_with_its_error(run_script) -> None:
    script = run_script(
        """
        import logging, os, resource, signal, sys
        import forkmill as fm, tasks

        logging.basicConfig(level=logging.INFO, stream=sys.stdout)
        with fm.ProcessPool(2, start_method="fork") as pool:
            pool.each(tasks.pid)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no new one from here on
            os.kill(pool.workers()[0].pid, signal.SIGKILL)
            tasks.eventually(lambda: pool.stats().trouble)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        """
    )
    assert re.search(r"worker 0 could not be started: (EMFILE|ENFILE) \(", script.stdout)


def test_nobody_waits_for_the_log(log: Kept) -> None:
    """An idle worker's death is told by who comes next, and so is one behind a retry."""
    with fm.ProcessPool(1, start_method="fork") as pool:
        victim = pool.submit(tasks.pid).result()
        os.kill(victim, signal.SIGKILL)
        tasks.eventually(lambda: pool.submit(tasks.pid).result() != victim)
        pool.submit(tasks.pid).result()
        assert len(log.matching(f"pid {victim}.* died: SIGKILL")) == 1


def test_the_rest_is_told_at_the_end(log: Kept) -> None:
    pool = fm.ProcessPool(1, start_method="fork", restarts=(1000, 1.0))
    assert pool._core is not None
    native = pool._core.native
    future = pool.submit(tasks.die, "exit3")
    assert native.wait_idle(20)  # this way nobody looks
    assert not log.lines
    pool.shutdown()
    assert len(log.matching("died: exit 3")) == 1
    assert isinstance(future.exception(), fm.WorkerDied)
    assert len(log.matching("died: exit 3")) == 1


def test_many_events_are_bounded_and_the_loss_is_told(log: Kept) -> None:
    with fm.ProcessPool(1, start_method="fork", restarts=(1000, 1.0)) as pool:
        assert pool._core is not None
        native = pool._core.native
        for _ in range(70):
            pool.submit(tasks.die, "exit3")
            assert native.wait_idle(20)
        assert not log.lines
        pool.stats()
        (lost,) = log.matching(r"^WARNING .*older events were forgotten")
        kept = len(log.lines) - 1
        assert kept == 64
        assert int(lost.split()[-5]) + kept in (139, 140)  # the last one may not be replaced yet


def test_two_takers_never_tell_an_event_twice() -> None:
    with fm.ProcessPool(2, start_method="fork", restarts=(1000, 1.0)) as pool:
        assert pool._core is not None
        native = pool._core.native
        native.log = None
        taken: list[dict[str, int]] = []
        stop = threading.Event()

        def take() -> None:
            while not stop.is_set():
                events, lost = native.take_events()
                assert not lost
                taken.extend(events)

        takers = [threading.Thread(target=take) for _ in range(2)]
        for taker in takers:
            taker.start()
        for _ in range(20):
            pool.submit(tasks.die, "exit0").exception()
        stop.set()
        for taker in takers:
            taker.join()
        taken += native.take_events()[0]
        died = [event["pid"] for event in taken if event["kind"] == _native.EVENT_DIED]
        assert len(died) == len(set(died)) == 20


def test_a_handler_may_use_the_pool(log: Kept) -> None:
    """No lock of ours is held: not even another thread that the handler waits for is kept out."""
    answers = []

    class Uses(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            # Not emit(), which has logging's own lock: the thread may have something to log too.
            thread = threading.Thread(
                target=lambda: answers.append(pool.submit(pow, 2, 3).result())
            )
            thread.start()
            thread.join(30)
            answers.append(repr(pool))
            pool.stats()
            return True

    handler = Uses()
    LOGGER.addHandler(handler)
    try:
        with fm.ProcessPool(1, start_method="fork") as pool:
            pool.submit(tasks.die, "exit3").exception()
            pool.submit(tasks.pid).result()
            pool.stats()
    finally:
        LOGGER.removeHandler(handler)
    assert answers.count(8) == len(log.lines) == 2


def test_a_filter_that_raises_costs_no_result() -> None:
    class Bad(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise ValueError("a bad filter")

    bad = Bad()
    logger = logging.getLogger("forkmill.pool")
    logger.addFilter(bad)
    try:
        with fm.ProcessPool(1, start_method="fork") as pool:
            assert isinstance(pool.submit(tasks.die, "exit3").exception(), fm.WorkerDied)
            assert pool.submit(pow, 2, 3).result() == 8
    finally:
        logger.removeFilter(bad)


def test_quiet_by_default(run_script) -> None:
    script = run_script(
        """
        import forkmill as fm, tasks
        with fm.ProcessPool(1, start_method="fork") as pool:
            pool.submit(tasks.die, "kill").exception()
            pool.submit(tasks.pid).result()
        """
    )
    assert (script.stdout, script.stderr) == ("", "")


def test_kinds_of_death_are_bounded() -> None:
    with fm.ProcessPool(1, start_method="fork", restarts=(1000, 1.0)) as pool:
        for code in range(40):
            pool.submit(exit_with, code).exception()
        stats = pool.stats()
    assert stats.deaths == sum(stats.deaths_by_cause.values()) == 40
    assert stats.deaths_by_cause["other"] == 9
    assert {f"exit {code}" for code in range(31)} < set(stats.deaths_by_cause)


# ------------------------------------------------------------------------- fallbacks


def test_all_is_well_without_fallbacks(log: Kept) -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        pool.submit(len, bytes(1 << 20)).result()
        stats = pool.stats()
    assert stats.fallbacks == {} and stats.deaths_by_cause == {}
    assert not log.lines
    assert hash(stats) == hash(pool.stats()) or pool.stats() != stats


def test_another_start_method_because_of_threads(log: Kept) -> None:
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    try:
        with fm.ProcessPool(1, name="mill") as pool:
            told = list(log.lines)
            stats = pool.stats()
    finally:
        gate.set()
        thread.join()
    if sys.platform == "darwin":
        assert stats.fallbacks == {} and not told
        return
    assert stats.fallbacks == {"fork": 1}
    assert told == [
        "INFO forkmill.pool: mill: start method 'zygote' instead of 'fork', because of "
        "1 other threads"
    ]


def test_functions_by_value(log: Kept) -> None:
    with fm.ProcessPool(1, start_method="fork") as pool:
        twice = lambda x: 2 * x  # noqa: E731
        assert [pool.submit(twice, i).result() for i in range(3)] == [0, 2, 4]
        assert pool.stats().fallbacks == {"pickle": 1}
    assert len(log.matching(r"^DEBUG .* function .*<lambda> \(.*\) goes by value")) == 1


def test_a_full_arena_is_counted_on_either_side() -> None:
    pytest.importorskip("numpy")
    n = 1100  # more than there are segments
    with fm.ProcessPool(2, start_method="fork") as pool:
        if pool._core is None or pool._core.native.arena is None:
            pytest.skip("no arena on this system")
        kept = list(pool.map(tasks.array_of, [(10_000,)] * n, range(n)))
        assert pool.stats().fallbacks["room"] >= n - 1024  # counted in the workers
        before = pool.stats().fallbacks["room"]
        pool.submit(len, bytes(1 << 20)).result()
        assert pool.stats().fallbacks["room"] > before  # and here
        del kept


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize(("call", "missing"), [("pidfd_open", "pidfd"), ("memfd_create", "arena")])
def test_without_a_system_call(call: str, missing: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import forkmill as fm, logging, sys\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "for method in 'fork', 'zygote':\n"
        "    with fm.ProcessPool(1, start_method=method) as pool:\n"
        "        assert pool.submit(pow, 2, 3).result() == 8\n"
        "        print(sorted(pool.stats().fallbacks))\n"
    )
    done = subprocess.run(
        [
            "strace", "-f", "-qq", "-o", "/dev/null", f"--trace={call}",
            f"--inject={call}:error=EPERM", sys.executable, str(script),
        ],
        capture_output=True,
        text=True,
        timeout=55,
    )  # fmt: skip
    if "not permitted" in done.stderr and not done.stdout:
        pytest.skip("ptrace is not permitted here")
    assert done.returncode == 0, done.stderr
    if f"['{missing}']" not in done.stdout:
        # There may be another way to shared memory here.
        assert call == "memfd_create" and done.stdout.splitlines() == ["[]", "[]"]
        return
    assert done.stdout.count(f"['{missing}']") == 2
    assert len(re.findall(r"forkmill\.pool:pool-\d: no (?:pidfd|shared memory)", done.stdout)) == 2

"""What every test gets: a check that it left nothing behind, and a way to run scripts.

Guarantees: after each test that passed, this process has no more child processes (zombies and
grandchildren too), threads (also those made from C) and descriptors than before it.
`run_script` asserts the same of a whole process: nothing of its session outlives it.

A test that uses up a process, or that depends on who holds which descriptor, belongs into a
script: a fresh process has no pytest-xdist channel that an orphan could hold open, and no thread
but its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import sampling

# Arrow's own allocator has a thread, which would begin inside a test.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

with contextlib.suppress(ImportError):
    # OpenBLAS starts its threads at the first import: let that not be inside a test.
    import numpy  # noqa: F401

if hasattr(ctypes.CDLL(None), "mallopt"):
    # M_MMAP_THRESHOLD: without it glibc keeps what once was large, and each of the thousands of
    # forks to come copies the page tables of some 500 MB.
    ctypes.CDLL(None).mallopt(-3, 1 << 20)

# With it print() writes a line and its end one after the other, and what several processes print
# to the same file gets mixed up.
os.environ.pop("PYTHONUNBUFFERED", None)

# Who is started in the background has SIGINT ignored, and so would have all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The gate asks the same each time, and takes any time that a busy machine takes. Another search:
# pytest tests/property --hypothesis-profile=search --timeout=0
hypothesis.settings.register_profile(
    "gate",
    max_examples=125,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("search", max_examples=2500, deadline=None)
hypothesis.settings.load_profile("gate")

TESTS = Path(__file__).resolve().parent
LINUX = sys.platform == "linux"
GRACE = 5.0  # the ladder takes 1.5 s at most; the rest is for a slow machine
_PASSED = pytest.StashKey[bool]()


# ------------------------------------------------------------------ looking around


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    group: int
    session: int
    state: str = field(compare=False)
    command: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.pid} ({self.command}) state {self.state}, parent {self.parent}"


def process_table() -> dict[int, Process]:
    """All processes that we may see, by pid."""
    table = {}
    for process in _read_proc() if LINUX else _read_ps():
        table[process.pid] = process
    return table


def _read_proc() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            text = Path("/proc", name, "stat").read_text(errors="replace")
            command, _, rest = text.partition("(")[2].rpartition(")")
            state, parent, group, session = rest.split()[:4]
            yield Process(int(name), int(parent), int(group), int(session), state, command)


def _read_ps() -> Iterator[Process]:
    columns = "pid=,ppid=,pgid=,sess=,state=,comm="
    ps = subprocess.Popen(["ps", "-axo", columns], stdout=subprocess.PIPE, text=True)
    lines = ps.communicate()[0].splitlines()
    for line in lines:
        pid, parent, group, _session, state, command = line.split(None, 5)
        # Darwin's sess is a kernel address: the group has to do for the session.
        if int(pid) != ps.pid:
            yield Process(int(pid), int(parent), int(group), int(group), state[0], command)


def helpers() -> tuple[set[int], set[int]]:
    """The processes and descriptors of multiprocessing's resource tracker and fork server: the
    program's, once started, to its end, no matter who needed them first."""
    modules = sys.modules
    tracker = getattr(modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    server = getattr(modules.get("multiprocessing.forkserver"), "_forkserver", None)
    pids = {getattr(tracker, "_pid", None), getattr(server, "_forkserver_pid", None)}
    fds = {getattr(tracker, "_fd", None), getattr(server, "_forkserver_alive_fd", None)}
    return pids - {None}, fds - {None}


def children() -> set[Process]:
    """Our descendants, and the orphans of our process group: theirs is lost to the family tree."""
    table = process_table()
    ours = {os.getpid()}
    while more := {p.pid for p in table.values() if p.parent in ours} - ours:
        ours |= more
    above, up = {os.getpid()}, os.getppid()  # who started us may be an orphan in our group too
    while up in table and up not in above:
        above.add(up)
        up = table[up].parent
    # An orphan's zombie is for init to reap; in a container there may be none that does.
    orphans = {
        p.pid
        for p in table.values()
        if p.parent == 1 and p.group == os.getpgrp() and p.state != "Z" and p.pid not in above
    }
    return {table[pid] for pid in (ours | orphans) - {os.getpid()} - helpers()[0]}


def threads() -> list[str]:
    """Names of our threads; those that Python does not know have their kernel's name."""
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    if not LINUX:
        return list(known.values())
    names = []
    for task in os.listdir("/proc/self/task"):
        name = known.get(int(task))
        with contextlib.suppress(OSError):
            if name is None:
                name = "native:" + Path("/proc/self/task", task, "comm").read_text().strip()
            if name != "native:jemalloc_bg_thd":  # Arrow's allocator begins it whenever it likes
                names.append(name)
    return names


def descriptors() -> dict[int, str]:
    """Our open descriptors and what they lead to."""
    folder = "/proc/self/fd" if LINUX else "/dev/fd"
    found = {}
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # the listing's own is closed again
            if LINUX:
                found[int(name)] = os.readlink(f"{folder}/{name}")
            else:
                found[int(name)] = f"mode {os.fstat(int(name)).st_mode:o}"
    return {fd: target for fd, target in found.items() if fd not in helpers()[1]}


# --------------------------------------------------------------- nothing left behind


@dataclass
class Balance:
    """What this process had at one moment."""

    processes: set[Process]
    threads: list[str]
    descriptors: dict[int, str]

    @classmethod
    def now(cls) -> Balance:
        return cls(children(), threads(), descriptors())

    def excess(self, before: Balance, allowed: tuple[str, ...]) -> str:
        """What there is more than before, as text; empty if nothing."""
        lines = []
        # Counted, not compared: a pool of a wider fixture may have replaced a worker.
        if len(self.processes) > len(before.processes) and "processes" not in allowed:
            old = {process.pid for process in before.processes}
            lines += [f"process {process}" for process in self.processes if process.pid not in old]
        if len(self.threads) > len(before.threads) and "threads" not in allowed:
            rest = list(self.threads)
            for name in before.threads:
                if name in rest:
                    rest.remove(name)
            lines += [f"thread {name}" for name in rest]
        if len(self.descriptors) > len(before.descriptors) and "descriptors" not in allowed:
            lines += [
                f"descriptor {fd} -> {target}"
                for fd, target in sorted(self.descriptors.items())
                if before.descriptors.get(fd) != target
            ]
        return "\n  ".join(lines)


def end_shared_pools() -> None:
    """End the pools that `fm.map` keeps for the next call, if there are any."""
    module = sys.modules.get("forkmill.pool.process_pool")
    if module is None:
        return
    while module._shared:
        lock, pools = module._shared.popitem()[1]
        with lock:
            for pool in pools.values():
                pool.shutdown()


def wait_until_empty(look: Callable[[], str], seconds: float) -> str:
    """Call `look` until it has nothing to say or the time is over; what it said last."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while True:
        late = time.monotonic() >= deadline  # before the look: it takes its time on a busy machine
        said = look()
        if not said or late:
            return said
        # Nothing tells us that a stranger's ladder is done: this is the one polling loop.
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, a thread or a descriptor behind."""
    marks = list(request.node.iter_markers("unbalanced"))
    allowed = tuple(kind for mark in marks for kind in mark.args)
    shared = request.node.get_closest_marker("shared_pool") is not None
    before = Balance.now()
    yield
    if shared:
        end_shared_pools()
    if not request.node.stash.get(_PASSED, True):
        return  # its traceback keeps its pools alive: one report is enough
    if not Balance.now().excess(before, allowed):
        return
    gc.collect()
    left = wait_until_empty(lambda: Balance.now().excess(before, allowed), GRACE)
    if left:
        pytest.fail(f"the test left behind, {GRACE:g} s after its end:\n  {left}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when in ("setup", "call") and not report.passed:
        item.stash[_PASSED] = False
    return report


# ------------------------------------------------------------ what nothing interrupts

STUCK = 30.0  # seconds that a test has to end in when its own time is over
_TERMINAL = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TERMINAL] = os.dup(2)  # nothing is captured now


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Iterator[Any]:
    """Write all stacks, and end, where even pytest-timeout's signal ends no test: the GIL is held.

    Not a moment earlier: this walks frames without the GIL. Those that run meanwhile are freed
    under it, and then the process dies of SIGSEGV, without a word, for its thread blocks signals.
    """
    stuck = settings.timeout + STUCK
    faulthandler.dump_traceback_later(stuck, exit=True, file=item.config.stash[_TERMINAL])
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> Iterator[Any]:
    faulthandler.cancel_dump_traceback_later()
    return (yield)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sampling.apply(items)


def pytest_sessionfinish() -> None:
    end_shared_pools()


# -------------------------------------------------------------------------- scripts

# The second one is explained where pytest is told the same (pyproject.toml).
STRICT = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
_SWALLOWED = re.compile(
    r"^Exception ignored .{1,40}<function Weak(?:Set|ValueDictionary|KeyDictionary)\..*\n"
    r"(?:Traceback .*\n(?: .*\n|\n)*)?(?:\S.*\n)?",
    re.MULTILINE,
)


class Script:
    """A Python program in a session of its own, with its output in files.

    Files, not pipes: what survives the program cannot keep a reader of ours waiting.

    Attributes:
        pid: Of the program.
        process: Its Popen.
    """

    def __init__(self, path: Path, folder: Path, flags: tuple[str, ...], env: dict[str, str]):
        self._out, self._err = folder / "stdout", folder / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", *flags, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=env,
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def complaints(self) -> str:
        """Standard error, without what a signal's handler raised in a weak container's callback:
        CPython tells and swallows that, and pytest ignores it in tests (pyproject.toml)."""
        return _SWALLOWED.sub("", self.stderr)

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    def processes(self) -> list[Process]:
        """Who of its session is alive, itself included; zombies are not."""
        table = process_table().values()
        return [p for p in table if p.session == self.pid and p.state != "Z"]

    def wait_for(self, text: str, timeout: float = 20.0) -> None:
        """Wait until `text` is on its standard output."""
        missing = wait_until_empty(
            lambda: "" if text in self.stdout or self.returncode is not None else "missing", timeout
        )
        assert text in self.stdout, f"no {text!r} ({missing or 'it ended'}){self.report()}"

    def wait(self, timeout: float = 30.0, left_after: float = 2.0) -> int:
        """Wait for its end, and then for that of everything that it started.

        Args:
            timeout: Seconds for the program; then its threads' stacks are in the failure's text.
            left_after: Seconds for its children, from the program's end (section 6).
        """
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            alive = self.processes()
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes all stacks
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            self.end()
            who = "".join(f"\n  {process}" for process in alive)
            pytest.fail(f"still running after {timeout:g} s:{who}{self.report()}", pytrace=False)
        left = wait_until_empty(
            lambda: "\n  ".join(str(process) for process in self.processes()), left_after
        )
        if left:
            self.end()
            pytest.fail(f"left behind after its end:\n  {left}{self.report()}", pytrace=False)
        return code

    def end(self) -> None:
        """Kill it and its whole session."""
        for _ in range(20):  # a dying zygote may still have a child on its way
            alive = self.processes()
            if not alive:
                break
            for process in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)

    def report(self) -> str:
        return f"\n--- stdout\n{self.stdout[-4000:]}\n--- stderr\n{self.stderr[-12000:]}"


StartScript = Callable[..., Script]
RunScript = Callable[..., Script]


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[StartScript]:
    """start_script(code, *, flags=STRICT, env=None) -> Script, running.

    The code is a real `__main__` in a file, `import tasks` works in it, and src/ is not on its
    path. A script that is still running at the end of the test is killed.
    """
    scripts: list[Script] = []

    def start(
        code: str, *, flags: tuple[str, ...] = STRICT, env: dict[str, str] | None = None
    ) -> Script:
        folder = tmp_path / f"script{len(scripts)}"
        folder.mkdir()
        path = folder / "script.py"
        path.write_text(textwrap.dedent(code))
        search = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
        full = {**os.environ, "PYTHONPATH": search, **(env or {})}
        scripts.append(Script(path, folder, flags, full))
        return scripts[-1]

    yield start
    for script in scripts:
        script.end()


@pytest.fixture
def run_script(start_script: StartScript) -> RunScript:
    """run_script(code, timeout=30, *, expect=0, ...) -> Script, ended.

    Fails if the exit code is not `expect` (None: any), or if anything of it is left.
    """

    def run(
        code: str, timeout: float = 30.0, *, expect: int | None = 0, **options: object
    ) -> Script:
        script = start_script(code, **options)
        exit_code = script.wait(timeout)
        assert expect in (None, exit_code), f"exit code {exit_code}{script.report()}"
        return script

    return run

"""Every cell of the table of faults: a failure at one stage of a task's life, and what is promised.

The table is `faults.CELLS`. Here is how each promise is held, under each start method, ordered and
unordered, at a random item of a map whose other items shall not notice. The witness that nothing
ran twice is a log that the tasks write themselves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import faults
import forkmill as fm
import tasks
from faults import CELLS, LARGE, MARK, Cell, Fault
from methods import MATRIX

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    # The pools are the module's: they start their threads when they need them.
    pytest.mark.unbalanced("threads"),
]

ITEMS = 40
TIMEOUT = 0.3
ENDS = {
    # how a worker ends: (exit code, signal)
    "os._exit(0)": (0, None),
    "os._exit(3)": (3, None),
    "half a frame": (3, None),
    "SIGSEGV": (None, "SIGSEGV"),
    "SIGKILL": (None, "SIGKILL"),
    "abort": (None, "SIGABRT"),
    "closed descriptors": (70, None),
}


def cells(
    *promises: str,
    stages: tuple[str, ...] = tuple(faults.STAGES),
    only: Sequence[Cell] = CELLS,
    but: Sequence[Cell] = (),
) -> Any:
    """Parametrize over the cells that promise one of these."""
    found = [c for c in only if c.promise in promises and c.stage in stages and c not in but]
    assert found
    return pytest.mark.parametrize("cell", found, ids=str)


ordered = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
methods = pytest.mark.parametrize("method", MATRIX)
IN_A_MAP = (
    "its error", "refused", "unsendable", "unreadable", "no memory", "died", "timeout", "torn",
    "either", "unplugged", "late",
)  # fmt: skip
OF_A_TASK = ("send", "decode", "run", "encode result", "send result")


@pytest.fixture(scope="module", params=MATRIX)
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    # The initializer loads this module: no task's timeout shall count that.
    with fm.ProcessPool(
        2, start_method=request.param, restarts=(10**6, 10.0), initializer=faults.as_new
    ) as made:
        made.each(faults.as_new)
        yield made


@pytest.fixture(autouse=True)
def as_good_as_new(request: pytest.FixtureRequest) -> Iterator[None]:
    """The pool of the module goes on after each test, with all its workers and exact figures."""
    yield
    if "pool" in request.fixturenames:
        check_pool(request.getfixturevalue("pool"))


def check_pool(pool: fm.ProcessPool) -> None:
    assert len(set(pool.each(faults.as_new))) == 2
    stats = pool.stats()
    assert (stats.state, stats.alive) == ("open", 2)
    assert stats.accepted == stats.outcomes + stats.backlog + stats.in_flight
    tasks.eventually(lambda: pool.stats().accepted == pool.stats().outcomes)


def state_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def go_on(pool: fm.ProcessPool) -> None:
    for worker in pool.workers():
        if worker.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)


# ------------------------------------------------------------------ what a task's outcome may be


def is_right(outcome: object) -> bool:
    return outcome in (MARK, bytes(LARGE)) or isinstance(outcome, Fault)


def is_death(outcome: object, cell: Cell) -> bool:
    return (
        isinstance(outcome, fm.WorkerDied)
        and outcome.cause == "exit"
        and (outcome.exitcode, outcome.signal_name or None) == ENDS[cell.failure]
    )


def is_its_error(outcome: object, cell: Cell) -> bool:
    kinds = {
        "raise": ValueError,
        "ENOMEM": MemoryError,
        "EMFILE": OSError,
        "EAGAIN from fork": BlockingIOError,
    }
    return isinstance(outcome, kinds[cell.failure])


def is_refusal(outcome: object, cell: Cell) -> bool:
    return isinstance(outcome, fm.SerializationError)


def is_unplugged(outcome: object, cell: Cell) -> bool:
    closed = isinstance(outcome, OSError) and outcome.errno == errno.EBADF
    return closed or is_death(outcome, cell)


def is_timeout(outcome: object, cell: Cell) -> bool:
    return isinstance(outcome, fm.TaskTimeout)


def is_torn(outcome: object, cell: Cell) -> bool:
    if cell.failure == "half a frame":
        return is_death(outcome, cell)
    return isinstance(outcome, fm.WorkerDied) and outcome.cause == "protocol"


# promise: (what the outcome of the task that is struck may be, whether it may be right as well)
OUTCOMES = {
    "its error": (is_its_error, False),
    "refused": (is_refusal, False),
    "unsendable": (is_refusal, False),
    "unreadable": (is_refusal, False),
    "no memory": (is_its_error, False),
    "died": (is_death, False),
    "timeout": (is_timeout, False),
    "torn": (is_torn, True),
    "either": (is_death, True),
    "unplugged": (is_unplugged, True),
    "late": (is_timeout, True),
    "right": (lambda outcome, cell: False, True),
}


def strike_a_map(
    pool: fm.ProcessPool,
    cell: Cell,
    ordered: bool,
    folder: Path,
    dice: random.Random,
    limit: float = TIMEOUT,
) -> None:
    """A map with one item that strikes; everybody else's outcome is right, nothing runs twice."""
    log = tasks.Log(folder)
    place = dice.randrange(ITEMS)
    items: list[Any] = list(range(ITEMS))
    items[place] = Fault(cell.stage, cell.failure, log.path, dice.choice((0, dice.random() / 300)))
    before = pool.stats()
    view = pool.options(timeout=limit) if cell.promise in ("timeout", "late") else pool
    results = list(
        view.map(
            partial(faults.work, log.path),
            items,
            ordered=ordered,
            return_exceptions=True,
            chunksize=dice.choice((None, 1, 7)),
        )
    )
    await_strike(pool, cell, before)
    expected, may_be_right = OUTCOMES[cell.promise]
    odd = [r for r in results if not (type(r) is int and -ITEMS < r <= 0)]
    struck = [r for r in odd if not is_right(r)]
    if limit == TIMEOUT and sum(isinstance(r, fm.TaskTimeout) for r in struck) > 1:
        # All items have the same limit: the machine may have stood still for that long.
        strike_a_map(pool, cell, ordered, folder, dice, 10 * TIMEOUT)
        return
    assert len(results) == ITEMS
    assert all(expected(r, cell) for r in struck), struck
    assert may_be_right or len(struck) == 1, odd
    if cell.promise != "torn":
        assert len(struck) <= 1, struck
    if ordered:
        assert all(r == -i for i, r in enumerate(results) if r not in odd)
    right = [r for r in results if r not in odd]
    assert len(set(right)) == len(right), "an outcome came twice"
    counts = log.counts()
    assert set(counts.values()) == {1}, counts
    assert len(right) + len(odd) == ITEMS


def await_strike(pool: fm.ProcessPool, cell: Cell, before: fm.PoolStats) -> None:
    """What strikes beside the task may come after the map: nobody else shall meet it."""
    if cell.promise in ("torn", "either", "unplugged", "died"):
        tasks.eventually(lambda: pool.stats().deaths > before.deaths)
    elif cell.promise == "late":

        def struck() -> bool:
            stopped = any(state_of(w.pid) == "T" for w in pool.workers() if w.pid)
            return stopped or pool.stats().timeouts > before.timeouts

        tasks.eventually(struck)
        go_on(pool)
    elif cell.failure == "EAGAIN from fork":  # for good: no other test shall get that worker
        pids = pool.each(tasks.pid)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        tasks.eventually(lambda: pool.stats().deaths >= before.deaths + 2)


def dice_for(what: object) -> random.Random:
    seed = random.randrange(1 << 30)
    print("seed:", what, seed)
    return random.Random(seed)


@pytest.mark.scenario(1, 4, 5, 9, 10, 12, 13, 17, 24)
@ordered
@cells(*IN_A_MAP)
def test_one_item_of_a_map(pool: fm.ProcessPool, cell: Cell, ordered: bool, tmp_path: Path) -> None:
    strike_a_map(pool, cell, ordered, tmp_path, dice_for(cell))


@pytest.mark.scenario(17)
@ordered
@cells("right", stages=("decode", "run", "encode result"))
def test_what_costs_nothing(
    pool: fm.ProcessPool, cell: Cell, ordered: bool, tmp_path: Path
) -> None:
    strike_a_map(pool, cell, ordered, tmp_path, dice_for(cell))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.scenario(1, 4, 5, 9, 10, 12, 13, 17, 24)
@ordered
@cells(*IN_A_MAP)
def test_one_item_of_a_map_again_and_again(
    pool: fm.ProcessPool, cell: Cell, ordered: bool, tmp_path: Path
) -> None:
    for _ in range(faults.REPEATS):
        strike_a_map(pool, cell, ordered, tmp_path, dice_for(cell))
        check_pool(pool)


# ------------------------------------------------------------------ what ends a map


@pytest.mark.scenario(4, 12)
@ordered
@cells("SystemExit", "at the caller")
def test_sys_exit(pool: fm.ProcessPool, cell: Cell, ordered: bool, tmp_path: Path) -> None:
    """It is a task's exception like any other, but that a map hands it to nobody as a value."""
    log = tasks.Log(tmp_path)
    place = dice_for(cell).randrange(ITEMS)
    fault = Fault(cell.stage, cell.failure, log.path)
    items: list[Any] = list(range(ITEMS))
    items[place] = fault
    seen: list[object] = []
    deaths = pool.stats().deaths
    with pytest.raises(SystemExit) as caught:
        for result in pool.map(
            partial(faults.work, log.path), items, ordered=ordered, return_exceptions=True
        ):
            seen.append(result)
    assert caught.value.code == 3
    if ordered and cell.stage != "encode":
        assert seen == [-i for i in range(place)]
    assert len(set(seen)) == len(seen)
    if cell.promise == "SystemExit":
        assert isinstance(pool.submit(faults.work, log.path, fault).exception(20), SystemExit)
    else:
        for _ in range(2):  # nothing of it is kept: the next one who asks gets the same
            with pytest.raises(SystemExit):
                pool.submit(faults.work, log.path, fault).result(20)
    assert pool.stats().deaths == deaths


# ------------------------------------------------------------------ callbacks


@ordered
@cells("logged")
def test_a_callback(
    pool: fm.ProcessPool,
    cell: Cell,
    ordered: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[object] = []
    called: list[int] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: shown.append(error))
    with tasks.Gate(tmp_path) as gate:
        # A future that is done is called back here, at once: its SystemExit would be this thread's.
        futures = [pool.submit(tasks.pass_gate, gate.path, i) for i in range(20)]
        for i, future in enumerate(futures):
            future.add_done_callback(lambda _, i=i: called.append(i))
            if i in (3, 4, 11):
                future.add_done_callback(lambda _: faults.strike(cell.failure))
            future.add_done_callback(lambda _, i=i: called.append(i))
    results = pool.map(tasks.negative, range(100), ordered=ordered)
    assert sorted(results) == sorted(-i for i in range(100))
    tasks.eventually(lambda: len(called) == 40)
    assert sorted(called) == sorted(list(range(20)) * 2)
    assert [future.result(20) for future in futures] == list(range(20))
    tasks.eventually(lambda: len(caplog.records) + len(shown) == 3)


# ------------------------------------------------------------------ on the way to a worker


@pytest.mark.scenario(1, 3, 24)
@ordered
@cells("sent again", "resumed")
def test_a_frame_on_its_way(
    pool: fm.ProcessPool, cell: Cell, ordered: bool, tmp_path: Path
) -> None:
    """The workers are stopped: frames lie in their pipes, cut off where the pipe is full."""
    log = tasks.Log(tmp_path)
    before = pool.stats()
    pids = [worker.pid for worker in pool.workers()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        tasks.eventually(lambda pid=pid: state_of(pid) == "T")
    try:
        results = pool.map(
            Padded(log), [(i, bytes(40_000)) for i in range(60)], ordered=ordered, chunksize=7
        )
        number = {"SIGSEGV": signal.SIGSEGV, "abort": signal.SIGABRT}.get(
            cell.failure, signal.SIGKILL
        )
        victims = {"resumed": [], "sent again": pids[:1]}[cell.promise]
        for pid in pids if cell.failure == "half a frame" else victims:
            os.kill(pid, number)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    values = list(results)
    assert sorted(values) == list(range(60))
    assert not ordered or values == list(range(60))
    assert set(log.counts().values()) == {1}
    stats = pool.stats()
    assert stats.died == before.died
    if cell.promise == "sent again":
        tasks.eventually(lambda: pool.stats().deaths > before.deaths)
    else:
        assert stats.deaths == before.deaths


class Padded(tasks.Noted):
    """Its items have some weight."""

    def __call__(self, item: tuple[int, bytes]) -> int:
        return -super().__call__(item[0])


WITHOUT_ROOM = [cell for cell in CELLS if cell.failure == "full /dev/shm"]


@pytest.mark.scenario(26)
@ordered
@cells("right", stages=("send", "send result"), but=WITHOUT_ROOM)
def test_what_costs_nothing_on_the_way(
    pool: fm.ProcessPool, cell: Cell, ordered: bool, tmp_path: Path
) -> None:
    before = pool.stats()
    if cell.failure == "small pipes":
        assert pool.each(faults.shrink_pipes) == [4096, 4096]
    elif cell.stage == "send result":
        strike_a_map(pool, cell, ordered, tmp_path, dice_for(cell))
    with no_descriptors() if cell.failure == "EMFILE" else contextlib.nullcontext():
        for size in (100, 5_000, 50_000, 1 << 20):
            data = [bytes([i]) * size for i in range(20)]
            results = list(pool.map(tasks.identity, data, ordered=ordered))
            assert sorted(results) == data
            assert not ordered or results == data
    assert pool.stats().deaths == before.deaths


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Whatever this process opens in here fails with EMFILE."""
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


@pytest.mark.scenario(26)
@methods
@cells("right", stages=("send", "send result"), only=WITHOUT_ROOM)
def test_large_values_without_room(run_script: Any, cell: Cell, method: str) -> None:
    """Their shared memory is a file in a /dev/shm that is full: they go through the pipe."""
    script = run_script(
        f"""
        import errno, faults, tasks, forkmill as fm
        faults.deny("memfd_create", error=errno.ENOSYS)
        if not faults.small_dev_shm(3 << 20):
            print("skipped")
            raise SystemExit
        with fm.ProcessPool(2, start_method={method!r}) as pool:
            with open("/dev/shm/full", "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)): pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC
            for ordered in (True, False):
                if {cell.stage == "send"}:
                    data = [bytes([i]) * (i << 16) for i in range(12)]
                    results = list(pool.map(tasks.length, data, ordered=ordered))
                    assert sorted(results) == [i << 16 for i in range(12)]
                else:
                    sizes = [1 << 18] * 12
                    results = list(pool.map(tasks.payload, sizes, ordered=ordered))
                    assert results == [bytearray(1 << 18)] * 12
                pool.submit(tasks.die, "kill").exception()
        """
    )
    if "skipped" in script.stdout:
        pytest.skip("no mounts of our own are allowed here")


# ------------------------------------------------------------------ births


@pytest.mark.scenario(8)
@methods
@cells("init")
def test_an_initializer(cell: Cell, method: str, tmp_path: Path) -> None:
    """Told once, with its traceback; no loop of births."""
    log = tasks.Log(tmp_path)
    with fm.ProcessPool(
        2,
        start_method=method,
        initializer=faults.strike_once,
        initargs=(cell.failure, log.path),
    ) as pool:
        with pytest.raises(fm.InitError) as caught:
            for _ in range(10**6):
                pool.submit(pow, 2, 3).result(20)
        if cell.failure == "raise":
            assert "struck" in str(caught.value)
        for ordered in (True, False):
            with pytest.raises(fm.InitError):
                list(pool.map(abs, [1], ordered=ordered))
        stats = pool.stats()
        assert (stats.state, stats.outcomes) == ("broken", stats.accepted)
    assert len(log.entries()) <= 8


@pytest.mark.scenario(26)
@methods
def test_no_descriptors_at_the_start(method: str) -> None:
    """A clean error with 0, 1, 2 ... descriptors to be had, until there are enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(map(int, os.listdir("/proc/self/fd")))
    gaps = [os.open(os.devnull, os.O_RDONLY)]
    while gaps[-1] < top:
        gaps.append(os.dup(gaps[0]))
    failed = 0
    try:
        for spare in range(0, 24, 1 if method == "fork" else 3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (gaps[-1] + 1 + spare, hard))
            try:
                pool = fm.ProcessPool(1, start_method=method)
            except OSError as error:
                assert error.errno == errno.EMFILE
                failed += 1
            else:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                pool.shutdown()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in gaps:
            os.close(fd)
    assert failed
    with fm.ProcessPool(1, start_method=method) as pool:
        assert pool.submit(pow, 2, 3).result() == 8


LOOK = """
import contextlib, errno, os, resource, sys
import faults, tasks, forkmill as fm
def look():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
def left(before):
    # A thread that was joined is in its table a moment longer.
    tasks.eventually(lambda: all(now <= was for now, was in zip(look(), before)), 5)
def refused(method):
    before = look()
    for _ in range(3):
        try:
            pool = fm.ProcessPool(2, start_method=method)
        except OSError as error:
            assert error.errno == errno.EAGAIN, error
        else:
            raise AssertionError("it started")
    left(before)
"""


@pytest.mark.scenario(26)
@pytest.mark.skipif(not faults.CAN_DENY, reason="no seccomp")
@methods
def test_no_process_at_the_start(run_script: Any, method: str) -> None:
    """EAGAIN from fork: OSError, and nothing is left."""
    run_script(
        f"""{LOOK}
with fm.ProcessPool(1) as warm:
    warm.submit(abs, 1).result()
faults.deny("clone", "clone3", "fork", "vfork", error=errno.EAGAIN)
refused({method!r})
"""
    )


BEYOND = f"""{LOOK}
if os.getuid():
    print("skipped")
    raise SystemExit
faults.become_somebody()
hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
"""


def run_beyond(run_script: Any, code: str) -> None:
    """As a user who has no other process, or not at all: limits are counted by user."""
    if "skipped" in run_script(BEYOND + code).stdout:
        pytest.skip("needs root, to be a user of one's own")


@pytest.mark.scenario(26)
@methods
def test_beyond_the_limit_on_processes_at_the_start(run_script: Any, method: str) -> None:
    run_beyond(
        run_script,
        f"""
with fm.ProcessPool(1) as warm:
    warm.submit(abs, 1).result()
resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
refused({method!r})
resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
with fm.ProcessPool(2, start_method={method!r}) as pool:
    assert list(pool.map(abs, range(100))) == list(range(100))
""",
    )


# What is true of a pool that lost one of two workers and gets no successor, until `allow()`.
FEWER = """
    victim = pool.workers()[0].pid
    error = pool.submit(tasks.die, "exit3").exception()
    assert isinstance(error, fm.WorkerDied), error
    for ordered in (True, False):
        results = pool.map(tasks.nap, [0.005] * 30, range(30), ordered=ordered)
        assert sorted(results) == list(range(30))
    stats = pool.stats()
    assert (stats.alive, stats.died, stats.deaths) == (1, 1, 1), stats
    tasks.eventually(lambda: pool.stats().trouble)
    assert pool.stats().trouble <= 10, stats  # pauses: no busy loop of births
    allow()
    tasks.eventually(lambda: pool.submit(int).result() == 0 and pool.stats().alive == 2)
"""


@pytest.mark.scenario(26)
@methods
def test_beyond_the_limit_on_processes_at_a_refill(run_script: Any, method: str) -> None:
    run_beyond(
        run_script,
        f"""
with fm.ProcessPool(2, start_method={method!r}) as pool:
    pool.each(tasks.pid)
    zygote = int(open(f"/proc/{{pool.workers()[0].pid}}/stat").read().rpartition(")")[2].split()[1])
    def limit(n):
        resource.prlimit(zygote, resource.RLIMIT_NPROC, (n, hard))
    allow = lambda: limit(hard)
    limit(1)
{FEWER}
""",
    )


@pytest.mark.scenario(26)
@methods
def test_no_descriptors_at_a_refill(run_script: Any, method: str) -> None:
    run_script(
        f"""{LOOK}
with fm.ProcessPool(2, start_method={method!r}) as pool:
    pool.each(tasks.pid)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no new one from here on
{FEWER}
"""
    )


SURROUNDINGS = {
    "closed standard streams": """
for fd in (0, 1, 2):
    os.close(fd)
sys.stdin = sys.stdout = sys.stderr = None
work()
""",
    "pidfd denied": """
faults.deny("pidfd_open", error=errno.ENOSYS if method == "zygote" else errno.EPERM)
work()
""",
    "memfd denied": """
faults.deny("memfd_create", error=errno.ENOSYS if method == "zygote" else errno.EPERM)
work()
""",
    "full /dev/shm": """
faults.deny("memfd_create", error=errno.ENOSYS)
if not faults.small_dev_shm(64 << 10):
    os.write(1, b"skipped")
    os._exit(0)
with open("/dev/shm/full", "wb", buffering=0) as file:
    with contextlib.suppress(OSError):
        while file.write(bytes(4096)): pass
work()
""",
}


@pytest.mark.scenario(17, 26)
@pytest.mark.skipif(not faults.CAN_DENY, reason="no seccomp")
@methods
@pytest.mark.parametrize("failure", SURROUNDINGS)
def test_a_pool_in_poor_surroundings(run_script: Any, method: str, failure: str) -> None:
    """It starts, works, loses a worker and gets another one as anywhere else."""
    script = run_script(
        f"""{LOOK}
method = {method!r}
def work():
    with fm.ProcessPool(2, start_method=method) as pool:
        for ordered in (True, False):
            results = list(pool.map(tasks.negative, range(2000), ordered=ordered))
            assert sorted(results) == [-i for i in reversed(range(2000))]
            assert not ordered or results[1999] == -1999
            assert pool.submit(tasks.identity, bytes(1 << 20)).result() == bytes(1 << 20)
            assert pool.submit(print, "noise").result() is None
            error = pool.submit(tasks.die, "segv").exception()
            assert isinstance(error, fm.WorkerDied) and error.signal_name == "SIGSEGV", error
            assert "Fatal Python error" in error.crash
        late = pool.options(timeout=0.05).submit(tasks.spin).exception()
        assert isinstance(late, fm.TaskTimeout), late
        assert len(set(pool.each(tasks.pid))) == 2
    left(before)
with fm.ProcessPool(1) as warm:
    warm.submit(abs, 1).result()
{SURROUNDINGS[failure].replace("work()", "before = look(); work()")}
os._exit(0)
"""
    )
    if "skipped" in script.stdout:
        pytest.skip("no mounts of our own are allowed here")


def test_the_table_is_whole() -> None:
    """Each stage and failure has a cell or a reason; each promise is made, and tested here."""
    known = {(cell.stage, cell.failure) for cell in CELLS}
    assert len(known) == len(CELLS)
    for stage in faults.STAGES:
        for failure in faults.FAILURES:
            assert (stage, failure) in known or faults.reason(stage, failure)
    assert {cell.promise for cell in CELLS} == set(faults.PROMISES)
    for _, test in faults.PROMISES.values():
        for name in test.split():
            assert callable(globals()[name])

"""Functions that tests send to workers, and what tests need to talk with them.

Workers import this module by name, so everything here works under every start method.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

METHODS = ("fork", "zygote", "spawn")

# ------------------------------------------------------------------ waiting, without sleeps


def eventually(holds: Callable[[], object], timeout: float = 20.0) -> None:
    """Wait until something holds that tells nobody when it begins to."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline  # before the look: we may stand still during it
        if holds():
            return
        assert not late, f"not true within {timeout:g} s: {holds}"
        time.sleep(0.001)


def within(seconds: float, attempt: Callable[[], float]) -> None:
    """Check a bound on time that is promised: of some attempts, which tell their seconds, one.

    A machine that stands still for that long does not do so each time; what takes too long does.
    """
    took = [attempt()]
    while took[-1] >= seconds and len(took) < 3:
        took.append(attempt())
    assert took[-1] < seconds, took


class Gate:
    """A gate that tasks wait at until the test opens it. The kernel does the waiting (flock).

    Picklable: `gate.path` is all that a task needs.
    """

    def __init__(self, folder: str | Path) -> None:
        fd, self.path = tempfile.mkstemp(dir=folder, prefix="gate")
        self._fd: int | None = fd
        fcntl.flock(fd, fcntl.LOCK_EX)

    def open(self) -> None:
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *exc: object) -> None:
        self.open()


# Whether `interpreter` means subinterpreters, each with a copy of the state; else it means threads.
SUBINTERPRETERS = sys.version_info >= (3, 14)


def pass_gate(path: str, value: Any = None) -> Any:
    """Wait until the gate is open, then return the value."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
    return value


@contextlib.contextmanager
def chatter(line: str) -> Iterator[None]:
    """A thread of this process prints the line all the time."""
    over = threading.Event()

    def chat() -> None:
        while not over.is_set():
            print(line, flush=True)

    thread = threading.Thread(target=chat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def fail_or_die_at(i: int) -> int:
    """Raise for 3000, die of 4000, return all others."""
    if i == 3000:
        raise ValueError(i)
    if i == 4000:
        os._exit(1)
    return i


# ------------------------------------------------------------------ who ran what, how often

_logs: dict[str, int] = {}
_ENTRY = struct.Struct("<i")


class Log:
    """What tasks note down themselves, one number a call: the witness of INV-2.

    Appended by one write(2) each to a file: no death, no race can lose or tear an entry.
    """

    def __init__(self, folder: str | Path) -> None:
        fd, self.path = tempfile.mkstemp(dir=folder, prefix="log")
        os.close(fd)

    def counts(self) -> collections.Counter[int]:
        data = Path(self.path).read_bytes()
        return collections.Counter(number for (number,) in _ENTRY.iter_unpack(data))

    def entries(self) -> list[int]:
        return [number for (number,) in _ENTRY.iter_unpack(Path(self.path).read_bytes())]


def note_here(path: str, number: int) -> int:
    """As note, but keeps no descriptor: for the test's own process."""
    with open(path, "ab", buffering=0) as file:
        file.write(_ENTRY.pack(number))
    return number


def noted_and_held(log: str, gate: str, item: int) -> int:
    """Say that it runs, and do so until the gate opens."""
    note_here(log, item)
    pass_gate(gate)
    return item


def note(path: str, number: int) -> int:
    """Write a number into a log."""
    fd = _logs.get(path)
    if fd is None:
        fd = _logs[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.write(fd, _ENTRY.pack(number))
    return number


DEATHS = ("kill", "exit0", "exit3", "segv", "abort")


def die(how: str) -> None:
    """End this worker without a word."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit0":
        os._exit(0)
    elif how == "exit3":
        os._exit(3)
    elif how == "segv":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    time.sleep(60)  # a signal may take a moment
    raise AssertionError(how)


class Noted:
    """Notes every item that it is called with; dies at some of them. Travels once a map."""

    def __init__(self, log: Log, deadly: dict[int, str] | None = None) -> None:
        self.path = log.path
        self.deadly = deadly or {}

    def __call__(self, item: int) -> int:
        note(self.path, item)
        how = self.deadly.get(item)
        if how is not None:
            die(how)
        return -item


class Spun(Noted):
    """A task of some 20 us."""

    def __call__(self, item: int) -> int:
        for _ in range(200):
            pass
        return super().__call__(item)


class Sized(Noted):
    """Its results have a size."""

    def __init__(self, log: Log, deadly: dict[int, str], size: int) -> None:
        super().__init__(log, deadly)
        self.size = size

    def __call__(self, item: int) -> object:
        return -super().__call__(item), b"x" * self.size


_plan: dict[str, Any] = {}


def set_plan(path: str, deadly: dict[int, str]) -> None:
    """Initializer: what `planned` shall do."""
    _plan.update(path=path, deadly=deadly)


def planned(item: int) -> int:
    """As Noted, but a plain function: sent once a worker, run by the fastest path."""
    note(_plan["path"], item)
    how = _plan["deadly"].get(item)
    if how is not None:
        die(how)
    return -item


# ------------------------------------------------------------------ small tasks


def identity(value: Any) -> Any:
    return value


_kept: dict[int, int] = {}


def keep_every_other(number: int) -> None:
    if number % 2:
        _kept[int(str(number))] = number


def kept() -> dict[int, int]:
    return _kept


class Adder:
    """A callable whose class has no vectorcall."""

    def __init__(self, more: int) -> None:
        self.more = more

    def __call__(self, number: float) -> float:
        return number + self.more


def negative(number: int) -> int:
    return -number


def multiply(x: int, y: int = 2) -> int:
    return x * y


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def fail(error: BaseException) -> None:
    raise error


def fail_at(numbers: tuple[int, ...], item: int) -> int:
    if item in numbers:
        raise ValueError(item)
    return item


def fail_chained() -> None:
    try:
        {}["missing key"]
    except KeyError as error:
        failure = ValueError("outer text")
        failure.add_note("a note of the task's")
        raise failure from error


def sleep_and_raise(seconds: float) -> None:
    time.sleep(seconds)
    raise ArithmeticError("after a sleep")


def nap(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def nap_at(deadly: tuple[int, ...], seconds: float, item: int) -> int:
    if item in deadly:
        time.sleep(seconds)
    return item


def spin() -> None:
    """Never end, never let the GIL go: sum() over an endless C iterator."""
    import itertools

    sum(itertools.repeat(0))


def spin_for(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def pid(*_args: Any) -> int:
    return os.getpid()


def pid_after(path: str) -> int:
    pass_gate(path)
    return os.getpid()


def environment(name: str) -> str | None:
    return os.environ.get(name)


def count_to(n: int) -> Iterator[int]:
    yield from range(n)


def count_and_fail(n: int) -> Iterator[int]:
    yield from range(n)
    raise LookupError("after the outputs")


def count_and_die(n: int) -> Iterator[int]:
    yield from range(n)
    die("kill")


def count_noting(path: str, n: int) -> Iterator[int]:
    """Note each number before it is sent, and -1 when closed."""
    try:
        for i in range(n):
            note(path, i)
            yield i
    finally:
        note(path, -1)


async def coroutine() -> int:
    import asyncio  # not above: each spawned worker would wait for it

    await asyncio.sleep(0)
    return 1


# ------------------------------------------------------------------ workers' own state

state: dict[str, Any] = {"ran": 0}


def set_state(**values: Any) -> None:
    state.update(values)


def initialize(path: str, value: Any) -> None:
    """Initializer: note our pid, remember the value."""
    note(path, os.getpid())
    state["value"] = value


def get_state(key: str) -> Any:
    return state.get(key)


class Finalize:
    """Finalizer: note our pid, negative."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> None:
        note(self.path, -os.getpid())


def initializer_raises() -> None:
    raise ValueError("the initializer's own words")


def initializer_hangs() -> None:
    time.sleep(600)


def initializer_exits() -> None:
    os._exit(7)


def grow(kib: int) -> int:
    """Make this worker's memory grow, for good."""
    state.setdefault("ballast", []).append(bytearray(os.urandom(1024)) * kib)
    return os.getpid()


def peak() -> int:
    """The most memory that this process ever had resident, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ------------------------------------------------------------------ objects that do not travel


class Unpicklable:
    """Cannot be pickled, also not by cloudpickle."""

    def __reduce__(self) -> Any:
        raise TypeError("this object refuses to be pickled")


class Holder:
    """Has something in an attribute."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock


def make_unpicklable(kind: str) -> Any:
    if kind == "lock":
        return threading.Lock()
    if kind == "nested":
        return [1, {"conn": Holder(threading.Lock())}]
    return Unpicklable()


def _explode(*_args: Any) -> Any:
    raise ImportError("unpickling went wrong")


class ExplodesOnLoad:
    def __reduce__(self) -> Any:
        return _explode, (1,)


class ExplodesInWorker:
    """Loads in the process that made it only."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __reduce__(self) -> Any:
        return _load_at_home, (self.home,)


def _load_at_home(home: int) -> Any:
    if os.getpid() != home:
        raise ImportError("not at home")
    return ExplodesInWorker()


class KillsOnLoad:
    """Its unpickling kills the process, unless that is the test's own."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __reduce__(self) -> Any:
        return _die_abroad, (self.home,)


def _die_abroad(home: int) -> Any:
    if os.getpid() != home:
        die("kill")
    return None


def make_exploding(_item: Any = None) -> Any:
    return ExplodesOnLoad()


class NeedsArguments(Exception):
    """Its __init__ takes other arguments than Exception.__reduce__ gives."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class Liar(Exception):
    """Reduces to something else."""

    def __reduce__(self) -> Any:
        return int, (5,)


class Stubborn(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("will not be reduced")


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Fine(Exception):
    """Round-trips with its attributes."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)
        self.extra = a + b


def raise_kind(kind: str) -> None:
    if kind == "needs":
        raise NeedsArguments(5, reason="a reason")
    if kind == "fine":
        raise Fine(1, 2)
    if kind == "liar":
        raise Liar("a lie")
    if kind == "stubborn":
        raise Stubborn("stubborn text")
    if kind == "bad text":
        raise BadText
    if kind == "lock inside":
        raise ValueError(threading.Lock())
    if kind == "huge":
        raise ValueError("x" * 10_000_000)
    if kind == "group":
        raise ExceptionGroup("several", [ValueError(1), Stubborn("inner")])
    if kind == "local":

        class Local(Exception):
            pass

        raise Local("of a local class")
    raise AssertionError(kind)


# ------------------------------------------------------------------ side effects


def run_child(code: int) -> int:
    import subprocess

    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"raise SystemExit({code})"]
    ).returncode


def fork_and_return() -> int:
    """Fork; both come back: only the worker's result may count."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return os.getpid()


def close_standard_streams() -> str:
    for fd in (0, 1, 2):
        os.close(fd)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.write(1, b"bytes that must not reach a channel")
    return "ok"


def print_noise() -> None:
    print("noise on stdout")
    print("noise on stderr", file=sys.stderr)


def print_lines(item: int) -> None:
    print(f"one {item}\ntwo {item}")
    print("three ", end="")
    print(item)
    print(f"bad {item}", file=sys.stderr)


def print_and_die() -> None:
    print("last words")
    die("kill")


def print_in_two_pools() -> None:
    import forkmill as fm

    with fm.ProcessPool(1, start_method="fork", tag_output=True, name="inner") as pool:
        pool.submit(print, "below").result()
    print("above")


def install_handlers() -> str:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir("/")
    os.umask(0o077)
    return "ok"


def open_inner_pool(workers: int | None) -> tuple[list[int], str]:
    import forkmill as fm

    with fm.ProcessPool(workers) as pool:
        return list(pool.map(negative, range(10))), pool.stats().state


# ------------------------------------------------------------------ arrays


def plus_one(n: int) -> int:
    return n + 1


def kind_of_seven(n: int) -> Any:
    """Each number gives a value of another kind; one in seven fails, one is complex."""
    kinds = (n, str(n) * 200, [n, (n,)], complex(n), {"n": n}, float(n))
    if n % 7 == 6:
        raise ValueError(n)
    return kinds[n % 7]


def double(array: Any) -> Any:
    assert array.flags.writeable
    array *= 2
    return array


def array_of(shape: tuple[int, ...], value: float) -> Any:
    import numpy as np

    return np.full(shape, value)


def array_facts(array: Any) -> tuple[Any, ...]:
    return array.shape, array.dtype.str, array.sum().item(), array.flags.writeable


def length(data: Any) -> int:
    return len(data)


def marks(data: Any) -> tuple[int, list[int]]:
    """A buffer's length and what `marked` has put into it."""
    view = memoryview(data).cast("B")
    return len(view), [view[place] for place in _places(len(view))]


def marked(size: int, mark: int) -> bytearray:
    """Zeros, which cost nothing until they are written to, but for some bytes at the edges."""
    data = bytearray(size)
    for place in _places(size):
        data[place] = mark
    return data


def _places(size: int) -> list[int]:
    edges = [0, 1, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, size // 2, size - 1]
    return sorted({place for place in edges if 0 <= place < size})


def scribble(seed: int) -> int:
    """Noise over what this worker shares with the pool: its slot's page, in random places."""
    dice = random.Random(seed)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:forkmill "):
                size = os.fstat(int(name)).st_size
                for _ in range(dice.randrange(1, 6)):
                    at = dice.choice((dice.randrange(0, 64, 8), dice.randrange(size)))
                    word = dice.choice((b"\0" * 8, b"\xff" * 8, dice.randbytes(8)))
                    os.pwrite(int(name), word, at)
    return seed


def payload(size: int) -> bytearray:
    return bytearray(size)


def exchange(data: bytearray, size: int) -> bytearray:
    assert len(data) == size
    return bytearray(size)


# ------------------------------------------------------------------ large values

_KEPT: list[Any] = []


def keep(value: Any) -> Any:
    """Give it back and keep it too."""
    _KEPT.append(value)
    return value


def kept_sum() -> int:
    return sum(int(value.sum()) for value in _KEPT)


def keep_the_end(array: Any) -> Any:
    """Give back the first of two halves, keep the other."""
    _KEPT.append(array[array.size // 2 :])
    return array[: array.size // 2]


def born_sum(n: int) -> int:
    """Of an array that was born here and does not leave."""
    import forkmill as fm

    array = fm.empty(n, "u1")
    array[...] = 7
    return int(array.sum())


def born_and_forked(n: int) -> tuple[int, int]:
    """The sums here and in a forked child, which writes to its own."""
    import forkmill as fm

    array = fm.empty(n, "u1")
    array[...] = 7
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        array[...] = 2
        os.write(write, str(int(array.sum())).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = int(os.read(read, 100))
    os.close(read)
    os.close(write)
    return int(array.sum()), theirs


def some_of(array: Any, *places: tuple[int, int]) -> list[Any]:
    """Parts of an array, each an array."""
    return [array[start:end] for start, end in places]


def _first(path: str) -> bool:
    """True at the first call with this path, in whatever process."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    except FileExistsError:
        return False
    return True


def add_one_then_fail(path: str, array: Any) -> Any:
    """Change it in place, and fail at the first try."""
    array += 1
    if _first(path):
        raise OSError("try again")
    return array


def add_one_then_die(path: str, array: Any) -> Any:
    """The same, with the worker's death."""
    array += 1
    if _first(path):
        die("kill")
    return array


def die_holding(array: Any) -> None:
    array += 1
    die("kill")


def die_while_answering(delay: float, size: int) -> bytes:
    """A large answer, and a kill that comes about when it is on its way."""

    def kill() -> None:
        time.sleep(delay)
        die("kill")

    data = bytes(size)
    threading.Thread(target=kill, daemon=True).start()
    return data


def arrays_forever(size: int) -> Iterator[Any]:
    import numpy as np

    for i in range(1_000_000):
        yield np.full(size, i % 251, np.uint8)


def fork_and_write(array: Any) -> tuple[bool, Any]:
    """Fork while the argument is here: the child's writes must not show, nor ours there."""
    there, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(there, 1)
        same = bool((array == array[0]).all())
        array[:] = 77
        os._exit(0 if same else 1)
    array[1:] = 55
    os.write(here, b"x")
    ok = os.waitpid(pid, 0)[1] == 0 and bool((array[1:] == 55).all())
    os.close(here)
    os.close(there)
    return ok, array


# ------------------------------------------------------------------ values in two memories


def numbers(size: int) -> Any:
    """An array of so many bytes."""
    import numpy

    return numpy.arange(size, dtype=numpy.uint8)


def text(size: int) -> bytes:
    """So many bytes that are not the same as those before them."""
    return bytes(bytearray((i * 7 + 3) & 255 for i in range(min(size, 256)))) * (size // 256 + 1)


def both(outside: int, inside: int) -> tuple[Any, bytes]:
    """A value with so many bytes out of band, and beside its pickle."""
    return numbers(outside), text(inside)


def each_both(sizes: list[tuple[int, int]]) -> Iterator[tuple[Any, bytes]]:
    for outside, inside in sizes:
        yield both(outside, inside)


def outcome_of_kind(item: tuple[str, int]) -> Any:
    kind, i = item
    if kind.endswith("failure"):
        raise ValueError(text(200_000 + i) if kind.startswith("long") else b"", i)
    return {
        "number": lambda: i,
        "text": lambda: f"item {i}",
        "long text": lambda: f"{i} " * 60_000,
        "small array": lambda: numbers(100 + i),
        "carried": lambda: numbers(100_000 + i),
        "both": lambda: both(100_000 + i, 150_000),
    }[kind]()


def numbered_outcome(item: tuple[str, int]) -> tuple[int, Any]:
    return item[1], outcome_of_kind(item)


# ------------------------------------------------------------ values that take Python to rebuild


class Laborious:
    """Sending and rebuilding it runs Python code, where signals are seen."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        return sum(range(20)), self.number

    def __setstate__(self, state: Any) -> None:
        _, self.number = state
        sum(range(20))


def stateful(number: int) -> Any:
    """In band and out of band, in the arena or not."""
    return [Laborious(number) for _ in range(100)], numbers((10, 80_000)[number % 2])


def is_stateful(value: Any, number: int) -> bool:
    rows, array = value
    return (
        len(rows) == 100
        and all(type(row) is Laborious and row.number == number for row in rows)
        and bool((array == numbers(len(array))).all())
    )


def fail_stateful(number: int) -> None:
    raise ValueError(stateful(number))


class Slow:
    """Rebuilding it takes until the gate is open."""

    gate = threading.Event()
    begun = threading.Event()

    def __init__(self, _: float) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.begun.set()
        self.gate.wait(20)

    def __getstate__(self) -> Any:
        return 1


def open_all_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    files = []
    while True:
        files.append(open(os.devnull))  # noqa: SIM115 - all there are

"""What is known of this process: its program, CPUs, threads and signals, and how it ends.

Threads: any.
"""

from __future__ import annotations

import _queue  # `queue` without heapq: every exec'd process imports us
import _signal  # type: ignore[import-not-found]  # `signal` without its enums
import _thread
import contextlib
import os
import sys
import threading
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType, TracebackType

__all__ = [
    "CARRIED",
    "DAEMON",
    "EARS",
    "GONE",
    "INSTALLED",
    "LATE",
    "OUR_THREADS",
    "SHARES",
    "STREAM",
    "TELLERS",
    "VIEWS",
    "VOICE",
    "Change",
    "KnownThread",
    "Latch",
    "LoneThread",
    "Signal",
    "before_exit",
    "cpus",
    "cpus_each",
    "end_first",
    "environment",
    "exit_failed",
    "has_arrow",
    "interrupted",
    "main",
    "namespace",
    "our_thread",
    "ours",
]

CO_VARARGS = 0x04  # of a code object, as `inspect` names it

# forkmill.codec.share, once it is loaded here: until then nobody looks for shared values.
SHARES: list[Any] = []

# contexts.lanes.emit.Raised, once it is loaded: as it exceptions travel with their tracebacks.
CARRIED: list[Any] = []

# What workers keep for codec/view.py, which those with plain functions never load: whether what
# comes with tasks is for this process's `__main__`; of the functions that are being loaded what
# came along with each; and what is there now that was not as at first.
receiving = False
VIEWS: list[dict[Any, Any]] = []
INSTALLED: dict[Any, Any] = {}


class _Gone:
    """What stands where there is nothing; one object, in every process."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return "GONE"


GONE: Any = _Gone()


def main() -> dict[str, Any]:
    """The globals of the program."""
    return vars(sys.modules["__main__"])


def namespace(module: str) -> dict[str, Any]:
    """The globals of a module."""
    return vars(sys.modules[module])


def environment() -> dict[str, str]:
    """The environment, which other threads may change meanwhile: then `dict(os.environ)` misses a
    name that it has just seen."""
    found = ((name, os.environ.get(name)) for name in list(os.environ))
    return {name: value for name, value in found if value is not None}


def has_arrow() -> bool:
    """Whether there can be Arrow objects in this process."""
    return "pyarrow.lib" in sys.modules


def ours(name: str) -> Any:
    """A module of ours that most workers do without, loaded now if it is not there.

    An exec'd process has no package around our modules, and must not load it for this: its
    __init__ pulls in all of the user's face.
    """
    known = _known.get(name)
    if known is not None:
        return known
    short, name, stand_in = name, f"{_PACKAGE}.{name}", None
    if _PACKAGE not in sys.modules and name not in sys.modules:
        stand_in = sys.modules[_PACKAGE] = type(sys)(_PACKAGE)
        stand_in.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    try:
        # It waits, if another thread imports it.
        known = _known[short] = __import__(name, fromlist=["_"])
        return known
    finally:
        if stand_in is not None and sys.modules.get(_PACKAGE) is stand_in:
            del sys.modules[_PACKAGE]


_PACKAGE = __name__.partition(".")[0]
_known: dict[str, Any] = {}  # what ours() has given

# forkmill.events, once it is loaded: until then nobody hears anything; what tells it what has
# happened to pools, asked while somebody hears all; and what hears tasks of other processes (their
# `listen` and `hear`), while somebody hears anything. What has begun without telling anybody begins
# to when there is somebody who hears all: LATE.
STREAM: list[Any] = []
TELLERS: dict[Callable[[], object], None] = {}
EARS: dict[Any, None] = {}
LATE: list[Callable[[], object]] = []

# The extension, once it is loaded: by it tasks of this process speak to the one that they work for,
# and what is large is copied.
VOICE: list[Any] = []

# Identifiers of our own Python threads: start_method="auto" does not count them.
OUR_THREADS: set[int] = set()


# Whether a thread of ours, which an exit hook ends, may be a daemon: not in a subinterpreter, where
# it is joined at the end, whatever has failed.
DAEMON: bool = getattr(_thread, "daemon_threads_allowed", lambda: True)()


@contextlib.contextmanager
def our_thread() -> Iterator[None]:
    """In here the calling thread is one of ours."""
    OUR_THREADS.add(_thread.get_ident())
    try:
        yield
    finally:
        OUR_THREADS.discard(_thread.get_ident())
        _forget_dummy()


class Signal:
    """What wakes one thread, from anywhere.

    `threading.Event` is Python: what a signal handler raises in it leaves its lock held for ever.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        if self._lock.locked():
            with contextlib.suppress(RuntimeError):  # another thread has set it meanwhile
                self._lock.release()

    def wait(self) -> None:
        """Wait until it is set. It is not set afterwards."""
        self._lock.acquire()


class Latch:
    """Something that comes to be, once; any number of threads may wait for it.

    Not an Event, as with `Signal`. The lock is open when it has come to be, and who got it
    opens it again by the first call of a `finally`: until that has returned nobody looks for
    signals. Opening it once too often does no harm.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Idempotent; who is broken off in it does it again."""
        self._is_set = True
        with contextlib.suppress(RuntimeError):  # it was set already
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for so many seconds; whether it is."""
        if not self._is_set and (timeout is None or timeout > 0):
            seconds = -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
            try:
                self._lock.acquire(timeout=seconds)
            finally:
                if self._is_set:
                    try:  # noqa: SIM105  # that would be another call before it
                        self._lock.release()
                    except RuntimeError:
                        pass
        return self._is_set


class Change:
    """What threads wait for that look at something under a lock; as a Condition.

    `threading.Condition` is Python: what a signal handler raises in it leaves the lock held, or a
    waiter in the list that is none any more, and then the next notice goes there. Here a thread is
    counted, under the lock, before it waits; who has changed something leaves a token for it,
    unless there is one for each. A token too many is a look for nothing. ::

        with lock:                      with lock:
            if there_is_some: ...           there_is_some = True
            change.expect()                 change.tell()
        change.wait(timeout)  # and look again

    Args:
        lock: A lock of C, not to be held in `wait`.

    Attributes:
        idle: How many threads wait, or are about to.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._tokens: _queue.SimpleQueue[None] = _queue.SimpleQueue()
        self.idle = 0

    def expect(self) -> None:
        """Under the lock: the caller is going to wait."""
        self.idle += 1

    def wait(self, timeout: float | None = None) -> None:
        """Until something has changed, or the time is over."""
        try:
            self._tokens.get(timeout=None if timeout is None else max(timeout, 0.0))
        except _queue.Empty:
            pass
        finally:
            with self._lock:
                self.idle -= 1

    def tell(self, most: int | None = None) -> None:
        """Under the lock: wake all, or so many. Before the change: a handler may raise here."""
        missing = self.idle - self._tokens.qsize()
        for _ in range(missing if most is None else min(most, missing)):
            self._tokens.put(None)


class LoneThread:
    """A thread of ours that runs a job once, however often, and however brokenly, it is started.

    `threading.Thread.start` is Python: what a signal handler raises in it leaves a thread that
    nobody knows, and one that fails as it begins. Here who starts may start again: of all that
    have begun, one runs the job. A daemon: an exit hook ends it, in its own time.
    """

    def __init__(self, job: Callable[[], object], name: str) -> None:
        self._job = job
        self._name = name
        self._claim = _thread.allocate_lock()  # taken for good by the one that runs
        self._end = Latch()
        self._asked = self._begun = False
        self._ident = 0

    @property
    def here(self) -> bool:
        """Whether this is the thread."""
        return self._ident == _thread.get_ident() and not self._end.is_set()

    @property
    def alive(self) -> bool:
        """Whether it runs, or is about to."""
        return self._begun and not self._end.is_set()

    @property
    def asked(self) -> bool:
        """Whether it was started, or was about to be."""
        return self._asked

    @property
    def begun(self) -> bool:
        """Whether it is known to have begun."""
        return self._begun

    def start(self) -> None:
        """Begin, unless it has begun.

        Raises:
            RuntimeError: There is no thread to be had.
        """
        if self._begun:
            return
        self._asked = True
        try:
            self._start()
        except RuntimeError:
            self._asked = False
            raise
        self._begun = True

    def _start(self) -> None:
        _thread.start_new_thread(self._enter, ())

    def _enter(self) -> None:
        if self._claim.acquire(blocking=False):
            self._begun = True
            with our_thread():
                threading.current_thread().name = self._name
                self._run()

    def _run(self) -> None:
        self._ident = _thread.get_ident()
        try:
            self._job()
        finally:
            del self._job  # it may lead here
            self._end.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its end, if it was to begin; whether it is over.

        Raises:
            RuntimeError: Its start was broken off, and there is no thread to be had.
        """
        if self._asked:
            self.start()  # who started it may have been interrupted before he could
        return not self._begun or self._end.wait(timeout)


class KnownThread(LoneThread):
    """A LoneThread that the user's code runs in, so it is one of `threading`: what looks for it
    there finds it (coverage, `current_thread`, a fork). It is not counted among our own.

    Where handlers may raise, in the main thread, it is another one that starts it.

    Attributes:
        thread: As `threading` knows it.
    """

    def __init__(self, job: Callable[[], object], name: str, *, daemon: bool = True) -> None:
        super().__init__(job, name)
        self.thread = threading.Thread(target=self._run, name=name, daemon=daemon)

    def _start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            _thread.start_new_thread(self._enter, ())
        else:
            self.thread.start()

    def _enter(self) -> None:
        if self._claim.acquire(blocking=False):
            self._begun = True
            with our_thread():
                try:
                    self.thread.start()
                except RuntimeError:  # no second thread is to be had: then this one
                    self.thread = threading.current_thread()
                    self._run()

    def join(self, timeout: float | None = None) -> bool:
        if not super().join(timeout):
            return False
        if type(self.thread) is threading.Thread and self.thread.ident is not None:
            self.thread.join(timeout)  # what is left of it is not the user's
        return True


def _forget_dummy() -> None:
    """Take a bare thread that ends out of `threading.enumerate()`.

    Whatever asks for `current_thread()` in one (`Thread.join`, a logger, a finalizer of the user)
    makes an entry for it, which before CPython 3.13 would stay for ever.
    """
    ident = _thread.get_ident()
    if isinstance(threading._active.get(ident), threading._DummyThread):  # type: ignore[attr-defined]
        with threading._active_limbo_lock:  # type: ignore[attr-defined]
            threading._active.pop(ident, None)  # type: ignore[attr-defined]


def interrupted(error: BaseException) -> bool:
    """Whether one of the program's signal handlers raised `error`, or what led to it.

    Python calls a handler between two bytecodes of whatever the main thread runs, so what it raises
    may come out of anything: of a `__setstate__` while a result is rebuilt, or a `__reduce__` while
    an argument is encoded. It says nothing about what it came out of, and is nobody's outcome: it
    belongs to the program, and what was going on can be begun anew.

    KeyboardInterrupt counts as such wherever it comes from: its handler leaves no trace.
    """
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        if isinstance(at, KeyboardInterrupt) or _from_handler(at):
            return True
        seen.add(id(at))
        at = _slot(at, "__cause__") or _slot(at, "__context__")
    return False


def _slot(error: BaseException, name: str) -> Any:
    """An exception's own, whatever its class makes of that name."""
    return vars(BaseException)[name].__get__(error)


def _from_handler(error: BaseException) -> bool:
    """Whether the way of an exception to here began in a signal handler."""
    step: TracebackType | None = _slot(error, "__traceback__")
    if step is None or _thread.get_ident() != threading.main_thread().ident:
        return False
    codes = _handlers()
    below: FrameType | None = None
    while step is not None:
        frame = step.tb_frame
        if frame.f_code in codes or _called_as_handler(frame, below):
            return True
        below, step = frame, step.tb_next
    return False


def _handlers() -> set[CodeType]:
    """The code of every signal handler that is installed now."""
    codes = set()
    for number in range(1, _signal.NSIG):
        # Of the C module: that of Python makes an enum of each, which is most of the time here.
        handler: Any = _signal.getsignal(number)
        if handler is None or type(handler) is int:  # not Python's, the default, ignored
            continue
        while hasattr(handler, "func"):  # a partial
            handler = handler.func
        handler = getattr(handler, "__func__", handler)
        if callable(handler) and not hasattr(handler, "__code__"):
            handler = type(handler).__call__
        code = getattr(handler, "__code__", None)
        if code is not None:
            codes.add(code)
    return codes


def _called_as_handler(frame: FrameType, below: FrameType | None) -> bool:
    """Whether a frame has what only a handler is called with: a number and the frame below it.

    A handler that has taken itself off is not among the installed ones any more.
    """
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + bool(code.co_flags & CO_VARARGS)]
    if (len(names) < 2 and not code.co_flags & CO_VARARGS) or _is_running(frame):
        return False  # before 3.13, looking at locals keeps what they are now: not of those
    frames = ours("_frames")  # of a thread that goes on, it may be
    values: list[Any] = []
    scope = frames.locals_of(frame)
    for name in names:
        value = scope.get(name)
        values.extend(value if type(value) is tuple else (value,))
    below_it = [known for known in (below, frames.back(frame)) if known is not None]
    return any(
        type(number) is int and any(at is known for known in below_it)
        for number, at in pairwise(values)
    )


def _is_running(frame: FrameType) -> bool:
    at: FrameType | None = sys._getframe(1)
    while at is not None and at is not frame:
        at = at.f_back
    return at is not None


# What is to be done at exit before any executor waits for its calls: what makes these calls.
_first: list[Callable[[], None]] = []


def warn_user(text: str) -> None:
    """Warn in the frame that called us."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__")):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def _is_ours(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] == "forkmill"


def before_exit(job: Callable[[], None]) -> None:
    """Have a job done when the interpreter ends, before the exit hooks of executors.

    Those are registered when the modules are first used: the order of registration says nothing.
    """
    if not _first:
        threading._register_atexit(end_first)  # type: ignore[attr-defined]
    _first.append(job)


def end_first() -> None:
    """The executors' exit hooks call this before all else. Each job is done once."""
    while _first:
        _first.pop()()


def exit_failed() -> bool:
    """Whether the interpreter ends because of an unhandled exception.

    At a prompt the last exception is an old story.
    """
    failed = hasattr(sys, "last_exc") or getattr(sys, "last_type", None) is not None
    return failed and not hasattr(sys, "ps1") and not sys.flags.interactive


def cpus() -> int:
    """How many CPUs this process may use: affinity, clipped by the cgroup's quota."""
    n = _affinity()
    quota = min(_quotas(), default=float(n))
    return max(1, min(n, int(quota + 0.999)))


def cpus_each(workers: int) -> int:
    """How many CPUs there are for each of so many workers, one at the least."""
    if _affinity() < 2 * workers:
        return 1  # whatever the quota: reading it takes a fifth of the way to a pool's fork
    return max(1, cpus() // workers)


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS
        return os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """CPU quotas of this process's cgroups and all above them (v2 and v1), in CPUs."""
    for line in _read("/proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            for place in _upwards("/sys/fs/cgroup", path):
                yield from _quota(_read(f"{place}/cpu.max").split())
        elif "cpu" in controllers.split(","):
            for place in _upwards("/sys/fs/cgroup/cpu", path):
                quota = _read(f"{place}/cpu.cfs_quota_us")
                yield from _quota([quota, _read(f"{place}/cpu.cfs_period_us")])


def _upwards(root: str, path: str) -> Iterator[str]:
    """A cgroup's directory and all above it. In a container the path may not exist here."""
    parts = [part for part in path.split("/") if part]
    for n in range(len(parts), -1, -1):
        yield "/".join([root, *parts[:n]])


def _read(path: str) -> str:
    # Every new pool looks: a file object would cost ten times as much.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.fsdecode(os.read(fd, 1 << 16)).strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


def _quota(words: list[str]) -> Iterator[float]:
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])  # "max" and -1: no quota

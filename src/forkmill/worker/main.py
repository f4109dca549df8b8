"""What a worker does around the loop in native/child.pxi: set-up, functions, failures, the end.

Guarantees:
    * User code runs under signals, streams and a collector that do not depend on what the user's
      process had set; nothing inherited is flushed twice, no hook of the parent runs here.
    * A function is loaded at its first task, after that was claimed: a blob that kills the process
      is charged to a task, one that raises fails its tasks and nothing else.
    * A worker that ends in order does what an interpreter does at its end, and a worker of the
      standard library: threads are joined, atexit's functions and multiprocessing's finalizers
      called, the parent's not. It leaves by os._exit, always.

Threads: the worker's first one.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` without its enums
import atexit
import faulthandler
import gc
import io
import os
import sys
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from .. import _native
from .._process import INSTALLED, ours
from ..codec import codec as _codec
from ..errors import SerializationError, SharedGone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

IN_WORKER = False
"""True inside a worker: a pool made there runs inline unless it is asked for workers."""

EXIT_REFUSED = 66  # the initializer failed; the REFUSAL record says how
EXIT_FAILED = 70  # a bug of ours, or the pool is gone in the middle of a write
_LEAVE_S = 10.0  # that a worker may take to leave, should nobody end it before
_FUNCTIONS = 512  # indexes that the pool uses (FM__FUNCTIONS)
_VALUE = b"fmshare1"  # what a shared value begins with; a function is a pickle


# What of a Config travels as it is to an exec'd process; `payload` carries the rest.
PLAIN = (
    "workers",
    "least",
    "restarts",
    "max_tasks",
    "max_rss_kb",
    "name",
    "threads",
    "method",
    "gc_enabled",
    "has_initializer",
    "tag_output",
    "logs",
    "signals",
    "parent",
    "family",
    "handed",
    "tracker",
)


# Plain classes: `dataclasses` would cost an exec'd process more than all of ours together.


class Config:
    """What a pool wants of its zygote and workers.

    Args:
        workers: How many, at most.
        least: How many at first; the pool asks for more. 0: all.
        initializer, initargs, finalizer: Run in each worker, first and last.
        inherit: Objects that are sent by reference (the same that the codec was given).
        restarts: (n, seconds): more abnormal deaths than n within so long break the pool.
        max_tasks: A worker retires after so many tasks; 0: never.
        max_rss_kb: ... or when it has more resident memory, KiB; 0: never.
        name: The pool's.
        tag_output: What workers print has the name and their pid before each line.
        logs: What workers log is forwarded, at these levels (worker/logs.py); None: it is not.
        codec: The pool's own; in exec'd modes each worker makes one.
        threads: Cap for the thread pools of BLAS and OpenMP; 0: leave them.
        keep_fds: Pipes and sockets that forked workers keep.
        arena_fd: The pool's shared memory for large values, or -1.
        method, gc_enabled, has_initializer, payload, argv, signals: Set by start_fork() and
            start_exec(); `payload` is inherit and the calls, encoded; `signals` what the user's
            program ignores and handles, two masks.
        flushed, stdin, caps, limits: Set by start_fork(): nothing that was printed is inherited;
            what becomes sys.stdin of workers, if it could be made; what their environment lacks;
            what libraries that they inherit are told (limits_of).
        parent, family: Set by both: the user's process, and what multiprocessing knows of it (see
            mp.family); () if it is not loaded there.
        handed, tracker: Set by encode(): descriptors for workers that the payload names, and
            the one of multiprocessing's resource tracker, or -1.
        reporter: Set in an exec'd zygote: how its workers report what they had to import.
        watcher: For a worker without multiprocessing. Made here, before the fork.
        pidfd: Set by both: whether the zygote can watch this process.
    """

    __slots__ = (*PLAIN, "arena_fd", "argv", "born", "caps", "codec", "finalizer", "flushed",
                 "inherit", "initargs", "initializer", "keep_fds", "limits", "payload", "pidfd",
                 "reporter", "stdin", "watcher")  # fmt: skip

    def __init__(
        self,
        workers: int,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        finalizer: Callable[[], object] | None = None,
        inherit: tuple[Any, ...] = (),
        restarts: tuple[int, float] = (3, 10.0),
        max_tasks: int = 0,
        max_rss_kb: int = 0,
        name: str = "",
        codec: Any = None,
        threads: int = 0,
        keep_fds: tuple[int, ...] = (),
        arena_fd: int = -1,
        method: str = "fork",
        gc_enabled: bool = True,
        has_initializer: bool = False,
        payload: Any = None,
        argv: Sequence[str] = (),
        least: int = 0,
        flushed: bool = True,
        stdin: Any = None,
        caps: Any = None,
        tag_output: bool = False,
        logs: Any = None,
        signals: tuple[int, int] = (0, 0),
        parent: int = 0,
        family: tuple[Any, ...] = (),
        handed: Sequence[int] = (),
        tracker: int = -1,
    ) -> None:
        self.workers = workers
        self.least = least or workers
        self.initializer = initializer
        self.initargs = initargs
        self.finalizer = finalizer
        self.inherit = inherit
        self.restarts = restarts
        self.max_tasks = max_tasks
        self.max_rss_kb = max_rss_kb
        self.name = name
        self.codec = codec
        self.threads = threads
        self.keep_fds = keep_fds
        self.arena_fd = arena_fd
        self.born: list[Any] = []
        self.method = method
        self.gc_enabled = gc_enabled
        self.has_initializer = has_initializer
        self.payload = payload
        self.argv = argv
        self.flushed = flushed
        self.stdin = stdin
        self.caps = caps
        self.limits: dict[str, int] = {}
        self.pidfd = True
        self.tag_output = tag_output
        self.logs = logs
        self.signals = signals
        self.parent = parent
        self.family = family
        self.handed = handed
        self.tracker = tracker
        self.reporter: Any = None
        self.watcher = _Watcher()


class _RetryCall:
    """A function whose exceptions of some classes ask for another try.

    The loop in native/child.pxi looks inside, so that a call costs no more than the function's own.
    """

    __slots__ = ("fn", "retry_on")

    def __init__(self, fn: Callable[..., Any], retry_on: tuple[type[BaseException], ...]) -> None:
        self.fn = fn
        self.retry_on = retry_on

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _RetryCall, (self.fn, self.retry_on)


class Worker:
    """What the loop asks Python for. The loop reads the attributes once, at its start."""

    retry_type = _RetryCall

    def __init__(self, codec: Any, max_tasks: int, max_rss_kb: int, reporter: Any = None) -> None:
        self.codec = codec
        self.dumps = codec.dumps_result
        self.loads = codec.loads
        self.max_tasks = max_tasks
        self.max_rss_kb = max_rss_kb
        self._reporter = reporter
        self._functions: dict[int, tuple[int, Any, Any, BaseException | None]] = {}
        self._blobs: dict[int, tuple[int, bytes]] = {}

    def define(self, index: int, serial: int, blob: bytes) -> None:
        """Keep a function's blob; an index is used again, so the table is bounded.

        A shared value comes the same way, if there is no other; it is kept elsewhere.
        """
        if blob.startswith(_VALUE):
            ours("codec.segment").receive(blob)
            return
        if index >= _FUNCTIONS:
            raise SerializationError(f"function index {index} is beyond {_FUNCTIONS - 1}")
        self._functions.pop(index, None)
        self._blobs[index] = (serial, blob)

    def lookup(self, index: int, _number: int = 0) -> Any:
        """The function of an index, loaded now if this is its first task.

        Raises:
            SerializationError: It could not be loaded; a fresh one for each task.
        """
        if index in self._blobs:
            serial, blob = self._blobs.pop(index)
            try:
                if self._reporter is None:
                    function, view = self.codec.load_with_view(blob)
                else:
                    with self._reporter:
                        function, view = self.codec.load_with_view(blob)
                self._functions[index] = (serial, function, view, None)
            except Exception as error:
                self._functions[index] = (serial, None, {}, error)
        if index not in self._functions:
            raise SerializationError(f"function {index} was never sent to worker {os.getpid()}")
        _, function, view, failure = self._functions[index]
        if type(failure) is SharedGone:
            raise SharedGone(*failure.args)
        if failure is not None:
            raise SerializationError(
                f"the task's function could not be loaded in worker {os.getpid()}: "
                f"{type(failure).__name__}: {failure}. Make its module importable there, or "
                "define the function where it can be sent by value (a lambda, __main__)."
            ) from failure
        if view or INSTALLED:
            _codec.enter(view)
        return function

    def failure(self, error: BaseException, retry_on: Any) -> tuple[bool, bytes]:
        """Encode a task's exception; whether it is worth another try."""
        try:
            again = bool(retry_on) and isinstance(error, retry_on)
        except Exception:  # a metaclass of the user's
            again = False
        return again, self.codec.dump_failure(error)

    def stray(self, error: BaseException | None) -> NoReturn:
        """End a process that a task forked and that came back to us (CHILD-2)."""
        status = 0
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            status = 1
            _complain("a process forked by a task failed", error)
        _flush_streams()
        os._exit(status & 0xFF)


def _complain(what: str, error: BaseException) -> None:
    """A warning on standard error; never raises."""
    with suppress(Exception):
        text = ours("codec.failures").format_error(error)
        print(f"forkmill: {what} (process {os.getpid()}):\n{text}", end="", file=sys.stderr)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  # a dozen pages less, in each new worker
            stream.flush()
        except Exception:  # None, closed, or nobody reads it
            pass


# ------------------------------------------------------------------------------------- stacks

# How a worker can be asked for what it is doing; who asks, and why in this way: worker/stacks.py.
# Signals that nobody else uses: no program means anything by them, no shell sends them.
TELL: int = getattr(_signal, "SIGRTMAX", 64) - 7  # faulthandler's
ASK, URGE = TELL - 1, TELL - 2  # Python's; the latter interrupts system calls
BEGIN, END = b"\1", b"\0"  # around what was written when asked; no text has them
STACKS = "forkmill-stacks"  # the unlinked file with the answers
SHOWS_STACKS = hasattr(os, "memfd_create") and hasattr(_signal, "pidfd_send_signal")


def offer_stacks() -> None:
    """In a worker's main thread: from now on it can be asked."""
    if not SHOWS_STACKS:
        return
    try:  # not suppress(): its calls would cost a new worker a dozen pages
        fd = os.memfd_create(STACKS, os.MFD_CLOEXEC)  # for life
        for number in (ASK, URGE):
            _signal.signal(number, partial(answer, fd))
        _signal.siginterrupt(ASK, False)
        faulthandler.register(TELL, fd, all_threads=True)
    except (OSError, RuntimeError):
        pass  # no descriptor left: then nobody can look


def answer(fd: int, *_signal_and_frame: object) -> None:
    """Write the stacks of all threads; the first line is our own."""
    os.write(fd, BEGIN)
    faulthandler.dump_traceback(fd, all_threads=True)
    os.write(fd, END)


# ------------------------------------------------------------------------------------- set-up


_GROUP_SIGNALS = (
    _signal.SIGINT, _signal.SIGPIPE, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT,
    _signal.SIGUSR1, _signal.SIGUSR2,
)  # fmt: skip


def ignore_signals(handled: int) -> None:
    """In an exec'd zygote: what the user's program handles may reach it, too."""
    for number in _GROUP_SIGNALS[4:]:
        if handled >> number & 1:
            _signal.signal(number, _signal.SIG_IGN)


def sane_streams() -> None:
    """Standard input is /dev/null, and so is what the user had closed.

    A task must not eat what is typed for the user's process, and none of our descriptors may ever
    get one of the numbers 0 to 2.
    """
    null = _native.null()
    for fd in (0, 1, 2):
        if fd:
            try:
                os.fstat(fd)
                continue
            except OSError:
                pass
        os.dup2(null, fd, inheritable=True)
    os.close(null)
    # The old object may hold what the parent had read ahead.
    sys.stdin = null_input()


_null_input: Any = None


def null_input() -> Any:
    """A text stream of descriptor 0, for processes where that is /dev/null; None: it is closed.

    Made once, in the user's process, which never reads from it: in a worker it would cost as much
    as all the rest of the set-up.
    """
    global _null_input
    if _null_input is None:
        with suppress(OSError):
            _null_input = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for life
    return _null_input


def drop_buffered() -> None:
    """Throw away what the parent had printed and not flushed: it will flush its own copy.

    A thread of it that was inside a write at the fork held the buffer's lock, which nobody here
    would ever release. So the buffer is made anew, in place: who knows who refers to it.
    """
    streams = {id(s): s for s in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) if s}
    null = _native.null()
    for stream in streams.values():
        try:
            fd = stream.fileno()
            buffer = getattr(stream, "buffer", None)
            if type(buffer) is io.BufferedWriter:
                io.BufferedWriter.__init__(buffer, buffer.raw)
            saved = os.dup(fd)
        except (OSError, ValueError, AttributeError):
            continue
        inheritable = os.get_inheritable(fd)
        os.dup2(null, fd)
        try:
            stream.flush()
        except Exception:
            pass
        finally:
            os.dup2(saved, fd, inheritable=inheritable)
            os.close(saved)
    os.close(null)


def know_environment(added: dict[bytes, bytes]) -> None:
    """Have os.environ know what the zygote has added to the environment."""
    try:
        os.environ._data.update(added)  # type: ignore[attr-defined]
    except AttributeError:  # not CPython's any more; adding them once more costs 50 pages
        os.environb.update(added)


# What each library reads when it is loaded, the first that is set.
_LIMITS = {
    "openblas": ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"),
    "openmp": ("OMP_NUM_THREADS",),
    "mkl": ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    "blis": ("BLIS_NUM_THREADS", "OMP_NUM_THREADS"),
    "numexpr": ("NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS"),
}


def limits_of(environment: Callable[[str], str]) -> dict[str, int]:
    """What an environment says of each library, 0: nothing; or {}, where none is loaded.

    In the user's process, before the fork: as much to do in each worker would copy 40 pages there.
    """
    modules = sys.modules
    if not (_native.has_limits() or "pyarrow.lib" in modules or "numexpr" in modules):
        return {}
    return {name: _first_number(name, environment) for name in _LIMITS}


def limit_libraries(limits: dict[str, int]) -> None:
    """Have the libraries that were inherited do what this process's environment says.

    They read it when they were loaded, in the user's process. In an exec'd one there is nothing
    to do: they are loaded after it was set.

    Args:
        limits: Of limits_of(), not empty.
    """
    _native.limit_libraries(limits["openblas"], limits["openmp"], limits["mkl"], limits["blis"])
    # Two that have no such call but their own in Python.
    arrow = sys.modules.get("pyarrow.lib")
    if arrow is not None and limits["openmp"]:
        with suppress(Exception):
            arrow.set_cpu_count(limits["openmp"])
    numexpr = sys.modules.get("numexpr")
    if numexpr is not None and limits["numexpr"]:
        with suppress(Exception):
            numexpr.set_num_threads(limits["numexpr"])


def _first_number(library: str, environment: Callable[[str], str]) -> int:
    """The first of a library's that is a number. OMP_NUM_THREADS may be a list."""
    for name in _LIMITS[library]:
        word = environment(name).partition(",")[0].strip()
        if word.isdecimal() and 0 < int(word) < 1 << 16:
            return int(word)
    return 0


def _forget_parent() -> None:
    """State of libraries that must not be shared with the parent or between siblings."""
    threading = sys.modules.get("threading")
    if threading is not None:  # older ones leave the parent's number there
        threading._main_thread._set_native_id()
    asyncio = sys.modules.get("_asyncio")
    if asyncio is not None:
        asyncio._set_running_loop(None)
    # `random` is seeded anew by its own fork hook; numpy's global generator has none.
    random = sys.modules.get("numpy.random")
    if random is not None:
        with suppress(Exception):
            random.seed()


def _load_payload(config: Config) -> None:
    """In exec'd modes: rebuild codec, initializer and the rest from their bytes."""
    inherit, calls = config.payload
    config.payload = None
    with config.reporter or nullcontext():
        config.inherit = _codec.Codec("exec", (), None).loads(*inherit)
        config.codec = _codec.Codec("exec", config.inherit, None)
        config.initializer, config.initargs, config.finalizer = config.codec.loads(*calls)


def main(config: Config, ends: tuple[int, int, int], slot: int = 0) -> int:
    """Be a worker. Returns the exit code; the caller leaves by os._exit.

    Args:
        config: What the pool wants of its workers.
        ends: Read end of the task pipe, write end of the result pipe, slot memory.
        slot: Our place in the pool, from 0.
    """
    global IN_WORKER
    IN_WORKER = True
    _codec.receive()
    port = _native.Port(*ends)
    port.install_signals(*config.signals)
    if config.arena_fd >= 0:
        port.share(config.arena_fd)
    faulthandler.enable(port.crash_fd, all_threads=True)
    offer_stacks()
    _forget_parent()
    if config.method == "fork":
        _forget_exit()
    if config.tag_output:
        ours("worker.output").tag(config.name)
    if config.gc_enabled:  # the zygote's fork has switched it off
        gc.enable()
    status = [EXIT_FAILED]
    _as_multiprocessings(config, slot, partial(_run, config, port, slot, status))
    _leave()
    return status[0]


def _run(config: Config, port: Any, slot: int, status: list[int]) -> None:
    """The worker's life; `status` gets the exit code."""
    if not _start(config, port, slot):
        _end()
        status[0] = EXIT_REFUSED
        return
    try:
        port.serve(Worker(config.codec, config.max_tasks, config.max_rss_kb, config.reporter))
    except BrokenPipeError:
        os._exit(EXIT_FAILED)  # nobody reads: the pool is gone
    port.retire()  # who ends in order is no casualty
    _end()
    _finish(config)
    status[0] = 0


def _start(config: Config, port: Any, slot: int) -> bool:
    """Run the initializer; False if it failed, which the pool has been told then."""
    try:
        before = None if config.logs is None else ours("worker.logs").inherited()
        if config.payload is not None:
            _load_payload(config)
        if config.initializer is not None:
            config.initializer(*config.initargs)
            if port.forked:
                os._exit(0)  # the initializer forked, and this is the child
            _flush_streams()
        if config.logs is not None:
            ours("worker.logs").forward(config.logs, before, f"{config.name}-{slot}")
        if config.initializer is not None:
            port.say(_native.WHAT_HELLO)
        return True
    except BaseException as error:
        if port.forked:
            os._exit(1)
        if not config.has_initializer:
            # Without an initializer the pool waits for no word: it is inherit= that failed.
            _complain("what inherit= names could not be loaded", error)
        port.say(_native.WHAT_REFUSAL, _failure_codec(config).dump_failure(error))
        return False


def _failure_codec(config: Config) -> Any:
    if config.codec is not None:
        return config.codec
    return _codec.Codec("exec", (), None)


def _finish(config: Config) -> None:
    if config.finalizer is not None:
        try:
            config.finalizer()
        except BaseException as error:
            _complain("the finalizer failed", error)


# ------------------------------------------------------------------------ an orderly end


def _end() -> None:
    """The worker begins to leave. What user code has registered for that may take its time, but
    not for ever: who ends the pool has a ladder, and for those that leave by themselves the
    process has an end of its own."""
    late = _native.thread_states() > 1 or atexit._ncallbacks() > _own_exits
    if _own_exits and not late:
        finalizers = sys.modules["multiprocessing.util"]._finalizer_registry
        late = bool(finalizers or sys.modules["multiprocessing.process"]._children)
    _native.ending(_LEAVE_S if late else 0.0)


def _leave() -> None:
    """What an interpreter does at its end, and a worker of the standard library: join threads that
    are no daemons, call what atexit was given. What raises is told, and nothing else."""
    threading = sys.modules.get("threading")
    if threading is not None:
        main = threading.main_thread()
        if getattr(main, "_tstate_lock", main) is None:
            # Forked from a thread that threading has not made, which CPython < 3.13 takes for one
            # that is over: a child by cow_fork, a callback of C code.
            main._set_tstate_lock()
        try:
            threading._shutdown()  # also ends what pools were made here
        except BaseException as error:
            _complain("a hook of threading's failed at the worker's end", error)
    _disown_finalizers()
    atexit._run_exitfuncs()
    _flush_streams()


# Of weakref.finalize objects: those up to here are the parent's.
_last_of_parent = -1
_own_exits = 0  # functions that atexit was given by us: multiprocessing's


def _forget_exit() -> None:
    """In a forked worker: what the parent has registered for its own end is not ours to call."""
    global _last_of_parent, _own_exits
    atexit._clear()
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        atexit.register(util._exit_function)
        _own_exits = 1
    # Threads of its executors, which theirs are told to join at the end: one of them may have made
    # the pool, and is this one here.
    for kind, table in (("thread", "_threads_queues"), ("process", "_threads_wakeups")):
        theirs = getattr(sys.modules.get(f"concurrent.futures.{kind}"), table, None)
        if theirs:
            theirs.clear()
    finalize = sys.modules["weakref"].finalize
    try:
        _last_of_parent = next(finalize._index_iter)
        finalize._registered_with_atexit = False
    except AttributeError:  # not CPython's any more: then those made here are not called
        pass


def _disown_finalizers() -> None:
    if _last_of_parent >= 0:
        for info in list(sys.modules["weakref"].finalize._registry.values()):
            if info.index <= _last_of_parent:
                info.atexit = False


# ------------------------------------------------------------------------ multiprocessing


class _Watcher:
    """Stands before the finders: should multiprocessing be imported, it learns whose worker this
    is. It finds nothing else."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def watch(self, config: Config, slot: int, names: set[str]) -> None:
        self._config, self._slot, self._names = config, slot, names
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self._names:
            return None
        self._names.discard(name)
        birth = _birth(self._config, self._slot)
        return birth.watched_spec(name, path)


def _as_multiprocessings(config: Config, slot: int, run: Callable[[], None]) -> None:
    """Run what a worker does as a process of multiprocessing's, should that ever be imported."""
    # A zygote imports for its workers what one of them had to: perhaps one of the two only.
    there = "multiprocessing.context" in sys.modules
    missing = set() if there else {"multiprocessing.context"}
    if config.tracker >= 0 and "multiprocessing.resource_tracker" not in sys.modules:
        missing.add("multiprocessing.resource_tracker")
    if missing:
        config.watcher.watch(config, slot, missing)
    if there:
        _birth(config, slot).bootstrap(run)
    else:
        run()


def _birth(config: Config, slot: int) -> Any:
    birth = ours("worker.mp").Birth
    return birth(config.method, slot, config.parent, config.family, config.tracker)

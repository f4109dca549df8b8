"""The zygote: a process of one thread from which workers are born, and which collects their dead.

::

    user's process ──control socket── zygote ──fork or spawn──▶ worker
           ▲  BORN + 4 descriptors, DIED, TROUBLE, BROKEN ◀──┘
           └──▶ KILL, STOP, GROW, RETIRE

Guarantees:
    * A worker that dies is reported and replaced at once, with nobody awake in the user's process.
    * More than `restarts` allows: BROKEN, and no more replacements (a fork bomb ends by itself).
    * It ends when the user's process ends (its pidfd, else the socket's end), and its workers with
      it: they are killed by the kernel when it dies (PDEATHSIG) or find their channel closed.
Invariants:
    * Only the zygote signals and reaps workers. It holds the zombie until it has forgotten the
      pid, so no signal ever hits a stranger.
    * Between two turns of the loop it holds no channel end of a living worker (but on Darwin,
      where descriptors in flight can be lost with their sender's copy).

Threads: one. In the user's process: start_fork() and start_exec(), any thread.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` without its enums
import gc
import marshal
import os
import pickle
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from . import _codec, _native, _worker
from ._worker import EXIT_FAILED, EXIT_REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_GRACE = 0.5  # seconds between the rungs of the ladder
_BACKOFF = (0.05, 0.2, 0.8, 2.0)  # seconds to the next try of a birth that failed
_REFUSED_PAUSE = 0.25  # the pool breaks meanwhile: the initializer is not run in a loop
_NEVER = float("inf")
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# What of a Config travels as it is to an exec'd process; `payload` carries the rest.
_PLAIN = (
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
)
_DARWIN = sys.platform == "darwin"


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
        codec: The pool's own; in exec'd modes each worker makes one.
        threads: Cap for the thread pools of BLAS and OpenMP; 0: leave them.
        keep_fds: Pipes and sockets that forked workers keep.
        arena_fd: The pool's shared memory for large values, or -1.
        method, gc_enabled, has_initializer, payload, argv: Set by start_fork() and start_exec();
            `payload` is inherit and the calls, encoded.
    """

    __slots__ = (*_PLAIN, "arena_fd", "argv", "codec", "finalizer", "inherit", "initargs",
                 "initializer", "keep_fds", "payload")  # fmt: skip

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
        self.method = method
        self.gc_enabled = gc_enabled
        self.has_initializer = has_initializer
        self.payload = payload
        self.argv = argv


class _Child:
    """One worker: a generation of a slot."""

    __slots__ = ("asked", "generation", "held", "memory", "rejected", "slot")

    def __init__(self, slot: int, generation: int, memory: _native.Slot) -> None:
        self.slot = slot
        self.generation = generation
        self.memory = memory
        self.held: tuple[int, ...] = ()  # Darwin: descriptors that may still be in flight
        self.asked = False  # the pool had it killed
        self.rejected = False  # ... because it had no room for it


class Zygote:
    """The loop. `config_fd` is there in exec'd modes only, for the workers that are spawned."""

    def __init__(self, config: Config, control: int, parent: int, config_fd: int = -1) -> None:
        self.config = config
        self.control = control
        self.parent = parent  # pidfd of the user's process, or -1
        self.config_fd = config_fd
        self.pid = os.getpid()
        self.children: dict[int, _Child] = {}  # by pid
        self.generations = [0] * config.workers
        self.due: dict[int, float] = dict.fromkeys(range(config.least), 0.0)  # births
        self.leaving: set[tuple[int, int]] = set()  # slot, generation: without a successor
        self.failures = 0  # births that failed in a row
        self.rejections = 0  # births that the pool could not take, in a row
        self.deaths: list[float] = []  # abnormal ones, within the restarts' seconds
        self.stopping = self.broken = False
        self.term_at = self.kill_at = _NEVER
        self.oom_kills = -1
        self.wake, self._wake_end = _native.pipe()

    # ---------------------------------------------------------------------------- loop

    def run(self) -> int:
        """Until the pool or the user's process is gone; returns the exit code."""
        self._watch_children()
        self._give_birth()
        self.oom_kills = _oom_kills()
        while not (self.stopping and not self.children):
            self._wait()
            # Orders before deaths: what dies because of a STOP is not replaced.
            self._obey()
            self._reap()
            self._climb()
            if not self.stopping:
                self._give_birth()
        return 0

    def _watch_children(self) -> None:
        for fd in (self.wake, self._wake_end):
            _native.nonblock(fd, True)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)

    def _wait(self) -> None:
        until = min(self.term_at, self.kill_at, *self.due.values(), _NEVER)
        timeout = None if until == _NEVER else max(0.0, until - time.monotonic())
        fds = [self.wake, *(fd for fd in (self.control, self.parent) if fd >= 0)]
        ready = _native.wait_readable(fds, timeout)
        if ready & 1:
            with suppress(BlockingIOError):
                os.read(self.wake, 4096)
        if self.parent >= 0 and ready >> fds.index(self.parent) & 1:
            self._orphaned()

    def _orphaned(self) -> None:
        """The user's process is gone: nobody will read anything any more."""
        self._stop(_native.LADDER_KILL)
        for fd in (self.control, self.parent):
            if fd >= 0:
                os.close(fd)
        self.control = self.parent = -1

    def _obey(self) -> None:
        while self.control >= 0 and _native.wait_readable([self.control], 0.0):
            try:
                message = _native.recv_message(self.control)
            except (EOFError, OSError):
                self._orphaned()
                return
            if message is None:
                return
            if message.kind == _native.REPORT_STOP:
                self._stop(message.status)
            elif message.kind == _native.REPORT_KILL:
                self._kill(message.slot, message.generation, message.status)
            elif message.kind == _native.REPORT_GROW:
                self._grow(message.slot)
            elif message.kind == _native.REPORT_RETIRE:
                self._retire(message.slot, message.generation)
            elif message.kind == _native.REPORT_REJECT:
                self._kill(message.slot, message.generation, message.status, rejected=True)

    def _grow(self, slot: int) -> None:
        if not self.broken and all(child.slot != slot for child in self.children.values()):
            self.due.setdefault(slot, 0.0)

    def _retire(self, slot: int, generation: int) -> None:
        if self.generations[slot] != generation:
            return  # it died by itself, and was replaced
        if slot in self.due:
            del self.due[slot]  # it died by itself
        else:
            self.leaving.add((slot, generation))

    def _tell(self, kind: int, **fields: Any) -> None:
        if self.control < 0:
            return
        try:
            _native.send_message(self.control, kind, **fields)
        except OSError:
            self._orphaned()

    # -------------------------------------------------------------------------- deaths

    def _kill(self, slot: int, generation: int, signum: int, *, rejected: bool = False) -> None:
        for pid, child in self.children.items():
            if (child.slot, child.generation) == (slot, generation):
                child.asked = True
                child.rejected = rejected
                os.kill(pid, signum)

    def _reap(self) -> None:
        while self.children:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is not None:
                self._obey()  # a worker that retires dies after the pool has said so
                self._bury(pid, child, status, usage.ru_maxrss)

    def _bury(self, pid: int, child: _Child, status: int, rss: int) -> None:
        flags = 0
        if child.memory.retired:
            flags |= _native.DIED_RETIRED
        if child.asked:
            flags |= _native.DIED_ASKED
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == _signal.SIGKILL:
            flags |= self._oom_flag()
        child.memory.close()
        for fd in child.held:
            os.close(fd)
        self._tell(
            _native.REPORT_DIED,
            slot=child.slot,
            generation=child.generation,
            pid=pid,
            status=status,
            rss_kb=rss // 1024 if _DARWIN else rss,
            flags=flags,
        )
        place = (child.slot, child.generation)
        if self.stopping or self.broken:
            return
        if place in self.leaving:
            self.leaving.discard(place)
            return
        now = time.monotonic()
        self.due[child.slot] = now + self._pause(child, status)
        if not flags & (_native.DIED_RETIRED | _native.DIED_ASKED):
            self._count_death(now)

    def _pause(self, child: _Child, status: int) -> float:
        """How long its successor has to wait."""
        if child.rejected:
            self.rejections += 1
            return _BACKOFF[min(self.rejections, len(_BACKOFF)) - 1]
        self.rejections = 0
        refused = os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_REFUSED
        return _REFUSED_PAUSE if refused else 0.0

    def _count_death(self, now: float) -> None:
        most, seconds = self.config.restarts
        self.deaths = [at for at in self.deaths if now - at <= seconds]
        self.deaths.append(now)
        if len(self.deaths) > most:
            self.broken = True
            self.due.clear()
            self._tell(_native.REPORT_BROKEN)

    def _oom_flag(self) -> int:
        before, self.oom_kills = self.oom_kills, _oom_kills()
        return _native.DIED_OOM if 0 <= before < self.oom_kills else 0

    # -------------------------------------------------------------------------- ladder

    def _stop(self, ladder: int) -> None:
        now = time.monotonic()
        gentle = ladder == _native.LADDER_GENTLE
        grace = {_native.LADDER_GENTLE: 2 * _GRACE, _native.LADDER_TERM: _GRACE}.get(ladder, 0.0)
        self.stopping = True
        self.due.clear()
        if ladder != _native.LADDER_KILL:
            self.term_at = min(self.term_at, now + _GRACE if gentle else now)
        self.kill_at = min(self.kill_at, now + grace)
        self._climb()

    def _climb(self) -> None:
        now = time.monotonic()
        if now >= self.kill_at:
            self.term_at = self.kill_at = _NEVER
            self._signal_all(_signal.SIGKILL)
        elif now >= self.term_at:
            self.term_at = _NEVER
            self._signal_all(_signal.SIGTERM)

    def _signal_all(self, signum: int) -> None:
        for pid in self.children:
            os.kill(pid, signum)

    # -------------------------------------------------------------------------- births

    def _give_birth(self) -> None:
        """Start the workers that are due."""
        if not self.due:
            return
        now = time.monotonic()
        for slot in [slot for slot, at in self.due.items() if at <= now]:
            if self.stopping:  # the pool went away while it was told of a birth
                return
            del self.due[slot]
            try:
                self._bear(slot)
                self.failures = 0
            except OSError as error:
                pause = _BACKOFF[min(self.failures, len(_BACKOFF) - 1)]
                self.failures += 1
                self.due[slot] = time.monotonic() + pause
                self._tell(_native.REPORT_TROUBLE, slot=slot, status=error.errno or 0)

    def _bear(self, slot: int) -> None:
        """Start one worker and send the pool its ends."""
        generation = self.generations[slot] + 1
        fds: list[int] = []
        kept: tuple[int, ...] = ()
        try:
            fds.extend(_native.pipe())
            fds.extend(_native.pipe())
            fds.append(_native.slot_create())
            task_read, task_write, result_read, result_write, memory = fds
            mapping = _native.Slot(memory)
            ends = (task_read, result_write, memory)
            pid = self._spawn(ends) if self.config.method == "spawn" else _native.fork()
            if pid == 0:
                self._become_worker(ends, (task_write, result_read))
            self.generations[slot] = generation
            child = self.children[pid] = _Child(slot, generation, mapping)
            sent = (task_read, task_write, result_read, memory)
            self._tell(_native.REPORT_BORN, slot=slot, generation=generation, pid=pid, fds=sent)
            if _DARWIN:
                kept = child.held = sent
        finally:
            for fd in fds:
                if fd not in kept:
                    os.close(fd)

    def _become_worker(self, ends: tuple[int, int, int], others: tuple[int, int]) -> NoReturn:
        """In the forked child: let go of all that is the zygote's, then be a worker."""
        status = EXIT_FAILED
        try:
            _signal.set_wakeup_fd(-1)
            mine = (self.wake, self._wake_end, self.control, self.parent, self.config_fd)
            siblings = [fd for child in self.children.values() for fd in child.held]
            for fd in (*mine, *others, *siblings):
                if fd >= 0:
                    os.close(fd)
            self.children.clear()  # unmaps the siblings' slots
            status = _worker.main(self.config, ends, self.pid)
        except BaseException as error:
            _worker._complain("a worker failed outside of a task", error)
        finally:
            os._exit(status)

    def _spawn(self, ends: tuple[int, int, int]) -> int:
        arena = self.config.arena_fd
        keep = tuple(fd for fd in (*ends, self.config_fd, arena) if fd >= 0)
        return _launch("worker", self.config_fd, _Boot.offset, keep, (*ends, self.pid, arena))


def _oom_kills() -> int:
    """How many processes of our control group the kernel's OOM killer has ended; -1: unknown."""
    try:
        with open("/proc/self/cgroup", "rb") as lines:
            for line in lines:
                _, controllers, path = os.fsdecode(line.strip()).split(":", 2)
                if controllers == "":
                    places = [f"/sys/fs/cgroup{path}/memory.events", "/sys/fs/cgroup/memory.events"]
                elif "memory" in controllers.split(","):
                    root = "/sys/fs/cgroup/memory"
                    places = [f"{root}{path}/memory.oom_control", f"{root}/memory.oom_control"]
                else:
                    continue
                for place in places:
                    count = _read_oom(place)
                    if count >= 0:
                        return count
    except (OSError, ValueError):
        pass
    return -1


def _read_oom(place: str) -> int:
    try:
        with open(place, "rb") as lines:
            for line in lines:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return -1


# ------------------------------------------------------------------- forked from the user's process


def start_fork(config: Config) -> tuple[int, int]:
    """Fork a zygote from this process. Nothing of `config` is pickled.

    Returns:
        The control socket and the zygote's process id; both are the caller's.

    Raises:
        OSError: It could not be started; nothing is left behind.
    """
    config.method = "fork"
    config.gc_enabled = gc.isenabled()
    config.has_initializer = config.initializer is not None
    # What was printed is ours to write. If nobody can print before the fork, the zygote need not
    # look for a copy of it.
    flushed = _flush_all() and len(sys._current_frames()) == 1
    ours, theirs = _native.socketpair()
    parent = _own_pidfd()
    # A signal between the fork and the reset of handlers would run the user's code in the zygote.
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    pid = -1
    try:
        pid = _native.fork()
        if pid == 0:
            _run_forked(config, theirs, parent, ours, flushed)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        os.close(theirs)
        if parent >= 0:
            os.close(parent)
        if pid < 0:
            os.close(ours)
    return ours, pid


def _flush_all() -> bool:
    done = True
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except Exception:
            done = False
    return done


def _own_pidfd() -> int:
    """Made before the fork: it is this process, and no other one that got its number later."""
    try:
        return _native.pidfd_open(os.getpid())
    except OSError:
        return -1  # an old kernel or a filter: the control socket's end has to do


def _run_forked(config: Config, control: int, parent: int, theirs: int, flushed: bool) -> NoReturn:
    status = EXIT_FAILED
    try:
        _worker.reset_signals()
        gc.disable()  # this process makes no garbage; workers switch it on again
        gc.freeze()  # what was inherited is never looked at again, and so never copied
        os.close(theirs)
        if not flushed:
            _worker.drop_buffered()
        _worker.sane_streams()
        _cap_threads(os.environ, config.threads)
        keep = {control, parent, *config.keep_fds, *_filenos(config)}
        _native.silence_others([fd for fd in keep if fd > 2])
        status = Zygote(config, control, parent).run()
    except BaseException as error:
        _worker._complain("the zygote failed", error)
    finally:
        os._exit(status)


def run(control_fd: int, config: Config, parent_fd: int = -1) -> int:
    """Be the zygote of an already prepared process; returns its exit code."""
    return Zygote(config, control_fd, parent_fd).run()


def _filenos(config: Config) -> list[int]:
    """Descriptors of files, pipes and sockets that are inherited by name."""
    fds = []
    for thing in (*config.inherit, *config.initargs):
        try:
            fd = thing.fileno()
        except Exception:  # no file, a closed one, or one in memory
            continue
        if type(fd) is int:
            fds.append(fd)
    for stream in (sys.stdout, sys.stderr):
        try:
            fds.append(stream.fileno())
        except Exception:
            continue
    return fds


def _cap_threads(environment: Any, threads: int) -> None:
    if threads > 0:
        for name in _THREADS:
            environment.setdefault(name, str(threads))


# ------------------------------------------------------------------------------------ exec'd


class _Boot:
    """Where the pickled part begins in this process's configuration file."""

    offset = 0


# What an exec'd interpreter runs first. The package itself is not imported (its __init__ pulls in
# all of the user's face): a bare module stands in for it until ours are loaded.
_BOOTSTRAP = """\
import sys, os, marshal
def boot(fd):
    sys.path[:], folder = marshal.loads(os.pread(fd, int(sys.argv[3]), 0))
    stand_in = sys.modules["forkmill"] = type(sys)("forkmill")
    stand_in.__path__ = [folder]
    import forkmill._zygote as zygote
    del sys.modules["forkmill"]
    return zygote
boot(int(sys.argv[2])).main()
"""


def start_exec(config: Config, method: str) -> tuple[int, int]:
    """Start a zygote in a fresh interpreter. `method`: "zygote" forks workers, "spawn" execs them.

    Returns:
        The control socket and the zygote's process id; both are the caller's.

    Raises:
        OSError: It could not be started; nothing is left behind.
        SerializationError: The initializer, the finalizer or an object of `inherit` cannot be sent.
    """
    config.method = method
    config.gc_enabled = gc.isenabled()
    config.has_initializer = config.initializer is not None
    fds: list[int] = []
    try:
        config_fd, offset = _write_config(config)
        fds.append(config_fd)
        ours, theirs = _native.socketpair()
        fds += [theirs, ours]
        parent = _own_pidfd()
        if parent >= 0:
            fds.append(parent)
        arena = config.arena_fd
        numbers = tuple(fd for fd in (config_fd, theirs, parent, arena) if fd >= 0)
        environment = dict(os.environ)
        _cap_threads(environment, config.threads)
        pid = _launch("zygote", config_fd, offset, numbers, (theirs, parent, arena), environment)
        fds.remove(ours)
        return ours, pid
    finally:
        for fd in fds:
            os.close(fd)


def _write_config(config: Config) -> tuple[int, int]:
    """An unlinked file with what an exec'd process has to know, and where its pickle begins."""
    inherit = _codec.Codec("exec", (), None).dumps(config.inherit)
    calls = config.codec.dumps((config.initializer, config.initargs, config.finalizer))
    plain: dict[str, Any] = {name: getattr(config, name) for name in _PLAIN}
    plain["argv"] = list(sys.argv)
    plain["payload"] = tuple(
        (data, [bytearray(buffer) for buffer in buffers]) for data, buffers in (inherit, calls)
    )
    head = marshal.dumps(
        ([p for p in sys.path if type(p) is str], os.path.dirname(os.path.abspath(__file__)))
    )
    fd = _memory_file()
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(head)
            pickle.dump(plain, file, 5)
    except BaseException:
        os.close(fd)
        raise
    return fd, len(head)


def _memory_file() -> int:
    try:
        fd = os.memfd_create("forkmill-config", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # Darwin; an old kernel or a filter
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    if fd > 2:
        return fd
    import fcntl

    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return high


def _read_config(fd: int, offset: int) -> Config:
    # By position: the file's offset is shared with every worker that reads it now.
    parts = []
    at = offset
    while part := os.pread(fd, 1 << 30, at):
        parts.append(part)
        at += len(part)
    return Config(**pickle.loads(b"".join(parts)))


def _launch(
    role: str,
    config_fd: int,
    offset: int,
    keep: tuple[int, ...],
    numbers: tuple[int, ...],
    environment: Any = None,
) -> int:
    """posix_spawn an interpreter that runs main() below; it gets the descriptors of `keep`."""
    if not sys.executable:
        raise FileNotFoundError("sys.executable is empty: no interpreter to start workers with")
    arguments = [sys.executable, *_interpreter_flags(), "-c", _BOOTSTRAP]
    arguments += [role, str(config_fd), str(offset), *map(str, numbers)]
    return os.posix_spawn(
        sys.executable,
        arguments,
        os.environ if environment is None else environment,
        # dup2() of a descriptor onto itself clears close-on-exec, in the child only.
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep],
        setsigmask=(_signal.SIGINT,),  # until main() ignores it: Ctrl-C must print nothing
    )


def _interpreter_flags() -> list[str]:
    """The command line flags of this interpreter, as subprocess._args_from_interpreter_flags."""
    flags = []
    letters = {
        "debug": "d",
        "dont_write_bytecode": "B",
        "no_site": "S",
        "verbose": "v",
        "bytes_warning": "b",
        "quiet": "q",
        "optimize": "O",
    }
    for name, letter in letters.items():
        count = getattr(sys.flags, name)
        if count > 0:
            flags.append("-" + letter * count)
    if sys.flags.isolated:
        flags.append("-I")
    else:
        if sys.flags.ignore_environment:
            flags.append("-E")
        if sys.flags.no_user_site:
            flags.append("-s")
        if sys.flags.safe_path:
            flags.append("-P")
    flags.extend("-W" + option for option in sys.warnoptions)
    if sys.flags.dev_mode:
        flags += ["-X", "dev"]
    for name in (
        "faulthandler",
        "tracemalloc",
        "importtime",
        "frozen_modules",
        "utf8",
        "gil",
        "warn_default_encoding",
        "int_max_str_digits",
        "no_debug_ranges",
    ):
        if name in sys._xoptions:
            value = sys._xoptions[name]
            flags += ["-X", name if value is True else f"{name}={value}"]
    return flags


def main() -> NoReturn:
    """Entry of an exec'd interpreter: argv is role, configuration fd, offset, numbers."""
    status = EXIT_FAILED
    try:
        role, config_fd, offset, *numbers = sys.argv[1], *map(int, sys.argv[2:])
        _Boot.offset = offset
        sys.modules["__main__"] = type(sys)("__main__")  # not the bootstrap's names
        if role == "worker":
            status = _main_worker(config_fd, numbers)
        else:
            status = _main_zygote(config_fd, numbers)
    except BaseException as error:
        _worker._complain(f"an exec'd process ({' '.join(sys.argv[1:2])}) failed", error)
    finally:
        os._exit(status)


def _main_zygote(config_fd: int, numbers: list[int]) -> int:
    control, parent, arena = numbers
    _worker.reset_signals()
    fds = [fd for fd in (config_fd, control, parent, arena) if fd >= 0]
    for fd in fds:
        os.set_inheritable(fd, False)
    _native.close_others(fds)
    _worker.sane_streams()
    config = _read_config(config_fd, _Boot.offset)
    config.arena_fd = arena
    sys.argv[:] = config.argv
    gc.disable()
    gc.freeze()
    return Zygote(config, control, parent, config_fd).run()


def _main_worker(config_fd: int, numbers: list[int]) -> int:
    *ends, zygote, arena = numbers
    fds = [fd for fd in (*ends, arena) if fd >= 0]
    for fd in fds:
        os.set_inheritable(fd, False)
    config = _read_config(config_fd, _Boot.offset)
    config.arena_fd = arena
    os.close(config_fd)
    _native.close_others(fds)
    _worker.sane_streams()
    sys.argv[:] = config.argv
    task_fd, result_fd, slot_fd = ends
    return _worker.main(config, (task_fd, result_fd, slot_fd), zygote)

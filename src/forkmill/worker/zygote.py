"""How zygotes and workers come to life: what runs in Python between a start and the worker's loop.

::

    user's process ──start_fork──▶ zygote (zygote.c) ──fork──▶ _run_forked ──▶ worker.main
                   ──start_exec──▶ main() ──▶ zygote ──fork──▶ _run_forked ──▶ worker.main
                                                  └──spawn──▶ main() ──────▶ worker.main

    worker: Reporter, while it loads a function ──names, one a record──▶ zygote: take_hint()

A worker of an exec'd zygote begins with next to nothing imported. Its function's module pulls in
what it needs, and most of that is often the standard library: 50 ms for asyncio. A worker that
replaces a dead one would pay that again, so what one had to import the zygote imports, too, once.

Guarantees:
    * A forked zygote is C from its first instruction: the worker that it forks finds the
      interpreter as the user's process left it at the fork, and runs its fork hooks, once.
    * An exec'd process never imports the user's __main__.
    * A start that fails leaves no process and no descriptor behind.
    * Only modules of the standard library and of this package are imported ahead, where the worker
      found them to be such: they start no thread and hold nothing that processes must not share.
      The user's modules and those of other packages are imported by each worker itself: what they
      set up then (generators, connections, pools of threads; in an environment that an initializer
      has changed) is its own.
    * That is best effort: nothing waits for it and nothing fails by it. A report that finds the
      pipe full is lost, an import that raises is passed over. One import a turn of the zygote's
      loop: deaths and orders wait for one at the most.

Threads: one. In the user's process: start_fork() and start_exec(), any thread.
"""

from __future__ import annotations

import gc
import marshal
import os
import pickle
import sys
from collections import deque
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Any, NoReturn

from .. import _native, _process
from ..codec import codec as _codec
from . import main as worker
from .main import EXIT_FAILED, EXIT_REFUSED, PLAIN, Config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_SIZE = 64  # of a record: a name and zeros
_ATOMIC = 512  # bytes that no pipe splits (PIPE_BUF); several workers write to it
_HOME = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_OURS = __name__.partition(".")[0]


# ------------------------------------------------------------------- forked from the user's process


def start_fork(
    config: Config, control: int, *, early: bool = False
) -> tuple[int, Callable[[], tuple[int, ...]]]:
    """Fork a zygote from this process. Nothing of `config` is pickled.

    Args:
        config: What the pool wants.
        control: The zygote's end of the socket; stays the caller's, and so does the other one.
        early: Make the first worker's channel here: the pool can write to it before the worker
            is there, and need not wait for the news.

    Returns:
        The zygote's process id, it is the caller's to reap, and what gives what Pool.adopt() wants
        besides.

    Raises:
        OSError: It could not be started; nothing is left behind.
    """
    config.method = "fork"
    config.gc_enabled = gc.isenabled()
    config.has_initializer = config.initializer is not None
    config.signals = _native.signal_masks()
    _introduce(config)
    config.stdin = worker.null_input()
    caps = _caps(os.environ, config.threads)
    config.caps = {name.encode(): cap.encode() for name, cap in caps.items()}
    config.limits = worker.limits_of(lambda name: caps.get(name) or os.environ.get(name, ""))
    # What was printed is ours to write. If nobody can print before the fork, workers need not
    # look for a copy of it.
    config.flushed = _flush_all() and _native.thread_states() == 1
    held: list[int] = []
    try:
        parent = _own_pidfd(held)
        config.pidfd = parent >= 0
        keep = [control, parent, config.arena_fd, *config.keep_fds, *_filenos(config)]
        if config.family:
            from . import mp

            mp.load()
            keep += mp.channels(keep)
        zygote = _zygote(config, control, parent, keep=keep, early=early, environment=config.caps)
        config.born += starmap(zygote.start, [()])  # in one step: no handler can come in between
        if config.born[0] is None:
            _run_forked(config, zygote)
        return config.born[0], zygote.take_first
    finally:
        deque(map(os.close, held), maxlen=0)


def _introduce(config: Config) -> None:
    """Who the workers' parent is; what costs something only if multiprocessing is loaded."""
    if config.parent:
        return
    config.parent = os.getpid()
    if "multiprocessing.context" in sys.modules:
        from . import mp

        config.family = mp.family(config.workers)


def _zygote(config: Config, control: int, parent: int, **options: Any) -> _native.Zygote:
    return _native.Zygote(
        control,
        parent,
        config.workers,
        *config.restarts,
        EXIT_REFUSED,
        least=config.least,
        **options,
    )


def _flush_all() -> bool:
    done = True
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except Exception:
            done = False
    return done


def _own_pidfd(held: list[int]) -> int:
    """Made before the fork: it is this process, and no other one that got its number later. It is
    in `held` as soon as there is one."""
    try:  # not suppress(): that is three calls
        held += map(_native.pidfd_open, [os.getpid()])
    except OSError:  # an old kernel or a filter: the control socket's end has to do
        return -1
    return held[0]


def _run_forked(config: Config, zygote: _native.Zygote) -> NoReturn:
    """Be a worker, in a process that the zygote has forked."""
    status = EXIT_FAILED
    try:
        gc.freeze()  # what was inherited is never looked at again, and so never copied
        _native.reset_signals(*config.signals)
        if config.method == "fork":
            if not config.flushed:
                worker.drop_buffered()
            sys.stdin = config.stdin or worker.null_input()
            worker.know_environment(config.caps)
            if config.limits:
                worker.limit_libraries(config.limits)
        status = worker.main(config, zygote.ends, zygote.slot)
    except BaseException as error:
        worker._complain("a worker failed outside of a task", error)
    finally:
        os._exit(status)


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


def _caps(environment: Any, threads: int) -> dict[str, str]:
    """What is missing in an environment to keep BLAS and OpenMP from using every CPU."""
    if threads <= 0:
        return {}
    if type(environment) is type(os.environ) and (known := _encoded_names(environment)):
        missing = [name for name in _THREADS if name.encode() not in known]
    else:
        missing = [name for name in _THREADS if name not in environment]
    return dict.fromkeys(missing, str(threads))


def _encoded_names(environment: Any) -> Any:
    """What `os.environ` keeps: to ask itself calls three functions in Python for each name."""
    known = getattr(environment, "_data", None)
    return known if type(known) is dict else None


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
    import forkmill.worker.zygote as zygote
    del sys.modules["forkmill"]
    return zygote
boot(int(sys.argv[2])).main()
"""


def start_exec(config: Config, method: str, control: int) -> int:
    """Start a zygote in a fresh interpreter. `method`: "zygote" forks workers, "spawn" execs them.

    Args:
        config: What the pool wants.
        method: As above.
        control: The zygote's end of the socket; stays the caller's, and so does the other one.

    Returns:
        The zygote's process id; it is the caller's to reap.

    Raises:
        OSError: It could not be started; nothing is left behind.
        SerializationError: The initializer, the finalizer or an object of `inherit` cannot be sent.
    """
    config.method = method
    config.gc_enabled = gc.isenabled()
    config.has_initializer = config.initializer is not None
    config.signals = _native.signal_masks()
    _introduce(config)
    fds: list[int] = []
    held: list[int] = []
    try:
        config_fd, offset = _write_config(config)
        fds.append(config_fd)
        parent = _own_pidfd(held)
        config.pidfd = parent >= 0
        environment = {**_process.environment(), **_caps(os.environ, config.threads)}
        kept = (config_fd, control, parent, config.arena_fd, *config.handed)
        arguments = [
            *_arguments("zygote", config_fd, offset),
            *map(str, (control, parent, config.arena_fd)),
        ]
        spawn = partial(
            os.posix_spawn,
            sys.executable,
            arguments,
            environment,
            # dup2() of a descriptor onto itself clears close-on-exec, in the child only.
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in kept if fd >= 0],
            # Until the zygote ignores them, and workers are ready for them: Ctrl-C must print
            # nothing, and what reaches the whole group end nothing.
            setsigmask=worker._GROUP_SIGNALS,
        )
        config.born += starmap(spawn, [()])  # in one step: no handler can come in between
        pid: int = config.born[0]
        return pid
    finally:
        deque(map(os.close, (*fds, *held, *config.handed)), maxlen=0)


def encode(config: Config) -> None:
    """Make `payload`: what an exec'd process gets of the user's; and `handed` and `tracker`, which
    start_exec() closes. Once is enough.

    Raises:
        SerializationError: The initializer, the finalizer or an object of `inherit` cannot be sent.
    """
    if config.payload is not None:
        return
    _introduce(config)
    if not config.family:
        config.payload = _encoded(config)
        return
    from . import mp

    with mp.spawning() as popen:
        config.tracker = popen.hand_tracker()
        config.payload = _encoded(config, mp.reducers())
    config.handed = popen.fds


def _encoded(config: Config, reducers: dict[Any, Any] | None = None) -> tuple[Any, ...]:
    calls = config.initializer, config.initargs, config.finalizer
    payload = []
    for codec, obj in ((_codec.Codec("exec", (), None), config.inherit), (config.codec, calls)):
        codec.reducers = reducers or {}
        try:
            data, buffers = codec.dumps(obj)
        finally:
            codec.reducers = {}
        payload.append((data, [bytearray(buffer) for buffer in buffers]))
    return tuple(payload)


def _write_config(config: Config) -> tuple[int, int]:
    """An unlinked file with what an exec'd process has to know, and where its pickle begins."""
    encode(config)
    plain: dict[str, Any] = {name: getattr(config, name) for name in PLAIN}
    plain["argv"] = list(sys.argv)
    plain["payload"] = config.payload
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    head = marshal.dumps(([p for p in sys.path if type(p) is str], package))
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
    # And no more at once than there is: a buffer is as large as what is asked for.
    parts = []
    at, end = offset, os.fstat(fd).st_size
    while at < end and (part := os.pread(fd, min(end - at, 1 << 30), at)):
        parts.append(part)
        at += len(part)
    return Config(**pickle.loads(b"".join(parts)))


def _arguments(role: str, config_fd: int, offset: int) -> list[str]:
    """The command line of an interpreter that runs main() below, less its numbers."""
    if not sys.executable:
        raise FileNotFoundError("sys.executable is empty: no interpreter to start workers with")
    arguments = [sys.executable, *_interpreter_flags(), "-c", _BOOTSTRAP]
    return [*arguments, role, str(config_fd), str(offset)]


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
    role, numbers = "", []
    try:
        role, config_fd, offset, *numbers = sys.argv[1], *map(int, sys.argv[2:])
        _Boot.offset = offset
        sys.modules["__main__"] = type(sys)("__main__")  # not the bootstrap's names
        if role == "worker":
            status = _main_worker(config_fd, numbers)
        else:
            _main_zygote(config_fd, numbers)
    except BaseException as error:
        worker._complain(f"an exec'd process ({' '.join(sys.argv[1:2])}) failed", error)
        if role == "zygote" and isinstance(error, OSError) and error.errno:
            # The pool tells the program why it has no workers.
            _native.report_trouble(numbers[0], error.errno)
    finally:
        os._exit(status)


def _main_zygote(config_fd: int, numbers: list[int]) -> NoReturn:
    control, parent, arena = numbers
    _native.reset_signals()
    config = _read_config(config_fd, _Boot.offset)
    _keep_only(config_fd, control, parent, arena, *config.handed)
    worker.sane_streams()
    config.arena_fd = arena
    worker.ignore_signals(config.signals[1])
    sys.argv[:] = config.argv
    spawn: Sequence[str] = ()
    hints = -1
    if config.method == "spawn":
        spawn = _arguments("worker", config_fd, _Boot.offset)
    else:
        hints, theirs = open_hints()
        config.reporter = Reporter(theirs)
    zygote = _zygote(
        config,
        control,
        parent,
        spawn=[os.fsencode(word) for word in spawn],
        spawn_fd=config_fd,
        share_fd=arena,
        hand_fds=config.handed,
        hint_fd=hints,
    )
    while not zygote.run():
        take_hint(hints)
    _run_forked(config, zygote)


def _keep_only(*kept: int) -> None:
    """Close all other descriptors above 2; programs that a task starts get none of these."""
    fds = [fd for fd in kept if fd >= 0]
    for fd in fds:
        os.set_inheritable(fd, False)
    _native.close_others(fds)


def _main_worker(config_fd: int, numbers: list[int]) -> int:
    *ends, zygote, arena, slot = numbers
    config = _read_config(config_fd, _Boot.offset)
    config.arena_fd = arena
    os.close(config_fd)
    _keep_only(*ends, arena, *config.handed)
    worker.sane_streams()
    sys.argv[:] = config.argv
    try:
        _native.die_with_parent(zygote)
    except ProcessLookupError:
        return 0
    _native.reset_signals(*config.signals)
    task_fd, result_fd, slot_fd = ends
    return worker.main(config, (task_fd, result_fd, slot_fd), slot)


# ------------------------------------------------------ what workers had to import


def open_hints() -> tuple[int, int]:
    """For a zygote: the end it reads, and the one that its workers inherit; neither blocks."""
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    return ends


class Reporter:
    """In a worker, around what may import: tells the zygote of each module once it is there.

    It stands before the finders and finds nothing: each import that begins is the moment to report
    those that have ended. So even a worker that is killed on its way has spared its successor some
    of it; were all told at the end, workers that live for less than that would get nowhere.

    Args:
        fd: What open_hints() made for it; -1: nobody listens.
    """

    __slots__ = ("_fd", "_known", "_pending")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._known = 0
        self._pending: list[str] = []

    def __enter__(self) -> None:
        if self._fd >= 0:
            self._known = len(sys.modules)
            sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            self._report()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        self._report()

    def _report(self) -> None:
        self._pending += list(sys.modules)[self._known :]
        self._known = len(sys.modules)
        # An import hook may have started a thread; it would do so in the zygote.
        if _native.thread_states() > 1:
            self._pending.clear()
            return
        # From the end: what a module needs is entered after it, so the zygote goes in small steps.
        names = [name for name in reversed(self._pending) if _is_harmless(name)]
        self._pending = [name for name in self._pending if _is_under_way(name)]
        records = b"".join(name.encode().ljust(_SIZE, b"\0") for name in names)
        try:
            for at in range(0, len(records), _ATOMIC):
                os.write(self._fd, records[at : at + _ATOMIC])
        except OSError:  # full, or a task has closed it
            pass


def take_hint(fd: int) -> None:
    """In a zygote: import the next module that was reported and is not there yet."""
    while True:
        try:
            name = os.read(fd, _SIZE).rstrip(b"\0").decode()
        except OSError:  # no more
            return
        except UnicodeDecodeError:  # no worker of ours wrote it
            continue
        if name in sys.modules or not _is_known(name):
            continue
        try:
            __import__(name)
        except BaseException:  # whatever it says: each worker will see for itself
            continue
        return


def _is_known(name: str) -> bool:
    top = name.partition(".")[0]
    return top in sys.stdlib_module_names or top == _OURS


def _is_under_way(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return getattr(spec, "_initializing", False) is True


def _is_harmless(name: str) -> bool:
    """Whether a module is there whole, and the standard library's own or ours."""
    if not name.isascii() or len(name) > _SIZE or not _is_known(name) or _is_under_way(name):
        return False
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None:  # made by hand, or __main__
        return False
    origin = spec.origin
    if name.partition(".")[0] == _OURS or origin in ("built-in", "frozen"):
        return True
    # Not one of the user's that goes by the same name.
    return isinstance(origin, str) and origin.startswith(_HOME) and "site-packages" not in origin

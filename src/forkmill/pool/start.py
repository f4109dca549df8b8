"""How a pool starts: by which method, and the first process.

Guarantees:
    * Nothing of the interpreter's or multiprocessing's global settings is read or changed.
    * A start that fails leaves no process and no descriptor behind.

Threads: any; called once for each pool, in its creator's thread.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from contextlib import suppress
from functools import partial
from itertools import chain, starmap
from typing import TYPE_CHECKING, Any

from .. import _hazards, _native, errors
from .._late import close_last, unbroken
from .._process import cpus_each
from ..codec.codec import Codec
from ..worker.logs import levels
from ..worker.main import Config
from ..worker.zygote import encode, start_exec, start_fork
from .core import Core
from .events import EventLog
from .life import lives_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["METHODS", "asked_method", "choose_method", "make_core", "tell_loss"]

METHODS = ("auto", "fork", "zygote", "spawn")

# multiprocessing's names for the nearest of ours.
_CONTEXTS = {"fork": "fork", "forkserver": "zygote", "spawn": "spawn"}

# Names of programs that are interpreters; of a frozen one, whose own name may be anything.
_A_PYTHON = re.compile(r"(?i)py|hython")
_INTERPRETER = re.compile(r"(?i)(python|pypy)[\d.]*[a-z]*$")

_LARGE = 1_000_000  # bytes of state that are worth a warning
_FOREVER_S = 1e9  # init_timeout=None


def asked_method(start_method: str, mp_context: Any) -> str:
    """The start method that is asked for, by its own name or by a context's; or "auto".

    Raises:
        TypeError: mp_context is no multiprocessing context.
        ValueError: There is no such method.
    """
    if start_method not in METHODS:
        raise ValueError(f"start_method must be one of {METHODS}, not {start_method!r}")
    if mp_context is not None:
        named = getattr(mp_context, "get_start_method", None)
        if not callable(named):
            raise TypeError(
                "mp_context must be None or a context of multiprocessing.get_context(), "
                f"not {type(mp_context).__name__!r}"
            )
        if start_method == "auto":
            name = named()
            if name not in _CONTEXTS:
                raise ValueError(f"mp_context has the unknown start method {name!r}")
            return _CONTEXTS[name]
    return start_method


def choose_method(start_method: str, mp_context: Any) -> tuple[str, str]:
    """The start method to use, and why it is not "fork" where "auto" would rather fork.

    Raises:
        TypeError, ValueError: As `asked_method`.
        PoolError: Nothing can be started that way here.
    """
    method, why = asked_method(start_method, mp_context), ""
    if method == "auto":
        why = "" if sys.platform == "darwin" else _hazards.against_fork()
        method = "spawn" if sys.platform == "darwin" else "zygote" if why else "fork"
    elif method == "fork":
        _hazards.check_fork("start_method='fork'")
    if method != "fork":
        _check_interpreter(method, why)
    return method, why


def _check_interpreter(method: str, why: str) -> None:
    """Refuse to start the user's program once more, where sys.executable is no interpreter."""
    what = _no_interpreter()
    if what:
        because = f" (taken because of {why})" if why else ""
        raise errors.PoolError(
            f"start_method={method!r}{because} starts workers with sys.executable, {what}. Make "
            "the pool where it can be forked, before other threads are started and such libraries "
            "used, with start_method='fork', or set sys.executable to a Python interpreter with "
            "the same packages"
        )


def _no_interpreter() -> str:
    """Why sys.executable cannot run workers; or ""."""
    path = sys.executable
    if not path:
        return "which is empty here"
    # Nuitka's programs know themselves by a name of __main__, all others by one of sys.
    if getattr(sys, "frozen", False) or hasattr(sys.modules.get("__main__"), "__compiled__"):
        known = _INTERPRETER.match(os.path.basename(path))
        return "" if known else f"which in this frozen program is the program itself ({path})"
    # A program that has the interpreter in it: uwsgi, a web server, an editor.
    return "" if _A_PYTHON.search(os.path.basename(path)) else f"which is no interpreter ({path})"


def make_core(
    *,
    workers: int,
    method: str,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    finalizer: Callable[[], object] | None,
    inherit: tuple[Any, ...],
    max_tasks: int,
    max_rss: int,
    memory_limit: int,
    restarts: tuple[int, float],
    init_timeout: float | None,
    name: str,
    least: int,
    idle_time: float,
    no_fork: str,
    tag_output: bool,
    forward_logs: bool,
) -> tuple[Core, Callable[[], None]]:
    """All that the user's process needs of a pool, and what starts the zygote.

    In this order: what is made, and written to, before a fork costs no copies of pages.

    Returns:
        The core, and a function to be called once: it starts the zygote, or closes the core and
        raises OSError (no process or descriptor to be had) or SerializationError (the
        initializer, its arguments or `inherit` cannot be sent).

    Raises:
        OSError: No descriptor to be had.
    """
    in_spite_of = ""
    if no_fork and _only_forks((initializer, initargs, finalizer, inherit)):
        _hazards.check_fork("a pool that is given locks which only a fork keeps")
        method, no_fork, in_spite_of = "fork", "", no_fork
    fork = method == "fork"
    if memory_limit:  # the next task would be charged with what this one has left
        max_rss = min(max_rss or memory_limit, memory_limit)
    codec = Codec("fork" if fork else "exec", inherit)
    config = Config(
        workers=workers,
        initializer=initializer,
        initargs=initargs,
        finalizer=finalizer,
        inherit=inherit,
        restarts=restarts,
        max_tasks=max_tasks,
        max_rss_kb=0 if max_rss == 0 else max(1, max_rss >> 10),
        name=name,
        codec=codec,
        threads=cpus_each(workers),
        least=least,
        tag_output=tag_output,
        logs=levels() if forward_logs else None,
    )
    hello = 0.0
    if initializer is not None:
        hello = _FOREVER_S if init_timeout is None else init_timeout
    birth = _Birth(config)
    try:
        native = birth.native(
            workers,
            max_tasks=max_tasks, hello=hello, least=least, idle=idle_time,
            memory_limit=memory_limit,
            births=0.0 if init_timeout is None else max(init_timeout, 1e-3),
        )  # fmt: skip
        core = _core(birth, native, method, no_fork, in_spite_of)
    except BaseException:
        birth.close()
        raise
    return core, partial(birth.start, core)


def _core(birth: _Birth, native: _native.Pool, method: str, no_fork: str, in_spite_of: str) -> Core:
    config = birth.config
    log = EventLog(config.name, config.restarts)
    core = Core(
        native, config.codec, config.workers, log,
        initializer=config.initializer is not None, method=method, no_fork=no_fork,
    )  # fmt: skip
    if method != "fork":  # what multiprocessing has named for them lives as long as its object
        core.handed_down = config.initializer, config.initargs, config.finalizer, config.inherit
    if in_spite_of:
        text = "start method 'fork' in spite of %s: the pool is given locks that only a fork keeps"
        core.log.fell_back("locks", logging.WARNING, text, in_spite_of)
    return core


class _Birth:
    """What a pool is made of while it is made. Closes what nobody has taken over.

    A signal handler may raise after any call, also after one that has opened something. So what
    opens is called by C, in the step that stores what came of it: ``list += starmap(...)``.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._ends: list[int] = []  # of the control socket: the pool's, the zygote's
        self._natives: list[_native.Pool] = []  # has the pool's end
        self._arena: list[int] = []  # a descriptor of shared memory
        self._arenas: list[_native.Arena] = []  # has that
        self._adopted: list[None] = []  # not empty: the native pool has the zygote

    @unbroken
    def __del__(self) -> None:
        if not self._adopted:
            self.close()

    def native(self, workers: int, **options: Any) -> _native.Pool:
        """The native pool, which has no zygote yet, and shared memory."""
        make = partial(_native.Pool, workers=workers, **options)
        self._ends += chain.from_iterable(starmap(_native.socketpair, [()]))
        self._natives += map(make, self._ends[:1])
        self._arena += starmap(_native.arena_create, [()])
        self.config.arena_fd = self._arena[0]
        return self._natives[0]

    def start(self, core: Core) -> None:
        """Start the zygote. To be called once."""
        try:
            self._start(core)
        except BaseException:
            self.close()
            raise
        self._tell(core)

    def _start(self, core: Core) -> None:
        config, theirs = self.config, self._ends[1]
        if core.method == "fork":
            settle = config.codec.look_at_program()
            zygote, first = start_fork(config, theirs, early=True)
            settle(_native.as_found)  # as it is after its fork hooks
        else:
            zygote, first = _start_exec(core, config, theirs), tuple
        try:  # not suppress(): after the fork each object is a page
            if config.arena_fd >= 0:
                self._arenas += map(_native.Arena, map(self._arena.pop, [0]))
        except (OSError, MemoryError):  # then large values go through the pipes
            pass
        arena = self._arenas[0] if self._arenas else None
        adopted = zip([zygote], starmap(first, [()]), [arena], strict=True)
        self._adopted += starmap(core.native.adopt, adopted)
        close_last(self._ends)

    def _tell(self, core: Core) -> None:
        if core.no_fork:
            text = "start method %r instead of 'fork', because of %s"
            # The threads' names are in the stats.
            short = re.sub(r"^(\d+ other thread)s?: .*", r"\1s", core.no_fork)
            core.log.fell_back("fork", logging.INFO, text, core.method, short)
        if not self._arenas:
            text = "no shared memory to be had: large values go through pipes"
            core.log.fell_back("arena", logging.WARNING, text)
        if not self.config.pidfd:
            text = "no pidfd to be had: the zygote notices our end by its socket alone"
            core.log.fell_back("pidfd", logging.INFO, text)

    def close(self) -> None:
        """It has failed, or was broken off: nothing of it is left. Idempotent."""
        for life in lives_of(self._natives):
            life.finish(ladder=_native.LADDER_KILL)
        while len(self._ends) > (1 if self._natives else 0):
            close_last(self._ends)
        if self.config.arena_fd >= 0 and self._arena:
            close_last(self._arena)
        born = [] if self._adopted else self.config.born
        while born:  # nobody else knows of it
            pid = born.pop()
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _only_forks(handed: Any) -> bool:
    """Whether workers cannot be handed this but by a fork: there are locks in it that
    multiprocessing made for that."""
    if "multiprocessing.synchronize" not in sys.modules:
        return False
    from ..codec.refusal import FORK_ONLY
    from ..worker import mp

    if not mp.has_fork_locks():
        return False
    codec = Codec("exec", ())
    codec.reducers = mp.reducers()
    try:
        with mp.spawning() as popen:
            codec.dumps(handed)
    except errors.SerializationError as error:
        return FORK_ONLY in str(error)
    for fd in popen.fds:
        os.close(fd)
    return False


def _start_exec(core: Core, config: Config, theirs: int) -> int:
    """Start a fresh interpreter, and say what a fork would have kept."""
    why = core.no_fork
    try:
        encode(config)
    except errors.SerializationError as error:
        if why:
            errors.add_note(
                error,
                f"With start_method='auto' this pool starts by {core.method!r}, because of {why}; "
                "where it can be forked, nothing of this need be sent.",
            )
        raise
    if why:
        core.warning = _what_is_lost(config, core.method, why)
    return start_exec(config, core.method, theirs)


def _what_is_lost(config: Config, method: str, why: str) -> str:
    """A warning, if "auto" takes something away that a fork would have kept (INV-11); or ""."""
    lost = []
    if any(not getattr(thing, "of_a_lane", False) for thing in config.inherit):
        lost.append("what inherit= names is copied to each worker, not shared with it")
    size = sum(len(data) + sum(map(len, buffers)) for data, buffers in config.payload)
    if size >= _LARGE:
        lost.append(f"{size / 1e6:.0f} MB of state are pickled and copied to each worker")
    if _logs():
        lost.append("workers do not have this program's logging: what they log below WARNING is "
                    "not written")  # fmt: skip
    if not lost:
        return ""
    return (
        f"start_method='auto' takes {method!r} here and not 'fork', because of {why}. By that "
        f"{'; '.join(lost)}. To be rid of it make the pool before that; or say "
        f"start_method={method!r} if this is what you want, or 'fork' if you know that "
        "nothing of that is used in the workers; logging can be set up in an initializer."
    )


def tell_loss(core: Core) -> None:
    """Warn of what `_what_is_lost` found, once in a program. Not under a lock of ours."""
    text, core.warning = core.warning, ""
    if text:
        _hazards.tell_user("auto", text)


def _logs() -> bool:
    """Whether the program has its log written to somewhere that a forked worker would write to."""
    for handler in logging.getLogger().handlers:
        stream = getattr(handler, "stream", None)
        try:
            if stream is not None and stream.fileno() >= 0 and stream.name != os.devnull:
                return True
        except Exception:  # a stream in memory, or a closed one
            continue
    return False

"""What can go wrong, whose fault it is, and what to do about it.

Everything that forkmill raises by itself is a ``PoolError``; what your own task raises arrives
as it was, with the worker's traceback below it. Bad options are plain ``TypeError`` and
``ValueError``, raised where the option was given.

::

    PoolError (RuntimeError)
     ├─ PoolClosed           the caller's: the pool was used after shutdown, or in a forked child
     ├─ PoolBroken           the pool cannot go on; `causes` says why    (also BrokenProcessPool)
     │   └─ InitError        the initializer's: it raised, exited, or took longer than init_timeout
     ├─ WorkerDied           the task's, mostly: the process that ran it is gone
     ├─ TaskTimeout          the task's: it ran longer than its `timeout`      (also TimeoutError)
     ├─ SerializationError   the data's: an object cannot travel       (also pickle.PicklingError)
     ├─ SharedGone           the caller's: a shared value was closed, or its owner has ended
     ├─ RemoteError          the task's: it raised what cannot be rebuilt on this side
     ├─ BuildError           the caller's: a pipeline or graph that cannot run as written
     │                                                                    (also ValueError)
     ├─ UpdateError          the graph's: updates that do not fit the state   (also ValueError)
     ├─ StepLimit            the run's: it has made as many steps as it may; it can be resumed
     ├─ StoreError           the store's: a checkpoint cannot be read or written
     ├─ SessionBusy          the caller's: another run, which is alive, has the session
     └─ SessionConflict      the caller's: the session is not what the call takes it for

What to do:

* ``PoolClosed``: make a new pool, or move the call before ``shutdown``. After ``os.fork`` the
  child needs a pool of its own.
* ``PoolBroken``: look at ``causes`` (exceptions, oldest first). No task was run twice and none
  was lost in silence: each has an outcome. Mend the cause, then make a new pool.
* ``WorkerDied``: only the task that was running is charged. ``signal_name``, ``exitcode``,
  ``oom`` and ``crash`` say how it ended. ``options(retries=n)`` tries such tasks again.
* ``TaskTimeout``: raise the limit, or make the task smaller. Only its worker was killed.
* ``SerializationError``: ``path`` leads to the object. Send what it was made from (a file name,
  not a file), make it in the worker (``initializer``), or hand it down with ``inherit=``.
* ``RemoteError``: ``type_name``, ``text``, ``notes`` and ``traceback`` are those of the original.
* ``UpdateError``: `key`, `nodes` and `step` say what does not go together. Nothing of the step was
  stored as done; what its nodes gave is kept.
* ``StepLimit``: resume the session with a higher ``max_steps``.
* ``StoreError``: what was stored before is whole. Mend the store, then resume.
* ``SessionBusy``: wait for the other run, or ``take_over=True`` if nobody runs it any more.
* ``SessionConflict``: the message says what the session is and which option allows the call.

All of them survive pickle and copy with their attributes.
"""

from __future__ import annotations

import functools
import os
import signal as _signal
import types
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures.process import BrokenProcessPool

__all__ = [
    "BuildError",
    "InitError",
    "PoolBroken",
    "PoolClosed",
    "PoolError",
    "RemoteError",
    "SerializationError",
    "SessionBusy",
    "SessionConflict",
    "SharedGone",
    "StepLimit",
    "StoreError",
    "TaskTimeout",
    "UpdateError",
    "WorkerDied",
]


class PoolError(RuntimeError):
    """Base of all that forkmill raises by itself."""

    # Exception.__reduce__ gives (class, args, __dict__): with one positional argument and every
    # attribute in __dict__, each subclass survives pickle and copy without code of its own.


class PoolClosed(PoolError):
    """The pool takes no more work: it was shut down, or belongs to another process."""


if TYPE_CHECKING:

    class PoolBroken(PoolError, BrokenProcessPool):
        """The pool cannot go on; ``causes`` says why."""

        causes: tuple[BaseException, ...]

        def __init__(self, message: str = ..., causes: Iterable[BaseException] = ...) -> None: ...

    class InitError(PoolBroken):
        """The initializer failed in a worker, so the pool is broken."""


def _make_broken() -> None:
    """Make PoolBroken and InitError, whose base costs an import of multiprocessing.

    That is 13 ms (measured, 3.11 and 3.13) and twice what a bare interpreter takes to start; it
    would be paid by every `import forkmill` and by every spawned worker, for classes that are
    only needed when a pool breaks. Nobody can hold an instance, or name either class in an
    `except` or `issubclass`, without having come through `__getattr__` below, so making them at
    that moment cannot be told from having made them at import. No lock (a fork could inherit it
    taken): the first `setdefault` wins, and all threads get its class.
    """
    try:
        from concurrent.futures.process import BrokenProcessPool as base
    except (ImportError, RuntimeError, OSError):
        # At interpreter exit it refuses to be imported. Then nobody has it to catch with either.
        from concurrent.futures import BrokenExecutor as base  # type: ignore[assignment]

    class PoolBroken(PoolError, base):
        """The pool cannot go on; ``causes`` says why.

        Attributes:
            causes: The exceptions that broke it, oldest first: deaths of workers, the failure of
                an initializer. May be empty when only the zygote died.
        """

        __qualname__ = "PoolBroken"

        def __init__(
            self, message: str = "the pool is broken", causes: Iterable[BaseException] = ()
        ) -> None:
            super().__init__(message)
            self.causes = tuple(causes)

    winner = globals().setdefault("PoolBroken", PoolBroken)

    class InitError(winner):  # type: ignore[misc,valid-type]
        """The initializer failed in a worker, so the pool is broken.

        Its ``__cause__``, where there is one, is what the initializer raised.
        """

        __qualname__ = "InitError"

    globals().setdefault("InitError", InitError)


def __getattr__(name: str) -> Any:
    if name not in ("PoolBroken", "InitError"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _make_broken()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class WorkerDied(PoolError):
    """The worker that was running the task is gone.

    Only the task that was running is charged; the worker is replaced by itself.

    Attributes:
        pid: The worker's process id.
        signal: Number of the signal that ended it, or None if it exited.
        signal_name: Its name (``"SIGSEGV"``), or ``""``.
        exitcode: Its exit code (0 too), or None if a signal ended it or nobody knows.
        task: Which item of the input it was, counted from 0, if it came by `map`, `starmap` or
            `amap`; 0 for a `submit`, whose future it is. (In a pipeline the Failure has the item.)
        rss_kb: The most resident memory the worker ever had, KiB.
        oom: Whether the kernel's out-of-memory killer did it.
        cause: ``"exit"`` (by itself, or by somebody's signal), ``"oom_kill"`` (the kernel, for
            lack of memory), ``"killed"`` (``Future.kill()``), ``"stopped"`` (the pool's shutdown),
            ``"memory_limit"`` (its memory was above the pool's), ``"protocol"`` (it sent malformed
            bytes).
        crash: What faulthandler wrote in the worker, or ``""``.
        attempts: How often the task was started.
        slot: The worker's place in the pool.
        mark: How far the task had come, where its code leaves numbers that say so (in a pipeline:
            which of several stages that run in one call); else 0.
    """

    def __init__(
        self,
        message: str = "the worker that ran this task is gone",
        *,
        pid: int = 0,
        signal: int | None = None,
        exitcode: int | None = None,
        task: int = 0,
        rss_kb: int = 0,
        oom: bool = False,
        cause: str = "exit",
        crash: str = "",
        attempts: int = 1,
        slot: int = 0,
        mark: int = 0,
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.signal = signal
        self.signal_name = "" if signal is None else signal_name(signal)
        self.exitcode = exitcode
        self.task = task
        self.rss_kb = rss_kb
        self.oom = oom
        self.cause = cause
        self.crash = crash
        self.attempts = attempts
        self.slot = slot
        self.mark = mark


class TaskTimeout(PoolError, TimeoutError):
    """The task ran longer than its ``timeout``; its worker was killed and replaced.

    Attributes:
        timeout: The limit in seconds, counted from the start of the task in its worker. Loading the
            function there comes before that, unless it takes more than a minute.
        pid: The process id of the worker that was killed, or 0.
        task: Which item of the input it was, counted from 0, if it came by `map`, `starmap` or
            `amap`; 0 for a `submit`, whose future it is. (In a pipeline the Failure has the item.)
        attempts: How often the task was started.
        slot: The worker's place in the pool.
    """

    def __init__(
        self,
        message: str = "the task ran longer than its timeout",
        *,
        timeout: float = 0.0,
        pid: int = 0,
        task: int = 0,
        attempts: int = 1,
        slot: int = 0,
    ) -> None:
        # One positional argument only: TimeoutError is an OSError, which takes two for errno and
        # strerror.
        super().__init__(message)
        self.timeout = timeout
        self.pid = pid
        self.task = task
        self.attempts = attempts
        self.slot = slot

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args[:1], self.__dict__


class SerializationError(PoolError, PicklingError):
    """An object cannot travel between the processes.

    Attributes:
        path: Where the object is, from the argument or result on: ``"[1]['conn'].sock"``. Empty
            if the whole object is meant, or if nobody knows.
    """

    def __init__(self, message: str = "an object cannot be sent", *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class RemoteError(PoolError):
    """A task raised an exception that cannot be rebuilt in this process.

    Attributes:
        type_name: The exception's type, ``"module.QualName"``.
        text: Its ``str()``.
        notes: Its ``__notes__``.
        traceback: The worker's formatted traceback, causes and contexts included.
    """

    def __init__(
        self,
        message: str = "the task failed",
        *,
        type_name: str = "",
        text: str = "",
        notes: Iterable[str] = (),
        traceback: str = "",
    ) -> None:
        super().__init__(message)
        self.type_name = type_name
        self.text = text
        self.notes = tuple(notes)
        self.traceback = traceback


class BuildError(PoolError, ValueError):
    """A pipeline or graph that cannot run as it is written; the message names the stage or node."""


class UpdateError(PoolError, ValueError):
    """Updates of a step that do not fit the state, or each other.

    Attributes:
        key: The key of the state, or ``""``.
        nodes: The nodes that wrote it, in the order of their tasks.
        step: The number of the step, which was not committed.
    """

    def __init__(
        self,
        message: str = "an update does not fit the state",
        *,
        key: str = "",
        nodes: Iterable[str] = (),
        step: int = 0,
    ) -> None:
        super().__init__(message)
        self.key = key
        self.nodes = tuple(nodes)
        self.step = step


class StepLimit(PoolError):
    """A run of a state graph has made as many steps as it may, and is not complete.

    Attributes:
        max_steps: How many one call may make.
        step: The last step that was committed.
    """

    def __init__(
        self, message: str = "the run reached max_steps", *, max_steps: int = 0, step: int = 0
    ) -> None:
        super().__init__(message)
        self.max_steps = max_steps
        self.step = step


class StoreError(PoolError):
    """A store of checkpoints that cannot be opened, read or written."""


class SessionBusy(PoolError):
    """The session belongs to a run that is alive.

    Attributes:
        session: Its id.
        owner: Who runs it, as text.
    """

    def __init__(
        self, message: str = "the session is busy", *, session: str = "", owner: str = ""
    ) -> None:
        super().__init__(message)
        self.session = session
        self.owner = owner


class SessionConflict(PoolError):
    """The session is not what a call takes it for: unknown, unfinished, of another graph, taken.

    Attributes:
        session: Its id.
    """

    def __init__(self, message: str = "the session conflicts", *, session: str = "") -> None:
        super().__init__(message)
        self.session = session


class RemoteTraceback(Exception):
    """The worker's formatted traceback; the cause of an exception that came from there."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text

    @property
    def tb(self) -> str:
        """The text as it is shown: the standard library's name for it."""
        return str(self)

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


# The name that tracebacks show.
RemoteTraceback.__module__ = "forkmill.codec.codec"


# ------------------------------------------------------------- exceptions of whatever kind

# An exception may be a frozen dataclass, forbid attributes, or have properties of these names: what
# we do to one that is not ours goes past its class.
_SLOTS = vars(BaseException)


def slot(error: BaseException, name: str) -> Any:
    """BaseException's own ``__traceback__``, ``__cause__``, ``args``, ... of an exception."""
    return _SLOTS[name].__get__(error)


def set_slot(error: BaseException, name: str, value: Any) -> None:
    """Set what slot() gives."""
    _SLOTS[name].__set__(error, value)


def bare(error: BaseException) -> BaseException:
    """The exception, without its traceback: that holds the frames, and all that is in them."""
    set_slot(error, "__traceback__", None)
    return error


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, whatever its class says to that."""
    attributes = slot(error, "__dict__")
    notes = attributes.get("__notes__")
    attributes["__notes__"] = [*notes, text] if isinstance(notes, (list, tuple)) else [text]


class SharedGone(PoolError):
    """A shared value (`fm.share`) that was closed, or whose owner has ended."""


def name_of(fn: Any) -> str:
    """What messages call a function; never its arguments, which may be huge.

    A partial is called what it is one of, a callable object by its class; a lambda has its place.
    What stands for a function of the user's says in `_forkmill_label` what it stands for.
    """
    label = label_of(fn)
    if label:
        return label
    while isinstance(fn, (functools.partial, types.MethodType)):
        fn = fn.func if isinstance(fn, functools.partial) else fn.__func__
    name = kept_in(fn, "__qualname__")
    if not isinstance(name, str):
        return type(fn).__qualname__
    code = kept_in(fn, "__code__")
    if name.endswith("<lambda>") and code is not None:
        return f"{name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
    return name


def mark_of(fn: Any, name: str) -> Any:
    """What something of ours that is called says of itself in an attribute: a function, or an
    object whose class has it. None: it says nothing, or is the user's, who is not asked."""
    if type(fn) is types.FunctionType:
        return fn.__dict__.get(name)
    return getattr(fn, name) if hasattr(type(fn), name) else None


def label_of(fn: Any) -> str | None:
    """What something of ours stands for; None: it is the user's."""
    found = mark_of(fn, "_forkmill_label")
    return found if isinstance(found, str) else None


_IN_C = (types.GetSetDescriptorType, types.MemberDescriptorType)


def kept_in(thing: Any, name: str) -> Any:
    """An attribute that is kept in an object; None: there is none, or code would have to find it
    out (a property, `__getattr__`): asking for it could fail, or do anything."""
    kind = type(thing)
    for base in kind.__mro__:
        found = base.__dict__.get(name)
        if found is not None:
            return found.__get__(thing, kind) if type(found) in _IN_C else None
    if kind is types.MethodType:
        return kept_in(thing.__func__, name)
    try:
        return object.__getattribute__(thing, "__dict__").get(name)
    except AttributeError:  # it has none
        return None


def is_coroutine_function(fn: Any) -> bool:
    """As inspect's, which asks an object that is none for names."""
    import inspect  # for who calls coroutines alone

    while isinstance(fn, (functools.partial, types.MethodType)):
        fn = fn.func if isinstance(fn, functools.partial) else fn.__func__
    return kept_in(fn, "__code__") is not None and inspect.iscoroutinefunction(fn)


def signal_name(number: int) -> str:
    """Name of a signal: ``"SIGKILL"``, or ``"signal 42"`` if it has none."""
    try:
        return _signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# enum fm_cause of forkmill.h. This module is row 0: it may not ask _native for the numbers.
_TIMEOUT = 2
_OOM = "oom_kill"
_CAUSES = {1: "exit", 2: "timeout", 3: "killed", 4: "protocol", 5: "stopped", 6: "memory_limit"}

_CRASHES = frozenset({"SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS"})


def death(info: Mapping[str, int], crash: str = "") -> WorkerDied | TaskTimeout:
    """The exception for a death record (``struct fm_death``).

    Args:
        info: Its fields: pid, status, slot, cause, oom, attempts, rss_kb, task, timeout_ns,
            mark.
        crash: What faulthandler wrote.
    """
    where = {key: info[key] for key in ("pid", "task", "attempts", "slot")}
    if info["cause"] == _TIMEOUT:
        seconds = info["timeout_ns"] / 1e9
        return TaskTimeout(
            f"the task ran longer than its timeout of {seconds:g} s, so its worker (pid "
            f"{info['pid']}) was killed. Give it more time, options(timeout=...), or less to do.",
            timeout=seconds,
            **where,
        )
    signal, exitcode = _decode(info["status"])
    cause = _CAUSES.get(info["cause"], "exit")
    oom = bool(info["oom"])
    error = WorkerDied(
        f"worker {info['pid']} {_story(cause, signal, exitcode, oom, info['rss_kb'])}",
        signal=signal,
        exitcode=exitcode,
        rss_kb=info["rss_kb"],
        oom=oom,
        cause=_OOM if oom and cause == "exit" else cause,
        crash=crash,
        mark=info["mark"],
        **where,
    )
    if crash:
        error.add_note(f"What faulthandler wrote in the worker:\n{crash.rstrip()}")
    return error


def cause_name(cause: int, status: int, oom: int = 0) -> str:
    """What a worker died of, in a word or two: "SIGSEGV", "exit 3", "oom_kill", "timeout", ..."""
    word = _CAUSES.get(cause, "other")
    if word != "exit":
        return word
    if oom:
        return _OOM
    signal, exitcode = _decode(status)
    if signal is not None:
        return signal_name(signal)
    return "unknown" if exitcode is None else f"exit {exitcode}"


def _decode(status: int) -> tuple[int | None, int | None]:
    """(signal, exit code) of a wait status; both None for -1, which nobody could collect."""
    if status < 0:
        return None, None
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status), None
    if os.WIFEXITED(status):
        return None, os.WEXITSTATUS(status)
    return None, None


def _story(cause: str, signal: int | None, exitcode: int | None, oom: bool, rss_kb: int) -> str:
    """What happened to a worker, and what to do."""
    if cause == "killed":
        return "was killed by Future.kill() while it ran this task."
    if cause == "memory_limit":
        return (
            f"was killed while it ran this task: its memory was above memory_limit (it had "
            f"{rss_kb / 1024:.0f} MiB at most). Give it more, or smaller tasks."
        )
    if cause == "stopped":
        return (
            "was ended by the pool's shutdown while it ran this task. "
            "shutdown(wait=True) lets running tasks finish."
        )
    if cause == "protocol":
        return (
            "sent malformed bytes and was killed while it ran this task. Something in it writes "
            "to descriptors it does not own, or corrupts memory: look at native code first."
        )
    if oom:
        return (
            f"was killed by the kernel for lack of memory while it ran this task (it had "
            f"{rss_kb / 1024:.0f} MiB at most). Use fewer workers, smaller tasks, or max_rss=."
        )
    if signal is not None:
        return _signal_story(signal_name(signal), rss_kb)
    if exitcode is not None:
        return (
            f"exited with code {exitcode} while it ran this task: something called os._exit() or "
            f"C's exit(). A task must return or raise."
        )
    return "is gone while it ran this task; somebody else collected its exit status."


def _signal_story(name: str, rss_kb: int) -> str:
    if name in _CRASHES:
        return (
            f"crashed with {name} while it ran this task: a bug in native code, or a stack that "
            f"overflowed. The attribute `crash` has what faulthandler saw of it."
        )
    if name == "SIGKILL":
        return (
            f"was killed with SIGKILL from outside while it ran this task (it had "
            f"{rss_kb / 1024:.0f} MiB at most): a container's memory limit, or somebody's kill -9."
        )
    return f"was ended by {name} while it ran this task, sent from outside or by the task itself."

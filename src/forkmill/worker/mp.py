"""multiprocessing as a task sees it: as in a worker of the standard library.

Loaded only where multiprocessing is: nobody pays for what the user's program does not use.

::

    user's process                          worker
      channels()   what is to be inherited    Birth.bootstrap()   multiprocessing was there before
      spawning()   Lock, Queue, Pipe ... in   Birth.watched_spec() it is imported later
                   initargs, by value         Birth.prepare()      in a child by copy-on-write

Guarantees:
    * In a worker current_process() has the class and the name that a ProcessPoolExecutor's workers
      have, the user's authkey, and the user's process for its parent; what registered for it is
      told of the fork; finalizers run when the worker ends in order.
    * A number in a name is a worker's place in its pool: a successor has its predecessor's, and no
      two that live at once have the same.
    * Nothing of multiprocessing is changed in the user's process, but that its numbers for
      processes are used up.

Threads: in the user's process any; in a worker its first one.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any

from .. import _native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Our start methods in multiprocessing's words: the class of process, and the method.
_CLASSES = {
    "fork": ("ForkProcess", "fork"),
    "zygote": ("ForkServerProcess", "forkserver"),
    "spawn": ("SpawnProcess", "spawn"),
}


# ------------------------------------------------------------------ in the user's process


def family(workers: int) -> tuple[Any, ...]:
    """What the next pool's workers will say of themselves: their parent's name and identity, their
    first number, and the configuration that they inherit."""
    process = sys.modules["multiprocessing.process"]
    parent = process.current_process()
    numbers = list(itertools.islice(process._process_counter, workers))
    settings = {**parent._config, "authkey": bytes(parent.authkey)}
    settings.pop("daemon", None)  # a worker is none, and its tasks may have children
    return parent.name, parent._identity, numbers[0], settings


def load() -> None:
    """Import what multiprocessing itself imports first in each of its processes: once, before the
    fork, and not in each worker, where it takes longer than all the rest of the start."""
    import multiprocessing.util  # noqa: F401


def channels(known: list[int]) -> list[int]:
    """Descriptors of what multiprocessing holds open here: connections, those of queues among
    them, listeners, and the way to the resource tracker.

    Args:
        known: Pipes and sockets that are not multiprocessing's.
    """
    module: Any = sys.modules.get("multiprocessing.resource_tracker")
    way = getattr(getattr(module, "_resource_tracker", None), "_fd", None)
    found = [] if way is None else [way]
    connection = sys.modules.get("multiprocessing.connection")
    if connection is None:
        return found
    # What a program has made inheritable, or has inherited, it has reasons for; and to look for
    # the owner costs 30 ns for each object that there is.
    inheritable, unknown = _unknown({*known, *found})
    found += inheritable
    if not unknown:
        return found
    if gc.get_freeze_count():
        return [*found, *unknown]  # what is frozen nobody lists: as in the standard library, all
    types = (*_all_of(connection._ConnectionBase), connection.SocketListener)
    for thing in _native.of_types(gc.get_objects(), types):
        with contextlib.suppress(Exception):  # closed, or half made
            found.append(getattr(thing, "_socket", thing).fileno())
    return found


def _all_of(kind: type) -> list[type]:
    kinds = [kind]
    for one in kinds:
        kinds += one.__subclasses__()
    return kinds


def _unknown(known: set[int]) -> tuple[list[int], list[int]]:
    """Open pipes and sockets that are not known, standard streams aside: those that are
    inheritable, and the others. Other threads may close one after it has been listed."""
    import stat

    inheritable: list[int] = []
    others: list[int] = []
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        if fd <= 2 or fd in known:
            continue
        with contextlib.suppress(OSError):  # closed: the listing's own, or by another thread
            mode = os.fstat(fd).st_mode
            if (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) and not _native.fork_closes(fd):
                (inheritable if os.get_inheritable(fd) else others).append(fd)
    return inheritable, others


class _Handed:
    """A descriptor on its way to workers, under the number that it has here."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def detach(self) -> int:
        return self._fd


class Spawning:
    """What multiprocessing asks while its objects are pickled for a process that is being made.

    Attributes:
        fds: Copies of what is to be handed to the process; the caller's to close.
    """

    DupFd = _Handed

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        import fcntl

        self.fds.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10))
        return self.fds[-1]

    def hand_tracker(self) -> int:
        """The way to the resource tracker, if the user's program uses one; -1: it does not.

        Without it a worker would start one of its own, which removes the user's shared memory.
        """
        tracker = sys.modules.get("multiprocessing.resource_tracker")
        if tracker is None:
            return -1
        return self.duplicate_for_child(tracker.getfd())


@contextlib.contextmanager
def spawning() -> Iterator[Spawning]:
    """Within it multiprocessing's locks, queues and connections can be pickled, for workers.

    Copies are closed if it fails.
    """
    context = sys.modules["multiprocessing.context"]
    before = context.get_spawning_popen()
    popen = Spawning()
    context.set_spawning_popen(popen)
    try:
        yield popen
    except BaseException:
        for fd in popen.fds:
            os.close(fd)
        raise
    finally:
        context.set_spawning_popen(before)


def has_fork_locks() -> bool:
    """Whether there is a lock that multiprocessing made for a fork, and nothing else."""
    lock = sys.modules["multiprocessing.synchronize"].SemLock
    # Not values(): it walks the table itself, to which another thread may add meanwhile.
    known = sys.modules["multiprocessing.util"]._afterfork_registry.valuerefs()
    living = [reference() for reference in known]
    return any(isinstance(one, lock) and getattr(one, "_is_fork_ctx", True) for one in living)


def reducers() -> dict[Any, Any]:
    """How multiprocessing pickles for processes that are being made, by type."""
    found: dict[Any, Any] = sys.modules["multiprocessing.reduction"].ForkingPickler._extra_reducers
    return found


# ------------------------------------------------------------------------------ in a worker


class Birth:
    """Who a worker is to multiprocessing.

    Args:
        method: Of the pool.
        slot: The worker's place.
        parent: The user's process.
        family: As of family(), or () if multiprocessing was not there.
        tracker: Descriptor of the resource tracker, or -1.
    """

    def __init__(
        self, method: str, slot: int, parent: int, family: tuple[Any, ...], tracker: int
    ) -> None:
        self._class, self._method = _CLASSES[method]
        self._parent = parent
        self._name, self._identity, first, self._settings = family or ("MainProcess", (), 1, {})
        self._number = first + slot
        self._tracker = tracker

    def bootstrap(self, run: Callable[[], object]) -> None:
        """Run what a worker does as the body of its process: names, hooks and finalizers are the
        standard library's own, and what others have patched into them."""
        self._use_tracker()
        process = self._process(sys.modules["multiprocessing.context"])
        stdin, sys.stdin = sys.stdin, None  # it is ours already, and no terminal's

        def body() -> None:
            sys.stdin = stdin
            run()

        process.run = body
        process._bootstrap(parent_sentinel=self._sentinel())

    def become(self, context: Any) -> None:
        """multiprocessing has just been imported: the same, as far as it can still be had."""
        process = context.process
        ours = self._process(context)
        ours._config.setdefault("authkey", process._current_process.authkey)
        process._current_process = ours
        process._parent_process = process._ParentProcess(
            ours._parent_name, ours._parent_pid, self._sentinel()
        )
        process._process_counter = itertools.count(1)
        context._force_start_method(self._method)

    def prepare(self) -> Callable[[], None]:
        """For a child by copy-on-write, made before its fork: what it calls to be a process of its
        own, as far as that leads to what it calls at its end."""
        context = sys.modules["multiprocessing.context"]
        process, util = context.process, sys.modules["multiprocessing.util"]
        ours = self._process(context)
        parent = _lazy_parent(process._ParentProcess)(self._name, self._parent, None)

        def enter() -> None:
            process._current_process, process._parent_process = ours, parent
            process._process_counter, process._children = itertools.count(1), set()
            util._finalizer_registry.clear()
            util._run_after_forkers()

        return enter

    def _process(self, context: Any) -> Any:
        module = context.process
        made = getattr(context, self._class)()
        made._identity = (*self._identity, self._number)
        made._name = f"{self._class}-{':'.join(map(str, made._identity))}"
        made._parent_name, made._parent_pid = self._name, self._parent
        settings = dict(self._settings)
        key = settings.pop("authkey", None)
        made._config.update(settings)
        if key is not None:
            made._config["authkey"] = module.AuthenticationString(key)
        return made

    def _sentinel(self) -> int | None:
        return _sentinel(self._parent)

    def _use_tracker(self, module: Any = None) -> None:
        module = module or sys.modules.get("multiprocessing.resource_tracker")
        if module is not None and self._tracker >= 0:
            module._resource_tracker._fd = self._tracker

    def _imported(self, name: str, module: Any) -> None:
        """A module of multiprocessing is there."""
        if name == "multiprocessing.context":
            self.become(module)
        else:
            self._use_tracker(module)

    def watched_spec(self, name: str, path: Any) -> Any:
        """The spec of a module of multiprocessing's that tells us once it has been executed."""
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        loader = getattr(spec, "loader", None)
        if loader is None or isinstance(loader, type):
            return spec
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            self._imported(name, module)

        loader.exec_module = exec_module  # this one module's own loader
        return spec


def _sentinel(pid: int) -> int | None:
    """What is readable once that process is gone; None: there is no such thing here."""
    try:
        return _native.pidfd_open(pid)
    except OSError:
        return None


def _lazy_parent(kind: Any) -> Any:
    """A parent process as multiprocessing knows it, whose sentinel is opened when it is asked for:
    a child that lives for one call has no descriptor for it."""

    class Parent(kind):  # type: ignore[misc]
        @property
        def _sentinel(self) -> int | None:
            if "sentinel" not in self.__dict__:
                self.__dict__["sentinel"] = _sentinel(self._pid)
            found: int | None = self.__dict__["sentinel"]
            return found

        @_sentinel.setter
        def _sentinel(self, value: object) -> None:
            pass

    Parent.__name__ = kind.__name__
    return Parent

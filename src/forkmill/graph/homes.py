"""Where calls of a graph run: what was asked for, and the executor that is opened for it.

    "parallel:8"  fm.thread(4)  a named pool  any Executor ──home_of──▶ Home ──Session──▶ executor

    kind     what it is                                        its calls get there by
    inline   the thread that carries the graph out             nothing
    thread   threads of this process, ours or the caller's     ThreadWay
    lane     our other contexts                                LaneWay
    submit   any other concurrent.futures.Executor             SubmitWay

Guarantees:
    * A wrong name is refused here, before anything runs.
    * A session ends what it has opened, and nothing else: executors that were given and named pools
      live on.
    * Equal specs are one executor in a session: one budget.
    * Processes are forked before threads are made.

Threads: any; a session has a lock.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import contexts
from .._process import cpus
from ..codec.share import forget_closed
from ..contexts.specs import class_of
from ..errors import BuildError
from ..runs.executor import Face
from .handing import VAST
from .kept import Kept

if TYPE_CHECKING:
    from collections.abc import Container, Hashable, Iterable

__all__ = ["INLINE", "Home", "Session", "home_of"]

_DEATHS = ((1 << 31) - 1, 10.0)  # of workers, in seconds: each costs an item, and is told there
_FIRST = ("ipc_fork", "cow_fork", "interpreter", "thread", "async")  # in this order


@dataclass(frozen=True)
class Home:
    """What was asked for.

    Attributes:
        key: Equal for what is one executor.
        kind: See the head of this file.
        type: The context's type; "executor" for others.
        spec: How it is opened, or None.
        executor: What was given, or None.
        kills: Whether a call that runs can be stopped.
        isolated: Whether calls run in other processes, which are sent what they need.
        remote: Whether they run on an engine, in chunks of its own.
        title: What messages and plans call it.
    """

    key: Hashable
    kind: str
    type: str
    spec: Any = None
    executor: Any = None
    kills: bool = False
    isolated: bool = False
    remote: bool = False
    title: str = ""

    @property
    def repeats(self) -> bool:
        """Whether an item may run again when a worker dies that had others, too."""
        if self.spec is not None:
            return bool(self.spec.repeats)
        return self.remote and bool(self.executor.repeats)

    @property
    def inline(self) -> bool:
        """Whether nothing is needed for it."""
        return self.kind == "inline"


INLINE = Home("inline", "inline", "inline", title="sequential")


def home_of(asked: Any, max_workers: int | None = None) -> Home:
    """What an executor was asked for by.

    Args:
        asked: A name, alias or text such as "thread:8", a spec, a named pool, an Executor; None:
            the caller's thread.
        max_workers: How many calls at once, where `asked` does not say it.

    Raises:
        BuildError: There is nothing of that name, or it is something else.
    """
    if asked is None:
        return INLINE
    if isinstance(asked, contexts.NamedPool):
        return _of_spec(asked.lent())
    if isinstance(asked, (str, contexts.Spec)):
        try:
            spec = contexts.spec(asked)
            sized = spec.max_workers is not None or type(spec) is not contexts.Spec
            if not sized and spec.type != "inline":
                spec = spec.sized(max_workers, {})
        except (TypeError, ValueError) as error:
            raise BuildError(str(error)) from None
        return _of_spec(spec)
    if isinstance(asked, concurrent.futures.Executor):
        return _of_executor(asked)
    raise BuildError(
        f"an executor is asked for by a name such as 'threaded:8', by a spec, a named pool, or a "
        f"concurrent.futures.Executor, not {type(asked).__name__!r}"
    )


def _of_spec(spec: Any) -> Home:
    if spec.type == "inline":
        return INLINE
    return Home(
        spec,
        _kind(spec.type),
        spec.type,
        spec=spec,
        title=str(spec),
        **_abilities(class_of(spec.type)),
    )


def _kind(type: str) -> str:
    return "thread" if type == "thread" else "lane"


def _abilities(known: Any) -> dict[str, bool]:
    return {
        "kills": bool(known.kills),
        "isolated": bool(known.isolated) and known.type != "cow_fork",
        "remote": not known.local,
    }


def _of_executor(executor: Any) -> Home:
    given: dict[str, Any] = {"executor": executor}
    if isinstance(executor, contexts.Executor) and hasattr(executor, "lane"):
        if executor.type == "inline":
            return INLINE
        given |= _abilities(executor)
        return Home(id(executor), _kind(executor.type), executor.type, title=executor.type, **given)
    title = type(executor).__name__
    if isinstance(executor, concurrent.futures.ThreadPoolExecutor):
        return Home(id(executor), "thread", "executor", title=title, **given)
    own = isinstance(executor, Face)
    near = own or isinstance(executor, concurrent.futures.ProcessPoolExecutor)
    return Home(id(executor), "submit", "executor", kills=own, isolated=near, title=title, **given)


def width_of(home: Home, executor: Any) -> int:
    """How many calls there are at once, at most."""
    width = getattr(executor, "width", None) or getattr(executor, "_max_workers", None)
    return width if isinstance(width, int) and width > 0 else cpus()


class Session:
    """The executors of one call, or of an engine that stays warm."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next one
        self._open: dict[Hashable, Any] = {}
        self._pools: list[Any] = []  # those of them that can be killed, and are ours alone
        self.kept = Kept()  # what the last call has shared with them
        self.sent: dict[Hashable, Any] = {}  # by a home's key: what the last map there called
        self.paces: dict[Hashable, tuple[Any, list[int]]] = {}  # its piece, and the pool's pace

    def open(self, homes: Iterable[Home], inherit: dict[Hashable, tuple[Any, ...]]) -> None:
        """Open what is not open yet.

        Args:
            homes: All that are needed.
            inherit: By a home's key: what workers get that are forked for it.
        """
        mine = [home for home in homes if home.spec is not None]
        mine.sort(key=lambda home: _FIRST.index(home.type) if home.type in _FIRST else 9)
        with self._lock:
            for home in mine:
                if home.key in self._open:
                    continue
                more: dict[str, Any] = {}
                if home.type == "ipc_fork" and type(home.spec) is contexts.Spec:
                    known = home.spec.options.get("inherit", ())
                    more["inherit"] = (*known, *inherit.get(home.key, ()))
                    if home.spec.options.get("restarts") is None:
                        more["restarts"] = _DEATHS
                executor = self._open[home.key] = home.spec.open(**more)
                if more:
                    self._pools.append(executor)

    def has(self, home: Home) -> bool:
        """Whether the executor of a home is open."""
        return home.key in self._open

    def executor(self, home: Home) -> Any:
        """The open executor of a home."""
        if home.executor is not None:
            return home.executor
        executor = self._open[home.key]
        # A named pool is lent: what it lends has all of its methods.
        shared = type(home.spec) is not contexts.Spec
        return executor.executor if shared else executor

    def make_room(self, used: Container[int]) -> None:
        """What was kept goes before a vast constant is encoded, here and in workers: they have time
        for it now, and none when results are waited for.

        Args:
            used: Ids of the values that the call has: they stay.
        """
        if self.kept.leave(used) < VAST:
            return
        self.sent.clear()  # a function that was sent keeps its constants
        with self._lock:
            pools = [pool for pool in self._pools if not pool._replaces]  # no task is for nothing
        for pool in pools:
            with contextlib.suppress(RuntimeError):  # broken: who asks it for results hears of it
                for _ in range(pool.width):
                    pool.submit(forget_closed)

    def close(self, *, well: bool = True, wait: bool = True) -> None:
        """End what was opened here. Idempotent.

        Args:
            well: What runs is finished; else it is ended where that can be done.
            wait: Return when all is over.
        """
        with self._lock:
            executors, pools = tuple(self._open.values()), tuple(self._pools)
        self.kept.close()
        self.sent.clear()
        self.paces.clear()
        for pool in () if well else pools:
            pool.kill()
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)
        if wait:
            for executor in executors:
                executor.shutdown(wait=True)
        with self._lock:  # last: who was broken off in here does it again
            self._open.clear()
            self._pools.clear()

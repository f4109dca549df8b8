"""Where tasks run: the executors of a run or session, and how much of a shared one is ours.

    node ──▶ Places ──▶ inline: called where the run is
                   ├──▶ the caller's event loop (ainvoke), for coroutine functions
                   └──▶ an Executor: opened at the first use of its context, closed at the end
                             └── a named pool is lent: at most ceil(width / sessions) tasks each

Guarantees:
    * What is opened here is closed here; a named pool outlives it.
    * Contexts of processes are opened before those of threads: a fork has no thread of ours in it.

Threads: one run's.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from .._late import WeakKeyDictionary
from ..codec.share import address, share
from ..contexts.specs import Spec, aio, class_of
from ..errors import TaskTimeout
from .task import Laid

if TYPE_CHECKING:
    from .node import Node
    from .plan import Plan

__all__ = ["INLINE", "SHARE_FROM", "Place", "Places"]

SHARE_FROM = 1 << 15  # bytes: from there on a value goes by shared memory
INLINE: Any = None  # the place of a node that is called where the run is

_lock = threading.Lock()  # guards the next one
# How many sessions use each shared executor just now.
_shares: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class Place:
    """An executor as one run uses it.

    Attributes:
        executor: It.
        lent: Whether it is shared with others.
        running: How many tasks of this run are in it.
    """

    __slots__ = ("_views", "executor", "isolated", "lent", "running", "width")

    def __init__(self, executor: Any, kind: Spec) -> None:
        self.executor = executor
        self.lent = getattr(kind, "pool", None) is not None
        self.isolated = bool(class_of(kind.type).isolated)
        self.width = 0
        self.running = 0
        self._views: dict[float | None, Any] = {}
        if self.lent:
            self.executor = executor.executor  # it is started here, and not at a task
            self.width = int(getattr(self.executor, "width", 1))

    def share(self, number: int) -> None:
        """One session more, or less, uses it just now, if it is shared."""
        if not self.lent:
            return
        with _lock:
            left = _shares.get(self.executor, 0) + number
            if left > 0:
                _shares[self.executor] = left
            else:
                _shares.pop(self.executor, None)

    def room(self) -> bool:
        """Whether one more task of this run may go there."""
        if not self.lent:
            return True
        sessions = _shares.get(self.executor, 1)
        return self.running < -(-self.width // sessions)

    def submit(self, node: Node, fn: Any, args: tuple[Any, ...]) -> Any:
        """Have a task run there; its future."""
        view = self._views.get(node.timeout)
        if view is None:
            options: dict[str, Any] = {} if node.timeout is None else {"timeout": node.timeout}
            # A task's death is its node's matter, and breaks no pool.
            view = self._views[node.timeout] = self.executor._excused().options(**options)
        future = view.submit(fn, *args)
        self.running += 1
        return future

    def close(self, *, at_once: bool) -> None:
        """End it, if it is ours."""
        if not self.lent:
            # What was told to end has ended by now, but in a thread, which nobody can stop.
            self.executor.shutdown(self.isolated or not at_once, cancel_futures=True)


class _Loop:
    """The event loop of who awaits the run; it is not ours to end."""

    lent = isolated = False
    running = 0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def room(self) -> bool:
        return True

    def submit(self, node: Node, fn: Any, args: tuple[Any, ...]) -> Future[Any]:
        async def run() -> Any:
            if node.timeout is None:
                return await fn(*args)
            limit = asyncio.timeout(node.timeout)
            try:
                async with limit:
                    return await fn(*args)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise TaskTimeout(
                    f"the node ran longer than its timeout of {node.timeout:g} s, so it was "
                    "cancelled",
                    timeout=node.timeout,
                ) from None

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def close(self, *, at_once: bool) -> None:
        """Nothing of it is ours."""


class Places:
    """The executors that a graph's nodes need, opened as they are needed.

    Args:
        plan: The graph.
        loop: The event loop of who awaits the run, for coroutine functions without a context.
    """

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._plan = plan
        self._loop = None if loop is None else _Loop(loop)
        self._open: dict[Spec, Place] = {}
        self._by_node: dict[str, Any] = {}
        self._runs = 0
        self._local = all(class_of(node.context.type).local for node in plan.nodes.values())
        self._laid: dict[Any, tuple[bytes, Any, Any]] = {}  # bytes, handle, how it travels

    def of(self, node: Node) -> Any:
        """The place of a node; INLINE: it is called here.

        Raises:
            PoolError, OSError: Its context cannot be opened.
        """
        try:
            return self._by_node[node.name]
        except KeyError:
            pass
        kind = self._kind(node)
        place: Any = INLINE
        if kind is not None:
            if self._loop is not None and kind == _ASYNC:
                place = self._loop
            else:
                if kind not in self._open:
                    self._open_all(class_of(kind.type).isolated)
                place = self._open[kind]
        self._by_node[node.name] = place
        return place

    def _kind(self, node: Node) -> Spec | None:
        """The context that a node runs in; None: where the run is."""
        if node.context.type != "inline":
            return node.context
        return _ASYNC if node.is_async else None

    def open(self) -> None:
        """Open the contexts of all nodes now: in this thread, which may be one that may fork.

        Raises:
            PoolError, OSError: One cannot be opened.
        """
        self._open_all(False)

    def _open_all(self, forks_only: bool) -> None:
        """Open the contexts of all nodes, those of processes first."""
        kinds = [kind for node in self._plan.nodes.values() if (kind := self._kind(node))]
        kinds.sort(key=lambda kind: not class_of(kind.type).isolated)
        for kind in dict.fromkeys(kinds):
            if kind in self._open or (kind == _ASYNC and self._loop is not None):
                continue
            if forks_only and not class_of(kind.type).isolated:
                continue
            place = self._open[kind] = Place(self._opened(kind), kind)
            place.share(self._runs)

    def _opened(self, kind: Spec) -> Any:
        """Its executor. Functions that cannot be sent are inherited; all others are sent, so that
        a task sees what they name as it is now."""
        plan = self._plan
        calls = [plan.calls[name] for name in plan.inherited if plan.nodes[name].context == kind]
        if not calls:
            return kind.open()
        return kind.open(inherit=(*kind.options.get("inherit", ()), *calls))

    def begin(self) -> None:
        """A run begins: from here on it has its share of what others use too."""
        self._runs += 1
        for place in self._open.values():
            place.share(1)

    def end(self) -> None:
        """It is over."""
        self._runs -= 1
        for place in self._open.values():
            place.share(-1)

    def shared(self, data: bytes, slot: Any) -> Any:
        """Bytes for other processes: large ones lie in shared memory, laid there once.

        Args:
            data: The bytes.
            slot: What they are of: at most one block of memory is kept for each.
        """
        if len(data) < SHARE_FROM:
            return data
        kept = self._laid.get(slot)
        if kept is None or kept[0] is not data:
            handle = share(Laid(data))
            # An address leads somewhere on this machine only; a handle anywhere.
            sent = address(handle) if self._local else None
            kept = self._laid[slot] = (data, handle, sent or handle)
        return kept[2]

    def close(self, *, at_once: bool = False) -> None:
        """End what was opened. Idempotent.

        Args:
            at_once: What runs is ended, where it can be.
        """
        self._by_node.clear()
        self._laid.clear()
        while self._open:
            _, place = self._open.popitem()
            place.share(-self._runs)
            place.close(at_once=at_once)


_ASYNC = aio()

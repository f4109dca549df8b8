"""ContextPool: at most so many contexts of a type, lent in the order of asking.

Guarantees:
    * Never more than `max_size` are out; waiting acquirers are served first come, first served.
    * Inline contexts are used again, the others are made fresh. A context that was terminated or
      closed is not handed out again.

Threads: any.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import errors
from .base import Metrics, integer
from .context import Context
from .specs import Spec, spec

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ContextPool"]


class ContextPool:
    """Lends contexts of one type.

    Args:
        type: A type, alias, or spec.
        max_size: How many may be out at once.
        **options: Of the contexts.

    Raises:
        TypeError, ValueError: A wrong type or option.
    """

    def __init__(self, type: str | Spec, max_size: int = 10, **options: Any) -> None:
        self._spec = spec(type, **options)
        self._capacity = integer("max_size", max_size, least=1)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards the rest
        self._active: dict[int, Context] = {}
        self._idle: list[Context] = []
        self._queue: deque[threading.Event] = deque()  # who waits, first come first
        self._taken = 0  # places that are out or promised
        self._created = self._reused = self._failed = 0
        self._closed = False

    def acquire(self, name: str | None = None, timeout: float | None = None) -> Context:
        """Borrow a context.

        Args:
            name: What it is called.
            timeout: Seconds to wait for one; None: as long as it takes.

        Raises:
            TimeoutError: None was given back in time.
            PoolClosed: The pool is closed.
        """
        self._take_place(timeout)
        try:
            return self._lend(name)
        except BaseException:
            self._give_place()
            raise

    def _take_place(self, timeout: float | None) -> None:
        with self._lock:
            if self._closed:
                raise errors.PoolClosed("this ContextPool is closed")
            if self._taken < self._capacity and not self._queue:
                self._taken += 1
                return
            turn = threading.Event()
            self._queue.append(turn)
        try:
            turn.wait(timeout)
        finally:
            with self._lock:
                served = turn not in self._queue
                if not served:
                    self._queue.remove(turn)
            # A Ctrl-C may come when the place was given already: it must not be lost.
            if served and not turn.is_set():  # pragma: no cover
                self._give_place()
        if not served:
            raise TimeoutError(
                f"no {self._spec.type} context was given back within {timeout:g} s: "
                f"all {self._capacity} are out"
            )
        if self._closed:
            self._give_place()
            raise errors.PoolClosed("this ContextPool is closed")

    def _give_place(self) -> None:
        """A place is free: the next in line has it, under the lock, so nobody can jump in."""
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._taken -= 1

    def _lend(self, name: str | None) -> Context:
        with self._lock:
            context = self._idle.pop() if self._idle else None
            self._reused += context is not None
        if context is None:
            label = name or f"{self._spec.type}-context-{next(self._numbers)}"
            context = make(self._spec, label)
            with self._lock:
                self._created += 1
        elif name is not None:
            context.name = name
        with self._lock:
            self._active[id(context)] = context
        return context

    def release(self, context: Context) -> None:
        """Give a context back. A call that is under way is finished first.

        Raises:
            ValueError: It is not one that this pool has lent.
        """
        with self._lock:
            if self._active.pop(id(context), None) is not context:
                raise ValueError(f"{context!r} is not out: it was never lent here, or given back")
            if not context.usable:
                self._failed += 1
        try:
            if context.type == "inline" and context.usable and not self._closed:
                context._future = None
                with self._lock:
                    self._idle.append(context)
            else:
                context.close()
        finally:
            self._give_place()

    def join_all(self, timeout: float | None = None) -> list[Any]:
        """Wait for the calls of all contexts that are out.

        Args:
            timeout: Seconds for all of them together; None: as long as it takes.

        Returns:
            Their results, in the order in which the contexts were lent.

        Raises:
            TimeoutError: Not all are done in time; they go on.
            Exception: The first failure, when all are done.
        """
        deadline = None if timeout is None else monotonic() + timeout
        results, failure = [], None
        for context in self._out():
            if context._future is None:
                continue
            try:
                left = None if deadline is None else max(0.0, deadline - monotonic())
                results.append(context.join(left))
            except BaseException as error:
                if context.alive or not isinstance(error, Exception):
                    raise
                failure = failure or error
        if failure is not None:
            try:
                raise failure
            finally:
                del failure
        return results

    def terminate_all(self) -> None:
        """End the calls of all contexts that are out.

        Raises:
            PoolError: Some run in threads and cannot be stopped; the others were ended.
        """
        failure = None
        for context in self._out():
            try:
                context.terminate()
            except errors.PoolError as error:
                failure = error
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Lend nothing more; the contexts that are out are closed when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            waiting = len(self._queue)
            self._taken += waiting
            while self._queue:
                self._queue.popleft().set()
        for context in idle:
            context.close()

    def _out(self) -> list[Context]:
        with self._lock:
            return list(self._active.values())

    @property
    def active(self) -> int:
        """How many are out."""
        with self._lock:
            return len(self._active)

    @property
    def available(self) -> int:
        """How many could be borrowed now."""
        with self._lock:
            return max(0, self._capacity - self._taken)

    @property
    def capacity(self) -> int:
        """How many may be out at once."""
        return self._capacity

    def metrics(self) -> Metrics:
        """Contexts made and used again, out now, acquirers that wait, contexts that ended badly."""
        with self._lock:
            return Metrics(
                self._created, self._reused, len(self._active), len(self._queue), self._failed
            )

    def __enter__(self) -> ContextPool:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: object, traceback: TracebackType | None
    ) -> None:
        self.close()
        for context in self._out():
            context.__exit__(exc_type)
            self.release(context)


def make(kind: Spec, name: str) -> Context:
    """A context of a spec, one call wide."""
    return Context(kind.single(name), name)

"""ContextPool: at most so many contexts of a type, lent in the order of asking.

Guarantees:
    * Never more than `max_size` are out; waiting acquirers are served first come, first served.
    * No place is lost, whatever exception comes when: a place lives as long as somebody owns it.
    * Inline contexts are used again, the others are made fresh. A context that was terminated or
      closed is not handed out again.

Invariants:
    * PLACE-1  A place that was given has one owner: the thread that asked for it, then `_active`,
      then the thread that gives it back; all else refers to it weakly. `Places.give` frees it, once
      however often it is called; should that be broken off too (a second Ctrl-C in the handler of
      the first), then it is free when its owner's frame is gone.
    * PLACE-2  `_settle` may be interrupted anywhere, and is finished by the next one.

Threads: any. Signal handlers and finalizers too: the lock lets its holder in again.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from _thread import allocate_lock
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import _checks, errors
from .base import Metrics
from .context import Context
from .specs import Spec, spec

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ContextPool"]


class Place:
    """A place for one context; its end frees it (PLACE-1)."""

    __slots__ = ("__weakref__", "context", "gate")

    def __init__(self) -> None:
        self.gate = allocate_lock()  # opened when the place is given
        self.gate.acquire()
        self.context: Context | None = None


class Places:
    """A fair semaphore that cannot lose a place.

    Args:
        capacity: How many places there are.

    Attributes:
        given: The places that are out, by id. Weak, as the queue is, and without a callback: in a
            finalizer of ours a Ctrl-C would be lost.
        queue: Who waits, first come first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.lock = threading.RLock()  # guards the rest
        self.given: dict[int, weakref.ref[Place]] = {}
        self.queue: deque[weakref.ref[Place]] = deque()
        self.closed = False

    def take(self, timeout: float | None) -> Place | None:
        """Wait for a place; None: none was free in time.

        Raises:
            PoolClosed: There are none any more.
        """
        place = Place()
        try:
            with self.lock:
                if not self.closed:
                    self.queue.append(weakref.ref(place))
                self._settle()
            if self.closed or not place.gate.acquire(timeout=_lock_timeout(timeout)):
                with self.lock:  # it may have been given at this very moment
                    self._leave(place)
            if self._is_out(place):
                return place
            if self.closed:
                raise errors.PoolClosed("this ContextPool is closed")
            return None
        except BaseException:
            self.give(place)
            raise

    def give(self, place: Place) -> None:
        """Free a place; the next in line has it. Idempotent."""
        try:
            with self.lock:
                self._free(place)
        except BaseException:
            # An interrupt: what it broke off is done before it goes on (PLACE-2).
            with self.lock:
                self._free(place)
            raise

    def close(self) -> None:
        """Give no more; who waits is told."""
        with self.lock:
            self.closed = True
            self._settle()

    def out(self) -> int:
        """How many are out."""
        with self.lock:
            for key, ref in self.given.copy().items():
                if ref() is None:
                    self.given.pop(key, None)
            return len(self.given)

    def waiting(self) -> int:
        """How many wait for one."""
        with self.lock:
            return sum(ref() is not None for ref in self.queue)

    def _free(self, place: Place) -> None:
        self._leave(place)
        if self._is_out(place):
            del self.given[id(place)]
        self._settle()

    def _leave(self, place: Place | None) -> None:
        """Off the queue, with those that are no more."""
        for ref in list(self.queue):
            if ref() in (place, None):
                with contextlib.suppress(ValueError):
                    self.queue.remove(ref)

    def _settle(self) -> None:
        """Give what is free, under the lock, so that nobody can jump in."""
        while self.queue:
            first = self.queue[0]()
            if first is not None:
                if not self.closed and not self._has_place(first):
                    return
                with contextlib.suppress(RuntimeError):  # it is open already
                    first.gate.release()
            self._leave(first)

    def _has_place(self, place: Place) -> bool:
        if not self._is_out(place) and self.out() < self.capacity:
            self.given[id(place)] = weakref.ref(place)
        return self._is_out(place)

    def _is_out(self, place: Place) -> bool:
        ref = self.given.get(id(place))
        return ref is not None and ref() is place


def _lock_timeout(timeout: float | None) -> float:
    """A timeout as a lock takes it: none is -1."""
    return -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)


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
        self._capacity = _checks.integer("max_size", max_size, least=1)
        self._numbers = itertools.count(1)
        self._places = Places(self._capacity)
        self._lock = self._places.lock  # guards the rest
        self._active: dict[int, Place] = {}  # by the id of the context
        self._idle: list[Context] = []
        self._created = self._reused = self._failed = 0

    def acquire(self, name: str | None = None, timeout: float | None = None) -> Context:
        """Borrow a context.

        Args:
            name: What it is called.
            timeout: Seconds to wait for one; None: as long as it takes.

        Raises:
            TimeoutError: None was given back in time.
            PoolClosed: The pool is closed.
        """
        place = self._places.take(timeout)
        if place is None:
            raise TimeoutError(
                f"no {self._spec.type} context was given back within {timeout:g} s: "
                f"all {self._capacity} are out"
            )
        try:
            return self._lend(place, name)
        except BaseException:
            self._take_back(place)
            raise

    def _lend(self, place: Place, name: str | None) -> Context:
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
        place.context = context
        with self._lock:
            self._active[id(context)] = place
        return context

    def _take_back(self, place: Place) -> None:
        """The caller never got it."""
        self._give(place)
        if place.context is not None:
            place.context.close()

    def _give(self, place: Place) -> None:
        """Who had the place has it no longer. Idempotent."""
        key = id(place.context)
        if self._active.get(key) is place:
            del self._active[key]
        self._places.give(place)

    def release(self, context: Context) -> None:
        """Give a context back. A call that is under way is finished first.

        Raises:
            ValueError: It is not one that this pool has lent.
        """
        place = None
        try:
            with self._lock:
                place = self._active.get(id(context))
                if place is None or place.context is not context:
                    place = None
                    raise ValueError(
                        f"{context!r} is not out: it was never lent here, or given back"
                    )
                del self._active[id(context)]
                self._failed += not context.usable
            if context.type == "inline" and context.usable and not self._places.closed:
                context._future = None
                self._idle.append(context)
            else:
                context.close()
            self._give(place)
        except BaseException:
            if place is not None:
                self._give(place)
            raise

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
                failure = error if failure is None else failure
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
        self._places.close()
        while self._idle:
            self._idle.pop().close()

    def _out(self) -> list[Context]:
        with self._lock:
            return [place.context for place in self._active.values() if place.context is not None]

    @property
    def active(self) -> int:
        """How many are out."""
        return len(self._active)

    @property
    def available(self) -> int:
        """How many could be borrowed now."""
        return self._capacity - self._places.out()

    @property
    def capacity(self) -> int:
        """How many may be out at once."""
        return self._capacity

    def __repr__(self) -> str:
        return f"<pool of {self._spec.type} contexts: {len(self._active)} of {self._capacity} out>"

    def metrics(self) -> Metrics:
        """Contexts made and used again, out now, acquirers that wait, contexts that ended badly."""
        with self._lock:
            return Metrics(
                self._created,
                self._reused,
                len(self._active),
                self._places.waiting(),
                self._failed,
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

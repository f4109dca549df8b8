"""named_pool: an executor under a name, shared by all who ask for it by that name.

    fm.named_pool("io", "thread:3") ──▶ NamedPool ──first use──▶ Executor
    context="io", fm.executor("io") ──▶ PoolSpec ──▶ the same one, lent: it is not theirs to end

Guarantees:
    * Nothing is started before the first use: a module may name its pools when it is imported,
      also in a worker.
    * A name stands for one pool. Asking again with the same spec gives the same pool, with another
      one it is ValueError. `shutdown` ends the pool and frees the name.
    * In a forked child the names are known, and each pool starts anew at its first use there.

Threads: any.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._checks import nearest
from .base import Executor, closed_error
from .specs import (
    ALIASES,
    POOLS,
    TYPES,
    Spec,
    spec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .lanes.lane import Lane, Work

__all__ = ["NamedPool", "PoolSpec", "named_pool"]

_lock = threading.Lock()  # guards POOLS
_parents: list[Any] = []  # in a forked child: executors that belong to the parent, never freed


class _Shared(concurrent.futures.Executor):
    """Everything of an executor that is made at its first use."""

    @property
    def executor(self) -> Any:
        """The executor itself.

        Raises:
            PoolClosed: The pool was shut down.
        """
        raise NotImplementedError

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As the executor's."""
        return self.executor.submit(fn, *args, **kwargs)

    def map(self, fn: Callable[..., Any], *iterables: Any, **options: Any) -> Iterator[Any]:
        """As the executor's."""
        results: Iterator[Any] = self.executor.map(fn, *iterables, **options)
        return results

    def __getattr__(self, name: str) -> Any:
        # Whatever else an executor of that type can do: starmap, options, metrics, width, ...
        if name.startswith("_") and name != "_max_workers":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.executor, name)

    def __reduce__(self) -> Any:
        raise TypeError("a named pool cannot be sent or copied; ask for it by its name there")


class NamedPool(_Shared):
    """A shared executor; made by `named_pool`. It has all methods of its type's executor.

    Attributes:
        name: Its name.
        spec: What it is: type, size, options.
    """

    def __init__(self, name: str, kind: Spec) -> None:
        self.name = name
        self.spec = kind
        self._lock = threading.Lock()  # guards the next two
        self._executor: Any = None
        self._closed = False

    @property
    def type(self) -> str:
        """The type of its context; nothing is started for it."""
        return self.spec.type

    @property
    def executor(self) -> Any:
        """The executor itself, made at the first use.

        Raises:
            PoolClosed: The pool was shut down.
            OSError: It could not be made.
        """
        with self._lock:
            if self._closed:
                raise closed_error()
            if self._executor is None:
                self._executor = self.spec.open()
            return self._executor

    def lent(self) -> PoolSpec:
        """How others ask for it."""
        return PoolSpec(self.spec.type, self.spec.max_workers, self.spec.options, self)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the pool, for all who share it, and free its name. Idempotent.

        Args:
            wait: Return when everything accepted is over; else at once.
            cancel_futures: Cancel accepted calls that have not started.
        """
        with _lock:
            if POOLS.get(self.name) is self:
                del POOLS[self.name]
        with self._lock:
            self._closed = True
            executor = self._executor
        if executor is not None:
            executor.shutdown(wait, cancel_futures=cancel_futures)

    def _reborn(self) -> None:
        """In a forked child: what there is belongs to the parent."""
        self._lock = threading.Lock()
        if self._executor is not None:
            _parents.append(self._executor)
            self._executor = None

    def __repr__(self) -> str:
        return f"<named pool {self.name!r}: {self.spec}>"


class _Lent(_Shared):
    """A named pool for one who shall not end it."""

    def __init__(self, pool: NamedPool) -> None:
        self._pool = pool

    @property
    def executor(self) -> Any:
        return self._pool.executor

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Does nothing: the pool is shared; its own `shutdown` ends it."""

    def __repr__(self) -> str:
        return f"<lent {self._pool!r}>"


Executor.register(_Shared)


@dataclass(frozen=True)
class PoolSpec(Spec):
    """The spec that a pool's name stands for.

    Attributes:
        pool: The pool.
    """

    pool: Any = None

    __hash__ = Spec.__hash__

    def open(self, **more: Any) -> Executor:
        """The shared executor; its `shutdown` does nothing.

        Raises:
            TypeError: Options: the pool has its own.
        """
        self.sized(None, more)
        lent: Any = _Lent(self.pool)
        return lent  # type: ignore[no-any-return]

    def single(self, name: str) -> Executor:
        """As `open`: it is as wide as it is."""
        return self.open()

    def lane(self, work: Work, notify: Callable[[], None] | None = None) -> Lane:
        """A lane in the shared pool, which outlives it."""
        lane: Lane = self.pool.executor.lane(work, notify)
        return lane

    def sized(self, max_workers: int | None, options: dict[str, Any]) -> Spec:
        """This spec; TypeError if a size or options are asked for."""
        if max_workers is not None or options:
            raise TypeError(f"{self.pool!r} is shared: it takes no size and no options here")
        return self

    def __str__(self) -> str:
        return str(self.pool.name)


def named_pool(
    name: str, kind: str | Spec | None = None, max_workers: int | None = None, **options: Any
) -> NamedPool:
    """The executor that is shared under a name; with a spec, it is made if there is none yet.

    ::

        fm.named_pool("io", "thread:3")          # say once what it is; nothing starts yet
        fm.named_pool("io").submit(fetch, url)   # anywhere
        @fm.stage(context="io")                  # and wherever a context is named

    It lives until its `shutdown`, or the interpreter's end.

    Args:
        name: Its name: not that of a context type, and without a colon.
        kind: A type, alias, text ("thread:3"), or spec; None: the pool must be there.
        max_workers: How many calls at once; None: as `kind` says.
        **options: The type's options.

    Raises:
        ValueError: There is no pool of that name (names the nearest), there is a different one,
            or the name cannot be one.
        TypeError: An unknown option, or a name that is no str.
    """
    _check_name(name)
    if kind is None:
        if max_workers is not None or options:
            raise TypeError("a size and options are said together with a type: 'thread:3'")
        pool = POOLS.get(name)
        if pool is None:
            raise ValueError(
                f"there is no pool named {name!r}{nearest(name, list(POOLS))}; "
                f"fm.named_pool({name!r}, 'thread:3') makes one"
            )
        return pool  # type: ignore[no-any-return]
    wanted = spec(kind, max_workers, **options)
    if isinstance(wanted, PoolSpec):
        raise ValueError(f"{kind!r} is a named pool itself: name a type, such as 'thread:3'")
    with _lock:
        pool = POOLS.get(name)
        if pool is None:
            pool = POOLS[name] = NamedPool(name, wanted)
    if pool.spec != wanted:
        raise ValueError(
            f"there is a pool named {name!r} already, and it is another one: {pool.spec!r}, not "
            f"{wanted!r}; take another name, or shut that one down"
        )
    return pool


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a pool's name must be a str, not {type(name).__name__!r}")
    if name in TYPES or name in ALIASES:
        raise ValueError(f"{name!r} is a type of context, so it cannot be a pool's name")
    if not name.strip() or name != name.strip() or ":" in name:
        raise ValueError(f"a pool's name must be a word without a colon, not {name!r}")


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for pool in POOLS.values():
        pool._reborn()


os.register_at_fork(after_in_child=_after_fork)

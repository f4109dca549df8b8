"""Values made once a worker process, where they are needed: connections, models, caches.

Guarantees:
    * The factory is called in a process at the first use there, once, also if several threads ask
      at once. What it raises is that use's error, and the next use tries again.
    * Two handles of the same factory and arguments lead to the same value.
    * `close` is called with the value when its process ends in peace (atexit), the last made first.
    * A forked process makes its own: what its parent made is the parent's, and is left alone here.

Invariants:
    * PER-1  A value is known by what its factory and arguments encode to; by its handle alone where
      they cannot be encoded, and such a handle is refused by who would send it.

Threads: any, for all of it.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import errors
from . import codec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["PerWorker", "per_worker"]

T = TypeVar("T")

if TYPE_CHECKING:

    class Handle(Any, Generic[T]):  # type: ignore[misc]
        """A handle may stand for its value wherever a function of a task takes that."""

else:
    Handle = Generic


class PerWorker(Handle[T]):
    """A value that each worker process makes for itself; made by `fm.per_worker`.

    Give it to a task as an argument of its own, and the function gets the value; inside a list, a
    closure or an object it stays the handle, and `.value` is the value there. All methods may be
    called from any thread.
    """

    __slots__ = ("_encoded", "_key", "_made")

    _key: Any
    _made: tuple[Callable[..., T], tuple[Any, ...], Callable[[T], object] | None] | None
    _encoded: tuple[bytes, tuple[bytes, ...]] | errors.SerializationError

    def __init__(self) -> None:
        raise TypeError("these handles are made by forkmill.per_worker(factory, *args)")

    @property
    def value(self) -> T:
        """This process's value; the first one to ask has it made.

        Raises:
            Exception: What the factory raised.
        """
        return _values.get(self)  # type: ignore[no-any-return]

    def _parts(self) -> tuple[Callable[..., T], tuple[Any, ...], Callable[[T], object] | None]:
        if self._made is None:
            assert not isinstance(self._encoded, errors.SerializationError)
            self._made = codec.loads(*self._encoded)
        return self._made

    def __reduce__(self) -> Any:
        if isinstance(self._encoded, errors.SerializationError):
            raise self._encoded
        return _handle, (self._key, None, self._encoded)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __repr__(self) -> str:
        name = getattr(self._parts()[0], "__qualname__", "a factory")
        return f"<{type(self).__name__} of {name}>"


def per_worker(
    factory: Callable[..., T], *args: Any, close: Callable[[T], object] | None = None
) -> PerWorker[T]:
    """Have each worker process make a value for itself, at its first use there.

    Args:
        factory: Called with args, in the process that needs the value.
        *args: For the factory. They are sent with the handle: give large ones by `fm.share`.
        close: Called with the value when its process ends in peace.

    Returns:
        The handle to give to tasks: `submit(fn, handle)` calls ``fn(value)``.

    Raises:
        TypeError: factory or close cannot be called.

    May be called from any thread. A handle whose factory or arguments cannot be sent works in this
    process and its forks; a task that would send it raises SerializationError.
    """
    for what, fn in (("factory", factory), ("close", close)):
        if not callable(fn) and not (what == "close" and fn is None):
            raise TypeError(f"{what} must be callable, not {type(fn).__name__!r}")
    try:
        key: Any = _digest(*codec.dumps((factory, args)))
        data, buffers = codec.dumps((factory, args, close))
        encoded: Any = (data, tuple(map(bytes, buffers)))
    except errors.SerializationError as error:
        key, encoded = object(), error.with_traceback(None)
    return _handle(key, (factory, args, close), encoded)


def _digest(data: bytes, buffers: Any) -> bytes:
    digest = hashlib.blake2b(data, digest_size=16)
    for buffer in buffers:
        digest.update(buffer)
    return digest.digest()


def _handle(key: Any, made: Any, encoded: Any) -> PerWorker[Any]:
    handle: PerWorker[Any] = PerWorker.__new__(PerWorker)
    handle._key, handle._made, handle._encoded = key, made, encoded
    return handle


class _Values:
    """What this process has made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest; no user code runs under it
        self._values: dict[Any, tuple[Any, Any]] = {}  # key -> (value, close), as they were made
        self._gates: dict[Any, threading.RLock] = {}  # of those that are being made
        self._parents: list[Any] = []  # kept, so that no finalizer of theirs runs here
        self._registered = False

    def get(self, handle: PerWorker[Any]) -> Any:
        key = handle._key
        entry = self._values.get(key)
        if entry is None:
            with self._lock:
                gate = self._gates.setdefault(key, threading.RLock())
            with gate:
                entry = self._values.get(key)
                if entry is None:
                    entry = self._make(handle)
        return entry[0]

    def _make(self, handle: PerWorker[Any]) -> tuple[Any, Any]:
        factory, args, close = handle._parts()
        entry = factory(*args), close
        with self._lock:
            self._values[handle._key] = entry
            self._gates.pop(handle._key, None)
            first, self._registered = not self._registered, True
        if first:
            atexit.register(self.close)
        return entry

    def close(self) -> None:
        """Close all of them, the last made first; what a `close` raises is told as atexit tells."""
        with contextlib.ExitStack() as stack:
            while self._values:
                value, close = self._values.pop(next(iter(self._values)))
                if close is not None:
                    stack.callback(close, value)

    def forked(self) -> None:
        """In a forked child: all of it is made anew, the locks too."""
        self._parents.append(self._values)
        self._lock = threading.Lock()
        self._values, self._gates, self._registered = {}, {}, False
        atexit.unregister(self.close)


_values = _Values()
os.register_at_fork(after_in_child=_values.forked)

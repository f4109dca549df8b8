"""Shared values: encoded once, read by every process that needs them, copied by none.

    the owner                                   any other process
    share(value) ─encode─▶ _segment.hold        Shared (its address: pid, fd, size, nonce)
    Shared ──▶ Segment: the descriptor             │ .value, at first use
       ▲          ▲                                ▼
       │          └── pins: each accepted task  _segment.memory ─▶ decoded, kept

Guarantees:
    * A value is encoded at the call, once: a snapshot. Another process maps it at its first use,
      read-only, decodes it once and keeps it: CACHED values, the least recently used go.
    * In the owner, and in children forked after the call, it is the original.
    * Nothing of ours is counted between processes. The kernel frees the memory with the last
      descriptor and mapping; who is killed leaves nothing behind.

Invariants:
    * SHARE-1  A segment lives as long as the open handle and each task that was accepted with it:
      `close()` ends new use and takes nothing from old use.
    * SHARE-2  Who keeps a decoded value looks whether its owner has closed it (`forget_closed`).

Threads: any, for all of it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import sys
import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .. import errors
from .._late import WeakValueDictionary
from .._process import SHARES, VOICE
from . import codec
from . import segment as _segment
from .per_worker import Handle, PerWorker, per_worker
from .segment import Address, Parcel, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

__all__ = ["PerWorker", "Shared", "per_worker", "share"]

T = TypeVar("T")
E = TypeVar("E")

CACHED = 64  # decoded values that a process keeps
_PACKED = struct.Struct("<iiQ16s")  # an address, as an argument's record has it


# ------------------------------------------------------------------- the handle


class Shared(Handle[T]):
    """A value that processes share; made by `fm.share`.

    Give it to a task as an argument of its own, and the function gets the value; inside a list, a
    closure or an object it stays the handle, and `.value` is the value there. As a context manager
    it is closed at the end.

    All methods may be called from any thread.
    """

    __slots__ = ("__weakref__", "_address", "_packed", "_segment", "_value")

    _address: Address
    _packed: bytes | None  # the address, while it can be sent as a plain argument
    _segment: Segment | Parcel | None
    _value: Any

    def __init__(self) -> None:
        raise TypeError("shared values are made by forkmill.share(value)")

    @property
    def value(self) -> T:
        """The value: the original in the process that shared it, read-only arrays elsewhere.

        Raises:
            SharedGone: The handle is closed, or its owner has ended.
        """
        if self._value is not _ELSEWHERE:
            if self._value is _CLOSED_VALUE:
                raise self._gone("it is closed")
            return self._value  # type: ignore[no-any-return]
        return _attached(self._address)  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the encoded value takes, once for all processes."""
        return self._address.size

    def close(self) -> None:
        """End new use of it; tasks that were accepted with it keep it. Idempotent.

        Elsewhere than in the owner only what this process keeps of it is let go.
        """
        segment, self._segment = self._segment, None
        self._value = _CLOSED_VALUE
        self._packed = None
        if segment is not None:
            segment.tell_closed()
        _forget(self._address.nonce)

    def _send(self) -> Address:
        """The address, for another process; and the task that goes with it keeps the memory."""
        if self._value is _CLOSED_VALUE:
            raise self._gone("it is closed")
        if _encoding.result and self._segment is not None and self._address.pid == os.getpid():
            raise errors.SerializationError(
                "a value that was shared in a worker ends with that worker, and cannot be in a "
                "result. Return the value itself, or share it in the process that uses it."
            )
        if self._segment is not None and _encoding.pins is not None:
            _encoding.pins.append(self._segment)
        return self._address

    def _gone(self, why: str) -> errors.SharedGone:
        return errors.SharedGone(f"this shared value cannot be had any more: {why}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        address = self._send()
        parcel = self._segment
        if type(parcel) is Parcel and _encoding.pins is None and not _encoding.result:
            # Nobody sees to it that who decodes this has the bytes.
            image = parcel.image
            return _unpacked, (
                address,
                pickle.PickleBuffer(image) if protocol > 4 else bytes(image),
            )
        return _rebuild, tuple(address)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._value is _CLOSED_VALUE else f"{self.nbytes:,} bytes"
        return f"<{type(self).__name__}, {state}, of process {self._address.pid}>"


_ELSEWHERE: Any = object()  # the value is in another process's segment
_CLOSED_VALUE: Any = object()

# nonce -> the one handle that this process has for it.
_handles: WeakValueDictionary[bytes, Shared[Any]] = WeakValueDictionary()


def share(value: T) -> Shared[T]:
    """Encode a value once, for any number of tasks in any number of processes.

    It is a snapshot of the value as it is now. A process that needs it maps the memory at its first
    use and decodes it once: arrays are read-only views, other objects are that process's one copy,
    which tasks should not change. This process keeps the original.

    Args:
        value: Whatever could be an argument; of a handle its value, for a life of its own.

    Returns:
        The handle to give to tasks: `submit(fn, handle)` calls ``fn(value)``.

    Raises:
        SerializationError: It cannot be sent.
        MemoryError: There is no room for it in shared memory.
        OSError: There is no descriptor for it.

    May be called from any thread. The memory is freed with the handle (or its `close()`) and the
    last task that was accepted with it.
    """
    if type(value) is Shared:
        value = value.value  # type: ignore[attr-defined]
    (data, buffers), pins = pinned(codec.dumps_parts, value)
    segment = _segment.hold(data, buffers)
    segment.pins = pins
    segment.fixed = tuple(map(_fixed, buffers))
    return _handle(segment.address, segment, value)


def holds(handle: Shared[Any], value: Any) -> bool:
    """Whether a handle of this process's is, byte for byte, what `share(value)` would be now."""
    segment = handle._segment
    if segment is None:
        return False
    (data, buffers), pins = pinned(codec.dumps_parts, value)
    if pins:
        return False  # it leads to other handles
    image = segment.image if type(segment) is Parcel else _segment.memory(segment.address)[0]
    first, rest = _segment.parts_of(image)
    if len(rest) != len(buffers) or first != data.joined():
        return False
    known = (then or was for then, was in zip(segment.fixed, rest, strict=True))
    return all(map(_same, known, buffers))


def _fixed(buffer: memoryview) -> memoryview | None:
    """The memory of a buffer if it is a part of bytes, as that of numpy.frombuffer(bytes) is:
    nothing can change that."""
    owner: Any = buffer.obj
    while type(owner).__name__ == "ndarray" and type(owner).__module__ == "numpy":
        owner = owner.base
    if type(owner) is not bytes or not VOICE:
        return None
    found: memoryview | None = VOICE[0].within(owner, buffer)
    return found


def _same(one: memoryview, other: memoryview) -> bool:
    """Whether two buffers have the same bytes; at once if they are the same memory."""
    if VOICE:
        same: bool = VOICE[0].same(one, other)
        return same
    return one == other


def _handle(address: Address, segment: Segment | Parcel | None, value: Any) -> Shared[Any]:
    handle: Shared[Any] = Shared.__new__(Shared)
    handle._address = address
    handle._packed = None if type(segment) is Parcel or address.fd < 0 else _PACKED.pack(*address)
    handle._segment = segment
    handle._value = value
    return _handles.setdefault(address.nonce, handle)


def _rebuild(pid: int, fd: int, size: int, nonce: bytes) -> Shared[Any]:
    """The handle that travelled: the owner's own at home, else one that leads there."""
    handle = _handles.get(nonce)
    if handle is not None:
        return handle
    address = Address(pid, fd, size, nonce)
    return _handle(address, _segment.received(address), _ELSEWHERE)


def address(handle: Shared[Any]) -> tuple[int, int, int, bytes] | None:
    """What leads to a shared value, as plain data, for who sees to it that the handle stays open
    until nobody needs it elsewhere; None where the bytes must go along."""
    function, arguments = handle.__reduce_ex__(5)
    return arguments if function is _rebuild else None


def at(address: tuple[int, int, int, bytes]) -> Any:
    """The value that an address leads to: no handle is made where it is known already."""
    return _value_at(*address)


def _unpacked(address: Address, image: Any) -> Shared[Any]:
    """As _rebuild(), with the bytes, unless this process has them."""
    if address.nonce not in _handles:
        _segment.unpack(address.nonce, memoryview(image))
    return _rebuild(*address)


# ----------------------------------------------------------- as a task's argument


class _Encoding(threading.local):
    """What one thread is encoding."""

    pins: list[Any] | None = None  # of what is encoded, where somebody keeps them
    result = False  # it goes home from a worker


_encoding = _Encoding()


def collect(pins: list[Any] | None) -> list[Any] | None:
    """Have what this thread encodes from now on named in `pins`; who was named in before."""
    before, _encoding.pins = _encoding.pins, pins
    return before


@contextlib.contextmanager
def going_home() -> Iterator[None]:
    """What this thread encodes meanwhile is a result, in which no share of this process can be."""
    _encoding.result = True
    try:
        yield
    finally:
        _encoding.result = False


def pinned(encode: Callable[[Any], E], obj: Any) -> tuple[E, list[Any]]:
    """What encode(obj) gives, and what must live as long as that is used."""
    pins: list[Any] = []
    before = collect(pins)
    try:
        return encode(obj), pins
    finally:
        collect(before)


def lift(obj: Any, star: bool) -> Any:
    """An argument, or a call's arguments (`star`), with the values of handles in their places."""
    if not star:
        return _Lifted(obj) if type(obj) in _HANDLES else obj
    if any(type(item) in _HANDLES for item in obj):
        return tuple(_Lifted(item) if type(item) in _HANDLES else item for item in obj)
    return obj


def lift_call(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """As lift(), for a whole call that is sent; a partial's arguments are arguments too."""
    if type(fn) is partial:
        kinds = set(map(type, (*fn.args, *fn.keywords.values())))
        if PerWorker in kinds:
            fn = given(fn)  # what a factory raises must be the task's, not its function's
        elif Shared in kinds or type(fn.func) is partial:
            func = lift_call(fn.func, (), {})[0]
            fn = partial(func, *lift(fn.args, True), **_lift_named(fn.keywords))
    return fn, lift(args, True), _lift_named(kwargs)


def _lift_named(kwargs: dict[str, Any]) -> dict[str, Any]:
    if not kwargs or _HANDLES.isdisjoint(map(type, kwargs.values())):
        return kwargs
    return {key: lift(value, False) for key, value in kwargs.items()}


def resolve(obj: Any) -> Any:
    """The value of a handle; anything else as it is."""
    return obj.value if type(obj) in _HANDLES else obj


class _Given(partial[Any]):
    """A stage's function: to it handles are values, as arguments that it was bound to and as items.

    A partial, so that who looks for the function finds it. The items themselves stay handles:
    a stage that passes one on passes on no copy.
    """

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if kwargs or self.keywords:
            kwargs = {key: _held(value) for key, value in (self.keywords | kwargs).items()}
        return self.func(*map(_held, self.args), *map(_held, args), **kwargs)

    def __reduce__(self) -> Any:
        return _given, (self.func, self.args, self.keywords)


def given(fn: Any) -> Any:
    """What a pipeline calls in the place of `fn`; shared values that it is bound to are kept.

    What `per_worker` makes is made by the first call, whose failure it is if that fails.

    Raises:
        SharedGone: A handle that it is bound to is closed.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if type(fn) is partial:
        fn, args, kwargs = fn.func, fn.args, fn.keywords
        fn = given(fn) if type(fn) is partial else fn
    named = {key: _kept(value) for key, value in kwargs.items()}
    return _given(fn, tuple(map(_kept, args)), named)


def _kept(item: Any) -> Any:
    if type(item) is not Shared:
        return item
    lifted = _Lifted(item)
    lifted.hold()
    return lifted


def _given(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Given:
    return _Given(func, *args, **kwargs)


def hold_call(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A call for this process and its forks: shared values at once, which keeps them for it.

    What `per_worker` makes is made where the call runs, and a factory that fails is its failure.

    Raises:
        SharedGone: A handle is closed.
    """
    if type(fn) is partial:
        fn = given(fn)
    first, named = lift(args, True), _lift_named(kwargs)
    if first is args and named is kwargs:
        return fn, args, kwargs
    return _HeldCall(fn, first, named), (), {}


class _HeldCall:
    """A call whose arguments have handles in them, for one process and its forks."""

    __slots__ = ("args", "fn", "kwargs")

    def __init__(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for item in (*args, *kwargs.values()):
            if type(item) is _Lifted:
                item.hold()
        self.fn, self.args, self.kwargs = fn, args, kwargs

    def __call__(self) -> Any:
        kwargs = {key: _held(value) for key, value in self.kwargs.items()}
        return self.fn(*map(_held, self.args), **kwargs)


def _held(item: Any) -> Any:
    if type(item) is _Lifted:
        return item.value()
    return item.value if type(item) in _HANDLES else item


class _Lifted:
    """A handle at the top level of a call's arguments: what arrives is the value."""

    __slots__ = ("_held", "handle")

    def __init__(self, handle: Shared[Any] | PerWorker[Any]) -> None:
        self.handle = handle
        self._held: Any = _ELSEWHERE

    def hold(self) -> None:
        """Keep a shared value from now on, whatever becomes of its handle."""
        if type(self.handle) is Shared:
            self._held = self.handle.value

    def value(self) -> Any:
        return self.handle.value if self._held is _ELSEWHERE else self._held

    def __reduce__(self) -> Any:
        handle = self.handle
        if type(handle) is not Shared or type(handle._segment) is Parcel:
            return resolve, (handle,)
        return _value_at, tuple(handle._send())  # in one step: many items may name it


_HANDLES: frozenset[type] = frozenset({Shared, PerWorker})


# --------------------------------------------------------- in any other process


# nonce -> [the value, what says whether it is closed]; empty: it was let go of, for who still
# has this very list (native/records.pxi has the last one).
cache: OrderedDict[bytes, list[Any]] = OrderedDict()
_gates: dict[bytes, threading.RLock] = {}  # of those that are being decoded
_lock = threading.Lock()  # guards both; no user code runs under it


def _new_locks() -> None:
    """In a forked child: a thread that is not there may have held them."""
    global _lock
    _lock = threading.Lock()
    _gates.clear()


os.register_at_fork(after_in_child=_new_locks)


def _attached(address: Address) -> Any:
    """The value at an address in another process, decoded once."""
    return _entry(address)[0]


def _entry(address: Address) -> list[Any]:
    nonce = address.nonce
    with _lock:
        entry = cache.get(nonce)
        if entry is not None:
            cache.move_to_end(nonce)
            return [*entry]  # another thread may have it go
        gate = _gates.setdefault(nonce, threading.RLock())
    with gate:
        found = [*cache.get(nonce, ())]  # another thread may have been here
        if not found:
            entry = _decode(address)
            found = [*entry]
            _keep(nonce, entry)
        return found


def entry_at(packed: bytes) -> list[Any]:
    """The value, first in a list, of a handle that would come under this address. It stays there as
    long as this process keeps it."""
    pid, fd, size, nonce = _PACKED.unpack(packed)
    entry = cache.get(nonce)
    if entry is None:
        value = _rebuild(pid, fd, size, nonce).value
        return cache.get(nonce) or [value]  # a copy of its owner has the original
    with contextlib.suppress(KeyError):  # another thread has made it go
        cache.move_to_end(nonce)
    return entry


def _value_at(pid: int, fd: int, size: int, nonce: bytes) -> Any:
    """As `entry_at`: the value."""
    packed = _PACKED.pack(pid, fd, size, nonce)
    while True:
        for value in entry_at(packed):
            return value  # else another thread has let go of it meanwhile


def _keep(nonce: bytes, entry: list[Any]) -> None:
    with _lock:
        cache[nonce] = entry
        _gates.pop(nonce, None)
        gone = [cache.popitem(last=False)[1] for _ in range(len(cache) - CACHED)]
    for old in gone:
        old.clear()


def _decode(address: Address) -> list[Any]:
    memory, head = _segment.memory(address)
    first, buffers = _segment.parts_of(memory)
    return [pickle.loads(first, buffers=buffers), head]


def _forget(nonce: bytes) -> None:
    with _lock:
        entry = cache.pop(nonce, None)
    if entry is not None:
        entry.clear()


def forget_closed() -> None:
    """Let go of what its owner has closed (SHARE-2): a worker does so with each frame."""
    for nonce, entry in cache.copy().items():
        if len(entry) > 1 and _segment.is_closed(entry[1]):
            _forget(nonce)


SHARES.append(sys.modules[__name__])

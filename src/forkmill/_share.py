"""Shared values: encoded once, read by every process that needs them, copied by none.

    the owner                                     any other process
    share(value) ─encode─▶ memfd, sealed          Shared (its address: pid, fd, size, nonce)
    Shared ──▶ _Segment: the descriptor              │ .value, at first use
       ▲           ▲                                 ▼
       │           └── pins: each accepted task   /proc/PID/fd/FD ─▶ mmap ─▶ decoded, kept

    a segment:   0 magic  8 nonce  24 closed  32 n  40 (offset, length) * (n + 1)  ... parts
                 the first part is the pickle, the others its out-of-band buffers

Guarantees:
    * A value is encoded at the call, once: a snapshot. Another process maps it at its first use,
      read-only, decodes it once and keeps it: CACHED values, the least recently used go.
    * In the owner, and in children forked after the call, it is the original.
    * Nothing of ours is counted between processes. The kernel frees the memory with the last
      descriptor and mapping; whoever is killed leaves nothing behind.

Invariants:
    * SHARE-1  The descriptor has one owner, the `_Segment`. It lives as long as the open handle and
      each task that was accepted with it: `close()` ends new use and takes nothing from old use.
    * SHARE-2  An address is believed only if the nonce stands at the head of what it leads to: pids
      and numbers of descriptors are used again, 128 random bits are not.
    * SHARE-3  One word of a segment changes after it is sealed: `closed`, through the owner's own
      mapping (F_SEAL_FUTURE_WRITE). Who keeps the decoded value looks at it (`forget_closed`).

Threads: any, for all of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import pickle
import struct
import sys
import threading
import weakref
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from . import _codec, errors
from ._per_worker import PerWorker, per_worker
from ._process import SHARES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

__all__ = ["PerWorker", "Shared", "per_worker", "share"]

T = TypeVar("T")

CACHED = 64  # decoded values that a process keeps
_NAME = "forkmill-share"
_MAGIC = b"fmshare1"
_HEAD = struct.Struct("<8s16sQQ")
_PART = struct.Struct("<QQ")
_CLOSED = 24  # where the word is (SHARE-3)
_ALIGN = 64
_SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0010  # F_SEAL_SEAL, SHRINK, GROW, FUTURE_WRITE
_SEALS_OLD = 0x0001 | 0x0002 | 0x0004  # before Linux 5.1


class Address(NamedTuple):
    """Where a shared value is; all that travels."""

    pid: int
    fd: int
    size: int
    nonce: bytes


class _Segment:
    """The memory of a shared value, in its owner (SHARE-1)."""

    __slots__ = ("__weakref__", "_head", "address")

    def __init__(self, parts: list[memoryview]) -> None:
        where = _HEAD.size + _PART.size * len(parts)
        table = []
        for part in parts:
            where = -(-where // _ALIGN) * _ALIGN
            table.append((where, part.nbytes))
            where += part.nbytes
        where = max(where, mmap.PAGESIZE)  # the head is mapped as a page
        nonce = os.urandom(16)
        fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            if fd <= 2:  # the program has closed its standard streams
                fd, low = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10), fd
                os.close(low)
            os.posix_fallocate(fd, 0, where)  # no room is an error here, not SIGBUS in a reader
            head = _HEAD.pack(_MAGIC, nonce, 0, len(parts) - 1)
            os.pwrite(fd, head + b"".join(_PART.pack(*entry) for entry in table), 0)
            for (offset, _), part in zip(table, parts, strict=True):
                _write_all(fd, part, offset)
            self._head = _map_head(fd)
            _seal(fd)
        except BaseException:
            os.close(fd)
            raise
        self.address = Address(os.getpid(), fd, where, nonce)
        weakref.finalize(self, _release, self.address, self._head).atexit = False

    def tell_closed(self) -> None:
        """Have those who keep the value forget it."""
        if os.getpid() == self.address.pid:
            self._head[_CLOSED] = 1


class _Parcel:
    """What stands for a segment where the system has no memfd or no /proc: the parts themselves.

    They go with each task that needs them; a process decodes them once, as it does a segment.
    """

    __slots__ = ("address", "parts")

    def __init__(self, parts: list[memoryview]) -> None:
        self.parts = parts
        self.address = Address(os.getpid(), -1, sum(p.nbytes for p in parts), os.urandom(16))

    def tell_closed(self) -> None:
        """Nobody can be told; those who keep the value let go of it as of one that is not used."""


def _hold(parts: list[memoryview]) -> _Segment | _Parcel:
    """The memory of a new shared value."""
    if not hasattr(os, "memfd_create") or not os.path.exists("/proc/self/fd"):
        return _Parcel([memoryview(bytes(part)) for part in parts])
    try:
        return _Segment(parts)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM):
            raise MemoryError(f"no room in shared memory for it: {error.strerror}") from error
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES):  # a sandbox forbids it
            return _Parcel([memoryview(bytes(part)) for part in parts])
        raise


def _map_head(fd: int) -> mmap.mmap:
    """The first page, writable. Not in forked children: it would keep all the memory there."""
    more = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    head = mmap.mmap(fd, mmap.PAGESIZE, **more)
    head.madvise(mmap.MADV_DONTFORK)
    return head


def _release(address: Address, head: mmap.mmap, getpid: Any = os.getpid) -> None:
    # In a forked child the descriptor may be closed already, its number somebody else's, and the
    # page is not there at all.
    if getpid() == address.pid:
        head[_CLOSED] = 1
        os.close(address.fd)
        head.close()


def _write_all(fd: int, part: memoryview, offset: int) -> None:
    rest = part.cast("B") if part.nbytes else part
    while rest.nbytes:  # one call writes 2 GiB at most
        done = os.pwrite(fd, rest, offset)
        offset += done
        rest = rest[done:]


def _seal(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS_OLD)


# ------------------------------------------------------------------- the handle


class Shared(Generic[T]):
    """A value that processes share; made by `fm.share`.

    Give it to a task as an argument of its own, and the function gets the value; inside a list, a
    closure or an object it stays the handle, and `.value` is the value there. As a context manager
    it is closed at the end.

    All methods may be called from any thread.
    """

    __slots__ = ("__weakref__", "_address", "_segment", "_value")

    _address: Address
    _segment: _Segment | _Parcel | None
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

    def __reduce__(self) -> Any:
        address = self._send()
        if type(self._segment) is _Parcel:
            parts = [pickle.PickleBuffer(part) for part in self._segment.parts]
            return _rebuild_parcel, (address, parts)
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
_handles: weakref.WeakValueDictionary[bytes, Shared[Any]] = weakref.WeakValueDictionary()


def share(value: T) -> Shared[T]:
    """Encode a value once, for any number of tasks in any number of processes.

    It is a snapshot of the value as it is now. A process that needs it maps the memory at its first
    use and decodes it once: arrays are read-only views, other objects are that process's one copy,
    which tasks should not change. This process keeps the original.

    Args:
        value: Whatever could be an argument.

    Returns:
        The handle to give to tasks: `submit(fn, handle)` calls ``fn(value)``.

    Raises:
        SerializationError: It cannot be sent.
        MemoryError: There is no room for it in shared memory.
        OSError: There is no descriptor for it.

    May be called from any thread. The memory is freed with the handle (or its `close()`) and the
    last task that was accepted with it.
    """
    data, buffers = _codec.dumps(value)
    segment = _hold([memoryview(data), *buffers])
    return _handle(segment.address, segment, value)


def _handle(address: Address, segment: _Segment | _Parcel | None, value: Any) -> Shared[Any]:
    handle: Shared[Any] = Shared.__new__(Shared)
    handle._address = address
    handle._segment = segment
    handle._value = value
    return _handles.setdefault(address.nonce, handle)


def _rebuild(pid: int, fd: int, size: int, nonce: bytes) -> Shared[Any]:
    """The handle that travelled: the owner's own at home, else one that leads there."""
    handle = _handles.get(nonce)
    if handle is not None:
        return handle
    return _handle(Address(pid, fd, size, nonce), None, _ELSEWHERE)


def _rebuild_parcel(address: Address, parts: list[Any]) -> Shared[Any]:
    """As _rebuild(), with the parts: decoded here and now, unless this process has them."""
    handle = _rebuild(*address)
    if handle._value is _ELSEWHERE and address.nonce not in _cache:
        first, *buffers = (memoryview(part).toreadonly() for part in parts)
        _keep(address.nonce, _Mapped(pickle.loads(first, buffers=buffers), memoryview(bytes(40))))
    return handle


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


def pinned(encode: Callable[[Any], bytes], obj: Any) -> tuple[bytes, list[Any]]:
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
    """As lift(), for a whole call; a partial's arguments are arguments too."""
    if type(fn) is partial:
        func, first, named = lift_call(fn.func, fn.args, fn.keywords)
        if first is not fn.args or named is not fn.keywords:
            fn = partial(func, *first, **named)
    args = lift(args, True)
    if kwargs and any(type(value) in _HANDLES for value in kwargs.values()):
        kwargs = {key: lift(value, False) for key, value in kwargs.items()}
    return fn, args, kwargs


def resolve(obj: Any) -> Any:
    """The value of a handle; anything else as it is."""
    return obj.value if type(obj) in _HANDLES else obj


def hold_call(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A call for this process and its forks: shared values at once, which keeps them for it.

    What `per_worker` makes is made where the call runs, and a factory that fails is its failure.

    Raises:
        SharedGone: A handle is closed.
    """
    lifted = lift_call(fn, args, kwargs)
    if lifted[0] is fn and lifted[1] is args and lifted[2] is kwargs:
        return lifted
    return _HeldCall(*lifted), (), {}


class _HeldCall:
    """A call whose arguments have handles in them, for one process and its forks."""

    __slots__ = ("args", "fn", "kwargs")

    def __init__(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        held: list[Any] = [*args, *kwargs.values()]
        if type(fn) is partial:
            held += [*fn.args, *fn.keywords.values()]
        for item in held:
            if type(item) is _Lifted:
                item.hold()
        self.fn, self.args, self.kwargs = fn, args, kwargs

    def __call__(self) -> Any:
        fn = self.fn
        if type(fn) is partial:
            fn = partial(fn.func, *map(_held, fn.args), **_held_all(fn.keywords))
        return fn(*map(_held, self.args), **_held_all(self.kwargs))


def _held(item: Any) -> Any:
    return item.value() if type(item) is _Lifted else item


def _held_all(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: _held(value) for key, value in kwargs.items()}


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
        return resolve, (self.handle,)


_HANDLES: frozenset[type] = frozenset({Shared, PerWorker})


# --------------------------------------------------------- in any other process


class _Mapped(NamedTuple):
    value: Any
    head: memoryview  # of the mapping, which lives as long as this and the value's views


_cache: OrderedDict[bytes, _Mapped] = OrderedDict()
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
    nonce = address.nonce
    with _lock:
        entry = _cache.get(nonce)
        if entry is not None:
            _cache.move_to_end(nonce)
            return entry.value
        gate = _gates.setdefault(nonce, threading.RLock())
    with gate:
        entry = _cache.get(nonce)  # another thread may have been here
        if entry is None:
            entry = _decode(address)
            _keep(nonce, entry)
        return entry.value


def _keep(nonce: bytes, entry: _Mapped) -> None:
    with _lock:
        _cache[nonce] = entry
        _gates.pop(nonce, None)
        while len(_cache) > CACHED:
            _cache.popitem(last=False)


def _decode(address: Address) -> _Mapped:
    memory = memoryview(_map(address))
    magic, nonce, _, n = _HEAD.unpack_from(memory)
    if magic != _MAGIC or nonce != address.nonce:
        raise _lost(address)
    first, *buffers = (
        memory[offset : offset + length]
        for offset, length in _PART.iter_unpack(
            memory[_HEAD.size : _HEAD.size + _PART.size * (n + 1)]
        )
    )
    return _Mapped(pickle.loads(first, buffers=buffers), memory[: _HEAD.size])


def _map(address: Address) -> mmap.mmap:
    """The owner's segment, mapped read-only."""
    path = f"/proc/{address.pid}/fd/{address.fd}"
    try:
        # By its name first: to open a stranger's pipe or device does something.
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            raise _lost(address)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _lost(address) from error
    try:
        if os.fstat(fd).st_size != address.size:
            raise _lost(address)
        more = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        return mmap.mmap(fd, address.size, prot=mmap.PROT_READ, **more)
    finally:
        os.close(fd)


def _lost(address: Address) -> errors.SharedGone:
    return errors.SharedGone(
        f"a value that process {address.pid} shared is gone: its handle was closed or dropped "
        "before this use, or that process has ended. Keep the handle open as long as tasks need it."
    )


def _forget(nonce: bytes) -> None:
    with _lock:
        _cache.pop(nonce, None)


def forget_closed() -> None:
    """Let go of what its owner has closed (SHARE-3): a worker does so with each frame."""
    for nonce, entry in list(_cache.items()):
        if entry.head[_CLOSED]:
            _forget(nonce)


SHARES.append(sys.modules[__name__])

"""Memory that one process fills once and any number of others read: shared values, large functions.

    the owner                                        any other process
    hold(parts) ──▶ Segment: memfd, sealed           memory(address): /proc/PID/fd/FD ─▶ mmap
                └─▶ Parcel, without memfd or /proc ──channel, once a worker──▶ receive

    both:   0 magic  8 nonce  24 closed  32 n  40 (offset, length) * (n + 1)  ... parts
            the first part is a pickle, the others its out-of-band buffers

Guarantees:
    * The parts are copied once, by the owner, and a reader of a segment copies nothing: it reads
      the owner's pages, or has private ones of its own where it writes.
    * Nothing of ours is counted between processes. The kernel frees a segment with the last
      descriptor and mapping; who is killed leaves nothing behind.

Invariants:
    * SEG-1  The descriptor has one owner, the `Segment`.
    * SEG-2  An address is believed only if the nonce stands at the head of what it leads to: pids
      and numbers of descriptors are used again, 128 random bits are not.
    * SEG-3  One word of a segment changes after it is sealed: `closed`, through the owner's own
      mapping (F_SEAL_FUTURE_WRITE).
    * SEG-4  What came by a channel a worker keeps until it is told that it is closed: the pool
      remembers that it has it, and does not send it again.

Threads: any, for all of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import pickle
import stat
import struct
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import errors
from .._late import WeakSet, close_last, finalize

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Address", "Parcel", "Segment", "apart", "hold", "is_closed", "memory", "parts_of"]

_NAME = "forkmill-share"
_LINK = f"/memfd:{_NAME} "  # what /proc says of it
_MAGIC = b"fmshare1"
_HEAD = struct.Struct("<8s16sQQ")
_PART = struct.Struct("<QQ")
_CLOSED = 24  # where the word is (SEG-3)
_ALIGN = 64
_SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0010  # F_SEAL_SEAL, SHRINK, GROW, FUTURE_WRITE
_SEALS_OLD = 0x0001 | 0x0002 | 0x0004  # before Linux 5.1
_MARK = stat.S_ISVTX | stat.S_IRUSR  # its mode: the user's, and nobody's inheritance (sys_posix.c)
_NOWHERE = -1  # the descriptor of a parcel


class Address(NamedTuple):
    """Where a shared value is; all that travels."""

    pid: int
    fd: int
    size: int
    nonce: bytes


class _Layout:
    """What stands before the parts, where each piece of them is, and where the last one ends.

    The pickle may be in pieces, which lie together.
    """

    def __init__(self, data: Sequence[Any], buffers: Sequence[memoryview], nonce: bytes) -> None:
        self.pieces: list[tuple[int, memoryview]] = []
        self.end = _HEAD.size + _PART.size * (1 + len(buffers))
        table = [self._place(data), *(self._place([buffer]) for buffer in buffers)]
        self.head = _HEAD.pack(_MAGIC, nonce, 0, len(buffers)) + b"".join(table)

    def _place(self, pieces: Sequence[Any]) -> bytes:
        start = self.end = -(-self.end // _ALIGN) * _ALIGN
        for piece in pieces:
            view = memoryview(piece)
            if view.nbytes:
                self.pieces.append((self.end, view.cast("B")))
                self.end += view.nbytes
        return _PART.pack(start, self.end - start)


def parts_of(memory: memoryview) -> tuple[memoryview, list[memoryview]]:
    """The pickle, and its buffers."""
    n = _HEAD.unpack_from(memory)[3]
    table = memory[_HEAD.size : _HEAD.size + _PART.size * (n + 1)]
    first, *rest = (memory[at : at + length] for at, length in _PART.iter_unpack(table))
    return first, rest


# ---------------------------------------------------------------------- the owner


class Segment:
    """The memory of a shared value, in its owner (SEG-1)."""

    __slots__ = ("__weakref__", "_head", "address", "fixed", "pins")

    pins: Any  # what its value leads to: other segments
    fixed: Any  # of each buffer what was copied, where that cannot change; else None

    def __init__(self, data: Sequence[Any], buffers: Sequence[memoryview]) -> None:
        nonce = os.urandom(16)
        layout = _Layout(data, buffers, nonce)
        size = max(layout.end, mmap.PAGESIZE)  # the head is mapped as a page
        fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            if fd <= 2:  # the program has closed its standard streams
                fd, low = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10), fd
                os.close(low)
            os.fchmod(fd, _MARK)
            # Each page is written, so no room is an error here, not SIGBUS in a reader. To allocate
            # them first would clear what is then written.
            os.ftruncate(fd, size)
            _write_all(fd, memoryview(layout.head), 0)
            for start, piece in layout.pieces:
                _write_all(fd, piece, start)
            self._head = _map_head(fd)
            _seal(fd)
        except BaseException:
            os.close(fd)
            raise
        self.address = Address(os.getpid(), fd, size, nonce)
        finalize(self, _release, self.address.pid, self._head, [fd]).atexit = False
        _open.add(self)

    def tell_closed(self) -> None:
        """Have those who keep the value forget it."""
        if os.getpid() == self.address.pid:
            self._head[_CLOSED] = 1


class Parcel:
    """What stands for a Segment where the system has no memfd or no /proc: the same bytes, here.

    A pool sends them to each worker before the first task that needs them, as it does a function.
    Who is told of a new one is told which others are closed.

    Attributes:
        image: The bytes.
    """

    __slots__ = ("__weakref__", "address", "fixed", "image", "pins")

    pins: Any
    fixed: Any

    def __init__(self, address: Address, image: memoryview) -> None:
        self.address = address
        self.image = image
        self.pins = ()

    @staticmethod
    def of(data: Sequence[Any], buffers: Sequence[memoryview]) -> Parcel:
        """A new one."""
        nonce = os.urandom(16)
        layout = _Layout(data, buffers, nonce)
        image = bytearray(layout.end)
        image[: len(layout.head)] = layout.head
        for start, piece in layout.pieces:
            image[start : start + piece.nbytes] = piece
        address = Address(os.getpid(), _NOWHERE, layout.end, nonce)
        parcel = Parcel(address, memoryview(image).toreadonly())
        finalize(parcel, _closed.append, nonce).atexit = False
        return parcel

    def tell_closed(self) -> None:
        """The workers hear of it with the next parcel, and only when no task needs this one."""

    def blob(self) -> bytes:
        """What a worker gets: see `receive`."""
        return b"".join((self.image, *_closed))


_closed: deque[bytes] = deque(maxlen=1024)  # nonces of parcels that were


def hold(data: Sequence[Any], buffers: Sequence[memoryview]) -> Segment | Parcel:
    """Copy a pickle, which may be in pieces, and its buffers to where others can read them.

    Raises:
        MemoryError: There is no room.
        OSError: There is no descriptor.
    """
    if not hasattr(os, "memfd_create") or not os.path.exists("/proc/self/fd"):
        return Parcel.of(data, buffers)
    try:
        return Segment(data, buffers)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM):
            raise MemoryError(f"no room in shared memory for it: {error.strerror}") from error
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES):  # a sandbox forbids it
            return Parcel.of(data, buffers)
        raise


def _map_head(fd: int) -> mmap.mmap:
    """The first page, writable. Not in forked children: it would keep all the memory there."""
    more = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    head = mmap.mmap(fd, mmap.PAGESIZE, **more)
    head.madvise(mmap.MADV_DONTFORK)
    return head


def _release(pid: int, head: mmap.mmap, fds: list[int], getpid: Any = os.getpid) -> None:
    # In a forked child the descriptor may be closed already, its number somebody else's, and the
    # page is not there at all. In its own process it may be called again.
    if getpid() == pid:
        if not head.closed:
            head[_CLOSED] = 1
        if fds:
            close_last(fds)
        head.close()


_open: WeakSet[Segment] = WeakSet()


def _close_inherited() -> None:
    """In a forked child, which may live long: it has the original, and would keep the memory.

    Before CPython 3.13 a mapping has a descriptor of its own, which it closes by its number: so
    each becomes one of /dev/null. A pool's zygote runs no Python, and does the same by their _MARK.
    """
    if not _open:
        return
    inodes = set()
    for segment in _open:
        with contextlib.suppress(OSError):
            inodes.add(os.fstat(segment.address.fd).st_ino)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith(_LINK) and os.stat(path).st_ino in inodes:
                os.dup2(null, int(name), inheritable=False)
    os.close(null)
    _open.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _write_all(fd: int, rest: memoryview, offset: int) -> None:
    while rest.nbytes:  # one call writes 2 GiB at most
        done = os.pwrite(fd, rest, offset)
        offset += done
        rest = rest[done:]


def _seal(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS_OLD)


# ----------------------------------------------------------- in any other process


def memory(address: Address, *, private: bool = False) -> tuple[memoryview, Any]:
    """The bytes at an address, and what `is_closed` looks at, which does not keep them.

    Args:
        address: Where.
        private: Writable, each page a copy as soon as it is written to; else read-only.

    Raises:
        SharedGone: It is not there.
    """
    if address.fd == _NOWHERE:
        found = _received.get(address.nonce)
        if found is None:
            raise _lost(address)
        return found
    view = memoryview(_map(address, private))
    magic, nonce, *_ = _HEAD.unpack_from(view)
    if magic != _MAGIC or nonce != address.nonce:
        raise _lost(address)
    return view, view[: _HEAD.size]


def is_closed(head: Any) -> bool:
    """Whether the owner has closed what `memory` gave."""
    return bool(head[_CLOSED])


def _map(address: Address, private: bool) -> mmap.mmap:
    path = f"/proc/{address.pid}/fd/{address.fd}"
    try:
        # By its name first: to open a stranger's pipe or device does something.
        if not os.readlink(path).startswith(_LINK):
            raise _lost(address)
        # It may be another file's by now, which nobody waits for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except PermissionError as error:
        raise errors.SharedGone(
            f"process {os.getpid()} may not look at what process {address.pid} shares: another "
            "user's, or one that has given up its rights. Share values between processes of one "
            "user."
        ) from error
    except OSError as error:
        raise _lost(address) from error
    try:
        if os.fstat(fd).st_size != address.size:
            raise _lost(address)
        more = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        if private:
            access = mmap.PROT_READ | mmap.PROT_WRITE
            return mmap.mmap(fd, address.size, mmap.MAP_PRIVATE, access, **more)
        return mmap.mmap(fd, address.size, prot=mmap.PROT_READ, **more)
    finally:
        os.close(fd)


def _lost(address: Address) -> errors.SharedGone:
    return errors.SharedGone(
        f"a value that process {address.pid} shared is gone: its handle was closed or dropped "
        "before this use, or that process has ended. Keep the handle open as long as tasks need it."
    )


# By nonce: the bytes of parcels, and a head that says whether they are closed (SEG-4).
_received: dict[bytes, tuple[memoryview, bytearray]] = {}


def receive(blob: bytes) -> None:
    """Keep what a pool has sent of a parcel, and let go of those that are closed."""
    view = memoryview(blob)
    _, nonce, _, n = _HEAD.unpack_from(view)
    at, length = _PART.unpack_from(view, _HEAD.size + _PART.size * n)
    for start in range(at + length, len(blob), len(nonce)):
        forget(blob[start : start + len(nonce)])
    unpack(nonce, view[: at + length])


def unpack(nonce: bytes, image: memoryview) -> None:
    """Keep the bytes of a parcel, unless they are here."""
    _received.setdefault(nonce, (image.toreadonly(), bytearray(_HEAD.size)))


def forget(nonce: bytes) -> None:
    """Let go of the bytes of a parcel: it is closed."""
    found = _received.pop(nonce, None)
    if found is not None:
        found[1][_CLOSED] = 1


def received(address: Address) -> Parcel | None:
    """The parcel that has come here under an address; this process may have workers, too."""
    found = _received.get(address.nonce)
    return None if found is None else Parcel(address, found[0])


# ------------------------------------------------------------- large functions


def apart(data: bytes, buffers: Sequence[memoryview]) -> tuple[bytes, Segment] | None:
    """A function's parts, put where each worker maps them: what to send instead, and what must live
    as long as that. None: there is no such place, and they go through the channel.
    """
    try:
        segment = hold([data], buffers)
    except (MemoryError, OSError):
        return None
    if type(segment) is not Segment:
        return None
    return pickle.dumps(_Apart(segment.address), 5), segment


class _Apart:
    """Becomes the parts, in the worker: writable ones, and nobody else's."""

    __slots__ = ("address",)

    def __init__(self, address: Address) -> None:
        self.address = address

    def __reduce__(self) -> Any:
        return _joined, tuple(self.address)


def _joined(pid: int, fd: int, size: int, nonce: bytes) -> tuple[memoryview, list[memoryview]]:
    return parts_of(memory(Address(pid, fd, size, nonce), private=True)[0])

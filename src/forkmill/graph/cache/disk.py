"""A cache in a folder, for any number of processes and for the next run.

::

    folder/                                     made 0700, as all in it
        3f/                                     first byte of the entry's name: 256 folders
            3fa0…                               one entry: one file
            .1234.7.tmp                         one that is being written

    file   magic 4 │ proof 32 │ value           proof: digest of name and value; with a key an HMAC

Guarantees:
    * An entry appears whole or not at all (a file is written aside, and renamed). What is torn,
      changed, or proved by another key is a miss, and counted.
    * Writers know nothing of each other and wait for nobody: no lock, no index. A killed one leaves
      at most the file that it was writing, which a sweep takes away when it is a minute old.
    * `get` and `set` raise nothing for what the system refuses: a full disk, a folder that is gone
      or cannot be written is a miss, counted in `errors`, and told once.
    * What a set costs does not depend on how many entries there are.
    * Of the values at most 1.1 times `max_bytes` stay, the oldest go first (DISK-1).

Invariants:
    DISK-1  Names are digests, so a group of folders holds its share of all bytes, the more exactly
            the more entries it has. A sweep takes folders, one after the other, until it has seen
            `_GROUP` entries or all folders; if they hold over 1.05 of their share, the oldest of
            them go, down to 0.95; of all folders, over the whole and down to 0.9. Before the next
            sweep a process sets at most 64 entries, and at most a tenth of the share (a twentieth
            of the whole): a round over all folders lets in 0.05 on average. Writers begin at random
            places in that, so that they do not march in step.

Threads: any. Counters are of this object: workers count on their own copies.
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import os
import random
import threading
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from ..._checks import hinted, integer
from ..._process import warn_user

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

__all__ = ["DiskCache"]

_MAGIC = b"fmc1"
_PROOF = 32  # bytes
_HEAD = len(_MAGIC) + _PROOF
_SMALL = 1 << 14  # bytes of an entry that one read gets
_FOLDERS = 256
_SETS = 64  # entries set before the next sweep, at most
_GROUP = 1024  # entries that a sweep looks at, at least
# Of its share: what a sweep lets be, and down to where it goes, of all folders and of some.
_ALL, _PART = (1.0, 0.9), (1.05, 0.95)
_STALE_S = 60.0  # nothing was written to it for so long: its writer is gone

_serials = itertools.count()


class _Entry(NamedTuple):
    """A file of the cache, as a sweep sees it; the oldest is the smallest."""

    mtime: int
    size: int
    path: str


class DiskCache:
    """Keeps results of nodes in a folder, for all processes that name it and for later runs.

    Workers ask it themselves. Entries are pickles: anybody who can write to the folder can run code
    in the processes that read it, unless they have a `key`.

    Args:
        folder: Where. It is made if it is not there, for this user alone (0700).
        max_bytes: How much may stay, about (at most 1.1 times that). None: all.
        key: A secret; entries are proved by an HMAC with it, and those that are not are misses.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: max_bytes is less than 1, or key is empty.
        OSError: The folder cannot be made, or is no folder.

    Attributes:
        hits: How often there was an entry.
        misses: How often there was none, or none that was whole.
        corrupt: How many of these were torn or changed.
        errors: How often the system refused to read or write.
        swept: How many entries this object has removed.

    All methods may be called from any thread, and from any number of processes at once.
    """

    shared = True

    @hinted
    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        key: bytes | None = None,
    ) -> None:
        if max_bytes is not None:
            max_bytes = integer("max_bytes", max_bytes, least=1, most=1 << 63)
        if key is not None and not isinstance(key, (bytes, bytearray)):
            raise TypeError(f"key must be bytes or None, not {type(key).__name__!r}")
        if key is not None and not key:
            raise ValueError("key must not be empty; without one entries are not proved")
        self._folder = os.path.abspath(os.fsdecode(os.fspath(folder)))
        self._max = max_bytes
        self._secret = None if key is None else bytes(key)
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._begin()

    def _begin(self) -> None:
        self.hits = self.misses = self.corrupt = self.errors = self.swept = 0
        self._told = False
        self._lock = threading.Lock()  # guards what follows; only tried, never waited for
        self._next = random.randrange(_FOLDERS)  # where the next sweep begins
        self._due = 0 if self._max is None else self._max // (_FOLDERS * 10)
        self._sets = random.randrange(_SETS)  # since the last one
        self._bytes = random.randrange(self._due + 1)

    @property
    def folder(self) -> str:
        """Where it is."""
        return self._folder

    def get(self, key: bytes, /) -> bytes | None:
        """What was set under a key; None if there is nothing, or nothing whole.

        Raises:
            TypeError: key is not bytes.
        """
        name = _name(key)
        try:
            with open(self._path(name), "rb", buffering=0) as file:
                head, value = _read(file)
        except FileNotFoundError:
            self.misses += 1
            return None
        except OSError as error:
            self._failed("read", error)
            self.misses += 1
            return None
        if not hmac.compare_digest(head, _MAGIC + self._proof(name, value)):
            self.corrupt += 1
            self.misses += 1
            return None
        self.hits += 1
        return value

    def set(self, key: bytes, value: bytes, /) -> None:
        """Keep a value. It is there when this returns, unless the system refuses, or it is swept.

        Raises:
            TypeError: key or value is not bytes.
        """
        name = _name(key)
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"a cache keeps bytes, not {type(value).__name__!r}")
        size = _HEAD + memoryview(value).nbytes
        if self._max is not None and size > self._max:
            return  # it would be the first to go
        try:
            self._write(name, _MAGIC + self._proof(name, value), value)
        except OSError as error:
            self._failed("write", error)
        if self._max is not None:
            self._account(size)

    # -- files

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name[:2]}/{name}"

    def _proof(self, name: str, value: Any) -> bytes:
        if self._secret is None:
            said: Any = blake2b(name.encode(), digest_size=_PROOF)
        else:
            said = hmac.new(self._secret, name.encode(), "sha256")
        said.update(value)
        digest: bytes = said.digest()
        return digest

    def _write(self, name: str, head: bytes, value: Any) -> None:
        path = self._path(name)
        aside = f"{path[: -len(name)]}.{os.getpid()}.{next(_serials)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(aside, flags, 0o600)
        except FileNotFoundError:  # the first entry of its folder
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(aside, flags, 0o600)
        try:
            try:
                _write_all(fd, head, value)
            finally:
                os.close(fd)
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise

    def _failed(self, what: str, error: OSError) -> None:
        self.errors += 1
        if not self._told:
            self._told = True
            warn_user(
                f"the cache in {self._folder} cannot be used to {what}: {error}. Nodes are called "
                "as if there were no cache; this is told once."
            )

    # -- keeping to max_bytes

    def _account(self, size: int) -> None:
        """One more entry was set; sweep, if that is due."""
        if not self._lock.acquire(blocking=False):
            return  # another thread sweeps, or counts one: of many such this one is missed
        try:
            self._sets += 1
            self._bytes += size
            if self._sets >= _SETS or self._bytes > self._due:
                self._sets = self._bytes = 0
                self._sweep()
        except OSError as error:
            self._failed("sweep", error)
        finally:
            self._lock.release()

    def _sweep(self) -> None:
        """Look at the next folders, and take the oldest entries away if they hold too much."""
        assert self._max is not None
        entries: list[_Entry] = []
        looked = 0
        while looked < _FOLDERS and len(entries) < _GROUP:
            entries += self._entries(f"{self._folder}/{self._next:02x}")
            self._next = (self._next + 1) % _FOLDERS
            looked += 1
        share = self._max * looked / _FOLDERS
        held = sum(entry.size for entry in entries)
        most, least = _ALL if looked == _FOLDERS else _PART
        if held > share * most:
            entries.sort()
            for entry in entries:
                if held <= share * least:
                    break
                with contextlib.suppress(FileNotFoundError):  # another sweep was here
                    os.unlink(entry.path)
                    self.swept += 1
                held -= entry.size
        self._due = int(min(self._max * looked / (_FOLDERS * 10), self._max / 20))

    def _entries(self, folder: str) -> Iterator[_Entry]:
        """What a folder holds; what killed writers have left there goes."""
        now = time.time()
        try:
            found = os.scandir(folder)
        except FileNotFoundError:
            return
        with found:
            for file in found:
                try:
                    stat = file.stat(follow_symlinks=False)
                    if file.name.endswith(".tmp"):
                        if now - stat.st_mtime > _STALE_S:
                            os.unlink(file.path)
                        continue
                except FileNotFoundError:
                    continue
                yield _Entry(stat.st_mtime_ns, stat.st_size, file.path)

    def __reduce__(self) -> Any:
        return _again, (self._folder, self._max, self._secret)

    def __repr__(self) -> str:
        most = "" if self._max is None else f", at most {self._max:,} bytes"
        return f"<DiskCache {self._folder!r}{most}: {self.hits} hits, {self.misses} misses>"


def _again(folder: str, most: int | None, secret: bytes | None) -> DiskCache:
    """One that came from another process: its folder may be gone by now, which is no error."""
    cache = DiskCache.__new__(DiskCache)
    cache._folder, cache._max, cache._secret = folder, most, secret
    cache._begin()
    return cache


def _name(key: bytes) -> str:
    if not isinstance(key, (bytes, bytearray)):
        raise TypeError(f"a key must be bytes, not {type(key).__name__!r}")
    return blake2b(key, digest_size=20).hexdigest()


def _read(file: io.FileIO) -> tuple[bytes, bytes]:
    """A file's head and value: a small one in one step, a large value without a copy."""
    data = file.read(_SMALL)
    if len(data) < _SMALL:
        return data[:_HEAD], data[_HEAD:]
    file.seek(_HEAD)
    return data[:_HEAD], file.readall()


def _write_all(fd: int, head: bytes, value: Any) -> None:
    written = os.writev(fd, [head, value])
    rest = memoryview(head + bytes(value))[written:] if written < _HEAD else None
    if rest is None:
        rest = memoryview(value).cast("B")[written - _HEAD :]
    while rest:
        rest = rest[os.write(fd, rest) :]

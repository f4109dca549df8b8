"""Shared values (`fm.share`) on their way to an engine: their bytes, once a worker.

    home                                             a worker
    encode ──▶ needs: nonce -> source                run(.., needed, ..., closed, *tokens)
    Tokens.of(nonce, source) ──▶ Blob ──argument──▶  Kept.use ... Kept.done
    Tokens.closed() ─────────────────────────────▶   Kept.drop: its bytes, and what led to them

Guarantees:
    * A value lives as long as its handle is open or an item that was accepted with it has no
      outcome (SHARE-1); then its token goes, and workers let go of the bytes with the next chunk
      that they get.
    * Each side keeps MOST_BYTES of them, and the last one used whatever its size. What a worker has
      dropped it asks for again.

Invariants:
    * WIRE-2  What a call uses stays in its worker until the call is over.

Threads: `Kept` any; `Tokens` belongs to the courier's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any
from weakref import ref

from .._process import SHARES
from .backend import Blob

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["KEPT", "MOST_BYTES", "Kept", "Tokens", "is_open", "source_of"]

MOST_BYTES = 256 << 20
_CLOSED = 64  # the last ones that workers are told of


def source_of(handle: Any) -> Any:
    """What keeps a handle's memory, also when the handle is closed."""
    return handle if handle._segment is None else handle._segment


def is_open(nonce: bytes) -> bool:
    """Whether this process can still send a handle of it."""
    share = SHARES[0]
    handle = share._handles.get(nonce)
    return handle is not None and handle._value is not share._CLOSED_VALUE


def _image(source: Any) -> Any:
    """The bytes."""
    segment = SHARES[0]._segment
    if type(source) is segment.Parcel:
        return source.image
    return segment.memory(source.address if type(source) is segment.Segment else source._address)[0]


class Tokens:
    """What an engine has been given of shared values.

    Args:
        keeps: Whether a token is the bytes wherever a call runs (`Backend.keeps`).
    """

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._blobs: OrderedDict[bytes, tuple[Blob, ref[Any]]] = OrderedDict()
        self._nbytes = 0
        self._closed: deque[bytes] = deque(maxlen=_CLOSED)

    def of(self, nonce: bytes, source: Any) -> Blob:
        """One's; it is made at its first use."""
        known = self._blobs.get(nonce)
        if known is not None:
            self._blobs.move_to_end(nonce)
            return known[0]
        image = _image(source)
        blob = Blob(nonce, image if self._keeps else bytes(image))
        self._blobs[nonce] = blob, ref(source)
        self._nbytes += len(image)
        if nonce in self._closed:  # another process's, which has come here again
            self._closed.remove(nonce)
        while self._nbytes > MOST_BYTES and len(self._blobs) > 1:
            self._drop(next(iter(self._blobs)))
        return blob

    def closed(self) -> tuple[bytes, ...]:
        """The last ones that nobody needs any more; their tokens go."""
        for nonce in [nonce for nonce, (_, source) in self._blobs.items() if source() is None]:
            self._drop(nonce)
            self._closed.append(nonce)
        return tuple(self._closed)

    def _drop(self, nonce: bytes) -> None:
        blob, _ = self._blobs.pop(nonce)
        self._nbytes -= len(blob.data)


class Kept:
    """The bytes of shared values that a worker has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self._uses: dict[bytes, int] = {}  # by calls that run
        self._late: set[bytes] = set()  # closed while one ran
        self._nbytes = 0

    def use(self, needed: Sequence[bytes], images: Sequence[Any]) -> list[bytes]:
        """Have them here until `done`; those that are not, and then none is used."""
        from ..codec import segment

        with self._lock:
            given = dict(zip(needed, images, strict=True))
            missing = [n for n, image in given.items() if n not in self._sizes and image is None]
            if missing:
                return missing
            for nonce, image in given.items():
                self._uses[nonce] = self._uses.get(nonce, 0) + 1
                if nonce not in self._sizes:
                    self._sizes[nonce] = memoryview(image).nbytes
                    self._nbytes += self._sizes[nonce]
                    segment.unpack(nonce, memoryview(image))
                self._sizes.move_to_end(nonce)
            return []

    def done(self, needed: Iterable[bytes]) -> list[bytes]:
        """A call is over: those that are let go of now."""
        with self._lock:
            for nonce in set(needed):
                self._uses[nonce] -= 1
                if not self._uses[nonce]:
                    del self._uses[nonce]
            gone = [nonce for nonce in self._late if nonce not in self._uses]
            gone += self._too_many(frozenset(gone))
            return self._forget(gone)

    def drop(self, closed: Iterable[bytes]) -> list[bytes]:
        """Their owner has closed them: those that are let go of now."""
        with self._lock:
            known = [nonce for nonce in closed if nonce in self._sizes]
            self._late.update(nonce for nonce in known if nonce in self._uses)
            return self._forget([nonce for nonce in known if nonce not in self._uses])

    def _too_many(self, gone: frozenset[bytes]) -> list[bytes]:
        """The oldest beyond the bound, of those that nobody uses."""
        over = self._nbytes - sum(self._sizes[nonce] for nonce in gone) - MOST_BYTES
        found: list[bytes] = []
        for nonce, size in [*self._sizes.items()][:-1]:
            if over > 0 and nonce not in self._uses and nonce not in gone:
                found.append(nonce)
                over -= size
        return found

    def _forget(self, gone: list[bytes]) -> list[bytes]:
        from ..codec import segment

        for nonce in gone:
            self._nbytes -= self._sizes.pop(nonce)
            self._late.discard(nonce)
            segment.forget(nonce)
        if gone and SHARES:
            SHARES[0].forget_closed()
        return gone


KEPT = Kept()

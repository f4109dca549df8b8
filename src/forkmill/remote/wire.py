"""Objects to bytes and back, for workers that share nothing with us but installed packages.

    items ──packed──▶ Packed: one pickle of plain values, or one for each item and its buffers
    a function ──function──▶ bytes; what no site-packages has goes by value (cloudpickle)

Guarantees:
    * A value arrives as through any other context: each item is encoded alone, so no two of them
      share an object there; plain values, which nobody can change, go together.
    * What was sent by value keeps its class: what comes back is of the sender's own.
    * An item that cannot be sent, and a result that cannot, fails alone.
    * Shared values (`fm.share`) go by their bytes, which a worker needs once.

Invariants:
    * WIRE-1  What arrives by value lives in globals of its own, never in a module of the worker's:
      programs that share a worker do not see each other's.

Threads: any.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import sysconfig
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .._process import SHARES
from ..codec.codec import Codec, Parts
from .shares import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Packed", "WireCodec", "loaded", "packed_plain", "plain"]

SCALARS = frozenset({int, float, str, bytes, bool, type(None)})
LARGE = 1 << 16  # bytes: what goes beside the pickle
_SHARE = b"forkmill.codec.share"
_registering = threading.Lock()  # cloudpickle's set of modules is one for all

# Whether there are failures among them: (data, None), else (pickles, how many buffers each has).
Packed = tuple[Any, Any, list[Any]]


class _Needs(threading.local):
    """The shared values that what is encoded leads to."""

    found: dict[bytes, Any] | None = None


_needs = _Needs()


class WireCodec(Codec):
    """Encodes for workers elsewhere.

    Args:
        modules: Names of modules that go by value although they are installed; with all below.
        there: It is a worker's: what it can import by name, it sends by name.
    """

    def __init__(self, modules: Sequence[str] = (), *, there: bool = False) -> None:
        super().__init__("exec")
        self._modules = tuple(modules)
        self._there = there
        self._foreign: set[str] = set()  # what is not reachable, but for __main__
        self._known: set[str] = set()  # all modules that were there at the last look
        self._lazy: list[str] = []  # those of them that were no real ones

    def _is_reachable(self, name: str) -> bool:
        if self._there:
            return super()._is_reachable(name)
        module = sys.modules.get(name)
        if module is None or name.partition(".")[0] == __package__.partition(".")[0]:
            return True
        named = any(name == each or name.startswith(f"{each}.") for each in self._modules)
        if not named and _is_installed(name, module):
            return True
        self._marks += (name.encode(),)
        if name != "__main__":
            self._foreign.add(name)
        return False

    def _look_for_foreign(self) -> None:
        if self._there:
            super()._look_for_foreign()
            return
        there = sys.modules
        if there.keys() == self._known and not any(map(_is_real, map(there.get, self._lazy))):
            return  # a function has to be encoded for each map, and there are thousands of them
        super()._look_for_foreign()
        self._known = set(there)
        new = self._known - self._reachable.keys()
        self._lazy = [name for name in new if not _is_real(there.get(name))]
        for name in new.difference(self._lazy):
            self.reachable(name)

    def _needs_value(self, data: bytes, *, task: bool) -> bool:
        if _needs.found is not None and SHARES and data.find(_SHARE) >= 0:
            return True
        return super()._needs_value(data, task=task)

    def _by_value(self, obj: Any, persistent: Any, *, task: bool) -> tuple[Parts, Any]:
        from . import by_value

        self.by_value += 1
        self._look_for_foreign()
        buffers: list[pickle.PickleBuffer] = []
        parts = Parts()
        mine = self.reachable, self._there
        with self._registered():
            by_value.Pickler(parts, buffers.append, persistent, _table(), *mine).dump(obj)
        try:
            return parts, [buffer.raw() for buffer in buffers]
        except BufferError:  # not contiguous: in band, if at all
            parts = Parts()
            with self._registered():
                by_value.Pickler(parts, None, persistent, _table(), *mine).dump(obj)
            return parts, []

    @contextlib.contextmanager
    def _registered(self) -> Iterator[None]:
        """cloudpickle sends our user's modules by value."""
        from cloudpickle import cloudpickle

        known = cloudpickle._PICKLE_BY_VALUE_MODULES
        with _registering:
            added = self._foreign - known
            known.update(added)
            try:
                yield
            finally:
                known.difference_update(added)

    # ------------------------------------------------------------------ functions

    def function(self, function: Any) -> tuple[bytes, dict[bytes, Any]]:
        """A function's bytes, and the shared values that it leads to, by nonce.

        Raises:
            SerializationError: It cannot be sent.
        """
        with _collected() as found:
            return self.dump_function(function), found

    # ------------------------------------------------------------------ items

    def packed_one(self, item: Any) -> tuple[bytes, list[Any], dict[bytes, Any]]:
        """One item: its pickle, its buffers, and the shared values that it leads to.

        Raises:
            SerializationError: It cannot be sent.
        """
        with _collected() as found:
            data, views = self.dumps(item)
        return data, [_held(view) for view in views], found

    def unpacked(self, packed: Packed) -> Iterator[Any]:
        """The items, one after the other: who decodes one that cannot be has its failure."""
        data, counts, buffers = packed
        if counts is None:
            yield from pickle.loads(data)
            return
        at = 0
        for one, count in zip(data, counts, strict=True):
            yield one, buffers[at : at + count]
            at += count


def _is_real(module: Any) -> bool:
    """Whether a module is one that is loaded; to look into a lazy one may load it."""
    return type(module) is ModuleType


def plain(items: Sequence[Any]) -> bool:
    """Whether items may go in one pickle: nobody can change them, and small ones are no loss."""
    kinds = set(map(type, items))
    if not kinds <= SCALARS:
        return False
    if kinds.isdisjoint((str, bytes)):
        return True
    return all(len(item) < LARGE for item in items if type(item) is str or type(item) is bytes)


def packed_plain(items: Sequence[Any]) -> Packed:
    return pickle.dumps(items if type(items) is list else list(items), 5), None, []


def loaded(codec: Any, piece: bytes) -> Any:
    """What `Codec.joined` has joined, decoded."""
    data, buffers = pickle.loads(piece)
    return codec.loads(data, buffers)


def _held(view: Any) -> Any:
    """A buffer on its way: as it is if it is large, else bytes."""
    return pickle.PickleBuffer(view) if view.nbytes >= LARGE else bytes(view)


@contextlib.contextmanager
def _collected() -> Iterator[dict[bytes, Any]]:
    before = _needs.found
    found: dict[bytes, Any] = {}
    _needs.found = found
    try:
        yield found
    finally:
        _needs.found = before


def _table() -> dict[Any, Any]:
    """How shared values are reduced while somebody sees to it that their bytes go along."""
    if _needs.found is None or not SHARES:
        return {}
    return {SHARES[0].Shared: _reduce_shared, SHARES[0]._Lifted: _reduce_lifted}


def _reduce_shared(handle: Any) -> Any:
    share = SHARES[0]
    address = handle._send()
    assert _needs.found is not None
    _needs.found[address.nonce] = source_of(handle)
    return share._rebuild, (address.pid, share._segment._NOWHERE, address.size, address.nonce)


def _reduce_lifted(lifted: Any) -> Any:
    return SHARES[0].resolve, (lifted.handle,)


# ---------------------------------------------------------------------- what is installed


def _is_installed(name: str, module: Any) -> bool:
    """Whether other machines have a module if they have the same packages."""
    if name in sys.builtin_module_names or name.partition(".")[0] in sys.stdlib_module_names:
        return True
    names = vars(module)
    file = names.get("__file__")
    paths = [file] if isinstance(file, str) else list(names.get("__path__", ()))
    if not paths:
        return names.get("__spec__") is not None and names["__spec__"].origin in (
            "built-in", "frozen",
        )  # fmt: skip
    return all(_is_package_folder(os.path.abspath(path)) for path in paths)


def _is_package_folder(path: str) -> bool:
    parts = path.split(os.sep)
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    homes = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")}
    return any(home and path.startswith(home + os.sep) for home in homes)

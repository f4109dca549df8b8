"""The calls of one node through a cache: its key, the look and what is kept.

::

    in the parent, once a run               where the node is called
    node_key(fn, names) ─── travels ──────▶ CallCache(key, cache)
      code, defaults, closure, globals        look(values)  ──▶ key, the value or MISS
                                              keep(key, value)

    key = digest( node ‖ token of each parameter's value, in the order of their names )

Guarantees:
    * An equal key means: the same code, and values that no function can tell apart (walk.py).
    * None is a hit. An entry that cannot be loaded is a miss, and is written anew.
    * A cache that fails is asked again next time, and told of once: the result does not change.
    * Hits are loaded from bytes: who changes a result changes his own.

Threads: any. Equal keys that are looked for at the same time may all be computed.
"""

from __future__ import annotations

import pickle
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..._process import SHARES, ours, warn_user
from ...errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["MISS", "Cache", "CallCache", "NodeKey", "node_key"]


class Cache(Protocol):
    """What can serve as a cache.

    One that can be asked in worker processes says so: it pickles, and has `shared = True`.
    """

    def get(self, key: bytes, /) -> bytes | None:
        """What was set under a key; None if there is nothing."""

    def set(self, key: bytes, value: bytes, /) -> object:
        """Keep a value, for as long as the cache likes."""


class _Miss:
    """What a look gives when there is nothing."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISS"

    def __reduce__(self) -> str:
        return "MISS"


MISS = _Miss()


class NodeKey(NamedTuple):
    """What all calls of one node in a run have in common.

    Attributes:
        digest: Of code and of what it holds and names; empty if that has no stable form.
        names: Parameters, in the order in which their values will come.
        defaults: (name, token) of the parameters that will not be given.
        where: The node, for messages.
        refusal: What has no stable form, as a sentence; "" if all is well.
    """

    digest: bytes
    names: tuple[str, ...]
    defaults: tuple[tuple[str, bytes], ...]
    where: str
    refusal: str


def node_key(
    fn: Any,
    names: Sequence[str],
    *,
    version: Any = None,
    batch: bool = False,
    where: str = "",
) -> NodeKey:
    """The key of a node, as its code and what that names are now.

    Args:
        fn: The node's function.
        names: The parameters that will be given, in the order in which `CallCache.look` gets them.
        version: What the user says of what code does not show.
        batch: Whether the function takes lists.
        where: The node, for messages: "node 'score'".

    Returns:
        It, whatever fn is: where something has no stable form, the first look says so.

    Thread-safe. Nothing of the user's is called but `__cache_key__`.
    """
    from .leaves import Unstable
    from .walk import token

    names, where = tuple(names), where or f"node {getattr(fn, '__qualname__', fn)!r}"
    try:
        root = (fn, type(fn)) if hasattr(type(fn), "__cache_key__") else fn
        said = token((root, version, batch))
        defaults = [(name, token(value)) for name, value in _defaults(fn) if name not in names]
    except Unstable as error:
        path = error.path.removeprefix("[0]")
        what = "its version" if path.startswith("[1]") else f"its function {path}".rstrip()
        return NodeKey(b"", names, (), where, _refusal(where, what, error.what))
    return NodeKey(said, names, tuple(defaults), where, "")


def _defaults(fn: Any) -> list[tuple[str, Any]]:
    code = getattr(fn, "__code__", None)
    if code is None:
        return []
    given = getattr(fn, "__defaults__", None) or ()
    positional = code.co_varnames[: code.co_argcount][code.co_argcount - len(given) :]
    named: dict[str, Any] = getattr(fn, "__kwdefaults__", None) or {}
    return [*zip(positional, given, strict=True), *named.items()]


def _refusal(where: str, what: str, kind: str) -> str:
    return (
        f"{where} cannot be cached: {what} is {kind}, which has no stable form. "
        "Give its class a __cache_key__() that returns what counts, or take cache=True off."
    )


class CallCache:
    """One node's calls, in the process where its cache is asked.

    Args:
        key: Of the node.
        cache: Where values are kept.
        constants: Parameters whose values stay the same objects: they are looked through once.
    """

    __slots__ = ("_cache", "_constants", "_key", "_known", "_slots", "_template", "_token")

    def __init__(self, key: NodeKey, cache: Cache, constants: Collection[str] = ()) -> None:
        from .walk import token

        self._key = key
        self._cache = cache
        self._token = token
        self._constants = frozenset(constants)
        self._known: dict[str, tuple[Any, bytes]] = {}
        order = sorted([*key.names, *(name for name, _ in key.defaults)])
        self._template = [key.digest] + [b""] * len(order)
        for name, default in key.defaults:
            self._template[1 + order.index(name)] = default
        self._slots = [(1 + order.index(name), name) for name in key.names]

    def look(self, values: Sequence[Any]) -> tuple[bytes, Any]:
        """The key of a call, and what was kept for it, or MISS.

        Args:
            values: In the order of the key's names. What `fm.per_worker` makes may come as its
                handle, and counts by its factory and arguments; so may what is shared.

        Raises:
            TypeError: The node or one of the values has no stable form; it names the path.
        """
        if self._key.refusal:
            raise TypeError(self._key.refusal)
        parts = self._template.copy()
        for (at, name), value in zip(self._slots, values, strict=True):
            parts[at] = self._of(name, value)
        key = blake2b(b"".join(parts), digest_size=32).digest()
        return key, self._get(key)

    def _of(self, name: str, value: Any) -> bytes:
        if name in self._constants:
            known = self._known.get(name)
            if known is not None and known[0] is value:
                return known[1]
        shared = value.value if SHARES and type(value) is SHARES[0].Shared else value
        try:
            found = self._token(shared)
        except Exception as error:
            if type(error).__name__ != "Unstable":
                raise
            what = f"argument {name}{error.path}"  # type: ignore[attr-defined]
            refusal = _refusal(self._key.where, what, error.what)  # type: ignore[attr-defined]
            raise TypeError(refusal) from None
        if name in self._constants:
            self._known[name] = value, found
        return found

    def _get(self, key: bytes) -> Any:
        try:
            data = self._cache.get(key)
            if data is None:
                return MISS
            return _loads(data)
        except Exception as error:
            _tell(self._cache, "get", error)
            return MISS

    def keep(self, key: bytes, value: Any) -> None:
        """Keep what a call has given.

        Raises:
            SerializationError: It cannot be pickled.
        """
        data = _dumped(value, self._key.where)
        try:
            self._cache.set(key, data)
        except Exception as error:
            _tell(self._cache, "set", error)


def _loads(data: Any) -> Any:
    value = pickle.loads(memoryview(data)[1:])
    return value if data[:1] == b"p" else ours("codec.codec").loads(*value)


def _dumped(value: Any, where: str) -> bytes:
    """A pickle; of what a process has and others find under no name, one of ours."""
    try:
        return b"p" + pickle.dumps(value, 5)
    except Exception:
        codec = ours("codec.codec")
        try:
            data, buffers = codec.dumps(value)
        except SerializationError as error:
            text = str(error).replace("cannot be sent", "cannot be pickled", 1)
            raise SerializationError(
                f"what {where} returned cannot be kept in a cache: {text}", path=error.path
            ) from None
        return b"v" + pickle.dumps((data, [*map(bytes, buffers)]), 5)


_told: set[tuple[str, str]] = set()


def _tell(cache: Any, what: str, error: Exception) -> None:
    kind = type(cache).__qualname__
    if (kind, what) not in _told:  # once a process
        _told.add((kind, what))
        warn_user(
            f"{kind}.{what}() has failed: {type(error).__name__}: {error}. The node is called "
            "as if there were no cache; this is told once."
        )

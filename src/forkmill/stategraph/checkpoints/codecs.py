"""Values to bytes and back: how a state graph keeps what its nodes give.

One value is one blob. A worker encodes and decodes as the run does, so nothing here needs a store.

=========  ==========================================  ==========================================
codec      holds                                       who can write to the store
=========  ==========================================  ==========================================
pickle     what plain pickle 5 can name; never code    can run code in who reads it, if the
           (no cloudpickle)                            store has no `key`
json       None bool int float str list dict (str      can change values
           keys), exactly
msgpack    the same, bytes, and whole numbers, bytes,  can change values
           floats, None as keys; 64 bits an int
=========  ==========================================  ==========================================

Guarantees:

- `decode(encode(value))` is equal to the value and has its type, or `encode` raises; a tuple that
  would come back as a list is refused, not changed. (With pickle, what equality means is the
  value's own; what has no `__eq__` need only come back as its type. Arrays are not compared.)
- A decoded value is the caller's own: nobody else has it. Arrays, and what else hands out buffers
  (pickle protocol 5), lie over the blob, read-only, without a copy.

A pickle with buffers is framed; without any it is the bare pickle (which begins with 0x80)::

    "FMB5" | count u32 | pickle's bytes u64 | count x length u64 | pickle | pad | buffer | pad | ...

The buffers begin at multiples of 64, for whom lays the blob there too.

Threads: any; a codec has no state. It pickles as its name.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from ... import errors
from ..._checks import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CODECS", "Codec", "codec_named"]

_MAGIC = b"FMB5"
_ALIGNED = 64
_HEAD = struct.Struct("<4sIQ")
# STACK_GLOBAL, and the three of copyreg's extensions: a pickle without any of these bytes has
# nothing in it but plain builtin values, which come back as they were.
_NAMES = (b"\x93", b"\x82", b"\x83", b"\x84")


class Codec:
    """How values are stored.

    Attributes:
        name: What a store keeps beside each value.
    """

    name = ""

    def encode(self, value: Any) -> bytes:
        """A value as bytes.

        Raises:
            SerializationError: It cannot be stored, or would not come back equal with its type;
                `path` leads to what is in the way.
        """
        raise NotImplementedError

    def decode(self, data: bytes | memoryview) -> Any:
        """The value of such bytes.

        Raises:
            StoreError: They are not this codec's, or what they name is not here.
        """
        try:
            return self._load(data)
        except Exception as error:
            raise errors.StoreError(
                f"stored bytes cannot be read by the codec {self.name!r}: {_said(error)}"
            ) from error

    def _load(self, data: bytes | memoryview) -> Any:
        raise NotImplementedError

    def _refused(self, path: str, why: str) -> errors.SerializationError:
        where = f" at {path}" if path else ""
        return errors.SerializationError(
            f"the codec {self.name!r} cannot store it{where}: {why}", path=path
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return codec_named, (self.name,)

    def __repr__(self) -> str:
        return f"<codec {self.name}>"


# ---------------------------------------------------------------------------- pickle


class _Pickle(Codec):
    name = "pickle"

    def encode(self, value: Any) -> bytes:
        buffers: list[pickle.PickleBuffer] = []
        try:
            data = pickle.dumps(value, 5, buffer_callback=_taken_by(buffers))
        except RecursionError:
            raise self._refused("", "it is too deep") from None
        except Exception as error:
            path, cause = _culprit(value, error)
            raise self._refused(path, _said(cause)) from error
        if buffers:
            data = _framed(data, buffers)
        if buffers or any(name in data for name in _NAMES):
            self._compare(value, data)
        return data

    def _compare(self, value: Any, data: bytes) -> None:
        try:
            back = self._load(data)
        except Exception as error:
            raise self._refused("", f"it cannot be loaded again: {_said(error)}") from error
        try:
            found = _difference(value, back, "", set())
        except RecursionError:
            return
        if found:
            raise self._refused(*found)

    def _load(self, data: bytes | memoryview) -> Any:
        if data[:4] != _MAGIC:
            return pickle.loads(data)
        view = memoryview(data).toreadonly()
        _, count, size = _HEAD.unpack_from(view)
        lengths = struct.unpack_from(f"<{count}Q", view, _HEAD.size)
        at = _HEAD.size + 8 * count
        body, at = view[at : at + size], at + size
        buffers = []
        for length in lengths:
            at += -at % _ALIGNED
            if at + length > len(view):
                raise ValueError("the bytes are cut off")
            buffers.append(view[at : at + length])
            at += length
        return pickle.loads(body, buffers=buffers)


def _taken_by(buffers: list[pickle.PickleBuffer]) -> Callable[[pickle.PickleBuffer], bool]:
    def take(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffer.raw().release()
        except BufferError:  # not one piece of memory: it goes into the pickle, as a copy
            return True
        buffers.append(buffer)
        return False

    return take


def _framed(data: bytes, buffers: list[pickle.PickleBuffer]) -> bytes:
    views = [buffer.raw() for buffer in buffers]
    lengths = [view.nbytes for view in views]
    head = _HEAD.pack(_MAGIC, len(views), len(data)) + struct.pack(f"<{len(views)}Q", *lengths)
    pieces: list[bytes | memoryview] = [head, data]
    at = len(head) + len(data)
    for view, length in zip(views, lengths, strict=True):
        pad = -at % _ALIGNED
        pieces += [bytes(pad), view]
        at += pad + length
    return b"".join(pieces)


def _difference(value: Any, back: Any, path: str, seen: set[int]) -> tuple[str, str] | None:
    """Where, and how, what came back differs from what was sent; None if it does not."""
    kind = type(value)
    if kind is not type(back):
        return path, f"{_named(kind)} comes back as {_named(type(back))}"
    if id(value) in seen or hasattr(kind, "__array__"):
        return None
    seen.add(id(value))
    if issubclass(kind, (list, tuple, deque, dict)) or dataclasses.is_dataclass(kind):
        mine, theirs = list(_children(value)), list(_children(back))
        if [name for name, _ in mine] != [name for name, _ in theirs]:
            return path, f"{_named(kind)} comes back with other contents"
        for (name, one), (_, other) in zip(mine, theirs, strict=True):
            found = _difference(one, other, path + name, seen)
            if found:
                return found
        return None
    if _by_identity(kind):
        return None
    if issubclass(kind, (set, frozenset)) and any(_by_identity(type(item)) for item in value):
        return None if len(value) == len(back) else (path, f"{_named(kind)} comes back smaller")
    same = value == back
    if same is False and (value == value) is True:
        return path, f"{_named(kind)} does not come back equal"
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """What is in a container or a dataclass, with the piece of path that leads there."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r}]" if isinstance(key, _SHORT) else f"[{_named(type(key))}]", item
        # Its keys too: what they are is not in the path of all of them.
        yield from ((".keys()", key) for key in value if not isinstance(key, _SHORT))
    elif isinstance(value, (list, tuple, deque, set, frozenset)):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                yield f".{field.name}", getattr(value, field.name)
    else:
        yield from ((f".{name}", item) for name, item in getattr(value, "__dict__", {}).items())


def _by_identity(kind: Any) -> bool:
    return kind.__eq__ is object.__eq__


_SHORT = (str, int, float, bool, bytes, type(None))


def _culprit(value: Any, error: Exception) -> tuple[str, Exception]:
    """Path and error of the innermost part that cannot be pickled by itself."""
    path, at, seen = "", value, {id(value)}
    while True:
        for piece, child in _children(at):
            if id(child) in seen:
                continue
            seen.add(id(child))
            try:
                pickle.dumps(child, 5, buffer_callback=_taken_by([]))
            except Exception as inner:
                path, at, error = path + piece, child, inner
                break
        else:
            return path, error


# ------------------------------------------------------------------- json and msgpack


class _Json(Codec):
    name = "json"

    def encode(self, value: Any) -> bytes:
        try:
            found = _unfit(value, "", _JSON_TYPES, (str,))
            if found:
                raise self._refused(*found)
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            # Lone surrogates and pairs of them too: as escapes the latter would become one.
            data = text.encode("utf-8", "surrogatepass")
            if _has_long_int(value):
                self._load(data)
            return data
        except RecursionError:
            raise self._refused("", "it is too deep, or holds itself") from None
        except ValueError as error:
            if isinstance(error, errors.SerializationError):
                raise
            raise self._refused("", _said(error)) from error

    def _load(self, data: bytes | memoryview) -> Any:
        return json.loads(str(data, "utf-8", "surrogatepass"))


class _Msgpack(Codec):
    name = "msgpack"

    def __init__(self) -> None:
        try:
            import msgpack
        except ImportError as error:
            raise ModuleNotFoundError(
                "the codec 'msgpack' needs the package msgpack: pip install 'forkmill[msgpack]'",
                name="msgpack",
            ) from error
        self._packb, self._unpackb = msgpack.packb, msgpack.unpackb

    def encode(self, value: Any) -> bytes:
        try:
            found = _unfit(value, "", _MSGPACK_TYPES, _MSGPACK_KEYS)
            if found:
                raise self._refused(*found)
            packed: bytes = self._packb(value, use_bin_type=True, strict_types=True)
            return packed
        except RecursionError:
            raise self._refused("", "it is too deep, or holds itself") from None
        except (ValueError, OverflowError) as error:
            raise self._refused("", _said(error)) from error

    def _load(self, data: bytes | memoryview) -> Any:
        return self._unpackb(data, raw=False, use_list=True, strict_map_key=False)


_JSON_TYPES = (type(None), bool, int, float, str)
_MSGPACK_TYPES = (*_JSON_TYPES, bytes)
_MSGPACK_KEYS = _MSGPACK_TYPES
_SAFE_DIGITS = 1 << 2000  # fewer digits than any limit that Python can be given for reading ints


def _unfit(
    value: Any, path: str, scalars: tuple[type, ...], keys: tuple[type, ...]
) -> tuple[str, str] | None:
    """Where, and why, a value would not come back as it is."""
    kind = type(value)
    if kind in scalars:
        return None
    if kind is list:
        for index, item in enumerate(value):
            found = _unfit(item, f"{path}[{index}]", scalars, keys)
            if found:
                return found
        return None
    if kind is dict:
        for key, item in value.items():
            if type(key) not in keys:
                return path, f"a key of {_named(type(key))}, {key!r:.60}"
            found = _unfit(item, f"{path}[{key!r}]", scalars, keys)
            if found:
                return found
        return None
    return path, f"{_named(kind)} would not come back as one"


def _has_long_int(value: Any) -> bool:
    if type(value) is int:
        return not -_SAFE_DIGITS < value < _SAFE_DIGITS
    if type(value) is list:
        return any(map(_has_long_int, value))
    return type(value) is dict and any(map(_has_long_int, value.values()))


# ------------------------------------------------------------------------------ names


def _named(kind: type) -> str:
    return f"a {kind.__qualname__!r}" if kind is not type(None) else "None"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


CODECS: dict[str, Callable[[], Codec]] = {"pickle": _Pickle, "json": _Json, "msgpack": _Msgpack}
_made: dict[str, Codec] = {}


def codec_named(name: str) -> Codec:
    """The codec of a name.

    Raises:
        ValueError: There is none; the message names the nearest.
        ModuleNotFoundError: Its package is not installed; the message names the extra.
    """
    if not isinstance(name, str):
        raise TypeError(f"codec must be one of {sorted(CODECS)}, not {type(name).__name__!r}")
    if name not in CODECS:
        raise ValueError(f"there is no codec {name!r}{nearest(name, CODECS)}")
    if name not in _made:
        _made.setdefault(name, CODECS[name]())
    return _made[name]

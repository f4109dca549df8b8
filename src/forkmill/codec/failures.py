"""Exceptions to bytes and back: what led to them, whom they group, and where it was.

::

    error ──┬─ cause, context ─▶ ...        dump: [node 0, node 1, ...], links as numbers
            └─ members (a group's) ─▶ ...   load: from the last node to the first

Guarantees:
    * dump() never raises. What it wrote was proved to load, or is a RemoteError, exception by
      exception: a member of a group that cannot be rebuilt is a RemoteError alone (INV-5).
    * Nothing here sets, or asks for, an attribute of an exception through its class: that may be a
      frozen dataclass, or have properties of the same names. BaseException's own slots are used.
    * Formatted tracebacks have no frames of ours, at any depth.

Invariants:
    FAIL-1  A node's pickle refers to nodes of higher numbers only, so there is an order in which
            all can be loaded, whatever cycles their causes make.

Threads: any; there is no state.
"""

from __future__ import annotations

import os
import pickle
import traceback
from types import FunctionType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Protocol

from .._process import interrupted
from ..errors import (
    RemoteError,
    RemoteTraceback,
    SerializationError,
    set_slot,
    slot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

__all__ = ["dump", "format_error", "load"]

_MOST = 5000  # exceptions that one report tells of
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# What users run, and so may want to see: all else in this package only passes on what they wrote.
_SHOWN = tuple(_HERE + name for name in ("testing.py", "__main__.py", "cli" + os.sep))
_HEAPTYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement
# Attributes that pickle leaves behind.
_LEFT = {AttributeError: ("name",), NameError: ("name",)}


class Codes(Protocol):
    """What encodes one exception of those that belong together; see the methods of `Codec`."""

    def dumps_failure(
        self, error: Any, number: Callable[[Any], int | None] | None
    ) -> tuple[bytes, Any]: ...

    def loads_failure(self, data: Any, buffers: Any, links: Sequence[Any]) -> Any: ...


# -------------------------------------------------------------------------------- as text


def format_error(error: BaseException) -> str:
    """The traceback with its causes, contexts and members, without our own frames."""
    if _is_simple(error):
        text = _formatted_quickly(error)
        if text is not None:
            return text
    report = traceback.TracebackException(
        type(error), error, slot(error, "__traceback__"), lookup_lines=False
    )
    waiting: list[Any] = [report]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [frame for frame in part.stack if not is_our_frame(frame.filename)]
        waiting += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
    return "".join(report.format())


# Text of frames that were formatted before, by code and instruction. Where many items fail they do
# so in few places, and `traceback` asks the file system each time: longer than most items take.
_frames: dict[tuple[Any, int], str] = {}
_FRAMES = 256  # so many are kept
_DEEP = 64  # frames; `traceback` shortens a recursion
# What `traceback` says more of than type and text.
_TALKATIVE = (AttributeError, ImportError, NameError, SyntaxError, BaseExceptionGroup)


def _is_simple(error: BaseException) -> bool:
    """Whether there is nothing to tell but its frames, its type and its text."""
    context = None if slot(error, "__suppress_context__") else slot(error, "__context__")
    led = slot(error, "__cause__") or context
    return led is None and not isinstance(error, _TALKATIVE) and not _has_notes(error)


def _has_notes(error: BaseException) -> bool:
    return "__notes__" in slot(error, "__dict__") or hasattr(type(error), "__notes__")


def _formatted_quickly(error: BaseException) -> str | None:
    """As `traceback` does it, from frames that were formatted before; None: it has to."""
    parts = ["Traceback (most recent call last):\n"]
    last, same = None, 0
    frames = slot(error, "__traceback__")
    while frames is not None:
        code = frames.tb_frame.f_code
        if not is_our_frame(code.co_filename):
            key = code, frames.tb_lasti
            line = code, frames.tb_lineno
            same = same + 1 if line == last else 0
            if same >= 3 or len(parts) > _DEEP:
                return None
            last = line
            text = _frames.get(key)
            if text is None:
                if len(_frames) >= _FRAMES:
                    _frames.clear()
                text = _frames[key] = "".join(traceback.format_tb(frames, 1))
            parts.append(text)
        frames = frames.tb_next
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("__main__", "builtins"):
        name = f"{kind.__module__}.{name}"
    try:
        words = str(error)
    except BaseException:
        return None
    parts.append(f"{name}: {words}\n" if words else f"{name}\n")
    return "".join(parts) if len(parts) > 2 else None


def is_our_frame(file: str) -> bool:
    """Whether a code file is part of what carries calls between the user's frames."""
    # Cython's frames have the path from the root of the source: src/forkmill/native/child.pxi.
    if file.endswith((".pxi", "_native.pyx")):
        return "forkmill" in file
    return file.startswith(_HERE) and not file.startswith(_SHOWN)


def _type_name(error: BaseException) -> str:
    kind = type(error)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _str(error: BaseException) -> str:
    try:
        return str(str(error))
    except BaseException:
        return "(its str() failed)"


def _notes(error: BaseException) -> tuple[str, ...]:
    try:
        notes = getattr(error, "__notes__", None)
        return tuple(str(note) for note in notes) if isinstance(notes, (list, tuple)) else ()
    except BaseException:
        return ()


# ------------------------------------------------------------------------------- encoding


class _Node:
    """What crosses of one exception; its links are numbers of other nodes, -1: none."""

    # A plain class with a plain tuple for its state: `dataclasses` would cost each worker 10 ms.
    __slots__ = ("blob", "cause", "context", "left", "notes", "suppress", "text", "type_name")

    def __init__(self, *state: Any) -> None:
        (self.blob, self.type_name, self.text, self.notes,
         self.cause, self.context, self.suppress, self.left) = state  # fmt: skip


def dump(codec: Codes, error: BaseException, where: str) -> bytes:
    """Encode an exception so that load() has something true to raise. Never raises."""
    try:
        text = format_error(error)
    except BaseException:
        text = f"{_type_name(error)}: (its traceback cannot be formatted)\n"
    try:
        return pickle.dumps(("failure", where, text, _pack(codec, error)), 5)
    except BaseException:
        node = (None, _type_name(error), "(cannot be shown)", (), -1, -1, False, ())
        return pickle.dumps(("failure", where, text, [node]), 5)


def _pack(codec: Codes, error: BaseException) -> list[tuple[Any, ...]]:
    """All that `error` leads to, nearest first."""
    errors, numbers = [error], {id(error): 0}
    for one in errors:  # it grows
        for other in _linked(one):
            if id(other) not in numbers and len(errors) < _MOST:
                numbers[id(other)] = len(errors)
                errors.append(other)
    return [_node(codec, one, numbers, errors) for one in errors]


def _linked(error: BaseException) -> Iterator[BaseException]:
    for name in ("__cause__", "__context__"):
        other = slot(error, name)
        if other is not None:
            yield other
    if isinstance(error, BaseExceptionGroup):
        yield from _members(error)


def _members(group: BaseException) -> tuple[BaseException, ...]:
    members: tuple[BaseException, ...] = vars(BaseExceptionGroup)["exceptions"].__get__(group)
    return members


def _node(
    codec: Codes, error: BaseException, numbers: Mapping[int, int], errors: Sequence[BaseException]
) -> tuple[Any, ...]:
    cause, context = slot(error, "__cause__"), slot(error, "__context__")
    return (
        _prove(codec, error, numbers, errors),
        _type_name(error),
        _str(error),
        _notes(error),
        numbers.get(id(cause), -1),
        numbers.get(id(context), -1),
        slot(error, "__suppress_context__"),
        tuple(_left_behind(error)),
    )


def _left_behind(error: BaseException) -> Iterator[tuple[str, str]]:
    for kind, names in _LEFT.items():
        if isinstance(error, kind):
            for name in names:
                value = vars(kind)[name].__get__(error)
                if type(value) is str:
                    yield name, value


def _prove(
    codec: Codes, error: BaseException, numbers: Mapping[int, int], errors: Sequence[BaseException]
) -> bytes | None:
    """The exception's pickle, if what it loads to is the same exception; else None."""
    own = numbers[id(error)]

    def number(obj: Any) -> int | None:
        found = numbers.get(id(obj))
        return found if found is not None and found > own else None  # FAIL-1

    try:
        sent = _Parts(error) if _needs_parts(type(error)) else error
        data, buffers = codec.dumps_failure(sent, number if len(errors) > 1 else None)
        copies = [bytearray(view) for view in buffers]
        if not _same(error, codec.loads_failure(data, copies, errors)):
            return None
        return pickle.dumps((data, copies), 5)
    except BaseException:
        # User code of any kind runs here, and SystemExit from it must not end a worker.
        return None


class _Parts:
    """An exception as pickle would send it, but for how its attributes are set."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        reduced: Any = self.error.__reduce__()
        kind, args, *state = reduced
        attributes = state[0] if state else None
        return kind, args, (attributes, _slot_values(self.error)), None, None, _set_attributes


def _needs_parts(kind: type) -> bool:
    """Whether pickle would set attributes by a `__setattr__` of the class, or forget its slots."""
    if not _is_plain(kind, "__reduce__"):
        return False  # it knows better
    # A dataclass with slots has one that no pickle of an exception ever calls.
    restore = kind.__setstate__  # type: ignore[attr-defined]
    if not _is_plain(kind, "__setstate__") and restore.__name__ != "_dataclass_setstate":
        return False
    if not _is_plain(kind, "__reduce_ex__"):
        return False
    return not _is_plain(kind, "__setattr__") or any(True for _ in _members_of(kind))


def _is_plain(kind: type, name: str) -> bool:
    """Whether a method is a builtin class's."""
    return not isinstance(getattr(kind, name), FunctionType)


def _members_of(kind: type) -> Iterator[tuple[int, str, Any]]:
    """What `__slots__` of the classes have made: (place in the mro, name, descriptor)."""
    for place, part in enumerate(kind.__mro__):
        if part.__flags__ & _HEAPTYPE:
            for name, value in vars(part).items():
                if type(value) is MemberDescriptorType:
                    yield place, name, value


def _slot_values(error: BaseException) -> dict[tuple[int, str], Any]:
    values = {}
    for place, name, member in _members_of(type(error)):
        try:
            values[place, name] = member.__get__(error)
        except AttributeError:  # not set
            continue
    return values


def _set_attributes(error: BaseException, state: tuple[Any, dict[tuple[int, str], Any]]) -> None:
    attributes, slots = state
    slot(error, "__dict__").update(attributes or {})
    for place, name, member in _members_of(type(error)):
        if (place, name) in slots:
            member.__set__(error, slots[place, name])


def _same(error: BaseException, twin: Any) -> bool:
    """Whether a copy of an exception is one: same type, and the same arguments or text."""
    if type(twin) is not type(error):
        return False
    # A group's members are the very same objects: links took their places.
    if isinstance(error, BaseExceptionGroup) and (
        list(map(id, _members(error))) != list(map(id, _members(twin)))
    ):
        return False
    mine, theirs = _slot_values(error), _slot_values(twin)
    if mine.keys() != theirs.keys() or not _same_values(mine.values(), theirs.values()):
        return False
    # Those made in C or Rust keep what they have elsewhere than in `args`, and pickle themselves.
    return _same_values(slot(error, "args"), slot(twin, "args")) or (
        type(error).__reduce__ is not BaseException.__reduce__ and str(error) == str(twin)
    )


def _same_values(ours: Collection[Any], theirs: Collection[Any]) -> bool:
    if len(ours) != len(theirs):
        return False
    plain = (str, bytes, int, float, type(None))
    for one, other in zip(ours, theirs, strict=True):
        if type(one) is not type(other):
            # A class sent by value may come back as another object of the same name.
            if type(one).__qualname__ != type(other).__qualname__:
                return False
        elif type(one) in plain and one != other and one == one:
            return False
    return True


# ------------------------------------------------------------------------------- decoding


def load(codec: Codes, data: Any) -> BaseException:
    """The exception that dump() encoded, with the remote frames below it.

    Never raises (but what a signal handler does): what cannot be loaded is returned as RemoteError,
    or as SerializationError if the report itself is broken.
    """
    try:
        magic, where, text, nodes = pickle.loads(data)
        if magic != "failure":
            raise ValueError("not a failure")
        return _unpack(codec, [_Node(*node) for node in nodes], where, text)
    except BaseException as why:
        if interrupted(why):
            raise
        wrong = SerializationError(
            f"a failure was reported, but its report cannot be decoded: "
            f"{_type_name(why)}: {_str(why)}. If this happens again, a worker's memory "
            f"is being corrupted: look at native code first."
        )
        wrong.__cause__ = why
        return wrong


def _unpack(codec: Codes, nodes: list[_Node], where: str, text: str) -> BaseException:
    errors: list[Any] = [None] * len(nodes)
    for number in range(len(nodes) - 1, -1, -1):  # FAIL-1
        node = nodes[number]
        revived = _revive(codec, node.blob, errors)
        # Not by its truth: an exception may have a length, or a __bool__ that raises.
        errors[number] = _stand_in(node, where, text) if revived is None else revived
    for error, node in zip(errors, nodes, strict=True):
        _link(error, node, lambda number: None if number < 0 else errors[number])
    _end_of_chain(errors[0], RemoteTraceback(text))
    first: BaseException = errors[0]
    return first


def _revive(codec: Codes, blob: bytes | None, errors: Sequence[Any]) -> BaseException | None:
    if blob is None:
        return None
    try:
        data, buffers = pickle.loads(blob)
        error = codec.loads_failure(data, buffers, errors)
    except BaseException as why:  # proved there, but not importable here
        if interrupted(why):
            raise
        return None
    return error if isinstance(error, BaseException) else None


def _stand_in(node: _Node, where: str, text: str) -> RemoteError:
    return RemoteError(
        f"the {where} raised {node.type_name}: {node.text}\n(that exception cannot be rebuilt "
        f"here; give its class a __reduce__ that repeats its arguments)",
        type_name=node.type_name,
        text=node.text,
        notes=node.notes,
        traceback=text,
    )


def _link(error: BaseException, node: _Node, find: Callable[[int], Any]) -> None:
    if node.notes and _notes(error) != tuple(node.notes):
        slot(error, "__dict__")["__notes__"] = list(node.notes)
    for name, value in node.left:
        for kind, names in _LEFT.items():
            if name in names and isinstance(error, kind):
                vars(kind)[name].__set__(error, value)
    set_slot(error, "__context__", find(node.context))
    set_slot(error, "__cause__", find(node.cause))
    set_slot(error, "__suppress_context__", node.suppress)


def _end_of_chain(error: BaseException, below: BaseException) -> None:
    """Set what is shown before all else that is shown of an exception."""
    seen = {id(error)}
    while True:
        before = slot(error, "__cause__")
        if before is None and not slot(error, "__suppress_context__"):
            before = slot(error, "__context__")
        # One from an inner pool is told in the text of the outer one.
        if before is None or id(before) in seen or isinstance(before, RemoteTraceback):
            break
        error = before
        seen.add(id(error))
    set_slot(error, "__cause__", below)

"""Why something cannot be sent, which part of it that is, and what to do about it.

Guarantees:
    * To look for the part runs no code of the user's but what encodes it.

Threads: any; there is no state.
"""

from __future__ import annotations

import copyreg
from functools import partial
from types import CoroutineType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from .._process import interrupted
from ..errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FORK_ONLY", "refusal"]


def refusal(
    encode: Callable[[Any], object], obj: Any, what: str, error: BaseException
) -> SerializationError:
    """What says why `obj` cannot be sent, and which part of it.

    Args:
        encode: What raises for what cannot be sent.
        obj: What cannot.
        what: What it is for users: "argument", "result", ...
        error: What was raised for it.
    """
    # Here and in _find() no exception may stay behind in a local: its traceback leads to the
    # frame, the frame to it, and that cycle would keep the arguments alive.
    try:
        path, error, kind = _find(encode, obj, error)
        refusal = SerializationError(_refusal_text(what, path, error, kind), path=path)
        refusal.__cause__ = error
        return refusal
    finally:
        del error
        refusal = None  # type: ignore[assignment]


def _find(
    encode: Callable[[Any], object], obj: Any, error: BaseException
) -> tuple[str, BaseException, type]:
    """Path from `obj` to the innermost part that cannot be sent, why, and what it is."""
    path, budget, seen = "", 500, {id(obj)}
    found = True
    try:
        while found:
            found = False
            for step, child in _children(obj):
                if id(child) in seen or isinstance(child, (int, str, bytes, float)):
                    continue
                budget -= 1
                why = _refuses(encode, child) if budget >= 0 else None
                if why is not None:
                    path, obj, error, found = path + step, child, why, True
                    seen.add(id(child))
                    break
        return path, error, type(obj)
    finally:
        why = None
        del error


def _refuses(encode: Callable[[Any], object], obj: Any) -> BaseException | None:
    try:
        encode(obj)
    except MemoryError:
        raise
    except Exception as error:
        if interrupted(error):
            raise
        return error
    return None


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    """The parts of an object with the step that leads to each. Looks, but runs no user code."""
    kind = type(obj)  # not isinstance(): a proxy's `__class__` is user code, and no truth
    if issubclass(kind, dict):
        for key, value in list(dict.items(obj)):
            name = repr(key) if isinstance(key, (str, int, bytes)) else type(key).__name__
            yield f"[{name}]", value
            yield f"<key {name}>", key
    elif issubclass(kind, (list, tuple)):
        parts: Any = list if issubclass(kind, list) else tuple
        for index, value in enumerate(parts.__iter__(obj)):
            yield f"[{index}]", value
    elif issubclass(kind, (set, frozenset)):
        members: Any = set if issubclass(kind, set) else frozenset
        for value in members.copy(obj):
            yield "<member>", value
    elif issubclass(kind, MethodType):
        yield ".__self__", obj.__self__
    elif issubclass(kind, FunctionType):
        yield from _captured(obj)
    elif issubclass(kind, partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    elif issubclass(kind, BaseException):
        yield ".args", obj.args
    if _pickles_attributes(kind):
        yield from _attributes(obj)


def _pickles_attributes(kind: type) -> bool:
    """Whether pickle sends an object's attributes as they are, by no code of its class."""
    if issubclass(kind, BaseException):
        return kind.__reduce__ is BaseException.__reduce__
    return (
        kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is object.__getstate__
        and not issubclass(kind, (type, FunctionType, ModuleType))
        and kind not in copyreg.dispatch_table
    )


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        attributes = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        attributes = {}
    for name, value in dict(attributes).items():
        yield f".{name}", value
    for kind in type(obj).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            try:
                yield f".{name}", object.__getattribute__(obj, name)
            except AttributeError:
                continue


def _captured(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What goes along with a function that is sent by value."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"<closure {name}>", cell.cell_contents
        except ValueError:  # empty
            continue
    for index, value in enumerate(function.__defaults__ or ()):
        yield f"<default {index}>", value
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"<global {name}>", function.__globals__[name]


def _refusal_text(what: str, path: str, error: BaseException, kind: type) -> str:
    where = f"{what} {path}" if path else f"the {what}"
    reason = str(error).strip().splitlines()
    remedy = _REMEDIES.get(kind, _REMEDY)
    if FORK_ONLY in str(error):
        remedy = (
            "Make it with multiprocessing.get_context('spawn') or ('forkserver'), "
            "or ask for start_method='fork'."
        )
    return f"{where} cannot be sent: {reason[0] if reason else type(error).__name__}. {remedy}"


# What multiprocessing says of a lock that only a fork hands down.
FORK_ONLY = "created in a fork context"

_REMEDY = (
    "Send what it can be made from (a file name, not a file), make it in the worker "
    "(initializer=), or hand it down with initargs= or inherit=."
)
_REMEDIES: dict[type, str] = {
    GeneratorType: (
        "Send what it yields (map over it, or list() it), or the function that makes it: "
        "stream() sends what a generator function yields in the worker."
    ),
    CoroutineType: (
        "Send the function and its arguments; an executor that awaits what a function returns "
        'is fm.executor("async").'
    ),
}

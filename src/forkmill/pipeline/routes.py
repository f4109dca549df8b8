"""Whether a function may send items by fm.to, read off its code.

A stage that may is taken to reach every stage, so nothing ends before it does. The answer is only
about *when* stages end: an item that comes by fm.to where none was foreseen opens its stage again.

Threads: any.
"""

from __future__ import annotations

import functools
import inspect
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from .declare import Declared, to

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["may_route"]

_DEPTH = 4  # calls from the stage's function into the user's helpers


def may_route(fn: Any) -> bool:
    """Whether fn, or a helper of it that can be found, mentions fm.to."""
    return _mentions(fn, _DEPTH, set())


def _mentions(fn: Any, depth: int, seen: set[int]) -> bool:
    if fn is to:
        return True
    owner = None
    while True:
        if isinstance(fn, functools.partial):
            if any(_mentions(a, depth, seen) for a in (*fn.args, *fn.keywords.values())):
                return True
            fn = fn.func
        elif isinstance(fn, MethodType):
            owner, fn = fn.__self__, fn.__func__
        elif isinstance(fn, Declared):
            fn = fn.fn
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        else:
            break
    if id(fn) in seen or depth < 0:
        return False
    seen.add(id(fn))
    if isinstance(fn, FunctionType):
        return any(_mentions(value, depth - 1, seen) for value in _reached(fn, owner))
    called = getattr(type(fn), "__call__", None)  # noqa: B004  # not whether, but which
    if isinstance(called, FunctionType) and not isinstance(fn, (type, ModuleType)):
        return _mentions(MethodType(called, fn), depth, seen)
    return False


def _reached(fn: FunctionType, owner: Any) -> Iterator[Any]:
    """What a function's code names: globals, attributes of them and of self, closed-over values."""
    names = set(_names(fn.__code__))
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue
    for name in names:
        value = fn.__globals__.get(name)
        if isinstance(value, ModuleType):
            if value.__name__.partition(".")[0] == "forkmill" and "to" in names:
                yield to
        elif value is to or isinstance(value, (FunctionType, functools.partial, Declared)):
            yield value
        if owner is not None:
            member = inspect.getattr_static(type(owner), name, None)
            if isinstance(member, Declared):
                member = member.fn
            if isinstance(member, FunctionType):
                yield MethodType(member, owner)
    if "to" in names and "forkmill" in names:  # imported inside the function
        yield to


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _names(const)

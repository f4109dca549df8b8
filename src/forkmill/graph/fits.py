"""Whether the type of an output fits the input that it goes to, as far as annotations tell.

    -> int ──▶ x: str   refused          -> bool ──▶ x: int   fits
    -> T   ──▶ anything, no annotation, one that cannot be resolved: nothing is said

Guarantees: what may fit passes. Nothing of the user's runs but what annotations name.

Threads: any.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from typing import TYPE_CHECKING, Any

from ..errors import BuildError
from .nodes import ABSENT

if TYPE_CHECKING:
    from .wiring import Wiring

__all__ = ["check"]

_NUMBERS = {float: (int, float), complex: (int, float, complex)}  # PEP 484's tower
_UNIONS = (typing.Union, types.UnionType)


def check(wiring: Wiring) -> None:
    """Compare the two ends of each edge.

    Raises:
        BuildError: They cannot fit; names both, and their types.
    """
    given: dict[str, tuple[Any, str]] = {}
    for placed, path in zip(wiring.placed, wiring.paths, strict=True):
        needs = dict(zip(placed.reads, _inputs(placed.node), strict=True))
        for name, need in needs.items():
            if name in given:
                gives, maker = given[name]
                if not fits(gives, need):
                    raise BuildError(
                        f"{name!r} is {_text(gives)} where {maker!r} makes it, and {path!r} takes "
                        f"{_text(need)}"
                    )
        for name, gives in zip(placed.writes, _outputs(placed.node), strict=True):
            given[name] = gives, path


def _inputs(node: Any) -> list[Any]:
    """The types of a node's inputs; ABSENT where nobody says."""
    if node.graph is None:
        hints = _hints(node.fn)
        return [hints.get(parameter.name, ABSENT) for parameter in node.parameters]
    inner = _inside(node, ends=False)
    return [ABSENT if name in node.map_over else inner.get(name, ABSENT) for name in node.inputs]


def _outputs(node: Any) -> list[Any]:
    """The types of a node's outputs."""
    if node.graph is not None:
        inner = _inside(node, ends=True)
        found = [inner.get(name, ABSENT) for name in node.outputs]
        return [list if node.map_over else each for each in found]
    gives = _hints(node.fn).get("return", ABSENT)
    if inspect.isclass(node.fn):
        gives = node.fn
    if len(node.outputs) == 1:
        return [gives]
    parts = typing.get_args(gives)
    if typing.get_origin(gives) is tuple and len(parts) == len(node.outputs):
        return list(parts)
    return [ABSENT] * len(node.outputs)


def _inside(node: Any, *, ends: bool) -> dict[str, Any]:
    """Name -> type of a nested graph's outputs, or of its inputs."""
    found: dict[str, Any] = {}
    for placed in node.graph._wiring.placed:
        if ends:
            found.update(zip(placed.writes, _outputs(placed.node), strict=True))
        else:
            for name, need in zip(placed.reads, _inputs(placed.node), strict=True):
                found.setdefault(name, need)
    return found


def _hints(fn: Any) -> dict[str, Any]:
    target = fn.__init__ if inspect.isclass(fn) else fn
    if not inspect.isroutine(target) and callable(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target)
    except Exception:  # a name that is not there at run time, no annotations at all
        return {}


def fits(gives: Any, need: Any) -> bool:
    """Whether a value of one type may be one of the other; in doubt it may."""
    gives, need = _plain(gives), _plain(need)
    if _says_nothing(gives) or _says_nothing(need) or gives == need:
        return True
    if typing.get_origin(gives) in _UNIONS:
        return all(fits(each, need) for each in typing.get_args(gives))
    if typing.get_origin(need) in _UNIONS:
        return any(fits(gives, each) for each in typing.get_args(need))
    if typing.get_origin(gives) is typing.Literal:
        return all(fits(type(value), need) for value in typing.get_args(gives)) or gives == need
    if typing.get_origin(need) is typing.Literal:
        return any(fits(type(value), gives) for value in typing.get_args(need))
    return _class_fits(gives, need)


def _class_fits(gives: Any, need: Any) -> bool:
    one, other = typing.get_origin(gives) or gives, typing.get_origin(need) or need
    if not isinstance(one, type) or not isinstance(other, type):
        return True
    if getattr(other, "_is_protocol", False):
        return True
    try:
        fit = issubclass(one, _NUMBERS.get(other, other))
    except TypeError:  # a class that does not answer
        return True
    if not fit:
        return False
    parts, needed = typing.get_args(gives), typing.get_args(need)
    if one is not other or _is_callable(other) or not parts or not needed:
        return True
    if one is tuple:
        if Ellipsis in parts or Ellipsis in needed:
            return True
        return len(parts) == len(needed) and all(map(fits, parts, needed))
    return len(parts) != len(needed) or all(map(fits, parts, needed))


def _is_callable(kind: Any) -> bool:
    return kind is collections.abc.Callable


def _plain(kind: Any) -> Any:
    """A type without what says nothing about values."""
    if kind is None:
        return type(None)
    while True:
        if typing.get_origin(kind) in (typing.Annotated, typing.Final, typing.ClassVar):
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif hasattr(kind, "__value__") and type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        else:
            break
    origin = typing.get_origin(kind)
    if origin in (collections.abc.Awaitable, collections.abc.Coroutine):
        return _plain(typing.get_args(kind)[-1])  # it is awaited
    return kind


def _says_nothing(kind: Any) -> bool:
    return (
        kind is ABSENT or kind is Any or kind is object
        or isinstance(kind, (typing.TypeVar, str))
    )  # fmt: skip


def _text(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind) if isinstance(kind, type) else str(kind)

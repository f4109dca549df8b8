"""A node's own look at the state: values are decoded at the first access, for this task alone.

    plain  {key: value}        immutable: handed out as they are
    late   {key: (kind, ..)}   encoded: decoded here, at the first access, once a view

Guarantees:
    * Two views never share an object that can be changed. What a node changes in place in its view
      is lost with it.
    * With a dataclass the view is an instance of it; else it is a dict.

Threads: a view belongs to its task.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .._checks import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["State", "view_class", "viewer"]


class State(dict[str, Any]):
    """The state as a dict; what is not decoded yet is not in the dict's own table."""

    __slots__ = ("_late",)

    _late: dict[str, Any]
    _open: Callable[[Any], Any]  # of the class that `viewer` makes, and the next one
    _order: tuple[str, ...]

    def __missing__(self, key: Any) -> Any:
        wire = self._late.pop(key, None)
        if wire is None:
            raise KeyError(_missing(key, [*dict.keys(self), *self._late]))
        value = self._open(wire)
        dict.__setitem__(self, key, value)
        return value

    def _all(self) -> None:
        """Decode what is left, and bring the keys into the schema's order."""
        if not self._late:
            return
        for key in tuple(self._late):
            if dict.__contains__(self, key):  # it was set meanwhile
                del self._late[key]
            else:
                self.__missing__(key)
        whole = {key: dict.__getitem__(self, key) for key in self._order if key in self}
        whole.update({key: value for key, value in dict.items(self) if key not in whole})
        dict.clear(self)
        dict.update(self, whole)

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, key) or key in self._late

    def get(self, key: Any, default: Any = None) -> Any:
        """As a dict's."""
        return self[key] if key in self else default  # noqa: SIM401  # that would call itself

    def __delitem__(self, key: Any) -> None:
        if self._late.pop(key, None) is None or dict.__contains__(self, key):
            dict.__delitem__(self, key)

    def clear(self) -> None:
        """As a dict's."""
        self._late.clear()
        dict.clear(self)

    def __iter__(self) -> Iterator[str]:
        self._all()
        return dict.__iter__(self)

    def __len__(self) -> int:
        self._all()
        return dict.__len__(self)

    def __bool__(self) -> bool:
        return bool(self._late) or dict.__len__(self) > 0

    def copy(self) -> dict[str, Any]:
        """A plain dict of it."""
        self._all()
        return dict(dict.items(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)

    def __copy__(self) -> dict[str, Any]:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> dict[str, Any]:
        import copy

        return copy.deepcopy(self.copy(), memo)

    __hash__ = None


def _decoding(name: str) -> Any:
    """A dict's method, after everything is decoded."""
    method = getattr(dict, name)

    def call(self: State, *args: Any, **kwargs: Any) -> Any:
        self._all()
        for other in args:
            if isinstance(other, State):  # `dict` looks into its table
                other._all()
        return method(self, *args, **kwargs)

    call.__name__ = name
    call.__doc__ = "As a dict's."
    return call


for _name in (
    *("keys", "values", "items", "pop", "popitem", "setdefault", "update"),
    *("__eq__", "__ne__", "__repr__", "__or__", "__ror__", "__ior__", "__reversed__"),
):
    setattr(State, _name, _decoding(_name))


def _missing(key: Any, there: list[str]) -> str:
    return f"{key!r} is not in the state{nearest(key, there)}"


# ---------------------------------------------------------------------------- dataclasses


class _Late:
    """A field that is decoded at its first look; then the instance's own table has it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        if obj is None:
            raise AttributeError(self.name)
        wire = obj.__dict__["_forkmill_late"].pop(self.name, None)
        if wire is None:
            raise AttributeError(_missing(self.name, [*obj.__dict__["_forkmill_late"]]))
        value = obj.__dict__["_forkmill_open"](wire)
        obj.__dict__[self.name] = value
        return value


_classes: dict[type, type] = {}


def view_class(cls: type) -> type:
    """The class of a dataclass's views: it looks like the dataclass, also to `isinstance`."""
    found = _classes.get(cls)
    if found is None:
        names = [field.name for field in dataclasses.fields(cls)]

        def get(self: Any, key: str) -> Any:
            if key in names:
                try:
                    return getattr(self, key)
                except AttributeError:
                    pass
            raise KeyError(_missing(key, names))

        def whole(self: Any, protocol: Any) -> Any:
            values = {name: getattr(self, name) for name in names if _has(self, name)}
            return _rebuilt, (cls, values)

        space: dict[str, Any] = {name: _Late(name) for name in names}
        space.update(
            __class__=property(lambda self: cls),
            __getitem__=get,
            __reduce_ex__=whole,
            __repr__=lambda self: _shown(self, cls, names),
            __doc__=cls.__doc__,
            __module__=cls.__module__,
            __qualname__=cls.__qualname__,
            __hash__=cls.__hash__,
        )
        found = _classes.setdefault(cls, type(cls.__name__, (cls,), space))
    return found


def _has(view: Any, name: str) -> bool:
    try:
        getattr(view, name)
    except AttributeError:
        return False
    return True


def _shown(view: Any, cls: type, names: list[str]) -> str:
    there = [f"{name}={getattr(view, name)!r}" for name in names if _has(view, name)]
    return f"{cls.__qualname__}({', '.join(there)})"


def _rebuilt(cls: type, values: dict[str, Any]) -> Any:
    made: Any = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def viewer(
    cls: type | None, order: tuple[str, ...], open_wire: Callable[[Any], Any]
) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    """What makes views, of (plain, late): values that are handed out as they are, and wires that
    are not opened yet, which the view takes from.

    Args:
        cls: The schema's dataclass, or None.
        order: The schema's keys.
        open_wire: Opens a wire.
    """
    if cls is not None:
        made_of = view_class(cls)

        def make_object(plain: dict[str, Any], late: dict[str, Any]) -> Any:
            made: Any = object.__new__(made_of)
            made.__dict__.update(plain, _forkmill_late=late, _forkmill_open=open_wire)
            return made

        return make_object
    space = {"__slots__": (), "_open": staticmethod(open_wire), "_order": order}
    kind = type("State", (State,), space)

    def make(plain: dict[str, Any], late: dict[str, Any]) -> Any:
        view = kind(plain)
        view._late = late
        return view

    return make

"""What a state is made of: its keys, how each is folded, and where it starts.

    TypedDict   {name: Annotated[type, reducer]}  ─┐
    dataclass   the same, and defaults            ─┼──▶ Schema: {name: Key(reducer, start)}
    dict        {name: reducer or None}           ─┘

Guarantees: what is no schema is a BuildError that says what would be one, before anything runs.

Threads: any; a Schema does not change.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import typing
from typing import Annotated, Any, Final, get_args, get_origin

from .._checks import nearest
from ..errors import BuildError, name_of
from .words import append

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["UNSET", "Key", "Schema"]


class _Unset:
    def __repr__(self) -> str:
        return "<unset>"


UNSET: Final = _Unset()
_HARMLESS = (operator.add, operator.or_, operator.and_, max, min)
_EMPTY = {list: list, dict: dict, set: set, int: int, str: str, float: float, tuple: tuple}


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One key of a state.

    Attributes:
        name: Its name.
        reducer: What folds updates into it: (old, new) -> value; None: the last value is kept.
        make: Gives the value that it starts with; None: it starts unset.
        appends: Whether a checkpoint stores what was added.
        harmless: Whether the reducer is known to leave its arguments alone.
    """

    name: str
    reducer: Callable[[Any, Any], Any] | None = None
    make: Callable[[], Any] | None = None
    appends: bool = dataclasses.field(init=False)
    harmless: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "appends", self.reducer is append)
        known = any(self.reducer is harmless for harmless in _HARMLESS)
        object.__setattr__(self, "harmless", known)

    def start(self) -> Any:
        """The value that it starts with, or UNSET."""
        return UNSET if self.make is None else self.make()


class Schema:
    """The keys of a state.

    Args:
        source: A TypedDict, a dataclass, or {name: reducer or None}.

    Attributes:
        keys: By name, in the order of their definition.
        cls: The dataclass, if it is one.
        name: What it is called.

    Raises:
        BuildError: It is none of these, or a reducer is no function of two arguments.
    """

    def __init__(self, source: Any) -> None:
        self.keys: dict[str, Key]
        self.cls: type | None = None
        self.name = getattr(source, "__name__", "state")
        if isinstance(source, Schema):
            self.keys, self.cls, self.name = source.keys, source.cls, source.name
        elif isinstance(source, dict):
            self.keys = {name: _key(name, reducer) for name, reducer in source.items()}
        elif isinstance(source, type) and dataclasses.is_dataclass(source):
            self.cls = source
            self.keys = dict(_of_dataclass(source))
        elif isinstance(source, type) and typing.is_typeddict(source):
            hints = _hints(source)
            self.keys = {name: _annotated(name, hint) for name, hint in hints.items()}
        else:
            raise BuildError(
                f"a state graph's schema is a TypedDict, a dataclass or a dict {{key: reducer or "
                f"None}}, not {source!r}"
            )
        if not self.keys:
            raise BuildError(f"the schema {self.name} has no keys, so no node could change it")

    def unknown(self, name: Any) -> str:
        """What is said about a key that there is not."""
        return f"there is no key {name!r} in {self.name}{nearest(name, self.keys)}"

    def known(self, names: Any, who: str) -> tuple[str, ...]:
        """Names of keys, checked.

        Raises:
            BuildError: One is not there.
        """
        if isinstance(names, str):
            names = (names,)
        found: tuple[str, ...] = tuple(names)
        for name in found:
            if name not in self.keys:
                raise BuildError(f"{who}: {self.unknown(name)}")
        return found

    def __reduce__(self) -> Any:
        raise TypeError("a schema stays in the process of its graph")


def _of_dataclass(cls: type) -> Iterable[tuple[str, Key]]:
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        key = _annotated(field.name, hints.get(field.name, Any))
        make = key.make
        if field.default_factory is not dataclasses.MISSING:
            make = field.default_factory
        elif field.default is not dataclasses.MISSING:
            default = field.default
            make = lambda default=default: default  # noqa: E731
        yield field.name, dataclasses.replace(key, make=make)


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise BuildError(
            f"the annotations of {cls.__qualname__} cannot be read: {type(error).__name__}: {error}"
        ) from error


def _annotated(name: str, hint: Any) -> Key:
    while get_origin(hint) in (typing.Required, typing.NotRequired):
        hint = get_args(hint)[0]
    if get_origin(hint) is not Annotated:
        return _key(name, None)
    kind, *marks = get_args(hint)
    reducers = [mark for mark in marks if callable(mark) and not isinstance(mark, type)]
    if len(reducers) > 1:
        names = ", ".join(name_of(reducer) for reducer in reducers)
        raise BuildError(f"key {name!r} has more than one reducer: {names}")
    if not reducers:
        return _key(name, None)
    while get_origin(kind) in (typing.Required, typing.NotRequired, Annotated):
        kind = get_args(kind)[0]
    return _key(name, reducers[0], _EMPTY.get(get_origin(kind) or kind))


def _key(name: Any, reducer: Any, make: Any = None) -> Key:
    if not isinstance(name, str):
        raise BuildError(f"a key of a state must be a str, not {name!r}")
    if reducer is None:
        return Key(name)
    if not callable(reducer):
        raise BuildError(
            f"key {name!r}: a reducer is a function (old, new) -> value, or None, not {reducer!r}"
        )
    if make is None and reducer is append:
        make = list
    try:
        inspect.signature(reducer).bind(0, 0)
    except TypeError as error:
        raise BuildError(
            f"key {name!r}: the reducer {name_of(reducer)} cannot be called with (old, new): "
            f"{error}"
        ) from None
    except ValueError:  # a builtin that does not say: max
        pass
    return Key(name, reducer, make)

"""The pickler that sends by value what the other side cannot find by its name.

cloudpickle's, with what it lacks:

    * Functions of `__main__` live in the other side's `__main__`, with its names, and bring along
      the globals that they look at (see _program.py).
    * Code keeps its file and lines; source that is in no file (a notebook's cell) goes along.
    * Classes keep `__slots__`, enums their aliases; a class that the other side has already is
      changed only where it was changed here.
    * What pickles by a name in `__main__` without being a function or a class (lru_cache, NewType,
      a sentinel) goes by value too, and is one object there for all tasks.

Imported when it is first needed: cloudpickle takes 20 ms.

Threads: any; a pickler is used once, by one.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import functools
import linecache
import os
import sys
import types
import typing
import weakref
from collections import ChainMap
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

from . import _program
from ._program import GONE
from ._reducers import TABLE, has_arrow, reduce_arrow

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator

    from ._codec import Codec

_HEAPTYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: C's own cannot be rebuilt


class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles one object for a codec's other side.

    Args:
        codec: It knows what the other side has.
        file, callback: As pickle's.
        task: For a worker, with what it shall see of the program; else a result.
    """

    dispatch_table: Any = ChainMap(TABLE, cloudpickle.Pickler.dispatch_table)  # noqa: RUF012

    def __init__(
        self, codec: Codec, file: io.BytesIO, callback: Any, persistent: Any, *, task: bool
    ) -> None:
        if codec.reducers:  # before the pickler looks for its table
            self.dispatch_table = ChainMap(type(self).dispatch_table, codec.reducers)
        super().__init__(file, 5, callback)
        self.codec = codec
        self.program = codec.program if task else None
        self._persistent = persistent
        self._arrow = has_arrow()
        self._wanted: dict[tuple[str, str], None] = {}  # globals to go along, (module, name)
        self._sent: set[tuple[str, str]] = set()
        self._open: set[type] = set()  # classes by value that are not complete yet
        self._alone: Any = None  # what is pickled right now, for itself
        self._classes: dict[type, None] = {}  # that the other side has, and may have otherwise
        self._of_main: bool | None = None  # whether code of `__main__` goes by value; False: told
        self._sources: dict[str, Any] = {}

    def dump_with_program(self, obj: Any) -> None:
        try:
            self._alone = obj
            self.dump(_Along(obj))
        finally:
            # What was pickled leads back here, and would stay until the next collection of cycles.
            self.clear_memo()

    # ------------------------------------------------------------------ what goes how

    def reducer_override(self, obj: Any) -> Any:
        kind: Any = type(obj)
        if kind is FunctionType:
            return self._function(obj)
        if issubclass(kind, type):
            return self._class(obj)
        if kind is CodeType:
            return self._code(obj)
        if kind is _Along:
            return _arrive, (obj.value, _Rest())
        if kind is _Rest:
            return list, (), None, _entries(self)
        if kind is _Entry:
            return _enter, obj.parts
        if kind is _Close:
            self._open.discard(obj.kind)
            return _nothing, ()
        if self._arrow:
            reduced = reduce_arrow(obj)
            if reduced is not NotImplemented:
                return reduced
        if kind is object:
            return self._bare_object(obj)
        if kind is typing.TypeVar:
            return self._by_name(obj)
        plain: Any = object
        if (
            kind.__reduce__ is not plain.__reduce__
            and kind.__reduce_ex__ is plain.__reduce_ex__
            and kind not in self.dispatch_table
        ):
            return self._by_name(obj)
        return NotImplemented

    def want(self, module: str, name: str) -> None:
        if (module, name) not in self._sent:
            self._wanted[module, name] = None

    def _function(self, function: FunctionType) -> Any:
        module = function.__module__
        if not isinstance(module, str):
            return super().reducer_override(function)
        if function.__code__ is _program.DISPATCHES:
            return self._dispatching(module, function)
        if module == "__main__" or self.codec.is_late(module):
            if self.codec.inherits(function) and self._is_as_it_was(function):
                self._want_all(function)
                return NotImplemented
            names = _program.namespace(module)
            if function.__globals__ is names:
                return self._function_of(module, names, function)
        elif not self.codec.reachable(module):
            return self._dynamic_function_reduce(function)
        return super().reducer_override(function)

    def _dispatching(self, module: str, function: Any) -> Any:
        """What functools.singledispatch() has made: its cache holds weak references."""
        elsewhere = module != "__main__" and not self.codec.is_late(module)
        if elsewhere and cloudpickle._should_pickle_by_reference(function):
            return NotImplemented
        if not elsewhere and self.codec.inherits(function) and self._is_as_it_was(function):
            self._want_all(function)
            return NotImplemented
        registry = dict(function.registry)
        made_of = _new_dispatching, (registry.pop(object), registry)
        return self._global(module, function.__qualname__, function, made_of)

    def _is_as_it_was(self, function: FunctionType) -> bool:
        """Whether what the other side has of that name is the same in all its parts."""
        name = function.__qualname__
        if self.program is None or function.__module__ != "__main__" or "." in name:
            return True
        return self.program.version(name, function) == 0

    def _function_of(self, module: str, names: dict[str, Any], function: FunctionType) -> Any:
        """A function that shall live in a module that the other side has, too."""
        if module == "__main__" and self._of_main is None:
            self._of_main = True
        for name in _program.names_of(function.__code__):
            self.want(module, name)
        cells = None if function.__closure__ is None else len(function.__closure__)
        state, slots = cloudpickle._function_getstate(function)
        slots["__globals__"] = {}
        new = (module, function.__code__, cells)
        # What it names goes before whatever may call it: an object's __setstate__ as it is rebuilt.
        # Nobody does before the next entry if it is one itself, and chains of them may be long.
        before = _Rest() if self._wanted and function is not self._alone else None
        return _new_function, new, (before, state, slots), None, None, _set_function

    def _class(self, kind: type) -> Any:
        module = getattr(kind, "__module__", None)
        if not isinstance(module, str):
            return super().reducer_override(kind)
        if module == "__main__" or self.codec.is_late(module):
            if self.codec.inherits(kind):
                self._want_all(kind)
                return self._inherited_class(module, kind)
            self._want_itself(module, kind.__qualname__, kind)
        elif self.codec.reachable(module) and (
            (module == "builtins" and not _program.own_class(kind))
            or cloudpickle._should_pickle_by_reference(kind)
        ):
            return super().reducer_override(kind)
        if not kind.__flags__ & _HEAPTYPE:
            if cloudpickle._should_pickle_by_reference(kind):
                return NotImplemented
            raise TypeError(f"cannot pickle the class {module}.{kind.__qualname__}")
        return self._class_by_value(kind)

    def _want_itself(self, module: str, name: str, obj: Any) -> None:
        """What has a name there shall have it on the other side."""
        if _program.namespace(module).get(name, GONE) is obj:
            self.want(module, name)

    def _want_all(self, obj: Any) -> None:
        """The globals that what the other side has already may look at."""
        if self.program is not None:
            reach = _program.Reach(obj)
            for name in reach.names:
                self.want("__main__", name)
            self._classes.update(dict.fromkeys(reach.classes))

    # ------------------------------------------------------------------ classes

    def _class_by_value(self, kind: type) -> Any:
        tracker = cloudpickle._get_or_create_tracker_id(kind)
        if isinstance(kind, enum.EnumMeta):
            members = {name: member._value_ for name, member in _members(kind)}
            new: tuple[Any, ...] = (
                kind.__bases__, kind.__name__, kind.__qualname__, members,
                kind.__module__, tracker, None,
            )  # fmt: skip
            make = _new_enum
            attributes = _enum_attributes(kind)
        else:
            attributes = _class_attributes(kind)
            new = (
                type(kind), kind.__name__, cloudpickle._get_bases(kind),
                _creation(kind), tracker, None,
            )  # fmt: skip
            make = _new_class
        registry = None
        if isinstance(kind, abc.ABCMeta):
            found = [reference() for reference in abc._get_dump(kind)[0]]  # type: ignore[attr-defined]
            registry = [one for one in found if one is not None]
        self._open.add(kind)
        entries = self._versioned(kind, attributes)
        state = entries, registry, _member_attributes(kind), _Close(kind)
        return make, new, state, None, None, _set_class

    def _inherited_class(self, module: str, kind: type) -> Any:
        """A class that the other side has; what has changed goes along."""
        if self.program is None or isinstance(kind, enum.EnumMeta):
            return NotImplemented
        every = self._versioned(kind, _program.class_attributes(kind))
        changed = [entry for entry in every if entry[1]]
        changed += [(name, 1, GONE) for name in self.program.lost(kind)]
        if not changed:
            return NotImplemented
        return (
            _find_class,
            (module, kind.__qualname__),
            (changed, None, {}, None),
            None,
            None,
            _set_class,
        )

    def _versioned(self, kind: type, attributes: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        if self.program is None:
            return [(name, None, value) for name, value in attributes.items()]
        version = self.program.attribute
        return [(name, version(kind, name, value), value) for name, value in attributes.items()]

    # ------------------------------------------------------------------ by name

    def _bare_object(self, obj: Any) -> Any:
        """object() as a mark: where it is a global, it is that global there."""
        for name, value in _program.main().items():
            if value is obj:
                return self._global("__main__", name, obj, (object, ()))
        return NotImplemented

    def _by_name(self, obj: Any) -> Any:
        reduced = obj.__reduce_ex__(5)
        if type(reduced) is not str:
            return reduced
        module = cloudpickle._whichmodule(obj, reduced) or "__main__"
        late = self.codec.is_late(module)
        if (not late and self.codec.reachable(module)) or self.codec.has(module, reduced, obj):
            if module == "__main__":
                self._want_all(obj)
            return reduced
        return self._global(module, reduced, obj, _made_of(obj, reduced))

    def _global(self, module: str, name: str, obj: Any, made_of: tuple[Any, ...]) -> Any:
        """An object that is one and the same for all that name it."""
        version = None
        if module == "__main__" and _program.main().get(name, GONE) is obj:
            self.want(module, name)
            if self.program is not None:
                version = self.program.version(name, obj)
        return _the_global, (module, name, version, *made_of)

    # ------------------------------------------------------------------ code

    def _code(self, code: CodeType) -> Any:
        _, arguments = cloudpickle._code_reduce(code)
        arguments = tuple(
            code.co_filename if type(one) is str and one == "<dynamic-code>" else one
            for one in arguments
        )
        return _new_code, (arguments, self._source(code))

    def _source(self, code: CodeType) -> tuple[str, tuple[str, ...]] | None:
        """The lines of a file that is none, such as a notebook's cell."""
        file = code.co_filename
        if file not in self._sources:
            lines: Any = ()
            if not os.path.exists(file):
                lines = linecache.getlines(file)
                of_code = getattr(linecache, "_getlines_from_code", None)
                if not lines and of_code is not None:
                    lines = of_code(code)
            self._sources[file] = (file, tuple(lines)) if lines else None
        found: tuple[str, tuple[str, ...]] | None = self._sources[file]
        return found


class ByValueReferring(ByValue):
    """As ByValue; some objects go as numbers."""

    def persistent_id(self, obj: Any) -> int | None:
        number: int | None = self._persistent(obj)
        return number


class _Along:
    """An object, and after it what it needs and has not been sent before."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Rest:
    """The globals that what was pickled before has asked for, and what these ask for."""

    __slots__ = ()


class _Entry:
    """One global: (module, name, version, value). It is there as soon as it is read."""

    __slots__ = ("parts",)

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


class _Close:
    """The end of a class."""

    __slots__ = ("kind",)

    def __init__(self, kind: type) -> None:
        self.kind = kind


def _entries(pickler: ByValue) -> Iterator[_Entry | None]:
    """The globals that have been asked for, one by one: to pickle one may ask for more of them.

    pickle takes two items of such an iterator before it writes the first.
    """
    yield from (None, None)
    if pickler._of_main and pickler.program is not None and not pickler.codec.forks:
        pickler._of_main = False  # once
        for name in _program.ORIGIN:
            yield _Entry("__main__", name, -1, _program.origin(name))
    while (wanted := _next_wanted(pickler)) is not None:
        module, name = wanted
        pickler._sent.add(wanted)
        value = _program.namespace(module).get(name, GONE)
        version = _version_of(pickler, module, name, value)
        if version == 0 and pickler.codec.had(module, name):
            pickler._want_all(value)  # inherited; but what it looks at may have changed
        elif value is not GONE or version:  # what is no more is told, not what never was
            pickler._alone = value
            yield _Entry(module, name, version, value)
    while pickler._classes and not pickler._open:
        yield _Entry("", "", None, pickler._classes.popitem()[0])


def _next_wanted(pickler: ByValue) -> tuple[str, str] | None:
    """The next global that can go now; within a class none that may be built with that class.

    The last one first: what a helper names goes before an object that was asked for before it.
    """
    for wanted in reversed(pickler._wanted):
        module, name = wanted
        value = _program.namespace(module).get(name, GONE)
        if not pickler._open or _program.builds_nothing(value):
            del pickler._wanted[wanted]
            return wanted
    return None


def _version_of(pickler: ByValue, module: str, name: str, value: Any) -> int | None:
    if value is GONE and module != "__main__":
        return 0
    if module != "__main__":
        # It may have been there already; from then on it is each process's own.
        return 0 if pickler.codec.had(module, name) else None
    return None if pickler.program is None else pickler.program.version(name, value)


# ------------------------------------------------------------------------- on arrival


def _enter(module: str, name: str, version: int | None, value: Any) -> None:
    _program.arrived(module, name, version, value)


def _nothing() -> None:
    return None


def _arrive(value: Any, _entries: Any) -> Any:
    return value


def _set_function(function: FunctionType, parts: tuple[Any, Any, Any]) -> None:
    _, state, slots = parts
    cloudpickle._function_setstate(function, (state, slots))


def _new_function(module: str, code: CodeType, cells: int | None) -> FunctionType:
    """A function in this process's module; its state comes after, so it may refer to itself."""
    closure = None if cells is None else tuple(types.CellType() for _ in range(cells))
    return FunctionType(code, _program.namespace(module), None, None, closure)


def _new_code(arguments: tuple[Any, ...], source: tuple[str, tuple[str, ...]] | None) -> CodeType:
    if source is not None and source[0] not in linecache.cache:
        file, lines = source
        # Without a time, so that nobody looks whether the file has changed.
        linecache.cache[file] = (sum(map(len, lines)), None, list(lines), file)
    return CodeType(*arguments)


def _the_global(
    module: str, name: str, version: int | None, make: Any, arguments: tuple[Any, ...]
) -> Any:
    if version is not None:
        known = _program.value_at(name, version)
        if known is not GONE:
            return known
    if version is None and not _program.is_receiving():
        here = _program.namespace(module).get(name, GONE)
        if here is not GONE:
            return here  # it comes home
    return make(*arguments)


# Classes that were made here and have nothing yet; the versions of attributes that came.
_fresh: weakref.WeakSet[type] = weakref.WeakSet()
_came: weakref.WeakKeyDictionary[type, dict[str, int]] = weakref.WeakKeyDictionary()


def _creation(kind: type) -> dict[str, Any]:
    """What a class needs when it is made."""
    own = vars(kind)
    given: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    for name in ("__dict__", "__class__"):  # a property: to set it later would mean another thing
        if isinstance(own.get(name), property):
            given[name] = own[name]
    if "__firstlineno__" in own:
        given["__firstlineno__"] = own["__firstlineno__"]
    if "__slots__" in own:
        slots = own["__slots__"]
        if not isinstance(slots, (str, tuple, list, dict)):  # an iterator, used up
            slots = [n for n, v in own.items() if type(v) is types.MemberDescriptorType]
            slots += [name for name in ("__dict__", "__weakref__") if name in own]
        given["__slots__"] = slots
    return given


def _class_attributes(kind: type) -> dict[str, Any]:
    attributes = _program.class_attributes(kind)
    for name in ("__module__", "__qualname__", "__class__", "__annotate_func__", "__firstlineno__",
                 "_abc_cache", "_abc_negative_cache", "_abc_registry",
                 "_abc_negative_cache_version"):  # fmt: skip
        attributes.pop(name, None)
    return attributes


def _enum_attributes(kind: Any) -> dict[str, Any]:
    attributes = _class_attributes(kind)
    for name in ("_generate_next_value_", "_member_names_", "_member_map_", "_member_type_",
                 "_value2member_map_", "_unhashable_values_", "_unhashable_values_map_",
                 "_hashable_values_", *kind.__members__):  # fmt: skip
        attributes.pop(name, None)
    return attributes


def _members(kind: Any) -> list[tuple[str, Any]]:
    """Those of an enum, aliases too."""
    return list(kind.__members__.items())


def _member_attributes(kind: Any) -> dict[str, dict[str, Any]]:
    """What the members of an enum have besides their values."""
    if not isinstance(kind, enum.EnumMeta):
        return {}
    made = ("_value_", "_name_", "__objclass__", "_sort_order_")
    found = {
        name: {key: value for key, value in vars(member).items() if key not in made}
        for name, member in _members(kind)
    }
    return {name: own for name, own in found.items() if own}


def _new_class(*arguments: Any) -> Any:
    return _made(cloudpickle._make_skeleton_class, arguments)


def _new_enum(*arguments: Any) -> Any:
    return _made(cloudpickle._make_skeleton_enum, arguments)


def _made(make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The class that went out from here or has come before, or a new one."""
    known = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(arguments[-2])
    if known is not None:
        return known
    kind = make(*arguments)
    _fresh.add(kind)
    return kind


def _find_class(module: str, name: str) -> Any:
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _set_class(kind: Any, state: tuple[list[tuple[str, int | None, Any]], Any, Any, None]) -> None:
    attributes, registry, members, _ = state
    fresh = kind in _fresh
    _fresh.discard(kind)
    if not fresh and not _program.is_receiving():
        return  # a result's: it is as it is here
    came = _came.setdefault(kind, {})
    for name, version, value in attributes:
        if fresh or (version is not None and version > came.get(name, 0)):
            if value is GONE:
                if name in vars(kind):
                    type.__delattr__(kind, name)
            else:
                type.__setattr__(kind, name, value)
            came[name] = version or 0
    for subclass in registry or ():
        kind.register(subclass)
    if fresh:
        for name, own in members.items():
            vars(kind.__members__[name]).update(own)


# ------------------------------------------------------------------- by a name, in parts


def _made_of(obj: Any, name: str) -> tuple[Any, ...]:
    """(make, arguments) for what pickles itself by a name that the other side has not."""
    kind = type(obj)
    if kind is functools._lru_cache_wrapper:
        state = {key: value for key, value in vars(obj).items() if key != "__wrapped__"}
        return _new_cache, (obj.__wrapped__, obj.cache_parameters(), state)
    if kind is typing.TypeVar:
        return _of_module, (
            obj.__module__, cloudpickle._make_typevar, cloudpickle._decompose_typevar(obj),
        )  # fmt: skip
    if kind is typing.NewType:
        return _new_type, (obj.__name__, obj.__supertype__, obj.__module__)
    if kind is typing.ParamSpec:
        return _of_module, (obj.__module__, typing.ParamSpec, (obj.__name__,))
    if kind is typing.TypeVarTuple:
        return _of_module, (obj.__module__, typing.TypeVarTuple, (obj.__name__,))
    alias = getattr(typing, "TypeAliasType", None)
    if alias is not None and kind is alias:
        return _new_alias, (obj.__name__, obj.__value__, obj.__type_params__)
    try:
        object.__new__(kind)
    except TypeError as why:
        raise TypeError(
            f"cannot pickle {kind.__qualname__!r} object: it goes by its name, {name!r} in "
            f"{getattr(obj, '__module__', '__main__')}, which a worker does not have"
        ) from why
    return _again, (kind, _attributes(obj))


def _attributes(obj: Any) -> dict[str, Any]:
    found = dict(getattr(obj, "__dict__", {}))
    for kind in type(obj).__mro__:
        for name, value in vars(kind).items():
            if type(value) is types.MemberDescriptorType and kind.__flags__ & _HEAPTYPE:
                try:
                    found[name] = value.__get__(obj)
                except AttributeError:  # not set
                    continue
    return found


def _new_dispatching(default: Any, registry: dict[type, Any]) -> Any:
    function = functools.singledispatch(default)
    for kind, implementation in registry.items():
        function.register(kind, implementation)
    return function


def _new_cache(function: Any, parameters: dict[str, Any], state: dict[str, Any]) -> Any:
    cached = functools.lru_cache(**parameters)(function)
    vars(cached).update(state)
    return cached


def _of_module(module: str, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """typing's variables take the module of who makes them for their own."""
    made = make(*arguments)
    made.__module__ = module
    return made


def _new_type(name: str, supertype: Any, module: str) -> Any:
    made: Any = typing.NewType(name, supertype)  # type: ignore[misc]
    made.__module__ = module
    return made


def _new_alias(name: str, value: Any, parameters: Any) -> Any:
    return typing.TypeAliasType(name, value, type_params=parameters)  # type: ignore[attr-defined]


def _again(kind: type, attributes: dict[str, Any]) -> Any:
    made: Any = object.__new__(kind)
    for name, value in attributes.items():
        object.__setattr__(made, name, value)
    return made


def _reduce_cached_property(cached: Any) -> tuple[Any, ...]:
    state = {name: value for name, value in vars(cached).items() if name != "lock"}
    return type(cached).__new__, (type(cached),), state, None, None, _set_cached_property


def _set_cached_property(cached: Any, state: dict[str, Any]) -> None:
    functools.cached_property.__init__(cached, state["func"])  # with a lock of its own
    vars(cached).update(state)


if sys.version_info < (3, 12):  # it has a lock
    TABLE[functools.cached_property] = _reduce_cached_property

# Marks of the standard library that pickle would copy.
for _mark in ("MISSING", "KW_ONLY"):
    TABLE[type(getattr(dataclasses, _mark))] = functools.partial(
        lambda name, _obj: (getattr, (dataclasses, name)), _mark
    )

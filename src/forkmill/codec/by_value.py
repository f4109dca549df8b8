"""The pickler that sends by value what the other side cannot find by its name.

cloudpickle's, with what it lacks:

    * Functions of `__main__` live in the other side's `__main__`, with its names, and bring along
      the globals that they look at (see program.py).
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
import io
import linecache
import os
import sys
import types
import typing
from collections import ChainMap
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Protocol

from cloudpickle import cloudpickle

from .. import _process
from .._late import WeakKeyDictionary, WeakSet
from .._process import (
    GONE,
    has_arrow,
    interrupted,
    main,
    namespace,
)
from . import reach, view
from .reducers import TABLE, reduce_arrow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .program import Program

_CHOICE = 20  # objects that are looked through to find the next one
_DEEP = 20  # levels of entries within entries: deeper ones come later, and recursion ends
_HEAPTYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: C's own cannot be rebuilt


class Side(Protocol):
    """What a codec knows of the other side; see the methods of `Codec`."""

    forks: bool
    reducers: dict[Any, Any]

    @property
    def program(self) -> Program: ...

    def is_late(self, module: str) -> bool: ...
    def is_home(self, module: str) -> bool: ...
    def had(self, module: str, name: str) -> bool: ...
    def has(self, module: str, name: str, obj: Any) -> bool: ...
    def inherits(self, obj: Any) -> bool: ...
    def reachable(self, module: str) -> bool: ...


class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles one object for a codec's other side.

    Args:
        codec: It knows what the other side has.
        file, callback: As pickle's.
        task: For a worker, with what it shall see of the program; else a result.
    """

    dispatch_table: Any = ChainMap(TABLE, cloudpickle.Pickler.dispatch_table)  # noqa: RUF012

    def __init__(
        self, codec: Side, file: io.BytesIO, callback: Any, persistent: Any, *, task: bool
    ) -> None:
        if codec.reducers:  # before the pickler looks for its table
            self.dispatch_table = ChainMap(type(self).dispatch_table, codec.reducers)
        super().__init__(file, 5, callback)
        self.codec = codec
        self.program = codec.program if task else None
        self._persistent = persistent
        self._arrow = has_arrow()
        self._wanted: dict[tuple[str, str], None] = {}  # globals to go along, (module, name)
        self._texts: dict[str, bool] = {}  # of `__main__`, that may be looked up by a text
        self._hidden: dict[str, int] = {}  # those of them that do not go along
        self._tries = False  # whether it is only to see if an object can be pickled
        self._sent: set[tuple[str, str]] = set()
        self._open: set[type] = set()  # classes by value that are not complete yet
        self._begun: set[type] = set()  # classes that have been looked at
        self._made: set[type] = set()  # those by value that are there, if not complete
        self._deep = 0  # entries within entries
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
        if kind is _Itself:
            return self._itself(obj.value)
        if kind is _Rest:
            return list, (), None, _entries(self)
        if kind is _Entry:
            return _enter, obj.parts
        if kind is _Made:
            self._made.add(obj.kind)
            return _nothing, ()
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

    def want_by_text(self, texts: dict[str, bool]) -> None:
        for name, mentioned in texts.items():
            self._texts[name] = mentioned or self._texts.get(name, False)

    def can_go(self, value: Any) -> bool:
        """Whether something can be pickled."""
        tried = type(self)(self.codec, io.BytesIO(), lambda _: None, self._persistent, task=True)
        tried._tries = True
        try:
            tried.dump_with_program(value)
        except MemoryError:
            raise
        except Exception as error:
            if interrupted(error):
                raise
            return False
        return True

    def _function(self, function: FunctionType) -> Any:
        module = function.__module__
        if not isinstance(module, str):
            return super().reducer_override(function)
        if function.__code__ is reach.DISPATCHES:
            return self._dispatching(module, function)
        if module == "__main__" or self.codec.is_late(module):
            if self.codec.inherits(function) and self._is_as_it_was(function):
                self._want_all(function)
                return self._with_rest(function) if self._wanted else NotImplemented
            names = namespace(module)
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
        module, name = function.__module__, function.__qualname__
        if self.program is None or not self.codec.is_home(module):
            return True
        top, *rest = name.split(".")
        if not rest:
            return self.program.version(view.place(module, name), function) == 0
        owner: Any = namespace(module).get(top)
        for part in rest[:-1]:
            owner = getattr(owner, part, None)
        method = vars(owner).get(rest[-1]) if reach.is_class(owner) else None
        return method is None or self.program.attribute(owner, rest[-1], method) == 0

    def _function_of(self, module: str, names: dict[str, Any], function: FunctionType) -> Any:
        """A function that shall live in a module that the other side has, too."""
        if module == "__main__" and self._of_main is None:
            self._of_main = True
        for name in reach.names_of(function.__code__):
            self.want(module, name)
        if module == "__main__" and self.program is not None:
            self.want_by_text(self.program.by_text(function.__code__))
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
                return self._begin(kind) if self._wanted else self._inherited_class(module, kind)
            self._want_itself(module, kind.__qualname__, kind)
        elif self.codec.reachable(module) and (
            (module == "builtins" and not reach.own_class(kind))
            or cloudpickle._should_pickle_by_reference(kind)
        ):
            return super().reducer_override(kind)
        if not kind.__flags__ & _HEAPTYPE:
            if cloudpickle._should_pickle_by_reference(kind):
                return NotImplemented
            raise TypeError(f"cannot pickle the class {module}.{kind.__qualname__}")
        return self._begin(kind)

    def _begin(self, kind: type) -> Any:
        """A class, and before anything is made of it the globals that it looks at."""
        if kind in self._begun:  # and not there yet: it is a part of itself, or of these globals
            if self.codec.inherits(kind):
                return _find_class, (kind.__module__, kind.__qualname__)
            if kind in self._made:
                return _find_made, (cloudpickle._get_or_create_tracker_id(kind),)
            return self._class_by_value(kind)  # a base of it leads to it: one of both is made first
        self._begun.add(kind)
        return self._itself(kind) if self._open else self._with_rest(kind)

    def _with_rest(self, obj: Any) -> Any:
        """Something, and after it what it looks at: before its user, which may be a __setstate__.

        An entry's own user comes after the next entries anyway, and chains of them may be long.
        """
        if self.program is None or obj is self._alone or self._deep >= _DEEP:
            return self._itself(obj)
        return _arrive, (_Itself(obj), _Rest())

    def _itself(self, obj: Any) -> Any:
        if type(obj) is FunctionType:
            return _find_class, (obj.__module__, obj.__qualname__)
        if self.codec.inherits(obj):
            reduced = self._inherited_class(obj.__module__, obj)
            if reduced is NotImplemented:
                return _find_class, (obj.__module__, obj.__qualname__)
            return reduced
        return self._class_by_value(obj)

    def _want_itself(self, module: str, name: str, obj: Any) -> None:
        """What has a name there shall have it on the other side."""
        if namespace(module).get(name, GONE) is obj:
            self.want(module, name)

    def _want_all(self, obj: Any) -> None:
        """The globals that what the other side has already may look at."""
        if self.program is not None:
            sight = reach.Reach(obj, self.program)
            for at in sight.names:
                self.want(*view.parts_of(at))
            self.want_by_text(sight.texts)
            self._classes.update(dict.fromkeys(sight.classes))

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
        else:
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
        entries = self._versioned(kind, _class_state(kind))
        state = _Made(kind), entries, registry, _Close(kind)
        return make, new, state, None, None, _set_class

    def _inherited_class(self, module: str, kind: type) -> Any:
        """A class that the other side has; what has changed goes along."""
        if self.program is None:
            return NotImplemented
        every = self._versioned(kind, reach.class_state(kind))
        changed = [entry for entry in every if entry[1]]
        changed += [(name, 1, GONE) for name in self.program.lost(kind)]
        if not changed:
            return NotImplemented
        return (
            _find_class,
            (module, kind.__qualname__),
            (None, changed, None, None),
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
        for name, value in main().items():
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
            if self.codec.is_home(module):
                self._want_all(obj)
            return reduced
        return self._global(module, reduced, obj, _made_of(obj, reduced))

    def _global(self, module: str, name: str, obj: Any, made_of: tuple[Any, ...]) -> Any:
        """An object that is one and the same for all that name it."""
        version = None
        if self.codec.is_home(module) and namespace(module).get(name, GONE) is obj:
            self.want(module, name)
            if self.program is not None:
                version = self.program.version(view.place(module, name), obj)
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


class _Itself:
    """A class or an inherited function, without what it needs."""

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


class _Made:
    """From here on a class by value is there, with nothing in it."""

    __slots__ = ("kind",)

    def __init__(self, kind: type) -> None:
        self.kind = kind


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
    pickler._deep += 1
    if pickler._of_main and pickler.program is not None and not pickler.codec.forks:
        pickler._of_main = False  # once
        for name in reach.ORIGIN:
            yield _Entry("__main__", name, -1, reach.origin(name))
    while (wanted := _next_wanted(pickler) or _next_text(pickler)) is not None:
        module, name = wanted
        pickler._sent.add(wanted)
        value = namespace(module).get(name, GONE)
        version = _version_of(pickler, module, name, value)
        if version == 0 and pickler.codec.had(module, name):
            pickler._want_all(value)  # inherited; but what it looks at may have changed
        elif value is not GONE or version:  # what is no more is told, not what never was
            pickler._alone = value
            yield _Entry(module, name, version, value)
    for name, version in _hidden(pickler):
        yield _Entry("__main__", name, version | view.HIDDEN, GONE)
    while pickler._classes and not pickler._open:
        yield _Entry("", "", None, pickler._classes.popitem()[0])
    pickler._deep -= 1


def _next_wanted(pickler: ByValue) -> tuple[str, str] | None:
    """The next global that can go now; within a class none that may be built with that class.

    The last one first: what a helper names goes before an object that was asked for before it.
    Of objects, one that does not look at others which wait: its __setstate__ may.
    """
    waiting = []
    for wanted in reversed(pickler._wanted):
        module, name = wanted
        value = namespace(module).get(name, GONE)
        if reach.builds_nothing(value):
            del pickler._wanted[wanted]
            return wanted
        waiting.append((wanted, value))
    if pickler._open or not waiting:
        return None
    wanted = waiting[0][0]
    if len(waiting) > 1 and pickler.program is not None:
        places = {view.place(*one) for one, _ in waiting}
        for one, value in waiting[:_CHOICE]:
            looks = reach.Reach(value, pickler.program).names.keys() & places
            if looks <= {view.place(*one)}:
                wanted = one
                break
    del pickler._wanted[wanted]
    return wanted


def _next_text(pickler: ByValue) -> tuple[str, str] | None:
    """The next global that may be looked up by a text, if it can go along."""
    if pickler._open or pickler._tries or pickler.program is None:
        return None
    for name in list(pickler._texts):
        mentioned = pickler._texts.pop(name)
        if ("__main__", name) in pickler._sent:
            continue
        value = main().get(name, GONE)
        version = pickler.program.version(name, value)
        small = value is GONE or reach.is_small(value)
        fresh = small and not pickler.codec.forks and type(value) is not types.ModuleType
        if mentioned or version or fresh:
            inherited = version == 0 and pickler.codec.had("__main__", name)
            if small or inherited or (mentioned and pickler.can_go(value)):
                return "__main__", name
            if version:
                pickler._hidden[name] = version
        elif reach.own_class(value) and pickler.program.changed_class(value):
            if pickler.can_go(value):
                pickler._classes[value] = None
            else:
                pickler._hidden[name] = version
    return None


def _hidden(pickler: ByValue) -> Iterator[tuple[str, int]]:
    """The globals that a worker may have as they were, and that do not go along."""
    for name, version in pickler._hidden.items():
        if ("__main__", name) not in pickler._sent:
            pickler._sent.add(("__main__", name))
            yield name, version


def _version_of(pickler: ByValue, module: str, name: str, value: Any) -> int | None:
    if not pickler.codec.is_home(module):
        # It may have been there already; from then on it is each process's own.
        return 0 if value is GONE or pickler.codec.had(module, name) else None
    if pickler.program is None:
        return None
    return pickler.program.version(view.place(module, name), value)


# ------------------------------------------------------------------------- on arrival


def _enter(module: str, name: str, version: int | None, value: Any) -> None:
    view.arrived(module, name, version, value)


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
    return FunctionType(code, namespace(module), None, None, closure)


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
        known = view.value_at(view.place(module, name), version)
        if known is not GONE:
            return known
    if version is None and not _process.receiving:
        here = namespace(module).get(name, GONE)
        if here is not GONE:
            return here  # it comes home
    return make(*arguments)


# Classes that were made here and have nothing yet; the versions of attributes that came.
_fresh: WeakSet[type] = WeakSet()
_came: WeakKeyDictionary[type, dict[str, int]] = WeakKeyDictionary()


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


def _class_state(kind: type) -> dict[str, Any]:
    state = reach.class_state(kind)
    for name in ("__module__", "__qualname__", "__class__", "__annotate_func__", "__firstlineno__",
                 "_abc_cache", "_abc_negative_cache", "_abc_registry",
                 "_abc_negative_cache_version"):  # fmt: skip
        state.pop(name, None)
    return state


def _members(kind: Any) -> list[tuple[str, Any]]:
    """Those of an enum, aliases too."""
    return list(kind.__members__.items())


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


def _find_made(tracker: str) -> Any:
    return cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[tracker]


def _find_class(module: str, name: str) -> Any:
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _set_class(kind: Any, state: tuple[None, list[tuple[str, int | None, Any]], Any, None]) -> None:
    _, attributes, registry, _ = state
    fresh = kind in _fresh
    _fresh.discard(kind)
    if not fresh and not _process.receiving:
        return  # a result's: it is as it is here
    came = _came.setdefault(kind, {})
    for name, version, value in attributes:
        if fresh or (version is not None and version > came.get(name, 0)):
            _set_attribute(kind, name, value, fresh=fresh)
            came[name] = version or 0
    for subclass in registry or ():
        kind.register(subclass)


def _set_attribute(kind: Any, name: str, value: Any, *, fresh: bool) -> None:
    if name == reach.MEMBERS:
        for member, own in value.items():
            vars(kind.__members__[member]).update(own)
    elif name in (reach.BASES, reach.METACLASS):
        if not fresh:  # it was made with them
            type.__setattr__(kind, "__bases__" if name == reach.BASES else "__class__", value)
    elif value is not GONE:
        type.__setattr__(kind, name, value)
    elif name in vars(kind):
        type.__delattr__(kind, name)


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

"""The user's program as a task sees it: what it names in `__main__`, as it is now (INV-11).

::

    Watch(f)        the names that f, its helpers and classes look at, and what they were
      same()        looked at with each submit or map call: is all as it was?
    Program         of a pool: a version for each name, 0 as long as it is what it was at the start
    ─── by the pickler (by_value.py): (name, version, value) of each go along with a function ───
    enter(view)     in a worker, before a task of that function: each name at that version

Guarantees:
    * A task sees each global of `__main__` that it names as it was at its submit or map call, also
      when calls before and after a change take turns in one worker.
    * What a worker has set itself (an initializer, a task's `global x`) stays, until the sender's
      changes.
    * Code that seems to look names up by a text sees what its words name, and other plain data, as
      it is now; what has changed and does not come along is not there, and the task is told.
    * A module that no import has made and that runs as the pool is made is as `__main__`.
    * A look costs what the names cost: identity for what cannot change, a fingerprint for the rest.

Invariants:
    PROG-1  A fingerprint is equal only if the value would be sent as the same. Where to look
            through a large value would cost more than a tenth of the time (`_Credit`), it is known
            by identity and length, and a change that was found late is told in a warning.
    PROG-2  Nothing here keeps large values alive: fingerprints do, functions and classes do not.

Threads: any in the user's process (entries of plain dicts); in a worker its first one.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import marshal
import operator
import pickle
import re
import sys
import weakref
import zlib
from enum import EnumMeta
from functools import partial, singledispatch
from opcode import opmap
from time import perf_counter
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any, TypeGuard

from .. import _process
from .._process import (
    GONE,
    VIEWS,
    main,
    namespace,
    warn_user,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable


_FIXED = frozenset({
    type(None), bool, int, str, bytes, type(...), type(NotImplemented), range, slice,
    ModuleType, BuiltinFunctionType,
})  # fmt: skip  # identity is enough: they cannot change
_BOXES = (list, tuple, dict, set, frozenset, bytearray)
_SMALL = 2000  # entries: looked through whatever it costs
_CHEAP_S = 50e-6  # and so is what takes no longer
# Names that each `__main__` has of its own. The second row says where the program comes from: a
# fresh process gets it once and for all.
OWN = frozenset({"__name__", "__builtins__", "__annotations__", "__loader__", "__cached__"})
ORIGIN = ("__package__", "__spec__", "__doc__", "__file__")
_ORIGIN = frozenset(ORIGIN)


def is_class(obj: Any) -> TypeGuard[type]:
    """As isinstance(obj, type), which believes the `__class__` that a proxy shows."""
    return issubclass(type(obj), type)


# Where a global is: its name alone in `__main__`, (module, name) in a module made by hand that
# forked workers have too, which is treated alike.
Place = str | tuple[str, str]


def place(module: str, name: str) -> Place:
    return name if module == "__main__" else (module, name)


def parts_of(at: Place) -> tuple[str, str]:
    """(module, name)."""
    return ("__main__", at) if isinstance(at, str) else at


def _found(at: Place) -> tuple[dict[str, Any], str]:
    """(the namespace, the name there)."""
    module, name = parts_of(at)
    return namespace(module), name


def origin(name: str) -> Any:
    """What `__main__` says of where it comes from, if that can be sent."""
    value = main().get(name)
    try:
        pickle.dumps(value)
    except Exception:
        return None
    return value


# ------------------------------------------------------------------- names in code

_GLOBALS = {opmap["LOAD_GLOBAL"]: 1, opmap["LOAD_NAME"]: 0}
if "LOAD_FROM_DICT_OR_GLOBALS" in opmap:
    _GLOBALS[opmap["LOAD_FROM_DICT_OR_GLOBALS"]] = 0
_EXTENDED = opmap["EXTENDED_ARG"]
_names: dict[int, tuple[CodeType, tuple[str, ...]]] = {}


def names_of(code: CodeType) -> tuple[str, ...]:
    """The globals that a function's code, and code inside of it, reads."""
    known = _names.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    found = dict.fromkeys(_read(code))
    if len(_names) > 4096:
        _names.clear()
    names = tuple(name for name in found if name not in OWN and name not in ORIGIN)
    _names[id(code)] = (code, names)
    return names


def _read(code: CodeType) -> Iterable[str]:
    raw, high = code.co_code, 0
    for at in range(0, len(raw), 2):
        operation, argument = raw[at], raw[at + 1] | high
        high = argument << 8 if operation == _EXTENDED else 0
        shift = _GLOBALS.get(operation)
        if shift is not None:
            yield code.co_names[argument >> shift]
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _read(constant)


# What looks names up by a text, as far as code can show it.
_LOOKS_UP = frozenset({
    "eval", "exec", "globals", "vars", "modules", "import_module", "__import__", "__main__",
    "_getframe", "currentframe", "f_globals", "__globals__", "get_type_hints",
    "query", "evaluate", "sql",  # of pandas, numexpr, duckdb: they look into their caller's names
})  # fmt: skip
_WORD = re.compile(r"[^\W\d]\w*")
_words: dict[int, tuple[CodeType, tuple[bool, frozenset[str]]]] = {}


def words_of(code: CodeType) -> tuple[bool, frozenset[str]]:
    """Whether code seems to look up names by a text; and the words that such a text may have."""
    known = _words.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    words = {word for text in _texts(code) for word in _WORD.findall(text)}
    found = not _LOOKS_UP.isdisjoint(words), frozenset(words - OWN - _ORIGIN)
    if len(_words) > 4096:
        _words.clear()
    _words[id(code)] = (code, found)
    return found


def _texts(code: CodeType) -> Iterable[str]:
    yield from code.co_names
    todo = list(code.co_consts)
    while todo:
        constant = todo.pop()
        if type(constant) is str:
            yield constant
        elif type(constant) is CodeType:
            yield from _texts(constant)
        elif type(constant) in (tuple, frozenset):
            todo += constant


def _has_looks() -> tuple[Any, ...]:
    """What a name of `__main__` may stand for that looks names up there."""
    return sys.modules["__main__"], eval, exec, globals, vars, sys._getframe


# -------------------------------------------------------------------- fingerprints

_serials: dict[int, tuple[Any, int]] = {}
_next_serial = 0


def serial(obj: Any) -> tuple[str, int]:
    """What stands for an object itself: no other one ever has it, as long as both can be asked."""
    global _next_serial
    known = _serials.get(id(obj))
    if known is not None and known[0]() is obj:
        return "serial", known[1]
    try:
        key = id(obj)
        reference = weakref.ref(obj, lambda _: _serials.pop(key, None))
    except TypeError:
        return "id", id(obj)
    _next_serial += 1
    _serials[key] = (reference, _next_serial)
    return "serial", _next_serial


def fingerprint(value: Any, limit: int = sys.maxsize) -> Any:
    """Equal for what would be sent as the same value.

    Args:
        limit: Of entries or bytes, about: what is larger has its identity and length.
    """
    kind = type(value)
    if kind in (bool, int, str, bytes, type(None)):
        return (kind, value) if kind is not bytes or len(value) < 4096 else serial_of_bytes(value)
    if kind in (float, complex):
        return kind, repr(value)
    if kind in _FIXED or kind is FunctionType or is_class(value):
        return serial(value)
    if kind in _BOXES:
        if _size(value) > limit:
            return _outside(value)
        data = _marshalled(value)
        if data is not None:
            return kind, len(data), hash(data)
    return _pickled(value, limit)


def _marshalled(box: Any) -> bytes | None:
    """The bytes of plain data; None for other things."""
    try:
        # 2: without references, which depend on counts. So it never ends in what leads to itself.
        return marshal.dumps(box, 2) if _is_tree(box) else None
    except ValueError:
        return None


_HOLDERS = frozenset({list, tuple, dict, set, frozenset})


def _is_tree(box: Any) -> bool:
    """Whether no container is met twice, below a container."""
    seen: set[int] = set()
    todo = [box]
    while todo:
        box = todo.pop()
        if id(box) in seen:
            return False
        seen.add(id(box))
        parts = box.values() if type(box) is dict else box
        if type(box) is not bytearray and not _HOLDERS.isdisjoint(map(type, parts)):
            todo += [part for part in parts if type(part) in _HOLDERS and part]
    return True


def serial_of_bytes(value: bytes) -> tuple[Any, ...]:
    return bytes, len(value), hash(value)  # the interpreter keeps that hash


def _outside(value: Any) -> tuple[Any, ...]:
    try:
        length = len(value)
    except Exception:
        length = -1
    return "outside", type(value), id(value), length


def _outsides(values: Any) -> list[Any]:
    """Of a list that is made anew each time."""
    return [*map(_outside, values)] if type(values) is list else [_outside(values)]


def _size(value: Any) -> int:
    total = len(value)
    if total <= _SMALL and type(value) is not bytearray:
        parts = value.values() if type(value) is dict else value
        total += sum(len(part) for part in parts if type(part) in _BOXES)
    return total


class _TooLong(Exception):
    pass


class _Sink(io.BytesIO):
    """What a fingerprint is made of, up to a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit
        self.sums: list[tuple[int, int]] = []

    def write(self, data: Any) -> int:
        self._spend(len(data))
        return super().write(data)

    def add(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: in band
            return True
        self._spend(raw.nbytes)
        self.sums.append((raw.nbytes, zlib.crc32(raw)))
        return False

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _TooLong


# Whose objects are channels and locks: they are what they are, whatever has gone through them.
_THEMSELVES = frozenset({"multiprocessing", "_multiprocessing", "threading", "_thread", "socket",
                         "_socket", "queue", "_queue", "asyncio", "logging"})  # fmt: skip


# What pickle refuses, and our pickler does not: as what one sees in it.
_INSIDE: dict[type, Callable[[Any], Any]] = {
    MappingProxyType: dict,
    memoryview: bytes,
    type({}.keys()): list,
    type({}.values()): list,
    type({}.items()): list,
}


class _Print(pickle.Pickler):
    """Pickles, but for what has an identity that matters, or cannot be pickled."""

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType or kind in _FIXED or is_class(obj):
            return NotImplemented if obj is serial else (serial, serial(obj))
        inside = _INSIDE.get(kind)
        if inside is not None:
            return inside, (inside(obj),)
        if kind.__module__.partition(".")[0] in _THEMSELVES:
            return serial, serial(obj)
        if kind in copyreg.dispatch_table:
            return NotImplemented
        try:
            reduced = obj.__reduce_ex__(5)
        except Exception:
            return serial, serial(obj)
        return (serial, serial(obj)) if type(reduced) is str else reduced


def _pickled(value: Any, limit: int) -> Any:
    sink = _Sink(limit)
    try:
        _Print(sink, 5, buffer_callback=sink.add).dump(value)
    except _TooLong:
        return _outside(value)
    except Exception:
        return serial(value)
    data = sink.getvalue()
    return type(value), len(data), hash(data), tuple(sink.sums)


# ------------------------------------------------------------------ what code looks at


def own_class(obj: Any) -> bool:
    """Whether something is a class of the program's, of `__main__` or of no module at all."""
    if not is_class(obj) or not obj.__flags__ & _HEAPTYPE:
        return False
    module = getattr(obj, "__module__", None)
    if module == "builtins":  # also of one whose namespace had no name
        return vars(sys.modules[module]).get(obj.__name__) is not obj
    return module == "__main__" or _is_made_by_hand(module)


_HEAPTYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or by C as one


def _is_made_by_hand(module: Any) -> bool:
    """Whether a name is of no module that can be imported."""
    found = sys.modules.get(module) if type(module) is str else None
    if type(found) is not ModuleType:
        return found is None  # a lazy one: to look into it may load it
    return vars(found).get("__spec__") is None


def _is_strange(names: dict[str, Any]) -> bool:
    """Whether a function's globals are those of no module that can be imported.

    exec() makes such, doctest, runpy, an embedded IPython: its functions go by value, with copies
    of what they name.
    """
    module = sys.modules.get(str(names.get("__name__")))
    return getattr(module, "__dict__", None) is not names or names.get("__spec__") is None


def _is_nested(obj: Any) -> bool:
    """Whether a function or class of a module that can be imported is not found there by its name.

    A lambda, what another function has made: it goes by value, with copies of what it names.
    """
    module = sys.modules.get(str(obj.__module__))
    if module is None or obj.__module__ == "__main__" or "<" in obj.__qualname__:
        return True
    top, *rest = obj.__qualname__.split(".")
    found = vars(module).get(top, GONE)
    for name in rest:
        found = getattr(found, name, GONE)
    return found is not obj


class Reach:
    """What running an object may look at, of `__main__` and modules like it (`Program.homes`).

    Attributes:
        names: Globals by their places, with what they are; GONE: there is none of that name (yet).
        texts: Other globals, of which code may have the name as a text (`Program.by_text`).
        by_text: Classes among these that the code does not mention.
        functions: Of `__main__`, and others that lead to some.
        strangers: Functions with globals of their own, and those that they name; nested ones of
            modules too, which go by value.
        classes: Of `__main__`, or of no module; or nested ones.
    """

    def __init__(self, root: Any, program: Program | None = None) -> None:
        self.names: dict[Place, Any] = {}
        self.texts: dict[str, bool] = {}
        self.by_text: list[type] = []
        self.functions: list[FunctionType] = []
        self.strangers: list[tuple[FunctionType, tuple[str, ...]]] = []
        self.classes: list[type] = []
        self._main = main()
        self._program = program
        self._homes = {} if program is None else program.homes
        self._seen: set[int] = set()
        self._todo: list[Any] = [root]
        while self._todo:
            self._visit(self._todo.pop())

    def __bool__(self) -> bool:
        return bool(self.functions or self.classes)

    def _visit(self, obj: Any) -> None:
        kind = type(obj)
        if kind in _FIXED or kind is float or obj is GONE or id(obj) in self._seen:
            return
        self._seen.add(id(obj))
        todo = self._todo
        if kind is FunctionType:
            self._function(obj)
        elif is_class(obj):
            if own_class(obj) or "<locals>" in obj.__qualname__:
                self.classes.append(obj)
                todo += (*vars(obj).values(), *obj.__bases__, type(obj))
        elif kind is MethodType:
            todo += (obj.__func__, obj.__self__)
        elif kind is partial:
            todo += (obj.func, obj.args, obj.keywords)
        elif kind in (staticmethod, classmethod, property):
            todo += _wrapped(obj)
        elif kind in _BOXES:
            self._entries(obj)
        elif kind.__module__ != "builtins":
            todo.append(kind)
            attributes = getattr(obj, "__dict__", None)
            if type(attributes) is dict:
                self._entries(attributes)

    def _entries(self, box: Any) -> None:
        if 0 < len(box) <= _SMALL and type(box) is not bytearray:
            self._todo += list(box.values() if type(box) is dict else box)

    def _function(self, function: FunctionType) -> None:
        names = function.__globals__
        if names is self._main or id(names) in self._homes:
            self.functions.append(function)
            module = self._homes.get(id(names), "__main__")
            for name in names_of(function.__code__):
                at = place(module, name)
                if at not in self.names:
                    value = self.names[at] = names.get(name, GONE)
                    self._todo.append(value)
            if self._program is not None and names is self._main:
                self._by_text(self._program.by_text(function.__code__))
        elif _is_strange(names) or _is_nested(function):
            self.functions.append(function)
            named = names_of(function.__code__)
            self.strangers.append((function, named))
            self._todo += [names.get(name, GONE) for name in named]
        elif function.__closure__ or function.__dict__:
            self.functions.append(function)
        self._todo += _state_of(function)

    def _by_text(self, texts: dict[str, bool]) -> None:
        for name, mentioned in texts.items():
            value = self._main.get(name, GONE)
            if mentioned and not self.texts.get(name):
                self._todo.append(value)
            elif own_class(value):
                self.by_text.append(value)
            self.texts[name] = mentioned or self.texts.get(name, False)

    def strange_values(self, *, nested: bool) -> list[Any]:
        """What strangers name, of their own globals; `nested`: also those of modules."""
        return [
            _global(name, function)
            for function, names in self.strangers
            if nested or _is_strange(function.__globals__)
            for name in names
        ]


def _wrapped(method: Any) -> tuple[Any, ...]:
    """The functions of a staticmethod, classmethod or property."""
    if type(method) is property:
        return method.fget, method.fset, method.fdel
    return (method.__func__,)


# What functools.singledispatch() makes: its registry counts, not what it keeps to be quick.
_dispatching: Any = singledispatch(len)
DISPATCHES: CodeType = _dispatching.__code__


def _state_of(function: Any) -> list[Any]:
    """What a function has beside its code."""
    state: list[Any] = []
    if function.__code__ is DISPATCHES:
        return [*function.registry, *function.registry.values()]
    if function.__defaults__:
        state += function.__defaults__
    if function.__kwdefaults__:
        state += function.__kwdefaults__.values()
    if function.__dict__:
        state += function.__dict__.values()
    for cell in function.__closure__ or ():
        try:
            state.append(cell.cell_contents)
        except ValueError:
            state.append(GONE)
    return state


def class_attributes(kind: type) -> dict[str, Any]:
    """What a class statement has put there, and what was set since; not what the type makes."""
    made: Container[str] = _MADE
    if isinstance(kind, EnumMeta):
        made = {*_MADE, *_MADE_BY_ENUM, *kind.__members__}
    return {
        name: value
        for name, value in vars(kind).items()
        if type(value) not in (MemberDescriptorType, GetSetDescriptorType) and name not in made
    }


# What a class has beside attributes, in class_state(): no attribute has such a name.
BASES, METACLASS, MEMBERS = "<bases>", "<metaclass>", "<members>"


def class_state(kind: type) -> dict[str, Any]:
    """The attributes of a class, and what else of it can change."""
    state = {**class_attributes(kind), BASES: kind.__bases__, METACLASS: type(kind)}
    if isinstance(kind, EnumMeta):
        state[MEMBERS] = member_attributes(kind)
    return state


def member_attributes(kind: Any) -> dict[str, dict[str, Any]]:
    """What the members of an enum have besides their values."""
    found = {
        name: {key: value for key, value in vars(member).items() if key not in _MADE_FOR_MEMBERS}
        for name, member in kind.__members__.items()
    }
    return {name: own for name, own in found.items() if own}


# What the interpreter and the standard library keep in a class.
_MADE = frozenset({"__dict__", "__weakref__", "__slots__", "_abc_impl", "__slotnames__",
                   "__annotations_cache__"})  # fmt: skip
_MADE_BY_ENUM = frozenset({"_generate_next_value_", "_member_names_", "_member_map_",
                           "_member_type_", "_value2member_map_", "_unhashable_values_",
                           "_unhashable_values_map_", "_hashable_values_"})  # fmt: skip
_MADE_FOR_MEMBERS = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})


def builds_nothing(value: Any) -> bool:
    """Whether no class of the program's has to be complete for a value to be rebuilt."""
    kind = type(value)
    if kind in _FIXED or kind in (float, complex, FunctionType) or is_class(value):
        return True
    if kind in _BOXES:
        return _marshalled(value) is not None
    return not own_class(kind)


def function_print(function: FunctionType, *, nested: bool) -> Any:
    """Of a function's own state, its code included, and of the globals that go with it.

    Args:
        nested: Also those of modules that can be imported, which only go with what is by value.
    """
    state = _state_of(function)
    names = function.__globals__
    if names is not main() and (_is_strange(names) or (nested and _is_nested(function))):
        state = [*state, *Reach(function).strange_values(nested=nested)]
    return serial(function.__code__), tuple(map(fingerprint, state))


# ----------------------------------------------------------------------------- watches


class _Credit:
    """A tenth of the time for looking through large values, and a tenth of a second at once."""

    def __init__(self) -> None:
        self._started = perf_counter()
        self._spent = 0.0

    def allows(self, cost: float, *, call: bool) -> bool:
        if cost < _CHEAP_S or (call and cost < 0.1):
            return True
        return self._spent + cost < 0.1 + 0.1 * (perf_counter() - self._started)

    def spend(self, cost: float) -> None:
        if cost >= _CHEAP_S:
            self._spent += cost


class _Item:
    """One value that can change in place."""

    __slots__ = ("cost", "get", "outside", "print", "shell", "skipped", "what")

    def __init__(
        self, what: str, get: Callable[[], Any], shell: Callable[[Any], Any] = _outside
    ) -> None:
        self.what = what
        self.get = get
        self.shell = shell  # what is looked at where the whole costs too much
        self.skipped = False
        started = perf_counter()
        value = get()
        self.print = fingerprint(value)
        self.outside = shell(value)
        self.cost = perf_counter() - started

    def same(self, credit: _Credit, *, call: bool) -> bool:
        value = self.get()
        if not credit.allows(self.cost, call=call):
            self.skipped = True
            return bool(self.shell(value) == self.outside)
        started = perf_counter()
        now = fingerprint(value)
        self.cost = perf_counter() - started
        credit.spend(self.cost)
        if now == self.print:
            self.skipped = False
            return True
        if self.skipped and self.shell(value) == self.outside:
            warn_user(
                f"{self.what} was changed in place, and is too large to be looked "
                "through with each submit: tasks submitted just before now may have seen it as it "
                "was. Pass it as an argument, or bind the name to a new object."
            )
        return False


class _Class:
    """Which objects a class has as attributes, and what it derives from and is made by."""

    __slots__ = ("bases", "ids", "keep", "kind", "parts", "prints")

    def __init__(self, kind: type) -> None:
        self.kind = weakref.ref(kind)
        self._look(kind)

    def _look(self, kind: type) -> None:
        values = list(vars(kind).values())
        self.ids = list(map(id, values))
        self.bases = list(map(id, (type(kind), *kind.__bases__)))
        self.prints = {name: id(value) for name, value in class_attributes(kind).items()}
        # An id means nothing once its object is gone: plain values are kept, of others it is seen.
        self.keep = [value for value in values if type(value) in _KEPT]
        parts = (*values, *kind.__bases__, type(kind))
        self.parts = [one for part in parts if (one := _weakly(part)) is not None]

    def same(self) -> bool:
        kind = self.kind()
        if kind is None or None in map(operator.call, self.parts):
            return False
        if list(map(id, (type(kind), *kind.__bases__))) != self.bases:
            return False
        if list(map(id, vars(kind).values())) == self.ids:
            return True
        if {name: id(value) for name, value in class_attributes(kind).items()} != self.prints:
            return False
        self._look(kind)  # something that the interpreter has put there
        return True


_KEPT = frozenset({*_FIXED, float, complex, *_BOXES}) - {ModuleType}


def _weakly(value: Any) -> Any:
    value = getattr(value, "__func__", getattr(value, "fget", value))
    try:
        return weakref.ref(value) if type(value) not in _KEPT else None
    except TypeError:
        return None


class Watch:
    """Whether all that a function looks at in the program is what it was.

    Nothing of the program is kept alive for it, but plain values: a pool keeps it as long as the
    function lives, to which helpers and classes may lead back.

    Attributes:
        quick: (GONE, [(namespace, name, value)] of plain values and of what is not there,
            [(namespace, name, weak reference)] of functions and classes, [(weak reference to a
            function, its code, defaults, keyword defaults)], whether there is more to look at):
            what Submitter looks at without a call of Python code. Namespaces are those of
            `__main__` and other modules.
    """

    __slots__ = ("_classes", "_credit", "_items", "_references", "_values", "quick")

    def __init__(self, reach: Reach, credit: _Credit) -> None:
        self._credit = credit
        kinds = dict.fromkeys((*reach.classes, *reach.by_text))
        self._classes = [_Class(kind) for kind in kinds]
        self._items: list[_Item] = []
        self._values: list[tuple[dict[str, Any], str, Any]] = []
        self._references: list[tuple[dict[str, Any], str, weakref.ref[Any]]] = []
        for at in reach.names:
            self._name(*_found(at))
        for name, mentioned in reach.texts.items():
            if name not in reach.names:
                self._name(main(), name, itself=not mentioned)
        codes = [
            (weakref.ref(one), one.__code__, one.__defaults__, one.__kwdefaults__)
            for one in reach.functions
        ]
        for function in reach.functions:
            if function.__defaults__ or function.__closure__ or function.__dict__ or (
                function.__kwdefaults__
            ):  # fmt: skip
                what = f"what {function.__qualname__}() holds"
                self._item(what, function, _state_of, _outsides)
        for function, globals_ in reach.strangers:
            own = None if _is_strange(function.__globals__) else function.__globals__
            for name in globals_:
                if own is not None:  # a module's, which nobody drops
                    self._name(own, name)
                else:
                    self._item(
                        f"global {name!r} of {function.__qualname__}()",
                        function,
                        partial(_global, name),
                    )
        for kind in kinds:
            for name, value in class_attributes(kind).items():
                if not _is_attribute(name, value):
                    self._item(f"{kind.__qualname__}.{name}", kind, partial(_attribute, name))
            if isinstance(kind, EnumMeta):
                self._item(f"what members of {kind.__qualname__} hold", kind, member_attributes)
        more = bool(self._classes or self._items)
        self.quick = (GONE, tuple(self._values), tuple(self._references), tuple(codes), more)

    def _name(self, names: dict[str, Any], name: str, *, itself: bool = False) -> None:
        """Look at one global of a module; `itself`: what an object has in it does not matter."""
        value = names.get(name, GONE)
        kind = type(value)
        if kind in _FIXED or kind is float or value is GONE:
            self._values.append((names, name, value))
            return
        if kind is FunctionType or is_class(value) or (itself and kind not in _BOXES):
            with contextlib.suppress(TypeError):
                self._references.append((names, name, weakref.ref(value)))
                return
        of = names.get("__name__", "?")
        self._items.append(_Item(f"global {name!r} of {of}", partial(names.get, name, GONE)))

    def _item(
        self,
        what: str,
        holder: Any,
        get: Callable[[Any], Any],
        shell: Callable[[Any], Any] = _outside,
    ) -> None:
        reference = weakref.ref(holder)

        def now() -> Any:
            held = reference()
            return GONE if held is None else get(held)

        self._items.append(_Item(what, now, shell))

    def same(self, *, call: bool = False) -> bool:
        """Look. `call`: for many tasks at once, so that it may cost more."""
        _, values, references, codes, _ = self.quick
        for names, name, value in values:
            if names.get(name, GONE) is not value:
                return False
        for names, name, reference in references:
            if names.get(name, GONE) is not reference():
                return False
        for reference, code, *defaults in codes:
            function: Any = reference()
            if function is None or function.__code__ is not code or (
                function.__defaults__ is not defaults[0]
                or function.__kwdefaults__ is not defaults[1]
            ):  # fmt: skip
                return False
        for one in self._classes:
            if not one.same():
                return False
        credit = self._credit
        return all(item.same(credit, call=call) for item in self._items)


def _global(name: str, function: FunctionType) -> Any:
    return function.__globals__.get(name, GONE)


def _attribute(name: str, kind: type) -> Any:
    return vars(kind).get(name, GONE)


def _is_attribute(name: str, value: Any) -> bool:
    """Whether it is enough to know which object a class has under a name."""
    if type(value) in _BOXES:
        return False
    if name[:2] == "__" or is_class(value):
        return True
    return type(value) in _FIXED or type(value) in (
        FunctionType, float, complex, property, staticmethod, classmethod,
    )  # fmt: skip


# ------------------------------------------------------------------ versions, of a pool


class Program:
    """What was where when a pool was made, and how often that has changed since.

    It is made before the pool forks, where to look at an object costs no copy of its page, and
    counts from settle() on, which is called after the fork: hooks run there.

    Args:
        by_hand: Names of modules made by hand that workers have: they are as `__main__` here.

    Attributes:
        homes: id of the namespace -> name, of these modules.
    """

    def __init__(self, by_hand: Iterable[str] = ()) -> None:
        self.credit = _Credit()
        self.homes = {id(namespace(module)): module for module in by_hand}
        self._then: dict[Place, Any] = {}
        self._classes: dict[tuple[str, int], dict[str, Any]] = {}
        self._versions: dict[Any, tuple[int, Any]] = {}
        # Up to settle(): (namespace, its items, codes of functions) of each module; and what may
        # change in place, with whether it is looked through.
        self._found: list[tuple[dict[str, Any], list[Any], list[Any]]] = []
        self._later: list[tuple[Place, Any, bool]] = []
        for module in ("__main__", *by_hand):
            self._look(module)

    def _look(self, module: str) -> None:
        names = namespace(module)
        named = _names_in_sight(names)
        items = list(names.items())
        codes = [(value, value.__code__) for _, value in items if type(value) is FunctionType]
        self._found.append((names, items, codes))
        for name, value in items:
            if name in OWN or name in ORIGIN:
                continue
            at, looked = place(module, name), name in named
            if _may_change(value, looked=looked):
                self._later.append((at, value, looked))
            else:
                self._then[at] = self._now(value, looked=looked)

    def settle(self) -> None:
        """What is there now is what was at the start."""
        if not self._is_as_found():  # a hook has bound a name anew
            self._then, self._later, self._found = {}, [], []
            for module in ("__main__", *self.homes.values()):
                self._look(module)
        later, self._later, self._found = self._later, [], []
        for at, value, looked in later:
            self._then[at] = self._now(value, looked=looked)
            if own_class(value):
                self._classes[serial(value)] = self._class_now(value)

    def _is_as_found(self) -> bool:
        for names, items, codes in self._found:
            if len(names) != len(items):
                return False
            for name, value in items:
                if names.get(name, GONE) is not value:
                    return False
            for function, code in codes:
                if function.__code__ is not code:
                    return False
        return True

    def version(self, at: Place, value: Any) -> int:
        """The version of a global that is `value` now; 0: what it was at the start."""
        return self._version(at, value, self._then.get(at, GONE))

    def by_text(self, code: CodeType) -> dict[str, bool]:
        """The globals, beside those that it names, which code may look up by a text.

        The text can come from anywhere, so these are all that there are, or were; those that the
        code has the word for are True.
        """
        names = main()
        strong = names_of(code)
        looks, words = words_of(code)
        if not looks:
            known = _has_looks()
            if not any(names.get(name, GONE) is one for name in strong for one in known):
                return {}
        found = dict.fromkeys(words, True)
        for name in (*names, *self._then):
            if type(name) is str and name not in OWN and name not in ORIGIN:
                found.setdefault(name, False)
        for name in strong:
            found.pop(name, None)
        return found

    def attribute(self, kind: type, name: str, value: Any) -> int:
        """As version(), of a class's attribute; for a class that came later, since first asked."""
        key = serial(kind)
        then = self._classes.get(key)
        if then is None:
            then = self._classes[key] = self._class_now(kind)
        return self._version((key, name), value, then.get(name, GONE))

    def lost(self, kind: type) -> list[str]:
        """Attributes that a class had at the start, and has no more."""
        now = class_state(kind)
        return [name for name in self._classes.get(serial(kind), ()) if name not in now]

    def _version(self, at: Any, value: Any, then: Any) -> int:
        known, now = self._versions.get(at), self._print(value)
        if known is None and then is GONE:
            number = int(value is not GONE)
        elif known is None:
            number = int(then != self._now(value, looked=then[0] == "looked"))
        elif known[1] == now:
            return known[0]
        else:
            number = known[0] + 1
        self._versions[at] = (number, now)
        return number

    def changed(self, reach: Reach) -> bool:
        """Whether anything is not what it was at the start."""
        names = main()
        by_text = ((name, names.get(name, GONE)) for name in reach.texts)
        if any(self.version(name, value) for name, value in by_text):
            return True
        return any(self.version(at, value) for at, value in reach.names.items()) or any(
            map(self.changed_class, (*reach.classes, *reach.by_text))
        )

    def changed_class(self, kind: type) -> bool:
        """Whether a class has something that it had not, or otherwise."""
        if self.lost(kind):
            return True
        return any(self.attribute(kind, *pair) for pair in class_state(kind).items())

    def _print(self, value: Any, limit: int = sys.maxsize, *, nested: bool = True) -> Any:
        kind = type(value)
        if kind in (staticmethod, classmethod, property):
            return kind, tuple(self._print(one, limit, nested=nested) for one in _wrapped(value))
        if kind is not FunctionType:
            return fingerprint(value, limit)
        if id(value.__globals__) in self.homes:
            return serial(value), serial(value.__code__), tuple(map(fingerprint, _state_of(value)))
        return serial(value), function_print(value, nested=nested)

    def _now(self, value: Any, *, looked: bool = False) -> tuple[Any, ...]:
        """What a value is at the start, for a comparison later.

        To look through all that a program has might take long, and run code of the user's: what
        is not `looked` at for a reason, and not plain data, has its identity only.
        """
        if looked or _is_data(value):
            return "looked", self._print(value, _SMALL, nested=False)
        return "itself", serial(value)

    def _class_now(self, kind: type) -> dict[str, Any]:
        found = class_state(kind).items()
        return {name: self._now(value, looked=True) for name, value in found}


def _may_change(value: Any, *, looked: bool) -> bool:
    """Whether what Program._now() says of a value may become another, as long as it is there."""
    kind = type(value)
    if kind is FunctionType:
        own = value.__globals__ is main()
        return bool(_state_of(value)) or (not own and _is_strange(value.__globals__))
    if is_class(value):
        return own_class(value)
    if kind in _FIXED or kind in (float, complex):
        return False
    return looked or _is_data(value)


def is_small(value: Any) -> bool:
    """Whether it is plain data and not much, or a module: what may go along unasked."""
    kind = type(value)
    if kind in _BOXES:
        data = _marshalled(value) if _size(value) <= _SMALL else None
        return data is not None and len(data) < 1 << 16
    if kind in (str, bytes):
        return len(value) < 1 << 16
    return kind in _FIXED or kind in (float, complex)


def _is_data(value: Any) -> bool:
    kind: Any = type(value)
    if kind in _FIXED or kind in _BOXES or kind in (float, complex, FunctionType):
        return True
    if is_class(value) or kind.__module__ in _DATA:
        return True
    return bool(kind.__flags__ & _HEAPTYPE) and pickles_as_it_is(kind)


def pickles_as_it_is(kind: Any) -> bool:
    """Whether pickle sends a class's instances by no code of the class."""
    plain: Any = object
    return (
        kind.__reduce_ex__ is plain.__reduce_ex__
        and kind.__reduce__ is plain.__reduce__
        and kind.__getstate__ is plain.__getstate__
    )


_DATA = frozenset({"builtins", "collections", "types", "array", "datetime", "decimal", "fractions",
                   "numpy", "enum"})  # fmt: skip


def _names_in_sight(names: dict[str, Any]) -> frozenset[str]:
    """The globals that a module's code reads, as far as there is any yet."""
    codes = [value.__code__ for value in names.values() if type(value) is FunctionType]
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals is names:
            codes.append(frame.f_code)  # a script's own has all others in it
        frame = frame.f_back  # type: ignore[assignment]
    words = [words_of(code) for code in codes]
    return frozenset(name for code in codes for name in names_of(code)).union(
        *(found for looks, found in words if looks)
    )


# --------------------------------------------------------------------------- in a worker


class _Cell:
    """A global at one version, as this process has it; views share it."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


View = dict[Place, tuple[int, _Cell]]
# Beside a version: the sender's is that one but did not come along, so there is none here.
HIDDEN = 1 << 60

_cells: weakref.WeakValueDictionary[tuple[Place, int], _Cell] = weakref.WeakValueDictionary()
_installed: View = {}
_at_first: dict[Place, _Cell] = {}  # what a later version has replaced
_current: Any = None  # the view that was entered last


def forget() -> None:
    """What a forked worker has of its parent, which may be one itself, is not its own."""
    global _current
    if _cells or _installed or _at_first:
        _cells.clear()
        _installed.clear()
        _at_first.clear()
    if _current is not None:
        _current = None


def value_at(at: Place, version: int) -> Any:
    """What a global of a worker is at a version, if that has come before; or GONE."""
    if not _process.receiving:
        return GONE
    cell = _cells.get((at, version))
    if cell is None and version == 0:
        cell = _at_first.get(at)
        if cell is None:
            names, name = _found(at)
            return names.get(name, GONE)
    return GONE if cell is None else cell.value


def arrived(module: str, name: str, version: int | None, value: Any) -> None:
    """A global came along with something, and is there from now on.

    With a function it is part of the view that its tasks have, too.
    """
    if not module:
        return  # a class: what has changed of it is there now
    if not _process.receiving or version is None:
        namespace(module).setdefault(name, value)  # only what lacks
        return
    if version < 0:
        main()[name] = value
        return
    at = place(module, name)
    cell = _cells.get((at, version))
    if cell is None:
        cell = _cells[at, version] = _Cell(value)
    view = {at: (version, cell)}
    if VIEWS:
        VIEWS[-1].update(view)
    enter(view, whole=False)


def enter(view: View, *, whole: bool = True) -> None:
    """Have `__main__` be as a view has it; `whole`: all that it does not name as at first."""
    global _current
    if view is _current:
        return
    for at, (version, cell) in view.items():
        names, name = _found(at)
        now = _installed.get(at)
        if now is None:
            here = names.get(name, GONE)
            if version == 0 and here is not GONE:
                cell.value = here  # an initializer's, which stays
            elif here is not GONE or version:
                _at_first[at] = _Cell(here)
        elif now[0] == version:
            continue
        else:
            now[1].value = names.get(name, GONE)  # its own, if a task has set it
        _put(names, name, cell.value)
        _installed[at] = (version, cell)
    if whole:
        for at, (version, cell) in list(_installed.items()):
            if at not in view and version and _has_first(at):
                names, name = _found(at)
                cell.value = names.get(name, GONE)
                first = _at_first[at]
                _put(names, name, first.value)
                _installed[at] = (0, first)
    _current = view if whole else None


def explain(error: BaseException) -> None:
    """Tell who misses a global that did not come along; never raises."""
    if not isinstance(error, (NameError, KeyError, AttributeError)):
        return
    with contextlib.suppress(Exception):
        text = str(error)
        for at, (version, _) in list(_installed.items()):
            name = parts_of(at)[1]
            if version & HIDDEN and re.search(rf"\b{name}\b", text):
                error.add_note(
                    f"The global {name!r} of __main__ has changed since the pool was made, and did "
                    "not come along: a task gets those that its code names. Pass it as an argument."
                )


def _has_first(at: Place) -> bool:
    first = _at_first.get(at)
    return first is not None and first.value is not GONE


def _put(names: dict[str, Any], name: str, value: Any) -> None:
    if value is GONE:
        names.pop(name, None)
    else:
        names[name] = value

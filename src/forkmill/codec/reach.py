"""What code looks at in `__main__`, and a print of each value that tells when it changes.

::

    code ──names_of, words_of──▶ names ──▶ Reach: those that a function, its helpers and classes
                                           look at, whether by a name or by a text
    value ──fingerprint──▶ equal as long as it would be sent as the same

Invariants:
    PROG-1  A fingerprint is equal only if the value would be sent as the same. Where to look
            through a large value would cost more than a tenth of the time (program.py), it is known
            by identity and length, and a change that was found late is told in a warning.
    PROG-2  Nothing here keeps large values alive: fingerprints do, functions and classes do not.

Threads: any (entries of plain dicts).
"""

from __future__ import annotations

import copyreg
import io
import marshal
import pickle
import re
import sys
import weakref
from enum import EnumMeta
from functools import partial, singledispatch
from opcode import opmap
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
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from .._process import GONE, main
from .view import Place, place

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

FIXED = frozenset({
    type(None), bool, int, str, bytes, type(...), type(NotImplemented), range, slice,
    ModuleType, BuiltinFunctionType,
})  # fmt: skip  # identity is enough: they cannot change
BOXES = (list, tuple, dict, set, frozenset, bytearray)
SMALL = 2000  # entries: looked through whatever it costs
# Names that each `__main__` has of its own. The second row says where the program comes from: a
# fresh process gets it once and for all.
OWN = frozenset({"__name__", "__builtins__", "__annotations__", "__loader__", "__cached__"})
ORIGIN = ("__package__", "__spec__", "__doc__", "__file__")
_ORIGIN = frozenset(ORIGIN)


def is_class(obj: Any) -> TypeGuard[type]:
    """As isinstance(obj, type), which believes the `__class__` that a proxy shows."""
    return issubclass(type(obj), type)


def origin(name: str) -> Any:
    """What `__main__` says of where it comes from, if that can be sent."""
    value = main().get(name)
    try:
        pickle.dumps(value)
    except Exception:
        return None
    return value


def is_small(value: Any) -> bool:
    """Whether it is plain data and not much, or a module: what may go along unasked."""
    kind = type(value)
    if kind in BOXES:
        data = marshalled(value) if size_of(value) <= SMALL else None
        return data is not None and len(data) < 1 << 16
    if kind in (str, bytes):
        return len(value) < 1 << 16
    return kind in FIXED or kind in (float, complex)


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


def has_looks() -> tuple[Any, ...]:
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
        reference = weakref.ref(obj, partial(_serials.pop, key))
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
    if kind in FIXED or kind is FunctionType or is_class(value):
        return serial(value)
    if kind in BOXES:
        if size_of(value) > limit:
            return outside(value)
        data = marshalled(value)
        if data is not None:
            return kind, len(data), hash(data)
    return _pickled(value, limit)


def marshalled(box: Any) -> bytes | None:
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


def outside(value: Any) -> tuple[Any, ...]:
    try:
        length = len(value)
    except Exception:
        length = -1
    return "outside", type(value), id(value), length


def outsides(values: Any) -> list[Any]:
    """Of a list that is made anew each time."""
    return [*map(outside, values)] if type(values) is list else [outside(values)]


def size_of(value: Any) -> int:
    total = len(value)
    if total <= SMALL and type(value) is not bytearray:
        parts = value.values() if type(value) is dict else value
        total += sum(len(part) for part in parts if type(part) in BOXES)
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
        import zlib  # few programs have arrays as globals

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
        if kind is FunctionType or kind in FIXED or is_class(obj):
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
        return outside(value)
    except Exception:
        return serial(value)
    data = sink.getvalue()
    return type(value), len(data), hash(data), tuple(sink.sums)


# ------------------------------------------------------------------ what code looks at


def own_class(obj: Any) -> bool:
    """Whether something is a class of the program's, of `__main__` or of no module at all."""
    if not is_class(obj) or not obj.__flags__ & HEAPTYPE:
        return False
    module = getattr(obj, "__module__", None)
    if module == "builtins":  # also of one whose namespace had no name
        return vars(sys.modules[module]).get(obj.__name__) is not obj
    return module == "__main__" or _is_made_by_hand(module)


HEAPTYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or by C as one


def _is_made_by_hand(module: Any) -> bool:
    """Whether a name is of no module that can be imported."""
    found = sys.modules.get(module) if type(module) is str else None
    if type(found) is not ModuleType:
        return found is None  # a lazy one: to look into it may load it
    return vars(found).get("__spec__") is None


def is_strange(names: dict[str, Any]) -> bool:
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


class Homes(Protocol):
    """What a Reach asks of a `Program`: see there."""

    homes: dict[int, str]

    def by_text(self, code: CodeType) -> dict[str, bool]: ...


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

    def __init__(self, root: Any, program: Homes | None = None) -> None:
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
        if kind in FIXED or kind is float or obj is GONE or id(obj) in self._seen:
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
            todo += wrapped(obj)
        elif kind in BOXES:
            self._entries(obj)
        elif kind.__module__ != "builtins":
            todo.append(kind)
            attributes = getattr(obj, "__dict__", None)
            if type(attributes) is dict:
                self._entries(attributes)

    def _entries(self, box: Any) -> None:
        if 0 < len(box) <= SMALL and type(box) is not bytearray:
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
        elif is_strange(names) or _is_nested(function):
            self.functions.append(function)
            named = names_of(function.__code__)
            self.strangers.append((function, named))
            self._todo += [names.get(name, GONE) for name in named]
        elif function.__closure__ or function.__dict__:
            self.functions.append(function)
        self._todo += state_of(function)

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
            global_of(name, function)
            for function, names in self.strangers
            if nested or is_strange(function.__globals__)
            for name in names
        ]


def wrapped(method: Any) -> tuple[Any, ...]:
    """The functions of a staticmethod, classmethod or property."""
    if type(method) is property:
        return method.fget, method.fset, method.fdel
    return (method.__func__,)


# What functools.singledispatch() makes: its registry counts, not what it keeps to be quick.
_dispatching: Any = singledispatch(len)
DISPATCHES: CodeType = _dispatching.__code__


def state_of(function: Any) -> list[Any]:
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


def global_of(name: str, function: FunctionType) -> Any:
    return function.__globals__.get(name, GONE)


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
    if kind in FIXED or kind in (float, complex, FunctionType) or is_class(value):
        return True
    if kind in BOXES:
        return marshalled(value) is not None
    return not own_class(kind)


def function_print(function: FunctionType, *, nested: bool) -> Any:
    """Of a function's own state, its code included, and of the globals that go with it.

    Args:
        nested: Also those of modules that can be imported, which only go with what is by value.
    """
    state = state_of(function)
    names = function.__globals__
    if names is not main() and (is_strange(names) or (nested and _is_nested(function))):
        state = [*state, *Reach(function).strange_values(nested=nested)]
    return serial(function.__code__), tuple(map(fingerprint, state))

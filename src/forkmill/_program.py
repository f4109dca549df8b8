"""The user's program as a task sees it: what it names in `__main__`, as it is now (INV-11).

::

    Watch(f)        the names that f, its helpers and classes look at, and what they were
      same()        looked at with each submit or map call: is all as it was?
    Program         of a pool: a version for each name, 0 as long as it is what it was at the start
    ─── by the pickler (_by_value.py): (name, version, value) of each go along with a function ───
    enter(view)     in a worker, before a task of that function: each name at that version

Guarantees:
    * A task sees each global of `__main__` that it names as it was at its submit or map call, also
      when calls before and after a change take turns in one worker.
    * What a worker has set itself (an initializer, a task's `global x`) stays, until the sender's
      changes.
    * A look costs what the names cost: identity for what cannot change, a fingerprint for the rest.

Invariants:
    PROG-1  A fingerprint is equal only if the value would be sent as the same. Where to look
            through a large value would cost more than a tenth of the time (`_Credit`), it is known
            by identity and length, and a change that was found late is told in a warning.
    PROG-2  Nothing here keeps large values alive: fingerprints do, functions and classes do not.

Threads: any in the user's process (entries of plain dicts); in a worker its first one.
"""

from __future__ import annotations

import copyreg
import io
import marshal
import operator
import pickle
import sys
import warnings
import weakref
import zlib
from functools import partial, singledispatch
from opcode import opmap
from time import perf_counter
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class _Gone:
    """What stands where there is nothing; one object, in every process."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return "GONE"


GONE: Any = _Gone()

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


def is_class(obj: Any) -> TypeGuard[type]:
    """As isinstance(obj, type), which believes the `__class__` that a proxy shows."""
    return issubclass(type(obj), type)


def main() -> dict[str, Any]:
    return vars(sys.modules["__main__"])


def namespace(module: str) -> dict[str, Any]:
    return vars(sys.modules[module])


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


class _Print(pickle.Pickler):
    """Pickles, but for what has an identity that matters, or cannot be pickled."""

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType or kind in _FIXED or is_class(obj):
            return NotImplemented if obj is serial else (serial, serial(obj))
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


class Reach:
    """What running an object may look at, of `__main__`.

    Attributes:
        names: Globals, with what they are; GONE: there is none of that name (yet).
        functions: Of `__main__`, and others that lead to some.
        strangers: Functions with globals of their own, and those that they name.
        classes: Of `__main__`, or of no module.
    """

    def __init__(self, root: Any) -> None:
        self.names: dict[str, Any] = {}
        self.functions: list[FunctionType] = []
        self.strangers: list[tuple[FunctionType, tuple[str, ...]]] = []
        self.classes: list[type] = []
        self._main = main()
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
            if own_class(obj):
                self.classes.append(obj)
                todo += vars(obj).values()
                todo += obj.__bases__
        elif kind is MethodType:
            todo += (obj.__func__, obj.__self__)
        elif kind is partial:
            todo += (obj.func, obj.args, obj.keywords)
        elif kind in (staticmethod, classmethod):
            todo.append(obj.__func__)
        elif kind is property:
            todo += (obj.fget, obj.fset, obj.fdel)
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
        if function.__globals__ is self._main:
            self.functions.append(function)
            for name in names_of(function.__code__):
                if name not in self.names:
                    value = self.names[name] = self._main.get(name, GONE)
                    self._todo.append(value)
        elif _is_strange(function.__globals__):
            self.functions.append(function)
            names = names_of(function.__code__)
            self.strangers.append((function, names))
            self._todo += [function.__globals__.get(name, GONE) for name in names]
        elif function.__closure__ or function.__dict__:
            self.functions.append(function)
        self._todo += _state_of(function)

    def strange_values(self) -> list[Any]:
        """What strangers name, of their own globals."""
        return [_global(name, function) for function, names in self.strangers for name in names]


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
    return {
        name: value
        for name, value in vars(kind).items()
        if type(value) not in (MemberDescriptorType, GetSetDescriptorType) and name not in _MADE
    }


# What the interpreter and the standard library keep in a class.
_MADE = frozenset({"__dict__", "__weakref__", "__slots__", "_abc_impl", "__slotnames__",
                   "__annotations_cache__"})  # fmt: skip


def builds_nothing(value: Any) -> bool:
    """Whether no class of the program's has to be complete for a value to be rebuilt."""
    kind = type(value)
    if kind in _FIXED or kind in (float, complex, FunctionType) or is_class(value):
        return True
    if kind in _BOXES:
        return _marshalled(value) is not None
    return not own_class(kind)


def function_print(function: FunctionType) -> Any:
    """Of a function's own state, its code included."""
    state = _state_of(function)
    if function.__globals__ is not main() and _is_strange(function.__globals__):
        state = [*state, *Reach(function).strange_values()]
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
            warnings.warn(
                f"{self.what} of __main__ was changed in place, and is too large to be looked "
                "through with each submit: tasks submitted just before now may have seen it as it "
                "was. Pass it as an argument, or bind the name to a new object.",
                RuntimeWarning,
                stacklevel=2,
            )
        return False


class _Class:
    """Which objects a class has as attributes."""

    __slots__ = ("ids", "keep", "kind", "parts", "prints")

    def __init__(self, kind: type) -> None:
        self.kind = weakref.ref(kind)
        self._look(kind)

    def _look(self, kind: type) -> None:
        values = list(vars(kind).values())
        self.ids = list(map(id, values))
        self.prints = {name: id(value) for name, value in class_attributes(kind).items()}
        # An id means nothing once its object is gone: plain values are kept, of others it is seen.
        self.keep = [value for value in values if type(value) in _KEPT]
        self.parts = [one for value in values if (one := _weakly(value)) is not None]

    def same(self) -> bool:
        kind = self.kind()
        if kind is None or None in map(operator.call, self.parts):
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
        quick: (the names of `__main__`, [(name, value)] of plain values and of what is not there,
            [(name, weak reference)] of functions and classes, [(weak reference to a function,
            its code)], whether there is more to look at): what Submitter looks at without a call
            of Python code.
    """

    __slots__ = ("_classes", "_credit", "_items", "quick")

    def __init__(self, reach: Reach, credit: _Credit) -> None:
        self._credit = credit
        self._classes = [_Class(kind) for kind in reach.classes]
        self._items: list[_Item] = []
        names = main()
        values, references = [], []
        for name, value in reach.names.items():
            kind = type(value)
            if kind in _FIXED or kind is float or value is GONE:
                values.append((name, value))
            elif kind is FunctionType or is_class(value):
                references.append((name, weakref.ref(value)))
            else:
                self._items.append(_Item(f"global {name!r}", partial(names.get, name, GONE)))
        codes = [(weakref.ref(function), function.__code__) for function in reach.functions]
        for function in reach.functions:
            if function.__defaults__ or function.__closure__ or function.__dict__ or (
                function.__kwdefaults__
            ):  # fmt: skip
                what = f"what {function.__qualname__}() holds"
                self._item(what, function, _state_of, _outsides)
        for function, globals_ in reach.strangers:
            for name in globals_:
                self._item(f"global {name!r}", function, partial(_global, name))
        for kind in reach.classes:
            for name, value in class_attributes(kind).items():
                if type(value) in _BOXES or not _is_attribute(name, value):
                    self._item(f"{kind.__qualname__}.{name}", kind, partial(_attribute, name))
        more = bool(self._classes or self._items)
        self.quick = (names, tuple(values), tuple(references), tuple(codes), more)

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
        names, values, references, codes, _ = self.quick
        for name, value in values:
            if names.get(name, GONE) is not value:
                return False
        for name, reference in references:
            if names.get(name, GONE) is not reference():
                return False
        for reference, code in codes:
            if getattr(reference(), "__code__", None) is not code:
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
    if name[:2] == "__" or is_class(value):
        return True
    return type(value) in _FIXED or type(value) in (
        FunctionType, float, complex, property, staticmethod, classmethod,
    )  # fmt: skip


# ------------------------------------------------------------------ versions, of a pool


class Program:
    """What was where when a pool was made, and how often that has changed since."""

    def __init__(self) -> None:
        self.credit = _Credit()
        self._then: dict[str, Any] = {}
        self._classes: dict[tuple[str, int], dict[str, Any]] = {}
        self._versions: dict[Any, tuple[int, Any]] = {}
        named = _names_in_sight()
        for name, value in list(main().items()):
            if name in OWN or name in ORIGIN:
                continue
            self._then[name] = _then(value, looked=name in named)
            if own_class(value):
                self._classes[serial(value)] = _class_then(value)

    def version(self, name: str, value: Any) -> int:
        """The version of a global that is `value` now; 0: what it was at the start."""
        return self._version(name, value, self._then.get(name, GONE))

    def attribute(self, kind: type, name: str, value: Any) -> int:
        """As version(), of a class's attribute; for a class that came later, since first asked."""
        key = serial(kind)
        then = self._classes.get(key)
        if then is None:
            then = self._classes[key] = _class_then(kind)
        return self._version((key, name), value, then.get(name, GONE))

    def lost(self, kind: type) -> list[str]:
        """Attributes that a class had at the start, and has no more."""
        now = vars(kind)
        return [name for name in self._classes.get(serial(kind), ()) if name not in now]

    def _version(self, place: Any, value: Any, then: Any) -> int:
        known, now = self._versions.get(place), _print(value)
        if known is None and then is GONE:
            number = int(value is not GONE)
        elif known is None:
            number = int(then != _then(value, looked=then[0] == "looked"))
        elif known[1] == now:
            return known[0]
        else:
            number = known[0] + 1
        self._versions[place] = (number, now)
        return number

    def changed(self, reach: Reach) -> bool:
        """Whether anything is not what it was at the start."""
        return any(self.version(name, value) for name, value in reach.names.items()) or any(
            self.lost(kind)
            or any(self.attribute(kind, *pair) for pair in class_attributes(kind).items())
            for kind in reach.classes
        )


def _print(value: Any, limit: int = sys.maxsize) -> Any:
    if type(value) is FunctionType:
        return serial(value), function_print(value)
    return fingerprint(value, limit)


def _then(value: Any, *, looked: bool = False) -> tuple[Any, ...]:
    """What a value was at the start, for a comparison later.

    To look through all that a program has might take long, and run code of the user's: what is
    not `looked` at for a reason, and not plain data, has its identity only.
    """
    if looked or _is_data(value):
        return "looked", _print(value, _SMALL)
    return "itself", serial(value)


def _class_then(kind: type) -> dict[str, Any]:
    return {name: _then(value, looked=True) for name, value in class_attributes(kind).items()}


def _is_data(value: Any) -> bool:
    kind: Any = type(value)
    if kind in _FIXED or kind in _BOXES or kind in (float, complex, FunctionType):
        return True
    if is_class(value) or kind.__module__ in _DATA:
        return True
    return kind.__module__ == "__main__" and pickles_as_it_is(kind)


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


def _names_in_sight() -> frozenset[str]:
    """The globals that code of `__main__` reads, as far as there is any yet."""
    names = main()
    codes = [value.__code__ for value in names.values() if type(value) is FunctionType]
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals is names:
            codes.append(frame.f_code)  # a script's own has all others in it
        frame = frame.f_back  # type: ignore[assignment]
    return frozenset(name for code in codes for name in names_of(code))


# --------------------------------------------------------------------------- in a worker


class _Cell:
    """A global at one version, as this process has it; views share it."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


View = dict[str, tuple[int, _Cell]]

_receiving = False
_cells: weakref.WeakValueDictionary[tuple[str, int], _Cell] = weakref.WeakValueDictionary()
_installed: View = {}
_at_first: dict[str, _Cell] = {}  # what a later version has replaced
_current: Any = None  # the view that was entered last


def receive() -> None:
    """From now on this process is a worker: what comes with its tasks is for its `__main__`."""
    global _receiving, _current
    _receiving, _current = True, None
    _cells.clear()
    _installed.clear()
    _at_first.clear()


def is_receiving() -> bool:
    return _receiving


def value_at(name: str, version: int) -> Any:
    """What a global of a worker is at a version, if that has come before; or GONE."""
    if not _receiving:
        return GONE
    cell = _cells.get((name, version))
    if cell is None and version == 0:
        cell = _at_first.get(name)
        if cell is None:
            return main().get(name, GONE)
    return GONE if cell is None else cell.value


def arrived(module: str, name: str, version: int | None, value: Any) -> None:
    """A global came along with something, and is there from now on.

    With a function it is part of the view that its tasks have, too.
    """
    if not module:
        return  # a class: what has changed of it is there now
    if module != "__main__" or not _receiving or version is None:
        namespace(module).setdefault(name, value)  # only what lacks
        return
    if version < 0:
        main()[name] = value
        return
    cell = _cells.get((name, version))
    if cell is None:
        cell = _cells[name, version] = _Cell(value)
    view = {name: (version, cell)}
    if _collected is not None:
        _collected.update(view)
    enter(view, whole=False)


_collected: View | None = None


def collect(load: Callable[[], Any]) -> tuple[Any, View]:
    """What load() gives, and the view that came along with it."""
    global _collected
    before, _collected = _collected, {}
    try:
        return load(), _collected
    finally:
        _collected = before


def enter(view: View, *, whole: bool = True) -> None:
    """Have `__main__` be as a view has it; `whole`: all that it does not name as at first."""
    global _current
    if view is _current:
        return
    names = main()
    for name, (version, cell) in view.items():
        now = _installed.get(name)
        if now is None:
            here = names.get(name, GONE)
            if version == 0 and here is not GONE:
                cell.value = here  # an initializer's, which stays
            elif here is not GONE or version:
                _at_first[name] = _Cell(here)
        elif now[0] == version:
            continue
        else:
            now[1].value = names.get(name, GONE)  # its own, if a task has set it
        _put(names, name, cell.value)
        _installed[name] = (version, cell)
    if whole:
        for name, (version, cell) in list(_installed.items()):
            if name not in view and version and _has_first(name):
                cell.value = names.get(name, GONE)
                first = _at_first[name]
                _put(names, name, first.value)
                _installed[name] = (0, first)
    _current = view if whole else None


def _has_first(name: str) -> bool:
    first = _at_first.get(name)
    return first is not None and first.value is not GONE


def _put(names: dict[str, Any], name: str, value: Any) -> None:
    if value is GONE:
        names.pop(name, None)
    else:
        names[name] = value

"""Which types a cache key can hold, and what their values are made of: the closed list.

A form takes a walk (walk.py) and a value, and gives the value's token, or opens the value: names
its children, whose tokens will make it.

Guarantees: exact types alone; one that derives from a type on the list may mean anything by it.

Threads: any.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    MappingProxyType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any, Protocol

from ..._late import WeakKeyDictionary
from .code import is_own
from .leaves import FLAT, Unstable, digest, named, of_flat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    Labels: TypeAlias = Callable[[int], str]  # the step to a child, by its position
    Form: TypeAlias = Callable[["Walker", Any], bytes | None]

__all__ = ["form_of"]


class Walker(Protocol):
    """What a form is given: the walk that looks at a value."""

    def open(self, value: Any, tag: bytes, children: list[Any], labels: list[str] | Labels) -> None:
        """Look through the children; their tokens, in this order, make the value's."""

    def number(self, obj: Any) -> bytes:
        """The token of a function or class."""

    def order(self, members: Iterable[Any]) -> list[Any]:
        """Members of a set, or keys, in an order that each process finds again."""

    def keep(self, made: Any) -> None:
        """Keep alive what was made for the walk."""

    def alone(self, value: Any) -> bytes:
        """The token of a value by itself."""

    def refuse(self, value: Any) -> Unstable:
        """What to raise for a value without a stable form."""


def form_of(kind: type) -> Form:
    """The form of an exact type; remembered, but for what is refused."""
    form = _FORMS.get(kind)
    if form is None:
        form = _found_form(kind)
        if form is not _refused:
            _FORMS[kind] = form
    return form


# ----------------------------------------------------------------------------- containers


_TEXTS = frozenset({str})


def _index(number: int) -> str:
    return f"[{number}]"


def _list(walk: Walker, value: Any) -> bytes | None:
    tag = b"L" if type(value) is list else b"("
    if FLAT.issuperset(map(type, value)):
        flat = of_flat(tag.lower() if tag == b"L" else b")", value)
        if flat is not None:
            return flat
    walk.open(value, tag, list(value), _index)
    return None


def _dict(walk: Walker, value: Any, tag: bytes = b"D") -> bytes | None:
    if _TEXTS.issuperset(map(type, value)):
        items = sorted(value.items(), key=_first)
        if tag == b"D" and FLAT.issuperset(map(type, value.values())):
            flat = of_flat(b"d", items)
            if flat is not None:
                return flat
    else:
        items = [(key, value[key]) for key in walk.order(value)]
    walk.open(value, tag, [part for item in items for part in item], _Keys(items))
    return None


def _first(item: tuple[str, Any]) -> str:
    return item[0]


class _Keys:
    """Steps to the entries of a dict."""

    __slots__ = ("_items",)

    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self._items = items

    def __call__(self, number: int) -> str:
        key = self._items[number // 2][0]
        name = repr(key) if type(key) in (str, int, bytes) else type(key).__qualname__
        return f"[{name}]" if number % 2 else f"<key {name}>"


def _ordered_dict(walk: Walker, value: Any) -> None:
    items = list(value.items())
    walk.open(value, b"O", [part for item in items for part in item], _Keys(items))


def _default_dict(walk: Walker, value: Any) -> None:
    items = [(key, value[key]) for key in walk.order(value)]
    children = [value.default_factory, *(part for item in items for part in item)]
    keys = _Keys(items)
    walk.open(value, b"E", children, lambda n: keys(n - 1) if n else ".default_factory")


def _set(walk: Walker, value: Any) -> None:
    members = walk.order(value)
    tag = b"{" if type(value) is set else b"}"
    walk.open(value, tag, members, lambda n: f"<member {type(members[n]).__qualname__}>")


def _parts(tag: bytes, *names: str) -> Form:
    """A form made of attributes."""
    labels = [f".{name}" for name in names]

    def form(walk: Walker, value: Any) -> None:
        children = [getattr(value, name) for name in names]
        walk.keep(children)
        walk.open(value, tag, children, labels)

    return form


def _text(tag: bytes, say: Callable[[Any], str]) -> Form:
    """A form that a text says whole."""
    return lambda _walk, value: named(tag, say(value))


# --------------------------------------------------------------- functions, classes, modules


def _function(walk: Walker, value: Any) -> bytes:
    return walk.number(value)


def _module(_walk: Walker, value: Any) -> bytes:
    return named(b"m", ModuleType.__getattribute__(value, "__name__"))


def _builtin(walk: Walker, value: Any) -> bytes | None:
    holder = value.__self__
    if holder is None or issubclass(type(holder), ModuleType):
        return named(b"n", f"{value.__module__}.{value.__qualname__}")
    walk.open(value, b"M", [value.__name__, holder], ["", ".__self__"])
    return None


def _of_class(walk: Walker, value: Any) -> None:
    walk.open(value, b"K", [value.__name__, value.__objclass__], ["", ".__objclass__"])


def _method(walk: Walker, value: Any) -> None:
    # Its class too: what a method calls of its own object is in there.
    children = [value.__func__, value.__self__, type(value.__self__)]
    walk.open(value, b"M", children, ["", ".__self__", ".__class__"])


def _by_name(walk: Walker, value: Any) -> bytes:
    """Something that can be called, of another package: numpy's ufuncs, C functions."""
    name = str(getattr(value, "__qualname__", None) or getattr(value, "__name__", "?"))
    modules = getattr(value, "__module__", None), type(value).__module__
    for module in modules:
        found = sys.modules.get(str(module))
        if found is not None and vars(found).get(name) is value and not is_own(vars(found)):
            return named(b"n", f"{module}.{name}")
    raise walk.refuse(value)


# ---------------------------------------------------------------------------- other types

_FORMS: WeakKeyDictionary[type, Any] = WeakKeyDictionary({
    list: _list,
    tuple: _list,
    dict: _dict,
    set: _set,
    frozenset: _set,
    slice: _parts(b":", "start", "stop", "step"),
    MappingProxyType: lambda walk, value: _dict(walk, value, b"P"),
    SimpleNamespace: lambda walk, value: walk.open(
        value, b"@", [vars(value)], [""]
    ),
    FunctionType: _function,
    MethodType: _method,
    BuiltinFunctionType: _builtin,
    MethodDescriptorType: _of_class,
    WrapperDescriptorType: _of_class,
    ClassMethodDescriptorType: _of_class,
    staticmethod: _parts(b"1", "__func__"),
    classmethod: _parts(b"2", "__func__"),
    property: _parts(b"3", "fget", "fset", "fdel"),
})  # fmt: skip


def _datetime(walk: Walker, value: Any) -> None:
    plain = value.replace(tzinfo=None).isoformat()
    tag = type(value).__name__
    walk.open(value, b"t", [tag, plain, value.fold, value.tzinfo], ["", "", "", ".tzinfo"])


def _deque(walk: Walker, value: Any) -> None:
    walk.open(value, b"Q", [value.maxlen, *value], lambda n: _index(n - 1))


def _array(_walk: Walker, value: Any) -> bytes:
    return named(b"A", value.typecode) + digest(b"", value)


def _per_worker(walk: Walker, value: Any) -> None:
    """By what makes it: the value itself may be anything."""
    factory, arguments, _ = value._parts()
    children = [factory, list(arguments)]
    walk.keep(children)
    walk.open(value, b"&", children, [" factory", " arguments"])


# (module, name) -> form. Looked up by what a class calls itself, and proved by finding it there.
_ELSEWHERE: dict[tuple[str, str], Any] = {
    ("array", "array"): _array,
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "Counter"): lambda walk, value: _dict(walk, value, b"C"),
    ("collections", "defaultdict"): _default_dict,
    ("collections", "deque"): _deque,
    ("datetime", "date"): _text(b"y", lambda value: value.isoformat()),
    ("datetime", "time"): _datetime,
    ("datetime", "datetime"): _datetime,
    ("datetime", "timedelta"): _parts(b"z", "days", "seconds", "microseconds"),
    ("datetime", "timezone"): _text(b"Z", repr),
    ("decimal", "Decimal"): _text(b"e", str),
    ("fractions", "Fraction"): _parts(b"/", "numerator", "denominator"),
    ("forkmill.codec.per_worker", "PerWorker"): _per_worker,
    ("forkmill.codec.share", "Shared"): _parts(b"$", "value"),
    ("functools", "partial"): _parts(b"p", "func", "args", "keywords"),
    ("functools", "_lru_cache_wrapper"): _parts(b"u", "__wrapped__"),
    ("functools", "cached_property"): _parts(b"4", "func"),
    ("functools", "partialmethod"): _parts(b"5", "func", "args", "keywords"),
    ("functools", "singledispatchmethod"): _parts(b"6", "dispatcher"),
    ("logging", "Logger"): _text(b"g", lambda value: value.name),
    ("logging", "RootLogger"): _text(b"g", lambda value: value.name),
    ("re", "Pattern"): _parts(b"x", "pattern", "flags"),
    ("uuid", "UUID"): _text(b"U", str),
    ("zoneinfo", "ZoneInfo"): _parts(b"Y", "key"),
}
_PATHS = ("PurePosixPath", "PosixPath", "PureWindowsPath", "WindowsPath")
_HINTS = frozenset({"typing", "types"})


def _found_form(kind: type) -> Any:
    where = kind.__module__, kind.__qualname__
    form = _ELSEWHERE.get(where)
    if form is not None and vars(sys.modules[where[0]]).get(where[1]) is kind:
        return form
    if where[0].startswith("pathlib") and where[1] in _PATHS:
        return _text(b"w", lambda value: f"{where[1]} {value}")
    if callable(getattr(kind, "__cache_key__", None)) and not issubclass(kind, type):
        return _own_key
    if issubclass(kind, type):
        return _function
    if issubclass(kind, ModuleType):
        return _module
    for recognise in (_enum, _dataclass, _named_tuple, _of_numpy):
        form = recognise(kind)
        if form is not None:
            return form
    if where[0] in _HINTS:
        return _hint
    if callable(getattr(kind, "__call__", None)) and _is_foreign(kind):  # noqa: B004
        return _by_name
    return _refused


def _refused(walk: Walker, value: Any) -> bytes:
    raise walk.refuse(value)


def _is_foreign(kind: type) -> bool:
    module: Any = sys.modules.get(kind.__module__)
    return type(module) is ModuleType and not is_own(vars(module))


def _hint(walk: Walker, value: Any) -> bytes | None:
    """list[int], Optional[T]: by its parts; typing.Any and others by their names."""
    arguments = getattr(value, "__args__", None)
    if type(arguments) is tuple:
        children = [getattr(value, "__origin__", None), *arguments]
        walk.keep(children)
        walk.open(value, b"h", children, _index)
        return None
    if "_Special" in type(value).__name__ or type(value).__name__ == "_AnyMeta":
        return named(b"H", repr(value))
    raise walk.refuse(value)


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _own_key(walk: Walker, value: Any) -> None:
    key = value.__cache_key__()
    walk.keep(key)
    children = [_class_name(type(value)), key]
    walk.open(value, b"k", children, ["", ".__cache_key__()"])


def _enum(kind: type) -> Any:
    enum = sys.modules.get("enum")
    if enum is None or not issubclass(kind, enum.Enum):
        return None

    def form(walk: Walker, value: Any) -> None:
        own = value._value_
        try:
            children = [_class_name(kind), value._name_, walk.alone(own)]
        except Unstable:  # an object() and the like: its name is all that it stands for
            children = [_class_name(kind), value._name_]
        walk.keep(children)
        walk.open(value, b"J", children, _index)

    return form


def _state_names(kind: type) -> list[str] | None:
    """Slots of a class written in Python; None if it derives from something that holds more."""
    names: list[str] = []
    for base in kind.__mro__[:-1]:
        if not base.__flags__ & (1 << 9) and base is not object:  # not a heap type: of C
            return None
        slots = vars(base).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _dataclass(kind: type) -> Any:
    fields: Any = getattr(kind, "__dataclass_fields__", None)
    slots = None if fields is None else _state_names(kind)
    if slots is None:
        return None
    order = sorted({*slots, *fields})

    def form(walk: Walker, value: Any) -> None:
        state = dict(getattr(value, "__dict__", ()))
        for name in order:
            if name not in state and hasattr(value, name):
                state[name] = getattr(value, name)
        names = sorted(state)
        children: list[Any] = [_class_name(kind)]
        children += [part for name in names for part in (name, state[name])]
        walk.keep(children)
        walk.open(value, b"=", children, lambda n: "" if n % 2 else f".{names[n // 2 - 1]}")

    return form


def _named_tuple(kind: type) -> Any:
    fields = getattr(kind, "_fields", None)
    if kind.__base__ is not tuple or type(fields) is not tuple or kind.__dictoffset__:
        return None

    def form(walk: Walker, value: Any) -> None:
        labels = ["", *(f".{name}" for name in fields)]
        children: list[Any] = [_class_name(kind) + repr(fields)]
        children += value
        walk.open(value, b"|", children, labels)

    return form


# ------------------------------------------------------------------------------- arrays


def _of_numpy(kind: type) -> Any:
    np: Any = sys.modules.get("numpy")
    if np is None or not hasattr(np, "ndarray"):
        return None
    if kind is np.ndarray:
        return _ndarray
    if issubclass(kind, np.generic) and _is_foreign(kind) and kind is not np.void:
        return _scalar
    if issubclass(kind, np.dtype) and _is_foreign(kind):
        return lambda _walk, value: named(b"q", _dtype(value))
    return None


@lru_cache(256)
def _dtype(dtype: Any) -> str:
    # The name too: types of other packages may say no more than their size in `str`. Not what it
    # shows, which may change on a journey.
    text = f"{dtype.str} {dtype.name}"
    return f"{text} {dtype!r}" if dtype.names or dtype.hasobject else text


def _scalar(walk: Walker, value: Any) -> bytes:
    if value.dtype.hasobject:
        raise walk.refuse(value)
    return named(b"v", _dtype(value.dtype)) + digest(b"", value.tobytes())


def _ndarray(walk: Walker, value: Any) -> bytes | None:
    dtype = value.dtype
    head = f"{_dtype(dtype)} {value.shape}"
    if dtype.names is not None:  # by field: what lies between them means nothing
        children = [head, *(value[name] for name in dtype.names)]
        walk.keep(children)
        walk.open(value, b"V", children, ["", *(f"[{name!r}]" for name in dtype.names)])
        return None
    if dtype.hasobject:
        flat = value.ravel().tolist()
        walk.keep(flat)
        walk.open(value, b"o", [head, *flat], lambda n: f".flat[{n - 1}]")
        return None
    return named(b"v", head) + digest(b"", _raw(value))


def _raw(array: Any) -> Any:
    """The bytes in C order, without a copy where they lie so."""
    try:
        return memoryview(array.ravel(order="C").view("u1"))
    except (TypeError, ValueError):  # nothing in it, or no such view of it
        return array.tobytes()

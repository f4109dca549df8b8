"""What a function or class is made of, as a cache key counts it.

::

    parts_of(f)     code  ────▶ one digest: opcodes, constants, names; no lines, path, docstring
                    state ────▶ (label, object): defaults, closure, globals that the code names,
                                of a module of the user's own what the code takes out of it

Guarantees:
    * Code differs if, and only if, it was compiled by another minor version of Python or says
      something else: moving it, its docstring and its own name do not count.
    * The user's own is what lies outside of the standard library and site-packages, and
      `__main__`; it is looked into. Other packages' functions and classes are known by their names,
      nested ones, which have none, by their code and what they hold.

Threads: any; the tables here are of what cannot change.
"""

from __future__ import annotations

import marshal
import os
import sys
from hashlib import blake2b
from opcode import hasconst, opmap
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ABSENT", "Parts", "code_of", "is_own", "parts_of"]

# Flags, as `inspect` names them; the last is of Python 3.14.
_OPTIMIZED, _HAS_DOCSTRING = 0x1, 0x4000000
_CACHE, _EXTENDED = opmap["CACHE"], opmap["EXTENDED_ARG"]
_CONSTANTS = frozenset(hasconst)
_STORE_NAME = opmap["STORE_NAME"]
# How far the number of a name is shifted in an argument.
_GLOBALS = {opmap["LOAD_GLOBAL"]: 1, opmap["LOAD_NAME"]: 0}
if "LOAD_FROM_DICT_OR_GLOBALS" in opmap:
    _GLOBALS[opmap["LOAD_FROM_DICT_OR_GLOBALS"]] = 0
_ATTRIBUTES = {opmap["LOAD_ATTR"]: int(sys.version_info >= (3, 12))}
if sys.version_info < (3, 12):
    _ATTRIBUTES[opmap["LOAD_METHOD"]] = 0
# What the compiler has a class body say of where it stands, and in no order.
_SAID_OF_PLACE = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})
_MINOR = repr(sys.version_info[:2]).encode()


class _Absent:
    """Stands for a name that is not there, a cell that is empty."""


ABSENT = _Absent()


class Compiled(NamedTuple):
    """One code object, nested ones included.

    Attributes:
        digest: Of what it says.
        names: The globals that it reads, each with the attributes taken of it: () the value itself.
    """

    digest: bytes
    names: dict[str, frozenset[tuple[str, ...]]]


_known: dict[int, tuple[CodeType, Compiled]] = {}


def code_of(code: CodeType) -> Compiled:
    """What a code object says. Remembered: it cannot change."""
    known = _known.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    names: dict[str, set[tuple[str, ...]]] = {}
    digest = _compiled(code, names)
    found = Compiled(digest, {name: frozenset(names[name]) for name in sorted(names)})
    if len(_known) > 4096:
        _known.clear()
    _known[id(code)] = code, found
    return found


def _compiled(code: CodeType, names: dict[str, set[tuple[str, ...]]]) -> bytes:
    said = blake2b(_MINOR, digest_size=32)
    shape = (
        code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount,
        code.co_flags & ~_HAS_DOCSTRING, code.co_names, code.co_varnames, code.co_freevars,
        code.co_cellvars, code.co_exceptiontable,
    )  # fmt: skip
    said.update(marshal.dumps(shape, 2))
    steps = list(_steps(code))
    for at, (operation, argument) in enumerate(steps):
        said.update(bytes((operation,)))
        if operation not in _CONSTANTS:
            said.update(argument.to_bytes(4, "little"))
        elif not _is_of_place(code, steps, at):
            said.update(_constant(code.co_consts[argument], names))
    for name, attributes in _reads(code, steps):
        names.setdefault(name, set()).add(attributes)
    return said.digest()


def _steps(code: CodeType) -> Iterator[tuple[int, int]]:
    """Opcodes with their whole arguments. Constants go by what they are, not by their number:
    a docstring shifts that."""
    raw, high = code.co_code, 0
    for at in range(0, len(raw), 2):
        operation, argument = raw[at], raw[at + 1] | high
        high = argument << 8 if operation == _EXTENDED else 0
        if operation not in (_CACHE, _EXTENDED):
            yield operation, argument & 0xFFFFFFFF


def _is_of_place(code: CodeType, steps: list[tuple[int, int]], at: int) -> bool:
    """Whether a constant of a class body is where it stands, or its docstring."""
    if code.co_flags & _OPTIMIZED or at + 1 == len(steps):
        return False
    operation, argument = steps[at + 1]
    return operation == _STORE_NAME and code.co_names[argument] in _SAID_OF_PLACE


def _constant(value: Any, names: dict[str, set[tuple[str, ...]]]) -> bytes:
    kind = type(value)
    if kind is CodeType:
        return b"c" + _compiled(value, names)
    if kind is tuple:
        parts = [_constant(part, names) for part in value]
        return b"t%d;" % len(parts) + b"".join(parts)
    if kind is frozenset:
        return b"f%d;" % len(value) + b"".join(sorted(_constant(part, names) for part in value))
    if kind is slice:  # of Python 3.14
        return b"s" + _constant((value.start, value.stop, value.step), names)
    return marshal.dumps(value, 2)  # numbers, texts, bytes, None, ...


def _reads(code: CodeType, steps: list[tuple[int, int]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Globals that are read, each with the attributes that are taken of it at once."""
    for at, (operation, argument) in enumerate(steps):
        shift = _GLOBALS.get(operation)
        if shift is None:
            continue
        attributes = []
        for following, number in steps[at + 1 :]:
            deeper = _ATTRIBUTES.get(following)
            if deeper is None:
                break
            attributes.append(code.co_names[number >> deeper])
        yield code.co_names[argument >> shift], tuple(attributes)


# -------------------------------------------------------------------------- whose it is

_STANDARD = os.path.dirname(os.path.realpath(os.__file__)) + os.sep
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OURS = __name__.partition(".")[0]
_own: dict[tuple[str, str | None], bool] = {}


def is_own(names: dict[str, Any]) -> bool:
    """Whether a module is the user's own, by its globals."""
    name, file = names.get("__name__"), names.get("__file__")
    key = str(name), file if type(file) is str else None
    known = _own.get(key)
    if known is None:
        known = _own[key] = _is_own(*key)
    return known


def _is_own(name: str, file: str | None) -> bool:
    top = name.partition(".")[0]
    if name == "__main__":
        return True
    if top == _OURS:
        return False
    if file is None:  # made by hand, or part of the interpreter
        return top not in sys.builtin_module_names and top not in sys.stdlib_module_names
    path = os.path.realpath(file)
    return not path.startswith(_STANDARD) and not any(part in path for part in _PACKAGES)


def _is_named(obj: Any) -> bool:
    """Whether a function is found by its name in another package.

    What functools.wraps() has made calls itself what it wraps: it is of the user's own.
    """
    found: Any = sys.modules.get(str(obj.__module__))
    if found is None or is_own(vars(found)):
        return False
    for name in str(getattr(obj, "__qualname__", "<")).split("."):
        try:
            found = vars(found)[name]
        except (KeyError, TypeError):
            return False
    found = getattr(found, "__func__", found)  # a static method
    return found is obj


# ----------------------------------------------------------------------- what is looked into


class Parts(NamedTuple):
    """A function or class, taken apart.

    Attributes:
        known: What it is, as bytes.
        labels: A step for each child, as it is written behind the path that led here.
        children: What it has.
    """

    known: bytes
    labels: list[str]
    children: list[Any]


def parts_of(obj: Any) -> Parts:
    """What a function or class counts as."""
    return _function(obj) if type(obj) is FunctionType else _class(obj)


def _named(obj: Any) -> Parts:
    return Parts(f"{obj.__module__}.{obj.__qualname__}".encode("utf-8", "surrogatepass"), [], [])


def _function(function: FunctionType) -> Parts:
    own = is_own(function.__globals__)
    if not own and _is_named(function):
        return _named(function)
    dispatched = _dispatched(function)
    if dispatched is not None:
        return dispatched
    compiled = code_of(function.__code__)
    found = [*_held(function)]
    if own:
        found += _globals(function, compiled)
    return Parts(compiled.digest, [label for label, _ in found], [child for _, child in found])


def _held(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Defaults and what the closure holds."""
    code = function.__code__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][code.co_argcount - len(defaults) :]
    for name, value in zip(names, defaults, strict=True):
        yield f"(default {name})", value
    for name, value in sorted((function.__kwdefaults__ or {}).items()):
        yield f"(default {name})", value
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"(closure {name})", cell.cell_contents
        except ValueError:  # nothing yet
            yield f"(closure {name})", ABSENT


def _globals(function: FunctionType, compiled: Compiled) -> Iterator[tuple[str, Any]]:
    """What a function of the user's own names: (step, value), in one order."""
    names = function.__globals__
    builtins = names.get("__builtins__", {})
    if type(builtins) is ModuleType:
        builtins = vars(builtins)
    for name, attributes in compiled.names.items():
        value = names.get(name, ABSENT)
        if value is ABSENT:
            value = builtins.get(name, ABSENT)
        yield f"(global {name})", value
        if type(value) is ModuleType and is_own(vars(value)):
            for steps in sorted(attributes):
                if steps:
                    yield _out_of(value, name, steps)


def _out_of(module: ModuleType, name: str, steps: tuple[str, ...]) -> tuple[str, Any]:
    """What code takes out of a module of the user's own, down to the first thing in one."""
    found: Any = module
    for step in steps:
        if type(found) is not ModuleType or not is_own(vars(found)):
            break
        inner = f"{found.__name__}.{step}"
        found, name = vars(found).get(step, sys.modules.get(inner, ABSENT)), f"{name}.{step}"
    return f"(global {name})", found


def _dispatched(function: FunctionType) -> Parts | None:
    """Of what functools.singledispatch() made: its registry, not what it keeps to be quick."""
    registry = getattr(function, "registry", None)
    if registry is None or function.__code__.co_filename != _functools_file():
        return None
    pairs = sorted(registry.items(), key=lambda pair: (pair[0].__module__, pair[0].__qualname__))
    labels = [f"[{kind.__qualname__}]" for kind, _ in pairs for _ in range(2)]
    return Parts(b"singledispatch", labels, [part for pair in pairs for part in pair])


def _functools_file() -> str:
    import functools

    return functools.singledispatch.__code__.co_filename


# What the interpreter, abc, enum and dataclasses keep in a class.
_MADE = frozenset({
    "__dict__", "__weakref__", "__slots__", "__slotnames__", "__module__", "__qualname__",
    "__firstlineno__", "__static_attributes__", "__doc__", "__annotations_cache__", "__annotate__",
    "__annotate_func__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__",
    "__match_args__", "__dataclass_params__", "__dataclass_fields__",
    "_generate_next_value_", "_member_names_", "_member_map_", "_member_type_",
    "_value2member_map_", "_unhashable_values_", "_unhashable_values_map_", "_hashable_values_",
    "_value_repr_", "_use_args_", "_new_member_", "_singles_mask_", "_flag_mask_", "_all_bits_",
    "_boundary_", "_inverted_",
})  # fmt: skip
_FIELDS = ("member_descriptor", "getset_descriptor", "_tuplegetter")
_GENERATED = ("<string>", "<attrs generated")  # files of methods that a decorator wrote


def _class(kind: type) -> Parts:
    module: Any = sys.modules.get(kind.__module__)
    names = vars(module) if type(module) is ModuleType else {"__name__": kind.__module__}
    if not is_own(names):
        return _named(kind)
    found: list[tuple[str, Any]] = [("(metaclass)", type(kind))]
    found += [(f"(base {base.__qualname__})", base) for base in kind.__bases__]
    found += sorted(_attributes(kind), key=lambda one: one[0])
    name = kind.__qualname__.encode("utf-8", "surrogatepass")
    return Parts(name, [label for label, _ in found], [child for _, child in found])


def _attributes(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class statement says; not what was made of it."""
    members = getattr(kind, "_member_map_", {})
    for name, value in vars(kind).items():
        if name in _MADE or name in members or type(value).__name__ in _FIELDS:
            continue
        function = getattr(value, "__func__", value)
        code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
        if code is not None and code.co_filename.startswith(_GENERATED):
            continue
        if name == "__annotations__":
            yield f".{name}", sorted((key, _annotation(one)) for key, one in value.items())
        elif name[:2] != "__" or code is not None or _is_plain(value):
            yield f".{name}", value
    for name, member in members.items():
        yield f".{name}", member._value_
    if "__dataclass_params__" in vars(kind):
        yield "(dataclass)", repr(vars(kind)["__dataclass_params__"])
    for name, field in vars(kind).get("__dataclass_fields__", {}).items():
        flags = (field.init, field.repr, bool(field.hash), field.compare, bool(field.kw_only))
        yield f".{name}", flags
        for what in ("default", "default_factory"):
            value = getattr(field, what)
            if type(value).__name__ != "_MISSING_TYPE":
                yield f".{name}", value


def _is_plain(value: Any) -> bool:
    return type(value) in (bool, int, float, str, bytes)


def _annotation(value: Any) -> str:
    """By its text: what an annotation leads to counts where a function names it."""
    return value if type(value) is str else repr(value).partition(" at 0x")[0]

"""Objects to bytes and back: pickle 5, functions by reference or value.

Guarantees:
    * What encodes here decodes there: an object goes by reference only if the other process has
      it (inherited by fork) or can import it; else by value, with cloudpickle.
    * What cannot be sent raises SerializationError with the path to the culprit.
    * dump_failure() never raises (see _failures.py).

Invariants:
    INV-1  The common case is one pickle.dumps() with no Python code per object. cloudpickle is
           imported when it is first needed (about 20 ms).
    INV-2  All functions of __main__ that are sent by value to one worker share that worker's
           __main__ namespace, so that an initializer's `global x` is seen by the tasks.

Threads: any; a Codec's caches are plain dicts with idempotent entries.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import sys
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import (
    BuiltinFunctionType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
)
from typing import Any

from . import _failures
from ._failures import RemoteTraceback
from ._process import interrupted
from ._reducers import (
    ARROW,
    TABLE,
    WithArrow,
    has_arrow,
    know_multiprocessing,
    reduce_arrow,
)
from .errors import SerializationError

__all__ = [
    "Codec",
    "Functions",
    "RemoteTraceback",
    "Snapshot",
    "dump_failure",
    "dumps",
    "load_failure",
    "loads",
]

Buffers = Sequence[memoryview]
_pickle = pickle.dumps
_unpickle = pickle.loads
_GONE = object()

# A large bytearray is its own buffer: pickle would copy it before it is copied to where it goes.
_APART = 1 << 16  # bytes: what goes through an arena; smaller ones are copied in no time
_BYTEARRAY = b"\x80\x05cbuiltins\nbytearray\n\x97\x85R."  # bytearray(the next buffer)


class Snapshot:
    """What a forked worker inherits: taken when the pool is created.

    Attributes:
        modules: Names of the modules that were loaded.
        path: sys.path.
    """

    def __init__(self) -> None:
        self.modules = frozenset(sys.modules)
        self.path = tuple(sys.path)
        self._main = {
            name: _reference(value) for name, value in list(_main().items()) if _is_code(value)
        }

    def main(self, name: str) -> Any:
        """The function or class that __main__ had under that name, if it is still alive."""
        reference = self._main.get(name)
        return _GONE if reference is None else reference()


def _main() -> dict[str, Any]:
    return vars(sys.modules["__main__"])


def _is_code(obj: Any) -> bool:
    """Whether it is a function or a class of __main__: what pickle would send by its name."""
    return (type(obj) is FunctionType or isinstance(obj, type)) and (
        getattr(obj, "__module__", None) == "__main__"
    )


def _reference(obj: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(obj)
    except TypeError:
        return lambda: obj


# ------------------------------------------------------------- by value: __main__

# What was put into this process's __main__ from outside, name by name; and, in a forked worker,
# what it inherited. A newer version of a helper replaces these, and nothing else: a global that
# an initializer or a task has set stays (INV-2).
_delivered: dict[str, Any] = {}
_inherited: Snapshot | None = None


def _main_function(code: Any, cells: int | None) -> FunctionType:
    """A function in this process's __main__; its state comes after, so it may refer to itself."""
    from cloudpickle.cloudpickle import _make_empty_cell

    closure = None if cells is None else tuple(_make_empty_cell() for _ in range(cells))
    return FunctionType(code, _main(), None, None, closure)


def _set_main_function(function: FunctionType, state: tuple[dict[str, Any], Any]) -> None:
    from cloudpickle.cloudpickle import _function_setstate

    attributes, slots = state
    main = _main()
    for name, value in slots["__globals__"].items():
        if name not in main or (_is_code(value) and _is_ours(name, main[name])):
            main[name] = _delivered[name] = value
    _function_setstate(function, (attributes, {**slots, "__globals__": {}}))


def _is_ours(name: str, value: Any) -> bool:
    if _delivered.get(name, _GONE) is value:
        return True
    return _inherited is not None and _inherited.main(name) is value


_by_value_class: Any = None


def _by_value() -> Any:
    """The pickler that sends by value whatever the other side cannot find by name."""
    global _by_value_class
    if _by_value_class is None:
        _by_value_class = _make_by_value()
    return _by_value_class


def _make_by_value() -> Any:
    from cloudpickle import cloudpickle

    class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: Any = ChainMap(TABLE, cloudpickle.Pickler.dispatch_table)  # noqa: RUF012

        def __init__(
            self, codec: Codec, file: io.BytesIO, callback: Any, persistent: Any = None
        ) -> None:
            if codec.reducers:  # before the pickler looks for its table
                self.dispatch_table = ChainMap(type(self).dispatch_table, codec.reducers)
            super().__init__(file, 5, callback)
            self._codec = codec
            self._persistent = persistent
            self._arrow = has_arrow()

        def reducer_override(self, obj: Any) -> Any:
            is_function = type(obj) is FunctionType
            if not is_function and not issubclass(type(obj), type):
                return reduce_arrow(obj) if self._arrow else NotImplemented
            name = getattr(obj, "__module__", None)
            if name == "__main__":
                if self._codec.inherits(obj):
                    return NotImplemented
                if is_function and obj.__globals__ is _main():
                    return self._reduce_main(obj)
            elif isinstance(name, str) and not self._codec.reachable(name):
                if is_function:
                    return self._dynamic_function_reduce(obj)
                if obj.__flags__ & (1 << 9):  # Py_TPFLAGS_HEAPTYPE: C's own cannot be rebuilt
                    return cloudpickle._dynamic_class_reduce(obj)
            return super().reducer_override(obj)

        def _reduce_main(self, function: FunctionType) -> tuple[Any, ...]:
            cells = None if function.__closure__ is None else len(function.__closure__)
            state = cloudpickle._function_getstate(function)
            new = (function.__code__, cells)
            return _main_function, new, state, None, None, _set_main_function

    class ByValueReferring(ByValue):
        def persistent_id(self, obj: Any) -> int | None:
            number: int | None = self._persistent(obj)
            return number

    return ByValue, ByValueReferring


class _Referring(pickle.Pickler):
    """Sends some objects as numbers: what is in `inherit=`, what a failure leads to."""

    def __init__(self, codec: Codec, file: io.BytesIO, callback: Any, persistent: Any) -> None:
        if codec.reducers:
            table: Any = copyreg.dispatch_table
            self.dispatch_table = ChainMap(table, codec.reducers)
        super().__init__(file, 5, buffer_callback=callback)
        self._persistent = persistent
        self._arrow = has_arrow()

    def persistent_id(self, obj: Any) -> int | None:
        number: int | None = self._persistent(obj)
        return number

    def reducer_override(self, obj: Any) -> Any:
        return reduce_arrow(obj) if self._arrow else NotImplemented


def _no_link(_obj: Any) -> None:
    return None


class _Resolving(pickle.Unpickler):
    """The other end of both: numbers from 0 on are of `inherit=`, those below 0 are links."""

    def __init__(
        self, file: io.BytesIO, buffers: Any, inherit: tuple[Any, ...], links: Sequence[Any] = ()
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._inherit = inherit
        self._links = links

    def persistent_load(self, number: Any) -> Any:
        return self._inherit[number] if number >= 0 else self._links[-1 - number]


# ------------------------------------------------------------------------- Codec


class Codec:
    """Encodes for, and decodes from, the processes on the other side.

    Args:
        mode: "fork": they are forked from this process and have what the snapshot shows.
            "exec": fresh interpreters, which have what they can import.
        inherit: Objects that both sides have, in the same order; they go as references.
        snapshot: What was there when the pool was made; default: what is there now.
    """

    def __init__(
        self, mode: str = "fork", inherit: Sequence[Any] = (), snapshot: Snapshot | None = None
    ) -> None:
        if mode not in ("fork", "exec"):
            raise ValueError(f"mode must be 'fork' or 'exec', not {mode!r}")
        self.mode = mode
        self.inherit = tuple(inherit)
        self.snapshot = Snapshot() if snapshot is None else snapshot
        self._forks = mode == "fork"
        self.by_value = 0  # times that cloudpickle had to do it
        self._pid = os.getpid()
        self._inherit_ids = {id(obj): index for index, obj in enumerate(self.inherit)}
        self._persistent = self.inherited_index if self.inherit else None
        self._reachable: dict[str, bool] = {"__main__": False, "builtins": True}
        # Names in a pickle that ask for a second look: Arrow, modules known not to be reachable.
        self._marks: tuple[bytes, ...] = (ARROW,) if has_arrow() else ()
        # Under fork the workers have all that is loaded now: to look through it right after the
        # fork would touch, and so copy, a page for every module.
        self._modules_seen = len(sys.modules) if self._forks else 0
        # While it encodes what processes are born with: multiprocessing's own, by type.
        self.reducers: dict[Any, Any] = {}
        know_multiprocessing()

    # -- values

    def dumps(self, obj: Any) -> tuple[bytes, Buffers]:
        """Encode an argument: the pickle, and its out-of-band buffers.

        Raises:
            SerializationError: It cannot be sent; the message names the path to the culprit.
        """
        return self._dumps(obj, "argument")

    def dumps_result(self, obj: Any) -> tuple[bytes, Buffers]:
        """As dumps(), for what a task returned."""
        return self._dumps(obj, "result")

    def _dumps(
        self, obj: Any, what: str, persistent: Callable[[Any], int | None] | None = None
    ) -> tuple[bytes, Buffers]:
        buffers: list[pickle.PickleBuffer] = []
        persistent = persistent or self._persistent or (_no_link if self.reducers else None)
        try:
            if persistent is not None:
                data = self._pickle_with(_Referring, obj, buffers.append, persistent)
            elif type(obj) is bytearray and len(obj) >= _APART:
                return _BYTEARRAY, [memoryview(obj)]
            else:
                data = _pickle(obj, 5, buffer_callback=buffers.append)
            views = [buffer.raw() for buffer in buffers] if buffers else []
        except MemoryError:
            raise
        except Exception as error:
            if interrupted(error):
                raise
            return self._dumps_by_value(obj, what, persistent)
        # find() and not `in`, which first takes the bytes for a number: 60 ns instead of 290.
        if data.find(b"__main__") >= 0 or self._marks or len(sys.modules) != self._modules_seen:
            if self._needs_value(data):
                return self._dumps_by_value(obj, what, persistent)
            if ARROW in self._marks and persistent is None and data.find(ARROW) >= 0:
                buffers.clear()
                file = io.BytesIO()
                WithArrow(file, buffers.append).dump(obj)
                return file.getvalue(), [buffer.raw() for buffer in buffers]
        return data, views

    def _pickle_with(self, pickler: Any, obj: Any, callback: Any, persistent: Any) -> bytes:
        file = io.BytesIO()
        pickler(self, file, callback, persistent).dump(obj)
        return file.getvalue()

    def _dumps_by_value(self, obj: Any, what: str, persistent: Any) -> tuple[bytes, Buffers]:
        """Encode again, with cloudpickle."""
        try:
            return self._by_value(obj, persistent)
        except MemoryError:
            raise
        except Exception as error:
            if interrupted(error):
                raise
            raise self._refusal(obj, what, error)  # noqa: B904

    def _refusal(self, obj: Any, what: str, error: BaseException) -> SerializationError:
        # Here and in _find() no exception may stay behind in a local: its traceback leads to the
        # frame, the frame to it, and that cycle would keep the arguments alive.
        try:
            path, error, kind = self._find(obj, error)
            refusal = SerializationError(_refusal_text(what, path, error, kind), path=path)
            refusal.__cause__ = error
            return refusal
        finally:
            del error
            refusal = None  # type: ignore[assignment]

    def _by_value(self, obj: Any, persistent: Any) -> tuple[bytes, Buffers]:
        self.by_value += 1
        pickler = _by_value()[persistent is not None]
        buffers: list[pickle.PickleBuffer] = []
        data = self._pickle_with(pickler, obj, buffers.append, persistent)
        try:
            return data, [buffer.raw() for buffer in buffers]
        except BufferError:  # not contiguous: in band, if at all
            return self._pickle_with(pickler, obj, None, persistent), []

    def loads(self, data: Any, buffers: Any = ()) -> Any:
        """Decode what dumps() made on the other side."""
        if self.inherit:
            return _Resolving(io.BytesIO(data), buffers, self.inherit).load()
        return _unpickle(data, buffers=buffers)

    # -- what the other side has

    def inherited_index(self, obj: Any) -> int | None:
        """Index of an object of `inherit=`, or None."""
        return self._inherit_ids.get(id(obj))

    def inherits(self, obj: Any) -> bool:
        """Whether the other side has this function or class of __main__ under the same name."""
        if not self._forks:
            return False
        top, *rest = getattr(obj, "__qualname__", "").split(".")
        found = self.snapshot.main(top)
        for name in rest:
            found = getattr(found, name, _GONE)
        return found is obj and _main().get(top, _GONE) is self.snapshot.main(top)

    def reachable(self, module: str) -> bool:
        """Whether the other side can import a module by its name."""
        known = self._reachable.get(module)
        if known is None:
            known = self._reachable[module] = self._is_reachable(module)
        return known

    def _is_reachable(self, name: str) -> bool:
        if self._forks and name in self.snapshot.modules:
            return True
        module = sys.modules.get(name)
        if module is None:
            return True  # not a module at all, or gone: let pickle say so
        spec = getattr(module, "__spec__", None)
        if spec is None:
            self._marks += (name.encode(),)
            return False
        try:
            found = self._is_found(name, spec)
        except Exception:  # a finder of somebody else's: believe the name
            return True
        if not found:
            self._marks += (name.encode(),)
        return found

    def _is_found(self, name: str, spec: Any) -> bool:
        """Whether import would find that very module with the paths the workers started with."""
        parent = name.rpartition(".")[0]
        path = None
        if parent:
            if not self.reachable(parent):
                return False
            path = getattr(sys.modules.get(parent), "__path__", None)
        for finder in sys.meta_path:
            where = path
            if path is None and getattr(finder, "__name__", "") == "PathFinder":
                where = list(self.snapshot.path)
            found = finder.find_spec(name, where)
            if found is not None:
                return bool(found.origin == spec.origin)
        # A module that its parent makes and registers by itself (os.path, six.moves).
        return bool(parent)

    def _needs_value(self, data: bytes) -> bool:
        """Whether a pickle names something that the other side cannot find."""
        if len(sys.modules) != self._modules_seen:
            self._look_for_foreign()
        if any(data.find(name) >= 0 for name in self._marks if name != ARROW):
            return True
        if data.find(b"__main__") < 0:
            return False
        return not self._forks or not self._main_is_inherited()

    def _look_for_foreign(self) -> None:
        """Find modules without a spec: made by hand, so nobody else can import them."""
        self._modules_seen = len(sys.modules)
        know_multiprocessing()
        if has_arrow() and ARROW not in self._marks:
            self._marks += (ARROW,)
        for name, module in list(sys.modules.items()):
            # Only real modules: to look into a lazy one may load it.
            if name in self._reachable or type(module) is not ModuleType:
                continue
            if module.__dict__.get("__spec__") is None:
                self.reachable(name)

    def _main_is_inherited(self) -> bool:
        """Whether every function and class of __main__ is the one that the workers inherited."""
        for name, value in list(_main().items()):
            if type(value) is not FunctionType and not isinstance(value, type):
                continue
            # pickle goes by an object's own name: other names for it do not matter.
            is_named = value.__name__ == name and value.__module__ == "__main__"
            if is_named and self.snapshot.main(name) is not value:
                return False
        return True

    # -- functions

    def dump_function(self, function: Any) -> bytes:
        """Encode a callable: by reference where the other side has it, else by value.

        Raises:
            SerializationError: It cannot be sent.
        """
        # Asked first, so that _dumps() knows the names to look for.
        inner = getattr(function, "func", None), getattr(function, "__self__", None)
        for part in (function, *inner):
            module = getattr(part, "__module__", None)
            if isinstance(module, str):
                self.reachable(module)
        data, buffers = self._dumps(function, "function")
        return _pickle((data, [bytearray(view) for view in buffers]), 5)

    def load_function(self, blob: Any) -> Any:
        """Decode what dump_function() made."""
        global _inherited
        if self._forks and os.getpid() != self._pid:
            _inherited = self.snapshot
        data, buffers = _unpickle(blob)
        return self.loads(data, buffers)

    @staticmethod
    def is_plain_function(function: Any) -> bool:
        """Whether it is sent once: a plain function, a builtin, a class; never a bound method."""
        if type(function) is FunctionType or isinstance(function, type):
            return True
        if type(function) is BuiltinFunctionType:
            owner = function.__self__
            return owner is None or isinstance(owner, ModuleType)
        return False

    # -- failures

    def dump_failure(self, error: BaseException, where: str = "task") -> bytes:
        """Encode an exception so that load_failure() has something true to raise. Never raises."""
        return _failures.dump(self, error, where)

    def load_failure(self, data: Any) -> BaseException:
        """The exception that dump_failure() encoded, with the remote frames below it.

        Never raises (but Ctrl-C): what cannot be loaded is returned as RemoteError, or as
        SerializationError if the report itself is broken.
        """
        return _failures.load(self, data)

    def dumps_failure(
        self, error: Any, number: Callable[[Any], int | None] | None
    ) -> tuple[bytes, Buffers]:
        """Encode one exception; objects to which `number` gives one go as that."""
        if number is None:
            return self._dumps(error, "exception")

        def persistent(obj: Any) -> int | None:
            link = number(obj)
            return self.inherited_index(obj) if link is None else -1 - link

        return self._dumps(error, "exception", persistent)

    def loads_failure(self, data: Any, buffers: Any, links: Sequence[Any]) -> Any:
        """Decode what dumps_failure() made; `links` has the objects that went as numbers."""
        return _Resolving(io.BytesIO(data), buffers, self.inherit, links).load()

    # -- what cannot be sent

    def _find(self, obj: Any, error: BaseException) -> tuple[str, BaseException, type]:
        """Path from `obj` to the innermost part that cannot be sent, why, and what it is."""
        path, budget, seen = "", 500, {id(obj)}
        found = True
        try:
            while found:
                found = False
                for step, child in _children(obj):
                    if id(child) in seen or isinstance(child, (int, str, bytes, float)):
                        continue
                    budget -= 1
                    why = self._refuses(child) if budget >= 0 else None
                    if why is not None:
                        path, obj, error, found = path + step, child, why, True
                        seen.add(id(child))
                        break
            return path, error, type(obj)
        finally:
            why = None
            del error

    def _refuses(self, obj: Any) -> BaseException | None:
        try:
            self._by_value(obj, self._persistent)
        except MemoryError:
            raise
        except Exception as error:
            if interrupted(error):
                raise
            return error
        return None


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    """The parts of an object with the step that leads to each. Looks, but runs no user code."""
    if isinstance(obj, dict):
        for key, value in list(dict.items(obj)):
            name = repr(key) if isinstance(key, (str, int, bytes)) else type(key).__name__
            yield f"[{name}]", value
            yield f"<key {name}>", key
    elif isinstance(obj, (list, tuple)):
        for index, value in enumerate(list(obj)):
            yield f"[{index}]", value
    elif isinstance(obj, (set, frozenset)):
        for value in list(obj):
            yield "<member>", value
    elif isinstance(obj, MethodType):
        yield ".__self__", obj.__self__
    elif isinstance(obj, FunctionType):
        yield from _captured(obj)
    elif isinstance(obj, partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    elif isinstance(obj, BaseException):
        yield ".args", obj.args
    if _pickles_attributes(type(obj)):
        yield from _attributes(obj)


def _pickles_attributes(kind: type) -> bool:
    """Whether pickle sends an object's attributes as they are, by no code of its class."""
    if issubclass(kind, BaseException):
        return kind.__reduce__ is BaseException.__reduce__
    return (
        kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is object.__getstate__
        and not issubclass(kind, (type, FunctionType, ModuleType))
        and kind not in copyreg.dispatch_table
    )


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        attributes = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        attributes = {}
    for name, value in list(attributes.items()):
        yield f".{name}", value
    for kind in type(obj).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            try:
                yield f".{name}", object.__getattribute__(obj, name)
            except AttributeError:
                continue


def _captured(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What goes along with a function that is sent by value."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"<closure {name}>", cell.cell_contents
        except ValueError:  # empty
            continue
    for index, value in enumerate(function.__defaults__ or ()):
        yield f"<default {index}>", value
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"<global {name}>", function.__globals__[name]


def _refusal_text(what: str, path: str, error: BaseException, kind: type) -> str:
    where = f"{what} {path}" if path else f"the {what}"
    reason = str(error).strip().splitlines()
    remedy = _REMEDIES.get(kind, _REMEDY)
    if FORK_ONLY in str(error):
        remedy = (
            "Make it with multiprocessing.get_context('spawn') or ('forkserver'), "
            "or ask for start_method='fork'."
        )
    return f"{where} cannot be sent: {reason[0] if reason else type(error).__name__}. {remedy}"


# What multiprocessing says of a lock that only a fork hands down.
FORK_ONLY = "created in a fork context"

_REMEDY = (
    "Send what it can be made from (a file name, not a file), make it in the worker "
    "(initializer=), or hand it down with initargs= or inherit=."
)
_REMEDIES: dict[type, str] = {
    GeneratorType: (
        "Send what it yields (map over it, or list() it), or the function that makes it: "
        "stream() sends what a generator function yields in the worker."
    ),
    CoroutineType: (
        "Send the function and its arguments; an executor that awaits what a function returns "
        'is fm.executor("async").'
    ),
}


# ------------------------------------------------------------------- functions


class _Entries(dict[int, tuple[weakref.ref[Any], Any]]):
    """A dict that can be referred to weakly."""

    __slots__ = ("__weakref__",)


class Functions:
    """What was made of each plain function, kept as long as the function lives.

    By identity, and never by a bare id: an id is reused as soon as its object is gone, an entry
    goes with its function. The least recently made go first beyond `limit`.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._entries = _Entries()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> dict[int, tuple[weakref.ref[Any], Any]]:
        """id -> (weak reference to the function, what was made of it); only to be looked at."""
        return self._entries

    def get(self, function: Any, make: Callable[[Any], Any]) -> Any:
        """What make(function) gave when it was first asked."""
        key = id(function)
        entry = self._entries.get(key)
        if entry is not None and entry[0]() is function:
            return entry[1]
        value = make(function)
        entries = self._entries
        # Weakly: an entry that led to its own table would keep a dropped pool's memory until the
        # next collection of cycles.
        table = weakref.ref(entries)

        def forget(dead: weakref.ref[Any]) -> None:
            entries = table()
            found = None if entries is None else entries.get(key)
            if entries is not None and found is not None and found[0] is dead:
                del entries[key]

        try:
            reference = weakref.ref(function, forget)
        except TypeError:
            return value
        while len(entries) >= self._limit:
            entries.pop(next(iter(entries)), None)
        entries[key] = (reference, value)
        return value


# ------------------------------------------------------------------- the default

_default: Codec | None = None


def _codec() -> Codec:
    global _default
    if _default is None:
        _default = Codec("exec")
    return _default


def dumps(obj: Any) -> tuple[bytes, Buffers]:
    """Codec("exec").dumps: for whoever has no pool."""
    return _codec().dumps(obj)


def loads(data: Any, buffers: Any = ()) -> Any:
    """Codec("exec").loads."""
    return _codec().loads(data, buffers)


def dump_failure(error: BaseException, where: str = "task") -> bytes:
    """Codec("exec").dump_failure."""
    return _codec().dump_failure(error, where)


def load_failure(data: Any) -> BaseException:
    """Codec("exec").load_failure."""
    return _codec().load_failure(data)

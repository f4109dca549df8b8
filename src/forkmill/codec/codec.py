"""Objects to bytes and back: pickle 5, functions by reference or value.

Guarantees:
    * What encodes here decodes there: an object goes by reference only if the other process has
      it (inherited by fork) or can import it; else by value, with cloudpickle.
    * What cannot be sent raises SerializationError with the path to the culprit (refusal.py).
    * dump_failure() never raises (see codec/failures.py).

Invariants:
    * CODEC-1  The common case is one pickle.dumps() with no Python code per object; what is kept
      (dumps_parts) is written in parts, so that large bytes in it are not copied. cloudpickle is
      imported, by by_value.py, when it is first needed (about 20 ms); and so is what a worker of
      plain functions does without (`ours`): every exec'd one would wait for it.
    * CODEC-2  All functions of __main__ that are sent by value to one worker share that worker's
      __main__ namespace, so that an initializer's `global x` is seen by the tasks. Who may set what
      in there is said in codec/program.py.

Threads: any; a Codec's caches are plain dicts with idempotent entries.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable, Sequence
from functools import partial
from types import (
    BuiltinFunctionType,
    FunctionType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any

from .. import _process
from .._process import (
    GONE,
    SHARES,
    VIEWS,
    VOICE,
    has_arrow,
    interrupted,
    main,
    namespace,
    ours,
    warn_user,
)
from ..errors import RemoteTraceback, SharedGone, kept_in

if TYPE_CHECKING:
    from .program import Program, Watch
    from .reach import Reach
    from .view import View

__all__ = [
    "ARROW",
    "Codec",
    "Parts",
    "RemoteTraceback",
    "dump_failure",
    "dumps",
    "dumps_parts",
    "load_all",
    "load_failure",
    "loads",
    "receive",
    "unbulk",
]

Buffers = Sequence[memoryview]
# What the pickle of an Arrow object has in it, so that it is made again (codec/reducers.py).
ARROW = b"pyarrow"
_CONNECTION = b"multiprocessing.connection"
_TASK = ("argument", "function")  # what goes to a worker; else it comes from one
_pickle = pickle.dumps
_unpickle = pickle.loads

# Large ones are their own buffers: pickle would copy them before they are copied to where they go.
_APART = 1 << 16  # bytes: what goes through an arena; smaller ones are copied in no time
_BULK: dict[type, bytes] = {  # unbulk(the type, the next buffer)
    kind: b"\x80\x05c%b\nunbulk\ncbuiltins\n%b\n\x97\x86R."
    % (__name__.encode(), kind.__name__.encode())
    for kind in (str, bytes, bytearray)
}
_BYTEARRAY = _BULK[bytearray]


class Parts(list[Any]):
    """A file: what is written to it. Large bytes in a pickle are a part of their own, as they are;
    what can change is copied: it may do so, or be resized, before the parts are put somewhere."""

    __slots__ = ()

    def write(self, part: Any) -> None:
        self.append(part if type(part) is bytes else bytes(part))

    def joined(self) -> bytes:
        """All of it."""
        return b"".join(self)


def _may_name(data: bytes, name: bytes) -> bool:
    """Whether a pickle may refer to something by that name, or to a part of it.

    A name is a string of its own there, with its length before it, or begins one ("A.method"):
    else every program with a global `s` would have what it sends looked through.
    """
    if data.find(name) < 0:
        return False
    return (
        len(name) > 255
        or data.find(bytes((len(name),)) + name) >= 0
        or data.find(name + b".") >= 0
        or data.find(b"\n" + name + b"\n") >= 0  # as the oldest protocols have it
    )


def bulk(obj: str | bytes | bytearray) -> Any:
    """What is to be copied of one: a buffer."""
    if VOICE:
        return VOICE[0].bulk(obj)
    return obj.encode("utf-8", "surrogatepass") if isinstance(obj, str) else obj


def unbulk(kind: Any, data: Any) -> str | bytes | bytearray:
    """What bulk() has made `data` of; the only copy."""
    made: str | bytes | bytearray
    if VOICE:
        made = VOICE[0].unbulk(kind, data)
    else:
        made = str(data, "utf-8", "surrogatepass") if kind is str else kind(data)
    return made


class _Referring(pickle.Pickler):
    """Sends some objects as numbers: what is in `inherit=`, what a failure leads to."""

    def __init__(self, codec: Codec, file: io.BytesIO, callback: Any, persistent: Any) -> None:
        if codec.reducers:
            table: Any = copyreg.dispatch_table
            self.dispatch_table = ChainMap(table, codec.reducers)
        super().__init__(file, 5, buffer_callback=callback)
        self._persistent = persistent
        self._reduce = ours("codec.reducers").reduce_arrow if has_arrow() else None

    def persistent_id(self, obj: Any) -> int | None:
        number: int | None = self._persistent(obj)
        return number

    def reducer_override(self, obj: Any) -> Any:
        return NotImplemented if self._reduce is None else self._reduce(obj)


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
        snapshot: What forked ones have of this process (snapshot.py); default: what is there now.
    """

    def __init__(
        self, mode: str = "fork", inherit: Sequence[Any] = (), snapshot: Any = None
    ) -> None:
        if mode not in ("fork", "exec"):
            raise ValueError(f"mode must be 'fork' or 'exec', not {mode!r}")
        self.mode = mode
        self.inherit = tuple(inherit)
        self.forks = mode == "fork"
        if self.forks:
            load_all()
            self.snapshot = ours("codec.snapshot").Snapshot() if snapshot is None else snapshot
        else:
            self._path = tuple(sys.path)
        # What the modules were loaded by of which workers have got functions.
        self._loaded: dict[str, Any] = {}
        self._program: Program | None = None
        self.by_value = 0  # times that cloudpickle had to do it
        self._inherit_ids = {id(obj): index for index, obj in enumerate(self.inherit)}
        self._persistent = self.inherited_index if self.inherit else None
        self._reachable: dict[str, bool] = {"__main__": False, "builtins": True}
        # Names in a pickle that ask for a second look: Arrow, modules known not to be reachable.
        self._marks: tuple[bytes, ...] = (ARROW,) if has_arrow() else ()
        if self.forks and (late := self.snapshot.late):
            self._marks += tuple(name.encode() for name in late)
        # Under fork the workers have all that is loaded now: to look through it right after the
        # fork would touch, and so copy, a page for every module.
        self._modules_seen = len(sys.modules) if self.forks else 0
        # While it encodes what processes are born with: multiprocessing's own, by type.
        self.reducers: dict[Any, Any] = {}
        _know_multiprocessing()

    # -- values

    def dumps(self, obj: Any) -> tuple[bytes, Buffers]:
        """Encode an argument: the pickle, and its out-of-band buffers.

        Raises:
            SerializationError: It cannot be sent; the message names the path to the culprit.
        """
        return self._dumps(obj, "argument")

    def dumps_result(self, obj: Any) -> tuple[bytes, Buffers]:
        """As dumps(), for what a task returned."""
        if not SHARES:
            return self._dumps(obj, "result")
        with SHARES[0].going_home():
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
        except (MemoryError, SharedGone):
            raise
        except Exception as error:
            if interrupted(error):
                raise
            return self._whole_by_value(obj, what, persistent)
        # find() and not `in`, which first takes the bytes for a number: 60 ns instead of 290.
        new = len(sys.modules) != self._modules_seen
        if data.find(b"__main__") >= 0 or self._marks or new:
            if self._needs_value(data, task=what in _TASK):
                return self._whole_by_value(obj, what, persistent)
            if new and data.find(_CONNECTION) >= 0:  # how it is sent is known from here on
                return self._dumps(obj, what, persistent)
            if ARROW in self._marks and persistent is None and data.find(ARROW) >= 0:
                buffers.clear()
                file = io.BytesIO()
                ours("codec.reducers").WithArrow(file, buffers.append).dump(obj)
                return file.getvalue(), [buffer.raw() for buffer in buffers]
        return data, views

    def dumps_parts(self, obj: Any) -> tuple[Parts, Buffers]:
        """As dumps(), for who copies it to where it is kept: the pickle in parts, which refer to
        large bytes of the object.

        Raises:
            SerializationError: It cannot be sent.
        """
        kind, parts = type(obj), Parts()
        if kind in _BULK and len(obj) >= _APART:
            parts.write(_BULK[kind])
            return parts, [memoryview(bulk(obj))]
        buffers: list[pickle.PickleBuffer] = []
        try:
            pickle.Pickler(parts, 5, buffer_callback=buffers.append).dump(obj)
            views = [buffer.raw() for buffer in buffers]
        except (MemoryError, SharedGone):
            raise
        except Exception as error:
            if interrupted(error):
                raise
            return self._dumps_by_value(obj, "argument", None)
        texts = [part for part in parts if type(part) is bytes]
        new = len(sys.modules) != self._modules_seen
        if any(self._needs_value(part, task=True) for part in texts):
            return self._dumps_by_value(obj, "argument", None)
        if new and any(part.find(_CONNECTION) >= 0 for part in texts):
            return self.dumps_parts(obj)
        if ARROW in self._marks and any(part.find(ARROW) >= 0 for part in texts):
            parts, buffers = Parts(), []
            ours("codec.reducers").WithArrow(parts, buffers.append).dump(obj)
            views = [buffer.raw() for buffer in buffers]
        return parts, views

    def _pickle_with(self, pickler: Any, obj: Any, callback: Any, persistent: Any) -> bytes:
        file = io.BytesIO()
        pickler(self, file, callback, persistent).dump(obj)
        return file.getvalue()

    def _whole_by_value(self, obj: Any, what: str, persistent: Any) -> tuple[bytes, Buffers]:
        parts, buffers = self._dumps_by_value(obj, what, persistent)
        return parts.joined(), buffers

    def _dumps_by_value(self, obj: Any, what: str, persistent: Any) -> tuple[Parts, Buffers]:
        """Encode again, with cloudpickle."""
        try:
            return self._by_value(obj, persistent, task=what in _TASK)
        except (MemoryError, SharedGone):
            raise
        except Exception as error:
            if interrupted(error):
                raise
            encode = partial(self._by_value, persistent=self._persistent, task=True)
            raise ours("codec.refusal").refusal(encode, obj, what, error)  # noqa: B904

    def _by_value(self, obj: Any, persistent: Any, *, task: bool) -> tuple[Parts, Buffers]:
        _by_value = ours("codec.by_value")
        self.by_value += 1
        pickler = _by_value.ByValue if persistent is None else _by_value.ByValueReferring
        buffers: list[pickle.PickleBuffer] = []
        parts = Parts()
        pickler(self, parts, buffers.append, persistent, task=task).dump_with_program(obj)
        try:
            return parts, [buffer.raw() for buffer in buffers]
        except BufferError:  # not contiguous: in band, if at all
            parts = Parts()
            pickler(self, parts, None, persistent, task=task).dump_with_program(obj)
            return parts, []

    def loads(self, data: Any, buffers: Any = ()) -> Any:
        """Decode what dumps() made on the other side."""
        if self.inherit:
            return _Resolving(io.BytesIO(data), buffers, self.inherit).load()
        return _unpickle(data, buffers=buffers)

    # -- what the other side has

    def inherited_index(self, obj: Any) -> int | None:
        """Index of an object of `inherit=`, or None."""
        return self._inherit_ids.get(id(obj))

    def look_at_program(self) -> Callable[[Callable[..., bool]], None]:
        """Remember what `__main__` is: what changes from the returned function's call on, after the
        fork, is sent to the workers. (It takes _native.as_found.)"""
        self._program = program = self._look()
        return program.settle

    def _look(self) -> Program:
        by_hand = self.snapshot.by_hand if self.forks else ()
        by_hand = [name for name in by_hand if self.is_home(name)]
        program: Program = ours("codec.program").Program(by_hand)
        return program

    @property
    def program(self) -> Program:
        """What `__main__` was at the start, and how often it has changed since."""
        if self._program is None:
            self._program = self._look()
            self._program.settle()
        return self._program

    def is_late(self, module: str) -> bool:
        """Whether a module was being imported, or made by hand, when the workers were forked."""
        return self.forks and module in self.snapshot.late and module in sys.modules

    def is_home(self, module: str) -> bool:
        """Whether each global of a module has its versions, as those of `__main__` do."""
        return module == "__main__" or (
            self.forks and module in self.snapshot.by_hand and module in sys.modules
        )

    def had(self, module: str, name: str) -> bool:
        """Whether __main__, or a late module, had such a name when the workers were forked."""
        return self.forks and self.snapshot.had(module, name)

    def has(self, module: str, name: str, obj: Any) -> bool:
        """Whether the other side has this object under that name of __main__, or a late module."""
        if not self.forks:
            return False
        found = self.snapshot.found(module, name)
        return found is obj and namespace(module).get(name, GONE) is obj

    def inherits(self, obj: Any) -> bool:
        """Whether the other side has this function or class under the same name, in __main__ or a
        late module."""
        module = obj.__module__
        if not (self.is_late(module) or (self.forks and module == "__main__")):
            return False
        top, *rest = getattr(obj, "__qualname__", "").split(".")
        found = self.snapshot.found(module, top)
        here = namespace(module).get(top, GONE)
        if here is not found:
            return False
        for name in rest:
            found = getattr(found, name, GONE)
        return found is obj

    def reachable(self, module: str) -> bool:
        """Whether the other side can import a module by its name."""
        known = self._reachable.get(module)
        if known is None:
            known = self._reachable[module] = self._is_reachable(module)
        return known

    def _is_reachable(self, name: str) -> bool:
        module = sys.modules.get(name)
        if self.forks and name in self.snapshot.modules and (
            name in self.snapshot.late or not ours("codec.snapshot").is_by_hand(module)
        ):  # fmt: skip
            return True
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
                where = list(self.snapshot.path if self.forks else self._path)
            found = finder.find_spec(name, where)
            if found is not None:
                return bool(found.origin == spec.origin)
        # A module that its parent makes and registers by itself (os.path, six.moves).
        return bool(parent)

    def _needs_value(self, data: bytes, *, task: bool) -> bool:
        """Whether a pickle names something that the other side cannot find, or has otherwise."""
        if len(sys.modules) != self._modules_seen:
            self._look_for_foreign()
        if any(data.find(name) >= 0 for name in self._marks if name != ARROW):
            return True
        if data.find(b"__main__") < 0:
            return False
        return not self.forks or not self._main_is_inherited(data, task=task)

    def _look_for_foreign(self) -> None:
        """Find modules without a spec: made by hand, so nobody else can import them."""
        self._modules_seen = len(sys.modules)
        _know_multiprocessing()
        if has_arrow() and ARROW not in self._marks:
            self._marks += (ARROW,)
        for name, module in sys.modules.copy().items():
            # Only real modules: to look into a lazy one may load it.
            if name in self._reachable or type(module) is not ModuleType:
                continue
            if module.__dict__.get("__spec__") is None:
                self.reachable(name)

    def _main_is_inherited(self, data: bytes, *, task: bool) -> bool:
        """Whether all of __main__ that a pickle may name is what the workers inherited."""
        reach, plain = ours("codec.reach"), ours("codec.snapshot").PLAIN
        for name, value in main().copy().items():
            if type(value) in plain or not _may_name(data, name.encode()):
                continue
            if type(value) is FunctionType or reach.is_class(value):
                # pickle goes by an object's own name: other names for it do not matter. One that
                # knows no module (exec() made it) is looked for in all of them.
                if value.__name__ != name or value.__module__ not in ("__main__", None):
                    continue
                if task and self.program.version(name, value):
                    return False
            if self.snapshot.main(name) is not value:
                return False
            # Also of what is neither function nor class: an lru_cache's has a function in it.
            if task and self.program.changed(self.sight(value)):
                return False
        return True

    def _is_inherited_function(self, function: Any, sight: Reach) -> bool:
        """As `_main_is_inherited`, of a function's own pickle, in which there is its name alone."""
        if len(sys.modules) != self._modules_seen:
            self._look_for_foreign()
        if not self.forks or self._marks or self._persistent is not None or self.reducers:
            return False
        if type(function) is not FunctionType or function.__module__ != "__main__":
            return False
        name = function.__qualname__
        return (
            name == function.__name__
            and main().get(name, GONE) is function
            and self.snapshot.main(name) is function
            and not self.program.version(name, function)
            and not self.program.changed(sight)
        )

    # -- functions

    def dump_function(self, function: Any) -> bytes:
        """Encode a callable: by reference where the other side has it, else by value.

        Raises:
            SerializationError: It cannot be sent.
        """
        return self.joined(*self.function_parts(function))

    @staticmethod
    def joined(data: bytes, buffers: Buffers) -> bytes:
        """What load_function() takes: the two that function_parts() gave, as one."""
        return _pickle((data, [bytearray(view) for view in buffers]), 5)

    def function_parts(self, function: Any, sight: Reach | None = None) -> tuple[bytes, Buffers]:
        """As dump_function(), in two parts. `sight`: what the function looks at, if known."""
        if sight is not None and self._is_inherited_function(function, sight):
            return _pickle(function, 5), ()
        # Asked first, so that _dumps() knows the names to look for.
        inner = kept_in(function, "func"), kept_in(function, "__self__")
        for part in (function, *inner):
            module = getattr(part, "__module__", None)
            if isinstance(module, str):
                self.reachable(module)
                self._look_at_module(module)
        return self._dumps(function, "function")

    def _look_at_module(self, name: str) -> None:
        """Tell that workers have a module as it was before it was loaded again."""
        module = sys.modules.get(name)
        if type(module) is not ModuleType or name == "__main__":
            return
        spec = module.__dict__.get("__spec__")
        known = self._loaded.setdefault(name, spec)
        if known is not spec and known is not None and spec is not None:
            self._loaded[name] = spec
            warn_user(
                f"module {name} was loaded again after this pool had got functions of it: workers "
                "that have it already keep it as it was. Make a new pool to have it everywhere as "
                "it is now."
            )

    def sight(self, function: Any) -> Reach:
        """What an object looks at in __main__, now."""
        found: Reach = ours("codec.reach").Reach(function, self.program)
        return found

    def watch(self, sight: Reach) -> Watch | None:
        """Tells when what is in sight of a callable changes; None: it looks at nothing."""
        return ours("codec.program").Watch(sight, self.program.credit) if sight else None

    def load_function(self, blob: Any) -> Any:
        """Decode what dump_function() made."""
        function, view = self.load_with_view(blob)
        enter(view)
        return function

    def load_with_view(self, blob: Any) -> tuple[Any, View]:
        """As load_function(); __main__ is as it was for the function once the view is entered."""
        if not _process.receiving:
            receive()
        data, buffers = _unpickle(blob)
        view: View = {}
        VIEWS.append(view)
        try:
            return self.loads(data, buffers), view
        finally:
            VIEWS.pop()

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
        view = _loaded_view()
        if view is not None:
            view.explain(error)
        try:
            failures = ours("codec.failures")
        except BaseException as why:  # the task has left no descriptor, or no way to our files
            return _bare_report(self, error, where, why)
        report: bytes = failures.dump(self, error, where)
        return report

    def load_failure(self, data: Any) -> BaseException:
        """The exception that dump_failure() encoded, with the remote frames below it.

        Never raises (but Ctrl-C): what cannot be loaded is returned as RemoteError, or as
        SerializationError if the report itself is broken.
        """
        error: BaseException = ours("codec.failures").load(self, data)
        return error

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


def _bare_report(codec: Codec, error: BaseException, where: str, why: BaseException) -> bytes:
    """What _failures.dump() makes, where that cannot be loaded: the exception as it is, but
    without what led to it. Never raises."""
    name, text, blob = f"{type(error).__module__}.{type(error).__qualname__}", "", None
    try:
        text = str(error)
        data, buffers = codec.dumps_failure(error, None)
        copies = [bytearray(view) for view in buffers]
        if type(codec.loads_failure(data, copies, ())) is type(error):
            blob = _pickle((data, copies), 5)
    except BaseException:  # as there: user code of any kind
        blob = None
    known = f"{name}: {text}\n(its traceback cannot be formatted: {type(why).__name__}: {why})\n"
    return _pickle(("failure", where, known, [(blob, name, text, (), -1, -1, False, ())]), 5)


# ------------------------------------------------------------------ in a worker


def receive() -> None:
    """From now on this process is a worker: what comes with its tasks is for its `__main__`."""
    if VIEWS or _process.receiving:  # else the parent is no worker, and has nothing
        VIEWS.clear()
        view = _loaded_view()
        if view is not None:
            view.forget()
    _process.receiving = True


def enter(view: View) -> None:
    """Have `__main__` be as a function's view has it, and as at first where that says nothing."""
    known = _loaded_view()
    if known is not None:  # else nothing has come yet that was not as at first
        known.enter(view)


def _loaded_view() -> Any:
    return sys.modules.get(_VIEW)


_VIEW = __name__.rpartition(".")[0] + ".view"


def load_all() -> None:
    """Load what most workers do without: here and now, not in each process that is forked from this
    one, and not while an outcome is decoded, which would be what breaks the import off."""
    if not _ALL:
        names = ("codec.failures", "codec.program", "codec.reducers", "codec.refusal")
        _ALL.extend(map(ours, names))


_ALL: list[Any] = []  # what load_all() has loaded


def _know_multiprocessing() -> None:
    """Have its connections sent as it does, as soon as there may be some."""
    if "multiprocessing.connection" in sys.modules:
        ours("codec.reducers").know_multiprocessing()


# ------------------------------------------------------------------- the default

_default: Codec | None = None


def _codec() -> Codec:
    global _default
    if _default is None:
        _default = Codec("exec")
    return _default


def dumps(obj: Any) -> tuple[bytes, Buffers]:
    """Codec("exec").dumps: for who has no pool."""
    return _codec().dumps(obj)


def dumps_parts(obj: Any) -> tuple[Parts, Buffers]:
    """Codec("exec").dumps_parts."""
    return _codec().dumps_parts(obj)


def loads(data: Any, buffers: Any = ()) -> Any:
    """Codec("exec").loads."""
    return _codec().loads(data, buffers)


def dump_failure(error: BaseException, where: str = "task") -> bytes:
    """Codec("exec").dump_failure."""
    return _codec().dump_failure(error, where)


def load_failure(data: Any) -> BaseException:
    """Codec("exec").load_failure."""
    return _codec().load_failure(data)

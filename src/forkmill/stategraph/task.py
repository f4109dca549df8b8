"""One task, wherever it runs: from the encoded state to the encoded update. All a worker needs.

    (id, plain, late | arg, answers) ──▶ view ──▶ the node's function ──▶ result
                                                     │ interrupt             │ checked, encoded
                                                     ▼                       ▼
                                            (ASKED, number, wire)   (DONE, writes, routes, only)

A **wire** is a value on its way: (PLAIN, value)  immutable, as it is
                                  (FLAT, a small list, dict or set of immutables)  copied
                                  (CODED, bytes or a Shared of them)  by the store's codec
                                  (CHAIN, (whole, added, ..))  of an `fm.append` key
                                  (OPAQUE, value)  cannot be encoded; never leaves its process
A **write** is (key, SET | DROP | OVER, wire), a **route** a name or (name, wire).

Guarantees:
    * What a task gives is a snapshot: encoded when its function returns, by who made it.
    * A result that is none, an unknown key, a goto that was not declared and a value that cannot be
      encoded are failures of the task, and say which node, key and path.

Threads: the task's own.
"""

from __future__ import annotations

import inspect
import pickle
import sys
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import TYPE_CHECKING, Any

from .._checks import nearest
from .._said import within
from ..codec.share import at
from ..errors import SerializationError, UpdateError
from .view import State, viewer
from .words import (
    DELETE,
    END,
    Asked,
    Command,
    Overwrite,
    Send,
    here,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ASKED",
    "CHAIN",
    "CODED",
    "DONE",
    "DROP",
    "FLAT",
    "OPAQUE",
    "OVER",
    "PLAIN",
    "SET",
    "Coder",
    "Laid",
    "Work",
    "callable_of",
    "immutable",
    "result_of",
    "writes_of",
]

PLAIN, FLAT, CODED, CHAIN, OPAQUE = range(5)
SET, DROP, OVER = range(3)
DONE, ASKED = range(2)

_ATOMS = frozenset({int, float, bool, str, bytes, complex, NoneType, range, type(Ellipsis)})
_RARE = {  # in modules that a worker need not have
    "datetime": ("date", "time", "datetime", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "uuid": ("UUID",),
}
_GROUPS = (tuple, frozenset)
_NUMBERS = frozenset({int, float, bool, NoneType})
_FLATS = frozenset({list, dict, set})
_FLAT = 16  # items: a copy of so few takes less than pickling them
_SHORT = 256  # characters or bytes of one


def immutable(value: Any) -> bool:
    """Whether a value can be handed out as it is: nobody can change it, nor what is in it."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind in _GROUPS:
        return all(map(immutable, value))
    name = kind.__name__
    if name not in _RARE.get(kind.__module__, ()):
        return False
    return getattr(sys.modules.get(kind.__module__), name, None) is kind


def flat(value: Any) -> bool:
    """Whether a list, dict or set is small, with nothing in it but small things of no change."""
    if len(value) > _FLAT:
        return False
    for item in value:
        if type(item) not in _NUMBERS and not _tiny(item):
            return False
    return type(value) is not dict or all(map(_tiny, value.values()))


def _tiny(value: Any) -> bool:
    kind = type(value)
    return kind in _NUMBERS or ((kind is str or kind is bytes) and len(value) <= _SHORT)


class Coder:
    """Makes wires of values, and values of wires.

    Args:
        codec: Encodes and decodes.
        lenient: Whether what cannot be encoded is handed on itself.
    """

    __slots__ = ("decode", "encode", "lenient", "trusted")

    def __init__(self, codec: Any, lenient: bool) -> None:
        self.encode = codec.encode
        self.decode = codec.decode
        self.lenient = lenient
        self.trusted = codec.name == "pickle"  # it holds whatever is immutable

    def value(self, wire: Any) -> Any:
        """The value of a wire: the caller's own, or immutable."""
        kind, data = wire
        if kind == FLAT:
            return data.copy()
        if kind == CODED:
            return self.decode(_bytes(data))
        if kind == CHAIN:
            value: list[Any] = []
            for part in data:
                value += self.decode(_bytes(part))
            return value
        return data

    def wire(self, value: Any, what: str) -> Any:
        """The wire of a value, as it is now.

        Args:
            value: The value.
            what: What it is called.

        Raises:
            SerializationError: It cannot be encoded.
        """
        kind = type(value)
        if self.trusted:
            if kind in _ATOMS:
                return PLAIN, value
            if kind in _FLATS and flat(value):
                return FLAT, value.copy()
        plain = immutable(value)
        if plain and self.trusted:
            return PLAIN, value
        try:
            data = self.encode(value)
        except Exception as error:
            if self.lenient and not isinstance(error, MemoryError):
                return OPAQUE, value
            raise _unencodable(what, error) from error
        return (PLAIN, value) if plain else (CODED, data)


class Laid:
    """Bytes that lie in shared memory: another process maps them, and does not copy."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return memoryview, (pickle.PickleBuffer(self.data),)


def _bytes(data: Any) -> Any:
    """The bytes of a wire: themselves, a Shared's, or those of one whose address came.
    (In a child forked from here its value is what was laid.)"""
    if type(data) is bytes:
        return data
    if type(data) is tuple:
        data = at(data)
    value = getattr(data, "value", data)
    return value.data if type(value) is Laid else value


def _unencodable(what: str, error: Exception) -> SerializationError:
    path = getattr(error, "path", "")
    at = f" at {path}" if path else ""
    return SerializationError(f"{what} cannot be kept{at}: {error}", path=path)


class Work:
    """A node, as the process that runs it knows it.

    Args:
        name: Its name.
        fn: Its function.
        keys: The schema's keys.
        appends: Those of them that are `fm.append` keys.
        cls: The schema's dataclass, or None.
        nodes: The graph's nodes.
        targets: Where its gotos may lead; None: to any node.
        codec: Encodes and decodes.
        lenient: Whether what cannot be encoded is handed on itself.
    """

    __slots__ = (
        *("appends", "cls", "codec", "fn", "keys", "lenient", "name", "nodes", "targets"),
        *("coder", "known", "open", "trusted", "view"),
    )

    def __init__(
        self,
        name: str,
        fn: Callable[[Any], Any],
        keys: tuple[str, ...],
        appends: frozenset[str],
        cls: type | None,
        nodes: frozenset[str],
        targets: frozenset[str] | None,
        codec: Any,
        lenient: bool,
    ) -> None:
        self.name = name
        self.fn = fn
        self.keys = keys
        self.appends = appends
        self.cls = cls
        self.nodes = nodes
        self.targets = targets
        self.codec = codec
        self.lenient = lenient
        self.coder = Coder(codec, lenient)
        self.open = self.coder.value
        self.known = {key: f"key {key!r} of node {name!r}" for key in keys}  # as errors call it
        self.trusted = self.coder.trusted and not appends  # atoms are writes as they are
        self.view = viewer(cls, keys, self.coder.value)

    def perform(self, run: Any, ident: Any, step: int, state: Any, arg: Any, answers: Any) -> Any:
        """Run a task: see `callable_of`."""
        if run is not None:  # somebody listens
            with within(run, self.name, step=step, task=ident[2]):
                return self.perform(None, ident, step, state, arg, answers)
        open_wire = self.open
        given = self.view(*state) if arg is None else open_wire(arg)
        token = here.set((ident, step, arg is not None, answers or _NO_ANSWERS, open_wire))
        try:
            result = self.fn(given)
            kind = type(result)
            if kind is dict:
                if len(result) == 1 and self.trusted:
                    for key, value in result.items():
                        if type(value) in _ATOMS and key in self.known:
                            return DONE, ((key, SET, (PLAIN, value)),), (), False
                return DONE, writes_of(self, result, step, self.coder.wire), (), False
            if result is None:
                return _NOTHING
            if kind not in _USUAL and inspect.isawaitable(result):
                result = _completed(result)
            return result_of(self, result, step)
        except Asked as question:
            return _asked(self, question)
        finally:
            here.reset(token)

    def frame(self) -> bytes:
        """All of it but the function and the class, which are the user's."""
        mine = (self.name, self.keys, self.appends, self.nodes, self.targets)
        return pickle.dumps((*mine, self.codec, self.lenient), 5)


# ------------------------------------------------------------------------------- the call


def callable_of(work: Work, in_loop: bool, isolated: bool = False) -> Callable[..., Any]:
    """The function that runs a task of a node.

    Called with the run's id if somebody listens, the task's id, the number of the step, the state
    as (plain, late) or None, the argument's wire or None, and the answers' wires, it gives an
    outcome, or raises what the node raised. Where an event loop runs it, that of a coroutine
    function is one; elsewhere a coroutine is run to its end.

    It is a function of its own for each node, so a pool sends it to each worker once; and a small
    one, because it is sent by value: what it calls is found there. What it holds is of kinds that
    cannot change in place, but the user's function maybe: else a pool would have to look through it
    with each submit.
    """
    if isolated:
        frame, fn, cls, elsewhere = work.frame(), work.fn, work.cls, _elsewhere

        def call_elsewhere(*args: Any) -> Any:
            return elsewhere(frame, fn, cls, *args)

        return _labelled(call_elsewhere, work)
    if in_loop and is_async(work.fn):
        perform_async = _perform_async

        async def call_async(*args: Any) -> Any:
            return await perform_async(work, *args)

        return _labelled(call_async, work)
    perform = _perform

    def call(*args: Any) -> Any:
        return perform(work, *args)

    return _labelled(call, work)


def _labelled(call: Callable[..., Any], work: Work) -> Callable[..., Any]:
    named: Any = call
    named.__name__ = named.__qualname__ = named._forkmill_label = work.name
    return call


def _perform(work: Work, *args: Any) -> Any:
    return work.perform(*args)


_works: dict[tuple[bytes, int, int], Work] = {}  # of a worker; a Work keeps what the ids are of
_MOST = 1000


def _elsewhere(frame: bytes, fn: Any, cls: Any, *args: Any) -> Any:
    """In another process than the plan's."""
    work = _works.get((frame, id(fn), id(cls)))
    if work is None:
        if len(_works) >= _MOST:
            _works.clear()
        name, keys, appends, *rest = pickle.loads(frame)
        work = _works[frame, id(fn), id(cls)] = Work(name, fn, keys, appends, cls, *rest)
    return work.perform(*args)


async def _perform_async(
    work: Work, run: Any, ident: Any, step: int, state: Any, arg: Any, answers: Any
) -> Any:
    if run is not None:
        with within(run, work.name, step=step, task=ident[2]):
            return await _perform_async(work, None, ident, step, state, arg, answers)
    given = work.view(*state) if arg is None else work.coder.value(arg)
    sent = arg is not None
    token = here.set((ident, step, sent, answers or _NO_ANSWERS, work.coder.value))
    try:
        result = work.fn(given)
        if inspect.isawaitable(result):
            result = await result
        return result_of(work, result, step)
    except Asked as question:
        return _asked(work, question)
    finally:
        here.reset(token)


def _asked(work: Work, question: Asked) -> Any:
    return ASKED, question.number, work.coder.wire(question.value, f"what {work.name!r} asks")


_USUAL = frozenset({dict, list, NoneType, Command, Send})  # anything else may be a coroutine
_NOTHING = (DONE, (), (), False)
_NO_ANSWERS: dict[int, Any] = {}


def is_async(fn: Any) -> bool:
    """Whether calling it makes a coroutine and does nothing else."""
    import functools

    while isinstance(fn, functools.partial):
        fn = fn.func
    if inspect.iscoroutinefunction(fn):
        return True
    if isinstance(fn, (FunctionType, BuiltinFunctionType)):
        return False
    return inspect.iscoroutinefunction(getattr(type(fn), "__call__", None))  # noqa: B004


def _completed(awaitable: Any) -> Any:
    """Run what a plain function gave back to its end, in an event loop of its own."""
    import asyncio

    async def whole() -> Any:
        return await awaitable

    return asyncio.run(whole())


# ------------------------------------------------------------------------------ its result


def result_of(work: Work, result: Any, step: int) -> Any:
    """What a node returned, as an outcome.

    Raises:
        UpdateError: It is nothing that a node may return.
        SerializationError: A value cannot be kept.
    """
    wire_of = work.coder.wire
    if type(result) is dict:
        return DONE, writes_of(work, result, step, wire_of), (), False
    if result is None:
        return _NOTHING
    writes: tuple[Any, ...] = ()
    routes: tuple[Any, ...] = ()
    only = False
    for part in result if isinstance(result, list) else (result,):
        if isinstance(part, Command):
            if part.update is not None:
                writes += _update(work, part.update, step, wire_of)
            routes += _routes(work, part.goto, step, wire_of)
            only = only or bool(part.only)
        elif isinstance(part, Send):
            routes += _routes(work, part, step, wire_of)
        elif part is not None:
            writes += _update(work, part, step, wire_of)
    return DONE, writes, routes, only


def _update(work: Work, update: Any, step: int, wire_of: Any) -> tuple[Any, ...]:
    if isinstance(update, State if work.cls is None else work.cls):
        raise _wrong(work, step, "returned the state itself", "a dict of what it changes")
    if not isinstance(update, dict):
        expected = "None, a dict, Command, Send or a list of these"
        raise _wrong(work, step, f"returned {_short(update)}", expected)
    return writes_of(work, update, step, wire_of)


def writes_of(work: Work, update: Any, step: int, wire_of: Any) -> tuple[Any, ...]:
    """The writes of an update.

    Raises:
        UpdateError: It names a key that there is not.
        SerializationError: A value cannot be kept.
    """
    writes: list[Any] = []
    trusted, known = work.trusted, work.known
    for key, value in update.items():
        if key not in known:
            raise UpdateError(
                f"node {work.name!r} wrote an unknown key in step {step}: there is no key {key!r} "
                f"in the state{nearest(key, work.keys)}",
                key=str(key),
                nodes=(work.name,),
                step=step,
            )
        if type(value) in _ATOMS and trusted:
            writes.append((key, SET, (PLAIN, value)))
            continue
        what = known[key]
        if value is DELETE:
            writes.append((key, DROP, None))
        elif type(value) is Overwrite:
            inner = value.value
            if inner is DELETE or type(inner) is Overwrite:
                raise _wrong(work, step, f"overwrites {key!r} with {inner!r}", "a value")
            writes.append((key, OVER, wire_of(inner, what)))
        else:
            if key in work.appends and type(value) is not list:
                value = list(value) if isinstance(value, list) else [value]
            writes.append((key, SET, wire_of(value, what)))
    return tuple(writes)


def _routes(work: Work, goto: Any, step: int, wire_of: Any) -> tuple[Any, ...]:
    if goto is None:
        return ()
    routes: list[Any] = []
    for target in goto if isinstance(goto, (list, tuple)) else (goto,):
        if isinstance(target, Send):
            _check_target(work, target.node, step, send=True)
            arg = target.arg
            if isinstance(arg, State):
                arg = arg.copy()
            routes.append((target.node, wire_of(arg, f"the argument of a Send to {target.node!r}")))
        elif isinstance(target, str):
            _check_target(work, target, step)
            if target != END:
                routes.append(target)
        else:
            expected = "names, Sends, or a list of these"
            raise _wrong(work, step, f"goes to {_short(target)}", expected)
    return tuple(routes)


def _check_target(work: Work, name: str, step: int, send: bool = False) -> None:
    if name == END and not send:
        return
    if name not in work.nodes:
        raise _astray(work, step, f"there is no node {name!r}{nearest(name, work.nodes)}")
    if work.targets is not None and name not in work.targets:
        declared = ", ".join(sorted(work.targets)) or "nowhere"
        raise _astray(work, step, f"{name!r} is none of its declared destinations: {declared}")


def _astray(work: Work, step: int, why: str) -> UpdateError:
    return UpdateError(
        f"node {work.name!r} went where it may not, in step {step}: {why}",
        nodes=(work.name,),
        step=step,
    )


def _wrong(work: Work, step: int, what: str, expected: str) -> UpdateError:
    return UpdateError(
        f"node {work.name!r} {what} in step {step}; a node gives {expected}",
        nodes=(work.name,),
        step=step,
    )


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."

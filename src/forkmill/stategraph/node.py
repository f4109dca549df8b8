"""A node as it was declared, checked where it is written.

Guarantees: a wrong option is a BuildError in the frame of `add_node`, and says what is allowed.

Threads: any; a Node does not change.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from .. import _checks
from ..contexts.specs import Spec, class_of, spec
from ..errors import BuildError, WorkerDied
from ..runs.policies import Retry, retry, told
from .task import is_async
from .words import END, START, Command, Send

if TYPE_CHECKING:
    from collections.abc import Callable

    from .schema import Schema

__all__ = ["Node", "goes_somewhere", "made"]

_DEATHS = retry(2, 0.0, WorkerDied)  # of nodes in processes, if nothing is said


@dataclass(frozen=True, slots=True)
class Node:
    """One node.

    Attributes:
        name: Its name.
        fn: What was given: a function, or what is run as one.
        context: Where it runs.
        asked: Whether that was said of this node, and not of the graph.
        retry: Its policy; None: one try.
        timeout: Seconds an attempt; None: as long as it likes.
        reads: The keys that it sees; None: all.
        targets: Where its gotos may lead; None: it was not said.
    """

    name: str
    fn: Any
    context: Spec
    asked: bool
    retry: Retry | None
    timeout: float | None
    reads: tuple[str, ...] | None
    targets: frozenset[str] | None

    @property
    def isolated(self) -> bool:
        """Whether it runs in another process."""
        return bool(class_of(self.context.type).isolated)

    @property
    def is_here(self) -> bool:
        """Whether it is called where the run is."""
        return self.context.type == "inline" and not self.is_async

    @property
    def is_async(self) -> bool:
        """Whether it is a coroutine function."""
        return is_async(self.fn)


def made(
    schema: Schema,
    graph_context: Spec,
    name: Any,
    fn: Any,
    context: Any,
    on_error: Any,
    timeout: Any,
    reads: Any,
    destinations: Any,
) -> Node:
    """A node of these options.

    Raises:
        BuildError: One of them is wrong.
    """
    if not isinstance(name, str) or not name:
        raise BuildError(f"a node's name must be a text, not {name!r}")
    if name in (START, END):
        raise BuildError(f"{name!r} is a name of forkmill's own; a node needs another one")
    who = f"node {name!r}"
    if callable(fn) and (why := _not_of_one(fn)):
        raise BuildError(f"{who}: its function is called with the state alone: {why}")
    with told(who):
        where = graph_context if context is None else spec(context)
        limit = None if timeout is None else _checks.seconds("timeout", timeout)
    return Node(
        name,
        fn,
        where,
        context is not None,
        _policy(who, on_error, where),
        limit,
        None if reads is None else schema.known(reads, f"{who}, reads"),
        _targets(who, fn, destinations),
    )


def _policy(who: str, on_error: Any, where: Spec) -> Retry | None:
    if on_error is None:
        return None
    if isinstance(on_error, str) and on_error == "default":
        return _DEATHS if class_of(where.type).isolated else None
    if not isinstance(on_error, Retry):
        raise BuildError(
            f"{who}: on_error is 'default', None (one try) or fm.retry(attempts, backoff, on), not "
            f"{on_error!r}"
        )
    if on_error.then != "skip":
        raise BuildError(
            f"{who}: fm.retry(then={on_error.then!r}) is for pipelines; here a node that fails for "
            "good fails the run, which can be resumed"
        )
    return on_error


def _targets(who: str, fn: Any, destinations: Any) -> frozenset[str] | None:
    if destinations is None:
        return _annotated_targets(fn)
    if isinstance(destinations, str):
        destinations = (destinations,)
    try:
        names = tuple(destinations)
    except TypeError:
        raise BuildError(f"{who}: destinations are names of nodes, not {destinations!r}") from None
    for name in names:
        if not isinstance(name, str):
            raise BuildError(f"{who}: destinations are names of nodes, not {name!r}")
    return frozenset(names)


def _annotated_targets(fn: Any) -> frozenset[str] | None:
    """The names in ``-> Command[Literal["a", "b"]]``."""
    names: set[str] = set()
    found = False
    for part in _parts(_returned(fn)):
        if get_origin(part) is not Command:
            continue
        for literal in _parts(get_args(part)[0]):
            if get_origin(literal) is Literal:
                found = True
                names.update(name for name in get_args(literal) if isinstance(name, str))
    return frozenset(names) if found else None


def _parts(hint: Any) -> list[Any]:
    """The members of a union; a list's item."""
    if get_origin(hint) is list:
        return [part for arg in get_args(hint) for part in _parts(arg)]
    if type(hint).__name__ in ("UnionType", "_UnionGenericAlias", "Union"):
        return [part for arg in get_args(hint) for part in _parts(arg)]
    return [hint]


def _returned(fn: Any) -> Any:
    """The annotation of what a function returns; None if it has none, or nobody can read it."""
    inner = _plain(fn)
    if inner is None:
        return None
    hint = inner.__annotations__.get("return")
    if not isinstance(hint, str):
        return hint
    space = {**vars(typing), **getattr(sys.modules.get(inner.__module__), "__dict__", {})}
    space.update(inner.__globals__)
    if inner.__closure__:
        for name, cell in zip(inner.__code__.co_freevars, inner.__closure__, strict=True):
            try:
                space[name] = cell.cell_contents
            except ValueError:  # it is not set yet
                continue
    try:
        return eval(hint, space)
    except Exception:  # a name that only type checkers know
        return None


def _plain(fn: Any) -> FunctionType | None:
    """The Python function that is called in the end, if there is one."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, MethodType):
        fn = fn.__func__
    if not isinstance(fn, FunctionType):
        called = getattr(type(fn), "__call__", None)  # noqa: B004
        fn = called if isinstance(called, FunctionType) else None
    while isinstance(inner := getattr(fn, "__wrapped__", None), FunctionType):
        fn = inner
    return fn if isinstance(fn, FunctionType) else None


def goes_somewhere(fn: Callable[..., Any]) -> bool:
    """Whether a function may name its successors.

    It does if Command or Send is in its code, or in that of a function that it names. Of a callable
    object nobody knows, unless it says so (`stays`).
    """
    first = _plain(fn)
    if first is None or not _is_function(fn):
        return not getattr(fn, "stays", isinstance(fn, (type, BuiltinFunctionType)))
    seen: set[CodeType] = set()
    line: list[tuple[FunctionType, Any]] = [(first, getattr(fn, "__self__", None))]
    while line and len(seen) < _FAR:
        inner, owner = line.pop()
        codes = [inner.__code__]
        while codes:
            code = codes.pop()
            if code in seen:
                continue
            seen.add(code)
            codes += [const for const in code.co_consts if isinstance(const, CodeType)]
            for name in (*code.co_names, *code.co_freevars):
                value = _named(inner, owner, name)
                if name in ("Command", "Send") or value is Command or value is Send:
                    return True
                if isinstance(value, FunctionType) and not _is_ours(value):
                    line.append((value, owner))
        parts = _parts(_returned(inner))
        if any(part in (Command, Send) or get_origin(part) is Command for part in parts):
            return True
    return False


_FAR = 300  # pieces of code that are looked through


def _is_function(fn: Any) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return isinstance(fn, (FunctionType, MethodType))


def _is_ours(fn: FunctionType) -> bool:
    return fn.__module__ is not None and fn.__module__.split(".")[0] == "forkmill"


def _named(fn: FunctionType, owner: Any, name: str) -> Any:
    """What a name in a function's code stands for: of its globals, closure or object."""
    if name in fn.__code__.co_freevars and fn.__closure__:
        try:
            return fn.__closure__[fn.__code__.co_freevars.index(name)].cell_contents
        except ValueError:  # it is not set yet
            return None
    found = fn.__globals__.get(name)
    if found is None and owner is not None:
        found = inspect.getattr_static(type(owner), name, None)
    return found


def _not_of_one(fn: Any) -> str | None:
    """Why a function cannot be called with the state alone; None if it can, or nobody knows."""
    try:
        inspect.signature(fn).bind(None)
    except TypeError as error:
        return str(error)
    except ValueError:
        pass
    return None

"""A node: a function with named outputs, and what a graph must know of it.

    fm.node(fn, output_name=..., ...) ──▶ Node: fn, outputs, parameters, options

Guarantees:
    * A node is called as its function is, with the same arguments and the same result.
    * Everything that can be said of a function alone is checked here, before any code of it runs.
    * A node pickles: by its name where it was decorated, else by its function's.

Invariants:
    * NODE-1  A Node is never changed. `options` makes another one.
    * NODE-2  `parameters` are in the signature's order; there are no ``*args`` and ``**kwargs``.

Threads: any.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from .. import _checks
from .._checks import nearest
from ..errors import BuildError, name_of
from ..runs.policies import OptionError, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["ABSENT", "Arg", "Node", "Parameter", "arrived", "node", "parameters_of", "sendable"]

F = TypeVar("F")

ABSENT: Any = inspect.Parameter.empty

OPTIONS = (
    "output_name", "name", "context", "retry", "timeout", "cache", "batch", "version",
)  # fmt: skip


class Arg(NamedTuple):
    """One argument of a call.

    Attributes:
        name: The parameter's.
        slot: Where its value is.
        keyword: It is passed by its name; else by position, in the order of `Step.args`.
    """

    name: str
    slot: int
    keyword: bool = False


class Parameter(NamedTuple):
    """One parameter of a node.

    Attributes:
        name: The function's own name for it.
        by_position: It can be given by its position.
        by_name: It can be given by its name.
        default: What it is if nobody gives it; ABSENT: it has to be given.
        annotation: Its type, as written; ABSENT: none.
    """

    name: str
    by_position: bool
    by_name: bool
    default: Any
    annotation: Any


class Node:
    """A function with named outputs; made by `fm.node`.

    It is called as the function is. Two nodes of one function are two nodes.

    Attributes:
        fn: The function.
        name: What it is called, in paths and messages.
        outputs: The names of its outputs.
        inputs: The names of its parameters.
        is_async: Whether it is known that a call gives a coroutine.
        context, retry, timeout, cache, batch, version: As they were given; see `fm.node`.
    """

    graph = None  # as Nested has one

    def __init__(self, fn: Callable[..., Any], options: dict[str, Any]) -> None:
        if not callable(fn):
            raise OptionError(f"fm.node takes a callable, not {type(fn).__name__!r}")
        label = name_of(fn)
        name = _name(fn, label, options)
        self.fn = fn
        self.name = name
        self.outputs = _outputs(label, options.get("output_name"), _own_name(fn) or name)
        self.parameters = parameters_of(fn, label)
        self.inputs = tuple(p.name for p in self.parameters)
        self.is_async = _is_async(fn)
        self._options = options
        _check(label, options)
        self.context: Any = options.get("context")
        self.retry: Retry | None = options.get("retry")
        self.timeout: float | None = options.get("timeout")
        self.cache: bool = options.get("cache", False)
        self.batch: bool = options.get("batch", False)
        self.version: Any = options.get("version")
        functools.update_wrapper(self, fn, updated=())

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        """In a class it is a method: a node of each object's."""
        if owner is None:
            return self
        bound = getattr(self.fn, "__get__", None)
        return self if bound is None else Node(bound(owner, kind), self._options)

    def options(self, **changes: Any) -> Node:
        """A new node of the same function.

        Args:
            **changes: Options of `fm.node`, which take the place of this one's.

        Raises:
            BuildError: An unknown option, or a wrong value.
        """
        _known(changes)
        return Node(self.fn, {**self._options, **changes})

    def __reduce__(self) -> Any:
        holder = sendable(self.fn)
        if holder is self:
            return self.fn.__qualname__
        return _rebuilt, (holder, self._options)

    def __cache_key__(self) -> Any:
        """What a key of a cache makes of it, where a cached function names it."""
        return self.fn, self.outputs, self.version

    def __repr__(self) -> str:
        outputs = ", ".join(self.outputs)
        return f"<node {self.name}({', '.join(self.inputs)}) -> {outputs}>"


@overload
def node(fn: F, /) -> F: ...
@overload
def node(
    fn: Callable[..., Any],
    /,
    *,
    output_name: str | Iterable[str] | None = None,
    name: str | None = None,
    context: Any = None,
    retry: Retry | None = None,
    timeout: float | None = None,
    cache: bool = False,
    batch: bool = False,
    version: Any = None,
) -> Node: ...
@overload
def node(
    fn: None = None,
    /,
    *,
    output_name: str | Iterable[str] | None = None,
    name: str | None = None,
    context: Any = None,
    retry: Retry | None = None,
    timeout: float | None = None,
    cache: bool = False,
    batch: bool = False,
    version: Any = None,
) -> Callable[[F], F]: ...
def node(fn: Any = None, /, **options: Any) -> Any:
    """Make a node of a graph of a function: as a decorator, or called with it.

    Args:
        fn: Anything with a signature: a function (sync or async), a lambda, a class, a partial, a
            bound method, a callable object. Its parameters name what it reads.
        output_name: The name of what it returns, or several names for a tuple, a list or a dict;
            by default the function's name.
        name: What it is called in paths and messages; by default the function's name, or the first
            of its outputs' where it has none.
        context: Where it runs, if not where the engine says: a type, a spec such as "thread:8", an
            object, a named pool.
        retry: `fm.retry(attempts, backoff, on)`: what to do when it fails.
        timeout: Seconds that a call may take, where it can be stopped.
        cache: Results are looked up in the engine's cache, and kept there.
        batch: It is called with lists, one element an item, and gives lists of that length.
        version: Part of the cache's key, for what the code calls without naming it.

    Returns:
        The Node. Still called as the function is.

    Raises:
        BuildError: A signature that no graph can fill (``*args``, none at all), a generator
            function, no name, an unknown option or a wrong value.

    May be called from any thread.
    """
    _known(options)
    if fn is None:
        return functools.partial(_made, options)
    return _made(options, fn)


def _made(options: dict[str, Any], fn: Any) -> Node:
    return fn.options(**options) if isinstance(fn, Node) else Node(fn, options)


def _rebuilt(holder: Any, options: dict[str, Any]) -> Node:
    return Node(arrived(holder), options)


def sendable(fn: Any) -> Any:
    """What goes to another process for a function: the node that stands where it stood, or itself.

    A decorated function cannot be found by its name: that leads to the node.
    """
    found: Any = sys.modules.get(getattr(fn, "__module__", None) or "")
    for part in str(getattr(fn, "__qualname__", "")).split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, Node) and found.fn is fn else fn


def arrived(sent: Any) -> Any:
    """The function that `sendable` has sent."""
    return sent.fn if isinstance(sent, Node) else sent


# ---------------------------------------------------------------------- checks


def parameters_of(fn: Any, label: str) -> tuple[Parameter, ...]:
    """The parameters of a callable that a graph can fill.

    Raises:
        BuildError: It has no signature, or one that takes any number of arguments; it is a
            generator function.
    """
    call = fn if inspect.isroutine(fn) or inspect.isclass(fn) else getattr(fn, "__call__", fn)  # noqa: B004
    for its in (fn, call):
        if inspect.isgeneratorfunction(its) or inspect.isasyncgenfunction(its):
            raise BuildError(
                f"{label} is a generator function, and an output of a graph is one value: "
                f"return a list, or use it in a pipeline"
            )
    try:
        signature = inspect.signature(fn)
    except (ValueError, TypeError):
        raise BuildError(
            f"{label} has no signature that Python knows, so nothing says what it reads: "
            f"wrap it in a function with named parameters"
        ) from None
    found = []
    for p in signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            stars = "*" if p.kind is p.VAR_POSITIONAL else "**"
            raise BuildError(
                f"{label} takes {stars}{p.name}, and a node's inputs have names: "
                f"wrap it in a function with named parameters"
            )
        by_name = p.kind is not p.POSITIONAL_ONLY
        found.append(
            Parameter(p.name, p.kind is not p.KEYWORD_ONLY, by_name, p.default, p.annotation)
        )
    return tuple(found)


def _is_async(fn: Any) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    if inspect.iscoroutinefunction(fn):
        return True
    routine = inspect.isroutine(fn) or inspect.isclass(fn)
    return not routine and inspect.iscoroutinefunction(getattr(type(fn), "__call__", None))  # noqa: B004


def _name(fn: Any, label: str, options: dict[str, Any]) -> str:
    name = options.get("name")
    if name is None:
        name = _own_name(fn)
        if name is None:
            name = options.get("output_name")
            name = name if isinstance(name, str) or name is None else next(iter(name), None)
        if name is None:
            raise BuildError(f"{label} has no name of its own: give it one, fm.node(..., name=...)")
    if not isinstance(name, str):
        raise OptionError(f"{label}: name must be a str, not {type(name).__name__!r}")
    if not name:
        raise BuildError(f"{label}: name must not be empty")
    return str.__str__(name)


def _own_name(fn: Any) -> str | None:
    name = getattr(fn, "__name__", None)
    return name if isinstance(name, str) and name and name != "<lambda>" else None


def _outputs(label: str, given: Any, name: str) -> tuple[str, ...]:
    if given is None:
        return (name,)
    try:
        names = (given,) if isinstance(given, str) else tuple(given)
    except TypeError:
        names = (given,)
    for each in names:
        if not isinstance(each, str):
            raise OptionError(
                f"{label}: output_name must be a str or a tuple of them, not {given!r}"
            )
        if not each:
            raise BuildError(f"{label}: the name of an output must not be empty")
    if not names:
        raise BuildError(f"{label}: output_name names no output")
    if len(set(names)) < len(names):
        twice = next(each for each in names if names.count(each) > 1)
        raise BuildError(f"{label}: output_name has {twice!r} twice")
    return tuple(str.__str__(each) for each in names)


def _known(options: dict[str, Any]) -> None:
    for option in options:
        if option not in OPTIONS:
            raise OptionError(
                f"fm.node has no option {option!r}{nearest(option, OPTIONS)}; "
                f"it has {', '.join(OPTIONS)}"
            )


def _check(label: str, options: dict[str, Any]) -> None:
    retry = options.get("retry")
    if retry is not None and not isinstance(retry, Retry):
        raise OptionError(f"{label}: retry must be fm.retry(...) or None, not {retry!r}")
    if retry is not None and retry.then != "skip":
        raise BuildError(
            f"{label}: fm.retry(then=...) is for pipelines; in a graph map's on_error says "
            f"what happens when the tries are used up"
        )
    try:
        if options.get("timeout") is not None:
            _checks.seconds("timeout", options["timeout"])
        for name in ("cache", "batch"):
            _checks.a_bool(name, options.get(name, False))
    except TypeError as error:
        raise OptionError(f"{label}: {error}") from None
    except ValueError as error:
        raise BuildError(f"{label}: {error}") from None
    version = options.get("version")
    if not isinstance(version, (str, int, float, bytes, type(None))):
        raise OptionError(f"{label}: version must be a str or a number, not {version!r}")

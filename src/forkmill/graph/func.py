"""A graph as a plain function.

Threads: any.
"""

from __future__ import annotations

import inspect
import keyword
from typing import TYPE_CHECKING, Any

from .code import Call, everything
from .compile import needs
from .failed import failure_of, lost_with, raise_failure
from .loss import Stop
from .nested import names_of
from .nodes import ABSENT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Function"]


class Function:
    """A graph as a function; made by `Graph.func`. It pickles if the graph does.

    It runs one node after another, in the thread that calls it.

    Attributes:
        graph: The graph.
        output_name: What it returns.
    """

    def __init__(self, graph: Any, output_name: Any) -> None:
        single = isinstance(output_name, str)
        if output_name is None:
            names = graph.outputs
        else:
            names = graph._wanted(names_of("output_name", output_name), graph._wiring.outputs)
        self.graph = graph
        self.output_name = output_name if output_name is None or single else names
        self._single = names[0] if single else None
        self._names = names
        needed = needs(graph._wiring, graph._bound, names)
        self._inputs = tuple(name for name in needed if name not in graph._bound)
        required = [name for name in self._inputs if needed[name]]
        alone = required if len(required) == 1 else self._inputs
        self._first = alone[0] if len(alone) == 1 else None  # may be given by position
        self.__name__ = self.__qualname__ = self._single or graph.name or "graph"
        self.__doc__ = f"{', '.join(names)} of {', '.join(self._inputs)}."
        self.__module__ = __name__
        self.__signature__ = _signature(graph, needed, self._inputs, self._first)
        self._calls: dict[tuple[str, ...], Any] = {}

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs = self._named(args, kwargs)
        fn: Any = self._calls.get(tuple(kwargs)) or self._made(tuple(kwargs))
        try:
            values = kwargs.values()
            row = fn(*values) if len(values) == 1 else fn(values)
            return row if self._single is None else row[self._single]
        except Stop as stop:
            loss, plan = stop.loss, fn.plan
        raise_failure(failure_of(plan, loss, None, lost_with(plan, loss.step)), self.graph._called)

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        first = self._first
        if first is None or len(args) != 1:
            may = "" if first is None else f", of which {first!r} may be given by position"
            raise TypeError(
                f"{self.__name__}() takes {', '.join(self._inputs) or 'nothing'}, by name{may}; "
                f"got {len(args)} by position"
            )
        if first in kwargs:
            raise TypeError(f"{self.__name__}() got {first!r} twice: by position and by name")
        return {first: args[0], **kwargs}

    def _made(self, given: tuple[str, ...]) -> Callable[..., Any]:
        """The function for values of these names."""
        for name in given:
            if name not in self._inputs and name not in self.graph._bound:
                raise TypeError(f"{self.__name__}() has no argument {name!r}")
        plan = self.graph._plan(given, given, self._names)
        fn: Any = Call(everything(plan), plan.bound, mode="raise", blocking=True, local=True).fn
        fn.plan = plan
        if len(self._calls) >= 64:
            self._calls.clear()
        self._calls[given] = fn
        return fn  # type: ignore[no-any-return]

    def __cache_key__(self) -> Any:
        """What a key of a cache makes of it, where a cached function names it."""
        return self.graph, self.output_name

    def __reduce__(self) -> Any:
        return Function, (self.graph, self.output_name)

    def __repr__(self) -> str:
        return f"<function of {self.graph._called}: {self.__name__}{self.__signature__}>"


def _signature(
    graph: Any, needed: dict[str, bool], inputs: tuple[str, ...], first: str | None
) -> inspect.Signature:
    """The inputs as parameters; those whose names can be none are left out."""
    defaults: dict[str, Any] = {}
    for placed in graph._wiring.placed:
        for parameter, name in zip(placed.node.parameters, placed.reads, strict=True):
            if parameter.default is not ABSENT:
                defaults.setdefault(name, parameter.default)
    named, ahead = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                ahead if name == first else named,
                default=ABSENT if needed[name] else defaults.get(name),
            )
            for name in sorted(inputs, key=lambda name: name != first)
            if name.isidentifier() and not keyword.iskeyword(name)
        ]
    )

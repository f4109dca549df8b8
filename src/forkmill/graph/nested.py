"""A graph as a node of another one.

    graph.as_node(...) ──▶ Nested: the graph with its outer names, and what of it is mapped

Guarantees: it reads the graph's inputs and writes its outputs; an input that the graph can do
without (a default, a bound value) need not be there.

Threads: any; a Nested is never changed.
"""

from __future__ import annotations

from typing import Any

from .._checks import nearest
from ..errors import BuildError
from .nodes import ABSENT, Parameter

__all__ = ["MODES", "POLICIES", "Nested", "check_choice", "names_of"]

MODES = ("zip", "product")
POLICIES = ("raise", "skip")


class Nested:
    """A graph as a node; made by `Graph.as_node`.

    Attributes:
        graph: The graph, by its outer names.
        name: What leads to its nodes.
        inputs, outputs: As the graph's.
        map_over: Which inputs are lists, of which each element is one inner item; (): none.
        map_mode: "zip" or "product".
        on_error: "raise", or "skip": the lists hold Failures.
    """

    fn = None
    is_async = False
    context = retry = timeout = version = None
    cache = batch = False

    def __init__(
        self, graph: Any, name: str, map_over: tuple[str, ...], map_mode: str, on_error: str
    ) -> None:
        self.graph = graph
        self.name = name
        self.map_over = map_over
        self.map_mode = map_mode
        self.on_error = on_error
        self.outputs: tuple[str, ...] = graph.outputs
        self.parameters = tuple(
            Parameter(each, False, True, ABSENT if needed else None, ABSENT)
            for each, needed in graph._needs(graph.outputs).items()
        )
        self.inputs = tuple(parameter.name for parameter in self.parameters)
        for each in map_over:
            if each not in self.inputs:
                raise BuildError(
                    f"{name!r} has no input {each!r} to map over{nearest(each, self.inputs)}; "
                    f"it has {', '.join(self.inputs) or 'none'}"
                )

    def __repr__(self) -> str:
        over = f" over {', '.join(self.map_over)}" if self.map_over else ""
        return f"<graph {self.name}({', '.join(self.inputs)}) -> {', '.join(self.outputs)}{over}>"


def names_of(what: str, value: Any) -> tuple[str, ...]:
    """A name or an iterable of names, each once.

    Raises:
        BuildError: It is something else, or has a name twice.
    """
    try:
        names = (value,) if isinstance(value, str) else tuple(value)
    except TypeError:
        names = (value,)
    for name in names:
        if not isinstance(name, str):
            raise BuildError(f"{what} must be a name or a list of names, not {value!r}")
        if names.count(name) > 1:
            raise BuildError(f"{what} has {name!r} twice")
    return names


def check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of a few words.

    Raises:
        BuildError: It is another.
    """
    if not isinstance(value, str) or value not in choices:
        words = " or ".join(map(repr, choices))
        raise BuildError(f"{what} must be {words}, not {value!r}{nearest(value, choices)}")

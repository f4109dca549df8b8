"""What carries a graph out: the face that every engine has, and what a call tells it.

Threads: an engine may be used from any; what `map` gives belongs to one at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .plan import Plan

__all__ = ["Ctx", "Engine", "engine_of"]


@dataclass(slots=True)
class Ctx:
    """What a call of a graph tells its engine beside inputs and outputs.

    Attributes:
        plan: What is to be done, compiled for this call.
        mode: "run", "map" or "imap".
        map_over: The names whose values an item has, in the order of its tuple.
        on_error: "raise" or "skip".
        ordered: Whether rows are handed on in the order of the items.
        buffersize, chunksize: The window's limits, as for `ProcessPool.map`; None: the default.
        total: How many items there are, if that is known.
        sinks: Who hears the events of this run, checked.
        progress, report: As they were given.
        path: What the run is part of, or "".
        held: How many rows the graph holds back, to hand them on in order. They count as not
            consumed; the graph sets it.
    """

    plan: Plan
    mode: str
    map_over: tuple[str, ...] = ()
    on_error: str = "raise"
    ordered: bool = True
    buffersize: int | None = None
    chunksize: int | None = None
    total: int | None = None
    sinks: tuple[Any, ...] = ()
    progress: Any = False
    report: Any = None
    path: str = ""
    held: int = 0
    began: Any = None
    stats: Any = None
    stopped: bool = False
    noted: list[Any] = field(default_factory=list)


class Engine(ABC):
    """What carries graphs out."""

    @abstractmethod
    def run(
        self, graph: Any, inputs: Mapping[str, Any], output_name: Any = None, *, _ctx: Any = None
    ) -> dict[str, Any]:
        """One set of inputs; the outputs by name."""

    @abstractmethod
    def map(
        self,
        graph: Any,
        items: Iterator[tuple[Any, ...]],
        inputs: Mapping[str, Any],
        output_name: Any = None,
        *,
        _ctx: Any = None,
    ) -> Iterator[tuple[int, Any]]:
        """Many items: yields (index, outputs by name or a Failure), in any order."""


def engine_of(spec: Any) -> Engine:
    """The engine that a spec asks for.

    Raises:
        BuildError: There is none.
    """
    if isinstance(spec, Engine):
        return spec
    raise BuildError(f"an engine must be an fm.Engine, not {spec!r}")

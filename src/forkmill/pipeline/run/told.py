"""What a run tells of its plan when it begins: plain data, for who draws it.

Threads: any.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..declare import Source
from .operators import width_of

if TYPE_CHECKING:
    from ..graph import Stage, StageGraph

__all__ = ["plan_of", "total_of"]

_SIZED = (list, tuple, range, dict, set, frozenset, str, bytes, bytearray)


def plan_of(graph: StageGraph) -> dict[str, Any]:
    """Its stages, and which feeds which, by name."""
    nodes = [
        {
            "name": stage.name,
            "kind": stage.kind,
            "context": str(stage.spec),
            "workers": 0 if stage.inline else width_of(stage),
            "queue": stage.queue_size,
        }
        for stage in graph.stages
    ]
    edges = [[stage.name, to.name] for stage in graph.stages for to in stage.targets]
    return {"nodes": nodes, "edges": edges}


def total_of(graph: StageGraph) -> int | None:
    """How many items its sources have; None: one of them does not say."""
    found = [_size(stage) for stage in graph.stages if stage.kind == "producer"]
    sizes = [size for size in found if size is not None]
    return sum(sizes) if sizes and len(sizes) == len(found) else None


def _size(stage: Stage) -> int | None:
    """No code of the user's is called for it."""
    fn: Any = stage.fn
    if isinstance(fn, partial):  # shared values are given to it
        fn = fn.func
    if not isinstance(fn, Source) or type(fn.items) not in _SIZED:
        return None
    return len(fn.items)

"""A pipeline for the items that have failed: each goes into the stage that it failed in.

    producers, what is before ──▶ parse ──▶ load        the graph as it is
    "again parse": its items  ──▶ parse ──▶ load        the one for a second run

Guarantees:
    * A stage that no item can come to has no part in it: its on_end would tell of nothing.
    * An item that is only known as text is not taken for what it was.

Threads: any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .. import contexts
from ..errors import BuildError
from ..runs.policies import DeadLetter, final
from .graph import Stage, StageGraph

if TYPE_CHECKING:
    from .plan import ExecutionPlan

__all__ = ["begin_at"]


def begin_at(plan: ExecutionPlan, items: Iterable[tuple[str, Any]]) -> None:
    """Have a plan run these items alone: (the stage that each goes into, the item).

    A batch goes into its stage item by item, and may be put together otherwise there.

    Raises:
        BuildError: There is no such stage, or it takes no items.
    """
    by_stage: dict[Stage, list[Any]] = {}
    for name, item in items:
        stage = _stage_of(plan.graph, name)
        if item is None and not stage.parts.keys().isdisjoint(("on_end", "teardown")):
            raise BuildError(f"stage {name!r} may have failed at its end, with no item: run all")
        by_stage.setdefault(stage, []).append(item)
    kept = _reached(plan.graph, by_stage)
    for stage in kept:
        stage.sources = [source for source in stage.sources if source in kept]
    made = [_producer(stage, found) for stage, found in by_stage.items()]
    plan.replace(StageGraph(plan.graph.top, [*made, *kept]))


def _stage_of(graph: StageGraph, name: str) -> Stage:
    stage = graph.by_name.get(name)
    if stage is not None and stage.kind != "producer":
        return stage
    if stage is not None:
        raise BuildError(f"{name!r} is a producer: it failed itself, and no item of it did")
    outer = name.rpartition(".")[0]
    if outer in graph.by_name:
        raise BuildError(
            f"stage {name!r} is inside of {outer!r}, which is entered as a whole: run all items"
        )
    raise BuildError(
        f"there is no stage {name!r}; there are {', '.join(s.name for s in graph.stages)}"
    )


def _reached(graph: StageGraph, begins: Iterable[Stage]) -> list[Stage]:
    """Where items may come to that begin there, in the order of the graph."""
    found: set[Stage] = set()
    left = [*begins]
    while left:
        stage = left.pop()
        if stage in found:
            continue
        found.add(stage)
        left += stage.targets
        if stage.dynamic or isinstance(final(stage.on_error), DeadLetter):  # by a name, to any
            left += [other for other in graph.stages if other.kind != "producer"]
    return [stage for stage in graph.stages if stage in found]


def _producer(stage: Stage, items: list[Any]) -> Stage:
    def again() -> Iterator[Any]:
        for item in items:
            if stage.kind == "batch":
                yield from item
            else:
                yield item

    producer = Stage(
        name=f"again {stage.name}",
        kind="producer",
        fn=again,
        owner=stage.owner,
        level=stage.level,
        spec=contexts.spec("inline"),
        explicit=False,
        targets=[stage],
    )
    stage.sources.append(producer)
    return producer

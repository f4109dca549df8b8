"""The plan: which stages run together, and where. Made from a graph; nothing runs.

An inline stage runs together with the one stage that feeds it when that is an inline producer or
itself runs together with one. It is independent, with a queue of its own, if several feed it, if a
batch, a pipeline or another context does, if it is a batch with max_wait, or if it names its
context. Neighbours on the same named pool, or on one cluster, run in one call, if nothing about one
of them has to be seen from outside (see run.chains).

Threads: any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._checks import printable
from .graph import (
    Stage,
    StageGraph,
    build,
    check_runnable,
)
from .run.chains import joins_chain

if TYPE_CHECKING:
    from .declare import Declaration

__all__ = ["ExecutionPlan"]


class ExecutionPlan:
    """What a run of a pipeline does where.

    Args:
        pipeline: The pipeline.

    Attributes:
        graph: Its stages and links; made by `plan`.
    """

    def __init__(self, pipeline: Declaration) -> None:
        self.pipeline = pipeline
        self._graph: StageGraph | None = None
        self._anchors: dict[Stage, Stage] = {}

    def plan(self) -> ExecutionPlan:
        """Make the plan; once.

        Returns:
            Itself.

        Raises:
            BuildError: The pipeline is wrong.
        """
        if self._graph is None:
            graph = build(self.pipeline)
            check_runnable(graph)
            self.replace(graph)
        return self

    def replace(self, graph: StageGraph) -> None:
        """Have it carry out another graph of the same stages."""
        self._anchors.clear()
        for stage in graph.stages:
            anchor = _anchor(stage, graph, self._anchors)
            if anchor is not None:
                self._anchors[stage] = anchor
        self._graph = graph

    @property
    def graph(self) -> StageGraph:
        """The graph of the plan."""
        self.plan()
        assert self._graph is not None
        return self._graph

    def context_for(self, stage: str) -> str:
        """Where a stage runs: the type of its context.

        Args:
            stage: Its name.

        Raises:
            BuildError: There is no such stage.
        """
        return self.graph.stage(stage).spec.type

    def affinity_for(self, stage: str) -> str | None:
        """The stage that a stage runs together with; None if it is independent."""
        anchor = self._anchors.get(self.graph.stage(stage))
        return None if anchor is None else anchor.name

    @property
    def at_least_once(self) -> list[str]:
        """Those whose items may run again when a worker of a cluster dies with others of their
        chunk, in order."""
        return [stage.name for stage in self.graph.stages if stage.spec.repeats]

    @property
    def independent_stages(self) -> list[str]:
        """Those that run with none before them, in order."""
        return [stage.name for stage in self.graph.stages if stage not in self._anchors]

    @property
    def colocated_stages(self) -> dict[str, list[str]]:
        """Anchor -> those that run together with it, in order."""
        found: dict[str, list[str]] = {}
        for stage in self.graph.stages:
            anchor = self._anchors.get(stage)
            if anchor is not None:
                found.setdefault(anchor.name, []).append(stage.name)
        return found

    def __repr__(self) -> str:
        made = "not made yet" if self._graph is None else f"{len(self._graph.stages):,} stages"
        return f"<ExecutionPlan of {self.pipeline._title()[:80]!r}: {made}>"

    def _repr_html_(self) -> str:
        from html import escape  # for those who look at it alone

        return f"<pre>{escape(self.describe())}</pre>"

    def describe(self) -> str:
        """The plan as text, a line a stage."""
        title = printable(self.graph.pipeline._title())
        lines = [f"{title}: {len(self.graph.stages)} stages"]
        width = max(len(printable(stage.name)) for stage in self.graph.stages)
        for stage in self.graph.stages:
            anchor = self._anchors.get(stage)
            where = str(stage.spec) + (f" with {anchor.name}" if anchor else "")
            targets = printable(", ".join(target.name for target in stage.targets))
            goes = f" -> {targets}" if targets else ""
            routing = f" ({stage.routing})" if len(stage.targets) > 1 else ""
            name, where = printable(stage.name), printable(where)
            lines.append(f"  {name:<{width}}  {stage.kind:<8}  {where}{goes}{routing}")
        return "\n".join(lines)

    def to_mermaid(self) -> str:
        """The plan as a Mermaid flowchart; stages that run together share a box."""
        names = {stage: f"s{stage.index}" for stage in self.graph.stages}
        lines = ["flowchart LR"]
        groups = {a: [a, *m] for a, m in self.colocated_stages.items()}
        boxed = {name for members in groups.values() for name in members}
        for anchor, members in groups.items():
            lines.append(f'    subgraph g{self.graph.stage(anchor).index}["{_label(anchor)}"]')
            lines += [f"        {_box(self.graph.by_name[member], names)}" for member in members]
            lines.append("    end")
        lines += [
            f"    {_box(stage, names)}" for stage in self.graph.stages if stage.name not in boxed
        ]
        for stage in self.graph.stages:
            lines += [f"    {names[stage]} --> {names[target]}" for target in stage.targets]
        return "\n".join(lines)


def _label(text: str) -> str:
    from html import escape

    return escape(printable(text).replace('"', "'"), quote=False)


def _box(stage: Stage, names: dict[Stage, str]) -> str:
    label = f"{_label(stage.name)}<br/>{_label(str(stage.spec))}"
    return (
        f'{names[stage]}[["{label}"]]' if stage.kind == "producer" else f'{names[stage]}["{label}"]'
    )


def _anchor(stage: Stage, graph: StageGraph, anchors: dict[Stage, Stage]) -> Stage | None:
    """The stage that one runs together with, of those before it."""
    if stage.kind == "producer" or len(stage.sources) != 1 or stage.nested is not None:
        return None
    source = stage.sources[0]
    if source.kind == "batch" or source.nested is not None or source.owner is not stage.owner:
        return None
    if not stage.inline:
        return anchors.get(source, source) if joins_chain(stage, graph) else None
    if stage.explicit or stage.max_wait is not None or not source.inline:
        return None
    if source.kind == "producer":
        return source
    return anchors.get(source)

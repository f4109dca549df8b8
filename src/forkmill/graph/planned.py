"""Who would run what: the plan of a graph and an engine, for people to look at.

    Graph, engine ──▶ the groups that the engine would make, and where ──▶ GraphPlan

Guarantees: nothing runs, and nothing is opened. What could not run is refused as it would be.

Threads: any; plain data.
"""

from __future__ import annotations

import html as html_module
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import contexts
from .calls import Asked
from .crew import Crew
from .engine import LocalEngine, engine_of
from .homes import Session
from .nested import names_of
from .ways import Bell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .plan import Plan

__all__ = ["GraphPlan", "PlannedGroup", "plan_of"]


@dataclass(frozen=True)
class PlannedGroup:
    """Nodes that run in one call.

    Attributes:
        nodes: Their paths, in the order in which they run.
        where: The executor, as it is asked for.
        after: The indices of the groups that it waits for.
        inner: For a nested map, what is done with each of its items.
    """

    nodes: tuple[str, ...]
    where: str
    after: tuple[int, ...]
    inner: tuple[PlannedGroup, ...] = ()


@dataclass(frozen=True)
class GraphPlan:
    """What a run or a map of a graph comes to; made by `Graph.plan`.

    Attributes:
        graph: What the graph is called.
        engine: What carries it out.
        groups: The groups, in an order in which none waits for a later one.
        map_over: The names that are mapped; (): a single run.
        notes: What else is worth knowing.
    """

    graph: str
    engine: str
    groups: tuple[PlannedGroup, ...]
    map_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def where(self, node: str) -> str:
        """Where a node runs.

        Args:
            node: Its path.

        Raises:
            KeyError: It is in no group.
        """
        for group in _all(self.groups):
            if node in group.nodes:
                return group.where
        raise KeyError(f"no group has a node {node!r}")

    def describe(self) -> str:
        """The groups line by line: which nodes, where, after which others."""
        what = f"each item of {', '.join(self.map_over)}" if self.map_over else "a run"
        lines = [f"{what} of {self.graph}, by {self.engine}:"]
        lines += _lines(self.groups, "  ", "")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.describe()

    def __repr__(self) -> str:
        number = sum(len(group.nodes) for group in _all(self.groups))
        graph = self.graph if len(self.graph) < 60 else f"{self.graph[:57]}..."
        return f"<plan of {graph}: {number} nodes in {len(self.groups)} groups, by {self.engine}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html_module.escape(self.describe())}</pre>"


def _all(groups: tuple[PlannedGroup, ...]) -> Iterator[PlannedGroup]:
    for group in groups:
        yield group
        yield from _all(group.inner)


def _lines(groups: tuple[PlannedGroup, ...], indent: str, number: str) -> Iterator[str]:
    for at, group in enumerate(groups):
        own = f"{number}{at + 1}"
        after = ", ".join(f"{number}{each + 1}" for each in group.after)
        behind = f", after {after}" if after else ""
        if group.inner:
            yield f"{indent}{own} {group.nodes[0]}: for each inner item{behind}"
            yield from _lines(group.inner, indent + "  ", f"{own}.")
        else:
            yield f"{indent}{own} {', '.join(group.nodes)}: {group.where}{behind}"


def plan_of(graph: Any, engine: Any, map_over: Any, output_name: Any) -> GraphPlan:
    """The plan of a run, or of a map."""
    over = () if map_over is None else names_of("map_over", map_over)
    given = tuple(dict.fromkeys((
        *graph._needs(graph._outputs_of(output_name, ())), *over
    )))  # fmt: skip
    given = tuple(name for name in given if name not in graph._bound or name in over)
    plan = graph._plan(given, over or given, output_name)
    asked = graph._engine if engine is None else engine
    title = "the caller's thread"
    notes: list[str] = []
    if graph._is_here(asked):
        groups: tuple[PlannedGroup, ...] = ()
        if plan.steps:
            groups = (PlannedGroup(tuple(_paths(plan)), title, ()),)
    else:
        local = engine_of(asked)
        title = asked if isinstance(asked, str) else type(local).__name__
        if isinstance(local, LocalEngine):
            ctx = Asked("map" if over else "run", {}, over).ctx(plan)
            crew = Crew(local._placing, Session(), Bell(), ctx, local._home, contexts.called)
            constants = dict.fromkeys((*plan.bound, *plan.given.values()))
            layout = crew.layout(plan, constants, mapped=bool(over))
            groups = _groups(layout)
            notes += (
                f"{title}: an item may run again when a worker dies with others of its chunk "
                "(at_least_once=False: never)"
                for title in dict.fromkeys(_repeating(layout))
            )
        else:
            groups = (PlannedGroup(tuple(_paths(plan)), title, ()),)
    if any(step.node.cache for step in plan.steps) and getattr(asked, "cache", None) is None:
        notes.append("nothing is cached: the engine has no cache")
    return GraphPlan(graph._called, title, groups, over, tuple(notes))


def _repeating(layout: Any) -> Iterator[str]:
    """The executors whose items may run more than once."""
    for post in layout.posts:
        if post.nest is not None:
            yield from _repeating(post.nest.layout)
        elif post.home.repeats:
            yield post.home.title


def _paths(plan: Plan, prefix: str = "") -> Iterator[str]:
    for step in plan.steps:
        if step.nest is None:
            yield prefix + step.path
        else:
            yield from _paths(step.nest.plan, f"{prefix}{step.path}.")


def _groups(layout: Any, prefix: str = "") -> tuple[PlannedGroup, ...]:
    found = []
    for post in layout.posts:
        names = tuple(prefix + step.path for step in post.group.steps)
        inner: tuple[PlannedGroup, ...] = ()
        if post.nest is not None:
            inner = _groups(post.nest.layout, f"{names[0]}.")
        found.append(PlannedGroup(names, post.home.title, tuple(post.group.after), inner))
    return tuple(found)

"""Random state graphs, as data; what carries them out in forkmill; and what they should come to.

The reference is a plain loop: no processes, no store, nothing of ours.
"""

from __future__ import annotations

import operator
import os
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import forkmill as fm

LIMIT = 12  # steps that are compared: most of the graphs have loops


class State(TypedDict, total=False):
    total: Annotated[int, operator.add]
    log: Annotated[list[str], operator.add]
    trail: Annotated[list[int], fm.append]
    last: str
    own_a: int
    own_b: int
    own_c: int
    own_d: int
    own_w: int
    file: str


@dataclass(frozen=True)
class Node:
    """What a node does: all of it follows from the state, or from its Send's argument.

    Attributes:
        name: Its name.
        adds: What it adds to the total.
        delay: Milliseconds that it takes.
        fails: Whether its first attempt at a task fails.
        last: Whether it writes the key that one may write.
        gotos: Where it goes besides its edges, while the total is below `until`.
        sends: So many Sends to "w" then.
        only: Whether that is instead of its edges.
    """

    name: str
    adds: int = 1
    delay: float = 0.0
    fails: bool = False
    last: bool = False
    gotos: tuple[str, ...] = ()
    sends: int = 0
    only: bool = False
    until: int = 4

    def goes(self, total: int) -> tuple[list[Any], bool]:
        """(names, and numbers for Sends to w; whether that is all)."""
        if total >= self.until or not (self.gotos or self.sends or self.only):
            return [], False
        return [*self.gotos, *range(self.sends)], self.only

    def writes(self, given: Any) -> dict[str, Any]:
        """What it writes, of a state or a Send's argument."""
        if isinstance(given, list):
            return {"total": 1, "log": [f"{self.name} {given[0]}"], "trail": [given[0]]}
        total = given.get("total", 0)
        found: dict[str, Any] = {"total": self.adds, "log": [f"{self.name}:{total}"]}
        found[f"own_{self.name}"] = total
        if self.last:
            found["last"] = f"{self.name}{total}"
        if self.adds > 1:
            found["trail"] = [total]
        return found


@dataclass(frozen=True)
class Choice:
    """A conditional edge: which targets it picks follows from the total."""

    source: str
    targets: tuple[str, ...]
    until: int

    def __call__(self, state: Any) -> list[str]:
        total = state.get("total", 0)
        if total >= self.until:
            return []
        return [t for bit, t in enumerate(self.targets) if (total >> bit) & 1]


@dataclass(frozen=True)
class Spec:
    nodes: tuple[Node, ...]
    starts: tuple[str, ...]
    edges: tuple[tuple[str, str], ...] = ()
    joins: tuple[tuple[tuple[str, ...], str], ...] = ()
    choices: tuple[Choice, ...] = ()


# ------------------------------------------------------------------------ the reference


@dataclass
class Expected:
    """What a graph comes to.

    Attributes:
        steps: Of each committed step: (what ran, which keys changed, what is next).
        state: The state after the last one.
        conflict: Whether the step after that has two writers of "last".
        complete: Whether nothing is next.
    """

    steps: list[tuple[list[str], list[str], list[str]]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    conflict: bool = False
    complete: bool = False


def reference(spec: Spec, given: dict[str, Any]) -> Expected:
    """Run it by a plain loop."""
    nodes = {node.name: node for node in spec.nodes}
    found = Expected(state={"total": 0, "log": [], "trail": [], **given})
    filled: list[set[str]] = [set() for _ in spec.joins]
    frontier: list[tuple[str, Any]] = [(name, None) for name in spec.starts]
    while frontier and len(found.steps) < LIMIT:
        writes, ways, left = [], [], []
        for name, arg in frontier:
            node = nodes[name]
            writes.append(node.writes(dict(found.state) if arg is None else arg))
            going, only = ([], False) if arg is not None else node.goes(found.state["total"])
            ways += [("w", [x]) if isinstance(x, int) else (x, None) for x in going]
            if not only and name not in left:
                left.append(name)
        if sum("last" in update for update in writes) > 1:
            found.conflict = True
            return found
        for update in writes:
            for key, value in update.items():
                adds = key in ("total", "log", "trail")
                found.state[key] = found.state[key] + value if adds else value
        coming = [(b, None) for a, b in spec.edges if a in left] + ways
        for choice in spec.choices:
            if choice.source in left:
                coming += [(name, None) for name in choice(found.state)]
        for number, (sources, target) in enumerate(spec.joins):
            filled[number] |= set(sources) & set(left)
            if filled[number] == set(sources):
                filled[number] = set()
                coming.append((target, None))
        ran, frontier = [name for name, _ in frontier], []
        for way in coming:
            if way[0] != fm.END and (way[1] is not None or way not in frontier):
                frontier.append(way)
        changed = sorted({key for update in writes for key in update})
        found.steps.append((ran, changed, [name for name, _ in frontier]))
    found.complete = not frontier
    return found


# ------------------------------------------------------------------------- in forkmill


class Run:
    """A node's function."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.__name__ = node.name

    def __call__(self, given: Any) -> Any:
        node = self.node
        file = given[1] if isinstance(given, list) else given.get("file")
        if file and leave(file) == 1 and node.fails:
            raise ValueError(f"the first attempt of {node.name}")
        if node.delay:
            time.sleep(node.delay / 1000)
        update = node.writes(given if isinstance(given, list) else dict(given))
        if isinstance(given, list):
            return update
        going, only = node.goes(given["total"])
        if not going and not only:
            return update
        ways = [fm.Send("w", [x, file]) if isinstance(x, int) else x for x in going]
        return fm.Command(update=update, goto=ways or None, only=only)


def leave(file: str) -> int:
    """A line for the task that runs; how many it has left."""
    line = "|".join(map(str, fm.task_id())) + "\n"
    with open(file, "ab", buffering=0) as lines:
        lines.write(line.encode())
    with open(file) as lines:
        return lines.read().count(line)


def made(spec: Spec, context: Any, **options: Any) -> Any:
    """The graph, compiled."""
    graph = fm.StateGraph(State, context=context)
    for node in spec.nodes:
        to = [*dict.fromkeys((*node.gotos, *(("w",) if node.sends else ())))]
        graph.add_node(node.name, Run(node), destinations=to)
    for name in spec.starts:
        graph.add_edge(fm.START, name)
    for a, b in spec.edges:
        graph.add_edge(a, b)
    for sources, target in spec.joins:
        graph.add_edge(list(sources), target)
    for choice in spec.choices:
        graph.add_conditional_edges(choice.source, choice, list(choice.targets))
    return graph.compile(**options)


def lines(file: Any) -> list[str]:
    """Which tasks have run, in their order."""
    if not os.path.exists(file):
        return []
    with open(file) as text:
        return text.read().splitlines()

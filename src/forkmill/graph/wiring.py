"""Nodes to a graph: edges by name, an order, and all that can be wrong with them.

    Placed, Placed, ... ──wire──▶ Wiring: the same in topological order, who makes which name

Guarantees:
    * What comes out depends on the set of nodes alone: of several nodes that could be next, the one
      whose first output comes first by name is.
    * It takes about linear time, and no recursion.

Threads: any; a Wiring is never changed.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BuildError
from .nodes import ABSENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Placed", "Wiring", "wire"]


class Placed(NamedTuple):
    """A node in a graph, which may have other names for what it reads and writes.

    Attributes:
        node: A `Node`, or a `Nested`.
        reads: What the graph calls its inputs, in the order of `node.parameters`.
        writes: What the graph calls its outputs, in the order of `node.outputs`.
    """

    node: Any
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def renamed(self, names: Mapping[str, str]) -> Placed:
        """With other names; itself if none of its own is among them."""
        if not any(name in names for name in (*self.reads, *self.writes)):
            return self
        return Placed(
            self.node,
            tuple(names.get(name, name) for name in self.reads),
            tuple(names.get(name, name) for name in self.writes),
        )


@dataclass(frozen=True)
class Wiring:
    """What a graph is.

    Attributes:
        placed: Its nodes in topological order.
        paths: What each of them is called, each once.
        makers: Name of an output -> index of its node.
        inputs: Name of an input -> whether somebody gives it no default; by first use.
        outputs: The names of all outputs, in the order of their nodes.
    """

    placed: tuple[Placed, ...]
    paths: tuple[str, ...]
    makers: Mapping[str, int]
    inputs: Mapping[str, bool]
    outputs: tuple[str, ...]


def wire(nodes: Sequence[Placed]) -> Wiring:
    """Wire nodes by the names that they read and write.

    Raises:
        BuildError: Two make the same name; one reads what it makes; they wait for each other in a
            circle; two nested graphs have one name.
    """
    makers = _makers(nodes)
    order = _ordered(nodes, makers)
    placed = tuple(nodes[at] for at in order)
    inputs: dict[str, bool] = {}
    for each in placed:
        for parameter, name in zip(each.node.parameters, each.reads, strict=True):
            if name not in makers:
                inputs[name] = inputs.get(name, False) or parameter.default is ABSENT
    return Wiring(
        placed,
        _paths(placed),
        {name: at for at, each in enumerate(placed) for name in each.writes},
        inputs,
        tuple(name for each in placed for name in each.writes),
    )


def _makers(nodes: Sequence[Placed]) -> dict[str, int]:
    makers: dict[str, int] = {}
    for at, placed in enumerate(nodes):
        for name in placed.writes:
            if name in makers:
                first = nodes[makers[name]].node
                raise BuildError(
                    f"{name!r} is an output of both {_called(first)} and {_called(placed.node)}: "
                    f"give one of them another output_name"
                )
            makers[name] = at
        for name in placed.reads:
            if name in placed.writes:
                raise BuildError(
                    f"{_called(placed.node)} reads {name!r}, which is its own output: "
                    f"give it another output_name"
                )
    return makers


def _ordered(nodes: Sequence[Placed], makers: Mapping[str, int]) -> list[int]:
    """Indices of nodes, each after those that it reads of (Kahn)."""
    waits: list[int] = []
    feeds: list[list[int]] = [[] for _ in nodes]
    for at, placed in enumerate(nodes):
        needs = {makers[name] for name in placed.reads if name in makers}
        waits.append(len(needs))
        for need in needs:
            feeds[need].append(at)
    keys = [placed.writes[0] if placed.writes else placed.node.name for placed in nodes]
    ready = [(keys[at], at) for at, number in enumerate(waits) if not number]
    heapq.heapify(ready)
    order = []
    while ready:
        _, at = heapq.heappop(ready)
        order.append(at)
        for follower in feeds[at]:
            waits[follower] -= 1
            if not waits[follower]:
                heapq.heappush(ready, (keys[follower], follower))
    if len(order) < len(nodes):
        raise BuildError(_circle(nodes, makers, waits))
    return order


def _circle(nodes: Sequence[Placed], makers: Mapping[str, int], waits: list[int]) -> str:
    """Who still waits waits for somebody who does: going back, one is met again."""
    at = next(at for at, number in enumerate(waits) if number)
    seen: dict[int, int] = {}
    path: list[tuple[int, str]] = []  # a node, and what of the one before it reads
    while at not in seen:
        seen[at] = len(path)
        name = next(n for n in nodes[at].reads if n in makers and waits[makers[n]])
        path.append((at, name))
        at = makers[name]
    circle = path[seen[at] :][::-1]  # each reads `name` of the one before it
    if len(circle) > 12:
        circle = [*circle[:6], *circle[-6:]]
    text = _called(nodes[circle[-1][0]].node)
    for each, name in circle:
        node = nodes[each].node
        maker = nodes[makers[name]].node
        of = "" if maker.graph is None and maker.name == name else f" (its {name!r})"
        text += f"{of} -> {_called(node)}"
    return f"these nodes wait for each other: {text}. One of their inputs needs another name"


def _paths(placed: Iterable[Placed]) -> tuple[str, ...]:
    """Each node's name; where several share it, with their first output."""
    placed = tuple(placed)
    count: dict[str, int] = {}
    for each in placed:
        count[each.node.name] = count.get(each.node.name, 0) + 1
    for each in placed:
        if each.node.graph is not None and count[each.node.name] > 1:
            raise BuildError(
                f"two nodes are called {each.node.name!r}, and one of them is a graph, whose name "
                f"leads to its nodes: give it another, as_node(name=...)"
            )
    return tuple(
        each.node.name
        if count[each.node.name] == 1
        else f"{each.node.name}[{', '.join(each.writes)}]"
        for each in placed
    )


def _called(node: Any) -> str:
    return f"the graph {node.name!r}" if node.graph is not None else repr(node.name)

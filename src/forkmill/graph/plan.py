"""What one call of a graph comes to: values in slots, the steps between them, and who runs what.

    Graph, given names, wanted names ──compile──▶ Plan ──groups──▶ Group, Group, ... ──▶ code

    names     text      model     clean     words     count
    slots     [0]       [1]       [2]       [3]       [4]
              mapped    constant  clean()   ──── split() ────
              an item   the run   steps, in topological order

A **slot** is a number for a value. Mapped slots are filled by each item, constant ones once a run
(given and not mapped, or bound), the others by steps. A **step** is a call of one node, or a nested
map (a plan of its own, for each of many inner items). Nested graphs without a map are steps like
others, with their names before a dot: ``each.clean``. A **group** is steps that run in one call: it
reads slots, and writes those that somebody else needs.

Guarantees:
    * A plan depends on the set of nodes, not on the order in which they were written: steps come in
      topological order, of those that are ready the first by name.
    * Only the steps that wanted outputs need are in it.
    * Groups in their order are a topological order, too: no group waits for a later one.

Invariants:
    * PLAN-1  A slot has one writer: an item, the run, or one step. Its number is larger than those
      that its writer reads.
    * PLAN-2  What a default would give is in no slot: such an argument is left out of the call.

Threads: any; everything here is plain data that is never changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .nodes import Arg

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from .nodes import Node

__all__ = ["Arg", "Group", "Nest", "Plan", "Step", "grouped"]


class Nest(NamedTuple):
    """A nested map: a plan that runs for each inner item.

    Attributes:
        plan: What is done with one inner item. Its own slots count from 0.
        over: (slot outside, mapped slot inside), in map_over's order.
        passed: (slot outside, constant slot inside): what every inner item gets.
        mode: "zip" or "product".
        on_error: "raise" or "skip".
        outputs: The slots inside whose values make the lists, in the order of `Step.writes`.
    """

    plan: Plan
    over: tuple[tuple[int, int], ...]
    passed: tuple[tuple[int, int], ...]
    mode: str
    on_error: str
    outputs: tuple[int, ...]


class Step(NamedTuple):
    """One call of one node, or a nested map.

    Attributes:
        number: Its index in `Plan.steps`.
        path: The node's name, behind those of the graphs around it: "each.score".
        node: The function and its options; for a nested map the graph's node.
        args: What it is called with, positional ones first.
        writes: The slots of its outputs, in the order of `node.outputs`.
        nest: The nested map, or None.
    """

    number: int
    path: str
    node: Node
    args: tuple[Arg, ...]
    writes: tuple[int, ...]
    nest: Nest | None = None


@dataclass(frozen=True)
class Plan:
    """One call of a graph, compiled for the names that are given and those that are wanted.

    Attributes:
        name: The graph's, or "".
        slots: How many there are.
        names: What each slot is called, with the path for those inside of nested graphs.
        mapped: The slots that an item fills, in map_over's order; for `run` all given names.
        given: Name -> slot of what is given once a run.
        bound: Slot -> value of what was bound.
        steps: In topological order.
        outputs: Name -> slot of what is wanted, in order.
        copied: The constant slots whose value is deep-copied for every item.
    """

    name: str
    slots: int
    names: tuple[str, ...]
    mapped: tuple[int, ...]
    given: Mapping[str, int]
    bound: Mapping[int, Any]
    steps: tuple[Step, ...]
    outputs: Mapping[str, int]
    copied: frozenset[int] = field(default_factory=frozenset)

    def constants(self, inputs: Mapping[str, Any]) -> dict[int, Any]:
        """Slot -> value of all constants of a run."""
        return {**self.bound, **{slot: inputs[name] for name, slot in self.given.items()}}


@dataclass(frozen=True)
class Group:
    """Steps that run in one call.

    Attributes:
        number: Its index among the plan's groups.
        steps: In topological order. A nested map is alone in its group.
        reads: The slots, no constants, that an item brings, ascending.
        fixed: The constant slots that it reads.
        writes: The slots that other groups need, or that are wanted, ascending.
        place: Where it runs: what the placing said.
        after: The numbers of the groups that it waits for.
        before: The numbers of the groups that wait for it.
        bare: Its items are values, not tuples: it reads one slot, and all its steps depend on it.
    """

    number: int
    steps: tuple[Step, ...]
    reads: tuple[int, ...]
    fixed: tuple[int, ...]
    writes: tuple[int, ...]
    place: Hashable
    after: tuple[int, ...]
    before: tuple[int, ...]
    bare: bool

    @property
    def nest(self) -> Nest | None:
        """The nested map, if that is what it is."""
        return self.steps[0].nest


def grouped(
    plan: Plan,
    place: Callable[[Step], Hashable],
    *,
    whole: bool,
    alone: Callable[[Step], bool],
) -> tuple[Group, ...]:
    """Which steps run together.

    Args:
        plan: The plan.
        place: Says where a step runs; only steps of one place come together.
        whole: The item is the unit: all steps of a place that can run in one call do. Else only a
            step whose only predecessor feeds nothing else joins that one's call.
        alone: Says whether a step has to be a group of its own (a timeout, a batch, a context of
            its own, a cache that is asked in the parent). Nested maps always are.
    """
    makers = {slot: step.number for step in plan.steps for slot in step.writes}
    needs = [
        sorted({makers[arg.slot] for arg in step.args if arg.slot in makers}) for step in plan.steps
    ]
    places = [place(step) for step in plan.steps]
    own = [step.nest is not None or alone(step) for step in plan.steps]
    joined = _by_level if whole else _by_chain
    sets = joined(plan, needs, places, own)
    home = {number: at for at, numbers in enumerate(sets) for number in numbers}
    after = [
        sorted({home[need] for number in numbers for need in needs[number]} - {at})
        for at, numbers in enumerate(sets)
    ]
    before: list[list[int]] = [[] for _ in sets]
    for at, others in enumerate(after):
        for other in others:
            before[other].append(at)
    readers: dict[int, set[int]] = {slot: set() for slot in makers}
    for step in plan.steps:
        for arg in step.args:
            if arg.slot in readers:
                readers[arg.slot].add(home[step.number])
    wanted = set(plan.outputs.values())
    constants = {*plan.bound, *plan.given.values()}
    return tuple(
        _group(plan, at, numbers, places, (after[at], before[at]), constants, wanted, readers)
        for at, numbers in enumerate(sets)
    )


def _by_chain(
    plan: Plan, needs: list[list[int]], places: list[Hashable], own: list[bool]
) -> list[list[int]]:
    """A step whose only predecessor feeds nothing else joins it."""
    feeds = [0] * len(plan.steps)
    for predecessors in needs:
        for number in predecessors:
            feeds[number] += 1
    sets: list[list[int]] = []
    home: list[int] = []
    for number, predecessors in enumerate(needs):
        if len(predecessors) == 1 and not own[number]:
            (before,) = predecessors
            if feeds[before] == 1 and not own[before] and places[before] == places[number]:
                sets[home[before]].append(number)
                home.append(home[before])
                continue
        home.append(len(sets))
        sets.append([number])
    return sets


def _by_level(
    plan: Plan, needs: list[list[int]], places: list[Hashable], own: list[bool]
) -> list[list[int]]:
    """All steps of a place that have the same number of changes of place before them.

    Whatever leads from one set to another raises that number, so no two wait for each other.
    """
    levels: list[int] = []
    sets: dict[Hashable, list[int]] = {}
    for number, predecessors in enumerate(needs):
        level = 0
        for before in predecessors:
            apart = own[number] or own[before] or places[before] != places[number]
            level = max(level, levels[before] + apart)
        levels.append(level)
        key = (level, number) if own[number] else (level, None, places[number])
        sets.setdefault(key, []).append(number)
    return sorted(sets.values(), key=lambda numbers: (levels[numbers[0]], numbers[0]))


def _group(
    plan: Plan,
    at: int,
    numbers: list[int],
    places: list[Hashable],
    around: tuple[list[int], list[int]],
    constants: set[int],
    wanted: set[int],
    readers: dict[int, set[int]],
) -> Group:
    steps = tuple(plan.steps[number] for number in numbers)
    made = {slot for step in steps for slot in step.writes}
    read = {arg.slot for step in steps for arg in step.args} - made
    reads = tuple(sorted(read - constants))
    writes = tuple(slot for slot in sorted(made) if slot in wanted or readers[slot] - {at})
    depends = set(reads)
    for step in steps:
        if any(arg.slot in depends for arg in step.args):
            depends.update(step.writes)
    bare = len(reads) == 1 and all(any(arg.slot in depends for arg in step.args) for step in steps)
    return Group(
        at, steps, reads, tuple(sorted(read & constants)), writes, places[numbers[0]],
        tuple(around[0]), tuple(around[1]), bare,
    )  # fmt: skip

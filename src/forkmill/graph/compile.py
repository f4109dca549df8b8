"""A graph to a Plan: what is needed for what is wanted, with slots for names.

    wanted ──backwards──▶ the nodes that are needed ──forwards──▶ slots and steps

Nested graphs without a map are written out, their names behind theirs. A nested map gets a plan of
its own.

Guarantees: no user's code runs; everything that is missing is told at once. No recursion, but for
graphs within graphs.

Threads: any.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._checks import nearest
from ..errors import BuildError
from .nodes import ABSENT
from .plan import Arg, Nest, Plan, Step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from .nested import Nested
    from .wiring import Placed, Wiring

__all__ = ["compile_plan", "needs"]


@dataclass
class _Need:
    """What wanted outputs need of a graph.

    Attributes:
        nodes: Index of a node -> which of its outputs are needed.
        inputs: The names of inputs that somebody reads -> whether one must be given.
        given: The given names that somebody reads.
    """

    nodes: dict[int, list[str]] = field(default_factory=dict)
    inputs: dict[str, bool] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)


def needs(wiring: Wiring, bound: Collection[str], wanted: Iterable[str]) -> dict[str, bool]:
    """The inputs that outputs need -> whether they have to be given; by first use."""
    found = _needed(wiring, bound, (), wanted).inputs
    return {name: found[name] for name in wiring.inputs if name in found}


def _needed(
    wiring: Wiring, bound: Collection[str], given: Collection[str], wanted: Iterable[str]
) -> _Need:
    """Backwards: who reads of a node has been looked at before it."""
    found = _Need()
    names = set(wanted)
    for at in range(len(wiring.placed) - 1, -1, -1):
        placed = wiring.placed[at]
        outputs = [name for name in placed.writes if name in names and name not in given]
        if not outputs:
            continue
        whole = [name for name in placed.writes if name in given]
        if whole:
            raise BuildError(
                f"{_listed(whole)} given, of the outputs of {placed.node.name!r}, and "
                f"{_listed(outputs)} needed, too: a given value takes the place "
                f"of its node, so give all of its outputs that are needed"
            )
        found.nodes[at] = outputs
        for name, required in _reads(placed, outputs):
            if name in given:
                found.given.add(name)
            elif name in wiring.makers:
                names.add(name)
            else:
                must = required and name not in bound
                found.inputs[name] = found.inputs.get(name, False) or must
    return found


def _listed(names: list[str]) -> str:
    return f"{', '.join(map(repr, names))} {'is' if len(names) == 1 else 'are'}"


def _reads(placed: Placed, outputs: list[str]) -> Iterable[tuple[str, bool]]:
    """What a node reads for some of its outputs, and whether it can do without."""
    node = placed.node
    if node.graph is None:
        return [
            (name, parameter.default is ABSENT)
            for parameter, name in zip(node.parameters, placed.reads, strict=True)
        ]
    inner = dict(zip(placed.writes, node.outputs, strict=True))
    outer = dict(zip(node.inputs, placed.reads, strict=True))
    read = node.graph._needs(tuple(inner[name] for name in outputs))
    for each in node.map_over:  # they say how many inner items there are
        read.setdefault(each, each not in node.graph._bound)
    return [(outer[name], required) for name, required in read.items()]


def compile_plan(
    graph: Any,
    given: Sequence[str],
    mapped: Sequence[str],
    wanted: Sequence[str],
    copied: Collection[str] = (),
) -> Plan:
    """The plan of one call.

    Args:
        graph: The graph.
        given: The names that are given, mapped ones too.
        mapped: Those that every item has anew, in the order of its tuple.
        wanted: The outputs.
        copied: The constants that are deep-copied for each item.

    Raises:
        BuildError: An unknown name; a given value that nothing reads any more; missing inputs; a
            node of which some outputs are given and others needed.
    """
    wiring: Wiring = graph._wiring
    _check_given(graph, given)
    need = _needed(wiring, graph._bound, given, wanted)
    missing = [name for name in wiring.inputs if need.inputs.get(name) and name not in given]
    if missing:
        raise BuildError(
            f"{graph._called} needs {', '.join(map(repr, missing))}, which "
            f"{'is' if len(missing) == 1 else 'are'} not given"
        )
    _check_unused(graph, given, wanted, need)
    writer = _Writer(copied)
    slots = {name: writer.slot(name) for name in given}
    writer.copied.update(slots[name] for name in copied if name in slots)
    outputs = writer.graph(graph, need, slots, "")
    constants = {name: slot for name, slot in slots.items() if name not in mapped}
    return Plan(
        graph.name or "",
        len(writer.names),
        tuple(writer.names),
        tuple(slots[name] for name in mapped),
        constants,
        writer.bound,
        tuple(writer.steps),
        {name: outputs[name] for name in wanted},
        frozenset(writer.copied),
    )


def _check_given(graph: Any, given: Sequence[str]) -> None:
    known = graph._wiring
    for name in given:
        if name not in known.inputs and name not in known.makers:
            names = [*known.inputs, *known.makers]
            raise BuildError(
                f"{graph._called} has no input {name!r}{nearest(name, names)}; "
                f"it has {', '.join(known.inputs) or 'none'}"
            )


def _check_unused(graph: Any, given: Sequence[str], wanted: Sequence[str], need: _Need) -> None:
    """An input that is read no more because a computed value was given would be ignored."""
    computed = [name for name in given if name in graph._wiring.makers]
    unused = [name for name in given if name not in need.given and name not in computed]
    if not computed or not unused:
        return
    before = _needed(graph._wiring, graph._bound, (), (*wanted, *computed)).inputs
    for name in unused:
        if name in before:
            raise BuildError(
                f"{name!r} is given, but nothing reads it any more, because "
                f"{', '.join(map(repr, computed))} {'is' if len(computed) == 1 else 'are'} given"
            )


class _Writer:
    """Writes slots and steps."""

    def __init__(self, copied: Collection[str]) -> None:
        self.names: list[str] = []
        self.copy = copied
        self.copied: set[int] = set()
        self.bound: dict[int, Any] = {}
        self.steps: list[Step] = []

    def slot(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1

    def constant(self, name: str, value: Any) -> int:
        slot = self.slot(name)
        self.bound[slot] = value
        return slot

    def graph(self, graph: Any, need: _Need, slots: dict[str, int], prefix: str) -> dict[str, int]:
        """Write the steps of a graph's needed nodes; name -> slot of all that is there then."""
        wiring: Wiring = graph._wiring
        slots = dict(slots)
        for name in need.inputs:
            if name not in slots and name in graph._bound:
                slots[name] = self.constant(prefix + name, graph._bound[name])
                if not prefix and name in self.copy:
                    self.copied.add(slots[name])
        for at, outputs in sorted(need.nodes.items()):
            placed = wiring.placed[at]
            path = prefix + wiring.paths[at]
            if placed.node.graph is None:
                self.call(placed, slots, prefix, path)
            elif placed.node.map_over:
                self.nest(placed, outputs, slots, prefix, path)
            else:
                self.written_out(placed, outputs, slots, path)
        return slots

    def call(self, placed: Placed, slots: dict[str, int], prefix: str, path: str) -> None:
        node = placed.node
        positional, named, gap = [], [], False
        for parameter, name in zip(node.parameters, placed.reads, strict=True):
            slot = slots.get(name)
            if slot is None:
                if not parameter.by_name and _is_before_given(node, placed, parameter, slots):
                    slot = self.constant(f"{path}.{parameter.name}", parameter.default)
                else:
                    gap = True
                    continue
            if parameter.by_position and not gap:
                positional.append(Arg(parameter.name, slot))
            else:
                named.append(Arg(parameter.name, slot, True))
        self.step(path, node, (*positional, *named), self.new(placed, node.outputs, slots, prefix))

    def new(
        self, placed: Placed, outputs: Iterable[str], slots: dict[str, int], prefix: str
    ) -> tuple[int, ...]:
        """Slots for a node's outputs. One that is given keeps its slot for those who read it."""
        found = []
        outer = dict(zip(placed.node.outputs, placed.writes, strict=True))
        for output in outputs:
            slot = self.slot(prefix + outer[output])
            slots[outer[output]] = slot
            found.append(slot)
        return tuple(found)

    def step(
        self,
        path: str,
        node: Any,
        args: tuple[Arg, ...],
        writes: tuple[int, ...],
        nest: Nest | None = None,
    ) -> None:
        self.steps.append(Step(len(self.steps), path, node, args, writes, nest))

    def written_out(
        self, placed: Placed, outputs: list[str], slots: dict[str, int], path: str
    ) -> None:
        """A nested graph's nodes as steps of this plan."""
        node: Nested = placed.node
        inner = _names_inside(placed, outputs)
        given = {
            name: slots[outer]
            for name, outer in zip(node.inputs, placed.reads, strict=True)
            if outer in slots
        }
        need = _needed(node.graph._wiring, node.graph._bound, given, inner.values())
        found = self.graph(node.graph, need, given, f"{path}.")
        slots.update({outer: found[name] for outer, name in inner.items()})

    def nest(
        self, placed: Placed, outputs: list[str], slots: dict[str, int], prefix: str, path: str
    ) -> None:
        """A nested map: a step with a plan of its own."""
        node: Nested = placed.node
        inner = _names_inside(placed, outputs)
        read = {name for name, _ in _reads(placed, outputs)}
        sources: dict[str, int] = {}
        for name, outer in zip(node.inputs, placed.reads, strict=True):
            if outer not in read:
                continue
            if outer in slots:
                sources[name] = slots[outer]
            elif name in node.map_over:  # it is bound inside: "bound values may be mapped"
                sources[name] = self.constant(f"{path}.{name}", node.graph._bound[name])
        plan = compile_plan(
            node.graph,
            tuple(sources),
            node.map_over,
            tuple(inner[name] for name in outputs),
            [name for name, slot in sources.items() if slot in self.copied],
        )
        over = tuple(zip((sources[name] for name in node.map_over), plan.mapped, strict=True))
        passed = tuple((sources[name], slot) for name, slot in plan.given.items())
        args = tuple(Arg(name, sources[name], True) for name in (*node.map_over, *plan.given))
        wanted = tuple(inner[name] for name in outputs)
        writes = self.new(placed, wanted, slots, prefix)
        nest = Nest(
            plan, over, passed, node.map_mode, node.on_error,
            tuple(plan.outputs[name] for name in wanted),
        )  # fmt: skip
        self.step(path, node, args, writes, nest)


def _names_inside(placed: Placed, outputs: Iterable[str]) -> dict[str, str]:
    """What a nested graph calls its outputs, by their outer names."""
    inner = dict(zip(placed.writes, placed.node.outputs, strict=True))
    return {name: inner[name] for name in outputs}


def _is_before_given(node: Any, placed: Placed, parameter: Any, slots: Mapping[str, int]) -> bool:
    """Whether a positional-only one behind it is there: then it must be passed, too."""
    after = node.parameters.index(parameter) + 1
    return any(
        not each.by_name and name in slots
        for each, name in zip(node.parameters[after:], placed.reads[after:], strict=True)
    )

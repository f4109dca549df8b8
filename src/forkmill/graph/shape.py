"""What a graph is, and what may be made of it: the half of `Graph` that runs nothing.

    Shape(nodes) ──▶ Wiring          bind, rename, select, ... ──▶ another Shape

Guarantees:
    * Nothing ever changes a graph. What its methods make shares what did not change.
    * Every check comes before code of the user's runs, and is a BuildError.

Invariants:
    * SHAPE-1  `_wiring` is of the nodes alone; bound values, selection and engine lie beside it.

Threads: any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self

from .._checks import hinted, nearest
from .._offers import offered
from ..errors import BuildError
from .calls import merged
from .compile import compile_plan, needs
from .nested import MODES, POLICIES, Nested, check_choice, names_of
from .nodes import Node
from .wiring import Placed, wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .plan import Plan
    from .wiring import Wiring

__all__ = ["HERE", "PLANS", "Shape"]

PLANS = 64  # that a graph keeps
HERE = ("sequential", "inline")


class Shape:
    """What a `Graph` is; see there."""

    name: str | None
    _wiring: Wiring
    _bound: dict[str, Any]
    _selected: tuple[str, ...] | None
    _engine: Any
    _checks: bool
    _plain: bool
    _plans: dict[Any, Any]
    _runs: dict[Any, Any]

    @hinted
    def __init__(
        self,
        nodes: Iterable[Any],
        *,
        name: str | None = None,
        engine: Any = None,
        check_types: bool = False,
    ) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise BuildError(f"name must be a str or None, not {name!r}")
        if not isinstance(check_types, bool):
            raise BuildError(f"check_types must be a bool, not {check_types!r}")
        if isinstance(nodes, (str, bytes, Mapping)) or not hasattr(nodes, "__iter__"):
            raise BuildError(
                f"a graph is made of a list of functions, nodes and graphs, "
                f"not of {type(nodes).__name__!r}"
            )
        placed = [_placed(each) for each in nodes]
        self._set(wire(placed), name, {}, None, _known_engine(engine), check_types)

    def _set(
        self,
        wiring: Wiring,
        name: str | None,
        bound: dict[str, Any],
        selected: tuple[str, ...] | None,
        engine: Any,
        check_types: bool,
    ) -> Self:
        if check_types:
            from .fits import check

            check(wiring)
        plain = not any(_is_special(each.node) for each in wiring.placed)
        vars(self).update(
            name=name, _wiring=wiring, _bound=bound, _selected=selected, _engine=engine,
            _checks=check_types, _plans={}, _runs={}, _plain=plain,
        )  # fmt: skip
        return self

    def _like(self, **changes: Any) -> Self:
        """A graph that differs in these."""
        own = {
            "wiring": self._wiring, "name": self.name, "bound": self._bound,
            "selected": self._selected, "engine": self._engine, "check_types": self._checks,
        }  # fmt: skip
        return type(self).__new__(type(self))._set(**{**own, **changes})

    def __setattr__(self, name: str, value: Any = None) -> NoReturn:
        raise AttributeError(
            f"a graph is never changed: {name!r} cannot be set. bind, rename, select and "
            f"with_engine give another graph"
        )

    __delattr__: Any = __setattr__

    # ------------------------------------------------------------------ what it is

    @property
    def nodes(self) -> tuple[Any, ...]:
        """Its nodes, in the order in which they run one after another."""
        return tuple(placed.node for placed in self._wiring.placed)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of inputs that its outputs can use, bound ones too."""
        return tuple(self._needs(self.outputs))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of outputs."""
        return self._wiring.outputs if self._selected is None else self._selected

    @property
    def _called(self) -> str:
        return "this graph" if self.name is None else f"the graph {self.name!r}"

    def _needs(self, outputs: tuple[str, ...]) -> dict[str, bool]:
        """The inputs for these outputs -> whether they must be given."""
        key = ("needs", outputs)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = needs(self._wiring, self._bound, outputs)
        return dict(found)

    def __cache_key__(self) -> Any:
        """What a key of a cache makes of it, where a cached function names it."""
        return self.nodes, self._bound, self.outputs

    def __reduce__(self) -> Any:
        parts = [(placed.node, placed.reads, placed.writes) for placed in self._wiring.placed]
        rest = (self.name, self._bound, self._selected, self._engine, self._checks)
        return _revived, (type(self), parts, rest)

    def __repr__(self) -> str:
        from .show import line

        return line(self)

    def _repr_html_(self) -> str:
        from .show import html

        return html(self)

    def describe(self) -> str:
        """Its inputs, nodes and outputs, as text for people."""
        from .show import describe

        return describe(self)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        from .show import mermaid

        return mermaid(self)

    def plan(self, engine: Any = None, *, map_over: Any = None, output_name: Any = None) -> Any:
        """Who would run what: which nodes go together, where, and what waits for what.

        Nothing runs, and nothing is opened.

        Args:
            engine: As for `Graph`; None: the graph's.
            map_over: The names that would be mapped; None: the plan of `run`.
            output_name: What would be wanted; None: all outputs.

        Returns:
            A plan with `groups`, `where(node)` and `describe()`.

        Raises:
            BuildError: What `run` or `map` would refuse.
        """
        from .planned import plan_of

        return plan_of(self, engine, map_over, output_name)

    # ------------------------------------------------------------------ other graphs

    def bind(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> Self:
        """A graph with values for some inputs: a default for those who give none.

        Args:
            values: By name; for names that are no identifiers.
            **named: The same.

        Raises:
            BuildError: There is no such input.
        """
        bound = merged(values, named)
        for name in bound:
            if name not in self._wiring.inputs:
                raise BuildError(self._no_input(name, "bind"))
        return self._like(bound={**self._bound, **bound})

    def unbind(self, *names: str) -> Self:
        """A graph without some bound values.

        Args:
            *names: Which; none: all.

        Raises:
            BuildError: That is not bound.
        """
        for name in names:
            if name not in self._bound:
                near = nearest(name, self._bound)
                there = ", ".join(map(repr, self._bound)) or "nothing"
                raise BuildError(f"{name!r} is not bound in {self._called}{near}; {there} is")
        drop = names or tuple(self._bound)
        return self._like(bound={n: v for n, v in self._bound.items() if n not in drop})

    def rename(self, names: Mapping[str, str] | None = None, /, **named: str) -> Self:
        """A graph with other names for inputs and outputs.

        Args:
            names: New name by old name; for names that are no identifiers.
            **named: The same.

        Raises:
            BuildError: There is no such name; the new one is taken.
        """
        new = merged(names, named)
        wiring = self._wiring
        known = {**wiring.inputs, **wiring.makers}
        for old, name in new.items():
            if old not in known:
                raise BuildError(
                    f"{self._called} has no input or output {old!r} to rename"
                    f"{nearest(old, known)}; it has {', '.join(known)}"
                )
            if not isinstance(name, str) or not name:
                raise BuildError(f"rename: the new name of {old!r} must be a str, not {name!r}")
        new = {old: str.__str__(name) for old, name in new.items()}
        after = [new.get(name, name) for name in known]
        for old, name in new.items():
            if after.count(name) > 1:
                raise BuildError(f"rename: {old!r} cannot become {name!r}, which is taken")
        selected = self._selected and tuple(new.get(name, name) for name in self._selected)
        return self._like(
            wiring=wire([placed.renamed(new) for placed in wiring.placed]),
            bound={new.get(name, name): value for name, value in self._bound.items()},
            selected=selected,
        )

    def select(self, *names: Any) -> Self:
        """A graph that gives only some outputs, and needs only what they need.

        Args:
            *names: Which.

        Raises:
            BuildError: There is no such output.
        """
        if len(names) == 1 and not isinstance(names[0], str):
            (names,) = names
        return self._like(selected=self._wanted(names_of("select", names), self._wiring.outputs))

    def with_engine(self, engine: Any) -> Self:
        """A graph that something else carries out.

        Args:
            engine: As for `Graph`; None: the caller's thread.

        Raises:
            BuildError: An unknown one.
        """
        graph = self._like(engine=_known_engine(engine))
        vars(graph)["_plans"] = self._plans  # who carries it out is none of a plan's business
        return graph

    def as_node(
        self,
        input_mapping: Mapping[str, str] | None = None,
        output_mapping: Mapping[str, str] | None = None,
        map_over: Any = None,
        map_mode: str = "zip",
        name: str | None = None,
        on_error: str = "raise",
    ) -> Nested:
        """The graph as a node of another one.

        Args:
            input_mapping: Outer name -> its own name for an input.
            output_mapping: Its own name for an output -> outer name.
            map_over: The inputs, by their outer names, that are lists there, with one inner item
                for each element; its outputs are lists then.
            map_mode: "zip", or "product" of several.
            name: What leads to its nodes; by default the graph's name.
            on_error: "raise": an inner item that fails, fails the outer one; "skip": the lists
                hold Failures.

        Raises:
            BuildError: An unknown name, mode or policy; there is no name.
        """
        name = self.name if name is None else name
        if not isinstance(name, str) or not name:
            raise BuildError(
                "a graph in a graph needs a name, which leads to its nodes: "
                "fm.Graph(..., name=...), or as_node(name=...)"
            )
        check_choice("map_mode", map_mode, MODES)
        check_choice("on_error", on_error, POLICIES)
        names = _mappings(self, input_mapping, output_mapping)
        graph = self.rename(names) if names else self
        over = () if map_over is None else names_of("map_over", map_over)
        return Nested(graph, str.__str__(name), over, map_mode, on_error)

    def as_udf(self, output_name: Any = None, *, type: Any = None) -> Any:
        """One output as a function of Daft's; see `DaftEngine.as_udf`.

        Args:
            output_name: Which output; None: the only one.
            type: Daft's type of it; None: what the function is annotated with.

        Raises:
            BuildError: There are several outputs, and none is named.
            ModuleNotFoundError: daft is not installed.
        """
        return offered("udf_of")(self, output_name, type=type)

    def func(self, output_name: Any = None) -> Any:
        """The graph as a function, which can be sent anywhere its nodes can.

        Args:
            output_name: What it returns: the value of the output of that name, or a dict of those
                in a list; by default a dict of all.

        Returns:
            A callable with a signature: the inputs that are not bound, by name. A single one, or
            the only one without a default, may be given by position.

        Raises:
            BuildError: There is no such output.
        """
        from .func import Function

        return Function(self, output_name)

    # ------------------------------------------------------------------ what calls ask it

    def _wanted(self, names: tuple[str, ...], outputs: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in outputs:
                if name in self._wiring.inputs:
                    raise BuildError(f"{name!r} is an input of {self._called}, and no output")
                raise BuildError(
                    f"{self._called} has no output {name!r}{nearest(name, outputs)}; "
                    f"it has {', '.join(outputs) or 'none'}"
                )
        return names

    def _outputs_of(self, output_name: Any, given: Iterable[str]) -> tuple[str, ...]:
        """The names of what is wanted, without what is given."""
        known = self._wiring.outputs
        names = (
            self.outputs
            if output_name is None
            else self._wanted(names_of("output_name", output_name), known)
        )
        return tuple(name for name in names if name not in given)

    def _plan(
        self,
        given: Sequence[str],
        mapped: Sequence[str],
        output_name: Any = None,
        copied: Sequence[str] = (),
    ) -> Plan:
        """The plan of a call, for these given names."""
        wanted = self._outputs_of(output_name, given)
        key = (tuple(given), tuple(mapped), wanted, tuple(copied))
        plan: Plan | None = self._plans.get(key)
        if plan is None:
            plan = compile_plan(self, key[0], key[1], wanted, copied)
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _no_input(self, name: str, verb: str) -> str:
        known = self._wiring
        if name in known.makers:
            maker = known.placed[known.makers[name]].node
            return (
                f"{verb}: {name!r} is an output, of {maker.name!r}: {verb} takes inputs; "
                f"a value for it can be given to run"
            )
        return (
            f"{verb}: {self._called} has no input {name!r}{nearest(name, known.inputs)}; "
            f"it has {', '.join(known.inputs) or 'none'}"
        )


# ---------------------------------------------------------------------- parts


def _placed(each: Any) -> Placed:
    """What stands in a graph's list, as a node with its own names."""
    if isinstance(each, Shape):
        each = each.as_node()
    if not isinstance(each, (Node, Nested)):
        if not callable(each):
            hint = ": name a function that runs it" if hasattr(each, "run") else ""
            raise BuildError(
                f"a graph is made of functions, nodes and graphs, not of "
                f"{type(each).__name__!r}{hint}"
            )
        each = Node(each, {})
    return Placed(each, each.inputs, each.outputs)


def _revived(kind: type[Shape], parts: list[Any], rest: tuple[Any, ...]) -> Shape:
    name, bound, selected, engine, checks = rest
    wiring = wire([Placed(*part) for part in parts])
    return kind.__new__(kind)._set(wiring, name, bound, selected, engine, checks)


def _is_special(node: Any) -> bool:
    """Whether a node needs an engine, wherever it is to run."""
    if node.graph is not None:
        return any(_is_special(each) for each in node.graph.nodes)
    return node.context is not None or node.timeout is not None or node.batch


def _known_engine(engine: Any) -> Any:
    """An engine that a graph is made with, checked as far as that makes nothing."""
    if engine is None or (isinstance(engine, str) and engine in HERE):
        return engine
    from .engine import engine_of

    engine_of(engine)
    return engine


def _mappings(
    graph: Shape, inputs: Mapping[str, str] | None, outputs: Mapping[str, str] | None
) -> dict[str, str]:
    """New names by old ones, of {outer: inner} for inputs and {inner: outer} for outputs."""
    names: dict[str, str] = {}
    for outer, inner in merged(inputs, {}).items():
        if inner not in graph._wiring.inputs:
            raise BuildError(graph._no_input(inner, "input_mapping"))
        if inner in names:
            raise BuildError(f"input_mapping gives {inner!r} two names")
        names[inner] = outer
    for inner, outer in merged(outputs, {}).items():
        graph._wanted((inner,), graph.outputs)
        names[inner] = outer
    return {old: new for old, new in names.items() if old != new}

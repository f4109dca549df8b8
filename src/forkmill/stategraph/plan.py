"""What is compiled: the checks, the hash of the definition, and what each node is called with.

    nodes, edges, schema, settings ──▶ checks ──▶ Plan: paths, hash, a callable a node

==============================  ===================================================================
checked                         how it is said
==============================  ===================================================================
nothing comes from START        at compile, before anything runs: BuildError with the names
an unknown name                 with the nearest one
an edge out of END, into START
a node that nothing reaches     also through gotos: those that are declared, or any, of a node
                                whose code has Command or Send in it
a timeout                       where the context cannot stop a call
a function that cannot be sent  to a context of other processes, but one that is always forked:
                                then it is inherited, and is what it was at the fork
==============================  ===================================================================

Threads: any; a Plan does not change.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import _checks
from .._checks import nearest
from ..codec import codec
from ..contexts.specs import class_of
from ..errors import BuildError, SerializationError, name_of
from . import node as _node
from .checkpoints.codecs import codec_named
from .rules import Paths
from .task import Coder, Work, callable_of
from .view import viewer
from .words import END, START

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .checkpoints.store import Checkpoints
    from .node import Node
    from .rules import Choice, Join
    from .schema import Schema

__all__ = ["EACH", "Plan", "Settings", "stops"]

EACH = "*"


@dataclass(frozen=True, slots=True)
class Settings:
    """What `compile` was told.

    Attributes:
        store: Where sessions are stored, or None.
        sync: Whether each step is stored before the next one starts.
        max_steps: Of one call.
        before: Nodes before which every run stops.
        after: Nodes after which every run stops.
        strict: Whether gotos must be declared.
        version: Part of the hash.
    """

    store: Checkpoints | None
    sync: bool
    max_steps: int
    before: frozenset[str]
    after: frozenset[str]
    strict: bool
    version: Any

    @classmethod
    def of(
        cls,
        checkpoints: Any,
        durability: Any,
        max_steps: Any,
        before: Any,
        after: Any,
        check: Any,
        version: Any,
    ) -> Settings:
        """They, checked. TypeError or ValueError."""
        if durability not in ("sync", "exit"):
            near = nearest(durability, ("sync", "exit"))
            raise ValueError(f"durability is 'sync' or 'exit', not {durability!r}{near}")
        if check is not True and check != "strict":
            raise ValueError(f"check is True or 'strict', not {check!r}")
        store = None
        if checkpoints is not None:
            from .checkpoints import opened

            store = opened(checkpoints)
        return cls(
            store,
            durability == "sync",
            _checks.integer("max_steps", max_steps, least=1),
            stops("interrupt_before", before),
            stops("interrupt_after", after),
            check == "strict",
            version,
        )


def stops(option: str, names: Any) -> frozenset[str]:
    """The names of a static interrupt. TypeError if they are none."""
    if names is None:
        return frozenset()
    if isinstance(names, str):
        return frozenset((names,))
    try:
        found = frozenset(names)
    except TypeError:
        found = frozenset((0,))
    if not all(isinstance(name, str) for name in found):
        raise TypeError(f"{option} takes names of nodes, or '*' for each step, not {names!r}")
    return found


class Plan:
    """A graph that can run.

    Attributes:
        name: The graph's.
        schema: Its state's.
        nodes: By name, as declared.
        paths: Its edges.
        settings: What compile was told.
        codec: Encodes values.
        largest: Bytes of the largest one that the store holds, or None.
        coder: The same, for wires.
        view: Makes a look at the state, of (plain, late).
        calls: By node, what is sent for a task of it: see `callable_of`.
        here: The same for nodes that are called where the run is, with the keys that they read.
        nested: The nodes that are state graphs.
        inherited: The nodes whose functions cannot be sent: workers inherit them.
        hash: Of the definition.
    """

    def __init__(
        self,
        name: str,
        schema: Schema,
        nodes: dict[str, Node],
        edges: tuple[tuple[str, str], ...],
        choices: tuple[Choice, ...],
        joins: tuple[Join, ...],
        settings: Settings,
    ) -> None:
        self._parts = (name, schema, nodes, edges, choices, joins)
        self.name = name
        self.schema = schema
        self.nodes = nodes
        self.paths = Paths(tuple(nodes), edges, choices, joins)
        self.settings = settings
        store = settings.store
        self.codec = codec_named("pickle") if store is None else store.codec
        self.largest = None if store is None else store.largest
        self.coder = Coder(self.codec, store is None)
        self.view = viewer(schema.cls, tuple(schema.keys), self.coder.value)
        self._check_edges()
        self._check_targets()
        self.check_stops(settings.before, settings.after)
        self._check_reach()
        self._check_timeouts()
        works = {node.name: self._work(node) for node in nodes.values()}
        self.here = {
            name: (work.perform, nodes[name].reads)
            for name, work in works.items()
            if nodes[name].is_here
        }
        self.nested = frozenset(n.name for n in nodes.values() if getattr(n.fn, "nests", False))
        self.calls = {
            name: callable_of(
                work, nodes[name].context.type in ("inline", "async"), nodes[name].isolated
            )
            for name, work in works.items()
        }
        self.inherited = self._check_sendable()
        self.hash = self._hashed()

    # --------------------------------------------------------------------------- checks

    def _check_edges(self) -> None:
        paths = self.paths
        if not self.nodes:
            raise BuildError(f"{self.name}: it has no nodes")
        for source, target, what in self._ends():
            if source == END:
                raise BuildError(
                    f"{self.name}: {what} goes out of END, where nothing runs any more"
                )
            if target == START:
                raise BuildError(f"{self.name}: {what} leads to START, where a run only begins")
            for end in (source, target):
                if end not in self.nodes and end not in (START, END):
                    near = nearest(end, self.nodes)
                    raise BuildError(
                        f"{self.name}: {what} names {end!r}; there is no such node{near}"
                    )
        if not paths.plain.get(START) and not paths.chosen.get(START):
            raise BuildError(
                f"{self.name}: there is no edge from START, so nothing would run: "
                f"add_edge(fm.START, {next(iter(self.nodes))!r})"
            )
        for join in paths.joins:
            if START in join.sources:
                raise BuildError(
                    f"{self.name}: the join of {', '.join(join.sources)} to {join.target!r} waits "
                    "for START, which is no node"
                )

    def _ends(self) -> Iterator[tuple[str, str, str]]:
        """(source, target, what it is called) of everything that leads somewhere."""
        for source, target in self.paths.edges:
            yield source, target, f"the edge from {source!r} to {target!r}"
        for join in self.paths.joins:
            for source in join.sources:
                yield source, join.target, f"the join of {join.sources} to {join.target!r}"
        for choice in self.paths.choices:
            what = f"the conditional edge {name_of(choice.fn)} of {choice.source!r}"
            for target in (choice.targets or {END: END}).values():
                yield choice.source, target, what

    def _check_targets(self) -> None:
        for node in self.nodes.values():
            for target in node.targets or ():
                if target not in self.nodes and target != END:
                    near = nearest(target, self.nodes)
                    raise BuildError(
                        f"{self.name}: node {node.name!r} declares the destination {target!r}; "
                        f"there is no such node{near}"
                    )
            if self.settings.strict and node.targets is None and _node.goes_somewhere(node.fn):
                raise BuildError(
                    f"{self.name}: node {node.name!r} names its successors (Command or Send) and "
                    "does not declare them, as check='strict' wants: destinations=[...], or "
                    "-> Command[Literal[...]]"
                )

    def check_stops(self, before: frozenset[str], after: frozenset[str]) -> None:
        """That static interrupts name nodes.

        Raises:
            BuildError: One does not.
        """
        for option, names in (("interrupt_before", before), ("interrupt_after", after)):
            for name in names:
                if name not in self.nodes and name != EACH:
                    near = nearest(name, self.nodes)
                    raise BuildError(f"{option} names {name!r}; there is no such node{near}")

    def _check_reach(self) -> None:
        reached, line = {START}, [START]
        while line:
            for name in self._next(line.pop()):
                if name not in reached:
                    reached.add(name)
                    line.append(name)
        lost = [name for name in self.nodes if name not in reached]
        if lost:
            names = ", ".join(map(repr, lost))
            raise BuildError(
                f"{self.name}: nothing leads to {names}; add an edge, or declare the node that "
                "goes there with destinations=[...]"
            )

    def _next(self, name: str) -> list[str]:
        """Where one can come from a node."""
        paths = self.paths
        found = [target for _, target in paths.plain.get(name, ())]
        found += [join.target for join in paths.joined.get(name, ())]
        for choice in paths.chosen.get(name, ()):
            found += self.nodes if choice.targets is None else choice.targets.values()
        node = self.nodes.get(name)
        if node is not None:
            if node.targets is not None:
                found += node.targets
            elif _node.goes_somewhere(node.fn):
                found += self.nodes
        return found

    def _check_timeouts(self) -> None:
        for node in self.nodes.values():
            alone = node.is_async and node.context.type == "inline"
            if node.timeout is not None and not alone and not class_of(node.context.type).kills:
                raise BuildError(
                    f"{self.name}: node {node.name!r} has a timeout, and {node.context.type!r} "
                    "cannot stop a call that runs; use 'parallel', 'fork', or 'async' with "
                    "coroutines"
                )

    def _check_sendable(self) -> frozenset[str]:
        """The nodes whose functions cannot be sent, and need not be."""
        inherited = set()
        for node in self.nodes.values():
            if not node.isolated or node.context.type == "cow_fork":
                continue
            try:
                codec.dumps(self.calls[node.name])
            except SerializationError as error:
                if _forked(node.context):
                    inherited.add(node.name)
                    continue
                raise BuildError(
                    f"{self.name}: node {node.name!r} cannot be sent to its context "
                    f"{str(node.context)!r}: {error}"
                ) from error
        return frozenset(inherited)

    # ------------------------------------------------------------------------- the rest

    def look(self, plain: dict[str, Any], late: dict[str, Any]) -> Any:
        """A fresh look at what a point has."""
        return self.view(plain, late.copy())

    def stored_in(self, settings: Settings) -> Plan:
        """The same graph, with another one's store and durability; its nodes that are state graphs
        too."""
        name, schema, nodes, edges, choices, joins = self._parts
        nodes = dict(nodes)
        for inner in self.nested:
            nodes[inner] = replace(nodes[inner], fn=nodes[inner].fn.stored_in(settings))
        own = replace(self.settings, store=settings.store, sync=settings.sync)
        return Plan(name, schema, nodes, edges, choices, joins, own)

    def _work(self, node: Node) -> Work:
        targets = node.targets
        if targets is None and self.settings.strict:
            targets = frozenset()
        return Work(
            name=node.name,
            fn=node.fn,
            keys=tuple(self.schema.keys),
            appends=frozenset(k.name for k in self.schema.keys.values() if k.appends),
            cls=self.schema.cls,
            nodes=frozenset(self.nodes),
            targets=targets,
            codec=self.codec,
            lenient=self.settings.store is None and not node.isolated,
        )

    def _hashed(self) -> str:
        paths = self.paths
        parts = [
            [[key.name, _named(key.reducer)] for key in self.schema.keys.values()],
            [
                [
                    node.name,
                    None if node.targets is None else sorted(node.targets),
                    getattr(node.fn, "hash", None),
                ]
                for node in self.nodes.values()
            ],
            list(paths.edges),
            [
                [c.source, _named(c.fn), c.targets and sorted(map(repr, c.targets.items()))]
                for c in paths.choices
            ],
            [[join.sources, join.target] for join in paths.joins],
            None if self.settings.version is None else repr(self.settings.version),
        ]
        text = json.dumps(parts, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _forked(context: Any) -> bool:
    """Whether the workers of a context are forked from here as a run begins, whatever runs."""
    return getattr(context, "pool", None) is None and context.options.get("start_method") == "fork"


def _named(fn: Any) -> str | None:
    """A function's module and qualified name."""
    if fn is None:
        return None
    inner = fn
    while hasattr(inner, "func"):
        inner = inner.func
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    return f"{getattr(inner, '__module__', None) or 'builtins'}.{name}"

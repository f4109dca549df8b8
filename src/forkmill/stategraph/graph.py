"""StateGraph: nodes and edges as they are written, and what `compile` makes of them.

    StateGraph ──compile: everything is checked──▶ Plan (frozen) ──▶ App

Guarantees: what is wrong with a declaration is a BuildError, in the frame where it is written or in
that of `compile`, before any of the user's functions runs; it names the nodes.

Threads: build in one; an App may be used from any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, overload

from .._checks import hinted, nearest
from ..contexts.specs import spec
from ..errors import BuildError, name_of
from ..runs.policies import told
from . import node as _node
from .app import App
from .nested import adapted
from .plan import Plan, Settings
from .result import S
from .rules import Choice, Join
from .schema import Schema
from .task import is_async
from .words import END, START

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["StateGraph"]


class StateGraph(Generic[S]):
    """Functions that read one state and return what they change, and the edges between them. ::

        graph = fm.StateGraph({"n": None})
        graph.add_node("count", lambda state: {"n": state["n"] + 1})
        graph.add_edge(fm.START, "count")
        graph.compile().invoke({"n": 1})["n"]        # 2

    Args:
        schema: A TypedDict, a dataclass, or {key: reducer or None}. A key without a reducer keeps
            the last value, and has one writer a step. One with a reducer, as in
            ``Annotated[list, operator.add]``, is folded: reducer(old, new) for each writer.
        context: Where nodes run that do not say: "inline", "thread:4", "parallel", a named pool...
        name: What the graph is called in events and drawings.

    Raises:
        BuildError: A schema or context that is none.
    """

    @overload
    def __init__(
        self, schema: type[S], *, context: Any = "inline", name: str | None = None
    ) -> None: ...
    @overload
    def __init__(
        self: StateGraph[dict[str, Any]],
        schema: Mapping[str, Any],
        *,
        context: Any = "inline",
        name: str | None = None,
    ) -> None: ...
    def __init__(self, schema: Any, *, context: Any = "inline", name: str | None = None) -> None:
        self._schema = Schema(schema)
        with told("the state graph"):
            self._context = spec(context)
        if name is not None and not isinstance(name, str):
            raise BuildError(f"name must be a str or None, not {name!r}")
        self._name = name or "state graph"
        self._nodes: dict[str, _node.Node] = {}
        self._edges: dict[tuple[str, str], None] = {}
        self._joins: dict[tuple[tuple[str, ...], str], Join] = {}
        self._choices: list[Choice] = []

    # ---------------------------------------------------------------------------- nodes

    @hinted
    def add_node(
        self,
        name: Any,
        fn: Any = None,
        *,
        context: Any = None,
        on_error: Any = "default",
        timeout: float | None = None,
        reads: Iterable[str] | None = None,
        destinations: Iterable[str] | None = None,
    ) -> StateGraph[S]:
        """Add a node.

        Args:
            name: Its name. (A function alone gives its own.)
            fn: A function of the state, or of its Send's argument. It returns None, a dict of what
                it changes, a Command, a Send, or a list of these. Or an `fm.Graph`, an
                `fm.Pipeline`, a compiled state graph (inline only).
            context: Where it runs; None: as the graph says.
            on_error: ``fm.retry(attempts, backoff, on)``; None: one try; "default": in processes a
                second try for one whose worker died.
            timeout: Seconds an attempt may take, where calls can be stopped.
            reads: The keys that it sees; None: all.
            destinations: Where its gotos may lead. ``-> Command[Literal["a"]]`` says it too.

        Returns:
            The graph.

        Raises:
            BuildError: There is one of that name, or an option is wrong.
        """
        if fn is None and callable(name):
            name, fn = getattr(name, "__name__", name_of(name)), name
        if name in self._nodes if isinstance(name, str) else False:
            raise BuildError(f"there is a node {name!r} already")
        if not callable(fn) and not hasattr(fn, "run") and not hasattr(fn, "invoke"):
            raise BuildError(f"node {name!r} needs a function, not {fn!r}")
        added = _node.made(
            self._schema, self._context, name, fn, context, on_error, timeout, reads, destinations
        )
        self._nodes[added.name] = added
        return self

    def node(self, name: Any = None, **options: Any) -> Any:
        """As `add_node`, for a decorator: ``@graph.node``, ``@graph.node("b", timeout=3)``.

        Args:
            name: The node's name; None: the function's.
            **options: Those of `add_node`.

        Returns:
            The function, as it was.
        """
        if callable(name):
            self.add_node(name, **options)
            return name

        def add(fn: Callable[..., Any]) -> Callable[..., Any]:
            self.add_node(fn.__name__ if name is None else name, fn, **options)
            return fn

        return add

    # ---------------------------------------------------------------------------- edges

    def add_edge(self, source: str | Iterable[str], target: str) -> StateGraph[S]:
        """Add an edge; with a list of sources a join: the target runs when all of them have run.

        Args:
            source: A name, START, or a list of names.
            target: A name, or END.

        Returns:
            The graph.

        Raises:
            BuildError: It is there already, or not made of names.
        """
        if not isinstance(target, str):
            raise BuildError(f"an edge leads to the name of a node, not to {target!r}")
        if isinstance(source, str):
            if (source, target) in self._edges:
                raise BuildError(f"there is an edge from {source!r} to {target!r} already")
            self._edges[source, target] = None
            return self
        try:
            sources = tuple(source)
        except TypeError:
            raise BuildError(
                f"an edge comes from a name or a list of them, not {source!r}"
            ) from None
        if not sources or not all(isinstance(name, str) for name in sources):
            raise BuildError(f"a join needs the names of its sources, not {source!r}")
        if len(set(sources)) < len(sources):
            raise BuildError(f"the join of {', '.join(sources)} to {target!r} names one twice")
        key = tuple(sorted(sources)), target
        if key in self._joins:
            raise BuildError(f"there is a join of {', '.join(sources)} to {target!r} already")
        self._joins[key] = Join(sources, target, len(self._joins))
        return self

    def add_conditional_edges(self, source: str, fn: Any, targets: Any = None) -> StateGraph[S]:
        """Add an edge that a function chooses.

        Args:
            source: A name, or START.
            fn: Called with the state after the step. It gives a name, a Send, or a list of these
                (an empty one leads nowhere).
            targets: The names that it may give, or {answer: name}; None: any.

        Returns:
            The graph.

        Raises:
            BuildError: It is there already, or not made of names.
        """
        if not isinstance(source, str):
            raise BuildError(f"a conditional edge comes from the name of a node, not {source!r}")
        if not callable(fn):
            raise BuildError(
                f"the conditional edge of {source!r} needs a function of the state, not {fn!r}"
            )
        if is_async(fn):
            raise BuildError(
                f"the conditional edge {name_of(fn)} of {source!r} is a coroutine function; it is "
                "called between two steps, and has to be a plain one"
            )
        for choice in self._choices:
            if choice.source == source and choice.fn == fn:
                raise BuildError(
                    f"there is a conditional edge {name_of(fn)} from {source!r} already"
                )
        found = _declared(source, fn, targets)
        self._choices.append(Choice(source, fn, found, len(self._choices)))
        return self

    def set_entry_point(self, name: str) -> StateGraph[S]:
        """As ``add_edge(START, name)``."""
        return self.add_edge(START, name)

    def set_finish_point(self, name: str) -> StateGraph[S]:
        """As ``add_edge(name, END)``."""
        return self.add_edge(name, END)

    # -------------------------------------------------------------------------- compile

    @hinted
    def compile(
        self,
        *,
        checkpoints: Any = None,
        durability: str = "sync",
        max_steps: int = 1000,
        interrupt_before: Any = (),
        interrupt_after: Any = (),
        check: Any = True,
        version: Any = None,
    ) -> App[S]:
        """Check everything, and make what can be run. Later changes of the graph do not count.

        Args:
            checkpoints: Where sessions are stored: a store, or "sqlite:path", "postgresql://...";
                None: nowhere.
            durability: "sync": a step is stored before the next one starts; "exit": only a run's
                beginning and end are.
            max_steps: Steps that one call may make; then StepLimit.
            interrupt_before: Nodes before whose step every run stops; "*": before each step.
            interrupt_after: Nodes after whose step every run stops; "*": after each step.
            check: True; "strict": a node that names its successors must declare them.
            version: Part of the definition's hash: change it when stored sessions of this graph
                shall not be resumed with the new one.

        Raises:
            BuildError: The graph cannot run as it is written.
            StoreError: The store does not open.
            ModuleNotFoundError: The store's package is not installed; names the extra.
        """
        with told("compile"):
            settings = Settings.of(
                checkpoints,
                durability,
                max_steps,
                interrupt_before,
                interrupt_after,
                check,
                version,
            )
        nodes = {name: adapted(node, self._schema, settings) for name, node in self._nodes.items()}
        plan = Plan(
            self._name,
            self._schema,
            nodes,
            tuple(self._edges),
            tuple(self._choices),
            tuple(self._joins.values()),
            settings,
        )
        if settings.store is not None:
            settings.store.check()
        return App(plan)

    def __repr__(self) -> str:
        edges = len(self._edges) + len(self._joins) + len(self._choices)
        return (
            f"<StateGraph {self._name!r}: {len(self._nodes)} nodes, {edges} edges, "
            f"keys {', '.join(self._schema.keys)}>"[:200]
        )


def _declared(source: str, fn: Any, targets: Any) -> dict[Any, str] | None:
    """{answer: name} of a conditional edge."""
    if targets is None:
        return None
    if isinstance(targets, dict):
        found = dict(targets)
    elif isinstance(targets, str):
        found = {targets: targets}
    else:
        try:
            found = {name: name for name in targets}
        except TypeError:
            raise BuildError(
                f"the targets of a conditional edge are names or {{answer: name}}, not {targets!r}"
            ) from None
    for name in found.values():
        if not isinstance(name, str):
            raise BuildError(
                f"the conditional edge {name_of(fn)} of {source!r} has the target {name!r}, which "
                f"is no name{nearest(name, ())}"
            )
    return found

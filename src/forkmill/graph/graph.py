"""The graph as users have it: what it is (`Shape`), and the ways to run it.

    run, map, imap ──checks──▶ Plan ──┬─ nothing special: its generated function, here
                                      └─ an Engine
    start, arun, ... ──────────────────▶ an Engine, in the background

Guarantees:
    * Every check comes before code of the user's runs, and is a BuildError.
    * A run that needs nothing but this thread costs a look-up and the nodes' calls.

Invariants:
    * GRAPH-1  Plans and their functions are kept by what they depend on: the names that are given,
      those that are mapped, the outputs.

Threads: any. A graph may run in several at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import events
from .._checks import hinted
from .calls import Asked, by_engine, mapped, merged, rows
from .code import Call, everything
from .failed import failure_of, lost_with, raise_failure
from .loss import Stop
from .nested import names_of
from .shape import HERE, PLANS, Shape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from .rows import MapResult

__all__ = ["Graph"]


class Graph(Shape):
    """Functions with named outputs, wired by the names of their parameters; see `fm.node`.

    A graph is never changed: `bind`, `rename`, `select`, ... give others. It pickles if its
    functions do.

    Args:
        nodes: Functions, nodes, and graphs (as their `as_node()`), in any order.
        name: What it is called, in paths and messages.
        engine: What carries it out, if a call does not say otherwise: a context type or spec
            ("threaded:4"), a named pool, any executor, an engine. None: one node after another,
            in the caller's thread.
        check_types: Annotations of connected outputs and inputs must fit each other.

    Attributes:
        name: As given, or None.
        nodes: Its nodes, in the order in which they run one after another.
        inputs: The names that no node produces and somebody needs, bound ones too.
        outputs: The names of what it gives.

    Raises:
        BuildError: What cannot be a node; two producers of a name; a circle; types that do not fit;
            an unknown engine.

    All methods may be called from any thread.
    """

    # ------------------------------------------------------------------ runs

    def run(
        self,
        /,
        inputs: Mapping[str, Any] | None = None,
        output_name: Any = None,
        *,
        engine: Any = None,
        sinks: Any = (),
        progress: Any = False,
        report: Any = None,
        **named: Any,
    ) -> dict[str, Any]:
        """Run what the outputs need, once.

        Args:
            inputs: Values by name. A value for an output takes the place of its node.
            output_name: The name of what is wanted, or a list of names; by default all outputs.
            engine: As for `Graph`; None: the graph's.
            sinks: Who hears this run's events; see `fm.subscribe`.
            progress: Show how far it is.
            report: A path for a report.
            **named: More inputs.

        Returns:
            The outputs by name, without those that were given.

        Raises:
            BuildError: Unknown or missing inputs, an unknown output or engine.
            BaseException: What a node raised: with notes, and with the Failure as `.failure`.
        """
        if named or type(inputs) is not dict:
            inputs = merged(inputs, named)
        if sinks or progress or report is not None or not self._is_here(engine):
            asked = Asked("run", inputs, (), "zip", output_name, engine, sinks=sinks,
                          progress=progress, report=report)  # fmt: skip
            given: dict[str, Any] = by_engine(self, asked)
            return given
        try:
            fn = self._runs[tuple(inputs), output_name]
        except (KeyError, TypeError):
            fn = self._run_function(inputs, output_name)
        values = inputs.values()
        try:
            row: dict[str, Any] = fn(*values) if len(values) == 1 else fn(values)
            return row
        except Stop as stop:
            loss, plan = stop.loss, fn.plan
        raise_failure(failure_of(plan, loss, None, lost_with(plan, loss.step)), self._called)

    @hinted
    def map(
        self,
        inputs: Mapping[str, Any] | None,
        map_over: Any,
        map_mode: str = "zip",
        output_name: Any = None,
        *,
        engine: Any = None,
        on_error: str = "raise",
        ordered: bool = True,
        copy: Any = (),
        sinks: Any = (),
        progress: Any = False,
        report: Any = None,
    ) -> MapResult:
        """Run what the outputs need for each of many items.

        Args:
            inputs: Values by name: of mapped names an iterable, of others what all items get.
            map_over: The name whose values are the items', or several names.
            map_mode: "zip": the n-th values of all together; "product": each with each.
            output_name: The name of what is wanted, or a list of names; by default all outputs.
            engine: As for `Graph`; None: the graph's.
            on_error: "raise": the first failure in the order of the items; "skip": a Failure stands
                in a row for each output that depends on it.
            ordered: Rows are handed on in the order of the items. (Those of a result always are.)
            copy: Names of constants that are deep-copied for each item.
            sinks, progress, report: As for `run`.

        Returns:
            A row, a dict of outputs, for each item.

        Raises:
            BuildError: Unknown or missing names, a value that cannot be mapped, lengths that differ
                (of iterators: after the items before that), a wrong mode, policy or engine.
            BaseException: With "raise": what a node raised, with notes and `.failure`; what an
                input raised. KeyboardInterrupt has what there is as `.result`.
        """
        asked = Asked("map", inputs, map_over, map_mode, output_name, engine, on_error, ordered,
                      copy, sinks=sinks, progress=progress, report=report)  # fmt: skip
        return mapped(self, asked)

    @hinted
    def imap(
        self,
        inputs: Mapping[str, Any] | None,
        map_over: Any,
        map_mode: str = "zip",
        output_name: Any = None,
        *,
        engine: Any = None,
        on_error: str = "raise",
        ordered: bool = True,
        copy: Any = (),
        buffersize: int | None = None,
        chunksize: int | None = None,
        sinks: Any = (),
        progress: Any = False,
        report: Any = None,
    ) -> Iterator[dict[str, Any]]:
        """As `map`, lazily: rows come as they are asked for.

        What is pulled from the inputs and not yet consumed is at most the window. Closing the
        iterator ends the run.

        Args:
            inputs, map_over, map_mode, output_name, engine, on_error, copy: As for `map`.
            ordered: Whether rows come in the order of the items, or as they are finished.
            buffersize: How many items may be pulled and not consumed; None: two chunks a worker.
            chunksize: How many items go to a worker at once; None: tuned.
            sinks, progress, report: As for `run`.

        Returns:
            An iterator of rows.

        Raises:
            BuildError: As `map`, at once.
            BaseException: As `map`, at the item's turn.
        """
        asked = Asked("imap", inputs, map_over, map_mode, output_name, engine, on_error, ordered,
                      copy, buffersize, chunksize, sinks, progress, report)  # fmt: skip
        return rows(self, asked)

    # ------------------------------------------------------------------ runs elsewhere

    def start(
        self, inputs: Mapping[str, Any] | None = None, output_name: Any = None, **options: Any
    ) -> Any:
        """As `run`, in the background.

        Args:
            inputs, output_name: As for `run`.
            **options: As for `run`, more inputs among them.

        Returns:
            A handle: `done()`, `stop()`, `kill()`, `result(timeout=None)`; it can be awaited.

        Raises:
            BuildError: As `run`.
        """
        from . import handles

        return handles.start(self, inputs, output_name, **options)

    def start_map(
        self, inputs: Mapping[str, Any] | None, map_over: Any, *args: Any, **options: Any
    ) -> Any:
        """As `map`, in the background.

        Args:
            inputs, map_over: As for `map`.
            *args, **options: As for `map`.

        Returns:
            A handle, as of `start`.

        Raises:
            BuildError: As `map`.
        """
        from . import handles

        return handles.start_map(self, inputs, map_over, *args, **options)

    async def arun(
        self, inputs: Mapping[str, Any] | None = None, output_name: Any = None, **options: Any
    ) -> dict[str, Any]:
        """As `run`, for asyncio: the loop goes on meanwhile.

        Args:
            inputs, output_name, **options: As for `run`.

        Returns:
            As `run`.

        Raises:
            BaseException: As `run`. A task that is cancelled ends the run.
        """
        from . import handles

        row: dict[str, Any] = await handles.arun(self, inputs, output_name, **options)
        return row

    async def amap(
        self, inputs: Mapping[str, Any] | None, map_over: Any, *args: Any, **options: Any
    ) -> MapResult:
        """As `map`, for asyncio.

        Args:
            inputs, map_over, *args, **options: As for `map`.

        Returns:
            As `map`.

        Raises:
            BaseException: As `map`. A task that is cancelled ends the run.
        """
        from . import handles

        result: MapResult = await handles.amap(self, inputs, map_over, *args, **options)
        return result

    def aimap(
        self, inputs: Mapping[str, Any] | None, map_over: Any, *args: Any, **options: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """As `imap`, for asyncio.

        Args:
            inputs, map_over, *args, **options: As for `imap`.

        Returns:
            An async iterator of rows.

        Raises:
            BuildError: As `imap`, at once.
            BaseException: As `imap`, at the item's turn.
        """
        from . import handles

        rows: AsyncIterator[dict[str, Any]] = handles.aimap(
            self, inputs, map_over, *args, **options
        )
        return rows

    # ------------------------------------------------------------------ how

    def _is_here(self, engine: Any) -> bool:
        """Whether a call needs nothing but this thread."""
        if not self._plain or events.heard():
            return False
        engine = self._engine if engine is None else engine
        if engine is None or (isinstance(engine, str) and engine in HERE):
            return True
        from .. import contexts  # who names an engine has it, or will have

        return contexts.inside()

    def _run_function(self, inputs: Mapping[str, Any], output_name: Any) -> Any:
        """The function of a run in this thread, for the names of these inputs."""
        given = tuple(inputs)
        if not isinstance(output_name, str) and output_name is not None:
            output_name = names_of("output_name", output_name)
        plan = self._plan(given, given, output_name)
        fn = Call(everything(plan), plan.bound, mode="raise", blocking=True, local=True).fn
        fn.plan = plan
        if len(self._runs) >= PLANS:
            self._runs.clear()
        self._runs[given, output_name] = fn
        return fn

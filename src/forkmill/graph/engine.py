"""What carries a graph out: the face that every engine has, and the one for this machine.

    Graph ──Ctx──▶ Engine ──▶ (index, row), ...
                   LocalEngine: Placing ──Crew──▶ Layout, ways ──Flow──▶ blocks of rows
                                a run in sequence that nobody hears ──▶ one call (asking.run_here)
                                                  one group over processes ──▶ pool's own map

Guarantees:
    * An engine that was not entered opens what it needs for each call, and ends it with the call:
      at its end, on errors, and when an iterator is dropped. Entered (``with``), it keeps it.
    * What was given (an Executor, a named pool) is used and never ended.
    * Whatever it names, a graph that a function runs in a worker, or in a thread of a context, runs
      there in sequence: nobody waits for workers that wait for him.

Threads: an engine may be used from any; what `map` gives belongs to one at a time.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from .. import _checks, contexts, events
from .._late import unbroken
from .._process import interrupted
from ..errors import BuildError
from ..runs.interrupts import Interrupts, Late
from .asking import run_here
from .bypool import by_pool, pool_of
from .crew import Crew, Placing
from .failed import raise_failure
from .flow import Flow
from .homes import INLINE, Home, Session, home_of
from .levels import Rows
from .telling import Telling
from .ways import Bell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .levels import Layout
    from .plan import Plan
    from .ways import Way

__all__ = ["Blocks", "Ctx", "Engine", "LocalEngine", "Rows", "engine_of", "row_of_run"]


@dataclass(slots=True)
class Ctx:
    """What a call of a graph tells its engine beside inputs and outputs.

    Attributes:
        plan: What is to be done, compiled for this call.
        mode: "run", "map" or "imap".
        map_over: The names whose values an item has, in the order of its tuple.
        on_error: "raise" or "skip".
        ordered: Whether rows are handed on in the order of the items.
        buffersize, chunksize: The window's limits, as for `ProcessPool.map`; None: the default.
        total: How many items there are, if that is known.
        sinks: Who hears the events of this run, checked.
        progress, report: As they were given.
        path: What the run is part of, or "".
        held: How many rows the graph holds back, to hand them on in order. They count as not
            consumed; the graph sets it.
        began: Is called with what has `stop` and `kill`, when it begins; or None.
        stats: The engine may set it: the figures of the run.
        stopped: The engine sets it: not all items were begun.
        noted: The engine adds the Failures that are in lists of nested maps.
        emitter: What the run's events are told with; None: the engine makes one.
        interrupts: Its handler of Ctrl-C, for who goes on with the rows that the engine gives.
    """

    plan: Plan
    mode: str
    map_over: tuple[str, ...] = ()
    on_error: str = "raise"
    ordered: bool = True
    buffersize: int | None = None
    chunksize: int | None = None
    total: int | None = None
    sinks: tuple[Any, ...] = ()
    progress: Any = False
    report: Any = None
    path: str = ""
    held: int = 0
    began: Any = None
    stats: Any = None
    stopped: bool = False
    noted: list[Any] = field(default_factory=list)
    emitter: Any = None
    interrupts: Interrupts = field(default_factory=Interrupts)

    @property
    def asks(self) -> bool:
        """Whether more is asked for than what comes out."""
        heard = self.emitter is not None or self.began is not None or self.report is not None
        return heard or bool(self.sinks or self.progress)


class Engine(ABC):
    """What carries graphs out. Subclass it to have them run elsewhere."""

    @abstractmethod
    def run(
        self, graph: Any, inputs: Mapping[str, Any], output_name: Any = None, *, _ctx: Any = None
    ) -> dict[str, Any]:
        """One set of inputs; the outputs by name."""

    @abstractmethod
    def map(
        self,
        graph: Any,
        items: Iterator[tuple[Any, ...]],
        inputs: Mapping[str, Any],
        output_name: Any = None,
        *,
        _ctx: Any = None,
    ) -> Iterator[tuple[int, Any]]:
        """Many items: yields (index, outputs by name or a Failure), in any order."""


class LocalEngine(Engine):
    """Runs graphs on this machine.

    ::

        graph.map(inputs, "text", engine=fm.LocalEngine("threaded:8"))
        with fm.LocalEngine(map_executor="parallel", contexts={"score": "thread:8"}) as engine:
            graph.map(..., engine=engine)      # its workers stay for the next call

    An executor is asked for by an alias (``sequential async threaded parallel``), a context's type
    or text ("ipc_fork:4"), a spec (``fm.thread(8)``), a named pool, or any
    `concurrent.futures.Executor`, which is used and never shut down. A process pool's death costs
    the item that was running.

    Args:
        node_executor: Where nodes run, in `run` and in maps where `map_executor` is sequential.
        map_executor: Where items of maps run, each as a whole; nested maps, too.
        contexts: Executors by the name of an output or a node; they win over the nodes' own.
        max_workers: How many calls at once, of executors that do not say it.
        cache: Where nodes with ``cache=True`` look up their results, and keep them.

    Raises:
        BuildError: An unknown executor, or a wrong value.

    May be used from any thread, for any number of calls at once; so many more executors are opened
    if it is not entered.
    """

    @_checks.hinted
    def __init__(
        self,
        node_executor: Any = "sequential",
        map_executor: Any = "sequential",
        *,
        contexts: Mapping[str, Any] | None = None,
        max_workers: int | None = None,
        cache: Any = None,
    ) -> None:
        try:
            number = _checks.max_workers(max_workers) or None
        except (TypeError, ValueError) as error:
            raise BuildError(f"LocalEngine: {error}") from None
        self._number = number
        self._placing = Placing(
            home_of(node_executor, number),
            home_of(map_executor, number),
            {name: home_of(each, number) for name, each in dict(contexts or {}).items()},
            cache,
        )
        if cache is not None and not (hasattr(cache, "get") and hasattr(cache, "set")):
            raise BuildError(
                f"LocalEngine: cache must have get(key) and set(key, value), as fm.DiskCache has, "
                f"and {type(cache).__name__!r} has not"
            )
        self.cache = cache
        self._lock = threading.Lock()  # guards the next one
        self._warm: list[Session] = []  # one for each `with` that is open

    def __enter__(self) -> Self:
        with self._lock:
            self._warm.append(Session())
        return self

    def __exit__(self, kind: Any, *exc: object) -> None:
        with self._lock:
            session = self._warm.pop()
        session.close(well=kind is None)

    @property
    def sequential(self) -> bool:
        """Whether all runs in the caller's thread, but for nodes with a context of their own."""
        placing = self._placing
        return placing.node.inline and placing.item.inline and not placing.named

    def run(
        self, graph: Any, inputs: Mapping[str, Any], output_name: Any = None, *, _ctx: Any = None
    ) -> dict[str, Any]:
        """One set of inputs; see `Engine`."""
        ctx = Ctx(graph._plan(tuple(inputs), (), output_name), "run") if _ctx is None else _ctx
        if self.sequential and not ctx.asks and graph._plain and not events.heard():
            plan = graph._plan(tuple(inputs), (), output_name)
            if not any(step.nest is not None or step.node.is_async for step in plan.steps):
                return run_here(graph, plan, inputs, self.cache)
        try:
            with ctx.interrupts:
                return row_of_run(self._begun(graph, inputs, output_name, ctx), graph._called)
        finally:
            ctx.interrupts.check()

    def _begun(self, graph: Any, inputs: Mapping[str, Any], output_name: Any, ctx: Ctx) -> Blocks:
        """A run that has begun: executors are open."""
        names = tuple(inputs)
        plan = graph._plan(names, (), output_name)
        # What is given is the same for the whole run: large values go to a worker once. But batch
        # nodes get lists of it, of one element, and of constants none.
        batched = any(step.node.batch for step in plan.steps)
        ctx.plan = graph._plan(names, names, output_name) if batched else plan
        return self._blocks(graph, None, inputs, output_name, ctx)

    def map(
        self,
        graph: Any,
        items: Iterator[tuple[Any, ...]],
        inputs: Mapping[str, Any],
        output_name: Any = None,
        *,
        _ctx: Any = None,
    ) -> Iterator[tuple[int, Any]]:
        """Many items; see `Engine`."""
        ctx = _ctx
        if ctx is None:
            over = getattr(items, "map_over", ())
            ctx = Ctx(graph._plan((*inputs, *over), over, output_name), "imap", over)
        for block in self._blocks(graph, items, inputs, output_name, ctx):
            yield from enumerate(block.rows(), block.first) if isinstance(block, Rows) else block

    def _blocks(
        self,
        graph: Any,
        items: Iterator[tuple[Any, ...]] | None,
        inputs: Mapping[str, Any],
        output_name: Any,
        ctx: Ctx,
    ) -> Blocks:
        """Rows as they come, several at a time. When it returns, executors are open."""
        with ctx.interrupts:  # nobody is left with half an executor
            return self._opened(graph, items, inputs, output_name, ctx)

    def _opened(
        self,
        graph: Any,
        items: Iterator[tuple[Any, ...]] | None,
        inputs: Mapping[str, Any],
        output_name: Any,
        ctx: Ctx,
    ) -> Blocks:
        with self._lock:
            warm = self._warm[-1] if self._warm else None
        here = contexts.inside()
        placing = _here(self._placing) if here else self._placing
        session = Session() if warm is None else warm
        bell = Bell()
        crew = Crew(placing, session, bell, ctx, _inline if here else self._home, contexts.called)
        call = _Call(crew, session, own=warm is None)
        _check_named(self._placing.named, graph)
        try:
            _listened(ctx)
            layout = crew.layout(ctx.plan, ctx.plan.constants(inputs), mapped=items is not None)
            ways = crew.open()
            tell = _telling(graph, layout, ctx, ways)
            pool = pool_of(layout, ctx, items, tell)
            if pool is not None and items is not None:
                rows = by_pool(session, layout, items, ctx, tell)
            else:
                one = tuple(inputs.values()) if items is None and ctx.plan.mapped else ()
                flow = Flow(layout, items, ways, bell, ctx, tell, one)
                rows = _carried(flow, ctx, call)
            return Blocks(_told_of(rows, ctx, tell), call, ctx.interrupts)
        except BaseException:
            call.end(well=False)
            raise

    def _home(self, asked: Any) -> Home:
        """What a node's context stands for."""
        return home_of(asked, self._number)

    def __repr__(self) -> str:
        placing = self._placing
        warm = ", warm" if self._warm else ""
        return f"<LocalEngine: nodes {placing.node.title}, items {placing.item.title}{warm}>"

    def __reduce__(self) -> Any:
        raise TypeError("an engine cannot be sent or copied; make one where it is needed")


def engine_of(asked: Any) -> Engine:
    """The engine that is asked for: an Engine, or what both executors of a LocalEngine are.

    Raises:
        BuildError: There is none of that name, or it is something else.
    """
    if isinstance(asked, Engine):
        return asked
    if asked is None:
        return LocalEngine()
    try:
        return LocalEngine(asked, asked)
    except BuildError as error:
        raise BuildError(f"engine: {error}") from None


def _check_named(named: Mapping[str, Any], graph: Any) -> None:
    """Whether every name of `contexts=` is an output or a node of the graph.

    Raises:
        BuildError: One is not.
    """
    if not named:
        return
    known = set(graph._wiring.makers)
    nodes = [(f"{node.name}", node) for node in graph.nodes]
    while nodes:
        path, node = nodes.pop()
        known.update((path, node.name, *node.outputs))
        if node.graph is not None:
            nodes += [(f"{path}.{inner.name}", inner) for inner in node.graph.nodes]
    for name in named:
        if name not in known:
            raise BuildError(
                f"contexts: {graph._called} has no output or node {name!r}"
                f"{_checks.nearest(name, known)}"
            )


def _here(placing: Placing) -> Placing:
    return Placing(INLINE, INLINE, dict.fromkeys(placing.named, INLINE), placing.cache)


class _Call:
    """What a call holds, and its end."""

    def __init__(self, crew: Crew, session: Session, *, own: bool) -> None:
        self._crew = crew
        self._session = session
        self._own = own
        self.flow: Flow | None = None

    def end(self, *, well: bool) -> None:
        """Let go of everything. Idempotent; any thread."""
        if self.flow is not None:
            if not well:
                self.flow.stop()
            self.flow.close()
        self._crew.let_go()
        if self._own:
            self._session.close(well=well)

    def leave(self) -> None:
        """It is over, in its own thread: what it had goes now, without a garbage collection."""
        if self.flow is not None:
            self.flow.leave()

    def release(self) -> None:
        """Its thread is held by code of the user's: another one ends it."""
        if self.flow is not None:
            self.flow.kill()
        self.end(well=False)


class _Ending:
    """What of Blocks there still is when the call has ended: no finalizer, in which Ctrl-C would be
    lost."""

    def __init__(self, rows: Iterator[Any], call: _Call, interrupts: Interrupts) -> None:
        self._rows = rows
        self._call: _Call | None = call  # None: it has ended
        self._interrupts = interrupts
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            with self._interrupts:
                return self._next()
        except StopIteration:
            self._interrupts.check()
            raise

    def _next(self) -> Any:
        try:
            return next(self._rows)
        except BaseException as error:
            flow = None if self._call is None else self._call.flow
            killed = flow is not None and flow.killed
            self._end(well=isinstance(error, StopIteration) and not killed)
            if isinstance(error, KeyboardInterrupt):
                self._interrupts.owed()  # that is it
            raise

    def close(self) -> None:
        """End the call. Idempotent. Ctrl-C meanwhile is raised by who closes."""
        with self._interrupts:
            self._rows.close()  # type: ignore[attr-defined]
            self._end(well=False)

    def _end(self, *, well: bool) -> None:
        """Whatever a signal handler raises meanwhile, it is ended."""
        late: BaseException | None = None
        call = self._call
        while call is not None and not self._over:
            try:
                call.end(well=well and late is None)
                call.leave()
                self._interrupts.leave()
                self._over = True
            except BaseException as error:
                if not interrupted(error):
                    self._over = True
                    raise
                late = error
        self.__class__ = _Ending
        # All that it had goes here, not behind a `Late`: others' callbacks would swallow what that
        # raises.
        self._call = call = None
        if late is not None:
            try:
                raise late
            finally:
                late = None  # a cycle: its traceback has this frame


class Blocks(_Ending):
    """Rows of a call by a LocalEngine, several at a time: (index, row) pairs, or Rows. Close it, or
    drop it, to end the call.

    Raises:
        KeyboardInterrupt: Ctrl-C came; after all rows that came of what ran.
    """

    @unbroken
    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and not getattr(self, "_over", True):
            late = Late(self._interrupts)
            self.close()
            del late


def row_of_run(blocks: Blocks, called: str) -> dict[str, Any]:
    """What a run comes to; raises what its failure is."""
    row: Any = {}
    with contextlib.closing(blocks):
        for block in blocks:
            for _, row in block:
                if type(row) is not dict:
                    blocks.close()
                    raise_failure(row, called)
    return row  # type: ignore[no-any-return]


def _carried(flow: Flow, ctx: Ctx, call: _Call) -> Iterator[list[tuple[int, Any]]]:
    """A flow's rows; who started it elsewhere can stop it."""
    call.flow = flow
    ctx.interrupts.guards(flow)
    if ctx.began is not None:
        flow.release = call.release
        ctx.began(flow)
    return _rows_of(flow, ctx)


def _rows_of(flow: Flow, ctx: Ctx) -> Iterator[list[tuple[int, Any]]]:
    try:
        yield from flow.blocks()
    finally:
        ctx.stopped = flow.cut


def _listened(ctx: Ctx) -> None:
    """Who listens does so from here on."""
    if ctx.emitter is None and (ctx.sinks or ctx.progress or events.heard()):
        ctx.emitter = events.Emitter.beginning("graph")
    for sink in ctx.sinks:
        ctx.emitter.attach(sink)


def _telling(graph: Any, layout: Layout, ctx: Ctx, ways: list[Way]) -> Telling | None:
    """What hears of the call, if anybody does, or may do later."""
    if ctx.emitter is None:
        return None
    tell = Telling(ctx.emitter, graph.name or "graph", layout, ctx)
    tell.started(ways)
    return tell


def _told_of(
    rows: Iterator[list[tuple[int, Any]]], ctx: Ctx, tell: Telling | None
) -> Iterator[list[tuple[int, Any]]]:
    """The same rows; their number and the end are told."""
    if tell is None:
        yield from rows
        return
    status = "failed"
    try:
        for block in rows:
            tell.through(len(block))
            yield block
        status = "stopped" if ctx.stopped else "completed"
    except (GeneratorExit, KeyboardInterrupt):
        status = "stopped"
        raise
    finally:
        ctx.stats = tell.stats()
        tell.finished("failed" if tell.raised else status)


def _inline(_asked: Any) -> Home:
    return INLINE

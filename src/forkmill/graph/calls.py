"""One call of a graph: what was asked for, checked; its items; its rows in order.

    Asked ──checked──▶ Checked: plan, values, items ──┬─ here: the generated function, mapped
                                                      └─ an engine: (index, row), sorted here

Guarantees:
    * Every check comes before code of the user's runs.
    * Rows come in the order of the items; with "raise" nothing comes behind the first failure.
    * An engine's iterator is closed: at its end, at a failure, and when ours is dropped.

Threads: a call belongs to the thread that makes it, an iterator to one at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .._checks import nearest, window_limits
from .._late import unbroken
from .._watch import sinks_of
from ..errors import BuildError, SerializationError, slot
from ..runs.interrupts import Late
from ..runs.policies import told
from .code import Call, everything
from .failed import (
    Ended,
    explain,
    failure_of,
    failures_in,
    lost_with,
    raise_failure,
    raise_in_iteration,
    row_of,
)
from .given import items_of
from .loss import Broken, Stop
from .nested import MODES, POLICIES, check_choice, names_of
from .rows import Gathered, MapResult, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ..runs.failure import Failure
    from ..runs.interrupts import Interrupts
    from .given import Items
    from .plan import Plan

__all__ = [
    "Asked",
    "Checked",
    "by_engine",
    "checked",
    "engine_for",
    "made",
    "mapped",
    "merged",
    "result_of",
    "row_blocks",
    "rows",
]


@dataclass(slots=True)
class Asked:
    """What a call of `run`, `map` or `imap` was asked for, as it was given.

    Attributes:
        began: Gets an object with `stop` and `kill` when an engine has begun; or None.
    """

    mode: str
    inputs: Mapping[str, Any] | None
    map_over: Any
    map_mode: str = "zip"
    output_name: Any = None
    engine: Any = None
    on_error: str = "raise"
    ordered: bool = True
    copy: Any = ()
    buffersize: int | None = None
    chunksize: int | None = None
    sinks: Any = ()
    progress: Any = False
    report: Any = None
    began: Callable[[Any], None] | None = None

    @property
    def special(self) -> bool:
        """Whether an engine is needed for more than where it runs."""
        return bool(self.sinks or self.progress or self.began) or self.report is not None

    def ctx(self, plan: Plan, items: Items | None = None) -> Any:
        """The same, for an engine."""
        from .engine import Ctx

        with told(self.mode):
            sinks = sinks_of(self.sinks, self.progress, self.report)
        return Ctx(
            plan, self.mode, items.map_over if items else (), self.on_error,
            self.ordered or self.mode == "map", self.buffersize, self.chunksize,
            items.total if items else 1, sinks, self.progress, self.report, began=self.began,
        )  # fmt: skip


class Checked(NamedTuple):
    """A map, checked: its plan, all values by name, and the items."""

    plan: Plan
    values: dict[str, Any]
    items: Items


def checked(graph: Any, asked: Asked) -> Checked:
    """What a map was asked for, checked and compiled."""
    check_choice("map_mode", asked.map_mode, MODES)
    check_choice("on_error", asked.on_error, POLICIES)
    if not isinstance(asked.ordered, bool):
        raise BuildError(f"ordered must be a bool, not {asked.ordered!r}")
    with told(asked.mode):
        window_limits(asked.chunksize, asked.buffersize, None)
    values = merged(asked.inputs, {})
    over = names_of("map_over", asked.map_over)
    if not over:
        raise BuildError("map_over names no input: for one item there is run")
    copied = names_of("copy", asked.copy)
    _check_names(graph, values, over, copied)
    for name in over:
        if name not in values:
            values[name] = graph._bound[name]
    plan = graph._plan(tuple(values), over, asked.output_name, copied)
    return Checked(plan, values, items_of(values, over, asked.map_mode))


def _check_names(
    graph: Any, values: Mapping[str, Any], over: tuple[str, ...], copied: tuple[str, ...]
) -> None:
    known = [*graph._wiring.inputs, *graph._wiring.makers]
    for what, names in (("map_over", over), ("copy", copied)):
        for name in names:
            if name in values or name in graph._bound:
                continue
            if name not in known:
                near = nearest(name, [*values, *known])
                raise BuildError(f"{what}: {graph._called} has no input {name!r}{near}")
            raise BuildError(f"{what}: {name!r} is not given, and not bound")
    for name in copied:
        if name in over:
            raise BuildError(f"copy: {name!r} is mapped over: each item has its own")


def mapped(graph: Any, asked: Asked) -> MapResult:
    """A whole map."""
    start = time.perf_counter()
    plan, values, items = found = checked(graph, asked)
    if plan.steps and (asked.special or not graph._is_here(asked.engine)):
        return _mapped_by_engine(graph, asked, found, start)
    rows: list[Any] = []
    failures: list[Failure] = []
    call = _call(plan, values, asked.on_error == "skip", failures)
    try:
        rows.extend(map(call.fn, items.bare if len(items.map_over) == 1 else items))
    except Stop as stop:
        loss = stop.loss
    except KeyboardInterrupt as error:
        _open(call, plan, rows, failures)
        slot(error, "__dict__")["result"] = _result(plan, rows, failures, start, "stopped")
        raise
    else:
        _open(call, plan, rows, failures)
        return _result(plan, rows, failures, start)
    lost = lost_with(plan, loss.step)
    raise_failure(failure_of(plan, loss, len(rows), lost), graph._called)


def rows(graph: Any, asked: Asked) -> Iterator[dict[str, Any]]:
    """The rows of a map, as they are asked for."""
    found = checked(graph, asked)
    if found.plan.steps and (asked.special or not graph._is_here(asked.engine)):
        return _rows_by_engine(graph, asked, found)
    return _rows_here(graph, *found, asked.on_error == "skip")


def _rows_here(
    graph: Any, plan: Plan, values: Mapping[str, Any], items: Items, skip: bool
) -> Iterator[dict[str, Any]]:
    fn = _call(plan, values, skip, None).fn
    index = 0
    try:
        for row in map(fn, items.bare if len(items.map_over) == 1 else items):
            yield row if type(row) is dict else row_of(plan, row.values, index)[0]
            index += 1
    except Stop as stop:
        loss = stop.loss
    else:
        return
    lost = lost_with(plan, loss.step)
    raise_in_iteration(failure_of(plan, loss, index, lost), graph._called)


# ---------------------------------------------------------------------- by an engine


def by_engine(graph: Any, asked: Asked) -> Any:
    """Have an engine do it: a row, a MapResult, or an iterator of rows."""
    if asked.mode == "map":
        return _mapped_by_engine(graph, asked, checked(graph, asked), time.perf_counter())
    if asked.mode == "imap":
        return _rows_by_engine(graph, asked, checked(graph, asked))
    values = merged(asked.inputs, {})
    given = tuple(values)
    plan = graph._plan(given, given, asked.output_name)
    engine = engine_for(graph, asked)
    if not plan.steps:
        return {}
    row: dict[str, Any] = engine.run(_alone(graph), values, asked.output_name, _ctx=asked.ctx(plan))
    return row


def _mapped_by_engine(graph: Any, asked: Asked, what: Checked, start: float) -> MapResult:
    engine = engine_for(graph, asked)
    ctx = asked.ctx(what.plan, what.items)
    rows = Gathered()
    failures: list[Failure] = []
    failed: Failure | None = None
    ours = hasattr(engine, "_blocks")  # another one's code may be anything
    try:
        with (
            ctx.interrupts if ours else contextlib.nullcontext(),
            contextlib.closing(row_blocks(graph, engine, asked, ctx, what)) as blocks,
        ):
            try:
                for _, block in blocks:
                    if not rows.keep(block):
                        rows.add(made(what.plan, block, failures))
            except Ended as ended:
                failed = ended.failure
        ctx.interrupts.check()
    except KeyboardInterrupt as error:
        ctx.stopped = True
        slot(error, "__dict__")["result"] = result_of(ctx, rows, failures, start)
        raise
    if failed is None:
        return result_of(ctx, rows, failures, start)
    raise_failure(failed, graph._called)


def engine_for(graph: Any, asked: Asked) -> Any:
    """The engine that carries a call out."""
    from .engine import engine_of

    return engine_of(graph._engine if asked.engine is None else asked.engine)


def result_of(
    ctx: Any, rows: list[Any] | Gathered, failures: list[Failure], start: float
) -> MapResult:
    """What a map by an engine has come to."""
    status = "stopped" if ctx.stopped else "completed"
    return _result(ctx.plan, rows, [*failures, *ctx.noted], start, status, ctx.stats)


def _rows_by_engine(graph: Any, asked: Asked, what: Checked) -> Iterator[dict[str, Any]]:
    engine = engine_for(graph, asked)
    ctx = asked.ctx(what.plan, what.items)
    source = _source(graph, engine, asked, ctx, what)
    blocks = _sorted(graph, source, asked, ctx, what)

    def rows() -> Iterator[dict[str, Any]]:
        ending = _Ending(source, blocks, ctx.interrupts)
        try:
            for _, block in blocks:
                yield from made(what.plan, block, [])
        except GeneratorExit:  # closed or dropped: `ending`
            if not hasattr(engine, "_blocks"):
                blocks.close()  # what another's code raises is its closer's
            return
        except BaseException:
            blocks.close()
            raise
        blocks.close()
        del ending

    return rows()


class _Ending:
    """Closes what it has as the frame that it is in ends. In a generator's own finalizer what a
    signal handler raises would be lost."""

    __slots__ = ("_blocks", "_interrupts", "_source")

    def __init__(self, source: Any, blocks: Any, interrupts: Interrupts) -> None:
        self._source = source
        self._blocks = blocks
        self._interrupts = interrupts

    @unbroken
    def __del__(self) -> None:
        late = Late(self._interrupts)
        self._source.close()  # first, so that what holds it has nothing left to do
        self._blocks.close()
        del late


def row_blocks(
    graph: Any, engine: Any, asked: Asked, ctx: Any, what: Checked
) -> Generator[tuple[int, list[Any]], None, None]:
    """(index of the first, rows) of an engine's map, in order, up to a failure that is raised.

    What is no plain list is `levels.Rows`: in order as it is, and nothing in it failed.
    """
    return _sorted(graph, _source(graph, engine, asked, ctx, what), asked, ctx, what)


def _source(graph: Any, engine: Any, asked: Asked, ctx: Any, what: Checked) -> Any:
    """An engine's rows, several at a time, to be closed."""
    items = what.items
    constants = {name: value for name, value in what.values.items() if name not in items.map_over}
    given: Any = getattr(engine, "_blocks", None)
    try:
        if given is not None:
            return given(graph, items, constants, asked.output_name, ctx)
        return _singly(engine.map(_alone(graph), items, constants, asked.output_name, _ctx=ctx))
    except SerializationError as error:
        _tell_which(error, what, ctx)
        raise


def _tell_which(error: SerializationError, what: Checked, ctx: Any) -> None:
    """Which constant it is that cannot be sent."""
    explain(error, ctx.plan, ctx.plan.constants(what.values))


def _alone(graph: Any) -> Any:
    """The graph as an engine gets it: one that runs it, and does not ask that engine again."""
    return graph if graph._engine is None else graph.with_engine(None)


def _singly(pairs: Any) -> Generator[list[tuple[int, Any]], None, None]:
    try:
        for index, row in pairs:
            for failure in failures_in(row):
                if failure.index is None:  # it comes of a run, which has no items
                    failure.index = index
            yield [(index, row)]
    finally:
        close = getattr(pairs, "close", None)
        if close is not None:
            close()


def _sorted(
    graph: Any, source: Any, asked: Asked, ctx: Any, what: Checked
) -> Generator[tuple[int, list[Any]], None, None]:
    ordered = asked.ordered or asked.mode == "map"
    raises = asked.on_error == "raise"
    line = _Line(ordered)
    with contextlib.closing(source):
        while True:
            try:
                block = next(source, None)
            except SerializationError as error:
                _tell_which(error, what, ctx)
                raise
            if block is None:
                return
            ready = line.put(block)
            ctx.held = line.held
            for index, rows in ready:
                if raises and type(rows) is list and (failures := failures_in(rows[0])):
                    raise_in_iteration(failures[0], graph._called)
                yield index, rows


class _Line:
    """Rows that wait for their turn, as blocks if they came so."""

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._early: dict[int, list[Any]] = {}  # index of the first -> rows
        self._due = 0
        self.held = 0  # rows

    def put(self, block: Any) -> Iterable[tuple[int, list[Any]]]:
        """What may go on, now that these have come: (index of the first, rows)."""
        whole = type(block) is not list
        if whole and not self.held and (not self._ordered or block.first == self._due):
            self._due += len(block)
            return ((block.first, block),)
        if not self._ordered:
            return [(index, [row]) for index, row in block]
        early = self._early
        if whole:
            early[block.first] = block
        else:
            early.update((index, [row]) for index, row in block)
        self.held += len(block)
        ready = []
        while (rows := early.pop(self._due, None)) is not None:
            ready.append((self._due, rows))
            self._due += len(rows)
            self.held -= len(rows)
        return ready


# ---------------------------------------------------------------------- parts


def _call(plan: Plan, values: Mapping[str, Any], skip: bool, noted: list[Failure] | None) -> Call:
    """A map in this thread: gives a row of an item."""
    mode = "record" if skip else "raise"
    constants = plan.constants(values)
    return Call(everything(plan), constants, mode=mode, blocking=True, local=True, noted=noted)


def _open(call: Call, plan: Plan, rows: list[Any], failures: list[Failure]) -> None:
    """Failures in the place of losses; these are noted, before those inside of lists."""
    if not call.broke:
        return
    nested = list(failures)
    failures.clear()
    for index, row in enumerate(rows):
        if type(row) is Broken:
            rows[index], found = row_of(plan, row.values, index)
            failures += found
    failures += nested


def made(plan: Plan, block: list[Any], failures: list[Failure]) -> list[dict[str, Any]]:
    """Rows as an engine gave them, as their user gets them; their failures are noted."""
    if type(block) is not list:
        whole: Any = block
        return whole.rows()  # type: ignore[no-any-return]
    rows = []
    for row in block:
        failures += failures_in(row)
        if type(row) is not dict:
            row = dict(row) if isinstance(row, Mapping) else dict.fromkeys(plan.outputs, row)
        rows.append(row)
    return rows


def _result(
    plan: Plan,
    rows: list[dict[str, Any]] | Gathered,
    failures: list[Failure],
    start: float,
    status: str = "completed",
    stats: Any = None,
) -> MapResult:
    duration = time.perf_counter() - start
    stats = stats or counted(plan, len(rows), failures, duration)
    return MapResult(rows, tuple(plan.outputs), failures, stats, duration, status)


def merged(values: Mapping[str, Any] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, of a mapping and of keyword arguments."""
    if values is None:
        return dict(named)
    if not isinstance(values, Mapping):
        raise BuildError(
            f"inputs must be a mapping of names to values, not {type(values).__name__!r}"
        )
    for name in values:
        if not isinstance(name, str):
            raise BuildError(f"names are strs, and {name!r} is none")
        if name in named:
            raise BuildError(f"{name!r} is given twice: in the mapping and by keyword")
    return {**values, **named}

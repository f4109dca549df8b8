"""A graph in the background, and for asyncio.

    start, start_map ──▶ Handle ──in a thread of its own──▶ Carried.run ──▶ a row, a MapResult
    arun, amap       ──▶ the same, awaited; a task that is cancelled ends its run
    aimap            ──▶ AsyncStream ──asks──▶ Carried.serve: rows, as they are asked for

A thread that is held by code of the user's after `kill` is left behind: another one releases
everything, and what there is by then is the result (see `runs.handle`).

Guarantees:
    * Every check comes in the caller's frame, before anything is started.
    * After `stop` no new item is begun and what runs is finished; after `kill` all is over within a
      second. The rows of what was finished are the result, with the status "stopped"; a single run
      that was killed has none, and raises CancelledError.

Threads: a handle may be used from any; a Carried belongs to its handle's thread, but for `stop`,
`kill` and `snapshot`.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections import deque
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from .. import events
from ..runs.handle import Handle, Left
from ..runs.stats import RunStats
from .calls import Asked, Checked, checked, engine_for, made, merged, result_of, row_blocks
from .engine import LocalEngine, row_of_run
from .ways import Bell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from ..runs.failure import Failure

__all__ = ["aimap", "amap", "arun", "start", "start_map"]

_OPTIONS = ("engine", "sinks", "progress", "report")


def start(graph: Any, inputs: Any = None, output_name: Any = None, **options: Any) -> Handle:
    """As `Graph.run`, in the background; see `Graph.start`."""
    given = {name: options.pop(name) for name in _OPTIONS if name in options}
    asked = Asked("run", merged(inputs, options), (), output_name=output_name, **given)
    return Handle(Carried(graph, asked))


def start_map(graph: Any, inputs: Any, map_over: Any, *args: Any, **options: Any) -> Handle:
    """As `Graph.map`, in the background; see `Graph.start_map`."""
    return Handle(Carried(graph, _asked("map", graph, inputs, map_over, *args, **options)))


async def arun(graph: Any, inputs: Any = None, output_name: Any = None, **options: Any) -> Any:
    """As `Graph.run`, for asyncio."""
    from ..runs import aio

    return await aio.run(lambda: start(graph, inputs, output_name, **options))


async def amap(graph: Any, inputs: Any, map_over: Any, *args: Any, **options: Any) -> Any:
    """As `Graph.map`, for asyncio."""
    from ..runs import aio

    return await aio.run(lambda: start_map(graph, inputs, map_over, *args, **options))


def aimap(
    graph: Any, inputs: Any, map_over: Any, *args: Any, **options: Any
) -> AsyncIterator[dict[str, Any]]:
    """As `Graph.imap`, for asyncio."""
    from ..runs import aio

    asked = _asked("imap", graph, inputs, map_over, *args, **options)
    return aio.AsyncStream(Carried(graph, asked))


def _asked(mode: str, graph: Any, *args: Any, **options: Any) -> Asked:
    """What a map was asked for, as `Graph.map` and `Graph.imap` take it."""
    bound = inspect.signature(getattr(type(graph), mode)).bind(graph, *args, **options)
    bound.apply_defaults()
    given = dict(bound.arguments)
    del given["self"]
    return Asked(mode, **given)


class Carried:
    """One call of a graph, as its handle knows it."""

    def __init__(self, graph: Any, asked: Asked) -> None:
        self.bell = Bell()
        self.events = events.Emitter.beginning("graph")
        self.over = False
        self._graph = graph
        self._asked = asked
        self._start = time.perf_counter()
        self._rows: list[dict[str, Any]] = []
        self._failures: list[Failure] = []
        self._flow: Any = None  # once it has begun
        self._stopping = self._killed = self._left = False
        asked.began = self._began
        self._checked: Checked | None = None
        if asked.mode == "run":
            given = tuple(asked.inputs or ())
            self._plan = graph._plan(given, given, asked.output_name)
            self._ctx = asked.ctx(self._plan)
        else:
            self._checked = checked(graph, asked)
            self._plan = self._checked.plan
            self._ctx = asked.ctx(self._plan, self._checked.items)
        self._ctx.emitter = self.events
        self._engine = engine_for(graph, asked)
        # Here and now, in the caller's thread: processes are forked before there is another one.
        self._blocks: Any = self._begun()

    def _begun(self) -> Any:
        """The call, with its executors open."""
        graph, asked, engine = self._graph, self._asked, self._engine
        if self._checked is not None:
            return row_blocks(graph, engine, asked, self._ctx, self._checked)
        if not isinstance(engine, LocalEngine):
            return None
        return engine._begun(graph, asked.inputs or {}, asked.output_name, self._ctx)

    # ------------------------------------------------------------------ in the run's thread

    def run(self) -> Any:
        """To the end."""
        try:
            return self._run() if self._checked is None else self._map()
        finally:
            self._end()
            if self._left:
                raise Left

    def _run(self) -> Any:
        if self._blocks is not None:
            row = row_of_run(self._blocks, self._graph._called)
        else:
            asked = self._asked
            row = self._engine.run(
                self._graph, asked.inputs or {}, asked.output_name, _ctx=self._ctx
            )
        if self._killed and len(row) < len(self._plan.outputs):
            raise CancelledError("the run was killed")
        return row

    def _map(self) -> Any:
        rows = self._rows
        for row in self._all_rows():
            rows.append(row)
        return self._result()

    def _all_rows(self) -> Iterator[dict[str, Any]]:
        with contextlib.closing(self._blocks) as blocks:
            for _, block in blocks:
                yield from made(self._plan, block, self._failures)

    def _result(self) -> Any:
        self._ctx.stopped = self._ctx.stopped or self._killed
        return result_of(self._ctx, [*self._rows], self._failures, self._start)

    def serve(self, offer: Callable[[deque[Any]], bool]) -> Any:
        """To the end, for somebody elsewhere who takes the rows one by one."""
        outputs: deque[Any] = deque()
        try:
            with contextlib.closing(self._all_rows()) as rows:  # type: ignore[type-var]
                while not self._killed:
                    if not offer(outputs):
                        self.bell.wait()
                        continue
                    row = next(rows, None)
                    if row is None:
                        break
                    outputs.append(row)
                offer(outputs)
            return self._result()
        finally:
            self._end()
            if self._left:
                raise Left

    def _end(self) -> None:
        self.over = True
        self._asked.began = self._ctx.began = None  # they lead here

    def _began(self, flow: Any) -> None:
        self._flow = flow
        if self._killed:
            flow.kill()
        elif self._stopping:
            flow.stop()

    # ------------------------------------------------------------------ from outside

    def stop(self) -> None:
        """No new items. Any thread."""
        self._stopping = True
        if self._flow is not None:
            self._flow.stop()

    def kill(self) -> None:
        """Nothing more. Any thread."""
        self._killed = self._stopping = True
        if self._flow is not None:
            self._flow.kill()
        self.bell.ring()

    def abandon(self) -> Any:
        """It has not begun, and will not."""
        self.over = self._killed = True
        if self._blocks is not None:
            self._blocks.close()
        return self._result() if self._checked is not None else None

    def snapshot(self) -> Any:
        """The figures so far. Any thread."""
        return RunStats() if self._flow is None else self._flow.figures()

    def attach(self, sink: Any) -> None:
        """Somebody listens from now on. Any thread."""
        self.events.attach(sink)

    def held_by_source(self) -> bool:
        """Sources that may block are pulled in a thread of their own."""
        return False

    def held_by_anything(self) -> bool:
        """After `kill`: whether the run is not over; if so the caller has it now."""
        self._left = not self.over
        return self._left

    def held_at_end(self) -> bool:
        """Releasing runs no code of the user's."""
        return False

    def carry_on(self) -> Any:
        """Release everything: another thread was left in the user's code."""
        release = None if self._flow is None else self._flow.release
        if release is not None:
            release()
        if self._checked is None:
            raise CancelledError("the run was killed")
        return self._result()

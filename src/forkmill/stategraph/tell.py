"""What a run tells: events for the one stream, and items for who reads its own `stream`.

    run ──▶ Teller ──▶ Emitter (only if somebody hears it)      run_started, step_started, ...
                  └──▶ a deque, for app.stream            "updates" "values" "tasks" "custom"

========================================  =======================================================
kind                                      data
========================================  =======================================================
run_started, run_finished                 graph, session, step, seq / status, steps
resumed                                   session, step, seq, answers
step_started, step_finished               step, tasks / step, keys, frontier
task_started task_finished task_failed    step, task, attempt; of a failure: error, died
retry, worker_died                        step, task, attempt
schedule barrier frontier checkpoint      spans: `seconds` ends now; of a checkpoint: bytes, seq
interrupt                                 step, questions (ids) or next (a static one)
========================================  =======================================================

Guarantees: when nobody hears it and nobody reads a stream, nothing is made. Who comes while a run
is under way hears it from there on: `look` is asked before each step and when a task has ended.

Threads: the run's own; `_said` in that of events.
"""

from __future__ import annotations

import time
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .. import events
from ..errors import BuildError
from .line import view
from .task import DROP, OVER
from .words import DELETE, END, START, Overwrite, question_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .line import Point
    from .plan import Plan
    from .rules import Task

__all__ = ["MODES", "Teller", "modes_of"]

MODES = ("updates", "values", "tasks", "custom")


def modes_of(mode: Any) -> tuple[tuple[str, ...], bool]:
    """The modes of a stream, and whether they were given as a list.

    Raises:
        BuildError: There is no such mode.
    """
    many = not isinstance(mode, str)
    modes = tuple(mode) if many else (mode,)
    for name in modes:
        if name not in MODES:
            from .._checks import nearest

            raise BuildError(
                f"a stream's mode is one of {', '.join(MODES)}, or a list of them, not {name!r}"
                f"{nearest(name, MODES)}"
            )
    return modes, many


class Teller:
    """Hears a run.

    Args:
        plan: The graph.
        sinks: Who gets the events of this run alone.
        modes: Of the stream that reads it; none without one.
        many: Whether the stream's items say their mode.

    Attributes:
        emitter: Tells events.
        heard: Whether anybody hears them.
        run: The id of the run, for what tasks say; None if nobody hears it.
        streams: Whether somebody reads a stream.
        waits: Whether there is something for the stream now.
        woken: Called when there is, by another thread.
    """

    def __init__(
        self, plan: Plan, sinks: Sequence[Any] = (), modes: Sequence[str] = (), many: bool = False
    ) -> None:
        self._plan = plan
        self._modes = frozenset(modes)
        self._many = many
        self._items: deque[Any] = deque()
        self.step = self.done = self.failed = 0  # for progress, kept by the run, heard or not
        self.emitter = events.Emitter.beginning("stategraph")
        self.streams = bool(modes)
        if "custom" in self._modes:
            self.emitter.attach(self._said)
        for sink in sinks:
            self.emitter.attach(sink)
        self.look()
        self.woken: Callable[[], object] | None = None
        self._began = perf_counter()

    def look(self) -> None:
        """See whether anybody hears it by now."""
        heard = self.emitter.heard
        self.heard = heard or "tasks" in self._modes
        self.run = self.emitter.id if heard else None

    @property
    def waits(self) -> bool:
        return bool(self._items)

    def taken(self) -> Iterator[Any]:
        """What there is for the stream."""
        while self._items:
            yield self._items.popleft()

    def _put(self, mode: str, data: Any) -> None:
        self._items.append((mode, data) if self._many else data)

    def _said(self, event: dict[str, Any]) -> None:
        """In the thread of events: a task has said something to the stream."""
        if event["kind"] == "said":
            self._put("custom", event["data"]["value"])
            if self.woken is not None:
                self.woken()

    def settle(self) -> None:
        """What tasks have said so far is there."""
        if "custom" in self._modes:
            self.emitter.settle(events.DRAIN_S)

    # ------------------------------------------------------------------- the run

    def run_started(self, session: str, point: Point, answers: int | None = None) -> None:
        """A run begins; with answers it is one that goes on."""
        where: dict[str, Any] = {"session": session, "step": point.step, "seq": point.seq}
        plan = self._plan

        def about() -> tuple[str, dict[str, Any]]:
            return plan.name, {"graph": plan.hash, "total": None, "plan": _drawn(plan), **where}

        self.step = point.step
        self.emitter.known_by(about)
        self.look()  # after that: who comes between is told by one of the two
        if self.heard:
            self.emitter.emit("run_started", plan.name, **about()[1])
            if answers is not None:
                self.emitter.emit("resumed", self._plan.name, answers=answers, **where)
        self.emitter.begin(self._progress)
        if "values" in self._modes and answers is None:
            self._values(point)

    def _progress(self) -> dict[str, Any]:
        counts = {"done": self.done, "failed": self.failed, "unit": "tasks"}
        return {"step": self.step, **counts}

    def run_finished(self, status: str, steps: int, error: BaseException | None) -> None:
        """It is over. Who hears it gets what was told, if that takes less than 5 s."""
        self.look()
        if self.heard:
            data: dict[str, Any] = {} if error is None else {"error": events.short(error)}
            self.emitter.emit("progress", **self._progress())
            self.emitter.emit(
                "run_finished",
                self._plan.name,
                seconds=perf_counter() - self._began,
                status=status,
                steps=steps,
                **data,
            )
        self.emitter.finish(events.DRAIN_S)

    def _values(self, point: Point) -> None:
        state = view(self._plan, point)
        self._put("values", state.copy() if isinstance(state, dict) else state)

    # ------------------------------------------------------------------- steps

    def step_started(self, point: Point, tasks: tuple[Task, ...]) -> None:
        """A step begins."""
        names = [task.node for task in tasks]
        self.emitter.emit("step_started", self._plan.name, step=point.step + 1, tasks=names)

    def step_finished(
        self,
        plan: Plan,
        before: Point,
        new: Point,
        results: Sequence[Any],
        changes: dict[str, Any],
    ) -> None:
        """A step is committed."""
        self.settle()
        if self.heard:
            frontier = [task.node for task in new.tasks]
            self.emitter.emit(
                "step_finished", plan.name, step=new.step, keys=list(changes), frontier=frontier
            )
        if "updates" in self._modes:
            for task, outcome in zip(before.tasks, results, strict=True):
                self._put("updates", {task.node: _update(plan, outcome[1])})
        if "values" in self._modes:
            self._values(new)

    def span(self, name: str, began: float, **data: Any) -> None:
        """What has a name of its own took from then to now."""
        if self.heard:
            self.emitter.emit(name, self._plan.name, seconds=perf_counter() - began, **data)

    def checkpoint(self, point: Point, change: Any, began: float) -> None:
        """A point is stored."""
        size = sum(map(_size, change.values.values()))
        self.span("checkpoint", began, seq=point.seq, step=point.step, bytes=size)

    def asked(self, step: int, questions: list[tuple[int, str, int, Any]]) -> None:
        """The run waits for answers."""
        if self.heard:
            ids = [question_id(step, index, node, n) for index, node, n, _ in questions]
            self.emitter.emit("interrupt", self._plan.name, step=step, questions=ids)

    def paused(self, step: int, point: Point) -> None:
        """The run stops where it was told to."""
        if self.heard:
            coming = [task.node for task in point.tasks]
            self.emitter.emit("interrupt", self._plan.name, step=step, next=coming)

    # ------------------------------------------------------------------- tasks

    def task_started(self, node: str, step: int, index: int, attempt: int) -> None:
        """An attempt begins."""
        self._task("task_started", node, step, index, attempt)

    def task_finished(
        self, node: str, step: int, index: int, attempt: int, seconds: float, outcome: Any
    ) -> None:
        """It has ended well, or asks."""
        asks = bool(outcome[0])
        self._task("task_finished", node, step, index, attempt, seconds, asks=asks)

    def task_failed(
        self,
        node: str,
        step: int,
        index: int,
        attempt: int,
        seconds: float,
        error: BaseException,
        died: bool,
    ) -> None:
        """It has failed."""
        if died:
            pid = getattr(error, "pid", None)
            data: dict[str, Any] = {
                "step": step,
                "task": index,
                "cause": getattr(error, "cause", None),
            }
            self.emitter.emit("worker_died", node, attempt=attempt, worker=pid, **data)
        text = f"{type(error).__name__}: {events.short(str(error))}"
        self._task("task_failed", node, step, index, attempt, seconds, error=text, died=died)

    def retry(self, node: str, step: int, index: int, attempt: int) -> None:
        """It will be tried again."""
        self.emitter.emit("retry", node, attempt=attempt, step=step, task=index)

    def _task(
        self,
        kind: str,
        node: str,
        step: int,
        index: int,
        attempt: int,
        seconds: float | None = None,
        **data: Any,
    ) -> None:
        self.emitter.emit(
            kind, node, attempt=attempt, seconds=seconds, step=step, task=index, **data
        )
        if "tasks" in self._modes:
            told = {"event": kind.removeprefix("task_"), "node": node, "step": step, "task": index}
            more = {"attempt": attempt, "seconds": seconds, "time": time.time(), **data}
            self._put("tasks", {**told, **more})


def _drawn(plan: Plan) -> dict[str, Any]:
    """The graph as plain data."""
    nodes = [
        {
            "name": node.name,
            "context": str(node.context),
            "workers": node.context.max_workers or 1,
        }
        for node in plan.nodes.values()
    ]
    edges = dict.fromkeys(plan.paths.edges)
    for choice in plan.paths.choices:
        for target in (choice.targets or {}).values():
            edges[choice.source, target] = None
    for join in plan.paths.joins:
        edges.update(dict.fromkeys((source, join.target) for source in join.sources))
    for node in plan.nodes.values():
        edges.update(dict.fromkeys((node.name, target) for target in node.targets or ()))
    ends = (START, END)
    named = [[a, b] for a, b in edges if a not in ends and b not in ends]
    return {"nodes": nodes, "edges": named}


def _size(value: Any) -> int:
    if value is None:
        return 0
    parts = getattr(value, "parts", value)
    return sum(map(len, parts)) if isinstance(parts, tuple) else len(parts)


def _update(plan: Plan, writes: Sequence[tuple[str, int, Any]]) -> dict[str, Any] | None:
    """What a node returned, decoded again."""
    if not writes:
        return None
    open_wire = plan.coder.value
    found: dict[str, Any] = {}
    for key, op, wire in writes:
        if op == DROP:
            found[key] = DELETE
        elif op == OVER:
            found[key] = Overwrite(open_wire(wire))
        else:
            found[key] = open_wire(wire)
    return found

"""One call's run: step after step, each a transaction.

    point ─▶ tasks ─▶ outcomes ─▶ fold, follow ─▶ new point ─▶ stored ─▶ swapped in ─▶ ...
                │ one ends while others run: a pending row
                └ a failure, a question, a kill: what finished is stored beside the old point

Steps of which nothing is told and nothing stored go `straight` on, where their tasks are called.

A step's tasks:

======================  =======================================================================
a task                  what becomes of it
======================  =======================================================================
has its outcome already is not run again: it finished before a failure, a crash or a question
asks, without an answer is not run: the run ends "interrupted" when nothing else is left
returns                 its outcome is kept; a pending row if others still run
asks                    its question is kept; the others are let finish
is a state graph, and   goes on where it was when the run is resumed; the others are let finish
was told to stop
fails, may try again    after the policy's pause, in its place again
fails for good          its error is kept; the others are let finish; the first in order is raised
======================  =======================================================================

Guarantees:
    * A point is swapped in after it was stored, and whole. Whatever is raised before leaves the
      session where it was.
    * All tasks of a step get to their end, no matter who fails: what is raised and told does not
      depend on the number of workers. Only a kill, and a store that fails, cut that short.
    * However a run ends, the session is free, unless its owner has changed.

Invariants:
    * RUN-1  The line, the point and the store are touched by the thread that runs `turns` alone;
      others set flags and put into `_ends`.
    * RUN-2  Who goes into the user's code puts a mark into `inside`, and takes it out again when
      it comes back; who leaves it behind takes it too. One of them gets it (a dict's pop is
      one step), and has the run.
    * RUN-3  A state graph that is a node has a run of its own in this one's thread (`adopt`). What
      stops or ends this one does so to that one; who leaves this thread behind leaves that run
      behind first.

Threads: `turns` in one; `stop` and `kill` from any, and from signal handlers.
"""

from __future__ import annotations

import heapq
from contextvars import ContextVar
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from .. import errors
from ..errors import SessionConflict, StepLimit, StoreError, WorkerDied, add_note
from ..runs.failure import Failure
from ..runs.handle import Left
from . import fits
from .carried import Ended, carried
from .given import Given
from .keep import Keeper
from .limits import Limits
from .line import (
    Line,
    Point,
    view,
)
from .places import INLINE
from .result import StateRun, StateStats, result_of
from .rules import fold, follow
from .straight import straight_on
from .task import (
    ASKED,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .node import Node
    from .places import Places
    from .plan import Plan
    from .rules import Task
    from .tell import Teller

__all__ = ["AROUND", "Run"]

# The run that a node which is a state graph is called by.
AROUND: ContextVar[Run] = ContextVar("forkmill_run_around")


class Inner(Protocol):
    """The run of a node that is a state graph, as the one around knows it: see `drive.Driver`."""

    @property
    def in_user_code(self) -> bool:
        """Whether the run's thread is in the user's code just now."""

    def stop(self) -> None:
        """End after the step that runs."""

    def kill(self) -> None:
        """End now."""

    def held_by_anything(self) -> bool:
        """After `kill`: whether the user's code holds the thread; if so the caller has the run."""

    def carry_on(self) -> Any:
        """End the run whose thread was left behind."""


class Run:
    """One call's run of a session.

    Args:
        plan: The graph.
        line: The session, claimed if there is a store.
        places: Where tasks run. Not the run's to close.
        limits: When it ends.
        tell: Hears what happens.
        resumed: Whether the session was under way: then it does not stop before its first step.
        single: Whether it ends after one step.

    Attributes:
        status: "running", until it is over.
        killed: Whether it was killed; draining: whether it was told to stop.
        inside: The mark of RUN-2.
        single: Whether it ends after one step.
        last_step: The tasks of the last step, and what it changed.
        given: What its tasks are given.
        failures: The tasks that failed for good in the last step, by index.
        stats: The figures.
    """

    def __init__(
        self,
        plan: Plan,
        line: Line,
        places: Places,
        limits: Limits,
        tell: Teller,
        *,
        resumed: bool = False,
        single: bool = False,
    ) -> None:
        self.plan = plan
        self.line = line
        self.places = places
        self.limits = limits
        self.tell = tell
        self.status = "running"
        self.failures: dict[int, Failure] = {}
        self.stats = StateStats()
        self.interrupted = False  # by Ctrl-C
        self.inside: dict[str, bool] = {}
        self._inner: Inner | None = None  # the run of the node that is a state graph
        self._left: Inner | None = None  # the same, left behind with this one
        self._halted = False  # such a node's run has ended before its end
        self.last_step: tuple[tuple[Task, ...], dict[str, Any]] = ((), {})
        self._resumed, self.single = resumed, single
        self._keep = Keeper(plan, line, tell)
        self._straight = not (self._keep.there or tell.streams or plan.nested)
        self.draining = self.killed = False
        self._ends: SimpleQueue[Any] = SimpleQueue()
        self._coder = plan.coder
        self._futures: dict[int, Any] = {}
        self._places_of: dict[int, Any] = {}
        self._attempts: dict[int, int] = {}
        self.given = Given(plan, line, places, tell)
        self._began = perf_counter()

    # ------------------------------------------------------------------- any thread

    def stop(self) -> None:
        """End after the step that runs; a node that is a state graph, after its own."""
        self.draining = True
        if (inner := self._inner) is not None:
            inner.stop()

    def kill(self) -> None:
        """End now: what runs is ended where it can be, and dropped."""
        self.killed = True
        self._ends.put(None)
        for future in list(self._futures.values()):
            _end(future)
        if (inner := self._inner) is not None:
            inner.kill()

    def adopt(self, inner: Inner | None) -> None:
        """A node that is a state graph runs, as this; None: not any more. In the run's thread."""
        self._inner = inner
        if inner is not None and self.killed:  # it came between
            inner.kill()
        elif inner is not None and self.draining:
            inner.stop()

    @property
    def in_user_code(self) -> bool:
        """Whether the run's thread is in the user's code just now."""
        inner = self._inner
        return bool(self.inside) and (inner is None or inner.in_user_code)

    def leave_behind(self) -> bool:
        """Whether the thread of the run is in the user's code; if so it is left there, and who
        calls this has the run (RUN-2)."""
        if not self.inside.pop("user", False):
            return False
        inner = self._inner
        if inner is not None and inner.held_by_anything():
            self._left = inner
        return True

    def carry_on(self) -> StateRun:
        """End a killed run whose thread was left behind."""
        self._drop()
        try:
            if self._left is not None:
                self._left.carry_on()
        finally:
            self._free("killed")
        return self.result()

    def back(self) -> None:
        """The user's code is over (RUN-2)."""
        if not self.inside.pop("user", False):
            raise Left

    # ------------------------------------------------------------------- the turns

    def turns(self) -> Iterator[Any]:
        """Run until the session is complete, waits, or is told to stop.

        Yields:
            What `tell` has for a stream.

        Raises:
            BaseException: The first failed task's own exception, in task order.
            UpdateError: Updates that do not go together, or a way that leads nowhere.
            StepLimit: So many steps, and it is not complete.
            StoreError: The store failed; SessionConflict: the session has another owner.
        """
        tell, point = self.tell, self.line.point
        self.places.begin()
        try:
            answers = sum(map(len, self.line.answers.values())) if self._resumed else None
            tell.run_started(self.line.session, point, answers)
            tell.woken = lambda: self._ends.put(None)
            if not point.tasks:
                self._free("completed")
            elif not self._resumed and self.limits.pauses((), point.tasks):
                self._free("interrupted")
                tell.paused(point.step, point)
            while self.status == "running":
                if self._straight and straight_on(self):
                    self._barrier()
                    continue
                if self.status != "running":
                    break
                if self.stats.steps >= self.limits.max_steps:
                    raise self._too_many()
                if self.killed or self.draining:
                    self._free("killed" if self.killed else "drained")
                    break
                todo = self._todo()
                if len(todo) == 1 and self.line.point.tasks[todo[0]].node in self.plan.here:
                    self._inline(todo[0])
                elif todo:
                    yield from self._side_by_side(todo)
                self._barrier()
                if tell.streams:
                    yield from tell.taken()
        except BaseException as error:
            self._give_up(error)
            raise
        finally:
            self.stats.seconds = perf_counter() - self._began
            tell.woken = None
            self.places.end()
            self.given.forget()

    def _too_many(self) -> StepLimit:
        limit, step = self.limits.max_steps, self.line.point.step
        return StepLimit(
            f"{self.plan.name}: {limit} steps were committed, and it is not complete (next: "
            f"{', '.join(self.frontier()[:5])}); resume it, with a higher max_steps if it shall go "
            "further at once",
            max_steps=limit,
            step=step,
        )

    def _todo(self) -> Sequence[int]:
        """A step begins; those of its tasks that are to run."""
        line, tell = self.line, self.tell
        point = line.point
        tell.look()
        if tell.heard:
            tell.step_started(point, point.tasks)
        if self.failures:
            self.failures = {}
        if self._attempts:
            self._attempts = {}
        todo = range(len(point.tasks))
        if not line.questions and not line.outcomes:
            return todo
        asked = line.asked()
        return [i for i in todo if i not in line.outcomes and i not in asked]

    def _barrier(self) -> None:
        """The tasks of a step have come to their ends."""
        line = self.line
        if self.killed:
            self._free("killed")
        elif self.failures:
            raise carried(self.failures[min(self.failures)].error)
        elif self._halted:
            self._free("drained")
        elif line.questions and (asked := line.asked()):
            self._free("interrupted")
            step, tasks = line.point.step + 1, line.point.tasks
            self.tell.asked(step, [(i, tasks[i].node, *asked[i]) for i in sorted(asked)])
        else:
            self._commit()

    # ------------------------------------------------------------------- tasks

    def rest(self, first: int) -> None:
        """Run the tasks from this one on, which are called here, each to its end."""
        for index in range(first, len(self.line.point.tasks)):
            self.tell.look()
            self._attempts.pop(index, None)  # of a step before, which was run without `_started`
            self._inline(index)

    def missed(self, index: int, error: BaseException) -> None:
        """The first try of a task that is called here has failed: it is brought to its end."""
        self._attempts[index] = 1
        node = self.plan.nodes[self.line.point.tasks[index].node]
        pause = self._failed(index, node, error, 0.0)
        if pause is not None:
            self._wait(pause)
            self._inline(index)

    def _inline(self, index: int) -> None:
        """Run a task here, to its end."""
        plan, inside = self.plan, self.inside
        name = self.line.point.tasks[index].node
        node, (call, _) = plan.nodes[name], plan.here[name]
        if name in plan.nested:
            call = partial(self._around, call)
        heard = self.tell.heard
        while not self.killed:
            self._started(index, node)
            args = self.given.to(index, INLINE)
            began = perf_counter() if heard else 0.0
            inside["user"] = True
            try:
                outcome = call(*args)
            except BaseException as error:
                self.back()
                if isinstance(error, Ended):
                    self._halted = True
                    return
                pause = self._failed(index, node, error, perf_counter() - began)
                if pause is None:
                    return
                self._wait(pause)
                continue
            if not inside.pop("user", False):
                raise Left
            self._finished(index, node, outcome, perf_counter() - began if heard else 0.0)
            return

    def _around(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call a node that is a state graph, which tells us of its run."""
        token = AROUND.set(self)
        try:
            return call(*args)
        finally:
            AROUND.reset(token)

    def _wait(self, seconds: float) -> None:
        """A pause that a kill cuts short; who ended meanwhile is looked at later."""
        until = monotonic() + seconds
        come = []
        while not self.killed and (left := until - monotonic()) > 0:
            try:
                come.append(self._ends.get(timeout=left))
            except Empty:
                break
        for item in come:
            self._ends.put(item)

    def _side_by_side(self, todo: Sequence[int]) -> Iterator[Any]:
        """Run tasks at once, and those that are called here among them."""
        plan, tasks = self.plan, self.line.point.tasks
        waiting: list[int] = []
        here: list[int] = []
        place_of, nodes = self.places.of, plan.nodes
        for index in todo:
            place = place_of(nodes[tasks[index].node])
            if place is INLINE:
                here.append(index)
            else:
                self._places_of[index] = place
                waiting.append(index)
        timers: list[tuple[float, int]] = []
        try:
            began = perf_counter()
            waiting = self._fed(waiting)
            self.tell.span("schedule", began)
            stored = self._keep.there
            for index in here:
                if not self.killed:
                    self.tell.look()
                    self._inline(index)
                    if stored and (self._futures or waiting or index != here[-1]):
                        self._keep.finished()
            while (self._futures or waiting or timers) and not self.killed:
                yield from self._next_ends(timers)
                now = monotonic()
                while timers and timers[0][0] <= now:
                    waiting.append(heapq.heappop(timers)[1])
                waiting = [] if self.killed else self._fed(waiting)
                if self._futures or waiting or timers:
                    self._keep.finished()
        finally:
            if self._futures:
                self._drop()

    def _fed(self, waiting: list[int]) -> list[int]:
        """Send what there is room for; what is left."""
        left: list[int] = []
        for index in waiting:
            place = self._places_of[index]
            if not place.room():
                left.append(index)
                continue
            task = self.line.point.tasks[index]
            node = self.plan.nodes[task.node]
            self._started(index, node)
            try:
                args = self.given.to(index, place)
                future = place.submit(node, self.plan.calls[task.node], args)
            except Exception as error:
                self._failed(index, node, error, 0.0, final=True)
                continue
            self._futures[index] = future
            began = perf_counter()
            future.add_done_callback(lambda done, i=index, at=began: self._ends.put((i, done, at)))
            if self.killed:  # it came between
                _end(future)
        return left

    def _next_ends(self, timers: list[tuple[float, int]]) -> Iterator[Any]:
        """Wait for tasks that end, or for what a stream is told meanwhile."""
        tell = self.tell
        timeout = max(0.0, timers[0][0] - monotonic()) if timers else None
        try:
            item = self._ends.get(timeout=timeout)
            tell.look()
            while True:
                if item is not None:
                    index, future, began = item
                    self._ended(index, future, began, timers)
                item = self._ends.get_nowait()
        except Empty:
            pass
        if tell.waits:
            yield from tell.taken()

    def _ended(self, index: int, future: Any, began: float, timers: list[Any]) -> None:
        """A task's future is done."""
        if self._futures.pop(index, None) is None:
            return
        self._places_of[index].running -= 1
        node = self.plan.nodes[self.line.point.tasks[index].node]
        took = perf_counter() - began
        try:
            outcome = future.result()
        except BaseException as error:
            pause = self._failed(index, node, error, took)
            if pause is not None:
                heapq.heappush(timers, (monotonic() + pause, index))
            return
        self._finished(index, node, outcome, took)

    def _drop(self) -> None:
        """Who still runs is ended, or left behind."""
        futures, self._futures = self._futures, {}
        for index, future in futures.items():
            _end(future)
            place = self._places_of[index]
            place.running -= 1
            leave = getattr(getattr(place, "executor", None), "leave", None)
            if leave is not None and not future.done():
                leave([future])

    # ------------------------------------------------------------------- their ends

    def _started(self, index: int, node: Node) -> None:
        attempt = self._attempts[index] = self._attempts.get(index, 0) + 1
        self.stats.tasks += 1
        if attempt > 1:
            self.stats.retries += 1
        if self.tell.heard:
            self.tell.task_started(node.name, self.line.point.step + 1, index, attempt)

    def _finished(self, index: int, node: Node, outcome: Any, seconds: float) -> None:
        line, plan = self.line, self.plan
        if plan.largest is not None and (error := fits.refused(plan, node.name, outcome)):
            self._failed(index, node, error, seconds, final=True)
            return
        if outcome[0] == ASKED:
            _, number, wire = outcome
            line.questions[index] = (number, wire)
        else:
            line.outcomes[index] = outcome
            self.tell.done += 1
        self._keep.unsaved.add(index)
        if self.tell.heard:
            step = line.point.step + 1
            self.tell.task_finished(node.name, step, index, self._attempts[index], seconds, outcome)

    def _failed(
        self, index: int, node: Node, error: BaseException, seconds: float, final: bool = False
    ) -> float | None:
        """A task has failed; the pause before it is tried again, or None."""
        attempt = self._attempts[index]
        policy = node.retry
        step = self.line.point.step + 1
        died = isinstance(error, WorkerDied)
        self.stats.deaths += died
        self.tell.failed += 1
        if self.tell.heard:
            self.tell.task_failed(node.name, step, index, attempt, seconds, error, died)
        if self.killed:
            return None
        again = policy is not None and attempt < policy.attempts and isinstance(error, policy.on)
        if again and not final:
            assert policy is not None
            if self.tell.heard:
                self.tell.retry(node.name, step, index, attempt)
            return policy.pause(attempt)
        _note(error, node.name, f"task {index} of step {step}, attempt {attempt}")
        arg = self.line.point.tasks[index].arg
        item = None if arg is None else self._coder.value(arg)
        self.failures[index] = Failure(node.name, item, error, attempt)
        return None

    # ------------------------------------------------------------------- the barrier

    def _commit(self) -> None:
        """Build the next point, store it, swap it in."""
        line, plan, tell = self.line, self.plan, self.tell
        point, outcomes = line.point, line.outcomes
        tasks, step = point.tasks, point.step + 1
        heard = tell.heard
        began = perf_counter() if heard else 0.0
        if len(tasks) == 1:
            results = [outcomes[0]]
            writers = [(tasks[0].node, outcomes[0][1])] if outcomes[0][1] else []
        else:
            results = [outcomes[index] for index in range(len(tasks))]
            writers = [
                (task.node, out[1]) for task, out in zip(tasks, results, strict=True) if out[1]
            ]
        self.inside["user"] = True
        try:
            changes = (
                fold(plan.schema.keys, point.wire, writers, step, self._coder) if writers else {}
            )
            plain, late = point.changed(changes) if changes else (point.plain, point.late)
            new = Point(point.seq + 1, step, plain, late, (), point.joins)
            if heard:
                tell.span("barrier", began, step=step, keys=list(changes))
                began = perf_counter()
            new.tasks, new.joins = follow(
                plan.paths, tasks, results, point.joins, lambda: view(plan, new), step, self._coder
            )
            if heard:
                tell.span("frontier", began, step=step, tasks=[task.node for task in new.tasks])
        except (StopIteration, GeneratorExit) as error:
            raise carried(error) from None
        finally:
            self.back()
        status = self.status_after(tasks, new)
        self._keep.committed(new, tasks, changes, status)
        self.stats.steps += 1
        tell.step = new.step
        self.last_step = (tasks, changes)
        if status:
            self.status = line.status = status
        if heard or tell.streams:
            tell.step_finished(plan, point, new, results, changes)
        if status == "interrupted":
            tell.paused(step, new)

    def status_after(self, ran: tuple[Task, ...], new: Point) -> str | None:
        """What the run ends with at this point; None: it goes on."""
        if not new.tasks:
            return "completed"
        if self.limits.any and self.limits.pauses(ran, new.tasks):
            return "interrupted"
        if self.killed:
            return "killed"
        return "drained" if self.draining or self.single else None

    # ------------------------------------------------------------------- the end

    def _free(self, status: str) -> None:
        """The run ends without another point."""
        self._keep.free(status)
        self.status = status

    def _give_up(self, error: BaseException) -> None:
        """The run ends with an exception: what finished is stored first."""
        self.status = "failed"
        if isinstance(error, Left):
            return
        if isinstance(error, (StoreError, SessionConflict)) and not self.failures:
            self._keep.let_go()
            return
        if isinstance(error, GeneratorExit):
            self._free("drained")
            return
        try:
            self._free("killed" if self.killed else "failed")
        except (StoreError, SessionConflict) as failure:
            self._keep.let_go()
            raise failure from error
        finally:
            self.status = "failed"

    # ------------------------------------------------------------------- the result

    @property
    def last(self) -> tuple[list[str], list[str]]:
        """The nodes of the last step's tasks, and the keys that it changed."""
        return [task.node for task in self.last_step[0]], list(self.last_step[1])

    def frontier(self) -> list[str]:
        """The nodes of the next step's tasks."""
        return [task.node for task in self.line.point.tasks]

    def result(self, status: str | None = None) -> StateRun:
        """What it has come to."""
        return result_of(self.plan, self.line, status or self.status, self.failures, self.stats)


def _end(future: Any) -> None:
    """Cancel a call, or end it where it can be."""
    if not future.cancel():
        kill: Callable[[], bool] | None = getattr(future, "kill", None)
        if kill is not None:
            kill()


def _note(error: BaseException, node: str, text: str) -> None:
    """Say where an exception comes from; of one that is raised again by a node, once."""
    attributes = errors.slot(error, "__dict__")
    notes = attributes.get("__notes__")
    where = f"in node {node!r}: "
    if isinstance(notes, list):
        attributes["__notes__"] = [note for note in notes if not str(note).startswith(where)]
    add_note(error, where + text)

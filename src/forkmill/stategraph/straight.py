"""Steps straight on: of nodes that are called here, while nobody listens and nothing is stored.

    point ─▶ call each task ─▶ fold ─▶ follow ─▶ new point ─▶ swapped in ─▶ ...    in one function
                │ a failure, a question, somebody listens, a kill
                └▶ `Run` goes on from there: the tasks' ends are known, the barrier is next

Most steps of most graphs are these, and what they cost is what surrounds the user's code. So what
`Run` does for any step is done here without what only other steps need: attempts, pending rows,
spans, something to yield from. The rules are those of `rules` and `task`, so what comes of a step
is the same whichever way it goes.

Guarantees, besides those of `run`:
    * Whatever is raised, the point is whole, and what is done of the next step lies beside it: the
      two change hands between two bytecodes that no signal handler comes between.
    * Who begins to listen hears the run from the next task on.

Threads: the run's own (RUN-1); marks as RUN-2 says.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ..runs.handle import Left
from .carried import carried
from .line import Point
from .rules import fold, follow
from .task import ASKED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .given import Given
    from .limits import Limits
    from .line import Line
    from .plan import Plan
    from .result import StateStats
    from .rules import Task
    from .tell import Teller

__all__ = ["straight_on"]


class Going(Protocol):
    """A run, as its steps know it: see `run.Run`."""

    plan: Plan
    line: Line
    limits: Limits
    tell: Teller
    given: Given
    stats: StateStats
    status: str
    inside: dict[str, bool]
    killed: bool
    draining: bool
    single: bool
    last_step: tuple[tuple[Task, ...], dict[str, Any]]

    def back(self) -> None:
        """The user's code is over (RUN-2)."""

    def missed(self, index: int, error: BaseException) -> None:
        """The first try of a task that is called here has failed: it is brought to its end."""

    def rest(self, first: int) -> None:
        """Run the tasks from this one on, which are called here, each to its end."""

    def status_after(self, ran: tuple[Task, ...], new: Point) -> str | None:
        """What the run ends with at this point; None: it goes on."""


def straight_on(run: Going) -> bool:
    """Run steps for as long as they are such.

    Args:
        run: The run.

    Returns:
        Whether the tasks of a step have come to their ends, or are not to any more, and its barrier
        is the run's matter. Else what is next is what the run's flags and its point say.

    Raises:
        BaseException: As `Run.turns`.
    """
    plan, line, stats = run.plan, run.line, run.stats
    here, tell, limits = plan.here, run.tell, run.limits
    emitter = tell.emitter
    ends = limits.any or run.single  # maybe, though there are tasks left
    if line.outcomes or line.questions:
        return False
    while not (run.killed or run.draining or emitter.heard or stats.steps >= limits.max_steps):
        point = line.point
        tasks = point.tasks
        for task in tasks:
            if task[0] not in here:
                return False
        if not _called(run, point):
            return True
        new, changes = _next(run, point)
        line.point, line.at, line.outcomes = new, 0.0, {}
        stats.steps += 1
        tell.step = new.step
        run.last_step = tasks, changes
        if not new.tasks or ends or run.killed or run.draining:
            status = run.status_after(tasks, new)
            if status is not None:
                run.status = line.status = status
                return False
    return False


def _called(run: Going, point: Point) -> bool:
    """Call the tasks of a step; whether each did well, and there is nothing to be told."""
    line, stats, tell, inside = run.line, run.stats, run.tell, run.inside
    emitter, done = tell.emitter, 0
    here, outcomes, session, seq = run.plan.here, line.outcomes, line.session, point.seq
    step = point.step + 1
    whole = None if point.late else (point.plain, point.late)
    for index, (name, arg) in enumerate(point.tasks):
        if index and (run.killed or emitter.heard):
            tell.done += done
            run.rest(index)
            return False
        call, reads = here[name]
        state = run.given.seen(reads) if whole is None or reads is not None else whole
        stats.tasks += 1
        inside["user"] = True
        try:
            outcome = call(None, (session, seq, index, name), step, state, arg, None)
        except BaseException as error:
            run.back()
            run.missed(index, error)
            continue
        if not inside.pop("user", False):
            raise Left
        if outcome[0] == ASKED:
            line.questions[index] = outcome[1:]
        else:
            outcomes[index] = outcome
            done += 1
    tell.done += done
    return len(outcomes) == len(point.tasks)


def _next(run: Going, point: Point) -> tuple[Point, dict[str, Any]]:
    """The point that the outcomes beside this one lead to, and what they change."""
    plan, tasks, outcomes, inside = run.plan, point.tasks, run.line.outcomes, run.inside
    step, plain, late, writes = point.step + 1, point.plain, point.late, outcomes[0][1]
    results: Sequence[Any] = (outcomes[0],)
    writers: Sequence[Any] = ((tasks[0][0], writes),) if writes else ()
    if len(tasks) > 1:
        results = [outcomes[index] for index in range(len(tasks))]
        writers = [(task[0], out[1]) for task, out in zip(tasks, results, strict=True) if out[1]]
    changes: dict[str, Any] = {}
    inside["user"] = True
    try:
        if writers:
            changes = fold(plan.schema.keys, point.wire, writers, step, plan.coder)
            plain, late = point.changed(changes)
        look = partial(plan.look, plain, late)
        coming, joins = follow(plan.paths, tasks, results, point.joins, look, step, plan.coder)
    except (StopIteration, GeneratorExit) as error:
        raise carried(error) from None
    finally:
        if not inside.pop("user", False):
            raise Left
    return Point(point.seq + 1, step, plain, late, coming, joins), changes

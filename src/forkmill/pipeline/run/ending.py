"""How a run ends, whatever the user's code does meanwhile; and who takes it over where that holds
its thread.

    its end, an item's failure, Ctrl-C, kill ──▶ finish, give_up ──▶ all that is to be released,
                                                                     hooks, the result
    the thread of the run is held for ever ────▶ held_by_...: the caller has the run now

Guarantees: what is to be done at the end is done once each, and goes on behind what was broken off
or holds its thread; the result is made once.

Threads: that which has the run, but `held_by_source`, `held_by_anything`, `held_at_end`: who takes
it over.
"""

from __future__ import annotations

import functools
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from ... import events
from ..._frames import locals_of, our_locals, stack
from ..._process import interrupted
from ...contexts.lanes.replica import Replica
from ...errors import PoolError
from ...runs.handle import Left
from ...runs.result import RunResult, attach
from ..declare import hooks_of
from .figures import Figures
from .flow import NEVER, Abort
from .fuse import Code, tallied
from .lanes import LaneOperator
from .operators import Operator
from .sources import INTERRUPTED, Source
from .work import run_hooks

if TYPE_CHECKING:
    from types import FrameType
    from typing import Unpack

    from ..graph import StageGraph
    from .state import RunOptions

__all__ = ["Ending"]


class Ending(Figures):
    """One run of a graph, as far as it ends. Arguments: those of `Run`."""

    def __init__(self, graph: StageGraph, **options: Unpack[RunOptions]) -> None:
        super().__init__(graph, **options)
        self._opened = self._told_end = False
        self._error: BaseException | None = None
        self._kill_by = NEVER  # when nothing is waited for any more
        self._torn = False  # calls were left behind, one in the middle of our own work
        self._result: RunResult | None = None
        self._raised: BaseException | None = None  # what the run is going to raise
        self._own = False  # it is an item's
        self._finished = False  # the hooks have been called too
        self._releases: list[Any] = []  # all that is to be done at the end, each once
        self._hooks_at = self._released_to = 0  # of those: the first hook of the user's; the next

    # ---------------------------------------------------------------- the leader
    #
    # The thread of a Handle's run may be held by the user's code for ever: by an inline source
    # after `stop`, by any inline function after `kill`. Then another thread takes the driver over.
    #
    #   that thread, at `gate`, before it touches anything | who takes over
    #     lock: is it `thread` still? then `_passed` = True |  lock: is it in a source, and has not
    #     no: Left, past everything, into nothing           |  `_passed`? then `thread` = me
    #
    # After `stop` no source is pulled again once `_passed` is true, so nobody takes over then.
    # After `kill` the functions of its runs raise Left too: what comes back calls nothing more.
    # Who ends a killed run may be held by a hook or a teardown: then the next one takes over, and
    # goes on behind it (`_releases` says what is still to be done).

    def held_by_source(self) -> bool:
        """Whether the thread of the run is in a source's code; if so the caller has the run now."""
        with self._lead:
            if self._passed or self._over:
                return False
            for frame in stack(self.thread):
                operator = self._pulled_at(frame)
                if operator is not None:
                    break
            else:
                return False
            self._take_over()
        operator.left_behind(frame)
        self.leave(operator.name, 1)
        return True

    def _pulled_at(self, frame: FrameType) -> Source | None:
        """The source of this driver's that is pulled in a frame; None: it is no such frame."""
        if frame.f_code not in INTERRUPTED:
            return None
        operator: Source = our_locals(frame)["operator"]
        return operator if operator.driver is self else None

    def held_by_anything(self) -> bool:
        """After `kill`: whether the run is not over; if so the caller has it now."""
        with self._lead:
            if self._finished:
                return False
            where, _ = self._calls()
            self._take_over()
            self._torn = True
            for operator in self.order:
                operator.disarm()
        if where:
            self.leave(where, 1)
        return True

    def held_at_end(self) -> bool:
        """Whether a hook or a teardown holds who ends a killed run; if so the caller has it now."""
        with self._lead:
            if self._finished or all(at.f_code not in _CALLING for at in stack(self.thread)):
                return False
            where, _ = self._calls()
            self.thread = threading.get_ident()
        if where:
            self.leave(where, 1)
        return True

    def _calls(self) -> tuple[str, Any]:
        """The stage whose function the thread of the run is in, "": none that is known; and with
        which item, None: that is not known."""
        calling = False
        for frame in stack(self.thread):
            pulled = self._pulled_at(frame)
            if pulled is not None:
                return pulled.name, None
            scope = self._run_of(frame)
            if scope is not None:
                code: Code = self.codes[frame.f_code]
                index, item = code.calls(frame.f_lineno, scope)
                return self.order[index].name, item
            calling = calling or frame.f_code in _CALLING
            operator = locals_of(frame).get("self") if calling else None
            if isinstance(operator, Operator) and operator.driver is self:
                return operator.name, None
        return "", None

    def _take_over(self) -> None:
        counted = [
            (tally, figures)
            for scope, tallies in self._runs()
            for tally, figures in tallied(scope, tallies)
        ]
        self.thread = threading.get_ident()
        for tally, figures in counted:
            (tally.operator.flush_entry if tally.entry else tally.operator.flush)(*figures)

    # ------------------------------------------------------------------ the end

    def give_up(self, error: BaseException) -> None:
        """End now, unless the run is over: `error` goes past everything in its caller's thread, as
        what a signal handler raises there does."""
        self.interrupts.__exit__()
        if self._finished or isinstance(error, Left):
            return
        self._torn = self.killed = True
        self._released(self._raised or error, self._own)

    def finish(self) -> RunResult:
        """Release everything; the result.

        Raises:
            Exception: The item's own, where the policy is "raise"; what a hook or setup
                raised. It has the result as `run_result`.
            KeyboardInterrupt: Ctrl-C.
        """
        error, own = self._error, False
        if isinstance(error, Abort):
            error, own = error.failure.error, True
        if error is None and self.interrupted:
            error = KeyboardInterrupt()
        result, error = self._released(error, own)
        if error is None:
            return result
        try:
            raise error
        finally:
            del error, self

    def _released(
        self, error: BaseException | None, own: bool
    ) -> tuple[RunResult, BaseException | None]:
        """Release everything.

        Args:
            error: What ended the run.
            own: It is an item's.

        Returns:
            The result, and what is to be raised: `error`, or the first failure of what was done
            here. The others are noted on it; it has the result.
        """
        if not self._over:
            self._raised, self._own = error, own
        late = self._close_all()
        with self._lead:
            if self.thread != threading.get_ident():
                raise Left
            self._finished = True
        result, error = self._result, self._raised
        assert result is not None
        if error is None and late:
            error = late.pop(0)
        if error is not None:
            attach(error, result, late)
        return result, error

    def _conclude(self) -> None:
        """Everything is released: make the result."""
        if self._result is not None:
            return
        if self._raised is None and self._late:
            self._raised = self._late.pop(0)
        error = self._raised
        interrupted = isinstance(error, KeyboardInterrupt) and not self._own
        self._over = True
        self._duration = monotonic() - self._began
        try:
            self._check_edges(torn=interrupted or self._torn)
        except PoolError as bug:
            bug.__cause__ = error
            self._raised = error = bug
        stopped = interrupted or (self.stopping and error is None)
        failed = error is not None or self.producer_failed
        status = "stopped" if stopped else "failed" if failed else "completed"
        self._tell_end(status)
        outputs = [] if self.outputs.bounded else list(self.outputs)
        log = self.failures
        figures = self.snapshot()
        self._result = RunResult(
            status, outputs, log.kept, figures, self._duration, log.more, self._left
        )

    def _tell_end(self, status: str) -> None:
        """Once; and let the sinks have it. Ctrl-C ends that, and is Ctrl-C for the caller."""
        again, self._told_end = self._told_end, True
        if not again and self.events.heard:
            self.events.emit("progress", **self._progress())
            title, took = self.graph.pipeline._title(), self._duration
            told = {"status": status, "duration": took, "stats": self.snapshot().as_dict()}
            self.events.emit("run_finished", title, seconds=took, **told)
        before = self.interrupted
        self.events.finish(0.0 if again else 0.1 if self.killed else events.DRAIN_S)
        if self.interrupted and not before and self._raised is None:
            self._raised = KeyboardInterrupt()

    def _close_all(self) -> list[BaseException]:
        """End every operator, whatever the user's code does; what failed since a stage ended."""
        late = self._late
        self.closing = True
        while True:
            try:
                self._release()
                return late
            except Left:
                raise
            except BaseException as error:
                if interrupted(error):  # a signal handler's: it may have come before any of it
                    self._torn = True
                    self._released_to -= 0 < self._released_to <= self._hooks_at
                late.append(error)
                if self.killed:
                    self.gate()

    def _release(self) -> None:
        """Do what is still to be done at the end. Who takes the run over goes on behind what
        holds the one before."""
        if not self._releases:
            self._releases = self._to_release()
        while self._released_to < len(self._releases):
            self._released_to += 1
            self._releases[self._released_to - 1]()
            if self.killed:
                self.gate()

    def _to_release(self) -> list[Any]:
        """All that is to be done at the end. What comes before the hooks of the run may be done
        again, if it was broken off."""
        lanes = [operator for operator in self.order if isinstance(operator, LaneOperator)]
        todo: list[Any] = [*(operator.halt for operator in lanes), self._wait_for_calls]
        for work in ("close", "tear_down", "after_hooks"):
            todo += [getattr(operator, work) for operator in self.order]
        todo += [self.awaited.close, self._conclude]
        self._hooks_at = len(todo)
        if not self.inside and self._opened:
            todo += [
                functools.partial(self._after_run, hook)
                for hook in hooks_of(self.graph.pipeline, "after_run")
            ]
        return todo

    def _after_run(self, hook: Any) -> None:
        run_hooks([hook], self._result)

    def _wait_for_calls(self) -> None:
        """Calls that cannot be ended: until they end, or until they are left behind."""
        lanes = [operator for operator in self.order if isinstance(operator, LaneOperator)]
        while monotonic() < self._kill_by:
            self.bell.clear()
            if not any(operator.busy for operator in lanes):
                return
            wait = self._kill_by - monotonic()
            self.bell.wait(None if wait == NEVER else max(0.0, wait))
            if self.killed:
                self.gate()

    def _check_edges(self, torn: bool) -> None:
        """DRIVE-3. `torn`: Ctrl-C has raised anywhere in here, so what is missing was dropped."""
        for operator in self.order:
            for e in operator.edges_in:
                if torn:
                    e.dropped = max(0, e.emitted - e.delivered - e.failed)
                elif e.emitted != e.delivered + e.failed + e.dropped:
                    raise PoolError(
                        f"a bug of ours: {e.source} -> {operator.name}: emitted {e.emitted}, but "
                        f"delivered {e.delivered}, failed {e.failed}, dropped {e.dropped}"
                    )


# What calls the user's code at both ends of a run. (Items are called by runs, and by lanes.)
_CALLING = frozenset(
    {
        run_hooks.__code__,
        Operator._begin.__code__,
        Operator.tear_down.__code__,
        Operator.drop.__code__,  # a generator's `finally`
        Source.stop.__code__,
        Replica.tear_down.__code__,
    }
)

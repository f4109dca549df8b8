"""The engine: carries a graph out, once. One thread has everything: that of whoever runs it.

    round:  every cell has a turn, sinks first, producers last
            what can end ends
            nothing happened: sleep until the bell rings or a timer is due

Guarantees:
    * End of stream is by quiescence. A stage ends when nothing is in flight to it, everything that
      static links lead from to it has ended, and everything that could still send to it by fm.to
      has ended or, where it is part of a loop, is quiet. What comes later all the same opens
      the stage again.
    * Whatever happens, `finish` releases every lane, thread and generator, runs the hooks that
      are due, and the edges add up.

Invariants:
    * ENG-1  Only the bell is touched by other threads. It is rung after what it tells of.
    * ENG-2  Before it sleeps, the engine has looked at everything since it last cleared the bell
      (where nobody asks for an output: at whether somebody does).
    * ENG-3  On every edge emitted = delivered + failed + dropped, when the run is over.
    * ENG-4  That nothing is left to wait for is believed only when a look at everything, begun
      after it was first seen, has found nothing.

Why nothing is slept through, and no run is called stuck that is not. What goes on elsewhere (a
lane, a feeder) is its own witness: it 1. makes its change (a piece in its out-list, its end), and
2. rings. The engine a. clears the bell; b. looks at everything: turns, ends; c. asks each whether
it goes on; d. sleeps if one does, and not at all if the bell has rung since a.
    * A change before b is seen in b. One after b rings after b: d does not sleep, or is woken.
    * Asked in c, a lane may say "no" because it came to its end after b: it has made its change
      (1) and may not have rung yet (2). So "no" of all of them proves only that every change is
      made by now, and the engine goes back to a, once (ENG-4). If b then finds nothing and c is
      "no" again, nothing can come any more: nobody is left who could make a change.

Threads: `run`, `serve`, `next_output`, `feed` in one thread; `stop`, `kill`, `snapshot` from any.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import signal
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from ... import events
from ..._process import Latch, interrupted
from ...contexts.lanes.lane import Copy
from ...errors import PoolError
from ...runs.stats import EdgeStats, RunStats, StageStats
from ..declare import hooks_of, to
from ..options import DeadLetter, final
from ..result import (
    GRACE,
    KEEP,
    FailureLog,
    Left,
    RunResult,
    attach,
    check_keep,
)
from .cells import (
    Abort,
    Cell,
    Edge,
    Killed,
    Outlet,
    Pace,
    resolve,
    width_of,
)
from .fuse import Code, tallied
from .groups import Carrier, Rider, rides
from .lanes import LaneCell
from .nested import NestedCell
from .sign import LOOK_S
from .sources import INTERRUPTED, Source
from .work import each_hook, run_hooks

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType, FrameType

    from ...runs.stats import Reservoir
    from ..graph import Graph
    from ..result import Failure

__all__ = ["Engine"]

_NEVER = float("inf")


class Bell:
    """Wakes the engine. `ring` may be called anywhere, also in a signal handler."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = self._asleep = False

    def ring(self) -> None:
        """There is something to look at."""
        self._rung = True
        if self._asleep:
            self._queue.put(None)

    def clear(self) -> None:
        """Before looking."""
        self._rung = False

    def wait(self, timeout: float | None) -> None:
        """Sleep until it rings; not at all if it has since `clear`."""
        self._asleep = True
        try:
            if not self._rung:
                self._queue.get(timeout=timeout)
        except queue.Empty:
            pass
        finally:
            self._asleep = False
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()


class Interrupts:
    """Ctrl-C while the engine works: the first one stops the sources, the second one raises.

    Python's own handler would raise anywhere in the engine. Another handler than Python's is the
    user's, and stays.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._old: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGINT)
        ours = handler is signal.default_int_handler
        self.engine.may_interrupt = not ours and callable(handler)
        if ours:
            self._old = handler  # first: the next call may be the last one
            signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *exc: object) -> None:
        """Idempotent: who was broken off in here, or in `__enter__`, does it again."""
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)
            self._old = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.engine.interrupted:
            self.engine.kill()
            raise KeyboardInterrupt
        self.engine.interrupted = True
        self.engine.stop()
        while frame is not None:
            if frame.f_code in INTERRUPTED:
                raise KeyboardInterrupt  # inside a source: it ends here (see tap)
            frame = frame.f_back


class Engine:
    """One run of a graph.

    Args:
        graph: What to run.
        sinks: Who gets the events, from its opening on.
        stream: Outputs are taken one by one: no more is computed than the queues hold.
        feed: Items come by `feed`; the graph is nested in a context.
        keep_failures: How many failures are kept whole; the rest is counted. None: all.
        prefix: What the names of stages begin with, in their failures.
    """

    def __init__(
        self,
        graph: Graph,
        sinks: Iterable[Any] = (),
        *,
        stream: bool = False,
        feed: bool = False,
        keep_failures: int | None = KEEP,
        prefix: str = "",
    ) -> None:
        self.graph = graph
        self.prefix = prefix
        self.inside = feed  # what happens is told to another engine
        self.sign: Any = None  # not 0 at [0]: that one is being stopped, in another process
        self.sign_path = ""
        self._sinks = events.check_sinks(sinks)
        self.events: Any = events.Emitter("pipeline", events.current())
        self.outputs = Outlet(stream)
        self.failures = FailureLog(check_keep(keep_failures))
        self.bell = Bell()
        self.beat: list[None] = []  # not empty: a run comes back as soon as it can
        self.pace: Pace | None = None  # where more than one cell may wait for its turn
        self.codes: dict[CodeType, Code] = {}  # of all runs
        self.flushed = 0  # how often a run has handed its counters over
        self.thread = threading.get_ident()  # who runs the engine
        self.stopping = self.killed = self.interrupted = self.producer_failed = False
        self.may_interrupt = False  # a SIGINT handler of the user's is there
        self.closing = False  # runs are closed: GeneratorExit is ours
        self._interrupts = Interrupts(self)
        self._cut = Latch()  # ends pauses
        self._opened = self._over = self._told_end = False
        self._sources_stopped = False
        self._quiet = False  # ENG-4: nobody goes on elsewhere, and nothing has happened since
        self._began = self._looked = monotonic()
        self._duration = 0.0
        self._error: BaseException | None = None
        self._kill_by = _NEVER  # when nothing is waited for any more
        self._left: list[str] = []  # stages with calls that were left behind
        self._torn = False  # and with one in the middle of our own work
        self._result: RunResult | None = None
        self._raised: BaseException | None = None  # what the run is going to raise
        self._own = False  # it is an item's
        self._finished = False  # the hooks have been called too
        self._lead = threading.Lock()  # guards `thread` against who takes over
        self._passed = False  # since `stop`: no source holds the thread of the run any more
        self._releases: list[Any] = []  # all that is to be done at the end, each once
        self._hooks_at = self._released_to = 0  # of those: the first hook of the user's; the next
        self._late: list[BaseException] = []  # what failed where a stage had ended
        self._riders = {stage for stage in graph.stages if rides(stage, graph)}
        self.order = [self._cell(stage) for stage in graph.stages]
        self.cells = {cell.stage: cell for cell in self.order}
        self._outlets: dict[Cell, list[Any]] = {}
        self._rounds: set[Cell] = set()  # whose dead letters go back
        self._wire()
        sources = [cell for cell in self.order if cell.kind == "producer"]
        self._turns = [c for c in reversed(self.order) if c.kind != "producer"] + sources
        self._dynamic = [c for c in self.order if c.stage.dynamic or c in self._rounds]
        self._names: dict[tuple[Cell, str], list[Cell]] = {}
        self._feeds: list[Edge] = []

    def _cell(self, stage: Any) -> Cell:
        if stage in self._riders:
            return Rider(self, stage)
        if not self._riders.isdisjoint(stage.targets):
            return Carrier(self, stage)
        if stage.nested is not None:
            return NestedCell(self, stage)
        if not stage.inline:
            return LaneCell(self, stage)
        return Source(self, stage) if stage.kind == "producer" else Cell(self, stage)

    def _wire(self) -> None:
        for cell in self.order:
            for target in cell.stage.targets:
                cell.connect(self.cells[target])
        for cell in self.order:
            cell.fused = type(cell) is Cell and cell.can_fuse()
            cell.before = {b for s in cell.sources for b in (s, *s.before)}
        self._post()
        for cell in self.order:
            cell.wire()
        self.linked()
        jumps = any(cell.jumps for cell in self.order)
        if jumps or sum(not cell.fused for cell in self.order) > 1:
            self.pace = Pace(self.beat)

    def _post(self) -> None:
        """Dead letters keep their stage from its end as links do. Where they would go round, as
        what may go anywhere does."""
        for cell in self.order:
            policy = final(cell.stage.on_error)
            if not isinstance(policy, DeadLetter) or not cell.stage.letters_stay:
                continue
            for target in (self.cells[stage] for stage in resolve(cell, policy.stage)):
                if target in cell.before:
                    self._rounds.add(cell)
                    continue
                for after in self.order:
                    if after is target or target in after.before:
                        after.before |= {cell, *cell.before}

    def linked(self) -> None:
        """There are new edges: which stages are in a loop, and what closes it (CELL-3)."""
        reached = {cell: _reached(cell) for cell in self.order}
        for cell in self.order:
            ring = (c for c in self.order if c in reached[cell] and cell in reached[c])
            cell.loop = next(ring, None)  # the first of it stands for all
        for cell in self.order:
            for target, edge in cell.edges_out.items():
                back = target.index <= cell.index
                edge.closing = back and cell.loop is not None and cell.loop is target.loop
        self._outlets.clear()
        for cell in self.order:
            cell.rooms()

    # ------------------------------------------------------------------ any thread

    @property
    def over(self) -> bool:
        """Whether everything is released, and the result is made."""
        return self._over

    def stop(self) -> None:
        """Sources stop, loops and retries too; the rest is finished."""
        self.stopping = True
        for cell in self.order:
            if isinstance(cell, NestedCell):
                cell.tell_stop()
        self._cut.set()
        self.events.hurry()
        self._call()

    def kill(self) -> None:
        """Everything stops."""
        if not self.killed:
            self._kill_by = monotonic() + GRACE
        self.killed = self.stopping = True
        for cell in self.order:
            if isinstance(cell, NestedCell) and cell.here is not None:
                cell.here.kill()
        self._cut.set()
        self.events.hurry()
        self._call()

    def _call(self) -> None:
        """Have the engine look up, from its sleep or from a run."""
        self.beat.append(None)
        self.bell.ring()

    def attach(self, sink: Any) -> None:
        """Somebody listens from now on."""
        self.events.attach(sink)

    def snapshot(self) -> RunStats:
        """The figures so far."""
        duration = self._duration if self._over else monotonic() - self._began
        busy = self._busy()
        counts = self._counts()
        stages = {}
        for cell in self.order:
            p50, p90, p99 = cell.reservoir.percentiles(0.5, 0.9, 0.99)
            came, out = counts[cell]
            method, reason = cell.started
            stages[cell.name] = StageStats(
                name=cell.name,
                context=str(cell.stage.spec),
                workers=width_of(cell.stage),
                in_=came,
                out=out,
                failed=cell.failures,
                busy=busy[cell],
                waiting=cell.waited,
                p50=p50,
                p90=p90,
                p99=p99,
                start_method=method,
                start_reason=reason,
            )
        edges = {
            (e.source, cell.name): EdgeStats(
                e.emitted,
                e.delivered,
                e.failed,
                e.dropped,
                max(0, e.peak - cell.stage.queue_size),
            )
            for cell in self.order
            for e in tuple(cell.edges_in)
        }
        for cell in self.order:
            if isinstance(cell, NestedCell):
                inner = cell.inner_figures()
                stages.update(inner.stages)
                edges.update(inner.edges)
        return RunStats(stages, edges, duration, self.events.errors)

    def reservoirs(self) -> dict[str, Reservoir]:
        """The measured calls of all stages, those of nested pipelines too."""
        found = {cell.name: cell.reservoir for cell in self.order}
        for cell in self.order:
            if isinstance(cell, NestedCell):
                found.update(cell.reservoirs())
        return found

    def _counts(self) -> dict[Cell, tuple[int, int]]:
        """How many items came to each cell and went out of it, runs under way included."""
        counts: dict[Cell, tuple[int, int]] = {}
        for _ in range(3):  # a run that ends meanwhile would count twice, or not at all
            before = self.flushed
            counts = {cell: (cell.came, cell.out) for cell in self.order}
            for frame in () if self._over else self._frames():
                for tally, (came, _, out) in tallied(frame, self.codes[frame.f_code].tallies):
                    was = counts[tally.cell]
                    counts[tally.cell] = was[0] + came, was[1] + out
            if self.flushed == before:
                break
        return counts

    def _frames(self) -> Iterator[FrameType]:
        """The frames of all runs under way: on the stack of the engine's thread, or waiting."""
        frame = sys._current_frames().get(self.thread)
        while frame is not None:
            if frame.f_code in self.codes and frame.f_locals.get("beat") is self.beat:
                yield frame
            frame = frame.f_back
        for cell in self.order:
            run: Any = cell.run
            while run is not None:
                code = getattr(run, "gi_code", None)
                if code in self.codes and not run.gi_running and run.gi_frame is not None:
                    yield run.gi_frame
                run = getattr(run, "gi_yieldfrom", None)

    def _busy(self) -> dict[Cell, float]:
        """Seconds by cell: a group's time is shared out as its measured calls were."""
        busy = {cell: cell.sampled for cell in self.order}
        for root in self.order:
            if root.fused or isinstance(root, LaneCell):
                continue
            group = list(_group(root))
            measured = sum(cell.sampled for cell in group)
            if measured > 0:
                factor = sum(cell.wall for cell in group) / measured
                busy.update((cell, cell.sampled * factor) for cell in group)
        return busy

    # ------------------------------------------------------------------ what cells ask for

    def passes(self, error: BaseException) -> bool:
        """Whether what was raised in a user's function ends the run, and is no item's failure.

        Everything else is: whatever an item raises goes by its stage's policy, in every context.
        """
        if isinstance(error, Exception):
            return False
        if isinstance(error, KeyboardInterrupt):
            # Ctrl-C, and no item's own: we raise it where the run is killed; a handler of the
            # user's may raise it anywhere in the main thread.
            return self.killed or self.may_interrupt
        if isinstance(error, GeneratorExit):
            return self.closing
        return isinstance(error, (Abort, Killed, Left))

    def rewrite(self) -> None:
        """The function of a stage is another one now: compile what calls it anew."""
        for cell in self.order:
            cell.rewrite()

    def fail_late(self, error: BaseException) -> None:
        """A stage's end failed: sources stop, all that is under way is finished, then it is raised.
        (Nothing of it would be better for being dropped.)"""
        self._late.append(error)
        self.stop()

    def outlets_of(self, cell: Cell) -> list[Any]:
        """The queues that a run of a cell may fill."""
        found = self._outlets.get(cell)
        if found is None:
            found = self._outlets[cell] = cell.outlets()
        return found

    def resolve(self, cell: Cell, name: str) -> list[Cell]:
        """The cells that fm.to(name, ...) means in a stage.

        Raises:
            BuildError: There is no such stage.
        """
        found = self._names.get((cell, name))
        if found is None:
            found = [self.cells[stage] for stage in resolve(cell, name)]
            self._names[cell, name] = found
        return found

    def outward(self, name: str, item: Any) -> bool:
        """An item for a name that is not in here: out it goes, if there is an outside."""
        if self.inside:
            self.outputs.append(to(name, item))
        return self.inside

    def pause(self, seconds: float) -> bool:
        """Wait, in the thread of the run; False: the run is being ended."""
        end = monotonic() + seconds
        while self.sign is not None and (left := end - monotonic()) > LOOK_S:
            if self.sign[0] or self._cut.wait(min(left, LOOK_S)):
                return False
        return not self._cut.wait(max(0.0, end - monotonic()))

    def leave(self, stage: str, calls: int) -> None:
        """So many calls of a stage cannot be ended, and nobody waits for them any more."""
        self._left += [stage] * calls

    # ------------------------------------------------------------------ the lead
    #
    # The thread of a Handle's run may be held by the user's code for ever: by an inline source
    # after `stop`, by any inline function after `kill`. Then another thread takes the engine over.
    #
    #   that thread, at `gate`, before it touches anything | who takes over
    #     lock: is it `thread` still? then `_passed` = True |  lock: is it in a source, and has not
    #     no: Left, past everything, into nothing           |  `_passed`? then `thread` = me
    #
    # After `stop` no source is pulled again once `_passed` is true, so nobody takes over then.
    # After `kill` the functions of its runs raise Left too: what comes back calls nothing more.
    # Who ends a killed run may be held by a hook or a teardown: then the next one takes over, and
    # goes on behind it (`_releases` says what is still to be done).

    def gate(self) -> None:
        """Who comes back from the user's code, in a run that is being ended.

        Raises:
            Left: The run has gone on without this thread.
        """
        with self._lead:
            if self.thread != threading.get_ident():
                raise Left
            self._passed = True

    def held_by_source(self) -> bool:
        """Whether the thread of the run is in a source's code; if so the caller has the run now."""
        with self._lead:
            if self._passed or self._over:
                return False
            frame = sys._current_frames().get(self.thread)
            while frame is not None and not self._pulls(frame):
                frame = frame.f_back
            if frame is None:
                return False
            cell: Source = frame.f_locals["cell"]
            self._take_over()
        cell.left_behind(frame)
        self.leave(cell.name, 1)
        return True

    def _pulls(self, frame: FrameType) -> bool:
        return frame.f_code in INTERRUPTED and frame.f_locals["cell"].engine is self

    def held_by_anything(self) -> bool:
        """After `kill`: whether the run is not over; if so the caller has it now."""
        with self._lead:
            if self._finished:
                return False
            where = self._calls()
            self._take_over()
            self._torn = True
            for cell in self.order:
                cell.disarm()
        if where:
            self.leave(where, 1)
        return True

    def held_at_end(self) -> bool:
        """Whether a hook or a teardown holds who ends a killed run; if so the caller has it now."""
        with self._lead:
            frame = None if self._finished else sys._current_frames().get(self.thread)
            while frame is not None and frame.f_code not in _CALLING:
                frame = frame.f_back
            if frame is None:
                return False
            where = self._calls()
            self.thread = threading.get_ident()
        if where:
            self.leave(where, 1)
        return True

    def _calls(self) -> str:
        """The stage whose function the thread of the run is in; "": none that is known."""
        frame, calling = sys._current_frames().get(self.thread), False
        while frame is not None:
            if self._pulls(frame):
                name: str = frame.f_locals["cell"].name
                return name
            if frame.f_code in self.codes and frame.f_locals.get("beat") is self.beat:
                return self.order[self.codes[frame.f_code].calls(frame)].name
            calling = calling or frame.f_code in _CALLING
            cell = frame.f_locals.get("self") if calling else None
            if isinstance(cell, Cell) and cell.engine is self:
                return cell.name
            frame = frame.f_back
        return ""

    def _take_over(self) -> None:
        counted = [
            (tally, figures)
            for frame in self._frames()
            for tally, figures in tallied(frame, self.codes[frame.f_code].tallies)
        ]
        self.thread = threading.get_ident()
        for tally, figures in counted:
            (tally.cell.flush_entry if tally.entry else tally.cell.flush)(*figures)

    def carry_on(self) -> RunResult:
        """Run to the end, from where another thread was left.

        Raises:
            BaseException: See `finish`.
        """
        self.thread = threading.get_ident()
        self._drive(self.step)
        return self.finish()

    # ------------------------------------------------------------------ opening

    def open(self) -> None:
        """Hooks, then contexts: forks first, threads after; then inline stages.

        Raises:
            BaseException: What a hook or a setup raised; everything is released.
        """
        self._began = self._looked = monotonic()
        self._opened = True
        for sink in self._sinks:
            self.events.attach(sink)
        title = self.graph.pipeline._title()
        self.events.emit("run_started", title, pipeline=title)
        if not self.inside:
            run_hooks(hooks_of(self.graph.pipeline, "before_run"))
        for cell in self.order:
            cell.before_hooks()
        lanes = [cell for cell in self.order if isinstance(cell, LaneCell)]
        forks = [c for c in lanes if c.stage.spec.type in ("ipc_fork", "cow_fork")]
        for cell in (*forks, *(c for c in lanes if c not in forks)):
            cell.open()
        for cell in self.order:
            if not isinstance(cell, LaneCell):
                cell.open()
        clocked = [cell for cell in self.order if _has_clock(cell.stage)]
        for cell in self.order:
            if isinstance(cell, Source) and any(cell in c.before for c in clocked):
                cell.thread()
        if self.inside:
            for stage in self.graph.entries:
                entry = self.cells[stage]
                edge = Edge("", entry, _NEVER)  # type: ignore[arg-type]
                entry.edges_in.append(edge)
                entry.live_source = True
                self._feeds.append(edge)
        self.events.begin(self._progress)  # after the forks

    # ------------------------------------------------------------------ running

    def run(self) -> RunResult:
        """Run to the end.

        Raises:
            BaseException: See `finish`.
        """
        try:
            with self._interrupts:
                self._drive(self.step)
                return self.finish()
        except BaseException as error:
            self.give_up(error)
            raise

    def next_output(self) -> tuple[Any] | None:
        """The next output; None when the run is over."""
        self.thread = threading.get_ident()
        if not self.outputs:
            with self._interrupts:
                self._drive(lambda: not self.outputs and self.step())
        return (self.outputs.popleft(),) if self.outputs else None

    def serve(self, offer: Callable[[deque[Any]], bool]) -> RunResult:
        """Run to the end, for somebody elsewhere who takes the outputs one by one.

        Args:
            offer: Takes the outputs that are there; whether more is asked for. Who asks later
                rings the bell.

        Raises:
            BaseException: See `finish`.
        """

        def more() -> bool:
            while not offer(self.outputs):
                self.bell.wait(None)
                self._attend()
            return self.step()

        self._drive(more)
        offer(self.outputs)
        return self.finish()

    def _drive(self, more: Any) -> None:
        """Work until `more` says no. What ends the run is kept for `finish`."""
        if self._error is not None:
            return
        self.thread = threading.get_ident()
        try:
            if self._sinks or self.events.heard:
                with events.PartOf(self.events):
                    self._work(more)
            else:
                self._work(more)
        except Killed:
            pass
        except Left:
            raise
        except BaseException as error:
            self._torn = self._torn or interrupted(error)
            self._error = error
            self.killed = True

    def _work(self, more: Any) -> None:
        if not self._opened:
            self.open()
        while more():
            pass

    def step(self) -> bool:
        """One round. False: the run is over."""
        self._attend()
        progress = self._round()
        if self._end_some() or progress:
            self._quiet = False
            return True
        if all(cell.state == "ended" for cell in self.order):
            return False
        return self._sleep()

    def _attend(self) -> None:
        """What was asked of the engine. It is called anew if more is asked meanwhile."""
        if self.sign is not None and self.sign[0] and not self.stopping:
            self.stop()
        self.bell.clear()
        self.beat.clear()
        if self.stopping:
            self.gate()
        if self.killed:
            raise Killed
        if self.stopping and not self._sources_stopped:
            self._stop_sources()

    def _round(self) -> bool:
        progress = False
        for cell in self._turns:
            if cell.turn():
                progress = True
        now = monotonic()
        for cell in self.order:
            for edge in cell.edges_in:
                if edge:
                    cell.waited += (now - self._looked) * len(edge)
        self._looked = now
        return progress

    def _progress(self) -> dict[str, Any]:
        """How far it is. Any thread."""
        stages = {
            cell.name: {
                "in": came,
                "out": out,
                "failed": cell.failures,
                "waiting": sum(map(len, tuple(cell.edges_in))),
            }
            for cell, (came, out) in self._counts().items()
        }
        for cell in self.order:
            if isinstance(cell, NestedCell):
                for name, one in cell.inner_figures().stages.items():
                    figures = {"in": one.in_, "out": one.out, "failed": one.failed, "waiting": 0}
                    stages[name] = figures
        return {"stages": stages}

    def _stop_sources(self) -> None:
        self._sources_stopped = True
        for cell in self.order:
            cell.stop()

    def _sleep(self) -> bool:
        """Nothing can be done now: wait."""
        due = self.due()
        if due == _NEVER and not any(self._outside(cell) for cell in self.order):
            if not self._quiet:
                self._quiet = True  # ENG-4
                return True
            raise PoolError(f"the run is stuck, a bug of ours: {self._state()}")
        self._quiet = False
        self._rest(due)
        return True

    def _rest(self, due: float) -> None:
        """Wait for the bell, or until then."""
        left = None if due == _NEVER else max(0.0, due - monotonic())
        if self.sign is not None and not self.stopping:
            left = LOOK_S if left is None else min(left, LOOK_S)
        self.bell.wait(left)

    def due(self) -> float:
        """When something is to be done although nothing comes."""
        return min((cell.due() for cell in self.order), default=_NEVER)

    @staticmethod
    def _outside(cell: Cell) -> bool:
        """Whether something goes on elsewhere that will ring the bell."""
        if isinstance(cell, LaneCell):
            return cell.works_outside
        feeder = getattr(cell, "feeder", None)
        # With items of its own there it waits for us, not we for it.
        return feeder is not None and not (feeder.over or feeder.items) and cell.live_source

    def _state(self) -> str:
        return ", ".join(
            f"{c.name}: {c.state}, {sum(map(len, c.edges_in))} waiting" for c in self.order
        )

    # ------------------------------------------------------------------ ends

    def _end_some(self) -> bool:
        """End what can end; whether anything did."""
        changed = False
        for cell in self.order:
            if cell.state == "live" and self._may_end(cell):
                cell.finish()
                changed = True
            if cell.state == "ending" and cell.ended():
                cell.conclude()
                changed = True
                if self._dynamic:
                    return True  # its last outputs may go anywhere
        return changed

    def _may_end(self, cell: Cell) -> bool:
        if cell.live_source or cell.in_flight():
            return False
        if any(before.state != "ended" for before in cell.before):
            return False
        if not self._dynamic:
            return True
        live = [c for c in self._dynamic if c.state != "ended"]
        reaching = {c for s in live for c in (s, *s.before) if c.state != "ended"}
        reaching.discard(cell)
        loops = any(cell is s or cell in s.before for s in live)  # it reaches all of them
        for other in reaching:
            quiet = other.state == "live" and not other.live_source and not other.in_flight()
            if not quiet or not (loops or cell in other.before):
                return False
        return True

    # ------------------------------------------------------------------ nested in a context

    def feed(self, items: Iterable[Any]) -> None:
        """Work items off, and what is due, as far as it does not wait for others.

        Raises:
            Abort: An item's failure whose stage says "raise"; see `recover`.
        """
        self.thread = threading.get_ident()
        for item in items:
            for edge in self._feeds:
                edge.append(item)
        while True:
            self._attend()
            if self._round():
                continue
            if not any(self._outside(cell) for cell in self.order):
                return
            self._rest(self.due())

    def recover(self, abort: Abort) -> Failure:
        """Go on after a failure that is another's to deal with: what was made of the item goes."""
        self.closing = True
        try:
            for cell in self.order:
                cell.drop()
        finally:
            self.closing = False
        self.failures.kept.remove(abort.failure)
        return abort.failure

    def recorded(self, error: BaseException) -> Failure | None:
        """The failure with which an error was recorded; it is so no longer."""
        for failure in self.failures.kept:
            if failure.error is error:
                self.failures.kept.remove(failure)
                return failure
        return None

    def finish_feed(self) -> Failure | None:
        """No more items: run to the end. What failed there, if a stage says "raise".

        Raises:
            Abort: As `feed`.
        """
        self.thread = threading.get_ident()
        for stage in self.graph.entries:
            self.cells[stage].live_source = False
        while self.step():
            pass
        late, self._late = self._late, []
        found = [failure for failure in map(self.recorded, late) if failure is not None]
        self.failures.kept += found[1:]
        return found[0] if found else None

    # ------------------------------------------------------------------ the end

    def abandon(self) -> RunResult:
        """End now, without a word about what was under way."""
        self.thread = threading.get_ident()
        self.kill()
        self._error = None
        try:
            result, error = self._released(None, False)
        except BaseException as other:
            self.give_up(other)
            raise
        if error is not None:
            raise error
        return result

    def give_up(self, error: BaseException) -> None:
        """End now, unless the run is over: `error` goes past everything in its caller's thread, as
        what a signal handler raises there does."""
        self._interrupts.__exit__()
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
            told = {"status": status, "duration": took}
            self.events.emit("run_finished", title, seconds=took, **told)
        before = self.interrupted
        self.events.finish(0.0 if again else 0.1 if self.killed else events.DRAIN_S)
        if self.interrupted and not before and self._raised is None:
            self._raised = KeyboardInterrupt()

    def _close_all(self) -> list[BaseException]:
        """End every cell, whatever the user's code makes of it; what failed since a stage ended."""
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
        """Do what is still to be done at the end. Whoever takes the run over goes on behind what
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
        lanes = [cell for cell in self.order if isinstance(cell, LaneCell)]
        todo: list[Any] = [*(cell.halt for cell in lanes), self._wait_for_calls]
        for work in ("close", "tear_down", "after_hooks"):
            todo += [getattr(cell, work) for cell in self.order]
        todo.append(self._conclude)
        self._hooks_at = len(todo)
        if not self.inside and self._opened:
            todo += [
                functools.partial(self._after_run, hook)
                for hook in hooks_of(self.graph.pipeline, "after_run")
            ]
        return todo

    def _after_run(self, hook: Any) -> None:
        run_hooks([hook], self._result)

    def hooks(self, hooks: list[Any], *args: Any) -> list[BaseException]:
        """Call all hooks of a stage's end, whatever one of them raises; what they raised."""
        raised: list[BaseException] = []
        for hook in hooks:
            raised += each_hook([hook], *args)
            if self.killed:
                self.gate()
        return raised

    def _wait_for_calls(self) -> None:
        """Calls that cannot be ended: until they end, or until they are left behind."""
        lanes = [cell for cell in self.order if isinstance(cell, LaneCell)]
        while monotonic() < self._kill_by:
            self.bell.clear()
            if not any(cell.busy for cell in lanes):
                return
            wait = self._kill_by - monotonic()
            self.bell.wait(None if wait == _NEVER else max(0.0, wait))
            if self.killed:
                self.gate()

    def _check_edges(self, torn: bool) -> None:
        """ENG-3. `torn`: Ctrl-C has raised anywhere in here, so what is missing was dropped."""
        for cell in self.order:
            for e in cell.edges_in:
                if torn:
                    e.dropped = max(0, e.emitted - e.delivered - e.failed)
                elif e.emitted != e.delivered + e.failed + e.dropped:
                    raise PoolError(
                        f"a bug of ours: {e.source} -> {cell.name}: emitted {e.emitted}, but "
                        f"delivered {e.delivered}, failed {e.failed}, dropped {e.dropped}"
                    )


# What calls the user's code at both ends of a run. (Items are called by runs, and by lanes.)
_CALLING = frozenset(
    {
        run_hooks.__code__,
        Cell._begin.__code__,
        Cell.tear_down.__code__,
        Cell.drop.__code__,  # a generator's `finally`
        Source.stop.__code__,
        Copy.tear_down.__code__,
    }
)


def _has_clock(stage: Any) -> bool:
    """Whether a batch with max_wait is in a stage."""
    if stage.nested is not None:
        return any(map(_has_clock, stage.nested.stages))
    return stage.max_wait is not None


def _reached(cell: Cell) -> set[Cell]:
    """All cells that items of a cell can come to; itself, if there is a loop."""
    found: set[Cell] = set()
    line = [cell]
    while line:
        new = set(line.pop().edges_out).difference(found)
        found |= new
        line += new
    return found


def _group(cell: Cell) -> Iterable[Cell]:
    """A cell and all that is fused behind it."""
    yield cell
    for target in cell.targets:
        if target.fused:
            yield from _group(target)

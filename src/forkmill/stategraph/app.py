"""A compiled state graph: what can be run, resumed, streamed, started, opened.

    input ──▶ begin.started ─┐
                             ├──▶ Line ──▶ Run ──▶ drive: here | a handle | a loop | a stream
    answers ▶ begin.resumed ─┘

Guarantees: every call is a run of its own, with executors of its own; two calls share the store and
named pools, and nothing else.

Threads: any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from .. import _checks
from .._watch import sinks_of
from ..errors import SessionConflict
from ..runs.policies import told
from . import begin, drawing
from .begin import NOTHING
from .drive import Driver, StateStream, carried_out
from .limits import Limits
from .places import Places
from .plan import stops
from .result import S, result_of
from .run import Run
from .session import Session
from .tell import Teller, modes_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Iterable

    from ..runs.handle import Handle
    from .line import Line
    from .plan import Plan
    from .result import StateRun

__all__ = ["App"]

_RUN_OPTIONS = (
    *("max_steps", "interrupt_before", "interrupt_after", "sinks", "progress", "report"),
)
_SESSION_OPTIONS = ("session", "abandon", "take_over", "allow_changed", "answers")


class App(Generic[S]):
    """A compiled state graph; made by `StateGraph.compile`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def name(self) -> str:
        """The graph's name."""
        return self._plan.name

    @property
    def hash(self) -> str:
        """The definition's hash, which sessions are stored with."""
        return self._plan.hash

    @property
    def checkpoints(self) -> Any:
        """The store, or None."""
        return self._plan.settings.store

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes' names, as declared."""
        return tuple(self._plan.nodes)

    # ---------------------------------------------------------------------------- calls

    def invoke(
        self,
        input: Any = None,
        *,
        session: str | None = None,
        abandon: bool = False,
        take_over: bool = False,
        max_steps: int | None = None,
        interrupt_before: Any = (),
        interrupt_after: Any = (),
        allow_changed: bool = False,
        sinks: Iterable[Any] = (),
        progress: Any = False,
        report: Any = None,
    ) -> StateRun[S]:
        """Run from the start, until it is complete or waits.

        Args:
            input: {key: value}, folded over the state; None: nothing.
            session: Under which id it is stored; a completed session gets a new turn over its
                state. None: a new id, if there are checkpoints.
            abandon: Begin a new turn of a session although it is unfinished.
            take_over: Take a session from a run that is not known to be dead.
            max_steps: Steps of this call; None: as compiled.
            interrupt_before: Nodes before whose step it stops; "*": before each step.
            interrupt_after: Nodes after whose step it stops; "*": after each step.
            allow_changed: Use a session that was stored by another definition of the graph.
            sinks: Who gets the events of this run.
            progress: Show how far it is.
            report: A file for a report of the run.

        Returns:
            What it came to: see `StateRun`.

        Raises:
            BaseException: What a node raised, with the attribute `state_run`; of several that
                failed the first one's in the order of the step's tasks.
            UpdateError: Updates that do not go together.
            StepLimit: So many steps, and it is not complete.
            SessionConflict, SessionBusy: The session is unfinished, of another graph, claimed.
            StoreError: The store failed.
            KeyboardInterrupt: Ctrl-C: the run ended after its step, or was killed by a second one.
            BuildError: A wrong option.
        """
        call = self._call(max_steps, interrupt_before, interrupt_after, sinks, progress, report)
        line = begin.started(
            self._plan,
            input,
            session,
            abandon=abandon,
            take_over=take_over,
            allow_changed=allow_changed,
        )
        places = Places(self._plan)
        return carried_out(call(line, places), places)

    def resume(
        self,
        value: Any = NOTHING,
        *,
        answers: dict[str, Any] | None = None,
        session: str,
        take_over: bool = False,
        max_steps: int | None = None,
        interrupt_before: Any = (),
        interrupt_after: Any = (),
        allow_changed: bool = False,
        sinks: Iterable[Any] = (),
        progress: Any = False,
        report: Any = None,
    ) -> StateRun[S]:
        """Go on with a session: after a question, a stop, a failure, a crash. Any process may.

        A completed session's result is given, and nothing runs.

        Args:
            value: The answer to the one question that waits; any value, None too.
            answers: {id: answer} where several wait; those that get none keep waiting.
            session: Its id.
            take_over: As for `invoke`.
            max_steps: As for `invoke`.
            interrupt_before: As for `invoke`; the stop at which it waits is not made again.
            interrupt_after: As for `invoke`.
            allow_changed: As for `invoke`.
            sinks: As for `invoke`.
            progress: As for `invoke`.
            report: As for `invoke`.

        Raises:
            SessionConflict: There is no such session, or the answers do not fit its questions.
            BaseException: As `invoke`.
        """
        call = self._call(max_steps, interrupt_before, interrupt_after, sinks, progress, report)
        line = begin.resumed(
            self._plan, session, value, answers, take_over=take_over, allow_changed=allow_changed
        )
        if not line.point.tasks and line.claim is None:
            return result_of(self._plan, line, "completed")
        places = Places(self._plan)
        return carried_out(call(line, places, resumed=True), places)

    async def ainvoke(self, input: Any = None, **options: Any) -> StateRun[S]:
        """As `invoke`, for asyncio. Coroutine functions without a context run in the caller's loop.

        Cancelling the task kills the run; it is over when the task is.
        """
        import asyncio

        from .aio import awaited

        call, more = self._call_of(options)
        line = begin.started(self._plan, input, more.pop("session", None), **more)
        run: StateRun[S] = await awaited(self._handle(call, line, asyncio.get_running_loop()))
        return run

    async def aresume(self, value: Any = NOTHING, **options: Any) -> StateRun[S]:
        """As `resume`, for asyncio: see `ainvoke`."""
        import asyncio

        from .aio import awaited

        call, line = self._resumed(value, options)
        if not line.point.tasks and line.claim is None:
            return result_of(self._plan, line, "completed")
        loop = asyncio.get_running_loop()
        run: StateRun[S] = await awaited(self._handle(call, line, loop, resumed=True))
        return run

    def start(self, input: Any = None, **options: Any) -> Handle:
        """As `invoke`, in a thread of its own.

        Args:
            input: As for `invoke`.
            **options: As for `invoke`; with ``resume=True`` as for `resume`, whose value is given
                as ``value=``.

        Returns:
            A handle: ``done()``, ``stop()`` (drained: it ends after its step), ``kill()``,
            ``result(timeout)``; it can be awaited.
        """
        if options.pop("resume", False):
            call, line = self._resumed(options.pop("value", NOTHING), options)
            return self._handle(call, line, None, resumed=True)
        call, more = self._call_of(options)
        line = begin.started(self._plan, input, more.pop("session", None), **more)
        return self._handle(call, line, None)

    def stream(self, input: Any = None, *, mode: Any = "updates", **options: Any) -> StateStream:
        """As `invoke`, step by step: the run goes on while it is read.

        Args:
            input: As for `invoke`.
            mode: What is given: "updates": {node: what it returned} for each task of a committed
                step; "values": the state, at the start and after each step; "tasks": begins and
                ends of tasks; "custom": what tasks say with `fm.emit`. A list of these gives
                (mode, data).
            **options: As for `invoke`; with ``resume=True`` as for `resume`, whose value is given
                as ``value=``.

        Returns:
            An iterator, with `close()`, and `result` when it is over.
        """
        modes, many = modes_of(mode)
        return self._streamed(input, modes, many, options, None)

    def astream(
        self, input: Any = None, *, mode: Any = "updates", **options: Any
    ) -> AsyncIterator[Any]:
        """As `stream`, for asyncio: ``async for item in app.astream(...)``."""
        from .aio import streamed

        modes, many = modes_of(mode)
        return streamed(lambda loop: self._streamed(input, modes, many, options, loop))

    def open(
        self,
        session: str | None = None,
        *,
        input: Any = NOTHING,
        abandon: bool = False,
        take_over: bool = False,
        allow_changed: bool = False,
    ) -> Session[S]:
        """A session to be looked at, edited, forked, and run step by step.

        Args:
            session: Its id.
            input: Begin it, or a new turn of it, with this input; nothing runs yet.
            abandon: As for `invoke`, with an input.
            take_over: Take it from a run that is not known to be dead.
            allow_changed: Use a session that was stored by another definition of the graph.

        Raises:
            SessionConflict: There is none, or it is of another graph.
            StoreError: The store failed.
        """
        if input is NOTHING:
            if session is None:
                raise SessionConflict("open(session) needs the id of one, or input= to begin one")
            line = begin.opened(self._plan, session, allow_changed)
        else:
            line = begin.started(
                self._plan,
                input,
                session,
                abandon=abandon,
                take_over=take_over,
                allow_changed=allow_changed,
                status="interrupted",
                release=True,
            )
            line.claim = None
        return Session(self._plan, line, take_over=take_over, allow_changed=allow_changed)

    # -------------------------------------------------------------------------- drawing

    def describe(self) -> str:
        """The graph as text: nodes, where they run, where they lead."""
        return drawing.described(self._plan)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        return drawing.mermaid(self._plan)

    def __repr__(self) -> str:
        store = self._plan.settings.store
        where = "" if store is None else f", in {store!r}"
        return f"<state graph {self.name!r}: {len(self._plan.nodes)} nodes{where}>"[:200]

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.describe())}</pre>"

    # -------------------------------------------------------------------------- the rest

    def _handle(
        self,
        call: Callable[..., Run],
        line: Line,
        loop: asyncio.AbstractEventLoop | None,
        *,
        resumed: bool = False,
    ) -> Handle:
        from ..runs.handle import Handle

        places = Places(self._plan, loop)
        run = call(line, places, resumed=resumed)
        driver: Any = Driver(run, places)
        try:
            places.open()
            return Handle(driver)
        except BaseException:  # no context, or no thread: the session must not stay claimed
            driver.carry_on()
            raise

    def _resumed(self, value: Any, options: dict[str, Any]) -> tuple[Callable[..., Run], Line]:
        call, more = self._call_of(options)
        answers, session = more.pop("answers", None), more.pop("session", None)
        return call, begin.resumed(self._plan, session, value, answers, **more)

    def _streamed(
        self,
        input: Any,
        modes: tuple[str, ...],
        many: bool,
        options: dict[str, Any],
        loop: asyncio.AbstractEventLoop | None,
    ) -> StateStream:
        options = dict(options)
        resumed = options.pop("resume", False)
        value = options.pop("value", NOTHING)
        call, more = self._call_of(options, modes, many)
        session, answers = more.pop("session", None), more.pop("answers", None)
        if resumed:
            line = begin.resumed(self._plan, session, value, answers, **more)
        else:
            line = begin.started(self._plan, input, session, **more)
        places = Places(self._plan, loop)
        stream = StateStream(call(line, places, resumed=resumed), places)
        if loop is not None:  # it is read in a thread of an executor, from which none should fork
            try:
                places.open()
            except BaseException:
                stream.close()
                raise
        return stream

    def _call(
        self,
        max_steps: Any = None,
        interrupt_before: Any = (),
        interrupt_after: Any = (),
        sinks: Any = (),
        progress: Any = False,
        report: Any = None,
        modes: tuple[str, ...] = (),
        many: bool = False,
    ) -> Callable[..., Run]:
        """What makes a run of a line, with these options, which are checked now."""
        plan, settings = self._plan, self._plan.settings
        with told(self.name):
            steps = settings.max_steps
            if max_steps is not None:
                steps = _checks.integer("max_steps", max_steps, least=1)
            before = settings.before | stops("interrupt_before", interrupt_before)
            after = settings.after | stops("interrupt_after", interrupt_after)
        plan.check_stops(before, after)
        limits = Limits(steps, before, after)
        heard_by = sinks_of(sinks, progress, report)

        def made(line: Line, places: Places, resumed: bool = False) -> Run:
            tell = Teller(plan, heard_by, modes, many)
            return Run(plan, line, places, limits, tell, resumed=resumed)

        return made

    def _call_of(
        self, options: dict[str, Any], modes: tuple[str, ...] = (), many: bool = False
    ) -> tuple[Callable[..., Run], dict[str, Any]]:
        """`_call` with those of its options that are given, and the others."""
        mine = {name: options[name] for name in _RUN_OPTIONS if name in options}
        more = {name: value for name, value in options.items() if name not in mine}
        unknown = [name for name in more if name not in _SESSION_OPTIONS]
        if unknown:
            allowed = (*_RUN_OPTIONS, *_SESSION_OPTIONS)
            near = _checks.nearest(unknown[0], allowed)
            raise TypeError(f"there is no option {unknown[0]!r}{near}; there are {allowed}")
        return self._call(**mine, modes=modes, many=many), more

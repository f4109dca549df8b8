"""What the operators of a run share, and may ask of it: the part of a driver that they know.

    Run ◀── Operator and its kinds (they have one)
     ▲
    Figures ◀── Ending ◀── Driver (it is one, and makes them)

Threads: everything belongs to the thread of the driver, but `stop` and `kill`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ... import events
from ..._process import Latch
from ..._said import here
from ...contexts.lanes.emit import Awaited
from ...errors import BuildError
from ...runs.failure import FailureLog, check_keep
from ...runs.handle import Left
from ..declare import to
from ..graph import find
from .flow import Abort, Bell, Killed, Outlet
from .sign import LOOK_S
from .work import each_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType
    from typing import TypedDict

    from ..graph import Stage, StageGraph
    from .flow import Pace

    class RunOptions(TypedDict):
        """What a `Run` takes beside the graph."""

        stream: bool
        inside: bool
        keep_failures: int | None
        prefix: str


__all__ = ["Run", "named"]


class Part(Protocol):
    """An operator, as the run knows it here."""

    stage: Stage

    def rewrite(self) -> None:
        """Forget compiled runs."""

    def outlets(self) -> list[Any]:
        """The queues that a run of it may fill."""


Op = TypeVar("Op", bound=Part)


class Run(ABC, Generic[Op]):
    """One run of a graph, as its operators see it.

    Args:
        graph: What is run.
        stream: Outputs are taken one by one.
        inside: What happens is told to another run, of which this is a part.
        keep_failures: How many failures are kept whole; the rest is counted. None: all.
        prefix: What the names of stages begin with, in their failures.
    """

    def __init__(
        self,
        graph: StageGraph,
        *,
        stream: bool,
        inside: bool,
        keep_failures: int | None,
        prefix: str,
    ) -> None:
        self.graph = graph
        self.prefix = prefix
        self.inside = inside
        self.sign: Any = None  # not 0 at [0]: that one is being stopped, in another process
        self.sign_path = ""
        self.events: Any = events.Emitter.beginning("pipeline")
        self.every = False  # each call is measured
        self.detailed = False  # somebody wants to know of calls
        self.outputs = Outlet(stream)
        self.failures = FailureLog(check_keep(keep_failures))
        self.bell = Bell()
        self.beat: list[None] = []  # not empty: a run comes back as soon as it can
        self.pace: Pace | None = None  # where more than one operator may wait for its turn
        self.codes: dict[CodeType, Any] = {}  # of all runs
        self.turns = 0  # how many turns runs have had
        self.flushed = 0  # how often a run has handed its counters over
        self.thread = threading.get_ident()  # who runs the driver
        self.stopping = self.killed = self.interrupted = self.producer_failed = False
        self.may_interrupt = False  # a SIGINT handler of the user's is there
        self.interrupts: Any = None  # ours
        self.awaited = Awaited()  # by inline stages
        self.closing = False  # runs are closed: GeneratorExit is ours
        self.order: list[Op] = []
        self.operators: dict[Stage, Op] = {}
        self._cut = Latch()  # ends pauses
        self._left: list[str] = []  # stages with calls that were left behind
        self._late: list[BaseException] = []  # what failed where a stage had ended
        self._lead = threading.Lock()  # guards `thread` against who takes over
        self._passed = False  # since `stop`: no source holds the thread of the run any more
        self._outlets: dict[Op, list[Any]] = {}
        self._names: dict[tuple[Op, str], list[Op]] = {}

    def origin(self, name: str) -> Any:
        """For whom calls of a stage work (see `forkmill._said`)."""
        if not self.inside:
            return self.events.id, name, {}, None
        outer = here()
        return None if outer is None else (outer[0], f"{self.prefix}{name}", {}, None)

    @abstractmethod
    def stop(self) -> None:
        """Sources stop, loops and retries too; the rest is finished."""

    @abstractmethod
    def kill(self) -> None:
        """Everything stops."""

    @abstractmethod
    def linked(self) -> None:
        """There are new edges."""

    @abstractmethod
    def compiled(
        self, operator: Op, entry: bool, timed: bool
    ) -> Callable[[Iterable[Any]], Iterator[Any]]:
        """The run that hangs on an operator (see `fuse`)."""

    @abstractmethod
    def disarm(self, run: Any) -> None:
        """Have a run call nothing more, which is under way in another thread."""

    def passes(self, error: BaseException) -> bool:
        """Whether what was raised in a user's function ends the run, and is no item's failure.

        Everything else is: whatever an item raises goes by its stage's policy, in every context.
        """
        if isinstance(error, Exception):
            return False
        if isinstance(error, KeyboardInterrupt):
            # Ctrl-C, and no item's own: we raise it where the run is killed; a handler of the
            # user's may raise it anywhere in the main thread.
            return self.killed or self.may_interrupt or self.interrupts.replaced()
        if isinstance(error, GeneratorExit):
            return self.closing
        return isinstance(error, (Abort, Killed, Left))

    def rewrite(self) -> None:
        """The function of a stage is another one now: compile what calls it anew."""
        for operator in self.order:
            operator.rewrite()

    def fail_late(self, error: BaseException) -> None:
        """A stage's end failed: sources stop, all that is under way is finished, then it is raised.
        (Nothing of it would be better for being dropped.)"""
        self._late.append(error)
        self.stop()

    def outlets_of(self, operator: Op) -> list[Any]:
        """The queues that a run of an operator may fill."""
        found = self._outlets.get(operator)
        if found is None:
            found = self._outlets[operator] = operator.outlets()
        return found

    def resolve(self, operator: Op, name: str) -> list[Op]:
        """The operators that fm.to(name, ...) means in a stage.

        Raises:
            BuildError: There is no such stage.
        """
        found = self._names.get((operator, name))
        if found is None:
            found = [self.operators[stage] for stage in named(self.graph, operator.stage, name)]
            self._names[operator, name] = found
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

    def hooks(self, hooks: list[Any], *args: Any) -> list[BaseException]:
        """Call all hooks of a stage's end, whatever one of them raises; what they raised."""
        raised: list[BaseException] = []
        for hook in hooks:
            raised += each_hook([hook], *args)
            if self.killed:
                self.gate()
        return raised

    def gate(self) -> None:
        """Who comes back from the user's code, in a run that is being ended.

        Raises:
            Left: The run has gone on without this thread.
        """
        with self._lead:
            if self.thread != threading.get_ident():
                raise Left
            self._passed = True


def named(graph: StageGraph, stage: Stage, name: str) -> list[Stage]:
    """The stages that fm.to means, said in a stage.

    Raises:
        BuildError: There is no such stage, or it is ambiguous, or a producer.
    """
    targets = find(stage.level, name, graph.top, f"stage {stage.name!r}: fm.to")
    for target in targets:
        if target.kind == "producer":
            raise BuildError(f"stage {stage.name!r}: fm.to: {target.name!r} is a producer")
    return targets

"""Neighbours on one named pool, or on one cluster: one call there does an item's way through all.

    edges ──▶ ChainHead: the first stage's lane ──▶ Chain in the worker: a, b, c ──▶ outputs of c
                                                   └─▶ SideOutput, Lost, Passed: what a and b tell
    fm.to ──▶ ChainMember b: only what was sent to it straight goes through a lane of its own

Guarantees:
    * Counters, edges, failures and what is sent by fm.to are those of the stage that they belong
      to, as if each had had its own lane.
    * setup, on_end and teardown run in the order of the stages; what an earlier one emits at its
      end goes through the later ones before their end.
    * The death of a worker is that of the stage whose function was running, and of the item that
      was put: what the stage had made of it is lost. Counted is the way to where it died. (A
      cluster does not tell where: then it is that of the first.)

What joins (`joins_chain`): nothing that needs the single stage to be seen from here: no order, key,
batch, timeout, async function or fork hook, and no retry but the first stage's in threads. Where a
worker can die, the stages have one policy, for its item is the first one's.

Invariants:
    * CHAIN-1  A plain value that a chain of plain functions returns stands for one output of each
      stage; anything else is told by Passed at the end of the call.
    * CHAIN-2  Passed counts what a member worked on without failing; Lost counts itself. So the
      edges add up at any moment at which a run may be ended.

Threads: Chain and its functions run in workers and threads; the operators in the driver's.
"""

from __future__ import annotations

import functools
import pickle
from typing import TYPE_CHECKING, Any

from ... import contexts
from ...contexts.lanes.emit import (
    UNUSUAL,
    Raised,
    pieces,
    settle,
)
from ...contexts.lanes.measured import Measured, Recorded, Recorder, Report
from ...errors import WorkerDied
from ...runs.policies import DeadLetter, Retry, final
from ..declare import to
from ..graph import stage_hooks
from .lanes import LaneEnd, LaneOperator
from .operators import Phase
from .work import (
    adapted,
    clocked,
    is_async,
    is_generator,
    label_of,
    run_inline,
    uncarried,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..graph import Stage, StageGraph
    from .operators import Operator
    from .state import Run

__all__ = ["ChainHead", "ChainMember", "joins_chain"]

_KINDS = ("stage", "flat", "filter")
_CLUSTERS = ("dask", "ray")
_PARTS = ("setup", "on_end", "teardown")


def joins_chain(stage: Stage, graph: StageGraph) -> bool:
    """Whether a stage runs in the same call as the one before it."""
    if len(stage.sources) != 1 or stage.kind not in (*_KINDS, "consumer"):
        return False
    source = stage.sources[0]
    if not _are_together(stage.spec, source.spec):
        return False
    if source.kind not in _KINDS or len(source.targets) != 1 or source.owner is not stage.owner:
        return False
    if isinstance(stage.on_error, Retry):
        return False
    if any(stage.parts.get(part) for part in _PARTS) and _may_jump(graph):
        return False  # what is sent to it straight would meet another replica of its state
    if stage.spec.type != "thread" and stage.on_error != source.on_error:
        return False
    return all(map(_may_join, (source, stage)))


def _are_together(spec: Any, other: Any) -> bool:
    """Whether calls of both go to the same workers: those of a named pool, or of one cluster."""
    if spec.type in _CLUSTERS and spec == other:
        return True
    pool = getattr(spec, "pool", None)
    if pool is None or getattr(other, "pool", None) is not pool:
        return False
    return spec.type in ("ipc_fork", "cow_fork", "thread", *_CLUSTERS)


def _may_jump(graph: StageGraph) -> bool:
    """Whether items may come to a stage otherwise than by its links."""
    return any(stage.dynamic or _dead_letters(stage.on_error) for stage in graph.stages)


def _dead_letters(policy: Any) -> bool:
    return isinstance(final(policy), DeadLetter)


def _may_join(stage: Stage) -> bool:
    alone = (
        stage.nested is not None
        or stage.ordered
        or stage.key is not None
        or stage.timeout is not None
        or is_async(stage.fn)
        or any(stage_hooks(stage, hook) for hook in ("before_fork", "after_fork"))
    )
    return not alone


# ---------------------------------------------------------------------- in the worker


class SideOutput:
    """Something that a stage of a chain says beside the outputs: a Report, an item by fm.to."""

    __slots__ = ("stage", "value")

    def __init__(self, stage: int, value: Any) -> None:
        self.stage = stage
        self.value = value

    def __reduce__(self) -> Any:
        return SideOutput, (self.stage, self.value)


class Lost:
    """An item that failed in a member; or a stage's end that failed, if `counted` is not true."""

    __slots__ = ("counted", "item", "raised", "stage")

    def __init__(self, stage: int, item: Any, raised: Raised, counted: bool = True) -> None:
        self.stage = stage
        self.item = item
        self.raised = raised
        self.counted = counted

    def __reduce__(self) -> Any:
        item = self.item
        try:
            pickle.dumps(item)
        except Exception:  # it was never meant to travel
            item = repr(item)
        return Lost, (self.stage, item, self.raised, self.counted)


class Passed:
    """The end of a call: how many items each stage but the first has worked on."""

    __slots__ = ("counts",)

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def __reduce__(self) -> Any:
        return Passed, (self.counts,)


_TOLD = frozenset({SideOutput, Lost, Passed})
_UNUSUAL = frozenset({*UNUSUAL, Report, to})


class Chain:
    """The functions of the stages, one after the other.

    Attributes:
        many: Whether a call's outputs come from a generator.
        whole: Whether all that the first stage emits for an item must be there before it goes on.
        mark: Says which stage's function is about to run; 0 between calls.
    """

    def __init__(self, stages: list[Stage], detail: str) -> None:
        fns = [adapted(stage) for stage in stages]
        self.many = any(map(is_generator, fns))
        self.whole = isinstance(stages[0].on_error, Retry)
        # Threads would miscount the calls between two that are measured.
        every = detail == "every" or stages[0].spec.type == "thread"
        self.recorders = [None if detail == "runs" else Recorder(every) for _ in fns]
        self.fns = [*map(clocked, fns, self.recorders)]
        self.parts = [{part: stage.parts.get(part) for part in _PARTS} for stage in stages]
        self.silent = stages[-1].kind == "consumer"
        self.last = len(stages) - 1
        self.ready = [False] * len(stages)
        self.unmeasured = list(fns)
        self.left = self.skipped = 0  # calls that no stage measures: still, and in all
        self.mark = contexts.marker(stages[0].spec.type)
        self.label = label_of(stages)

    def work(self, origin: Any) -> contexts.Work:
        """The work of the lane, and for whom it is."""
        return contexts.Work(
            fn=self.pieces if self.many else self.one,
            setup=self.setup,
            teardown=self.teardown,
            on_end=self.on_end,
            stream=self.many and not self.whole,
            whole=not self.many or self.whole,  # Passed comes last in what a call gives
            atomic=self.whole,
            always=True,
            label=self.label,
            origin=origin,
        )

    def one(self, item: Any) -> Any:
        """An item's way where every stage emits one output; a generator if it turns out else."""
        value = came = item
        k, mark = 0, self.mark
        if self.left > 0:
            self.left -= 1
            fns = self.unmeasured
        else:
            fns = self._due()
        try:
            for fn in fns:
                came = value
                mark(k)
                value = fn(came)
                if type(value) in _UNUSUAL:
                    return self._rest(k, came, value)
                k += 1
        except BaseException as error:
            if k == 0:
                raise
            return self._rest(k, came, _failing(error))
        finally:
            if fns is self.fns:
                self._next_due()
        mark(0)
        return value

    def _due(self) -> list[Any]:
        """The functions with their clocks, one of which is to measure this call."""
        for fn in self.fns:
            if isinstance(fn, Measured):
                fn.left -= self.skipped
        return self.fns

    def _next_due(self) -> None:
        clocks = [fn.left for fn in self.fns if isinstance(fn, Measured)]
        self.left = self.skipped = max(0, min(clocks, default=1) - 1)

    def pieces(self, item: Any) -> Iterator[Any]:
        """An item's way, its outputs one by one."""
        counts = [0] * len(self.fns)
        yield from self._told(self._arrive(0, item, counts), counts)

    def _told(self, outputs: Iterator[Any], counts: list[int]) -> Iterator[Any]:
        """Outputs, and how many items went through for them, also where the call fails."""
        try:
            yield from outputs
        except GeneratorExit:
            raise
        except BaseException:
            self.mark(0)
            yield Passed(counts)
            raise
        self.mark(0)
        yield Passed(counts)

    def _rest(self, k: int, came: Any, value: Any) -> Iterator[Any]:
        """From stage k on, which has given a value that is not one output."""
        counts = [0] + [1] * (k - 1) + [0] * (len(self.fns) - max(k, 1))
        yield from self._told(self._outputs(k, came, value, counts), counts)

    def _arrive(self, k: int, item: Any, counts: list[int]) -> Iterator[Any]:
        self.mark(k)
        try:
            value = self.fns[k](item)
        except BaseException as error:
            if k == 0:
                raise
            yield Lost(k, item, Raised(error))
            return
        yield from self._outputs(k, item, value, counts)

    def _outputs(self, k: int, item: Any, value: Any, counts: list[int]) -> Iterator[Any]:
        """What a stage's call gave goes on. The first stage's failure is that of the call."""
        try:
            values: Iterable[Any] = pieces(value)
            if k == 0 and self.whole:
                values = list(values)
            yield from self._emit(k, values, counts)
        except GeneratorExit:
            raise  # of who takes the outputs
        except BaseException as error:
            if k == 0:
                raise
            yield Lost(k, item, Raised(error))
            return
        counts[k] += 1

    def _emit(self, k: int, values: Iterable[Any], counts: list[int]) -> Iterator[Any]:
        for value in values:
            output = value
            if type(output) is Report:
                yield SideOutput(k, Report(Report, output.call, output.seconds, output.times))
                output = output.value
                if output is Report:
                    continue
            if type(output) is to:
                yield SideOutput(k, output)
            elif k < self.last:
                yield from self._arrive(k + 1, output, counts)
            elif not self.silent:
                yield output
            self.mark(k)  # its generator goes on; others have run meanwhile

    # The life of a replica of the state.

    def setup(self) -> None:
        """All setups; one that fails is every item's failure, in its stage."""
        for k, parts in enumerate(self.parts):
            self.mark(k)
            try:
                if parts["setup"] is not None and not self.ready[k]:
                    settle(parts["setup"]())
            except BaseException as error:
                if k == 0:
                    raise
                self.fns[k] = self.unmeasured[k] = _Unready(self, k, error)
            else:
                self.ready[k] = True

    def on_end(self) -> Iterator[Any]:
        """The stages' ends, in their order."""
        counts = [0] * len(self.fns)
        for k, parts in enumerate(self.parts):
            times = self._rest_of(k)
            if times is not None:
                yield SideOutput(k, Report(Report, 0.0, 0.0, times))
            if parts["on_end"] is None or not self.ready[k]:
                continue
            self.mark(k)
            try:
                yield from self._emit(k, pieces(parts["on_end"]()), counts)
            except GeneratorExit:
                raise
            except BaseException as error:
                yield Lost(k, None, Raised(error), False)
        yield Passed(counts)

    def _rest_of(self, k: int) -> Any:
        """The times of a stage's calls that were not told yet."""
        fn, recorder = self.fns[k], self.recorders[k]
        if recorder is None:
            return None
        if type(fn) is not Recorded:
            return recorder.take()
        fn.left -= self.skipped - self.left  # calls since the last that was due
        return fn.rest()

    def teardown(self) -> None:
        """All teardowns; the first failure is raised when all have run."""
        failure: BaseException | None = None
        for k, parts in enumerate(self.parts):
            ready, self.ready[k] = self.ready[k], False
            self.mark(k)
            try:
                if ready and parts["teardown"] is not None:
                    settle(parts["teardown"]())
            except BaseException as error:
                failure = error if failure is None else failure
        if failure is not None:
            raise failure


class _Unready:
    """Stands for a member's function whose setup failed: the item that met it fails with that; the
    next one tries again."""

    def __init__(self, chain: Chain, k: int, error: BaseException) -> None:
        self.chain = chain
        self.k = k
        self.fns = chain.fns[k], chain.unmeasured[k]
        self.error: BaseException | None = error

    def __call__(self, item: Any) -> Any:
        chain, k = self.chain, self.k
        error, self.error = self.error, None
        if error is not None:
            raise error
        setup: Any = chain.parts[k]["setup"]
        settle(setup())
        chain.ready[k] = True
        chain.fns[k], chain.unmeasured[k] = self.fns
        return self.fns[0](item)


def _failing(error: BaseException) -> Iterator[Any]:
    raise error
    yield


# ---------------------------------------------------------------------- in the run


class ChainMember(LaneOperator):
    """A stage that runs in the calls of the one before it."""

    def __init__(self, driver: Run[Operator], stage: Stage) -> None:
        super().__init__(driver, stage)
        self.fused = True

    def open(self) -> None:
        self.state = Phase.LIVE

    def _reopen(self) -> None:
        """Something came by fm.to."""
        if self.state is Phase.ENDED:
            self._end = LaneEnd.NOT_YET
            self.before_hooks()
        super().open()

    def passed(self, number: int) -> None:
        """So many items went through without a failure."""
        edge = self.edges_in[0]
        self.sources[0].out += number
        self.came += number
        edge.straight += number
        edge.delivered += number

    def lost(self, failed: Lost) -> None:
        """An item failed here, or the stage's end did."""
        if failed.counted:
            self._count_loss()
            self.record(failed.item, uncarried(failed.raised.error), 1, self.stage.on_error)
        else:
            self.fail_at_end(uncarried(failed.raised.error))

    def died(self, item: Any, error: BaseException, before: list[Stage]) -> None:
        """A worker died here, of what the stages before had made of an item."""
        self._count_loss()
        again = functools.partial(_run_through, [*before, self.stage])
        self.record(item, error, 1, self.stage.on_error, again)

    def _count_loss(self) -> None:
        edge = self.edges_in[0]
        self.sources[0].out += 1
        self.came += 1
        edge.straight += 1
        edge.failed += 1


def _run_through(stages: list[Stage], item: Any) -> list[Any]:
    """What comes out of the last stage for an item of the first one's (for `Failure.reproduce`)."""
    items = [item]
    for stage in stages:
        items = [output for item in items for output in run_inline(stage, item)]
    return items


class ChainHead(LaneOperator):
    """The first stage of several that run in one call."""

    def __init__(self, driver: Run[Operator], stage: Stage) -> None:
        super().__init__(driver, stage)
        self._members: list[ChainMember] = []
        self._chain: Chain | None = None
        self._losses: list[Lost] = []

    def wire(self) -> None:
        super().wire()
        last: Operator = self
        while last.targets and isinstance(last.targets[0], ChainMember):
            last = last.targets[0]
            self._members.append(last)

    def make_work(self, after_fork: list[Callable[..., Any]]) -> contexts.Work:
        stages = [self.stage, *(member.stage for member in self._members)]
        self._chain = Chain(stages, self.driver.events.detail)
        return self._chain.work(self.driver.origin(self.name))

    def _batch(self, piece: Any) -> None:
        super()._batch(piece)
        self._record_losses()

    def _taken(self, taken: Any) -> None:
        super()._taken(taken)
        self._record_losses()

    def _finished(
        self, record: Any, item: Any, failure: BaseException | None, final: bool = False
    ) -> None:
        place = self._place(failure)
        if not place:
            super()._finished(record, item, failure, final)
            return
        assert failure is not None
        super()._finished(record, item, None)
        before, here = self._members[: place - 1], self._members[place - 1]
        for member in before:
            member.passed(1)
        here.died(item, failure, [operator.stage for operator in (self, *before)])

    def fail_once(self, item: Any, error: BaseException) -> None:
        place = self._place(error)
        if place:
            self._members[place - 1].fail_once(item, error)
        else:
            super().fail_once(item, error)

    def _place(self, failure: BaseException | None) -> int:
        """Which stage of the chain a worker died in; 0: the first one, or nobody died."""
        place = failure.mark if isinstance(failure, WorkerDied) else 0
        return place if place <= len(self._members) else 0

    def deliver(self, outputs: list[Any], plain: bool = False) -> None:
        """Outputs of the last stage go on; what the others told is theirs."""
        if not outputs:
            return
        assert self._chain is not None
        if not self._chain.many and type(outputs[-1]) not in _TOLD:
            for member in self._members:
                member.passed(len(outputs))
        elif not plain and not _TOLD.isdisjoint(map(type, outputs)):
            outputs = [output for output in outputs if not self._told(output)]
        self._members[-1].deliver(outputs, plain)

    def _parts(self, piece: Any, room: int) -> list[Any]:
        assert self._chain is not None
        if not self._chain.many and piece.__class__ is contexts.Taken:
            return [piece]  # Passed belongs to all of it
        return super()._parts(piece, room)

    def _told(self, output: Any) -> bool:
        kind = type(output)
        if kind is Passed:
            for member, number in zip(self._members, output.counts[1:], strict=True):
                member.passed(number)
        elif kind is Lost:
            self._losses.append(output)
        elif kind is SideOutput:
            operator = self._members[output.stage - 1] if output.stage else self
            if type(output.value) is to:
                operator.send(output.value)
            else:
                operator.count(output.value)
        return kind in _TOLD

    def _record_losses(self) -> None:
        """When the item itself is accounted for: the policy may end the run."""
        while self._losses:
            failed = self._losses.pop(0)
            if failed.stage:
                self._members[failed.stage - 1].lost(failed)
            else:  # a first stage's item fails with its call: this was its end
                self.fail_at_end(failed.raised.error)

    def close(self) -> None:
        self._losses.clear()
        super().close()

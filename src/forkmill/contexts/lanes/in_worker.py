"""What a lane's work is in a worker process: its replica of the state, and what it emits.

The pool knows `function(token, work)` as one function. Its state lies here, under the lane's token:
the pool may send a function anew at any time, and the state must be found again then.

    run(item)    one item: its output, a list of its outputs, or Parked
    run()        the end: on_end and teardown, if this worker has seen an item
    resume(n)    the rest of an item that was parked

An item with very many outputs (`Work.stream`) is *parked*: run returns the first ones, and the
generator waits here for `resume`, which streams the rest. So small items go as fast as any, in
chunks, and no item is ever collected whole. While one is parked the worker goes on with others.
"""

from __future__ import annotations

import itertools
import os
from time import monotonic
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ..._native import hold, mark
from ..._said import ITEMS
from ...errors import WorkerDied
from .emit import (
    UNUSUAL,
    Outputs,
    Raised,
    gathered,
    pieces,
    settle,
)
from .measured import Measured
from .replica import Replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .lane import Work

__all__ = ["Drop", "Function", "Parked", "Resume", "mark"]

PARK_AFTER = 1024  # outputs
PARK_AFTER_S = 0.05

_NONE: Any = object()
_states: dict[str, State] = {}  # by the lane's token


class State(Replica):
    """This worker's replica of a lane's state."""

    def __init__(self, token: str, work: Work) -> None:
        super().__init__(work)
        self.token = token
        self.parked: dict[int, Iterator[Any]] = {}
        self.numbers = itertools.count()

    def outputs(self, value: Any) -> Any:
        """What an unusual value stands for: a generator's outputs, a coroutine's result."""
        if self.work.flat is not None and type(value) is self.work.flat.kind:
            return self.work.flat.flat(value)
        if type(value) is CoroutineType:
            return settle(value)
        if not self.work.stream:
            return gathered(pieces(value), self.work.atomic)
        first = self.begun(pieces(value))
        return Outputs(first) if isinstance(first, list) else first

    def begun(self, outputs: Iterator[Any]) -> list[Any] | Parked:
        """All outputs, or the first ones of very many."""
        first: list[Any] = []
        end = monotonic() + PARK_AFTER_S
        try:
            for output in outputs:
                first.append(output)
                if len(first) == PARK_AFTER or monotonic() >= end:
                    return self.park(outputs, first)
        except BaseException as error:
            if not first:
                raise
            return Outputs([*first, Raised(error)])
        return first

    def park(self, outputs: Iterator[Any], first: list[Any]) -> Parked:
        """Let a generator wait for `resume`."""
        number = next(self.numbers)
        self.parked[number] = outputs
        return Parked(os.getpid(), number, first)


class Parked:
    """The first outputs of an item, and where its generator waits."""

    __slots__ = ("number", "outputs", "pid")

    def __init__(self, pid: int, number: int, outputs: list[Any]) -> None:
        self.pid = pid
        self.number = number
        self.outputs = outputs

    def __reduce__(self) -> Any:
        return Parked, (self.pid, self.number, self.outputs)


class Function:
    """Becomes `run` in the worker.

    Args:
        token: The lane's.
        work: What it does.
        many: Every item's outputs come as a list: `work.fn` is a generator function.
    """

    def __init__(self, token: str, work: Work, many: bool) -> None:
        self.token = token
        self.work = work
        self.many = many

    def __reduce__(self) -> Any:
        return function, (self.token, self.work, self.many)

    @property
    def _forkmill_label(self) -> str:
        return self.work.called

    def __call__(self) -> None:
        raise NotImplementedError("it is called in a worker, where it is another function")


class Resume:
    """Becomes `resume` in the worker."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __reduce__(self) -> Any:
        return resuming, (self.token,)

    __call__ = Function.__call__


class Drop(Resume):
    """Becomes `drop` in the worker."""

    def __reduce__(self) -> Any:
        return dropping, (self.token,)


def function(token: str, work: Work, many: bool) -> Callable[..., Any]:
    """The lane's `run` in this worker."""
    state = _states.get(token)
    if state is None:
        state = _states[token] = State(token, work)
        hold(1)
    run: Any
    if many:
        run = _listing(state)
    elif isinstance(work.fn, Measured):
        run = _between(work.fn, state)
    else:
        run = _plain(state)
    ITEMS.add(run.__code__)
    run._forkmill_origin = work.origin
    return run  # type: ignore[no-any-return]


def _unusual(work: Work) -> frozenset[type]:
    """Types of values that `State.outputs` is asked about."""
    return UNUSUAL if work.flat is None else UNUSUAL | {work.flat.kind}


def _plain(state: State) -> Any:
    """`run` of any other function."""
    fn, unusual, token = state.work.fn, _unusual(state.work), state.token

    def run(item: Any = _NONE) -> Any:
        if item is _NONE:
            return _end(token)
        if not state.ready:
            state.prepare()
        value = fn(item)
        return value if type(value) not in unusual else state.outputs(value)

    return run


def _listing(state: State) -> Any:
    """`run` of a generator function."""
    fn, stream = state.work.fn, state.work.stream

    def run(item: Any = _NONE) -> Any:
        if item is _NONE:
            return _end(state.token)
        if not state.ready:
            state.prepare()
        values = pieces(fn(item))
        return state.begun(values) if stream else list(values)

    return run


def _between(clock: Measured, state: State) -> Any:
    """`run`, where most calls are not measured: those cost one call more than the function's."""
    fn, unusual, token = clock.fn, _unusual(state.work), state.token
    left = 0

    def run(item: Any = _NONE) -> Any:
        nonlocal left
        if left > 0 and item is not _NONE:
            left -= 1
            value = fn(item)
            return value if type(value) not in unusual else state.outputs(value)
        if item is _NONE:
            clock.left = left + 1
            return _end(token)
        if not state.ready:
            state.prepare()
        clock.left = 1  # this call is measured
        value = clock(item)
        left = clock.left - 1
        return value if type(value) not in unusual else state.outputs(value)

    return run


def _taken(token: str) -> State | None:
    """The lane's state, which is here no more."""
    state = _states.pop(token, None)
    if state is not None:
        hold(-1)
    return state


def _end(token: str) -> Any:
    state = _taken(token)
    return Outputs() if state is None else state.finish()


def resuming(token: str) -> Callable[[int], Iterator[Any]]:
    """The lane's `resume` in this worker."""

    def resume(number: int) -> Iterator[Any]:
        state = _states.get(token)
        if state is None or number not in state.parked:
            raise WorkerDied("the worker that had begun this task is gone")
        found._forkmill_origin = state.work.origin
        return state.parked.pop(number)

    found: Any = resume
    return resume


def dropping(token: str) -> Callable[[], None]:
    """What ends the lane's replica in this worker where there was no end."""

    def drop() -> None:
        state = _taken(token)
        if state is not None:
            state.tear_down()

    return drop

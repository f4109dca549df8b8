"""What travels to a context: a stage's function, dressed for where it runs.

    stage.fn ──▶ adapted (flat, filter, consumer, producer) ──▶ clocked ──▶ contexts.Work

Guarantees:
    * Whatever a stage emits comes back as it is: None, lists, tuples, fm.to.
    * Nothing here refers to the run, so forked replicas and pickles stay small.

Threads: these run in workers, threads and loops; each function says nothing to the others.
"""

from __future__ import annotations

import functools
import inspect
from time import perf_counter
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from ... import contexts
from ...contexts.lanes.emit import (
    UNUSUAL,
    Flat,
    Raised,
    each,
    pieces,
    settle,
)
from ...contexts.lanes.measured import TELL_S, Measured, Recorded, Recorder, Report
from ...errors import name_of
from ...runs.policies import Retry
from ..declare import to
from ..options import hook_caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from ..graph import Stage

__all__ = ["make_work", "run_inline"]

# ---------------------------------------------------------------------- adapters


class Carried(Exception):
    """An exception that cannot go its way by itself: StopIteration, out of a generator of ours."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __reduce__(self) -> Any:
        return _carried, (Raised(self.error),)


def _carried(raised: Raised) -> Carried:
    return Carried(raised.error)


def uncarried(error: BaseException) -> BaseException:
    """The exception itself."""
    return error.error if type(error) is Carried else error


def _called(fn: Any, *args: Any) -> Any:
    """A call inside of a generator; what stops an iterator must not look like its end."""
    try:
        return fn(*args)
    except StopIteration as error:
        raise Carried(error) from None


def _flat(fn: Any, item: Any) -> Iterator[Any]:
    yield from each(_called(fn, item))


def _filter(fn: Any, item: Any) -> Iterator[Any]:
    if settle(_called(fn, item)):
        yield item


async def _async_filter(fn: Any, item: Any) -> AsyncIterator[Any]:
    if await fn(item):
        yield item


async def _async_flat(fn: Any, item: Any) -> AsyncIterator[Any]:
    values = fn(item)
    if inspect.isawaitable(values):
        values = await values
    if hasattr(values, "__aiter__"):
        async for value in values:
            yield value
    else:
        for value in values:
            yield value


def _consume(fn: Any, item: Any) -> Any:
    value = fn(item)
    if type(value) is to:
        return value
    if type(value) in UNUSUAL:
        return _async_consumed(value) if type(value) is not GeneratorType else _sent(value)
    return None


def _sent(values: Iterator[Any]) -> Iterator[Any]:
    return (value for value in values if type(value) is to)


async def _async_consumed(value: Any) -> AsyncIterator[Any]:
    if type(value) is AsyncGeneratorType:
        async for output in value:
            if type(output) is to:
                yield output
    else:
        output = await value
        if type(output) is to:
            yield output


class _Ignoring:
    """A function of nothing, as one of an item."""

    __slots__ = ("fn",)

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def __call__(self, item: Any) -> Any:
        return self.fn()


_ADAPTERS: dict[str, tuple[Any, Any]] = {
    "flat": (_flat, _async_flat),
    "filter": (_filter, _async_filter),
    "consumer": (_consume, _consume),
    "producer": (_flat, _async_flat),
}


def is_async(fn: Any) -> bool:
    """Whether calling it makes a coroutine or an async generator."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    called = getattr(type(fn), "__call__", None)  # noqa: B004  # not whether, but which
    return any(
        inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (fn, called)
    )


def is_generator(fn: Any) -> bool:
    """Whether calling it makes a generator."""
    return inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)


def adapted(stage: Stage) -> Any:
    """A function of one item that emits what the stage does with it."""
    if stage.kind == "unbatch":
        return functools.partial(_flat, _same)
    if stage.kind in _ADAPTERS:
        plain, awaits = _ADAPTERS[stage.kind]
        fn = _Ignoring(stage.fn) if stage.kind == "producer" else stage.fn
        return functools.partial(awaits if is_async(stage.fn) else plain, fn)
    return stage.fn


def _same(item: Any) -> Any:
    return item


def run_inline(stage: Stage, item: Any) -> list[Any]:
    """What a stage emits for an item, called here (for `Failure.reproduce`)."""
    fn = adapted(stage)
    return list(pieces(fn(item)))


# ---------------------------------------------------------------------- time


class Untold:
    """What calls of a replica have taken since it last told of it: to tell costs more than a short
    call takes (see `Measured`)."""

    __slots__ = ("_seconds", "_told")

    def __init__(self) -> None:
        self._seconds = self._told = 0.0

    def __reduce__(self) -> Any:
        return Untold, ()

    def add(self, seconds: float) -> float:
        """A call took so long; what is to be told now, 0: nothing yet."""
        now = perf_counter()
        self._seconds += seconds
        if now - self._told < TELL_S:
            return 0.0
        seconds, self._seconds, self._told = self._seconds, 0.0, now
        return seconds


def clocked_pieces(fn: Any, recorder: Recorder | None, untold: Untold, item: Any) -> Iterator[Any]:
    """A generator function's outputs, and last the time that it took, or that others took too."""
    seconds, begin = 0.0, perf_counter()
    start = begin
    for output in fn(item):
        seconds += perf_counter() - start
        yield output
        start = perf_counter()
    seconds += perf_counter() - start
    told = _reported(Report, begin, seconds, recorder, untold)
    if told is not Report:
        yield told


async def _clocked_call(fn: Any, recorder: Recorder | None, untold: Untold, item: Any) -> Any:
    start = perf_counter()
    value = await fn(item)
    return _reported(value, start, perf_counter() - start, recorder, untold)


def _reported(
    value: Any, begin: float, seconds: float, recorder: Recorder | None, untold: Untold
) -> Any:
    """An output, with a Report if it is time for one."""
    if recorder is not None:
        recorder.note(begin, seconds)
        return Report(value, seconds, seconds, recorder.take())
    whole = untold.add(seconds)
    return Report(value, seconds, whole) if whole else value


def clocked(fn: Any, recorder: Recorder | None = None) -> Any:
    """fn, with its time reported among its outputs.

    Args:
        fn: The function.
        recorder: Hears of each call; None: nobody does.
    """
    if inspect.iscoroutinefunction(fn):
        return functools.partial(_clocked_call, fn, recorder, Untold())
    if is_async(fn):
        return fn
    if inspect.isgeneratorfunction(fn):
        return functools.partial(clocked_pieces, fn, recorder, Untold())
    return Measured(fn) if recorder is None else Recorded(fn, recorder)


def _with_last_times(rest: Callable[[], Any], on_end: Any) -> Iterator[Any]:
    """What on_end emits, behind the times that were not told yet."""
    times = rest()
    if times is not None:
        yield Report(Report, 0.0, 0.0, times)
    if on_end is not None:
        yield from pieces(on_end())


# ---------------------------------------------------------------------- the work


def make_work(
    stage: Stage, after_fork: list[Callable[..., Any]], detail: str, origin: Any
) -> contexts.Work:
    """A stage's work for a lane.

    Args:
        stage: The stage.
        after_fork: Hooks to be called where a replica of the state is set up.
        detail: "items" or "every": each call is told; see `forkmill.events`.
        origin: For whom its calls work.
    """
    recorder = None
    if detail != "runs" and stage.kind != "producer":
        # Threads would miscount the calls between two that are measured.
        shared = stage.spec.type in ("thread", "async", "interpreter")
        recorder = Recorder(detail == "every" or shared)
    setup, teardown = stage.parts.get("setup"), stage.parts.get("teardown")
    on_end = stage.parts.get("on_end")
    fn = adapted(stage)
    many = is_generator(fn)
    if stage.kind == "consumer" and on_end is not None:
        on_end = functools.partial(_consume, _Ignoring(on_end), None)
    if after_fork:
        setup = functools.partial(set_up, after_fork, stage.name, setup)
    fn = clocked(fn, recorder)
    if recorder is not None:
        rest = fn.rest if type(fn) is Recorded else recorder.take
        on_end = functools.partial(_with_last_times, rest, on_end)
    whole = isinstance(stage.on_error, Retry) and stage.kind != "producer"
    return contexts.Work(
        fn=fn,
        setup=setup,
        teardown=teardown,
        on_end=on_end,
        stream=many and not whole,
        whole=whole,
        atomic=whole,
        ordered=stage.ordered and not whole and stage.key is None,
        always=True,
        flat=Flat(to, "name", "item") if stage.dynamic else None,
        timeout=stage.timeout,
        label=label_of([stage]),
        origin=origin,
    )


def label_of(stages: list[Stage]) -> str:
    """What messages call the work of stages that run in one call."""
    fns = ", ".join(stage.kind if stage.fn is None else name_of(stage.fn) for stage in stages)
    names = ", ".join(repr(stage.name) for stage in stages)
    return f"{fns} ({'stages' if len(stages) > 1 else 'stage'} {names})"


def set_up(hooks: list[Callable[..., Any]], name: str, setup: Any) -> Any:
    """Where a replica of the state is: the hooks of its fork, then its setup."""
    run_hooks(hooks, name)
    return setup() if setup is not None else None


def run_hooks(hooks: list[Callable[..., Any]], *args: Any) -> None:
    """Call hooks, each with as many arguments as it takes."""
    for hook in hooks:
        settle(hook_caller(hook)(*args))


def each_hook(hooks: list[Callable[..., Any]], *args: Any) -> list[BaseException]:
    """Call all hooks, whatever one of them raises; what they raised."""
    raised: list[BaseException] = []
    for hook in hooks:
        try:
            run_hooks([hook], *args)
        except BaseException as error:
            raised.append(error)
    return raised


def initialize(
    hooks: list[Callable[..., Any]], name: str, initializer: Any, initargs: tuple[Any, ...]
) -> None:
    """What a worker does at its birth: the hooks, then its own initializer."""
    run_hooks(hooks, name)
    if initializer is not None:
        initializer(*initargs)

"""What does each type of context cost: to make, use and end one, and for a call that follows?

One call wide, beside the nearest that the standard library has. Creation is a new executor, the
result of its first call, and its shutdown; for "inline" there is nothing to create, so a plain call
is beside it. A subinterpreter is shown where CPython has them (3.14); elsewhere that context is
threads. What is beside cow_fork is `multiprocessing.Process` by fork with a pipe; its call is a
creation each time, and so is cow_fork's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from typing import Any

from . import work
from .harness import LESS, Bench, Case, Sample, check, elapsed, spread
from .peers import OURS, START_METHOD

TARGETS = ()

_REPEATS = 9  # creations in a sample, which is their median


def run(bench: Bench) -> None:
    """Ask."""
    beside = _beside()
    bench.plan(2 * len(beside))
    for kind, (name, make) in beside.items():
        fn = _increment_async if kind == "async" else work.increment
        samples: dict[str, Sample] = {
            OURS: _created(bench, lambda kind=kind: _ours(kind), fn),  # type: ignore[misc]
            name: _created(bench, make, fn),
        }
        text = f"{kind}: make, first result, end"
        bench.measure(Case(kind, text, "us", LESS, samples, most_rounds=7))
        samples = {
            OURS: _called(bench, lambda kind=kind: _ours(kind), fn),  # type: ignore[misc]
            name: _called(bench, make, fn),
        }
        text = f"{kind}: one call, when it is warm"
        bench.measure(Case(f"{kind}-call", text, "us", LESS, samples, most_rounds=7))


def _ours(kind: str) -> Any:
    import forkmill

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # interpreter: threads before CPython 3.14
        options = {"start_method": START_METHOD} if kind == "ipc_fork" else {}
        return forkmill.executor(kind, 1, **options)


def _beside() -> dict[str, tuple[str, Callable[[], Any]]]:
    """Context -> what is shown beside it: its name, and what makes one."""
    table: dict[str, tuple[str, Callable[[], Any]]] = {
        "inline": ("a plain call", _Plain),
        "thread": ("ThreadPoolExecutor", lambda: concurrent.futures.ThreadPoolExecutor(1)),
        "ipc_fork": ("ProcessPoolExecutor", _process_pool),
        "cow_fork": ("Process and Pipe", _Forks),
        "async": ("asyncio.Runner", _Loop),
    }
    if sys.version_info >= (3, 14):
        table["interpreter"] = (
            "InterpreterPoolExecutor",
            lambda: concurrent.futures.InterpreterPoolExecutor(1),
        )
    return table


def _process_pool() -> Any:
    context = multiprocessing.get_context(START_METHOD)
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=context)


class _Plain:
    """Calls in place, with the face of an executor."""

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(fn(*args))
        return future

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing was made."""


class _Forks(_Plain):
    """A process a call."""

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=lambda: theirs.send(fn(*args)))  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        value = ours.recv()
        ours.close()
        process.join()
        process.close()
        return super().submit(lambda: value)


class _Loop(_Plain):
    """An event loop in this thread: without the thread that lets others go on beside it."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return super().submit(lambda: self._runner.run(fn(*args)))

    def __exit__(self, *exc: object) -> None:
        self._runner.close()


async def _increment_async(number: int) -> int:
    return number + 1


def _created(bench: Bench, make: Callable[[], Any], fn: Callable[..., Any]) -> Sample:
    def once() -> float:
        return elapsed(lambda: _use(make, fn))[0] * 1e6

    def sample() -> float:
        once()  # what is imported at the first use is not the question
        return spread([once() for _ in range(bench.size(_REPEATS, 1))])[1]

    return sample


def _use(make: Callable[[], Any], fn: Callable[..., Any]) -> None:
    with make() as executor:
        check(executor.submit(fn, 1).result(), 2)


def _called(bench: Bench, make: Callable[[], Any], fn: Callable[..., Any]) -> Sample:
    def sample() -> float:
        number = bench.size(200, 2)
        with make() as executor:
            check(executor.submit(fn, 1).result(), 2)
            seconds, results = elapsed(
                lambda: [executor.submit(fn, i).result() for i in range(number)]
            )
        check(results, list(range(1, number + 1)))
        return seconds / number * 1e6

    return sample

"""How asyncio waits for the end of a run.

    event loop                                  the thread of the run (see Handle)
    await handle ──a Told among its waiters──▶  the run, to its end
                 ◀──── call_soon_threadsafe ──  it is over: every waiter is told, once

Guarantees:
    * The loop's thread waits for nothing but futures of the loop.
    * What asyncio or an async iterator would take for something else (StopIteration,
      StopAsyncIteration, CancelledError) comes out as the cause of a RuntimeError.

Invariants:
    * AIO-1  Nothing that belongs to a loop is touched by another thread, but by
      call_soon_threadsafe; a loop that is closed by then has nobody who waits.

Threads: a loop's own for each call. A run may be awaited in several loops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from .failure import noted
from .result import disguised

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ending import Ending
    from .result import RunResult

__all__ = ["Told", "awaited", "cut", "ended", "outcome"]


class Told:
    """A future of the running loop that any thread may set by a call."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()

    def __call__(self) -> None:
        with contextlib.suppress(RuntimeError):  # AIO-1: the loop is closed
            self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


async def over(run: Ending) -> None:
    """Until the run is over. Cancelled, it only waits no longer."""
    if run.done():
        return
    told = Told()
    run._tell(told)
    try:
        await told.future
    finally:
        run._forget(told)


async def ended(run: Ending, cancelled: Callable[[], object]) -> asyncio.CancelledError | None:
    """Until the run is over, also if the task is cancelled, however often: then something is done
    about the run. (The task stays cancelled for asyncio.timeout and task groups.)

    Args:
        run: The run.
        cancelled: What is done, each time.

    Returns:
        With what the task was cancelled first, for the caller to raise.
    """
    first: asyncio.CancelledError | None = None
    try:
        while not run.done():
            try:
                await over(run)
            except asyncio.CancelledError as error:
                first = first or error
                cancelled()
        return first
    finally:
        del first  # a cycle: its traceback has this frame


def outcome(run: Ending) -> RunResult:
    """The result of a run that is over.

    Raises:
        RuntimeError: The run raised what would be taken for something else here. It has the
            result too.
        BaseException: See `Handle.result`.
    """
    try:
        return run._outcome()
    except (StopIteration, StopAsyncIteration, asyncio.CancelledError) as error:
        raise disguised(error) from error


def cut(run: Ending, error: asyncio.CancelledError) -> asyncio.CancelledError:
    """The cancellation, with the result of the run that it ended, and what this one failed with."""
    try:
        error.__dict__["run_result"] = run._outcome()
    except BaseException as failure:
        error.__dict__["run_result"] = getattr(failure, "run_result", None)
        noted(error, [failure])
    return error


async def awaited(run: Ending) -> RunResult:
    """What ``await handle`` does. See `Handle`."""
    await over(run)
    return outcome(run)

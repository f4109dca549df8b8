"""A run for asyncio: what `arun` and `astream` do. See `awaiting` for a handle that is awaited.

    event loop                           the thread of the run (see Handle)
    anext ──asked, and the bell───────▶  Driver.serve, until there is an output
          ◀──── the output, and Told ──

Guarantees:
    * The loop's thread waits for nothing but futures of the loop. A run is in a thread of its own,
      also where all of its stages are inline; its async functions have a loop of their own there.
    * Who is cancelled in `arun`, or between two items of a stream, comes back when the run is over:
      within CANCEL seconds and one more.

Invariants:
    * AIO-2  What a run holds (its thread holds it) does not hold the iterator: one that is dropped
      ends its run.

Threads: a loop's own for each call. A stream belongs to one asyncio task at a time, but any task
may close it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._late import unbroken
from .awaiting import Told, cut, ended, outcome
from .handle import Handle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .handle import Driven
    from .result import RunResult

__all__ = ["CANCEL", "AsyncStream", "run"]

# Seconds from a cancelled `arun`, which stops the run, to where it kills it. A source that blocks
# is left behind before that (handle.PATIENCE), and what is in flight has had its time then.
CANCEL = 1.5
AHEAD = 16  # outputs that are asked for at once, if those that came before were taken
QUICK = 1e-3  # within so many seconds: going from thread to thread takes longer than most items


async def run(start: Callable[[], Handle]) -> RunResult:
    """What `arun` does: a run that is the caller's own, and goes with it."""
    loop = asyncio.get_running_loop()  # without one, nothing is started
    handle = start()
    timers: list[asyncio.TimerHandle] = []

    def cancelled() -> None:
        if timers:
            handle.kill()
            return
        handle.stop()
        timers.append(loop.call_later(CANCEL, handle.kill))

    try:
        error = await ended(handle, cancelled)
        if error is None:
            return outcome(handle)
        raise cut(handle, error)
    finally:
        error = None  # a cycle: its traceback has this frame
        for timer in timers:
            timer.cancel()
        if not handle.done():  # Ctrl-C here, or the coroutine is closed: nobody can wait
            handle.kill()


class _Outputs:
    """Where outputs wait to be taken. Apart from the iterator: AIO-2.

        iterator, in the loop's thread            | `offer`, in the thread of the run
        1. `told` is there                        | a. what came is `asked` for no more
        2. nothing is `ready`: so many are asked  | b. it is ready
        3. the bell rings, it waits               | c. told is told, if there is one

    If a. takes back what 2. has just asked for, b. and c. come after that: it does not wait for
    nothing, and asks again.
    """

    __slots__ = ("asked", "ready", "told")

    def __init__(self) -> None:
        self.ready: deque[Any] = deque()
        self.asked = 0
        self.told: Told | None = None

    def offer(self, outputs: deque[Any]) -> bool:
        """Take what the run has; whether more is asked for."""
        if outputs:
            self.asked = max(0, self.asked - len(outputs))
            while outputs:
                self.ready.append(outputs.popleft())
            told, self.told = self.told, None
            if told is not None:
                told()
        return self.asked > 0


class AsyncStream:
    """The outputs of a run, one by one, for ``async for``; the run goes on while they are asked
    for. What `Pipeline.astream` returns.

    ::

        async with contextlib.aclosing(pipeline.astream()) as outputs:  # or: async with ... as
            async for output in outputs:
                ...

    Who is cancelled while it waits for an output has closed the stream. One that is dropped
    closes itself, and does not wait for the run's end.

    Attributes:
        result: The run's RunResult, when it is over.
    """

    def __init__(self, driver: Driven) -> None:
        self._driver = driver
        self._handle: Handle | None = None  # from the first output on that is asked for
        self._outputs = _Outputs()
        self._closed = self._told = self._busy = False
        self._ahead = 1
        self._came = 0.0  # when there were outputs at last
        self.result: RunResult | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._busy:
            raise ValueError("async stream already executing")
        self._busy = True
        ready = self._outputs.ready
        try:
            while not self._closed:
                over = self._handle is not None and self._handle.done()
                if ready:  # looked at after that: nothing comes any more
                    return ready.popleft()
                if not over:
                    await self._wait()
                    continue
                self._closed = True
                self._finish()
        except asyncio.CancelledError as error:
            await self._leave(error)
            raise
        except BaseException:  # Ctrl-C here, the coroutine is closed: nobody can wait
            self._close()
            raise
        finally:
            self._busy = False
        raise StopAsyncIteration

    async def _wait(self) -> None:
        """Until there may be an output, or the end."""
        outputs, told, handle = self._outputs, Told(), self._begun()
        outputs.told = told  # 1.
        handle._tell(told)
        try:
            if not outputs.ready:
                outputs.asked = self._ask()  # 2.
                self._driver.bell.ring()  # 3.
                await told.future
                self._came = monotonic()
        finally:
            outputs.told = None
            handle._forget(told)

    def _ask(self) -> int:
        """How many outputs to ask for, now that none is left of those that came last."""
        now = monotonic()
        self._ahead = min(2 * self._ahead, AHEAD) if now - self._came < QUICK else 1
        return self._ahead

    def _begun(self) -> Handle:
        if self._handle is None:
            serve, offer = self._driver.serve, self._outputs.offer
            self._handle = Handle(self._driver, lambda: serve(offer))
            begins = sys.get_asyncgen_hooks().firstiter
            if begins is not None:  # asyncio.run closes what is open then
                begins(self)  # type: ignore[arg-type]
        return self._handle

    def _finish(self) -> None:
        """The run is over: take its result, and raise once what it failed with."""
        handle = self._handle
        if self._told or handle is None:
            return
        self._told = True
        try:
            self.result = outcome(handle)
        except BaseException as error:
            self.result = getattr(error, "run_result", None)
            raise

    async def _leave(self, error: asyncio.CancelledError) -> None:
        """Cancelled: what comes late is told with that."""
        self._close()
        if self._handle is not None:
            await ended(self._handle, self._handle.kill)
            self._told = True
            self.result = getattr(cut(self._handle, error), "run_result", None)

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._outputs.ready.clear()
        if self._handle is None:
            self.result = self._driver.abandon()  # nothing has begun
        elif not self._handle.done():
            self._handle.kill()

    async def aclose(self) -> None:
        """Stop the run now, and wait for its end: a second at most. Idempotent. A task that waits
        for an output meanwhile finds the stream at its end.

        Raises:
            Exception: What a hook or a teardown failed with, or what ended the run and nobody has
                been told.
            asyncio.CancelledError: The task was cancelled; the run is over all the same.
        """
        self._close()
        if self._handle is None:
            return
        error = await ended(self._handle, self._handle.kill)
        if error is None:
            self._finish()
            return
        try:
            raise cut(self._handle, error)
        finally:
            del error

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @unbroken
    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and not getattr(self, "_closed", True):
            self._close()

"""asyncio's side of a pool: `run` and `amap`.

Guarantees:
    * One completion descriptor an event loop, watched only while calls of that loop are under
      way: a closed loop or a closed pool leaves nothing behind.
    * Outcomes are decoded in the loop's thread, and nothing of the loop is touched elsewhere.

Threads: a port belongs to its loop's thread; only `end` may come from another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from . import _native, errors
from ._map import Feed, Items
from ._process import interrupted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from ._core import Core
    from ._future import Future
    from ._options import Options

__all__ = ["AsyncMap", "LoopPort", "port_of", "run"]


class LoopPort:
    """The completions of one event loop's calls to one pool."""

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.completions = core.native.completion_queue(with_fd=True)
        self._fd = self.completions.fileno()
        self._life = core.life
        self._core: Core | None = None  # while calls are under way: they keep the pool alive
        self._came: deque[_native.Chunk] = deque()  # taken from there, and not yet delivered
        self._over = False  # the pool is at its end
        self._life.ports.add(self)

    def begin(self, core: Core) -> None:
        """A call is on its way."""
        if self._core is None:
            self._core = core
            self.loop.add_reader(self._fd, self._ready)

    def _ready(self) -> None:
        """Completions are there (the loop calls this).

        A signal handler may raise at any place: what was taken stays in `_came` until it is
        delivered, which can be done again.
        """
        try:
            with contextlib.suppress(errors.PoolError):
                self.completions.wait(0.0, into=self._came)
            while self._came:
                task = self._came[0]
                task.tag.deliver(task)
                self._came.popleft()
        finally:
            if self._came:
                self.loop.call_soon(self._ready)
        if self.completions.expected:
            return
        if self._core is not None:
            self.loop.remove_reader(self._fd)
            self._core = None
        if self._over:
            self.completions.close()  # and its descriptor, which the loop has let go of

    def end(self) -> None:
        """The pool is at its end: have the rest delivered, then free the descriptor."""
        self._over = True
        try:
            self.loop.call_soon_threadsafe(self._ready)
        except RuntimeError:  # the loop is closed: nobody waits
            self.completions.close()


def port_of(core: Core) -> LoopPort:
    """The port of the running loop.

    Raises:
        RuntimeError: No event loop is running.
    """
    loop = asyncio.get_running_loop()
    port = core.loops.get(id(loop))
    if port is None or port.loop is not loop:  # another loop may have had that id
        for key in [key for key, old in core.loops.items() if old.loop.is_closed()]:
            core.loops.pop(key).completions.close()
        port = core.loops[id(loop)] = LoopPort(core, loop)
    return port


class _Call:
    """The tag of one `run`."""

    __slots__ = ("_name", "core", "future", "task")

    _name: str
    task: _native.Chunk | None

    def __init__(self, core: Core, future: asyncio.Future[Any]) -> None:
        self.core = core
        self.future = future
        self.task = None

    def deliver(self, task: _native.Chunk) -> None:
        future, self.task = self.future, None
        if future.done():  # cancelled, or delivered and interrupted
            return
        if task.what == _native.WHAT_CANCELLED:
            future.cancel()
            return
        error = task.exception(self.core)
        value = None
        if error is None:
            try:
                value = task.result(self.core)
            except Exception as failure:
                if interrupted(failure):
                    raise
                error = errors.bare(failure)
        if isinstance(error, StopIteration):  # which no asyncio future takes
            wrapped = RuntimeError(f"the task raised StopIteration: {error}")
            wrapped.__cause__ = error
            error = wrapped
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def finished(self, future: asyncio.Future[Any]) -> None:
        """The asyncio future is done; if somebody cancelled it, take the task back."""
        task, self.task = self.task, None
        if task is not None and future.cancelled():
            task.cancel()


def run(
    core: Core,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options,
) -> asyncio.Future[Any]:
    """Submit a call for the running loop."""
    port = port_of(core)
    future: asyncio.Future[Any] = port.loop.create_future()
    call = _Call(core, future)
    call.task = core.submit(fn, args, kwargs, options, completions=port.completions, tag=call)
    port.begin(core)
    future.add_done_callback(call.finished)
    return future


def done(outcome: Future) -> asyncio.Future[Any]:
    """An asyncio future that has its outcome already (inline pools)."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    error = outcome.exception()
    if error is None:
        future.set_result(outcome.result())
    else:
        future.set_exception(error)
    return future


async def asynchronous(results: Iterable[Any]) -> AsyncIterator[Any]:
    """Results of an inline pool, for `async for`."""
    for result in results:
        yield result
        await asyncio.sleep(0)  # others of the loop shall run too


class _Records(_native.RecordIterator):
    """The items of finished chunks, as far as they are there."""

    ready: _native.Chunk | None = None

    def _advance(self) -> _native.Chunk | None:
        task, self.ready = self.ready, None
        return task

    def _failed(self) -> None:
        self._drop()


class _Wake:
    """Where finished chunks arrive. Apart from the iterator, which no chunk may keep alive."""

    __slots__ = ("done", "waiter")

    def __init__(self) -> None:
        self.done: deque[_native.Chunk] = deque()  # in the order they finish
        self.waiter: asyncio.Future[None] | None = None

    def deliver(self, task: _native.Chunk) -> None:
        self.done.append(task)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class AsyncMap:
    """What `amap` returns: an async iterator with the windows of `map`."""

    def __init__(
        self,
        core: Core,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        options: Options,
        *,
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
        ordered: bool,
        return_exceptions: bool,
    ) -> None:
        self._core: Core | None = core
        self._life = core.life
        self._port = port = port_of(core)
        self._deadline = None if timeout is None else port.loop.time() + timeout
        self._ordered = ordered
        self._line: deque[_native.Chunk] = deque()  # in the order of the input
        self._wake = _Wake()
        self._records = _Records(Items(core), return_exceptions)
        self._current: _native.Chunk | None = None
        self._busy = False
        self._feed = Feed(
            core, fn, iterables, options, star=False,
            chunksize=chunksize, buffersize=buffersize, completions=port.completions,
            done=self._wake.deliver,
        )  # fmt: skip
        self._token = self._life.input_begins()
        self._open = True
        try:
            self._fill()
        except BaseException:
            self._close()
            raise

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._busy:
            raise ValueError("async map iterator already executing")
        self._busy = True
        try:
            while self._open:
                try:
                    return next(self._records)
                except StopIteration:
                    await self._next_chunk()
            raise StopAsyncIteration
        except StopAsyncIteration:
            raise
        except BaseException:  # cancelled, too: as an async generator it is at its end then
            self._close()
            raise
        finally:
            self._busy = False

    async def aclose(self) -> None:
        """Cancel what has not started, and free everything. Idempotent."""
        self._close()

    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and getattr(self, "_open", False):
            self._close()

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._feed.stop()
        self._records._drop()
        with contextlib.suppress(errors.PoolError):
            for task in self._line:
                task.abandon()
        self._line.clear()
        self._wake.done.clear()
        waiter = self._wake.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)  # closed by another asyncio task: its end is here
        self._current = self._core = None
        self._life.input_ended(self._token)

    def _pull(self) -> bool:
        task = self._feed.pull()
        if task is None or self._core is None:
            return False
        self._port.begin(self._core)
        self._line.append(task)
        return True

    def _fill(self) -> None:
        """Fill the window, at the call. A slow input is not waited for once there are results."""
        slow_at = self._feed.slow_at()
        while self._pull():
            if slow_at and monotonic() > slow_at:
                self._feed.core.turn()  # outcomes may lie in the pipe
                if any(task.done for task in self._line):
                    return

    def _take(self) -> _native.Chunk | None:
        """The next chunk to yield, if it is there."""
        if self._ordered:
            return self._line.popleft() if self._line and self._line[0].done else None
        if not self._wake.done:
            return None
        task = self._wake.done.popleft()
        if task not in self._line:
            return self._take()  # it was delivered twice: see LoopPort._ready
        self._line.remove(task)
        return task

    async def _next_chunk(self) -> None:
        """Have the next chunk ready for `_records`, or end."""
        feed = self._feed
        if self._current is not None:
            feed.consumed(self._current)
            self._current = None
        while self._open:
            task = self._take()
            if task is None and self._pull():
                # Finished results go before the next pull, as in map; and the loop has other
                # things to do: the input may be slow.
                if not feed.quick:
                    await asyncio.sleep(0)
                continue
            if task is not None:
                feed.finished(task)
                self._current = self._records.ready = task
                return
            if not self._line:
                error, self._feed.error = feed.error, None
                self._close()
                if error is not None:
                    raise error
                return
            await self._wait()

    async def _wait(self) -> None:
        wake = self._wake
        if self._ordered:
            wake.done.clear()  # nobody reads the order in which they finish
        wake.waiter = self._port.loop.create_future()
        try:
            async with asyncio.timeout_at(self._deadline):
                await wake.waiter
        except TimeoutError:
            raise TimeoutError("the results were not there within the timeout") from None
        finally:
            wake.waiter = None

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
from collections import deque
from typing import TYPE_CHECKING, Any

from .. import _native, errors
from .._process import Latch, interrupted
from ..runs.window import Window, late_error
from .maps import Feed, Items

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from ..runs.window import LazyCall
    from .core import Core
    from .futures import Future
    from .options import Options

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
        for key, old in core.loops.copy().items():  # other loops' threads are here, too
            if old.loop.is_closed() and core.loops.pop(key, None) is not None:
                old.completions.close()
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


def done(outcome: Future[Any]) -> asyncio.Future[Any]:
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
        self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class AsyncMap(Window[_native.Chunk]):
    """What `amap` returns: an async iterator with the windows of `map`."""

    _feed: Feed

    def __init__(self, core: Core, call: LazyCall, options: Options) -> None:
        self._port = port = port_of(core)
        deadline = call.deadline()
        self._wake = _Wake()
        self._items = Items(core)
        self._records = _Records(self._items, call.return_exceptions)
        feed = Feed(core, call, options, completions=port.completions, done=self._wake.deliver)
        self._begin(feed, deadline, ordered=call.ordered)

    def watch(self, watch: Any, total: int | None, workers: int) -> None:
        watch.latch = Latch()  # the loop goes on while sinks hear of the end
        self._items.watch = watch
        super().watch(watch, total, workers)

    async def _heard(self) -> None:
        """Who watches has heard of the end, or does not hear of it in time."""
        if self._watch is not None:
            await self._watch.heard()

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
                    await self._advance()
            raise StopAsyncIteration
        except StopAsyncIteration:
            await self._heard()
            raise
        except BaseException as error:  # cancelled, too: as an async generator it is at its end
            failed = isinstance(error, Exception)
            if failed:
                self._status = "failed"
            self._close()
            if failed:
                await self._heard()
            raise
        finally:
            self._busy = False

    async def aclose(self) -> None:
        """Cancel what has not started, and free everything. Idempotent."""
        if self._has_to_close():
            self._close()
        await self._heard()

    def _let_go(self) -> None:
        self._records._drop()
        self._wake.done.clear()
        self._wake.wake()  # closed by another asyncio task: its end is here

    def _pull(self) -> bool:
        pulled = super()._pull()
        if pulled:
            self._port.begin(self._feed.core)
        return pulled

    def _has_some(self) -> bool:
        self._feed.core.turn()  # outcomes may lie in the pipe, and the loop cannot deliver them
        return any(task.done for task in (*self._line, *self._flying))

    def _there(self, line: deque[_native.Chunk], wait: bool) -> bool:
        """As the base says, of what the loop has delivered; it never waits."""
        done = self._wake.done
        while done:
            task = done.popleft()
            if task in self._flying:  # else it was delivered twice: see LoopPort._ready
                self._flying.remove(task)
                line.append(task)
        return bool(line) and line[0].ripe()

    async def _advance(self) -> None:
        """Have the next chunk ready for `_records`, or end."""
        feed = self._feed
        if self._current is not None:
            feed.consumed(self._current)
            self._current = None
        while feed.quick and self._pull():
            pass
        while self._open and (self._line or self._flying or self._pull()):
            if self._there(self._line, False):
                task = self._current = self._records.ready = self._line.popleft()
                feed.finished(task)
                return
            if not self._pull():
                await self._wait()
            elif not feed.quick:
                await asyncio.sleep(0)  # the input may be slow, and the loop has more to do
        self._end()

    async def _wait(self) -> None:
        wake = self._wake
        wake.waiter = self._port.loop.create_future()
        try:
            async with asyncio.timeout(self._patience()):
                await wake.waiter
        except TimeoutError:
            raise late_error() from None
        finally:
            wake.waiter = None

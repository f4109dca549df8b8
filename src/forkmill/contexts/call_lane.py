"""CallLane: a lane over any executor's `submit`. Each item is a call.

    put ──▶ submit(fn, item) ──▶ Future ──callback──▶ the lane's out-list ──▶ take_many: decoded

Guarantees: those of a Lane. A result is looked at in the taker's thread, never in a callback: it
may have to be decoded there.

A stream's call hands its outputs over as they come, from the thread that it runs in.
"""

from __future__ import annotations

import contextlib
import inspect
from concurrent.futures import CancelledError, wait
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import _codec, errors
from .lane import END, MANY, Copy, Outputs, SharedLane, Taken, as_outputs, collect, emitted

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from concurrent.futures import Future

    from .base import Executor
    from .lane import Batch, Work

__all__ = ["AsyncLane", "CallLane", "CopyLane", "Whole", "failure_of", "mark_last"]


class CallLane(SharedLane):
    """A lane over `submit`, for contexts whose calls share one copy of the state."""

    def __init__(
        self,
        executor: Executor,
        work: Work,
        notify: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(work, notify)
        self._executor = executor
        self._face: Any = executor
        if work.timeout is not None and executor.kills:
            self._face = executor.options(timeout=work.timeout)
        self._copy = Copy(work)
        self._under_way: set[Future[Any]] = set()
        self._stopped: list[Future[Any]] = []  # by close: those that were under way

    # ------------------------------------------------------------------ in

    def _start(self, items: Iterable[Any], copy: int | None) -> None:
        for item in items:
            self._work_on(item)

    def _work_on(self, item: Any) -> None:
        if self.work.stream:
            self._call(item, self._stream, item)
        else:
            self._call(item, self._item, item)

    def _call(self, item: Any, fn: Callable[..., Any], *args: Any) -> None:
        """Submit a call whose end is that of an item."""
        try:
            future = self._face.submit(fn, *args)
        except Exception as error:
            self._deliver(Taken(item, [], error))
            return
        with self._lock:
            self._under_way.add(future)
        future.add_done_callback(partial(self._returned, item))

    def _returned(self, item: Any, future: Future[Any]) -> None:
        with self._lock:
            self._under_way.discard(future)
        self._deliver((item, future))

    # ------------------------------------------------------------------ out

    def _item(self, item: Any) -> Any:
        """In a thread of the context: the outputs of an item that are not known to be many."""
        self._copy.prepare()
        value = self.work.fn(item)
        if inspect.isgenerator(value):
            return self._gathered(item, value)
        return emitted(value)

    def _gathered(self, item: Any, outputs: Iterator[Any]) -> Outputs:
        """What a generator emits: as it comes, or together."""
        return self._stream_all(item, outputs) if not self.work.whole else self._all(outputs)

    def _all(self, outputs: Iterator[Any]) -> Outputs:
        """There may be no end of them: it is the lane's."""
        found = Outputs()
        for output in outputs:
            if self._over:
                break
            found.append(output)
        return found

    def _stream(self, item: Any) -> Outputs:
        """In a thread of the context: hand over a generator's outputs as they come."""
        return self._stream_all(item, self._copy.pieces(item))

    def _stream_all(self, item: Any, outputs: Iterator[Any]) -> Outputs:
        self._emit_all(item, outputs)
        return Outputs()

    def _opened(self, raw: Any) -> Iterable[Taken | Batch]:
        if type(raw) is not tuple:
            return super()._opened(raw)
        item, future = raw
        failure = failure_of(future)
        if failure is not None:
            return (Taken(item, [], failure),)
        return self._told(item, future.result())

    def _told(self, item: Any, value: Any) -> Iterable[Taken]:
        """An item's call has returned."""
        return (Taken(item, as_outputs(value)),)

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        self._end_by(self._copy.finish)

    def _end_by(self, finish: Callable[[], Any]) -> None:
        try:
            future = self._executor.submit(finish)
        except Exception as error:
            self._finished([Taken(END, [], error)])
            return
        future.add_done_callback(self._copies_ended)

    def _copies_ended(self, future: Future[Any]) -> None:
        failure = failure_of(future)
        if failure is not None:
            self._finished([Taken(END, [], failure)])
        else:
            outputs = as_outputs(future.result())
            self._finished([Taken(END, outputs)] if outputs else ())

    def _stop(self) -> None:
        with self._lock:
            self._stopped += self._under_way
        for future in self._stopped:
            future.cancel()
        self._earned(MANY)  # streams go on, and see that it is over
        for future in self._stopped:
            kill = getattr(future, "kill", future.cancel)
            with contextlib.suppress(errors.PoolError):
                kill()

    def _tear_down(self) -> None:
        wait(self._stopped)  # those that cannot be stopped still use the copy
        self._stopped.clear()
        self._copy.tear_down()


class CopyLane(CallLane):
    """A lane over `submit`, for contexts where each call has a copy of the state to itself."""

    copies = 0

    def _work_on(self, item: Any) -> None:
        self._call(item, Whole(self._copy), item)

    def _told(self, item: Any, value: Any) -> Iterable[Taken]:
        good, outputs, last, failure = value
        if good:
            yield Taken(item, as_outputs(outputs))
        else:
            yield Taken(item, [], _codec.load_failure(memoryview(outputs)))
        if last:
            yield Taken(END, last)
        if failure is not None:
            yield Taken(END, [], _codec.load_failure(memoryview(failure)))

    def _finish(self) -> None:
        self._finished()  # every copy has had its end

    def _tear_down(self) -> None:
        """The copies are elsewhere."""


class Whole:
    """A call with one item, and with the end of its copy if it is the copy's last one.

    It returns (whether fn returned, its outputs or failure, the end's outputs, the end's failure).
    """

    __slots__ = ("copy", "last")

    def __init__(self, copy: Copy) -> None:
        self.copy = copy
        self.last = True  # where several calls share a copy, whoever runs them says which is

    def __reduce__(self) -> Any:
        return Whole, (self.copy,)

    def work(self, item: Any) -> Any:
        """The item's outputs."""
        return self.copy.item(item)

    def __call__(self, item: Any) -> tuple[bool, Any, Outputs | None, bytes | None]:
        try:
            good, outputs = True, self.work(item)
        except BaseException as error:
            if not self.last or not self.copy.ready:
                raise
            good, outputs = False, _codec.dump_failure(error)
        if not self.last:
            return good, outputs, None, None
        try:
            return good, outputs, self.copy.finish(), None
        except BaseException as error:
            return good, outputs, None, _codec.dump_failure(error)


def mark_last(fns: Iterable[Any]) -> None:
    """Calls will share a process, and with it their lane's copy: the last one has its end."""
    seen = set()
    for fn in fns:  # from the last to the first
        if isinstance(fn, Whole):
            fn.last = id(fn.copy) not in seen
            seen.add(id(fn.copy))


class AsyncLane(CallLane):
    """A lane over an executor that awaits what calls give back.

    setup is awaited before the first item; what is put meanwhile waits here.
    """

    def __init__(
        self, executor: Executor, work: Work, notify: Callable[[], None] | None = None
    ) -> None:
        super().__init__(executor, work, notify)
        self._held: list[Any] | None = None if work.setup is None else []
        self._preparing = False
        self._hungry: list[asyncio.Future[None]] = []  # streams that wait for credit

    def _start(self, items: Iterable[Any], copy: int | None) -> None:
        with self._lock:
            held = self._held
            if held is not None:
                held += items
                first, self._preparing = not self._preparing, True
        if held is None:
            self._copy.ready = self._copy.failure is None
            super()._start(items, copy)
        elif first:
            try:
                self._executor.submit(self._prepare).add_done_callback(self._prepared)
            except Exception as error:
                self._release(error)

    async def _prepare(self) -> None:
        assert self.work.setup is not None
        value = self.work.setup()
        if inspect.isawaitable(value):
            await value
        self._copy.ready = True

    def _prepared(self, future: Future[Any]) -> None:
        self._release(failure_of(future))

    def _release(self, failure: BaseException | None) -> None:
        """setup is over: go on with what was held; a failure is that of every item."""
        with self._lock:
            held, self._held = self._held, None
            self._copy.failure = failure
        super()._start(held or (), None)

    def _work_on(self, item: Any) -> None:
        fn = self.work.fn
        if self._copy.failure is not None:
            self._deliver(Taken(item, [], self._copy.failure))
        elif inspect.iscoroutinefunction(fn):
            self._call(item, fn, item)
        elif inspect.isasyncgenfunction(fn):
            self._call(item, self._generate if self.work.stream else self._collect, item)
        else:
            self._call(item, self._plain, item)

    async def _collect(self, item: Any) -> Outputs:
        return await collect(self.work.fn(item))

    async def _generate(self, item: Any) -> Outputs:
        return await self._stream_async(item, self.work.fn(item))

    def _plain(self, item: Any) -> Any:
        """In a thread: an awaitable that it gives back is awaited in the loop."""
        value = self.work.fn(item)
        if inspect.isasyncgen(value):
            return collect(value) if self.work.whole else self._stream_async(item, value)
        return self._gathered(item, value) if inspect.isgenerator(value) else value

    async def _stream_async(self, item: Any, values: AsyncIterator[Any]) -> Outputs:
        from asyncio import get_running_loop

        loop = get_running_loop()
        async for output in values:
            while not self._credit.acquire(blocking=False):
                space = loop.create_future()
                self._hungry.append(space)
                # Again: it may have come before we were in the list.
                if self._credit.acquire(blocking=False):
                    break
                await space
            if self._over:
                break
            self._emit(item, output)
        return Outputs()

    def _earned(self, number: int) -> None:
        super()._earned(number)
        hungry, self._hungry = self._hungry, []
        for space in hungry:
            self._executor.wake(space)  # type: ignore[attr-defined]  # an Aio

    def _stop(self) -> None:
        super()._stop()
        wait(self._stopped)  # the copy is torn down in the loop, which may be about to end
        with contextlib.suppress(errors.PoolError):
            if self._copy.ready:
                self._executor.submit(self._tear_down_async).result()

    def _finish(self) -> None:
        self._end_by(self._finish_async)

    async def _finish_async(self) -> Outputs:
        outputs = Outputs()
        if not self._copy.ready:
            return outputs
        try:
            if self.work.on_end is not None:
                outputs = as_outputs(await unrolled(self.work.on_end()))
        finally:
            await self._tear_down_async()
        return outputs

    def _tear_down(self) -> None:
        """That has been done, in the loop."""

    async def _tear_down_async(self) -> None:
        ready, self._copy.ready = self._copy.ready, False
        if ready and self.work.teardown is not None:
            value = self.work.teardown()
            if inspect.isawaitable(value):
                await value


async def unrolled(value: Any) -> Any:
    """What a call emits, where an event loop runs."""
    if inspect.isasyncgen(value):
        return await collect(value)
    if inspect.isgenerator(value):
        return Outputs(value)
    return await value if inspect.isawaitable(value) else value


def failure_of(future: Future[Any]) -> BaseException | None:
    """What a finished call raised."""
    try:
        return future.exception()
    except CancelledError as error:
        return error

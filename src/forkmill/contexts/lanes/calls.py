"""CallLane: a lane over any executor's `submit`. Each item is a call.

    put ──▶ submit(fn, item) ──▶ Future ──callback──▶ the lane's out-list ──▶ take_many: decoded

Guarantees: those of a Lane. A result is looked at in the taker's thread, never in a callback: it
may have to be decoded there.

A stream's call hands its outputs over as they come, from the thread that it runs in.
"""

from __future__ import annotations

import _thread
import contextlib
import inspect
import queue
from collections import deque
from concurrent.futures import CancelledError
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from ... import errors
from ..._process import interrupted
from ..._said import HERE, ITEMS
from ...codec import codec
from .emit import (
    Outputs,
    Raised,
    as_outputs,
    collect,
    emitted,
    gathered,
    is_own,
)
from .lane import END, MANY, SharedLane, Taken
from .replica import Replica, ended, told

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from concurrent.futures import Future

    from .lane import Batch, Work

__all__ = ["AsyncLane", "CallLane", "ReplicaLane", "Whole", "failure_of", "mark_last"]


class Host(Protocol):
    """An executor, as its lanes know it."""

    @property
    def kills(self) -> bool: ...
    @property
    def isolated(self) -> bool: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]: ...
    def options(self, *, timeout: float | None) -> Any: ...
    def leave(self, futures: Iterable[Any]) -> None: ...
    def leave_births(self) -> int: ...


class CallLane(SharedLane):
    """A lane over `submit`, for contexts whose calls share one replica of the state."""

    def __init__(
        self,
        executor: Host,
        work: Work,
        notify: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(work, notify)
        self._executor = executor
        self._face: Any = executor
        if work.timeout is not None and executor.kills:
            self._face = executor.options(timeout=work.timeout)
        self._replica = Replica(work)
        self._under_way: set[Future[Any]] = set()
        self._last_call: Future[Any] | None = None  # the replica's end, until it is told
        self._stopped: list[Future[Any]] = []  # by close: those that were under way

    # ------------------------------------------------------------------ in

    def _start(self, items: Iterable[Any], replica: int | None) -> None:
        self._work_on_all(items)

    def _work_on_all(self, items: Iterable[Any]) -> None:
        for item in items:
            self._work_on(item)

    def _work_on(self, item: Any) -> None:
        call = object()
        self._call(item, call, self._stream if self.work.stream else self._item, item, call)

    def _call(self, item: Any, call: Any, fn: Callable[..., Any], *args: Any) -> None:
        """Submit a call whose end is that of an item.

        Args:
            item: The item.
            call: What its pieces are known by, if it may be a stream (see `Taken`); else None.
            fn: What to call.
            *args: Its arguments.
        """
        try:
            future = self._face._begin(fn, args, {})
        except Exception as error:
            if interrupted(error):
                raise
            self._deliver(Taken(item, [], error))
            return
        self._watch(future, partial(self._returned, item, call))

    def _returned(self, item: Any, call: Any, future: Future[Any]) -> None:
        with self._lock:
            if future not in self._under_way:
                return  # it was told, or left behind
            self._under_way.discard(future)
        self._deliver((item, call, future))

    def _watch(self, future: Future[Any], told: Callable[[Future[Any]], None]) -> None:
        """It is under way until its end is told; twice, if a signal handler raised in here."""
        try:
            with self._lock:
                self._under_way.add(future)
            future.add_done_callback(told)
        except BaseException:
            future.add_done_callback(told)  # else it would be under way for ever
            raise

    # ------------------------------------------------------------------ out

    def _item(self, item: Any, call: Any) -> Any:
        """In a thread of the context: the outputs of an item that are not known to be many."""
        token = HERE.set(self.work.origin)
        try:
            self._replica.prepare()
            value = self.work.fn(item)
            if inspect.isgenerator(value):
                return self._gathered(item, value, call)
            return emitted(value, self.work.atomic)
        finally:
            HERE.reset(token)

    def _gathered(self, item: Any, outputs: Iterator[Any], call: Any) -> Outputs:
        """What a generator emits: as it comes, or together."""
        if self.work.stream or not self.work.whole:
            return self._stream_all(item, outputs, call)
        return gathered(self._while_open(outputs), self.work.atomic)

    def _while_open(self, outputs: Iterator[Any]) -> Iterator[Any]:
        """There may be no end of them: it is the lane's."""
        for output in outputs:
            if self._over:
                break
            yield output

    def _stream(self, item: Any, call: Any) -> Outputs:
        """In a thread of the context: hand over a generator's outputs as they come."""
        token = HERE.set(self.work.origin)
        try:
            return self._stream_all(item, self._replica.pieces(item), call)
        finally:
            HERE.reset(token)

    def _stream_all(self, item: Any, outputs: Iterator[Any], call: Any) -> Outputs:
        self._emit_all(item, outputs, call)
        return Outputs()

    def _opened(self, raw: Any) -> Iterable[Taken | Batch]:
        if type(raw) is not tuple:
            return super()._opened(raw)
        item, call, future = raw
        failure = failure_of(future)
        if failure is not None:
            return (Taken(item, [], failure, True, call),)
        return self._told(item, call, future.result())

    def _told(self, item: Any, call: Any, value: Any) -> Iterable[Taken]:
        """An item's call has returned."""
        return (told(item, value, call),)

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        self._end_by(self._last)

    def _last(self) -> Outputs:
        """In a thread of the context: as `Replica.finish`, but on_end emits as it comes."""
        token = HERE.set(self.work.origin)
        try:
            return self._end_replica()
        finally:
            HERE.reset(token)

    def _end_replica(self) -> Outputs:
        replica, outputs = self._replica, Outputs()
        try:
            if self.work.always and not replica.tried:
                replica.prepare()
            if replica.ready and self.work.on_end is not None:
                value = self.work.on_end()
                if inspect.isgenerator(value):
                    outputs = self._stream_all(END, value, END)
                else:
                    outputs = as_outputs(emitted(value))
        except BaseException as error:
            outputs.append(Raised(error))
        try:
            if not self._over:  # else who closes the lane does it
                replica.tear_down()
        except BaseException as error:
            outputs.append(Raised(error))
        return outputs

    def _end_by(self, finish: Callable[[], Any]) -> None:
        try:
            future = self._executor.submit(finish)
        except Exception as error:
            if interrupted(error):
                raise
            self._finished([Taken(END, [], error)])
            return
        with self._lock:
            self._last_call = future
        self._watch(future, _Once(self._replicas_ended))

    def _replicas_ended(self, future: Future[Any]) -> None:
        with self._lock:
            self._under_way.discard(future)
            if not self._over:
                self._last_call = None
                self._finished(_last_words(future))
                return
        self._deliver(None)  # nobody takes it, but somebody may wait for us

    def _stop(self) -> None:
        with self._lock:
            self._stopped += self._under_way.difference(self._stopped)
        for future in self._stopped:
            future.cancel()
        self._earned(MANY)  # streams go on, and see that it is over
        for future in self._stopped:
            kill = getattr(future, "kill", future.cancel)
            with contextlib.suppress(errors.PoolError):
                kill()

    @property
    def busy(self) -> int:
        with self._lock:
            return len(self._under_way)

    def _wait(self, deadline: float | None) -> int:
        stopped, self._stopped = self._stopped, []
        patience = None if deadline is None else max(0.0, deadline - monotonic())
        if self._executor.isolated:
            patience = None  # they were killed
        late = unsettled(stopped, patience)  # they still use the replica
        with self._lock:
            self._under_way.difference_update(stopped)  # they are through, or left behind
        if late:
            self._executor.leave(late)
        last, self._last_call = self._last_call, None
        if last is not None and last.done() and not last.cancelled():
            words = [piece.failure for piece in _last_words(last)]
            self._untold += [failure for failure in words if failure is not None]
        return len(late)

    def _leave_births(self) -> int:
        return self._executor.leave_births()

    def _tear_down(self) -> None:
        self._replica.tear_down()


class ReplicaLane(CallLane):
    """A lane over `submit`, for contexts where each call has a replica of the state to itself."""

    replicas = 0

    def _work_on(self, item: Any) -> None:
        self._call(item, None, Whole(self._replica), item)

    def _told(self, item: Any, call: Any, value: Any) -> Iterable[Taken]:
        good, outputs, last = value
        if good:
            yield told(item, outputs, call)
        else:
            yield Taken(item, [], codec.load_failure(memoryview(outputs)), True, call)
        if last is not None:
            yield from ended(last)

    def _finish(self) -> None:
        self._finished()  # every replica has had its end

    def _tear_down(self) -> None:
        """The replicas are elsewhere."""


class Whole:
    """A call with one item, and with the end of its replica if it is the replica's last one.

    It returns (whether fn returned, its outputs or failure, what the end has told).
    """

    __slots__ = ("last", "replica")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.last = True  # where several calls share a replica, who runs them says which is

    def __reduce__(self) -> Any:
        return Whole, (self.replica,)

    @property
    def _forkmill_label(self) -> str:
        return self.replica.work.called

    @property
    def _forkmill_origin(self) -> Any:
        return self.replica.work.origin

    def work(self, item: Any) -> Any:
        """The item's outputs."""
        return self.replica.item(item)

    def __call__(self, item: Any) -> tuple[bool, Any, Outputs | None]:
        try:
            good, outputs = True, self.work(item)
        except BaseException as error:
            if not self.last or not self.replica.ready:
                raise
            good, outputs = False, codec.dump_failure(error)
        return good, outputs, self.replica.finish() if self.last else None


def mark_last(fns: Iterable[Any]) -> None:
    """Calls will share a process, and with it their lane's replica: the last one has its end."""
    seen = set()
    for fn in fns:  # from the last to the first
        if isinstance(fn, Whole):
            fn.last = id(fn.replica) not in seen
            seen.add(id(fn.replica))


class AsyncLane(CallLane):
    """A lane over an executor that awaits what calls give back.

    setup is awaited before the first item; what is put meanwhile waits here.
    """

    def __init__(
        self, executor: Host, work: Work, notify: Callable[[], None] | None = None
    ) -> None:
        super().__init__(executor, work, notify)
        self._held: deque[Any] | None = deque()  # until setup has succeeded
        self._preparing = False
        self._hungry: list[asyncio.Future[None]] = []  # streams that wait for credit
        self._teardown: Future[Any] | None = None  # the call that it is a part of
        self._kept = True  # the replica: its teardown may still be called for

    def _start(self, items: Iterable[Any], replica: int | None) -> None:
        if self.work.setup is None and self._held is not None:
            self._replica.ready, self._held = True, None
        with self._lock:
            held = self._held
            if held is not None:
                held += items
                first, self._preparing = not self._preparing, True
        if held is None:
            self._work_on_all(items)
        elif first:
            self._ask()

    def _ask(self) -> None:
        """Have setup run, for the first of those that wait."""
        try:
            future = self._executor.submit(self._prepare)
        except Exception as error:
            if interrupted(error):
                raise
            while self._refuse(error):
                pass
            return
        self._watch(future, _Once(self._prepared))

    async def _prepare(self) -> None:
        HERE.set(self.work.origin)  # each call has a context of its own
        self._replica.tried = True
        if self.work.setup is not None:
            value = self.work.setup()
            if inspect.isawaitable(value):
                await value
        self._replica.ready = True

    def _prepared(self, future: Future[Any]) -> None:
        with self._lock:
            self._under_way.discard(future)
        failure = failure_of(future)
        if failure is not None:
            if self._refuse(failure):
                self._ask()
            return
        with self._lock:
            held, self._held = self._held, None
            over = self._over
        if over:
            self._deliver(None)  # nobody takes it, but somebody may wait for us
        else:
            self._work_on_all(held or ())

    def _refuse(self, failure: BaseException) -> bool:
        """setup has failed, for one item; whether others wait."""
        with self._lock:
            item, more = (self._held.popleft(), bool(self._held)) if self._held else (END, False)
            self._preparing = more
        if item is not END:
            self._deliver(Taken(item, [], failure))
        return more

    def _work_on(self, item: Any) -> None:
        fn, call = self.work.fn, object()
        if inspect.iscoroutinefunction(fn):
            self._call(item, None, self._awaited, fn, item)
        elif not inspect.isasyncgenfunction(fn):
            self._call(item, call, self._plain, item, call)
        elif self.work.stream:
            self._call(item, call, self._generate, item, call)
        else:
            self._call(item, None, self._collect, item)

    async def _awaited(self, fn: Any, item: Any) -> Any:
        HERE.set(self.work.origin)
        try:
            return await fn(item)
        except BaseException as error:
            if not is_own(error):
                raise
            return Outputs([Raised(error)])

    async def _collect(self, item: Any) -> Outputs:
        HERE.set(self.work.origin)
        return await collect(self.work.fn(item), self.work.atomic)

    async def _generate(self, item: Any, call: Any) -> Outputs:
        HERE.set(self.work.origin)
        return await self._stream_async(item, self.work.fn(item), call)

    def _plain(self, item: Any, call: Any) -> Any:
        """In a thread: an awaitable that it gives back is awaited in the loop."""
        HERE.set(self.work.origin)
        try:
            value = self.work.fn(item)
            if inspect.isgenerator(value):
                return self._gathered(item, value, call)
        except BaseException as error:
            if not is_own(error):
                raise
            return Outputs([Raised(error)])
        if inspect.isasyncgen(value):
            if self.work.stream or not self.work.whole:
                return self._stream_async(item, value, call)
            return collect(value, self.work.atomic)
        return self._then(item, value) if inspect.isawaitable(value) else value

    async def _then(self, item: Any, value: Any) -> Any:
        """What a function gave for an item is awaited."""
        HERE.set(self.work.origin)
        try:
            return await value
        except BaseException as error:
            if not is_own(error):
                raise
            return Outputs([Raised(error)])

    async def _stream_async(self, item: Any, values: AsyncIterator[Any], call: Any) -> Outputs:
        from asyncio import get_running_loop

        loop = get_running_loop()
        try:
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
                self._emit(item, output, call)
                if self._halted:
                    break
        except BaseException as error:
            if not is_own(error):
                raise
            return Outputs([Raised(error)])
        return Outputs()

    def _earned(self, number: int) -> None:
        super()._earned(number)
        hungry, self._hungry = self._hungry, []
        for space in hungry:
            self._executor.wake(space)  # type: ignore[attr-defined]  # an Aio

    # The teardown of a lane that is closed before its end is a call in the loop, made when no other
    # uses the replica any more: by `_stop`, or by the last one's outcome. Till its end we are busy.

    def _deliver(self, piece: Any, done: int = 1) -> None:
        if self._over:
            self._let_go()
        super()._deliver(piece, done)

    def _stop(self) -> None:
        super()._stop()
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            if self._under_way or not self._kept or not self._replica.ready:
                return
            self._kept = False
            try:
                future = self._executor.submit(self._tear_down_async)
            except errors.PoolError:  # the loop is about to end
                return
            self._teardown = future
        future.add_done_callback(lambda _: self._deliver(None))

    @property
    def busy(self) -> int:
        with self._lock:
            # The last outcome's thread may be on its way to `_let_go`: then it is still to come.
            owed = self._over and self._kept and self._replica.ready
            under_way = owed or (self._teardown is not None and not self._teardown.done())
            return len(self._under_way) + under_way

    def _wait(self, deadline: float | None) -> int:
        with self._lock:
            if self._teardown is not None:
                self._stopped.append(self._teardown)
        left = super()._wait(deadline)
        if left:
            self._kept = False  # what was left behind uses the replica
            return left
        self._let_go()
        teardown, self._teardown = self._teardown, None
        if teardown is not None:
            self._stopped.append(teardown)
            left = super()._wait(deadline)
            if not left:
                teardown.result()
        return left

    def _finish(self) -> None:
        with self._lock:  # the call waits for it before it looks which one it is
            self._end_by(self._finish_async)

    async def _finish_async(self) -> Outputs:
        """As `Replica.finish`."""
        HERE.set(self.work.origin)
        outputs = Outputs()
        try:
            if self.work.always and not self._replica.tried and self._held is not None:
                await self._prepare()
            if self._replica.ready and self.work.on_end is not None:
                outputs = await self._unrolled(self.work.on_end())
        except BaseException as error:
            outputs.append(Raised(error))
        try:
            if self._tears_down():
                await self._tear_down_async()
        except BaseException as error:
            outputs.append(Raised(error))
        return outputs

    def _tears_down(self) -> bool:
        """Whether the replica's end goes on with its teardown, which nobody cuts short then; else
        who closes the lane has it done."""
        with self._lock:
            last = self._last_call
            if self._over or last is None:
                return False
            self._under_way.discard(last)
            self._teardown, self._kept = last, False
            return True

    async def _unrolled(self, value: Any) -> Outputs:
        """What on_end emits, as it comes."""
        if inspect.isgenerator(value):
            value = _each(value)
        if inspect.isasyncgen(value):
            return await self._stream_async(END, value, END)
        return as_outputs(await value if inspect.isawaitable(value) else value)

    def _tear_down(self) -> None:
        """That has been done, in the loop."""

    async def _tear_down_async(self) -> None:
        ready, self._replica.ready = self._replica.ready, False
        if ready and self.work.teardown is not None:
            value = self.work.teardown()
            if inspect.isawaitable(value):
                await value


async def _each(values: Iterator[Any]) -> AsyncIterator[Any]:
    """A generator's outputs, one at a time: others in the loop have their turn between them."""
    from asyncio import sleep

    for value in values:
        yield value
        await sleep(0)


def _last_words(future: Future[Any]) -> list[Taken]:
    """What the end of a replica has told."""
    failure = failure_of(future)
    return ended(future.result()) if failure is None else [Taken(END, [], failure)]


class _Once:
    """A function that is called once, however often it is asked to be."""

    def __init__(self, fn: Callable[[Any], None]) -> None:
        self._fn = fn
        self._claim = _thread.allocate_lock()

    def __call__(self, value: Any) -> None:
        if self._claim.acquire(blocking=False):
            self._fn(value)


def unsettled(futures: Iterable[Future[Any]], seconds: float | None) -> set[Future[Any]]:
    """Wait for calls; those that are not over in time.

    Not by `concurrent.futures.wait`: what a signal handler raises in there leaves a future locked.
    """
    line = list(futures)
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for future in line:
        future.add_done_callback(ready.put)
    deadline = None if seconds is None else monotonic() + seconds
    with contextlib.suppress(queue.Empty):
        for _ in line:
            ready.get(timeout=None if deadline is None else max(0.0, deadline - monotonic()))
    return {future for future in line if not future.done()}


def failure_of(future: Future[Any]) -> BaseException | None:
    """What a finished call raised."""
    try:
        return future.exception()
    except CancelledError as error:
        return error
    except BaseException as error:  # of the user's code that rebuilds what it returned
        if interrupted(error):
            raise
        failure = errors.SerializationError(
            f"the result of this task cannot be decoded here: {type(error).__name__}: {error}"
        )
        failure.__cause__ = errors.bare(error)
        return failure


# Where fm.emit finds the item.
ITEMS.update(
    method.__code__
    for method in (
        CallLane._item,
        CallLane._stream,
        Whole.__call__,
        AsyncLane._awaited,
        AsyncLane._collect,
        AsyncLane._generate,
        AsyncLane._plain,
        AsyncLane._then,
    )
)

"""Lane: one stage's work in one context. All that pipelines know of contexts.

    put(item) ──▶ the context: setup, fn(item), ... ──▶ take() ──▶ Taken(item, outputs, failure)
    end() ──────▶ on_end, teardown ────────────────────▶ take() ──▶ Taken(END, outputs, failure)

Guarantees:
    * Every item that was put comes out once with `done`: with its outputs, or with its failure.
    * setup, on_end and teardown run once for each copy of the state: one where calls share it
      (inline, thread, async), one a worker (ipc_fork), one a call (cow_fork).
    * A generator (sync or async) emits what it yields; anything else is one output, None included.

Threads: `put`, `end` and `close` from any; `take` from one at a time. `notify` is called in any.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from concurrent.futures import Future

    from .base import Executor

__all__ = ["END", "CallLane", "InlineLane", "Lane", "Taken", "Work"]

END: Any = type("End", (), {"__repr__": lambda self: "END"})()
CREDIT = 64  # pieces of a stream that may wait for `take`


@dataclass(frozen=True)
class Work:
    """What a stage does.

    Attributes:
        fn: Called with each item.
        setup: Called before the first item of a copy of the state.
        teardown: Called when a copy is through, after `on_end`.
        on_end: Called after the last item of a copy; emits as `fn` does.
        stream: fn's outputs may be many: they come piece by piece, while it runs, and it waits
            when too many were not taken.
        timeout: Seconds an item may take, where the context can stop it.
    """

    fn: Callable[[Any], Any]
    setup: Callable[[], Any] | None = None
    teardown: Callable[[], Any] | None = None
    on_end: Callable[[], Any] | None = None
    stream: bool = False
    timeout: float | None = None


class Taken(NamedTuple):
    """What comes out of a lane.

    Attributes:
        item: The item that was put, or END for what `on_end` emits and for what it fails with.
        outputs: What was emitted.
        failure: What was raised instead, or after these outputs.
        done: Whether it is the last one of this item.
    """

    item: Any
    outputs: list[Any]
    failure: BaseException | None = None
    done: bool = True


class Lane(ABC):
    """One stage's work in one context."""

    @abstractmethod
    def put(self, item: Any) -> None:
        """Have the work done on an item. Never waits for it (inline: `take` does the work)."""

    @abstractmethod
    def take(self, timeout: float | None = None) -> Taken | None:
        """What is finished next; None if nothing is in time, or nothing is left to come."""

    @abstractmethod
    def end(self) -> None:
        """No more items: after the last one `on_end` runs. Idempotent; never waits."""

    @abstractmethod
    def close(self) -> None:
        """Stop now: cancel what has not started, free everything. Idempotent."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether nothing will ever come out again."""


class Outputs(list):  # type: ignore[type-arg]
    """What a generator emitted, on its way back; anything else is one output."""


class Copy:
    """One copy of the state: the work, and whether its setup has run. Lives where the work runs."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.lock = threading.Lock()
        self.ready = False
        self.failure: BaseException | None = None

    def __reduce__(self) -> Any:
        return Copy, (self.work,)

    def prepare(self) -> None:
        """Run setup, once; a failure of it is that of every item."""
        if self.ready:
            return
        with self.lock:
            if self.failure is not None:
                raise self.failure
            if not self.ready:
                try:
                    if self.work.setup is not None:
                        settle(self.work.setup())
                except BaseException as error:
                    self.failure = error
                    raise
                self.ready = True

    def item(self, item: Any) -> Any:
        """The outputs of one item."""
        self.prepare()
        return emitted(self.work.fn(item))

    def finish(self) -> Any:
        """on_end, then teardown; a copy that has seen no item had no setup either."""
        work, outputs = self.work, Outputs()
        if not self.ready:
            return outputs
        self.ready = False
        try:
            if work.on_end is not None:
                outputs = as_outputs(emitted(work.on_end()))
        finally:
            if work.teardown is not None:
                settle(work.teardown())
        return outputs

    def whole(self, item: Any) -> tuple[Any, Any]:
        """A copy that lives for one call: its outputs, and those of its end."""
        self.ready, self.failure = False, None
        outputs = self.item(item)
        return outputs, self.finish()


def emitted(value: Any) -> Any:
    """What a call emits, where no event loop runs."""
    if inspect.isgenerator(value):
        return Outputs(value)
    if inspect.isasyncgen(value):
        return asyncio.run(collect(value))
    return settle(value)


def settle(value: Any) -> Any:
    """The value of a coroutine, where no event loop runs; anything else as it is."""
    return asyncio.run(value) if inspect.iscoroutine(value) else value


async def collect(values: AsyncIterator[Any]) -> Outputs:
    return Outputs([value async for value in values])


def as_outputs(value: Any) -> Outputs:
    return value if type(value) is Outputs else Outputs([value])


class AsyncCopy(Copy):
    """A copy whose work may await: the executor awaits what these give back."""

    def item(self, item: Any) -> Any:
        value = self.work.fn(item)  # in the loop if fn is a coroutine function, else in a thread
        return Outputs(value) if inspect.isgenerator(value) else unrolled(value)

    async def prepare_async(self) -> None:
        if self.work.setup is not None:
            await unrolled(self.work.setup())
        self.ready = True

    async def finish_async(self) -> Any:
        work, outputs = self.work, Outputs()
        if not self.ready:
            return outputs
        try:
            if work.on_end is not None:
                outputs = as_outputs(await unrolled(work.on_end()))
        finally:
            if work.teardown is not None:
                await unrolled(work.teardown())
        return outputs


async def unrolled(value: Any) -> Any:
    """What a call emits, where an event loop runs."""
    if inspect.isasyncgen(value):
        return await collect(value)
    if inspect.isgenerator(value):
        return Outputs(value)
    return await value if inspect.isawaitable(value) else value


class CallLane(Lane):
    """A lane over any executor's `submit`: each item is a call.

    A copy of the state that calls share is prepared by a call of its own before the first item;
    what is put meanwhile waits here.
    """

    def __init__(
        self,
        executor: Executor,
        work: Work,
        notify: Callable[[], None] | None = None,
        *,
        own: bool = False,
        awaits: bool = False,
    ) -> None:
        self._executor = executor
        self._own = own  # the executor was made for this lane, and ends with it
        self._face: Any = executor
        if work.timeout is not None and executor.kills:
            self._face = executor.options(timeout=work.timeout)
        self._notify = notify
        self._copies = executor.copies
        self._work = work
        self._awaits = awaits
        self._copy: Copy = AsyncCopy(work) if awaits else Copy(work)
        self._ready: queue.SimpleQueue[Taken] = queue.SimpleQueue()
        self._lock = threading.RLock()  # guards the rest
        self._held: deque[Any] = deque()  # items that wait for the setup
        self._state = "ready" if awaits is False or work.setup is None else "new"
        if awaits and work.setup is None:
            self._copy.ready = True
        self._open = True  # items may be put
        self._under_way: set[Future[Any]] = set()
        self._left = 0  # pieces that will still come
        self._credit = threading.Semaphore(CREDIT)
        self._finishing = False

    # ------------------------------------------------------------------ in

    def put(self, item: Any) -> None:
        with self._lock:
            if not self._open:
                raise errors.PoolClosed("this lane takes no more items")
            self._left += 1
            if self._state == "new":
                self._state = "setup"
                self._call(self._copy.prepare_async, then=self._prepared)  # type: ignore[attr-defined]
            if self._state == "setup":
                self._held.append(item)
                return
        self._run(item)

    def _prepared(self, future: Future[Any]) -> None:
        failure = _failure(future)
        with self._lock:
            self._state, items = "ready", list(self._held)
            self._held.clear()
        for item in items:
            if failure is None:
                self._run(item)
            else:
                self._deliver(Taken(item, [], failure))

    def _run(self, item: Any) -> None:
        """Have one item worked on."""
        try:
            if self._work.stream and self._copies == "shared" and not self._awaits:
                self._call(self._pieces, item, then=lambda future: self._streamed(item, future))
            elif self._copies == "call":
                self._call(self._copy.whole, item, then=lambda future: self._told(item, future))
            else:
                call: Any = self._copy.item if self._copies == "shared" else self._worker_call
                if self._awaits and inspect.iscoroutinefunction(self._work.fn):
                    call = self._work.fn
                self._call(call, item, then=lambda future: self._told(item, future))
        except errors.PoolError as error:
            self._deliver(Taken(item, [], error))

    @property
    def _worker_call(self) -> Callable[..., Any]:
        return self._copy.item

    def _call(self, fn: Any, *args: Any, then: Callable[[Future[Any]], None]) -> None:
        future = self._face.submit(fn, *args)
        with self._lock:
            self._under_way.add(future)

        def over(future: Future[Any]) -> None:
            with self._lock:
                self._under_way.discard(future)
            then(future)

        future.add_done_callback(over)

    # ------------------------------------------------------------------ out

    def _told(self, item: Any, future: Future[Any]) -> None:
        failure = _failure(future)
        if failure is not None:
            self._deliver(Taken(item, [], failure))
            return
        value = future.result()
        if self._copies == "call":
            value, last = value
            if self._work.on_end is not None:
                with self._lock:
                    self._left += 1
                self._deliver(Taken(END, as_outputs(last)))
        self._deliver(Taken(item, as_outputs(value)))

    def _pieces(self, item: Any) -> None:
        """In a thread of the context: hand over a generator's outputs as they come."""
        self._copy.prepare()
        value = self._work.fn(item)
        if not inspect.isgenerator(value):
            value = iter(as_outputs(emitted(value)))
        for output in value:
            self._credit.acquire()
            if self._state == "closed":
                return
            with self._lock:
                self._left += 1
            self._deliver(Taken(item, [output], None, False))

    def _streamed(self, item: Any, future: Future[Any]) -> None:
        self._deliver(Taken(item, [], _failure(future)))

    def _deliver(self, taken: Taken) -> None:
        self._ready.put(taken)
        if self._notify is not None:
            self._notify()

    def take(self, timeout: float | None = None) -> Taken | None:
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            self._maybe_finish()
            with self._lock:
                if not self._left:
                    return None  # nothing is left to come
            left = None if deadline is None else max(0.0, deadline - monotonic())
            try:
                taken = self._ready.get(timeout=left)
            except queue.Empty:
                return None
            if taken is _OVER:
                self._ready.put(_OVER)  # for the next one who waits
                return None
            with self._lock:
                self._left -= 1
            if not taken.done:
                self._credit.release()
            if self.ended:
                self._ready.put(_OVER)
            if taken is not _NOTHING:
                return taken

    # ------------------------------------------------------------------ the end

    def end(self) -> None:
        with self._lock:
            self._open = False
        self._maybe_finish()

    def _maybe_finish(self) -> None:
        """Start the copies' end when all items have been taken."""
        with self._lock:
            if self._open or self._left or self._finishing:
                return
            self._finishing = True
            if self._copies == "call" or self._state == "closed":
                self._ready.put(_OVER)  # somebody may wait for what will not come
                return
            self._left += 1  # the end's own
        try:
            self._finish_copies()
        except BaseException as error:
            self._deliver(Taken(END, [], error))

    def _finish_copies(self) -> None:
        fn = self._copy.finish_async if self._awaits else self._copy.finish  # type: ignore[attr-defined]
        self._call(fn, then=self._finished)

    def _finished(self, future: Future[Any]) -> None:
        failure = _failure(future)
        outputs = [] if failure is not None else as_outputs(future.result())
        silent = failure is None and not outputs
        self._deliver(_NOTHING if silent else Taken(END, outputs, failure))

    def close(self) -> None:
        with self._lock:
            self._open, self._finishing, self._state = False, True, "closed"
            futures, self._left = tuple(self._under_way), 0
            self._held.clear()
        for future in futures:
            kill = getattr(future, "kill", future.cancel)
            with contextlib.suppress(errors.PoolError):
                kill()
        self._credit.release(CREDIT)
        self._ready.put(_OVER)
        if self._own:
            self._executor.shutdown(wait=True, cancel_futures=True)
        if self._notify is not None:
            self._notify()

    @property
    def ended(self) -> bool:
        self._maybe_finish()
        with self._lock:
            return not self._open and self._finishing and not self._left


_NOTHING = Taken(END, [])
_OVER = Taken(END, [])  # nothing more will come: wakes whoever waits in take()


def _failure(future: Future[Any]) -> BaseException | None:
    try:
        return future.exception()
    except CancelledError as error:
        return error


class InlineLane(Lane):
    """A lane without threads: `take` does the work, in the thread that takes."""

    def __init__(self, work: Work, notify: Callable[[], None] | None = None) -> None:
        self._copy = Copy(work)
        self._notify = notify
        self._items: deque[Any] = deque()
        self._stream: tuple[Any, Any] | None = None  # the item and the generator it goes through
        self._open, self._over = True, False

    def put(self, item: Any) -> None:
        if not self._open:
            raise errors.PoolClosed("this lane takes no more items")
        self._items.append(item)
        if self._notify is not None:
            self._notify()

    def take(self, timeout: float | None = None) -> Taken | None:
        if self._stream is not None:
            return self._next_piece(*self._stream)
        if self._items:
            item = self._items.popleft()
            try:
                if self._copy.work.stream:
                    self._copy.prepare()
                    value = self._copy.work.fn(item)
                    if inspect.isgenerator(value):
                        self._stream = (item, value)
                        return self._next_piece(item, value)
                    return Taken(item, as_outputs(emitted(value)))
                return Taken(item, as_outputs(self._copy.item(item)))
            except Exception as error:
                return Taken(item, [], error)
        if self._open or self._over:
            return None
        self._over = True
        try:
            outputs = self._copy.finish()
        except Exception as error:
            return Taken(END, [], error)
        return Taken(END, outputs) if outputs else None

    def _next_piece(self, item: Any, pieces: Any) -> Taken:
        try:
            return Taken(item, [next(pieces)], None, False)
        except StopIteration:
            failure = None
        except Exception as error:
            failure = error
        self._stream = None
        return Taken(item, [], failure)

    def end(self) -> None:
        self._open = False
        if self._notify is not None:
            self._notify()

    def close(self) -> None:
        self._open, self._over = False, True
        self._items.clear()
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    @property
    def ended(self) -> bool:
        return self._over and not self._items and self._stream is None

"""async: an event loop in a thread of its own; awaits coroutines, runs plain functions in threads.

    any thread                    the loop's thread                  threads, for plain functions
    submit ──▶ backlog ──wake──▶  n calls at once, each a task  ──▶  fn(...)
    result ◀───────────────────── its outcome                   ◀──  a value, or an awaitable

Guarantees:
    * Works where a loop runs already (notebooks): it never touches that one.
    * What a call gives back decides: an awaitable, from whatever kind of callable, is awaited.
    * Never more than n calls at once, awaited or in threads.
    * A clean shutdown finishes accepted calls, then cancels what they left behind in the loop.
    * After a fork, the child's copy starts a loop of its own; the parent's calls stay there.

Invariants:
    * AIO-1  `Loop` never refers to its executor: when that is dropped, what was accepted is
      finished, and the loop ends.
    * AIO-2  `running`, and all tasks, belong to the loop's thread alone.
    * AIO-3  The loop ends only when it is closed, nothing waits and nothing runs. Once that is so
      it stays so.
    * AIO-4  A plain function's thread is made in the thread that submits it. The loop's cannot be
      relied on for that: CPython 3.12 starts no thread once the interpreter has begun to end,
      while what was accepted is still to be finished.
    * AIO-5  A stop of the loop is an occasion to look whether what the thread waits for has come,
      and says nothing else: a job that was queued late, or code of a call, may stop it at any time.
    * AIO-7  One pump is on its way at most (`due`). It says that it comes before it looks, and who
      has put a call looks afterwards: a wake of the loop, which is a system call and a change of
      threads, is for all that was put meanwhile.
    * AIO-6  What is cleaned up is cleaned up to its end, whatever the tasks do meanwhile.

The loop's life:

    state     begins when                              a job of wake()
    --------  ---------------------------------------  ------------------------------------------
    open      its thread starts                        runs, soon
    closing   close(), in any thread                   runs, soon: what was accepted is finished
    cleaning  nothing waits, nothing runs (AIO-3)      may run; a pump finds nothing to start, and
                                                       the stop that it asks for is passed (AIO-5)
    ended     cleaned up; `open` is false, the lock    is refused, and wake() says so. One that was
              says since when                          queued before is dropped: nobody waits for
                                                       it, as every call has had its outcome
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import inspect
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from .. import errors
from .._late import finalize, unbroken
from .._process import (
    DAEMON,
    KnownThread,
    end_first,
    exit_failed,
)
from .base import (
    INSIDE,
    Backlog,
    Call,
    Executor,
    Future,
    Ledger,
    Options,
    closed_error,
)
from .thread import Threads  # its exit hook is set up first, so ours runs before it

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable

    from .lanes.lane import Lane, Work

__all__ = ["Aio"]

_DEFAULT_WIDTH = 100
_PATIENCE = 0.05  # seconds for a loop in which a call was left behind
_ROUNDS = 10  # of cancelling tasks: one may start another when it is cancelled, and that, again
_ALIVE: set[Loop] = set()  # for the exit hook
_FOREIGN: list[Loop] = []  # in a forked child: the parent's


class Portion(Call):
    """A call for many items, each of which is a task: fn(item). Its outcome says only that it is
    over; who has made it is told of each item.

    What items are left when it is cancelled are their owner's (contexts/lanes/loops.py: PORT-1).
    """

    __slots__ = ("failed", "items", "number", "tasks", "told")

    def __init__(
        self, fn: Any, items: deque[Any], told: Callable[[Any, Any], bool], ledger: Ledger
    ) -> None:
        super().__init__(fn, (), {}, Options(), ledger)
        self.items = items  # which have no task yet
        self.told = told
        self.tasks: dict[Any, Any] = {}
        self.number, self.failed = len(items), 0

    def ended(self, task: Any) -> None:
        """A task has ended, and perhaps the last one."""
        self.failed += self.told(self.tasks.pop(task), task)
        self.settle()

    def settle(self) -> None:
        """It is over, if nothing of it runs or waits."""
        if not self.items and not self.tasks and not self.future.done():
            self.ledger.passed(self.number - 1, self.failed)
            self.finish(None)

    def give_up(self) -> None:
        if not self.future.cancel():  # some of it runs
            while self.items:
                self.told(self.items.popleft(), None)
            self.settle()

    def stop(self) -> None:
        """In the loop's thread: nobody wants it any more."""
        self.items.clear()
        for task in tuple(self.tasks):
            task.cancel()
        self.settle()


class Loop:
    """An event loop in a thread, and the calls that run in it."""

    def __init__(self, name: str, width: int, ledger: Ledger) -> None:
        self.name = name
        self.pid = os.getpid()
        self.width = width
        self.ledger = ledger
        self.backlog = Backlog()
        self.loop = asyncio.new_event_loop()
        self.running: set[asyncio.Task[None]] = set()
        self.plain: set[Call] = set()  # accepted, not over, in need of a thread
        self.inner: dict[int, Any] = {}  # by id of a call's future: that of its part in a thread
        self.left: set[concurrent.futures.Future[Any]] = set()  # nobody waits for them
        self.threads = Threads(name, Ledger(), width)
        self.thread = KnownThread(self._run, name, daemon=DAEMON)
        self.lock = threading.Lock()  # guards `open`: waking a loop that is closed raises
        self.open = True
        self.due = False  # AIO-7

    # ------------------------------------------------------------------ any thread

    def start(self) -> None:
        """Begin, unless it has begun.

        Raises:
            RuntimeError: There is no thread to be had; the loop is closed.
        """
        if self.thread.begun:
            return
        _ALIVE.add(self)
        try:
            self.thread.start()
        except RuntimeError:
            _ALIVE.discard(self)
            self.open = False
            self.loop.close()
            raise
        self.ledger.born()

    def accept(self, call: Call) -> None:
        if not _is_async(call.fn):
            self.plain.add(call)
            try:
                self.threads.hire(len(self.plain))  # AIO-4
            except RuntimeError:
                self.plain.discard(call)
                raise
        self.backlog.put(call)
        if not self.due:
            self.due = True
            self._have_pumped()

    @unbroken
    def _have_pumped(self) -> None:
        """Others rely on the pump that was said to come, whatever a signal handler raises here."""
        self.wake(self._pump)

    def wake(self, job: Callable[..., object], *args: Any) -> bool:
        """Have the loop's thread do a job soon; False: it has ended."""
        with self.lock:
            if self.open:
                self.loop.call_soon_threadsafe(job, *args)
            return self.open

    def close(self, *, cancel: bool = False) -> None:
        """Accept nothing more; the loop ends when nothing waits and nothing runs."""
        if self.pid != os.getpid():
            return
        self.backlog.close()
        if cancel:
            self.backlog.cancel_all()
        if self.thread.asked:
            self.wake(self._pump)
            return
        with self.lock:  # its start was broken off
            self.open = False
            self.loop.close()

    def leave(self, futures: Iterable[concurrent.futures.Future[Any]]) -> None:
        """Nobody waits for these calls any more, nor for the loop because of them."""
        late = set(futures)
        self.left |= late
        self.threads.leave(filter(None, [self.inner.get(id(future)) for future in late]))
        if self.backlog.closed:
            _ALIVE.discard(self)

    def join(self) -> None:
        if self.thread.here:
            return
        # One that is left behind may have ended by now; else it may block the loop itself.
        stuck = any(not future.done() for future in self.left)
        self.thread.join(_PATIENCE if stuck else None)

    # ------------------------------------------------------------------ the loop's thread

    def _run(self) -> None:
        INSIDE.calls, INSIDE.serves = 1, True  # it does nothing else
        asyncio.set_event_loop(self.loop)
        try:
            self._go_on_until(self._over)
            self._clean()
        finally:
            with self.lock:
                self.open = False
            asyncio.set_event_loop(None)
            self.loop.close()
            _ALIVE.discard(self)

    def _go_on_until(self, come: Callable[[], bool]) -> None:
        """Run the loop until something has come. Who brings it about stops the loop (AIO-5)."""
        while not come():
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # A task that a call has left in the loop; whatever else is there must not suffer.
                sys.excepthook(*sys.exc_info())

    def _await(self, end: asyncio.Future[Any]) -> None:
        end.add_done_callback(lambda _: self.loop.stop())
        self._go_on_until(end.done)

    def _clean(self) -> None:
        """Cancel what the calls left behind, as asyncio.run does."""
        try:
            for _ in range(_ROUNDS):
                left = asyncio.all_tasks(self.loop)
                if not left:
                    break
                for task in left:
                    task.cancel()
                self._await(asyncio.gather(*left, return_exceptions=True))
            self._await(self.loop.create_task(self.loop.shutdown_asyncgens()))
            end = self.loop.create_task(self.loop.shutdown_default_executor())
            self._await(end)
            # It takes a thread, and CPython 3.12 starts none once the interpreter has begun to end;
            # then concurrent.futures joins the executor's threads.
            with contextlib.suppress(RuntimeError):
                end.result()
        finally:
            self.threads.close()
            self.threads.join()

    def _pump(self) -> None:
        """Start as many calls as may run; end if there will be none (AIO-3)."""
        self.due = False
        while len(self.running) < self.width:
            call = self.backlog.take_now()
            if call is None:
                break
            if type(call) is Portion:
                if not self._begin_some(call):
                    self._look_soon()
                    break
            elif call.start():
                task = self.loop.create_task(self._execute(call), context=call.context)
                self.running.add(task)
                task.add_done_callback(functools.partial(self._ended, call))
            else:
                self.plain.discard(call)
        if self._over():
            self.loop.stop()

    def _begin_some(self, portion: Portion) -> bool:
        """Start as many items of a portion as may run; the rest waits behind others.

        False: as many as may run were started, and some of them are over already; so others are to
        have their turn before there are more.
        """
        if not portion.attempts:
            if not portion.start():
                return True
            portion.future._kill = functools.partial(self.wake, portion.stop)
        items, running, task_of = portion.items, self.running, self._task_of()
        ended = functools.partial(self._item_ended, portion)
        room = self.width - len(running)
        while items and room > 0:
            room -= 1
            item, context = items.popleft(), portion.context.copy()
            task = task_of(portion.fn(item), context=context)
            if task.done():
                portion.failed += portion.told(item, task)
                continue
            running.add(task)
            portion.tasks[task] = item
            task.add_done_callback(ended, context=context)
        if items:
            self.backlog.put_back(portion)
        else:
            portion.settle()
        return not items or len(running) >= self.width

    def _task_of(self) -> Callable[..., asyncio.Task[Any]]:
        """What makes a task of a coroutine. From CPython 3.12 on one that takes its first step at
        once, where that is all ours to say: what most coroutines of a pipeline do takes no more."""
        loop = self.loop
        if (
            sys.version_info < (3, 12)
            or type(loop).create_task is not asyncio.BaseEventLoop.create_task
            or loop.get_task_factory() is not None
        ):
            return loop.create_task
        return functools.partial(asyncio.Task, loop=loop, eager_start=True)

    def _item_ended(self, portion: Portion, task: asyncio.Task[Any]) -> None:
        self.running.discard(task)
        portion.ended(task)
        self._look_soon()

    def _look_soon(self) -> None:
        if not self.due:
            self.due = True
            self.loop.call_soon(self._pump)

    def _over(self) -> bool:
        return self.backlog.closed and not self.running and not len(self.backlog)

    def _ended(self, call: Call, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        self.plain.discard(call)
        self.inner.pop(id(call.future), None)
        if not call.future.done():
            # A stranger cancelled it before its first step; or what was asked whether it is tried
            # again has raised.
            error = None if task.cancelled() else task.exception()
            call.fail(concurrent.futures.CancelledError() if error is None else error)
        self._look_soon()

    async def _execute(self, call: Call) -> None:
        """One call, with its retries, from its start to its outcome."""
        while True:
            error: BaseException
            try:
                limit = None
                if call.options.timeout is None:
                    value = await self._value(call)
                else:
                    async with asyncio.timeout(call.options.timeout) as limit:
                        value = await self._value(call)
            except TimeoutError as failure:
                late = limit is not None and limit.expired()
                error = _late(call) if late else failure
            except asyncio.CancelledError:
                # As every executor says it; asyncio's own would end who awaits the future.
                call.fail(concurrent.futures.CancelledError())
                return
            except BaseException as failure:
                error = failure
            else:
                if type(value) is not _Raised:
                    call.finish(value)
                    return
                error = value.error
            if not call.again(error):
                call.fail(error)
                # A cycle: the exception's traceback has this frame.
                del call, error
                return
            call.start()
            del error

    async def _value(self, call: Call) -> Any:
        stop = functools.partial(self.wake, _current_task().cancel)
        try:
            if call not in self.plain:
                call.future._kill = stop
                return await call.fn(*call.args, **call.kwargs)
            call.future._kill = None  # a thread cannot be stopped
            value = await self._outcome(self._in_thread(call))
            if inspect.isawaitable(value):
                call.future._kill = stop
                value = await value
            return value
        finally:
            del call  # a cycle: the exception's traceback has this frame

    def _in_thread(self, call: Call) -> concurrent.futures.Future[Any]:
        """Have a plain function called in a thread."""
        inner = Call(
            contextvars.copy_context().run,
            (_call, call.fn, call.args, call.kwargs),
            {},
            Options(),
            self.threads.ledger,
        )
        self.threads.accept(inner)
        self.inner[id(call.future)] = inner.future
        return inner.future

    async def _outcome(self, future: concurrent.futures.Future[Any]) -> Any:
        """A thread's outcome. It may come when the loop is closed: asyncio's own way would then
        use the loop's socket, or print a traceback."""
        told = self.loop.create_future()
        future.add_done_callback(lambda _: self.wake(_tell, told))
        try:
            await told
        except asyncio.CancelledError:
            future.cancel()
            raise
        try:
            return future.result()
        finally:
            del future  # a cycle: the exception's traceback has this frame


def _tell(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


class _Raised:
    """What a plain function raised; StopIteration would not pass an asyncio future."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _call(fn: Any, args: Any, kwargs: Any) -> Any:
    try:
        return fn(*args, **kwargs)
    except StopIteration as error:
        return _Raised(error)


def _late(call: Call) -> errors.TaskTimeout:
    limit = call.options.timeout or 0.0
    return errors.TaskTimeout(
        f"the call ran longer than its timeout of {limit:g} s, so it was cancelled",
        timeout=limit,
        attempts=call.attempts,
    )


def _is_async(fn: Any) -> bool:
    """Whether calling it makes a coroutine and does nothing else: then the loop may call it."""
    if errors.is_coroutine_function(fn):
        return True
    while isinstance(fn, functools.partial):
        fn = fn.func
    called = getattr(type(fn), "__call__", None)  # noqa: B004  # not whether, but which
    return inspect.iscoroutinefunction(called)


class Aio(Executor):
    """Runs calls in an event loop of its own, up to n at once.

    Coroutine functions are called in the loop; anything else in a thread, and if it gives back an
    awaitable that is awaited in the loop. What needs the running loop at its call (such as
    ``asyncio.gather``) goes into an ``async def``. A call sees the context variables of its
    submit. A plain function that runs in its thread cannot be stopped: it goes on after a timeout.

    Args:
        max_workers: How many calls at once; None: 100.
        name: What the threads are called.
    """

    type = "async"
    kills = True

    def __init__(self, max_workers: int | None = None, *, name: str | None = None) -> None:
        super().__init__(_DEFAULT_WIDTH if max_workers is None else max_workers, name=name)
        self._closed = False
        self._lock = threading.Lock()  # guards the start of the loop
        self._loop: Loop | None = None

    def _here(self) -> None:
        """After a fork this is the child's: the parent's loop stays there."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.Lock()
            if self._loop is not None:
                # Never freed: closing it would change the epoll set, which the parent uses.
                _FOREIGN.append(self._loop)
                self._loop = None
            self.ledger = Ledger()

    def _check_process(self) -> None:
        self._here()

    def _check_open(self) -> None:
        self._here()
        if self._closed:
            raise closed_error()

    def _accept(self, call: Call) -> None:
        self._check_open()
        call.ledger = self.ledger
        call.context = contextvars.copy_context()
        with self._lock:
            if self._loop is None:
                self._loop = Loop(self.name, self.width, self.ledger)
            if not self._loop.thread.asked:  # again, if that was broken off
                finalize(self, self._loop.close).atexit = False
            try:
                self._loop.start()
            except RuntimeError:
                self._loop = None
                raise
            loop = self._loop
        loop.accept(call)

    def _waiting(self) -> int:
        return 0 if self._loop is None else len(self._loop.backlog)

    def wake(self, waiter: asyncio.Future[None]) -> None:
        """Let a coroutine of the loop go on; nothing if the loop has ended."""
        loop = self._loop
        if loop is not None:
            loop.wake(_tell, waiter)

    def lane(self, work: Work, notify: Callable[[], None] | None = None) -> Lane:
        """A lane that runs one stage's work here; it awaits what the stage gives back."""
        if work.stream or work.timeout is not None or not inspect.iscoroutinefunction(work.fn):
            from .lanes.calls import AsyncLane

            return AsyncLane(self, work, notify)
        from .lanes.loops import LoopLane

        return LoopLane(self, work, notify)

    def _begin_all(
        self, fn: Callable[[Any], Any], items: deque[Any], told: Callable[[Any, Any], bool]
    ) -> Future[Any]:
        """For a lane: await fn(item) for each, and tell of each task's end.

        Args:
            fn: A coroutine function.
            items: What is given up before it has begun is left in there.
            told: Called with an item and its task, None if it never had one; whether it failed.

        Returns:
            What is done when all of them are.

        Raises:
            PoolClosed: The executor was shut down.
        """
        portion = Portion(fn, items, told, self.ledger)
        self._accept(portion)
        return portion.future

    def leave(self, futures: Iterable[Any]) -> None:
        if self._loop is not None:
            self._loop.leave(futures)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more, finish what was accepted, end the loop. Idempotent.

        Tasks that calls have started in the loop and left behind are cancelled.

        Args:
            wait: Return when everything is over; else at once.
            cancel_futures: Cancel accepted calls that have not started.
        """
        self._take_in(cancel_futures)
        self._here()
        self._closed = True
        with self._lock:
            loop = self._loop
        if loop is not None:
            loop.close(cancel=cancel_futures)
            if wait:
                loop.join()


def _at_exit() -> None:
    end_first()
    alive = tuple(_ALIVE)
    if not alive:  # each worker comes by here
        return
    failed = exit_failed()
    for loop in alive:
        loop.close(cancel=failed)
    if failed:
        return
    with contextlib.suppress(KeyboardInterrupt):
        for loop in alive:
            loop.join()


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_ALIVE.clear)

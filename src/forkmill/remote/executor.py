"""Remote: an engine as an Executor. Each call is an item; calls of one function go in chunks.

    submit, map ──encoded here──▶ Calls (one a function) ──▶ Courier ──▶ Backend
    Future      ◀──decoded──────────────────────────────────────┘

Guarantees: those of a context's Executor (`contexts.base`), but for these, which the engines
declare:

    * An item may run more than once when a worker dies with others of its chunk (`at_least_once`).
    * A timeout, and `Future.kill`, need an engine that can end a call (`kills`).
    * Arrays that arrive may be read-only: they lie in the engine's store.
    * Where calls run nothing of this process is there but installed packages: modules outside of
      site-packages travel by value.

Threads: everything from any. Callbacks of futures are called in the courier's thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict, deque
from concurrent.futures import _base
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from .. import _checks, errors
from .._late import WeakSet, finalize
from .._process import SHARES, end_first, exit_failed
from ..contexts.base import Call, Executor, closed_error
from ..runs.window import Results, left_error
from .backend import Blob
from .courier import AHEAD, Courier, Job, Pace
from .shares import is_open
from .there import Function, results
from .wire import WireCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..contexts.base import Future
    from ..contexts.lanes.lane import Lane, Work
    from ..runs.window import Closable, LazyCall
    from .backend import Backend
    from .courier import Flight, RemoteStats
    from .there import Came
    from .wire import Packed

__all__ = ["Remote"]

_WINDOW_BYTES = 64 << 20  # of encoded items that wait
_JOBS = 256  # functions whose last job is known still
_ALIVE: WeakSet[Courier] = WeakSet()


class _Item:
    """A call that waits, encoded."""

    __slots__ = ("buffers", "call", "data", "flight", "needs", "size")

    def __init__(self, call: Call, data: bytes, buffers: list[Any], needs: Any) -> None:
        self.call = call
        self.data = data
        self.buffers = buffers
        self.needs = needs
        self.size = len(data) + sum(memoryview(buffer).nbytes for buffer in buffers)
        self.flight: Flight | None = None


class Calls(Job):
    """The calls of one function."""

    def __init__(self, courier: Courier, codec: WireCodec, code: Blob, options: Any) -> None:
        self.code = code
        self.needs = tuple(code.held)
        self.timeout = options.timeout
        self.pace = Pace(single=courier.single or options.timeout is not None)
        self._priority = options.priority
        self._courier = courier
        self._codec = codec
        self._line: deque[_Item] = deque()
        self._size = 64.0  # bytes of an item, about

    def put(self, item: _Item) -> None:
        self._size += (item.size - self._size) / 16
        self._line.append(item)
        self._courier.wake(self)

    def window(self) -> int:
        """How many items may be pulled ahead."""
        most = (AHEAD + 1) * self._courier.backend.width * self.pace.size
        return min(most, max(1, int(_WINDOW_BYTES / self._size)))

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def urgency(self) -> int:
        return int(self._priority)

    def take(self, most: int, nbytes: int) -> list[Any]:
        line, size = self._line, 0
        items: list[Any] = []
        with contextlib.suppress(IndexError):  # they are cancelled meanwhile
            while line and len(items) < most and (not items or size + line[0].size <= nbytes):
                item = line.popleft()
                size += item.size
                items.append(item)
        return items

    def began(self, items: list[Any], flight: Flight) -> list[Any]:
        ready: list[Any] = []
        for item in items:
            call: Call = item.call
            if call.future.done() or not (call.attempts or call.start()):
                continue
            item.flight = flight
            if self._courier.backend.kills:
                call.future._kill = partial(self._kill, item)
            ready.append(item)
        return ready

    def packed(self, items: list[Any]) -> tuple[list[Any], Packed, dict[bytes, Any]]:
        needs: dict[bytes, Any] = {}
        for item in items:
            needs.update(item.needs)
        buffers = [buffer for item in items for buffer in item.buffers]
        return items, ([i.data for i in items], [len(i.buffers) for i in items], buffers), needs

    def came(self, items: list[Any], came: Came) -> None:
        # No signal comes to this thread: whatever decoding raises is the item's.
        found = results(self._codec, came, BaseException)
        for item, (good, value) in zip(items, found, strict=True):
            if good:
                _told(item.call.finish, value)
            elif item.call.again(value):
                item.call.attempts += 1
                self.put(item)
            else:
                _told(item.call.fail, value)

    def failed(self, items: list[Any], error: BaseException) -> None:
        for item in items:
            if isinstance(error, errors.PoolBroken) or item.call.attempts:
                _told(item.call.fail, error)
            else:
                _told(item.call.give_up)

    def died(self, item: Any, error: BaseException) -> bool:
        call: Call = item.call
        if isinstance(error, (errors.WorkerDied, errors.TaskTimeout)):
            error.attempts = call.attempts
        if not call.future.done() and call.again(error):
            call.attempts += 1
            return True
        _told(call.fail, error)
        return False

    def landed(self, flight: Flight) -> None:
        for item in flight.items:
            item.flight = None  # a cycle

    def cancel(self) -> None:
        """Cancel what has not begun."""
        with contextlib.suppress(IndexError):  # the courier takes meanwhile
            while self._line:
                self._line.popleft().call.give_up()

    def _kill(self, item: _Item) -> bool:
        done = item.call.future.done()
        error = errors.WorkerDied("the task was ended by Future.kill()", cause="killed")
        item.call.fail(error)
        flight = item.flight
        if flight is not None:
            self._courier.recall(flight)
        return not done


def _told(tell: Callable[..., None], *outcome: Any) -> None:
    """In the courier's thread: whatever a callback raises, the others have their outcomes."""
    try:
        tell(*outcome)
    except BaseException:
        _base.LOGGER.exception("a callback of a future has ended with")


class Remote(Executor):
    """What contexts on engines have in common.

    Args:
        backend: The engine, open.
        name: What its thread is called.
        timeout: Seconds that the engine may be silent, or without workers.
        modules: Installed modules that are sent by value all the same.
    """

    isolated: ClassVar[bool] = True
    local: ClassVar[bool] = False
    copies: ClassVar[str] = "call"

    def __init__(
        self, backend: Backend, *, name: str | None, timeout: float, modules: Sequence[str]
    ) -> None:
        super().__init__(backend.width, name=name)
        self.window = 4 * self.width
        self.codec = WireCodec(modules)
        self.courier = Courier(backend, f"{self.name}-courier", timeout)
        self.paces: dict[bytes, int] = {}  # of lanes, by function; the courier's thread adds
        self._jobs: OrderedDict[Any, Calls] = OrderedDict()
        self._sharing: dict[Any, tuple[bytes, ...]] = {}  # those that lead to shared values
        self._guard = threading.Lock()  # guards the last two
        self._closed = False
        _ALIVE.add(self.courier)
        finalize(self, self.courier.close, wait=False).atexit = False

    # ------------------------------------------------------------------ calls

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return self._submitted(fn, args, kwargs, self._options)

    submit.__doc__ = Executor.submit.__doc__

    def _submitted(self, fn: Any, args: Any, kwargs: Any, options: Any) -> Future[Any]:
        _checks.a_callable("the first argument", fn)
        if SHARES:
            fn, args, kwargs = SHARES[0].lift_call(fn, args, kwargs)
        self._check_process()
        call = Call(fn, args, kwargs, options, self.ledger)
        future = call.future
        self._accept(call)
        return future

    def _accept(self, call: Call) -> None:
        self._check_open()
        self._put(self._job(call.fn, call.options), call)

    def _job(self, fn: Any, options: Any) -> Calls:
        code, needs = self.codec.function(Function(fn))
        digest = hashlib.sha256(code).digest()
        key = digest, options.timeout, options.priority
        with self._guard:
            job = self._jobs.get(key)
            if job is None:
                job = Calls(self.courier, self.codec, Blob(digest, code, needs), options)
                self._jobs[key] = job
                if job.needs:
                    self._sharing[key] = job.needs
                while len(self._jobs) > _JOBS:
                    self._sharing.pop(self._jobs.popitem(last=False)[0], None)
            self._jobs.move_to_end(key)
            if self._sharing:
                self._let_go_of_closed()
        return job

    def _let_go_of_closed(self) -> None:
        """Functions that lead to a closed value are not sent again, and would keep its memory."""
        for key, needs in self._sharing.copy().items():
            if not all(map(is_open, needs)):
                del self._sharing[key], self._jobs[key]

    def _put(self, job: Calls, call: Call) -> None:
        data, buffers, needs = self.codec.packed_one((call.args, call.kwargs))
        call.fn = call.args = call.kwargs = None
        job.put(_Item(call, data, buffers, needs))

    def _lazy(self, call: LazyCall) -> Closable[Any]:
        return self._lazily(call, self._options)

    def _lazily(self, call: LazyCall, options: Any) -> Closable[Any]:
        self._check_process()
        self._check_open()
        fn = call.fn
        if SHARES:
            fn = SHARES[0].lift_call(fn, (), {})[0]
        job = self._job(fn, options)
        feeds: list[Any] = []

        def accept(args: Any) -> Future[Any]:
            if self._closed and not feeds[0].whole:
                raise left_error()
            if SHARES:
                args = SHARES[0].lift(args, True)
            one = Call(fn, args, {}, options, self.ledger)
            future = one.future
            self._put(job, one)
            if feeds and call.buffersize is None:
                feeds[0].window = max(least, job.window())
            return future

        least = call.buffersize or max(self.window, call.chunksize or 1)
        found = Results(accept, call, window=least)
        feeds.append(found._feed)
        if call.lasting():
            self._lasting.add(found)
        return found

    def _view(self, options: Any) -> Any:
        from .view import RemoteView

        return RemoteView(self, options)

    # ------------------------------------------------------------------ the rest of the face

    @property
    def repeats(self) -> bool:
        """Whether an item may run again when a worker dies that had others, too."""
        return self.courier.backend.at_least_once

    def stats(self) -> RemoteStats:
        """What has gone to the engine and come back so far. Any thread."""
        return self.courier.stats()

    def _check_open(self) -> None:
        self._check_process()
        if self.courier.broken is not None:
            raise self.courier.broken
        if self._closed:
            raise closed_error()

    def _waiting(self) -> int:
        return sum(job.waiting for job in self.courier.jobs if isinstance(job, Calls))

    def lane(self, work: Work, notify: Callable[[], None] | None = None) -> Lane:
        """A lane that runs one stage's work there; a chunk has a replica of the state to itself."""
        from .lane import RemoteLane

        return RemoteLane(self, work, notify)

    def kill(self) -> None:
        """Cancel everything, also what runs where that can be done."""
        self._closed = True
        self.courier.stop()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more, finish what was accepted, let go of the engine. Idempotent.

        Args:
            wait: Return when everything is over; else at once (from a callback: always at once).
            cancel_futures: Cancel accepted calls that have not started.

        Raises:
            KeyboardInterrupt: Ctrl-C while it waited: what was under way was cancelled.
        """
        if self._pid != os.getpid():
            return
        self._take_in(cancel_futures)
        self._closed = True
        if cancel_futures:
            for job in self.courier.jobs:
                if isinstance(job, Calls):
                    job.cancel()
        try:
            self.courier.close(wait)
        except KeyboardInterrupt:
            self.courier.end()
            raise

    def __exit__(self, *exc: Any) -> None:
        if isinstance(exc[1], KeyboardInterrupt):
            self._closed = True
            self.courier.end()
        self.shutdown(wait=True)


# ---------------------------------------------------------------------- at exit


def _at_exit() -> None:
    end_first()
    failed = exit_failed()
    couriers = tuple(_ALIVE)
    for courier in couriers:
        if failed:
            courier.stop()
    try:
        for courier in couriers:
            if failed:
                courier.end()
            else:
                courier.close()
    except KeyboardInterrupt:
        for courier in couriers:
            courier.end()


def _forget() -> None:
    """In a forked child: the threads are the parent's."""
    _ALIVE.clear()


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forget)

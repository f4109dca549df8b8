"""Items in, finished chunks out: what a lane over worker processes is made of.

    put ──▶ line ──chunks, sized by time──▶ workers ──▶ take: Chunk(tag.items) ──▶ read

Guarantees:
    * An item that was put is in exactly one chunk, which comes out of `take` once, whatever dies;
      `Chunk.read` then has its value or its own failure (INV-1, INV-2).
    * Few items leave at once, one by one; many leave in chunks that take a worker some 4 ms, and
      are spread over all workers. At most two chunks a worker are under way.

Threads: any; `take` from several at a time too.
"""

from __future__ import annotations

import contextlib
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import _native, errors
from .._process import LoneThread
from .maps import Stream
from .options import Options
from .tuner import MAX_CHUNK, MAX_WINDOW, Tuner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .core import Core

__all__ = ["Batches", "Portion"]

TARGET_S = 0.004  # of work in a chunk: two of them outlast a switch of the GIL
LEAST_S = 0.0002  # chunks that share a short line are not smaller than this


class Portion:
    """The tag of a chunk: the items that are in it."""

    __slots__ = ("_name", "error", "first", "items", "size", "slot")

    def __init__(
        self, name: str, items: Sequence[Any], size: int, slot: int, first: int | None = None
    ) -> None:
        self._name = name
        self.items = items
        self.first = first  # the number of its first item, of all in their order
        self.size = size
        self.slot = slot
        self.error: BaseException | None = None  # it was not accepted


class _Line:
    """Items that wait for a place, in order."""

    __slots__ = ("at", "items")

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.at = 0  # those before are gone

    def __len__(self) -> int:
        return len(self.items) - self.at

    def first(self, n: int) -> list[Any]:
        return self.items[self.at : self.at + n]

    def drop(self, n: int) -> None:
        self.at += n
        if 2 * self.at >= len(self.items):
            del self.items[: self.at]
            self.at = 0


class Batches:
    """Runs one function on items, in the workers of a pool."""

    def __init__(
        self,
        core: Core,
        fn: Callable[..., Any],
        timeout: float | None,
        most: int | None = None,
        refused: Callable[[Portion], None] | None = None,
    ) -> None:
        """Have fn ready for items.

        Args:
            core: The pool's.
            fn: Called in a worker with each item, or with nothing (see `call`).
            timeout: Seconds an item may take; None: as long as it likes.
            most: Items in a chunk; None: as many as there can be.
            refused: Called with each portion that the pool does not accept, its `error` being set.
        """
        self.core = core
        self.options = Options(timeout=timeout)
        self.function, self.name = core.temporary(fn, self.options)
        share = MAX_WINDOW // (2 * core.workers)
        most = MAX_CHUNK if most is None else most
        self._tuner = Tuner(TARGET_S, LEAST_S, share, most=most)
        self.refused = refused
        self.completions = core.native.completion_queue()
        self._lock = threading.RLock()  # guards the rest; encoding runs the user's code
        self._lines: dict[int, _Line] = {}  # by slot; -1: any
        self._under_way: dict[int, int] = {}  # chunks, by slot
        self._flying: set[_native.Chunk] = set()
        self._bytes = 0
        self._sent = 0  # items, those that were refused too
        self._encoder = core.encoder(lift=False)  # a stage looks at its items itself
        self._feeding = False
        self._held = False  # the workers must stay: a lane's state lies in them
        self._closed = False
        self._threads: list[LoneThread] = []

    def put(self, items: Sequence[Any], slot: int = -1) -> None:
        """Accept items, for one worker or any. Never blocks, never raises for the pool's sake."""
        with self._lock:
            self._hold(True)
            line = self._lines.get(slot)
            if line is None:
                line = self._lines[slot] = _Line()
            line.items.extend(items)
            if self._feeding:
                return  # from code of the user's that encoding runs: the loop goes on with it
            refused = self._feed(slot, line)
        self._refuse(refused)

    def call(self, slot: int) -> None:
        """Have fn called with nothing, on one worker: a portion without items."""
        with self._lock:
            self._encoder.add(())
            portion = self._send((), slot, _native.RUN_STAR)
        self._refuse([] if portion is None else [portion])

    def take(self, timeout: float | None, *, collector: bool = False) -> list[_native.Chunk]:
        """Chunks that are done, waiting for the first; their tags are Portions.

        Args:
            timeout: Seconds; None: as long as it takes.
            collector: Give way to threads that wait for something of their own.

        Returns:
            None in time, or closed: an empty list.
        """
        if timeout == 0:
            self.core.turn()  # outcomes may lie in the pipe
        try:
            tasks = self.completions.wait(timeout, collector=collector)
        except errors.PoolError:
            return []  # closed under us
        if not tasks:
            return tasks
        refused = []
        with self._lock:
            for task in tasks:
                self._learn(task)
            for slot, line in self._lines.items():
                if len(line):
                    refused += self._feed(slot, line)
        self._refuse(refused)
        return tasks

    def rest(self, fn: Callable[..., Any], value: Any, pid: int) -> Stream:
        """What fn(value) yields in the worker of that pid, as it comes.

        Raises:
            WorkerDied: It is gone.
            PoolError: The pool takes no more work.
        """
        slot = self.slot_of(pid)
        if slot is None:
            raise errors.WorkerDied("the worker that had begun this task is gone", pid=pid)
        task = self.core.submit(
            fn, (value,), {}, self.options, flags=_native.RUN_STREAM, slot=slot, credit=64
        )
        return Stream(self.core, task)

    def slot_of(self, pid: int) -> int | None:
        """Where the worker of that pid is; None: it is gone."""
        for worker in self.core.native.workers():
            if worker["pid"] == pid:
                return int(worker["slot"])
        return None

    def slots(self) -> list[int]:
        """Where there are workers now."""
        return [worker["slot"] for worker in self.core.native.workers() if worker["pid"]]

    def everywhere(self, fn: Callable[[], Any]) -> None:
        """Have fn called in every worker; nobody waits for it."""
        with contextlib.suppress(errors.PoolError):
            for slot in self.slots():
                self.core.submit(fn, (), {}, self.options, slot=slot)

    def watch(self, deliver: Callable[[_native.Chunk], None]) -> None:
        """Have a thread call deliver with each chunk that is done, until `close`."""

        def watch() -> None:
            while tasks := self.take(None, collector=True):
                for task in tasks:
                    deliver(task)
                del tasks, task  # nothing is kept while waiting
            self._abandon(deliver)

        self.thread(watch)

    def thread(self, job: Callable[[], None]) -> None:
        """Run a job in a thread of ours, which `close` waits for."""

        thread = LoneThread(job, f"{self.core.life.name}-lane")
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Cancel what has not started, wake and end who takes. Idempotent."""
        with self._lock:
            self._hold(False)
            self._closed = True
            self._lines.clear()
            flying, self._flying = tuple(self._flying), set()
        for task in flying:
            with contextlib.suppress(errors.PoolError):
                task.cancel()
        self.completions.close()

    def join(self, deadline: float | None = None) -> int:
        """After `close`: wait for our threads, unless this is one.

        Args:
            deadline: time.monotonic() at which nobody waits any more; None: as long as it takes.

        Returns:
            How many there still are.
        """
        left = 0
        for thread in self._threads:
            if not thread.here:
                seconds = None if deadline is None else max(0.0, deadline - monotonic())
                left += not thread.join(seconds)
        if not left and not any(thread.here for thread in self._threads):
            self._threads, self.refused = [], None  # they lead here: a cycle that keeps `function`
        return left

    def _abandon(self, deliver: Callable[[_native.Chunk], None]) -> None:
        """The queue is closed, by `close` or by the pool's end: everything has its outcome now."""
        portions = []
        with self._lock:
            if self._closed:
                return
            done, self._flying = [task for task in self._flying if task.done], set()
            error = self.core.refusal(errors.PoolClosed())
            for slot, line in self._lines.items():
                items = line.first(len(line))
                portions.append(Portion(self.name, items, 0, slot, self._number(items)))
            self._lines.clear()
        for task in done:
            deliver(task)
        for portion in portions:
            portion.error = error
        self._refuse([portion for portion in portions if portion.items])

    # ------------------------------------------------------------------ under the lock

    def _hold(self, held: bool) -> None:
        if held != self._held and not self._closed:
            self._held = held
            with contextlib.suppress(errors.PoolError):
                self.core.native.hold(1 if held else -1)

    def _learn(self, task: _native.Chunk) -> None:
        portion: Portion = task.tag
        if task in self._flying:  # else a signal handler broke `_send` off
            self._flying.discard(task)
            self._under_way[portion.slot] = max(0, self._under_way.get(portion.slot, 0) - 1)
            self._bytes = max(0, self._bytes - portion.size)
        if portion.items and task.attempts <= 1:
            self._tuner.learn(task)

    def _feed(self, slot: int, line: _Line) -> list[Portion]:
        """Send what there is place for. Returns portions that were refused."""
        refused = []
        self._feeding = True
        try:
            while n := self._room(slot, len(line)):
                refused += self._next_chunk(slot, line, n)
        finally:
            self._feeding = False
        return refused

    def _next_chunk(self, slot: int, line: _Line, n: int) -> list[Portion]:
        items = line.first(n)
        share = max(1, min(MAX_WINDOW // (2 * self.core.workers), MAX_WINDOW - self._bytes))
        count = self._encoder.fill(iter(items), n, share)
        line.drop(count)
        portion = self._send(items if count == n else items[:count], slot, _native.RUN_SHARE)
        return [] if portion is None else [portion]

    def _room(self, slot: int, waiting: int) -> int:
        """How many items the next chunk of a line may have; 0: no place."""
        places = 2 if slot >= 0 else 2 * self.core.workers
        free = places - self._under_way.get(slot, 0)
        if not waiting or free <= 0 or (self._flying and self._bytes >= MAX_WINDOW):
            return 0
        return min(self._tuner.fair(waiting, free), waiting)

    def _send(self, items: Sequence[Any], slot: int, flags: int) -> Portion | None:
        portion = Portion(self.name, items, self._encoder.size, slot, self._number(items))
        try:
            task = self.core.native.submit(
                self.function, self._encoder, flags, self.options.limit, 0, 0, 0, slot, 0,
                self.completions, portion,
            )  # fmt: skip
        except errors.PoolError as error:
            portion.error = self.core.refusal(error)
            return portion
        self._flying.add(task)
        self._under_way[slot] = self._under_way.get(slot, 0) + 1
        self._bytes += portion.size
        return None

    def _number(self, items: Sequence[Any]) -> int | None:
        """The number of the first of these items, of all in their order."""
        first = self._sent if items else None
        self._sent += len(items)
        return first

    def _refuse(self, portions: list[Portion]) -> None:
        """Tell of refused portions, without the lock."""
        refused = self.refused
        if refused is not None and not self._closed:
            for portion in portions:
                refused(portion)

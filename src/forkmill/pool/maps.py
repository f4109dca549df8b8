"""Lazy calls over inputs: `map`, `starmap`, and `stream`.

    input ──fill──▶ Encoder ──submit──▶ workers ──outcomes──▶ RecordIterator ──▶ the caller
            one chunk at a time, in C         finished chunks        item by item, in C

Guarantees: those of runs/window.py, and
    * Python code runs once a chunk; per item everything is C.

Invariants: those of runs/window.py, where work is a chunk, and
    * MAP-4  A chunk is bounded by what tasks take, by memory (pool/tuner.py), and by what its input
      takes: a chunk of free size has what an input of unknown kind gives in PULL_S. That a quick
      input is quick says nothing about tasks, and makes no chunk larger.
    * MAP-3  Two chunks a worker are under way. Where pulling cannot be observed, or the size of a
      chunk is ours to choose, a chunk counts as SPAN items at least, once their time is known: so
      the results behind a long task, which `ordered` holds back, do not stop the workers.

How items travel: a chunk is one message to a worker and comes back when all of it is done. With an
explicit `chunksize` and `ordered=False` the user has chunks of that size; as soon as their time is
known, many share a message of about TARGET_S of work, and it comes back (RUN_PROMPT) whenever the
iterator asks and there are new results. What then waits behind a long task is taken back by the
core when another worker is idle.

Threads: as runs/window.py.
"""

from __future__ import annotations

import contextlib
import sys
from _thread import get_ident
from typing import TYPE_CHECKING, Any

from .. import _native, errors
from .._late import unbroken
from .._process import interrupted
from ..runs.window import Input, WindowIterator, as_failure
from .tuner import MAX_CHUNK, MAX_WINDOW, Tuner

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Container, Iterable, Iterator

    from ..runs.window import LazyCall
    from .core import Core
    from .options import Options

__all__ = ["Feed", "Items", "MapIterator", "Stream"]

TARGET_S = 0.004  # of work in a chunk: each message that comes takes a CPU from a worker
PULL_S = 0.002  # of pulling for one
LEAST_S = 0.0001  # near the end chunks get smaller, but not smaller than this
FIRST = 8  # items of the first chunks of a call that was measured before, as these may be slower
KNOWN = 64  # parts of the items, one of which they are at most
SPAN = 256  # items that a chunk stands for in a window, at least (MAP-3)


class Chunk:
    """The tag of a chunk: what the feed has to know when it is consumed."""

    __slots__ = ("_name", "done", "first", "size")

    def __init__(
        self, name: str, size: int, first: int, done: Callable[[_native.Chunk], None] | None
    ) -> None:
        self._name = name
        self.size = size
        self.first = first  # the number of its first item, in the input
        self.done = done

    def deliver(self, task: _native.Chunk) -> None:
        """An event loop's port has the finished chunk (`amap`)."""
        if self.done is not None:
            self.done(task)


class Feed(Input[_native.Chunk]):
    """Pulls chunks from an input and submits them, within the window."""

    def __init__(
        self,
        core: Core,
        call: LazyCall,
        options: Options,
        *,
        completions: _native.CompletionQueue | None = None,
        done: Callable[[_native.Chunk], None] | None = None,
        prompt: bool = False,
    ) -> None:
        chunksize, buffersize = call.chunksize, call.buffersize
        self.core = core
        self.options = options
        self.own = call.own
        self.completions = completions
        self.done = done
        self.function, self.name = core.for_map(call, options)
        self.quick = call.quick()
        self.flags, self.source = _records(call)
        self.encoder = core.encoder(star=bool(self.flags & _native.RUN_STAR))
        self.two_each = 2 * core.workers
        # Bytes that one chunk may have: each worker shall get some of the window.
        self.share = MAX_WINDOW // self.two_each
        self.buffersize = buffersize
        most = MAX_CHUNK if buffersize is None else buffersize
        # Items of a message: a multiple of `unit`, as many as the tuner says.
        self.unit = 1 if chunksize is None else min(chunksize, most, MAX_CHUNK)
        self.free = chunksize is None
        prompt = prompt and not self.free
        self.flags |= options.run | (_native.RUN_PROMPT if prompt else 0)
        self.flags |= _native.RUN_SHARE if self.free else 0
        self.tuned = self.free or prompt
        self.left = _length(call.iterables) if self.quick and self.tuned else None
        self.wide = self.free or self.quick  # MAP-3
        if buffersize is not None:
            most //= self.two_each
        elif prompt:
            most = SPAN if self.quick else 0
        limit = min(MAX_CHUNK, most) if self.tuned else 0
        self.tuner = Tuner(TARGET_S, LEAST_S, self.share, unit=self.unit, most=limit)
        # A list: the largest size of a chunk that the last call of this function came to.
        self.pace: list[int] | None = errors.mark_of(call.fn, "_forkmill_pace")
        if self.pace and self.free and self.left is not None:
            self.tuner.begin(min(*self.pace, FIRST, self.left // KNOWN))
            self.pace.clear()
        # An input of unknown kind may be slow: what it has given by then is the chunk.
        self.patience = PULL_S if self.free and not self.quick else 0.0
        self.pulled = 0
        self.held = self.bytes = self.chunks = 0  # of the window, under way (WINDOW-1)
        self.window = self._window()  # items that may be under way
        # Whether, and up to how many bytes of results, a chunk can change nothing of that.
        self.settled = not self.tuned and (buffersize is not None or not self.wide)
        self.light = sys.maxsize if self.settled else self.share // SPAN
        self.token = core.life.input_begins()

    def pull(self) -> _native.Chunk | None:
        encoder = self.encoder
        n = self._size() if self.tuned else self.unit
        share = self.share
        if self.chunks and self.whole is None:
            left = MAX_WINDOW - self.bytes
            if left <= 0 or n > self.window - self.held:
                return None
            if left < share:
                share = left
        source = self.source
        if source is None:  # stopped by a signal handler just now
            return None
        count = encoder.fill(source, n, share, self.patience)
        self.handing = True
        if self.source is None:
            return None  # the input itself, or a signal handler, ended the iterator
        ended = False
        if count < n:
            error = encoder.error
            if error is not None and interrupted(error):
                raise error  # it is not the input's, and does not wait for its turn
            self.error = error
            ended = encoder.exhausted or error is not None
        self.pulled += count
        if self.left is not None:
            self.left -= count
        task = self._submit(count) if count else None
        if ended:  # told once the last chunk is: a pool that waits for it may be dropped
            self.spent(self.error)
        return task

    def _submit(self, count: int) -> _native.Chunk | None:
        encoder, options = self.encoder, self.options
        size = encoder.size
        tag = Chunk(self.name, size, self.pulled - count, self.done)
        try:
            task = self.core.native.submit(
                self.function, encoder, self.flags, options.limit, options.retries,
                options.flags, options.priority, -1, 0, self.completions, tag,
            )  # fmt: skip
        except errors.PoolError as error:
            self.spent(self.core.refusal(error, left=True))
            return None
        self.held += count
        self.bytes += size
        self.chunks += 1
        return task

    def consumed(self, task: _native.Chunk) -> None:
        self.held -= task.fresh
        if task.all_shown:
            self.bytes -= task.tag.size
            self.chunks -= 1

    def finished(self, task: _native.Chunk) -> None:
        """Learn from a chunk once it has all its results."""
        if self.settled and task.size <= self.light:
            return
        if task.done and task.attempts <= 1:
            self.tuner.learn(task)
            if self.pace is not None:
                self.pace[:] = [max([self.tuner.fit, *self.pace])]
            self.window = self._window()
            # Of a given size, and all that is left to be learned is that results are heavy.
            self.settled = not self.tuned and self.window == self.two_each * max(self.unit, SPAN)

    def abandon(self, works: tuple[_native.Chunk, ...], *, kill: bool) -> None:
        with contextlib.suppress(errors.PoolError):
            for task in works:
                task.abandon()
            for task in works if kill and self.own else ():
                task.kill()

    def taken_back(self, work: _native.Chunk) -> bool:
        return work.outcomes == 0 and work.cancel_tail() == work.count

    def spent(self, error: BaseException | None = None) -> None:
        """As the base says; and a dropped pool need not live on for this input."""
        if self.source is not None:
            self.core.life.input_ended(self.token)
        super().spent(error)

    def _size(self) -> int:
        """How many items the next chunk may have, where that is ours to choose."""
        if self.left is not None:
            # Smaller near the end, so that the workers end together.
            return self.tuner.fair(self.left, self.two_each)
        # Nobody knows where the end is: a chunk is a share of what there was so far, and so
        # is what comes late where tasks get slower.
        n = self.pulled // self.two_each
        if n > self.tuner.fit:
            n = self.tuner.fit
        return n if n > self.unit else self.unit

    def _window(self) -> int:
        """How many items may be under way."""
        if self.buffersize is not None:
            return self.buffersize
        chunk = self.tuner.fit if self.free else self.unit
        if self.wide and self.tuner.cost and chunk < SPAN:
            # Their results wait here too, behind a long task: no more than fit.
            fit = int(self.share / self.tuner.weight)
            chunk = max(chunk, min(SPAN, fit))
        return self.two_each * chunk


def _records(call: LazyCall) -> tuple[int, Any]:
    """RUN flags and the iterator over what each record holds."""
    if call.star:
        return _native.RUN_STAR, map(tuple, call.arguments())
    if len(call.iterables) == 1:
        return 0, _iter(call.iterables[0])
    return _native.RUN_STAR, call.arguments()


def _iter(iterable: Iterable[Any]) -> Any:
    if type(iterable) is range:
        with contextlib.suppress(OverflowError):
            return _native.Numbers(iterable)
    return iter(iterable)


def _length(iterables: tuple[Any, ...]) -> int:
    return min((len(it) for it in iterables), default=0)


class Items:
    """The codec of an iterator's items: a task's StopIteration must not look like the end."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.loads = core.loads
        self.watch: Any = None

    def failure(self, what: int, body: memoryview, task: _native.Chunk) -> BaseException:
        error = as_failure(self.core.failure(what, body, task))
        if self.watch is not None:
            self.watch.failed(error)
        return error


@_native.direct_next
class MapIterator(WindowIterator[_native.Chunk], _native.RecordIterator):
    """What `map` returns: results, as they are asked for. Close it, or just drop it."""

    _feed: Feed

    def __init__(self, core: Core, call: LazyCall, options: Options) -> None:
        self._items = Items(core)
        _native.RecordIterator.__init__(self, self._items, call.return_exceptions)
        deadline = call.deadline()
        self._completions = None if call.ordered else core.native.completion_queue()
        feed = Feed(core, call, options, completions=self._completions, prompt=not call.ordered)
        self._begin(feed, deadline, ordered=call.ordered)
        if feed.source is not None and call.lasting():
            core.life.input_lasts(feed.token, self)

    def watch(self, watch: Any, total: int | None, workers: int) -> None:
        self._items.watch = watch
        super().watch(watch, total, workers)

    def _let_go(self) -> None:
        self._drop()
        if self._completions is not None:
            self._completions.close()

    def _there(self, line: deque[_native.Chunk], wait: bool) -> bool:
        completions = self._completions
        if completions is None:
            head = line[0]
            if head.ripe():
                return True
            if wait:
                return head.wait(None if self._deadline is None else self._patience())
            self._feed.core.turn()  # outcomes may lie in the pipe
            return head.ripe()
        if not line and (not wait or self._feed.quick):
            self._feed.core.turn()
            self._sort(line, completions.wait(0))
        if not line and wait:
            self._sort(line, completions.wait(self._patience()))
        return bool(line)

    def _sort(self, line: deque[_native.Chunk], batch: list[_native.Chunk]) -> None:
        """Chunks have results, some of them all."""
        self._flying.difference_update([task for task in batch if task.all_shown])
        line.extend(batch)


class Stream:
    """What `stream` returns: the outputs of one task, as they come.

    Used by one thread at a time. `close()`, or dropping it, closes the generator in the worker.
    """

    def __init__(self, core: Core, task: _native.Chunk) -> None:
        self._core: Core | None = core
        self._task: _native.Chunk | None = task
        self._cut = self._closed = False
        self._owner = get_ident()
        core.life.streams.add(self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __repr__(self) -> str:
        return f"<outputs of stream: {'more may come' if self._task else 'at their end'}>"

    def __next__(self) -> Any:
        task, core = self._task, self._core
        if task is None or core is None or self._closed:
            raise StopIteration
        self._owner = get_ident()
        try:
            return task.next_output(core)
        except StopIteration:
            if self._closed:  # by another thread
                raise
        except BaseException as failure:
            if interrupted(failure):
                self.close()
            raise
        error = task.exception(core)
        if error is None and self._cut:
            error = errors.PoolClosed("the pool was shut down before all outputs were read")
        value = None if error is not None else task.result(core)
        self._task = self._core = None
        try:
            raise StopIteration(value) if error is None else error
        finally:
            del error, self  # the exception's traceback has this frame

    def close(self) -> None:
        """Close the generator in the worker, or take the task back. Idempotent.

        From another thread: who waits in `next` gets StopIteration. Where a signal handler breaks
        it off, it can be done again, at the latest as this is dropped.
        """
        task = self._task
        if task is not None:
            self._closed = True
            with contextlib.suppress(errors.PoolError):
                task.abandon()
            self._task = self._core = None

    def cut(self, thread: int, alive: Container[int]) -> None:
        """A shutdown waits: if nobody can read on, the task must not wait to be read.

        Args:
            thread: The thread that waits.
            alive: All threads there are.
        """
        task = self._task
        if (
            task is not None
            and not task.done
            and (self._owner == thread or self._owner not in alive)
        ):
            self._cut = True
            with contextlib.suppress(errors.PoolError):
                if not task.done and not task.cancel():
                    task.close_stream()

    def kill(self) -> bool:
        """End the task by killing its worker; `WorkerDied` then comes after the outputs."""
        return self._task is not None and bool(self._task.kill())

    @unbroken
    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and getattr(self, "_task", None) is not None:
            self.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

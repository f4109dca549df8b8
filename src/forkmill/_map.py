"""Lazy calls over inputs: `map`, `starmap`, and `stream`.

    input ──fill──▶ Encoder ──submit──▶ workers ──outcomes──▶ RecordIterator ──▶ the caller
            one chunk at a time, in C         finished chunks        item by item, in C

Guarantees:
    * Whatever is pulled from the input and not yet consumed is at most the window (INV-7).
    * Python code runs once a chunk; per item everything is C.
    * An input's exception, or PoolClosed, comes after the results of all items before it.

Invariants:
    * MAP-1  A chunk counts against the window from before it is pulled until the iterator asks
      for the chunk after it: then its last item is consumed.
    * MAP-2  Finished results are handed over before an input of unknown kind is pulled again: it
      may block. Only inputs that cannot block are pulled first.
    * MAP-4  A chunk is bounded by what tasks take, by memory (_tuner.py), and by what its input
      takes: a chunk of free size has what an input of unknown kind gives in TARGET_S. That a quick
      input is quick says nothing about tasks, and makes no chunk larger.
    * MAP-3  Two chunks a worker are under way. Where pulling cannot be observed, or the size of a
      chunk is ours to choose, a chunk counts as SPAN items at least, once their time is known: so
      the results behind a long task, which `ordered` holds back, do not stop the workers.

How items travel: a chunk is one message to a worker and comes back when all of it is done. With an
explicit `chunksize` and `ordered=False` the user has chunks of that size; as soon as their time is
known, many share a message of about TARGET_S of work, and it comes back (RUN_PROMPT) whenever the
iterator asks and there are new results. What then waits behind a long task is taken back by the
core when another worker is idle.

Threads: an iterator is used by one thread at a time; another one gets ValueError, as with
generators. `close` may be called from any thread, and from a finalizer.
"""

from __future__ import annotations

import contextlib
import sys
from _thread import get_ident
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from . import _native, errors
from ._process import interrupted
from ._tuner import MAX_CHUNK, MAX_WINDOW, Tuner

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from ._core import Core
    from ._options import Options

__all__ = ["Feed", "Items", "MapIterator", "Stream"]

TARGET_S = 0.002  # of work in a chunk, the middle of 1-5 ms; of pulling for one, too
LEAST_S = 0.0001  # near the end chunks get smaller, but not smaller than this
SLOW_S = 0.010  # an input that takes longer to fill a window, two chunks a worker, is slow
SPAN = 256  # items that a chunk stands for in a window, at least (MAP-3)

# Iterating over these runs no code of the user's and never blocks.
_QUICK = frozenset({
    list, tuple, range, str, bytes, bytearray, set, frozenset, dict,
    type({}.keys()), type({}.values()), type({}.items()),
})  # fmt: skip


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


class Feed:
    """Pulls chunks from an input and submits them, within the window."""

    def __init__(
        self,
        core: Core,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        options: Options,
        *,
        star: bool,
        chunksize: int | None,
        buffersize: int | None,
        completions: _native.CompletionQueue | None = None,
        done: Callable[[_native.Chunk], None] | None = None,
        prompt: bool = False,
    ) -> None:
        self.core = core
        self.options = options
        self.completions = completions
        self.done = done
        self.function, self.name = core.for_map(fn, options)
        self.error: BaseException | None = None  # to be raised after the results
        self.quick = all(type(it) in _QUICK for it in iterables)
        self.flags, self.source = _records(iterables, star=star)
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
        self.flags |= _native.RUN_PROMPT if prompt else 0
        self.tuned = self.free or prompt
        self.left = _length(iterables) if self.quick and self.tuned else None
        self.wide = self.free or self.quick  # MAP-3
        if buffersize is not None:
            most //= self.two_each
        elif prompt:
            most = SPAN if self.quick else 0
        limit = min(MAX_CHUNK, most) if self.tuned else 0
        self.tuner = Tuner(TARGET_S, LEAST_S, self.share, unit=self.unit, most=limit)
        # An input of unknown kind may be slow: what it has given by then is the chunk.
        self.patience = TARGET_S if self.free and not self.quick else 0.0
        self.pulled = 0
        self.items = self.bytes = self.chunks = 0  # of the window, under way (MAP-1)
        self.window = self._window()  # items that may be under way
        # Whether, and up to how many bytes of results, a chunk can change nothing of that.
        self.settled = not self.tuned and (buffersize is not None or not self.wide)
        self.light = sys.maxsize if self.settled else self.share // SPAN

    def pull(self) -> _native.Chunk | None:
        """Pull, encode and submit one chunk; None if the window is full or the input is spent.

        Nothing is left to pull, now and ever, once `source` is None.
        """
        source, encoder = self.source, self.encoder
        if source is None:
            return None
        n = self._size() if self.tuned else self.unit
        share = self.share
        if self.chunks:
            left = MAX_WINDOW - self.bytes
            if left <= 0 or n > self.window - self.items:
                return None
            if left < share:
                share = left
        count = encoder.fill(source, n, share, self.patience)
        if self.source is None:
            return None  # the input itself closed the iterator
        if count < n:
            error = encoder.error
            if error is not None and interrupted(error):
                raise error  # it is not the input's, and does not wait for its turn
            if encoder.exhausted or error is not None:
                self.error, self.source = error, None
            if count == 0:
                return None
        self.pulled += count
        if self.left is not None:
            self.left -= count
        return self._submit(count)

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
            self.error, self.source = self.core.refusal(error), None
            return None
        self.items += count
        self.bytes += size
        self.chunks += 1
        return task

    def consumed(self, task: _native.Chunk) -> None:
        """The caller is through with a chunk."""
        self.items -= task.fresh
        if task.all_shown:
            self.bytes -= task.tag.size
            self.chunks -= 1

    def finished(self, task: _native.Chunk) -> None:
        """A chunk has results: learn from it once it has all."""
        if self.settled and task.size <= self.light:
            return
        if task.done and task.attempts <= 1:
            self.tuner.learn(task)
            self.window = self._window()
            # Of a given size, and all that is left to be learned is that results are heavy.
            self.settled = not self.tuned and self.window == self.two_each * max(self.unit, SPAN)

    def slow_at(self) -> float:
        """When an input that has not filled the window by then is a slow one; 0: never.

        A `buffersize` says how much is wanted, whatever that takes.
        """
        free = not self.quick and self.buffersize is None
        return monotonic() + SLOW_S if free else 0.0

    def stop(self) -> None:
        """Pull nothing more."""
        self.source = None
        self.error = None

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


def _records(iterables: tuple[Iterable[Any], ...], *, star: bool) -> tuple[int, Any]:
    """RUN flags and the iterator over what each record holds."""
    if star:
        return _native.RUN_STAR, map(tuple, iterables[0])
    if len(iterables) == 1:
        return 0, _iter(iterables[0])
    return _native.RUN_STAR, zip(*iterables)  # noqa: B905  # shortest, as the built-in map


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

    def failure(self, what: int, body: memoryview, task: _native.Chunk) -> BaseException:
        error = self.core.failure(what, body, task)
        if isinstance(error, StopIteration | StopAsyncIteration):
            wrapped = RuntimeError(f"the task raised {type(error).__name__}")
            wrapped.__cause__ = error
            return wrapped
        return error


@_native.direct_next
class MapIterator(_native.RecordIterator):
    """What `map` returns: results, as they are asked for. Close it, or just drop it."""

    def __init__(
        self,
        core: Core,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        options: Options,
        *,
        star: bool = False,
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        own: bool = False,
    ) -> None:
        super().__init__(Items(core), return_exceptions)
        self._open = False
        self._closed = True  # __del__ may come before the rest
        self._own = own
        self._deadline = None if timeout is None else monotonic() + timeout
        self._completions = None if ordered else core.native.completion_queue()
        self._feed = Feed(
            core, fn, iterables, options,
            star=star, chunksize=chunksize, buffersize=buffersize, completions=self._completions,
            prompt=not ordered,
        )  # fmt: skip
        # Ordered: chunks in their order. Unordered: finished ones; the others are in _flying.
        self._line: deque[_native.Chunk] = deque()
        self._flying: set[_native.Chunk] = set()
        self._current: _native.Chunk | None = None
        self._busy = True
        self._life = core.life
        self._token = self._life.input_begins()
        self._released = False
        self._closed = False
        self._open = True
        try:
            self._fill()
        except BaseException as error:
            self._close(kill=self._own and interrupted(error))
            raise
        finally:
            self._busy = False

    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and not getattr(self, "_closed", True):
            self.close()

    def __enter__(self) -> MapIterator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what has not started, and free everything; then it is at its end. Idempotent.

        From another thread: whoever waits in `next` gets StopIteration.
        """
        if not self._closed:
            self._close()

    def _close(self, *, kill: bool = False) -> None:
        """`close`; on a pool that is nobody's, running tasks are ended too (kill).

        A signal handler's exception may come at any place: each step can be done again, and
        `_closed` is the last one.
        """
        self._open = False
        self._feed.stop()
        self._release()
        self._drop()
        tasks = (*self._line, *self._flying)
        with contextlib.suppress(errors.PoolError):
            for task in tasks:
                task.abandon()
            for task in tasks if kill else ():
                task.kill()
        # Not emptied: another thread may be looking at them.
        self._line, self._flying = deque(), set()
        self._current = None
        if self._completions is not None:
            self._completions.close()
        self._closed = True

    def _broken_off(self) -> None:
        """A signal handler raised in `next`: nobody reads on, whoever keeps the traceback."""
        self._close(kill=self._own)

    def _release(self) -> None:
        """No more input: a dropped pool need not live on for this iterator."""
        if not self._released:
            self._life.input_ended(self._token)
            self._released = True

    # ------------------------------------------------------------------ chunk by chunk

    def _advance(self) -> _native.Chunk | None:
        """The next finished chunk (called by `__next__` when the last one is used up)."""
        if not self._open:
            return None
        if self._busy:
            raise ValueError("map iterator already executing")
        try:
            self._busy = True
            if self._current is not None:
                self._feed.consumed(self._current)
                self._current = None
            task = (
                self._ordered() if self._completions is None else self._unordered(self._completions)
            )
            if task is None or not self._open:
                self._end()
                return None
            self._feed.finished(task)
            self._current = task
            return task
        finally:
            self._busy = False

    def _failed(self) -> None:
        """An item's exception is about to be raised: nothing comes after it."""
        self.close()

    def _end(self) -> None:
        """Close, and raise what comes after the results."""
        error, self._feed.error = self._feed.error, None
        self.close()
        if error is not None:
            raise error

    def _pull(self) -> bool:
        if self._released:
            return False  # there is no more
        feed = self._feed
        task = feed.pull()
        if feed.source is None:
            self._release()
        if task is None:
            return False
        if self._completions is None:
            self._line.append(task)
        else:
            self._flying.add(task)
        if not self._open:  # closed meanwhile, by the input or by another thread
            task.abandon()
            return False
        return True

    def _fill(self) -> None:
        """Fill the window, at the call. A slow input is not waited for once there are results."""
        slow_at = self._feed.slow_at()
        while self._pull():
            if slow_at and monotonic() > slow_at and self._has_some():
                return

    def _has_some(self) -> bool:
        """Whether there is a finished chunk to yield from."""
        self._feed.core.turn()  # outcomes may lie in the pipe
        if self._completions is not None:
            return self._take(self._completions, 0)
        line = self._line
        return bool(line) and line[0].done

    def _ordered(self) -> _native.Chunk | None:
        line, feed = self._line, self._feed
        if feed.quick:
            while self._pull():
                pass
        while line or self._pull():
            head = line[0]
            if not head.done:
                if not feed.quick:
                    if self._has_some():
                        continue
                    if self._pull():
                        continue  # look again before the next pull, which may block (MAP-2)
                if self._open and not head.wait(self._patience()):
                    self._late()
                    continue
            return line.popleft() if self._open else None
        return None

    def _unordered(self, completions: _native.CompletionQueue) -> _native.Chunk | None:
        line, feed = self._line, self._feed
        if feed.quick:
            while self._pull():
                pass
        while not line and self._open:
            if self._flying and self._has_some():
                break
            if not feed.quick and self._pull():
                continue  # MAP-2, as above
            if not self._flying:
                return None
            if not self._take(completions, self._patience()) and self._open:
                self._late()
            if not self._open:
                return None
        return line.popleft() if self._open and line else None

    def _take(self, completions: _native.CompletionQueue, timeout: float | None) -> bool:
        batch = completions.wait(timeout)
        self._flying.difference_update([task for task in batch if task.all_shown])
        self._line.extend(batch)
        return bool(batch)

    def _patience(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - monotonic(), 0.0)

    def _late(self) -> None:
        if self._deadline is None or monotonic() < self._deadline:
            return  # woken for nothing: wait again
        self.close()
        raise TimeoutError("the results were not there within the timeout of the call")


class Stream:
    """What `stream` returns: the outputs of one task, as they come.

    Used by one thread at a time. `close()`, or dropping it, closes the generator in the worker.
    """

    def __init__(self, core: Core, task: _native.Chunk) -> None:
        self._core: Core | None = core
        self._task: _native.Chunk | None = task
        self._cut = False
        self._owner = get_ident()
        core.life.streams.add(self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        task, core = self._task, self._core
        if task is None or core is None:
            raise StopIteration
        self._owner = get_ident()
        try:
            return task.next_output(core)
        except StopIteration:
            if self._task is None:  # another thread has closed it
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

        From another thread: whoever waits in `next` gets StopIteration.
        """
        task = self._task
        if task is not None:
            self._task = None
            with contextlib.suppress(errors.PoolError):
                task.abandon()
            self._core = None

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

    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_end() and getattr(self, "_task", None) is not None:
            self.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

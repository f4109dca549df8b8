"""`multiprocessing.Pool`'s face on forkmill's workers: a program changes its import, nothing else.

    from forkmill.integrations.stdlib import Pool        # from multiprocessing import Pool
    from forkmill.integrations.stdlib import ThreadPool  # from multiprocessing.pool

    with Pool(4) as pool:
        pool.map(f, items)                              # a list
        pool.map_async(f, items, callback=keep)         # an AsyncResult
        for result in pool.imap_unordered(f, items): ...

Guarantees:
    * What is right with multiprocessing's pool is so here: return values, the order of callbacks
      (before a result is ready), `multiprocessing.TimeoutError`, ValueError once it is closed,
      `close` and `join` that finish everything, also what `imap` has not pulled yet.
    * A worker that dies costs the calls it ran: `WorkerDied` comes out of `get`. multiprocessing
      waits for ever.

What is different on purpose is in docs/migration.md. New code has less to learn from `ProcessPool`,
whose `map` is lazy, in order and tuned by itself.

Threads: as multiprocessing's: any thread may call anything. Callbacks run in a thread of the pool.
"""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import threading
import time
import warnings
from collections import deque
from concurrent.futures import CancelledError
from multiprocessing import TimeoutError as LateError
from multiprocessing import pool as _pool
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import errors
from .._late import unbroken
from .._process import Latch, cpus
from ..pool.process_pool import ProcessPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from ..pool.futures import Future

__all__ = ["AsyncResult", "IMapIterator", "MaybeEncodingError", "Pool", "ThreadPool"]

T = TypeVar("T")

_stock: Any = _pool  # typeshed has not all of it

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"
_AHEAD = 8  # chunks that `imap` is ahead of its reader, a worker


class MaybeEncodingError(errors.SerializationError, _stock.MaybeEncodingError):  # type: ignore[misc]
    """A result that cannot be sent: multiprocessing's class, and ours.

    Attributes:
        exc: What went wrong, as text.
        value: The value, as text.
    """

    def __init__(self, exc: Any, value: Any = "") -> None:
        Exception.__init__(self, exc)  # theirs takes other arguments than ours
        self.path = getattr(exc, "path", "")
        self.exc, self.value = str(exc), str(value)

    def __str__(self) -> str:
        return self.exc


class Pool:
    """As `multiprocessing.Pool`, on persistent workers that may die without harm to the others.

    Args:
        processes: How many workers; None: the CPUs this process may use.
        initializer: Called in every worker before its first task.
        initargs: Its arguments.
        maxtasksperchild: A worker is replaced after so many tasks (a task is a chunk, as there).
        context: A multiprocessing context: how workers start. None: as
            `multiprocessing.set_start_method` has said; else what is safe and quick here
            (`ProcessPool(start_method="auto")`).

    Raises:
        TypeError, ValueError: A wrong option.
        OSError: No process or descriptor to be had.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        self._state = "INIT"
        _check_processes(processes)
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if context is None and multiprocessing.get_start_method(allow_none=True):
            context = multiprocessing.get_context()
        self._executor: Any = ProcessPool(
            processes,
            context,
            initializer,
            () if initializer is None else tuple(initargs),
            max_tasks_per_child=maxtasksperchild,
        )
        self._opened()

    def _opened(self) -> None:
        self._open: set[IMapIterator[Any]] = set()  # with input left
        self._state = RUN

    # ------------------------------------------------------------------ one call

    def apply(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
    ) -> T:
        """Call ``func(*args, **kwds)`` in a worker, and wait for what it returns."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """As `apply`, without waiting.

        Args:
            func: What to call.
            args: Its arguments.
            kwds: Its keyword arguments.
            callback: Called with the value, before the result is ready.
            error_callback: Called with the exception instead.

        Raises:
            ValueError: The pool was closed.
            SerializationError: func or an argument cannot be sent.
        """
        self._check_running()
        future = self._executor.submit(func, *args, **kwds)
        return AsyncResult([future], _first, callback, error_callback)

    # ------------------------------------------------------------------ many calls

    def map(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[T]:
        """The list of ``func(item)``; raises the first failure once all calls have ended."""
        return self.map_async(func, iterable, chunksize).get()

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[T]:
        """The list of ``func(*item)``; see `map`."""
        return self.starmap_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """As `map`, without waiting.

        Args:
            func: What to call.
            iterable: The items. All are taken and sent now.
            chunksize: Items sent to a worker at once; None: a quarter of each worker's share.
            callback: Called with the list, before the result is ready.
            error_callback: Called with the first exception instead.

        Raises:
            ValueError: The pool was closed.
        """
        return self._all(False, func, iterable, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """As `starmap`, without waiting; see `map_async`."""
        return self._all(True, func, iterable, chunksize, callback, error_callback)

    def _all(
        self, star: bool, func: Any, iterable: Iterable[Any], chunksize: int | None,
        callback: Any, error_callback: Any,
    ) -> AsyncResult[list[Any]]:  # fmt: skip
        self._check_running()
        sized: Any = iterable if hasattr(iterable, "__len__") else list(iterable)
        if chunksize is None:
            chunksize = -(-len(sized) // (4 * self._processes)) or 1
        items, futures = iter(sized), []
        try:
            while chunk := tuple(itertools.islice(items, chunksize)):
                futures.append(self._executor.submit(_call_all, func, star, chunk))
        except Exception as error:  # of the input, or of an item that cannot be sent
            return AsyncResult(futures, _joined, None, error_callback, error)
        return AsyncResult(futures, _joined, callback if futures else None, error_callback)

    def imap(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator[T]:
        """An iterator over ``func(item)``, in order.

        Args:
            func: What to call.
            iterable: The items; they are pulled as results are read, a few chunks a worker ahead,
                and all of them by `close`.
            chunksize: Items sent to a worker at once.

        Raises:
            ValueError: The pool was closed, or a wrong chunksize.
        """
        return self._some(func, iterable, chunksize, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator[T]:
        """As `imap`, in the order in which calls end."""
        return self._some(func, iterable, chunksize, ordered=False)

    def _some(
        self, func: Any, iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> IMapIterator[Any]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        return IMapIterator(self, func, iterable, chunksize, ordered=ordered)

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Take no more calls. What was given is finished; input of `imap` is pulled now."""
        if self._state == RUN:
            self._state = CLOSE
            for results in tuple(self._open):  # other threads read them, and end some
                results.take_in()
            self._executor.shutdown(wait=False)

    def terminate(self) -> None:
        """End the workers now, whatever they run: what has not ended raises."""
        if self._state != TERMINATE:
            self._state = TERMINATE
            self._open.clear()
            self._end_now()

    def _end_now(self) -> None:
        self._executor.terminate_workers()

    def join(self) -> None:
        """Wait until everything is over, after `close` or `terminate`.

        Raises:
            ValueError: Neither was called.
        """
        if self._state == RUN:
            raise ValueError("Pool is still running")
        self._executor.shutdown(wait=True)

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.terminate()

    @unbroken
    def __del__(self, _warn: Any = warnings.warn, _run: str = RUN) -> None:
        if self._state == _run:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} state={self._state} pool_size={self._processes}>"

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    @property
    def _processes(self) -> int:
        return int(self._executor._max_workers)

    @property
    def _pool(self) -> list[Any]:
        """The workers, as far as programs look at those of multiprocessing's pool."""
        return list(self._executor._processes.values())


class ThreadPool(Pool):
    """As `multiprocessing.pool.ThreadPool`: `Pool`'s face on threads of this process.

    Nothing is sent or copied. `terminate` cancels what has not started, and does not wait for what
    runs: a thread cannot be stopped.

    Args:
        processes: How many threads; None: the CPUs this process may use.
        initializer: Called in every thread before its first task.
        initargs: Its arguments.

    Raises:
        TypeError, ValueError: A wrong option.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        from ..contexts.thread import Thread  # the contexts are not for who wants processes alone

        self._state = "INIT"
        _check_processes(processes)
        threads = processes or cpus()
        self._executor = Thread(
            threads,
            min_workers=threads,
            initializer=initializer,
            initargs=() if initializer is None else tuple(initargs),
        )
        self._opened()

    def _end_now(self) -> None:
        executor = self._executor
        executor.shutdown(wait=False, cancel_futures=True)
        at = tuple(executor._threads.at.values())  # at once: threads come and go meanwhile
        executor.leave([future for future in at if future is not None])

    @property
    def _pool(self) -> list[Any]:
        """The threads."""
        return list(self._executor._threads.alive)


class AsyncResult(Generic[T]):
    """What is, or will be, the value of `apply_async`, `map_async` and `starmap_async`."""

    def __init__(
        self,
        futures: list[Future[Any]],
        value: Callable[[list[Future[Any]]], T],
        callback: Callable[[T], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        error: BaseException | None = None,
    ) -> None:
        self._futures = futures
        self._make = value
        self._callback, self._error_callback = callback, error_callback
        self._lock = threading.Lock()  # held by the one that looks at the outcome
        self._outcome: tuple[bool, Any] | None = None if error is None else (False, error)
        self._told: Latch | None = None  # when callbacks were called
        if callback is None and error_callback is None:
            return
        self._told = Latch()
        self._left = itertools.count(len(futures) - 1, -1)
        for future in futures:
            future.add_done_callback(self._one)
        if not futures:
            self._tell()

    def ready(self) -> bool:
        """Whether the call has ended, and the callback too."""
        if self._told is not None:
            return self._told.is_set()
        return all(future.done() for future in self._futures)

    def successful(self) -> bool:
        """Whether it ended without an exception.

        Raises:
            ValueError: It has not ended.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._look()[0]

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is ready, or for so many seconds."""
        if self._told is not None:
            self._told.wait(timeout)
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        for future in self._futures:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not _ended(future, left):
                return

    def get(self, timeout: float | None = None) -> T:
        """The value.

        Args:
            timeout: Seconds to wait; None: as long as it takes.

        Raises:
            multiprocessing.TimeoutError: It was not ready in time.
            Exception: What the call raised; of a map the first.
        """
        self.wait(timeout)
        if not self.ready():
            raise LateError
        good, value = self._look()
        if good:
            result: T = value
            return result
        try:
            raise value
        finally:
            del value, self  # the exception's traceback has this frame

    def _look(self) -> tuple[bool, Any]:
        """Whether it ended well, and its value or exception. All have ended."""
        with self._lock:
            if self._outcome is None:
                raised = (e for e in map(_error, self._futures) if e is not None)
                error = next(raised, None)
                good = error is None
                self._outcome = (good, self._make(self._futures) if good else error)
            self._futures = []
            return self._outcome

    def _one(self, _: Future[Any]) -> None:
        if next(self._left) == 0:
            self._tell()

    def _tell(self) -> None:
        assert self._told is not None
        try:
            good, value = self._look()
            callback: Any = self._callback if good else self._error_callback
            if callback is not None:
                callback(value)
        finally:
            self._told.set()


class IMapIterator(Generic[T]):
    """What `imap` and `imap_unordered` return: results, as they are asked for."""

    def __init__(
        self, pool: Pool, func: Any, iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> None:
        self._pool: Pool | None = pool
        self._executor = pool._executor
        self._func, self._size, self._ordered = func, chunksize, ordered
        self._source: Iterator[Any] | None = iter(iterable)
        self._error: BaseException | None = None  # of the input, after the results
        self._window = _AHEAD * pool._processes
        self._flying = 0  # chunks that are not read
        self._line: deque[Future[Any]] = deque()  # ordered: all of them
        self._done: queue.SimpleQueue[Future[Any]] = (
            queue.SimpleQueue()
        )  # unordered: those that ended
        self._results: deque[Any] = deque()  # of the chunk that is being read
        self._lock = threading.RLock()  # held by the one that pulls or reads
        pool._open.add(self)
        with self._lock:
            self._fill()

    def __iter__(self) -> IMapIterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """The next result.

        Args:
            timeout: Seconds to wait; None: as long as it takes.

        Raises:
            multiprocessing.TimeoutError: There was none in time; ask again.
            StopIteration: There are no more.
            Exception: What the call raised.
        """
        with self._lock:
            if self._results:
                first: T = self._results.popleft()
                return first
            self._fill()
            if not self._flying:
                self._end()
            future = self._ended(timeout)
            self._flying -= 1
            error = _error(future)
            if error is None:
                self._results.extend(future.result())
                self._fill()
                return self._results.popleft()  # type: ignore[no-any-return]
            if self._size > 1:  # as in multiprocessing, nothing comes after such a chunk
                self._spent()
                self._flying, self._line = 0, deque()
        try:
            raise error
        finally:
            del error, future, self  # the exception's traceback has this frame

    def take_in(self) -> None:
        """Pull all that is left of the input: the pool is closed."""
        with self._lock:
            self._window = 1 << 62
            self._fill()

    def _fill(self) -> None:
        while self._source is not None and self._flying < self._window:
            try:
                chunk = tuple(itertools.islice(self._source, self._size))
                if not chunk:
                    self._spent()
                    return
                future = self._executor.submit(_call_all, self._func, False, chunk)
            except Exception as error:
                self._spent(error)
                return
            self._flying += 1
            if self._ordered:
                self._line.append(future)
            else:
                future.add_done_callback(self._done.put)

    def _spent(self, error: BaseException | None = None) -> None:
        self._source, self._error = None, error
        if self._pool is not None:
            self._pool._open.discard(self)
            self._pool = None

    def _ended(self, timeout: float | None) -> Future[Any]:
        """The next chunk that has ended."""
        if not self._ordered:
            try:
                return self._done.get(timeout=timeout)
            except queue.Empty:
                raise LateError from None
        if not _ended(self._line[0], timeout):
            raise LateError
        return self._line.popleft()

    def _end(self) -> None:
        error, self._error = self._error, None
        if error is None:
            error = StopIteration()
        try:
            raise error
        finally:
            del error, self  # the exception's traceback has this frame


def _check_processes(processes: int | None) -> None:
    if processes is not None and processes < 1:
        raise ValueError("Number of processes must be at least 1")


# ---------------------------------------------------------------------- outcomes


def _ended(future: Future[Any], timeout: float | None) -> bool:
    """Wait for a future; False: it was not done in time."""
    try:
        future.exception(timeout)
    except CancelledError:
        return True
    except TimeoutError:
        return future.done()
    return True


def _error(future: Future[Any]) -> BaseException | None:
    """What a call that has ended has raised, as multiprocessing's users know it."""
    try:
        error = future.exception()
    except CancelledError as cancelled:
        return cancelled
    if isinstance(error, errors.SerializationError):
        return MaybeEncodingError(error)
    if error is not None:
        cause = errors.slot(error, "__cause__")
        if isinstance(cause, errors.RemoteTraceback):
            errors.set_slot(error, "__cause__", _stock.RemoteTraceback(cause.tb))
    return error


def _first(futures: list[Future[Any]]) -> Any:
    return futures[0].result()


def _joined(futures: list[Future[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(future.result() for future in futures))


# ---------------------------------------------------------------------- in the worker


def _call_all(func: Any, star: bool, items: tuple[Any, ...]) -> list[Any]:
    """A chunk of calls."""
    return list(itertools.starmap(func, items) if star else map(func, items))

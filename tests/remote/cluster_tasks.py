"""What tests send to clusters."""

from __future__ import annotations

import os
import time
from typing import Any

import forkmill as fm


def double(x: int) -> int:
    return 2 * x


def dies_at_77(x: int) -> int:
    if x == 77:
        os._exit(3)
    return x


def dies(x: int) -> int:
    os._exit(3)


def sleeps(x: float) -> float:
    time.sleep(x)
    return x


def add_one(x: int) -> int:
    return x + 1


def halves(add_one: int) -> list[int]:
    return [add_one // 2, add_one - add_one // 2]


def weighed(add_one: int, weights: Any) -> int:
    return add_one + len(weights)


def joined(halves: list[int], weighed: int) -> int:
    return sum(halves) + weighed


DIAMOND = [add_one, halves, weighed, joined]


def start_dask(workers: int = 2) -> Any:
    """A cluster of so many worker processes."""
    import dask
    from distributed import LocalCluster

    # On a busy machine a worker that died takes longer to come back than Dask waits for it.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        return LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50
        )


def start_ray(raylets: int = 2) -> Any:
    """A cluster of so many raylets, of one CPU each."""
    from ray.cluster_utils import Cluster

    one = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**one, "include_dashboard": False})
    for _ in range(raylets - 1):
        cluster.add_node(**one)
    return cluster


class Clustered:
    """A cluster of a kind, and the spec of a context on it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __enter__(self) -> Any:
        if self.kind == "dask":
            self.cluster = start_dask()
            address = self.cluster.scheduler_address
            return lambda: fm.on_dask(address, 2)
        self.cluster = start_ray()
        address = self.cluster.address
        return lambda: fm.on_ray(2, address)

    def __exit__(self, *exc: object) -> None:
        if self.kind == "dask":
            self.cluster.close()
        else:
            import ray

            ray.shutdown()
            self.cluster.shutdown()

"""What tests send to clusters."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from clusters import children, gone

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


class DaskCluster:
    """A scheduler and so many workers, each a process of its own; none is ours."""

    def __init__(self, workers: int = 2) -> None:
        self.folder = tempfile.TemporaryDirectory()
        file = os.path.join(self.folder.name, "scheduler.json")
        failures = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}

        def start(kind: str, *options: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", f"distributed.cli.{kind}", "--scheduler-file", file]
            return subprocess.Popen(
                [*command, "--no-dashboard", *options], env={**os.environ, **failures},
                cwd=self.folder.name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

        self.processes = [start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")]
        self.processes += [start("dask_worker", "--nthreads", "1") for _ in range(workers)]
        while not (os.path.exists(file) and os.path.getsize(file)):
            time.sleep(0.05)
        with open(file) as told:
            self.address = json.load(told)["address"]

    def kill_head(self) -> None:
        self.processes[0].kill()

    def stop_head(self) -> None:
        self.processes[0].send_signal(signal.SIGSTOP)

    def shutdown(self) -> None:
        below = [pid for process in self.processes for pid in children(process.pid)]
        pids = [*below, *(process.pid for process in self.processes)]
        for process in reversed(self.processes):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        if not gone(pids, 10):  # a busy machine, or a scheduler that was killed
            _kill(pids)
        for process in self.processes:
            process.wait()
        self.folder.cleanup()


def fails_at_3(x: int) -> int:
    if x == 3:
        raise ValueError(x)
    return x


class RayCluster:
    """So many raylets, of one CPU each."""

    def __init__(self, raylets: int = 2) -> None:
        from ray.cluster_utils import Cluster

        one = {"num_cpus": 1, "object_store_memory": 100 << 20}
        head = {**one, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(raylets - 1):
            self.cluster.add_node(**one)
        self.address = self.cluster.address
        self.stopped: subprocess.Popen[bytes] | None = None

    def kill_head(self) -> None:
        self.cluster.head_node.kill_gcs_server()

    def stop_head(self) -> None:
        (head,) = self.cluster.head_node.all_processes["gcs_server"]
        self.stopped = head.process
        self.stopped.send_signal(signal.SIGSTOP)

    def kill_raylet(self) -> None:
        self.cluster.head_node.kill_raylet()

    def shutdown(self) -> None:
        import ray

        below = children(os.getpid())
        if self.stopped is not None:
            self.stopped.send_signal(signal.SIGCONT)  # else Ray waits for it
        ray.shutdown()
        self.cluster.shutdown()
        if not gone(below, 3):  # its agents, who look for a head that was killed
            _kill(below)


def _kill(pids: list[int]) -> None:
    """Those of our own that do not end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Clustered:
    """A cluster of a kind, and the spec of a context on it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __enter__(self) -> Any:
        self.cluster: Any = DaskCluster() if self.kind == "dask" else RayCluster()
        return self.spec

    def spec(self, **options: Any) -> Any:
        """What connects to it."""
        if self.kind == "dask":
            return fm.on_dask(self.cluster.address, 2, **options)
        return fm.on_ray(2, self.cluster.address, **options)

    def __exit__(self, *exc: object) -> None:
        self.cluster.shutdown()

"""dask: calls run in the workers of a Dask cluster.

    submit ──▶ Courier ──Client.submit──▶ scheduler ──▶ a worker's thread: there.run

Guarantees: those of `executor`; and of Dask's own:

    * A call that runs cannot be stopped: no timeouts, and `Future.kill` takes back what waits.
    * A worker's death costs the item that did it, if a nanny starts another worker (it does, by
      default). Dask charges it to all that the worker had; who is alone is asked twice.

Threads: any.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
from concurrent.futures import CancelledError
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar

from .. import errors
from .._process import cpus
from .cluster import Cluster
from .local import Local
from .there import PROBE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Dask", "DaskBackend"]

_numbers = itertools.count(1)
_QUIET = 50  # of logging: Dask's own tell of each worker that is ended
_LOST = ("scheduler-connection-lost", "scheduler-restart")  # why Dask cancels by itself


class DaskBackend:
    """A Dask cluster, seen through a client.

    Args:
        client: A `distributed.Client`.
        close: Called at the end.
        width: How many calls at once; None: as many as the workers have threads.
        timeout: Seconds to wait for the scheduler, and for a first worker.
    """

    title = "the Dask cluster"
    kills = False
    at_least_once = True
    keeps = False
    views = False
    blames = True
    patience = math.inf

    def __init__(
        self, client: Any, close: Callable[[], None], width: int | None, timeout: float
    ) -> None:
        self._client = client
        self._close = close
        self._prefix = f"forkmill-{os.getpid()}-{next(_numbers)}"
        self._keys = itertools.count()
        threads = self._threads(timeout)
        self.width = width or max(1, threads)

    def _threads(self, timeout: float) -> int:
        """How many threads its workers have; waits for the first worker."""
        until = monotonic() + timeout
        while True:
            known = self._ncores(max(0.1, until - monotonic()))
            if known:
                return sum(known.values())
            if monotonic() >= until:
                raise errors.PoolBroken(f"{self.title} has no workers (waited {timeout:g} s)")
            sleep(0.05)

    def _ncores(self, timeout: float) -> dict[str, int]:
        client = self._client
        cores: dict[str, int] = client.sync(client.scheduler.ncores, callback_timeout=timeout)
        return cores

    def probed(self, timeout: float) -> Any:
        """What one worker says of itself (`there.PROBE`).

        Raises:
            PoolBroken: It does not answer in time.
        """
        future = self._client.submit(eval, PROBE, pure=False, key=self._key())
        try:
            return future.result(timeout=timeout)
        except TimeoutError:
            raise errors.PoolBroken(
                f"{self.title} has not answered a first call within {timeout:g} s"
            ) from None

    def _key(self) -> str:
        return f"{self._prefix}-{next(self._keys)}"

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        try:
            future = self._client.submit(fn, *args, pure=False, key=self._key())
            return _Promise(self._client, future)
        except (OSError, RuntimeError) as error:
            raise errors.PoolBroken(f"{self.title} takes no calls any more: {error}") from error

    def submit_timed(self, seconds: float, fn: Callable[..., Any], /, *args: Any) -> Any:
        raise NotImplementedError("Dask cannot stop a call that runs")

    def cancel(self, future: Any, force: bool) -> bool:
        with contextlib.suppress(Exception):
            self._client.cancel([future.inner], asynchronous=False, reason="forkmill")
            return True
        return False

    def share(self, data: Any) -> Any:
        return bytes(data)

    def look(self) -> str | None:
        try:
            return None if self._ncores(5) else "has no workers"
        except Exception as error:
            return f"does not answer ({type(error).__name__})"

    def close(self) -> None:
        close, self._close = self._close, _nothing
        close()


class _Promise:
    """A future of Dask's, and what it gives: that is on its way here before anybody asks."""

    __slots__ = ("_reply", "inner")

    def __init__(self, client: Any, inner: Any) -> None:
        self.inner = inner
        loop = client.loop.asyncio_loop
        self._reply = asyncio.run_coroutine_threadsafe(_fetched(client, inner), loop)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        self._reply.add_done_callback(fn)

    def result(self) -> Any:
        return self._reply.result()


async def _fetched(client: Any, inner: Any) -> Any:
    from distributed.scheduler import KilledWorker

    try:
        return await client.gather(inner, asynchronous=True)
    except KilledWorker as error:
        where = getattr(getattr(error, "last_worker", None), "address", "")
        raise errors.WorkerDied(
            f"the Dask worker {where} that had this task is gone", cause="exit"
        ) from None
    except CancelledError as error:
        if getattr(error, "reason", "") in _LOST:
            raise errors.PoolBroken(f"{DaskBackend.title} is gone: {error}") from error
        raise
    except OSError as error:  # TimeoutError, too
        raise errors.PoolBroken(f"{DaskBackend.title} is gone: {error}") from error


def _nothing() -> None:
    """It is closed."""


def _start(width: int) -> Any:
    import dask
    from distributed import LocalCluster

    class Cluster(LocalCluster):  # type: ignore[misc]
        """A worker that died comes back, however long a busy machine takes to start it."""

        def _update_worker_status(self, op: Any, msg: Any) -> None:
            with dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}):
                super()._update_worker_status(op, msg)

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        return Cluster(
            n_workers=width, threads_per_worker=1, processes=True, dashboard_address=None,
            silence_logs=_QUIET,
        )  # fmt: skip


def _grow(cluster: Any, width: int) -> None:
    cluster.scale(width)


def _end(cluster: Any) -> None:
    cluster.close(timeout=10)


_LOCAL = Local(_start, _grow, _end)


class Dask(Cluster):
    """Runs calls in the workers of a Dask cluster.

    Args:
        max_workers: How many calls at once; None: as many as its workers have threads. Without an
            address: how many workers are started.
        address: The scheduler's address ("tcp://head:8786"), or a `distributed.Client`, which is
            used and not closed. None: a cluster on this machine is started, and ended with its
            last user.
        timeout: Seconds that it may take to answer, and be silent or without workers later on.
        modules: Installed modules that are sent by value all the same.
        at_least_once: Whether items may run again when a worker dies with others of their chunk;
            False: a chunk has one item, which costs a round trip each.
        name: What its thread is called.

    Raises:
        ModuleNotFoundError: distributed is not installed.
        PoolError: There is no cluster, or it has another Python or forkmill.
    """

    type = "dask"
    module = "distributed"
    kills: ClassVar[bool] = False

    @classmethod
    def _check_address(cls, address: Any) -> None:
        if address is not None and not isinstance(address, str) and not hasattr(address, "submit"):
            raise TypeError(
                f"address must be a scheduler's address or a distributed.Client, not "
                f"{type(address).__name__!r}"
            )

    @classmethod
    def _connected(cls, address: Any, width: int | None, timeout: float) -> DaskBackend:
        client, close = _opened(address, width, timeout)
        try:
            return DaskBackend(client, close, width, timeout)
        except BaseException as error:
            close()
            if isinstance(error, (errors.PoolError, KeyboardInterrupt)):
                raise
            raise errors.PoolBroken(f"{DaskBackend.title} does not answer: {error}") from error


def _opened(address: Any, width: int | None, timeout: float) -> tuple[Any, Callable[[], None]]:
    """A client, and what ends it."""
    from distributed import Client

    if address is not None and not isinstance(address, str):
        return address, _nothing
    where = _LOCAL.take(width or cpus()) if address is None else address
    end = _LOCAL.give_back if address is None else _nothing
    try:
        client = Client(where, set_as_default=False, timeout=timeout)
    except BaseException as error:
        end()
        if not isinstance(error, (OSError, ValueError)):  # TimeoutError is an OSError
            raise
        raise errors.PoolBroken(
            f"there is no Dask scheduler at {where} (looked for {timeout:g} s): {error}"
        ) from error
    return client, partial(_closed, client, end)


def _closed(client: Any, end: Callable[[], None]) -> None:
    """Whatever becomes of the client, the cluster is given back."""
    try:
        with contextlib.suppress(OSError):  # it takes too long: its threads are daemons
            client.close(timeout=5)
    finally:
        end()

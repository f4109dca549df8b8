"""dask: calls run in the workers of a Dask cluster.

    submit ──▶ Courier ──Client.submit──▶ scheduler ──▶ a worker's thread: there.run

Guarantees: those of `executor`; and of Dask's own:

    * A call that runs cannot be stopped: no timeouts, and `Future.kill` takes back what waits.
    * A worker's death costs the item that did it, if a nanny starts another worker (it does, by
      default). Dask charges it to all that the worker had; who is alone is asked twice.

Threads: any.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from importlib.util import find_spec
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar

from .. import _checks, errors
from .._process import cpus
from .executor import Remote
from .local import Local
from .there import probe_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Dask", "DaskBackend"]

_numbers = itertools.count(1)
_PACKAGE: Any = sys.modules[__package__.partition(".")[0]]
_QUIET = 50  # of logging: Dask's own tell of each worker that is ended


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

    def check(self, timeout: float, modules: Sequence[str]) -> None:
        """Ask one worker for what must be there.

        Raises:
            PoolError: It does not answer, or is another Python, or has no forkmill.
        """
        future = self._client.submit(eval, probe_text(), pure=False, key=self._key())
        try:
            found = future.result(timeout=timeout)
        except TimeoutError:
            raise errors.PoolBroken(
                f"{self.title} has not answered a first call within {timeout:g} s"
            ) from None
        checked(self.title, found)

    def _key(self) -> str:
        return f"{self._prefix}-{next(self._keys)}"

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        try:
            future = self._client.submit(fn, *args, pure=False, key=self._key())
        except (OSError, RuntimeError) as error:
            raise errors.PoolBroken(f"{self.title} takes no calls any more: {error}") from error
        return _Promise(future)

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
    """A future of Dask's."""

    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        self.inner.add_done_callback(fn)

    def result(self) -> Any:
        from distributed.scheduler import KilledWorker

        try:
            return self.inner.result(timeout=60)
        except KilledWorker as error:
            last = getattr(error, "last_worker", None)
            where = getattr(last, "address", "")
            raise errors.WorkerDied(
                f"the Dask worker {where} that had this task is gone", cause="exit"
            ) from None
        except (TimeoutError, OSError) as error:
            raise errors.PoolBroken(f"the Dask cluster is gone: {error}") from error


def checked(title: str, found: Any) -> None:
    """Whether a worker has what must be there.

    Raises:
        PoolError: It has not; says what to do.
    """
    version, pid, executable, forkmill, _ = found
    mine, ours = sys.version_info[:2], _PACKAGE.__version__
    if tuple(version) != mine:
        raise errors.PoolError(
            f"{title} runs Python {version[0]}.{version[1]} ({executable}), and this program "
            f"{mine[0]}.{mine[1]}: functions cannot be sent. Use the same minor version there"
        )
    if forkmill is False:
        raise errors.PoolError(
            f"{title} has no forkmill in {executable}: install forkmill {ours} there"
        )
    if forkmill != ours:
        raise errors.PoolError(
            f"{title} has forkmill {forkmill} in {executable}, and this program {ours}: "
            "install the same version there"
        )
    if pid == os.getpid():
        raise errors.PoolError(
            f"{title} runs its calls in this very process (processes=False): use 'thread' for "
            "that, or a cluster with worker processes"
        )


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


def _end(cluster: Any) -> None:
    cluster.close(timeout=10)


_LOCAL = Local(_start, _end)


class Dask(Remote):
    """Runs calls in the workers of a Dask cluster.

    Args:
        max_workers: How many calls at once; None: as many as its workers have threads. Without an
            address: how many workers are started.
        address: The scheduler's address ("tcp://head:8786"), or a `distributed.Client`, which is
            used and not closed. None: a cluster on this machine is started, and ended with its
            last user.
        timeout: Seconds that it may take to answer, and be silent or without workers later on.
        modules: Installed modules that are sent by value all the same.
        name: What its thread is called.

    Raises:
        ModuleNotFoundError: distributed is not installed.
        PoolError: There is no cluster, or it has another Python or forkmill.
    """

    type = "dask"
    kills: ClassVar[bool] = False

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        address: Any = None,
        timeout: float = 60,
        modules: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        width = _checks.max_workers(max_workers) or None
        seconds = _checks.seconds("timeout", timeout)
        needed("distributed", "dask")
        client, close = _opened(address, width, seconds)
        try:
            backend = DaskBackend(client, close, width, seconds)
            backend.check(seconds, modules)
        except BaseException as error:
            close()
            if isinstance(error, (errors.PoolError, KeyboardInterrupt)):
                raise
            raise errors.PoolBroken(f"the Dask cluster does not answer: {error}") from error
        super().__init__(backend, name=name, timeout=seconds, modules=modules)

    @classmethod
    def check(cls, *, address: Any = None, timeout: float = 60, **_: Any) -> None:
        """Refuse wrong values of options."""
        _checks.seconds("timeout", timeout)
        if address is not None and not isinstance(address, str) and not hasattr(address, "submit"):
            raise TypeError(
                f"address must be a scheduler's address or a distributed.Client, not "
                f"{type(address).__name__!r}"
            )


def _opened(address: Any, width: int | None, timeout: float) -> tuple[Any, Callable[[], None]]:
    """A client, and what ends it."""
    from distributed import Client

    if address is not None and not isinstance(address, str):
        return address, _nothing
    if address is None:
        cluster = _LOCAL.take(width or cpus())
        try:
            client = Client(cluster, set_as_default=False, timeout=timeout)
        except BaseException:
            _LOCAL.give_back()
            raise

        def close() -> None:
            client.close(timeout=5)
            _LOCAL.give_back()

        return client, close
    try:
        client = Client(address, set_as_default=False, timeout=timeout)
    except (OSError, ValueError, TimeoutError) as error:
        raise errors.PoolBroken(
            f"there is no Dask scheduler at {address} (looked for {timeout:g} s): {error}"
        ) from error
    return client, lambda: client.close(timeout=5)


def needed(module: str, extra: str) -> None:
    """Whether an extra is installed.

    Raises:
        ModuleNotFoundError: It is not; says how to install it.
    """
    if find_spec(module) is None:
        raise ModuleNotFoundError(
            f"the context {extra!r} needs {module}: pip install 'forkmill[{extra}]'", name=module
        )

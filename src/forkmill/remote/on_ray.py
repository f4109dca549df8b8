"""ray: calls run as tasks of a Ray cluster.

    submit ──▶ Courier ──f.remote──▶ raylet ──▶ a worker process: there.run
    code, shared values ──ray.put, once──▶ the nodes' object stores

Guarantees: those of `executor`; a call that runs is ended by force, so timeouts and `Future.kill`
work. Calls are tasks of one CPU with no retries, never actors: they reserve nothing.

Threads: any. A call with a timeout has a thread of ours while it is under way: it waits for the
call's begin, and for its end.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import pickle
import socket
import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, ClassVar

from .. import errors
from .._process import LoneThread, cpus
from .cluster import Cluster
from .there import PROBE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Ray", "RayBackend"]

_STARTED = "started"
_ANSWER_S = 3.0  # for a look to be answered
_LEAVE_S = 15.0  # for a connection to end


class RayBackend:
    """The Ray cluster that this process is connected to.

    Args:
        close: Called at the end.
        width: How many calls at once; None: as many as it has CPUs.
    """

    title = "the Ray cluster"
    kills = True
    at_least_once = True
    keeps = True
    views = True
    blames = False
    patience = 30.0  # Ray ends a program that does not reach its cluster for a minute

    def __init__(self, close: Callable[[], None], width: int | None) -> None:
        import ray

        self._ray = ray
        self._close = close
        self._functions: dict[Any, Any] = {}
        self._timed: dict[Any, Any] = {}
        self._asked: Future[Any] | None = None  # the last look, which may never end
        self.width = width or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def probed(self, timeout: float) -> Any:
        """What one worker says of itself (`there.PROBE`).

        Raises:
            PoolBroken: It does not answer in time.
        """
        ray = self._ray
        asked = ray.remote(_evaluated()).options(max_retries=0, num_cpus=1)
        ref = asked.remote(PROBE)
        try:
            return ray.get(ref, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(ref, force=True)
            raise errors.PoolBroken(
                f"{self.title} has not answered a first call within {timeout:g} s: it has no CPU "
                "that is free, or no worker starts"
            ) from None

    def _remote(self, fn: Any) -> Any:
        found = self._functions.get(fn)
        if found is None:
            made = self._ray.remote(fn).options(max_retries=0, num_cpus=1)
            found = self._functions[fn] = made
        return found

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        if not self._ray.is_initialized():  # else Ray would start a cluster of its own
            raise errors.PoolBroken(f"{self.title} is not connected any more")
        try:
            return _Promise(self._remote(fn).remote(*args))
        except self._ray.exceptions.RaySystemError as error:
            raise errors.PoolBroken(f"{self.title} takes no calls any more: {error}") from error

    def submit_timed(self, seconds: float, fn: Callable[..., Any], /, *args: Any) -> Any:
        made = self._timed.get(fn)
        if made is None:
            kinds = {"max_retries": 0, "num_cpus": 1, "num_returns": "streaming"}
            made = self._timed[fn] = self._ray.remote(_telling(fn)).options(**kinds)
        return _Timed(seconds, made.remote(*args))

    def cancel(self, future: Any, force: bool) -> bool:
        with contextlib.suppress(Exception):
            future.cancel(force)
            return True
        return False

    def share(self, data: Any) -> Any:
        return self._ray.put(data if type(data) is bytes else pickle.PickleBuffer(data))

    def look(self) -> str | None:
        if not self._ray.is_initialized():
            return "is not connected any more"
        if self._asked is None or self._asked.done():
            self._asked = _answer(self._ray.cluster_resources)
        try:
            return None if self._asked.result(_ANSWER_S).get("CPU") else "has no CPUs"
        except Exception as error:
            return f"does not answer ({type(error).__name__})"

    def close(self) -> None:
        close, self._close = self._close, _nothing
        close()


def _evaluated() -> Any:
    """`eval`, as a function that Ray takes."""

    def ask(text: str) -> Any:
        return eval(text)

    ask.__module__ = "__main__"  # by value: nothing of ours may be there
    return ask


def _telling(fn: Any) -> Any:
    """A function that tells its begin."""

    def run_timed(*args: Any) -> Iterator[Any]:
        yield _STARTED
        yield fn(*args)

    return run_timed


def _answer(ask: Callable[[], Any]) -> Future[Any]:
    """What Ray says, asked in a thread: it waits without end for a cluster that is gone."""
    answer: Future[Any] = Future()

    def wait() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    LoneThread(wait, "forkmill-ray-look").start()
    return answer


class _Promise:
    """A task's reference."""

    __slots__ = ("_future", "_ref")

    def __init__(self, ref: Any) -> None:
        self._ref = ref
        self._future = ref.future()

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        self._future.add_done_callback(fn)

    def result(self) -> Any:
        try:
            return self._future.result()
        except BaseException as error:
            raise in_our_words(error) from None

    def cancel(self, force: bool) -> None:
        import ray

        ray.cancel(self._ref, force=force)


class _Timed(Future):  # type: ignore[type-arg]
    """A task that is ended when it has run too long."""

    def __init__(self, seconds: float, stream: Any) -> None:
        super().__init__()
        self._seconds = seconds
        self._stream = stream
        LoneThread(self._watch, "forkmill-ray-timed").start()

    def _watch(self) -> None:
        try:
            self.set_result(self._outcome())
        except BaseException as error:
            self.set_exception(error)

    def _outcome(self) -> Any:
        import ray

        try:
            ray.get(next(self._stream))
            _, late = ray.wait([self._stream], timeout=self._seconds, fetch_local=False)
            if late:
                ray.cancel(self._stream, force=True)
                raise errors.TaskTimeout(
                    f"the task ran longer than its timeout of {self._seconds:g} s, so its worker "
                    "was ended",
                    timeout=self._seconds,
                )
            return ray.get(next(self._stream))
        except errors.TaskTimeout:
            raise
        except BaseException as error:
            raise in_our_words(error) from None

    def cancel(self, force: bool = False) -> bool:
        import ray

        ray.cancel(self._stream, force=force)
        return True


def in_our_words(error: BaseException) -> BaseException:
    """What became of a task, see `backend`."""
    from ray import exceptions as known

    if isinstance(error, known.TaskCancelledError):
        return CancelledError()
    if isinstance(error, known.OutOfMemoryError):
        return errors.WorkerDied(_first_line(error), oom=True, cause="oom_kill")
    if isinstance(error, (known.WorkerCrashedError, known.NodeDiedError)):
        return errors.WorkerDied("the Ray worker that ran this task is gone", cause="exit")
    if isinstance(error, (known.LocalRayletDiedError, known.RaySystemError)):
        return errors.PoolBroken(f"the Ray cluster is gone: {_first_line(error)}")
    if isinstance(error, known.ObjectLostError):
        return errors.WorkerDied(f"the node that had this task is gone: {_first_line(error)}")
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _nothing() -> None:
    """It is closed."""


class _Connection:
    """Of this process, which can have one: to a cluster on this machine that is started, or to one
    that was named. It lasts as long as somebody uses it. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest; held while it comes and goes
        self._users = 0
        self._address: str | None = None
        self._ended: Future[Any] | None = None  # the last end of a connection

    def open(self, address: str | None, width: int | None, timeout: float) -> Callable[[], None]:
        """Be connected; what ends that.

        Raises:
            PoolError: There is no cluster there, or the process is connected to another one.
        """
        import ray

        with self._lock:
            if self._ended is not None and not self._ended.done():
                raise errors.PoolBroken(
                    "this process cannot get rid of its connection to a Ray cluster whose head "
                    "does not answer, and can have one: start another process"
                )
            if not ray.is_initialized():
                _connect(address, width, timeout)
                self._address = address
            elif address is not None and not self._is_at(address):
                raise errors.PoolError(
                    f"this process is connected to {self._name()}, and can be to one Ray cluster "
                    f"at a time, so not to {address}: close that context first"
                )
            elif not self._users:
                return _nothing  # the program's own
            self._users += 1
            return self._give_back

    def _is_at(self, address: str) -> bool:
        """Whether this is where it leads."""
        if self._users and address == self._address:
            return True
        if self._users and self._address is None:
            return False  # one of ours, and one was named
        return address == "auto" or address == _bare_address()

    def _name(self) -> str:
        if self._users and self._address is None:
            return "a Ray cluster on this machine that a context without an address started"
        return f"the Ray cluster at {_bare_address()}"

    def _give_back(self) -> None:
        """One user less. Ray waits without end for a head that does not answer: it is left then,
        and so it is when the program ends."""
        import ray

        with self._lock:
            self._users -= 1
            if self._users:
                return
            ended = self._ended = _answer(ray.shutdown)
            try:
                ended.result(_LEAVE_S)
            except TimeoutError:
                atexit.unregister(ray.shutdown)


def _connect(address: str | None, width: int | None, timeout: float) -> None:
    import ray

    if address is None:
        ray.init(
            address="local", num_cpus=width or cpus(), include_dashboard=False,
            log_to_driver=False, logging_level=logging.ERROR, configure_logging=False,
        )  # fmt: skip
        return
    _reached(address, timeout)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise errors.PoolBroken(f"there is no Ray cluster at {address}: {error}") from error


def _bare_address() -> str:
    """Host and port of the cluster that this process is connected to."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


_CONNECTION = _Connection()


class Ray(Cluster):
    """Runs calls as tasks of a Ray cluster.

    Args:
        max_workers: How many calls at once; None: as many as it has CPUs. Without an address: how
            many CPUs the cluster has that is started.
        address: The cluster's: "auto", "host:port", "ray://host:port". None: the one that this
            process is connected to already (`ray.init`); else one on this machine is started, and
            ended with its last user.
        timeout: Seconds that it may take to answer.
        modules: Installed modules that are sent by value all the same.
        at_least_once: Whether items may run again when a worker dies with others of their chunk;
            False: a chunk has one item, which costs a round trip each.
        name: What its thread is called.

    Raises:
        ModuleNotFoundError: ray is not installed.
        PoolError: There is no cluster, or it has another Python or forkmill.
    """

    type = "ray"
    module = "ray"
    kills: ClassVar[bool] = True

    @classmethod
    def _check_address(cls, address: Any) -> None:
        if address is not None and not isinstance(address, str):
            raise TypeError(f"address must be a str or None, not {type(address).__name__!r}")

    @classmethod
    def _connected(cls, address: Any, width: int | None, timeout: float) -> RayBackend:
        close = _CONNECTION.open(address, width, timeout)
        try:
            return RayBackend(close, width)
        except BaseException:
            close()
            raise


def _reached(address: str, timeout: float) -> None:
    """Whether somebody listens there. Ray itself would end this process if nobody did."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except OSError as error:
        raise errors.PoolBroken(f"there is no Ray cluster at {address}: {error}") from error

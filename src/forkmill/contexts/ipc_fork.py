"""ipc_fork: n persistent worker processes, a `ProcessPool`.

Guarantees: everything of a ProcessPool, and the face that all contexts have.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from .._late import finalize
from ..pool.batches import Batches
from ..pool.process_pool import ProcessPool
from .base import Executor, Metrics
from .lanes.inline import InlineLane
from .lanes.workers import WorkerLane

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lanes.lane import Lane, Work

__all__ = ["IpcFork"]


_REPLACING = ("max_tasks_per_child", "max_rss", "memory_limit")


def _signature() -> inspect.Signature:
    """A ProcessPool's, without what stands for another executor's, and with `pin`."""
    its = inspect.signature(ProcessPool)
    first, _, *others = its.parameters.values()
    pin = inspect.Parameter("pin", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
    options = (other.replace(kind=other.KEYWORD_ONLY) for other in others)
    return its.replace(parameters=[first, pin, *options])


class IpcFork(ProcessPool):
    """A ProcessPool as a context; its arguments, and one more.

    Args:
        pin: Keep each worker on a CPU of its own, as far as there are enough (Linux).
        **options: Those of `ProcessPool`.
    """

    type: ClassVar[str] = "ipc_fork"
    kills: ClassVar[bool] = True
    isolated: ClassVar[bool] = True
    local: ClassVar[bool] = True
    copies: ClassVar[str] = "worker"

    __signature__ = _signature()

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        pin: bool = False,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        with contextlib.ExitStack() as undo:
            claims = None
            if pin:
                claims, initializer, initargs = pinning(initializer, initargs)
                undo.callback(claims.close)
            super().__init__(max_workers, initializer=initializer, initargs=initargs, **options)
            if claims is not None:
                # Not for as long as this object: a dropped pool lives on in its pending futures,
                # and the workers that it starts until then have to find the file.
                finalize(self._core or self, claims.close)
            undo.pop_all()
        self.name = self._name
        self.width = self._max_workers
        self.window = 2 * self.width
        self._replaces = any(options.get(name) is not None for name in _REPLACING)

    def metrics(self) -> Metrics:
        """The figures of the whole pool at this moment."""
        stats = self.stats()
        born = stats.alive + stats.deaths + stats.recycled + stats.retired
        started = stats.outcomes - stats.cancelled + stats.in_flight
        return Metrics(
            created=born,
            reused=max(0, started - born),
            busy=min(stats.in_flight, stats.workers),
            waiting=stats.backlog + max(0, stats.in_flight - stats.workers),
            failed=stats.failed + stats.died,
        )

    def lane(self, work: Work, notify: Callable[[], None] | None = None) -> Lane:
        """A lane that runs one stage's work in the workers; each has a copy of its state.

        Raises:
            ValueError: The work has an `on_end`, and the workers are replaced now and then: what
                they know would be lost.
        """
        if work.on_end is not None and self._replaces:
            raise ValueError(
                "on_end needs workers that stay, and max_tasks_per_child, max_rss or memory_limit "
                "replaces them"
            )
        if self._core is None:  # a pool without workers, in a worker
            return InlineLane(work, notify)
        return WorkerLane(self, work, notify)

    def _batches(self, fn: Callable[..., Any], timeout: float | None, **options: Any) -> Batches:
        assert self._core is not None
        return Batches(self._core, fn, timeout, **options)


Executor.register(IpcFork)


def pinning(
    initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> tuple[BinaryIO, Callable[..., object], tuple[Any, ...]]:
    """The file of claims, which its owner closes, and the initializer that pins, with its args."""
    from .thread import check_pin

    check_pin()
    claims: Any = open(os.memfd_create("forkmill-pin", os.MFD_CLOEXEC), "r+b", buffering=0)  # noqa: SIM115
    # By way of /proc also a worker that did not inherit the descriptor gets at the file.
    path = f"/proc/{os.getpid()}/fd/{claims.fileno()}"
    if not os.path.exists(path):
        import tempfile

        claims.close()
        claims = tempfile.NamedTemporaryFile(prefix="forkmill-pin-")  # noqa: SIM115
        path = claims.name
    return claims, pin_worker, (path, initializer, initargs)


_claims: list[int] = []  # in a worker: its claim on a CPU ends with the descriptor


def pin_worker(path: str, initializer: Any, initargs: tuple[Any, ...]) -> None:
    """The initializer that pins: claim the first CPU that no other worker of the pool has.

    A claim is a lock on a byte of a file: the kernel gives it back when its worker dies.
    """
    import fcntl

    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    _claims.append(fd)
    allowed = sorted(os.sched_getaffinity(0))
    for number in range(4096):
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            continue
        os.sched_setaffinity(0, {allowed[number % len(allowed)]})
        break
    if initializer is not None:
        initializer(*initargs)

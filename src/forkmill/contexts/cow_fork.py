"""cow_fork: each call in a fresh child forked from this process, which inherits everything.

    submit ──▶ Backlog ──▶ the forking thread ──fork──▶ child: fn(*args), its result ──▶ _exit
              (forker.py)       ▲    one record a call, through a pipe of its own  │
                                └──────────────────────────────────────────────────┘

Guarantees:
    * Function, arguments and all that they lead to are shared by copy-on-write, never pickled;
      only outcomes are encoded, as in a ProcessPool.
    * At most `width` children are alive. Results are read while the child runs, whatever their
      size. Exactly our children are waited for, and where there is a pidfd nothing polls.
    * A child's death costs the call that it ran. Calls of its batch that had not started run in
      another child, and are not charged.
    * No child outlives this process (on Linux), nor the executor's end by more than 1.5 s.

Threads: any. Callbacks of futures are called in the forking thread, so a slow one delays the next
fork.

Nothing that a child inherits is shared but the page of its slot: what a pool's arena holds is made
copy-on-write before any fork, and stays as it is while a child may read it (csrc/src/arena.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .. import _checks, _native
from .._late import finalize
from .base import Call, Executor, Metrics, closed_error
from .fork_outcomes import ForkFuture
from .forker import Forker

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lanes.lane import Lane, Work

__all__ = ["CowFork"]

_MAX_BATCH = 4096


class CowFork(Executor):
    """An executor that runs each call in a fresh child, which shares all memory by copy-on-write.

    What a call changes stays in its child; only what it returns or raises comes back.

    Args:
        max_workers: How many children may be alive at once; None: the CPUs of this process.
        batch: How many waiting calls one child may be given. They start and are cancelled as one,
            but each has its own outcome, timeout and death.
        name: What the forking thread is called.

    Raises:
        TypeError, ValueError: A wrong option.
    """

    type: ClassVar[str] = "cow_fork"
    kills: ClassVar[bool] = True
    isolated: ClassVar[bool] = True
    copies: ClassVar[str] = "call"
    future_class: ClassVar[Any] = ForkFuture

    def __init__(
        self, max_workers: int | None = None, *, batch: int = 1, name: str | None = None
    ) -> None:
        self.check(batch=batch)
        super().__init__(max_workers, name=name)
        self.batch = batch
        self.window = 2 * self.width * batch
        self._forker = Forker(self.name, self.width, batch)
        finalize(self, self._forker.dropped).atexit = False

    @classmethod
    def check(cls, *, batch: Any = 1, **_: Any) -> None:
        """Refuse wrong values of options."""
        if _checks.integer("batch", batch, least=1) > _MAX_BATCH:
            raise ValueError(f"batch must be at most {_MAX_BATCH}, not {batch}")

    def _accept(self, call: Call) -> None:
        self._forker.accept(call)

    def _check_open(self) -> None:
        self._check_process()
        if self._forker.backlog.closed:
            raise closed_error()

    def _metrics(self) -> Metrics:
        return self._forker.metrics()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more, finish what was accepted. Idempotent.

        Args:
            wait: Return when everything is over; else at once (from a callback: always at once).
            cancel_futures: Cancel accepted calls that have not started.

        Raises:
            KeyboardInterrupt: Ctrl-C while it waited: running calls were ended, all is over.
        """
        self._take_in(cancel_futures)
        self._forker.close(cancel=cancel_futures)
        if wait:
            self._forker.join()

    def lane(self, work: Work, notify: Callable[[], None] | None = None) -> Lane:
        """A lane that runs one stage's work in children; those of a batch share a copy."""
        from .lanes.children import CowLane

        return CowLane(self, work, notify)

    def _pipe(self) -> tuple[int, int]:
        return _native.pipe()

    def terminate(self) -> None:
        """End all children now. Running calls get WorkerDied, waiting ones PoolClosed."""
        self._forker.stop(kill=True)
        self._forker.join()

    def __exit__(self, *exc: Any) -> None:
        if isinstance(exc[1], KeyboardInterrupt):
            self._forker.stop()
        self.shutdown(wait=True)

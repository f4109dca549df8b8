"""Context: one call at a time, in any type of context.

Guarantees:
    * Reusable: execute, join, execute, ...
    * Dropped is closed: nothing is left, and nobody waits.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, ParamSpec

from .. import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from .base import Executor

__all__ = ["Context"]

P = ParamSpec("P")


class Context:
    """One call at a time; made by `create_context`.

    Attributes:
        type: The context's type.
        name: Its name.
    """

    def __init__(self, executor: Executor, name: str) -> None:
        self.type = executor.type
        self.name = name
        self._executor = executor
        self._future: Future[Any] | None = None
        self._ended = False  # by terminate: its outcome need not be joined
        self._closed = False

    def execute(self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> Context:
        """Call ``fn(*args, **kwargs)`` in the context; returns at once (inline: after it).

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            This context, so that ``ctx.execute(f).join()`` works.

        Raises:
            PoolError: The last call was not joined: its outcome would be lost.
            PoolClosed: The context is closed.
            SerializationError: fn or an argument cannot be sent (ipc_fork).
        """
        if self._future is not None and not (self._ended and self._future.done()):
            raise errors.PoolError(
                f"{self!r} does one call at a time: join() the last one, or terminate() it"
            )
        self._future = self._executor.submit(fn, *args, **kwargs)
        self._ended = False
        return self

    def join(self, timeout: float | None = None) -> Any:
        """Wait for the call, and take its outcome.

        Args:
            timeout: Seconds to wait; None: as long as it takes.

        Returns:
            What the call returned.

        Raises:
            TimeoutError: Not done in time; it goes on.
            WorkerDied, CancelledError: It was ended by `terminate`.
            PoolError: Nothing was executed since the last join.
            Exception: What the call raised.
        """
        future = self._future
        if future is None:
            raise errors.PoolError(f"{self!r} has nothing to join: execute() something first")
        try:
            error = future.exception(timeout)
        except TimeoutError:
            if not future.done():
                raise TimeoutError(f"{self!r} is not done after {timeout:g} s") from None
            raise  # pragma: no cover
        except CancelledError:
            self._future = None
            if self._executor.isolated:
                raise errors.WorkerDied(
                    "the call was ended by terminate() before it started", cause="killed"
                ) from None
            raise
        try:
            value = None if error is not None else future.result()
            # Only now: what breaks in before, as a Ctrl-C may, leaves the outcome to be joined.
            self._future = None
            if error is not None:
                raise error
            return value
        finally:
            del error, future  # the exception's traceback has this frame

    @property
    def alive(self) -> bool:
        """Whether a call is under way."""
        return self._future is not None and not self._future.done()

    @property
    def usable(self) -> bool:
        """Whether it was neither closed nor terminated."""
        return not self._closed and not self._ended

    def terminate(self) -> None:
        """End the call that is under way; `join` then raises WorkerDied.

        Threads: CancelledError, if it has not started. Idempotent; nothing if nothing runs.

        Raises:
            PoolError: It runs in a thread, and a thread cannot be stopped; it goes on.
        """
        future = self._future
        if future is None or future.done():
            return
        kill: Callable[[], bool] = getattr(future, "kill", future.cancel)
        if kill() or future.done():
            self._ended = True
            return
        raise errors.PoolError(
            f"{self!r}: the call runs in a thread, and a running thread cannot be stopped; "
            "join() waits for it. Use 'ipc_fork' or 'cow_fork' for what may have to be stopped."
        )

    def close(self, *, wait: bool = True) -> None:
        """End the context; a call that is under way is finished first. Idempotent.

        Args:
            wait: Return when everything is over; else at once.
        """
        self._closed = True
        self._executor.shutdown(wait=wait)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        stopped = True
        if exc_type is not None:
            try:
                self.terminate()
            except errors.PoolError:
                stopped = False
        self.close(wait=stopped)

    def __repr__(self) -> str:
        return f"<{self.type} context {self.name!r}>"

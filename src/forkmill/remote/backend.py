"""What an engine must be able to do to carry our calls. A third one is one file.

    submit(fn, *args) ──▶ a future: add_done_callback, result
    share(data)       ──▶ a token: passed to submit in the place of the bytes

A future's `result` raises what became of the call in our words:

    WorkerDied       the worker that had it is gone
    CancelledError   it was cancelled, by us
    TaskTimeout      it was stopped, by us (`submit_timed`)
    PoolBroken       the engine is gone, or does not know of it any more
    anything else    the engine could not run it

Threads: all methods may be called from any; callbacks come in threads of the engine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Backend", "Blob", "Promise"]


class Promise(Protocol):
    """What `submit` gives."""

    def add_done_callback(self, fn: Callable[[Any], object], /) -> object: ...
    def result(self) -> Any: ...


class Backend(Protocol):
    """An engine, as a courier knows it.

    Attributes:
        title: What messages call it.
        width: How many calls run at once.
        kills: Whether a call that runs can be stopped.
        at_least_once: Whether items may run again when a worker dies with others of their chunk;
            else a chunk has one item.
        keeps: Whether a token is the bytes wherever a call runs; else the bytes go along with the
            first calls, and again when a worker says that it does not have them.
        views: Whether results may have buffers beside their pickles (`pickle.PickleBuffer`).
        blames: Whether a worker's death is charged also to calls that had not begun there.
        patience: Seconds that it may be wrong when it is looked at, though results come; infinite:
            who brings results is well.
    """

    title: str
    width: int
    kills: bool
    at_least_once: bool
    keeps: bool
    views: bool
    blames: bool
    patience: float

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Promise:
        """Have ``fn(*args)`` called; fn can be imported where forkmill is."""

    def submit_timed(self, seconds: float, fn: Callable[..., Any], /, *args: Any) -> Promise:
        """The same, and stopped when it has run that long. Only where it `kills`."""

    def cancel(self, future: Any, force: bool) -> bool:
        """Take a call back; `force`: also one that runs, where that can be done."""

    def share(self, data: Any) -> Any:
        """A token for bytes that many calls need."""

    def look(self) -> str | None:
        """Whether the engine answers and has workers: None, or what is wrong. May take seconds."""

    def close(self) -> None:
        """Let go of the engine, and end it if it is ours. Idempotent."""


class Blob:
    """Bytes that many calls need, and how they get there: once to a worker, nearly.

    Attributes:
        digest: What they are known by there.
        data: They.
        held: What must live as long as they are needed.
    """

    def __init__(self, digest: bytes, data: Any, held: Any = None) -> None:
        self.digest = digest
        self.data = data
        self.held = held
        self._token: Any = None
        self._sent = 0

    def argument(self, backend: Backend, *, whole: bool) -> Any:
        """What a call gets: the bytes if they are few, else the token, or None where a worker has
        them, we hope."""
        if len(self.data) <= SMALL:
            return bytes(self.data)
        if self._token is None:
            self._token = backend.share(self.data)
        if backend.keeps or whole:
            return self._token
        self._sent += 1
        return self._token if self._sent <= backend.width else None


SMALL = 1 << 14  # bytes: to send them each time costs less than to put them into a store

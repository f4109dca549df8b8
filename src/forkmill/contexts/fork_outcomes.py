"""What comes back of a copy-on-write child.

    there: ForkCodec ──a record──▶ here: ForkFuture, which keeps it as it is ──▶ value_of

Threads: a ForkCodec is made in the forking thread, and used in its children; futures in any.
"""

from __future__ import annotations

import sys
from concurrent.futures import _base
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import _native, errors
from .._process import GONE, has_arrow, interrupted
from ..codec import codec as _codec
from ..codec.codec import ARROW
from .base import Future

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ForkCodec", "ForkFuture", "value_of"]


class ForkCodec(_codec.Codec):
    """Encodes in the child what the parent, as it was at the fork, can decode."""

    def __init__(self) -> None:
        at_fork = _AtFork()
        self.bindings = at_fork.bindings
        super().__init__("fork", (), at_fork)

    def _is_reachable(self, name: str) -> bool:
        return name in self.snapshot.modules or super()._is_reachable(name)

    # Lies where a child can set it without a Python call (see ForkKit).
    @property
    def _modules_seen(self) -> int:
        return self.bindings.modules

    @_modules_seen.setter
    def _modules_seen(self, count: int) -> None:
        self.bindings.modules = count

    # What was imported between our making and the fork is nothing new to a child.
    @property
    def _marks(self) -> tuple[bytes, ...]:
        arrow = (ARROW,) if has_arrow() else ()
        return (*arrow, *(mark for mark in self._known_marks if mark not in arrow))

    @_marks.setter
    def _marks(self, marks: tuple[bytes, ...]) -> None:
        self._known_marks = marks


class _AtFork:
    """What the parent had at the fork, as a Snapshot of the codec's; nothing is copied for it."""

    def __init__(self) -> None:
        self._main = vars(sys.modules["__main__"])
        self.bindings = _native.Bindings(self._main)
        self._modules: frozenset[str] | None = None

    @property
    def modules(self) -> frozenset[str]:
        if self._modules is None:
            # A dict keeps its order: what the child has imported comes after.
            self._modules = frozenset(islice(sys.modules, self.bindings.modules))
        return self._modules

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(sys.path)

    late: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()

    def main(self, name: str) -> Any:
        """The object that __main__ had under that name at the fork, if it still has it."""
        return self.found("__main__", name)

    def found(self, module: str, name: str) -> Any:
        """As main()."""
        if not self.bindings.same(name):
            return GONE
        return self._main.get(name, GONE)


class ForkFuture(Future[Any]):
    """Keeps its outcome encoded until somebody asks: user code that decoding runs (INV-4) must
    not run in the forking thread.

    Who reads the stock class's own fields, as its methods and asyncio do, finds it decoded.
    """

    # The outcome: what it returns is (result, None) or (None, exception). None: it is decoded.
    _encoded: Callable[[], tuple[Any, BaseException | None]] | None = None
    _outcome: tuple[Any, BaseException | None] = (None, None)

    def __init__(self) -> None:
        self._turn = _native.Turn()
        super().__init__()

    @property
    def _result(self) -> Any:
        self._decode(None)
        return self._outcome[0]

    @_result.setter
    def _result(self, value: Any) -> None:
        self._outcome = (value, self._outcome[1])

    @property
    def _exception(self) -> BaseException | None:
        self._decode(None)
        return self._outcome[1]

    @_exception.setter
    def _exception(self, error: BaseException | None) -> None:
        self._outcome = (self._outcome[0], error)

    def __repr__(self) -> str:
        if self._encoded is not None and self._state == _base.FINISHED:
            return f"<{type(self).__name__} at {id(self):#x} state=finished>"
        return super().__repr__()

    def result(self, timeout: float | None = None) -> Any:
        try:
            self._await_decoded(timeout)
            return super().result(timeout)
        finally:
            del self  # a cycle: the exception's traceback has this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._await_decoded(timeout)
        return super().exception(timeout)

    def _await_decoded(self, timeout: float | None) -> None:
        """Not under the condition, which the stock methods take: `done` must not wait for this."""
        deadline = None if timeout is None else monotonic() + timeout
        self._await(timeout)
        self._decode(None if deadline is None else deadline - monotonic())

    def _decode(self, timeout: float | None) -> None:
        if self._encoded is not None and self._state == _base.FINISHED:
            self._turn.run(self._decode_once, timeout)

    def _decode_once(self) -> None:
        """In one thread at a time; if it is interrupted, the next one can do the same."""
        if self._encoded is not None:
            self._outcome = self._encoded()
            self._encoded = None


def value_of(outcome: _native.Outcome, loads: Any) -> tuple[Any, BaseException | None]:
    try:
        return outcome.value(loads), None
    except Exception as error:
        if interrupted(error):
            raise
        failure = errors.SerializationError(
            f"the result of this task cannot be decoded here: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        return None, failure

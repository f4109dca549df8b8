"""How a group's call gets to a worker where no lane brings it.

    Bare(call) ──pickled──▶ the generated function itself: nothing of ours is between it and a pool
    Lasting(call)            the same, which a pool sends to a worker once
    Direct(call)             what they become if that would only call one function with the item
    run_bundle(call, items)  several units in one call of an executor that is not ours

Imported by workers, so it imports nothing but what the call itself needs.

Threads: any.
"""

from __future__ import annotations

from time import perf_counter
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ..contexts.lanes.emit import settle

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bare", "Lasting", "run_bundle"]


class Bare:
    """Becomes the function of a call where it arrives."""

    __slots__ = ("__weakref__", "_call")

    def __init__(self, call: Any) -> None:
        self._call = call

    @property
    def _forkmill_label(self) -> str:
        label: str = self._call._forkmill_label
        return label

    def __call__(self, item: Any) -> Any:
        return self._call.fn(item)

    def __reduce__(self) -> Any:
        call = self._call
        return _function_of, (call.resolved() if call.piece.bare else call,)


class Lasting(Bare):
    """One that can be called in the next run, too: its constants cannot change.

    Args:
        call: The call.
        pace: The pool's, from one map to the next, of calls that differ in their constants alone.

    Attributes:
        functions: Those of the call. A pool looks at what is in `__dict__`, and with that whether
            they are what they were.
    """

    __slots__ = ("__dict__", "_forkmill_pace")
    _forkmill_once = True

    def __init__(self, call: Any, pace: list[int]) -> None:
        super().__init__(call)
        self._forkmill_pace = pace
        self.functions = tuple(part.fn for part in call.piece.parts)

    def does(self, call: Any) -> bool:
        """Whether a call of the next run is the same."""
        mine = self._call
        return (
            mine.piece == call.piece
            and mine.options == call.options
            and mine.constants.keys() == call.constants.keys()
            and all(value is call.constants[slot] for slot, value in mine.constants.items())
        )


class Direct:
    """The call of one function with an item as it is: a worker's loop calls the function itself."""

    _forkmill_guard: Any = None  # what has it says so by its class

    def __init__(self, call: Any) -> None:
        self._call = call
        rest = call.rest
        self._forkmill_guard = call.piece.parts[0].fn, rest.odd, rest.failed

    @property
    def _forkmill_label(self) -> str:
        label: str = self._call._forkmill_label
        return label

    def __call__(self, item: Any) -> Any:
        return self._call.fn(item)


def _function_of(call: Any) -> Any:
    return Direct(call) if call.is_direct else call.fn


def run_bundle(call: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    """Call with one item after the other; the outcomes, and the seconds that it took."""
    start = perf_counter()
    outs = [call(item) for item in items]
    outs = [settle(out) if type(out) is CoroutineType else out for out in outs]
    return outs, perf_counter() - start

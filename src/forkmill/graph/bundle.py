"""How a group's call gets to a worker where no lane brings it.

    Bare(call) ──pickled──▶ the generated function itself: nothing of ours is between it and a pool
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

__all__ = ["Bare", "run_bundle"]


class Bare:
    """Becomes the function of a call where it arrives."""

    def __init__(self, call: Any) -> None:
        self._call = call

    @property
    def _forkmill_label(self) -> str:
        label: str = self._call._forkmill_label
        return label

    def __call__(self, item: Any) -> Any:
        return self._call.fn(item)

    def __reduce__(self) -> Any:
        return _function_of, (self._call,)


def _function_of(call: Any) -> Any:
    return call.fn


def run_bundle(call: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    """Call with one item after the other; the outcomes, and the seconds that it took."""
    start = perf_counter()
    outs = [call(item) for item in items]
    outs = [settle(out) if type(out) is CoroutineType else out for out in outs]
    return outs, perf_counter() - start

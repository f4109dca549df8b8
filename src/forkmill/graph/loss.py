"""What a group's call gives when something in it failed, and the Failure that becomes of it.

    an exception ──▶ Loss (travels; in the place of what is lost) ──▶ Failure (what users see)

Guarantees:
    * A Loss is known by its step's number within its item: copies of one are one.
    * What the sender of an item has is not sent back: a Given stands for it.

Threads: any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .._process import CARRIED
from ..codec.share import PerWorker, Shared
from ..contexts.lanes.emit import settle
from ..runs.failure import Failure
from .nodes import arrived, sendable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HANDLES", "Broken", "Given", "Loss", "Refused", "Stop", "Torn", "failure"]

HANDLES = (Shared, PerWorker)


class Given(NamedTuple):
    """Stands for a value that who sent the item has: that of a slot."""

    slot: int


class Loss:
    """A step that failed for good, in one item.

    Attributes:
        step: Its number in the plan.
        path: What it is called.
        error: What was raised.
        attempts: How many tries there were.
        item: What its function was called with, by parameter; a Given where the sender has it.
        inner: (index, Loss) of the first inner item that failed, if it is a nested map.
    """

    __slots__ = ("attempts", "error", "inner", "item", "path", "step")

    def __init__(
        self,
        step: int,
        path: str,
        error: BaseException,
        attempts: int,
        item: dict[str, Any],
        inner: tuple[int, Loss] | None = None,
    ) -> None:
        self.step = step
        self.path = path
        self.error = error
        self.attempts = attempts
        self.item = item
        self.inner = inner

    def __reduce__(self) -> Any:
        parts = (self.step, self.path, CARRIED[0](self.error), self.attempts, self.item, self.inner)
        return _loss, parts


def _loss(
    step: int, path: str, carried: Any, attempts: int, item: dict[str, Any], inner: Any
) -> Loss:
    return Loss(step, path, carried.error, attempts, item, inner)


class Broken:
    """What a group gives for an item in which something failed.

    Attributes:
        values: As its outputs, always a tuple, with a Loss where one is lost.
        losses: Those that happened in this call.
    """

    __slots__ = ("losses", "values")

    def __init__(self, values: tuple[Any, ...], losses: tuple[Loss, ...]) -> None:
        self.values = values
        self.losses = losses

    def __reduce__(self) -> Any:
        return Broken, (self.values, self.losses)


class Torn:
    """An item of which some values are lost: what does not depend on them is still done.

    Attributes:
        values: As the item's, with a Loss where one is lost.
    """

    __slots__ = ("values",)

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values

    def __reduce__(self) -> Any:
        return Torn, (self.values,)


class Refused(Exception):
    """What another try cannot help: a value without a stable form for the cache's key."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Stop(BaseException):
    """The first failure, where that ends everything; the inner item's index, if there is one."""

    def __init__(self, loss: Loss, index: int = 0) -> None:
        super().__init__(loss)
        self.loss = loss
        self.index = index


def failure(
    loss: Loss, path: str, fn: Any, positional: tuple[str, ...], index: int | None, outputs: Any
) -> Failure:
    """The Failure of a loss.

    Args:
        loss: With all values of its item.
        path: What the step is called.
        fn: Its function; None: there is none to call again.
        positional: Which of its arguments have no name there, in order.
        index: The item's.
        outputs: The names of outputs that are lost.
    """
    again = None if fn is None else _Again(fn, positional)
    return Failure(
        path, loss.item, loss.error, loss.attempts,
        index=index, outputs=tuple(outputs), _again=again,
    )  # fmt: skip


class _Again:
    """Calls a node's function again, with an item's arguments."""

    __slots__ = ("fn", "positional")

    travels = True  # with its Failure

    def __init__(self, fn: Any, positional: tuple[str, ...]) -> None:
        self.fn = fn
        self.positional = positional

    def __call__(self, item: Mapping[str, Any]) -> Any:
        values = {
            name: value.value if isinstance(value, HANDLES) else value
            for name, value in item.items()
        }
        first = [values.pop(name) for name in self.positional]
        return settle(self.fn(*first, **values))

    def __reduce__(self) -> Any:
        return _again, (sendable(self.fn), self.positional)


def _again(fn: Any, positional: tuple[str, ...]) -> _Again:
    return _Again(arrived(fn), positional)

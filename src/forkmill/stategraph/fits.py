"""What a store can hold: a value that is too large for it is named before anything is changed.

==============================  =================================================================
what is too large               what becomes of it
==============================  =================================================================
what a task gives or asks       that task's failure: its siblings' updates are kept
the input, an edit, an answer   the call's: nothing has changed
what reducers made of updates,  the step's: it is not committed, what its tasks gave is kept
the arguments of all Sends
==============================  =================================================================

Threads: any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import SerializationError
from .task import ASKED, CODED

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["check", "pieces", "refused"]

_GROUPS = (tuple, frozenset)
_TEXTS = (str, bytes)
_WIDEST = 4  # bytes of a character
_AROUND = 64  # bytes of a codec, around a text


def check(plan: Plan, what: str, size: int) -> None:
    """That the plan's store can hold so many bytes as one value.

    Args:
        plan: The graph.
        what: What they are.
        size: How many.

    Raises:
        SerializationError: It cannot.
    """
    if plan.largest is not None and size > plan.largest:
        raise SerializationError(
            f"{what} cannot be stored: it takes {size:,} bytes, and one value in "
            f"{plan.settings.store!r} has at most {plan.largest:,}; keep it in a file, and the "
            "file's name in the state"
        )


def refused(plan: Plan, node: str, outcome: Any) -> SerializationError | None:
    """Why the outcome of a task cannot be stored. Of a plan whose store has a limit."""
    try:
        if outcome[0] == ASKED:
            _check_wire(plan, f"what {node!r} asks", outcome[2])
            return None
        _, writes, routes, _ = outcome
        for key, _, wire in writes:
            if wire is not None:
                _check_wire(plan, f"key {key!r} of node {node!r}", wire)
        for route in routes:
            if type(route) is not str:
                _check_wire(plan, f"the argument of a Send to {route[0]!r}", route[1])
    except SerializationError as error:
        return error
    return None


def _check_wire(plan: Plan, what: str, wire: Any) -> None:
    kind, data = wire
    assert plan.largest is not None
    if kind == CODED:
        check(plan, what, len(data))
    elif type(data) in _GROUPS or (
        type(data) in _TEXTS and len(data) > plan.largest // _WIDEST - _AROUND
    ):
        check(plan, what, len(plan.codec.encode(data)))


def pieces(data: bytes, largest: int | None) -> list[bytes]:
    """Bytes as several that each can be stored."""
    if largest is None or len(data) <= largest:
        return [data]
    return [data[at : at + largest] for at in range(0, len(data), largest)]

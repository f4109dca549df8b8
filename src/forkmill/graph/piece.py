"""A group of steps as it travels to where it runs: plain data and the users' functions.

    Plan, steps ──▶ Piece ──sent──▶ packed ──▶ pickle ──▶ unpacked ──come──▶ Piece

What is packed is bytes, and beside them what only the codec can send: a codec looks at each object.

Guarantees: functions that were decorated as nodes go by the node's name, which is where theirs led.

Invariants:
    * PIECE-1  A Piece is plain data: it pickles if the functions do.

Threads: any; a Piece is never changed.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

from .nodes import Arg, arrived, sendable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .plan import Plan, Step

__all__ = [
    "Packed",
    "Part",
    "Piece",
    "Value",
    "come",
    "everything",
    "packed",
    "piece_of",
    "sent",
    "unpacked",
]

Packed = tuple[bytes, tuple[Any, ...], tuple[Any, ...]]  # plain data, functions, retries


class Value(NamedTuple):
    """A bare output that would mean something else to a lane: a generator, an exception."""

    value: Any


class Part(NamedTuple):
    """A step, as its group's code knows it."""

    number: int
    path: str
    fn: Any
    args: tuple[Arg, ...]
    writes: tuple[int, ...]
    outputs: tuple[str, ...]
    retry: Any
    is_async: bool
    nest: tuple[Piece, tuple[int, ...], str, str] | None  # inner, its slots, mode, on_error


class Piece(NamedTuple):
    """A group, as it travels.

    Attributes:
        label: What messages call it.
        parts: Its steps.
        reads, writes: The slots of an item, and of the outputs, in order.
        bare: An item is the one value that it has.
        row: The names of outputs, if they come as a dict; else None.
        copied: The slots whose constants are copied for each item.
        given: The slots that users fill, who may give a handle for its value.
        bound: Of an inner piece: its constants that nobody passes.
        path: Of an inner piece: what is before the names of its steps.
    """

    label: str
    parts: tuple[Part, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    bare: bool
    row: tuple[str, ...] | None
    copied: frozenset[int]
    given: frozenset[int] = frozenset()
    bound: Mapping[int, Any] = {}  # never changed
    path: str = ""

    def first_users(self) -> dict[int, list[int]]:
        """Index of a part -> the given slots that nobody reads before it."""
        left = self.given.intersection(self.reads)
        users: dict[int, list[int]] = {}
        for k, part in enumerate(self.parts):
            for arg in part.args:
                if arg.slot in left:
                    left -= {arg.slot}
                    users.setdefault(k, []).append(arg.slot)
            if not left:
                break
        return users


def piece_of(plan: Plan, steps: Iterable[Step], **rest: Any) -> Piece:
    parts = tuple(
        Part(
            step.number, step.path, step.node.fn, step.args, step.writes, step.node.outputs,
            step.node.retry, step.node.is_async, step.nest and _nested(step),
        )
        for step in steps
    )  # fmt: skip
    label = ", ".join(part.path for part in parts[:3]) + (", ..." if len(parts) > 3 else "")
    return Piece(label, parts, copied=plan.copied, given=frozenset(plan.mapped), **rest)


def everything(plan: Plan) -> Piece:
    """All steps of a plan as one group that gives rows; items are those of a map, or of a run."""
    writes, names = tuple(plan.outputs.values()), tuple(plan.outputs)
    bare = len(plan.mapped) == 1
    return piece_of(plan, plan.steps, reads=plan.mapped, writes=writes, bare=bare, row=names)


def _nested(step: Step) -> tuple[Piece, tuple[int, ...], str, str]:
    nest = step.nest
    assert nest is not None
    piece = everything(nest.plan)._replace(bound=nest.plan.bound, path=f"{step.path}.")
    return piece, tuple(slot for _, slot in nest.passed), nest.mode, nest.on_error


def _sent_part(part: Part) -> Part:
    """A part on its way: functions go by the nodes that stand where they stood."""
    nest = part.nest and (sent(part.nest[0]), *part.nest[1:])
    return part._replace(fn=sendable(part.fn), nest=nest)


def sent(piece: Piece) -> Piece:
    return piece._replace(parts=tuple(_sent_part(part) for part in piece.parts))


def come(piece: Piece) -> Piece:
    return piece._replace(
        parts=tuple(
            part._replace(
                fn=arrived(part.fn), nest=part.nest and (come(part.nest[0]), *part.nest[1:])
            )
            for part in piece.parts
        )
    )


def packed(piece: Piece) -> Packed | None:
    """A piece as bytes and what users gave; None if there is more to it."""
    parts = piece.parts
    if any(part.nest is not None for part in parts) or piece.bound:
        return None
    names = [piece.label, piece.path, *(piece.row or ())]
    for part in parts:
        names += (part.path, *part.outputs, *(arg.name for arg in part.args))
    if not all(type(name) is str for name in names):
        return None
    plain = (
        [
            (part.number, part.path, [tuple(arg) for arg in part.args], part.writes, part.outputs,
             part.is_async)
            for part in parts
        ],
        (piece.label, piece.reads, piece.writes, piece.bare, piece.row, [*piece.copied],
         [*piece.given], piece.path),
    )  # fmt: skip
    functions = tuple(part.fn for part in parts)
    retries = tuple(part.retry for part in parts)
    return pickle.dumps(plain, 5), functions, retries if any(retries) else ()


def unpacked(sent: Packed) -> Piece:
    """What was packed."""
    data, functions, retries = sent
    parts, (label, reads, writes, bare, row, copied, given, path) = pickle.loads(data)
    return Piece(
        label,
        tuple(
            Part(
                number, where, fn, tuple(Arg(*arg) for arg in args), slots, outputs, retry,
                is_async, None,
            )
            for (number, where, args, slots, outputs, is_async), fn, retry in zip(
                parts, functions, retries or (None,) * len(parts), strict=True
            )
        ),
        reads, writes, bare, row, frozenset(copied), frozenset(given), path=path,
    )  # fmt: skip

"""The function that a group of steps becomes: what travels to workers, and is made there.

    Plan, Group ──▶ Piece ──text──▶ make(f0, c1, ...) ──▶ group(item) ──▶ outputs or Broken

What a call gives:

    no failure           the outputs: a bare value, a tuple, or a row
    a failure            Broken: the outputs, with a Loss in the place of each that is lost;
                         for mode "raise" it raises Stop
    a coroutine          where the context awaits (not `blocking`): the same, awaited

Guarantees: every call of a user's function stands in one try (see `text`), and what is not usual is
done step by step (see `walk`).

Threads: any; a group's function may run in several at once.
"""

from __future__ import annotations

from copy import deepcopy
from types import CoroutineType, FunctionType
from typing import TYPE_CHECKING, Any

from ..contexts.lanes.lane import Work
from .loss import HANDLES, Broken, Given, Loss, Stop, Torn
from .piece import Piece, Value, come, everything, packed, piece_of, sent, unpacked
from .text import compiled, lines_of
from .walk import USUAL, Rest, odd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..runs.failure import Failure
    from .clocks import Heard
    from .piece import Packed
    from .plan import Group, Plan

__all__ = ["Broken", "Call", "Given", "Loss", "Stop", "Torn", "Value", "everything"]


_USUAL: dict[str, Any] = {  # what a call's options are if nobody says anything else
    "mode": "record", "blocking": False, "mark": None, "aio": False, "aside": None,
    "batch": False, "caches": None, "local": False, "noted": None, "heard": None,
}  # fmt: skip


class Call:
    """A group's function, and what it needs to be made in another process.

    Args:
        piece: The group.
        constants: The values, or handles, of the constant slots that it reads.
        mode: "record": what does not depend on a failure is done still, and a Broken comes out;
            "first": the first failure ends the call, with a Broken; "raise": with a Stop.
        blocking: A coroutine that a function gives is awaited before the call returns; else the
            call gives a coroutine, which its context awaits.
        mark: Is called with k + 1 before the k-th step, where there are several; or None.
        aio: The function is a coroutine function: steps begin as soon as what they read is there,
            async ones side by side.
        aside: For `aio`: how plain functions are called, ``await aside(fn)``; None: at once.
        batch: An item is a list of items, and so is what comes out. One step, without a nested map.
        caches: Number of a step -> (its NodeKey, the cache that is asked where it is called).
        local: Who calls has everything: a Loss holds all values of its item.
        noted: Gets the Failures that lists of nested maps hold; or None.
        heard: Who hears of its calls; or None.
    """

    def __init__(
        self,
        piece: Piece,
        constants: Mapping[int, Any],
        *,
        mode: str = "record",
        blocking: bool = False,
        mark: Callable[[int], object] | None = None,
        aio: bool = False,
        aside: Any = None,
        batch: bool = False,
        caches: Mapping[int, tuple[Any, Any]] | None = None,
        local: bool = False,
        noted: list[Failure] | None = None,
        heard: Heard | None = None,
    ) -> None:
        read = {arg.slot for part in piece.parts for arg in part.args}
        self.piece = piece
        self.constants = {slot: value for slot, value in constants.items() if slot in read}
        self.options: dict[str, Any] = {
            "mode": mode, "blocking": blocking, "mark": mark, "aio": aio, "aside": aside,
            "batch": batch, "caches": caches or None, "local": local, "noted": noted,
            "heard": heard,
        }  # fmt: skip
        self._fn: Any = None
        self._rest: Rest | None = None

    @classmethod
    def of(
        cls,
        plan: Plan,
        group: Group,
        constants: Mapping[int, Any],
        *,
        row: bool = False,
        **options: Any,
    ) -> Call:
        """The call of a group.

        Args:
            plan: The plan.
            group: One of its groups.
            constants: The values, or handles, of constant slots.
            row: What comes out is a dict of all wanted outputs, which are all written by it.
            **options: As for a Call.
        """
        writes, names = group.writes, None
        if row:
            writes, names = tuple(plan.outputs.values()), tuple(plan.outputs)
        piece = piece_of(
            plan, group.steps, reads=group.reads, writes=writes, bare=group.bare, row=names
        )
        return cls(piece, constants, **options)

    @property
    def fn(self) -> Any:
        """The function itself, which takes an item."""
        if self._fn is None:
            fn = _function(self.rest, self.piece, self.constants)
            if self.rest.clocks is not None:
                fn = self.rest.clocks.around(fn)
            heard = self.options["heard"]
            if heard is not None and type(fn) is FunctionType:
                fn._forkmill_origin = heard.origin  # type: ignore[attr-defined]
            self._fn = fn
        return self._fn

    def tell(self) -> None:
        """Nobody calls it any more: what was not told yet is, in this process."""
        if self._rest is not None and self._rest.clocks is not None:
            self._rest.clocks.tell()

    @property
    def rest(self) -> Rest:
        """What its function does when something is not usual."""
        if self._rest is None:
            self._rest = Rest(self.piece, self.constants, Call, **self.options)
        return self._rest

    @property
    def is_direct(self) -> bool:
        """Whether it only calls one function with the item, as it is."""
        piece, options = self.piece, self.options
        if len(piece.parts) > 1 or not piece.bare or piece.given or piece.row is not None:
            return False
        (part,) = piece.parts
        if part.nest or part.retry or part.is_async or piece.writes != part.writes:
            return False
        if any(options[name] for name in ("aio", "batch", "caches", "heard")):
            return False
        if not options["blocking"]:
            return False
        return len(part.args) == len(part.writes) == 1 and not part.args[0].keyword

    def resolved(self) -> Call:
        """The same for items among which are no handles."""
        return Call(self.piece._replace(given=frozenset()), self.constants, **self.options)

    @property
    def broke(self) -> bool:
        """Whether a Broken has come out of it, in this process."""
        return self._rest is not None and self._rest.broke

    def __call__(self, item: Any = None) -> Any:
        return self.fn(item)

    @property
    def _forkmill_label(self) -> str:
        return self.piece.label

    def work(self, **options: Any) -> Work:
        """The work of a lane; wherever it arrives it makes the function anew."""
        return _Work(self.fn, label=self.piece.label, **options).holding(self)

    def __reduce__(self) -> Any:
        piece = sent(self.piece)
        options = {name: value for name, value in self.options.items() if _USUAL[name] != value}
        if len(piece.parts) == 1:
            options.pop("mark", None)  # there is nothing to tell apart
        return _revived, (packed(piece) or piece, self.constants, options)

    def __repr__(self) -> str:
        return f"<call of {self.piece.label}>"


def _revived(piece: Piece | Packed, constants: dict[int, Any], options: dict[str, Any]) -> Call:
    return Call(come(piece if isinstance(piece, Piece) else unpacked(piece)), constants, **options)


class _Work(Work):
    """A lane's work that goes as a Call, not as generated code."""

    def holding(self, call: Call) -> _Work:
        object.__setattr__(self, "call", call)
        return self

    def __reduce__(self) -> Any:
        rest = {
            name: getattr(self, name)
            for name in (
                "setup",
                "teardown",
                "on_end",
                "timeout",
                "always",
                "whole",
                "atomic",
                "origin",
            )
        }
        return _work, (self.call, rest)  # type: ignore[attr-defined]


def _work(call: Call, rest: dict[str, Any]) -> Work:
    return call.work(**rest)


def _function(rest: Rest, piece: Piece, constants: dict[int, Any]) -> Any:
    """The function of a group."""
    if rest.shape is not None:
        return rest.shape
    names: dict[str, Any] = {
        "CO": CoroutineType, "HANDLES": frozenset(HANDLES), "USUAL": USUAL, "odd": odd,
        "copied": deepcopy, "mark": rest.mark, "carry": rest.carry, "fail": rest.fail,
        "spread": rest.spread,
    }  # fmt: skip
    names.update((f"f{k}", rest.fns[k]) for k in range(len(piece.parts)))
    names.update((f"c{slot}", value) for slot, value in constants.items())
    lines = lines_of(piece, constants, rest.lines, marked=rest.mark is not None)
    head = f"def make({', '.join(names)}):"
    scope: dict[str, Any] = {}
    exec(compiled("\n".join([head, *lines, "    return group", ""])), scope)
    return scope["make"](*names.values())

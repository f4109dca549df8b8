"""What stands in the place of a node's function: its cache before it, a map within it.

    Cached(...)(a, b)  ──▶ looked up, or called and kept        Inner(...)(xs, k)  ──▶ lists

Guarantees:
    * What a key cannot be made of, and what cannot be kept, is the node's failure: Refused, which
      no other try can help.
    * Inner items run one after another, in the thread that calls.

Threads: any.
"""

from __future__ import annotations

from operator import is_
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from .given import items_of
from .loss import HANDLES, Broken, Loss, Refused, Stop, failure

if TYPE_CHECKING:
    from ..runs.failure import Failure
    from .piece import Part

__all__ = ["Cached", "Inner"]


class Cached:
    """A node's function behind its cache."""

    def __init__(self, rest: Any, k: int, key: Any, cache: Any) -> None:
        from .cache import MISS, CallCache

        part = rest.piece.parts[k]
        self.rest, self.k, self.fn = rest, k, rest.fns[k]
        self.args = part.args
        fixed = [arg.name for arg in part.args if arg.slot in rest.constants]
        self.calls, self.miss = CallCache(key, cache, fixed), MISS
        self.handles = [  # a key is of what they stand for everywhere, not of what it is here
            (at, rest.constants[arg.slot])
            for at, arg in enumerate(part.args)
            if isinstance(rest.constants.get(arg.slot), HANDLES)
        ]

    def look_up(self, values: dict[int, Any]) -> Any:
        """As CallCache.look, for an item of a batch."""
        constants = self.rest.constants
        return self.calls.look(
            [(constants if arg.slot in constants else values)[arg.slot] for arg in self.args]
        )

    def keep(self, key: Any, value: Any) -> None:
        self.calls.keep(key, value)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        values = [*positional, *named.values()]
        for at, handle in self.handles:
            values[at] = handle
        try:
            key, found = self.calls.look(values)
        except Exception as error:
            raise Refused(error) from None
        if found is not self.miss:
            self.rest.hit(self.k)
            return found
        value = self.fn(*positional, **named)
        return self.later(key, value) if type(value) is CoroutineType else self.kept(key, value)

    async def later(self, key: Any, coroutine: Any) -> Any:
        return self.kept(key, await coroutine)

    def kept(self, key: Any, value: Any) -> Any:
        if len(self.rest.piece.parts[self.k].writes) > 1:
            self.rest.spread(self.k, value)
        try:
            self.calls.keep(key, value)
        except Exception as error:
            raise Refused(error) from None
        return value


class Inner:
    """A nested map as a function, where everything runs in one thread: lists in, lists out."""

    def __init__(self, part: Part, make: Any, noted: list[Failure] | None) -> None:
        assert part.nest is not None
        self.make = make
        self.noted = noted
        self.piece, self.passed, self.mode, self.on_error = part.nest
        self.names = [arg.name for arg in part.args]
        self.last: tuple[tuple[Any, ...], Any] | None = None  # what was passed, and its function

    def __call__(self, *values: Any) -> tuple[list[Any], ...]:
        number = len(self.piece.reads)
        names = self.names[:number]
        items = items_of(dict(zip(names, values, strict=False)), names, self.mode)
        fn = self.function(values[number:])
        rows: list[Any] = []
        try:
            rows.extend(map(fn, items.bare))
        except Stop as stop:
            raise Stop(stop.loss, len(rows)) from None
        if self.on_error != "raise":
            rows = [
                self.row(row, at) if type(row) is Broken else row for at, row in enumerate(rows)
            ]
        return tuple([row[name] for row in rows] for name in self.piece.row or ())

    def function(self, passed: tuple[Any, ...]) -> Any:
        """What is called with each inner item; the same as long as the same objects are passed."""
        last = self.last
        if last is not None and all(map(is_, last[0], passed)):
            return last[1]
        constants = {**dict(zip(self.passed, passed, strict=True)), **self.piece.bound}
        mode = "raise" if self.on_error == "raise" else "record"
        call = self.make(
            self.piece, constants, mode=mode, blocking=True, local=True, noted=self.noted
        )
        if self.noted is not None:  # a map, and not a function that outlives its values
            self.last = passed, call.fn
        return call.fn

    def row(self, broken: Broken, index: int) -> dict[str, Any]:
        """A row with Failures in it."""
        names = self.piece.row or ()
        lost: dict[int, Failure] = {}
        for loss in broken.losses:
            outputs = [
                name
                for name, value in zip(names, broken.values, strict=True)
                if type(value) is Loss and value.step == loss.step
            ]
            lost[loss.step] = self.failure(loss, index, outputs)
        if self.noted is not None:
            self.noted += lost.values()
        return {
            name: lost[value.step] if type(value) is Loss else value
            for name, value in zip(names, broken.values, strict=True)
        }

    def failure(self, loss: Loss, index: int, outputs: list[str]) -> Failure:
        piece, path = self.piece, self.piece.path
        part = next(part for part in piece.parts if part.number == loss.step)
        while loss.inner is not None and part.nest is not None:
            piece, path = part.nest[0], path + part.nest[0].path
            loss = loss.inner[1]
            part = next(part for part in piece.parts if part.number == loss.step)
        positional = tuple(arg.name for arg in part.args if not arg.keyword)
        return failure(loss, path + part.path, part.fn, positional, index, outputs)

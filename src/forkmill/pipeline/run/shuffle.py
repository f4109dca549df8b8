"""A test mode: stages that promise no order give their outputs in none.

    lane ──pieces──▶ Mixer: some are held back, the rest leaves in random order ──▶ LaneOperator

Guarantees:
    * Nothing is lost or doubled; outputs of one item stay in their order, and what on_end emits
      comes after the items that were there.
    * Nothing waits longer than `HELD_S` for others: a run that depends on its own outputs goes on.

Threads: the mode belongs to the context (contextvars) in which a run is made; a Mixer to its run.
"""

from __future__ import annotations

import contextlib
import contextvars
from time import monotonic
from typing import TYPE_CHECKING, Any

from ... import contexts

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

__all__ = ["Mixer", "mixer", "shuffled"]

HELD_S = 0.1
_MOST = 16  # pieces that are held back at once
_NEVER = float("inf")

_mode: contextvars.ContextVar[random.Random | None] = contextvars.ContextVar(
    "forkmill_shuffled", default=None
)


@contextlib.contextmanager
def shuffled(seed: int | None = None) -> Iterator[int]:
    """Runs that are made inside have no order that they do not promise.

    Where a stage in a parallel context is not `ordered`, what it emits for different items leaves
    it in random order, also where chance would have kept it: in tests on an idle machine, with one
    worker, with quick items. ::

        with fm.testing.shuffled():
            assert Mine().run().outputs == expected  # fails if it relies on order

    Args:
        seed: Of the random choices; None: another one each time. What they choose from depends on
            when items finish, so a seed makes a failure likely to come again, not sure.

    Yields:
        The seed.
    """
    import random  # in tests alone; it takes long to import

    chosen = random.randrange(1 << 32) if seed is None else seed
    token = _mode.set(random.Random(chosen))
    try:
        yield chosen
    finally:
        _mode.reset(token)


def mixer() -> Mixer | None:
    """One for a stage of a run that is made now, if its order shall be mixed."""
    mode = _mode.get()
    return None if mode is None else Mixer(type(mode)(mode.random()))


class Mixer:
    """Takes what comes out of a lane, gives it back in another order.

    Attributes:
        due: When `mix` must be called again, time.monotonic().
    """

    def __init__(self, choice: random.Random) -> None:
        self._choice = choice
        self._held: list[Any] = []
        self.due = _NEVER

    def mix(self, pieces: list[Any], more: bool) -> list[Any]:
        """What leaves now.

        Args:
            pieces: What has come out of the lane since.
            more: Whether anything is still to come.
        """
        now = monotonic()
        parts: list[Any] = []  # outputs of items that go on: before their items' ends
        ends: list[Any] = []
        came = len(self._held)
        for piece in pieces:
            for one in piece.split() if piece.__class__ is contexts.Batch else (piece,):
                if one.item is contexts.END:
                    ends.append(one)
                else:
                    (self._held if one.done else parts).append(one)
        if not self._held:
            return parts + ends
        self._choice.shuffle(self._held)
        if len(self._held) > came and self.due == _NEVER:
            self.due = now + HELD_S
        kept = 0
        if more and not ends and now < self.due:
            kept = min(_MOST, self._choice.randint(1, len(self._held)))
        leaving, self._held = self._held[kept:], self._held[:kept]
        if not kept:
            self.due = _NEVER
        return parts + leaving + ends

    def clear(self) -> None:
        """Forget what is held back."""
        self._held.clear()
        self.due = _NEVER

"""The outputs of a stream where all stages are one run, taken with nothing in between.

    next(stream) ──▶ burst ──▶ the run goes on until it has made one output ──▶ next(stream)

Where all stages are one run there is nothing to do between two outputs but to go on with it: no
queue to look at, nobody else whose turn it is. Whatever else is to be done makes `beat` true, and a
run that comes back for that, or at its end, ends the burst: the driver makes a round.

How many outputs a burst has at most is for how long the handler of Ctrl-C stays in place. It begins
with one, and doubles while who takes them is quick, and the stages too.

Guarantees: an output is made when it is asked for, and not before.

Threads: everything in the thread that asks; a burst ends where another one does.
"""

from __future__ import annotations

from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..._said import HERE
from .interrupts import BURSTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .interrupts import Interrupts
    from .operators import Operator
    from .state import Run

__all__ = ["Bursts"]

_QUICKLY = 100e-6  # seconds an output, with whatever is done with it
_MOST = 1024
_CLOCKED = 16  # of so many outputs the time of one is taken


class Bursts:
    """Bursts of one run, whose operator is all that waits for a turn.

    Args:
        driver: The run.
        alone: The operator.
        interrupts: Its handler of Ctrl-C.
    """

    def __init__(self, driver: Run[Operator], alone: Operator, interrupts: Interrupts) -> None:
        self._driver = driver
        self._alone = alone
        self._interrupts = interrupts
        self._size = 1
        self._began = 0.0

    @property
    def ready(self) -> bool:
        """Whether the run made an output that was taken: there is nothing to do but go on."""
        return self._alone.blocked is self._driver.outputs

    def size(self) -> int:
        """How many outputs may be taken before this is asked again."""
        now = perf_counter()
        quick = now - self._began < _QUICKLY * self._size
        self._size, self._began = min(2 * self._size, _MOST) if quick else 1, now
        return self._size

    def outputs(self, failed: Callable[[BaseException], object]) -> Iterator[Any]:
        """As many as `size` said, or as come before there is something else to do.

        Args:
            failed: Is told what ends the run.
        """
        driver, alone, outputs = self._driver, self._alone, self._driver.outputs
        interrupts = self._interrupts
        origin: Any = (driver.events.id, None, {}, HERE.get())
        run: Any = alone.run
        left, start, thread = self._size, 0.0, driver.thread
        take = outputs.popleft
        interrupts.stay()
        token: Any = HERE.set(origin)
        try:
            for full in run:
                HERE.reset(token)
                token = None
                if start:
                    alone.worked(_CLOCKED * (perf_counter() - start))
                    start = 0.0
                if full is not outputs:
                    alone.came_back(full, 0.0)
                    return
                yield take()
                if get_ident() != thread:
                    return
                left -= 1
                if not left % _CLOCKED:
                    if not left:
                        return
                    start = perf_counter()
                token = HERE.set(origin)
        except BaseException as error:
            if token is None:
                raise  # it came from who takes the outputs
            HERE.reset(token)
            alone.blocked = None
            failed(error)
            return
        HERE.reset(token)
        alone.came_back(None, 0.0)


BURSTS.add(Bursts.outputs.__code__)

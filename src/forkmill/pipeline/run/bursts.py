"""The outputs of a stream where all stages are one run, taken with nothing in between.

    next(stream) ──▶ burst ──▶ the run goes on until it has made one output ──▶ next(stream)

Where all stages are one run there is nothing to do between two outputs but to go on with it: no
queue to look at, nobody else whose turn it is. Whatever else is to be done makes `beat` true, and a
run that comes back for that, or at its end, ends the burst: the driver makes a round.

How many outputs a burst has at most is for how long the handler of Ctrl-C stays in place. It begins
with one, and doubles while who takes them is quick, and the stages too.

To set `_said.HERE` and to take it back costs more than all else that is done for an output: it is
done where somebody hears what the stages say. Else the burst is in `_said.LENT`, which says whom
the code of this thread works for while the run has it. (A context that a stage copies meanwhile,
for a thread of its own, does not know that.)

Guarantees: an output is made when it is asked for, and not before.

Threads: everything in the thread that asks; a burst ends where another one does, or code that works
for somebody else.
"""

from __future__ import annotations

from itertools import chain, islice, repeat
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..._frames import frame_of_own
from ..._place import OnePlace
from ..._process import VOICE
from ..._said import HERE, LENT, known_here
from .flow import SIGNS
from .interrupts import BURSTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

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
        self.outer: Any = None  # what HERE says, also where the run has the thread
        self.origin: Any = None  # for whom it works there

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

    def frame_here(self) -> FrameType | None:
        """The frame of the run, if it has this thread now (see `_said.LENT`)."""
        run: Any = self._alone.run
        here = run is not None and run.gi_running and self._driver.thread == get_ident()
        return frame_of_own(run) if here else None

    def outputs(self, failed: Callable[[BaseException], object]) -> Iterator[Any]:
        """As many as `size` said, or as come before there is something else to do.

        Args:
            failed: Is told what ends the run.
        """
        alone, interrupts = self._alone, self._interrupts
        run: Any = alone.run
        self.outer = HERE.get()
        self.origin = (self._driver.events.id, None, {}, known_here())
        heard = self._driver.events.heard or (VOICE and VOICE[0].listens())
        pulled = OnePlace(_said_of(run, self.origin) if heard else run, HERE, SIGNS)
        interrupts.stay()
        LENT.append(self)
        try:
            for few in self._portions():
                start = perf_counter()
                for output in islice(pulled, few):
                    if start:
                        alone.worked(few * (perf_counter() - start))
                        start = 0.0
                    yield output
                if pulled.over:
                    break
            if pulled.over and not pulled.moved:
                alone.came_back(pulled.sign, 0.0)
        except BaseException as error:
            if frame_of_own(run) is not None:
                raise  # it came from who takes the outputs
            alone.blocked = None
            failed(error)
        finally:
            if self in LENT:
                LENT.remove(self)

    def _portions(self) -> Iterator[int]:
        """The burst in parts: of each the time of the first output is taken."""
        whole, rest = divmod(self._size, _CLOCKED)
        return chain(repeat(_CLOCKED, whole), (rest,) if rest else ())


def _said_of(run: Iterator[Any], origin: Any) -> Iterator[Any]:
    """What a run yields, its code working for it also in contexts that are copied meanwhile."""
    while True:
        token = HERE.set(origin)
        try:
            output = next(run)
        except StopIteration:
            return
        finally:
            HERE.reset(token)
        yield output


BURSTS.add(Bursts.outputs.__code__)

"""A replica of a stage's state, and what its calls and its end come to.

Threads: any; setup and teardown run in one of them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from .emit import Outputs, Raised, as_outputs, emitted, pieces, settle
from .lane import END, Taken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .lane import Work

__all__ = ["Replica", "ended", "told"]


class Replica:
    """One replica of the state: the work, and whether its setup has run. Lives where that runs."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.lock = threading.Lock()
        self.ready = False
        self.tried = False  # setup has been called

    def __reduce__(self) -> Any:
        return Replica, (self.work,)

    def prepare(self) -> None:
        """Run setup, until it has succeeded once; a failure of it is that of the item."""
        if self.ready:
            return
        with self.lock:
            if not self.ready:
                self.tried = True
                if self.work.setup is not None:
                    settle(self.work.setup())
                self.ready = True

    def item(self, item: Any) -> Any:
        """The outputs of one item."""
        self.prepare()
        return emitted(self.work.fn(item), self.work.atomic)

    def pieces(self, item: Any) -> Iterator[Any]:
        """The outputs of one item, as they come."""
        self.prepare()
        return pieces(self.work.fn(item))

    def finish(self, always: bool = False) -> Outputs:
        """on_end, then teardown; last come the failures of both, as Raised.

        Args:
            always: Also if no item came.
        """
        outputs = Outputs()
        try:
            if always and not self.tried:
                self.prepare()
            if self.ready and self.work.on_end is not None:
                outputs = as_outputs(emitted(self.work.on_end()))
        except BaseException as error:
            outputs.append(Raised(error))
        try:
            self.tear_down()
        except BaseException as error:
            outputs.append(Raised(error))
        return outputs

    def tear_down(self) -> None:
        """teardown, once."""
        with self.lock:
            ready, self.ready = self.ready, False
        if ready and self.work.teardown is not None:
            settle(self.work.teardown())


def told(item: Any, value: Any, call: Any = None) -> Taken:
    """An item's call has returned: its outputs, and its failure if that is among them."""
    outputs = as_outputs(value)
    if outputs and type(outputs[-1]) is Raised:
        return Taken(item, outputs[:-1], outputs[-1].error, True, call)
    return Taken(item, outputs, None, True, call)


def ended(value: Any) -> list[Taken]:
    """A replica's end has run: what it emitted, and what failed."""
    outputs = as_outputs(value)
    good = [output for output in outputs if type(output) is not Raised]
    pieces = [Taken(END, good)] if good else []
    pieces += [Taken(END, [], o.error) for o in outputs if type(o) is Raised]
    return pieces

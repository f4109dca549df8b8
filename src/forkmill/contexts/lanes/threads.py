"""ThreadLane: a lane over threads of this process. A call works off items until none waits.

    put_many ──▶ line ◀──popleft── shift (a call, in a thread) ──append──▶ out-list ──▶ take_many
                                     └─ up to n of them, while the line is not empty

A call, a future and two changes of threads an item would take some twenty times as long as what is
left: an item is taken from one deque and put into another.

Guarantees: those of a DirectLane, and
    * An item begins as soon as one of the executor's threads is free for it, and what it gave can
      be taken as soon as it is there.
    * Who else has calls in the same executor has a turn after some 2 ms.

Invariants:
    * SHIFT-1  Where the line is not empty, as many shifts are under way as there are threads, or as
      items wait. A shift that finds nothing looks once more under the lock, and says there that it
      is over; who has put items counts under the lock how many shifts are missing.

Threads: as a Lane's.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Protocol

from ..._process import interrupted
from ..._said import HERE, ITEMS
from .calls import Host, failure_of
from .direct import DirectLane
from .emit import UNUSUAL, Outputs, Raised, emitted
from .lane import Taken
from .replica import told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from .lane import Work

__all__ = ["ThreadLane"]

_SHARE = 2e-3  # seconds of a shift, where others wait
_LOOK = 16  # items between two looks at the clock


class Threads(Host, Protocol):
    """An executor with threads, as its lanes know it."""

    width: int
    ledger: Any

    def _waiting(self) -> int: ...


class ThreadLane(DirectLane):
    """A lane over threads, which work off what waits here."""

    def __init__(
        self, executor: Threads, work: Work, notify: Callable[[], None] | None = None
    ) -> None:
        super().__init__(executor, work, notify)
        self._threads = executor
        self._line: deque[Any] = deque()  # what was put and has not begun
        self._shifts = 0  # that are under way, or were asked for

    # ------------------------------------------------------------------ in

    def _start(self, items: Iterable[Any], replica: int | None) -> None:
        self._line.extend(items)
        with self._lock:  # SHIFT-1
            missing = min(len(self._line), self._threads.width - self._shifts)
            self._shifts += max(0, missing)
        for _ in range(missing):
            self._ask()

    def _ask(self) -> None:
        try:
            future = self._face._begin(self._shift, (), {})
        except Exception as error:
            if interrupted(error):
                raise
            self._refused(error)
            return
        self._watch(future, self._ended)

    def _ended(self, future: Future[Any]) -> None:
        """A shift is over."""
        with self._lock:
            if future not in self._under_way:
                return  # it was told, or left behind
            self._under_way.discard(future)
            over = self._over
        failure = failure_of(future)
        if over:
            self._deliver(None)  # nobody takes it, but somebody may wait for us
        elif failure is not None:
            self._refused(failure)

    def _refused(self, failure: BaseException) -> None:
        """A shift did not begin: no other one will either, and what waits fails."""
        with self._lock:
            self._shifts -= 1
            late = [self._line.popleft() for _ in range(len(self._line))]
        for item in late:
            self._deliver(Taken(item, [], failure))

    # ------------------------------------------------------------------ in a thread

    def _shift(self) -> None:
        """Work off what waits."""
        token, until = HERE.set(self.work.origin), perf_counter() + _SHARE
        number = failed = 0
        try:
            while not self._over:
                try:
                    item = self._line.popleft()
                except IndexError:
                    if self._is_through():
                        return
                    continue
                number += 1
                failed += self._do(item)
                item = None  # while it waits for the next one, and in a traceback
                if not number % _LOOK and perf_counter() > until and self._hands_on():
                    return
            with self._lock:
                self._shifts -= 1
        finally:
            HERE.reset(token)
            self._threads.ledger.passed(number - 1, failed)

    def _is_through(self) -> bool:
        """Whether nothing waits; then the shift is over (SHIFT-1)."""
        with self._lock:
            if self._line:
                return False
            self._shifts -= 1
            return True

    def _hands_on(self) -> bool:
        """Whether others wait, and this shift goes on behind them."""
        if not self._threads._waiting():
            return False
        try:
            future = self._face._begin(self._shift, (), {})
        except Exception:
            return False  # it is closed: what was accepted is finished
        self._watch(future, self._ended)
        return True

    def _do(self, item: Any) -> bool:
        """An item, from its start to its outcome; whether it failed."""
        failed = False
        replica, work, call = self._replica, self.work, None
        try:
            if not replica.ready:
                replica.prepare()
            if work.stream:
                call = object()
                value: Any = self._stream_all(item, replica.pieces(item), call)
            else:
                value = work.fn(item)
                if type(value) in UNUSUAL:
                    call = object()
                    value = self._unusual(item, value, call)
        except BaseException as error:
            value, failed = Outputs((Raised(error),)), True
        if call is None:
            self._hand(item, value)
        else:
            self._deliver(told(item, value, call))
        del item, value  # a cycle: the exception's traceback has this frame
        return failed

    def _unusual(self, item: Any, value: Any, call: Any) -> Any:
        if type(value) is GeneratorType:
            return self._gathered(item, value, call)
        return emitted(value, self.work.atomic)


ITEMS.add(ThreadLane._do.__code__)  # where fm.emit finds the item

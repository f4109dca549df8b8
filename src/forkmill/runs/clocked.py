"""A lazy call's function, whose calls are told, wherever an executor makes each by itself.

    a thread of this process   Clocked ──▶ its sheet ──every 5 ms, and at the end──▶ "items"
    another process            Clocked ──▶ a word a call: it may have been made for this one alone

(A pool's map has its worker's loop measure: native/timed.pxi.)

Guarantees: without a listener nothing of it is made. Who listens changes nothing of a call. Calls
under 20 us are not all measured, unless every one is asked for.

Threads: any; each has a sheet of its own. `tell` is called when no call runs.
"""

from __future__ import annotations

from _thread import get_native_id
from array import array
from time import perf_counter
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from .. import errors
from .._process import SHARES, STREAM, VOICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .window import LazyCall

__all__ = ["Clocked", "clocked"]

_SHORT = 20e-6  # seconds
_EVERY = 64  # one in so many short calls is measured, where many follow each other
_TELL = 5e-3


def clocked(call: LazyCall) -> Callable[..., Any]:
    """The function of a lazy call; if somebody hears of its calls, one that tells of them."""
    if call.told is None or call.told[2] == "runs":
        return call.fn
    run, name, detail = call.told
    fn = call.fn
    if SHARES:  # nobody looks for handles in what is wrapped
        fn = SHARES[0].hold_call(fn, (), {})[0]
    clock = Clocked(fn, run, name, detail == "every")
    call.settle = clock.tell
    if errors.is_coroutine_function(fn):

        async def later(*args: Any, **kwargs: Any) -> Any:
            return await clock(*args, **kwargs)

        return later
    return clock


class _Sheet:
    """The calls of one thread, since they were told."""

    __slots__ = ("calls", "first", "left", "step", "thread", "times", "told")

    def __init__(self) -> None:
        self.thread = get_native_id()
        self.calls = self.first = 0  # in all; those before were told
        self.left = 1  # calls to the next that is measured
        self.step = 1  # what it is after a short one: of a few that come alone all are measured
        self.times: list[float] = []  # number since `first`, begin, seconds; and so on
        self.told = 0.0


class Clocked:
    """A function, and the times of its calls.

    Args:
        fn: The function.
        run: The id of the run.
        name: What it is called in events.
        every: Each call is measured, however short.
    """

    _forkmill_label = ""

    def __init__(self, fn: Any, run: str, name: str, every: bool) -> None:
        self._facts = fn, run, name, every
        self._fn = fn
        self._forkmill_label = name
        self._sheets: dict[int, _Sheet] = {}

    def __reduce__(self) -> Any:
        return Clocked, self._facts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        me = get_native_id()
        sheet = self._sheets.get(me)
        if sheet is None:
            sheet = self._sheets[me] = _Sheet()
        sheet.left -= 1
        if sheet.left > 0:
            sheet.calls += 1
            return self._fn(*args, **kwargs)
        begin = perf_counter()
        try:
            value = self._fn(*args, **kwargs)
        except BaseException:
            self._note(sheet, begin)
            raise
        if type(value) is CoroutineType:
            return self._later(begin, value)
        self._note(sheet, begin)
        return value

    async def _later(self, begin: float, coroutine: Any) -> Any:
        try:
            return await coroutine
        finally:
            self._note(self._sheets.setdefault(get_native_id(), _Sheet()), begin)

    def _note(self, sheet: _Sheet, begin: float) -> None:
        end = perf_counter()
        sheet.times += (sheet.calls - sheet.first, begin, end - begin)
        sheet.calls += 1
        here = bool(STREAM) and STREAM[0].known(self._facts[1])
        # Elsewhere nobody says at the end what was not told yet.
        if self._facts[3] or not here or end - begin >= _SHORT:
            sheet.left = sheet.step = 1
        else:
            sheet.left, sheet.step = sheet.step, min(2 * sheet.step, _EVERY)
        if not here or end - sheet.told >= _TELL:
            sheet.told = end
            self._tell(sheet, here)

    def tell(self) -> None:
        """Say what was not said yet; when nobody calls anything."""
        for sheet in tuple(self._sheets.values()):
            self._tell(sheet, True)

    def _tell(self, sheet: _Sheet, here: bool) -> None:
        _, run, name, _ = self._facts
        first, count = sheet.first, sheet.calls - sheet.first
        times, sheet.times, sheet.first = sheet.times, [], sheet.calls
        data = {"first": first, "count": count, "packed": array("d", times).tobytes()}
        if here and count:
            emitter = STREAM[0].emitter_of(run)
            if emitter is not None:
                emitter.emit("items", name, worker=sheet.thread, **data)
        elif count and VOICE:
            VOICE[0].say(("items", run, name, None, data, None))

"""What the calls of nodes take, told from where they are made, in whatever process that is.

    a node's function ──clock──▶ Sheet of a thread ──now and then──▶ "items": count, begins, seconds
    a hit of a cache  ──hit────▶                   ──────────────▶ "cached": count

A sheet is told every 5 ms, by the last call that a worker was sent together with others, and at the
end of the run. Calls under 20 us are not all measured, unless every one is asked for.

Guarantees: without a listener nothing of it is made. Who listens changes nothing of a call.

Threads: any; each has a sheet of its own, so that nothing is locked (a fork might leave it so).
"""

from __future__ import annotations

from _thread import get_ident
from array import array
from inspect import iscoroutinefunction
from time import perf_counter
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

from .._process import VOICE
from .._said import told

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clocks", "Heard"]

_SHORT = 20e-6  # seconds
_EVERY = 64  # one in so many short calls is measured, where many follow each other
_TELL = 5e-3
_MOST = 4000  # measured calls in a word, which has to have room


class Heard(NamedTuple):
    """Who hears of a group's calls, as it travels with them.

    Attributes:
        run: The id of the run's emitter.
        label: What the group is called.
        names: What its steps are called, with the path that leads to them.
        detail: "runs", "items" or "every".
        alone: Each call has a process of its own.
    """

    run: str
    label: str
    names: tuple[str, ...]
    detail: str
    alone: bool = False

    @property
    def origin(self) -> Any:
        """For whom the calls work: see `forkmill._said`."""
        return self.run, self.label, {}, None


class _Node:
    """A node's calls in one thread, since they were told."""

    __slots__ = ("calls", "first", "hits", "left", "step", "times")

    def __init__(self) -> None:
        self.calls = self.first = 0  # in all; those before were told
        self.left = 1  # calls to the next that is measured
        self.step = 1  # what it is after a short one: of a few that come alone all are measured
        self.times: list[float] = []  # number since `first`, begin, seconds; and so on
        self.hits = 0


class _Sheet:
    __slots__ = ("nodes", "told")

    def __init__(self, number: int) -> None:
        self.nodes = [_Node() for _ in range(number)]
        self.told = 0.0


class Clocks:
    """Those of a group's nodes, in one process."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._every = heard.detail == "every"
        self._sheets: dict[int, _Sheet] = {}  # by thread

    def _sheet(self) -> _Sheet:
        me = get_ident()
        sheet = self._sheets.get(me)
        if sheet is None:
            sheet = self._sheets[me] = _Sheet(len(self._heard.names))
        return sheet

    def clock(self, k: int, fn: Any) -> Any:
        """The function of a node, measured; as it is, if nobody wants to know."""
        if self._heard.detail == "runs":
            return fn

        def call(*args: Any, **kwargs: Any) -> Any:
            node = self._sheet().nodes[k]
            node.left -= 1
            if node.left > 0:
                node.calls += 1
                return fn(*args, **kwargs)
            begin = perf_counter()
            try:
                value = fn(*args, **kwargs)
            except BaseException:
                self._note(node, begin)
                raise
            if type(value) is CoroutineType:
                return later(begin, value)
            self._note(node, begin)
            return value

        async def later(begin: float, coroutine: Any) -> Any:
            try:
                return await coroutine
            finally:
                self._note(self._sheet().nodes[k], begin)

        return call

    def _note(self, node: _Node, begin: float) -> None:
        seconds = perf_counter() - begin
        node.times += (node.calls - node.first, begin, seconds)
        node.calls += 1
        if self._every or seconds >= _SHORT:
            node.left = node.step = 1
        else:
            node.left, node.step = node.step, min(2 * node.step, _EVERY)
        if len(node.times) >= 3 * _MOST:
            self._tell(self._sheet())

    def hit(self, k: int) -> None:
        """A cache had the result of a node."""
        self._sheet().nodes[k].hits += 1

    def around(self, fn: Callable[..., Any]) -> Any:
        """The function of the group, which tells what is due."""

        def group(item: Any = None) -> Any:
            last = bool(VOICE) and VOICE[0].last_of_frame(self)
            try:
                return fn(item)
            finally:
                self._due(last)

        async def awaited(item: Any = None) -> Any:
            try:
                return await fn(item)
            finally:
                self._due(False)

        return awaited if iscoroutinefunction(fn) else group

    def _due(self, last: bool) -> None:
        sheet = self._sheet()
        if last or self._heard.alone or perf_counter() - sheet.told >= _TELL:
            self._tell(sheet)

    def tell(self) -> None:
        """Say what was not said yet; when nobody calls anything."""
        for sheet in tuple(self._sheets.values()):
            self._tell(sheet)

    def _tell(self, sheet: _Sheet) -> None:
        sheet.told = perf_counter()
        run = self._heard.run
        for name, node in zip(self._heard.names, sheet.nodes, strict=True):
            first, count = node.first, node.calls - node.first
            times, node.times, node.first = node.times, [], node.calls
            if count and self._heard.detail != "runs":
                data = {"first": first, "count": count, "packed": array("d", times).tobytes()}
                told("items", run, name, data)
            hits, node.hits = node.hits, 0
            if hits:
                told("cached", run, name, {"count": hits})

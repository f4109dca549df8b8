"""A map of one group over a process pool: the pool's own map, in blocks of rows.

    items ──▶ pool.map(function of the group) ──results──▶ blocks: Rows, or (index, row) pairs

Guarantees: as the flow's, for what it can do (see `pool_of`). Ctrl-C: nothing more is pulled, and
what was sent is finished.

Threads: the call's own.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from functools import partial
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .bundle import Bare, Lasting
from .flow import Flow
from .frames import UNUSUAL
from .levels import Values
from .rows import Maker
from .ways import Bell, Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .homes import Home, Session
    from .levels import Layout
    from .post import Post
    from .telling import Telling

__all__ = ["by_pool", "pool_of"]

_LOOK_S = 0.002  # between two looks at what a pool's map has given, where somebody is told
_MOST = 1 << 31  # results at one look
_FEW = 32  # where somebody asks for one row after another


def pool_of(layout: Layout, ctx: Any, items: Any, tell: Telling | None) -> Home | None:
    """The pool whose own map does it all; None: the flow does it.

    A stop from elsewhere, tries after a death, batches, results in any order, and items of which
    each is told, are the flow's.
    """
    if not layout.straight or ctx.began is not None or not ctx.ordered:
        return None
    if tell is not None and tell.singly:
        return None
    post = layout.posts[0]
    home: Home = post.home
    retried = any(step.node.retry is not None for step in post.group.steps)
    others = home.remote or home.type in ("cow_fork", "async")
    if post.batch or retried or not home.kills or others:
        return None
    return home


def by_pool(
    session: Session, layout: Layout, items: Any, ctx: Any, tell: Telling | None
) -> Iterator[list[tuple[int, Any]]]:
    """Rows of a map of one group over a process pool."""
    (post,) = layout.posts
    face: Any = session.executor(post.home)._excused()  # a death costs an item, and is told there
    if post.timeout is not None:
        face = face.options(timeout=post.timeout)
    flow = Flow(layout, iter(()), [], Bell(), ctx, tell)
    column = _Column(post, items, ctx.interrupts)
    results: Any = face.map(
        _function(session, post),
        column.values,
        chunksize=ctx.chunksize,
        buffersize=ctx.buffersize,
        return_exceptions=True,
    )
    ctx.interrupts.guards(_Results(results))
    return _blocks_of(results, flow, tell, column, ctx)


def _function(session: Session, post: Post) -> Bare:
    """What the pool calls: that of the last map, if it is the same."""
    if not post.steady:
        return Bare(post.call)
    key, piece = post.home.key, post.call.piece
    last: Lasting | None = session.sent.get(key)
    if last is None or not last.does(post.call):
        known, pace = session.paces.get(key, (None, []))
        if known != piece:
            pace = []
        session.paces[key] = piece, pace
        last = session.sent[key] = Lasting(post.call, pace)
    return last


class _Results:
    """What Ctrl-C ends: what has begun is finished, and all before it."""

    def __init__(self, results: Any) -> None:
        self._results = results

    def stop(self) -> None:
        """Nothing more is begun."""
        self._results.stop()

    def kill(self) -> None:
        """What raises meanwhile closes the results."""


def _blocks_of(
    results: Any, flow: Flow, tell: Telling | None, column: _Column, ctx: Any
) -> Iterator[list[tuple[int, Any]]]:
    layout = flow.top.layout
    (post,) = layout.posts
    maker = Maker(layout.outputs, post.writes)
    # Rows that were taken and are not handed on count as consumed: they must be few.
    most = _MOST if ctx.mode == "map" else 1 if ctx.buffersize is not None else _FEW
    take = _taker(results, most, ctx.mode == "map", told=tell is not None)
    at, more = 0, True
    try:
        while more and flow.top.limit is None:
            values: list[Any] = []
            try:
                more = take(values)
                if ctx.interrupts.noted:
                    _finish(take, values)
                    more = False
            finally:
                number = len(values)
                if values:  # also those before an exception
                    if tell is not None:
                        tell.sent(post, at, number)
                    yield from _told(flow, tell, maker, column, at, values)
            at += number
        ctx.interrupts.check()
    finally:
        results.close()


def _finish(take: Callable[[list[Any]], bool], values: list[Any]) -> None:
    """After a stop: take all that there is still, up to the first that was not begun. What lies
    behind it has mostly not begun either, and rows have no holes."""
    while take(values):
        pass
    for at, value in enumerate(values):
        if _was_not_begun(value):
            del values[at:]
            break


def _was_not_begun(value: Any) -> bool:
    """Whether it stands for what was taken back: one that a call raised has its cause there."""
    return type(value) is CancelledError and value.__cause__ is None


def _taker(results: Any, most: int, mapped: bool, *, told: bool) -> Callable[[list[Any]], bool]:
    """What takes the next results, of which only the last is unusual; False at the end."""
    several = getattr(results, "take", None)  # a pool without workers has none
    if several is None:
        return partial(_take_one, results)
    if not mapped or not told:
        return partial(several, most=most, odd=UNUSUAL, whole=mapped)

    def take(values: list[Any]) -> bool:
        until = perf_counter() + _LOOK_S
        more: bool = several(values, most, UNUSUAL)
        while more and perf_counter() < until and not _is_odd(values[-1]):
            more = several(values, most, UNUSUAL)
        return more

    return take


def _take_one(results: Any, values: list[Any]) -> bool:
    before = len(values)
    values.extend(islice(results, 1))
    return len(values) > before


def _is_odd(value: Any) -> bool:
    return type(value) in UNUSUAL or isinstance(value, BaseException)


class _Column:
    """The items of a map as a pool's are: the user's own list, if it is one. Else those are kept
    that the pool has been given and has not answered."""

    def __init__(self, post: Any, items: Any, interrupts: Any) -> None:
        self._interrupts = interrupts
        self._get = post.getter
        self._items = items
        self._kept: dict[int, Any] = {}
        self._own = post.group.bare and len(items.map_over) == 1 and items.quick
        self.values: Iterable[Any] = items.bare if self._own else self._pulled()

    def _pulled(self) -> Iterator[Any]:
        get, kept, interrupts = self._get, self._kept, self._interrupts
        interrupts.pulls = not self._items.quick
        try:
            for index, item in enumerate(self._items):
                interrupts.pulls = False
                kept[index] = item
                yield get(item)
                interrupts.pulls = not self._items.quick
        except KeyboardInterrupt:
            if not interrupts.noted:
                raise
        finally:
            interrupts.pulls = False

    def take(self, index: int, number: int) -> list[Any]:
        """So many items from that one on; those are answered."""
        if self._own:
            return [(value,) for value in self._items.bare[index : index + number]]
        return [self._kept.pop(at) for at in range(index, index + number)]

    def drop(self, index: int, number: int) -> None:
        """So many are answered, and nobody asks for them."""
        if not self._own:
            for at in range(index, index + number):
                del self._kept[at]


def _told(
    flow: Flow,
    tell: Telling | None,
    maker: Maker,
    column: _Column,
    at: int,
    values: list[Any],
) -> Iterator[list[tuple[int, Any]]]:
    """The rows of results, of which only the last is unusual if nobody has stopped them."""
    post = flow.top.layout.posts[0]
    for lot in _lots(values) if flow.ctx.interrupts.noted else (values,):
        last = [lot.pop()] if _is_odd(lot[-1]) else []
        if lot:
            column.drop(at, len(lot))
            if tell is not None:
                tell.came(post, at, len(lot))
            yield Values(lot, at, maker)
        at += len(lot)
        for value in last:
            (item,) = column.take(at, 1)
            out = Ended(value, item) if isinstance(value, BaseException) else value
            yield flow.settled(at, item, out)
            if flow.top.limit is not None:
                return
            at += 1


def _lots(values: list[Any]) -> Iterator[list[Any]]:
    """The same in lists of which only the last is unusual."""
    lot: list[Any] = []
    for value in values:
        lot.append(value)
        if _is_odd(value):
            yield lot
            lot = []
    if lot:
        yield lot

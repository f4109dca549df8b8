"""A map of one group over a process pool: the pool's own map, in blocks of rows.

    items ──▶ pool.map(function of the group) ──results──▶ blocks: Rows, or (index, row) pairs

Guarantees: as the flow's, for what it can do (see `pool_of`). Ctrl-C: nothing more is pulled, and
what was sent is finished.

Threads: the call's own.
"""

from __future__ import annotations

import functools
from concurrent.futures import CancelledError
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .bundle import Bare
from .carrier import UNUSUAL
from .flow import Flow
from .levels import Rows
from .ways import Bell, Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .homes import Home
    from .levels import Layout
    from .telling import Telling

__all__ = ["by_pool", "pool_of"]

_LOOK_S = 0.002  # between two looks at what a pool's map has given
_MOST = 1024  # results at one look
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
    if post.batch or retried or not home.kills or home.type in ("cow_fork", "async"):
        return None
    return home


def by_pool(
    executor: Any, layout: Layout, items: Any, ctx: Any, tell: Telling | None
) -> Iterator[list[tuple[int, Any]]]:
    """Rows of a map of one group over a process pool."""
    (post,) = layout.posts
    face: Any = executor._excused()  # a death costs an item, and is told there
    if post.timeout is not None:
        face = face.options(timeout=post.timeout)
    flow = Flow(layout, iter(()), [], Bell(), ctx, tell)
    column = _Column(post, items, ctx.interrupts)
    results: Any = face.map(
        Bare(post.call),
        column.values,
        chunksize=ctx.chunksize,
        buffersize=ctx.buffersize,
        return_exceptions=True,
    )
    ctx.interrupts.guards(_Results(results))
    return _blocks_of(results, flow, tell, column, ctx)


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
    rows_of = _row_maker(layout.outputs, post.writes)
    # Rows that were taken and are not handed on count as consumed: they must be few.
    most = _MOST if ctx.mode == "map" else 1 if ctx.buffersize is not None else _FEW
    at, size, over = 0, 1, False
    try:
        while not over and flow.top.limit is None:
            start = perf_counter()
            values: list[Any] = []
            try:
                values.extend(islice(results, size))  # keeps those before an exception
                over = len(values) < size
                if ctx.interrupts.noted and (taken := _taken_back(values)):
                    values, over = values[:-taken], True
            finally:
                if values:
                    if tell is not None:
                        tell.sent(post, at, len(values))
                    yield _told(flow, tell, rows_of, column, at, values)
            size = min(most, _next_size(size, perf_counter() - start))
            at += len(values)
        ctx.interrupts.check()
    finally:
        results.close()


def _taken_back(values: list[Any]) -> int:
    """How many at the end were not begun before a stop."""
    begun = [at for at, value in enumerate(values) if type(value) is not CancelledError]
    return len(values) - 1 - (begun[-1] if begun else -1)


def _next_size(size: int, seconds: float) -> int:
    if seconds < _LOOK_S / 2:
        return min(2 * size, _MOST)
    return max(1, size // 2) if seconds > _LOOK_S else size


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
    rows_of: Callable[[Iterable[Any]], list[Any]],
    column: _Column,
    at: int,
    values: list[Any],
) -> list[tuple[int, Any]]:
    """The rows of results."""
    kinds = set(map(type, values))
    post = flow.top.layout.posts[0]
    if UNUSUAL.isdisjoint(kinds) and not any(issubclass(kind, BaseException) for kind in kinds):
        column.drop(at, len(values))
        if tell is not None:
            tell.came(post, at, len(values))
        return Rows(rows_of(values), at)
    rows: list[tuple[int, Any]] = []
    items = column.take(at, len(values))
    for index, (item, value) in enumerate(zip(items, values, strict=True), at):
        out = Ended(value, item) if isinstance(value, BaseException) else value
        rows += flow.settled(index, item, out)
        if flow.top.limit is not None:
            break
    return rows


@functools.lru_cache(maxsize=256)
def _row_maker(
    outputs: tuple[tuple[str, int], ...], writes: tuple[int, ...]
) -> Callable[[Iterable[Any]], list[Any]]:
    """A function that makes rows of what calls give: bare values, or tuples."""
    if len(writes) == 1:
        pattern = f"v{writes[0]}"
    else:
        pattern = f"({', '.join(f'v{slot}' for slot in writes)},)"
    pairs = ", ".join(f"{name!r}: v{slot}" for name, slot in outputs)
    made: Callable[[Iterable[Any]], list[Any]] = eval(
        f"lambda values: [{{{pairs}}} for {pattern} in values]"
    )
    return made

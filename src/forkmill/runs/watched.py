"""A lazy call that somebody watches: it tells the stream of events how far it is.

    Face.map(progress=True) ──▶ watched ──▶ the iterator, as ever
                                   └── figures ◀── forkmill-events, ten times a second

Guarantees: the iterator is the same as without: nothing is done an item, but for those that fail.

Threads: `watched` in that of the caller; figures are read in that of events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _checks, errors, events
from .._watch import Watch, sinks_of
from .unseen import label_of, total_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .window import Closable, LazyCall

__all__ = ["Shown", "watched"]


class Shown:
    """What shall be seen of a lazy call, checked.

    Args:
        progress: As for `sinks_of`.
        total: How many items there are; None: what the input says.
        sinks: As for `sinks_of`.
        report: As for `sinks_of`.

    Raises:
        TypeError, ValueError, OSError: As `sinks_of`.
    """

    __slots__ = ("sinks", "total")

    def __init__(self, progress: Any, total: Any, sinks: Any, report: Any) -> None:
        self.total = None if total is None else _checks.integer("total", total, least=0)
        self.sinks = sinks_of(sinks, progress, report)


def watched(
    lazy: Callable[[LazyCall], Closable[Any]], call: LazyCall, shown: Shown, workers: int
) -> Closable[Any]:
    """The iterator of a lazy call, whose events go to the sinks.

    Args:
        lazy: Makes it.
        call: What was asked for.
        shown: Who hears of it, beside those who hear everything.
        workers: How many work on it at once.
    """
    total = total_of(call) if shown.total is None else shown.total
    # What stands for a function of the user's works for a run that tells of it itself.
    if not shown.sinks and (not events.heard() or errors.label_of(call.fn) is not None):
        return lazy(call)
    watch = Watch("map", label_of(call.fn), shown.sinks)
    call.told = watch.run
    watch.begin(total=total)
    try:
        results: Any = lazy(call)
    except BaseException:
        watch.end("failed")
        raise
    watch.settle = call.settle
    results.watch(watch, total, workers)
    return results  # type: ignore[no-any-return]

"""Lazy calls that nobody watches: who hears everything from later on learns of them then.

    Face.map ──▶ unseen ──▶ the iterator, as ever
                    └── name, total, workers ──▶ _late, if there comes a subscriber ──▶ Watch

Guarantees: nothing is loaded and nothing is done an item; the iterator lives as long as without.

Threads: `unseen` in that of the caller, `_late` in that of who subscribes.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from .. import errors
from .._late import unbroken
from .._process import LATE
from .._said import here

if TYPE_CHECKING:
    from .window import Closable, LazyCall

__all__ = ["label_of", "total_of", "unseen"]

_OPEN: dict[weakref.ref[Any], tuple[str, int | None, int, Any]] = {}
_GONE: list[Any] = []  # the callback of these, once the extension is there


def unseen(results: Closable[Any], call: LazyCall, workers: int) -> Closable[Any]:
    """The iterator of a lazy call, which can be watched later."""
    if hasattr(results, "watch") and errors.label_of(call.fn) is None:
        facts = (label_of(call.fn), total_of(call), workers, here())
        if not _GONE:
            _GONE.append(unbroken(_gone))
        _OPEN[weakref.ref(results, _GONE[0])] = facts
    return results


def label_of(fn: Any) -> str:
    """What a lazy call of a function is called."""
    name = errors.kept_in(fn, "__name__")
    return name if isinstance(name, str) and name else errors.name_of(fn)


def total_of(call: LazyCall) -> int | None:
    """How many items there are, if the input says so without running code of the user's."""
    lengths = map(len, call.iterables)  # type: ignore[arg-type]
    return min(lengths, default=0) if call.quick() else None


def _gone(ref: weakref.ref[Any], _pop: Any = _OPEN.pop) -> None:
    _pop(ref, None)  # at the interpreter's end modules have lost their names


def _late() -> None:
    """There is somebody who hears everything."""
    for ref in [*_OPEN]:
        facts, results = _OPEN.pop(ref, None), ref()
        if facts is None or results is None or results.closed:
            continue
        from .._watch import Watch

        name, total, workers, origin = facts
        results.watch(Watch("map", name, (), origin), total, workers)


LATE.append(_late)
os.register_at_fork(after_in_child=_OPEN.clear)

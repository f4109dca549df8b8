"""How an inline stage's function is called, and what it stands for; how wide any stage is.

    stage ──▶ form_of ──▶ "one" (a value an item), "many", "filter", "consumer", "batch"
                          and its function

Guarantees: what a function's call gives decides what it emits, where that is not known before.

Threads: any; plain functions.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ..._process import cpus
from ...contexts.lanes.emit import each, pieces
from ...runs.policies import Retry
from .flow import Outs
from .work import (
    adapted,
    is_async,
    is_generator,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..graph import Stage

__all__ = ["emitted_now", "form_of", "is_whole", "width_of"]


def emitted_now(value: Any) -> Iterable[Any]:
    """What a value emits, where it may be all outputs of another try."""
    return value if value.__class__ is Outs else pieces(value)


def form_of(
    stage: Stage, watched: Callable[[Any], Any], settled: Callable[[Any], Any]
) -> tuple[str, Any]:
    """How an inline stage is called: one value, many, a filter; and the function for it.

    Args:
        stage: The stage.
        watched: What outputs go through that are collected.
        settled: What coroutines go through.
    """
    fn = stage.fn
    if fn is not None and stage.kind not in ("flat", "producer") and is_async(fn):
        fn = _awaiting(settled, fn)
    if stage.kind == "batch":
        return "batch", fn
    if stage.kind == "unbatch":
        fn = _elements
    elif stage.kind == "flat" and is_async(fn):
        fn = adapted(stage)
        return ("one", functools.partial(_all, watched, fn)) if is_whole(stage) else ("one", fn)
    many = stage.kind in ("flat", "unbatch") or (is_generator(fn) and not is_async(fn))
    if stage.kind == "filter":
        return "filter", fn
    if is_whole(stage) and stage.kind != "producer":
        if stage.kind in ("flat", "unbatch"):
            fn = functools.partial(_all_of, watched, fn)
        elif is_generator(stage.fn) or is_async(fn):  # else it will hardly emit more than one
            fn = functools.partial(_all, watched, fn)
        return (stage.kind if stage.kind == "consumer" else "one"), fn
    if many:
        return "many", fn
    return ("consumer" if stage.kind == "consumer" else "one"), fn


def is_whole(stage: Stage) -> bool:
    """Whether an item's outputs must come from one try."""
    return isinstance(stage.on_error, Retry)


def _elements(item: Any) -> Any:
    return item


def _awaiting(settled: Any, fn: Any) -> Any:
    def awaited(item: Any) -> Any:
        return settled(fn(item))

    return awaited


def _all(watched: Any, fn: Any, item: Any) -> Any:
    return Outs(watched(pieces(fn(item))))


def _all_of(watched: Any, fn: Any, item: Any) -> Any:
    return Outs(watched(each(fn(item))))


def width_of(stage: Stage) -> int:
    """How many calls of a stage run at once, at most."""
    spec = stage.spec
    if spec.type == "inline":
        return 1
    if spec.max_workers is not None:
        return spec.max_workers
    if spec.type == "async":
        return 100
    n = cpus()
    return min(32, n + 4) if spec.type == "thread" else n

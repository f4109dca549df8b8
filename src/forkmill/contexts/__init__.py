"""Execution contexts: where calls run. One interface, six ways.

==============  ======================  ==================================================
type            aliases                 what runs where
==============  ======================  ==================================================
``inline``      sequential              the caller's thread, at once
``thread``      threaded                up to n threads
``ipc_fork``    parallel, process       n persistent workers: a ProcessPool
``cow_fork``    fork                    one fresh fork a call, which inherits everything
``interpreter``                         n subinterpreters (CPython >= 3.14), else threads
``async``                               an event loop in a thread of its own
==============  ======================  ==================================================

A *Spec* says which (``"thread:8"``, ``fm.thread(8)``): plain data. An *Executor* runs many calls, a
*Context* one at a time, a *Lane* one stage of a pipeline: all three over any type.

The functions that make specs (``fm.thread(8)``) live in `specs`: here the modules have their names.

Loaded with this module is what a stage's work is made of, which each worker needs for its first
item; all else when it is first asked for.
"""

from __future__ import annotations

import itertools
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .lanes.lane import (
    END,
    Batch,
    Lane,
    Taken,
    Work,
    place,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Executor, Metrics, called, inside
    from .context import Context
    from .context_pool import ContextPool
    from .named import NamedPool, named_pool
    from .specs import (
        ALIASES,
        TYPES,
        Spec,
        register,
        spec,
        type_name,
    )

__all__ = [
    "ALIASES",
    "END",
    "TYPES",
    "Batch",
    "Context",
    "ContextPool",
    "Executor",
    "Lane",
    "Metrics",
    "NamedPool",
    "Spec",
    "Taken",
    "Work",
    "called",
    "create_context",
    "executor",
    "inside",
    "marker",
    "named_pool",
    "place",
    "register",
    "spec",
    "type_name",
]

# Where each name is that is loaded when it is first asked for.
_HOMES = {
    name: home
    for home, names in {
        "base": "Executor Metrics called inside",
        "context": "Context",
        "context_pool": "ContextPool",
        "named": "NamedPool named_pool",
        "specs": "ALIASES TYPES Spec register spec type_name",
    }.items()
    for name in names.split()
}

_numbers = itertools.count(1)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
    return value


def create_context(type: str | Spec, name: str | None = None, **options: Any) -> Context:
    """A context that does one call at a time.

    Args:
        type: A type, an alias, a named pool, or a spec.
        name: What it is called.
        **options: The type's options.

    Raises:
        ValueError: An unknown type; names the nearest.
        TypeError: An unknown option.
    """
    from .context_pool import make
    from .specs import spec

    kind = spec(type, **options)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str or None, not {name.__class__.__name__!r}")
    return make(kind, name or f"{kind.type}-context-{next(_numbers)}")


def executor(type: str | Spec, max_workers: int | None = None, **options: Any) -> Executor:
    """Any type of context as an Executor, with ProcessPool's `map` and `options`.

    Args:
        type: A type, an alias, a text such as "thread:8", a spec such as ``fm.thread(8)``, or the
            name of a shared pool, which `shutdown` then does not end.
        max_workers: How many calls at once; None: the type's default.
        **options: The type's options.

    Raises:
        ValueError: An unknown type, naming the nearest, or a wrong value.
        TypeError: An unknown option.
    """
    from .specs import spec

    return spec(type, max_workers, **options).open()


def marker(kind: str) -> Callable[[int], object]:
    """What a call in a type of context says with how far it has come.

    Should its process die, the number that was said last is the `mark` of the WorkerDied.

    Args:
        kind: The type. Where calls have no process of their own, it does nothing.
    """
    if kind not in ("ipc_fork", "cow_fork"):
        return _say_nothing
    from .lanes.in_worker import mark

    return mark


def _say_nothing(number: int) -> None:
    """There is nobody who could die alone."""

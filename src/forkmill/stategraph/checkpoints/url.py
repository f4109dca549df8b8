"""A store by its URL: what ``compile(checkpoints=...)`` and the command line take."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..._checks import nearest
from .store import Checkpoints

__all__ = ["SCHEMES", "opened"]

# Scheme -> (module, class); the class gets the rest of the URL, or with True the whole of it.
SCHEMES = {
    "sqlite": ("sqlite", "SQLiteCheckpoints", False),
    "postgresql": ("postgres", "PostgresCheckpoints", True),
    "postgres": ("postgres", "PostgresCheckpoints", True),
    "memory": ("memory", "MemoryCheckpoints", None),
}


def opened(store: Any, **options: Any) -> Checkpoints:
    """A store, of itself or of its URL: ``"sqlite:path"``, ``"postgresql://..."``, ``"memory:"``.

    Nothing is opened yet.

    Args:
        store: A store, or a URL.
        options: For the store's class, with a URL.

    Raises:
        TypeError: Neither of them.
        ValueError: No such scheme; the message names the nearest.
        ModuleNotFoundError: Its package is not installed; the message names the extra.
    """
    if isinstance(store, Checkpoints):
        return store
    if not isinstance(store, str):
        raise TypeError(
            f"checkpoints must be a store (fm.SQLiteCheckpoints(path), ...) or its URL "
            f"('sqlite:runs.db'), not {type(store).__name__!r}"
        )
    scheme, colon, rest = store.partition(":")
    if not colon or scheme not in SCHEMES:
        hint = f", did you mean 'sqlite:{store}'?" if not colon else nearest(scheme, SCHEMES)
        raise ValueError(f"there is no kind of store for {store!r}{hint}")
    module, name, takes_all = SCHEMES[scheme]
    cls = getattr(import_module(f".{module}", __package__), name)
    made: Checkpoints
    if takes_all is None:
        if rest:
            raise ValueError(f"'memory:' has nothing behind it, not {rest!r}")
        made = cls(**options)
    else:
        made = cls(store if takes_all else rest, **options)
    return made

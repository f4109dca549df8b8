"""Where the sessions of state graphs are kept.

========  =======================================================================
store     the protocol between a run and a store, and what they speak of
codecs    values to bytes and back; all that a worker needs of this package
owner     who has claimed a session, and whether that process is known to be dead
memory    a store in this process's memory
url       a store by its URL
========  =======================================================================

Workers import `codecs` from here and nothing else, so nothing is imported before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .memory import MemoryCheckpoints
    from .store import Checkpoints
    from .url import opened

__all__ = ["Checkpoints", "MemoryCheckpoints", "opened"]

_HOMES = {
    "PostgresCheckpoints": "postgres",
    "SQLiteCheckpoints": "sqlite",
    "Checkpoints": "store",
    "MemoryCheckpoints": "memory",
    "opened": "url",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

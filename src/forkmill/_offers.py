"""What lower floors offer and higher ones carry out: a name -> "module:name", loaded at its use.

Filled by `forkmill/__init__`, which may know every floor; so a floor need not import one above it.

Threads: any.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["OFFERS", "offered"]

OFFERS: dict[str, str] = {}


def offered(name: str) -> Any:
    """What stands behind a name."""
    module, _, attribute = OFFERS[name].partition(":")
    return getattr(import_module(module), attribute)

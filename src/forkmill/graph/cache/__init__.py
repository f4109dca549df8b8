"""Results of nodes, kept for the next run: keys, and where values are kept.

::

    walk.py, forms.py, leaves.py               code.py
      value ──▶ token                            function ──▶ digest, and what it holds and names
         └──────────────┬──────────────────────────┘
    call.py     NodeKey, CallCache: what the engines call
                        │ get(key) set(key, value)
    disk.py     DiskCache (any number of processes)        memory.py   MemoryCache (this one)
"""

from __future__ import annotations

from .call import MISS, Cache, CallCache, NodeKey, node_key
from .disk import DiskCache
from .memory import MemoryCache

__all__ = ["MISS", "Cache", "CallCache", "DiskCache", "MemoryCache", "NodeKey", "node_key"]

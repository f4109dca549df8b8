"""The function graph: functions with named outputs, wired by the names of their parameters.

    fm.node ──▶ Node ─┐
    functions, graphs ┴▶ Graph ──compile──▶ Plan ──groups──▶ generated functions ──▶ rows
                                                   an Engine says where, and carries it out

=========  =================================================================================
nodes      a function with named outputs
wiring     names to edges, and everything that is checked before code of the user's runs
nested     a graph as a node
fits       types of the two ends of an edge
compile    a graph, for what is given and wanted, as a Plan
plan       slots, steps, groups: plain data
piece      a group as it travels to workers,
code       the function that it becomes there,
text       of this text;
walk       what that does when something is not usual,
calling    caches before, maps within a function,
loss       and what it tells of it
given      what may be given, and mapped
calls      one call: checked, its items, its rows in order
failed     Failures and what is raised;
rows       the result of a map
shape      what a graph is, and the graphs made of it;
graph      and the ways to run it: what users have
func       a graph as a function
show       descriptions, pictures;
planned    who would run what
engine     where it runs:
homes      what executors were asked for, and are open
crew       who of them does what,
ways       how it gets there and back;
sweep      to threads, many items at once,
submits    to executors of others,
bypool     or by a pool's own map;
flow       and the loop over all of them:
post       what a group is in it,
handing    large values on their way to other processes
levels     where items come from, and are,
frames     and what becomes of them,
together   many at once
bundle     what workers of others call
asking     caches that are asked here
feeder     an input in a thread of its own
clocks     what calls take, told from where they are made
telling    events and figures
handles    in the background, and for asyncio
executors  AsyncExecutor
cache      results that are kept
=========  =================================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import DiskCache, MemoryCache
    from .engine import Engine, LocalEngine
    from .executors import AsyncExecutor
    from .graph import Graph
    from .nodes import Node, node
    from .rows import MapResult

__all__ = [
    "AsyncExecutor",
    "DiskCache",
    "Engine",
    "Graph",
    "LocalEngine",
    "MapResult",
    "MemoryCache",
    "Node",
    "node",
]

# Loaded when asked for: a worker imports `code` and what that needs, a tenth of it all; and
# AsyncExecutor needs asyncio.
_HOMES = {
    "AsyncExecutor": "executors",
    "DiskCache": "cache",
    "Engine": "engine",
    "Graph": "graph",
    "LocalEngine": "engine",
    "MapResult": "rows",
    "MemoryCache": "cache",
    "Node": "nodes",
    "node": "nodes",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return value

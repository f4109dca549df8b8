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
loss       and what it tells of it
given      what may be given, and mapped
calls      one call: checked, its items, its rows in order
failed     Failures and what is raised;
rows       the result of a map
graph      what users run
func       a graph as a function
show       descriptions, pictures
engine     where it runs
cache      results that are kept
=========  =================================================================================
"""

from __future__ import annotations

from .cache import DiskCache, MemoryCache
from .engine import Engine
from .graph import Graph
from .nodes import Node, node
from .rows import MapResult

__all__ = ["DiskCache", "Engine", "Graph", "MapResult", "MemoryCache", "Node", "node"]

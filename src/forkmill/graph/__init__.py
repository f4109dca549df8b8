"""The function graph: functions with named outputs, wired by the names of their parameters.

    fm.node ──▶ Node ─┐
    functions, graphs ┴▶ Graph ──compile──▶ Plan ──groups──▶ generated functions ──▶ rows
                                                   an Engine says where, and carries it out

=========  =================================================================================
node       a function with named outputs
wiring     names to edges, and everything that is checked before code of the user's runs
compile    a graph, for what is given and wanted, as a Plan
plan       slots, steps, groups: plain data
code       the function that a group becomes; all that a worker needs
given      what may be given, and mapped
failed     failures, and the rows of a map
graph      what users run
engine     where it runs
=========  =================================================================================
"""

from __future__ import annotations

from .node import Node, node

__all__ = ["Node", "node"]

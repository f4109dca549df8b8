"""State graphs: one state, nodes that return updates, supersteps that are stored.

========  =========================================================================================
module    what it has
========  =========================================================================================
words     what nodes say: Send, Command, DELETE, Overwrite, append, interrupt, task_id
view      a node's own look at the state
task      one task, wherever it runs: all that a worker needs, with the two above
schema    keys, reducers, where they start
node      a node as it was declared
rules     the pure functions: which updates go together, which tasks are next
graph     StateGraph: what is written
plan      what is compiled from it: checks, hash, callables
line      a session as a run knows it, and its form in the store
begin     how a call gets its session: checked, claimed, begun
nested    graphs, pipelines and state graphs as nodes
places    where tasks run; given: what they are given there
run       the superstep loop; straight: its simplest steps; carried: exceptions that leave it
limits    when a run ends; keep: what it stores; fits: what can be
tell      events, and the items of streams
drive     who runs a run: the caller, a handle, a stream; aio: an event loop
session   a session in the hand
result    what a run came to
app       what users call
drawing   describe, to_mermaid
========  =========================================================================================

Workers import `task`, and nothing is imported here before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import App
    from .graph import StateGraph
    from .result import StateRun, StateStats, StepReport
    from .session import Session
    from .words import (
        DELETE,
        END,
        START,
        Command,
        Interrupt,
        Overwrite,
        Send,
        TaskId,
        append,
        interrupt,
        task_id,
    )

__all__ = [
    "DELETE",
    "END",
    "START",
    "App",
    "Command",
    "Interrupt",
    "Overwrite",
    "Send",
    "Session",
    "StateGraph",
    "StateRun",
    "StateStats",
    "StepReport",
    "TaskId",
    "append",
    "interrupt",
    "task_id",
]

_HOMES = {
    "App": "app",
    "Session": "session",
    "StateGraph": "graph",
    "StateRun": "result",
    "StateStats": "result",
    "StepReport": "result",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'words')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Pipelines: stages in any context, linked; nothing lost, nothing hanging.

    Pipeline ──build──▶ StageGraph ──▶ ExecutionPlan ──Orchestrator──▶ Driver ──▶ RunResult

============== =============================================================================
declare        decorators, verbs, classes: what a user writes
pipeline       what is declared, and runs
options        the options of stages, checked
graph, routes  names resolved, links made, everything checked
plan           which stages run together, and where
run/driver     one run: a loop over operators
run/state      what the operators share of a run, and may ask of it
run/flow       queues between them, and what ends a turn
run/operators  stages while they run, with their queues and counters;
run/sources    and producers,
run/lanes      and stages in contexts
run/fuse       neighbouring inline stages as one function
run/work       what travels to a context
run/chains     neighbours on a named pool as one call in the worker
run/interrupts Ctrl-C in the main thread
run/nested     a pipeline that runs as a whole in a context
run/bursts     what stream() takes of stages that are one function
run/sign       a byte that says to all processes of a run: stop
run/told       what a run tells of its plan
run/shuffle    a test mode: no order where none is promised
../runs        what comes out, the ways to wait for it, and Ctrl-C
monitor        what somebody beside the run sees of it
load           a pipeline by its name, for command lines
============== =============================================================================

A pipeline knows contexts by their Lanes alone.
"""

from __future__ import annotations

from ..runs.failure import Failure
from ..runs.handle import Handle, Stream
from ..runs.policies import dead_letter, retry
from ..runs.result import RunResult
from ..runs.stats import EdgeStats, RunStats, StageStats
from .declare import (
    after_fork,
    after_run,
    after_stage,
    batch,
    before_fork,
    before_run,
    before_stage,
    consumer,
    producer,
    stage,
    to,
    unbatch,
)
from .load import load
from .monitor import Monitor
from .orchestrator import Orchestrator
from .pipeline import Pipeline
from .plan import ExecutionPlan

__all__ = [
    "EdgeStats",
    "ExecutionPlan",
    "Failure",
    "Handle",
    "Monitor",
    "Orchestrator",
    "Pipeline",
    "RunResult",
    "RunStats",
    "StageStats",
    "Stream",
    "after_fork",
    "after_run",
    "after_stage",
    "batch",
    "before_fork",
    "before_run",
    "before_stage",
    "consumer",
    "dead_letter",
    "load",
    "producer",
    "retry",
    "stage",
    "to",
    "unbatch",
]

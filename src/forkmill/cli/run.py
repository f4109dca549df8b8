"""``forkmill run``: what MODULE:NAME is decides who runs it.

A pipeline, a class or a function that makes one: `cli/pipelines.py`; a graph: `cli/graphs.py`;
a compiled state graph: `cli/states.py`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import click

from .. import errors
from .._target import TargetError, setting
from .base import (
    FAILED,
    INTERRUPTED,
    MOST_TOLD,
    Target,
    nobody_reads,
    progress_option,
    tell,
    workers_option,
)
from .outputs import terminal

__all__ = ["plan_facts", "run_"]


@click.command("run")
@click.argument(
    "pipeline",
    metavar="MODULE:PIPELINE",
    type=Target("pipeline", "mymodule:WordCount", called=False),
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="An argument of the pipeline's class or function, or an attribute. JSON, or else text.",
)
@workers_option
@progress_option
@click.option("--plan", "plan_only", is_flag=True, help="Print what would run where, and stop.")
@click.option(
    "--keep-failures",
    metavar="N",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Keep so many failures whole, and count the rest.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of outputs.")
@click.option("--session", metavar="ID", help="Of a state graph: begin this session, or go on.")
@click.option("--resume", metavar="VALUE", help="The answer to what the session asks.")
@click.option(
    "--answer",
    "answers",
    metavar="QUESTION VALUE",
    nargs=2,
    multiple=True,
    help="The answer to one of several questions.",
)
@click.option("--abandon", is_flag=True, help="A new turn of a session that is unfinished.")
@click.option("--take-over", is_flag=True, help="Take a session from a run that may be alive.")
def run_(
    pipeline: Any,
    settings: tuple[str, ...],
    workers: int | None,
    progress: bool,
    plan_only: bool,
    keep_failures: int,
    as_json: bool,
    **of_sessions: Any,
) -> int:
    """Run a pipeline: an fm.Pipeline, a subclass of it, or a function that returns one.

    What its last stages emit is printed, a line each, as by `forkmill map`; the table of its stages
    comes on stderr at the end. -j is for the stages whose context has no number of workers.

    \b
    forkmill run mymodule:WordCount --set path=book.txt --progress
    forkmill run mymodule:app --session job-1 --set 'topics=["a"]'
    """
    from ..pipeline.load import make
    from . import pipelines as parts
    from . import states
    from .filter import Output, OutputError
    from .screen import shown, table

    try:
        given = dict(map(setting, settings))
    except TargetError as error:
        raise click.BadParameter(str(error), param_hint="'--set'") from None
    if states.is_state_graph(pipeline):
        return states.run_app(pipeline, given, plan_only=plan_only, as_json=as_json, **of_sessions)
    if any(of_sessions.values()):
        raise click.UsageError("--session and what goes with it are for state graphs")
    try:
        plan = parts.sized(make(pipeline, given), workers)
    except errors.BuildError as error:
        raise click.BadParameter(str(error), param_hint="'MODULE:PIPELINE'") from None
    if plan_only:
        click.echo(plan_text(plan, as_json))
        return 0
    with shown(wanted=progress) as board:
        output = None if as_json else Output(1)
        if output is not None and terminal(sys.stdout):
            output.around = board.away
        sinks = [board] if board.on else []
        result, count, end = parts.run(plan, output, sinks, keep_failures)
    if isinstance(end, OutputError) and end.unread:
        nobody_reads()
        return 0
    if result is not None and as_json:
        click.echo(json.dumps(parts.facts(result, count)))
    elif result is not None:
        title = f"{result.status} in {result.duration:.2f} s, {count:,} outputs"
        if result.stats.bottleneck:
            title += f"; bottleneck: {result.stats.bottleneck}"
        with contextlib.suppress(OSError):
            table(title, parts.COLUMNS, parts.rows(result), on_stderr=True)
    return run_status(result, end)


def plan_text(plan: Any, as_json: bool) -> str:
    """A plan for people, or for scripts."""
    if not as_json:
        return str(plan.describe())
    return json.dumps(plan_facts(plan), indent=2)


def plan_facts(plan: Any) -> dict[str, Any]:
    """A plan as plain data."""
    stages = {
        stage.name: {
            "context": plan.context_for(stage.name),
            "with": plan.affinity_for(stage.name),
            "to": [target.name for target in stage.targets],
        }
        for stage in plan.graph.stages
    }
    return {"stages": stages, "mermaid": plan.to_mermaid()}


def run_status(result: Any, error: BaseException | None) -> int:
    """Tell what failed in a run; the exit status."""
    from .filter import OutputError
    from .pipelines import Unprintable, told

    failures = [] if result is None else result.failures
    for failure in failures[:MOST_TOLD]:
        tell(told(failure))
    more = 0 if result is None else result.failed - min(len(failures), MOST_TOLD)
    if more:
        tell(f"and {more:,} failures more")
    if isinstance(error, KeyboardInterrupt):
        tell("stopped")
        return INTERRUPTED
    if error is not None and not isinstance(error, Exception):
        raise error
    if isinstance(error, (OutputError, Unprintable)):
        tell(str(error))
    elif error is not None and all(failure.error is not error for failure in failures):
        tell(f"{type(error).__name__}: {error}")
    return FAILED if error is not None or not result.ok else 0

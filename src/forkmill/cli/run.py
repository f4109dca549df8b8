"""``forkmill run``: what MODULE:NAME is decides who runs it.

A pipeline, a class or a function that makes one: `cli/pipelines.py`; a graph: `cli/graphs.py`;
a compiled state graph: `cli/states.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .. import errors
from .._target import TargetError, setting
from .base import (
    FAILED,
    INTERRUPTED,
    MOST_TOLD,
    Target,
    nobody_reads,
    offering,
    progress_option,
    tell,
    workers_option,
)
from .inputs import InputError
from .outputs import OpenError, mixes, opened, overwrites, terminal
from .page import Page
from .report import report_option, report_sinks
from .top import beside, top_option

if TYPE_CHECKING:
    from ..show.top.launch import Beside
    from .graphs import Done, Job

__all__ = ["plan_facts", "run_"]


@click.command(
    "run",
    cls=Page,
    groups={
        "What is run": ("settings", "mapped", "mode", "want", "only_failed", "plan_only"),
        "Where": ("workers", "engine"),
        "Output": ("output", "on_error", "keep_failures", "as_json"),
        "Seeing it": ("progress", "report", "top"),
        "State graphs": ("session", "resume", "answers", "abandon", "take_over"),
    },
    status={"3": "a state graph that waits for an answer, or was stopped"},
)
@click.argument(
    "thing",
    metavar="MODULE:NAME",
    type=Target("pipeline or graph", "mymodule:WordCount", called=False),
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="An input of the graph; an argument of the pipeline's class or function, or an attribute. "
    "JSON, or else text.",
)
@click.option(
    "--map",
    "mapped",
    metavar="NAME=FILE",
    multiple=True,
    help="Graph: run it for each record of FILE as its input NAME: of .jsonl the value of a line, "
    "of .csv a row, else a line; packed or not. - is stdin, JSON lines.",
)
@click.option(
    "--map-mode",
    "mode",
    type=click.Choice(("zip", "product")),
    default="zip",
    show_default=True,
    help="Graph: how several --map go together.",
)
@click.option("--engine", metavar="SPEC", help="Graph: where it runs, such as parallel:8.")
@click.option(
    "--want", metavar="NAME", multiple=True, help="Graph: only this output, and what it needs."
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True),
    default="-",
    help="Write outputs there (default: stdout).",
)
@click.option(
    "--on-error",
    metavar="stop|skip|FILE",
    shell_complete=offering("stop", "skip"),
    default="stop",
    show_default=True,
    help="What failed is written to FILE, a JSON object a line. Graph: or a failing item stops "
    "everything (stop), or is told and left out (skip); the stages of a pipeline say that.",
)
@click.option(
    "--only-failed",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Run only the items that are in FILE, which --on-error FILE has written; a pipeline's go "
    "into the stage that they failed in.",
)
@workers_option
@progress_option
@report_option
@top_option
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
    thing: Any,
    settings: tuple[str, ...],
    output: str,
    workers: int | None,
    progress: bool,
    report: Path | None,
    top: bool,
    plan_only: bool,
    keep_failures: int,
    as_json: bool,
    **others: Any,
) -> int:
    """Run a pipeline, a graph, or a state graph.

    A pipeline is an fm.Pipeline, a subclass of it, or a function that returns one. What its last
    stages emit is printed, a line each, as by `forkmill map`; the table of its stages comes on
    stderr at the end. -j is for the stages whose context has no number of workers.

    A graph is an fm.Graph. It runs once, or for each record of the --map FILEs; its outputs are
    printed as a JSON object, one a line. -j N is --engine parallel:N.

    \b
    forkmill run mymodule:WordCount --set path=book.txt --report run.html
    forkmill run mymodule:score --map text=texts.jsonl --set k=3 --engine parallel:8 -o out.jsonl
    forkmill run mymodule:app --session job-1 --set 'topics=["a"]'
    """
    from . import states
    from .graphs import is_graph
    from .screen import shown

    try:
        given = dict(map(setting, settings))
    except TargetError as error:
        raise click.BadParameter(str(error), param_hint="'--set'") from None
    sinks = report_sinks(report)
    dashboard = beside(top and not plan_only)
    progress = progress and not top
    common = _Common(output, workers, progress, plan_only, keep_failures, as_json, sinks, dashboard)
    of_graphs = {name: others.pop(name) for name in _OF_GRAPHS}
    if is_graph(thing):
        _refuse(others, "state graphs")
        return run_graph(thing, given, common, **of_graphs)
    of_pipelines = {name: of_graphs.pop(name) for name in ("on_error", "only_failed")}
    _refuse(of_graphs, "graphs")
    if states.is_state_graph(thing):
        _refuse(of_pipelines, "graphs and pipelines")
        with dashboard, shown(wanted=progress) as board:
            return states.run_app(
                thing,
                given,
                plan_only=plan_only,
                as_json=as_json,
                sinks=(*sinks, board) if board.wanted else sinks,
                **others,
            )
    _refuse(others, "state graphs")
    return run_pipeline(thing, given, common, **of_pipelines)


_OF_GRAPHS = ("mapped", "mode", "engine", "want", "on_error", "only_failed")


def _refuse(options: Iterable[str], whose: str) -> None:
    """What was given, and is for something else."""
    ctx = click.get_current_context()
    for name in options:
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            option = next(p.opts[-1] for p in ctx.command.params if p.name == name)
            raise click.BadParameter(f"this is for {whose}", param_hint=f"'{option}'")


class _Common(NamedTuple):
    """Options of pipelines and graphs."""

    output: str
    workers: int | None
    progress: bool
    plan_only: bool
    keep_failures: int
    as_json: bool
    sinks: tuple[Any, ...]
    dashboard: Beside


def run_pipeline(
    pipeline: Any,
    given: dict[str, Any],
    options: _Common,
    on_error: str,
    only_failed: str | None,
) -> int:
    """Run a pipeline; the exit status."""
    from ..pipeline.load import make
    from . import pipelines as parts
    from .screen import shown, table

    _check_kept(on_error)
    _check_files(options.output, on_error, only_failed)
    try:
        plan = parts.sized(make(pipeline, given), options.workers)
    except errors.BuildError as error:
        raise click.BadParameter(str(error), param_hint="'MODULE:NAME'") from None
    if only_failed is not None:
        try:
            some = parts.only_failed(plan, only_failed)
        except (InputError, errors.BuildError) as error:
            raise click.BadParameter(str(error), param_hint="'--only-failed'") from None
        if not some:
            tell(f"nothing has failed in {only_failed}")
            return 0
    if options.plan_only:
        click.echo(plan_text(plan, options.as_json))
        return 0
    with (
        options.dashboard,
        shown(wanted=options.progress) as board,
        written(options, board, on_error) as (output, bad),
    ):
        sinks = (*options.sinks, board) if board.wanted else options.sinks
        result, count, end = parts.run(plan, output, sinks, options.keep_failures, bad)
    if _had_enough(end, on_error):
        nobody_reads()
        return 0
    if result is not None and options.as_json:
        click.echo(json.dumps(parts.facts(result, count)))
    elif result is not None:
        title = f"{result.status} in {result.duration:.2f} s, {count:,} outputs"
        if result.stats.bottleneck:
            title += f"; bottleneck: {result.stats.bottleneck}"
        with contextlib.suppress(OSError):
            table(title, parts.COLUMNS, parts.rows(result), on_stderr=True)
    return run_status(result, end)


def _check_kept(on_error: str) -> None:
    given = click.get_current_context().get_parameter_source("on_error")
    if on_error in _WORDS and given is not click.core.ParameterSource.DEFAULT:
        raise click.BadParameter(
            "the stages of a pipeline say that themselves, as by on_error='skip'; "
            "here a FILE may be named",
            param_hint="'--on-error'",
        )


_WORDS = ("stop", "skip")


def _check_files(
    output: str, on_error: str, only_failed: str | None, mapped: Iterable[str] = ()
) -> None:
    """Refuse to write over what is read, or two things to one place; nothing is open yet.

    Failures may go where those are that are run again: they are all read before that.
    """
    bad = () if on_error in _WORDS else (on_error,)
    again = () if only_failed is None else (only_failed,)
    for option, name, sources in (
        ("-o", output, (*mapped, *again)),
        *(("--on-error", name, (*mapped,)) for name in bad),
    ):
        if any(overwrites(name, source) for source in sources):
            shown = "standard output" if name == "-" else name
            raise click.BadParameter(
                f"{shown} is read as well; name another file", param_hint=f"'{option}'"
            )
    if any(mixes(name, output) for name in bad):
        raise click.BadParameter(
            f"{on_error} is where the results go; name another file", param_hint="'--on-error'"
        )


@contextlib.contextmanager
def written(options: _Common, board: Any, on_error: str) -> Iterator[tuple[Any, Any]]:
    """Where outputs go (None: they are only counted), and failures (None: nobody wants them)."""
    from .filter import Output

    names = [] if options.as_json and options.output == "-" else [options.output]
    kept = [] if on_error in _WORDS else [on_error]
    try:
        with opened(*names, *kept) as fds:
            bad = Output(fds[-1], on_error) if kept else None
            output = None
            if names:
                output = Output(fds[0], "the results" if names == ["-"] else options.output)
                if names == ["-"] and terminal(sys.stdout):
                    output.around = board.away
            yield output, bad
    except OpenError as error:
        if error.path not in kept:
            raise click.BadParameter(str(error), param_hint="'-o'") from None
        raise click.BadParameter(
            f"neither stop nor skip, and no file that can be written: {error}",
            param_hint="'--on-error'",
        ) from None


def _had_enough(end: BaseException | None, on_error: str) -> bool:
    """Whether a run ended because its results are read no more, as by `head`."""
    from .filter import OutputError

    return isinstance(end, OutputError) and end.unread and end.name != on_error


# ------------------------------------------------------------------------------ graphs


def run_graph(
    graph: Any,
    given: dict[str, Any],
    options: _Common,
    *,
    mapped: tuple[str, ...],
    mode: str,
    engine: str | None,
    want: tuple[str, ...],
    on_error: str,
    only_failed: str | None,
) -> int:
    """Run a graph; the exit status."""
    from . import graphs as parts

    if options.workers is not None:
        if engine is not None:
            raise click.BadParameter("--engine says how many", param_hint="'-j'")
        engine = f"parallel:{options.workers}"
    files = [_named_file(text) for text in mapped]
    if only_failed is not None and not files:
        raise click.BadParameter("there is no --map", param_hint="'--only-failed'")
    _check_files(options.output, on_error, only_failed, [path for _, path in files])
    try:
        only = None if only_failed is None else parts.only_failed(only_failed)
    except InputError as error:
        raise click.BadParameter(str(error), param_hint="'--only-failed'") from None
    job = parts.Job(graph, given, files, mode, want, engine, on_error == "stop", only)
    try:
        if options.plan_only:
            click.echo(str(graph.plan(engine)))
            return 0
        done = _carried_out(job, options, on_error)
    except errors.BuildError as error:
        raise click.BadParameter(str(error), param_hint="'MODULE:NAME'") from None
    return _graph_status(done, options, on_error)


def _named_file(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise click.BadParameter(f"{text!r} is not NAME=FILE", param_hint="'--map'")
    if path != "-" and not os.path.isfile(path):
        raise click.BadParameter(f"{path}: no such file", param_hint="'--map'")
    return name, path


def _carried_out(job: Job, options: _Common, on_error: str) -> Done:
    from . import graphs as parts
    from .screen import shown

    with contextlib.ExitStack() as stack:
        stack.enter_context(options.dashboard)
        board = stack.enter_context(shown("run", wanted=options.progress))
        output, bad = stack.enter_context(written(options, board, on_error))
        count = 0

        def told(failure: Any) -> None:
            nonlocal count
            number = job.number_of(failure)
            if bad is not None:
                bad.write(json.dumps(parts.failure_facts(failure, number)).encode() + b"\n")
                return
            count += 1
            if count <= MOST_TOLD:
                with board.away():
                    tell(parts.told(failure, number))
            if count == MOST_TOLD:
                tell("further failures are only counted; --on-error FILE keeps all")

        sinks = [*options.sinks, board] if board.wanted else [*options.sinks]
        return parts.run(job, output, sinks, told, options.keep_failures)


def _graph_status(done: Done, options: _Common, on_error: str) -> int:
    from . import graphs as parts
    from .filter import OutputError

    end = done.end
    if _had_enough(end, on_error):
        nobody_reads()
        return 0
    if options.as_json:
        click.echo(json.dumps(parts.facts(done)))
    if isinstance(end, KeyboardInterrupt):
        tell(f"stopped: {done.rows:,} rows done")
        return INTERRUPTED
    if end is not None and not isinstance(end, Exception):
        raise end
    failure = getattr(end, "failure", None)
    if failure is not None:
        tell(parts.told(failure, failure.index))
    elif end is not None:
        name = "" if isinstance(end, (OutputError, InputError)) else f"{type(end).__name__}: "
        tell(f"{name}{end}")
    if done.failed:
        tell(f"{done.failed:,} of {done.rows:,} items failed")
    return 0 if done.ok else FAILED


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

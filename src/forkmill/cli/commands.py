"""The command line: ``forkmill map | run | sessions | demo | doctor | completion``.

Guarantees:
    * Exit status: 0 all well, 1 something failed, 2 misuse, 130 stopped by Ctrl-C.
    * A user's mistake is answered with what is wrong, which argument it is, and what to do; never
      with a traceback.
    * stdout has results and nothing else; progress is on stderr, and only if that is a terminal.

The work is done in `forkmill.cli`; here are the commands, their options and their messages.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from .. import __version__, errors
from .._target import (
    TargetError,
    load_module,
)
from .base import (
    FAILED,
    INTERRUPTED,
    MOST_TOLD,
    ParamType,
    Target,
    fail,
    nobody_reads,
    offering,
    progress_option,
    tell,
    to_nowhere,
    workers_option,
)
from .outputs import (
    OpenError,
    mixes,
    opened,
    overwrites,
    own_streams,
    terminal,
)
from .page import Page
from .report import report_, report_option, report_sinks
from .run import plan_facts, run_
from .states import sessions_
from .top import beside, top_, top_option

if TYPE_CHECKING:
    from .filter import Filter
    from .records import Failure, Kind

__all__ = ["app", "main"]

_SHELLS = ("bash", "zsh", "fish")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None: those of the process.

    Returns:
        The exit status.
    """
    own_streams()
    code: object
    try:
        code = app.main(arguments, prog_name="forkmill", standalone_mode=False)
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        tell("interrupted")
        code = INTERRUPTED
    except _Unread:
        nobody_reads()
        code = 0
    except OSError as error:
        tell(error_text(error))
        code = FAILED
    return flushed(code if isinstance(code, int) else 0)


class _Unread(Exception):
    """Nobody reads what we print any more, as after `| head`."""


class _App(click.Group):
    """The commands."""

    command_class = Page

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # which click would call a failure
            raise _Unread from None


def error_text(error: OSError) -> str:
    """What a file, a disk or a folder has done."""
    if error.filename is not None:
        return f"{error.filename}: {(error.strerror or str(error)).lower()}"
    return f"cannot write: {(error.strerror or str(error)).lower()}"


def flushed(code: int) -> int:
    """Write what is left in the streams; at exit nobody could tell that it failed."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nobody_reads()
    except (OSError, ValueError) as error:
        nobody_reads()
        if code == 0:
            text = error.strerror if isinstance(error, OSError) else str(error)
            tell(f"cannot write to stdout: {(text or str(error)).lower()}")
            code = FAILED
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        to_nowhere(sys.stderr)
    return code


class _Input(click.Path):
    """A file to read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            if "://" in str(value):
                self.fail(f"{value} is no file; try: curl -sS {value} | forkmill map ... -", param)
            raise


class _Rate(ParamType):
    """N/s, N/m or N/h: how many a second."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number, _, unit = str(value).partition("/")
        try:
            rate = float(number) / {"": 1, "s": 1, "m": 60, "h": 3600}[unit]
        except (KeyError, ValueError):
            rate = 0.0
        if not 0 < rate < float("inf"):
            self.fail(f"{value!r} is no rate; write 10/s, 300/m or 5000/h", param, ctx)
        return rate


class _RecordKind(ParamType):
    """lines, json, csv or bytes:N."""

    name = "kind"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Kind:
        from .records import kind

        try:
            return value if not isinstance(value, str) else kind(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(
    cls=_App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="forkmill")
def app() -> None:
    """Run Python functions on every core of this machine.

    Exit status: 0 all well, 1 something failed, 2 a wrong command line, 130 stopped by Ctrl-C.
    """


# ------------------------------------------------------------------------------ map


@app.command(
    "map",
    groups={
        "Input": ("kind",),
        "Work": ("workers", "timeout", "retries", "rate"),
        "Output": ("output", "unordered", "on_error", "progress"),
    },
    status={"1": "a record failed, or a file cannot be read or written"},
)
@click.argument("function", metavar="MODULE:FUNCTION", type=Target("function", "json:loads"))
@click.argument(
    "files",
    metavar="[FILE...|-]",
    nargs=-1,
    type=_Input(exists=True, dir_okay=False, readable=True, allow_dash=True),
)
@workers_option
@click.option("--unordered", is_flag=True, help="Results as they come, not as the input goes.")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True),
    default="-",
    help="Write results there (default: stdout).",
)
@click.option(
    "--on-error",
    metavar="stop|skip|FILE",
    shell_complete=offering("stop", "skip"),
    default="stop",
    show_default=True,
    help="What a failing record does: stops everything; is told and skipped; is written to FILE, "
    "a JSON object a line.",
)
@click.option(
    "--in",
    "kind",
    metavar="lines|json|csv|bytes:N",
    type=_RecordKind(),
    shell_complete=offering("lines", "json", "csv", "bytes:"),
    default="lines",
    show_default=True,
    help="What a record is: a line; the JSON value of a line; a row, as a dict by the names in the "
    "file's first row; N bytes.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0, 1e9, min_open=True),
    help="A record that takes longer fails; its worker is ended, and another one takes its place.",
)
@click.option(
    "--retries",
    metavar="N",
    type=click.IntRange(0, 1_000_000),
    default=0,
    help="Try a failing record so many times more: one that raises, takes too long, or kills its "
    "worker.",
)
@click.option(
    "--rate",
    metavar="N/s",
    type=_Rate(),
    help="Begin so many records a second at most; also N/m, N/h.",
)
@progress_option
def map_(
    function: Any,
    files: tuple[str, ...],
    workers: int | None,
    unordered: bool,
    output: str,
    on_error: str,
    kind: Kind,
    timeout: float | None,
    retries: int,
    rate: float | None,
    progress: bool,
) -> int:
    """Call FUNCTION on every record of the FILEs, or of stdin, in parallel.

    A result is printed on a line of its own: as it is if it is a string, else as JSON, else as
    repr; line breaks in it are escaped. Inputs that are packed by gzip, bzip2, xz or zstd are
    unpacked. Memory does not depend on the size of the input.

    \b
    forkmill map json:loads --in lines events.jsonl.gz
    zcat access.log.gz | forkmill map mymodule:parse - -j 4 --on-error bad.jsonl -o parsed.jsonl
    forkmill map crawl:fetch urls.txt -j 32 --timeout 30 --retries 2 --rate 20/s --on-error skip
    """
    from .filter import (
        Filter,
        Output,
        OutputError,
        Stopped,
    )
    from .inputs import InputError, check_zstd
    from .packed import by_name

    paths = list(files) or ["-"]
    formats = [form.name for path in paths if (form := by_name(path)) is not None]
    if "zstd" in formats:
        try:
            check_zstd()
        except InputError as error:
            raise click.BadParameter(str(error), param_hint="FILE") from None
    failures = None if on_error in ("stop", "skip") else on_error
    check_outputs(paths, output, failures)
    with contextlib.ExitStack() as stack:
        out, bad = open_outputs(output, failures, stack)
        run = Filter(
            function,
            kind,
            paths,
            Output(out, "the results" if output == "-" else output),
            workers=workers,
            ordered=not unordered,
            on_failure=failure_sink(on_error, bad),
            timeout=timeout,
            retries=retries,
            rate=rate,
        )
        try:
            show_while(run, paths, output == "-", progress)
        except Stopped as error:
            fail(str(error))
        except InputError as error:
            if run.counts.failed:
                tell(failures_text(run))
            fail(str(error))
        except OutputError as error:
            if not (error.unread and error.name != failures):
                fail(f"{error}; {stopped_text(run)}")
            nobody_reads()  # enough was read, as by `head`
        except KeyboardInterrupt:
            tell(stopped_text(run))
            return INTERRUPTED
        except errors.PoolError as error:
            fail(f"the workers cannot run: {error}")
        except OSError as error:
            fail(f"the workers cannot run: {error.strerror or error}")
    if run.counts.failed:
        tell(failures_text(run))
        return FAILED
    return 0


def stopped_text(run: Filter) -> str:
    where = f" at {run.position}" if run.position else ""
    return f"stopped{where}: {run.counts.records:,} records done" + failed_text(run)


def failures_text(run: Filter) -> str:
    return f"{run.counts.failed:,} of {run.counts.records:,} records failed"


def failed_text(run: Filter) -> str:
    return f", {run.counts.failed:,} of them failed" if run.counts.failed else ""


def check_outputs(paths: list[str], output: str, failures: str | None) -> None:
    """Refuse to write over what is read, or two things to one place; nothing is open yet."""
    for option, name in (("-o", output), ("--on-error", failures)):
        for path in paths:
            if name is not None and overwrites(name, path):
                shown = "standard output" if name == "-" else name
                raise click.BadParameter(
                    f"{shown} is read as well; name another file", param_hint=f"'{option}'"
                )
    if failures is not None and mixes(failures, output):
        raise click.BadParameter(
            f"{failures} is where the results go; name another file",
            param_hint="'--on-error'",
        )


def open_outputs(
    output: str, failures: str | None, stack: contextlib.ExitStack
) -> tuple[int, int | None]:
    """The descriptors for results and for failures."""
    names = [output] if failures is None else [output, failures]
    try:
        fds = stack.enter_context(opened(*names))
    except OpenError as error:
        if error.path == failures:
            raise click.BadParameter(
                f"neither stop nor skip, and no file that can be written: {error}",
                param_hint="'--on-error'",
            ) from None
        raise click.BadParameter(str(error), param_hint="'-o'") from None
    return fds[0], fds[1] if failures is not None else None


def failure_sink(on_error: str, fd: int | None) -> Any:
    """Who is told of failing records; None for "stop"."""
    from .filter import FailureFile, Output

    if on_error == "stop":
        return None
    if fd is not None:
        return FailureFile(Output(fd, on_error))
    told = 0

    def tell_some(name: str, line: int, failure: Failure) -> None:
        nonlocal told
        told += 1
        if told <= MOST_TOLD:
            tell(f"{name}:{line}: {failure.type}: {failure.message}")
        if told == MOST_TOLD:
            tell("further failures are only counted; --on-error FILE keeps all")

    return tell_some


def show_while(run: Filter, paths: list[str], to_stdout: bool, progress: bool) -> None:
    """Run it, with a progress bar if that is wanted."""
    if not progress or not terminal(sys.stderr):
        run.run()
        return
    from .screen import shown

    sizes = [None if path == "-" else os.stat(path).st_size for path in paths]
    total = sum(size for size in sizes if size is not None)
    known = None not in sizes and total > 0
    with shown("map", total if known else None) as bar:
        if to_stdout and terminal(sys.stdout):
            run.output.around = bar.away
        run.run([bar])


app.add_command(run_)
app.add_command(sessions_)
app.add_command(report_)
app.add_command(top_)


# ----------------------------------------------------------------------------- demo


@app.command()
@workers_option
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    default="forkmill-demo.sqlite",
    show_default=True,
    help="The SQLite file; one of an earlier demo is replaced.",
)
@click.option("--no-compare", is_flag=True, help="Only the job, without the comparison.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only so many files.")
@progress_option
@report_option
@top_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def demo(
    workers: int | None,
    output: Path,
    no_compare: bool,
    limit: int | None,
    progress: bool,
    report: Path | None,
    top: bool,
    as_json: bool,
) -> int:
    """Count what is in the standard library's sources, on all CPUs, into an SQLite file.

    A pipeline: each .py file of this interpreter's standard library is parsed and tokenized in a
    worker; its identifiers, imports and definitions are counted, and loaded in batches. A sample of
    the files is then done by a plain loop and by concurrent.futures too, for comparison.
    """
    from . import demo as parts
    from . import pipelines
    from .screen import shown, table

    sinks = report_sinks(report)
    dashboard = beside(top)
    paths = spread(parts.sources(), limit)
    if not paths:
        fail("this interpreter's standard library has no .py files")
    try:
        job = parts.Demo(output, paths, workers)
    except parts.DemoError as error:
        raise click.BadParameter(str(error), param_hint="'--output'") from None
    if not as_json:
        click.echo(job.plan.describe() + "\n")
    try:
        with dashboard, shown("demo", wanted=progress and not top) as board:
            job.run([*sinks, board] if board.wanted else sinks)
        rows = [] if no_compare else list(parts.compare(paths, job.workers))
    except KeyboardInterrupt:
        tell(f"stopped after {job.files:,} of {len(paths):,} files; nothing was written")
        return INTERRUPTED
    except parts.DemoError as error:
        fail(str(error))
    except (errors.PoolError, OSError) as error:
        fail(f"the workers cannot run: {error}")
    assert job.result is not None
    rank = parts.ranking(output, 10)
    rates = {name: count / seconds for name, seconds, count in rows}
    if as_json:
        facts = {
            name: getattr(job, name)
            for name in ("files", "size", "lines", "tokens", "broken", "workers", "seconds")
        }
        click.echo(json.dumps(
            {
                **facts, "database": str(output), "ranking": rank, "files_per_second": rates,
                "plan": plan_facts(job.plan), "stages": pipelines.stages(job.result),
            }
        ))  # fmt: skip
        return 0
    places = range(max(len(rows) for rows in rank.values()))
    table(
        "The standard library's favourites",
        ("identifier", ">uses", "module", ">imports", "most definitions in", ">defined"),
        ([cell for rows in rank.values() for cell in at(rows, i)] for i in places),
    )
    click.echo(
        f"{job.files:,} files, {job.lines:,} lines, {job.size / 1e6:.1f} MB, {job.tokens:,} tokens "
        f"in {job.seconds:.1f} s with {job.workers} workers:\n"
        f"{job.files / job.seconds:,.0f} files/s, {job.lines / job.seconds:,.0f} lines/s; "
        f"{job.broken} files do not parse (test data)\n"
    )
    title = f"The pipeline's stages; bottleneck: {job.result.stats.bottleneck}"
    table(title, pipelines.COLUMNS, pipelines.rows(job.result))
    if rows:
        plain = rates["a plain loop"]
        table(
            f"The same work on a sample of {rows[0][2]} files, with the same result",
            ("who", ">seconds", ">files/s", ">speed"),
            (
                (name, f"{seconds:.2f}", f"{rates[name]:,.0f}", f"{rates[name] / plain:.2f}x")
                for name, seconds, _ in rows
            ),
        )
    click.echo(f"wrote {output}; look into it with: python -m sqlite3 {output}")
    return 0


def spread(paths: list[str], limit: int | None) -> list[str]:
    """At most `limit` of them, from all over the list."""
    if limit is None or limit >= len(paths):
        return paths
    return [paths[i * len(paths) // limit] for i in range(limit)]


def at(rows: list[tuple[str, int]], i: int) -> tuple[str, Any]:
    """A ranking's row, its path cut to the last two parts; blank if there is none."""
    if i >= len(rows):
        return "", ""
    name, number = rows[i]
    return "/".join(name.split("/")[-2:]) if name.endswith(".py") else name, number


# --------------------------------------------------------------------------- doctor


@app.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, by section and key.")
@click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    help="Import it first, to see what a program that uses it gets. May be given more than once.",
)
def doctor(as_json: bool, modules: tuple[str, ...]) -> int:
    """Tell what this machine allows: CPUs, start method, pipes, limits, memory; and try a pool.

    Exit status 1 if something keeps pools from working.
    """
    for name in modules:
        try:
            load_module(name, search_here=True)
        except TargetError as error:
            raise click.BadParameter(str(error), param_hint="'--import'") from None
    from .doctor import WRONG, examine

    findings = list(examine())
    if as_json:
        facts: dict[str, dict[str, Any]] = {}
        for found in findings:
            facts.setdefault(found.section, {})[found.key] = found.value
        facts["wrong"] = {found.key: found.text for found in findings if found.level == WRONG}
        click.echo(json.dumps(facts, indent=2))
    else:
        section = ""
        for found in findings:
            if found.section != section:
                section = found.section
                click.secho(section, bold=True)
            mark = {"good": " ", "note": "*", "wrong": "!"}[found.level]
            click.echo(f" {mark} {found.text}")
    return FAILED if any(found.level == WRONG for found in findings) else 0


# ---------------------------------------------------------------------- completion


@app.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete forkmill's commands and options.

    \b
    eval "$(forkmill completion bash)"        # into ~/.bashrc; zsh likewise
    forkmill completion fish > ~/.config/fish/completions/forkmill.fish
    """
    make = get_completion_class(shell)
    assert make is not None  # one of click's own
    click.echo(make(app, {}, "forkmill", "_FORKMILL_COMPLETE").source())

"""``forkmill report``: a recording of a run as an HTML file; and ``--report`` of other commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import _watch
from .base import fail
from .page import Page

__all__ = ["report_", "report_option", "report_sinks"]

report_option = click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write an HTML file about the run: plan, timeline, slowest calls, failures.",
)


def report_sinks(path: Path | None) -> tuple[Any, ...]:
    """The sink of ``--report``, if it was given.

    Raises:
        click.BadParameter: It cannot be written there.
    """
    try:
        return _watch.sinks_of(report=path)
    except OSError as error:
        raise click.BadParameter(_why(error), param_hint="'--report'") from None


def _why(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"


@click.command("report", cls=Page)
@click.argument("recording", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="The HTML file; what is there is replaced.",
)
@click.option("--run", metavar="ID", help="Of which run, if there are several; the last one.")
def report_(recording: Path, output: Path, run: str | None) -> None:
    """Make an HTML file of a recording: of what fm.JsonLines has written.

    With detail="items" it has the timeline and the slowest calls.

    \b
    forkmill report run.jsonl -o run.html
    """
    from ..show.report import from_recording

    try:
        if recording.resolve() == output.resolve():
            raise click.BadParameter("it is the recording", param_hint="'--output'")
        found = from_recording(recording, output, run)
    except (OSError, ValueError) as error:
        fail(_why(error) if isinstance(error, OSError) else str(error))
    click.echo(f"run {found}: {output}")

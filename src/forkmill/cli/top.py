"""``forkmill top``: the dashboard; and ``--top`` of other commands."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from .base import MISUSE, fail, tell
from .page import Page

if TYPE_CHECKING:
    from ..show.top.launch import Beside
    from ..show.top.link import Source

__all__ = ["beside", "top_", "top_option"]

top_option = click.option(
    "--top", is_flag=True, help="Show a dashboard meanwhile; closing it does not end the run."
)


def beside(wanted: bool) -> Beside:
    """The dashboard of ``--top``, for a ``with`` block.

    Raises:
        click.BadParameter: There can be none here.
    """
    from ..show.top.launch import Beside, TopError

    def interrupt() -> None:  # in a thread of ours; the run is that of the main one
        os.kill(os.getpid(), signal.SIGINT)

    try:
        return Beside(wanted=wanted, interrupt=interrupt)
    except TopError as error:
        raise click.BadParameter(str(error), param_hint="'--top'") from None


@click.command("top", cls=Page)
@click.argument("what", metavar="[PID|FILE.jsonl]", required=False)
@click.option("--once", is_flag=True, help="Print what there is now, as text, and stop.")
@click.option("--run", default="", metavar="ID", help="Begin with this run.")
@click.option("--until-end", is_flag=True, help="Close when the program ends.")
def top_(what: str | None, once: bool, run: str, until_end: bool) -> int:
    """Watch the runs of a program: stages, workers, failures.

    The program was started with FORKMILL_TOP=1, has called fm.serve_top(), or is a forkmill run
    --top. Without a PID it is the one program that can be watched, or a list of them. A file is
    what fm.JsonLines writes, or has written. Closing the dashboard ends nothing; ? shows its keys.

    \b
    FORKMILL_TOP=1 python train.py &
    forkmill top $!
    forkmill top run.jsonl
    """
    from ..show.top.launch import TopError, needs, size
    from ..show.top.link import LinkError, opened

    if not once:
        try:
            needs()
        except TopError as error:
            fail(str(error))
    if what is None:
        found = _programs()
        if len(found) != 1:
            return _listed(found)
        what = str(found[0])
    try:
        source = opened(what)
    except LinkError as error:
        if until_end:  # it ended before anything could be seen
            return 0
        fail(str(error))
    try:
        if once:
            _print(source, run, size())
        else:
            _show(source, run, until_end)
    finally:
        source.close()
    return 0


def _programs() -> list[int]:
    from ..show.top import place

    return place.programs()


def _listed(found: list[int]) -> int:
    """Which programs there are to be watched."""
    if not found:
        tell("no program can be watched: start one with FORKMILL_TOP=1, or call fm.serve_top()")
        return MISUSE
    tell(f"which one? {', '.join(map(str, found))}")
    return MISUSE


def _print(source: Source, run: str, size: tuple[int, int]) -> None:
    import time

    from ..show.text import encoding_of
    from ..show.top.desk import Desk
    from ..show.top.look import LEAST, glyphs_for

    desk = Desk(source, glyphs_for(encoding_of(sys.stdout)), run)
    until = time.monotonic() + 5.0
    while not desk.source.over:
        more = source.look(0.5)
        if not more and (source.scene is not None or time.monotonic() > until):
            break
        if not more:
            time.sleep(0.02)
    size = max(size[0], LEAST[0]), max(size[1], LEAST[1])
    lines = ["".join(text for text, _ in line).rstrip() for line in desk.frame(size)[:-1]]
    while lines and not lines[-1]:
        lines.pop()
    click.echo("\n".join(lines))


def _show(source: Source, run: str, until_end: bool) -> None:
    from ..show.text import encoding_of
    from ..show.top.app import Top
    from ..show.top.desk import Desk
    from ..show.top.look import glyphs_for

    encoding = encoding_of(sys.__stderr__)  # where textual draws
    Top(Desk(source, glyphs_for(encoding), run, until_end=until_end)).run()

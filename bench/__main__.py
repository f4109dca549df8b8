"""The command line: ``python -m bench``."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.util
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .peers import BY_NAME, OURS
from .runner import QUESTIONS, Answer, Budget, Settings, Stopped, ask, first_line, load, stop

_EPILOG = """\
Writes results.md, results.json (every sample) and, if matplotlib is installed, plots (SVG and PNG)
into the folder: the targets, and each family of questions. Peers that are not installed are left
out: they come with pip install '.[bench]'. What fails ends nothing but itself, and is told at the
end. Exit code: 0; 1 if a question, or forkmill in one, failed; 3 if only others did, whose figures
are then missing; 2 for a wrong command line; 128 and its number if a signal ended it, with all it
started."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["soak"]:
        from . import soak

        return soak.main(given[1:])
    parser = _parser()
    options = parser.parse_args(given)
    if options.list:
        for name in (*QUESTIONS, "soak"):
            print(f"{name:16}{first_line(name)}")
        return 0
    if importlib.util.find_spec("forkmill") is None:
        parser.error("forkmill is not installed for this interpreter: pip install '.[bench]'")
    if options.quick and options.update_readme:
        parser.error("--update-readme needs real figures: leave out --quick")
    settings = Settings(
        workers=options.workers,
        quick=options.quick,
        rounds=options.rounds,
        peers=options.peers,
        only_rows=options.only_rows,
    )
    questions = options.questions or list(QUESTIONS)
    if options.only_rows:
        questions = [name for name in questions if load(name).TARGETS]
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"cannot write into {options.out}: {error.strerror}")
    busy = _load()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's SIGHUP
            signal.signal(number, stop)
    try:
        answers = _ask_all(questions, settings, Budget(questions, options.minutes))
    except Stopped as stopped:
        print("stopped; nothing was written", file=sys.stderr)
        return 128 + int(stopped.args[0])
    _finish(options, answers, busy, given)
    return _verdict(answers)


def _ask_all(questions: list[str], settings: Settings, budget: Budget) -> list[Answer]:
    answers = []
    start = time.monotonic()
    for number, question in enumerate(questions, start=1):
        gone = time.monotonic() - start
        left = "" if settings.quick else f", about {_clock(budget.seconds - gone)} left"
        print(
            f"[{number}/{len(questions)}, {_clock(gone)} gone{left}] "
            f"{question}: {first_line(question)}",
            file=sys.stderr,
        )
        seconds = budget.take(gone)
        answer = ask(question, dataclasses.replace(settings, seconds=seconds))
        failed = f", FAILED: {answer.failure}" if answer.failure else ""
        print(f"  {answer.seconds:.1f} s of {seconds:.1f}{failed}", file=sys.stderr)
        answers.append(answer)
    return answers


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02}"


def _verdict(answers: list[Answer]) -> int:
    """Tell who failed; the exit code."""
    for answer in answers:
        for name in (*([answer.failure] if answer.failure else ()), *answer.failed):
            print(f"failed: {answer.question}: {name}", file=sys.stderr)
    if any(answer.ours_failed for answer in answers):
        return 1
    return 3 if any(answer.failed for answer in answers) else 0


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _finish(
    options: argparse.Namespace, answers: list[Answer], busy: str, given: Sequence[str]
) -> None:
    from . import machine, report

    facts = machine.describe()
    facts["load"] = f"{busy} before, {_load()} after (1, 5, 15 minutes)"
    facts["workers"] = str(options.workers)
    command = shlex.join(["python", "-m", "bench", *given])
    text = report.markdown(answers, facts, command, options.quick)
    print(text)
    for path in report.write(options.out, answers, facts, text, quick=options.quick):
        print(f"wrote {path}", file=sys.stderr)
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no plots: {report.NO_PLOTS}", file=sys.stderr)
    if options.update_readme:
        report.update_readme(answers, facts, command)
        print(f"updated {report.README.name}", file=sys.stderr)


# ---------------------------------------------------------------------- the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures forkmill beside its peers. What the numbers cannot tell: README.md.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "questions",
        nargs="*",
        type=_question,
        metavar="QUESTION",
        help="what to ask, see --list (default: all)",
    )
    parser.add_argument("--list", action="store_true", help="list the questions and stop")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/bench"),
        metavar="FOLDER",
        help="where the results go (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="each once, with tiny sizes, to see that it works; the figures mean nothing",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=Settings.workers,
        metavar="N",
        help="workers of each pool (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=Settings.rounds,
        metavar="N",
        help="the most rounds of a case (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        metavar="M",
        help="the time of a run that asks all; one that asks some gets its part of it (default: "
        "%(default)s). With less there are fewer rounds, of us and whom a target needs three at "
        "least",
    )
    parser.add_argument(
        "--peers",
        type=_peers,
        default=Settings.peers,
        metavar="NAME,...",
        help=f"whom to compare with (default: all that are installed of {', '.join(BY_NAME)})",
    )
    parser.add_argument(
        "--only-rows",
        action="store_true",
        help="only what the table of targets has a row for",
    )
    parser.add_argument(
        "--update-readme",
        action="store_true",
        help="also put the table of targets, as measured, into bench/README.md",
    )
    return parser


def _nearest(text: str, known: Sequence[str], kind: str) -> str:
    if text in known:
        return text
    near = difflib.get_close_matches(text, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise argparse.ArgumentTypeError(f"no {kind} {text!r}{hint} (there are {', '.join(known)})")


def _question(text: str) -> str:
    return _nearest(text.removesuffix(".py"), list(QUESTIONS), "question")


def _peers(text: str) -> tuple[str, ...]:
    names = [_nearest(name.strip(), list(BY_NAME), "peer") for name in text.split(",")]
    return (OURS, *(name for name in dict.fromkeys(names) if name != OURS))


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())

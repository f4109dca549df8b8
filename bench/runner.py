"""Runs questions: each in an interpreter of its own, in a session of its own.

So no question sees what another left loaded or running, a crash costs one question, and what a hung
peer leaves behind is killed with its session. So is everything when this program is told to stop:
`stop` is for signal handlers, and raises nothing, so that no moment is a bad one for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .harness import Bench, Measured, Skip
from .peers import ALL, BY_NAME, OURS
from .reference import NoReference, Reference

QUESTIONS = (
    "roundtrip",
    "futures",
    "map_default",
    "map_dicts",
    "unordered",
    "arrays",
    "startup",
    "shutdown",
    "recycling",
    "efficiency",
    "scaling",
    "skew",
    "wakeups",
    "latency",
    "parent_cpu",
    "load",
    "memory",
    "stdlib_parse",
    "real_jobs",
    "cli_map",
    "cow_fork",
    "contexts",
    "pipeline_fused",
    "pipeline_ipc",
    "pipeline_memory",
    "etl",
)
LONG = ("etl",)  # asked by name only: minutes
# What a chart shows together; every question is in one.
FAMILIES = {
    "calls": ("roundtrip", "futures", "latency", "wakeups", "parent_cpu", "load"),
    "maps": ("map_default", "map_dicts", "unordered", "memory"),
    "arrays": ("arrays",),
    "lives": ("startup", "shutdown", "recycling", "cow_fork"),
    "efficiency": ("efficiency", "scaling", "skew"),
    "jobs": ("stdlib_parse", "real_jobs", "cli_map", "etl"),
    "pipelines": ("pipeline_fused", "pipeline_ipc", "pipeline_memory"),
    "contexts": ("contexts",),
}
_LONGEST_S = 1200.0  # a question that has not ended by then never will


@dataclass(frozen=True)
class Settings:
    """How to ask.

    Attributes:
        workers: Workers of each pool.
        quick: Each once, with tiny sizes: figures mean nothing.
        rounds: The most rounds a case gets.
        seconds: After so long a case gets no more rounds (but three).
        peers: Whom to compare, by name.
        only_rows: Only the cases that the table of targets has a row for.
    """

    workers: int = 2
    quick: bool = False
    rounds: int = 9
    seconds: float = 6.0
    peers: tuple[str, ...] = tuple(peer.name for peer in ALL)
    only_rows: bool = False


@dataclass
class Answer:
    """What came of a question."""

    question: str
    seconds: float = 0.0
    results: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def ours_failed(self) -> bool:
        """Whether it is for us to worry: the question itself or our part of it failed."""
        return bool(self.failure) or any(OURS in result.failures for result in self.results)


def load(question: str) -> ModuleType:
    """The question's module."""
    return importlib.import_module(f".{question}", __package__)


def first_line(question: str) -> str:
    """The question, as its docstring asks it."""
    return (load(question).__doc__ or question).strip().splitlines()[0]


class Stopped(Exception):
    """A signal said so; its number is the argument."""


class _State:
    """The one child there may be, and the signal that said stop: what `stop` looks at."""

    child: int | None = None
    signal: int = 0


def stop(number: int, frame: object = None) -> None:
    """End what runs, with everything that it started, and have `ask` raise Stopped."""
    _State.signal = number
    if _State.child is not None:
        _kill_group(_State.child)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def ask(question: str, settings: Settings) -> Answer:
    """Ask one question in a fresh interpreter.

    Raises:
        Stopped: `stop` was called; nothing of the question runs any more.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="forkmill-bench-") as folder:
        path = Path(folder, "answer.json")
        order = json.dumps({"question": question, "path": str(path), **vars(settings)})
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, order],
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        _State.child = child.pid
        if _State.signal:  # it came while the child was made
            _kill_group(child.pid)
        try:
            code = child.wait(_LONGEST_S)
            failure = "" if code == 0 else f"its interpreter ended with exit code {code}"
        except subprocess.TimeoutExpired:
            failure = f"no end after {_LONGEST_S:g} s"
        finally:
            # Nobody else is in this group: who is left is a peer that did not end.
            _State.child = None
            _kill_group(child.pid)
            child.wait()
        if _State.signal:
            raise Stopped(_State.signal)
        answer = Answer(question, failure=failure)
        if path.exists():
            answer = _from_json(json.loads(path.read_text()))
            answer.failure = answer.failure or failure
    answer.seconds = time.monotonic() - start
    return answer


def to_json(answer: Answer) -> dict[str, Any]:
    """Everything, raw samples included."""
    return dataclasses.asdict(answer)


def _from_json(data: dict[str, Any]) -> Answer:
    results = [Measured(**result) for result in data.pop("results")]
    return Answer(results=results, **data)


# ------------------------------------------------------------ inside the fresh interpreter


def _main(order: str) -> None:
    options = json.loads(order)
    question, path = options.pop("question"), Path(options.pop("path"))
    settings = Settings(**options)
    # Several peers fork from threads of theirs, and Python warns of it each time.
    warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)
    answer = Answer(question)
    with contextlib.ExitStack() as stack:
        reference = None
        try:
            reference = stack.enter_context(Reference())
        except NoReference as why:
            answer.notes.append(str(why))
        peers = [BY_NAME[name] for name in settings.peers if BY_NAME[name].installed()]
        bench = Bench(
            question,
            peers,
            workers=settings.workers,
            quick=settings.quick,
            rounds=settings.rounds,
            seconds=settings.seconds,
            reference=reference,
            targets=load(question).TARGETS,
            only_rows=settings.only_rows,
        )
        try:
            load(question).run(bench)
        except Skip as why:
            bench.note(f"skipped: {why}")
        answer.results = bench.results
        answer.notes += bench.notes
    path.write_text(json.dumps(to_json(answer)))
    if any(result.failures for result in answer.results):
        os._exit(
            0
        )  # a peer that failed may have left threads that keep an interpreter from its end


if __name__ == "__main__":
    _main(sys.argv[1])

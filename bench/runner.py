"""Runs questions: each in an interpreter of its own, in a session of its own.

So no question sees what another left loaded or running, a crash costs what a question has not told
yet, and what a hung peer leaves behind is killed with its session. So is everything when this
program is told to stop: `stop` is for signal handlers, and raises nothing, so that no moment is a
bad one for it.

A run has so many minutes, which its questions share by weight. What a question gets is reckoned
when its turn comes, from what is left: one that overran is paid for by all after it.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .harness import Bench, Measured, Skip
from .peers import ALL, BY_NAME, OURS
from .reference import NoReference, Reference

# Each with its weight: how much of a run's time it gets, in proportion. About the seconds in which
# it has five rounds or more of everybody on two cores.
QUESTIONS = {
    "roundtrip": 20,
    "futures": 20,
    "map_default": 20,
    "map_dicts": 24,
    "unordered": 24,
    "arrays": 90,
    "sharing": 10,
    "startup": 24,
    "shutdown": 14,
    "recycling": 10,
    "efficiency": 44,
    "scaling": 40,
    "skew": 22,
    "wakeups": 30,
    "latency": 20,
    "silence": 12,
    "parent_cpu": 20,
    "load": 30,
    "memory": 30,
    "stdlib_parse": 20,
    "real_jobs": 14,
    "job_ways": 40,
    "everyday": 60,
    "cli_map": 18,
    "cow_fork": 14,
    "contexts": 10,
    "pipeline_fused": 8,
    "pipeline_ways": 20,
    "pipeline_ipc": 12,
    "colocation": 10,
    "pipeline_memory": 22,
    "etl": 20,
    "events": 6,
    "watching": 14,
    "graph": 60,
    "graph_jobs": 20,
    "stategraph": 60,
    "state_jobs": 40,
    "clusters": 60,
}
# What a chart shows together; every question is in one.
FAMILIES = {
    "calls": ("roundtrip", "futures", "latency", "wakeups", "parent_cpu", "load"),
    "maps": ("map_default", "map_dicts", "unordered", "silence", "memory"),
    "arrays": ("arrays", "sharing"),
    "lives": ("startup", "shutdown", "recycling", "cow_fork"),
    "efficiency": ("efficiency", "scaling", "skew"),
    "jobs": ("stdlib_parse", "real_jobs", "job_ways", "everyday", "cli_map", "etl"),
    "pipelines": (
        "pipeline_fused",
        "pipeline_ways",
        "colocation",
        "pipeline_ipc",
        "pipeline_memory",
        "events",
        "watching",
    ),
    "contexts": ("contexts",),
    "graphs": ("graph", "graph_jobs", "stategraph", "state_jobs"),
    "clusters": ("clusters",),
}
_PATIENCE = 5.0  # a question that takes so many times what it got, and _SLACK_S, never ends
_SLACK_S = 180.0


@dataclass(frozen=True)
class Settings:
    """How to ask.

    Attributes:
        workers: Workers of each pool.
        quick: Each once, with tiny sizes: figures mean nothing.
        rounds: The most rounds a case gets.
        seconds: The question's time; see Bench.
        peers: Whom to compare, by name.
        only_rows: Only the cases that the table of targets has a row for.
    """

    workers: int = 2
    quick: bool = False
    rounds: int = 9
    seconds: float = 20.0
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
    planned: int = 0

    @property
    def ours_failed(self) -> bool:
        """Whether it is for us to worry: the question itself or our part of it failed."""
        return bool(self.failure) or any(OURS in result.failures for result in self.results)

    @property
    def failed(self) -> list[str]:
        """Who failed in it, by name."""
        return sorted({name for result in self.results for name in result.failures})


class Budget:
    """Shares a run's time among its questions.

    Args:
        questions: Those to ask, in order.
        minutes: What all questions together would get; fewer get their part of it.
    """

    def __init__(self, questions: Sequence[str], minutes: float) -> None:
        self._left = list(questions)
        self._scale = minutes * 60 / sum(QUESTIONS.values())
        self.seconds = self._scale * self._weight()

    def _weight(self) -> float:
        return sum(QUESTIONS[name] for name in self._left)

    def take(self, elapsed: float) -> float:
        """The seconds of the next question, so long after the start of the first.

        By its weight, from what is left; within a quarter and twice of what it would get in a run
        that goes as planned.
        """
        scale = (self.seconds - elapsed) / self._weight()
        scale = min(max(scale, self._scale / 4), self._scale * 2)
        return QUESTIONS[self._left.pop(0)] * scale


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
    longest = _PATIENCE * settings.seconds + _SLACK_S
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
            code = child.wait(longest)
            failure = "" if code == 0 else f"its interpreter ended with exit code {code}"
        except subprocess.TimeoutExpired:
            failure = f"no end after {longest:.0f} s"
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
            save=lambda bench: _save(answer, bench, path),
        )
        try:
            load(question).run(bench)
        except Skip as why:
            bench.note(f"skipped: {why}")
        _save(answer, bench, path)
    if any(result.failures for result in bench.results):
        os._exit(0)  # who failed may have left threads that keep an interpreter from its end


def _save(answer: Answer, bench: Bench, path: Path) -> None:
    """What is known by now, all of it or nothing: we may be killed at any moment."""
    known = dataclasses.replace(
        answer, results=bench.results, notes=answer.notes + bench.notes, planned=bench.planned
    )
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps(to_json(known)))
    whole.replace(path)


if __name__ == "__main__":
    _main(sys.argv[1])

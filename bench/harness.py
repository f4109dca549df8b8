"""Measures contenders side by side, in turns.

A question (one file) declares cases; a case has contenders, each a function that takes one sample
of the same quantity and checks the results that it got. The harness takes samples in rounds: in
each round every contender once, the first one a different one each time. What a noisy neighbour
or a warming CPU does then falls on all of them, and ratios are taken within a round before their
median is.

A question has so many seconds, which its cases share: each gets an equal part of what is left when
its turn comes, so that one that took longer is paid for by those after it, and none goes without.

Guarantees:
    * A contender whose results are wrong, that raises or that hangs gets no figure, but a note.
    * Nothing is measured that was not checked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import work
from .peers import OURS, Peer
from .reference import Reference

LESS = "less"
MORE = "more"
_UNWIND_S = 5.0  # how long a hung contender gets to close before it is interrupted again


class Skip(Exception):
    """The question cannot be asked here; says why."""


class WrongResult(Exception):
    """A contender's results are not what they must be."""


class Hung(Exception):
    """A contender took longer than a sample may."""


@dataclass(frozen=True)
class Target:
    """A figure to reach: a row of the table in README.md.

    Attributes:
        what: The row's text; rows with several bounds share it.
        case: Key of the case that tells.
        bound: The number to reach.
        against: Contender that we are compared with; None: our figure itself is bounded.
        at_most: The bound is an upper one of ours/theirs (times); else a lower one of how many
            times faster we are.
        label: What tells this bound from the row's others.
        where: (contender, times): the bound is for machines where this one is so many times better
            than `against`. What it was in the same rounds is told beside.
    """

    what: str
    case: str
    bound: float
    against: str | None = None
    at_most: bool = False
    label: str = ""
    where: tuple[str, float] | None = None


Sample = Callable[[], float | None]  # None: there is no figure, and nothing is wrong


@dataclass
class Case:
    """One table: the same quantity for every contender.

    Attributes:
        key: Short name, unique in the question.
        title: Above the table.
        unit: Of the samples, e.g. "us" or "items/s".
        better: LESS or MORE.
        samples: Contender's name -> function that takes one sample.
        most_rounds: So many rounds are enough; None: as the harness thinks.
        series: Cases that differ in one number only are drawn as one: what they are, together.
        at: That number.
        limit: Seconds after which a sample has hung; None: as the harness thinks.
    """

    key: str
    title: str
    unit: str
    better: str
    samples: dict[str, Sample]
    most_rounds: int | None = None
    series: str = ""
    at: float = 0
    limit: float | None = None


@dataclass
class Measured:
    """What a case gave: raw samples by contender and round (None: no figure in that round)."""

    question: str
    case: str
    title: str
    unit: str
    better: str
    values: dict[str, list[float | None]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    series: str = ""
    at: float = 0

    def figures(self, name: str) -> list[float]:
        """A contender's samples, without the holes."""
        return [value for value in self.values.get(name, ()) if value is not None]

    def ratios(self, top: str, bottom: str) -> list[float]:
        """top/bottom, round by round."""
        pairs = zip(self.values.get(top, ()), self.values.get(bottom, ()), strict=False)
        return [a / b for a, b in pairs if a is not None and b]

    def speedups(self, over: str) -> list[float]:
        """How many times better we are than a contender, round by round."""
        if self.better == LESS:
            return self.ratios(over, OURS)
        return self.ratios(OURS, over)

    def reached(self, target: Target) -> list[float]:
        """The figures that a target bounds."""
        if target.against is None:
            return self.figures(OURS)
        if target.at_most:
            return self.ratios(OURS, target.against)
        return self.speedups(target.against)

    def beside(self, target: Target) -> list[float]:
        """The figures of what a target's bound depends on."""
        if target.where is None or target.against is None:
            return []
        name, against = target.where[0], target.against
        return self.ratios(against, name) if self.better == LESS else self.ratios(name, against)


def spread(values: list[float]) -> tuple[float, float, float]:
    """(25th percentile, median, 75th percentile)."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class Bench:
    """What a question gets to ask with.

    Attributes:
        question: Its name.
        peers: The pools to compare, ours first.
        workers: How many workers each gets.
        quick: Only to see that it works: figures mean nothing.
        reference: The C program, or None.
        results: What was measured so far.
        notes: Remarks for the reader of the results.
        planned: How many cases there are to be.

    Args:
        rounds: The most rounds of a case.
        seconds: The question's time. No case starts a round after its part of it, but for three
            rounds of those whom a target needs.
        limit: Seconds after which a sample has hung.
        targets: The question's rows.
        only_rows: Only the cases that a row needs.
        save: Called after each case, with what was measured up to then.
    """

    def __init__(
        self,
        question: str,
        peers: Iterable[type[Peer]],
        *,
        workers: int = 2,
        quick: bool = False,
        rounds: int = 9,
        seconds: float = 6.0,
        limit: float = 60.0,
        reference: Reference | None = None,
        targets: Iterable[Target] = (),
        only_rows: bool = False,
        save: Callable[[Bench], None] | None = None,
    ) -> None:
        self.question = question
        self.peers = tuple(peers)
        self.workers = workers
        self.quick = quick
        self.reference = reference
        self.results: list[Measured] = []
        self.notes: list[str] = []
        self.planned = 1
        self._rounds = 1 if quick else rounds
        self._end = time.monotonic() + seconds
        self._limit = limit
        self._save = save
        targets = tuple(targets)
        self._needed = {OURS, *(target.against for target in targets)}
        self._needed |= {target.where[0] for target in targets if target.where is not None}
        self._rows = {target.case for target in targets} if only_rows else None

    def size(self, full: int, quick: int) -> int:
        """How many items: the real number, or the tiny one."""
        return quick if self.quick else full

    def plan(self, cases: int) -> None:
        """So many cases there will be; for the question to say before its first, if not one."""
        self.planned = cases if self._rows is None else len(self._rows)

    def note(self, text: str) -> None:
        """Tell the reader."""
        if text not in self.notes:
            self.notes.append(text)
            print(f"  note: {text}", file=sys.stderr)

    # ------------------------------------------------------------------ samples of pools

    def with_pool(
        self,
        peer: type[Peer],
        take: Callable[[Peer], float],
        *,
        way: str = "calls",
        workers: int = 0,
    ) -> Sample:
        """A sample taken with a warm pool that is opened before and closed after it.

        Opened each time: an idle pool of another contender may poll, and would disturb.

        Args:
            peer: Whose pool.
            take: Takes the sample.
            way: Which of the peer's ways warms it up: the one that is measured. (mpire 2.10
                fails at times when one follows another.)
            workers: So many instead of as many as everyone gets.
        """
        workers = workers or self.workers

        def sample() -> float:
            items = range(8 * workers)
            with peer(workers) as pool:
                warm = getattr(pool, way)(work.increment, items)
                check(sorted(warm), [i + 1 for i in items])
                return take(pool)

        return sample

    def pools(self, take: Callable[[Peer], float], *, way: str = "calls") -> dict[str, Sample]:
        """with_pool for every peer."""
        return {peer.name: self.with_pool(peer, take, way=way) for peer in self.peers}

    # ------------------------------------------------------------------ measuring

    def measure(self, case: Case) -> Measured:
        """Take samples, round by round, until there are enough or the time is over.

        The case's time is an equal part of what is left of the question's. Who has used up its
        share of it sits the later rounds out, so that one slow peer does not take the others'
        rounds; whom a target needs has at least three.
        """
        rounds = min(self._rounds, case.most_rounds or self._rounds)
        least = min(3, rounds)
        measured = Measured(
            self.question, case.key, case.title, case.unit, case.better,
            series=case.series, at=case.at,
        )  # fmt: skip
        if self._rows is not None and case.key not in self._rows:
            return measured
        now = time.monotonic()
        seconds = max(0.0, self._end - now) / max(1, self.planned - len(self.results))
        self.results.append(measured)
        names = list(case.samples)
        measured.values = {name: [] for name in names}
        spent = dict.fromkeys(names, 0.0)
        for number in range(rounds):
            if number >= least and time.monotonic() > now + seconds:
                break
            first = number % len(names)
            for name in names[first:] + names[:first]:
                kept = name in self._needed and number < least
                if spent[name] > seconds / len(names) and not kept:
                    measured.values[name].append(None)
                    continue
                start = time.monotonic()
                measured.values[name].append(self._sample(measured, name, case))
                spent[name] += time.monotonic() - start
        self._tell(measured)
        if self._save is not None:
            self._save(self)
        return measured

    def _sample(self, measured: Measured, name: str, case: Case) -> float | None:
        if name in measured.failures:
            return None
        gc.collect()
        try:
            with time_limit(case.limit or self._limit):
                return case.samples[name]()
        except Exception as error:  # a peer may fail in its own ways: the others go on
            measured.failures[name] = f"{type(error).__name__}: {error}"
            print(f"  {name} failed:", file=sys.stderr)
            traceback.print_exception(error, limit=-8)
            return None

    def _tell(self, measured: Measured) -> None:
        print(f"  {measured.title} [{measured.unit}]", file=sys.stderr)
        for name in measured.values:
            if figures := measured.figures(name):
                low, middle, high = spread(figures)
                print(f"    {name:24}{middle:14.6g}   {low:.6g} - {high:.6g}", file=sys.stderr)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hung in here when the time is over, and again while the way out hangs too."""

    def interrupt(*_: Any) -> None:
        raise Hung(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _UNWIND_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """In here this thread, and every process and thread that it starts, has one CPU.

    Raises:
        Skip: This platform cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise Skip("this platform cannot pin processes to a CPU")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def check(got: Any, expected: Any) -> None:
    """Raise WrongResult unless both are the same."""
    if got != expected:
        raise WrongResult(f"expected {_short(expected)}, got {_short(got)}")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"list of {len(value)}: {value[:3]!r} ..."
    return repr(value)[:200]


def fresh(question: str, *words: object) -> float:
    """What a question's own program prints, a number, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", f"bench.{question}", *map(str, words)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"the process of the job failed: {ran.stderr[-500:]}")
    return float(ran.stdout)


def elapsed(function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds that a call took, what it returned)."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result

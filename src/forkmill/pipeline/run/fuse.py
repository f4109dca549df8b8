"""Neighbouring inline stages as one function: calls nested, item by item, no queue in between.

A chain source -> double -> text -> sink becomes (shortened)::

    def run(source):
        for x0 in source:
            if beat: yield BEAT
            try: y0 = double(x0)
            except BaseException as error: ... the stage's policy; continue
            if type(y0) in SPECIAL: yield from special0(y0, x0); continue
            try: y1 = text(y0)
            ...

It is a generator: it yields a queue that is full, and is resumed when that has room again; so a
stage that emits millions for one item needs no memory for them. Where somebody takes the run's
outputs one by one it yields each output itself, and is resumed when the next one is asked for
(`flow.SIGNS` tells them from the rest). It yields BEAT where the driver is to have a look, whatever
the stages do: `beat` is a list that anybody makes true. A branch is nested
in a loop of one turn, so that `continue` ends the branch and not the item.

Guarantees:
    * Item by item: what an item does in all stages of the group is done before the next is pulled.
    * Counters are locals; they reach the operators when the run ends, also by close() or an error.
      Until then `tallied` says what they are, from any thread.
    * No loop of a run goes on for ever without coming past `beat`: items that come in, outputs of
      one item, of one end. Where others wait for their turn, it comes back after some 2 ms.

Invariants:
    * FUSE-1  The text of the code has only names made here, never a user's.
    * FUSE-2  Every use of a user's function stands in a try of its own; what leaves the run is
      what Driver.passes says (Abort, Ctrl-C, the GeneratorExit of a run that is closed), or a bug.

Threads: a run belongs to the thread of its driver; `tallied` may be called in any.
"""

from __future__ import annotations

import functools
import re
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from ...contexts.lanes.emit import UNUSUAL
from ...runs.handle import Left
from ...runs.policies import DeadLetter, final
from ..declare import to
from .flow import BEAT, GONE, Outs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType

    from .operators import Operator

__all__ = ["Code", "disarm", "fuse", "tallied"]

_DEEP = 7  # loops inside each other; CPython allows 20 blocks, a loop and its try take two


SPECIAL = frozenset({*UNUSUAL, to, Outs})


def clocked(values: Iterable[Any], note: Callable[[float], None]) -> Iterator[Any]:
    """The elements of an iterable; the time that making them took is noted at its end."""
    seconds, start = 0.0, perf_counter()
    for value in values:
        seconds += perf_counter() - start
        yield value
        start = perf_counter()
    note(seconds + perf_counter() - start)


def portions(items: list[Any], look: Callable[[], int]) -> Iterator[Iterator[Any]]:
    """A list in parts, of as many items as may be worked on between two looks at the clock."""
    at = 0
    while at < len(items):
        few = look()
        yield iter(items[at : at + few])
        at += few


class Code(NamedTuple):
    """What is known of a run by its code.

    Attributes:
        operator: What it hangs on.
        tallies: How its stages count.
        lines: Its text.
    """

    operator: Operator
    tallies: list[Tally]
    lines: list[str]

    def calls(self, at: int, scope: dict[str, Any]) -> tuple[int, Any]:
        """The index of the stage whose function a run of it calls now, and with what; None: that is
        not known.

        Args:
            at: The line where it is.
            scope: Its variables.
        """
        line = self.lines[at - 1]
        called = re.search(r"\b(?:f|fail|hold|special)(\d+)\((\w+)", line)
        if called is None:
            return self.operator.index, None
        return int(called[1]), scope.get(called[2])


class Tally(NamedTuple):
    """One operator's counters in a run, as expressions of the run's locals.

    Attributes:
        operator: Whose they are.
        entry: Whether its items come from the edge that the run was begun for.
        figures: Gives (came, failed, out) for the locals of a run's frame.
    """

    operator: Operator
    entry: bool
    figures: CodeType


def tallied(scope: dict[str, Any], tallies: Iterable[Tally]) -> list[tuple[Tally, Any]]:
    """The counters of a run that is under way, by its variables: (tally, (came, failed, out))."""
    found = []
    for tally in tallies:
        try:
            found.append((tally, eval(tally.figures, {}, scope)))
        except NameError:  # it has not begun
            break
    return found


def fuse(operator: Operator, entry: bool, timed: bool) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """The run of a group.

    Args:
        operator: The stage that the group hangs on.
        entry: The source is a list of items for the stage; else it has outputs of the stage.
        timed: Every call is measured.

    Returns:
        A generator function: run(source) yields queues that are full, BEAT, and outputs, where
        they are taken one by one.
    """
    writer = _Writer(timed, operator)
    writer.group(operator, entry)
    names = list(writer.names)
    text = f"def make({', '.join(names)}):\n" + "\n".join(writer.lines) + "\n    return run\n"
    scope: dict[str, Any] = {}
    exec(_compiled(text), scope)
    run: Any = scope["make"](*writer.names.values())
    operator.driver.codes[run.__code__] = Code(operator, writer.tallies, text.splitlines())
    found: Callable[[Iterable[Any]], Iterator[Any]] = run
    return found


def disarm(run: Any) -> None:
    """Have a run call nothing more, which is under way in another thread: neither the user's
    functions nor the driver's."""
    for name, cell in zip(run.__code__.co_freevars, run.__closure__ or (), strict=True):
        if name.startswith("flush"):
            cell.cell_contents = _nothing
        elif callable(cell.cell_contents) and not isinstance(cell.cell_contents, type):
            cell.cell_contents = _left


def _left(*_args: Any) -> Any:
    raise Left


def _nothing(*_args: Any) -> None:
    pass


@functools.lru_cache(256)
def _compiled(text: str) -> Any:
    return compile(text, "<fused stages>", "exec")


@functools.lru_cache(1024)
def _expression(text: str) -> CodeType:
    return compile(text, "<a run's counters>", "eval")


def _all_at_once() -> int:
    return sys.maxsize


class _Writer:
    """Writes the code of one group."""

    def __init__(self, timed: bool, operator: Operator) -> None:
        self.timed = timed
        self.pace = operator.driver.pace  # None: nobody else waits for a turn
        self.lines: list[str] = []
        self.names: dict[str, Any] = {
            "passes": operator.driver.passes,
            "SPECIAL": SPECIAL,
            "To": to,
            "GONE": GONE,
            "ONCE": (None,),
            "clock": perf_counter,
            "clocked": clocked,
            "beat": operator.driver.beat,
            "BEAT": BEAT,
            "look": operator.driver.pace or _all_at_once,
            "portions": portions,
        }
        self.root: Operator | None = None  # the stage whose items are the source's
        self.counters: list[str] = []
        self.looks: list[str] = []  # at how many outputs the clock is looked at again
        self.flushes: list[str] = []
        self.tallies: list[Tally] = []

    def line(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def name(self, prefix: str, operator: Operator, value: Any) -> str:
        name = f"{prefix}{operator.index}"
        self.names[name] = value
        return name

    def counter(self, prefix: str, operator: Operator) -> str:
        name = f"{prefix}{operator.index}"
        self.counters.append(name)
        return name

    def group(self, operator: Operator, entry: bool) -> None:
        body, self.lines = self.lines, []
        count = self.counter("C" if entry else "M", operator)
        if entry:
            self.root = operator
            # The list's iterator counts, and does so for nothing. One that waits has not come.
            self.line(3, "for items in portions(source, look):")
            self.line(4, f"{count} += items.__length_hint__()")
            self.line(4, "for x in items:")
            self.line(5, "if beat:")
            self.line(6, "held = 1")
            self.line(6, "yield BEAT")
            self.line(6, "held = 0")
            self.stage(operator, "x", count, 5, 2)
        else:
            self.line(3, "for x in source:")
            self.beat(operator, count, 4)
            self.line(4, "if type(x) is To:")
            self.send(operator, "x", 5)
            self.line(5, "continue")
            self.line(4, f"{count} += 1")
            self.distribute(operator, "x", "x", count, 4, 1)
            self.flush(operator, "0", "0", count)
        inner, self.lines = self.lines, body
        self.line(1, "def run(source):")
        self.line(2, " = ".join([*self.counters, *self.looks, "held"]) + " = 0")
        self.line(2, "items = iter(())")
        self.line(2, "try:")
        self.lines += inner
        self.line(2, "finally:")
        if entry:
            self.line(3, f"{count} -= items.__length_hint__() + held")
        for text in self.flushes:
            self.line(3, text)
        self.line(2, "return")
        self.line(2, "yield")  # a generator also where nothing can be full

    def flush(self, operator: Operator, came: str, failed: str, out: str) -> None:
        entry = operator is self.root
        method = operator.flush_entry if entry else operator.flush
        self.flushes.append(f"{self.name('flush', operator, method)}({came}, {failed}, {out})")
        if self.root is not None:  # what is not at its end yet
            whole = f"C{self.root.index}"
            now = f"({whole} - items.__length_hint__() - held)"
            came, out = (re.sub(rf"\b{whole}\b", now, text) for text in (came, out))
        self.tallies.append(Tally(operator, entry, _expression(f"({came}, {failed}, {out})")))

    def beat(self, operator: Operator, out: str, depth: int) -> None:
        """The driver may have a look here, between two outputs of a stage."""
        if self.pace is None:
            self.line(depth, "if beat:")
            self.line(depth + 1, "yield BEAT")
            return
        look = f"at{operator.index}"
        self.looks.append(look)
        self.line(depth, f"if {out} >= {look} or beat:")
        self.line(depth + 1, f"{look} = {out} + look()")
        self.line(depth + 1, "if beat:")
        self.line(depth + 2, "yield BEAT")

    # ------------------------------------------------------------------ one stage

    def stage(self, operator: Operator, x: str, came: str, depth: int, loops: int) -> None:
        """An item, in the variable x, arrives at a stage."""
        lost, failed = self.counter("L", operator), self.counter("F", operator)
        kind = operator.form
        if kind == "batch":
            y = self.batch(operator, x, depth)
            if operator.fn is None:
                out = self.counter("M", operator)
                self.line(depth, f"{out} += 1")
                self.distribute(operator, y, y, out, depth, loops)
                self.flush(operator, came, "0", out)
                return
            full = self.counter("B", operator)
            self.line(depth, f"{full} += 1")
            out = self.call(operator, y, full, lost, failed, depth)
            self.distribute(operator, f"y{operator.index}", y, out, depth, loops)
            self.flush(operator, came, "0", out)
        elif kind == "many":
            self.many(operator, x, failed, depth, loops)
            self.flush(operator, came, failed, f"M{operator.index}")
        elif kind == "filter":
            out = self.call(operator, x, came, lost, failed, depth)
            self.line(depth, f"if not y{operator.index}:")
            self.line(depth + 1, f"{lost} += 1")
            self.line(depth + 1, "continue")
            self.distribute(operator, x, x, out, depth, loops)
            self.flush(operator, came, failed, out)
        else:
            out = self.call(operator, x, came, lost, failed, depth)
            if kind == "consumer":
                out = "0"
            else:
                self.distribute(operator, f"y{operator.index}", x, out, depth, loops)
            self.flush(operator, came, failed, out)

    def call(
        self, operator: Operator, x: str, came: str, lost: str, failed: str, depth: int
    ) -> str:
        """One call, its value in y; how many outputs it leaves, as an expression."""
        i = operator.index
        f, fail = self.name("f", operator, operator.fn), self.name("fail", operator, operator.fail)
        special = self.name("special", operator, operator.special)
        self.line(depth, "try:")
        if self.timed:
            note = self.name("note", operator, operator.note)
            self.line(depth + 1, "start = clock()")
            self.line(depth + 1, f"y{i} = {f}({x})")
            self.line(depth + 1, f"{note}(clock() - start)")
        else:
            self.line(depth + 1, f"y{i} = {f}({x})")
        self.line(depth, "except BaseException as error:")
        self.line(depth + 1, "if passes(error):")
        self.line(depth + 2, "raise")
        self.line(depth + 1, f"{lost} += 1")
        self.line(depth + 1, f"{failed} += 1")
        self.line(depth + 1, f"y{i} = {fail}({x}, error)")
        self.line(depth + 1, f"if y{i} is GONE:")
        self.letters(operator, depth + 2)
        self.line(depth + 2, "continue")
        self.line(depth + 1, f"{lost} -= 1")
        self.line(depth + 1, f"{failed} -= 1")
        unless = f"y{i} is not None and " if operator.kind == "consumer" else ""  # most give None
        self.line(depth, f"if {unless}type(y{i}) in SPECIAL:")
        self.line(depth + 1, f"{lost} += 1")
        self.line(depth + 1, f"if type(y{i}) is To:")
        self.send(operator, f"y{i}", depth + 2)
        self.line(depth + 2, "continue")
        self.line(depth + 1, f"if (yield from {special}(y{i}, {x})):")
        self.line(depth + 2, f"{failed} += 1")
        self.line(depth + 1, "continue")
        return f"{came} - {lost}"

    def many(self, operator: Operator, x: str, failed: str, depth: int, loops: int) -> None:
        """One call of a function that gives an iterable."""
        i = operator.index
        f, fail = self.name("f", operator, operator.fn), self.name("fail", operator, operator.fail)
        out = self.counter("M", operator)
        values = f"{f}({x})"
        if self.timed:
            values = f"clocked({values}, {self.name('note', operator, operator.note)})"
        self.line(depth, "try:")
        self.line(depth + 1, f"for y{i} in {values}:")
        self.beat(operator, out, depth + 2)
        self.line(depth + 2, f"if type(y{i}) is To:")
        self.send(operator, f"y{i}", depth + 3)
        self.line(depth + 3, "continue")
        self.line(depth + 2, f"{out} += 1")
        if operator.kind != "consumer":
            self.distribute(operator, f"y{i}", x, out, depth + 2, loops + 1)
        else:
            self.line(depth + 2, f"{out} -= 1")
        self.line(depth, "except BaseException as error:")
        self.line(depth + 1, "if passes(error):")
        self.line(depth + 2, "raise")
        self.line(depth + 1, f"{failed} += 1")
        self.line(depth + 1, f"{fail}({x}, error)")
        self.letters(operator, depth + 1)

    def batch(self, operator: Operator, x: str, depth: int) -> str:
        """An item goes into a batch; beyond this, one is full, in the variable returned."""
        i, stage = operator.index, operator.stage
        if stage.key is None and stage.size is not None:  # most items only join the others
            held, most = (
                self.name("held", operator, operator.held),
                self.name("most", operator, stage.size - 1),
            )
            self.line(depth, f"b{i} = {held}.get(None)")
            self.line(depth, f"if b{i} is not None and len(b{i}) < {most}:")
            self.line(depth + 1, f"b{i}.append({x})")
            self.line(depth + 1, "continue")
        self.line(depth, f"b{i} = {self.name('hold', operator, operator.hold)}({x})")
        self.line(depth, f"if b{i} is None:")
        if stage.key is not None:
            self.letters(operator, depth + 1)
        self.line(depth + 1, "continue")
        return f"b{i}"

    def letters(self, operator: Operator, depth: int) -> None:
        """Something failed: the queue of the dead letters may be full."""
        if isinstance(final(operator.stage.on_error), DeadLetter):
            self.line(depth, f"full = {self.name('letters', operator, operator.letters)}()")
            self.line(depth, "if full is not None:")
            self.line(depth + 1, "yield full")

    def send(self, operator: Operator, y: str, depth: int) -> None:
        self.line(depth, f"full = {self.name('send', operator, operator.send)}({y})")
        self.line(depth, "if full is not None:")
        self.line(depth + 1, "yield full")

    # ------------------------------------------------------------------ outputs

    def distribute(
        self, operator: Operator, y: str, x: str, out: str, depth: int, loops: int
    ) -> None:
        """An output, in the variable y, goes where the stage's outputs go."""
        targets = operator.targets
        if operator.kind == "consumer":
            return
        if not targets:
            if operator.outlet.bounded:
                self.line(depth, f"yield {y}")
            else:
                self.line(depth, f"{self.name('outs', operator, operator.outlet)}.append({y})")
        elif operator.choice is not None or operator.rotate is not None:
            self.choose(operator, y, depth)
        elif operator.routed:
            route = self.name("route", operator, operator.route)
            self.line(depth, f"full = {route}({y}, {x})")
            self.line(depth, "if full is not None:")
            self.line(depth + 1, "yield full")
        elif loops > _DEEP and any(target.fused for target in targets):
            # What is poured is counted by the run that it is poured into.
            once = f"M{operator.index} -= 1" if f"M{operator.index}" in self.counters else None
            self.line(depth, once or f"L{operator.index} += 1")
            self.line(depth, f"yield from {self.name('pour', operator, operator.pour)}(({y},))")
        else:
            for target in targets:
                self.branch(operator, target, y, out, depth, loops)

    def choose(self, operator: Operator, y: str, depth: int) -> None:
        """An output goes to one of several targets."""
        queue = f"q{operator.index}"
        whose = operator.whose if operator.rotate is None else operator.rotate
        self.line(depth, f"{queue} = {self.name('whose', operator, whose)}()")
        self.line(depth, f"{queue}.append({y})")
        self.line(depth, f"if len({queue}) >= {queue}.room:")
        if operator.choice is None:
            self.line(depth + 1, f"yield {queue}")
            return
        choice = self.name("choice", operator, operator.choice)
        self.line(depth + 1, f"if len({choice}):")
        self.line(depth + 2, f"yield {choice}")

    def branch(
        self, operator: Operator, target: Operator, y: str, out: str, depth: int, loops: int
    ) -> None:
        """An output goes to one of the targets; `out` says how many did, if there is no other."""
        alone = len(operator.targets) == 1
        if not target.fused:
            queue = self.name(f"q{operator.index}_", target, operator.edge_to(target))
            self.line(depth, f"{queue}.append({y})")
            self.line(depth, f"if len({queue}) >= {queue}.room:")
            self.line(depth + 1, f"yield {queue}")
            return
        if target is not operator.targets[-1]:
            self.line(depth, "for _ in ONCE:")
            depth, loops = depth + 1, loops + 1
        if not alone:
            out = self.counter("C", target)
            self.line(depth, f"{out} += 1")
        self.stage(target, y, out, depth, loops)

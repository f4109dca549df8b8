"""`forkmill run MODULE:GRAPH`: a graph by its name, its inputs, and its rows as JSON lines.

    --set name=value ──▶ inputs ─┐
    --map name=FILE ──records──▶ ┴▶ Graph.imap ──▶ rows ──▶ stdout or -o
                                        └─ failed ──▶ stderr, or --on-error FILE ─┐
    --only-failed FILE ◀──────────── by the numbers of their items ◀──────────────┘

Guarantees:
    * Rows are written as they come, in the order of the items; memory does not depend on their
      number, but for the files of a product (all but the first).
    * A row is one JSON object; what JSON does not know is in there as its text.
    * A row in which something failed is told of, and not written.

Threads: one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from ..errors import BuildError
from ..events import short
from ..runs.failure import Failure
from .filter import Output
from .inputs import Blocks, InputError
from .packed import by_name
from .records import Kind, records_of, text_of, to_line

__all__ = ["Done", "Job", "facts", "failure_facts", "is_graph", "only_failed", "run", "told"]


def is_graph(thing: Any) -> bool:
    """Whether it is an fm.Graph; where nobody has made one, its module is not loaded."""
    module = sys.modules.get("forkmill.graph.graph")
    return module is not None and isinstance(thing, module.Graph)


@dataclass
class Job:
    """What was asked for.

    Attributes:
        graph: The graph.
        inputs: Values by name.
        files: (name, file) of what is mapped.
        mode: "zip" or "product".
        wanted: Names of outputs; empty: all.
        engine: Where it runs; None: where the graph says.
        stop: Whether the first failure ends all.
        only: Numbers of the items that are run; None: all.
    """

    graph: Any
    inputs: dict[str, Any]
    files: list[tuple[str, str]] = field(default_factory=list)
    mode: str = "zip"
    wanted: tuple[str, ...] = ()
    engine: str | None = None
    stop: bool = True
    only: set[int] | None = None

    def number_of(self, failure: Any) -> int:
        """The number of a failure's item in the files."""
        index = failure.index or 0
        return index if self.only is None else sorted(self.only)[index]


@dataclass
class Done:
    """How it went.

    Attributes:
        rows: How many there were, failed ones too.
        failed: Of these, in how many something failed.
        failures: The first ones.
        seconds: How long it took.
        end: What ended it if it did not end by itself.
    """

    rows: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    end: BaseException | None = None

    @property
    def ok(self) -> bool:
        return self.end is None and not self.failed


def run(job: Job, output: Output | None, sinks: list[Any], on_failure: Any, keep: int) -> Done:
    """Run it, and write its rows, a line each.

    Args:
        job: What to run.
        output: Where rows go; None: they are only counted.
        sinks: Who hears the events.
        on_failure: Called with each Failure.
        keep: How many failures are kept.

    Raises:
        BuildError: The job cannot be run as asked; nothing of the user's has run.
    """
    done, began = Done(), perf_counter()
    with contextlib.ExitStack() as stack:
        rows = _rows(job, sinks, stack)
        try:
            for row in rows:
                _take(row, done, output, on_failure, keep)
        except BuildError:
            raise
        except BaseException as error:
            done.end = error
    done.seconds = perf_counter() - began
    return done


def _take(row: dict[str, Any], done: Done, output: Output | None, told: Any, keep: int) -> None:
    done.rows += 1
    failures = {id(value): value for value in row.values() if type(value) is Failure}
    if not failures:
        if output is not None:
            output.write(_line(row))
        return
    done.failed += 1
    for failure in failures.values():
        if len(done.failures) < keep:
            done.failures.append(failure)
        told(failure)


def _rows(job: Job, sinks: list[Any], stack: contextlib.ExitStack) -> Iterator[dict[str, Any]]:
    wanted = {"output_name": list(job.wanted)} if job.wanted else {}
    options: dict[str, Any] = {"engine": job.engine, "sinks": sinks, **wanted}
    if not job.files:
        yield job.graph.run(job.inputs, **options)
        return
    inputs = dict(job.inputs)
    mode = job.mode
    for name, path in job.files:
        inputs[name] = stack.enter_context(contextlib.closing(values_in(path)))
    names = [name for name, _ in job.files]
    if job.only is not None:
        mode = _select(job, inputs, names)
    options["on_error"] = "raise" if job.stop else "skip"
    rows = job.graph.imap(inputs, names, mode, **options)
    stack.callback(getattr(rows, "close", int))
    yield from rows


def _select(job: Job, inputs: dict[str, Any], names: list[str]) -> str:
    """Only the items that are asked for; the mode by which they are mapped."""
    only = job.only or set()
    columns = [inputs[name] for name in names]
    items: Any = zip(*columns, strict=True) if job.mode == "zip" else itertools.product(*columns)
    for name, column in zip(names, itertools.tee(_chosen(items, only), len(names)), strict=True):
        inputs[name] = map(_Nth(names.index(name)), column)
    return "zip"


def _chosen(items: Iterator[Any], only: set[int]) -> Iterator[Any]:
    return (item for number, item in enumerate(items) if number in only)


class _Nth:
    """Takes one value of an item."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, item: tuple[Any, ...]) -> Any:
        return item[self._number]


# ------------------------------------------------------------------------------ in, out

_KINDS = {"jsonl": "json", "ndjson": "json", "json": "json", "csv": "csv"}


def values_in(path: str) -> Generator[Any, None, None]:
    """The records of a file: of .jsonl the values of its lines, of .csv rows, else lines.

    Raises:
        InputError: It cannot be read on; after the values before that.
    """
    form = by_name(path)
    stem = path.removesuffix(f".{path.rpartition('.')[2]}") if form is not None else path
    kind = Kind("json" if path == "-" else _KINDS.get(stem.rpartition(".")[2].lower(), "lines"))
    blocks = Blocks([path], kind)
    try:
        while (block := blocks.take(1)) is not None or not blocks.ended:
            if block is None:
                blocks.fill()
                continue
            for offset, record, load in records_of(kind, block.data, block.header):
                try:
                    yield record if load is None else load(record)
                except ValueError as error:
                    raise InputError(f"{block.name}:{block.first + offset}: {error}") from None
    finally:
        blocks.close()


def only_failed(path: str) -> set[int]:
    """The numbers of items in a file of failures.

    Raises:
        InputError: It is no such file.
    """
    found = set()
    for number, record in enumerate(values_in(path), 1):
        index = record.get("index") if isinstance(record, dict) else None
        if type(index) is not int:
            raise InputError(f"{path}:{number}: this is no failure of a map: it has no index")
        found.add(index)
    return found


def _line(row: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(row, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps({name: _plain(value) for name, value in row.items()})
    return to_line(text)


def _plain(value: Any) -> Any:
    """A value as JSON has it, or its text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return text_of(value)
    return value


def failure_facts(failure: Any, index: int) -> dict[str, Any]:
    """A failure as a line of --on-error FILE."""
    item = failure.item
    return {
        "index": index,
        "stage": failure.stage,
        "type": type(failure.error).__name__,
        "error": str(failure.error),
        "item": {name: _plain(value) for name, value in item.items()}
        if isinstance(item, dict)
        else _plain(item),
        "attempts": failure.attempts,
        "traceback": failure.traceback,
    }


def told(failure: Any, number: int | None) -> str:
    """A failure in a line: the node, what was raised, and which item it was."""
    text = f"node {failure.stage}: {type(failure.error).__name__}: {failure.error}"
    where = "" if number is None else f" {number}"
    return f"{text} (item{where}: {short(failure.item)})"


def facts(done: Done) -> dict[str, Any]:
    """How it went, for --json."""
    return {
        "status": "completed" if done.end is None else "failed",
        "duration": done.seconds,
        "rows": done.rows,
        "failed": done.failed,
        "failures": [failure_facts(failure, failure.index or 0) for failure in done.failures],
    }

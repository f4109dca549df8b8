"""`forkmill run`: a pipeline by its name, its settings, its outputs and its figures.

    MODULE:PIPELINE ──load──▶ Pipeline ──sized──▶ ExecutionPlan ──▶ Stream ──▶ stdout
                                                     events ──▶ board on stderr

Guarantees: outputs are written as they come, so memory does not depend on their number.

Threads: one.
"""

from __future__ import annotations

import dataclasses
from ast import literal_eval
from collections.abc import Callable, Iterable
from typing import Any

from ..events import short
from ..pipeline import (
    ExecutionPlan,
    Failure,
    Orchestrator,
    Pipeline,
    RunResult,
)
from ..pipeline.run.driver import Driver
from ..runs.failure import KEEP
from ..runs.handle import Stream
from ..runs.stats import COLUMNS
from .filter import Output, OutputError
from .graphs import values_in
from .inputs import InputError
from .records import text_of, to_line

__all__ = ["COLUMNS", "facts", "only_failed", "rows", "run", "sized", "stages"]


def sized(pipeline: Pipeline, workers: int | None) -> ExecutionPlan:
    """Its plan, with so many workers wherever the pipeline does not say how many.

    Raises:
        BuildError: The pipeline is wrong.
    """
    plan = ExecutionPlan(pipeline).plan()
    if workers is not None:
        for stage in plan.graph.stages:
            spec = stage.spec
            if type(spec).__name__ == "Spec" and spec.max_workers is None and not stage.inline:
                stage.spec = dataclasses.replace(spec, max_workers=workers)
    return plan


def only_failed(plan: ExecutionPlan, path: str) -> int:
    """Have a plan run only the items in a file of failures; how many these are.

    Raises:
        InputError: It is no such file, or it has an item only as text.
        BuildError: The pipeline has no such stage.
    """
    from ..pipeline.again import begin_at

    found = []
    for number, record in enumerate(values_in(path), 1):
        if not isinstance(record, dict) or not isinstance(record.get("stage"), str):
            raise InputError(f"{path}:{number}: this is no failure: it has no stage")
        found.append((record["stage"], _item_of(record, f"{path}:{number}")))
    if found:
        begin_at(plan, found)
    return len(found)


def _item_of(record: dict[str, Any], where: str) -> Any:
    text = record.get("literal")
    if not isinstance(text, str):
        raise InputError(
            f"{where}: this item of stage {record['stage']!r} is kept as text only, for it is no "
            "plain value; run all items, or take the line out"
        )
    try:
        return literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError(f"{where}: its literal is none: {error}") from None


class Unprintable(ValueError):
    """An output has no text."""


def run(
    plan: ExecutionPlan,
    output: Output | None,
    sinks: Iterable[Callable[[dict[str, Any]], object]],
    keep_failures: int = KEEP,
    bad: Output | None = None,
) -> tuple[RunResult | None, int, BaseException | None]:
    """Run it, and write its outputs, a line each.

    Args:
        plan: What to run.
        output: Where to; None: they are only counted.
        sinks: Called with each event.
        keep_failures: How many failures are kept whole; the rest is counted.
        bad: Where failures go, a line each, as they come: all of them.

    Returns:
        The result (None: it did not come so far), how many outputs there were, and what ended it
        if it did not end by itself: an output or a failure that cannot be written, too.
    """
    count = 0
    driver = Orchestrator(plan.pipeline)._driver(
        plan, stream=True, sinks=sinks, keep_failures=keep_failures
    )
    kept = None if bad is None else Kept(bad, driver)
    stream = Stream(driver)
    try:
        for value in stream:
            count += 1
            if output is not None:
                try:
                    line = to_line(value)
                except Exception as error:
                    raise Unprintable(f"output {count:,} cannot be printed: {error}") from error
                output.write(line)
    except BaseException as error:
        stream.close()
        return stream.result or getattr(error, "run_result", None), count, error
    return stream.result, count, None if kept is None else kept.error


class Kept:
    """The failures of a run, each written as it comes: memory does not depend on their number.

    Attributes:
        error: Why one could not be written; the run's sources stop then.
    """

    def __init__(self, output: Output, driver: Driver) -> None:
        self._output = output
        self._driver = driver
        self.error: OutputError | None = None
        driver.failures.hand = self._write

    def _write(self, failure: Failure) -> None:
        if self.error is not None:
            return
        try:
            self._output.write(failure.line().encode() + b"\n")
        except OutputError as error:  # no business of the stage whose item has failed
            self.error = error
            self._driver.stop()


# ------------------------------------------------------------------------- figures


def rows(result: RunResult) -> Iterable[tuple[object, ...]]:
    """The table's rows, in COLUMNS."""
    return result.stats.rows()


def facts(result: RunResult, outputs: int) -> dict[str, Any]:
    """The result for --json."""
    return {
        "status": result.status,
        "duration": result.duration,
        "outputs": outputs,
        "bottleneck": result.stats.bottleneck,
        "stages": stages(result),
        "failures": [
            {
                "stage": failure.stage,
                "item": text_of(failure.item),
                "error": f"{type(failure.error).__name__}: {failure.error}",
                "attempts": failure.attempts,
            }
            for failure in result.failures
        ],
        "more_failures": [
            {"stage": stage, "error": kind, "count": count}
            for (stage, kind), count in result.more_failures.items()
        ],
    }


def stages(result: RunResult) -> dict[str, dict[str, Any]]:
    """All stages' figures, as plain data."""
    return {name: _plain(stage) for name, stage in result.stats.stages.items()}


def _plain(stage: Any) -> dict[str, Any]:
    """A stage's figures by name; `in_` is "in"."""
    return {name.rstrip("_"): value for name, value in dataclasses.asdict(stage).items()}


def told(failure: Failure) -> str:
    """A failure in a line: the stage, what was raised, and which item it was."""
    text = f"stage {failure.stage}: {type(failure.error).__name__}: {failure.error}"
    return text if failure.item is None else f"{text} (item: {short(failure.item)})"

"""What a run tells of its failures: the item's own exception, the result beside it, all the rest.

An item fails and so does what ends the run (teardown, on_end, hooks, generators that are closed):
the item's exception is raised, the others are noted on it and recorded, and the run's result is
attached. Where nothing else is wrong, what failed at the end is raised, and outputs are intact.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm

CONTEXTS = ["inline", "thread:1", "thread:2", "async:4", "ipc_fork:1", "ipc_fork:2", "cow_fork:1"]
SHARED = CONTEXTS[:4]  # whose copy of the state is torn down here, also where a run is ended
WORDS = "the end fails"
pytestmark = pytest.mark.timeout(60)


def end_badly(*_: Any) -> None:
    raise RuntimeError(WORDS)


def balanced(result: fm.RunResult) -> None:
    for edge in result.stats.edges.values():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped


def pipeline(context: str, fails_in: str, part: str, n: int = 5, **options: Any) -> fm.Pipeline:
    """n items through a stage whose part fails, and perhaps one item or the sink."""

    class Line(fm.Pipeline, context="inline"):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(n)

        @fm.stage(context=context, **options)
        def work(self, x: int) -> int:
            if fails_in == "item" and x == 0:
                raise ZeroDivisionError
            return x

        @fm.stage
        def keep(self, x: int) -> int:
            if fails_in == "sink":
                raise ZeroDivisionError
            return x

    if part in ("teardown", "on_end", "after_stage", "setup"):
        getattr(Line.work, part)(end_badly_of)
    line = Line()
    if part == "after_run":
        line._hooks = {"after_run": end_badly}
    return line


def end_badly_of(self: Any) -> None:
    end_badly()


@pytest.mark.parametrize("part", ["teardown", "after_stage", "after_run"])
@pytest.mark.parametrize("fails_in", ["item", "sink"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_item_s_own_exception_wins(context: str, fails_in: str, part: str) -> None:
    if part == "teardown" and context.startswith("cow_fork") and fails_in == "sink":
        fails_in = "item"  # a child is through, and has failed, before the sink sees its item
    with pytest.raises(ZeroDivisionError) as caught:
        pipeline(context, fails_in, part).run()
    result = caught.value.run_result
    assert result.status == "failed"
    assert result.failures[0].error is caught.value
    notes = "".join(getattr(caught.value, "__notes__", ()))
    if part != "teardown" or context in SHARED or context.startswith("cow_fork"):
        assert WORDS in notes
    assert "bug of ours" not in notes
    balanced(result)


@pytest.mark.parametrize("part", ["teardown", "on_end", "after_stage", "after_run"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_fails_at_the_end_alone_is_raised_with_the_outputs(context: str, part: str) -> None:
    n = 1 if context.startswith("cow_fork") else 5  # there the first item's end ends the run
    with pytest.raises(RuntimeError, match=WORDS) as caught:
        pipeline(context, "", part, n).run()
    result = caught.value.run_result
    assert sorted(result.outputs) == list(range(n))
    assert result.status == ("completed" if part == "after_run" else "failed")
    balanced(result)


@pytest.mark.parametrize(
    "options",
    [{"ordered": True}, {"on_error": fm.retry(2, backoff=0, then="raise")}, {"queue_size": 1}],
    ids=["ordered", "retry", "narrow"],
)
@pytest.mark.parametrize("n", [1, 3000])
@pytest.mark.parametrize("fails_in", ["item", "sink"])
def test_however_many_are_under_way(fails_in: str, n: int, options: dict[str, Any]) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        pipeline("thread:2", fails_in, "teardown", n, **options).run()
    balanced(caught.value.run_result)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_teardown_that_fails_is_recorded_where_the_stage_skips(context: str) -> None:
    result = pipeline(context, "item", "teardown", 2, on_error="skip").run()
    assert result.status == "completed" and result.outputs == [1]
    kinds = Counter((failure.item, type(failure.error)) for failure in result.failures)
    copies = kinds.pop((None, RuntimeError))
    assert copies >= 1 and kinds == {(0, ZeroDivisionError): 1}
    balanced(result)


@pytest.mark.parametrize(
    ("context", "hook"),
    [(context, hook) for context in CONTEXTS for hook in ("before_run", "before_stage")]
    + [(context, "before_fork") for context in CONTEXTS if "fork" in context],
)
def test_a_hook_that_fails_at_the_start_has_a_result_too(context: str, hook: str) -> None:
    line = fm.Pipeline(**{hook: end_badly}).source(range(5)).map(abs, context=context, queue_size=2)
    with pytest.raises(RuntimeError, match=WORDS) as caught:
        line.run()
    result = caught.value.run_result
    assert result.status == "failed" and result.outputs == []
    balanced(result)


def test_every_hook_of_the_end_is_called() -> None:
    called: list[str] = []

    class Line(fm.Pipeline):
        @fm.after_run
        def first(self, result: fm.RunResult) -> None:
            called.append(result.status)
            raise RuntimeError("one")

        @fm.after_run
        def second(self) -> None:
            raise RuntimeError("two")

    line = Line(after_run=lambda _: called.append("keyword")).source([1])
    with pytest.raises(RuntimeError, match="one") as caught:
        line.run()
    assert called == ["completed", "keyword"]
    assert any("two" in note for note in caught.value.__notes__)
    assert caught.value.run_result.outputs == [1]


@pytest.mark.parametrize("how", ["item", "close"])
def test_a_source_that_fails_when_it_is_closed_is_recorded(how: str) -> None:
    def numbers() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            raise RuntimeError(WORDS)

    def work(x: int) -> int:
        if how == "item" and x == 3:
            raise ZeroDivisionError
        return x

    line = fm.Pipeline().source(numbers).map(work, context="thread:1", queue_size=1)
    if how == "item":
        with pytest.raises(ZeroDivisionError) as caught:
            line.run()
        result = caught.value.run_result
    else:
        stream = line.stream()
        next(stream)
        stream.close()
        result = stream.result
        assert result.status == "stopped"
    assert (None, RuntimeError) in {(f.item, type(f.error)) for f in result.failures}
    balanced(result)


class Frozen(Exception):
    """Nothing can be set on it."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


def test_an_exception_that_refuses_attributes_has_the_result_and_the_notes() -> None:
    def work(x: int) -> int:
        raise Frozen

    line = fm.Pipeline(after_run=end_badly).source([1]).map(work)
    with pytest.raises(Frozen) as caught:
        line.run()
    assert caught.value.run_result.failures[0].item == 1
    assert WORDS in "".join(caught.value.__notes__)


# ------------------------------------------------------------------ deaths


@pytest.mark.parametrize("context", ["ipc_fork:1", "ipc_fork:2", "cow_fork:1", "named"])
def test_a_death_that_is_retried_is_told(context: str, tmp_path: Any) -> None:
    flag = tmp_path / "died"

    def work(x: int) -> int:
        if x == 3 and not flag.exists():
            flag.touch()
            os._exit(7)
        return x

    events: list[dict[str, Any]] = []
    pool = fm.named_pool("field-deaths", "ipc_fork:1") if context == "named" else None
    try:
        where = "field-deaths" if pool is not None else context
        line = fm.Pipeline().source(range(6)).map(work, context=where, on_error=fm.retry(3, 0))
        result = line.run(sinks=[events.append])
    finally:
        if pool is not None:
            pool.shutdown()
    assert sorted(result.outputs) == list(range(6)) and result.ok
    (death,) = (event for event in events if event["kind"] == "worker_died")
    assert death["stage"] == "work" and "exited with code 7" in death["error"]
    kinds = [event["kind"] for event in events]
    assert kinds.index("worker_died") < kinds.index("retry")

"""A pipeline that runs as a whole in a context tells what one that is nested inline tells."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm

PROCESSES = ["ipc_fork:1", "ipc_fork:2", "cow_fork:1"]
CONTEXTS = ["inline", "thread:1", "thread:2", "async:2", "interpreter:1", *PROCESSES]
LASTING = [c for c in CONTEXTS if not c.startswith("cow_fork")]  # whose copies outlive an item
pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:subinterpreters:RuntimeWarning"),
]


def bad(x: int) -> int:
    if x % 3 == 0:
        raise ValueError(f"bad {x}")
    return x


def books(result: fm.RunResult) -> None:
    for ends, edge in result.stats.edges.items():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped, ends


def within(inner: fm.Pipeline, context: str | None, deep: int, **options: Any) -> fm.Pipeline:
    """A pipeline in so many others, each in the context (None: nested inline)."""
    where = {} if context is None else {"context": context}
    for _ in range(deep - 1):
        inner = fm.Pipeline().through(inner, **where)
    return fm.Pipeline().source(range(9)).through(inner, **where, **options)


def told(result: fm.RunResult) -> Any:
    return sorted((f.stage, f.item, str(f.error), f.attempts) for f in result.failures)


def of(events: list[dict[str, Any]], *kinds: str) -> Counter[tuple[str, str]]:
    return Counter((e["kind"], e["name"]) for e in events if e["kind"] in kinds)


@pytest.mark.parametrize("deep", [1, 2])
@pytest.mark.parametrize("context", CONTEXTS)
def test_failures_events_and_figures_are_those_of_inline_nesting(context: str, deep: int) -> None:
    def run(where: str | None) -> tuple[fm.RunResult, list[dict[str, Any]]]:
        inner = fm.Pipeline().map(bad, on_error="skip").map(abs)
        events: list[dict[str, Any]] = []
        return within(inner, where, deep).run(sinks=[events.append]), events

    plain, plain_events = run(None)
    result, events = run(context)
    assert sorted(result.outputs) == sorted(plain.outputs) == [1, 2, 4, 5, 7, 8]
    assert told(result) == told(plain) and len(told(plain)) == 3
    assert not result.ok and result.status == "completed"
    for name, one in plain.stats.stages.items():
        got = result.stats[name]
        assert (got.in_, got.out, got.failed) == (one.in_, one.out, one.failed), name
    path = ".".join(["pipeline"] * deep)
    assert result.stats.edges[f"{path}.bad", f"{path}.abs"].delivered == 6
    assert of(events, "item_failed") == of(plain_events, "item_failed")
    for kind in ("stage_started", "stage_finished"):
        assert not of(plain_events, kind) - of(events, kind)
    books(result)
    failure = result.failures[0]
    assert "in bad" in failure.traceback and "ValueError" in failure.traceback
    with pytest.raises(ValueError, match="bad"):
        failure.reproduce()


@pytest.mark.parametrize("deep", [1, 2])
@pytest.mark.parametrize("context", CONTEXTS)
def test_an_inner_failure_that_shall_end_the_run_does(context: str, deep: int) -> None:
    line = within(fm.Pipeline().map(bad).map(abs), context, deep)
    with pytest.raises(ValueError, match="bad") as caught:
        line.run()
    result = caught.value.run_result
    path = ".".join(["pipeline"] * deep)
    (failure,) = result.failures
    assert (failure.stage, failure.item % 3) == (f"{path}.bad", 0)
    assert failure.error is caught.value and result.status == "failed"
    books(result)


@pytest.mark.parametrize("policy", ["skip", "retry", "letter"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_outer_policy_deals_with_what_ends_an_inner_item(context: str, policy: str) -> None:
    letters: list[fm.Failure] = []
    policies = {"skip": "skip", "retry": fm.retry(2, 0), "letter": fm.dead_letter("bad_ones")}
    line = within(fm.Pipeline().map(bad), context, 1, on_error=policies[policy], to=())
    line = line.sink(letters.append, name="bad_ones", from_=())
    result = line.run()
    assert sorted(result.outputs) == [1, 2, 4, 5, 7, 8]
    attempts = 2 if policy == "retry" else 1
    assert told(result) == [("pipeline.bad", x, f"bad {x}", attempts) for x in (0, 3, 6)]
    assert result.stats["pipeline"].failed == 3
    assert sorted(letter.item for letter in letters) == [0, 3, 6] * (policy == "letter")
    books(result)


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_inner_item_that_fails_leaves_nothing_of_it_behind(context: str) -> None:
    """What its siblings were made into when it failed does not turn up with the next item."""
    inner = fm.Pipeline().flat_map(lambda x: (x + 1, x, x + 2)).batch(1).unbatch().map(bad)
    result = within(inner, context, 1, on_error="skip").run()
    assert {f.stage for f in result.failures} == {"pipeline.bad"} and len(result.failures) == 9
    # Of three numbers in a row one fails: what came before it is kept, what is after it gone.
    kept = [y for x in range(9) for y in ([x + 1], [x + 1, x], [])[x % 3]]
    assert sorted(result.outputs) == sorted(kept)
    books(result)


@pytest.mark.parametrize("context", CONTEXTS)
def test_retries_and_dead_letters_inside(context: str, tmp_path: Path) -> None:
    def flaky(x: int) -> int:
        flag = tmp_path / str(x)
        if x % 2 and not flag.exists():
            flag.touch()
            raise OSError("not yet")
        if x == 4:
            raise ValueError("never")
        return x

    inner = fm.Pipeline()
    inner = inner.map(flaky, on_error=fm.retry(2, 0, on=OSError, then=fm.dead_letter("sort")))
    inner = inner.map(lambda f: (f.stage, f.item), name="sort", from_=())
    events: list[dict[str, Any]] = []
    result = within(inner, context, 1).run(sinks=[events.append])
    letters = [x for x in result.outputs if isinstance(x, tuple)]
    assert letters == [("pipeline.flaky", 4)]
    assert sorted(x for x in result.outputs if x not in letters) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert told(result) == [("pipeline.flaky", 4, "never", 1)]
    assert of(events, "retry") == {("retry", "pipeline.flaky"): 4}
    books(result)


@pytest.mark.parametrize("deep", [1, 2])
@pytest.mark.parametrize("context", [None, *CONTEXTS])
def test_names_of_the_outer_pipeline_are_reached_from_inside(context: str, deep: int) -> None:
    def sort(x: int) -> Any:
        if x % 3 == 1:
            return fm.to("odd", x)
        return bad(x)

    inner = fm.Pipeline().map(sort, on_error=fm.dead_letter("ill"))
    odd: list[int] = []
    ill: list[fm.Failure] = []
    line = within(inner, context, deep, to="rest")
    line = line.sink(odd.append, name="odd", from_=()).sink(ill.append, name="ill", from_=())
    result = line.map(abs, name="rest", from_=()).run()
    assert sorted(result.outputs) == [2, 5, 8]
    assert sorted(odd) == [1, 4, 7]
    path = ".".join(["pipeline"] * deep)
    assert sorted((f.stage, f.item) for f in ill) == [(f"{path}.sort", x) for x in (0, 3, 6)]
    assert len(result.failures) == 3
    books(result)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_name_that_is_nowhere_is_a_failure(context: str) -> None:
    inner = fm.Pipeline().map(lambda x: fm.to("nowhere", x) if x == 3 else x, name="send")
    result = within(inner, context, 1, on_error="skip").run()
    assert sorted(result.outputs) == [0, 1, 2, 4, 5, 6, 7, 8]
    (failure,) = result.failures
    assert isinstance(failure.error, fm.BuildError) and failure.item == 3


def test_dead_letters_to_a_stage_that_is_nowhere_are_refused_before_anything_runs() -> None:
    inner = fm.Pipeline().map(bad, on_error=fm.dead_letter("nowhere"))
    for context in (None, "thread:1"):
        with pytest.raises(fm.BuildError, match="nowhere"):
            within(inner, context, 1).run()


@pytest.mark.parametrize("deep", [1, 2])
@pytest.mark.parametrize("context", LASTING)
def test_an_inner_batch_waits_no_longer_than_its_time(context: str, deep: int) -> None:
    """The source goes on only when the batch has come out, or fails after a while."""
    seen: list[Any] = []

    def numbers() -> Iterator[int]:
        for i in range(2):
            yield i
            deadline = time.monotonic() + 20
            while len(seen) <= i:
                assert time.monotonic() < deadline, "the batch did not come"
                time.sleep(0.005)

    inner = fm.Pipeline().batch(100, max_wait=0.05).map(tuple)
    for _ in range(deep - 1):
        inner = fm.Pipeline().through(inner, context=context)
    line = fm.Pipeline().source(numbers).through(inner, context=context).sink(seen.append)
    result = line.run()
    assert result.ok and seen == [(0,), (1,)]
    books(result)


@pytest.mark.parametrize("context", LASTING)
def test_another_try_inside_comes_in_its_time_too(context: str, tmp_path: Path) -> None:
    """It waits in an inner lane, where no other item would wake it."""
    seen: list[Any] = []

    def flaky(x: int) -> int:
        if not (tmp_path / str(x)).exists():
            (tmp_path / str(x)).touch()
            raise OSError("not yet")
        return x

    def numbers() -> Iterator[int]:
        yield 1
        deadline = time.monotonic() + 20
        while not seen:
            assert time.monotonic() < deadline, "there was no other try"
            time.sleep(0.005)

    inner = fm.Pipeline().map(flaky, context="thread:1", on_error=fm.retry(2, 0.05))
    line = fm.Pipeline().source(numbers, context="thread:1").through(inner, context=context)
    assert line.sink(seen.append).run().ok and seen == [1]


@pytest.mark.parametrize("context", CONTEXTS)
def test_ends_inside_are_told(context: str) -> None:
    class Ends(fm.Pipeline, context="inline"):
        @fm.stage(on_error="skip")
        def work(self, x: int) -> int:
            return x

        @work.on_end
        def last(self) -> Iterator[str]:
            yield "end"
            raise LookupError("no end")

        @work.teardown
        def down(self) -> None:
            raise LookupError("no way down")

    events: list[dict[str, Any]] = []
    line = fm.Pipeline().source([1]).through(Ends(name="ends"), context=context)
    result = line.run(sinks=[events.append])
    assert result.outputs == [1, "end"]
    got = [(f.stage, f.item, str(f.error)) for f in result.failures]
    assert got == [("ends.work", None, "no end"), ("ends.work", None, "no way down")]
    assert of(events, "item_failed") == {("item_failed", "ends.work"): 2}


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_end_inside_that_shall_end_the_run_does(context: str) -> None:
    class Ends(fm.Pipeline, context="inline"):
        @fm.stage
        def work(self, x: int) -> int:
            return x

        @work.teardown
        def down(self) -> None:
            raise LookupError("no way down")

    line = fm.Pipeline().source([1]).through(Ends(name="ends"), context=context)
    with pytest.raises(LookupError) as caught:
        line.run()
    result = caught.value.run_result
    assert result.outputs == [1]
    assert [(f.stage, str(f.error)) for f in result.failures] == [("ends.work", "no way down")]


@pytest.mark.parametrize("context", CONTEXTS)
def test_stage_hooks_of_inner_stages_run_once_in_the_caller_s_process(context: str) -> None:
    calls: list[tuple[str, str]] = []
    inner = fm.Pipeline(
        before_stage=lambda name: calls.append(("before", name)),
        after_stage=lambda name: calls.append(("after", name)),
    ).map(abs)
    assert within(inner, context, 1).run().ok
    assert calls == [("before", "pipeline.abs"), ("after", "pipeline.abs")]


@pytest.mark.parametrize("context", PROCESSES)
def test_a_death_costs_its_item_and_the_books_still_add_up(context: str) -> None:
    def die(x: int) -> int:
        if x == 4:
            os._exit(3)
        return x

    inner = fm.Pipeline().map(die).batch(2).unbatch()
    events: list[dict[str, Any]] = []
    result = within(inner, context, 1, on_error="skip").run(sinks=[events.append])
    # Where the machine is slow an item's outputs may be in the worker still: it dies with it.
    assert {type(f.error) for f in result.failures} == {fm.WorkerDied}
    assert ("pipeline", 4) in [(f.stage, f.item) for f in result.failures]
    deaths = of(events, "worker_died")
    assert deaths == {("worker_died", "pipeline"): len(result.failures)}
    books(result)


@pytest.mark.parametrize("then", ["skip", "retry"])
def test_a_death_of_an_inner_worker_is_that_of_its_stage(then: str, tmp_path: Path) -> None:
    def die(x: int) -> int:
        if x == 4 and not (then == "retry" and (tmp_path / "died").exists()):
            (tmp_path / "died").touch()
            os._exit(3)
        return x

    policy: Any = "skip" if then == "skip" else fm.retry(2, 0)
    inner = fm.Pipeline().map(die, context="ipc_fork:1", on_error=policy)
    events: list[dict[str, Any]] = []
    result = within(inner, "thread:1", 1).run(sinks=[events.append])
    assert of(events, "worker_died") == {("worker_died", "pipeline.die"): 1}
    assert [(f.stage, f.item) for f in result.failures] == [("pipeline.die", 4)] * (then == "skip")
    assert len(result.outputs) == 8 + (then == "retry")
    books(result)


@pytest.mark.parametrize("context", CONTEXTS)
def test_inner_failures_are_bounded_as_all_others(context: str) -> None:
    inner = fm.Pipeline().map(bad, on_error="skip")
    result = within(inner, context, 1).run(keep_failures=1)
    assert len(result.failures) == 1
    assert result.more_failures == {("pipeline.bad", "ValueError"): 2}


def test_a_failure_that_cannot_travel_as_it_is_is_told_all_the_same() -> None:
    class Local(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("never")

    def work(x: Any) -> Any:
        raise Local("words")

    inner = fm.Pipeline().map(lambda x: [open, lambda: x], name="a").map(work, on_error="skip")
    result = fm.Pipeline().source([1]).through(inner, context="ipc_fork:1").run()
    (failure,) = result.failures
    assert failure.stage == "pipeline.work" and isinstance(failure.error, fm.RemoteError)
    assert "words" in str(failure.error) and "lambda" in failure.item

"""What a run tells of its failures: the item's own exception, the result beside it, all the rest.

An item fails and so does what ends the run (teardown, on_end, hooks, generators that are closed):
the item's exception is raised, the others are noted on it and recorded, and the run's result is
attached. Where nothing else is wrong, what failed at the end is raised, and outputs are intact.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
from forkmill.codec.failures import format_error

CONTEXTS = ["inline", "thread:1", "thread:2", "async:4", "ipc_fork:1", "ipc_fork:2", "cow_fork:1"]
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
    if part != "teardown" or not context.startswith("ipc_fork"):  # a worker has none when killed
        assert WORDS in notes
    assert "bug of ours" not in notes
    balanced(result)


@pytest.mark.parametrize("fails_in", ["item", "other", "sink"])
@pytest.mark.parametrize("width", [1, 4])
def test_a_run_that_fails_waits_for_the_teardown_in_a_loop(width: int, fails_in: str) -> None:
    """Also where it takes its time, and where other items are still at work."""
    steps: list[str] = []

    class Line(fm.Pipeline, context="inline"):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(4)

        @fm.stage(context=f"async:{width}")
        async def work(self, x: int) -> int:
            if x == 0 and fails_in == "item":
                raise ZeroDivisionError
            if x == 3 and fails_in != "sink":
                try:
                    await asyncio.sleep(30 if fails_in == "item" else 0)
                    raise ZeroDivisionError
                finally:
                    await asyncio.sleep(0.01)
                    steps.append("worked")
            return x

        @work.setup
        async def prepare(self) -> None:
            await asyncio.sleep(0)

        @work.teardown
        async def clean(self) -> None:
            steps.append("begun")
            await asyncio.sleep(0.1)
            steps.append("over")
            raise RuntimeError(WORDS)

        @fm.stage
        def keep(self, x: int) -> int:
            if fails_in == "sink":
                raise ZeroDivisionError
            return x

    with pytest.raises(ZeroDivisionError) as caught:
        Line().run()
    assert steps[-2:] == ["begun", "over"] and steps.count("begun") == 1
    assert caught.value.run_result.left_behind == []
    assert WORDS in "".join(caught.value.__notes__)


def test_a_run_that_fails_does_not_cut_a_teardown_short_that_has_begun() -> None:
    begun, steps = threading.Event(), []

    class Line(fm.Pipeline, context="inline"):
        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield 1

        @fm.stage(context="async:1")
        async def work(self, x: int) -> int:
            return x

        @work.teardown
        async def clean(self) -> None:
            begun.set()
            await asyncio.sleep(0.1)
            steps.append("over")
            raise RuntimeError(WORDS)

        @fm.stage(context="thread:1")
        def keep(self, x: int) -> int:
            assert begun.wait(20)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        Line().run()
    assert steps == ["over"]
    assert caught.value.run_result.left_behind == []
    assert WORDS in "".join(caught.value.__notes__)


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
    assert death["name"] == "work" and "exited with code 7" in death["data"]["error"]
    kinds = [event["kind"] for event in events]
    assert kinds.index("worker_died") < kinds.index("retry")


# ------------------------------------------------------------------ very many


def odd(x: int) -> int:
    if x % 2:
        raise (ValueError if x % 3 else fm.BuildError)(x)
    return x


@pytest.mark.parametrize("context", ["inline", "thread:1", "ipc_fork:1"])
def test_the_first_failures_are_kept_and_the_rest_is_counted(context: str) -> None:
    line = fm.Pipeline().source(range(600)).map(odd, context=context, on_error="skip", ordered=True)
    result = line.run(keep_failures=10)
    kept = [failure.item for failure in result.failures]
    if context == "ipc_fork:1":  # the first that were told: chunks may overtake each other
        assert len(set(kept)) == 10 and all(x % 2 for x in kept)
    else:
        assert kept == list(range(1, 20, 2))
    assert result.stats["odd"].failed == result.failed == 300 and not result.ok
    assert result.status == "completed" and len(result.outputs) == 300
    kinds = {"ValueError": 200, "forkmill.errors.BuildError": 100}
    seen = Counter(failure.error.__class__.__name__ for failure in result.failures)
    assert result.more_failures == {
        ("odd", name): count - seen[name.rpartition(".")[2]] for name, count in kinds.items()
    }


@pytest.mark.parametrize("keep", [0, 7, None])
def test_every_way_to_run_takes_the_number(keep: int | None) -> None:
    line = fm.Pipeline().source(range(3000)).map(odd, on_error="skip")
    stream = line.stream(keep_failures=keep)
    for _ in stream:
        pass
    results = [
        line.run(keep_failures=keep),
        line.start(keep_failures=keep).result(timeout=30),
        fm.Orchestrator(line).execute(keep_failures=keep),
        fm.Orchestrator(line).start(keep_failures=keep).result(timeout=30),
        stream.result,
    ]
    for result in results:
        assert len(result.failures) == (1500 if keep is None else keep)
        assert result.failed == 1500


def test_a_thousand_are_kept_if_nobody_says_otherwise() -> None:
    result = fm.Pipeline().source(range(3000)).map(odd, on_error="skip").run()
    assert (len(result.failures), result.failed) == (1000, 1500)


def test_the_failure_that_ends_the_run_is_always_kept() -> None:
    line = fm.Pipeline().source(range(50)).map(odd, on_error="skip", name="a")
    line = line.map(lambda x: 1 // (x - 40), name="b")
    with pytest.raises(ZeroDivisionError) as caught:
        line.run(keep_failures=5)
    result = caught.value.run_result
    assert [failure.stage for failure in result.failures] == ["a"] * 5 + ["b"]
    assert result.failed == 21


def test_dead_letters_arrive_whole_also_those_that_are_only_counted() -> None:
    letters: list[fm.Failure] = []
    line = fm.Pipeline().source(range(100)).map(odd, on_error=fm.dead_letter("bad"), to=())
    line = line.sink(letters.append, name="bad", from_=())
    result = line.run(keep_failures=3)
    assert [letter.item for letter in letters] == list(range(1, 100, 2))
    assert (len(result.failures), result.failed) == (3, 50)
    assert all("BuildError" in x.traceback or "ValueError" in x.traceback for x in letters)


@pytest.mark.parametrize("wrong", [-1, True, 1.5, "all"])
def test_a_wrong_number_is_refused_at_the_call(wrong: Any) -> None:
    line = fm.Pipeline().source([1])
    for call in (line.run, line.start, line.stream):
        with pytest.raises((TypeError, ValueError), match="keep_failures"):
            call(keep_failures=wrong)


class Counted(Exception):
    alive = 0

    def __init__(self) -> None:
        super().__init__()
        Counted.alive += 1

    def __del__(self) -> None:
        Counted.alive -= 1


@pytest.mark.parametrize("context", ["inline", "thread:1", "async:4"])
def test_memory_does_not_grow_with_the_number_of_failures(context: str) -> None:
    most = 0

    def work(x: int) -> None:
        nonlocal most
        most = max(most, Counted.alive)
        raise Counted

    n = 20_000 if context == "inline" else 3000
    line = fm.Pipeline().source(range(n)).map(work, context=context, on_error="skip", queue_size=50)
    gc.collect()
    gc.disable()  # nothing of it may need a collection of cycles either
    try:
        result = line.run(keep_failures=100)
    finally:
        gc.enable()
    assert result.failed == n
    assert most < 100 + 200  # the kept ones, and those that are under way


# ------------------------------------------------------------------ tracebacks


def test_a_traceback_is_made_at_the_first_look_and_is_of_its_own_item() -> None:
    one = ValueError("the same each time")

    def first(x: int) -> int:
        raise one

    def second(x: int) -> int:
        return first(x)

    line = fm.Pipeline().source([1, 2]).map(lambda x: first(x) if x == 1 else second(x))
    line._chain[-1].options["on_error"] = "skip"
    result = line.run()
    assert all(failure._text is None for failure in result.failures)
    texts = [failure.traceback for failure in result.failures]
    assert "in second" not in texts[0] and "in second" in texts[1]
    assert all(text.rstrip().endswith("ValueError: the same each time") for text in texts)
    assert [failure.traceback for failure in result.failures] == texts


def test_a_traceback_does_not_change_when_the_error_is_raised_again() -> None:
    (failure,) = fm.Pipeline().source(["x"]).map(int, on_error="skip").run().failures

    def again() -> None:
        raise failure.error

    with pytest.raises(ValueError):
        again()
    assert "in again" not in failure.traceback


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("context", ["inline", "thread:1", "ipc_fork:1"])
def test_a_traceback_of_what_has_no_words(context: str) -> None:
    def work(x: int) -> int:
        raise Mute

    (failure,) = (
        fm.Pipeline().source([1]).map(work, context=context, on_error="skip").run().failures
    )
    assert "Mute" in failure.traceback and "in work" in failure.traceback


# ------------------------------------------------------------------ which item was it?


def die_on(x: int) -> int:
    if x == 1234:
        os._exit(3)
    return x


class Dies:
    def __call__(self, x: int) -> int:
        return die_on(x)

    def method(self, x: int) -> int:
        return die_on(x)


HERE = os.path.basename(__file__)
CALLED = {
    "function": (die_on, "die_on"),
    "method": (Dies().method, "Dies.method"),
    "callable": (Dies(), "Dies"),
    "partial": (functools.partial(functools.partial(die_on)), "die_on"),
    "lambda": (lambda x: die_on(x), f"<lambda> ({HERE}:"),
}


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


@pytest.mark.parametrize("how", CALLED)
def test_a_death_in_a_map_names_function_and_item(how: str) -> None:
    fn, name = CALLED[how]
    with fm.ProcessPool(2) as pool:
        for items in (range(2000), iter(range(2000))):
            results = pool.map(fn, items, return_exceptions=True)
            deaths = [(i, r) for i, r in enumerate(results) if isinstance(r, fm.WorkerDied)]
            assert [(i, death.task) for i, death in deaths] == [(1234, 1234)]
            assert f"a call of {name}" in notes(deaths[0][1])
            assert "number 1234 of its items" in notes(deaths[0][1])
        results = pool.map(
            fn, range(1230, 1240), chunksize=1, ordered=False, return_exceptions=True
        )
        assert [r.task for r in results if isinstance(r, fm.WorkerDied)] == [4]
        error = pool.submit(fn, 1234).exception()
        assert isinstance(error, fm.WorkerDied) and error.task == 0
        assert f"a call of {name}" in notes(error) and "items" not in notes(error)


def test_a_timeout_in_a_map_names_its_item() -> None:
    with fm.ProcessPool(1) as pool:
        results = pool.options(timeout=0.3).map(sleep_on, range(20), return_exceptions=True)
        late = [r for r in results if isinstance(r, fm.TaskTimeout)]
    assert [error.task for error in late] == [13]
    assert "number 13 of its items" in notes(late[0])


def sleep_on(x: int) -> int:
    if x == 13:
        time.sleep(30)
    return x


def test_a_death_in_a_map_of_copies_names_its_item() -> None:
    with fm.executor("cow_fork", 2) as ex:
        got = list(ex.map(die_on, range(1230, 1240), return_exceptions=True))
    assert [r.task for r in got if isinstance(r, fm.WorkerDied)] == [4]


@pytest.mark.parametrize("how", CALLED)
@pytest.mark.parametrize("context", ["ipc_fork:1", "cow_fork:1", "named"])
def test_a_death_in_a_pipeline_names_function_stage_and_item(context: str, how: str) -> None:
    fn, name = CALLED[how]
    pool = fm.named_pool("field-names", "ipc_fork:1") if context == "named" else None
    try:
        where = "field-names" if pool is not None else context
        line = fm.Pipeline().source(range(1230, 1240))
        line = line.map(fn, name="first", context=where, on_error="skip")
        line = line.map(abs, name="second", context=where, on_error="skip")
        (failure,) = line.run().failures
    finally:
        if pool is not None:
            pool.shutdown()
    assert (failure.stage, failure.item) == ("first", 1234)
    told = notes(failure.error)
    assert f"a call of {name}" in told
    assert "stages 'first', 'second'" in told if pool is not None else "stage 'first'" in told
    assert "Function" not in told and "Whole" not in told


def test_the_command_line_names_the_item_that_failed(run_script: Any) -> None:
    result = run_script(
        """
        import sys
        import forkmill as fm
        from forkmill.cli import main

        def bad(text):
            return 10 // int(text)

        Line = fm.Pipeline().source(["1", "0", "x", "0", "0"]).map(bad, on_error="skip")
        sys.argv = ["forkmill", "run", "__main__:Line", "--keep-failures", "3"]
        sys.exit(main())
        """,
        expect=1,
    )
    assert "stage bad: ZeroDivisionError" in result.stderr and "(item: '0')" in result.stderr
    assert "(item: 'x')" in result.stderr and "and 1 failures more" in result.stderr


# ------------------------------------------------------------------ texts that were made before


class Worded(ValueError):
    def __str__(self) -> str:
        return "two\nlines"


def deep(n: int) -> Any:
    return deep(n - 1) if n else int("x")


def lead() -> None:
    try:
        int("x")
    except ValueError as error:
        raise LookupError("led") from error


def meanwhile() -> None:
    try:
        int("x")
    except ValueError:
        raise LookupError("meanwhile")  # noqa: B904


def noted() -> None:
    error = ValueError("noted")
    error.add_note("a note")
    raise error


def raise_it(error: BaseException) -> None:
    raise error


RAISES = {
    "builtin": lambda: int("x"),
    "own": lambda: raise_it(Worded()),
    "silent": lambda: raise_it(ValueError()),
    "base": lambda: raise_it(SystemExit(3)),
    "mute": lambda: raise_it(Mute()),
    "deep": lambda: deep(3),
    "recursion": lambda: deep(200),
    "cause": lead,
    "context": meanwhile,
    "notes": noted,
    "attribute": lambda: "".jion([]),  # type: ignore[attr-defined]
    "name": lambda: lenn([]),  # type: ignore[name-defined]  # noqa: F821
    "syntax": lambda: compile("1 +", "x", "exec"),
    "group": lambda: raise_it(ExceptionGroup("g", [ValueError(1), Worded()])),
}


@pytest.mark.parametrize("how", RAISES)
def test_the_text_of_a_failure_is_the_same_each_time_and_that_of_traceback(how: str) -> None:
    """A worker keeps the text of frames that it has formatted."""
    texts = []
    for _ in range(3):
        try:
            RAISES[how]()
        except BaseException as error:
            assert format_error(error) == "".join(traceback.format_exception(error))
            texts.append(format_error(error))
    assert len(set(texts)) == 1


def test_a_new_function_of_the_same_file_and_line_has_its_own_text() -> None:
    texts = []
    for name in ("first", "second"):
        scope: dict[str, Any] = {}
        exec(f"def {name}():\n    raise ValueError", scope)
        try:
            scope[name]()
        except ValueError as error:
            texts.append(format_error(error))
    assert "in first" in texts[0] and "in second" in texts[1]

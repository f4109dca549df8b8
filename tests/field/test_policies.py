"""One behaviour of policies, setups, ends and sources in every context.

What is expected is written down here once (`expected` and the tables), and held for each context.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks

OWN = ["inline", "thread:1", "thread:2", "async:4", "ipc_fork:1", "ipc_fork:2", "cow_fork:1"]
CONTEXTS = [*OWN, "interpreter:1", "named ipc_fork:2", "named cow_fork:2", "named thread:2"]
SHARED = ("inline", "thread", "async", "named thread")
if not tasks.SUBINTERPRETERS:
    SHARED = (*SHARED, "interpreter")
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:subinterpreters:RuntimeWarning"),
]


class Odd(BaseException):
    """No Exception."""


RAISED = [
    ValueError,
    Odd,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
]
POLICIES = {
    "raise": "raise",
    "skip": "skip",
    "retry": fm.retry(2, backoff=0),
    "retry, raise": fm.retry(2, backoff=0, then="raise"),
    "retry, letter": fm.retry(2, backoff=0, then=fm.dead_letter("bad")),
    "letter": fm.dead_letter("bad"),
}


@contextlib.contextmanager
def place(context: str) -> Iterator[str]:
    """The name of a context; "named X" is a pool of that kind."""
    if not context.startswith("named "):
        yield context
        return
    with fm.named_pool("policies", context.removeprefix("named ")):
        yield "policies"


# ------------------------------------------------------------------ items


def plain(kind: type[BaseException], x: int) -> Any:
    if x == 1:
        raise kind("no")
    return x


def generator(kind: type[BaseException], x: int) -> Iterator[Any]:
    yield "first", x
    if x == 1:
        raise kind("no")
    yield x


def lazy(kind: type[BaseException], x: int) -> Any:
    return (y for y in generator(kind, x))


async def coroutine(kind: type[BaseException], x: int) -> Any:
    if x == 1:
        raise kind("no")
    return x


async def asynchronous(kind: type[BaseException], x: int) -> AsyncIterator[Any]:
    yield "first", x
    if x == 1:
        raise kind("no")
    yield x


FORMS = {f.__name__: f for f in (plain, generator, lazy, coroutine, asynchronous)}
EMITS_FIRST = {"generator", "lazy", "asynchronous"}


class Bound:
    """A function of one item, which keeps its kind."""

    def __init__(self, form: str, kind: type[BaseException]) -> None:
        self.form, self.kind = form, kind

    def make(self) -> Any:
        fn, kind = FORMS[self.form], self.kind
        if self.form == "generator":

            def work(x: int) -> Any:
                yield from fn(kind, x)

        elif self.form == "coroutine":

            async def work(x: int) -> Any:
                return await fn(kind, x)

        elif self.form == "asynchronous":

            async def work(x: int) -> Any:
                async for y in fn(kind, x):
                    yield y

        else:

            def work(x: int) -> Any:
                return fn(kind, x)

        return work


def expected(form: str, policy: str, kind: type[BaseException]) -> tuple[Any, ...]:
    """(type that an item fails with, its tries, outputs of the others and of what came first)."""
    inside = kind is StopIteration and form != "plain"
    error = RuntimeError if inside else kind  # as Python has it in generators and coroutines
    retried = policy.startswith("retry") and issubclass(error, Exception)
    outputs: list[Any] = [0, 2, 3]
    if form in EMITS_FIRST:
        outputs += [("first", x) for x in (0, 2, 3)]
        if not policy.startswith("retry"):
            outputs.append(("first", 1))
    return error, 2 if retried else 1, Counter(outputs)


def books(result: fm.RunResult) -> None:
    stage = result.stats["work"]
    edge = result.stats.edges["source", "work"]
    assert edge.emitted == edge.delivered + edge.failed + edge.dropped
    assert stage.failed == 1 and edge.failed == 1


def is_dear(context: str) -> bool:
    """Whether each run makes processes, or subinterpreters."""
    own = ("ipc_fork", "interpreter") if tasks.SUBINTERPRETERS else "ipc_fork"
    return "cow_fork" in context or context.startswith(own)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_an_item_that_raises_goes_by_the_policy(context: str, form: str) -> None:
    few = is_dear(context)
    kinds = RAISED[1::5] if few else RAISED
    with place(context) as where:
        for kind in kinds:
            for policy in ("raise", "skip", "retry") if few else POLICIES:
                check_item(where, form, kind, policy)


def check_item(where: str, form: str, kind: type[BaseException], policy: str) -> None:
    error, attempts, outputs = expected(form, policy, kind)
    letters: list[Any] = []
    line = fm.Pipeline(context="inline").source(range(4))
    line = line.map(
        Bound(form, kind).make(),
        name="work",
        context=where,
        on_error=POLICIES[policy],
        ordered=policy == "skip",
        to=(),
    )
    line = line.sink(letters.append, name="bad", from_=())
    case = (where, form, kind.__name__, policy)
    if policy.endswith("raise"):
        with pytest.raises(error) as caught:
            line.run()
        result = caught.value.run_result
        assert result.status == "failed", case
        assert not Counter(result.outputs) - outputs, case
    else:
        result = line.run()
        assert result.status == "completed", case
        assert Counter(result.outputs) == outputs, case
        if policy == "skip":
            assert [x for x in result.outputs if x in (0, 2, 3)] == [0, 2, 3], case
        books(result)
    (failure,) = result.failures
    assert (failure.stage, failure.item, failure.attempts) == ("work", 1, attempts), case
    assert type(failure.error) is error, case
    assert [letter.item for letter in letters] == [1] * policy.endswith("letter"), case


def flat_stop(x: int) -> Any:
    if x == 1:
        raise StopIteration("no")
    return [x]


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_stops_an_iterator_is_not_its_end(context: str) -> None:
    """Verbs for which our own generator calls the function."""
    with place(context) as where:
        line = fm.Pipeline(context="inline").source(range(3))
        line = line.flat_map(flat_stop, context=where, on_error="skip", name="flat")
        line = line.filter(flat_stop, context=where, on_error="skip", name="filter")
        line = line.filter(lambda x: flat_stop(x - 1), context=where, on_error="skip", name="last")
        result = line.run()
    assert sorted(result.outputs) == [0]
    got = sorted((f.stage, f.item, type(f.error)) for f in result.failures)
    assert got == [("flat", 1, StopIteration), ("last", 2, StopIteration)]


@pytest.mark.parametrize("context", CONTEXTS)
def test_items_that_are_exceptions_are_items(context: str) -> None:
    items = [ValueError(1), StopIteration(2), GeneratorExit(), KeyboardInterrupt(3), Odd(4)]
    with place(context) as where:
        line = fm.Pipeline(context="inline").source(items)
        line = line.map(same, context=where).flat_map(lambda x: (x,), context=where)
        result = line.run()
    assert result.ok
    assert Counter(map(repr, result.outputs)) == Counter(map(repr, items))


def same(x: Any) -> Any:
    return x


# ------------------------------------------------------------------ setup


def line_of(
    where: str, parts: dict[str, Callable[..., Any]], n: int, policy: Any = "raise"
) -> fm.Pipeline:
    class Line(fm.Pipeline, context="inline"):
        @fm.producer
        def source(self) -> Iterator[int]:
            yield from range(n)

        @fm.stage(context=where, on_error=policy, queue_size=1)
        def work(self, x: int) -> int:
            return x

    for part, fn in parts.items():
        getattr(Line.work, part)(fn)
    return Line()


class Calls:
    """How often something was called, over all processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> int:
        with self.path.open("a") as file:
            file.write("x")
        return len(self.path.read_text())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("context", [c for c in CONTEXTS if ":2" not in c] + ["thread:2"])
def test_a_setup_that_fails_is_called_again(context: str, policy: str, tmp_path: Path) -> None:
    calls = Calls(tmp_path / "calls")

    def begin(self: Any) -> None:
        if calls() <= 1:
            raise LookupError("not yet")

    with place(context) as where:
        policies = {**POLICIES, "retry, letter": "skip", "letter": "skip"}  # no stage "bad" here
        line = line_of(where, {"setup": begin}, 3, policies[policy])
        if policy == "raise":
            with pytest.raises(LookupError) as caught:
                line.run()
            result = caught.value.run_result
            assert [f.stage for f in result.failures] == ["work"]
            assert result.failures[0].item is not None
            return
        result = line.run()
    # The item fails that met it; with a retry none does.
    lost = [] if policy in ("retry", "retry, raise") else [f.item for f in result.failures]
    assert len(lost) == (0 if policy in ("retry", "retry, raise") else 1)
    assert sorted(result.outputs) == sorted({0, 1, 2} - {*lost})
    if not context.startswith("cow_fork"):  # where each item has a copy of its own
        assert calls() - 1 == 2


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_setup_that_always_fails_fails_every_item(context: str) -> None:
    def begin(self: Any) -> None:
        raise LookupError("never")

    with place(context) as where:
        result = line_of(where, {"setup": begin, "on_end": same}, 4, "skip").run()
    assert sorted(f.item for f in result.failures) == [0, 1, 2, 3]
    assert {type(f.error) for f in result.failures} == {LookupError}
    assert result.outputs == [] and result.stats["work"].failed == 4


# ------------------------------------------------------------------ the end


@pytest.mark.parametrize("policy", ["raise", "skip", "retry"])
@pytest.mark.parametrize("kind", [Odd, asyncio.CancelledError])
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_on_end_emitted_before_it_raised_is_kept(
    context: str, kind: type[BaseException], policy: str
) -> None:
    def last(self: Any) -> Iterator[str]:
        yield "a"
        yield "b"
        raise kind("no end")

    with place(context) as where:
        line = line_of(where, {"on_end": last}, 1, POLICIES[policy])
        if policy == "raise":
            with pytest.raises(kind) as caught:
                line.run()
            result = caught.value.run_result
            assert result.status == "failed"
        else:
            result = line.run()
            assert result.status == "completed"
    assert result.outputs == [0, "a", "b"]
    (failure,) = result.failures
    assert (failure.stage, failure.item, failure.attempts) == ("work", None, 1)


async def last_async(self: Any) -> AsyncIterator[str]:
    yield "a"
    raise ValueError("no end")


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_asynchronous_end_keeps_it_too(context: str) -> None:
    with place(context) as where:
        result = line_of(where, {"on_end": last_async}, 1, "skip").run()
    assert result.outputs == [0, "a"]
    assert [(f.item, type(f.error)) for f in result.failures] == [(None, ValueError)]


@pytest.mark.parametrize("context", CONTEXTS)
def test_both_failures_of_an_end_are_told(context: str) -> None:
    def last(self: Any) -> Iterator[str]:
        yield "a"
        raise ValueError("no end")

    def down(self: Any) -> None:
        raise LookupError("no way down")

    with place(context) as where:
        result = line_of(where, {"on_end": last, "teardown": down}, 1, "skip").run()
    assert result.outputs == [0, "a"]
    assert [type(f.error) for f in result.failures] == [ValueError, LookupError]


@pytest.mark.parametrize("context", [c for c in CONTEXTS if c.startswith(SHARED)])
def test_a_copy_that_all_share_has_its_life_without_items_too(context: str) -> None:
    log: list[str] = []

    def note(word: str) -> Callable[[Any], str]:
        def fn(self: Any) -> str:
            log.append(word)
            return word

        return fn

    with place(context) as where:
        parts = {part: note(part) for part in ("setup", "on_end", "teardown")}
        result = line_of(where, parts, 0).run()
    assert log == ["setup", "on_end", "teardown"]
    assert result.outputs == ["on_end"] and result.ok


# ------------------------------------------------------------------ sources and sinks


@pytest.mark.parametrize("policy", ["raise", "skip", "retry"])
@pytest.mark.parametrize("kind", [ValueError, Odd, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("context", [c for c in CONTEXTS if not c.startswith("named")])
def test_a_source_that_raises_ends_only_itself(
    context: str, kind: type[BaseException], policy: str
) -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise kind("dry")

    line = fm.Pipeline(context="inline")
    line = line.source(broken, context=context, name="broken", on_error=POLICIES[policy])
    line = line.source(range(10, 13)).map(same)
    result = line.run()
    assert result.status == "failed"
    assert sorted(result.outputs) == [1, 2, 10, 11, 12]
    (failure,) = result.failures
    assert (failure.stage, failure.item, failure.attempts) == ("broken", None, 1)
    assert type(failure.error) is kind


@pytest.mark.parametrize("context", [c for c in CONTEXTS if not c.startswith("named")])
def test_a_source_whose_setup_fails_ends_only_itself(context: str) -> None:
    def begin() -> None:
        raise LookupError("no database")

    line = fm.Pipeline(context="inline").source(range(3), context=context, name="a", setup=begin)
    result = line.source(range(10, 13)).map(same).run()
    assert result.status == "failed" and sorted(result.outputs) == [10, 11, 12]
    assert [(f.stage, f.item, type(f.error)) for f in result.failures] == [("a", None, LookupError)]


@pytest.mark.parametrize("policy", ["raise", "skip", "retry", "letter"])
@pytest.mark.parametrize("kind", [ValueError, Odd])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_sink_is_a_stage_as_any(context: str, kind: type[BaseException], policy: str) -> None:
    def keep(x: int) -> None:
        if x == 1:
            raise kind("full")

    letters: list[Any] = []
    with place(context) as where:
        line = fm.Pipeline(context="inline").source(range(4))
        line = line.sink(keep, name="keep", context=where, on_error=POLICIES[policy])
        line = line.sink(letters.append, name="bad", from_=())
        if policy == "raise":
            with pytest.raises(kind) as caught:
                line.run()
            result = caught.value.run_result
        else:
            result = line.run()
            assert result.status == "completed"
            assert (result.stats["keep"].in_, result.stats["keep"].failed) == (4, 1)
    (failure,) = result.failures
    assert (failure.stage, failure.item) == ("keep", 1) and type(failure.error) is kind
    assert [letter.item for letter in letters] == [1] * (policy == "letter")


# ------------------------------------------------------------------ Ctrl-C is no item's failure


def test_a_handler_of_the_user_s_that_raises_ends_the_run(run_script: Any) -> None:
    result = run_script(
        """
        import os, signal
        import forkmill as fm

        def handler(number, frame):
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, handler)
        seen = []

        def work(x):
            seen.append(x)
            if x == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return x

        try:
            fm.Pipeline().source(range(10)).map(work, on_error="skip").run()
        except KeyboardInterrupt as error:
            print(error.run_result.status, seen)
        """
    )
    assert result.stdout == "stopped [0, 1, 2, 3]\n", result.report()


# ------------------------------------------------------------------ dead letters and ends


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_stage_of_dead_letters_ends_once_when_the_last_has_come(context: str) -> None:
    """Dead letters reach a stage as links do: it does not end while more may come."""
    came: list[int] = []

    class Line(fm.Pipeline, context="inline"):
        @fm.producer(to="work")
        def source(self) -> Iterator[int]:
            for x in range(6):
                yield x
                deadline = time.monotonic() + 20
                while x % 2 and len(came) < x // 2 and time.monotonic() < deadline:
                    time.sleep(0.002)  # in its own thread: until the letter has been seen

        @fm.stage(on_error=fm.dead_letter("bad"), to=())
        def work(self, x: int) -> int:
            if x % 2:
                raise ValueError(x)
            return x

        @fm.stage(from_=(), to="after")
        def bad(self, letter: fm.Failure) -> int:
            came.append(letter.item)
            return letter.item

        @bad.on_end
        def last(self) -> str:
            return "end of bad"

        @fm.stage(from_=())
        def after(self, x: Any) -> Any:
            return x

        @after.on_end
        def over(self) -> str:
            return "end of after"

    with place(context) as where:
        Line.source.options["context"] = "thread:1"
        Line.work.options["context"] = where
        outputs = Line().run().outputs
    assert sorted(map(str, outputs)) == ["0", "1", "2", "3", "4", "5", "end of after", "end of bad"]
    assert outputs[-1] == "end of after"


def test_dead_letters_that_go_back_end_all_the_same() -> None:
    ends: list[str] = []

    class Line(fm.Pipeline, context="inline"):
        @fm.producer
        def source(self) -> Iterator[int]:
            yield from range(6)

        @fm.stage
        def mend(self, x: Any) -> int:
            return x.item * 2 if isinstance(x, fm.Failure) else x

        @mend.on_end
        def mended(self) -> Iterator[int]:
            ends.append("mend")
            yield from ()

        @fm.stage(on_error=fm.dead_letter("mend"))
        def work(self, x: int) -> int:
            if x % 2:
                raise ValueError(x)
            return x

    result = Line().run()
    assert sorted(result.outputs) == [0, 2, 2, 4, 6, 10] and ends == ["mend"]

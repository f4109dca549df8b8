"""For tests: the contract of contexts, `check_context(make)`, and runs without order, `shuffled()`.

    fm.testing.check_context(lambda: MyExecutor(2))

Each check is a function of `make`, which gives a fresh context: an Executor with `map` and
`options`, a Context (`fm.create_context`), or a spec (`fm.thread(2)`), of which both are checked.
A check raises AssertionError that says what is wrong.

    with fm.testing.shuffled():
        Mine().run()

mixes what stages that are not `ordered` emit: a pipeline that relies on an order that nobody
promised fails now, and not on a busy machine.
"""

from __future__ import annotations

import concurrent.futures
import math
from typing import TYPE_CHECKING, Any

from . import errors
from .pipeline.run.shuffle import shuffled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Check = Callable[[Callable[[], Any]], None]

__all__ = ["CONTEXT_CHECKS", "EXECUTOR_CHECKS", "Odd", "check_context", "shuffled"]


class Odd(ValueError):
    """An exception with more arguments than text."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number)
        self.number = number


VALUES: list[Any] = [
    None, True, 0, -1, 1 << 70, 0.5, -0.0, math.inf, "", "text \N{SNOWMAN}", b"", b"\0" * 70_000,
    (), (1, (2, [3])), [], [None, [None]], {}, {"a": {"b": (1, 2)}}, {1, 2}, ..., int, [1] * 10_000,
]  # fmt: skip


def echo(value: Any) -> Any:
    return value


def square(number: int) -> int:
    return number * number


def add(a: int, b: int = 10, *, c: int = 100) -> int:
    return a + b + c


def fail(text: str) -> None:
    error = Odd(text, 7)
    error.add_note("a note")
    try:
        raise KeyError("the cause")
    except KeyError as cause:
        raise error from cause


def fail_on_odd(number: int) -> int:
    if number % 2:
        raise Odd("odd", number)
    return number


def nested(number: int) -> int:
    from .contexts import executor

    with executor("inline") as inner:
        return sum(inner.map(square, range(number)))


# ---------------------------------------------------------------------- executors


def check_values_arrive_unchanged(make: Callable[[], Any]) -> None:
    with make() as executor:
        for value in VALUES:
            back = executor.submit(echo, value).result(60)
            assert back == value and type(back) is type(value), f"{value!r:.80} became {back!r:.80}"
        nan = executor.submit(echo, math.nan).result(60)
        assert nan != nan, f"NaN became {nan!r}"
        assert math.copysign(1, executor.submit(echo, -0.0).result(60)) == -1, "-0.0 lost its sign"


def check_exceptions_are_values_too(make: Callable[[], Any]) -> None:
    with make() as executor:
        back = executor.submit(echo, Odd("value", 3)).result(60)
        assert type(back) is Odd and back.args == ("value", 3), repr(back)
        (back,) = executor.map(echo, [Odd("value", 4)])
        assert type(back) is Odd and back.number == 4, repr(back)


def check_arguments(make: Callable[[], Any]) -> None:
    with make() as executor:
        assert executor.submit(add, 1).result(60) == 111
        assert executor.submit(add, 1, b=2, c=3).result(60) == 6
        assert executor.submit(lambda x: x + 1, 1).result(60) == 2, "a lambda"
        try:
            executor.submit(None)
        except TypeError:
            pass
        else:
            raise AssertionError("submit(None) must raise TypeError")


def check_errors_keep_what_they_say(make: Callable[[], Any]) -> None:
    with make() as executor:
        error = executor.submit(fail, "text").exception(60)
        assert type(error) is Odd, repr(error)
        assert error.args == ("text", 7) and error.number == 7, error.args
        assert error.__notes__ == ["a note"], "the notes"
        assert isinstance(error.__cause__, KeyError), f"the cause: {error.__cause__!r}"
        error = executor.submit(next, iter(())).exception(60)
        assert isinstance(error, StopIteration | RuntimeError), repr(error)


def check_map_keeps_the_order(make: Callable[[], Any]) -> None:
    with make() as executor:
        assert list(executor.map(square, range(50))) == [n * n for n in range(50)]
        assert list(executor.map(add, [1, 2], [3, 4, 5])) == [104, 106], "the shortest ends it"
        assert list(executor.starmap(add, [(1, 2), (3, 4)])) == [103, 107]
        assert sorted(executor.map(square, range(50), ordered=False)) == [n * n for n in range(50)]
        assert list(executor.map(square, [])) == []


def check_map_reports_failures_in_their_place(make: Callable[[], Any]) -> None:
    with make() as executor:
        results = executor.map(fail_on_odd, range(4))
        assert next(results) == 0
        try:
            next(results)
        except Odd as error:
            assert error.number == 1
        else:
            raise AssertionError("item 1 must raise Odd")
        assert list(results) == [], "an exception ends the iteration"
        kinds = [type(r) for r in executor.map(fail_on_odd, range(4), return_exceptions=True)]
        assert kinds == [int, Odd, int, Odd], kinds

        def broken_input() -> Iterator[int]:
            yield 2
            raise LookupError("input")

        results = executor.map(square, broken_input())
        assert next(results) == 4, "results before the input's exception come first"
        try:
            next(results)
        except LookupError:
            pass
        else:
            raise AssertionError("the input's exception must arrive")


def check_map_is_lazy(make: Callable[[], Any]) -> None:
    with make() as executor:
        pulled: list[int] = []

        def numbers() -> Iterator[int]:
            for number in range(10**9):
                pulled.append(number)
                yield number

        results = executor.map(square, numbers(), buffersize=5)
        assert len(pulled) <= 5, f"pulled {len(pulled)} with a window of 5"
        assert [next(results) for _ in range(20)] == [n * n for n in range(20)]
        assert len(pulled) <= 26, f"pulled {len(pulled)} for 20 results"
        results.close()
        assert next(results, None) is None, "closed is at its end"


def check_options(make: Callable[[], Any]) -> None:
    with make() as executor:
        view = executor.options(priority=1, retries=1, retry_on=Odd)
        assert view.submit(square, 3).result(60) == 9
        assert type(view.submit(fail, "x").exception(60)) is Odd
        view.shutdown()
        assert executor.submit(square, 2).result(60) == 4, "a view's shutdown does nothing"
        for wrong in ({"retries": -1}, {"timeout": -1}, {"priority": "high"}, {"retry_on": 3}):
            try:
                executor.options(**wrong)
            except (TypeError, ValueError):
                continue
            raise AssertionError(f"options({wrong}) must be refused")


def check_it_is_an_executor(make: Callable[[], Any]) -> None:
    with make() as executor:
        futures = [executor.submit(square, n) for n in range(8)]
        done, not_done = concurrent.futures.wait(futures, timeout=60)
        assert len(done) == 8 and not not_done
        futures = [executor.submit(square, n) for n in range(8)]
        results = sorted(f.result() for f in concurrent.futures.as_completed(futures, 60))
        assert results == [n * n for n in range(8)]
        told: list[int] = []
        future = executor.submit(square, 4)
        future.add_done_callback(lambda f: told.append(f.result()))
        executor.shutdown()
        assert told == [16], "callbacks are over when shutdown returns"


def check_submit_after_shutdown(make: Callable[[], Any]) -> None:
    executor = make()
    future = executor.submit(square, 5)
    executor.shutdown()
    executor.shutdown()  # idempotent
    assert future.result(0) == 25, "shutdown(wait=True) finishes what was accepted"
    for call in (executor.submit, executor.map):
        try:
            call(square, [5])
        except errors.PoolClosed:
            continue
        raise AssertionError("after shutdown PoolClosed must be raised")


def check_nested_use(make: Callable[[], Any]) -> None:
    with make() as executor:
        assert list(executor.map(nested, [3, 4])) == [5, 14]


EXECUTOR_CHECKS: list[Check] = [
    check_values_arrive_unchanged,
    check_exceptions_are_values_too,
    check_arguments,
    check_errors_keep_what_they_say,
    check_map_keeps_the_order,
    check_map_reports_failures_in_their_place,
    check_map_is_lazy,
    check_options,
    check_it_is_an_executor,
    check_submit_after_shutdown,
    check_nested_use,
]


# ---------------------------------------------------------------------- one call at a time


def check_execute_and_join(make: Callable[[], Any]) -> None:
    with make() as context:
        assert isinstance(context.type, str) and isinstance(context.name, str)
        for value in (None, 1, [None], "again"):
            context.execute(echo, value)
            assert context.join(60) == value
            assert not context.alive


def check_join_raises(make: Callable[[], Any]) -> None:
    with make() as context:
        context.execute(fail, "text")
        try:
            context.join(60)
        except Odd as error:
            assert error.args == ("text", 7) and error.__notes__ == ["a note"]
        else:
            raise AssertionError("join must raise what the call raised")
        context.execute(square, 3)
        assert context.join(60) == 9, "reusable after a failure"


def check_one_call_at_a_time(make: Callable[[], Any]) -> None:
    with make() as context:
        context.execute(square, 3)
        try:
            context.execute(square, 4)
        except errors.PoolError:
            pass
        else:
            raise AssertionError("a second call before join must be refused")
        assert context.join(60) == 9
        try:
            context.join()
        except errors.PoolError:
            pass
        else:
            raise AssertionError("join without a call must be refused")


def check_closed(make: Callable[[], Any]) -> None:
    context = make()
    with context:
        context.terminate()  # nothing runs: nothing happens
    try:
        context.execute(square, 3)
    except errors.PoolClosed:
        return
    raise AssertionError("a closed context must raise PoolClosed")


CONTEXT_CHECKS: list[Check] = [
    check_execute_and_join,
    check_join_raises,
    check_one_call_at_a_time,
    check_closed,
]


def check_context(make: Callable[[], Any]) -> None:
    """Hold a context against the contract.

    Args:
        make: Gives a fresh Executor, Context or spec each time it is called.

    Raises:
        AssertionError: It does not keep the contract; says what, with the check's name as a note.
    """
    from .contexts import Spec, create_context

    first = make()
    if isinstance(first, Spec):
        _run(EXECUTOR_CHECKS, lambda: make().open())
        _run(CONTEXT_CHECKS, lambda: create_context(make()))
        return
    checks = CONTEXT_CHECKS if hasattr(first, "execute") else EXECUTOR_CHECKS
    (first.close if hasattr(first, "execute") else first.shutdown)()
    _run(checks, make)


def _run(checks: list[Check], make: Callable[[], Any]) -> None:
    for check in checks:
        try:
            check(make)
        except BaseException as error:
            error.add_note(f"in {check.__name__}")
            raise

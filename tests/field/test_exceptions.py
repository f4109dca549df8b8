"""Exceptions of every kind arrive as what they are, and no exception ends its worker.

Groups member by member, causes and contexts of any shape, classes that forbid that an attribute be
set, classes made in C or Rust; and tracebacks without our own frames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from typing import Any

import pytest

import forkmill as fm
from forkmill.codec import codec as _codec
from methods import MATRIX
from tasks import METHODS

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, fm.ProcessPool]]:
    with contextlib.ExitStack() as stack:
        made = {}
        for method in METHODS:
            made[method] = pool = stack.enter_context(fm.ProcessPool(1, start_method=method))
            wait([pool.submit(raise_bare) for _ in range(200)])  # all its threads and descriptors
        yield made


@pytest.fixture(params=MATRIX)
def pool(request: pytest.FixtureRequest, pools: dict[str, fm.ProcessPool]) -> fm.ProcessPool:
    return pools[request.param]


@pytest.fixture(params=[*MATRIX, "cow_fork"])
def run(request: pytest.FixtureRequest, pools: dict[str, fm.ProcessPool]) -> Iterator[Run]:
    """What a call raised, by the ways that encode exceptions."""
    if request.param == "cow_fork":
        with fm.executor("cow_fork", 1) as executor:
            yield lambda fn, *args: executor.submit(fn, *args).exception(timeout=20)
    else:
        submit = pools[request.param].submit
        yield lambda fn, *args: submit(fn, *args).exception(timeout=20)


def remote_text(error: BaseException) -> str:
    """The text of the worker's traceback, which is at the end of what is shown."""
    seen = set()
    while not isinstance(error, _codec.RemoteTraceback):
        assert id(error) not in seen, "no remote traceback"
        seen.add(id(error))
        before = error.__cause__ or error.__context__
        assert before is not None, f"no remote traceback below {error!r}"
        error = before
    return error.text


def shape(error: BaseException | None, seen: tuple[int, ...] = ()) -> Any:
    """All that an exception says and leads to, without the remote traceback."""
    if error is None or isinstance(error, _codec.RemoteTraceback):
        return None
    if id(error) in seen:
        return "again"
    seen = (*seen, id(error))
    members = getattr(error, "exceptions", ())
    return (
        type(error),
        str(error),
        getattr(error, "__notes__", []),
        shape(error.__cause__, seen),
        shape(error.__context__, seen),
        error.__suppress_context__,
        [shape(member, seen) for member in members],
    )


# ------------------------------------------------------------------------------ groups


class Odd(Exception):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Special(ExceptionGroup):
    def derive(self, exceptions):
        return Special(self.message, exceptions)


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def rich(number: int) -> ValueError:
    """With a cause, a suppressed context, a note and a traceback."""
    error = ValueError(number)
    error.add_note(f"note {number}")
    error.__context__ = caught(TypeError(f"context {number}"))
    error.__cause__ = caught(KeyError(f"cause {number}"))
    error.__cause__.__cause__ = caught(OSError(2, "deeper"))
    return caught(error)


def in_context(number: int) -> BaseException:
    try:
        try:
            raise KeyError(f"first {number}")
        except KeyError:
            raise LookupError(f"second {number}")  # noqa: B904 - the context is the point
    except LookupError as error:
        return error


def group_rich() -> BaseException:
    return ExceptionGroup("g", [rich(1), in_context(2), TypeError("plain")])


def group_nested() -> BaseException:
    inner = Special("inner", [rich(3), ExceptionGroup("core", [in_context(4)])])
    inner.__cause__ = rich(5)
    return BaseExceptionGroup("outer", [inner, KeyboardInterrupt("k"), rich(6)])


def group_shared() -> BaseException:
    one = rich(7)
    other = ValueError("other")
    other.__cause__ = one
    return ExceptionGroup("g", [one, other, one])


@pytest.mark.parametrize("make", [group_rich, group_nested, group_shared])
def test_members_keep_their_causes_contexts_and_notes(run, make) -> None:
    back = run(raise_made, make)
    expected = shape(make())
    assert shape(back)[0::6] == expected[0::6]
    assert shape(back)[-1] == expected[-1]
    if make is group_shared:
        assert back.exceptions[0] is back.exceptions[2] is back.exceptions[1].__cause__


def raise_made(make: Callable[[], BaseException]) -> None:
    raise make()


class Empty(Exception):
    def __len__(self) -> int:
        return 0


class Neither(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


@pytest.mark.parametrize("kind", [Empty, Neither])
def test_the_truth_of_an_exception_is_not_asked_for(run, kind: type[Exception]) -> None:
    assert type(run(raise_made, partial(kind, 1))) is kind
    group = run(raise_made, partial(ExceptionGroup, "g", [kind(1), kind(2)]))
    assert [type(one) for one in group.exceptions] == [kind, kind]


def group_with_odd() -> BaseException:
    odd = Odd(code=3)
    odd.__cause__ = KeyError("below")
    odd.add_note("odd's note")
    return ExceptionGroup("g", [ValueError("v"), ExceptionGroup("h", [odd, TypeError("t")])])


def test_an_odd_member_becomes_a_remote_error_alone(run) -> None:
    back = run(raise_made, group_with_odd)
    assert type(back) is ExceptionGroup
    value, inner = back.exceptions
    assert (type(value), type(inner)) == (ValueError, ExceptionGroup)
    odd, other = inner.exceptions
    assert (type(odd), type(other)) == (fm.RemoteError, TypeError)
    assert odd.type_name.endswith(".Odd") and odd.text == "code 3" and odd.notes == ("odd's note",)
    assert repr(odd.__cause__) == repr(KeyError("below"))
    try:
        raise back
    except* ValueError as values:
        assert [str(error) for error in values.exceptions] == ["v"]
    except* (TypeError, fm.RemoteError):
        pass


class Keeps(Exception):
    """Refers to its own cause and to itself."""

    def __init__(self, text: str) -> None:
        super().__init__(text)


def keeper() -> BaseException:
    error = Keeps("k")
    error.__cause__ = error.origin = Odd(code=9)
    error.me = error
    return error


def test_what_an_exception_refers_to_is_what_it_came_from(run) -> None:
    back = run(raise_made, keeper)
    assert type(back) is Keeps and back.me is back
    assert type(back.origin) is fm.RemoteError and back.origin is back.__cause__


# ------------------------------------------------------------------------------ chains


def cyclic() -> BaseException:
    errors = [ValueError(i) for i in range(3)]
    for one, other in zip(errors, errors[1:] + errors[:1], strict=True):
        one.__context__ = other
    errors[0].__cause__ = errors[2]
    return errors[0]


def test_chains_may_be_cyclic(run) -> None:
    back = run(raise_made, cyclic)
    assert back.args == (0,) and back.__context__.args == (1,) and back.__cause__.args == (2,)
    assert back.__cause__ is back.__context__.__context__


def deep(length: int) -> BaseException:
    error: BaseException = ValueError(0)
    for i in range(1, length):
        above = ValueError(i)
        above.__cause__ = error
        error = above
    return error


def raise_deep(length: int) -> None:
    raise deep(length)


def test_chains_may_be_deep(run) -> None:
    length = 1500
    back: Any = run(raise_deep, length)
    numbers = []
    while isinstance(back, ValueError):
        numbers.append(back.args[0])
        back = back.__cause__
    assert numbers == list(range(length - 1, -1, -1))
    assert isinstance(back, _codec.RemoteTraceback)


def raise_over_odd() -> None:
    try:
        try:
            raise ValueError(lambda: Odd)  # by value
        except ValueError as error:
            raise Odd(code=4) from error
    except Odd as odd:
        raise KeyError("top") from odd


def test_a_cause_that_cannot_be_rebuilt_hides_nothing_else(run) -> None:
    back = run(raise_over_odd)
    assert repr(back) == "KeyError('top')"
    assert type(back.__cause__) is fm.RemoteError
    assert type(back.__cause__.__cause__) is ValueError


# ------------------------------------------------- classes that forbid what we would do


@dataclasses.dataclass(frozen=True)
class Bare(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Coded(Exception):
    code: int = 7


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted(Exception):
    code: int = 7
    word: str = "w"


class Mangled(Exception):
    __slots__ = ("__code", "other")

    def __init__(self) -> None:
        super().__init__()
        self.__code = 1

    @property
    def code(self) -> int:
        return self.__code

    def but(self, code: int) -> Mangled:
        self.__code = code
        return self


class Stubborn(Exception):
    """Nothing can be set, and what Python would set is something else."""

    __traceback__ = property(lambda self: None)
    __cause__ = property(lambda self: None)
    __context__ = property(lambda self: None)
    __notes__ = property(lambda self: ["fixed"])

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("read-only")

    def with_traceback(self, trace: object) -> Stubborn:
        raise RuntimeError("do not touch")


FORBIDDING: list[tuple[Callable[[], BaseException], Any]] = [
    (Bare, None),
    (lambda: Coded(5), 5),
    (lambda: Coded(code=5), 5),
    (lambda: Slotted(5), 5),
    (lambda: Slotted(code=5), 5),
    (lambda: Mangled().but(5), 5),
    (lambda: Stubborn("s"), None),
]


@pytest.mark.parametrize(("make", "code"), FORBIDDING)
def test_what_cannot_be_changed_arrives_and_its_worker_lives(run, make, code) -> None:
    kind = type(make())
    back = run(raise_made, make)
    assert type(back) is kind
    assert getattr(back, "code", None) == code
    assert back.args == make().args


def raise_bare() -> None:
    raise Bare()


def raise_stubborn(_: int = 0) -> None:
    try:
        raise Stubborn("inner")
    except Stubborn as error:
        raise Stubborn("outer") from error


def test_no_worker_dies_of_it(pool: fm.ProcessPool) -> None:
    deaths = pool.stats().deaths
    results = list(pool.map(raise_stubborn, range(8), return_exceptions=True))
    assert [type(error) for error in results] == [Stubborn] * 8
    with pytest.raises(Stubborn):
        list(pool.stream(raise_stubborn, 1))
    assert pool.stats().deaths == deaths
    assert pool.submit(abs, -1).result(20) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("initializer", [raise_bare, raise_stubborn])
def test_the_cause_of_a_failed_initializer_is_kept(method: str, initializer) -> None:
    with fm.ProcessPool(1, start_method=method, initializer=initializer) as pool:
        with pytest.raises(fm.InitError) as caught:
            pool.submit(abs, 1).result(20)
    cause = caught.value.__cause__
    assert type(cause) in (Bare, Stubborn)
    assert initializer.__name__ in "".join(error.text for error in remote_traces(cause))


def remote_traces(error: BaseException) -> list[_codec.RemoteTraceback]:
    """Below an exception, by BaseException's own slot."""
    below = fm.errors.slot(error, "__cause__")
    if isinstance(below, _codec.RemoteTraceback):
        return [below]
    return [] if below is None else remote_traces(below)


@pytest.mark.parametrize("context", ["inline", "thread:1", "ipc_fork:1", "cow_fork:1"])
def test_a_pipeline_reports_it_as_it_is(context: str) -> None:
    with pytest.raises(Bare) as caught:
        fm.Pipeline().source([1]).map(raise_any, context=context).run()
    assert caught.value.run_result is not None


def raise_any(_: object) -> None:
    raise Bare()


# ------------------------------------------------------------------ made in C or Rust


def validate(text: str) -> Any:
    import pydantic

    class Model(pydantic.BaseModel):
        number: int

    return Model(number=text)


def test_an_exception_made_in_rust_arrives_as_its_class(run) -> None:
    pydantic = pytest.importorskip("pydantic")
    back = run(validate, "x")
    assert type(back) is pydantic.ValidationError
    assert back.errors()[0]["type"] == "int_parsing"


class TellsItself(Exception):
    """As those made in C: nothing in args, and a way of its own to be pickled."""

    def __init__(self, text: str) -> None:
        self.said = text

    def __new__(cls, text: str) -> TellsItself:
        return super().__new__(cls)

    def __str__(self) -> str:
        return self.said

    def __reduce__(self) -> tuple[Any, ...]:
        return again, (self.said,)


class Lies(TellsItself):
    def __reduce__(self) -> tuple[Any, ...]:
        return again_lying, (self.said,)


def again(text: str) -> TellsItself:
    error = TellsItself(text)
    error.args = ("something", "else")
    return error


def again_lying(text: str) -> Lies:
    error = Lies("not " + text)
    error.args = (1,)
    return error


def test_a_pickle_that_gives_the_same_type_and_text_is_believed(run) -> None:
    back = run(raise_made, lambda: TellsItself("hello"))
    assert type(back) is TellsItself and str(back) == "hello"
    back = run(raise_made, lambda: Lies("hello"))
    assert type(back) is fm.RemoteError and back.text == "hello"


def use_undefined() -> None:
    undefined_name  # type: ignore[name-defined]  # noqa: B018, F821


def use_unknown() -> None:
    (1).unknown  # type: ignore[attr-defined]  # noqa: B018


def test_names_that_pickle_forgets_are_kept(run) -> None:
    assert run(use_undefined).name == "undefined_name"
    assert run(use_unknown).name == "unknown"


# ---------------------------------------------------------------------------- tracebacks


def outer(depth: int) -> None:
    if depth:
        outer(depth - 1)
    else:
        raise group_in_chain()


def group_in_chain() -> BaseException:
    group = ExceptionGroup("g", [rich(1), caught(TypeError("member"))])
    group.__cause__ = in_context(3)
    return group


def nested_pool() -> None:
    with fm.ProcessPool(1) as inner:
        inner.submit(outer, 0).result()


def ours(text: str) -> list[str]:
    """Lines that name files of forkmill's."""
    places = [line for line in text.splitlines() if line.strip().startswith(("File", "| File"))]
    return [place for place in places if ".pxi" in place or "src/forkmill/" in place]


def streamed(_: int) -> Iterator[int]:
    yield 1
    outer(0)


def test_remote_tracebacks_have_none_of_our_frames(run) -> None:
    text = remote_text(run(outer, 2))
    assert not ours(text), text
    assert text.count("in outer") == 3
    assert "raise group_in_chain()" in text and "in in_context" in text
    error = run(nested_pool)
    text = remote_text(error)
    assert not ours(text), text
    assert "inner.submit(outer, 0).result()" in text and "raise group_in_chain()" in text


def test_a_streams_traceback_has_none_of_our_frames(pool: fm.ProcessPool) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        list(pool.stream(streamed, 0))
    text = remote_text(caught.value)
    assert not ours(text) and "outer(0)" in text


def test_what_is_printed_shows_the_remote_lines_once(run) -> None:
    text = "".join(traceback.format_exception(run(outer, 0)))
    assert text.count("raise group_in_chain()") == 1


def test_an_initializers_traceback_has_none_of_our_frames() -> None:
    for method in METHODS:
        with fm.ProcessPool(1, start_method=method, initializer=outer, initargs=(1,)) as pool:
            with pytest.raises(fm.InitError) as caught:
                pool.submit(abs, 1).result(20)
        text = remote_text(caught.value.__cause__)
        assert not ours(text) and text.count("in outer") == 2

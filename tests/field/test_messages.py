"""What users are told: names that they know, what they may have meant, and how to go on."""

from __future__ import annotations

import inspect
import operator
import pydoc
import re
from collections.abc import Callable, Iterator

import pytest

import forkmill as fm

pytestmark = pytest.mark.timeout(60)


def parse(text: str) -> int:
    return int(text)


def outputs(number: int) -> Iterator[int]:
    yield number


async def later(number: int) -> int:
    return number


@pytest.fixture(scope="module")
def pool() -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(1) as made:
        yield made


def told(call: Callable[[], object]) -> str:
    with pytest.raises((TypeError, ValueError, AttributeError)) as caught:
        call()
    text = str(caught.value)
    assert not re.search(r"\b_\w+|\bFace\b|\bShape\b|\bDeclar\w+|object at 0x|__init__", text), text
    return text


@pytest.mark.unbalanced("threads", "processes", "descriptors")
def test_a_mistyped_option_is_told_the_nearest(pool: fm.ProcessPool) -> None:
    asked: dict[Callable[[], object], str] = {
        lambda: fm.ProcessPool(workers=2): "max_workers",
        lambda: fm.ProcessPool(processes=2): "max_workers",
        lambda: fm.ProcessPool(1, start_metod="fork"): "start_method",
        lambda: fm.ProcessPool(1, maxtasksperchild=3): "max_tasks_per_child",
        lambda: pool.map(parse, "1", chunk_size=2): "chunksize",
        lambda: pool.starmap(parse, ["1"], order=False): "ordered",
        lambda: pool.options(retry=3): "retries",
        lambda: pool.options(timeouts=3): "timeout",
        lambda: fm.map(parse, "1", n_jobs=2): "max_workers",
        lambda: fm.executor("thread", max_worker=2): "max_workers",
        lambda: fm.executor("thread:2").map(parse, "1", chunks=2): "chunksize",
        lambda: fm.executor("thred"): "thread",
        lambda: fm.Pipeline().map(parse, contxt="thread"): "context",
        lambda: fm.Pipeline().source("1").run(progres=True): "progress",
        lambda: fm.Graph([parse], nam="x"): "name",
        lambda: fm.Graph([parse]).map({"text": ["1"]}, map_ovr="text"): "map_over",
        lambda: fm.node(otput_name="x")(parse): "output_name",
        lambda: fm.StateGraph({"a": operator.add}).add_node("x", parse, contxt="inline"): "context",
        lambda: fm.retry(3, backof=1): "backoff",
        lambda: fm.ProcesPool: "ProcessPool",  # type: ignore[attr-defined]
    }
    for call, meant in asked.items():
        assert f"did you mean {meant!r}?" in told(call)


def test_calls_that_do_not_fit_name_what_was_called(pool: fm.ProcessPool) -> None:
    assert told(lambda: pool.map()) == "map() missing 1 required positional argument: 'fn'"
    assert told(lambda: pool.submit()).startswith("submit() missing")
    assert told(lambda: fm.executor("thread:1").submit()).startswith("submit() missing")
    assert told(lambda: pool.options(3)).startswith("options() takes 1")
    assert told(lambda: fm.ProcessPool(*range(9))).startswith("ProcessPool() takes from 1 to 5")


def test_an_error_from_within_is_left_as_it_is(pool: fm.ProcessPool) -> None:
    def given() -> Iterator[str]:
        raise TypeError("chunk_size")
        yield

    assert told(lambda: list(pool.map(parse, given()))) == "chunk_size"


def test_what_cannot_be_sent_says_what_can(pool: fm.ProcessPool) -> None:
    with pytest.raises(fm.SerializationError, match=r"stream\(\)"):
        pool.submit(outputs, 1).result()
    with pytest.raises(fm.SerializationError, match=r'fm\.executor\("async"\)'):
        pool.submit(later, 1).result()


def test_one_word_for_the_number_of_workers() -> None:
    assert list(fm.map(parse, "12", max_workers=1)) == [1, 2]
    assert list(fm.map(parse, "12", workers=1)) == [1, 2]  # the old one, for one release
    with pytest.raises(TypeError, match="twice"):
        fm.map(parse, "12", max_workers=1, workers=1)
    fm.shutdown_shared()


def test_a_source_that_is_used_up_is_told() -> None:
    line = fm.Pipeline().source(iter("12")).map(parse)
    assert line.run().outputs == [1, 2]
    again = line.run()
    assert again.status == "failed" and "has used it up" in str(again.failures[0].error)
    fresh = fm.Pipeline().source("12").map(parse)
    assert fresh.run().outputs == fresh.run().outputs == [1, 2]
    some = fm.Pipeline().source(iter("123")).map(parse)
    with some.stream() as first:
        next(first)
    given = some.run().outputs  # what the stopped one left
    assert given == [1, 2, 3][3 - len(given) :]


def test_the_module_shows_its_public_face() -> None:
    assert dir(fm) == sorted(fm.__all__)
    for name in fm.__all__:
        assert getattr(fm, name) is not None
    assert fm.integrations.register_joblib


@pytest.mark.parametrize("name", [name for name in fm.__all__ if not name.startswith("__")])
def test_help_of_each_public_name_reads_well(name: str) -> None:
    thing = getattr(fm, name)
    if type(thing).__module__ == "builtins" or not (
        inspect.isroutine(thing) or inspect.isclass(thing)
    ):
        return
    text = inspect.getdoc(thing) or ""
    first = text.split("\n")[0]
    assert len(first) > 10, name
    assert pydoc.render_doc(thing)
    if inspect.isroutine(thing) and "Args:" in text:
        for parameter in inspect.signature(thing).parameters:
            assert re.search(rf"(^|[\s*,]){parameter}\b", text), (name, parameter)


@pytest.mark.unbalanced("threads")
def test_reprs_have_no_inner_names(pool: fm.ProcessPool) -> None:
    thread = fm.executor("thread:1")
    shown = [
        pool, pool.options(retries=1), pool.map(parse, "1"), pool.stream(outputs, 1),
        thread, thread.options(retries=1), thread.map(parse, "1"), fm.map(parse, "1"),
        fm.ContextPool("thread"), fm.create_context("inline"), fm.share([1]), fm.per_worker(dict),
        fm.thread(2), fm.retry(3), fm.to("x", 1), fm.Pipeline().source("1"), fm.Graph([parse]),
    ]  # fmt: skip
    for thing in shown:
        assert not re.search(r"object at 0x|forkmill\.\w+\.\w+|\b_[A-Z]", repr(thing)), repr(thing)
    thread.shutdown()
    fm.shutdown_shared()

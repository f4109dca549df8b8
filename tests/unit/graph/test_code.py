"""The function of a group: what goes in, what comes out, and what it does in unusual cases."""

from __future__ import annotations

import asyncio
import linecache
import pickle
from typing import Any

import pytest

import forkmill as fm
from forkmill.graph.code import Broken, Call, Loss, Stop, Torn, Value
from forkmill.graph.failed import resolved
from forkmill.graph.loss import Given
from forkmill.graph.plan import grouped


@fm.node
def half(x: int) -> float:
    return 10 / x


@fm.node
def minus(y: int) -> int:
    return -y


@fm.node
def add(half: float, minus: int, k: int = 0) -> float:
    return half + minus + k


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x


GRAPH = fm.Graph([half, minus, add])


def call(
    graph: fm.Graph, given: dict[str, Any] | None = None, wanted: Any = None, **options: Any
) -> Call:
    """The call of a graph's only group, whose items are the names that `given` has not."""
    given = given or {}
    names = tuple(name for name in graph.inputs if graph._needs(graph.outputs)[name])
    mapped = tuple(name for name in names if name not in given)
    plan = graph._plan((*mapped, *given), mapped, wanted)
    (group,) = grouped(plan, lambda step: 0, whole=True, alone=lambda step: False)
    return Call.of(plan, group, plan.constants(given), **options)


def test_items_are_tuples_or_the_one_value() -> None:
    assert call(GRAPH)((5, 1)) == (2.0, -1, 1.0)
    assert call(GRAPH, wanted="add")((5, 1)) == 1.0
    assert call(fm.Graph([half]))(5) == 2.0
    assert call(fm.Graph([half]), {"x": 5})() == 2.0
    assert call(GRAPH, row=True)((5, 1)) == {"half": 2.0, "minus": -1, "add": 1.0}


def test_a_bare_output_that_means_something_to_a_lane_is_wrapped() -> None:
    same = call(fm.Graph([fm.node(lambda x: x, name="same")]))
    error, made = ValueError(), (i for i in ())
    assert same(error) == Value(error) and same(made) == Value(made)
    assert same(5) == 5 and same(None) is None and same([1]) == [1]


def test_a_failure_stands_in_the_place_of_what_is_lost() -> None:
    out = call(GRAPH)((0, 1))
    assert type(out) is Broken
    lost, other, after = out.values
    assert type(lost) is Loss and lost is after and other == -1 and out.losses == (lost,)
    assert (lost.path, lost.step, lost.attempts) == ("half", 0, 1)
    assert type(lost.error) is ZeroDivisionError and type(lost.item["x"]) is Given
    assert resolved(lost, {0: 7, 1: 8}.__getitem__).item == {"x": 7}
    first = call(GRAPH, mode="first")((0, 1))
    assert [type(value) for value in first.values] == [Loss, Loss, Loss]
    with pytest.raises(Stop) as caught:
        call(GRAPH, mode="raise")((0, 1))
    assert caught.value.loss.path == "half"
    assert call(GRAPH, local=True)((0, 1)).losses[0].item == {"x": 0}


def test_what_does_not_depend_on_a_lost_value_is_done() -> None:
    lost = call(GRAPH)((0, 1)).losses[0]
    out = call(GRAPH)(Torn((lost, 1)))
    assert [type(value) for value in out.values] == [Loss, int, Loss] and out.losses == ()


def test_losses_travel_as_what_they_are() -> None:
    out = pickle.loads(pickle.dumps(call(GRAPH)((0, 1))))
    assert type(out.values[0].error) is ZeroDivisionError and out.values[0] is out.values[2]
    torn = pickle.loads(pickle.dumps(Torn((1, out.values[0]))))
    assert torn.values[0] == 1 and torn.values[1].path == "half"


def test_a_call_travels_as_data_and_is_made_anew() -> None:
    made = call(GRAPH.bind(k=5))
    again = pickle.loads(pickle.dumps(made))
    assert again((5, 1)) == made((5, 1)) == (2.0, -1, 6.0)
    assert b"def group" not in pickle.dumps(made)
    work = pickle.loads(pickle.dumps(made.work(timeout=3)))
    assert (
        work.fn((5, 1)) == (2.0, -1, 6.0) and work.timeout == 3 and work.called == made.piece.label
    )


def test_its_text_is_what_tracebacks_show() -> None:
    fn = call(GRAPH).fn
    lines = linecache.getlines(fn.__code__.co_filename)
    assert any("# 'half'" in line for line in lines)
    assert call(GRAPH).fn.__code__ is fn.__code__  # the same text is compiled once


def test_marks_say_which_step_runs() -> None:
    marks: list[int] = []
    assert call(GRAPH, mark=marks.append)((5, 1)) == (2.0, -1, 1.0)
    assert marks == [1, 2, 3, 0]
    marks.clear()
    call(GRAPH, mark=marks.append)((0, 1))
    assert marks == [1, 1, 2, 3, 0]
    marks.clear()
    call(fm.Graph([half]), mark=marks.append)(5)
    assert marks == []  # there is only one


def test_coroutines_are_awaited_where_the_context_does_that() -> None:
    graph = fm.Graph([fm.node(lambda x: later(x), name="y"), fm.node(lambda y: y + 1, name="z")])
    waits = call(graph)(1)
    assert asyncio.iscoroutine(waits) and asyncio.run(waits) == (1, 2)
    assert call(graph, blocking=True)(1) == (1, 2)


@pytest.mark.parametrize("mode", ["record", "first"])
def test_async_steps_run_side_by_side(mode: str) -> None:
    at_once, most = 0, 0

    async def wait(x: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        if x < 0:
            raise ValueError(x)
        return x

    nodes = [fm.node(wait, output_name=name, name=name) for name in "abc"]
    graph = fm.Graph([*nodes, fm.node(lambda a, b, c: a + b + c, name="d")])
    assert asyncio.run(call(graph, aio=True, mode=mode)(2)) == (2, 2, 2, 6)
    assert call(graph, aio=True, blocking=True, mode=mode)(2) == (2, 2, 2, 6)
    assert most == 3
    out = asyncio.run(call(graph, aio=True, mode=mode)(-1))
    assert out.losses[0].path == "a" and type(out.values[3]) is Loss


def test_a_cancelled_call_is_no_failure() -> None:
    async def main() -> bool:
        forever = asyncio.Event()

        async def wait(x: int) -> None:
            await forever.wait()

        for options in ({"aio": True}, {}):
            task = asyncio.ensure_future(call(fm.Graph([wait]), **options)(1))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return True

    assert asyncio.run(main())


def test_a_batch_is_one_call_for_many_items() -> None:
    sizes: list[int] = []

    def up(x: list[int], k: int) -> list[int]:
        sizes.append(len(x))
        return [k // value for value in x]

    graph = fm.Graph([fm.node(up, batch=True)])
    many = call(graph, {"k": 10}, batch=True)
    assert many([1, 2, 5]) == [10, 5, 2] and sizes == [3]
    out = many([1, 0])
    assert [type(each) for each in out] == [Broken, Broken] and len(out[0].values) == 1
    assert type(out[1].losses[0].error) is ZeroDivisionError

    async def slow(x: list[int]) -> list[int]:
        return x[:-1]

    short = fm.Graph([fm.node(slow, batch=True)])
    for waits in (call(short, batch=True), call(short, batch=True, blocking=True)):
        out = waits([1, 2])
        out = asyncio.run(out) if asyncio.iscoroutine(out) else out
        assert "1 results for a batch of 2" in str(out[0].losses[0].error)
    two = fm.node(lambda x: [(v, v) if v else v for v in x], output_name=("p", "q"), name="two",
                  batch=True)  # fmt: skip
    good, bad = call(fm.Graph([two]), batch=True)([1, 0])
    assert good == (1, 1) and type(bad) is Broken


@pytest.mark.parametrize("value", [5, "ab", {"a": 1, "b": 2}, None])
def test_a_batch_must_give_a_list(value: Any) -> None:
    graph = fm.Graph([fm.node(lambda x: value, name="y", batch=True)])
    (out, _) = call(graph, batch=True)([1, 2])
    assert "batch function" in str(out.losses[0].error)


class Counted:
    """A cache that counts."""

    shared = True

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.kept.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        self.kept[key] = value


class Log(list[Any]):
    """What is in it does not count for a key."""

    def __cache_key__(self) -> str:
        return "log"


def cached(graph: fm.Graph, cache: Any, **options: Any) -> Call:
    from forkmill.graph.cache import node_key

    (node,) = graph.nodes
    key = node_key(node.fn, node.inputs, where=node.name, batch=node.batch)
    return call(graph, caches={0: (key, cache)}, **options)


@pytest.mark.parametrize("kind", ["sync", "async", "batch"])
def test_a_cached_call_is_made_once(kind: str) -> None:
    calls = Log()

    def sync(x: Any) -> Any:
        calls.append(x)
        return [None] * len(x) if kind == "batch" else None

    async def waits(x: Any) -> Any:
        return sync(x)

    fn = waits if kind == "async" else sync
    graph = fm.Graph([fm.node(fn, name="y", batch=kind == "batch", version=1)])
    cache = Counted()
    for _ in range(2):
        got = cached(graph, cache, batch=kind == "batch", blocking=True)
        assert got([1, 2] if kind == "batch" else 1) == ([None, None] if kind == "batch" else None)
    assert len(calls) == 1 and len(cache.kept) == (2 if kind == "batch" else 1)


def test_what_a_key_cannot_be_made_of_is_the_node_s_failure_and_is_not_tried_again() -> None:
    def count(x: Any) -> Any:
        raise AssertionError("it was called")

    graph = fm.Graph([fm.node(count, name="y", retry=fm.retry(3, 0))])
    out = cached(graph, Counted(), blocking=True)(object())
    assert type(out.losses[0].error) is TypeError and out.losses[0].attempts == 1


def test_threads_may_make_functions_at_once_and_few_are_kept() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from forkmill.graph import text

    def one(number: int) -> Any:
        return fm.Graph([fm.node(half, output_name=f"y{number}")]).run(x=5)[f"y{number}"]

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(one, [*range(300), *range(300)])) == {2.0}
    assert len(text._texts) <= text._KEPT + 4
    kept = {file for file, _ in text._texts.values()}
    assert {file for file in linecache.cache if file.startswith(text.FILE)} <= kept

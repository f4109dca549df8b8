"""What fails: told with node, item and index; what does not depend on it is done."""

from __future__ import annotations

import pickle
import signal
import threading
import traceback
from typing import Any

import pytest

import forkmill as fm

CALLS: list[tuple[str, int]] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@fm.node
def a(x: int) -> int:
    CALLS.append(("a", x))
    if x == 3:
        raise ValueError("three")
    return x


def b(a: int) -> int:
    CALLS.append(("b", a))
    return 2 * a


def c(x: int) -> int:
    CALLS.append(("c", x))
    return -x


def d(b: int, c: int) -> int:
    return b + c


GRAPH = fm.Graph([d, b, c, a], name="g")


def raising(error: BaseException) -> Any:
    def fail(x: int) -> None:
        raise error

    return fail


def test_skip_keeps_what_does_not_depend_on_it() -> None:
    rows = GRAPH.map({"x": range(5)}, "x", on_error="skip")
    (failure,) = rows.failures
    assert rows[3] == {"a": failure, "b": failure, "c": -3, "d": failure}
    assert rows["d"][:3] == [0, 1, 2] and not rows.ok and rows.status == "completed"
    assert (failure.stage, failure.index, failure.item) == ("a", 3, {"x": 3})
    assert failure.outputs == ("a", "b", "d") and failure.attempts == 1
    assert "ValueError: three" in failure.traceback and "forkmill" not in failure.traceback
    assert ("b", 3) not in CALLS and ("c", 3) in CALLS
    assert (rows.stats["a"].failed, rows.stats["a"].out) == (1, 4)
    with pytest.raises(ValueError, match="three"):
        failure.reproduce()
    failure.item["x"] = 4
    assert failure.reproduce() == 4


def test_a_failure_travels_and_can_still_be_reproduced() -> None:
    rows = GRAPH.map({"x": [3]}, "x", on_error="skip")
    twin = pickle.loads(pickle.dumps(rows.failures[0]))
    assert (twin.stage, twin.index, twin.item) == ("a", 0, {"x": 3})
    assert twin.outputs == ("a", "b", "d") and "three" in twin.traceback
    with pytest.raises(ValueError, match="three"):
        twin.reproduce()
    with pytest.raises(ValueError) as caught:
        GRAPH.run(x=3)
    again = pickle.loads(pickle.dumps(caught.value))  # it leads to its failure, and that to it
    assert again.failure.stage == "a" and again.failure.error.args == ("three",)


def test_raise_gives_the_node_s_own_exception() -> None:
    with pytest.raises(ValueError, match="three") as caught:
        GRAPH.map({"x": range(5)}, "x")
    assert caught.value.__notes__ == ["in node 'a' of the graph 'g', item 3"]
    assert caught.value.failure.index == 3  # type: ignore[attr-defined]
    assert max(x for _, x in CALLS) == 3
    rows = GRAPH.imap({"x": range(5)}, "x", output_name="a")
    assert [next(rows)["a"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(rows)
    assert list(rows) == []
    with pytest.raises(ValueError) as caught:
        GRAPH.run(x=3)
    assert caught.value.__notes__ == ["in node 'a' of the graph 'g'"]
    text = "".join(traceback.format_exception(caught.value))
    assert "During handling" not in text and "walk.py" not in text and "def a" not in text


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_failures_the_one_that_is_due_first_is_raised(order: tuple[int, int]) -> None:
    nodes = [
        fm.node(raising(IndexError()), output_name="e0", name="e0"),
        fm.node(raising(KeyError()), output_name="e1", name="e1"),
    ]
    g = fm.Graph([*(nodes[at] for at in order), fm.node(lambda e1, e0: 0, name="end")])
    with pytest.raises(IndexError):
        g.run(x=1)
    rows = g.map({"x": [1]}, "x", on_error="skip")
    assert [failure.stage for failure in rows.failures] == ["e0", "e1"]
    assert rows[0]["end"] in rows.failures


def test_notes_of_an_earlier_item_are_replaced() -> None:
    error = ValueError("the same each time")
    error.add_note("its own")
    g = fm.Graph([fm.node(raising(error), name="fail")])
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            g.map({"x": [1]}, "x")
    assert caught.value.__notes__ == ["its own", "in node 'fail' of this graph, item 0"]


class Frozen(Exception):
    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), Frozen("f"), MemoryError()])
def test_whatever_a_node_raises_is_its_failure(error: BaseException) -> None:
    g = fm.Graph([fm.node(raising(error), name="fail"), fm.node(lambda x: x, name="well")])
    rows = g.map({"x": [1]}, "x", on_error="skip")
    assert rows.failures[0].error is error and rows[0]["well"] == 1
    with pytest.raises(type(error)) as caught:
        g.run(x=1)
    assert caught.value.failure.stage == "fail"  # type: ignore[attr-defined]


def test_ctrl_c_has_what_there_is() -> None:
    def stop(x: int) -> int:
        if x == 2:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt) as caught:
        fm.Graph([stop]).map({"x": range(5)}, "x", on_error="skip")
    result = caught.value.result  # type: ignore[attr-defined]
    assert result.status == "stopped" and result["stop"] == [0, 1] and not result.ok


@pytest.mark.parametrize("is_async", [False, True])
def test_retries_go_where_the_node_runs(is_async: bool) -> None:
    tries: list[int] = []

    def sync(x: int) -> int:
        tries.append(x)
        if tries.count(x) < 3:
            raise ValueError(x)
        return x

    async def later(x: int) -> int:
        return sync(x)

    policy = fm.retry(3, 0.001, ValueError)
    often = fm.node(later if is_async else sync, output_name="y", retry=policy)
    g = fm.Graph([often, fm.node(lambda y: y + 1, name="z")])
    assert g.map({"x": [1, 2]}, "x")["z"] == [2, 3] and len(tries) == 6
    never = fm.node(raising(KeyError(1)), output_name="y", retry=policy)
    (failure,) = fm.Graph([never]).map({"x": [1]}, "x", on_error="skip").failures
    assert failure.attempts == 1
    always = never.options(retry=fm.retry(3, 0.001))
    (failure,) = fm.Graph([always]).map({"x": [1]}, "x", on_error="skip").failures
    assert failure.attempts == 3
    with pytest.raises(KeyError) as caught:
        fm.Graph([always]).run(x=1)
    assert "During handling" not in "".join(traceback.format_exception(caught.value))


def test_stop_iteration_is_no_end() -> None:
    g = fm.Graph(
        [fm.node(raising(StopIteration()), name="fail"), fm.node(lambda x: x, name="well")]
    )
    for engine in (None, "threaded:2"):
        with pytest.raises(StopIteration) as caught:
            g.map({"x": [1]}, "x", engine=engine)
        assert caught.value.failure.outputs == ("fail",)  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="'fail' raised StopIteration") as told:
            list(g.imap({"x": [1]}, "x", engine=engine))
        assert told.value.failure.index == 0  # type: ignore[attr-defined]


def test_a_failure_is_told_in_one_short_line() -> None:
    huge = {"text": "line\n" * 10_000, "more": list(range(10_000))}
    g = fm.Graph([fm.node(lambda x: {}[str(x)], name="look" * 50)])
    (failure,) = g.map({"x": [huge]}, "x", on_error="skip").failures
    assert len(repr(failure)) < 250 and "\n" not in repr(failure) and "index=0" in repr(failure)


def test_what_a_signal_handler_raises_is_nobody_s_failure() -> None:
    class Alarm(Exception):
        pass

    def raise_it(*_args: object) -> None:
        raise Alarm

    def alarm(x: int) -> None:
        signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        with pytest.raises(Alarm) as caught:
            fm.Graph([alarm]).map({"x": [1]}, "x", on_error="skip")
        assert not hasattr(caught.value, "failure")
    finally:
        signal.signal(signal.SIGALRM, before)


class Backwards(fm.Engine):
    """An engine as somebody may write one: the last item first, each by `run`."""

    def run(self, graph: Any, inputs: Any, output_name: Any = None, *, _ctx: Any = None) -> Any:
        return graph.run(inputs, output_name)

    def map(
        self, graph: Any, items: Any, inputs: Any, output_name: Any = None, *, _ctx: Any = None
    ) -> Any:
        for index, item in reversed(list(enumerate(items))):
            try:
                own = dict(zip(items.map_over, item, strict=True))
                yield index, graph.run({**inputs, **own}, output_name)
            except ValueError as error:
                yield index, error.failure  # type: ignore[attr-defined]


def test_an_engine_of_the_user_s_gets_items_and_gives_rows_in_any_order() -> None:
    for g, engine in ((GRAPH, Backwards()), (GRAPH.with_engine(Backwards()), None)):
        assert g.run({"x": 1}, engine=engine)["d"] == 1
        assert g.map({"x": range(3)}, "x", engine=engine)["d"] == [0, 1, 2]
        late = g.imap({"x": range(3)}, "x", engine=engine, ordered=False, output_name="d")
        assert [row["d"] for row in late] == [2, 1, 0]
        rows = g.map({"x": range(5)}, "x", engine=engine, on_error="skip")
        assert rows.failures[0].index == 3 and rows[3]["c"] is rows.failures[0]
        with pytest.raises(ValueError) as caught:
            g.map({"x": range(5)}, "x", engine=engine)
        assert caught.value.__notes__ == ["in node 'a' of the graph 'g', item 3"]


def test_a_constant_that_cannot_be_sent_is_named_with_its_reader_and_the_way_to_it() -> None:
    g = fm.Graph([fm.node(lambda x, held: x, name="reader")])
    held = {"lock": threading.Lock()}
    with pytest.raises(fm.SerializationError) as caught:
        list(g.imap({"x": [1, 2], "held": held}, "x", engine="parallel:1"))
    assert "node 'reader' reads as 'held', at held['lock']" in caught.value.__notes__[-1]


@pytest.mark.parametrize("names", [("x",), ("y", "x")])
def test_an_item_that_cannot_be_sent_is_named_with_its_reader_and_the_way_to_it(
    names: tuple[str, ...],
) -> None:
    g = fm.Graph([fm.node(lambda x, y=0: x, name="reader")])
    values = {"x": [1, {"held": [threading.Lock()]}], "y": [1, 2]}
    inputs = {name: values[name] for name in names}
    with pytest.raises(fm.SerializationError) as caught:
        g.map(inputs, names, engine="parallel:1")
    assert caught.value.__notes__[0] == "it is 'x' of node 'reader', at x['held'][0]"
    rows = g.map(inputs, names, engine="parallel:1", on_error="skip")
    assert rows.failures[0].error.__notes__ == caught.value.__notes__[:1]


def test_a_result_that_cannot_be_sent_is_no_inputs_fault() -> None:
    g = fm.Graph([fm.node(lambda x: [threading.Lock()], name="maker")])
    rows = g.map({"x": [1]}, "x", engine="parallel:1", on_error="skip")
    assert "result [0] cannot be sent" in str(rows.failures[0].error)
    assert not getattr(rows.failures[0].error, "__notes__", ())

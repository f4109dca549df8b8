"""What a warm engine keeps for its next call: constants as they were sent, and a map's function."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import graph_nodes as nodes
from forkmill import _native
from forkmill.codec import segment, share
from forkmill.graph import bundle, handing, homes
from forkmill.pool import maps

LOOK = fm.Graph([nodes.looked_up])
SIZE = 1 << 17


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The handles that calls make for their constants."""
    made: list[Any] = []

    def share(value: Any) -> Any:
        made.append(fm.share(value))
        return made[-1]

    monkeypatch.setattr(handing, "share", share)
    return made


@pytest.fixture
def engine() -> Iterator[fm.LocalEngine]:
    with fm.LocalEngine("parallel:2", "parallel:2") as made:
        yield made


def looked_up(engine: Any, table: Any) -> list[Any]:
    found: list[Any] = LOOK.map({"x": [0, 1, 2], "table": table}, "x", engine=engine)["looked_up"]
    return found


def is_open(handle: Any) -> bool:
    return "closed" not in repr(handle)


def test_the_same_bytes_and_texts_are_encoded_once(shared: list[Any], engine: Any) -> None:
    for table in (bytes(range(256)) * 1024, "abc" * SIZE):
        shared.clear()
        for _ in range(3):
            assert looked_up(engine, table) == [table[0], table[1], table[2]]
        assert LOOK.run({"x": 1, "table": table}, engine=engine) == {"looked_up": table[1]}
        assert len(shared) == 1


def test_an_array_is_encoded_again_when_any_byte_of_it_changed(
    shared: list[Any], engine: Any
) -> None:
    numpy = pytest.importorskip("numpy")
    table = numpy.arange(SIZE)
    assert looked_up(engine, table) == [0, 1, 2]
    assert looked_up(engine, table) == [0, 1, 2]
    assert len(shared) == 1
    table[-1] = -1
    looked_up(engine, table)
    assert len(shared) == 2
    assert not is_open(shared[0])
    table[1] = 77
    assert looked_up(engine, table) == [0, 77, 2]
    table = table.reshape(2, SIZE // 2)
    assert [row.shape for row in looked_up(engine, table.T)] == [(2,)] * 3


def test_what_a_worker_could_change_is_encoded_by_each_call(shared: list[Any], engine: Any) -> None:
    numpy = pytest.importorskip("numpy")
    for table in (
        bytearray(SIZE), [*range(SIZE)], {0: "a", 1: "b", 2: bytes(SIZE)},
        numpy.array([None, {}, "x"] * SIZE),
    ):  # fmt: skip
        shared.clear()
        for _ in range(2):
            looked_up(engine, table)
        table[1] = 99
        assert looked_up(engine, table)[1] == 99
        assert len(shared) == 3
        assert not any(map(is_open, shared))


def test_only_the_last_constants_are_kept_and_they_go_with_the_engine(shared: list[Any]) -> None:
    one, other = bytes(SIZE), bytes([1]) * SIZE
    with fm.LocalEngine("parallel:2", "parallel:2") as engine:
        looked_up(engine, one)
        looked_up(engine, other)
        looked_up(engine, b"abc")  # too small to be shared
        assert [is_open(handle) for handle in shared] == [False, True]
        looked_up(engine, one)
    assert len(shared) == 3
    assert not any(map(is_open, shared))
    looked_up("parallel:2", one)
    assert not is_open(shared[-1])


@pytest.mark.parametrize("kind", ["sequential", "threaded:2", "parallel:2", "async", "cow_fork"])
def test_what_a_call_had_goes_with_it_and_not_with_a_garbage_collection(kind: str) -> None:
    graph = fm.Graph([nodes.looked_up, nodes.after_look])
    inner = fm.Graph([nodes.looked_up], name="inner").as_node(map_over="x")
    nested = fm.Graph([inner])

    def left_half_way(inputs: Any, engine: Any) -> None:
        rows = graph.imap(inputs | {"x": iter(range(50))}, "x", engine=engine)
        next(rows)
        rows.close()

    ways: list[Callable[[Any, Any], Any]] = [
        lambda inputs, e: LOOK.map(inputs, "x", engine=e),
        lambda inputs, e: graph.map(inputs, "x", engine=e),
        lambda inputs, e: graph.run(inputs | {"x": 1}, engine=e),
        lambda inputs, e: nested.run(inputs, engine=e),
        lambda inputs, e: [*graph.imap(inputs, "x", engine=e)],
        left_half_way,
        lambda inputs, e: graph.start(inputs | {"x": 1}, engine=e).result(60),
        lambda inputs, e: graph.start_map(inputs, "x", engine=e).result(60),
    ]
    before = {*segment._open}
    with fm.LocalEngine(kind, kind) as engine:
        LOOK.map({"x": [0], "table": nodes.Table()}, "x", engine=engine)
        gc.collect()  # what the first call has imported leaves cycles
        gc.disable()
        try:
            for number, way in enumerate(ways):
                table = nodes.Table()
                known = weakref.ref(table)
                way({"x": [0, 1, 2], "table": table}, engine)
                del table
                deadline = time.monotonic() + 30  # a thread may be about to let go of its call
                while (known() or {*segment._open} - before) and time.monotonic() < deadline:
                    time.sleep(0.001)
                assert known() is None, number
                assert not {*segment._open} - before, number
        finally:
            gc.enable()


@pytest.fixture
def vast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants of `SIZE` bytes are vast."""
    for module in (handing, homes):
        monkeypatch.setattr(module, "VAST", SIZE)


@pytest.mark.usefixtures("vast")
def test_memory_for_a_vast_constant_is_that_of_the_last_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was kept is gone before another is encoded, and its workers are told to let go of it."""
    open_then: list[list[bool]] = []
    made: list[Any] = []

    def share(value: Any) -> Any:
        open_then.append([is_open(handle) for handle in made])
        gone.append(all(ref() is None for ref in segments))
        made.append(fm.share(value))
        segments.append(weakref.ref(made[-1]._segment))
        return made[-1]

    gone: list[bool] = []
    segments: list[Any] = []
    monkeypatch.setattr(handing, "share", share)
    monkeypatch.setattr(homes, "forget_closed", partial(nodes.leave_pid, str(tmp_path)))
    with fm.LocalEngine("parallel:2", "parallel:2") as engine:
        for first in range(3):
            assert looked_up(engine, bytes([first]) * SIZE) == [first] * 3
        for _ in range(2):
            assert looked_up(engine, b"abc") == [*b"abc"]  # not vast: nothing goes for it
        assert open_then == [[], [False], [False, False]]
        assert gone == [True] * 3
        assert is_open(made[-1])
        deadline = time.monotonic() + 60
        while not os.listdir(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        found = os.listdir(tmp_path)
    assert found
    assert str(os.getpid()) not in found


@pytest.mark.usefixtures("vast")
def test_what_a_call_has_itself_stays_where_another_of_its_constants_is_new(
    shared: list[Any], engine: Any
) -> None:
    one, two, three = (bytes([number]) * SIZE for number in range(3))
    inner = fm.Graph([nodes.looked_up], name="inner").bind(table=one)
    graph = fm.Graph([nodes.two_tables, inner.as_node({"two_tables": "x"}, map_over="two_tables")])

    def found(left: bytes, right: bytes) -> Any:
        return graph.run({"at": 0, "left": left, "right": right}, engine=engine)

    assert found(two, two) == {"two_tables": (1, 1), "looked_up": [0, 0]}
    assert len(shared) == 2
    assert found(three, two) == {"two_tables": (2, 1), "looked_up": [0, 0]}
    assert found(two, three) == {"two_tables": (1, 2), "looked_up": [0, 0]}
    assert len(shared) == 3


def test_calls_at_once_share_a_constant_each_by_itself(shared: list[Any], engine: Any) -> None:
    table = bytes(range(256)) * 1024
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.extend(looked_up(engine, table) for _ in range(5)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[0, 1, 2]] * 15
    assert sum(map(is_open, shared)) == 1


def test_a_map_that_is_the_same_sends_no_function(
    monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    sent: list[Any] = []
    reduce = bundle.Bare.__reduce__
    monkeypatch.setattr(bundle.Bare, "__reduce__", lambda self: sent.append(self) or reduce(self))
    graph = fm.Graph([nodes.double, nodes.plus])
    for _ in range(3):
        assert graph.map({"x": [1, 2]}, "x", engine=engine)["plus"] == [3, 5]
    assert len(sent) == 1
    assert graph.map({"x": [1, 2]}, "x", "zip", "double", engine=engine)["double"] == [2, 4]
    assert graph.map({"x": [1, 2]}, "x", on_error="skip", engine=engine)["plus"] == [3, 5]
    assert len(sent) == 3


def test_a_function_that_has_changed_is_sent_again(engine: Any) -> None:
    step = 1

    def moved(x: int, by: int = 10) -> int:
        return x + step + by

    graph = fm.Graph([moved])

    def found() -> list[int]:
        column: list[int] = graph.map({"x": [0]}, "x", engine=engine)["moved"]
        return column

    assert found() == [11]
    step = 2
    assert found() == [12]
    moved.__defaults__ = (20,)
    assert found() == [22]
    bound = fm.Graph([moved]).bind(by=5)
    assert bound.map({"x": [0]}, "x", engine=engine)["moved"] == [7]
    assert found() == [22]


def test_a_constant_that_can_change_is_sent_as_it_is(engine: Any) -> None:
    table = {0: "a", 1: "b", 2: "c"}
    assert looked_up(engine, table) == ["a", "b", "c"]
    table[1] = "other"
    assert looked_up(engine, table) == ["a", "other", "c"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_whatever_one_function_gives_or_raises_comes_as_anywhere(method: str) -> None:
    """A map of one function of the item calls it in the worker's own loop."""
    graph = fm.Graph([nodes.any_kind])
    items = [*range(nodes.KINDS), 2.5, "text", None, (1, 2)]
    expected = graph.map({"x": items}, "x", on_error="skip")
    spec = fm.ipc_fork(2, start_method=method)
    found = graph.map({"x": items}, "x", on_error="skip", engine=spec)
    for mine, theirs in zip(found["any_kind"], expected["any_kind"], strict=True):
        if isinstance(theirs, fm.Failure):
            assert (mine.stage, mine.index, mine.item, mine.attempts) == (
                theirs.stage, theirs.index, theirs.item, theirs.attempts,
            )  # fmt: skip
            assert type(mine.error) is type(theirs.error)
            assert "child.pxi" not in mine.traceback
            assert ("any_kind" in mine.traceback) == ("any_kind" in theirs.traceback)
        else:
            assert type(mine) is type(theirs)
            assert repr(mine) == repr(theirs)
    with pytest.raises(type(expected.failures[0].error)):
        graph.map({"x": items}, "x", engine=spec)


# The very array changes its shape, whatever NumPy advises.
@pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")
def test_an_array_of_bytes_is_known_by_them(
    shared: list[Any], engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy = pytest.importorskip("numpy")
    compared: list[int] = []

    def same(one: memoryview, other: memoryview) -> bool:
        compared.append(one.nbytes if not _native.within(data, one) else 0)
        return _native.same(one, other)

    monkeypatch.setattr(share, "_same", same)
    data = numpy.arange(SIZE).tobytes()
    table = numpy.frombuffer(data, numpy.int64)
    for _ in range(2):
        assert looked_up(engine, table) == [0, 1, 2]
    assert looked_up(engine, table) == [0, 1, 2]
    assert len(shared) == 1
    assert compared == [0, 0]  # the same memory
    table.shape = (2, -1)
    assert looked_up(fm.LocalEngine("sequential"), table.T)[1].tolist() == [1, SIZE // 2 + 1]
    found = LOOK.map({"x": [0, 1], "table": table}, "x", engine=engine)["looked_up"]
    assert [row[0] for row in found] == [0, SIZE // 2]
    other = numpy.frombuffer(bytearray(data), numpy.int64)  # that can change
    for _ in range(2):
        assert looked_up(engine, other) == [0, 1, 2]
    assert compared[-1] == len(data)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each chunk that is sent has."""
    counts: list[int] = []
    submit = maps.Feed._submit
    monkeypatch.setattr(
        maps.Feed, "_submit", lambda self, count: counts.append(count) or submit(self, count)
    )
    return counts


def test_a_map_goes_on_with_the_chunks_that_the_last_one_came_to(
    sent: list[int], engine: Any
) -> None:
    graph = fm.Graph([nodes.double])
    firsts: list[int] = []
    for number in (8192, 8192, 640, 16):
        sent.clear()
        rows = graph.map({"x": range(number)}, "x", engine=engine)
        assert rows["double"] == [2 * x for x in range(number)]
        firsts.append(sent[0])
    # Each may be one that takes long, however fast the last ones were: a few, of few items one.
    assert firsts[0] == firsts[3] == 1
    assert 1 < firsts[2] <= firsts[1] <= 8


@pytest.mark.usefixtures("vast")
def test_another_constant_does_not_change_the_chunks_and_another_function_does(
    sent: list[int], engine: Any
) -> None:
    other = fm.Graph([nodes.double])
    firsts: list[int] = []
    for table in (bytes(SIZE), b"\1" * SIZE, b"abc" * 9000, None, bytes(SIZE)):
        sent.clear()
        if table is None:
            other.map({"x": range(8192)}, "x", engine=engine)
        else:
            LOOK.map({"x": range(8192), "table": table}, "x", engine=engine)
        firsts.append(sent[0])
    assert firsts[0] == firsts[3] == firsts[4] == 1
    assert min(firsts[1:3]) > 1

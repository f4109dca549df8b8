"""What a warm engine keeps for its next call: constants as they were sent, and a map's function."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import forkmill as fm
import graph_nodes as nodes
from forkmill import _native
from forkmill.codec import share
from forkmill.graph import bundle, handing
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


def test_a_map_goes_on_with_the_chunks_that_the_last_one_came_to(
    monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    sent: list[int] = []
    submit = maps.Feed._submit
    monkeypatch.setattr(
        maps.Feed, "_submit", lambda self, count: sent.append(count) or submit(self, count)
    )
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

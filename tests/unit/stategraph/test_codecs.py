"""Codecs: what comes back is what was put in, or nothing goes in."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import math
import pickle
import subprocess
import sys
import threading

import hypothesis
import hypothesis.strategies as st
import pytest

import forkmill as fm
from forkmill.stategraph.checkpoints import frames
from forkmill.stategraph.checkpoints.codecs import CODECS, codec_named


class Colour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    tags: list[str]


class Plain:
    def __init__(self) -> None:
        self.value = 1


class Shrinks:
    """Comes back as something else."""

    def __reduce__(self):
        return int, (5,)


class Forgets:
    """Comes back unequal."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Forgets) and self.value == other.value

    __hash__ = None

    def __reduce__(self):
        return Forgets, ()


class Breaks:
    """Cannot be loaded."""

    def __reduce__(self):
        return int, ("x",)


@dataclasses.dataclass
class Loses:
    a: int = 1
    b: int = 2

    def __getstate__(self):
        return {"a": self.a, "b": 2}

    def __setstate__(self, state):
        self.__dict__.update(state)


Named = collections.namedtuple("Named", "x y")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
plain = st.recursive(
    scalars | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def same(a: object, b: object) -> bool:
    """Equal, with its types; a nan is a nan."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(map(same, a.values(), b.values()))
    if isinstance(a, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    return a == b


@pytest.mark.parametrize("name", CODECS)
@hypothesis.given(value=plain)
@hypothesis.settings(max_examples=60)
def test_what_goes_in_comes_out(name: str, value: object) -> None:
    if name == "msgpack":
        pytest.importorskip("msgpack")
    codec = codec_named(name)
    try:
        data = codec.encode(value)
    except fm.SerializationError:
        assert name != "pickle"
        return
    assert type(data) is bytes
    assert same(codec.decode(data), value)
    assert same(codec.decode(memoryview(data)), value)


@pytest.mark.parametrize(
    "value",
    [
        Point(1, ["a"]),
        Colour.RED,
        {Colour.RED: {1, 2}, (1, 2): frozenset("a")},
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        decimal.Decimal("nan"),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        collections.deque([1], 3),
        Named(1, [2]),
        array.array("d", [1.0, math.nan]),
        bytearray(b"x"),
        range(3),
        int,
        len,
        "\ud800",
        1 << 9000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_pickle_keeps_every_type(value: object) -> None:
    codec = codec_named("pickle")
    back = codec.decode(codec.encode(value))
    assert type(back) is type(value) and repr(back) == repr(value)


def test_what_has_no_equality_need_only_come_back() -> None:
    codec = codec_named("pickle")
    for value in (Plain(), [Plain()], {"a": {Plain()}}, ValueError(1), {Plain(): 1}):
        codec.encode(value)
    loop: list[object] = [Plain()]
    loop.append(loop)
    assert codec.decode(codec.encode(loop))[1][1] is not None


@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        (lambda: 1, "", "lambda"),
        ({"a": [1, threading.Lock()]}, "['a'][1]", "lock"),
        (Point(1, [(x for x in ())]), ".tags[0]", "generator"),  # type: ignore[list-item]
        (Shrinks(), "", "comes back as a 'int'"),
        ([0, (Shrinks(),)], "[1][0]", "comes back as a 'int'"),
        ({"k": Forgets(3)}, "['k']", "not come back equal"),
        (Breaks(), "", "loaded again"),
        ([Loses(1, 3)], "[0].b", "not come back equal"),
        (type("Local", (), {})(), "", "Local"),
    ],
)
def test_pickle_refuses_what_does_not_come_back(value: object, path: str, said: str) -> None:
    with pytest.raises(fm.SerializationError) as caught:
        codec_named("pickle").encode(value)
    assert caught.value.path == path and said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("json", (1,), ""),
        ("json", {"a": [1, (2,)]}, "['a'][1]"),
        ("json", {1: 2}, ""),
        ("json", [{"x": {True: 2}}], "[0]['x']"),
        ("json", b"x", ""),
        ("json", {"s": {1}}, "['s']"),
        ("json", Colour.RED, ""),
        ("json", [10**6000], ""),
        ("json", collections.OrderedDict(a=1), ""),
        ("msgpack", (1,), ""),
        ("msgpack", [1 << 64], ""),
        ("msgpack", [{"a": bytearray(b"x")}], "[0]['a']"),
        ("msgpack", {(1,): 2}, ""),
        ("msgpack", "\ud800", ""),
        ("msgpack", Point(1, []), ""),
    ],
)
def test_json_and_msgpack_refuse_what_they_would_change(name, value, path) -> None:
    if name == "msgpack":
        pytest.importorskip("msgpack")
    with pytest.raises(fm.SerializationError) as caught:
        codec_named(name).encode(value)
    assert caught.value.path == path and repr(name) in str(caught.value)


@pytest.mark.parametrize("name", CODECS)
def test_what_holds_itself_or_is_too_deep_is_refused_or_kept(name: str) -> None:
    if name == "msgpack":
        pytest.importorskip("msgpack")
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    loop: list[object] = []
    loop.append(loop)
    for value in (deep, loop) if name != "pickle" else (deep,):
        with pytest.raises(fm.SerializationError):
            codec_named(name).encode(value)


def test_arrays_lie_over_the_bytes() -> None:
    numpy = pytest.importorskip("numpy")
    codec = codec_named("pickle")
    value = {"a": numpy.arange(1000.0), "b": [numpy.ones((3, 4), order="F"), numpy.arange(9)[::2]]}
    data = codec.encode(value)
    back = codec.decode(data)
    assert not back["a"].flags.writeable and not back["a"].flags.owndata
    assert numpy.array_equal(back["a"], value["a"])
    for mine, other in zip(back["b"], value["b"], strict=True):
        assert mine.dtype == other.dtype and numpy.array_equal(mine, other)
    low = numpy.frombuffer(data, numpy.uint8)
    assert numpy.shares_memory(back["a"], low)
    assert (back["a"].ctypes.data - low.ctypes.data) % 64 == 0
    with pytest.raises(fm.StoreError, match="'pickle'"):
        codec.decode(data[:-100])


def test_large_arrays_are_not_compared() -> None:
    numpy = pytest.importorskip("numpy")
    value = numpy.array([math.nan] * 10, dtype=object)
    codec_named("pickle").encode([value, numpy.full(10, math.nan)])


@pytest.mark.parametrize("name", ["pickle", "json"])
def test_bytes_of_somebody_else_are_a_store_error(name: str) -> None:
    for data in (b"", b"\x80\x05\xff", b"FMB5", b"\xff" * 40, pickle.dumps(1)[:-1]):
        with pytest.raises(fm.StoreError, match=repr(name)):
            codec_named(name).decode(data)


def test_a_codec_travels_as_its_name() -> None:
    codec = codec_named("json")
    assert pickle.loads(pickle.dumps(codec)) is codec
    with pytest.raises(ValueError, match="'json'"):
        codec_named("jsn")
    with pytest.raises(TypeError):
        codec_named(7)  # type: ignore[arg-type]


def test_a_worker_loads_no_database_for_its_codec() -> None:
    code = (
        "import sys\n"
        "import forkmill.stategraph.checkpoints.codecs\n"
        "heavy = {'sqlite3', 'psycopg', 'asyncio', 'multiprocessing', 'forkmill._native'}\n"
        "print(sorted(heavy & {*sys.modules}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


@hypothesis.given(head=st.lists(st.text()), blobs=st.lists(st.binary()))
def test_frames_are_what_they_were(head: list[str], blobs: list[bytes]) -> None:
    data = frames.pack(head, blobs)
    assert frames.unpack(data) == (head, blobs)
    for cut in (data[:-1], data + b"x", data[:5]):
        with pytest.raises(ValueError):
            frames.unpack(cut)

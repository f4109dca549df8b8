"""Records: plain values without pickle, buffers out of band, and no trust in foreign bytes."""

from __future__ import annotations

import math
import struct
import sys

import pytest

import wire
from forkmill import _native, errors

LONG = 16
PLAIN = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    1.5,
    math.inf,
    "",
    "a",
    "é",
    "€𝄞" * 20,
    "x" * 255,
    b"",
    b"\x00\xff",
    b"y" * 255,
    (),
    [],
    {},
    (1, "a", None, 2.5, b"z", True),
    [0] * 255,
    {str(i): i for i in range(255)},
    {1: 2, None: "x", b"k": 0.5, True + 1: False},
    [[1]],
    (1, (2,)),
    {"a": [], "b": {"c": ({1: 2.5}, None)}},
    {"id": 1, "tags": ["new", "blue"], "at": (1, 0.5), "seen": {1, 2}},
    {1},
    set(),
]
LONGER = [2**63, -(2**63) - 1, "x" * 256, "é" * 128, b"y" * 256, "\ud800", "\udfff" * 999]
PICKLED = [
    [[1 + 2j]],
    {(1, 2): 3},
    {(1, 2)},
    [frozenset([1])],
    list(range(256)),
    ("x" * 256,),
    1 + 2j,
    ["\ud800"],
    (b"q" * 255,) * 255,
]


class Int(int):
    pass


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:20])
def test_plain_values_keep_value_and_type_without_pickle(value) -> None:
    def dumps(obj):
        raise AssertionError("plain values need no pickle")

    data = wire.encode(value, dumps)
    assert data[0] < LONG
    assert wire.record_size(data) == len(data)
    back = wire.decode(data)
    assert back == value
    assert repr(back) == repr(value)
    assert type(back) is type(value)


@pytest.mark.parametrize("value", LONGER + PICKLED, ids=lambda value: ascii(value)[:20])
def test_all_other_values_go_as_long_records(value) -> None:
    data = wire.encode(value)
    if value != PICKLED[-1]:  # 255 strings of 255 bytes just fit the format
        assert data[0] == LONG
    assert wire.record_size(data) == len(data)
    assert wire.decode(data) == value


def test_long_text_and_bytes_need_no_pickle() -> None:
    def dumps(obj):
        raise AssertionError("needs no pickle")

    for value in ("x" * 1000, "é" * 1000, "\ud800" * 1000, b"z" * 1000):
        assert wire.decode(wire.encode(value, dumps)) == value


def test_subclasses_and_bools_are_told_apart() -> None:
    assert type(wire.decode(wire.encode(Int(3)))) is Int
    assert wire.decode(wire.encode(True)) is True
    assert type(wire.decode(wire.encode([True, 1]))[1]) is int


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def test_containers_of_subclasses_inside_are_told_apart() -> None:
    from collections import OrderedDict

    for value in ([OrderedDict(a=1)], {"a": Int(3)}, ([Int(3)],)):
        data = wire.encode(value)
        assert data[0] == LONG
        assert repr(wire.decode(data)) == repr(value)


def test_a_container_that_is_there_twice_stays_one() -> None:
    inner = [1]
    for value in ([inner, inner], (inner, {"a": inner}), {"a": inner, "b": [[inner]]}):
        back = wire.decode(wire.encode(value))
        assert back == value
        found = back["a"] if isinstance(back, dict) else back[0]
        found.append(2)
        assert repr(back).count("[1, 2]") == 2


def test_an_inner_container_that_somebody_else_holds_too_is_plain() -> None:
    inner = [1]
    assert wire.encode([inner, [1]])[0] < LONG


def test_cycles_come_back_as_cycles() -> None:
    direct: list = []
    direct.append(direct)
    back = wire.decode(wire.encode(direct))
    assert back[0] is back
    around: dict = {"a": [({},)]}
    around["a"][0][0]["b"] = around
    back = wire.decode(wire.encode(around))
    assert back["a"][0][0]["b"] is back


def test_depth_is_bounded_on_both_sides() -> None:
    assert wire.encode(nested(15))[0] < LONG
    assert wire.encode(nested(16))[0] == LONG
    # Before CPython 3.13 pickle in C goes less deep, in a deep stack of tests.
    for depth in (15, 16, 200 if sys.version_info < (3, 13) else 900):
        assert wire.decode(wire.encode(nested(depth))) == nested(depth)
    record = b""
    for _ in range(17):
        record = bytes([9]) + struct.pack("<HB", len(record), bool(record)) + record
    with pytest.raises(errors.PoolError, match="too deep"):
        wire.decode(record)


def test_floats_keep_every_bit() -> None:
    for bits in (0x8000000000000000, 0x7FF8000000000123, 0xFFF8000000000001, 1):
        value = struct.unpack("<d", struct.pack("<Q", bits))[0]
        back = wire.decode(wire.encode(value))
        assert struct.unpack("<Q", struct.pack("<d", back))[0] == bits


def test_encoding_leaves_no_copy_inside_the_users_string() -> None:
    import sys

    text = "é" * 50
    before = sys.getsizeof(text)
    wire.encode(text)
    wire.encode([text])
    assert sys.getsizeof(text) == before


def test_dict_keys_that_share_a_cache_place_stay_apart() -> None:
    for i in range(3000):
        row = {f"key{i}": i, f"yek{i % 7}": 1, "é" * (i % 5 + 2): 2, "k" * (i % 30 + 1): 3}
        assert wire.decode(wire.encode(row)) == row


@pytest.mark.parametrize("owned", [False, True])
def test_buffers_arrive_writable_and_private(owned: bool) -> None:
    import pickle

    first, second = bytearray(b"a" * 1000), bytearray(b"b" * 65)

    def dumps(obj):
        return pickle.dumps(len(obj), 5), [memoryview(part) for part in obj]

    def loads(data, buffers):
        assert pickle.loads(data) == len(buffers)
        return buffers

    data = wire.encode([first, second, b""], dumps)
    assert wire.record_size(data) == len(data)
    views = wire.decode(data, loads, owned)
    assert [bytes(view) for view in views] == [first, second, b""]
    views[0][0] = 7
    assert views[1][0] == ord("b")
    assert views[0][0] == 7
    assert first[0] == ord("a")


@pytest.mark.parametrize("owned", [False, True])
def test_arrays_go_out_of_band(owned: bool) -> None:
    np = pytest.importorskip("numpy")
    array = np.arange(1000.0)
    frozen = np.arange(10)
    frozen.flags.writeable = False
    a, b, c, d = wire.decode(wire.encode([array, array[::-1], array[:0], frozen]), owned=owned)
    assert (a == array).all()
    assert (b == array[::-1]).all()
    assert c.shape == (0,)
    assert a.flags.writeable
    assert not d.flags.writeable
    if not owned:
        assert a.ctypes.data % 64 == 0


# ------------------------------------------------------------------ malformed


def long_record(what: int, buffers: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(
        "<BBHIQ", LONG, what, 0, buffers, len(body) if length is None else length
    ) + (body)


MALFORMED = {
    "empty": b"",
    "unknown tag": b"\x0b",
    "tag 0": b"\x00",
    "tag 255": b"\xff" * 20,
    "half an int": b"\x04\x00",
    "half a string": b"\x06\x05ab",
    "string without length": b"\x06",
    "not utf-8": b"\x06\x02\xff\xfe",
    "not utf-8 as a key": b"\x0a\x05\x00\x01\x06\x02\xff\xfe\x01",
    "more than the value": b"\x01\x01",
    "half a tuple": b"\x08\x04\x00\x01\x04",
    "tuple header": b"\x08\x01",
    "tuple without items": b"\x08\x00\x00\x05",
    "tuple with too much": b"\x08\x02\x00\x01\x01\x01",
    "list as a key": bytes([10, 5, 0, 1, 9, 0, 0, 0, 1]),
    "list in a set": bytes([11, 4, 0, 1, 9, 0, 0, 0]),
    "long in a tuple": b"\x08\x01\x00\x01\x10",
    "dict with half a pair": b"\x0a\x01\x00\x01\x01",
    "dict key that overruns": b"\x0a\x03\x00\x01\x06\x09a",
    "half a long header": b"\x10\x01\x00\x00",
    "long that is too short": long_record(3, 0, b"abc", 4),
    "long that is too long": long_record(3, 0, b"abcd", 3),
    "long with a huge length": long_record(3, 0, b"abcd", 2**63),
    "long str not utf-8": long_record(2, 0, b"\xff\xfe\xfd"),
    "an error is no value": long_record(5, 0, b"abc"),
    "unknown what": long_record(99, 0, b"abc"),
    "more buffers than bytes": long_record(1, 2**32 - 1, b"abc"),
    "buffer longer than the body": long_record(1, 1, struct.pack("<Q", 100) + bytes(56)),
    "buffer of 2**64-1": long_record(1, 1, struct.pack("<Q", 2**64 - 1) + bytes(120)),
    "buffer over the table": long_record(1, 1, struct.pack("<Q", 128) + bytes(120)),
    "buffer off the grid": long_record(1, 1, struct.pack("<Q", 3) + bytes(120)),
    "two that overlap": long_record(1, 2, struct.pack("<QQ", 64, 128) + bytes(112)),
}


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_records_raise_and_harm_nobody(data: bytes, owned: bool) -> None:
    with pytest.raises(errors.PoolError, match="malformed"):
        wire.decode(data, owned=owned)


def test_what_loads_raises_comes_through_and_leaves_no_dangling_memory() -> None:
    kept = []

    def loads(data, buffers):
        kept.append(data)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wire.decode(wire.encode([["x" * 10_000]]), loads)
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


# -------------------------------------------------------------------- Encoder


def no_dumps(obj):
    raise errors.SerializationError(f"cannot send {obj!r}")


def refuse(error: BaseException) -> bytes:
    return f"refused: {error}".encode()


def test_encoder_concatenates_records() -> None:
    encoder = _native.Encoder(no_dumps)
    values = [1, "two", (3.0,), "x" * 5000, None, b"z" * 70_000]
    for value in values:
        encoder.add(value)
    data = bytes(encoder)
    assert (encoder.count, encoder.size) == (len(values), len(data))
    assert data == b"".join(wire.encode(value) for value in values)


def test_encoder_adds_nothing_when_dumps_fails() -> None:
    encoder = _native.Encoder(no_dumps)
    encoder.add(1)
    with pytest.raises(errors.SerializationError):
        encoder.add(object())
    assert encoder.count == 1
    assert bytes(encoder) == wire.encode(1)


@pytest.mark.parametrize("answer", [None, 1, (b"", []), ("x", []), (b"x", [3]), (b"x", [b"a", 3])])
def test_a_wrong_dumps_is_an_error_and_not_a_crash(answer) -> None:
    encoder = _native.Encoder(lambda obj: answer)
    if answer == (b"", []):
        encoder.add(object())
        return
    with pytest.raises(TypeError):
        encoder.add(object())
    assert encoder.count == 0


def test_fill_stops_at_n_at_bytes_and_at_the_end() -> None:
    source = iter(range(100))
    encoder = _native.Encoder(no_dumps, refuse)
    assert encoder.fill(source, 10, 1 << 20) == 10
    assert encoder.fill(source, 100, 9 * 15) == 5
    assert encoder.count == 15
    assert not encoder.exhausted
    assert encoder.fill(source, 1000, 1 << 20) == 85
    assert encoder.exhausted
    assert encoder.error is None
    assert next(source, None) is None


def test_fill_passes_one_item_whatever_its_size() -> None:
    encoder = _native.Encoder(no_dumps, refuse)
    assert encoder.fill(iter(["x" * 1000] * 3), 3, 10) == 1
    assert encoder.fill(iter(["x" * 1000] * 3), 3, 10) == 1
    assert encoder.fill(iter([1]), 0, 10) == 0


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_fill_keeps_the_inputs_exception_behind_what_came_before(kind) -> None:
    def source():
        yield 1
        yield 2
        raise kind("input")

    encoder = _native.Encoder(no_dumps, refuse)
    assert encoder.fill(source(), 10, 1 << 20) == 2
    assert type(encoder.error) is kind
    assert encoder.error.__traceback__ is not None
    assert not encoder.exhausted


def test_fill_gives_an_item_that_cannot_be_sent_its_own_record() -> None:
    encoder = _native.Encoder(no_dumps, refuse)
    assert encoder.fill(iter([1, {2: 1j}, 3]), 10, 1 << 20) == 3
    data = bytes(encoder)
    middle = data[9 : 9 + wire.record_size(data[9:])]
    assert middle[:2] == bytes([LONG, 4])
    assert middle[16:] == b"refused: cannot send {2: 1j}"
    assert data[-9:] == wire.encode(3)


def test_fill_lets_ctrl_c_in_an_item_through() -> None:
    def dumps(obj):
        raise KeyboardInterrupt

    encoder = _native.Encoder(dumps, refuse)
    with pytest.raises(KeyboardInterrupt):
        encoder.fill(iter([1, object()]), 10, 1 << 20)
    assert encoder.count == 1


def test_fill_refuses_what_is_no_iterator() -> None:
    with pytest.raises(TypeError, match="iterator"):
        _native.Encoder(no_dumps, refuse).fill([1], 1, 1)


@pytest.mark.parametrize(
    "numbers",
    [
        range(0),
        range(5),
        range(10, -10, -3),
        range(2**63 - 3, 2**63),
        range(2**63 - 9, 2**63 + 90, 100),
        range(-(2**63), -(2**63) + 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("most", [1, 19, 1 << 20])
def test_numbers_are_a_range(numbers: range, most: int) -> None:
    assert list(_native.Numbers(numbers)) == list(numbers)
    encoder = _native.Encoder(no_dumps)
    other = _native.Encoder(no_dumps)
    source, plain = _native.Numbers(numbers), iter(numbers)
    for n in (0, 2, 1, 2, 9, 9):
        assert encoder.fill(source, n, most) == other.fill(plain, n, most)
        assert encoder.exhausted == other.exhausted
        assert bytes(encoder) == bytes(other)
        assert (encoder.count, encoder.size) == (other.count, other.size)
    assert list(source) == list(plain)


def test_numbers_of_more_than_64_bits_are_refused() -> None:
    for numbers in (range(2**63, 2**63 + 1), range(0, 2**65, 2**64), range(-(2**64), 0)):
        with pytest.raises(OverflowError):
            _native.Numbers(numbers)

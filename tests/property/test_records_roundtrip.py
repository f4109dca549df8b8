"""Records against a model: any value comes back the same, any bytes harm nobody."""

from __future__ import annotations

import math
import pickle
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import wire
from forkmill import _native, errors

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=300)
    | st.binary(max_size=300)
)
keys = st.integers() | st.text(st.characters(), max_size=30) | st.binary(max_size=9) | st.none()
flat = (
    st.lists(scalars)
    | st.lists(scalars).map(tuple)
    | st.dictionaries(keys, scalars)
    | st.sets(st.integers() | st.text(max_size=9))
)
values = st.recursive(
    scalars | flat,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner).map(tuple),
    max_leaves=20,
)

thorough = settings(max_examples=max(300, settings.default.max_examples))


def same(one: Any, other: Any) -> bool:
    """Equal in type and value all the way down; NaN is NaN and -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    return bool(one == other)


@given(values)
def test_any_value_comes_back_the_same(value: Any) -> None:
    data = wire.encode(value)
    assert wire.record_size(data) == len(data)
    assert same(wire.decode(data), value)


@given(st.lists(values, max_size=8))
def test_a_chunk_splits_into_its_records(items: list[Any]) -> None:
    encoder = _native.Encoder(wire.dumps5)
    assert encoder.fill(iter(items), 100, 1 << 30) == len(items)
    data, back = bytes(encoder), []
    while data:
        size = wire.record_size(data)
        back.append(wire.decode(data[:size]))
        data = data[size:]
    assert same(back, items)


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """Containers that hold each other, shared and in circles."""
    nodes: list[Any] = [
        draw(st.sampled_from((list, dict)))() for _ in range(draw(st.integers(1, 6)))
    ]
    for node in nodes:
        for i in range(draw(st.integers(0, 4))):
            child = draw(st.sampled_from(nodes) | scalars)
            child = draw(st.sampled_from((child, (child, i), [child])))
            if isinstance(node, dict):
                node[draw(keys)] = child
            else:
                node.append(child)
    return nodes[0]


def shape(value: Any) -> list[Any]:
    """A value as a list of what is met on the way through it: two are alike if these are."""
    met: dict[int, int] = {}
    way: list[Any] = []
    rest = [value]
    while rest:
        one = rest.pop()
        if not isinstance(one, (list, tuple, dict)):
            way.append((type(one), repr(one)))
        elif id(one) in met:
            way.append(met[id(one)])
        else:
            met[id(one)] = len(met)
            items = [x for pair in one.items() for x in pair] if isinstance(one, dict) else one
            way.append((type(one), len(items)))
            rest += items
    return way


@thorough
@given(graphs())
def test_what_is_shared_comes_back_as_from_pickle(value: Any) -> None:
    expected = shape(pickle.loads(pickle.dumps(value, 5)))
    assert shape(wire.decode(wire.encode(value))) == expected


def give_up(data: Any, buffers: Any) -> Any:
    """In place of pickle: it must be free to run code, these tests are about our own."""
    return bytes(data), [bytes(view) for view in buffers]


@thorough
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_decode_or_are_called_malformed(data: bytes, owned: bool) -> None:
    try:
        wire.decode(data, give_up, owned)
    except errors.PoolError as error:
        assert "malformed" in str(error)


@thorough
@given(values, st.data(), st.booleans())
def test_a_damaged_record_decodes_or_is_called_malformed(
    value: Any, draw: st.DataObject, owned: bool
) -> None:
    data = bytearray(wire.encode(value))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    del data[draw.draw(st.integers(len(data) // 2, len(data))) :]
    try:
        wire.decode(bytes(data), give_up, owned)
    except errors.PoolError as error:
        assert "malformed" in str(error)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=6), st.binary(), st.booleans())
def test_buffers_come_back_the_same(parts: list[bytes], data_in: bytes, owned: bool) -> None:
    def dumps(obj: Any) -> tuple[bytes, list[memoryview]]:
        return data_in, [memoryview(part) for part in parts]

    data = wire.encode(object(), dumps)
    assert wire.record_size(data) == len(data)
    body, views = wire.decode(data, give_up, owned)
    # The padding up to the first buffer cannot be told from the pickle, which ends by itself.
    assert body[: len(data_in)] == data_in
    assert not any(body[len(data_in) :])
    assert views == parts

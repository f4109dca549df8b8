"""What is sent arrives as what it is, no more and no less, or is refused by name (INV-10).

Arrow slices without the table that they were cut from; memoryviews as memoryviews; and open files,
sockets, generators, which nobody can send: refused with the path to them, and never altered.
"""

from __future__ import annotations

import io
import mmap
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forkmill as fm
from forkmill.codec.codec import Codec
from tasks import METHODS


def same(value: Any) -> Any:
    return value


@pytest.fixture(params=["exec", "fork"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(request.param)


def size(codec: Codec, value: Any) -> int:
    data, buffers = codec.dumps(value)
    return len(data) + sum(buffer.nbytes for buffer in buffers)


def round_trip(codec: Codec, value: Any) -> Any:
    data, buffers = codec.dumps_result(value)
    return codec.loads(data, [bytearray(buffer) for buffer in buffers])


# ------------------------------------------------------------------------------- Arrow


def table(rows: int = 20_000) -> Any:
    pa = pytest.importorskip("pyarrow")
    return pa.table(
        {
            "number": np.arange(rows),
            "text": [f"text {i}" for i in range(rows)],
            "word": pa.array([str(i % 7) for i in range(rows)]).dictionary_encode(),
            "list": [[i] * (i % 3) for i in range(rows)],
            "gaps": [None if i % 3 else i for i in range(rows)],
        }
    )


def slices(whole: Any) -> dict[str, Any]:
    text = whole.column("text")
    batch = whole.combine_chunks().to_batches()[0]
    return {
        "table": whole.slice(7, 50),
        "chunks": __import__("pyarrow").concat_tables([whole.slice(3, 5), whole.slice(90, 5)]),
        "batch": batch.slice(7, 50),
        "column": text.slice(7, 50),
        "array": text.chunk(0).slice(7, 50),
        "dictionary": whole.column("word").chunk(0).slice(7, 50),
        "lists": whole.column("list").slice(7, 50),
        "empty table": whole.slice(7, 0),
        "empty batch": batch.slice(7, 0),
        "empty column": text.slice(7, 0),
        "empty array": text.chunk(0).slice(7, 0),
    }


@pytest.mark.unbalanced("threads")  # Arrow has its own
def test_arrow_slices_carry_only_themselves(codec: Codec) -> None:
    whole = table()
    for name, part in slices(whole).items():
        assert size(codec, part) < 12_000 < whole.nbytes / 10, name
        assert size(codec, [{"deep": (part,)}]) < 12_000, name
        back = round_trip(codec, part)
        assert type(back) is type(part) and back.equals(part), name
        back.validate(full=True)
    with_notes = whole.replace_schema_metadata({"made": "by hand"}).slice(5, 5)
    assert round_trip(codec, with_notes).schema.equals(with_notes.schema, check_metadata=True)
    assert round_trip(codec, whole).equals(whole)
    assert size(codec, whole) < 1.2 * whole.nbytes  # once


@pytest.mark.unbalanced("threads")
def test_frames_on_arrow_carry_only_themselves(codec: Codec) -> None:
    pd = pytest.importorskip("pandas")
    frame = table().to_pandas(types_mapper=pd.ArrowDtype)
    text = pd.DataFrame({"text": pd.array(list(map(str, range(20_000))), dtype="string[pyarrow]")})
    for part in (frame.iloc[7:57], text.iloc[7:57], text["text"].iloc[7:57]):
        assert size(codec, part) < 12_000
        assert round_trip(codec, part).equals(part)


@pytest.mark.unbalanced("threads")
def test_arrow_beside_what_goes_by_value(codec: Codec) -> None:
    part = table().slice(7, 50)
    data, buffers = codec.dumps((part, lambda: part))
    assert len(data) + sum(buffer.nbytes for buffer in buffers) < 24_000
    one, other = codec.loads(data, [bytearray(buffer) for buffer in buffers])
    assert one.equals(part) and other() is one


@pytest.mark.parametrize("method", METHODS)
def test_arrow_slices_through_a_pool(method: str) -> None:
    batches = table().to_batches(max_chunksize=2000)
    with fm.ProcessPool(1, start_method=method) as pool:
        assert all(map(lambda a, b: a.equals(b), pool.map(same, batches), batches))
        sent = pool.stats().bytes_sent
        assert list(pool.map(len, [batch.slice(0, 3) for batch in batches])) == [3] * len(batches)
        assert pool.stats().bytes_sent - sent < 12_000 * len(batches)
        assert pool.submit(same, batches[3].slice(5, 9)).result(20).equals(batches[3].slice(5, 9))


def test_views_of_other_libraries_carry_only_themselves(codec: Codec) -> None:
    pd = pytest.importorskip("pandas")
    base = np.arange(1e6).reshape(1000, 1000)
    for part in (base[3], base[:, 3], base[::100, ::100], base[5:9].T):
        assert size(codec, part) < part.nbytes + 1000
        np.testing.assert_array_equal(round_trip(codec, part), part)
    frame = pd.DataFrame({"x": np.arange(100_000), "y": np.arange(1e5)})
    assert size(codec, frame.iloc[5:9]) < 5000
    assert size(codec, memoryview(bytearray(1 << 20))[5:9]) < 500


def test_who_has_no_arrow_does_not_import_it(run_script) -> None:
    run_script(
        """
        import sys
        import forkmill as fm
        with fm.ProcessPool(1, start_method="zygote") as pool:
            assert pool.submit(len, [1]).result() == 1
            assert pool.submit(lambda: "pyarrow" in sys.modules).result() is False
        assert "pyarrow" not in sys.modules
        """
    )


# --------------------------------------------------------------------------- memoryviews


VIEWS = {
    "bytes": lambda: memoryview(b"abc"),
    "part": lambda: memoryview(bytearray(b"abcdef"))[1:4],
    "steps": lambda: memoryview(bytearray(b"abcdef"))[::2],
    "empty": lambda: memoryview(b""),
    "doubles": lambda: memoryview(np.arange(12.0).reshape(3, 4)),
    "fortran": lambda: memoryview(np.asfortranarray(np.arange(12).reshape(3, 4))),
    "scalar": lambda: memoryview(np.array(5.0)),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_a_memoryview_arrives_as_one(codec: Codec, make) -> None:
    view = make()
    back = round_trip(codec, [view])[0]
    assert type(back) is memoryview
    assert (back.format, back.shape, back.readonly) == (view.format, view.shape, view.readonly)
    assert back.tolist() == view.tolist()


def test_a_memoryview_of_a_strange_format_is_refused(codec: Codec) -> None:
    with pytest.raises(fm.SerializationError, match="memoryview of format '>i'"):
        codec.dumps([memoryview(np.array([1], dtype=">i4"))])


# ------------------------------------------------------------------------- what is open


class Holder:
    def __init__(self, thing: Any) -> None:
        self.thing = thing


def numbers() -> Iterator[int]:
    yield 1


async def coroutine() -> None:
    pass


@pytest.fixture
def open_things(tmp_path: Path) -> Iterator[dict[str, Any]]:
    path = tmp_path / "file.txt"
    path.write_text("first\nsecond\n")
    awaitable = coroutine()
    reading, other = socket.socketpair()
    with (
        path.open() as text,
        path.open("a") as written,
        path.open("r+") as both,
        path.open("rb") as binary,
        path.open("rb", buffering=0) as raw,
        reading,
        other,
        mmap.mmap(-1, 100) as mapped,
    ):
        text.readline()
        yield {
            "open file": text,
            "open file (": written,
            "file.txt": both,
            "BufferedReader": binary,
            "FileIO": raw,
            "TextIOWrapper": io.TextIOWrapper(io.BytesIO(b"in memory")),
            "socket": reading,
            "mmap": mapped,
            "generator": numbers(),
            "coroutine": awaitable,
            "lock": threading.Lock(),
            "Thread|lock": threading.Thread(),
        }
    awaitable.close()


def test_what_is_open_is_refused_by_name_with_its_path(codec: Codec, open_things) -> None:
    for name, thing in open_things.items():
        for value, path in (
            (thing, ""),
            ([1, {"key": thing}], "[1]['key']"),
            ((Holder([thing]),), "[0].thing[0]"),
        ):
            for dumps in (codec.dumps, codec.dumps_result):
                with pytest.raises(fm.SerializationError) as refused:
                    dumps(value)
                assert refused.value.path.startswith(path), name
                words = name.split("|")
                assert any(word in str(refused.value) for word in words), str(refused.value)
                assert "initializer=" in str(refused.value) or "function" in str(refused.value)
    assert open_things["open file"].readline() == "second\n"  # where it was


def test_by_every_way_into_a_pool(open_things) -> None:
    text = open_things["open file"]
    with fm.ProcessPool(1) as pool:
        for call in (
            lambda: pool.submit(same, text),
            lambda: pool.submit(same, 1, key=text),
            lambda: list(pool.map(same, [text])),
            lambda: list(pool.starmap(same, [(text,)])),
            lambda: list(pool.stream(same, text)),
            lambda: pool.each(same, text),
            lambda: pool.options(retries=1, retry_on=ValueError).submit(same, text),
            lambda: pool.submit(Holder(text).__init__, 1),
            lambda: pool.submit(lambda: text.read()),
        ):
            with pytest.raises(fm.SerializationError, match="open file"):
                call()
        with pytest.raises(fm.SerializationError, match="open file"):
            pool.submit(open, text.name).result(20)
        assert pool.submit(same, 3).result(20) == 3


def test_a_generator_and_a_coroutine_are_told_what_to_do(codec: Codec, open_things) -> None:
    with pytest.raises(fm.SerializationError, match=r"map over it.*stream\(\)"):
        codec.dumps(open_things["generator"])
    with pytest.raises(fm.SerializationError, match="awaits"):
        codec.dumps(open_things["coroutine"])


def test_what_each_process_has_is_its_own(codec: Codec) -> None:
    for stream in (sys.stdout, sys.stderr):
        if type(stream) is io.TextIOWrapper:
            assert round_trip(codec, [stream])[0] is stream

"""CSV records, cut into blocks anywhere: the rows of the csv module on the whole file."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkmill.cli import inputs, records
from forkmill.cli.inputs import Blocks
from forkmill.cli.rows import Ends

# Mostly what the state machine looks at; the rest is a text of its own.
MARKS = ['"', '"', ",", "\n", "\r", "\r\n", "a", "b", '""', '",', ',"']
FIELDS = ['"x\ny"', '5" disk', "plain", '"a ""b"" c"', ",", "\n", "\r\n", "\0", "é", "\udcff"]
TEXTS = st.one_of(
    st.lists(st.sampled_from(MARKS), max_size=60), st.lists(st.sampled_from(FIELDS), max_size=40)
).map("".join)
BOM = st.sampled_from(["", "\ufeff"])


def reference(text: str) -> list[tuple[int, Any]]:
    """(line, row) as the csv module has them; a row of another width is None."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    header = next(reader, [])
    rows = []
    line = reader.line_num + 1
    for row in reader:
        if row:
            named = dict(zip(header, row, strict=False)) if len(row) == len(header) else None
            rows.append((line, named))
        line = reader.line_num + 1
    return rows


def by_blocks(path: Path, want: int) -> list[tuple[int, Any]]:
    """The same from the command line's own blocks."""
    kind = records.kind("csv")
    rows: list[tuple[int, Any]] = []
    with contextlib.closing(Blocks([str(path)], kind)) as blocks:
        while not blocks.ended:
            block = blocks.take(want)
            if block is None:
                blocks.fill()
                continue
            for offset, record, load in records.records_of(kind, block.data, block.header):
                try:
                    rows.append((block.first + offset, load(record)))
                except ValueError:
                    rows.append((block.first + offset, None))
    return rows


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("csv") / "t.csv"


@settings(max_examples=400)
@given(text=TEXTS, bom=BOM, read=st.sampled_from([1, 2, 3, 7, 64]), want=st.integers(1, 40))
def test_rows_are_those_of_the_whole_file(
    path: Path, text: str, bom: str, read: int, want: int
) -> None:
    path.write_bytes((bom + text).encode("utf-8", "surrogateescape"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "_READ", read)
        patch.setattr(inputs, "_BEGIN", read)
        assert by_blocks(path, want) == reference(bom + text)


@settings(max_examples=400)
@given(text=TEXTS, steps=st.lists(st.integers(1, 9), min_size=1), want=st.integers(1, 30))
def test_cuts_do_not_depend_on_how_the_input_comes(text: str, steps: list[int], want: int) -> None:
    data = text.encode("utf-8", "surrogateescape")
    ends, buffer, blocks, at = Ends(), bytearray(), [], 0
    while at < len(data) or buffer:
        end = ends.cut(buffer, want) if buffer else 0
        if end == 0 and at >= len(data):
            end = len(buffer)
        if end:
            blocks.append(bytes(buffer[:end]))
            del buffer[:end]
            ends.drop(end)
        else:
            step = steps[at % len(steps)]
            buffer += data[at : at + step]
            at += step
    assert b"".join(blocks) == data
    whole = list(csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))
    pieces = [
        row
        for block in blocks
        for row in csv.reader(io.StringIO(block.decode("utf-8", "surrogateescape"), newline=""))
    ]
    assert pieces == whole
    if want == 1:  # then a block is one record
        assert len(blocks) == len(whole)

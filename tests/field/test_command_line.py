"""The command line, and what files, disks, folders and functions do to it.

Never a traceback, and never a wrong record: what cannot be done is told by name, with a status that
is not 0.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill.cli
from forkmill.cli import inputs, packed, records
from forkmill.cli.inputs import Blocks, InputError

COMMAND = [sys.executable, "-W", "error", "-m", "forkmill"]
FUNCTIONS = """
import asyncio, functools, json

def upper(line): return line.upper()
def identity(value): return value
def number(value): return float(value)
def wrap(value): return {"value": value}
def load(line): return json.loads(line)
def size(value): return len(value)
async def coroutine(line): return line
def generator(line): yield line
async def both(line): yield line
def lazy(line): return (c for c in line)
def later(line): return coroutine(line)
def mapped(line): return map(str.upper, line)
def two(a, b): return a
def none(): return 1
def optional(line, other=1): return line
class Row:
    def __init__(self, line): self.line = line
class Shown(Row):
    def __repr__(self): return f"Shown({self.line})"
class Awaited:
    async def __call__(self, line): return line
awaited = Awaited()
partial = functools.partial(coroutine)
def cancelled(line): raise asyncio.CancelledError("not me")
def fail(line): raise ValueError(line * 3)
def wrapped(line): return line
wrapped.__wrapped__ = two
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with the functions."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "in").write_bytes(b"a\nb\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, stdin: bytes = b"", **options: Any) -> tuple[int, bytes, str]:
    """(exit status, stdout, stderr) of ``forkmill ARGUMENTS``."""
    ran = subprocess.run(
        [*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, timeout=50, **options
    )
    errors = ran.stderr.decode()
    assert "Traceback" not in errors, errors
    return ran.returncode, ran.stdout, errors


def shell(script: str, **options: Any) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a shell's script, in which `forkmill` is the command."""
    command = " ".join(COMMAND)
    ran = subprocess.run(
        ["sh", "-c", f'forkmill() {{ {command} "$@"; }}; {script}'],
        capture_output=True,
        text=True,
        timeout=50,
        **options,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.returncode, ran.stdout, ran.stderr


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def taken(paths: list[Path | str], kind: str, want: int = 100) -> tuple[bytes, str]:
    """All blocks of some files, put together, and what ended them early."""
    blocks = Blocks([str(path) for path in paths], records.kind(kind))
    data = b""
    with contextlib.closing(blocks):
        while not blocks.ended:
            block = blocks.take(want)
            if block is not None:
                data += block.data
                continue
            try:
                blocks.fill()
            except InputError as error:
                return data, str(error)
    return data, ""


# --------------------------------------------------------------- CSV, as the csv module has it

# tests/property/test_csv_records.py has the differential test.


@pytest.mark.parametrize(
    ("text", "rows", "bad"),
    [
        (b'a,b\n1,5" disk\n2,"m\nn"\n3,z\n', [["1", '5" disk'], ["2", "m\nn"], ["3", "z"]], 0),
        (b'a,5"b\n1,x\n2,"m\nn"\n', [["1", "x"], ["2", "m\nn"]], 0),
        (b"a,b\n1,x\ry\n2,z\n", [["1", "x"], ["2", "z"]], 1),
        (b"a,b\r1,x\r2,y\r", [["1", "x"], ["2", "y"]], 0),
        (b'a,b\n1,"x"y"z\n2,"m\n""n"\n', [["1", 'xy"z'], ["2", 'm\n"n']], 0),
        (b'\xef\xbb\xbf"a","b"\n1,"x\ny"\n', [["1", "x\ny"]], 0),
        (b"a,b\n1,\0\n", [["1", "\0"]], 0),
    ],
)
@pytest.mark.parametrize("times", [1, 400])
def test_csv_rows_are_those_of_the_csv_module(
    here: Path, text: bytes, rows: list[list[str]], bad: int, times: int
) -> None:
    head, end, body = text.partition(b"\r" if b"\n" not in text else b"\n")
    (here / "t.csv").write_bytes(head + end + body * times)
    arguments = ["map", "json:dumps", "t.csv", "--in", "csv", "--on-error", "bad", "-o", "out"]
    assert forkmill.cli.main([*arguments, "-j", "2"]) == (1 if bad else 0)
    found = [list(json.loads(line).values()) for line in lines(here / "out")]
    assert found == rows * times
    assert len(lines(here / "bad")) == bad * times


# ------------------------------------------------------------------------ damaged files


def pack_zstd(data: bytes) -> bytes:
    zstd = pytest.importorskip(inputs._ZSTD)
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": pack_zstd,
}


def damages(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """What may have become of a packed file."""
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    yield "cut at half", whole[: len(whole) // 2]
    yield "cut near the end", whole[: len(whole) * 9 // 10]
    yield "without a trailer", whole[:-4]
    yield "wrong checksum", whole[:-8] + bytes(8)
    yield "garbage after it", whole + b"GARBAGE"
    yield "a bit flipped", bytes(flipped)
    yield "second member cut", whole + whole[: len(whole) // 3]
    yield "empty", b""


def to_be_had(suffix: str, data: bytes) -> bytes:
    """What comes before the damage: bytes in, one by one, bytes out, one by one."""
    form = packed.by_name(f"x.{suffix}")
    make, errors = form.library(inputs._ZSTD)
    output = b""
    one = make()
    with contextlib.suppress(*errors):
        for number in range(len(data)):
            piece = data[number : number + 1]
            if one.eof:
                one = make()
            while True:
                got = one.decompress(piece, 1)
                output, piece = output + got, b""
                if not got and (one.eof or one.needs_input):
                    break
                if one.eof:
                    break
    return output


@pytest.mark.parametrize("suffix", list(PACKERS))
def test_all_that_comes_before_the_damage_is_taken_whatever_the_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    dice = random.Random(1)
    text = b"".join(b"%d\n" % dice.randrange(10**9) for _ in range(1500))
    for number, (what, data) in enumerate(damages(PACKERS[suffix](text))):
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(data)
        had = to_be_had(suffix, data)
        for chunk, read in [(1 << 16, 1 << 20), (100, 64), (7, 1000)]:
            monkeypatch.setattr(packed, "_CHUNK", chunk)
            monkeypatch.setattr(inputs, "_READ", read)
            for kind in ("lines", "bytes:7"):
                whole = len(had) // 7 * 7 if kind != "lines" else had.rfind(b"\n") + 1
                got, error = taken([path], kind)
                assert got == had[:whole], (what, chunk, len(got), len(had))
                assert f"{path}:" in error and "byte " in error, what
            # A pipe cannot be read again.
            reader, writer = os.pipe()
            with subprocess.Popen(["cat", str(path)], stdout=writer):
                os.close(writer)
                got, error = taken([f"/dev/fd/{reader}"], "lines")
            os.close(reader)
            assert got == had[: had.rfind(b"\n") + 1], (what, chunk, "by a pipe")
            assert "byte " in error or not data


def test_whole_files_are_unpacked_by_their_begin_and_by_their_name(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"".join(b"%d\n" % i for i in range(5000))
    for suffix, pack in PACKERS.items():
        whole = pack(text[:10]) + pack(text[10:])
        for name in (f"a.{suffix}", f"A.{suffix.upper()}", f"plain_{suffix}"):
            (here / name).write_bytes(whole)
            assert taken([here / name], "lines") == (text, "")
        # Its bytes are asked for, and its name does not say that they are packed.
        assert taken([here / f"plain_{suffix}"], "bytes:7") == (whole, "")
        with (here / f"a.{suffix}").open("rb") as file:
            ran = subprocess.run(
                [*COMMAND, "map", "functions:identity"], stdin=file, capture_output=True, timeout=50
            )
        assert ran.stdout == text
    (here / "b.gz").write_bytes(gzip.compress(text) + bytes(1000))  # padded, as tapes are
    assert taken([here / "b.gz"], "lines") == (text, "")
    (here / "c.gz").write_bytes(text)
    got, error = taken([here / "c.gz"], "lines")
    assert (got, "this gzip file is damaged at byte" in error) == (b"", True)
    (here / "BZh9").write_bytes(b"BZh9 is how it begins\n")
    assert taken([here / "BZh9"], "lines")[0] == b"BZh9 is how it begins\n"


@pytest.mark.parametrize("extra", [[], ["-j", "1"], ["--unordered"], ["--in", "bytes:7"]])
def test_a_damaged_file_gives_the_same_each_time_and_a_status(here: Path, extra: list[str]) -> None:
    text = b"".join(b"%d\n" % i for i in range(60_000))
    data = gzip.compress(text)[:-8]
    (here / "v.gz").write_bytes(data)
    for _ in range(2):
        code, out, errors = run("map", "functions:size", "v.gz", *extra)
        whole = len(text) // 7 if "bytes:7" in extra else text.count(b"\n")
        assert (code, out.count(b"\n")) == (1, whole)
        assert f"v.gz:{whole + 1}: this gzip file is damaged at byte {len(data):,}:" in errors


# ----------------------------------------------------------------- records that are too long


@pytest.mark.parametrize("extra", [[], ["-j", "1"], ["--unordered"]])
@pytest.mark.parametrize("kind", ["lines", "json", "csv"])
def test_a_record_that_is_too_long_is_named_and_the_others_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str], kind: str
) -> None:
    monkeypatch.setattr(inputs, "MAX_RECORD", 1000)
    monkeypatch.setattr(inputs, "_READ", 64)
    long = b'"' + b"long\n" * 400 + b'"' if kind == "csv" else b'"' + b"x" * 3000 + b'"'
    given = [b"1", b"22", long, b"333", b'"' + b"y" * 998 + b'"', b'"' + b"z" * 900 + b'"', b"4"]
    head = [b"name"] if kind == "csv" else []
    (here / "a").write_bytes(b"\n".join([*head, *given]) + b"\n")
    arguments = ["map", "functions:identity", "a", "--in", kind, "-o", "out", *extra]
    assert forkmill.cli.main([*arguments, "--on-error", "bad"]) == 1
    out = lines(here / "out")
    assert len(out) == 5 and not any("long" in line or "yyy" in line for line in out)
    bad = sorted(map(json.loads, lines(here / "bad")), key=lambda row: row["line"])
    after = 6 + len(head) if kind != "csv" else 407
    assert [(row["line"], row["type"]) for row in bad] == [
        (3 + len(head), "TooLong"), (after - 1, "TooLong")
    ]  # fmt: skip
    assert all("more than" in row["error"] and row["record"] is None for row in bad)
    assert forkmill.cli.main(arguments) == 1  # the first one stops it, after the results before it
    found = len(lines(here / "out"))
    assert found == 2 or (found > 2 and "--unordered" in extra)


def test_a_csv_file_whose_header_is_too_long_has_no_rows(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inputs, "MAX_RECORD", 1000)
    monkeypatch.setattr(inputs, "_READ", 64)
    (here / "a").write_text('"open' + "x\n" * 5000)
    arguments = ["map", "functions:identity", "a", "--in", "csv", "--on-error", "skip"]
    assert forkmill.cli.main(arguments) == 1
    assert 'a:1: the file begins with a record of more than 0 MB; is a quote (") open?' in (
        " ".join(capsys.readouterr().err.split())
    )


def test_fields_beyond_the_csv_modules_limit_are_no_failure(here: Path) -> None:
    """131,072 characters, of a header too."""
    (here / "a").write_text("h" * 200_000 + ',b\n1,"' + "\n" * 300_000 + '"\n')
    assert forkmill.cli.main(["map", "functions:size", "a", "--in", "csv", "-o", "out"]) == 0
    assert (here / "out").read_text() == "2\n"


# -------------------------------------------------------------------------------- outputs


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("forkmill map builtins:int in --on-error /dev/full", 1, "cannot write /dev/full: no spa"),
        ("forkmill map functions:upper in --on-error /dev/full -o out", 0, ""),
        ("forkmill map functions:upper in -o /dev/full", 1, "cannot write /dev/full: no space"),
        ("forkmill map functions:upper in > /dev/full", 1, "stopped at in:1: 0 records done"),
        ("forkmill map functions:upper in >&-", 1, "cannot write the results: bad file"),
        ("forkmill map functions:upper in >/dev/null 2>&-", 0, ""),
        ("forkmill map functions:upper - <&-", 1, "<stdin>:1: bad file descriptor"),
        ("forkmill map functions:upper - <&- -o out", 1, "<stdin>:1: bad file descriptor"),
        ("forkmill run pipelines:quick --json > /dev/full", 1, "cannot write: no space left"),
        ("forkmill run pipelines:quick --json >&-", 1, "cannot write: bad file descriptor"),
        ("forkmill run pipelines:quick > /dev/full", 1, "cannot write the results: no space"),
        ("forkmill run pipelines:quick --plan > /dev/full 2>/dev/full", 1, ""),
        ("forkmill run pipelines:nan", 1, "output 1 cannot be printed: the result has a NaN"),
        ("forkmill --help > /dev/full", 1, "cannot write: no space left"),
        ("forkmill doctor --json >&-", 1, "cannot write: bad file descriptor"),
    ],
)
def test_a_disk_that_is_full_and_a_stream_that_is_closed(
    here: Path, script: str, status: int, message: str
) -> None:
    (here / "pipelines.py").write_text(
        "import forkmill as fm\n"
        "def quick(): return fm.Pipeline().source(range(9))\n"
        "def nan(): return fm.Pipeline().source([float('nan')])\n"
    )
    code, _, errors = shell(script)
    assert (code, message in errors) == (status, True), errors


@pytest.mark.parametrize(
    ("output", "failures"),
    [
        ("same", "same"), ("same", "./same"), ("keep", "symbolic"), ("hard", "keep"),
        ("symbolic", "hard"), ("new", "../{}/new"), ("-", "/dev/stdout"), ("-", "/dev/fd/1"),
        ("/dev/stdout", "-"), ("-", "keep"),
    ],
)  # fmt: skip
def test_two_outputs_to_one_place_are_refused_before_anything_is_opened(
    here: Path, output: str, failures: str
) -> None:
    (here / "keep").write_text("keep\n")
    (here / "symbolic").symlink_to("keep")
    (here / "hard").hardlink_to(here / "keep")
    before = sorted(os.listdir(here))
    failures = failures.format(here.name)
    code, _, errors = shell(
        f"forkmill map builtins:int in -o {output} --on-error {failures} >> keep"
    )
    assert (code, "where the results go; name another file" in errors) == (2, True), errors
    assert sorted(set(os.listdir(here)) - {"__pycache__"}) == before
    assert (here / "keep").read_text() == "keep\n"


@pytest.mark.parametrize(
    "script",
    [
        "forkmill map builtins:int in -o in",
        "forkmill map builtins:int in -o hard",
        "forkmill map builtins:int in >> in",
        "forkmill map builtins:int < in -o in",
        "forkmill map builtins:int in --on-error hard",
        "forkmill map builtins:int < in --on-error /dev/stdin",
    ],
)
def test_an_input_is_never_written_to(here: Path, script: str) -> None:
    (here / "hard").hardlink_to(here / "in")
    code, _, errors = shell(script)
    assert (code, "is read as well" in errors) == (2, True), errors
    assert (here / "in").read_bytes() == b"a\nb\n"


def test_a_file_is_emptied_only_when_all_can_be_opened(here: Path) -> None:
    (here / "out").write_text("keep\n")
    for failures in ("no/such/folder", "."):
        arguments = ["map", "functions:upper", "in", "-o", "out", "--on-error", failures]
        assert forkmill.cli.main(arguments) == 2
        assert (here / "out").read_text() == "keep\n"
    assert forkmill.cli.main(["map", "functions:upper", "in", "-o", "out"]) == 0
    assert (here / "out").read_text() == "A\nB\n"


def test_what_is_redirected_is_added_to_not_written_over(here: Path) -> None:
    """/dev/stdout and /dev/stderr are the streams themselves, with their position."""
    code, _, _ = shell(
        "(echo one; forkmill map functions:upper in -o /dev/stdout; echo two) > out;"
        "(echo one >&2; forkmill map builtins:int in --on-error /dev/stderr; echo two >&2) 2> bad"
    )
    assert code == 0
    assert (here / "out").read_text() == "one\nA\nB\ntwo\n"
    bad = lines(here / "bad")
    assert (bad[0], bad[-1], len(bad)) == ("one", "two", 5)


def test_a_failure_is_written_whole(here: Path) -> None:
    (here / "a").write_bytes(b"\xff" + b"x" * 30_000 + b"\n")
    assert forkmill.cli.main(["map", "functions:fail", "a", "--on-error", "bad"]) == 1
    row = json.loads((here / "bad").read_bytes())
    assert row["record"] == "\udcff" + "x" * 30_000
    assert row["error"] == row["record"] * 3


def test_readers_that_have_enough_are_no_failure(here: Path) -> None:
    (here / "a").write_text("some line\n" * 200_000)
    script = "(forkmill map functions:upper a; echo $? >&2) | head -n 1"
    assert shell(script) == (0, "SOME LINE\n", "0\n")
    assert shell("(forkmill doctor; echo $? >&2) | true")[2] == "0\n"


# -------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("start", ["command", "module"])
def test_modules_of_the_current_folder_are_nobodys_but_the_users(here: Path, start: str) -> None:
    command = [str(Path(sys.executable).with_name("forkmill"))] if start == "command" else COMMAND
    if not Path(command[0]).exists():
        pytest.skip("the command is not installed here")
    names = "csv select json socket signal queue inspect typing threading pickle gzip struct ast"
    for name in names.split():
        (here / f"{name}.py").write_text(f"raise RuntimeError('the user has a {name}.py')")
    (here / "rich.py").write_text("raise RuntimeError('and a rich.py')")
    (here / "a").write_bytes(b"n\n1\n")

    def ran(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=50, cwd=here
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    assert ran("map", "json:dumps", "a", "--in", "csv") == (0, '{"n": "1"}\n', "")
    assert ran("doctor")[0] == 0
    code, _, errors = ran("map", "csv:parse", "a")
    assert (code, "the user has a csv.py" in errors) == (2, True)
    # His own are found by their names, and the others under the same one go on.
    (here / "csv.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1,), daemon=True).start()\n"  # no fork
        "def reader(line): return helper(line)\n"
        "def helper(line): return 'mine ' + line\n"
    )
    (here / "select.py").unlink()
    (here / "select").mkdir()
    (here / "select" / "__init__.py").write_text("from .inner import reader")
    (here / "select" / "inner.py").write_text("def reader(line): return 'inner ' + line")
    assert ran("map", "csv:reader", "a") == (0, "mine n\nmine 1\n", "")
    assert ran("map", "select:reader", "a") == (0, "inner n\ninner 1\n", "")
    assert ran("map", "select.inner:reader", "a") == (0, "inner n\ninner 1\n", "")


def test_a_folder_that_was_removed(here: Path) -> None:
    gone = "mkdir gone; cd gone; rmdir ../gone; export PYTHONPATH=$OLDPWD; "
    code, out, errors = shell(gone + "echo 1 | forkmill map functions:load; forkmill doctor")
    assert (code, out.startswith("1\n"), errors) == (0, True, "")
    code, _, errors = shell(gone + "echo 1 | forkmill map nowhere:f")
    assert (code, "there is no module 'nowhere'" in errors, "removed" in errors) == (2, True, True)
    code, _, errors = shell(gone + "echo 1 | forkmill map functions:load -o out")
    assert (code, "No such file" in errors) == (2, True)


# ---------------------------------------------------------------------------------- texts


def test_bytes_are_exact_whatever_else_is_in_their_block(here: Path) -> None:
    given = [b'"caf\xe9"', b'"\\ud800"', b'"\\udcff"', b'"\xc3\xa9"', b'"\xe9\\ud800"']
    (here / "a").write_bytes(b"\n".join(given))
    assert forkmill.cli.main(["map", "functions:load", "a", "-o", "out", "-j", "1"]) == 0
    assert (here / "out").read_bytes().splitlines() == [
        b"caf\xe9", b"\\ud800", b"\xff", b"\xc3\xa9", b"\xe9\\ud800"
    ]  # fmt: skip
    assert forkmill.cli.main(["map", "functions:wrap", "a", "--in", "json", "-o", "out"]) == 0
    values = [json.loads(line)["value"] for line in (here / "out").read_bytes().splitlines()]
    assert values == ["caf\udce9", "\ud800", "\udcff", "é", "\udce9\ud800"]


@pytest.mark.parametrize("kind", ["lines", "json", "csv"])
def test_the_mark_of_utf8_is_no_part_of_the_text(here: Path, kind: str) -> None:
    for text in (b"\xef\xbb\xbf1\n2\n", b"\xef\xbb\xbf", b"\xef\xbb", b"\xef\n", b""):
        (here / "a").write_bytes(text)
        data, error = taken([here / "a", here / "a"], kind)
        rest = text.removeprefix(b"\xef\xbb\xbf")
        assert (data, error) == (
            (rest if kind != "csv" else rest[2:]) * 2 if rest else b"",
            "",
        ) or (kind == "csv" and b"\n" not in rest[:-1])
    (here / "a").write_bytes("1\n2\n".encode("utf-16"))
    assert "this text is UTF-16" in taken([here / "a"], kind)[1]
    (here / "a").write_bytes(b"\xff\xfe 1\n")
    assert taken([here / "a"], "lines") == (b"\xff\xfe 1\n", "")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_json_does_not_know_is_a_failure(
    here: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    (here / "a").write_text(f"1\n{value}\n")
    assert forkmill.cli.main(["map", "functions:number", "a", "-o", "out"]) == 1
    assert (here / "out").read_text() == "1.0\n"
    assert "a:2: ValueError: the result has a NaN or an Infinity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "status", "message"),
    [
        ("functions:coroutine", 2, "is an async function"),
        ("functions:partial", 2, "is an async function"),
        ("functions:awaited", 2, "is an async function"),
        ("functions:generator", 2, "is a generator function"),
        ("functions:both", 2, "is a generator function"),
        ("functions:two", 2, "(a, b) cannot be called with one argument, the record"),
        ("functions:none", 2, "() cannot be called with one argument"),
        ("functions:lazy", 1, "in:1: TypeError: the result is an iterator (generator)"),
        ("functions:later", 1, "in:1: TypeError: the result is something to be awaited"),
        ("functions:mapped", 1, "in:1: TypeError: the result is an iterator (map)"),
        ("functions:Row", 1, "in:1: TypeError: the result is a Row, which has no text"),
        ("functions:cancelled", 1, "in:1: CancelledError: not me"),
        ("functions:Shown", 0, ""),
        ("functions:optional", 0, ""),
        ("functions:wrapped", 0, ""),
        ("functions.py:upper", 2, "did you mean functions:upper?"),
        ("./functions.py:upper", 2, "did you mean functions:upper?"),
        ("functions.py", 2, "did you mean functions:NAME?"),
        ("sub/functions:upper", 2, "did you mean sub.functions:upper?"),
        ("/some/where/functions.py:upper", 2, "PYTHONPATH=/some/where, and name it functions:u"),
        ("fnuctions:upper", 2, "did you mean 'functions'?"),
        ("functions:uper", 2, "functions has no 'uper'; did you mean 'upper'?"),
        ("jsno:loads", 2, "did you mean 'json'?"),
        ("json.decodr:x", 2, "did you mean 'json.decoder'?"),
        ("https://a.b/c.py:f", 2, "is a URL"),
    ],
)
def test_a_function_that_gives_no_values_is_refused_by_name(
    here: Path, capsys: pytest.CaptureFixture[str], target: str, status: int, message: str
) -> None:
    for name in ("functions", "functions_of_the_current_folder"):
        sys.modules.pop(name, None)
    before = list(sys.path)
    try:
        assert forkmill.cli.main(["map", target, "in", "-o", "out", "-j", "1"]) == status
    finally:
        sys.path[:] = before
        sys.modules.pop("functions", None)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_url_is_no_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forkmill.cli.main(["map", "json:loads", "https://a.b/c"]) == 2
    assert "curl -sS https://a.b/c | forkmill map" in " ".join(capsys.readouterr().err.split())
    assert forkmill.cli.main(["map", "json:loads", "."]) == 2
    assert "is a directory" in capsys.readouterr().err


# ------------------------------------------------------------------------------ terminals


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
@pytest.mark.parametrize("command", ["run", "map"])
def test_progress_is_shown_where_results_are(here: Path, command: str) -> None:
    (here / "pipelines.py").write_text(
        "import time\nimport forkmill as fm\n"
        "def slow(x): time.sleep(0.01); return x\n"
        "def pipe(): return fm.Pipeline().source(range(100)).map(slow, context='thread:2')\n"
    )
    (here / "a").write_text("".join(f"{i}\n" for i in range(100)))
    arguments = {
        "run": ["run", "pipelines:pipe"], "map": ["map", "pipelines:slow", "a", "-j", "1"]
    }[command]  # fmt: skip
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments, "--progress"],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's answer when the other end is closed
            while piece := os.read(ours, 4096):
                shown += piece
        assert process.wait(20) == 0
    os.close(ours)
    text = shown.decode()
    assert text.count("slow  " if command == "run" else " records") >= 2
    ends = [line.rpartition("\x1b[2K")[2] for line in text.splitlines()]
    assert sorted(int(line) for line in ends if line.isdecimal()) == list(range(100))

"""`forkmill map`: a parallel filter over the records of files and of standard input."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import forkmill.cli
from conftest import StartScript
from forkmill.cli import filter as filter_module
from forkmill.cli.inputs import Block, Blocks, InputError
from forkmill.cli.records import Kind, kind

COMMAND = [sys.executable, "-W", "error", "-m", "forkmill", "map"]
FUNCTIONS = """
import json, os, signal, sys

def upper(line): return line.upper()
def identity(value): return value
def poison(line):
    if line in ("13", "14", "500"):
        os.kill(os.getpid(), signal.SIGKILL)
    return line
def pick(row): return [row["name"], row["text"]]
def leave(line): sys.exit(3)
def two_lines(line): return line + "\\n\\r" + line
def odd(line): return {"set": {1}, "text": line}
def lone(line): return "\\ud800" + line
def wait(line):
    print("running", flush=True) if line == "100" else None
    signal.pause() if line == "100" else None
    return line
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with the functions."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, stdin: bytes = b"", **options: object) -> tuple[int, bytes, str]:
    """(exit status, stdout, stderr) of ``forkmill map ARGUMENTS``."""
    ran = subprocess.run(
        [*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, timeout=50, **options
    )
    errors = ran.stderr.decode()
    assert "Traceback" not in errors
    return ran.returncode, ran.stdout, errors


# -------------------------------------------------------------------- what comes out


def test_a_string_prints_as_it_is_else_json_else_repr_with_line_breaks_escaped(here: Path) -> None:
    lines = b'{"a": [1, null]}\n"text"\n7\n1.5\n'
    assert run("json:loads", stdin=lines)[:2] == (0, b'{"a": [1, null]}\ntext\n7\n1.5\n')
    assert run("functions:odd", stdin=b"x")[:2] == (0, b"{'set': {1}, 'text': 'x'}\n")
    assert run("functions:two_lines", stdin=b"x")[:2] == (0, b"x\\n\\rx\n")
    assert run("functions:lone", stdin=b"x")[:2] == (0, b"\\ud800x\n")


def test_bytes_that_are_no_utf8_come_out_as_they_went_in(here: Path) -> None:
    assert run("functions:identity", stdin=b"\xff\xfe a\r\n\n\xe4")[:2] == (
        0,
        b"\xff\xfe a\n\n\xe4\n",
    )


def test_results_come_in_the_order_of_the_input_from_all_files(here: Path) -> None:
    expected = b""
    for name in ("a", "b"):
        text = "".join(f"{name}{i}\n" for i in range(50_000))
        (here / name).write_text(text)
        expected += text.upper().encode()
    (here / "empty").touch()
    code, out, _ = run("functions:upper", "a", "empty", "-", "b", "-j", 2, stdin=b"")
    assert (code, out) == (0, expected)
    code, out, _ = run("functions:upper", "a", "b", "-j", 2, "--unordered", "-o", "out")
    assert (code, out) == (0, b"")
    assert sorted((here / "out").read_bytes().split()) == sorted(expected.split())


def test_packed_files_are_unpacked_by_their_suffix(here: Path) -> None:
    text = b"".join(b"%d\n" % i for i in range(100_000))
    (here / "a.gz").write_bytes(gzip.compress(text[:1000], 1) + gzip.compress(text[1000:], 1))
    assert run("functions:identity", "a.gz")[:2] == (0, text)
    (here / "cut.gz").write_bytes(gzip.compress(text)[:-100])
    code, out, errors = run("functions:identity", "cut.gz")
    assert code == 1
    assert text.startswith(out) and out
    assert "cut.gz:" in errors and "end-of-stream" in errors


def test_zstd(here: Path) -> None:
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    zstd = pytest.importorskip(module)
    text = b"".join(b"%d\n" % i for i in range(100_000))
    (here / "a.zst").write_bytes(zstd.compress(text[:1000]) + zstd.compress(text[1000:]))
    assert run("functions:identity", "a.zst")[:2] == (0, text)
    (here / "cut.zst").write_bytes(zstd.compress(text)[:-10])
    code, _, errors = run("functions:identity", "cut.zst")
    assert (code, "cut.zst:" in errors) == (1, True)


def test_zstd_without_its_library_names_the_extra(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "a.zst").touch()
    monkeypatch.setattr("forkmill.cli.inputs._ZSTD", "surely_not_installed")
    assert forkmill.cli.main(["map", "json:loads", "a.zst"]) == 2
    assert "pip install 'forkmill[zstd]'" in capsys.readouterr().err


def test_csv_rows_are_dicts_by_the_first_row(here: Path) -> None:
    rows = [(f"n{i}", 'a "quoted",\nbroken line' if i % 3 == 0 else "plain") for i in range(3000)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("name", "text"), *rows])
    (here / "a.csv").write_text("\ufeff" + text.getvalue(), newline="")
    code, out, _ = run("functions:pick", "a.csv", "--in", "csv", "-j", 2)
    assert code == 0
    assert [tuple(json.loads(line)) for line in out.splitlines()] == rows
    bad = b'name,text\n1,2\n"x\ny",2\n1,2,3\n'
    code, out, errors = run("functions:pick", "--in", "csv", "--on-error", "skip", stdin=bad)
    assert (code, out.count(b"\n")) == (1, 2)
    assert "<stdin>:5: ValueError: 3 fields, but the header has 2" in errors


def test_records_of_json_and_of_bytes(here: Path) -> None:
    given = b'{"a": 1}\n\n[1]\n'
    assert run("builtins:len", "--in", "json", stdin=given)[:2] == (0, b"1\n1\n")
    out = run("functions:identity", "--in", "bytes:3", stdin=b"abcdefgh")
    assert out[:2] == (0, b"b'abc'\nb'def'\nb'gh'\n")


# ----------------------------------------------------------------------- failures


def test_the_first_failure_stops_it_and_has_its_file_and_line(here: Path) -> None:
    (here / "a").write_text("".join(f"{i}\n" for i in range(2000)) + "x\n4\n")
    code, out, errors = run("builtins:int", "a")
    assert code == 1
    assert out == b"".join(b"%d\n" % i for i in range(2000))
    assert "a:2001: ValueError: invalid literal" in errors


def test_skipped_failures_are_told_and_counted(here: Path) -> None:
    code, out, errors = run("builtins:int", "--on-error", "skip", stdin=b"1\nx\n3\n" + b"y\n" * 50)
    assert (code, out) == (1, b"1\n3\n")
    assert "<stdin>:2: ValueError" in errors
    assert "51 of 53 records failed" in errors
    assert errors.count("ValueError") == 10


def test_failures_in_a_file_have_what_is_needed_to_try_again(here: Path) -> None:
    code, out, errors = run("json:loads", "--on-error", "bad", stdin=b"1\n{\n3\n")
    assert (code, out) == (1, b"1\n3\n")
    [row] = map(json.loads, (here / "bad").read_text().splitlines())
    assert (row["file"], row["line"], row["record"]) == ("<stdin>", 2, "{")
    assert row["type"] == "JSONDecodeError"
    assert "json/decoder.py" in row["traceback"]
    assert "1 of 3 records failed" in errors


def test_a_worker_that_dies_costs_the_record_that_killed_it(here: Path) -> None:
    lines = b"".join(b"%d\n" % i for i in range(2000))
    code, out, errors = run("functions:poison", "--on-error", "skip", "-j", 2, stdin=lines)
    expected = [b"%d" % i for i in range(2000) if i not in (13, 14, 500)]
    assert (code, out.split()) == (1, expected)
    for line in (14, 15, 501):
        assert f"<stdin>:{line}: WorkerDied" in errors
    assert "3 of 2,000 records failed" in errors


def test_a_function_that_exits_fails_its_record(here: Path) -> None:
    code, out, errors = run("functions:leave", stdin=b"1\n")
    assert (code, out) == (1, b"")
    assert "<stdin>:1: SystemExit: 3" in errors


# ------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["json"], "'json' is not MODULE:NAME, such as json:loads"),
        (["json:laods"], "json has no 'laods'; did you mean 'loads'?"),
        (["nowhere.at.all:f"], "there is no module 'nowhere'"),
        (["json:__doc__"], "cannot be called"),
        (["broken:f"], "broken cannot be imported: ZeroDivisionError"),
        (["json:loads", "missing"], "'missing' does not exist"),
        (["json:loads", "--in", "xml"], "'xml' is none of lines, json, csv, bytes:N"),
        (["json:loads", "--in", "bytes:0"], "N from 1"),
        (["json:loads", "-j", "0"], "0 is not in the range"),
        (["json:loads", "broken.py", "-o", "broken.py"], "is read as well"),
        (["json:loads", "broken.py", "--on-error", "./broken.py"], "is read as well"),
        (["json:loads", "-o", "no/such/folder"], "No such file"),
        (["json:loads", "--on-error", "no/such/folder"], "neither stop nor skip"),
        (["json:loads", "--unodered"], "No such option"),
    ],
)
def test_misuse_names_the_argument_and_what_is_right(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (here / "broken.py").write_text("1 / 0\n")
    assert forkmill.cli.main(["map", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in " ".join(shown.err.split())


# --------------------------------------------------------------------------- ends


def test_a_reader_that_has_enough_ends_it_quietly(here: Path) -> None:
    (here / "a").write_text("some line\n" * 1_000_000)
    with subprocess.Popen(
        [*COMMAND, "functions:upper", "a"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"SOME LINE\n"
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


def test_ctrl_c_says_where_it_stopped_and_leaves_nothing(
    here: Path, start_script: StartScript
) -> None:
    lines = "".join(f"{i}\n" for i in range(1000))
    (here / "a").write_text(lines)
    script = start_script(
        f"import os, sys\nos.chdir({str(here)!r})\nfrom forkmill.cli import main\n"
        "sys.exit(main(['map', 'functions:wait', 'a', '-j', '2']))"
    )
    script.wait_for("running")
    script.process.send_signal(signal.SIGINT)
    assert script.wait() == 130  # and nothing of its session is left
    done = int(script.stderr.partition(" records done")[0].rpartition(" ")[2])
    # Everything before the place was written, and nothing after it.
    assert f"stopped at a:{done + 1}:" in script.stderr
    assert script.stdout.replace("running\n", "") == "".join(f"{i}\n" for i in range(done))
    assert done <= 100
    assert "Traceback" not in script.stderr


def test_a_result_does_not_wait_for_more_input(here: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "functions:upper", "-j", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        for word in (b"one\n", b"two\n", b"three\n"):
            process.stdin.write(word)
            process.stdin.flush()
            assert process.stdout.readline() == word.upper()
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_depend_on_the_size_of_the_input(here: Path) -> None:
    """A million JSON lines through a pipe; the parent's peak is that of a hundred times fewer."""
    code = (
        "import sys, resource; from forkmill.cli import main; code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    peaks = []
    for count in (10_000, 1_000_000):
        with subprocess.Popen(
            [sys.executable, "-c", code, "map", "json:loads", "-j", "2"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            writer = subprocess.Popen(
                [sys.executable, "-c", f"for i in range({count}): print('{{\"n\": %d}}' % i)"],
                stdout=process.stdin,
            )
            process.stdin.close()
            seen = sum(piece.count(b"\n") for piece in iter(lambda: process.stdout.read1(), b""))
            assert (seen, process.wait(40), writer.wait(10)) == (count, 0, 0)
            peaks.append(int(process.stderr.read()) / 1024)
    assert peaks[1] - peaks[0] < 20, f"{peaks} MB"


# -------------------------------------------------------------------------- blocks


def blocks_of(paths: list[Path], what: Kind, want: int) -> Iterator[Block]:
    with contextlib.closing(Blocks([str(path) for path in paths], what)) as blocks:
        while not blocks.ended:
            block = blocks.take(want)
            if block is None:
                blocks.fill()
            else:
                yield block


@pytest.mark.parametrize("want", [1, 7, 100, 10_000])
@pytest.mark.parametrize("name", ["lines", "csv", "bytes:5"])
def test_blocks_hold_every_byte_once_and_know_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, want: int, name: str
) -> None:
    monkeypatch.setattr("forkmill.cli.inputs._READ", 64)
    texts = [b"", b"\n", b'h,i\na,"b\n\nc"\n\nd,e', b"x,y\n" * 100, b'q,"open\nfor ever']
    what = kind(name)
    for number, text in enumerate(texts):
        path = tmp_path / str(number)
        path.write_bytes(text)
        seen = text[: what.cut(text, 1) or len(text)] if name == "csv" else b""  # the header
        line = 1 + seen.count(b"\n")
        for block in blocks_of([path], what, want):
            assert block.first == line
            assert block.data.count(b'"') % 2 == 0 or name != "csv"
            seen += block.data
            line += what.lines(block.data, len(block.data))
        assert seen == text


def test_a_record_without_end_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkmill.cli.inputs.MAX_RECORD", 1000)
    monkeypatch.setattr("forkmill.cli.inputs._READ", 64)
    path = tmp_path / "a"
    path.write_bytes(b"one\n" + b"x" * 5000)
    with pytest.raises(InputError, match=r"a:2: a record of more than .*--in bytes:N"):
        list(blocks_of([path], Kind("lines"), 1))
    assert len(list(blocks_of([path], Kind("bytes", 100), 1))) == 51


def test_blocks_are_sized_by_time(tmp_path: Path) -> None:
    run = filter_module.Filter(len, Kind("lines"), [], filter_module.Output(1))
    assert run._tuned(10, 10.0) == 1, "slow functions get single records"
    assert run._tuned(10, 0.0) == 80, "and no block is more than a few times the one before"
    assert run._tuned(1 << 20, 1e-6) == filter_module.MAX_BLOCK
    assert run._tuned(100_000, 0.02) == 50_000


# ------------------------------------------------------------------------ progress


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_progress_is_shown_on_a_terminal_only(here: Path) -> None:
    (here / "a").write_text("x\n" * 100_000)
    code, out, errors = run("functions:upper", "a", "--progress")
    assert (code, errors) == (0, "")
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*COMMAND, "functions:upper", "a", "--progress", "-o", "out"],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's answer when the other end is closed
            while piece := os.read(ours, 4096):
                shown += piece
        assert process.wait(20) == 0
    os.close(ours)
    assert b"records" in shown
    assert (here / "out").read_bytes() == out

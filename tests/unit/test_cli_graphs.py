"""`forkmill run MODULE:GRAPH`: a graph from the command line."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import forkmill.cli
from conftest import StartScript

GRAPHS = """
import os, time
import forkmill as fm

def score(text, k=1):
    if text == "bad":
        raise ValueError("no such text")
    return len(text) * k

def shout(text):
    return text.upper()

def odd(text):
    return {1, 2}

def where(text):
    return os.getpid()

def pair(a, b):
    return [a, b]

def slow(n):
    time.sleep(0.05)
    return n

graph = fm.Graph([score, shout])
pids = fm.Graph([where])
pairs = fm.Graph([pair])
odds = fm.Graph([odd, shout])
naps = fm.Graph([slow])
here = os.getpid()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "graphs.py").write_text(GRAPHS)
    (tmp_path / "t.jsonl").write_text('"a"\n"bb"\n\n"bad"\n"dddd"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("graphs", None)


def run(capfd: Any, *arguments: object) -> tuple[int, list[Any], str]:
    """(exit status, rows, stderr)"""
    code = forkmill.cli.main(["run", *map(str, arguments)])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, [json.loads(line) for line in out.splitlines()], err


def test_one_run(here: Path, capfd: Any) -> None:
    code, rows, err = run(capfd, "graphs:graph", "--set", "text=hello", "--set", "k=3")
    assert (code, rows, err) == (0, [{"score": 15, "shout": "HELLO"}], "")
    code, rows, _ = run(capfd, "graphs:graph", "--set", "text=a", "--want", "shout")
    assert (code, rows) == (0, [{"shout": "A"}])
    code, rows, err = run(capfd, "graphs:graph", "--set", "text=bad")
    assert (code, rows) == (1, [])
    assert "node score: ValueError: no such text (item: {'text': 'bad'})" in err


def test_a_map_over_a_file(here: Path, capfd: Any) -> None:
    texts = ["one", "two", "three"]
    (here / "lines.txt").write_text("".join(f"{text}\n" for text in texts))
    (here / "n.jsonl.gz").write_bytes(gzip.compress(b"1\n2\n3\n"))
    code, rows, err = run(capfd, "graphs:graph", "--map", "text=lines.txt", "--map", "k=n.jsonl.gz")
    assert (code, err) == (0, "")
    assert rows == [{"score": len(t) * n, "shout": t.upper()} for n, t in enumerate(texts, 1)]
    (here / "rows.csv").write_text("x,y\n1,2\n3,4\n")
    code, rows, _ = run(
        capfd, "graphs:pairs", "--map", "a=rows.csv", "--map", "b=n.jsonl.gz",
        "--map-mode", "product", "--engine", "threaded:2",
    )  # fmt: skip
    expected = [{"x": "1", "y": "2"}, {"x": "3", "y": "4"}]
    assert rows == [{"pair": [a, b]} for a in expected for b in (1, 2, 3)]


def test_what_json_does_not_know_is_written_as_text(here: Path, capfd: Any) -> None:
    _, rows, _ = run(capfd, "graphs:odds", "--set", "text=a")
    assert rows == [{"odd": "{1, 2}", "shout": "A"}]


@pytest.mark.parametrize("how", [["-j", 2], ["--engine", "parallel:2"]])
def test_an_engine(here: Path, capfd: Any, how: list[Any]) -> None:
    code, rows, _ = run(capfd, "graphs:pids", "--map", "text=t.jsonl", *how)
    assert code == 0 and len(rows) == 4
    assert {row["where"] for row in rows}.isdisjoint({os.getpid()})


def test_a_failing_item_stops_or_is_left_out_or_written(here: Path, capfd: Any) -> None:
    job = ["graphs:graph", "--map", "text=t.jsonl"]
    code, rows, err = run(capfd, *job)
    assert (code, [row["score"] for row in rows]) == (1, [1, 2])
    assert "node score: ValueError: no such text (item 2: {'text': 'bad'})" in err
    code, rows, err = run(capfd, *job, "--on-error", "skip")
    assert (code, [row["score"] for row in rows]) == (1, [1, 2, 4])
    assert "(item 2:" in err and "1 of 4 items failed" in err
    code, rows, err = run(capfd, *job, "--on-error", "bad.jsonl", "-o", "out.jsonl")
    assert (code, rows) == (1, [])
    assert err == "forkmill: 1 of 4 items failed\n"
    written = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [row["score"] for row in written] == [1, 2, 4]
    (failure,) = map(json.loads, (here / "bad.jsonl").read_text().splitlines())
    assert failure["index"] == 2 and failure["item"] == {"text": "bad"}
    assert failure["stage"] == "score" and failure["type"] == "ValueError"
    assert "in score" in failure["traceback"]


def test_only_what_failed_runs_again(here: Path, capfd: Any) -> None:
    texts = ["a", "bad", "c", "bad", "e"]
    (here / "u.jsonl").write_text("".join(f'"{text}"\n' for text in texts))
    job = ["graphs:graph", "--map", "text=u.jsonl"]
    assert run(capfd, *job, "--on-error", "bad.jsonl")[0] == 1
    code, rows, _ = run(capfd, *job, "--only-failed", "bad.jsonl", "--want", "shout")
    assert (code, rows) == (0, [{"shout": "BAD"}] * 2)
    code, rows, _ = run(capfd, *job, "--only-failed", "bad.jsonl", "--on-error", "again.jsonl")
    assert (code, rows) == (1, [])
    again = [json.loads(line) for line in (here / "again.jsonl").read_text().splitlines()]
    assert [failure["index"] for failure in again] == [1, 3]  # as in the file of all items
    (here / "u.jsonl").write_text('"a"\n"b"\n"c"\n"d"\n"e"\n')
    code, rows, _ = run(capfd, *job, "--only-failed", "bad.jsonl")
    assert (code, [row["shout"] for row in rows]) == (0, ["B", "D"])
    (here / "ks.jsonl").write_text("1\n2\n")
    product = [*job, "--map", "k=ks.jsonl", "--map-mode", "product"]
    (here / "some.jsonl").write_text('{"index": 3}\n{"index": 8}\n')
    code, rows, _ = run(capfd, *product, "--only-failed", "some.jsonl")
    assert [(row["shout"], row["score"]) for row in rows] == [("B", 2), ("E", 1)]


def test_figures_as_json(here: Path, capfd: Any) -> None:
    job = ["graphs:graph", "--map", "text=t.jsonl", "--json"]
    code, (facts,), _ = run(capfd, *job, "--on-error", "skip")
    assert (code, facts["rows"], facts["failed"], facts["status"]) == (1, 4, 1, "completed")
    assert [failure["index"] for failure in facts["failures"]] == [2]
    code, (facts,), _ = run(capfd, *job)
    assert (code, facts["rows"], facts["status"]) == (1, 2, "failed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["graphs:graph"], "text"),
        (["graphs:graph", "--set", "tex=a"], "did you mean 'text'?"),
        (["graphs:graph", "--set", "text"], "'text' is not NAME=VALUE"),
        (["graphs:graph", "--map", "text"], "'text' is not NAME=FILE"),
        (["graphs:graph", "--map", "text=gone"], "gone: no such file"),
        (["graphs:graph", "--map", "text=t.jsonl", "--engine", "paralel"], "parallel"),
        (["graphs:graph", "--set", "text=a", "--want", "shuot"], "did you mean 'shout'?"),
        (["graphs:graph", "--map", "text=t.jsonl", "-j", "2", "--engine", "async"], "how many"),
        (["graphs:graph", "--set", "text=a", "--only-failed", "t.jsonl"], "there is no --map"),
        (["graphs:graph", "--map", "text=t.jsonl", "--only-failed", "t.jsonl"], "has no index"),
        (["graphs:graph", "--map", "text=t.jsonl", "--on-error", "x", "-o", "x"], "name another"),
        (["graphs:graph", "--map", "text=t.jsonl", "-o", "no/such/x"], "no/such/x"),
        (["builtins:dict", "--map", "a=t.jsonl"], "this is for graphs"),
        (["builtins:dict", "--engine", "async"], "this is for graphs"),
        (["graphs:here"], "is a int"),
    ],
)
def test_mistakes_are_answered(here: Path, capfd: Any, arguments: list[str], message: str) -> None:
    assert forkmill.cli.main(["run", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"), [("1\n2\n{\n", "n.jsonl:3: "), ("1\n2\n\xff\n", "n.jsonl:3")]
)
def test_a_damaged_input_is_told_after_the_rows_before_it(
    here: Path, capfd: Any, text: str, message: str
) -> None:
    (here / "n.jsonl").write_bytes(text.encode("latin-1"))
    code, rows, err = run(capfd, "graphs:naps", "--map", "n=n.jsonl")
    assert (code, [row["slow"] for row in rows]) == (1, [1, 2])
    assert message in err


def test_nothing_is_written_over_what_is_read(here: Path, capfd: Any) -> None:
    Path("bad.jsonl").write_text('{"index": 2}\n')
    Path("old.jsonl").write_text("rows of yesterday")
    job = ("graphs:graph", "--map", "text=t.jsonl")
    for options in (
        ("-o", "t.jsonl"),
        ("--on-error", "t.jsonl"),
        ("-o", "bad.jsonl", "--only-failed", "bad.jsonl"),
        ("-o", "old.jsonl", "--on-error", "./old.jsonl"),
        ("-o", "old.jsonl", "--on-error", "/no/such/folder/x"),
    ):
        before = [file.read_bytes() for file in sorted(here.glob("*.jsonl"))]
        assert forkmill.cli.main(["run", *job, *options]) == 2
        assert [file.read_bytes() for file in sorted(here.glob("*.jsonl"))] == before
        assert capfd.readouterr().out == ""


def test_a_reader_that_has_enough_ends_it_quietly(here: Path) -> None:
    (here / "n.jsonl").write_text("1\n" * 100_000)
    command = f"{sys.executable} -m forkmill run graphs:pairs --set a=1 --map b=n.jsonl | head -n 2"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
    assert done.stdout == '{"pair": [1, 1]}\n' * 2
    assert done.stderr == ""


def test_ctrl_c_tells_how_far_it_was(here: Path, start_script: StartScript) -> None:
    (here / "n.jsonl").write_text("1\n" * 10_000)
    script = start_script(
        f"import os, sys; os.chdir({str(here)!r}); sys.path.insert(0, '')\n"
        "import forkmill.cli\n"
        "sys.exit(forkmill.cli.main(['run', 'graphs:naps', '--map', 'n=n.jsonl', '-j', '2']))\n"
    )
    script.wait_for('{"slow": 1}')
    script.process.send_signal(signal.SIGINT)
    assert script.wait() == 130
    assert "stopped: " in script.stderr and "rows done" in script.stderr


def test_the_plan_is_printed_and_nothing_runs(here: Path, capfd: Any) -> None:
    assert forkmill.cli.main(["run", "graphs:naps", "--plan", "--engine", "parallel:3"]) == 0
    out = capfd.readouterr().out
    assert "slow" in out and "parallel:3" in out


def test_progress_is_shown_on_a_terminal(here: Path) -> None:
    (here / "n.jsonl").write_text("1\n" * 12)
    master, slave = os.openpty()
    command = [
        sys.executable, "-m", "forkmill", "run", "graphs:naps", "--map", "n=n.jsonl", "--progress",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's other end was closed
            while data := os.read(master, 4096):
                shown += data
        assert process.stdout is not None
        assert process.stdout.read().count(b"slow") == 12
    os.close(master)
    assert process.returncode == 0
    assert b"run" in shown and b"/12" not in shown  # nobody knows how long a file is

"""`forkmill run`: a pipeline from the command line."""

from __future__ import annotations

import ast
import contextlib
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
from forkmill.runs.failure import Failure, literal

PIPELINES = """
import itertools
import time
from collections import Counter
import forkmill as fm

class Count(fm.Pipeline):
    least = 1

    def __init__(self, path, *, top=2):
        super().__init__()
        self.path, self.top, self.total = path, top, Counter()

    @fm.producer
    def lines(self):
        yield from open(self.path)

    @fm.stage(context="ipc_fork", ordered=True)
    def words(self, line):
        yield from line.split()

    @fm.stage
    def count(self, word):
        self.total[word] += 1
        yield from ()

    @count.on_end
    def finish(self):
        yield from (pair for pair in self.total.most_common(self.top) if pair[1] >= self.least)

def fail_at_3(n):
    if n == 3:
        raise ValueError("no 3")
    return n

def stops(count=5):
    return fm.Pipeline().source(range(count)).map(fail_at_3)

def skips():
    return fm.Pipeline().source(range(5)).map(fail_at_3, on_error="skip")

def breaks():
    raise OSError("no such thing")

def endless():
    def numbers():
        n = 0
        while True:
            yield n
            n += 1
    return fm.Pipeline().source(numbers).map(fail_at_3, on_error="skip")

def slow():
    def nap(n):
        time.sleep(0.15)
        return n
    return fm.Pipeline().source(range(5)).map(nap)

def many():
    return fm.Pipeline().source(range(1500)).map(fail_at_3, on_error="skip", name="work").map(
        lambda n: 1 // (n % 2), on_error="skip", name="odd")

def bad_for_ever():
    return fm.Pipeline().source(itertools.count).map(lambda n: 1 // 0, on_error="skip")

ready = fm.Pipeline().source(["a", {"b": 1}, "c\\nd"]).map(lambda item: item)
unlinked = fm.Pipeline().map(str)
number = 7
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pipelines.py").write_text(PIPELINES)
    (tmp_path / "words").write_text("a b a\nc a b\n" * 100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "forkmill", "run", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert "Traceback" not in ran.stderr
    return ran.returncode, ran.stdout, ran.stderr


def test_outputs_go_to_stdout_and_the_table_to_stderr(here: Path) -> None:
    code, out, err = run("pipelines:Count", "--set", "path=words", "-j", 2)
    assert (code, out) == (0, '["a", 300]\n["b", 200]\n')
    assert "completed in" in err and "ipc_fork:2" in err and "600" in err


def test_settings_are_arguments_or_attributes_json_or_text(here: Path) -> None:
    settings = ["--set", "path=words", "--set", "top=3", "--set", "least=150"]
    assert run("pipelines:Count", *settings)[1] == '["a", 300]\n["b", 200]\n'
    assert run("pipelines:stops", "--set", "count=2")[:2] == (0, "0\n1\n")
    assert run("pipelines:ready")[:2] == (0, 'a\n{"b": 1}\nc\\nd\n')


def test_the_plan_is_printed_and_nothing_runs(here: Path) -> None:
    code, out, _ = run("pipelines:Count", "--set", "path=missing", "-j", 3, "--plan")
    assert code == 0
    assert "words" in out and "ipc_fork:3" in out and "-> count" in out
    code, out, _ = run("pipelines:ready", "--plan", "--json")
    stages = json.loads(out)["stages"]
    assert code == 0
    assert stages["source"]["to"] == [name for name in stages if name != "source"]


def test_failures_are_told_by_their_stage_and_by_the_status(here: Path) -> None:
    code, out, err = run("pipelines:stops")
    assert (code, out) == (1, "0\n1\n2\n")
    assert "stage fail_at_3: ValueError: no 3" in err
    code, out, err = run("pipelines:skips")
    assert (code, out) == (1, "0\n1\n2\n4\n")
    code, out, _ = run("pipelines:skips", "--json")
    facts = json.loads(out)
    assert (code, facts["status"], facts["outputs"]) == (1, "completed", 4)
    assert facts["stages"]["fail_at_3"]["in"] == 5
    assert facts["failures"] == [
        {"stage": "fail_at_3", "item": "3", "error": "ValueError: no 3", "attempts": 1}
    ]
    code, _, err = run("pipelines:Count", "--set", "path=missing")
    assert (code, "stage lines: FileNotFoundError" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pipelines:Count"], "needs --set path=VALUE"),
        (["pipelines:Count", "--set", "pth=x", "--set", "path=x"], "did you mean 'path'?"),
        (["pipelines:Count", "--set", "count=1", "--set", "path=x"], "has no setting 'count'"),
        (["pipelines:Count", "--set", "path"], "'path' is not NAME=VALUE"),
        (["pipelines:Cuont"], "did you mean 'Count'?"),
        (["pipelines:number"], "is a int, not a Pipeline"),
        (["builtins:dict"], "is neither a Pipeline nor what makes one"),
        (["time:localtime"], "is neither"),
        (["os:getcwd"], "makes a str, not a Pipeline"),
        (["pipelines:breaks"], "cannot be made: OSError: no such thing"),
        (["pipelines:unlinked"], "nothing feeds it"),
    ],
)
def test_misuse_says_what_is_right(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    sys.modules.pop("pipelines", None)
    assert forkmill.cli.main(["run", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_reader_that_has_enough_ends_an_endless_run(here: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "forkmill", "run", "pipelines:endless"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


def test_ctrl_c_drains_and_leaves_nothing(here: Path, start_script: StartScript) -> None:
    script = start_script(
        f"import os, sys\nos.chdir({str(here)!r})\nfrom forkmill.cli import main\n"
        "sys.exit(main(['run', 'pipelines:endless']))",
        flags=(),
    )
    script.wait_for("1000\n")
    script.process.send_signal(signal.SIGINT)
    assert script.wait() == 130
    assert "forkmill: stopped" in script.stderr
    assert "Traceback" not in script.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_progress_is_shown_on_a_terminal(here: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "forkmill", "run", "pipelines:slow", "--progress"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's answer when the other end is closed
            while piece := os.read(ours, 4096):
                shown += piece
        assert process.wait(20) == 0
    os.close(ours)
    assert shown.count(b"nap") > 2, "the table at the end has it too"


# A producer, a stage in a pool, batches; what fails depends on a file.
PAIRS = """
import os
import forkmill as fm

class Numbers(fm.Pipeline):
    @fm.producer
    def read(self):
        for i in range(10):
            yield (i, b"x", {i: 1.5})

    @fm.stage
    def count(self, item):
        return item

    @count.on_end
    def counted(self):
        raise AssertionError("it has no part in what failed behind it")

    @fm.stage(context="ipc_fork:2", ordered=True, on_error="skip")
    def strict(self, item):
        if item[0] % 3 == 0 and not os.path.exists("mended"):
            raise ValueError("three")
        return item

    @fm.batch(2, on_error="skip")
    def pair(self, items):
        if items[0][0] == 4 and not os.path.exists("mended"):
            raise KeyError(4)
        return [[type(item).__name__, item[0]] for item in items]

def lead(item):
    if item == 3 or not os.path.exists("mended"):
        raise ValueError(item)
    return fm.to("even", item) if item % 2 == 0 else item

def even(item):
    return ["even", item]

def bad(failure):
    return ["bad", failure.item]

def led():  # to both by name alone
    line = fm.Pipeline().source(range(4)).map(lead, to=(), on_error=fm.dead_letter("bad"))
    return line.map(even, from_=(), to=()).map(bad, from_=())

def objects():
    return fm.Pipeline().source([object()]).map(len, on_error="skip")
"""


def test_what_failed_of_a_pipeline_is_run_again(here: Path) -> None:
    Path("numbers_.py").write_text(PAIRS.replace("    @count.on_end", "    # @count.on_end"))
    code, out, _ = run("numbers_:Numbers", "--on-error", "bad.jsonl")
    assert code == 1 and [json.loads(line) for line in out.splitlines()] == [
        [["tuple", 1], ["tuple", 2]],
        [["tuple", 7], ["tuple", 8]],
    ]
    stages = [json.loads(line)["stage"] for line in Path("bad.jsonl").read_text().splitlines()]
    assert sorted(stages) == ["pair", *["strict"] * 4]
    Path("numbers_.py").write_text(PAIRS)
    Path("mended").touch()
    again = ("numbers_:Numbers", "--only-failed", "bad.jsonl")
    code, out, err = run(*again, "--on-error", "still.jsonl")
    assert code == 0, err
    got = [each for line in out.splitlines() for each in json.loads(line)]
    assert sorted(got) == [["tuple", n] for n in (0, 3, 4, 5, 6, 9)]
    assert Path("still.jsonl").read_text() == ""
    code, out, _ = run(*again, "--plan", "--json")
    assert code == 0 and "count" not in json.loads(out)["stages"]
    code, out, err = run("numbers_:Numbers", "--only-failed", "still.jsonl")
    assert code == 0 and out == "" and "nothing has failed" in err


def test_what_items_go_to_by_name_has_its_part_in_the_second_run(here: Path) -> None:
    Path("numbers_.py").write_text(PAIRS)
    code, out, _ = run("numbers_:led", "--on-error", "bad.jsonl")
    assert code == 1 and [*map(json.loads, out.splitlines())] == [["bad", n] for n in range(4)]
    Path("mended").touch()
    code, out, err = run("numbers_:led", "--only-failed", "bad.jsonl")
    got = sorted(map(json.loads, out.splitlines()), key=str)
    assert code == 1 and got == [1, ["bad", 3], ["even", 0], ["even", 2]], err


BAD_RECORDS: tuple[tuple[object, str], ...] = (
    ({"stage": "strict", "literal": None}, "kept as text only"),
    ({"stage": "strict", "literal": "f("}, "its literal is none"),
    ({"stage": "strict", "literal": "{[]: 1}"}, "its literal is none"),
    ({"stage": "strict"}, "kept as text only"),
    ({"stage": "nowhere", "literal": "1"}, "there is no stage 'nowhere'"),
    ({"stage": "read", "literal": "1"}, "is a producer"),
    ({"stage": "count", "literal": "None"}, "failed at its end"),
    ({"literal": "1"}, "it has no stage"),
    ([1], "it has no stage"),
)


def test_a_file_of_failures_is_checked_before_the_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(here))
    Path("checked.py").write_text(PAIRS)
    for record, words in BAD_RECORDS:
        Path("bad.jsonl").write_text(json.dumps(record) + "\n")
        code = forkmill.cli.main(["run", "checked:Numbers", "--only-failed", "bad.jsonl"])
        out, err = capfd.readouterr()
        assert code == 2 and out == "" and words in err.replace("\n", " ")


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def test_a_literal_is_the_very_same_again() -> None:
    some = set(range(100))
    some -= {n for n in some if n not in (0, 1, 33, 64, 96)}  # in another order than a new one's
    goes: tuple[Any, ...] = (
        1.5e308 + 1.5e308j,
        -0.0,
        -2.5,
        1j,
        True,
        {1: {2.5}},
        some,
        set(),
        (b"x",),
    )
    for value in goes:
        text = literal(value)
        assert text == repr(value) and ast.literal_eval(text) == value
    stays: tuple[Any, ...] = (complex(-0.0, 1), nested(250), nested(100_000))
    text = literal(complex(1, -0.0))  # from 3.14 on `1-0j` says what it seems to
    assert text == ("(1-0j)" if sys.version_info >= (3, 14) else None)
    infinity, nan = float("inf"), float("nan")
    for value in (*stays, infinity, nan, [nan], complex(infinity, 1), {(1, complex(-0.0, 1))}):
        assert literal(value) is None
        assert json.loads(Failure("stage", value, ValueError()).line())["literal"] is None


def test_an_item_that_has_no_literal_is_not_run_again_as_text(here: Path) -> None:
    Path("numbers_.py").write_text(PAIRS)
    assert run("numbers_:objects", "--on-error", "bad.jsonl")[0] == 1
    code, _, err = run("numbers_:objects", "--only-failed", "bad.jsonl")
    assert code == 2 and "kept as text only" in err


def test_where_failures_of_a_pipeline_go_is_checked_first(here: Path) -> None:
    for value, words in (
        ("skip", "say that themselves"),
        ("/no/such/folder/x", "No such file"),
        ("out.jsonl", "is where the results go"),
    ):
        code, out, err = run("pipelines:skips", "--on-error", value, "-o", "out.jsonl")
        assert code == 2 and out == "" and words in err.replace("\n", " ")
    Path("out.jsonl").write_text("results of yesterday")
    for value, words in (("/no/such/folder/x", "No such file"), ("./out.jsonl", "results go")):
        code, _, err = run("pipelines:skips", "--on-error", value, "-o", "out.jsonl")
        assert code == 2 and words in err.replace("\n", " ")
        assert Path("out.jsonl").read_text() == "results of yesterday"


def test_the_file_of_failures_has_all_of_them(here: Path) -> None:
    code, out, _ = run("pipelines:many", "--on-error", "bad.jsonl", "--keep-failures", 2, "--json")
    facts = json.loads(out)
    assert code == 1 and (facts["outputs"], facts["status"]) == (749, "completed")
    assert len(facts["failures"]) == 2 and sum(n["count"] for n in facts["more_failures"]) == 749
    bad = [*map(json.loads, Path("bad.jsonl").read_text().splitlines())]
    assert [int(record["literal"]) for record in bad] == [*range(0, 3, 2), 3, *range(4, 1500, 2)]
    before = Path("bad.jsonl").read_text()
    code, out, err = run("pipelines:many", "--only-failed", "bad.jsonl", "-o", "bad.jsonl")
    assert code == 2 and out == "" and "is read as well" in err.replace("\n", " ")
    assert Path("bad.jsonl").read_text() == before
    code, out, _ = run("pipelines:many", "--only-failed", "bad.jsonl", "--on-error", "bad.jsonl")
    assert code == 1 and out == ""
    again = [*map(json.loads, Path("bad.jsonl").read_text().splitlines())]
    assert sorted(record["literal"] for record in again) == sorted(r["literal"] for r in bad)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_failures_that_cannot_be_written_end_the_run_with_its_figures(here: Path) -> None:
    code, out, err = run("pipelines:bad_for_ever", "--on-error", "/dev/full", "--json")
    assert code == 1 and json.loads(out)["status"] == "stopped"
    assert "cannot write /dev/full: no space left" in err
    code, out, err = run("pipelines:skips", "--on-error", "/dev/full")
    assert code == 1 and out.startswith("0\n1\n2\n")
    assert "cannot write /dev/full" in err and "fail_at_3" in err

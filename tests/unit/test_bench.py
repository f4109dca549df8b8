"""The benchmarks still run. What they measure is nobody's business here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "bench").is_dir(), reason="bench/ is in the repository only"
)


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import harness

    return harness


def run_bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("question", ["roundtrip", "map_default", "shutdown", "real_jobs"])
def test_a_quick_run_answers_and_writes_its_files(question, tmp_path):
    """Each once, us and the standard library's pools; the results are checked inside."""
    peers = "multiprocessing.Pool,ProcessPoolExecutor"
    ran = run_bench(question, "--quick", "--peers", peers, "--out", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "The figures mean nothing" in (tmp_path / "results.md").read_text()
    raw = json.loads((tmp_path / "results.json").read_text())
    [answer] = raw["answers"]
    assert answer["question"] == question
    assert answer["results"]
    for case in answer["results"]:
        assert not case["failures"]
        assert {"forkmill", *peers.split(",")} <= case["values"].keys()


def test_every_question_is_listed_with_its_text():
    ran = run_bench("--list")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    helpers = {"harness", "machine", "peers", "reference", "report", "runner", "work", "plots"}
    files = {path.stem for path in (ROOT / "bench").glob("[!_]*.py")} - helpers
    assert {line.split()[0] for line in lines} == files
    assert all(line.endswith("?") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["roundtrp"], "did you mean 'roundtrip'?"),
        (["--peers", "lokey"], "did you mean 'loky'?"),
        (["--workers", "0"], "must be a whole number of at least 1"),
        (["--quick", "--update-readme"], "needs real figures"),
    ],
)
def test_a_wrong_command_line_says_what_is_right(arguments, message):
    ran = run_bench(*arguments)
    assert ran.returncode == 2
    assert message in ran.stderr


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_that_was_started(number, tmp_path):
    mark = f"FM_TEST_BENCH={tmp_path}"
    peers = "multiprocessing.Pool,ProcessPoolExecutor"
    with subprocess.Popen(
        [sys.executable, "-m", "bench", "skew", "--peers", peers, "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **dict([mark.split("=", 1)])},
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        while len(marked(mark)) < 4:  # it, its runner and two workers
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(number)
        _, told = run.communicate(timeout=20)
    assert run.returncode == 128 + number, told
    end = time.monotonic() + 10
    while marked(mark) and time.monotonic() < end:  # killed, but not yet gone
        time.sleep(0.01)
    assert marked(mark) == []
    assert not (tmp_path / "results.md").exists()


def marked(mark: str) -> list[int]:
    """The processes that have this in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def test_every_question_is_in_one_chart(harness):
    from bench import runner

    charted = [name for names in runner.FAMILIES.values() for name in names]
    assert sorted(charted) == sorted(runner.QUESTIONS)
    assert set(runner.LONG) <= set(runner.QUESTIONS)


PLOTS = """
import sys
from pathlib import Path
from bench import harness, plots, runner

values = {"forkmill": [1.0, 1.1], "C pipe ping-pong": [1.0, 1.0], "loky": [9.0, None]}
results = [
    harness.Measured("roundtrip", "pinned", "title", "us", harness.LESS, values),
    harness.Measured("roundtrip", "free", "title", "us", harness.LESS, {"forkmill": [1.0]}),
]
sizes = [
    harness.Measured("arrays", f"send-{at}", "title", "GB/s", harness.MORE, values, {}, "all", at)
    for at in (1, 2)
]
answers = [runner.Answer("roundtrip", results=results), runner.Answer("arrays", results=sizes)]
plots.write(Path(sys.argv[1]), answers, quick=False)
"""


def test_the_plots_are_made_and_the_same_run_gives_the_same(tmp_path):
    """In interpreters of their own: matplotlib keeps its fonts open."""
    pytest.importorskip("matplotlib")
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run([sys.executable, "-c", PLOTS, str(folder)], cwd=ROOT, check=True, timeout=60)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    charts = ("targets", "calls", "arrays")
    assert made[0].keys() == {f"{c}{kind}" for c in charts for kind in (".svg", ".png")}
    assert made[0] == made[1]


def test_a_slow_peer_sits_out_and_whom_a_target_needs_does_not(harness):
    target = harness.Target("what", "key", 1.0, "needed")
    bench = harness.Bench("test", (), rounds=5, seconds=0.3, targets=[target])

    def slow() -> float:
        time.sleep(0.11)
        return 1.0

    samples = {"forkmill": lambda: 1.0, "needed": slow, "slow": slow}
    measured = bench.measure(harness.Case("key", "title", "s", harness.LESS, samples))
    assert measured.values["slow"][:3] == [1.0, None, None]
    assert measured.figures("needed")[:3] == [1.0] * 3


def test_only_rows_measures_what_a_target_looks_at(harness):
    target = harness.Target("what", "key", 1.0)
    bench = harness.Bench("test", (), rounds=1, targets=[target], only_rows=True)
    for key in ("key", "other"):
        bench.measure(harness.Case(key, "title", "s", harness.LESS, {"forkmill": lambda: 1.0}))
    assert [result.case for result in bench.results] == ["key"]


def test_readme_has_every_target(harness):
    from bench import report

    readme = report.README.read_text()
    assert "What the numbers cannot tell" in readme.split("\n## ")[1]
    for row in report.targets_table():
        what, reach = row.split("|")[1:3]
        assert f"|{what}|{reach}|" in readme, "run: python -m bench --update-readme"


def test_a_contender_that_fails_or_hangs_gets_a_note_and_no_figure(harness, capsys):
    bench = harness.Bench("test", (), rounds=3, limit=0.2)

    def wrong():
        harness.check([1, 2], [1, 3])

    samples = {
        "forkmill": lambda: 2.0,
        "wrong": wrong,
        "hung": lambda: time.sleep(60),
        "slow": lambda: 6.0,
    }
    measured = bench.measure(harness.Case("key", "title", "s", harness.LESS, samples))
    assert measured.figures("forkmill") == [2.0] * 3
    assert measured.speedups("slow") == [3.0] * 3
    assert measured.speedups("wrong") == []
    assert measured.failures["wrong"].startswith("WrongResult: expected list of 2: [1, 3]")
    assert measured.failures["hung"] == "Hung: no end after 0.2 s"


def test_ratios_are_taken_within_a_round(harness):
    values = {"forkmill": [1.0, 10.0, None], "peer": [3.0, 20.0, 9.0]}
    measured = harness.Measured("test", "key", "title", "s", harness.LESS, values)
    assert measured.speedups("peer") == [3.0, 2.0]
    target = harness.Target("what", "key", 1.0, "peer", at_most=True)
    assert measured.reached(target) == [1 / 3, 1 / 2]
    assert harness.spread([1.0, 2.0, 3.0]) == (1.5, 2.0, 2.5)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the soak looks into /proc")
def test_a_moment_of_the_soak_finds_nothing():
    ran = run_bench("soak", "--minutes", 0.03)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["calls"] == report["outcomes"] > 0
    assert report["findings"] == []

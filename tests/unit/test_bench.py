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


def run_bench(*arguments: object, timeout: int = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=timeout,
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
    assert len(answer["results"]) == answer["planned"]
    for case in answer["results"]:
        assert not case["failures"]
        assert {"forkmill", *peers.split(",")} <= case["values"].keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_question_has_the_cases_that_it_plans(tmp_path, harness):
    from bench import runner

    ran = run_bench("--quick", "--peers", "forkmill", "--out", tmp_path, timeout=800)
    assert ran.returncode == 0, ran.stderr
    answers = json.loads((tmp_path / "results.json").read_text())["answers"]
    assert [answer["question"] for answer in answers] == list(runner.QUESTIONS)
    for answer in answers:
        skipped = any(note.startswith("skipped: ") for note in answer["notes"])
        assert skipped or len(answer["results"]) == answer["planned"], answer["question"]


def test_every_question_is_listed_with_its_text():
    ran = run_bench("--list")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    helpers = {
        "harness",
        "machine",
        "peers",
        "reference",
        "report",
        "runner",
        "work",
        "plots",
        "graph_peers",
    }
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


def test_a_questions_cases_share_its_time(harness, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(harness.time, "monotonic", lambda: clock[0])
    saved = []
    bench = harness.Bench(
        "test", (), rounds=9, seconds=8.0, save=lambda bench: saved.append(len(bench.results))
    )
    bench.plan(2)

    def a_second() -> float:
        clock[0] += 1.0
        return 1.0

    rounds = [
        len(measured.figures("forkmill"))
        for key in ("one", "two")
        for measured in [
            bench.measure(harness.Case(key, "title", "s", harness.LESS, {"forkmill": a_second}))
        ]
    ]
    assert rounds == [5, 4]  # the one that begins at the end of its time is the last
    assert saved == [1, 2]


def test_a_runs_questions_share_its_time(harness):
    from bench import runner

    names = list(runner.QUESTIONS)
    budget = runner.Budget(names, 10.0)
    gone = 0.0
    for _ in names:
        gone += budget.take(gone)
    assert gone == pytest.approx(600.0) == budget.seconds
    budget = runner.Budget(names, 10.0)
    gone = 3 * budget.take(0.0)  # the first overruns: the others pay for it
    for _ in names[1:]:
        gone += budget.take(gone)
    assert gone == pytest.approx(600.0)
    budget = runner.Budget(names, 10.0)
    planned = [budget.take(600.0 * 9) for _ in names]  # long over: none goes without
    assert sum(planned) == pytest.approx(150.0)
    some = runner.Budget(names[:2], 10.0)
    assert 0 < some.seconds < 60


def test_who_fails_ends_nothing_and_the_exit_code_tells(harness, capsys):
    from bench import __main__ as command
    from bench import runner

    def answer(*failed: str, failure: str = "") -> object:
        measured = harness.Measured("name", "key", "title", "s", harness.LESS)
        measured.failures = dict.fromkeys(failed, "why")
        return runner.Answer("name", results=[measured], failure=failure)

    assert command._verdict([answer(), answer()]) == 0
    assert command._verdict([answer("loky"), answer()]) == 3
    assert command._verdict([answer("loky"), answer("forkmill")]) == 1
    assert command._verdict([answer(failure="no end after 9 s"), answer()]) == 1
    assert "failed: name: loky\n" in capsys.readouterr().err


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
    bench = harness.Bench("test", (), rounds=3, seconds=60.0, limit=30.0)

    def wrong():
        harness.check([1, 2], [1, 3])

    def hung():
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0  # its time is limited,
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # and over now, but for this one only
        time.sleep(60)

    samples = {
        "forkmill": lambda: 2.0,
        "wrong": wrong,
        "hung": hung,
        "slow": lambda: 6.0,
    }
    measured = bench.measure(harness.Case("key", "title", "s", harness.LESS, samples))
    assert measured.figures("forkmill") == [2.0] * 3
    assert measured.speedups("slow") == [3.0] * 3
    assert measured.speedups("wrong") == []
    assert measured.failures["wrong"].startswith("WrongResult: expected list of 2: [1, 3]")
    assert measured.failures["hung"] == "Hung: no end after 30 s"


def test_ratios_are_taken_within_a_round(harness):
    values = {"forkmill": [1.0, 10.0, None], "peer": [3.0, 20.0, 9.0]}
    measured = harness.Measured("test", "key", "title", "s", harness.LESS, values)
    assert measured.speedups("peer") == [3.0, 2.0]
    target = harness.Target("what", "key", 1.0, "peer", at_most=True)
    assert measured.reached(target) == [1 / 3, 1 / 2]
    assert harness.spread([1.0, 2.0, 3.0]) == (1.5, 2.0, 2.5)


def test_a_bound_for_some_machines_says_what_this_one_is(harness):
    from bench import report

    target = harness.Target("what", "key", 1.8, "alone", where=("forks", 1.9))
    values = {"forkmill": [1.0, 1.0], "alone": [1.5, 1.7], "forks": [1.0, 1.0]}
    measured = harness.Measured("test", "key", "title", "s", harness.LESS, values)
    figures, beside = measured.reached(target), measured.beside(target)
    assert (figures, beside) == ([1.5, 1.7], [1.5, 1.7])
    assert report.judged(target, figures, beside).startswith("not here")
    assert report.judged(target, figures, [1.95]) == "not yet"
    assert report.judged(target, [1.9], [1.7]) == "reached"


@pytest.mark.scenario(30)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the soak looks into /proc")
def test_a_moment_of_the_soak_finds_nothing():
    ran = run_bench("soak", "--minutes", 0.03)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["calls"] == report["outcomes"] > 0
    assert report["findings"] == []

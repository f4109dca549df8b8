"""Reports of runs, recordings for Perfetto, and what hostile names do to them: nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
from forkmill.cli import main
from forkmill.show import page as page_module
from forkmill.show.board import Board
from forkmill.show.picture import picture
from forkmill.show.record import MOST_BARS, Record
from forkmill.show.report import check_path, from_recording, write
from forkmill.show.top import link

HOSTILE = "</script><script>alert(1)</script>\x1b[31m\u202e\u2066<!--<img src=x onerror=a()>&\"'"


class Seen(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "src"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def fails(x: int) -> int:
    if x % 10 == 7:
        raise ValueError(HOSTILE)
    return x


def hostile() -> fm.Pipeline:
    pipeline = fm.Pipeline(HOSTILE).source([HOSTILE, *range(60)], name="from " + HOSTILE)
    pipeline.map(lambda x: 7 if x == HOSTILE else x, context="thread:2", name="a" + HOSTILE)
    return pipeline.map(fails, context="thread:1", name="b" + HOSTILE, on_error="skip").map(abs)


def check_harmless(text: str) -> Seen:
    seen = Seen(text)
    assert seen.tags.count("script") == 2 and not seen.handlers and "img" not in seen.tags
    assert not re.search(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text
    )
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert "<" not in data
    json.loads(data)
    return seen


# ------------------------------------------------------------------------------ reports


def test_a_report_has_the_plan_the_timeline_and_the_failures(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    result = hostile().run(report=path)
    assert result.failed == 7
    seen = check_harmless(path.read_text())
    for chapter in ("Plan", "Timeline", "Stages", "How long calls take", "Slowest calls",
                    "Failures", "Environment"):  # fmt: skip
        assert chapter in seen.text, chapter
    assert "ValueError" in seen.text and "\\x1b[31m" in seen.text and "in fails" in seen.text
    assert seen.tags.count("rect") == 4 and "canvas" in seen.tags
    assert os.listdir(tmp_path) == ["run.html"], "nothing is left beside it"


def test_the_page_runs_only_its_own_script(tmp_path: Path) -> None:
    from base64 import b64encode
    from hashlib import sha256

    path = tmp_path / "run.html"
    fm.Pipeline().source([1]).map(abs).run(report=path)
    text = path.read_text()
    (script,) = re.findall(r"</script><script>(.*?)</script>", text, re.S)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert not re.search(r"https?://", text), "it needs nothing from elsewhere"


@pytest.mark.parametrize("how", ["completed", "failed", "stopped", "stream", "map"])
def test_there_is_a_report_however_it_ends(tmp_path: Path, how: str) -> None:
    path = tmp_path / "run.html"
    if how == "failed":
        with pytest.raises(ZeroDivisionError):
            fm.Pipeline().source([0]).map(lambda x: 1 // x).run(report=path)
    elif how == "stopped":
        handle = fm.Pipeline().source(iter(int, 1)).map(abs).start(report=path)
        handle.stop()
        handle.result()
    elif how == "stream":
        with fm.Pipeline().source(range(9)).map(abs).stream(report=path) as stream:
            next(stream)
        how = "stopped"
    elif how == "map":
        with fm.executor("thread:2") as executor:
            assert list(executor.map(abs, range(9), report=path)) == list(range(9))
        how = "completed"
    else:
        fm.Pipeline().source([1]).map(abs).run(report=str(path))
    assert how in Seen(path.read_text()).text


def test_a_path_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    ran: list[int] = []
    pipeline = fm.Pipeline().source([1]).map(ran.append)
    wrong: list[tuple[Any, type[Exception]]] = [
        (tmp_path, IsADirectoryError), (tmp_path / "no" / "run.html", FileNotFoundError),
        ("", FileNotFoundError), (7, TypeError), (b"x", TypeError),
        (tmp_path / ("x" * 300), OSError), ("/proc/run.html", OSError),
    ]  # fmt: skip
    for path, kind in wrong:
        with pytest.raises(kind):
            pipeline.run(report=path)
        with fm.executor("inline") as executor, pytest.raises(kind):
            executor.map(ran.append, [1], report=path)
        with pytest.raises(kind):
            fm.chrome_trace(path)
    assert not ran and os.listdir(tmp_path) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_file_that_is_read_only_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    path.touch(0o444)
    with pytest.raises(PermissionError):
        check_path(path)


def test_a_report_replaces_what_a_link_leads_to(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("before")
    link.symlink_to(real)
    write(check_path(link), "after")
    assert link.is_symlink() and real.read_text() == "after"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk")
def test_a_full_disk_changes_nothing_of_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = fm.Pipeline().source([1]).map(abs).run(report="/dev/full")
    assert result.outputs == [1] and result.stats.sink_errors == 1


def test_a_relative_path_is_where_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    fm.Pipeline().source([1]).map(lambda x: os.chdir(elsewhere)).run(report="run.html")
    assert (tmp_path / "run.html").exists() and not (elsewhere / "run.html").exists()


def test_a_result_has_figures_and_says_what_it_has_not(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    hostile().run().report(path)
    seen = check_harmless(path.read_text())
    assert "Made after the run" in seen.text and "ValueError" in seen.text
    assert seen.tags.count("rect") == 4 and "canvas" not in seen.tags


# ------------------------------------------------------------------------------ recordings


def test_a_recording_gives_the_same_report(tmp_path: Path) -> None:
    record, path = tmp_path / "run.jsonl", tmp_path / "run.html"
    hostile().run(sinks=[fm.JsonLines(record, detail="items")])
    run = from_recording(record, path)
    assert run == fm.read_events(record)[0]["run"]
    seen = check_harmless(path.read_text())
    assert "canvas" in seen.tags and "ValueError" in seen.text and "completed" in seen.text


def test_a_recording_that_is_cut_says_so(tmp_path: Path) -> None:
    record, path = tmp_path / "run.jsonl", tmp_path / "run.html"
    hostile().run(sinks=[fm.JsonLines(record, detail="items")])
    data = record.read_bytes()
    record.write_bytes(data[: len(data) * 2 // 3])
    from_recording(record, path)
    assert "ends before the run does" in check_harmless(path.read_text()).text


def test_one_of_several_runs(tmp_path: Path) -> None:
    record, path = tmp_path / "run.jsonl", tmp_path / "run.html"
    for name in ("first", "second"):
        fm.Pipeline(name).source([1]).map(abs).run(sinks=[fm.JsonLines(record)])
    first, last = (e["run"] for e in fm.read_events(record) if e["kind"] == "run_started")
    assert from_recording(record, path) == last
    assert "second" in (text := Seen(path.read_text()).text) and "1 other runs" in text
    assert from_recording(record, path, first) == first
    assert "first" in Seen(path.read_text()).text


def test_a_recording_whose_begin_is_missing_says_so(tmp_path: Path) -> None:
    """As `tail -n` leaves it; a run within it may be the first that is told then."""
    whole, record, path = tmp_path / "whole", tmp_path / "run.jsonl", tmp_path / "run.html"

    def inner(n: int) -> int:
        return sum(fm.Pipeline("inner").source([n]).map(abs).run().outputs)

    outer = fm.Pipeline("outer").source(range(3)).map(inner, name="work")
    outer.run(sinks=[fm.JsonLines(whole, detail="items")])
    lines = whole.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"inner"' in line and "run_started" in line)
    record.write_text("".join(lines[cut + 1 :]))
    run = from_recording(record, path)
    assert run == json.loads(lines[0])["run"]
    text = Seen(path.read_text()).text
    assert "outer" in text and "begins after the run does" in text
    from_recording(whole, path)
    assert "begins after" not in Seen(path.read_text()).text
    with contextlib.closing(link.opened(str(record))) as source:
        assert source.scene is not None
        assert "outer" in {each["title"] for each in source.scene["runs"]}
    board = Board()
    for line in lines[1:]:
        event = json.loads(line)
        if event["run"] == run:
            board.take(event)
    assert board.line().startswith("outer: completed")


def test_what_is_no_recording_is_told(tmp_path: Path) -> None:
    record, path = tmp_path / "run.jsonl", tmp_path / "run.html"
    for text, told in (
        ("", "there is no run"),
        ("not json\n", "there is no run"),
        ('{"a": 1}\n', "no event of forkmill's"),
        ('{"schema": 9, "source": "pipeline", "run": "r", "parent": null, "time": 1, "item": null,'
         '"monotonic": 1, "kind": "run_started", "name": "p", "data": {}}\n', "schema 9"),
    ):  # fmt: skip
        record.write_text(text)
        with pytest.raises(ValueError, match=told):
            from_recording(record, path)
    with pytest.raises(FileNotFoundError):
        from_recording(tmp_path / "none", path)
    assert not path.exists()


# ------------------------------------------------------------------------------ bounds


def call(number: int, seconds: float) -> dict[str, Any]:
    from array import array

    data = {"first": number, "count": 1, "packed": array("d", [0.0, number, seconds]).tobytes()}
    head = {"schema": 1, "source": "pipeline", "run": "r", "parent": None, "seq": number}
    tail = {"item": None, "attempt": None, "worker": number % 3, "seconds": None, "data": data}
    return {**head, "time": 0.0, "monotonic": 0.0, "kind": "items", "name": "s", **tail}


def test_the_slowest_calls_and_a_sample_of_the_rest_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from forkmill.show import record as module

    monkeypatch.setattr(module, "MOST_BARS", 300)
    monkeypatch.setattr(module, "_MOST_SLOW", 50)
    record = Record()
    for number in range(2000):
        record.take(call(number, 1e-3 * (number % 997)))
    bars = record.bars()
    assert len(bars) == 300 and record.seen == 2000 and MOST_BARS == 100_000
    slow = sorted((1e-3 * (n % 997) for n in range(2000)), reverse=True)[:50]
    assert [bar[0] for bar in record.slowest(50)] == pytest.approx(slow)
    assert sum(record.histograms()["s"]) == 2000
    assert {bar[4] for bar in bars} > {bar[4] for bar in record.slowest(50)}


def test_kinds_of_failures_are_bounded() -> None:
    record = Record()
    for number in range(500):
        record.fail(f"stage {number}", "ValueError('x')", number, "", 1)
    assert len(record.groups) == 100 and record.ungrouped == 400
    record.fail("stage 0", "ValueError: other", None, "", 1)
    assert record.groups["stage 0", "ValueError"].count == 2


def test_a_large_plan_is_told_in_words() -> None:
    record = Record()
    names = [f"n{i}" for i in range(200)]
    record.facts = {"title": "x"}
    record.plan = {"nodes": [{"name": name} for name in names], "edges": []}
    assert "too many for a picture" in page_module.page(record, {})


def test_a_plan_with_a_way_back_is_drawn() -> None:
    drawn = picture(["a", "b"], [("a", "b", "3"), ("b", "a", "1"), ("a", "a", "")], {}, "b")
    assert drawn.count("<rect") == 2 and drawn.count('class="link"') == 3 and "marked" in drawn


# ------------------------------------------------------------------------------ the command line


def test_the_command_line_makes_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("seen_lines.py").write_text(
        "import forkmill as fm\ndef line(): return fm.Pipeline('it').source(range(5)).map(abs)\n"
    )
    assert main(["run", "seen_lines:line", "--report", "run.html"]) == 0
    assert "completed" in Seen(Path("run.html").read_text()).text
    fm.Pipeline("rec").source([1]).map(abs).run(sinks=[fm.JsonLines("run.jsonl")])
    capsys.readouterr()
    assert main(["report", "run.jsonl", "-o", "rec.html"]) == 0
    assert "rec.html" in capsys.readouterr().out
    assert main(["run", "seen_lines:line", "--report", "no/run.html"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "--report" in told and "no/run.html: a report cannot be written there" in told
    for arguments in (["none.jsonl", "-o", "x.html"], ["run.jsonl", "-o", "run.jsonl"],
                      ["run.jsonl", "-o", "x.html", "--run", "zz"]):  # fmt: skip
        assert main(["report", *arguments]) in (1, 2)
        assert capsys.readouterr().err


# ------------------------------------------------------------------------------ Perfetto


@pytest.mark.parametrize("ended", [True, False])
def test_a_trace_has_a_slice_a_call(tmp_path: Path, ended: bool) -> None:
    path = tmp_path / "trace.json"
    sink = fm.chrome_trace(path)
    hostile().run(sinks=[sink])
    if ended:
        sink.close()
        sink.close()
    text = path.read_text()
    found = json.loads(text if ended else f"{text}]")
    calls = [piece for piece in found if piece["ph"] == "X" and piece["name"].startswith("a<")]
    assert len(calls) == 61 and all(piece["dur"] >= 0 for piece in calls)
    assert {"C", "M", "i", "X"} == {piece["ph"] for piece in found}
    assert "\\u202e" not in text.replace("\\\\u202e", ""), "it is text, not a mark"
    sink.close()


# ------------------------------------------------------------------------------ a browser


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not on the path; `.ci/run slow` brings it"
)
def test_a_browser_draws_it(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    hostile().run(report=path)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.returncode == 0
    assert re.search(r'<canvas id="timeline" width="\d+"', done.stdout), "the script has run"
    assert done.stdout.count("<i style=") == 3, "a mark of each stage's colour"
    assert "<img" not in done.stdout
    assert "Refused" not in done.stderr


def test_nodes_of_a_graph_are_counted() -> None:
    record = Record()
    head = {"schema": 1, "source": "graph", "run": "r", "parent": None, "seq": 0, "time": 0.0}
    tail = {"monotonic": 0.0, "item": None, "attempt": None, "worker": None, "seconds": None}
    for kind, data in (
        ("node_started", {"context": "inline"}),
        ("node_started", {"index": 0}),
        ("node_started", {"index": 1}),
        ("node_finished", {"index": 0, "status": "completed"}),
        ("node_finished", {"index": 1, "status": "failed"}),
    ):
        record.take({**head, **tail, "kind": kind, "name": "n", "data": data})
    assert record.stages == {"n": {"in": 2, "out": 1, "failed": 1}}


@fm.node(output_name="twice", cache=True)
def twice(n: int) -> int:
    return 2 * n


def test_what_caches_had_is_counted(tmp_path: Path) -> None:
    for had in (0, 40):
        engine = fm.LocalEngine("threaded", cache=fm.DiskCache(tmp_path / "cache"))
        page = tmp_path / f"{had}.html"
        fm.Graph([twice]).map({"n": list(range(40))}, "n", engine=engine, report=page)
        text = page.read_text()
        assert ("from caches</dt><dd>40" in text) == ("<th>cached" in text) == bool(had)

"""Results, failures and plans: in a line, as a table, in a notebook, in a file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, TypedDict

import pytest

import forkmill as fm
from forkmill.cli import main

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\x00&"


class Odd:
    def __repr__(self) -> str:
        return HOSTILE


def fails(x: Any) -> Any:
    if x != 1:
        raise ValueError(HOSTILE * 50)
    return x


def result() -> fm.RunResult:
    items = [1, Odd(), {"a": 1, "b": Odd()}, float("nan")]
    line = fm.Pipeline(HOSTILE).source(items).map(fails, name="work" + HOSTILE, on_error="skip")
    return line.run()


def one_line(text: str) -> bool:
    return len(text) < 200 and text.isprintable()


def harmless(html: str) -> bool:
    return "<script" not in html and html.replace("\n", "").isprintable()


def test_reprs_are_one_line() -> None:
    found = result()
    line = fm.Pipeline(HOSTILE * 9).source([1]).map(abs)
    handle = line.start()
    assert one_line(repr(handle))
    handle.result()
    shown = [found, found.failures, found.failures[0], found.stats, handle,
             fm.ExecutionPlan(line), fm.ExecutionPlan(line).plan(), fm.Progress()]  # fmt: skip
    for thing in shown:
        assert one_line(repr(thing)), thing
    assert repr(found).startswith("<RunResult completed: 1 outputs, 3 failed, ")
    assert repr(found.failures).startswith("<3 failures: ")
    assert "fails" not in repr(found), "outputs are not in it"


def test_notebooks_get_tables() -> None:
    found = result()
    plan = fm.ExecutionPlan(fm.Pipeline(HOSTILE).source([1]).map(abs))
    for thing in (found, found.stats, found.failures, plan):
        html = thing._repr_html_()
        assert harmless(html), thing
    assert "<table>" in found._repr_html_() and "ValueError" in found.failures._repr_html_()


def test_the_table_is_that_of_the_command_line() -> None:
    table = result().stats.table()
    head, source, work = table.splitlines()
    assert head.split() == ["stage", "context", "in", "out", "failed", "busy", "s", "p50", "ms",
                            "p99", "ms"]  # fmt: skip
    assert source.startswith("source") and "\\x1b" in work and work.isprintable()
    assert work.split()[-6:-3] != []


def test_failures_are_a_list_with_ways_to_keep_them(tmp_path: Path) -> None:
    failures = result().failures
    assert isinstance(failures, list) and len(failures) == 3 and failures[:1] == [failures[0]]
    records = failures.to_records()
    assert [record["item"] for record in records[:2]] == [HOSTILE, {"a": 1, "b": HOSTILE}]
    assert all(record["type"] == "ValueError" and "fails" in record["traceback"]
               for record in records)  # fmt: skip
    failures.save(tmp_path / "failed.jsonl")
    lines = (tmp_path / "failed.jsonl").read_text().splitlines()
    assert [json.loads(line)["error"] for line in lines] == [HOSTILE * 50] * 3
    with pytest.raises(OSError):
        failures.save(tmp_path)
    assert [f.stage for f in pickle.loads(pickle.dumps(failures))] == [f.stage for f in failures]


def test_an_item_that_leads_to_itself_is_text() -> None:
    item: dict[str, Any] = {}
    item["me"] = item
    (record,) = fm.Pipeline().source([item]).map(fails, on_error="skip").run().failures.to_records()
    json.dumps(record)


@fm.node(output_name="half")
def half(n: int) -> float:
    return 1 / (n - 2)


graph = fm.Graph([half])


def test_what_failed_of_a_graph_can_be_run_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = graph.map({"n": [1, 2, 3]}, "n", on_error="skip")
    assert one_line(repr(found)) and one_line(repr(found.failures))
    found.failures.save(tmp_path / "failed.jsonl")
    found.report(tmp_path / "map.html")
    assert "ZeroDivisionError" in (tmp_path / "map.html").read_text()
    (tmp_path / "n.jsonl").write_text("1\n4\n3\n")  # the second one is mended
    monkeypatch.chdir(tmp_path)
    (tmp_path / "halves.py").write_text(
        "import forkmill as fm\n@fm.node(output_name='half')\ndef half(n): return 1 / (n - 2)\n"
        "graph = fm.Graph([half])\n"
    )
    capfd.readouterr()
    arguments = ["run", "halves:graph", "--map", "n=n.jsonl", "--only-failed", "failed.jsonl"]
    assert main(arguments) == 0
    assert json.loads(capfd.readouterr().out) == {"half": 0.5}


class Count(TypedDict):
    n: int


def test_a_state_graph_has_a_report_too(tmp_path: Path) -> None:
    states = fm.StateGraph(Count)
    states.add_node("more", lambda state: {"n": state["n"] + 1})
    states.add_edge(fm.START, "more")
    states.add_edge("more", fm.END)
    run = states.compile().invoke({"n": 1}, report=tmp_path / "run.html")
    assert "completed" in (tmp_path / "run.html").read_text()
    run.report(tmp_path / "after.html")
    assert "completed" in (tmp_path / "after.html").read_text()
    assert run.failures == [] and repr(run.failures) == "[]"

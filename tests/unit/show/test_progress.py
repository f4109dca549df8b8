"""How far runs are, as people see it: on a terminal, in a notebook, as lines."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest
from rich.progress_bar import ProgressBar

import forkmill as fm
from forkmill.show import draw, text
from forkmill.show import progress as progress_module
from forkmill.show.board import Board
from forkmill.show.text import amount, clock, lines, plain, span

HOSTILE = "<script>alert(1)</script>\x1b[31m\x07\u202e\u2066\u200b\ud800[red]</pre>&\"'"


def event(kind: str, run: str = "r", parent: str | None = None, **data: Any) -> dict[str, Any]:
    at = data.pop("at", 0.0)
    name = data.pop("name", None)
    head = {"schema": 1, "source": "pipeline", "run": run, "parent": parent, "seq": 0}
    tail = {"item": None, "attempt": None, "worker": None, "seconds": None, "data": data}
    return {**head, "time": at, "monotonic": at, "kind": kind, "name": name, **tail}


# ------------------------------------------------------------------------------ text


def test_text_from_elsewhere_has_nothing_that_a_terminal_obeys() -> None:
    for shown in (plain(HOSTILE), lines(HOSTILE)):
        assert shown.isprintable()
        assert "\\x1b[31m" in shown and "\\u202e" in shown and "\\ud800" in shown
        shown.encode()
    assert lines("a\n\tb\x1b") == "a\n    b\\x1b"
    assert plain("plain ünïcode") == "plain ünïcode"
    assert len(plain("x" * 1000)) == 200


def test_what_has_no_text_has_its_type() -> None:
    class Mute:
        def __str__(self) -> str:
            raise KeyError

    assert plain(Mute()) == "<Mute>"


def test_numbers_are_told_as_people_do() -> None:
    assert [clock(s) for s in (-1, 7, 754, 3723, 400_000)] == [
        *("0:00", "0:07", "12:34", "1:02:03", "4 d 15 h"),
    ]
    assert [span(s) for s in (None, 5e-9, 1.2e-5, 0.0034, 5.6)] == [
        *("", "5 ns", "12 us", "3.4 ms", "5.6 s"),
    ]
    assert [amount(n, "bytes") for n in (7, 7300, 8.1e6, 9.2e12)] == [
        *("7 B", "7.3 kB", "8.1 MB", "9.2 TB"),
    ]
    assert amount(12345) == "12,345"


def test_a_program_has_the_name_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    for argv, shown in (
        (["/lib/forkmill/__main__.py", "run", "a:b"], "forkmill run a:b"),
        (["train.py", HOSTILE], f"train.py {plain(HOSTILE)}"),
        ([""], "python"),
        ([], "python"),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        assert text.program(200) == shown


# ------------------------------------------------------------------------------ boards


def test_a_board_knows_the_rate_and_what_is_left() -> None:
    board = Board()
    board.take(event("run_started", name="words", total=100))
    for second in range(6):
        board.take(event("progress", at=second, done=10 * second, failed=1, workers=4))
    assert board.rate == 10 and board.left == 5 and board.part == 0.5
    assert board.line() == "words: 50/100 items, 50%, 1 failed, 10/s, 0:05, 0:05 left, 4 workers"
    board.take(event("progress", at=10.0, done=100, failed=1, workers=4))
    board.take(event("run_finished", at=10.0, status="completed"))
    assert board.line() == "words: completed, 100/100 items, 1 failed, 10/s, 10.0 s"


def test_what_waits_behind_a_source_is_not_done() -> None:
    plan = {
        "nodes": [{"name": "a", "kind": "producer"}, {"name": "b", "kind": "stage", "workers": 3}],
        "edges": [["a", "b"]],
    }
    board = Board()
    board.take(event("run_started", name="p", total=100, plan=plan))
    a = {"in": 0, "out": 90, "failed": 0, "waiting": 0, "under_way": 0}
    b = {"in": 40, "out": 40, "failed": 2, "waiting": 50, "under_way": 3}
    board.take(event("progress", stages={"a": a, "b": b}))
    assert (board.done, board.total, board.failed, board.workers) == (37, 100, 2, 3)
    board.take(event("progress", stages={"a": a, "b": {**b, "waiting": 60}}))
    assert board.done == 37, "it never goes back"


def test_memory_does_not_grow_with_a_run() -> None:
    board = Board()
    for n in range(1_000):
        board.take(event("progress", at=float(n), stages={f"s{i}": {} for i in range(300)}))
    assert len(board._samples) < 200 and len(board.rows) == 200


# ------------------------------------------------------------------------------ lines


def test_elsewhere_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    result = fm.Pipeline("words").source(range(10)).map(abs).run(progress=True)
    told = capsys.readouterr()
    assert told.out == ""
    *_, line = told.err.splitlines()  # a machine that is very busy has some before
    assert line.startswith("words: completed, 10/10 items")
    assert result.ok


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    sink = fm.Progress(every=1e-9, total=4, title="mine")
    for number in range(4):
        sink(event("progress", at=float(number), done=number))
    sink(event("run_finished", at=4.0, status="completed"))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) >= 3 and all(line.startswith("mine: ") for line in shown)
    assert "3/4 items" in shown[-1]


def test_a_run_within_a_run_is_not_shown_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    sink = fm.Progress()
    sink(event("run_started", "outer", name="outer"))
    sink(event("run_started", "inner", "outer", name="inner"))
    sink(event("run_finished", "inner", "outer", status="failed"))
    sink(event("run_finished", "outer", status="completed"))
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["outer"]


def test_hostile_names_are_shown_and_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = fm.Pipeline(HOSTILE).source(range(3)).map(abs, name="work")
    pipeline.run(progress=True)
    shown = capsys.readouterr().err.rstrip("\n")
    assert shown.isprintable() and "\\x1b" in shown


@pytest.mark.parametrize("verb", ["start", "stream", "arun", "astream", "execute"])
def test_wherever_a_pipeline_starts(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    pipeline = fm.Pipeline("p").source([1, 2]).map(abs)

    async def outputs() -> list[Any]:
        return [value async for value in pipeline.astream(progress=True)]

    if verb == "start":
        found = pipeline.start(progress=True).result().outputs
    elif verb == "stream":
        found = list(pipeline.stream(progress=True))
    elif verb == "execute":
        found = fm.Orchestrator(pipeline).execute(progress=True).outputs
    elif verb == "arun":
        found = asyncio.run(pipeline.arun(progress=True)).outputs
    else:
        found = asyncio.run(outputs())
    assert found == [1, 2]
    assert capsys.readouterr().err.startswith("p: completed, 2/2 items")


# ------------------------------------------------------------------------------ maps


def odd_fails(n: int) -> int:
    if n % 2:
        raise ValueError(HOSTILE)
    return n


@pytest.mark.parametrize("context", ["ipc_fork:2", "thread:2", "inline", "cow_fork:2"])
def test_a_map_is_shown(context: str, capsys: pytest.CaptureFixture[str]) -> None:
    with fm.executor(context) as executor:
        it = executor.map(odd_fails, range(10), return_exceptions=True, progress=True)
        assert sum(isinstance(value, ValueError) for value in it) == 5
        assert capsys.readouterr().err.startswith("odd_fails: completed, 10/10 items, 5 failed")
        it = executor.starmap(max, iter([(1, 2)] * 3), progress=True, total=3)
        assert list(it) == [2, 2, 2]
        assert capsys.readouterr().err.startswith("max: completed, 3/3 items")
        with pytest.raises(ValueError):
            list(executor.map(odd_fails, [1], progress=True))
        assert capsys.readouterr().err.startswith("odd_fails: failed")
        executor.map(odd_fails, range(1000), progress=True).close()  # type: ignore[attr-defined]
        assert capsys.readouterr().err.startswith("odd_fails: stopped, 0/1,000 items")
        assert list(executor.map(odd_fails, [], progress=True)) == []
        assert capsys.readouterr().err.startswith("odd_fails: completed, 0/0 items")


@pytest.mark.shared_pool
def test_the_shared_pool_tells_its_sinks(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[dict[str, Any]] = []
    assert list(fm.map(abs, range(5), workers=1, sinks=[events.append])) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""
    assert [events[0]["kind"], events[-1]["kind"]] == ["run_started", "run_finished"]
    assert events[-2]["data"] == {"done": 5, "failed": 0, "total": 5, "workers": 1}


@pytest.mark.shared_pool
def test_wrong_wishes_are_told_at_once() -> None:
    for wrong in ("yes", 1, object()):
        with pytest.raises(TypeError, match="progress must be True, False"):
            fm.map(abs, [1], progress=wrong)
        with pytest.raises(TypeError, match="progress must be True, False"):
            fm.Pipeline().source([1]).map(abs).run(progress=wrong)
    with pytest.raises(ValueError, match="total must be"):
        fm.Progress(total=-1)
    with pytest.raises(ValueError):
        fm.Progress(every=0)
    with pytest.raises(ValueError):
        fm.map(abs, [1], total=-1)


def test_nothing_is_loaded_for_who_does_not_look() -> None:
    code = """
        import sys, forkmill as fm
        fm.Pipeline().source(range(3)).map(abs).run()
        assert list(fm.map(abs, [1], workers=1)) == [1]
        print([name for name in sys.modules if name.startswith(("forkmill.show", "rich"))])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.check_output(command, text=True, timeout=30).strip() == "[]"


# ------------------------------------------------------------------------------ terminals


def on_a_terminal(folder: Path, code: str, *arguments: str, **environment: str) -> tuple[str, str]:
    """What a program shows on a terminal of 80x24 that is its standard error, and its output."""
    import fcntl
    import struct
    import termios

    script = folder / "script.py"
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**env, "TERM": "xterm", **environment},
        text=True,
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's answer when the other end is closed
            while piece := os.read(ours, 4096):
                shown += piece
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(20) == 0, shown.decode(errors="replace")
    os.close(ours)
    return shown.decode(errors="replace"), out


RUN = """
    import time
    import forkmill as fm
    def work(x): time.sleep(0.004); return x
    name = "words [bold]" + chr(27) + "[5m" + chr(0x202e)
    p = fm.Pipeline(name).source(range(100)).map(work, context="thread:2", name="work")
    print(len(p.run(progress=True).outputs))
"""

pty = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")


@pty
def test_a_terminal_has_a_bar_and_the_stages(tmp_path: Path) -> None:
    shown, out = on_a_terminal(tmp_path, RUN)
    assert out == "100\n"
    assert "━" in shown and "work" in shown and "thread:2" in shown
    assert "\x1b[5m" not in shown and "\u202e" not in shown and "[bold]" in shown
    last = shown.rpartition("\x1b[2K")[2]
    assert "completed" in last and "100/100 items" in last, "the last look stays"
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h"), "the cursor is there again"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("setting", "draws"),
    [
        ({}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": "vt100"}, True),
        ({"TERM": "xterm", "TTY_COMPATIBLE": "0"}, False),
        ({"TERM": "xterm", "TTY_INTERACTIVE": "0"}, False),
        ({"TERM": "xterm", "FORCE_COLOR": ""}, True),
    ],
)
def test_a_terminal_that_cannot_draw_gets_lines(
    monkeypatch: pytest.MonkeyPatch, setting: dict[str, str], draws: bool
) -> None:
    for name in ("TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    sink = fm.Progress(every=1e-9)
    sink(event("run_started", name="words", total=4))
    for done in range(3):
        sink(event("progress", at=float(done), done=done))
    shown = screen.getvalue()
    sink(event("run_finished", at=4.0, status="completed"))
    assert ("\x1b" in shown) == draws
    assert "2/4 items" in shown, "before its end"
    assert "completed" in screen.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not progress_module.draws(sys.stderr)


WAYS = """
import os, sys, time
from typing import TypedDict
import forkmill as fm
import forkmill.cli

class State(TypedDict):
    n: int

def nap(n: int) -> int:
    time.sleep(0.005)
    return n

def step(state: State) -> State:
    return {"n": nap(state["n"])}

def line(): return fm.Pipeline("line").source(range(4)).map(nap, context="thread:2")
graph = fm.Graph([fm.node(nap)])
app = fm.StateGraph(State)
app.add_node("step", step)
app.add_edge(fm.START, "step")
app = app.compile()

def each():
    yield "a pipeline", lambda: line().run(progress=True)
    yield "a handle", lambda: line().start(progress=True).result()
    yield "a progress", lambda: line().run(progress=fm.Progress(title="mine"))
    yield "a graph", lambda: graph.run({"n": 1}, progress=True)
    yield "a graph's map", lambda: graph.map({"n": [1, 2]}, "n", engine="thread:2", progress=True)
    yield "a state graph", lambda: app.invoke({"n": 1}, progress=True)
    with fm.executor("thread:2") as executor:
        yield "a map", lambda: list(executor.map(nap, range(4), progress=True))
    for name in "line", "graph", "app":
        rest = {"line": [], "graph": ["--map", "n=n.jsonl"], "app": ["--set", "n=1"]}[name]
        command = ["run", f"ways:{name}", *rest]
        yield f"forkmill run {name}", lambda: forkmill.cli.main(command)
    yield "forkmill map", lambda: forkmill.cli.main(["map", "ways:nap", "n.jsonl", "-j", "1"])

if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    for setting in sys.argv[1:]:
        for name in "TERM", "NO_COLOR", "TTY_COMPATIBLE", "FORCE_COLOR":
            os.environ.pop(name, None)
        os.environ.update(pair.split("=") for pair in setting.split(",") if pair)
        for way, start in each():
            sys.stderr.write(f"<<{setting} {way}>>")
            sys.stderr.flush()
            start()
"""


@pty
def test_every_way_shows_something_on_every_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ways.py").write_text(WAYS)
    (tmp_path / "n.jsonl").write_text("1\n" * 4)
    lines = ("", "TERM=dumb")
    drawn = ("TERM=xterm,FORCE_COLOR=", "TERM=xterm,NO_COLOR=1")  # the first is none for rich
    shown, _ = on_a_terminal(tmp_path, WAYS, *lines, *drawn)
    looks = dict(part.split(">>", 1) for part in shown.split("<<")[1:])
    assert len(looks) == 4 * 11
    for way, look in looks.items():
        setting = way.partition(" ")[0]
        if setting in lines:
            assert "completed, " in look and "\x1b" not in look, (way, look)
            continue
        assert "\x1b[" in look and "\x1b[?25h" in look.rpartition("\x1b[?25l")[2], (way, look)
        assert not ("NO_COLOR" in setting and "\x1b[3" in look), (way, look)


@pty
def test_no_colours_and_a_plain_locale(tmp_path: Path) -> None:
    shown, _ = on_a_terminal(
        tmp_path, RUN, NO_COLOR="1", LC_ALL="C", PYTHONIOENCODING="ascii:backslashreplace",
        PYTHONUTF8="0",
    )  # fmt: skip
    assert "\x1b[3" not in shown and shown.isascii() and "100/100 items" in shown


@pty
@pytest.mark.parametrize(("width", "height"), [("20", "3"), ("1", "1"), ("40", "5")])
def test_a_terminal_that_is_too_small_shows_less(tmp_path: Path, width: str, height: str) -> None:
    shown, out = on_a_terminal(tmp_path, RUN, COLUMNS=width, LINES=height)
    assert out == "100\n" and "Traceback" not in shown


@pty
def test_two_runs_share_the_terminal(tmp_path: Path) -> None:
    code = """
        import time
        import forkmill as fm
        def work(x): time.sleep(0.005); return x
        def line(name, n): return fm.Pipeline(name).source(range(n)).map(work, context="thread:2")
        runs = [line("first", 60).start(progress=True), line("second", 120).start(progress=True)]
        print(sum(len(run.result().outputs) for run in runs))
    """
    shown, out = on_a_terminal(tmp_path, code)
    assert out == "180\n"
    assert "first" in shown and "second" in shown
    assert shown.count("completed") == 2


# ------------------------------------------------------------------------------ notebooks


class Handle:
    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def update(self, data: dict[str, str], raw: bool) -> None:
        assert raw
        self.shown.append(data)


def test_a_notebook_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle()
    shell: Any = types.ModuleType("IPython")
    shell.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    shell.display = types.SimpleNamespace(display=lambda data, raw, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert progress_module.in_notebook()
    fm.Pipeline(HOSTILE).source(range(3)).map(abs, name="work").run(progress=True)
    last = handle.shown[-1]
    assert "3/3 items" in last["text/plain"] and "completed" in last["text/html"]
    assert "<script" not in last["text/html"] and "&lt;script&gt;" in last["text/html"]
    assert last["text/html"].isprintable() and "<table>" in last["text/html"]


def negated(x: int) -> int:
    return -x


def test_who_hears_everything_hears_of_maps_too() -> None:
    seen: list[dict[str, Any]] = []
    end = fm.subscribe(seen.append)
    try:
        with fm.ProcessPool(1) as pool:
            assert list(pool.map(abs, range(3))) == [0, 1, 2]
        graph = fm.Graph([fm.node(negated)])  # which maps over a pool, and tells of it itself
        assert len(graph.map({"x": range(3)}, "x", engine="parallel:1")) == 3
    finally:
        end()
    runs = [(e["kind"], e["name"]) for e in seen if e["source"] == "map" and "run_" in e["kind"]]
    assert runs == [("run_started", "abs"), ("run_finished", "abs")]
    assert any(event["source"] == "graph" for event in seen)


@pytest.mark.parametrize(
    ("variables", "boxes"),
    [
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LANG": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # as Python itself puts it there
        ({"LANG": "en_US.UTF-8", "LC_CTYPE": "C.UTF-8"}, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "POSIX"}, False),
        ({"LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}, True),
        ({}, True),
    ],
)
def test_bars_are_ascii_where_the_locale_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], boxes: bool
) -> None:
    for name in ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", written)
    assert (text.encoding_of(written) == "utf-8") == boxes
    screen = draw.console(False)
    screen.print(ProgressBar(total=1.0, completed=0.5, width=10))
    written.flush()
    drawn = written.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert drawn.isascii() != boxes

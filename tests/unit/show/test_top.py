"""The dashboard: what it knows, how it looks, what its keys do, and who may look."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from rich.cells import cell_len

import forkmill as fm
from forkmill.show.top import link, place, plan
from forkmill.show.top import server as server_module
from forkmill.show.top.desk import Desk
from forkmill.show.top.look import View, chosen, frame, glyphs_for, rows_of
from forkmill.show.top.procs import Procs, _seconds
from forkmill.show.top.scene import Scene
from forkmill.show.top.server import Server

HOSTILE = "<script>alert(1)</script>\x1b[31m\x07\u202e\u2066\u200b\ud800[red]</pre>&\"'"
SIZES = [(80, 24), (120, 40), (200, 60), (40, 10)]
BOXES, ASCII = glyphs_for("utf-8"), glyphs_for("latin-1")


def event(kind: str, run: str | None = "r", **data: Any) -> dict[str, Any]:
    head = {"schema": 1, "source": data.pop("source", "pipeline"), "run": run, "seq": 0}
    at = data.pop("at", 0.0)
    known = ("parent", "name", "item", "attempt", "worker", "seconds")
    given = {name: data.pop(name, None) for name in known}
    return {**head, "time": at, "monotonic": at, "kind": kind, **given, "data": data}


def told(name: str = "words", stage: str = "parse") -> Scene:
    """A run of three stages that goes on."""
    scene = Scene()
    nodes = [
        {"name": "numbers", "kind": "producer", "context": "inline", "workers": 0, "queue": 100},
        {"name": stage, "kind": "map", "context": "ipc_fork:2", "workers": 2, "queue": 100},
        {"name": "load", "kind": "sink", "context": "inline", "workers": 0, "queue": 100},
    ]
    edges = [["numbers", stage], [stage, "load"]]
    shape = {"nodes": nodes, "edges": edges}
    scene.take(event("run_started", name=name, total=1000, plan=shape))
    for second in range(4):
        done = 100 * second
        stages = {
            "numbers": {"in": 0, "out": done + 50, "failed": 0, "waiting": 0},
            stage: {
                "in": done + 50, "out": done, "failed": 2, "waiting": 30, "under_way": 20,
                "busy": 1.5 * second, "p50": 0.01, "p99": 0.2,
            },
            "load": {"in": done, "out": 0, "failed": 0, "waiting": 0, "busy": 0.1},
        }  # fmt: skip
        scene.take(event("progress", at=float(second), stages=stages))
    scene.take(event("worker_started", "pool", source="pool", name=stage, worker=77, at=3.0))
    scene.take(event("item_failed", name=stage, item="7", error=f"ValueError({name!r})", at=3.0,
                     attempts=2, traceback=f"Traceback\n{name}"))  # fmt: skip
    scene.take(event("log", "pool", source="pool", name="app", worker=77, at=3.0,
                     level_name="WARNING", message=f"careful {name}"))  # fmt: skip
    return scene


class Given:
    """A source that stands still."""

    title, note, over, control, live = "program (pid 5)", "", False, True, False

    def __init__(self, scene: Scene) -> None:
        self.scene: dict[str, Any] | None = {**scene.facts(), "now": 4.0}
        self.asked: list[tuple[str, Any]] = []

    def look(self, seconds: float) -> bool:
        return False

    def ask(self, do: str, which: Any) -> int:
        self.asked.append((do, which))
        return len(self.asked)

    def answers(self) -> dict[int, str]:
        return {len(self.asked): "an answer"} if self.asked else {}

    def close(self) -> None:
        pass


def text_of(lines: list[list[tuple[str, str]]]) -> str:
    return "\n".join("".join(text for text, _ in line) for line in lines)


# ------------------------------------------------------------------------------ looks


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("glyphs", [BOXES, ASCII], ids=["boxes", "ascii"])
def test_a_frame_fills_the_terminal_and_never_more(size: tuple[int, int], glyphs: Any) -> None:
    for name in ("words", HOSTILE, "日本語" * 30):
        source = Given(told(name, name))
        for section in range(3):
            for text in (None, "x" * 500 + "\n" * 200 + HOSTILE):
                lines = frame(source, View(section=section, text=text), size, glyphs)
                assert len(lines) == size[1]
                for line in lines:
                    whole = "".join(part for part, _ in line)
                    assert cell_len(whole) == size[0] and whole.isprintable(), whole
                    assert not glyphs.ascii or whole.isascii()


def test_what_a_run_does_is_seen() -> None:
    shown = text_of(frame(Given(told()), View(), (120, 40), BOXES))
    assert "numbers ─[██··]▶ ◆parse ─▶ load" in shown
    assert "ipc_fork:2" in shown and "50/100" in shown and "200 ms" in shown and "100/s" in shown
    assert "FAILED" in shown and "ValueError('words')" in shown and "careful words" in shown
    assert "30%" in shown or "300/1,000" in shown
    small = text_of(frame(Given(told()), View(), (80, 24), ASCII))
    assert "numbers -[##..]> *parse -> load" in small
    load = next(line for line in small.split("\n") if line.strip().startswith("load"))
    assert load.endswith("100/s"), "what it takes: nothing comes out of it"
    scene = told()
    scene.take(event("item_failed", name="parse", item="x" * 50, error="Long", at=3.0))
    assert f"{'x' * 11}~ Long" in text_of(frame(Given(scene), View(), (80, 24), ASCII))
    heads = next(line for line in small.split("\n") if "stage" in line).split()
    assert heads == [">", "stage", "in", "out", "failed", "queue", "busy", "rate"]


def test_a_terminal_that_is_too_small_is_told_so() -> None:
    lines = frame(Given(told()), View(), (39, 5), BOXES)
    assert len(lines) == 5 and "39x5 is too small:" in text_of(lines)
    assert "it takes 40x10" in text_of(frame(Given(told()), View(), (20, 9), BOXES))
    assert frame(Given(told()), View(), (10, 0), BOXES) == []


def test_glyphs_are_those_of_the_encoding() -> None:
    assert not glyphs_for("utf-8").ascii
    assert all(glyphs_for(name).ascii for name in ("ascii", "latin-1", None, "no such encoding"))


def test_rows_are_sorted_and_filtered() -> None:
    scene = {**told().facts(), "now": 4.0}
    names = [row["name"] for row in rows_of(scene, View(sorts=[1, 0, 0]), 0)]
    assert names == sorted(names)
    assert next(row["name"] for row in rows_of(scene, View(sorts=[7, 0, 0]), 0)) == "parse"
    assert [row["name"] for row in rows_of(scene, View(wanted="PAR"), 0)] == ["parse"]
    assert len(rows_of(scene, View(wanted="careful"), 2)) == 1


@pytest.mark.parametrize(
    ("edges", "lines"),
    [
        ([], []),
        ([[0, 1], [1, 2], [1, 3]], ["a ─▶ b ─▶ c", "b ─▶ d"]),
        ([[0, 1], [1, 0]], ["a ─▶ b ─▶ a"]),
        ([[0, 2], [1, 2], [2, 3]], ["a ─▶ c ─▶ d", "b ─▶ c"]),
    ],
)
def test_a_plan_has_every_edge_once(edges: list[list[int]], lines: list[str]) -> None:
    stages = [{"name": name, "context": "inline"} for name in "abcd"]
    assert plan.chains(stages, edges, BOXES, 60) == lines
    assert all(len(line) <= 8 for line in plan.chains(stages, edges, BOXES, 8))


def test_memory_of_a_scene_is_bounded() -> None:
    scene = Scene()
    for number in range(300):
        run = f"r{number}"
        scene.take(event("run_started", run, name="x"))
        stages = {f"s{n}": {"in": 1, "out": 1, "failed": 0} for n in range(400)}
        scene.take(event("progress", run, stages=stages))
        scene.take(event("item_failed", run, name="s", error="e" * 100_000, traceback="t" * 10**6))
        scene.take(event("worker_started", run, worker=number * 7, name="w"))
        if number % 2:
            scene.take(event("run_finished", run, status="completed"))
    facts = scene.facts()
    assert len(facts["runs"]) == 50 and facts["more_runs"] == 250
    assert max(len(run["stages"]) for run in facts["runs"]) == 200
    assert facts["failed"] == 300 and len(facts["failures"]) == 50
    assert len(json.dumps({**facts, "runs": []})) < 100_000
    assert scene.failure(300) is not None and scene.failure(1) is None


def test_the_run_that_goes_on_is_looked_at() -> None:
    scene = Scene()
    for run, parent in (("a", None), ("b", "a"), ("c", None)):
        scene.take(event("run_started", run, parent=parent, name=run))
    facts = scene.facts()
    assert chosen(facts, View())["id"] == "c"  # type: ignore[index]
    assert chosen(facts, View(run="b"))["id"] == "b"  # type: ignore[index]
    scene.take(event("run_finished", "c", status="completed"))
    assert chosen(scene.facts(), View())["id"] == "a"  # type: ignore[index]
    assert chosen({}, View()) is None


# ------------------------------------------------------------------------------ keys


def pressed(desk: Desk, *keys: str) -> str:
    for key in keys:
        desk.press(key, key if len(key) == 1 else None)
        desk.tick()
    return text_of(desk.frame((100, 30)))


def test_keys_do_what_they_say() -> None:
    source = Given(told())
    desk = Desk(source, BOXES)
    assert "tab          the next part" in pressed(desk, "question_mark")
    assert "tab          the next part" not in pressed(desk, "escape")
    assert "context" in pressed(desk, "down", "enter") and desk.view.text is not None
    pressed(desk, "escape", "tab", "tab")
    assert desk.view.section == 2
    shown = pressed(desk, "s", "s", "s", "slash", "V", "a", "l", "enter")
    assert "careful" not in shown and "ValueError" in shown
    pressed(desk, "enter")
    assert source.asked == [("failure", 1)] and desk.view.text == "an answer"
    pressed(desk, "escape", "t")
    assert "choose a worker" in desk.view.note and not desk.closed
    pressed(desk, "q")
    assert desk.closed


def test_only_yes_ends_a_run() -> None:
    source = Given(told())
    desk = Desk(source, BOXES)
    assert "stop words? y/n" in pressed(desk, "x")
    pressed(desk, "n")
    pressed(desk, "k", "escape")
    assert source.asked == []
    pressed(desk, "x", "y", "k", "y")
    assert source.asked == [("stop", "r"), ("kill", "r")]
    source.control = False
    pressed(desk, "x")
    assert len(source.asked) == 2 and "serve_top(control=True)" in desk.view.note


# ------------------------------------------------------------------------------ places


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sockets are in here: a short path."""
    folder = Path(os.path.realpath(subprocess.check_output(["mktemp", "-d"], text=True).strip()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setattr(place, "_shared", lambda: str(folder / "tmp"))
    (folder / "tmp").mkdir()
    return folder


def mode_of(path: str | Path) -> int:
    return os.lstat(path).st_mode & 0o777


def test_a_socket_is_this_users_alone(runtime: Path) -> None:
    before = os.umask(0)
    try:
        with fm.serve_top() as server:
            assert server.path == str(runtime / "forkmill" / f"{os.getpid()}.sock")
            assert mode_of(server.path) == 0o600 and mode_of(runtime / "forkmill") == 0o700
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert os.listdir(runtime / "forkmill") == []


def test_without_a_runtime_folder_it_is_below_tmp(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("", "relative", str(runtime / "nowhere"), str(runtime / ("x" * 200))):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert place.folder() == str(runtime / "tmp" / f"forkmill-{os.geteuid()}")


def test_a_folder_that_others_can_reach_is_refused(runtime: Path) -> None:
    others = runtime / "tmp" / f"forkmill-{os.geteuid()}"
    (runtime / "forkmill").mkdir(mode=0o755)
    others.symlink_to(runtime)
    with pytest.raises(OSError, match=r"chmod 700 it; .*(directory|links)"):
        fm.serve_top()
    os.chmod(runtime / "forkmill", 0o700)
    place.folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(runtime: Path) -> None:
    (runtime / "forkmill").mkdir(mode=0o700)
    os.chown(runtime / "forkmill", 12345, -1)
    os.rmdir(runtime / "tmp")
    with pytest.raises(OSError, match=r"belongs to another user \(uid 12345\)"):
        place.folder()
    child = subprocess.Popen(["sleep", "60"], user=12345)
    try:
        with pytest.raises(link.LinkError, match=r"belongs to another user \(uid 12345\)"):
            link.Link(child.pid)
    finally:
        child.kill()
        child.wait()


def test_stale_sockets_are_removed(runtime: Path) -> None:
    folder = Path(place.folder())
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f"{gone.pid}.sock", f"{os.getppid()}.sock", f"{os.getpid()}.sock", "other"):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as left:
            left.bind(str(folder / name))
    with fm.serve_top():
        assert not (folder / f"{gone.pid}.sock").exists() and (folder / "other").exists()
        with pytest.raises(link.LinkError, match=r"has no dashboard: start it with FORKMILL_TOP=1"):
            link.Link(os.getppid())
        assert not (folder / f"{os.getppid()}.sock").exists()
    with pytest.raises(link.LinkError, match=f"there is no process {gone.pid}"):
        link.opened(str(gone.pid))


def test_who_listens_is_known_by_the_kernel(runtime: Path) -> None:
    folder = Path(place.folder())
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as ours:
        ours.bind(str(folder / f"{os.getppid()}.sock"))
        ours.listen()
        with pytest.raises(link.LinkError, match=f"by the process {os.getpid()}, not by"):
            link.Link(os.getppid())


# ------------------------------------------------------------------------------ programs


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 40
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def looked(source: link.Link) -> dict[str, Any]:
    until(lambda: source.look(0.1))
    assert source.scene is not None
    return source.scene


def slow(number: int) -> int:
    time.sleep(0.002)
    if number == 3:
        raise ValueError(HOSTILE)
    return number


@pytest.fixture
def run() -> Iterator[Any]:
    """A run that goes on."""
    line = fm.Pipeline("words").source(range(100_000))
    handle = line.map(slow, name="slow", context="ipc_fork:2", on_error="skip").start()
    yield handle
    handle.kill()
    handle.result(20)


def test_a_program_is_looked_at_and_its_run_stopped(runtime: Path, request: Any) -> None:
    with fm.serve_top(control=True), pytest.raises(RuntimeError, match="is served already"):
        fm.serve_top()
    with fm.serve_top(control=True) as server:
        handle = request.getfixturevalue("run")
        with contextlib.closing(link.Link(os.getpid())) as source:
            until(lambda: looked(source)["failures"])
            until(lambda: sum(w["state"] == "busy" for w in looked(source)["workers"]) == 2)
            scene = looked(source)
            assert {worker["what"] for worker in scene["workers"]} == {"slow"}
            assert scene["runs"][-1]["title"] == "words" and server.watched == 1
            answers = {}
            worker = scene["workers"][0]["pid"]
            asked = [("failure", scene["failures"][0]["number"])]
            asked += [("stacks", 1), ("stop", "nowhere"), ("stop", scene["runs"][-1]["id"])]

            def stacks() -> str:  # it may be between two calls
                number = source.ask("stacks", worker)
                until(lambda: source.look(0.1) and number in source._answers)
                return source.answers()[number]

            until(lambda: "slow" in stacks() or sys.platform != "linux")
            numbers = [source.ask(*each) for each in asked]
            while len(answers) < len(asked):
                source.look(0.1)
                answers.update(source.answers())
            failure, stranger, nowhere, stopped = (answers[n] for n in numbers)
            assert "in slow" in failure and "\x1b" not in failure and "\\u202e" in failure
            assert "no worker" in stranger and "over" in nowhere and stopped == "asked to stop"
            assert handle.result(20).status == "stopped"
            server.close()
            until(lambda: source.look(0.1) and source.over)
            assert source.note == "the program has ended"
            assert source.scene["runs"][-1]["status"] == "stopped"  # type: ignore[index]
    shown = text_of(frame(source, View(), (80, 24), BOXES))
    assert "stopped" in shown and shown.replace("\n", "").isprintable()


def test_what_is_no_dashboard_is_dropped_and_nothing_is_done(
    runtime: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fm.serve_top() as server:
        with contextlib.closing(link.Link(os.getpid())) as source:
            number = source.ask("kill", run._driver.events.id)
            until(lambda: source.look(0.1) and number in source._answers)
            assert source.answers()[number].startswith("read only") and not source.control
        for line in (b"GET / HTTP/1.1\n", b"[]\n", b'{"do":"__init__","number":1}\n', b"x" * 9999):
            with contextlib.closing(place.connected(os.getpid())) as other:
                other.settimeout(20)
                with contextlib.suppress(ConnectionResetError):
                    other.sendall(line)
                    while other.recv(1 << 20):
                        pass
        # Nobody reads these; each costs no more than a scene.
        frozen = [place.connected(os.getpid()) for _ in range(8)]
        monkeypatch.setattr(server_module, "_EVERY_S", 0.001)
        until(lambda: server.watched == 8)
        until(lambda: all(client.out for client in server._clients.values()))
        before = run.stats()["slow"].in_
        waiting = [len(client.out) for client in server._clients.values()]
        until(lambda: run.stats()["slow"].in_ > before + 100)
        assert waiting == [len(client.out) for client in server._clients.values()]
        assert max(waiting) < 1 << 20
        begin = time.monotonic()
        server.close()
        assert time.monotonic() - begin < 6
        for each in frozen:
            each.close()


def test_other_processes_serve_nothing(runtime: Path, run_script: Callable[..., Any]) -> None:
    script = """
        import os, subprocess, sys
        import forkmill as fm
        from forkmill.show.top import place
        from forkmill.show.top.server import current

        def look():
            return os.environ.get("FORKMILL_TOP"), current() is None

        if __name__ == "__main__":
            assert current() is not None
            assert look() == (None, False)
            for method in ("fork", "zygote", "spawn"):
                with fm.ProcessPool(1, start_method=method) as pool:
                    assert pool.submit(look).result() == (None, True), method
            pid = os.fork()
            if not pid:
                os._exit(current() is not None)
            assert os.waitpid(pid, 0)[1] == 0
            print(os.listdir(place.folder()))
    """
    environment = {"FORKMILL_TOP": "1", "XDG_RUNTIME_DIR": str(runtime)}
    done = run_script(script, env=environment)
    assert f"['{done.process.pid}.sock']" in done.report()
    assert os.listdir(runtime / "forkmill") == []


def test_processes_are_measured() -> None:
    procs = Procs()
    assert procs.look([os.getpid(), 2**22 + 5])[os.getpid()].rss > 1 << 20
    assert [_seconds(text) for text in ("1:02.50", "1:02:03", "2-01:02:03")] == [
        *(62.5, 3723.0, 176523.0),
    ]


# ------------------------------------------------------------------------------ recordings


def recorded(path: Path) -> Path:
    line = fm.Pipeline("words").source(range(20)).map(slow, name=HOSTILE, on_error="skip")
    line.run(sinks=[fm.JsonLines(path, detail="items")])
    return path


def test_a_recording_is_followed_while_it_grows(tmp_path: Path) -> None:
    data = recorded(tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "run.jsonl"
    path.write_bytes(data[: len(data) // 2])
    with contextlib.closing(link.opened(str(path))) as source:
        assert "cut" in source.note or "goes on" in source.note
        assert source.scene is not None and not source.scene["runs"][0]["status"]
        with path.open("ab") as file:
            file.write(data[len(data) // 2 :])
        until(lambda: source.look(0.1) and source.scene["runs"][0]["status"])  # type: ignore[index]
        assert source.note == ""
        desk = Desk(source, ASCII)
        shown = pressed(desk, "tab", "tab", "enter")
        assert "item    3" in shown and "ValueError" in shown and "\\u202e" in shown
        pressed(desk, "escape", "x")
        assert "no run that goes on" in desk.view.note


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"no": "event"}\n', "no events of forkmill's"),
        (b"\x00\xff" * 100 + b"\n", "no events of forkmill's"),
        (json.dumps({**event("run_started"), "schema": 9}).encode() + b"\n", "the schema 9"),
        (None, "No such file"),
        ("folder", "Is a directory"),
    ],
)
def test_what_is_no_recording_is_told_so(tmp_path: Path, data: Any, message: str) -> None:
    path = tmp_path / "run.jsonl"
    if data == "folder":
        path.mkdir()
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(link.LinkError, match=message):
        link.opened(str(path))


def test_what_is_broken_within_a_recording_is_counted(tmp_path: Path) -> None:
    good = [event("run_started", name="x"), event("progress", stages={"s": {"in": 1, "out": 1}})]
    bad: list[Any] = [
        *(5, {}, {**good[0], "data": 7}, {**good[1], "data": {"stages": {"s": 5}}}),
        {**good[0], "run": []},
    ]
    path = tmp_path / "run.jsonl"
    with path.open("w") as file:
        for each in (good[0], *bad, good[1]):
            file.write(json.dumps(each) + "\n")
    with contextlib.closing(link.opened(str(path))) as source:
        assert source.note.startswith("5 lines are no events")
        assert [stage["name"] for stage in source.scene["runs"][0]["stages"]] == ["s"]  # type: ignore


def test_of_a_huge_recording_the_begin_and_the_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    def line(out: int) -> bytes:
        told = event("progress", stages={"s": {"in": out, "out": out}})
        return json.dumps(told).encode() + b"\n"

    def shown(source: Any) -> Any:
        return source.scene["runs"][0]["stages"][0]["out"]

    with path.open("wb") as file:
        file.write(line(1) * 3000)
        file.seek(10 << 30)  # 10 GB, of which the middle is a hole: one line
        file.write(b"\n" + line(7) * 3)
    with contextlib.closing(link.opened(str(path))) as source:
        assert isinstance(source, link.Recording) and shown(source) == 1
        begin = time.monotonic()
        assert source.look(0.05) and time.monotonic() - begin < 5
        while source.look(0.1):
            assert len(source._rest) <= link._MOST_LINE
        assert source.note.startswith("10.7 GB in its middle not read; ")
        assert "no events" not in source.note and shown(source) == 7
        with path.open("ab") as file:
            file.write(line(8))
        assert source.look(0.1) and shown(source) == 8


def test_a_line_that_has_no_end_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    good = json.dumps(event("run_started", name="x")).encode() + b"\n"
    with path.open("wb") as file:
        file.write(good)
        file.truncate(link._MOST_LINE + (1 << 20))
    with contextlib.closing(link.opened(str(path))) as source:
        assert isinstance(source, link.Recording)
        while source.look(0.1):
            assert len(source._rest) <= link._MOST_LINE
        assert source._skips and not source._rest
        with path.open("ab") as file:
            file.write(b"\n" + good)
        source.look(0.1)
        assert source.note.startswith("1 line is no event")


# ------------------------------------------------------------------------------ textual


def piloted(desk: Desk, size: tuple[int, int], *keys: str) -> str:
    """What is on the terminal after these keys."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # textual's
        top = pytest.importorskip("forkmill.show.top.app").Top(desk)

    async def drive() -> str:
        async with top.run_test(size=size) as pilot:
            await pilot.pause(0.15)
            for key in keys:
                await pilot.press(key)
            for _ in range(200):  # until it has what it asked for, and shows it
                await pilot.pause(0.05)
                if desk.closed or not desk._awaited:
                    break
            await pilot.pause(0.6)
            lines = [top.screen._compositor.render_strips()[y] for y in range(size[1])]
            picture = top.export_screenshot()
            assert picture.startswith("<svg") and "<script" not in picture
            return "\n".join(line.text for line in lines) if not desk.closed else ""

    return asyncio.run(drive())


@pytest.mark.parametrize("size", SIZES[:3])
def test_textual_shows_the_frame(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    if size[0] > 80:
        monkeypatch.setenv("NO_COLOR", "1")
    name = HOSTILE.replace("\ud800", "")
    shown = piloted(Desk(Given(told(name)), BOXES), size)
    assert "\\x1b[31m" in shown and "</script>" in shown and shown.count("\n") == size[1] - 1
    assert shown.replace("\n", "").isprintable()


def test_textual_brings_keys() -> None:
    source = Given(told())
    desk = Desk(source, BOXES)
    shown = piloted(desk, (80, 24), "tab", "tab", "down", "up", "slash", "x", "escape", "x", "y")
    assert source.asked == [("stop", "r")] and "an answer" in shown
    assert desk.view.section == 2
    assert piloted(desk, (80, 24), "ctrl+c") == "" and desk.closed


# ------------------------------------------------------------------------------ commands


def command(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forkmill", *args],
        capture_output=True, text=True, timeout=50, env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_without_a_terminal_it_says_what_else_there_is(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run.jsonl")
    refused = command("top", str(path))
    assert refused.returncode == 1 and "forkmill top --once" in refused.stderr
    done = command("top", str(path), "--once", PYTHONIOENCODING="ascii", COLUMNS="100")
    assert done.returncode == 0 and "words  completed" in done.stdout and done.stdout.isascii()
    assert "FAILED" in done.stdout and "source -> " in done.stdout


def test_without_textual_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from forkmill.show.top import launch

    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'forkmill\[top\]'"):
        launch.needs()
    monkeypatch.undo()
    monkeypatch.setattr(launch, "terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(RuntimeError, match=r"TERM=dumb.*--once"):
        launch.needs()


def test_a_server_has_a_short_repr(runtime: Path) -> None:
    with fm.serve_top() as server:
        assert repr(server).endswith("sock': 0 look at it>") and isinstance(server, Server)
    assert repr(server).endswith("closed>")


JOB = """
import os, time
import forkmill as fm

def wait(number):
    time.sleep(0.02)
    while number == 140 and not os.path.exists(os.environ["GO"]):
        time.sleep(0.01)
    return number

def make():
    return fm.Pipeline("words").source(range(150)).map(wait, name="wait", context="ipc_fork:1")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the dashboard in /proc")
@pytest.mark.parametrize(
    "blow",
    ["freeze", *(pytest.param(each, marks=pytest.mark.slow) for each in ("kill", "close"))],
)
def test_whatever_becomes_of_the_dashboard_the_run_ends_as_without(
    tmp_path: Path, runtime: Path, blow: str
) -> None:
    (tmp_path / "topjob.py").write_text(JOB)
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    before = termios.tcgetattr(slave)
    args = [sys.executable, "-m", "forkmill", "run", "topjob:make", "--top"]
    go = tmp_path / "go"  # the run is not over before what has become of the dashboard is known
    environment = {
        **os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(tmp_path), "GO": str(go)
    }  # fmt: skip
    job = subprocess.Popen(
        args, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    seen = bytearray()

    def drawn(text: bytes) -> bool:
        if select.select([master], [], [], 0.05)[0]:
            seen.extend(os.read(master, 1 << 16))
        return text in seen or job.poll() is not None

    try:
        until(lambda: drawn(b"wait"))
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        (shown,) = [
            int(pid)
            for pid in children
            if b"--until-end" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        if blow == "close":
            os.write(master, b"q")
        else:
            os.kill(shown, signal.SIGSTOP if blow == "freeze" else signal.SIGKILL)
        del seen[:]
        if blow != "freeze":
            until(lambda: drawn(b"the run goes on"))
        go.touch()
        until(lambda: drawn(b"never") and job.poll() is not None)
        while select.select([master], [], [], 0.1)[0]:
            seen.extend(os.read(master, 1 << 16))
        assert job.returncode == 0 and termios.tcgetattr(slave) == before
        printed = seen.decode().replace("\r\n", "\n")
        assert "\n148\n149\n" in printed and "completed in" in printed
        assert ("the run goes on" in printed) == (blow != "freeze")
    finally:
        job.kill()
        job.wait()
        os.close(master)
        os.close(slave)


def test_who_comes_late_sees_the_plan_too(runtime: Path, run: Any) -> None:
    with fm.serve_top(), contextlib.closing(link.Link(os.getpid())) as source:
        until(lambda: looked(source)["runs"])
        (shown,) = looked(source)["runs"]
        assert shown["title"] == "words" and shown["edges"] == [[0, 1]]
        assert shown["part"] is not None and shown["stages"][1]["context"] == "ipc_fork:2"


class Steps(TypedDict):
    n: int


def test_who_comes_late_sees_maps_and_state_graphs_too(runtime: Path) -> None:
    go = threading.Event()

    def wait(state: Any) -> Any:
        assert go.wait(30)
        return {"n": 1}

    states = fm.StateGraph(Steps)
    states.add_node("waiting", wait)
    states.add_edge(fm.START, "waiting")
    states.add_edge("waiting", fm.END)
    handle = states.compile().start({"n": 0})
    with fm.executor("thread:1") as executor:
        results = executor.map(wait, range(3))
        try:
            with fm.serve_top(), contextlib.closing(link.Link(os.getpid())) as source:
                until(lambda: len(looked(source)["runs"]) == 2)
                shown = {run["source"]: run for run in looked(source)["runs"]}
                assert [stage["name"] for stage in shown["stategraph"]["stages"]] == ["waiting"]
                assert shown["map"]["title"] == "wait" and shown["map"]["part"] == 0.0
                go.set()
                assert len(list(results)) == 3
                handle.result()
                until(lambda: {run["status"] for run in looked(source)["runs"]} == {"completed"})
                assert {run["title"] for run in looked(source)["runs"]} >= {"wait"}
        finally:
            go.set()


def test_a_map_that_was_over_before_anybody_came_is_not_told(runtime: Path) -> None:
    kinds: list[str] = []
    with fm.executor("inline") as executor:
        over = executor.map(abs, range(3))
        assert list(over) == [0, 1, 2]
        dropped = executor.map(abs, range(3))
        dropped.close()
        end = fm.subscribe(lambda event: kinds.append(event["kind"]))
        end()
    assert kinds == []

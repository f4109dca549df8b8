"""Cached results, events and progress of graphs: scenarios 36 to 40, and sections 13 and 14."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import graph_tasks as g
from graph_tasks import ENGINES, FORK, PARALLEL, PROCESSES, SEQUENTIAL, everywhere, in_engines

np = pytest.importorskip("numpy")


def called(x: Any, log: Any) -> Any:
    log("called", x)
    return None if x == 2 else (x, x)


def cached(log: g.Log, **options: Any) -> fm.Graph:
    """A cached node; the log is no part of its key."""

    node = fm.node(called, cache=True, output_name="out", **options)
    return fm.Graph([node]).bind(log=Quiet(log))


class Quiet(g.Log):
    def __init__(self, log: g.Log) -> None:
        self.path = log.path

    def __cache_key__(self) -> None:
        return None


def engines(name: str, cache: Any) -> fm.LocalEngine:
    return fm.LocalEngine(name, name, cache=cache)


# ------------------------------------------------------------------------ 36: one call


@everywhere
@pytest.mark.parametrize("kind", ["disk", "memory", "own"])
def test_36_what_was_computed_is_not_computed_again(engine: str, kind: str, tmp_path: Path) -> None:
    caches = {
        "disk": fm.DiskCache(tmp_path / "c"),
        "memory": fm.MemoryCache(100),
        "own": Own(),
    }
    log = g.Log(tmp_path)
    graph = cached(log)
    local = engines(engine, caches[kind])
    first = graph.map({"x": [1, 2, 3]}, map_over="x", engine=local)
    assert first["out"] == [(1, 1), None, (3, 3)]
    second = graph.map({"x": [2, 3, 4]}, map_over="x", engine=local)
    assert second["out"] == [None, (3, 3), (4, 4)]
    assert Counter(log.lines) == {f"called {x}": 1 for x in (1, 2, 3, 4)}
    assert graph.run({"x": 2}, engine=local) == {"out": None}
    assert graph.run({"x": 5}, engine=local) == {"out": (5, 5)}
    assert log.count("called 2") == 1 == log.count("called 5")


class Own:
    """A cache of the user's own, which stays in its process and thread."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.threads = set[int]()
        self.lock = threading.Lock()  # it does not travel

    def get(self, key: bytes) -> bytes | None:
        assert type(key) is bytes
        self.threads.add(threading.get_ident())
        return self.kept.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        assert type(value) is bytes
        self.kept[key] = value


@in_engines(PARALLEL, FORK)
def test_36_a_cache_that_is_not_shared_is_asked_here(engine: str, tmp_path: Path) -> None:
    own = Own()
    graph = fm.Graph([fm.node(g.pid_of, cache=True)])
    rows = graph.map({"x": range(6)}, map_over="x", engine=engines(engine, own))
    assert os.getpid() not in rows["pid_of"]
    assert len(own.kept) == 6
    again = graph.map({"x": range(6)}, map_over="x", engine=engines(engine, own))
    assert again["pid_of"] == rows["pid_of"]


def test_36_executors_share_one_cache(tmp_path: Path) -> None:
    log = g.Log(tmp_path)
    graph = cached(log)
    for engine in ENGINES:
        local = engines(engine, fm.DiskCache(tmp_path / "c"))
        graph.map({"x": [1, 2, 3, "a", 2.0]}, map_over="x", engine=local)
    assert len(log.lines) == 5


@everywhere
def test_36_different_values_are_different_calls(engine: str, tmp_path: Path) -> None:
    log = g.Log(tmp_path)
    values = [1, 1.0, True, "1", [1], (1,), {"a": 1}, np.array([1]), np.array([1.0]), None]
    graph = cached(log)
    local = engines(engine, fm.DiskCache(tmp_path / "c"))
    for _ in range(2):
        graph.map({"x": values}, map_over="x", engine=local)
    assert len(log.lines) == len(values)


@everywhere
def test_36_a_corrupt_entry_is_a_miss(engine: str, tmp_path: Path) -> None:
    log = g.Log(tmp_path)
    graph = cached(log)
    local = engines(engine, fm.DiskCache(tmp_path / "c"))
    graph.map({"x": [1, 2]}, map_over="x", engine=local)
    for file in (tmp_path / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1])
    rows = graph.map({"x": [1, 2]}, map_over="x", engine=local)
    assert rows["out"] == [(1, 1), None]
    assert len(log.lines) == 4
    graph.map({"x": [1, 2]}, map_over="x", engine=local)
    assert len(log.lines) == 4


@everywhere
def test_36_failures_are_not_kept_and_unstable_values_are_the_nodes_failure(
    engine: str, tmp_path: Path
) -> None:
    log = g.Log(tmp_path)

    def fails(x: Any, log: Any) -> Any:
        log("called")
        raise ValueError(x)

    graph = cached(log)
    local = engines(engine, fm.DiskCache(tmp_path / "c"))
    bad = fm.Graph([fm.node(fails, cache=True)]).bind(log=Quiet(log))
    for _ in range(2):
        with pytest.raises(ValueError):
            bad.run({"x": 1}, engine=local)
    assert len(log.lines) == 2
    if engine in (*PROCESSES,):
        return  # a lock does not travel at all
    rows = graph.map(
        {"x": [1, {"k": [threading.Lock()]}]}, map_over="x", on_error="skip", engine=local
    )
    assert rows[0]["out"] == (1, 1)
    failure = rows[1]["out"]
    assert failure.stage == "called"
    assert "x['k'][0]" in str(failure.error) and "lock" in str(failure.error)


RUN_AGAIN = """
import sys
import forkmill as fm
folder, engine, text = sys.argv[1:]
source = open(folder + "/own_nodes.py", "w")
source.write(text)
source.close()
sys.path.insert(0, folder)
import own_nodes
local = fm.LocalEngine(engine, engine, cache=fm.DiskCache(folder + "/c"))
graph = fm.Graph([fm.node(own_nodes.node, cache=True)])
rows = graph.map({"x": [1, 2]}, map_over="x", engine=local)
print(rows["node"])
"""
NODE = '''
import os
def helper(x):
    return x * FACTOR
FACTOR = 10
def node(x):
    """Says."""
    open({log!r}, "a").write("called\\n")
    return helper(x)
'''


@in_engines(SEQUENTIAL, PARALLEL)
def test_36_the_next_process_finds_what_this_one_kept(engine: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()

    def run(text: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", RUN_AGAIN,
             str(tmp_path), engine, text],
            env={**os.environ, "PYTHONPATH": str(Path(g.__file__).parent),
                 "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    text = NODE.format(log=str(log))
    assert run(text) == "[10, 20]"
    assert run(text) == "[10, 20]"
    assert run("# moved\n\n" + text.replace("Says.", "Says more.")) == "[10, 20]"
    assert log.read_text().count("called") == 2
    assert run(text.replace("FACTOR = 10", "FACTOR = 11")) == "[11, 22]"
    assert run(text.replace("x * FACTOR", "x + FACTOR")) == "[11, 12]"
    assert log.read_text().count("called") == 6


@everywhere
def test_36_async_and_batch_nodes(engine: str, tmp_path: Path) -> None:
    log = Quiet(g.Log(tmp_path))

    async def later(x: int) -> int:
        log("later", x)
        return -x

    def all_at_once(x: list[int]) -> list[int]:
        for n in x:
            log("batch", n)
        return [n * n for n in x]

    graph = fm.Graph([fm.node(later, cache=True), fm.node(all_at_once, cache=True, batch=True)])
    local = engines(engine, fm.DiskCache(tmp_path / "c"))
    graph.map({"x": [1, 2, 3]}, map_over="x", engine=local)
    rows = graph.map({"x": [2, 5, 3, 6]}, map_over="x", engine=local)
    assert rows["later"] == [-2, -5, -3, -6]
    assert rows["all_at_once"] == [4, 25, 9, 36]
    assert Counter(log.lines) == {
        f"{w} {x}": 1 for w in ("later", "batch") for x in (1, 2, 3, 5, 6)
    }


# ------------------------------------------------------------------ 37: off means off


class Unhashable:
    """An input that tells who asks for its key."""

    def __cache_key__(self) -> Any:
        raise AssertionError("hashed")


@everywhere
def test_37_with_caching_off_nothing_is_hashed(engine: str, tmp_path: Path) -> None:
    plain = fm.Graph([fm.node(lambda x, u: x, output_name="out")])
    local = engines(engine, fm.DiskCache(tmp_path / "c"))
    assert plain.run({"x": 1, "u": Unhashable()}, engine=local) == {"out": 1}
    rows = plain.map({"x": range(3), "u": Unhashable()}, map_over="x", engine=local)
    assert rows["out"] == [0, 1, 2]
    off = fm.Graph([fm.node(lambda x, u: x, output_name="out", cache=True)])
    assert off.run({"x": 1, "u": Unhashable()}, engine=engine) == {"out": 1}


# ----------------------------------------------------------------- 39, 40: events, progress


@everywhere
def test_39_a_sink_that_raises_changes_nothing(engine: str) -> None:
    def bad(event: Any) -> None:
        raise RuntimeError("sink")

    rows = fm.Graph([g.double]).map({"x": range(5)}, map_over="x", engine=engine, sinks=[bad])
    assert rows["y"] == [0, 2, 4, 6, 8]
    assert fm.Graph([g.double]).run({"x": 1}, engine=engine, sinks=[bad]) == {"y": 2}


@everywhere
def test_39_every_begin_has_its_end(engine: str) -> None:
    events: list[dict[str, Any]] = []

    class Every(list[Any]):
        detail = "items"
        __call__ = events.append

    graph = fm.Graph([fm.node(g.fail_on_three, output_name="kept"), g.double])
    graph.map({"x": range(6)}, map_over="x", on_error="skip", engine=engine, sinks=[Every()])
    kinds = Counter(event["kind"] for event in events)
    assert kinds["run_started"] == kinds["run_finished"] == 1
    for what in ("stage", "node", "task", "step"):
        assert kinds[f"{what}_started"] == kinds[f"{what}_finished"]
    failed = [event for event in events if event["kind"] == "item_failed"]
    assert len(failed) == 1
    assert "fail_on_three" in failed[0]["name"]
    assert "three is wrong" in str(failed[0])
    assert len({event["run"] for event in events}) == 1
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))


@everywhere
def test_40_progress_is_right_at_the_end(engine: str, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    inner = fm.Graph([fm.node(g.fail_on_three, output_name="kept")], name="each")
    graph = fm.Graph([
        inner.rename(x="xs", kept="all").as_node(map_over="xs", on_error="skip"),
        fm.node(lambda all: len(all), output_name="count"),
    ])  # fmt: skip
    graph.map({"xs": [[1, 3], [2], []]}, map_over="xs", engine=engine, sinks=[events.append])
    last = [event for event in events if event["kind"] == "progress"][-1]["data"]
    assert last["done"] == last["total"] == 3
    log = g.Log(tmp_path)
    events.clear()
    local = engines(engine, fm.MemoryCache(100))
    for _ in range(2):
        cached(log).map({"x": range(4)}, map_over="x", engine=local, sinks=[events.append])
    if engine in PROCESSES:  # the parent knows of what it found itself
        assert [event["kind"] for event in events].count("cached") == 4
    last = [event for event in events if event["kind"] == "progress"][-1]["data"]
    assert last["done"] == last["total"] == 4


def test_40_nothing_is_shown_unless_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    fm.Graph([g.double]).map({"x": range(100)}, map_over="x")
    assert capfd.readouterr() == ("", "")
    fm.Graph([g.double]).map({"x": range(100)}, map_over="x", progress=True)
    assert capfd.readouterr().out == ""

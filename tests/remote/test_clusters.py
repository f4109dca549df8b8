"""Dask and Ray, as they are: a cluster of two worker processes, and one of two raylets. Each test
is a program of its own, as a user's is."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clusters import HEAD, children, environment, gone, script

KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(module) is None, reason=f"{module} is not installed"
        ),
    )
    for kind, module in (("dask", "distributed"), ("ray", "ray"))
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc"),
]

MAIN = """
if __name__ == "__main__":
    with Clustered(sys.argv[1]) as spec:
        main(spec, *sys.argv[2:])
    print("over")
"""


def ran(home: Path, text: str, kind: str, *args: str, seconds: float = 280) -> None:
    done = script(home, text + MAIN, kind, *args, seconds=seconds)
    assert done.returncode == 0 and done.stdout.endswith("over\n"), done.stdout + done.stderr


CONTRACT = """
def main(spec):
    from forkmill.testing import check_context
    check_context(spec)
"""

KILLER = """
def main(spec):
    with fm.executor(spec()) as ex:
        results = list(ex.map(dies_at_77, range(1000), return_exceptions=True))
        assert type(results[77]) is fm.WorkerDied, results[77]
        assert [r for n, r in enumerate(results) if n != 77] == [n for n in range(1000) if n != 77]
        results = list(ex.map(dies, range(3), return_exceptions=True))
        assert [type(r) for r in results] == [fm.WorkerDied] * 3, results
        assert ex.submit(double, 4).result(60) == 8
"""

SHAPES = """
def main(spec):
    rows = fm.Graph(DIAMOND).map(
        {"x": range(200), "weights": b"w" * 100_000}, "x", "zip", "joined",
        engine=fm.LocalEngine(spec(), spec()),
    )
    assert rows["joined"] == [2 * (n + 1) + 100_000 for n in range(200)]
    node = fm.node(dies_at_77, output_name="y", context=spec())
    rows = fm.Graph([node]).map({"x": range(60, 90)}, map_over="x", on_error="skip")
    assert [n for n, y in zip(range(60, 90), rows["y"]) if y != n] == [77]
    done = (
        fm.Pipeline().source(range(1000)).map(double, context=spec(), ordered=True)
        .batch(10).map(sum, context=spec(), ordered=True).run()
    )
    assert done.outputs == [sum(range(2 * n, 2 * n + 20, 2)) for n in range(0, 1000, 10)]
    handle = fm.share(b"s" * 200_000)
    with fm.executor(spec()) as ex:
        assert list(ex.map(len, [handle] * 20)) == [200_000] * 20
"""

STATES = """
import typing

class State(typing.TypedDict):
    n: int
    blob: bytes

def inc(state):
    return {"n": state["n"] + len(state["blob"])}

def ask(state):
    return {"n": state["n"] + fm.interrupt("more?")}

def app(context, store):
    graph = fm.StateGraph(State)
    graph.add_node("inc", inc, context=context)
    graph.add_node("ask", ask, context=context)
    graph.add_edge(fm.START, "inc")
    graph.add_edge("inc", "ask")
    graph.add_edge("ask", fm.END)
    return graph.compile(checkpoints=store)

def main(spec):
    path = os.path.join(os.environ["HOME"], "sessions.db")
    state = {"n": 1, "blob": b"x" * 100_000}
    first = app(spec(), fm.SQLiteCheckpoints(path)).invoke(state, session="a")
    assert first.status == "interrupted", first
    # Another engine goes on with it.
    then = app("inline", fm.SQLiteCheckpoints(path)).resume(5, session="a")
    assert then["n"] == 100_006, then
"""

MOVES = """
if __name__ == "__main__":
    path = os.path.join(os.environ["HOME"], "sessions.db")
    state = {"n": 1, "blob": b"x" * 100_000}
    with Clustered("dask") as dask, Clustered("ray") as ray:
        first = app(dask(), fm.SQLiteCheckpoints(path)).invoke(state, session="a")
        assert first.status == "interrupted", first
        then = app(ray(), fm.SQLiteCheckpoints(path)).resume(5, session="a")
        assert then["n"] == 100_006, then
        again = app(ray(), fm.SQLiteCheckpoints(path)).invoke(state, session="b")
        then = app(dask(), fm.SQLiteCheckpoints(path)).resume(6, session="b")
        assert then["n"] == 100_007, then
    print("over")
"""

MILLION = """
def main(spec):
    def rss():
        return int(open("/proc/self/statm").read().split()[1]) * 4096
    with fm.executor(spec()) as ex:
        assert sum(1 for _ in ex.map(double, iter(range(50_000)))) == 50_000
        before = most = rss()
        for n, result in enumerate(ex.map(double, iter(range(1_000_000)))):
            assert result == 2 * n
            if n % 10_000 == 0:
                most = max(most, rss())
        assert n == 999_999
        assert most - before < 60 << 20, (before, most)
"""

ENDED = """
def main(spec):
    ex = fm.executor(spec())
    assert ex.submit(double, 1).result(60) == 2
    begun = time.monotonic()
    ex.submit(sleeps, 600)
    time.sleep(1)
    ex.courier.end()
    assert time.monotonic() - begun < 10
"""


GONE = """
def main(spec, what):
    cluster = spec.__self__.cluster
    with spec(timeout=10).open() as ex:
        futures = [ex.submit(sleeps, 0.5) for _ in range(100)]
        assert futures[0].result(60) == 0.5
        begun = time.monotonic()
        getattr(cluster, what)()
        errors = [future.exception(60) for future in futures]
        assert time.monotonic() - begun < 60
        kinds = {type(error) for error in errors} - {type(None)}
        # What ran on a node that is gone may have died with it.
        assert fm.PoolBroken in kinds and kinds <= {fm.PoolBroken, fm.WorkerDied}, kinds
        try:
            ex.submit(double, 1)
        except fm.PoolBroken:
            pass
        else:
            raise AssertionError("taken by a cluster that is gone")
    assert time.monotonic() - begun < 90
"""

REFUSED = """
def main(spec):
    timed = fm.node(double, output_name="y", timeout=1)
    ways = [
        lambda: fm.Pipeline().source([1]).map(double, context=spec(), timeout=1).run(),
        lambda: fm.Graph([timed]).map({"x": [1]}, "x", engine=fm.LocalEngine(spec(), spec())),
    ]
    if spec().kills:
        assert ways[0]().outputs == [2]
        assert ways[1]()["y"] == [2]
        late = fm.Pipeline().source([0.1, 600])
        done = late.map(sleeps, context=spec(), timeout=3, on_error="skip").run()
        assert done.outputs == [0.1] and type(done.failures[0].error) is fm.TaskTimeout, done
    else:
        for way in ways:
            try:
                way()
            except fm.BuildError as error:
                assert "dask" in str(error) and "timeout" in str(error), error
            else:
                raise AssertionError("taken")
    with fm.executor(spec()) as ex:
        results = list(ex.map(fails_at_3, range(6), return_exceptions=True))
        assert results[:3] + results[4:] == [0, 1, 2, 4, 5] and type(results[3]) is ValueError
        before = ex.stats()
        assert before.returned == 6 and before.deaths == 0 and before.in_flight == 0, before
        # Each one kills its worker: each has its outcome, and the cluster is of use.
        results = list(ex.map(dies, range(6), return_exceptions=True))
        assert [type(r) for r in results] == [fm.WorkerDied] * 6, results
        assert ex.submit(double, 4).result(100) == 8 and ex.stats().deaths >= 6
    # Another Python, another forkmill there: as a worker says it of itself.
    kind = type(ex.courier.backend)
    asked = kind.probed
    for change, words in (
        (lambda f: ((3, 9), *f[1:]), "runs Python 3.9"),
        (lambda f: (*f[:3], "0.0.1"), "has forkmill 0.0.1"),
        (lambda f: (*f[:3], False), "has no forkmill"),
    ):
        kind.probed = lambda self, seconds, change=change: change(asked(self, seconds))
        try:
            spec().open()
        except fm.PoolError as error:
            assert words in str(error), error
        else:
            raise AssertionError("taken")
    kind.probed = asked
    with fm.executor(spec()) as ex:
        assert ex.submit(double, 4).result(100) == 8
"""

MODULES = """
def main(spec):
    # An installed module, of a version that workers do not have.
    folder = os.path.join(os.environ["HOME"], "site-packages")
    os.makedirs(folder)
    with open(os.path.join(folder, "only_here.py"), "w") as file:
        file.write("BASE = 30\\ndef more(x):\\n    return x + BASE\\n")
    sys.path.insert(0, folder)
    import only_here
    with fm.executor(spec(modules=["only_here"])) as ex:
        assert list(ex.map(only_here.more, range(10))) == [*range(30, 40)]
    with fm.executor(spec()) as ex:
        error = ex.submit(only_here.more, 1).exception(60)
        assert type(error) is fm.SerializationError, error
        assert "module 'only_here' is not there" in str(error), error
"""


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        pytest.param(*kind.values, what, marks=kind.marks)
        for kind in KINDS
        for what in ("kill_head", "stop_head", "kill_raylet")
        if kind.values[0] == "ray" or what != "kill_raylet"
    ],
)
def test_what_runs_a_cluster_is_killed_in_the_middle(kind: str, what: str, tmp_path: Path) -> None:
    ran(tmp_path, GONE, kind, what)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", [CONTRACT, KILLER, SHAPES, STATES, ENDED, MODULES, REFUSED],
    ids=["contract", "killer", "shapes", "states", "ended", "modules", "refused"],
)  # fmt: skip
def test_on_a_real_cluster(kind: str, text: str, tmp_path: Path) -> None:
    ran(tmp_path, text, kind)


@pytest.mark.timeout(1800)  # 310 s on Dask, on two busy cores
@pytest.mark.parametrize("kind", KINDS)
def test_a_million_lazy_items_in_flat_memory(kind: str, tmp_path: Path) -> None:
    ran(tmp_path, MILLION, kind, seconds=1700)


@pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in ("distributed", "ray")),
    reason="takes both engines",
)
def test_a_session_moves_from_dask_to_ray(tmp_path: Path) -> None:
    done = script(tmp_path, STATES.replace("def main", "def one_engine") + MOVES)
    assert done.returncode == 0 and done.stdout.endswith("over\n"), done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_leaves_no_process(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    folder = str(Path(__file__).parent)
    path.write_text(
        HEAD.format(folder=folder)
        + f"""
if __name__ == "__main__":
    with fm.executor({kind!r}, 2) as ex:
        ex.submit(double, 1).result(100)
        print("up", flush=True)
        list(ex.map(sleeps, [0.3] * 10_000))
"""
    )
    program = subprocess.Popen(
        [sys.executable, str(path)], env=environment(tmp_path), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        while program.stdout.readline() not in ("up\n", ""):
            pass
        time.sleep(1)
        below = children(program.pid)
        assert below
        os.kill(program.pid, signal.SIGINT)
        _, errors = program.communicate(timeout=60)
        assert program.returncode != 0 and "KeyboardInterrupt" in errors, errors
        assert gone(below, 20), children(1)
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_at_the_address(kind: str, tmp_path: Path) -> None:
    text = """
if __name__ == "__main__":
    begun = time.monotonic()
    make = {"dask": lambda: fm.on_dask("tcp://127.0.0.1:9", timeout=3),
            "ray": lambda: fm.on_ray(2, "127.0.0.1:9", timeout=3)}[sys.argv[1]]
    try:
        make().open()
    except fm.PoolError as error:
        assert "127.0.0.1:9" in str(error), error
        assert time.monotonic() - begun < 30
        print("over")
"""
    done = script(tmp_path, text, kind)
    assert done.stdout == "over\n", done.stdout + done.stderr

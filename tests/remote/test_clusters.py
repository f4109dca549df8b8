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


def ran(home: Path, text: str, kind: str, *args: str) -> None:
    done = script(home, text + MAIN, kind, *args)
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
        getattr(cluster, "kill_" + what)()
        errors = [future.exception(60) for future in futures]
        assert time.monotonic() - begun < 45
        kinds = {type(error) for error in errors} - {type(None)}
        # What ran on a node that is gone may have died with it.
        assert fm.PoolBroken in kinds and kinds <= {fm.PoolBroken, fm.WorkerDied}, kinds
        try:
            ex.submit(double, 1)
        except fm.PoolBroken:
            pass
        else:
            raise AssertionError("taken by a cluster that is gone")
    assert time.monotonic() - begun < 55
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
        for what in (("head",) if kind.values[0] == "dask" else ("head", "raylet"))
    ],
)
def test_what_runs_a_cluster_is_killed_in_the_middle(kind: str, what: str, tmp_path: Path) -> None:
    ran(tmp_path, GONE, kind, what)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", [CONTRACT, KILLER, SHAPES, STATES, MILLION, ENDED, MODULES],
    ids=["contract", "killer", "shapes", "states", "million", "ended", "modules"],
)  # fmt: skip
def test_on_a_real_cluster(kind: str, text: str, tmp_path: Path) -> None:
    ran(tmp_path, text, kind)


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

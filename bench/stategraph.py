"""What does a superstep cost, alone, eight wide, in processes, with checkpoints, beside LangGraph?

Steps of nodes that do next to nothing, so that what is measured is the graph; then nodes that work,
a state that is large, and how much of it is written when a little of it changes.
"""

from __future__ import annotations

import importlib.util
import operator
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

import forkmill as fm

from .harness import LESS, Bench, Case, Skip, Target
from .peers import OURS

LANGGRAPH = "LangGraph"
FORKS = "two bare forks"
LOOP = "loop of 1-node steps"
WIDE = "tick + 8 trivial nodes + join"

TARGETS = (
    Target(LOOP, "loop", 25, LANGGRAPH, label="inline"),
    Target(WIDE, "wide", 40, LANGGRAPH, label="inline"),
    Target(WIDE, "wide2", 4, LANGGRAPH, label="in two workers"),
    Target("SQLite, LangGraph in memory", "loop_sqlite", 0.5, LANGGRAPH, True, "loop"),
    Target(
        "SQLite, LangGraph in memory", "wide2_sqlite", 0.8, LANGGRAPH, True, "8 wide in workers"
    ),
    Target("4 CPU-bound nodes in two workers", "cpu", 1.8, "one after another", where=(FORKS, 1.9)),
    Target("8 tasks that read 64 MB", "array", 1.3, "8 bytes", at_most=True),
    Target("WAL of a step, 64 keys of 1 MB", "wal1", 8, at_most=True, label="one task, 1 KB"),
    Target("WAL of a step, 64 keys of 1 MB", "wal8", 32, at_most=True, label="eight tasks"),
)
WIDTH = 8


class Loop(TypedDict):
    n: int
    end: int
    log: Annotated[int, operator.add]


def run(bench: Bench) -> None:
    """Ask."""
    steps, rounds = bench.size(400, 5), bench.size(40, 2)
    # Of ours more steps: what the machine does meanwhile is not to be most of a sample.
    long, many = bench.size(4000, 5), bench.size(150, 2)
    bench.plan(9)
    bench.measure(
        _case("loop", LOOP, lambda: _ours(_loop(fm), long), lambda: _theirs("loop", steps))
    )
    inline, theirs = _wide(fm), lambda: _theirs("wide", rounds)
    bench.measure(_case("wide", f"{WIDE}, inline", lambda: _ours(inline, 4 * many), theirs))
    workers = _wide(fm, fm.ipc_fork(bench.workers))
    bench.measure(_case("wide2", f"{WIDE}, workers", lambda: _ours(workers, many), theirs))
    stored = lambda: _theirs("loop", steps, stored=True)  # noqa: E731
    bench.measure(
        _case("loop_sqlite", f"{LOOP}, SQLite; LangGraph: in memory",
              lambda: _stored(_loop(fm), steps), stored)
    )  # fmt: skip
    stored = lambda: _theirs("wide", rounds, stored=True)  # noqa: E731
    bench.measure(
        _case("wide2_sqlite", f"{WIDE}, workers, SQLite; LangGraph: in memory",
              lambda: _stored(workers, many), stored)
    )  # fmt: skip
    _cpu(bench)
    _array(bench)
    for width, key in ((1, "wal1"), (WIDTH, "wal8")):
        title = f"WAL of a step: 64 keys of 1 MB, {width} of 1 KB changed"
        take = lambda width=width: _wal(width, bench)  # noqa: E731
        bench.measure(Case(key, title, "KB", LESS, {OURS: take}, most_rounds=3))


def _case(key: str, title: str, ours: Any, theirs: Any) -> Case:
    return Case(key, title, "us/step", LESS, {OURS: ours, LANGGRAPH: theirs})


# --------------------------------------------------------------------- small steps


def _count(state: Any) -> Any:
    return {"n": state["n"] + 1}


def _again(state: Any) -> str:
    return "count" if state["n"] < state["end"] else "__end__"


def _loop(module: Any, start: str = fm.START, end: str = fm.END) -> Any:
    graph = module.StateGraph(Loop)
    graph.add_node("count", _count)
    graph.add_edge(start, "count")
    graph.add_conditional_edges("count", _again, {"count": "count", "__end__": end})
    return graph


def _tick(state: Any) -> Any:
    return {"n": state["n"] + 1}


def _one(state: Any) -> Any:
    return {"log": 1}


def _join(state: Any) -> None:
    return None


def _theirs_join(state: Any) -> Any:
    return {"log": 0}


def _more(state: Any) -> str:
    return "tick" if state["n"] < state["end"] else "__end__"


def _wide(module: Any, where: Any = None, start: str = fm.START, end: str = fm.END) -> Any:
    ours = module is fm
    graph = module.StateGraph(Loop)
    graph.add_node("tick", _tick)
    graph.add_node("join", _join if ours else _theirs_join)
    graph.add_edge(start, "tick")
    names = [f"n{i}" for i in range(WIDTH)]
    for name in names:
        graph.add_node(name, _one, **({"context": where} if where is not None else {}))
        graph.add_edge("tick", name)
    graph.add_edge(names, "join")
    graph.add_conditional_edges("join", _more, {"tick": "tick", "__end__": end})
    return graph


def _start(end: int) -> dict[str, int]:
    return {"n": 0, "end": end, "log": 0}


def _steps(graph: str | Any, end: int) -> int:
    return end if graph == "loop" else 3 * end


def _ours(graph: Any, end: int, **options: Any) -> float:
    app = graph.compile(max_steps=10**6, **options)
    with app.open("bench", input=_start(end)) as session:
        if "n0" in app.nodes:
            session.step(), session.step()  # the workers are there
        before = session.step_number
        began = time.perf_counter()
        run = session.run_until_complete()
        seconds = time.perf_counter() - began
    assert run["n"] == end and run["log"] in (0, WIDTH * end)
    return seconds / (run.step - before) * 1e6


def _stored(graph: Any, end: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        store = fm.SQLiteCheckpoints(Path(folder) / "runs.db")
        with store:
            return _ours(graph, end, checkpoints=store)


def _theirs(kind: str, end: int, *, stored: bool = False) -> float:
    if importlib.util.find_spec("langgraph") is None:
        raise Skip("langgraph is not installed")
    import langgraph.graph as module
    from langgraph.checkpoint.memory import InMemorySaver

    make = _loop if kind == "loop" else _wide
    graph = make(module, start=module.START, end=module.END)
    app = graph.compile(checkpointer=InMemorySaver() if stored else None)
    config = {"recursion_limit": 10**6, "configurable": {"thread_id": "bench"}}
    began = time.perf_counter()
    state = app.invoke(_start(end), config)
    seconds = time.perf_counter() - began
    assert state["n"] == end and state["log"] in (0, WIDTH * end)
    return seconds / _steps(kind, end) * 1e6


# ------------------------------------------------------------------------- real work


class Work(TypedDict):
    loops: int
    sums: Annotated[list[int], operator.add]


def _spin(loops: int) -> int:
    total = 0
    for n in range(loops):
        total = (total * 31 + n) % 1_000_003
    return total


def _spinning(state: Any) -> Any:
    return {"sums": [_spin(state["loops"])]}


def _spinners(module: Any, start: str, where: Any = None) -> Any:
    graph = module.StateGraph(Work)
    for name in "abcd":
        graph.add_node(name, _spinning, **({"context": where} if where is not None else {}))
        graph.add_edge(start, name)
    return graph


def _cpu(bench: Bench) -> None:
    began = time.perf_counter()
    _spin(200_000)
    loops = bench.size(int(200_000 * 0.5 / (time.perf_counter() - began)), 1000)
    right = _spin(loops)

    def ours(where: Any) -> float:
        app = _spinners(fm, fm.START, where).compile()
        began = time.perf_counter()
        run = app.invoke({"loops": loops, "sums": []})
        assert run["sums"] == [right] * 4
        return time.perf_counter() - began

    def theirs() -> float:
        if importlib.util.find_spec("langgraph") is None:
            raise Skip("langgraph is not installed")
        import langgraph.graph as module

        app = _spinners(module, module.START).compile()
        began = time.perf_counter()
        assert app.invoke({"loops": loops, "sums": []})["sums"] == [right] * 4
        return time.perf_counter() - began

    def forks() -> float:
        began = time.perf_counter()
        pids = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                _spin(loops), _spin(loops)
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        return time.perf_counter() - began

    samples = {
        OURS: lambda: ours(fm.ipc_fork(bench.workers)),
        "one after another": lambda: ours(None),
        FORKS: forks,
        LANGGRAPH: theirs,
    }
    title = "4 nodes of 0.5 s of pure Python, from invoke to result"
    bench.measure(Case("cpu", title, "s", LESS, samples, most_rounds=5))


class Big(TypedDict):
    array: Any
    sums: Annotated[list[float], operator.add]
    n: int


def _read(state: Any) -> Any:
    return {"sums": [float(state["array"][-1])]}


def _array(bench: Bench) -> None:
    try:
        import numpy
    except ImportError:
        bench.note("numpy is not installed: nothing about arrays")
        return

    def take(count: int) -> float:
        graph = fm.StateGraph(Big)
        graph.add_node("tick", _tick)
        names = [f"n{i}" for i in range(WIDTH)]
        for name in names:
            graph.add_node(name, _read, context=fm.ipc_fork(bench.workers))
            graph.add_edge("tick", name)
        graph.add_edge(fm.START, "tick")
        graph.add_edge(names, "tick")
        array = numpy.ones(count)
        with graph.compile().open("s", input={"array": array, "sums": [], "n": 0}) as session:
            for _ in range(4):
                session.step()
            found = []
            for _ in range(bench.size(20, 1)):
                session.step()
                began = time.perf_counter()
                session.step()
                found.append(time.perf_counter() - began)
            assert set(session.state["sums"]) == {1.0}
        return statistics.median(found) * 1e6

    samples = {OURS: lambda: take(bench.size(8_000_000, 8)), "8 bytes": lambda: take(1)}
    title = "a step of 8 tasks in workers that read an array of 64 MB, after the first"
    bench.measure(Case("array", title, "us", LESS, samples, most_rounds=5))


# ------------------------------------------------------------------------------- WAL

KEYS = [f"k{i:02}" for i in range(64)]
Wide64 = TypedDict("Wide64", dict.fromkeys(KEYS, bytes) | {"n": int})  # type: ignore[misc]


class _Writes:
    """A task that changes one key to 1 KB."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, state: Any) -> Any:
        return {self.key: os.urandom(1024)}


def _wal(width: int, bench: Bench) -> float:
    """The median of what a step of `width` tasks adds to the WAL, KB: pending rows and commit."""
    graph = fm.StateGraph(Wide64)
    graph.add_node("tick", _tick_wide)
    graph.add_edge(fm.START, "tick")
    names = [f"n{i}" for i in range(width)]
    for number, name in enumerate(names):
        where = fm.ipc_fork(bench.workers) if width > 1 else None
        graph.add_node(name, _Writes(KEYS[number * 7 % 64]), context=where)
    graph.add_edge(names if width > 1 else names[0], "tick")
    graph.add_conditional_edges("tick", _Spread(names, bench.size(30, 3)), [*names, fm.END])
    given = {key: os.urandom(bench.size(1 << 20, 1000)) for key in KEYS}
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        store = _Weighed(Path(folder) / "runs.db", found)
        with store:
            graph.compile(checkpoints=store).invoke({**given, "n": 0})
    return statistics.median(found)


def _tick_wide(state: Any) -> Any:
    return {"n": state["n"] + 1}


class _Spread:
    """To all of them, so many times."""

    def __init__(self, names: list[str], times: int) -> None:
        self.names, self.times = names, times

    def __call__(self, state: Any) -> list[str]:
        return self.names if state["n"] <= self.times else [fm.END]


class _Weighed(fm.SQLiteCheckpoints):
    """A store that empties its WAL after each step of `tick`, and weighs it after the next."""

    def __init__(self, path: Path, found: list[float]) -> None:
        super().__init__(path)
        self._wal, self._found = f"{path}-wal", found

    def write(self, claim: Any, *, change: Any = None, **options: Any) -> None:
        super().write(claim, change=change, **options)
        if change is not None and change.author == "tick":
            self._connected().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        elif change is not None:
            self._found.append(os.path.getsize(self._wal) / 1024)

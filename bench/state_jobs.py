"""How fast is work in rounds as state graphs, k-means and page rank, beside a plain loop?

Work in rounds as state graphs: k-means over a million points, page rank of what packages import.

Each is killed half-way, whatever it is doing, and resumed by another process: what comes out must
be what a plain loop gives, to the last bit. The plain loop does the same sums in one process.
"""

from __future__ import annotations

import ast
import importlib.util
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

import forkmill as fm

from .harness import LESS, Bench, Case, WrongResult
from .peers import OURS

TARGETS = ()
CHUNKS = 8
K = 16
ROUNDS = 10


def run(bench: Bench) -> None:
    """Ask."""
    if importlib.util.find_spec("numpy") is None:
        bench.note("numpy is not installed: no k-means")
    bench.plan(2)
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("numpy") is not None:
            file = _points(Path(folder), bench.size(1_000_000, 2000))
            _compare(bench, "kmeans", "k-means, 10 rounds of 8 chunks", Path(folder), file)
        file = _imports(Path(folder), bench.size(4000, 60))
        _compare(bench, "pagerank", "page rank of imports, 10 rounds", Path(folder), file)


def _compare(bench: Bench, kind: str, title: str, folder: Path, file: str) -> None:
    right = PLAIN[kind](file)
    _killed_and_resumed(kind, file, folder / f"{kind}.db", right)

    def ours() -> float:
        with tempfile.TemporaryDirectory() as other:
            app = MADE[kind](f"sqlite:{other}/runs.db", bench.workers)
            began = time.perf_counter()
            found = app.invoke({"file": file, "round": 0})["answer"]
            seconds = time.perf_counter() - began
            app.checkpoints.close()
        if found != right:
            raise WrongResult("it is not what the plain loop gives")
        return seconds

    def plain() -> float:
        began = time.perf_counter()
        PLAIN[kind](file)
        return time.perf_counter() - began

    samples = {OURS: ours, "plain loop": plain}
    bench.measure(Case(kind, f"{title}, SQLite, from invoke to result", "s", LESS, samples))


def _killed_and_resumed(kind: str, file: str, path: Path, right: Any) -> None:
    """Kill the run when half of its steps are stored; another process goes on."""
    code = f"from bench.state_jobs import MADE; MADE[{kind!r}]('sqlite:{path}', 2).invoke("
    code += f"dict(file={file!r}, round=0), session='job')"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    store = fm.SQLiteCheckpoints(path)
    with store:
        while child.poll() is None:
            info = store.info("job") if path.exists() else None
            if info is not None and info.step >= 1.5 * ROUNDS:
                break
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        before = store.info("job")
        run = MADE[kind](store, 2).resume(session="job")
    if run["answer"] != right or run.status != "completed":
        raise WrongResult(
            f"{kind}: killed at step {before and before.step}, it came to another end"
        )


# -------------------------------------------------------------------------- k-means


def _points(folder: Path, count: int) -> str:
    import numpy

    chance = numpy.random.default_rng(1)
    centers = chance.uniform(-10, 10, (K, 2))
    points = centers[chance.integers(0, K, count)] + chance.normal(size=(count, 2))
    numpy.save(folder / "points.npy", points)
    return str(folder / "points.npy")


def _sums(file: str, part: int, centers: list[list[float]]) -> dict[int, tuple[float, float, int]]:
    """Of one chunk: for each center the sum of its points, and how many they are."""
    import numpy

    points = numpy.load(file, mmap_mode="r")
    chunk = numpy.asarray(points[len(points) * part // CHUNKS : len(points) * (part + 1) // CHUNKS])
    middle = numpy.asarray(centers)
    distance = ((chunk[:, None, :] - middle[None, :, :]) ** 2).sum(axis=2)
    nearest = distance.argmin(axis=1)
    found = {}
    for center in range(len(centers)):
        mine = chunk[nearest == center]
        found[center] = (float(mine[:, 0].sum()), float(mine[:, 1].sum()), len(mine))
    return found


def _added(old: dict[int, Any], new: dict[int, Any]) -> dict[int, Any]:
    """By key: three sums."""
    both = dict(old)
    for center, (x, y, count) in new.items():
        a, b, had = both.get(center, (0.0, 0.0, 0))
        both[center] = (a + x, b + y, had + count)
    return both


def _first(file: str) -> list[list[float]]:
    import numpy

    points = numpy.load(file, mmap_mode="r")
    return [[float(x), float(y)] for x, y in points[:K]]


def _moved(sums: dict[int, Any], centers: list[list[float]]) -> list[list[float]]:
    return [
        [sums[n][0] / sums[n][2], sums[n][1] / sums[n][2]] if sums[n][2] else centers[n]
        for n in range(len(centers))
    ]


class Clusters(TypedDict, total=False):
    file: str
    round: int
    answer: list[list[float]]
    sums: Annotated[dict[int, Any], _added]


def _deal(state: Any) -> Any:
    centers = state.get("answer") or _first(state["file"])
    sends = [fm.Send("assign", (state["file"], part, centers)) for part in range(CHUNKS)]
    update = {"answer": centers, "sums": fm.Overwrite({})}
    return fm.Command(update=update, goto=sends)


def _assign(given: Any) -> Any:
    return {"sums": _sums(*given)}


def _move(state: Any) -> Any:
    centers = _moved(state["sums"], state["answer"])
    return {"answer": centers, "round": state["round"] + 1}


def _more(state: Any) -> str:
    return "deal" if state["round"] < ROUNDS else fm.END


def kmeans(store: Any, workers: int) -> Any:
    graph = fm.StateGraph(Clusters)
    graph.add_node("deal", _deal, destinations=["assign"])
    graph.add_node("assign", _assign, context=fm.ipc_fork(workers))
    graph.add_node("move", _move)
    graph.add_edge(fm.START, "deal")
    graph.add_edge("assign", "move")
    graph.add_conditional_edges("move", _more, ["deal", fm.END])
    return graph.compile(checkpoints=store)


def plain_kmeans(file: str) -> Any:
    centers = _first(file)
    for _ in range(ROUNDS):
        sums: dict[int, Any] = {}
        for part in range(CHUNKS):
            sums = _added(sums, _sums(file, part, centers))
        centers = _moved(sums, centers)
    return centers


# ------------------------------------------------------------------------- page rank


def _imports(folder: Path, most: int) -> str:
    """Which module imports which, of the installed packages and the standard library."""
    roots = [Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib")]
    lines = []
    for root in dict.fromkeys(roots):
        for path in sorted(root.rglob("*.py"))[:most]:
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError, OSError):
                continue
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found = set()
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module)
            lines.append(" ".join([name, *sorted(found)]))
    file = folder / "imports.txt"
    file.write_text("\n".join(lines))
    return str(file)


_read: dict[str, list[tuple[int, list[int]]]] = {}


def _links(file: str) -> list[tuple[int, list[int]]]:
    """(number of a module, numbers of those that it imports); read once a process."""
    if file not in _read:
        rows = [line.split() for line in Path(file).read_text().splitlines()]
        numbers = {name: n for n, name in enumerate(sorted({name for row in rows for name in row}))}
        _read[file] = [(numbers[row[0]], [numbers[to] for to in row[1:]]) for row in rows]
        _read[f"{file} size"] = [(len(numbers), [])]
    return _read[file]


def _size(file: str) -> int:
    _links(file)
    return _read[f"{file} size"][0][0]


def _given(file: str, part: int, ranks: list[float]) -> dict[int, float]:
    """What one chunk of the modules gives to those that they import."""
    links = _links(file)
    found: dict[int, float] = {}
    for module, targets in links[len(links) * part // CHUNKS : len(links) * (part + 1) // CHUNKS]:
        for target in targets:
            found[target] = found.get(target, 0.0) + ranks[module] / len(targets)
    return found


def _gathered(old: dict[int, float], new: dict[int, float]) -> dict[int, float]:
    both = dict(old)
    for module, rank in new.items():
        both[module] = both.get(module, 0.0) + rank
    return both


def _ranked(given: dict[int, float], size: int) -> list[float]:
    return [0.15 / size + 0.85 * given.get(module, 0.0) for module in range(size)]


class Ranks(TypedDict, total=False):
    file: str
    round: int
    answer: list[float]
    given: Annotated[dict[int, float], _gathered]


class _Part:
    """A node for one chunk: the ranks go to the workers once a round, not once a task."""

    def __init__(self, part: int) -> None:
        self.part = part

    def __call__(self, state: Any) -> Any:
        return {"given": _given(state["file"], self.part, state["answer"])}


def _begin(state: Any) -> Any:
    size = _size(state["file"])
    return {"answer": state.get("answer") or [1 / size] * size, "given": fm.Overwrite({})}


def _rank(state: Any) -> Any:
    ranks = _ranked(state["given"], _size(state["file"]))
    return {"answer": ranks, "round": state["round"] + 1}


def _go_on(state: Any) -> str:
    return "begin" if state["round"] < ROUNDS else fm.END


def pagerank(store: Any, workers: int) -> Any:
    graph = fm.StateGraph(Ranks)
    graph.add_node("begin", _begin)
    parts = [f"part{n}" for n in range(CHUNKS)]
    for number, name in enumerate(parts):
        where = fm.ipc_fork(workers)
        graph.add_node(name, _Part(number), context=where, reads=["file", "answer"])
        graph.add_edge("begin", name)
    graph.add_node("rank", _rank)
    graph.add_edge(fm.START, "begin")
    graph.add_edge(parts, "rank")
    graph.add_conditional_edges("rank", _go_on, ["begin", fm.END])
    return graph.compile(checkpoints=store)


def plain_pagerank(file: str) -> Any:
    size = _size(file)
    ranks = [1 / size] * size
    for _ in range(ROUNDS):
        given: dict[int, float] = {}
        for part in range(CHUNKS):
            given = _gathered(given, _given(file, part, ranks))
        ranks = _ranked(given, size)
    return ranks


MADE = {"kmeans": kmeans, "pagerank": pagerank}
PLAIN = {"kmeans": plain_kmeans, "pagerank": plain_pagerank}

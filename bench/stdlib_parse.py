"""How much faster is a real job: parsing the standard library?

Every fifth .py file of the running interpreter's standard library goes through `ast.parse`; its
nodes, functions and classes are counted and added up. Checked, file by file, against a plain loop;
beside the standard library's pools only, because it takes its time.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from pathlib import Path

from .harness import MORE, Bench, Case, Sample, check, elapsed
from .peers import Forkmill, Peer, StdlibExecutor, StdlibPool

PLAIN_LOOP = "plain loop"
TARGETS = ()
Counts = tuple[int, int, int, str]


def count_nodes(path: str) -> Counts:
    """(nodes, functions, classes, "" or the name of what kept it from being parsed)."""
    source = Path(path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in test data
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError) as error:
            return 0, 0, 0, type(error).__name__  # lib2to3 and test keep broken files on purpose
    nodes = functions = classes = 0
    for node in ast.walk(tree):
        nodes += 1
        functions += isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        classes += isinstance(node, ast.ClassDef)
    return nodes, functions, classes, ""


def sources() -> list[str]:
    """Every .py file of the standard library, without what was installed beside it."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(
        str(path)
        for path in root.rglob("*.py")
        if not {"site-packages", "dist-packages"}.intersection(path.parts)
    )


def run(bench: Bench) -> None:
    """Ask."""
    paths = sources()[::5]  # all of them take half a minute a contender
    if bench.quick:
        paths = paths[:: max(1, len(paths) // 20)]
    expected: list[Counts] = [count_nodes(path) for path in paths]
    nodes, functions, classes = (sum(counts[i] for counts in expected) for i in range(3))
    broken = sum(1 for counts in expected if counts[3])
    version = ".".join(map(str, sys.version_info[:3]))
    bench.note(
        f"standard library of Python {version}: {len(paths)} files, {nodes:,} nodes, "
        f"{functions:,} functions, {classes:,} classes, {broken} files that do not parse"
    )

    def take(pool: Peer) -> float:
        list(pool.map(count_nodes, paths[:8]))  # workers that must import it have done so
        seconds, results = elapsed(lambda: pool.map(count_nodes, paths))
        check([tuple(counts) for counts in results], expected)
        return len(paths) / seconds

    def take_plain() -> float:
        seconds, results = elapsed(lambda: [count_nodes(path) for path in paths])
        check(results, expected)
        return len(paths) / seconds

    samples: dict[str, Sample] = {PLAIN_LOOP: take_plain}
    for peer in bench.peers:
        if peer in (Forkmill, StdlibPool, StdlibExecutor):
            samples[peer.name] = bench.with_pool(peer, take, way="map")
    title = f"{len(paths)} files parsed and counted, map with defaults"
    bench.measure(Case("files", title, "files/s", MORE, samples, most_rounds=3))

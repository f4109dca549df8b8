"""How much faster is a whole job: installed sources, parsed, batched, loaded into SQLite?

The .py files of the standard library and of all installed packages are parsed in workers; names of
functions and classes are loaded in batches. The table must equal the one that a plain loop makes.
So that the question fits among the others it is asked of some 400 files, every n-th of all;
FM_BENCH_FILES says how many, and 0 all.
"""

from __future__ import annotations

import ast
import gc
import os
import sqlite3
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import forkmill as fm

from .harness import MORE, Bench, Case, Sample, Target, check, elapsed
from .memory import _rss
from .peers import OURS
from .stdlib_parse import sources

PLAIN_LOOP = "plain loop"
_LEAST_RATE = 20  # files/s: slower than that is hung
TARGETS = (Target("sources of all packages into SQLite", "files", 1.8, PLAIN_LOOP),)
Row = tuple[str, str, str, int]


def rows_of(path: str) -> list[Row]:
    """(file, kind, name, line) of every function and class; none where it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(Path(path).read_bytes())
        except (SyntaxError, ValueError):
            return []
    return [
        (path, type(node).__name__, node.name, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]


class Table:
    """The table in memory."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:")
        self.db.execute("CREATE TABLE names (file, kind, name, line)")

    def load(self, rows: Iterable[Row]) -> None:
        """Add a batch."""
        with self.db:
            self.db.executemany("INSERT INTO names VALUES (?, ?, ?, ?)", rows)

    def content(self) -> list[Row]:
        """All of it, in order; and close it."""
        rows = self.db.execute("SELECT * FROM names ORDER BY file, line, name").fetchall()
        self.db.close()
        return rows


def corpus() -> list[str]:
    """Every .py file of the standard library and of what is installed, the longest first.

    So the last ones are short, and no worker is left alone with a long one. The order is the plain
    loop's too.
    """
    packages = Path(sysconfig.get_path("purelib"))
    paths = sources() + sorted(str(path) for path in packages.rglob("*.py"))
    return sorted(paths, key=os.path.getsize, reverse=True)


def plain(paths: list[str]) -> list[Row]:
    """As a loop."""
    table = Table()
    for path in paths:
        table.load(rows_of(path))
    return table.content()


def piped(paths: list[str], workers: int) -> list[Row]:
    """As a pipeline."""
    table = Table()

    def files() -> Iterator[str]:
        yield from paths

    (
        fm.Pipeline()
        .source(files)
        .map(rows_of, context=f"ipc_fork:{workers}")
        .unbatch()
        .batch(1000)
        .sink(table.load)
        .run()
    )
    return table.content()


def flat(paths: list[str], workers: int) -> float:
    """MB that the parent grows by while all files go through; from the first tenth of them on.

    The rows are counted and dropped: a table in memory would be all that is seen.
    """
    sizes: list[int] = []

    def look(rows: list[Row]) -> None:
        sizes.append(_rss())

    line = fm.Pipeline().source(paths).map(rows_of, context=f"ipc_fork:{workers}")
    line.unbatch().batch(100).sink(look).run()
    return (max(sizes) - sizes[len(sizes) // 10]) / 1e6


def run(bench: Bench) -> None:
    """Ask."""
    paths = corpus()
    some = bench.size(int(os.environ.get("FM_BENCH_FILES", 400)), 20) or len(paths)
    paths = paths[:: max(1, len(paths) // some)]
    expected = plain(paths)
    bench.note(f"{len(paths)} files, {len(expected):,} names")
    gc.freeze()  # what is only here to compare with is no part of anyone's heap

    def take_plain() -> float:
        seconds, rows = elapsed(lambda: plain(paths))
        check(rows, expected)
        return len(paths) / seconds

    def take() -> float:
        seconds, rows = elapsed(lambda: piped(paths, bench.workers))
        check(rows, expected)
        return len(paths) / seconds

    samples: dict[str, Sample] = {OURS: take, PLAIN_LOOP: take_plain}
    title = f"{len(paths)} files parsed and loaded"
    limit = max(60.0, len(paths) / _LEAST_RATE)
    bench.measure(Case("files", title, "files/s", MORE, samples, most_rounds=2, limit=limit))
    if os.path.exists("/proc/self/statm"):
        grown = flat(paths[:: bench.size(4, 1)], bench.workers)
        bench.note(f"the parent's memory grows by {grown:.1f} MB while the files go through")

"""How much faster is a whole job: installed sources, parsed, batched, loaded into SQLite?

The .py files of the standard library and of all installed packages are parsed in workers; names of
functions and classes are loaded in batches. The table must equal the one that a plain loop makes.
So that the question fits among the others it is asked of some 400 files, every n-th of all;
FM_BENCH_FILES says how many, and 0 all.
"""

from __future__ import annotations

import ast
import os
import sqlite3
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import forkmill as fm

from .harness import MORE, Bench, Case, Sample, Target, check, elapsed
from .peers import OURS
from .stdlib_parse import sources

PLAIN_LOOP = "plain loop"
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
    """Every .py file of the standard library and of what is installed."""
    packages = Path(sysconfig.get_path("purelib"))
    return sources() + sorted(str(path) for path in packages.rglob("*.py"))


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


def run(bench: Bench) -> None:
    """Ask."""
    paths = corpus()
    some = bench.size(int(os.environ.get("FM_BENCH_FILES", 400)), 20) or len(paths)
    paths = paths[:: max(1, len(paths) // some)]
    expected = plain(paths)
    bench.note(f"{len(paths)} files, {len(expected):,} names")

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
    bench.measure(Case("files", title, "files/s", MORE, samples, most_rounds=2))

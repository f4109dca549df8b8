"""`forkmill demo`: the sources of the running interpreter's standard library, counted.

    paths ──▶ parse: ipc_fork workers ──▶ batch ──▶ load: SQLite ──▶ ranking
    a sample of them: a plain loop, concurrent.futures and us, one after the other

Guarantees:
    * The database is written beside its place and moved there when it is whole.
    * On the sample, all three get the same counts, or the demo fails.

Threads: the pipeline's; SQLite is spoken to in the one that runs it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import keyword
import os
import sqlite3
import sysconfig
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..contexts.specs import ipc_fork
from ..pipeline import (
    ExecutionPlan,
    Orchestrator,
    Pipeline,
    RunResult,
)

__all__ = ["Analysis", "Demo", "DemoError", "analyse", "compare", "sources"]

_OURS = 0x666D696C  # PRAGMA application_id: "fmil"
_SAMPLE = 15  # of so many files one
_BATCH = 25  # files: some thousand rows
_AHEAD = 32  # files that wait for a worker: what Ctrl-C has to wait for
_KEYWORDS = frozenset(keyword.kwlist)
_SCHEMA = """
CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT, bytes INTEGER, lines INTEGER,
                    tokens INTEGER, functions INTEGER, classes INTEGER, error TEXT);
CREATE TABLE identifiers (file INTEGER, name TEXT, count INTEGER);
CREATE TABLE imports (file INTEGER, module TEXT, count INTEGER);
"""


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Analysis(NamedTuple):
    """What is in one file.

    Attributes:
        path: The file.
        size: In bytes.
        lines, tokens, functions, classes: How many there are.
        identifiers, imports: How often each name, and each module.
        error: What kept it from being read or parsed (test data is broken on purpose), or "".
    """

    path: str
    size: int
    lines: int
    tokens: int
    functions: int
    classes: int
    identifiers: dict[str, int]
    imports: dict[str, int]
    error: str


def sources() -> list[str]:
    """Every .py file of the standard library, without what was installed beside it."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(
        str(path)
        for path in root.rglob("*.py")
        if not {"site-packages", "dist-packages"}.intersection(path.parts)
    )


def analyse(path: str) -> Analysis:
    """Parse and tokenize one file, and count (in a worker)."""
    source = b""
    names: Counter[str] = Counter()
    imports: Counter[str] = Counter()
    tokens = functions = classes = 0
    error = ""
    try:
        source = Path(path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in test data
            tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
            elif isinstance(node, ast.ClassDef):
                classes += 1
            elif isinstance(node, ast.Import):
                imports.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                imports["." * node.level + (node.module or "")] += 1
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            tokens += 1
            if token.type == tokenize.NAME:
                names[token.string] += 1
    except (OSError, SyntaxError, ValueError, RecursionError, tokenize.TokenError) as broken:
        error = type(broken).__name__
    found = {name: count for name, count in names.items() if name not in _KEYWORDS}
    lines = source.count(b"\n")
    return Analysis(
        path, len(source), lines, tokens, functions, classes, found, dict(imports), error
    )


# ------------------------------------------------------------------------ the main job


class Demo:
    """The job: a pipeline that analyses files in workers and loads an SQLite file.

    Args:
        path: Of the SQLite file.
        paths: The files.
        workers: How many; None: the CPUs this process may use.

    Attributes:
        plan: What runs where.
        files, size, lines, tokens: Totals of what is loaded so far.
        broken: How many files did not parse.
        seconds: How long it took.
        result: The run's, when it is over.

    Raises:
        DemoError: There is something else at `path`.
    """

    def __init__(self, path: Path, paths: Sequence[str], workers: int | None) -> None:
        _check_place(path)
        self._path = path
        self._database: sqlite3.Connection
        self.files = self.size = self.lines = self.tokens = self.broken = 0
        self.seconds = 0.0
        self.result: RunResult | None = None
        self.plan = ExecutionPlan(
            Pipeline("demo")
            .source(paths, name="paths")
            .map(analyse, name="parse", context=ipc_fork(workers), queue_size=_AHEAD)
            .batch(_BATCH, name="batch")
            .sink(self._load, name="load")
        ).plan()

    @property
    def workers(self) -> int:
        """How many there were, when it is over."""
        return self.result.stats["parse"].workers if self.result is not None else 0

    def run(self, sinks: Iterable[Callable[[dict[str, Any]], object]] = ()) -> None:
        """Do it; `sinks` are called with each event of the run.

        Raises:
            DemoError: The database cannot be written.
            PoolError: The workers cannot run.
        """
        started = time.perf_counter()
        unfinished = self._path.with_name(self._path.name + ".unfinished")
        try:
            unfinished.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(unfinished)) as self._database:
                self._database.executescript(f"PRAGMA application_id = {_OURS}; {_SCHEMA}")
                self.result = Orchestrator(self.plan.pipeline).execute(self.plan, sinks=sinks)
                self._database.commit()
            unfinished.replace(self._path)
        except (sqlite3.Error, OSError) as error:
            raise DemoError(f"{self._path} cannot be written: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
        self.seconds = time.perf_counter() - started

    def _load(self, batch: list[Analysis]) -> None:
        for found in batch:
            self.files += 1
            self.size += found.size
            self.lines += found.lines
            self.tokens += found.tokens
            self.broken += bool(found.error)
            self._insert(found)

    def _insert(self, found: Analysis) -> None:
        number = self.files
        self._database.execute(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (number, *found[:6], found.error or None),
        )
        for table, counts in (("identifiers", found.identifiers), ("imports", found.imports)):
            rows = counts.items()
            self._database.executemany(f"INSERT INTO {table} VALUES ({number}, ?, ?)", rows)


def _check_place(path: Path) -> None:
    """Refuse to replace a file that no demo wrote."""
    if not os.path.lexists(path):
        return
    with contextlib.suppress(sqlite3.Error, OSError):
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            if database.execute("PRAGMA application_id").fetchone() == (_OURS,):
                return
    raise DemoError(f"{path} is there already, and no demo wrote it")


def ranking(path: Path, count: int) -> dict[str, list[tuple[str, int]]]:
    """What is most frequent in a demo's SQLite file.

    Returns:
        "identifiers", "imports" and "files" (by definitions): names and numbers.
    """
    queries = {
        "identifiers": "SELECT name, sum(count) AS n FROM identifiers GROUP BY name",
        "imports": "SELECT module, sum(count) AS n FROM imports GROUP BY module",
        "files": "SELECT path, functions + classes AS n FROM files",
    }
    with contextlib.closing(sqlite3.connect(path)) as database:
        return {
            name: database.execute(f"{query} ORDER BY n DESC, 1 LIMIT {count}").fetchall()
            for name, query in queries.items()
        }


# ----------------------------------------------------------------------- the comparison


def compare(paths: Sequence[str], workers: int) -> Iterator[tuple[str, float, int]]:
    """The same work, on a sample of the files, by three ways.

    Yields:
        (who, seconds, files) of each, when it is done.

    Raises:
        DemoError: The counts are not the same.
    """
    sample = list(paths[::_SAMPLE])
    expected: Any = None
    for name, way in (
        ("a plain loop", _plain),
        ("concurrent.futures", _stdlib),
        ("forkmill", _ours),
    ):
        started = time.perf_counter()
        found = list(way(sample, workers))
        seconds = time.perf_counter() - started
        if expected is not None and found != expected:
            raise DemoError(f"{name} counted something else than a plain loop")
        expected = found
        yield name, seconds, len(sample)


def _plain(paths: list[str], workers: int) -> Iterable[Analysis]:
    return map(analyse, paths)


def _stdlib(paths: list[str], workers: int) -> Iterator[Analysis]:
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(analyse, paths)


def _ours(paths: list[str], workers: int) -> Iterator[Analysis]:
    yield from (
        Pipeline().source(paths).map(analyse, context=ipc_fork(workers), ordered=True).stream()
    )

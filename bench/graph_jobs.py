"""How fast is a graph of six nodes over the documentation of the packages that are installed?

clean, split, count, hash, score, rank: words are weighed by a table of 50 MB, which all texts
share. Alone, in threads, in workers, and once more with a cache; always what a plain loop gives.
"""

from __future__ import annotations

import importlib.metadata
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any
from zlib import crc32

import forkmill as fm

from .harness import MORE, Bench, Case, check, elapsed
from .peers import OURS

TARGETS = ()
PLAIN_LOOP = "plain loop"
_WORD = re.compile(r"[a-z][a-z_0-9]+")


def clean(text: str) -> str:
    return re.sub(r"<[^>]*>|https?://\S+", " ", text).lower()


def split(clean: str) -> list[str]:
    return _WORD.findall(clean)


def count(split: list[str]) -> dict[str, int]:
    return dict(Counter(split))


def hashed(count: dict[str, int]) -> dict[str, int]:
    return {word: crc32(word.encode()) for word in count}


def score(count: dict[str, int], hashed: dict[str, int], table: bytes) -> dict[str, int]:
    size = len(table)
    return {word: times * table[hashed[word] % size] for word, times in count.items()}


def rank(score: dict[str, int]) -> list[tuple[int, str]]:
    return sorted(((points, word) for word, points in score.items()), reverse=True)[:10]


def loop(text: str, table: bytes) -> list[tuple[int, str]]:
    counted = count(split(clean(text)))
    return rank(score(counted, hashed(counted), table))


NODES = (clean, split, count, hashed, score, rank)


def run(bench: Bench) -> None:
    """Ask."""
    texts = _texts(bench.size(400, 6))
    table = bytes(range(256)) * (bench.size(50_000_000, 2560) // 256)
    expected = [loop(text, table) for text in texts]
    size = sum(map(len, texts)) / 1e6
    inputs = {"text": texts, "table": table}

    def rate(job: Callable[[], Any]) -> float:
        seconds, rows = elapsed(job)
        check(rows, expected)
        return size / seconds

    def mapped(graph: fm.Graph, engine: Any) -> Any:
        return graph.map(inputs, map_over="text", output_name="rank", engine=engine)["rank"]

    graph = fm.Graph(NODES)
    kept = fm.Graph([fm.node(fn, cache=fn is rank or fn is clean) for fn in NODES])
    number = bench.workers
    bench.plan(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        fm.LocalEngine(f"parallel:{number}", f"parallel:{number}") as workers,
        fm.LocalEngine(f"threaded:{number}", f"threaded:{number}") as threads,
    ):
        cached = fm.LocalEngine(cache=fm.DiskCache(folder))
        mapped(kept, cached)
        samples = {
            OURS: lambda: rate(lambda: mapped(graph, workers)),
            "in threads": lambda: rate(lambda: mapped(graph, threads)),
            "alone": lambda: rate(lambda: mapped(graph, None)),
            "clean and rank cached": lambda: rate(lambda: mapped(kept, cached)),
            PLAIN_LOOP: lambda: rate(lambda: [loop(text, table) for text in texts]),
        }
        title = f"{len(texts):,} texts, {size:.1f} MB, through six nodes, {number} workers"
        bench.measure(Case("docs", title, "MB/s", MORE, samples, most_rounds=5))


def _texts(most: int) -> list[str]:
    """What the installed packages say of themselves: their metadata, README and .rst, .md, .txt."""
    found: list[str] = []
    for package in sorted(importlib.metadata.distributions(), key=lambda one: one.name or ""):
        found.append(package.read_text("METADATA") or package.name or "")
        for file in package.files or ():
            if file.suffix in (".rst", ".md", ".txt") and len(found) < most:
                try:
                    found.append(file.read_text("utf-8"))
                except (OSError, ValueError):
                    continue
        if len(found) >= most:
            break
    return found[:most]

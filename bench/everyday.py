"""How long does an everyday job take by map, beside multiprocessing's Pool: cold and warm?

JSON lines added up, gzip members, counts of words, rows of dicts, hashes of files, groups of a
frame, pure CPU: some 0.3 s of work each in two workers that are made and ended in the job, each in
a fresh process. Cold: its first job, from a list; warm: a later one, from a generator. Everybody's
results must equal a plain loop's. The last case is the median of all.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import random
import statistics
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .harness import LESS, Bench, Case, Measured, Sample, Target, check, fresh
from .peers import OURS, StdlibPool

POOL = StdlibPool.name
_WHAT = "everyday jobs by map"
KINDS = {"cold": (1.0, "cold, list"), "warm": (1.05, "warm, generator")}
_WARM = 3  # jobs after the first one; the best of them counts


def json_lines(block: str) -> int:
    """The sum of amounts."""
    return sum(json.loads(line)["amount"] for line in block.splitlines())


def gzip_members(member: bytes) -> list[int]:
    """[length, CRC] of what a member holds."""
    data = gzip.decompress(member)
    return [len(data), zlib.crc32(data)]


def word_counts(text: str) -> dict[str, int]:
    """How often each word is there."""
    return dict(Counter(text.split()))


def dict_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are kept, with one column more."""
    return [{**row, "net": row["gross"] / 1.2} for row in rows if row["gross"] > 10]


def file_hashes(path: str) -> str:
    """The file's SHA-256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def frame_groups(frame: Any) -> float:
    """A figure of a group of rows."""
    return float((frame["x"] * frame["w"]).sum() / frame["w"].sum())


def pure_cpu(n: int) -> int:
    """A loop."""
    total = 0
    for i in range(n):
        total += i * i % 7
    return total


def _lines(count: int, _: Path) -> list[str]:
    lines = [json.dumps({"user": f"u{n % 97}", "amount": n * n % 1009}) for n in range(400)]
    return ["\n".join(lines[n % 7 :]) for n in range(count)]


def _members(count: int, _: Path) -> list[bytes]:
    words = [f"{random.Random(n).randrange(10**6):x}" for n in range(500)]
    text = " ".join(random.Random(1).choices(words, k=1 << 16)).encode()
    return [gzip.compress(text[n % 9 :], mtime=0) for n in range(count)]


def _texts(count: int, _: Path) -> list[str]:
    words = [f"word{n}" for n in range(700)]
    return [" ".join(random.Random(n).choices(words, k=9000)) for n in range(count)]


def _rows(count: int, _: Path) -> list[list[dict[str, Any]]]:
    return [
        [{"id": n, "name": f"row {n}", "gross": (n + at) % 97, "tags": ["a"]} for n in range(500)]
        for at in range(count)
    ]


def _files(count: int, folder: Path) -> list[str]:
    for n in range(count):
        (folder / str(n)).write_bytes(n.to_bytes(4, "little") * (1 << 17))
    return [str(folder / str(n)) for n in range(count)]


def _groups(count: int, _: Path) -> list[Any]:
    import numpy as np
    import pandas as pd

    n = np.arange(50 * count)
    frame = pd.DataFrame({"key": n // 50, "x": n % 97 * 1.5, "w": n % 13 + 1.0})
    return [group for _, group in frame.groupby("key")]


def _numbers(count: int, _: Path) -> list[int]:
    return [20_000] * count


Job = tuple[Callable[[Any], Any], Callable[[int, Path], list[Any]], int]
JOBS: dict[str, Job] = {
    "json": (json_lines, _lines, 300),
    "gzip": (gzip_members, _members, 150),
    "words": (word_counts, _texts, 250),
    "rows": (dict_rows, _rows, 500),
    "files": (file_hashes, _files, 250),
    "groups": (frame_groups, _groups, 1000),
    "cpu": (pure_cpu, _numbers, 250),
}
TARGETS = (
    *(
        Target(_WHAT, f"{job}_{kind}", bound, POOL, label=f"{job}, {title}")
        for job in JOBS
        for kind, (bound, title) in KINDS.items()
    ),
    Target(_WHAT, "median", 1.15, label="median of all, times multiprocessing.Pool"),
)


def run(bench: Bench) -> None:
    """Ask."""
    jobs = [job for job in JOBS if job != "groups" or importlib.util.find_spec("pandas")]
    bench.plan(len(jobs) * len(KINDS) + 1)
    found: list[Measured] = []
    for job in jobs:
        count = bench.size(JOBS[job][2], 6)
        for kind, (_, title) in KINDS.items():
            samples: dict[str, Sample] = {
                name: partial(fresh, "everyday", name, job, kind, count) for name in (OURS, POOL)
            }
            case = Case(f"{job}_{kind}", f"{count:,} x {job}: {title}", "s", LESS, samples)
            case.most_rounds = 5
            found.append(bench.measure(case))
    ratios = [statistics.median(one.speedups(POOL)) for one in found if one.speedups(POOL)]
    title = "the median of all these, times as fast as the Pool"
    bench.measure(Case("median", title, "x", LESS, {OURS: lambda: _middle(ratios)}, most_rounds=1))


def _middle(ratios: list[float]) -> float | None:
    return statistics.median(ratios) if ratios else None


# ---------------------------------------------------------------------- in that process


def _ours(fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    import forkmill as fm

    with fm.ProcessPool(2) as pool:
        return list(pool.map(fn, items))


def _pool(fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(fn, items)


def _generated(items: list[Any]) -> Iterator[Any]:
    yield from items


def _main(name: str, job: str, kind: str, count: str) -> None:
    fn, make, _ = JOBS[job]
    way = _ours if name == OURS else _pool
    __import__("forkmill" if name == OURS else "multiprocessing.pool")  # that is not the question
    with tempfile.TemporaryDirectory() as folder:
        items = make(int(count), Path(folder))
        expected = [*map(fn, items)]
        seconds = []
        for _ in range(1 if kind == "cold" else 1 + _WARM):
            given: Any = items if kind == "cold" else _generated(items)
            begin = time.perf_counter()
            results = way(fn, given)
            seconds.append(time.perf_counter() - begin)
            check(results, expected)
    print(seconds[0] if kind == "cold" else min(seconds[1:]))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _main(*sys.argv[1:])

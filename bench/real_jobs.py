"""How much faster are everyday jobs: JSON lines aggregated, gzip members, groups of a frame?

A log of JSON lines comes in blocks; workers parse each line and add up amounts by user, the parent
adds up their sums: much to do, little to send back. Members of a gzip file are decompressed and
measured: large bytes to send, a checksum back. Groups of 50 rows of a pandas frame, where it is
installed: objects that take long to pickle. All in `map` with all defaults, beside a plain loop
whose result everyone's must equal.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .everyday import JOBS, frame_groups
from .harness import MORE, Bench, Case, Sample, Target, check, elapsed
from .peers import Function, Loky, Peer, StdlibPool

PLAIN_LOOP = "plain loop"
TARGETS = (
    Target("100 gzip members, all peers loaded", "gzip", 1.0, StdlibPool.name),
    Target("1,000 groups of 50 rows of a frame", "groups", 1.0, StdlibPool.name, label="Pool"),
    Target("1,000 groups of 50 rows of a frame", "groups", 1.0, Loky.name, label="loky"),
)
_LINES = 500  # of a block
_MEMBER = 1 << 19  # bytes of a member, before compression


def add_up(block: str) -> dict[str, int]:
    """The sum of amounts by user over a block of JSON lines."""
    sums: Counter[str] = Counter()
    for line in block.splitlines():
        entry = json.loads(line)
        sums[entry["user"]] += entry["amount"]
    return dict(sums)


def decompress(member: bytes) -> list[int]:
    """[length, CRC] of what a gzip member holds."""
    data = gzip.decompress(member)
    return [len(data), zlib.crc32(data)]


def run(bench: Bench) -> None:
    """Ask."""
    frames = importlib.util.find_spec("pandas") is not None
    bench.plan(2 + frames)
    blocks = [_block(i) for i in range(bench.size(300, 4))]
    _ask(bench, "json", f"{len(blocks) * _LINES:,} JSON lines", add_up, blocks, _total)
    members = [_member(i) for i in range(bench.size(100, 4))]
    _ask(bench, "gzip", f"{len(members)} gzip members", decompress, members, list)
    if frames:
        groups = JOBS["groups"][1](bench.size(1000, 8), Path())
        _ask(bench, "groups", f"{len(groups):,} groups of 50 rows", frame_groups, groups, list)


def _ask(
    bench: Bench,
    key: str,
    what: str,
    fn: Function,
    items: list[Any],
    join: Callable[[Iterable[Any]], Any],
) -> None:
    expected = join(map(fn, items))

    def rate(way: Callable[[Function, list[Any]], Iterable[Any]]) -> float:
        seconds, result = elapsed(lambda: join(way(fn, items)))
        check(result, expected)
        return 1 / seconds

    def take(pool: Peer) -> float:
        list(pool.map(fn, items[:8]))  # workers that must import the function have done so
        return rate(pool.map)

    samples: dict[str, Sample] = bench.pools(take, way="map")
    samples[PLAIN_LOOP] = lambda: rate(map)
    title = f"{what}, map with defaults"
    bench.measure(Case(key, title, "jobs/s", MORE, samples, most_rounds=5))


def _block(seed: int) -> str:
    chance = random.Random(seed)
    return "\n".join(
        json.dumps({"id": i, "user": f"u{chance.randrange(100)}", "amount": chance.randrange(1000)})
        for i in range(_LINES)
    )


def _member(seed: int) -> bytes:
    """Text that compresses as logs do: words of few kinds."""
    chance = random.Random(seed)
    words = [f"{chance.randrange(10**6):x}" for _ in range(500)]
    text = " ".join(chance.choices(words, k=_MEMBER // 4))
    return gzip.compress(text[:_MEMBER].encode(), compresslevel=6, mtime=0)


def _total(sums: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for some in sums:
        total.update(some)
    return dict(total)

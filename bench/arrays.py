"""How fast do arrays travel, beside a copy in memory?

One after the other, the same array each time, as the C reference copies the same buffer: sent (a
few numbers come back), sent and given back unchanged, freshly made in the worker, and at 8 MB made
there with `fm.empty` and only begun, so that nothing is written or copied. Bytes are counted once,
also where they go both ways. As the reference has copied its buffers before its clock starts, so
have the pool and its workers seen some arrays: fresh memory, and Python's own first unpickling of
an array in a forked worker, take longer than the copy that is asked about. At 8 MB also bytes and
arrays inside other things, all peers, and eight different arrays at once: they are 64 MB, and
whether those fit in the machine's cache has more to say then than anybody's transport. At other
sizes the standard library's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from . import work
from .harness import MORE, Bench, Case, Sample, Skip, Target, WrongResult, check, elapsed
from .peers import OURS, Forkmill, Peer, StdlibExecutor, StdlibPool

MEMCPY = "C memcpy, warm"
_BACK = "8 MB arrays back"
TARGETS = (
    Target("send 8 MB arrays", "send-8192K", 0.70, MEMCPY),
    Target(_BACK, "return-8192K", 0.60, MEMCPY, label="unchanged"),
    Target(_BACK, "make-8192K", 0.33, MEMCPY, label="freshly made"),
    Target(_BACK, "born-8192K", 3.0, MEMCPY, label="made with fm.empty"),
)
SIZES = (64 << 10, 256 << 10, 1 << 20, 8 << 20, 64 << 20, 256 << 20)
QUICK_SIZES = (64 << 10, 8 << 20)
_FOR_ALL = 8 << 20
_SAMPLE = 256 << 20  # bytes a sample, if that is some arrays
_AT_ONCE = 8
_WARM = 8  # calls before the clock starts
_SLOWER = 8  # who takes 30 ms for 8 MB shows its mean with so many times fewer arrays

_SERIES = {
    "send": "arrays sent, by size in MB",
    "return": "arrays sent and given back, by size in MB",
    "make": "arrays made in the worker, by size in MB",
}

Take = Callable[[Peer, int, int], float]


def run(bench: Bench) -> None:
    """Ask."""
    if importlib.util.find_spec("numpy") is None:
        raise Skip("numpy is not installed")
    sizes = QUICK_SIZES if bench.quick else SIZES
    bench.plan(len(_SERIES) * len(sizes) + 5)
    for size in sizes:
        count = bench.size(min(100, max(1, _SAMPLE // size)), 1)
        title = f"{count} arrays of {size >> 10:,} KiB, one after the other"
        _ask(bench, "send", f"{title}, sent", _send, size, count)
        _ask(bench, "return", f"{title}, sent and given back", _give_back, size, count)
        _ask(bench, "make", f"{title}, made in the worker", _make, size, count)
    size, count = _FOR_ALL, bench.size(_SAMPLE // _FOR_ALL, 2)
    title = f"{count} times {size >> 10:,} KiB"
    _ask(bench, "born", f"{title}, made with fm.empty and returned", _born, size, count)
    _ask(bench, "bytes", f"{title} of bytes, sent and given back", _give_back_bytes, size, count)
    _ask(bench, "nested", f"{title} of nested arrays, sent and given back", _nest, size, count)
    title = f"{_AT_ONCE} different arrays of {size >> 10:,} KiB at once"
    _ask(bench, "send-many", f"{title}, sent", _send_many, size, _AT_ONCE)
    _ask(bench, "return-many", f"{title}, given back and kept", _give_back_many, size, _AT_ONCE)


def _ask(bench: Bench, key: str, text: str, take: Take, size: int, count: int) -> None:
    others = (Forkmill, StdlibExecutor, *((StdlibPool,) if size < _FOR_ALL else ()))
    samples: dict[str, Sample] = {
        peer.name: bench.with_pool(peer, _bound(take, size, count))
        for peer in bench.peers
        if size == _FOR_ALL or peer in others
    }
    if reference := bench.reference:
        samples[MEMCPY] = _memcpy(reference, size, bench)
    bench.measure(
        Case(
            f"{key}-{size >> 10}K",
            text,
            "GB/s",
            MORE,
            samples,
            most_rounds=5 if size <= _FOR_ALL else 3,
            series=_SERIES.get(key, ""),
            at=size / 2**20,
        )
    )


def _bound(take: Take, size: int, count: int) -> Callable[[Peer], float]:
    def bound(pool: Peer) -> float:
        some = count if pool.name == OURS or at_once else max(1, count // _SLOWER)
        take(pool, size, some if at_once else min(_WARM, some))
        return take(pool, size, some)

    at_once = take in (_send_many, _give_back_many)
    return bound


def _memcpy(reference: Any, size: int, bench: Bench) -> Sample:
    times = bench.size(max(5, (1 << 30) // size), 2)
    return lambda: size / reference.memcpy(size, times) / 1e9


def _array(size: int, value: int) -> Any:
    import numpy as np

    return np.full(size, value, np.uint8)


def _lone(pool: Peer, fn: Any, item: Any, count: int, right: Callable[[Any], None]) -> float:
    """Seconds of so many calls, one after the other; no result is kept."""
    total = 0.0
    for _ in range(count):
        seconds, result = elapsed(lambda: pool.call(fn, item))
        total += seconds
        right(result)
        del result
    return total


def _send(pool: Peer, size: int, count: int) -> float:
    array = _array(size, 7)
    seconds = _lone(pool, work.look_at, array, count, lambda r: check(tuple(r), (size, 7, 7)))
    return size * count / seconds / 1e9


def _give_back(pool: Peer, size: int, count: int) -> float:
    array = _array(size, 7)
    seconds = _lone(pool, work.give_back, array, count, lambda r: _check_ends(r, size, 7))
    return size * count / seconds / 1e9


def _make(pool: Peer, size: int, count: int) -> float:
    seconds = _lone(pool, work.make_array, (size, 9), count, lambda r: _check_ends(r, size, 9))
    return size * count / seconds / 1e9


def _born(pool: Peer, size: int, count: int) -> float:
    seconds = _lone(pool, work.born_array, (size, 9), count, lambda r: _check_ends(r, size, 9))
    return size * count / seconds / 1e9


def _give_back_bytes(pool: Peer, size: int, count: int) -> float:
    data = b"7" * size

    def right(result: Any) -> None:
        check((len(result), result[0], result[-1]), (size, 55, 55))

    return size * count / _lone(pool, work.give_back, data, count, right) / 1e9


def _nest(pool: Peer, size: int, count: int) -> float:
    batch = work.nested_arrays(size)

    def right(result: Any) -> None:
        check(result["labels"], batch["labels"])
        for i, frame in enumerate(result["frames"]):
            _check_ends(frame, size // 8, i)

    return size * count / _lone(pool, work.give_back, batch, count, right) / 1e9


def _check_ends(array: Any, size: int, value: int) -> None:
    # Not all of it: that would take the time of another copy, and cool what is warm.
    check((array.nbytes, int(array[0]), int(array[-1])), (size, value, value))


def _send_many(pool: Peer, size: int, count: int) -> float:
    arrays = [_array(size, i) for i in range(count)]
    seconds, results = elapsed(lambda: pool.calls(work.look_at, arrays))
    check([tuple(r) for r in results], [(size, i, i) for i in range(count)])
    return size * count / seconds / 1e9


def _give_back_many(pool: Peer, size: int, count: int) -> float:
    arrays = [_array(size, i) for i in range(count)]
    seconds, results = elapsed(lambda: pool.calls(work.give_back, arrays))
    check(len(results), count)
    for i, array in enumerate(results):
        check(array.nbytes, size)
        if not (array == i).all():
            raise WrongResult(f"array {i} is not all {i}")
    return size * count / seconds / 1e9

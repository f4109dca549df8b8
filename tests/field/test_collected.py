"""Garbage that is collected in the middle of things. CPython 3.11 does so wherever it allocates:
finalizers run Python there, and other threads."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from conftest import LINUX, RunScript
from forkmill import _native

OLD = pytest.mark.skipif(sys.version_info >= (3, 12), reason="collects between two bytecodes alone")
ROWS = [[{1, "é"}, (i, {"a": [i]})] for i in range(40)]


@contextmanager
def collecting(each: int) -> Iterator[list[str]]:
    """Collect at each so-and-so-many-th container that is made; when it was done."""
    seen: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        seen.append(phase)

    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.callbacks.append(note)
    gc.set_threshold(each, 1000, 1000)
    try:
        yield seen
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(note)
        gc.unfreeze()


def no_pickle(obj: object) -> Any:
    raise TypeError(f"{obj!r} is not plain")


@OLD
@pytest.mark.parametrize("each", [1, 7])
def test_nothing_is_collected_while_a_plain_value_is_encoded(each: int) -> None:
    """Others would take what the values that were found so far have to keep alive."""
    encoder = _native.Encoder(no_pickle)
    add = encoder.add
    with collecting(each) as seen:
        add(ROWS)
        count = len(seen)
    assert count == 0
    assert _native.decode(bytes(encoder), no_pickle) == ROWS


@OLD
@pytest.mark.parametrize("each", [1, 7])
def test_nothing_is_collected_while_a_plain_record_is_decoded(each: int) -> None:
    """Others could have let go of the memory that it lies in."""
    encoder = _native.Encoder(no_pickle)
    encoder.add(ROWS)
    record, decode = bytes(encoder), _native.decode
    with collecting(each) as seen:
        value = decode(record, no_pickle)
        count = len(seen)
    assert (value, count) == (ROWS, 0)
    assert gc.isenabled()
    with pytest.raises(Exception, match="malformed"):
        decode(record[:-1], no_pickle)
    assert gc.isenabled()


def test_an_encoder_in_a_cycle_gives_its_segment_back() -> None:
    """The collector takes a cycle apart before it lets it die."""
    fd = _native.arena_create()
    if fd < 0:
        pytest.skip("no shared memory here")
    arena = _native.Arena(fd)
    for _ in range(3):
        # It begins with the encoder: a dict is tracked from when it has something to track.
        holder: dict[str, Any] = {}
        holder["encoder"] = encoder = _native.Encoder(holder.get, None, arena)
        encoder.add(bytes(1 << 20))
        assert arena.stats()["pools"] == 1
        del holder, encoder
        gc.collect()
        assert arena.stats()["pools"] == 0


@pytest.mark.skipif(not LINUX, reason="signals of code that fails")
@pytest.mark.parametrize(
    "make", ["fm.executor('cow_fork:1')", "fm.ProcessPool(1, start_method='fork')"]
)
def test_a_crash_in_a_hook_before_a_fork_is_told(run_script: RunScript, make: str) -> None:
    """Threads that fork get no signals, but those that their own code causes."""
    script = run_script(
        f"""
        import ctypes, os
        import forkmill as fm
        os.register_at_fork(before=lambda: ctypes.string_at(0))
        {make}.submit(abs, 1).result()
        """,
        expect=-signal.SIGSEGV,
    )
    assert "Fatal Python error: Segmentation fault" in script.stderr

"""What a signal's handler raises while a lane is emptied: nothing is lost in silence."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import forkmill as fm
from forkmill import contexts
from forkmill.contexts import Batch, Lane, Work
from forkmill.contexts.lanes import direct, lane, workers
from interrupts import SIGNAL, Alarm, Place, Tracer

COUNT = 200
FILES = frozenset(module.__file__ for module in (lane, direct, workers))


def same(x: int) -> int:
    return x


@pytest.fixture(params=["thread:2", "ipc_fork:1"])
def lane_of(request: pytest.FixtureRequest) -> Iterator[Callable[[], Lane]]:
    """Makes lanes that have been given items."""
    executor = contexts.executor(request.param)
    lanes: list[Lane] = []

    def make() -> Lane:
        one = executor.lane(Work(same))
        lanes.append(one)
        one.put_many(range(COUNT))
        return one

    yield make
    for one in lanes:
        one.close()
    executor.shutdown()


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    def raises(number: int, frame: Any) -> None:
        raise Alarm(number)

    before = signal.signal(SIGNAL, raises)
    yield
    signal.signal(SIGNAL, before)


def counted(pieces: list[Any]) -> int:
    return sum(len(piece.items) if isinstance(piece, Batch) else piece.done for piece in pieces)


def taken(one: Lane, singly: bool, target: Place | None) -> tuple[Tracer, int]:
    """Take from it, interrupted at a place; how many items came."""
    tracer, before, found = Tracer(target), sys.gettrace(), 0
    try:
        sys.settrace(tracer.begin)
        found = one.take(20) is not None if singly else counted(one.take_many(20))
    except Alarm:
        pass
    finally:
        sys.settrace(before)
    return tracer, found


@pytest.mark.parametrize("singly", [False, True], ids=["take_many", "take"])
def test_what_is_lost_is_told(lane_of: Callable[[], Lane], singly: bool) -> None:
    seen, _ = taken(lane_of(), singly, None)
    places = [place for place in seen.places if place[0].co_filename in FILES]
    told = whole = 0
    for place in places:
        one = lane_of()
        tracer, found = taken(one, singly, place)
        try:
            while found < COUNT:
                pieces = one.take_many(20)
                assert pieces, f"{place}: {COUNT - found} items are lost without a word"
                found += counted(pieces)
            whole += 1
        except fm.PoolError as error:
            assert "signal's handler" in str(error), place
            told += tracer.came
        one.close()
    assert told and whole, (told, whole)

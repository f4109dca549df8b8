"""The one stream of what happens: events, who hears them, and the thread that tells them.

    any thread:       Emitter.emit ──▶ event ──▶ a deque
                                                   │ seq
    forkmill-events:  runs' progress, pools ──▶────┤
                      ten times a second           └──▶ a queue a subscriber ──▶ its sink

An event is a dict of plain data:

    schema      1
    source      "pipeline", "pool", "map": who tells it
    run         an id (uuid7) of the run, or of the pool, that it is about
    parent      the id of the run that this one is part of, or None
    seq         a number of this process, unique and rising for each subscriber
    time        seconds since the epoch
    monotonic   seconds by the monotonic clock, which processes share
    kind        run_started, stage_finished, retry, worker_died, progress, ...
    name        the stage, the pool, ..., or None
    item        an item as short text, or None
    attempt     which try, or None
    worker      the pid of a worker, or None
    seconds     how long it took, or None
    data        what belongs to the kind

Guarantees:
    * Without a subscriber nothing is made, and there is no thread.
    * Sinks are called in that one thread, one at a time. What they raise is counted, told to
      `logging` once, and changes nothing.
    * Who emits takes no lock, so nothing can be left locked by what a signal handler raises,
      and a finalizer may emit. With the policy "block" it waits, 30 s at the most.
    * Each queue is bounded. Who loses events gets a "gap" in their place: {lost, first, last}.
    * A forked child has no subscribers.
    * At the interpreter's end the stream ends after the pools, then `close` of sinks is called.

A subscriber:

    state    by                         an event                               until
    late     subscribe, attach          is not for it                          it was told what is
                                                                               under way
    open     that; sinks=               is queued                              its queue is full
    full     an event without room      "drop": is counted; "block": stays in  there is room: then
                                        the deque, and holds the emitters up   the gap, first
    patient  full for 30 s ("block")    as "drop"                              its queue is empty
    ended    end, its run's end, exit   is not for it                          -

The stream:

    idle     nobody subscribes          is not made                            a subscriber
    waiting  a run with sinks opens     is in the deque (forks come before     its contexts are open
                                        threads)
    live     the thread has begun       see above                              the last one ends

Invariants:
    * EV-1  Only the thread takes from the deque, gives numbers and touches queues.
    * EV-2  The thread that ends takes its name off first, and looks for subscribers after that;
      who subscribes is there first, and looks for the thread after that. So one of them begins
      another thread.

=============  =================================================================================
module         what it has
=============  =================================================================================
event          what an event is; what sinks may wish for
subscription   who hears events: its queue, its sink
bus            the deque, and the thread
emitter        what runs and pools tell their events with
said           what tasks say before they are done
files          JsonLines and what reads it
=============  =================================================================================

Threads: any, unless it says otherwise.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

from .._process import EARS, LATE, STREAM
from .._said import short
from .bus import bus as _bus
from .emitter import Emitter, PartOf, bare, bare_ones, current, emitters, greet
from .event import BUFFER, SCHEMA, check_sinks, checked, expand, new_id
from .files import JsonLines, each_event, read_events
from .said import (
    Ear,
    begin,
    detail,
    emitter_of,
    hear,
    heard,
    known,
    listened,
    say,
    told,
    wake,
    words,
)
from .subscription import DRAIN_S, Subscription

__all__ = [
    "DRAIN_S",
    "SCHEMA",
    "Ear",
    "Emitter",
    "JsonLines",
    "PartOf",
    "Subscription",
    "bare",
    "begin",
    "check_sinks",
    "current",
    "detail",
    "each_event",
    "emitter_of",
    "expand",
    "hear",
    "heard",
    "known",
    "listened",
    "new_id",
    "read_events",
    "say",
    "short",
    "subscribe",
    "told",
    "wake",
    "words",
]


def subscribe(
    sink: Any, *, detail: str = "runs", policy: str = "drop", buffer: int = BUFFER
) -> Subscription:
    """Have a sink called with all events of this process from now on, in one thread of ours.

    Of each run and each worker of a pool that is under way it is told the begin first, with
    ``late`` in the data.

    Args:
        sink: Called with each event, a dict. If it has a method ``batch``, that is called with
            lists of them instead; if it has ``close``, that is called when the interpreter ends.
        detail: "runs"; or "items": also one event for each chunk of items, where calls under 20 us
            are sampled; or "every": all calls are measured.
        policy: What a sink that is too slow brings about: it loses events ("drop"), or what
            happens is slowed down ("block", for 30 s at the most).
        buffer: How many events may wait for it.

    Returns:
        What ends it, when it is called: afterwards no event comes any more. Its attributes
        `errors` and `lost` tell how often the sink raised, and how many events it has lost.

    Raises:
        TypeError, ValueError: One of the arguments.
        RuntimeError: There is no thread to be had.
    """
    subscriber = Subscription(_bus, sink, checked(sink, detail, policy, buffer), None)
    try:
        subscriber.greeted = False
        _bus.add(subscriber, _bus.everyone)
        greet(subscriber)
        if not _bus.begin():
            raise RuntimeError("no thread can be started that would tell the events")
        for look in LATE:
            look()
    except BaseException:
        subscriber.end()
        _bus.subscribers.pop(subscriber, None)
        raise
    return subscriber


def _in_child() -> None:
    for subscriber in tuple(_bus.subscribers):
        if subscriber._home is not None:
            subscriber._home.own.clear()
    _bus.__init__()  # type: ignore[misc]
    bare_ones.clear()
    emitters.clear()
    EARS.clear()


STREAM[:] = [sys.modules[__name__]]
atexit.register(_bus.end)  # pools end before it, by threading's own hook
os.register_at_fork(after_in_child=_in_child)

"""What an event is, and what may be asked of who hears them. Fields: the head of this package.

Threads: any.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from .. import _checks
from .._said import short

Event = dict[str, Any]

SCHEMA = 1
DETAILS = ("runs", "items", "every")
POLICIES = ("drop", "block")
BUFFER = 10_000  # events that may wait for one subscriber


def new_id() -> str:
    """A uuid7 (RFC 9562): ids that were made later sort behind. Only Python 3.14 has it."""
    stamp = time.time_ns()
    value = (stamp // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # the version
    value = value & ~(0x3 << 62) | 0x2 << 62  # the variant
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def event_of(
    source: str, run: str | None, parent: str | None, seq: int, kind: str, data: dict[str, Any]
) -> Event:
    head = {"schema": SCHEMA, "source": source, "run": run, "parent": parent, "seq": seq}
    clocks = {"time": time.time(), "monotonic": time.monotonic()}
    rest = {"item": None, "attempt": None, "worker": None, "seconds": None, "data": data}
    return {**head, **clocks, "kind": kind, "name": None, **rest}


def complain(text: str, error: BaseException) -> None:
    import logging

    logger = logging.getLogger("forkmill.events")
    if not logging.getLogger("forkmill").handlers:  # else it would end up on standard error
        logging.getLogger("forkmill").addHandler(logging.NullHandler())
    with contextlib.suppress(Exception):  # a filter's
        logger.warning("%s: %s", text, short(error), exc_info=error)


def check_sinks(sinks: Any) -> tuple[Any, ...]:
    """The sinks of a run, as a tuple.

    Raises:
        TypeError, ValueError: One is no sink, or wishes for what there is not.
    """
    found = _checks.objects("sinks", sinks)
    for sink in found:
        wishes(sink)
    return found


def wishes(sink: Any) -> tuple[str, str, int]:
    """Detail, policy and buffer of a sink that was given to a run: what its attributes say."""
    detail = getattr(sink, "detail", "runs")
    policy = getattr(sink, "policy", "drop")
    return checked(sink, detail, policy, getattr(sink, "buffer", BUFFER))


def checked(sink: Any, detail: Any, policy: Any, buffer: Any) -> tuple[str, str, int]:
    if not callable(getattr(sink, "batch", None)):
        _checks.a_callable("a sink", sink)
    for name, value, allowed in (("detail", detail, DETAILS), ("policy", policy, POLICIES)):
        if value not in allowed:
            near = _checks.nearest(value, allowed)
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}{near}")
    return detail, policy, _checks.integer("buffer", buffer, least=1)


def expand(event: Event) -> list[dict[str, Any]]:
    """The calls of an event of the kind "items": for each {number, begin, seconds, worker}.

    number counts the calls that this worker makes for this stage, from 0; begin is by the monotonic
    clock, in seconds. Of calls that were not measured begin and seconds are None. An event of
    another kind has none.
    """
    if event["kind"] != "items":
        return []
    from array import array

    data = event["data"]
    packed = data["packed"]
    if isinstance(packed, str):  # from a file
        import base64

        packed = base64.b64decode(packed)
    values = array("d", packed)
    first, worker = data["first"], event["worker"]
    rest = {"begin": None, "seconds": None, "worker": worker}
    calls: list[dict[str, Any]] = [{"number": first + i, **rest} for i in range(data["count"])]
    for number, begin, seconds in zip(values[::3], values[1::3], values[2::3], strict=True):
        calls[int(number)].update(begin=begin, seconds=seconds)
    return calls

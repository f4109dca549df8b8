"""What a pool's workers have logged, told to the loggers of this process.

    worker/logs.py ──words──▶ forkmill.events, its thread ──▶ Forwarded ──▶ logging

Guarantees: a record goes to the logger of its name, with the filters, levels and handlers that are
here now. What was lost on the way is counted, and told by a warning of "forkmill.pool".

Threads: the one of the stream of events.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from .log import POOL

__all__ = ["Forwarded"]


class Forwarded:
    """A sink of events that logs what workers have logged.

    Args:
        name: The pool's.
        losses: Where it is counted what was lost.
    """

    quiet = True  # it does not ask tasks to say anything else

    def __init__(self, name: str, losses: dict[str, int]) -> None:
        self._name = name
        self._losses = losses

    def __call__(self, event: dict[str, Any]) -> None:
        """Log one."""
        if event["kind"] == "gap":
            lost = event["data"]["lost"]
            self._losses["log_records"] = self._losses.get("log_records", 0) + lost
            POOL.warning("%s: %d log records of workers were lost", self._name, lost)
        elif event["kind"] == "log":
            logger = logging.getLogger(event["name"])
            record = _record(event["name"], event["worker"], event["data"])
            if logger.isEnabledFor(record.levelno):
                with contextlib.suppress(Exception):  # a filter's
                    logger.handle(record)


def _record(name: str, pid: int, data: dict[str, Any]) -> logging.LogRecord:
    record = logging.LogRecord(
        name, data["level"], data["path"], data["line"], data["message"], None, None,
        data["function"], data["stack"],
    )  # fmt: skip
    record.levelname = data["level_name"]
    record.relativeCreated += (data["created"] - record.created) * 1000
    record.created = data["created"]
    record.msecs = data["created"] % 1 * 1000 // 1
    record.process, record.processName = pid, data["process"]
    record.thread, record.threadName = None, data["thread"]
    record.exc_text = data["error"]
    record.task = data["task"]
    return record

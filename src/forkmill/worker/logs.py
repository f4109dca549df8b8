"""What workers log, as the program's own logging tells it: `ProcessPool(forward_logs=True)`.

    a logger in a worker ──▶ Forward, at the root ──a word──▶ the pool's process ──▶ its loggers

Guarantees:
    * Levels are looked at where a record is made: those of the program, as they were when the pool
      was made, and what the initializer says beside them.
    * A record is formatted where it is made, and is on its way before the call returns: a worker
      that is killed after that loses none. Where there is no room it is dropped, and counted.
    * Handlers that the initializer gives to the root win: then nothing is forwarded. What was only
      inherited by a fork is replaced, for it belongs to the program.
    * What a task forks logs as if there were no pool: by the handlers that were replaced.

Threads: any; `logging` has a lock for each handler.
"""

from __future__ import annotations

import logging
from typing import Any

from .. import _native

__all__ = ["Levels", "forward", "inherited", "levels"]

Levels = tuple[int, int, tuple[tuple[str, int], ...]]

_LONGEST = 50_000  # characters of a message, or of a traceback


def levels() -> Levels:
    """In the user's process: what is disabled, the root's level, and those of other loggers."""
    known = tuple(logging.root.manager.loggerDict.items())
    others = tuple((n, g.level) for n, g in known if isinstance(g, logging.Logger) and g.level)
    return logging.root.manager.disable, logging.root.level, others


def inherited() -> list[logging.Handler]:
    """In a worker, before its initializer: the handlers that are the program's."""
    return [*logging.root.handlers]


def forward(given: Levels, before: list[logging.Handler], name: str) -> None:
    """In a worker, after its initializer: from now on the program is told.

    Args:
        given: Of `levels`.
        before: Of `inherited`.
        name: What the process is called in records, if it has no name of its own.
    """
    root = logging.root
    if any(handler not in before for handler in root.handlers):
        return
    disabled, level, others = given
    if root.level == logging.WARNING and not before:  # an exec'd one: as the program has it
        root.setLevel(level)
    for logger, own in others:
        if not logging.getLogger(logger).level:
            logging.getLogger(logger).setLevel(own)
    logging.disable(disabled)
    root.handlers[:] = [Forward(before, name)]


class Forward(logging.Handler):
    """Sends records to the pool's process."""

    def __init__(self, before: list[logging.Handler], name: str) -> None:
        super().__init__()
        self._before = before
        self._process = name
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Send it."""
        if not _native.listens(True):
            self._as_before(record)
            return
        try:
            _native.say(("log", None, record.name, None, self._data(record), None), True)
        except Exception:
            self.handleError(record)

    def _as_before(self, record: logging.LogRecord) -> None:
        last = logging.lastResort
        for handler in self._before or ([] if last is None else [last]):
            if record.levelno >= handler.level:
                handler.handle(record)

    def _data(self, record: logging.LogRecord) -> dict[str, Any]:
        error = record.exc_text
        if record.exc_info and not error:
            error = self._formatter.formatException(record.exc_info)
        process = record.processName
        return {
            "level": int(record.levelno),
            "level_name": str(record.levelname),
            "message": record.getMessage()[:_LONGEST],
            "created": float(record.created),
            "path": str(record.pathname),
            "line": int(record.lineno),
            "function": str(record.funcName),
            "thread": str(record.threadName),
            "process": self._process if process in (None, "MainProcess") else str(process),
            "error": None if error is None else error[-_LONGEST:],
            "stack": None if record.stack_info is None else record.stack_info[-_LONGEST:],
            "task": getattr(_native.speaker(), "__qualname__", None),
        }

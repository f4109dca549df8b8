"""What workers log, as the program's own logging tells it: `ProcessPool(forward_logs=True)`.

    a logger in a worker ──▶ Forward, at the root ──a word──▶ the pool's process ──▶ its loggers

Guarantees:
    * Levels are looked at where a record is made: those of the program, as they were when the pool
      was made, and what the initializer says beside them.
    * A record is formatted where it is made, and is on its way before the call returns: a worker
      that is killed after that loses none. Where there is no room it is dropped, and counted.
    * Handlers that the initializer gives to the root win: then nothing is forwarded. What was only
      inherited by a fork is replaced, for it belongs to the program: at the root and at every
      other logger, which would write each record twice, here and there.
    * What a task forks logs as if there were no pool: by the handlers that were replaced.

Threads: any; `logging` has a lock for each handler.
"""

from __future__ import annotations

import logging
from typing import Any

from .. import _native

__all__ = ["Levels", "forward", "inherited", "levels"]

Levels = tuple[int, int, tuple[tuple[str, int], ...]]
Inherited = dict[logging.Logger, tuple[list[logging.Handler], bool]]

_LONGEST = 50_000  # characters of a message, or of a traceback


def levels() -> Levels:
    """In the user's process: what is disabled, the root's level, and those of other loggers."""
    known = tuple(logging.root.manager.loggerDict.copy().items())
    others = tuple((n, g.level) for n, g in known if isinstance(g, logging.Logger) and g.level)
    return logging.root.manager.disable, logging.root.level, others


def inherited() -> Inherited:
    """In a worker, before its initializer: the handlers that are the program's."""
    known = (logging.root, *logging.root.manager.loggerDict.values())
    return {
        logger: ([*logger.handlers], logger.propagate)
        for logger in known
        if isinstance(logger, logging.Logger) and (logger.handlers or not logger.propagate)
    }


def forward(given: Levels, before: Inherited, name: str) -> None:
    """In a worker, after its initializer: from now on the program is told.

    Args:
        given: Of `levels`.
        before: Of `inherited`.
        name: What the process is called in records, if it has no name of its own.
    """
    root = logging.root
    ours, _ = before.get(root, ([], True))
    if any(handler not in ours for handler in root.handlers):
        return
    disabled, level, others = given
    if root.level == logging.WARNING and not ours:  # an exec'd one: as the program has it
        root.setLevel(level)
    for logger, own in others:
        if not logging.getLogger(logger).level:
            logging.getLogger(logger).setLevel(own)
    logging.disable(disabled)
    for inheritor, (handlers, _) in before.items():
        inheritor.handlers = [h for h in inheritor.handlers if h not in handlers]
        if not inheritor.handlers:
            inheritor.propagate = True  # the program's own logger has the word
    root.handlers = [Forward(before, name)]


class Forward(logging.Handler):
    """Sends records to the pool's process."""

    def __init__(self, before: Inherited, name: str) -> None:
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
        """In what a task has forked: put back what was replaced."""
        logging.root.handlers = []  # lists are not changed: they are being walked
        for logger, (handlers, propagate) in self._before.items():
            logger.handlers = logger.handlers + handlers
            logger.propagate = propagate
        logging.getLogger(record.name).callHandlers(record)

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

"""The loggers, all below "forkmill": quiet until the user gives that one a handler.

Guarantees: no module of ours logs under a lock of ours, between a fork and the worker's loop, or
in a signal handler: handlers are user code.
"""

from __future__ import annotations

import logging

__all__ = ["POOL"]

# Without a handler of its own, warnings of a process that does not use logging would end up on
# standard error.
logging.getLogger("forkmill").addHandler(logging.NullHandler())

POOL = logging.getLogger("forkmill.pool")

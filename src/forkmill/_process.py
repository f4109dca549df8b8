"""What is known of this process: which threads are ours, and how it ends.

Threads: any.
"""

from __future__ import annotations

import _thread
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DAEMON", "OUR_THREADS", "exit_failed", "our_thread"]

# Identifiers of our own Python threads: start_method="auto" does not count them.
OUR_THREADS: set[int] = set()


# Whether a thread of ours, which an exit hook ends, may be a daemon: not in a subinterpreter, where
# it is joined at the end, whatever has failed.
DAEMON: bool = getattr(_thread, "daemon_threads_allowed", lambda: True)()


@contextmanager
def our_thread() -> Iterator[None]:
    """In here the calling thread is one of ours."""
    OUR_THREADS.add(_thread.get_ident())
    try:
        yield
    finally:
        OUR_THREADS.discard(_thread.get_ident())


def exit_failed() -> bool:
    """Whether the interpreter ends because of an unhandled exception.

    At a prompt the last exception is an old story.
    """
    failed = hasattr(sys, "last_exc") or getattr(sys, "last_type", None) is not None
    return failed and not hasattr(sys, "ps1") and not sys.flags.interactive

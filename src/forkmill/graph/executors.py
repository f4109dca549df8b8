"""AsyncExecutor: the async context under the name that people look for.

Threads: any, as with every executor.
"""

from __future__ import annotations

from ..contexts.aio import Aio

__all__ = ["AsyncExecutor"]


class AsyncExecutor(Aio):
    """A `concurrent.futures.Executor` that awaits: calls run in an event loop of its own.

    ::

        with fm.AsyncExecutor(max_workers=50) as executor:
            pages = list(executor.map(fetch, urls))     # async def fetch(url): ...
            graph.map({"url": urls}, "url", engine=executor)

    Coroutine functions are called in the loop; anything else in a thread, and if it gives back an
    awaitable that is awaited in the loop. What is accepted is finished at `shutdown`.

    Args:
        max_workers: How many calls at once; None: 100.
        name: What its threads are called.

    Raises:
        TypeError, ValueError: A wrong number.

    May be used from any thread, also where an event loop runs.
    """

"""How asyncio waits for a state graph's run, and reads its stream.

    event loop                                the run's thread
    await awaited(handle) ◀── it is over ───  Handle
    async for item ── next, in a thread ───▶  StateStream

Guarantees: a task that is cancelled kills its run, and is over when that is.

Threads: the loop's own.
"""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..runs.awaiting import ended, outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ..runs.handle import Handle
    from .drive import StateStream

__all__ = ["awaited", "streamed"]


async def awaited(handle: Handle) -> Any:
    """The result of a run that ends with its task."""
    error = await ended(handle, handle.kill)
    if error is not None:
        raise error
    return outcome(handle)


async def streamed(
    begun: Callable[[asyncio.AbstractEventLoop], StateStream],
) -> AsyncIterator[Any]:
    """The items of a stream, each taken in a thread; closing this closes it."""
    loop = asyncio.get_running_loop()
    stream = begun(loop)
    context = contextvars.copy_context()
    over: Any = object()

    def advance() -> Any:
        return next(stream, over)

    threads = ThreadPoolExecutor(1, "forkmill-stream")
    try:
        while True:
            step = loop.run_in_executor(threads, context.run, advance)
            try:
                item = await asyncio.shield(step)
            except asyncio.CancelledError:
                stream.kill()
                await asyncio.wait([step])
                raise
            if item is over:
                return
            yield item
    finally:
        await loop.run_in_executor(threads, stream.close)
        threads.shutdown()

"""Coroutines awaited one after the other in one thread, in one event loop for all of them.

    run(coroutine) ──▶ a Task ──its first step, at once──▶ done: that was all
                                                        └▶ it waits: the loop runs until it is done

What most coroutines of a pipeline do between two outputs takes no turn of a loop; making a loop for
each, or only having one go round, would take many times as long.

Guarantees:
    * Each coroutine has a Task and a copy of the context to itself, and a running loop, from its
      first step on, as under `asyncio.run`.
    * What a coroutine leaves behind (tasks, async generators) ends before the next one begins: then
      the loop is closed, as `asyncio.run` closes its own, and another one made.

Threads: one at a time; `close` also in another one, when nobody comes back from `run`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["OneLoop"]


_Task: Any = asyncio.Task
_get_loop: Any = asyncio._get_running_loop
_set_loop: Any = asyncio._set_running_loop  # for who makes event loops
_get_hooks, _set_hooks = sys.get_asyncgen_hooks, sys.set_asyncgen_hooks


class OneLoop:
    """A loop that is made when it is needed, and kept."""

    def __init__(self, aside: Callable[[Any], Any]) -> None:
        self._aside = aside  # what settles them where another loop runs in this thread
        self._runner: asyncio.Runner | None = None
        self._loop: Any = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine returns."""
        if _get_loop() is not None:
            return self._aside(coroutine)
        loop = self._loop or self._made()
        try:
            return loop.settled(coroutine)
        finally:
            if loop.used:
                self._look(loop)

    def _made(self) -> Any:
        loop = asyncio.new_event_loop()
        kind = type(loop)
        loop.close()
        if kind is asyncio.SelectorEventLoop:
            self._runner = asyncio.Runner(loop_factory=_Loop)
            self._loop = self._runner.get_loop()
        else:  # of a policy that the user has set
            self._loop = _Anew(self._aside)
        return self._loop

    def _look(self, loop: Any) -> None:
        """Something else than one step has run: is there anything left of it?"""
        loop.used = False
        if asyncio.all_tasks(loop) or loop._asyncgens:
            self.close()

    def close(self) -> None:
        """End what is left, as `asyncio.run` does. Idempotent."""
        runner, self._runner, self._loop = self._runner, None, None
        if runner is not None and not runner.get_loop().is_running():
            runner.close()


class _Anew:
    """A loop for each coroutine."""

    used = False

    def __init__(self, settled: Callable[[Any], Any]) -> None:
        self.settled = settled


class _Loop(asyncio.SelectorEventLoop):
    """A loop that takes the first step of a task without going round."""

    _asyncgen_firstiter_hook: Any
    _asyncgen_finalizer_hook: Any

    def __init__(self) -> None:
        super().__init__()
        self.used = False  # anything but one first step
        self._taking = False
        self._step: tuple[Any, Any] | None = None

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        if self._taking:
            self._taking = False
            self._step = callback, context
            return None
        self.used = True
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when: Any, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        self.used = True
        return super().call_at(when, callback, *args, context=context)

    def settled(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine returns."""
        self._taking = True
        task = _Task(coroutine, loop=self)
        step, context = self._step  # type: ignore[misc]
        hooks = _get_hooks()
        _set_hooks(self._first_asyncgen, self._asyncgen_finalizer_hook)
        _set_loop(self)
        try:
            context.run(step)
            if task.done():
                return task.result()
        except BaseException:
            if task.done() and not task.cancelled():
                task.exception()  # it was raised: nobody else is to be told
            raise
        finally:
            self._step = None
            _set_loop(None)
            _set_hooks(*hooks)
        self.used = True
        return self.run_until_complete(task)

    def _first_asyncgen(self, generator: Any) -> None:
        self.used = True
        self._asyncgen_firstiter_hook(generator)

"""The way over any executor that is none of ours: several units in a call.

    line ──as many as take BUNDLE_S──▶ submit(run_bundle, call, items) ──Future──▶ outcomes

Guarantees: as a Way's. In a pool of ours a call is one unit, so that a death costs one; elsewhere a
broken executor fails what was sent, each unit with its error.

Threads: as in `ways`.
"""

from __future__ import annotations

import queue
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._process import interrupted
from ..runs.executor import Face
from .bundle import run_bundle
from .ways import Ended, Way

if TYPE_CHECKING:
    from .post import Post
    from .ways import Bell, Outcome, Unit

__all__ = ["SubmitWay"]

BUNDLE_S = 0.004  # of work in one call of an executor that is not ours


class SubmitWay(Way):
    """Any other executor. Units go together, as many as take `BUNDLE_S`."""

    def __init__(self, executor: Any, width: int, bell: Bell) -> None:
        super().__init__(width, bell)
        self._executor = executor._excused() if isinstance(executor, Face) else executor
        self._flying: dict[Any, tuple[Post, list[Unit]]] = {}
        self._exact = isinstance(executor, Face)  # a death costs one call: so each is one unit
        self._back: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sizes: dict[Post, float] = {}  # units of a bundle

    def pump(self) -> None:
        line = self.line
        while line and not self.paused and len(self._flying) < 2 * self.width:
            post = line[0][0]
            most = max(1, min(int(self._sizes.get(post, 1)), -(-len(line) // self.width)))
            if self._exact:
                most = 1
            units: list[Unit] = []
            while line and len(units) < most and line[0][0] is post:
                units.append(line.popleft())
            items = [item for _, _, item in units]
            future = self._face(post).submit(run_bundle, post.call, items)
            self._flying[future] = post, units
            future.add_done_callback(self._done)

    def _face(self, post: Post) -> Any:
        if post.timeout is None:
            return self._executor
        return self._executor.options(timeout=post.timeout)

    def _done(self, future: Any) -> None:
        self._back.put(future)
        self.bell.ring()

    def _take(self) -> list[Outcome]:
        found: list[Outcome] = []
        while not self._back.empty():
            future = self._back.get()
            post, units = self._flying.pop(future)
            try:
                outs, seconds = future.result()
            except BaseException as error:  # CancelledError too
                if interrupted(error):
                    raise  # it is the program's, and ends the call
                found += [(post, frame, Ended(error, item)) for _, frame, item in units]
                continue
            size = self._sizes.get(post, 1)
            wanted = len(units) * BUNDLE_S / max(seconds, 1e-6)
            self._sizes[post] = max(1, min(wanted, 8 * size, 4096))
            found += [(post, unit[1], out) for unit, out in zip(units, outs, strict=True)]
        return found

    def stop(self) -> None:
        super().stop()
        for future in tuple(self._flying):
            future.cancel()

    def close(self, patience: float | None = None) -> int:
        self.stop()
        deadline = None if patience is None else monotonic() + patience
        while any(not future.done() for future in self._flying):
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
            self.bell.wait(left)
        return sum(not future.done() for future in self._flying)

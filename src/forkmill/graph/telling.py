"""What a call of a graph by an engine tells: events on the one stream, and its figures.

    flow ──sent, came, failed──▶ Telling ──▶ Emitter: run_started, node_started, ..., run_finished

=============================  ====================================================================
kind                           data
=============================  ====================================================================
run_started, run_finished      mode, total, plan {nodes, edges} / status, done, failed
node_started, node_finished    once a node, context / in, out, failed; with detail "items" once an
                               item too, with its index
item_failed, retry             index, outputs, error, traceback (detail) / index, error
cached                         index: the parent's cache had it; or count: so many hits of caches
                               that are asked where the calls are made
items                          with detail "items": what the calls took, see `clocks`
progress                       done, total, failed, workers, stages (of nodes, what was asked of
                               executors so far)
=============================  ====================================================================

Guarantees: without a listener nothing of it is made. Every begin has its end, whatever fails.

Threads: the flow's; `progress` in that of events.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..events import DRAIN_S, short
from ..runs.stats import RunStats, StageStats

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..events import Emitter
    from ..runs.failure import Failure
    from .levels import Layout
    from .post import Post
    from .ways import Way

__all__ = ["Telling"]


class _Node:
    """One node's figures."""

    __slots__ = ("came", "context", "failed", "sent", "workers")

    def __init__(self, context: str, workers: int) -> None:
        self.context = context
        self.workers = workers
        self.sent = self.came = self.failed = 0


class Telling:
    """Tells of one call."""

    def __init__(self, emitter: Emitter, title: str, layout: Layout, ctx: Any) -> None:
        self._emitter = emitter
        self._title = title
        self._ctx = ctx
        self._begun = time.monotonic()
        self._done = self._lost = 0
        self._open: set[tuple[str, int]] = set()  # node and item, of those that are told singly
        self._nodes: dict[str, _Node] = {}
        self._edges: list[tuple[str, str]] = []
        self._workers = 0
        self._calls: list[Any] = []
        self._read(layout)
        self.singly = emitter.detail != "runs"
        self.raised = False  # a failure has ended it

    def _read(self, layout: Layout) -> None:
        makers: dict[int, str] = {}
        for post in layout.posts:
            for path, step in zip(post.paths, post.group.steps, strict=True):
                if step.nest is None:
                    workers = post.way.width
                    self._nodes[path] = _Node(post.home.title, workers)
                sources = {makers[arg.slot] for arg in step.args if arg.slot in makers}
                self._edges += [(source, path) for source in sorted(sources)]
                makers.update(dict.fromkeys(step.writes, path))
            if post.nest is not None:
                self._read(post.nest.layout)
            else:
                self._calls.append(post.call)

    # ------------------------------------------------------------------ the run

    def started(self, ways: list[Way]) -> None:
        """It begins; executors are open."""
        self._workers = sum(way.width for way in ways)
        emitter = self._emitter
        emitter.known_by(self._about)
        if emitter.heard:
            title, facts = self._about()
            emitter.emit("run_started", title, **facts)
        emitter.begin(self.progress)

    def _about(self) -> tuple[str, dict[str, Any]]:
        """What is told of it when it begins."""
        nodes = [
            {"name": name, "context": node.context, "workers": node.workers}
            for name, node in self._nodes.items()
        ]
        plan = {"nodes": nodes, "edges": [list(edge) for edge in self._edges]}
        facts = {"mode": self._ctx.mode, "total": self._ctx.total, "plan": plan}
        return self._title, {"graph": self._title, **facts}

    def progress(self) -> dict[str, Any]:
        """How far it is."""
        return {
            "done": self._done,
            "total": self._ctx.total,
            "failed": self._lost,
            "workers": self._workers,
            "stages": {
                name: {
                    "in": node.sent,
                    "out": node.came,
                    "failed": node.failed,
                    "waiting": 0,
                    "under_way": max(0, node.sent - node.came - node.failed),
                }
                for name, node in self._nodes.items()
            },
        }

    def finished(self, status: str) -> None:
        """It is over."""
        emitter = self._emitter
        if emitter.heard:
            for call in self._calls:
                call.tell()
            for name, index in sorted(self._open):
                emitter.emit("node_finished", name, index=index, status=status)
            for name, node in self._nodes.items():
                if node.sent:
                    came: dict[str, Any] = {"in": node.sent, "out": node.came}
                    emitter.emit(
                        "node_finished", name, failed=node.failed, workers=node.workers,
                        context=node.context, **came,
                    )  # fmt: skip
            emitter.emit("progress", self._title, **self.progress())
            emitter.emit(
                "run_finished", self._title, seconds=time.monotonic() - self._begun,
                status=status, done=self._done, failed=self._lost,
            )  # fmt: skip
        emitter.finish(DRAIN_S)

    def stats(self) -> RunStats:
        """The figures so far. Any thread."""
        stages = {
            name: StageStats(
                name, node.context, node.workers, node.sent, node.came, node.failed, 0.0, 0.0,
                None, None, None,
            )
            for name, node in self._nodes.items()
        }  # fmt: skip
        return RunStats(stages, {}, time.monotonic() - self._begun)

    # ------------------------------------------------------------------ calls

    def sent(self, post: Post, index: int, number: int = 1) -> None:
        """Items of a group are on their way, from that one on."""
        for name in post.paths:
            node = self._nodes[name]
            if not node.sent:
                self._emitter.emit("node_started", name, context=node.context)
            node.sent += number
            if self.singly:
                for at in range(index, index + number):
                    self._open.add((name, at))
                    self._emitter.emit("node_started", name, index=at)

    def came(
        self,
        post: Post,
        index: int,
        number: int = 1,
        lost: Collection[str] = (),
        skipped: Collection[str] = (),
    ) -> None:
        """They are back; of one that failed these nodes did, and those behind them never ran."""
        for name in post.paths:
            node = self._nodes[name]
            status = "completed"
            if name in lost:
                node.failed += 1
                status = "failed"
            elif name in skipped:
                node.sent -= number
                status = "skipped"
            else:
                node.came += number
            if self.singly:
                for at in range(index, index + number):
                    self._open.discard((name, at))
                    self._emitter.emit("node_finished", name, index=at, status=status)

    def through(self, number: int) -> None:
        """So many items of the call are through."""
        self._done += number

    def failed(self, failure: Failure) -> None:
        """An item has failed."""
        self._lost += 1
        self.raised = self._ctx.on_error == "raise"
        emitter = self._emitter
        if emitter.heard:
            more: dict[str, Any] = {"traceback": failure.traceback} if emitter.traces else {}
            emitter.emit(
                "item_failed", failure.stage, item=short(failure.item), attempt=failure.attempts,
                index=failure.index, outputs=list(failure.outputs), error=short(failure.error),
                **more,
            )  # fmt: skip

    def retry(self, post: Post, index: int, error: BaseException, tries: int) -> None:
        """A call that died, or was late, is made again."""
        self._emitter.emit("retry", post.paths[0], attempt=tries, index=index, error=short(error))

    def cached(self, post: Post, index: int) -> None:
        """The parent's cache had the outcome."""
        self._emitter.emit("cached", post.paths[0], index=index)

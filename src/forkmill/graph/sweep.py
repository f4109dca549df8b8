"""The threads' way for maps whose items are one call each, where nobody looks before the end.

    segments of items ──cut──▶ Span ──a thread: one item after the other──▶ its outcomes, together

So what an item costs beside its call is a step of a loop: the flow sees spans.

    a span          is cut from     items                          until
    waiting         a segment       as many as took about SPAN_S   a thread has time
    run             a thread        leave it one by one            it is empty
    robbed          an idle thread  half of those left go          there is nothing to rob

Guarantees:
    * Items of a span that waits behind a slow one are taken by who has nothing else to do.
    * A span's outcomes are those of items that follow each other.

Invariants:
    * SWEEP-1  Only a span's own thread takes from its left, and only under the lock is anything
      taken from its right, together with `size`. So each item is called once, and its index known.

Threads: as in `ways`.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._said import HERE
from ..contexts.lanes.emit import settle
from .ways import QUANTUM_S, Ended, ThreadWay

if TYPE_CHECKING:
    from .post import Post

__all__ = ["Span", "SweepWay"]

SPAN_S = 0.001  # of work in a span
MOST = 1024  # items in one
LOOK_S = 0.02  # between two looks of the flow, as long as nothing fails
_ROWS = {dict}


class Span:
    """Items that follow each other, in one thread.

    Attributes:
        post: What is called.
        first: The index of the first.
        items: Those that were not called yet.
        given: All of them, as they were cut.
        size: How many are its own: fewer than `given` when it was robbed.
        outs: The outcomes.
        plain: They are rows, all of them.
    """

    __slots__ = ("first", "given", "items", "outs", "plain", "post", "size")

    def __init__(self, post: Post, first: int, given: list[Any]) -> None:
        self.post = post
        self.first = first
        self.given = given
        self.items = deque(given)
        self.size = len(given)
        self.outs: list[Any] = []
        self.plain = False


class SweepWay(ThreadWay):
    """See the head of this file."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._segments: deque[tuple[Post, int, list[Any]]] = deque()
        self._running: list[Span] = []
        self._spans: deque[Span] = deque()  # that are through
        self._reached = 0  # none of this index or a later one is through
        self._size = 1.0
        self._rung = perf_counter()

    def put_straight(self, post: Post, first: int, items: list[Any], get: Any) -> None:
        self.out += len(items)
        with self._lock:
            self._segments.append((post, first, items if get is None else [*map(get, items)]))

    def put(self, post: Post, frame: Any, item: Any) -> None:
        self.out += 1
        with self._lock:
            self._segments.appendleft((post, frame, [item]))

    def pump(self) -> None:
        if self._segments:
            self._hire()

    def _waiting(self) -> int:
        return sum(len(items) for _, _, items in self._segments) if self._segments else 0

    # ------------------------------------------------------------------ in a thread

    def _work_off(self, mark: object) -> None:
        until = perf_counter() + QUANTUM_S
        try:
            while not self._over and (span := self._next()) is not None:
                start = perf_counter()
                self._run(span)
                now = perf_counter()
                with self._lock:
                    self._running.remove(span)
                    self._reached = max(self._reached, span.first + span.size)
                    self._learn(len(span.outs), now - start)
                span.plain = set(map(type, span.outs)) == _ROWS
                self._spans.append(span)
                if not span.plain or now - self._rung > LOOK_S:
                    self._rung = now
                    self.bell.ring()
                if now >= until:
                    break
        finally:
            with self._lock:
                self._active.discard(mark)
        if self._segments and not self._over:
            self._go_on()
        self.bell.ring()

    def _run(self, span: Span) -> None:
        post = span.post
        items, take, give = span.items, span.items.popleft, span.outs.append
        call = _settled(post.call.fn) if post.aio else post.call.fn
        token = HERE.set(HERE.get() if post.heard is None else post.heard.origin)
        while items:
            try:
                item = take()
            except IndexError:  # robbed of the last one
                break
            try:
                give(call(item))
            except BaseException as error:
                give(Ended(error, item))
        HERE.reset(token)

    def _next(self) -> Span | None:
        """The next span: of the items that wait, or of what somebody else has not begun."""
        with self._lock:
            if self._segments:
                post, first, items = self._segments.popleft()
                size = max(1, int(self._size))
                if len(items) > size:
                    self._segments.appendleft((post, first + size, items[size:]))
                    items = items[:size]
                span = Span(post, first, items)
            else:
                victim = max(self._running, key=lambda span: len(span.items), default=None)
                if victim is None or not (tail := _robbed(victim)):
                    return None
                span = Span(victim.post, victim.first + victim.size, tail)
            self._running.append(span)
            return span

    def _learn(self, number: int, seconds: float) -> None:
        if number:
            wanted = number * SPAN_S / max(seconds, 1e-9)
            self._size = max(1.0, min(wanted, 4 * self._size, MOST))

    # ------------------------------------------------------------------ in the flow's thread

    def take_spans(self) -> list[Span]:
        """Those that are through."""
        spans = self._spans
        found = [spans.popleft() for _ in range(len(spans))]
        for span in found:
            self.out -= len(span.outs)
        return found

    def drop_unbegun(self) -> int:
        """Forget the items behind the last one that has begun; how many."""
        with self._lock:
            begun = [span.first + span.size - len(span.items) for span in self._running]
            last = max((self._reached, *begun)) - 1
        return self.drop_behind(last)

    def drop_behind(self, limit: int) -> int:
        """Forget the items behind one that were not begun; how many."""
        with self._lock:
            kept, dropped = deque[Any](), 0
            for post, first, items in self._segments:
                few = items[: max(0, limit + 1 - first)]
                dropped += len(items) - len(few)
                if few:
                    kept.append((post, first, few))
            self._segments = kept
            for span in self._running:
                while span.size and span.first + span.size - 1 > limit and span.items:
                    if not _robbed(span, 1):
                        break
                    dropped += 1
        self.out -= dropped
        return dropped

    def stop(self) -> None:
        with self._lock:
            self._segments.clear()
            for span in self._running:
                span.items.clear()
        super().stop()


def _robbed(span: Span, number: int | None = None) -> list[Any]:
    """Half of what a span has not begun, or so many, off its end (SWEEP-1)."""
    left = len(span.items)
    tail: list[Any] = []
    for _ in range((left + 1) // 2 if number is None else number):
        try:
            tail.append(span.items.pop())
        except IndexError:
            break
    span.size -= len(tail)
    tail.reverse()
    return tail


def _settled(fn: Any) -> Any:
    return lambda item: settle(fn(item))

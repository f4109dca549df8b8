"""CowLane: a lane over copy-on-write children. Each item is a call; a batch shares a replica.

    put ──▶ a reader: pipe, submit ──fork──▶ child: outputs ──pipe──▶ the reader ──▶ out-list
                                                    outcome ──▶ Future ──wakes──▶ the reader

Without `Work.stream` it is a ReplicaLane: outputs come with the outcome. A stream's outputs come
through a pipe of its own, which the child inherits; the child waits when the pipe is full, and the
reader does not read on while too many outputs were not taken. The outcome says when it is over: the
end of the pipe does not, since children that were forked meanwhile hold it too.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

from ... import errors
from ..._process import LoneThread
from .calls import ReplicaLane, Whole
from .emit import Outputs
from .lane import Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .lane import Work

__all__ = ["CowLane"]

_NUMBER = 8  # bytes of a length
_READ = 1 << 18


class CowLane(ReplicaLane):
    """A lane over a `CowFork`."""

    start_method = "fork"

    def __init__(self, executor: Any, work: Work, notify: Callable[[], None] | None = None) -> None:
        super().__init__(executor, work, notify)
        self._cow = executor
        self._line: queue.SimpleQueue[Any] = queue.SimpleQueue()  # (item,), for readers
        self._streams = 0  # items that readers have, or will have
        self._readers: list[LoneThread] = []

    def _work_on(self, item: Any) -> None:
        if not self.work.stream:
            super()._work_on(item)
            return
        self._line.put((item,))
        with self._lock:
            self._streams += 1
            most = self._cow.width * self._cow.batch
            if len(self._readers) < min(most, self._streams):
                self._readers.append(LoneThread(self._read, f"{self._cow.name}-reader"))
            self._readers[-1].start()

    def _read(self) -> None:
        """A reader: one item after the other."""
        while (entry := self._line.get()) is not None:
            if not self._over:
                self._read_item(*entry)
            with self._lock:
                self._streams -= 1
            del entry
        self._line.put(None)  # for the next one

    def _read_item(self, item: Any) -> None:
        pipes: list[_Pipe] = []
        stream = object()
        try:
            pipes.append(outputs := _Pipe(self._cow))
            pipes.append(over := _Pipe(self._cow))
            call = _Stream(self._replica, outputs.outlet, self._cow._forker)
            future = self._face._begin(call, (item,), {})
        except Exception as error:
            _close(pipes)
            self._deliver(Taken(item, [], error))
            return
        with self._lock:
            self._under_way.add(future)
            late = self._over
        if late:  # `_stop` has not seen it
            future.kill()
        future.add_done_callback(over.ring)
        failure = None
        try:
            self._emit_all(item, self._pieces(outputs.inlet, over.inlet), stream)
        except BaseException as error:  # an output that cannot be rebuilt here
            failure = errors.bare(error)
        if failure is not None or self._over or self._halted:
            future.kill()
        wait([future])  # now no child will be forked for it, and its callback may still come
        _close(pipes)
        if failure is None and not self._halted:
            self._returned(item, stream, future)
        else:
            with self._lock:
                self._under_way.discard(future)
            self._deliver(Taken(item, [], failure, True, stream))

    def _pieces(self, inlet: int, ring: int) -> Iterator[Any]:
        """What comes through a pipe, until the bell rings and the pipe is empty."""
        buffer, over = bytearray(), False
        while True:
            ready = select.poll()
            ready.register(inlet, select.POLLIN)
            if not over:
                ready.register(ring, select.POLLIN)
            events = dict(ready.poll(0 if over else None))
            if ring in events:
                over = True
            if inlet in events:
                buffer += os.read(inlet, _READ)
                yield from _frames(buffer, self._cow._forker.loads)
            elif over:
                return

    def _stop(self) -> None:
        self._line.put(None)
        super()._stop()

    def _tear_down(self) -> None:
        for thread in self._readers:
            if not thread.here:
                thread.join()


class _Stream(Whole):
    """A call whose outputs go through a pipe."""

    __slots__ = ("forker", "outlet")

    def __init__(self, replica: Any, outlet: int, forker: Any) -> None:
        super().__init__(replica)
        self.outlet = outlet
        self.forker = forker  # it has the codec, when there is a child

    def work(self, item: Any) -> Any:
        for output in self.replica.pieces(item):
            data, buffers = self.forker.codec.dumps_result(output)
            _send(self.outlet, data, buffers)
        return Outputs()


def _send(outlet: int, data: bytes, buffers: Iterable[Any]) -> None:
    """One frame: how many parts, their lengths, the parts. The reader reads: it may block."""
    parts: list[Any] = [data, *(memoryview(buffer).cast("B") for buffer in buffers)]
    head = [len(parts), *map(len, parts)]
    rest = memoryview(b"".join([*(n.to_bytes(_NUMBER, "little") for n in head), *parts]))
    while rest:
        rest = rest[os.write(outlet, rest) :]


def _frames(buffer: bytearray, loads: Any) -> Iterator[Any]:
    """Take all whole frames off the front of a buffer."""
    at = 0
    while (end := _frame_end(buffer, at)) is not None:
        count = _number(buffer, at)
        start = at + _NUMBER * (1 + count)
        parts = []
        for i in range(count):
            size = _number(buffer, at + _NUMBER * (1 + i))
            parts.append(bytearray(buffer[start : start + size]))
            start += size
        at = end
        yield loads(bytes(parts[0]), parts[1:])
    del buffer[:at]


def _frame_end(buffer: bytearray, at: int) -> int | None:
    """Where the frame that begins at `at` ends, if it is whole."""
    if len(buffer) < at + _NUMBER:
        return None
    count = _number(buffer, at)
    start = at + _NUMBER * (1 + count)
    if len(buffer) < start:
        return None
    end = start + sum(_number(buffer, at + _NUMBER * (1 + i)) for i in range(count))
    return end if len(buffer) >= end else None


def _number(buffer: bytearray, at: int) -> int:
    return int.from_bytes(buffer[at : at + _NUMBER], "little")


class _Pipe:
    """A pipe and its owner: both ends are open until `close`, and used by nobody afterwards.

    A future's waiters are let go before its callbacks are called. So `ring`, which is one, comes
    when it likes, and excludes `close`.
    """

    __slots__ = ("_lock", "_open", "inlet", "outlet")

    def __init__(self, executor: Any) -> None:
        self.inlet, self.outlet = executor._pipe()
        self._open = True
        self._lock = threading.Lock()

    def ring(self, _future: Any) -> None:
        """Write a byte, once: it never fills the pipe. Any thread."""
        with self._lock:
            if self._open:
                os.write(self.outlet, b"\0")

    def close(self) -> None:
        with self._lock:
            self._open = False
            os.close(self.inlet)
            os.close(self.outlet)


def _close(pipes: list[_Pipe]) -> None:
    for pipe in pipes:
        pipe.close()

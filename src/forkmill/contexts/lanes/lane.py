"""Lane: one stage's work in one context. All that pipelines know of contexts.

    put, put_many ──▶ the context: setup, fn(item), ... ──▶ take, take_many ──▶ Taken, Batch
    end ────────────▶ on_end, teardown ───────────────────▶                  ──▶ Taken(END, ...)

Use of a lane, by who drives a stage:

    1. lane = spec.lane(work, notify)      # nothing of the user's has run yet
    2. lane.put_many(items)                # while lane.pending is less than the stage may hold
    3. for piece in lane.take_many(0): ... # all that came out; then sleep until notify()
    4. lane.end(); 3. again until lane.ended
    5. lane.close()                        # in any case
       lane.stop(); sleep until notify() while lane.busy; lane.close(0)  # who cannot wait for ever

Guarantees:
    * Every item that was put comes out once with `done`: in a Batch, or in a Taken with its
      outputs or its failure. A worker's death or a timeout costs the item that was running
      (WorkerDied, TaskTimeout); its neighbours in the same chunk are not harmed (INV-2).
    * setup, on_end and teardown run once for each replica of the state: one where calls share it
      (inline, thread, async), one a worker (ipc_fork) or subinterpreter, one a child (cow_fork). A
      replica that saw no item has none of them (but see `Work.always`). One that dies with its
      process takes what it knew with it; a new worker starts with a new replica.
    * setup runs before a replica's first item. If it fails so does that item, and the next one to
      arrive there, or the next try of this one, has it run again.
    * A generator (sync or async) emits what it yields; anything else is one output, None included.
    * What an item or `on_end` emitted before it raised is not lost (but see `Work.atomic`).
    * Whatever a function raises, BaseExceptions too, is the failure of its item.
    * A call that cannot be ended (in a thread, in a coroutine that ignores it) is left behind by a
      `close` that does not wait: it finds nobody to tell, calls nothing more, and nobody waits for
      it, also not when the interpreter exits.
    * What a signal's handler raises in `take` loses nothing in silence: if something was in hand
      the next `take` raises PoolError, and there is nothing left to do but to close the lane. Who
      is interrupted in `put` closes it too. To close it works at any place, and again.
    * `pending` counts what was put and not taken. A lane bounds nothing but streams, where a
      generator waits until its outputs are taken: `put` never blocks.

Threads: everything from any, but `take` and `take_many` from one at a time (others that wait are
let go at the end). `notify` is called in any thread, with no lock held.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from itertools import repeat
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ... import errors
from ..._process import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..._said import Origin
    from .emit import Flat
    from .measured import Report

__all__ = ["END", "Batch", "Lane", "SharedLane", "Taken", "Work", "place"]

END: Any = type("End", (), {"__repr__": lambda self: "END"})()
CREDIT = 256  # outputs of a lane's streams that may wait to be taken
MANY = 4096  # more than there can be streams: credit for all of them, at the end
_pop = deque.popleft


class Work:
    """What a stage does: plain data, which nobody changes.

    No dataclass: each exec'd worker would load `dataclasses` before its first item, and `inspect`.

    Attributes:
        fn: Called with each item.
        setup: Called before the first item of a replica of the state.
        teardown: Called when a replica is through, after `on_end`. Where the lane is closed before
            its end, only replicas in this process are torn down.
        on_end: Called after the last item of a replica; emits as `fn` does.
        stream: fn's outputs may be very many: they come out while it runs, and it waits when too
            many were not taken. Else an item's outputs come out together.
        whole: An item's outputs must come out together. If it is not true, those of a generator
            that fn turned out to give may come out as a stream's, if the context can do so.
        atomic: An item's outputs come from one call that succeeds; what raises has none. Only
            where they come out together.
        always: Where calls share a replica it has its setup and its end also if no item came.
        ordered: Pieces are wanted in the order in which items were put, if the lane can see to it
            (`Lane.in_order`) where no item is put for a replica, or twice.
        timeout: Seconds an item may take, where the context can stop it.
        flat: What of its outputs travels flat between processes, if that is not what the user
            sees; None: nothing.
        label: What messages call `fn`.
        origin: For whom its calls work: see `forkmill._said`.
    """

    of_a_lane: ClassVar[bool] = True  # what a pool inherits of ours, not of its user's

    def __init__(
        self,
        fn: Callable[[Any], Any],
        setup: Callable[[], Any] | None = None,
        teardown: Callable[[], Any] | None = None,
        on_end: Callable[[], Any] | None = None,
        stream: bool = False,
        whole: bool = True,
        timeout: float | None = None,
        atomic: bool = False,
        ordered: bool = False,
        always: bool = False,
        flat: Flat | None = None,
        label: str = "",
        origin: Origin | None = None,
    ) -> None:
        self.fn = fn
        self.setup = setup
        self.teardown = teardown
        self.on_end = on_end
        self.stream = stream
        self.whole = whole
        self.timeout = timeout
        self.atomic = atomic
        self.ordered = ordered
        self.always = always
        self.flat = flat
        self.label = label
        self.origin = origin

    @property
    def called(self) -> str:
        """What messages call `fn`."""
        return self.label or errors.name_of(self.fn)


class Taken(NamedTuple):
    """What comes out of a lane for one item.

    Attributes:
        item: The item that was put, or END for what `on_end` emits and for what it fails with.
        outputs: What was emitted.
        failure: What was raised instead, or after these outputs.
        done: Whether it is the last one of this item.
        call: The same object in all pieces of a stream, and in no others: one object may have been
            put several times. None: it is no part of a stream.
    """

    item: Any
    outputs: list[Any]
    failure: BaseException | None = None
    done: bool = True
    call: Any = None


class Batch(NamedTuple):
    """Items that came out together, all done, none failed: the fast way for many.

    Attributes:
        items: The items, in the order in which they were put.
        outputs: outputs[i] is what items[i] emitted: its one output, or, if `many`, their list.
        many: Whether each of `outputs` is a list of outputs.
        plain: `outputs` are numbers, strs, bytes, None, or builtin containers of these: nobody
            needs to look for one that means something else.
        reports: Reports that came with outputs, which are in `outputs` without them.
    """

    items: list[Any]
    outputs: list[Any]
    many: bool = False
    plain: bool = False
    reports: Sequence[Report] = ()

    def split(self) -> Iterator[Taken]:
        """The same, item by item."""
        for item, output in zip(self.items, self.outputs, strict=True):
            yield Taken(item, output if self.many else [output])


class Lane(ABC):
    """One stage's work in one context.

    Attributes:
        replicas: How many replicas of the state there are side by side, at most: 1 where calls
            share it, n for n workers or subinterpreters, 0 for a new one each time. What is put for
            replica k meets no other.
        in_order: Pieces come in the order in which items were put, but for items that failed and
            emitted nothing: those come as soon as they can.
        start_method: How the processes start that do it; "" where there are none.
        start_reason: Why a pool's "auto" did not fork; else "".
    """

    replicas: int = 1
    in_order: bool = False
    start_method: str = ""
    start_reason: str = ""

    def __init__(self) -> None:
        self._split: deque[Taken] = deque()  # of a batch that `take` has opened
        self._torn = False  # a `take` was broken off, and what it had in hand is gone

    def put(self, item: Any, replica: int | None = None) -> None:
        """As `put_many`, one item."""
        self.put_many((item,), replica)

    @abstractmethod
    def put_many(self, items: Iterable[Any], replica: int | None = None) -> None:
        """Have the work done on items. Never waits for it (inline: `take` does the work).

        Args:
            items: In their order, as far as the context keeps one.
            replica: Which one of the state's must do it, 0 to replicas - 1 (keyed state); None:
                any.

        Raises:
            PoolClosed: After `end` or `close`; none of them was accepted.
        """

    def take(self, timeout: float | None = None) -> Taken | None:
        """As `take_many`, one piece; None if nothing is in time, or nothing is left to come."""
        pieces: list[Taken | Batch] = []
        if not self._split:
            self._check_whole()
            pieces = self._take_many(timeout, 1)
        try:
            for piece in pieces:
                self._split.extend(piece.split() if isinstance(piece, Batch) else (piece,))
            return self._split.popleft() if self._split else None
        except BaseException:
            self._torn = True
            raise

    def take_many(self, timeout: float | None = None) -> list[Taken | Batch]:
        """All that is finished; waits for the first if there is none yet.

        Args:
            timeout: Seconds to wait, 0 for what is there; None: as long as it takes.

        Returns:
            In the order of finishing; empty if nothing is in time, or nothing is left to come.

        Raises:
            PoolError: An earlier `take` was broken off by what a signal's handler raised, while it
                had something in hand.
        """
        if self._split:
            pieces: list[Taken | Batch] = [*self._split]
            self._split.clear()
            return pieces
        self._check_whole()
        return self._take_many(timeout)

    def _check_whole(self) -> None:
        if self._torn:
            raise errors.PoolError(
                "what was taken out of this lane is lost: a signal's handler raised meanwhile; "
                "close it"
            )

    @abstractmethod
    def _take_many(self, timeout: float | None, most: int | None = None) -> list[Taken | Batch]:
        """`take_many`, or at most so many pieces where each of them costs work."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """How many items were put and have not been taken."""

    def replica_of(self, place: int) -> int | None:
        """Which replica lives there (see `place`), for `put_many`; None: none does any more."""
        return 0

    def own(self, executor: Any) -> None:  # noqa: B027  # nothing to do where nothing is shared
        """End the executor with this lane: it was made for it."""

    @abstractmethod
    def end(self) -> None:
        """No more items: after the last one `on_end` runs. Idempotent; never waits."""

    def halt(self) -> None:  # noqa: B027  # nothing to do where there are no streams
        """Generators that emit now are closed at their next output; their items are then done."""

    def stop(self) -> None:  # noqa: B027  # nothing to do where nothing runs elsewhere
        """Begin to close: cancel what has not started, end what can be ended. Never waits."""

    @property
    def busy(self) -> int:
        """After `stop`: how many calls still run that cannot be ended; `notify` tells of an end."""
        return 0

    @abstractmethod
    def close(self, patience: float | None = None) -> int:
        """Stop now: cancel what has not started, free everything. Idempotent.

        Args:
            patience: Seconds to wait for calls that cannot be ended; None: as long as they take.

        Returns:
            How many were left behind. Their replica of the state is not torn down: they use it.
        """

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether nothing will ever come out again."""


class _More:
    """Outputs of a stream that goes on, in the out-list."""

    __slots__ = ("call", "item", "outputs")

    def __init__(self, item: Any, output: Any, call: Any) -> None:
        self.item = item
        self.outputs = [output]
        self.call = call


class SharedLane(Lane):
    """A lane whose pieces come from other threads: what it holds, what is to come, its end.

    A type says how the work is done: `_start` sends items, `_deliver` is called for each that is
    finished, `_finish` runs the replicas' ends and calls `_finished`, `_stop` ends everything.
    """

    def __init__(self, work: Work, notify: Callable[[], None] | None) -> None:
        super().__init__()
        self.work = work
        self._notify = notify
        self._own: Any = None  # the executor, if it was made for this lane
        self._lock = threading.RLock()  # guards the rest
        self._change = Change(self._lock)  # of what can be taken
        self._out: deque[Any] = deque()  # what can be taken, as `_deliver` was given it
        self._to_come = 0  # items that were put and are not finished
        self._untaken = 0  # items that were put and are not taken
        self._open = True  # items may be put
        self._ending = False  # the replicas' end has begun
        self._over = False  # nothing more will be delivered
        self._halted = False  # streams end at their next output
        self._left = 0  # calls that were left behind
        self._untold: list[BaseException] = []  # what a replica's end failed with, and nobody took
        self._credit = Credit(CREDIT)

    # ------------------------------------------------------------------ in

    def put_many(self, items: Iterable[Any], replica: int | None = None) -> None:
        line = items if isinstance(items, list | tuple) else list(items)
        with self._lock:
            if not self._open:
                raise errors.PoolClosed("this lane takes no more items")
            self._to_come += len(line)
            self._untaken += len(line)
        if line:
            self._start(line, replica)

    @abstractmethod
    def _start(self, items: list[Any] | tuple[Any, ...], replica: int | None) -> None:
        """Have the work done; whatever fails is that item's outcome."""

    # ------------------------------------------------------------------ out

    def _deliver(self, piece: Any, done: int = 1) -> None:
        """A piece can be taken; so many items are finished with it."""
        with self._lock:
            over = self._over
            first = over or not self._out
            if first:
                self._change.tell()
            if not over:
                self._out.append(piece)
                self._to_come -= done
            end = not over and self._should_end()
        if first and self._notify is not None:
            self._notify()  # also when it is closed: somebody may wait for what is busy
        if end:
            self._finish()

    def _take_many(self, timeout: float | None, most: int | None = None) -> list[Taken | Batch]:
        deadline = None if timeout is None else monotonic() + timeout
        out: list[Any] = []  # in hand
        try:
            while True:
                if not self._take_out(out, deadline):
                    return []
                pieces = self._all_opened(out)
                self._count(pieces)
                if pieces:
                    return pieces
                out.clear()
        except BaseException:
            self._torn = self._torn or bool(out)
            raise

    def _take_out(self, out: list[Any], deadline: float | None) -> bool:
        """Take what was delivered, and wait for it; False: nothing is in time, or to come."""
        while True:
            with self._lock:
                out.extend(map(_pop, repeat(self._out, len(self._out))))  # one step of C
                self._to_come -= self._unlocked(out)
                end = not self._over and self._should_end()
                left = None if deadline is None else deadline - monotonic()
                if not out:
                    if self._over or (left is not None and left <= 0):
                        return False
                    self._change.expect()
                    if self._out:  # without the lock, before it was told that somebody waits
                        left = 0.0
            if end:
                self._finish()
            if out:
                return True
            self._change.wait(left)

    def _unlocked(self, out: list[Any]) -> int:
        """How many items of these were finished without `_deliver`."""
        return 0

    def _all_opened(self, out: list[Any]) -> list[Taken | Batch]:
        """What was delivered, in its order."""
        return [piece for raw in out for piece in self._opened(raw)]

    def _opened(self, raw: Any) -> Iterable[Taken | Batch]:
        """What was delivered, as it comes out. Decoding happens here, in the taker's thread."""
        if type(raw) is _More:
            self._earned(len(raw.outputs))
            return (Taken(raw.item, raw.outputs, None, False, raw.call),)
        return (raw,)

    def _settled(self, number: int) -> None:
        """So many items are finished that were delivered with `done=0`."""
        with self._lock:
            self._to_come -= number
            end = not self._over and self._should_end()
        if end:
            self._finish()

    # ------------------------------------------------------------------ streams

    def _emit_all(self, item: Any, outputs: Iterator[Any], call: Any) -> None:
        """Hand over outputs of a call as they come, in a thread that may wait for credit."""
        for output in outputs:
            self._credit.acquire()
            if self._over:
                break
            self._emit(item, output, call)
            if self._halted:
                break

    def _emit(self, item: Any, output: Any, call: Any) -> None:
        with self._lock:
            last = self._out[-1] if self._out else None
            if type(last) is _More and last.call is call:
                last.outputs.append(output)  # not taken yet: they go together
                return
        self._deliver(_More(item, output, call), done=0)

    def _earned(self, number: int) -> None:
        """So many outputs of streams were taken."""
        self._credit.release(number)

    # ------------------------------------------------------------------ figures

    def _count(self, pieces: list[Taken | Batch]) -> None:
        taken = 0
        for piece in pieces:
            if isinstance(piece, Batch):
                taken += len(piece.items)
            else:
                taken += piece.done and piece.item is not END
        with self._lock:
            self._untaken -= taken

    @property
    def pending(self) -> int:
        with self._lock:
            items = sum(piece.done and piece.item is not END for piece in self._split)
            return self._untaken + items

    # ------------------------------------------------------------------ the end

    def end(self) -> None:
        with self._lock:
            self._open = False
            end = self._should_end()
        if end:
            self._finish()

    def _should_end(self) -> bool:
        """Whether it is time for the replicas' end (under the lock): True once."""
        if self._open or self._to_come or self._ending:
            return False
        self._ending = True
        return True

    @abstractmethod
    def _finish(self) -> None:
        """Run on_end and teardown of all replicas, then call `_finished`. Does not wait."""

    def _finished(self, pieces: Iterable[Taken] = ()) -> None:
        """The replicas' ends have run; nothing more will come."""
        with self._lock:
            if self._over:
                return
            self._change.tell()
            self._out += pieces
            self._over = True
        if self._notify is not None:
            self._notify()

    def own(self, executor: Any) -> None:
        self._own = executor

    def halt(self) -> None:
        self._halted = True

    def stop(self) -> None:
        with self._lock:
            self._open, self._ending = False, True
            self._over = True
            last = [p for p in (*self._split, *self._out) if type(p) is Taken and p.item is END]
            self._untold += [piece.failure for piece in last if piece.failure is not None]
            self._out.clear()
            self._split.clear()
            self._untaken = self._to_come = 0
            self._change.tell()
        self._stop()

    def close(self, patience: float | None = None) -> int:
        deadline = None if patience is None else monotonic() + patience
        try:
            self.stop()
            self._left += self._wait(deadline)
        finally:  # it may have run a teardown
            own, self._own = self._own, None
            if own is not None:
                own.shutdown(wait=False, cancel_futures=True)
                if deadline is not None:
                    self._left += self._leave_births()
                own.shutdown(wait=True)
            if self._notify is not None:
                self._notify()
        if not self._left:
            self._tear_down()
        untold, self._untold = self._untold, []
        if untold:
            raise untold[0]
        return self._left

    @abstractmethod
    def _stop(self) -> None:
        """Cancel what has not started, end what can be ended. Idempotent; never waits."""

    def _wait(self, deadline: float | None) -> int:
        """Wait for what cannot be ended, and leave behind what is late; how many calls that is."""
        return 0

    def _leave_births(self) -> int:
        """Leave initializers behind that do not come back; how many."""
        return 0

    def _tear_down(self) -> None:
        """A replica in this process that did not come to its end: tear it down, once."""

    @property
    def ended(self) -> bool:
        with self._lock:
            return self._over and not self._out and not self._split


class Credit:
    """How many outputs may still be handed over; who wants more waits. As a Semaphore (see
    `Change`)."""

    def __init__(self, number: int) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._change = Change(self._lock)
        self._number = number

    def acquire(self, blocking: bool = True) -> bool:
        """Take one; whether there was one."""
        while True:
            with self._lock:
                if self._number > 0:
                    self._number -= 1
                    return True
                if not blocking:
                    return False
                self._change.expect()
            self._change.wait()

    def release(self, number: int) -> None:
        """There are so many more."""
        with self._lock:
            self._change.tell(number)
            self._number += number


_places: list[int] = []  # in a subinterpreter: which one it is


def place() -> int:
    """Where a replica lives, as `Lane.replica_of` knows it: a process, or a subinterpreter."""
    return _places[0] if _places else os.getpid()

"""Who brings chunks of items to a backend, and what becomes of them when a worker dies there.

    Job.take ──▶ chunk ──submit──▶ there.run ──Came──▶ Job.came: outcomes, one an item
                  ▲  │    ──Need──▶ the same again, with what is missing
                  │  └────died────▶ halves, each again ... until the killer stands alone: Job.died
                  └── as many items as take 50 to 200 ms there

Guarantees:
    * Every item that was taken from a job gets one outcome, whatever dies, and if the engine is
      gone: then all have PoolBroken, within its timeout, and it is let go of.
    * A death costs the item that did it. Others of its chunk run again, at most log2(chunk) times;
      where the backend says that an item must not, chunks have one item.
    * Where a worker's death is charged also to what had not begun there (`Backend.blames`), an item
      that stands alone is tried once more while nothing else of ours is under way.

Invariants:
    * COURIER-1  What is under way belongs to the thread of the courier: only it submits, and hears
      of ends. Others put words into its queue.
    * COURIER-2  A flight ends once: by its future's callback, or by the courier's end.

Threads: one of its own; `wake`, `stop`, `close` from any.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import errors
from .._process import LoneThread
from ..contexts.base import closed_error
from .shares import Tokens
from .there import Came, Chunk, Need, folded, ran_again, run, run_copied, unfolded

if TYPE_CHECKING:
    from .backend import Backend, Blob
    from .wire import Packed

__all__ = ["AHEAD", "LADDER_S", "MOST_BYTES", "Courier", "Flight", "Job", "Pace", "RemoteStats"]

LEAST_S, MOST_S = 0.05, 0.2  # what a chunk shall take
TARGET_S = 0.1
MOST = 1 << 14  # items of a chunk
MOST_BYTES = 16 << 20  # of items in a chunk
GROWTH = 8  # times larger than the last one, or
DOUBT = 16  # so many times fewer than they would be by what was measured, and
NOISE_S = 1e-4  # what is less than this was measured badly
AHEAD = 2  # chunks for each that runs
SHORT = 4  # so many times a chunk could be as large: then one for each that runs will do
LADDER_S = 1.5  # for what is cancelled and does not end
WORKERS = 1024  # that stats know
LOOK_S = 5.0  # between two looks at the engine, while nothing comes back


class Pace:
    """How many items of a job go together, by what the last ones took.

    Attributes:
        known: How many it would be by that alone.
    """

    def __init__(self, *, single: bool, known: int = 1) -> None:
        self.known = known
        self._most = self._few = 1 if single else MOST

    @property
    def size(self) -> int:
        """How many."""
        if self.known >= SHORT * self._few:
            return self._few  # a call's own cost is most of it: the fewer calls the better
        return min(self.known, self._most)

    def came(self, items: int, seconds: float) -> None:
        """A chunk has been done."""
        wanted = int(items * TARGET_S / max(seconds, 1e-6))
        if seconds > MOST_S:
            self.known = max(1, wanted)
        elif seconds < LEAST_S and items >= self.size // 2:  # else it was small for other reasons
            trusted = int(items * TARGET_S / max(seconds, NOISE_S) / DOUBT)
            self.known = max(self.known, min(wanted, max(GROWTH * self.size, trusted)))

    def limit(self, most: int, width: int) -> None:
        """There are never more items than these at once, for so many calls that run at once."""
        self._most = min(MOST, max(1, -(-most // (AHEAD * width))))
        self._few = min(MOST, max(1, -(-most // width)))


class Job:
    """What runs on a backend under one function; its items, and whose they are.

    Attributes:
        code: The function.
        pace: The size of chunks.
        timeout: Seconds an item may run; then chunks have one.
        needs: The nonces of shared values that the function leads to.
    """

    code: Blob
    needs: tuple[bytes, ...] = ()
    timeout: float | None = None
    pace: Pace

    def take(self, most: int, nbytes: int) -> list[Any]:
        """The next items, so many at most, of about so many bytes."""
        raise NotImplementedError

    def packed(self, items: list[Any]) -> tuple[list[Any], Packed, dict[bytes, Any]]:
        """What goes: the items that can, encoded, and the shared values that they lead to. Those
        that cannot be encoded have their outcome, and are left out."""
        raise NotImplementedError

    def began(self, items: list[Any], flight: Flight) -> list[Any]:
        """They are about to be sent: those that still shall."""
        return items

    def came(self, items: list[Any], came: Came) -> None:
        """They have their outcomes."""
        raise NotImplementedError

    def failed(self, items: list[Any], error: BaseException) -> None:
        """All of them failed by this."""
        raise NotImplementedError

    def died(self, item: Any, error: BaseException) -> bool:
        """The worker that ran this one died of it, or it took too long; whether it is tried."""
        self.failed([item], error)
        return False

    def landed(self, flight: Flight) -> None:
        """A chunk is under way no more; what became of it comes next."""

    @property
    def waiting(self) -> int:
        """How many items wait to be taken."""
        raise NotImplementedError

    @property
    def urgency(self) -> int:
        """Higher first."""
        return 0


@dataclass(frozen=True)
class RemoteStats:
    """What a context on an engine has sent, and what has come of it, since it was opened.

    Attributes:
        chunks: Chunks that were sent, those that were sent again included.
        items: Items in them.
        returned: Items whose outcome came back from a worker, failures too.
        deaths: Chunks that were lost with a worker, or stopped for a timeout.
        repeated: Items that were sent again after a death, and may have run before.
        asked_again: Chunks whose worker lacked a function or a shared value, so they went again
            with it.
        in_flight: Items under way now.
        waiting: Items that wait now.
        seconds: What calls took in workers, all together.
        workers: Workers that chunks came back from, (host, pid).
    """

    chunks: int = 0
    items: int = 0
    returned: int = 0
    deaths: int = 0
    repeated: int = 0
    asked_again: int = 0
    in_flight: int = 0
    waiting: int = 0
    seconds: float = 0.0
    workers: tuple[tuple[str, int], ...] = ()


class _Counts:
    """The same while they are counted, in the courier's thread."""

    def __init__(self) -> None:
        self.chunks = self.items = self.returned = 0
        self.deaths = self.repeated = self.asked_again = 0
        self.seconds = 0.0


class Flight:
    """A chunk that is under way."""

    __slots__ = (
        "alone", "deaths", "future", "items", "job", "needs", "packed", "recalled", "whole",
    )  # fmt: skip

    def __init__(self, job: Job, items: list[Any], *, alone: bool = False, deaths: int = 0) -> None:
        self.job = job
        self.items = items
        self.deaths = deaths  # so many workers died with these items before
        self.alone = alone  # nothing else of ours is under way meanwhile
        self.future: Any = None
        self.packed: Any = None  # items, encoded, and shared values: kept for another try
        self.needs: dict[bytes, Any] = {}
        self.whole = False  # it carries all that it may need
        self.recalled = False


class Courier:
    """Brings chunks of jobs to a backend.

    Args:
        backend: The engine.
        name: Its thread's name.
        patience: Seconds that the engine may be gone, or without workers.
    """

    def __init__(self, backend: Backend, name: str, patience: float) -> None:
        self.backend = backend
        self._run = run if backend.views else run_copied
        self.patience = min(patience, backend.patience)
        self.broken: BaseException | None = None
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the next two
        self._jobs: list[Job] = []  # with items that wait
        self._known: set[int] = set()  # their ids
        self._again: deque[Flight] = deque()
        self._suspects: deque[Flight] = deque()
        self._flying: dict[int, Flight] = {}
        self._shares = Tokens(backend.keeps)
        self._over = False  # nothing more is accepted
        self._left = False  # the thread looks at no job any more
        self._hand: Flight | None = None  # what the thread is about to send, or has just back
        self._stopped = False  # what is under way is cancelled, too
        self._counts = _Counts()
        self._workers: dict[tuple[str, int], None] = {}  # the last ones that were heard of
        self._told = monotonic()  # when it was last heard of, or looked at
        self._look_s = min(LOOK_S, self.patience / 4)
        self._wrong_since = 0.0
        self._thread = LoneThread(self._live, name)

    # ------------------------------------------------------------------ any thread

    @property
    def single(self) -> bool:
        """Whether chunks have one item."""
        return not self.backend.at_least_once

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Those with items that wait."""
        with self._lock:
            return tuple(self._jobs)

    def stats(self) -> RemoteStats:
        """What was counted so far."""
        with self._lock:
            flying = sum(len(flight.items) for flight in self._flying.values())
            waiting = sum(job.waiting for job in self._jobs)
            waiting += sum(len(flight.items) for flight in (*self._again, *self._suspects))
            workers = tuple(self._workers)
        counts = vars(self._counts).copy()
        return RemoteStats(in_flight=flying, waiting=waiting, workers=workers, **counts)

    def wake(self, job: Job, *, at_once: bool = False) -> None:
        """A job has more items.

        Raises:
            PoolClosed: It came too late: nobody will take them.
        """
        with self._lock:
            if self._left:
                raise self.broken or closed_error()
            new = id(job) not in self._known
            if new:
                self._known.add(id(job))
                self._jobs.append(job)
        # Else it is looked at with whatever comes back next, unless a chunk is full just now.
        if new or at_once or job.waiting == job.pace.size:
            self._thread.start()
            self._inbox.put(None)

    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        with self._lock:
            return not (self._jobs or self._flying or self._again or self._suspects)

    def recall(self, flight: Flight) -> None:
        """Have a chunk come back, whose items are looked at again; where it can be, also one that
        runs."""
        self._inbox.put((flight,))
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more, cancel what is under way; each item has its outcome then."""
        self._stopped = True
        self._inbox.put(None)

    def leave(self, job: Job) -> None:
        """Wait no more for what is under way of a job: it cannot be ended."""
        self._inbox.put(job)

    def end(self) -> None:
        """Stop, and wait for the end; what does not end in time is left behind."""
        self._stopped = self._over = True
        self.close(wait=False)
        if not self._thread.here and not self._thread.join(LADDER_S):
            self._inbox.put(())
            self._thread.join()

    def close(self, wait: bool = True) -> None:
        """When all is done, end the thread, and let go of the backend. Idempotent."""
        self._over = True
        self._inbox.put(None)
        if not self._thread.asked:
            self._thread.start()  # it ends at once, and closes the backend
        if wait and not self._thread.here:
            self._thread.join()

    # ------------------------------------------------------------------ the courier's thread

    def _live(self) -> None:
        try:
            while not self._leaves():
                self._hear()
                if self._stopped or self.broken is not None:
                    self._end_all()
                else:
                    self._send_all()
        except BaseException as error:  # a bug of ours: nobody shall wait for ever
            self.broken = error
            with self._lock:
                self._left = True
            if self._hand is not None:
                self._hand.job.failed(self._hand.items, error)
            self._fail_all(error)
            raise
        finally:
            self.backend.close()

    def _leaves(self) -> bool:
        """Whether all is done, and nothing can come after it."""
        with self._lock:
            over = self._over or self.broken is not None
            self._left = over and not (self._jobs or self._flying or self._again or self._suspects)
            return self._left

    def _hear(self) -> None:
        """Wait for words, and heed all that are there. Words or not, the engine is looked at when
        nothing has been heard of it for a while."""
        rest = self._told + self._look_s - monotonic() if self._flying else None
        if rest is not None and rest <= 0:
            self._look()
            return
        try:
            word = self._inbox.get(timeout=rest)
        except queue.Empty:
            return
        while True:
            if type(word) is tuple:
                if not word:
                    self._fail_all(CancelledError())
                else:
                    self._recall(*word)
            elif type(word) is Flight:
                self._landed(word)
            elif word is not None:
                self._leave(word)
            try:
                word = self._inbox.get_nowait()
            except queue.Empty:
                return

    def _look(self) -> None:
        """Nothing has been heard of it for a while: does the engine live?"""
        begin = monotonic()
        wrong = self.backend.look()
        self._told = now = monotonic()
        if wrong is None:
            self._wrong_since = 0.0
            return
        self._wrong_since = self._wrong_since or begin
        if now - self._wrong_since >= self.patience:
            self._break(f"{self.backend.title} {wrong}, for {self.patience:g} s")

    def _break(self, why: str, cause: BaseException | None = None) -> None:
        if self.broken is None:
            self.broken = errors.PoolBroken(
                f"{why}: all that was under way or waited has failed; open the context anew"
            )
            self.broken.__cause__ = cause

    # Out.

    def _send_all(self) -> None:
        most = AHEAD * self.backend.width
        while len(self._flying) < most:
            if any(flight.alone for flight in self._flying.values()):
                return
            flight = self._next()
            if flight is None:
                return
            self._send(flight)

    def _next(self) -> Flight | None:
        if self._again:
            return self._again.popleft()
        if self._suspects:  # before new ones: somebody may wait for it in order
            return None if self._flying else self._suspects.popleft()
        idle = self.backend.width - len(self._flying)
        with self._lock:
            jobs = [job for job in self._jobs if idle > 0 or job.waiting >= job.pace.size]
            if not jobs:
                return None
            job = max(jobs, key=_urgency) if len(jobs) > 1 else jobs[0]
        share = job.pace.size
        if job.waiting < share:  # nobody knows whether more comes: all who are idle get some
            share = max(1, -(-job.waiting // max(1, idle)))
        items = job.take(share, MOST_BYTES)
        with self._lock:
            self._jobs.remove(job)
            if job.waiting:
                self._jobs.append(job)  # the others first
            else:
                self._known.discard(id(job))
        return Flight(job, items)

    def _send(self, flight: Flight) -> None:
        job = flight.job
        self._hand = flight
        items = job.began(flight.items, flight)
        if not items:
            self._hand = None
            return
        if flight.packed is None or len(items) != len(flight.items):
            flight.items, flight.packed, flight.needs = job.packed(items)
            if not flight.items:
                self._hand = None
                job.landed(flight)
                return
        needed = (*job.needs, *flight.needs)
        try:
            shares = [self._share(nonce, flight) for nonce in needed]
            closed = self._shares.closed()
            chunk = folded(Chunk(job.code.digest, needed, flight.packed, closed))
            code = job.code.argument(self.backend, whole=flight.whole)
            args = (self._run, chunk, code, *shares)
            if job.timeout is not None:
                flight.future = self.backend.submit_timed(job.timeout, *args)
            else:
                flight.future = self.backend.submit(*args)
        except BaseException as error:
            self._unsent(flight, error)
            return
        if len(self._flying) == 0:
            self._told = monotonic()
        with self._lock:
            self._flying[id(flight)] = flight
        self._counts.chunks += 1
        self._counts.items += len(flight.items)
        self._hand = None
        flight.future.add_done_callback(lambda _: self._inbox.put(flight))

    def _unsent(self, flight: Flight, error: BaseException) -> None:
        if isinstance(error, errors.PoolBroken):
            self._break(str(error), error)
            error = self.broken or error
        flight.job.landed(flight)
        flight.job.failed(flight.items, error)
        self._hand = None

    def _share(self, nonce: bytes, flight: Flight) -> Any:
        source = flight.needs.get(nonce) or flight.job.code.held[nonce]
        return self._shares.of(nonce, source).argument(self.backend, whole=flight.whole)

    # Back.

    def _landed(self, flight: Flight) -> None:
        with self._lock:
            if self._flying.pop(id(flight), None) is None:
                return
        if self.backend.patience == math.inf:  # else the engine's head must answer for itself
            self._told, self._wrong_since = monotonic(), 0.0
        job, items, future = flight.job, flight.items, flight.future
        flight.future = None
        self._hand = flight
        job.landed(flight)
        try:
            reply = unfolded(future.result())
        except CancelledError:
            self._back(flight)
        except (errors.WorkerDied, errors.TaskTimeout) as error:
            self._died(flight, error)
        except errors.PoolBroken as error:
            self._break(str(error), error)
            job.failed(items, self.broken or error)
        except BaseException as error:
            job.failed(items, _strange(self.backend, error))
        else:
            if type(reply) is Need:
                self._counts.asked_again += 1
                flight.whole = True
                self._again.append(flight)
            elif type(reply) is Came:
                job.pace.came(len(items), reply.seconds)
                self._counted(len(items), reply)
                job.came(items, reply._replace(ran=1 + flight.deaths) if flight.deaths else reply)
            else:
                job.failed(items, _strange(self.backend, TypeError(f"it gave {reply!r:.100}")))
        self._hand = None

    def _counted(self, items: int, reply: Came) -> None:
        self._counts.returned += items
        self._counts.seconds += reply.seconds
        if reply.where not in self._workers:
            with self._lock:
                self._workers[reply.where] = None
                while len(self._workers) > WORKERS:
                    del self._workers[next(iter(self._workers))]

    def _back(self, flight: Flight) -> None:
        """It was cancelled: by us, for one of its items or for all."""
        if flight.recalled or self._stopped:
            self._again.append(Flight(flight.job, flight.items, deaths=flight.deaths))
            return
        self._break(f"{self.backend.title} has cancelled what it was given")
        assert self.broken is not None
        flight.job.failed(flight.items, self.broken)

    def _died(self, flight: Flight, error: BaseException) -> None:
        job, items = flight.job, flight.items
        if flight.recalled and isinstance(error, errors.WorkerDied):
            self._again.append(
                Flight(job, items, deaths=flight.deaths)
            )  # the one that was ended has its outcome
            return
        self._counts.deaths += 1
        deaths = flight.deaths + 1
        blamed = isinstance(error, errors.WorkerDied) and self.backend.blames
        if len(items) > 1:
            half = len(items) // 2
            self._again.append(Flight(job, items[:half], deaths=deaths))
            self._again.append(Flight(job, items[half:], deaths=deaths))
        elif blamed and self.backend.at_least_once and not flight.alone:
            self._suspects.append(Flight(job, items, alone=True, deaths=deaths))
        else:
            ran_again(error, deaths)
            if not job.died(items[0], error):
                return
            self._again.append(Flight(job, items, deaths=deaths))
        self._counts.repeated += len(items)

    def _recall(self, flight: Flight) -> None:
        if id(flight) in self._flying and not flight.recalled:
            flight.recalled = True
            self.backend.cancel(flight.future, True)

    def _leave(self, job: Job) -> None:
        with self._lock:
            late = [flight for flight in self._flying.values() if flight.job is job]
            for flight in late:
                del self._flying[id(flight)]
        for flight in late:
            job.landed(flight)
            job.failed(flight.items, CancelledError())

    # The end.

    def _end_all(self) -> None:
        """Cancel what is under way; what waits has its outcome now."""
        error = self.broken or CancelledError()
        for flight in tuple(self._flying.values()):
            if not flight.recalled:
                flight.recalled = True
                self.backend.cancel(flight.future, True)
        self._fail_waiting(error)
        if self.broken is not None:
            self._fail_all(self.broken)

    def _fail_waiting(self, error: BaseException) -> None:
        with self._lock:
            jobs, self._jobs = self._jobs, []
            self._known.clear()
        for job in jobs:
            while job.waiting:
                job.failed(job.take(MOST, 1 << 62), error)
        for flights in (self._again, self._suspects):
            while flights:
                flight = flights.popleft()
                flight.job.failed(flight.items, error)

    def _fail_all(self, error: BaseException) -> None:
        self._fail_waiting(error)
        with self._lock:
            flights = [*self._flying.values()]
            self._flying.clear()
        for flight in flights:
            flight.job.landed(flight)
            flight.job.failed(flight.items, error)


def _urgency(job: Job) -> int:
    return job.urgency


def _strange(backend: Backend, error: BaseException) -> BaseException:
    """The engine could not run it at all."""
    failure = errors.PoolError(
        f"{backend.title} could not run it: {type(error).__name__}: {error}"[:2000]
    )
    failure.__cause__ = error
    return failure

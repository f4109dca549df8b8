"""How a pool ends: once, no matter who asks, and how many; and who fetches outcomes meanwhile.

    Core ──▶ Life ──▶ native pool            _ALIVE, the exit hook, threads ──▶ Life, never a Core

Guarantees:
    * When the last one that needs the pool lets go of its `Core`, or when a dropped pool has
      nothing more to do, the ladder starts (INV-8).
    * `Life.finish` is idempotent, comes to an end, and may be called from callbacks, `__del__`,
      the exit hook and several threads at once.

Invariants:
    * LIFE-1  `Life` never refers to its `Core`: threads and the exit hook hold lives, and must not
      keep a pool that everybody else has dropped.
    * LIFE-2  In another process than the maker's a life does nothing at all (INV-9).

Threads: any. The collector is the one Python thread of ours that runs user code (callbacks).
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import os
import threading
from concurrent.futures import _base
from typing import TYPE_CHECKING, Protocol
from weakref import ref as weakref

from .. import _native, errors
from .._frames import running_threads
from .._late import WeakSet
from .._process import (
    EARS,
    STREAM,
    TELLERS,
    LoneThread,
    Signal,
    end_first,
    exit_failed,
    our_thread,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from .events import EventLog

__all__ = ["Collector", "Life", "alive", "lives_of"]

_LINGER_S = 0.1  # an idle collector ends after this
_JOIN_S = 1.4  # the gentle ladder takes 1.0 s at most, plus the reaping

_tokens = itertools.count(1)


class Collector:
    """A thread that fetches outcomes for those who do not wait themselves.

    It lives from the first `arm` until nothing is armed any more.
    """

    def __init__(self, native: _native.Pool, name: str) -> None:
        self._native = native
        self._name = name
        self._lock = threading.RLock()  # guards the rest
        self._completions: _native.CompletionQueue | None = None
        self._thread: LoneThread | None = None

    def arm(self, future: _native.FutureBase) -> None:
        """Have the future told when its task is done. The next ones come by a shorter way.

        A signal handler may raise anywhere in here, also when a thread has just been started: so
        arming comes last, and who finds a thread that does not live yet starts it again.
        """
        with self._lock:
            if self._completions is None:
                self._completions = self._native.completion_queue()
            if self._thread is None:
                self._thread = LoneThread(self._run, f"{self._name}-collector")
            self._thread.start()
            self._completions.arm(future)

    def here(self) -> bool:
        """Whether this is the collector's thread."""
        thread = self._thread
        return thread is not None and thread.here

    def end(self) -> None:
        """Deliver what is there and end. Waits for the thread, unless this is it."""
        with self._lock:
            thread, completions = self._thread, self._completions
        if completions is not None:
            completions.close()
        if thread is not None and not self.here():
            thread.join()

    def _run(self) -> None:
        completions = self._completions
        assert completions is not None
        completions.serve()
        while self._turn(completions):
            pass

    def _turn(self, completions: _native.CompletionQueue) -> bool:
        """Deliver one batch; False: the thread shall end. Nothing of it is kept while waiting."""
        try:
            batch = completions.wait(None if completions.expected else _LINGER_S, collector=True)
        except errors.PoolError:
            batch = []  # closed under us
        if not batch:
            with self._lock:
                if completions.retire():
                    self._thread = None
                    return False
            return True
        _native.deliver(batch, _base._AsCompletedWaiter)
        return True


# Lives that have not ended, for the exit hook. Strong: a life outlives its core (LIFE-1).
_ALIVE: set[Life] = set()


class Port(Protocol):
    """An event loop's end of the pool."""

    def end(self) -> None: ...


class Cuttable(Protocol):
    """A stream that may be in the way of the end."""

    def cut(self, thread: int, alive: Container[int]) -> None: ...


class Lasting(Protocol):
    """A lazy call over input that has a length."""

    def take_in(self) -> None: ...


class Life:
    """How a pool ends: once, no matter who asks, and how many."""

    def __init__(self, native: _native.Pool, log: EventLog) -> None:
        self.native = native
        self.log = log
        self.name = log.name
        self.pid = os.getpid()
        self.collector = Collector(native, log.name)
        self.ports: WeakSet[Port] = WeakSet()  # one an event loop
        self.streams: WeakSet[Cuttable] = WeakSet()
        # Of lazy calls with input left: their tokens, and who can take it in at a shutdown.
        self.inputs: dict[int, None] = {}
        self._lasting: dict[int, weakref[Lasting]] = {}
        self.ended = False
        self._closed = False  # the native pool
        self._wake = Signal()  # an iterator has ended, or the core is gone
        self._orphan = False  # nobody holds the core
        self._left = False  # a thread of ours finishes, as the user asked
        self._lock = threading.Lock()  # held by the one that finishes
        self._finisher = 0
        _ALIVE.add(self)
        TELLERS[self.tell] = None
        EARS[self] = None
        if STREAM:
            if STREAM[0].listened():  # who comes later finds it among the ears
                self.listen(True)
            STREAM[0].wake()

    def foreign(self) -> bool:
        """Whether this is a copy in a forked child."""
        return self.pid != os.getpid()

    def input_begins(self) -> int:
        """A lazy call has input left, until `input_ended` with what this returns."""
        token = next(_tokens)
        self.inputs[token] = None
        return token

    def input_lasts(self, token: int, results: Lasting) -> None:
        """What is left of that input is taken in by a shutdown."""
        self._lasting[token] = weakref(results)
        if token not in self.inputs:  # another thread has taken the last of it
            self._lasting.pop(token, None)

    def input_ended(self, token: int) -> None:
        """Idempotent: a signal handler's exception may come at any place."""
        self.inputs.pop(token, None)
        self._lasting.pop(token, None)
        self._wake.set()

    def idle(self) -> bool:
        """Whether every accepted task has its outcome and no lazy call has input left."""
        stats = self.native.stats()
        return not self.inputs and stats["accepted"] == stats["outcomes"]

    def tell(self) -> None:
        """The stream of events asks what has happened. In its thread, under no lock of ours."""
        if not self.foreign():
            with contextlib.suppress(errors.PoolError):
                self.native.turn()
            self.log(self.native)
            self.log.told.look(self.native)

    def listen(self, heard: bool) -> None:
        """Whether somebody listens to what tasks say. Any thread."""
        if not self.foreign():
            with contextlib.suppress(errors.PoolError):
                self.native.listen(heard, self.log.forwards)

    def forward_logs(self) -> None:
        """What workers log goes to the loggers here."""
        self.log.begin_logs()
        self.listen(STREAM[0].listened())

    def hear(self) -> None:
        """Hand over what tasks have said. Any thread."""
        if not self.foreign():
            self.log.hear(self.native)

    # The ways to an end.

    def take_in(self) -> None:
        """A shutdown finishes the open maps over input that has a length: accept what is left."""
        for lasting in tuple(self._lasting.values()):
            results = lasting()
            if results is not None:
                results.take_in()

    def finish(self, *, ladder: int = 0) -> None:
        """Finish what was accepted (or, with a ladder, do not), end all processes and threads.

        Args:
            ladder: LADDER_* to start at once; 0 waits for accepted tasks first.

        Raises:
            KeyboardInterrupt: Ctrl-C came; the ladder was started, and all is ended.
        """
        if self.foreign() or self.ended:
            return
        if ladder:
            self._stop(ladder)
        if self._finisher == _thread.get_ident():
            return  # from a finalizer or a signal handler inside finish()
        if self.collector.here():
            self._background()  # a callback may not wait for its own thread
            return
        try:
            interrupt = self._finish_alone(ladder)
        except KeyboardInterrupt as error:  # another thread finishes, too slowly for the user
            self._stop(_native.LADDER_TERM)
            interrupt = self._finish_alone(_native.LADDER_TERM) or error
        self.log(self.native)
        self.hear()
        EARS.pop(self, None)
        self.log.end_logs()
        self.log.told.end()
        if interrupt is not None:
            raise interrupt

    def _finish_alone(self, ladder: int) -> KeyboardInterrupt | None:
        """Wait for another thread that finishes, or do it. As `_finish`."""
        with self._lock:
            try:
                self._finisher = _thread.get_ident()
                return None if self.ended else self._finish(ladder)
            finally:
                self._finisher = 0

    def _finish(self, ladder: int) -> KeyboardInterrupt | None:
        """The end itself (under `_lock`). Returns the Ctrl-C that came in between. What breaks it
        off, as what a signal handler raises may anywhere, leaves the rest to the next one."""
        interrupt = None
        try:
            if not self._closed:
                self._wind_up(ladder)
        except KeyboardInterrupt as error:
            interrupt = error
            self._hurry()
        finally:
            self._closed = True
            self.native.close()
            self._wake.set()
            for port in tuple(self.ports) if self.ports else ():
                port.end()
            self.collector.end()
            _ALIVE.discard(self)
            TELLERS.pop(self.tell, None)
            self.ended = True
        return interrupt

    def _wind_up(self, ladder: int) -> None:
        with contextlib.suppress(errors.PoolError):
            self.native.drain()
        if not ladder:
            self._cut_streams()
            self.native.wait_idle()
        self._stop(_native.LADDER_GENTLE)
        self.native.join(_JOIN_S)

    def _cut_streams(self) -> None:
        """A stream that this thread should read would wait for it, and it for the stream."""
        streams = tuple(self.streams) if self.streams else ()
        if streams:
            alive = running_threads()
            for stream in streams:
                stream.cut(_thread.get_ident(), alive)

    def _hurry(self) -> None:
        """After Ctrl-C: no gentleness; after a second one, no grace."""
        try:
            self._stop(_native.LADDER_TERM)
            self.native.join(_JOIN_S)
        except KeyboardInterrupt:
            self._stop(_native.LADDER_KILL)

    def _stop(self, ladder: int) -> None:
        with contextlib.suppress(errors.PoolError):
            self.native.stop(ladder)

    def refuse(self) -> None:
        """Accept nothing more; what was accepted goes on."""
        if not self.foreign() and not self.ended:
            with contextlib.suppress(errors.PoolError):
                self.native.drain()

    def leave(self) -> None:
        """`shutdown(wait=False)`: finish in a thread of ours."""
        if not self.foreign() and not self.ended:
            self._left = True
            self.refuse()
            self._background()

    def dropped(self) -> None:
        """The pool object is gone; futures and iterators may still hold the core."""
        if not self.foreign() and not self.ended:
            self._background(self._watch)

    def orphaned(self) -> None:
        """The core is gone: nobody can ever see an outcome."""
        if self.foreign() or self.ended or self._left or self._finisher:
            return
        self._orphan = True
        self._wake.set()
        self._stop(_native.LADDER_GENTLE)
        self._background()

    def _watch(self) -> None:
        """Wait until a dropped pool has nothing more to do, then end it."""
        while not self._orphan:
            self.native.wait_idle(collector=True)
            if self.idle():
                break
            self._wake.wait()
        self.finish(ladder=_native.LADDER_GENTLE)

    def _background(self, job: Callable[[], None] | None = None) -> None:
        """Run a job of this life in a thread of its own.

        The bare kind of thread: this may come from a finalizer in the middle of anything, also of
        `Thread.start`.
        """
        job = job or self.finish

        def run() -> None:
            with our_thread():
                job()

        try:
            _thread.start_new_thread(run, ())
        except RuntimeError:  # no thread to be had: at the limit, or at interpreter exit
            self.finish(ladder=_native.LADDER_GENTLE)


def lives_of(natives: list[_native.Pool]) -> list[Life]:
    """The lives of native pools that have not ended."""
    return [life for life in tuple(_ALIVE) if life.native in natives]


def _at_exit() -> None:
    """End all pools, before non-daemon threads are joined (section 6).

    A clean exit finishes accepted tasks; after an unhandled exception, or on Ctrl-C while it
    waits, the ladder starts at once.
    """
    end_first()
    if not _ALIVE:
        return
    ladder = _native.LADDER_TERM if exit_failed() else 0
    for life in tuple(_ALIVE):
        life.refuse()
        if ladder:
            life._stop(ladder)
    for life in tuple(_ALIVE):
        try:
            life.finish(ladder=ladder)
        except KeyboardInterrupt:
            ladder = _native.LADDER_TERM
            for other in tuple(_ALIVE):
                if not other.foreign():
                    other._stop(ladder)


# concurrent.futures uses the same hook, for the same reason: atexit runs after the join of
# non-daemon threads, which may be waiting for our tasks.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_ALIVE.clear)  # none is the child's to end (LIFE-2)


def alive() -> list[Life]:
    """The pools of this process that have not ended."""
    return [life for life in tuple(_ALIVE) if life.pid == os.getpid() and not life.ended]

"""The thread of a cow_fork executor: forks a child for the calls that wait, reads what comes back.

It looks after each child until it is reaped. ::

    Backlog ──▶ _take ──▶ _fork ──▶ child ──▶ _read ──▶ futures
                                      └─ late, dead, killed: _look_at, _reap, _bury

Invariants:
    * COW-1  One thread forks, and lives until its last child is reaped: the kernel kills a child
      when the thread that forked it ends (PR_SET_PDEATHSIG).
    * COW-2  A pid is signalled only while it is in `_living`, under `_lock`; it leaves that in
      the step that reaps it. So no signal ever hits a stranger.
    * COW-3  The state (`Forker`) never refers to the executor: it must be droppable.
    * COW-4  No child is forked for a call that has its outcome, nor while `kill` gives it one: what
      the child inherits for it (the pipe of a lane's stream) may be closed from then on.

Threads: `Forker` says which of its methods belong to the forking thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import deque
from functools import cached_property, partial
from itertools import starmap
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import _hazards, _native, errors
from .._late import unbroken
from .._process import EARS, STREAM, LoneThread, end_first, exit_failed
from ..worker import main
from .base import INSIDE, Backlog, Call, Metrics
from .fork_outcomes import ForkCodec, ForkFuture, value_of
from .lanes.calls import mark_last

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Forker"]

_BACKOFF = (0.05, 0.2, 0.8, 2.0)  # seconds to the next try of a fork that failed
_GRACE = 0.5  # seconds between SIGTERM and SIGKILL
_SET_UP = 2.0  # seconds that a child may take to its first call, the next one twice that
_STILLBORN = 4  # so many children in a row that never got to a call are no accident
_UNWATCHED = 0.02  # seconds between two looks at children that no pidfd tells of
_EXAMINE = 0.1  # seconds between two looks at what a fork would break
_NEVER = float("inf")
_LINUX = sys.platform == "linux"


class _Child:
    """What a child was given, and how far it is. Belongs to the forking thread."""

    __slots__ = ("born", "calls", "cause", "due", "missing", "next", "seconds")

    def __init__(self, calls: list[Call | None]) -> None:
        self.calls = calls  # None: has its outcome
        self.next = 0  # the one whose outcome comes next
        self.missing = len(calls)  # outcomes
        self.cause = 0  # CAUSE_*: why we killed it
        self.born = monotonic()
        self.due = self.born + _SET_UP  # when to look at its time
        self.seconds = 0.0  # that the running call was allowed

    def complete(self, i: int) -> Call | None:
        """Call i has its outcome."""
        call, self.calls[i] = self.calls[i], None
        self.missing -= 1
        while self.next < len(self.calls) and self.calls[self.next] is None:
            self.next += 1
        return call


class Forker:
    """The state of an executor, and what its forking thread does."""

    def __init__(self, name: str, width: int, batch: int) -> None:
        self.name = name
        self.width = width
        self.batch = batch
        self.backlog = Backlog()
        self.pid = os.getpid()
        # Guards the next five. Reentrant: a finalizer may come in the middle of anything.
        self._lock = threading.RLock()
        self._thread: LoneThread | None = None
        self._living: dict[_native.ForkSlot, _Child] = {}
        self._condemned: set[Call] = set()  # killed before they had a child (COW-4)
        self._pipes: list[tuple[int, int]] = []  # the wake-up pipe, if there is one
        self._wake_end = -1  # its write end
        self._ended = False
        self._poked = False  # a byte is in the pipe, or on its way there
        self._dropped = False  # nobody can submit any more
        self._examine_at = 0.0  # when to look again what a fork would break
        self._listening = False  # somebody listens to what tasks say
        # What follows belongs to the forking thread, but for being looked at.
        self._wake = -1
        self._slots: list[_native.ForkSlot] = []
        self._free: list[_native.ForkSlot] = []
        self._enter: dict[_native.ForkSlot, Callable[[], None]] = {}
        self._again: deque[Call] = deque()  # to be run before the backlog
        self._hand: list[Call] = []  # taken, and not yet in a child
        self._stop_asked = 0  # signal to start with
        self._stopping = False
        self._kill_at = _NEVER
        self._fork_at = 0.0  # not before, after a failure
        self._failures = 0  # forks that failed in a row
        self._stillborn = 0  # children that never got to a call, in a row
        self._oom_kills = -1
        self._created = self._reused = self._failed = 0

    # ------------------------------------------------------------------ any thread

    def accept(self, call: Call) -> None:
        """Take a call.

        Raises:
            PoolClosed: The executor was shut down.
            PoolError: There is a subinterpreter, which no child would survive.
        """
        now = monotonic()
        if now >= self._examine_at or _hazards.subinterpreter():
            self._examine_at = now + _EXAMINE
            _hazards.check_fork("cow_fork")
        if self._thread is None or not self._thread.alive:
            self._start()
        self.backlog.put(call)
        self._poke()

    def _start(self) -> None:
        with self._lock:
            if self.backlog.closed:
                return
            if not self._pipes:
                # In one step of C, so that no signal handler's exception finds it made and unknown.
                self._pipes += starmap(_native.pipe, [()])
            for fd in self._pipes[0]:
                _native.nonblock(fd, True)
            self._wake, self._wake_end = self._pipes[0]
            if self._thread is None:
                self._thread = LoneThread(self._live, f"{self.name}-forker")
            _ALIVE.add(self)
            EARS[self] = None
            if STREAM and STREAM[0].listened():  # who comes later finds it among the ears
                self.listen(True)
                STREAM[0].wake()
            try:
                self._thread.start()
            except RuntimeError:
                _ALIVE.discard(self)
                self._close_pipe()
                raise

    def _end_start(self) -> None:
        """A start that was broken off has left a pipe, or a thread that may have begun or not."""
        with self._lock:
            if self._thread is None or not self._thread.asked:
                self._close_pipe()
            else:
                self._thread.start()

    def _close_pipe(self) -> None:
        self._wake_end = -1
        while self._pipes:
            for fd in self._pipes.pop():
                os.close(fd)

    def _poke(self) -> None:
        """Have the forking thread look around."""
        if self._poked:
            return
        self._poked = True
        self._rouse()

    @unbroken
    def _rouse(self) -> None:
        """Others rely on it once it is poked, whatever a signal handler raises here."""
        with self._lock:
            if not self._ended and self._wake_end >= 0:
                with contextlib.suppress(BlockingIOError):  # full: it is woken anyway
                    os.write(self._wake_end, b"\0")

    def foreign(self) -> bool:
        """Whether this is a copy in a forked child."""
        return self.pid != os.getpid()

    def listen(self, heard: bool) -> None:
        """Whether somebody listens to what tasks say."""
        self._listening = heard
        for slot in tuple(self._slots):
            slot.listen(heard)

    def hear(self, *slots: _native.ForkSlot) -> None:
        """Hand over what tasks have said, in these slots or in all."""
        if self._listening and STREAM:
            for slot in slots or tuple(self._slots):
                STREAM[0].words(partial(slot.take_said, whose=self._ear))

    @cached_property
    def _ear(self) -> Any:
        return STREAM[0].Ear(partial(_native.words, loads=self.loads), STREAM[0].bare)

    def close(self, *, cancel: bool = False) -> None:
        """Accept nothing more."""
        if self.foreign():
            return
        self.backlog.close()
        if cancel:
            self.backlog.cancel_all()
        self._end_start()
        self._poke()

    def stop(self, *, kill: bool = False) -> None:
        """Start the ladder: SIGTERM (or at once SIGKILL), and nothing new is begun."""
        if self.foreign():
            return
        self.backlog.close()
        self._stop_asked = signal.SIGKILL if kill else signal.SIGTERM
        self._end_start()
        self._poked = False
        self._poke()

    def dropped(self) -> None:
        """The executor object is gone. (From a finalizer: without the backlog's lock.)"""
        if not self.foreign():
            self._dropped = True
            self._end_start()
            self._poked = False
            self._poke()

    def join(self) -> None:
        """Wait until all is over.

        Raises:
            KeyboardInterrupt: Ctrl-C came; the ladder was started, and all is over.
        """
        thread = self._thread
        if self.foreign() or thread is None or thread.here:
            return
        interrupt = None
        while thread.alive:
            try:
                thread.join()
            except KeyboardInterrupt as error:
                self.stop(kill=interrupt is not None)  # a second one skips the grace
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def kill(self, call: Call) -> bool:
        """End a call that was given to a child, or that waits for another try."""
        with self._lock:
            for slot, child in self._living.items():
                if call not in child.calls:
                    continue
                i = child.calls.index(call)
                if slot.recall(i):
                    child.complete(i)
                    break
                if child.cause or i != child.next:
                    return False  # it has ended, and that will be seen soon
                child.cause = _native.CAUSE_KILLED
                _send(slot, signal.SIGKILL)
                return True
            self._condemned.add(call)  # started in no child now, and in none from now on
        done = call.future.done()
        call.fail(self._death(call, 0, 0, _native.CAUSE_KILLED, 0))
        with self._lock:
            self._condemned.discard(call)
        self._poke()
        return not done

    def metrics(self) -> Metrics:
        with self._lock:
            busy = sum(child.missing for child in self._living.values())
        waiting = len(self.backlog) + len(self._again)
        return Metrics(self._created, self._reused, busy, waiting, self._failed)

    # ------------------------------------------------------------------ the forking thread

    def _live(self) -> None:
        INSIDE.serves = True
        try:
            self._prepare()
            while self._turn():
                pass
        except BaseException as error:  # a bug of ours, or no memory: nobody shall wait for ever
            self._abandon(error)
            raise
        finally:
            self._close()

    def _prepare(self) -> None:
        _native.block_signals()
        self._oom_kills = _native.oom_kills()
        self.codec = codec = ForkCodec()
        self.loads = codec.loads
        for number in range(self.width):
            self._slots.append(_native.ForkSlot(number, self.batch))
            self._slots[-1].listen(self._listening)
        self._free = self._slots[::-1]
        self.load_failure = codec.load_failure
        self._kit = _native.ForkKit(
            self.pid,
            main.Worker(codec, 0, 0),
            self._slots,
            (self._wake, self._wake_end),
            codec.bindings,
            partial(main._complain, "a copy-on-write child could not be set up"),
        )

    def _turn(self) -> bool:
        """Do what there is to do, and wait for more. False: all is over."""
        self._poked = False  # before looking: what comes later leaves a byte in the pipe
        if self._dropped:
            self.backlog.close()
        if self._stop_asked:
            self._stop()
        self._launch()
        if not self._living and not self._again and self.backlog.closed and not self.backlog:
            return False
        for slot in _native.wait_slots(self._living, self._wake, self._patience()):
            self._attend(slot)
        self._look_at_clock()
        return True

    def _patience(self) -> float | None:
        """Seconds until the clock is to be looked at; None: never."""
        at = min((child.due for child in self._living.values()), default=_NEVER)
        at = min(at, self._kill_at)
        if self._free and self._again and self._fork_at:
            at = min(at, self._fork_at)
        if any(not slot.watched for slot in self._living):
            at = min(at, monotonic() + _UNWATCHED)
        return None if at == _NEVER else max(0.0, at - monotonic())

    # Births.

    def _launch(self) -> None:
        while self._free and (not self._fork_at or monotonic() >= self._fork_at):
            calls = self._take()
            if not calls:
                return
            self._fork(self._free[-1], calls)

    def _take(self) -> list[Call]:
        """The calls of the next child; they are running from now on."""
        calls: list[Call] = []
        while len(calls) < self.batch:
            call = self._again.popleft() if self._again else self.backlog.take_now()
            if call is None:
                break
            future = call.future
            if future.running():
                call.attempts += 1  # again: it has been started before
                calls.append(call)
            elif not future.done():
                future._kill = partial(self.kill, call)
                if call.start():
                    calls.append(call)
                else:
                    future._kill = None
        self._hand = calls
        return calls

    def _fork(self, slot: _native.ForkSlot, calls: list[Call]) -> None:
        failure: Exception | None = None
        with self._lock:  # a kill comes before the fork, or finds the child
            calls = [c for c in calls if c not in self._condemned and not c.future.done()]
            child = _Child(list(calls))
            if calls:
                mark_last(call.fn for call in reversed(calls))
                try:
                    _hazards.refuse_subinterpreters("cow_fork")  # made since it was accepted
                    # The child shares these, and all they lead to, by copy-on-write.
                    self._kit.enter, self._kit.leave = self._hooks(slot)
                    slot.fork(self._kit, [_plain(call) for call in calls])
                    self._living[slot] = child
                except (OSError, MemoryError, errors.PoolError) as error:
                    failure = error
        self._hand = []
        if isinstance(failure, errors.PoolError):
            for call in calls:
                self._fail(call, failure)
        elif failure is not None:
            self._not_forked(calls, failure)
        elif calls:
            self._forked(calls, child)

    def _hooks(self, slot: _native.ForkSlot) -> tuple[Any, Any]:
        """What multiprocessing has a child do at its begin and end; (None, None): it is not used.

        Of its end only this: what a task has put into a queue must leave.
        """
        util = sys.modules.get("multiprocessing.util")
        if util is None:
            return None, None
        if slot not in self._enter:
            from ..worker import mp

            birth = mp.Birth("fork", 0, self.pid, mp.family(1), -1)
            self._enter[slot] = birth.prepare()
        return self._enter[slot], util._exit_function

    def _forked(self, calls: list[Call], child: _Child) -> None:
        self._failures = 0
        self._fork_at = 0.0
        self._free.pop()
        self._created += 1
        self._reused += len(calls) - 1
        limit = calls[0].options.timeout
        if limit is not None:
            child.due = min(child.due, child.born + limit)

    def _not_forked(self, calls: list[Call], error: Exception) -> None:
        """No process to be had: try again later, and then say so."""
        if self._failures >= len(_BACKOFF):
            # From now on one try each, until one succeeds: the backlog comes to an end.
            self._fork_at = 0.0
            for call in calls:
                self._fail(call, error)
            return
        for call in reversed(calls):
            call.attempts -= 1
            self._again.appendleft(call)
        self._fork_at = monotonic() + _BACKOFF[self._failures]
        self._failures += 1

    # Outcomes.

    def _attend(self, slot: _native.ForkSlot) -> None:
        """Something came from a child, or it died."""
        child = self._living[slot]
        if not self._read(slot, child) or slot.eof:
            self._reap(slot, child)

    def _read(self, slot: _native.ForkSlot, child: _Child) -> bool:
        """Take what has come. False: there was nothing."""
        try:
            outcomes = slot.read()
            self.hear(slot)  # before anybody is told of these
        except errors.PoolError:
            self._end_child(slot, child, _native.CAUSE_PROTOCOL)
            return False
        except MemoryError:
            with self._lock:
                call = child.complete(child.next) if child.missing else None
            if call is not None:
                error = MemoryError("there was no memory to receive the outcome of this task")
                self._fail(call, error)
            self._end_child(slot, child, _native.CAUSE_EXIT)  # the pipe is of no more use
            return False
        for outcome in outcomes:
            if not child.missing:
                break
            with self._lock:
                call = child.complete(child.next)
            assert call is not None
            self._complete(call, outcome)
        if outcomes:
            self._stillborn = 0
            if not child.missing:
                slot.done_reading()
                child.due = _NEVER
            else:
                self._time_next(slot, child)
        return bool(outcomes)

    def _complete(self, call: Call, outcome: _native.Outcome) -> None:
        what = outcome.what
        if what == _native.WHAT_RETRY and call.attempts <= call.options.retries:
            self._again.append(call)
            return
        future = call.future
        assert isinstance(future, ForkFuture)
        if future.done():  # killed while it waited for another try
            return
        if what in (_native.WHAT_ERROR, _native.WHAT_RETRY):
            body, load = outcome.body(), self.load_failure
            future._encoded = lambda: (None, load(body))
            # A stand-in: who waits for a first exception must be told that this is one.
            self._fail(call, errors.RemoteError())
        else:
            future._encoded = partial(value_of, outcome, self.loads)
            call.finish(None)

    def _fail(self, call: Call, error: BaseException) -> None:
        self._failed += 1
        call.fail(error)

    # Deaths.

    def _end_child(self, slot: _native.ForkSlot, child: _Child, cause: int) -> None:
        with self._lock:
            child.cause = child.cause or cause
            child.due = _NEVER
            if slot in self._living:
                _send(slot, signal.SIGKILL)

    def _reap(self, slot: _native.ForkSlot, child: _Child) -> None:
        """Collect a child that is dead; nothing happens if it is not yet."""
        pid = slot.pid
        with self._lock:
            try:
                reaped, status, usage = os.wait4(pid, os.WNOHANG)
                rss = usage.ru_maxrss
            except ChildProcessError:  # SIGCHLD is ignored, or somebody else collected it
                reaped, status, rss = pid, -1, 0
            if not reaped:
                return
            del self._living[slot]  # COW-2
        # What it sent before it died is there now, even if a child of its own holds the pipe.
        while child.missing and not slot.eof and self._read(slot, child):
            pass
        self.hear(slot)
        if child.missing:
            self._bury(slot, child, status, rss // 1024 if sys.platform == "darwin" else rss)
        slot.bury()
        self._free.append(slot)

    def _bury(self, slot: _native.ForkSlot, child: _Child, status: int, rss_kb: int) -> None:
        """Charge the call that ran; those that had not started run elsewhere."""
        i = child.next
        guilty = child.calls[i]
        assert guilty is not None
        if slot.started(i):
            self._stillborn = 0
        else:
            self._stillborn += 1
            if self._stillborn < _STILLBORN and child.cause != _native.CAUSE_STOPPED:
                guilty = None
        unstarted = [call for call in child.calls if call is not None and call is not guilty]
        for call in reversed(unstarted):
            call.attempts -= 1
            self._again.appendleft(call)
        self._reused -= len(unstarted) - (child.next == 0 and guilty is None)
        if guilty is None:
            return
        cause = child.cause or _native.CAUSE_EXIT
        error = self._death(
            guilty, pid=slot.pid, status=status, cause=cause, slot=slot.number,
            rss_kb=rss_kb, crash=slot.crash(), seconds=child.seconds, mark=slot.mark(),
        )  # fmt: skip
        ours = (_native.CAUSE_KILLED, _native.CAUSE_STOPPED)
        if cause in ours or self._stopping:
            self._fail(guilty, error)
        else:
            self._try_again(guilty, error)
        if self._stopping:
            self._refuse_waiting()

    def _death(
        self, call: Call, pid: int, status: int, cause: int, slot: int,
        rss_kb: int = 0, crash: str = "", seconds: float = 0.0, mark: int = 0,
    ) -> BaseException:  # fmt: skip
        info = {
            "pid": pid,
            "status": status,
            "slot": slot,
            "cause": cause,
            "oom": int(cause == _native.CAUSE_EXIT and self._was_oom(status)),
            "attempts": call.attempts,
            "rss_kb": rss_kb,
            "task": 0,
            "timeout_ns": int(seconds * 1e9),
            "mark": mark,
        }
        error = errors.death(info, crash)
        error.add_note(f"The task was a call of {errors.name_of(call.fn)}.")
        return error

    def _was_oom(self, status: int) -> bool:
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return False
        before, self._oom_kills = self._oom_kills, _native.oom_kills()
        return 0 <= before < self._oom_kills

    # Time.

    def _time_next(self, slot: _native.ForkSlot, child: _Child) -> None:
        """When the call that runs now will have had its time."""
        call = child.calls[child.next]
        assert call is not None
        limit = call.options.timeout
        if limit is None:
            child.due = _NEVER
        else:
            child.due = (slot.since() if slot.started(child.next) else monotonic()) + limit

    def _look_at_clock(self) -> None:
        now = monotonic()
        if now >= self._kill_at:
            self._kill_at = _NEVER
            self._signal_all(signal.SIGKILL)
        for slot, child in list(self._living.items()):
            if now >= child.due:
                self._look_at(slot, child, now)
            elif not slot.watched:
                self._reap(slot, child)

    def _look_at(self, slot: _native.ForkSlot, child: _Child, now: float) -> None:
        """A child may be late: in its set-up, or with a call."""
        call = child.calls[child.next] if child.missing else None
        if call is None:
            child.due = _NEVER
            return
        limit = call.options.timeout
        if not slot.started(child.next):
            # It starts after now, so it may take its time from now at least.
            late = child.born + _SET_UP * 2**self._stillborn if child.next == 0 else _NEVER
            child.due = min(late, _NEVER if limit is None else now + limit)
            if now >= late:
                self._replace(slot, child)
        elif limit is None:
            child.due = _NEVER
        elif now < slot.since() + limit:
            child.due = slot.since() + limit
        else:
            child.seconds = limit
            self._end_child(slot, child, _native.CAUSE_TIMEOUT)

    def _replace(self, slot: _native.ForkSlot, child: _Child) -> None:
        """A child has not come to its first call for long: a lock that another thread held at the
        fork, or a busy machine. What it has not started runs in another one, uncharged."""
        with self._lock:
            back = [i for i, call in enumerate(child.calls) if call is not None and slot.recall(i)]
            calls = [call for call in map(child.complete, back) if call is not None]
        frozen = not child.missing
        self._reused -= len(calls) - frozen
        if frozen:
            self._stillborn += 1
            self._end_child(slot, child, _native.CAUSE_EXIT)
            if self._stillborn >= _STILLBORN:
                self._give_up(calls.pop(0), slot, child)
        for call in reversed(calls):
            call.attempts -= 1
            self._again.appendleft(call)
        if self._stopping:
            self._refuse_waiting()

    def _give_up(self, call: Call, slot: _native.ForkSlot, child: _Child) -> None:
        """So many children in a row are no accident: this call is charged."""
        error = self._death(call, slot.pid, signal.SIGKILL, _native.CAUSE_EXIT, slot.number)
        error.add_note(
            f"It had not begun with the task {monotonic() - child.born:.1f} s after its fork, as "
            f"{_STILLBORN - 1} others before it, and was ended by us: another thread may have held "
            f"a lock at the fork that a library needs in the child, or the machine is too busy."
        )
        self._try_again(call, error)

    def _try_again(self, call: Call, error: BaseException) -> None:
        """Once more, if the call wants that of a death; else it has failed."""
        try:
            again = call.again(error)
        except BaseException as raised:  # the user's: to look for a class may run its metaclass
            again, death, error = False, error, errors.bare(raised)
            errors.set_slot(error, "__context__", death)
        if again:
            self._again.append(call)
        else:
            self._fail(call, error)

    # The end.

    def _stop(self) -> None:
        """One rung of the ladder."""
        number, self._stop_asked = self._stop_asked, 0
        self._stopping = True
        self._refuse_waiting()
        with self._lock:
            for child in self._living.values():
                child.cause = child.cause or _native.CAUSE_STOPPED
        self._signal_all(number)
        self._kill_at = monotonic() + _GRACE if number != signal.SIGKILL else _NEVER

    def _refuse_waiting(self) -> None:
        """What waits never starts."""
        waiting = [*self._again, *self.backlog.clear()]
        self._again.clear()
        for call in waiting:
            call.fail(errors.PoolClosed("the executor was stopped before this task started"))

    def _signal_all(self, number: int) -> None:
        with self._lock:
            for slot in self._living:
                slot.tell()
                _send(slot, number)

    def _abandon(self, error: BaseException) -> None:
        """The forking thread cannot go on."""
        self.backlog.close()
        self._signal_all(signal.SIGKILL)
        waiting = [*self._hand, *self._again, *self.backlog.clear()]
        for slot, child in self._living.items():
            waiting += [call for call in child.calls if call is not None]
            with contextlib.suppress(ChildProcessError):
                os.waitpid(slot.pid, 0)  # it was killed: this cannot take long
        with self._lock:  # others may look for a call of theirs
            self._living.clear()
        for call in waiting:
            call.fail(errors.PoolBroken("the executor's forking thread failed", [error]))

    def _close(self) -> None:
        with self._lock:
            self._ended = True
            self._close_pipe()
        EARS.pop(self, None)
        for slot in self._slots:
            slot.close()
        if hasattr(self, "_kit"):
            self._kit.close()
        _ALIVE.discard(self)


def _plain(call: Call) -> tuple[Any, ...]:
    """What a child is to be told of a call."""
    retry_on = call.options.retry_on if call.options.retries else ()
    return call.fn, call.args, call.kwargs, retry_on


def _send(slot: _native.ForkSlot, number: int) -> None:
    """Signal a child that was not reaped by us (COW-2)."""
    # Where SIGCHLD is ignored the kernel reaps: it is gone then, and only a pidfd knows that its
    # pid may be somebody else's.
    with contextlib.suppress(ProcessLookupError):
        if _LINUX and slot.pidfd >= 0:
            signal.pidfd_send_signal(slot.pidfd, number)
        else:
            os.kill(slot.pid, number)


# ---------------------------------------------------------------------- interpreter exit

# Those whose thread runs, for the exit hook.
_ALIVE: set[Forker] = set()


def _ours() -> Iterator[Forker]:
    return (forker for forker in tuple(_ALIVE) if not forker.foreign())


def _at_exit() -> None:
    """End all executors, before non-daemon threads are joined (section 6).

    A clean exit finishes accepted calls; after an unhandled exception, or on Ctrl-C while it
    waits, the ladder starts at once.
    """
    end_first()
    if not _ALIVE:
        return
    failed = exit_failed()
    for forker in _ours():
        forker.close()
        if failed:
            forker.stop()
    for forker in _ours():
        try:
            forker.join()
        except KeyboardInterrupt:
            for other in _ours():
                other.stop()


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]

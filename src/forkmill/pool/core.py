"""What a pool, its views, futures and iterators share: the native pool, its words, its end.

Guarantees:
    * Who still needs the pool holds the `Core`; nobody else does. When the last one lets go,
      or when a dropped pool has nothing more to do, the ladder starts (INV-8).
    * `Life.finish` is idempotent, comes to an end, and may be called from callbacks, `__del__`,
      the exit hook and several threads at once.

Invariants:
    * CORE-1  `Life` never refers to its `Core`: threads and the exit hook hold lives, and must not
      keep a pool that everybody else has dropped.
    * CORE-2  In another process than the maker's a life does nothing at all (INV-9).

Threads: any. The collector is the one Python thread of ours that runs user code (callbacks).
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import itertools
import logging
import os
import struct
import sys
import threading
from concurrent.futures import CancelledError, _base
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import ref as weakref

from .. import _native, errors
from .._frames import running_threads
from .._late import WeakSet, unbroken
from .._process import (
    EARS,
    OUR_THREADS,
    SHARES,
    STREAM,
    TELLERS,
    LoneThread,
    Signal,
    end_first,
    exit_failed,
    interrupted,
    our_thread,
)
from ..codec.codec import Codec
from ..codec.functions import Functions
from ..runs.window import left_error

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from ..codec.program import Watch
    from ..codec.reach import Reach
    from ..runs.window import LazyCall
    from .events import EventLog
    from .options import Options

    # A function as it was sent: the native one, its name, and what tells when it has changed.
    Sent = tuple[_native.Function, str, Watch | None]

__all__ = ["OUR_THREADS", "Collector", "Core", "Life", "alive"]

_LINGER_S = 0.1  # an idle collector ends after this
_JOIN_S = 1.4  # the gentle ladder takes 1.0 s at most, plus the reaping
_MAX_FUNCTIONS = 1024  # that a pool remembers; the oldest is sent again
_APART = 1 << 20  # bytes: a larger function is no message, workers map it
_FOREIGN = (
    "this pool belongs to the process that made it; after a fork the child needs one of its own"
)

_tokens = itertools.count(1)
_DEATH = struct.Struct("<iiIIIIQQqQ")  # struct fm_death
_DEATH_FIELDS = (
    "pid", "status", "slot", "cause", "oom", "attempts", "rss_kb", "task", "timeout_ns",
    "mark",
)  # fmt: skip


_F = TypeVar("_F", bound=_native.FutureBase)  # the class of futures


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


# Lives that have not ended, for the exit hook. Strong: a life outlives its core (CORE-1).
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
os.register_at_fork(after_in_child=_ALIVE.clear)  # none is the child's to end (CORE-2)


class Core:
    """The shared part of a pool: submits, names functions, words failures.

    It is the codec that the native objects are given: `loads` and `failure`.
    """

    def __init__(
        self, native: _native.Pool, codec: Codec, workers: int, log: EventLog, *,
        initializer: bool, method: str, no_fork: str,
    ) -> None:  # fmt: skip
        self.native = native
        self.log = native.log = log
        self.codec = codec
        log.told.loads = codec.loads
        self.loads = codec.loads
        self.workers = workers
        self.life = Life(native, log)
        self.collector = self.life.collector
        self.loops: dict[int, Any] = {}
        self.method = method  # the start method, and why "auto" did not fork, or ""
        self.no_fork = no_fork
        self.warning = ""  # of what that has taken away, not yet given
        self.initializes = initializer  # whether workers have an initializer to run
        self.handed_down: Any = None  # what must live as long as workers may be born
        self._functions = Functions(_MAX_FUNCTIONS)
        self._wrapped: dict[tuple[Any, ...], Functions] = {}
        self._encoders: list[_native.Encoder] = []

    @unbroken
    def __del__(self, _at_end: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the interpreter's end the exit hook has ended all lives, and modules lose their names.
        life: Life | None = None if _at_end() else getattr(self, "life", None)
        if life is not None:
            life.orphaned()

    def check(self) -> None:
        """Refuse a call that could not submit anything.

        Raises:
            PoolClosed, PoolBroken, PoolError: The pool takes no work (any more, or here).
        """
        if self.life.foreign():
            raise errors.PoolError(_FOREIGN)
        state = self.native.state
        if state != _native.POOL_OPEN:
            raise self.refusal(errors.PoolClosed())

    def cancel_pending(self) -> None:
        """Cancel every accepted task that has not started."""
        with contextlib.suppress(errors.PoolError):
            self.native.cancel_pending()

    def turn(self) -> None:
        """One turn of the I/O, if nobody else is at it."""
        with contextlib.suppress(errors.PoolError):
            self.native.turn()

    def look(self) -> None:
        """As turn(), and log what has happened. Not under a lock of ours."""
        self.turn()
        self.log(self.native)

    # ------------------------------------------------------------------ functions

    def function(
        self, fn: Callable[..., Any], options: Options, *, call: bool = False
    ) -> tuple[_native.Function, str]:
        """The native function of a plain function, and its name; sent to a worker once.

        Anew if what it looks at in `__main__` has changed; `call`: for many tasks at once.
        """
        table = self._table(options)
        make = partial(self._define, options=options)
        known: Sent = table.get(fn, make)
        if known[2] is not None and not known[2].same(call=call):
            known = table.renew(fn, make)
        return known[:2]

    def _table(self, options: Options) -> Functions:
        """The functions as these options have them sent."""
        if not options.wrap:
            return self._functions
        return self._wrapped.setdefault(options.wrap, Functions(_MAX_FUNCTIONS))

    def _define(self, fn: Callable[..., Any], *, options: Options) -> Sent:
        # The watch first: what changes meanwhile is seen by the next look.
        sight = self.codec.sight(fn)
        watch = self.codec.watch(sight)
        before = self.codec.by_value
        function, name = self.temporary(fn, options, sight)
        if self.codec.by_value != before:
            self.log.note(logging.DEBUG, "function %s goes by value, with cloudpickle", name)
        return function, name, watch

    def temporary(
        self, fn: Callable[..., Any], options: Options, sight: Reach | None = None
    ) -> tuple[_native.Function, str]:
        """As `function`, for one call only: the pool does not remember it."""
        return self._native_function(self.guard(fn, options), sight), errors.name_of(fn)

    def _native_function(self, fn: Callable[..., Any], sight: Reach | None) -> _native.Function:
        pins: list[Any] = []
        if SHARES:
            shares = SHARES[0]
            fn = shares.lift_call(fn, (), {})[0]
            (data, buffers), pins = shares.pinned(self.codec.function_parts, fn)
        else:
            data, buffers = self.codec.function_parts(fn, sight)
        if len(data) + sum(map(len, buffers)) >= _APART and self._one_user:
            from ..codec.segment import apart

            found = apart(data, buffers)
            if found is not None:
                blob, segment = found
                return self.native.function(blob, [*pins, segment])
        return self.native.function(self.codec.joined(data, buffers), pins or None)

    @property
    def _one_user(self) -> bool:
        """Whether workers surely stay this user's: root's initializer may give that up."""
        return not self.initializes or os.geteuid() != 0

    def guard(self, fn: Callable[..., Any], options: Options) -> Callable[..., Any]:
        """fn, wrapped if the worker has to tell failures that are worth another try."""
        if options.wrap:
            from ..worker.main import _RetryCall

            return _RetryCall(fn, options.wrap)
        return fn

    def plain(self, fn: Any) -> bool:
        """Whether a worker gets fn once (functions, builtins, classes, and what says that it is
        never changed but by the functions in its attributes), not with each task."""
        if type(fn) is FunctionType or self.codec.is_plain_function(fn):
            return True
        return getattr(type(fn), "_forkmill_once", None) is True

    def for_map(self, call: LazyCall, options: Options) -> tuple[_native.Function, str]:
        """A map's function; if anybody wants to know of its calls, one that tells of them."""
        fn = call.fn
        told: tuple[str | None, str | None, str] | None = call.told
        run, name, detail = told or (None, None, STREAM[0].detail() if STREAM else "runs")
        if detail == "runs" or errors.label_of(fn) is not None:  # whose run tells itself
            if self.plain(fn):
                return self.function(fn, options, call=True)
            return self.temporary(fn, options)
        name = name or errors.name_of(fn)
        if SHARES:  # nobody looks for handles in what is wrapped
            fn = SHARES[0].lift_call(fn, (), {})[0]
        return self.temporary(_native.Timed(fn, run, name, detail == "every"), options)

    # ------------------------------------------------------------------ tasks

    def submitter(
        self, future: type[_F], options: Options
    ) -> Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], _F]:
        """What a pool's or a view's `submit` calls: fn, args, kwargs -> future."""
        return _native.Submitter(self, future, options, self._table(options).entries).submit

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
        *,
        flags: int = 0,
        slot: int = -1,
        credit: int = 0,
        completions: _native.CompletionQueue | None = None,
        tag: Any = None,
    ) -> _native.Chunk:
        """Encode one call in this thread (INV-3) and have it accepted.

        Raises:
            TypeError: fn cannot be called.
            SerializationError: fn or an argument cannot be sent.
            PoolClosed, PoolBroken, PoolError: Not accepted.
        """
        function = None
        value: Any
        flags |= options.run
        if SHARES:
            fn, args, kwargs = SHARES[0].lift_call(fn, args, kwargs)
        if self.plain(fn):
            function, name = self.function(fn, options)
            if kwargs:
                flags |= _native.RUN_CALL
                value = (args, kwargs)
            elif len(args) == 1:
                value = args[0]
            else:
                flags |= _native.RUN_STAR
                value = args
        elif callable(fn):
            name = errors.name_of(fn)
            flags |= _native.RUN_APPLY
            value = (self.guard(fn, options), args, kwargs)
        else:
            raise TypeError(f"the first argument must be callable, not {type(fn).__name__!r}")
        try:
            encoder = self._encoders.pop()
        except IndexError:
            encoder = self.encoder()
        encoder.add(value)
        if tag is None:
            tag = name
        else:
            tag._name = name
        try:
            task = self.native.submit(
                function, encoder, flags, options.limit, options.retries, options.flags,
                options.priority, slot, credit, completions, tag,
            )  # fmt: skip
        except errors.PoolError as error:
            raise self.refusal(error) from None
        self._encoders.append(encoder)  # its body is gone: ready for the next one
        return task

    def encoder(self, *, star: bool = False, lift: bool = True) -> _native.Encoder:
        """What arguments are encoded with.

        Args:
            star: Each record is the arguments of a call, not one argument.
            lift: Of a handle among them the value arrives.
        """
        dumps, failure = self.codec.dumps, self.codec.dump_failure
        return _native.Encoder(dumps, failure, self.native.arena, star, lift)

    # ------------------------------------------------------------------ failures

    def failure(self, what: int, body: memoryview, task: _native.Chunk) -> BaseException:
        """The exception for an outcome that is not a value.

        Never raises, but what a signal handler raised meanwhile: then ask again.
        """
        try:
            if what in (_native.WHAT_ERROR, _native.WHAT_RETRY, _native.WHAT_REFUSED):
                return self.codec.load_failure(body)
            if what == _native.WHAT_DEATH:
                return self._death(body, task)
            if what == _native.WHAT_CANCELLED:
                return CancelledError()
            if what == _native.WHAT_CLOSED:
                return errors.PoolClosed("the pool was stopped before a worker started this task")
            if what == _native.WHAT_BROKEN:
                return self.broken()
            if what == _native.WHAT_NOMEM:
                return MemoryError("there was no memory to receive the outcome of this task")
            return errors.PoolError(f"an outcome of unknown kind {what}")
        except Exception as error:
            if interrupted(error):
                raise
            failure = errors.PoolError("the failure of this task could not be told")
            failure.__cause__ = error
            return failure

    def _death(self, body: memoryview, task: _native.Chunk) -> BaseException:
        info, crash = read_death(body)
        tag = task.tag
        first = getattr(tag, "first", None)  # of its items, among all that the call had
        info["task"] += first or 0
        error = errors.death(info, crash)
        name = tag if isinstance(tag, str) else getattr(tag, "_name", "")
        if name:
            of = "" if first is None else f", for number {info['task']} of its items (from 0)"
            error.add_note(f"The task was a call of {name}{of}.")
        return error

    def refusal(self, error: errors.PoolError, *, left: bool = False) -> errors.PoolError:
        """What submit raises instead of the native layer's short words.

        Args:
            error: The native layer's.
            left: It was for the input of a lazy call.
        """
        if self.life.foreign():
            return errors.PoolError(_FOREIGN)
        if self.native.state == _native.POOL_BROKEN:
            return self.broken()
        if type(error) is errors.PoolClosed and left:
            return left_error()
        if type(error) is errors.PoolClosed:
            return errors.PoolClosed(
                "cannot schedule new futures after shutdown: this pool takes no more work"
            )
        return error

    def broken(self) -> errors.PoolBroken:
        """PoolBroken, or InitError, with what broke the pool and its causes."""
        code = self.native.stats()["birth_errno"]
        if code:
            return self._barren(code)
        if self.native.broken_by() == _native.EVENT_ZYGOTE:
            return errors.PoolBroken(self._zygotes_end(), [])
        causes: list[BaseException] = []
        init = None
        for what, body in self._collected():
            cause = self._cause(what, body)
            causes.append(cause)
            if what == _native.WHAT_REFUSAL or isinstance(cause, errors.InitError):
                init = init or cause
        if isinstance(init, errors.InitError):
            return errors.InitError(str(init), causes)
        if init is not None:
            text = f"the initializer failed in a worker: {type(init).__name__}: {init}"
            error: errors.PoolBroken = errors.InitError(text, causes)
        else:
            error = errors.PoolBroken(self._too_many(causes), causes)
        error.__cause__ = init or (causes[-1] if causes else None)
        return error

    def _barren(self, code: int) -> errors.PoolBroken:
        """PoolBroken of a pool that could not have any worker."""
        cause = OSError(code, os.strerror(code))
        name = errno.errorcode.get(code, str(code))
        if code == errno.ETIMEDOUT:
            text = "nothing was heard of its zygote, a fresh interpreter, within init_timeout"
        else:
            text = (
                f"no worker could be started, and none was left: {name} ({cause.strerror}). The "
                "limits to look at are those on descriptors, processes and memory"
            )
        error = errors.PoolBroken(text, [cause])
        error.__cause__ = cause
        return error

    def _collected(self) -> list[tuple[int, bytes]]:
        """The deaths and refusals that count: those within the time that `restarts` names."""
        causes = self.native.causes()
        # A second more: the zygote counts by its own time, before it tells.
        since = causes[-1][2] - int((self.log.restarts[1] + 1) * 1e9) if causes else 0
        return [(what, body) for what, body, at_ns in causes if at_ns >= since]

    def _cause(self, what: int, body: bytes) -> BaseException:
        if what != _native.WHAT_DEATH:
            return self.codec.load_failure(memoryview(body))
        info, crash = read_death(memoryview(body))
        late = info["cause"] == _native.CAUSE_TIMEOUT
        if not (self.initializes and (late or info["timeout_ns"] < 0)):
            return errors.death(info, crash)
        if late:
            return errors.InitError(
                f"the initializer in worker {info['pid']} took longer than init_timeout, so it was "
                "killed. Give it more time, ProcessPool(init_timeout=...), or less to do."
            )
        how = str(errors.death(info, crash)).split(" while it ran this task")[0]
        return errors.InitError(f"{how} inside its initializer")

    def _too_many(self, causes: list[BaseException]) -> str:
        last = f"({len(causes)} of them are in .causes, the last: {causes[-1]})" if causes else ""
        return (
            f"too many workers died {last}. Mend the cause, or allow more with "
            "restarts=(n, seconds)."
        )

    def _zygotes_end(self) -> str:
        pid, status = self.native.zygote()
        if status > 0 and os.WIFSIGNALED(status):
            how = f"was ended by {errors.signal_name(os.WTERMSIG(status))}"
        else:
            how = f"exited with code {os.WEXITSTATUS(status)}" if status >= 0 else "is gone"
        return f"the pool's zygote (pid {pid}), the parent of its workers, {how}"


def alive() -> list[Life]:
    """The pools of this process that have not ended."""
    return [life for life in tuple(_ALIVE) if life.pid == os.getpid() and not life.ended]


def read_death(body: memoryview) -> tuple[dict[str, int], str]:
    """Fields and crash text of a death record."""
    info = dict(zip(_DEATH_FIELDS, _DEATH.unpack_from(body), strict=True))
    return info, bytes(body[_DEATH.size :]).rstrip(b"\0").decode("utf-8", "replace")

"""What a pool, its views, futures and iterators share: the native pool, its functions, its words.

Guarantees:
    * Who still needs the pool holds the `Core`; nobody else does. When the last one lets go, its
      `Life` (life.py) starts the ladder (INV-8).
    * What is refused or has failed is told in the words that say what to do.

Threads: any.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import sys
from concurrent.futures import CancelledError
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from .. import _native, errors
from .._late import unbroken
from .._process import SHARES, STREAM, interrupted
from ..codec.codec import Codec
from ..codec.functions import Functions
from ..runs.window import left_error
from .life import Life

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..codec.program import Watch
    from ..codec.reach import Reach
    from ..runs.window import LazyCall
    from .events import EventLog
    from .options import Options

    # A function as it was sent: the native one, its name, and what tells when it has changed.
    Sent = tuple[_native.Function, str, Watch | None]

__all__ = ["Core", "read_death"]

_MAX_FUNCTIONS = 1024  # that a pool remembers; the oldest is sent again
_APART = 1 << 20  # bytes: a larger function is no message, workers map it
_FOREIGN = (
    "this pool belongs to the process that made it; after a fork the child needs one of its own"
)

_DEATH = struct.Struct("<iiIIIIQQqQ")  # struct fm_death
_DEATH_FIELDS = (
    "pid", "status", "slot", "cause", "oom", "attempts", "rss_kb", "task", "timeout_ns",
    "mark",
)  # fmt: skip


_F = TypeVar("_F", bound=_native.FutureBase)  # the class of futures


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


def read_death(body: memoryview) -> tuple[dict[str, int], str]:
    """Fields and crash text of a death record."""
    info = dict(zip(_DEATH_FIELDS, _DEATH.unpack_from(body), strict=True))
    return info, bytes(body[_DEATH.size :]).rstrip(b"\0").decode("utf-8", "replace")

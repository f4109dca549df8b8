"""A pool without workers: its calls run where they are made, as a worker would run them.

Guarantees: a call cannot tell the difference, but for the process that it is in. Its arguments
and its result are encoded and decoded, so it changes nothing of its caller's; what it raises,
SystemExit too, is its outcome; retries start from the same bytes.

Threads: any, as of a ProcessPool.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from .. import errors
from .._late import WeakSet
from ..codec import codec
from ..runs.window import Closable, LazyCall, Results, late_error, left_error
from .figures import PoolStats
from .futures import Future

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from .options import Options

__all__ = ["Here", "HereMap"]

_LOGGER = logging.getLogger("forkmill")


class Here:
    """What a pool without workers has in the place of a Core.

    Args:
        initializer: As of ProcessPool.
        initargs: As of ProcessPool.
        finalizer: As of ProcessPool.
        init_timeout: As of ProcessPool; told when the initializer is over.
    """

    def __init__(
        self,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        finalizer: Callable[[], object] | None,
        init_timeout: float | None,
    ) -> None:
        self._codec = codec.Codec()
        self.state = "inline"
        self._killed = False
        self._broken: errors.InitError | None = None
        self._succeeded = self._failed = self._retried = 0
        self._maps: WeakSet[HereMap] = WeakSet()
        begin = (initializer, initargs, finalizer)
        with contextlib.suppress(errors.SerializationError):  # inherited then, as by a fork
            begin = self.copied(self._codec.dumps(begin))
        initializer, initargs, self._finalizer = begin
        if initializer is not None:
            self._begin(initializer, initargs, init_timeout)

    def _begin(
        self, initializer: Callable[..., object], initargs: tuple[Any, ...], limit: float | None
    ) -> None:
        started = time.monotonic()
        try:
            initializer(*initargs)
        except BaseException as error:
            told = self._codec.load_failure(self._codec.dump_failure(error, "initializer"))
            text = f"the initializer failed: {type(told).__name__}: {told}"
            self._broken = errors.InitError(text, [told])
        else:
            if limit is not None and time.monotonic() - started > limit:
                self._broken = errors.InitError(f"the initializer took longer than {limit:g} s")
        if self._broken is not None:
            self._finalizer = None

    def check(self) -> None:
        """Whether it takes calls."""
        if self.state != "inline":
            raise errors.PoolClosed("cannot schedule new futures after shutdown")
        if self._broken is not None:
            raise self._broken

    def check_killed(self) -> None:
        """Whether calls that it has taken may be made."""
        if self._killed:
            raise errors.PoolClosed("the pool was stopped before this call was made")

    # ------------------------------------------------------------------ calls

    def encoded(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call as it would be sent; SerializationError if it cannot be."""
        return self._codec.dump_function(fn), self._codec.dumps((args, kwargs))

    def copied(self, packed: tuple[bytes, Any]) -> Any:
        """What was encoded, with memory of its own."""
        data, buffers = packed
        return self._codec.loads(data, [bytearray(buffer) for buffer in buffers])

    def run(self, call: Any, options: Options) -> tuple[Any, BaseException | None]:
        """A call's outcome: its result, or what it raised."""
        function, arguments = call
        for attempt in itertools.count(1):
            try:
                args, kwargs = self.copied(arguments)
                result = self._codec.load_function(function)(*args, **kwargs)
                result = self.copied(self._codec.dumps_result(result))
            except BaseException as error:
                if attempt <= options.retries and isinstance(error, options.retry_on):
                    self._retried += 1
                    continue
                self._failed += 1
                return None, self._codec.load_failure(self._codec.dump_failure(error))
            self._succeeded += 1
            return result, None
        raise AssertionError("a call has an outcome")

    def map(self, call: LazyCall, options: Options) -> HereMap:
        """The results of many calls, each made when it is asked for."""
        self.check()
        fn = call.fn
        self._codec.dump_function(fn)  # what cannot be sent is told at once
        sized = call.lasting()
        deadline = call.deadline()

        def in_time() -> None:
            if deadline is not None and time.monotonic() >= deadline:
                raise late_error()

        def submit(args: Any) -> Future[Any]:
            in_time()
            self.check_killed()
            if self.state != "inline" and not sized:
                raise left_error()
            try:
                encoded = self.encoded(fn, tuple(args), {})
            except errors.SerializationError as error:
                return Future.finished(None, error)
            outcome = self.run(encoded, options)
            in_time()
            return Future.finished(*outcome)

        results = HereMap(submit, call, sized=sized)
        self._maps.add(results)
        return results

    def stream(
        self, fn: Callable[..., Iterable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Closable[Any]:
        """What a call yields, each when it is asked for."""
        self.check()
        return self._yielded(*self.encoded(fn, args, kwargs))

    def _yielded(self, function: bytes, arguments: Any) -> Generator[Any, None, None]:
        outputs: Any = None
        try:
            args, kwargs = self.copied(arguments)
            outputs = self._codec.load_function(function)(*args, **kwargs)
            if not hasattr(outputs, "__iter__"):
                raise TypeError(
                    "a stream's function must return a generator or another iterable, not "
                    f"{type(outputs).__name__!r}"
                )
            for output in outputs:
                yield self.copied(self._codec.dumps_result(output))
                self.check_killed()
        except GeneratorExit:  # the reader has enough
            self._succeeded += 1
            raise
        except BaseException as error:
            self._failed += 1
            failure = self._codec.load_failure(self._codec.dump_failure(error))
        else:
            self._succeeded += 1
            return
        finally:
            if hasattr(outputs, "close"):
                outputs.close()
        raise failure

    # ------------------------------------------------------------------ the end

    def shutdown(self, *, finish: bool) -> None:
        """Take no more calls; those of maps over input with a length were taken already."""
        if self.state == "inline" and finish:
            for results in list(self._maps):
                results.finish()
        self.close()

    def kill(self) -> None:
        """End without the finalizer. What an open map has not called yet is not called, and its
        iterator says so."""
        self._finalizer = None
        self._killed = True
        self.close()

    def close(self) -> None:
        """Idempotent; the finalizer is called once."""
        self.state = "closed"
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            try:
                finalizer()
            except BaseException:  # nobody waits for its outcome
                _LOGGER.exception("the finalizer of a pool failed")

    def stats(self) -> PoolStats:
        """Its figures, as those of any pool."""
        done = self._succeeded + self._failed
        return PoolStats(
            "broken" if self._broken is not None and self.state == "inline" else self.state,
            workers=0,
            accepted=done,
            outcomes=done,
            succeeded=self._succeeded,
            failed=self._failed,
            retried=self._retried,
        )


class HereMap(Results):
    """`map` of a pool without workers: a call is made when its result is asked for."""

    def __init__(
        self, submit: Callable[[Any], Future[Any]], call: LazyCall, *, sized: bool
    ) -> None:
        self._sized = sized
        super().__init__(submit, call, window=1)

    def _fill(self) -> None:
        """Nothing is made ahead."""

    def finish(self) -> None:
        """Make the calls that were taken with the map: all, if the input has a length.

        If one of them asks for that, the others follow it.
        """
        if self._sized and not self._busy:
            self._feed.window = sys.maxsize
            while self._pull():
                pass

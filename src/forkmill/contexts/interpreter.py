"""interpreter: n subinterpreters (CPython >= 3.14); before that n threads, and one warning.

Guarantees: a call and its outcome travel as bytes, encoded as for a worker process, so values and
errors are those of ipc_fork; a call imports from where its caller does (sys.path as of the call).
Where there are no subinterpreters nothing is encoded at all.

What runs there imports this module, so nothing that it imports needs `_native`: an extension that
knows nothing of subinterpreters cannot be loaded in one.
"""

from __future__ import annotations

import functools
import sys
import warnings
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any

from .. import _checks, _codec, _program, errors
from .._process import cpus
from .base import Call
from .thread import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Interpreter"]

_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "subinterpreters need CPython 3.14: 'interpreter' runs calls in threads here",
            RuntimeWarning,
            stacklevel=2,
        )


class Interpreter(Thread):
    """Runs calls in up to n subinterpreters, each in a thread of its own.

    Args:
        max_workers: How many; None: the CPUs this process may use.
        initializer: Called in every subinterpreter before its first call.
        initargs: Its arguments, a tuple.
        name: What the threads are called.
    """

    type = "interpreter"

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        name: str | None = None,
    ) -> None:
        self._inner: Any = None
        self._path: list[str] = []  # what sys.path was when they were made
        if max_workers is None:
            max_workers = cpus()
        if sys.version_info >= (3, 14):  # pragma: no cover  # not on the CPythons tested so far
            from concurrent.futures import InterpreterPoolExecutor

            super().__init__(max_workers, name=name)
            _checks.initializer(initializer, initargs)
            self._path = _path()
            names = {"path": self._path, "blob": None}
            if initializer is not None:
                names["blob"] = _encode((initializer, initargs, {}))
            # A built-in: what is not on the path that it has from the start cannot be named there.
            self._inner = InterpreterPoolExecutor(
                self.width, self.name, initializer=exec, initargs=(_BEGIN, names)
            )
            self.copies = "call"  # type: ignore[misc]  # nothing of ours is shared with them
        else:
            _warn_once()
            super().__init__(max_workers, initializer=initializer, initargs=initargs, name=name)

    def _accept(self, call: Call) -> None:
        if self._inner is not None:  # pragma: no cover
            # Encoded in the caller's thread (INV-3); our thread only waits for the other one.
            blob = _encode((call.fn, call.args, call.kwargs))
            path = _path()
            remote = functools.partial(
                _remote, self._inner, blob, None if path == self._path else path
            )
            call.fn, call.args, call.kwargs = remote, (), {}
        super()._accept(call)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more, finish what was accepted, end the subinterpreters. Idempotent."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        # Not before our calls are through, which still need it: without `wait` they hold it, and it
        # ends with the last of them.
        inner, self._inner = self._inner, None
        if inner is not None and wait:  # pragma: no cover
            inner.shutdown()


# What a new subinterpreter runs first.
_BEGIN = """\
import sys
sys.path[:] = path
if blob is not None:
    from forkmill.contexts.interpreter import _prepare
    _prepare(blob)
"""


def _path() -> list[str]:  # pragma: no cover
    """Where this interpreter imports from, as far as it can be told."""
    return [entry for entry in sys.path if type(entry) is str]


def _encode(call: Any) -> tuple[bytes, list[bytes]]:  # pragma: no cover
    data, buffers = _codec.dumps(call)
    return data, [bytes(buffer) for buffer in buffers]


def _remote(inner: Any, blob: Any, path: list[str] | None) -> Any:  # pragma: no cover
    """One call in a subinterpreter, from the thread that waits for it.

    `path`: what sys.path is now, if that has changed since the subinterpreters were made.
    """
    try:
        good, data, buffers = inner.submit(_run, blob, path).result()
    except BrokenExecutor as error:
        raise errors.InitError("the initializer failed in a subinterpreter", [error]) from error
    if good:
        return _codec.loads(data, [bytearray(buffer) for buffer in buffers])
    raise _codec.load_failure(memoryview(data))


def _prepare(blob: Any) -> None:  # pragma: no cover
    """In a new subinterpreter: its initializer. What it raises breaks the pool."""
    good, data, _ = _run(blob)
    if not good:
        raise _codec.load_failure(memoryview(data))


def _run(
    blob: Any, path: list[str] | None = None
) -> tuple[bool, bytes, list[bytes]]:  # pragma: no cover
    """In the subinterpreter: decode, call, encode."""
    try:
        if path is not None:
            sys.path[:] = path
        if not _program.is_receiving():
            _program.receive()
        fn, args, kwargs = _codec.loads(blob[0], [bytearray(buffer) for buffer in blob[1]])
        return True, *_encode(fn(*args, **kwargs))
    except BaseException as error:
        return False, _codec.dump_failure(error), []

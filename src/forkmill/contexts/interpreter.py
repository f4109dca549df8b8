"""interpreter: n subinterpreters (CPython >= 3.14); before that n threads, and one warning.

    submit ──▶ encoded ──▶ backlog ──▶ a thread of ours ──▶ its own Home ──▶ decode,
    result ◀── decoded ◀──────────────                  ◀──              ◀── call, encode

Guarantees:
    * A call and its outcome travel as bytes, encoded as for a worker process, so values and errors
      are those of ipc_fork; a call imports from where its caller does (sys.path as of the call).
    * A subinterpreter runs in one thread as long as it lives: what libraries tie to a thread (event
      loops, connections) is there in the next call.
    * Where there are no subinterpreters nothing is encoded at all.
"""

from __future__ import annotations

import functools
import sys
import warnings
from typing import TYPE_CHECKING, Any

from .. import _checks
from .._process import cpus
from .base import Call
from .homes import Homes, encode, path, remote
from .lanes.interpreters import InterpreterLane
from .thread import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lanes import lane as _lane

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
        self.homes: Homes | None = None
        if max_workers is None:
            max_workers = cpus()
        if sys.version_info >= (3, 14):  # pragma: no cover  # not on the CPythons tested so far
            from concurrent import interpreters

            super().__init__(max_workers, name=name)
            _checks.initializer(initializer, initargs)
            blob = None if initializer is None else encode((initializer, initargs, {}))
            self.homes = Homes(max_workers, interpreters.create, blob)
            self._threads.what = "a subinterpreter"
            self._threads.prepare = self.homes.open
            self._threads.after = self.homes.close
            self.copies = "worker"  # type: ignore[misc]  # one a subinterpreter
        else:
            _warn_once()
            super().__init__(max_workers, initializer=initializer, initargs=initargs, name=name)

    def _accept(self, call: Call) -> None:
        if self.homes is not None:  # pragma: no cover
            # Encoded in the caller's thread (INV-3).
            blob = encode((call.fn, call.args, call.kwargs))
            call.fn = functools.partial(remote, self.homes, blob, path())
            call.args, call.kwargs = (), {}
        super()._accept(call)

    def begin_here(  # pragma: no cover
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
        place: int | None = None,
    ) -> Any:
        """As `_begin`, but the call runs in a thread of ours, which asks its Home itself.

        Args:
            fn: What to call.
            args: Its arguments.
            kwargs: Its keyword arguments.
            place: Which of the threads, by its Home's number; None: any.
        """
        self._check_process()
        call = Call(fn, args, kwargs, self._options, self.ledger, self.future_class())
        future = call.future
        self._threads.accept(call, place)
        return future

    def lane(self, work: _lane.Work, notify: Callable[[], None] | None = None) -> _lane.Lane:
        """A lane that runs one stage's work here (for pipelines)."""
        if self.homes is None:
            return super().lane(work, notify)
        return InterpreterLane(self, work, notify)  # pragma: no cover

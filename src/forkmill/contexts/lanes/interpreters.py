"""InterpreterLane: a lane over subinterpreters, each of which has a replica of the state.

    put ──▶ encoded ──▶ a thread of the executor, and its Home ──▶ begin(item): its output
    take ◀───────────── decoded, as they come                  ◀── or a generator: more(), more()

Guarantees: those of a Lane. A generator stays where it is and is asked for some outputs at a time,
so it can be told to end between two of them, and what it emits is never collected whole unless it
must be.

Invariants:
    * A Home does what its thread asks for until the item is done (HOME-1): one generator at a time.
    * Items that are put for a certain replica wait for the thread of that Home, in their order.
"""

from __future__ import annotations

import itertools
from concurrent.futures import wait
from contextlib import closing
from functools import partial
from time import monotonic, perf_counter
from types import AsyncGeneratorType, GeneratorType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from ..._process import interrupted
from ..homes import encode, path
from .calls import CallLane, Host, _last_words
from .emit import (
    Outputs,
    Raised,
    as_outputs,
    gathered,
    pieces,
    settle,
)
from .lane import END, Taken
from .replica import Replica

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Future

    from ..homes import Home, Homes
    from .lane import Work

__all__ = ["InterpreterLane"]

_numbers = itertools.count()
_SOME = 32  # outputs that a generator is asked for at once
_SOME_S = 1e-3  # but not for longer


class SubinterpreterHost(Host, Protocol):
    """An `Interpreter`, as its lanes know it."""

    homes: Homes | None

    def begin_here(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
        place: int | None = None,
    ) -> Any: ...


class InterpreterLane(CallLane):  # pragma: no cover  # not on the CPythons tested so far
    """A lane over an `Interpreter`."""

    def __init__(
        self, executor: SubinterpreterHost, work: Work, notify: Callable[[], None] | None = None
    ) -> None:
        super().__init__(executor, work, notify)
        assert executor.homes is not None
        self._homes = executor.homes
        self._submit = executor.begin_here
        self._face = SimpleNamespace(_begin=self._submit)
        self.replicas = self._homes.width
        self._token = next(_numbers)
        self._path = path()
        self._blob: Any = None  # the replica, encoded
        self._lived: dict[int, Home] = {}  # where there is a replica
        self._ends: list[Future[Any]] = []

    def replica_of(self, place: int) -> int | None:
        for number, home in [*self._lived.items()]:
            if home.place == place:
                return number
        return None

    # ------------------------------------------------------------------ in

    def _start(self, items: Iterable[Any], replica: int | None) -> None:
        number = None if replica is None else replica % self.replicas
        for item in items:
            blob = self._encoded(item)
            if blob is not None:
                self._send(item, blob, number)

    def _send(self, item: Any, blob: Any, number: int | None) -> None:
        call = object()
        try:
            future = self._submit(self._one, (item, call, blob), {}, number)
        except Exception as error:
            if interrupted(error):
                raise
            self._deliver(Taken(item, [], error))
            return
        self._watch(future, partial(self._returned, item, call))

    def _encoded(self, item: Any) -> Any:
        """The call for an item, in its sender's thread (INV-3); None: it has failed."""
        try:
            self._path = path()
            if self._blob is None:
                self._blob = encode((_settle_in, (self._token, self._replica), {}))
            return encode((_begin, (self._token, item), {}))
        except Exception as error:
            if interrupted(error):
                raise
            self._deliver(Taken(item, [], error))
            return None

    # ------------------------------------------------------------------ out

    def _one(self, item: Any, call: Any, blob: Any) -> Any:
        """In a thread of the executor: one item's outputs."""
        home = self._homes.here
        self._settle_in(home)
        more, value = home.ask(blob, self._path)
        if not more:
            return value
        with closing(self._outputs(home)) as outputs:
            return self._gathered(item, outputs, call)

    def _settle_in(self, home: Home) -> None:
        """Have a replica there."""
        if self._lived.get(home.number) is not home:
            home.ask(self._blob, self._path)
            self._lived[home.number] = home

    def _gathered(self, item: Any, outputs: Iterator[Any], call: Any) -> Outputs:
        if self.work.stream or not self.work.whole or item is END:
            return self._stream_all(item, outputs, call)
        return gathered(self._while_open(outputs), self.work.atomic)

    def _outputs(self, home: Home) -> Generator[Any, None, None]:
        """What the generator there emits, as it comes."""
        more = True
        try:
            while more:
                more, some = home.ask(_MORE, self._path)
                for output in some:
                    if type(output) is Raised:
                        raise output.error
                    yield output
        finally:
            if more:
                home.ask(_CLOSE, self._path)

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        lived = [*self._lived.values()]
        if not lived:
            self._finished()
            return
        failure = None
        for home in lived:
            try:
                self._ends.append(self._submit(self._last_of, (home,), {}, home.number))
            except Exception as error:
                if interrupted(error):
                    raise
                failure = error
        with self._lock:
            self._under_way.update(self._ends)
        if failure is not None:
            self._finished([Taken(END, [], failure)])
        ends = [*self._ends]
        left = itertools.count(len(ends) - 1, -1)
        for future in ends:
            future.add_done_callback(lambda future: self._end_came(future, next(left)))

    def _end_came(self, future: Future[Any], left: int) -> None:
        with self._lock:
            self._under_way.discard(future)
            if not self._over:
                if not left:
                    ends, self._ends = self._ends, []
                    self._finished([piece for end in ends for piece in _last_words(end)])
                return
        self._deliver(None)  # nobody takes it, but somebody may wait for us

    def _last_of(self, home: Home) -> Outputs:
        """In a thread of the executor: on_end and teardown of its replica."""
        outputs = Outputs()
        if self._homes.here is not home:
            return outputs  # it was left behind, and the replica with it
        try:
            more, value = home.ask(encode((_end, (self._token,), {})), self._path)
            if more:
                with closing(self._outputs(home)) as emitted:
                    self._stream_all(END, emitted, END)
            else:
                outputs = as_outputs(value)
        except BaseException as error:
            outputs.append(Raised(error))
        try:
            if not self._over:  # else who closes the lane does it
                self._move_out(home)
        except BaseException as error:
            outputs.append(Raised(error))
        return outputs

    def _move_out(self, home: Home) -> None:
        """Tear down a replica."""
        if self._lived.pop(home.number, None) is home:
            home.ask(encode((_move_out, (self._token,), {})), self._path)

    def _wait(self, deadline: float | None) -> int:
        left = super()._wait(deadline)
        for end in self._ends:
            if end.done() and not end.cancelled():
                words = [piece.failure for piece in _last_words(end)]
                self._untold += [failure for failure in words if failure is not None]
        self._ends.clear()
        if left or not self._lived:
            return left
        # Not in _tear_down: our executor, and every replica with it, may have ended by then.
        try:
            ends = [
                self._submit(self._torn_down, (home,), {}, home.number)
                for home in [*self._lived.values()]  # they go as they are torn down
            ]
        except Exception:
            return left  # it has ended already
        patience = None if deadline is None else max(0.0, deadline - monotonic())
        late = wait(ends, patience).not_done
        self._executor.leave(late)
        self._untold += [error for end in ends if end.done() and (error := end.exception())]
        return len(late)

    def _torn_down(self, home: Home) -> None:
        if self._homes.here is home:
            self._move_out(home)

    def _tear_down(self) -> None:
        """The replicas were torn down where they are."""


# --------------------------------------------------------------------- in a subinterpreter

_replicas: dict[int, Replica] = {}  # by the lane's token
_stream: list[Any] = []  # the generator that is asked for more, if there is one


def _settle_in(token: int, replica: Replica) -> None:  # pragma: no cover
    _replicas[token] = replica


def _begin(token: int, item: Any) -> tuple[bool, Any]:  # pragma: no cover
    """Whether there is a generator that can be asked for more; else the one output."""
    replica = _replicas[token]
    replica.prepare()
    return _unrolled(replica.work.fn(item))


def _unrolled(value: Any) -> tuple[bool, Any]:  # pragma: no cover
    if type(value) is GeneratorType or type(value) is AsyncGeneratorType:
        _stream[:] = [pieces(value)]
        return True, None
    return False, settle(value)


def _more() -> tuple[bool, Outputs]:  # pragma: no cover
    """Some outputs of the generator, last what it raised; and whether there may be more."""
    outputs, start = Outputs(), perf_counter()
    try:
        for output in _stream[0]:
            outputs.append(output)
            if len(outputs) == _SOME or perf_counter() - start > _SOME_S:
                return True, outputs
    except BaseException as error:
        outputs.append(Raised(error))
    _stream.clear()
    return False, outputs


def _close() -> None:  # pragma: no cover
    while _stream:
        _stream.pop().close()


def _end(token: int) -> tuple[bool, Any]:  # pragma: no cover
    """As `_begin`, for on_end."""
    replica = _replicas[token]
    if replica.ready and replica.work.on_end is not None:
        return _unrolled(replica.work.on_end())
    return False, Outputs()


def _move_out(token: int) -> None:  # pragma: no cover
    _replicas.pop(token).tear_down()


_MORE = encode((_more, (), {}))
_CLOSE = encode((_close, (), {}))

"""What runs in an engine's workers: a chunk of items, and the function that they need.

    run(Chunk, code, ...) ──▶ Need(what is missing)            it is sent again, with that
                          ──▶ Came(outcomes, seconds, where)   one for each item

Guarantees:
    * Whatever an item raises is its own outcome, encoded here: to the engine no call ever fails.
    * A function is decoded once in a worker, and so is a shared value. One whose state has an end
      (`Stage.whole`) is decoded for each chunk: a chunk has its state to itself.
    * Calls of several threads of one worker do not meet, but in what the function shares itself.

Threads: any.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
from collections import OrderedDict
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from ..contexts.lanes.emit import UNUSUAL, Outputs, Raised, emitted, gathered, pieces
from ..contexts.lanes.measured import Report
from ..contexts.lanes.replica import Replica
from ..errors import SerializationError, add_note
from .shares import KEPT
from .wire import WireCodec, loaded, packed_plain, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..contexts.lanes.lane import Work
    from .wire import Packed

__all__ = [
    "PROBE",
    "Came",
    "Chunk",
    "Function",
    "Need",
    "Stage",
    "folded",
    "ran_again",
    "results",
    "run",
    "run_copied",
    "unfolded",
]

_MOST = 128  # functions that a worker keeps
_ODD = UNUSUAL | {Report}  # what a call may give that is not its output as it is
_lock = threading.Lock()  # guards the next one
_functions: OrderedDict[bytes, Any] = OrderedDict()
_codec: WireCodec | None = None


class Need(NamedTuple):
    """What a worker has not: digests."""

    digests: list[bytes]


class Came(NamedTuple):
    """What came of a chunk.

    Attributes:
        packed: The outcomes. Of those that were encoded one by one `failed` has the places of what
            was raised.
        failed: The places of failures.
        seconds: What the calls took.
        where: The worker's host and pid.
        rest: A stage's: what its end emitted, and the reports of its calls, pickled; or None.
        ran: How often its items were sent, as home knows: workers died with them before.
    """

    packed: Packed
    failed: list[int]
    seconds: float
    where: tuple[str, int]
    rest: bytes | None = None
    ran: int = 1


class Function:
    """Calls of a function; an item is (args, kwargs)."""

    whole = False
    quick = None

    def __init__(self, fn: Any) -> None:
        self._fn = fn

    def __reduce__(self) -> Any:
        return Function, (self._fn,)

    def call(self, item: Any) -> Any:
        args, kwargs = item
        return self._fn(*args, **kwargs)

    def end(self) -> bytes | None:
        return None


class Stage:
    """A stage of a pipeline: one replica of its state."""

    def __init__(self, work: Work, many: bool) -> None:
        self._work = work
        self._many = many
        self._replica = Replica(work)
        self._reports: list[Report] = []

    def __reduce__(self) -> Any:
        return Stage, (self._work, self._many)

    @property
    def whole(self) -> bool:
        """Whether it has an end: then each chunk has a replica to itself."""
        return self._work.on_end is not None or self._work.teardown is not None

    def call(self, item: Any) -> Any:
        replica, work = self._replica, self._work
        if not replica.ready:
            replica.prepare()
        if self._many:
            value = gathered(pieces(work.fn(item)), work.atomic)
            return value if value and type(value[-1]) is Raised else [*value]
        return self.emitted(work.fn(item))

    @property
    def quick(self) -> Any:
        """What `call` comes to once all is prepared, but for values of `_ODD`: those go through
        `emitted`."""
        return self._work.fn if self._replica.ready and not self._many else None

    def emitted(self, value: Any) -> Any:
        """What the work's function has returned, as outputs."""
        value = emitted(value, self._work.atomic)
        if type(value) is Report:
            self._reports.append(value)
            return value.value
        return value

    def end(self) -> bytes | None:
        """What the replica's end emitted, and what was measured."""
        outputs = self._replica.finish() if self.whole else Outputs()
        reports, self._reports = self._reports, []
        if not outputs and not reports:
            return None
        told = [Report(None, each.call, each.seconds, each.times) for each in reports]
        codec = _mine()
        try:
            return codec.joined(*codec.dumps_result((outputs, told)))
        except BaseException as error:  # what it emitted cannot be sent: no item's failure
            return codec.joined(*codec.dumps_result((Outputs([Raised(error)]), told)))


# ---------------------------------------------------------------------- the call


class Chunk(NamedTuple):
    """What to do. It travels as `folded` has it.

    Attributes:
        digest: Which function.
        needed: The nonces of the shared values that the function, and that the items lead to.
        packed: The items.
        closed: The nonces of shared values that nobody needs any more.
    """

    digest: bytes
    needed: Sequence[bytes]
    packed: Packed
    closed: Sequence[bytes] = ()


def folded(message: Chunk | Came) -> Any:
    """As bytes, if nothing shall lie beside them: engines look into all else, and take longer."""
    return pickle.dumps(message, 5) if message.packed[1] is None else message


def unfolded(message: Any) -> Any:
    """What `folded` has folded."""
    return pickle.loads(message) if type(message) is bytes else message


def run(chunk: Any, code: Any, *shares: Any) -> Any:
    """Do a chunk.

    Args:
        chunk: A `Chunk`, folded.
        code: The function's bytes, or None where this worker has had them, we hope.
        *shares: The bytes, or None, of the shared values. (Engines look for tokens among the
            arguments, and not inside of them.)

    Returns:
        Need, or Came, which is folded.
    """
    digest, needed, packed, closed = unfolded(chunk)
    codec = _mine()
    _let_go(KEPT.drop(closed))
    missing = KEPT.use(needed, shares)
    if missing:
        return Need(missing)
    try:
        try:
            function = _function(codec, digest, code, needed)
        except BaseException as error:  # a module that is not here
            return _all_failed(codec, packed, _explained(error))
        if function is None:
            return Need([digest])
        return folded(_done(codec, function, packed))
    finally:
        _let_go(KEPT.done(needed))


def run_copied(*args: Any) -> Any:
    """As `run`, for engines that cannot send buffers that lie beside a pickle back."""
    reply = run(*args)
    if type(reply) is Came:
        datas, counts, buffers = reply.packed
        return reply._replace(packed=(datas, counts, [bytes(one.raw()) for one in buffers]))
    return reply


def _mine() -> WireCodec:
    global _codec
    if _codec is None:
        _codec = WireCodec(there=True)
    return _codec


def _let_go(gone: Sequence[bytes]) -> None:
    """Of functions that were decoded with shared values that are gone: they may have them."""
    if gone:
        with _lock:
            for digest, (_, _, nonces) in _functions.copy().items():
                if not nonces.isdisjoint(gone):
                    del _functions[digest]


def _function(codec: WireCodec, digest: bytes, code: Any, needed: Sequence[bytes]) -> Any:
    with _lock:
        known = _functions.get(digest)
        if known is not None:
            _functions.move_to_end(digest)
    if known is None:
        if code is None:
            return None
        function = loaded(codec, code)
        known = function, code if function.whole else None, frozenset(needed)
        with _lock:
            known = _functions.setdefault(digest, known)
            while len(_functions) > _MOST:
                _functions.popitem(last=False)
    function, again, _ = known
    return function if again is None else loaded(codec, again)


def _done(codec: WireCodec, function: Any, chunk: Packed) -> Came:
    values: list[Any] = []
    failed: list[int] = []
    one_by_one = chunk[1] is not None
    begin = perf_counter()
    quick = None
    for number, item in enumerate(codec.unpacked(chunk)):
        try:
            if quick is None:
                values.append(function.call(codec.loads(*item) if one_by_one else item))
                quick = None if one_by_one else function.quick
                continue
            value = quick(item)
            values.append(function.emitted(value) if type(value) in _ODD else value)
        except BaseException as error:
            failed.append(number)
            values.append(codec.dump_failure(error))
            del error
    seconds = perf_counter() - begin
    rest = function.end()
    packed, more = _packed(codec, values, frozenset(failed))
    return Came(packed, sorted([*failed, *more]), seconds, _where(), rest)


def _packed(
    codec: WireCodec, values: list[Any], failed: frozenset[int]
) -> tuple[Packed, list[int]]:
    """Results, encoded; and the places of those that cannot be."""
    if not failed and plain(values):
        return packed_plain(values), []
    datas: list[bytes] = []
    counts: list[int] = []
    buffers: list[Any] = []
    more: list[int] = []
    for number, value in enumerate(values):
        if number in failed:
            datas.append(value)
            counts.append(0)
            continue
        try:
            data, views = codec.dumps_result(value)
        except BaseException as error:
            more.append(number)
            data, views = codec.dump_failure(error, "result"), ()
        datas.append(data)
        counts.append(len(views))
        buffers += [pickle.PickleBuffer(view) for view in views]
    return (datas, counts, buffers), more


def _all_failed(codec: WireCodec, chunk: Packed, error: BaseException) -> Came:
    report = codec.dump_failure(error, "function")
    data, counts, _ = chunk
    number = len(data) if counts is not None else len(pickle.loads(data))
    packed: Packed = ([report] * number, [0] * number, [])
    return Came(packed, [*range(number)], 0.0, _where())


def _explained(error: BaseException) -> BaseException:
    """What cannot be decoded here, in words that say what to do."""
    if not isinstance(error, ImportError | AttributeError):
        return error
    name = getattr(error, "name", None)
    what = f"module {name!r}" if isinstance(error, ModuleNotFoundError) and name else str(error)
    refusal = SerializationError(
        f"the function cannot be loaded by worker {os.getpid()} on {socket.gethostname()}: {what} "
        f"is not there as it is here ({sys.executable}). Install it there, or have it sent by "
        "value: modules=[...] of the context"
    )
    refusal.__cause__ = error
    return refusal


def _where() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


# ---------------------------------------------------------------------- first contact

# What a worker is asked first, evaluated: it needs nothing that may not be there.
PROBE = (
    "(lambda sys, os, util: (tuple(sys.version_info[:2]), os.getpid(), sys.executable, "
    "util.find_spec('forkmill') is not None and __import__('forkmill').__version__))"
    "(__import__('sys'), __import__('os'), __import__('importlib.util').util)"
)


def results(
    codec: WireCodec, came: Came, caught: type[BaseException] = Exception
) -> Iterator[tuple[bool, Any]]:
    """At home: whether each item returned, and what it returned or raised; what is `caught` when
    one is decoded is its failure."""
    bad = frozenset(came.failed)
    data, counts, _ = came.packed
    if counts is None:
        for value in pickle.loads(data):
            yield True, value
        return
    for place, one in enumerate(codec.unpacked(came.packed)):
        if place in bad:
            error = codec.load_failure(one[0])
            ran_again(error, came.ran)
            yield False, error
            continue
        try:
            value = codec.loads(*one)
        except caught as error:
            refusal = SerializationError(f"a result cannot be decoded here: {error}")
            refusal.__cause__ = error
            yield False, refusal
        else:
            yield True, value


def ran_again(error: BaseException, times: int) -> None:
    """Have a failure say that its item may have run before."""
    if times > 1:
        add_note(
            error,
            f"This item was sent {times} times, and may have run each time: a chunk whose worker "
            "dies runs again, in halves (at_least_once=False of the context: chunks of one item)",
        )

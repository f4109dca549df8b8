"""Home: a subinterpreter, and which of an executor's threads lives in it.

    a thread of the executor ──blob──▶ Homes.here, its own Home ──▶ decode, call, encode
                             ◀─Reply──

Invariants:
    * HOME-1  A Home belongs to one thread, from its making to its end, and does what that asks for:
      what belongs together, as the outputs of a stream, may be asked for in several steps.
    * HOME-2  What crosses is None, bool, str, bytes, and tuples of these: CPython passes them on as
      they are. Anything else it would pickle, which costs as much as all the rest.

What runs there imports this module, so nothing that it imports needs `_native`: an extension that
knows nothing of subinterpreters cannot be loaded in one.
"""

from __future__ import annotations

import _thread
import itertools
import sys
from typing import TYPE_CHECKING, Any

from ..codec import codec
from .lanes import lane as _lane

if TYPE_CHECKING:
    from collections.abc import Callable

    Blob = bytes | tuple[bytes, ...]  # a pickle; one, and its buffers
    Reply = tuple[bool | None, Any]  # see `_run`

__all__ = ["Home", "Homes", "encode", "path", "remote"]

_serials = itertools.count()
_AS_IT_IS = frozenset({type(None), bool, float, str, bytes})
_INT = 1 << 62  # and an int up to here


# ------------------------------------------------------------------ in this interpreter


class Home:  # pragma: no cover
    """One subinterpreter. Made, asked and ended in one and the same thread."""

    def __init__(self, homes: Homes, number: int) -> None:
        self.number = number
        self.place = next(_serials)  # no other one ever has it
        self._path: list[str] = path()  # what sys.path is there, as far as we set it
        self._interpreter = homes.create()
        try:
            # A built-in: what is not on the path that it has from the start has no name there.
            self._interpreter.call(exec, _BEGIN, {"path": self._path, "place": self.place})
            if homes.initializer is not None:
                opened(self._interpreter.call(_run, homes.initializer))
        except BaseException:
            self.end()
            raise

    def ask(self, blob: Blob, path: list[str]) -> Any:
        """Have an encoded call made there; what it returned. Raises what it raised."""
        if path == self._path:
            return opened(self._interpreter.call(_run, blob))
        self._path = path
        return opened(self._interpreter.call(_run, blob, tuple(path)))

    def end(self) -> None:
        """No more calls."""
        self._interpreter.close()


class Homes:  # pragma: no cover
    """The subinterpreters of one executor: one in each of its threads, as long as that lives."""

    def __init__(self, width: int, create: Callable[[], Any], initializer: Blob | None) -> None:
        self.width = width
        self.create = create
        self.initializer = initializer
        self._homes: dict[int, Home] = {}  # by thread

    def open(self, number: int) -> None:
        """A thread begins: make its Home."""
        self._homes[_thread.get_ident()] = Home(self, number)

    def close(self) -> None:
        """A thread ends, and its Home with it."""
        home = self._homes.pop(_thread.get_ident(), None)
        if home is not None:
            home.end()

    @property
    def here(self) -> Home:
        """That of the calling thread."""
        return self._homes[_thread.get_ident()]


def path() -> list[str]:  # pragma: no cover
    """Where this interpreter imports from, as far as it can be told."""
    return [entry for entry in sys.path if type(entry) is str]


def encode(call: Any) -> Blob:  # pragma: no cover
    data, buffers = codec.dumps(call)
    return (data, *map(bytes, buffers)) if buffers else data


def decoded(blob: Blob) -> Any:  # pragma: no cover
    """What was encoded."""
    if type(blob) is bytes:
        return codec.loads(blob, ())
    data, *buffers = blob
    return codec.loads(data, [*map(bytearray, buffers)])


def opened(reply: Reply) -> Any:  # pragma: no cover
    """What a call there returned; raises what it raised."""
    good, value = reply
    if good is None:
        return value
    if good:
        return decoded(value)
    raise codec.load_failure(memoryview(value))


def remote(homes: Homes, blob: Blob, path: list[str]) -> Any:  # pragma: no cover
    """One call, in the subinterpreter of the thread that this is."""
    return homes.here.ask(blob, path)


# --------------------------------------------------------------------- in a subinterpreter

# What a new one runs first.
_BEGIN = """\
import sys
sys.path[:] = path
from forkmill.contexts.homes import _settle
_settle(place)
"""


def _settle(place: int) -> None:  # pragma: no cover
    """This is that one; from here on it is sent parts of the program."""
    _lane._places[:] = [place]
    codec.receive()


def _run(blob: Blob, path: tuple[str, ...] | None = None) -> Reply:  # pragma: no cover
    """Decode, call, encode.

    Returns:
        None and what it returned, if that can cross as it is; True and that, encoded; False and
        what it raised, encoded.
    """
    try:
        if path is not None:
            sys.path[:] = path
        fn, args, kwargs = decoded(blob)
        value = fn(*args, **kwargs)
        kind = type(value)
        if kind in _AS_IT_IS or (kind is int and -_INT < value < _INT):
            return None, value
        return True, encode(value)
    except BaseException as error:
        return False, codec.dump_failure(error)

"""Home: a subinterpreter and the thread that it lives in; and who has which of them.

    a thread that waits ──blob──▶ Homes.one() ──▶ Home: its own thread ──▶ decode, call, encode

Invariants:
    * HOME-1  Who has a Home to himself (`Homes.one`) may ask it several times, for what belongs
      together: the outputs of a stream.

What runs there imports this module, so nothing that it imports needs `_native`: an extension that
knows nothing of subinterpreters cannot be loaded in one.
"""

from __future__ import annotations

import itertools
import queue
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import errors
from .._late import WeakSet
from .._process import DAEMON, Change
from ..codec import codec
from .lanes import lane as _lane

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from .thread import Threads

    Reply = tuple[bool, bytes, list[bytes]]  # whether it returned; what, or what it raised

__all__ = ["Home", "Homes", "encode", "opened", "path", "remote"]

_serials = itertools.count()


# ------------------------------------------------------------------ in this interpreter


class Home:  # pragma: no cover
    """One subinterpreter, and the thread that all its calls run in. It has one user at a time."""

    def __init__(self, homes: Homes, number: int) -> None:
        self.number = number
        self.place = next(_serials)  # no other one ever has it
        self._homes = homes
        self._path: list[str] = path()  # what sys.path is there, as far as we set it
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        name = f"{homes.threads.name}-home-{number}"
        self.thread = threading.Thread(target=self._live, name=name, daemon=DAEMON)
        self.thread.start()

    def ask(self, blob: Any, path: list[str]) -> Reply:
        """Have an encoded call made there; wait for what becomes of it."""
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs.put((blob, None if path == self._path else path, answer))
        self._path = path
        reply = answer.get()
        if isinstance(reply, BaseException):
            raise reply
        return reply  # type: ignore[no-any-return]

    def end(self) -> None:
        """No more calls: the subinterpreter and the thread end."""
        self._jobs.put(None)

    def _live(self) -> None:
        interpreter = None
        try:
            interpreter = self._homes.create()
            # A built-in: what is not on the path that it has from the start has no name there.
            interpreter.call(exec, _BEGIN, {"path": self._path, "place": self.place})
            if self._homes.initializer is not None:
                opened(interpreter.call(_run, self._homes.initializer))
        except BaseException as error:
            self._homes.threads.fail_all(error)
            while (job := self._jobs.get()) is not None:
                job[2].put(self._homes.threads.broken_error(error))
        else:
            while (job := self._jobs.get()) is not None:
                self._do(interpreter, *job)
                del job
        finally:
            if interpreter is not None:
                interpreter.close()

    def _do(self, interpreter: Any, blob: Any, path: list[str] | None, answer: Any) -> None:
        try:
            answer.put(interpreter.call(_run, blob, path))
        except BaseException as error:  # of the subinterpreter itself: no memory, for one
            answer.put(error)


class Homes:  # pragma: no cover
    """The subinterpreters of one executor, made as they are needed, and who uses them.

    There are as many as threads, so a thread waits for one only if it asks for a certain one.
    """

    def __init__(self, threads: Threads, create: Callable[[], Any], initializer: Any) -> None:
        self.threads = threads
        self.width = threads.most
        self.create = create
        self.initializer = initializer  # encoded
        self._lock = threading.Lock()  # guards the rest
        self._change = Change(self._lock)
        self._homes: dict[int, Home] = {}
        self._free = [*reversed(range(self.width))]  # who was there last comes first
        self._users: dict[int, threading.Thread] = {}
        self._left: WeakSet[threading.Thread] = WeakSet()
        self._ending: list[Home] = []
        threads.what = "a subinterpreter"
        threads.last = self.close

    @contextmanager
    def one(self, number: int | None = None) -> Iterator[Home]:
        """Have a Home to oneself: a certain one, or any."""
        me = threading.current_thread()
        while (home := self._taken(me, number)) is None:
            self._change.wait()
        number = home.number
        try:
            yield home
        finally:
            with self._lock:
                mine = self._users.get(number) is me
                if mine:
                    self._change.tell()
                    del self._users[number]
                    self._free.append(number)
            if not mine:
                home.end()  # it was left behind with our call, which has come back

    def _taken(self, me: threading.Thread, number: int | None) -> Home | None:
        """As `one`; None: it is to be waited for."""
        with self._lock:
            if number not in self._free if number is not None else not self._free:
                self._change.expect()
                return None
            if me in self._left:
                raise errors.PoolClosed("nobody waits for this call any more")
            number = self._free[-1] if number is None else number
            home = self._homes.get(number)
            if home is None:
                home = self._homes[number] = Home(self, number)
            self._free.remove(number)
            self._users[number] = me
            return home

    def leave(self, users: Collection[threading.Thread]) -> None:
        """Others may take the places of those that these threads use, and do not come back from."""
        with self._lock:
            self._change.tell()
            self._left.update(users)  # some of them may not have come so far
            late = [number for number, user in self._users.items() if user in users]
            for number in late:
                del self._users[number]
                self._homes.pop(number, None)
            self._free += late

    def close(self) -> None:
        """End all that nobody uses; wait for their end. Idempotent."""
        with self._lock:
            for number in self._homes.keys() - self._users.keys():
                home = self._homes.pop(number)
                home.end()
                self._ending.append(home)
        for home in self._ending:
            if home.thread is not threading.current_thread():
                home.thread.join()


def path() -> list[str]:  # pragma: no cover
    """Where this interpreter imports from, as far as it can be told."""
    return [entry for entry in sys.path if type(entry) is str]


def encode(call: Any) -> tuple[bytes, list[bytes]]:  # pragma: no cover
    data, buffers = codec.dumps(call)
    return data, [bytes(buffer) for buffer in buffers]


def opened(reply: Reply) -> Any:  # pragma: no cover
    """What a call there returned; raises what it raised."""
    good, data, buffers = reply
    if good:
        return codec.loads(data, [bytearray(buffer) for buffer in buffers])
    raise codec.load_failure(memoryview(data))


def remote(homes: Homes, blob: Any, path: list[str]) -> Any:  # pragma: no cover
    """One call in a subinterpreter, from the thread that waits for it."""
    with homes.one() as home:
        reply = home.ask(blob, path)
    return opened(reply)


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


def _run(blob: Any, path: list[str] | None = None) -> Reply:  # pragma: no cover
    """Decode, call, encode."""
    try:
        if path is not None:
            sys.path[:] = path
        fn, args, kwargs = codec.loads(blob[0], [bytearray(buffer) for buffer in blob[1]])
        return True, *encode(fn(*args, **kwargs))
    except BaseException as error:
        return False, codec.dump_failure(error), []

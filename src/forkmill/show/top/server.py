"""The program's side of a dashboard: a socket in a thread of ours.

    events ──▶ Scene ──┐
    pools' workers ────┴──▶ a line of JSON four times a second ──▶ each dashboard that has taken
                                                                   the one before
    stop, kill, stacks, a failure's traceback ◀── a line of JSON ◀── dashboards

Guarantees:
    * Only processes of this user are spoken to: the kernel says whose they are.
    * Nothing waits for a dashboard. One that does not read costs the memory of one scene, one that
      sends what is no request is dropped; no more than 8 at once.
    * Nothing but JSON goes either way. Without `control` nothing a dashboard sends changes a run.
    * A forked child serves nothing; its copies of the sockets are closed.

Threads: any, but `_serve` and what it calls: one thread of ours, "forkmill-top".
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from ... import events
from ..._process import LoneThread
from ..text import lines, plain, program
from . import place
from .scene import Scene

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["SCHEMA", "Server", "by_environment", "current", "serve_top"]

SCHEMA = 1  # of what is sent
_EVERY_S = 0.25  # between two scenes
_MOST_CLIENTS = 8
_MOST_ASKED = 4096  # bytes of a request
_MOST_WORKERS = 500
_MOST_UNREAD = 8 << 20  # bytes that a dashboard has asked for, and does not read
_END_S = 1.0  # for the thread
_LAST_S = 0.5  # of it for dashboards to take the last scene
_STACKS_S = 1.0  # for a worker to answer


class _Client:
    """A dashboard."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.out = bytearray()
        self.asked = bytearray()
        self.gone = False

    def send(self, facts: dict[str, Any]) -> None:
        """Queue a line, and send what can be sent."""
        self.out += json.dumps(facts, separators=(",", ":"), default=plain).encode() + b"\n"
        self.flush()
        self.gone = self.gone or len(self.out) > _MOST_UNREAD

    def flush(self) -> None:
        """Send what can be sent."""
        try:
            while self.out:
                del self.out[: self.socket.send(self.out)]
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True

    def requests(self) -> list[bytes]:
        """What it asks."""
        try:
            data = self.socket.recv(_MOST_ASKED)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.asked += data
        *whole, rest = bytes(self.asked).split(b"\n")
        self.asked = bytearray(rest)
        self.gone = self.gone or not data or len(rest) > _MOST_ASKED
        return whole


class Server:
    """What dashboards of this process look at, from `serve_top`. It is over after `close`, or when
    the interpreter ends.

    Attributes:
        control: Whether dashboards may stop and kill runs.
        path: The socket's.
    """

    quiet = True  # of a sink: for its sake tasks need say nothing
    traces = True

    def __init__(self, control: bool, interrupt: Callable[[], object] | None = None) -> None:
        self.control = control
        self._interrupt = interrupt  # what stops a run that nothing else can stop
        self._scene = Scene()
        self._clients: dict[int, _Client] = {}
        self._seen: dict[int, tuple[int, bool, float]] = {}  # of workers: tasks, busy, since when
        self._over = False
        self._pid = os.getpid()
        self._listener, self.path = place.listening()
        self._bell, self._rope = socket.socketpair()
        self._thread = LoneThread(self._serve, "forkmill-top")
        self._end: Any = None
        try:
            self._end = events.subscribe(self)
            self._thread.start()
        except BaseException:
            self.close()
            raise

    def __call__(self, event: dict[str, Any]) -> None:
        """As a sink: something has happened."""
        self._scene.take(event)

    @property
    def watched(self) -> int:
        """How many dashboards look at it."""
        return len(self._clients)

    def close(self) -> None:
        """End it; dashboards are told how it stood. Idempotent."""
        if self._over or self._pid != os.getpid():
            return
        if self._end is not None:
            self._end()
        self._over = True
        if _SERVERS and _SERVERS[0] is self:
            _SERVERS.clear()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        with contextlib.suppress(OSError):
            self._rope.send(b"x")
        if self._thread.alive and not self._thread.here:
            self._thread.join(_END_S)
        if not self._thread.alive:
            self._shut()

    def _shut(self) -> None:
        while self._clients:  # two threads may close it at once
            with contextlib.suppress(KeyError):
                self._clients.popitem()[1].socket.close()
        for each in (self._listener, self._bell, self._rope):
            each.close()

    def forget(self) -> None:
        """This is a forked child."""
        self._over = True
        self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._over else f"{self.watched} look at it"
        return f"<Server {self.path!r}: {state}>"[:200]

    # ------------------------------------------------------------------ the thread

    def _serve(self) -> None:
        try:
            due = 0.0
            while not self._over:
                self._wait(due)
                now = time.monotonic()
                if self._clients and now >= due:
                    due = now + _EVERY_S
                    self._show()
            self._show_last()
        except BaseException as error:
            if not self._over:
                _LOGGER.warning("the dashboard's server has ended: %s", events.short(error))

    def _wait(self, due: float) -> None:
        """Until there is something to do, or it is time; and do it."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if len(self._clients) < _MOST_CLIENTS:
            poll.register(self._listener, select.POLLIN)
        for fd, client in self._clients.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if client.out else 0))
        left = max(0.0, due - time.monotonic()) if self._clients else None
        for fd, what in poll.poll(None if left is None else left * 1000 + 1):
            if fd == self._listener.fileno():
                self._accept()
            elif fd in self._clients:
                self._serve_one(self._clients[fd], what)
        for fd in [fd for fd, client in self._clients.items() if client.gone]:
            self._clients.pop(fd).socket.close()

    def _serve_one(self, client: _Client, what: int) -> None:
        if what & select.POLLOUT:
            client.flush()
        if what & ~select.POLLOUT:
            for line in client.requests():
                self._answer(client, line)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        try:
            if place.peer(connection).uid != os.geteuid():
                raise PermissionError
            connection.setblocking(False)
        except OSError:
            connection.close()
            return
        client = self._clients[connection.fileno()] = _Client(connection)
        client.send(
            {
                "kind": "hello",
                "schema": SCHEMA,
                "pid": os.getpid(),
                "program": program(120),
                "control": self.control,
            }
        )

    def _show(self) -> None:
        """A scene for each dashboard that has taken the last one."""
        ready = [client for client in self._clients.values() if not client.out]
        if not ready:
            return
        facts = self._scene.facts()
        workers = {worker["pid"]: worker for worker in facts["workers"]}
        workers.update(self._workers())
        facts |= {"kind": "scene", "workers": list(workers.values())[:_MOST_WORKERS]}
        facts |= {"now": time.monotonic(), "time": time.time(), "over": self._over}
        for client in ready:
            client.send(facts)

    def _show_last(self) -> None:
        """How it stands at the end, for those who take it in time."""
        until = time.monotonic() + _LAST_S
        for _ in range(2):  # some have not taken the scene before
            self._show()
            while slow := [c for c in self._clients.values() if c.out and not c.gone]:
                if (left := until - time.monotonic()) <= 0:
                    return
                poll = select.poll()
                for client in slow:
                    poll.register(client.socket, select.POLLOUT)
                poll.poll(left * 1000)
                for client in slow:
                    client.flush()

    def _workers(self) -> dict[int, dict[str, Any]]:
        """Those of pools, as they are now."""
        lives = sys.modules.get(_LIVES)
        found: dict[int, dict[str, Any]] = {}
        now = time.monotonic()
        for life in () if lives is None else lives.alive():
            with contextlib.suppress(Exception):  # it ends meanwhile
                for one in life.native.workers():
                    if one["pid"]:
                        found[one["pid"]] = self._worker(life.log.told.stage or life.name, one, now)
        self._seen = {pid: seen for pid, seen in self._seen.items() if pid in found}
        return found

    def _worker(self, name: str, one: dict[str, Any], now: float) -> dict[str, Any]:
        pid, tasks, busy = one["pid"], one["tasks"], one["in_flight"] > 0
        seen = self._seen.get(pid)
        if seen is None or seen[:2] != (tasks, busy):
            seen = self._seen[pid] = (tasks, busy, now)
        ready = "busy" if busy else "idle"
        return {
            "pid": pid,
            "state": ready if one["state"] == "ready" else one["state"],
            "what": plain(name, 60),
            "since": seen[2],
            "tasks": tasks,
        }

    # ------------------------------------------------------------------ what is asked

    def _answer(self, client: _Client, line: bytes) -> None:
        try:
            asked = json.loads(line)
            do, which, number = asked["do"], asked.get("which"), int(asked["number"])
            answer = _REQUESTS[do](self, which)
        except _Refused as refused:
            answer = str(refused)
        except Exception:  # whatever it is, it is no dashboard of ours
            client.gone = True
            return
        client.send({"kind": "answer", "number": number, "text": answer})

    def _stop(self, run: Any) -> str:
        return self._end_run(run, "stop")

    def _kill(self, run: Any) -> str:
        return self._end_run(run, "kill")

    def _end_run(self, run: Any, how: str) -> str:
        if not self.control:
            raise _Refused("read only: the program has to call fm.serve_top(control=True)")
        emitter = events.emitter_of(run) if isinstance(run, str) else None
        if emitter is None or emitter.over:
            raise _Refused("the run is over")
        driven = emitter.driven
        if driven is not None:
            getattr(driven, how)()
        elif self._interrupt is not None:
            self._interrupt()
        else:
            raise _Refused(f"it has no handle that could {how} it: Ctrl-C in the program does")
        return f"asked to {how}"

    def _stacks(self, pid: Any) -> str:
        """What a worker of ours is doing."""
        lives = sys.modules.get(_LIVES)
        parents = []
        for life in () if lives is None else lives.alive():
            with contextlib.suppress(Exception):  # it ends meanwhile
                if pid in [one["pid"] for one in life.native.workers()]:
                    parents.append(life.native.zygote()[0])
        if not parents:
            raise _Refused("it is no worker of a pool, or it is gone")
        from ...worker import stacks

        if not stacks.supported():
            raise _Refused("stacks need Linux; elsewhere point py-spy at the pid")
        return lines(stacks.read(pid, parents[0], _STACKS_S)) or "it does not answer"

    def _failure(self, number: Any) -> str:
        found = self._scene.failure(number) if isinstance(number, int) else None
        if found is None:
            raise _Refused("it is not kept any more")
        tries = found["attempts"]
        head = [
            f"stage   {found['stage']}",
            f"item    {found['item']}",
            f"error   {found['error']}",
            f"tries   {tries}",
        ]
        return "\n".join([*head, "", found["traceback"] or "(no traceback was told)"])


class _Refused(Exception):
    """It is not done; the message says why."""


_REQUESTS: dict[str, Callable[[Server, Any], str]] = {
    "stop": Server._stop,
    "kill": Server._kill,
    "stacks": Server._stacks,
    "failure": Server._failure,
}
_LIVES = f"{__name__.partition('.')[0]}.pool.life"
_LOGGER = logging.getLogger("forkmill.top")
_SERVERS: list[Server] = []  # of this process: one or none


def current() -> Server | None:
    """What this process serves, if it does."""
    return _SERVERS[0] if _SERVERS else None


def serve_top(*, control: bool = False, interrupt: Callable[[], object] | None = None) -> Server:
    """Let ``forkmill top PID`` look at this process: a socket that only this user can reach.

    What runs is told in a thread of ours; nothing waits for who looks. The same as starting the
    program with FORKMILL_TOP=1.

    Args:
        control: Whether runs may be stopped and killed from there.
        interrupt: Called, in a thread of ours, to stop a run that has no handle; None: such a run
            cannot be stopped from there.

    Returns:
        What ends it: its `close`, or a ``with`` block. When the interpreter ends it is closed.

    Raises:
        RuntimeError: This process is served already.
        OSError: There is no folder for the socket, or none can be made.
    """
    if _SERVERS:
        raise RuntimeError("this process is served already: close() that first")
    server = Server(control, interrupt)
    _SERVERS.append(server)
    return server


def by_environment() -> None:
    """FORKMILL_TOP is set; those that this process starts shall not find it."""
    value = os.environ.pop("FORKMILL_TOP", "")
    if value in ("", "0") or _SERVERS:
        return
    try:
        serve_top()
    except (OSError, RuntimeError) as error:
        _LOGGER.warning("no dashboard can look at this process: %s", error)


def _in_child() -> None:
    for server in _SERVERS:
        server.forget()
    _SERVERS.clear()


os.register_at_fork(after_in_child=_in_child)

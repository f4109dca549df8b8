"""A pooler of Postgres connections in transaction mode, as pgbouncer is, and as small as it can be.

A client has a server's connection from the first message of a transaction until the server says
that none is open (ReadyForQuery "I"); then the connection goes behind all others, so that the next
transaction is another server's whenever there are two. Nothing is reset in between.

    client ── thread ──▶ queue of connections ──▶ server
                     message by message (protocol 3.0); answers up to ReadyForQuery
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

__all__ = ["Pooler"]

_REFUSED = (80877103, 80877104)  # what asks for TLS, and for GSSAPI
_CANCEL = 80877102
_ENDS = b"QSF"  # messages that a ReadyForQuery answers


class _Wire:
    """One side's messages."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise ConnectionError
            data += more
        return data

    def message(self) -> tuple[bytes, bytes]:
        """Its kind, and all its bytes."""
        head = self.read(5)
        return head[:1], head + self.read(struct.unpack("!I", head[1:])[0] - 4)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)


class Pooler:
    """A pooler of so many connections to a server of ours, which asks for no password.

    Attributes:
        url: Where it listens.
        used: Which connection each transaction had.
    """

    def __init__(self, server: str, size: int = 2) -> None:
        import psycopg

        info = psycopg.conninfo.conninfo_to_dict(server)
        self._path = os.path.join(info["host"], f".s.PGSQL.{info.get('port', 5432)}")
        self._user, self._base = info.get("user", "postgres"), info.get("dbname", "postgres")
        self._idle: Queue[tuple[int, _Wire]] = Queue()
        self._greeting = b""
        self._all = [self._login() for _ in range(size)]
        for entry in enumerate(self._all):
            self._idle.put(entry)
        self.used: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = f"postgresql://{self._user}@127.0.0.1:{port}/{self._base}"
        self._clients: list[_Wire] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _login(self) -> _Wire:
        """A connection to the server, past its greeting."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._path)
        wire = _Wire(sock)
        words = f"user\0{self._user}\0database\0{self._base}\0\0".encode()
        wire.send(struct.pack("!II", len(words) + 8, 196608) + words)
        self._greeting = b"".join(self._answers(wire))
        return wire

    @staticmethod
    def _answers(wire: _Wire) -> Iterator[bytes]:
        """What a server says, up to ReadyForQuery."""
        kind = b""
        while kind != b"Z":
            kind, data = wire.message()
            yield data

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client = _Wire(sock)
                self._clients.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: _Wire) -> None:
        held: Any = None
        try:
            if not self._greeted(client):
                return
            while True:
                kind, data = client.message()
                if kind == b"X":
                    return
                if held is None:
                    held = self._idle.get(timeout=30)
                    self.used.append(held[0])
                held[1].send(data)
                if kind in _ENDS:
                    for answer in self._answers(held[1]):
                        client.send(answer)
                    if answer[-1:] == b"I":
                        self._idle.put(held)
                        held = None
        except OSError:  # a client that is gone, in a transaction maybe
            pass
        finally:
            client.sock.close()
            if held is not None:
                self._renew(*held)

    def _greeted(self, client: _Wire) -> bool:
        while True:
            (size,) = struct.unpack("!I", client.read(4))
            (code,) = struct.unpack("!I", client.read(size - 4)[:4])
            if code == _CANCEL:
                return False
            if code not in _REFUSED:
                client.send(self._greeting)
                return True
            client.send(b"N")

    def _renew(self, number: int, wire: _Wire) -> None:
        """In the place of one whose client was killed: the server rolls back what it had begun."""
        wire.sock.close()
        self._all[number] = self._login()
        self._idle.put((number, self._all[number]))

    def close(self) -> None:
        """End it, and whom it serves."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for wire in self._all:
            wire.sock.close()

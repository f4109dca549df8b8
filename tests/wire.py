"""What pool, zygote and workers say to each other, written and read by hand (forkmill.h)."""

from __future__ import annotations

import fcntl
import os
import pickle
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkmill import _native

HEADER = Path(__file__).resolve().parents[1] / "csrc" / "include" / "forkmill.h"


def _numbers() -> dict[str, int]:
    """The header's enums and flags, without "FM_"."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    found = {k: int(v, 16) for k, v in re.findall(r"#define FM_(\w+) (0x[0-9a-f]+)u", text)}
    for body in re.findall(r"^enum fm_\w+ \{(.*?)\}", text, flags=re.DOTALL | re.MULTILINE):
        number = -1
        for name, value in re.findall(r"FM_(\w+)(?: = (\d+))?\s*(?:,|$)", body):
            found[name] = number = int(value) if value else number + 1
    return found


globals().update(_numbers())  # KIND_RUN, REPORT_BORN, ...

_MESSAGE = struct.Struct("<IHHIIiiQ")
_MAGIC = 0x6C6C6D66


@dataclass
class Message:
    """One message between pool and zygote."""

    kind: int
    flags: int = 0
    slot: int = 0
    generation: int = 0
    pid: int = 0
    status: int = 0
    rss_kb: int = 0
    fds: tuple[int, ...] = ()


def send_message(fd: int, kind: int, **fields: int) -> None:
    m = Message(kind, **fields)
    data = _MESSAGE.pack(_MAGIC, m.kind, m.flags, m.slot, m.generation, m.pid, m.status, m.rss_kb)
    with socket.socket(fileno=fd) as control:
        control.sendall(data)
        control.detach()


def recv_message(fd: int) -> Message:
    """The next message; EOFError when the other end is gone."""
    with socket.socket(fileno=fd) as control:
        data, fds, _, _ = socket.recv_fds(control, _MESSAGE.size, 4)
        control.detach()
    if not data:
        raise EOFError("the other end of the control socket is gone")
    magic, *fields = _MESSAGE.unpack(data)
    assert magic == _MAGIC
    return Message(*fields, tuple(map(_lift, fds)))


def _lift(fd: int) -> int:
    """As the core does: a program without standard streams shall not print into a pipe."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return high


def record_size(data: bytes) -> int:
    """Size of the record that `data` begins with: 0 if that cannot be told yet."""
    if not data:
        return 0
    tag = data[0]
    if tag == 16:
        return 16 + int.from_bytes(data[8:16], "little") if len(data) >= 16 else 0
    if tag >= 8:
        return 4 + int.from_bytes(data[1:3], "little") if len(data) >= 3 else 0
    if tag >= 6:
        return 2 + data[1] if len(data) >= 2 else 0
    return 9 if tag >= 4 else 1


def dumps5(obj: object) -> tuple[bytes, list[memoryview]]:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(obj, 5, buffer_callback=buffers.append)
    return data, [buffer.raw() for buffer in buffers]


def loads5(data: Any, buffers: Any) -> Any:
    return pickle.loads(data, buffers=buffers)


def encode(
    obj: object, dumps: Callable[[Any], tuple[bytes, Sequence[memoryview]]] = dumps5
) -> bytes:
    """The record of one value."""
    encoder = _native.Encoder(dumps)
    encoder.add(obj)
    return bytes(encoder)


def decode(data: bytes, loads: Callable[..., Any] = loads5, owned: bool = False) -> Any:
    """The value of one record."""
    return _native.decode(data, loads, owned)

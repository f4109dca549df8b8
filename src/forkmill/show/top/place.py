"""Where the sockets of dashboards are, and who may be at their ends.

    $XDG_RUNTIME_DIR/forkmill/PID.sock, else /tmp/forkmill-UID/PID.sock

Guarantees:
    * A folder is used only if it is no link, and this user's alone: its owner and mode are those of
      the folder that was opened, not of a name that may change.
    * A socket has the mode 0600 from the moment it has a name.
    * A socket whose program is gone is removed by the next one that looks.
    * Who is at the other end is known by the kernel: `peer`.

Nothing here changes the umask, which other threads would see too: the folder is what keeps others
out.

Threads: any.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
import tempfile
from typing import NamedTuple

__all__ = ["PlaceError", "connected", "folder", "listening", "peer", "programs", "why_not"]

_NAME = "forkmill"
_LONGEST = 100  # bytes of a socket's path; sun_path has 108 on Linux, 104 on macOS
_SUFFIX = ".sock"


class PlaceError(OSError):
    """There is no place for a socket, or nothing that may be looked at; the message says why."""


class Peer(NamedTuple):
    """Who is at the other end of a socket."""

    pid: int
    uid: int


def _candidates(*others: str) -> list[str]:
    """Folders, the best one first."""
    found = []
    for runtime in (os.environ.get("XDG_RUNTIME_DIR", ""), *others):
        path = os.path.join(runtime, _NAME)
        if os.path.isabs(runtime) and os.path.isdir(runtime) and path not in found:
            found.append(path)
    return [*found, os.path.join(_shared(), f"{_NAME}-{os.geteuid()}")]


def _places() -> list[str]:
    """Where to look for sockets: a program may have another environment than who looks at it."""
    return _candidates(f"/run/user/{os.geteuid()}")


def _shared() -> str:
    # Not $TMPDIR: the program and who looks at it would have to agree on it.
    return "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()


def _checked(path: str) -> None:
    """See that a folder is ours alone.

    Raises:
        PlaceError: It is not.
        OSError: It is not there, or no folder.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
    finally:
        os.close(fd)
    if facts.st_uid != os.geteuid():
        raise PlaceError(f"{path} belongs to another user (uid {facts.st_uid})")
    if stat.S_IMODE(facts.st_mode) & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise PlaceError(f"{path} is open to others (mode {mode:04o}); chmod 700 it")


def folder() -> str:
    """The folder for a new socket; it is made if it is not there.

    Raises:
        PlaceError: There is none that can be used.
    """
    reasons = []
    for path in _candidates():
        if len(os.fsencode(path)) > _LONGEST - 20:
            reasons.append(f"{path}: too long for the path of a socket")
            continue
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            _checked(path)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PlaceError(f"{path} cannot be written to")
            return path
        except PlaceError as error:
            reasons.append(str(error))
        except OSError as error:
            reasons.append(f"{path}: {error.strerror}")
    raise PlaceError(f"there is no folder for the socket of a dashboard: {'; '.join(reasons)}")


def listening() -> tuple[socket.socket, str]:
    """A socket that dashboards of this process can connect to, and its path.

    Raises:
        PlaceError: There is no folder for it.
        OSError: It cannot be made.
    """
    where = folder()
    _sweep(where)
    path = os.path.join(where, f"{os.getpid()}{_SUFFIX}")
    early = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(early)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(OSError):
            os.fchmod(made.fileno(), 0o600)  # Linux: the mode that bind() gives the name
        made.bind(early)
        os.chmod(early, 0o600)
        made.listen(8)
        made.setblocking(False)
        os.rename(early, path)  # who finds the name and is refused knows that nobody listens
    except BaseException:
        made.close()
        raise
    return made, path


def _sweep(where: str) -> None:
    """Remove the sockets of programs that are gone."""
    for pid in _pids(where):
        if not _alive(pid):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(where, f"{pid}{_SUFFIX}"))


def _pids(where: str) -> list[int]:
    try:
        _checked(where)
        names = os.listdir(where)
    except OSError:
        return []
    stems = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdecimal() and stem.isascii())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def programs() -> list[int]:
    """The processes of this user that can be looked at, but for this one."""
    found = {pid for where in _places() for pid in _pids(where) if _alive(pid)}
    return sorted(found - {os.getpid()})


def connected(pid: int) -> socket.socket:
    """A socket to a process's server.

    Raises:
        PlaceError: There is none, or it is not that process, or another user's.
    """
    for where in _places():
        if pid not in _pids(where):
            continue
        path = os.path.join(where, f"{pid}{_SUFFIX}")
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(5.0)
            made.connect(path)
            other = peer(made)
            if other.uid != os.geteuid():
                raise PlaceError(f"{path} is served by another user (uid {other.uid})")
            if other.pid != pid:
                raise PlaceError(f"{path} is served by the process {other.pid}, not by {pid}")
            return made
        except (ConnectionRefusedError, FileNotFoundError):
            made.close()  # it is left from one that is gone
            with contextlib.suppress(OSError):
                os.unlink(path)
        except BaseException as error:
            made.close()
            if isinstance(error, OSError) and not isinstance(error, PlaceError):
                raise PlaceError(f"{path} does not answer: {error}") from None
            raise
    raise PlaceError(why_not(pid))


def why_not(pid: int) -> str:
    """Why a process cannot be looked at."""
    if pid <= 0 or not _alive(pid):
        return f"there is no process {pid}"
    owner = _owner(pid)
    if owner is not None and owner != os.geteuid():
        return f"the process {pid} belongs to another user (uid {owner}): only they may look at it"
    return (
        f"the process {pid} has no dashboard: start it with FORKMILL_TOP=1, or call "
        "fm.serve_top() in it"
    )


def _owner(pid: int) -> int | None:
    try:
        if sys.platform == "linux":
            return os.stat(f"/proc/{pid}").st_uid
        os.kill(pid, 0)
    except PermissionError:
        return -1
    except OSError:
        pass
    return None


_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2  # macOS, sys/un.h


def peer(connection: socket.socket) -> Peer:
    """Who is at the other end: of a client's socket who listens, of a server's who connected.

    Raises:
        OSError: The system does not tell.
    """
    if sys.platform == "linux":
        size = struct.calcsize("iII")
        pid, uid, _ = struct.unpack(
            "iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return Peer(pid, uid)
    # struct xucred: version, uid, number of groups (16 bits), groups
    facts = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76)
    _, uid = struct.unpack_from("=II", facts)
    return Peer(connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID), uid)

"""A dashboard on this terminal: always a process of its own.

    handle.top()             waits until it is closed; the run goes on meanwhile
    with Beside(): run()     ``forkmill run --top``: it closes when the block ends

Guarantees:
    * Nothing waits for a dashboard that is frozen: at the block's end it has 3 s, then it is ended,
      and the terminal is put in order.
    * What the program and its workers print while it is there comes when it is closed, and what
      workers print after that at the end; nothing is lost, and nothing is drawn through.

Threads: the one that runs; `Beside` has one of ours, which waits for the dashboard's end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from typing import TYPE_CHECKING, Any, Self

from ..._process import LoneThread, environment
from ..progress import dumb, terminal
from .server import Server, current, serve_top

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Beside", "TopError", "needs", "top_of"]

_CLOSE_S = 3.0  # from the end of a run to where its dashboard is ended
# Leave the second screen; the cursor, the mouse and the keyboard as they were.
_ORDER = (
    b"\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[<u\x1b[0m"
)


_CLOSED = "forkmill: the run goes on; forkmill top {} shows it again"


class TopError(RuntimeError):
    """There can be no dashboard here; the message says what is missing."""


def needs() -> None:
    """See that there can be a dashboard on this terminal.

    Raises:
        TopError: There cannot.
    """
    if importlib.util.find_spec("textual") is None:
        raise TopError("the dashboard needs textual: pip install 'forkmill[top]'")
    if not terminal(sys.__stdin__) or not terminal(sys.__stderr__):
        raise TopError(
            "the dashboard needs a terminal (standard input and error); forkmill top --once prints "
            "what it would show"
        )
    if dumb():
        name = os.environ.get("TERM", "")
        raise TopError(
            f"this terminal (TERM={name}) cannot move its cursor; forkmill top --once prints what "
            "the dashboard would show"
        )


def _command(*options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "forkmill", "top", str(os.getpid()), *options]


def _environment() -> dict[str, str]:
    """Where our package is found, if it is not installed where an interpreter looks."""
    package = __name__.partition(".")[0]
    here = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules[package].__file__ or "")))
    known = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    given = environment()
    if os.path.realpath(here) not in known:
        given["PYTHONPATH"] = os.pathsep.join(filter(None, (here, given.get("PYTHONPATH", ""))))
    return given


def top_of(handle: Any) -> None:
    """What `Handle.top` does: a dashboard of this process, which begins with the handle's run.

    Raises:
        TopError: There can be none.
        OSError: There is no folder for the socket.
    """
    needs()
    own = None if current() is not None else serve_top(control=True)
    try:
        command = _command("--run", handle._driver.events.id)
        with _Order():
            shown = subprocess.Popen(command, env=_environment())
            try:
                shown.wait()
            except BaseException:
                _end(shown)
                raise
    finally:
        if own is not None:
            own.close()


def _end(shown: subprocess.Popen[bytes], seconds: float = 1.0) -> None:
    """End it, also if it is frozen."""
    if seconds:
        shown.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            shown.wait(seconds)
    if shown.poll() is None:
        shown.send_signal(signal.SIGKILL)
    shown.wait()


class _Order:
    """Puts the terminal back as it was, whatever the dashboard has left of it."""

    def __enter__(self) -> Self:
        import termios

        self._fd = os.dup(sys.__stdin__.fileno())  # type: ignore[union-attr]
        self._out = os.dup(sys.__stderr__.fileno())  # type: ignore[union-attr]
        self._was: Any = termios.tcgetattr(self._fd)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.put()
        os.close(self._fd)
        os.close(self._out)

    def put(self) -> None:
        """Put it in order, if the dashboard could not do that itself."""
        import termios

        with contextlib.suppress(OSError, termios.error):  # the terminal is gone
            if termios.tcgetattr(self._fd) != self._was:
                termios.tcsetattr(self._fd, termios.TCSANOW, self._was)
                os.write(self._out, _ORDER)


class Beside:
    """A dashboard beside what runs in the block.

    Args:
        wanted: False: none, and the block is as it is without.
        interrupt: Stops a run that has no handle.

    Raises:
        TopError: There can be none.
        OSError: There is no folder for the socket.
    """

    def __init__(
        self, *, wanted: bool = True, interrupt: Callable[[], object] | None = None
    ) -> None:
        self._wanted = wanted
        self._interrupt = interrupt
        self._server: Server | None = None
        self._own = False
        self._kept: _Kept | None = None
        self._order: _Order | None = None
        self._shown: subprocess.Popen[bytes] | None = None
        self._over = False  # the block
        self._waits = LoneThread(self._wait, "forkmill-top-end")
        if wanted:
            needs()

    def __enter__(self) -> Self:
        if not self._wanted:
            return self
        self._server = current()
        self._own = self._server is None
        if self._server is None:
            self._server = serve_top(control=True, interrupt=self._interrupt)
        self._order = _Order().__enter__()
        terminal_fd = sys.__stderr__.fileno()  # type: ignore[union-attr]
        try:
            with contextlib.ExitStack() as stack:
                out = os.dup(terminal_fd)
                stack.callback(os.close, out)
                self._kept = _Kept()
                self._shown = subprocess.Popen(
                    _command("--until-end"), env=_environment(), stdout=out, stderr=out
                )
            self._waits.start()
        except BaseException:
            self._leave()
            raise
        return self

    def _wait(self) -> None:
        """In a thread of ours: it may be closed long before the run ends."""
        if self._shown is None or self._kept is None or self._order is None:
            return
        self._shown.wait()
        self._order.put()
        early = not self._over
        self._kept.give_back(_CLOSED.format(os.getpid()) if early else "")

    def _leave(self) -> None:
        self._over = True
        if self._own and self._server is not None:
            self._server.close()  # by which it knows that it is over
        if self._shown is not None:
            if not self._own:
                self._shown.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._shown.wait(_CLOSE_S)
            if self._shown.poll() is None:
                _end(self._shown, 0.0)
        if self._waits.begun:
            self._waits.join(1.0)
        if self._order is not None:
            self._order.__exit__(None, None, None)
        if self._kept is not None:
            self._kept.give_back()
            self._kept.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if self._wanted:
            self._leave()


class _Kept:
    """What is printed to the terminal meanwhile, in a file without a name."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()
        self._shown = 0
        self._saved: dict[int, int] = {}
        self._out: int | None = None
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        for fd in (1, 2):
            if os.isatty(fd):
                self._saved[fd] = os.dup(fd)
        self._out = os.dup(next(iter(self._saved.values()))) if self._saved else None
        for fd in self._saved:
            os.dup2(self._file.fileno(), fd)

    def give_back(self, note: str = "") -> None:
        """The terminal is the program's again; a note, and what was printed. Idempotent."""
        with self._lock, contextlib.suppress(OSError):
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            if note and self._out is not None:
                os.write(self._out, f"{note}\n".encode())
            self._copy()
            while self._saved:
                fd, saved = self._saved.popitem()
                os.dup2(saved, fd)
                os.close(saved)
            self._copy()

    def _copy(self) -> None:
        """What was written since the last time; the file's own place belongs to those who write."""
        while self._out is not None:
            data = os.pread(self._file.fileno(), 1 << 16, self._shown)
            if not data:
                return
            self._shown += len(data)
            while data:
                data = data[os.write(self._out, data) :]

    def close(self) -> None:
        """No more."""
        if self._out is not None:
            out, self._out = self._out, None
            os.close(out)
        self._file.close()


def size() -> tuple[int, int]:
    """Columns and lines of this terminal; 80x24 where there is none."""
    found = shutil.get_terminal_size((80, 24))
    return found.columns, found.lines

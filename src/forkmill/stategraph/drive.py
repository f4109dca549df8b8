"""Who runs a run: the caller, a thread of its own, an event loop's task, or who reads its stream.

    invoke ─────────▶ carried_out: here, with Ctrl-C      start ──▶ Handle(Driver): a thread
    ainvoke ────────▶ a Handle, awaited; cancelled: killed
    stream ─────────▶ StateStream: a step at a time, as it is read

Guarantees:
    * Ctrl-C once: the run ends after its step. Twice: it is killed. Then KeyboardInterrupt.
    * What a call opened is closed when it ends, however it ends.

Threads: a Driver's `stop` and `kill` may be called from any; the rest is the run's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import errors
from .._late import unbroken
from ..runs.handle import Left
from ..runs.interrupts import Handler
from ..runs.result import disguised
from .carried import Carried

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from .places import Places
    from .result import StateRun
    from .run import Run

__all__ = ["Driver", "Interrupts", "StateStream", "carried_out"]


class Interrupts(Handler):
    """Ctrl-C while a run works in the main thread: the first one stops it after the step."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        self.come()

    def __exit__(self, *exc: object) -> None:
        self.go()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        run = self._run
        if not run.interrupted:
            run.interrupted = True
            run.stop()
            return
        run.kill()
        if run.in_user_code:
            raise KeyboardInterrupt


def ended(run: Run, places: Places | None, error: BaseException | None) -> None:
    """The run is over: what it opened is closed, who hears it is told."""
    try:
        if places is not None:
            places.close(at_once=run.killed or not isinstance(error, (Exception, type(None))))
    finally:
        run.tell.run_finished(run.status, run.stats.steps, error)


def carried_out(run: Run, places: Places | None) -> StateRun:
    """Run to the end, in this thread.

    Args:
        run: The run.
        places: What is closed with it; None: nothing.

    Raises:
        BaseException: What `Run.turns` raises, with `.state_run`.
        KeyboardInterrupt: Ctrl-C, with `.state_run`.
    """
    error: BaseException | None = None
    with Interrupts(run):
        try:
            for _ in run.turns():
                pass
        except Carried as failure:
            error = failure.error
            _give_result(run, error)
            raise error from error.__cause__
        except BaseException as failure:
            error = failure
            _give_result(run, failure)
            raise
        finally:
            if not isinstance(error, Left):
                ended(run, places, error)
            error = None
    if run.interrupted:
        raise _give_result(run, KeyboardInterrupt())
    return run.result()


def _give_result(run: Run, error: BaseException) -> BaseException:
    """The error, with what the run has come to."""
    if not isinstance(error, Left):
        errors.slot(error, "__dict__")["state_run"] = run.result()
    return error


class Driver:
    """A run for a `Handle`: see `runs.handle.Driven`."""

    bell = None

    def __init__(self, run: Run, places: Places) -> None:
        self._run = run
        self._places = places
        self.events = run.tell.emitter
        self.over = False

    def run(self) -> StateRun:
        """Run to the end."""
        try:
            return carried_out(self._run, self._places)
        finally:
            self.over = True

    def carry_on(self) -> StateRun:
        """End the run whose thread was left behind."""
        try:
            result = self._run.carry_on()
            ended(self._run, self._places, None)
            return result
        finally:
            self.over = True

    def stop(self) -> None:
        """End after the step that runs."""
        self._run.stop()

    def kill(self) -> None:
        """End now."""
        self._run.kill()

    @property
    def in_user_code(self) -> bool:
        """Whether the run's thread is in the user's code just now."""
        return self._run.in_user_code

    def snapshot(self) -> Any:
        """The figures so far."""
        return self._run.stats

    def attach(self, sink: Any) -> None:
        """Somebody listens from now on."""
        self.events.attach(sink)

    def held_by_source(self) -> bool:
        """A step is never left behind by a stop."""
        return False

    def held_by_anything(self) -> bool:
        """After `kill`: whether the user's code holds the thread; if so the caller has the run."""
        return not self.over and self._run.leave_behind()

    def held_at_end(self) -> bool:
        """Nothing of the user's runs at the end."""
        return False


class StateStream:
    """The items of a run, one by one; the run goes on while they are asked for.

    Close it, or leave the loop and drop it, to end the run after what it has committed: the session
    can be resumed.
    """

    def __init__(self, run: Run, places: Places) -> None:
        self._run = run
        self._read = _Read()
        self._items = _read(run, places, self._read)

    @property
    def result(self) -> StateRun | None:
        """The run's StateRun, when it is over."""
        return self._read.result

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with Interrupts(self._run):
            try:
                item = next(self._items)
            except StopIteration:
                if not self._run.interrupted:
                    raise
            except Carried as carried:
                error = _give_result(self._run, carried.error)
                raise disguised(error) from error
            except BaseException as error:
                _give_result(self._run, error)
                raise
        if self._run.interrupted:
            self.close()
            raise _give_result(self._run, KeyboardInterrupt())
        return item

    def kill(self) -> None:
        """End what runs now. Any thread."""
        self._run.kill()

    def close(self) -> None:
        """End the run. Idempotent. Any thread: while somebody waits for an item, in another one, or
        in a call of the run itself, it ends after its step, and this does not wait.
        """
        if self._read.over:
            return
        items: Any = self._items
        if items.gi_running:
            self._run.stop()
            return
        if not self._read.begun:  # so that what it has claimed is freed
            self._run.stop()
            for _ in items:
                pass
        try:
            items.close()
        except ValueError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise  # of a node's
            self._run.stop()  # somebody has begun to read just now

    def __enter__(self) -> StateStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @unbroken
    def __del__(self) -> None:
        if getattr(self, "_items", None) is not None:
            self.close()


class _Read:
    """How far a stream is read; apart from the stream, which else nobody could drop."""

    begun = over = False
    result: StateRun | None = None


def _read(run: Run, places: Places, read: _Read) -> Iterator[Any]:
    error: BaseException | None = None
    read.begun = True
    try:
        yield from run.turns()
        run.tell.settle()
        yield from run.tell.taken()
    except BaseException as failure:
        error = failure
        if isinstance(failure, Exception):  # first what was told before it
            run.tell.settle()
            yield from run.tell.taken()
        raise
    finally:
        read.over = True
        read.result = run.result()
        ended(run, places, error)
        error = None
